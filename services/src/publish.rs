//! Owns: `tape publish`, and the pump from an input into a publisher that the demonstration uses too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tapestore::lsn::{InstrumentId, Level, PublisherId};
use tapestore::publisher::{Options, Progress, PublishError, Publisher};
use tapestore::record::{Kind, schema, split};

use crate::balance::Balance;
use crate::exit::{Failure, Outcome, USAGE};
use crate::identity;
use crate::input::{self, Input, Market, Message, Sim};
use crate::output::Format;
use crate::tally::{Tally, name_hash, text_hash};
use crate::terminal;

/// How fast to publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As fast as the records' own times, times this.
    Times(f64),
    /// As fast as possible.
    Max,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let bad = || format!("'{text}' is none of: realtime, max, x2, x100, ...");
        match text {
            "realtime" => Ok(Rate::Times(1.0)),
            "max" => Ok(Rate::Max),
            _ => {
                let times: f64 = text.strip_prefix('x').and_then(|t| t.parse().ok()).ok_or_else(bad)?;
                if times > 0.0 && times.is_finite() { Ok(Rate::Times(times)) } else { Err(bad()) }
            }
        }
    }
}

/// Where records come from.
#[derive(clap::Args, Clone, Debug)]
pub struct Source {
    /// A Binance websocket capture (lines of `local_ns JSON`) or CSV with a header, gzip or plain; DBN, zstd or plain;
    /// Parquet; Arrow
    #[arg(long, conflicts_with = "sim")]
    pub from: Option<PathBuf>,
    /// The simulated market
    #[arg(long)]
    pub sim: bool,
    /// Seed of the simulated market: the same seed gives the same records
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Records of the simulated market
    #[arg(long, default_value_t = 500_000)]
    pub records: u64,
    /// Instruments of the simulated market
    #[arg(long, default_value_t = 100)]
    pub instruments: u32,
    /// How a file is read that does not say everything itself.
    #[command(flatten)]
    pub options: input::Options,
}

impl Source {
    /// Opens the input.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(&self) -> Outcome<Box<dyn Input>> {
        match &self.from {
            Some(path) => input::open(path, &self.options),
            None => Ok(Box::new(Sim::new(Market { seed: self.seed, records: self.records, instruments: self.instruments })?)),
        }
    }
}

/// Publishes records into a store.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    who: identity::Who,
    /// Until when records are kept for sending again: none, os, fsync, standby, quorum
    #[arg(long, default_value = "fsync")]
    level: Level,
    /// realtime, max, or x2, x100, ...: by the records' own times
    #[arg(long, default_value = "max")]
    rate: Rate,
    /// Records that are sent together at most, at rate max
    #[arg(long, default_value_t = 256)]
    batch: u32,
}

/// Called for each record as it is published: its number from 0, when it was due, its words.
pub type OnRecord<'a> = &'a mut dyn FnMut(u64, Instant, &[u64]);

/// What was pumped.
#[derive(Clone, Debug, Default)]
pub struct Pumped {
    /// Records by kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// Records, and their checksum.
    pub tally: Tally,
    /// Records without the time that sorts them.
    pub untimed: u64,
    /// The longest that one call took, ns.
    pub longest_call_ns: u64,
    /// Whether the input was read to its end.
    pub is_whole: bool,
}

impl Pumped {
    /// Names of the kinds, and how many records of each.
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.kinds.iter().filter_map(|(kind, n)| schema(*kind).map(|s| (s.name, *n)))
    }
}

/// Pumps `input` into `publisher`, at `rate`.
pub struct Pump<'a> {
    /// From here.
    pub input: &'a mut dyn Input,
    /// To there.
    pub publisher: &'a mut Publisher,
    /// This fast.
    pub rate: Rate,
    /// At most so many records together, at rate max.
    pub batch: u32,
    /// Whether each call is timed.
    pub timed: bool,
    /// Ends early when this says so.
    pub stop: &'a dyn Fn() -> bool,
}

/// How long a full ring is waited for before the pump gives up.
const FULL_TIMEOUT: Duration = Duration::from_secs(30);

