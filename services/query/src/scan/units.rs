//! Owns: what a scan reads one after the other: blocks as they are, or pieces that are merged, and how they are distributed
//! over partitions.
//!
//! What must hold: each row that the selection leaves is in one unit.

use datafusion::error::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tapestore::lsn::InstrumentId;
use tapestore::reader::Snapshot;
use tapestore::record::{Column, ColumnType, Series, TimeRange};
use tapestore::sstable::format::SeriesEntry;
use tapestore::sstable::{Ahead, Slice, has_likely_series};
use tapestore::time::Ts;
use tapestore::version::File;

use crate::columns::BlockRows;
use crate::failure::external;
use crate::filter::Selection;
use crate::pieces::{self, Piece, Shape};
use crate::schema::{KindTable, Origin};

/// A partition costs more than it brings on fewer rows.
pub const FEW_ROWS: u64 = 100_000;

/// The disk is asked at once for where the rows of so many instruments begin and end.
pub(super) const FEW_INSTRUMENTS: usize = 16;

/// An order of the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By symbol first; whether backwards.
    pub symbol: Option<bool>,
    /// Whether time and LSN run backwards.
    pub backwards: bool,
}

/// What is read one after the other.
#[derive(Clone, Debug)]
pub(super) enum Unit {
    /// Rows of a block.
    Block(BlockRows),
    /// Pieces that are merged.
    Merged(Vec<Piece>),
}

impl Unit {
    /// The files that have rows of it.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        let (block, pieces) = match self {
            Unit::Block(rows) => (Some(&rows.file), None),
            Unit::Merged(pieces) => (None, Some(pieces)),
        };
        block.into_iter().chain(pieces.into_iter().flatten().filter_map(Piece::file))
    }

    pub(super) fn rows(&self) -> u64 {
        match self {
            Unit::Block(rows) => rows.rows() as u64,
            Unit::Merged(pieces) => pieces.iter().map(|piece| piece.rows).sum(),
        }
    }
}

/// How much of the SSTables a scan reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pruning {
    pub(super) files: usize,
    pub(super) files_read: usize,
    pub(super) blocks: usize,
    pub(super) blocks_read: usize,
    /// Bytes of the files, and of the columns that are read in their blocks.
    pub(super) bytes: u64,
    pub(super) bytes_read: u64,
}

impl Pruning {
    /// Counts what the SSTables of the kind have: a statement of one instrument must not look at the entry of every block.
    fn count(&mut self, request: &Request) -> Result<()> {
        let kind = request.table.kind.kind;
        let files = || request.snapshot.history().files().iter().filter(|file| file.meta().kind == kind);
        // A disk reads of all files at once faster than of one after the other.
        files().try_for_each(|file| file.read_ahead_directory(true)).map_err(external)?;
        for file in files() {
            self.files += 1;
            self.blocks += file.blocks().map_err(external)?.len();
            self.bytes += file.meta().len;
        }
        Ok(())
    }
}

/// What a scan is made from.
#[derive(Clone, Debug)]
pub struct Request {
    /// The table.
    pub table: Arc<KindTable>,
    /// The moment.
    pub snapshot: Snapshot,
    /// The rows.
    pub selection: Selection,
    /// The columns.
    pub shape: Shape,
    /// The most rows that the caller takes.
    pub fetch: Option<usize>,
    /// The number of partitions that the session wants.
    pub target: usize,
    /// For each instrument the index time from which its rows are read, if that is not the selection's.
    pub starts: Option<Arc<BTreeMap<u32, Ts>>>,
    /// Whether the planner is to know nothing of the rows, because it makes a plan that is kept for other rows.
    pub is_blind: bool,
}

/// Bytes of a row in the columns that are read.
pub(super) fn width(origins: &[Origin]) -> u64 {
    let width = |origin: &Origin| match origin {
        Origin::Symbol => 4,
        Origin::Publisher => 2,
        Origin::Time | Origin::Ingested | Origin::Lsn => 8,
        Origin::Field { column, .. } => column_size(column),
    };
    origins.iter().map(width).sum()
}

fn column_size(column: &Column) -> u64 {
    use ColumnType as C;
    match column.of {
        C::U8 | C::I8 | C::Char => 1,
        C::U16 | C::I16 => 2,
        C::U32 | C::I32 => 4,
        C::U64 | C::I64 | C::Price | C::Size | C::Ts => 8,
        C::Volume => 16,
        C::Text(size) | C::Reserved(size) => size as u64,
    }
}

/// Each instrument of the selection that has rows of the kind, in the order of names.
pub(super) fn instruments(request: &Request) -> Result<Vec<u32>> {
    let kind = request.table.kind.kind;
    let mut all: Vec<u32> = match &request.selection.instruments {
        // 0 stands for records of no instrument.
        Some(some) => some.iter().map(|id| if *id == 0 { InstrumentId::NULL.0 } else { *id }).collect(),
        None => {
            let mut all = Vec::new();
            for file in request.snapshot.history().files_in(kind, request.selection.time) {
                all.extend(file.series().map_err(external)?.iter().map(|series| series.instrument.0));
                file.check().map_err(external)?;
            }
            let tables = request.snapshot.tables().iter().flat_map(|table| table.series());
            all.extend(tables.filter(|series| series.kind == kind).map(|series| series.instrument.0));
            all.sort_unstable();
            all.dedup();
            all
        }
    };
    all.sort_by_key(|id| (request.shape.names.rank(*id), *id));
    Ok(all)
}

