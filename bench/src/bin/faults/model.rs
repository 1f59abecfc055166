//! Owns: what a simulated store is compared with: records that follow from a seed, and the frames that were logged.
//!
//! What must hold: what a start finds is what the first so many frames say, no fewer than were known durable and no
//! more than were written: each record once, in order, byte for byte; numbers, names and epochs as of the same frame.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tapestore::disk::Disk;
use tapestore::disk::sim::SimRng;
use tapestore_engine::Recovered;
use tapestore::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::manifest::PublisherState;
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{Kind, Name, Price, Record, Schema, schema};
use tapestore::sstable::{FileMeta, Table};
use tapestore::time::Ts;

/// Simulated time begins here.
pub const BEGIN: u64 = 1_700_000_000_000_000_000;
const HOUR: u64 = 3_600_000_000_000;

/// A kind that a program defines.
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

/// One record, by who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Who.
    pub publisher: u16,
    /// In which epoch.
    pub epoch: u32,
    /// Under which number.
    pub seq: u64,
}

/// Which records there are.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Everything follows from it.
    pub seed: u64,
    /// The kinds that occur.
    pub kinds: Vec<Kind>,
    /// One record in so many has bytes that should be zero and are not.
    pub odd: u64,
    /// One record in so many is as late as a month.
    pub late: u64,
}

impl Recipe {
    /// A recipe that follows from `seed`.
    pub fn new(seed: u64) -> Recipe {
        let mut rng = SimRng::new(seed ^ 0x7ec1_9e00);
        let all = [1, 2, 3, 6, 8, 11, 13, Signal::KIND.0];
        let mut kinds: Vec<Kind> = (0..1 + rng.below(3)).map(|_| Kind(all[rng.below(all.len() as u64) as usize])).collect();
        kinds.dedup();
        Recipe { seed, kinds, odd: [u64::MAX, 50, 5][rng.below(3) as usize], late: [u64::MAX, 200, 20][rng.below(3) as usize] }
    }

    /// The words of `sent`.
    pub fn words(&self, sent: Sent, out: &mut Vec<u64>) {
        let mix = u64::from(sent.publisher) << 56 ^ u64::from(sent.epoch) << 40 ^ sent.seq;
        let mut rng = SimRng::new(self.seed.wrapping_mul(0x9e37_79b9) ^ mix);
        let kind = self.kinds[rng.below(self.kinds.len() as u64) as usize];
        let Some(schema) = schema(kind) else { panic!("kind {} is not known", kind.0) };
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

/// What a frame of the log holds.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Records.
    Records(Vec<Sent>),
    /// So many new names.
    Names(usize),
    /// An epoch begins.
    Epoch(u16, u32),
    /// A kind is known.
    Kind,
}

/// The store as it must be.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The records, by LSN from 1.
    pub log: Vec<Sent>,
    /// How many names there are.
    pub names: usize,
    /// Publishers: epoch, last number, its LSN.
    pub publishers: BTreeMap<u16, (u32, u64, u64)>,
    /// Whether the kind is surely known.
    pub has_kind: bool,
}

impl State {
    /// Takes in a frame.
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

/// Instruments that records are of: the first so many, which each publisher finds registered.
pub const INSTRUMENTS: usize = 5;

/// The name of the `i`-th instrument.
pub fn name(i: usize) -> Name {
    format!("SIM:{i}").parse().unwrap()
}

/// What was logged.
#[derive(Clone, Debug)]
pub struct Model {
    /// Which records.
    pub recipe: Recipe,
    /// As of all frames before `frames`.
    pub base: State,
    /// What the log holds behind it.
    pub frames: Vec<Frame>,
    /// How many of the frames are known durable.
    pub durable: usize,
    /// A frame whose writing failed: it may be there or not.
    pub doubtful: Option<Frame>,
    /// Records that were let go of because of their age, surely or perhaps.
    pub gone: BTreeSet<u64>,
}

impl Model {
    /// Of an empty store.
    pub fn new(recipe: Recipe) -> Model {
        Model { recipe, base: State::default(), frames: Vec::new(), durable: 0, doubtful: None, gone: BTreeSet::new() }
    }

    /// As of all frames.
    pub fn state(&self) -> State {
        let mut state = self.base.clone();
        self.frames.iter().for_each(|f| state.apply(f));
        state
    }

    /// Notes that `file` is let go of.
    pub fn may_go(&mut self, disk: &dyn Disk, store: &Path, file: FileMeta) {
        let table = Table::open(disk, &store.join(tapestore::sstable::DIR), file).unwrap();
        let rows = table.verify(|block| {
            self.gone.extend(block.lsns());
            Ok(())
        });
        assert_eq!(rows.unwrap(), file.rows);
    }

