//! Owns: truncation of a log after a frame, where its tail diverges from the leader's log, and the file that keeps that tail.
//! A torn tail is no such tail: [`super::open`] truncates it, and keeps no copy.
//!
//! ```text
//! STORE/divergent/<term>-<index>.wal   0 magic u64 · version u32 · crc u32 (of the header with this zero)
//!                                     16 store id u128 · position u64 · first index u64 · term u32 · frames u32
//!                                     56 records u64
//!                                     64 the frames, byte for byte, without pads
//! ```
//!
//! What must hold: at every moment the disk holds the old log, the truncated log, or one that ends between the two. The order
//! ensures it: sync the part that stays, keep the tail in a file of its own, lower the durable marks, then remove the tail. No
//! file is shortened or renamed: the replication process and tools may have it open. After an interruption the truncation is
//! run again, and ends in the same bytes. A pad after the last frame is removed too, because the leader's next frame may
//! belong in its place.

use std::path::{Path, PathBuf};

use super::format::{
    Bad, Chain, DurableMark, FrameType, HEADER_LEN, Header, MARK_OFFSETS, SEGMENT_HEAD_LEN, segment_first, segment_name,
};
use super::meta::{Meta, MetaFile};
use super::reader::{Frame, next_frame, scan};
use super::segment::Window;
use crate::disk::{Disk, DiskFile, Open, publish};
use crate::error::{Error, Result, demand};
use crate::lsn::{FrameIndex, Lsn, Position, Term};

/// Directory of truncated tails, in the store directory.
pub const DIVERGENT: &str = "divergent";
const MAGIC: u64 = u64::from_le_bytes(*b"TAPEDIVG");
// Version 1 had a byte count in place of position and term.
const VERSION: u32 = 2;
/// Bound above every number of a frame: sums of smaller numbers do not overflow.
const NUMBER_LIMIT: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Head {
    magic: u64,
    version: u32,
    crc: u32,
    store_id: [u64; 2],
    position: Position,
    first_index: FrameIndex,
    term: Term,
    frames: u32,
    records: u64,
}

const _: () = assert!(size_of::<Head>() as u64 == HEADER_LEN);

impl Head {
    /// The file header for the frames `headers`, beginning with `first`.
    fn of(store_id: u128, first: &Header, headers: &[&Header]) -> Head {
        let mut head = Head {
            magic: MAGIC,
            version: VERSION,
            crc: 0,
            store_id: [store_id as u64, (store_id >> 64) as u64],
            position: first.position,
            first_index: first.index,
            term: first.term,
            frames: headers.len() as u32,
            records: headers.iter().map(|h| h.records()).sum(),
        };
        head.crc = crc32c::crc32c(bytemuck::bytes_of(&head));
        head
    }

    /// Parses the untrusted header `bytes` of the file `path`.
    fn parse(bytes: &[u8], path: &Path) -> Result<Head> {
        let (path, mut raw) = (path.to_path_buf(), [0; HEADER_LEN as usize]);
        raw.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let head: Head = bytemuck::cast(raw);
        if head.magic != MAGIC {
            return Err(Error::Foreign { path, what: "file of truncated frames", found: head.magic });
        }
        let crc = crc32c::crc32c(bytemuck::bytes_of(&Head { crc: 0, ..head }));
        let sealed = demand("header CRC of truncated frames", u64::from(crc), u64::from(head.crc));
        sealed.map_err(|bad| corrupt(&path, 0, Lsn::NONE, bad))?;
        if head.version != VERSION {
            return Err(Error::Version { path, found: head.version, supported: VERSION });
        }
        Ok(head)
    }
}

/// Outcome of a truncation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Frames removed.
    pub frames: u64,
    /// Records removed.
    pub records: u64,
    /// LSN of the first record removed; of the next record if none was removed.
    pub first_lsn: Lsn,
    /// LSN of the last record removed; less than `first_lsn` if none was removed.
    pub last_lsn: Lsn,
    /// File that keeps the frames; `None` if no frame was removed. After an interrupted truncation of the same frames it may
    /// keep more frames that followed.
    pub kept_in: Option<PathBuf>,
}

/// Header of a file of truncated frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergent {
    /// Store of the log.
    pub store_id: u128,
    /// Position of the first frame.
    pub position: Position,
    /// Index of the first frame.
    pub first_index: FrameIndex,
    /// Term of the first frame.
    pub term: Term,
    /// Number of frames.
    pub frames: u64,
    /// Number of records.
    pub records: u64,
}

/// The tail of a log after a frame.
struct Tail {
    /// End of the log after the truncation; `None` if the log ends before it.
    at: Option<Chain>,
    /// Headers of the frames to remove, pads included.
    headers: Vec<Header>,
    end: Chain,
    /// Sequence number of the newest durable mark.
    seq: u64,
}

