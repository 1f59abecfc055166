//! Owns: the store's state and its one order: the catalog (publishers with epochs and last numbers, instruments, kinds), the
//! log's end and the MemTables. It has no thread and no bus, and nothing here depends on a clock of its own (it looks at one to
//! measure), so that a simulation drives the same code as a process.
//!
//! What must hold: a (publisher, epoch, number) is accepted once. A frame is in the log before it is in a MemTable, and in a
//! MemTable before `applied` covers it. Nothing is published here that the log does not hold.

use std::collections::VecDeque;

use super::catalog::Catalog;
use super::clock::IngestTime;
use super::flush::Flusher;
use super::memtables::{MemTables, Sealed};
use super::traces::Traces;
use crate::consensus::Change;
use crate::consensus::message::FrameHead;
use tapestore::bus::BatchHeader;
use tapestore::error::{Bad, Error, Result};
use tapestore::lsn::{EPOCHS_LOST_MAX, Epoch, InstrumentId, Lsn, NO_SUCH_EPOCH, PubSeq, PublisherId, Term};
use tapestore::manifest::{PublisherState, State};
use tapestore::record::{self, Layout, Name};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::control::{Control, Statistic};
use tapestore::shm::histogram::{Histogram, since_stamp};
use tapestore::shm::kinds::KindsWriter;
use tapestore::shm::symbols::SymbolsWriter;
use tapestore::time::{Clock, HostClock, Ts};
use tapestore::wal::{self, Body, ControlEntry, Frame, FrameBuilder, FrameType};

/// Outcome of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// Some or all of it is in the frame that is being filled.
    Accepted,
    /// All of it was accepted before.
    Duplicate,
    /// Records before it are missing; this one is expected.
    Gap(PubSeq),
    /// Its epoch is fenced.
    Fenced,
    /// It is malformed; none of it was accepted.
    Malformed,
    /// One of its records is of an instrument that was never registered; none of it was accepted.
    Unregistered(InstrumentId),
    /// It does not fit in this frame; offer it for the next.
    FrameFull,
}

/// A frame that was appended and applied.
pub struct AppliedFrame {
    /// The result of the append.
    pub appended: wal::Appended,
    /// The last number and LSN of each publisher in it.
    pub accepted: Vec<(PublisherId, PubSeq, Lsn)>,
    /// The MemTable that was sealed before it, which must be flushed.
    pub sealed: Option<Box<Sealed>>,
}

/// The store's state.
pub struct StoreState {
    /// The log's end.
    pub writer: wal::Writer,
    /// The live MemTables.
    pub memtables: MemTables,
    catalog: Catalog,
    control: Control,
    ingest_time: IngestTime,
    frame: FrameBuilder,
    scratch: Vec<u64>,
    /// When the first measured batch of the frame was sent, as its header has it; 0: none is measured.
    sent: u32,
    /// A full table without a successor, which must be flushed.
    stuck: Option<Box<Sealed>>,
    traces: Traces,
}

/// The state while it is rebuilt from a checkpoint and the log after it.
pub struct Rebuilt {
    memtables: MemTables,
    catalog: Catalog,
    sealed: VecDeque<Box<Sealed>>,
    ingest_time: IngestTime,
    /// Frames up to here are known to be committed: later ones are not flushed.
    committed: u64,
}

impl Rebuilt {
    /// The state as of a checkpoint; frames after it up to `committed` may be flushed.
    ///
    /// # Errors
    /// [`Error::Limit`] or [`Error::NoSharedMemory`] if the instruments do not fit.
    pub fn new(
        memtables: MemTables,
        symbols: SymbolsWriter,
        shown: KindsWriter,
        checkpoint: &State,
        committed: u64,
    ) -> Result<Rebuilt> {
        let catalog = Catalog::new(symbols, shown, checkpoint)?;
        let ingest_time = IngestTime::new(checkpoint.checkpoint.ingest_ts);
        Ok(Rebuilt { memtables, catalog, sealed: VecDeque::new(), ingest_time, committed })
    }

