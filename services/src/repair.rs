//! Owns: `tape repair`: what is wrong with a store, the one command against it, and what that command did.
//!
//! What must hold: nothing is given up without `--i-accept-loss`, and what would be is said before.

use std::path::{Path, PathBuf};

use tapestore_engine::snapshot;
use tapestore::disk::RealDisk;
use tapestore::lsn::Lsn;
use tapestore_engine::repair::{self, Findings, Loss};
use tapestore::sstable;
use tapestore::time::{Clock, HostClock};

use crate::backup::Bar;
use crate::exit::{DATA, Failure, Outcome, USAGE};
use crate::output::Format;
use crate::terminal::thousands;

/// `tape repair`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Put SSTables that are damaged or missing back from this backup, which has the very same
    #[arg(long, value_name = "BACKUP", conflicts_with = "truncate_at")]
    from: Option<PathBuf>,
    /// End the log before this record: it and all behind it are given up, and kept aside in STORE/lost
    #[arg(long, value_name = "LSN")]
    truncate_at: Option<u64>,
    /// Do it, and not only say what would be lost
    #[arg(long, requires = "truncate_at")]
    i_accept_loss: bool,
}

/// `tape repair`.
///
/// # Errors
/// That something is wrong (exit code 65), with the command to run; that consent is missing (2); as
/// [`repair::truncate`], [`snapshot::restore::put_back`].
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    if args.truncate_at.is_some() || args.from.is_some() {
        snapshot::backup::refuse(&RealDisk, store)?;
    }
    match (args.truncate_at, &args.from) {
        (Some(at), _) => truncate(store, Lsn(at), args.i_accept_loss, format),
        (None, Some(backup)) => put_back(store, backup, format),
        (None, None) => examine(store, format),
    }
}

fn examine(store: &Path, format: Format) -> Outcome {
    let mut bar = Bar::default();
    let found = repair::examine(&RealDisk, store, &mut |p| bar.show(p));
    bar.clear();
    // Without store.meta or a manifest there is nothing to examine.
    let found = found.map_err(|e| {
        let lost = Failure::from(e);
        let why = lost.message.split("; ").next().unwrap_or_default();
        let shown = store.display();
        Failure::new(lost.code, format!("{why}: this cannot be repaired. Run: tape restore BACKUP --store {shown}-restored"))
    })?;
    let advice = advice(store, &found);
    if format.json {
        let damaged: Vec<String> = found.damaged.iter().map(|(f, _)| sstable::file_name(f.kind, f.id)).collect();
        let object = serde_json::json!({
            "files": found.files, "flushed_records": found.flushed, "last_lsn": found.last.0, "damaged_files": damaged,
            "log_damage": found.log.as_ref().map(|(e, _)| e.to_string()), "would_lose": found.log.as_ref().map(|(_, l)| json(l)),
            "torn_tail": found.torn.as_ref().map(|t| t.bad.what), "run": advice,
        });
        println!("{object}");
    } else {
        say(&found);
    }
    match advice {
        None => Ok(()),
        Some(command) => Err(Failure::new(DATA, format!("{} is damaged. Run: {command}", store.display()))),
    }
}

fn say(found: &Findings) {
    println!("history: {} files, {} records, {} of them damaged", found.files, thousands(found.flushed), found.damaged.len());
    for (meta, error) in &found.damaged {
        let (name, (first, last)) = (sstable::file_name(meta.kind, meta.id), meta.lsn);
        println!("  {name}: {} records of {first} to {last}: {}", thousands(meta.rows), entry(error));
    }
    match (&found.log, &found.torn) {
        (Some((error, loss)), _) => {
            println!("log:     gives records up to {}, then: {}", found.last, entry(error));
            say_loss(loss);
        }
        (None, Some(torn)) => println!(
            "log:     sound up to record {}; behind it a torn frame ({}) that was never acknowledged as durable: the next start \
             cuts it off",
            found.last, torn.bad.what
        ),
        (None, None) => println!("log:     sound up to record {}", found.last),
    }
}

/// An error without what it says is to be done.
fn entry(error: &tapestore::error::Error) -> String {
    error.to_string().split("; nothing was changed").next().unwrap_or_default().to_owned()
}

/// The one command that goes on from here; `None` if there is nothing to do.
fn advice(store: &Path, found: &Findings) -> Option<String> {
    let shown = store.display();
    match (&found.log, found.damaged.is_empty()) {
        (None, true) => None,
        // The next backup would be refused where something else has changed the one before.
        _ if snapshot::backup::refuse(&RealDisk, store).is_err() => Some(format!(
            "tape backup DIRECTORY, another one, on the store of which {shown} is a backup; or, if that is gone, on a copy that \
             is no backup: cp -a {shown} COPY; rm COPY/{}; tape repair --store COPY",
            snapshot::backup::MARK
        )),
        (Some(_), _) if is_of_a_cluster(store) => {
            Some(format!("tape cluster fill --from HOST:PORT --store {shown}, of the {REPLACE}"))
        }
        (_, false) => Some(format!("tape repair --from BACKUP --store {shown}")),
        (Some((_, loss)), true) => Some(format!(
            "tape repair --truncate-at {} --i-accept-loss --store {shown} (or lose less, if a backup goes further: tape restore \
             BACKUP --store {shown}-restored)",
            loss.first
        )),
    }
}

