//! Owns: the commands that follow a store: `tail` and `follow`.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use tapestore::error::Error;
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{At, Follow, Reader, Row, Tally};
use tapestore::subscriber::{Event, Subscriber};

use crate::exit::{Outcome, interrupted};
use crate::logging::note;
use crate::metrics::Endpoint;
use crate::metrics::reader::{Read, Reading};
use crate::output::{Format, Rows};
use crate::query::{Filter, catalog, instruments, note_empty, passes};
use crate::stdout;
use crate::terminal;
use crate::waiting::{Silence, wait_for_storage};

/// `tape tail`.
#[derive(clap::Args, Debug)]
pub struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Begin with this many of the newest records that pass the filter
    #[arg(short = 'n', long, default_value_t = 10)]
    last: u64,
    /// End after this many records
    #[arg(long)]
    limit: Option<u64>,
    /// End when no record has arrived for this many milliseconds
    #[arg(long)]
    idle_ms: Option<u64>,
    /// Read the live service of the publishers, before records are stored
    #[arg(long, conflicts_with = "metrics")]
    live: bool,
    /// Watermark: committed, durable, appended (the newest), flushed (in SSTables)
    #[arg(long, default_value = "appended")]
    at: At,
    /// Serve metrics for Prometheus at this address while it follows: host:port or unix:/path [default: not served]
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    metrics: String,
}

/// `tape follow`.
#[derive(clap::Args, Debug)]
pub struct FollowArgs {
    #[command(flatten)]
    filter: Filter,
    /// First LSN
    #[arg(long, default_value_t = 1)]
    from_lsn: u64,
    /// End after this many records
    #[arg(short = 'n', long)]
    limit: Option<u64>,
    /// End at the newest record
    #[arg(long)]
    once: bool,
    /// Print only first and last LSN, count and checksum of the records that pass the filter
    #[arg(long)]
    tally: bool,
    /// Watermark: committed, durable, appended (the newest), flushed (in SSTables)
    #[arg(long, default_value = "appended")]
    at: At,
    /// Serve metrics for Prometheus at this address while it follows: host:port or unix:/path [default: not served]
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    metrics: String,
}

/// `tape follow`.
///
/// # Errors
/// The store cannot be read.
pub fn follow(store: &Path, args: &FollowArgs, format: Format) -> Outcome {
    let stop = terminal::stop_flag()?;
    let mut reader = catalog(store, args.at)?;
    let wanted = instruments(&args.filter, &mut reader)?;
    let read = Read::new(reader.control(), args.from_lsn);
    let _metrics = Endpoint::of(&args.metrics, || Reading::new(read.clone(), args.at))?;
    let format = Format { json: !format.csv, ..format };
    let mut names = catalog(store, args.at)?;
    let mut out = Rows::new(format, names.symbols()?);
    let mut follow = reader.follow(Lsn(args.from_lsn), args.at);
    let limit = args.limit.unwrap_or(u64::MAX);
    let bar = terminal::progress(0, false, "reading");
    let (mut passed, mut tally, mut waiting, mut silence) = (0, Tally::default(), None, Silence::new());
    while passed < limit && !terminal::is_raised(&stop) {
        match follow.poll() {
            Ok(Some(row)) => {
                waiting = None;
                let has_passed = passes(&args.filter, &wanted, &row.record);
                read.one(row.lsn.0 + 1, has_passed);
                if has_passed {
                    passed += 1;
                    silence.over();
                    if args.tally {
                        tally.add(row.lsn, row.record.words());
                        bar.set_position(passed);
                    } else {
                        out.push(&row)?;
                    }
                }
            }
            Ok(None) if args.once => break,
            Ok(None) => {
                out.flush()?;
                stdout::check()?;
                silence.note("a record that passes the filter");
                read.idle(follow.reader().control());
                follow.wait(Duration::from_millis(50));
            }
            Err(e) if e.is_down() && args.once => {
                if is_at_end(&mut follow, args.at) {
                    break;
                }
                return Err(e.into());
            }
            Err(e) if e.is_down() => {
                out.flush()?;
                wait_for_storage(&mut follow, e, &mut waiting)?;
            }
            Err(e @ (Error::Withdrawn { .. } | Error::Expired { .. })) => {
                read.skipped(&e, follow.position().0);
                note(format_args!("note: {e}"));
            }
            Err(e) => return Err(e.into()),
        }
    }
    bar.finish_and_clear();
    out.flush()?;
    let is_incomplete = terminal::is_raised(&stop) && passed < limit && (args.once || args.limit.is_some());
    if args.tally {
        let t = tally;
        let object = serde_json::json!({ "first": t.first.0, "last": t.last.0, "count": t.count, "checksum": format!("{:08x}", t.checksum) });
        out!("{object}");
    }
    if args.once && !args.tally && !is_incomplete {
        note_empty(passed, &format!("such record from LSN {} on", args.from_lsn));
    }
    if is_incomplete { Err(interrupted()) } else { Ok(()) }
}

/// Whether `follow` has read all records of a stopped store.
fn is_at_end(follow: &mut Follow, at: At) -> bool {
    let next = follow.position();
    follow.reader().snapshot(at).is_ok_and(|all| all.last() < next)
}

/// The end of a `tail`.
struct End<'a> {
    stop: &'a std::sync::atomic::AtomicBool,
    idle: Option<Duration>,
    quiet: std::time::Instant,
    limit: u64,
}

impl End<'_> {
    fn came(&mut self) {
        self.quiet = std::time::Instant::now();
    }

    fn is_due(&self, printed: u64) -> bool {
        printed >= self.limit || terminal::is_raised(self.stop) || self.idle.is_some_and(|i| self.quiet.elapsed() > i)
    }
}

