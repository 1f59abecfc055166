//! Owns: Parquet and Arrow IPC files of batches of columns of any schema: the answer of a statement.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use arrow_array::RecordBatch;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::Encoding;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::named::NewFile;
use super::tables::{GROUP_BYTES, arrow_failed, base, parquet_failed};
use super::target::Format;
use crate::error::{Error, Result};

/// A file of batches, which gets its name when it is whole.
pub struct BatchFile {
    new: NewFile,
    writer: Writer,
}

enum Writer {
    Parquet(Box<ArrowWriter<File>>),
    Arrow(Box<FileWriter<BufWriter<File>>>),
}

impl BatchFile {
    /// Begins the file `path` of rows with `schema`, which has no dictionaries.
    ///
    /// # Errors
    /// [`Error::Exists`] if it is there and `replace` is not set; [`Error::Create`]; [`Error::Write`] if the format has no such
    /// column; [`Error::Usage`] if the path does not end in `.parquet` or `.arrow`.
    pub fn create(path: PathBuf, schema: &SchemaRef, replace: bool) -> Result<BatchFile> {
        let format = Format::of(&path).filter(|format| matches!(format, Format::Parquet | Format::Arrow));
        let Some(format) = format else {
            return Err(Error::Usage(format!("{} is not called *.parquet or *.arrow", path.display())));
        };
        let new = NewFile::create(path, replace)?;
        let (file, fail) = (new.writer()?, Error::write(new.path()));
        let writer = if format == Format::Parquet {
            let properties = properties(schema).map_err(&fail)?;
            let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties));
            Writer::Parquet(Box::new(writer.map_err(parquet_failed).map_err(&fail)?))
        } else {
            let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), schema);
            Writer::Arrow(Box::new(writer.map_err(arrow_failed).map_err(&fail)?))
        };
        drop(fail);
        Ok(BatchFile { new, writer })
    }

    /// Writes the rows of `batch`.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result {
        let written = match &mut self.writer {
            Writer::Parquet(writer) => writer
                .write(batch)
                .and_then(|()| if writer.memory_size() > GROUP_BYTES { writer.flush() } else { Ok(()) })
                .map_err(parquet_failed),
            Writer::Arrow(writer) => writer.write(batch).map_err(arrow_failed),
        };
        written.map_err(Error::write(self.new.path()))
    }

    /// Makes the file durable and gives it its name; returns its bytes.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn finish(self) -> Result<u64> {
        let ended = match self.writer {
            Writer::Parquet(writer) => writer.close().map(drop).map_err(parquet_failed),
            // It flushes the buffer, too.
            Writer::Arrow(mut writer) => writer.finish().map_err(arrow_failed),
        };
        ended.map_err(Error::write(self.new.path()))?;
        self.new.finish()
    }
}

/// How columns are encoded: whole numbers as differences, which are small in rows sorted by time; the others by dictionary.
fn properties(schema: &SchemaRef) -> std::io::Result<WriterProperties> {
    let mut properties = base()?.set_dictionary_enabled(true);
    for field in schema.fields() {
        if field.data_type().is_integer() || matches!(field.data_type(), DataType::Timestamp(..)) {
            let path = ColumnPath::from(vec![field.name().clone()]);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
    }
    Ok(properties.build())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Array, Int64Array, StringArray};
    use arrow_ipc::reader::FileReader;
    use arrow_schema::{Field, Schema};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    #[test]
    fn rows_of_any_columns_are_read_again_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let schema = Arc::new(Schema::new(vec![Field::new("a.b", DataType::Int64, true), Field::new("x", DataType::Utf8, true)]));
        let numbers: Arc<dyn Array> = Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(7)]));
        let texts: Arc<dyn Array> = Arc::new(StringArray::from(vec![Some("X:A"), Some(""), None]));
        let batch = RecordBatch::try_new(schema.clone(), vec![numbers, texts]).unwrap();
        for name in ["a.parquet", "a.arrow"] {
            let path = dir.path().join(name);
            let mut file = BatchFile::create(path.clone(), &schema, false).unwrap();
            file.write(&batch).unwrap();
            file.write(&batch.slice(1, 1)).unwrap();
            assert_eq!(file.finish().unwrap(), std::fs::metadata(&path).unwrap().len());
            let open = File::open(&path).unwrap();
            let read: Vec<RecordBatch> = match name {
                "a.arrow" => FileReader::try_new(open, None).unwrap().map(|batch| batch.unwrap()).collect(),
                _ => ParquetRecordBatchReaderBuilder::try_new(open).unwrap().build().unwrap().map(|b| b.unwrap()).collect(),
            };
            let read = texts_of(&read);
            assert_eq!(read, texts_of(&[batch.clone(), batch.slice(1, 1)]), "{name}");
        }
        assert!(matches!(BatchFile::create(dir.path().join("a.csv"), &schema, false), Err(Error::Usage(_))));
    }

    /// Each row as text.
    fn texts_of(batches: &[RecordBatch]) -> Vec<String> {
        let rows =
            |batch: &RecordBatch| (0..batch.num_rows()).map(|row| format!("{:?}", batch.slice(row, 1))).collect::<Vec<_>>();
        batches.iter().flat_map(rows).collect()
    }
}
