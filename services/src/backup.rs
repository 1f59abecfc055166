//! Owns: `tape backup` and `tape restore`: arguments, progress, output.

use std::path::{Path, PathBuf};

use tapestore::disk::RealDisk;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::snapshot::backup::{Options, backup as make};
use tapestore_engine::snapshot::restore::restore as make_store;
use tapestore_engine::snapshot::{Progress, Summary};

use crate::exit::{Failure, Outcome, USAGE};
use crate::last_backup;
use crate::output::Format;
use crate::terminal::{self, thousands};

/// `tape backup`.
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// Directory of the backup: a new one, or an earlier backup of this store, which is updated
    dir: PathBuf,
    /// Copy files instead of linking them: a link takes no space, but shares later damage of the file
    #[arg(long)]
    copy: bool,
    /// Do not read files again that an earlier backup into DIR has verified
    #[arg(long)]
    trust_earlier: bool,
}

/// `tape restore`.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// Directory of the backup
    backup: PathBuf,
    /// Copy files instead of linking them
    #[arg(long)]
    copy: bool,
}

/// A progress bar on a terminal.
#[derive(Default)]
pub struct Bar(Option<(&'static str, indicatif::ProgressBar)>);

impl Bar {
    /// Shows a step.
    pub fn show(&mut self, progress: Progress) {
        if self.0.as_ref().is_none_or(|(what, _)| *what != progress.what) {
            self.clear();
            self.0 = Some((progress.what, terminal::progress(progress.total, true, progress.what)));
        }
        if let Some((_, bar)) = &self.0 {
            bar.inc(progress.more);
        }
    }

    /// Removes the bar.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// `path` as an absolute path; its last component need not exist.
fn absolute(path: &Path) -> Outcome<PathBuf> {
    if let Ok(whole) = path.canonicalize() {
        return Ok(whole);
    }
    let Some(name) = path.file_name() else {
        return Err(Failure::new(USAGE, format!("{} is not a directory that can be created", path.display())));
    };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let whole = parent
        .canonicalize()
        .map_err(|e| Failure::new(USAGE, format!("cannot create {}: {}: {e}", path.display(), parent.display())))?;
    Ok(whole.join(name))
}

/// `tape backup`.
///
/// # Errors
/// As [`tapestore_engine::snapshot::backup::backup`].
pub fn backup(store: &Path, args: &BackupArgs, format: Format) -> Outcome {
    let (store, target) = (absolute(store)?, absolute(&args.dir)?);
    if store.starts_with(&target) || target.starts_with(&store) {
        let text =
            format!("{} and the store {} are inside each other; choose another directory", target.display(), store.display());
        return Err(Failure::new(USAGE, text));
    }
    let options =
        Options { store: &store, target: &target, copies: args.copy, trusts_earlier: args.trust_earlier, now: HostClock.wall() };
    let mut bar = Bar::default();
    let done = make(&RealDisk, &options, &mut |p| bar.show(p));
    bar.clear();
    let summary = done?;
    if let Err(error) = last_backup::note(&store, &target) {
        let why = format!("note: {error}: the store has no note of this backup for tape status and metrics");
        crate::logging::note(why);
    }
    print("backup", &target, &summary, format);
    Ok(())
}

/// `tape restore`.
///
/// # Errors
/// As [`tapestore_engine::snapshot::restore::restore`].
pub fn restore(store: &Path, args: &RestoreArgs, format: Format) -> Outcome {
    let (from, target) = (absolute(&args.backup)?, absolute(store)?);
    let mut bar = Bar::default();
    let done = make_store(&RealDisk, &from, &target, args.copy, HostClock.wall(), &mut |p| bar.show(p));
    bar.clear();
    let summary = done?;
    print("restored", &target, &summary, format);
    let of_a_cluster = tapestore::wal::meta::read(&RealDisk, &target)?.is_some_and(|m| m.in_cluster);
    match of_a_cluster {
        _ if format.json => {}
        false => out!("start it with: tape-storage --store {}", target.display()),
        true => out!(
            "it is a store of a cluster host. To make it a host: tape cluster init --join --store {0} ...; to make it a store of its own: \
             tape cluster detach --store {0}",
            target.display()
        ),
    }
    Ok(())
}

fn print(what: &str, dir: &Path, summary: &Summary, format: Format) {
    let Summary { linked, copied, reused, file_bytes, flushed, log_bytes, logged, last, time, timeline, retries } = *summary;
    if format.json {
        let object = serde_json::json!({
            "dir": dir, "linked": linked, "copied": copied, "reused": reused, "file_bytes": file_bytes, "flushed_records": flushed,
            "log_bytes": log_bytes, "logged_records": logged, "last_lsn": last.0, "last_time": time.to_string(),
            "timeline": timeline.0, "retries": retries,
        });
        out!("{object}");
        return;
    }
    out!("{what}: {}, every byte read back", dir.display());
    out!(
        "  {} SSTables: {} linked, {} copied, {} reused; {} bytes, {} records",
        thousands(linked + copied + reused),
        thousands(linked),
        thousands(copied),
        thousands(reused),
        thousands(file_bytes),
        thousands(flushed)
    );
    out!("  log: {} bytes, {} records", thousands(log_bytes), thousands(logged));
    if last.0 > 0 {
        out!("  up to LSN {}, ingested at {time}", thousands(last.0));
    } else {
        out!("  no records yet");
    }
}
