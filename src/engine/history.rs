//! Owns: the set of SSTables, for their one writer: listing them, replacing some by others, and removing those whose
//! retention has ended.
//!
//! What must hold: files and their names are durable before the edit that names them, and the edit before anything that it
//! replaces is removed. After an edit with an unknown outcome, no file that it names is removed before another edit has been
//! made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compaction::merge::{self, Job, Merged, Pace};
use crate::compaction::retention::{Cutoff, Rules};
use crate::compaction::{self, Merge, Options, Why};
use crate::pinned::{Removals, Removed};
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::manifest::{Edit, Manifest};
use tapestore::record::Kind;
use tapestore::sabotage::{self, Sabotage};
use tapestore::sstable::{self, FileMeta, Table};
use tapestore::time::Ts;
use tapestore::wal;

/// The SSTables of a store.
pub struct History {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    pub(super) manifest: Manifest,
    /// Files of an edit with an unknown outcome; removed after the next edit.
    doubtful: Vec<PathBuf>,
    /// Of the files that were looked at for rows that have expired: from when on a row of it is older than what is kept, that is not
    /// already counted. No earlier is it worth another look.
    looked: BTreeMap<u64, Ts>,
    /// Whether the last look left files for the next one.
    has_unseen: bool,
    /// Where removed files are reported that readers may map.
    removals: Option<Removals>,
}

/// Files that are looked at for rows that have expired, in one call.
const LOOKS: usize = 64;

