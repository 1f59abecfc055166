//! Owns: the state that a publisher's calls and its keeper share under the lock: ring, link, progress.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::error::PublishError;
use super::link::Link;
use super::lost::{Lost, Progress, gap_record};
use super::numbers::Numbers;
use super::options::Options;
use super::outstanding::Outstanding;
use super::ring::Ring;
use crate::bus::attach::Grant;
use crate::lsn::{Durability, Epoch, InstrumentId, PubSeq, PublisherId};
use crate::record::{Layout, Record};
use crate::shm::bell::Bell;
use crate::shm::control::{NO_SPACE, SlotState, SlotView, Statistic};

/// Default reason for a missing link.
pub(super) const STORAGE_DOWN: &str = "storage is down";
/// Maximum batches that one call, or the keeper in one turn, sends while it holds the lock; the rest of a backlog
/// follows.
pub(super) const KEEPER_BATCHES: u32 = 64;
/// Maximum records of a batch: those of a frame.
const RECORDS_MAX: u32 = crate::wal::format::FRAME_RECORDS_MAX;

/// The state under the lock.
pub(super) struct State {
    publisher: PublisherId,
    pub(super) level: Durability,
    pub(super) ring: Ring,
    pub(super) epoch: Epoch,
    pub(super) link: Option<Link>,
    pub(super) progress: Progress,
    pub(super) lost: Vec<Lost>,
    pub(super) fatal: Option<Fatal>,
    pub(super) since_reap: u32,
    /// The last progress of `accepted`, and its time. Without progress, outstanding records are sent again.
    pub(super) moved: (PubSeq, Instant),
    pub(super) back_pressure: u64,
    /// Reason for a missing link.
    pub(super) away: &'static str,
    /// Whether it cannot attach again because shared memory is full.
    pub(super) no_memory: bool,
    /// Whether the store may lose committed records, as of the newest link.
    pub(super) is_lossy: bool,
    /// Whether storage refused the last request to attach.
    pub(super) is_refused: bool,
    /// Number of registered instruments that this process has seen: ids 1 to this.
    pub(super) registered: u64,
    /// User kinds that are registered in the store, with their hashes.
    pub(super) kinds: Vec<(u64, Layout)>,
}

/// Why a publisher cannot continue.
#[derive(Clone, Debug)]
pub(super) enum Fatal {
    /// A newer process publishes as it.
    Fenced,
    /// Storage refuses it for good, with the reason.
    Refused(String),
}

