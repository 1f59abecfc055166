//! Owns: which blocks of an SSTable have been checked against their CRCs.
//!
//! What must hold: one bit about bytes that never change, so the order in which threads see it is free.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each block.
#[derive(Debug)]
pub(super) struct Checked(Vec<AtomicU64>);

impl Checked {
    /// None of `blocks` blocks.
    pub(super) fn none(blocks: usize) -> Checked {
        Checked((0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    pub(super) fn has(&self, block: u32) -> bool {
        self.0.get(block as usize / 64).is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (block % 64)) != 0)
    }

    pub(super) fn set(&self, block: u32) {
        if let Some(word) = self.0.get(block as usize / 64) {
            word.fetch_or(1 << (block % 64), Ordering::Relaxed);
        }
    }
}
