//! Owns: replacing damaged or missing SSTables of a stopped store by ones that are rebuilt from the records of another host.
//!
//! Each host flushes and compacts by itself, so SSTables differ between hosts. Committed records do not. The rows of a lost file
//! are those of its kind, LSNs and times that are in no other live file. If its LSN index can still be read, they are exactly
//! the rows that it names. Files of one run that are lost together share one range, and are rebuilt together.
//!
//! ```text
//! STORE/rebuild/rows          records of another host
//! STORE/rebuild/<name>.arrow  a rebuilt file
//! ```
//!
//! What must hold: a rebuilt file has the rows, LSNs and times that the manifest names, and every byte of it has been read back
//! before anything is replaced. If it is identical to the lost one, by the CRC in the manifest, it takes its name. If another
//! release wrote the lost one in another form, the new one gets a number of its own, and one edit of the manifest replaces the
//! lost file by it. Where the form is the same, other bytes are other records, which are refused. A damaged file is kept in
//! `STORE/lost` before. Killed at any point, the store is refused as before, and the same command continues; or the work is
//! done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Findings;
use super::rows::{PeerRow, Rows, Wanted};
use crate::snapshot::{Progress, aside, backup, meta_of, state_of, verify_file};
use tapestore::disk::{Disk, copy};
use tapestore::error::{Error, Result};
use tapestore::lsn::Lsn;
use tapestore::manifest::{Edit, Manifest};
use tapestore::record::{Schema, schema};
use tapestore::sstable::format::{STORES_RESERVED, Section, Trailer};
use tapestore::sstable::{self, FileMeta, Spec, Table, Writer, file_id, file_name};
use tapestore::time::Ts;

/// Directory of the work, in the store directory.
const DIR: &str = "rebuild";

/// A damaged or missing SSTable.
#[derive(Debug)]
pub struct Lost {
    /// Its entry in the manifest.
    pub file: FileMeta,
    /// The damage.
    pub error: Error,
    /// Its LSN index, if that can be read.
    index: Option<Arc<Table>>,
    /// Its trailer, if that can be read.
    trailer: Option<Trailer>,
}

/// Lost SSTables that are rebuilt together: most often one.
#[derive(Debug)]
pub struct Group {
    /// The files, by number.
    pub lost: Vec<Lost>,
    /// What another host is asked for.
    pub wanted: Wanted,
}

impl Group {
    /// Rows of the files.
    pub fn rows(&self) -> u64 {
        self.lost.iter().fold(0, |sum, lost| sum.saturating_add(lost.file.rows))
    }

    /// A group of `lost` alone.
    fn of(lost: Lost) -> Group {
        let FileMeta { kind, lsn, time, window, .. } = lost.file;
        // The writer takes no row outside the window.
        let time = (time.0.max(window.from), time.1.min(window.last()));
        Group { lost: vec![lost], wanted: Wanted { kind, lsn, time } }
    }

    /// Whether `lost` cannot be rebuilt without this group: a file of the same run, and neither has an LSN index.
    fn belongs(&self, lost: &Lost) -> bool {
        let is_near = |of: &Lost| of.file.kind == lost.file.kind && of.file.window == lost.file.window && of.index.is_none();
        lost.index.is_none() && self.lost.iter().all(is_near) && meets(self.wanted.lsn, lost.file.lsn)
    }

    fn add(&mut self, other: Group) {
        let (lsn, time) = (&mut self.wanted.lsn, &mut self.wanted.time);
        *lsn = (lsn.0.min(other.wanted.lsn.0), lsn.1.max(other.wanted.lsn.1));
        *time = (time.0.min(other.wanted.time.0), time.1.max(other.wanted.time.1));
        self.lost.extend(other.lost);
        self.lost.sort_by_key(|lost| lost.file.id);
    }
}

/// Whether two ranges have a value in common.
fn meets<T: PartialOrd>(a: (T, T), b: (T, T)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// A rebuilt SSTable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Path of the lost file.
    pub lost: PathBuf,
    /// Path of the file that replaces it: the same if it is identical.
    pub path: PathBuf,
}