    /// Applies the next frame of the log; flushes when the MemTables are full.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written; [`Error::NoSharedMemory`] if a table cannot be made.
    pub fn visit(&mut self, frame: &Frame<'_>, flusher: &mut Flusher, clock: &dyn Clock) -> Result<()> {
        self.memtables.logged(frame.header.total_len());
        self.ingest_time.seen(frame.header.ingest_ts);
        match &frame.body {
            Body::Empty | Body::Membership(_) => Ok(()),
            Body::Control(entries) => entries.iter().try_for_each(|f| self.catalog.entry(f, frame.header.index.0)),
            Body::Data(data) => {
                let records = u64::from(frame.header.count);
                self.make_room(records, frame.header.place(), flusher, clock)?;
                if self.memtables.must_seal(records) {
                    let mark = self.catalog.mark(frame.header.place());
                    self.sealed.push_back(Box::new(self.memtables.seal(mark)));
                }
                self.memtables.apply(data.runs, data.records, frame.header.ingest_ts);
                self.catalog.runs(&frame.header, data.runs);
                Ok(())
            }
        }
    }

    /// Flushes tables until `records` more records have room; the log is read up to `chain`.
    fn make_room(&mut self, records: u64, chain: wal::Chain, flusher: &mut Flusher, clock: &dyn Clock) -> Result<()> {
        loop {
            let asked = self.memtables.has_room(records);
            // A flush makes room: it releases the table's memory, since readers can hold only tables of earlier instances.
            if asked.is_err() && self.memtables.is_stuck(records) {
                let mark = self.catalog.mark(chain);
                self.sealed.push_back(Box::new(self.memtables.seal(mark)));
            }
            match asked {
                Ok(true) => return Ok(()),
                Err(e) if self.sealed.is_empty() => return Err(e),
                Ok(false) | Err(_) => {}
            }
            let is_committed = |s: &Sealed| s.mark.chain.index.0 <= self.committed.saturating_add(1);
            let Some(oldest) = self.sealed.pop_front_if(|s| is_committed(s)) else { return Err(self.memtables.full()) };
            let flushed = flusher.file(&oldest, clock)?;
            self.memtables.flushed(flushed.table, flushed.seq);
            flusher.unlink(flushed.table);
        }
    }

    /// The state, with the log that it came from, and the MemTables that wait for a flush.
    pub fn into_state(self, writer: wal::Writer, control: Control) -> (StoreState, VecDeque<Box<Sealed>>) {
        let Rebuilt { memtables, mut catalog, sealed, ingest_time, .. } = self;
        catalog.publish();
        catalog.count(&control);
        let (frame, scratch) = (FrameBuilder::new(), Vec::new());
        let traces = Traces::off();
        (StoreState { writer, memtables, catalog, control, ingest_time, frame, scratch, sent: 0, stuck: None, traces }, sealed)
    }
}

impl StoreState {
    /// Sends the moments of sampled frames to `traces` from now on.
    pub fn trace(&mut self, traces: Traces) {
        self.traces = traces;
    }

    /// Where the moments of sampled frames go.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// The catalog's state of `publisher`.
    pub fn publisher(&self, publisher: PublisherId) -> PublisherState {
        self.catalog.publishers.get(&publisher).copied().unwrap_or_default()
    }

    /// Whether a frame can be appended and applied now.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write has failed.
    pub fn is_ready(&mut self) -> Result<Readiness> {
        if !self.writer.ready()? {
            return Ok(Readiness::NoSegment);
        }
        let most = u64::from(wal::format::FRAME_RECORDS_MAX);
        let room = self.memtables.has_room(most)?;
        if !room && self.frame.is_empty() && self.memtables.is_stuck(most) {
            self.stuck = Some(Box::new(self.seal()));
        }
        Ok(if room { Readiness::Ready } else { Readiness::MemTableFull })
    }

    /// Takes the full table that [`StoreState::is_ready`] has sealed because no next one could be made; it must be flushed.
    pub fn take_stuck(&mut self) -> Option<Box<Sealed>> {
        self.stuck.take()
    }

