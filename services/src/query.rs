//! Owns: the commands that read a store as of now: `get`, `find`, `asof`, `latest`, `scan`, `replay`.

use std::path::Path;

use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{At, Reader, Row, Scan as Rowset, Series, Snapshot, TimeRange};
use tapestore::record::{Name, Record, RecordRef, SCHEMAS, Schema, Trade, near_kind, schema, schemas_named, user_kinds};
use tapestore::time::{Clock, HostClock, Ts};

use crate::choice;
use crate::exit::{Failure, NOT_FOUND, Outcome, USAGE};
use crate::logging::note;
use crate::output::{Format, Rows};
use crate::terminal;

/// Name of a kind, built-in or user-defined. User-defined kinds are registered in this process once the store is open.
#[derive(Clone, Debug)]
pub struct KindName(String);

impl From<&str> for KindName {
    fn from(text: &str) -> KindName {
        KindName(text.to_owned())
    }
}

impl std::str::FromStr for KindName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<KindName, Self::Err> {
        Ok(KindName(text.to_owned()))
    }
}

impl KindName {
    /// The kinds of this name; a changed layout is a kind of its own. The store must be open.
    ///
    /// # Errors
    /// The name is unknown; the message lists the kinds.
    pub fn schemas(&self) -> Outcome<Vec<&'static Schema>> {
        let schemas = schemas_named(&self.0);
        if schemas.is_empty() {
            let names: Vec<&str> = SCHEMAS.iter().chain(user_kinds()).map(|s| s.name).collect();
            let meant = near_kind(&self.0).map_or_else(String::new, |kind| format!("did you mean '{kind}'? "));
            return Err(Failure::new(USAGE, format!("kind '{}' is unknown: {meant}the kinds are: {}", self.0, names.join(", "))));
        }
        Ok(schemas)
    }

    /// The one kind of this name.
    ///
    /// # Errors
    /// As [`KindName::schemas`]; several layouts have the name.
    fn one(&self) -> Outcome<&'static Schema> {
        match self.schemas()?.as_slice() {
            [schema] => Ok(schema),
            several => {
                let names: Vec<String> = several.iter().map(|s| format!("{}-{:x}", s.name, s.kind.0)).collect();
                Err(Failure::new(USAGE, format!("kind '{}' has several layouts; name one: {}", self.0, names.join(", "))))
            }
        }
    }

    /// Whether it names `schema`, by the name alone or with the number, as in `signal-8001`. Called for every record.
    fn names(&self, schema: &Schema) -> bool {
        let Some(rest) = self.0.strip_prefix(schema.name) else { return false };
        let number = || u16::from_str_radix(rest.strip_prefix('-')?, 16).ok();
        rest.is_empty() || schema.kind.is_user() && number() == Some(schema.kind.0)
    }

    /// The series of these kinds of `instrument`.
    fn series(&self, instrument: InstrumentId) -> Outcome<Vec<Series>> {
        Ok(self.schemas()?.iter().map(|s| Series { instrument, kind: s.kind }).collect())
    }
}

/// A time, as [`tapestore::time::parse_time`] parses it.
///
/// # Errors
/// The text with the formats that are allowed.
pub fn time(text: &str) -> Result<Ts, String> {
    tapestore::time::parse_time(text, HostClock.wall()).map_err(|e| e.to_string())
}

/// One instrument's records of one kind.
#[derive(clap::Args, Clone, Debug)]
pub struct One {
    /// Name of the instrument
    pub instrument: Name,
    /// Kind of the records: trade, quote, book, depth10, definition, gap, bar-1s, bar-1m, bar-1h, bar-1d, status, imbalance,
    /// statistic, bust, correct, mapping, or a user-defined one (`tape kinds` lists all)
    pub kind: KindName,
}

/// The watermark up to which to read.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Watermark {
    /// Watermark: the newest record that is read
    #[arg(long, value_parser = choice::watermark(), default_value = "committed")]
    pub at: At,
}

/// A range of times, and a limit.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Span {
    /// First time: like 2024-08-08, "2024-08-08 23:55" (UTC), "2024-08-08 09:30[America/New_York]", 2024-08-08T23:54:15.5Z,
    /// now, now-5m, or nanoseconds since 1970
    #[arg(long, value_parser = time)]
    pub from: Option<Ts>,
    /// Last time, inclusive
    #[arg(long, value_parser = time)]
    pub to: Option<Ts>,
    /// Most rows
    #[arg(short = 'n', long)]
    pub limit: Option<u64>,
}