/// A stopped store of which SSTables are rebuilt. It is locked.
pub struct Rebuild {
    disk: Arc<dyn Disk>,
    store: PathBuf,
    store_id: u128,
    /// The live files that are sound.
    sound: BTreeMap<u64, FileMeta>,
    /// The LSN indexes of lost files.
    indexes: Vec<Arc<Table>>,
    _locks: [Box<dyn Send + Sync>; 2],
}

/// Fetches the records that are wanted from another host, and passes each to the given function.
pub type Source<'s, E> = dyn FnMut(&Wanted, &mut dyn FnMut(PeerRow<'_>) -> Result<()>) -> std::result::Result<(), E> + 's;

impl Rebuild {
    /// Locks and examines `store`; returns the lost SSTables too, and what else was found.
    ///
    /// # Errors
    /// [`Error::Backup`] if it is a backup; [`Error::Locked`] if it is served; as [`super::examine`].
    pub fn open(
        disk: &Arc<dyn Disk>,
        store: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Rebuild, Vec<Group>, Findings)> {
        backup::refuse(disk.as_ref(), store)?;
        let locked = |name: &str| {
            let lock = disk.lock(&store.join(name))?;
            lock.ok_or_else(|| Error::Locked { path: store.to_path_buf() })
        };
        let locks = [locked(tapestore::disk::LOCK)?, locked(backup::LOCK)?];
        clear(disk.as_ref(), &store.join(DIR))?;
        let mut found = super::examine(disk.as_ref(), store, progress)?;
        let store_id = meta_of(disk.as_ref(), store)?.store_id;
        let mut sound = state_of(disk.as_ref(), store, store_id)?.files;
        let (mut groups, mut indexes): (Vec<Group>, Vec<Arc<Table>>) = (Vec::new(), Vec::new());
        for (file, error) in std::mem::take(&mut found.damaged) {
            sound.remove(&file.id);
            let lost = look(disk.as_ref(), &store.join(sstable::DIR), file, error);
            indexes.extend(lost.index.clone());
            let (same, mut others): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(|group| group.belongs(&lost));
            let mut group = Group::of(lost);
            same.into_iter().for_each(|other| group.add(other));
            others.push(group);
            groups = others;
        }
        let this = Rebuild { disk: disk.clone(), store: store.to_path_buf(), store_id, sound, indexes, _locks: locks };
        Ok((this, groups, found))
    }

    /// The path of `file`.
    pub fn path(&self, file: &FileMeta) -> PathBuf {
        self.files_dir().join(file_name(file.kind, file.id))
    }

    fn files_dir(&self) -> PathBuf {
        self.store.join(sstable::DIR)
    }

    /// Rebuilds the files of `group` from the records that `source` fetches, and puts them in place.
    ///
    /// # Errors
    /// The errors of `source`; [`Error::Invalid`] if its records are not those that are lost. Nothing has changed then.
    /// [`Error::Io`]: files that are in place stay, and the same call continues.
    pub fn mend<E: From<Error>>(
        &mut self,
        group: &Group,
        now: Ts,
        source: &mut Source<'_, E>,
        progress: &mut dyn FnMut(Progress),
    ) -> std::result::Result<Vec<Rebuilt>, E> {
        let dir = self.store.join(DIR);
        clear(self.disk.as_ref(), &dir)?;
        let mended = self.mend_in(&dir, group, now, source, progress);
        let cleared = clear(self.disk.as_ref(), &dir).and_then(|()| self.disk.sync_dir(&self.store));
        if let Err(error) = cleared {
            tracing::warn!(
                name: "repair.directory_not_removed", %error, dir = %dir.display(),
                "cannot remove the directory of a repair; the next repair removes it"
            );
        }
        mended
    }

