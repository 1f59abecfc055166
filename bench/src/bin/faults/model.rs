//! Owns: the model of a simulated store: records derived from a seed, and the appended frames.
//!
//! What must hold: a start finds a prefix of the frames, at least the durable ones and at most the written ones: each record
//! once, in order, byte for byte; numbers, names and epochs as of the same frame.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tapestore::disk::Disk;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::manifest::PublisherState;
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{Kind, Name, Price, Record, Schema, schema};
use tapestore::sstable::{FileMeta, Table};
use tapestore::time::Ts;
use tapestore_engine::Recovered;

/// Start of simulated time.
pub const BEGIN: u64 = 1_700_000_000_000_000_000;
const HOUR: u64 = 3_600_000_000_000;

/// A user kind.
#[derive(Clone, Copy, Debug, Record)]
#[repr(C)]
#[record(kind = 0x80f1, name = "fault-signal", index = ts_recv, find(order_id))]
pub struct Signal {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    order_id: u64,
    fair: [Price; 2],
    model: [u8; 12],
    reserved: [u8; 4],
}

/// The identity of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its publisher.
    pub publisher: u16,
    /// Its epoch.
    pub epoch: u32,
    /// Its pub_seq.
    pub seq: u64,
}

/// Parameters of the generated records.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Seed of all records.
    pub seed: u64,
    /// The generated kinds.
    pub kinds: Vec<Kind>,
    /// One record in so many has non-zero reserved bytes.
    pub odd: u64,
    /// One record in so many is up to 40 days late.
    pub late: u64,
}

impl Recipe {
    /// A recipe derived from `seed`.
    pub fn new(seed: u64) -> Recipe {
        let mut rng = SimRng::new(seed ^ 0x7ec1_9e00);
        let all = [1, 2, 3, 6, 8, 11, 13, Signal::KIND.0];
        let mut kinds: Vec<Kind> = (0..1 + rng.below(3)).map(|_| Kind(all[rng.below(all.len() as u64) as usize])).collect();
        kinds.dedup();
        Recipe { seed, kinds, odd: [u64::MAX, 50, 5][rng.below(3) as usize], late: [u64::MAX, 200, 20][rng.below(3) as usize] }
    }

    /// Appends the words of `sent` to `out`.
    pub fn words(&self, sent: Sent, out: &mut Vec<u64>) {
        let mix = u64::from(sent.publisher) << 56 ^ u64::from(sent.epoch) << 40 ^ sent.seq;
        let mut rng = SimRng::new(self.seed.wrapping_mul(0x9e37_79b9) ^ mix);
        let kind = self.kinds[rng.below(self.kinds.len() as u64) as usize];
        let Some(schema) = schema(kind) else { panic!("kind {} is not registered", kind.0) };
        let instrument = 1 + rng.below(INSTRUMENTS as u64);
        let start = out.len();
        out.push(u64::from(kind.0) | rng.below(3) << 16 | instrument << 32);
        out.extend((1..schema.words).map(|_| rng.next_u64() >> 24));
        out[start + schema.index_word] = self.time(sent.seq, &mut rng);
        let odd = self.odd != u64::MAX && rng.below(self.odd) == 0;
        clear_reserved(schema, &mut out[start..], odd);
    }

    fn time(&self, seq: u64, rng: &mut SimRng) -> u64 {
        let now = BEGIN + seq * 400_000_000;
        match rng.below(64) {
            0 => u64::MAX,
            1 => now + 240 * HOUR,
            2..8 => now - rng.below(3 * HOUR),
            _ if self.late != u64::MAX && rng.below(self.late) == 0 => now - rng.below(960 * HOUR),
            _ => now + rng.below(1_000_000),
        }
    }
}

fn clear_reserved(schema: &Schema, words: &mut [u64], odd: bool) {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    for column in schema.reserved() {
        let value = if odd { 0x5a } else { 0 };
        bytes[column.offset..column.offset + column.of.size()].fill(value);
    }
}

/// The contents of a frame.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Records.
    Records(Vec<Sent>),
    /// Number of new names.
    Names(usize),
    /// Begin of an epoch: publisher, epoch.
    Epoch(u16, u32),
    /// The user kind.
    Kind,
}

/// The expected state of the store.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The records, by LSN from 1.
    pub log: Vec<Sent>,
    /// Number of names.
    pub names: usize,
    /// Publishers: epoch, last pub_seq, its LSN.
    pub publishers: BTreeMap<u16, (u32, u64, u64)>,
    /// Whether the user kind is surely registered.
    pub has_kind: bool,
}

