//! Owns: `tape repair --from-peer`: rebuilds damaged or missing SSTables of a stopped host of a cluster from the records of
//! another host.
//!
//! What must hold: an SSTable that cannot be rebuilt stays as it is, and the message says why and what to do next.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapestore::disk::{Disk, RealDisk};
use tapestore::error::Error;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::consensus::meta;
use tapestore_engine::repair::rebuild::{Group, Rebuild, Rebuilt};
use tapestore_engine::snapshot::Progress;
use tokio::runtime::Runtime;

use crate::backup::Bar;
use crate::cluster::install::{REPLACE, other_host};
use crate::exit::{DATA, Failure, Outcome, UNAVAILABLE, USAGE, reason};
use crate::output::Format;
use crate::replication::certificates::Certificates;
use crate::replication::fetch_rows::{self, RowsError};
use crate::replication::{install, tls};

/// Rows between two steps of the progress bar.
const STEP: u64 = 4096;

/// Another host, as the source of records.
struct Peer {
    runtime: Runtime,
    wanted: install::Wanted,
    generation: u64,
    bar: RefCell<Bar>,
}

impl Peer {
    fn new(store: &Path, address: &str, tls: Option<tls::Files>) -> Outcome<Peer> {
        let own = meta::read(&RealDisk, store)?.filter(|own| !own.is_alone()).ok_or_else(|| {
            let shown = store.display();
            let why =
                format!("{shown} is not a host of a cluster, so no other host has its records. Run: tape repair --from BACKUP");
            Failure::new(USAGE, format!("{why} --store {shown}"))
        })?;
        let leader = other_host(&own, address)?;
        let certificates = tls.map(Certificates::new).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let wanted = install::Wanted { store: store.to_path_buf(), cluster: own.store_id, node: own.node, leader, certificates };
        Ok(Peer { runtime, wanted, generation: own.generation, bar: RefCell::default() })
    }

    fn show(&self, progress: Progress) {
        self.bar.borrow_mut().show(progress);
    }

    /// Rebuilds the SSTables of `group`.
    fn mend(&self, rebuild: &mut Rebuild, group: &Group) -> Result<Vec<Rebuilt>, RowsError> {
        let total = group.rows();
        rebuild.mend(
            group,
            HostClock.wall(),
            &mut |wanted, give| {
                let mut arrived = 0u64;
                let mut counted = |row: tapestore_engine::repair::rows::PeerRow<'_>| {
                    arrived += 1;
                    if arrived.is_multiple_of(STEP) {
                        self.show(Progress { what: "fetching records", more: STEP, total });
                    }
                    give(row)
                };
                self.runtime.block_on(fetch_rows::fetch(&self.wanted, self.generation, wanted, &mut counted))
            },
            &mut |progress| self.show(progress),
        )
    }
}

/// The result.
#[derive(Default)]
struct Done {
    rebuilt: Vec<Rebuilt>,
    /// Files that are still damaged, and why.
    left: Vec<(PathBuf, String)>,
}

/// Rebuilds the lost SSTables of `store` from the records of the host at `address`.
///
/// # Errors
/// The store is not of a cluster, is served, or its log is damaged; the other host cannot be reached (exit code 69); SSTables
/// are still damaged (65).
pub(super) fn run(store: &Path, address: &str, tls: Option<tls::Files>, format: Format) -> Outcome {
    let peer = Peer::new(store, address, tls)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let opened = Rebuild::open(&disk, store, &mut |progress| peer.show(progress));
    peer.bar.borrow_mut().clear();
    let (mut rebuild, groups, found) = opened?;
    if let Some((error, _)) = &found.log {
        let (why, shown) = (reason(error), store.display());
        let run = "SSTables are not rebuilt below a damaged log. Run: tape cluster install-snapshot --from HOST:PORT --store";
        return Err(Failure::new(DATA, format!("{why}; nothing was changed. {run} {shown}, {REPLACE}")));
    }
    let mut done = Done::default();
    let mut away = None;
    for group in &groups {
        let mended = peer.mend(&mut rebuild, group);
        peer.bar.borrow_mut().clear();
        match mended {
            Ok(rebuilt) => done.rebuilt.extend(rebuilt),
            Err(why) if why.is_away() => {
                away =
                    Some(Failure::new(UNAVAILABLE, format!("{why}. Rebuilt SSTables stay; run the command again to continue")));
                break;
            }
            // The disk of this host failed.
            Err(RowsError::Store(error)) if !matches!(error, Error::Invalid { .. }) => {
                away = Some(error.into());
                break;
            }
            Err(why) => {
                let why = why.to_string();
                done.left.extend(group.lost.iter().map(|lost| (rebuild.path(&lost.file), why.clone())));
            }
        }
    }
    say(&done, &peer, format);
    match away {
        Some(failure) => Err(failure),
        None => end(store, &done, groups.is_empty(), format),
    }
}

fn say(done: &Done, peer: &Peer, format: Format) {
    let node = peer.wanted.leader.node;
    if format.json {
        let healed: Vec<&PathBuf> = done.rebuilt.iter().map(|r| &r.lost).collect();
        let files: Vec<&PathBuf> = done.rebuilt.iter().map(|r| &r.path).collect();
        let left: Vec<&PathBuf> = done.left.iter().map(|(path, _)| path).collect();
        out!("{}", serde_json::json!({ "node": node.0, "healed": healed, "files": files, "left": left }));
        return;
    }
    for Rebuilt { lost, path } in &done.rebuilt {
        let (by, then) = match lost == path {
            true => ("replaced".to_owned(), ""),
            false => (format!("replaced by {}", path.display()), "; once this host is served, run: tape cluster scrub"),
        };
        out!("{}: {by}, rebuilt from the records of node {node}, every byte verified{then}", lost.display());
    }
    done.left.iter().for_each(|(path, why)| out!("{}: not rebuilt: {why}", path.display()));
}

fn end(store: &Path, done: &Done, is_sound: bool, format: Format) -> Outcome {
    let shown = store.display();
    if done.left.is_empty() {
        match (format.json, is_sound) {
            (true, _) => {}
            (false, true) => out!("no SSTable is damaged; nothing was changed"),
            (false, false) => out!("next: tape-storage --store {shown}"),
        }
        return Ok(());
    }
    let text = format!(
        "{} SSTables are still damaged, and are unchanged. Try another host of the cluster, or a backup: tape repair --from BACKUP \
         --store {shown}; or replace the store: tape cluster install-snapshot --from HOST:PORT --store {shown}",
        done.left.len()
    );
    Err(Failure::new(DATA, text))
}
