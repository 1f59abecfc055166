//! Owns: reading the log from its files: one frame after the other, each checked against the chain, up to the first bytes that
//! do not continue it.
//!
//! What must hold: damage at or below the durable mark is corruption and is reported with its place. Damage above it is a torn
//! tail: everything from there on, valid frames too, is no part of the log, and [`super::open`] truncates it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control_entry::ControlEntry;
use super::format::{
    Bad, BadSegment, Chain, Data, DurableMark, FrameType, HEADER_LEN, Header, MARK_LEN, MARK_OFFSETS, SEGMENT_HEAD_LEN,
    SegmentHeader, segment_first, segment_name,
};
use super::meta::Meta;
use super::segment::Window;
use crate::disk::{Disk, DiskFile, Open};
use crate::error::{Error, Result};
use crate::lsn::{Lsn, Position};
use crate::sabotage::{self, Sabotage};

/// A checked frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Header of the frame.
    pub header: Header,
    /// Payload of the frame.
    pub body: Body<'a>,
}

/// Checked payload of a frame.
#[derive(Debug)]
pub enum Body<'a> {
    /// Records.
    Data(Data<'a>),
    /// Control entries.
    Control(Vec<ControlEntry>),
    /// A change of the cluster's membership, as `consensus` encodes it.
    Membership(&'a [u64]),
    /// No payload.
    Empty,
}

/// Place and reason of the end of a log before the end of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// File of the rejected frame.
    pub path: PathBuf,
    /// Offset of the rejected frame in the file.
    pub offset: u64,
    /// The check that failed.
    pub bad: Bad,
    /// Whether the bytes look like a frame of this log; else they are zeros or old frames of a reused segment.
    pub is_frame: bool,
}

/// End of the log.
pub struct End {
    /// Chain at the end: what the next frame's header must contain.
    pub chain: Chain,
    /// Highest durable mark.
    pub durable_mark: DurableMark,
    /// What follows the last accepted frame; `None` if nothing does.
    pub tail: Option<Tail>,
    /// Segment to append to; `None` if the next frame begins a new one.
    pub(super) segment: Option<(Position, Arc<dyn DiskFile>)>,
    /// Segments that begin at or after the end.
    pub(super) beyond: Vec<PathBuf>,
    /// Segments before the checkpoint.
    pub(super) passed: Vec<(Position, PathBuf)>,
}

struct Segment {
    first: Position,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: Result<(), BadSegment>,
}

/// Segments before the checkpoint.
type Passed = Vec<(Position, PathBuf)>;

/// Opens the segments of the log in `dir` that reach beyond `from`, in order. Returns them, the highest durable mark and the
/// other segments.
fn open_all(disk: &dyn Disk, dir: &Path, meta: &Meta, from: Chain, how: Open) -> Result<(Vec<Segment>, DurableMark, Passed)> {
    let (mut segments, mut passed) = (Vec::new(), Vec::new());
    let mut durable_mark = meta.durable;
    for first in disk.list(dir)?.iter().filter_map(|n| segment_first(n)) {
        let path = dir.join(segment_name(first));
        if first.0 + meta.segment_size <= from.position.0 {
            passed.push((first, path));
            continue;
        }
        let file: Arc<dyn DiskFile> = Arc::from(disk.open(&path, how)?);
        let (head, header) = read_head(file.as_ref(), meta, first)?;
        if header.is_ok() {
            let slots = MARK_OFFSETS.iter().filter_map(|&at| head.get(at as usize..at as usize + MARK_LEN));
            durable_mark =
                slots.filter_map(DurableMark::parse).fold(durable_mark, |a, b| if b.position > a.position { b } else { a });
        }
        segments.push(Segment { first, path, file, header });
    }
    Ok((segments, durable_mark, passed))
}

/// Reads the first page of the segment that begins at `first`, and checks its header.
fn read_head(file: &dyn DiskFile, meta: &Meta, first: Position) -> Result<(Vec<u8>, Result<(), BadSegment>)> {
    let mut head = vec![0u8; SEGMENT_HEAD_LEN as usize];
    file.read_at(&mut head, 0)?;
    let header = SegmentHeader::new(meta.store_id, first, meta.segment_size).check(&head);
    Ok((head, header))
}

fn segment_error(path: &Path, lsn: Lsn, bad: &BadSegment) -> Error {
    let path = path.to_path_buf();
    match *bad {
        BadSegment::Foreign(found) => Error::Foreign { path, what: "log segment", found },
        BadSegment::Version(found) => Error::Version { path, found, supported: 1 },
        BadSegment::Bad(Bad { what, expected, found }) => Error::Corrupt { path, offset: 0, lsn, what, expected, found },
    }
}

