//! Owns: a simulated publisher: it registers instruments, attaches, sends from its ring, sends again after gaps and silence, and
//! resumes when storage is back. It is killed, and returns as another process.
//!
//! What must hold: it trusts every answer and remembers it: the number of each name, and the last acknowledged record. The
//! world is checked against that.

use std::collections::VecDeque;

use super::super::super::requests::{Attach, Request};
use super::super::*;
use super::live::{Live, SimBatch, SimQueue};
use super::world::Claims;
use tapestore::bus::attach::{Message as Reply, Mode};
use tapestore::lsn::{Durability, InstrumentId};
use tapestore::record::Name;
use tapestore::shm::control::{SlotState, SlotView};

/// Number of names that publishers register.
pub(super) const NAMES: u64 = 400;
/// Steps after which it gives up waiting for an answer: five seconds, as real publishers do.
pub(super) const PATIENCE: u64 = 1000;
/// Records in a ring.
const RING: usize = 600;
/// Steps of silence after which it sends again.
const SILENCE: u64 = 60;
/// Batches that fit in its queue.
const QUEUE: usize = 64;

pub(super) fn name(n: u64) -> Name {
    Name::new(format!("I{n}").as_bytes()).unwrap()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Not connected.
    Away,
    /// Waiting for the answer to its attach.
    Attaching,
    /// Attached in this slot, under this grant.
    Attached { slot: usize, grant: u64 },
}

#[derive(Clone, Debug)]
struct Sent {
    seq: u64,
    id: u64,
    words: Vec<u64>,
}

/// One publisher.
pub(super) struct Client {
    pub(super) publisher: u16,
    pub(super) incarnation: u32,
    pub(super) host: usize,
    phase: Phase,
    /// The host and the start of its storage that it is connected to.
    generation: u64,
    connection: u64,
    queue: SimQueue,
    epoch: Option<Epoch>,
    ring: VecDeque<Sent>,
    next_seq: u64,
    /// The next record to put into the queue.
    to_send: u64,
    acked: u64,
    last_news: u64,
    gap_count: u64,
    /// Its open requests, and since when they wait.
    asked: Vec<(Asked, u64)>,
    known: Vec<(u64, InstrumentId)>,
    pub(super) next_id: u64,
    /// The last reason why it had no session, and when.
    lately: (u64, String),
    /// Records that it publishes at once, at most.
    pub(super) burst: u64,
    /// Until when it rests.
    pub(super) rests_until: u64,
    /// When an earlier process of this publisher moved here from another host.
    pub(super) moved_at: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Attach,
    Symbols(Vec<u64>),
}

impl Client {
    pub(super) fn new(publisher: u16, host: usize) -> Client {
        Client {
            publisher,
            incarnation: 1,
            host,
            phase: Phase::Away,
            generation: 0,
            connection: 0,
            queue: SimQueue::default(),
            epoch: None,
            ring: VecDeque::new(),
            next_seq: 1,
            to_send: 1,
            acked: 0,
            last_news: 0,
            gap_count: 0,
            asked: Vec::new(),
            known: Vec::new(),
            next_id: 1,
            lately: (0, String::new()),
            burst: 6,
            rests_until: 0,
            moved_at: None,
        }
    }

    /// The connection on which it is attached, if it is.
    pub(super) fn attached(&self) -> Option<(u64, u64)> {
        matches!(self.phase, Phase::Attached { .. }).then_some((self.generation, self.connection))
    }

    pub(super) fn connection(&self) -> Option<(u64, u64)> {
        (self.phase != Phase::Away).then_some((self.generation, self.connection))
    }

    /// Describes its state.
    pub(super) fn stands(&self) -> String {
        let Client { phase, asked, epoch, rests_until, incarnation, lately, .. } = self;
        format!(
            "{phase:?}, open: {asked:?}, epoch {epoch:?}, rests until {rests_until}, process {incarnation}; lately: {lately:?}"
        )
    }

    /// Since when the oldest of its requests waits.
    pub(super) fn waits_since(&self) -> Option<u64> {
        self.asked.iter().map(|a| a.1).min()
    }

    /// Kills its process; another takes its place.
    pub(super) fn die(&mut self, host: usize, now: u64, rests: u64) {
        self.moved_at = (host != self.host).then_some(now).or(self.moved_at);
        self.incarnation += 1;
        self.host = host;
        (self.phase, self.epoch) = (Phase::Away, None);
        self.ring.clear();
        (self.next_seq, self.to_send, self.acked) = (1, 1, 0);
        self.asked.clear();
        self.known.clear();
        self.rests_until = now + rests;
    }

