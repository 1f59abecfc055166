//! Owns: what a following command says: what it has read, where it is, and how far that is behind the store.
//!
//! What must hold: the loop that reads pays with relaxed stores; a scrape reads them and the control page. Every metric is in
//! `docs/metrics.md`; a test holds both against each other.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tapestore::error::Error;
use tapestore::reader::{At, watermark};
use tapestore::shm::control::Control;
use tapestore::time::{Clock, HostClock};

use super::Source;
use super::words::Words;

/// What the reading loop counts. One thread writes, a scrape reads; each is a lone number: relaxed.
#[derive(Debug)]
pub struct Read {
    /// The control page that the reader reads now: of the process that serves the store, or its own of a store at rest.
    control: RwLock<Control>,
    /// Records read.
    pub records: AtomicU64,
    /// Of these, records that passed the filter.
    pub passed: AtomicU64,
    /// The next LSN.
    pub next: AtomicU64,
    /// Times that records read before were withdrawn.
    pub withdrawals: AtomicU64,
    /// Records that had expired before they were read.
    pub expired: AtomicU64,
}

impl Read {
    /// Nothing read yet, of the store of `control`, up to the record before `next`.
    pub(crate) fn new(control: &Control, next: u64) -> Arc<Read> {
        let zero = || AtomicU64::new(0);
        let control = RwLock::new(control.clone());
        let (records, passed, withdrawals, expired) = (zero(), zero(), zero(), zero());
        Arc::new(Read { control, records, passed, next: AtomicU64::new(next), withdrawals, expired })
    }

    /// The reader has nothing to read now; `control` is its page, which is another one when storage has started meanwhile.
    pub(crate) fn idle(&self, control: &Control) {
        *self.control.write().unwrap_or_else(PoisonError::into_inner) = control.clone();
    }

    /// Records were skipped for `error`; it goes on with `next`.
    pub(crate) fn skipped(&self, error: &Error, next: u64) {
        match error {
            Error::Expired { first, last } => add(&self.expired, last.0 + 1 - first.0),
            _ => add(&self.withdrawals, 1),
        }
        self.next.store(next, Ordering::Relaxed);
    }

    fn control(&self) -> Control {
        self.control.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One more record was read; `next` is the LSN after it.
    pub(crate) fn one(&self, next: u64, has_passed: bool) {
        add(&self.records, 1);
        add(&self.passed, u64::from(has_passed));
        self.next.store(next, Ordering::Relaxed);
    }
}

/// Adds to a number that this thread alone writes.
fn add(to: &AtomicU64, count: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// A reader that follows a store, for its metrics.
pub struct Reading {
    read: Arc<Read>,
    at: At,
}

impl Reading {
    /// The reader that counts in `read` and follows its store up to `at`.
    pub fn new(read: Arc<Read>, at: At) -> Reading {
        Reading { read, at }
    }

    fn is_served(&self) -> bool {
        self.read.control().is_alive(HostClock.monotonic())
    }
}

impl Source for Reading {
    fn metrics(&self) -> Box<dyn Collector> {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let read = &self.read;
        // First the position: the watermark read after it is not behind it.
        let next = of(&read.next);
        let newest = watermark(&read.control(), self.at).0;
        Box::new(Metrics {
            records: of(&read.records),
            passed: of(&read.passed),
            next,
            behind: (newest + 1).saturating_sub(next),
            withdrawals: of(&read.withdrawals),
            expired: of(&read.expired),
            is_served: self.is_served(),
        })
    }

    /// While it answers, it works.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// It is ready while a storage process serves the store.
    fn readiness(&self) -> Result<(), String> {
        match self.is_served() {
            true => Ok(()),
            false => Err("no storage process serves the store: no newer record comes. See: tape status".to_owned()),
        }
    }
}

#[derive(Debug)]
struct Metrics {
    records: u64,
    passed: u64,
    next: u64,
    behind: u64,
    withdrawals: u64,
    expired: u64,
    is_served: bool,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Words(encoder);
        to.counter("reading_records", "Records read.", self.records)?;
        to.counter("reading_passed_records", "Of these, records that passed the filter.", self.passed)?;
        to.gauge("reading_next_lsn", "The next record that it reads.", self.next)?;
        to.gauge("reading_lag_records", "Records up to its watermark that it has not read yet.", self.behind)?;
        to.counter("reading_withdrawals", "Times that records which it had read were withdrawn.", self.withdrawals)?;
        to.counter("reading_expired_records", "Records that retention removed before it read them.", self.expired)?;
        to.gauge("reading_storage_serves", "1 while a storage process serves the store.", u64::from(self.is_served))
    }
}
