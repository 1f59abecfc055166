//! Owns: the ingest agent: it takes batches from the publishers' services in turn, fills frames,
//! appends and applies them, and acknowledges.
//!
//! What must hold: publishers are served round-robin with a quota, so that no busy one starves the
//! rest; a frame is whatever waits, never waited for; acknowledgements of level `os` are given after
//! the frame is in the log, those of `fsync` by the sync agent.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver as Queue, Sender as Post, TrySendError};

use std::collections::VecDeque;

use super::attach::{Answer, Request};
use super::cluster::Cluster;
use super::core::{Committed, Core, Offer, Readiness};
use super::flush::{Filed, FlushItem, Told};
use super::forward::{Forwarding, Passed};
use super::space::Room;
use super::sync::{SYNC_QUEUE, SyncItem};
use crate::agent::{Idle, Stop, Wait};
use crate::bus::attach::{Grant, Message, Mode};
use crate::bus::{Batch, Receiver};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, InstrumentId, Level, Lsn, Position, PubSeq, PublisherId};
use crate::manifest::PublisherState;
use crate::record::{Layout, Name};
use crate::sabotage::{self, Sabotage};
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::{Control, NO_SPACE, SLOTS_MAX, Slot, SlotState, Statistic};
use crate::time::Clock;
use crate::wal::{Appended, Body, Evidence, Fact, Frame};

/// Batches of one publisher in one turn.
const QUOTA: usize = 64;
/// Items that wait for the sync agent before publishers are held back.
const SYNC_ITEMS_MAX: usize = SYNC_QUEUE / 2;
/// A stopping agent takes in what comes for so long at most.
const STOP_NS: u64 = 500_000_000;
/// Longest sleep of a parked ingest agent: its heartbeat must stay young.
const PARK: Duration = Duration::from_millis(100);
/// The same while there are other hosts.
const TICK: Duration = Duration::from_millis(crate::consensus::node::TICK_MS);
/// Sleep while there is no room: it comes from other threads, which ring no bell.
const HELD_BACK_PARK: Duration = Duration::from_micros(200);
/// The same while the disk is full, which lasts.
const NO_SPACE_PARK: Duration = Duration::from_millis(5);
/// Why a request is refused meanwhile.
const NO_SPACE_REASON: &str = "NoSpace: the disk is nearly full; `tape status` says how full. Try again when there is room";

/// Frames of which the sync agent is told together, so that it is not woken for each.
#[derive(Default)]
pub(super) struct Untold {
    end: Option<Evidence>,
    since: u64,
    urgent: bool,
    acks: Vec<(usize, PubSeq, Lsn)>,
}

/// The sync agent is told after this long at the latest, and of this many bytes at most.
pub(super) const TELL_AFTER: Duration = Duration::from_millis(2);
const TELL_BYTES: u64 = 1 << 20;

