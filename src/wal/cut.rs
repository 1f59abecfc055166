//! Owns: cutting a log behind a frame, because what follows is not what the leader's log has, and keeping what is cut.
//!
//! ```text
//! STORE/divergent/<term>-<index>.wal   0 magic u64 · version u32 · crc u32 (of the header with this zero)
//!                                     16 store id u128 · first index u64 · frames u64 · records u64 · bytes u64
//!                                     64 the frames, byte for byte, without pads
//! ```
//!
//! What must hold: at every moment the disk has the log as it was or the log that is cut, or one that ends between the
//! two: what is known durable is lowered before anything goes; no file is shortened or renamed, because readers map
//! them. A cut that was interrupted is begun again by whoever finds that the logs differ, and ends the same.

use std::path::{Path, PathBuf};

use super::format::{
    Chain, EVIDENCE_OFFSETS, Evidence, FrameType, HEADER_LEN, Header, SEGMENT_HEAD_LEN, segment_first, segment_name,
};
use super::meta::{Meta, MetaFile};
use super::reader::{evidence, scan};
use crate::disk::{Disk, Open, publish};
use crate::error::{Error, Result};
use crate::lsn::{FrameIndex, Lsn, Position};

/// Directory of what was cut, in the store directory.
pub const DIVERGENT: &str = "divergent";
const MAGIC: u64 = u64::from_le_bytes(*b"TAPEDIVG");
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Head {
    magic: u64,
    version: u32,
    crc: u32,
    store_id: [u64; 2],
    first_index: u64,
    frames: u64,
    records: u64,
    bytes: u64,
}

const _: () = assert!(size_of::<Head>() == 64);

/// What was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// LSN of the first of these, or that the next record will have.
    pub first_lsn: Lsn,
    /// The file that keeps them; none if there was nothing to cut.
    pub kept_in: Option<PathBuf>,
}

/// The tail of a log behind a frame.
struct Tail {
    /// Where the log ends when it is cut.
    at: Option<Chain>,
    headers: Vec<Header>,
    end: Chain,
}

/// Cuts the log of the store in `dir` behind frame `last_kept`. Nobody serves the store; `from` is its checkpoint. The next
/// start finds the shorter log, and raises the timeline if readers have seen what is gone.
///
/// # Errors
/// [`Error::Invalid`] if files of history hold records behind that frame: then the store has to be made anew from
/// another host; as [`scan`]; [`Error::Io`]. The log is then as it was, or shorter by some of what is to be cut.
pub fn cut(disk: &dyn Disk, dir: &Path, from: Chain, last_kept: FrameIndex) -> Result<Cut> {
    if last_kept.0 + 1 < from.index.0 {
        let reason = format!("frame {last_kept} is before the checkpoint, which begins with frame {}", from.index);
        return Err(Error::invalid("cut of the log", reason));
    }
    let mut meta = MetaFile::open(disk, dir)?;
    let (wal, size) = (dir.join(super::DIR), meta.meta().segment_size);
    let tail = read_tail(disk, &wal, meta.meta(), from, last_kept)?;
    let Some(at) = tail.at else {
        return Ok(Cut { frames: 0, records: 0, first_lsn: tail.end.lsn, kept_in: None });
    };
    let kept_in = keep(disk, dir, meta.meta(), &wal, &tail.headers)?;
    let durable = Evidence { seq: meta.meta().durable.seq, ..Evidence::of(&at) };
    if meta.meta().durable.position > at.position {
        meta.update(Meta { durable, clean: false, ..*meta.meta() })?;
    }
    let first = Position(at.position.0 / size * size);
    let begins = at.position.0 == first.0 + SEGMENT_HEAD_LEN;
    let mut firsts: Vec<_> = disk.list(&wal)?.iter().filter_map(|n| segment_first(n)).collect();
    firsts.sort_unstable();
    // From the end, so that what is left is always one log; whose evidence says what is in it.
    for gone in firsts.iter().rev().filter(|f| f.0 > first.0 || (begins && f.0 == first.0)) {
        disk.remove(&wal.join(segment_name(*gone)))?;
        disk.sync_dir(&wal)?;
    }
    if !begins {
        shorten(disk, &wal.join(segment_name(first)), first, at, evidence(disk, &wal, meta.meta(), from)?.seq)?;
    }
    let frames = tail.headers.iter().filter(|h| h.kind() != FrameType::Pad);
    let (count, records) = frames.fold((0, 0), |(n, r), h| (n + 1, r + h.records()));
    Ok(Cut { frames: count, records, first_lsn: at.lsn, kept_in })
}

