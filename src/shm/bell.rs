//! Owns: bells, by which one process wakes others that sleep (a futex in shared memory).
//!
//! What must hold: a sleeper announces itself, then looks once more for work, then sleeps; a ringer
//! publishes its work, then looks for sleepers. With sequentially consistent fences between the two
//! steps on both sides, one of them sees the other. Every sleep has a time limit besides, so a bell
//! that a killed process left announced costs one system call and nothing more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use rustix::thread::futex;

use super::Mapping;
use crate::error::{Error, Result};

/// Which bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Bell {
    /// Publishers wake storage.
    Ingest = 0,
    /// Storage wakes readers: `applied` moved.
    Applied = 1,
    /// Storage wakes publishers: acknowledgements moved.
    Ack = 2,
    /// Publishers wake live subscribers.
    Live = 3,
}

const STRIDE: u64 = 128;
const SLEEPERS: u64 = 64;
const LEN: u64 = 4096;

/// Word that counts what replication processes and tools have written for storage.
const MAIL: u64 = 1024;

/// How long a process that may not write here sleeps at most: nobody knows that it does.
const UNANNOUNCED: Duration = Duration::from_millis(2);

/// The bells of a store; every process of the store's user may ring and sleep. Who may only read the store cannot ring, and
/// wakes by itself.
#[derive(Clone, Debug)]
pub struct Bells(Arc<Mapping>);

impl Bells {
    /// Maps the bells in the file `path`, creating it.
    ///
    /// # Errors
    /// As [`Mapping::open_or_create`].
    pub fn open_or_create(path: &Path) -> Result<Bells> {
        Ok(Bells(Arc::new(Mapping::open_or_create(path, LEN)?)))
    }

    /// Maps the bells in the file `path`, which storage has made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Bells> {
        let map = match Mapping::open(path, true) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Mapping::open(path, false)?,
            other => other?,
        };
        if map.len() < LEN {
            return Err(Error::Foreign { path: path.to_path_buf(), what: "file of bells", found: map.len() });
        }
        Ok(Bells(Arc::new(map)))
    }

    /// Wakes everybody who sleeps at `bell`; a load if nobody does. Nothing happens if this process may only read the store.
    #[inline]
    pub fn ring(&self, bell: Bell) {
        if !self.0.is_writable() {
            return;
        }
        let base = bell as u64 * STRIDE;
        // SYNC: pairs with the fence in `sleep`: this thread's work is visible before it looks.
        fence(Ordering::SeqCst);
        let sleepers = self.0.u32(base + SLEEPERS);
        if sleepers.load(Ordering::Relaxed) != 0 && sleepers.swap(0, Ordering::AcqRel) != 0 {
            let word = self.0.u32(base);
            // SYNC: pairs with the load in `sleep`: a sleeper between look and sleep sees it changed.
            word.fetch_add(1, Ordering::AcqRel);
            // The kernel's refusal would mean a bad address, which a mapping is not; and every sleep
            // ends by itself.
            let woken = futex::wake(word, futex::Flags::empty(), i32::MAX.unsigned_abs());
            debug_assert!(woken.is_ok(), "{woken:?}");
        }
    }

    /// Says that something has been written to storage's socket, and wakes it.
    pub fn post(&self) {
        if !self.0.is_writable() {
            return;
        }
        // SYNC: pairs with the load in `mail`: what was written before is in the socket.
        self.0.u32(MAIL).fetch_add(1, Ordering::Release);
        self.ring(Bell::Ingest);
    }

    /// A number that changes when something has been written to storage's socket.
    #[inline]
    pub fn mail(&self) -> u32 {
        // SYNC: pairs with `post`.
        self.0.u32(MAIL).load(Ordering::Acquire)
    }

    /// Sleeps until the bell rings, `ready` says true beforehand, or `limit` has passed.
    pub fn sleep(&self, bell: Bell, limit: Duration, ready: impl FnOnce() -> bool) {
        if !self.0.is_writable() {
            if !ready() {
                std::thread::sleep(limit.min(UNANNOUNCED));
            }
            return;
        }
        let base = bell as u64 * STRIDE;
        let word = self.0.u32(base);
        // SYNC: pairs with `fetch_add` in `ring`.
        let seen = word.load(Ordering::Acquire);
        self.0.u32(base + SLEEPERS).store(1, Ordering::Release);
        // SYNC: pairs with the fence in `ring`: announced before looking for work.
        fence(Ordering::SeqCst);
        if ready() {
            return;
        }
        let limit = rustix::time::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // Woken, timed out, interrupted, or rung in between: the caller looks again in every case.
        match futex::wait(word, futex::Flags::empty(), seen, Some(&limit)) {
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn no_ring_is_lost_between_a_producer_and_a_sleeper() {
        let dir = tempfile::tempdir().unwrap();
        let bells = Bells::open_or_create(&dir.path().join("bells")).unwrap();
        let counter = Arc::new(AtomicU64::new(0));
        let (theirs, their_bells) = (counter.clone(), bells.clone());
        let producer = std::thread::spawn(move || {
            for i in 1..=20_000u64 {
                theirs.store(i, Ordering::Release);
                their_bells.ring(Bell::Applied);
            }
        });
        let mut seen = 0;
        while seen < 20_000 {
            // With a limit this long a single lost ring would hang the test.
            bells.sleep(Bell::Applied, Duration::from_secs(3600), || counter.load(Ordering::Acquire) > seen);
            seen = counter.load(Ordering::Acquire);
        }
        producer.join().unwrap();
    }
}
