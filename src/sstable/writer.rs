//! Owns: writing an SSTable, block by block, from sorted rows.
//!
//! What must hold: rows arrive in (instrument, index time, LSN) order, and each series is announced with its
//! number of rows. Memory is one block, plus at most 60 bytes a row for the LSN index and the filter.

use std::path::{Path, PathBuf};

use super::bloom::{self, Line};
use super::format::{
    ALIGN, BLOCK_ROWS, BLOCKS_MAX, BLOOM_BITS, BY_INGEST, Block, Bounds, Extent, FileSchema, ID_NULL, LINE_LSNS, LSNS_DENSE,
    RunEntry, STORES_RESERVED, Section, SeriesEntry, Stored, Trailer, column_offsets, find_hash, place, stored_columns,
};
use super::{FileMeta, Window, arrow, file_name, transpose};
use crate::disk::{Disk, DiskFile, Open};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Schema, index_time};
use crate::sabotage::{self, Sabotage};
use crate::time::Ts;

/// The file to write.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The store it belongs to.
    pub store_id: u128,
    /// Its number.
    pub id: u64,
    /// Layout of its records.
    pub schema: &'static Schema,
    /// The window that contains all rows.
    pub window: Window,
    /// Whether the kind's reserved bytes are not all zero, so that they are stored.
    pub stores_reserved: bool,
}

/// Publisher, epoch and number of a record.
pub type Origin = (PublisherId, Epoch, PubSeq);

/// An SSTable that is being written.
pub struct Writer<'d> {
    disk: &'d dyn Disk,
    file: Box<dyn DiskFile>,
    temporary: PathBuf,
    path: PathBuf,
    spec: Spec,
    columns: Vec<Stored>,
    arrow: arrow_schema::Schema,
    trailer: Trailer,
    at: u64,
    /// The open block: records, LSNs, ingest times.
    records: Vec<u64>,
    lsns: Vec<u64>,
    ingest: Vec<u64>,
    open: Block,
    blocks: Vec<Block>,
    series: Vec<SeriesEntry>,
    /// Announced rows that have not been pushed yet.
    owed: u32,
    last: (u64, u64),
    places: Vec<(u64, u32)>,
    hashes: Vec<u64>,
    block_hashes: Vec<u64>,
    block_blooms: Vec<Line>,
    find: Vec<(usize, usize)>,
}

const NO_BLOCK: Block = Block {
    offset: 0,
    body_len: 0,
    meta_len: 0,
    rows: 0,
    crc: 0,
    flags: 0,
    bloom: 0,
    bloom_len: 0,
    time: Bounds::NONE,
    event: Bounds::NONE,
    lsn: Bounds::NONE,
    find: [Bounds::NONE; crate::record::FIND_MAX],
    first_row: 0,
};

