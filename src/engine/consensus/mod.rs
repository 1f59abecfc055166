//! Owns: consensus between the hosts of a store: which host leads, and up to which frame the log is committed.
//!
//! What must hold: the store's WAL is raft's log. The frame of an index is raft's entry of that index, and entries carry no
//! bytes of their own. This module writes no frames, keeps no time and opens no sockets: the thread that owns the log drives
//! [`Node`].

pub mod format;
pub mod frames;
mod introduction;
pub mod message;
pub mod meta;
pub mod node;
pub mod options;
mod progress;

mod members;
mod wire;
mod work;

#[cfg(test)]
pub(crate) mod tests;

pub use format::{Change, MemberEntry, Transition};
pub use frames::Place;
pub use meta::MetaFile;
pub use node::Node;
pub use options::Options;
pub use work::{Verdict, Work};
