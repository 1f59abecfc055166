//! Owns: the ingest agent: it takes batches from the publishers' services in turn, fills frames,
//! appends and applies them, and acknowledges.
//!
//! What must hold: publishers are served round-robin with a quota, so that no busy one starves the
//! rest; a frame is whatever waits, never waited for; acknowledgements of level `os` are given after
//! the frame is in the log, those of `fsync` by the sync agent.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver as Queue, Sender as Post};

use super::attach::{Answer, Request};
use super::core::{Core, Offer, Readiness};
use super::sync::SyncItem;
use crate::agent::{Idle, Stop, Wait};
use crate::bus::attach::{Grant, Message, Mode};
use crate::bus::{Batch, Receiver};
use crate::error::Result;
use crate::lsn::{Level, Lsn, Position, PubSeq, PublisherId};
use crate::record::Name;
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::{Control, SLOTS_MAX, Slot, SlotState, Statistic};
use crate::time::Clock;
use crate::wal::{Appended, Evidence};

/// Batches of one publisher in one turn.
const QUOTA: usize = 64;
/// Longest sleep of a parked ingest agent: its heartbeat must stay young.
const PARK: Duration = Duration::from_millis(100);
/// Sleep while there is no room: it comes from other threads, which ring no bell.
const HELD_BACK_PARK: Duration = Duration::from_micros(200);

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
    publisher: PublisherId,
    level: Level,
    slot_index: usize,
    slot: Slot,
    receiver: Receiver,
    /// Taken from the queue, but did not fit in the frame.
    pending: Option<Batch>,
    /// Whether the publisher has been told of the gap that it is in.
    in_gap: bool,
    fenced: bool,
    gone: bool,
}

