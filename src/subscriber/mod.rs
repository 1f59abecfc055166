//! Owns: live subscription: records as publishers send them, before they are stored.
//!
//! What must hold: each publisher's records arrive in its order, each once; records that the bus dropped
//! are fetched from the store, in their place; a record that is not found within [`HEAL_TIMEOUT`] is
//! reported as [`Event::Gap`], never skipped silently. A subscriber never blocks a publisher. When storage
//! is silent, the subscriber follows the store's directory again, and returns [`Event::Reopened`] if it
//! leads elsewhere. A forked process cannot use its parent's subscriber: both would take from one queue.

mod batch;
mod notifier;
mod options;
mod stored;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::batch::Batch;
use self::notifier::Notifier;
use self::options::Filter;
pub use self::options::Options;
use self::stored::Stored;
pub use crate::agent::Wait;
use crate::agent::{Idle, pin};
use crate::bus::{Bus, Receiver};
use crate::disk::{RealDisk, absolute};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, Lsn, PubSeq, PublisherId, Timeline};
use crate::record::RecordRef;
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::Control;
use crate::shm::kinds::Kinds;
use crate::shm::origin::Origin;
use crate::shm::run_dir::RunDir;
use crate::shm::symbols::Symbols;
use crate::time::{Clock, HostClock, deadline};
use crate::version::{Versions, View};

/// An event that a subscriber receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A record.
    Record {
        /// Its publisher.
        publisher: PublisherId,
        /// The publisher's epoch.
        epoch: Epoch,
        /// Its number in the epoch.
        pub_seq: PubSeq,
        /// The record.
        record: RecordRef<'a>,
        /// Whether it was fetched from the store.
        healed: bool,
    },
    /// Records that were not found in time. They may still be stored later.
    Gap {
        /// Their publisher.
        publisher: PublisherId,
        /// The publisher's epoch.
        epoch: Epoch,
        /// The first.
        first: PubSeq,
        /// The last; the greatest number if the epoch ended and their count is unknown.
        last: PubSeq,
    },
    /// The store is now served from another place: it was moved, or restored from a backup.
    Reopened {
        /// Its timeline.
        timeline: Timeline,
        /// Whether the log continues: records missed meanwhile arrive as healed. If not, this is another copy of the store,
        /// which may hold fewer or other records; the next events start at the publishers' current positions.
        continues: bool,
    },
}

/// How long to wait for a missing record.
pub const HEAL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Cursor {
    epoch: Epoch,
    next: PubSeq,
    /// LSN of the last healed record; the next one has a higher LSN.
    healed: Lsn,
}

/// What a step of a subscriber has found.
enum Step {
    /// The next record of the batch; its words begin at this place of the batch's.
    Live(PublisherId, Epoch, PubSeq, usize),
    /// A record that was fetched from the store.
    Healed(PublisherId, Epoch, PubSeq),
    /// Records that were not found in time.
    Gap { publisher: PublisherId, epoch: Epoch, first: PubSeq, last: PubSeq },
    /// Nothing to deliver, and another step may have something.
    Next,
    /// Nothing, until more arrives or time passes.
    Idle,
}

/// A live subscription to all publishers of a store.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/subscribe.rs"), "\n```")]
#[derive(Debug)]
pub struct Subscriber {
    options: Options,
    filter: Filter,
    /// Names of the instruments, while the filter has some that are not registered.
    symbols: Option<Symbols>,
    notifier: Option<Notifier>,
    run_dir: RunDir,
    control: Control,
    bells: Bells,
    link: Option<(u64, Receiver, Bus)>,
    kinds: Option<Kinds>,
    versions: Versions,
    view: Option<View>,
    cursors: HashMap<PublisherId, Cursor>,
    batch: Batch,
    healing_since: Option<Instant>,
    /// When the store was last read, while its files are mapped.
    held: Option<Instant>,
    healed: u64,
    stored: Stored,
    looked: Instant,
    timeline: Timeline,
    reopened: Option<(Timeline, bool)>,
    reopen_tried: Instant,
    origin: Origin,
}

/// How long files mapped for healing stay mapped for the next one. SSTables that are compacted and unlinked meanwhile take
/// their bytes until they are unmapped.
const HOLD: Duration = Duration::from_millis(500);

