//! Owns: the descriptor by which `epoll`, `poll` and async programs wait for a subscriber, and the thread that makes it readable.
//!
//! What must hold: no event is missed. Before a program waits, the subscriber clears the descriptor, announces itself at the
//! bell, and looks once more for batches; a publisher that rings after the announcement wakes the thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::agent::{Stop, spawn};
use crate::error::{Error, Result};
use crate::shm::bell::{Bell, Bells};

/// The descriptor becomes readable this often even without a ring, so that the program's next poll notices a restart of
/// storage.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same while a record is fetched from the store.
const HEAL_EVERY: Duration = Duration::from_millis(5);

/// The descriptor and its thread.
#[derive(Debug)]
pub(super) struct Notifier {
    fd: Arc<OwnedFd>,
    bells: Bells,
    is_healing: Arc<AtomicBool>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

fn failed(op: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |e| Error::io(op, std::path::Path::new("an eventfd"), e)
}

impl Notifier {
    /// A descriptor that the publishers' rings at `bells` make readable.
    pub(super) fn new(bells: &Bells) -> Result<Notifier> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed("create"))?;
        Notifier::with(Arc::new(fd), bells)
    }

    /// The same descriptor at other bells.
    pub(super) fn move_to(&mut self, bells: &Bells) -> Result<()> {
        let next = Notifier::with(self.fd.clone(), bells)?;
        *self = next;
        Ok(())
    }

    fn with(fd: Arc<OwnedFd>, bells: &Bells) -> Result<Notifier> {
        let (bells, is_healing, stop) = (bells.clone(), Arc::new(AtomicBool::new(false)), Stop::default());
        let (mine, their_bells, healing, over) = (fd.clone(), bells.clone(), is_healing.clone(), stop.clone());
        // Read before the first announcement, so that no ring after one is missed.
        let mut seen = bells.rings(Bell::Live);
        let thread = spawn("tape-notifier", None, move || {
            while !over.is_stopped() {
                // A lone number: relaxed.
                let limit = if healing.load(Ordering::Relaxed) { HEAL_EVERY } else { LOOK_EVERY };
                their_bells.wait_for_ring(Bell::Live, seen, limit);
                seen = their_bells.rings(Bell::Live);
                raise(&mine);
            }
        });
        let thread = Some(thread.map_err(|e| Error::io("start a thread for", std::path::Path::new("an eventfd"), e))?);
        Ok(Notifier { fd, bells, is_healing, stop, thread })
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Prepares for a wait of the program: `has_batches` is asked after the announcement.
    pub(super) fn arm(&self, is_healing: bool, has_batches: impl FnOnce() -> bool) {
        let mut count = [0; 8];
        // It may be clear already.
        rustix::io::read(&self.fd, &mut count).ok();
        if self.is_healing.swap(is_healing, Ordering::Relaxed) != is_healing {
            self.bells.wake(Bell::Live);
        }
        self.bells.announce(Bell::Live);
        if has_batches() {
            raise(&self.fd);
        }
    }
}

/// Makes `fd` readable.
fn raise(fd: &OwnedFd) {
    // It is readable already if the counter is full.
    rustix::io::write(fd, &1u64.to_le_bytes()).ok();
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.stop.stop();
        self.bells.wake(Bell::Live);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(name: "subscriber.notifier_panicked", "a subscriber's notifier panicked");
        }
    }
}
