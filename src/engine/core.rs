//! Owns: the store's state and its one order: which publishers write in which epoch up to which
//! number, which instruments exist, the log's end and the MemTables. No thread, no bus, no clock of
//! its own, so that a simulation drives the very code that a process runs.
//!
//! What must hold: a (publisher, epoch, number) is accepted once; a frame is in the log before it is
//! in a MemTable, and in a MemTable before `applied` covers it; nothing is told to anybody here that
//! the log does not hold.

use std::collections::{HashMap, VecDeque};

use super::flush::Filer;
use super::memtables::{Mark, MemTables, Sealed};
use crate::bus::BatchHeader;
use crate::error::{Error, Result};
use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::manifest::{PublisherState, State};
use crate::record::{self, Kind, Layout, Name};
use crate::sabotage::{self, Sabotage};
use crate::shm::control::{Control, Statistic};
use crate::shm::kinds::KindsWriter;
use crate::shm::symbols::SymbolsWriter;
use crate::time::{Clock, Ts};
use crate::wal::{self, Body, Chain, Fact, Frame, FrameBuilder, FrameType};

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Some or all of it is in the frame that is being filled.
    Accepted,
    /// All of it was accepted before.
    Duplicate,
    /// Records before it are missing; this one is expected.
    Gap(PubSeq),
    /// Its epoch is fenced.
    Fenced,
    /// It contradicts itself; nothing of it was taken.
    Malformed,
    /// It does not fit in this frame any more; offer it for the next.
    FrameFull,
}

/// A frame that was appended and applied.
pub struct Committed {
    /// What the log's writer says of it.
    pub appended: wal::Appended,
    /// How far each publisher in it has come.
    pub accepted: Vec<(PublisherId, PubSeq, Lsn)>,
    /// The MemTable that was sealed before it; to be filed.
    pub sealed: Option<Box<Sealed>>,
}

/// The store's state.
pub struct Core {
    /// The log's end.
    pub writer: wal::Writer,
    /// The live MemTables.
    pub memtables: MemTables,
    publishers: HashMap<PublisherId, PublisherState>,
    ids: HashMap<Name, InstrumentId>,
    symbols: SymbolsWriter,
    /// Names logged since the last MemTable was sealed.
    names: Vec<Name>,
    kinds: Kinds,
    control: Control,
    frame: FrameBuilder,
    scratch: Vec<u64>,
}

/// The state that is rebuilt from a checkpoint and the log behind it.
pub struct Rebuilt {
    memtables: MemTables,
    publishers: HashMap<PublisherId, PublisherState>,
    ids: HashMap<Name, InstrumentId>,
    symbols: SymbolsWriter,
    names: Vec<Name>,
    kinds: Kinds,
    sealed: VecDeque<Box<Sealed>>,
}

/// The kinds that programs defined.
struct Kinds {
    known: HashMap<Kind, Layout>,
    shown: KindsWriter,
    /// Logged since the last MemTable was sealed.
    new: Vec<Layout>,
}

impl Rebuilt {
    /// The state as of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Limit`] or [`Error::NoSharedMemory`] if the instruments do not fit.
    pub fn new(memtables: MemTables, mut symbols: SymbolsWriter, mut shown: KindsWriter, checkpoint: &State) -> Result<Rebuilt> {
        let publishers = checkpoint.publishers.iter().map(|(p, s)| (*p, *s)).collect();
        let mut ids = HashMap::with_capacity(checkpoint.names.len());
        for name in &checkpoint.names {
            ids.insert(*name, symbols.push(name)?);
        }
        checkpoint.kinds.iter().try_for_each(|layout| shown.push(layout))?;
        let known = checkpoint.kinds.iter().map(|l| (l.kind(), l.clone())).collect();
        let kinds = Kinds { known, shown, new: Vec::new() };
        Ok(Rebuilt { memtables, publishers, ids, symbols, names: Vec::new(), kinds, sealed: VecDeque::new() })
    }