/// Truncates the log of the store in `dir` after frame `last_kept`. No process serves the store, and the caller holds its
/// lock; `from` is its checkpoint. Afterwards the remaining log is durable. The next start reads the shorter log, and raises
/// the timeline if readers have seen removed records.
///
/// # Errors
/// [`Error::Invalid`] if SSTables hold records after that frame: this host then needs a snapshot of another host; as
/// [`scan`]; [`Error::Io`]. After an error the log is unchanged, or lacks part of the tail.
pub fn truncate(disk: &dyn Disk, dir: &Path, from: Chain, last_kept: FrameIndex) -> Result<Truncated> {
    if last_kept.0.saturating_add(1) < from.index.0 {
        let reason = format!(
            "cannot truncate after frame {last_kept}: SSTables hold all frames before {}; install a snapshot of another host",
            from.index
        );
        return Err(Error::invalid("truncation of the log", reason));
    }
    let mut meta = MetaFile::open(disk, dir)?;
    let (wal, size) = (dir.join(super::DIR), meta.meta().segment_size);
    // The durable marks written below cover segments: their names must be durable first.
    disk.sync_dir(&wal)?;
    let tail = read_tail(disk, &wal, meta.meta(), from, last_kept)?;
    let Some(at) = tail.at else { return Ok(nothing(tail.end.lsn)) };
    let first = Position(at.position.0 / size * size);
    let begins = at.position.0 == first.0 + SEGMENT_HEAD_LEN;
    let path = wal.join(segment_name(first));
    if tail.headers.is_empty() {
        // An interrupted truncation may have left frames.
        if !begins {
            erase(disk.open(&path, Open::Write)?.as_ref(), first, at.position, size)?;
        }
        return Ok(nothing(at.lsn));
    }
    let kept_in = keep(disk, dir, meta.meta(), &wal, &tail.headers)?;
    // Both slots: the older one would claim more than the log holds if the newer became unreadable.
    for _ in 0..2 {
        meta.update(Meta { durable: DurableMark::of(&at), clean: false, ..*meta.meta() })?;
    }
    let mut firsts: Vec<_> = disk.list(&wal)?.iter().filter_map(|n| segment_first(n)).collect();
    firsts.sort_unstable();
    // From the end, so that the rest is always one log and its durable marks do not exceed it.
    for gone in firsts.iter().rev().filter(|f| f.0 > first.0 || (begins && f.0 == first.0)) {
        disk.remove(&wal.join(segment_name(*gone)))?;
        disk.sync_dir(&wal)?;
    }
    if !begins {
        let file = disk.open(&path, Open::Write)?;
        lower(file.as_ref(), at, tail.seq)?;
        erase(file.as_ref(), first, at.position, size)?;
    }
    let frames = tail.headers.iter().filter(|h| h.kind() != FrameType::Pad);
    let (frames, records) = frames.fold((0, 0), |(n, r), h| (n + 1, r + h.records()));
    Ok(Truncated { frames, records, first_lsn: at.lsn, last_lsn: Lsn(at.lsn.0 + records - 1), kept_in })
}

/// Keeps the tail after frame `last_kept` of the log of the store in `dir` as [`truncate()`] does, and removes nothing: for a log
/// that a snapshot install will replace. Returns the file, if there are frames.
///
/// # Errors
/// As [`truncate()`].
pub fn keep_tail(disk: &dyn Disk, dir: &Path, from: Chain, last_kept: FrameIndex) -> Result<Option<PathBuf>> {
    let meta = MetaFile::open(disk, dir)?;
    let wal = dir.join(super::DIR);
    let tail = read_tail(disk, &wal, meta.meta(), from, last_kept)?;
    keep(disk, dir, meta.meta(), &wal, &tail.headers)
}

/// Outcome without a removed frame; the next record will be `next`.
fn nothing(next: Lsn) -> Truncated {
    Truncated { frames: 0, records: 0, first_lsn: next, last_lsn: Lsn(next.0 - 1), kept_in: None }
}

/// Reads the tail after frame `last_kept`; everything before it is durable afterwards.
fn read_tail(disk: &dyn Disk, wal: &Path, meta: &Meta, from: Chain, last_kept: FrameIndex) -> Result<Tail> {
    let mut headers: Vec<Header> = Vec::new();
    let found = scan(disk, wal, meta, from, Open::Write, |frame| {
        if frame.header.index > last_kept {
            headers.push(frame.header);
        }
        Ok(())
    })?;
    let end = found.chain;
    let at = match headers.first() {
        Some(first) => Some(first.place()),
        None => (end.index.0 - 1 == last_kept.0).then_some(end),
    };
    Ok(Tail { at, headers, end, seq: found.durable_mark.seq })
}

