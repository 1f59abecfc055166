//! Owns: the ingest agent: it takes batches from the publishers' services in turn, fills frames,
//! appends and applies them, and acknowledges.
//!
//! What must hold: publishers are served round-robin with a quota, so that no busy one starves the
//! rest; a frame is whatever waits, never waited for; acknowledgements of level `os` are given after
//! the frame is in the log, those of `fsync` by the sync agent.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver as Queue, Sender as Post, TrySendError};

use super::Ended;
use super::attach::{Answer, Request};
use super::cluster::Cluster;
use super::core::{Committed, Core, Readiness};
use super::flush::{Filed, FlushItem, Told};
use super::forward::Forwarding;
use super::lane::{Lane, Taken};
use super::space::Room;
use super::sync::{SYNC_QUEUE, SyncItem};
use crate::agent::{Idle, Stop, Wait};
use crate::error::{Error, Result};
use crate::lsn::{Level, Lsn, Position, PubSeq};
use crate::sabotage::{self, Sabotage};
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::{Control, NO_SPACE, SlotState, Statistic};
use crate::time::Clock;
use crate::wal::{Appended, Body, Evidence, Fact, Frame};

/// Batches of one publisher in one turn.
const QUOTA: usize = 64;
/// Items that wait for the sync agent before publishers are held back.
const SYNC_ITEMS_MAX: usize = SYNC_QUEUE / 2;
/// A stopping agent takes in what comes for so long at most.
const STOP_NS: u64 = 500_000_000;
/// A leader that stops waits so long at most for another to lead.
const HAND_OVER_NS: u64 = 300_000_000;
/// Longest sleep of a parked ingest agent: its heartbeat must stay young.
const PARK: Duration = Duration::from_millis(100);
/// The same while there are other hosts.
const TICK: Duration = Duration::from_millis(crate::consensus::options::TICK_MS);
/// Sleep while there is no room: it comes from other threads, which ring no bell.
pub(super) const HELD_BACK_PARK: Duration = Duration::from_micros(200);
/// The same while the disk is full, which lasts.
const NO_SPACE_PARK: Duration = Duration::from_millis(5);

/// Frames of which the sync agent is told together, so that it is not woken for each.
#[derive(Default)]
pub(super) struct Untold {
    end: Option<Evidence>,
    since: u64,
    pub(super) urgent: bool,
    acks: Vec<(usize, PubSeq, Lsn)>,
}

/// The sync agent is told after this long at the latest, and of this many bytes at most.
pub(super) const TELL_AFTER: Duration = Duration::from_millis(2);
const TELL_BYTES: u64 = 1 << 20;

/// The ingest agent.
pub(super) struct IngestAgent {
    pub(super) core: Core,
    pub(super) cluster: Cluster,
    pub(super) forwarding: Forwarding,
    pub(super) room: Arc<Room>,
    pub(super) control: Control,
    pub(super) bells: Bells,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) requests: Queue<Request>,
    pub(super) sync: Post<SyncItem>,
    pub(super) freed: Queue<usize>,
    pub(super) flush: Post<FlushItem>,
    pub(super) told: Queue<Told>,
    pub(super) instance: u64,
    pub(super) unsynced_max: u64,
    pub(super) level_min: Level,
    /// Whether others are told of frames before they are durable.
    pub(super) is_lossy: bool,
    pub(super) wait: Wait,
    pub(super) stop: Stop,
    /// Raised by the sync agent when a sync has failed.
    pub(super) halted: Stop,
    pub(super) lanes: Vec<Lane>,
    /// The lane that was served first in the last turn.
    pub(super) first: usize,
    /// Slots that nobody holds.
    pub(super) slots: Vec<usize>,
    /// What the sync agent has not been told yet, because nobody waits for it.
    pub(super) untold: Untold,
    /// Since when nothing can be taken in.
    pub(super) held_since: Option<u64>,
}

