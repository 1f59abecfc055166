//! Owns: the prepare agent: it makes log segments and MemTables before they are needed, because both
//! take tens of milliseconds. Segments that the log does not need any more are used first.
//!
//! What must hold: it never holds more than it has been asked for: one spare segment waits in the
//! queue, one in its hand, and one MemTable on request.

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
use tapestore::wal::{Spare, prepare};

/// How long after a failure it tries again.
const RETRY: Duration = Duration::from_secs(1);
/// After each MiB of a segment that is made ahead. Beside one that is written at once and then synced, 64 MiB in 75 ms, a write
/// and sync took 47 ms at p99 (1,000 a second, ext4 on a virtual disk); beside one with a sync and this pause after each MiB,
/// 230 ms, it took 4 ms; with the sync alone, 15 ms.
const PAUSE: Duration = Duration::from_millis(2);
/// How often it looks whether it is to end.
const TURN: Duration = Duration::from_millis(100);

/// The prepare agent.
pub(super) struct PrepareAgent {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) segment_size: u64,
    pub(super) next: u64,
    pub(super) spares: Sender<Spare>,
    /// Segments that the log does not need any more.
    pub(super) recycled: Receiver<Spare>,
    pub(super) maker: Maker,
    pub(super) requests: Receiver<u64>,
    pub(super) tables: Sender<Result<Writer>>,
    pub(super) stop: Stop,
    pub(super) room: Arc<Room>,
    /// Whether it has been said that no segment can be made.
    pub(super) said: bool,
}

impl PrepareAgent {
    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        let mut hand = None;
        while !self.stop.is_stopped() {
            if hand.is_none() {
                hand = self.segment();
            }
            match hand.take() {
                Some(spare) => hand = self.offer(spare),
                None => self.wait(RETRY),
            }
        }
    }

    fn segment(&mut self) -> Option<Spare> {
        if let Ok(spare) = self.recycled.try_recv() {
            self.room.segment(None);
            return Some(spare);
        }
        if self.room.is_low() {
            // What is left is for filing.
            return None;
        }
        self.next += 1;
        // While nobody waits for it or for a MemTable, the log's syncs come first: they wait for what the disk was given before.
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
                self.said = false;
                Some(spare)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::error!(%error, "cannot prepare a log segment; trying again every second");
                }
                None
            }
        }
    }

    /// Offers `spare` for one turn; gives it back if it was not taken.
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
        // What the disk has left beyond what is kept free is for it, and no more.
        let made = self.maker.make(id, self.room.has(self.maker.len));
        if made.is_err() {
            // It is asked for again at once.
            std::thread::sleep(RETRY);
        }
        // One is asked for at a time, so there is room; nobody listens any more when storage stops.
        if self.tables.try_send(made).is_err() {
            tracing::debug!("a MemTable was made that nobody takes");
        }
    }
}
