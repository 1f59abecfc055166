//! Owns: `tape bars`: bars of the trades of an instrument or several, from history and live.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tapestore::bars::{Align, Bar, Builder, By, Oddities, Options, Rule, Session, Value};
use tapestore::error::Error;
use tapestore::lsn::{InstrumentId, Lsn, Timeline};
use tapestore::reader::{At, Follow, Reader, Row, Series, Snapshot, TimeRange};
use tapestore::record::{Name, Record, Trade, Volume};
use tapestore::shm::symbols::Symbols;
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts, parse_duration};

use crate::choice;
use crate::exit::{Failure, INTERRUPTED, LATER, NOT_FOUND, Outcome, USAGE};
use crate::grid::{Cell, Format, Grid, Heading};
use crate::logging;
use crate::output::Rows;
use crate::query::{self, Pattern, Span, Watermark};
use crate::stdout;
use crate::terminal;

/// The default interval, ns.
const EVERY_DEFAULT: u64 = 60 * NANOS_PER_SECOND;
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
    /// Name of the instrument; with wildcards, of several: * for any text, ? for a character, [abc] for one of these
    instrument: String,
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
    Bars(Grid),
}

/// Prints bars as they close, up to the limit.
struct Printer<'s> {
    sink: Sink<'s>,
    printed: u64,
    limit: u64,
}

impl<'s> Printer<'s> {
    fn new(args: &Args, format: Format, symbols: &'s mut Symbols, is_one: bool) -> Outcome<Printer<'s>> {
        let sink = if args.records {
            Sink::Records(Rows::new(format, symbols))
        } else {
            let mut grid = Grid::new(format);
            // LSNs are for programs, and the name is the one that was given.
            let is_shown = |name: &str| !(name.ends_with("lsn") || is_one && name == "instrument");
            let is_left = |name: &str| ["start", "end", "instrument"].contains(&name);
            let heading = |name: &str| Heading { is_shown: is_shown(name), ..Heading::new(name, is_left(name)) };
            grid.head(COLUMNS.into_iter().map(heading).collect())?;
            Sink::Bars(grid)
        };
        Ok(Printer { sink, printed: 0, limit: args.span.limit() })
    }

    fn is_full(&self) -> bool {
        self.printed >= self.limit
    }

    fn print(&mut self, name: &Name, closed: &mut Vec<Bar>) -> Outcome {
        for bar in closed.drain(..) {
            if self.is_full() {
                continue;
            }
            match &mut self.sink {
                Sink::Records(rows) => {
                    let record = bar.record().ok_or_else(|| Failure::new(USAGE, "no bar record has this interval"))?;
                    rows.push(&Row { lsn: Lsn::NONE, index_time: bar.start, record: record.as_ref() })?;
                }
                Sink::Bars(grid) => grid.push(cells(&bar, name))?,
            }
            self.printed += 1;
        }
        Ok(())
    }

    fn flush(&mut self) -> Outcome {
        match &mut self.sink {
            Sink::Records(rows) => rows.flush(),
            Sink::Bars(grid) => grid.flush(),
        }
    }
}

/// The cells of [`COLUMNS`]. In JSON prices, sizes and times are text, because JSON numbers are not exact.
fn cells(bar: &Bar, name: &Name) -> Vec<Cell> {
    let value = |text: String| if text == "null" { Cell::new(text, serde_json::Value::Null) } else { Cell::text(text) };
    vec![
        Cell::text(bar.start),
        Cell::text(bar.end),
        Cell::text(name),
        value(bar.open.to_string()),
        value(bar.high.to_string()),
        value(bar.low.to_string()),
        value(bar.close.to_string()),
        value(bar.volume.to_string()),
        value(bar.value.to_string()),
        value(bar.vwap().to_string()),
        Cell::number(bar.trades),
        Cell::number(bar.first_lsn.0),
        Cell::number(bar.last_lsn.0),
    ]
}

/// Builds the bars of one instrument from its trades.
struct Feed {
    name: Name,
    builder: Builder,
    by: By,
    range: TimeRange,
    closed: Vec<Bar>,
    /// The greatest LSN of a trade.
    last: Lsn,
    /// Time and LSN of the trade with the greatest time.
    newest: (Ts, Lsn),
    /// A time of the trades' clock, and the monotonic time at that moment.
    clock: Option<(Ts, u64)>,
}

impl Feed {
    fn new(args: &Args, name: Name) -> Outcome<Feed> {
        let mut builder = Builder::new(args.options()?)?;
        let range = whole(&mut builder, args.span.range());
        let newest = (Ts(0), Lsn::NONE);
        Ok(Feed { name, builder, by: args.by, range, closed: Vec::new(), last: Lsn::NONE, newest, clock: None })
    }

