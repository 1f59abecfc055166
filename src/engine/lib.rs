//! Owns: the storage process: recovery, and the agents that run the store.
//!
//! ```text
//! attach (socket, janitor) ── requests ──▶ ingest (batches → log → MemTable) ── items ──▶ sync (fdatasync, acks)
//!      ▲ answers, when durable ────────────────────────────────────────────────────────────┘
//! prepare (segments, MemTables ahead of need) ──▶ ingest ── sealed MemTables ──▶ flush (files, manifest) ◀─▶ compact
//!      ▲ segments to use again ──────────────────────────────────────────────────────┘
//! ```
//!
//! What must hold: one process per store, by a lock that the kernel releases. Queues between agents are bounded. The end of
//! an agent, for any reason, ends the process, and no acknowledgement was given that does not hold.

pub mod compaction;
pub mod config;
pub mod consensus;
pub mod flush;
pub mod history;
pub mod memtables;
pub mod state;

mod agents;
mod attach;
mod boot_check;
pub mod budget;
mod catalog;
mod clock;
pub mod cluster_admin;
mod cluster_socket;
mod compact;
pub mod divergence;
mod effect;
mod embedded;
mod ended;
mod flush_source;
mod forward;
mod host;
mod ingest;
mod log;
mod members;
mod options;
pub mod pinned;
mod ports;
mod prepare;
mod recover;
mod reload;
pub mod repair;
mod replica;
mod requests;
mod scheduler;
mod sessions;
pub mod snapshot;
pub mod space;
mod storage;
mod sync;
pub mod traces;
mod vet;
mod waker;
mod watermarks;

#[cfg(test)]
mod tests;

pub use self::embedded::Embedded;
pub use self::ended::Ended;
pub use self::options::{Options, World};
pub use self::recover::{Recovered, Started, recover};
pub use self::storage::{Storage, store_dir};
