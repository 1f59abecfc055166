//! Owns: the loader, which publishes the records of an input. `tape import`, `tape publish` and the demonstration use it.
//!
//! What must hold: what came before the input's end, its error or the request to stop has been published and is counted;
//! the balance that [`Loader::load`] gives adds up to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tapestore::lsn::InstrumentId;
use tapestore::publisher::{PublishError, Publisher};
use tapestore::record::{Kind, RecordRef, schema, split};
use tapestore::time::Ts;
use tapestore_formats::checksum::{Checksum, name_hash, text_hash};
use tapestore_formats::input::{Input, Message, NO_INSTRUMENT, NO_NAME};

use crate::balance::Balance;
use crate::exit::{Failure, Outcome, USAGE};
use crate::source::Rate;
use crate::terminal::{self, Bar};

/// How long the loader waits for room in the publisher's ring before it gives up.
const FULL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a wait for a record's time goes on after the command has been asked to end.
const STOP_LOOK: Duration = Duration::from_millis(50);
/// Records that are sent together at most, at [`Rate::Max`], unless another number is asked for.
pub const BATCH: u32 = 256;

/// Called for each record as it is published: its number from 0, when it was due, its words.
pub type OnRecord<'a> = &'a mut dyn FnMut(u64, Instant, &[u64]);

/// What was published.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Records by kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// Records, and their checksum.
    pub checksum: Checksum,
    /// Records without the time that sorts them.
    pub untimed: u64,
    /// Whether the input was read to its end.
    pub is_whole: bool,
}

impl Published {
    /// Names of the kinds, and how many records of each.
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.kinds.iter().filter_map(|(kind, n)| schema(*kind).map(|s| (s.name, *n)))
    }
}

/// What became of an input.
pub struct Loaded {
    /// What was published of it.
    pub published: Published,
    /// How much of that is stored.
    pub balance: Balance,
    /// What no record can hold, and how often: it is left in the source.
    pub left: BTreeMap<String, u64>,
    /// How the command ends by it.
    pub outcome: Outcome,
}

/// Publishes the records of inputs.
pub struct Loader<'a> {
    /// As this publisher.
    pub publisher: &'a mut Publisher,
    /// This fast.
    pub rate: Rate,
    /// At most so many records together, at [`Rate::Max`].
    pub batch: u32,
    /// Whether the time at which a record is due is taken at [`Rate::Max`] too; it costs time.
    pub timed: bool,
    /// Ends early when this says so.
    pub stop: &'a dyn Fn() -> bool,
}

impl<'a> Loader<'a> {
    /// A loader that goes as fast as it can.
    pub fn new(publisher: &'a mut Publisher, stop: &'a dyn Fn() -> bool) -> Loader<'a> {
        Loader { publisher, rate: Rate::Max, batch: BATCH, timed: false, stop }
    }

    /// Publishes `input`, and waits until its records have reached the publisher's level.
    pub fn load(&mut self, input: &mut dyn Input) -> Loaded {
        let (published, outcome) = self.publish(input, &mut |_, _, _| {});
        let (balance, settled) = Balance::settle(self.publisher, published.checksum.records, self.stop);
        let is_interrupted = outcome.is_ok() && !published.is_whole;
        let outcome = balance.conclude(outcome, settled, is_interrupted);
        Loaded { published, balance, left: input.left(), outcome }
    }

    /// Publishes `input` until it ends, or it or the publisher fails: what came before that has been published.
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

    /// Takes `record`; `false` if the command is to end before there is room for it.
    fn stage(&mut self, record: RecordRef<'_>) -> Outcome<bool> {
        let mut began: Option<Instant> = None;
        loop {
            match self.publisher.stage(record) {
                Ok(_) => return Ok(true),
                Err(PublishError::Full { .. } | PublishError::NoSpace { .. }) if (self.stop)() => return Ok(false),
                // The ring is the buffer; a file can wait for room in it.
                Err(PublishError::Full { .. } | PublishError::NoSpace { .. })
                    if began.get_or_insert_with(Instant::now).elapsed() < FULL_TIMEOUT => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// When messages are due.
struct Pace {
    rate: Rate,
    timed: bool,
    start: Instant,
    /// When the first message with a time was due, and that time.
    clock: Option<(Instant, u64)>,
}

impl Pace {
    fn new(rate: Rate, timed: bool) -> Pace {
        Pace { rate, timed, start: Instant::now(), clock: None }
    }

    /// When the message that came `at` is due.
    fn due(&mut self, at: Ts) -> Instant {
        match self.rate {
            Rate::Max if !self.timed => self.start,
            Rate::Max => Instant::now(),
            // What has no time of its own goes with what comes next.
            Rate::Times(_) if at.is_null() => Instant::now(),
            Rate::Times(times) => {
                let (start, first) = *self.clock.get_or_insert((Instant::now(), at.0));
                start + Duration::from_nanos((at.0.saturating_sub(first) as f64 / times) as u64)
            }
        }
    }

    /// Whether a message that was due at `due` is sent by itself: one that is late goes with those that follow.
    fn sends_at_once(&self, due: Instant) -> bool {
        self.rate != Rate::Max && due + Duration::from_micros(50) >= Instant::now()
    }
}

/// The store's numbers of an input's instruments, and the hashes of their names.
struct Instruments {
    /// By the input's numbers.
    ids: Vec<InstrumentId>,
    /// By the store's.
    hashes: Vec<u64>,
    no_name: u64,
}

impl Instruments {
    fn new() -> Instruments {
        Instruments { ids: Vec::new(), hashes: Vec::new(), no_name: text_hash(NO_NAME) }
    }

    /// Registers the instruments that `input` has met since.
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

    /// Puts the store's numbers into the records `words` in the place of the input's.
    fn number(&self, words: &mut [u64]) -> Outcome {
        let mut at = 0;
        while at < words.len() {
            let rest = words.get(at..).unwrap_or(&[]);
            let record = RecordRef::first(rest)?;
            let (len, local) = (record.words().len(), record.instrument().0);
            // What is of no instrument stays so.
            let id = if local == NO_INSTRUMENT { Some(&InstrumentId::NULL) } else { self.ids.get(local as usize) };
            let id = id.ok_or_else(|| Failure::new(USAGE, "an input numbers an instrument it has not named"))?;
            if let Some(head) = words.get_mut(at) {
                *head = (*head & 0xffff_ffff) | u64::from(id.0) << 32;
            }
            at += len;
        }
        Ok(())
    }
}

/// Waits until `due`; `false` if the command is to end before.
fn wait_until(due: Instant, stop: &dyn Fn() -> bool) -> bool {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        match left {
            Duration::ZERO => return true,
            _ if stop() => return false,
            left if left > Duration::from_micros(200) => {
                std::thread::sleep((left - Duration::from_micros(100)).min(STOP_LOOK));
            }
            // Whoever is to receive the last record may be waiting for this core.
            _ => std::thread::yield_now(),
        }
    }
}

/// Lets go of a publisher. One that cannot reach its level is not waited for: it may be asking storage for an answer.
pub fn end(publisher: Publisher, balance: &Balance) {
    if balance.outstanding.total() > 0 {
        std::thread::Builder::new().spawn(move || drop(publisher)).ok();
    }
}

/// Prints what `loaded` left in the source.
pub fn report_left(loaded: &Loaded) {
    for (what, n) in &loaded.left {
        terminal::say(format_args!("  left in the source: {} {what}", terminal::thousands(*n)));
    }
}
