//! Owns: [`Status`]: what the control page of a store says, as one value. `tape status`, its JSON and the metrics are made of it.
//!
//! What must hold: it is read without a lock, while storage writes: numbers of one status may differ by what happened between two
//! reads. Names in JSON are stable, because programs read them.

use serde::{Serialize, Serializer};

use super::control::{BackPressure, Control, SLOTS_MAX, SlotState, Statistic};
use super::health::Trouble;
use super::histogram::{Distribution, HISTOGRAMS, Histogram};
use super::slot::SlotView;
use super::spill::SPILLED;
use crate::lsn::{Epoch, PublisherId};
use crate::record::{Kind, schema};
use crate::time::{Clock, HostClock, Ts};

/// What a store is and does.
///
/// ```
/// # fn main() -> tapestore::error::Result<()> {
/// # let dir = std::env::temp_dir().join("tapestore-doc-status");
/// # if !dir.exists() { return Ok(()); }
/// use tapestore::shm::{control::Control, run_dir::RunDir, status::Status};
///
/// let control = Control::open(&RunDir::find(&dir)?.control())?;
/// let status = Status::read(&control);
/// let waiting = status.watermarks.appended.saturating_sub(status.watermarks.durable);
/// println!("{} records, {waiting} not durable yet", status.ingest.records);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// What the storage process does.
    pub state: State,
    /// Whether nothing stops the store from accepting records, and its readers from seeing them.
    pub healthy: bool,
    /// What does, if something does.
    pub trouble: Option<TroubleNow>,
    /// The storage process; `None` if none is registered.
    pub process: Option<Process>,
    /// How far the records are.
    pub watermarks: Watermarks,
    /// What has been accepted and refused since the start.
    pub ingest: Ingest,
    /// The log.
    pub log: Log,
    /// Back-pressure on publishers.
    pub back_pressure: Pressure,
    /// MemTables.
    pub memory: Memory,
    /// SSTables.
    pub history: History,
    /// The file system of the store.
    pub space: Space,
    /// This host in its cluster.
    pub cluster: Cluster,
    /// Times and sizes since the start.
    pub distributions: Distributions,
    /// The attached publishers.
    pub publishers: Vec<PublisherStatus>,
}

/// What a storage process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It serves the store.
    Serving,
    /// It recovers the store, or ended during recovery.
    Recovering,
    /// None serves the store.
    Stopped,
    /// It sends no heartbeat: it was killed, or hangs.
    Dead,
}

impl State {
    /// All states.
    pub const ALL: [State; 4] = [State::Serving, State::Recovering, State::Stopped, State::Dead];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            State::Serving => "serving",
            State::Recovering => "recovering",
            State::Stopped => "stopped",
            State::Dead => "dead",
        }
    }
}

/// A trouble that the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TroubleNow {
    /// Which.
    #[serde(rename = "name", serialize_with = "name_of_trouble")]
    pub trouble: Trouble,
    /// Why, for people.
    pub reason: &'static str,
    /// The next command or action; `STORE` stands for the store's directory.
    pub advice: &'static str,
    /// Since when, if that is known.
    #[serde(serialize_with = "as_text")]
    pub since: Option<Ts>,
}

fn name_of_trouble<S: Serializer>(trouble: &Trouble, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(trouble.name())
}

fn as_text<S: Serializer>(time: &Option<Ts>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(to)
}

/// A storage process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u64,
    /// Its start.
    #[serde(serialize_with = "time_as_text")]
    pub started: Ts,
    /// The age of its last heartbeat, ns; it sends one in each turn of its loop.
    pub heartbeat_age_ns: u64,
    /// The number of the store's start.
    pub instance: u64,
}

fn time_as_text<S: Serializer>(time: &Ts, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

/// LSNs of the newest record that is appended, and so on, and bytes of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Watermarks {
    /// In the log.
    pub appended: u64,
    /// Visible to readers.
    pub applied: u64,
    /// Synced to the disk.
    pub durable: u64,
    /// On the disks, or in the memories, of a majority; as durable without a cluster.
    pub committed: u64,
    /// In SSTables.
    pub flushed: u64,
    /// The log's end, bytes.
    pub appended_position: u64,
    /// The end of its durable part, bytes.
    pub durable_position: u64,
    /// Where a recovery begins to read it, bytes.
    pub checkpoint_position: u64,
}

