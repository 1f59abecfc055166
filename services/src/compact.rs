//! Owns: `tape compact` and `tape retention`: print the merges and expiries that storage would do, or do them for a stopped
//! store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tapestore::disk::{Disk, RealDisk};
use tapestore::error::Error;
use tapestore::manifest::State;
use tapestore::reader::Reader;
use tapestore::record::schema;
use tapestore::shm::control::Statistic;
use tapestore::sstable::FileMeta;
use tapestore::time::{Clock, HostClock, Ts};
use tapestore_engine::compaction::merge::Pace;
use tapestore_engine::compaction::retention::{Rule, Rules};
use tapestore_engine::compaction::{self, Merge, Options};
use tapestore_engine::history::Offline;

use crate::exit::{Failure, INTERRUPTED, LATER, Outcome};
use crate::inspect::{read_log, read_manifest, read_meta};
use crate::output::{Format, table};
use crate::terminal::{self, thousands};
use crate::waiting::Waiting;

/// `tape compact`.
#[derive(clap::Args, Debug)]
pub struct Compact {
    /// Print the merges that are due and do nothing
    #[arg(long)]
    plan: bool,
    /// Treat every day as over, so that a kind's SSTables of a day become one run (one set of files); for a stopped store
    #[arg(long)]
    all: bool,
    /// Configuration file of the storage process, with its limits and rules
    #[arg(long)]
    config: Option<PathBuf>,
}

/// `tape retention`.
#[derive(clap::Args, Debug)]
pub struct Retention {
    /// Print the SSTables that would be removed and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration file of the storage process, with the rules
    #[arg(long)]
    config: Option<PathBuf>,
    /// Kind for a rule of --keep and --bytes, instead of the configuration's rules; `*`: every kind except bust, correct,
    /// gap, definition and mapping
    #[arg(long, conflicts_with = "config")]
    kind: Option<String>,
    /// Keep records up to this age, like 30d
    #[arg(long, requires = "kind")]
    keep: Option<String>,
    /// Keep at most this many bytes of the kind, like 100G
    #[arg(long, requires = "kind", value_parser = terminal::size)]
    bytes: Option<u64>,
}

fn configured(config: Option<&Path>) -> Outcome<tapestore_engine::Options> {
    Ok(match config {
        Some(path) => tapestore_engine::config::storage(path)?,
        None => tapestore_engine::Options::default(),
    })
}

fn name(file: &FileMeta) -> String {
    tapestore::sstable::file_name(file.kind, file.id)
}

fn kind_name(kind: tapestore::record::Kind) -> String {
    schema(kind).map_or_else(|| kind.0.to_string(), |s| s.name.to_owned())
}

/// `tape compact`.
///
/// # Errors
/// A damaged SSTable; storage serves the store and does not compact (exit code 75).
pub fn compact(store: &Path, args: &Compact, format: Format) -> Outcome {
    let configured = configured(args.config.as_deref())?;
    let (options, rules) = (configured.compaction, Rules::new(&configured.retention)?.at(HostClock.wall()));
    options.check()?;
    let moment = |state: &State| if args.all { Ts(u64::MAX) } else { compaction::newest(state) };
    if args.plan {
        let (state, _) = read_manifest(store, &read_meta(store)?)?;
        print_plan(&state, &compaction::plan(&state, &options, moment(&state), &Default::default()), format);
        return Ok(());
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut offline = match Offline::open(&disk, store) {
        Err(Error::Locked { .. }) if !args.all => return wait_for_storage(store, &options, format),
        Err(Error::Locked { .. }) => {
            return Err(Failure::new(
                LATER,
                format!(
                    "{} is served: storage compacts a day after its end; stop storage to compact every day now",
                    store.display()
                ),
            ));
        }
        other => other?,
    };
    let stop = terminal::stop_flag()?;
    let before = offline.manifest().state().clone();
    let (mut merges, mut written) = (0u64, 0u64);
    loop {
        let state = offline.manifest().state();
        let now = moment(state);
        let plan = compaction::plan(state, &options, now, &Default::default());
        let Some(next) = plan.first() else { break };
        let what = format!("{} SSTables of {}, {} merges left", next.inputs.len(), kind_name(next.kind), plan.len());
        let bar = terminal::progress(next.bytes(), true, &what);
        let Some(merged) = offline.compact_one(&options, &rules, now, &mut Shown { bar: &bar, stop: &stop })? else { break };
        bar.finish_and_clear();
        merges += 1;
        written += merged.bytes();
    }
    let after = offline.manifest().state();
    if format.json {
        out!(
            "{}",
            serde_json::json!({ "merges": merges, "bytes_written": written, "files_before": before.files.len(),
                "files": after.files.len(), "bytes": bytes(after), "expired": after.expired - before.expired })
        );
    } else {
        out!(
            "{} merges, {} bytes written: {} SSTables became {} ({} bytes before, {} now); {} records expired",
            thousands(merges),
            thousands(written),
            thousands(before.files.len() as u64),
            thousands(after.files.len() as u64),
            thousands(bytes(&before)),
            thousands(bytes(after)),
            thousands(after.expired - before.expired)
        );
    }
    if terminal::is_raised(&stop) {
        return Err(Failure::new(
            INTERRUPTED,
            "interrupted: the merges above are done; the others were not begun, or left nothing behind",
        ));
    }
    Ok(())
}

fn bytes(state: &State) -> u64 {
    state.files.values().map(|f| f.len).sum()
}

/// Shows the progress of a merge, and stops it on request.
struct Shown<'a> {
    bar: &'a indicatif::ProgressBar,
    stop: &'a AtomicBool,
}

