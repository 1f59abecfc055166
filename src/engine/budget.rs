//! Owns: whether one more publisher can be attached: what it takes of this process and of the host, against what is left.
//!
//! What must hold: whoever is told that it is attached can be received from. A publisher takes some of this after it has
//! been told, so what those before it may still take is counted too.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Descriptors that a publisher takes here: its connection, and the files of its service on the bus. Measured; a test
/// measures it again.
pub(super) const DESCRIPTORS: u64 = 6;
/// Descriptors that storage keeps for itself: for segments, files of history, requests.
const OWN_DESCRIPTORS: u64 = 16;
/// Memory maps that a publisher takes here.
const MAPS: u64 = 8;
/// Memory maps that storage keeps for itself.
const OWN_MAPS: u64 = 256;
/// Bytes of address space that a publisher takes here: the chunks of its batches.
const SPACE: u64 = 24 << 20;
/// Bytes of address space that storage keeps for itself.
const OWN_SPACE: u64 = 64 << 20;
/// Bytes of shared memory below which nobody is attached.
const SHARED: u64 = 1 << 20;

/// Where the bus has its segments.
const SEGMENTS: &str = "/dev/shm";

/// What this process has in use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Descriptors, those of connections aside, when no publisher was attached.
    descriptors: u64,
}

impl Budget {
    /// Why no publisher can be attached to `attached` others; `None` if one can. There are so many `connections`, its own
    /// among them.
    pub(super) fn refusal(&mut self, attached: u64, connections: u64) -> Option<String> {
        let open = count("/proc/self/fd");
        // A connection is one of them.
        let services = attached * (DESCRIPTORS - 1);
        if attached == 0 || self.descriptors == 0 {
            self.descriptors = open.saturating_sub(connections + services);
        }
        // The others may not have everything open yet.
        let used = open.max(self.descriptors + connections + services);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if used + DESCRIPTORS - 1 + OWN_DESCRIPTORS > limit {
            return Some(format!(
                "storage may have {limit} files open; {used} are, a publisher takes {DESCRIPTORS}, and {OWN_DESCRIPTORS} are \
                 kept for storage itself. Start it with a higher limit (ulimit -n, or LimitNOFILE= of its service)"
            ));
        }
        let (maps, most) = (lines("/proc/self/maps"), number("/proc/sys/vm/max_map_count"));
        if let (Some(maps), Some(most)) = (maps, most)
            && maps + MAPS + OWN_MAPS > most
        {
            return Some(format!("storage has {maps} memory maps of {most}: raise them (sysctl vm.max_map_count)"));
        }
        let limit = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
        if let Some(mapped) = mapped()
            && mapped + SPACE + OWN_SPACE > limit
        {
            return Some(format!("storage has {mapped} bytes of its {limit} of address space in use: raise it (ulimit -v)"));
        }
        let free = tapestore::shm::free_bytes(Path::new(SEGMENTS));
        (free < SHARED).then(|| format!("{SEGMENTS} has {free} bytes free: make room there, or make it larger"))
    }
}

/// Entries of the directory `path`.
fn count(path: &str) -> u64 {
    std::fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}

fn lines(path: &str) -> Option<u64> {
    let text = std::fs::read(path).ok()?;
    Some(text.iter().filter(|b| **b == b'\n').count() as u64)
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Bytes of address space that this process has in use.
fn mapped() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