    /// Offers a batch to the frame that is being filled. `words` may change meanwhile: they are copied before they are
    /// checked.
    pub fn accept(&mut self, header: BatchHeader, words: &[u64]) -> BatchOutcome {
        let state = self.publisher(header.publisher());
        let (first, count) = (header.first_pub_seq(), u64::from(header.count()));
        if header.epoch() < state.epoch {
            return BatchOutcome::Fenced;
        }
        let fits_a_frame = words.len() <= tapestore::bus::BATCH_WORDS_MAX && count <= u64::from(wal::format::FRAME_RECORDS_MAX);
        let Some(end) = first.0.checked_add(count) else { return BatchOutcome::Malformed };
        if header.epoch() != state.epoch || count == 0 || first.0 == 0 || !fits_a_frame {
            return BatchOutcome::Malformed;
        }
        if end <= state.last.0 + 1 && !sabotage::is(Sabotage::AcceptTwice) {
            self.control.add(Statistic::Duplicates, count);
            return BatchOutcome::Duplicate;
        }
        if first.0 > state.last.0 + 1 {
            return BatchOutcome::Gap(PubSeq(state.last.0 + 1));
        }
        if !self.frame.is_empty() && !self.frame.fits(words.len(), header.count()) {
            return BatchOutcome::FrameFull;
        }
        let skip = if sabotage::is(Sabotage::AcceptTwice) { 0 } else { state.last.0 + 1 - first.0 };
        let pushed = if skip == 0 { self.push_whole(&header, words) } else { self.push_tail(&header, words, skip) };
        if let Err(refused) = pushed {
            return refused;
        }
        self.control.add(Statistic::Duplicates, skip);
        if self.sent == 0 {
            self.sent = header.sent();
        }
        let last = PubSeq(end - 1);
        if let Some(state) = self.catalog.publishers.get_mut(&header.publisher()) {
            state.last = last;
        }
        BatchOutcome::Accepted
    }

    fn push_whole(&mut self, header: &BatchHeader, words: &[u64]) -> Result<(), BatchOutcome> {
        let mark = self.frame.mark();
        self.frame.push_records(header.publisher(), header.epoch(), header.first_pub_seq(), header.count(), words);
        let checked = check_records(self.frame.records_since(&mark), header.count(), self.catalog.symbols.count());
        if checked.is_err() {
            self.frame.rollback(mark);
        }
        checked
    }

    /// Accepts the records after the first `skip`, which were accepted before.
    fn push_tail(&mut self, header: &BatchHeader, words: &[u64], skip: u64) -> Result<(), BatchOutcome> {
        let mut copy = std::mem::take(&mut self.scratch);
        copy.clear();
        copy.extend_from_slice(words);
        let checked = check_records(&copy, header.count(), self.catalog.symbols.count());
        if checked.is_ok() {
            let at: usize = record::split(&copy).take(skip as usize).flatten().map(|r| r.words().len()).sum();
            let first = PubSeq(header.first_pub_seq().0 + skip);
            let rest = copy.get(at..).unwrap_or(&[]);
            self.frame.push_records(header.publisher(), header.epoch(), first, header.count() - skip as u32, rest);
        }
        self.scratch = copy;
        checked
    }

    /// Removes from this process the kinds logged after frame `index`, where the log is about to be truncated.
    pub fn forget_behind(&self, index: u64) {
        self.catalog.forget_behind(index);
    }

    /// Whether the frame that is being filled holds anything.
    pub fn has_frame(&self) -> bool {
        !self.frame.is_empty()
    }

