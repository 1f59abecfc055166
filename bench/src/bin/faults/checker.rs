//! Owns: the checker of the campaigns on several hosts: the history of sends and acknowledgements, with times, and its
//! comparison with the final records of all hosts.
//!
//! What must hold, in each run: every record is on every host, once, in the order of its publisher; a batch that was sent
//! after an acknowledgement, of any publisher, comes later in the log (by that an append-only log is linearizable); frames
//! of one index are equal on all hosts; a truncated frame that differs from the kept one of its index has another term.
//!
//! Source: the note on replication, after Jepsen's checks; O(n log n).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tapestore::lsn::{Durability, InstrumentId, Lsn, PubSeq};
use tapestore::publisher::Publisher;
use tapestore::reader::{At, Reader};
use tapestore::record::{RecordRef, Trade, split};
use tapestore::time::{Clock, HostClock};
use tapestore::wal::{Body, FrameType, Header};

/// Records of a batch.
const BATCH: u64 = 16;
/// Bits of `trade_id` for the record's number; the publisher's is above.
const WITHIN: u32 = 40;

/// A batch as its publisher sent it; times are of the monotonic clock, ns.
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

/// Publishes as publisher `source` until `over`, then waits until all records are acknowledged.
///
/// # Errors
/// The publisher's error, or lost records.
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
    publisher.flush(Durability::Quorum, Duration::from_secs(60)).map_err(|e| e.to_string())?;
    let now = HostClock.monotonic();
    batches.iter_mut().skip(acked).for_each(|b| b.acked_at = now);
    if publisher.take_lost().is_empty() { Ok(batches) } else { Err("a publisher reported lost records".to_owned()) }
}

/// Number of sent records.
pub(crate) fn total(sources: &[Vec<Batch>]) -> u64 {
    sources.iter().filter_map(|batches| batches.last()).map(|b| b.last).sum()
}

/// The records of the stopped host with the store `store`, in order.
fn rows(store: &Path) -> Result<Vec<Trade>, String> {
    let mut trades = Vec::new();
    let mut take = |lsn: Lsn, record: RecordRef<'_>| {
        if lsn.0 != trades.len() as u64 + 1 {
            return Err(format!("{}: record {lsn} instead of {}", store.display(), trades.len() + 1));
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

/// Term and header checksum of a frame; the checksum covers all frames before it.
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

/// Divergent frames that a host truncated and kept aside.
fn divergent_frames(store: &Path) -> Result<Vec<(u64, Made)>, String> {
    const HEAD: usize = 64;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(store.join(tapestore::wal::truncate::DIVERGENT)).into_iter().flatten().flatten() {
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

/// Checks that the stopped hosts with the stores `stores` hold the records of `sources`; returns a summary.
///
/// # Errors
/// The first violation.
pub(crate) fn check(stores: &[PathBuf], sources: &[Vec<Batch>]) -> Result<String, String> {
    let (Some(first), Some(rest)) = (stores.first(), stores.get(1..)) else { return Err("no hosts".to_owned()) };
    let stored = rows(first)?;
    for store in rest {
        let theirs = rows(store)?;
        if let Some(at) = (0..stored.len().max(theirs.len())).find(|at| stored.get(*at) != theirs.get(*at)) {
            return Err(format!("record {} differs between {} and {}", at + 1, first.display(), store.display()));
        }
    }
    let places = in_order(&stored, sources)?;
    let ordered = in_real_time(&places, sources)?;
    let logs = stores.iter().map(|s| frames(s)).collect::<Result<Vec<_>, _>>()?;
    let mut all = Frames::new();
    for (store, log) in stores.iter().zip(&logs) {
        for (index, frame) in log {
            if all.entry(*index).or_insert(*frame) != frame {
                return Err(format!("{}: frame {index} differs from another host's", store.display()));
            }
        }
    }
    let mut aside = 0;
    for store in stores {
        for (index, frame) in divergent_frames(store)? {
            aside += 1;
            if all.get(&index).is_some_and(|kept| kept.0 == frame.0 && kept.1 != frame.1) {
                return Err(format!("{}: two hosts created a frame {index} in term {}", store.display(), frame.0));
            }
        }
    }
    Ok(format!(
        "{} records of {} publishers, each once and in order on every host; {ordered} batches after all records acknowledged before their send; {} frames equal on all hosts, {aside} truncated and kept aside",
        stored.len(),
        sources.len(),
        all.len()
    ))
}

/// Checks that each record is stored once, in order, as sent; returns the LSNs by publisher.
fn in_order(stored: &[Trade], sources: &[Vec<Batch>]) -> Result<Vec<Vec<u64>>, String> {
    let mut places: Vec<Vec<u64>> = sources.iter().map(|_| Vec::new()).collect();
    for (lsn, found) in (1..).zip(stored) {
        let source = found.trade_id >> WITHIN;
        let of = places.get_mut(source as usize).ok_or_else(|| format!("record {lsn} is of publisher {source}"))?;
        if *found != trade(source, of.len() as u64 + 1) {
            return Err(format!("record {lsn} is not the next one of publisher {source}, {}", of.len() + 1));
        }
        of.push(lsn);
    }
    for (source, (places, batches)) in places.iter().zip(sources).enumerate() {
        let sent = batches.last().map_or(0, |b| b.last);
        if places.len() as u64 != sent {
            return Err(format!("publisher {source}: {} records are stored, {sent} were acknowledged", places.len()));
        }
    }
    Ok(places)
}

/// Checks that each batch comes after all records acknowledged before its send; returns the number of batches.
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
    fn lost_duplicated_reordered_and_early_records_are_detected() {
        let sources = vec![vec![batch(1, 2, 10, 20), batch(3, 3, 40, 50)], vec![batch(1, 1, 30, 35)]];
        let good = vec![trade(0, 1), trade(0, 2), trade(1, 1), trade(0, 3)];
        let check = |stored: &[Trade]| in_order(stored, &sources).and_then(|places| in_real_time(&places, &sources));
        assert_eq!(check(&good), Ok(3));
        let mut lost = good.clone();
        lost.pop();
        let mut duplicated = good.clone();
        duplicated.push(trade(0, 3));
        let swapped = vec![trade(0, 2), trade(0, 1), trade(1, 1), trade(0, 3)];
        for bad in [&lost, &duplicated, &swapped] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        // Sent at 30, after the acknowledgement of the first two.
        let early = check(&[trade(1, 1), trade(0, 1), trade(0, 2), trade(0, 3)]).unwrap_err();
        assert!(early.contains("was sent after record 3 was acknowledged"), "{early}");
    }
}