/// The highest durable mark of the log in `dir`, at least the checkpoint `from`.
///
/// # Errors
/// [`Error::Io`].
pub fn durable_mark(disk: &dyn Disk, dir: &Path, meta: &Meta, from: Chain) -> Result<DurableMark> {
    let (_, durable_mark, _) = open_all(disk, dir, meta, from, Open::Read)?;
    Ok(durable_mark.max_with(from))
}

/// Drops the frames of the log above its durable mark from the system's cache, if their pages are clean: after a failed sync they
/// hold what the disk does not, and the next start does not keep that.
///
/// The rest of a segment stays cached: storage that starts meanwhile writes there, and each write would wait until the disk has
/// read a page. `figures`, which opens its store until storage serves it, ingested half as much (8.9 instead of 17 M records/s in
/// batches of 256) when whole segments were dropped.
///
/// # Errors
/// [`Error::Io`].
pub fn forget_unsynced(disk: &dyn Disk, dir: &Path, meta: &Meta, from: Chain) -> Result<()> {
    let mark = durable_mark(disk, dir, meta, from)?.position;
    for first in disk.list(dir)?.iter().filter_map(|name| segment_first(name)) {
        let start = mark.0.max(first.0 + SEGMENT_HEAD_LEN);
        let segment = disk.open(&dir.join(segment_name(first)), Open::Read)?;
        let mut end = start;
        while end < first.0 + meta.segment_size {
            let mut bytes = [0; HEADER_LEN as usize];
            segment.read_at(&mut bytes, end - first.0)?;
            // A reused segment has frames of other positions.
            match Header::parse(&bytes) {
                Ok(header) if header.position.0 == end => end += header.total_len(),
                _ => break,
            }
        }
        if end > start {
            segment.drop_cache(start - first.0..end - first.0)?;
        }
    }
    Ok(())
}

