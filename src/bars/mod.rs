//! Owns: bars, built from the trades of one instrument: by time, number of trades, volume or traded value.
//!
//! A time bar holds the trades from its start (included) to its end (excluded). An interval without trades has no
//! bar. A tick, volume or value bar closes with the trade that reaches or passes its threshold. That trade belongs
//! whole to the bar; the next bar begins with the next trade.
//!
//! Trades may be late. The builder's clock is the greatest time seen. A time bar closes when the clock is past its
//! end by the grace, so a trade that is late by at most the grace is always in its bar. (time, LSN) decides which
//! trades open and close a time bar, so its bars equal those of sorted history, in any order of arrival. Tick, volume
//! and value bars follow the order of arrival: another order gives other bars.
//!
//! What must hold: a trade is in one bar or in one counter of [`Oddities`]. A bar is emitted once. Only open bars are
//! kept: those within the grace. Numbers are exact: a sum that does not fit is null and counted.

mod session;
mod value;

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::lsn::{InstrumentId, Lsn};
use crate::record::{Bar1d, Bar1h, Bar1m, Bar1s, Price, RecordRef, Size, Source, Trade, Volume};
use crate::time::{NANOS_PER_SECOND, Ts};

use session::Stretch;

pub use session::Session;
pub use value::Value;

/// A second, a minute, an hour and a day, ns.
const SECOND: u64 = NANOS_PER_SECOND;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Maximum lead of a venue's clock over the time of reception, ns.
const AHEAD_MAX: u64 = MINUTE;

/// What closes a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The end of its interval.
    Time {
        /// ns.
        interval: u64,
    },
    /// Its n-th trade.
    Ticks(u64),
    /// The trade that brings its volume to this or more.
    Volume(Volume),
    /// The trade that brings its traded value to this or more. A trade at a negative price counts with the absolute
    /// value.
    Value(Value),
}

impl Rule {
    fn check(self) -> Result<()> {
        let (what, is_good) = match self {
            Rule::Time { interval } => ("interval", interval > 0),
            Rule::Ticks(n) => ("number of trades", n > 0),
            Rule::Volume(volume) => ("volume", volume.units() > 0 && volume != Volume::NULL),
            Rule::Value(value) => ("value", value.0 > 0 && value != Value::NULL),
        };
        if is_good { Ok(()) } else { Err(Error::invalid(what, "it must be above zero and not null")) }
    }
}

/// The origin of intervals.
#[derive(Clone, Debug)]
pub enum Align {
    /// 1970-01-01T00:00:00Z.
    Utc,
    /// The start of each session. Trades outside a session are left out and counted. A session's last bar ends with
    /// the session. An interval of a day is the session, however long. Tick, volume and value bars restart with each
    /// session.
    Session(Session),
}

/// The time of a trade that decides its bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// The store's index time: the time of reception, unless that is null.
    #[default]
    Recv,
    /// The venue's time of the trade: `ts_event`.
    Event,
}

impl By {
    /// The time of `trade`, whose index time is `index_time`.
    pub fn time(self, index_time: Ts, trade: &Trade) -> Ts {
        match self {
            By::Recv => index_time,
            By::Event => trade.ts_event,
        }
    }
}

impl FromStr for By {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "recv" => Ok(By::Recv),
            "event" => Ok(By::Event),
            _ => Err(Error::invalid("time", format!("'{text}' is none of: recv, event"))),
        }
    }
}

/// Options of a builder.
#[derive(Clone, Debug)]
pub struct Options {
    /// What closes a bar.
    pub rule: Rule,
    /// The origin of intervals.
    pub align: Align,
    /// The time of a trade that decides its bar.
    pub by: By,
    /// Maximum lateness of a trade, ns.
    pub grace: u64,
}

impl Options {
    /// Bars by `rule`, in UTC, by index time, of trades in order.
    pub fn new(rule: Rule) -> Options {
        Options { rule, align: Align::Utc, by: By::Recv, grace: 0 }
    }
}

/// The trades of an interval, or of a run of trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The instrument of its trades.
    pub instrument: InstrumentId,
    /// The source of its first trade.
    pub source: Source,
    /// First moment of a time bar; least time of a trade in other bars.
    pub start: Ts,
    /// End of a time bar, excluded; greatest time of a trade in other bars.
    pub end: Ts,
    /// Price of the first trade.
    pub open: Price,
    /// Highest price.
    pub high: Price,
    /// Lowest price.
    pub low: Price,
    /// Price of the last trade.
    pub close: Price,
    /// Total size.
    pub volume: Volume,
    /// Sum of price times size; null if it does not fit, above 1.7e20.
    pub value: Value,
    /// Number of trades.
    pub trades: u64,
    /// LSN of the first trade.
    pub first_lsn: Lsn,
    /// LSN of the last trade.
    pub last_lsn: Lsn,
}

