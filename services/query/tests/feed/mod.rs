//! A source of random trades: mostly in order, some late, some of equal times, some without a price.

use std::path::Path;
use std::time::Duration;

use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{self, PublishError, Publisher};
use tapestore::record::{Price, RecordRef, Size, Trade};
use tapestore::time::{NANOS_PER_SECOND, Ts};

const PATIENCE: Duration = Duration::from_secs(60);

/// Which trades.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// The first time, ns.
    pub(crate) start: u64,
    /// Steps of time: how many at most, and ns of one.
    pub(crate) steps: (u64, u64),
    /// One in so many trades is late, by at most so many seconds.
    pub(crate) late: (u64, u64),
    /// One in so many trades has no price.
    pub(crate) priceless: u64,
    /// The lowest price, how many there are, and their distance, 1e-9.
    pub(crate) prices: (i64, u64, i64),
    /// Sizes from zero on: how many there are, and their distance, 1e-9.
    pub(crate) sizes: (u64, u64),
}

/// The source.
pub(crate) struct Feed {
    publisher: Publisher,
    instruments: Vec<InstrumentId>,
    kind: Kind,
    seed: u64,
    /// The newest time.
    pub(crate) time: u64,
}

impl Feed {
    pub(crate) fn new(store: &Path, symbols: &[&str], kind: Kind) -> Feed {
        let publisher = Publisher::open(publisher::Options::new(store, PublisherId(1))).unwrap();
        let names: Vec<_> = symbols.iter().map(|name| name.parse().unwrap()).collect();
        let instruments = publisher.instruments(&names).unwrap();
        Feed { publisher, instruments, kind, seed: 20_261_130, time: kind.start }
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    /// Publishes `count` trades, and waits until they are durable.
    pub(crate) fn publish(&mut self, count: u64) {
        let Kind { start, steps, late, priceless, prices, sizes } = self.kind;
        for _ in 0..count {
            self.time += self.random(steps.0) * steps.1;
            let late = if self.random(late.0) == 0 { self.random(late.1) * NANOS_PER_SECOND } else { 0 };
            let at = self.random(self.instruments.len() as u64) as usize;
            let is_priceless = self.random(priceless) == 0;
            let price = if is_priceless { Price::NULL } else { Price(prices.0 + self.random(prices.1) as i64 * prices.2) };
            let trade = Trade {
                instrument: self.instruments[at],
                source: self.random(2) as u16,
                price,
                size: Size(self.random(sizes.0) * sizes.1),
                ts_recv: Ts(self.time - late.min(self.time - start)),
                ..Trade::default()
            };
            while let Err(error) = self.publisher.stage(RecordRef::of(&trade)) {
                assert!(matches!(error, PublishError::Full { .. }), "{error}");
            }
        }
        self.publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    }
}
