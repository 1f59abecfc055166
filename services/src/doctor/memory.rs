//! Owns: the memory of this host or container: how much there is, what may be promised, swap, huge pages.

use indicatif::BinaryBytes;

use super::finding::Finding;
use super::host::{Host, System};

/// Private memory of storage, idle and while it merges (page `operations`, Sizing; `bench/FIGURES.md`, Compaction).
const PRIVATE_IDLE: u64 = 40 << 20;
const PRIVATE_MERGING: u64 = 300 << 20;

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    vec![memory(host), overcommit(host), swap(host), huge_pages(host)]
}

/// The directories of this process's control group, from its own up to the root, of version 2 and of the controller `v1`.
pub(super) fn groups(system: &System, v1: &str) -> Vec<String> {
    let text = system.text("/proc/self/cgroup").unwrap_or_default();
    let mut dirs = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let base = match controllers {
            "" => "/sys/fs/cgroup".to_owned(),
            other if other.split(',').any(|one| one == v1) => format!("/sys/fs/cgroup/{v1}"),
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            dirs.push(format!("{base}{path}"));
            match path.rsplit_once('/') {
                Some((above, _)) => path = above,
                None => break,
            }
        }
    }
    dirs
}

/// The least memory that a control group of this process allows.
fn group_limit(system: &System) -> Option<u64> {
    let limits = groups(system, "memory")
        .into_iter()
        .flat_map(|dir| ["memory.max", "memory.limit_in_bytes"].map(|file| system.number(&format!("{dir}/{file}"))));
    // Version 1 says "no limit" by a huge number.
    limits.flatten().filter(|limit| *limit < 1 << 60).min()
}

fn memory(host: &Host) -> Finding {
    const NAME: &str = "memory";
    let total = host.system.kilobytes("/proc/meminfo", "MemTotal");
    let group = group_limit(&host.system).filter(|limit| total.is_none_or(|total| *limit < total));
    let Some(most) = group.or(total) else { return Finding::ok(NAME, "the system does not say how much there is") };
    let whose = if group.is_some() { "this control group (container or unit)" } else { "this host" };
    let found = format!("{} for {whose}", BinaryBytes(most));
    let all = host.memtable_bytes() + PRIVATE_MERGING;
    let needed = format!(
        "{}: {} MemTables of {} and storage's own {}, all of which count; beyond the limit the kernel kills a process",
        BinaryBytes(all),
        host.options.memtables_max,
        BinaryBytes(host.options.memtable_size),
        BinaryBytes(PRIVATE_MERGING)
    );
    let size = (most / 8 / 4096 * 4096).max(tapestore::memtable::format::LEN_MIN) >> 20;
    let command = match group {
        Some(_) => format!("tape-storage --memtable-size {size}M, or a higher limit (docker run --memory, MemoryMax=)"),
        None => format!("tape-storage --memtable-size {size}M"),
    };
    // One MemTable is filled while another one is flushed.
    if most < 2 * host.options.memtable_size + PRIVATE_IDLE {
        return Finding::problem(NAME, found, needed, command);
    }
    if most < all {
        return Finding::warning(NAME, found, needed, command);
    }
    Finding::ok(NAME, found)
}

fn overcommit(host: &Host) -> Finding {
    const NAME: &str = "overcommit";
    let mode = host.system.number("/proc/sys/vm/overcommit_memory");
    if mode != Some(2) {
        let mode = mode.map_or_else(|| "unknown".to_owned(), |mode| mode.to_string());
        return Finding::ok(NAME, format!("vm.overcommit_memory is {mode}"));
    }
    let of = |key| host.system.kilobytes("/proc/meminfo", key).unwrap_or(0);
    let left = of("CommitLimit").saturating_sub(of("Committed_AS"));
    let need = host.memtable_bytes() + PRIVATE_MERGING;
    let found = format!("vm.overcommit_memory is 2, and {} can still be promised", BinaryBytes(left));
    let needed =
        format!("{}: every mapping of memory counts whether it is used or not, and is refused beyond", BinaryBytes(need));
    let command = "sysctl -w vm.overcommit_memory=0";
    // What a running storage process has is promised already.
    if left < need && !host.is_served() {
        return Finding::problem(NAME, found, needed, command);
    }
    Finding::warning(NAME, found, needed, command)
}

fn swap(host: &Host) -> Finding {
    const NAME: &str = "swap";
    let text = host.system.text("/proc/swaps").unwrap_or_default();
    let areas: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() {
        return Finding::ok(NAME, "none");
    }
    let swappiness = host.system.number("/proc/sys/vm/swappiness");
    let found = format!("{}; vm.swappiness is {}", areas.join(", "), swappiness.unwrap_or(60));
    if swappiness.is_some_and(|it| it <= 1) {
        return Finding::ok(NAME, found);
    }
    let needed = "vm.swappiness of 0 or 1, or no swap: shared memory can be swapped out, and a record then waits for the disk";
    Finding::warning(NAME, found, needed, "sysctl -w vm.swappiness=1, or swapoff -a")
}

/// The choice in brackets of a file like `always [madvise] never`.
fn chosen(text: &str) -> &str {
    text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or(text)
}

fn huge_pages(host: &Host) -> Finding {
    const NAME: &str = "huge-pages";
    const DIR: &str = "/sys/kernel/mm/transparent_hugepage";
    let Some(enabled) = host.system.text(&format!("{DIR}/enabled")) else {
        return Finding::ok(NAME, "this kernel makes none by itself");
    };
    let defrag = host.system.text(&format!("{DIR}/defrag")).unwrap_or_default();
    let found = format!("transparent huge pages: {}, defrag: {}", chosen(&enabled), chosen(&defrag));
    if chosen(&enabled) == "always" && chosen(&defrag) == "always" {
        let needed = "madvise: a first touch of memory can wait for milliseconds while the kernel makes room for a huge page";
        return Finding::warning(NAME, found, needed, format!("echo madvise > {DIR}/defrag"));
    }
    Finding::ok(NAME, found)
}
