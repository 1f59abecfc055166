//! Owns: Parquet and Arrow IPC files of the rows of a kind, in the schema of [`crate::columnar`].

use std::fs::File;
use std::io::{BufWriter, Write};

use arrow_array::RecordBatch;
use arrow_ipc::writer::FileWriter;
use arrow_schema::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tapestore::reader::Row;
use tapestore::record::{ColumnType, Name, Schema};

use super::Sink;
use crate::columnar::{Batcher, CHECKSUM, INSTRUMENT, RECORDS, metadata};
use crate::exit::{Failure, IO, Outcome};
use crate::tally::Tally;

/// Rows of a row group, and bytes that one may hold in memory, encoded.
const GROUP_ROWS: usize = 1 << 20;
const GROUP_BYTES: usize = 64 << 20;
/// Rows of a page: what the page index lets a reader pass over.
const PAGE_ROWS: usize = 16 << 10;
const ZSTD_LEVEL: i32 = 3;

fn parquet_failed(e: &ParquetError) -> Failure {
    Failure::new(IO, format!("cannot write Parquet: {e}"))
}

fn arrow_failed(e: &ArrowError) -> Failure {
    Failure::new(IO, format!("cannot write Arrow: {e}"))
}

/// What a file says of its records.
fn sums(tally: &Tally) -> [(&'static str, String); 2] {
    [(RECORDS, tally.records.to_string()), (CHECKSUM, format!("{:016x}", tally.checksum))]
}

/// A Parquet file.
pub(super) struct Parquet {
    batcher: Batcher,
    writer: ArrowWriter<File>,
}

impl Parquet {
    pub(super) fn new(file: File, kind: &'static Schema, decimal: bool) -> Outcome<Parquet> {
        let batcher = Batcher::new(kind, decimal);
        let writer = ArrowWriter::try_new(file, batcher.schema(), Some(properties(kind, decimal)?));
        Ok(Parquet { batcher, writer: writer.map_err(|e| parquet_failed(&e))? })
    }

    fn write(&mut self) -> Outcome {
        let Some(batch) = self.batcher.take().map_err(|e| arrow_failed(&e))? else { return Ok(()) };
        self.writer.write(&batch).map_err(|e| parquet_failed(&e))?;
        if self.writer.memory_size() > GROUP_BYTES {
            self.writer.flush().map_err(|e| parquet_failed(&e))?;
        }
        Ok(())
    }
}

/// How columns are encoded: numbers as differences, which are small in rows sorted by time; names and characters
/// by dictionary.
fn properties(kind: &Schema, decimal: bool) -> Outcome<WriterProperties> {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|e| parquet_failed(&e))?;
    let sorted = |column_idx: usize| SortingColumn { column_idx: column_idx as i32, descending: false, nulls_first: false };
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(false)
        .set_created_by(format!("tapestore {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(metadata(kind).into_iter().map(|(k, v)| KeyValue::new(k.to_owned(), v)).collect()));
    let names = ["lsn", "index_time"].into_iter().map(|n| (n, true));
    let columns = kind.columns.iter().filter(|c| !c.is_reserved()).map(|c| {
        let is_text = c.name == INSTRUMENT || matches!(c.of, ColumnType::Char | ColumnType::Text(_));
        let is_decimal = c.of == ColumnType::Volume || decimal && matches!(c.of, ColumnType::Price | ColumnType::Size);
        (c.name, !is_text && !is_decimal)
    });
    for (index, (name, is_number)) in names.chain(columns).enumerate() {
        let path = ColumnPath::from(name);
        properties = if is_number {
            properties.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED)
        } else {
            properties.set_column_dictionary_enabled(path, true)
        };
        if name == INSTRUMENT {
            properties = properties.set_sorting_columns(Some(vec![sorted(index), sorted(1)]));
        }
    }
    Ok(properties.build())
}

impl Sink for Parquet {
    fn push(&mut self, row: &Row<'_>, name: &Name) -> Outcome<bool> {
        if self.batcher.push(row, name.as_str()) {
            self.write()?;
        }
        Ok(true)
    }

    fn finish(mut self: Box<Self>, tally: &Tally) -> Outcome<File> {
        self.write()?;
        for (key, value) in sums(tally) {
            self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        self.writer.into_inner().map_err(|e| parquet_failed(&e))
    }
}

/// An Arrow IPC file.
pub(super) struct Arrow {
    batcher: Batcher,
    writer: FileWriter<BufWriter<File>>,
}

impl Arrow {
    pub(super) fn new(file: File, kind: &'static Schema, decimal: bool) -> Outcome<Arrow> {
        let batcher = Batcher::new(kind, decimal);
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), &batcher.schema());
        Ok(Arrow { batcher, writer: writer.map_err(|e| arrow_failed(&e))? })
    }

    fn write(&mut self) -> Outcome {
        let batch: Option<RecordBatch> = self.batcher.take().map_err(|e| arrow_failed(&e))?;
        match batch {
            Some(batch) => self.writer.write(&batch).map_err(|e| arrow_failed(&e)),
            None => Ok(()),
        }
    }
}