impl<'d> Writer<'d> {
    /// Starts the file in directory `dir`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(disk: &'d dyn Disk, dir: &Path, spec: Spec) -> Result<Writer<'d>> {
        let path = dir.join(file_name(spec.schema.kind, spec.id));
        let temporary = path.with_extension("tmp");
        let file = disk.open(&temporary, Open::CreateNew)?;
        let columns = stored_columns(spec.schema, spec.stores_reserved);
        let arrow = arrow::schema(spec.schema, &columns);
        let head = arrow::head(&arrow);
        let mut trailer = Trailer::new(spec.store_id, spec.id, spec.schema.kind, spec.window.from, spec.window.len);
        trailer.flags = if spec.stores_reserved { STORES_RESERVED } else { 0 };
        trailer.head = Extent { offset: 0, len: head.len() as u64, crc: crc32c::crc32c(&head), reserved: 0 };
        file.write_at(&head, 0)?;
        let find = spec.schema.find_columns().enumerate().map(|(i, c)| (i, c.offset / 8)).collect();
        Ok(Writer {
            disk,
            file,
            temporary,
            path,
            spec,
            columns,
            arrow,
            trailer,
            at: head.len() as u64,
            records: Vec::with_capacity(BLOCK_ROWS * spec.schema.words),
            lsns: Vec::with_capacity(BLOCK_ROWS),
            ingest: Vec::with_capacity(BLOCK_ROWS),
            open: NO_BLOCK,
            blocks: Vec::new(),
            series: Vec::new(),
            owed: 0,
            last: (0, 0),
            places: Vec::new(),
            hashes: Vec::new(),
            block_hashes: Vec::new(),
            block_blooms: Vec::new(),
            find,
        })
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.at
    }

    /// Whether nothing has been written: never true, since a file begins with its head.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Announced rows that have not been pushed yet.
    pub fn owed(&self) -> u32 {
        self.owed
    }

    /// Makes everything written so far durable, so that [`Writer::finish`] has less to sync.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn settle(&self) -> Result<()> {
        self.file.sync()
    }

    /// Announces the next `rows` rows, which are of `instrument`.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If rows of the previous series are missing, or the instruments do not ascend.
    pub fn begin_series(&mut self, instrument: InstrumentId, rows: u32) -> Result<()> {
        assert!(self.owed == 0 && rows > 0, "{} rows of the previous series are missing", self.owed);
        assert!(self.series.last().is_none_or(|s| s.instrument < instrument), "instruments ascend");
        if rows as usize >= BLOCK_ROWS {
            self.end_block()?;
        }
        let (mut block, mut row) = (self.blocks.len() as u32, self.lsns.len() as u32);
        if row as usize == BLOCK_ROWS {
            (block, row) = (block + 1, 0);
        }
        self.series.push(SeriesEntry { instrument, rows, block, row, time: Bounds::NONE });
        self.owed = rows;
        self.last = (0, 0);
        Ok(())
    }

    /// Appends the next row of the announced series.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Limit`] if the file has too many blocks.
    ///
    /// # Panics
    /// If no row is expected, or the row is out of order or outside the window.
    pub fn push(&mut self, lsn: Lsn, ingest_ts: Ts, record: &[u64]) -> Result<()> {
        assert!(self.owed > 0 && record.len() == self.spec.schema.words, "a row that was not announced");
        if self.lsns.len() == BLOCK_ROWS {
            self.end_block()?;
        }
        let own = Ts(record.get(self.spec.schema.index_word).copied().unwrap_or(u64::MAX));
        let (time, by_ingest) = index_time(own, ingest_ts);
        assert!(self.last <= (time.0, lsn.0), "rows ascend by time and LSN");
        assert!(self.spec.window.from <= time && time <= self.spec.window.last(), "{time} lies outside the window");
        self.last = (time.0, lsn.0);
        self.owed -= 1;
        let event = record.get(1).copied().unwrap_or(0);
        let place = place(self.blocks.len() as u32, self.lsns.len() as u32);
        self.places.push((lsn.0, place));
        if let Some(series) = self.series.last_mut() {
            series.time.add(time.0);
            for &(column, word) in &self.find {
                let id = record.get(word).copied().unwrap_or(ID_NULL);
                if id != ID_NULL {
                    self.block_hashes.push(find_hash(series.instrument, column as u32, id));
                    if let Some(bounds) = self.open.find.get_mut(column) {
                        bounds.add(id);
                    }
                }
            }
        }
        self.open.time.add(time.0);
        self.open.event.add(event);
        self.open.lsn.add(lsn.0);
        self.open.flags |= if by_ingest { BY_INGEST } else { 0 };
        self.records.extend_from_slice(record);
        self.lsns.push(lsn.0);
        self.ingest.push(ingest_ts.0);
        Ok(())
    }

    /// Writes the open block, if it has rows.
    fn end_block(&mut self) -> Result<()> {
        let rows = self.lsns.len();
        if rows == 0 {
            return Ok(());
        }
        if self.blocks.len() == BLOCKS_MAX {
            return Err(Error::Limit { what: "the number of blocks of a file", limit: BLOCKS_MAX as u64 });
        }
        let (offsets, body_len) = column_offsets(&self.columns, rows);
        let mut bytes = arrow::batch(&self.columns, rows, &offsets, body_len);
        let meta_len = bytes.len();
        let mut body = vec![0u64; body_len as usize / 8];
        for (own, &at) in [&self.lsns, &self.ingest].into_iter().zip(&offsets) {
            body.iter_mut().skip(at as usize / 8).zip(own).for_each(|(to, from)| *to = *from);
        }
        let words = self.spec.schema.words;
        transpose::to_columns(&self.columns, &offsets, words, &self.records, bytemuck::cast_slice_mut(&mut body));
        bytes.extend_from_slice(bytemuck::cast_slice(&body));
        self.file.write_at(&bytes, self.at)?;
        let mut lines = if self.block_hashes.is_empty() {
            Vec::new()
        } else {
            vec![Line::default(); bloom::lines_for(self.block_hashes.len() as u64, BLOOM_BITS)]
        };
        self.block_hashes.iter().for_each(|&h| bloom::insert(&mut lines, h));
        let first_row = self.blocks.last().map_or(0, |b| b.first_row + u64::from(b.rows));
        let block = Block {
            offset: self.at,
            body_len,
            meta_len: meta_len as u32,
            rows: rows as u32,
            crc: crc32c::crc32c(&bytes),
            bloom: self.block_blooms.len() as u32,
            bloom_len: lines.len() as u32,
            first_row,
            ..self.open
        };
        self.at += bytes.len() as u64;
        self.trailer.time.merge(block.time);
        self.trailer.event.merge(block.event);
        self.trailer.lsn.merge(block.lsn);
        self.blocks.push(block);
        self.block_blooms.extend(lines);
        self.hashes.append(&mut self.block_hashes);
        self.open = NO_BLOCK;
        self.records.clear();
        self.lsns.clear();
        self.ingest.clear();
        Ok(())
    }

    /// Completes the file and makes it durable under its name. The caller syncs the directory, once for all
    /// its files. Calls `origin` for each row, in LSN order.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If announced rows are missing, or there are no rows.
    pub fn finish(mut self, mut origin: impl FnMut(Lsn) -> Origin) -> Result<FileMeta> {
        assert!(self.owed == 0, "{} announced rows are missing", self.owed);
        self.end_block()?;
        assert!(!self.blocks.is_empty(), "a file without rows");
        sort_places(&mut self.places, self.trailer.lsn);
        let rows = self.places.len() as u64;
        let runs = runs(self.places.iter().map(|&(lsn, _)| Lsn(lsn)), &mut origin);
        let (dense, lsns) = lsn_index(&self.places, self.trailer.lsn);
        let places: Vec<u32> = self.places.iter().map(|&(_, place)| place).collect();
        let mut lines = Vec::new();
        if !self.hashes.is_empty() {
            lines = vec![Line::default(); bloom::lines_for(self.hashes.len() as u64, BLOOM_BITS)];
            self.hashes.iter().for_each(|&h| bloom::insert(&mut lines, h));
        }
        self.trailer.flags |= if dense { LSNS_DENSE } else { 0 };
        self.trailer.rows = rows;
        let schema = FileSchema::of(self.spec.schema);
        let schema = rkyv::to_bytes::<rkyv::rancor::Error>(&schema).map_err(|e| Error::invalid("schema", e.to_string()))?;
        let mut end = arrow::END_OF_STREAM.to_vec();
        let base = self.at;
        let sections: [(Section, &[u8]); super::format::SECTIONS] = [
            (Section::Schema, &schema),
            (Section::Blocks, bytemuck::cast_slice(&self.blocks)),
            (Section::Series, bytemuck::cast_slice(&self.series)),
            (Section::Runs, bytemuck::cast_slice(&runs)),
            (Section::Lsns, bytemuck::cast_slice(&lsns)),
            (Section::Places, bytemuck::cast_slice(&places)),
            (Section::FileBloom, bytemuck::cast_slice(&lines)),
            (Section::BlockBlooms, bytemuck::cast_slice(&self.block_blooms)),
        ];
        let align =
            |end: &mut Vec<u8>| end.resize((base as usize + end.len()).next_multiple_of(ALIGN as usize) - base as usize, 0);
        for (which, bytes) in sections {
            align(&mut end);
            let extent =
                Extent { offset: base + end.len() as u64, len: bytes.len() as u64, crc: crc32c::crc32c(bytes), reserved: 0 };
            if let Some(at) = self.trailer.sections.get_mut(which as usize) {
                *at = extent;
            }
            end.extend_from_slice(bytes);
        }
        align(&mut end);
        let tail = arrow::tail(&self.arrow, &self.blocks);
        let crc = self.trailer.seal(&tail);
        end.extend_from_slice(bytemuck::bytes_of(&self.trailer));
        end.extend_from_slice(&tail);
        self.file.write_at(&end, base)?;
        if !sabotage::is(Sabotage::SkipFileSync) {
            self.file.sync()?;
        }
        self.disk.rename(&self.temporary, &self.path)?;
        Ok(FileMeta {
            id: self.spec.id,
            kind: self.spec.schema.kind,
            window: self.spec.window,
            rows,
            len: base + end.len() as u64,
            crc,
            time: (Ts(self.trailer.time.min), Ts(self.trailer.time.max)),
            lsn: (Lsn(self.trailer.lsn.min), Lsn(self.trailer.lsn.max)),
        })
    }
}