/// How often an idle subscriber checks for a restart of storage.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Longest wait for an event.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// How often it follows the store's directory again, while storage is silent.
const REOPEN_EVERY: Duration = Duration::from_millis(100);

impl Subscriber {
    /// Subscribes to all records of the store in the directory `store`.
    ///
    /// # Errors
    /// As [`Subscriber::open_with`].
    pub fn open(store: &Path) -> Result<Subscriber> {
        Subscriber::open_with(Options::new(store))
    }

    /// Subscribes with `options`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if no storage process serves it; [`Error::Bus`].
    pub fn open_with(options: Options) -> Result<Subscriber> {
        let options = Options { store: absolute(&options.store)?, ..options };
        if let Some(core) = options.core {
            pin("subscriber", core);
        }
        let store = &options.store;
        let run_dir = RunDir::find(store)?;
        let control = Control::open(&run_dir.control())?;
        let bells = Bells::open(&run_dir.bells())?;
        let versions = Versions::new(Arc::new(RealDisk), store, control.store_id());
        // Missing records are newer than this.
        let after = control.applied();
        let mut this = Subscriber {
            filter: Filter::new(&options),
            options,
            symbols: None,
            notifier: None,
            run_dir,
            control,
            bells,
            link: None,
            kinds: None,
            versions,
            view: None,
            cursors: HashMap::new(),
            batch: Batch::default(),
            healing_since: None,
            held: None,
            healed: 0,
            stored: Stored::above(after),
            looked: Instant::now(),
            timeline: Timeline(0),
            reopened: None,
            reopen_tried: Instant::now(),
            origin: Origin::here(),
        };
        if !this.relink()? {
            let has_stopped = this.control.server().is_none() && this.control.instance().is_multiple_of(2);
            let why = if has_stopped { "it has stopped" } else { "it is recovering" };
            return Err(Error::StorageDown { dir: this.options.store.clone(), why });
        }
        Ok(this)
    }

    /// Number of records fetched from the store.
    pub fn healed(&self) -> u64 {
        self.healed
    }

    /// Whether storage's loop has turned within the last second. If not, nothing arrives until storage is started again, here
    /// or where the store's directory then leads.
    pub fn is_storage_alive(&self) -> bool {
        self.control.is_alive(HostClock.monotonic())
    }

    /// Switches to the control page that the store's directory leads to now, if storage is silent on this page and serves on
    /// that one. Never switches to another store.
    fn reopen_if_silent(&mut self) -> Result<()> {
        if self.reopen_tried.elapsed() < REOPEN_EVERY || self.is_storage_alive() {
            return Ok(());
        }
        self.reopen_tried = Instant::now();
        let Ok(run_dir) = RunDir::find(&self.options.store) else { return Ok(()) };
        let Ok(now) = Control::open(&run_dir.control()) else { return Ok(()) };
        let page = |c: &Control| (c.instance(), c.started(), c.timeline());
        let is_served = now.server().is_some() && now.instance().is_multiple_of(2);
        if !is_served || now.store_id() != self.control.store_id() || page(&now) == page(&self.control) {
            return Ok(());
        }
        let (timeline, continues) = (now.timeline(), now.timeline() == self.timeline);
        if !continues {
            // Another copy's sequence numbers cannot be compared with those received.
            self.cursors.clear();
            self.filter.restart(&self.options);
            self.stored = Stored::above(now.applied());
        }
        self.bells = Bells::open(&run_dir.bells())?;
        self.versions = Versions::new(Arc::new(RealDisk), &self.options.store, now.store_id());
        (self.view, self.link, self.kinds, self.symbols) = (None, None, None, None);
        if let Some(notifier) = &mut self.notifier {
            notifier.move_to(&self.bells)?;
        }
        (self.run_dir, self.control) = (run_dir, now);
        self.reopened = Some((timeline, continues));
        tracing::warn!(
            name: "subscriber.store_moved", store = %self.options.store.display(), %timeline, continues,
            "the store is now served from another place"
        );
        self.relink().map(drop)
    }

