//! Owns: `tape repair`: finds the damage of a store, prints the command that repairs it, and runs it; `from_peer` rebuilds
//! SSTables.
//!
//! What must hold: no record is given up without `--i-accept-loss`, and without it the loss is printed.

mod from_peer;

use std::path::{Path, PathBuf};

use tapestore::disk::RealDisk;
use tapestore::lsn::Lsn;
use tapestore::sstable;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::repair::{self, Findings, Loss};
use tapestore_engine::snapshot;

use crate::backup::Bar;
use crate::cluster::install::REPLACE;
use crate::exit::{DATA, Failure, Outcome, USAGE, reason};
use crate::output::Format;
use crate::replication::tls;
use crate::terminal::thousands;

/// `tape repair`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Replace damaged or missing SSTables by the identical ones of this backup
    #[arg(long, value_name = "BACKUP", conflicts_with = "truncate_at")]
    from: Option<PathBuf>,
    /// Rebuild damaged or missing SSTables of this stopped cluster host from the records of another host: the address of its
    /// replication process; with its node number, number=host:port, if it is not in this host's member list
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["from", "truncate_at"])]
    from_peer: Option<String>,
    #[command(flatten)]
    tls: tls::Flags,
    /// Truncate the log before this record: it and all records after it are given up, and kept aside in STORE/lost
    #[arg(long, value_name = "LSN")]
    truncate_at: Option<u64>,
    /// Truncate, instead of only printing the loss
    #[arg(long, requires = "truncate_at")]
    i_accept_loss: bool,
}

/// `tape repair`.
///
/// # Errors
/// The store is damaged (exit code 65, with the command to run); consent is missing (2); as [`repair::truncate`],
/// [`snapshot::restore::put_back`] and `from_peer::run`.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    if args.from_peer.is_none() && args.tls.files().is_some() {
        return Err(Failure::new(USAGE, "certificates are for the connection to another host: give --from-peer too"));
    }
    if args.truncate_at.is_some() || args.from.is_some() || args.from_peer.is_some() {
        snapshot::backup::refuse(&RealDisk, store)?;
    }
    match (args.truncate_at, &args.from, &args.from_peer) {
        (Some(at), ..) => truncate(store, Lsn(at), args.i_accept_loss, format),
        (None, Some(backup), _) => put_back(store, backup, format),
        (None, None, Some(peer)) => from_peer::run(store, peer, args.tls.files(), format),
        (None, None, None) => examine(store, format),
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
        Failure::new(lost.code, format!("{why}: the store cannot be repaired. Run: tape restore BACKUP --store {shown}-restored"))
    })?;
    let advice = advice(store, &found);
    if format.json {
        let damaged: Vec<String> = found.damaged.iter().map(|(f, _)| sstable::file_name(f.kind, f.id)).collect();
        let object = serde_json::json!({
            "files": found.files, "flushed_records": found.flushed, "last_lsn": found.last.0, "damaged_files": damaged,
            "log_damage": found.log.as_ref().map(|(e, _)| e.to_string()), "would_lose": found.log.as_ref().map(|(_, l)| json(l)),
            "torn_tail": found.torn.as_ref().map(|t| t.bad.what), "run": advice,
        });
        out!("{object}");
    } else {
        say(&found);
    }
    match advice {
        None => Ok(()),
        Some(command) => Err(Failure::new(DATA, format!("{} is damaged. Run: {command}", store.display()))),
    }
}

fn say(found: &Findings) {
    out!("SSTables: {} files, {} of them damaged; {} records", found.files, found.damaged.len(), thousands(found.flushed));
    for (meta, error) in &found.damaged {
        let (name, (first, last)) = (sstable::file_name(meta.kind, meta.id), meta.lsn);
        out!("  {name}: {} records of {first} to {last}: {}", thousands(meta.rows), reason(error));
    }
    match (&found.log, &found.torn) {
        (Some((error, loss)), _) => {
            out!("log:      readable up to record {}, then: {}", found.last, reason(error));
            say_loss(loss);
        }
        (None, Some(torn)) => out!(
            "log:      sound up to record {}; a torn frame follows ({}), which was never acknowledged as durable: the next start \
             truncates it",
            found.last,
            torn.bad.what
        ),
        (None, None) => out!("log:      sound up to record {}", found.last),
    }
}