/// An attached publisher.
pub(super) struct Lane {
    connection: u64,
    pub(super) publisher: PublisherId,
    pub(super) epoch: Epoch,
    level: Level,
    slot_index: usize,
    pub(super) slot: Slot,
    receiver: Receiver,
    /// What is in the log and not committed.
    uncommitted: VecDeque<(Lsn, PubSeq)>,
    /// What of it has been passed on to the leader.
    pub(super) passed: Passed,
    /// Taken from the queue, but did not fit in the frame.
    pending: Option<Batch>,
    /// Whether the publisher has been told of the gap that it is in.
    in_gap: bool,
    pub(super) fenced: bool,
    gone: bool,
    /// Its queue cannot be read any more.
    failed: bool,
}

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
    /// Runs until it is told to stop; what waits then is still taken in. If it ends because the log is to be cut, it
    /// gives the last frame that stays.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`]: a write failed.
    pub(super) fn run(mut self) -> Result<Option<u64>> {
        let mut idle = Idle::new(self.wait);
        let mut end = None;
        loop {
            let stopping = self.stop.is_stopped();
            let worked = self.turn()?;
            // What publishers send after that stays in their rings.
            let over = stopping && self.clock.monotonic() >= *end.get_or_insert(self.clock.monotonic() + STOP_NS);
            if self.cluster.cut.is_some() {
                self.tell()?;
                self.send(SyncItem::Stop)?;
                return Ok(self.cluster.cut);
            }
            if worked && !over {
                idle.worked();
            } else if stopping {
                self.tell()?;
                self.send(SyncItem::Stop)?;
                // Others need not wait for an election timeout.
                return self.speak().map(|()| None);
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
        if self.cluster.cut.is_some() {
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
    fn has_no_space(&self) -> bool {
        self.room.is_low() || self.room.is_refused()
    }

    /// Fills a frame from the lanes, beginning with another one in each turn, and commits it.
    fn drain(&mut self) -> Result<bool> {
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
                self.untold.urgent |= lane.level >= Level::Fsync;
                self.untold.ack(lane.slot_index, pub_seq, lsn);
            }
        }
        self.bells.ring(Bell::Ack);
        // Other hosts wait for this one, or this one for them.
        self.untold.urgent |= !self.cluster.covered.is_alone();
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

    fn appended(&mut self, appended: Appended) -> Result<()> {
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

    pub(super) fn serve(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Attach { connection, publisher, mode, level, incarnation, grant, receiver } => {
                self.take_in_earlier(publisher)?;
                let slot_index = self.slots.pop();
                let granted = match slot_index {
                    None => Err(Message::Refused(format!("{SLOTS_MAX} publishers are attached; that is the limit"))),
                    Some(_) => self.epoch_for(publisher, mode, incarnation)?,
                };
                match (granted, slot_index) {
                    (Ok(state), Some(slot_index)) => {
                        let level = level.max(self.level_min);
                        self.let_in(connection, publisher, level, grant, receiver, slot_index, state)
                    }
                    (Err(refusal), slot_index) => {
                        self.slots.extend(slot_index);
                        self.say(connection, refusal)?;
                        self.send(SyncItem::Answer(Answer::Retired(receiver)))
                    }
                    (Ok(_), None) => Ok(()),
                }
            }
            Request::Symbols { connection, names } => {
                let answer = self.symbols(&names)?.map_or_else(|refusal| refusal, Message::Ids);
                self.say(connection, answer)
            }
            Request::Kind { connection, layout } => {
                let answer = self.kind(&layout)?.map_or_else(|refusal| refusal, |()| Message::Known);
                self.say(connection, answer)
            }
            Request::Gone { connection } => {
                self.lanes.iter_mut().filter(|l| l.connection == connection).for_each(|l| l.gone = true);
                Ok(())
            }
        }
    }

    /// What the publisher's earlier self has sent counts: it is taken in first, as far as there is room.
    fn take_in_earlier(&mut self, publisher: PublisherId) -> Result<()> {
        let waits = |l: &Lane| l.publisher == publisher && (l.pending.is_some() || l.receiver.has_batches());
        while self.lanes.iter().any(waits) && self.has_room(self.clock.monotonic())? {
            if !self.drain()? {
                break;
            }
        }
        self.wait_for_log()
    }

    /// Waits until a frame can be appended, whatever the MemTables hold.
    fn wait_for_log(&mut self) -> Result<()> {
        while !self.core.writer.ready()? && !self.stop.is_stopped() && !self.has_no_space() {
            self.control.beat(self.clock.monotonic());
            std::thread::sleep(HELD_BACK_PARK);
        }
        Ok(())
    }

    /// The state in which `publisher` goes on, or why it does not.
    pub(super) fn epoch_for(
        &mut self,
        publisher: PublisherId,
        mode: Mode,
        incarnation: u32,
    ) -> Result<Result<PublisherState, Message>> {
        let known = self.core.publisher(publisher);
        let above = match mode {
            // Granted to this very process, which may not have been told of it: storage was killed meanwhile.
            Mode::Resume(epoch) if epoch <= known.epoch && incarnation == known.incarnation => return Ok(Ok(known)),
            // The same epoch of another process: one of them had it before the store was restored.
            Mode::Resume(epoch) if epoch <= known.epoch => return Ok(Err(Message::Fenced(known.epoch))),
            // The log does not know this epoch: it went with a torn tail. The publisher sees another
            // epoch than it asked for, and reports what it has lost.
            Mode::Resume(epoch) => epoch,
            Mode::New => known.epoch,
        };
        if !self.core.writer.ready()? {
            return Ok(Err(self.not_now()));
        }
        match self.core.begin_epoch(publisher, incarnation, above, self.clock.wall()) {
            Ok((state, appended)) => self.appended(appended).map(|()| Ok(state)),
            Err(e @ Error::Halted { .. }) => Err(e),
            Err(e) => Ok(Err(Message::Refused(e.to_string()))),
        }
    }

    /// The answer to a request for which the log cannot be written.
    fn not_now(&self) -> Message {
        let reason = if self.has_no_space() { NO_SPACE_REASON } else { "storage is stopping" };
        Message::Refused(reason.to_owned())
    }

    #[expect(clippy::too_many_arguments, reason = "what a lane is made of")]
    pub(super) fn let_in(
        &mut self,
        connection: u64,
        publisher: PublisherId,
        level: Level,
        grant: u64,
        receiver: Receiver,
        slot_index: usize,
        state: PublisherState,
    ) -> Result<()> {
        for lane in self.lanes.iter_mut().filter(|l| l.publisher == publisher) {
            lane.fenced = true;
            lane.slot.set_state(SlotState::Fenced);
        }
        let slot = self.control.slot(slot_index);
        slot.grant(grant, publisher, state.epoch, state.last, state.lsn);
        let (epoch, pub_seq, lsn, instance) = (state.epoch, state.last, state.lsn, self.instance);
        self.say(connection, Message::Attached(Grant { grant, slot: slot_index, epoch, pub_seq, lsn, instance, level }))?;
        self.lanes.push(Lane {
            connection,
            publisher,
            epoch: state.epoch,
            level,
            slot_index,
            slot,
            receiver,
            uncommitted: VecDeque::new(),
            passed: Passed::default(),
            pending: None,
            in_gap: false,
            fenced: false,
            gone: false,
            failed: false,
        });
        self.control.set_statistic(Statistic::Publishers, self.lanes.len() as u64);
        tracing::info!(publisher = publisher.0, epoch = epoch.0, pub_seq = pub_seq.0, %level, "publisher attached");
        Ok(())
    }

    pub(super) fn say(&mut self, connection: u64, message: Message) -> Result<()> {
        // An answer means that everything before it is durable, and on as many hosts as it takes.
        self.say_committed(connection, message)
    }

    /// The instruments called `names`, or why they are not to be had.
    pub(super) fn symbols(&mut self, names: &[Name]) -> Result<Result<Vec<InstrumentId>, Message>> {
        let mut ids = Vec::with_capacity(names.len());
        let mut rest = names;
        while !rest.is_empty() {
            self.wait_for_log()?;
            if self.room.is_low() || !self.core.writer.ready()? {
                return Ok(Err(self.not_now()));
            }
            match self.core.instruments(rest, self.clock.wall()) {
                Ok((some, appended)) => {
                    rest = rest.get(some.len()..).unwrap_or(&[]);
                    ids.extend(some);
                    if let Some(appended) = appended {
                        self.appended(appended)?;
                    }
                }
                Err(e @ Error::Halted { .. }) => return Err(e),
                Err(e) => return Ok(Err(Message::Refused(e.to_string()))),
            }
        }
        Ok(Ok(ids))
    }

    /// Makes `layout` a kind of the store, or says why it cannot be one.
    pub(super) fn kind(&mut self, layout: &Layout) -> Result<Result<(), Message>> {
        self.wait_for_log()?;
        if self.room.is_low() || !self.core.writer.ready()? {
            return Ok(Err(self.not_now()));
        }
        match self.core.kind(layout, self.clock.wall()) {
            Ok(Some(appended)) => {
                tracing::info!(kind = layout.kind().0, name = layout.name(), "a program's kind is registered");
                self.appended(appended)?;
            }
            Ok(None) => {}
            Err(e @ Error::Halted { .. }) => return Err(e),
            Err(e) => return Ok(Err(Message::Refused(e.to_string()))),
        }
        Ok(Ok(()))
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Done,
    FrameFull,
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

impl Lane {
    /// The next batch that its publisher has sent.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        if let Some(batch) = self.pending.take() {
            return Some(batch);
        }
        match self.receiver.receive() {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(%error, publisher = self.publisher.0, "a publisher's service fails; it is let go");
                self.slot.set_state(SlotState::Refused);
                (self.gone, self.failed) = (true, true);
                None
            }
        }
    }

    /// Records up to `lsn` are committed.
    pub(super) fn committed(&mut self, lsn: Lsn) {
        while let Some((lsn, pub_seq)) = self.uncommitted.pop_front_if(|u| u.0 <= lsn) {
            self.slot.ack_committed(pub_seq, lsn);
        }
    }

    fn take(&mut self, batch: Batch, core: &mut Core, control: &Control) -> Taken {
        let header = batch.header();
        if header.publisher() != self.publisher {
            control.add(Statistic::Malformed, 1);
            self.slot.set_state(SlotState::Refused);
            return Taken::Done;
        }
        match core.offer(header, batch.words()) {
            Offer::Accepted => self.in_gap = false,
            Offer::Duplicate => {}
            Offer::Gap(expected) => {
                control.add(Statistic::Gaps, 1);
                if !std::mem::replace(&mut self.in_gap, true) {
                    self.slot.gap(expected);
                }
            }
            Offer::Fenced => {
                control.add(Statistic::Fenced, 1);
                self.slot.set_state(SlotState::Fenced);
            }
            Offer::Malformed => {
                control.add(Statistic::Malformed, 1);
                self.slot.set_state(SlotState::Refused);
                tracing::error!(publisher = self.publisher.0, ?header, "a publisher sent a malformed batch; it is refused");
            }
            Offer::FrameFull => {
                self.pending = Some(batch);
                return Taken::FrameFull;
            }
        }
        Taken::Done
    }
}
