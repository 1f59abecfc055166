//! Owns: agreement between the hosts of a store: which host numbers records, and how far its log is the log of all.
//!
//! What must hold: the log of the store is the log of the raft crate: the frame of an index is the entry of that index,
//! and entries carry no bytes of their own. Nothing here writes frames, keeps time or opens sockets: the thread that owns
//! the log drives [`Node`].

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
mod tests;

pub use format::{Change, Seat, Transition};
pub use frames::Place;
pub use meta::MetaFile;
pub use node::Node;
pub use options::Options;
pub use work::{Verdict, Work};
