//! Owns: the checker of the campaigns on several hosts: what publishers sent and were told, and when; whether what the hosts
//! hold in the end agrees with all of it.
//!
//! What must hold, of each run: every record is on every host, once, in the order of its publisher; what was sent after
//! something else had been acknowledged, to anybody, stands behind it (an append-only log is linearizable by that);
//! frames of one index are the same on all hosts; what was cut off a host's log and kept aside was not made in a term in which
//! another host made frames too.
//!
//! Source: the note on replication, after Jepsen's checks; O(n log n).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tapestore::lsn::{InstrumentId, Level, Lsn, PubSeq};
use tapestore::publisher::Publisher;
use tapestore::reader::{At, Reader};
use tapestore::record::{RecordRef, Trade, split};
use tapestore::time::{Clock, HostClock};
use tapestore::wal::{Body, FrameType, Header};

/// Records that a publisher sends at once.
const BATCH: u64 = 16;
/// Bits of a record's number within its publisher's.
const WITHIN: u32 = 40;

/// Records that were sent at once, as their publisher saw it; times are of the monotonic clock, ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    first: u64,
    last: u64,
    /// Before the first was sent.
    sent_at: u64,
    /// After the last was acknowledged at `quorum`.
    acked_at: u64,
}

/// The record `id` of publisher `source`.
fn trade(source: u64, id: u64) -> Trade {
    Trade { trade_id: source << WITHIN | id, instrument: InstrumentId(1), ..Trade::default() }
}

