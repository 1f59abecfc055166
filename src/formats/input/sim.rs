//! Owns: the simulated market: the same records for the same seed.
//!
//! Instruments are chosen by Zipf's law; arrivals are exponential in two regimes, calm and bursts in
//! which one instrument dominates; each instrument's price is a random walk with a two-sided quote
//! around it; orders are added to a small book, cancelled and filled, and trades hit them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tapestore::lsn::InstrumentId;
use tapestore::record::{BookOrder, Definition, Name, Price, Quote, Record, Size, Trade, action, flags, side};
use tapestore::time::Ts;

use super::message::{Input, Message};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// What the market is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Market {
    /// Everything follows from it.
    pub seed: u64,
    /// Records in all, the instruments' definitions among them.
    pub records: u64,
    /// Instruments.
    pub instruments: u32,
}

/// 2024-08-09T13:30:00Z, a New York opening.
const OPEN: u64 = 1_723_210_200_000_000_000;
/// Mean time between messages, ns: calm and in a burst.
const CALM_NS: f64 = 16_000.0;
const BURST_NS: f64 = 1_500.0;
/// Chances in 65,536, at each message, that a burst begins or ends.
const BURST_BEGINS: u64 = 40;
const BURST_ENDS: u64 = 130;
/// Orders that a book keeps.
const BOOK_MAX: usize = 32;
const SOURCE: u16 = 100;

#[derive(Clone, Copy)]
struct Order {
    id: u64,
    price: i64,
    size: u64,
    bid: bool,
}

struct Instrument {
    /// Price of a tick, and the middle in ticks.
    tick: i64,
    middle: i64,
    spread: i64,
    orders: Vec<Order>,
    sequence: u32,
}

/// The simulated market.
pub struct Sim {
    market: Market,
    rng: ChaCha8Rng,
    names: Vec<Name>,
    instruments: Vec<Instrument>,
    cumulative: Vec<f64>,
    now: u64,
    made: u64,
    burst: Option<usize>,
    next_order: u64,
    next_trade: u64,
}

impl Sim {
    /// The market as it opens.
    ///
    /// # Errors
    /// If there are no instruments.
    pub fn new(market: Market) -> Result<Sim> {
        if market.instruments == 0 {
            return Err(Error::Usage("--instruments must be at least 1".to_owned()));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(market.seed);
        let mut total = 0.0;
        let (mut names, mut instruments, mut cumulative) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..market.instruments {
            total += 1.0 / (f64::from(i) + 1.0);
            cumulative.push(total);
            names.push(format!("SIM:{i:05}").parse::<Name>()?);
            let tick = match rng.next_u64() % 3 {
                0 => 1_000_000,
                1 => 10_000_000,
                _ => 250_000_000,
            };
            let middle = 5_000 + (rng.next_u64() % 20_000) as i64;
            instruments.push(Instrument {
                tick,
                middle,
                spread: 1 + (rng.next_u64() % 4) as i64,
                orders: Vec::new(),
                sequence: 0,
            });
        }
        Ok(Sim { market, rng, names, instruments, cumulative, now: OPEN, made: 0, burst: None, next_order: 1, next_trade: 1 })
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// A number in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn pick(&mut self) -> usize {
        if let Some(index) = self.burst
            && self.below(4) > 0
        {
            return index;
        }
        let at = self.unit() * self.cumulative.last().copied().unwrap_or(1.0);
        self.cumulative.partition_point(|c| *c <= at).min(self.cumulative.len() - 1)
    }

    fn advance(&mut self) {
        let chance = self.below(65_536);
        self.burst = match self.burst {
            None if chance < BURST_BEGINS => Some(self.pick()),
            Some(_) if chance < BURST_ENDS => None,
            unchanged => unchanged,
        };
        let mean = if self.burst.is_some() { BURST_NS } else { CALM_NS };
        let gap = -(1.0 - self.unit()).ln() * mean;
        self.now += gap as u64 + 1;
    }

    fn definition(&mut self, index: usize, message: &mut Message) {
        let (Some(instrument), Some(name)) = (self.instruments.get(index), self.names.get(index)) else { return };
        let mut record = Definition {
            source: SOURCE,
            instrument: InstrumentId(index as u32),
            ts_event: Ts(self.now),
            ts_recv: Ts(self.now),
            min_price_increment: Price(instrument.tick),
            display_factor: Price(1_000_000_000),
            expiration: Ts::NULL,
            activation: Ts::NULL,
            security_update_action: tapestore::record::Char(b'A'),
            min_size_increment: Size(1_000_000_000),
            min_size: Size(1_000_000_000),
            // Zero, not null, in the other fields: the checksums of simulated records are the same in every version.
            kind: Definition::KIND,
            ..bytemuck::Zeroable::zeroed()
        };
        record.raw_symbol.iter_mut().zip(name.as_str().bytes()).for_each(|(to, from)| *to = from);
        message.push(&record);
    }

    fn event(&mut self, index: usize, message: &mut Message) {
        let (what, random, latency) = (self.below(100), self.rng.next_u64(), 20_000 + self.below(60_000));
        let (now, next_order, next_trade) = (self.now, self.next_order, self.next_trade);
        let Some(instrument) = self.instruments.get_mut(index) else { return };
        instrument.sequence = instrument.sequence.wrapping_add(1);
        let stamp = Stamp {
            instrument: InstrumentId(index as u32),
            ts_event: Ts(now - latency),
            ts_recv: Ts(now),
            ts_in_delta: latency as i32 / 2,
            sequence: instrument.sequence,
        };
        match what {
            0..=49 => instrument.quote(&stamp, random, message),
            50..=77 => {
                if instrument.add(&stamp, random, next_order, message) {
                    self.next_order += 1;
                }
            }
            78..=88 => instrument.cancel(&stamp, random, message),
            _ => {
                instrument.trade(&stamp, random, next_trade, message);
                self.next_trade += 1;
            }
        }
    }
}

struct Stamp {
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    ts_in_delta: i32,
    sequence: u32,
}

impl Stamp {
    fn order(&self, order: &Order, size: u64, action: tapestore::record::Char) -> BookOrder {
        BookOrder {
            source: SOURCE,
            instrument: self.instrument,
            ts_event: self.ts_event,
            ts_recv: self.ts_recv,
            order_id: order.id,
            price: Price(order.price),
            size: Size(size),
            sequence: self.sequence,
            ts_in_delta: self.ts_in_delta,
            flags: flags::LAST,
            action,
            side: if order.bid { side::BID } else { side::ASK },
            ..BookOrder::default()
        }
    }
}

/// A size of 1 to 64 whole units.
fn units(random: u64) -> u64 {
    (1 + random % 64) * 1_000_000_000
}

impl Instrument {
    fn bid(&self) -> i64 {
        (self.middle - self.spread) * self.tick
    }

