//! Owns: `tape sql --out FILE`: the rows of an answer in a file of the format that its name ends with.
//!
//! | name | |
//! |---|---|
//! | `*.parquet`, `*.arrow` | the columns of the answer; times in UTC, dictionaries as their values |
//! | `*.csv`, `*.json` | what `--csv` and `--json` print |
//!
//! What must hold: a file has its name only when the answer is whole. An answer that fails or is interrupted leaves nothing, and
//! no file is replaced unless `--overwrite` is given.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tape_services::exit::{Failure, INTERNAL, Outcome, USAGE};
use tape_services::grid::{Format, Grid};
use tapestore_formats::Error;
use tapestore_formats::export::{BatchFile, NewFile};

use crate::print;

/// Where an answer goes, and whether a file there is replaced.
#[derive(Clone, Debug)]
pub struct Target {
    path: PathBuf,
    overwrite: bool,
    format: Format,
    is_text: bool,
}

/// A file that rows are written to.
pub enum OutFile {
    /// Columns.
    Columns(Box<BatchFile>, SchemaRef),
    /// Lines.
    Lines(Box<Grid>, NewFile),
}

/// The failure, with the option of this command.
fn failed(error: Error) -> Failure {
    if let Error::Exists { path } = &error {
        return Failure::new(USAGE, format!("{} is there already; to replace it, add --overwrite", path.display()));
    }
    error.into()
}

impl Target {
    /// The file `path`. `format` is what the command line says about output.
    ///
    /// # Errors
    /// The name does not end as that of a format; the file is there and `overwrite` is not set; the output has another format.
    pub fn new(path: &Path, overwrite: bool, format: Format) -> Outcome<Target> {
        let refuse = |reason: String| Err(Failure::new(USAGE, reason));
        let shown = path.display();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("");
        let (csv, json) = (ending == "csv", ending == "json");
        if !csv && !json && !["parquet", "arrow"].contains(&ending) {
            return refuse(format!("{shown} does not end in .parquet, .arrow, .csv or .json, from which the format follows"));
        }
        if format.csv || format.json {
            return refuse(format!("the format of {shown} follows from its name: leave out --csv and --json"));
        }
        if format.columns.is_some() && !csv && !json {
            return refuse(format!("--columns is for lines of text: name the columns of {shown} in the statement"));
        }
        let is_there = path.symlink_metadata().ok();
        if is_there.as_ref().is_some_and(|there| !there.is_file()) {
            return Err(failed(Error::Occupied { path: path.to_path_buf() }));
        }
        if is_there.is_some() && !overwrite {
            return Err(failed(Error::Exists { path: path.to_path_buf() }));
        }
        let format = Format { csv, json, columns: format.columns };
        Ok(Target { path: path.to_path_buf(), overwrite, format, is_text: csv || json })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins the file, for rows with `schema`.
    ///
    /// # Errors
    /// It cannot be created; the format has no such column.
    pub fn create(&self, schema: &SchemaRef) -> Outcome<OutFile> {
        if !self.is_text {
            let schema = stored(schema);
            let file = BatchFile::create(self.path.clone(), &schema, self.overwrite).map_err(failed)?;
            return Ok(OutFile::Columns(Box::new(file), schema));
        }
        let new = NewFile::create(self.path.clone(), self.overwrite).map_err(failed)?;
        let mut grid = Grid::file(self.format, Box::new(new.writer()?), self.path.clone());
        grid.head(print::headings(schema))?;
        Ok(OutFile::Lines(Box::new(grid), new))
    }
}

impl OutFile {
    /// Writes the rows of `batch`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&mut self, batch: &RecordBatch) -> Outcome {
        match self {
            OutFile::Columns(file, schema) => Ok(file.write(&typed(batch, schema)?)?),
            OutFile::Lines(grid, _) => print::print(grid, batch),
        }
    }

    /// Gives the file its name; returns its bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Outcome<u64> {
        match self {
            OutFile::Columns(file, _) => Ok(file.finish()?),
            OutFile::Lines(mut grid, new) => {
                grid.flush()?;
                Ok(new.finish()?)
            }
        }
    }
}

/// The type of a column of type `of` in a file: batches of one answer may have different dictionaries, which Arrow files cannot
/// hold, and times are in UTC.
fn type_of(of: &DataType) -> DataType {
    let field = |field: &Arc<Field>| Arc::new(field.as_ref().clone().with_data_type(type_of(field.data_type())));
    match of {
        DataType::Dictionary(_, values) => type_of(values),
        DataType::Timestamp(unit, None) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::List(item) => DataType::List(field(item)),
        of => of.clone(),
    }
}

/// The columns of a file of rows with `schema`.
fn stored(schema: &SchemaRef) -> SchemaRef {
    let names = print::headings(schema).into_iter().map(|heading| heading.name);
    let field = |(name, field): (String, &Arc<Field>)| Field::new(name, type_of(field.data_type()), field.is_nullable());
    Arc::new(Schema::new(names.zip(schema.fields()).map(field).collect::<Vec<_>>()))
}

fn typed(batch: &RecordBatch, schema: &SchemaRef) -> Outcome<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns: Result<Vec<ArrayRef>, _> = columns.map(|(column, field)| cast(column, field.data_type())).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    columns
        .and_then(|columns| RecordBatch::try_new_with_options(schema.clone(), columns, &options))
        .map_err(|error| Failure::new(INTERNAL, format!("a bug of this program: the rows are not of the columns: {error}")))
}
