//! Owns: what a publishing command says: how far its records are, what waits in its ring, and how often that was full.
//!
//! What must hold: the loop that publishes pays with one relaxed store where it waits; a scrape takes the publisher's lock for less
//! than a microsecond. Every metric is in `docs/metrics.md`; a test holds both against each other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tapestore::publisher::{Monitor, Numbers};

use super::Source;
use super::words::{Of, Words};

/// A publisher, for its metrics.
#[derive(Clone, Debug)]
pub struct Publishing {
    monitor: Monitor,
    /// How often a record waited because the ring was full.
    full: Arc<AtomicU64>,
}

impl Publishing {
    /// The publisher that `monitor` reads; `full` counts how often its ring was full.
    pub fn new(monitor: Monitor, full: Arc<AtomicU64>) -> Publishing {
        Publishing { monitor, full }
    }
}

impl Source for Publishing {
    fn metrics(&self) -> Box<dyn Collector> {
        // A lone counter: relaxed.
        Box::new(Metrics { numbers: self.monitor.read(), full: self.full.load(Ordering::Relaxed) })
    }

    /// While it answers, it works: without storage it keeps its records.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// It is ready while it is attached to storage.
    fn readiness(&self) -> Result<(), String> {
        match self.monitor.read() {
            Some(now) if now.is_attached => Ok(()),
            _ => Err("the publisher is not attached: no storage process serves the store. See: tape status".to_owned()),
        }
    }
}

#[derive(Debug)]
struct Metrics {
    numbers: Option<Numbers>,
    full: u64,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(now) = self.numbers else { return Ok(()) };
        let (mut to, progress) = (Words(encoder), now.progress);
        let (publisher, epoch, level) = (now.publisher.to_string(), progress.epoch.to_string(), now.level.to_string());
        let labels = [("publisher", publisher.as_str()), ("epoch", epoch.as_str()), ("level", level.as_str())];
        to.info("publishing", "The publisher, its epoch and the level in force.", &labels)?;
        to.gauge("publishing_attached", "1 while it is attached to a storage process.", u64::from(now.is_attached))?;
        let places = [
            ("published", progress.published.0),
            ("accepted", progress.accepted.0),
            ("durable", progress.durable.0),
            ("committed", progress.committed.0),
        ];
        let places = places.map(|(place, seq)| (place.to_owned(), seq));
        to.gauges(Of::Count, ("publishing_seq", "Its last record there, by its own numbers of this epoch."), "place", places)?;
        let waiting = [("ring", now.outstanding.unacknowledged), ("log", now.outstanding.in_log)];
        let waiting = waiting.map(|(place, records)| (place.to_owned(), records));
        to.gauges(
            Of::Count,
            ("publishing_outstanding_records", "Records below its level, by where they are."),
            "place",
            waiting,
        )?;
        to.gauge("publishing_ring_records", "Records that its ring keeps for storage.", now.ring_records)?;
        to.counter("publishing_ring_full", "Times that a record waited because the ring was full.", self.full)?;
        to.counter("publishing_batches", "Batches sent.", progress.batches)?;
        to.counter("publishing_rewinds", "Times that records were sent again.", progress.rewinds)?;
        to.counter("publishing_reattachments", "Times that it attached again.", progress.reattached)?;
        to.counter("publishing_lost_records", "Records that left the ring before storage received them.", progress.lost)
    }
}
