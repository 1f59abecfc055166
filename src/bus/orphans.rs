//! Owns: orphans on the bus: files of processes that were killed while creating them, which the bus's own clean-up misses.
//!
//! ```text
//! ROOT/nodes/ID/                       of the process ID: a tag for each of its services and ports, PREFIX…PORT.port_tag
//! ROOT/nodes/PREFIX…ID.node_monitor    shows that the process lives
//! /dev/shm/PREFIX…PORT.data            a port's send buffer
//! /dev/shm/PREFIX…PORT_PORT.connection shared by two ports
//! ```
//!
//! What must hold: files of a live process are never removed, nor are recent files: a process may be joining.

use std::collections::HashSet;
use std::fs::DirEntry;
use std::path::Path;
use std::time::Duration;

/// A file of no live process is kept this long.
const AGE: Duration = Duration::from_secs(5);

/// Removes the unfinished files of a dead process from its directory `dir`: a finished file is read-only.
pub(super) fn remove_half_made(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|m| m.is_file() && !m.permissions().readonly())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(
                name: "bus.unfinished_file_not_removed", %error, path = %entry.path().display(),
                "cannot remove an unfinished file of a dead process"
            );
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
        Ok(()) => tracing::debug!(name: "bus.orphan_removed", path = %path.display(), "removed an orphan of a dead process"),
        Err(error) => tracing::debug!(
            name: "bus.orphan_not_removed", %error, path = %path.display(),
            "cannot remove an orphan of a dead process"
        ),
    }
}

/// Removes old entries of `nodes` that belong to none of the processes `living`: the bus does not recognise a process that
/// was killed while it joined.
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

/// The process that created the port or node `id`: the bus puts its pid in the high half.
fn pid(id: u128) -> u32 {
    (id >> 64) as u32
}

/// Removes old segments of `prefix` in `dir` that have a port of a process outside `living` and no port with a tag in
/// `nodes`: the process was killed between creating the segment and tagging it.
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

/// Whether a process has tagged `port` as its own.
fn is_tagged(nodes: &Path, prefix: &str, port: u128) -> bool {
    let tag = format!("{prefix}{port}.port_tag");
    std::fs::read_dir(nodes).into_iter().flatten().flatten().any(|node| node.path().join(&tag).exists())
}
