//! Owns: what a load needs, computed from the layouts of the log, MemTables and SSTables and from the options of storage.
//!
//! What must hold: every number follows from the code that writes the bytes, or names the figure of `bench/FIGURES.md` that it was
//! measured as. A test compares them with a store.

use prost::Message;
use serde::Serialize;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::memtable::size::{Share, rows_max};
use tapestore::record::Schema;
use tapestore::shm::{bell, control, kinds, symbols};
use tapestore::sstable::{Content, Window};
use tapestore::wal::format::{FRAME_PAYLOAD_MAX, FRAME_RECORDS_MAX, HEADER_LEN, RUN_LEN};
use tapestore::{bus, publisher};
use tapestore_engine::consensus::message::{FrameHead, Raft};
use tapestore_engine::{Options, budget, space};

use super::load::Load;
use crate::doctor::fsync::Cost;
use crate::doctor::limits::{IDLE_DESCRIPTORS, OWN_MAPS_OF_READER};
use crate::exit::Outcome;
use crate::replication::wire;

/// Seconds to read a GiB of log at a start, and a start without a log (`bench/FIGURES.md`, Start after SIGKILL).
const RECOVER_GIB: f64 = 1.7;
const RECOVER_LEAST: f64 = 0.33;
/// Bytes of SSTables written for each byte flushed (`bench/FIGURES.md`, Compaction: write amplification).
const AMPLIFICATION: f64 = 2.07;
/// Private memory of an idle storage process, and for each row of an SSTable while a merge writes it (page `operations`, Sizing).
const PRIVATE: u64 = 40 << 20;
const PRIVATE_A_ROW: u64 = 60;
/// Records a second that one host accepted, single ones and in batches of 256 (`bench/FIGURES.md`, Live), and with one and with two
/// other hosts on the same two cores (Several hosts).
const INGEST_SINGLE: u64 = 1_800_000;
const INGEST_BATCHES: u64 = 6_700_000;
const INGEST_PAIR: u64 = 1_500_000;
const INGEST_THREE: u64 = 300_000;
const LARGE_BATCH: u64 = 256;
/// Segments beside those with records: the one that is being written, two that are prepared, two that are reused next.
const SEGMENTS_BESIDE: u64 = 5;
/// Days that a merge to thirty days takes together, if they have at most the rows of so many full SSTables.
const LONG_DAYS: u64 = 30;
const LONG_FILES: u64 = 4;
/// Bytes that HTTP/2 and gRPC put before a message, and TLS around it.
const WIRE_HEAD: u64 = 9 + 5 + 22;
/// Bytes on an Ethernet wire, and those of them that TCP carries, of a full packet.
const PACKET: f64 = 1538.0;
const PACKET_PAYLOAD: f64 = 1448.0;

/// Bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DiskNeeds {
    /// SSTables of all days.
    pub sstables: u64,
    /// SSTables of one day.
    pub sstables_a_day: u64,
    /// The log: segments with records that are in MemTables, and those beside.
    pub log: u64,
    /// Log kept for hosts that lag behind.
    pub log_for_members: u64,
    /// What the largest merge writes before it removes what it read.
    pub compaction: u64,
    /// The file that is removed when a flush has no room.
    pub ballast: u64,
    /// What is kept free (`space-min`).
    pub kept_free: u64,
    /// All of these.
    pub total: u64,
    /// A backup on the same file system: hard links of SSTables, and a copy of the log.
    pub backup_linked: u64,
    /// A backup on another one, or with `--copy`.
    pub backup_copied: u64,
    /// Bytes of SSTables a record, on average.
    pub sstable_bytes_a_record: f64,
    /// Bytes of log a record.
    pub log_bytes_a_record: f64,
    /// Bytes written a second: log, flushes and merges.
    pub written_a_second: u64,
    /// Of these, by merges.
    pub merged_a_second: u64,
}

/// Bytes of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SharedNeeds {
    /// One MemTable.
    pub memtable: u64,
    /// MemTables at most.
    pub memtables_max: u64,
    /// The queues to storage of all publishers.
    pub ingest_queues: u64,
    /// The queues to live subscribers of all publishers, once there is a subscriber.
    pub live_queues: u64,
    /// Names of instruments.
    pub instruments: u64,
    /// Control page, bells, kinds.
    pub control: u64,
    /// All of these.
    pub total: u64,
}

