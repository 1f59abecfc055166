//! Owns: requests to the leading host, from publishers of this host and, through their hosts, from others: a session, the
//! numbers of instruments, a kind of a program. One request is carried out at a time, as much of it in a turn as the log has
//! room for.
//!
//! What must hold: nothing here waits: a request for which the log has no room continues in a later turn. A request of a
//! publisher that has ended is not served. An answer rests on a frame, and names it.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::effect::{Effect, Moment};
use super::log::Log;
use super::sessions::{Opening, Sessions};
use tapestore::bus::attach::{Grant, Message as Reply, Mode};
use tapestore::error::{Error, Result};
use tapestore::lsn::{Durability, Epoch, InstrumentId, NO_SUCH_LEVEL, NodeId, PublisherId};
use tapestore::manifest::PublisherState;
use tapestore::record::{Layout, Name};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::control::SLOTS_MAX;

/// Refusal while the disk is nearly full.
const NO_SPACE_REASON: &str = "NoSpace: the disk is nearly full; `tape status` shows how full. Try again when there is room";
/// Most requests of this host's publishers that wait.
const WAITING_MAX: usize = 2048;

/// A request of a publisher of this host.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// Attach this publisher.
    Attach(Attach),
    /// Return the instruments of these names.
    Symbols {
        /// The connection.
        connection: u64,
        /// The names.
        names: Vec<Name>,
    },
    /// Make this a kind of the store.
    Kind {
        /// The connection.
        connection: u64,
        /// Its layout.
        layout: Box<Layout>,
    },
    /// The connection has ended.
    Gone {
        /// The connection.
        connection: u64,
    },
}

/// A request to attach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attach {
    pub(super) connection: u64,
    pub(super) publisher: PublisherId,
    /// The publisher's process; 0: unknown.
    pub(super) pid: u32,
    pub(super) mode: Mode,
    pub(super) level: Durability,
    /// Identifies the publisher's process.
    pub(super) incarnation: u32,
    /// Number of the grant.
    pub(super) grant: u64,
}

impl Request {
    /// The connection that the request came on.
    pub(super) fn connection(&self) -> u64 {
        match self {
            Request::Attach(attach) => attach.connection,
            Request::Symbols { connection, .. } | Request::Kind { connection, .. } | Request::Gone { connection } => *connection,
        }
    }
}

/// A request to the leader, from any host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    Attach { publisher: u16, resume: Option<u32>, incarnation: u32 },
    Symbols(Vec<String>),
    Kind(Vec<u64>),
}

impl Ask {
    /// What `request` asks of the leader; `None` if nothing.
    pub(super) fn of(request: &Request) -> Option<Ask> {
        Some(match request {
            Request::Attach(attach) => {
                let resume = if let Mode::Resume(epoch) = attach.mode { Some(epoch.0) } else { None };
                Ask::Attach { publisher: attach.publisher.0, resume, incarnation: attach.incarnation }
            }
            Request::Symbols { names, .. } => Ask::Symbols(names.iter().map(|n| n.as_str().to_owned()).collect()),
            Request::Kind { layout, .. } => Ask::Kind(layout.encode()),
            Request::Gone { .. } => return None,
        })
    }
}

/// Outcome of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    Attached,
    Ids(Vec<u32>),
    Registered,
    Fenced(u32),
    Refused(String),
    NotLeader(u64),
}

/// Where a request came from.
enum Asker {
    /// A publisher of this host.
    Here(Request),
    /// Another host, under this ticket.
    There(NodeId, u64, Ask),
}

/// A request that is being carried out.
struct Job {
    asker: Asker,
    names: Vec<Name>,
    ids: Vec<InstrumentId>,
    /// Whether earlier sessions of the publisher were called to send what they still have.
    has_called: bool,
}

/// An outcome to send to another host.
pub(super) struct Done {
    pub(super) to: NodeId,
    pub(super) ticket: u64,
    pub(super) outcome: Outcome,
}

/// Result of a step of a request.
enum Step<T> {
    /// The request is done.
    Done(T),
    /// The log has no room now.
    Later,
}

/// Rules for the levels that publishers get.
#[derive(Clone, Copy, Debug)]
pub(super) struct DurabilityPolicy {
    pub(super) least: Durability,
    pub(super) is_lossy: bool,
}

/// The requests of a host.
pub(super) struct Requests {
    /// Number of this start of storage, which publishers receive.
    instance: u64,
    levels: DurabilityPolicy,
    waiting: VecDeque<Request>,
    current: Option<Job>,
    /// The newest ticket of a host under which a publisher was attached: a request that arrives late is not served.
    tickets: HashMap<(NodeId, PublisherId), u64>,
}

