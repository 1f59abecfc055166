//! Owns: the histograms of the control page: which there are, their buckets, and how they are read.
//!
//! ```text
//! 40 words of u64 each: 39 counts, one for each bucket, then the sum of all values
//! bucket n holds values above bound n - 1 and up to bound n; the last one, above the last bound
//! ```
//!
//! What must hold: a histogram has one writing thread, as a counter has. Numbers and bounds never change, because other processes read
//! them. A reader that sees some words of an observation and not others is off by that observation.

use serde::Serialize;

/// A histogram of the storage process, since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Histogram {
    /// From a publisher's send to the end of the log's append, ns. A publisher of this host measures one batch in sixteen; of a frame
    /// the first such batch counts.
    PublishToAppend = 0,
    /// From the append to the MemTable's rows being visible to readers, ns. Of the frames of those batches.
    AppendToVisible = 1,
    /// From the begin of the turn that appended the oldest frame that a sync covers to the return of that sync, ns.
    AppendToDurable = 2,
    /// In a cluster: from a record being durable on this host to it being committed, ns. One record at a time is measured.
    DurableToCommitted = 3,
    /// Duration of a sync of the log, ns.
    Sync = 4,
    /// Records of a frame that has records.
    FrameRecords = 5,
    /// Bytes of such a frame in the log.
    FrameBytes = 6,
}

/// What a histogram's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Time,
    /// Things that are counted.
    Count,
}

/// All histograms.
pub const HISTOGRAMS: [Histogram; 7] = [
    Histogram::PublishToAppend,
    Histogram::AppendToVisible,
    Histogram::AppendToDurable,
    Histogram::DurableToCommitted,
    Histogram::Sync,
    Histogram::FrameRecords,
    Histogram::FrameBytes,
];

/// Buckets of a histogram.
pub const BUCKETS: usize = 39;
/// Bytes of a histogram.
pub(super) const LEN: u64 = (BUCKETS as u64 + 1) * 8;
/// Upper bounds of times, ns: five for each power of ten, from 0.6 us to 15 s.
#[rustfmt::skip]
const TIMES: [u64; BUCKETS - 1] = [
    600,
    1_000, 1_500, 2_500, 4_000, 6_000,
    10_000, 15_000, 25_000, 40_000, 60_000,
    100_000, 150_000, 250_000, 400_000, 600_000,
    1_000_000, 1_500_000, 2_500_000, 4_000_000, 6_000_000,
    10_000_000, 15_000_000, 25_000_000, 40_000_000, 60_000_000,
    100_000_000, 150_000_000, 250_000_000, 400_000_000, 600_000_000,
    1_000_000_000, 1_500_000_000, 2_500_000_000, 4_000_000_000, 6_000_000_000,
    10_000_000_000, 15_000_000_000,
];
/// Upper bounds of counts: powers of two.
#[rustfmt::skip]
const COUNTS: [u64; BUCKETS - 1] = [
    1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7,
    1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15,
    1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22, 1 << 23,
    1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30, 1 << 31,
    1 << 32, 1 << 33, 1 << 34, 1 << 35, 1 << 36, 1 << 37,
];

impl Histogram {
    /// Name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Histogram::PublishToAppend => "publish_to_append",
            Histogram::AppendToVisible => "append_to_visible",
            Histogram::AppendToDurable => "append_to_durable",
            Histogram::DurableToCommitted => "durable_to_committed",
            Histogram::Sync => "sync",
            Histogram::FrameRecords => "frame_records",
            Histogram::FrameBytes => "frame_bytes",
        }
    }

    /// Its unit.
    pub fn unit(self) -> Unit {
        match self {
            Histogram::FrameRecords | Histogram::FrameBytes => Unit::Count,
            _ => Unit::Time,
        }
    }

    /// The upper bounds of its buckets but the last, which has none: ns, or counts.
    pub fn bounds(self) -> &'static [u64; BUCKETS - 1] {
        match self.unit() {
            Unit::Time => &TIMES,
            Unit::Count => &COUNTS,
        }
    }

    /// The bucket of `value`.
    #[inline]
    pub(super) fn bucket(self, value: u64) -> usize {
        match self.unit() {
            Unit::Time => TIMES.partition_point(|bound| *bound < value),
            Unit::Count => ((u64::BITS - value.saturating_sub(1).leading_zeros()) as usize).min(BUCKETS - 1),
        }
    }
}

/// A histogram as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Which.
    pub of: Histogram,
    /// The number of values in each bucket.
    pub counts: [u64; BUCKETS],
    /// The sum of all values.
    pub sum: u64,
}