impl Bar {
    /// The volume-weighted average price: value by volume, rounded to the nearest 1e-9, halves away from zero. Null
    /// if the value is null.
    pub fn vwap(&self) -> Price {
        let volume = self.volume.units();
        if self.value == Value::NULL || volume == 0 {
            return Price::NULL;
        }
        let (amount, rest) = (self.value.0.unsigned_abs() / volume, self.value.0.unsigned_abs() % volume);
        let amount = i128::try_from(amount + u128::from(rest >= volume - rest)).unwrap_or(i128::MAX);
        let mean = if self.value.0 < 0 { -amount } else { amount };
        i64::try_from(mean).map_or(Price::NULL, Price)
    }

    /// The bar as a record, if it spans a whole second, minute, hour or day in UTC.
    pub fn record(&self) -> Option<BarRecord> {
        macro_rules! record {
            ($of:ident, $bar:ident) => {
                Some(BarRecord::$of($bar {
                    source: self.source,
                    instrument: self.instrument,
                    ts_event: self.start,
                    open: self.open,
                    high: self.high,
                    low: self.low,
                    close: self.close,
                    volume: self.volume,
                    ..$bar::default()
                }))
            };
        }
        let interval = self.end.0.checked_sub(self.start.0)?;
        if interval == 0 || !self.start.0.is_multiple_of(interval) {
            return None;
        }
        match interval {
            SECOND => record!(Second, Bar1s),
            MINUTE => record!(Minute, Bar1m),
            HOUR => record!(Hour, Bar1h),
            DAY => record!(Day, Bar1d),
            _ => None,
        }
    }
}

/// A bar as a record of the store. Its `ts_event`, by which it is sorted, is the bar's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BarRecord {
    /// A one-second bar.
    Second(Bar1s),
    /// A one-minute bar.
    Minute(Bar1m),
    /// A one-hour bar.
    Hour(Bar1h),
    /// A one-day bar.
    Day(Bar1d),
}

impl BarRecord {
    /// The record, of any of the kinds.
    pub fn as_ref(&self) -> RecordRef<'_> {
        match self {
            BarRecord::Second(bar) => RecordRef::of(bar),
            BarRecord::Minute(bar) => RecordRef::of(bar),
            BarRecord::Hour(bar) => RecordRef::of(bar),
            BarRecord::Day(bar) => RecordRef::of(bar),
        }
    }
}

/// Trades that are in no bar, by reason, and sums that did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Trades that arrived after their bar, or the session, had closed.
    pub late: u64,
    /// Trades outside the session.
    pub outside: u64,
    /// Trades without a price.
    pub priceless: u64,
    /// Trades without a size or of size zero, which must not set a high or a low.
    pub sizeless: u64,
    /// Trades without the deciding time.
    pub untimed: u64,
    /// Trades with a venue time more than a minute after reception: such a clock must not close the bars of later
    /// trades.
    pub ahead: u64,
    /// Bars whose value did not fit. Their trades are in the bars.
    pub unvalued: u64,
}

impl Oddities {
    /// Number of trades that are in no bar.
    pub fn left_out(&self) -> u64 {
        self.late + self.outside + self.priceless + self.sizeless + self.untimed + self.ahead
    }
}

/// The span whose end closes its trades' bar at the latest: a time bar, a session, or all of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    start: Ts,
    end: Ts,
}

impl Slot {
    fn is_over(&self, newest: Option<Ts>, grace: u64) -> bool {
        newest.is_some_and(|newest| self.end.0.saturating_add(grace) <= newest.0)
    }
}

/// An open bar.
#[derive(Clone, Copy, Debug)]
struct Open {
    bar: Bar,
    slot: Slot,
    /// Order of the first and the last trade: (time, LSN) in time bars, order of arrival in others.
    first: (Ts, u64),
    last: (Ts, u64),
    /// Sum of the values' absolute amounts, x 1e-18; saturates.
    amount: u128,
}

impl Open {
    fn add(&mut self, place: (Ts, u64), lsn: Lsn, trade: &Trade) {
        let bar = &mut self.bar;
        if place < self.first {
            (self.first, bar.open, bar.first_lsn, bar.source) = (place, trade.price, lsn, trade.source);
        }
        if place >= self.last {
            (self.last, bar.close, bar.last_lsn) = (place, trade.price, lsn);
        }
        bar.high = bar.high.max(trade.price);
        bar.low = bar.low.min(trade.price);
        // 2^64 trades of the maximum size fit.
        bar.volume = Volume::new(bar.volume.units().saturating_add(u128::from(trade.size.0)));
        let value = Value::of(trade.price, trade.size);
        bar.value = bar.value.plus(value);
        self.amount = self.amount.saturating_add(value.0.unsigned_abs());
        bar.trades += 1;
        let (least, greatest) = (bar.open.min(bar.close), bar.open.max(bar.close));
        debug_assert!(bar.low <= least && greatest <= bar.high, "no price is outside low and high");
    }

