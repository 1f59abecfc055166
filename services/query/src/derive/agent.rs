//! Owns: the loop that makes the bars of an entry: it follows the committed trades, and publishes each bar when its interval is
//! over, and once more when a late trade has changed it.
//!
//! Two numbers are its whole state, and the store has them ([`Mark`]): all bars before the time `done` are published, with all
//! trades up to the LSN `read_to`. From there on bars are made in the order of time, from the trades that are stored: history and
//! live alike. Trades after `read_to` that lie before `done` are late; their intervals are made again. A bar is compared with the
//! stored one before it is published, so what is done twice after a kill publishes nothing.
//!
//! An interval is over when a trade is later than its end by `late`, or when the host's clock is and no trade has come for `late`.
//!
//! What must hold: once the loop has caught up, the newest stored bar of each interval is that of all its trades. Memory is
//! bounded: intervals of late trades are, and bars are published as they are made.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use tapestore::agent::Stop;
use tapestore::error::Error;
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Follow, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{Record, RecordRef, Trade};
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts};

use super::bars::{Count, differing};
use super::mark::{Mark, Progress, marks};
use super::{Derive, TICK, wait};

/// Most records that are followed in a turn.
const TURN_RECORDS: u64 = 256 << 10;
/// Most intervals of late trades that wait.
const LATE_MAX: usize = 64 << 10;
/// The least pause between two turns that make bars of late trades.
const LATE_PAUSE: Duration = Duration::from_millis(200);
/// The longest that an interval of late trades waits for the next ones.
const LATE_WAIT: Duration = Duration::from_secs(60);
/// A mark is due after so many records,
const MARK_RECORDS: u64 = 1 << 20;
/// or bars of so much time.
const MARK_TIME: u64 = 3600 * NANOS_PER_SECOND;
/// About the time of a turn that makes bars of history: snapshots pin no MemTable for longer.
const TURN: Duration = Duration::from_secs(1);
/// Time between two lines of the log about progress.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why bars cannot be made for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The store cannot be read, or the publisher cannot attach.
    #[error(transparent)]
    Store(#[from] Error),
    /// The publisher cannot go on.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Bars are neither in the publisher's ring nor in the store.
    #[error("{count} bars did not reach the store; they are made again")]
    Lost {
        /// How many.
        count: u64,
    },
    /// It was stopped.
    #[error("it was stopped")]
    Stopped,
}

/// Late trades of an interval.
#[derive(Clone, Copy, Debug)]
struct Late {
    first: Instant,
    last: Instant,
    lsn: Lsn,
}

/// The loop's state.
struct Agent<'d> {
    derive: &'d Derive,
    stop: &'d Stop,
    publisher: Publisher,
    follow: Follow,
    /// Whether an instrument is one of the entry's.
    selected: HashMap<InstrumentId, bool>,
    /// Bars that begin before it are published.
    done: Ts,
    /// The newest mark.
    mark: Mark,
    /// Bars published since.
    unmarked: u64,
    /// Intervals of late trades, and when bars of some were made last and how long that took.
    late: BTreeMap<(InstrumentId, Ts), Late>,
    late_turn: (Instant, Duration),
    /// The time of the last trade of each instrument.
    recent: HashMap<InstrumentId, Ts>,
    /// The greatest time of a trade, and when the last trade came.
    newest: Ts,
    came: Instant,
    /// The span of history that a turn makes bars of, ns.
    span: u64,
    published: u64,
    /// When progress was logged; `None` once it has caught up.
    logged: Option<Instant>,
}

