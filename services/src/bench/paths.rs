//! Owns: the measurements of a store: publish to visible, publish to durable, ingest, reads.
//!
//! What must hold: publisher and reader are threads of this process, and storage is another process, so that a record crosses two
//! processes. A measurement ends at its time.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tapestore::agent::{Idle, Wait};
use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Reader};
use tapestore::record::{Name, Price, Record, RecordRef, Size, Trade};
use tapestore::time::{Clock, HostClock, Ts};
use tapestore::{Series, TimeRange};

use super::machine::{PAGE, written};
use super::{Measured, times};
use crate::demo::check_stop;
use crate::exit::{Failure, INTERNAL, Outcome};
use crate::flush;

/// The limit of every wait: a guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Instruments of the records.
const INSTRUMENTS: u32 = 1000;
/// Records of a batch of the measurement of ingest.
const BATCH: u64 = 100;
/// Bytes of the file of bare syncs.
const SYNCED: usize = 64 << 20;

/// What ingest did a second.
pub(super) struct Ingest {
    pub(super) records: f64,
    pub(super) bytes: f64,
    /// From the first time of a record to the last.
    pub(super) times: Range<u64>,
}

fn open(store: &Path, publisher: u16, durability: Durability) -> Outcome<Publisher> {
    Ok(Publisher::open(Options { durability, ..Options::new(store, PublisherId(publisher)) })?)
}

fn trade(instrument: InstrumentId, time: u64) -> Trade {
    let price = Price(100_000_000_000 + (time % 1000).cast_signed() * 10_000_000);
    Trade { instrument, price, size: Size(1_000_000_000), ts_event: Ts(time), ts_recv: Ts(time), ..Trade::default() }
}

/// The time from when a record was due until a reader in this process has it, at `rate` records a second, ns.
pub(super) fn visible(store: &Path, rate: u64, seconds: f64, stop: &AtomicBool) -> Outcome<Histogram<u64>> {
    let mut publisher = open(store, 1, Durability::Os)?;
    let instrument = publisher.instrument(&"BENCH:VISIBLE".parse()?)?;
    let mut follow = Reader::open(store)?.follow(Lsn(1), At::Appended);
    let is_over = AtomicBool::new(false);
    let mut values = times()?;
    std::thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| -> Outcome {
            let mut idle = Idle::new(Wait::Adaptive);
            loop {
                match follow.poll()? {
                    Some(row) => {
                        idle.worked();
                        // The record has when it was due.
                        let due = row.record.get::<Trade>().map_or(0, |trade| trade.ts_event.0);
                        values.saturating_record(HostClock.wall().0.saturating_sub(due));
                    }
                    // With the Release store below.
                    None if is_over.load(Ordering::Acquire) => return Ok(()),
                    None if idle.should_park() => follow.wait(Duration::from_millis(20)),
                    None => {}
                }
            }
        });
        let published = schedule(&mut publisher, instrument, rate, seconds, stop);
        let flushed = publisher.flush(Durability::Fsync, PATIENCE).map(drop).map_err(Failure::from);
        is_over.store(true, Ordering::Release);
        let read = reader.join().unwrap_or_else(|_| Err(Failure::new(INTERNAL, "the reader has panicked")));
        published.and(flushed).and(read)
    })?;
    publisher.close(PATIENCE)?;
    Ok(values)
}

/// Publishes `rate` records a second, each when it is due.
fn schedule(publisher: &mut Publisher, instrument: InstrumentId, rate: u64, seconds: f64, stop: &AtomicBool) -> Outcome {
    let interval = 1_000_000_000 / rate.max(1);
    let began = HostClock.wall().0;
    for n in 0..(rate as f64 * seconds) as u64 {
        let due = began + n * interval;
        while HostClock.wall().0 < due {
            let left = due.saturating_sub(HostClock.wall().0);
            // A sleep is late by some 60 us: the rest is spent on the core.
            if left > 200_000 { std::thread::sleep(Duration::from_nanos(left - 100_000)) } else { std::thread::yield_now() }
        }
        publisher.publish(&trade(instrument, due))?;
        if n % 1024 == 0 {
            check_stop(stop)?;
        }
    }
    Ok(())
}

/// The time of a record from the call to its durability, and, in turns with it, of a write and sync of a page, ns.
pub(super) fn durable(store: &Path, dir: &Path, seconds: f64, stop: &AtomicBool) -> Outcome<(Histogram<u64>, Histogram<u64>)> {
    let mut publisher = open(store, 2, Durability::Fsync)?;
    let instrument = publisher.instrument(&"BENCH:DURABLE".parse()?)?;
    let path = dir.join("synced");
    let file = written(&path, SYNCED)?;
    let (mut durable, mut bare) = (times()?, times()?);
    let (page, began, mut at) = ([7_u8; PAGE], Instant::now(), 0);
    while began.elapsed().as_secs_f64() < seconds {
        check_stop(stop)?;
        let now = Instant::now();
        publisher.publish(&trade(instrument, HostClock.wall().0))?;
        publisher.flush(Durability::Fsync, PATIENCE)?;
        durable.saturating_record(now.elapsed().as_nanos() as u64);
        let now = Instant::now();
        file.write_all_at(&page, at)?;
        file.sync_data()?;
        bare.saturating_record(now.elapsed().as_nanos() as u64);
        at = (at + PAGE as u64) % SYNCED as u64;
    }
    std::fs::remove_file(&path)?;
    publisher.close(PATIENCE)?;
    Ok((durable, bare))
}