/// Sorts `places` by LSN. The LSNs lie in `lsn` and are distinct; where they are dense, this is a counting
/// sort.
fn sort_places(places: &mut Vec<(u64, u32)>, lsn: Bounds) {
    let span = lsn.max - lsn.min + 1;
    if span > 8 * places.len() as u64 {
        return places.sort_unstable();
    }
    const EMPTY: u32 = u32::MAX;
    let mut by_lsn = vec![EMPTY; span as usize];
    for &(at, place) in places.iter() {
        if let Some(slot) = by_lsn.get_mut((at - lsn.min) as usize) {
            *slot = place;
        }
    }
    places.clear();
    places.extend((lsn.min..).zip(by_lsn).filter(|(_, place)| *place != EMPTY));
}

/// The shortest list of runs that gives the origin of each of the rows `lsns`, which ascend.
fn runs(lsns: impl Iterator<Item = Lsn>, origin: &mut impl FnMut(Lsn) -> Origin) -> Vec<RunEntry> {
    let mut runs: Vec<RunEntry> = Vec::new();
    for lsn in lsns {
        let (publisher, epoch, pub_seq) = origin(lsn);
        match runs.last_mut() {
            Some(run)
                if run.publisher == publisher
                    && run.epoch == epoch
                    && run.first_pub_seq.0.wrapping_add(lsn.0 - run.first.0) == pub_seq.0 =>
            {
                run.last = lsn;
            }
            _ => runs.push(RunEntry::new(lsn, publisher, epoch, pub_seq)),
        }
    }
    runs
}

/// The LSN index of `places`, and whether it is dense. The dense form, lines of a rank and 448 bits, is used
/// where it is shorter than the LSNs themselves.
fn lsn_index(places: &[(u64, u32)], lsn: Bounds) -> (bool, Vec<u64>) {
    let lines = (lsn.max - lsn.min) / LINE_LSNS + 1;
    if lines * 8 >= places.len() as u64 {
        return (false, places.iter().map(|&(lsn, _)| lsn).collect());
    }
    let mut words = vec![0u64; lines as usize * 8];
    for &(value, _) in places {
        let (line, bit) = ((value - lsn.min) / LINE_LSNS, (value - lsn.min) % LINE_LSNS);
        if let Some(word) = words.get_mut((line * 8 + 1 + bit / 64) as usize) {
            *word |= 1 << (bit % 64);
        }
    }
    let mut rank = 0;
    for line in words.chunks_exact_mut(8) {
        let [first, bits @ ..] = line else { continue };
        *first = rank;
        rank += bits.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
    }
    (true, words)
}
