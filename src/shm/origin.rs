//! Owns: [`Origin`], the process that made a value: detects its use in a forked child.
//!
//! A forked child has copies of its parent's state: of rings with their sequence numbers, of bus ports, of locks whose holders
//! are threads of the parent. If the child used them, two processes would act as one.
//!
//! What must hold: the check costs one load, because every publish makes it. The kernel zeroes one page of this process in
//! every forked child, and the number stored there next was never used before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Mapping;
use crate::error::{Error, Result};

/// The page; `None` where the kernel cannot zero it (before Linux 4.14): the check then compares process ids.
static PAGE: OnceLock<Option<Mapping>> = OnceLock::new();
/// Numbers given out so far, in this process and its ancestors.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The process that made a value.
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
            // The number orders nothing else, within one process: relaxed.
            let fresh = MADE.fetch_add(1, Ordering::Relaxed) + 1;
            word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|known| known, |_| fresh)
        });
        Origin { page, number, pid: std::process::id() }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the caller runs in that process.
    #[inline]
    pub fn is_here(&self) -> bool {
        match self.page {
            Some(page) => page.u64(0).load(Ordering::Relaxed) == self.number,
            None => std::process::id() == self.pid,
        }
    }

    /// Checks that the caller runs in that process, which opened the `what`.
    ///
    /// # Errors
    /// [`Error::Forked`] if the caller runs in a forked child.
    #[inline]
    pub fn check(&self, what: &'static str) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked { what, pid: self.pid }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_made_in_one_process_have_one_origin() {
        let (a, b) = (Origin::here(), Origin::here());
        assert!(a.is_here() && b.is_here() && a.number == b.number);
        assert!(a.page.is_some(), "this kernel zeroes pages on fork");
        let elsewhere = Origin { number: a.number - 1, pid: 0, ..a };
        assert!(matches!(elsewhere.check("publisher"), Err(Error::Forked { what: "publisher", pid: 0 })));
    }
}
