//! Owns: `read_parquet(path)`, `read_arrow(path)`, `read_csv(path)`: the rows of a user's file, to be joined with the store's.
//!
//! What must hold: a file is read with the rights of this process, so only where the user of the process asks for it: a server refuses,
//! unless it was started with `--read-files`. A batch is held at a time.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::csv::reader::Format;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::FileReader;
use datafusion::catalog::TableProvider;
use datafusion::error::{DataFusionError, Result};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Call, Generated, Out, Rows};

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;
/// Rows of a CSV file by which the types of its columns are found.
const SAMPLE: usize = 10_000;

/// A server does not read files.
pub(super) fn refuse(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    let name = call.function.name;
    Err(DataFusionError::Plan(format!(
        "{name} reads files with the rights of the server's process, so this server refuses it; use tape sql, or start the server \
         with --read-files"
    )))
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Parquet,
    Arrow,
    Csv,
}

#[derive(Debug)]
struct Table {
    path: PathBuf,
    of: Of,
    schema: SchemaRef,
}

/// The file `path` cannot be read, because of `why`.
pub(super) fn failed(path: &Path, why: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Execution(format!("{} cannot be read: {why}", path.display()))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| failed(path, error))
}

fn csv_format() -> Format {
    Format::default().with_header(true)
}

fn table(call: &Call<'_>, of: Of) -> Result<Arc<dyn TableProvider>> {
    let path = PathBuf::from(call.text(0)?);
    let file = open(&path)?;
    let schema = match of {
        Of::Parquet => ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(&path, error))?.schema().clone(),
        Of::Arrow => FileReader::try_new(BufReader::new(file), None).map_err(|error| failed(&path, error))?.schema(),
        Of::Csv => {
            let inferred = csv_format().infer_schema(BufReader::new(file), Some(SAMPLE));
            Arc::new(inferred.map_err(|error| failed(&path, error))?.0)
        }
    };
    // What a file says of itself is not of its columns.
    let schema = Arc::new(arrow::datatypes::Schema::new(schema.fields().clone()));
    Ok(Arc::new(Generated { rows: Arc::new(Table { path, of, schema }), names: None }))
}

/// The rows of a Parquet file.
pub(super) fn parquet(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    table(call, Of::Parquet)
}

/// The rows of an Arrow IPC file.
pub(super) fn arrow(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    table(call, Of::Arrow)
}

/// The rows of a CSV file with a line of names.
pub(super) fn csv(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    table(call, Of::Csv)
}

impl Table {
    /// The batches of the columns at `columns`, in the file's order.
    fn batches(&self, columns: &[usize]) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>> {
        let mut file = open(&self.path)?;
        let failed = |error: &dyn std::fmt::Display| failed(&self.path, error);
        // Readers give columns in the order of the file.
        let mut sorted = columns.to_vec();
        sorted.sort_unstable();
        Ok(match self.of {
            Of::Parquet => {
                let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(&error))?;
                let mask = ProjectionMask::roots(builder.parquet_schema(), sorted);
                let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
                Box::new(reader.map_err(|error| failed(&error))?)
            }
            Of::Arrow => Box::new(FileReader::try_new(BufReader::new(file), Some(sorted)).map_err(|error| failed(&error))?),
            Of::Csv => {
                file.rewind().map_err(|error| failed(&error))?;
                let builder = arrow::csv::ReaderBuilder::new(self.schema.clone()).with_format(csv_format());
                let reader = builder.with_projection(sorted).with_batch_size(BATCH_ROWS).build(file);
                Box::new(reader.map_err(|error| failed(&error))?)
            }
        })
    }
}

impl Rows for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn write(&self, out: &Out<'_>) -> Result<()> {
        let columns = &out.wanted.columns;
        let mut sorted = columns.clone();
        sorted.sort_unstable();
        let order: Vec<usize> = columns.iter().filter_map(|column| sorted.iter().position(|other| other == column)).collect();
        let projected = Arc::new(self.schema.project(columns)?);
        for batch in self.batches(columns)? {
            let batch = batch.map_err(|error| failed(&self.path, error))?.project(&order)?;
            if batch.schema().fields() != projected.fields() {
                return Err(failed(&self.path, "it was changed since the statement was planned"));
            }
            let batch = batch.with_schema(projected.clone())?;
            if let ControlFlow::Break(()) = out.send(batch) {
                return Ok(());
            }
        }
        Ok(())
    }
}