impl Requests {
    pub(super) fn new(instance: u64, levels: DurabilityPolicy) -> Requests {
        Requests { instance, levels, waiting: VecDeque::new(), current: None, tickets: HashMap::new() }
    }

    /// Whether a request is being carried out.
    pub(super) fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Queues a request of a publisher of this host; if the publisher has ended, drops its requests.
    pub(super) fn push(&mut self, request: Request, log: &mut Log, sessions: &mut Sessions) {
        match request {
            Request::Gone { connection } => {
                if !sabotage::is(Sabotage::ServeTheDead) {
                    self.drop_of(connection, log);
                }
                end_session(connection, log, sessions);
            }
            Request::Attach(attach) if self.level_for(attach.level).is_none() => {
                log.answer_now(attach.connection, Reply::Refused(NO_SUCH_LEVEL.to_owned()));
                log.ask(Effect::Detached { connection: attach.connection });
            }
            Request::Attach(attach) if is_taken(&attach, sessions) => {
                log.answer_now(attach.connection, Reply::Taken);
                log.ask(Effect::Detached { connection: attach.connection });
            }
            request if self.waiting.len() >= WAITING_MAX => refuse_many(request, log),
            request => self.waiting.push_back(request),
        }
    }

    /// The level granted to a publisher that asks for `level`, if this store has it.
    fn level_for(&self, level: Durability) -> Option<Durability> {
        level.granted(self.levels.least, self.levels.is_lossy)
    }

    /// Drops the requests of `connection`, which has ended.
    fn drop_of(&mut self, connection: u64, log: &mut Log) {
        let is_of = |r: &Request| r.connection() == connection;
        let is_current = self.current.as_ref().is_some_and(|job| matches!(&job.asker, Asker::Here(r) if is_of(r)));
        let current = self.current.take_if(|_| is_current).and_then(|job| match job.asker {
            Asker::Here(request) => Some(request),
            Asker::There(..) => None,
        });
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        let mut dropped: Vec<Request> = current.into_iter().collect();
        for request in self.waiting.drain(..) {
            if is_of(&request) { dropped.push(request) } else { kept.push_back(request) }
        }
        self.waiting = kept;
        for request in dropped {
            if let Request::Attach(attach) = request {
                log.ask(Effect::Detached { connection: attach.connection });
            }
        }
    }