/// Private memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryNeeds {
    /// Storage, while it merges.
    pub storage: u64,
    /// Each publisher: its ring.
    pub publisher: u64,
    /// Storage and all publishers.
    pub total: u64,
}

/// Descriptors and memory maps of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LimitNeeds {
    /// Open files of storage.
    pub storage_descriptors: u64,
    /// Memory maps of storage.
    pub storage_maps: u64,
    /// SSTables, at most.
    pub sstables: u64,
    /// Memory maps of a reader.
    pub reader_maps: u64,
}

/// Syncs of the log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SyncNeeds {
    /// Syncs a second that the level asks for, if none is shared.
    pub wanted_a_second: f64,
    /// Syncs a second that this disk does one after the other, if it was measured.
    pub disk_a_second: Option<u64>,
    /// Bytes appended while the longest sync that was measured ran; `None`: not measured.
    pub appended_in_longest: Option<u64>,
    /// Records that one publisher stores a second if it waits for each batch; `None`: not measured, or it waits for no sync.
    pub waiting_publisher: Option<u64>,
    /// Bytes that a loss of power can lose of what is acknowledged at this level.
    pub exposed_bytes: u64,
}

/// Bytes a second between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkNeeds {
    /// From the leader to each of the others.
    pub to_each: u64,
    /// From the leader to all of them.
    pub from_leader: u64,
    /// Bytes of a frame's message, and of the frame.
    pub message: u64,
    /// Bytes of a frame.
    pub frame: u64,
}

/// What happens when something stops.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TimeNeeds {
    /// Log that a start after a kill reads.
    pub recovery_log: u64,
    /// Seconds of that start.
    pub recovery_seconds: f64,
    /// Records that one MemTable holds.
    pub memtable_records: u64,
    /// Seconds until the MemTables are full, if nothing is flushed.
    pub memtables_seconds: f64,
    /// Seconds until publishers are under back-pressure, if nothing is synced.
    pub unsynced_seconds: f64,
    /// Seconds until the rings of the publishers are full after that.
    pub rings_seconds: f64,
}

/// What a load needs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// Records of all days.
    pub records: u64,
    /// Records a second that were measured of such hosts.
    pub measured_rate: u64,
    /// On disk.
    pub disk: DiskNeeds,
    /// In shared memory.
    pub shared_memory: SharedNeeds,
    /// Private memory.
    pub memory: MemoryNeeds,
    /// Limits of a process.
    pub limits: LimitNeeds,
    /// Syncs.
    pub syncs: SyncNeeds,
    /// Between hosts; `None` on a single one.
    pub network: Option<NetworkNeeds>,
    /// When something stops.
    pub times: TimeNeeds,
}

/// Bytes of a frame with `records` records of `bytes` bytes each.
fn frame_len(records: u64, bytes: f64) -> u64 {
    let payload = (records as f64 * bytes).ceil() as u64;
    (HEADER_LEN + RUN_LEN as u64 + payload).next_multiple_of(HEADER_LEN)
}

/// Records of a batch that one frame takes.
fn frame_records(load: &Load) -> u64 {
    let most = (FRAME_PAYLOAD_MAX - RUN_LEN) as f64 / load.record_bytes();
    load.batch.min(u64::from(FRAME_RECORDS_MAX)).min(most as u64).max(1)
}

/// Bytes of log a record: a frame for each batch, which is the most.
fn log_bytes(load: &Load) -> f64 {
    let records = frame_records(load);
    frame_len(records, load.record_bytes()) as f64 / records as f64
}

/// SSTables of one kind in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Files {
    count: u64,
    bytes: u64,
}

/// The SSTables of one run of `rows` rows of `schema`, beside which there are `records` records of all kinds.
fn files(load: &Load, schema: &'static Schema, rows: u64, records: u64, options: &Options) -> Outcome<Files> {
    if rows == 0 {
        return Ok(Files { count: 0, bytes: 0 });
    }
    let count = rows.div_ceil(options.compaction.rows_max);
    let each = rows.div_ceil(count);
    // Of several publishers, which send in turns, each batch is a run where it has a row of the file.
    let batches = records as f64 / load.batch as f64;
    let met = 1.0 - (1.0 - (each as f64 / records as f64).min(1.0)).powf(load.batch as f64);
    let runs = if load.publishers == 1 { 1 } else { ((batches * met).ceil() as u64).clamp(1, each) };
    let series = load.instruments.div_ceil(count).min(each);
    let content = Content { rows: each, series, lsns: records, runs };
    Ok(Files { count, bytes: content.file_len(schema)? * count })
}

