//! Owns: the ingest thread: it feeds the host's state machine (requests, batches, messages of other hosts, results of the sync
//! and flush agents) and carries out the effects that the state machine asks for.
//!
//! What must hold: effects are carried out in order. A frame holds all that waits, and never waits for more. The thread sleeps
//! only when a turn has found nothing, and its heartbeat stays young.

use std::time::Duration;

use crossbeam_channel::{Receiver as Queue, Sender as Post, TrySendError};

use super::attach::Posted;
use super::cluster_socket::ClusterSocket;
use super::effect::{Effect, Moment};
use super::ended::Ended;
use super::flush::{FlushItem, FlushNotice};
use super::host::Host;
use super::ports::Ports;
use super::sync::{Answer, SyncItem};
use tapestore::agent::{Idle, Stop, Wait};
use tapestore::error::{Error, Result};
use tapestore::shm::bell::{Bell, Bells};
use tapestore::shm::control::Control;
use tapestore::time::Clock;

/// Longest time in which a stopping agent still accepts what arrives.
const STOP_NS: u64 = 500_000_000;
/// Longest time that a stopping leader waits for another to lead.
const HAND_OVER_NS: u64 = 300_000_000;
/// How long a stopping storage waits for its disk, so that what was appended is flushed,
const SETTLE_NS: u64 = 5_000_000_000;
/// and how long between two looks.
const SETTLE_TURN: Duration = Duration::from_millis(1);
/// Longest sleep of a parked ingest agent: its heartbeat must stay young.
const PARK: Duration = Duration::from_millis(100);
/// The same while the cluster has other hosts.
const TICK: Duration = Duration::from_millis(crate::consensus::options::TICK_MS);
/// Sleep under back-pressure: room comes from other threads, which ring no bell.
const BACK_PRESSURE_PARK: Duration = Duration::from_micros(200);
/// The same while the disk is full, which lasts longer.
const NO_SPACE_PARK: Duration = Duration::from_millis(5);
/// Most requests that the host holds at once; others stay in the queue.
const REQUESTS_AT_ONCE: usize = 64;

/// The ingest agent.
pub(super) struct IngestAgent {
    pub(super) host: Host,
    pub(super) ports: Ports,
    pub(super) cluster_socket: ClusterSocket,
    pub(super) control: Control,
    pub(super) bells: Bells,
    pub(super) clock: std::sync::Arc<dyn Clock>,
    pub(super) requests: Queue<Posted>,
    pub(super) sync: Post<SyncItem>,
    pub(super) freed: Queue<usize>,
    pub(super) flush: Post<FlushItem>,
    pub(super) notices: Queue<FlushNotice>,
    pub(super) wait: Wait,
    pub(super) stop: Stop,
    /// The mail counter at the last look at the socket.
    pub(super) mail: u32,
    /// Effects that are being carried out; empty otherwise.
    pub(super) effects: Vec<Effect>,
}

impl IngestAgent {
    /// Runs until it is stopped, after accepting what waits, or until the host's state machine ends it.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write or a sync has failed.
    pub(super) fn run(mut self) -> Result<Ended> {
        let mut idle = Idle::new(self.wait);
        let mut end = None;
        let mut hands_over_until = None;
        loop {
            let stopping = self.stop.is_stopped();
            if stopping && hands_over_until.is_none() {
                hands_over_until = Some(self.clock.monotonic() + HAND_OVER_NS);
                self.host.hand_over()?;
            }
            let hands_over = self.host.leads_others() && hands_over_until.is_some_and(|until| self.clock.monotonic() < until);
            let worked = self.turn()?;
            // What publishers send after this stays in their rings.
            let over = stopping && self.clock.monotonic() >= *end.get_or_insert(self.clock.monotonic() + STOP_NS);
            if let Some(ended) = self.host.ended() {
                self.host.record()?;
                self.finish()?;
                return Ok(ended);
            }
            if worked && !over {
                idle.worked();
            } else if stopping && !hands_over {
                self.settle()?;
                self.host.record()?;
                self.host.seal();
                self.finish()?;
                // Sends the hand-over, so that the others need not wait for an election timeout.
                self.host.send();
                return self.carry_out().map(|()| Ended::Stopped);
            } else if idle.should_park() {
                self.host.notify_sync();
                self.carry_out()?;
                self.park();
                idle.worked();
            }
        }
    }

    /// Waits until what was appended is committed, where that takes only this host's disk: the flush agent flushes no more than that.
    /// Batches that come meanwhile stay with their publishers.
    fn settle(&mut self) -> Result<()> {
        self.host.notify_sync();
        self.carry_out()?;
        let until = self.clock.monotonic() + SETTLE_NS;
        while self.host.is_alone() && !self.host.is_settled() && self.clock.monotonic() < until {
            let at = self.moment();
            self.control.beat(at.now);
            self.host.turn(at, self.sync.len())?;
            self.carry_out()?;
            std::thread::sleep(SETTLE_TURN);
        }
        Ok(())
    }

    /// Stops the sync agent, which first makes everything durable.
    fn finish(&mut self) -> Result<()> {
        self.host.notify_sync();
        self.carry_out()?;
        self.send(SyncItem::Stop)
    }