fn read_tail(disk: &dyn Disk, wal: &Path, meta: &Meta, from: Chain, last_kept: FrameIndex) -> Result<Tail> {
    let mut headers: Vec<Header> = Vec::new();
    let end = scan(disk, wal, meta, from, Open::Read, |frame| {
        if frame.header.index > last_kept {
            headers.push(frame.header);
        }
        Ok(())
    })?;
    // A pad alone behind the last frame is as good as its end.
    let is_whole = headers.iter().all(|h| h.kind() == FrameType::Pad);
    let at = headers.first().filter(|_| !is_whole).map(Header::place);
    Ok(Tail { at, headers, end: end.chain })
}

/// Keeps the frames of `headers` in a file of their own, durably; none if there are no frames.
fn keep(disk: &dyn Disk, dir: &Path, meta: &Meta, wal: &Path, headers: &[Header]) -> Result<Option<PathBuf>> {
    let frames: Vec<_> = headers.iter().filter(|h| h.kind() != FrameType::Pad).collect();
    let Some(first) = frames.first() else { return Ok(None) };
    let mut body = Vec::new();
    for header in &frames {
        let segment = Position(header.position.0 / meta.segment_size * meta.segment_size);
        let file = disk.open(&wal.join(segment_name(segment)), Open::Read)?;
        let start = body.len();
        body.resize(start + header.total_len() as usize, 0);
        file.read_at(body.get_mut(start..).unwrap_or(&mut []), header.position.0 - segment.0)?;
    }
    let mut head = Head {
        magic: MAGIC,
        version: VERSION,
        crc: 0,
        store_id: [meta.store_id as u64, (meta.store_id >> 64) as u64],
        first_index: first.index.0,
        frames: frames.len() as u64,
        records: frames.iter().map(|h| h.records()).sum(),
        bytes: body.len() as u64,
    };
    head.crc = crc32c::crc32c(bytemuck::bytes_of(&head));
    let kept = dir.join(DIVERGENT);
    disk.create_dir(&kept)?;
    disk.sync_dir(dir)?;
    for attempt in 0..u32::MAX {
        let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
        let path = kept.join(format!("{}-{}{suffix}.wal", first.term.0, first.index.0));
        if disk.exists(&path)? {
            // Of a cut that was interrupted when it had kept more; or of another one.
            let file = disk.open(&path, Open::Read)?;
            let mut before = vec![0; body.len()];
            if file.read_at(&mut before, HEADER_LEN)? == body.len() && before == body {
                return Ok(Some(path));
            }
            continue;
        }
        let mut bytes = bytemuck::bytes_of(&head).to_vec();
        bytes.append(&mut body);
        publish(disk, &path, &bytes)?;
        return Ok(Some(path));
    }
    Ok(None)
}

