//! Owns: [`Words`], the words of shared memory as far as more than one thread looks at them at once: so that the very code that
//! orders them runs on a model of memory too.

use std::sync::atomic::{Ordering, fence};

use super::Mapping;

/// Words at byte offsets, each of which one thread stores and any loads.
pub trait Words {
    /// The 32-bit word at `at`.
    fn load32(&self, at: u64, order: Ordering) -> u32;
    /// Sets it.
    fn store32(&self, at: u64, value: u32, order: Ordering);
    /// The 64-bit word at `at`.
    fn load64(&self, at: u64, order: Ordering) -> u64;
    /// Sets it.
    fn store64(&self, at: u64, value: u64, order: Ordering);
    /// Orders what is before it and what is behind it.
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

/// Memory as an architecture may reorder it: every order of loads and stores that the language allows is tried.
#[cfg(test)]
pub(crate) mod model {
    use std::collections::BTreeMap;

    use loom::sync::atomic::{AtomicU32, AtomicU64};

    use super::*;

    /// The words of a model: those that were named, and no others.
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