/// The ingest agent.
pub(super) struct IngestAgent {
    pub(super) core: Core,
    pub(super) control: Control,
    pub(super) bells: Bells,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) requests: Queue<Request>,
    pub(super) sync: Post<SyncItem>,
    pub(super) freed: Queue<usize>,
    pub(super) instance: u64,
    pub(super) unsynced_max: u64,
    pub(super) level_min: Level,
    pub(super) wait: Wait,
    pub(super) stop: Stop,
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
    /// Runs until it is told to stop; what waits then is still taken in.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`]: a write failed.
    pub(super) fn run(mut self) -> Result<()> {
        let mut idle = Idle::new(self.wait);
        loop {
            let stopping = self.stop.is_stopped();
            let worked = self.turn()?;
            if worked {
                idle.worked();
            } else if stopping {
                self.tell();
                self.send(SyncItem::Stop);
                return Ok(());
            } else if idle.should_park() {
                self.tell();
                self.park();
                idle.worked();
            }
        }
    }

    fn park(&self) {
        if self.held_since.is_some() {
            return std::thread::sleep(HELD_BACK_PARK);
        }
        self.bells.sleep(Bell::Ingest, PARK, || {
            !self.requests.is_empty() || self.stop.is_stopped() || self.lanes.iter().any(|l| l.receiver.has_batches())
        });
    }

    fn turn(&mut self) -> Result<bool> {
        let now = self.clock.monotonic();
        self.control.beat(now);
        if self.untold.is_due(now, self.control.durable_position()) {
            self.tell();
        }
        let mut worked = false;
        while let Ok(slot) = self.freed.try_recv() {
            self.slots.push(slot);
        }
        if self.has_room(now)? {
            if let Ok(request) = self.requests.try_recv() {
                self.serve(request)?;
                worked = true;
            }
            worked |= self.drain()?;
        }
        Ok(worked)
    }

    /// Whether a frame can be taken in; keeps count of the time in which none can.
    fn has_room(&mut self, now: u64) -> Result<bool> {
        let unsynced = self.core.writer.chain().position.0.saturating_sub(self.control.durable_position().0);
        let why = match self.core.is_ready()? {
            Readiness::MemTableFull => 1,
            Readiness::NoSegment => 2,
            Readiness::Ready if unsynced > self.unsynced_max => 2,
            Readiness::Ready => 0,
        };
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
            (_, Some(_)) => {}
        }
        Ok(why == 0)
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
                let batch = match lane.pending.take() {
                    Some(batch) => batch,
                    None => match lane.receiver.receive() {
                        Ok(Some(batch)) => batch,
                        Ok(None) => break,
                        Err(error) => {
                            tracing::error!(%error, publisher = lane.publisher.0, "a publisher's service fails");
                            break;
                        }
                    },
                };
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
        self.drop_gone(full);
        Ok(took)
    }

    fn commit(&mut self) -> Result<()> {
        let Some(committed) = self.core.commit(self.clock.wall())? else { return Ok(()) };
        self.bells.ring(Bell::Applied);
        let Appended { end, opened, .. } = committed.appended;
        if let Some(opened) = opened {
            self.tell();
            self.send(SyncItem::Opened(opened));
        }
        for (publisher, pub_seq, lsn) in committed.accepted {
            if let Some(lane) = self.lanes.iter().rev().find(|l| l.publisher == publisher && !l.fenced) {
                lane.slot.accept(pub_seq, lsn);
                self.untold.urgent |= lane.level >= Level::Fsync;
                self.untold.ack(lane.slot_index, pub_seq, lsn);
            }
        }
        self.bells.ring(Bell::Ack);
        if self.untold.end.replace(end).is_none() {
            self.untold.since = self.clock.monotonic();
        }
        if self.untold.urgent {
            self.tell();
        }
        Ok(())
    }

    /// Tells the sync agent what it has not been told yet.
    fn tell(&mut self) {
        let Some(end) = self.untold.end.take() else { return };
        let urgent = std::mem::take(&mut self.untold.urgent);
        self.send(SyncItem::Appended { end, urgent });
        for (slot, pub_seq, lsn) in std::mem::take(&mut self.untold.acks) {
            self.send(SyncItem::Ack { slot, pub_seq, lsn });
        }
    }

    fn send(&self, item: SyncItem) {
        // The sync agent ends only after Stop, or with an error that ends the process.
        if self.sync.send(item).is_err() {
            tracing::debug!("the sync agent has ended");
        }
    }

    fn appended(&mut self, appended: Appended) {
        self.tell();
        if let Some(opened) = appended.opened {
            self.send(SyncItem::Opened(opened));
        }
        self.send(SyncItem::Appended { end: appended.end, urgent: true });
    }

    fn serve(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Attach { connection, publisher, mode, level, grant, receiver } => {
                self.attach(connection, publisher, mode, level.max(self.level_min), grant, receiver)
            }
            Request::Symbols { connection, names } => self.symbols(connection, &names),
            Request::Gone { connection } => {
                self.lanes.iter_mut().filter(|l| l.connection == connection).for_each(|l| l.gone = true);
                Ok(())
            }
        }
    }

    fn attach(
        &mut self,
        connection: u64,
        publisher: PublisherId,
        mode: Mode,
        level: Level,
        grant: u64,
        receiver: Receiver,
    ) -> Result<()> {
        // What the publisher's earlier self has sent counts: it is taken in first.
        while self.lanes.iter().any(|l| l.publisher == publisher && l.receiver.has_batches())
            && self.has_room(self.clock.monotonic())?
        {
            if !self.drain()? {
                break;
            }
        }
        let known = self.core.publisher(publisher);
        let above = match mode {
            Mode::New => Some(known.epoch),
            // The log does not know this epoch: it went with a torn tail. The publisher sees another
            // epoch than it asked for, and reports what it has lost.
            Mode::Resume(epoch) if epoch > known.epoch => Some(epoch),
            Mode::Resume(_) => None,
        };
        let state = match (above, mode) {
            (Some(above), _) => {
                let (state, appended) = self.core.begin_epoch(publisher, above, self.clock.wall())?;
                self.appended(appended);
                state
            }
            (None, Mode::Resume(epoch)) if epoch < known.epoch => {
                self.say(connection, Message::Fenced(known.epoch));
                self.send(SyncItem::Answer(Answer::Retired(receiver)));
                return Ok(());
            }
            (None, _) => known,
        };
        for lane in self.lanes.iter_mut().filter(|l| l.publisher == publisher) {
            lane.fenced = true;
            lane.slot.set_state(SlotState::Fenced);
        }
        let Some(slot_index) = self.slots.pop() else {
            self.say(connection, Message::Refused(format!("{SLOTS_MAX} publishers are attached; that is the limit")));
            self.send(SyncItem::Answer(Answer::Retired(receiver)));
            return Ok(());
        };
        let slot = self.control.slot(slot_index);
        slot.grant(grant, publisher, state.epoch, state.last, state.lsn);
        let (epoch, pub_seq, lsn, instance) = (state.epoch, state.last, state.lsn, self.instance);
        self.say(connection, Message::Attached(Grant { grant, slot: slot_index, epoch, pub_seq, lsn, instance, level }));
        self.lanes.push(Lane {
            connection,
            publisher,
            level,
            slot_index,
            slot,
            receiver,
            pending: None,
            in_gap: false,
            fenced: false,
            gone: false,
        });
        self.control.set_statistic(Statistic::Publishers, self.lanes.len() as u64);
        tracing::info!(publisher = publisher.0, epoch = epoch.0, pub_seq = pub_seq.0, %level, "publisher attached");
        Ok(())
    }

    fn say(&mut self, connection: u64, message: Message) {
        // An answer means that everything before it is durable.
        self.tell();
        self.send(SyncItem::Answer(Answer::Say { connection, message }));
    }

    fn symbols(&mut self, connection: u64, names: &[Name]) -> Result<()> {
        let mut ids = Vec::with_capacity(names.len());
        let mut rest = names;
        while !rest.is_empty() {
            while self.core.is_ready()? == Readiness::NoSegment {
                self.control.beat(self.clock.monotonic());
                std::thread::sleep(HELD_BACK_PARK);
            }
            match self.core.instruments(rest, self.clock.wall()) {
                Ok((some, appended)) => {
                    rest = rest.get(some.len()..).unwrap_or(&[]);
                    ids.extend(some);
                    if let Some(appended) = appended {
                        self.appended(appended);
                    }
                }
                Err(e @ crate::error::Error::Halted { .. }) => return Err(e),
                Err(e) => {
                    self.say(connection, Message::Refused(e.to_string()));
                    return Ok(());
                }
            }
        }
        self.say(connection, Message::Ids(ids));
        Ok(())
    }

    /// Lets go of the publishers that have ended and of which nothing is left to take in.
    fn drop_gone(&mut self, frame_was_full: bool) {
        if frame_was_full || !self.lanes.iter().any(|l| l.gone) {
            return;
        }
        self.tell();
        let over = |l: &mut Lane| l.gone && l.pending.is_none() && !l.receiver.has_batches();
        for lane in self.lanes.extract_if(.., over).collect::<Vec<_>>() {
            lane.slot.free();
            tracing::info!(publisher = lane.publisher.0, "publisher detached");
            self.send(SyncItem::Freed(lane.slot_index));
            self.send(SyncItem::Answer(Answer::Retired(lane.receiver)));
        }
        self.control.set_statistic(Statistic::Publishers, self.lanes.len() as u64);
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