    /// Appends the frame that has been filled and applies it; `None` if it is empty. The caller has called
    /// [`StoreState::is_ready`].
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write has failed.
    pub fn append(&mut self, now: Ts) -> Result<Option<AppliedFrame>> {
        if self.frame.is_empty() {
            return Ok(None);
        }
        let seal = self.memtables.must_seal(u64::from(self.frame.count()));
        let sealed = if seal { Some(Box::new(self.seal())) } else { None };
        let stamps = self.frame.firsts().map(|record| record.own_index_time());
        let ingest_ts = self.ingest_time.next(now, self.writer.chain().ingest_ts, stamps);
        let traced = self.traces.begin(self.writer.chain().index.0 + 1);
        let appended = self.writer.append(&mut self.frame, FrameType::Data, ingest_ts)?;
        let header = appended.header;
        self.control.set_appended(appended.end.lsn, appended.end.position);
        let sent = std::mem::take(&mut self.sent);
        let appended_at = if sent == 0 && traced.is_none() { 0 } else { HostClock.monotonic() };
        let by_kind = self.memtables.apply(self.frame.runs(), self.frame.records(), header.ingest_ts);
        self.control.set_applied(appended.end.lsn);
        let took = since_stamp(sent, appended_at).filter(|_| sent != 0);
        if let Some(took) = took {
            self.control.observe(Histogram::PublishToAppend, took);
            self.control.observe(Histogram::AppendToVisible, HostClock.monotonic().saturating_sub(appended_at));
        }
        if let Some(began) = traced {
            let sent = took.map(|took| appended_at.saturating_sub(took).min(began));
            self.traces.visible(&appended, false, (sent, began, appended_at));
        }
        self.control.add_by_kind(&by_kind);
        if sabotage::is(Sabotage::AckEarly) {
            self.control.set_durable(appended.end.lsn, appended.end.position);
            self.control.set_committed(appended.end.lsn);
        }
        let accepted = self.catalog.runs(&header, self.frame.runs());
        self.count(&appended);
        self.control.add(Statistic::Records, u64::from(header.count));
        self.frame.clear();
        Ok(Some(AppliedFrame { appended, accepted, sealed }))
    }

    /// Seals the active MemTable if it holds records.
    pub fn seal_if_used(&mut self) -> Option<Box<Sealed>> {
        self.memtables.holds_records().then(|| Box::new(self.seal()))
    }

    /// Seals the active MemTable between the last frame and the one that is being filled.
    fn seal(&mut self) -> Sealed {
        let mut mark = self.catalog.mark(*self.writer.chain());
        // The records of the frame that is being filled are not in the log yet.
        for run in self.frame.runs().iter().rev() {
            if let Some((_, state)) = mark.publishers.iter_mut().find(|(p, _)| *p == run.publisher) {
                state.last = PubSeq(run.first_pub_seq.0 - 1);
            }
        }
        self.memtables.seal(mark)
    }

