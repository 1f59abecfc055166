//! Owns: reading an SSTable in place.
//!
//! Opening maps the file and checks only its length. Trailer, sections and blocks are checked at first use: the pages
//! are populated ([`Mapped::populate`]), the CRC is compared, the indexes are compared with each other, and the part is
//! marked as sound. Every access is still bounds-checked, so no contents lead outside the file.
//!
//! What must hold: a call that returns values calls [`Table::check`] after its last read of the file, so that a page
//! that went bad meanwhile is an error. A caller that borrows parts of the file calls it after using them.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ahead::{Ahead, likely};
use super::block::{BlockView, Slice, locate, partition_point};
use super::bloom::{self, Line};
use super::checked::Checked;
use super::format::{
    ARROW_MAGIC, BLOCK_ROWS, BadTrailer, Block, Extent, FileSchema, ID_NULL, LSNS_DENSE, RunEntry, STORES_RESERVED, Section,
    SeriesEntry, TAIL_LEN, TRAILER_LEN, Trailer, VERSION, column_offsets, find_hash, place, stored_columns, unplace,
};
use super::lookup::LsnIndex;
use super::transpose::{Body, Plan};
use super::{FileMeta, file_name};
use crate::disk::{Disk, Mapped};
use crate::error::{Error, Result};
use crate::lsn::{InstrumentId, Lsn, PubSeq};
use crate::record::{Arrival, Schema, TimeRange, schema};
use crate::sabotage::{self, Sabotage};
use crate::time::Ts;

/// An SSTable, mapped for reading.
#[derive(Debug)]
pub struct Table {
    meta: FileMeta,
    map: Mapped,
    parts: OnceLock<Parts>,
    /// Checked sections, one bit each.
    sound: AtomicU32,
}

#[derive(Debug)]
struct Parts {
    trailer: Trailer,
    plan: Plan,
    schema: &'static Schema,
    checked: Checked,
}

