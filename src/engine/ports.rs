//! Owns: the queues of publishers' batches: a receiver per session, and those of publishers that wait to attach.
//!
//! What must hold: publishers are served round-robin with a quota, so that no busy one starves the rest. A batch that did not
//! fit in a frame comes before later ones. A receiver is given back when nothing of it is left to accept.

use std::collections::HashMap;

use super::host::Host;
use super::sessions::Taken;
use tapestore::bus::{Batch, BatchHeader, Receiver};
use tapestore::error::Result;

/// Most batches of one publisher in one turn.
const QUOTA: usize = 64;

/// Batches that an ended publisher has left in its queue are dropped after this long without being accepted: its slot is
/// needed, and nobody waits for them.
const LEFT_NS: u64 = 5_000_000_000;

/// The queue of one publisher's batches: the bus, or a simulated one.
pub(super) trait Queue {
    /// A batch.
    type Batch: Words;

    /// Takes the next batch, if there is one.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Bus`] if the queue can no longer be read.
    fn next(&mut self) -> Result<Option<Self::Batch>>;

    /// Whether a batch waits.
    fn has_batches(&self) -> bool;
}

/// A batch as it lies in its queue; its sender can still change it.
pub(super) trait Words {
    /// Its header.
    fn header(&self) -> BatchHeader;

    /// The records, unchecked.
    fn words(&self) -> &[u64];
}

impl Queue for Receiver {
    type Batch = Batch;

    #[inline]
    fn next(&mut self) -> Result<Option<Batch>> {
        self.receive()
    }

    fn has_batches(&self) -> bool {
        Receiver::has_batches(self)
    }
}

impl Words for Batch {
    #[inline]
    fn header(&self) -> BatchHeader {
        Batch::header(self)
    }

    #[inline]
    fn words(&self) -> &[u64] {
        Batch::words(self)
    }
}

struct Port<Q: Queue> {
    slot: usize,
    receiver: Q,
    /// A batch that was taken from the queue and did not fit in the frame.
    pending: Option<Q::Batch>,
    /// When the publisher ended; 0 before the first look at it.
    ending: Option<u64>,
    /// Whether the queue can no longer be read.
    has_failed: bool,
}

/// The receivers.
pub(super) struct Ports<Q: Queue = Receiver> {
    ports: Vec<Port<Q>>,
    /// Receivers of publishers that wait to attach, by connection.
    waiting: HashMap<u64, Q>,
    /// Slots of attached publishers, by connection.
    slots: HashMap<u64, usize>,
    /// The port that was served first in the last turn.
    first: usize,
    /// Whether any publisher has ended.
    any_ends: bool,
}

impl<Q: Queue> Ports<Q> {
    /// No publisher.
    pub(super) fn new() -> Ports<Q> {
        Ports { ports: Vec::new(), waiting: HashMap::new(), slots: HashMap::new(), first: 0, any_ends: false }
    }

    /// Adds the receiver of a publisher that waits to attach on `connection`.
    pub(super) fn add(&mut self, connection: u64, receiver: Q) {
        self.waiting.insert(connection, receiver);
    }

    /// Attaches the publisher on `connection` to `slot`.
    pub(super) fn attach(&mut self, connection: u64, slot: usize) {
        let Some(receiver) = self.waiting.remove(&connection) else { return };
        self.slots.insert(connection, slot);
        self.ports.push(Port { slot, receiver, pending: None, ending: None, has_failed: false });
    }

    /// Notes that the publisher in `slot` has ended.
    pub(super) fn end(&mut self, slot: usize) {
        for port in self.ports.iter_mut().filter(|p| p.slot == slot) {
            port.ending = port.ending.or(Some(0));
            self.any_ends = true;
        }
    }

    /// Removes and returns the receiver of `connection`.
    pub(super) fn remove(&mut self, connection: u64) -> Option<Q> {
        if let Some(receiver) = self.waiting.remove(&connection) {
            return Some(receiver);
        }
        let slot = self.slots.remove(&connection)?;
        let at = self.ports.iter().position(|p| p.slot == slot)?;
        Some(self.ports.remove(at).receiver)
    }

    /// Whether a batch waits.
    pub(super) fn has_batches(&self) -> bool {
        self.ports.iter().any(|p| p.receiver.has_batches())
    }

    /// Offers batches to `host`, starting with another publisher in each turn. Returns whether there was one.
    pub(super) fn drain(&mut self, host: &mut Host, now: u64) -> bool {
        let count = self.ports.len();
        if count == 0 || !host.accepts() {
            return false;
        }
        self.first = (self.first + 1) % count;
        let mut took = false;
        for i in 0..count {
            let Some(port) = self.ports.get_mut((self.first + i) % count) else { continue };
            for _ in 0..QUOTA {
                if !host.wants(port.slot, now) {
                    break;
                }
                let Some(batch) = port.next() else {
                    if port.has_failed {
                        host.has_failed(port.slot);
                        self.any_ends = true;
                    }
                    host.is_empty(port.slot);
                    break;
                };
                took = true;
                if host.batch(port.slot, batch.header(), batch.words(), now) == Taken::FrameFull {
                    port.pending = Some(batch);
                    return took;
                }
            }
        }
        took
    }

    /// Ends the sessions of publishers that have ended and have nothing left to accept.
    pub(super) fn drop_ended(&mut self, host: &mut Host, now: u64) {
        if !self.any_ends {
            return;
        }
        for since in self.ports.iter_mut().filter_map(|p| p.ending.as_mut()).filter(|since| **since == 0) {
            *since = now;
        }
        let is_left = |p: &Port<Q>| p.pending.is_some() || (!p.has_failed && p.receiver.has_batches());
        let is_over = |p: &Port<Q>| p.ending.is_some_and(|since| !is_left(p) || now.saturating_sub(since) > LEFT_NS);
        let over = self.ports.iter().filter(|p| is_over(p)).map(|p| p.slot).collect::<Vec<_>>();
        over.iter().for_each(|slot| host.detach(*slot));
        self.any_ends = self.ports.iter().any(|p| p.ending.is_some() && !over.contains(&p.slot));
    }
}

impl<Q: Queue> Port<Q> {
    fn next(&mut self) -> Option<Q::Batch> {
        if let Some(batch) = self.pending.take() {
            return Some(batch);
        }
        match self.receiver.next() {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(
                    name: "session.receive_failed", %error, slot = self.slot,
                    "cannot receive from a publisher; its session ends"
                );
                (self.ending, self.has_failed) = (self.ending.or(Some(0)), true);
                None
            }
        }
    }
}
