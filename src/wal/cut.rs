//! Owns: cutting a log behind a frame, because what follows is not what the leader's log has, and keeping what is cut.
//!
//! ```text
//! STORE/divergent/<term>-<index>.wal   0 magic u64 · version u32 · crc u32 (of the header with this zero)
//!                                     16 store id u128 · position u64 · first index u64 · term u32 · frames u32
//!                                     56 records u64
//!                                     64 the frames, byte for byte, without pads
//! ```
//!
//! What must hold: at every moment the disk has the log as it was or the log that is cut, or one that ends between the
//! two: what stays is durable before it is said to be, what is known durable is lowered before anything goes, and what
//! goes is kept before that. No file is shortened or renamed, because readers map them. A cut that was interrupted is
//! begun again by whoever finds that the logs differ, and ends the same, to the byte: a pad behind the last frame goes
//! too, because the leader's next frame may stand in its place.

use std::path::{Path, PathBuf};

use super::format::{
    Bad, Chain, EVIDENCE_OFFSETS, Evidence, FrameType, HEADER_LEN, Header, SEGMENT_HEAD_LEN, segment_first, segment_name,
};
use super::meta::{Meta, MetaFile};
use super::reader::{Frame, next_frame, scan};
use super::segment::Window;
use crate::disk::{Disk, DiskFile, Open, publish};
use crate::error::{Error, Result, demand};
use crate::lsn::{FrameIndex, Lsn, Position, Term};

/// Directory of what was cut, in the store directory.
pub const DIVERGENT: &str = "divergent";
const MAGIC: u64 = u64::from_le_bytes(*b"TAPEDIVG");
// Version 1 had bytes where there is position and term now.
const VERSION: u32 = 2;
/// More than any number of a frame: what is less can be counted on without an overflow.
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
    /// Of the frames `headers`, of which `first` is the first.
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

    /// The header in `bytes`, of the file `path`; neither is trusted.
    fn parse(bytes: &[u8], path: &Path) -> Result<Head> {
        let (path, mut raw) = (path.to_path_buf(), [0; HEADER_LEN as usize]);
        raw.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let head: Head = bytemuck::cast(raw);
        if head.magic != MAGIC {
            return Err(Error::Foreign { path, what: "file of cut frames", found: head.magic });
        }
        let crc = crc32c::crc32c(bytemuck::bytes_of(&Head { crc: 0, ..head }));
        let sealed = demand("header CRC of cut frames", u64::from(crc), u64::from(head.crc));
        sealed.map_err(|bad| corrupt(&path, 0, Lsn::NONE, bad))?;
        if head.version != VERSION {
            return Err(Error::Version { path, found: head.version, supported: VERSION });
        }
        Ok(head)
    }
}

/// What was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// LSN of the first of these, or that the next record will have.
    pub first_lsn: Lsn,
    /// LSN of the last of these; less than the first if there are none.
    pub last_lsn: Lsn,
    /// The file that keeps them, and, if a cut of the same frames was interrupted, may keep more that followed; none if
    /// there was no frame to cut.
    pub kept_in: Option<PathBuf>,
}

/// What a file of cut frames says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergent {
    /// The store in whose log they were.
    pub store_id: u128,
    /// Where the first of them was.
    pub position: Position,
    /// Its number.
    pub first_index: FrameIndex,
    /// Its term.
    pub term: Term,
    /// How many they are.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
}

/// The tail of a log behind a frame.
struct Tail {
    /// Where the log ends when it is cut; none if it ends before.
    at: Option<Chain>,
    /// What is to be cut, pads too.
    headers: Vec<Header>,
    end: Chain,
    /// Number of the last writing of evidence.
    seq: u64,
}

