//! Owns: the records that the processes of a campaign publish, derived from publisher and serial number, and the check of a
//! store that holds them.
//!
//! What must hold: every bit of a record is derived from its identity, so that a wrong one is detected; the rules are the
//! store's guarantees: LSNs are dense, each record is stored once, the records of a publisher are in order.

use std::collections::BTreeMap;

use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Epoch, Lsn};
use tapestore::record::{Arrival, Gap, Kind, RecordRef, Row, SCHEMAS, Schema};

/// Number of instruments.
pub(crate) const INSTRUMENTS: u64 = 97;

/// The identity of a record: 16 bits publisher, 16 bits process, 32 bits number within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity(pub(crate) u64);

impl Identity {
    /// Record `number` of the process `process` of `publisher`.
    pub(crate) fn new(publisher: u16, process: u16, number: u32) -> Identity {
        Identity(u64::from(publisher) << 48 | u64::from(process) << 32 | u64::from(number))
    }

    pub(crate) fn publisher(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Serial number, which rises over all processes of a publisher.
    pub(crate) fn serial(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }
}

/// The published kinds: all with a receive time; their event time holds the identity.
fn kinds() -> impl Iterator<Item = &'static Schema> {
    SCHEMAS.iter().filter(|s| s.index_word > 1 && s.kind != <Gap as tapestore::record::Record>::KIND)
}

/// The record of `identity`, with times relative to `base`.
pub(crate) fn words(identity: Identity, base: u64) -> Vec<u64> {
    let mut rng = SimRng::new(identity.0 ^ base.rotate_left(17));
    let count = kinds().count() as u64;
    // Mostly the first four kinds, as in a feed.
    let pick = match rng.below(8) {
        0..6 => rng.below(4.min(count)),
        _ => rng.below(count),
    };
    let Some(schema) = kinds().nth(pick as usize) else { panic!("there are {count} kinds") };
    let mut words: Vec<u64> = (0..schema.words).map(|_| rng.next_u64()).collect();
    let instrument = rng.below(INSTRUMENTS) + 1;
    let ahead = (identity.0 & 0xffff_ffff) * 50_000;
    let time = match rng.below(256) {
        0 => u64::MAX,
        1 => base - 3_600_000_000_000 * (1 + rng.below(5)) + ahead % 1_000_000_000,
        _ => base - 1_000_000_000 + ahead % 3_600_000_000_000 + rng.below(100_000),
    };
    let fixed =
        [(0, u64::from(schema.kind.0) | rng.below(1 << 16) << 16 | instrument << 32), (1, identity.0), (schema.index_word, time)];
    for (at, word) in fixed {
        if let Some(to) = words.get_mut(at) {
            *to = word;
        }
    }
    if rng.below(64) > 0 {
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        for column in schema.reserved() {
            bytes.iter_mut().skip(column.offset).take(column.of.size()).for_each(|b| *b = 0);
        }
        words = bytes.chunks_exact(8).map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))).collect();
    }
    words
}

/// Checks that `record` is as published; returns its identity, or `None` for a gap.
pub(crate) fn check(record: RecordRef<'_>, base: u64) -> Result<Option<Identity>, String> {
    if record.get::<Gap>().is_some() {
        return Ok(None);
    }
    let found = record.words();
    let identity = Identity(found.get(1).copied().unwrap_or(0));
    let expected = words(identity, base);
    if expected != found {
        let word = expected.iter().zip(found).position(|(e, f)| e != f);
        return Err(format!(
            "{identity:x?} (a {}) differs from the published record from word {word:?} on",
            record.schema().name
        ));
    }
    Ok(Some(identity))
}

/// The series number `number` of those that hold records.
pub(crate) fn series(number: u64) -> tapestore::record::Series {
    let count = kinds().count() as u64;
    let kind = kinds().nth((number / INSTRUMENTS % count) as usize).map_or(Kind(1), |s| s.kind);
    tapestore::record::Series { instrument: tapestore::lsn::InstrumentId((number % INSTRUMENTS) as u32 + 1), kind }
}

#[derive(Clone, Copy, Debug)]
struct Last {
    epoch: Epoch,
    serial: u64,
    /// A gap was stored: records may be missing before the next one.
    gap: bool,
}

