//! Owns: ingest time, which each frame carries, and the watch over the host's clock, which detects a clock that is wrong or
//! was set.
//!
//! What must hold: while the clock is sound, ingest time does not fall. When the clock is set back, ingest time follows, so
//! that records accepted during a jump ahead do not date all that come after. Only LSNs give the order of arrival: nothing
//! may derive it from ingest time.

use std::path::Path;

use tapestore::disk::Disk;
use tapestore::error::Result;
use tapestore::record::INDEX_TIME_AHEAD_MAX_NS;
use tapestore::shm::control::{Control, Statistic};
use tapestore::time::{Clock, NANOS_PER_SECOND, Ts};
use tapestore::wal;

/// A clock that moves by more than this against the other was set. Ingest time waits for a clock set back by less.
const STEP_NS: u64 = NANOS_PER_SECOND;
/// Clocks read further apart than this are not compared.
const TOGETHER_NS: u64 = 10_000_000;

/// Ingest time, as frames carry it.
#[derive(Debug)]
pub(super) struct IngestTime {
    /// The latest that a frame of this log carries.
    latest: Ts,
}

impl IngestTime {
    /// For a log whose frames carry `latest` at most.
    pub(super) fn new(latest: Ts) -> IngestTime {
        IngestTime { latest }
    }

    /// Notes that a frame carries `ingest_ts`.
    pub(super) fn seen(&mut self, ingest_ts: Ts) {
        self.latest = self.latest.max(ingest_ts);
    }

    /// Returns the ingest time of the next frame, from the clock's `wall` and the previous frame's `before`; `stamps` are
    /// the times that its records carry.
    pub(super) fn next(&self, wall: Ts, before: Ts, mut stamps: impl Iterator<Item = Ts>) -> Ts {
        if wall >= before && wall >= self.latest {
            return wall;
        }
        let ahead = |of: Ts| of.0.saturating_sub(wall.0);
        if ahead(self.latest) > STEP_NS {
            // Either the clock was wrong when that frame was made, or it is wrong now. Records with times near that frame and
            // not near the clock show that it is wrong now: with the clock's time they would be sorted by it, and not by
            // their own times.
            let is_of_then = |stamp: Ts| {
                let limits = (INDEX_TIME_AHEAD_MAX_NS + 1)..=ahead(self.latest).saturating_add(INDEX_TIME_AHEAD_MAX_NS);
                limits.contains(&ahead(stamp))
            };
            if stamps.any(is_of_then) {
                return self.latest;
            }
        }
        if ahead(before) > STEP_NS { wall } else { wall.max(before) }
    }
}

/// Returns when the store in `dir` was last written to, by its files; for a store that does not exist, by the directory
/// around it.
///
/// # Errors
/// [`tapestore::error::Error::Io`] if the file's times cannot be read.
pub(super) fn last_written(disk: &dyn Disk, dir: &Path) -> Result<Option<Ts>> {
    let meta = dir.join(wal::meta::NAME);
    if disk.exists(&meta)? {
        return disk.modified(&meta);
    }
    match dir.parent().filter(|d| !d.as_os_str().is_empty()) {
        Some(around) if disk.exists(around)? => disk.modified(around),
        _ => Ok(None),
    }
}

/// Logs and counts that the clock is behind the last record, accepted at `last`, or behind the store's files.
pub(super) fn check_start(clock: &dyn Clock, last: Ts, written: Option<Ts>, control: &Control) {
    let wall = clock.wall();
    let latest = last.max(written.unwrap_or(Ts(0)));
    let behind = latest.0.saturating_sub(wall.0);
    if behind <= STEP_NS {
        return;
    }
    found(control, 0u64.wrapping_sub(behind).cast_signed());
    let files = written.map_or_else(String::new, |ts| ts.to_string());
    tracing::error!(
        name: "clock.behind_store",
        clock = %wall, last_record = %last, files, seconds = behind / NANOS_PER_SECOND,
        "the host's clock is behind the store: it was ahead when the store was written, or it is wrong now. Records get the \
         clock's time; if that is wrong, set the clock (timedatectl), and ingest time follows"
    );
}

fn found(control: &Control, step: i64) {
    control.add(Statistic::ClockSteps, 1);
    control.set_statistic(Statistic::ClockStep, step.cast_unsigned());
}

/// Detects that the wall clock was set: it has moved against the monotonic one.
#[derive(Debug)]
pub(super) struct Watch {
    /// How far the wall clock was ahead of the monotonic one, modulo 2^64.
    ahead: u64,
}

impl Watch {
    /// Begins to watch now.
    pub(super) fn new(clock: &dyn Clock) -> Watch {
        Watch { ahead: clock.wall().0.wrapping_sub(clock.monotonic()) }
    }

    /// Compares the clocks; logs and counts a step.
    pub(super) fn look(&mut self, clock: &dyn Clock, control: &Control) {
        let (before, wall, after) = (clock.monotonic(), clock.wall(), clock.monotonic());
        if after.saturating_sub(before) > TOGETHER_NS {
            return;
        }
        let ahead = wall.0.wrapping_sub(before);
        let step = ahead.wrapping_sub(self.ahead).cast_signed();
        self.ahead = ahead;
        if step.unsigned_abs() > STEP_NS {
            found(control, step);
            let (seconds, way) = (step.unsigned_abs() / NANOS_PER_SECOND, if step < 0 { "back" } else { "ahead" });
            tracing::warn!(
                name: "clock.set", seconds, way, now = %wall,
                "the host's clock was set, or the host was suspended: ingest time follows"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400 * NANOS_PER_SECOND;
    const NOW: u64 = 20_000 * DAY;

    fn next(time: &IngestTime, wall: u64, before: u64, stamps: &[u64]) -> u64 {
        time.next(Ts(wall), Ts(before), stamps.iter().copied().map(Ts)).0
    }

    #[test]
    fn ingest_time_waits_for_a_clock_slightly_behind_and_follows_one_set_back() {
        let time = IngestTime::new(Ts(NOW));
        assert_eq!(next(&time, NOW + 5, NOW, &[]), NOW + 5);
        assert_eq!(next(&time, NOW - STEP_NS, NOW, &[]), NOW, "ingest time waits");
        assert_eq!(next(&time, NOW - STEP_NS - 1, NOW, &[]), NOW - STEP_NS - 1, "the clock was set back");
        // A jump ahead of ten years is over; the previous frame was made during it, or after.
        let jumped = IngestTime::new(Ts(NOW + 3650 * DAY));
        assert_eq!(next(&jumped, NOW, NOW + 3650 * DAY, &[]), NOW);
        assert_eq!(next(&jumped, NOW + 1, NOW, &[NOW, u64::MAX]), NOW + 1);
        assert_eq!(next(&jumped, NOW - 5, NOW, &[]), NOW, "and is monotone again");
    }

    #[test]
    fn records_stamped_as_of_the_last_frame_show_that_the_clock_is_behind() {
        let time = IngestTime::new(Ts(NOW));
        let clock = NOW - 10 * DAY;
        assert_eq!(next(&time, clock, NOW, &[u64::MAX, NOW - 1]), NOW, "records stay sorted by their own times");
        assert_eq!(next(&time, clock, NOW, &[clock + DAY]), clock, "a record sorted by its own time in any case shows nothing");
        assert_eq!(next(&time, clock, NOW, &[NOW + 5]), NOW, "time has passed since");
        assert_eq!(next(&time, clock, NOW, &[NOW + DAY + 1, u64::MAX]), clock, "nor does an impossible time");
    }
}
