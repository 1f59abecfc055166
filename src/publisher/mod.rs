//! Owns: publishing. [`Publisher`] copies records into its ring, sends them over the bus, keeps them
//! until storage has acknowledged them, and goes on by itself when storage dies and comes back.
//!
//! What must hold: a call never blocks longer than `send_timeout` (and the time in which the keeper
//! sends a slice of a backlog); success means that the record is in the ring and will be stored, in
//! the order of the calls, once, unless this process dies; what is lost all the same is reported and
//! stored as a [`crate::record::Gap`] record; in a process that was forked off the one that opened it, every call is refused before it takes
//! the lock, which the keeper, that is not there, may hold.
//!
//! One lock guards the ring and the bus's ports: the caller holds it while it publishes, the keeper
//! thread for a slice every few milliseconds, to take in acknowledgements, to send what did not fit,
//! and to attach again.

mod error;
mod keeper;
mod link;
mod lost;
mod options;
mod outstanding;
mod ring;
mod unanswered;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::error::PublishError;
use self::keeper::{ANSWER_TIMEOUT, Keeper, attach, incarnation};
use self::link::{Link, connect, register};
use self::lost::gap_record;
pub use self::lost::{Lost, Progress};
pub use self::options::Options;
pub use self::outstanding::Outstanding;
use self::ring::Ring;
use self::unanswered::unanswered;
use crate::agent::{Idle, Stop, Wait, spawn};
use crate::bus::attach::{Grant, Message, Mode, NAMES_MAX, ask};
use crate::disk::absolute;
use crate::error::{Error, Result};
use crate::lsn::{Epoch, InstrumentId, Level, NO_SUCH_LEVEL, PubSeq, PublisherId};
use crate::record::{Layout, Name, Record, RecordRef};
use crate::shm::bell::Bell;
use crate::shm::control::{NO_SPACE, SlotState, SlotView, Statistic};
use crate::shm::kinds::Kinds;
use crate::shm::origin::Origin;
use crate::shm::run_dir::RunDir;

struct State {
    publisher: PublisherId,
    level: Level,
    ring: Ring,
    epoch: Epoch,
    link: Option<Link>,
    progress: Progress,
    lost: Vec<Lost>,
    fatal: Option<Fatal>,
    since_reap: u32,
    /// The last progress of `accepted`, and when: a silence with records outstanding is broken by
    /// sending them again.
    moved: (PubSeq, Instant),
    held_back: u64,
    /// Why there is no link, if there is none.
    away: &'static str,
    /// Whether it cannot attach again because shared memory is full.
    no_memory: bool,
    /// Whether the store may lose what it has committed, as of the newest link.
    is_lossy: bool,
    /// Whether storage answered that it does not attach it, when it was last asked.
    is_refused: bool,
    /// Instruments that are known to be registered: the first so many.
    registered: u64,
    /// The kinds that programs defined that the store is known to have, by their hashes.
    kinds: Vec<(u64, Layout)>,
}

#[derive(Clone, Debug)]
enum Fatal {
    Fenced,
    Refused(String),
}

/// A writer of records.
pub struct Publisher {
    state: Arc<Mutex<State>>,
    options: Options,
    origin: Origin,
    stop: Stop,
    keeper: Option<JoinHandle<()>>,
}