/// Records and batches since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ingest {
    /// Records accepted.
    pub records: u64,
    /// The same by kind; those of all user-defined kinds together are `user`. Kinds without a record are left out.
    pub by_kind: Vec<KindCount>,
    /// Repeated records, dropped.
    pub duplicates: u64,
    /// Batches refused for a gap in the sequence numbers before them.
    pub gaps: u64,
    /// Batches refused as malformed.
    pub malformed: u64,
    /// Batches refused because their epoch is fenced.
    pub fenced: u64,
    /// Instruments registered.
    pub instruments: u64,
    /// User-defined kinds.
    pub kinds: u64,
    /// Dead publishers whose bus files were removed.
    pub swept: u64,
    /// Times that the host's clock was found set, or behind the store.
    pub clock_steps: u64,
    /// The newest of these steps, ns.
    pub last_clock_step_ns: i64,
}

/// Records of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KindCount {
    /// The kind's name, or `user`.
    pub kind: &'static str,
    /// Records accepted since the start.
    pub records: u64,
}

/// The log since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Log {
    /// Frames appended.
    pub frames: u64,
    /// Bytes appended.
    pub bytes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Lines of the process's own log that could not be written.
    pub lines_lost: u64,
}

/// Back-pressure on publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pressure {
    /// Why publishers wait now; `None`: they do not.
    #[serde(serialize_with = "name_of_pressure")]
    pub why: Option<BackPressure>,
    /// Since when they do.
    #[serde(serialize_with = "as_text")]
    pub since: Option<Ts>,
    /// All of it since the start, ns.
    pub total_ns: u64,
}

fn name_of_pressure<S: Serializer>(why: &Option<BackPressure>, to: S) -> Result<S::Ok, S::Error> {
    why.map(BackPressure::name).serialize(to)
}

/// MemTables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// How many are live.
    pub memtables: u64,
    /// Of these, in the store's directory, because shared memory was short.
    pub spilled: u64,
    /// Bytes of each.
    pub memtable_bytes: u64,
    /// Bytes used of the active one.
    pub active_used_bytes: u64,
    /// How many have been placed in the store's directory since the start.
    pub spilled_total: u64,
}

/// SSTables, and the work on them since the start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct History {
    /// Files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The manifest edit whose files hold all records that are not in MemTables.
    pub manifest_edit: u64,
    /// MemTables flushed.
    pub flushes: u64,
    /// Records flushed.
    pub flushed_records: u64,
    /// Bytes that flushes wrote.
    pub flushed_bytes: u64,
    /// Time of flushes, without waits for syncs of the log, ns.
    pub flush_ns: u64,
    /// Flushes that failed and are retried.
    pub flush_failures: u64,
    /// Whether a merge runs.
    pub is_merging: bool,
    /// Merges.
    pub merges: u64,
    /// Bytes that merges wrote.
    pub merged_bytes: u64,
    /// Time of merges, ns.
    pub merge_ns: u64,
    /// Merges that failed.
    pub merge_failures: u64,
    /// Records dropped by retention, over the life of the store.
    pub expired_records: u64,
    /// Bytes that flushes and merges wrote, per byte that flushes wrote; `None` before the first flush.
    pub write_amplification: Option<f64>,
}

/// The file system of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Bytes free.
    pub free_bytes: u64,
    /// With less free than this, records are refused.
    pub kept_free_bytes: u64,
    /// Times that records were refused for it.
    pub refusals: u64,
    /// Bytes of removed SSTables that other processes still map.
    pub removed_mapped_bytes: u64,
    /// Since when that is more than it may be, although readers were asked to release old snapshots.
    #[serde(serialize_with = "as_text")]
    pub over_since: Option<Ts>,
    /// Times that readers were asked.
    pub release_requests: u64,
}

/// This host in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// The timeline.
    pub timeline: u64,
    /// The term.
    pub term: u64,
    /// Its role.
    pub role: Role,
    /// The leader's number; `None`: unknown.
    pub leader: Option<u64>,
    /// Since when it is known, or unknown.
    #[serde(serialize_with = "as_text")]
    pub leader_since: Option<Ts>,
    /// Whether committed records may be in memory alone on a majority of the hosts.
    pub is_lossy: bool,
}