/// The records of a store, checked one by one.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    base: u64,
    publishers: BTreeMap<u16, Last>,
    epochs: BTreeMap<(u16, u32), u64>,
    /// Identities by LSN, from 1 on; 0 for a gap.
    identities: Vec<u64>,
    /// Lost records that gaps report.
    pub(crate) missing: u64,
    pub(crate) gaps: u64,
}

impl Tracker {
    /// An empty tracker.
    pub(crate) fn new(base: u64) -> Tracker {
        Tracker { base, ..Tracker::default() }
    }

    /// LSN of the last record.
    pub(crate) fn last(&self) -> Lsn {
        Lsn(self.identities.len() as u64)
    }

    /// The last pub_seq of `publisher` in `epoch`.
    pub(crate) fn reached(&self, publisher: u16, epoch: u32) -> u64 {
        self.epochs.get(&(publisher, epoch)).copied().unwrap_or(0)
    }

    /// Number of epochs with records.
    pub(crate) fn epochs(&self) -> usize {
        self.epochs.len()
    }

    /// Checks and adds the next record, `row`.
    pub(crate) fn see(&mut self, row: &Row<'_>, arrival: &Arrival) -> Result<(), String> {
        let lsn = self.last().next();
        if row.lsn != lsn || arrival.lsn != lsn {
            return Err(format!("record {} (arrival {}) instead of {lsn}", row.lsn, arrival.lsn));
        }
        let identity = check(row.record, self.base).map_err(|e| format!("record {lsn}: {e}"))?;
        let publisher = arrival.publisher.0;
        let epoch_last = self.epochs.entry((publisher, arrival.epoch.0)).or_insert(0);
        if arrival.pub_seq.0 != *epoch_last + 1 {
            return Err(format!(
                "record {lsn} is number {} of publisher {publisher} after {epoch_last}: {arrival:?}",
                arrival.pub_seq
            ));
        }
        *epoch_last = arrival.pub_seq.0;
        let before = self.publishers.get(&publisher).copied();
        if let Some(before) = before
            && arrival.epoch < before.epoch
        {
            return Err(format!("record {lsn}: {arrival:?} after epoch {}", before.epoch));
        }
        let Some(identity) = identity else {
            self.gaps += 1;
            let serial = before.map_or(0, |b| b.serial);
            self.publishers.insert(publisher, Last { epoch: arrival.epoch, serial, gap: true });
            self.identities.push(0);
            return Ok(());
        };
        if identity.publisher() != publisher {
            return Err(format!("record {lsn} of publisher {} arrived as one of {publisher}", identity.publisher()));
        }
        let serial = identity.serial();
        if let Some(before) = before {
            let same_process = before.serial >> 32 == serial >> 32;
            if serial <= before.serial {
                return Err(format!("record {lsn}: serial {serial:x} after {:x}: {arrival:?}", before.serial));
            }
            if same_process && serial != before.serial + 1 {
                if !before.gap {
                    return Err(format!("record {lsn}: serial {serial:x} after {:x} without a gap: {arrival:?}", before.serial));
                }
                self.missing += serial - before.serial - 1;
            }
            // A process numbers from 1 on; unacknowledged records of a killed one may be missing only at its end.
            if !same_process && serial & 0xffff_ffff != 1 {
                return Err(format!("record {lsn}: a process begins with serial {serial:x}: {arrival:?}"));
            }
        }
        self.publishers.insert(publisher, Last { epoch: arrival.epoch, serial, gap: false });
        self.identities.push(identity.0);
        Ok(())
    }

    /// Checks `row` against the earlier record of its LSN.
    pub(crate) fn again(&self, row: &Row<'_>) -> Result<(), String> {
        let identity = check(row.record, self.base).map_err(|e| format!("record {}: {e}", row.lsn))?.map_or(0, |i| i.0);
        match self.identities.get(row.lsn.0.wrapping_sub(1) as usize) {
            Some(&before) if before == identity => Ok(()),
            before => Err(format!("record {} was {before:x?} and is {identity:x}", row.lsn)),
        }
    }
}