/// Reads the log in `dir` from `from` on, a checkpoint or its beginning, and passes each frame to `visit`.
///
/// With `how` = [`Open::Write`] it first syncs every segment above the durable mark and drops the clean pages from the cache,
/// so that it reads the content of the disk.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Missing`], [`Error::Foreign`], [`Error::Version`] for damage at or below the durable mark;
/// [`Error::Io`]; every error of `visit`.
pub fn scan(
    disk: &dyn Disk,
    dir: &Path,
    meta: &Meta,
    from: Chain,
    how: Open,
    visit: impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<End> {
    match examine(disk, dir, meta, from, how, visit)? {
        (_, Some(damage)) => Err(damage),
        (end, None) => Ok(end),
    }
}

/// As [`scan`], but returns the end together with the damage at or below the durable mark.
///
/// # Errors
/// [`Error::Io`]; every error of `visit`.
pub fn examine(
    disk: &dyn Disk,
    dir: &Path,
    meta: &Meta,
    from: Chain,
    how: Open,
    mut visit: impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<(End, Option<Error>)> {
    let (segments, durable_mark, passed) = open_all(disk, dir, meta, from, how)?;
    // A checkpoint covers durable frames only.
    let durable_mark = durable_mark.max_with(from);
    let mut damage = None;
    let mut end = End { chain: from, durable_mark, tail: None, segment: None, beyond: Vec::new(), passed };
    let mut is_begun = from.position.0 % meta.segment_size == SEGMENT_HEAD_LEN;
    for mut segment in segments {
        if damage.is_some()
            || end.tail.is_some()
            || segment.first.0 != end.chain.position.0 / meta.segment_size * meta.segment_size
        {
            end.beyond.push(segment.path);
            continue;
        }
        if how == Open::Write && segment.first.0 + meta.segment_size > durable_mark.position.0 {
            segment.file.sync()?;
            segment.file.drop_cache(0..u64::MAX)?;
            // The cache alone may have held the head too.
            segment.header = read_head(segment.file.as_ref(), meta, segment.first)?.1;
        }
        if let Err(bad) = &segment.header {
            if segment.first.0 + SEGMENT_HEAD_LEN < durable_mark.position.0 {
                damage = Some(segment_error(&segment.path, end.chain.lsn, bad));
            }
            // The head never became durable, so the roll to this segment does not count.
            end.beyond.push(segment.path);
            continue;
        }
        is_begun = true;
        end.tail = read_segment(&segment, meta, &mut end.chain, &mut visit)?;
        let full = end.chain.position.0 >= segment.first.0 + meta.segment_size;
        end.segment = (!full).then(|| (segment.first, segment.file.clone()));
    }
    let is_short = end.chain.position < durable_mark.position || !is_begun;
    if damage.is_none() && is_short && !sabotage::is(Sabotage::IgnoreDurableMark) {
        damage = Some(below_durable_mark(dir, meta, &end));
    }
    Ok((end, damage))
}

/// Reads the headers of the frames before `until`, a checkpoint, as far back as consecutive segments exist: for followers that
/// lag. It does not check payloads: the sender of a frame does.
///
/// # Errors
/// [`Error::Io`].
pub fn passed(disk: &dyn Disk, dir: &Path, meta: &Meta, until: Chain) -> Result<Vec<Header>> {
    let size = meta.segment_size;
    let mut firsts: Vec<_> = disk.list(dir)?.iter().filter_map(|n| segment_first(n)).collect();
    firsts.retain(|first| first.0 < until.position.0);
    firsts.sort_unstable();
    let mut kept: Vec<Header> = Vec::new();
    let mut chain: Option<Chain> = None;
    for first in firsts {
        let file = disk.open(&dir.join(segment_name(first)), Open::Read)?;
        let mut offset = SEGMENT_HEAD_LEN;
        while offset < size && first.0 + offset < until.position.0 {
            let mut bytes = [0; HEADER_LEN as usize];
            file.read_at(&mut bytes, offset)?;
            let header = Header::parse(&bytes).ok().filter(|h| h.position.0 == first.0 + offset);
            let Some(header) = header else { break };
            if chain.is_none_or(|c| c.check(&header).is_err()) {
                kept.clear();
                chain = Some(header.place());
            }
            if let Some(chain) = &mut chain {
                chain.advance(&header, size);
            }
            offset += header.total_len();
            kept.push(header);
        }
    }
    let meets = chain.is_some_and(|c| (c.position, c.index, c.prev_crc) == (until.position, until.index, until.prev_crc));
    Ok(if meets { kept } else { Vec::new() })
}

/// Passes every frame at or after `from` in the log in `dir` that is valid by itself to `visit`: the readable frames after
/// damage. It skips frames of terms before `from`'s, which earlier truncations left.
///
/// # Errors
/// [`Error::Io`]; every error of `visit`.
pub fn leftovers(
    disk: &dyn Disk,
    dir: &Path,
    meta: &Meta,
    from: Chain,
    mut visit: impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<()> {
    for first in disk.list(dir)?.iter().filter_map(|n| segment_first(n)) {
        let file = disk.open(&dir.join(segment_name(first)), Open::Read)?;
        let mut window = Window::new(file.as_ref());
        let mut offset = SEGMENT_HEAD_LEN.max(from.position.0.saturating_sub(first.0));
        while offset < meta.segment_size {
            let words = window.get(offset, HEADER_LEN as usize)?;
            let header = Header::parse(bytemuck::cast_slice(words)).ok();
            let Some(header) = header.filter(|h| h.position.0 == first.0 + offset && h.term >= from.term) else {
                offset += HEADER_LEN;
                continue;
            };
            let chain = header.place();
            match next_frame(&mut window, offset, meta.segment_size - offset, &chain)? {
                Ok(frame) => {
                    visit(&frame)?;
                    offset += header.total_len();
                }
                Err(_) => offset += HEADER_LEN,
            }
        }
    }
    Ok(())
}

/// The error for a log that ends before its durable mark.
fn below_durable_mark(dir: &Path, meta: &Meta, end: &End) -> Error {
    let lsn = end.chain.lsn;
    match &end.tail {
        Some(Tail { path, offset, bad: Bad { what, expected, found }, .. }) => {
            Error::Corrupt { path: path.clone(), offset: *offset, lsn, what, expected: *expected, found: *found }
        }
        None => {
            let first = end.chain.position.0 / meta.segment_size * meta.segment_size;
            Error::Missing { path: dir.join(segment_name(Position(first))), what: "it holds the next part of the log" }
        }
    }
}

fn read_segment(
    segment: &Segment,
    meta: &Meta,
    chain: &mut Chain,
    visit: &mut impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<Option<Tail>> {
    let mut window = Window::new(segment.file.as_ref());
    let end = segment.first.0 + meta.segment_size;
    while chain.position.0 < end {
        let offset = chain.position.0 - segment.first.0;
        let room = meta.segment_size - offset;
        match next_frame(&mut window, offset, room, chain)? {
            Ok(frame) => {
                visit(&frame)?;
                let header = frame.header;
                chain.advance(&header, meta.segment_size);
            }
            Err((bad, is_frame)) => return Ok(Some(Tail { path: segment.path.clone(), offset, bad, is_frame })),
        }
    }
    Ok(None)
}

/// The check that a rejected frame failed, and whether the bytes look like a frame of this log.
pub(super) type Rejected = (Bad, bool);

/// Reads the frame at `offset` of the file of `window`, at most `room` bytes, if it is the next one of `chain`.
pub(super) fn next_frame<'w>(
    window: &'w mut Window<'_>,
    offset: u64,
    room: u64,
    chain: &Chain,
) -> Result<Result<Frame<'w>, Rejected>> {
    let header = match Header::parse(bytemuck::cast_slice(window.get(offset, HEADER_LEN as usize)?)) {
        Ok(header) => header,
        Err(bad) => return Ok(Err((bad, bad.what != "frame magic"))),
    };
    if let Err(bad) = chain.check(&header) {
        // A valid frame of another position is an old frame of a reused segment.
        return Ok(Err((bad, header.position == chain.position)));
    }
    let total = header.total_len();
    let pad = header.kind() == FrameType::Pad;
    if total > room || (pad && total != room) {
        return Ok(Err((Bad { what: "frame length in its segment", expected: room, found: total }, true)));
    }
    if pad {
        return Ok(Ok(Frame { header, body: Body::Empty }));
    }
    let words = window.get(offset, total as usize)?;
    match body(&header, words) {
        Ok(body) => {
            register(&body)?;
            Ok(Ok(Frame { header, body }))
        }
        Err(_) if sabotage::is(Sabotage::ServeTornTail) => Ok(Ok(Frame { header, body: Body::Empty })),
        Err(bad) => Ok(Err((bad, true))),
    }
}

/// Registers the kinds that `body` defines: the frames after it may hold records of them.
fn register(body: &Body<'_>) -> Result<()> {
    let Body::Control(entries) = body else { return Ok(()) };
    entries.iter().try_for_each(|entry| match entry {
        ControlEntry::Kind(layout) => layout.register().map(drop),
        _ => Ok(()),
    })
}

/// Parses the frame `words` (header, payload, zeros) of another host. It does not check that the frame continues a log: the
/// append does. It does not register the kinds that the frame defines: the frame may never be appended.
///
/// # Errors
/// [`Error::Invalid`] with the check that failed.
pub fn parse(words: &[u64]) -> Result<Frame<'_>> {
    let bad = |Bad { what, expected, found }: Bad| {
        Error::invalid("frame of another host", format!("{what}: expected {expected}, found {found}"))
    };
    let header = Header::parse(bytemuck::cast_slice(words)).map_err(bad)?;
    if header.total_len() != words.len() as u64 * 8 || header.kind() == FrameType::Pad {
        let (expected, found) = (header.total_len(), words.len() as u64 * 8);
        return Err(bad(Bad { what: "frame length", expected, found }));
    }
    let body = body(&header, words).map_err(bad)?;
    Ok(Frame { header, body })
}

/// Checks the payload of the frame `words` and parses it.
fn body<'w>(header: &Header, words: &'w [u64]) -> Result<Body<'w>, Bad> {
    let payload = words.get(HEADER_LEN as usize / 8..).unwrap_or(&[]);
    let len = header.len as usize;
    let bytes: &[u8] = bytemuck::cast_slice(payload);
    let Some((used, zeros)) = bytes.split_at_checked(len) else {
        return Err(Bad { what: "frame bytes", expected: u64::from(header.len), found: bytes.len() as u64 });
    };
    let crc = crc32c::crc32c(used);
    if crc != header.payload_crc && !sabotage::is(Sabotage::SkipFrameCrc) {
        return Err(Bad { what: "payload CRC", expected: u64::from(header.payload_crc), found: u64::from(crc) });
    }
    if let Some(&byte) = zeros.iter().find(|&&b| b != 0) {
        return Err(Bad { what: "zeros after the payload", expected: 0, found: u64::from(byte) });
    }
    if !len.is_multiple_of(8) {
        return Err(Bad { what: "payload alignment", expected: 0, found: u64::from(header.len) });
    }
    let payload = payload.get(..len / 8).unwrap_or(&[]);
    Ok(match header.kind() {
        FrameType::Data => Body::Data(Data::parse(header, payload)?),
        FrameType::Control => Body::Control(ControlEntry::parse_all(header, payload)?),
        FrameType::Membership => Body::Membership(payload),
        FrameType::NoOp | FrameType::Pad => Body::Empty,
    })
}
