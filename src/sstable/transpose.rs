//! Owns: transposing rows to columns and back.
//!
//! Fixed-width fields of a record are aligned by their size, so each lies within one word: a column is a word,
//! a shift and a width. Text is copied as bytes.

use std::cell::OnceCell;

use super::format::{ALIGN, BLOCK_ROWS, OWN_COLUMNS, Stored};
use crate::lsn::Lsn;
use crate::record::{Kind, Schema};

/// Rows transposed together: their records stay in the L1 cache for all columns.
const TILE: usize = 128;

/// Writes the fields of the records `rows` (`words` words each) as the columns of `body`, which begin at
/// `offsets`.
pub(super) fn to_columns(columns: &[Stored], offsets: &[u64], words: usize, rows: &[u64], body: &mut [u8]) {
    for (tile, records) in rows.chunks(TILE * words).enumerate() {
        for (column, &at) in columns.iter().zip(offsets) {
            let Some(offset) = column.offset else { continue };
            let size = column.of.size();
            let from = at as usize + tile * TILE * size;
            let Some(to) = body.get_mut(from..from + records.len() / words * size) else { continue };
            put_column(records, words, offset, size, to);
        }
    }
}

fn put_column(records: &[u64], words: usize, offset: usize, size: usize, to: &mut [u8]) {
    let (word, shift) = (offset / 8, offset % 8 * 8);
    let values = records.chunks_exact(words).map(|r| r.get(word).copied().unwrap_or(0) >> shift);
    match size {
        8 => bytemuck::cast_slice_mut::<u8, u64>(to).iter_mut().zip(values).for_each(|(to, v)| *to = v),
        4 if offset.is_multiple_of(4) => {
            bytemuck::cast_slice_mut::<u8, u32>(to).iter_mut().zip(values).for_each(|(to, v)| *to = v as u32);
        }
        2 => bytemuck::cast_slice_mut::<u8, u16>(to).iter_mut().zip(values).for_each(|(to, v)| *to = v as u16),
        1 => to.iter_mut().zip(values).for_each(|(to, v)| *to = v as u8),
        _ => {
            for (to, record) in to.chunks_exact_mut(size).zip(records.chunks_exact(words)) {
                if let Some(from) = bytemuck::cast_slice::<u64, u8>(record).get(offset..offset + size) {
                    to.copy_from_slice(from);
                }
            }
        }
    }
}

/// The columns of one block, for reading.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// The columns' bytes, starting with the first column.
    pub bytes: &'a [u8],
    /// Rows.
    pub rows: usize,
}

impl<'a> Body<'a> {
    /// Bytes of the column that begins at `at`, with values of `size` bytes.
    #[inline]
    pub fn column(&self, at: u64, size: usize) -> &'a [u8] {
        self.bytes.get(at as usize..at as usize + self.rows * size).unwrap_or(&[])
    }

    /// The column that begins at `at` as 64-bit values.
    #[inline]
    pub fn u64s(&self, at: u64) -> &'a [u64] {
        bytemuck::try_cast_slice(self.column(at, 8)).unwrap_or(&[])
    }
}

/// How one column is copied into a record.
#[derive(Clone, Copy, Debug)]
struct Move {
    /// Bytes of a value.
    size: usize,
    /// Bytes per row of all columns before this one.
    before: usize,
    /// Word of the record, and shift within it.
    word: usize,
    shift: usize,
    /// Byte offset in the record.
    offset: usize,
}

/// How to rebuild records of one kind from the columns of a block.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The columns of the file.
    pub columns: Vec<Stored>,
    /// Words of a record.
    pub words: usize,
    /// Index of the column of index times.
    pub index: usize,
    /// The kind, as in the first word of a record.
    kind: u64,
    moves: Vec<Move>,
}

impl Plan {
    /// The plan for files of `schema` with the columns `columns`.
    pub fn new(schema: &Schema, columns: Vec<Stored>) -> Plan {
        let Kind(kind) = schema.kind;
        let index = columns.iter().position(|c| c.offset == Some(schema.index_word * 8)).unwrap_or(0);
        let (mut moves, mut before) = (Vec::with_capacity(columns.len()), 0);
        for column in &columns {
            let size = column.of.size();
            if let Some(offset) = column.offset {
                moves.push(Move { size, before, word: offset / 8, shift: offset % 8 * 8, offset });
            }
            before += size;
        }
        Plan { words: schema.words, index, kind: u64::from(kind), moves, columns }
    }