impl IngestAgent {
    /// Runs until it is told to stop, when what waits is still taken in, or the store is to be changed.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`]: a write failed.
    pub(super) fn run(mut self) -> Result<Ended> {
        let mut idle = Idle::new(self.wait);
        let mut end = None;
        let mut hands_over_until = None;
        loop {
            let stopping = self.stop.is_stopped();
            if stopping && hands_over_until.is_none() {
                hands_over_until = Some(self.clock.monotonic() + HAND_OVER_NS);
                self.hand_over()?;
            }
            let hands_over = self.leads_others() && hands_over_until.is_some_and(|until| self.clock.monotonic() < until);
            let worked = self.turn()?;
            // What publishers send after that stays in their rings.
            let over = stopping && self.clock.monotonic() >= *end.get_or_insert(self.clock.monotonic() + STOP_NS);
            if let Some(ended) = self.cluster.ended {
                self.cluster.node.record()?;
                self.tell()?;
                self.send(SyncItem::Stop)?;
                return Ok(ended);
            }
            if worked && !over {
                idle.worked();
            } else if stopping && !hands_over {
                self.tell()?;
                self.send(SyncItem::Stop)?;
                self.cluster.node.record()?;
                // Others need not wait for an election timeout.
                return self.speak().map(|()| Ended::Stopped);
            } else if idle.should_park() {
                self.tell()?;
                self.park();
                idle.worked();
            }
        }
    }

    fn park(&self) {
        if self.held_since.is_some() {
            let lasts = self.control.statistic(Statistic::HeldBack) == NO_SPACE;
            return std::thread::sleep(if lasts { NO_SPACE_PARK } else { HELD_BACK_PARK });
        }
        let limit = if self.cluster.covered.is_alone() { PARK } else { TICK };
        self.bells.sleep(Bell::Ingest, limit, || {
            !self.requests.is_empty()
                || !self.told.is_empty()
                || self.cluster.is_due(self.bells.mail())
                || self.stop.is_stopped()
                || self.lanes.iter().any(|l| l.receiver.has_batches())
        });
    }

    fn turn(&mut self) -> Result<bool> {
        let now = self.clock.monotonic();
        self.control.beat(now);
        if self.untold.is_due(now, self.control.durable_position()) {
            self.tell()?;
        }
        let mut worked = false;
        while let Ok(slot) = self.freed.try_recv() {
            self.slots.push(slot);
        }
        while let Ok(told) = self.told.try_recv() {
            match told {
                Told::Filed(Filed { table, seq }) => {
                    self.core.memtables.filed(table, seq);
                    self.pass_on(FlushItem::Retired(table));
                }
                Told::Edited(seq) => self.core.memtables.edited(seq),
            }
            worked = true;
        }
        worked |= self.take_part(now)?;
        if self.cluster.ended.is_some() {
            return Ok(true);
        }
        let leads = self.cluster.node.leads().is_some();
        let mut room = leads && self.has_room(now)?;
        // Facts need the log alone: they are taken while the MemTables are full.
        if !leads {
            worked |= self.forward(now)?;
        } else if (room || self.core.writer.ready()? || self.has_no_space())
            && let Some(request) = self.forwarding.own.pop_front().or_else(|| self.requests.try_recv().ok())
        {
            self.serve(request)?;
            worked = true;
            room = self.has_room(now)?;
        }
        if room && self.has_relays() {
            worked |= self.take_relays()?;
            room = self.has_room(now)?;
        }
        if room {
            worked |= self.drain()?;
        }
        self.drop_gone()?;
        Ok(worked)
    }

