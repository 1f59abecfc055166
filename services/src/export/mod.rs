//! Owns: `tape export`: what a store holds, as files for other programs; a file a kind.
//!
//! What must hold: a file has its name only when it is whole and durable; memory does not grow with the
//! rows; what a format cannot hold is counted by its name, never dropped in silence; rows of a kind come
//! series by series, in the order of index time (DBN, whose files are streams: all series in one order).

mod csv;
mod dbn;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tapestore::reader::{Row, Series, Snapshot};
use tapestore::record::{Column, Kind, Name, Schema, schema, schemas_by_name};
use tapestore::shm::symbols::Symbols;

use crate::exit::{DATA, Failure, IO, NO_INPUT, NOT_FOUND, Outcome, USAGE};
use crate::output::Format as Output;
use crate::query::{self, Filter, Span, Watermark};
use crate::tally::{Tally, name_hash};
use crate::terminal;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Parquet with zstd
    Parquet,
    /// Arrow IPC file
    Arrow,
    /// CSV with a header
    Csv,
    /// CSV, compressed with gzip
    CsvGz,
    /// Databento's DBN, version 3
    Dbn,
    /// DBN, compressed with zstd
    DbnZst,
}

impl Format {
    const ALL: [(Format, &'static str); 6] = [
        (Format::Parquet, "parquet"),
        (Format::Arrow, "arrow"),
        (Format::Csv, "csv"),
        (Format::CsvGz, "csv.gz"),
        (Format::Dbn, "dbn"),
        (Format::DbnZst, "dbn.zst"),
    ];

    fn extension(self) -> &'static str {
        Format::ALL.iter().find(|(f, _)| *f == self).map_or("", |(_, e)| e)
    }

    /// What the name `path` says.
    fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?;
        Format::ALL.iter().find(|(_, e)| name.strip_suffix(e).is_some_and(|n| n.ends_with('.'))).map(|(f, _)| *f)
    }

    fn is_dbn(self) -> bool {
        matches!(self, Format::Dbn | Format::DbnZst)
    }
}

/// `tape export`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file called *.parquet, *.arrow, *.csv, *.csv.gz, *.dbn or *.dbn.zst, for one kind; or a directory, for a file a kind
    out: PathBuf,
    /// What files in a directory are [default: parquet]
    #[arg(long)]
    format: Option<Format>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    watermark: Watermark,
    /// Prices and sizes as decimals instead of integers of 1e-9 (Parquet, Arrow)
    #[arg(long)]
    decimal: bool,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

/// Takes rows and makes a file of them.
trait Sink {
    /// Takes the next row; `false` if it is left in the store, counted.
    fn push(&mut self, row: &Row<'_>, name: &Name) -> Outcome<bool>;

    /// Writes out what is held back, and gives the file. Where the format has a place for it, the file says `tally`.
    fn finish(self: Box<Self>, tally: &Tally) -> Outcome<File>;

    /// What the format could not hold, and how often.
    fn left(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// A file that gets its name when it is whole.
struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    sink: Option<Box<dyn Sink>>,
    tally: Tally,
    kind: &'static Schema,
    /// Records with bytes in their reserved fields, which no file holds.
    reserved: u64,
}

impl Pending {
    fn create(
        path: PathBuf,
        kind: &'static Schema,
        force: bool,
        open: impl FnOnce(File) -> Outcome<Box<dyn Sink>>,
    ) -> Outcome<Pending> {
        check_free(&path, force)?;
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary);
        let file = file.map_err(|e| {
            let code = if e.kind() == std::io::ErrorKind::NotFound { NO_INPUT } else { IO };
            Failure::new(code, format!("cannot create {}: {e}", path.display()))
        })?;
        let mut pending = Pending { path, temporary, sink: None, tally: Tally::default(), kind, reserved: 0 };
        pending.sink = Some(open(file)?);
        Ok(pending)
    }

    /// Takes the next row; `false` if it is left in the store.
    fn push(&mut self, row: &Row<'_>, name: &Name, hash: u64) -> Outcome<bool> {
        let Some(sink) = &mut self.sink else { return Ok(false) };
        if !sink.push(row, name)? {
            return Ok(false);
        }
        self.tally.add(hash, row.record.words());
        let is_used = |c: &Column| {
            let bytes = row.record.bytes().get(c.offset..c.offset + c.of.size());
            bytes.is_some_and(|b| b.iter().any(|b| *b != 0))
        };
        self.reserved += u64::from(self.kind.reserved().any(is_used));
        Ok(true)
    }

    /// Gives the file its name; what it could not hold.
    fn finish(&mut self) -> Outcome<BTreeMap<String, u64>> {
        let Some(sink) = self.sink.take() else { return Ok(BTreeMap::new()) };
        let mut left = sink.left();
        if self.reserved > 0 {
            left.insert("reserved fields of records that are not zero".to_owned(), self.reserved);
        }
        let fail = |e: std::io::Error| Failure::new(IO, format!("cannot write {}: {e}", self.path.display()));
        sink.finish(&self.tally)?.sync_all().map_err(fail)?;
        name(&self.temporary, &self.path).map_err(fail)?;
        Ok(left)
    }
}

/// Whether a file may be made at `path`.
fn check_free(path: &Path, force: bool) -> Outcome {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(there) if !there.is_file() => Err(Failure::new(USAGE, format!("{} is there and no file", path.display()))),
        Ok(_) if force => Ok(()),
        Ok(_) => Err(Failure::new(USAGE, format!("{} is there already; --force replaces it", path.display()))),
    }
}