impl Pump<'_> {
    /// Pumps until the input ends, or it or the publisher fails: what came before that has been published.
    pub fn run(&mut self, on_record: OnRecord<'_>) -> (Pumped, Outcome) {
        let mut done = Pumped::default();
        let outcome = self.pump(&mut done, on_record);
        self.publisher.send();
        (done, outcome)
    }

    fn pump(&mut self, done: &mut Pumped, on_record: OnRecord<'_>) -> Outcome {
        let bar = terminal::progress(self.input.progress().1, self.input.is_bytes(), "publishing");
        let mut message = Message::default();
        let mut ids: Vec<InstrumentId> = Vec::new();
        // Of the instruments' names, by the store's ids.
        let (mut hashes, no_name): (Vec<u64>, u64) = (Vec::new(), text_hash(input::NO_NAME));
        let mut clock: Option<(Instant, u64)> = None;
        let (mut staged, start) = (0, Instant::now());
        'messages: while !(self.stop)() {
            if !self.input.next(&mut message)? {
                done.is_whole = true;
                break;
            }
            if ids.len() < self.input.names().len() {
                let new = self.input.names().get(ids.len()..).unwrap_or(&[]);
                for (id, name) in self.publisher.instruments(new)?.into_iter().zip(new) {
                    ids.push(id);
                    hashes.resize(hashes.len().max(id.0 as usize + 1), 0);
                    hashes.iter_mut().skip(id.0 as usize).take(1).for_each(|hash| *hash = name_hash(name));
                }
            }
            let due = match self.rate {
                Rate::Max if !self.timed => start,
                Rate::Max => Instant::now(),
                // What has no time of its own goes with what comes next.
                Rate::Times(_) if message.at.is_null() => Instant::now(),
                Rate::Times(times) => {
                    let (start, first) = *clock.get_or_insert((Instant::now(), message.at.0));
                    let due = start + Duration::from_nanos((message.at.0.saturating_sub(first) as f64 / times) as u64);
                    if due > Instant::now() && staged > 0 {
                        self.publisher.send();
                        staged = 0;
                    }
                    if !wait_until(due, self.stop) {
                        break;
                    }
                    due
                }
            };
            number(&mut message.words, &ids)?;
            for record in split(&message.words) {
                let record = record?;
                on_record(done.tally.records, due, record.words());
                let began = self.timed.then(Instant::now);
                if !self.stage(record)? {
                    break 'messages;
                }
                let took = began.map_or(0, |b| b.elapsed().as_nanos() as u64);
                done.longest_call_ns = done.longest_call_ns.max(took);
                let name = hashes.get(record.instrument().0 as usize).copied().unwrap_or(no_name);
                done.tally.add(name, record.words());
                done.untimed += u64::from(record.own_index_time().is_null());
                *done.kinds.entry(record.kind()).or_default() += 1;
            }
            staged += message.records;
            let late = matches!(self.rate, Rate::Times(_)) && due + Duration::from_micros(50) < Instant::now();
            if staged >= self.batch || !(late || self.rate == Rate::Max) {
                self.publisher.send();
                staged = 0;
            }
            if done.tally.records.is_multiple_of(1024) {
                bar.set_position(self.input.progress().0);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Takes `record`; `false` if the command is to end before there is room for it.
    fn stage(&mut self, record: tapestore::record::RecordRef<'_>) -> Outcome<bool> {
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

/// Puts the store's instrument ids in the place of the input's.
fn number(words: &mut [u64], ids: &[InstrumentId]) -> Outcome {
    let mut at = 0;
    while at < words.len() {
        let rest = words.get(at..).unwrap_or(&[]);
        let record = tapestore::record::RecordRef::first(rest)?;
        let (len, local) = (record.words().len(), record.instrument().0);
        // What is of no instrument stays so.
        let id = if local == input::NO_INSTRUMENT { Some(&InstrumentId::NULL) } else { ids.get(local as usize) };
        let id = id.ok_or_else(|| Failure::new(USAGE, "an input numbers an instrument it has not named"))?;
        if let Some(head) = words.get_mut(at) {
            *head = (*head & 0xffff_ffff) | u64::from(id.0) << 32;
        }
        at += len;
    }
    Ok(())
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

/// How long a wait for a record's time goes on after the command has been asked to end.
const STOP_LOOK: Duration = Duration::from_millis(50);

/// `tape publish`.
///
/// # Errors
/// What the input or storage says; what came before it is kept, and the message says how much.
pub fn run(store: PathBuf, args: &Args, format: Format) -> Outcome {
    if args.source.from.is_none() && !args.source.sim {
        return Err(Failure::new(USAGE, "name an input: --from FILE or --sim"));
    }
    let options = Options { level: args.level, ..Options::new(store, PublisherId(0)) };
    // First: it tells which kinds programs have defined in the store. Until it is open a signal ends the process as any
    // other: nothing has been taken.
    let mut publisher = args.who.open(options)?;
    let stop = terminal::stop_flag()?;
    let is_over = || terminal::is_raised(&stop);
    let mut input = args.source.open()?;
    let began = Instant::now();
    let mut pump = Pump {
        input: input.as_mut(),
        publisher: &mut publisher,
        rate: args.rate,
        batch: args.batch,
        timed: false,
        stop: &is_over,
    };
    let (done, outcome) = pump.run(&mut |_, _, _| {});
    let (balance, settled) = Balance::settle(&mut publisher, done.tally.records, &is_over);
    report(&done, &publisher.progress(), &balance, began.elapsed().as_secs_f64(), format);
    end(publisher, &balance);
    let interrupted = outcome.is_ok() && !done.is_whole;
    balance.conclude(outcome, settled, interrupted)
}

/// Lets go of a publisher. One that cannot reach its level is not waited for: it may be asking storage for an answer.
pub fn end(publisher: Publisher, balance: &Balance) {
    if balance.outstanding.total() > 0 {
        std::thread::Builder::new().spawn(move || drop(publisher)).ok();
    }
}

fn report(done: &Pumped, progress: &Progress, balance: &Balance, seconds: f64, format: Format) {
    let level = balance.level;
    if format.json {
        let by_kind: serde_json::Map<String, serde_json::Value> = done.by_kind().map(|(s, n)| (s.to_owned(), n.into())).collect();
        let mut object = serde_json::json!({
            "records": done.tally.records, "is_whole": done.is_whole, "kinds": by_kind, "seconds": seconds, "level": level.to_string(),
            "epoch": progress.epoch.0, "accepted": progress.accepted.0, "durable": progress.durable.0,
            "last_lsn": progress.accepted_lsn.0, "rewinds": progress.rewinds, "reattached": progress.reattached,
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(balance.numbers().map(|(name, n)| (name.to_owned(), n.into())));
        }
        terminal::say(object);
        return;
    }
    let by_kind: Vec<String> = done.by_kind().map(|(s, n)| format!("{} {s}", terminal::thousands(n))).collect();
    terminal::say(format_args!(
        "took {} records ({}) in {seconds:.2} s",
        terminal::thousands(done.tally.records),
        by_kind.join(", ")
    ));
    let [stored, in_log, unacknowledged, lost] = balance.numbers().map(|(_, n)| terminal::thousands(n));
    terminal::say(format_args!(
        "{stored} stored at level {level}, {in_log} more in the log, {unacknowledged} not acknowledged, {lost} lost (epoch {}, last LSN {})",
        progress.epoch, progress.accepted_lsn
    ));
}