/// Makes the bars of `derive` in `store` until `stop`.
///
/// # Errors
/// Why it cannot go on; what is stored stays right, and the next call continues.
pub(super) fn run(store: &Path, derive: &Derive, stop: &Stop) -> Result<(), Failed> {
    let mut publisher = Publisher::open(Options { open_timeout: TICK, ..Options::new(store, derive.publisher) })?;
    publisher.kind::<Progress>()?;
    let mut reader = Reader::open(store)?;
    let snapshot = reader.snapshot(At::Committed)?;
    let found = marks(&snapshot)?.remove(&derive.publisher).map(|(_, mark)| mark);
    let found = found.filter(|mark| mark.rule == derive.rule && mark.bars == derive.kind && mark.table == derive.table);
    let is_new = found.is_none();
    let first =
        || Mark { done: Ts(0), read_to: snapshot.last(), rule: derive.rule, bars: derive.kind, table: derive.table.clone() };
    let mark = found.unwrap_or_else(first);
    let (done, follow, now) = (mark.done, reader.follow(mark.read_to.next(), At::Committed), Instant::now());
    let mut agent = Agent {
        derive,
        stop,
        publisher,
        follow,
        selected: HashMap::new(),
        done,
        mark: mark.clone(),
        unmarked: 0,
        late: BTreeMap::new(),
        late_turn: (now, Duration::ZERO),
        recent: HashMap::new(),
        newest: Ts(0),
        came: now,
        span: derive.interval,
        published: 0,
        logged: Some(now),
    };
    agent.begin(snapshot)?;
    if is_new {
        agent.mark(mark)?;
    }
    tracing::info!(
        name: "bars.started", table = derive.table, publisher = %derive.publisher, from = %done,
        "making {} of trades", derive.kind_name
    );
    match agent.turns() {
        Err(Failed::Stopped) => Ok(()),
        ended => ended,
    }
}

