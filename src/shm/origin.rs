//! Owns: knowing whether a thing is used in the process that made it, or in one that was forked off that.
//!
//! A forked process has copies of what its parent keeps: of a ring with its numbers, of ends of the bus, of locks that a thread
//! may hold that it does not have. To use them would be to be the parent a second time.
//!
//! What must hold: it is told by one load, because every record that is published asks. The kernel empties a page of this
//! process in whoever is forked off it, and the number that is put there next has never been there before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Mapping;
use crate::error::{Error, Result};

/// The page; `None` where the kernel cannot empty it (before Linux 4.14): then the process is asked who it is.
static PAGE: OnceLock<Option<Mapping>> = OnceLock::new();
/// Processes in a line of forks that have made anything.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The process that made a thing.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    page: Option<&'static Mapping>,
    number: u64,
    pid: u32,
}

impl Origin {
    /// This process.
    pub fn here() -> Origin {
        let page = PAGE.get_or_init(|| Mapping::wiped_on_fork().ok()).as_ref();
        let number = page.map_or(0, |page| {
            let word = page.u64(0);
            // Nothing but the number is told by it, in one process: relaxed.
            let fresh = MADE.fetch_add(1, Ordering::Relaxed) + 1;
            word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|known| known, |_| fresh)
        });
        Origin { page, number, pid: std::process::id() }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this is still that process.
    #[inline]
    pub fn is_here(&self) -> bool {
        match self.page {
            Some(page) => page.u64(0).load(Ordering::Relaxed) == self.number,
            None => std::process::id() == self.pid,
        }
    }

    /// Checks that this is still that process, which opened the thing called `what`.
    ///
    /// # Errors
    /// [`Error::Forked`] if it is not.
    #[inline]
    pub fn check(&self, what: &'static str) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked { what, pid: self.pid }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_here_is_of_here_and_of_one_origin() {
        let (a, b) = (Origin::here(), Origin::here());
        assert!(a.is_here() && b.is_here() && a.number == b.number);
        assert!(a.page.is_some(), "this kernel empties pages");
        let elsewhere = Origin { number: a.number - 1, pid: 0, ..a };
        assert!(matches!(elsewhere.check("publisher"), Err(Error::Forked { what: "publisher", pid: 0 })));
    }
}
