//! Owns: the free space of the store's file system: how much is kept free, whether the disk refuses writes for lack of it,
//! and the ballast, a file that is removed when a flush has no room otherwise.
//!
//! What must hold: records are refused while there is still room for two segments and a flush, so that accepted records can
//! be flushed and the manifest written. Records are accepted again, without a command, when there is room. A full disk is
//! logged once when it begins and once when it ends.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tapestore::agent::Stop;
use tapestore::disk::{Disk, DiskFile, Open};
use tapestore::error::{Error, Result};
use tapestore::shm::control::{Control, Statistic};

/// The ballast's name in the store's directory.
pub(super) const BALLAST: &str = "ballast";
/// Most bytes of the ballast; it is also at most this part of the volume.
pub const BALLAST_MAX: u64 = 64 << 20;
const BALLAST_PART: u64 = 64;
/// Bytes of it written in one turn, so that the log's syncs do not wait long for them.
const BALLAST_STEP: u64 = 4 << 20;
/// The ballast is made this long after the start of storage, after its removal or after a failure.
const BALLAST_AFTER: Duration = Duration::from_secs(5);
/// Space kept free on a large volume.
const KEEP_MAX: u64 = 1 << 30;
/// Part of a smaller volume that is kept free.
const KEEP_PART: u64 = 20;
/// Time between two looks at the file system.
const LOOK: Duration = Duration::from_millis(200);

/// Whether `error` means that there is no room for a file: the disk is full, or a quota or a limit is reached.
pub(super) fn is_full(error: &Error) -> bool {
    const KINDS: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    matches!(error, Error::Io { source, .. } if KINDS.contains(&source.kind()))
}

/// State of the free space, for all agents.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes free beyond what is kept.
    spare: AtomicU64,
    is_low: AtomicBool,
    no_segment: AtomicBool,
    no_flush: AtomicBool,
    wants_ballast: AtomicBool,
}

// Lone flags, which order nothing: relaxed.
impl Room {
    /// Whether so little is free that no records are accepted.
    pub(super) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    /// Whether the last attempt to write a segment or an SSTable failed for lack of space.
    pub(super) fn is_refused(&self) -> bool {
        self.no_segment.load(Ordering::Relaxed) || self.no_flush.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more can be written without the space kept free.
    pub(super) fn has(&self, bytes: u64) -> bool {
        self.spare.load(Ordering::Relaxed) >= bytes
    }

    /// Notes whether a segment could be made; `failed` is the error if not.
    pub(super) fn segment(&self, failed: Option<&Error>) {
        self.no_segment.store(failed.is_some_and(is_full), Ordering::Relaxed);
    }

    /// Notes whether SSTables and the manifest could be written; if there was no room, the ballast is removed.
    pub(super) fn flush(&self, failed: Option<&Error>) {
        let full = failed.is_some_and(is_full);
        self.no_flush.store(full, Ordering::Relaxed);
        if full {
            self.wants_ballast.store(true, Ordering::Relaxed);
        }
    }
}

/// Bytes kept free on a volume of `total`: as `chosen`, or, if that is 0, 1 GiB, or a twentieth of the volume if that is
/// less, but at least room for two segments and the flush of a MemTable.
pub fn keep_free(chosen: u64, total: u64, segment_size: u64, memtable_size: u64) -> u64 {
    // SSTables have two columns more than a MemTable, an index and filters.
    let needed = 2 * segment_size + memtable_size / 4 * 5;
    if chosen > 0 { chosen } else { (total / KEEP_PART).min(KEEP_MAX).max(needed) }
}

/// Removes the ballast before a start for which there may be no room.
///
/// # Errors
/// [`Error::Io`] if the space cannot be read or the ballast cannot be removed.
pub(super) fn make_room(disk: &dyn Disk, dir: &Path, keep: impl Fn(u64) -> u64) -> Result<()> {
    let (space, path) = (disk.space(dir)?, dir.join(BALLAST));
    if space.free < keep(space.total) && disk.exists(&path)? {
        tracing::warn!(
            name: "space.ballast_removed_for_start", free = space.free,
            "the disk is nearly full: the ballast file is removed for the start"
        );
        disk.remove(&path)?;
    }
    Ok(())
}

enum Ballast {
    Absent(Instant),
    Growing(Box<dyn DiskFile>, u64),
    Held,
}

/// The space agent.
pub(super) struct SpaceAgent {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    room: Arc<Room>,
    control: Control,
    stop: Stop,
    /// Bytes kept free, and how much more must be free before records are accepted again.
    keep: u64,
    margin: u64,
    ballast: Ballast,
    ballast_len: u64,
    has_failed: bool,
}

impl SpaceAgent {
    /// An agent that has looked once. `keep` returns how much is kept free on a volume of so many bytes.
    ///
    /// # Errors
    /// [`Error::Io`] if the space or the ballast cannot be read.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keep: impl Fn(u64) -> u64,
        segment_size: u64,
        control: Control,
        stop: Stop,
    ) -> Result<SpaceAgent> {
        let total = disk.space(dir)?.total;
        // The size of a simulated disk is not limited.
        let ballast_len = if total == u64::MAX { 0 } else { (total / BALLAST_PART).min(BALLAST_MAX) / 4096 * 4096 };
        let path = dir.join(BALLAST);
        let mut ballast = Ballast::Absent(Instant::now() + BALLAST_AFTER);
        if disk.exists(&path)? {
            if disk.open(&path, Open::Read)?.len()? == ballast_len {
                ballast = Ballast::Held;
            } else {
                disk.remove(&path)?;
            }
        }
        let (keep, room, dir) = (keep(total), Arc::default(), dir.to_path_buf());
        control.set_statistic(Statistic::KeptFree, keep);
        let margin = 2 * segment_size;
        let mut this = SpaceAgent { disk, dir, room, control, stop, keep, margin, ballast, ballast_len, has_failed: false };
        this.look();
        Ok(this)
    }

