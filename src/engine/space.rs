//! Owns: the free space of the store's file system: how much is kept free, whether writes are refused for want of
//! it, and the ballast, a file that is given up when history cannot be filed without it.
//!
//! What must hold: records are refused while there is still room for two segments and a filing, so that what was
//! taken in can be filed and the manifest be written; writing goes on by itself when there is room again; a full
//! disk is said once, when it begins and when it ends.

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
/// Bytes of the ballast at most, and at most this part of the volume.
const BALLAST_MAX: u64 = 64 << 20;
const BALLAST_PART: u64 = 64;
/// Bytes of it that are written in one turn, so that the log's syncs do not wait long behind them.
const BALLAST_STEP: u64 = 4 << 20;
/// The ballast is made when storage has been running this long, or this long after it was given up or failed.
const BALLAST_AFTER: Duration = Duration::from_secs(5);
/// What is kept free of a large volume.
const KEEP_MAX: u64 = 1 << 30;
/// What is kept free of a smaller one is this part of it.
const KEEP_PART: u64 = 20;
/// How often the file system is asked, in naps, after each of which it is looked whether storage is to end.
const TURN: Duration = Duration::from_millis(20);
const TURNS: u32 = 10;

/// Whether `error` says that there is no room for a file: the disk is full, a quota or a limit is reached.
pub(super) fn is_full(error: &Error) -> bool {
    const KINDS: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    matches!(error, Error::Io { source, .. } if KINDS.contains(&source.kind()))
}

/// What is known of the free space, for all agents.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes free beyond what is kept.
    spare: AtomicU64,
    is_low: AtomicBool,
    no_segment: AtomicBool,
    no_filing: AtomicBool,
    wants_ballast: AtomicBool,
}

// Lone flags, which order nothing: relaxed.
impl Room {
    /// Whether so little is free that no more records are taken in.
    pub(super) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    /// Whether a segment or a file of history could not be written, the last time it was tried, for want of room.
    pub(super) fn is_refused(&self) -> bool {
        self.no_segment.load(Ordering::Relaxed) || self.no_filing.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more can be written without what is kept free.
    pub(super) fn has(&self, bytes: u64) -> bool {
        self.spare.load(Ordering::Relaxed) >= bytes
    }

    /// Notes whether a segment could be made; `Some` is why not.
    pub(super) fn segment(&self, failed: Option<&Error>) {
        self.no_segment.store(failed.is_some_and(is_full), Ordering::Relaxed);
    }

    /// Notes whether history and its manifest could be written; if there was no room, the ballast is given up.
    pub(super) fn filing(&self, failed: Option<&Error>) {
        let full = failed.is_some_and(is_full);
        self.no_filing.store(full, Ordering::Relaxed);
        if full {
            self.wants_ballast.store(true, Ordering::Relaxed);
        }
    }
}

/// Bytes that are kept free on a volume of `total`: as `chosen`, or, if that is 0, 1 GiB or a twentieth of the
/// volume if that is less, but room for two segments and the filing of a MemTable in any case.
pub(super) fn keep_free(chosen: u64, total: u64, segment_size: u64, memtable_size: u64) -> u64 {
    // Files have two columns more than a MemTable, an index and filters.
    let needed = 2 * segment_size + memtable_size / 4 * 5;
    if chosen > 0 { chosen } else { (total / KEEP_PART).min(KEEP_MAX).max(needed) }
}

/// Gives the ballast up before a start for which there may be no room.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn make_room(disk: &dyn Disk, dir: &Path, keep: impl Fn(u64) -> u64) -> Result<()> {
    let (space, path) = (disk.space(dir)?, dir.join(BALLAST));
    if space.free < keep(space.total) && disk.exists(&path)? {
        tracing::warn!(free = space.free, "the disk is nearly full: the ballast is given up for the start");
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
    /// Kept free, and how much more must be free before writing goes on.
    keep: u64,
    margin: u64,
    ballast: Ballast,
    ballast_len: u64,
    has_failed: bool,
}

impl SpaceAgent {
    /// An agent that has looked once. `keep` says how much is kept free on a volume of so many bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keep: impl Fn(u64) -> u64,
        segment_size: u64,
        control: Control,
        stop: Stop,
    ) -> Result<SpaceAgent> {
        let total = disk.space(dir)?.total;
        // A simulated disk has no end.
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

    /// What it knows, for other agents.
    pub(super) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            for _ in 0..TURNS {
                if self.stop.is_stopped() {
                    return;
                }
                std::thread::sleep(TURN);
            }
            if let Some(free) = self.look() {
                self.tend(free);
            }
        }
    }

    /// Asks how much is free, and says so.
    fn look(&mut self) -> Option<u64> {
        let free = match self.disk.space(&self.dir) {
            Ok(space) => space.free,
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(%error, "it is not known how much of the disk is free");
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
                %store, free, kept,
                "NoSpace: the disk is nearly full, so no records are taken in until there is room; reads go on. Free some of it, add retention rules, or choose a smaller --space-min"
            ),
            (true, false) => tracing::warn!(%store, free, kept, "there is room on the disk again: records are taken in"),
            _ => {}
        }
        Some(free)
    }

    /// Gives the ballast up when it is wanted, and makes it again when there is room for it.
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
                tracing::warn!(bytes = self.ballast_len, "the ballast is given up");
                self.disk.remove(&path).map(|()| Ballast::Absent(later()))
            }
        };
        self.ballast = next.unwrap_or_else(|error| {
            tracing::warn!(%error, "there is no ballast for now");
            if let Err(error) = self.disk.remove(&path) {
                tracing::debug!(%error, "and none to be removed");
            }
            Ballast::Absent(later())
        });
    }

    /// Some more zeros, durably: blocks that are merely promised may not be there when they are needed.
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
    fn what_is_kept_free_fits_the_volume_and_is_never_less_than_a_filing_needs() {
        const MIB: u64 = 1 << 20;
        let automatic = |total| keep_free(0, total, 64 * MIB, 256 * MIB);
        assert_eq!(automatic(1 << 40), 1 << 30);
        assert_eq!(automatic(16 << 30), (16 << 30) / 20);
        assert_eq!(automatic(1 << 30), 448 * MIB, "two segments and a filing");
        assert_eq!(keep_free(0, 256 * MIB, MIB, 16 * MIB), 22 * MIB);
        assert_eq!(keep_free(5 * MIB, 1 << 40, 64 * MIB, 256 * MIB), 5 * MIB, "whoever chooses, chooses");
    }
}