impl Span {
    /// The range.
    pub fn range(&self) -> TimeRange {
        TimeRange { from: self.from.unwrap_or(Ts(0)), to: self.to.unwrap_or(Ts(u64::MAX)) }
    }

    /// The range, after the name of what lies in it; nothing if it is all time.
    pub fn shown(&self) -> String {
        let from = self.from.map_or_else(String::new, |from| format!(" from {from}"));
        let to = self.to.map_or_else(String::new, |to| format!(" to {to}"));
        from + &to
    }

    /// Most rows.
    pub fn limit(&self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }

    /// Whether it contains every row.
    pub fn is_all(&self) -> bool {
        self.from.is_none() && self.to.is_none() && self.limit.is_none()
    }
}

/// `tape get`: by LSN, or by instrument, kind and time.
#[derive(clap::Args, Debug)]
pub struct Get {
    /// LSN, or name of an instrument
    what: String,
    /// Kind, after the name of an instrument
    kind: Option<KindName>,
    /// Exact index time, after a kind
    #[arg(value_parser = time)]
    time: Option<Ts>,
    #[command(flatten)]
    watermark: Watermark,
}

/// `tape asof`.
#[derive(clap::Args, Debug)]
pub struct AsOf {
    /// Name of the instrument
    instrument: Name,
    /// Kind of the record; `tape kinds` lists all
    #[arg(required_unless_present = "join", conflicts_with = "join")]
    kind: Option<KindName>,
    /// Time; the newest record that is not after it is printed [default: now]
    #[arg(value_parser = time)]
    time: Option<Ts>,
    /// Join two kinds: print each record of LEFT with the newest record of RIGHT that is not after it, like trade quote
    #[arg(long, num_args = 2, value_names = ["LEFT", "RIGHT"])]
    join: Option<Vec<KindName>>,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    watermark: Watermark,
}

/// `tape latest`.
#[derive(clap::Args, Debug)]
pub struct Latest {
    /// Names of the instruments, with wildcards: * for any text, ? for a character, [abc] for one of these [default: all]
    pattern: Option<String>,
    /// Kind of the records
    #[arg(long, default_value = "trade")]
    kind: KindName,
    #[command(flatten)]
    watermark: Watermark,
}

/// `tape scan`.
#[derive(clap::Args, Debug)]
pub struct Scan {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    watermark: Watermark,
    /// Print trades as known when the record of this LSN was the newest: apply the busts and corrections stored up to it. A
    /// bust of a bust or of a correction reverts it
    #[arg(long, value_name = "LSN")]
    as_known_at: Option<u64>,
}

impl Scan {
    /// What it prints.
    fn of(&self) -> String {
        format!("{} of {}{}", self.one.kind.0, self.one.instrument, self.span.shown())
    }
}

/// A filter of instruments and kinds.
#[derive(clap::Args, Clone, Debug)]
pub struct Filter {
    /// Name of an instrument; repeatable [default: all]
    #[arg(long)]
    pub instrument: Vec<Name>,
    /// Kind; repeatable [default: all]
    #[arg(long)]
    pub kind: Vec<KindName>,
}

impl Filter {
    /// Whether every record passes.
    pub(crate) fn is_all(&self) -> bool {
        self.instrument.is_empty() && self.kind.is_empty()
    }

    /// Whether records of `schema` pass.
    fn has(&self, schema: &Schema) -> bool {
        self.kind.is_empty() || self.kind.iter().any(|k| k.names(schema))
    }
}

/// `tape replay`.
#[derive(clap::Args, Debug)]
pub struct Replay {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    watermark: Watermark,
}

/// `tape find`.
#[derive(clap::Args, Debug)]
pub struct Find {
    #[command(flatten)]
    one: One,
    /// Id
    id: u64,
    /// Column of the id [default: trade_id of trades, order_id of orders, raw_instrument_id of definitions]
    #[arg(long)]
    column: Option<String>,
    #[command(flatten)]
    watermark: Watermark,
}