/// `tape tail`: follows until stopped.
///
/// # Errors
/// The store cannot be read.
pub fn tail(store: &Path, args: &Tail, format: Format) -> Outcome {
    let stop = terminal::stop_flag()?;
    let mut reader = catalog(store, args.at)?;
    let wanted = instruments(&args.filter, &mut reader)?;
    // Each row is printed as it arrives, so a table cannot be laid out: JSON lines unless CSV is requested.
    let format = Format { json: !format.csv, ..format };
    let mut names = catalog(store, args.at)?;
    let mut out = Rows::new(format, names.symbols()?);
    let idle = args.idle_ms.map(Duration::from_millis);
    let mut end = End { stop: &stop, idle, quiet: std::time::Instant::now(), limit: args.limit.unwrap_or(u64::MAX) };
    if args.live {
        tail_live(store, &args.filter, &wanted, &mut out, &mut end)?;
    } else {
        tail_stored(store, reader, args, &wanted, &mut out, &mut end)?;
    }
    out.flush()?;
    if args.limit.is_some_and(|limit| out.printed() < limit) && terminal::is_raised(&stop) {
        return Err(interrupted());
    }
    Ok(())
}

fn tail_live(store: &Path, filter: &Filter, wanted: &[InstrumentId], out: &mut Rows<'_>, end: &mut End<'_>) -> Outcome {
    let (mut subscriber, mut silence) = (Subscriber::open(store)?, Silence::new());
    while !end.is_due(out.printed()) {
        match subscriber.poll()? {
            Some(Event::Record { record, .. }) => {
                end.came();
                if passes(filter, wanted, &record) {
                    silence.over();
                    // Not stored yet: without an LSN.
                    out.push(&Row { lsn: Lsn::NONE, index_time: record.own_index_time(), record })?;
                }
            }
            Some(Event::Gap { publisher, first, last, .. }) => {
                note(format_args!("gap: records {first} to {last} of publisher {publisher} did not arrive"));
            }
            Some(Event::Reopened { continues: true, .. }) => note("note: another storage process serves the store now"),
            Some(Event::Reopened { timeline, .. }) => {
                note(format_args!("note: the store was restored, to timeline {timeline}; it may lack earlier records"));
            }
            None => {
                out.flush()?;
                stdout::check()?;
                silence.note("a publisher of this host to send a record that passes the filter");
                subscriber.wait(Duration::from_millis(50));
            }
        }
    }
    Ok(())
}

/// The records that are read at first to find those that pass a filter; each further look reads twice as many.
const LOOK_BACK: u64 = 10_000;

/// The LSN of the first of the newest `args.last` records up to `newest` that pass, or of the first that passes if there are fewer.
fn begin(store: &Path, args: &Tail, wanted: &[InstrumentId], newest: Lsn, end: &End<'_>) -> Outcome<Lsn> {
    if args.filter.is_all() || args.last == 0 {
        return Ok(Lsn(newest.0.saturating_sub(args.last) + 1));
    }
    let bar = terminal::progress(newest.0, false, "looking for the newest records that pass the filter");
    let (mut left, mut before, mut len) = (args.last, newest.0 + 1, LOOK_BACK);
    let (mut first, mut waiting) = (Lsn(newest.0 + 1), None);
    while before > 1 && left > 0 && !terminal::is_raised(end.stop) {
        let from = before.saturating_sub(len).max(1);
        let mut follow = Reader::open(store)?.follow(Lsn(from), args.at);
        // The newest of the window that pass, at most as many as are wanted.
        let mut passed = VecDeque::new();
        while follow.position().0 < before && !terminal::is_raised(end.stop) {
            match follow.poll() {
                Ok(Some(row)) if row.lsn.0 < before && passes(&args.filter, wanted, &row.record) => {
                    passed.push_back(row.lsn);
                    if passed.len() as u64 > left {
                        passed.pop_front();
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) if error.is_down() => wait_for_storage(&mut follow, error, &mut waiting)?,
                Err(Error::Withdrawn { .. } | Error::Expired { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        first = passed.front().copied().unwrap_or(first);
        left -= passed.len() as u64;
        bar.inc(before - from);
        (before, len) = (from, len.saturating_mul(2));
    }
    bar.finish_and_clear();
    Ok(first)
}

fn tail_stored(
    store: &Path,
    mut reader: Reader,
    args: &Tail,
    wanted: &[InstrumentId],
    out: &mut Rows<'_>,
    end: &mut End<'_>,
) -> Outcome {
    let snapshot = reader.snapshot(args.at)?;
    let from = begin(store, args, wanted, snapshot.last(), end)?;
    let read = Read::new(reader.control(), from.0);
    let _metrics = Endpoint::of(&args.metrics, || Reading::new(read.clone(), args.at))?;
    end.came();
    drop(snapshot);
    let (mut follow, mut waiting, mut silence) = (reader.follow(from, args.at), None, Silence::new());
    while !end.is_due(out.printed()) {
        match follow.poll() {
            Ok(Some(row)) => {
                waiting = None;
                end.came();
                let has_passed = passes(&args.filter, wanted, &row.record);
                read.one(row.lsn.0 + 1, has_passed);
                if has_passed {
                    silence.over();
                    out.push(&row)?;
                }
            }
            Ok(None) => {
                out.flush()?;
                stdout::check()?;
                silence.note("a record that passes the filter");
                read.idle(follow.reader().control());
                follow.wait(Duration::from_millis(50));
            }
            Err(e) if e.is_down() => {
                out.flush()?;
                wait_for_storage(&mut follow, e, &mut waiting)?;
            }
            Err(e @ (Error::Withdrawn { .. } | Error::Expired { .. })) => {
                read.skipped(&e, follow.position().0);
                note(format_args!("note: {e}"));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
