//! Owns: the catalog, which the log defines beside records: publishers with their epochs and last numbers, instruments,
//! kinds.
//!
//! What must hold: the catalog is as of one frame of the log; everything of it in shared memory is in the log.

use std::collections::HashMap;

use super::memtables::Mark;
use tapestore::error::Result;
use tapestore::lsn::{InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::manifest::{PublisherState, State};
use tapestore::record::{self, Kind, Layout, Name};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::control::{Control, Statistic};
use tapestore::shm::kinds::KindsWriter;
use tapestore::shm::symbols::SymbolsWriter;
use tapestore::wal::{Chain, ControlEntry, Header, Run};

/// The catalog as of one frame.
pub(super) struct Catalog {
    pub(super) publishers: HashMap<PublisherId, PublisherState>,
    pub(super) ids: HashMap<Name, InstrumentId>,
    pub(super) symbols: SymbolsWriter,
    /// Names logged since the last MemTable was sealed.
    pub(super) names: Vec<Name>,
    pub(super) kinds: Kinds,
}

/// The kinds that programs have defined.
pub(super) struct Kinds {
    pub(super) known: HashMap<Kind, Layout>,
    pub(super) shown: KindsWriter,
    /// Logged since the last MemTable was sealed.
    pub(super) new: Vec<Layout>,
    /// The frame after the checkpoint that logged each.
    pub(super) logged: Vec<(u64, Kind)>,
}

impl Catalog {
    /// Loads the catalog of a checkpoint.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Limit`] or [`tapestore::error::Error::NoSharedMemory`] if the instruments do not fit.
    pub(super) fn new(mut symbols: SymbolsWriter, mut shown: KindsWriter, checkpoint: &State) -> Result<Catalog> {
        let publishers = checkpoint.publishers.iter().map(|(p, s)| (*p, *s)).collect();
        let mut ids = HashMap::with_capacity(checkpoint.names.len());
        for name in &checkpoint.names {
            ids.insert(*name, symbols.push(name)?);
        }
        checkpoint.kinds.iter().try_for_each(|layout| shown.push(layout))?;
        let known = checkpoint.kinds.iter().map(|l| (l.kind(), l.clone())).collect();
        let kinds = Kinds { known, shown, new: Vec::new(), logged: Vec::new() };
        Ok(Catalog { publishers, ids, symbols, names: Vec::new(), kinds })
    }

    /// Removes from this process the kinds that frames after `index` logged: these frames are no longer part of the log.
    pub(super) fn forget_behind(&self, index: u64) {
        self.kinds.logged.iter().filter(|(frame, _)| *frame > index).for_each(|(_, kind)| record::forget(*kind));
    }

    /// Applies a control entry of frame `index` of the log.
    ///
    /// # Errors
    /// As [`Catalog::new`].
    pub(super) fn entry(&mut self, entry: &ControlEntry, index: u64) -> Result<()> {
        match entry {
            &ControlEntry::Attach { publisher, epoch, incarnation } => {
                self.publishers.insert(publisher, PublisherState { epoch, incarnation, ..PublisherState::default() });
            }
            &ControlEntry::Symbol { instrument, name } => {
                let id = self.symbols.push(&name)?;
                debug_assert_eq!(id, instrument);
                self.ids.insert(name, id);
                self.names.push(name);
            }
            ControlEntry::Kind(layout) => {
                layout.register()?;
                self.kinds.logged.push((index, layout.kind()));
                self.kinds.shown.push(layout)?;
                self.kinds.known.insert(layout.kind(), layout.clone());
                self.kinds.new.push(layout.clone());
            }
        }
        Ok(())
    }

    /// Applies the `runs` of the frame `header`; returns the last number and LSN of each publisher in it.
    pub(super) fn runs(&mut self, header: &Header, runs: &[Run]) -> Vec<(PublisherId, PubSeq, Lsn)> {
        let mut accepted: Vec<(PublisherId, PubSeq, Lsn)> = Vec::with_capacity(runs.len());
        let mut lsn = header.first_lsn;
        for run in runs {
            let count = u64::from(run.count);
            lsn = lsn.plus(count);
            let last = (run.publisher, PubSeq(run.first_pub_seq.0 + count - 1), Lsn(lsn.0 - 1));
            let state = self.publishers.entry(run.publisher).or_default();
            // The control entry that began the epoch precedes its records.
            (state.epoch, state.last, state.lsn) = (run.epoch, last.1, last.2);
            match accepted.iter_mut().find(|a| a.0 == run.publisher) {
                Some(known) => *known = last,
                None => accepted.push(last),
            }
        }
        accepted
    }

    /// Returns what must survive with the log up to `chain`.
    pub(super) fn mark(&mut self, chain: Chain) -> Mark {
        let publishers = self.publishers.iter().map(|(p, s)| (*p, *s)).collect();
        let (names, kinds) = (std::mem::take(&mut self.names), std::mem::take(&mut self.kinds.new));
        Mark { chain, publishers, names, kinds }
    }

    /// Publishes what has been applied.
    pub(super) fn publish(&mut self) {
        if sabotage::is(Sabotage::ForgetPublishers) {
            self.publishers.clear();
        }
        self.symbols.publish();
        self.kinds.shown.publish();
    }

    /// Publishes how many instruments and kinds there are, for `tape status`.
    pub(super) fn count(&self, control: &Control) {
        control.set_statistic(Statistic::Instruments, self.symbols.count());
        control.set_statistic(Statistic::Kinds, self.kinds.known.len() as u64);
    }
}