/// The role of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The store is in no cluster.
    Alone,
    /// It numbers records.
    Leader,
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It holds the leader's log and does not vote.
    Learner,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 5] = [Role::Alone, Role::Leader, Role::Follower, Role::Candidate, Role::Learner];

    /// The role with the number `raw` in the control page.
    pub fn from_raw(raw: u64) -> Role {
        match raw {
            1 => Role::Leader,
            2 => Role::Follower,
            3 => Role::Candidate,
            4 => Role::Learner,
            _ => Role::Alone,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Alone => "alone",
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
        }
    }
}

/// All histograms of the control page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distributions(pub [Distribution; HISTOGRAMS.len()]);

impl Distributions {
    /// The histogram `which`.
    pub fn of(&self, which: Histogram) -> Option<&Distribution> {
        self.0.get(which as usize)
    }
}

impl Serialize for Distributions {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|one| (one.of.name(), one.summary())))
    }
}

/// An attached publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PublisherStatus {
    /// Its number.
    pub publisher: u16,
    /// Its epoch.
    pub epoch: u32,
    /// Its process; `None` if the system does not say.
    pub pid: Option<u32>,
    /// Its session.
    #[serde(serialize_with = "name_of_session")]
    pub state: SlotState,
    /// The number of its last record in the log.
    pub accepted: u64,
    /// That record's LSN.
    pub accepted_lsn: u64,
    /// The number of its last durable record.
    pub durable: u64,
    /// The number of its last committed record.
    pub committed: u64,
    /// Gaps in its numbers that storage found.
    pub gaps: u64,
    /// When storage appended its newest record, if whoever asks has looked that up: the control page does not know.
    #[serde(serialize_with = "as_text")]
    pub newest_record: Option<Ts>,
}

fn name_of_session<S: Serializer>(state: &SlotState, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(state.name())
}

impl PublisherStatus {
    fn of((publisher, epoch): (PublisherId, Epoch), slot: &SlotView) -> PublisherStatus {
        PublisherStatus {
            publisher: publisher.0,
            epoch: epoch.0,
            pid: slot.pid,
            state: slot.state,
            accepted: slot.accepted.0,
            accepted_lsn: slot.accepted_lsn.0,
            durable: slot.durable.0,
            committed: slot.committed.0,
            gaps: slot.gap_count,
            newest_record: None,
        }
    }
}

impl Status {
    /// Reads the status from `control`.
    pub fn read(control: &Control) -> Status {
        let (monotonic, wall) = (HostClock.monotonic(), HostClock.wall());
        let at = |then: u64| Some(Ts(wall.0.saturating_sub(monotonic.saturating_sub(then)))).filter(|_| then > 0);
        let of = |which| control.statistic(which);
        let trouble = control.trouble();
        let (role, leader) = control.role();
        Status {
            state: match trouble.map(|(trouble, _)| trouble) {
                Some(Trouble::Stopped | Trouble::Halted) => State::Stopped,
                Some(Trouble::Recovering) => State::Recovering,
                Some(Trouble::Silent) => State::Dead,
                _ => State::Serving,
            },
            healthy: trouble.is_none(),
            trouble: trouble.map(|(trouble, since)| TroubleNow {
                trouble,
                reason: trouble.reason(),
                advice: trouble.advice(),
                since,
            }),
            process: control.server().map(|pid| Process {
                pid,
                started: control.started(),
                heartbeat_age_ns: monotonic.saturating_sub(control.heartbeat()),
                instance: control.instance(),
            }),
            watermarks: watermarks(control),
            ingest: ingest(control),
            log: Log {
                frames: of(Statistic::Frames),
                bytes: of(Statistic::Bytes),
                syncs: of(Statistic::Syncs),
                lines_lost: of(Statistic::LogLinesLost),
            },
            back_pressure: Pressure {
                why: BackPressure::from_raw(of(Statistic::BackPressure)),
                since: at(of(Statistic::BackPressureSince)),
                total_ns: of(Statistic::BackPressureNs),
            },
            memory: memory(control),
            history: history(control),
            space: Space {
                free_bytes: of(Statistic::FreeBytes),
                kept_free_bytes: of(Statistic::KeptFree),
                refusals: of(Statistic::NoSpace),
                removed_mapped_bytes: of(Statistic::PinnedBytes),
                over_since: at(of(Statistic::PinnedSince)),
                release_requests: of(Statistic::SnapshotsReleased),
            },
            cluster: Cluster {
                timeline: control.timeline().0,
                term: u64::from(control.term().0),
                role: Role::from_raw(role),
                leader: Some(leader).filter(|leader| *leader > 0),
                leader_since: at(of(Statistic::LeaderSince)).filter(|_| role > 0),
                is_lossy: control.is_lossy(),
            },
            distributions: Distributions(HISTOGRAMS.map(|which| control.distribution(which))),
            publishers: publishers(control),
        }
    }
}