    /// Takes in the next frame of the log; what the MemTables cannot hold is filed.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written; [`Error::NoSharedMemory`].
    pub fn visit(&mut self, frame: &Frame<'_>, filer: &mut Filer, clock: &dyn Clock) -> Result<()> {
        self.memtables.logged(frame.header.total_len());
        match &frame.body {
            Body::Empty => {}
            Body::Control(facts) => facts.iter().try_for_each(|f| self.fact(f))?,
            Body::Data(data) => {
                let records = u64::from(frame.header.count);
                loop {
                    match self.memtables.has_room(records) {
                        Ok(true) => break,
                        // Readers may hold the memory of tables of before; a table that is filed makes room.
                        Err(e) if !matches!(e, Error::NoSharedMemory { .. }) || self.sealed.is_empty() => return Err(e),
                        Ok(false) | Err(_) => {}
                    }
                    let Some(oldest) = self.sealed.pop_front() else { return Err(self.memtables.full()) };
                    let filed = filer.file(&oldest, clock)?;
                    self.memtables.filed(filed.table, filed.seq);
                    filer.unlink(filed.table);
                }
                if self.memtables.must_seal(records) {
                    let h = &frame.header;
                    let chain = Chain {
                        position: h.position,
                        index: h.index,
                        lsn: h.first_lsn,
                        prev_crc: h.prev_crc,
                        term: h.term,
                        ingest_ts: h.ingest_ts,
                    };
                    let publishers = self.publishers.iter().map(|(p, s)| (*p, *s)).collect();
                    let (names, kinds) = (std::mem::take(&mut self.names), std::mem::take(&mut self.kinds.new));
                    let mark = Mark { chain, publishers, names, kinds };
                    self.sealed.push_back(Box::new(self.memtables.seal(mark)));
                }
                self.memtables.apply(data.runs, data.records, frame.header.ingest_ts);
                let mut lsn = frame.header.first_lsn;
                for run in data.runs {
                    let count = u64::from(run.count);
                    lsn = lsn.plus(count);
                    let last = PubSeq(run.first_pub_seq.0 + count - 1);
                    let state = self.publishers.entry(run.publisher).or_default();
                    // The fact that began the epoch stands before its records.
                    (state.epoch, state.last, state.lsn) = (run.epoch, last, Lsn(lsn.0 - 1));
                }
            }
        }
        Ok(())
    }

    fn fact(&mut self, fact: &Fact) -> Result<()> {
        match fact {
            &Fact::Attach { publisher, epoch, incarnation } => {
                self.publishers.insert(publisher, PublisherState { epoch, incarnation, ..PublisherState::default() });
            }
            &Fact::Symbol { instrument, name } => {
                let id = self.symbols.push(&name)?;
                debug_assert_eq!(id, instrument);
                self.ids.insert(name, id);
                self.names.push(name);
            }
            Fact::Kind(layout) => {
                self.kinds.shown.push(layout)?;
                self.kinds.known.insert(layout.kind(), layout.clone());
                self.kinds.new.push(layout.clone());
            }
        }
        Ok(())
    }

    /// The state, with the log it came from, and the MemTables that are to be filed.
    pub fn into_core(self, writer: wal::Writer, control: Control) -> (Core, VecDeque<Box<Sealed>>) {
        let Rebuilt { memtables, mut publishers, ids, symbols, names, kinds, sealed } = self;
        if sabotage::is(Sabotage::ForgetPublishers) {
            publishers.clear();
        }
        symbols.publish();
        kinds.shown.publish();
        control.set_statistic(Statistic::Instruments, symbols.count());
        let (frame, scratch) = (FrameBuilder::new(), Vec::new());
        (Core { writer, memtables, publishers, ids, symbols, names, kinds, control, frame, scratch }, sealed)
    }
}

impl Core {
    /// What is known of `publisher`.
    pub fn publisher(&self, publisher: PublisherId) -> PublisherState {
        self.publishers.get(&publisher).copied().unwrap_or_default()
    }

    /// Whether a frame can be appended and applied now.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`].
    pub fn is_ready(&mut self) -> Result<Readiness> {
        if !self.writer.ready()? {
            return Ok(Readiness::NoSegment);
        }
        let room = self.memtables.has_room(u64::from(wal::format::FRAME_RECORDS_MAX))?;
        Ok(if room { Readiness::Ready } else { Readiness::MemTableFull })
    }

    /// Offers a batch to the frame that is being filled. `words` may change meanwhile: they are copied
    /// before they are looked at.
    pub fn offer(&mut self, header: BatchHeader, words: &[u64]) -> Offer {
        let state = self.publisher(header.publisher());
        let (first, count) = (header.first_pub_seq(), u64::from(header.count()));
        if header.epoch() < state.epoch {
            return Offer::Fenced;
        }
        let fits_a_frame = words.len() <= crate::bus::BATCH_WORDS_MAX && count <= u64::from(wal::format::FRAME_RECORDS_MAX);
        let Some(end) = first.0.checked_add(count) else { return Offer::Malformed };
        if header.epoch() != state.epoch || count == 0 || first.0 == 0 || !fits_a_frame {
            return Offer::Malformed;
        }
        if end <= state.last.0 + 1 && !sabotage::is(Sabotage::AcceptTwice) {
            self.control.add(Statistic::Duplicates, count);
            return Offer::Duplicate;
        }
        if first.0 > state.last.0 + 1 {
            return Offer::Gap(PubSeq(state.last.0 + 1));
        }
        if !self.frame.is_empty() && !self.frame.fits(words.len(), header.count()) {
            return Offer::FrameFull;
        }
        let skip = if sabotage::is(Sabotage::AcceptTwice) { 0 } else { state.last.0 + 1 - first.0 };
        let pushed = if skip == 0 { self.push_whole(&header, words) } else { self.push_tail(&header, words, skip) };
        if !pushed {
            return Offer::Malformed;
        }
        self.control.add(Statistic::Duplicates, skip);
        let last = PubSeq(end - 1);
        if let Some(state) = self.publishers.get_mut(&header.publisher()) {
            state.last = last;
        }
        Offer::Accepted
    }