    /// How many records were written, surely or perhaps.
    pub fn written(&self) -> u64 {
        let frames = self.frames.iter().chain(&self.doubtful);
        let counts = frames.map(|f| if let Frame::Records(sent) = f { sent.len() as u64 } else { 0 });
        self.base.log.len() as u64 + counts.sum::<u64>()
    }

    /// Notes what the store says that it has made durable.
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

    /// Notes that a start has found what `found` says; `all`: nothing may be missing.
    ///
    /// # Panics
    /// If that is not what the first so many frames say.
    pub fn settle(&mut self, found: &Found, all: bool) {
        let least = if all { self.frames.len() } else { self.durable };
        let mut frames = std::mem::take(&mut self.frames);
        frames.extend(self.doubtful.take());
        let mut frames = frames.into_iter();
        frames.by_ref().take(least).for_each(|f| self.base.apply(&f));
        let known = self.base.summary();
        while !found.is(&self.base) {
            let Some(frame) = frames.next() else {
                panic!("found {}; known durable {known}; written {}", found.summary(), self.base.summary())
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

/// What a start has found.
#[derive(Clone, Debug)]
pub struct Found {
    records: u64,
    names: usize,
    publishers: BTreeMap<u16, (u32, u64, u64)>,
}

impl Found {
    /// What `store` has.
    pub fn of(store: &Recovered, reader: &mut Reader, publishers: u16) -> Found {
        let symbols = reader.symbols().unwrap();
        symbols.refresh();
        let names = symbols.names();
        for (i, found) in names.iter().enumerate() {
            assert_eq!(*found, name(i), "instrument {}", i + 1);
        }
        let state = |p: u16| {
            let PublisherState { epoch, last, lsn, .. } = store.core.publisher(PublisherId(p));
            (epoch > Epoch(0)).then_some((p, (epoch.0, last.0, lsn.0)))
        };
        Found { records: store.started.records, names: names.len(), publishers: (1..=publishers).filter_map(state).collect() }
    }

    /// Whether it is what `state` says.
    pub fn is(&self, state: &State) -> bool {
        self.records == state.log.len() as u64 && self.names == state.names && self.publishers == state.publishers
    }

    fn summary(&self) -> String {
        format!("{} records, {} names, publishers {:?}", self.records, self.names, self.publishers)
    }
}

/// Every record of `state` is in `snapshot`, as it was sent and by whom.
///
/// # Panics
/// If one is not.
pub fn compare(snapshot: &mut Snapshot, model: &Model, state: &State) {
    assert_eq!(snapshot.last(), Lsn(state.log.len() as u64));
    let mut words = Vec::new();
    for (i, sent) in state.log.iter().enumerate() {
        let lsn = Lsn(i as u64 + 1);
        words.clear();
        let Some(row) = snapshot.get(lsn).unwrap() else {
            assert!(model.gone.contains(&lsn.0), "record {lsn} is not there");
            continue;
        };
        model.recipe.words(*sent, &mut words);
        assert!(row.record.words() == words, "record {lsn} is not what {sent:?} was");
        let arrival = snapshot.arrival(lsn).unwrap().unwrap_or_else(|| panic!("record {lsn} has no origin"));
        let from = (arrival.publisher, arrival.epoch, arrival.pub_seq);
        assert_eq!(from, (PublisherId(sent.publisher), Epoch(sent.epoch), PubSeq(sent.seq)), "record {lsn}");
    }
}

/// The files of history are those that the manifest names, and no other.
///
/// # Panics
/// If not.
pub fn compare_files(snapshot: &Snapshot, disk: &dyn Disk, store: &Path) {
    let there = disk.list(&store.join(tapestore::sstable::DIR)).unwrap();
    let name = |f: &tapestore::version::File| f.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mut named: Vec<String> = snapshot.history().files().iter().map(name).collect();
    named.sort();
    assert_eq!(there, named, "files that no edit names, or no files");
    let half_made = |n: &String| n.ends_with(".tmp");
    let left: Vec<_> = disk.list(store).unwrap().into_iter().filter(half_made).collect();
    assert!(left.is_empty(), "half-made files stay behind: {left:?}");
}

/// The series of `snapshot` together hold each record once, sorted; the files are whole, and the manifest counts what
/// is gone.
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
    assert_eq!(missing().count() as u64, manifest.expired, "records of too great an age are counted");
    let rows: u64 = snapshot.history().files().iter().map(|f| f.verify(|_| Ok(())).unwrap()).sum();
    assert_eq!(rows + manifest.expired, snapshot.history().covered().0, "each record is filed once");
}

/// What `reader` shows now.
pub fn snapshot(reader: &mut Reader) -> Snapshot {
    reader.snapshot(At::Appended).unwrap()
}