#[expect(clippy::disallowed_methods, reason = "the file is not one of the store")]
fn name(temporary: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::rename(temporary, path)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.temporary.exists() {
            std::fs::remove_file(&self.temporary).ok();
        }
    }
}

/// Rows between two times at which the memory of what has been read is given back.
const RELEASE_ROWS: u64 = 1 << 19;

/// One export: where to, and what.
struct Export<'a> {
    args: &'a Args,
    format: Format,
    symbols: &'a mut Symbols,
    snapshot: &'a Snapshot,
    bar: indicatif::ProgressBar,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    is_dir: bool,
    /// The files of this export.
    made: BTreeSet<PathBuf>,
    output: Output,
    /// Rows looked at.
    rows: u64,
    total: Tally,
    left: u64,
}

/// What the file of a kind in a directory is called; layouts of one name have files of their own.
fn stem(kind: &Schema) -> String {
    if schemas_by_name(kind.name).count() > 1 { format!("{}-{:04x}", kind.name, kind.kind.0) } else { kind.name.to_owned() }
}

impl Export<'_> {
    /// Where the file called `stem` goes.
    ///
    /// # Errors
    /// That another of this export has gone there.
    fn path(&mut self, stem: &str) -> Outcome<PathBuf> {
        let file = format!("{stem}.{}", self.format.extension());
        let path = if self.is_dir { self.args.out.join(file) } else { self.args.out.clone() };
        if self.made.insert(path.clone()) {
            return Ok(path);
        }
        Err(Failure::new(USAGE, format!("two files would be called {}; choose with --kind and --instrument", path.display())))
    }

    fn name(&mut self, series: Series) -> Outcome<Name> {
        let unknown = || Failure::new(DATA, format!("instrument {} has no name in this store", series.instrument));
        if series.instrument == tapestore::lsn::InstrumentId::NULL {
            return Ok(crate::input::NO_NAME.parse()?);
        }
        self.symbols.name(series.instrument).ok_or_else(unknown)
    }

    /// To be called for each row that was looked at.
    fn tick(&mut self) -> Outcome {
        self.rows += 1;
        let rows = self.rows;
        if rows.is_multiple_of(RELEASE_ROWS) {
            self.snapshot.release();
        }
        if rows.is_multiple_of(4096) {
            self.bar.set_position(rows);
            if terminal::is_raised(&self.stop) {
                return Err(Failure::new(
                    crate::exit::INTERRUPTED,
                    "interrupted: nothing is left of the file that was being written; files named above are whole",
                ));
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.total.records >= self.args.span.limit()
    }

    /// The rows of one kind into one file.
    fn kind(&mut self, kind: Kind, series: &[Series]) -> Outcome {
        let Some(schema) = schema(kind) else { return Ok(()) };
        let (format, decimal) = (self.format, self.args.decimal);
        let path = self.path(&stem(schema))?;
        let mut file = Pending::create(path, schema, self.args.force, |file| {
            Ok(match format {
                Format::Parquet => Box::new(tables::Parquet::new(file, schema, decimal)?),
                Format::Arrow => Box::new(tables::Arrow::new(file, schema, decimal)?),
                _ => Box::new(csv::Csv::new(file, schema, format == Format::CsvGz)?),
            })
        })?;
        // The order that a Parquet file says its rows are in.
        let mut series = series.iter().map(|s| Ok((self.name(*s)?, *s))).collect::<Outcome<Vec<_>>>()?;
        series.sort_unstable_by_key(|(name, _)| *name);
        for (name, one) in series {
            let hash = name_hash(&name);
            let mut scan = self.snapshot.scan(one, self.args.span.range());
            while !self.is_full()
                && let Some(row) = scan.next()?
            {
                self.total.records += u64::from(file.push(&row, &name, hash)?);
                self.tick()?;
            }
        }
        self.finish(&mut file)
    }

    /// Counts what no file was begun for.
    fn leave(&mut self, what: &str, n: u64) {
        self.left += n;
        if self.output.json {
            terminal::say(serde_json::json!({ "left": { what: n } }));
        } else {
            terminal::say(format_args!("left in the store: {} {what}", terminal::thousands(n)));
        }
    }

    fn finish(&mut self, file: &mut Pending) -> Outcome {
        let left = file.finish()?;
        self.total.checksum = self.total.checksum.wrapping_add(file.tally.checksum);
        self.left += left.values().sum::<u64>();
        let bytes = std::fs::metadata(&file.path)?.len();
        let (path, Tally { records, checksum }) = (file.path.display(), file.tally);
        if self.output.json {
            let object = serde_json::json!({
                "file": path.to_string(), "kind": file.kind.name, "records": records, "checksum": format!("{checksum:016x}"),
                "bytes": bytes, "left": left,
            });
            terminal::say(object);
            return Ok(());
        }
        let rows = terminal::thousands(records);
        terminal::say(format_args!(
            "{path}: {rows} {} records, checksum {checksum:016x}, {} bytes",
            file.kind.name,
            terminal::thousands(bytes)
        ));
        for (what, n) in left {
            terminal::say(format_args!("  left in the store: {} {what}", terminal::thousands(n)));
        }
        Ok(())
    }
}

/// Whether the export goes into a directory, and what its files are.
fn target(args: &Args) -> Outcome<(bool, Format)> {
    let is_dir = args.out.is_dir() || Format::of(&args.out).is_none();
    let has_slash = args.out.as_os_str().as_encoded_bytes().ends_with(b"/");
    if is_dir && !args.out.is_dir() && !has_slash && args.out.extension().is_some() && args.format.is_none() {
        let known: Vec<&str> = Format::ALL.iter().map(|(_, e)| *e).collect();
        let what = format!("{} is not called *.{}; a directory ends in /", args.out.display(), known.join(", *."));
        return Err(Failure::new(USAGE, what));
    }
    match (Format::of(&args.out).filter(|_| !is_dir), args.format) {
        (Some(a), Some(b)) if a != b => {
            Err(Failure::new(USAGE, format!("{} is not called as --format says", args.out.display())))
        }
        (a, b) => Ok((is_dir, a.or(b).unwrap_or(Format::Parquet))),
    }
}

/// `tape export`.
///
/// # Errors
/// That nothing matches (exit code 3), that a file cannot be written, that a format could not hold something
/// (exit code 65, after everything else has been written).
pub fn run(store: &Path, args: &Args, output: Output) -> Outcome {
    let began = Instant::now();
    let stop = terminal::stop_flag()?;
    let (is_dir, format) = target(args)?;
    let (mut reader, snapshot) = query::open(store, args.watermark.at)?;
    let mut kinds: BTreeMap<Kind, Vec<Series>> = BTreeMap::new();
    for series in query::series(&args.filter, &mut reader, &snapshot)? {
        kinds.entry(series.kind).or_default().push(series);
    }
    if kinds.is_empty() {
        return Err(Failure::new(NOT_FOUND, "there is no record of these kinds and instruments"));
    }
    if kinds.len() > 1 && !is_dir && !format.is_dbn() {
        let names: Vec<&str> = kinds.keys().filter_map(|k| schema(*k)).map(|s| s.name).collect();
        let what = format!("a file holds one kind, and there are {}: choose with --kind, or name a directory", names.join(", "));
        return Err(Failure::new(USAGE, what));
    }
    if is_dir {
        std::fs::create_dir_all(&args.out).map_err(|e| Failure::new(IO, format!("cannot create {}: {e}", args.out.display())))?;
    }
    let is_all = args.filter.kind.is_empty() && args.filter.instrument.is_empty() && args.span.is_all();
    let total = if is_all { snapshot.last().0.saturating_sub(snapshot.first().0) + 1 } else { 0 };
    let bar = terminal::progress(total, false, "exporting");
    let symbols = reader.symbols()?;
    symbols.refresh();
    let mut export = Export {
        args,
        format,
        symbols,
        snapshot: &snapshot,
        bar,
        stop,
        is_dir,
        made: BTreeSet::new(),
        output,
        rows: 0,
        total: Tally::default(),
        left: 0,
    };
    if format.is_dbn() {
        dbn::export(&mut export, &kinds)?;
    } else {
        // All of them before the first is written.
        for schema in kinds.keys().filter_map(|k| schema(*k)) {
            let path = export.path(&stem(schema))?;
            check_free(&path, args.force)?;
        }
        export.made.clear();
        for (kind, series) in &kinds {
            export.kind(*kind, series)?;
        }
    }
    export.bar.finish_and_clear();
    let (Tally { records, checksum }, left) = (export.total, export.left);
    let seconds = began.elapsed().as_secs_f64();
    if !output.json {
        let rate = records as f64 / seconds.max(1e-9) / 1e6;
        terminal::say(format_args!(
            "{} records, checksum {checksum:016x}, in {seconds:.2} s: {rate:.2} M records/s",
            terminal::thousands(records)
        ));
    }
    if left > 0 {
        return Err(Failure::new(DATA, format!("{left} things have no place in {}; they are named above", format.extension())));
    }
    Ok(())
}