    fn park(&self) {
        if let Some(lasts) = self.host.back_pressure() {
            return std::thread::sleep(if lasts { NO_SPACE_PARK } else { BACK_PRESSURE_PARK });
        }
        let limit = if self.host.is_alone() { PARK } else { TICK };
        self.bells.sleep(Bell::Ingest, limit, || {
            (!self.requests.is_empty() && self.host.waiting() < REQUESTS_AT_ONCE)
                || !self.notices.is_empty()
                || self.bells.mail() != self.mail
                || self.host.is_due()
                || self.stop.is_stopped()
                || self.ports.has_batches()
        });
    }

    fn moment(&self) -> Moment {
        Moment { now: self.clock.monotonic(), wall: self.clock.wall() }
    }

    fn turn(&mut self) -> Result<bool> {
        let at = self.moment();
        self.control.beat(at.now);
        let mut worked = self.bring(at)?;
        worked |= self.host.turn(at, self.sync.len())?;
        self.carry_out()?;
        if self.host.ended().is_some() {
            return Ok(true);
        }
        let has_taken = self.ports.drain(&mut self.host, at.now);
        worked |= has_taken;
        // A frame has the time at which its last batch was taken.
        let wall = if has_taken { self.clock.wall() } else { at.wall };
        self.host.append(Moment { wall, ..at })?;
        self.carry_out()?;
        self.ports.drop_ended(&mut self.host, at.now);
        self.carry_out()?;
        Ok(worked)
    }

    /// Passes on to the host what has arrived, except batches. Returns whether there was something.
    fn bring(&mut self, at: Moment) -> Result<bool> {
        let mut worked = false;
        while let Ok(slot) = self.freed.try_recv() {
            self.host.freed(slot);
        }
        while let Ok(notice) = self.notices.try_recv() {
            self.host.flushed(notice);
            worked = true;
        }
        while self.host.waiting() < REQUESTS_AT_ONCE
            && let Ok(Posted { request, receiver }) = self.requests.try_recv()
        {
            if let Some(receiver) = receiver {
                self.ports.add(request.connection(), receiver);
            }
            self.host.request(request);
            worked = true;
        }
        let mail = self.bells.mail();
        let is_tick = self.host.is_tick_due(at.now);
        // A process that writes more than the socket holds rings only when all is written.
        let has_part = self.cluster_socket.has_part() || (is_tick && !self.host.is_alone());
        if mail != self.mail || has_part {
            self.mail = mail;
            let (messages, gone) = self.cluster_socket.look();
            worked |= !messages.is_empty();
            for (link, message) in messages {
                let is_replication = self.cluster_socket.is_from_replication(link);
                self.host.message(link, is_replication, message, at.wall)?;
                // A greeting decides which process the next message is from.
                self.carry_out()?;
            }
            if gone {
                self.host.replication_gone()?;
            }
        }
        if is_tick && self.cluster_socket.flush() {
            self.host.replication_gone()?;
        }
        Ok(worked)
    }

    /// Carries out the host's effects.
    ///
    /// # Errors
    /// [`Error::Halted`] if the sync agent has ended: nothing more will be durable.
    fn carry_out(&mut self) -> Result<()> {
        if !self.host.has_effects() {
            return Ok(());
        }
        let mut effects = std::mem::take(&mut self.effects);
        self.host.swap_effects(&mut effects);
        let mut messages = Vec::new();
        for effect in effects.drain(..) {
            // Consecutive messages for the replication process are written at once.
            if let Effect::Notify(message) = effect {
                messages.push(message);
                continue;
            }
            if !messages.is_empty() {
                self.cluster_socket.notify_all(&std::mem::take(&mut messages));
            }
            match effect {
                Effect::Sync(item) => self.send(item)?,
                Effect::Flush(item) => self.pass_on(item),
                Effect::Ring(bell) => self.bells.ring(bell),
                Effect::Notify(_) => {}
                Effect::Say(link, message) => self.cluster_socket.say(link, &message),
                Effect::Replication(link) => self.cluster_socket.is_replication(link),
                Effect::Attached { connection, slot } => self.ports.attach(connection, slot),
                Effect::Ending { slot } => self.ports.end(slot),
                Effect::Detached { connection } => {
                    if let Some(receiver) = self.ports.remove(connection) {
                        self.send(SyncItem::Answer(Answer::Retired(receiver)))?;
                    }
                }
            }
        }
        if !messages.is_empty() {
            self.cluster_socket.notify_all(&messages);
        }
        self.effects = effects;
        Ok(())
    }

    /// Sends `item` to the sync agent.
    fn send(&self, item: SyncItem) -> Result<()> {
        let ended = |_| Error::Halted { op: "sync of the log", cause: "the sync agent has logged the cause".to_owned() };
        self.sync.send(item).map_err(ended)
    }

    /// Sends `item` to the flush agent, whose queue has two places for each table.
    fn pass_on(&self, item: FlushItem) {
        let sent = self.flush.try_send(item);
        assert!(!matches!(sent, Err(TrySendError::Full(_))), "more MemTables than there can be");
    }
}