/// Cuts the log of the store in `dir` behind frame `last_kept`. Nobody serves the store, and the caller holds its lock;
/// `from` is its checkpoint. What stays is durable afterwards. The next start finds the shorter log, and raises the
/// timeline if readers have seen what is gone.
///
/// # Errors
/// [`Error::Invalid`] if files of history hold records behind that frame: then the store has to be made anew from
/// another host; as [`scan`]; [`Error::Io`]. The log is then as it was, or shorter by some of what is to be cut.
pub fn cut(disk: &dyn Disk, dir: &Path, from: Chain, last_kept: FrameIndex) -> Result<Cut> {
    if last_kept.0.saturating_add(1) < from.index.0 {
        let reason = format!("frame {last_kept} is before the checkpoint, which begins with frame {}", from.index);
        return Err(Error::invalid("cut of the log", reason));
    }
    let mut meta = MetaFile::open(disk, dir)?;
    let (wal, size) = (dir.join(super::DIR), meta.meta().segment_size);
    // What is said to be durable below has to have a name.
    disk.sync_dir(&wal)?;
    let tail = read_tail(disk, &wal, meta.meta(), from, last_kept)?;
    let Some(at) = tail.at else { return Ok(nothing(tail.end.lsn)) };
    let first = Position(at.position.0 / size * size);
    let begins = at.position.0 == first.0 + SEGMENT_HEAD_LEN;
    let path = wal.join(segment_name(first));
    if tail.headers.is_empty() {
        // Of a cut that was interrupted there may be leavings.
        if !begins {
            erase(disk.open(&path, Open::Write)?.as_ref(), first, at.position, size)?;
        }
        return Ok(nothing(at.lsn));
    }
    let kept_in = keep(disk, dir, meta.meta(), &wal, &tail.headers)?;
    // Both slots: the other one would say more than there is if the newer became unreadable.
    for _ in 0..2 {
        meta.update(Meta { durable: Evidence::of(&at), clean: false, ..*meta.meta() })?;
    }
    let mut firsts: Vec<_> = disk.list(&wal)?.iter().filter_map(|n| segment_first(n)).collect();
    firsts.sort_unstable();
    // From the end, so that what is left is always one log; whose evidence says what is in it.
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
    Ok(Cut { frames, records, first_lsn: at.lsn, last_lsn: Lsn(at.lsn.0 + records - 1), kept_in })
}

/// Keeps what is behind frame `last_kept` of the log of the store in `dir` as [`cut`] does, and cuts nothing: for a log that
/// another is to take the place of. Gives the file, if there are frames.
///
/// # Errors
/// As [`cut`].
pub fn keep_tail(disk: &dyn Disk, dir: &Path, from: Chain, last_kept: FrameIndex) -> Result<Option<PathBuf>> {
    let meta = MetaFile::open(disk, dir)?;
    let wal = dir.join(super::DIR);
    let tail = read_tail(disk, &wal, meta.meta(), from, last_kept)?;
    keep(disk, dir, meta.meta(), &wal, &tail.headers)
}

/// That there was nothing to cut; the next record will be `next`.
fn nothing(next: Lsn) -> Cut {
    Cut { frames: 0, records: 0, first_lsn: next, last_lsn: Lsn(next.0 - 1), kept_in: None }
}

/// What is behind frame `last_kept`; everything before it is durable afterwards.
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
    Ok(Tail { at, headers, end, seq: found.evidence.seq })
}

/// Keeps the frames of `headers` in a file of their own, durably; none if there are no frames.
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
            // Its name may never have become durable.
            disk.sync_dir(&kept)?;
            return Ok(Some(path));
        }
        attempt += 1;
    }
}

