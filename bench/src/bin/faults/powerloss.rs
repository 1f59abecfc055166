//! Owns: trials of the storage engine on a simulated disk and clock, one thread and one seed each: publishers that repeat,
//! overlap and skip batches; crashes at any call, torn and reordered writes, failing calls; after each, the model's check.
//!
//! What must hold: records acknowledged as durable are there, once, in order, byte for byte; records in the log of a killed
//! process are there at every level; a store that failed works again once the fault is gone.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use tapestore::bus::BatchHeader;
use tapestore::disk::sim::{Fault, SimDisk, SimRng};
use tapestore::error::{Error, Result};
use tapestore::lsn::{Epoch, Lsn, PubSeq, PublisherId};
use tapestore::reader::Reader;
use tapestore::record::{Depth10, Layout, Record};
use tapestore::shm::run_dir::RunDir;
use tapestore::time::Clock;
use tapestore::version::AtRest;
use tapestore::wal::{self, Appended, Spare, Spares};
use tapestore_engine::compaction;
use tapestore_engine::compaction::retention::{Rule, Rules};
use tapestore_engine::state::{BatchOutcome, Readiness};
use tapestore_engine::{self, Options, Recovered, World};

use crate::model::{self, Found, Frame, Model, Recipe, Sent, Signal};
use crate::report::Report;
use crate::scratch::{Scratch, panic_message, worker_count};
use crate::tally::{Counts, JumpClock, count};

/// Seeds that failed once; they run first.
/// - 166: recovery trusted a segment's head that the disk had lost in a failed sync because the page cache still held it.
const REGRESSIONS: &[u64] = &[166];

/// Number of publishers of a trial.
const PUBLISHERS: u16 = 3;

/// Runs [`REGRESSIONS`], then `n` trials with seeds from `seed` on. A single trial runs alone and prints its steps.
pub fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("powerloss");
    let regressions = if n == 1 { &[] } else { REGRESSIONS };
    let seeds: Vec<u64> = regressions.iter().copied().chain((0..n).map(|i| seed.wrapping_add(i))).collect();
    let (next, counts, began) = (AtomicU64::new(0), Counts::default(), Instant::now());
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..worker_count() {
            scope.spawn(|| {
                let scratch = Scratch::new();
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if let Err(what) = trial(seed, &scratch, &counts, n == 1) {
                        failures.lock().unwrap().push((seed, what));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    (failures.len()..seeds.len()).for_each(|_| report.pass());
    for (seed, what) in failures {
        report.fail(format!("seed {seed}: {what}"), format!("cargo run -p bench --bin faults -- powerloss --n 1 --seed {seed}"));
    }
    report.note(format!("{:.0} trials/s", seeds.len() as f64 / began.elapsed().as_secs_f64()));
    report.note(counts.summary());
    report
}

fn trial(seed: u64, scratch: &Scratch, counts: &Counts, is_verbose: bool) -> std::result::Result<(), String> {
    scratch.clear();
    let mut trial = Trial::new(seed, scratch, counts, is_verbose);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..1 + trial.rng.below(4) {
            trial.life(true);
        }
        trial.life(false);
        trial.last();
    }));
    outcome.map_err(|_| panic_message())
}

/// A publisher's own state.
#[derive(Clone, Copy, Debug, Default)]
struct Client {
    epoch: u32,
    sent: u64,
}

/// Retention rules, in some trials.
fn rules(rng: &mut SimRng) -> Rules {
    let rule = |keep: Option<&str>, bytes| Rule { kind: "*".into(), instruments: None, keep: keep.map(str::to_owned), bytes };
    let rules = match rng.below(8) {
        0 => vec![rule(Some("2h"), None)],
        1 => vec![rule(None, Some(20_000))],
        _ => Vec::new(),
    };
    Rules::new(&rules).unwrap()
}

/// A store and its expected state.
pub struct Trial<'a> {
    pub rng: SimRng,
    pub store: PathBuf,
    pub disk: SimDisk,
    clock: Arc<JumpClock>,
    options: Options,
    pub model: Model,
    clients: [Client; PUBLISHERS as usize],
    /// Largest batch, records.
    pub batch: u64,
    counts: &'a Counts,
    /// The last LSN that readers may have seen, and its timeline.
    shown: (Lsn, u64),
    /// Whether the disk may have lost non-durable writes since the last start.
    pub may_have_lost: bool,
    /// Whether the fault makes the disk lose writes.
    is_forgetful: bool,
    /// Options of compaction.
    compaction: compaction::Options,
    /// Retention rules.
    rules: Rules,
    /// Whether to print each step: for a single trial.
    is_verbose: bool,
}

