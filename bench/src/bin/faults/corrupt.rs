//! Owns: the campaign `corrupt`: damage to every kind of file: each byte changed in two ways, each length truncated.
//!
//! What must hold: a changed file is refused with a typed error, or all its values are unchanged: no wrong value, no panic,
//! no hang, no vast allocation. Shared memory has no checksums: there a wrong value is allowed, the rest holds.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapestore::disk::Open;
use tapestore::disk::sim::SimDisk;
use tapestore::error::Error;
use tapestore::lsn::{Lsn, PubSeq};
use tapestore::manifest;
use tapestore::reader::{At, Reader, TimeRange};
use tapestore::record::{Record, Trade};
use tapestore::shm::run_dir::RunDir;
use tapestore::sstable;
use tapestore::time::Ts;
use tapestore::wal::{self, Body};
use tapestore_engine::config;
use tapestore_engine::state::Readiness;
use tapestore_engine::{self, World};

use crate::guard::guarded;
use crate::model::{self, Found, Signal, State};
use crate::powerloss::{Store, Trial};
use crate::report::Report;
use crate::scratch::Scratch;
use crate::tally::{Counts, JumpClock};

/// Bytes of a file that are damaged, at most.
const SAMPLE: usize = 64 << 10;

/// A damage to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// Flips one bit of this byte.
    Bit(usize),
    /// Sets or clears all bits of this byte.
    Byte(usize),
    /// Truncates the file to this length.
    Truncate(usize),
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// A typed error.
    Refused,
    /// All values are unchanged.
    Same,
    /// A value differs.
    Other,
}

/// Runs about `n` cases for each kind of file.
pub fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("corrupt");
    let (counts, scratch) = (Counts::default(), Scratch::new());
    let mut trial = Trial::new(seed, &scratch, &counts, false);
    let running = store(&mut trial);
    shared(&mut report, n, &trial);
    trial.stop(running).unwrap();
    let subject = Subject::new(&trial, &scratch);
    subject.log(&mut report, n);
    subject.tables(&mut report, n);
    subject.manifest(&mut report, n);
    subject.whole_only(&mut report, n, "CURRENT", &trial.store.join(manifest::format::CURRENT));
    subject.meta(&mut report, n);
    configuration(&mut report, n, &scratch);
    report
}

/// A store with two flushes, log after them, names and a user kind.
fn store(trial: &mut Trial<'_>) -> Store {
    trial.batch = 12;
    (trial.model.recipe.kinds, trial.model.recipe.odd) = (vec![Trade::KIND, Signal::KIND], u64::MAX);
    trial.model.recipe.late = u64::MAX;
    trial.keep_all();
    let mut store = trial.start().unwrap();
    trial.attach(&mut store).unwrap();
    for turn in 0..24 {
        assert!(trial.can_log(&mut store).unwrap());
        if turn == 8 || turn == 16 {
            store.at.state.memtables.seal_soon();
        }
        trial.name(&mut store).unwrap();
        assert_eq!(store.at.state.is_ready().unwrap(), Readiness::Ready);
        trial.send(&mut store, 2).unwrap();
        trial.sync(&mut store).unwrap();
        trial.flush(&mut store);
    }
    store
}

/// The damage cases of a file of `len` bytes; evenly spaced ones if there are more than `n`.
fn cases(len: usize, truncates: bool, n: u64) -> impl Iterator<Item = Damage> {
    let sample = len.min(SAMPLE);
    let all = sample * if truncates { 3 } else { 2 };
    let stride = (all as u64).div_ceil(n.max(1)).max(1) as usize;
    (0..all).step_by(stride).map(move |i| match (i / sample, i % sample) {
        (0, at) => Damage::Bit(at),
        (1, at) => Damage::Byte(at),
        (_, at) => Damage::Truncate(at),
    })
}

fn damaged(damage: Damage, byte: u8) -> u8 {
    match damage {
        Damage::Bit(at) => byte ^ 1 << (at % 8),
        Damage::Byte(_) if byte == 0xff => 0,
        Damage::Byte(_) | Damage::Truncate(_) => 0xff,
    }
}

/// Counts of the results.
#[derive(Default)]
struct Tally {
    refused: u64,
    same: u64,
    other: u64,
}

impl Tally {
    fn note(&mut self, report: &mut Report, what: &str, damage: Damage, outcome: Result<Shown, String>, other_is_wrong: bool) {
        match outcome {
            Ok(Shown::Refused) => self.refused += 1,
            Ok(Shown::Same) => self.same += 1,
            Ok(Shown::Other) => self.other += 1,
            Err(_) => {}
        }
        let again = "cargo run -p bench --bin faults -- corrupt, with the same --n and --seed";
        match outcome {
            Ok(Shown::Other) if other_is_wrong => {
                report.fail(format!("{what}: {damage:?}: a wrong value without an error"), again)
            }
            Err(why) => report.fail(format!("{what}: {damage:?}: {why}"), again),
            Ok(_) => report.pass(),
        }
    }

