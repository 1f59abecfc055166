//! Owns: changing the manifest. One owner: the flush agent, or recovery before there is one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{CURRENT, Expected, FrameType, current, encode, file_name, file_number};
use super::reader::{Step, current_number};
use super::{Edit, Follower, State};
use crate::disk::{Disk, DiskFile, Open, publish};
use crate::error::{Error, Result};
use crate::sabotage::{self, Sabotage};

/// A manifest is written anew when its edits have become longer than this and than its snapshot.
const EDITS_MAX: u64 = if cfg!(test) { 4 << 10 } else { 1 << 20 };

/// The manifest, for its one writer.
pub struct Manifest {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    /// The open file and where the next frame goes; `None` if it must not be written on, because an edit in
    /// it failed or was torn: the next edit writes the manifest anew.
    file: Option<(Box<dyn DiskFile>, u64)>,
    number: u64,
    next_number: u64,
    snapshot_len: u64,
    previous: Option<(u64, u32)>,
    state: State,
}

/// Writes the manifest of a copy of the store `store_id` into `dir`: `state` as one snapshot, number `number`.
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
    /// Opens the manifest of the store in `dir`, creating an empty one if there is none and no history.
    ///
    /// Nothing but a torn last edit is passed over: it was never acted upon. What is read has been synced
    /// first, and read from the disk.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::Io`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, store_id: u128) -> Result<Manifest> {
        // A start before may have failed when the name was there and not durable yet.
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
                let filed = |n: &String| crate::sstable::file_id(n).is_some() && !n.ends_with(".tmp");
                if this.disk.exists(&files)? && this.disk.list(&files)?.iter().any(filed) {
                    return Err(Error::Missing { path: dir.join(CURRENT), what: "there are files of history" });
                }
                this.rotate()?;
            }
            Some(number) => this.read(number)?,
        }
        // A manifest with a torn end is left as it is until the log behind it has been found whole.
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
        file.drop_cache()?;
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
                // An edit is made only after the one before is durable: behind a torn one there is none.
                let mut rest = vec![0u8; file.len()?.saturating_sub(end) as usize];
                let read = file.read_at(&mut rest, end)?;
                let frames = rest.get(..read).unwrap_or(&[]).chunks(super::format::HEADER_LEN).skip(1);
                if frames.filter_map(|f| super::format::Header::seq_of(f, self.store_id)).any(|seq| seq > self.state.seq) {
                    let (what, expected, found, lsn) = (bad.what, bad.expected, bad.found, self.state.checkpoint.lsn);
                    return Err(Error::Corrupt { path, offset: end, lsn, what, expected, found });
                }
                let (path, what) = (path.display(), bad.what);
                tracing::warn!(%path, offset = end, what, "the manifest's last edit is torn; it is as if not made");
            }
            None => self.file = Some((file, end)),
        }
        Ok(())
    }

    /// What it says.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A number that no file has had.
    pub fn take_id(&mut self) -> u64 {
        let id = self.state.next_id;
        self.state.next_id += 1;
        id
    }

    /// The first of `count` numbers that no file has had.
    pub fn take_ids(&mut self, count: u64) -> u64 {
        let id = self.state.next_id;
        self.state.next_id += count;
        id
    }

    /// Numbers below `id` are taken, by files that the manifest does not know.
    pub fn skip_ids(&mut self, id: u64) {
        self.state.next_id = self.state.next_id.max(id);
    }

    /// Makes `edit`, durably.
    ///
    /// # Errors
    /// [`Error::Io`]: then it is unknown whether a restart would find it made, so nothing that it
    /// replaces may be given up, and no file that it names be removed, before another edit has succeeded.
    pub fn edit(&mut self, edit: Edit) -> Result<()> {
        let seq = self.state.seq + 1;
        let next_id = self.state.next_id;
        let expected = Expected { store_id: self.store_id, previous: self.previous };
        let (header, bytes) = encode(FrameType::Edit, seq, next_id, expected, &edit);
        // Taken out: if a call fails, the file is not written on.
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
                // The edit is made. The old file is not written on: it is unknown which one CURRENT names.
                tracing::warn!(%error, "the manifest cannot be written anew yet; the next edit does it");
            }
            return Ok(());
        }
        let before = self.state.clone();
        self.state.apply(seq, edit);
        self.rotate().inspect_err(|_| self.state = before)
    }

    /// Writes the manifest anew, as one snapshot, and makes that the one in use.
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
            tracing::warn!(%error, "an earlier manifest stays until the next start");
        }
        Ok(())
    }

    /// Removes manifests that are not in use. Followers look at `CURRENT` again when theirs is gone.
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
