//! Owns: the processes that use the store now, and the release of the program that each of them runs.
//!
//! What must hold: no program is run to learn its release; processes of other users are left out where this one may not look.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use memchr::memmem::Finder;
use tapestore::shm::release;

use super::finding::Finding;
use super::host::Host;

/// Bytes of a program read at once, and at most.
const PIECE: usize = 1 << 20;
const PROGRAM_MAX: u64 = 4 << 30;
/// What the system adds to the name of a file that has been removed.
const DELETED: &str = " (deleted)";

/// A process that uses the store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    pid: u32,
    /// The name of its program.
    name: String,
    /// Whether the program's file has been removed or replaced since it was started.
    is_replaced: bool,
    /// Its release; `None` if the program has no mark or may not be read.
    release: Option<String>,
}

impl Program {
    fn text(&self) -> String {
        let release = self.release.as_deref().unwrap_or("of unknown release");
        format!("{} {release} (process {})", self.name, self.pid)
    }
}

/// The first mark of a release in the file `path`.
fn release_in(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?.take(PROGRAM_MAX);
    let finder = Finder::new(release::begins_with());
    let (mut bytes, mut kept) = (vec![0u8; PIECE], 0);
    loop {
        let read = file.read(bytes.get_mut(kept..)?).ok()?;
        if read == 0 {
            return None;
        }
        let filled = bytes.get(..kept + read)?;
        let found = finder.find_iter(filled).find_map(|at| release::version_at(filled.get(at..)?));
        if let Some(version) = found {
            return Some(version.to_owned());
        }
        // A mark that two pieces share is found in the second one.
        let from = filled.len().saturating_sub(release::MARK_MAX);
        kept = filled.len() - from;
        bytes.copy_within(from..from + kept, 0);
    }
}

/// Whether the process in `dir` maps or has open something below one of `places`, which end with `/`.
fn uses(dir: &Path, places: &[String]) -> bool {
    let is_below = |path: &str| places.iter().any(|place| path.starts_with(place.as_str()));
    let maps = std::fs::read_to_string(dir.join("maps")).unwrap_or_default();
    if maps.lines().any(|line| line.find('/').and_then(|at| line.get(at..)).is_some_and(is_below)) {
        return true;
    }
    let open = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|path| path.to_str().is_some_and(is_below))
}

/// Whether the process in `dir`, which may have no file of the store open, was started for `store`.
fn is_started_for(dir: &Path, store: &Path) -> bool {
    let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
    let words: Vec<&str> = line.split(|b| *b == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let is_ours =
        words.first().is_some_and(|program| ["tape-replication", "tape-query"].iter().any(|name| program.ends_with(name)));
    let named = words.windows(2).find_map(|pair| match pair {
        ["--store", store] => Some(*store),
        _ => None,
    });
    let named = named.or_else(|| words.iter().find_map(|word| word.strip_prefix("--store=")));
    let cwd = std::fs::read_link(dir.join("cwd")).unwrap_or_default();
    is_ours && named.is_some_and(|named| cwd.join(named).canonicalize().is_ok_and(|named| named == store))
}

/// The processes that use the store.
fn programs(host: &Host) -> Vec<Program> {
    let Ok(store) = host.store.canonicalize() else { return Vec::new() };
    let run_dir = host.run_dir.as_ref().ok().map(|run_dir| run_dir.path().to_path_buf());
    let places: Vec<String> =
        [Some(store.clone()), run_dir].into_iter().flatten().map(|dir| format!("{}/", dir.display())).collect();
    let own = std::process::id();
    let mut releases: HashMap<(u64, u64), Option<String>> = HashMap::new();
    let mut found = Vec::new();
    for pid in host.system.names("/proc").iter().filter_map(|name| name.parse::<u32>().ok()).filter(|pid| *pid != own) {
        let dir = host.system.path(&format!("/proc/{pid}"));
        if !uses(&dir, &places) && !is_started_for(&dir, &store) {
            continue;
        }
        let Ok(program) = std::fs::read_link(dir.join("exe")) else { continue };
        let text = program.display().to_string();
        let is_replaced = text.ends_with(DELETED);
        let path = PathBuf::from(text.trim_end_matches(DELETED));
        let name = path.file_name().map_or_else(|| text.clone(), |name| name.to_string_lossy().into_owned());
        let exe = dir.join("exe");
        let release = match exe.metadata() {
            Ok(of) => releases.entry((of.dev(), of.ino())).or_insert_with(|| release_in(&exe)).clone(),
            Err(_) => None,
        };
        found.push(Program { pid, name, is_replaced, release });
    }
    found
}

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    const NAME: &str = "releases";
    let programs = programs(host);
    let mut findings = Vec::new();
    let texts = |which: &[&Program]| which.iter().map(|one| one.text()).collect::<Vec<_>>().join(", ");
    let replaced: Vec<&Program> = programs.iter().filter(|one| one.is_replaced).collect();
    if !replaced.is_empty() {
        let needed = "the program that is installed now: the file of each was removed or replaced, and it runs the earlier one until \
                      it is started again";
        let pids = replaced.iter().map(|one| one.pid.to_string()).collect::<Vec<_>>().join(" ");
        let command = format!("start them again: kill {pids}, or systemctl restart tape-storage tape-replication");
        findings.push(Finding::warning("programs", texts(&replaced), needed, command));
    }
    let others: Vec<&Program> =
        programs.iter().filter(|one| one.release.as_deref().is_some_and(|it| it != release::VERSION)).collect();
    let release_of = |name: &str| programs.iter().find(|one| one.name == name)?.release.as_deref();
    let (storage, replication) = (release_of("tape-storage"), release_of("tape-replication"));
    let command = "install all programs of one release, then start them again (page operations, Upgrade)";
    if let (Some(storage), Some(replication)) = (storage, replication)
        && storage != replication
    {
        let found = format!("tape-storage is {storage}, tape-replication is {replication}");
        let needed = "one release of both on a host: they may not understand each other";
        findings.push(Finding::problem(NAME, found, needed, command));
    } else if !others.is_empty() {
        let needed =
            format!("{}, the release of this tape: other releases may have other formats and messages", release::VERSION);
        findings.push(Finding::warning(NAME, texts(&others), needed, command));
    }
    if findings.is_empty() {
        let all: Vec<&Program> = programs.iter().collect();
        let found = if all.is_empty() { "no process uses the store".to_owned() } else { texts(&all) };
        findings.push(Finding::ok(NAME, found));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_found_where_two_pieces_of_a_program_meet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        for before in [0, PIECE - 10, PIECE, 2 * PIECE - 1, 3 * PIECE - 30] {
            let mut bytes = vec![b'.'; before];
            // What a program looks for stands in it too.
            bytes.extend(release::begins_with());
            bytes.extend(b"\0\0tapestore release <9.8.7>");
            bytes.extend(vec![0; 100]);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(release_in(&path).as_deref(), Some("9.8.7"), "{before}");
        }
        std::fs::write(&path, vec![0; 3 * PIECE]).unwrap();
        assert_eq!(release_in(&path), None);
    }
}