/// Publishes as publisher `source` until it is over, and waits until everything is acknowledged.
///
/// # Errors
/// What the publisher says.
pub(crate) fn publish(publisher: &mut Publisher, source: u64, over: &AtomicBool) -> Result<Vec<Batch>, String> {
    let (mut batches, mut acked, mut id) = (Vec::<Batch>::new(), 0, 0);
    while !over.load(Ordering::Relaxed) {
        let sent_at = HostClock.monotonic();
        let first = id + 1;
        while id < first + BATCH - 1 {
            let trade = trade(source, id + 1);
            if publisher.publish_ref(RecordRef::of(&trade)).is_ok() {
                id += 1;
            }
        }
        batches.push(Batch { first, last: id, sent_at, acked_at: u64::MAX });
        let committed = publisher.progress().committed;
        let now = HostClock.monotonic();
        while let Some(batch) = batches.get_mut(acked).filter(|b| PubSeq(b.last) <= committed) {
            batch.acked_at = now;
            acked += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    publisher.flush(Level::Quorum, Duration::from_secs(60)).map_err(|e| e.to_string())?;
    let now = HostClock.monotonic();
    batches.iter_mut().skip(acked).for_each(|b| b.acked_at = now);
    if publisher.take_lost().is_empty() { Ok(batches) } else { Err("a publisher was told of lost records".to_owned()) }
}

/// Records that were sent.
pub(crate) fn total(sources: &[Vec<Batch>]) -> u64 {
    sources.iter().filter_map(|batches| batches.last()).map(|b| b.last).sum()
}

/// What the stopped host with the store `store` holds, in order.
fn rows(store: &Path) -> Result<Vec<Trade>, String> {
    let mut trades = Vec::new();
    let mut take = |lsn: Lsn, record: RecordRef<'_>| {
        if lsn.0 != trades.len() as u64 + 1 {
            return Err(format!("{}: record {lsn} comes where {} is due", store.display(), trades.len() + 1));
        }
        trades.push(*record.get::<Trade>().ok_or_else(|| format!("{}: record {lsn} is no trade", store.display()))?);
        Ok(())
    };
    let mut follow = Reader::open(store).map_err(|e| e.to_string())?.follow(Lsn(1), At::Flushed);
    loop {
        match follow.poll() {
            Ok(Some(row)) => take(row.lsn, row.record)?,
            Ok(None) => break,
            Err(e) if e.is_down() => break,
            Err(e) => return Err(e.to_string()),
        }
    }
    let mut wrong = None;
    let read = tape_services::inspect::read_log(store, |frame| {
        if let Body::Data(data) = &frame.body {
            for (lsn, record) in (frame.header.first_lsn.0..).map(Lsn).zip(split(data.records)) {
                wrong = wrong.take().or(take(lsn, record?).err());
            }
        }
        Ok(())
    });
    read.map_err(|e| e.to_string())?;
    wrong.map_or(Ok(trades), Err)
}

/// Term and checksum of a frame, which covers all before it.
type Made = (u32, u32);
/// The frames in the log of a stopped host, by their index.
type Frames = BTreeMap<u64, Made>;

fn frames(store: &Path) -> Result<Frames, String> {
    let mut frames = BTreeMap::new();
    let read = tape_services::inspect::read_log(store, |frame| {
        let header = &frame.header;
        if header.kind() != FrameType::Pad {
            frames.insert(header.index.0, (header.term.0, header.header_crc));
        }
        Ok(())
    });
    read.map(|_| frames).map_err(|e| e.to_string())
}

/// Frames that were cut off the log of a host and kept aside.
fn cut_off(store: &Path) -> Result<Vec<(u64, Made)>, String> {
    const HEAD: usize = 64;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(store.join(tapestore::wal::cut::DIVERGENT)).into_iter().flatten().flatten() {
        let bytes = std::fs::read(entry.path()).map_err(|e| e.to_string())?;
        let mut rest = bytes.get(HEAD..).unwrap_or(&[]);
        while !rest.is_empty() {
            let header = Header::parse(rest).map_err(|e| format!("{}: {e:?}", entry.path().display()))?;
            found.push((header.index.0, (header.term.0, header.header_crc)));
            rest = rest.get(header.total_len() as usize..).unwrap_or(&[]);
        }
    }
    Ok(found)
}

/// Whether the stopped hosts with the stores `stores` hold what `sources` sent; what was seen.
///
/// # Errors
/// What is wrong.
pub(crate) fn check(stores: &[PathBuf], sources: &[Vec<Batch>]) -> Result<String, String> {
    let (Some(first), Some(rest)) = (stores.first(), stores.get(1..)) else { return Err("there is no host".to_owned()) };
    let stored = rows(first)?;
    for store in rest {
        let theirs = rows(store)?;
        if let Some(at) = (0..stored.len().max(theirs.len())).find(|at| stored.get(*at) != theirs.get(*at)) {
            return Err(format!("record {} of {} and of {} differ", at + 1, first.display(), store.display()));
        }
    }
    let places = in_order(&stored, sources)?;
    let ordered = in_real_time(&places, sources)?;
    let logs = stores.iter().map(|s| frames(s)).collect::<Result<Vec<_>, _>>()?;
    let mut all = Frames::new();
    for (store, log) in stores.iter().zip(&logs) {
        for (index, frame) in log {
            if all.entry(*index).or_insert(*frame) != frame {
                return Err(format!("{}: frame {index} is not what another host has", store.display()));
            }
        }
    }
    let mut aside = 0;
    for store in stores {
        for (index, frame) in cut_off(store)? {
            aside += 1;
            if all.get(&index).is_some_and(|kept| kept.0 == frame.0 && kept.1 != frame.1) {
                return Err(format!("{}: two hosts have made a frame {index} in term {}", store.display(), frame.0));
            }
        }
    }
    Ok(format!(
        "{} records of {} publishers, each once and in order on every host; {ordered} batches stand behind all that had been acknowledged before they were sent; {} frames the same everywhere, {aside} cut off and kept aside",
        stored.len(),
        sources.len(),
        all.len()
    ))
}

/// Where each record of each publisher stands; each is there once, in order, as it was sent.
fn in_order(stored: &[Trade], sources: &[Vec<Batch>]) -> Result<Vec<Vec<u64>>, String> {
    let mut places: Vec<Vec<u64>> = sources.iter().map(|_| Vec::new()).collect();
    for (lsn, found) in (1..).zip(stored) {
        let source = found.trade_id >> WITHIN;
        let of = places.get_mut(source as usize).ok_or_else(|| format!("record {lsn} is of publisher {source}"))?;
        if *found != trade(source, of.len() as u64 + 1) {
            return Err(format!("record {lsn} is not the one of publisher {source} that is due, {}", of.len() + 1));
        }
        of.push(lsn);
    }
    for (source, (places, batches)) in places.iter().zip(sources).enumerate() {
        let sent = batches.last().map_or(0, |b| b.last);
        if places.len() as u64 != sent {
            return Err(format!("of publisher {source} {} records are stored, and {sent} were acknowledged", places.len()));
        }
    }
    Ok(places)
}

/// Whether whatever was sent after something was acknowledged stands behind it; how many batches were looked at.
fn in_real_time(places: &[Vec<u64>], sources: &[Vec<Batch>]) -> Result<usize, String> {
    let place = |source: usize, id: u64| places.get(source).and_then(|p| p.get(id as usize - 1)).copied().unwrap_or(0);
    let mut acked = Vec::new();
    let mut sent = Vec::new();
    for (source, batches) in sources.iter().enumerate() {
        acked.extend(batches.iter().map(|b| (b.acked_at, place(source, b.last))));
        sent.extend(batches.iter().map(|b| (b.sent_at, place(source, b.first), source, b.first)));
    }
    acked.sort_unstable();
    sent.sort_unstable();
    let (mut acked, mut highest) = (acked.into_iter().peekable(), 0);
    for &(at, lsn, source, id) in &sent {
        while let Some((_, before)) = acked.next_if(|a| a.0 < at) {
            highest = highest.max(before);
        }
        if lsn <= highest {
            return Err(format!(
                "record {id} of publisher {source} was sent after record {highest} was acknowledged, and is record {lsn}"
            ));
        }
    }
    Ok(sent.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, last: u64, sent_at: u64, acked_at: u64) -> Batch {
        Batch { first, last, sent_at, acked_at }
    }

    #[test]
    fn what_is_lost_doubled_swapped_or_stored_before_what_was_acknowledged_is_noticed() {
        let sources = vec![vec![batch(1, 2, 10, 20), batch(3, 3, 40, 50)], vec![batch(1, 1, 30, 35)]];
        let good = vec![trade(0, 1), trade(0, 2), trade(1, 1), trade(0, 3)];
        let check = |stored: &[Trade]| in_order(stored, &sources).and_then(|places| in_real_time(&places, &sources));
        assert_eq!(check(&good), Ok(3));
        let mut lost = good.clone();
        lost.pop();
        let mut doubled = good.clone();
        doubled.push(trade(0, 3));
        let swapped = vec![trade(0, 2), trade(0, 1), trade(1, 1), trade(0, 3)];
        for bad in [&lost, &doubled, &swapped] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        // Sent at 30, when the first two had been acknowledged.
        let early = check(&[trade(1, 1), trade(0, 1), trade(0, 2), trade(0, 3)]).unwrap_err();
        assert!(early.contains("was sent after record 3 was acknowledged"), "{early}");
    }
}