    /// Offset of column `index` in a block of `rows` rows.
    #[inline]
    pub fn offset(&self, index: usize, rows: usize) -> u64 {
        let sizes = self.columns.iter().take(index).map(|c| c.of.size());
        if rows.is_multiple_of(ALIGN as usize) {
            // No column of such a block needs padding.
            return (sizes.sum::<usize>() * rows) as u64;
        }
        sizes.map(|size| ((rows * size) as u64).next_multiple_of(ALIGN)).sum()
    }

    /// Appends the records of the rows `from..to` of `body` to `out`.
    pub fn rows(&self, body: Body<'_>, from: usize, to: usize, out: &mut Vec<u64>) {
        let start = out.len();
        out.resize(start + (to - from) * self.words, 0);
        let out = out.get_mut(start..).unwrap_or(&mut []);
        if to - from <= FEW {
            for (row, record) in (from..to).zip(out.chunks_exact_mut(self.words)) {
                self.row(body, row, record);
            }
            return;
        }
        let mut first = from;
        for tile in out.chunks_mut(TILE * self.words) {
            // A record length known at compile time makes this three times as fast.
            match self.words {
                5 => self.tile(body, first, arrays::<5>(tile)),
                8 => self.tile(body, first, arrays::<8>(tile)),
                12 => self.tile(body, first, arrays::<12>(tile)),
                _ => self.any_tile(body, first, tile),
            }
            first += tile.len() / self.words;
        }
    }

