//! Owns: how many bytes an SSTable will have, before there is one. The parts are made by the functions that write them.
//!
//! What must hold: a test compares the sizes with those of written files.

use super::arrow;
use super::bloom::{Line, lines_for};
use super::format::{
    ALIGN, BLOCK_ROWS, BLOOM_BITS, Block, FileSchema, LINE_LSNS, RunEntry, SeriesEntry, TRAILER_LEN, column_offsets,
    stored_columns,
};
use crate::error::{Error, Result};
use crate::record::Schema;

/// What an SSTable will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Rows.
    pub rows: u64,
    /// Series, with the same number of rows each.
    pub series: u64,
    /// LSNs from the first to the last of its rows: what lies between are records of other kinds.
    pub lsns: u64,
    /// Runs of LSNs of one publisher.
    pub runs: u64,
}

impl Content {
    /// Rows of each block.
    fn blocks(&self) -> Vec<usize> {
        let full = BLOCK_ROWS as u64;
        let of_rows = |rows: u64| {
            let rest = (rows % full) as usize;
            std::iter::repeat_n(BLOCK_ROWS, (rows / full) as usize).chain((rest > 0).then_some(rest))
        };
        let each = self.rows.checked_div(self.series).unwrap_or(0);
        // A series of this many rows begins a block, so what is left of it has one of its own.
        if each >= full { (0..self.series).flat_map(|_| of_rows(each)).collect() } else { of_rows(self.rows).collect() }
    }

    /// Bytes of an SSTable of `schema` with this content, whose ids are all there and whose reserved bytes are zero.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the layout cannot be encoded.
    pub fn file_len(&self, schema: &'static Schema) -> Result<u64> {
        let columns = stored_columns(schema, false);
        let arrow = arrow::schema(schema, &columns);
        let blocks = self.blocks();
        let ids = schema.find_columns().count() as u64;
        let line = size_of::<Line>() as u64;
        let bloom = |rows: u64| if ids == 0 { 0 } else { lines_for(rows * ids, BLOOM_BITS) as u64 * line };
        let (mut data, mut blooms, mut known) = (0, 0, None);
        for rows in &blocks {
            // Most blocks are full, and alike.
            let (of, len) = known.filter(|(of, _)| of == rows).unwrap_or_else(|| {
                let (offsets, body) = column_offsets(&columns, *rows);
                (*rows, arrow::batch(&columns, *rows, &offsets, body).len() as u64 + body)
            });
            known = Some((of, len));
            data += len;
            blooms += bloom(*rows as u64);
        }
        let archive = rkyv::to_bytes::<rkyv::rancor::Error>(&FileSchema::of(schema));
        let archive = archive.map_err(|e| Error::invalid("schema", e.to_string()))?.len() as u64;
        let lines = self.lsns.max(1).div_ceil(LINE_LSNS);
        let index = if lines * 8 >= self.rows { self.rows * 8 } else { lines * 64 };
        let sections = [
            archive,
            (blocks.len() * size_of::<Block>()) as u64,
            self.series * size_of::<SeriesEntry>() as u64,
            self.runs * size_of::<RunEntry>() as u64,
            index,
            self.rows * 4,
            bloom(self.rows),
            blooms,
        ];
        let sections: u64 = sections.iter().map(|len| len.next_multiple_of(ALIGN)).sum();
        let entries: Vec<Block> = blocks.iter().map(|_| bytemuck::Zeroable::zeroed()).collect();
        let ends = arrow::head(&arrow).len() + TRAILER_LEN + arrow::tail(&arrow, &entries).len();
        Ok(ends as u64 + ALIGN + data + sections)
    }
}
