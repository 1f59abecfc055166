//! Owns: export: what a store holds, as files for other programs; a file of each kind.
//!
//! What must hold: a file has its name only when it is whole and durable; memory does not grow with the
//! rows; what a format cannot hold is counted by its name, never dropped in silence; rows of a kind come
//! series by series, in the order of index time (DBN, whose files are streams: all series in one order).

mod batches;
mod csv;
mod dbn;
mod file;
mod named;
mod run;
mod tables;
mod target;

use std::collections::BTreeMap;

use tapestore::reader::{Series, Snapshot};
use tapestore::record::{Kind, Schema, schema, schemas_by_name};
use tapestore::shm::symbols::Symbols;

use self::file::Pending;
use self::named::check_free;
use self::run::Run;
use crate::checksum::name_hash;
use crate::error::{Error, Result};

pub use self::batches::BatchFile;
pub use self::csv::{CsvRows, header};
pub use self::file::FileReport;
pub use self::named::NewFile;
pub use self::run::{Event, OnEvent, Options, Summary};
pub use self::target::{Format, Target};

/// An export: from where, what, and where to.
pub struct Export<'a> {
    /// What is exported, up to its watermark.
    pub snapshot: &'a Snapshot,
    /// The names of the instruments in it.
    pub names: &'a mut Symbols,
    /// Which series.
    pub series: &'a [Series],
    /// Where the files go, and what they are.
    pub target: Target,
    /// What of the series, and how.
    pub options: Options,
}

impl Export<'_> {
    /// Writes the files; `on_event` is called as rows are read and when a file is whole.
    ///
    /// # Errors
    /// [`Error::Nothing`] if there are no series; [`Error::Usage`] if one file cannot hold them; [`Error::Exists`];
    /// [`Error::Create`]; [`Error::Write`]; [`Error::Interrupted`] if `on_event` ended it; [`Error::Store`]. Files of which
    /// `on_event` was notified are whole, and nothing is left of the others.
    pub fn write(self, on_event: OnEvent<'_>) -> Result<Summary> {
        let mut kinds: BTreeMap<Kind, Vec<Series>> = BTreeMap::new();
        self.series.iter().for_each(|series| kinds.entry(series.kind).or_default().push(*series));
        let Target { is_dir, format, .. } = self.target;
        if kinds.is_empty() {
            return Err(Error::Nothing);
        }
        if kinds.len() > 1 && !is_dir && !format.is_dbn() {
            let names: Vec<&str> = kinds.keys().filter_map(|k| schema(*k)).map(|s| s.name).collect();
            let names = names.join(", ");
            let what = format!("a file holds one kind, and there are {names}: choose with --kind, or name a directory");
            return Err(Error::Usage(what));
        }
        if is_dir {
            let path = &self.target.path;
            std::fs::create_dir_all(path).map_err(|source| Error::Create { path: path.clone(), source })?;
        }
        let mut run = Run::new(self.snapshot, self.names, self.target, self.options, on_event);
        if format.is_dbn() {
            dbn::export(&mut run, &kinds)?;
            return Ok(run.summary);
        }
        // All of them before the first is written.
        for schema in kinds.keys().filter_map(|k| schema(*k)) {
            check_free(&run.path(&stem(schema)), self.options.replace)?;
        }
        for (kind, series) in &kinds {
            write_kind(&mut run, *kind, series)?;
        }
        Ok(run.summary)
    }
}

/// What the file of a kind in a directory is called; layouts of one name have files of their own.
fn stem(kind: &Schema) -> String {
    if schemas_by_name(kind.name).count() > 1 { format!("{}-{:04x}", kind.name, kind.kind.0) } else { kind.name.to_owned() }
}

/// Writes the rows of one kind into one file.
fn write_kind(run: &mut Run<'_>, kind: Kind, series: &[Series]) -> Result {
    let Some(schema) = schema(kind) else { return Ok(()) };
    let (format, decimal) = (run.target.format, run.options.decimal);
    let path = run.take_path(&stem(schema))?;
    let mut file = Pending::create(path, schema, run.options.replace, |file| {
        Ok(match format {
            Format::Parquet => Box::new(tables::ParquetSink::new(file, schema, decimal)?),
            Format::Arrow => Box::new(tables::ArrowSink::new(file, schema, decimal)?),
            _ => Box::new(csv::CsvSink::new(file, schema, format == Format::CsvGz)?),
        })
    })?;
    // The order that a Parquet file says its rows are in.
    let mut series = series.iter().map(|s| Ok((run.name(s.instrument)?, *s))).collect::<Result<Vec<_>>>()?;
    series.sort_unstable_by_key(|(name, _)| *name);
    for (name, one) in series {
        let hash = name_hash(&name);
        let mut scan = run.snapshot.scan(one, run.options.range);
        while !run.is_full()
            && let Some(row) = scan.next()?
        {
            run.count(file.push(&row, &name, hash)?);
            run.tick()?;
        }
    }
    run.finish(file)
}