    fn summarise(self, report: &mut Report, what: &str, len: usize) {
        let Tally { refused, same, other } = self;
        let shown = if other > 0 { format!(", {other} with a wrong value (no checksum)") } else { String::new() };
        report.note(format!("{what}: {len} bytes, {} cases: {refused} refused, {same} harmless{shown}", refused + same + other));
    }
}

/// A stopped store on the simulated disk, and its expected contents.
struct Subject<'a> {
    disk: SimDisk,
    store: PathBuf,
    state: State,
    meta: wal::Meta,
    manifest: manifest::State,
    scratch: &'a Scratch,
    trial: &'a Trial<'a>,
}

impl<'a> Subject<'a> {
    fn new(trial: &'a Trial<'a>, scratch: &'a Scratch) -> Subject<'a> {
        let (disk, store) = (trial.disk.copy(), trial.store.clone());
        let meta = wal::meta::read(&disk, &store).unwrap().unwrap();
        let (follower, torn) = manifest::read_all(&disk, &store, meta.store_id, &mut |_, _| {}).unwrap();
        assert!(torn.is_none() && follower.state().files.len() >= 2);
        Subject { manifest: follower.state().clone(), disk, store, state: trial.model.state(), meta, scratch, trial }
    }

    /// Applies each damage to `path` in turn, checks, and undoes it.
    fn each(&self, report: &mut Report, n: u64, what: &str, path: &Path, check: &mut dyn FnMut() -> Shown) {
        let bytes = self.disk.contents(path).unwrap();
        let mut tally = Tally::default();
        assert_eq!(check(), Shown::Same, "{what}: without damage");
        for damage in cases(bytes.len(), true, n) {
            match damage {
                Damage::Truncate(len) => self.disk.overwrite(path, bytes[..len].to_vec()),
                Damage::Bit(at) | Damage::Byte(at) => {
                    self.disk.patch(path, at, damaged(damage, bytes[at])).unwrap();
                }
            }
            let outcome = guarded(|| format!("{what}: {damage:?}"), bytes.len(), &mut *check);
            tally.note(report, what, damage, outcome, true);
            match damage {
                Damage::Truncate(_) => self.disk.overwrite(path, bytes.clone()),
                Damage::Bit(at) | Damage::Byte(at) => {
                    self.disk.patch(path, at, bytes[at]).unwrap();
                }
            }
        }
        tally.summarise(report, what, bytes.len());
    }

    /// Checks a start on a copy of the disk.
    fn whole(&self) -> Shown {
        self.scratch.clear();
        let disk = Arc::new(self.disk.copy());
        let world = World { disk: disk.clone(), clock: Arc::new(JumpClock::new()), store_id: self.meta.store_id, boot: 1 };
        let at = match tapestore_engine::recover(self.scratch.options(), &world) {
            Ok(at) => at,
            Err(Error::Halted { .. } | Error::Io { .. }) => panic!("damage is reported as a failed call"),
            Err(_) => return Shown::Refused,
        };
        at.announce();
        let mut reader = Reader::open_on(disk, &self.store).unwrap();
        if !Found::of(&at, &mut reader, 3).is(&self.state) {
            return Shown::Other;
        }
        let Ok(mut snapshot) = reader.snapshot(At::Appended) else { return Shown::Refused };
        model::compare(&mut snapshot, &self.trial.model, &self.state);
        Shown::Same
    }

    fn log(&self, report: &mut Report, n: u64) {
        let dir = self.store.join(wal::DIR);
        let first = self.manifest.checkpoint.position.0 / self.meta.segment_size * self.meta.segment_size;
        let path = dir.join(wal::format::segment_name(tapestore::lsn::Position(first)));
        let read = || -> Result<u64, Error> {
            let mut hash = 0u64;
            wal::scan(&self.disk, &dir, &self.meta, self.manifest.checkpoint, Open::Read, |frame| {
                hash = hash.rotate_left(7) ^ u64::from(crc32c::crc32c(bytemuck::bytes_of(&frame.header)));
                if let Body::Data(data) = &frame.body {
                    hash = hash.rotate_left(7) ^ u64::from(crc32c::crc32c(bytemuck::cast_slice(data.records)));
                }
                Ok(())
            })?;
            Ok(hash)
        };
        let (expected, mut count) = (read().unwrap(), 0);
        self.each(report, n, "log segment", &path, &mut || {
            count += 1;
            match read() {
                // Every 200th case checks a start of the whole store.
                _ if count % 200 == 0 => self.whole(),
                Err(_) => Shown::Refused,
                Ok(hash) if hash == expected => Shown::Same,
                Ok(_) => Shown::Other,
            }
        });
    }

    fn tables(&self, report: &mut Report, n: u64) {
        for kind in [Trade::KIND, Signal::KIND] {
            let Some(meta) = self.manifest.files.values().filter(|f| f.kind == kind).max_by_key(|f| f.rows) else {
                panic!("no file of kind {}", kind.0)
            };
            let dir = self.store.join(sstable::DIR);
            let path = dir.join(sstable::file_name(meta.kind, meta.id));
            let (mut words, mut lsns) = (Vec::new(), BTreeSet::new());
            let table = sstable::Table::open(&self.disk, &dir, *meta).unwrap();
            let rows = table.verify(|block| {
                lsns.extend(block.lsns());
                Ok(())
            });
            assert!(rows.unwrap() >= 20, "{meta:?}");
            self.each(report, n / 2, &format!("SSTable of kind {}", kind.0), &path, &mut || match self
                .read_table(&dir, *meta, &lsns, &mut words)
            {
                Ok(true) => Shown::Same,
                Ok(false) => Shown::Other,
                Err(_) => Shown::Refused,
            });
        }
    }

    /// Whether every access path of the SSTable of `meta` returns the sent records; an error if one failed.
    fn read_table(&self, dir: &Path, meta: sstable::FileMeta, lsns: &BTreeSet<u64>, words: &mut Vec<u64>) -> Result<bool, Error> {
        let table = sstable::Table::open(&self.disk, dir, meta)?;
        let (mut failed, mut expected, mut rows) = (None, Vec::new(), 0);
        for (i, sent) in self.state.log.iter().enumerate() {
            let lsn = Lsn(i as u64 + 1);
            words.clear();
            let found = table.place_of(lsn).and_then(|place| match place {
                Some(place) => table.row(place, words).map(Some),
                None => Ok(None),
            });
            let arrival = table.arrival(lsn);
            expected.clear();
            self.trial.model.recipe.words(*sent, &mut expected);
            let is_here = lsns.contains(&lsn.0);
            match (found, arrival) {
                (Ok(Some(_)), Ok(arrival)) => {
                    rows += 1;
                    let from = arrival.map(|a| (a.publisher.0, a.epoch.0, a.pub_seq));
                    if *words != expected || from != Some((sent.publisher, sent.epoch, PubSeq(sent.seq))) {
                        return Ok(false);
                    }
                }
                (Ok(None), Ok(None)) if !is_here => {}
                (Ok(None), Ok(None)) => return Ok(false),
                (Ok(_), Ok(_)) => return Ok(false),
                (Err(e), _) | (_, Err(e)) => failed = Some(e),
            }
        }
        for series in table.series()? {
            let last = table.as_of(series.instrument, Ts(u64::MAX))?;
            let slice = table.slice(series.instrument, TimeRange::ALL)?;
            if last.map(|l| l.0.0) != Some(series.time.max) || slice.map(|s| s.to - s.from) != Some(series.rows) {
                return Ok(false);
            }
            let mut places = Vec::new();
            table.find(series.instrument, 0, 12345, &mut places)?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        table.verify(|_| Ok(())).map(|verified| verified == rows && rows == meta.rows)
    }

    fn manifest(&self, report: &mut Report, n: u64) {
        let files = self.disk.files();
        let is_manifest = |p: &&PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("manifest-"));
        let path = files.iter().find(is_manifest).unwrap();
        self.each(report, n, "manifest", path, &mut || {
            match manifest::read_all(&self.disk, &self.store, self.meta.store_id, &mut |_, _| {}) {
                Err(_) => Shown::Refused,
                Ok((follower, None)) if *follower.state() == self.manifest => Shown::Same,
                // Perhaps a torn edit: the result of a start counts.
                Ok(_) => self.whole(),
            }
        });
    }

    fn meta(&self, report: &mut Report, n: u64) {
        self.each(report, n, "store.meta", &self.store.join(wal::meta::NAME), &mut || match wal::meta::read(
            &self.disk,
            &self.store,
        ) {
            Ok(Some(meta)) if meta == self.meta => Shown::Same,
            Ok(_) => self.whole(),
            Err(_) => Shown::Refused,
        });
    }

    fn whole_only(&self, report: &mut Report, n: u64, what: &str, path: &Path) {
        self.each(report, n, what, path, &mut || self.whole());
    }
}

/// Damages the shared memory of a running store that other processes read.
fn shared(report: &mut Report, n: u64, trial: &Trial<'_>) {
    let run_dir = RunDir::find(&trial.store).unwrap();
    let state = trial.model.state();
    let mut names: Vec<String> =
        std::fs::read_dir(run_dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for what in ["control", "symbols-", "kinds-", "memtable-"] {
        let name = names.iter().rfind(|n| n.starts_with(what)).unwrap_or_else(|| panic!("no {what} in {names:?}"));
        let path = run_dir.path().join(name);
        let places = places_of(&path, n);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut tally = Tally::default();
        assert_eq!(read_shared(trial, &state), Shown::Same, "{what}: without damage");
        for damage in &places {
            let (Damage::Bit(at) | Damage::Byte(at) | Damage::Truncate(at)) = *damage;
            let mut byte = [0u8];
            file.read_exact_at(&mut byte, at as u64).unwrap();
            file.write_all_at(&[damaged(*damage, byte[0])], at as u64).unwrap();
            let outcome = guarded(|| format!("{what}: {damage:?}"), SAMPLE, || read_shared(trial, &state));
            file.write_all_at(&byte, at as u64).unwrap();
            tally.note(report, what, *damage, outcome, false);
        }
        tally.summarise(report, &format!("{}, in shared memory", what.trim_end_matches('-')), places.len() / 2);
    }
}

/// Damage cases for the bytes of a file in shared memory near non-zero bytes, evenly spaced.
fn places_of(path: &Path, n: u64) -> Vec<Damage> {
    let bytes = std::fs::read(path).unwrap();
    let is_used = |at: usize| bytes[at.saturating_sub(8)..(at + 8).min(bytes.len())].iter().any(|b| *b != 0);
    let used: Vec<usize> = (0..bytes.len()).filter(|at| is_used(*at)).take(4 * SAMPLE).collect();
    let stride = (2 * used.len() as u64).div_ceil(n.max(1)).max(1) as usize;
    let both = used.iter().flat_map(|&at| [Damage::Bit(at), Damage::Byte(at)]);
    both.step_by(stride).collect()
}

fn read_shared(trial: &Trial<'_>, state: &State) -> Shown {
    let read = || -> Result<bool, Error> {
        let mut reader = Reader::open_on(Arc::new(trial.disk.clone()), &trial.store)?;
        let mut snapshot = reader.snapshot(At::Appended)?;
        let mut same = snapshot.last() == Lsn(state.log.len() as u64);
        let mut words = Vec::new();
        for (i, sent) in state.log.iter().enumerate() {
            let lsn = Lsn(i as u64 + 1);
            words.clear();
            trial.model.recipe.words(*sent, &mut words);
            same &= snapshot.get(lsn)?.is_some_and(|row| row.record.words() == words);
            same &= snapshot.arrival(lsn)?.is_some_and(|a| (a.publisher.0, a.pub_seq.0) == (sent.publisher, sent.seq));
        }
        let mut rows = 0;
        for series in snapshot.series()? {
            rows += snapshot.scan(series, TimeRange::ALL).count()?;
            snapshot.as_of(series, Ts(model::BEGIN + 1))?;
            if tapestore::record::schema(series.kind).is_some_and(|s| s.find.contains(&"order_id")) {
                snapshot.find(series, "order_id", 7)?;
            }
        }
        let symbols = reader.symbols()?;
        symbols.refresh();
        let names = symbols.names().iter().enumerate().all(|(i, n)| *n == model::name(i)) && symbols.names().len() == state.names;
        Ok(same && names && rows == state.log.len() as u64)
    };
    match read() {
        Ok(true) => Shown::Same,
        Ok(false) => Shown::Other,
        Err(_) => Shown::Refused,
    }
}

/// Damages the configuration: it has no checksums, so another valid value is allowed.
fn configuration(report: &mut Report, n: u64, scratch: &Scratch) {
    let text = include_bytes!("../../../../config/storage.toml");
    let path = scratch.file("storage.toml");
    let mut tally = Tally::default();
    for damage in cases(text.len(), true, n) {
        let mut bytes = text.to_vec();
        match damage {
            Damage::Truncate(len) => bytes.truncate(len),
            Damage::Bit(at) | Damage::Byte(at) => bytes[at] = damaged(damage, bytes[at]),
        }
        std::fs::write(&path, &bytes).unwrap();
        let outcome = guarded(
            || format!("configuration: {damage:?}"),
            text.len(),
            || match config::storage(&path).and_then(|options| options.check()) {
                Ok(_) => Shown::Same,
                Err(_) => Shown::Refused,
            },
        );
        tally.note(report, "configuration", damage, outcome, true);
    }
    tally.summarise(report, "configuration", text.len());
}