/// A running store.
pub struct Store {
    pub at: Recovered,
    spares: Sender<Spare>,
    passed: Vec<Spare>,
    prepared: u64,
}

impl<'a> Trial<'a> {
    /// A trial before the first start of its store.
    pub fn new(seed: u64, scratch: &Scratch, counts: &'a Counts, is_verbose: bool) -> Trial<'a> {
        let mut rng = SimRng::new(seed);
        let mut recipe = Recipe::new(rng.next_u64());
        let batch = match rng.below(12) {
            // Long records, so that the log rolls and its segments are recycled.
            0 => {
                recipe.kinds = vec![Depth10::KIND];
                70
            }
            1..4 => 60,
            _ => 8,
        };
        Layout::of(Signal::SCHEMA_REF).and_then(|l| l.register()).unwrap();
        Trial {
            store: scratch.store(),
            disk: SimDisk::new(),
            clock: Arc::new(JumpClock::new()),
            options: scratch.options(),
            model: Model::new(recipe),
            clients: Default::default(),
            batch,
            counts,
            shown: (Lsn(0), 0),
            may_have_lost: false,
            is_forgetful: false,
            is_verbose,
            compaction: compaction::Options { runs_max: 2, rows_max: 1 + rng.below(200), ..compaction::Options::default() },
            rules: rules(&mut rng),
            rng,
        }
    }

    /// Disables compaction and retention.
    pub fn keep_all(&mut self) {
        self.compaction.runs_max = 64;
        self.rules = Rules::default();
    }

    /// Sets a random fault.
    fn arm(&mut self) {
        let within = if self.rng.below(3) == 0 { 30 } else { 120 };
        let call = self.disk.calls() + 1 + self.rng.below(within);
        let full = if self.rng.below(2) == 0 { ErrorKind::StorageFull } else { ErrorKind::Other };
        let fault = match self.rng.below(10) {
            0..4 => Some(Fault::PowerLoss),
            4 => Some(Fault::Once(full)),
            5 => Some(Fault::Forever(full)),
            6 => Some(Fault::Short(full)),
            7 => Some(Fault::Forget(ErrorKind::Other)),
            _ => None,
        };
        if self.is_verbose {
            println!("{fault:?} at call {call}");
        }
        if let Some(fault) = fault {
            self.disk.set_fault(call, fault);
        }
        self.is_forgetful = matches!(fault, Some(Fault::Forget(_)));
        if self.rng.below(8) == 0 {
            let look = self.disk.looks() + 1 + self.rng.below(200);
            self.disk.set_look_fault(look, ErrorKind::Other, self.rng.below(2) == 0);
        }
    }

    /// Runs the process until its end, with a fault if `faulty`.
    fn life(&mut self, faulty: bool) {
        if faulty {
            self.arm();
        }
        let outcome = self.live();
        if self.is_verbose {
            println!("faulty {faulty}: {outcome:?}, {} calls, {} looks", self.disk.calls(), self.disk.looks());
        }
        match outcome {
            Ok(()) => {}
            Err(Error::Io { .. } | Error::Halted { .. }) if faulty => count(&self.counts.failed, 1),
            Err(e) => panic!("{e}"),
        }
        self.note_shown();
        let power = faulty && (self.disk.is_off() || self.rng.below(2) == 0);
        self.disk.clear_faults();
        // A killed process loses no writes unless the disk lost them.
        self.may_have_lost |= power || self.is_forgetful;
        if !power {
            return count(&self.counts.killed, 1);
        }
        self.power();
    }

    /// Simulates a power loss.
    pub fn power(&mut self) {
        if self.is_verbose {
            println!("power loss");
        }
        count(&self.counts.power, 1);
        self.disk = self.disk.power_loss(self.rng.next_u64());
        if self.rng.below(4) > 0 {
            // The host rebooted: its shared memory is empty.
            self.shown = (Lsn(0), 0);
            if let Ok(run_dir) = RunDir::find(&self.store) {
                std::fs::remove_dir_all(run_dir.path()).unwrap();
            }
        }
    }

    pub fn note_shown(&mut self) {
        let control = RunDir::find(&self.store).and_then(|r| tapestore::shm::control::Control::open(&r.control()));
        if let Ok(control) = control
            && control.instance() % 2 == 0
        {
            self.shown = (control.applied(), control.timeline().0);
        }
    }

    fn recover(&self) -> Result<Recovered> {
        let disk = Arc::new(self.disk.clone());
        count(&self.counts.starts, 1);
        tapestore_engine::recover(self.options.clone(), &World { disk, clock: self.clock.clone(), store_id: 5, boot: 1 })
    }

    /// Starts the store, compares it with the model and marks it as serving.
    pub fn start(&mut self) -> Result<Store> {
        let rest = AtRest::read(&self.disk.copy(), &self.store);
        let at = self.recover()?;
        // A reader of the store at rest sees what recovery keeps.
        match rest {
            Ok(rest) => assert_eq!(rest.control.applied(), Lsn(at.started.records), "a store at rest and its next start agree"),
            // The first start has created it.
            Err(error) => assert!(matches!(error, Error::Missing { .. }) && at.started.records == 0, "{error}"),
        }
        at.announce();
        count(&self.counts.truncated, u64::from(at.started.truncated.is_some()));
        let (before, found) = (self.model.written(), at.started.records);
        count(&self.counts.lost, before.saturating_sub(found));
        self.compare(&at)?;
        let (spares, queue) = bounded(2);
        let mut store = Store { at, spares, passed: Vec::new(), prepared: 0 };
        store.at.state.writer.set_spares(Spares::Ahead(queue));
        Ok(store)
    }

    fn compare(&mut self, at: &Recovered) -> Result<()> {
        let control = &at.control;
        assert_eq!((control.durable(), control.applied()), (Lsn(at.started.records), Lsn(at.started.records)));
        if control.applied() < self.shown.0 {
            assert!(
                control.timeline().0 > self.shown.1,
                "records up to {} were visible and are gone on the same timeline",
                self.shown.0
            );
        }
        // The comparison reads a copy of the disk, which has no faults.
        let disk = Arc::new(self.disk.copy());
        let mut reader = Reader::open_on(disk.clone(), &self.store)?;
        let found = Found::of(at, &mut reader, PUBLISHERS);
        self.model.settle(&found, !self.may_have_lost);
        self.may_have_lost = false;
        let mut snapshot = model::snapshot(&mut reader);
        model::compare(&mut snapshot, &self.model, &self.model.base);
        model::compare_files(&snapshot, disk.as_ref(), &self.store);
        Ok(())
    }

    /// Serves until a fault or the end of the script.
    fn live(&mut self) -> Result<()> {
        let mut store = self.start()?;
        if self.rng.below(4) == 0 {
            // A second start without writes in between must find the same.
            drop(store);
            store = self.start()?;
        }
        self.attach(&mut store)?;
        for _ in 0..4 + self.rng.below(12) {
            self.clock.turn(&mut self.rng);
            self.turn(&mut store)?;
        }
        if self.rng.below(5) == 0 {
            self.stop(store)?;
            count(&self.counts.stopped, 1);
        }
        Ok(())
    }

    pub fn attach(&mut self, store: &mut Store) -> Result<()> {
        for i in 0..usize::from(PUBLISHERS) {
            let publisher = i as u16 + 1;
            let stored = store.at.state.publisher(PublisherId(publisher));
            if stored.epoch.0 == self.clients[i].epoch && stored.epoch.0 > 0 && self.rng.below(6) > 0 {
                // Resumed: it continues after storage's last record.
                self.clients[i].sent = stored.last.0;
                continue;
            }
            let above = Epoch(self.clients[i].epoch);
            if !self.can_log(store)? {
                return Ok(());
            }
            let next = stored.epoch.max(above).0 + 1;
            let made = store.at.state.begin_epoch(PublisherId(publisher), 7, above, self.clock.wall());
            let made = self.logged(Frame::Epoch(publisher, next), made)?;
            assert_eq!(made.0.epoch.0, next);
            self.appended(store, made.1);
            self.clients[i] = Client { epoch: next, sent: 0 };
        }
        if !self.can_log(store)? {
            return Ok(());
        }
        let known = self.model.state().names;
        if known < model::INSTRUMENTS {
            let names: Vec<_> = (known..model::INSTRUMENTS).map(model::name).collect();
            let made = store.at.state.instruments(&names, self.clock.wall());
            let (_, appended) = self.logged(Frame::Names(names.len()), made)?;
            appended.into_iter().for_each(|appended| self.appended(store, appended));
        }
        if !self.can_log(store)? {
            return Ok(());
        }
        let layout = Layout::of(Signal::SCHEMA_REF)?;
        let surely = self.model.state().has_kind;
        let made = store.at.state.kind(&layout, self.clock.wall());
        if let Some(appended) = self.logged(Frame::Kind, made)? {
            assert!(!surely, "a stored kind is registered as new");
            self.appended(store, appended);
        } else {
            self.model.frames.pop();
        }
        self.sync(store)
    }

    /// Whether control entries can be appended now.
    pub fn can_log(&mut self, store: &mut Store) -> Result<bool> {
        store.prepare(&self.disk, &self.store, self.counts);
        store.at.state.writer.ready()
    }

    /// Records in the model that `frame` was appended, or may have been.
    fn logged<T>(&mut self, frame: Frame, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(made) => {
                self.model.frames.push(frame);
                Ok(made)
            }
            Err(e) => {
                self.model.doubtful = Some(frame);
                Err(e)
            }
        }
    }

