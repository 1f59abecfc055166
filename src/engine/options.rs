//! Owns: the options of a store, and the outside that it depends on.
//!
//! What must hold: options that contradict each other are refused by name before anything is opened.

use std::path::PathBuf;
use std::sync::Arc;

use crate::compaction;
use crate::compaction::retention::{Rule, Rules};
use crate::consensus;
use tapestore::agent::Wait;
use tapestore::disk::{Disk, RealDisk};
use tapestore::error::{Error, Result};
use tapestore::lsn::Durability;
use tapestore::shm::control::TABLES_MAX;
use tapestore::shm::run_dir::ROOT_DEFAULT;
use tapestore::time::{Clock, HostClock};

/// Options of a store.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Directory of the store.
    pub store: PathBuf,
    /// Directory, on a memory file system, in which the store's run directory is made.
    pub run_root: PathBuf,
    /// Bytes of a log segment, for a new store.
    pub segment_size: u64,
    /// Bytes of a MemTable; 0 is 256 MiB, or a quarter of the free shared memory if that is less. Where shared memory is
    /// short, the next table lies in the store's directory ([`tapestore::shm::spill`]).
    pub memtable_size: u64,
    /// Most MemTables: the active one and sealed ones.
    pub memtables_max: usize,
    /// Whether MemTables are allocated as they fill: for simulations, which make thousands of them and put little into
    /// each. On a full memory file system the process gets a signal then.
    #[serde(skip)]
    pub sparse_memtables: bool,
    /// Most instruments.
    pub instruments_max: u64,
    /// Records that no publisher waits for are durable after this many milliseconds,
    pub sync_interval_ms: u64,
    /// or this many bytes.
    pub sync_bytes: u64,
    /// Most bytes that are appended and not durable; beyond, publishers are under back-pressure.
    pub unsynced_max: u64,
    /// Bytes kept free on the file system; below, no records are accepted. 0: 1 GiB, or a twentieth of the volume if that is
    /// less, but at least room for two segments and the flush of a MemTable.
    pub space_min: u64,
    /// Bytes of removed SSTables that readers' snapshots may keep on the disk; beyond, and whenever less than `space-min` is free,
    /// readers are asked to release the oldest ones. 0: a tenth of the volume.
    pub pinned_max: u64,
    /// The lowest durability that publishers get.
    #[serde(alias = "level-min")]
    pub durability_min: Durability,
    /// How ingest waits for work.
    pub wait: Wait,
    /// CPU core of the ingest thread.
    pub ingest_core: Option<usize>,
    /// CPU core of the sync thread.
    pub sync_core: Option<usize>,
    /// What the process logs: a level, or levels by part as in `RUST_LOG`; empty: from `info` on. The engine itself does not use it.
    pub log: String,
    /// Where the process serves metrics, host:port or unix:/path; empty: nowhere. The engine itself serves nothing.
    pub metrics: String,
    /// Where the process sends traces, an address of OTLP over gRPC; empty: nowhere. The engine itself sends nothing.
    pub traces: String,
    /// One frame in so many is traced.
    pub traces_one_in: u64,
    /// When and how SSTables are merged.
    pub compaction: compaction::Options,
    /// How long records are kept; without a rule, for ever.
    pub retention: Vec<Rule>,
    /// For a pair: whether this host leads before it was in touch with the other.
    #[serde(skip)]
    pub start_as_leader: bool,
    /// Timing of the cluster, for a store that is in one.
    pub cluster: consensus::Options,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            store: PathBuf::from("tapestore-data"),
            run_root: PathBuf::from(ROOT_DEFAULT),
            segment_size: 64 << 20,
            memtable_size: 0,
            memtables_max: 3,
            sparse_memtables: false,
            instruments_max: 4_000_000,
            sync_interval_ms: 50,
            sync_bytes: 4 << 20,
            unsynced_max: 64 << 20,
            space_min: 0,
            pinned_max: 0,
            durability_min: Durability::None,
            wait: Wait::Adaptive,
            ingest_core: None,
            sync_core: None,
            log: String::new(),
            metrics: String::new(),
            traces: String::new(),
            traces_one_in: 100,
            compaction: compaction::Options::default(),
            retention: Vec::new(),
            start_as_leader: false,
            cluster: consensus::Options::default(),
        }
    }
}

/// The largest default size of a MemTable.
const MEMTABLE_SIZE_DEFAULT: u64 = 256 << 20;

impl Options {
    /// Checks the options against each other and fills in those that depend on the host as it is now. Call it after the
    /// memory of an earlier instance was released.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option and its bounds.
    pub fn check(mut self) -> Result<Options> {
        let bad = |what, reason: String| Err(Error::Invalid { what, reason });
        let (min, max) = (tapestore::memtable::format::LEN_MIN, tapestore::memtable::format::LEN_MAX);
        if self.memtable_size == 0 {
            let quarter = tapestore::shm::free_bytes(&self.run_root) / 4 / 4096 * 4096;
            self.memtable_size = MEMTABLE_SIZE_DEFAULT.min(quarter.max(min));
        }
        if !(min..=max).contains(&self.memtable_size) || !self.memtable_size.is_multiple_of(4096) {
            return bad("memtable-size", format!("{} is not a multiple of 4096 from {min} to {max}", self.memtable_size));
        }
        if !(2..=TABLES_MAX).contains(&self.memtables_max) {
            return bad("memtables-max", format!("{} is not from 2 to {TABLES_MAX}", self.memtables_max));
        }
        if self.sync_interval_ms == 0 || self.sync_bytes == 0 || self.unsynced_max < self.sync_bytes {
            return bad(
                "sync-interval-ms, sync-bytes, unsynced-max",
                "both sync options must be above 0, and unsynced-max at least sync-bytes".into(),
            );
        }
        self.compaction.check()?;
        self.cluster.check()?;
        if self.durability_min == Durability::QuorumOs && !self.cluster.is_lossy() {
            self.durability_min = Durability::Quorum;
        }
        if self.cluster.is_lossy() && self.durability_min > Durability::Os {
            return bad(
                "durability-min",
                format!(
                    "{}: with flush = \"interval\" it is none or os, and each publisher chooses fsync or quorum-os",
                    self.durability_min
                ),
            );
        }
        Rules::new(&self.retention)?;
        if self.instruments_max == 0 || self.instruments_max >= u64::from(u32::MAX) {
            return bad("instruments-max", format!("{} is not from 1 to 4294967294", self.instruments_max));
        }
        Ok(self)
    }
}

/// The outside that a store depends on.
#[derive(Clone)]
pub struct World {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// An identity for a store that is created: random.
    pub store_id: u128,
    /// The system's boot id, since when its memory has been kept; 0 if unknown.
    pub boot: u128,
}

impl World {
    /// The disk, the clock and the boot id of this host, and a random identity.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no randomness.
    pub fn of_this_host() -> Result<World> {
        let mut id = [0u8; 16];
        let filled = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
        filled.map_err(|e| Error::io("draw a number for", std::path::Path::new("a store"), e))?;
        let boot = procfs::sys::kernel::random::boot_id().unwrap_or_default();
        let boot = u128::from_str_radix(&boot.trim().replace('-', ""), 16).unwrap_or(0);
        Ok(World { disk: Arc::new(RealDisk), clock: Arc::new(HostClock), store_id: u128::from_le_bytes(id), boot })
    }
}
