//! Owns: the files of history, for their one writer: which there are, replacing some by others, and letting
//! go of those that have lived long enough.
//!
//! What must hold: files and their names are durable before the edit that names them, and the edit before
//! anything that it replaces is removed; after an edit of which it is not known whether it was made, no file
//! that it names is removed before another has been made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compaction::merge::{self, Job, Merged, Pace};
use crate::compaction::retention::Rules;
use crate::compaction::{self, Options};
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::manifest::{Edit, Manifest};
use tapestore::sabotage::{self, Sabotage};
use tapestore::sstable::{self, FileMeta};
use tapestore::time::Ts;
use tapestore::wal;

/// The files of a store.
pub struct History {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    pub(super) manifest: Manifest,
    /// Files of an edit of which it is not known whether it was made; removed after the next one.
    doubtful: Vec<PathBuf>,
}

impl History {
    /// The files of the store `store_id` in `dir`; the manifest is what the disk says.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, store_id: u128, manifest: Manifest) -> History {
        History { disk, dir, store_id, manifest, doubtful: Vec::new() }
    }

    /// Where they lie.
    pub(super) fn files_dir(&self) -> PathBuf {
        self.dir.join(sstable::DIR)
    }

    /// Takes note of the numbers of files that lie about, so that none is given again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn skip_known_ids(&mut self) -> Result<()> {
        for id in self.disk.list(&self.files_dir())?.iter().filter_map(|n| sstable::file_id(n)) {
            self.manifest.skip_ids(id + 1);
        }
        Ok(())
    }

    /// Removes files that no edit names: a filing or a merge was cut short.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn sweep(&mut self) -> Result<usize> {
        let mut removed = 0;
        let dir = self.files_dir();
        for name in self.disk.list(&dir)? {
            let Some(id) = sstable::file_id(&name) else { continue };
            let live = self.manifest.state().files.get(&id);
            if live.is_none_or(|f| sstable::file_name(f.kind, id) != name) {
                self.disk.remove(&dir.join(name))?;
                removed += 1;
            }
        }
        if removed > 0 {
            self.disk.sync_dir(&dir)?;
        }
        Ok(removed)
    }

    /// Makes `edit`, whose added files are durable.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether it was made. What it adds stays until another one is.
    pub(super) fn edit(&mut self, edit: Edit) -> Result<()> {
        let added: Vec<PathBuf> = edit.added.iter().flat_map(|f| self.names_of(f)).collect();
        if let Err(error) = self.manifest.edit(edit) {
            self.doubtful.extend(added);
            return Err(error);
        }
        let doubtful = std::mem::take(&mut self.doubtful);
        self.remove(doubtful);
        Ok(())
    }

    /// Makes an edit that changes nothing if it is not known of the last one whether it was made; then it is.
    ///
    /// # Errors
    /// [`Error::Io`]: it is still not known.
    pub(super) fn resolve(&mut self) -> Result<()> {
        if self.doubtful.is_empty() { Ok(()) } else { self.edit(Edit::default()) }
    }

    /// The names that `file` has had or has.
    pub(super) fn names_of(&self, file: &FileMeta) -> [PathBuf; 2] {
        let path = self.files_dir().join(sstable::file_name(file.kind, file.id));
        [path.with_extension("tmp"), path]
    }

    /// Removes what is there of `paths`.
    pub(super) fn remove(&self, paths: Vec<PathBuf>) {
        for path in paths {
            let gone = self.disk.exists(&path).and_then(|there| if there { self.disk.remove(&path) } else { Ok(()) });
            if let Err(error) = gone {
                tracing::warn!(%error, "a file that is not in use stays until the next start");
            }
        }
    }

    /// The merge that is most urgent of those for whose bytes there is room; files in `skip` are left alone. `now`
    /// decides which days are over; see [`compaction::plan`].
    pub(super) fn next_job(
        &mut self,
        options: &Options,
        rules: &Rules,
        now: Ts,
        skip: &BTreeSet<u64>,
        fits: &dyn Fn(u64) -> bool,
    ) -> Next {
        let plan = compaction::plan(self.manifest.state(), options, now, skip);
        let is_empty = plan.is_empty();
        let Some(merge) = plan.into_iter().find(|m| fits(m.bytes())) else {
            return if is_empty { Next::Nothing } else { Next::NoRoom };
        };
        let ids = Job::ids(&merge, options.rows_max);
        let first_id = self.manifest.take_ids(ids);
        let state = self.manifest.state();
        let cut = rules.cut(merge.kind, state, &state.names);
        if sabotage::is(Sabotage::OverwriteLive)
            && let Some(first_id) = merge.inputs.first().map(|f| f.id)
        {
            let path = self.files_dir().join(sstable::file_name(merge.kind, first_id));
            self.remove(vec![path.with_extension("tmp")]);
            return Next::Job(Box::new(Job { store_id: self.store_id, merge, first_id, rows_max: u64::MAX, cut }));
        }
        if sabotage::is(Sabotage::UnlinkEarly) {
            self.remove(merge.inputs.iter().skip(1).flat_map(|f| self.names_of(f)).collect());
        }
        Next::Job(Box::new(Job { store_id: self.store_id, merge, first_id, rows_max: options.rows_max, cut }))
    }

    /// Puts what a merge has made in the place of its files.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether they were replaced, and all of them stay.
    pub(super) fn replace(&mut self, merged: &Merged) -> Result<()> {
        self.edit(Edit {
            added: merged.added.clone(),
            removed: merged.removed.iter().map(|f| f.id).collect(),
            expired: merged.expired,
            ..Edit::default()
        })?;
        self.remove(merged.removed.iter().flat_map(|f| self.names_of(f)).collect());
        Ok(())
    }

    /// Lets go of the files that have lived long enough; gives them.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether they are gone, and all of them stay.
    pub(super) fn expire(&mut self, rules: &Rules) -> Result<Vec<FileMeta>> {
        let dropped: Vec<FileMeta> = rules.drops(self.manifest.state()).into_iter().map(|d| d.file).collect();
        if !dropped.is_empty() {
            let expired = dropped.iter().map(|f| f.rows).sum();
            self.edit(Edit { removed: dropped.iter().map(|f| f.id).collect(), expired, ..Edit::default() })?;
            self.remove(dropped.iter().flat_map(|f| self.names_of(f)).collect());
        }
        Ok(dropped)
    }

    /// Merges once, if that is due, on the calling thread; gives what it came to.
    ///
    /// # Errors
    /// As [`merge::run`] and [`History::replace`].
    pub(super) fn compact_one(
        &mut self,
        options: &Options,
        rules: &Rules,
        now: Ts,
        pace: &mut dyn Pace,
    ) -> Result<Option<Merged>> {
        let Next::Job(job) = self.next_job(options, rules, now, &BTreeSet::new(), &|_| true) else { return Ok(None) };
        let Some(merged) = merge::run(self.disk.as_ref(), &self.files_dir(), &job, pace)? else { return Ok(None) };
        self.replace(&merged)?;
        Ok(Some(merged))
    }
}

