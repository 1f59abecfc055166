//! Owns: names of the simulated file system: the current ones, their changes, and the changes that survive a loss of
//! power.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::rng::SimRng;

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Add(PathBuf, usize),
    AddDir(PathBuf),
    Remove(PathBuf, usize),
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: usize,
    },
    /// Exchanges two directories with their contents.
    Swap(PathBuf, PathBuf),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) files: BTreeMap<PathBuf, usize>,
    pub(super) dirs: BTreeSet<PathBuf>,
}

impl NameChange {
    /// Applies the change.
    pub(super) fn apply(self, names: &mut Names) {
        let files = &mut names.files;
        match self {
            NameChange::Add(path, inode) => {
                files.insert(path, inode);
            }
            NameChange::AddDir(path) => {
                names.dirs.insert(path);
            }
            NameChange::Remove(path, inode) => {
                if files.get(&path) == Some(&inode) {
                    files.remove(&path);
                }
            }
            NameChange::Rename { from, to, inode } => {
                if files.get(&from) == Some(&inode) {
                    files.remove(&from);
                }
                files.insert(to, inode);
            }
            NameChange::Swap(a, b) => {
                let moved = |path: PathBuf| match (path.strip_prefix(&a), path.strip_prefix(&b)) {
                    (Ok(rest), _) => b.join(rest),
                    (_, Ok(rest)) => a.join(rest),
                    _ => path,
                };
                let Names { files, dirs } = std::mem::take(names);
                names.files = files.into_iter().map(|(path, inode)| (moved(path), inode)).collect();
                names.dirs = dirs.into_iter().map(moved).collect();
            }
        }
    }

    /// The file that it changes; `usize::MAX` for directories.
    fn inode(&self) -> usize {
        match self {
            NameChange::Add(_, inode) | NameChange::Remove(_, inode) | NameChange::Rename { inode, .. } => *inode,
            // An exchange comes after the creation of its directories.
            NameChange::AddDir(_) | NameChange::Swap(..) => usize::MAX,
        }
    }
}

/// Applies the unsynced `changes` of a directory that survive.
pub(super) fn survive(changes: &[NameChange], names: &mut Names, rng: &mut SimRng) {
    let by_file = rng.below(2) == 0;
    let kept = rng.below(changes.len() as u64 + 1) as usize;
    let mut gone: BTreeSet<usize> = BTreeSet::new();
    for (i, change) in changes.iter().enumerate() {
        // A journal keeps the order of all changes; without one only changes of the same file are ordered.
        let survives = if by_file { !gone.contains(&change.inode()) && rng.below(2) == 0 } else { i < kept };
        if survives {
            change.clone().apply(names);
        } else {
            gone.insert(change.inode());
        }
    }
}
