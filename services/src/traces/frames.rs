//! Owns: the spans of sampled frames: a trace a frame, the same on all hosts of a cluster.
//!
//! ```text
//! batch    from the send of the first measured batch of the frame, or the begin of its append, to its last span's end
//!   publish    sent to begin of append: on the bus, and in ingest's turn
//!   append     written to the log
//!   apply      in the MemTable: readers see it at the end
//!   sync       the sync that made it durable here
//!   replicate  appended to committed, in a cluster
//! follow   the same on each other host, a part of batch: append, apply, sync
//! ```
//!
//! The trace's id is the store's (its low 64 bits), then the frame's index, so that all hosts agree on it without a message.
//!
//! What must hold: frames that wait for their end are bounded; one that waits too long is sent as it is.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use opentelemetry::KeyValue;
use tapestore::shm::control::Control;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::traces::{FrameTimes, Moment};

use super::{Sender, Span};

/// Frames that wait for their end.
const PENDING: usize = 1024;
/// How long a frame waits for its end.
const WAITS: Duration = Duration::from_secs(10);
/// The span of the leader in each trace.
const ROOT: u64 = 1 << 63;

/// A frame that waits for its end.
struct Pending {
    frame: FrameTimes,
    /// Begin and end of the sync that made it durable.
    durable: Option<(u64, u64)>,
    committed: Option<u64>,
    since: Instant,
}

