//! Owns: the loader, which publishes the records of an input. `tape import`, `tape publish` and `tape demo` use it.
//!
//! What must hold: all records before the end of the input, its error or the request to stop are published and counted; the
//! account that [`Loader::load`] returns adds up to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tapestore::lsn::InstrumentId;
use tapestore::publisher::{PublishError, Publisher};
use tapestore::record::{Kind, RecordRef, schema, split};
use tapestore::time::Ts;
use tapestore_formats::checksum::{Checksum, name_hash, text_hash};
use tapestore_formats::input::{Input, Message, NO_INSTRUMENT, NO_NAME};

use crate::accounting::Accounting;
use crate::exit::{Failure, Outcome, USAGE};
use crate::source::Rate;
use crate::terminal::{self, Bar};

/// How long the loader waits for room in the publisher's ring.
const FULL_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of checks for a request to stop during a wait for a record's time.
const STOP_LOOK: Duration = Duration::from_millis(50);
/// Most records sent together at [`Rate::Max`]; the default of --batch.
pub const BATCH: u32 = 256;

/// Called for each published record: its number from 0, the time when it was due, its words.
pub type OnRecord<'a> = &'a mut dyn FnMut(u64, Instant, &[u64]);

/// The published records.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Records by kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// Count and checksum.
    pub checksum: Checksum,
    /// Records without an index time of their own.
    pub untimed: u64,
    /// Whether the input was read to its end.
    pub is_whole: bool,
}

impl Published {
    /// Records by the name of their kind.
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.kinds.iter().filter_map(|(kind, n)| schema(*kind).map(|s| (s.name, *n)))
    }
}

/// The result of an input.
pub struct Loaded {
    /// The published records.
    pub published: Published,
    /// What became of them.
    pub accounting: Accounting,
    /// Records and values of the source that no record can hold, with their number.
    pub left: BTreeMap<String, u64>,
    /// The outcome of the command.
    pub outcome: Outcome,
}

/// Publishes the records of inputs.
pub struct Loader<'a> {
    /// The publisher.
    pub publisher: &'a mut Publisher,
    /// The speed.
    pub rate: Rate,
    /// Most records sent together at [`Rate::Max`].
    pub batch: u32,
    /// Whether due times are measured at [`Rate::Max`] too, which costs time.
    pub timed: bool,
    /// Counts the records that waited because the ring was full.
    pub full: Arc<AtomicU64>,
    /// Whether to stop.
    pub stop: &'a dyn Fn() -> bool,
}