    fn mend_in<E: From<Error>>(
        &mut self,
        dir: &Path,
        group: &Group,
        now: Ts,
        source: &mut Source<'_, E>,
        progress: &mut dyn FnMut(Progress),
    ) -> std::result::Result<Vec<Rebuilt>, E> {
        self.disk.create_dir(dir)?;
        let rows = self.collect(dir, group, source)?;
        if rows.rows != group.rows() {
            let why = format!(
                "it sends {} of the {} records that are lost: the others have expired there, or it does not have them yet",
                rows.rows,
                group.rows()
            );
            return Err(Error::invalid("records of the other host", why).into());
        }
        let (mut identical, mut others, mut from) = (Vec::new(), Vec::new(), 0);
        for lost in &group.lost {
            let part = Part { rows: &rows, from, to: from + lost.file.rows };
            match self.rebuild(dir, &part, lost)? {
                None => identical.push(lost.file),
                Some(stores_reserved) => others.push((lost.file, part, stores_reserved)),
            }
            from += lost.file.rows;
            progress(Progress { what: "rebuilding files", more: lost.file.rows, total: group.rows() });
        }
        let replaced = self.replace(dir, &others, now)?;
        let mut done = Vec::new();
        for file in identical {
            self.put_back(dir, &file, now)?;
            done.push(Rebuilt { lost: self.path(&file), path: self.path(&file) });
            self.sound.insert(file.id, file);
        }
        done.extend(replaced);
        Ok(done)
    }

