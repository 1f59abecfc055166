//! Owns: `store.meta`, the identity, term, timeline and durable mark of a store, in two checksummed slots.
//!
//! ```text
//! 0     slot A 512 B   magic u64 · version u32 · crc u32 · seq u64 · store id u128 · segment size u64
//!                      created u64 · term u32 · clean u32 · timeline u64
//!                      durable position u64 · index u64 · lsn u64
//!                      reserved u64 · reserved u32 · in a cluster u32 · reserved 400 B
//! 4096  slot B
//! ```
//!
//! Version 1 has no `in a cluster`: the next start of such a store sets it from `raft.meta`.
//!
//! What must hold: of the valid slots the one with the higher `seq` counts, and the other one is overwritten next, so a torn
//! write leaves the older content. A term is durable here before a frame carries it.

use std::path::Path;

use super::format::{DurableMark, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN};
use crate::disk::Disk;
use crate::disk::two_slots::{self, Content, Parsed, TwoSlots};
use crate::error::Result;
use crate::lsn::{FrameIndex, Lsn, Position, Term, Timeline};
use crate::time::Ts;

/// Name of the file in the store directory.
pub const NAME: &str = "store.meta";

const MAGIC: u64 = u64::from_le_bytes(*b"TAPEMETA");
const VERSION: u32 = 2;
const SLOT_LEN: usize = 512;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Slot {
    magic: u64,
    version: u32,
    crc: u32,
    seq: u64,
    store_id: [u64; 2],
    segment_size: u64,
    created: u64,
    term: u32,
    clean: u32,
    timeline: u64,
    durable_position: u64,
    durable_index: u64,
    durable_lsn: u64,
    unused: u64,
    zero: u32,
    in_cluster: u32,
    reserved: [u64; 50],
}

const _: () = assert!(size_of::<Slot>() == SLOT_LEN && std::mem::offset_of!(Slot, in_cluster) == 108);

/// Content of `store.meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Id of the store, random.
    pub store_id: u128,
    /// Bytes of a log segment; the same on every host of the store.
    pub segment_size: u64,
    /// Creation time of the store.
    pub created: Ts,
    /// Newest term of this host.
    pub term: Term,
    /// Whether storage stopped cleanly: `durable` is then the end of the log.
    pub clean: bool,
    /// Newest timeline.
    pub timeline: Timeline,
    /// Durable mark of the newest start or clean stop.
    pub durable: DurableMark,
    /// Whether the store belongs, or the backup that it was restored from belonged, to a host of a cluster: without `raft.meta`
    /// it is not served.
    pub in_cluster: bool,
}

/// Open `store.meta`.
pub struct MetaFile(TwoSlots<Meta>);

impl Content for Meta {
    const NAME: &'static str = NAME;
    const MAGIC: u64 = MAGIC;
    const CRC: &'static str = "store.meta CRC";
    const VERSION: u32 = VERSION;
    const PURPOSE: &'static str = "it holds the store's identity";

    fn encode(&self, seq: u64) -> Vec<u8> {
        encode(self, seq).to_vec()
    }

    fn parse(bytes: &[u8]) -> Parsed<Meta> {
        parse(bytes)
    }
}

fn encode(meta: &Meta, seq: u64) -> [u8; SLOT_LEN] {
    let mut slot: Slot = bytemuck::Zeroable::zeroed();
    slot.magic = MAGIC;
    slot.version = VERSION;
    slot.seq = seq;
    slot.store_id = [meta.store_id as u64, (meta.store_id >> 64) as u64];
    slot.segment_size = meta.segment_size;
    slot.created = meta.created.0;
    slot.term = meta.term.0;
    slot.clean = u32::from(meta.clean);
    slot.timeline = meta.timeline.0;
    slot.durable_position = meta.durable.position.0;
    slot.durable_index = meta.durable.index.0;
    slot.durable_lsn = meta.durable.lsn.0;
    slot.in_cluster = u32::from(meta.in_cluster);
    slot.crc = crc32c::crc32c(bytemuck::bytes_of(&slot));
    bytemuck::cast(slot)
}

fn parse(bytes: &[u8]) -> Parsed<Meta> {
    let slot = match two_slots::checked::<Slot, Meta>(bytes) {
        Ok(slot) => slot,
        Err(parsed) => return parsed,
    };
    if !(SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&slot.segment_size) {
        return Parsed::Damaged { what: "segment size", expected: SEGMENT_SIZE_MIN, found: slot.segment_size };
    }
    let [low, high] = slot.store_id;
    let durable = DurableMark {
        seq: slot.seq,
        position: Position(slot.durable_position),
        index: FrameIndex(slot.durable_index),
        lsn: Lsn(slot.durable_lsn),
    };
    let meta = Meta {
        store_id: u128::from(low) | u128::from(high) << 64,
        segment_size: slot.segment_size,
        created: Ts(slot.created),
        term: Term(slot.term),
        clean: slot.clean != 0,
        timeline: Timeline(slot.timeline),
        durable,
        in_cluster: slot.in_cluster != 0,
    };
    Parsed::Valid(slot.seq, Box::new(meta))
}

/// Reads `store.meta` in `dir`; `None` if there is no such file.
///
/// # Errors
/// `Error::Foreign`, `Error::Version` or `Error::Corrupt` if no slot is valid; `Error::Io`.
pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Meta>> {
    two_slots::read(disk, dir)
}