    /// Whether a frame can be taken in; keeps count of the time in which none can.
    pub(super) fn has_room(&mut self, now: u64) -> Result<bool> {
        if self.halted.is_stopped() {
            return Err(Error::Halted { op: "sync of the log", cause: "the sync agent has said why".to_owned() });
        }
        let unsynced = self.core.writer.chain().position.0.saturating_sub(self.control.durable_position().0);
        let why = match self.core.is_ready()? {
            _ if self.room.is_low() => NO_SPACE,
            Readiness::MemTableFull | Readiness::NoSegment if self.room.is_refused() => NO_SPACE,
            Readiness::MemTableFull => 1,
            Readiness::NoSegment => 2,
            Readiness::Ready if unsynced > self.unsynced_max || self.sync.len() > SYNC_ITEMS_MAX => 2,
            Readiness::Ready => 0,
        };
        if why == NO_SPACE && self.control.statistic(Statistic::HeldBack) != NO_SPACE {
            self.control.add(Statistic::NoSpace, 1);
        }
        match (why, self.held_since) {
            (0, None) => {}
            (0, Some(since)) => {
                self.held_since = None;
                self.control.add(Statistic::HeldBackNs, now - since);
                self.control.set_statistic(Statistic::HeldBack, 0);
            }
            (why, None) => {
                self.held_since = Some(now);
                self.control.set_statistic(Statistic::HeldBack, why);
                if why == 1 {
                    let full = self.core.memtables.full();
                    tracing::warn!(%full, "publishers are held back");
                }
            }
            (why, Some(_)) => self.control.set_statistic(Statistic::HeldBack, why),
        }
        Ok(why == 0)
    }

    /// Publishers whose epoch `frame`, of another host, ends.
    pub(super) fn fence_by(&mut self, frame: &Frame<'_>) {
        let Body::Control(facts) = &frame.body else { return };
        for fact in facts {
            let &Fact::Attach { publisher, epoch, .. } = fact else { continue };
            for lane in self.lanes.iter_mut().filter(|l| l.publisher == publisher && l.epoch < epoch) {
                lane.fenced = true;
                lane.slot.set_state(SlotState::Fenced);
            }
        }
    }

    /// Whether it may be long before the log can be written.
    pub(super) fn has_no_space(&self) -> bool {
        self.room.is_low() || self.room.is_refused()
    }

    /// Fills a frame from the lanes, beginning with another one in each turn, and commits it.
    pub(super) fn drain(&mut self) -> Result<bool> {
        let count = self.lanes.len();
        if count == 0 {
            return Ok(false);
        }
        self.first = (self.first + 1) % count;
        let mut full = false;
        let mut took = false;
        for i in 0..count {
            let index = (self.first + i) % count;
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            for _ in 0..QUOTA {
                let Some(batch) = lane.next_batch() else { break };
                took = true;
                if lane.take(batch, &mut self.core, &self.control) == Taken::FrameFull {
                    full = true;
                    break;
                }
            }
            if full {
                break;
            }
        }
        self.commit()?;
        Ok(took)
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        let Some(committed) = self.core.commit(self.clock.wall())? else { return Ok(()) };
        self.propose(&committed.appended)?;
        self.told_of(committed)
    }

    /// Passes on that a frame was appended and applied.
    pub(super) fn told_of(&mut self, committed: Committed) -> Result<()> {
        if let Some(sealed) = committed.sealed {
            self.pass_on(FlushItem::Sealed(sealed));
        }
        self.bells.ring(Bell::Applied);
        if self.halted.is_stopped() {
            // A sync has failed meanwhile: what the kernel holds of this frame may never reach the disk.
            return Err(Error::Halted { op: "sync of the log", cause: "the sync agent has said why".to_owned() });
        }
        let Appended { end, opened, .. } = committed.appended;
        if let Some(opened) = opened {
            self.tell()?;
            self.send(SyncItem::Opened(opened))?;
        }
        for (publisher, pub_seq, lsn) in committed.accepted {
            if let Some(lane) = self.lanes.iter_mut().rev().find(|l| l.publisher == publisher && !l.fenced) {
                lane.slot.accept(pub_seq, lsn);
                lane.uncommitted.push_back((lsn, pub_seq));
                if sabotage::is(Sabotage::AckEarly) {
                    lane.slot.ack_durable(pub_seq, lsn);
                    lane.slot.ack_committed(pub_seq, lsn);
                }
                self.untold.urgent |= lane.level.waits_for_disk();
                self.untold.ack(lane.slot_index, pub_seq, lsn);
            }
        }
        self.bells.ring(Bell::Ack);
        // Other hosts wait for this one, or this one for them.
        self.untold.urgent |= !self.cluster.covered.is_alone() && !self.is_lossy;
        if self.untold.end.replace(end).is_none() {
            self.untold.since = self.clock.monotonic();
        }
        if self.untold.urgent {
            self.tell()?;
        }
        Ok(())
    }

