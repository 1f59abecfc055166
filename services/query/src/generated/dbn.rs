//! Owns: `read_dbn(path)`: the records of a DBN file, in the columns of their kind.
//!
//! What must hold: values are those that an import of the file stores. All rows are of the kind of the file's first record; a file with
//! records of another kind is refused when they are met, but for its symbol mappings.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema as ArrowSchema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::error::{DataFusionError, Result};
use tapestore::record::{Kind, Mapping, Record, Schema, schema, split};
use tapestore_formats::input::{self, Dbn, Input, Message};

use super::files::failed;
use super::{Call, Generated, Out, Rows};
use crate::columns::of_records;
use crate::names::Names;
use crate::schema::{KindTable, Origin};

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

#[derive(Debug)]
struct Table {
    path: PathBuf,
    kind: &'static Schema,
    schema: SchemaRef,
    origins: Vec<Origin>,
}

fn open(path: &Path) -> Result<Dbn> {
    Dbn::open(path, &input::Options::default()).map_err(|error| DataFusionError::Execution(error.to_string()))
}

/// The next record that is no mapping, into `words`: its kind; `None` at the end.
fn next(file: &mut Dbn, message: &mut Message, words: &mut Vec<u64>, path: &Path) -> Result<Option<Vec<Kind>>> {
    loop {
        if !file.next(message).map_err(|error| DataFusionError::Execution(error.to_string()))? {
            return Ok(None);
        }
        let mut kinds = Vec::new();
        for record in split(&message.words) {
            let record = record.map_err(|error| failed(path, error))?;
            if record.kind() != Mapping::KIND {
                kinds.push(record.kind());
                words.extend_from_slice(record.words());
            }
        }
        if !kinds.is_empty() {
            return Ok(Some(kinds));
        }
    }
}

/// The table.
pub(super) fn table(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    let path = PathBuf::from(call.text(0)?);
    let first = next(&mut open(&path)?, &mut Message::default(), &mut Vec::new(), &path)?;
    let kind = first.and_then(|kinds| kinds.first().copied()).and_then(schema);
    let kind = kind.ok_or_else(|| failed(&path, "it has no records"))?;
    let all = KindTable::new(kind);
    let (mut fields, mut origins): (Vec<Arc<Field>>, Vec<Origin>) = (Vec::new(), Vec::new());
    for (field, origin) in all.arrow.fields().iter().zip(&all.origins) {
        match origin {
            Origin::Ingested | Origin::Lsn | Origin::Publisher => continue,
            Origin::Time => fields.push(Arc::new(field.as_ref().clone().with_nullable(true))),
            Origin::Symbol | Origin::Field { .. } => fields.push(field.clone()),
        }
        origins.push(*origin);
    }
    let rows = Table { path, kind, schema: Arc::new(ArrowSchema::new(fields)), origins };
    Ok(Arc::new(Generated { rows: Arc::new(rows), names: None }))
}

impl Rows for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn write(&self, out: &Out<'_>) -> Result<()> {
        let (mut file, mut message, mut words) = (open(&self.path)?, Message::default(), Vec::new());
        let mut names = Names::new(&[]);
        let projected = Arc::new(self.schema.project(&out.wanted.columns)?);
        let origins: Vec<Origin> = out.wanted.columns.iter().filter_map(|at| self.origins.get(*at).copied()).collect();
        loop {
            let read = next(&mut file, &mut message, &mut words, &self.path)?;
            if let Some(other) = read.iter().flatten().find(|kind| **kind != self.kind.kind) {
                let name = schema(*other).map_or("?", |kind| kind.name);
                return Err(failed(
                    &self.path,
                    format!("it has records of kind {} and of kind {name}; import it instead", self.kind.name),
                ));
            }
            let rows = words.len() / self.kind.words.max(1);
            if read.is_some() && rows < BATCH_ROWS {
                continue;
            }
            if file.names().len() != names.len() {
                names = Names::new(file.names());
            }
            let columns = of_records(self.kind, &words, &origins, &names);
            let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
            words.clear();
            let batch = RecordBatch::try_new_with_options(projected.clone(), columns, &options)?;
            if read.is_none() {
                let _last = out.send(batch);
                return Ok(());
            }
            if let ControlFlow::Break(()) = out.send(batch) {
                return Ok(());
            }
        }
    }
}
