//! Owns: `tape bars`: bars of an instrument's trades, from history and live.

use std::io::{BufWriter, StdoutLock, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use comfy_table::CellAlignment;
use tapestore::bars::{Align, Bar, Builder, By, Oddities, Options, Rule, Session, Value};
use tapestore::error::Error;
use tapestore::lsn::{InstrumentId, Lsn, Timeline};
use tapestore::reader::{At, Follow, Reader, Row, Series, Snapshot, TimeRange};
use tapestore::record::{Name, Record, Trade, Volume};
use tapestore::shm::symbols::Symbols;
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts, parse_duration};

use crate::choice;
use crate::exit::{Failure, INTERRUPTED, LATER, NOT_FOUND, Outcome, USAGE};
use crate::logging;
use crate::output::{Format, Rows, table};
use crate::query::{self, Span, Watermark};
use crate::terminal;

/// The default interval, ns.
const EVERY_DEFAULT: u64 = 60 * NANOS_PER_SECOND;
/// Rows collected for a table before it is printed, so that the columns fit.
const TABLE_ROWS: usize = 200;
const COLUMNS: [&str; 13] =
    ["start", "end", "instrument", "open", "high", "low", "close", "volume", "value", "vwap", "trades", "first_lsn", "last_lsn"];

/// What closes a bar.
#[derive(clap::Args, Clone, Copy, Debug)]
#[group(multiple = false)]
struct BarRule {
    /// Bars of this interval: 1s, 5m, 1h, 1d, ... [default: 1m]
    #[arg(long, value_parser = parse_duration)]
    every: Option<u64>,
    /// Bars of this many trades
    #[arg(long)]
    ticks: Option<u64>,
    /// Bars that close with the trade that reaches this volume
    #[arg(long)]
    volume: Option<Volume>,
    /// Bars that close with the trade that reaches this value, price times size
    #[arg(long)]
    value: Option<Value>,
}

impl BarRule {
    fn rule(self) -> Rule {
        match self {
            BarRule { ticks: Some(n), .. } => Rule::Ticks(n),
            BarRule { volume: Some(volume), .. } => Rule::Volume(volume),
            BarRule { value: Some(value), .. } => Rule::Value(value),
            BarRule { every, .. } => Rule::Time { interval: every.unwrap_or(EVERY_DEFAULT) },
        }
    }
}

/// `tape bars`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of the instrument
    instrument: Name,
    #[command(flatten)]
    rule: BarRule,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    watermark: Watermark,
    /// Session hours, like 09:30-16:00: bars are counted from the session's start, trades outside it are skipped
    #[arg(long, requires = "zone")]
    session: Option<String>,
    /// Time zone of the session, like America/New_York
    #[arg(long, requires = "session")]
    zone: Option<String>,
    /// Time of a trade
    #[arg(long, value_parser = choice::by(), default_value = "recv")]
    by: By,
    /// Continue with live trades until stopped; print each bar as it closes
    #[arg(long, conflicts_with = "to")]
    follow: bool,
    /// Build bars of the trades as known when the record of this LSN was the newest: apply the busts and corrections stored up
    /// to it, as in `tape scan`. Without it, bars are of the trades as reported
    #[arg(long, value_name = "LSN", conflicts_with = "follow")]
    as_known_at: Option<u64>,
    /// How late a trade may arrive for its time bar
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    grace: u64,
    /// Print bar-1s, bar-1m, bar-1h or bar-1d records, for `tape publish --from`
    #[arg(long, conflicts_with_all = ["session", "ticks", "volume", "value"])]
    records: bool,
}

impl Args {
    fn options(&self) -> Outcome<Options> {
        let align = match (&self.session, &self.zone) {
            (Some(hours), Some(zone)) => Align::Session(Session::parse(hours, zone)?),
            _ => Align::Utc,
        };
        let rule = self.rule.rule();
        let kinds = [1, 60, 3600, 86_400].map(|seconds| Rule::Time { interval: seconds * NANOS_PER_SECOND });
        if self.records && !kinds.contains(&rule) {
            return Err(Failure::new(USAGE, "bar records exist only for 1s, 1m, 1h and 1d"));
        }
        Ok(Options { rule, align, by: self.by, grace: self.grace })
    }
}

