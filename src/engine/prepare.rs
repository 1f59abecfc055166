//! Owns: the prepare agent: it makes log segments and MemTables before they are needed, because both take tens of
//! milliseconds. Recycled segments are used first.
//!
//! What must hold: the agent holds no more than it was asked for: one spare segment in the queue, one in its hand, and one
//! MemTable on request. A store with hardly any records and no publisher has no spare segment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::memtables::Maker;
use super::space::Room;
use tapestore::agent::Stop;
use tapestore::disk::{Disk, DiskFile};
use tapestore::error::Result;
use tapestore::memtable::Writer;
use tapestore::shm::control::{Control, SLOTS_MAX};
use tapestore::wal::{Spare, prepare};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Pause after each MiB of a segment that is made ahead. With 64 MiB written at once and then synced (75 ms), a write and
/// sync of the log beside it took 47 ms at p99 (1,000 a second, ext4 on a virtual disk); with a sync and this pause after
/// each MiB (230 ms), 4 ms; with the sync alone, 15 ms.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest wait for the queue, and interval between checks of the stop flag.
const TURN: Duration = Duration::from_millis(100);
/// A log that is shorter than this part of its first segment has no spare segments before a publisher attaches: an empty store
/// takes one segment of disk, not three.
const SMALL_LOG_PART: u64 = 64;
/// Interval between looks at a store without spare segments.
const SMALL_LOG_TURN: Duration = Duration::from_millis(20);

/// The prepare agent.
pub(super) struct PrepareAgent {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    /// Says how long the log is.
    pub(super) control: Control,
    pub(super) segment_size: u64,
    pub(super) next: u64,
    pub(super) spares: Sender<Spare>,
    /// Recycled segments of the log.
    pub(super) recycled: Receiver<Spare>,
    pub(super) maker: Maker,
    pub(super) requests: Receiver<u64>,
    pub(super) tables: Sender<Result<Writer>>,
    pub(super) stop: Stop,
    pub(super) room: Arc<Room>,
    /// Whether the current series of failures to make a segment has been logged.
    pub(super) is_failing: bool,
}

impl PrepareAgent {
    /// Runs until it is stopped.
    pub(super) fn run(mut self) {
        let mut hand = None;
        while !self.stop.is_stopped() {
            if !self.wants_segments() {
                self.wait(SMALL_LOG_TURN);
                continue;
            }
            if hand.is_none() {
                hand = self.segment();
            }
            match hand.take() {
                Some(spare) => hand = self.offer(spare),
                None => self.wait(RETRY),
            }
        }
    }

    /// Whether records are to come, as far as anyone knows.
    fn wants_segments(&self) -> bool {
        self.control.appended_position().0 >= self.segment_size / SMALL_LOG_PART
            || (0..SLOTS_MAX).any(|slot| self.control.slot(slot).holder().is_some())
    }

    fn segment(&mut self) -> Option<Spare> {
        if let Ok(spare) = self.recycled.try_recv() {
            self.room.segment(None);
            return Some(spare);
        }
        if self.room.is_low() {
            // What is left of the disk is for flushes.
            return None;
        }
        self.next += 1;
        // While nobody waits for this segment or for a MemTable, the log's syncs go first: a sync waits for all that the disk
        // was given before.
        let mut pause = |file: &dyn DiskFile| {
            if !self.spares.is_empty() && self.requests.is_empty() && !self.stop.is_stopped() {
                file.sync()?;
                std::thread::sleep(PAUSE);
            }
            Ok(())
        };
        let made = prepare(self.disk.as_ref(), &self.dir, self.next, self.segment_size, &mut pause);
        self.room.segment(made.as_ref().err());
        match made {
            Ok(spare) => {
                self.is_failing = false;
                Some(spare)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(
                        name: "wal.segment_not_prepared",
                        %error,
                        "cannot prepare a log segment; trying again every second. Publishers wait once the current one is \
                         full: check the store's disk, then run: tape status"
                    );
                }
                None
            }
        }
    }

    /// Offers `spare` for one turn; returns it if it was not taken.
    fn offer(&mut self, spare: Spare) -> Option<Spare> {
        let back = self.spares.try_send(spare).err().map(|e| e.into_inner());
        if back.is_some() {
            self.wait(TURN);
        }
        back
    }

    fn wait(&mut self, limit: Duration) {
        if let Ok(id) = self.requests.recv_timeout(limit) {
            self.table(id);
        }
    }

    fn table(&mut self, id: u64) {
        // A spilled table may use what the disk has beyond the space kept free, and no more.
        let made = self.maker.make(id, self.room.has(self.maker.len));
        if made.is_err() {
            // The table is requested again at once.
            std::thread::sleep(RETRY);
        }
        // One table is requested at a time, so there is room. The receiver is gone when storage stops.
        if self.tables.try_send(made).is_err() {
            tracing::debug!(name: "memtable.dropped", "storage has stopped; a MemTable that was made ahead is dropped");
        }
    }
}