impl MetaFile {
    /// Creates `store.meta` in `dir` atomically.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn create(disk: &dyn Disk, dir: &Path, meta: Meta) -> Result<MetaFile> {
        TwoSlots::create(disk, dir, &meta).map(MetaFile)
    }

    /// Opens the existing `store.meta` in `dir`.
    ///
    /// # Errors
    /// As [`read`], and `Error::Missing`.
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<MetaFile> {
        TwoSlots::open(disk, dir).map(MetaFile)
    }

    /// Content of the file.
    pub fn meta(&self) -> &Meta {
        self.0.content()
    }

    /// Stores `meta` durably.
    ///
    /// # Errors
    /// `Error::Io`; the file then holds the old content or the new.
    ///
    /// # Panics
    /// If the term or the timeline falls.
    pub fn update(&mut self, meta: Meta) -> Result<()> {
        let before = self.meta();
        assert!(meta.term >= before.term && meta.timeline >= before.timeline, "terms and timelines never fall");
        self.0.write(meta)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::disk::two_slots::STRIDE;
    use crate::error::Error;

    const FILE_LEN: usize = 2 * STRIDE;

    fn path_of(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    const DIR: &str = "/s";

    fn meta() -> Meta {
        Meta {
            store_id: 1 << 100 | 5,
            segment_size: SEGMENT_SIZE_MIN,
            created: Ts(1),
            term: Term(1),
            clean: true,
            timeline: Timeline(1),
            durable: DurableMark::default(),
            in_cluster: true,
        }
    }

    #[test]
    fn every_flipped_byte_is_survived_by_the_other_slot_or_harmless() {
        let disk = SimDisk::new();
        let mut file = MetaFile::create(&disk, Path::new(DIR), meta()).unwrap();
        file.update(Meta { term: Term(2), ..meta() }).unwrap();
        let path = path_of(Path::new(DIR));
        let whole = disk.contents(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            disk.overwrite(&path, bytes);
            let found = read(&disk, Path::new(DIR)).unwrap().unwrap();
            assert_eq!(found.store_id, meta().store_id, "byte {at}");
            assert!(found.term == Term(2) || found.term == Term(1), "byte {at}");
        }
        for len in 0..whole.len() {
            disk.overwrite(&path, whole[..len].to_vec());
            match read(&disk, Path::new(DIR)) {
                Ok(Some(found)) => assert_eq!(found.store_id, meta().store_id),
                Err(Error::Foreign { .. } | Error::Corrupt { .. } | Error::Missing { .. }) => {}
                other => panic!("{len}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_foreign_file_and_a_later_version_are_refused() {
        let disk = SimDisk::new();
        MetaFile::create(&disk, Path::new(DIR), meta()).unwrap();
        let path = path_of(Path::new(DIR));
        disk.overwrite(&path, b"#!/bin/sh not ours at all".repeat(400));
        assert!(matches!(read(&disk, Path::new(DIR)), Err(Error::Foreign { .. })));
        let mut slot: Slot = bytemuck::pod_read_unaligned(&encode(&meta(), 1));
        slot.version = 9;
        slot.crc = 0;
        slot.crc = crc32c::crc32c(bytemuck::bytes_of(&slot));
        disk.overwrite(&path, bytemuck::bytes_of(&slot).to_vec());
        assert!(matches!(read(&disk, Path::new(DIR)), Err(Error::Version { found: 9, .. })));
    }

    #[test]
    fn a_store_of_version_1_opens_and_is_in_no_cluster_until_an_update_sets_it() {
        let disk = SimDisk::new();
        let mut slot: Slot = bytemuck::pod_read_unaligned(&encode(&Meta { in_cluster: false, ..meta() }, 1));
        (slot.version, slot.crc) = (1, 0);
        slot.crc = crc32c::crc32c(bytemuck::bytes_of(&slot));
        let mut bytes = bytemuck::bytes_of(&slot).to_vec();
        bytes.resize(FILE_LEN, 0);
        MetaFile::create(&disk, Path::new(DIR), meta()).unwrap();
        disk.overwrite(&path_of(Path::new(DIR)), bytes);
        let mut file = MetaFile::open(&disk, Path::new(DIR)).unwrap();
        assert_eq!(*file.meta(), Meta { in_cluster: false, durable: file.meta().durable, ..meta() });
        file.update(Meta { in_cluster: true, ..*file.meta() }).unwrap();
        assert!(read(&disk, Path::new(DIR)).unwrap().unwrap().in_cluster);
    }

    #[test]
    fn power_loss_at_any_call_of_an_update_leaves_the_old_or_the_new() {
        for call in 1..=2 {
            for seed in 0..40 {
                let disk = SimDisk::new();
                let mut file = MetaFile::create(&disk, Path::new(DIR), meta()).unwrap();
                disk.set_fault(disk.calls() + call, crate::disk::sim::Fault::PowerLoss);
                assert!(file.update(Meta { term: Term(2), ..meta() }).is_err());
                let after = read(&disk.power_loss(seed), Path::new(DIR)).unwrap().unwrap();
                assert!([Term(1), Term(2)].contains(&after.term));
            }
        }
    }
}