    fn has_reached(&self, rule: Rule) -> bool {
        match rule {
            Rule::Time { .. } => false,
            Rule::Ticks(n) => self.bar.trades >= n,
            Rule::Volume(volume) => self.bar.volume.units() >= volume.units(),
            Rule::Value(value) => self.amount >= value.0.unsigned_abs(),
        }
    }
}

/// Builds the bars of one instrument.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/bars.rs"), "\n```")]
#[derive(Clone, Debug)]
pub struct Builder {
    options: Options,
    /// The greatest time seen.
    newest: Option<Ts>,
    /// Open bars, by the start of their slot.
    open: BTreeMap<Ts, Open>,
    /// The stretch looked up last.
    stretch: Option<Stretch>,
    pushed: u64,
    trades: u64,
    oddities: Oddities,
}

impl Builder {
    /// A builder without trades.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a bar would be empty, or if an interval aligned to sessions is longer than a day.
    pub fn new(options: Options) -> Result<Builder> {
        options.rule.check()?;
        if let (Rule::Time { interval }, Align::Session(_)) = (options.rule, &options.align)
            && interval > DAY
        {
            return Err(Error::invalid("interval", "a bar of a session is at most a day long"));
        }
        let (open, oddities) = (BTreeMap::new(), Oddities::default());
        Ok(Builder { options, newest: None, open, stretch: None, pushed: 0, trades: 0, oddities })
    }

    /// The greatest time seen.
    pub fn newest(&self) -> Option<Ts> {
        self.newest
    }

    /// Trades that are in bars, closed or open.
    pub fn trades(&self) -> u64 {
        self.trades
    }

    /// Trades that are in no bar.
    pub fn oddities(&self) -> Oddities {
        self.oddities
    }

    /// Start and end of the time bar that contains `time`; `None` outside a session, and for other rules.
    pub fn interval(&mut self, time: Ts) -> Option<(Ts, Ts)> {
        let Rule::Time { .. } = self.options.rule else { return None };
        self.slot(time).map(|slot| (slot.start, slot.end))
    }

    fn slot(&mut self, time: Ts) -> Option<Slot> {
        let session = match &self.options.align {
            Align::Session(session) => session,
            Align::Utc => {
                let Rule::Time { interval } = self.options.rule else {
                    return Some(Slot { start: Ts(0), end: Ts::NULL });
                };
                let start = time.0 - time.0.checked_rem(interval)?;
                return Some(Slot { start: Ts(start), end: Ts(start.saturating_add(interval)) });
            }
        };
        let stretch = match self.stretch {
            Some(known) if known.holds(time) => known,
            _ => session.stretch(time)?,
        };
        self.stretch = Some(stretch);
        if !stretch.is_open {
            return None;
        }
        let (start, end) = match self.options.rule {
            Rule::Time { interval } if interval < DAY => {
                let interval = i128::from(interval);
                let start = stretch.start + (i128::from(time.0) - stretch.start).checked_div(interval)? * interval;
                (start, stretch.end.min(start + interval))
            }
            _ => (stretch.start, stretch.end),
        };
        let ts = |ns: i128| Ts(u64::try_from(ns.max(0)).unwrap_or(u64::MAX));
        Some(Slot { start: ts(start), end: ts(end) })
    }

    /// Adds a trade with its LSN and index time in the store, and calls `emit` for each bar that it closes, oldest
    /// first.
    pub fn push(&mut self, lsn: Lsn, index_time: Ts, trade: &Trade, emit: &mut impl FnMut(Bar)) {
        let time = self.options.by.time(index_time, trade);
        if time.is_null() {
            self.oddities.untimed += 1;
            return;
        }
        if !index_time.is_null() && time.0 > index_time.0.saturating_add(AHEAD_MAX) {
            self.oddities.ahead += 1;
            return;
        }
        let before = self.trades + self.oddities.left_out();
        if trade.price == Price::NULL {
            self.oddities.priceless += 1;
        } else if trade.size == Size::NULL || trade.size == Size(0) {
            self.oddities.sizeless += 1;
        } else {
            match self.slot(time) {
                None => self.oddities.outside += 1,
                Some(slot) if slot.is_over(self.newest, self.options.grace) => self.oddities.late += 1,
                Some(slot) => self.add(slot, time, lsn, trade, emit),
            }
        }
        debug_assert!(self.trades + self.oddities.left_out() == before + 1, "a trade is in one bar or in one counter");
        self.advance(time, emit);
    }

