//! Owns: the sync agent: it makes the log durable and publishes how far.
//!
//! What must hold: an acknowledgement or an answer is sent only after a sync that covers it has returned. One sync is in
//! flight, and covers everything appended before it began. Records that nobody waits for are durable within the interval or
//! the byte limit, whichever comes first. After a pause the disk itself holds a mark of how much of it is durable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError};

use super::traces::Traces;
use super::waker::Waker;
use super::watermarks::Watermarks;
use tapestore::agent::{Idle, Stop, Wait};
use tapestore::bus::Receiver as BusReceiver;
use tapestore::bus::attach::Message;
use tapestore::error::Result as Outcome;
use tapestore::lsn::{Lsn, Position, PubSeq};
use tapestore::shm::bell::{Bell, Bells};
use tapestore::shm::control::{Control, Statistic};
use tapestore::shm::histogram::Histogram;
use tapestore::time::{Clock, HostClock};
use tapestore::wal::{DurableMark, Opened, Syncer};

/// Items that the ingest agent passes on, in order.
pub(super) enum SyncItem {
    /// The log has rolled.
    Opened(Opened),
    /// The log ends here now.
    Appended {
        /// The end.
        end: DurableMark,
        /// Whether a publisher or host waits for it to be durable.
        urgent: bool,
        /// When the oldest of its frames was appended, ns of the monotonic clock; 0: nobody measures.
        since: u64,
    },
    /// Once everything before is durable: acknowledge to the slot's publisher.
    Ack {
        /// The slot.
        slot: usize,
        /// The last number.
        pub_seq: PubSeq,
        /// Its LSN.
        lsn: Lsn,
    },
    /// Once everything before is durable: send this answer.
    Answer(Answer),
    /// Once everything before has been handled: free this slot.
    Freed(usize),
    /// Make everything durable and end.
    Stop,
}

/// An answer of ingest's, sent by way of the sync agent.
pub(super) enum Answer {
    /// Send a message.
    Say {
        /// The connection.
        connection: u64,
        /// The message.
        message: Message,
    },
    /// The receiver is no longer used.
    Retired(BusReceiver),
}

/// Most items that wait for the sync agent.
pub(super) const SYNC_QUEUE: usize = 64 << 10;

/// When to sync records that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// After this long.
    pub interval: Duration,
    /// Or this many bytes.
    pub bytes: u64,
}

/// After a pause this long, a mark of how much is durable is recorded.
const RECORD_AFTER: Duration = Duration::from_millis(10);

/// Longest sleep when there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);

/// The sync agent.
pub(super) struct SyncAgent {
    pub(super) syncer: Syncer,
    pub(super) items: Receiver<SyncItem>,
    pub(super) answers: Sender<Answer>,
    pub(super) freed: Sender<usize>,
    pub(super) control: Control,
    pub(super) watermarks: Arc<Watermarks>,
    pub(super) bells: Bells,
    pub(super) wake_attach: Waker,
    pub(super) pace: Pace,
    pub(super) wait: Wait,
    /// Whether a publisher or host waited for the last sync.
    pub(super) was_urgent: bool,
    /// Set when a sync has failed, before anything else happens.
    pub(super) halted: Stop,
    pub(super) traces: Traces,
}

/// Items that were taken from the queue and are not yet handled.
#[derive(Default)]
struct Batch {
    end: Option<DurableMark>,
    urgent: bool,
    since: Option<Instant>,
    /// When the oldest frame was appended, ns of the monotonic clock; 0: unknown.
    appended_at: u64,
    acks: Vec<(usize, PubSeq, Lsn)>,
    answers: Vec<Answer>,
    freed: Vec<usize>,
    stop: bool,
}

impl SyncAgent {
    /// Runs until it is stopped.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a sync has failed. Nothing more is acknowledged then.
    pub(super) fn run(self) -> Outcome<Syncer> {
        let halted = self.halted.clone();
        let ended = self.serve();
        if ended.is_err() {
            halted.stop();
        }
        ended
    }

    fn serve(mut self) -> Outcome<Syncer> {
        let mut batch = Batch::default();
        loop {
            self.take(&mut batch);
            if batch.stop || self.is_due(&batch) {
                self.sync(&mut batch)?;
            }
            if batch.stop {
                self.syncer.record()?;
                return Ok(self.syncer);
            }
        }
    }

    fn is_due(&self, batch: &Batch) -> bool {
        // Without a new end, everything is durable already.
        let Some(end) = batch.end else { return !(batch.acks.is_empty() && batch.answers.is_empty() && batch.freed.is_empty()) };
        let bytes = end.position.0.saturating_sub(self.syncer.durable().position.0);
        batch.urgent || bytes >= self.pace.bytes || batch.since.is_some_and(|s| s.elapsed() >= self.pace.interval)
    }