impl Pace for Shown<'_> {
    fn written(&mut self, bytes: u64) -> bool {
        self.bar.inc(bytes);
        !terminal::is_raised(self.stop)
    }
}

/// Waits until the storage process has no compaction due.
fn wait_for_storage(store: &Path, options: &Options, format: Format) -> Outcome {
    let reader = Reader::open(store)?;
    let stop = terminal::stop_flag()?;
    let due = || -> Outcome<usize> {
        let (state, _) = read_manifest(store, &read_meta(store)?)?;
        Ok(compaction::plan(&state, options, compaction::newest(&state), &Default::default()).len())
    };
    let merges = |reader: &Reader| reader.control().statistic(Statistic::Merges);
    let (began, mut left, mut turns) = (merges(&reader), due()?, 0);
    let bar = terminal::progress(left as u64, false, "storage is compacting");
    let mut seen = began;
    let _waiting = (left > 0).then(|| Waiting::new(format!("storage to do {left} merges")));
    while left > 0 {
        if terminal::is_raised(&stop) || !reader.is_storage_alive() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        turns += 1;
        if merges(&reader) != seen {
            (seen, turns, left) = (merges(&reader), 0, due()?);
            bar.set_position(seen - began);
        }
        let is_idle = reader.control().statistic(Statistic::Merging) == 0;
        if turns > 600 && is_idle {
            let why = "no merge ended for a minute: compaction is disabled in its configuration, or an SSTable is damaged (see its log)";
            return Err(Failure::new(LATER, format!("{}: {left} merges are due, but {why}", store.display())));
        }
    }
    bar.finish_and_clear();
    if format.json {
        out!("{}", serde_json::json!({ "merges": seen - began, "due": left }));
    } else {
        out!(
            "storage serves {} and compacts by itself: {} merges done meanwhile, {} due",
            store.display(),
            thousands(seen - began),
            thousands(left as u64)
        );
    }
    if left > 0 && terminal::is_raised(&stop) {
        return Err(Failure::new(INTERRUPTED, "interrupted: storage continues to compact without this command"));
    }
    if left > 0 {
        return Err(Error::StorageDown { dir: store.to_path_buf(), why: "it ended during a compaction" }.into());
    }
    Ok(())
}

fn print_plan(state: &State, merges: &[Merge], format: Format) {
    if format.json {
        for merge in merges {
            out!(
                "{}",
                serde_json::json!({ "kind": kind_name(merge.kind), "from": merge.window.from.to_string(),
                    "hours": merge.window.len / 3_600_000_000_000, "why": merge.why, "rows": merge.rows(), "bytes": merge.bytes(),
                    "files": merge.inputs.iter().map(name).collect::<Vec<_>>() })
            );
        }
        return;
    }
    let mut t = table(&["kind", "window from", "hours", "files", "rows", "bytes", "why"]);
    for merge in merges {
        t.add_row([
            kind_name(merge.kind),
            merge.window.from.to_string(),
            if merge.window.len == u64::MAX { "all".into() } else { thousands(merge.window.len / 3_600_000_000_000) },
            thousands(merge.inputs.len() as u64),
            thousands(merge.rows()),
            thousands(merge.bytes()),
            format!("{:?}", merge.why).to_lowercase(),
        ]);
    }
    let (due, all) = (merges.iter().map(Merge::bytes).sum(), bytes(state));
    if !merges.is_empty() {
        out!("{}", t);
    }
    out!(
        "manifest edit {}: {} merges due, of {} of {} SSTables, {} of {} bytes",
        state.seq,
        thousands(merges.len() as u64),
        thousands(merges.iter().map(|m| m.inputs.len() as u64).sum()),
        thousands(state.files.len() as u64),
        thousands(due),
        thousands(all)
    );
}

