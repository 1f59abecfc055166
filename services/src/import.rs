//! Owns: `tape import`: imports files as fast as storage accepts them, and reports what the store cannot hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};

use crate::choice;
use crate::exit::{DATA, Failure, INTERRUPTED, Outcome};
use crate::identity;
use crate::load::{Loaded, Loader, end, report_left};
use crate::output::Format;
use crate::source::Reading;
use crate::terminal;

/// `tape import`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files: DBN (plain, zstd, fragments), Parquet, Arrow IPC, CSV with a header, Binance captures
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    who: identity::Who,
    /// Durability required before a record is acknowledged
    #[arg(long, alias = "level", value_parser = choice::durability(), default_value = "fsync")]
    durability: Durability,
}

/// The result of importing a file.
struct Imported {
    loaded: Loaded,
    seconds: f64,
    bytes: u64,
}

fn file(path: &Path, args: &Args, publisher: &mut Publisher, stop: &dyn Fn() -> bool) -> Outcome<Imported> {
    let began = Instant::now();
    let mut input = args.reading.open(path, stop)?;
    let bytes = std::fs::metadata(path)?.len();
    let loaded = Loader::new(publisher, stop).load(input.as_mut());
    Ok(Imported { loaded, seconds: began.elapsed().as_secs_f64(), bytes })
}

fn report(path: &Path, imported: &Imported, format: Format) {
    let Imported { loaded, seconds, bytes } = imported;
    let done = &loaded.published;
    let (records, checksum) = (done.checksum.records, done.checksum);
    if format.json {
        let kinds: serde_json::Map<String, serde_json::Value> = done.by_kind().map(|(s, n)| (s.to_owned(), n.into())).collect();
        let mut object = serde_json::json!({
            "file": path.display().to_string(), "records": records, "checksum": checksum.to_string(), "kinds": kinds,
            "left": loaded.left, "seconds": seconds, "bytes": bytes,
            "is_whole": done.is_whole,
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(loaded.accounting.numbers().map(|(name, n)| (name.to_owned(), n.into())));
        }
        out!("{}", object);
        return;
    }
    let kinds: Vec<String> = done.by_kind().map(|(s, n)| format!("{} {s}", terminal::thousands(n))).collect();
    let rate = |n: f64| n / seconds.max(1e-9) / 1e6;
    out!(
        "{}: {} records ({}), checksum {checksum}, in {seconds:.2} s: {:.2} M records/s, {:.0} MB/s of the file",
        path.display(),
        terminal::thousands(records),
        kinds.join(", "),
        rate(records as f64),
        rate(*bytes as f64)
    );
    if done.untimed > 0 {
        let n = terminal::thousands(done.untimed);
        out!("  {n} records have no ts_recv (bars: ts_event); their index time is the ingest time");
    }
    report_left(loaded);
}

/// `tape import`.
///
/// # Errors
/// An input or storage fails; the message counts the records that are stored and those that are not. The store cannot hold a
/// record or value of an input (exit code 65), after everything else was imported.
pub fn run(store: PathBuf, args: &Args, format: Format) -> Outcome {
    let options = publisher::Options { durability: args.durability, ..publisher::Options::new(store, PublisherId(0)) };
    // A signal until the publisher is open ends the process: no record has been read yet.
    let mut publisher = args.who.open(options)?;
    let stop = terminal::stop_flag()?;
    let is_over = || terminal::is_raised(&stop);
    let mut skipped: BTreeMap<String, u64> = BTreeMap::new();
    for (number, path) in args.files.iter().enumerate() {
        if is_over() {
            let n = args.files.len() - number;
            let text = format!("interrupted: the files above are stored; the {n} files after them were not begun");
            return Err(Failure::new(INTERRUPTED, text));
        }
        let imported = file(path, args, &mut publisher, &is_over)?;
        report(path, &imported, format);
        let Loaded { accounting, outcome, left, .. } = imported.loaded;
        if let Err(failure) = outcome {
            end(publisher, &accounting);
            return Err(Failure::new(failure.code, format!("{}: {failure}", path.display())));
        }
        left.into_iter().for_each(|(what, n)| *skipped.entry(what).or_default() += n);
    }
    if !skipped.is_empty() {
        let list: Vec<String> = skipped.iter().map(|(what, n)| format!("{} {what}", terminal::thousands(*n))).collect();
        return Err(Failure::new(
            DATA,
            format!("skipped what this store cannot hold: {}; everything else is stored", list.join(", ")),
        ));
    }
    Ok(())
}