impl History {
    /// The SSTables of the store `store_id` in `dir`, with the manifest that is on the disk.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, store_id: u128, manifest: Manifest) -> History {
        History {
            disk,
            dir,
            store_id,
            manifest,
            doubtful: Vec::new(),
            looked: BTreeMap::new(),
            has_unseen: false,
            removals: None,
        }
    }

    /// Reports removed files to `removals` from now on.
    pub(super) fn report_to(&mut self, removals: Removals) {
        self.removals = Some(removals);
    }

    /// Their directory.
    pub(super) fn files_dir(&self) -> PathBuf {
        self.dir.join(sstable::DIR)
    }

    /// Skips the numbers of files in the directory, so that none is given again.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub(super) fn skip_known_ids(&mut self) -> Result<()> {
        for id in self.disk.list(&self.files_dir())?.iter().filter_map(|n| sstable::file_id(n)) {
            self.manifest.skip_ids(id + 1);
        }
        Ok(())
    }

    /// Removes files that no edit names, which an interrupted flush or merge has left.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be removed.
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
    /// [`Error::Io`]: it is then unknown whether the edit was made. Its added files stay until another edit is made.
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

    /// If the outcome of the last edit is unknown, makes an edit that changes nothing, which decides it.
    ///
    /// # Errors
    /// [`Error::Io`]: the outcome is still unknown.
    pub(super) fn resolve(&mut self) -> Result<()> {
        if self.doubtful.is_empty() { Ok(()) } else { self.edit(Edit::default()) }
    }

    /// The path of `file`, and the one that it had before it was finished.
    pub(super) fn names_of(&self, file: &FileMeta) -> [PathBuf; 2] {
        let path = self.files_dir().join(sstable::file_name(file.kind, file.id));
        [path.with_extension("tmp"), path]
    }

    /// Removes those of `paths` that exist.
    pub(super) fn remove(&self, paths: Vec<PathBuf>) {
        for path in paths {
            let gone = self.disk.exists(&path).and_then(|there| if there { self.disk.unlink(&path) } else { Ok(None) });
            match (gone, &self.removals) {
                (Ok(Some(file)), Some(removals)) => {
                    removals.report(Removed { file, edit: self.manifest.state().seq });
                }
                (Ok(_), _) => {}
                (Err(error), _) => tracing::warn!(
                    name: "sstable.not_removed", %error,
                    "cannot remove an unused SSTable; it stays until the next start"
                ),
            }
        }
    }

    /// The most urgent merge among those for whose bytes there is room; files in `skip` are left out. `now` decides which
    /// days are over; see [`compaction::plan`].
    pub(super) fn next_job(
        &mut self,
        options: &Options,
        rules: &Rules,
        now: Ts,
        (skip, looks): (&BTreeSet<u64>, bool),
        fits: &dyn Fn(u64) -> bool,
    ) -> Next {
        let mut plan = compaction::plan(self.manifest.state(), options, now, skip);
        if plan.is_empty() && looks {
            plan.extend(self.expired(rules, skip));
        }
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

    /// The next file of which a tenth of the rows or more is of instruments for all of whose rows in it retention has ended: it is
    /// written again without them.
    fn expired(&mut self, rules: &Rules, skip: &BTreeSet<u64>) -> Option<Merge> {
        if !rules.has_instruments() {
            return None;
        }
        let (dir, state) = (self.files_dir(), self.manifest.state());
        self.looked.retain(|id, _| state.files.contains_key(id));
        let mut cuts: BTreeMap<Kind, Cutoff> = BTreeMap::new();
        let mut looks = 0;
        self.has_unseen = false;
        for (id, file) in &state.files {
            let cut = cuts.entry(file.kind).or_insert_with(|| rules.cut(file.kind, state, &state.names));
            let Some(before) = cut.before.values().max() else { continue };
            let is_worth = file.time.0 < *before && self.looked.get(id).is_none_or(|next| next < before);
            if !is_worth || skip.contains(id) {
                continue;
            }
            looks += 1;
            if looks > LOOKS {
                self.has_unseen = true;
                break;
            }
            match look(self.disk.as_ref(), &dir, file, cut) {
                Ok((rows, _)) if rows > 0 && rows * compaction::WORTH >= file.rows => {
                    let (kind, window) = (file.kind, file.window);
                    return Some(Merge { kind, window, inputs: vec![*file], why: Why::Expired });
                }
                Ok((_, next)) => {
                    self.looked.insert(*id, next);
                }
                Err(error) => {
                    tracing::debug!(name: "retention.look_failed", %error, "cannot look for expired rows in an SSTable")
                }
            }
        }
        None
    }

    /// Whether the last look for rows that have expired left files for the next one.
    pub(super) fn has_unseen(&self) -> bool {
        self.has_unseen
    }

    /// Forgets which files were looked at for rows that have expired: the rules are others now.
    pub(super) fn forget_looks(&mut self) {
        self.looked.clear();
    }

    /// Replaces the inputs of a merge by its outputs.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether they were replaced, and all files stay.
    pub(super) fn replace(&mut self, merged: &Merged) -> Result<()> {
        let rows = |files: &[FileMeta]| files.iter().map(|f| f.rows).sum::<u64>();
        let live = &self.manifest.state().files;
        assert!(
            rows(&merged.added) + merged.expired == rows(&merged.removed)
                && merged.removed.iter().all(|f| live.get(&f.id) == Some(f)),
            "a merge replaces live SSTables, and each of their rows is in the run or counted as expired"
        );
        self.edit(Edit {
            added: merged.added.clone(),
            removed: merged.removed.iter().map(|f| f.id).collect(),
            expired: merged.expired,
            ..Edit::default()
        })?;
        self.remove(merged.removed.iter().flat_map(|f| self.names_of(f)).collect());
        Ok(())
    }

    /// Removes the files whose retention has ended; returns them.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether the edit was made, and all files stay.
    pub(super) fn expire(&mut self, rules: &Rules) -> Result<Vec<FileMeta>> {
        let dropped: Vec<FileMeta> = rules.drops(self.manifest.state()).into_iter().map(|d| d.file).collect();
        if !dropped.is_empty() {
            let expired = dropped.iter().map(|f| f.rows).sum();
            self.edit(Edit { removed: dropped.iter().map(|f| f.id).collect(), expired, ..Edit::default() })?;
            self.remove(dropped.iter().flat_map(|f| self.names_of(f)).collect());
        }
        Ok(dropped)
    }

    /// Runs one merge on the calling thread, if one is due; returns its result.
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
        let Next::Job(job) = self.next_job(options, rules, now, (&BTreeSet::new(), true), &|_| true) else { return Ok(None) };
        let Some(merged) = merge::run(self.disk.as_ref(), &self.files_dir(), &job, pace)? else { return Ok(None) };
        self.replace(&merged)?;
        Ok(Some(merged))
    }
}