    /// Removes and returns all that wait: another host leads, and receives them.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Request> + use<> {
        std::mem::take(&mut self.waiting).into_iter()
    }

    /// Stops the current request: this host no longer numbers records. Returns the request if it is this host's own; a host
    /// whose request it was sends it again.
    pub(super) fn interrupt(&mut self) -> Option<Request> {
        self.tickets.clear();
        match self.current.take()?.asker {
            Asker::Here(request) => Some(request),
            Asker::There(..) => None,
        }
    }

    /// The leader's turn: continues the current request, or begins one of its own publishers'. Returns whether there was
    /// something to do. `room`: the MemTables have room too.
    ///
    /// # Errors
    /// [`Error::Halted`] if the log has failed; as [`crate::consensus::Node::tick`].
    pub(super) fn turn(
        &mut self,
        log: &mut Log,
        sessions: &mut Sessions,
        at: Moment,
        room: bool,
    ) -> Result<(bool, Option<Done>)> {
        if self.current.is_none() {
            let Some(request) = self.waiting.pop_front() else { return Ok((false, None)) };
            self.begin(Asker::Here(request));
        }
        self.go_on(log, sessions, at, room)
    }

    /// Begins a request of another host, under this ticket; no other is current. Returns the outcome if it is done.
    ///
    /// # Errors
    /// As [`Requests::turn`].
    pub(super) fn ask(
        &mut self,
        (from, ticket, ask): (NodeId, u64, Ask),
        log: &mut Log,
        sessions: &mut Sessions,
        at: Moment,
    ) -> Result<Option<Done>> {
        debug_assert!(self.current.is_none(), "one request at a time");
        self.begin(Asker::There(from, ticket, ask));
        Ok(self.go_on(log, sessions, at, true)?.1)
    }

    fn begin(&mut self, asker: Asker) {
        let names = match &asker {
            Asker::Here(Request::Symbols { names, .. }) => names.clone(),
            Asker::There(_, _, Ask::Symbols(names)) => names.iter().filter_map(|n| Name::new(n.as_bytes()).ok()).collect(),
            _ => Vec::new(),
        };
        self.current = Some(Job { asker, names, ids: Vec::new(), has_called: false });
    }

    fn go_on(&mut self, log: &mut Log, sessions: &mut Sessions, at: Moment, room: bool) -> Result<(bool, Option<Done>)> {
        let Some(mut job) = self.current.take() else { return Ok((false, None)) };
        // Batches of the publisher's earlier process count: they come first, as far as there is room.
        if let Asker::Here(Request::Attach(attach)) = &job.asker {
            if !std::mem::replace(&mut job.has_called, true) {
                sessions.call_last(attach.publisher);
            }
            if room && sessions.is_called(attach.publisher) {
                self.current = Some(job);
                return Ok((false, None));
            }
        }
        match self.step(&mut job, log, sessions, at)? {
            Step::Later => {
                self.current = Some(job);
                Ok((false, None))
            }
            Step::Done(done) => Ok((true, done)),
        }
    }

    fn step(&mut self, job: &mut Job, log: &mut Log, sessions: &mut Sessions, at: Moment) -> Result<Step<Option<Done>>> {
        match &job.asker {
            Asker::Here(request) => match request {
                Request::Attach(attach) => {
                    let (attach, granted) = (*attach, self.epoch(attach, log, sessions, at)?);
                    let Step::Done(granted) = granted else { return Ok(Step::Later) };
                    match granted {
                        Ok(state) => self.open(attach, state, log, sessions),
                        Err(refusal) => refuse(attach.connection, refusal, log),
                    }
                }
                Request::Symbols { connection, .. } => {
                    let connection = *connection;
                    match symbols(job, log, at)? {
                        Step::Later => return Ok(Step::Later),
                        Step::Done(Ok(ids)) => log.answer(connection, Reply::Ids(ids)),
                        Step::Done(Err(refusal)) => log.answer(connection, refusal),
                    }
                }
                Request::Kind { connection, layout } => match kind(layout, log, at)? {
                    Step::Later => return Ok(Step::Later),
                    Step::Done(Ok(())) => log.answer(*connection, Reply::Registered),
                    Step::Done(Err(refusal)) => log.answer(*connection, refusal),
                },
                Request::Gone { .. } => {}
            },
            Asker::There(to, ticket, _) => {
                let (to, ticket) = (*to, *ticket);
                let Step::Done(outcome) = self.serve(job, log, sessions, at)? else { return Ok(Step::Later) };
                return Ok(Step::Done(Some(Done { to, ticket, outcome })));
            }
        }
        Ok(Step::Done(None))
    }

    /// The epoch that a publisher of this host gets, or the refusal.
    fn epoch(
        &mut self,
        attach: &Attach,
        log: &mut Log,
        sessions: &Sessions,
        at: Moment,
    ) -> Result<Step<std::result::Result<PublisherState, Reply>>> {
        if is_taken(attach, sessions) {
            return Ok(Step::Done(Err(Reply::Taken)));
        }
        if !sessions.has_free() {
            return Ok(Step::Done(Err(full())));
        }
        epoch_for((attach.publisher, attach.mode, attach.incarnation), log, at)
    }

    /// Opens the session of a publisher of this host whose epoch is in the log.
    fn open(&mut self, attach: Attach, state: PublisherState, log: &mut Log, sessions: &mut Sessions) {
        let Attach { connection, publisher, pid, grant, .. } = attach;
        let level = self.level_for(attach.level).unwrap_or(attach.level);
        let Some(slot) = sessions.open(Opening { connection, publisher, pid, level, grant, state }) else {
            return refuse(connection, full(), log);
        };
        let PublisherState { epoch, last: pub_seq, lsn, .. } = state;
        log.ask(Effect::Attached { connection, slot });
        log.answer(connection, Reply::Attached(Grant { grant, slot, epoch, pub_seq, lsn, instance: self.instance, level }));
        tracing::info!(
            name: "session.attached", publisher = publisher.0, epoch = epoch.0, pub_seq = pub_seq.0, %level,
            "publisher attached"
        );
    }

    /// Serves a request of another host.
    fn serve(&mut self, job: &mut Job, log: &mut Log, sessions: &mut Sessions, at: Moment) -> Result<Step<Outcome>> {
        let refused = |reason: &str| Ok(Step::Done(Outcome::Refused(reason.to_owned())));
        let Asker::There(from, ticket, ask) = &job.asker else { return refused("the request is this host's own") };
        match ask {
            &Ask::Attach { publisher, resume, incarnation } => {
                let mode = resume.map_or(Mode::New, |epoch| Mode::Resume(Epoch(epoch)));
                let publisher = PublisherId(publisher);
                let newest = self.tickets.entry((*from, publisher)).or_insert(*ticket);
                let is_late = is_of_one_process(*ticket, *newest) && *ticket < *newest;
                if is_late && !sabotage::is(Sabotage::ServeTheDead) {
                    return refused("a later process of this publisher has asked to attach since");
                }
                *newest = *ticket;
                let known = log.state().publisher(publisher);
                if known.incarnation == incarnation && known.epoch > Epoch(0) && known.last.0 == 0 {
                    // Asked a second time, because the answer was lost: nothing has been written in the epoch.
                    return Ok(Step::Done(Outcome::Attached));
                }
                let Step::Done(granted) = epoch_for((publisher, mode, incarnation), log, at)? else { return Ok(Step::Later) };
                Ok(Step::Done(match granted {
                    Ok(state) => {
                        sessions.fence(publisher, Some(state.epoch));
                        Outcome::Attached
                    }
                    Err(refusal) => outcome(refusal),
                }))
            }
            Ask::Symbols(names) if job.names.len() + job.ids.len() < names.len() => refused("a name is not valid"),
            Ask::Symbols(_) => Ok(match symbols(job, log, at)? {
                Step::Later => Step::Later,
                Step::Done(Ok(ids)) => Step::Done(Outcome::Ids(ids.iter().map(|i| i.0).collect())),
                Step::Done(Err(refusal)) => Step::Done(outcome(refusal)),
            }),
            Ask::Kind(words) => {
                let Some(layout) = Layout::parse(words) else { return refused("a layout is not valid") };
                Ok(match kind(&layout, log, at)? {
                    Step::Later => Step::Later,
                    Step::Done(Ok(())) => Step::Done(Outcome::Registered),
                    Step::Done(Err(refusal)) => Step::Done(outcome(refusal)),
                })
            }
        }
    }

    /// Handles the leader's outcome of a request of this host, whose frame is committed here.
    pub(super) fn arrived(&mut self, request: Request, outcome: Outcome, log: &mut Log, sessions: &mut Sessions) {
        match request {
            Request::Attach(attach) => match outcome {
                Outcome::Attached => {
                    let state = log.state().publisher(attach.publisher);
                    // Another process of this publisher may have begun an epoch since.
                    if state.incarnation == attach.incarnation || sabotage::is(Sabotage::AnswerByIndex) {
                        self.open(attach, state, log, sessions);
                    } else {
                        refuse(attach.connection, Reply::Fenced(state.epoch), log);
                    }
                }
                other => refuse(attach.connection, reply(other), log),
            },
            Request::Symbols { connection, .. } | Request::Kind { connection, .. } => log.answer(connection, reply(outcome)),
            Request::Gone { .. } => {}
        }
    }

    /// Refuses a request of a publisher of this host.
    pub(super) fn refuse(request: Request, outcome: Outcome, log: &mut Log) {
        match request {
            Request::Attach(attach) => refuse(attach.connection, reply(outcome), log),
            other => log.answer(other.connection(), reply(outcome)),
        }
    }
}