/// Makes spans of moments until storage ends.
pub fn run(moments: &Receiver<Moment>, control: &Control, to: &Sender) {
    let mut frames = Frames { store: control.store_id(), is_alone: false, pending: VecDeque::new() };
    loop {
        match moments.recv_timeout(WAITS) {
            Ok(moment) => frames.add(moment),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        frames.finish(to);
    }
}

struct Frames {
    store: u128,
    /// Whether what is durable here is committed, as of the newest sync.
    is_alone: bool,
    pending: VecDeque<Pending>,
}

impl Frames {
    fn add(&mut self, moment: Moment) {
        match moment {
            Moment::Visible(frame) => {
                let (durable, committed) = (None, None);
                self.pending.push_back(Pending { frame, durable, committed, since: Instant::now() });
            }
            Moment::Durable { lsn, began, ended, is_alone } => {
                self.is_alone = is_alone;
                for of in self.pending.iter_mut().filter(|of| of.frame.last <= lsn && of.durable.is_none()) {
                    of.durable = Some((began, ended));
                }
            }
            Moment::Committed { lsn, at } => {
                for of in self.pending.iter_mut().filter(|of| of.frame.last <= lsn && of.committed.is_none()) {
                    of.committed = Some(at);
                }
            }
        }
    }

    /// Sends the frames that are complete, that wait too long, or that are too many.
    fn finish(&mut self, to: &Sender) {
        while let Some(of) = self.pending.front() {
            let needs_commit = !self.is_alone && !of.frame.is_of_leader;
            let is_complete = of.durable.is_some() && (of.committed.is_some() || !needs_commit);
            if !is_complete && of.since.elapsed() < WAITS && self.pending.len() < PENDING {
                return;
            }
            if let Some(of) = self.pending.pop_front() {
                self.spans(&of).into_iter().for_each(|span| to.send(span));
            }
        }
    }

    fn spans(&self, of: &Pending) -> Vec<Span> {
        let frame = of.frame;
        let (monotonic, wall) = (HostClock.monotonic(), UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0));
        let time =
            |at: u64| -> SystemTime { wall.checked_sub(Duration::from_nanos(monotonic.saturating_sub(at))).unwrap_or(wall) };
        let trace = (self.store << 64) | u128::from(frame.index);
        let root = if frame.is_of_leader { fastrand::u64(1..ROOT) } else { ROOT };
        let span = |name: &str, began: u64, ended: u64| Span {
            trace,
            id: fastrand::u64(1..ROOT),
            parent: root,
            is_parent_remote: false,
            name: name.to_owned(),
            began: time(began),
            ended: time(ended),
            is_error: false,
            attributes: Vec::new(),
        };
        let mut spans = Vec::new();
        spans.extend(frame.sent.map(|sent| span("publish", sent, frame.began)));
        spans.push(span("append", frame.began, frame.appended));
        spans.push(span("apply", frame.appended, frame.visible));
        spans.extend(of.durable.map(|(began, ended)| span("sync", began, ended)));
        let committed = of.committed.filter(|_| !frame.is_of_leader);
        spans.extend(committed.map(|at| span("replicate", frame.appended, at)));
        let ended = [Some(frame.visible), of.durable.map(|(_, ended)| ended), committed].into_iter().flatten().max();
        let name = if frame.is_of_leader { "follow" } else { "batch" };
        let mut whole = span(name, frame.sent.unwrap_or(frame.began), ended.unwrap_or(frame.visible));
        whole.id = root;
        (whole.parent, whole.is_parent_remote) = if frame.is_of_leader { (ROOT, true) } else { (0, false) };
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        whole.attributes = vec![
            KeyValue::new("tapestore.frame", number(frame.index)),
            KeyValue::new("tapestore.term", i64::from(frame.term)),
            KeyValue::new("tapestore.first_lsn", number(frame.first.0)),
            KeyValue::new("tapestore.last_lsn", number(frame.last.0)),
            KeyValue::new("tapestore.bytes", number(frame.bytes)),
            KeyValue::new("tapestore.is_durable", of.durable.is_some()),
        ];
        spans.insert(0, whole);
        spans
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    use tapestore::lsn::Lsn;

    use super::*;

    fn frame(index: u64, is_of_leader: bool) -> FrameTimes {
        let now = HostClock.monotonic();
        FrameTimes {
            index,
            term: 3,
            first: Lsn(index * 10),
            last: Lsn(index * 10 + 9),
            bytes: 640,
            is_of_leader,
            sent: Some(now - 9000),
            began: now - 8000,
            appended: now - 7000,
            visible: now - 6000,
        }
    }

    /// The spans that `frames` sends now.
    fn finished(frames: &mut Frames, is_in_cluster: bool) -> Vec<Span> {
        let (to, spans) = sync_channel(PENDING * 8);
        frames.is_alone = !is_in_cluster;
        frames.finish(&Sender { to, dropped: Arc::default() });
        spans.try_iter().collect()
    }

    #[test]
    fn a_frame_is_sent_when_it_is_durable_and_in_a_cluster_when_it_is_committed() {
        let mut frames = Frames { store: 7, is_alone: false, pending: VecDeque::new() };
        frames.add(Moment::Visible(frame(1, false)));
        assert!(finished(&mut frames, false).is_empty());
        frames.add(Moment::Durable { lsn: Lsn(18), began: 1, ended: 2, is_alone: false });
        assert!(finished(&mut frames, false).is_empty(), "its last record is not durable");
        let (began, ended) = (HostClock.monotonic() - 5000, HostClock.monotonic() - 4000);
        frames.add(Moment::Durable { lsn: Lsn(19), began, ended, is_alone: false });
        assert!(finished(&mut frames, true).is_empty(), "it is not committed");
        let spans = finished(&mut frames, false);
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["batch", "publish", "append", "apply", "sync"]);
        assert!(spans.iter().all(|span| span.trace == (7 << 64) | 1 && span.ended >= span.began && span.id != 0));
        assert!(
            spans.iter().skip(1).all(|span| span.parent == ROOT && span.began >= spans[0].began && span.ended <= spans[0].ended)
        );
        frames.add(Moment::Visible(frame(2, false)));
        frames.add(Moment::Durable { lsn: Lsn(29), began, ended, is_alone: false });
        frames.add(Moment::Committed { lsn: Lsn(29), at: HostClock.monotonic() });
        assert_eq!(finished(&mut frames, true).last().unwrap().name, "replicate");
    }

    #[test]
    fn the_frame_of_a_leader_is_a_part_of_the_leaders_span_and_waits_for_no_commit() {
        let mut frames = Frames { store: 7, is_alone: false, pending: VecDeque::new() };
        frames.add(Moment::Visible(FrameTimes { sent: None, ..frame(5, true) }));
        frames.add(Moment::Durable { lsn: Lsn(59), began: 1, ended: HostClock.monotonic(), is_alone: false });
        let spans = finished(&mut frames, true);
        assert_eq!((spans[0].name.as_str(), spans[0].parent, spans[0].is_parent_remote), ("follow", ROOT, true));
        assert!(spans.iter().skip(1).all(|span| span.parent == spans[0].id));
    }

    #[test]
    fn frames_that_wait_are_bounded() {
        let mut frames = Frames { store: 7, is_alone: false, pending: VecDeque::new() };
        (0..PENDING as u64 + 5).for_each(|index| frames.add(Moment::Visible(frame(index, false))));
        assert!(!finished(&mut frames, false).is_empty());
        assert_eq!(frames.pending.len(), PENDING - 1);
    }
}
