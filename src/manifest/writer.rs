//! Owns: writing the manifest. One owner: the flush agent, or recovery before that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{CURRENT, Expected, FrameType, current, encode, file_name, file_number};
use super::reader::{Step, current_number};
use super::{Edit, Follower, State};
use crate::disk::{Disk, DiskFile, Open, publish};
use crate::error::{Error, Result};
use crate::sabotage::{self, Sabotage};

/// The manifest is rewritten when its edits are longer than this and than its snapshot.
const EDITS_MAX: u64 = if cfg!(test) { 4 << 10 } else { 1 << 20 };

/// The manifest, held by its one writer.
pub struct Manifest {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    /// The open file and the offset of the next frame. `None` if the file must not be appended to, because an
    /// edit in it failed or is torn: the next edit rewrites the manifest.
    file: Option<(Box<dyn DiskFile>, u64)>,
    number: u64,
    next_number: u64,
    snapshot_len: u64,
    previous: Option<(u64, u32)>,
    state: State,
}

/// Writes the manifest of a copy of store `store_id` into `dir`: `state` as one snapshot, with number
/// `number`.
///
/// # Errors
/// [`Error::Io`].
pub fn create(disk: &dyn Disk, dir: &Path, store_id: u128, number: u64, state: &State) -> Result<()> {
    let expected = Expected { store_id, previous: None };
    let (_, bytes) = encode(FrameType::Snapshot, state.seq, state.next_id, expected, &state.to_edit());
    publish(disk, &dir.join(file_name(number)), &bytes)?;
    publish(disk, &dir.join(CURRENT), current(number).as_bytes())
}

