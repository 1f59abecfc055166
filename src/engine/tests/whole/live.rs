//! Owns: one running storage process of a simulated host: the real state machine, recovery, log and files on a simulated disk;
//! the sync, flush and prepare agents in virtual time.
//!
//! What must hold: the agents keep the order that they keep on threads: an acknowledgement or an answer leaves after the sync
//! that covers it; a checkpoint is made after its records are durable and may be checkpointed.

use std::collections::VecDeque;
use std::path::Path;

use crossbeam_channel::{Sender, bounded};

use super::super::super::effect::{Effect, Moment};
use super::super::super::flush::{FlushItem, FlushNotice};
use super::super::super::host::{Host, HostParts};
use super::super::super::log::LogParts;
use super::super::super::memtables::Sealed;
use super::super::super::options::{Options, World};
use super::super::super::ports::{Ports, Queue, Words};
use super::super::super::requests::{DurabilityPolicy, Request};
use super::super::super::space::Room;
use super::super::super::storage::identity;
use super::super::super::sync::{Answer, SyncItem};
use super::super::super::watermarks::Watermarks;
use super::super::super::{Ended, Recovered, recover};
use super::super::*;
use crate::consensus::message::{Message, Role, State};
use tapestore::agent::Stop;
use tapestore::bus::attach::Message as Reply;
use tapestore::lsn::{Durability, NodeId};
use tapestore::shm::control::Control;
use tapestore::wal::{DurableMark, Spare, Spares};

/// Nanoseconds in a step.
pub(super) const STEP_NS: u64 = 5_000_000;

/// Batches in the queue of a simulated publisher.
#[derive(Clone, Debug, Default)]
pub(super) struct SimQueue(pub(super) std::rc::Rc<std::cell::RefCell<VecDeque<SimBatch>>>);

#[derive(Clone, Debug)]
pub(super) struct SimBatch(pub(super) BatchHeader, pub(super) Vec<u64>);

impl Queue for SimQueue {
    type Batch = SimBatch;

    fn next(&mut self) -> Result<Option<SimBatch>> {
        Ok(self.0.borrow_mut().pop_front())
    }

    fn has_batches(&self) -> bool {
        !self.0.borrow().is_empty()
    }
}

impl Words for SimBatch {
    fn header(&self) -> BatchHeader {
        self.0
    }

    fn words(&self) -> &[u64] {
        &self.1
    }
}

/// Items that the sync agent has received and not processed.
#[derive(Default)]
struct Pending {
    end: Option<DurableMark>,
    is_urgent: bool,
    since: u64,
    acks: Vec<(usize, PubSeq, Lsn)>,
    answers: Vec<(u64, Reply)>,
    freed: Vec<usize>,
}

/// Durations of a host's work, in steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// A sync takes up to so many.
    pub(super) sync: u64,
    /// A flush begins up to so many after it may begin.
    pub(super) flush: u64,
    /// A log segment is prepared in up to so many.
    pub(super) segment: u64,
}

/// A running storage process.
pub(super) struct Live {
    pub(super) host: Host,
    pub(super) ports: Ports<SimQueue>,
    pub(super) control: Control,
    watermarks: Arc<Watermarks>,
    syncer: wal::Syncer,
    items: VecDeque<SyncItem>,
    pending: Pending,
    /// When the sync in flight returns.
    syncing: Option<u64>,
    flusher: Flusher,
    sealed: VecDeque<Box<Sealed>>,
    flush_at: Option<u64>,
    spare_in: Sender<Spare>,
    spare_at: Option<u64>,
    spares: u64,
    clock: SimClock,
    disk: SimDisk,
    store: PathBuf,
    pub(super) run_dir: RunDir,
    pub(super) instance: u64,
    /// Answers to publishers.
    pub(super) answers: Vec<(u64, Reply)>,
    /// Messages for the replication process.
    pub(super) outbox: Vec<Message>,
    /// The last published state.
    pub(super) state: Option<State>,
    /// Since when it has led without interruption.
    pub(super) numbers_since: Option<u64>,
    /// Number of flushes.
    pub(super) flushes: u64,
    /// The state for which its election timeout was drawn, and the timeout in ticks.
    patience: (Option<(u64, Role, Option<NodeId>)>, usize),
    freed: Vec<usize>,
    effects: Vec<Effect>,
    _lock: Box<dyn Send + Sync>,
}

