//! Owns: which processes keep files alive that are gone: a reader that holds a snapshot keeps the bytes of what has
//! been merged, let go or flushed since.
//!
//! What must hold: the system itself is asked, so a reader that has died holds nothing; a file is counted once a
//! process, however often it is mapped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that a process keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The process.
    pub pid: u32,
    /// Bytes of address space, which are at most the bytes that the files take.
    pub bytes: u64,
}

/// What processes keep of files that were below one of `dirs` and are gone. Processes of other users are not seen.
pub fn of(dirs: &[&Path]) -> Vec<Pin> {
    let dirs: Vec<PathBuf> = dirs.iter().map(|d| std::fs::canonicalize(d).unwrap_or_else(|_| d.to_path_buf())).collect();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let pinned = pids.filter_map(|pid| {
        // It may have ended meanwhile, or be somebody else's.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        let bytes = deleted(&maps, &dirs);
        (bytes > 0).then_some(Pin { pid, bytes })
    });
    let mut pins: Vec<Pin> = pinned.collect();
    pins.sort_unstable_by_key(|p| (std::cmp::Reverse(p.bytes), p.pid));
    pins
}

/// Bytes that `maps`, as the system prints them, have of deleted files below `dirs`.
fn deleted(maps: &str, dirs: &[PathBuf]) -> u64 {
    // A file may be mapped in parts; each part is known by where in the file it begins.
    let mut parts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in maps.lines() {
        let Some(path) = line.find('/').and_then(|at| line.get(at..)?.strip_suffix(" (deleted)")) else { continue };
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
    parts.values().sum()
}

/// What is to be said of a history of so many files: each process that reads maps each of them, and the system allows it
/// only so many maps. `None` if they are few.
pub fn maps_warning(files: u64) -> Option<String> {
    let limit = tapestore::error::maps_max()?;
    // Snapshots that are held keep files of before, too.
    (files > limit / 2).then(|| {
        format!(
            "history has {files} files, and a process that reads maps each of them: the system allows a process {limit} maps. \
             Raise it (sysctl -w vm.max_map_count={}), or merge files (tape compact)",
            limit.saturating_mul(4).max(files.saturating_mul(4))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_of_half_as_many_files_as_a_process_can_map_is_said_before_it_is_too_many() {
        let limit = tapestore::error::maps_max().unwrap();
        assert_eq!(maps_warning(limit / 2), None);
        let said = maps_warning(limit / 2 + 1).unwrap();
        assert!(said.contains("vm.max_map_count") && said.contains(&limit.to_string()), "{said}");
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
        assert_eq!(deleted(maps, &["/data/store/sst".into()]), 0x3000);
        assert_eq!(deleted("garbage - / (deleted)\n", &["/".into()]), 0);
    }
}
