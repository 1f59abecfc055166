//! Owns: how far a piece of work has come, for those who show it or end it.

use std::ops::ControlFlow;

/// How far a file has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes or records so far.
    pub done: u64,
    /// Bytes or records in all; 0 if it is unknown.
    pub total: u64,
    /// Whether they are bytes.
    pub is_bytes: bool,
}

/// Receives progress as the work goes on; [`ControlFlow::Break`] ends the work with [`crate::Error::Interrupted`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;
