//! Owns: `tape book`: an order book as of a time.

use std::path::Path;

use tapestore::book::{Book, Oddities, PriceLevel, is_undone};
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{At, Series, Snapshot, TimeRange};
use tapestore::record::{BookOrder, Depth10, Name, Price, Record, Volume, action, side};
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts};

use crate::exit::{Failure, NOT_FOUND, Outcome};
use crate::output::{Format, table};
use crate::query;
use crate::terminal;

/// `tape book`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of the instrument
    instrument: Name,
    /// Time of the book, or watermark: committed, durable, appended, flushed; can be given twice, for both
    #[arg(long, default_values = ["now", "committed"], alias = "time")]
    at: Vec<When>,
    /// Levels per side
    #[arg(long, default_value_t = 10)]
    levels: usize,
}

/// A time or a watermark.
#[derive(Clone, Copy, Debug)]
enum When {
    Time(Ts),
    Record(At),
}

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        text.parse().map(When::Record).or_else(|_| query::time(text).map(When::Time))
    }
}

impl Args {
    fn time(&self) -> Ts {
        let mut times = self.at.iter().rev().filter_map(|w| if let When::Time(time) = w { Some(*time) } else { None });
        times.next().unwrap_or_else(|| HostClock.wall())
    }

    fn watermark(&self) -> At {
        let mut marks = self.at.iter().rev().filter_map(|w| if let When::Record(at) = w { Some(*at) } else { None });
        marks.next().unwrap_or(At::Committed)
    }
}

/// First length of the search for the last clear, backwards; and how far before a clear changes are read.
const LOOK_BACK_NS: u64 = 3600 * NANOS_PER_SECOND;

/// The time from which on changes make the book of `time`: an hour before the last clear of both sides, because a snapshot
/// may arrive after changes that are newer than it.
fn beginning(snapshot: &Snapshot, series: Series, (time, until): (Ts, Lsn)) -> tapestore::Result<Ts> {
    let (mut to, mut length) = (time, LOOK_BACK_NS);
    loop {
        let from = Ts(to.0.saturating_sub(length));
        let (mut scan, mut clear) = (snapshot.scan(series, TimeRange { from, to }), None);
        while let Some(row) = scan.next()? {
            let change = row.record.get::<BookOrder>().filter(|_| row.lsn <= until);
            if change.is_some_and(|c| c.action == action::CLEAR && c.side == side::NONE) {
                clear = Some(row.index_time);
            }
        }
        match clear {
            Some(at) => return Ok(Ts(at.0.saturating_sub(LOOK_BACK_NS))),
            None if from.0 == 0 => return Ok(Ts(0)),
            None => (to, length) = (Ts(from.0 - 1), length.saturating_mul(2)),
        }
    }
}

/// The book of `instrument` as of `time` in the store as of record `until`: from the changes since the last clear before it, in LSN
/// order; from a depth record if there are no changes. A change that was received more than an hour before that clear and stored
/// after it is missed. `read` gets the bytes that are held after each change.
///
/// # Errors
/// Of the store's files, and of `read`.
pub fn book_at<E: From<tapestore::Error>>(
    snapshot: &mut Snapshot,
    instrument: InstrumentId,
    (time, until): (Ts, Lsn),
    read: &mut impl FnMut(usize) -> Result<(), E>,
) -> Result<Option<Book>, E> {
    let series = Series { instrument, kind: BookOrder::KIND };
    let range = TimeRange { from: beginning(snapshot, series, (time, until))?, to: time };
    let mut changes: Vec<(Lsn, BookOrder)> = Vec::new();
    let mut scan = snapshot.scan(series, range);
    while let Some(row) = scan.next()? {
        let Some(change) = row.record.get::<BookOrder>().filter(|_| row.lsn <= until) else { continue };
        if change.action == action::CLEAR && change.side == side::NONE {
            changes.retain(|(lsn, c)| *lsn > row.lsn || !is_undone(c, change));
        }
        changes.push((row.lsn, *change));
        read(changes.capacity() * size_of::<(Lsn, BookOrder)>())?;
    }
    let mut book = Book::new();
    if !changes.is_empty() {
        changes.sort_unstable_by_key(|(lsn, _)| *lsn);
        changes.iter().for_each(|(_, change)| book.apply(change));
        return Ok(Some(book));
    }
    let depth = depth_at(snapshot, Series { instrument, kind: Depth10::KIND }, (time, until))?;
    Ok(depth.map(|depth| {
        book.apply_depth(&depth);
        book
    }))
}

