//! Owns: finding processes that map deleted files of a store: a reader's snapshot keeps the bytes of files that were
//! compacted, expired or flushed since.
//!
//! What must hold: the numbers come from the system, so a dead reader holds nothing; a file counts once per process, however
//! often it is mapped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A process that maps deleted files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Mapped bytes: at most the bytes that the files take.
    pub bytes: u64,
}

/// A process that maps files of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Process id.
    pub pid: u32,
    /// The name of its program, at most 15 bytes.
    pub program: String,
    /// Files that it maps, deleted ones too.
    pub files: u64,
    /// Mapped bytes of them.
    pub bytes: u64,
    /// Of these, bytes of deleted files.
    pub deleted_bytes: u64,
}

/// The processes that map deleted files below one of `dirs`. Processes of other users are invisible.
pub fn of(dirs: &[&Path]) -> Vec<Holder> {
    let of = mapped(dirs).into_iter().map(|of| Holder { pid: of.pid, bytes: of.deleted_bytes });
    let mut holders: Vec<Holder> = of.filter(|holder| holder.bytes > 0).collect();
    holders.sort_unstable_by_key(|p| (std::cmp::Reverse(p.bytes), p.pid));
    holders
}

/// The processes that map files below one of `dirs`, by their ids. Processes of other users are invisible.
pub fn mapped(dirs: &[&Path]) -> Vec<Mapped> {
    let dirs: Vec<PathBuf> = dirs.iter().map(|d| std::fs::canonicalize(d).unwrap_or_else(|_| d.to_path_buf())).collect();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let found = pids.filter_map(|pid| {
        // The process may have ended, or belong to another user. A parser of our own: every process's paths come by here, and
        // the one of `procfs` panics at a short path that begins with /SYSV.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        let of = counted(&maps, &dirs);
        let program = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
        (of.files > 0).then(|| Mapped { pid, program: program(), ..of })
    });
    let mut found: Vec<Mapped> = found.collect();
    found.sort_unstable_by_key(|of| of.pid);
    found
}

/// The files below `dirs` in `maps`, a /proc/PID/maps.
fn counted(maps: &str, dirs: &[PathBuf]) -> Mapped {
    // A file may be mapped in parts, each with its own offset.
    let mut parts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in maps.lines() {
        let Some(path) = line.find('/').and_then(|at| line.get(at..)) else { continue };
        if !dirs.iter().any(|d| Path::new(path).starts_with(d)) {
            continue;
        }
        let mut fields = line.split_whitespace();
        let range = fields.next().and_then(|r| r.split_once('-'));
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let len = range.and_then(|(from, to)| hex(to)?.checked_sub(hex(from)?)).unwrap_or(0);
        let offset = fields.nth(1).unwrap_or("");
        let part = parts.entry((path, offset)).or_default();
        *part = len.max(*part);
    }
    let mut of = Mapped::default();
    let mut last = "";
    for ((path, _), len) in parts {
        of.files += u64::from(path != last);
        of.bytes += len;
        of.deleted_bytes += if path.ends_with(" (deleted)") { len } else { 0 };
        last = path;
    }
    of
}

/// A warning if a reader of `files` SSTables needs more than half of the memory maps that the system allows: it maps each
/// file.
pub fn maps_warning(files: u64) -> Option<String> {
    let limit = tapestore::error::maps_max()?;
    // Open snapshots map earlier files too.
    (files > limit / 2).then(|| {
        format!(
            "there are {files} SSTables, and a reader maps each of them; the system allows {limit} maps per process. Raise the \
             limit (sysctl -w vm.max_map_count={}), or compact the store (tape compact)",
            limit.saturating_mul(4).max(files.saturating_mul(4))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_of_half_as_many_files_as_a_process_can_map_gives_a_warning() {
        let limit = tapestore::error::maps_max().unwrap();
        assert_eq!(maps_warning(limit / 2), None);
        let warning = maps_warning(limit / 2 + 1).unwrap();
        assert!(warning.contains("vm.max_map_count") && warning.contains(&limit.to_string()), "{warning}");
    }

    #[test]
    fn deleted_files_of_the_store_are_counted_once_and_no_others() {
        let maps = "\
7f0000000000-7f0000002000 r--s 00000000 fe:00 123 /data/store/sst/trade-000000000001.arrow (deleted)
7f0000010000-7f0000012000 r--s 00000000 fe:00 123 /data/store/sst/trade-000000000001.arrow (deleted)
7f0000020000-7f0000021000 r--s 00002000 fe:00 123 /data/store/sst/trade-000000000001.arrow (deleted)
7f0000030000-7f0000031000 r--s 00000000 fe:00 124 /data/store/sst/trade-000000000002.arrow
7f0000040000-7f0000041000 r--s 00000000 fe:00 125 /elsewhere/trade-000000000003.arrow (deleted)
7f0000050000-7f0000051000 rw-p 00000000 00:00 0
";
        let of = counted(maps, &["/data/store/sst".into()]);
        assert_eq!((of.files, of.bytes, of.deleted_bytes), (2, 0x4000, 0x3000));
        assert_eq!(counted("garbage - / (deleted)\n", &["/".into()]).bytes, 0);
        assert_eq!(counted(maps, &["/data/store/ss".into()]).files, 0, "a directory whose name begins so");
    }
}