/// The next command; `None` if the store is sound.
fn advice(store: &Path, found: &Findings) -> Option<String> {
    let shown = store.display();
    match (&found.log, found.damaged.is_empty()) {
        (None, true) => None,
        // A backup that was changed would be refused by the next backup into it.
        _ if snapshot::backup::refuse(&RealDisk, store).is_err() => Some(format!(
            "tape backup DIRECTORY, a new one, on the store that {shown} is a backup of; or, if that is gone, repair a copy that \
             is not a backup: cp -a {shown} COPY; rm COPY/{}; tape repair --store COPY",
            snapshot::backup::MARK
        )),
        (Some(_), _) if is_of_a_cluster(store) => {
            Some(format!("tape cluster install-snapshot --from HOST:PORT --store {shown}, {REPLACE}"))
        }
        (_, false) if is_of_a_cluster(store) => Some(format!(
            "tape repair --from-peer HOST:PORT --store {shown}, with the address of another host's replication process; or, if a \
             backup has the very same SSTables: tape repair --from BACKUP --store {shown}"
        )),
        (_, false) => Some(format!("tape repair --from BACKUP --store {shown}")),
        (Some((_, loss)), true) => Some(format!(
            "tape repair --truncate-at {} --i-accept-loss --store {shown} (if a backup has more records, lose fewer: tape restore \
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
        "ingested": loss.ingested.map(|(from, to)| [from.to_string(), to.to_string()]),
    })
}

fn say_loss(loss: &Loss) {
    if loss.count() == 0 {
        out!("  no record is lost by truncating the log before {}", loss.first);
    } else {
        out!(
            "  lost by truncating the log: records {} to {} (LSN), {}; {} of them are readable",
            loss.first,
            loss.last,
            thousands(loss.count()),
            thousands(loss.readable)
        );
    }
    for ((publisher, epoch), gone) in &loss.publishers {
        let (first, last, count) = (gone.first, gone.last, thousands(gone.count));
        out!("    publisher {publisher}, epoch {epoch}: {count} records, pub_seq {first} to {last}");
    }
    if loss.entries > 0 {
        out!("    {} control entries: attachments, instrument names, kinds", loss.entries);
    }
    if let Some((from, to)) = loss.ingested {
        out!("    ingested from {from} to {to}");
    }
}

/// Whether other hosts rely on what this store acknowledged; `true` if that cannot be read.
fn is_of_a_cluster(store: &Path) -> bool {
    tapestore_engine::cluster_admin::is_counted_on(&RealDisk, store).unwrap_or(true)
}

fn truncate(store: &Path, at: Lsn, accepted: bool, format: Format) -> Outcome {
    if accepted && is_of_a_cluster(store) {
        let shown = store.display();
        return Err(Failure::new(
            USAGE,
            format!(
                "{shown} is a host of a cluster: its log is not truncated. Run: tape cluster install-snapshot --from HOST:PORT, {REPLACE}"
            ),
        ));
    }
    let (loss, kept_in) = match accepted {
        true => repair::truncate(&RealDisk, store, at, HostClock.wall())?,
        false => (repair::loss(&RealDisk, store, at)?, None),
    };
    if format.json {
        out!("{}", serde_json::json!({ "done": accepted, "loss": json(&loss), "kept_in": kept_in }));
    } else {
        say_loss(&loss);
    }
    match (accepted, kept_in) {
        (false, _) => {
            let shown = store.display();
            let text =
                format!("nothing was changed. To truncate, run: tape repair --truncate-at {at} --i-accept-loss --store {shown}");
            Err(Failure::new(USAGE, text))
        }
        (true, None) => {
            out!("the log ends before {at} already; nothing was changed");
            Ok(())
        }
        (true, Some(dir)) => {
            if !format.json {
                out!("truncated the log before {at}; the removed bytes are kept in {}", dir.display());
                out!("start it with: tape-storage --store {}", store.display());
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
        out!("{}", serde_json::json!({ "healed": done.healed, "left": left }));
    } else {
        done.healed.iter().for_each(|path| out!("{}: replaced, every byte verified", path.display()));
        done.left.iter().for_each(|(path, why)| out!("{}: not replaced: in the backup, {}", path.display(), reason(why)));
    }
    if done.left.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} SSTables are still damaged. Try an earlier backup, or run: tape restore {} --store {}-restored",
        done.left.len(),
        backup.display(),
        store.display()
    );
    Err(Failure::new(DATA, text))
}