/// Whether the file `path` keeps what `bytes` would, and perhaps more that followed: of a cut that was interrupted.
fn has(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<bool> {
    let file = disk.open(path, Open::Read)?;
    let mut found = vec![0; bytes.len()];
    let read = file.read_at(&mut found, 0)?;
    let body = |bytes: &[u8]| bytes.get(HEADER_LEN as usize..).map(<[u8]>::to_vec);
    Ok(read == bytes.len() && Head::parse(&found, path).is_ok() && body(&found) == body(bytes))
}

/// Says in both slots of a segment that what is before `at` is durable, and no more.
fn lower(file: &dyn DiskFile, at: Chain, seq: u64) -> Result<()> {
    for (more, offset) in (1..).zip(EVIDENCE_OFFSETS) {
        file.write_at(&Evidence { seq: seq + more, ..Evidence::of(&at) }.to_bytes(), offset)?;
    }
    file.sync()
}

/// Takes from every frame at or behind `at`, in the segment that begins at `first`, what makes it one.
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

/// Shows every frame that the file `path` keeps to `visit`, each checked as in the log.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Version`]; [`Error::Corrupt`] at the first frame that is damaged, of which those before
/// have been shown, or if some are absent; [`Error::Io`]; whatever `visit` returns.
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
        // Where segments ended is not kept: the next frame says where it was.
        let mut next = place;
        next.advance(&header, NUMBER_LIMIT);
        chain = Some(next);
    }
    let lsn = chain.map_or(Lsn::NONE, |c| c.lsn);
    let all = demand("cut frames", u64::from(head.frames), frames);
    let all = all.and_then(|()| demand("records of cut frames", head.records, records));
    all.map_err(|bad| corrupt(path, offset, lsn, bad))?;
    let [low, high] = head.store_id;
    let store_id = u128::from(low) | u128::from(high) << 64;
    let Head { position, first_index, term, .. } = head;
    Ok(Divergent { store_id, position, first_index, term, frames, records })
}

