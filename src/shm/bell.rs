//! Owns: bells, futexes in shared memory by which one process wakes others that sleep.
//!
//! What must hold: a sleeper announces itself, then looks once more for work, then sleeps. A ringer publishes its work, then
//! looks for sleepers. Sequentially consistent fences between the two steps on both sides ensure that one of them sees the
//! other. Every sleep has a time limit besides, so an announcement left by a killed process costs one system call and no more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use rustix::thread::futex;

use super::Mapping;
use crate::error::{Error, Result};

/// A bell: its ringers and its sleepers.
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
/// Bytes of the file.
pub const LEN: u64 = 4096;

/// Word that counts the writes of replication processes and tools to storage's socket.
const MAIL: u64 = 1024;

/// Longest sleep of a process that may not write here: it cannot announce itself, so no ring wakes it.
const UNANNOUNCED: Duration = Duration::from_millis(2);

/// The bells of a store. Every process of the store's user may ring and sleep. A process that may only read the store cannot
/// ring, and polls instead of being woken.
#[derive(Clone, Debug)]
pub struct Bells(Arc<Mapping>);

impl Bells {
    /// Maps the bells in the file `path`, creating it if it is absent.
    ///
    /// # Errors
    /// As [`Mapping::open_or_create`].
    pub fn open_or_create(path: &Path) -> Result<Bells> {
        Ok(Bells(Arc::new(Mapping::open_or_create(path, LEN)?)))
    }

    /// Bells of this process alone, which nobody rings.
    ///
    /// # Errors
    /// As [`Mapping::private`].
    pub fn private() -> Result<Bells> {
        Ok(Bells(Arc::new(Mapping::private(LEN)?)))
    }

    /// Maps the bells in the existing file `path`; read-only if this process may not write it.
    ///
    /// # Errors
    /// [`Error::Foreign`] if the file is too short; [`Error::Io`].
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

    /// Wakes every process that sleeps at `bell`; costs a fence and a load if none does. Does nothing if this process may only
    /// read the store.
    #[inline]
    pub fn ring(&self, bell: Bell) {
        if !self.0.is_writable() {
            return;
        }
        let base = bell as u64 * STRIDE;
        // SYNC: pairs with the fence in `sleep`: this thread's work is visible before it looks for sleepers.
        fence(Ordering::SeqCst);
        let sleepers = self.0.u32(base + SLEEPERS);
        if sleepers.load(Ordering::Relaxed) != 0 && sleepers.swap(0, Ordering::AcqRel) != 0 {
            let word = self.0.u32(base);
            // SYNC: pairs with the load in `sleep`: a sleeper between look and sleep sees the word changed.
            word.fetch_add(1, Ordering::AcqRel);
            // The kernel refuses only a bad address, and a mapping has none; every sleep is limited anyway.
            let woken = futex::wake(word, futex::Flags::empty(), i32::MAX.unsigned_abs());
            debug_assert!(woken.is_ok(), "{woken:?}");
        }
    }

    /// Announces a sleeper at `bell`: the next ring wakes whoever waits in [`Bells::wait_for_ring`]. The caller then looks once
    /// more for work.
    pub fn announce(&self, bell: Bell) {
        if !self.0.is_writable() {
            return;
        }
        self.0.u32(bell as u64 * STRIDE + SLEEPERS).store(1, Ordering::Release);
        // SYNC: pairs with the fence in `ring`: the announcement is visible before the caller looks for work.
        fence(Ordering::SeqCst);
    }

    /// Number of the rings of `bell` that woke a sleeper.
    pub fn rings(&self, bell: Bell) -> u32 {
        // SYNC: pairs with `fetch_add` in `ring`.
        self.0.u32(bell as u64 * STRIDE).load(Ordering::Acquire)
    }

    /// Waits until `bell` has rung for an announced sleeper since [`Bells::rings`] was `seen`, or for `limit`; it may return
    /// earlier. Another thread announces.
    pub fn wait_for_ring(&self, bell: Bell, seen: u32, limit: Duration) {
        if !self.0.is_writable() {
            return std::thread::sleep(limit.min(UNANNOUNCED));
        }
        sleep_while(self.0.u32(bell as u64 * STRIDE), seen, limit);
    }

    /// Wakes every process that sleeps at `bell` without a reason; they look for work and sleep again.
    pub fn wake(&self, bell: Bell) {
        if self.0.is_writable() {
            let word = self.0.u32(bell as u64 * STRIDE);
            word.fetch_add(1, Ordering::AcqRel);
            let woken = futex::wake(word, futex::Flags::empty(), i32::MAX.unsigned_abs());
            debug_assert!(woken.is_ok(), "{woken:?}");
        }
    }

    /// Notifies storage that its socket has something to read, and wakes it.
    pub fn post(&self) {
        if !self.0.is_writable() {
            return;
        }
        // SYNC: pairs with the load in `mail`: earlier writes are in the socket.
        self.0.u32(MAIL).fetch_add(1, Ordering::Release);
        self.ring(Bell::Ingest);
    }

    /// Count of [`Bells::post`] calls; a change means that storage's socket has something to read.
    #[inline]
    pub fn mail(&self) -> u32 {
        // SYNC: pairs with `post`.
        self.0.u32(MAIL).load(Ordering::Acquire)
    }

    /// Sleeps until the bell rings or `limit` has passed; returns at once if `ready` is true.
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
        // SYNC: pairs with the fence in `ring`: this thread is announced before it looks for work.
        fence(Ordering::SeqCst);
        if ready() {
            return;
        }
        sleep_while(word, seen, limit);
    }
}

/// Sleeps while `word` is `seen`, at most for `limit`.
fn sleep_while(word: &std::sync::atomic::AtomicU32, seen: u32, limit: Duration) {
    let limit = rustix::time::Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // Woken, timed out, interrupted, or rung in between: the caller checks for work in every case.
    match futex::wait(word, futex::Flags::empty(), seen, Some(&limit)) {
        Ok(()) | Err(_) => {}
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
            // With a limit this long, one lost ring hangs the test.
            bells.sleep(Bell::Applied, Duration::from_secs(3600), || counter.load(Ordering::Acquire) > seen);
            seen = counter.load(Ordering::Acquire);
        }
        producer.join().unwrap();
    }
}