/// SSTables of all days and of one, and what a merge writes at most.
struct History {
    bytes: u64,
    day: u64,
    merge: u64,
    count: u64,
}

fn history(load: &Load, options: &Options) -> Outcome<History> {
    let mut all = History { bytes: 0, day: 0, merge: 0, count: 0 };
    for (schema, part) in &load.kinds {
        let rows = (load.records_a_day() as f64 * part).ceil() as u64;
        let day = files(load, schema, rows, load.records_a_day(), options)?;
        let (months, rest) = (load.days / LONG_DAYS, load.days % LONG_DAYS);
        let is_long = months > 0 && rows * LONG_DAYS <= LONG_FILES * options.compaction.rows_max;
        let month = if is_long {
            files(load, schema, rows * LONG_DAYS, load.records_a_day() * LONG_DAYS, options)?
        } else {
            Files { count: day.count * LONG_DAYS, bytes: day.bytes * LONG_DAYS }
        };
        all.day += day.bytes;
        all.bytes += month.bytes * months + day.bytes * rest;
        all.merge = all.merge.max(if is_long { month.bytes } else { day.bytes });
        // Of the newest day the hours are not merged yet.
        let hours = (load.seconds_a_day * 1e9 / Window::LENGTHS.first().map_or(1.0, |hour| *hour as f64)).ceil() as u64;
        all.count += month.count * months + day.count * rest + hours * options.compaction.runs_max as u64;
    }
    Ok(all)
}

/// Records that a MemTable holds.
fn memtable_records(load: &Load, options: &Options) -> u64 {
    let shares: Vec<Share> = load
        .kinds
        .iter()
        .map(|(schema, part)| Share { words: schema.words as u32, part: *part, series: load.instruments })
        .collect();
    rows_max(options.memtable_size, &shares, frame_records(load))
}

/// Bytes of the message with one frame of `frame` bytes.
fn message_len(frame: u64) -> Outcome<u64> {
    // Numbers of a store that has run for months: small ones take fewer bytes.
    let large = 1u64 << 40;
    let head = FrameHead { kind: 0, term: 1 << 20, index: large, position: large, len: u32::MAX, header_crc: u32::MAX };
    let raft = Raft {
        term: 1 << 20,
        log_term: 1 << 20,
        index: large,
        commit: large,
        commit_term: 1 << 20,
        heads: vec![head],
        ..Raft::default()
    };
    let envelope = wire::to_proto(&raft, vec![0; usize::try_from(frame).unwrap_or(0)])?;
    Ok(envelope.encoded_len() as u64 + WIRE_HEAD)
}

fn network(load: &Load) -> Outcome<Option<NetworkNeeds>> {
    if load.hosts < 2 {
        return Ok(None);
    }
    let records = frame_records(load);
    let frame = frame_len(records, load.record_bytes());
    let message = message_len(frame)?;
    let to_each = (load.rate / records as f64 * message as f64 * PACKET / PACKET_PAYLOAD).ceil() as u64;
    Ok(Some(NetworkNeeds { to_each, from_leader: to_each * (load.hosts - 1), message, frame }))
}

fn syncs(load: &Load, options: &Options, cost: Option<&Cost>) -> SyncNeeds {
    let bytes = load.rate * log_bytes(load);
    let by_time = 1000.0 / options.sync_interval_ms as f64;
    let at_leisure = (bytes / options.sync_bytes as f64).max(by_time).min(load.batches().max(by_time));
    let waits = load.level > Durability::Os && load.level != Durability::QuorumOs;
    let per_second = cost.map(Cost::per_second);
    // What is acknowledged at `none` and `os` is on the disk within the interval or the bytes, whichever comes first.
    let exposed = (bytes * options.sync_interval_ms as f64 / 1000.0).min(options.sync_bytes as f64);
    SyncNeeds {
        wanted_a_second: if waits { load.batches().max(by_time) } else { at_leisure },
        disk_a_second: per_second,
        appended_in_longest: cost.map(|cost| (bytes * cost.max_ns as f64 / 1e9).ceil() as u64),
        waiting_publisher: per_second.filter(|_| waits).map(|syncs| syncs * load.batch),
        exposed_bytes: if waits { 0 } else { exposed.ceil() as u64 },
    }
}

