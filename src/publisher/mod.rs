//! Owns: publishing. [`Publisher`] copies records into its ring, sends them over the bus, and keeps them until storage
//! acknowledges them. It continues by itself when storage restarts.
//!
//! What must hold: a call never blocks longer than `send_timeout`, plus the time in which the keeper sends a slice of a
//! backlog. Success means that the record is in the ring and will be stored once, in the order of the calls, unless
//! this process dies. Records that are lost even so are reported and stored as a [`crate::record::Gap`] record. In a
//! forked child every call is refused before it takes the lock: the keeper does not exist there and may hold the lock.
//!
//! One lock guards the ring and the bus ports. The caller holds it while it publishes. The keeper thread holds it for a
//! slice every few milliseconds, to read acknowledgements, to send records that did not fit, and to attach again.

mod error;
mod keeper;
mod link;
mod lost;
mod monitor;
mod numbers;
mod options;
mod outstanding;
mod ring;
mod state;
mod unanswered;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::error::PublishError;
use self::keeper::{ANSWER_TIMEOUT, Keeper, attach, incarnation};
use self::link::{connect, register};
pub use self::lost::{Lost, Progress};
pub use self::monitor::Monitor;
pub use self::numbers::Numbers;
pub use self::options::Options;
pub use self::outstanding::Outstanding;
use self::state::{KEEPER_BATCHES, State, lock};
use self::unanswered::unanswered;
pub use crate::agent::Wait;
use crate::agent::{Idle, Stop, pin, spawn};
use crate::bus::attach::{Message, Mode, NAMES_MAX, ask};
use crate::disk::absolute;
use crate::error::{Error, Result};
use crate::lsn::{Durability, InstrumentId, NO_SUCH_LEVEL, PubSeq};
use crate::record::{Layout, Name, Record, RecordRef};
use crate::shm::bell::Bell;
use crate::shm::kinds::Kinds;
use crate::shm::origin::Origin;
use crate::shm::run_dir::RunDir;
use crate::time::deadline;

/// Publishes records.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/publish.rs"), "\n```")]
pub struct Publisher {
    state: Arc<Mutex<State>>,
    options: Options,
    origin: Origin,
    stop: Stop,
    keeper: Option<JoinHandle<()>>,
}

/// Its name in errors.
const WHAT: &str = "publisher";
/// The request of [`Publisher::instruments`].
const REGISTER: &str = "to register instruments";
/// Number of publishes between two reads of the acknowledgements.
const REAP_EVERY: u32 = 64;

