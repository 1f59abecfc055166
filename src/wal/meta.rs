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
//! What must hold: the slot with the higher `seq` is valid, and the other one is overwritten next, so a torn write leaves the
//! older one. A term is durable here before a frame carries it.

use std::path::{Path, PathBuf};

use super::format::{DurableMark, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN};
use crate::disk::{Disk, DiskFile, Open, publish};
use crate::error::{Error, Result};
use crate::lsn::{FrameIndex, Lsn, Position, Term, Timeline};
use crate::time::Ts;

/// Name of the file in the store directory.
pub const NAME: &str = "store.meta";

const MAGIC: u64 = u64::from_le_bytes(*b"TAPEMETA");
const VERSION: u32 = 2;
const SLOT_LEN: usize = 512;
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const FILE_LEN: usize = 8192;

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
pub struct MetaFile {
    file: Box<dyn DiskFile>,
    seq: u64,
    meta: Meta,
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

enum Parsed {
    Valid(u64, Box<Meta>),
    Version(u32),
    Foreign(u64),
    Damaged { expected: u64, found: u64 },
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some(Ok(slot)) = bytes.get(..SLOT_LEN).map(bytemuck::try_pod_read_unaligned::<Slot>) else {
        return Parsed::Foreign(bytes.len() as u64);
    };
    if slot.magic != MAGIC {
        return Parsed::Foreign(slot.magic);
    }
    let crc = crc32c::crc32c(bytemuck::bytes_of(&Slot { crc: 0, ..slot }));
    if crc != slot.crc {
        return Parsed::Damaged { expected: u64::from(crc), found: u64::from(slot.crc) };
    }
    if !(1..=VERSION).contains(&slot.version) {
        return Parsed::Version(slot.version);
    }
    if !(SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&slot.segment_size) {
        return Parsed::Damaged { expected: SEGMENT_SIZE_MIN, found: slot.segment_size };
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

fn path_of(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// Reads `store.meta` in `dir`; `None` if there is no such file.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Version`] or [`Error::Corrupt`] if no slot is valid; [`Error::Io`].
pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Meta>> {
    let path = path_of(dir);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let file = disk.open(&path, Open::Read)?;
    newest(file.as_ref(), &path).map(|(_, meta)| Some(meta))
}

fn newest(file: &dyn DiskFile, path: &Path) -> Result<(u64, Meta)> {
    let mut bytes = vec![0u8; FILE_LEN];
    file.read_at(&mut bytes, 0)?;
    let mut best: Option<(u64, Meta)> = None;
    let mut worst = None;
    for offset in SLOT_OFFSETS {
        let path = path.to_path_buf();
        match parse(bytes.get(offset as usize..).unwrap_or(&[])) {
            Parsed::Valid(seq, meta) if best.is_none_or(|(b, _)| seq > b) => best = Some((seq, *meta)),
            Parsed::Valid(..) => {}
            Parsed::Version(found) => return Err(Error::Version { path, found, supported: VERSION }),
            Parsed::Foreign(found) => worst = worst.or(Some(Error::Foreign { path, what: "store.meta", found })),
            Parsed::Damaged { expected, found } => {
                worst = Some(Error::Corrupt { path, offset, lsn: Lsn(1), what: "store.meta CRC", expected, found });
            }
        }
    }
    match (best, worst) {
        (Some(best), damaged) => {
            if let Some(error) = damaged {
                tracing::warn!(%error, "one slot of store.meta is unreadable; using the other; check the disk");
            }
            Ok(best)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::Missing { path: path.to_path_buf(), what: "it holds the store's identity" }),
    }
}

impl MetaFile {
    /// Creates `store.meta` in `dir` atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(disk: &dyn Disk, dir: &Path, meta: Meta) -> Result<MetaFile> {
        let mut bytes = vec![0u8; FILE_LEN];
        for (seq, offset) in (1u64..).zip(SLOT_OFFSETS) {
            for (to, from) in bytes.iter_mut().skip(offset as usize).zip(encode(&meta, seq)) {
                *to = from;
            }
        }
        publish(disk, &path_of(dir), &bytes)?;
        MetaFile::open(disk, dir)
    }

    /// Opens the existing `store.meta` in `dir`.
    ///
    /// # Errors
    /// As [`read`], and [`Error::Missing`].
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<MetaFile> {
        let path = path_of(dir);
        if !disk.exists(&path)? {
            return Err(Error::Missing { path, what: "it holds the store's identity" });
        }
        let file = disk.open(&path, Open::Write)?;
        let (seq, meta) = newest(file.as_ref(), &path)?;
        Ok(MetaFile { file, seq, meta })
    }

    /// Content of the file.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Stores `meta` durably.
    ///
    /// # Errors
    /// [`Error::Io`]; the file then holds the old content or the new.
    ///
    /// # Panics
    /// If the term or the timeline falls.
    pub fn update(&mut self, meta: Meta) -> Result<()> {
        assert!(meta.term >= self.meta.term && meta.timeline >= self.meta.timeline, "terms and timelines never fall");
        self.seq += 1;
        let [a, b] = SLOT_OFFSETS;
        // Slot A holds odd numbers, so the older slot is overwritten.
        self.file.write_at(&encode(&meta, self.seq), if self.seq % 2 == 1 { a } else { b })?;
        self.file.sync()?;
        self.meta = meta;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

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
