//! Owns: SSTables that were removed while other processes map them: how many bytes they keep, and when readers are asked to
//! release the snapshots that do.
//!
//! What must hold: readers do not fill the disk, which would stop ingest: when removed files keep more than `pinned-max`, or the
//! disk is nearly full, the oldest snapshots are asked for, until the rest fits. At most [`FILES_MAX`] descriptors are held.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use tapestore::disk::Unlinked;
use tapestore::shm::control::{Control, Statistic};
use tapestore::time::{Clock, HostClock};

/// Removed files that are watched.
const FILES_MAX: usize = 1024;
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Part of a volume that removed files may keep by default.
const PART: u64 = 10;

/// A removed SSTable, and the edit of the manifest that removed it: snapshots of earlier edits may map it.
#[derive(Debug)]
pub(super) struct Removed {
    pub(super) file: Unlinked,
    pub(super) edit: u64,
}

/// Reports removed files.
#[derive(Clone, Debug)]
pub(super) struct Removals(Sender<Removed>);

impl Removals {
    /// Reports `removed`.
    pub(super) fn report(&self, removed: Removed) {
        match self.0.try_send(removed) {
            Ok(()) => {}
            Err(TrySendError::Full(removed) | TrySendError::Disconnected(removed)) => tracing::debug!(
                name: "snapshots.not_watched", bytes = removed.file.bytes(),
                "a removed SSTable is not watched: there are too many at once"
            ),
        }
    }
}

/// What removed files keep.
pub(super) struct Pinned {
    reported: Receiver<Removed>,
    /// In the order of their edits.
    files: VecDeque<Removed>,
    /// Bytes that may be kept.
    max: u64,
    control: Control,
    looks: Instant,
}

/// Bytes that removed files may keep on a volume of `total`: as `chosen`, or, if that is 0, a tenth of it.
pub fn pinned_max(chosen: u64, total: u64) -> u64 {
    if chosen > 0 { chosen } else { total / PART }
}

impl Pinned {
    /// Watches what is reported; `max` bytes may be kept.
    pub(super) fn new(max: u64, control: Control) -> (Pinned, Removals) {
        let (report, reported) = bounded(FILES_MAX);
        // What earlier storage processes removed is not known any more, and another edit may have the same number after a restore.
        control.set_oldest_snapshot(0);
        (Pinned { reported, files: VecDeque::new(), max, control, looks: Instant::now() }, Removals(report))
    }

    /// Looks which files are still mapped, once a second; if they keep more than they may, or anything while the disk `is_low`,
    /// asks readers to release snapshots.
    pub(super) fn look(&mut self, is_low: bool) {
        if self.looks.elapsed() < LOOK {
            return;
        }
        self.looks = Instant::now();
        self.files.extend(self.reported.try_iter());
        self.files.retain(|removed| removed.file.is_held());
        let dropped = self.files.len().saturating_sub(FILES_MAX);
        self.files.drain(..dropped);
        let kept = self.bytes();
        self.control.set_statistic(Statistic::PinnedBytes, kept);
        let may = if is_low { 0 } else { self.max };
        if kept <= may {
            self.control.set_statistic(Statistic::PinnedSince, 0);
            return;
        }
        if self.control.statistic(Statistic::PinnedSince) == 0 {
            self.control.set_statistic(Statistic::PinnedSince, HostClock.monotonic());
        }
        let oldest = oldest_to_keep(self.files.iter().map(|removed| (removed.edit, removed.file.bytes())), kept, may);
        if oldest > self.control.oldest_snapshot() {
            self.control.set_oldest_snapshot(oldest);
            let asked = self.control.statistic(Statistic::SnapshotsReleased);
            self.control.set_statistic(Statistic::SnapshotsReleased, asked + 1);
            tracing::warn!(
                name: "snapshots.release_asked", kept, may, is_low, oldest,
                "removed SSTables that readers still map keep more of the disk than they may: readers are asked to release their \
                 oldest snapshots. tape status names the processes"
            );
        }
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|removed| removed.file.bytes()).sum()
    }
}

/// The oldest edit whose snapshots can stay so that of `kept` bytes, those of `files` by edit, `may` are left: a file is mapped by
/// snapshots of edits before the one that removed it.
fn oldest_to_keep(files: impl Iterator<Item = (u64, u64)>, kept: u64, may: u64) -> u64 {
    let (mut left, mut oldest) = (kept, 0);
    for (edit, bytes) in files {
        // Files of one edit go together.
        if left <= may && edit > oldest {
            break;
        }
        left = left.saturating_sub(bytes);
        oldest = edit;
    }
    oldest
}

#[cfg(test)]
mod tests {
    use tapestore::disk::{Disk, Open, RealDisk};

    use super::*;

    #[test]
    fn the_oldest_snapshots_are_asked_for_until_the_rest_fits() {
        let files = [(3, 10), (5, 20), (5, 5), (9, 40)];
        let asked = |may| oldest_to_keep(files.into_iter(), 75, may);
        assert_eq!([asked(74), asked(65), asked(64), asked(40), asked(39), asked(0)], [3, 3, 5, 5, 9, 9]);
        assert_eq!(oldest_to_keep(std::iter::empty(), 0, 0), 0);
    }

    #[test]
    fn every_removed_file_that_is_mapped_is_asked_for_while_the_disk_is_nearly_full_and_none_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        RealDisk.open(&path, Open::CreateNew).unwrap().write_at(&[7; 8192], 0).unwrap();
        let map = RealDisk.map(&path).unwrap();
        let control = Control::private(1).unwrap();
        let (mut pinned, removals) = Pinned::new(1 << 30, control.clone());
        removals.report(Removed { file: RealDisk.unlink(&path).unwrap().unwrap(), edit: 7 });
        let mut look = |is_low: bool| {
            pinned.looks = Instant::now().checked_sub(LOOK).unwrap();
            pinned.look(is_low);
            (control.statistic(Statistic::PinnedBytes), control.oldest_snapshot(), control.statistic(Statistic::PinnedSince) > 0)
        };
        assert_eq!(look(false), (8192, 0, false));
        assert_eq!(look(true), (8192, 7, true));
        drop(map);
        assert_eq!(look(true), (0, 7, false));
        assert_eq!(control.statistic(Statistic::SnapshotsReleased), 1);
    }

    #[test]
    fn a_tenth_of_the_volume_may_be_kept_unless_a_number_is_chosen() {
        assert_eq!((pinned_max(0, 1000), pinned_max(7, 1000)), (100, 7));
    }
}
