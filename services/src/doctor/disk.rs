//! Owns: the disk of the store: its file system and how that is mounted, its room, what a sync costs.

use indicatif::BinaryBytes;
use tapestore::disk::{Disk, RealDisk};
use tapestore_engine::space;

use super::finding::Finding;
use super::fsync::{Cost, PLAUSIBLE_NS};
use super::host::Host;
use super::mounts::Mount;
use crate::terminal::{duration, thousands};

/// File systems in memory.
const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];
/// File systems of other hosts, or of programs.
const REMOTE: [&str; 11] = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "lustre", "glusterfs", "virtiofs"];
/// A sync that takes longer at the median is slow: a solid state disk with a volatile cache takes one to four milliseconds.
const SLOW_NS: u64 = 8_000_000;
/// Inodes that a store may need soon: SSTables, segments, MemTables on disk.
const INODES: u64 = 10_000;

/// The findings. `measures`: whether syncs are measured.
pub fn examine(host: &Host, measures: bool) -> Vec<Finding> {
    let mount = Mount::of(&host.system, &host.place);
    let mut findings = Vec::new();
    match &mount {
        Some(mount) => findings.extend([file_system(host, mount), mount_options(mount)]),
        None => findings.push(Finding::ok("file-system", "the system does not say which")),
    }
    findings.extend([disk_space(host), inodes(host)]);
    if measures {
        findings.push(fdatasync(host));
    }
    findings
}

fn file_system(host: &Host, mount: &Mount) -> Finding {
    const NAME: &str = "file-system";
    let found = format!("{} ({}) at {}", mount.of, mount.source, mount.at.display());
    let command = format!("tape backup DISK/store --store {0} --copy, or another --store on a disk", host.store_text());
    if IN_MEMORY.contains(&mount.of.as_str()) {
        let needed = "a disk: a file system in memory is empty after the host stops, whatever was acknowledged at fsync";
        return Finding::problem(NAME, found, needed, command);
    }
    if REMOTE.contains(&mount.of.as_str()) || mount.of.starts_with("fuse") {
        let needed = "a local disk: each sync crosses a network or another program, and its promise is only as good as theirs";
        return Finding::warning(NAME, found, needed, command);
    }
    if mount.of == "overlay" {
        let needed = "a volume: what a container writes on its own layer goes with the container, and the layer is slower";
        return Finding::warning(NAME, found, needed, "docker run -v /data/prod:/data/prod, and --store /data/prod");
    }
    Finding::ok(NAME, found)
}

fn mount_options(mount: &Mount) -> Finding {
    const NAME: &str = "mount-options";
    let (found, at) = (mount.options.join(","), mount.at.display());
    if mount.has(&["ro"]) {
        let needed = "rw: storage writes there; readers of a store at rest need no more than this";
        return Finding::problem(NAME, found, needed, format!("mount -o remount,rw {at}"));
    }
    if mount.has(&["nobarrier", "barrier=0", "nobarriers"]) {
        let needed = "barriers: without them a sync returns before the disk has the bytes, and a loss of power loses \
                      acknowledged records; only a cache with a battery makes that good";
        return Finding::problem(NAME, found, needed, format!("mount -o remount,barrier=1 {at}, and /etc/fstab"));
    }
    if mount.has(&["sync", "dirsync"]) {
        let needed = "no sync: storage says itself when it needs the disk, and this makes every write wait for it";
        return Finding::warning(NAME, found, needed, format!("mount -o remount,async {at}, and /etc/fstab"));
    }
    if !mount.has(&["noatime", "relatime"]) {
        let needed = "noatime or relatime: each read of an SSTable writes its time to the disk otherwise";
        return Finding::warning(NAME, found, needed, format!("mount -o remount,noatime {at}, and /etc/fstab"));
    }
    Finding::ok(NAME, found)
}

fn disk_space(host: &Host) -> Finding {
    const NAME: &str = "disk-space";
    let place = host.place.display();
    let space = match RealDisk.space(&host.place) {
        Ok(space) => space,
        Err(error) => return Finding::warning(NAME, error.to_string(), "the room on the disk", format!("df -h {place}")),
    };
    let (segment, memtable) = (host.options.segment_size, host.options.memtable_size);
    let keep = space::keep_free(host.options.space_min, space.total, segment, memtable);
    let found = format!("{} free of {}", BinaryBytes(space.free), BinaryBytes(space.total));
    let kept = format!("space-min is {}", BinaryBytes(keep));
    let command = format!("free some of {place}, add retention rules (tape retention --dry-run), or give a smaller --space-min");
    // Before it serves a new store, storage needs room for a segment too.
    let least = if host.store.join("wal").is_dir() { keep } else { keep.saturating_add(segment) };
    if space.free < least {
        return Finding::problem(
            NAME,
            found,
            format!("{}: {kept}, and with less no record is accepted", BinaryBytes(least)),
            command,
        );
    }
    let soon = least.saturating_add(2 * segment + memtable + space::BALLAST_MAX);
    if space.free < soon {
        let needed = format!("{} for the next segments, a flush and the ballast; {kept}", BinaryBytes(soon));
        return Finding::warning(NAME, found, needed, command);
    }
    Finding::ok(NAME, format!("{found}; {kept}"))
}

fn inodes(host: &Host) -> Finding {
    const NAME: &str = "inodes";
    let Ok(space) = rustix::fs::statvfs(&host.place) else { return Finding::ok(NAME, "the system does not say") };
    // File systems that make inodes as they are needed say 0.
    if space.f_files == 0 {
        return Finding::ok(NAME, "as many as there is room for");
    }
    let found = format!("{} free of {}", thousands(space.f_favail), thousands(space.f_files));
    let needed = "some thousand: every SSTable and log segment is a file, and without one a flush fails";
    let command = format!("remove files from {}; df -i shows them", host.place.display());
    match space.f_favail {
        n if n < INODES / 100 => Finding::problem(NAME, found, needed, command),
        n if n < INODES => Finding::warning(NAME, found, needed, command),
        _ => Finding::ok(NAME, found),
    }
}

fn fdatasync(host: &Host) -> Finding {
    const NAME: &str = "fdatasync";
    let place = host.place.display();
    let cost = match Cost::measure(&host.place) {
        Ok(cost) => cost,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Finding::ok(NAME, format!("not measured: this user may not write in {place}"));
        }
        Err(error) => {
            let needed = "a file that can be written and synced: storage cannot work here";
            return Finding::problem(NAME, format!("{place}: {error}"), needed, format!("df -h {place}; dmesg | tail"));
        }
    };
    let found = format!(
        "p50 {}, p99 {}, longest {} of {} writes of 192 bytes, each synced",
        duration(cost.p50_ns),
        duration(cost.p99_ns),
        duration(cost.max_ns),
        cost.count
    );
    if cost.p50_ns < PLAUSIBLE_NS {
        let needed = format!(
            "at least {}: no device writes faster, so these syncs return before it has; acknowledged records are lost with the power",
            duration(PLAUSIBLE_NS)
        );
        let command = format!(
            "findmnt -T {place}; keep the store on a disk whose cache is written back (in a virtual machine: cache=none or directsync, \
             not unsafe)"
        );
        return Finding::problem(NAME, found, needed, command);
    }
    if cost.p50_ns > SLOW_NS {
        let needed = format!("less than {}: at fsync no record is acknowledged sooner than a sync takes", duration(SLOW_NS));
        return Finding::warning(NAME, found, needed, "iostat -x 1, which shows who else uses the disk; or a faster disk");
    }
    Finding::ok(NAME, found)
}
