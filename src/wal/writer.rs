//! Owns: appending to the log ([`Writer`], in the ingest thread) and making it durable ([`Syncer`], in the sync thread).
//!
//! What must hold: bytes are written once, in order, never over durable ones. A failed write or sync is final for the process
//! (`Halted`), because the kernel drops pages that it could not write. A durable mark on disk never claims more than earlier
//! syncs have made durable.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{
    Bad, Chain, DurableMark, FrameType, HEADER_LEN, Header, MARK_OFFSETS, SEGMENT_HEAD_LEN, SegmentHeader, segment_name,
};
use super::frame::FrameBuilder;
use super::segment::{Spare, Spares};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result, demand};
use crate::lsn::{FrameIndex, Lsn, Position, Term};
use crate::sabotage::{self, Sabotage};
use crate::time::Ts;

/// First failure of a writer or syncer; every later call returns it again.
#[derive(Debug, Default)]
struct Latch(Option<(&'static str, String)>);

impl Latch {
    fn check(&self) -> Result<()> {
        match &self.0 {
            Some((op, cause)) => Err(Error::Halted { op, cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn guard<T>(&mut self, op: &'static str, result: Result<T>) -> Result<T> {
        result.map_err(|e| {
            self.0 = Some((op, e.to_string()));
            Error::Halted { op, cause: e.to_string() }
        })
    }
}

/// Frames that can be appended after one call of [`Writer::ready`].
pub const READY_FRAMES: u64 = 3;

// These frames cross the end of at most one segment.
const _: () = assert!(
    READY_FRAMES * (2 * HEADER_LEN + super::format::FRAME_PAYLOAD_MAX as u64)
        < super::format::SEGMENT_SIZE_MIN - SEGMENT_HEAD_LEN
);

/// Segment to which the log has rolled.
pub struct Opened {
    first: Position,
    file: Arc<dyn DiskFile>,
}

/// Outcome of an append.
pub struct Appended {
    /// Header of the frame.
    pub header: Header,
    /// End of the log after the frame: target of the sync that makes it durable.
    pub end: DurableMark,
    /// Segment that was begun for the frame; pass it to [`Syncer::opened`] first.
    pub opened: Option<Opened>,
}

/// Appends frames.
pub struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    segment_size: u64,
    chain: Chain,
    term: Term,
    segment: Option<(Position, Arc<dyn DiskFile>)>,
    spares: Spares,
    next: Option<Spare>,
    latch: Latch,
}

/// Parts of a new writer.
pub(super) struct Parts {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) store_id: u128,
    pub(super) segment_size: u64,
    pub(super) chain: Chain,
    pub(super) segment: Option<(Position, Arc<dyn DiskFile>)>,
}

impl Writer {
    pub(super) fn new(parts: Parts) -> Writer {
        let Parts { disk, dir, store_id, segment_size, chain, segment } = parts;
        let term = chain.term;
        let spares = Spares::Inline { next: 0 };
        Writer { disk, dir, store_id, segment_size, chain, term, segment, spares, next: None, latch: Latch::default() }
    }

    /// Sets the source of further segments.
    pub fn set_spares(&mut self, spares: Spares) {
        self.spares = spares;
    }

    /// Chain at the end of the log.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Term of new frames.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Sets the term of new frames; in `term` only this process numbers frames.
    ///
    /// # Panics
    /// If the term falls.
    pub fn set_term(&mut self, term: Term) {
        assert!(term >= self.term, "terms never fall: {term:?} after {:?}", self.term);
        self.term = term;
    }

    fn room(&self) -> u64 {
        match &self.segment {
            // After a frame that filled the segment to its last byte, the position is in the next one.
            Some((first, _)) => (first.0 + self.segment_size).saturating_sub(self.chain.position.0),
            None => 0,
        }
    }

    /// Whether [`READY_FRAMES`] frames of the largest size can be appended now. `false`: the next segment is not prepared yet.
    ///
    /// # Errors
    /// [`Error::Halted`] after a failed write; [`Error::Io`] if a segment had to be made and could not be (not final).
    pub fn ready(&mut self) -> Result<bool> {
        self.ready_for(READY_FRAMES * (2 * HEADER_LEN + super::format::FRAME_PAYLOAD_MAX as u64))
    }

    /// Whether frames of `most` bytes, without pads, can be appended now; `most` is at most the smallest segment's room.
    ///
    /// # Errors
    /// As [`Writer::ready`].
    pub fn ready_for(&mut self, most: u64) -> Result<bool> {
        self.latch.check()?;
        if self.room() < most && self.next.is_none() {
            self.next = self.spares.take(self.disk.as_ref(), &self.dir, self.segment_size)?;
            return Ok(self.next.is_some());
        }
        Ok(true)
    }

    /// Seals `frame` and appends it in one write. On success `frame` still holds runs and records. An `ingest_ts` before that
    /// of the last frame means that the clock was set back, and the frame gets that flag.
    ///
    /// # Errors
    /// [`Error::Halted`]: a write failed, now or before.
    ///
    /// # Panics
    /// If [`Writer::ready`] has not returned `true` before.
    pub fn append(&mut self, frame: &mut FrameBuilder, kind: FrameType, ingest_ts: Ts) -> Result<Appended> {
        self.latch.check()?;
        let opened = if frame.total_len() > self.room() { Some(self.roll(self.term, ingest_ts)?) } else { None };
        let (header, words) = frame.seal(kind, &self.chain, self.term, ingest_ts);
        let (first, file) = match &self.segment {
            Some((first, file)) => (*first, file),
            None => panic!("the log has no segment after it rolled"),
        };
        assert!(self.chain.check(&header).is_ok() && words.len() as u64 * 8 == header.total_len());
        let written = file.write_at(bytemuck::cast_slice(words), self.chain.position.0 - first.0);
        self.latch.guard("write of the log", written)?;
        frame.unpad(&header);
        self.chain.advance(&header, self.segment_size);
        Ok(Appended { header, end: self.end(), opened })
    }

    /// Checks that the frame of `header`, made by another host, continues this log.
    ///
    /// # Errors
    /// The first field that does not continue it.
    pub fn check(&self, header: &Header) -> std::result::Result<(), Bad> {
        self.check_all(std::iter::once(header))
    }

    /// Checks that the frames of `headers`, made by another host, continue this log in this order. Before a frame that begins a
    /// segment comes a pad, which each host writes itself.
    ///
    /// # Errors
    /// The first field of the first frame that does not continue it.
    pub fn check_all<'a>(&self, headers: impl IntoIterator<Item = &'a Header>) -> std::result::Result<(), Bad> {
        let (mut chain, mut room) = (self.chain, self.room());
        for header in headers {
            demand("frame with an index, not a pad", 0, u64::from(header.kind() == FrameType::Pad))?;
            if header.total_len() > room {
                let pad = if room > 0 { room + SEGMENT_HEAD_LEN } else { 0 };
                chain.position = Position(chain.position.0 + pad);
                room = self.segment_size - SEGMENT_HEAD_LEN;
            }
            chain.check(header)?;
            chain.advance(header, self.segment_size);
            room = room.saturating_sub(header.total_len());
        }
        Ok(())
    }

    /// Appends a frame of another host, byte for byte. The caller has parsed it, and [`Writer::check`] accepts it.
    ///
    /// # Errors
    /// [`Error::Halted`]: a write failed, now or before.
    ///
    /// # Panics
    /// If the frame does not continue the log, or [`Writer::ready_for`] has not returned `true` before.
    pub fn append_as_is(&mut self, header: &Header, words: &[u64]) -> Result<Appended> {
        self.latch.check()?;
        let continues = self.check(header);
        assert!(continues.is_ok() && words.len() as u64 * 8 == header.total_len(), "{continues:?}");
        // The leader's pad has the term and time of the frame that did not fit.
        let opened = if header.total_len() > self.room() { Some(self.roll(header.term, header.ingest_ts)?) } else { None };
        let (first, file) = match &self.segment {
            Some((first, file)) => (*first, file),
            None => panic!("the log has no segment after it rolled"),
        };
        let written = file.write_at(bytemuck::cast_slice(words), self.chain.position.0 - first.0);
        self.latch.guard("write of the log", written)?;
        self.chain.advance(header, self.segment_size);
        self.term = self.term.max(header.term);
        Ok(Appended { header: *header, end: self.end(), opened })
    }

    /// End of the log, as a sync target.
    pub fn end(&self) -> DurableMark {
        DurableMark {
            seq: 0,
            position: self.chain.position,
            index: FrameIndex(self.chain.index.0 - 1),
            lsn: Lsn(self.chain.lsn.0 - 1),
        }
    }

    /// Fills the segment with a pad and begins the next one.
    fn roll(&mut self, term: Term, ingest_ts: Ts) -> Result<Opened> {
        let room = self.room();
        if let (Some((first, file)), true) = (&self.segment, room > 0) {
            let mut pad = Header {
                magic: super::format::FRAME_MAGIC,
                version: super::format::FRAME_VERSION,
                frame_type: FrameType::Pad as u8,
                prev_crc: self.chain.prev_crc,
                len: (room - HEADER_LEN) as u32,
                term,
                index: self.chain.index,
                first_lsn: self.chain.lsn,
                position: self.chain.position,
                // The frame after it may have a time that was set back; the pad keeps the higher one and needs no flag.
                ingest_ts: ingest_ts.max(self.chain.ingest_ts),
                ..bytemuck::Zeroable::zeroed()
            };
            pad.seal();
            let written = file.write_at(bytemuck::bytes_of(&pad), self.chain.position.0 - first.0);
            self.latch.guard("write of the log", written)?;
            self.chain.advance(&pad, self.segment_size);
        }
        let first = Position(self.chain.position.0 - SEGMENT_HEAD_LEN);
        let Some(spare) = self.next.take() else {
            panic!("the log rolls to {first} without a prepared segment: `ready` was not called");
        };
        let header = SegmentHeader::new(self.store_id, first, self.segment_size);
        let begun = spare.file.write_at(bytemuck::bytes_of(&header), 0);
        let begun = begun.and_then(|()| self.disk.rename(&spare.path, &self.dir.join(segment_name(first))));
        self.latch.guard("start of a log segment", begun)?;
        self.segment = Some((first, spare.file.clone()));
        Ok(Opened { first, file: spare.file })
    }
}

fn sync_file(file: &dyn DiskFile) -> Result<()> {
    if sabotage::is(Sabotage::SkipLogSync) {
        return Ok(());
    }
    let synced = file.sync();
    if sabotage::is(Sabotage::RetrySync) { synced.or_else(|_| file.sync()) } else { synced }
}

/// Makes the log durable.
pub struct Syncer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment: Option<Arc<dyn DiskFile>>,
    earlier: Vec<Arc<dyn DiskFile>>,
    names_changed: bool,
    durable: DurableMark,
    recorded: Position,
    latch: Latch,
}

impl Syncer {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, segment: Option<Arc<dyn DiskFile>>, durable: DurableMark) -> Syncer {
        let latch = Latch::default();
        Syncer { disk, dir, segment, earlier: Vec::new(), names_changed: false, durable, recorded: Position(0), latch }
    }

    /// Adds a segment to which the log has rolled.
    pub fn opened(&mut self, opened: Opened) {
        assert!(opened.first.0 >= self.durable.position.0.saturating_sub(SEGMENT_HEAD_LEN));
        self.earlier.extend(self.segment.replace(opened.file));
        self.names_changed = true;
    }

    /// Newest durable mark.
    pub fn durable(&self) -> DurableMark {
        self.durable
    }

    /// Makes everything before `target` durable. All of it was appended, and its segments were passed to [`Syncer::opened`].
    ///
    /// # Errors
    /// [`Error::Halted`]: a sync failed, now or before. The durable mark has not moved.
    ///
    /// # Panics
    /// If `target` is before the durable mark.
    pub fn sync(&mut self, target: DurableMark) -> Result<()> {
        self.latch.check()?;
        assert!(target.position >= self.durable.position, "durable never falls");
        for file in std::mem::take(&mut self.earlier) {
            let synced = sync_file(file.as_ref());
            self.latch.guard("sync of the log", synced)?;
        }
        if let Some(file) = self.segment.clone() {
            self.write_durable_mark(file.as_ref())?;
            let synced = sync_file(file.as_ref());
            self.latch.guard("sync of the log", synced)?;
        }
        if std::mem::take(&mut self.names_changed) {
            let synced = self.disk.sync_dir(&self.dir);
            self.latch.guard("sync of the log's directory", synced)?;
        }
        self.durable = DurableMark { seq: self.durable.seq, ..target };
        Ok(())
    }

    /// Whether the durable mark on disk is behind [`Syncer::durable`].
    pub fn is_unrecorded(&self) -> bool {
        self.segment.is_some() && self.recorded < self.durable.position
    }

    /// Writes the durable mark durably, so that a restart finds the last records before a pause as durable.
    ///
    /// # Errors
    /// [`Error::Halted`]: a write or sync failed, now or before.
    pub fn record(&mut self) -> Result<()> {
        self.sync(self.durable)
    }

    fn write_durable_mark(&mut self, file: &dyn DiskFile) -> Result<()> {
        self.durable.seq += 1;
        let [a, b] = MARK_OFFSETS;
        let at = if self.durable.seq.is_multiple_of(2) { a } else { b };
        let written = file.write_at(&self.durable.to_bytes(), at);
        self.latch.guard("write of the log's durable mark", written)?;
        self.recorded = self.durable.position;
        Ok(())
    }
}