    fn ask(&self) -> i64 {
        (self.middle + self.spread) * self.tick
    }

    fn quote(&mut self, s: &Stamp, random: u64, message: &mut Message) {
        // Most quotes change sizes alone.
        let step = match random % 16 {
            0 => -1,
            1 => 1,
            _ => 0,
        };
        self.middle = (self.middle + step).max(100);
        // Orders that the move passed are cancelled: the book never crosses.
        let (bid, ask) = (self.bid(), self.ask());
        self.orders.retain(|order| {
            let passed = if order.bid { order.price > bid } else { order.price < ask };
            if passed {
                message.push(&s.order(order, order.size, action::CANCEL));
            }
            !passed
        });
        message.push(&Quote {
            source: SOURCE,
            instrument: s.instrument,
            ts_event: s.ts_event,
            ts_recv: s.ts_recv,
            bid_px: Price(self.bid()),
            ask_px: Price(self.ask()),
            bid_sz: Size(units(random >> 8)),
            ask_sz: Size(units(random >> 16)),
            bid_ct: 1 + (random >> 24) as u32 % 9,
            ask_ct: 1 + (random >> 32) as u32 % 9,
            price: Price::NULL,
            size: Size::NULL,
            sequence: s.sequence,
            ts_in_delta: s.ts_in_delta,
            action: action::NONE,
            side: side::NONE,
            flags: flags::LAST | flags::TOB,
            ..Quote::default()
        });
    }

    fn add(&mut self, s: &Stamp, random: u64, id: u64, message: &mut Message) -> bool {
        if self.orders.len() >= BOOK_MAX {
            self.cancel(s, random, message);
            return false;
        }
        let bid = random & 1 == 0;
        let away = (random >> 8) as i64 % 8 * self.tick;
        let price = if bid { self.bid() - away } else { self.ask() + away };
        let order = Order { id, price, size: units(random >> 16), bid };
        message.push(&s.order(&order, order.size, action::ADD));
        self.orders.push(order);
        true
    }

    fn cancel(&mut self, s: &Stamp, random: u64, message: &mut Message) {
        if self.orders.is_empty() {
            return self.quote(s, random, message);
        }
        let order = self.orders.swap_remove(random as usize % self.orders.len());
        message.push(&s.order(&order, order.size, action::CANCEL));
    }