impl Table {
    /// Opens the file of `meta` in directory `dir`.
    ///
    /// # Errors
    /// [`Error::Missing`] if the file does not exist; [`Error::Corrupt`] if its length differs; [`Error::Io`].
    pub fn open(disk: &dyn Disk, dir: &Path, meta: FileMeta) -> Result<Table> {
        let path = dir.join(file_name(meta.kind, meta.id));
        let map = match disk.map(&path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Missing { path, what: "the manifest names it" });
            }
            other => other?,
        };
        let table = Table { meta, map, parts: OnceLock::new(), sound: AtomicU32::new(0) };
        let found = table.map.bytes().len() as u64;
        if found != meta.len {
            return Err(table.corrupt(found.min(meta.len), "file length", meta.len, found));
        }
        Ok(table)
    }

    /// Its entry in the manifest.
    pub fn meta(&self) -> &FileMeta {
        &self.meta
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    fn corrupt(&self, offset: u64, what: &'static str, expected: u64, found: u64) -> Error {
        Error::Corrupt { path: self.map.path().to_path_buf(), offset, lsn: self.meta.lsn.0, what, expected, found }
    }

    #[inline]
    fn parts(&self) -> Result<&Parts> {
        match self.parts.get() {
            Some(parts) => Ok(parts),
            None => {
                let parts = self.read_parts()?;
                Ok(self.parts.get_or_init(|| parts))
            }
        }
    }

    fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        self.map.bytes().get(offset as usize..end as usize)
    }

    fn read_parts(&self) -> Result<Parts> {
        let len = self.meta.len;
        self.map.populate(len.saturating_sub(TAIL_LEN), TAIL_LEN)?;
        let tail = self.map.bytes().last_chunk::<{ TAIL_LEN as usize }>();
        let footer = tail.and_then(|t| t.first_chunk::<4>()).map_or(u64::MAX, |l| u64::from(u32::from_le_bytes(*l)));
        let at = len.checked_sub(TAIL_LEN + TRAILER_LEN as u64).and_then(|rest| rest.checked_sub(footer));
        let Some(at) = at else { return Err(self.corrupt(len, "footer length", len, footer)) };
        self.map.populate(at, len - at)?;
        let trailer = match Trailer::parse(self.bytes(at, len - at).unwrap_or(&[])) {
            Ok(trailer) => trailer,
            Err(BadTrailer::Foreign(found)) => return Err(self.corrupt(at, "trailer magic", 0, found)),
            Err(BadTrailer::Version(found)) => {
                return Err(Error::Version { path: self.map.path().to_path_buf(), found, supported: VERSION });
            }
            Err(BadTrailer::Bad { what, expected, found }) => return Err(self.corrupt(at, what, expected, found)),
        };
        let meta = &self.meta;
        for (what, expected, found) in [
            ("trailer CRC in the manifest", u64::from(meta.crc), u64::from(trailer.crc())),
            ("file number", meta.id, trailer.id),
            ("kind", u64::from(meta.kind.0), u64::from(trailer.kind.0)),
            ("rows", meta.rows, trailer.rows),
        ] {
            if expected != found {
                return Err(self.corrupt(at, what, expected, found));
            }
        }
        let Some(schema) = schema(meta.kind) else {
            return Err(Error::invalid(
                "kind",
                format!("{} is of kind {}, which is unknown", self.map.path().display(), meta.kind.0),
            ));
        };
        let plan = Plan::new(schema, stored_columns(schema, trailer.flags & STORES_RESERVED != 0));
        let blocks = trailer.section(Section::Blocks).len / size_of::<Block>() as u64;
        // The first section: they follow the blocks.
        self.map.is_random_from(trailer.section(Section::Schema).offset);
        Ok(Parts { trailer, plan, schema, checked: Checked::none(blocks.min(meta.len) as usize) })
    }

    /// The trailer.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Io`], as for every call below.
    pub fn trailer(&self) -> Result<&Trailer> {
        Ok(&self.parts()?.trailer)
    }

    /// Checks that everything read so far is what was written; see [`Mapped::check`].
    ///
    /// # Errors
    /// [`Error::Io`] if a page went bad or the file was truncated.
    #[inline]
    pub fn check(&self) -> Result<()> {
        let [.., last] = ARROW_MAGIC;
        // The check looks at the last page, which the disk would have to read of a file that nobody has read.
        if self.parts.get().is_none() { Ok(()) } else { self.map.check(*last) }
    }

    /// Whether this mapping of the file is unusable. Another mapping of it may work.
    pub fn is_damaged(&self) -> bool {
        self.map.is_damaged()
    }

    /// Returns `value`, read from the file, after a check of the pages.
    #[inline]
    fn checked<T>(&self, value: T) -> Result<T> {
        self.check().map(|()| value)
    }

    /// Returns the memory of its pages to the system; see [`Mapped::release`].
    pub fn release(&self) {
        self.map.release();
    }

    /// The kind's layout.
    pub fn schema(&self) -> Result<&'static Schema> {
        Ok(self.parts()?.schema)
    }

    /// The plan by which records are rebuilt.
    pub fn plan(&self) -> Result<&Plan> {
        Ok(&self.parts()?.plan)
    }

    #[inline]
    fn section<T: bytemuck::AnyBitPattern>(&self, which: Section) -> Result<&[T]> {
        let parts = self.parts()?;
        let extent = parts.trailer.section(which);
        // Relaxed: one bit about bytes that never change.
        if !self.has_read(which) {
            self.check_section(parts, which, extent)?;
            self.sound.fetch_or(1 << which as u32, Ordering::Relaxed);
        }
        Ok(self.cast(extent))
    }

    fn cast<T: bytemuck::AnyBitPattern>(&self, extent: Extent) -> &[T] {
        self.bytes(extent.offset, extent.len).and_then(|b| bytemuck::try_cast_slice(b).ok()).unwrap_or(&[])
    }

    fn check_section(&self, parts: &Parts, which: Section, extent: Extent) -> Result<()> {
        self.map.populate(extent.offset, extent.len)?;
        let Some(bytes) = self.bytes(extent.offset, extent.len) else {
            return Err(self.corrupt(extent.offset, "section length", self.meta.len, extent.len));
        };
        let crc = crc32c::crc32c(bytes);
        if crc != extent.crc {
            return Err(self.corrupt(extent.offset, "section CRC", u64::from(extent.crc), u64::from(crc)));
        }
        let (rows, len) = (parts.trailer.rows, bytes.len() as u64);
        let sound = match which {
            Section::Schema => return self.check_schema(parts, bytes, extent),
            Section::Blocks => self.are_blocks_sound(parts, self.cast(extent)),
            Section::Series => {
                let series: &[SeriesEntry] = self.cast(extent);
                let total: u64 = series.iter().map(|s| u64::from(s.rows)).sum();
                let blocks = parts.trailer.section(Section::Blocks).len / size_of::<Block>() as u64;
                let is_in = |s: &SeriesEntry| (s.row as usize) < BLOCK_ROWS && u64::from(s.block) < blocks;
                let is_sorted = series.is_sorted_by(|a, b| a.instrument < b.instrument);
                total == rows && len == series.len() as u64 * 32 && is_sorted && series.iter().all(is_in)
            }
            Section::Runs => {
                let runs: &[RunEntry] = self.cast(extent);
                len == runs.len() as u64 * 40 && runs.is_sorted_by(|a, b| a.last < b.first)
            }
            Section::Lsns => self.lsn_index(parts, self.cast(extent)).is_sound(rows),
            Section::Places => len == rows * 4,
            Section::FileBloom | Section::BlockBlooms => len.is_multiple_of(32),
        };
        if sound { Ok(()) } else { Err(self.corrupt(extent.offset, "contents of a section", which as u64, len)) }
    }

    fn check_schema(&self, parts: &Parts, bytes: &[u8], extent: Extent) -> Result<()> {
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        let found = rkyv::from_bytes::<FileSchema, rkyv::rancor::Error>(&aligned);
        match found {
            Ok(found) if found == FileSchema::of(parts.schema) => Ok(()),
            Ok(found) => Err(Error::invalid(
                "layout",
                format!(
                    "{} holds {} records of {} bytes in another layout than this program's: \
                     read them with the program that wrote them",
                    self.map.path().display(),
                    found.name,
                    u64::from(found.words) * 8
                ),
            )),
            Err(_) => Err(self.corrupt(extent.offset, "schema", extent.len, 0)),
        }
    }

    /// Whether blocks follow each other, before the sections, with body lengths that fit their rows.
    fn are_blocks_sound(&self, parts: &Parts, blocks: &[Block]) -> bool {
        let (mut at, mut rows) = (parts.trailer.head.len, 0);
        for block in blocks {
            let (_, body) = column_offsets(&parts.plan.columns, block.rows as usize);
            let fits = block.offset == at && block.body_len == body && block.first_row == rows;
            if !fits || block.rows == 0 || block.rows as usize > BLOCK_ROWS || u64::from(block.meta_len) > self.meta.len {
                return false;
            }
            at += u64::from(block.meta_len) + body;
            rows += u64::from(block.rows);
        }
        rows == parts.trailer.rows && at <= self.meta.len
    }

    fn lsn_index<'a>(&self, parts: &Parts, words: &'a [u64]) -> LsnIndex<'a> {
        if parts.trailer.flags & LSNS_DENSE != 0 {
            LsnIndex::Dense { words, first: parts.trailer.lsn.min }
        } else {
            LsnIndex::Sparse(words)
        }
    }

    /// The block directory. As with every borrowed part, use it before calling [`Table::check`].
    pub fn blocks(&self) -> Result<&[Block]> {
        self.section(Section::Blocks)
    }

    /// The series, sorted by instrument.
    pub fn series(&self) -> Result<&[SeriesEntry]> {
        // The index is valid only for the layout it was written for.
        self.section::<u8>(Section::Schema)?;
        self.section(Section::Series)
    }

    /// The runs, sorted by LSN.
    pub fn runs(&self) -> Result<&[RunEntry]> {
        self.section(Section::Runs)
    }

    /// Block `index`, checked.
    #[inline]
    pub fn block(&self, index: u32) -> Result<BlockView<'_>> {
        let parts = self.parts()?;
        let blocks = self.blocks()?;
        let Some(entry) = blocks.get(index as usize) else {
            return Err(self.corrupt(0, "block number", blocks.len() as u64, u64::from(index)));
        };
        if !parts.checked.has(index) {
            self.check_block(parts, blocks, index, entry)?;
            parts.checked.set(index);
        }
        let bytes = self.bytes(entry.offset + u64::from(entry.meta_len), entry.body_len).unwrap_or(&[]);
        Ok(BlockView { entry, body: Body { bytes, rows: entry.rows as usize }, plan: &parts.plan })
    }

    /// Whether the CRC of section `which` has been compared.
    fn has_read(&self, which: Section) -> bool {
        // Relaxed: as in `section`.
        self.sound.load(Ordering::Relaxed) & 1 << which as u32 != 0
    }

    /// Asks the disk, without waiting, for the block directory; `unread`: only if it has not been read yet.
    pub fn read_ahead_directory(&self, unread: bool) -> Result<()> {
        let Extent { offset, len, .. } = self.trailer()?.section(Section::Blocks);
        if !unread || !self.has_read(Section::Blocks) {
            self.map.read_ahead(offset, len);
        }
        Ok(())
    }

    /// Calls `ask` with what the disk can be asked for.
    pub fn read_ahead<T>(&self, ask: impl FnOnce(&Ahead<'_>) -> T) -> Result<T> {
        Ok(ask(&self.ahead(self.parts()?, self.blocks()?)))
    }

    fn ahead<'t>(&'t self, parts: &'t Parts, blocks: &'t [Block]) -> Ahead<'t> {
        let Parts { trailer, plan, checked, .. } = parts;
        let (directory, series) = (trailer.section(Section::Blocks).offset, trailer.section(Section::Series));
        Ahead { map: &self.map, plan, blocks, directory, series: (series.offset, series.len), checked }
    }

    fn check_block(&self, parts: &Parts, blocks: &[Block], index: u32, entry: &Block) -> Result<()> {
        self.ahead(parts, blocks).follow(index);
        let len = u64::from(entry.meta_len) + entry.body_len;
        self.map.populate(entry.offset, len)?;
        let crc = crc32c::crc32c(self.bytes(entry.offset, len).unwrap_or(&[]));
        if crc == entry.crc || sabotage::is(Sabotage::SkipBlockCrc) {
            Ok(())
        } else {
            Err(self.corrupt(entry.offset, "block CRC", u64::from(entry.crc), u64::from(crc)))
        }
    }

    /// The series of `instrument`, if the file has it.
    #[inline]
    pub fn find_series(&self, instrument: InstrumentId) -> Result<Option<SeriesEntry>> {
        self.checked(self.series_of(instrument)?)
    }

    #[inline]
    fn series_of(&self, instrument: InstrumentId) -> Result<Option<SeriesEntry>> {
        let all = self.series()?;
        let has = |s: &&SeriesEntry| s.instrument == instrument;
        if let Some(series) = likely(instrument).and_then(|at| all.get(at)).filter(has) {
            return Ok(Some(*series));
        }
        let at = all.partition_point(|s| s.instrument < instrument);
        Ok(all.get(at).filter(has).copied())
    }

    /// Number of rows of `series` for which `before` is true. `before` is true up to some index time and false after
    /// it.
    fn partition(&self, series: &SeriesEntry, before: impl Fn(Ts) -> bool) -> Result<u32> {
        let (mut low, mut high) = (0u32, series.rows);
        let blocks = self.blocks()?;
        let last = locate(series, series.rows.saturating_sub(1)).0;
        // Blocks between the first and the last hold only this series, so their bounds are the series' own.
        let inner = blocks.get(series.block as usize + 1..last as usize).unwrap_or(&[]);
        if !inner.is_empty() {
            let passed = inner.partition_point(|b| before(Ts(b.time.max)));
            let start = |inner: usize| ((inner + 1) * BLOCK_ROWS) as u32 - series.row;
            if passed > 0 {
                low = start(passed);
            }
            if passed < inner.len() {
                high = start(passed + 1);
            }
        }
        while low < high {
            // Searches within one block at a time, so that a block is looked up once.
            let middle = low + (high - low) / 2;
            let (index, row) = locate(series, middle);
            let block = self.block(index)?;
            let times = block.times();
            if row >= block.body.rows {
                return Err(self.corrupt(block.entry.offset, "rows of a block", row as u64 + 1, block.body.rows as u64));
            }
            let first = (middle - low).min(row as u32);
            let count = ((high - middle) as usize).min(block.body.rows - row) as u32;
            let (from, to) = (row - first as usize, row + count as usize);
            let passed = partition_point(to - from, |i| before(times.get(from + i))) as u32;
            match (passed, first + count) {
                (0, _) if middle - first > low => high = middle - first,
                (p, all) if p == all && middle + count < high => low = middle + count,
                (p, _) => return Ok(middle - first + p),
            }
        }
        Ok(low)
    }

    /// The rows of `instrument` in `range`.
    pub fn slice(&self, instrument: InstrumentId, range: TimeRange) -> Result<Option<Slice>> {
        self.checked(self.slice_of(instrument, range)?)
    }

    fn slice_of(&self, instrument: InstrumentId, range: TimeRange) -> Result<Option<Slice>> {
        let Some(series) = self.series_of(instrument)? else { return Ok(None) };
        if !range.meets(Ts(series.time.min), Ts(series.time.max)) {
            return Ok(None);
        }
        let from = if range.from.0 <= series.time.min { 0 } else { self.partition(&series, |t| t < range.from)? };
        let to = if range.to.0 >= series.time.max { series.rows } else { self.partition(&series, |t| t <= range.to)? };
        Ok((from < to).then_some(Slice { series, from, to }))
    }

    /// The rows of block `index` in `range`, by series, in descending order of position.
    pub fn slices_of_block(&self, index: u32, range: TimeRange) -> Result<Vec<Slice>> {
        let all = self.series()?;
        let from = all.partition_point(|s| locate(s, s.rows.saturating_sub(1)).0 < index);
        let mut slices = Vec::new();
        for series in all.iter().skip(from).take_while(|s| s.block <= index) {
            let Some(slice) = self.slice_of(series.instrument, range)? else { continue };
            let first = (u64::from(index - series.block) * BLOCK_ROWS as u64).saturating_sub(u64::from(series.row)) as u32;
            let after = (u64::from(index - series.block + 1) * BLOCK_ROWS as u64 - u64::from(series.row)) as u32;
            let (from, to) = (slice.from.max(first), slice.to.min(after));
            if from < to {
                slices.push(Slice { series: *series, from, to });
            }
        }
        slices.reverse();
        self.checked(slices)
    }

    /// Number of rows of `slice` up to and including (`time`, `lsn`).
    pub fn count_until(&self, slice: &Slice, time: Ts, lsn: Lsn) -> Result<u32> {
        if Ts(slice.series.time.max) < time {
            return Ok(slice.to - slice.from);
        }
        let mut after = self.partition(&slice.series, |t| t <= time)?;
        // Rows at exactly `time` are sorted by LSN, and few.
        while after > slice.from {
            let (index, row) = slice.locate(after - 1);
            let block = self.block(index)?;
            if block.times().get(row) < time || block.lsns().get(row).is_none_or(|&l| l <= lsn.0) {
                break;
            }
            after -= 1;
        }
        self.checked(after.clamp(slice.from, slice.to) - slice.from)
    }

    /// Index time, LSN and place of the row of `instrument` with the greatest (index time, LSN) not after `time`.
    #[inline]
    pub fn as_of(&self, instrument: InstrumentId, time: Ts) -> Result<Option<(Ts, Lsn, u32)>> {
        self.checked(self.newest_until(instrument, time)?)
    }

    #[inline]
    fn newest_until(&self, instrument: InstrumentId, time: Ts) -> Result<Option<(Ts, Lsn, u32)>> {
        let Some(series) = self.series_of(instrument)? else { return Ok(None) };
        if Ts(series.time.min) > time {
            return Ok(None);
        }
        let after = if Ts(series.time.max) <= time { series.rows } else { self.partition(&series, |t| t <= time)? };
        let Some(at) = after.checked_sub(1) else { return Ok(None) };
        let (index, row) = locate(&series, at);
        let block = self.block(index)?;
        let lsn = block.lsns().get(row).copied().unwrap_or(0);
        Ok(Some((block.times().get(row), Lsn(lsn), place(index, row as u32))))
    }

    /// The place of record `lsn`, if it is in this file.
    #[inline]
    pub fn place_of(&self, lsn: Lsn) -> Result<Option<u32>> {
        let parts = self.parts()?;
        let index = self.lsn_index(parts, self.section(Section::Lsns)?);
        let (rank, is_here) = index.rank(lsn.0);
        if !is_here {
            return self.checked(None);
        }
        self.checked(self.section::<u32>(Section::Places)?.get(rank as usize).copied())
    }

    /// The places of the records `from` to `to`, in LSN order.
    pub fn places(&self, from: Lsn, to: Lsn) -> Result<&[u32]> {
        let parts = self.parts()?;
        let index = self.lsn_index(parts, self.section(Section::Lsns)?);
        let (first, after) = (index.rank(from.0).0, index.rank(to.0.saturating_add(1)).0);
        Ok(self.section::<u32>(Section::Places)?.get(first as usize..after as usize).unwrap_or(&[]))
    }

    /// Appends the record at place `at` to `out`; returns its LSN and index time.
    #[inline]
    pub fn row(&self, at: u32, out: &mut Vec<u64>) -> Result<(Lsn, Ts)> {
        let (index, row) = unplace(at);
        let block = self.block(index)?;
        let row = row as usize;
        let Some(&lsn) = block.lsns().get(row) else {
            return Err(self.corrupt(block.entry.offset, "row of a block", u64::from(block.entry.rows), row as u64));
        };
        let start = out.len();
        out.resize(start + block.plan.words, 0);
        block.plan.row(block.body, row, out.get_mut(start..).unwrap_or(&mut []));
        self.checked((Lsn(lsn), block.times().get(row)))
    }

    /// How record `lsn` arrived, if it is in this file.
    pub fn arrival(&self, lsn: Lsn) -> Result<Option<Arrival>> {
        let Some(at) = self.place_of(lsn)? else { return Ok(None) };
        let (index, row) = unplace(at);
        let ingest_ts = Ts(self.block(index)?.ingest().get(row as usize).copied().unwrap_or(0));
        let runs = self.runs()?;
        let after = runs.partition_point(|r| r.first <= lsn);
        let Some(run) = after.checked_sub(1).and_then(|i| runs.get(i)) else {
            return Err(self.corrupt(0, "run of a record", lsn.0, 0));
        };
        let pub_seq = PubSeq(run.first_pub_seq.0.wrapping_add(lsn.0 - run.first.0));
        self.checked(Some(Arrival { lsn, publisher: run.publisher, epoch: run.epoch, pub_seq, ingest_ts }))
    }

    /// Whether block `index`, or for `None` the file, may have a record of `instrument` whose lookup column `column` (its
    /// index among them) is `id`, by the Bloom filter.
    pub fn may_have(&self, instrument: InstrumentId, column: usize, id: u64, index: Option<u32>) -> Result<bool> {
        let hash = find_hash(instrument, column as u32, id);
        let Some(index) = index else {
            return self.checked(bloom::may_contain(self.section::<Line>(Section::FileBloom)?, hash));
        };
        let lines = self.section::<Line>(Section::BlockBlooms)?;
        let Some(entry) = self.blocks()?.get(index as usize) else { return Ok(false) };
        let lines = lines.get(entry.bloom as usize..entry.bloom as usize + entry.bloom_len as usize).unwrap_or(&[]);
        self.checked(bloom::may_contain(lines, hash))
    }

    /// Appends the places of the records of `instrument` whose lookup column `column` (its index among them) is `id`,
    /// in (index time, LSN) order.
    pub fn find(&self, instrument: InstrumentId, column: u32, id: u64, found: &mut Vec<u32>) -> Result<()> {
        let parts = self.parts()?;
        let hash = find_hash(instrument, column, id);
        if id == ID_NULL || !bloom::may_contain(self.section::<Line>(Section::FileBloom)?, hash) {
            return self.check();
        }
        let Some(series) = self.find_series(instrument)? else { return Ok(()) };
        let Some(of) = parts.schema.find_columns().nth(column as usize) else { return Ok(()) };
        let blooms = self.section::<Line>(Section::BlockBlooms)?;
        let slice = Slice { series, from: 0, to: series.rows };
        let mut at = 0;
        while at < series.rows {
            let (index, row) = slice.locate(at);
            let count = slice.run(at);
            at += count as u32;
            let Some(entry) = self.blocks()?.get(index as usize) else { break };
            let lines = blooms.get(entry.bloom as usize..entry.bloom as usize + entry.bloom_len as usize).unwrap_or(&[]);
            let bounds = entry.find.get(column as usize);
            if bounds.is_none_or(|b| !b.contains(id)) || !bloom::may_contain(lines, hash) {
                continue;
            }
            let block = self.block(index)?;
            let values: &[u64] = block.column(of.offset).and_then(|c| bytemuck::try_cast_slice(c).ok()).unwrap_or(&[]);
            let values = values.get(row..row + count).unwrap_or(&[]);
            found.extend(values.iter().enumerate().filter(|(_, v)| **v == id).map(|(i, _)| place(index, (row + i) as u32)));
        }
        self.check()
    }

    /// Reads and checks every part of the file; returns the number of rows.
    pub fn verify(&self, mut visit: impl FnMut(BlockView<'_>) -> Result<()>) -> Result<u64> {
        let head = self.trailer()?.head;
        self.map.populate(head.offset, head.len)?;
        let crc = crc32c::crc32c(self.bytes(head.offset, head.len).unwrap_or(&[]));
        if crc != head.crc {
            return Err(self.corrupt(0, "head CRC", u64::from(head.crc), u64::from(crc)));
        }
        self.series()?;
        self.runs()?;
        let places = self.section::<u32>(Section::Places)?;
        self.section::<u64>(Section::Lsns)?;
        self.section::<Line>(Section::FileBloom)?;
        self.section::<Line>(Section::BlockBlooms)?;
        for index in 0..self.blocks()?.len() as u32 {
            let block = self.block(index)?;
            for (row, &lsn) in block.lsns().iter().enumerate() {
                let at = place(index, row as u32);
                if self.place_of(Lsn(lsn))? != Some(at) {
                    return Err(self.corrupt(block.entry.offset, "LSN index of a row", lsn, u64::from(at)));
                }
            }
            visit(block)?;
        }
        self.checked(places.len() as u64)
    }
}