    /// Ends its connection on its own side; it will connect again.
    fn disconnect(&mut self) {
        self.phase = Phase::Away;
        self.asked.clear();
        self.queue = SimQueue::default();
    }

    /// Makes one step, on the storage of its host; `connections` counts connection numbers.
    pub(super) fn step(
        &mut self,
        live: &mut Live,
        generation: u64,
        now: u64,
        rng: &mut SimRng,
        connections: &mut u64,
        claims: &mut Claims,
    ) -> std::result::Result<(), String> {
        if now < self.rests_until {
            return Ok(());
        }
        if self.phase != Phase::Away && self.generation != generation {
            self.disconnect();
        }
        if self.waits_since().is_some_and(|since| now - since > PATIENCE) {
            claims.tally.up("impatience");
            self.lately = (now, "patience".to_owned());
            self.hang_up(live);
            self.rests_until = now + 10;
            return Ok(());
        }
        match self.phase.clone() {
            Phase::Away => self.attach(live, generation, now, connections),
            Phase::Attaching => {}
            Phase::Attached { slot, grant } => match live.control.slot(slot).view(grant) {
                Some(view) => self.go_on(view, live, now, rng, claims)?,
                None => self.hang_up(live),
            },
        }
        if self.phase != Phase::Away && rng.below(60) == 0 && !self.asked.iter().any(|a| matches!(a.0, Asked::Symbols(_))) {
            let names: Vec<u64> = (0..1 + rng.below(3)).map(|_| rng.below(NAMES)).collect();
            let request = Request::Symbols { connection: self.connection, names: names.iter().map(|n| name(*n)).collect() };
            live.request(request, None);
            self.asked.push((Asked::Symbols(names), now));
        }
        Ok(())
    }

    fn attach(&mut self, live: &mut Live, generation: u64, now: u64, connections: &mut u64) {
        *connections += 1;
        (self.connection, self.generation) = (*connections, generation);
        self.queue = SimQueue::default();
        let attach = Attach {
            connection: self.connection,
            publisher: PublisherId(self.publisher),
            pid: 0,
            mode: self.epoch.map_or(Mode::New, Mode::Resume),
            level: Durability::Quorum,
            incarnation: u32::from(self.publisher) << 20 | self.incarnation,
            grant: live.instance << 32 | *connections,
        };
        live.request(Request::Attach(attach), Some(self.queue.clone()));
        self.phase = Phase::Attaching;
        self.asked.push((Asked::Attach, now));
    }

    /// Closes its connection.
    pub(super) fn hang_up(&mut self, live: &mut Live) {
        live.request(Request::Gone { connection: self.connection }, None);
        self.disconnect();
    }

    /// Handles an answer.
    pub(super) fn answer(&mut self, answer: Reply, now: u64, claims: &mut Claims) -> std::result::Result<(), String> {
        match answer {
            Reply::Attached(grant) => {
                self.asked.retain(|a| a.0 != Asked::Attach);
                self.phase = Phase::Attached { slot: grant.slot, grant: grant.grant };
                claims.tally.up("attached");
                (self.last_news, self.gap_count) = (now, 0);
                if self.epoch == Some(grant.epoch) {
                    if grant.pub_seq.0 < self.acked || grant.pub_seq.0 >= self.next_seq {
                        return Err(format!(
                            "publisher {} has acknowledgements to {} of {}, but is to go on after {}",
                            self.publisher,
                            self.acked,
                            self.next_seq - 1,
                            grant.pub_seq
                        ));
                    }
                    self.to_send = grant.pub_seq.0 + 1;
                } else {
                    claims.epoch(self.publisher, grant.epoch, self.incarnation)?;
                    self.epoch = Some(grant.epoch);
                    self.ring.clear();
                    (self.next_seq, self.to_send, self.acked) = (1, 1, 0);
                }
            }
            Reply::Ids(ids) => {
                let Some(at) = self.asked.iter().position(|a| matches!(a.0, Asked::Symbols(_))) else { return Ok(()) };
                let (Asked::Symbols(names), _) = self.asked.remove(at) else { return Ok(()) };
                if ids.len() != names.len() {
                    return Err(format!("{} numbers for {} names", ids.len(), names.len()));
                }
                for (n, id) in names.into_iter().zip(ids) {
                    claims.name(n, id)?;
                    self.known.push((n, id));
                }
                claims.tally.up("symbols");
            }
            Reply::Fenced(_) => {
                self.asked.retain(|a| a.0 != Asked::Attach);
                self.fenced(now, claims)?;
            }
            Reply::Refused(reason) => {
                claims.tally.up("refusals");
                if reason.contains("publisher slots are in use") {
                    return Err(format!("publisher {}: {reason}", self.publisher));
                }
                self.disconnect();
                self.lately = (now, reason);
                self.rests_until = now + 20;
            }
            other => return Err(format!("an answer {other:?}")),
        }
        Ok(())
    }