impl Live {
    /// Starts storage on the store of `options`.
    pub(super) fn start(options: Options, disk: &SimDisk, clock: &SimClock, boot: u128, first_ticket: u64) -> Result<Live> {
        let world = World { disk: Arc::new(disk.clone()), clock: Arc::new(clock.clone()), store_id: 5, boot };
        let recovered = recover(options, &world)?;
        let Recovered { options, mut state, syncer, meta, control, flusher, sealed, node, started, run_dir, lock, .. } =
            recovered;
        let watermarks = Arc::new(Watermarks::new(syncer.durable().index.0, node.is_alone()));
        let identity = identity(&node, started.instance, meta.meta().segment_size, &options);
        let (spare_in, spare_out) = bounded(1);
        state.writer.set_spares(Spares::Ahead(spare_out));
        control.set_server(Some((1, meta.meta().term, control.started())));
        control.set_instance(started.instance);
        let host = Host::new(HostParts {
            log: LogParts {
                state,
                node,
                watermarks: watermarks.clone(),
                control: control.clone(),
                room: Arc::new(Room::default()),
                halted: Stop::default(),
                unsynced_max: options.unsynced_max,
                is_lossy: false,
            },
            options: options.cluster.clone(),
            identity,
            levels: DurabilityPolicy { least: Durability::None, is_lossy: false },
            instance: started.instance,
            may_lead: options.start_as_leader,
            first_ticket,
        });
        Ok(Live {
            host,
            ports: Ports::new(),
            control,
            watermarks,
            syncer,
            items: VecDeque::new(),
            pending: Pending::default(),
            syncing: None,
            flusher,
            sealed,
            flush_at: None,
            spare_in,
            spare_at: None,
            spares: 0,
            clock: clock.clone(),
            disk: disk.clone(),
            store: options.store.clone(),
            run_dir,
            instance: started.instance,
            answers: Vec::new(),
            outbox: Vec::new(),
            state: None,
            numbers_since: None,
            flushes: 0,
            patience: (None, 0),
            freed: Vec::new(),
            effects: Vec::new(),
            _lock: lock,
        })
    }

    pub(super) fn request(&mut self, request: Request, queue: Option<SimQueue>) {
        if let Some(queue) = queue {
            self.ports.add(request.connection(), queue);
        }
        self.host.request(request);
        self.carry_out();
    }

    pub(super) fn message(&mut self, link: u64, is_replication: bool, message: Message) -> Result<()> {
        self.host.message(link, is_replication, message, self.clock.wall())?;
        self.carry_out();
        Ok(())
    }

    /// Makes one step of all agents. Returns why it has ended, if it has.
    pub(super) fn step(&mut self, step: u64, rng: &mut SimRng, pace: Pace, stalls: bool) -> Result<Option<Ended>> {
        for slot in std::mem::take(&mut self.freed) {
            self.host.freed(slot);
        }
        let at = Moment { now: self.clock.monotonic(), wall: self.clock.wall() };
        for _ in 0..8 {
            self.wait_for_leader(rng);
            let mut worked = self.host.turn(at, self.items.len())?;
            self.carry_out();
            if let Some(ended) = self.host.ended() {
                return Ok(Some(ended));
            }
            worked |= self.ports.drain(&mut self.host, at.now);
            self.host.append(at)?;
            self.carry_out();
            self.ports.drop_ended(&mut self.host, at.now);
            self.carry_out();
            if !worked {
                break;
            }
        }
        self.host.notify_sync();
        self.carry_out();
        self.sync(step, rng, pace, stalls)?;
        self.flush(step, rng, pace)?;
        self.prepare(step, rng, pace)?;
        let numbers = self.host.node().leads().is_some();
        self.numbers_since = if numbers { self.numbers_since.or(Some(step)) } else { None };
        Ok(None)
    }

    /// Draws, from the seed, how long it waits for a leader; it draws again where raft does.
    fn wait_for_leader(&mut self, rng: &mut SimRng) {
        let state = self.host.node().state();
        let now = Some((state.term, state.role, state.leader));
        if self.patience.0 != now {
            self.patience = (now, 30 + rng.below(15) as usize);
        }
        if state.role != Role::Leader {
            self.host.node_mut().set_election_ticks(self.patience.1);
        }
    }

    /// The last frame that a checkpoint may cover.
    pub(super) fn may_be_checkpointed(&self) -> u64 {
        self.watermarks.committed()
    }