    /// Fetches the rows of `group`, and keeps those that no other live file has.
    fn collect<E: From<Error>>(&self, dir: &Path, group: &Group, source: &mut Source<'_, E>) -> std::result::Result<Rows, E> {
        for lost in &group.lost {
            // A file that a later release wrote is not lost.
            if !matches!(lost.error, Error::Corrupt { .. } | Error::Missing { .. } | Error::Io { .. }) {
                return Err(Error::invalid("SSTable", lost.error.to_string()).into());
            }
        }
        let wanted = group.wanted;
        let Some(schema) = schema(wanted.kind) else {
            return Err(Error::invalid("kind", format!("{} is unknown to this program", wanted.kind.0)).into());
        };
        let index = group.lost.first().and_then(|lost| lost.index.as_ref());
        let others = if index.is_some() { Vec::new() } else { self.others(group)? };
        let is_lost = |lsn: Lsn| -> Result<bool> {
            if let Some(index) = index {
                return Ok(index.place_of(lsn)?.is_some());
            }
            for other in &others {
                if other.place_of(lsn)?.is_some() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let mut rows = Rows::create(self.disk.as_ref(), &dir.join("rows"), schema, wanted, group.rows())?;
        source(&wanted, &mut |row| {
            let instrument = rows.check(&row)?;
            if is_lost(row.lsn)? { rows.keep(&row, instrument) } else { Ok(()) }
        })?;
        rows.write()?;
        Ok(rows)
    }

    /// The files outside `group` that may have rows which it asks for.
    fn others(&self, group: &Group) -> Result<Vec<Arc<Table>>> {
        let wanted = group.wanted;
        let is_near = |f: &FileMeta| f.kind == wanted.kind && meets(f.lsn, wanted.lsn) && meets(f.time, wanted.time);
        let mut others: Vec<Arc<Table>> = self.indexes.iter().filter(|table| is_near(table.meta())).cloned().collect();
        for file in self.sound.values().filter(|f| is_near(f)) {
            others.push(Arc::new(Table::open(self.disk.as_ref(), &self.files_dir(), *file)?));
        }
        Ok(others)
    }

    /// Writes the lost file again, from its rows. `None`: it is identical, and in `dir`. Otherwise it has the same content in
    /// another form; returns whether that stores reserved bytes.
    fn rebuild(&self, dir: &Path, part: &Part<'_>, lost: &Lost) -> Result<Option<bool>> {
        let (file, disk) = (&lost.file, self.disk.as_ref());
        let stores_reserved = lost.trailer.map(|trailer| trailer.flags & STORES_RESERVED != 0);
        let forms: &[bool] = match (part.rows.has_reserved, stores_reserved) {
            (true, _) | (false, Some(true)) => &[true],
            (false, Some(false)) => &[false],
            (false, None) => &[false, true],
        };
        let mut differs = None;
        for stores_reserved in forms {
            let path = dir.join(file_name(file.kind, file.id));
            let made = write(disk, dir, self.spec(file.id, file, part.rows.schema, *stores_reserved), part)?;
            verify_file(disk, dir, made)?;
            if made == *file {
                return Ok(None);
            }
            let trailer = *Table::open(disk, dir, made)?.trailer()?;
            differs = differs.or(difference(lost, &made, &trailer));
            disk.remove(&path)?;
        }
        match differs {
            Some(what) => Err(Error::invalid("records of the other host", format!("{what} differ from those of the lost file"))),
            None => Ok(forms.first().copied()),
        }
    }

    fn spec(&self, id: u64, file: &FileMeta, schema: &'static Schema, stores_reserved: bool) -> Spec {
        Spec { store_id: self.store_id, id, schema, window: file.window, stores_reserved }
    }

    /// Gives the identical file in `dir` the name of the lost one.
    fn put_back(&self, dir: &Path, file: &FileMeta, now: Ts) -> Result<()> {
        let path = self.path(file);
        aside(self.disk.as_ref(), &self.store, &path, now)?;
        self.place(dir, file)?;
        self.disk.sync_dir(&self.files_dir())
    }

    /// Puts the rebuilt file in `dir` among the SSTables, under its name. Not durable before their directory is synced.
    fn place(&self, dir: &Path, file: &FileMeta) -> Result<()> {
        let (disk, to) = (self.disk.as_ref(), self.path(file));
        let from = dir.join(file_name(file.kind, file.id));
        let temporary = to.with_extension("tmp");
        disk.create_dir(&self.files_dir())?;
        disk.sync_dir(&self.store)?;
        if disk.exists(&temporary)? {
            disk.remove(&temporary)?;
        }
        if disk.link(&from, &temporary)? { disk.rename(&temporary, &to) } else { copy(disk, &from, &to, &mut |_| {}) }
    }

    /// Replaces lost files by files of the same content, with numbers of their own.
    fn replace(&mut self, dir: &Path, files: &[(FileMeta, Part<'_>, bool)], now: Ts) -> Result<Vec<Rebuilt>> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let disk = self.disk.clone();
        let mut manifest = Manifest::open(disk.clone(), &self.store, self.store_id)?;
        for id in disk.list(&self.files_dir())?.iter().filter_map(|name| file_id(name)) {
            manifest.skip_ids(id + 1);
        }
        let mut made = Vec::new();
        for (lost, part, stores_reserved) in files {
            let spec = self.spec(manifest.take_id(), lost, part.rows.schema, *stores_reserved);
            let file = write(disk.as_ref(), dir, spec, part)?;
            verify_file(disk.as_ref(), dir, file)?;
            self.place(dir, &file)?;
            aside(disk.as_ref(), &self.store, &self.path(lost), now)?;
            made.push(file);
        }
        disk.sync_dir(&self.files_dir())?;
        let removed: Vec<u64> = files.iter().map(|(lost, ..)| lost.id).collect();
        let rows = |files: &[FileMeta]| files.iter().map(|f| f.rows).sum::<u64>();
        let lost: Vec<FileMeta> = files.iter().map(|(lost, ..)| *lost).collect();
        let live = &manifest.state().files;
        assert!(
            rows(&made) == rows(&lost) && lost.iter().all(|f| live.get(&f.id) == Some(f)),
            "live SSTables are replaced by as many rows"
        );
        manifest.edit(Edit { added: made.clone(), removed, ..Edit::default() })?;
        let mut done = Vec::new();
        for (lost, file) in lost.iter().zip(made) {
            let path = self.path(lost);
            if disk.exists(&path)? {
                disk.remove(&path)?;
            }
            done.push(Rebuilt { lost: path, path: self.path(&file) });
            self.sound.insert(file.id, file);
        }
        disk.sync_dir(&self.files_dir())?;
        Ok(done)
    }
}

/// Looks what can still be read of the damaged `file` in `dir`.
fn look(disk: &dyn Disk, dir: &Path, file: FileMeta, error: Error) -> Lost {
    let table = Table::open(disk, dir, file).ok();
    let trailer = table.as_ref().and_then(|t| t.trailer().ok()).copied();
    // The CRCs of the index are in the trailer, whose CRC is in the manifest.
    let index = table.filter(|t| matches!(t.place_of(file.lsn.0), Ok(Some(_))));
    Lost { file, error, index: index.map(Arc::new), trailer }
}

/// Sections that depend on the records alone, not on the form of the file.
const OF_RECORDS: [(Section, &str); 6] = [
    (Section::Series, "instruments"),
    (Section::Runs, "publishers"),
    (Section::Lsns, "LSNs"),
    (Section::Places, "places"),
    (Section::FileBloom, "ids"),
    (Section::BlockBlooms, "ids"),
];

/// What of the rebuilt file `made`, with `trailer`, differs from the lost one; `None` if it is only the form.
fn difference(lost: &Lost, made: &FileMeta, trailer: &Trailer) -> Option<&'static str> {
    let file = &lost.file;
    if made.rows != file.rows {
        return Some("their number");
    }
    if made.lsn != file.lsn {
        return Some("first and last LSN");
    }
    if made.time != file.time {
        return Some("least and greatest index time");
    }
    let Some(old) = &lost.trailer else {
        // In another form the file would most likely have another length.
        return (made.len == file.len).then_some("their bytes");
    };
    let is_same = |which: Section| {
        let (a, b) = (old.section(which), trailer.section(which));
        (a.len, a.crc) == (b.len, b.crc)
    };
    let other = OF_RECORDS.iter().find(|(which, _)| !is_same(*which)).map(|(_, what)| *what);
    // The head has the form of all blocks.
    other.or(((old.head.len, old.head.crc) == (trailer.head.len, trailer.head.crc)).then_some("their bytes"))
}

/// Rows of one file.
struct Part<'r> {
    rows: &'r Rows,
    from: u64,
    to: u64,
}

/// Writes `part` as the SSTable of `spec` in `dir`.
fn write(disk: &dyn Disk, dir: &Path, spec: Spec, part: &Part<'_>) -> Result<FileMeta> {
    let mut writer = Writer::create(disk, dir, spec)?;
    let mut series = part.rows.series(part.from, part.to).into_iter();
    let mut origins = Vec::new();
    part.rows.read(part.from, part.to, &mut |row| {
        if writer.owed() == 0
            && let Some((instrument, rows)) = series.next()
        {
            let rows = u32::try_from(rows).map_err(|_| Error::Limit { what: "rows of a series", limit: u64::from(u32::MAX) })?;
            writer.begin_series(instrument, rows)?;
        }
        origins.push((row.lsn, row.origin));
        writer.push(row.lsn, row.ingest_ts, row.record)
    })?;
    origins.sort_unstable_by_key(|(lsn, _)| *lsn);
    if let Some((twice, _)) = origins.iter().zip(origins.iter().skip(1)).find(|(a, b)| a.0 == b.0) {
        return Err(Error::invalid("records of the other host", format!("it sends two with the LSN {}", twice.0)));
    }
    let mut origins = origins.into_iter();
    writer.finish(|lsn| match origins.next() {
        Some((of, origin)) if of == lsn => origin,
        other => panic!("the writer asks for the origin of record {lsn}, and {other:?} is next"),
    })
}

/// Removes the directory of the work, if there is one.
fn clear(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if disk.exists(dir)? {
        disk.list(dir)?.iter().try_for_each(|name| disk.remove(&dir.join(name)))?;
        disk.sync_dir(dir)?;
        disk.remove_dir(dir)?;
    }
    Ok(())
}
