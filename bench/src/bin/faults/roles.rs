//! Owns: the roles of this program as a process of a campaign: storage, a publisher, a reader, `tape`.
//!
//! What must hold: a role ends when its standard input closes, so that none outlives its campaign; a reader that reads a
//! wrong row prints it and exits with an error.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use tapestore::disk::sim::SimRng;
use tapestore::error::Error;
use tapestore::lsn::{Durability, Lsn, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Reader, Row, Snapshot, TimeRange};
use tapestore::record::{RecordRef, index_time};
use tapestore::time::Ts;

use crate::rows::{self, INSTRUMENTS, Identity};
use crate::site::{Account, PATIENCE, ROLE};

/// Command line of the storage process, as of `tape-storage`.
#[derive(Parser)]
struct Storage {
    #[command(flatten)]
    args: tape_services::storage::Args,
}

/// Runs the role that the command line names, if any.
pub(crate) fn play() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ROLE) {
        return None;
    }
    let name = arguments.next().unwrap_or_default();
    tape_services::terminal::guard_pages();
    let rest: Vec<String> = arguments.collect();
    let argument = |i: usize| rest.get(i).cloned().unwrap_or_else(|| panic!("{name}: argument {i} is missing"));
    let number = |i: usize| argument(i).parse::<u64>().unwrap();
    let line = std::iter::once(name.clone()).chain(rest.iter().cloned());
    Some(match name.as_str() {
        "storage" => tape_services::stdout::code(tape_services::storage::run(&Storage::parse_from(line).args)),
        "tape" => tape_services::stdout::code(tape_services::cli::Tape::parse_from(line).run()),
        "publisher" => {
            let who = (number(3) as u16, number(4) as u16);
            let (level, base) = (argument(2).parse().unwrap(), number(5));
            publish(&PathBuf::from(argument(0)), &PathBuf::from(argument(1)), level, who, base, (number(6), number(7)))
        }
        "reader" => match read(&PathBuf::from(argument(0)), &argument(1), number(2), number(3)) {
            Ok(summary) => {
                println!("{summary}");
                ExitCode::SUCCESS
            }
            Err(what) => {
                println!("{what}");
                ExitCode::from(tape_services::exit::DIFFERENCE)
            }
        },
        "small-shm" => crate::small_shm::play(number(0), number(1)),
        other => panic!("{other} is no role"),
    })
}

/// A flag that is set when standard input closes.
fn end() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let theirs = flag.clone();
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        std::io::stdin().read_to_end(&mut rest).ok();
        theirs.store(true, Ordering::Release);
    });
    flag
}

fn note(account: &mut Account, publisher: &mut Publisher, file: &File) {
    let progress = publisher.progress();
    (account.epoch, account.accepted, account.durable) = (u64::from(progress.epoch.0), progress.accepted.0, progress.durable.0);
    account.reattached = progress.reattached;
    account.lost += publisher.take_lost().iter().map(|l| l.last.0 + 1 - l.first.0).sum::<u64>();
    account.write(file);
}