impl State {
    /// Applies a frame.
    pub fn apply(&mut self, frame: &Frame) {
        match frame {
            Frame::Records(sent) => {
                for one in sent {
                    self.log.push(*one);
                    self.publishers.insert(one.publisher, (one.epoch, one.seq, self.log.len() as u64));
                }
            }
            Frame::Names(count) => self.names += count,
            Frame::Epoch(publisher, epoch) => {
                self.publishers.insert(*publisher, (*epoch, 0, 0));
            }
            Frame::Kind => self.has_kind = true,
        }
    }
}

/// Number of instruments of the records; registered before any record.
pub const INSTRUMENTS: usize = 5;

/// The name of the `i`-th instrument.
pub fn name(i: usize) -> Name {
    format!("SIM:{i}").parse().unwrap()
}

/// The appended frames and the expected state.
#[derive(Clone, Debug)]
pub struct Model {
    /// Parameters of the records.
    pub recipe: Recipe,
    /// The state before `frames`.
    pub base: State,
    /// The frames after `base`.
    pub frames: Vec<Frame>,
    /// Number of durable frames.
    pub durable: usize,
    /// A frame whose write failed: it may be in the log or not.
    pub doubtful: Option<Frame>,
    /// LSNs of records that retention dropped or may have dropped.
    pub gone: BTreeSet<u64>,
}

impl Model {
    /// The model of an empty store.
    pub fn new(recipe: Recipe) -> Model {
        Model { recipe, base: State::default(), frames: Vec::new(), durable: 0, doubtful: None, gone: BTreeSet::new() }
    }

    /// The state after all frames.
    pub fn state(&self) -> State {
        let mut state = self.base.clone();
        self.frames.iter().for_each(|f| state.apply(f));
        state
    }

    /// Records that retention may drop the SSTable `file`.
    pub fn may_go(&mut self, disk: &dyn Disk, store: &Path, file: FileMeta) {
        let table = Table::open(disk, &store.join(tapestore::sstable::DIR), file).unwrap();
        let rows = table.verify(|block| {
            self.gone.extend(block.lsns());
            Ok(())
        });
        assert_eq!(rows.unwrap(), file.rows);
    }

    /// Number of records that were written or may have been.
    pub fn written(&self) -> u64 {
        let frames = self.frames.iter().chain(&self.doubtful);
        let counts = frames.map(|f| if let Frame::Records(sent) = f { sent.len() as u64 } else { 0 });
        self.base.log.len() as u64 + counts.sum::<u64>()
    }

    /// Records the durable watermark `lsn` of the store.
    pub fn acknowledged(&mut self, lsn: Lsn) {
        let mut records = self.base.log.len() as u64;
        for (i, frame) in self.frames.iter().enumerate() {
            if let Frame::Records(sent) = frame {
                records += sent.len() as u64;
                if records <= lsn.0 {
                    self.durable = self.durable.max(i + 1);
                }
            }
        }
    }

    /// Settles the model on the state that a start found; with `all`, no frame may be missing.
    ///
    /// # Panics
    /// If `found` is not the state after a prefix of the frames.
    pub fn settle(&mut self, found: &Found, all: bool) {
        let least = if all { self.frames.len() } else { self.durable };
        let mut frames = std::mem::take(&mut self.frames);
        frames.extend(self.doubtful.take());
        let mut frames = frames.into_iter();
        frames.by_ref().take(least).for_each(|f| self.base.apply(&f));
        let durable = self.base.summary();
        while !found.is(&self.base) {
            let Some(frame) = frames.next() else {
                panic!("found {}; durable {durable}; written {}", found.summary(), self.base.summary())
            };
            self.base.apply(&frame);
        }
        self.durable = 0;
    }
}

impl State {
    fn summary(&self) -> String {
        let State { log, names, publishers, has_kind } = self;
        format!("{} records, {names} names, kind {has_kind}, publishers {publishers:?}", log.len())
    }
}

/// The state that a start found.
#[derive(Clone, Debug)]
pub struct Found {
    records: u64,
    names: usize,
    publishers: BTreeMap<u16, (u32, u64, u64)>,
}