    /// Handles a fenced session: no other process may be attached, unless an earlier one moved here from another host.
    fn fenced(&mut self, now: u64, claims: &mut Claims) -> std::result::Result<(), String> {
        claims.tally.up("fenced");
        self.lately = (now, "fenced".to_owned());
        if self.moved_at.is_none_or(|at| now - at > 2 * PATIENCE) {
            return Err(format!("publisher {} is fenced, but it is the only process of its number", self.publisher));
        }
        self.die(self.host, now, 5);
        Ok(())
    }

    fn go_on(
        &mut self,
        view: SlotView,
        live: &mut Live,
        now: u64,
        rng: &mut SimRng,
        claims: &mut Claims,
    ) -> std::result::Result<(), String> {
        if view.state == SlotState::Fenced {
            self.hang_up(live);
            return self.fenced(now, claims);
        }
        if view.state == SlotState::Refused {
            return Err(format!("publisher {} is refused", self.publisher));
        }
        let acked = view.reached(Durability::Quorum).0;
        if acked > self.acked {
            (self.acked, self.last_news) = (acked, now);
            while let Some(sent) = self.ring.pop_front_if(|s| s.seq <= acked) {
                claims.acked(self.publisher, self.epoch.unwrap_or_default(), sent.seq, sent.id);
            }
        }
        if view.gap_count != self.gap_count {
            self.gap_count = view.gap_count;
            self.to_send = view.gap_expected.0.clamp(self.acked + 1, self.next_seq);
        } else if self.acked + 1 < self.to_send && now - self.last_news > SILENCE {
            (self.to_send, self.last_news) = (self.acked + 1, now);
            claims.tally.up("sent again");
        }
        if !self.known.is_empty() && self.ring.len() < RING && rng.below(3) == 0 {
            for _ in 0..1 + rng.below(self.burst) {
                let (n, id) = self.known[rng.below(self.known.len() as u64) as usize];
                self.publish(n, id);
            }
        }
        self.send(rng);
        Ok(())
    }

    fn publish(&mut self, n: u64, instrument: InstrumentId) {
        let id = u64::from(self.publisher) << 48 | self.next_id;
        self.next_id += 1;
        let trade = Trade {
            trade_id: id,
            instrument,
            price: tapestore::record::Price(n as i64),
            size: tapestore::record::Size(u64::from(self.incarnation)),
            ..Trade::default()
        };
        self.ring.push_back(Sent { seq: self.next_seq, id, words: trade.words().to_vec() });
        self.next_seq += 1;
    }

    fn send(&mut self, rng: &mut SimRng) {
        let Some(epoch) = self.epoch else { return };
        while self.to_send < self.next_seq && self.queue.0.borrow().len() < QUEUE {
            let first = self.ring.front().map_or(self.next_seq, |s| s.seq);
            let from = (self.to_send.max(first) - first) as usize;
            let batch: Vec<&Sent> = self.ring.iter().skip(from).take(1 + rng.below(8) as usize).collect();
            let Some(one) = batch.first() else { return };
            let header = BatchHeader::new(PublisherId(self.publisher), epoch, PubSeq(one.seq), batch.len() as u32);
            self.to_send = one.seq + batch.len() as u64;
            let words = batch.iter().flat_map(|s| s.words.clone()).collect();
            self.queue.0.borrow_mut().push_back(SimBatch(header, words));
        }
    }
}

impl Claims {
    /// Checks that a name always gets the same number.
    fn name(&mut self, n: u64, id: InstrumentId) -> std::result::Result<(), String> {
        let before = *self.names.entry(n).or_insert(id);
        let other = self.ids.entry(id.0).or_insert(n);
        if before != id || *other != n {
            return Err(format!("name {n} has the numbers {id} and {before}; {id} belongs to name {other}"));
        }
        Ok(())
    }

    /// Checks that only one process writes in an epoch.
    fn epoch(&mut self, publisher: u16, epoch: Epoch, incarnation: u32) -> std::result::Result<(), String> {
        let before = *self.epochs.entry((publisher, epoch.0)).or_insert(incarnation);
        if before != incarnation {
            return Err(format!("processes {before} and {incarnation} of publisher {publisher} write in epoch {epoch}"));
        }
        Ok(())
    }

    fn acked(&mut self, publisher: u16, epoch: Epoch, seq: u64, id: u64) {
        self.acked.insert((publisher, epoch.0, seq), id);
        self.tally.up("acknowledged");
    }
}
