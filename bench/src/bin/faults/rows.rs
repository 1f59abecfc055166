//! Owns: the records that the processes of a campaign publish, which follow from who publishes them and their
//! serial number, and what must be so of a store that holds them.
//!
//! What must hold: every bit of a record follows from its identity, so that one that is wrong is seen; the rules
//! are those of the store's promises: LSNs are dense, each record is there once, a publisher's are in order.

use std::collections::BTreeMap;

use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Epoch, Lsn};
use tapestore::record::{Arrival, Gap, Kind, RecordRef, Row, SCHEMAS, Schema};

/// Instruments of the records.
pub(crate) const INSTRUMENTS: u64 = 97;

/// Who publishes, and which of its records: 16 bits of publisher, 16 of its process, 32 of its number there.
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

    /// Its number, by which the records of a publisher rise over all its processes.
    pub(crate) fn serial(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }
}

/// The kinds that are published: all that have a receive time; their event time holds the identity.
fn kinds() -> impl Iterator<Item = &'static Schema> {
    SCHEMAS.iter().filter(|s| s.index_word > 1 && s.kind != <Gap as tapestore::record::Record>::KIND)
}

/// The record of `identity`; its times lie behind `base`.
pub(crate) fn words(identity: Identity, base: u64) -> Vec<u64> {
    let mut rng = SimRng::new(identity.0 ^ base.rotate_left(17));
    let count = kinds().count() as u64;
    // Mostly the kinds of a feed.
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

/// Whether `record` is what a publisher publishes; its identity, or `None` for the record of a gap.
pub(crate) fn check(record: RecordRef<'_>, base: u64) -> Result<Option<Identity>, String> {
    if record.get::<Gap>().is_some() {
        return Ok(None);
    }
    let found = record.words();
    let identity = Identity(found.get(1).copied().unwrap_or(0));
    let expected = words(identity, base);
    if expected != found {
        let word = expected.iter().zip(found).position(|(e, f)| e != f);
        return Err(format!("{identity:x?} (a {}) is not as it was published, from word {word:?} on", record.schema().name));
    }
    Ok(Some(identity))
}

/// Series that hold records, a number for each.
pub(crate) fn series(number: u64) -> tapestore::record::Series {
    let count = kinds().count() as u64;
    let kind = kinds().nth((number / INSTRUMENTS % count) as usize).map_or(Kind(1), |s| s.kind);
    tapestore::record::Series { instrument: tapestore::lsn::InstrumentId((number % INSTRUMENTS) as u32 + 1), kind }
}

#[derive(Clone, Copy, Debug)]
struct Last {
    epoch: Epoch,
    serial: u64,
    /// Records may be missing before the next one: a gap was stored.
    gap: bool,
}

/// What a store has been seen to hold, record by record.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    base: u64,
    publishers: BTreeMap<u16, Last>,
    epochs: BTreeMap<(u16, u32), u64>,
    /// By LSN, from 1 on; 0 for a gap.
    identities: Vec<u64>,
    /// Records whose loss a gap reports.
    pub(crate) missing: u64,
    pub(crate) gaps: u64,
}

impl Tracker {
    /// Of nothing yet.
    pub(crate) fn new(base: u64) -> Tracker {
        Tracker { base, ..Tracker::default() }
    }

    /// The last record seen.
    pub(crate) fn last(&self) -> Lsn {
        Lsn(self.identities.len() as u64)
    }

    /// How far `publisher` came in `epoch`.
    pub(crate) fn reached(&self, publisher: u16, epoch: u32) -> u64 {
        self.epochs.get(&(publisher, epoch)).copied().unwrap_or(0)
    }

    /// Epochs that have records.
    pub(crate) fn epochs(&self) -> usize {
        self.epochs.len()
    }

    /// The next record, which is `row`.
    pub(crate) fn see(&mut self, row: &Row<'_>, arrival: &Arrival) -> Result<(), String> {
        let lsn = self.last().next();
        if row.lsn != lsn || arrival.lsn != lsn {
            return Err(format!("record {} (arrived as {}) stands where {lsn} is due", row.lsn, arrival.lsn));
        }
        let identity = check(row.record, self.base).map_err(|e| format!("record {lsn}: {e}"))?;
        let publisher = arrival.publisher.0;
        let epoch_last = self.epochs.entry((publisher, arrival.epoch.0)).or_insert(0);
        if arrival.pub_seq.0 != *epoch_last + 1 {
            return Err(format!("record {lsn} is {publisher}'s number {} after {epoch_last}: {arrival:?}", arrival.pub_seq));
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
            return Err(format!("record {lsn} of {} is said to be of {publisher}", identity.publisher()));
        }
        let serial = identity.serial();
        if let Some(before) = before {
            let same_process = before.serial >> 32 == serial >> 32;
            if serial <= before.serial {
                return Err(format!("record {lsn}: serial {serial:x} after {:x}: {arrival:?}", before.serial));
            }
            if same_process && serial != before.serial + 1 {
                if !before.gap {
                    return Err(format!("record {lsn}: serial {serial:x} after {:x}, and no gap: {arrival:?}", before.serial));
                }
                self.missing += serial - before.serial - 1;
            }
            // A process numbers from 1 on; what a killed one had not been told of may be missing at its end alone.
            if !same_process && serial & 0xffff_ffff != 1 {
                return Err(format!("record {lsn}: a process begins with serial {serial:x}: {arrival:?}"));
            }
        }
        self.publishers.insert(publisher, Last { epoch: arrival.epoch, serial, gap: false });
        self.identities.push(identity.0);
        Ok(())
    }

    /// A record that was seen before, which is `row` now.
    pub(crate) fn again(&self, row: &Row<'_>) -> Result<(), String> {
        let identity = check(row.record, self.base).map_err(|e| format!("record {}: {e}", row.lsn))?.map_or(0, |i| i.0);
        match self.identities.get(row.lsn.0.wrapping_sub(1) as usize) {
            Some(&known) if known == identity => Ok(()),
            known => Err(format!("record {} was {known:x?} and is {identity:x}", row.lsn)),
        }
    }
}