fn shared_memory(load: &Load, options: &Options, shm_total: u64) -> SharedNeeds {
    let [ingest, live] = bus::queue_bytes(shm_total).map(|bytes| bytes * load.publishers);
    let memtables = options.memtable_size * options.memtables_max as u64;
    let (names, others) = (symbols::bytes_of(load.instruments), control::LEN + bell::LEN + kinds::BYTES_OF_FEW);
    SharedNeeds {
        memtable: options.memtable_size,
        memtables_max: options.memtables_max as u64,
        ingest_queues: ingest,
        live_queues: live,
        instruments: names,
        control: others,
        total: memtables + ingest + live + names + others,
    }
}

impl Needs {
    /// What `load` needs with `options`, on a disk of `disk_total` bytes and shared memory of `shm_total`, whose syncs cost `cost`.
    ///
    /// # Errors
    /// A layout cannot be encoded.
    pub fn of(load: &Load, options: &Options, (disk_total, shm_total): (u64, u64), cost: Option<&Cost>) -> Outcome<Needs> {
        let history = history(load, options)?;
        let log_bytes = log_bytes(load);
        let memtable_records = memtable_records(load, options);
        let all_rows = memtable_records * options.memtables_max as u64;
        let records = load.records_a_day() * load.days;
        let recovery_log = (all_rows.min(records) as f64 * log_bytes).ceil() as u64;
        let log = (recovery_log.div_ceil(options.segment_size) + SEGMENTS_BESIDE) * options.segment_size;
        let log_for_members = if load.hosts > 1 { options.cluster.retain_bytes } else { 0 };
        let ballast = (disk_total / 64).min(space::BALLAST_MAX);
        let kept_free = space::keep_free(options.space_min, disk_total, options.segment_size, options.memtable_size);
        let flushed = load.rate * history.day as f64 / load.records_a_day().max(1) as f64;
        let merged = flushed * (AMPLIFICATION - 1.0);
        let ring = publisher::Options::new("", PublisherId(0)).ring_bytes as u64;
        let storage = PRIVATE + PRIVATE_A_ROW * options.compaction.rows_max;
        let shared_memory = shared_memory(load, options, shm_total);
        let files = history.count;
        Ok(Needs {
            records,
            measured_rate: match (load.hosts, load.batch) {
                (1, batch) if batch >= LARGE_BATCH => INGEST_BATCHES,
                (1, _) => INGEST_SINGLE,
                (2, _) => INGEST_PAIR,
                _ => INGEST_THREE,
            },
            disk: DiskNeeds {
                sstables: history.bytes,
                sstables_a_day: history.day,
                log,
                log_for_members,
                compaction: history.merge,
                ballast,
                kept_free,
                total: history.bytes + log + log_for_members + history.merge + ballast + kept_free,
                backup_linked: recovery_log,
                backup_copied: history.bytes + recovery_log,
                sstable_bytes_a_record: history.day as f64 / load.records_a_day().max(1) as f64,
                log_bytes_a_record: log_bytes,
                written_a_second: (load.rate * log_bytes + flushed + merged).ceil() as u64,
                merged_a_second: merged.ceil() as u64,
            },
            shared_memory,
            memory: MemoryNeeds { storage, publisher: ring, total: storage + ring * load.publishers },
            limits: LimitNeeds {
                storage_descriptors: IDLE_DESCRIPTORS + budget::OWN_DESCRIPTORS + budget::DESCRIPTORS * load.publishers,
                storage_maps: budget::OWN_MAPS + budget::MAPS * load.publishers,
                sstables: files,
                reader_maps: files + options.memtables_max as u64 + OWN_MAPS_OF_READER,
            },
            syncs: syncs(load, options, cost),
            network: network(load)?,
            times: TimeNeeds {
                recovery_log,
                recovery_seconds: RECOVER_LEAST + recovery_log as f64 / f64::from(1 << 30) * RECOVER_GIB,
                memtable_records,
                memtables_seconds: all_rows as f64 / load.rate,
                unsynced_seconds: options.unsynced_max as f64 / (load.rate * log_bytes),
                rings_seconds: (ring * load.publishers) as f64 / (load.rate * load.record_bytes()),
            },
        })
    }
}
