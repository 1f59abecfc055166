//! Owns: the compaction agent: it runs merges on its own thread and hands the results to the flush agent, which owns the
//! manifest.
//!
//! What must hold: the thread that owns the log never waits for the disk here. The agent writes no faster than its rate,
//! gives way while publishers are under back-pressure, and stops within a fraction of a second.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::space::Room;
use crate::compaction::merge::{Job, Merged, Pace, run};
use tapestore::agent::Stop;
use tapestore::disk::Disk;
use tapestore::error::Result;
use tapestore::shm::control::{Control, Statistic};

/// Interval between checks of the stop flag.
const TURN: Duration = Duration::from_millis(20);
/// Longest pause for publishers under back-pressure, after each write.
const GIVE_WAY: Duration = Duration::from_millis(100);
/// Rate that is not used is lost after this long.
const CREDIT: Duration = Duration::from_secs(1);
/// Niceness: other threads come first when there are more threads than cores.
const NICE: i32 = 10;

/// Result of a merge, and how long it took.
pub(super) struct Outcome {
    pub(super) job: Job,
    pub(super) result: Result<Option<Merged>>,
    pub(super) took: Duration,
}

/// The compaction agent.
pub(super) struct CompactAgent {
    pub(super) disk: Arc<dyn Disk>,
    /// Directory of the SSTables.
    pub(super) dir: PathBuf,
    pub(super) jobs: Receiver<Job>,
    pub(super) done: Sender<Outcome>,
    /// Changed while it runs; only a number, so relaxed.
    pub(super) bytes_per_second: Arc<AtomicU64>,
    pub(super) control: Control,
    pub(super) room: Arc<Room>,
    pub(super) stop: Stop,
}

impl CompactAgent {
    /// Runs until it is stopped.
    pub(super) fn run(self) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(name: "compaction.priority_not_lowered", %error, "the compaction thread keeps its priority");
        }
        while !self.stop.is_stopped() {
            let job = match self.jobs.recv_timeout(TURN) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let began = Instant::now();
            let mut throttle = Throttle {
                stop: &self.stop,
                room: &self.room,
                control: &self.control,
                bytes_per_second: &self.bytes_per_second,
                due: began,
            };
            let result = run(self.disk.as_ref(), &self.dir, &job, &mut throttle);
            // The flush agent gives one job at a time, so there is room. It may have ended.
            if self.done.try_send(Outcome { job, result, took: began.elapsed() }).is_err() {
                tracing::debug!(name: "compaction.result_dropped", "the flush agent has ended; the result of a merge is dropped");
            }
        }
    }
}

/// Limits writing to a number of bytes a second.
struct Throttle<'a> {
    stop: &'a Stop,
    room: &'a Room,
    control: &'a Control,
    bytes_per_second: &'a AtomicU64,
    /// When the bytes written so far were due.
    due: Instant,
}

impl Throttle<'_> {
    fn wait(&self, until: Instant, go_on: impl Fn() -> bool) {
        while !self.stop.is_stopped() && go_on() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(TURN));
        }
    }
}

impl Pace for Throttle<'_> {
    fn written(&mut self, bytes: u64) -> bool {
        let now = Instant::now();
        let most = self.bytes_per_second.load(Ordering::Relaxed);
        if most > 0 {
            let earliest = now.checked_sub(CREDIT).unwrap_or(now);
            let takes = Duration::from_secs_f64(bytes as f64 / most as f64);
            self.due = self.due.max(earliest) + takes;
            self.wait(self.due, || true);
        }
        // Publishers under back-pressure wait for the disk too.
        self.wait(now + GIVE_WAY, || self.control.statistic(Statistic::BackPressure) != 0);
        // What is left of the disk is for flushes.
        !self.stop.is_stopped() && !self.room.is_low()
    }
}