    /// The state for other agents.
    pub(super) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    /// Runs until it is stopped.
    pub(super) fn run(mut self) {
        while !self.stop.sleep(LOOK) {
            if let Some(free) = self.look() {
                self.tend(free);
            }
        }
    }

    /// Reads how much is free, and publishes it.
    fn look(&mut self) -> Option<u64> {
        let free = match self.disk.space(&self.dir) {
            Ok(space) => space.free,
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(name: "space.not_read", %error, "cannot read how much of the disk is free");
                }
                return None;
            }
        };
        self.has_failed = false;
        self.room.spare.store(free.saturating_sub(self.keep), Ordering::Relaxed);
        self.control.set_statistic(Statistic::FreeBytes, free);
        let (was, kept) = (self.room.is_low(), self.keep);
        let is_low = free < if was { kept.saturating_add(self.margin) } else { kept };
        self.room.is_low.store(is_low, Ordering::Relaxed);
        let store = self.dir.display();
        match (was, is_low) {
            (false, true) => tracing::error!(
                name: "space.no_space",
                %store, free, kept,
                "NoSpace: the disk is nearly full, so no records are accepted until there is room; reads go on. Free some of it, add retention rules, or choose a smaller --space-min"
            ),
            (true, false) => tracing::warn!(
                name: "space.free_again", %store, free, kept,
                "there is room on the disk again: records are accepted"
            ),
            _ => {}
        }
        Some(free)
    }

    /// Removes the ballast when its space is needed, and makes it again when there is room.
    fn tend(&mut self, free: u64) {
        let path = self.dir.join(BALLAST);
        let wanted = self.room.wants_ballast.swap(false, Ordering::Relaxed);
        let later = || Instant::now() + BALLAST_AFTER;
        let ballast = std::mem::replace(&mut self.ballast, Ballast::Absent(later()));
        let next = match ballast {
            Ballast::Absent(after) if self.ballast_len == 0 || wanted || Instant::now() < after => Ok(Ballast::Absent(after)),
            Ballast::Absent(after) if free < self.keep.saturating_add(self.margin + self.ballast_len) => {
                Ok(Ballast::Absent(after))
            }
            Ballast::Absent(_) => self.disk.open(&path, Open::CreateNew).map(|file| Ballast::Growing(file, 0)),
            Ballast::Growing(file, len) if !wanted && free >= self.keep.saturating_add(self.margin) => self.grow(file, len),
            Ballast::Held if !wanted => Ok(Ballast::Held),
            Ballast::Growing(..) | Ballast::Held => {
                tracing::warn!(
                    name: "space.ballast_removed", bytes = self.ballast_len,
                    "the ballast file is removed: a flush needs its space"
                );
                self.disk.remove(&path).map(|()| Ballast::Absent(later()))
            }
        };
        self.ballast = next.unwrap_or_else(|error| {
            tracing::warn!(
                name: "space.ballast_failed", %error,
                "cannot make or remove the ballast file; trying again in 5 seconds"
            );
            if let Err(error) = self.disk.remove(&path) {
                tracing::debug!(name: "space.no_ballast", %error, "there is no ballast file to remove");
            }
            Ballast::Absent(later())
        });
    }

    /// Writes some more zeros, durably: blocks that are only reserved may be missing when they are needed.
    fn grow(&self, file: Box<dyn DiskFile>, len: u64) -> Result<Ballast> {
        let zeros = vec![0u8; 64 << 10];
        let end = (len + BALLAST_STEP).min(self.ballast_len);
        let mut at = len;
        while at < end {
            let chunk = zeros.get(..(end - at).min(zeros.len() as u64) as usize).unwrap_or(&zeros);
            file.write_at(chunk, at)?;
            at += chunk.len() as u64;
        }
        file.sync()?;
        Ok(if end == self.ballast_len { Ballast::Held } else { Ballast::Growing(file, end) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_kept_free_fits_the_volume_and_is_enough_for_a_flush() {
        const MIB: u64 = 1 << 20;
        let automatic = |total| keep_free(0, total, 64 * MIB, 256 * MIB);
        assert_eq!(automatic(1 << 40), 1 << 30);
        assert_eq!(automatic(16 << 30), (16 << 30) / 20);
        assert_eq!(automatic(1 << 30), 448 * MIB, "two segments and a flush");
        assert_eq!(keep_free(0, 256 * MIB, MIB, 16 * MIB), 22 * MIB);
        assert_eq!(keep_free(5 * MIB, 1 << 40, 64 * MIB, 256 * MIB), 5 * MIB, "a chosen value counts");
    }
}