    /// Adds a trade; returns whether its time is the greatest so far.
    fn push(&mut self, printer: &mut Printer<'_>, lsn: Lsn, index_time: Ts, trade: &Trade) -> Outcome<bool> {
        let time = self.by.time(index_time, trade);
        if !time.is_null() && !self.range.contains(time) {
            return Ok(false);
        }
        let closed = &mut self.closed;
        self.builder.push(lsn, index_time, trade, &mut |bar| closed.push(bar));
        printer.print(&self.name, closed)?;
        self.last = self.last.max(lsn);
        let is_newest = !time.is_null() && self.newest <= (time, lsn);
        if is_newest {
            self.newest = (time, lsn);
        }
        Ok(is_newest)
    }

    /// Closes bars that have ended. The trades' clock may differ from the host's, or be of another day: it is the time of the
    /// newest trade, and runs with the host's clock since the ingest of that trade.
    fn pass_time(&mut self, printer: &mut Printer<'_>) -> Outcome {
        let closed = &mut self.closed;
        if let Some((time, since)) = self.clock {
            let passed = HostClock.monotonic().saturating_sub(since);
            self.builder.advance(Ts(time.0.saturating_add(passed)), &mut |bar| closed.push(bar));
        }
        printer.print(&self.name, closed)
    }