/// The output of bars.
enum Sink<'s> {
    Records(Rows<'s>),
    Bars { format: Format, name: Name, rows: Vec<Bar>, has_header: bool, out: BufWriter<StdoutLock<'static>> },
}

impl Sink<'_> {
    fn push(&mut self, bar: &Bar) -> Outcome {
        match self {
            Sink::Records(rows) => {
                let record = bar.record().ok_or_else(|| Failure::new(USAGE, "no bar record has this interval"))?;
                rows.push(&Row { lsn: Lsn::NONE, index_time: bar.start, record: record.as_ref() })
            }
            Sink::Bars { format, name, out, .. } if format.json => Ok(writeln!(out, "{}", json(bar, name))?),
            Sink::Bars { format, name, out, has_header, .. } if format.csv => {
                if !std::mem::replace(has_header, true) {
                    writeln!(out, "{}", COLUMNS.join(","))?;
                }
                Ok(writeln!(out, "{}", cells(bar, name).join(","))?)
            }
            Sink::Bars { rows, .. } => {
                rows.push(*bar);
                if rows.len() >= TABLE_ROWS { self.flush() } else { Ok(()) }
            }
        }
    }

    fn flush(&mut self) -> Outcome {
        let (name, rows, out) = match self {
            Sink::Records(rows) => return rows.flush(),
            Sink::Bars { name, rows, out, .. } => (name, rows, out),
        };
        if !rows.is_empty() {
            // The instrument was given, and LSNs are for programs.
            let is_shown = |column: &str| column != "instrument" && !column.ends_with("lsn");
            let mut table = table(&COLUMNS.into_iter().filter(|c| is_shown(c)).collect::<Vec<_>>());
            for bar in rows.drain(..) {
                let cells = COLUMNS.into_iter().zip(cells(&bar, name)).filter(|(c, _)| is_shown(c));
                table.add_row(cells.map(|(_, text)| text));
            }
            table.column_iter_mut().skip(2).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
            writeln!(out, "{table}")?;
        }
        Ok(out.flush()?)
    }
}

/// Prints bars as they close, up to the limit.
struct Printer<'s> {
    sink: Sink<'s>,
    closed: Vec<Bar>,
    printed: u64,
    limit: u64,
}

impl Printer<'_> {
    fn is_full(&self) -> bool {
        self.printed >= self.limit
    }

    fn print(&mut self) -> Outcome {
        for bar in self.closed.drain(..) {
            if self.printed < self.limit {
                self.sink.push(&bar)?;
                self.printed += 1;
            }
        }
        Ok(())
    }
}

/// The cells of [`COLUMNS`].
fn cells(bar: &Bar, name: &Name) -> [String; COLUMNS.len()] {
    [
        bar.start.to_string(),
        bar.end.to_string(),
        name.to_string(),
        bar.open.to_string(),
        bar.high.to_string(),
        bar.low.to_string(),
        bar.close.to_string(),
        bar.volume.to_string(),
        bar.value.to_string(),
        bar.vwap().to_string(),
        bar.trades.to_string(),
        bar.first_lsn.to_string(),
        bar.last_lsn.to_string(),
    ]
}

/// A bar as JSON. Prices, sizes and times are text, because JSON numbers are not exact.
fn json(bar: &Bar, name: &Name) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    for (column, text) in COLUMNS.into_iter().zip(cells(bar, name)) {
        let value = match column {
            "trades" => bar.trades.into(),
            "first_lsn" => bar.first_lsn.0.into(),
            "last_lsn" => bar.last_lsn.0.into(),
            _ => text.into(),
        };
        object.insert(column.to_owned(), value);
    }
    serde_json::Value::Object(object)
}

/// Builds bars from trades.
struct Feed<'s> {
    builder: Builder,
    by: By,
    range: TimeRange,
    printer: Printer<'s>,
    /// The greatest LSN of a trade.
    last: Lsn,
    /// Time and LSN of the trade with the greatest time.
    newest: (Ts, Lsn),
    /// A time of the trades' clock, and the monotonic time at that moment.
    clock: Option<(Ts, u64)>,
}

