//! Owns: shared memory: its size and room, what is left in it of stores that have gone, and the run directory of the store.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use indicatif::BinaryBytes;
use tapestore::error::Error;
use tapestore::shm::run_dir::{Leftover, ROOT_DEFAULT, RunDir};
use tapestore::shm::status::State;
use tapestore::shm::{free_bytes, total_bytes};
use tapestore_engine::budget;

use super::finding::Finding;
use super::host::Host;
use super::mounts::Mount;

/// What container engines give a container.
const OF_A_CONTAINER: u64 = 64 << 20;
/// Most leftovers that a finding lists.
const LISTED_MAX: usize = 8;

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    let mut findings = vec![shared_memory(host), leftovers(host), run_directory(host)];
    findings.extend(remove_ipc(host));
    findings
}

fn shared_memory(host: &Host) -> Finding {
    const NAME: &str = "shared-memory";
    let root = &host.options.run_root;
    let at = root.display();
    if !root.is_dir() {
        let needed = "a directory on a memory file system: the store's shared memory is made there";
        return Finding::problem(NAME, format!("{at} does not exist"), needed, format!("mount -t tmpfs tmpfs {at} -o mode=1777"));
    }
    let mount = Mount::of(&host.system, root);
    let (total, free) = (total_bytes(root), free_bytes(root));
    let of = mount.as_ref().map_or("unknown", |mount| mount.of.as_str());
    let found = format!("{at}: {} free of {} ({of})", BinaryBytes(free), BinaryBytes(total));
    if let Some(mount) = &mount {
        if !["tmpfs", "ramfs"].contains(&mount.of.as_str()) {
            let needed = "a memory file system (tmpfs): every record would be written to a disk twice";
            return Finding::problem(NAME, found, needed, format!("mount -t tmpfs tmpfs {at} -o mode=1777"));
        }
        if mount.has(&["ro"]) {
            let needed = "rw: no process could make shared memory";
            return Finding::problem(NAME, found, needed, format!("mount -o remount,rw {at}"));
        }
    }
    // A memory file system without a limit says 0.
    if total == 0 {
        return Finding::ok(NAME, found);
    }
    let need = host.memtable_bytes() + OF_A_CONTAINER;
    let size = need.div_ceil(1 << 30).max(1);
    let command = format!("mount -o remount,size={size}G {at}; of a container: docker run --shm-size={size}g");
    if free < budget::SHARED {
        let needed = format!("{}: storage refuses every publisher with less", BinaryBytes(budget::SHARED));
        return Finding::problem(NAME, found, needed, command);
    }
    if total <= OF_A_CONTAINER {
        let needed = format!(
            "{}: this is what a container gets without an option; MemTables go to STORE/spill, which is slower",
            BinaryBytes(need)
        );
        return Finding::warning(NAME, found, needed, command);
    }
    // Of a store that is served, the MemTables are there already.
    if !host.is_served() && free < need {
        let needed = format!(
            "{}: {} MemTables of {} and room for the bus; those that do not fit go to STORE/spill, which is slower",
            BinaryBytes(need),
            host.options.memtables_max,
            BinaryBytes(host.options.memtable_size)
        );
        return Finding::warning(NAME, found, needed, command);
    }
    Finding::ok(NAME, found)
}

/// Bytes that `path` and everything below it takes.
fn bytes_of(path: &Path) -> u64 {
    let own = path.symlink_metadata().map_or(0, |found| found.blocks() * 512);
    let below = match path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        true => std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes_of(&entry.path())).sum(),
        false => 0,
    };
    own + below
}

/// `path` as one word of a shell: bus segments of a store by what their names begin with.
fn pattern(path: &Path) -> String {
    let text = path.display().to_string();
    match (text.contains("/tapestore-"), text.split_once('i')) {
        (false, Some((before, _))) => format!("{before}i*"),
        _ => text,
    }
}

/// The names in the directory of bus segments that some process maps.
fn mapped(host: &Host) -> BTreeSet<String> {
    let pids = host.system.names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let mut names = BTreeSet::new();
    for maps in pids.filter_map(|pid| host.system.text(&format!("/proc/{pid}/maps"))) {
        let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..)?.strip_prefix(ROOT_DEFAULT)?.strip_prefix('/'));
        names.extend(paths.filter_map(|path| path.split([' ', '/']).next()).map(str::to_owned));
    }
    names
}

/// Whether no process maps anything of `left`, as far as this user can see it: a store whose run directory is elsewhere has its
/// bus segments here too.
fn is_unused(left: &Leftover, mapped: &BTreeSet<String>) -> bool {
    let own = rustix::process::geteuid();
    let is_seen = |path: &Path| own.is_root() || path.symlink_metadata().is_ok_and(|found| found.uid() == own.as_raw());
    let is_mapped = |path: &Path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| mapped.contains(name));
    left.paths.iter().all(|path| is_seen(path) && !is_mapped(path))
}