/// Records and bytes of log a second, as fast as the store accepts them, until all are durable.
pub(super) fn ingest(store: &Path, records: u64, seconds: f64, stop: &AtomicBool) -> Outcome<Ingest> {
    let mut publisher = open(store, 3, Durability::Os)?;
    let names: Result<Vec<Name>, Error> = (0..INSTRUMENTS).map(|n| format!("BENCH:{n:04}").parse()).collect();
    let instruments = publisher.instruments(&names?)?;
    let control = Reader::open(store)?.control().clone();
    let (time, position, began) = (HostClock.wall().0, control.appended_position().0, Instant::now());
    let mut done = 0;
    for (n, instrument) in (0..records).zip(instruments.iter().cycle()) {
        let record = trade(*instrument, time + n * 1000);
        while let Err(error) = publisher.stage(RecordRef::of(&record)) {
            if !matches!(error, PublishError::Full { .. }) {
                return Err(error.into());
            }
            publisher.send();
            check_stop(stop)?;
            if !control.is_alive(HostClock.monotonic()) {
                return Err(error.into());
            }
        }
        done = n + 1;
        if done % BATCH == 0 {
            publisher.send();
            if done % 10_000 == 0 && (began.elapsed().as_secs_f64() > seconds || check_stop(stop).is_err()) {
                break;
            }
        }
    }
    publisher.flush(Durability::Fsync, PATIENCE)?;
    let took = began.elapsed().as_secs_f64();
    check_stop(stop)?;
    let bytes = control.appended_position().0.saturating_sub(position);
    publisher.close(PATIENCE)?;
    Ok(Ingest { records: done as f64 / took, bytes: bytes as f64 / took, times: time..time + done * 1000 })
}

/// Reads of what was written, from SSTables: a column, all records in order, the newest of an instrument at any time.
pub(super) fn reads(store: &Path, written: &Ingest, seconds: f64, memory: f64, stop: &AtomicBool) -> Outcome<Vec<Measured>> {
    flush::all(store)?;
    let mut reader = Reader::open(store)?;
    let snapshot = reader.snapshot(At::Committed)?;
    // Once without a clock: what is not in the page cache would be measured as the disk.
    column(&snapshot)?;
    let began = Instant::now();
    let (rows, sum) = column(&snapshot)?;
    std::hint::black_box(sum);
    let bytes = rows as f64 * 8.0 / began.elapsed().as_secs_f64();
    check_stop(stop)?;
    let mut follow = Reader::open(store)?.follow(Lsn(1), At::Committed);
    let (began, mut read) = (Instant::now(), 0_u64);
    while began.elapsed().as_secs_f64() < seconds || read == 0 {
        let mut has_more = true;
        for _ in 0..10_000 {
            if follow.poll()?.is_none() {
                has_more = false;
                break;
            }
            read += 1;
        }
        check_stop(stop)?;
        if !has_more {
            break;
        }
    }
    let ordered = read as f64 / began.elapsed().as_secs_f64();
    let as_of = as_of(store, &written.times, seconds, stop)?;
    Ok(vec![
        Measured::speed("sum of a column of all trades", bytes, "B/s", Some(("sum of an array", memory))),
        Measured::speed("all records in LSN order", ordered, "records/s", None),
        Measured::latency("newest trade of an instrument at any time", &as_of, None),
    ])
}

/// The rows of the column of prices of all trades, and their sum.
fn column(snapshot: &tapestore::reader::Snapshot) -> Outcome<(u64, i128)> {
    let Some(mut columns) = snapshot.columns(Trade::KIND, None, TimeRange::ALL) else { return Ok((0, 0)) };
    let (mut rows, mut sum) = (0, 0_i128);
    while let Some(batch) = columns.next()? {
        let prices = batch.values::<i64>("price").unwrap_or(&[]);
        rows += prices.len() as u64;
        sum += i128::from(prices.iter().fold(0_i64, |sum, price| sum.wrapping_add(*price)));
    }
    Ok((rows, sum))
}

/// The time of the newest trade of a random instrument at a random time, ns.
fn as_of(store: &Path, all: &Range<u64>, seconds: f64, stop: &AtomicBool) -> Outcome<Histogram<u64>> {
    let mut reader = Reader::open(store)?;
    let first = reader.instrument(&"BENCH:0000".parse()?)?;
    let mut snapshot = reader.snapshot(At::Committed)?;
    let (mut values, began) = (times()?, Instant::now());
    while began.elapsed().as_secs_f64() < seconds {
        for _ in 0..100 {
            let instrument = InstrumentId(first.0 + fastrand::u32(0..INSTRUMENTS));
            let series = Series { instrument, kind: Trade::KIND };
            let time = Ts(fastrand::u64(all.clone()));
            let asked = Instant::now();
            std::hint::black_box(snapshot.as_of(series, time)?.is_some());
            values.saturating_record(asked.elapsed().as_nanos() as u64);
        }
        check_stop(stop)?;
    }
    Ok(values)
}