/// What an error calls it.
const WHAT: &str = "publisher";
/// Why a publisher has no link, unless storage says otherwise.
const STORAGE_DOWN: &str = "storage is down";
/// Publishes between two looks at the acknowledgements.
const REAP_EVERY: u32 = 64;
/// Batches that one call, or the keeper while it holds the lock, sends: the rest of a backlog follows.
const KEEPER_BATCHES: u32 = 64;
/// Records of a batch: no more than a frame holds.
const RECORDS_MAX: u32 = crate::wal::format::FRAME_RECORDS_MAX;

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while publishing is the program's; the ring is consistent between calls.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Publisher {
    /// Attaches as a new writer: whoever wrote as this publisher before is fenced.
    ///
    /// # Errors
    /// [`Error::Taken`] if a live process writes as it, unless [`Options::take_over`] says to fence it;
    /// [`Error::StorageDown`] if no storage process answers within `open_timeout`; [`Error::Denied`] if another user serves the
    /// store; [`Error::Refused`]; [`Error::NotLeader`] where forwarding is switched off; [`Error::NoSharedMemory`] if there is
    /// none for what it sends.
    pub fn open(options: Options) -> Result<Publisher> {
        let options = Options { store: absolute(&options.store)?, ..options };
        let deadline = Instant::now() + options.open_timeout;
        let incarnation = incarnation().map_err(|e| Error::io("draw a number for", &options.store, e))?;
        let mode = if options.take_over { Mode::New } else { Mode::Free };
        let (run_dir, stream, link, grant) = loop {
            let attempt = RunDir::find(&options.store).and_then(|run_dir| {
                let (stream, link, grant) = attach(&options, incarnation, &run_dir, mode)?;
                Ok((run_dir, stream, link, grant))
            });
            match attempt {
                Ok(all) => break all,
                Err(
                    e @ (Error::Denied { .. }
                    | Error::Refused { .. }
                    | Error::Taken { .. }
                    | Error::NotLeader { leader: Some(_), .. }),
                ) => {
                    return Err(e);
                }
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut stored = Kinds::open(&run_dir.kinds(grant.instance))?;
        stored.refresh()?;
        let kinds = stored.schemas().iter().map(|s| Ok((s.hash, Layout::of(s)?))).collect::<Result<_>>()?;
        let ring = Ring::new(options.ring_bytes, PubSeq(grant.pub_seq.0 + 1));
        let state = Arc::new(Mutex::new(State {
            publisher: options.publisher,
            level: grant.level,
            is_lossy: link.control.is_lossy(),
            is_refused: false,
            ring,
            epoch: grant.epoch,
            link: Some(link),
            progress: Progress { epoch: grant.epoch, ..Progress::default() },
            lost: Vec::new(),
            fatal: None,
            since_reap: 0,
            moved: (PubSeq(0), Instant::now()),
            held_back: 0,
            registered: 0,
            away: STORAGE_DOWN,
            no_memory: false,
            kinds,
        }));
        let stop = Stop::default();
        let keeper = Keeper {
            state: state.clone(),
            options: options.clone(),
            incarnation,
            stored: None,
            stop: stop.clone(),
            stream: Some(stream),
        };
        let keeper = spawn("tape-publisher", None, move || keeper.run())
            .map_err(|e| Error::io("start a thread for", &options.store, e))?;
        Ok(Publisher { state, options, origin: Origin::here(), stop, keeper: Some(keeper) })
    }

    /// Connects to whoever serves the store now, which may lie elsewhere than when this was opened.
    fn ask(&self) -> Result<UnixStream> {
        self.origin.check(WHAT)?;
        connect(&RunDir::find(&self.options.store)?, &self.options.store, ANSWER_TIMEOUT)
    }

    fn check_process(&self) -> Result<(), PublishError> {
        let forked = |_| PublishError::Forked { publisher: self.options.publisher, pid: self.origin.pid() };
        self.origin.check(WHAT).map_err(forked)
    }

    /// The instruments called `names`, in their order; those that are new are registered, durably.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if storage does not answer; [`Error::Refused`] if there are too many.
    pub fn instruments(&self, names: &[Name]) -> Result<Vec<InstrumentId>> {
        let down = |_| unanswered(&self.options.store);
        let mut ids = Vec::with_capacity(names.len());
        let mut stream = self.ask()?;
        for some in names.chunks(NAMES_MAX) {
            match ask(&mut stream, &Message::Symbols(some.to_vec())).map_err(down)? {
                Message::Ids(more) if more.len() == some.len() => ids.extend(more),
                Message::Refused(reason) => return Err(Error::Refused { request: "to register instruments", reason }),
                _ => return Err(Error::Refused { request: "to register instruments", reason: "a meaningless answer".into() }),
            }
        }
        let mut state = lock(&self.state);
        state.registered = ids.iter().map(|id| u64::from(id.0)).max().unwrap_or(0).max(state.registered);
        drop(state);
        Ok(ids)
    }

    /// The instrument called `name`; registered if it is new.
    ///
    /// # Errors
    /// As [`Publisher::instruments`].
    pub fn instrument(&self, name: &Name) -> Result<InstrumentId> {
        let id = self.instruments(std::slice::from_ref(name))?.first().copied();
        id.ok_or(Error::Refused { request: "to register instruments", reason: "an empty answer".into() })
    }

    /// Makes `R`, which the program defined by `#[derive(Record)]`, a kind of the store, durably; to be called
    /// before its records are published.
    ///
    /// # Errors
    /// [`Error::Invalid`] if its layout cannot be; [`Error::Refused`] if the store has another layout under
    /// its number; [`Error::StorageDown`] if storage does not answer.
    pub fn kind<R: Record>(&mut self) -> Result<()> {
        let layout = Layout::of(R::SCHEMA_REF)?;
        layout.register()?;
        self.origin.check(WHAT)?;
        let hash = R::SCHEMA_REF.hash;
        if lock(&self.state).kinds.iter().any(|k| k.0 == hash) {
            return Ok(());
        }
        let mut stream = self.ask()?;
        register(&mut stream, &self.options.store, &layout)?;
        lock(&self.state).kinds.push((hash, layout));
        Ok(())
    }

    /// Takes a record and sends it, with all that were staged before it.
    ///
    /// # Errors
    /// [`PublishError`]; the record was then not taken.
    pub fn publish<R: Record>(&mut self, record: &R) -> Result<PubSeq, PublishError> {
        self.publish_ref(RecordRef::of(record))
    }

    /// Takes a record of any kind and sends it, with all that were staged before it.
    ///
    /// # Errors
    /// [`PublishError`]; the record was then not taken.
    pub fn publish_ref(&mut self, record: RecordRef<'_>) -> Result<PubSeq, PublishError> {
        let mut state = self.take(record)?;
        let seq = PubSeq(state.ring.next().0 - 1);
        state.pump(KEEPER_BATCHES);
        Ok(seq)
    }

    /// Takes a record and sends it with those that follow, at the next [`Publisher::send`] or
    /// [`Publisher::publish`]. A batch of a few hundred records costs little more than a single one.
    ///
    /// # Errors
    /// [`PublishError`]; the record was then not taken.
    pub fn stage(&mut self, record: RecordRef<'_>) -> Result<PubSeq, PublishError> {
        let state = self.take(record)?;
        Ok(PubSeq(state.ring.next().0 - 1))
    }

    /// Sends what has been staged; nothing, in a forked process.
    pub fn send(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        lock(&self.state).pump(KEEPER_BATCHES);
    }

    /// Puts a record in the ring, waiting for room if need be.
    fn take(&self, record: RecordRef<'_>) -> Result<MutexGuard<'_, State>, PublishError> {
        self.check_process()?;
        let mut state = lock(&self.state);
        if record.kind().is_user() && !state.kinds.iter().any(|k| k.0 == record.schema().hash) {
            let reason = format!(
                "'{}', as this program lays it out, is no kind of this store: call Publisher::kind first",
                record.schema().name
            );
            return Err(Error::invalid("kind", reason).into());
        }
        if !state.knows(record.instrument()) {
            let id = record.instrument();
            let reason = format!("{id} is not registered in this store: Publisher::instrument gives a name its number");
            return Err(Error::invalid("instrument", reason).into());
        }
        state.since_reap += 1;
        if state.since_reap >= REAP_EVERY {
            state.reap();
        }
        state.check()?;
        if state.ring.push(record.words()) {
            return Ok(state);
        }
        let deadline = Instant::now() + self.options.send_timeout;
        let mut turns = 0u32;
        loop {
            state.reap();
            state.pump(KEEPER_BATCHES);
            state.check()?;
            if state.ring.push(record.words()) {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                let unacknowledged = state.ring.next().0 - state.ring.first().0;
                return Err(state.full(unacknowledged));
            }
            drop(state);
            turns += 1;
            if turns < 20 {
                std::thread::yield_now()
            } else {
                std::thread::sleep(Duration::from_micros(50))
            }
            state = lock(&self.state);
        }
    }

    /// Waits until everything taken so far has reached `level`.
    ///
    /// # Errors
    /// [`PublishError::Full`] if it has not within `limit`; what was taken is still kept and sent.
    /// [`PublishError::Refused`]: the store has no such level. [`PublishError::Forked`].
    pub fn flush(&mut self, level: Level, limit: Duration) -> Result<Progress, PublishError> {
        self.check_process()?;
        let deadline = Instant::now() + limit;
        let target = PubSeq(lock(&self.state).ring.next().0 - 1);
        let mut idle = Idle::new(Wait::Adaptive);
        loop {
            let mut state = lock(&self.state);
            state.pump(KEEPER_BATCHES);
            state.reap();
            if level.granted(Level::None, state.is_lossy).is_none() {
                return Err(PublishError::Refused(NO_SUCH_LEVEL.to_owned()));
            }
            // A lost epoch has renumbered what is held: then all of that is the target.
            let target = target.min(PubSeq(state.ring.next().0 - 1));
            let reached = match level {
                Level::None => state.ring.sent(),
                Level::Os => state.progress.accepted,
                Level::Fsync => state.progress.durable,
                Level::Standby | Level::Quorum | Level::QuorumOs => state.progress.committed,
            };
            if reached >= target {
                return Ok(state.progress());
            }
            state.check()?;
            if Instant::now() >= deadline {
                let unacknowledged = target.0 - reached.0;
                return Err(state.full(unacknowledged));
            }
            let bells = state.link.as_ref().map(|l| (l.bells.clone(), l.slot.clone(), l.grant));
            drop(state);
            match bells {
                _ if !idle.should_park() => {}
                Some((bells, slot, grant)) => bells
                    .sleep(Bell::Ack, Duration::from_millis(2), || slot.view(grant).is_none_or(|v| v.reached(level) >= target)),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Waits until everything taken has reached the publisher's own level, and detaches.
    ///
    /// # Errors
    /// As [`Publisher::flush`].
    pub fn close(mut self, limit: Duration) -> Result<Progress, PublishError> {
        self.check_process()?;
        let level = lock(&self.state).level;
        self.flush(level, limit)
    }

    /// The level in force: the one asked for, or a higher one; in a forked process, the one asked for.
    pub fn level(&self) -> Level {
        if !self.origin.is_here() {
            return self.options.level;
        }
        lock(&self.state).level
    }

    /// How far it has come, by what has been acknowledged up to now; nowhere, in a forked process.
    pub fn progress(&self) -> Progress {
        if !self.origin.is_here() {
            return Progress::default();
        }
        let mut state = lock(&self.state);
        state.reap();
        state.progress()
    }

    /// What was lost since the last call; see [`Lost`].
    pub fn take_lost(&mut self) -> Vec<Lost> {
        if !self.origin.is_here() {
            return Vec::new();
        }
        std::mem::take(&mut lock(&self.state).lost)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            // The keeper is no thread of this process, so it cannot be joined, and its handle may be another thread's by now.
            // The ring and the ends of the bus stay as they are: the keeper's part of them is never let go.
            Box::leak(Box::new(self.keeper.take()));
            return;
        }
        self.stop.stop();
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("a publisher's keeper panicked");
        }
    }
}

impl State {
    fn check(&self) -> Result<(), PublishError> {
        match &self.fatal {
            None => Ok(()),
            Some(Fatal::Fenced) => Err(PublishError::Fenced { publisher: self.publisher, epoch: self.epoch }),
            Some(Fatal::Refused(why)) => Err(PublishError::Refused(why.clone())),
        }
    }

    /// Why there is no room: `unacknowledged` records wait.
    fn full(&self, unacknowledged: u64) -> PublishError {
        let why = match (&self.link, self.held_back) {
            (None, _) if self.no_memory => {
                "shared memory is full (df -h /dev/shm; containers: --shm-size) and it cannot attach again"
            }
            (None, _) if self.is_refused => "storage refuses to attach it again, for now: the logs say why",
            (None, _) => self.away,
            (Some(_), NO_SPACE) => return PublishError::NoSpace { unacknowledged },
            (Some(_), 1) => "storage's MemTables are full and not yet flushed (tape status says how far it is)",
            (Some(_), 2) => "storage's disk is behind",
            (Some(link), _) => match link.control.trouble() {
                Some((trouble, _)) => trouble.reason(),
                None => "storage does not keep up",
            },
        };
        PublishError::Full { unacknowledged, why }
    }

    fn progress(&self) -> Progress {
        Progress { published: PubSeq(self.ring.next().0 - 1), epoch: self.epoch, ..self.progress }
    }

    /// Whether `instrument` is registered, or that of records that concern none. While storage is away and it is not known,
    /// storage will say.
    #[inline]
    fn knows(&mut self, instrument: InstrumentId) -> bool {
        let is_known = |registered: u64| u64::from(instrument.0).wrapping_sub(1) < registered;
        if is_known(self.registered) || instrument == InstrumentId::NULL {
            return true;
        }
        let Some(link) = &self.link else { return instrument.0 != 0 };
        self.registered = self.registered.max(link.control.statistic(Statistic::Instruments));
        is_known(self.registered)
    }

    /// Takes in what storage has acknowledged and what it misses.
    fn reap(&mut self) {
        self.since_reap = 0;
        let Some(link) = &mut self.link else { return };
        let Some(view) = link.slot.view(link.grant) else {
            self.link = None;
            return;
        };
        self.held_back = link.control.statistic(Statistic::HeldBack);
        match view.state {
            SlotState::Fenced => self.fatal = Some(Fatal::Fenced),
            SlotState::Refused => {
                let unregistered = |i| format!("a record is of instrument {i}, which was never registered in this store");
                let why = view.unregistered.map_or_else(|| "a batch was malformed".to_owned(), unregistered);
                self.fatal = Some(Fatal::Refused(why));
            }
            SlotState::Unreceived => {
                tracing::error!(
                    publisher = self.publisher.0,
                    "storage cannot receive from this publisher; its log says why. It attaches again"
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
            // The record of a gap is kept until it is in the log, at any level.
            Level::None if !self.ring.begins_with_gap() => self.ring.sent(),
            level => view.reached(level),
        };
        self.ring.release(upto);
    }

    /// Goes back to `expected`. What has left the ring is missing for good: then the link ends, and
    /// the keeper attaches in a new epoch and reports it.
    fn rewind(&mut self, expected: PubSeq) {
        self.progress.rewinds += 1;
        if expected < self.ring.first() {
            self.link = None;
        } else {
            self.ring.rewind(expected);
        }
    }

    /// Sends what has not been sent, at most `batches` batches.
    fn pump(&mut self, batches: u32) {
        if self.held_back == NO_SPACE {
            // Nothing is taken in, and each try would wait; the keeper sees when that is over.
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
                    tracing::warn!(%error, "a publisher's link fails");
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

    /// The ring goes on over a new link. If that needed a new epoch because storage, which had everything
    /// up to `stored`, expected what has left the ring, `stored` says so.
    fn relink(&mut self, link: Link, grant: &Grant, stored: Option<PubSeq>) {
        self.progress.reattached += 1;
        self.level = grant.level;
        self.moved = (grant.pub_seq, Instant::now());
        let missing = grant.epoch != self.epoch || grant.pub_seq.0 + 1 < self.ring.first().0;
        if missing {
            // Without an answer about the old epoch, what was acknowledged is the last that is known.
            let known = stored.unwrap_or(self.progress.durable);
            let (first, last) = (PubSeq(known.0 + 1), PubSeq(self.ring.first().0 - 1));
            let lost = (first <= last).then_some(Lost { epoch: self.epoch, first, last });
            let gap = lost.map(|l| gap_record(self.publisher, &l));
            self.ring.renumber(gap.as_ref().map(|g| g.words()));
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

    /// Whether the ring misses what storage, at `pub_seq`, expects next: then a new epoch is needed.
    fn misses(&self, grant: &Grant) -> bool {
        grant.epoch == self.epoch && grant.pub_seq.0 + 1 < self.ring.first().0
    }
}