fn print<'a>(format: Format, reader: &mut Reader, rows: impl Iterator<Item = Row<'a>>) -> Outcome<u64> {
    let mut out = Rows::new(format, reader.symbols()?);
    for row in rows {
        out.push(&row)?;
    }
    out.flush()?;
    Ok(out.printed())
}

fn print_scan(format: Format, reader: &mut Reader, mut rows: Rowset<'_>, limit: u64) -> Outcome<u64> {
    let mut out = Rows::new(format, reader.symbols()?);
    while out.printed() < limit
        && let Some(row) = rows.next()?
    {
        out.push(&row)?;
    }
    out.flush()?;
    Ok(out.printed())
}

/// Says on standard error that there is no `what`, if nothing was printed.
pub fn note_empty(printed: u64, what: &str) {
    if printed == 0 {
        note(format_args!("note: there is no {what}"));
    }
}

/// The name of an instrument, or with wildcards those of several.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    glob: Option<glob::Pattern>,
}

impl Pattern {
    /// Parses `text`.
    ///
    /// # Errors
    /// It is malformed (exit code 2).
    pub fn new(text: &str) -> Outcome<Pattern> {
        let wrong = |e: glob::PatternError| Failure::new(USAGE, format!("'{text}' is not a pattern of names: {e}"));
        let has_wildcards = text.contains(['*', '?', '[']);
        let glob = has_wildcards.then(|| glob::Pattern::new(text).map_err(wrong)).transpose()?;
        Ok(Pattern { text: text.to_owned(), glob })
    }

    /// Whether it is the name of one instrument.
    pub fn is_one(&self) -> bool {
        self.glob.is_none()
    }

    /// Whether it matches `name`.
    pub fn matches(&self, name: &Name) -> bool {
        match &self.glob {
            Some(glob) => glob.matches(name.as_str()),
            None => name.as_str() == self.text,
        }
    }

    /// The instruments of the store of `reader` that match, in the order of their names.
    ///
    /// # Errors
    /// There is none (exit code 3).
    pub fn instruments(&self, reader: &mut Reader) -> Outcome<Vec<(InstrumentId, Name)>> {
        if self.is_one() {
            let name: Name = self.text.parse()?;
            return Ok(vec![(reader.instrument(&name)?, name)]);
        }
        let symbols = reader.symbols()?;
        symbols.refresh();
        let all = (1u32..).map(InstrumentId).zip(symbols.names().iter().copied());
        let mut matching: Vec<(InstrumentId, Name)> = all.filter(|(_, name)| self.matches(name)).collect();
        matching.sort_unstable_by_key(|(_, name)| *name);
        found(matching.len() as u64, &format!("instrument that matches '{}'", self.text))?;
        Ok(matching)
    }
}

/// Success if anything was printed.
///
/// # Errors
/// There is no `what` (exit code 3).
pub fn found(printed: u64, what: &str) -> Outcome {
    if printed == 0 { Err(Failure::new(NOT_FOUND, format!("there is no {what}"))) } else { Ok(()) }
}

/// A reader of `store`, and a snapshot at `at`.
///
/// # Errors
/// The store cannot be read, or not completely.
pub fn open(store: &Path, at: At) -> Outcome<(Reader, Snapshot)> {
    let mut reader = Reader::open(store)?;
    let snapshot = reader.snapshot(at)?;
    reader.kinds()?;
    note_at_rest(&reader, snapshot.last());
    Ok((reader, snapshot))
}

/// Says that no storage process serves the store of `reader`, and where its log ends if that is within a frame.
pub fn note_at_rest(reader: &Reader, last: Lsn) {
    if !reader.is_storage_alive() {
        note(format_args!("note: no storage process serves the store; these are all its records, up to {last}"));
    }
    if let Some(torn) = reader.torn_tail() {
        note(format_args!(
            "note: the log ends within a frame: {} at offset {} ({}). What follows record {} is not read, and the next start of \
             tape-storage truncates it",
            torn.path.display(),
            torn.offset,
            torn.why,
            torn.last
        ));
    }
}