    /// Rebuilds the records of `runs`, run by run, and calls `emit` with each and its number. Short runs of
    /// many blocks are rebuilt together, column by column, so that many cache misses overlap.
    pub fn gather(&self, runs: &[Run<'_>], mut emit: impl FnMut(usize, &[u64])) {
        let mut group: Vec<Run<'_>> = Vec::new();
        let (mut grouped, mut done) = (0, 0);
        let mut words = vec![0u64; TOGETHER * self.words];
        for run in runs {
            let mut run = *run;
            while run.rows > 0 {
                let rows = run.rows.min(TOGETHER - grouped);
                group.push(Run { rows, ..run });
                (run.from, run.rows) = (run.from + rows, run.rows - rows);
                grouped += rows;
                if grouped == TOGETHER {
                    done += self.rebuild(&group, &mut words, done, &mut emit);
                    (grouped, group) = (0, std::mem::take(&mut group));
                    group.clear();
                }
            }
        }
        self.rebuild(&group, &mut words, done, &mut emit);
    }

    /// Rebuilds the records of `group` in `words` and calls `emit` for each, numbered from `first`; returns
    /// how many there are.
    fn rebuild(&self, group: &[Run<'_>], words: &mut [u64], first: usize, emit: &mut impl FnMut(usize, &[u64])) -> usize {
        let rows = group.iter().map(|r| r.rows).sum::<usize>();
        let words = words.get_mut(..rows * self.words).unwrap_or(&mut []);
        words.fill(0);
        match self.words {
            5 => self.group(group, arrays::<5>(words), first, emit),
            8 => self.group(group, arrays::<8>(words), first, emit),
            12 => self.group(group, arrays::<12>(words), first, emit),
            len => {
                let mut records = words.chunks_exact_mut(len).enumerate();
                for run in group {
                    for (row, (i, record)) in (run.from..run.from + run.rows).zip(&mut records) {
                        self.row(run.body, row, record);
                        emit(first + i, record);
                    }
                }
            }
        }
        rows
    }

    /// Reads one byte of every cache line that `runs` occupy. These loads are independent, so they overlap;
    /// copying would overlap only a few at a time.
    fn touch(&self, runs: &[Run<'_>]) {
        let mut sum = 0u8;
        for run in runs {
            for (index, step) in self.moves.iter().enumerate() {
                let at = self.begin(index, step, run.body.rows);
                let bytes = run.body.bytes.get(at + run.from * step.size..at + (run.from + run.rows) * step.size).unwrap_or(&[]);
                sum = bytes.iter().step_by(ALIGN as usize).fold(sum, |a, b| a ^ b) ^ bytes.last().copied().unwrap_or(0);
            }
        }
        std::hint::black_box(sum);
    }

    fn group<const W: usize>(&self, runs: &[Run<'_>], out: &mut [[u64; W]], first: usize, emit: &mut impl FnMut(usize, &[u64])) {
        if runs.len() > 1 {
            self.touch(runs);
        }
        out.iter_mut().filter_map(|r| r.first_mut()).for_each(|word| *word = self.kind);
        for (index, step) in self.moves.iter().enumerate() {
            let mut rest = &mut *out;
            for run in runs {
                let Some((to, after)) = rest.split_at_mut_checked(run.rows) else { break };
                rest = after;
                self.step(index, step, run.body, run.from, to);
            }
        }
        out.iter().enumerate().for_each(|(i, record)| emit(first + i, record));
    }

    /// Offset of the column of move `index`.
    #[inline]
    fn begin(&self, index: usize, step: &Move, rows: usize) -> usize {
        if rows.is_multiple_of(ALIGN as usize) {
            return step.before * rows;
        }
        self.offset(index + OWN_COLUMNS.len(), rows) as usize
    }

    fn tile<const W: usize>(&self, body: Body<'_>, first: usize, out: &mut [[u64; W]]) {
        out.iter_mut().filter_map(|r| r.first_mut()).for_each(|word| *word = self.kind);
        for (index, step) in self.moves.iter().enumerate() {
            self.step(index, step, body, first, out);
        }
    }

    /// Applies move `step`, number `index`, to the rows from `first` on.
    #[inline]
    fn step<const W: usize>(&self, index: usize, step: &Move, body: Body<'_>, first: usize, out: &mut [[u64; W]]) {
        let (at, word, shift) = (self.begin(index, step, body.rows), step.word, step.shift);
        let bytes = body.bytes.get(at + first * step.size..at + (first + out.len()) * step.size).unwrap_or(&[]);
        match step.size {
            8 => put::<W, u64>(out, word, bytes, |to, v| *to = v),
            4 if step.offset.is_multiple_of(4) => put::<W, u32>(out, word, bytes, |to, v| *to |= u64::from(v) << shift),
            2 => put::<W, u16>(out, word, bytes, |to, v| *to |= u64::from(v) << shift),
            1 => put::<W, u8>(out, word, bytes, |to, v| *to |= u64::from(v) << shift),
            size => step.copy(size, bytes, out.iter_mut().map(|r| r.as_mut_slice())),
        }
    }

    fn any_tile(&self, body: Body<'_>, first: usize, out: &mut [u64]) {
        for (row, record) in (first..).zip(out.chunks_exact_mut(self.words)) {
            self.row(body, row, record);
        }
    }

    /// Rebuilds the record of row `row` of `body` in `out`, which is zeroed.
    #[inline]
    pub fn row(&self, body: Body<'_>, row: usize, out: &mut [u64]) {
        if let Some(word) = out.first_mut() {
            *word = self.kind;
        }
        for (index, step) in self.moves.iter().enumerate() {
            let at = self.begin(index, step, body.rows) + row * step.size;
            let rest = body.bytes.get(at..).unwrap_or(&[]);
            let value = match step.size {
                8 => rest.first_chunk().map(|b| u64::from_le_bytes(*b)),
                4 if step.offset.is_multiple_of(4) => rest.first_chunk().map(|b| u64::from(u32::from_le_bytes(*b))),
                2 => rest.first_chunk().map(|b| u64::from(u16::from_le_bytes(*b))),
                1 => rest.first().map(|b| u64::from(*b)),
                size => {
                    step.copy(size, rest.get(..size).unwrap_or(&[]), std::iter::once(&mut *out));
                    continue;
                }
            };
            if let (Some(value), Some(word)) = (value, out.get_mut(step.word)) {
                *word |= value << step.shift;
            }
        }
    }
}

/// Some rows of a block.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The block.
    pub body: Body<'a>,
    /// The first row.
    pub from: usize,
    /// How many.
    pub rows: usize,
}

/// Rows of several runs rebuilt together: their records fit in the L1 cache.
const TOGETHER: usize = 256;

/// Maximum number of rows for which record by record is faster than column by column.
const FEW: usize = 4;

#[inline]
fn arrays<const W: usize>(words: &mut [u64]) -> &mut [[u64; W]] {
    words.as_chunks_mut().0
}

/// Stores the values `bytes` in word `word` of the records `out`.
#[inline]
fn put<const W: usize, T: bytemuck::AnyBitPattern>(out: &mut [[u64; W]], word: usize, bytes: &[u8], how: impl Fn(&mut u64, T)) {
    if word < W {
        for (record, value) in out.iter_mut().zip(cast::<T>(bytes)) {
            if let Some(to) = record.get_mut(word) {
                how(to, *value);
            }
        }
    }
}

impl Move {
    /// Copies values of `size` bytes to their offset in `records`.
    fn copy<'r>(&self, size: usize, bytes: &[u8], records: impl Iterator<Item = &'r mut [u64]>) {
        for (record, from) in records.zip(bytes.chunks_exact(size)) {
            let record: &mut [u8] = bytemuck::cast_slice_mut(record);
            if let Some(to) = record.get_mut(self.offset..self.offset + size) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// Collects records row by row and reads them as columns. A column is transposed when it is first asked for.
#[derive(Clone, Debug)]
pub struct BatchBuffer {
    schema: &'static Schema,
    records: Vec<u64>,
    lsns: Vec<u64>,
    transposed: Vec<OnceCell<Vec<u64>>>,
}

impl BatchBuffer {
    /// An empty buffer for records of `schema`.
    pub fn new(schema: &'static Schema) -> BatchBuffer {
        let transposed = vec![OnceCell::new(); schema.columns.len()];
        BatchBuffer { schema, records: Vec::new(), lsns: Vec::new(), transposed }
    }

    /// Removes all records.
    pub fn clear(&mut self) {
        self.records.clear();
        self.lsns.clear();
        self.transposed.iter_mut().for_each(|c| drop(c.take()));
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.lsns.is_empty()
    }

    /// Whether it holds a full block.
    pub fn is_full(&self) -> bool {
        self.lsns.len() >= BLOCK_ROWS
    }

    /// Appends a record.
    #[inline]
    pub fn push(&mut self, lsn: Lsn, record: &[u64]) {
        debug_assert!(record.len() == self.schema.words && !self.is_full());
        self.records.extend_from_slice(record);
        self.lsns.push(lsn.0);
    }

    /// The LSNs.
    pub fn lsns(&self) -> &[u64] {
        &self.lsns
    }

    /// The values of column `name`, as consecutive bytes.
    pub fn column(&self, name: &str) -> Option<&[u8]> {
        let index = self.schema.columns.iter().position(|c| c.name == name)?;
        let column = self.schema.columns.get(index)?;
        let bytes = self.lsns.len() * column.of.size();
        let transposed = self.transposed.get(index)?.get_or_init(|| {
            let mut words = vec![0u64; bytes.div_ceil(8)];
            if let Some(to) = bytemuck::cast_slice_mut(&mut words).get_mut(..bytes) {
                put_column(&self.records, self.schema.words, column.offset, column.of.size(), to);
            }
            words
        });
        bytemuck::cast_slice(transposed).get(..bytes)
    }
}

fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[T] {
    bytemuck::try_cast_slice(bytes).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::SCHEMAS;
    use crate::sstable::format::{column_offsets, stored_columns};

    proptest! {
        #[test]
        fn records_round_trip_through_columns(seed in any::<u64>(), rows in 1usize..300, kind in 0usize..SCHEMAS.len()) {
            let schema = &SCHEMAS[kind];
            let mut rng = crate::disk::sim::SimRng::new(seed);
            let mut records: Vec<u64> = (0..rows * schema.words).map(|_| rng.next_u64()).collect();
            records.iter_mut().step_by(schema.words).for_each(|w| *w = *w & !0xffff | u64::from(schema.kind.0));
            let plan = Plan::new(schema, stored_columns(schema, true));
            let (offsets, len) = column_offsets(&plan.columns, rows);
            let mut body = vec![0u64; len as usize / 8];
            to_columns(&plan.columns, &offsets, schema.words, &records, bytemuck::cast_slice_mut(&mut body));
            let body = Body { bytes: bytemuck::cast_slice(&body), rows };
            let mut back = Vec::new();
            plan.rows(body, 0, rows, &mut back);
            prop_assert_eq!(&back, &records);
            let bounds = [0, rows / 7, rows / 7 + 1, rows / 2, rows];
            let runs: Vec<Run<'_>> = bounds.windows(2).map(|w| Run { body, from: w[0], rows: w[1].max(w[0]) - w[0] }).collect();
            let mut gathered = Vec::new();
            plan.gather(&runs, |i, record| {
                assert_eq!(i * schema.words, gathered.len());
                gathered.extend_from_slice(record);
            });
            prop_assert!(rows < 3 || gathered == records);
            let mut one = vec![0; schema.words];
            plan.row(body, rows - 1, &mut one);
            prop_assert_eq!(&one[..], &records[(rows - 1) * schema.words..]);
        }
    }
}