    /// Prints the open bars, and on standard error the number of trades that are in no bar.
    fn finish(self, printer: &mut Printer<'_>, is_one: bool) -> Outcome {
        let Feed { name, builder, mut closed, .. } = self;
        let taken = builder.trades();
        let oddities = builder.finish(&mut |bar| closed.push(bar));
        let of = if is_one { String::new() } else { format!(" of {name}") };
        if matches!(printer.sink, Sink::Records(_)) {
            // A stored bar is final, so a bar that has not ended is not printed as a record.
            let now = HostClock.wall();
            let open = closed.extract_if(.., |bar| bar.end > now).count();
            if open > 0 {
                logging::note(format_args!("note: the current bar{of} has not ended and is not printed as a record"));
            }
        }
        printer.print(&name, &mut closed)?;
        note(&of, taken, &oddities);
        Ok(())
    }
}

/// Prints on standard error why trades are in no bar.
fn note(of: &str, taken: u64, oddities: &Oddities) {
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
            "note: of {} trades{of} {} are in no bar: {}",
            taken + oddities.left_out(),
            oddities.left_out(),
            why.join(", ")
        ));
    }
    if unvalued > 0 {
        logging::note(format_args!("note: the value of {unvalued} bars{of} overflows and is null"));
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
fn as_known_at(feed: &mut Feed, printer: &mut Printer<'_>, snapshot: &Snapshot, lsn: Lsn, one: InstrumentId) -> Outcome {
    let range = if feed.by == By::Recv { feed.range } else { TimeRange::ALL };
    let mut trades = snapshot.as_known_at(lsn).trades(one, range)?;
    while !printer.is_full()
        && let Some(known) = trades.next()?
    {
        feed.push(printer, known.lsn, known.index_time, &known.trade)?;
    }
    query::note_unmatched(trades.unmatched());
    Ok(())
}

/// Builds bars from the trades of `snapshot`.
fn history(feed: &mut Feed, printer: &mut Printer<'_>, snapshot: &Snapshot, one: InstrumentId, stop: &AtomicBool) -> Outcome {
    // The store sorts by index time; by the venue's time a trade may be anywhere.
    let range = if feed.by == By::Recv { feed.range } else { TimeRange::ALL };
    let mut scan = snapshot.scan(Series { instrument: one, kind: Trade::KIND }, range);
    let progress = terminal::progress(0, false, "reading trades");
    while !printer.is_full()
        && !terminal::is_raised(stop)
        && let Some(row) = scan.next()?
    {
        if let Some(trade) = row.record.get::<Trade>() {
            feed.push(printer, row.lsn, row.index_time, trade)?;
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

/// The instruments of the bars, in the order of their names.
struct Feeds<'a> {
    args: &'a Args,
    pattern: Pattern,
    feeds: BTreeMap<Name, (InstrumentId, Feed)>,
    /// Every instrument that has been looked at; `None` for one whose name does not match.
    names: HashMap<InstrumentId, Option<Name>>,
}

impl Feeds<'_> {
    /// The feed of `instrument`, if its name matches; a new instrument may match too.
    fn of(&mut self, instrument: InstrumentId, reader: &mut Reader) -> Outcome<Option<&mut Feed>> {
        let name = match self.names.get(&instrument) {
            Some(name) => *name,
            None => {
                let name = reader.symbols()?.name(instrument).filter(|name| self.pattern.matches(name));
                self.names.insert(instrument, name);
                if let Some(name) = name {
                    self.feeds.insert(name, (instrument, Feed::new(self.args, name)?));
                }
                name
            }
        };
        Ok(name.and_then(|name| self.feeds.get_mut(&name)).map(|(_, feed)| feed))
    }

    /// Continues with live trades. On a withdrawal of trades it fails, because bars contain them.
    fn follow(&mut self, printer: &mut Printer<'_>, follow: &mut Follow, stop: &AtomicBool) -> Outcome {
        let mut waiting = None;
        while !printer.is_full() && !terminal::is_raised(stop) {
            let before = printer.printed;
            match follow.poll() {
                Ok(Some(row)) => {
                    waiting = None;
                    let trade = row.record.get::<Trade>().map(|t| (row.lsn, row.index_time, *t));
                    let Some((lsn, index_time, trade)) = trade else { continue };
                    let Some(feed) = self.of(trade.instrument, follow.reader())? else { continue };
                    if feed.push(printer, lsn, index_time, &trade)? {
                        feed.clock = follow.arrival()?.map(|arrival| clock_of(feed.newest.0, arrival.ingest_ts, &HostClock));
                    }
                }
                Ok(None) => {
                    self.feeds.values_mut().try_for_each(|(_, feed)| feed.pass_time(printer))?;
                    printer.flush()?;
                    stdout::check()?;
                    follow.wait(Duration::from_millis(50));
                }
                Err(e) if e.is_down() => {
                    printer.flush()?;
                    crate::waiting::wait_for_storage(follow, e, &mut waiting)?;
                }
                Err(Error::Withdrawn { first }) if self.feeds.values().any(|(_, feed)| first <= feed.last) => {
                    return Err(withdrawn(first));
                }
                Err(e @ (Error::Withdrawn { .. } | Error::Expired { .. })) => logging::note(format_args!("note: {e}")),
                Err(e) => return Err(e.into()),
            }
            if printer.printed > before {
                printer.flush()?;
            }
        }
        Ok(())
    }

    fn finish(self, printer: &mut Printer<'_>) -> Outcome {
        let is_one = self.pattern.is_one();
        self.feeds.into_values().try_for_each(|(_, feed)| feed.finish(printer, is_one))?;
        printer.flush()
    }
}

fn withdrawn(first: Lsn) -> Failure {
    let text =
        format!("records from LSN {first} on were withdrawn after bars used them; run the command again, or use --at committed");
    Failure::new(LATER, text)
}

/// Continues after the last record of a snapshot, which is `seen`.
fn follow_from(
    feeds: &mut Feeds<'_>,
    printer: &mut Printer<'_>,
    reader: Reader,
    seen: (Lsn, Timeline),
    stop: &AtomicBool,
) -> Outcome {
    let ((last, timeline), at) = (seen, feeds.args.watermark.at);
    printer.flush()?;
    let mut position = reader.follow(last.next(), at);
    // Committed records are never withdrawn. For others the first withdrawn LSN is not available here.
    if at != At::Committed && position.reader().control().timeline() != timeline {
        return Err(withdrawn(Lsn(1)));
    }
    feeds.follow(printer, &mut position, stop)
}

/// `tape bars`.
///
/// # Errors
/// There are no trades (exit code 3).
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    args.options()?;
    let stop = if args.follow { terminal::stop_flag()? } else { Arc::default() };
    let (mut reader, snapshot) = query::open(store, args.watermark.at)?;
    let pattern = Pattern::new(&args.instrument)?;
    let (chosen, is_one) = (pattern.instruments(&mut reader)?, pattern.is_one());
    let mut names = query::catalog(store, args.watermark.at)?;
    // Each bar is printed as it closes, so a table cannot be laid out: JSON lines unless CSV is requested.
    let format = if args.follow { Format { json: !format.csv, ..format } } else { format };
    let mut printer = Printer::new(args, format, names.symbols()?, is_one)?;
    let mut feeds = Feeds { args, pattern, feeds: BTreeMap::new(), names: HashMap::new() };
    for (instrument, name) in chosen {
        let mut feed = Feed::new(args, name)?;
        match args.as_known_at {
            Some(lsn) => as_known_at(&mut feed, &mut printer, &snapshot, Lsn(lsn), instrument)?,
            None => history(&mut feed, &mut printer, &snapshot, instrument, &stop)?,
        }
        if args.follow {
            feeds.names.insert(instrument, Some(name));
            feeds.feeds.insert(name, (instrument, feed));
        } else {
            // The bars of an instrument are printed together.
            feed.finish(&mut printer, is_one)?;
        }
    }
    if !args.follow {
        printer.flush()?;
        let message = || format!("there are no bars of {}: the range has no trade for one", args.instrument);
        return if printer.printed == 0 { Err(Failure::new(NOT_FOUND, message())) } else { Ok(()) };
    }
    let seen = (snapshot.last(), snapshot.timeline());
    drop(snapshot);
    let ended = follow_from(&mut feeds, &mut printer, reader, seen, &stop);
    if ended.as_ref().is_err_and(|failure| failure.code == LATER) {
        return ended;
    }
    feeds.finish(&mut printer)?;
    ended
}