/// `tape get`.
///
/// # Errors
/// There is no such record (exit code 3).
pub fn get(store: &Path, args: &Get, format: Format) -> Outcome {
    let (mut reader, mut snapshot) = open(store, args.watermark.at)?;
    if let (Ok(lsn), None) = (args.what.parse::<u64>(), &args.kind) {
        let shown = format!("record {lsn}; the store has {} to {}", snapshot.first(), snapshot.last());
        return found(print(format, &mut reader, snapshot.get(Lsn(lsn))?.into_iter())?, &shown);
    }
    let (Some(kind), Some(time)) = (&args.kind, args.time) else {
        return Err(Failure::new(USAGE, "give an LSN, or an instrument, a kind and a time"));
    };
    let instrument = reader.instrument(&args.what.parse()?)?;
    let rows = snapshot.replay(&kind.series(instrument)?, TimeRange { from: time, to: time });
    let printed = print_scan(format, &mut reader, rows, u64::MAX)?;
    found(printed, "record at exactly that time; for the newest one before it, use tape asof")
}

/// `tape asof`.
///
/// # Errors
/// There is no such record (exit code 3).
pub fn as_of(store: &Path, args: &AsOf, format: Format) -> Outcome {
    if let Some([left, right]) = args.join.as_deref() {
        return join(store, args, (left, right), format);
    }
    if !args.span.is_all() {
        return Err(Failure::new(USAGE, "--from, --to and --limit are for --join; give the time after the kind"));
    }
    let Some(kind) = &args.kind else { return Err(Failure::new(USAGE, "give a kind, or --join LEFT RIGHT")) };
    let (mut reader, mut snapshot) = open(store, args.watermark.at)?;
    let instrument = reader.instrument(&args.instrument)?;
    let time = args.time.unwrap_or_else(|| HostClock.wall());
    let mut newest = None;
    for series in kind.series(instrument)? {
        let row = snapshot.as_of(series, time)?.map(|row| (row.index_time, row.lsn));
        newest = newest.max(row);
    }
    let row = match newest {
        Some((_, lsn)) => snapshot.get(lsn)?,
        None => None,
    };
    found(print(format, &mut reader, row.into_iter())?, "record up to that time")
}

/// `tape asof --join`.
fn join(store: &Path, args: &AsOf, kinds: (&KindName, &KindName), format: Format) -> Outcome {
    let (mut reader, mut snapshot) = open(store, args.watermark.at)?;
    let instrument = reader.instrument(&args.instrument)?;
    let (left, right) = (kinds.0.one()?, kinds.1.one()?);
    let series = |schema: &Schema| Series { instrument, kind: schema.kind };
    let mut pairs = snapshot.join(series(left), series(right), args.span.range())?;
    let mut out = Rows::new(format, reader.symbols()?);
    while out.printed() < args.span.limit()
        && let Some((row, joined)) = pairs.next()?
    {
        out.push_joined(&row, right, joined.as_ref())?;
    }
    out.flush()?;
    note_empty(out.printed(), &format!("{} of {}{}", left.name, args.instrument, args.span.shown()));
    Ok(())
}

/// `tape latest`.
///
/// # Errors
/// The pattern is malformed (exit code 2); no instrument that it matches has a record of the kind (exit code 3).
pub fn latest(store: &Path, args: &Latest, format: Format) -> Outcome {
    let pattern = args.pattern.as_deref().map(Pattern::new).transpose()?;
    let (mut reader, mut snapshot) = open(store, args.watermark.at)?;
    let mut newest = std::collections::BTreeMap::new();
    // The layouts of a user's kind are kinds of their own: the newest record of all counts.
    for schema in args.kind.schemas()? {
        for row in snapshot.latest(schema.kind)?.iter() {
            let key = (row.index_time, row.lsn);
            let best = newest.entry(row.record.instrument()).or_insert(key);
            *best = key.max(*best);
        }
    }
    let mut out = Rows::new(format, reader.symbols()?);
    for (instrument, (_, lsn)) in newest {
        let matches = |name: Name| pattern.as_ref().is_none_or(|pattern| pattern.matches(&name));
        if out.instrument(instrument).is_none_or(matches)
            && let Some(row) = snapshot.get(lsn)?
        {
            out.push(&row)?;
        }
    }
    out.flush()?;
    found(out.printed(), &format!("{} of such an instrument", args.kind.0))
}