/// Locks the state.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while publishing is the program's own; the ring is consistent between calls.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The state of a publisher that has just attached over `link`. `kinds` are registered in the store.
    pub(super) fn new(options: &Options, link: Link, grant: &Grant, kinds: Vec<(u64, Layout)>) -> State {
        State {
            publisher: options.publisher,
            level: grant.level,
            is_lossy: link.control.is_lossy(),
            is_refused: false,
            ring: Ring::new(options.ring_bytes, PubSeq(grant.pub_seq.0 + 1)),
            epoch: grant.epoch,
            link: Some(link),
            progress: Progress { epoch: grant.epoch, ..Progress::default() },
            lost: Vec::new(),
            fatal: None,
            since_reap: 0,
            moved: (PubSeq(0), Instant::now()),
            back_pressure: 0,
            registered: 0,
            away: STORAGE_DOWN,
            no_memory: false,
            kinds,
        }
    }

    /// Whether it can continue.
    pub(super) fn check(&self) -> Result<(), PublishError> {
        match &self.fatal {
            None => Ok(()),
            Some(Fatal::Fenced) => Err(PublishError::Fenced { publisher: self.publisher, epoch: self.epoch }),
            Some(Fatal::Refused(why)) => Err(PublishError::Refused(why.clone())),
        }
    }

    /// The error for a full ring with `unacknowledged` records.
    pub(super) fn full(&self, unacknowledged: u64) -> PublishError {
        let why = match (&self.link, self.back_pressure) {
            (None, _) if self.no_memory => {
                "shared memory is full, so this publisher cannot attach again (df -h /dev/shm; containers: --shm-size)"
            }
            (None, _) if self.is_refused => "storage refuses to attach this publisher for now (its log has the reason)",
            (None, _) => self.away,
            (Some(_), NO_SPACE) => return PublishError::NoSpace { unacknowledged },
            (Some(_), 1) => "storage's MemTables are full and not flushed yet (progress: tape status)",
            (Some(_), 2) => "storage's disk is behind: it syncs more slowly than records arrive",
            (Some(link), _) => match link.control.trouble() {
                Some((trouble, _)) => trouble.reason(),
                None => "storage accepts records more slowly than they are published",
            },
        };
        PublishError::Full { unacknowledged, why }
    }

    /// Progress as of the last [`State::reap`].
    pub(super) fn progress(&self) -> Progress {
        Progress { published: PubSeq(self.ring.next().0 - 1), epoch: self.epoch, ..self.progress }
    }

    /// All numbers, as of the last [`State::reap`].
    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            publisher: self.publisher,
            level: self.level,
            progress: self.progress(),
            outstanding: self.outstanding(),
            is_attached: self.link.is_some(),
            ring_records: self.ring.next().0 - self.ring.first().0,
        }
    }

    /// Accepted records below the level, as of the last [`State::reap`].
    pub(super) fn outstanding(&self) -> Outstanding {
        let reached = match self.level {
            Durability::None | Durability::Os => self.progress.accepted,
            Durability::Fsync => self.progress.durable,
            Durability::Standby | Durability::Quorum | Durability::QuorumOs => self.progress.committed,
        };
        // Gap records are the publisher's own, not its caller's.
        let above = |seq: PubSeq| (self.ring.next().0 - 1).saturating_sub(seq.0) - self.ring.gaps_above(seq);
        let unacknowledged = above(self.progress.accepted);
        Outstanding { in_log: above(reached).saturating_sub(unacknowledged), unacknowledged }
    }

    /// Whether `instrument` is registered, or null. Without a link, an unseen id passes here and storage checks it.
    #[inline]
    pub(super) fn knows(&mut self, instrument: InstrumentId) -> bool {
        let is_known = |registered: u64| u64::from(instrument.0).wrapping_sub(1) < registered;
        if is_known(self.registered) || instrument == InstrumentId::NULL {
            return true;
        }
        let Some(link) = &self.link else { return instrument.0 != 0 };
        self.registered = self.registered.max(link.control.statistic(Statistic::Instruments));
        is_known(self.registered)
    }

    /// Reads storage's acknowledgements and gaps from the slot.
    pub(super) fn reap(&mut self) {
        self.since_reap = 0;
        let Some(link) = &mut self.link else { return };
        let Some(view) = link.slot.view(link.grant) else {
            self.link = None;
            return;
        };
        self.back_pressure = link.control.statistic(Statistic::BackPressure);
        match view.state {
            SlotState::Fenced => self.fatal = Some(Fatal::Fenced),
            SlotState::Refused => {
                let unregistered = |i| format!("a record is of instrument {i}, which is not registered in this store");
                let why = view.unregistered.map_or_else(|| "a batch was malformed".to_owned(), unregistered);
                self.fatal = Some(Fatal::Refused(why));
            }
            SlotState::Unreceived => {
                tracing::error!(
                    name: "publisher.not_received",
                    publisher = self.publisher.0,
                    "storage cannot receive from this publisher (its log has the reason); attaching again"
                );
                self.link = None;
                return self.acknowledge(&view);
            }
            SlotState::Attached | SlotState::Free => {}
        }
        if view.gap_count != std::mem::replace(&mut link.gap_count, view.gap_count) {
            self.rewind(view.gap_expected);
        }
        self.acknowledge(&view);
    }

    fn acknowledge(&mut self, view: &SlotView) {
        if view.accepted > self.moved.0 {
            self.moved = (view.accepted, Instant::now());
        }
        self.progress.accepted = view.accepted;
        self.progress.accepted_lsn = view.accepted_lsn;
        self.progress.durable = view.durable;
        self.progress.committed = view.committed;
        let upto = match self.level {
            // A gap record is kept until it is in the log, at any level.
            Durability::None if !self.ring.begins_with_gap() => self.ring.sent(),
            level => view.reached(level),
        };
        self.ring.release(upto);
    }

    /// Rewinds to `expected`. If it has left the ring, those records are lost: the link ends, and the keeper attaches
    /// with a new epoch and reports them.
    pub(super) fn rewind(&mut self, expected: PubSeq) {
        self.progress.rewinds += 1;
        if expected < self.ring.first() {
            self.link = None;
        } else {
            self.ring.rewind(expected);
        }
    }

    /// Sends unsent records, at most `batches` batches.
    pub(super) fn pump(&mut self, batches: u32) {
        if self.back_pressure == NO_SPACE {
            // Storage accepts nothing, and each try would wait. The keeper detects the end of this back-pressure.
            return;
        }
        let Some(link) = &mut self.link else { return };
        let mut broken = false;
        let mut rang = false;
        for _ in 0..batches {
            let Some(chunk) = self.ring.unsent(crate::bus::BATCH_WORDS_MAX, RECORDS_MAX) else { break };
            match link.send(self.publisher, self.epoch, &chunk) {
                Ok(true) => {
                    let count = chunk.count;
                    self.ring.mark_sent(count);
                    self.progress.batches += 1;
                    rang = true;
                }
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(name: "publisher.not_sent", %error, "a publisher cannot send to storage; attaching again");
                    broken = true;
                    break;
                }
            }
        }
        if rang {
            link.bells.ring(Bell::Ingest);
        }
        if broken {
            self.link = None;
        }
    }

    /// Continues over a new link. `stored` is the last number of the old epoch that storage had, if a new epoch was
    /// needed because storage expected records that had left the ring.
    pub(super) fn relink(&mut self, link: Link, grant: &Grant, stored: Option<PubSeq>) {
        self.progress.reattached += 1;
        self.level = grant.level;
        self.moved = (grant.pub_seq, Instant::now());
        let missing = grant.epoch != self.epoch || grant.pub_seq.0 + 1 < self.ring.first().0;
        if missing {
            // Without an answer about the old epoch, records above the last durable one count as lost.
            let known = stored.unwrap_or(self.progress.durable);
            let (first, last) = (PubSeq(known.0 + 1), PubSeq(self.ring.first().0 - 1));
            let lost = (first <= last).then_some(Lost { epoch: self.epoch, first, last });
            let gap = lost.map(|l| gap_record(self.publisher, &l));
            self.ring.renumber(gap.as_ref().map(|g| g.words()));
            self.progress.lost += lost.map_or(0, |l| l.last.0 + 1 - l.first.0);
            self.lost.extend(lost);
            self.epoch = grant.epoch;
            self.progress.accepted = PubSeq(0);
            self.progress.durable = PubSeq(0);
            self.progress.committed = PubSeq(0);
        } else {
            self.ring.release(grant.pub_seq);
            self.ring.rewind(PubSeq(grant.pub_seq.0 + 1));
        }
        self.is_lossy = link.control.is_lossy();
        self.is_refused = false;
        self.no_memory = false;
        self.link = Some(link);
    }

    /// Whether the ring no longer has the record after `grant.pub_seq`, which storage expects next: then a new epoch is
    /// needed.
    pub(super) fn misses(&self, grant: &Grant) -> bool {
        grant.epoch == self.epoch && grant.pub_seq.0 + 1 < self.ring.first().0
    }
}