/// Publishes at a rate until standard input closes; then waits until everything is durable.
fn publish(
    store: &Path,
    account_path: &Path,
    level: Durability,
    (id, process): (u16, u16),
    base: u64,
    (batch, rate): (u64, u64),
) -> ExitCode {
    let wanted = tape_services::terminal::Wanted::new(None, tape_services::terminal::LevelFilter::WARN);
    tape_services::terminal::log(wanted, tape_services::log_format::LogFormat::Text, true);
    let end = end();
    let file = File::options().write(true).create(true).truncate(true).open(account_path).unwrap();
    // A small ring, so that it fills up.
    let options =
        Options { durability: level, open_timeout: PATIENCE, ring_bytes: 2 << 20, ..Options::new(store, PublisherId(id)) };
    let mut publisher = match Publisher::open(options) {
        Ok(publisher) => publisher,
        Err(e) => {
            eprintln!("publisher {id}: {e}");
            return ExitCode::from(tape_services::exit::UNAVAILABLE);
        }
    };
    let names: Vec<_> = (1..=INSTRUMENTS).map(|i| format!("BENCH:{i}").parse().unwrap()).collect();
    // Storage may be down or out of space.
    while publisher.instruments(&names).is_err() && !end.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut account = Account { process: u64::from(process), ..Account::default() };
    let (began, mut offered) = (Instant::now(), 0u64);
    while !end.load(Ordering::Acquire) {
        for _ in 0..batch {
            let words = rows::words(Identity::new(id, process, account.published as u32 + 1), base);
            let at = Instant::now();
            let staged = publisher.stage(RecordRef::first(&words).unwrap());
            account.longest = account.longest.max(at.elapsed().as_nanos() as u64);
            match staged {
                Ok(_) => account.published += 1,
                Err(PublishError::Full { .. }) => account.full += 1,
                Err(PublishError::NoSpace { .. }) => account.no_space += 1,
                Err(e) => {
                    eprintln!("publisher {id}: {e}");
                    note(&mut account, &mut publisher, &file);
                    return ExitCode::from(tape_services::exit::LATER);
                }
            }
        }
        publisher.send();
        note(&mut account, &mut publisher, &file);
        offered += batch;
        // A publisher that was stopped does not catch up.
        let due = began + Duration::from_nanos(offered * 1_000_000_000 / rate.max(1));
        match due.checked_duration_since(Instant::now()) {
            Some(pause) => std::thread::sleep(pause),
            None => offered = began.elapsed().as_nanos() as u64 / 1000 * rate / 1_000_000,
        }
    }
    let flushed = publisher.flush(Durability::Fsync, PATIENCE);
    account.done = u64::from(flushed.is_ok());
    note(&mut account, &mut publisher, &file);
    match flushed {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("publisher {id}: {e}");
            ExitCode::from(tape_services::exit::LATER)
        }
    }
}

/// Reads in the mode `how` until standard input closes; returns a summary.
fn read(store: &Path, how: &str, base: u64, seed: u64) -> Result<String, String> {
    let end = end();
    let deadline = Instant::now() + PATIENCE;
    let reader = loop {
        match Reader::open(store) {
            Ok(reader) => break reader,
            Err(_) if Instant::now() < deadline && !end.load(Ordering::Acquire) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.to_string()),
        }
    };
    match how {
        "follow" => follow(reader, base, &end),
        "bad" => bad(reader, base, &end),
        "hoard" => hoard(reader, base, &end),
        "random" => Random { base, rng: SimRng::new(seed), held: VecDeque::new(), did: BTreeMap::new() }.run(reader, &end),
        other => Err(format!("{other} is no reader mode")),
    }
}

/// Follows the store from its first record on.
fn follow(reader: Reader, base: u64, end: &AtomicBool) -> Result<String, String> {
    let mut follow = reader.follow(Lsn(1), At::Appended);
    let (mut next, mut serials) = (Lsn(1), BTreeMap::<u16, u64>::new());
    let (mut down, mut expired, mut count) = (0u64, 0u64, 0u64);
    while !end.load(Ordering::Acquire) {
        match follow.poll() {
            Ok(Some(row)) => {
                if row.lsn != next {
                    return Err(format!("follow: record {} instead of {next}", row.lsn));
                }
                let identity = rows::check(row.record, base).map_err(|e| format!("follow: record {next}: {e}"))?;
                next = next.next();
                count += 1;
                if let Some(identity) = identity {
                    let last = serials.entry(identity.publisher()).or_insert(0);
                    if identity.serial() <= *last {
                        return Err(format!("follow: {identity:x?} comes after {last:x}"));
                    }
                    *last = identity.serial();
                }
            }
            Ok(None) => follow.wait(Duration::from_millis(5)),
            Err(e) if e.is_down() => {
                down += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Error::Expired { first, last }) if first == next => {
                expired += last.0 + 1 - first.0;
                next = last.next();
            }
            Err(e) => return Err(format!("follow: {e}")),
        }
    }
    Ok(format!("follow: {count} records, {expired} expired, storage down {down} times"))
}

