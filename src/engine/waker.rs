//! Owns: the waker of the attach agent, which waits for descriptors.
//!
//! What must hold: a wake while the agent is awake is not lost.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes the attach agent.
#[derive(Clone)]
pub(super) struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker.
    ///
    /// # Errors
    /// The system's, if no descriptors are left.
    pub(super) fn new() -> std::io::Result<Waker> {
        Ok(Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes the agent.
    pub(super) fn wake(&self) {
        // A full counter means that the agent is awake already.
        match rustix::io::write(&self.0, &1u64.to_le_bytes()) {
            Ok(_) | Err(_) => {}
        }
    }

    /// Clears earlier wakes.
    pub(super) fn drain(&self) {
        match rustix::io::read(&self.0, &mut [0u8; 8]) {
            Ok(_) | Err(_) => {}
        }
    }

    /// The descriptor, readable after a wake.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