    fn add(&mut self, slot: Slot, time: Ts, lsn: Lsn, trade: &Trade, emit: &mut impl FnMut(Bar)) {
        debug_assert!(slot.start <= time && time < slot.end, "a trade is in the bar of its time");
        self.pushed += 1;
        self.trades += 1;
        let is_timed = matches!(self.options.rule, Rule::Time { .. });
        let place = if is_timed { (time, lsn.0) } else { (Ts(0), self.pushed) };
        let open = self.open.entry(slot.start).or_insert_with(|| {
            let span = if is_timed { slot } else { Slot { start: time, end: time } };
            let bar = Bar {
                instrument: trade.instrument,
                source: trade.source,
                start: span.start,
                end: span.end,
                open: trade.price,
                high: trade.price,
                low: trade.price,
                close: trade.price,
                volume: Volume::new(0),
                value: Value(0),
                trades: 0,
                first_lsn: lsn,
                last_lsn: lsn,
            };
            Open { bar, slot, first: place, last: place, amount: 0 }
        });
        open.add(place, lsn, trade);
        if !is_timed {
            open.bar.start = open.bar.start.min(time);
            open.bar.end = open.bar.end.max(time);
        }
        if open.has_reached(self.options.rule)
            && let Some(open) = self.open.remove(&slot.start)
        {
            self.give(&open, emit);
        }
    }

    /// Advances the clock to `now` without a trade, and emits the bars that this closes.
    pub fn advance(&mut self, now: Ts, emit: &mut impl FnMut(Bar)) {
        self.newest = self.newest.max(Some(now));
        while let Some(first) = self.open.first_entry() {
            if !first.get().slot.is_over(self.newest, self.options.grace) {
                break;
            }
            let open = first.remove();
            self.give(&open, emit);
        }
    }

    /// Emits the bars that are still open, oldest first. Returns the trades that are in no bar, by reason.
    pub fn finish(mut self, emit: &mut impl FnMut(Bar)) -> Oddities {
        while let Some((_, open)) = self.open.pop_first() {
            self.give(&open, emit);
        }
        self.oddities
    }