/// Low bits of a ticket, which count; those above identify the process that issues it.
const TICKET_BITS: u32 = 32;

/// The first ticket of a process, from a random number: an answer to an earlier process is not taken for one to this.
pub(super) fn first_ticket(random: u64) -> u64 {
    random << TICKET_BITS
}

/// Whether one process has issued both tickets.
fn is_of_one_process(a: u64, b: u64) -> bool {
    a >> TICKET_BITS == b >> TICKET_BITS
}

/// Whether the request, which does not ask to take over, would fence a live process of this host.
fn is_taken(attach: &Attach, sessions: &Sessions) -> bool {
    attach.mode == Mode::Free && sessions.is_live(attach.publisher)
}

/// Ends the session on `connection`, if there is one.
fn end_session(connection: u64, log: &mut Log, sessions: &mut Sessions) {
    if let Some(slot) = sessions.of(connection) {
        sessions.gone(slot);
        log.ask(Effect::Ending { slot });
    }
}

fn refuse(connection: u64, refusal: Reply, log: &mut Log) {
    log.answer(connection, refusal);
    log.ask(Effect::Detached { connection });
}

fn refuse_many(request: Request, log: &mut Log) {
    let reason = format!("{WAITING_MAX} requests of publishers wait already; try again later");
    Requests::refuse(request, Outcome::Refused(reason), log);
}