/// The instruments of the selection in the order of names, in at most `target` groups of about as many rows; one if there are few.
/// 0 stands for records of no instrument.
pub(super) fn groups(request: &Request, target: usize) -> Result<Vec<BTreeSet<u32>>> {
    let (kind, selection) = (request.table.kind.kind, &request.selection);
    let files: Vec<&File> = request.snapshot.history().files_in(kind, selection.time).collect();
    let mut counted = Vec::new();
    for id in instruments(request)? {
        let mut rows = 0;
        for file in &files {
            let slice = file.slice(InstrumentId(id), selection.time).map_err(external)?;
            rows += slice.map_or(0, |slice| u64::from(slice.to - slice.from));
            file.check().map_err(external)?;
        }
        let series = Series { instrument: InstrumentId(id), kind };
        for table in request.snapshot.tables() {
            rows += Piece::of_table(table, series, selection.time, request.snapshot.last()).map_or(0, |piece| piece.rows);
            table.check().map_err(external)?;
        }
        counted.push((if InstrumentId(id) == InstrumentId::NULL { 0 } else { id }, rows));
    }
    let total: u64 = counted.iter().map(|(_, rows)| rows).sum();
    let target = if total < FEW_ROWS { 1 } else { target.max(1) };
    let (mut all, mut done): (Vec<BTreeSet<u32>>, u64) = (vec![BTreeSet::new()], 0);
    for (id, rows) in counted {
        if done >= total * all.len() as u64 / target as u64 && all.len() < target {
            all.push(BTreeSet::new());
        }
        done += rows;
        all.last_mut().map(|last| last.insert(id));
    }
    Ok(all)
}

/// The blocks of the selection, and its rows of MemTables.
pub(super) fn blocks(request: &Request, pruning: &mut Pruning) -> Result<Vec<Unit>> {
    let (kind, selection) = (request.table.kind.kind, &request.selection);
    let mut units = Vec::new();
    let read: Vec<&File> = request.snapshot.history().files_in(kind, selection.time).collect();
    pruning.count(request)?;
    read.iter().try_for_each(|file| file.read_ahead_directory(false)).map_err(external)?;
    for file in read {
        let before = units.len();
        for (index, block) in (0u32..).zip(file.blocks().map_err(external)?) {
            if !selection.may_have(block) {
                continue;
            }
            pruning.blocks_read += 1;
            let (from, to) = (selection.time.from.0, selection.time.to.0);
            if selection.instruments.is_none() && from <= block.time.min && block.time.max <= to {
                units.push(Unit::Block(BlockRows { file: file.clone(), index, from: 0, to: block.rows as usize }));
                continue;
            }
            let mut slices = file.slices_of_block(index, selection.time).map_err(external)?;
            slices.reverse();
            let mut is_begun = false;
            for slice in slices.iter().filter(|slice| has(selection, slice.series.instrument)) {
                let (index, from) = slice.locate(slice.from);
                let rows = (slice.to - slice.from) as usize;
                match units.last_mut().filter(|_| is_begun) {
                    // The rows of the instruments next to each other are lent as one.
                    Some(Unit::Block(last)) if last.to == from => last.to += rows,
                    _ => units.push(Unit::Block(BlockRows { file: file.clone(), index, from, to: from + rows })),
                }
                is_begun = true;
            }
        }
        file.check().map_err(external)?;
        pruning.files_read += usize::from(units.len() > before);
    }
    for table in request.snapshot.tables() {
        let all = table.series().into_iter().filter(|series| series.kind == kind);
        for series in all.filter(|series| has(selection, series.instrument)) {
            if let Some(piece) = Piece::of_table(table, series, selection.time, request.snapshot.last()) {
                units.push(Unit::Merged(vec![piece]));
            }
        }
        table.check().map_err(external)?;
    }
    Ok(units)
}

fn has(selection: &Selection, instrument: InstrumentId) -> bool {
    let id = if instrument == InstrumentId::NULL { 0 } else { instrument.0 };
    selection.instruments.as_ref().is_none_or(|some| some.contains(&id))
}