fn watermarks(control: &Control) -> Watermarks {
    // From the lowest up: each is at least what was read before it.
    let (flushed, checkpoint_position) =
        (control.statistic(Statistic::Covered), control.statistic(Statistic::CheckpointPosition));
    let (committed, durable, durable_position) = (control.committed(), control.durable(), control.durable_position());
    let (applied, appended, appended_position) = (control.applied(), control.appended(), control.appended_position());
    Watermarks {
        appended: appended.0,
        applied: applied.0,
        durable: durable.0,
        committed: committed.0,
        flushed,
        appended_position: appended_position.0,
        durable_position: durable_position.0,
        checkpoint_position,
    }
}

fn ingest(control: &Control) -> Ingest {
    let of = |which| control.statistic(which);
    let name = |at: usize| match at {
        0 => Some("user"),
        kind => schema(Kind(kind as u16)).map(|schema| schema.name),
    };
    let counts = control.records_by_kind().into_iter().enumerate().filter(|(_, records)| *records > 0);
    let by_kind = counts.filter_map(|(at, records)| name(at).map(|kind| KindCount { kind, records })).collect();
    Ingest {
        records: of(Statistic::Records),
        by_kind,
        duplicates: of(Statistic::Duplicates),
        gaps: of(Statistic::Gaps),
        malformed: of(Statistic::Malformed),
        fenced: of(Statistic::Fenced),
        instruments: of(Statistic::Instruments),
        kinds: of(Statistic::Kinds),
        swept: of(Statistic::Swept),
        clock_steps: of(Statistic::ClockSteps),
        last_clock_step_ns: of(Statistic::ClockStep).cast_signed(),
    }
}

fn memory(control: &Control) -> Memory {
    let list = control.tables();
    let tables = list.iter().flat_map(|list| list.tables.iter().take(list.count));
    Memory {
        memtables: list.map_or(0, |list| list.count) as u64,
        spilled: tables.filter(|(id, _)| id & SPILLED != 0).count() as u64,
        memtable_bytes: control.statistic(Statistic::MemTableLen),
        active_used_bytes: control.statistic(Statistic::MemTableUsed),
        spilled_total: control.statistic(Statistic::Spilled),
    }
}

fn history(control: &Control) -> History {
    let of = |which| control.statistic(which);
    let (flushed, merged) = (of(Statistic::FlushedBytes), of(Statistic::MergedBytes));
    History {
        files: of(Statistic::Files),
        bytes: of(Statistic::HistoryBytes),
        manifest_edit: control.tables().map_or(0, |list| list.manifest),
        flushes: of(Statistic::Flushes),
        flushed_records: of(Statistic::FlushedRecords),
        flushed_bytes: flushed,
        flush_ns: of(Statistic::FlushNs),
        flush_failures: of(Statistic::FlushFailures),
        is_merging: of(Statistic::Merging) != 0,
        merges: of(Statistic::Merges),
        merged_bytes: merged,
        merge_ns: of(Statistic::MergeNs),
        merge_failures: of(Statistic::MergeFailures),
        expired_records: of(Statistic::Expired),
        write_amplification: (flushed > 0).then(|| (flushed + merged) as f64 / flushed as f64),
    }
}

fn publishers(control: &Control) -> Vec<PublisherStatus> {
    let attached = (0..SLOTS_MAX).filter_map(|at| {
        let slot = control.slot(at);
        let (grant, publisher, epoch) = slot.holder()?;
        Some(PublisherStatus::of((publisher, epoch), &slot.view(grant)?))
    });
    attached.collect()
}