fn full() -> Reply {
    Reply::Refused(format!(
        "all {SLOTS_MAX} publisher slots are in use; stop a publisher (tape status lists them), then attach again"
    ))
}

fn outcome(refusal: Reply) -> Outcome {
    match refusal {
        Reply::Fenced(epoch) => Outcome::Fenced(epoch.0),
        Reply::Refused(reason) => Outcome::Refused(reason),
        other => Outcome::Refused(format!("{other:?}")),
    }
}

fn reply(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Attached | Outcome::Registered => Reply::Registered,
        Outcome::Ids(ids) => Reply::Ids(ids.into_iter().map(InstrumentId).collect()),
        Outcome::Fenced(epoch) => Reply::Fenced(Epoch(epoch)),
        Outcome::Refused(reason) => Reply::Refused(reason),
        Outcome::NotLeader(leader) => Reply::NotLeader(leader),
    }
}

/// The state in which a publisher goes on, or the refusal.
fn epoch_for(
    (publisher, mode, incarnation): (PublisherId, Mode, u32),
    log: &mut Log,
    at: Moment,
) -> Result<Step<std::result::Result<PublisherState, Reply>>> {
    let known = log.state().publisher(publisher);
    let above = match mode {
        // Granted to this same process, which may not have received the answer: storage was killed meanwhile.
        Mode::Resume(epoch) if epoch <= known.epoch && incarnation == known.incarnation => return Ok(Step::Done(Ok(known))),
        // The same epoch of another process: one of the two had it before the store was restored.
        Mode::Resume(epoch) if epoch <= known.epoch => return Ok(Step::Done(Err(Reply::Fenced(known.epoch)))),
        // The log does not have this epoch: it was lost with a torn tail. The publisher receives another epoch than it asked
        // for, and reports its loss.
        Mode::Resume(epoch) => epoch,
        Mode::New | Mode::Free => known.epoch,
    };
    if !log.is_writable()? {
        return Ok(if log.has_no_space() { Step::Done(Err(no_space())) } else { Step::Later });
    }
    match log.state().begin_epoch(publisher, incarnation, above, at.wall) {
        Ok((state, appended)) => log.appended(appended).map(|()| Step::Done(Ok(state))),
        Err(e @ Error::Halted { .. }) => Err(e),
        Err(e) => Ok(Step::Done(Err(Reply::Refused(e.to_string())))),
    }
}

fn no_space() -> Reply {
    Reply::Refused(NO_SPACE_REASON.to_owned())
}

/// The instruments that `job` names, after registering those that are new; or the refusal.
fn symbols(job: &mut Job, log: &mut Log, at: Moment) -> Result<Step<std::result::Result<Vec<InstrumentId>, Reply>>> {
    while !job.names.is_empty() {
        if log.is_low() {
            return Ok(Step::Done(Err(no_space())));
        }
        if !log.is_writable()? {
            return Ok(if log.has_no_space() { Step::Done(Err(no_space())) } else { Step::Later });
        }
        match log.state().instruments(&job.names, at.wall) {
            Ok((some, appended)) => {
                job.names.drain(..some.len().min(job.names.len()));
                job.ids.extend(some);
                if let Some(appended) = appended {
                    log.appended(appended)?;
                }
            }
            Err(e @ Error::Halted { .. }) => return Err(e),
            Err(e) => return Ok(Step::Done(Err(Reply::Refused(e.to_string())))),
        }
    }
    Ok(Step::Done(Ok(std::mem::take(&mut job.ids))))
}

/// Makes `layout` a kind of the store, or returns the refusal.
fn kind(layout: &Layout, log: &mut Log, at: Moment) -> Result<Step<std::result::Result<(), Reply>>> {
    if log.is_low() {
        return Ok(Step::Done(Err(no_space())));
    }
    if !log.is_writable()? {
        return Ok(if log.has_no_space() { Step::Done(Err(no_space())) } else { Step::Later });
    }
    match log.state().kind(layout, at.wall) {
        Ok(Some(appended)) => {
            tracing::info!(
                name: "catalog.kind_registered", kind = layout.kind().0, name = layout.name(),
                "a program's kind is registered"
            );
            log.appended(appended)?;
        }
        Ok(None) => {}
        Err(e @ Error::Halted { .. }) => return Err(e),
        Err(e) => return Ok(Step::Done(Err(Reply::Refused(e.to_string())))),
    }
    Ok(Step::Done(Ok(())))
}
