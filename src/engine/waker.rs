//! Owns: what wakes the attach agent, which waits for descriptors.
//!
//! What must hold: a wake that comes while it is awake is not lost.

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
    /// The system's, if it has no descriptors left.
    pub(super) fn new() -> std::io::Result<Waker> {
        Ok(Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes it.
    pub(super) fn wake(&self) {
        // Full means that it is awake already.
        match rustix::io::write(&self.0, &1u64.to_le_bytes()) {
            Ok(_) | Err(_) => {}
        }
    }

    /// Takes back what has woken it.
    pub(super) fn drain(&self) {
        match rustix::io::read(&self.0, &mut [0u8; 8]) {
            Ok(_) | Err(_) => {}
        }
    }

    /// Readable when it was woken.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
