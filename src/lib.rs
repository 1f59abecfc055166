//! tapestore: a shared-memory market-data store.
//!
//! Publisher processes write fixed-layout market records into shared memory; one storage process
//! numbers, logs and indexes them; any number of reader processes query them through memory maps.
//!
//! Modules stand on floors; a module uses only lower floors (`tests/floors.rs` keeps it):
//! `error lsn time` / `record agent` / `disk shm bus` / `wal memtable` / `publisher subscriber
//! reader` / `engine` / `config`. There is no async code here.

#[cfg(not(all(target_endian = "little", target_pointer_width = "64", target_os = "linux")))]
compile_error!("tapestore runs on 64-bit little-endian Linux: its records are mapped as they are");

pub mod agent;
pub mod bus;
pub mod config;
pub mod disk;
pub mod engine;
pub mod error;
pub mod lsn;
pub mod memtable;
pub mod publisher;
pub mod reader;
pub mod record;
pub mod shm;
pub mod subscriber;
pub mod time;
pub mod wal;

#[cfg(test)]
mod tidy;