/// `tape retention`.
///
/// # Errors
/// There are no rules; storage serves the store (exit code 75); the store is stopped, a rule is by age, and records are only
/// in the log (exit code 69).
pub fn retention(store: &Path, args: &Retention, format: Format) -> Outcome {
    let rules = match &args.kind {
        Some(kind) => {
            vec![Rule { kind: kind.clone(), keep: args.keep.clone(), bytes: args.bytes, ..Rule::default() }]
        }
        None => configured(args.config.as_deref())?.retention,
    };
    let rules = Rules::new(&rules)?.at(HostClock.wall());
    if rules.is_empty() {
        let hint = "give the configuration with --config, or --kind with --keep or --bytes";
        return Err(Failure::new(crate::exit::USAGE, format!("without rules all records are kept: {hint}")));
    }
    if args.dry_run {
        let (state, _) = read_manifest(store, &read_meta(store)?)?;
        demand_kind(args)?;
        if !Reader::open(store).is_ok_and(|r| r.is_storage_alive()) {
            demand_flushed(store, &rules, &state)?;
        }
        let drops = rules.drops(&state);
        let files: Vec<FileMeta> = drops.iter().map(|d| d.file).collect();
        print_drops(&files, &|i| drops.get(i).is_some_and(|d| d.by_age), "to be removed", format);
        return Ok(());
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut offline = match Offline::open(&disk, store) {
        Err(Error::Locked { .. }) => {
            let what = "is served: storage applies the rules of its configuration by itself; --dry-run prints their effect";
            return Err(Failure::new(LATER, format!("{} {what}", store.display())));
        }
        other => other?,
    };
    demand_kind(args)?;
    demand_flushed(store, &rules, offline.manifest().state())?;
    let by_age: Vec<bool> = rules.drops(offline.manifest().state()).iter().map(|d| d.by_age).collect();
    let gone = offline.expire(&rules)?;
    print_drops(&gone, &|i| by_age.get(i).copied().unwrap_or_default(), "removed", format);
    Ok(())
}

/// Rejects a rule of the command line for a kind that the store does not have. Its manifest must have been read.
fn demand_kind(args: &Retention) -> Outcome {
    match &args.kind {
        Some(kind) if kind != "*" => crate::query::KindName::from(kind.as_str()).schemas().map(drop),
        _ => Ok(()),
    }
}

/// Rejects a stopped store with records only in the log, for rules by age: they count from the newest record of all, and
/// those records may have expired themselves.
fn demand_flushed(store: &Path, rules: &Rules, state: &State) -> Outcome {
    if !rules.is_by_age() {
        return Ok(());
    }
    let (_, sums, ..) = read_log(store, |_| Ok(()))?;
    let (covered, last) = (state.covered(), sums.tally.last);
    if last > covered {
        let (first, last) = (covered.next().0, last.0);
        return Err(Error::InLogAlone { dir: store.to_path_buf(), what: "records", first, last }.into());
    }
    Ok(())
}

fn print_drops(files: &[FileMeta], by_age: &dyn Fn(usize) -> bool, what: &str, format: Format) {
    let (rows, bytes) = files.iter().fold((0, 0), |(r, b), f| (r + f.rows, b + f.len));
    if format.json {
        crate::query::note_empty(files.len() as u64, &format!("SSTable that is {what}"));
        for (i, file) in files.iter().enumerate() {
            out!(
                "{}",
                serde_json::json!({ "file": name(file), "kind": kind_name(file.kind), "newest": file.time.1.to_string(),
                    "rows": file.rows, "bytes": file.len, "by": if by_age(i) { "age" } else { "bytes" } })
            );
        }
        return;
    }
    let mut t = table(&["file", "newest record", "rows", "bytes", "by"]);
    for (i, file) in files.iter().enumerate() {
        let by = if by_age(i) { "age" } else { "bytes" };
        t.add_row([name(file), file.time.1.to_string(), thousands(file.rows), thousands(file.len), by.to_owned()]);
    }
    if !files.is_empty() {
        out!("{}", t);
    }
    out!("{} SSTables {what}, {} records, {} bytes", thousands(files.len() as u64), thousands(rows), thousands(bytes));
}