impl Sink for Arrow {
    fn push(&mut self, row: &Row<'_>, name: &Name) -> Outcome<bool> {
        if self.batcher.push(row, name.as_str()) {
            self.write()?;
        }
        Ok(true)
    }

    fn finish(mut self: Box<Self>, tally: &Tally) -> Outcome<File> {
        self.write()?;
        for (key, value) in sums(tally) {
            self.writer.write_metadata(key, value);
        }
        self.writer.finish().map_err(|e| arrow_failed(&e))?;
        let mut file = self.writer.into_inner().map_err(|e| arrow_failed(&e))?;
        file.flush()?;
        file.into_inner().map_err(|e| Failure::new(IO, e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tapestore::lsn::Lsn;
    use tapestore::record::{Record as _, RecordRef, Trade};
    use tapestore::time::Ts;

    use super::*;
    use crate::input::{self, Message, Options};

    /// The records of `path`, or why it cannot be read to its end.
    fn read(path: &Path) -> Outcome<Vec<Vec<u64>>> {
        let (mut input, mut message) = (input::open(path, &Options::default())?, Message::default());
        let mut records = Vec::new();
        while input.next(&mut message)? {
            records.push(message.words.clone());
        }
        Ok(records)
    }

    #[test]
    fn a_file_that_is_cut_or_damaged_anywhere_is_refused_or_read_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let name: Name = "A:B".parse().unwrap();
        for format in ["parquet", "arrow"] {
            let path = dir.path().join("file");
            let file = File::create(&path).unwrap();
            let mut sink: Box<dyn Sink> = match format {
                "parquet" => Box::new(Parquet::new(file, &Trade::SCHEMA, false).unwrap()),
                _ => Box::new(Arrow::new(file, &Trade::SCHEMA, true).unwrap()),
            };
            let mut tally = Tally::default();
            for i in 0..20 {
                let trade = Trade { trade_id: i, ts_recv: Ts(i), ..Trade::default() };
                sink.push(&Row { lsn: Lsn(i), index_time: Ts(i), record: RecordRef::of(&trade) }, &name).unwrap();
                tally.add(crate::tally::name_hash(&name), trade.words());
            }
            sink.finish(&tally).unwrap();
            let whole = read(&path).unwrap();
            assert_eq!(whole.len(), 20);
            let bytes = std::fs::read(&path).unwrap();
            for len in (0..bytes.len()).step_by(7) {
                std::fs::write(&path, &bytes[..len]).unwrap();
                assert!(read(&path).is_err(), "{format} cut at {len}");
            }
            let mut refused = 0;
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= [0xff, 0x01, 0x80][at % 3];
                std::fs::write(&path, &damaged).unwrap();
                match read(&path) {
                    Ok(records) => assert!(records == whole, "{format}: byte {at}"),
                    Err(_) => refused += 1,
                }
            }
            assert!(refused > bytes.len() / 4, "{format}: {refused} of {}", bytes.len());
        }
    }
}