/// What is to be merged next.
pub(super) enum Next {
    /// This.
    Job(Box<Job>),
    /// Something, but there is no room on the disk for it.
    NoRoom,
    /// Nothing.
    Nothing,
}

/// The history of a store that no storage process serves, to be worked on.
pub struct Offline {
    history: History,
    _lock: Box<dyn Send + Sync>,
}

impl Offline {
    /// Opens the history of the store in `dir`.
    ///
    /// # Errors
    /// [`Error::Locked`] if a storage process serves it; [`Error::Missing`] if there is no store; as
    /// [`Manifest::open`].
    pub fn open(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Offline> {
        crate::snapshot::backup::refuse(disk.as_ref(), dir)?;
        let missing = || Error::Missing { path: dir.join(wal::meta::NAME), what: "it says that a directory is a store" };
        if !disk.exists(&dir.join(wal::meta::NAME))? {
            return Err(missing());
        }
        let lock = disk.lock(&dir.join("LOCK"))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
        let meta = wal::meta::read(disk.as_ref(), dir)?.ok_or_else(missing)?;
        create_dir(disk.as_ref(), dir)?;
        let manifest = Manifest::open(disk.clone(), dir, meta.store_id)?;
        let mut history = History::new(disk.clone(), dir.to_path_buf(), meta.store_id, manifest);
        history.skip_known_ids()?;
        Ok(Offline { history, _lock: lock })
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.history.manifest
    }

    /// Merges once, if that is due; gives what it came to.
    ///
    /// # Errors
    /// Of a file, named; it is not merged then, and everything is as it was.
    pub fn compact_one(&mut self, options: &Options, rules: &Rules, now: Ts, pace: &mut dyn Pace) -> Result<Option<Merged>> {
        self.history.compact_one(options, rules, now, pace)
    }

    /// Lets go of the files that have lived long enough; gives them.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether they are gone, and all of them stay.
    pub fn expire(&mut self, rules: &Rules) -> Result<Vec<FileMeta>> {
        self.history.expire(rules)
    }
}

/// Makes the directory of history if there is none.
///
/// # Errors
/// [`tapestore::error::Error::Io`].
pub(super) fn create_dir(disk: &dyn Disk, dir: &std::path::Path) -> Result<()> {
    let files = dir.join(sstable::DIR);
    if !disk.exists(&files)? {
        disk.create_dir(&files)?;
        disk.sync_dir(dir)?;
    }
    Ok(())
}