impl Manifest {
    /// Opens the manifest of the store in `dir`. Creates an empty one if there is neither a manifest nor an
    /// SSTable.
    ///
    /// Skips only a torn last edit, which nothing has acted on. Syncs the manifest and drops its cached pages
    /// before reading it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::Io`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, store_id: u128) -> Result<Manifest> {
        // An earlier start may have created the name and failed before it was durable.
        disk.sync_dir(dir)?;
        let numbers = disk.list(dir)?.iter().filter_map(|n| file_number(n.trim_end_matches(".tmp"))).max().unwrap_or(0);
        let mut this = Manifest {
            disk,
            dir: dir.to_path_buf(),
            store_id,
            file: None,
            number: 0,
            next_number: numbers + 1,
            snapshot_len: 0,
            previous: None,
            state: State::begin(store_id),
        };
        match current_number(this.disk.as_ref(), dir)? {
            None => {
                let files = dir.join(crate::sstable::DIR);
                let is_table = |n: &String| crate::sstable::file_id(n).is_some() && !n.ends_with(".tmp");
                if this.disk.exists(&files)? && this.disk.list(&files)?.iter().any(is_table) {
                    return Err(Error::Missing { path: dir.join(CURRENT), what: "SSTables exist" });
                }
                this.rotate()?;
            }
            Some(number) => this.read(number)?,
        }
        // A manifest with a torn end stays until the log after it is found whole.
        if this.file.is_some() {
            this.sweep()?;
        }
        Ok(this)
    }

    fn read(&mut self, number: u64) -> Result<()> {
        let path = self.dir.join(file_name(number));
        if !self.disk.exists(&path)? {
            return Err(Error::Missing { path, what: "CURRENT names it" });
        }
        let file = self.disk.open(&path, Open::Write)?;
        file.sync()?;
        file.drop_cache(0..u64::MAX)?;
        let mut follower = Follower::new(&self.dir, self.store_id);
        let step = follower.read_on(self.disk.as_ref(), &mut |_, _| {})?;
        let torn = match step {
            Step::Torn(bad) if follower.previous.is_none() => {
                let super::format::Bad { what, expected, found } = bad;
                return Err(Error::Corrupt { path, offset: 0, lsn: crate::lsn::Lsn(1), what, expected, found });
            }
            Step::Torn(bad) => Some(bad),
            _ => None,
        };
        (self.number, self.snapshot_len, self.previous) = (number, follower.snapshot_len, follower.previous);
        let end = follower.end;
        self.state = follower.into_state();
        match torn {
            Some(bad) => {
                // An edit is written only after the previous one is durable: none can follow a torn one.
                let mut rest = vec![0u8; file.len()?.saturating_sub(end) as usize];
                let read = file.read_at(&mut rest, end)?;
                let frames = rest.get(..read).unwrap_or(&[]).chunks(super::format::HEADER_LEN).skip(1);
                if frames.filter_map(|f| super::format::Header::seq_of(f, self.store_id)).any(|seq| seq > self.state.seq) {
                    let (what, expected, found, lsn) = (bad.what, bad.expected, bad.found, self.state.checkpoint.lsn);
                    return Err(Error::Corrupt { path, offset: end, lsn, what, expected, found });
                }
                let (path, what) = (path.display(), bad.what);
                tracing::warn!(
                    name: "manifest.torn_edit", %path, offset = end, what,
                    "a torn last edit is ignored; the next edit rewrites the manifest"
                );
            }
            None => self.file = Some((file, end)),
        }
        Ok(())
    }

    /// The current state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns a file number that was never used.
    pub fn take_id(&mut self) -> u64 {
        let id = self.state.next_id;
        self.state.next_id += 1;
        id
    }

    /// Returns the first of `count` file numbers that were never used.
    pub fn take_ids(&mut self, count: u64) -> u64 {
        let id = self.state.next_id;
        self.state.next_id += count;
        id
    }

    /// Marks numbers below `id` as used, by files that are not in the manifest.
    pub fn skip_ids(&mut self, id: u64) {
        self.state.next_id = self.state.next_id.max(id);
    }

    /// Appends `edit` durably.
    ///
    /// # Errors
    /// [`Error::Io`]: a restart may or may not find the edit. Until another edit has succeeded, remove nothing
    /// that it replaces, and no file that it names.
    pub fn edit(&mut self, edit: Edit) -> Result<()> {
        let seq = self.state.seq + 1;
        let next_id = self.state.next_id;
        let expected = Expected { store_id: self.store_id, previous: self.previous };
        let (header, bytes) = encode(FrameType::Edit, seq, next_id, expected, &edit);
        // Taken out of `self`: if a call fails, the file is not appended to again.
        if let Some((file, at)) = self.file.take() {
            file.write_at(&bytes, at)?;
            if !sabotage::is(Sabotage::SkipEditSync) {
                file.sync()?;
            }
            let end = at + bytes.len() as u64;
            self.previous = Some((seq, header.header_crc));
            self.state.apply(seq, edit);
            if end - self.snapshot_len <= EDITS_MAX.max(self.snapshot_len) {
                self.file = Some((file, end));
            } else if let Err(error) = self.rotate() {
                // The edit is durable. The old file is not appended to again: `CURRENT` may name either file.
                tracing::warn!(
                    name: "manifest.not_rewritten", %error,
                    "the edit is durable, but the manifest cannot be rewritten now; the next edit retries"
                );
            }
            return Ok(());
        }
        let before = self.state.clone();
        self.state.apply(seq, edit);
        self.rotate().inspect_err(|_| self.state = before)
    }

    /// Rewrites the manifest as one snapshot in a new file and makes that the current one.
    fn rotate(&mut self) -> Result<()> {
        let number = self.next_number;
        self.next_number += 1;
        let expected = Expected { store_id: self.store_id, previous: None };
        let (header, bytes) = encode(FrameType::Snapshot, self.state.seq, self.state.next_id, expected, &self.state.to_edit());
        let path = self.dir.join(file_name(number));
        publish(self.disk.as_ref(), &path, &bytes)?;
        publish(self.disk.as_ref(), &self.dir.join(CURRENT), current(number).as_bytes())?;
        let file = self.disk.open(&path, Open::Write)?;
        self.snapshot_len = header.total_len();
        self.previous = Some((self.state.seq, header.header_crc));
        self.file = Some((file, header.total_len()));
        self.number = number;
        if let Err(error) = self.sweep() {
            tracing::warn!(
                name: "manifest.old_not_removed", %error,
                "an earlier manifest cannot be removed; the next start retries"
            );
        }
        Ok(())
    }

    /// Removes manifests that are not current. A follower reads `CURRENT` again when its manifest is gone.
    fn sweep(&self) -> Result<()> {
        for name in self.disk.list(&self.dir)? {
            let number = file_number(name.trim_end_matches(".tmp"));
            let is_current_tmp = name.starts_with(CURRENT) && name != CURRENT;
            if is_current_tmp || number.is_some_and(|n| n != self.number || name.ends_with(".tmp")) {
                self.disk.remove(&self.dir.join(name))?;
            }
        }
        Ok(())
    }
}