impl<'a> Loader<'a> {
    /// A loader at [`Rate::Max`].
    pub fn new(publisher: &'a mut Publisher, stop: &'a dyn Fn() -> bool) -> Loader<'a> {
        Loader { publisher, rate: Rate::Max, batch: BATCH, timed: false, full: Arc::default(), stop }
    }

    /// Publishes `input` and waits until its records reach the publisher's level.
    pub fn load(&mut self, input: &mut dyn Input) -> Loaded {
        let (published, outcome) = self.publish(input, &mut |_, _, _| {});
        let (accounting, settled) = Accounting::settle(self.publisher, published.checksum.records, self.stop);
        let is_interrupted = outcome.is_ok() && !published.is_whole;
        let outcome = accounting.conclude(outcome, settled, is_interrupted);
        Loaded { published, accounting, left: input.left(), outcome }
    }

    /// Publishes `input` until it ends, or it or the publisher fails. Records before a failure are published.
    pub fn publish(&mut self, input: &mut dyn Input, on_record: OnRecord<'_>) -> (Published, Outcome) {
        let mut done = Published::default();
        let outcome = self.pump(input, &mut done, on_record);
        self.publisher.send();
        (done, outcome)
    }

    fn pump(&mut self, input: &mut dyn Input, done: &mut Published, on_record: OnRecord<'_>) -> Outcome {
        let mut bar = Bar::new("publishing");
        let (mut message, mut instruments) = (Message::default(), Instruments::new());
        let (mut pace, mut staged) = (Pace::new(self.rate, self.timed), 0);
        while !(self.stop)() {
            if !input.next(&mut message)? {
                done.is_whole = true;
                break;
            }
            instruments.register(input, self.publisher)?;
            let due = pace.due(message.at);
            if self.rate != Rate::Max && due > Instant::now() {
                if staged > 0 {
                    self.publisher.send();
                    staged = 0;
                }
                if !wait_until(due, self.stop) {
                    break;
                }
            }
            instruments.number(&mut message.words)?;
            for record in split(&message.words) {
                let record = record?;
                on_record(done.checksum.records, due, record.words());
                if !self.stage(record)? {
                    return Ok(());
                }
                done.checksum.add(instruments.hash(record.instrument()), record.words());
                done.untimed += u64::from(record.own_index_time().is_null());
                *done.kinds.entry(record.kind()).or_default() += 1;
            }
            staged += message.records;
            if staged >= self.batch || pace.sends_at_once(due) {
                self.publisher.send();
                staged = 0;
            }
            if done.checksum.records.is_multiple_of(1024) {
                bar.set(input.progress());
            }
        }
        Ok(())
    }

    /// A record begins to wait for room in the ring.
    fn waits(&self) -> Instant {
        // A lone counter, read by scrapes: relaxed.
        self.full.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    /// Stages `record`; `false` if the command must stop before there is room for it.
    fn stage(&mut self, record: RecordRef<'_>) -> Outcome<bool> {
        let mut began: Option<Instant> = None;
        loop {
            match self.publisher.stage(record) {
                Ok(_) => return Ok(true),
                Err(PublishError::Full { .. } | PublishError::NoSpace { .. }) if (self.stop)() => return Ok(false),
                // A file waits for room in the ring; it needs no other buffer.
                Err(PublishError::Full { .. } | PublishError::NoSpace { .. })
                    if began.get_or_insert_with(|| self.waits()).elapsed() < FULL_TIMEOUT => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The due times of messages.
struct Pace {
    rate: Rate,
    timed: bool,
    start: Instant,
    /// When the first message with a time was due, and its time.
    clock: Option<(Instant, u64)>,
}

impl Pace {
    fn new(rate: Rate, timed: bool) -> Pace {
        Pace { rate, timed, start: Instant::now(), clock: None }
    }

    /// When the message with the time `at` is due.
    fn due(&mut self, at: Ts) -> Instant {
        match self.rate {
            Rate::Max if !self.timed => self.start,
            Rate::Max => Instant::now(),
            // A message without a time goes with the next one.
            Rate::Times(_) if at.is_null() => Instant::now(),
            Rate::Times(times) => {
                let (start, first) = *self.clock.get_or_insert((Instant::now(), at.0));
                start + Duration::from_nanos((at.0.saturating_sub(first) as f64 / times) as u64)
            }
        }
    }

    /// Whether a message due at `due` is sent at once. A late one is sent together with the next ones.
    fn sends_at_once(&self, due: Instant) -> bool {
        self.rate != Rate::Max && due + Duration::from_micros(50) >= Instant::now()
    }
}

/// The store's ids of an input's instruments, and the hashes of their names.
struct Instruments {
    /// By the input's ids.
    ids: Vec<InstrumentId>,
    /// By the store's ids.
    hashes: Vec<u64>,
    no_name: u64,
}

impl Instruments {
    fn new() -> Instruments {
        Instruments { ids: Vec::new(), hashes: Vec::new(), no_name: text_hash(NO_NAME) }
    }

    /// Registers the instruments that `input` has named since the last call.
    fn register(&mut self, input: &dyn Input, publisher: &Publisher) -> Outcome {
        let Some(new) = input.names().get(self.ids.len()..).filter(|new| !new.is_empty()) else { return Ok(()) };
        for (id, name) in publisher.instruments(new)?.into_iter().zip(new) {
            self.ids.push(id);
            let index = id.0 as usize;
            self.hashes.resize(self.hashes.len().max(index + 1), 0);
            self.hashes.get_mut(index).into_iter().for_each(|hash| *hash = name_hash(name));
        }
        Ok(())
    }

    /// The hash of the name of `instrument`.
    fn hash(&self, instrument: InstrumentId) -> u64 {
        self.hashes.get(instrument.0 as usize).copied().unwrap_or(self.no_name)
    }

    /// Replaces the input's instrument ids in the records `words` by the store's.
    fn number(&self, words: &mut [u64]) -> Outcome {
        let mut at = 0;
        while at < words.len() {
            let rest = words.get(at..).unwrap_or(&[]);
            let record = RecordRef::first(rest)?;
            let (len, local) = (record.words().len(), record.instrument().0);
            // A record without an instrument keeps the null id.
            let id = if local == NO_INSTRUMENT { Some(&InstrumentId::NULL) } else { self.ids.get(local as usize) };
            let id = id.ok_or_else(|| Failure::new(USAGE, format!("the input uses instrument {local} without naming it")))?;
            if let Some(head) = words.get_mut(at) {
                *head = (*head & 0xffff_ffff) | u64::from(id.0) << 32;
            }
            at += len;
        }
        Ok(())
    }
}

/// Waits until `due`; `false` if the command must stop before.
fn wait_until(due: Instant, stop: &dyn Fn() -> bool) -> bool {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        match left {
            Duration::ZERO => return true,
            _ if stop() => return false,
            left if left > Duration::from_micros(200) => {
                std::thread::sleep((left - Duration::from_micros(100)).min(STOP_LOOK));
            }
            // The receiver of the last record may need this core.
            _ => std::thread::yield_now(),
        }
    }
}

/// Drops a publisher. One with outstanding records is dropped on another thread, because it may still wait for storage.
pub fn end(publisher: Publisher, accounting: &Accounting) {
    if accounting.outstanding.total() > 0 {
        std::thread::Builder::new().spawn(move || drop(publisher)).ok();
    }
}

/// Prints the records and values of the source that were skipped.
pub fn report_left(loaded: &Loaded) {
    for (what, n) in &loaded.left {
        out!("  skipped: {} {what}", terminal::thousands(*n));
    }
}