/// Lowers the evidence of the segment at `path`, and then ends the log in it at `at`.
fn shorten(disk: &dyn Disk, path: &Path, first: Position, at: Chain, seq: u64) -> Result<()> {
    let file = disk.open(path, Open::Write)?;
    for (more, offset) in (1..).zip(EVIDENCE_OFFSETS) {
        file.write_at(&Evidence { seq: seq + more, ..Evidence::of(&at) }.to_bytes(), offset)?;
    }
    file.sync()?;
    // What lies behind it cannot be joined to what is written here next: it does not continue that.
    file.write_at(&[0; 4], at.position.0 - first.0)?;
    file.sync()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::*;
    use super::*;
    use crate::disk::sim::{Fault, SimDisk, SimRng};
    use crate::lsn::{Epoch, PubSeq, PublisherId, Term};
    use crate::record::{RecordRef, Trade};

    const DIR: &str = "/s";
    const CREATE: Create = Create { store_id: 77, segment_size: format::SEGMENT_SIZE_MIN, now: Ts(1) };

    fn trades(from: u64, count: u64) -> FrameBuilder {
        let mut frame = FrameBuilder::new();
        for id in from..from + count {
            let trade = Trade { trade_id: id, ..Trade::default() };
            frame.push_records(PublisherId(1), Epoch(1), PubSeq(id + 1), 1, RecordRef::of(&trade).words());
        }
        frame
    }

    /// Appends frames of `counts` trades in `term` and syncs them; how many frames the log has then.
    fn extend(disk: &SimDisk, term: u32, counts: &[u64]) -> Result<u64> {
        create_if_absent(disk, Path::new(DIR), CREATE)?;
        let mut log = open(Arc::new(disk.clone()), Path::new(DIR), Chain::begin(77), 0, Lsn(0), |_| Ok(()))?;
        log.writer.set_term(Term(term));
        for count in counts {
            assert!(log.writer.ready()?);
            let from = log.writer.chain().lsn.0;
            let appended = log.writer.append(&mut trades(from, *count), FrameType::Data, Ts(u64::from(term)))?;
            appended.opened.into_iter().for_each(|segment| log.syncer.opened(segment));
        }
        log.syncer.sync(log.writer.end())?;
        log.syncer.record()?;
        Ok(log.writer.chain().index.0 - 1)
    }

    /// Index and CRC of each frame that a start finds.
    fn frames(disk: &SimDisk) -> Result<Vec<(u64, u32)>> {
        let mut found = Vec::new();
        open(Arc::new(disk.clone()), Path::new(DIR), Chain::begin(77), 0, Lsn(0), |frame| {
            if frame.header.kind() != FrameType::Pad {
                found.push((frame.header.index.0, frame.header.header_crc));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Frames of many sizes over several segments, and behind which frame they are cut.
    fn scene(seed: u64) -> (SimDisk, Vec<u64>, u64) {
        let disk = SimDisk::new();
        let mut rng = SimRng::new(seed);
        let counts: Vec<u64> = (0..3 + rng.below(12)).map(|_| 1 + rng.below(600)).collect();
        let frames = extend(&disk, 1, &counts).unwrap();
        let last_kept = 1 + rng.below(frames - 1);
        (disk, counts, last_kept)
    }

    #[test]
    fn power_loss_or_a_failed_call_anywhere_in_a_cut_leaves_a_log_that_the_next_cut_ends_where_it_should() {
        for seed in 0..12 {
            let (disk, _, last_kept) = scene(seed);
            let before = frames(&disk).unwrap();
            let cut_now = |disk: &SimDisk| cut(disk, Path::new(DIR), Chain::begin(77), FrameIndex(last_kept));
            let mut call = 1;
            loop {
                let broken = disk.copy();
                let fault = if seed % 2 == 0 { Fault::PowerLoss } else { Fault::Once(std::io::ErrorKind::Other) };
                broken.set_fault(broken.calls() + call, fault);
                let outcome = cut_now(&broken);
                broken.clear_faults();
                let after = if seed % 2 == 0 { broken.power_loss(seed * 1000 + call) } else { broken };
                let found = frames(&after).unwrap();
                assert!(found.len() as u64 >= last_kept && found == before[..found.len()], "seed {seed}, call {call}");
                cut_now(&after).unwrap();
                assert_eq!(frames(&after).unwrap(), before[..last_kept as usize], "seed {seed}, call {call}");
                // What is written on it is what is read, whatever lies behind.
                let last = extend(&after, 2, &[1 + call % 50]).unwrap();
                let again = frames(&after.power_loss(call)).unwrap();
                assert_eq!((again.len() as u64, last), (last_kept + 1, last_kept + 1), "seed {seed}, call {call}");
                if outcome.is_ok() {
                    break;
                }
                call += 1;
            }
            assert!(call > 5, "a cut makes more calls than {call}");
        }
    }

    #[test]
    fn what_is_cut_is_kept_byte_for_byte_and_what_files_hold_is_not_cut() {
        for seed in 0..30 {
            let (disk, counts, last_kept) = scene(seed);
            let before = frames(&disk).unwrap();
            let done = cut(&disk, Path::new(DIR), Chain::begin(77), FrameIndex(last_kept)).unwrap();
            let gone = &counts[last_kept as usize..];
            assert_eq!((done.frames, done.records), (gone.len() as u64, gone.iter().sum()), "seed {seed}");
            let kept = disk.contents(&done.kept_in.unwrap()).unwrap();
            let head: Head = bytemuck::pod_read_unaligned(&kept[..64]);
            assert_eq!((head.first_index, head.frames, head.bytes as usize), (last_kept + 1, done.frames, kept.len() - 64));
            let mut rest = &kept[64..];
            for (index, crc) in &before[last_kept as usize..] {
                let header = Header::parse(rest).unwrap();
                assert_eq!((header.index.0, header.header_crc), (*index, *crc));
                rest = &rest[header.total_len() as usize..];
            }
            let again = cut(&disk, Path::new(DIR), Chain::begin(77), FrameIndex(last_kept)).unwrap();
            assert_eq!((again.frames, again.kept_in), (0, None), "nothing is left to cut");
            let from = Chain { index: FrameIndex(last_kept + 2), ..Chain::begin(77) };
            let refused = cut(&disk, Path::new(DIR), from, FrameIndex(last_kept));
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        }
    }
}