    fn push_whole(&mut self, header: &BatchHeader, words: &[u64]) -> bool {
        let mark = self.frame.mark();
        self.frame.push_records(header.publisher(), header.epoch(), header.first_pub_seq(), header.count(), words);
        let copied = self.frame.records_since(&mark);
        let good = count_records(copied) == Some(u64::from(header.count()));
        if !good {
            self.frame.rollback(mark);
        }
        good
    }

    /// Takes what follows the first `skip` records, which were accepted before.
    fn push_tail(&mut self, header: &BatchHeader, words: &[u64], skip: u64) -> bool {
        let mut copy = std::mem::take(&mut self.scratch);
        copy.clear();
        copy.extend_from_slice(words);
        let good = count_records(&copy) == Some(u64::from(header.count()));
        if good {
            let at: usize = record::split(&copy).take(skip as usize).flatten().map(|r| r.words().len()).sum();
            let first = PubSeq(header.first_pub_seq().0 + skip);
            let rest = copy.get(at..).unwrap_or(&[]);
            self.frame.push_records(header.publisher(), header.epoch(), first, header.count() - skip as u32, rest);
        }
        self.scratch = copy;
        good
    }

    /// Whether the frame that is being filled holds anything.
    pub fn has_frame(&self) -> bool {
        !self.frame.is_empty()
    }