    fn appended(&mut self, store: &mut Store, appended: Appended) {
        if let Some(opened) = appended.opened {
            store.at.syncer.opened(opened);
        }
        self.model.acknowledged(store.at.control.durable());
    }

    /// Makes everything durable and publishes the watermarks, as the sync agent does.
    pub fn sync(&mut self, store: &mut Store) -> Result<()> {
        let end = store.at.state.writer.end();
        store.at.syncer.sync(end)?;
        store.at.control.set_durable(end.lsn, end.position);
        store.at.control.set_committed(end.lsn);
        self.model.durable = self.model.frames.len();
        Ok(())
    }

    fn turn(&mut self, store: &mut Store) -> Result<()> {
        if !self.can_log(store)? {
            return Ok(());
        }
        if self.rng.below(8) == 0 {
            self.name(store)?;
        }
        if self.rng.below(12) == 0 {
            store.at.state.memtables.seal_soon();
        }
        if store.at.state.is_ready()? != Readiness::Ready {
            self.sync(store)?;
            self.flush(store);
            return Ok(());
        }
        let batches = 1 + self.rng.below(4);
        self.send(store, batches)?;
        match self.rng.below(6) {
            0 | 1 => self.sync(store)?,
            2 => store.at.syncer.record()?,
            _ => {}
        }
        if self.rng.below(2) == 0 {
            self.flush(store);
        }
        Ok(())
    }