    /// Joins the bus of the serving instance. `false`: none serves.
    fn relink(&mut self) -> Result<bool> {
        let instance = self.control.instance();
        if instance % 2 == 1 || self.control.server().is_none() {
            return Ok(false);
        }
        if self.link.as_ref().is_some_and(|(i, ..)| *i == instance) {
            return Ok(true);
        }
        let bus = Bus::join(&self.run_dir.bus_root(instance), &self.run_dir.bus_prefix(instance), "subscriber")?;
        let receiver = bus.receive_live()?;
        let mut kinds = Kinds::open(&self.run_dir.kinds(instance))?;
        kinds.refresh()?;
        self.kinds = Some(kinds);
        self.symbols = None;
        if self.filter.has_unregistered() {
            self.symbols = Some(Symbols::open(&self.run_dir.symbols(instance))?);
        }
        self.link = Some((instance, receiver, bus));
        self.timeline = self.control.timeline();
        Ok(true)
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// [`Error::Bus`]; [`Error::Forked`]. A malformed batch is skipped, and its records arrive as healed or as a gap.
    pub fn poll(&mut self) -> Result<Option<Event<'_>>> {
        self.origin.check("subscriber")?;
        if let Some((timeline, continues)) = self.reopened.take() {
            return Ok(Some(Event::Reopened { timeline, continues }));
        }
        if self.held.is_some() {
            self.let_go();
        }
        let step = loop {
            match self.step()? {
                Step::Next => {}
                step => break step,
            }
        };
        Ok(match step {
            Step::Live(publisher, epoch, pub_seq, at) => {
                let record = RecordRef::first(self.batch.words.get(at..).unwrap_or(&[]))?;
                Some(Event::Record { publisher, epoch, pub_seq, record, healed: false })
            }
            Step::Healed(publisher, epoch, pub_seq) => {
                let record = RecordRef::first(&self.stored.words)?;
                Some(Event::Record { publisher, epoch, pub_seq, record, healed: true })
            }
            Step::Gap { publisher, epoch, first, last } => Some(Event::Gap { publisher, epoch, first, last }),
            Step::Next | Step::Idle => {
                self.arm();
                None
            }
        })
    }

    fn step(&mut self) -> Result<Step> {
        if self.batch.left == 0 && !self.next_batch()? {
            return Ok(Step::Idle);
        }
        let batch = &mut self.batch;
        let (publisher, epoch) = (batch.publisher, batch.epoch);
        let cursor = self.cursors.entry(publisher).or_insert(Cursor { epoch, next: batch.next, healed: Lsn::NONE });
        let expected = cursor.next;
        if cursor.epoch < epoch {
            // Records that the bus dropped from the earlier epoch come first.
            let ended = Cursor { ..*cursor };
            return self.end_epoch(publisher, ended, epoch);
        }
        if expected < batch.next {
            return self.heal(publisher, epoch, expected);
        }
        debug_assert!(cursor.epoch == epoch, "no record of an earlier epoch is delivered");
        self.healing_since = None;
        let skipped = batch.to_skip();
        let at = batch.passing.get(batch.at).map(|(_, at)| *at as usize);
        batch.skip(skipped);
        let Some(at) = at else {
            cursor.next = batch.next;
            return Ok(Step::Next);
        };
        let pub_seq = batch.next;
        batch.skip(1);
        cursor.next = batch.next;
        Ok(Step::Live(publisher, epoch, pub_seq, at))
    }