impl Found {
    /// The state of `store`.
    pub fn of(store: &Recovered, reader: &mut Reader, publishers: u16) -> Found {
        let symbols = reader.symbols().unwrap();
        symbols.refresh();
        let names = symbols.names();
        for (i, found) in names.iter().enumerate() {
            assert_eq!(*found, name(i), "instrument {}", i + 1);
        }
        let state = |p: u16| {
            let PublisherState { epoch, last, lsn, .. } = store.state.publisher(PublisherId(p));
            (epoch > Epoch(0)).then_some((p, (epoch.0, last.0, lsn.0)))
        };
        Found { records: store.started.records, names: names.len(), publishers: (1..=publishers).filter_map(state).collect() }
    }

    /// Whether it equals `state`.
    pub fn is(&self, state: &State) -> bool {
        self.records == state.log.len() as u64 && self.names == state.names && self.publishers == state.publishers
    }

    fn summary(&self) -> String {
        format!("{} records, {} names, publishers {:?}", self.records, self.names, self.publishers)
    }
}

/// Checks that `snapshot` holds every record of `state`, as sent, with its publisher.
///
/// # Panics
/// If a record differs or is missing.
pub fn compare(snapshot: &mut Snapshot, model: &Model, state: &State) {
    assert_eq!(snapshot.last(), Lsn(state.log.len() as u64));
    let mut words = Vec::new();
    for (i, sent) in state.log.iter().enumerate() {
        let lsn = Lsn(i as u64 + 1);
        words.clear();
        let Some(row) = snapshot.get(lsn).unwrap() else {
            assert!(model.gone.contains(&lsn.0), "record {lsn} is missing");
            continue;
        };
        model.recipe.words(*sent, &mut words);
        assert!(row.record.words() == words, "record {lsn} differs from {sent:?}");
        let arrival = snapshot.arrival(lsn).unwrap().unwrap_or_else(|| panic!("record {lsn} has no origin"));
        let from = (arrival.publisher, arrival.epoch, arrival.pub_seq);
        assert_eq!(from, (PublisherId(sent.publisher), Epoch(sent.epoch), PubSeq(sent.seq)), "record {lsn}");
    }
}

/// Checks that the SSTables on disk are exactly those that the manifest names.
///
/// # Panics
/// If not.
pub fn compare_files(snapshot: &Snapshot, disk: &dyn Disk, store: &Path) {
    let there = disk.list(&store.join(tapestore::sstable::DIR)).unwrap();
    let name = |f: &tapestore::version::File| f.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mut named: Vec<String> = snapshot.history().files().iter().map(name).collect();
    named.sort();
    assert_eq!(there, named, "SSTables on disk and in the manifest differ");
    let is_temporary = |n: &String| n.ends_with(".tmp");
    let left: Vec<_> = disk.list(store).unwrap().into_iter().filter(is_temporary).collect();
    assert!(left.is_empty(), "temporary files are left behind: {left:?}");
}

/// Checks that the series of `snapshot` together hold each record once, sorted; that the SSTables verify; and that the
/// manifest counts the expired records.
///
/// # Panics
/// If not.
pub fn compare_series(snapshot: &mut Snapshot, model: &Model, manifest: &tapestore::manifest::State) {
    let mut seen = vec![false; snapshot.last().0 as usize];
    for series in snapshot.series().unwrap() {
        let (mut scan, mut last) = (snapshot.scan(series, TimeRange::ALL), (Ts(0), Lsn(0)));
        while let Some(row) = scan.next().unwrap() {
            assert!(last < (row.index_time, row.lsn), "{series:?} is not sorted at record {}", row.lsn);
            last = (row.index_time, row.lsn);
            let of = Series { instrument: row.record.instrument(), kind: row.record.kind() };
            assert!(of == series && !std::mem::replace(&mut seen[row.lsn.0 as usize - 1], true), "record {}", row.lsn);
        }
        if last.1 > Lsn(0) {
            let row = snapshot.as_of(series, Ts(u64::MAX)).unwrap();
            assert_eq!(row.map(|r| (r.index_time, r.lsn)), Some(last), "{series:?}");
        }
    }
    let missing = || (1u64..).zip(&seen).filter(|(_, s)| !**s).map(|(lsn, _)| lsn);
    assert!(missing().all(|lsn| model.gone.contains(&lsn)), "records are in no series");
    assert_eq!(missing().count() as u64, manifest.expired, "the manifest's count of expired records is wrong");
    let rows: u64 = snapshot.history().files().iter().map(|f| f.verify(|_| Ok(())).unwrap()).sum();
    assert_eq!(rows + manifest.expired, snapshot.history().covered().0, "not every record is in exactly one SSTable");
}

/// A snapshot at `Appended`.
pub fn snapshot(reader: &mut Reader) -> Snapshot {
    reader.snapshot(At::Appended).unwrap()
}