    /// Appends a frame of up to `batches` batches.
    pub fn send(&mut self, store: &mut Store, batches: u64) -> Result<()> {
        let mut sent = Vec::new();
        for _ in 0..batches {
            self.offer(store, &mut sent);
        }
        if sent.is_empty() {
            return Ok(());
        }
        count(&self.counts.records, sent.len() as u64);
        let made = store.at.state.append(self.clock.wall());
        let Some(frame) = self.logged(Frame::Records(sent), made)? else { panic!("a frame with accepted batches is empty") };
        store.at.sealed.extend(frame.sealed);
        self.appended(store, frame.appended);
        Ok(())
    }

    /// Registers names, some of them already registered.
    pub fn name(&mut self, store: &mut Store) -> Result<()> {
        let known = self.model.state().names;
        let (from, new) = (known - self.rng.below(known as u64 + 1).min(3) as usize, self.rng.below(4) as usize);
        let names: Vec<_> = (from..known + new).map(model::name).collect();
        let made = store.at.state.instruments(&names, self.clock.wall());
        let (ids, appended) = self.logged(Frame::Names(new), made)?;
        assert!(ids.iter().enumerate().all(|(i, id)| id.0 as usize == from + i + 1), "names {from} on are {ids:?}");
        assert_eq!(appended.is_some(), new > 0);
        match appended {
            Some(appended) => self.appended(store, appended),
            None => drop(self.model.frames.pop()),
        }
        if self.rng.below(2) == 0 { self.sync(store) } else { Ok(()) }
    }

    /// Passes a batch to the store: mostly the next records, sometimes repeated ones, sometimes with a jump.
    fn offer(&mut self, store: &mut Store, sent: &mut Vec<Sent>) {
        let i = self.rng.below(u64::from(PUBLISHERS)) as usize;
        let (publisher, client) = (i as u16 + 1, self.clients[i]);
        let back = if self.rng.below(3) == 0 { self.rng.below(client.sent.min(20) + 1) } else { 0 };
        let jump = if back == 0 && self.rng.below(10) == 0 { 1 + self.rng.below(5) } else { 0 };
        let (first, count) = (client.sent + 1 - back + jump, 1 + self.rng.below(self.batch));
        let one = |seq| Sent { publisher, epoch: client.epoch, seq };
        let mut words = Vec::new();
        (first..first + count).for_each(|seq| self.model.recipe.words(one(seq), &mut words));
        if words.len() > tapestore::bus::BATCH_WORDS_MAX {
            return;
        }
        let header = BatchHeader::new(PublisherId(publisher), Epoch(client.epoch), PubSeq(first), count as u32);
        match store.at.state.accept(header, &words) {
            BatchOutcome::Accepted => {
                assert!(jump == 0 && first + count - 1 > client.sent, "{first} to {}, after {}", first + count - 1, client.sent);
                sent.extend((client.sent + 1..first + count).map(one));
                self.clients[i].sent = first + count - 1;
            }
            BatchOutcome::Duplicate => assert!(first + count - 1 <= client.sent && back > 0),
            BatchOutcome::Gap(expected) => assert!(jump > 0 && expected == PubSeq(client.sent + 1)),
            BatchOutcome::FrameFull => assert!(!sent.is_empty()),
            other => panic!("{other:?}"),
        }
    }