impl Distribution {
    /// The number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The upper bound of the bucket in which the value of rank `quantile` (0 to 1) lies: of times that value or at most 1.7 times it
    /// (from 0.6 us on), of counts at most twice. `None` without values, or if it lies above the last bound.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let wanted = ((self.count() as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (count, bound) in self.counts.iter().zip(self.of.bounds()) {
            seen += count;
            if seen >= wanted {
                return Some(*bound);
            }
        }
        None
    }

    /// The mean; `None` without values.
    pub fn mean(&self) -> Option<u64> {
        self.sum.checked_div(self.count())
    }

    /// What was added since `before`, an earlier read of the same process.
    #[must_use]
    pub fn since(&self, before: &Distribution) -> Distribution {
        let mut counts = self.counts;
        counts.iter_mut().zip(&before.counts).for_each(|(now, before)| *now = now.saturating_sub(*before));
        Distribution { of: self.of, counts, sum: self.sum.saturating_sub(before.sum) }
    }

    /// The number of values, mean and quantiles, for people and programs.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            mean: self.mean(),
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
        }
    }
}

/// A histogram in a few numbers: ns, or counts. A quantile is the upper bound of its bucket; null: none, or above 15 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Values.
    pub count: u64,
    /// Mean.
    pub mean: Option<u64>,
    /// Half of the values are at most this.
    pub p50: Option<u64>,
    /// 90 % are.
    pub p90: Option<u64>,
    /// 99 % are.
    pub p99: Option<u64>,
    /// 99.9 % are.
    pub p999: Option<u64>,
}

/// The time between two looks at the monotonic clock, ns, of which a batch carries the first as [`stamp`] made it. `None` if it is
/// longer than a stamp has room for, or the clocks differ: other time namespaces.
pub fn since_stamp(stamp: u32, now: u64) -> Option<u64> {
    let steps = self::stamp(now).wrapping_sub(stamp);
    (steps <= u32::MAX / 2).then(|| u64::from(steps) << STAMP_SHIFT)
}

/// A time of the monotonic clock, ns, in 32 bits that come round each nine minutes, in steps of 128 ns; never 0, which means: none.
pub fn stamp(now: u64) -> u32 {
    ((now >> STAMP_SHIFT) as u32).max(1)
}

const STAMP_SHIFT: u32 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_and_a_value_is_in_the_bucket_whose_bound_is_the_first_not_below_it() {
        for which in HISTOGRAMS {
            let bounds = which.bounds();
            assert!(bounds.is_sorted_by(|a, b| a < b), "{which:?}");
            for (at, bound) in bounds.iter().enumerate() {
                assert_eq!((which.bucket(*bound), which.bucket(bound + 1)), (at, at + 1), "{which:?} {bound}");
            }
            assert_eq!((which.bucket(0), which.bucket(u64::MAX)), (0, BUCKETS - 1));
        }
        assert_eq!((TIMES[0], TIMES[1], TIMES[36], TIMES[37]), (600, 1_000, 10_000_000_000, 15_000_000_000));
    }

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket_and_there_is_none_of_no_values() {
        let mut some = Distribution { of: Histogram::Sync, counts: [0; BUCKETS], sum: 0 };
        assert_eq!((some.quantile(0.5), some.mean()), (None, None));
        for value in (1..=100u64).map(|n| n * 1_000) {
            some.counts[Histogram::Sync.bucket(value)] += 1;
            some.sum += value;
        }
        let of_half = some.quantile(0.5).unwrap();
        assert!((50_000..=100_000).contains(&of_half), "{of_half}");
        assert_eq!((some.mean(), some.count()), (Some(50_500), 100));
        assert_eq!(some.since(&some).count(), 0);
        some.counts[BUCKETS - 1] = 1_000;
        assert_eq!(some.quantile(0.5), None, "above the last bound");
    }

    #[test]
    fn a_stamp_has_times_up_to_minutes_also_over_its_end_and_none_that_cannot_be() {
        for start in [1 << 20, u64::from(u32::MAX) << STAMP_SHIFT, 77_777_777_777] {
            for passed in [0, 128, 1_600, 60_000_000_000, 270_000_000_000] {
                let found = since_stamp(stamp(start), start + passed).unwrap();
                assert!(found.abs_diff(passed) <= 256, "{start} {passed} {found}");
            }
            assert_eq!(since_stamp(stamp(start + 10_000), start), None, "it was sent later than now");
            assert_eq!(since_stamp(stamp(start), start + 300_000_000_000), None, "longer than it has room for");
        }
    }
}