    /// Tells the sync agent what it has not been told yet.
    pub(super) fn tell(&mut self) -> Result<()> {
        let Some(end) = self.untold.end.take() else { return Ok(()) };
        let urgent = std::mem::take(&mut self.untold.urgent);
        self.send(SyncItem::Appended { end, urgent })?;
        for (slot, pub_seq, lsn) in std::mem::take(&mut self.untold.acks) {
            self.send(SyncItem::Ack { slot, pub_seq, lsn })?;
        }
        Ok(())
    }

    /// Passes `item` on.
    ///
    /// # Errors
    /// [`Error::Halted`]: the sync agent has ended, so nothing will be durable any more.
    pub(super) fn send(&self, item: SyncItem) -> Result<()> {
        let ended = |_| Error::Halted { op: "sync of the log", cause: "the sync agent has said why".to_owned() };
        self.sync.send(item).map_err(ended)
    }

    /// Gives the flush agent something to do. It has a place for each table, twice.
    fn pass_on(&self, item: FlushItem) {
        let sent = self.flush.try_send(item);
        assert!(!matches!(sent, Err(TrySendError::Full(_))), "more MemTables than there can be");
    }

    pub(super) fn appended(&mut self, appended: Appended) -> Result<()> {
        self.propose(&appended)?;
        self.pass_to_sync(appended)
    }

    /// Lets the sync agent know of a frame that somebody waits for.
    pub(super) fn pass_to_sync(&mut self, appended: Appended) -> Result<()> {
        self.tell()?;
        if let Some(opened) = appended.opened {
            self.send(SyncItem::Opened(opened))?;
        }
        self.send(SyncItem::Appended { end: appended.end, urgent: true })
    }

    /// Lets go of the publishers that have ended and of which nothing is left to take in.
    fn drop_gone(&mut self) -> Result<()> {
        if !self.lanes.iter().any(|l| l.gone) {
            return Ok(());
        }
        self.tell()?;
        let over = |l: &mut Lane| l.gone && l.pending.is_none() && (l.failed || !l.receiver.has_batches());
        for lane in self.lanes.extract_if(.., over).collect::<Vec<_>>() {
            lane.slot.free();
            tracing::info!(publisher = lane.publisher.0, "publisher detached");
            self.send(SyncItem::Freed(lane.slot_index))?;
            self.send(SyncItem::Answer(Answer::Retired(lane.receiver)))?;
        }
        self.control.set_statistic(Statistic::Publishers, self.lanes.len() as u64);
        Ok(())
    }
}

impl Untold {
    fn is_due(&self, now: u64, durable: Position) -> bool {
        let Some(end) = self.end else { return false };
        now.saturating_sub(self.since) > TELL_AFTER.as_nanos() as u64 || end.position.0.saturating_sub(durable.0) > TELL_BYTES
    }

    /// An acknowledgement covers the ones before it.
    fn ack(&mut self, slot: usize, pub_seq: PubSeq, lsn: Lsn) {
        match self.acks.iter_mut().find(|a| a.0 == slot) {
            Some(known) => *known = (slot, pub_seq, lsn),
            None => self.acks.push((slot, pub_seq, lsn)),
        }
    }
}
