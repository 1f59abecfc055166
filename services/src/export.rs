//! Owns: `tape export`: writes records to files of other programs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tapestore_formats::export::{Event, Export, FileReport, Format, Options, Target};
use tapestore_formats::progress::Progress;

use crate::exit::{DATA, Failure, Outcome};
use crate::output::Format as Output;
use crate::query::{self, Filter, Span, Watermark};
use crate::terminal::{self, Bar};

/// `tape export`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// One file, for one kind: *.parquet, *.arrow, *.csv, *.csv.gz, *.dbn or *.dbn.zst; or a directory, with one file per kind
    out: PathBuf,
    /// Format of the files in a directory [default: parquet]
    #[arg(long, value_parser = formats())]
    format: Option<Format>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    watermark: Watermark,
    /// Write prices and sizes as decimals instead of integers of 1e-9 (Parquet, Arrow)
    #[arg(long)]
    decimal: bool,
    /// Replace existing files
    #[arg(long)]
    force: bool,
}

fn formats() -> impl TypedValueParser<Value = Format> {
    let values = Format::ALL.map(|format| PossibleValue::new(format.name()).help(format.about()));
    PossibleValuesParser::new(values).try_map(|text| text.parse::<Format>())
}

/// `tape export`.
///
/// # Errors
/// No record matches (exit code 3); a file cannot be written; the format cannot hold a record or value (exit code 65, after
/// everything else was written).
pub fn run(store: &Path, args: &Args, output: Output) -> Outcome {
    let began = Instant::now();
    let stop = terminal::stop_flag()?;
    let target = Target::new(&args.out, args.format)?;
    let (mut reader, snapshot) = query::open(store, args.watermark.at)?;
    let series = query::series(&args.filter, &mut reader, &snapshot)?;
    let is_all = args.filter.kind.is_empty() && args.filter.instrument.is_empty() && args.span.is_all();
    let total = if is_all { snapshot.last().0.saturating_sub(snapshot.first().0) + 1 } else { 0 };
    let mut bar = Bar::new("exporting");
    let names = reader.symbols()?;
    names.refresh();
    let format = target.format;
    let options = Options { range: args.span.range(), limit: args.span.limit(), decimal: args.decimal, replace: args.force };
    let export = Export { snapshot: &snapshot, names, series: &series, target, options };
    let written = export.write(&mut |event| {
        match event {
            Event::Rows(done) => {
                bar.set(Progress { done, total, is_bytes: false });
                return terminal::go_on(!terminal::is_raised(&stop));
            }
            Event::File(file) => report(file, output),
            Event::Left(what, n) => report_left(what, n, output),
        }
        ControlFlow::Continue(())
    });
    drop(bar);
    let summary = written?;
    let (checksum, left) = (summary.checksum(), summary.left());
    if !output.json {
        let seconds = began.elapsed().as_secs_f64();
        let rate = checksum.records as f64 / seconds.max(1e-9) / 1e6;
        let records = terminal::thousands(checksum.records);
        out!("{records} records, checksum {checksum}, in {seconds:.2} s: {rate:.2} M records/s");
    }
    if left > 0 {
        let what = format.extension();
        return Err(Failure::new(DATA, format!("{what} cannot hold {left} values, listed above; everything else is written")));
    }
    Ok(())
}

/// Prints what was not exported for want of a file.
fn report_left(what: &str, n: u64, output: Output) {
    if output.json {
        out!("{}", serde_json::json!({ "left": { what: n } }));
    } else {
        out!("not exported: {} {what}", terminal::thousands(n));
    }
}

/// Prints the records of a file.
fn report(file: &FileReport, output: Output) {
    let FileReport { path, kind, checksum, bytes, left } = file;
    if output.json {
        let object = serde_json::json!({
            "file": path.display().to_string(), "kind": kind, "records": checksum.records, "checksum": checksum.to_string(),
            "bytes": bytes, "left": left,
        });
        out!("{}", object);
        return;
    }
    let (path, rows, bytes) = (path.display(), terminal::thousands(checksum.records), terminal::thousands(*bytes));
    out!("{path}: {rows} {kind} records, checksum {checksum}, {bytes} bytes");
    for (what, n) in left {
        out!("  not exported: {} {what}", terminal::thousands(*n));
    }
}
