//! Owns: the moments of sampled frames, for whoever traces them: when each was sent, appended, visible, durable and committed here.
//!
//! What must hold: nothing waits for the receiver: where the queue is full a moment is dropped and counted. Every host of a cluster
//! samples the same frames, because a frame's index decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tapestore::lsn::Lsn;
use tapestore::time::{Clock, HostClock};
use tapestore::wal::Appended;

/// Moments that wait for the receiver.
const QUEUE: usize = 4096;

/// Something that happened, at a time of the monotonic clock, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A sampled frame is visible to readers.
    Visible(FrameTimes),
    /// All records up to `lsn` are durable on this host.
    Durable {
        /// The last of them.
        lsn: Lsn,
        /// When the sync began.
        began: u64,
        /// When it ended.
        ended: u64,
        /// Whether that is all: they are committed too, because there is no other host.
        is_alone: bool,
    },
    /// In a cluster: all records up to `lsn` are committed.
    Committed {
        /// The last of them.
        lsn: Lsn,
        /// When.
        at: u64,
    },
}

/// A frame with its times, ns of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameTimes {
    /// Its index in the log, the same on all hosts.
    pub index: u64,
    /// Its term.
    pub term: u32,
    /// Its first record.
    pub first: Lsn,
    /// Its last record.
    pub last: Lsn,
    /// Its bytes in the log.
    pub bytes: u64,
    /// Whether another host made it.
    pub is_of_leader: bool,
    /// When the first measured batch in it was sent; `None`: none of its batches was measured.
    pub sent: Option<u64>,
    /// When this host began to append it.
    pub began: u64,
    /// When it was in the log.
    pub appended: u64,
    /// When readers saw it.
    pub visible: u64,
}

/// Where the moments go.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<To>);

#[derive(Clone, Debug)]
struct To {
    one_in: u64,
    sender: Sender<Moment>,
    dropped: Arc<AtomicU64>,
}

impl Traces {
    /// None are sent.
    pub fn off() -> Traces {
        Traces(None)
    }

    /// Those of one frame in `one_in`, 1 for all; and who receives them.
    pub fn of(one_in: u64) -> (Traces, Receiver<Moment>) {
        let (sender, receiver) = bounded(QUEUE);
        (Traces(Some(To { one_in: one_in.max(1), sender, dropped: Arc::default() })), receiver)
    }

    /// Moments that were dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        // Orders nothing: a number for people.
        self.0.as_ref().map_or(0, |to| to.dropped.load(Ordering::Relaxed))
    }

    /// The time, if the frame `index` is sampled.
    #[inline]
    pub(super) fn begin(&self, index: u64) -> Option<u64> {
        let to = self.0.as_ref()?;
        // Frames in a row are spread: Fibonacci hashing.
        let place = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        place.is_multiple_of(to.one_in).then(|| HostClock.monotonic())
    }

    /// A sampled frame is visible now.
    pub(super) fn visible(&self, frame: &Appended, is_of_leader: bool, (sent, began, appended): (Option<u64>, u64, u64)) {
        let header = frame.header;
        self.send(|| {
            Moment::Visible(FrameTimes {
                index: header.index.0,
                term: header.term.0,
                first: header.first_lsn,
                last: frame.end.lsn,
                bytes: header.total_len(),
                is_of_leader,
                sent,
                began,
                appended,
                visible: HostClock.monotonic(),
            })
        });
    }

    /// A sync has ended.
    pub(super) fn durable(&self, lsn: Lsn, (began, ended): (u64, u64), is_alone: bool) {
        self.send(|| Moment::Durable { lsn, began, ended, is_alone });
    }

    /// Records up to `lsn` are committed now.
    pub(super) fn committed(&self, lsn: Lsn) {
        self.send(|| Moment::Committed { lsn, at: HostClock.monotonic() });
    }

    fn send(&self, moment: impl FnOnce() -> Moment) {
        let Some(to) = &self.0 else { return };
        if let Err(TrySendError::Full(_)) = to.sender.try_send(moment()) {
            to.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_in_a_hundred_is_sampled_and_a_full_queue_drops_and_counts() {
        let (traces, moments) = Traces::of(100);
        let count = (1..=100_000).filter(|index| traces.begin(*index).is_some()).count();
        assert!((900..1100).contains(&count), "{count}");
        assert_eq!((1..=100).filter(|index| Traces::of(1).0.begin(*index).is_some()).count(), 100);
        assert!(Traces::off().begin(1).is_none());
        for lsn in 0..QUEUE as u64 + 5 {
            traces.committed(Lsn(lsn));
        }
        assert_eq!((traces.dropped(), moments.len()), (5, QUEUE));
        drop(moments);
        traces.committed(Lsn(1));
        assert_eq!(traces.dropped(), 5, "nobody receives them any more");
    }
}