impl Publisher {
    /// Attaches as a new writer and fences the previous one of this publisher.
    ///
    /// # Errors
    /// [`Error::Taken`] if a live process publishes as it, unless [`Options::take_over`] is set; [`Error::StorageDown`]
    /// if no storage process serves within `open_timeout`; [`Error::Unanswered`] if one serves and does not answer;
    /// [`Error::Denied`] if another user serves the store; [`Error::Refused`]; [`Error::NotLeader`] on a follower where
    /// forwarding is off; [`Error::NoSharedMemory`] if there is none for its batches.
    pub fn open(options: Options) -> Result<Publisher> {
        let options = Options { store: absolute(&options.store)?, ..options };
        if let Some(core) = options.core {
            pin("publisher", core);
        }
        let deadline = deadline(options.open_timeout);
        let incarnation = incarnation().map_err(|e| Error::io("draw a number for", &options.store, e))?;
        let mode = if options.take_over { Mode::New } else { Mode::Free };
        let (run_dir, stream, link, grant) = loop {
            let attempt = RunDir::find(&options.store).and_then(|run_dir| {
                let (stream, link, grant) = attach(&options, incarnation, &run_dir, mode)?;
                Ok((run_dir, stream, link, grant))
            });
            match attempt {
                Ok(all) => break all,
                // A later attempt would fail alike.
                Err(
                    e @ (Error::Denied { .. }
                    | Error::Refused { .. }
                    | Error::Taken { .. }
                    | Error::NotLeader { leader: Some(_), .. }
                    | Error::Backup { .. }
                    | Error::Invalid { .. }
                    | Error::Foreign { .. }
                    | Error::Version { .. }
                    | Error::Corrupt { .. }
                    | Error::MalformedAnswer { .. }),
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
        let state = Arc::new(Mutex::new(State::new(&options, link, &grant, kinds)));
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

    /// Connects to the process that serves the store now; its run directory may have moved since this was opened.
    fn ask(&self) -> Result<UnixStream> {
        self.origin.check(WHAT)?;
        connect(&RunDir::find(&self.options.store)?, &self.options.store, ANSWER_TIMEOUT)
    }

    fn check_process(&self) -> Result<(), PublishError> {
        let forked = |_| PublishError::Forked { publisher: self.options.publisher, pid: self.origin.pid() };
        self.origin.check(WHAT).map_err(forked)
    }

    /// The instruments called `names`, in their order. Registers new ones durably.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if no storage process serves the store; [`Error::Unanswered`] if one serves and does not
    /// answer within 5 s; [`Error::Refused`] if there are too many; [`Error::MalformedAnswer`] of a storage process of
    /// another release.
    pub fn instruments(&self, names: &[Name]) -> Result<Vec<InstrumentId>> {
        let down = |_| unanswered(&self.options.store);
        let malformed = || Error::MalformedAnswer { dir: self.options.store.clone(), request: REGISTER };
        let mut ids = Vec::with_capacity(names.len());
        let mut stream = self.ask()?;
        for some in names.chunks(NAMES_MAX) {
            match ask(&mut stream, &Message::Symbols(some.to_vec())).map_err(down)? {
                Message::Ids(more) if more.len() == some.len() => ids.extend(more),
                Message::Refused(reason) => return Err(Error::Refused { request: REGISTER, reason }),
                _ => return Err(malformed()),
            }
        }
        let mut state = lock(&self.state);
        state.registered = ids.iter().map(|id| u64::from(id.0)).max().unwrap_or(0).max(state.registered);
        drop(state);
        Ok(ids)
    }

    /// The instrument called `name`. Registers it if it is new.
    ///
    /// # Errors
    /// As [`Publisher::instruments`].
    pub fn instrument(&self, name: &Name) -> Result<InstrumentId> {
        let id = self.instruments(std::slice::from_ref(name))?.first().copied();
        id.ok_or_else(|| Error::MalformedAnswer { dir: self.options.store.clone(), request: REGISTER })
    }

    /// Registers `R`, which the program defined by `#[derive(Record)]`, as a kind of the store, durably. Call it before
    /// publishing records of the kind.
    ///
    /// # Errors
    /// [`Error::Invalid`] if its layout is not allowed; [`Error::Refused`] if the store has another layout under its
    /// number; [`Error::StorageDown`] and [`Error::Unanswered`] as for [`Publisher::instruments`].
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

    /// Accepts a record and sends it, with all records staged before it.
    ///
    /// # Errors
    /// [`PublishError`]; the record was not accepted.
    pub fn publish<R: Record>(&mut self, record: &R) -> Result<PubSeq, PublishError> {
        self.publish_ref(RecordRef::of(record))
    }

    /// Accepts a record of any kind and sends it, with all records staged before it.
    ///
    /// # Errors
    /// [`PublishError`]; the record was not accepted.
    pub fn publish_ref(&mut self, record: RecordRef<'_>) -> Result<PubSeq, PublishError> {
        let mut state = self.take(record)?;
        let seq = PubSeq(state.ring.next().0 - 1);
        state.pump(KEEPER_BATCHES);
        Ok(seq)
    }

    /// Accepts a record that is sent with later ones, by the next [`Publisher::send`] or [`Publisher::publish`]. A
    /// batch of a few hundred records costs little more than a single record.
    ///
    /// # Errors
    /// [`PublishError`]; the record was not accepted.
    pub fn stage(&mut self, record: RecordRef<'_>) -> Result<PubSeq, PublishError> {
        let state = self.take(record)?;
        Ok(PubSeq(state.ring.next().0 - 1))
    }

    /// Sends all staged records. Does nothing in a forked child.
    pub fn send(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        lock(&self.state).pump(KEEPER_BATCHES);
    }

    /// Puts a record in the ring; waits for room if necessary.
    fn take(&self, record: RecordRef<'_>) -> Result<MutexGuard<'_, State>, PublishError> {
        self.check_process()?;
        let mut state = lock(&self.state);
        if record.kind().is_user() && !state.kinds.iter().any(|k| k.0 == record.schema().hash) {
            let reason = format!(
                "'{}', as this program lays it out, is not a kind of this store: define it in the store first",
                record.schema().name
            );
            return Err(Error::invalid("kind", reason).into());
        }
        if !state.knows(record.instrument()) {
            let id = record.instrument();
            let reason =
                format!("{id} is not registered in this store: register its name first, and use the number that it gets");
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
        let deadline = deadline(self.options.send_timeout);
        // Each turn takes the lock that the keeper needs, and reads what storage writes.
        let mut idle = Idle::yielding(self.options.wait);
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
            if idle.should_park() {
                std::thread::sleep(Duration::from_micros(50));
            }
            state = lock(&self.state);
        }
    }

    /// Waits until all records accepted so far have reached `level`.
    ///
    /// # Errors
    /// [`PublishError::Full`] or [`PublishError::NoSpace`] if they have not within `limit`; the ring still keeps and
    /// sends them. [`PublishError::Fenced`] if a newer process publishes as this publisher.
    /// [`PublishError::Refused`] if the store has no such level. [`PublishError::Forked`].
    pub fn flush(&mut self, level: Durability, limit: Duration) -> Result<Progress, PublishError> {
        self.check_process()?;
        let deadline = deadline(limit);
        let target = PubSeq(lock(&self.state).ring.next().0 - 1);
        let mut idle = Idle::new(self.options.wait);
        loop {
            let mut state = lock(&self.state);
            state.pump(KEEPER_BATCHES);
            state.reap();
            if level.granted(Durability::None, state.is_lossy).is_none() {
                return Err(PublishError::Refused(NO_SUCH_LEVEL.to_owned()));
            }
            // A lost epoch has renumbered the ring: then all of the ring is the target.
            let target = target.min(PubSeq(state.ring.next().0 - 1));
            let reached = match level {
                Durability::None => state.ring.sent(),
                Durability::Os => state.progress.accepted,
                Durability::Fsync => state.progress.durable,
                Durability::Standby | Durability::Quorum | Durability::QuorumOs => state.progress.committed,
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

    /// Waits until all accepted records have reached the publisher's own level, and detaches. If it fails, the ring ends
    /// with the publisher: records that storage has not received are lost.
    ///
    /// # Errors
    /// As [`Publisher::flush`].
    pub fn close(mut self, limit: Duration) -> Result<Progress, PublishError> {
        self.check_process()?;
        let level = lock(&self.state).level;
        self.flush(level, limit)
    }

    /// The level in force: the requested one or a higher one. In a forked child, the requested one.
    pub fn level(&self) -> Durability {
        if !self.origin.is_here() {
            return self.options.durability;
        }
        lock(&self.state).level
    }

    /// Progress by the acknowledgements up to now. In a forked child, the default.
    pub fn progress(&self) -> Progress {
        if !self.origin.is_here() {
            return Progress::default();
        }
        let mut state = lock(&self.state);
        state.reap();
        state.progress()
    }

    /// Accepted records that have not reached the publisher's level; for [`Durability::None`], those not in the log file.
    /// Lost records ([`Publisher::take_lost`]) are not counted. In a forked child, none.
    pub fn outstanding(&self) -> Outstanding {
        if !self.origin.is_here() {
            return Outstanding::default();
        }
        let mut state = lock(&self.state);
        state.reap();
        state.outstanding()
    }

    /// Reads its numbers from other threads.
    pub fn monitor(&self) -> Monitor {
        Monitor::new(self.state.clone(), self.origin)
    }

    /// Takes the records lost since the last call; see [`Lost`].
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
            // The keeper is not a thread of this process: it cannot be joined, and its handle may denote another
            // thread. The handle, the ring and the bus ports are leaked.
            Box::leak(Box::new(self.keeper.take()));
            return;
        }
        self.stop.stop();
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!(name: "publisher.keeper_panicked", "a publisher's keeper panicked");
        }
    }
}