/// The log before the frame of the header `bytes`, which is the first by `head` or is next in `chain`.
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
        demand("position of the first cut frame", head.position.0, header.position.0)?;
        demand("index of the first cut frame", head.first_index.0, header.index.0)?;
        demand("term of the first cut frame", u64::from(head.term.0), u64::from(header.term.0))?;
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
    /// Frames of 38, 25 and 13 kB, and small ones: three segments, which end with pads.
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

    /// Appends frames of `counts` trades in `term`, of which the first `synced` are synced and recorded so.
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

    /// The frames that a start finds, and where the log ends then.
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

    fn cut_behind(disk: &SimDisk, last_kept: usize) -> Result<Cut> {
        cut(disk, Path::new(DIR), Chain::begin(77), FrameIndex(last_kept as u64))
    }

    /// Where the frame behind `last_kept` begins, or the pad before it.
    fn place_behind(disk: &SimDisk, last_kept: usize) -> Chain {
        let (meta, mut place) = (meta::read(disk, Path::new(DIR)).unwrap().unwrap(), None);
        scan(disk, &Path::new(DIR).join(super::super::DIR), &meta, Chain::begin(77), Open::Read, |frame| {
            place = place.or_else(|| (frame.header.index.0 > last_kept as u64).then(|| frame.header.place()));
            Ok(())
        })
        .unwrap();
        place.unwrap()
    }

    /// Whether the disk says that all `count` frames are durable.
    fn is_durable(disk: &SimDisk, count: usize) -> bool {
        let meta = meta::read(disk, Path::new(DIR)).unwrap().unwrap();
        let known = evidence(disk, &Path::new(DIR).join("wal"), &meta, Chain::begin(77)).unwrap();
        known.index.0 == count as u64
    }

    /// Where a log ends, without the term and the time of what was there.
    fn spot(chain: Chain) -> (Position, FrameIndex, Lsn, u32) {
        (chain.position, chain.index, chain.lsn, chain.prev_crc)
    }

    /// A cut in which `fault` comes at `call`, a start or none behind it, the cut again, and frames of a higher term on
    /// it when the power goes. Whether the first cut was over before the fault.
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
            assert_eq!(kept.frames as usize, before.len() - last_kept, "{what}: what goes has been kept");
        }
        if outcome.is_ok() {
            assert_eq!(found.len(), last_kept, "{what}: what was said to be cut stays cut");
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
        assert_eq!(again, all[..again.len()], "{what}: no frame that was cut comes back");
        outcome.is_ok()
    }

    /// [`interrupt`] at every call of a cut.
    fn interrupt_everywhere(disk: &SimDisk, last_kept: usize, fault: Fault, seeds: u64) {
        // As long as what was cut, shorter frames, longer ones.
        let news = [&COUNTS[last_kept.min(COUNTS.len() - 2)..], &[1, 2, 3], &[600; 8]];
        for call in 1.. {
            let seeds = (0..seeds).map(|seed| call * 31 + seed);
            let open = seeds.filter(|seed| !interrupt(disk, last_kept, call, fault, *seed, news[*seed as usize % 3]));
            if open.count() == 0 {
                assert!(call > 5, "a cut makes more calls than {call}");
                return;
            }
        }
    }

    #[test]
    fn power_loss_at_any_call_of_a_cut_leaves_a_log_that_the_next_cut_ends_where_it_should() {
        let disk = scene(&COUNTS, COUNTS.len());
        // After a start `store.meta` says too that everything is durable.
        frames(&disk).unwrap();
        (1..COUNTS.len()).for_each(|last_kept| interrupt_everywhere(&disk, last_kept, Fault::PowerLoss, 3));
    }

    #[test]
    fn a_failed_call_of_a_cut_leaves_a_log_that_the_next_cut_ends_where_it_should() {
        let disk = scene(&COUNTS, COUNTS.len());
        for last_kept in 1..COUNTS.len() {
            interrupt_everywhere(&disk, last_kept, Fault::Once(ErrorKind::Other), 2);
        }
    }

    #[test]
    fn a_cut_of_what_only_the_cache_has_claims_nothing_that_the_disk_does_not_have() {
        for synced in [0, 1, 5, 12] {
            let disk = scene(&COUNTS, synced);
            for last_kept in [2, 4, 6, 12, 17] {
                interrupt_everywhere(&disk, last_kept, Fault::PowerLoss, 4);
            }
        }
    }

    #[test]
    fn a_cut_may_be_at_a_segments_beginning_and_at_its_end_and_of_everything() {
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
        assert!(pads >= 2 && begins >= 1, "{pads} cuts at a pad, {begins} at a segment's beginning");
    }

    #[test]
    fn a_pad_alone_behind_the_last_frame_goes_because_the_leaders_next_frame_may_stand_there() {
        let disk = scene(&COUNTS, COUNTS.len());
        let (behind, place) = (1..COUNTS.len())
            .map(|n| (n, place_behind(&disk, n)))
            .find(|(n, p)| place_behind(&disk, n - 1).position.0 / SIZE == p.position.0 / SIZE && is_pad(&disk, p.position))
            .unwrap();
        // The process died after it had filled the segment, or a cut after it had removed the others.
        for first in 1..3 {
            let path = Path::new(DIR).join("wal").join(segment_name(Position((place.position.0 / SIZE + first) * SIZE)));
            if disk.exists(&path).unwrap() {
                disk.remove(&path).unwrap();
            }
        }
        let mut meta = MetaFile::open(&disk, Path::new(DIR)).unwrap();
        meta.update(Meta { durable: Evidence::default(), ..*meta.meta() }).unwrap();
        assert_eq!(spot(frames(&disk.copy()).unwrap().1), spot(place), "a start takes it away too");
        let done = cut_behind(&disk, behind).unwrap();
        assert_eq!((done.frames, done.records, done.kept_in), (0, 0, None));
        assert_eq!(spot(frames(&disk).unwrap().1), spot(place));
    }

    fn is_pad(disk: &SimDisk, at: Position) -> bool {
        let bytes = disk.contents(&Path::new(DIR).join("wal").join(segment_name(Position(at.0 / SIZE * SIZE)))).unwrap();
        Header::parse(&bytes[(at.0 % SIZE) as usize..]).is_ok_and(|h| h.kind() == FrameType::Pad)
    }

    #[test]
    fn what_is_cut_is_kept_byte_for_byte_and_read_again() {
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
            let said = read(&disk, &path, |frame| {
                found.push((frame.header.index.0, frame.header.header_crc));
                let Body::Data(data) = &frame.body else { panic!("{frame:?}") };
                for record in crate::record::split(data.records) {
                    assert_eq!(record.unwrap().get::<Trade>().unwrap().trade_id, next);
                    next += 1;
                }
                Ok(())
            });
            let said = said.unwrap();
            assert_eq!((found.as_slice(), next), (&before[last_kept..], done.last_lsn.0 + 1));
            assert_eq!((said.store_id, said.first_index.0, said.term), (77, last_kept as u64 + 1, Term(1)));
            assert_eq!((said.frames, said.records), (done.frames, done.records));
            // Byte for byte: each lies in the file as it lay in the log.
            let kept = disk.contents(&path).unwrap();
            let mut rest = &kept[64..];
            while let Ok(header) = Header::parse(rest) {
                let segment = Position(header.position.0 / SIZE * SIZE);
                let was = whole.contents(&Path::new(DIR).join("wal").join(segment_name(segment))).unwrap();
                let (mine, after) = rest.split_at(header.total_len() as usize);
                assert!(was[(header.position.0 - segment.0) as usize..].starts_with(mine));
                rest = after;
            }
            assert!(rest.is_empty());
            let again = cut_behind(&disk, last_kept).unwrap();
            assert_eq!((again.frames, again.kept_in), (0, None), "nothing is left to cut");
        }
    }

    #[test]
    fn what_files_hold_is_not_cut_and_an_end_before_the_cut_is_left_alone() {
        let disk = scene(&[5, 5, 5], 3);
        let place = place_behind(&disk, 2);
        let cut_from = |last_kept| cut(&disk, Path::new(DIR), place, FrameIndex(last_kept));
        assert!(matches!(cut_from(1), Err(Error::Invalid { .. })));
        assert_eq!(frames(&disk).unwrap().0.len(), 3);
        assert_eq!(cut_from(u64::MAX).unwrap().frames, 0);
        assert_eq!(cut_from(9).unwrap().frames, 0);
        assert_eq!(cut_from(2).unwrap().records, 5, "behind the checkpoint everything may go");
        assert_eq!(spot(frames(&disk).unwrap().1), spot(place));
    }

    #[test]
    fn another_tail_at_the_same_place_does_not_take_the_place_of_what_is_kept() {
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
    fn what_an_interrupted_cut_has_kept_is_durable_before_the_next_one_cuts() {
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
    fn a_slot_of_store_meta_that_rots_after_a_cut_does_not_bring_the_higher_evidence_back() {
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
    fn a_frame_that_an_interrupted_cut_has_left_does_not_follow_another_of_its_size_and_term() {
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
                // Another's frame, where the first was that is gone.
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
        assert!(left > 5, "{left} times the chain alone kept it out");
    }

    #[test]
    fn no_frame_that_was_cut_is_taken_for_one_that_is_lost() {
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
            assert_eq!(left, 0, "seed {seed}: an interrupted cut is finished");
        }
    }

    #[test]
    fn the_timeline_rises_at_the_start_after_a_cut_of_what_readers_have_seen() {
        let disk = scene(&[5, 5, 5], 3);
        let timeline = |seen| reopen(&disk.copy(), seen, |_| Ok(())).unwrap().meta.meta().timeline;
        assert_eq!(timeline(Lsn(15)), Timeline(1));
        let mut meta = MetaFile::open(&disk, Path::new(DIR)).unwrap();
        meta.update(Meta { clean: true, ..*meta.meta() }).unwrap();
        cut_behind(&disk, 2).unwrap();
        assert_eq!((timeline(Lsn(10)), timeline(Lsn(11)), timeline(Lsn(15))), (Timeline(1), Timeline(2), Timeline(2)));
        assert!(!meta::read(&disk, Path::new(DIR)).unwrap().unwrap().clean, "what readers saw is asked for");
    }

    #[test]
    fn every_flipped_byte_and_every_length_of_a_file_of_cut_frames_is_named() {
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
        fn reading_cut_frames_is_total(mut words in proptest::collection::vec(any::<u64>(), 0..60), sealed in 0u8..3, far in any::<bool>()) {
            // Headers that are whole by themselves and say anything.
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
        fn any_frames_cut_anywhere_and_broken_anywhere_end_as_the_log_that_was_cut(
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
    fn many_cuts_one_after_the_other_leave_one_log() {
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