/// The pieces of each instrument, or of all instruments, in `order`.
pub(super) fn merges(request: &Request, order: Order, pruning: &mut Pruning) -> Result<Vec<Unit>> {
    let (kind, selection) = (request.table.kind.kind, &request.selection);
    pruning.count(request)?;
    let mut units: Vec<Unit> = Vec::new();
    let files: Vec<&File> = request.snapshot.history().files_in(kind, selection.time).collect();
    let mut is_read = vec![false; files.len()];
    let ids = instruments(request)?;
    if ids.len() <= FEW_INSTRUMENTS {
        // As in `count`.
        files.iter().try_for_each(|file| file.read_ahead(|ahead| ahead.series(&ids))).map_err(external)?;
        // Where an instrument is not at its most likely place, the whole index is asked for.
        for file in &files {
            if !has_likely_series(file.series().map_err(external)?, &ids) {
                file.read_ahead(|ahead| ahead.all_series()).map_err(external)?;
            }
        }
        let mut series = Vec::new();
        for (file, id) in files.iter().flat_map(|file| ids.iter().map(move |id| (file, InstrumentId(*id)))) {
            series.extend(file.find_series(id).map_err(external)?.map(|series| (file, series)));
        }
        let each = |ask: &dyn Fn(&Ahead<'_>, &SeriesEntry)| {
            series.iter().try_for_each(|(file, series)| file.read_ahead(|ahead| ask(ahead, series))).map_err(external)
        };
        each(&|ahead, series| ahead.entries(series))?;
        each(&|ahead, series| ahead.bounds(series, selection.time))?;
    }
    for id in ids {
        let mut pieces = Vec::new();
        let start = request.starts.as_ref().and_then(|starts| starts.get(&id)).copied();
        let range = TimeRange { from: start.unwrap_or(selection.time.from), ..selection.time };
        for (file, is_read) in files.iter().zip(&mut is_read) {
            let Some(slice) = file.slice(InstrumentId(id), range).map_err(external)? else { continue };
            for slice in blocks_of(file, slice, selection).map_err(external)? {
                pruning.blocks_read += blocks_in(&slice);
                *is_read = true;
                pieces.push(Piece::of_file(file, slice).map_err(external)?);
            }
            file.check().map_err(external)?;
        }
        let series = Series { instrument: InstrumentId(id), kind };
        for table in request.snapshot.tables() {
            pieces.extend(Piece::of_table(table, series, range, request.snapshot.last()));
            table.check().map_err(external)?;
        }
        match units.last_mut() {
            _ if pieces.is_empty() => {}
            Some(Unit::Merged(all)) if order.symbol.is_none() => all.extend(pieces),
            _ => units.push(Unit::Merged(pieces)),
        }
    }
    pruning.files_read = is_read.iter().filter(|is_read| **is_read).count();
    for unit in &mut units {
        if let Unit::Merged(pieces) = unit {
            pieces::note_alone(pieces);
        }
    }
    if order.symbol == Some(true) {
        units.reverse();
    }
    Ok(units)
}

/// The parts of `slice` in blocks that may have rows of the selection.
fn blocks_of(file: &File, slice: Slice, selection: &Selection) -> tapestore::Result<Vec<Slice>> {
    if selection.is_exact() {
        return Ok(vec![slice]);
    }
    if !may_have_ids(file, slice.series.instrument, selection, None)? {
        return Ok(Vec::new());
    }
    let entries = file.blocks()?;
    let (mut parts, mut at): (Vec<Slice>, u32) = (Vec::new(), slice.from);
    while at < slice.to {
        let (index, _) = slice.locate(at);
        let end = at + slice.run(at) as u32;
        let is_in_bounds = entries.get(index as usize).is_some_and(|block| selection.may_have(block));
        if is_in_bounds && may_have_ids(file, slice.series.instrument, selection, Some(index))? {
            match parts.last_mut() {
                Some(last) if last.to == at => last.to = end,
                _ => parts.push(Slice { from: at, to: end, ..slice }),
            }
        }
        at = end;
    }
    Ok(parts)
}

/// Whether `file`, or block `index` of it, may have rows of `instrument` with the selection's values of lookup columns.
fn may_have_ids(file: &File, instrument: InstrumentId, selection: &Selection, index: Option<u32>) -> tapestore::Result<bool> {
    for (column, id) in &selection.find {
        if !file.may_have(instrument, *column, *id, index)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn blocks_in(slice: &Slice) -> usize {
    let (first, last) = (slice.locate(slice.from).0, slice.locate(slice.to.saturating_sub(1)).0);
    (last - first) as usize + 1
}

/// Distributes `units` over at most `target` partitions, each of which keeps their order.
pub(super) fn partitions(units: Vec<Unit>, target: usize, order: Option<Order>) -> Vec<Vec<Unit>> {
    let total: u64 = units.iter().map(Unit::rows).sum();
    let target = if total < FEW_ROWS { 1 } else { target.max(1) };
    if target == 1 || matches!(order, Some(Order { symbol: None, .. })) {
        return vec![units];
    }
    let (mut all, mut rows): (Vec<Vec<Unit>>, u64) = (vec![Vec::new()], 0);
    for unit in units {
        let until = total * all.len() as u64 / target as u64;
        if rows >= until && all.len() < target {
            all.push(Vec::new());
        }
        rows += unit.rows();
        if let Some(last) = all.last_mut() {
            last.push(unit);
        }
    }
    all
}
