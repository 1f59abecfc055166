//! Owns: [`Words`], access to words of shared memory that several threads use concurrently. It abstracts the memory, so that
//! the code that orders these words runs on a model of memory (loom) too.
//!
//! What must hold: production and model run the same code with the same orderings.

use std::sync::atomic::{Ordering, fence};

use super::Mapping;

/// Words at byte offsets; one thread stores each of them, any thread loads it.
pub trait Words {
    /// Loads the 32-bit word at `at`.
    fn load32(&self, at: u64, order: Ordering) -> u32;
    /// Stores the 32-bit word at `at`.
    fn store32(&self, at: u64, value: u32, order: Ordering);
    /// Loads the 64-bit word at `at`.
    fn load64(&self, at: u64, order: Ordering) -> u64;
    /// Stores the 64-bit word at `at`.
    fn store64(&self, at: u64, value: u64, order: Ordering);
    /// Orders the accesses before it and after it, as `std::sync::atomic::fence` does.
    fn fence(&self, order: Ordering);
}

impl Words for Mapping {
    #[inline]
    fn load32(&self, at: u64, order: Ordering) -> u32 {
        self.u32(at).load(order)
    }

    #[inline]
    fn store32(&self, at: u64, value: u32, order: Ordering) {
        self.u32(at).store(value, order);
    }

    #[inline]
    fn load64(&self, at: u64, order: Ordering) -> u64 {
        self.u64(at).load(order)
    }

    #[inline]
    fn store64(&self, at: u64, value: u64, order: Ordering) {
        self.u64(at).store(value, order);
    }

    #[inline]
    fn fence(&self, order: Ordering) {
        fence(order);
    }
}

/// Model of memory that tries every order of loads and stores that the language allows.
#[cfg(test)]
pub(crate) mod model {
    use std::collections::BTreeMap;

    use loom::sync::atomic::{AtomicU32, AtomicU64};

    use super::*;

    /// Words of a model: only those at the given offsets exist.
    #[derive(Default)]
    pub(crate) struct Modelled {
        short: BTreeMap<u64, AtomicU32>,
        long: BTreeMap<u64, AtomicU64>,
    }

    impl Modelled {
        pub(crate) fn new(short: &[u64], long: &[u64]) -> Modelled {
            Modelled {
                short: short.iter().map(|at| (*at, AtomicU32::new(0))).collect(),
                long: long.iter().map(|at| (*at, AtomicU64::new(0))).collect(),
            }
        }
    }

    impl Words for Modelled {
        fn load32(&self, at: u64, order: Ordering) -> u32 {
            self.short[&at].load(order)
        }

        fn store32(&self, at: u64, value: u32, order: Ordering) {
            self.short[&at].store(value, order);
        }

        fn load64(&self, at: u64, order: Ordering) -> u64 {
            self.long[&at].load(order)
        }

        fn store64(&self, at: u64, value: u64, order: Ordering) {
            self.long[&at].store(value, order);
        }

        fn fence(&self, order: Ordering) {
            loom::sync::atomic::fence(order);
        }
    }
}