    /// Checks that `frames`, which another host has made, continue the store one after the other.
    ///
    /// # Errors
    /// The first mismatch.
    pub fn vet(&self, frames: &[(FrameHead, &Frame<'_>)]) -> std::result::Result<(), Bad> {
        super::vet::vet(&self.writer, self.catalog.symbols.count(), frames)
    }

    /// Appends and applies a frame that another host has made, whose words are `words`. [`StoreState::vet`] has accepted it, and
    /// there is room for it in the log and in the MemTables.
    ///
    /// # Errors
    /// [`Error::Halted`] if a write has failed; [`Error::NoSharedMemory`] or [`Error::Limit`] if the instruments do not fit.
    pub fn take(&mut self, frame: &Frame<'_>, words: &[u64]) -> Result<AppliedFrame> {
        assert!(self.frame.is_empty(), "a host that appends another's frames fills none");
        let header = &frame.header;
        let seals = header.records() > 0 && self.memtables.must_seal(header.records());
        let sealed = seals.then(|| Box::new(self.seal()));
        let traced = self.traces.begin(header.index.0).map(|began| (began, header.records() > 0));
        let appended = self.writer.append_as_is(header, words)?;
        self.control.set_appended(appended.end.lsn, appended.end.position);
        let appended_at = traced.map_or(0, |_| HostClock.monotonic());
        let mut accepted = Vec::new();
        match &frame.body {
            Body::Empty | Body::Membership(_) => {}
            Body::Control(entries) => {
                entries.iter().try_for_each(|f| self.catalog.entry(f, header.index.0))?;
                self.catalog.publish();
                self.catalog.count(&self.control);
            }
            Body::Data(data) => {
                let by_kind = self.memtables.apply(data.runs, data.records, header.ingest_ts);
                self.control.set_applied(appended.end.lsn);
                self.control.add_by_kind(&by_kind);
                accepted = self.catalog.runs(header, data.runs);
                self.control.add(Statistic::Records, header.records());
            }
        }
        if let Some((began, true)) = traced {
            self.traces.visible(&appended, true, (None, began, appended_at));
        }
        self.count(&appended);
        Ok(AppliedFrame { appended, accepted, sealed })
    }

    fn count(&mut self, appended: &wal::Appended) {
        self.memtables.logged(appended.header.total_len());
        self.ingest_time.seen(appended.header.ingest_ts);
        self.control.add(Statistic::Frames, 1);
        self.control.add(Statistic::Bytes, appended.header.total_len());
        if let records @ 1.. = appended.header.records() {
            self.control.observe(Histogram::FrameRecords, records);
            self.control.observe(Histogram::FrameBytes, appended.header.total_len());
        }
        self.control.set_statistic(Statistic::MemTableUsed, self.memtables.used());
    }

    /// Appends the frame that opens the term `term`, in which this process numbers records.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write has failed.
    pub fn open_term(&mut self, term: Term, now: Ts) -> Result<wal::Appended> {
        self.writer.set_term(term);
        self.append_alone(&mut FrameBuilder::new(), FrameType::NoOp, now)
    }

    /// Appends a frame that changes the cluster's members.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write has failed.
    pub fn change_members(&mut self, change: &Change, now: Ts) -> Result<wal::Appended> {
        let mut frame = FrameBuilder::new();
        frame.push_entry(|words| change.encode(words));
        self.append_alone(&mut frame, FrameType::Membership, now)
    }

    fn append_alone(&mut self, frame: &mut FrameBuilder, kind: FrameType, now: Ts) -> Result<wal::Appended> {
        let ingest_ts = self.ingest_time.next(now, self.writer.chain().ingest_ts, std::iter::empty());
        let appended = self.writer.append(frame, kind, ingest_ts)?;
        self.control.set_appended(appended.end.lsn, appended.end.position);
        self.count(&appended);
        Ok(appended)
    }

    /// Logs that the process `incarnation` of `publisher` publishes in a new epoch, above `above`, from here on; returns its
    /// state.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write has failed; [`tapestore::error::Error::Limit`] if there is no higher
    /// epoch; [`tapestore::error::Error::Invalid`] if this publisher cannot have been granted `above`.
    pub fn begin_epoch(
        &mut self,
        publisher: PublisherId,
        incarnation: u32,
        above: Epoch,
        now: Ts,
    ) -> Result<(PublisherState, wal::Appended)> {
        assert!(self.frame.is_empty(), "control entries are in frames of their own");
        let known = self.publisher(publisher).epoch;
        if above.0.saturating_sub(known.0) > EPOCHS_LOST_MAX {
            // To begin above it would use up the publisher's epochs: the last one retires the publisher for good.
            return Err(Error::invalid("epoch", format!("{above} where the newest is {known}: {NO_SUCH_EPOCH}")));
        }
        let highest = known.max(above);
        let next = highest.0.checked_add(1).filter(|e| *e < u32::MAX);
        let epoch = Epoch(next.ok_or(Error::Limit { what: "a publisher's epoch", limit: u64::from(u32::MAX) - 1 })?);
        let mut frame = FrameBuilder::new();
        frame.push_entry(|words| ControlEntry::Attach { publisher, epoch, incarnation }.encode(words));
        let appended = self.append_alone(&mut frame, FrameType::Control, now)?;
        let state = PublisherState { epoch, incarnation, ..PublisherState::default() };
        self.catalog.publishers.insert(publisher, state);
        Ok((state, appended))
    }

    /// Makes `layout` a kind of the store; returns the appended frame, or `None` if the store has the kind already.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Invalid`] if the store has another layout under its number;
    /// [`tapestore::error::Error::Halted`] if a write has failed; [`tapestore::error::Error::NoSharedMemory`].
    pub fn kind(&mut self, layout: &Layout, now: Ts) -> Result<Option<wal::Appended>> {
        assert!(self.frame.is_empty(), "control entries are in frames of their own");
        let known = self.catalog.kinds.known.get(&layout.kind());
        if known == Some(layout) {
            return Ok(None);
        }
        // Also refuses a layout that contradicts a registered kind.
        layout.register()?;
        self.catalog.kinds.shown.push(layout)?;
        let mut frame = FrameBuilder::new();
        frame.push_entry(|words| ControlEntry::Kind(layout.clone()).encode(words));
        let appended = self.append_alone(&mut frame, FrameType::Control, now)?;
        self.catalog.kinds.logged.push((appended.header.index.0, layout.kind()));
        self.catalog.kinds.known.insert(layout.kind(), layout.clone());
        self.catalog.kinds.new.push(layout.clone());
        self.catalog.kinds.shown.publish();
        self.catalog.count(&self.control);
        Ok(Some(appended))
    }

    /// Returns the instruments called `names`, and registers those that are new: as many as fit in a frame, which is appended
    /// if any was new.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if a write has failed; [`tapestore::error::Error::Limit`] or
    /// [`tapestore::error::Error::NoSharedMemory`] if no more can be registered: neither the first that does not fit nor
    /// those after it were logged then.
    pub fn instruments(&mut self, names: &[Name], now: Ts) -> Result<(Vec<InstrumentId>, Option<wal::Appended>)> {
        assert!(self.frame.is_empty(), "control entries are in frames of their own");
        let mut frame = FrameBuilder::new();
        let mut ids = Vec::new();
        let mut failed = None;
        for name in names {
            if let Some(&id) = self.catalog.ids.get(name) {
                ids.push(id);
                continue;
            }
            if !frame.fits(wal::control_entry::SYMBOL_LEN / 8, 1) {
                break;
            }
            match self.catalog.symbols.push(name) {
                Ok(id) => {
                    frame.push_entry(|words| ControlEntry::Symbol { instrument: id, name: *name }.encode(words));
                    self.catalog.ids.insert(*name, id);
                    self.catalog.names.push(*name);
                    ids.push(id);
                }
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        self.catalog.count(&self.control);
        let appended = if frame.is_empty() {
            None
        } else {
            let appended = self.append_alone(&mut frame, FrameType::Control, now)?;
            self.catalog.symbols.publish();
            Some(appended)
        };
        match failed {
            Some(e) if ids.is_empty() => Err(e),
            _ => Ok((ids, appended)),
        }
    }
}

/// Checks that `words` are `count` whole records, each of one of the `registered` first instruments or of none.
fn check_records(words: &[u64], count: u32, registered: u64) -> Result<(), BatchOutcome> {
    let mut found = 0;
    let mut stranger = None;
    for record in record::split(words) {
        let instrument = record.map_err(|_| BatchOutcome::Malformed)?.instrument();
        // Instruments are numbered from 1.
        if u64::from(instrument.0).wrapping_sub(1) >= registered && instrument != InstrumentId::NULL {
            stranger.get_or_insert(instrument);
        }
        found += 1;
    }
    match stranger {
        _ if found != count => Err(BatchOutcome::Malformed),
        Some(instrument) => Err(BatchOutcome::Unregistered(instrument)),
        None => Ok(()),
    }
}

/// Consensus's term, as frames carry it.
pub(super) fn term_of(term: u64) -> Result<Term> {
    let fits = u32::try_from(term).map(Term);
    fits.map_err(|_| Error::Limit { what: "the term", limit: u64::from(u32::MAX) })
}

/// Whether a frame can be appended now; if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// The next segment is not prepared yet.
    NoSegment,
    /// The MemTables are full.
    MemTableFull,
}