    /// Receives the next batch with a new record. `false`: there is none.
    fn next_batch(&mut self) -> Result<bool> {
        loop {
            let Some((_, receiver, _)) = &self.link else { return self.look() };
            let Some(sample) = receiver.receive()? else { return self.look() };
            let header = sample.header();
            let batch = &mut self.batch;
            (batch.publisher, batch.epoch) = (header.publisher(), header.epoch());
            (batch.first, batch.next, batch.left) = (header.first_pub_seq(), header.first_pub_seq(), 0);
            if let Some(symbols) = self.symbols.as_mut().filter(|_| self.filter.has_unregistered()) {
                self.filter.resolve(symbols);
            }
            let mut whole = batch.fill(sample.words(), &self.filter);
            if let (Err(_), Some(kinds)) = (&whole, &mut self.kinds) {
                // A kind may have been defined meanwhile: the store has it before its first record is sent.
                kinds.refresh()?;
                whole = batch.fill(sample.words(), &self.filter);
            }
            drop(sample);
            if whole.ok() != Some(header.count()) || header.count() == 0 {
                tracing::warn!(
                    name: "subscriber.malformed_batch", publisher = batch.publisher.0,
                    "skipped a malformed live batch"
                );
                continue;
            }
            batch.left = header.count();
            let cursor =
                self.cursors.entry(batch.publisher).or_insert(Cursor { epoch: batch.epoch, next: batch.next, healed: Lsn::NONE });
            if batch.epoch < cursor.epoch {
                batch.skip(batch.left);
            } else if batch.epoch == cursor.epoch && batch.next < cursor.next {
                let repeated = (cursor.next.0 - batch.next.0).min(u64::from(batch.left)) as u32;
                batch.skip(repeated);
            }
            if batch.left > 0 {
                debug_assert!((batch.epoch, batch.next) >= (cursor.epoch, cursor.next), "no record is delivered twice");
                return Ok(true);
            }
        }
    }

