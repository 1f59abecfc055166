//! Owns: Parquet and Arrow IPC files of the rows of a kind, in the schema of [`crate::schema`].
//!
//! What must hold: a file's metadata has the count and the checksum of its records, by which an import finds damage.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use arrow_array::RecordBatch;
use arrow_ipc::writer::FileWriter;
use arrow_schema::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use tapestore::reader::Row;
use tapestore::record::{ColumnType, Name, Schema};

use super::file::Sink;
use crate::checksum::Checksum;
use crate::schema::{Batcher, CHECKSUM, INSTRUMENT, RECORDS, metadata};

/// Rows of a row group, and bytes that one may hold in memory, encoded.
const GROUP_ROWS: usize = 1 << 20;
pub(super) const GROUP_BYTES: usize = 64 << 20;
/// Rows of a page: what the page index lets a reader pass over.
const PAGE_ROWS: usize = 16 << 10;
const ZSTD_LEVEL: i32 = 3;

/// The system's own error if a write failed, the library's as text otherwise.
pub(super) fn parquet_failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => cause.downcast::<io::Error>().map_or_else(io::Error::other, |error| *error),
        other => io::Error::other(other),
    }
}

/// As [`parquet_failed`].
pub(super) fn arrow_failed(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        other => io::Error::other(other),
    }
}

/// What a file's metadata says of its records.
fn sums(checksum: &Checksum) -> [(&'static str, String); 2] {
    [(RECORDS, checksum.records.to_string()), (CHECKSUM, checksum.to_string())]
}

/// A Parquet file.
pub(super) struct ParquetSink {
    batcher: Batcher,
    writer: ArrowWriter<File>,
}

impl ParquetSink {
    pub(super) fn new(file: File, kind: &'static Schema, decimal: bool) -> io::Result<ParquetSink> {
        let batcher = Batcher::new(kind, decimal);
        let writer = ArrowWriter::try_new(file, batcher.schema(), Some(properties(kind, decimal)?));
        Ok(ParquetSink { batcher, writer: writer.map_err(parquet_failed)? })
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(batch) = self.batcher.take().map_err(arrow_failed)? else { return Ok(()) };
        self.writer.write(&batch).map_err(parquet_failed)?;
        if self.writer.memory_size() > GROUP_BYTES {
            self.writer.flush().map_err(parquet_failed)?;
        }
        Ok(())
    }
}

/// Compression, sizes and statistics of every Parquet file.
pub(super) fn base() -> io::Result<WriterPropertiesBuilder> {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(parquet_failed)?;
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(format!("tapestore {}", env!("CARGO_PKG_VERSION"))))
}

/// How columns are encoded: numbers as differences, which are small in rows sorted by time; names and characters
/// by dictionary.
fn properties(kind: &Schema, decimal: bool) -> io::Result<WriterProperties> {
    let sorted = |column_idx: usize| SortingColumn { column_idx: column_idx as i32, descending: false, nulls_first: false };
    let mut properties = base()?
        .set_dictionary_enabled(false)
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

impl Sink for ParquetSink {
    fn push(&mut self, row: &Row<'_>, name: &Name) -> io::Result<bool> {
        if self.batcher.push(row, name.as_str()) {
            self.write()?;
        }
        Ok(true)
    }

    fn finish(mut self: Box<Self>, checksum: &Checksum) -> io::Result<File> {
        self.write()?;
        for (key, value) in sums(checksum) {
            self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        self.writer.into_inner().map_err(parquet_failed)
    }
}

/// An Arrow IPC file.
pub(super) struct ArrowSink {
    batcher: Batcher,
    writer: FileWriter<BufWriter<File>>,
}

impl ArrowSink {
    pub(super) fn new(file: File, kind: &'static Schema, decimal: bool) -> io::Result<ArrowSink> {
        let batcher = Batcher::new(kind, decimal);
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), &batcher.schema());
        Ok(ArrowSink { batcher, writer: writer.map_err(arrow_failed)? })
    }

    fn write(&mut self) -> io::Result<()> {
        let batch: Option<RecordBatch> = self.batcher.take().map_err(arrow_failed)?;
        match batch {
            Some(batch) => self.writer.write(&batch).map_err(arrow_failed),
            None => Ok(()),
        }
    }
}

impl Sink for ArrowSink {
    fn push(&mut self, row: &Row<'_>, name: &Name) -> io::Result<bool> {
        if self.batcher.push(row, name.as_str()) {
            self.write()?;
        }
        Ok(true)
    }

    fn finish(mut self: Box<Self>, checksum: &Checksum) -> io::Result<File> {
        self.write()?;
        for (key, value) in sums(checksum) {
            self.writer.write_metadata(key, value);
        }
        self.writer.finish().map_err(arrow_failed)?;
        let mut file = self.writer.into_inner().map_err(arrow_failed)?;
        file.flush()?;
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::Path;

    use tapestore::lsn::Lsn;
    use tapestore::record::{Record as _, RecordRef, Trade};
    use tapestore::time::Ts;

    use super::*;
    use crate::checksum::name_hash;
    use crate::error::{Error, Result, Work};
    use crate::input::{self, Message, Options};

    /// The records of `path`, or why it cannot be read to its end.
    fn read(path: &Path) -> Result<Vec<Vec<u64>>> {
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
                "parquet" => Box::new(ParquetSink::new(file, &Trade::SCHEMA, false).unwrap()),
                _ => Box::new(ArrowSink::new(file, &Trade::SCHEMA, true).unwrap()),
            };
            let mut checksum = Checksum::default();
            for i in 0..20 {
                let trade = Trade { trade_id: i, ts_recv: Ts(i), ..Trade::default() };
                sink.push(&Row { lsn: Lsn(i), index_time: Ts(i), record: RecordRef::of(&trade) }, &name).unwrap();
                checksum.add(name_hash(&name), trade.words());
            }
            sink.finish(&checksum).unwrap();
            let whole = read(&path).unwrap();
            assert_eq!(whole.len(), 20);
            let ended = input::open_watched(&path, &Options::default(), &mut |progress| {
                assert!(progress.done > 0 && progress.done <= progress.total, "{progress:?}");
                ControlFlow::Break(())
            });
            assert!(matches!(ended, Err(Error::Interrupted { work: Work::Check, .. })));
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
