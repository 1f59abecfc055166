//! Owns: ingest time, and the watch over the host's clock: what a frame says of when it was made, and how a clock that is
//! wrong, or was, is noticed.
//!
//! What must hold: while the clock is sound, ingest time does not fall; when the clock was set back it follows, so that
//! what was taken in during a jump ahead does not date all that comes after it. LSNs alone are the order of what came:
//! nothing may take it from ingest time.

use std::path::Path;

use tapestore::disk::Disk;
use tapestore::error::Result;
use tapestore::record::INDEX_TIME_AHEAD_MAX_NS;
use tapestore::shm::control::{Control, Statistic};
use tapestore::time::{Clock, NANOS_PER_SECOND, Ts};
use tapestore::wal;

/// A clock that has moved by more than this against what it moved before was set. A clock that is set back by less is
/// waited for.
const STEP_NS: u64 = NANOS_PER_SECOND;
/// Clocks that were not read together within this say nothing of each other.
const TOGETHER_NS: u64 = 10_000_000;

/// What frames say of when they were made.
#[derive(Debug)]
pub(super) struct IngestTime {
    /// The latest that a frame of this log has said.
    latest: Ts,
}

impl IngestTime {
    /// Of a log whose frames have said `latest` at the latest.
    pub(super) fn new(latest: Ts) -> IngestTime {
        IngestTime { latest }
    }

    /// A frame says `ingest_ts`.
    pub(super) fn seen(&mut self, ingest_ts: Ts) {
        self.latest = self.latest.max(ingest_ts);
    }

    /// What the next frame says, when the clock says `wall` and the frame before it said `before`; `stamps` are times that
    /// its records give themselves.
    pub(super) fn next(&self, wall: Ts, before: Ts, mut stamps: impl Iterator<Item = Ts>) -> Ts {
        if wall >= before && wall >= self.latest {
            return wall;
        }
        let ahead = |of: Ts| of.0.saturating_sub(wall.0);
        if ahead(self.latest) > STEP_NS {
            // Either the clock was wrong when that was said, or it is now. Records with times that are of then and not of now
            // say that it is now: dated by the clock they would be sorted by it, and not by their own times.
            let says_so = |stamp: Ts| {
                let limits = (INDEX_TIME_AHEAD_MAX_NS + 1)..=ahead(self.latest).saturating_add(INDEX_TIME_AHEAD_MAX_NS);
                limits.contains(&ahead(stamp))
            };
            if stamps.any(says_so) {
                return self.latest;
            }
        }
        if ahead(before) > STEP_NS { wall } else { wall.max(before) }
    }
}

/// When the store in `dir` was last written to, by its files; of a store that is not there, the directory around it.
///
/// # Errors
/// [`tapestore::error::Error::Io`].
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

/// Says and counts that the clock is behind the last record, taken in at `last`, or behind the store's files.
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
        clock = %wall, last_record = %last, files, seconds = behind / NANOS_PER_SECOND,
        "the host's clock is behind the store: it was ahead when this was written, or it is wrong now. Records are taken in \
         at the time that it says; if that is wrong, set it (timedatectl), and ingest time follows"
    );
}

fn found(control: &Control, step: i64) {
    control.add(Statistic::ClockSteps, 1);
    control.set_statistic(Statistic::ClockStep, step.cast_unsigned());
}

/// Notices that the wall clock was set: it has moved against the monotonic one.
#[derive(Debug)]
pub(super) struct Watch {
    /// How far the wall clock was ahead of the monotonic one, modulo 2^64.
    ahead: u64,
}

impl Watch {
    /// A watch from now on.
    pub(super) fn new(clock: &dyn Clock) -> Watch {
        Watch { ahead: clock.wall().0.wrapping_sub(clock.monotonic()) }
    }

    /// Looks at the clocks; says and counts a step.
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
            tracing::warn!(seconds, way, now = %wall, "the host's clock was set, or the host slept: ingest time follows it");
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
    fn ingest_time_waits_for_a_clock_that_is_a_little_behind_and_follows_one_that_was_set_back() {
        let time = IngestTime::new(Ts(NOW));
        assert_eq!(next(&time, NOW + 5, NOW, &[]), NOW + 5);
        assert_eq!(next(&time, NOW - STEP_NS, NOW, &[]), NOW, "it is waited for");
        assert_eq!(next(&time, NOW - STEP_NS - 1, NOW, &[]), NOW - STEP_NS - 1, "it was set back");
        // A jump ahead of ten years is over; the frame before was made after it, or in it.
        let jumped = IngestTime::new(Ts(NOW + 3650 * DAY));
        assert_eq!(next(&jumped, NOW, NOW + 3650 * DAY, &[]), NOW);
        assert_eq!(next(&jumped, NOW + 1, NOW, &[NOW, u64::MAX]), NOW + 1);
        assert_eq!(next(&jumped, NOW - 5, NOW, &[]), NOW, "and is monotone again");
    }

    #[test]
    fn records_that_are_stamped_as_of_the_last_frame_say_that_it_is_the_clock_that_is_behind() {
        let time = IngestTime::new(Ts(NOW));
        let clock = NOW - 10 * DAY;
        assert_eq!(next(&time, clock, NOW, &[u64::MAX, NOW - 1]), NOW, "their own times stay what they are sorted by");
        assert_eq!(next(&time, clock, NOW, &[clock + DAY]), clock, "what is sorted by its own time in any case says nothing");
        assert_eq!(next(&time, clock, NOW, &[NOW + 5]), NOW, "time has passed since");
        assert_eq!(next(&time, clock, NOW, &[NOW + DAY + 1, u64::MAX]), clock, "nor does what cannot be the time");
    }
}