    fn give(&mut self, open: &Open, emit: &mut impl FnMut(Bar)) {
        debug_assert!(open.bar.trades > 0 && open.bar.volume.units() > 0, "no bar is empty");
        self.oddities.unvalued += u64::from(open.bar.value == Value::NULL);
        emit(open.bar);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Record;

    const NEW_YORK: &str = "America/New_York";

    fn trade(price: &str, size: &str) -> Trade {
        let (price, size) = (price.parse().unwrap(), size.parse().unwrap());
        Trade { price, size, instrument: InstrumentId(3), source: 9, ..Trade::default() }
    }

    fn ts(text: &str) -> Ts {
        text.parse().unwrap()
    }

    /// The bars of `trades`, (time, trade) in the order of arrival, and the trades in none.
    fn build(options: Options, trades: impl IntoIterator<Item = (Ts, Trade)>) -> (Vec<Bar>, Oddities) {
        let mut builder = Builder::new(options).unwrap();
        let mut bars = Vec::new();
        for (lsn, (time, trade)) in (1..).map(Lsn).zip(trades) {
            builder.push(lsn, time, &trade, &mut |bar| bars.push(bar));
        }
        let oddities = builder.finish(&mut |bar| bars.push(bar));
        (bars, oddities)
    }

    fn timed(interval: u64, grace: u64) -> Options {
        Options { grace, ..Options::new(Rule::Time { interval }) }
    }

    fn session(rule: Rule, hours: &str, zone: &str) -> Options {
        Options { align: Align::Session(Session::parse(hours, zone).unwrap()), ..Options::new(rule) }
    }

    /// A trade every `step` ns from `from` (included) to `to` (excluded).
    fn every(step: u64, from: &str, to: &str) -> Vec<(Ts, Trade)> {
        (ts(from).0..ts(to).0).step_by(step as usize).map(|t| (Ts(t), trade("10", "1"))).collect()
    }

    fn spans(bars: &[Bar]) -> Vec<(String, String, u64)> {
        let short = |t: Ts| t.to_string().replace(":00.000000000Z", "Z");
        bars.iter().map(|b| (short(b.start), short(b.end), b.trades)).collect()
    }

    #[test]
    fn known_trades_give_known_bars_and_an_empty_interval_gives_none() {
        let minute = ts("2024-08-09T13:30:00Z").0;
        let trades = [
            (minute, trade("10.5", "2")),
            (minute + 1, trade("11", "1")),
            (minute + MINUTE - 1, trade("9.25", "4")),
            (minute + 3 * MINUTE, trade("12", "0.5")),
        ];
        let (bars, oddities) = build(timed(MINUTE, 0), trades.map(|(t, trade)| (Ts(t), trade)));
        let first = Bar {
            instrument: InstrumentId(3),
            source: 9,
            start: Ts(minute),
            end: Ts(minute + MINUTE),
            open: "10.5".parse().unwrap(),
            high: "11".parse().unwrap(),
            low: "9.25".parse().unwrap(),
            close: "9.25".parse().unwrap(),
            volume: "7".parse().unwrap(),
            value: "69".parse().unwrap(),
            trades: 3,
            first_lsn: Lsn(1),
            last_lsn: Lsn(3),
        };
        assert_eq!(bars[0], first);
        assert_eq!(bars[0].vwap(), "9.857142857".parse().unwrap());
        assert_eq!((bars.len(), bars[1].start, bars[1].value), (2, Ts(minute + 3 * MINUTE), "6".parse().unwrap()));
        assert_eq!(oddities, Oddities::default());
    }

    #[test]
    fn a_trade_later_than_the_grace_is_counted_and_its_bar_stays_closed() {
        let seconds = |s: u64| Ts(s * SECOND);
        let at = |s| (seconds(s), trade("10", "1"));
        let mut builder = Builder::new(timed(10 * SECOND, 5 * SECOND)).unwrap();
        let mut bars = Vec::new();
        for (lsn, (time, trade)) in (1..).map(Lsn).zip([at(3), at(14), at(9), at(15), at(9), at(2), at(24), at(10), at(11)]) {
            builder.push(lsn, time, &trade, &mut |bar| bars.push(bar));
        }
        // 9 is 5 s late and accepted; 15 closes the first bar, 24 does not close the second.
        assert_eq!(bars.iter().map(|b| (b.start, b.trades, b.last_lsn)).collect::<Vec<_>>(), [(seconds(0), 2, Lsn(3))]);
        assert_eq!((builder.oddities().late, builder.trades()), (2, 7));
        builder.advance(seconds(25), &mut |bar| bars.push(bar));
        builder.push(Lsn(10), seconds(19), &trade("10", "1"), &mut |bar| bars.push(bar));
        let oddities = builder.finish(&mut |bar| bars.push(bar));
        assert_eq!(
            bars.iter().map(|b| (b.start, b.trades)).collect::<Vec<_>>(),
            [(Ts(0), 2), (seconds(10), 4), (seconds(20), 1)]
        );
        assert_eq!((bars[1].first_lsn, bars[1].last_lsn), (Lsn(8), Lsn(4)), "by time, not by arrival");
        assert_eq!(oddities, Oddities { late: 3, ..Oddities::default() });
    }

    #[test]
    fn a_trade_with_a_broken_venue_clock_does_not_close_the_bars_of_other_trades() {
        let mut trades: Vec<(Ts, Trade)> = (0..4).map(|i| (Ts(i * MINUTE), trade("10", "1"))).collect();
        for (at, trade) in &mut trades {
            trade.ts_event = *at;
        }
        trades[1].1.ts_event = ts("2100-01-01T00:00:00Z");
        let (bars, oddities) = build(Options { by: By::Event, ..timed(MINUTE, 0) }, trades);
        assert_eq!((bars.len(), oddities), (3, Oddities { ahead: 1, ..Oddities::default() }));
    }

    #[test]
    fn bars_by_number_size_and_value_close_with_the_trade_that_reaches_the_threshold() {
        let trades = |sizes: &[&str]| -> Vec<(Ts, Trade)> { (5..).map(Ts).zip(sizes.iter().map(|s| trade("2", s))).collect() };
        let volumes = |rule, sizes: &[&str]| -> Vec<(String, u64)> {
            let (bars, _) = build(Options::new(rule), trades(sizes));
            bars.iter().map(|b| (b.volume.to_string(), b.trades)).collect()
        };
        let own =
            |expected: &[(&str, u64)]| -> Vec<(String, u64)> { expected.iter().map(|(v, n)| ((*v).to_owned(), *n)).collect() };
        assert_eq!(volumes(Rule::Ticks(2), &["1", "2", "3", "4", "5"]), own(&[("3", 2), ("7", 2), ("5", 1)]));
        let by_volume = Rule::Volume("3".parse().unwrap());
        assert_eq!(
            volumes(by_volume, &["1", "2", "2.999999999", "50", "3", "1"]),
            own(&[("3", 2), ("52.999999999", 2), ("3", 1), ("1", 1)])
        );
        let by_value = Rule::Value("6.000000000000000001".parse().unwrap());
        assert_eq!(volumes(by_value, &["3", "0.000000001", "4"]), own(&[("3.000000001", 2), ("4", 1)]));
        // The order of arrival determines the bars, their opens and closes; their times are the least and the
        // greatest.
        let late = [(Ts(9), trade("1", "1")), (Ts(4), trade("2", "1")), (Ts(8), trade("3", "1"))];
        let (bars, oddities) = build(Options::new(Rule::Ticks(3)), late);
        let b = bars[0];
        assert_eq!((b.start, b.end, b.open, b.close), (Ts(4), Ts(9), Price(1_000_000_000), Price(3_000_000_000)));
        assert_eq!((bars.len(), oddities.left_out()), (1, 0));
        // Negative values count with their absolute amounts.
        let (bars, _) =
            build(Options::new(Rule::Value("1".parse().unwrap())), [(Ts(1), trade("-1", "1")), (Ts(2), trade("-1", "1"))]);
        assert_eq!(bars.iter().map(|b| b.value.to_string()).collect::<Vec<_>>(), ["-1", "-1"]);
    }

    #[test]
    fn trades_without_price_size_or_time_are_left_out_and_counted() {
        let nothing = [
            (Ts(1), Trade { price: Price::NULL, ..trade("1", "1") }),
            (Ts(1), Trade { size: Size::NULL, ..trade("1", "1") }),
            (Ts(1), trade("1000", "0")),
            (Ts::NULL, trade("1000", "1")),
            (Ts(2), trade("1", "1")),
        ];
        let (bars, oddities) = build(timed(MINUTE, 0), nothing);
        assert_eq!((bars.len(), bars[0].trades, bars[0].high), (1, 1, "1".parse().unwrap()));
        assert_eq!(oddities, Oddities { priceless: 1, sizeless: 2, untimed: 1, ..Oddities::default() });
        assert_eq!(oddities.left_out(), 4);
        let by_event = Options { by: By::Event, ..timed(SECOND, 0) };
        let (bars, _) = build(by_event, [(Ts(9 * SECOND), Trade { ts_event: Ts(2 * SECOND), ..trade("1", "1") })]);
        assert_eq!(bars[0].start, Ts(2 * SECOND));
    }

    #[test]
    fn sums_are_exact_and_null_on_overflow() {
        let extreme = Trade { price: Price(i64::MIN), size: Size(u64::MAX - 1), ..trade("1", "1") };
        let (bars, oddities) = build(timed(MINUTE, 0), [(Ts(1), extreme)]);
        assert_eq!((bars[0].value, bars[0].vwap()), (Value(i128::from(i64::MIN) * i128::from(u64::MAX - 1)), Price(i64::MIN)));
        assert_eq!(oddities, Oddities::default());
        let (bars, oddities) = build(timed(MINUTE, 0), [(Ts(1), extreme), (Ts(2), extreme), (Ts(3), trade("1", "1"))]);
        assert_eq!((bars[0].value, bars[0].vwap(), bars[0].trades), (Value::NULL, Price::NULL, 3));
        assert_eq!(bars[0].volume.units(), 2 * u128::from(u64::MAX - 1) + 1_000_000_000);
        assert_eq!(oddities, Oddities { unvalued: 1, ..Oddities::default() });
        // Halves round away from zero.
        let near = |price, other| {
            let of = |p| Trade { price: Price(p), size: Size(1), ..trade("1", "1") };
            build(timed(MINUTE, 0), [(Ts(1), of(price)), (Ts(1), of(other))]).0[0].vwap()
        };
        assert_eq!([near(1, 2), near(-1, -2), near(1, 1)], [Price(2), Price(-2), Price(1)]);
    }

    #[test]
    fn a_session_keeps_its_local_hours_across_a_clock_change() {
        let day = Rule::Time { interval: DAY };
        for (before, after, opens) in
            [("2024-03-08", "2024-03-11", ["14:30", "13:30"]), ("2024-11-01", "2024-11-04", ["13:30", "14:30"])]
        {
            for (date, open) in [before, after].iter().zip(opens) {
                let trades = every(MINUTE, &format!("{date}T00:00:00Z"), &format!("{date}T23:59:00Z"));
                let (bars, oddities) = build(session(day, "09:30-16:00", NEW_YORK), trades);
                assert_eq!((bars.len(), bars[0].trades, oddities.outside), (1, 390, 1439 - 390));
                assert_eq!(bars[0].start, ts(&format!("{date}T{open}:00Z")));
                assert_eq!(bars[0].end.0 - bars[0].start.0, 390 * MINUTE);
            }
        }
        // Whole local days, of 23 and of 25 hours.
        for (date, from, to, hours) in [
            ("2024-03-10", "2024-03-10T05:00:00Z", "2024-03-11T04:00:00Z", 23),
            ("2024-11-03", "2024-11-03T04:00:00Z", "2024-11-04T05:00:00Z", 25),
        ] {
            let trades = every(MINUTE, from, to);
            let (bars, oddities) = build(session(day, "00:00-00:00", NEW_YORK), trades.clone());
            assert_eq!((bars.len(), bars[0].start, bars[0].end), (1, ts(from), ts(to)), "{date}");
            assert_eq!((bars[0].trades, oddities.left_out()), (hours * 60, 0));
            let (bars, _) = build(session(Rule::Time { interval: HOUR }, "00:00-00:00", NEW_YORK), trades);
            assert_eq!(bars.len() as u64, hours, "{date}");
            assert!(bars.iter().all(|b| b.trades == 60));
        }
    }

    #[test]
    fn a_day_whose_session_the_clocks_skip_has_no_bars_and_the_next_day_has() {
        let trades = every(MINUTE, "2024-03-09T00:00:00Z", "2024-03-12T00:00:00Z");
        let (bars, oddities) = build(session(Rule::Time { interval: HOUR }, "02:10-02:50", NEW_YORK), trades);
        assert_eq!(
            bars.iter().map(|b| b.start.to_string()[..16].to_owned()).collect::<Vec<_>>(),
            ["2024-03-09T07:10", "2024-03-11T06:10"]
        );
        assert_eq!(oddities.outside, 3 * 1440 - 80);
    }

    #[test]
    fn a_session_over_midnight_is_one_session_and_its_last_bar_ends_with_it() {
        let trades = every(30 * MINUTE, "2024-06-03T21:00:00Z", "2024-06-05T00:00:00Z");
        let hours = session(Rule::Time { interval: 7 * HOUR }, "18:00-17:00", NEW_YORK);
        let (bars, oddities) = build(hours.clone(), trades.clone());
        let expected = [
            ("2024-06-03T22:00Z", "2024-06-04T05:00Z", 14),
            ("2024-06-04T05:00Z", "2024-06-04T12:00Z", 14),
            ("2024-06-04T12:00Z", "2024-06-04T19:00Z", 14),
            ("2024-06-04T19:00Z", "2024-06-04T21:00Z", 4),
            ("2024-06-04T22:00Z", "2024-06-05T05:00Z", 4),
        ];
        assert_eq!(spans(&bars), expected.map(|(a, b, n)| (a.to_owned(), b.to_owned(), n)));
        assert_eq!(oddities, Oddities { outside: 4, ..Oddities::default() });
        // Tick bars restart with each session.
        let (bars, _) = build(Options { rule: Rule::Ticks(20), ..hours }, trades);
        assert_eq!(bars.iter().map(|b| b.trades).collect::<Vec<_>>(), [20, 20, 6, 4]);
        assert_eq!(bars[3].start, ts("2024-06-04T22:00:00Z"));
    }

    #[test]
    fn bars_of_a_second_minute_hour_or_day_convert_to_records() {
        for (interval, kind) in [(SECOND, Bar1s::KIND), (MINUTE, Bar1m::KIND), (HOUR, Bar1h::KIND), (DAY, Bar1d::KIND)] {
            let (bars, _) = build(timed(interval, 0), [(Ts(interval * 7 + 5), trade("10.5", "2"))]);
            let record = bars[0].record().unwrap();
            assert_eq!((record.as_ref().kind(), record.as_ref().own_index_time()), (kind, Ts(interval * 7)));
            assert_eq!((record.as_ref().instrument(), record.as_ref().header().source), (InstrumentId(3), 9));
        }
        let (bars, _) = build(timed(MINUTE, 0), [(Ts(5), trade("10.5", "2")), (Ts(6), trade("10", "1"))]);
        let Some(BarRecord::Minute(bar)) = bars[0].record() else { panic!("a minute") };
        assert_eq!([bar.open, bar.high, bar.low, bar.close].map(|p| p.to_string()), ["10.5", "10.5", "10", "10"]);
        assert_eq!(bar.volume.to_string(), "3");
        assert!(build(timed(5 * MINUTE, 0), [(Ts(5), trade("1", "2"))]).0[0].record().is_none());
    }

    #[test]
    fn empty_rules_and_invalid_sessions_are_refused() {
        let rules = [
            Rule::Time { interval: 0 },
            Rule::Ticks(0),
            Rule::Volume(Volume::new(0)),
            Rule::Volume(Volume::NULL),
            Rule::Value(Value(0)),
            Rule::Value(Value(-1)),
            Rule::Value(Value::NULL),
        ];
        assert!(rules.into_iter().all(|rule| Builder::new(Options::new(rule)).is_err()));
        assert!(Builder::new(session(Rule::Time { interval: DAY + 1 }, "09:30-16:00", NEW_YORK)).is_err());
        for (hours, zone) in [("09:30", NEW_YORK), ("09:30-25:00", NEW_YORK), ("9-16", NEW_YORK), ("09:30-16:00", "Mars/Olympus")]
        {
            assert!(Session::parse(hours, zone).is_err(), "{hours} {zone}");
        }
    }

    /// Trades over some seconds, invalid ones among them, in an order in which none is later than `grace`.
    fn unordered(grace: u64) -> impl Strategy<Value = Vec<(Ts, Trade)>> {
        let one = (0u64..30_000, 0..=grace / 1_000_000, -50i64..50, 0u64..30);
        proptest::collection::vec(one, 0..200).prop_map(|mut all| {
            all.sort_by_key(|(time, delay, ..)| time + delay);
            let trade = |price, size: u64| Trade {
                price: if price == 49 { Price::NULL } else { Price(price * 7) },
                size: if size == 29 { Size::NULL } else { Size(size) },
                source: size as u16,
                ..trade("1", "1")
            };
            all.into_iter().map(|(time, _, price, size)| (Ts(time * 1_000_000), trade(price, size))).collect()
        })
    }

    fn rules() -> impl Strategy<Value = Rule> {
        prop_oneof![
            (1u64..9_000).prop_map(|ms| Rule::Time { interval: ms * 1_000_000 }),
            (1u64..30).prop_map(Rule::Ticks),
            (1u128..300).prop_map(|units| Rule::Volume(Volume::new(units))),
            (1i128..9_000).prop_map(|units| Rule::Value(Value(units))),
        ]
    }

    fn aligns() -> impl Strategy<Value = Align> {
        let of = |hours| Align::Session(Session::parse(hours, NEW_YORK).unwrap());
        // 1970-01-01T00:00:00Z is 19:00 there.
        prop_oneof![Just(Align::Utc), Just(of("19:00:03-19:00:20")), Just(of("19:00:10-19:00:10")), Just(of("19:00:20-19:00:07"))]
    }

    proptest! {
        #[test]
        fn in_any_order_within_the_grace_time_bars_equal_those_of_sorted_history(
            (grace, trades) in (0u64..6_000).prop_flat_map(|ms| (Just(ms * 1_000_000), unordered(ms * 1_000_000))),
            interval in 1u64..9_000,
            align in aligns(),
        ) {
            let rule = Rule::Time { interval: interval * 1_000_000 };
            let live = Options { grace, align: align.clone(), ..Options::new(rule) };
            let mut sorted: Vec<(Lsn, Ts, Trade)> = (1..).map(Lsn).zip(&trades).map(|(l, (t, trade))| (l, *t, *trade)).collect();
            sorted.sort_by_key(|(lsn, time, _)| (*time, *lsn));
            let (bars, oddities) = build(live, trades);
            let (mut builder, mut expected) = (Builder::new(Options { align, ..Options::new(rule) }).unwrap(), Vec::new());
            sorted.iter().for_each(|(lsn, time, trade)| builder.push(*lsn, *time, trade, &mut |bar| expected.push(bar)));
            prop_assert_eq!(oddities, builder.finish(&mut |bar| expected.push(bar)));
            prop_assert_eq!(oddities.late, 0);
            prop_assert_eq!(bars, expected);
        }

        #[test]
        fn a_trade_is_in_one_bar_or_in_one_counter_and_the_sums_match(
            trades in unordered(9_000_000_000), rule in rules(), align in aligns(), grace in 0u64..3_000,
        ) {
            let options = Options { grace: grace * 1_000_000, align, ..Options::new(rule) };
            let mut builder = Builder::new(options).unwrap();
            let (mut bars, mut volume, mut value) = (Vec::new(), 0, 0);
            for (lsn, (time, trade)) in (1..).map(Lsn).zip(&trades) {
                let before = builder.trades();
                builder.push(lsn, *time, trade, &mut |bar| bars.push(bar));
                if builder.trades() > before {
                    volume += u128::from(trade.size.0);
                    value += Value::of(trade.price, trade.size).0;
                }
                prop_assert!(builder.newest() >= Some(*time));
            }
            let taken = builder.trades();
            let oddities = builder.finish(&mut |bar| bars.push(bar));
            prop_assert_eq!(taken + oddities.left_out(), trades.len() as u64);
            prop_assert_eq!(bars.iter().map(|b| b.trades).sum::<u64>(), taken);
            prop_assert_eq!(bars.iter().map(|b| b.volume.units()).sum::<u128>(), volume);
            prop_assert_eq!(bars.iter().map(|b| b.value.0).sum::<i128>(), value);
            for bar in &bars {
                let vwap = bar.vwap();
                prop_assert!(bar.low <= bar.open && bar.open <= bar.high && bar.low <= bar.close && bar.close <= bar.high);
                prop_assert!(bar.low <= vwap && vwap <= bar.high && bar.trades > 0 && bar.start <= bar.end);
            }
            if let Rule::Time { .. } = rule {
                prop_assert!(bars.is_sorted_by(|a, b| a.end <= b.start), "each once, in order, without overlap");
            }
        }
    }
}