    /// Checks for a restart of storage when nothing has arrived.
    fn look(&mut self) -> Result<bool> {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            match self.reopen_if_silent().and_then(|()| self.relink()) {
                Ok(_) => {}
                Err(error) => tracing::debug!(name: "subscriber.bus_not_joined", %error, "cannot join the bus yet"),
            }
        }
        Ok(false)
    }

    /// Unmaps the files read for healing, unless healing continues.
    #[cold]
    fn let_go(&mut self) {
        if self.healing_since.is_none() && self.held.is_some_and(|held| held.elapsed() >= HOLD) {
            (self.held, self.view) = (None, None);
            self.versions.let_go();
        }
    }

    /// Takes a view of the store as it is now.
    fn look_at_store(&mut self) -> Result<()> {
        self.held = Some(Instant::now());
        self.healing_since.get_or_insert_with(Instant::now);
        if let Err(error) = self.reopen_if_silent() {
            tracing::debug!(name: "subscriber.bus_not_joined", %error, "cannot join the bus yet");
        }
        // A partial view is enough: a record that it does not have is waited for and then reported.
        match self.versions.look(&self.run_dir, &self.control, Control::applied) {
            Ok((view, _)) => {
                self.view = Some(view);
                self.kinds.as_mut().map_or(Ok(()), Kinds::refresh)?;
            }
            Err(Error::StorageDown { .. }) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn has_waited(&self) -> bool {
        self.healing_since.is_some_and(|since| since.elapsed() >= HEAL_TIMEOUT)
    }

    /// Fetches the record `expected` from the store; waits for it until the timeout, then reports a gap.
    fn heal(&mut self, publisher: PublisherId, epoch: Epoch, expected: PubSeq) -> Result<Step> {
        self.look_at_store()?;
        let waited = self.has_waited();
        let Some(cursor) = self.cursors.get_mut(&publisher) else { return Ok(Step::Idle) };
        assert!((cursor.epoch, cursor.next) == (epoch, expected), "the next record is the one that is fetched");
        if let Some(lsn) = self.stored.find(self.view.as_ref(), publisher, epoch, expected, cursor.healed)? {
            (cursor.next, cursor.healed) = (PubSeq(expected.0 + 1), lsn);
            return Ok(self.fetched(publisher, epoch, expected));
        }
        if !waited {
            return Ok(Step::Idle);
        }
        self.healing_since = None;
        let last = PubSeq(self.batch.next.0 - 1);
        assert!(expected <= last, "a gap has a record, and ends before the batch");
        cursor.next = self.batch.next;
        Ok(Step::Gap { publisher, epoch, first: expected, last })
    }

    /// The step for a record that was fetched into `stored.words`.
    fn fetched(&mut self, publisher: PublisherId, epoch: Epoch, pub_seq: PubSeq) -> Step {
        self.healing_since = None;
        if let Some(symbols) = self.symbols.as_mut().filter(|_| self.filter.has_unregistered()) {
            self.filter.resolve(symbols);
        }
        let passes = self.filter.is_all() || self.stored.words.first().is_some_and(|head| self.filter.passes(*head));
        self.healed += u64::from(passes);
        if passes { Step::Healed(publisher, epoch, pub_seq) } else { Step::Next }
    }

    /// Fetches the rest of the epoch of the cursor `ended`. The epoch is complete when the store has the first
    /// record of the epoch `new`: storage accepts nothing of the old epoch after it.
    fn end_epoch(&mut self, publisher: PublisherId, ended: Cursor, new: Epoch) -> Result<Step> {
        self.look_at_store()?;
        let waited = self.has_waited();
        let Some(cursor) = self.cursors.get_mut(&publisher) else { return Ok(Step::Idle) };
        let Cursor { epoch, next, healed } = ended;
        assert!((cursor.epoch, cursor.next) == (epoch, next) && epoch < new, "a later epoch ends this one");
        // This search comes first: once the new epoch's first record is stored, the old epoch is complete.
        let over = self.stored.find(self.view.as_ref(), publisher, new, PubSeq(1), healed)?.is_some();
        if let Some(lsn) = self.stored.find(self.view.as_ref(), publisher, epoch, next, healed)? {
            (cursor.next, cursor.healed) = (PubSeq(next.0 + 1), lsn);
            return Ok(self.fetched(publisher, epoch, next));
        }
        if !over && !waited {
            return Ok(Step::Idle);
        }
        self.healing_since = None;
        *cursor = Cursor { epoch: new, next: PubSeq(1), healed };
        if over {
            return Ok(Step::Next);
        }
        // Their count is unknown.
        Ok(Step::Gap { publisher, epoch, first: next, last: PubSeq(u64::MAX) })
    }

    /// Waits until there may be an event, at most for `limit`, as [`Options::wait`] says: [`Wait::Busy`] loads a word in a
    /// loop, [`Wait::Adaptive`] does so for some microseconds and then sleeps, [`Wait::Blocking`] sleeps. Every wait ends after
    /// 100 ms, also with a longer limit: call [`Subscriber::poll`], which notices a restart of storage, and wait again.
    pub fn wait(&self, limit: Duration) {
        let limit = limit.min(WAIT_MAX);
        if self.link.is_none() {
            return std::thread::sleep(limit.min(LOOK_EVERY));
        }
        if self.healing_since.is_some() {
            return self.bells.sleep(Bell::Applied, limit.min(Duration::from_millis(5)), || false);
        }
        let (mut idle, until) = (Idle::new(self.options.wait), deadline(limit));
        while !idle.should_park() {
            if self.has_event() || Instant::now() >= until {
                return;
            }
        }
        self.bells.sleep(Bell::Live, until.saturating_duration_since(Instant::now()), || self.has_event());
    }

    /// Whether a poll may deliver something now, if nothing is fetched from the store.
    fn has_event(&self) -> bool {
        let has_batches = || self.link.as_ref().is_some_and(|(_, receiver, _)| receiver.has_batches());
        self.batch.left > 0 || self.reopened.is_some() || has_batches()
    }

    /// A descriptor that becomes readable when there may be an event: for `epoll`, `poll` and async programs. Call
    /// [`Subscriber::poll`] until it returns `None`, wait until the descriptor is readable, and repeat; never read from it. It
    /// becomes readable ten times a second without an event too, so that a restart of storage is noticed. A thread of this
    /// process serves it from the first call on.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Exhausted`] if the system gives no descriptor or thread; [`Error::Forked`].
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>> {
        self.origin.check("subscriber")?;
        let notifier = match self.notifier.take() {
            Some(notifier) => notifier,
            None => Notifier::new(&self.bells)?,
        };
        self.notifier = Some(notifier);
        self.arm();
        let Some(notifier) = &self.notifier else { panic!("it was just made") };
        Ok(notifier.fd())
    }

    /// Prepares the descriptor for a wait.
    fn arm(&self) {
        let Some(notifier) = &self.notifier else { return };
        notifier.arm(self.healing_since.is_some(), || self.healing_since.is_none() && self.has_event());
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            // The bus ports belong to the parent process: closing them here would close the parent's.
            Box::leak(Box::new((self.link.take(), self.notifier.take())));
        }
    }
}