/// Pins a snapshot of every version and releases none.
fn hoard(mut reader: Reader, base: u64, end: &AtomicBool) -> Result<String, String> {
    let (mut held, mut version, mut rng) = (Vec::new(), 0, SimRng::new(base));
    while !end.load(Ordering::Acquire) {
        let now = reader.control().table_version();
        match reader.snapshot(At::Appended) {
            Ok(mut snapshot) if now != version || held.is_empty() => {
                let last = snapshot.last();
                if let Some(row) = snapshot.get(last).map_err(context("hoard"))? {
                    rows::check(row.record, base).map_err(|e| format!("hoard: record {last}: {e}"))?;
                }
                held.push(snapshot);
                version = now;
            }
            Ok(_) => {}
            Err(e) if e.is_down() => {}
            Err(e) => return Err(format!("hoard: {e}")),
        }
        // Pinned snapshots must stay unchanged.
        if !held.is_empty() {
            let at = rng.below(held.len() as u64) as usize;
            let snapshot = &mut held[at];
            let lsn = Lsn(snapshot.first().0 + rng.below((snapshot.last().0 + 1).saturating_sub(snapshot.first().0).max(1)));
            if let Some(row) = snapshot.get(lsn).map_err(context("hoard"))? {
                rows::check(row.record, base).map_err(|e| format!("hoard: record {lsn}: {e}"))?;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(format!("hoard: {} snapshots held", held.len()))
}

/// Reads a store with unreadable parts: each row is right or a typed error.
fn bad(mut reader: Reader, base: u64, end: &AtomicBool) -> Result<String, String> {
    let (mut good, mut errors) = (0u64, BTreeMap::<&str, u64>::new());
    let mut note = |e: Error| {
        let what = match e {
            Error::Io { .. } => "unreadable",
            Error::Corrupt { .. } => "damaged",
            Error::Missing { .. } | Error::Foreign { .. } | Error::Version { .. } => "absent",
            e if e.is_down() => "absent",
            other => return Err(format!("bad pages: {other}")),
        };
        *errors.entry(what).or_insert(0) += 1;
        Ok(())
    };
    while !end.load(Ordering::Acquire) {
        let mut snapshot = match reader.snapshot(At::Committed) {
            Ok(snapshot) => snapshot,
            Err(e) => {
                note(e)?;
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        for lsn in (1..=snapshot.last().0).step_by(97) {
            match snapshot.get(Lsn(lsn)) {
                Ok(Some(row)) => good += u64::from(rows::check(row.record, base)?.is_some()),
                Ok(None) => return Err(format!("bad pages: record {lsn} is missing without an error")),
                Err(e) => note(e)?,
            }
        }
        for number in 0..INSTRUMENTS {
            let mut scan = snapshot.scan(rows::series(number), TimeRange::ALL);
            loop {
                match scan.next() {
                    Ok(Some(row)) => good += u64::from(rows::check(row.record, base)?.is_some()),
                    Ok(None) => break,
                    Err(e) => {
                        note(e)?;
                        break;
                    }
                }
            }
        }
        // Releases the pages, so that the next round reads uncached ones from the disk.
        snapshot.release();
        std::thread::sleep(Duration::from_millis(50));
    }
    let all: u64 = errors.values().sum();
    Ok(format!("bad pages: {good} rows right, {all} errors {errors:?}, no signal"))
}

/// A snapshot that is held while SSTables are merged and unlinked.
struct Held {
    snapshot: Snapshot,
    /// Identities of some records, by LSN; `rows` is the count of a scan of `series`.
    sample: Vec<(Lsn, u64)>,
    series: u64,
    rows: u64,
}

/// A reader of random queries.
struct Random {
    base: u64,
    rng: SimRng,
    held: VecDeque<Held>,
    did: BTreeMap<&'static str, u64>,
}

/// Snapshots held at the same time.
const HELD: usize = 3;

fn context(what: &str) -> impl Fn(Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Random {
    fn run(mut self, mut reader: Reader, end: &AtomicBool) -> Result<String, String> {
        while !end.load(Ordering::Acquire) {
            let at = [At::Appended, At::Durable, At::Committed];
            let at = at.get(self.rng.below(3) as usize).copied().unwrap_or(At::Committed);
            let mut snapshot = match reader.snapshot(at) {
                Ok(snapshot) => snapshot,
                Err(e) if e.is_down() => {
                    self.count("storage down");
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                Err(e) => return Err(format!("snapshot: {e}")),
            };
            if snapshot.last() == Lsn(0) {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            match self.rng.below(8) {
                0 | 1 => self.get(&mut snapshot)?,
                2 | 3 => self.as_of(&mut snapshot)?,
                4 => self.scan(&snapshot).map(drop)?,
                5 => self.replay(&snapshot)?,
                6 => self.find(&snapshot)?,
                _ => self.hold(snapshot)?,
            }
        }
        while let Some(held) = self.held.pop_front() {
            self.again(held)?;
        }
        let did: Vec<String> = self.did.iter().map(|(k, v)| format!("{k} {v}")).collect();
        Ok(format!("random: {}", did.join(", ")))
    }

    fn count(&mut self, what: &'static str) {
        *self.did.entry(what).or_insert(0) += 1;
    }

    /// Checks that `row` is as published and is sorted by its own index time.
    fn demand(&self, row: &Row<'_>, what: &str) -> Result<(), String> {
        let at = |e: String| format!("{what}: record {}: {e}", row.lsn);
        rows::check(row.record, self.base).map_err(at)?;
        let own = row.record.own_index_time();
        if !own.is_null() && index_time(own, row.index_time) != (row.index_time, false) {
            return Err(at(format!("sorted by {}, but its index time is {own}", row.index_time)));
        }
        Ok(())
    }

    fn get(&mut self, snapshot: &mut Snapshot) -> Result<(), String> {
        let (first, last) = (snapshot.first().0, snapshot.last().0);
        for _ in 0..64 {
            let lsn = Lsn(first + self.rng.below((last + 1).saturating_sub(first).max(1)));
            let arrival = snapshot.arrival(lsn).map_err(context("arrival"))?;
            let covered = snapshot.history().covered();
            match (snapshot.get(lsn).map_err(context("get"))?, arrival) {
                (Some(row), Some(arrival)) if row.lsn == lsn && arrival.lsn == lsn => {
                    self.demand(&row, "get")?;
                    let identity = rows::check(row.record, self.base)?;
                    if identity.is_some_and(|i| i.publisher() != arrival.publisher.0) {
                        return Err(format!("get: record {lsn} is {identity:x?}, but its arrival is {arrival:?}"));
                    }
                    self.count("get");
                }
                // Retention drops files by time, not by LSN.
                (None, None) if lsn <= covered => self.count("get expired"),
                (row, arrival) => return Err(format!("get: record {lsn} of {last} is {row:?}, arrival {arrival:?}")),
            }
        }
        Ok(())
    }

    /// A random time within the range of the records.
    fn time(&mut self) -> u64 {
        self.base - 6 * 3_600_000_000_000 + self.rng.below(6 * 3_600_000_000_000 + 120_000_000_000)
    }

    fn as_of(&mut self, snapshot: &mut Snapshot) -> Result<(), String> {
        for _ in 0..16 {
            let series = rows::series(self.rng.next_u64());
            let time = if self.rng.below(2) == 0 { Ts(self.base + self.rng.below(120_000_000_000)) } else { Ts(self.time()) };
            let found = match snapshot.as_of(series, time).map_err(context("as-of"))? {
                None => None,
                Some(row) => {
                    self.demand(&row, "as-of")?;
                    let other = row.record.kind() != series.kind || row.record.instrument() != series.instrument;
                    if other || row.index_time > time {
                        return Err(format!("as-of: {series:?} at {time} returns {row:?}"));
                    }
                    Some((row.index_time, row.lsn))
                }
            };
            let from = found.map_or(Ts(0), |f| f.0);
            let mut scan = snapshot.scan(series, TimeRange { from, to: time });
            let mut newest = None;
            while let Some(row) = scan.next().map_err(context("scan"))? {
                newest = Some((row.index_time, row.lsn));
            }
            if newest != found {
                return Err(format!("as-of: {series:?} at {time} returns {found:?}, a scan {newest:?}"));
            }
            self.count("as-of");
        }
        Ok(())
    }

    fn scan(&mut self, snapshot: &Snapshot) -> Result<u64, String> {
        let series = rows::series(self.rng.next_u64());
        let rows = self.walk(snapshot.scan(series, TimeRange::ALL), snapshot.last(), "scan")?;
        self.count("scan");
        Ok(rows)
    }

    fn replay(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let series: Vec<_> = (0..8).map(|_| rows::series(self.rng.next_u64())).collect();
        let series: BTreeMap<u64, _> = series.into_iter().map(|s| (s.key(), s)).collect();
        let from = self.time();
        let range = TimeRange { from: Ts(from), to: Ts(from + self.rng.below(7_200_000_000_000)) };
        let series: Vec<_> = series.into_values().collect();
        self.walk(snapshot.replay(&series, range), snapshot.last(), "replay")?;
        self.count("replay");
        Ok(())
    }

    /// Checks that the rows of `scan` are right, in order and unique; returns their number.
    fn walk(&self, mut scan: tapestore::reader::Scan<'_>, last: Lsn, what: &str) -> Result<u64, String> {
        let (mut before, mut count) = ((Ts(0), Lsn(0)), 0);
        while let Some(row) = scan.next().map_err(context(what))? {
            self.demand(&row, what)?;
            let key = (row.index_time, row.lsn);
            if key <= before || row.lsn > last {
                return Err(format!("{what}: {key:?} after {before:?}, with {last} the last"));
            }
            before = key;
            count += 1;
        }
        Ok(count)
    }

    /// Looks up trades by their ids.
    fn find(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let trades = tapestore::record::Kind(1);
        let instrument = rows::series(self.rng.below(INSTRUMENTS)).instrument;
        let series = tapestore::reader::Series { instrument, kind: trades };
        let (mut ids, mut scan) = (Vec::new(), snapshot.scan(series, TimeRange::ALL));
        while let Some(row) = scan.next().map_err(context("scan"))? {
            if self.rng.below(16) == 0
                && ids.len() < 8
                && let Some(trade) = row.record.get::<tapestore::record::Trade>()
            {
                ids.push((row.lsn, trade.trade_id));
            }
        }
        for (lsn, id) in ids {
            let found = snapshot.find(series, "trade_id", id).map_err(context("find"))?;
            if !found.iter().any(|row| row.lsn == lsn) {
                return Err(format!("find: record {lsn} is not found by its trade_id {id}"));
            }
            self.count("find");
        }
        Ok(())
    }

    /// Keeps a snapshot and checks one that was kept.
    fn hold(&mut self, mut snapshot: Snapshot) -> Result<(), String> {
        let (first, last) = (snapshot.first().0, snapshot.last().0);
        let mut sample = Vec::new();
        for _ in 0..64 {
            let lsn = Lsn(first + self.rng.below((last + 1).saturating_sub(first).max(1)));
            if let Some(row) = snapshot.get(lsn).map_err(context("held get"))? {
                sample.push((lsn, row.record.words().get(1).copied().unwrap_or(0)));
            }
        }
        let series = self.rng.below(8 * INSTRUMENTS);
        let rows = self.walk(snapshot.scan(rows::series(series), TimeRange::ALL), snapshot.last(), "held scan")?;
        self.held.push_back(Held { snapshot, sample, series, rows });
        if self.held.len() > HELD
            && let Some(oldest) = self.held.pop_front()
        {
            // Mostly drops the newer one, so that a few become old.
            let chosen = match self.rng.below(8) {
                0 => oldest,
                _ => {
                    let newer = self.held.pop_back();
                    self.held.push_front(oldest);
                    let Some(newer) = newer else { return Ok(()) };
                    if self.rng.below(4) == 0 {
                        let rest: Vec<Held> = self.held.drain(..).collect();
                        for held in rest {
                            let held = self.look(held)?;
                            self.held.push_back(held);
                        }
                    }
                    newer
                }
            };
            self.again(chosen)?;
        }
        Ok(())
    }

    fn again(&mut self, held: Held) -> Result<(), String> {
        self.look(held).map(drop)
    }

    /// Checks that a held snapshot is unchanged.
    fn look(&mut self, mut held: Held) -> Result<Held, String> {
        for &(lsn, identity) in &held.sample {
            let row = held.snapshot.get(lsn).map_err(context("held get"))?;
            let row = row.ok_or_else(|| format!("held: record {lsn} is missing from a snapshot"))?;
            self.demand(&row, "held")?;
            if row.record.words().get(1) != Some(&identity) {
                return Err(format!("held: record {lsn} was {identity:x} and is {:x?}", row.record.words().get(1)));
            }
        }
        let series = rows::series(held.series);
        let rows = self.walk(held.snapshot.scan(series, TimeRange::ALL), held.snapshot.last(), "held scan")?;
        if rows != held.rows {
            return Err(format!("held: a scan returned {} rows and now {rows}", held.rows));
        }
        self.count("held");
        Ok(held)
    }
}
