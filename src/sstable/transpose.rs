//! Owns: rows to columns and back.
//!
//! A record's fixed-width fields are aligned by their size, so each lies inside one word: a column is a
//! word, a shift and a width. Text is copied as bytes.

use super::format::{ALIGN, BLOCK_ROWS, Stored, column_offsets, stored_columns};
use crate::lsn::Lsn;
use crate::record::{Kind, Schema};
use crate::time::Ts;

/// Rows that are turned together: their records stay in the first-level cache for all columns.
const TILE: usize = 128;

/// Writes the record fields of `rows` (each of `words` words) as the columns of `body`, which begin at
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

/// The columns of one block, for reading: their bytes each.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// The columns' bytes, from the first column on.
    pub bytes: &'a [u8],
    /// Rows.
    pub rows: usize,
}

impl<'a> Body<'a> {
    /// The bytes of the column of `size` bytes a value that begins at `at`.
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

/// How to rebuild records of one kind from the columns of a block.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The columns of the file.
    pub columns: Vec<Stored>,
    /// Words of a record.
    pub words: usize,
    /// Which column sorts.
    pub index: usize,
    /// Which column is the instrument.
    pub instrument: usize,
    /// The kind, as the first word of a record has it.
    kind: u64,
}

impl Plan {
    /// The plan of `schema` in files with the columns `columns`.
    pub fn new(schema: &Schema, columns: Vec<Stored>) -> Plan {
        let at = |offset: usize| columns.iter().position(|c| c.offset == Some(offset)).unwrap_or(0);
        let Kind(kind) = schema.kind;
        let (index, instrument) = (at(schema.index_word * 8), at(4));
        Plan { words: schema.words, index, instrument, kind: u64::from(kind), columns }
    }

    /// Where column `index` of a block of `rows` rows begins.
    pub fn offset(&self, index: usize, rows: usize) -> u64 {
        self.columns.iter().take(index).map(|c| ((rows * c.of.size()) as u64).next_multiple_of(ALIGN)).sum()
    }

    /// Appends the records of the rows `from..to` of `body` to `out`.
    pub fn rows(&self, body: Body<'_>, from: usize, to: usize, out: &mut Vec<u64>) {
        let start = out.len();
        out.resize(start + (to - from) * self.words, 0);
        let out = out.get_mut(start..).unwrap_or(&mut []);
        let mut first = from;
        for tile in out.chunks_mut(TILE * self.words) {
            let rows = tile.len() / self.words;
            self.tile(body, first, rows, tile);
            first += rows;
        }
    }

    fn tile(&self, body: Body<'_>, first: usize, rows: usize, out: &mut [u64]) {
        out.iter_mut().step_by(self.words).for_each(|word| *word = self.kind);
        let mut next = 0;
        for column in &self.columns {
            let size = column.of.size();
            let at = next;
            next += ((body.rows * size) as u64).next_multiple_of(ALIGN);
            let Some(offset) = column.offset else { continue };
            let bytes = body.column(at, size).get(first * size..(first + rows) * size).unwrap_or(&[]);
            let (word, shift) = (offset / 8, offset % 8 * 8);
            let to = out.chunks_exact_mut(self.words).filter_map(|r| r.get_mut(word));
            match size {
                8 => to.zip(cast::<u64>(bytes)).for_each(|(to, v)| *to = *v),
                4 if offset.is_multiple_of(4) => to.zip(cast::<u32>(bytes)).for_each(|(to, v)| *to |= u64::from(*v) << shift),
                2 => to.zip(cast::<u16>(bytes)).for_each(|(to, v)| *to |= u64::from(*v) << shift),
                1 => to.zip(bytes).for_each(|(to, v)| *to |= u64::from(*v) << shift),
                _ => {
                    for (record, from) in out.chunks_exact_mut(self.words).zip(bytes.chunks_exact(size)) {
                        let record: &mut [u8] = bytemuck::cast_slice_mut(record);
                        if let Some(to) = record.get_mut(offset..offset + size) {
                            to.copy_from_slice(from);
                        }
                    }
                }
            }
        }
    }

    /// The record of row `row` of `body`, into `out`.
    pub fn row(&self, body: Body<'_>, row: usize, out: &mut [u64]) {
        self.tile(body, row, 1, out);
    }
}

/// Records that come row by row, to be looked at as the columns of a block.
#[derive(Clone, Debug)]
pub struct BatchBuffer {
    plan: Plan,
    records: Vec<u64>,
    lsns: Vec<u64>,
    ingest: Vec<u64>,
    body: Vec<u64>,
}

impl BatchBuffer {
    /// An empty buffer for records of `schema`.
    pub fn new(schema: &'static Schema) -> BatchBuffer {
        let plan = Plan::new(schema, stored_columns(schema, true));
        BatchBuffer { plan, records: Vec::new(), lsns: Vec::new(), ingest: Vec::new(), body: Vec::new() }
    }

    /// Forgets all records.
    pub fn clear(&mut self) {
        self.records.clear();
        self.lsns.clear();
        self.ingest.clear();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lsns.is_empty()
    }

    /// Whether no more fit in a block.
    pub fn is_full(&self) -> bool {
        self.lsns.len() >= BLOCK_ROWS
    }

    /// Puts in a record.
    pub fn push(&mut self, lsn: Lsn, ingest_ts: Ts, record: &[u64]) {
        debug_assert!(record.len() == self.plan.words && !self.is_full());
        self.records.extend_from_slice(record);
        self.lsns.push(lsn.0);
        self.ingest.push(ingest_ts.0);
    }

    /// The records as the columns of a block.
    pub fn turn(&mut self) -> (Body<'_>, &Plan) {
        let rows = self.lsns.len();
        let (offsets, len) = column_offsets(&self.plan.columns, rows);
        self.body.clear();
        self.body.resize(len as usize / 8, 0);
        for (own, &at) in [&self.lsns, &self.ingest].into_iter().zip(&offsets) {
            self.body.iter_mut().skip(at as usize / 8).zip(own).for_each(|(to, from)| *to = *from);
        }
        let (plan, body) = (&self.plan, bytemuck::cast_slice_mut(&mut self.body));
        to_columns(&plan.columns, &offsets, plan.words, &self.records, body);
        (Body { bytes: bytemuck::cast_slice(&self.body), rows }, &self.plan)
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

    proptest! {
        #[test]
        fn records_come_back_from_their_columns_bit_by_bit(seed in any::<u64>(), rows in 1usize..300, kind in 0usize..5) {
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
            let mut one = vec![0; schema.words];
            plan.row(body, rows - 1, &mut one);
            prop_assert_eq!(&one[..], &records[(rows - 1) * schema.words..]);
        }
    }
}