impl Feed<'_> {
    /// Adds a trade; returns whether its time is the greatest so far.
    fn push(&mut self, lsn: Lsn, index_time: Ts, trade: &Trade) -> Outcome<bool> {
        let time = self.by.time(index_time, trade);
        if !time.is_null() && !self.range.contains(time) {
            return Ok(false);
        }
        let closed = &mut self.printer.closed;
        self.builder.push(lsn, index_time, trade, &mut |bar| closed.push(bar));
        self.printer.print()?;
        self.last = self.last.max(lsn);
        let is_newest = !time.is_null() && self.newest <= (time, lsn);
        if is_newest {
            self.newest = (time, lsn);
        }
        Ok(is_newest)
    }

    /// Closes bars that have ended. The trades' clock may differ from the host's, or be of another day: it is the time of the
    /// newest trade, and runs with the host's clock since the ingest of that trade.
    fn pass_time(&mut self) -> Outcome {
        if let Some((time, since)) = self.clock {
            let passed = HostClock.monotonic().saturating_sub(since);
            let closed = &mut self.printer.closed;
            self.builder.advance(Ts(time.0.saturating_add(passed)), &mut |bar| closed.push(bar));
        }
        self.printer.print()
    }

    /// Prints open bars and the number of trades that are in no bar; returns the number of printed bars.
    fn finish(self) -> Outcome<u64> {
        let Feed { builder, mut printer, .. } = self;
        let taken = builder.trades();
        let oddities = builder.finish(&mut |bar| printer.closed.push(bar));
        if matches!(printer.sink, Sink::Records(_)) {
            // A stored bar is final, so a bar that has not ended is not printed as a record.
            let now = HostClock.wall();
            let open = printer.closed.extract_if(.., |bar| bar.end > now).count();
            if open > 0 {
                logging::note(format_args!("note: the current bar has not ended and is not printed as a record"));
            }
        }
        printer.print()?;
        printer.sink.flush()?;
        note(taken, &oddities);
        Ok(printer.printed)
    }
}

/// Prints on standard error why trades are in no bar.
fn note(taken: u64, oddities: &Oddities) {
    let Oddities { late, outside, priceless, sizeless, untimed, ahead, unvalued } = *oddities;
    let why = [
        (late, "arrived after their bar had closed (--grace)"),
        (outside, "outside the session"),
        (priceless, "without a price"),
        (sizeless, "without a size or of size zero"),
        (untimed, "without a time"),
        (ahead, "with a venue's time more than a minute after their receipt"),
    ];
    let why: Vec<String> = why.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if !why.is_empty() {
        logging::note(format_args!(
            "note: of {} trades {} are in no bar: {}",
            taken + oddities.left_out(),
            oddities.left_out(),
            why.join(", ")
        ));
    }
    if unvalued > 0 {
        logging::note(format_args!("note: the value of {unvalued} bars overflows and is null"));
    }
}

/// The trades' clock and the monotonic time now, from the newest trade's `time` and its ingest time. If the host's clock was
/// set since, the trades' clock does not run ahead of it.
fn clock_of(time: Ts, ingested: Ts, clock: &impl Clock) -> (Ts, u64) {
    let (wall, now) = (clock.wall(), clock.monotonic());
    let passed = wall.0.saturating_sub(ingested.0);
    (Ts(time.0.saturating_add(passed)).min(wall.max(time)), now)
}

/// `range`, extended to whole time bars at both ends.
fn whole(builder: &mut Builder, range: TimeRange) -> TimeRange {
    let first = builder.interval(range.from).map_or(range.from, |(start, _)| start);
    let last = builder.interval(range.to).map_or(range.to, |(_, end)| Ts(end.0.saturating_sub(1)).max(range.to));
    TimeRange { from: first, to: last }
}

/// Builds bars from the trades of `snapshot` as known at record `lsn`.
fn as_known_at(feed: &mut Feed<'_>, snapshot: &Snapshot, lsn: Lsn, instrument: InstrumentId, stop: &AtomicBool) -> Outcome {
    let range = if feed.by == By::Recv { feed.range } else { TimeRange::ALL };
    let mut trades = snapshot.as_known_at(lsn).trades(instrument, range)?;
    while !feed.printer.is_full()
        && !terminal::is_raised(stop)
        && let Some(known) = trades.next()?
    {
        feed.push(known.lsn, known.index_time, &known.trade)?;
    }
    query::note_unmatched(trades.unmatched());
    Ok(())
}

