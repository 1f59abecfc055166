//! Owns: the check whether one more publisher can attach: what it takes of this process and of the host, against what is
//! left.
//!
//! What must hold: storage can receive from every attached publisher. A publisher takes some resources only after its
//! grant, so what earlier publishers may still take is counted too.

use std::path::Path;

use procfs::process::Process;
use rustix::process::{Resource, getrlimit};

/// Descriptors that a publisher takes here: its connection, and the files of its service on the bus. Measured; a test
/// repeats the measurement.
pub const DESCRIPTORS: u64 = 6;
/// Descriptors reserved for storage: segments, SSTables, requests.
pub const OWN_DESCRIPTORS: u64 = 16;
/// Memory maps that a publisher takes here.
pub const MAPS: u64 = 8;
/// Memory maps reserved for storage.
pub const OWN_MAPS: u64 = 256;
/// Bytes of address space that a publisher takes here: the chunks of its batches.
pub const SPACE: u64 = 24 << 20;
/// Bytes of address space reserved for storage.
pub const OWN_SPACE: u64 = 64 << 20;
/// Bytes of shared memory that must be free for an attach.
pub const SHARED: u64 = 1 << 20;

/// Directory of the bus's segments.
const SEGMENTS: &str = "/dev/shm";

/// Resources that this process uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Descriptors open when no publisher was attached, without those of connections.
    descriptors: u64,
}

impl Budget {
    /// Returns why no publisher can attach to `attached` others, or `None` if one can. `connections` are open, its own
    /// included.
    pub(super) fn refusal(&mut self, attached: u64, connections: u64) -> Option<String> {
        let process = Process::myself().ok();
        let open = process.as_ref().and_then(|p| p.fd_count().ok()).unwrap_or(0) as u64;
        // The connection is one of the descriptors.
        let services = attached * (DESCRIPTORS - 1);
        if attached == 0 || self.descriptors == 0 {
            self.descriptors = open.saturating_sub(connections + services);
        }
        // Earlier publishers may not have opened everything yet.
        let used = open.max(self.descriptors + connections + services);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if used + DESCRIPTORS - 1 + OWN_DESCRIPTORS > limit {
            return Some(format!(
                "storage may have {limit} files open and has {used}; a publisher takes {DESCRIPTORS}, and {OWN_DESCRIPTORS} are \
                 kept for storage itself. Start it with a higher limit (ulimit -n, or LimitNOFILE= of its service)"
            ));
        }
        let maps = process.as_ref().and_then(|p| p.maps().ok()).map(|maps| maps.len() as u64);
        let most = procfs::sys::vm::max_map_count().ok();
        if let (Some(maps), Some(most)) = (maps, most)
            && maps + MAPS + OWN_MAPS > most
        {
            return Some(format!("storage has {maps} of {most} memory maps: raise the limit (sysctl vm.max_map_count)"));
        }
        let limit = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
        if let Some(mapped) = process.and_then(|p| p.statm().ok()).map(|m| m.size * rustix::param::page_size() as u64)
            && mapped + SPACE + OWN_SPACE > limit
        {
            return Some(format!("storage uses {mapped} of {limit} bytes of address space: raise the limit (ulimit -v)"));
        }
        let free = tapestore::shm::free_bytes(Path::new(SEGMENTS));
        (free < SHARED).then(|| format!("{SEGMENTS} has {free} bytes free: free some there, or make it larger"))
    }
}
