//! Owns: the limits of a process: open files, memory maps, address space, sizes of files, locked memory.

use indicatif::BinaryBytes;
use rustix::process::{Resource, getrlimit};
use tapestore::shm::control::SLOTS_MAX;
use tapestore_engine::budget;

use super::finding::Finding;
use super::host::Host;
use crate::terminal::thousands;

/// Open files of a storage process without publishers: its segments, sockets, standard streams and threads' wake-ups. A test
/// compares it with a process.
pub const IDLE_DESCRIPTORS: u64 = 32;
/// Memory maps that a reader needs beside the files of the store: its program and libraries.
pub const OWN_MAPS_OF_READER: u64 = 256;

/// A hard limit: `None` is no limit.
#[derive(Clone, Copy)]
struct Limit {
    most: Option<u64>,
    /// Whose limit it is.
    of: &'static str,
}

/// The hard limit `name` of the storage process that serves the store, else of this process, `resource`: processes of the
/// store raise their soft limits to it.
fn limit(host: &Host, name: &str, resource: Resource) -> Limit {
    let of_server = host.server().and_then(|pid| host.system.text(&format!("/proc/{pid}/limits")));
    let line = of_server.as_ref().and_then(|text| text.lines().find_map(|line| line.strip_prefix(name)));
    if let Some(hard) = line.and_then(|line| line.split_whitespace().nth(1)) {
        return Limit { most: hard.parse().ok(), of: "the running storage process" };
    }
    Limit { most: getrlimit(resource).maximum, of: "this shell" }
}

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    vec![open_files(host), memory_maps(host), address_space(host), file_size(host), locked_memory(host)]
}

fn open_files(host: &Host) -> Finding {
    const NAME: &str = "open-files";
    let Limit { most, of } = limit(host, "Max open files", Resource::Nofile);
    let Some(most) = most else { return Finding::ok(NAME, format!("no limit for {of}")) };
    let own = IDLE_DESCRIPTORS + budget::OWN_DESCRIPTORS;
    let publishers = most.saturating_sub(own) / budget::DESCRIPTORS;
    let all = SLOTS_MAX as u64;
    let found = format!("{} at most for {of}: room for {} publishers", thousands(most), publishers.min(all));
    let needed = format!(
        "{} and {} for each publisher that is attached: more are refused, and storage without any does not serve",
        own,
        budget::DESCRIPTORS
    );
    let command = "ulimit -n 1048576 in the shell that starts storage, or LimitNOFILE=1048576 in its unit";
    match publishers {
        0 => Finding::problem(NAME, found, needed, command),
        n if n < all => Finding::warning(NAME, found, needed, command),
        _ => Finding::ok(NAME, found),
    }
}

fn memory_maps(host: &Host) -> Finding {
    const NAME: &str = "memory-maps";
    let Some(most) = host.system.number("/proc/sys/vm/max_map_count") else {
        return Finding::ok(NAME, "the system does not say how many a process may have");
    };
    let all = budget::OWN_MAPS + budget::MAPS * SLOTS_MAX as u64;
    let files = host.sstables() as u64;
    let found = format!("vm.max_map_count is {}; there are {} SSTables", thousands(most), thousands(files));
    let command = format!("sysctl -w vm.max_map_count={}", most.saturating_mul(4).max(files.saturating_mul(4)).max(1_048_576));
    if files + OWN_MAPS_OF_READER > most {
        let needed = format!("{}: a reader maps each SSTable, and gets TooManyMaps", thousands(files + OWN_MAPS_OF_READER));
        return Finding::problem(NAME, found, needed, command);
    }
    if most < budget::OWN_MAPS + budget::MAPS {
        let needed = format!("{}: storage refuses every publisher", thousands(budget::OWN_MAPS + budget::MAPS));
        return Finding::problem(NAME, found, needed, command);
    }
    if files > most / 2 {
        let needed = "twice the number of SSTables: a reader maps each of them, and open snapshots keep earlier ones mapped";
        return Finding::warning(NAME, found, needed, format!("{command}, or tape compact --store {}", host.store_text()));
    }
    if most < all {
        let needed = format!("{} for {SLOTS_MAX} publishers: storage refuses those beyond", thousands(all));
        return Finding::warning(NAME, found, needed, command);
    }
    Finding::ok(NAME, found)
}

fn address_space(host: &Host) -> Finding {
    const NAME: &str = "address-space";
    let Limit { most, of } = limit(host, "Max address space", Resource::As);
    let Some(most) = most else { return Finding::ok(NAME, format!("no limit for {of}")) };
    let own = host.memtable_bytes() + budget::OWN_SPACE;
    let found = format!("{} at most for {of}", BinaryBytes(most));
    let needed = format!(
        "{} for its MemTables and itself, and {} for each publisher: a map that does not fit ends the process or is refused",
        BinaryBytes(own),
        BinaryBytes(budget::SPACE)
    );
    let command = "ulimit -v unlimited in the shell that starts storage, or LimitAS=infinity in its unit";
    if most < own + budget::SPACE {
        return Finding::problem(NAME, found, needed, command);
    }
    Finding::warning(NAME, found, needed, command)
}

fn file_size(host: &Host) -> Finding {
    const NAME: &str = "file-size";
    let Limit { most, of } = limit(host, "Max file size", Resource::Fsize);
    let Some(most) = most else { return Finding::ok(NAME, format!("no limit for {of}")) };
    let largest = host.options.segment_size.max(host.options.memtable_size);
    let found = format!("a file of {of} has at most {}", BinaryBytes(most));
    let command = "ulimit -f unlimited in the shell that starts storage, or LimitFSIZE=infinity in its unit";
    if most < largest {
        let needed = format!("{}, a log segment or a MemTable: storage cannot make it", BinaryBytes(largest));
        return Finding::problem(NAME, found, needed, command);
    }
    let needed = "no limit: an SSTable of four million rows has several hundred MiB, and a flush that cannot write it fails";
    Finding::warning(NAME, found, needed, command)
}

/// Nothing of the store locks memory, so no limit is too low.
fn locked_memory(host: &Host) -> Finding {
    let Limit { most, of } = limit(host, "Max locked memory", Resource::Memlock);
    let most = most.map_or_else(|| "no limit".to_owned(), |most| BinaryBytes(most).to_string());
    Finding::ok("locked-memory", format!("{most} for {of}; no process of the store locks any"))
}