impl Agent<'_> {
    /// Reads which trades of the store are the newest.
    fn begin(&mut self, mut snapshot: Snapshot) -> Result<(), Failed> {
        let mut ingested = Ts(0);
        for instrument in self.instruments(&snapshot)? {
            let newest = snapshot.as_of(Series { instrument, kind: Trade::KIND }, Ts(u64::MAX))?;
            let Some((lsn, time)) = newest.map(|row| (row.lsn, row.index_time)) else { continue };
            self.newest = self.newest.max(time);
            ingested = ingested.max(snapshot.arrival(lsn)?.map_or(Ts(0), |arrival| arrival.ingest_ts));
        }
        let ago = Duration::from_nanos(HostClock.wall().0.saturating_sub(ingested.0));
        self.came = Instant::now().checked_sub(ago).unwrap_or(self.came);
        Ok(())
    }

    fn turns(&mut self) -> Result<(), Failed> {
        loop {
            let is_behind = self.read()?;
            let (due, over) = (self.due(), self.over());
            let mut is_past = false;
            if !due.is_empty() || over > self.done {
                // Taken after the trades were read, so it has them.
                let snapshot = self.follow.reader().snapshot(At::Committed)?;
                let before = self.published;
                self.again(&snapshot, due)?;
                is_past = self.next_bars(&snapshot, over)?;
                drop(snapshot);
                if self.published > before {
                    self.settle()?;
                }
            }
            self.mark_if_due()?;
            self.log(is_behind || is_past);
            if self.stop.is_stopped() {
                return Err(Failed::Stopped);
            }
            if !is_behind && !is_past {
                wait(self.stop, TICK);
            }
        }
    }

    fn is_selected(&mut self, instrument: InstrumentId) -> Result<bool, Failed> {
        if let Some(is_selected) = self.selected.get(&instrument) {
            return Ok(*is_selected);
        }
        let name = self.follow.reader().symbols()?.name(instrument);
        let is_selected = name.is_some_and(|name| self.derive.has(&name));
        self.selected.insert(instrument, is_selected);
        Ok(is_selected)
    }

    /// The entry's instruments that have trades.
    fn instruments(&mut self, snapshot: &Snapshot) -> Result<Vec<InstrumentId>, Failed> {
        let mut all = Vec::new();
        for series in snapshot.series()?.into_iter().filter(|series| series.kind == Trade::KIND) {
            if self.is_selected(series.instrument)? {
                all.push(series.instrument);
            }
        }
        Ok(all)
    }

    /// Follows the trades, and notes the intervals of late ones. Returns whether there are more.
    fn read(&mut self) -> Result<bool, Failed> {
        for _ in 0..TURN_RECORDS {
            if self.late.len() >= LATE_MAX {
                return Ok(true);
            }
            let (lsn, time, instrument) = match self.follow.poll() {
                Ok(Some(row)) if row.record.kind() == Trade::KIND => (row.lsn, row.index_time, row.record.instrument()),
                Ok(Some(_)) | Err(Error::Expired { .. }) => continue,
                Ok(None) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            if !self.is_selected(instrument)? {
                continue;
            }
            let now = Instant::now();
            self.came = now;
            self.newest = self.newest.max(time);
            self.recent.insert(instrument, time);
            if time < self.done {
                let key = (instrument, self.start(time));
                let late = self.late.entry(key).or_insert(Late { first: now, last: now, lsn });
                late.last = now;
            }
        }
        Ok(true)
    }

    /// The start of the interval of `time`.
    fn start(&self, time: Ts) -> Ts {
        Ts(time.0 - time.0 % self.derive.interval)
    }

    /// The end of the intervals that are over.
    fn over(&self) -> Ts {
        let late = Duration::from_nanos(self.derive.late);
        let wall = HostClock.wall();
        let clock = if self.came.elapsed() >= late { wall } else { self.newest.min(wall) };
        self.start(Ts(clock.0.saturating_sub(self.derive.late)))
    }

    /// The intervals of late trades for which no more are awaited.
    fn due(&self) -> Vec<(InstrumentId, Ts)> {
        let (ended, took) = self.late_turn;
        let is_full = self.late.len() >= LATE_MAX;
        if self.late.is_empty() || !is_full && ended.elapsed() < LATE_PAUSE.max(took * 4) {
            return Vec::new();
        }
        let wait = Duration::from_nanos(self.derive.late);
        let is_due = |(instrument, start): (InstrumentId, Ts), late: &Late| {
            let end = start.0.saturating_add(self.derive.interval).saturating_add(self.derive.late);
            let is_past = self.recent.get(&instrument).is_some_and(|time| time.0 >= end);
            is_full || is_past || late.last.elapsed() >= wait || late.first.elapsed() >= LATE_WAIT
        };
        self.late.iter().filter(|(key, late)| is_due(**key, late)).map(|(key, _)| *key).collect()
    }

    /// Makes the bars of the intervals `due` again, of which late trades came.
    fn again(&mut self, snapshot: &Snapshot, due: Vec<(InstrumentId, Ts)>) -> Result<(), Failed> {
        if due.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        for (instrument, start) in due {
            let to = Ts(start.0.saturating_add(self.derive.interval - 1));
            self.make(snapshot, instrument, TimeRange { from: start, to })?;
            self.late.remove(&(instrument, start));
        }
        self.late_turn = (Instant::now(), begun.elapsed());
        Ok(())
    }

    /// Makes the next bars of the intervals that end before `over`. Returns whether there are more.
    fn next_bars(&mut self, snapshot: &Snapshot, over: Ts) -> Result<bool, Failed> {
        if over <= self.done {
            return Ok(false);
        }
        // Not the times without a trade.
        let mut firsts = Vec::new();
        for instrument in self.instruments(snapshot)? {
            let range = TimeRange { from: self.done, to: Ts(over.0 - 1) };
            if let Some(row) = snapshot.scan(Series { instrument, kind: Trade::KIND }, range).next()? {
                firsts.push((instrument, row.index_time));
            }
        }
        let Some(from) = firsts.iter().map(|(_, time)| self.start(*time)).min() else {
            self.done = over;
            return Ok(false);
        };
        let to = Ts(from.0.saturating_add(self.span)).min(over);
        let begun = Instant::now();
        for (instrument, _) in firsts.into_iter().filter(|(_, time)| *time < to) {
            self.make(snapshot, instrument, TimeRange { from, to: Ts(to.0 - 1) })?;
        }
        self.done = to;
        self.span = match begun.elapsed() {
            took if took < TURN / 4 => self.span.saturating_mul(2),
            took if took > TURN => (self.span / 2).max(self.derive.interval),
            _ => self.span,
        };
        self.span -= self.span % self.derive.interval;
        Ok(to < over)
    }

    /// Publishes the bars of `instrument` in `range` that are not stored as they are.
    fn make(&mut self, snapshot: &Snapshot, instrument: InstrumentId, range: TimeRange) -> Result<(), Failed> {
        let (publisher, stop) = (&mut self.publisher, self.stop);
        let mut publish = |record: RecordRef<'_>| stage(publisher, record, stop);
        let Count { published, kept } = differing(snapshot, self.derive, instrument, range, &mut publish)?;
        self.published += published;
        self.unmarked += published;
        if kept > 0 {
            let table = &self.derive.table;
            tracing::warn!(
                name: "bars.late_trades_left_out", table, kept, from = %range.from,
                "late trades are not in bars whose other trades have expired"
            );
        }
        Ok(())
    }

    /// Waits until what was published is committed, so that the next snapshot has it.
    fn settle(&mut self) -> Result<(), Failed> {
        let level = self.publisher.level();
        loop {
            let reached = match self.publisher.flush(level, TICK) {
                Ok(progress) => progress.committed >= progress.published,
                Err(PublishError::Full { .. } | PublishError::NoSpace { .. }) => false,
                Err(error) => return Err(error.into()),
            };
            let lost = self.publisher.take_lost();
            if !lost.is_empty() {
                return Err(Failed::Lost { count: lost.iter().map(|lost| lost.last.0 - lost.first.0 + 1).sum() });
            }
            if reached {
                return Ok(());
            }
            if self.stop.is_stopped() {
                return Err(Failed::Stopped);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn mark_if_due(&mut self) -> Result<(), Failed> {
        let followed = Lsn(self.follow.position().0.saturating_sub(1));
        let read_to = self.late.values().map(|late| Lsn(late.lsn.0 - 1)).fold(followed, Lsn::min);
        let has_read = read_to.0.saturating_sub(self.mark.read_to.0) >= MARK_RECORDS;
        let has_made = self.unmarked > 0 && self.done.0.saturating_sub(self.mark.done.0) >= MARK_TIME;
        if !has_read && !has_made {
            return Ok(());
        }
        let mark = Mark { done: self.done, read_to, ..self.mark.clone() };
        self.mark(mark)
    }

    /// Publishes `mark`.
    fn mark(&mut self, mark: Mark) -> Result<(), Failed> {
        stage(&mut self.publisher, RecordRef::of(&mark.record()), self.stop)?;
        self.settle()?;
        (self.mark, self.unmarked) = (mark, 0);
        Ok(())
    }

    /// Logs once that the loop has caught up, and its progress until then.
    fn log(&mut self, is_behind: bool) {
        let (table, published, at) = (&self.derive.table, self.published, self.done);
        let Some(logged) = self.logged else { return };
        if !is_behind && self.late.is_empty() {
            tracing::info!(name: "bars.current", table, published, "the bars are current");
            self.logged = None;
        } else if logged.elapsed() >= LOG_EVERY {
            tracing::info!(name: "bars.history_progress", table, published, "making bars of history, up to {at} so far");
            self.logged = Some(Instant::now());
        }
    }
}

/// Puts `record` in the ring of `publisher`; waits for room.
fn stage(publisher: &mut Publisher, record: RecordRef<'_>, stop: &Stop) -> Result<(), Failed> {
    loop {
        match publisher.stage(record) {
            Ok(_) => return Ok(()),
            Err(PublishError::Full { .. } | PublishError::NoSpace { .. }) if stop.is_stopped() => return Err(Failed::Stopped),
            Err(PublishError::Full { .. } | PublishError::NoSpace { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