/// Builds bars from the trades of `snapshot`.
fn history(feed: &mut Feed<'_>, snapshot: &Snapshot, series: Series, stop: &AtomicBool) -> Outcome {
    // The store sorts by index time; by the venue's time a trade may be anywhere.
    let range = if feed.by == By::Recv { feed.range } else { TimeRange::ALL };
    let mut scan = snapshot.scan(series, range);
    let progress = terminal::progress(0, false, "reading trades");
    while !feed.printer.is_full()
        && !terminal::is_raised(stop)
        && let Some(row) = scan.next()?
    {
        if let Some(trade) = row.record.get::<Trade>() {
            feed.push(row.lsn, row.index_time, trade)?;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if terminal::is_raised(stop) {
        return Err(Failure::new(INTERRUPTED, "interrupted while reading history: the bars above are not complete"));
    }
    let (time, lsn) = feed.newest;
    feed.clock = snapshot.arrival(lsn)?.map(|arrival| clock_of(time, arrival.ingest_ts, &HostClock));
    Ok(())
}

/// Continues with live trades. On a withdrawal of trades it fails, because bars contain them.
fn follow(feed: &mut Feed<'_>, follow: &mut Follow, instrument: InstrumentId, stop: &AtomicBool) -> Outcome {
    while !feed.printer.is_full() && !terminal::is_raised(stop) {
        let before = feed.printer.printed;
        match follow.poll() {
            Ok(Some(row)) => {
                let trade = row.record.get::<Trade>().filter(|t| t.instrument == instrument);
                let Some((lsn, index_time, trade)) = trade.map(|t| (row.lsn, row.index_time, *t)) else { continue };
                if feed.push(lsn, index_time, &trade)? {
                    feed.clock = follow.arrival()?.map(|arrival| clock_of(feed.newest.0, arrival.ingest_ts, &HostClock));
                }
            }
            Ok(None) => {
                feed.pass_time()?;
                feed.printer.sink.flush()?;
                follow.wait(Duration::from_millis(50));
            }
            Err(e) if e.is_down() => {
                feed.printer.sink.flush()?;
                crate::exit::wait_for_storage(follow, e)?;
            }
            Err(Error::Withdrawn { first }) if first <= feed.last => return Err(withdrawn(first)),
            Err(e @ (Error::Withdrawn { .. } | Error::Expired { .. })) => logging::note(format_args!("note: {e}")),
            Err(e) => return Err(e.into()),
        }
        if feed.printer.printed > before {
            feed.printer.sink.flush()?;
        }
    }
    Ok(())
}

fn withdrawn(first: Lsn) -> Failure {
    let text =
        format!("records from LSN {first} on were withdrawn after bars used them; run the command again, or use --at committed");
    Failure::new(LATER, text)
}

/// Continues after the last record of `snapshot`.
fn follow_from(
    feed: &mut Feed<'_>,
    reader: Reader,
    seen: (Lsn, Timeline),
    at: At,
    one: InstrumentId,
    stop: &AtomicBool,
) -> Outcome {
    let (last, timeline) = seen;
    feed.printer.sink.flush()?;
    let mut position = reader.follow(last.next(), at);
    // Committed records are never withdrawn. For others the first withdrawn LSN is not available here.
    if at != At::Committed && position.reader().control().timeline() != timeline {
        return Err(withdrawn(Lsn(1)));
    }
    follow(feed, &mut position, one, stop)
}

fn sink<'s>(args: &Args, format: Format, symbols: &'s mut Symbols) -> Sink<'s> {
    if args.records {
        return Sink::Records(Rows::new(format, symbols));
    }
    let out = BufWriter::new(std::io::stdout().lock());
    Sink::Bars { format, name: args.instrument, rows: Vec::new(), has_header: false, out }
}

/// `tape bars`.
///
/// # Errors
/// There are no trades (exit code 3).
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let mut builder = Builder::new(args.options()?)?;
    let range = whole(&mut builder, args.span.range());
    let stop = if args.follow { terminal::stop_flag()? } else { Arc::default() };
    let (mut reader, snapshot) = query::open(store, args.watermark.at)?;
    let instrument = reader.instrument(&args.instrument)?;
    let mut names = query::catalog(store, args.watermark.at)?;
    // Each bar is printed as it closes, so a table cannot be laid out: JSON lines unless CSV is requested.
    let format = if args.follow { Format { json: !format.csv, ..format } } else { format };
    let mut feed = Feed {
        builder,
        by: args.by,
        range,
        printer: Printer { sink: sink(args, format, names.symbols()?), closed: Vec::new(), printed: 0, limit: args.span.limit() },
        last: Lsn::NONE,
        newest: (Ts(0), Lsn::NONE),
        clock: None,
    };
    match args.as_known_at {
        Some(lsn) => as_known_at(&mut feed, &snapshot, Lsn(lsn), instrument, &stop)?,
        None => history(&mut feed, &snapshot, Series { instrument, kind: Trade::KIND }, &stop)?,
    }
    if !args.follow {
        return match feed.finish()? {
            0 => {
                Err(Failure::new(NOT_FOUND, format!("there are no bars of {}: the range has no trade for one", args.instrument)))
            }
            _ => Ok(()),
        };
    }
    let seen = (snapshot.last(), snapshot.timeline());
    drop(snapshot);
    let ended = follow_from(&mut feed, reader, seen, args.watermark.at, instrument, &stop);
    if ended.as_ref().is_err_and(|failure| failure.code == LATER) {
        return ended;
    }
    feed.finish()?;
    ended
}