    /// A trade; the fill of the resting order it hit, if there is one, and what that takes from the book.
    fn trade(&mut self, s: &Stamp, random: u64, id: u64, message: &mut Message) {
        let hit = (!self.orders.is_empty()).then(|| random as usize % self.orders.len());
        let resting = hit.and_then(|i| self.orders.get(i).copied());
        let (price, buyer, most) = match resting {
            Some(order) => (order.price, !order.bid, order.size),
            None if random & 1 == 0 => (self.ask(), true, u64::MAX),
            None => (self.bid(), false, u64::MAX),
        };
        let size = units(random >> 16).min(most);
        message.push(&Trade {
            source: SOURCE,
            instrument: s.instrument,
            ts_event: s.ts_event,
            ts_recv: s.ts_recv,
            price: Price(price),
            size: Size(size),
            trade_id: id,
            sequence: s.sequence,
            ts_in_delta: s.ts_in_delta,
            action: action::TRADE,
            side: if buyer { side::BID } else { side::ASK },
            flags: if resting.is_some() { 0 } else { flags::LAST },
            ..Trade::default()
        });
        if let (Some(index), Some(order)) = (hit, resting) {
            message.push(&BookOrder { flags: 0, ..s.order(&order, size, action::FILL) });
            message.push(&s.order(&order, size, action::CANCEL));
            if size == order.size {
                self.orders.swap_remove(index);
            } else if let Some(order) = self.orders.get_mut(index) {
                order.size -= size;
            }
        }
    }
}

impl Input for Sim {
    fn next(&mut self, message: &mut Message) -> Result<bool> {
        message.clear();
        if self.made >= self.market.records {
            return Ok(false);
        }
        if self.made < self.instruments.len() as u64 {
            self.definition(self.made as usize, message);
        } else {
            self.advance();
            let index = self.pick();
            self.event(index, message);
        }
        message.at = Ts(self.now);
        // The last message may hold one record too many.
        let left = self.market.records - self.made;
        if u64::from(message.records) > left {
            let keep: usize =
                tapestore::record::split(&message.words).take(left as usize).flatten().map(|r| r.words().len()).sum();
            message.words.truncate(keep);
            message.records = left as u32;
        }
        self.made += u64::from(message.records);
        Ok(true)
    }

    fn names(&self) -> &[Name] {
        &self.names
    }

    fn progress(&self) -> Progress {
        Progress { done: self.made, total: self.market.records, is_bytes: false }
    }
}

#[cfg(test)]
mod tests {
    use tapestore::book::{Book, Oddities};

    use super::*;

    /// Checksum of the market of seed 42.
    const EXPECTED: u32 = 0x9783_48f0;

    fn checksum(market: Market) -> (u64, u32, u64) {
        let mut sim = Sim::new(market).unwrap();
        let (mut message, mut count, mut crc) = (Message::default(), 0, 0);
        let mut last = 0;
        while sim.next(&mut message).unwrap() {
            assert!(message.records > 0 && message.at.0 >= last);
            last = message.at.0;
            count += u64::from(message.records);
            for word in &message.words {
                crc = crc32c::crc32c_append(crc, &word.to_le_bytes());
            }
        }
        (count, crc, last - OPEN)
    }

    #[test]
    fn the_same_seed_gives_the_same_records_and_another_seed_others() {
        let market = Market { seed: 42, records: 20_000, instruments: 50 };
        let (count, crc, _) = checksum(market);
        assert_eq!(count, 20_000);
        // It must not change between versions, or stored checksums lose their meaning.
        assert_eq!(crc, EXPECTED, "{crc:#x}");
        assert_eq!(crc, checksum(market).1);
        assert_ne!(crc, checksum(Market { seed: 43, ..market }).1);
    }

    #[test]
    fn books_of_the_market_rebuild_without_an_oddity() {
        let mut sim = Sim::new(Market { seed: 7, records: 100_000, instruments: 20 }).unwrap();
        let (mut message, mut books) = (Message::default(), vec![Book::new(); 20]);
        while sim.next(&mut message).unwrap() {
            for r in tapestore::record::split(&message.words).flatten() {
                if let Some(change) = r.get::<BookOrder>() {
                    books[r.instrument().0 as usize].apply(change);
                }
            }
        }
        for (book, instrument) in books.iter().zip(&sim.instruments) {
            assert_eq!(book.oddities(), Oddities::default());
            assert!(book.changes() > 100);
            let (bids, asks): (Vec<&Order>, Vec<&Order>) = instrument.orders.iter().partition(|o| o.bid);
            assert_eq!(book.bids().next().map(|(p, _)| p.0), bids.iter().map(|o| o.price).max());
            assert_eq!(book.asks().next().map(|(p, _)| p.0), asks.iter().map(|o| o.price).min());
        }
    }

    #[test]
    fn the_market_has_every_kind_and_a_skew() {
        let mut sim = Sim::new(Market { seed: 1, records: 50_000, instruments: 100 }).unwrap();
        let (mut message, mut kinds, mut first) = (Message::default(), [0u32; 6], 0u32);
        while sim.next(&mut message).unwrap() {
            for r in tapestore::record::split(&message.words).flatten() {
                kinds[usize::from(r.kind().0)] += 1;
                first += u32::from(r.instrument().0 == 0);
                if let Some(q) = r.get::<Quote>() {
                    assert!(q.bid_px < q.ask_px && q.bid_px.0 > 0);
                }
            }
        }
        assert!(kinds[1] > 3000 && kinds[2] > 20_000 && kinds[3] > 10_000 && kinds[4] == 100, "{kinds:?}");
        assert!(first > 5000, "the first of 100 instruments has {first} of 50,000 records");
    }
}