fn leftovers(host: &Host) -> Finding {
    const NAME: &str = "leftovers";
    let root = &host.options.run_root;
    let left = match RunDir::leftovers(root) {
        Ok(left) => left,
        Err(error) => return Finding::ok(NAME, format!("not looked for: {error}")),
    };
    let mapped = mapped(host);
    let left: Vec<Leftover> = left.into_iter().filter(|one| is_unused(one, &mapped)).collect();
    if left.is_empty() {
        return Finding::ok(NAME, format!("none in {}", root.display()));
    }
    let bytes: u64 = left.iter().flat_map(|one| &one.paths).map(|path| bytes_of(path)).sum();
    let found = format!("{} in {} of stores that have gone: {}", BinaryBytes(bytes), root.display(), left.len());
    let needed = "nothing: no process uses it. The next start of storage by the same user removes what has a run directory";
    let mut patterns: Vec<String> = left.iter().take(LISTED_MAX).flat_map(|one| &one.paths).map(|path| pattern(path)).collect();
    patterns.dedup();
    let more = if left.len() > LISTED_MAX { ", then tape doctor again for the others" } else { "" };
    Finding::warning(NAME, found, needed, format!("rm -r {}{more}", patterns.join(" ")))
}

fn run_directory(host: &Host) -> Finding {
    const NAME: &str = "run-directory";
    let start = format!("tape-storage --store {}", host.store_text());
    let link = host.store.join(tapestore::shm::run_dir::LINK);
    match &host.run_dir {
        Ok(run_dir) => {
            let found = run_dir.path().display().to_string();
            if host.status.as_ref().is_some_and(|status| status.state == State::Dead) {
                let found =
                    format!("{found}: storage was killed, and {} wait for its next start", BinaryBytes(bytes_of(run_dir.path())));
                let needed = "a storage process: it reads the log, serves again and frees that memory";
                return Finding::warning(NAME, found, needed, start);
            }
            Finding::ok(NAME, found)
        }
        Err(error @ Error::Denied { .. }) => {
            let needed = "the user that serves the store: shared memory of another user can be neither read nor written";
            Finding::problem(NAME, error.to_string(), needed, "sudo -u USER tape doctor, as the user that is named")
        }
        Err(Error::StorageDown { why, .. }) if leads_astray(&link) => {
            let needed = "a directory of the store's own user: another user could give readers records of its own";
            Finding::problem(NAME, format!("{}: {why}", link.display()), needed, format!("rm {}; {start}", link.display()))
        }
        Err(Error::StorageDown { why, .. }) => Finding::ok(NAME, format!("none: {why}")),
        Err(error) => Finding::ok(NAME, format!("none: {error}")),
    }
}

/// Whether the link `link` leads to something that its owner did not make, or in which others can write.
fn leads_astray(link: &Path) -> bool {
    let owner = link.symlink_metadata().map(|found| found.uid());
    let target = std::fs::read_link(link).and_then(|path| path.symlink_metadata());
    match (owner, target) {
        (Ok(owner), Ok(target)) => !target.is_dir() || target.uid() != owner || target.mode() & 0o022 != 0,
        _ => false,
    }
}

/// Whether the system removes the shared memory of this user when the user logs out.
fn remove_ipc(host: &Host) -> Option<Finding> {
    const NAME: &str = "remove-ipc";
    // Users below that number are the system's own, which it leaves alone.
    const SYSTEM_USERS: u32 = 1000;
    let uid = rustix::process::geteuid().as_raw();
    if uid < SYSTEM_USERS || !host.system.path("/run/systemd/system").is_dir() {
        return None;
    }
    let texts = ["/etc/systemd/logind.conf".to_owned()].into_iter().chain(
        host.system.names("/etc/systemd/logind.conf.d").into_iter().map(|name| format!("/etc/systemd/logind.conf.d/{name}")),
    );
    let said = texts.filter_map(|path| host.system.text(&path)).flat_map(|text| {
        text.lines()
            .filter_map(|line| Some(line.trim().strip_prefix("RemoveIPC=")?.trim().to_ascii_lowercase()))
            .collect::<Vec<_>>()
    });
    if said.last().is_some_and(|value| ["no", "false", "0", "off"].contains(&value.as_str())) {
        return Some(Finding::ok(NAME, "RemoveIPC=no"));
    }
    let needed = "RemoveIPC=no, or a system user: at the last logout of this user the system removes the store's shared memory";
    let command =
        "printf '[Login]\\nRemoveIPC=no\\n' > /etc/systemd/logind.conf.d/tapestore.conf && systemctl reload systemd-logind";
    Some(Finding::warning(NAME, "RemoveIPC is not switched off in logind.conf", needed, command))
}
