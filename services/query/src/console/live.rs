//! Owns: the newest quotes and trades of the instruments that clients watch: one thread follows the store for all of them.
//!
//! What must hold: a client has at most `WAITING` quotes and as many trades waiting, however long it reads nothing; the oldest
//! ones are left out, and counted. The thread runs only while there is a client. It is never more than `BEHIND_MAX` records
//! behind: it leaves them out.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tapestore::Error;
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{At, Follow, Reader};
use tapestore::record::{Price, Quote, Row, Size, Trade};
use tapestore::time::Ts;

use crate::engine::Engine;

/// Quotes, and trades, that wait for a client.
const WAITING: usize = 256;
/// Records that are read before clients get a turn.
const TURN: usize = 1024;
/// Records that the thread may be behind.
const BEHIND_MAX: u64 = 1 << 20;
/// How long the thread waits for a record before it looks whether there is a client.
const IDLE: Duration = Duration::from_millis(50);

/// A quote of an instrument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LiveQuote {
    /// Its index time.
    pub time: Ts,
    /// Prices and sizes.
    pub bid: (Price, Size),
    /// Of the offer.
    pub ask: (Price, Size),
}

/// A trade of an instrument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LiveTrade {
    /// Its index time.
    pub time: Ts,
    /// Its price.
    pub price: Price,
    /// Its size.
    pub size: Size,
    /// The aggressor's side, a character; 0: none.
    pub side: u8,
}

/// What waits for a client.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    /// Quotes, oldest first.
    pub quotes: VecDeque<LiveQuote>,
    /// Trades, oldest first.
    pub trades: VecDeque<LiveTrade>,
    /// Records that were left out, because they are older than those that may wait.
    pub left_out: u64,
    /// Records of all instruments that were not looked at, because too many came at once.
    pub skipped: u64,
    /// The last record.
    pub last: Lsn,
    /// Why nothing more comes.
    pub ended: Option<String>,
}

fn push<T>(queue: &mut VecDeque<T>, left_out: &mut u64, item: T) {
    if queue.len() >= WAITING {
        queue.pop_front();
        *left_out += 1;
    }
    queue.push_back(item);
}

impl Batch {
    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.quotes.is_empty() && self.trades.is_empty() && self.left_out == 0 && self.skipped == 0 && self.ended.is_none()
    }

    fn add(&mut self, row: &Row<'_>) {
        let time = row.index_time;
        if let Some(quote) = row.record.get::<Quote>() {
            let quote = LiveQuote { time, bid: (quote.bid_px, quote.bid_sz), ask: (quote.ask_px, quote.ask_sz) };
            push(&mut self.quotes, &mut self.left_out, quote);
        } else if let Some(trade) = row.record.get::<Trade>() {
            let trade = LiveTrade { time, price: trade.price, size: trade.size, side: trade.side.0 };
            push(&mut self.trades, &mut self.left_out, trade);
        } else {
            return;
        }
        self.last = row.lsn;
    }
}

struct Client {
    instrument: InstrumentId,
    /// The last record that it does not get.
    from: Lsn,
    batch: Batch,
}

#[derive(Default)]
struct Clients {
    next: u64,
    all: BTreeMap<u64, Client>,
    is_followed: bool,
}

/// All clients.
pub(super) struct Live {
    engine: Arc<Engine>,
    most: usize,
    clients: Mutex<Clients>,
}

/// A client's place; it ends when this is dropped.
pub(super) struct Watch {
    live: Arc<Live>,
    id: u64,
}

impl Watch {
    /// Takes what waits.
    pub(super) fn take(&self) -> Batch {
        self.live.lock().all.get_mut(&self.id).map(|client| std::mem::take(&mut client.batch)).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.live.lock().all.remove(&self.id);
    }
}