/// Writes the frames of `headers` durably to a file of their own; `None` if there are no frames.
fn keep(disk: &dyn Disk, dir: &Path, meta: &Meta, wal: &Path, headers: &[Header]) -> Result<Option<PathBuf>> {
    let frames: Vec<_> = headers.iter().filter(|h| h.kind() != FrameType::Pad).collect();
    let Some(first) = frames.first() else { return Ok(None) };
    let mut bytes = bytemuck::bytes_of(&Head::of(meta.store_id, first, &frames)).to_vec();
    for header in &frames {
        let segment = Position(header.position.0 / meta.segment_size * meta.segment_size);
        let file = disk.open(&wal.join(segment_name(segment)), Open::Read)?;
        let start = bytes.len();
        bytes.resize(start + header.total_len() as usize, 0);
        file.read_at(bytes.get_mut(start..).unwrap_or(&mut []), header.position.0 - segment.0)?;
    }
    let kept = dir.join(DIVERGENT);
    disk.create_dir(&kept)?;
    disk.sync_dir(dir)?;
    let mut attempt = 0u64;
    loop {
        let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
        let path = kept.join(format!("{}-{}{suffix}.wal", first.term.0, first.index.0));
        if !disk.exists(&path)? {
            publish(disk, &path, &bytes)?;
            return Ok(Some(path));
        }
        if has(disk, &path, &bytes)? {
            // Its name may not be durable yet.
            disk.sync_dir(&kept)?;
            return Ok(Some(path));
        }
        attempt += 1;
    }
}

