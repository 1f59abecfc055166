//! Owns: what processes leave on the bus that were killed in the middle of making it, and that the bus's own clean-up does
//! not see.
//!
//! ```text
//! ROOT/nodes/ID/                       of the process ID: a tag for each service and port that it has, PREFIX…PORT.port_tag
//! ROOT/nodes/PREFIX…ID.node_monitor    by which it is seen to live
//! /dev/shm/PREFIX…PORT.data            what a port sends from
//! /dev/shm/PREFIX…PORT_PORT.connection what two ports share
//! ```
//!
//! What must hold: nothing is removed of a process that lives, nor what was made a moment ago: a process may be joining.

use std::collections::HashSet;
use std::fs::DirEntry;
use std::path::Path;
use std::time::Duration;

/// What no living process is known by is left alone for so long.
const AGE: Duration = Duration::from_secs(5);

/// Removes from `dir`, of a dead process, the files that it has not finished: one that is finished cannot be written.
pub(super) fn remove_half_made(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|m| m.is_file() && !m.permissions().readonly())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(%error, path = %entry.path().display(), "a half-made file of a dead process stays");
        }
    }
}

fn is_old(entry: &DirEntry) -> bool {
    let touched = entry.metadata().and_then(|m| m.modified()).ok();
    touched.and_then(|t| t.elapsed().ok()).is_some_and(|age| age > AGE)
}

fn remove_one(path: &Path) {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Ok(()) => tracing::debug!(path = %path.display(), "what a dead process left half made is removed"),
        Err(error) => tracing::debug!(%error, path = %path.display(), "what a dead process left stays"),
    }
}

/// Removes from `nodes` what is of none of the processes `living`, and was last touched long ago: of a process that was
/// killed while it joined, the bus cannot tell that it was one.
pub(super) fn remove(nodes: &Path, living: &HashSet<u128>) {
    for entry in std::fs::read_dir(nodes).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let stem = name.to_str().and_then(|n| n.split('.').next()).unwrap_or_default();
        let id = stem.rsplit('_').next().and_then(|id| id.parse::<u128>().ok());
        if is_old(&entry) && id.is_some_and(|id| !living.contains(&id)) {
            remove_one(&entry.path());
        }
    }
}

/// The process that made the port or node `id`: the bus puts its number there.
fn pid(id: u128) -> u32 {
    (id >> 64) as u32
}

/// Removes segments of `prefix` in `dir` of ports that no tag in `nodes` names, and of which a process has made one that is
/// none of `living`: it was killed between making the segment and saying so.
pub(super) fn remove_segments(dir: &Path, prefix: &str, nodes: &Path, living: &HashSet<u128>) {
    let pids: HashSet<u32> = living.iter().map(|id| pid(*id)).collect();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|n| n.strip_prefix(prefix)).unwrap_or_default();
        let stem = rest.strip_suffix(".data").or_else(|| rest.strip_suffix(".connection"));
        let ports: Vec<u128> = stem.into_iter().flat_map(|s| s.split('_')).filter_map(|id| id.parse().ok()).collect();
        let is_of_the_dead = ports.iter().any(|port| !pids.contains(&pid(*port)));
        if is_of_the_dead && is_old(&entry) && !ports.iter().any(|port| is_tagged(nodes, prefix, *port)) {
            remove_one(&entry.path());
        }
    }
}

/// Whether a process says that `port` is its own.
fn is_tagged(nodes: &Path, prefix: &str, port: u128) -> bool {
    let tag = format!("{prefix}{port}.port_tag");
    std::fs::read_dir(nodes).into_iter().flatten().flatten().any(|node| node.path().join(&tag).exists())
}