impl Live {
    /// At most `most` clients of the store of `engine`.
    pub(super) fn new(engine: Arc<Engine>, most: usize) -> Live {
        Live { engine, most, clients: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        // A panic of the thread that follows leaves a batch with one record less.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of clients.
    pub(super) fn clients(&self) -> usize {
        self.lock().all.len()
    }

    /// A new client of `instrument`, for the records after `from`; `None` if there are too many, or no thread.
    pub(super) fn watch(self: &Arc<Live>, instrument: InstrumentId, from: Lsn) -> Option<Watch> {
        let mut clients = self.lock();
        if clients.all.len() >= self.most {
            return None;
        }
        if !clients.is_followed {
            let live = self.clone();
            let thread = std::thread::Builder::new().name("console-tail".to_owned()).spawn(move || {
                if std::panic::catch_unwind(AssertUnwindSafe(|| live.run())).is_err() {
                    live.fail();
                }
            });
            if let Err(error) = thread {
                tracing::warn!(name: "console.follower_not_started", %error, "a thread to follow the store cannot be started");
                return None;
            }
            clients.is_followed = true;
        }
        clients.next += 1;
        let id = clients.next;
        clients.all.insert(id, Client { instrument, from, batch: Batch::default() });
        drop(clients);
        Some(Watch { live: self.clone(), id })
    }

    /// Follows the store while there are clients.
    fn run(&self) {
        loop {
            let next = {
                let mut clients = self.lock();
                let wanted = clients.all.values().filter(|client| client.batch.ended.is_none());
                let Some(from) = wanted.map(|client| client.from).min() else {
                    clients.is_followed = false;
                    return;
                };
                from.next()
            };
            match self.follow(next) {
                Ok(Some(skipped)) => self.each(|client| {
                    client.batch.skipped += skipped.0.saturating_sub(client.from.0);
                    client.from = skipped;
                }),
                Ok(None) => {}
                Err(error) => {
                    let reason = error.to_string();
                    self.each(|client| client.batch.ended = Some(reason.clone()));
                }
            }
        }
    }

    /// The thread that follows has ended by a bug: the next client starts another.
    fn fail(&self) {
        let mut clients = self.lock();
        clients.is_followed = false;
        clients.all.values_mut().for_each(|client| client.batch.ended = Some("a bug of this program".to_owned()));
    }

    fn each(&self, change: impl FnMut(&mut Client)) {
        self.lock().all.values_mut().for_each(change);
    }

    /// Follows the store from `next` on until there is no client, or too many records wait: then returns up to which one they
    /// are left out.
    fn follow(&self, next: Lsn) -> Result<Option<Lsn>, Error> {
        let mut follow = Reader::open(self.engine.store())?.follow(next, At::Appended);
        loop {
            let applied = follow.reader().control().applied();
            if applied.0.saturating_sub(follow.position().0) > BEHIND_MAX {
                return Ok(Some(applied));
            }
            if !self.turn(&mut follow)? {
                if self.lock().all.values().all(|client| client.batch.ended.is_some()) {
                    return Ok(None);
                }
                follow.wait(IDLE);
            }
        }
    }

    /// Gives clients what there is, up to a turn; whether there is more.
    fn turn(&self, follow: &mut Follow) -> Result<bool, Error> {
        let mut clients = self.lock();
        for _ in 0..TURN {
            let row = match follow.poll() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(false),
                // Retention is nothing that a client of new records notices.
                Err(Error::Expired { .. }) => continue,
                Err(error) => return Err(error),
            };
            let instrument = row.record.instrument();
            let all = clients.all.values_mut().filter(|client| client.instrument == instrument && client.from < row.lsn);
            for client in all {
                client.batch.add(&row);
                client.from = row.lsn;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tapestore::record::RecordRef;

    use super::*;

    #[test]
    fn what_waits_for_a_client_is_bounded_and_the_newest() {
        let mut batch = Batch::default();
        for i in 0..10_000u64 {
            let trade = Trade { price: Price(i as i64), ..Trade::default() };
            let quote = Quote { bid_px: Price(i as i64), ..Quote::default() };
            for (n, record) in [(0, RecordRef::of(&trade)), (1, RecordRef::of(&quote))] {
                batch.add(&Row { lsn: Lsn(2 * i + n), index_time: Ts(i), record });
            }
        }
        assert_eq!((batch.trades.len(), batch.quotes.len()), (WAITING, WAITING));
        assert_eq!(batch.left_out, 2 * (10_000 - WAITING as u64));
        assert_eq!(batch.trades.back().map(|trade| trade.price), Some(Price(9_999)));
        assert_eq!(batch.last, Lsn(19_999));
    }
}