/// Whether the file `path` of an interrupted truncation begins with the frames in `bytes`; it may hold more.
fn has(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<bool> {
    let file = disk.open(path, Open::Read)?;
    let mut found = vec![0; bytes.len()];
    let read = file.read_at(&mut found, 0)?;
    let body = |bytes: &[u8]| bytes.get(HEADER_LEN as usize..).map(<[u8]>::to_vec);
    Ok(read == bytes.len() && Head::parse(&found, path).is_ok() && body(&found) == body(bytes))
}

/// Lowers both durable marks of a segment to `at`.
fn lower(file: &dyn DiskFile, at: Chain, seq: u64) -> Result<()> {
    for (more, offset) in (1..).zip(MARK_OFFSETS) {
        file.write_at(&DurableMark { seq: seq + more, ..DurableMark::of(&at) }.to_bytes(), offset)?;
    }
    file.sync()
}

/// Zeroes the magic of every frame at or after `at` in the segment that begins at `first`.
fn erase(file: &dyn DiskFile, first: Position, at: Position, size: u64) -> Result<()> {
    let mut window = Window::new(file);
    let mut offset = at.0 - first.0;
    while offset < size {
        let words = window.get(offset, HEADER_LEN as usize)?;
        if Header::parse(bytemuck::cast_slice(words)).is_ok_and(|h| h.position.0 == first.0 + offset) {
            file.write_at(&[0; 4], offset)?;
        }
        offset += HEADER_LEN;
    }
    file.sync()
}

fn corrupt(path: &Path, offset: u64, lsn: Lsn, Bad { what, expected, found }: Bad) -> Error {
    Error::Corrupt { path: path.to_path_buf(), offset, lsn, what, expected, found }
}

/// Passes every frame of the file `path` to `visit`, each checked as in the log.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Version`]; [`Error::Corrupt`] at the first damaged frame, after all frames before it were
/// visited, or if frames are absent; [`Error::Io`]; every error of `visit`.
pub fn read(disk: &dyn Disk, path: &Path, mut visit: impl FnMut(&Frame<'_>) -> Result<()>) -> Result<Divergent> {
    let file = disk.open(path, Open::Read)?;
    let (mut bytes, len) = ([0; HEADER_LEN as usize], file.len()?);
    file.read_at(&mut bytes, 0)?;
    let head = Head::parse(&bytes, path)?;
    let mut window = Window::new(file.as_ref());
    let (mut offset, mut frames, mut records) = (HEADER_LEN, 0, 0);
    let mut chain: Option<Chain> = None;
    while offset < len {
        let lsn = chain.map_or(Lsn::NONE, |c| c.lsn);
        let words = window.get(offset, HEADER_LEN as usize)?;
        let place = place(&head, chain, bytemuck::cast_slice(words)).map_err(|bad| corrupt(path, offset, lsn, bad))?;
        let frame = next_frame(&mut window, offset, len - offset, &place)?;
        let frame = frame.map_err(|(bad, _)| corrupt(path, offset, lsn, bad))?;
        visit(&frame)?;
        let header = frame.header;
        (frames, records, offset) = (frames + 1, records + header.records(), offset + header.total_len());
        // The file does not record segment ends: the next frame's header has its position.
        let mut next = place;
        next.advance(&header, NUMBER_LIMIT);
        chain = Some(next);
    }
    let lsn = chain.map_or(Lsn::NONE, |c| c.lsn);
    let all = demand("truncated frames", u64::from(head.frames), frames);
    let all = all.and_then(|()| demand("records of truncated frames", head.records, records));
    all.map_err(|bad| corrupt(path, offset, lsn, bad))?;
    let [low, high] = head.store_id;
    let store_id = u128::from(low) | u128::from(high) << 64;
    let Head { position, first_index, term, .. } = head;
    Ok(Divergent { store_id, position, first_index, term, frames, records })
}

/// The chain before the frame with the header `bytes`, which must be the first by `head`, or the next of `chain`.
fn place(head: &Head, chain: Option<Chain>, bytes: &[u8]) -> std::result::Result<Chain, Bad> {
    let header = Header::parse(bytes)?;
    if header.kind() == FrameType::Pad {
        return Err(Bad { what: "frame type", expected: FrameType::Data as u64, found: FrameType::Pad as u64 });
    }
    for (what, found) in
        [("frame position", header.position.0), ("frame index", header.index.0), ("first LSN", header.first_lsn.0)]
    {
        if found >= NUMBER_LIMIT {
            return Err(Bad { what, expected: NUMBER_LIMIT, found });
        }
    }
    let Some(chain) = chain else {
        demand("position of the first truncated frame", head.position.0, header.position.0)?;
        demand("index of the first truncated frame", head.first_index.0, header.index.0)?;
        demand("term of the first truncated frame", u64::from(head.term.0), u64::from(header.term.0))?;
        return Ok(header.place());
    };
    if header.position < chain.position {
        return Err(Bad { what: "frame position", expected: chain.position.0, found: header.position.0 });
    }
    Ok(Chain { position: header.position, ..chain })
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::*;
    use super::*;
    use crate::disk::sim::{Fault, SimDisk, SimRng};
    use crate::lsn::{Epoch, PubSeq, PublisherId};
    use crate::record::{RecordRef, Trade};

    const DIR: &str = "/s";
    const SIZE: u64 = format::SEGMENT_SIZE_MIN;
    const CREATE: Create = Create { store_id: 77, segment_size: SIZE, now: Ts(1) };
    /// Record counts of frames of 38, 25 and 13 kB and small ones: three segments, which end with pads.
    const COUNTS: [u64; 19] = [600, 600, 1, 400, 600, 600, 600, 9, 600, 600, 200, 600, 600, 600, 3, 600, 600, 600, 2];

    /// Index and CRC of a frame.
    type Id = (u64, u32);

    fn trades(from: u64, count: u64) -> FrameBuilder {
        let mut frame = FrameBuilder::new();
        for id in from..from + count {
            let trade = Trade { trade_id: id, ..Trade::default() };
            frame.push_records(PublisherId(1), Epoch(1), PubSeq(id + 1), 1, RecordRef::of(&trade).words());
        }
        frame
    }

    fn reopen(disk: &SimDisk, seen: Lsn, visit: impl FnMut(&Frame<'_>) -> Result<()>) -> Result<Log> {
        open(Arc::new(disk.clone()), Path::new(DIR), Chain::begin(77), 0, seen, visit)
    }

    /// Appends frames of `counts` trades in `term`; the first `synced` are synced and covered by a durable mark.
    fn extend(disk: &SimDisk, term: u32, counts: &[u64], synced: usize) -> Result<Vec<Id>> {
        create_if_absent(disk, Path::new(DIR), CREATE)?;
        let mut log = reopen(disk, Lsn(0), |_| Ok(()))?;
        log.writer.set_term(Term(term));
        let mut made = Vec::new();
        for count in counts {
            assert!(log.writer.ready()?);
            let from = log.writer.chain().lsn.0;
            let appended = log.writer.append(&mut trades(from, *count), FrameType::Data, Ts(u64::from(term)))?;
            appended.opened.into_iter().for_each(|segment| log.syncer.opened(segment));
            made.push((appended.header.index.0, appended.header.header_crc));
            if made.len() == synced {
                log.syncer.sync(log.writer.end())?;
                log.syncer.record()?;
            }
        }
        Ok(made)
    }

    /// The frames that a start finds, and the end of the log afterwards.
    fn frames(disk: &SimDisk) -> Result<(Vec<Id>, Chain)> {
        let mut found = Vec::new();
        let log = reopen(disk, Lsn(0), |frame| {
            if frame.header.kind() != FrameType::Pad {
                found.push((frame.header.index.0, frame.header.header_crc));
            }
            Ok(())
        })?;
        Ok((found, *log.writer.chain()))
    }

    fn scene(counts: &[u64], synced: usize) -> SimDisk {
        let disk = SimDisk::new();
        extend(&disk, 1, counts, synced).unwrap();
        disk
    }

    fn cut_behind(disk: &SimDisk, last_kept: usize) -> Result<Truncated> {
        truncate(disk, Path::new(DIR), Chain::begin(77), FrameIndex(last_kept as u64))
    }

    /// Place of the frame after `last_kept`, or of the pad before it.
    fn place_behind(disk: &SimDisk, last_kept: usize) -> Chain {
        let (meta, mut place) = (meta::read(disk, Path::new(DIR)).unwrap().unwrap(), None);
        scan(disk, &Path::new(DIR).join(super::super::DIR), &meta, Chain::begin(77), Open::Read, |frame| {
            place = place.or_else(|| (frame.header.index.0 > last_kept as u64).then(|| frame.header.place()));
            Ok(())
        })
        .unwrap();
        place.unwrap()
    }

    /// Whether a durable mark on the disk covers all `count` frames.
    fn is_durable(disk: &SimDisk, count: usize) -> bool {
        let meta = meta::read(disk, Path::new(DIR)).unwrap().unwrap();
        let known = durable_mark(disk, &Path::new(DIR).join("wal"), &meta, Chain::begin(77)).unwrap();
        known.index.0 == count as u64
    }

    /// End of a log, without its term and time.
    fn spot(chain: Chain) -> (Position, FrameIndex, Lsn, u32) {
        (chain.position, chain.index, chain.lsn, chain.prev_crc)
    }

    /// Truncates with `fault` at `call`, perhaps starts, truncates again, appends frames of a higher term and loses power.
    /// Returns whether the first truncation ended before the fault.
    fn interrupt(disk: &SimDisk, last_kept: usize, call: u64, fault: Fault, seed: u64, new: &[u64]) -> bool {
        let before = frames(&disk.copy()).unwrap().0;
        let place = place_behind(disk, last_kept);
        let what = format!("behind {last_kept}, {fault:?} at call {call}, seed {seed}");
        let broken = disk.copy();
        broken.set_fault(call, fault);
        let outcome = cut_behind(&broken, last_kept);
        broken.clear_faults();
        let is_lost = fault == Fault::PowerLoss || seed % 4 == 3;
        let after = if is_lost { broken.power_loss(seed) } else { broken };
        let (found, _) = frames(&after.copy()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(found, before[..found.len()], "{what}: the log is the old one, or shorter");
        if found.len() < before.len() && is_durable(disk, before.len()) {
            let path = Path::new(DIR).join(DIVERGENT).join(format!("1-{}.wal", last_kept + 1));
            let kept = read(&after, &path, |_| Ok(())).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(kept.frames as usize, before.len() - last_kept, "{what}: the removed tail is kept");
        }
        if outcome.is_ok() {
            assert_eq!(found.len(), last_kept, "{what}: a reported truncation is final");
        }
        if seed.is_multiple_of(2) {
            frames(&after).unwrap();
        }
        cut_behind(&after, last_kept).unwrap_or_else(|e| panic!("{what}: {e}"));
        let after = after.power_loss(seed + 1);
        let (kept, end) = frames(&after).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(kept, before[..last_kept.min(found.len())], "{what}");
        if found.len() >= last_kept {
            assert_eq!(spot(end), spot(place), "{what}: the leader's next frame fits");
        }
        let made = extend(&after, 2, new, new.len() / 2).unwrap();
        let (again, _) = frames(&after.power_loss(seed + 2)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let all: Vec<_> = kept.iter().chain(&made).copied().collect();
        assert!(again.len() >= kept.len() + new.len() / 2, "{what}: {}", again.len());
        assert_eq!(again, all[..again.len()], "{what}: no truncated frame comes back");
        outcome.is_ok()
    }

    /// Runs [`interrupt`] at every call of a truncation.
    fn interrupt_everywhere(disk: &SimDisk, last_kept: usize, fault: Fault, seeds: u64) {
        // Frames as long as the truncated ones, shorter, longer.
        let news = [&COUNTS[last_kept.min(COUNTS.len() - 2)..], &[1, 2, 3], &[600; 8]];
        for call in 1.. {
            let seeds = (0..seeds).map(|seed| call * 31 + seed);
            let open = seeds.filter(|seed| !interrupt(disk, last_kept, call, fault, *seed, news[*seed as usize % 3]));
            if open.count() == 0 {
                assert!(call > 5, "a truncation makes more calls than {call}");
                return;
            }
        }
    }

    #[test]
    fn after_power_loss_at_any_call_the_next_truncation_ends_at_the_right_frame() {
        let disk = scene(&COUNTS, COUNTS.len());
        // After a start the durable mark in `store.meta` covers everything too.
        frames(&disk).unwrap();
        (1..COUNTS.len()).for_each(|last_kept| interrupt_everywhere(&disk, last_kept, Fault::PowerLoss, 3));
    }

    #[test]
    fn after_a_failed_call_the_next_truncation_ends_at_the_right_frame() {
        let disk = scene(&COUNTS, COUNTS.len());
        for last_kept in 1..COUNTS.len() {
            interrupt_everywhere(&disk, last_kept, Fault::Once(ErrorKind::Other), 2);
        }
    }

    #[test]
    fn truncation_of_unsynced_frames_marks_nothing_durable_that_is_not_on_the_disk() {
        for synced in [0, 1, 5, 12] {
            let disk = scene(&COUNTS, synced);
            for last_kept in [2, 4, 6, 12, 17] {
                interrupt_everywhere(&disk, last_kept, Fault::PowerLoss, 4);
            }
        }
    }

    #[test]
    fn truncation_works_at_the_start_and_end_of_a_segment_and_of_the_whole_log() {
        let disk = scene(&COUNTS, COUNTS.len());
        let (mut pads, mut begins) = (0, 0);
        for last_kept in 0..COUNTS.len() {
            let (disk, place) = (disk.copy(), place_behind(&disk, last_kept));
            begins += u64::from(place.position.0 % SIZE == SEGMENT_HEAD_LEN);
            let bytes = disk.contents(&Path::new(DIR).join("wal").join(segment_name(Position(place.position.0 / SIZE * SIZE))));
            let header = Header::parse(&bytes.unwrap()[(place.position.0 % SIZE) as usize..]).unwrap();
            pads += u64::from(header.kind() == FrameType::Pad);
            cut_behind(&disk, last_kept).unwrap();
            assert_eq!(spot(frames(&disk).unwrap().1), spot(place));
        }
        assert!(pads >= 2 && begins >= 1, "{pads} truncations at a pad, {begins} at a segment's beginning");
    }

    #[test]
    fn a_pad_behind_the_last_frame_is_removed_to_make_room_for_the_leaders_next_frame() {
        let disk = scene(&COUNTS, COUNTS.len());
        let (behind, place) = (1..COUNTS.len())
            .map(|n| (n, place_behind(&disk, n)))
            .find(|(n, p)| place_behind(&disk, n - 1).position.0 / SIZE == p.position.0 / SIZE && is_pad(&disk, p.position))
            .unwrap();
        // As if the process died after it filled the segment, or a truncation after it removed the others.
        for first in 1..3 {
            let path = Path::new(DIR).join("wal").join(segment_name(Position((place.position.0 / SIZE + first) * SIZE)));
            if disk.exists(&path).unwrap() {
                disk.remove(&path).unwrap();
            }
        }
        let mut meta = MetaFile::open(&disk, Path::new(DIR)).unwrap();
        meta.update(Meta { durable: DurableMark::default(), ..*meta.meta() }).unwrap();
        assert_eq!(spot(frames(&disk.copy()).unwrap().1), spot(place), "a start removes it too");
        let done = cut_behind(&disk, behind).unwrap();
        assert_eq!((done.frames, done.records, done.kept_in), (0, 0, None));
        assert_eq!(spot(frames(&disk).unwrap().1), spot(place));
    }

    fn is_pad(disk: &SimDisk, at: Position) -> bool {
        let bytes = disk.contents(&Path::new(DIR).join("wal").join(segment_name(Position(at.0 / SIZE * SIZE)))).unwrap();
        Header::parse(&bytes[(at.0 % SIZE) as usize..]).is_ok_and(|h| h.kind() == FrameType::Pad)
    }

    #[test]
    fn truncated_frames_are_kept_byte_for_byte_and_read_again() {
        let whole = scene(&COUNTS, COUNTS.len());
        let before = frames(&whole).unwrap().0;
        for last_kept in 0..COUNTS.len() {
            let disk = whole.copy();
            let place = place_behind(&disk, last_kept);
            let done = cut_behind(&disk, last_kept).unwrap();
            let gone = &COUNTS[last_kept..];
            assert_eq!((done.frames, done.records), (gone.len() as u64, gone.iter().sum()));
            assert_eq!((done.first_lsn, done.last_lsn), (place.lsn, Lsn(COUNTS.iter().sum())));
            let path = done.kept_in.unwrap();
            assert!(path.ends_with(format!("divergent/1-{}.wal", last_kept + 1)));
            let (mut found, mut next) = (Vec::new(), place.lsn.0);
            let kept = read(&disk, &path, |frame| {
                found.push((frame.header.index.0, frame.header.header_crc));
                let Body::Data(data) = &frame.body else { panic!("{frame:?}") };
                for record in crate::record::split(data.records) {
                    assert_eq!(record.unwrap().get::<Trade>().unwrap().trade_id, next);
                    next += 1;
                }
                Ok(())
            });
            let kept = kept.unwrap();
            assert_eq!((found.as_slice(), next), (&before[last_kept..], done.last_lsn.0 + 1));
            assert_eq!((kept.store_id, kept.first_index.0, kept.term), (77, last_kept as u64 + 1, Term(1)));
            assert_eq!((kept.frames, kept.records), (done.frames, done.records));
            // Byte for byte: each frame in the file is as it was in the log.
            let bytes = disk.contents(&path).unwrap();
            let mut rest = &bytes[64..];
            while let Ok(header) = Header::parse(rest) {
                let segment = Position(header.position.0 / SIZE * SIZE);
                let was = whole.contents(&Path::new(DIR).join("wal").join(segment_name(segment))).unwrap();
                let (mine, after) = rest.split_at(header.total_len() as usize);
                assert!(was[(header.position.0 - segment.0) as usize..].starts_with(mine));
                rest = after;
            }
            assert!(rest.is_empty());
            let again = cut_behind(&disk, last_kept).unwrap();
            assert_eq!((again.frames, again.kept_in), (0, None), "no frame is left to truncate");
        }
    }

    #[test]
    fn frames_before_the_checkpoint_are_not_truncated_and_a_shorter_log_is_unchanged() {
        let disk = scene(&[5, 5, 5], 3);
        let place = place_behind(&disk, 2);
        let cut_from = |last_kept| truncate(&disk, Path::new(DIR), place, FrameIndex(last_kept));
        assert!(matches!(cut_from(1), Err(Error::Invalid { .. })));
        assert_eq!(frames(&disk).unwrap().0.len(), 3);
        assert_eq!(cut_from(u64::MAX).unwrap().frames, 0);
        assert_eq!(cut_from(9).unwrap().frames, 0);
        assert_eq!(cut_from(2).unwrap().records, 5, "every frame behind the checkpoint may be truncated");
        assert_eq!(spot(frames(&disk).unwrap().1), spot(place));
    }

    #[test]
    fn a_second_tail_at_the_same_index_does_not_replace_the_kept_one() {
        let disk = scene(&[5, 5, 5], 3);
        let first = cut_behind(&disk, 1).unwrap().kept_in.unwrap();
        let kept = disk.contents(&first).unwrap();
        extend(&disk, 1, &[7], 1).unwrap();
        let second = cut_behind(&disk, 1).unwrap().kept_in.unwrap();
        assert!(second.ends_with("divergent/1-2-1.wal"), "{second:?}");
        assert_eq!(disk.contents(&first).unwrap(), kept);
        assert_eq!(read(&disk, &second, |_| Ok(())).unwrap().records, 7);
    }

    #[test]
    fn the_tail_kept_by_an_interrupted_truncation_is_durable_before_the_next_removes_it() {
        let disk = scene(&COUNTS, COUNTS.len());
        for call in 1.. {
            for seed in 0..8 {
                let broken = disk.copy();
                broken.set_fault(call, Fault::Once(ErrorKind::Other));
                let over = cut_behind(&broken, 4).is_ok();
                broken.clear_faults();
                cut_behind(&broken, 4).unwrap();
                let after = broken.power_loss(seed);
                let path = Path::new(DIR).join(DIVERGENT).join("1-5.wal");
                let kept = read(&after, &path, |_| Ok(())).unwrap_or_else(|e| panic!("call {call} seed {seed}: {e}"));
                assert_eq!(kept.frames, COUNTS.len() as u64 - 4, "call {call} seed {seed}");
                if over && seed == 7 {
                    return;
                }
            }
        }
    }

    #[test]
    fn a_damaged_store_meta_slot_after_a_truncation_does_not_restore_the_higher_durable_mark() {
        let disk = scene(&[50, 50, 50], 3);
        frames(&disk).unwrap();
        cut_behind(&disk, 1).unwrap();
        for slot in [0, 4096] {
            let rotten = disk.copy();
            rotten.patch(&Path::new(DIR).join(meta::NAME), slot + 20, 0xee).unwrap();
            assert_eq!(frames(&rotten).unwrap().0.len(), 1, "slot at {slot}");
        }
    }

    #[test]
    fn a_frame_left_by_an_interrupted_truncation_does_not_chain_to_a_new_frame() {
        let (mut left, mut call, mut is_over) = (0, 0, false);
        while !is_over {
            call += 1;
            for seed in 0..8 {
                let broken = scene(&[5; 6], 6);
                broken.set_fault(broken.calls() + call, Fault::PowerLoss);
                is_over = cut_behind(&broken, 2).is_ok();
                let disk = broken.power_loss(seed);
                let mut log = reopen(&disk, Lsn(0), |_| Ok(())).unwrap();
                if log.writer.end().index.0 != 2 {
                    continue;
                }
                // A different frame of the same size and term, in the place of the first removed one.
                assert!(log.writer.ready().unwrap());
                log.writer.append(&mut trades(1_000, 5), FrameType::Data, Ts(1)).unwrap();
                let end = *log.writer.chain();
                assert_eq!(spot(frames(&disk).unwrap().1), spot(end), "call {call} seed {seed}");
                let meta = meta::read(&disk, Path::new(DIR)).unwrap().unwrap();
                let visit = |frame: &Frame<'_>| {
                    left += u64::from(frame.header.position == end.position);
                    Ok(())
                };
                leftovers(&disk, &Path::new(DIR).join("wal"), &meta, end, visit).unwrap();
            }
        }
        assert!(left > 5, "{left} times only the chain rejected it");
    }

    #[test]
    fn no_truncated_frame_is_found_as_a_leftover() {
        for seed in 0..20 {
            let disk = scene(&COUNTS, COUNTS.len());
            let place = place_behind(&disk, 1);
            disk.set_fault(disk.calls() + 8 + seed, Fault::Once(ErrorKind::Other));
            cut_behind(&disk, 1).ok();
            disk.clear_faults();
            cut_behind(&disk, 1).unwrap();
            let (meta, mut left) = (meta::read(&disk, Path::new(DIR)).unwrap().unwrap(), 0);
            leftovers(&disk, &Path::new(DIR).join("wal"), &meta, place, |_| {
                left += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(left, 0, "seed {seed}: an interrupted truncation is finished");
        }
    }

    #[test]
    fn the_timeline_rises_at_the_start_after_a_truncation_of_records_that_readers_saw() {
        let disk = scene(&[5, 5, 5], 3);
        let timeline = |seen| reopen(&disk.copy(), seen, |_| Ok(())).unwrap().meta.meta().timeline;
        assert_eq!(timeline(Lsn(15)), Timeline(1));
        let mut meta = MetaFile::open(&disk, Path::new(DIR)).unwrap();
        meta.update(Meta { clean: true, ..*meta.meta() }).unwrap();
        cut_behind(&disk, 2).unwrap();
        assert_eq!((timeline(Lsn(10)), timeline(Lsn(11)), timeline(Lsn(15))), (Timeline(1), Timeline(2), Timeline(2)));
        assert!(!meta::read(&disk, Path::new(DIR)).unwrap().unwrap().clean, "the store is no longer marked clean");
    }

    #[test]
    fn every_flipped_byte_and_every_length_of_a_kept_tail_is_refused() {
        let disk = scene(&[1, 2, 3, 1], 4);
        let path = cut_behind(&disk, 1).unwrap().kept_in.unwrap();
        let whole = disk.contents(&path).unwrap();
        let refused = |bytes: Vec<u8>| {
            disk.overwrite(&path, bytes);
            read(&disk, &path, |_| Ok(())).unwrap_err()
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            let error = refused(bytes);
            assert!(matches!(error, Error::Corrupt { .. } | Error::Foreign { .. }), "byte {at}: {error}");
        }
        for len in 0..whole.len() {
            let error = refused(whole[..len].to_vec());
            assert!(matches!(error, Error::Corrupt { .. } | Error::Foreign { .. }), "length {len}: {error}");
        }
        let mut head: Head = bytemuck::pod_read_unaligned(&whole[..64]);
        (head.version, head.crc) = (1, 0);
        head.crc = crc32c::crc32c(bytemuck::bytes_of(&head));
        assert!(matches!(refused(bytemuck::bytes_of(&head).to_vec()), Error::Version { found: 1, .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn reading_truncated_frames_is_total(mut words in proptest::collection::vec(any::<u64>(), 0..60), sealed in 0u8..3, far in any::<bool>()) {
            // Headers with valid CRCs and arbitrary fields.
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
            for (n, part) in bytes.chunks_exact_mut(64).enumerate().take(usize::from(sealed)) {
                if n == 0 {
                    let mut head: Head = bytemuck::pod_read_unaligned(part);
                    (head.magic, head.version, head.crc) = (MAGIC, VERSION, 0);
                    head.crc = crc32c::crc32c(bytemuck::bytes_of(&head));
                    part.copy_from_slice(bytemuck::bytes_of(&head));
                } else {
                    let mut header: Header = bytemuck::pod_read_unaligned(part);
                    (header.magic, header.version, header.frame_type, header.len) = (format::FRAME_MAGIC, 1, 3, 0);
                    header.payload_crc = 0;
                    if far { header.index = FrameIndex(u64::MAX); }
                    header.seal();
                    part.copy_from_slice(bytemuck::bytes_of(&header));
                }
            }
            let disk = SimDisk::new();
            disk.open(Path::new("/f"), Open::CreateNew).unwrap();
            disk.overwrite(Path::new("/f"), bytes.to_vec());
            prop_assert!(read(&disk, Path::new("/f"), |_| Ok(())).is_err());
        }

        #[test]
        fn truncation_of_any_log_anywhere_with_any_fault_ends_as_the_truncated_log(
            counts in proptest::collection::vec(1u64..700, 2..14),
            new in proptest::collection::vec(1u64..700, 1..6),
            (synced, last_kept) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            (call, seed, kind, is_started) in (1u64..60, any::<u32>(), 0usize..4, any::<bool>()),
        ) {
            let disk = scene(&counts, synced.index(counts.len() + 1));
            if is_started {
                frames(&disk).unwrap();
            }
            let other = ErrorKind::Other;
            let fault = [Fault::PowerLoss, Fault::Once(other), Fault::Short(other), Fault::Forget(other)][kind];
            interrupt(&disk, last_kept.index(counts.len()), call, fault, u64::from(seed), &new);
        }
    }

    #[test]
    fn many_truncations_in_a_row_leave_one_log() {
        for seed in 0..20 {
            let (mut rng, disk) = (SimRng::new(seed), SimDisk::new());
            let mut expected: Vec<Id> = Vec::new();
            for term in 1..12 {
                let counts: Vec<u64> = (0..1 + rng.below(6)).map(|_| 1 + rng.below(600)).collect();
                expected.extend(extend(&disk, term, &counts, rng.below(7) as usize).unwrap());
                let last_kept = rng.below(expected.len() as u64 + 1) as usize;
                cut_behind(&disk, last_kept).unwrap();
                expected.truncate(last_kept);
                assert_eq!(frames(&disk).unwrap().0, expected, "seed {seed}, term {term}");
            }
        }
    }
}