fn json(loss: &Loss) -> serde_json::Value {
    let publishers = loss.publishers.iter().map(|((publisher, epoch), gone)| {
        serde_json::json!({
            "publisher": publisher.0, "epoch": epoch.0, "first": gone.first.0, "last": gone.last.0, "count": gone.count,
        })
    });
    serde_json::json!({
        "first_lsn": loss.first.0, "last_lsn": loss.last.0, "count": loss.count(), "readable": loss.readable, "entries": loss.entries,
        "publishers": publishers.collect::<Vec<_>>(),
        "taken_in": loss.taken_in.map(|(from, to)| [from.to_string(), to.to_string()]),
    })
}

fn say_loss(loss: &Loss) {
    if loss.count() == 0 {
        println!("  no record is lost by ending the log before {}", loss.first);
    } else {
        println!(
            "  lost by ending the log before it: records {} to {} (LSN), {}; of these {} can still be read",
            loss.first,
            loss.last,
            thousands(loss.count()),
            thousands(loss.readable)
        );
    }
    for ((publisher, epoch), gone) in &loss.publishers {
        let (first, last, count) = (gone.first, gone.last, thousands(gone.count));
        println!("    publisher {publisher}, epoch {epoch}: {count} records, its numbers {first} to {last}");
    }
    if loss.entries > 0 {
        println!("    {} attachments, instrument names or kinds", loss.entries);
    }
    if let Some((from, to)) = loss.taken_in {
        println!("    taken in from {from} to {to}");
    }
}

/// How a host of a cluster that has lost what it promised to keep is made good.
const REPLACE: &str = "replication process of the host that leads: a copy of its store takes the place of this one, which is \
                       kept. A host must not vote with a log that lacks what it has acknowledged";

/// Whether other hosts count on what this store has acknowledged; if that cannot be read, they may.
fn is_of_a_cluster(store: &Path) -> bool {
    tapestore_engine::cluster_admin::is_counted_on(&RealDisk, store).unwrap_or(true)
}

fn truncate(store: &Path, at: Lsn, accepted: bool, format: Format) -> Outcome {
    if accepted && is_of_a_cluster(store) {
        let shown = store.display();
        return Err(Failure::new(
            USAGE,
            format!(
                "{shown} is one host of a cluster: its log is not cut. Instead: tape cluster fill --from HOST:PORT, of the {REPLACE}"
            ),
        ));
    }
    let (loss, kept_in) = match accepted {
        true => repair::truncate(&RealDisk, store, at, HostClock.wall())?,
        false => (repair::loss(&RealDisk, store, at)?, None),
    };
    if format.json {
        println!("{}", serde_json::json!({ "done": accepted, "loss": json(&loss), "kept_in": kept_in }));
    } else {
        say_loss(&loss);
    }
    match (accepted, kept_in) {
        (false, _) => {
            let shown = store.display();
            let text =
                format!("nothing was changed. To do it, run: tape repair --truncate-at {at} --i-accept-loss --store {shown}");
            Err(Failure::new(USAGE, text))
        }
        (true, None) => {
            println!("the log ends before {at} already: nothing was changed");
            Ok(())
        }
        (true, Some(dir)) => {
            if !format.json {
                println!("the log ends before {at} now; what was cut off is kept in {}", dir.display());
                println!("start it with: tape-storage --store {}", store.display());
            }
            Ok(())
        }
    }
}

fn put_back(store: &Path, backup: &Path, format: Format) -> Outcome {
    let mut bar = Bar::default();
    let done = snapshot::restore::put_back(&RealDisk, store, backup, HostClock.wall(), &mut |p| bar.show(p));
    bar.clear();
    let done = done?;
    if format.json {
        let left: Vec<&PathBuf> = done.left.iter().map(|(path, _)| path).collect();
        println!("{}", serde_json::json!({ "healed": done.healed, "left": left }));
    } else {
        done.healed.iter().for_each(|path| println!("{}: put back, every byte read", path.display()));
        done.left.iter().for_each(|(path, why)| println!("{}: not put back: in the backup, {}", path.display(), entry(why)));
    }
    if done.left.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} files are still damaged. Try an earlier backup, or run: tape restore {} --store {}-restored",
        done.left.len(),
        backup.display(),
        store.display()
    );
    Err(Failure::new(DATA, text))
}