/// Rows of `file` that are of series all of whose rows are older than what `cut` keeps, and the newest time of that one of the others
/// that will be so next.
fn look(disk: &dyn Disk, dir: &Path, file: &FileMeta, cut: &Cutoff) -> Result<(u64, Ts)> {
    let table = Table::open(disk, dir, *file)?;
    let (mut rows, mut next) = (0, Ts(u64::MAX));
    for series in table.series()? {
        match cut.before.get(&series.instrument) {
            Some(before) if series.time.max < before.0 => rows += u64::from(series.rows),
            Some(_) => next = next.min(Ts(series.time.max)),
            None => {}
        }
    }
    table.check()?;
    Ok((rows, next))
}

/// The next merge.
pub(super) enum Next {
    /// This one.
    Job(Box<Job>),
    /// One is due, but the disk has no room for it.
    NoRoom,
    /// None is due.
    Nothing,
}

/// The SSTables of a store that is not served, for maintenance.
pub struct Offline {
    history: History,
    _lock: Box<dyn Send + Sync>,
}

impl Offline {
    /// Opens the SSTables of the store in `dir`.
    ///
    /// # Errors
    /// [`Error::Backup`] if it is a backup; [`Error::Locked`] if the store is served; [`Error::Missing`] if there is no
    /// store; as [`Manifest::open`].
    pub fn open(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Offline> {
        crate::snapshot::backup::refuse(disk.as_ref(), dir)?;
        let missing = || Error::Missing { path: dir.join(wal::meta::NAME), what: "it makes a directory a store" };
        if !disk.exists(&dir.join(wal::meta::NAME))? {
            return Err(missing());
        }
        let lock = disk.lock(&dir.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
        let meta = wal::meta::read(disk.as_ref(), dir)?.ok_or_else(missing)?;
        create_dir(disk.as_ref(), dir)?;
        let manifest = Manifest::open(disk.clone(), dir, meta.store_id)?;
        let mut history = History::new(disk.clone(), dir.to_path_buf(), meta.store_id, manifest);
        history.skip_known_ids()?;
        Ok(Offline { history, _lock: lock })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.history.manifest
    }

    /// Runs one merge, if one is due; returns its result.
    ///
    /// # Errors
    /// The error of a file, with its name; nothing is merged then, and nothing has changed.
    pub fn compact_one(&mut self, options: &Options, rules: &Rules, now: Ts, pace: &mut dyn Pace) -> Result<Option<Merged>> {
        self.history.compact_one(options, rules, now, pace)
    }

    /// Removes the files whose retention has ended; returns them.
    ///
    /// # Errors
    /// [`Error::Io`]: it is then unknown whether the edit was made, and all files stay.
    pub fn expire(&mut self, rules: &Rules) -> Result<Vec<FileMeta>> {
        self.history.expire(rules)
    }
}

/// Creates the directory of SSTables if there is none.
///
/// # Errors
/// [`tapestore::error::Error::Io`] if it cannot be created.
pub(super) fn create_dir(disk: &dyn Disk, dir: &std::path::Path) -> Result<()> {
    let files = dir.join(sstable::DIR);
    if !disk.exists(&files)? {
        disk.create_dir(&files)?;
        disk.sync_dir(dir)?;
    }
    Ok(())
}
