//! Owns: reading the manifest, once by storage and repeatedly by readers. A follower keeps the state it
//! has read and reads only the edits added since.

use std::path::{Path, PathBuf};

use super::format::{CURRENT, Expected, HEADER_LEN, Header, decode, file_name, parse_current};
use super::{Edit, State};
use crate::disk::{Disk, DiskFile, Open};
use crate::error::{Error, Result};
use crate::lsn::Lsn;

/// A reader that follows the manifest.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    store_id: u128,
    number: u64,
    /// End of the last valid frame.
    pub(super) end: u64,
    /// Bytes of the first frame, the snapshot.
    pub(super) snapshot_len: u64,
    pub(super) previous: Option<(u64, u32)>,
    state: State,
}

/// The result of reading on.
pub(super) enum Step {
    /// Another frame.
    Frame,
    /// The file ends here.
    End,
    /// The bytes here are not a valid next frame.
    Torn(super::format::Bad),
}

/// Number of attempts while the manifest is being replaced.
const TRIES: u32 = 20;

/// Number of the current manifest of the store in `dir`; `None` if there is none.
///
/// # Errors
/// [`Error::Corrupt`] if `CURRENT` is invalid.
pub(super) fn current_number(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>> {
    let path = dir.join(CURRENT);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let mut contents = vec![0u8; 64];
    let read = disk.open(&path, Open::Read)?.read_at(&mut contents, 0)?;
    let contents = contents.get(..read).unwrap_or(&[]);
    match parse_current(contents) {
        Some(number) => Ok(Some(number)),
        None => {
            let (what, found) = ("contents", u64::from(crc32c::crc32c(contents)));
            Err(Error::Corrupt { path, offset: 0, lsn: Lsn(1), what, expected: 0, found })
        }
    }
}

impl Follower {
    /// Follows the manifest of store `store_id` in `dir`; nothing is read yet.
    pub fn new(dir: &Path, store_id: u128) -> Follower {
        let state = State::begin(store_id);
        Follower { dir: dir.to_path_buf(), store_id, number: 0, end: 0, snapshot_len: 0, previous: None, state }
    }

    /// Number of the current manifest; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `CURRENT` is invalid; [`Error::Io`].
    pub fn number_now(&self, disk: &dyn Disk) -> Result<Option<u64>> {
        current_number(disk, &self.dir)
    }

    /// The state read so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state read so far, by value.
    pub(super) fn into_state(self) -> State {
        self.state
    }

    /// Number of the manifest that has been read; 0 if none.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(file_name(self.number))
    }

    pub(super) fn expected(&self) -> Expected {
        Expected { store_id: self.store_id, previous: self.previous }
    }

    /// Reads on, at least up to edit `seq`; returns whether anything has changed. An edit that is still
    /// being written is not an error.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `seq` cannot be reached; [`Error::Io`].
    pub fn refresh(&mut self, disk: &dyn Disk, seq: u64) -> Result<bool> {
        let before = (self.number, self.state.seq);
        let mut last = None;
        for _ in 0..TRIES {
            match self.read_on(disk, &mut |_, _| {}) {
                Ok(Step::Torn(bad)) => last = Some(self.corrupt(bad)),
                Ok(_) => last = None,
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => last = Some(e),
            }
            if self.state.seq >= seq {
                return Ok((self.number, self.state.seq) != before);
            }
            std::thread::yield_now();
        }
        let what = super::format::Bad { what: "manifest edit number", expected: seq, found: self.state.seq };
        Err(last.unwrap_or_else(|| self.corrupt(what)))
    }

    pub(super) fn corrupt(&self, bad: super::format::Bad) -> Error {
        let super::format::Bad { what, expected, found } = bad;
        Error::Corrupt { path: self.path(), offset: self.end, lsn: self.state.checkpoint.lsn, what, expected, found }
    }

    /// Reads the added frames, or the new manifest from its start, and calls `visit` for each.
    pub(super) fn read_on(&mut self, disk: &dyn Disk, visit: &mut dyn FnMut(&Header, &Edit)) -> Result<Step> {
        let Some(number) = current_number(disk, &self.dir)? else { return Ok(Step::End) };
        if number != self.number {
            let mut fresh = Follower::new(&self.dir, self.store_id);
            fresh.number = number;
            let file = disk.open(&fresh.path(), Open::Read)?;
            let step = fresh.read_file(file.as_ref(), visit)?;
            if fresh.previous.is_none() {
                return Ok(step);
            }
            *self = fresh;
            return Ok(step);
        }
        let file = disk.open(&self.path(), Open::Read)?;
        self.read_file(file.as_ref(), visit)
    }

    fn read_file(&mut self, file: &dyn DiskFile, visit: &mut dyn FnMut(&Header, &Edit)) -> Result<Step> {
        loop {
            match self.read_frame(file, visit)? {
                Step::Frame => {}
                other => return Ok(other),
            }
        }
    }

    fn read_frame(&mut self, file: &dyn DiskFile, visit: &mut dyn FnMut(&Header, &Edit)) -> Result<Step> {
        let mut head = [0u8; HEADER_LEN];
        let read = file.read_at(&mut head, self.end)?;
        if read == 0 && self.previous.is_some() {
            return Ok(Step::End);
        }
        let header = match Header::parse(head.get(..read).unwrap_or(&[]), self.expected()) {
            Ok(header) => header,
            Err(bad) => return Ok(Step::Torn(bad)),
        };
        let left = file.len()?.saturating_sub(self.end);
        if header.total_len() > left {
            let bad = super::format::Bad { what: "manifest frame bytes", expected: header.total_len(), found: left };
            return Ok(Step::Torn(bad));
        }
        let mut payload = vec![0u8; header.len as usize];
        let read = file.read_at(&mut payload, self.end + HEADER_LEN as u64)?;
        let edit = match decode(&header, payload.get(..read).unwrap_or(&[])) {
            Ok(edit) => edit,
            Err(bad) => return Ok(Step::Torn(bad)),
        };
        // Files of these kinds may be read from here on.
        for layout in &edit.kinds {
            layout.register()?;
        }
        visit(&header, &edit);
        if self.previous.is_none() {
            self.snapshot_len = header.total_len();
        }
        self.end += header.total_len();
        self.previous = Some((header.seq, header.header_crc));
        self.state.apply(header.seq, edit);
        self.state.next_id = self.state.next_id.max(header.next_id);
        Ok(Step::Frame)
    }
}

/// Calls `visit` for every edit of the manifest of store `store_id` in `dir`. Returns the state, and
/// the first mismatch after the last valid edit, if any.
///
/// # Errors
/// [`Error::Missing`] if there is no manifest; [`Error::Corrupt`] if its first frame is invalid.
pub fn read_all(
    disk: &dyn Disk,
    dir: &Path,
    store_id: u128,
    visit: &mut dyn FnMut(&Header, &Edit),
) -> Result<(Follower, Option<super::format::Bad>)> {
    let mut follower = Follower::new(dir, store_id);
    if current_number(disk, dir)?.is_none() {
        return Err(Error::Missing { path: dir.join(CURRENT), what: "it names the manifest" });
    }
    let step = follower.read_on(disk, visit)?;
    match step {
        Step::Torn(bad) if follower.previous.is_none() => {
            if let Some(number) = current_number(disk, dir)? {
                follower.number = number;
            }
            Err(follower.corrupt(bad))
        }
        Step::Torn(bad) => Ok((follower, Some(bad))),
        _ => Ok((follower, None)),
    }
}