    /// Flushes durable MemTables, as the flush agent does. A failure ends nothing.
    pub fn flush(&mut self, store: &mut Store) {
        while let Some(oldest) = store.at.sealed.front() {
            let control = &store.at.control;
            if control.durable() < oldest.last || control.durable_position() < oldest.mark.chain.position {
                return;
            }
            let Ok(flushed) = store.at.flusher.file(oldest, self.clock.as_ref()) else { return };
            store.at.sealed.pop_front();
            store.at.state.memtables.flushed(flushed.table, flushed.seq);
            store.at.flusher.unlink(flushed.table);
            count(&self.counts.flushed, 1);
            store.recycle(&self.disk, &self.store);
        }
        self.compact(store);
    }

    /// Compacts and expires SSTables, as the flush agent requests. A failure ends nothing.
    fn compact(&mut self, store: &mut Store) {
        while self.rng.below(4) > 0 {
            let merged = store.at.flusher.compact_one(&self.compaction, &self.rules).unwrap_or(false);
            store.at.state.memtables.edited(store.at.flusher.manifest().state().seq);
            if !merged {
                break;
            }
            count(&self.counts.merged, 1);
        }
        if !self.rules.is_empty() {
            let drops = self.rules.drops(store.at.flusher.manifest().state());
            drops.iter().for_each(|d| self.model.may_go(&self.disk.copy(), &self.store, d.file));
            if let Ok(Some(seq)) = store.at.flusher.expire(&self.rules) {
                count(&self.counts.dropped, drops.len() as u64);
                store.at.state.memtables.edited(seq);
            }
        }
    }

    /// Stops cleanly, as the process does.
    pub fn stop(&mut self, mut store: Store) -> Result<()> {
        self.sync(&mut store)?;
        store.at.syncer.record()?;
        let meta = wal::Meta { clean: true, durable: store.at.syncer.durable(), ..*store.at.meta.meta() };
        store.at.meta.update(meta)?;
        store.at.control.set_tables(&[], store.at.flusher.manifest().state().seq);
        RunDir::find(&self.store)?.sweep(None).map(drop)
    }

    /// Without faults, flushes everything and compares it with the sent records.
    pub fn last(&mut self) {
        let mut store = self.start().unwrap();
        store.at.state.memtables.seal_soon();
        store.prepare(&self.disk, &self.store, self.counts);
        assert_eq!(store.at.state.is_ready().unwrap(), Readiness::Ready);
        self.attach(&mut store).unwrap();
        while store.at.sealed.is_empty() {
            self.send(&mut store, 1).unwrap();
        }
        self.sync(&mut store).unwrap();
        self.flush(&mut store);
        assert!(store.at.sealed.is_empty(), "a MemTable is not flushed without a fault");
        let state = self.model.state();
        let mut reader = Reader::open_on(Arc::new(self.disk.clone()), &self.store).unwrap();
        let mut snapshot = model::snapshot(&mut reader);
        model::compare(&mut snapshot, &self.model, &state);
        model::compare_series(&mut snapshot, &self.model, store.at.flusher.manifest().state());
    }
}

impl Store {
    /// Prepares segments ahead of the log, as the prepare agent does.
    fn prepare(&mut self, disk: &SimDisk, dir: &Path, counts: &Counts) {
        while !self.spares.is_full() {
            let spare = match self.passed.pop() {
                Some(spare) => {
                    count(&counts.reused, 1);
                    spare
                }
                None => {
                    self.prepared += 1;
                    let size = self.at.meta.meta().segment_size;
                    let Ok(spare) = wal::prepare(disk, &dir.join(wal::DIR), self.prepared, size, &mut |f| f.sync()) else {
                        return;
                    };
                    spare
                }
            };
            self.spares.try_send(spare).unwrap();
        }
    }

    /// Recycles the log's passed segments.
    fn recycle(&mut self, disk: &SimDisk, dir: &Path) {
        for first in self.at.flusher.passed_segments().unwrap_or_default() {
            if let Ok(spare) = wal::recycle(disk, &dir.join(wal::DIR), first) {
                self.passed.push(spare);
            }
        }
    }
}
