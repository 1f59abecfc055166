//! Owns: what the ingest agent answers to publishers: who is let in and in which epoch, which instruments and kinds
//! there are.
//!
//! What must hold: an answer leaves after everything that it rests on is durable, in a cluster on most hosts.

use std::collections::VecDeque;

use super::attach::{Answer, Request};
use super::forward::Passed;
use super::ingest::{HELD_BACK_PARK, IngestAgent};
use super::lane::Lane;
use super::sync::SyncItem;
use crate::bus::Receiver;
use crate::bus::attach::{Grant, Message, Mode};
use crate::error::{Error, Result};
use crate::lsn::{InstrumentId, Level, NO_SUCH_LEVEL, PublisherId};
use crate::manifest::PublisherState;
use crate::record::{Layout, Name};
use crate::shm::control::{SLOTS_MAX, SlotState, Statistic};

/// Why a request is refused meanwhile.
const NO_SPACE_REASON: &str = "NoSpace: the disk is nearly full; `tape status` says how full. Try again when there is room";

impl IngestAgent {
    pub(super) fn serve(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Attach { connection, level, receiver, .. } if self.level_for(level).is_none() => {
                self.refuse_level(connection, receiver)
            }
            Request::Attach { connection, publisher, mode, level, incarnation, grant, receiver } => {
                self.take_in_earlier(publisher)?;
                let slot_index = self.slots.pop();
                let granted = match slot_index {
                    None => Err(Message::Refused(format!("{SLOTS_MAX} publishers are attached; that is the limit"))),
                    Some(_) => self.epoch_for(publisher, mode, incarnation)?,
                };
                match (granted, slot_index) {
                    (Ok(state), Some(slot_index)) => {
                        let level = self.level_for(level).unwrap_or(level);
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

    /// The level that who asks for `level` gets, if this store has it.
    pub(super) fn level_for(&self, level: Level) -> Option<Level> {
        level.granted(self.level_min, self.is_lossy)
    }

    /// Tells a publisher that the store does not have the level that it asks for.
    pub(super) fn refuse_level(&mut self, connection: u64, receiver: Receiver) -> Result<()> {
        // It rests on nothing that others would have to have.
        self.tell()?;
        let message = Message::Refused(NO_SUCH_LEVEL.to_owned());
        self.send(SyncItem::Answer(Answer::Say { connection, message }))?;
        self.send(SyncItem::Answer(Answer::Retired(receiver)))
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
}
