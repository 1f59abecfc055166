//! Owns: making the agents of a storage process from what they share and from the ends of their queues.
//!
//! What must hold: each end of a queue goes to one agent; ingest and sync stop by flags of their own, the others by one.

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::attach::{AttachAgent, Posted};
use super::clock::Watch;
use super::cluster_socket::ClusterSocket;
use super::compact::CompactAgent;
use super::flush::{FlushAgent, FlushItem, FlushNotice, Flusher};
use super::host::Host;
use super::ingest::IngestAgent;
use super::log::NOTIFY_AFTER;
use super::memtables::{Maker, Sealed};
use super::options::{Options, World};
use super::pinned::{Pinned, pinned_max};
use super::ports::Ports;
use super::prepare::PrepareAgent;
use super::reload::Reload;
use super::scheduler::Scheduler;
use super::space::Room;
use super::sync::{Answer, Pace, SyncAgent, SyncItem};
use super::traces::Traces;
use super::waker::Waker;
use super::watermarks::Watermarks;
use tapestore::agent::{Stop, Wait};
use tapestore::bus::Bus;
use tapestore::error::Result;
use tapestore::memtable::Writer;
use tapestore::shm::bell::Bells;
use tapestore::shm::control::Control;
use tapestore::wal::{self, Spare};

/// What all agents use.
pub(super) struct Shared<'a> {
    pub(super) options: &'a Options,
    pub(super) world: &'a World,
    pub(super) control: &'a Control,
    pub(super) bells: &'a Bells,
    pub(super) room: &'a Arc<Room>,
    /// Stops every agent but ingest and sync.
    pub(super) stop: &'a Stop,
}

/// Ingest's ends of its queues.
pub(super) struct IngestEnds {
    pub(super) requests: Receiver<Posted>,
    pub(super) sync: Sender<SyncItem>,
    pub(super) freed: Receiver<usize>,
    pub(super) flush: Sender<FlushItem>,
    pub(super) notices: Receiver<FlushNotice>,
}

impl Shared<'_> {
    pub(super) fn prepare(
        &self,
        maker: Maker,
        segment_size: u64,
        (spares, recycled): (Sender<Spare>, Receiver<Spare>),
        (requests, tables): (Receiver<u64>, Sender<Result<Writer>>),
    ) -> PrepareAgent {
        PrepareAgent {
            room: self.room.clone(),
            is_failing: false,
            disk: self.world.disk.clone(),
            dir: self.options.store.join(wal::DIR),
            control: self.control.clone(),
            segment_size,
            next: 0,
            spares,
            recycled,
            maker,
            requests,
            tables,
            stop: self.stop.clone(),
        }
    }

    pub(super) fn flush(
        &self,
        (flusher, waiting): (Flusher, VecDeque<Box<Sealed>>),
        scheduler: Scheduler,
        watermarks: Arc<Watermarks>,
        (items, notices, spares): (Receiver<FlushItem>, Sender<FlushNotice>, Sender<Spare>),
    ) -> FlushAgent {
        FlushAgent {
            flusher,
            room: self.room.clone(),
            is_failing: false,
            clock: self.world.clock.clone(),
            items,
            waiting,
            notices,
            spares,
            watermarks,
            bells: self.bells.clone(),
            stop: self.stop.clone(),
            scheduler,
            watch: Watch::new(self.world.clock.as_ref()),
        }
    }

    /// The agent that watches removed SSTables, to which `flusher` reports them from now on.
    pub(super) fn pinned(&self, flusher: &mut Flusher) -> Result<Pinned> {
        let total = self.world.disk.space(&self.options.store)?.total;
        let max = pinned_max(self.options.pinned_max, total);
        let edit = flusher.manifest().state().seq;
        let (pinned, removals) = Pinned::new((max, edit), self.control.clone(), self.room.clone(), self.stop.clone());
        flusher.report_to(removals);
        Ok(pinned)
    }

    /// The flush agent's schedule, the agent that runs its merges, and what changes both while they run.
    pub(super) fn compaction(&self) -> Result<(Scheduler, CompactAgent, Reload)> {
        let (reload, changes) = Reload::new(self.options);
        let (jobs_in, jobs) = bounded(1);
        let (done, done_out) = bounded(1);
        let (options, rules) = (self.options.compaction.clone(), &self.options.retention);
        let scheduler = Scheduler::new(options, rules, self.world.clock.as_ref(), (jobs_in, done_out), changes)?;
        let bytes_per_second = reload.pace();
        let compact = CompactAgent {
            disk: self.world.disk.clone(),
            dir: self.options.store.join(tapestore::sstable::DIR),
            jobs,
            done,
            bytes_per_second,
            control: self.control.clone(),
            room: self.room.clone(),
            stop: self.stop.clone(),
        };
        Ok((scheduler, compact, reload))
    }

    pub(super) fn sync(
        &self,
        (syncer, traces): (wal::Syncer, Traces),
        watermarks: Arc<Watermarks>,
        (waker, halted): (&Waker, &Stop),
        (items, answers, freed): (Receiver<SyncItem>, Sender<Answer>, Sender<usize>),
    ) -> SyncAgent {
        let interval = Duration::from_millis(self.options.sync_interval_ms).saturating_sub(NOTIFY_AFTER);
        SyncAgent {
            syncer,
            items,
            answers,
            freed,
            control: self.control.clone(),
            watermarks,
            bells: self.bells.clone(),
            wake_attach: waker.clone(),
            pace: Pace { interval, bytes: self.options.sync_bytes },
            // Busy waiting is for ingest's core alone: an adaptive wait is enough for the disk.
            wait: if self.options.wait == Wait::Busy { Wait::Adaptive } else { self.options.wait },
            was_urgent: false,
            halted: halted.clone(),
            traces,
        }
    }

    pub(super) fn attach(
        &self,
        (listener, socket): (UnixListener, PathBuf),
        (bus, instance): (Bus, u64),
        waker: Waker,
        (requests, answers): (Sender<Posted>, Receiver<Answer>),
    ) -> AttachAgent {
        AttachAgent {
            store: self.options.store.clone(),
            listener,
            socket,
            bus,
            instance,
            requests,
            answers,
            waker,
            bells: self.bells.clone(),
            control: self.control.clone(),
            clock: self.world.clock.clone(),
            stop: self.stop.clone(),
        }
    }

    pub(super) fn ingest(&self, host: Host, cluster_socket: ClusterSocket, stop: Stop, ends: IngestEnds) -> IngestAgent {
        let IngestEnds { requests, sync, freed, flush, notices } = ends;
        IngestAgent {
            host,
            ports: Ports::new(),
            cluster_socket,
            control: self.control.clone(),
            bells: self.bells.clone(),
            clock: self.world.clock.clone(),
            requests,
            sync,
            freed,
            flush,
            notices,
            wait: self.options.wait,
            stop,
            mail: u32::MAX,
            effects: Vec::new(),
        }
    }
}