    /// Appends the frame that has been filled and applies it; `None` if it is empty. The caller has
    /// asked [`Core::is_ready`].
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`].
    pub fn commit(&mut self, now: Ts) -> Result<Option<Committed>> {
        if self.frame.is_empty() {
            return Ok(None);
        }
        let seal = self.memtables.must_seal(u64::from(self.frame.count()));
        let sealed = if seal { Some(Box::new(self.seal())) } else { None };
        let appended = self.writer.append(&mut self.frame, FrameType::Data, now)?;
        let (header, mut lsn) = (appended.header, appended.header.first_lsn);
        self.control.set_appended(appended.end.lsn, appended.end.position);
        self.memtables.apply(self.frame.runs(), self.frame.records(), header.ingest_ts);
        self.control.set_applied(appended.end.lsn);
        if sabotage::is(Sabotage::AckEarly) {
            self.control.set_durable(appended.end.lsn, appended.end.position);
        }
        let mut accepted: Vec<(PublisherId, PubSeq, Lsn)> = Vec::with_capacity(self.frame.runs().len());
        for run in self.frame.runs() {
            lsn = lsn.plus(u64::from(run.count));
            let last = (run.publisher, PubSeq(run.first_pub_seq.0 + u64::from(run.count) - 1), Lsn(lsn.0 - 1));
            match accepted.iter_mut().find(|a| a.0 == run.publisher) {
                Some(known) => *known = last,
                None => accepted.push(last),
            }
            if let Some(state) = self.publishers.get_mut(&run.publisher) {
                state.lsn = last.2;
            }
        }
        self.count(&appended);
        self.control.add(Statistic::Records, u64::from(header.count));
        self.frame.clear();
        Ok(Some(Committed { appended, accepted, sealed }))
    }

    /// Seals the active MemTable between the last frame and the one that is being filled.
    fn seal(&mut self) -> Sealed {
        let mut publishers = self.publishers.clone();
        // What the frame that is being filled holds is not in the log yet.
        for run in self.frame.runs().iter().rev() {
            if let Some(state) = publishers.get_mut(&run.publisher) {
                state.last = PubSeq(run.first_pub_seq.0 - 1);
            }
        }
        let publishers = publishers.into_iter().collect();
        let (names, kinds) = (std::mem::take(&mut self.names), std::mem::take(&mut self.kinds.new));
        self.memtables.seal(Mark { chain: *self.writer.chain(), publishers, names, kinds })
    }

    fn count(&mut self, appended: &wal::Appended) {
        self.memtables.logged(appended.header.total_len());
        self.control.add(Statistic::Frames, 1);
        self.control.add(Statistic::Bytes, appended.header.total_len());
        self.control.set_statistic(Statistic::MemTableUsed, self.memtables.used());
    }

    /// Appends the frame that opens a term.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`].
    pub fn open_term(&mut self, now: Ts) -> Result<wal::Appended> {
        let appended = self.writer.append(&mut FrameBuilder::new(), FrameType::NoOp, now)?;
        self.control.set_appended(appended.end.lsn, appended.end.position);
        Ok(appended)
    }

    /// Logs that the process `incarnation` of `publisher` writes in a new epoch, above `above`, from here
    /// on; gives its state.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`]; [`crate::error::Error::Limit`] if there is no epoch above.
    pub fn begin_epoch(
        &mut self,
        publisher: PublisherId,
        incarnation: u32,
        above: Epoch,
        now: Ts,
    ) -> Result<(PublisherState, wal::Appended)> {
        assert!(self.frame.is_empty(), "facts stand in frames of their own");
        let highest = self.publisher(publisher).epoch.max(above);
        let next = highest.0.checked_add(1).filter(|e| *e < u32::MAX);
        let epoch = Epoch(next.ok_or(Error::Limit { what: "a publisher's epoch", limit: u64::from(u32::MAX) - 1 })?);
        let mut frame = FrameBuilder::new();
        frame.push_fact(|words| Fact::Attach { publisher, epoch, incarnation }.encode(words));
        let appended = self.writer.append(&mut frame, FrameType::Control, now)?;
        self.control.set_appended(appended.end.lsn, appended.end.position);
        self.count(&appended);
        let state = PublisherState { epoch, incarnation, ..PublisherState::default() };
        self.publishers.insert(publisher, state);
        Ok((state, appended))
    }

    /// Makes `layout` a kind of the store, if it is not one; the frame is appended if it was new.
    ///
    /// # Errors
    /// [`crate::error::Error::Invalid`] if the store has another layout under its number;
    /// [`crate::error::Error::Halted`]; [`crate::error::Error::NoSharedMemory`].
    pub fn kind(&mut self, layout: &Layout, now: Ts) -> Result<Option<wal::Appended>> {
        assert!(self.frame.is_empty(), "facts stand in frames of their own");
        let known = self.kinds.known.get(&layout.kind());
        if known == Some(layout) {
            return Ok(None);
        }
        // Also refuses what contradicts a kind that is known here.
        layout.register()?;
        self.kinds.shown.push(layout)?;
        let mut frame = FrameBuilder::new();
        frame.push_fact(|words| Fact::Kind(layout.clone()).encode(words));
        let appended = self.writer.append(&mut frame, FrameType::Control, now)?;
        self.control.set_appended(appended.end.lsn, appended.end.position);
        self.count(&appended);
        self.kinds.known.insert(layout.kind(), layout.clone());
        self.kinds.new.push(layout.clone());
        self.kinds.shown.publish();
        Ok(Some(appended))
    }

    /// The instruments called `names`, registering those that are new; as many as fit in a frame are
    /// looked at, and the frame is appended if any was new.
    ///
    /// # Errors
    /// [`crate::error::Error::Halted`]; [`crate::error::Error::Limit`] or
    /// [`crate::error::Error::NoSharedMemory`] if no more can be registered: then nothing was logged of
    /// the first that does not fit and those after it.
    pub fn instruments(&mut self, names: &[Name], now: Ts) -> Result<(Vec<InstrumentId>, Option<wal::Appended>)> {
        assert!(self.frame.is_empty(), "facts stand in frames of their own");
        let mut frame = FrameBuilder::new();
        let mut ids = Vec::new();
        let mut failed = None;
        for name in names {
            if let Some(&id) = self.ids.get(name) {
                ids.push(id);
                continue;
            }
            if !frame.fits(wal::fact::SYMBOL_LEN / 8, 1) {
                break;
            }
            match self.symbols.push(name) {
                Ok(id) => {
                    frame.push_fact(|words| Fact::Symbol { instrument: id, name: *name }.encode(words));
                    self.ids.insert(*name, id);
                    self.names.push(*name);
                    ids.push(id);
                }
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        self.control.set_statistic(Statistic::Instruments, self.symbols.count());
        let appended = if frame.is_empty() {
            None
        } else {
            let appended = self.writer.append(&mut frame, FrameType::Control, now)?;
            self.control.set_appended(appended.end.lsn, appended.end.position);
            self.count(&appended);
            self.symbols.publish();
            Some(appended)
        };
        match failed {
            Some(e) if ids.is_empty() => Err(e),
            _ => Ok((ids, appended)),
        }
    }
}

/// How many records `words` hold; `None` if they are not whole records.
fn count_records(words: &[u64]) -> Option<u64> {
    let mut count = 0;
    for record in record::split(words) {
        record.ok()?;
        count += 1;
    }
    Some(count)
}

/// Whether a frame can be appended now, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// The next segment is not prepared yet.
    NoSegment,
    /// The MemTables are full.
    MemTableFull,
}
