//! Owns: SSTables that were removed while other processes map them: how many bytes they keep, and when readers are asked to
//! release the snapshots that do.
//!
//! What must hold: readers do not fill the disk, which would stop ingest: when removed files keep more than `pinned-max`, or the
//! disk is nearly full, the oldest snapshots are asked for, until the rest fits. At most [`descriptors`] are held. A close
//! of a large file takes time, which no other agent waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::process::Resource;

use super::space::Room;
use tapestore::agent::Stop;
use tapestore::disk::Unlinked;
use tapestore::shm::control::{Control, Statistic};
use tapestore::time::{Clock, HostClock};

/// Most descriptors of removed files,
const FILES_MAX: usize = 1024;
/// and at most this part of those that the process may have.
const DESCRIPTORS_PART: u64 = 8;
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

/// What removed files keep: the agent that looks.
pub(super) struct Pinned {
    reported: Receiver<Removed>,
    /// In the order of their edits.
    files: VecDeque<Removed>,
    /// Most of them.
    files_max: usize,
    /// Bytes that may be kept.
    max: u64,
    control: Control,
    room: Arc<Room>,
    stop: Stop,
    /// Whether it was logged that the system does not say what is mapped.
    is_unknown: bool,
}

/// Bytes that removed files may keep on a volume of `total`: as `chosen`, or, if that is 0, a tenth of it.
pub fn pinned_max(chosen: u64, total: u64) -> u64 {
    if chosen > 0 { chosen } else { total / PART }
}

/// Most descriptors of removed files that a process that may open `limit` files keeps.
pub fn descriptors(limit: u64) -> u64 {
    (limit / DESCRIPTORS_PART).min(FILES_MAX as u64)
}

impl Pinned {
    /// Watches what is reported from now on; `max` bytes may be kept. `edit` is that of the manifest at the start.
    pub(super) fn new((max, edit): (u64, u64), control: Control, room: Arc<Room>, stop: Stop) -> (Pinned, Removals) {
        let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let files_max = usize::try_from(descriptors(limit) / 2).unwrap_or(1).max(1);
        let (report, reported) = bounded(files_max);
        // What earlier storage processes removed is not known any more. On a disk that is nearly full, whatever may keep it is asked
        // for; else what was asked for stays so. After a restore the store may have an earlier edit.
        let asked = if room.is_low() { edit } else { control.oldest_snapshot().min(edit) };
        control.set_oldest_snapshot(asked);
        let files = VecDeque::new();
        (Pinned { reported, files, files_max, max, control, room, stop, is_unknown: false }, Removals(report))
    }

    /// Looks once a second until it is stopped.
    pub(super) fn run(mut self) {
        while !self.stop.sleep(LOOK) {
            self.look(self.room.is_low());
        }
    }

    /// Looks which files are still mapped, and closes the others, which frees their bytes. If the rest keeps more than it may, or
    /// anything while the disk `is_low`, asks readers to release snapshots.
    fn look(&mut self, is_low: bool) {
        self.files.extend(self.reported.try_iter());
        let mut is_unknown = false;
        self.files.retain(|removed| {
            let held = removed.file.is_held();
            is_unknown |= held.is_none();
            held == Some(true)
        });
        if is_unknown && !std::mem::replace(&mut self.is_unknown, true) {
            tracing::warn!(
                name: "snapshots.not_known",
                "the system does not say which removed SSTables readers map (no leases on this file system, or files of another \
                 user): what they keep is not counted and not bounded"
            );
        }
        let dropped = self.files.len().saturating_sub(self.files_max);
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
        let (mut pinned, removals) = Pinned::new((1 << 30, 0), control.clone(), Arc::default(), Stop::default());
        removals.report(Removed { file: RealDisk.unlink(&path).unwrap().unwrap(), edit: 7 });
        let mut look = |is_low: bool| {
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
    fn a_start_keeps_what_was_asked_for_unless_the_store_has_an_earlier_edit() {
        let start = |before: u64, edit: u64| {
            let control = Control::private(1).unwrap();
            control.set_oldest_snapshot(before);
            Pinned::new((0, edit), control.clone(), Arc::default(), Stop::default());
            control.oldest_snapshot()
        };
        assert_eq!((start(7, 9), start(7, 3), start(0, 9)), (7, 3, 0));
    }

    #[test]
    fn removed_files_take_a_small_part_of_the_descriptors() {
        assert_eq!((descriptors(1024), descriptors(1_048_576)), (128, 1024));
    }

    #[test]
    fn a_tenth_of_the_volume_may_be_kept_unless_a_number_is_chosen() {
        assert_eq!((pinned_max(0, 1000), pinned_max(7, 1000)), (100, 7));
    }
}