    /// Describes its state in the cluster.
    pub(super) fn stands(&self) -> String {
        let node = self.host.node();
        let members: Vec<_> = node.meta().members.iter().map(|s| (s.node.0, s.roles)).collect();
        format!("{:?}, members {members:?}, mute: {}, {:?}", node.state(), node.meta().is_mute(), node.waits())
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.host.swap_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Sync(item) => self.items.push_back(item),
                Effect::Flush(FlushItem::Sealed(sealed)) => self.sealed.push_back(sealed),
                Effect::Flush(FlushItem::Retired(table)) => self.flusher.unlink(table),
                Effect::Ring(_) | Effect::Replication(_) => {}
                Effect::Notify(message) => {
                    if let Message::State(state) = &message {
                        self.state = Some(*state);
                    }
                    self.outbox.push(message);
                }
                Effect::Say(link, message) => {
                    assert!(link < 3, "{message:?}");
                    if let Message::State(state) = &message {
                        self.state = Some(*state);
                    }
                }
                Effect::Attached { connection, slot } => self.ports.attach(connection, slot),
                Effect::Ending { slot } => self.ports.end(slot),
                Effect::Detached { connection } => drop(self.ports.remove(connection)),
            }
        }
        self.effects = effects;
    }

    fn sync(&mut self, step: u64, rng: &mut SimRng, pace: Pace, stalls: bool) -> Result<()> {
        if let Some(until) = self.syncing {
            if until > step || stalls {
                return Ok(());
            }
            self.syncing = None;
            self.synced()?;
        }
        while let Some(item) = self.items.pop_front() {
            match item {
                SyncItem::Opened(opened) => self.syncer.opened(opened),
                SyncItem::Appended { end, urgent, .. } => {
                    if self.pending.end.replace(end).is_none() {
                        self.pending.since = step;
                    }
                    self.pending.is_urgent |= urgent;
                }
                SyncItem::Ack { slot, pub_seq, lsn } => self.pending.acks.push((slot, pub_seq, lsn)),
                SyncItem::Answer(Answer::Say { connection, message }) => {
                    self.pending.answers.push((connection, message));
                    self.pending.is_urgent = true;
                }
                SyncItem::Answer(Answer::Retired(_)) | SyncItem::Stop => {}
                SyncItem::Freed(slot) => self.pending.freed.push(slot),
            }
        }
        let pending = &self.pending;
        let waits = !(pending.acks.is_empty() && pending.answers.is_empty() && pending.freed.is_empty());
        let is_due = pending.end.map_or(waits, |_| pending.is_urgent || step - pending.since >= 10);
        if is_due {
            let lasts = rng.below(pace.sync + 1);
            if lasts == 0 && !stalls {
                return self.synced();
            }
            self.syncing = Some(step + lasts);
        }
        Ok(())
    }

    /// Handles the return of a sync.
    fn synced(&mut self) -> Result<()> {
        let Pending { end, acks, answers, freed, .. } = std::mem::take(&mut self.pending);
        if let Some(end) = end {
            self.syncer.sync(end)?;
            self.control.set_durable(end.lsn, end.position);
            self.watermarks.set_durable(end.index.0);
        }
        let alone = self.watermarks.is_alone();
        if alone {
            self.control.set_committed(self.control.durable());
        }
        for (slot, pub_seq, lsn) in acks {
            let slot = self.control.slot(slot);
            slot.ack_durable(pub_seq, lsn);
            if alone {
                slot.ack_committed(pub_seq, lsn);
            }
        }
        self.answers.extend(answers);
        self.freed.extend(freed);
        Ok(())
    }

    fn may_flush(&self, sealed: &Sealed) -> bool {
        self.control.durable() >= sealed.last
            && self.watermarks.committed() + 1 >= sealed.mark.chain.index.0
            && self.control.durable_position() >= sealed.mark.chain.position
    }

    fn flush(&mut self, step: u64, rng: &mut SimRng, pace: Pace) -> Result<()> {
        if self.sealed.front().is_none_or(|s| !self.may_flush(s)) {
            return Ok(());
        }
        let at = *self.flush_at.get_or_insert(step + rng.below(pace.flush + 1));
        let Some(sealed) = self.sealed.front().filter(|_| at <= step) else { return Ok(()) };
        self.flush_at = None;
        let done = self.flusher.file(sealed, &self.clock)?;
        self.sealed.pop_front();
        self.flushes += 1;
        self.host.flushed(FlushNotice::Flushed(done));
        self.carry_out();
        self.flusher.recycle_before(self.watermarks.needed())?;
        if rng.below(4) == 0 {
            let options = compaction::Options { runs_max: 2, rows_max: 400, ..compaction::Options::default() };
            if self.flusher.compact_one(&options, &Rules::default())? {
                self.host.flushed(FlushNotice::Edited(self.flusher.manifest().state().seq));
                self.carry_out();
            }
        }
        Ok(())
    }

    fn prepare(&mut self, step: u64, rng: &mut SimRng, pace: Pace) -> Result<()> {
        if !self.spare_in.is_empty() {
            return Ok(());
        }
        let at = *self.spare_at.get_or_insert(step + rng.below(pace.segment + 1));
        if at > step {
            return Ok(());
        }
        self.spare_at = None;
        self.spares += 1;
        let dir = self.store.join(wal::DIR);
        let spare = wal::prepare(&self.disk, &dir, self.spares, wal::format::SEGMENT_SIZE_MIN, &mut |_| Ok(()))?;
        assert!(self.spare_in.try_send(spare).is_ok(), "the queue has room");
        Ok(())
    }

    /// The view of a reader up to `watermark`.
    pub(super) fn view(&self, watermark: impl Fn(&Control) -> Lsn) -> Option<View> {
        let store_id = self.control.store_id();
        let mut versions = Versions::new(Arc::new(self.disk.clone()), &self.store, store_id);
        versions.view(&self.run_dir, &self.control, watermark).ok()
    }
}

/// Directory of host `n`.
pub(super) fn store_of(root: &Path, n: usize) -> PathBuf {
    root.join(format!("host-{}", n + 1))
}