/// `tape find`.
///
/// # Errors
/// There is no such record (exit code 3).
pub fn find(store: &Path, args: &Find, format: Format) -> Outcome {
    let (mut reader, snapshot) = open(store, args.watermark.at)?;
    let instrument = reader.instrument(&args.one.instrument)?;
    let mut batches = Vec::new();
    for schema in args.one.kind.schemas()? {
        let column = args.column.as_deref().or(schema.find.first().copied());
        let column = column.ok_or_else(|| Failure::new(USAGE, "records of this kind have no id column; give --column"))?;
        batches.push(snapshot.find(Series { instrument, kind: schema.kind }, column, args.id)?);
    }
    found(print(format, &mut reader, batches.iter().flat_map(|b| b.iter()))?, "record with that id")
}

/// `tape scan`.
///
/// # Errors
/// The store cannot be read.
pub fn scan(store: &Path, args: &Scan, format: Format) -> Outcome {
    let (mut reader, snapshot) = open(store, args.watermark.at)?;
    let instrument = reader.instrument(&args.one.instrument)?;
    let series = args.one.kind.series(instrument)?;
    let Some(lsn) = args.as_known_at else {
        let rows = snapshot.replay(&series, args.span.range());
        let printed = print_scan(format, &mut reader, rows, args.span.limit())?;
        note_empty(printed, &args.of());
        return Ok(());
    };
    if series.iter().any(|s| s.kind != Trade::KIND) {
        return Err(Failure::new(USAGE, "--as-known-at is for trades: busts and corrections do not apply to other kinds"));
    }
    let mut trades = snapshot.as_known_at(Lsn(lsn)).trades(instrument, args.span.range())?;
    let mut out = Rows::new(format, reader.symbols()?);
    while out.printed() < args.span.limit()
        && let Some(known) = trades.next()?
    {
        let record = RecordRef::first(known.trade.words())?;
        out.push(&Row { lsn: known.lsn, index_time: known.index_time, record })?;
    }
    out.flush()?;
    note_unmatched(trades.unmatched());
    note_empty(out.printed(), &args.of());
    Ok(())
}

/// Logs the number of busts and corrections without a target.
pub fn note_unmatched(statements: u64) {
    if statements > 0 {
        let n = terminal::thousands(statements);
        tracing::warn!(
            name: "query.corrections_without_effect",
            "{n} busts or corrections have no effect: the store has no trade, bust or correction for them"
        );
    }
}

/// A reader of `store` with the names of the records up to `at`.
pub(crate) fn catalog(store: &Path, at: At) -> Outcome<Reader> {
    let mut reader = Reader::open(store)?;
    if at == At::Flushed {
        reader.snapshot(at)?;
    }
    Ok(reader)
}

/// The instruments of `filter`; also checks its kinds.
pub(crate) fn instruments(filter: &Filter, reader: &mut Reader) -> Outcome<Vec<InstrumentId>> {
    if !filter.kind.is_empty() {
        reader.kinds()?;
    }
    filter.kind.iter().try_for_each(|k| k.schemas().map(drop))?;
    filter.instrument.iter().map(|name| Ok(reader.instrument(name)?)).collect()
}

/// The series that pass `filter`.
///
/// # Errors
/// An instrument or kind is not in the store; of the store's files.
pub fn series(filter: &Filter, reader: &mut Reader, snapshot: &Snapshot) -> Outcome<Vec<Series>> {
    let wanted = instruments(filter, reader)?;
    let keep =
        |s: &Series| (wanted.is_empty() || wanted.contains(&s.instrument)) && schema(s.kind).is_some_and(|s| filter.has(s));
    Ok(snapshot.series()?.into_iter().filter(keep).collect())
}

/// `tape replay`.
///
/// # Errors
/// The store cannot be read.
pub fn replay(store: &Path, args: &Replay, format: Format) -> Outcome {
    let (mut reader, snapshot) = open(store, args.watermark.at)?;
    let series = series(&args.filter, &mut reader, &snapshot)?;
    let rows = snapshot.replay(&series, args.span.range());
    let printed = print_scan(format, &mut reader, rows, args.span.limit())?;
    note_empty(printed, &format!("such record{}", args.span.shown()));
    Ok(())
}

/// Whether `record` passes `filter`, whose instruments are `wanted`.
pub(crate) fn passes(filter: &Filter, wanted: &[InstrumentId], record: &tapestore::record::RecordRef<'_>) -> bool {
    (wanted.is_empty() || wanted.contains(&record.instrument())) && filter.has(record.schema())
}