/// The newest depth record of `series` as of `time`, up to record `until`.
fn depth_at(snapshot: &mut Snapshot, series: Series, (time, until): (Ts, Lsn)) -> tapestore::Result<Option<Depth10>> {
    let mut to = time;
    loop {
        let Some(row) = snapshot.as_of(series, to)? else { return Ok(None) };
        if row.lsn <= until {
            return Ok(row.record.get::<Depth10>().copied());
        }
        // Of rows with equal times that is the last one: others of that time, and then earlier ones, may be older.
        let at = row.index_time;
        let (mut scan, mut found) = (snapshot.get_at(series, at), None);
        while let Some(row) = scan.next()? {
            found = row.record.get::<Depth10>().copied().filter(|_| row.lsn <= until).or(found);
        }
        if found.is_some() || at.0 == 0 {
            return Ok(found);
        }
        to = Ts(at.0 - 1);
    }
}

/// `tape book`.
///
/// # Errors
/// There is no book (exit code 3).
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let (mut reader, mut snapshot) = query::open(store, args.watermark())?;
    let time = args.time();
    let instrument = reader.instrument(&args.instrument)?;
    let bar = terminal::progress(0, false, "reading changes");
    let until = snapshot.last();
    let book = book_at(&mut snapshot, instrument, (time, until), &mut |_| -> Outcome {
        bar.inc(1);
        Ok(())
    })?;
    bar.finish_and_clear();
    let Some(book) = book else {
        return Err(Failure::new(NOT_FOUND, format!("there is no book of {} up to {}", args.instrument, time)));
    };
    let bids: Vec<(Price, PriceLevel)> = book.bids().take(args.levels).collect();
    let asks: Vec<(Price, PriceLevel)> = book.asks().take(args.levels).collect();
    let Oddities { unknown_orders, repeated_orders, malformed, crossed } = book.oddities();
    let cell = |level: Option<&(Price, PriceLevel)>| match level {
        Some((price, level)) => [price.to_string(), Volume::new(level.size).to_string(), level.count.to_string()],
        None => Default::default(),
    };
    if format.json {
        let side = |levels: &[(Price, PriceLevel)]| -> Vec<serde_json::Value> {
            let level = |l: &(Price, PriceLevel)| {
                let [price, size, count] = cell(Some(l));
                serde_json::json!({ "price": price, "size": size, "count": count.parse::<u32>().unwrap_or(0) })
            };
            levels.iter().map(level).collect()
        };
        let object = serde_json::json!({
            "instrument": args.instrument.as_str(), "time": time.to_string(), "changes": book.changes(),
            "bids": side(&bids), "asks": side(&asks), "unknown_orders": unknown_orders, "repeated_orders": repeated_orders,
            "malformed": malformed, "crossed": crossed,
        });
        out!("{object}");
        return Ok(());
    }
    if format.csv {
        out!("level,bid_count,bid_size,bid,ask,ask_size,ask_count");
    }
    let mut t = table(&["orders", "bid size", "bid", "ask", "ask size", "orders"]);
    for level in 0..bids.len().max(asks.len()) {
        let ([bid, bid_size, bids], [ask, ask_size, asks]) = (cell(bids.get(level)), cell(asks.get(level)));
        if format.csv {
            out!("{level},{bids},{bid_size},{bid},{ask},{ask_size},{asks}");
        } else {
            t.add_row([bids, bid_size, bid, ask, ask_size, asks]);
        }
    }
    if !format.csv {
        t.column_iter_mut().for_each(|c| c.set_cell_alignment(comfy_table::CellAlignment::Right));
        out!("{t}");
        out!(
            "  {} changes; crossed at the end of {crossed} events; {unknown_orders} changes of unknown orders, {repeated_orders} repeated, {malformed} malformed",
            book.changes()
        );
    }
    Ok(())
}
