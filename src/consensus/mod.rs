//! Owns: agreement between the hosts of a store.

pub mod message;