    /// Waits for an item, or until a sync is due, and takes all items that are there.
    fn take(&mut self, batch: &mut Batch) {
        let limit = match batch.since {
            Some(since) => self.pace.interval.saturating_sub(since.elapsed()),
            None if self.syncer.is_unrecorded() => RECORD_AFTER,
            None => IDLE,
        };
        let first = match self.first_item(limit) {
            Ok(item) => item,
            Err(RecvTimeoutError::Timeout) => return self.paused(batch),
            Err(RecvTimeoutError::Disconnected) => {
                batch.stop = true;
                return;
            }
        };
        batch.add(&mut self.syncer, first);
        while let Ok(item) = self.items.try_recv() {
            batch.add(&mut self.syncer, item);
        }
    }

    /// The next item; waits for it as `wait` sets, at most for `limit`.
    fn first_item(&mut self, limit: Duration) -> Result<SyncItem, RecvTimeoutError> {
        // Polling for the next item is worth its processor time only while publishers wait for the disk.
        let mut idle = Idle::new(if self.was_urgent { self.wait } else { Wait::Blocking });
        loop {
            match self.items.try_recv() {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if idle.should_park() => return self.items.recv_timeout(limit),
                Err(TryRecvError::Empty) => {}
            }
        }
    }

    /// Handles a pause: records how much is durable.
    fn paused(&mut self, batch: &mut Batch) {
        if batch.end.is_none() && self.syncer.is_unrecorded() {
            // A sync of a log that is durable already, which records the mark. The next sync would find a failure too.
            batch.end = Some(self.syncer.durable());
            batch.urgent = true;
        }
    }

    fn sync(&mut self, batch: &mut Batch) -> Outcome<()> {
        if let Some(end) = batch.end.take() {
            let began = HostClock.monotonic();
            self.syncer.sync(end)?;
            let now = HostClock.monotonic();
            self.traces.durable(end.lsn, (began, now), self.watermarks.is_alone());
            self.control.add(Statistic::Syncs, 1);
            self.control.observe(Histogram::Sync, now.saturating_sub(began));
            if let appended_at @ 1.. = std::mem::take(&mut batch.appended_at) {
                self.control.observe(Histogram::AppendToDurable, now.saturating_sub(appended_at));
            }
            self.control.set_durable(end.lsn, end.position);
            self.watermarks.set_durable(end.index.0);
        }
        let alone = self.watermarks.is_alone();
        if alone {
            self.control.set_committed(self.control.durable());
        }
        for (slot, pub_seq, lsn) in batch.acks.drain(..) {
            let slot = self.control.slot(slot);
            slot.ack_durable(pub_seq, lsn);
            if alone {
                slot.ack_committed(pub_seq, lsn);
            }
        }
        self.bells.ring(Bell::Ack);
        if !alone {
            // Other hosts wait until this host reports that it is durable here.
            self.bells.ring(Bell::Ingest);
        }
        for slot in batch.freed.drain(..) {
            // The queue has room for every slot. Ingest may have ended before.
            let sent = self.freed.try_send(slot);
            assert!(!matches!(sent, Err(TrySendError::Full(_))), "more slots freed than exist");
        }
        if !batch.answers.is_empty() {
            for answer in batch.answers.drain(..) {
                if self.answers.try_send(answer).is_err() {
                    tracing::warn!(
                        name: "session.answer_dropped",
                        "an answer to a publisher is dropped: the queue of answers is full; the publisher asks again"
                    );
                }
            }
            self.wake_attach.wake();
        }
        self.was_urgent = std::mem::take(&mut batch.urgent);
        batch.since = None;
        Ok(())
    }
}

impl Batch {
    fn add(&mut self, syncer: &mut Syncer, item: SyncItem) {
        match item {
            SyncItem::Opened(opened) => syncer.opened(opened),
            SyncItem::Appended { end, urgent, since } => {
                if self.appended_at == 0 {
                    self.appended_at = since;
                }
                debug_assert!(self.end.is_none_or(|e| e.position <= end.position) && end.position > Position(0));
                self.end = Some(end);
                self.urgent |= urgent;
                self.since.get_or_insert_with(Instant::now);
            }
            SyncItem::Ack { slot, pub_seq, lsn } => match self.acks.iter_mut().find(|a| a.0 == slot) {
                Some(earlier) => *earlier = (slot, pub_seq, lsn),
                None => self.acks.push((slot, pub_seq, lsn)),
            },
            SyncItem::Answer(answer) => {
                self.answers.push(answer);
                self.urgent = true;
            }
            SyncItem::Freed(slot) => self.freed.push(slot),
            SyncItem::Stop => self.stop = true,
        }
    }
}
