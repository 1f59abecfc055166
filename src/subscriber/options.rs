//! Owns: the options of a subscriber, and which records pass its filter.
//!
//! What must hold: a filter decides by the first word of a record, which names its kind and its instrument. A name that is not
//! registered yet passes from its registration on.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::agent::Wait;
use crate::record::{Kind, Name};
use crate::shm::symbols::Symbols;

/// Options of a [`super::Subscriber`].
///
/// ```
/// use tapestore::record::{Quote, Record, Trade};
/// use tapestore::subscriber::{Options, Wait};
///
/// let mut options = Options::new("tapestore-data");
/// options.instruments = vec!["XNAS:AAPL".parse()?];
/// options.kinds = vec![Trade::KIND, Quote::KIND];
/// options.wait = Wait::Busy;
/// options.core = Some(3);
/// # Ok::<(), tapestore::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory of the store.
    pub store: PathBuf,
    /// Names of the instruments to receive; empty: all. A name may be registered later.
    pub instruments: Vec<Name>,
    /// Kinds to receive; empty: all.
    pub kinds: Vec<Kind>,
    /// How [`super::Subscriber::wait`] waits.
    pub wait: Wait,
    /// CPU core to which the thread that opens the subscriber is pinned.
    pub core: Option<usize>,
}

impl Options {
    /// All records of the store in the directory `store`; [`super::Subscriber::wait`] sleeps until one is sent.
    pub fn new(store: impl Into<PathBuf>) -> Options {
        Options { store: store.into(), instruments: Vec::new(), kinds: Vec::new(), wait: Wait::Blocking, core: None }
    }
}

/// Which records to deliver.
#[derive(Debug, Default)]
pub(super) struct Filter {
    kinds: Vec<Kind>,
    /// Names that are not registered yet.
    unregistered: Vec<Name>,
    instruments: HashSet<u32>,
    by_instrument: bool,
}

impl Filter {
    pub(super) fn new(options: &Options) -> Filter {
        let unregistered = options.instruments.clone();
        let by_instrument = !unregistered.is_empty();
        Filter { kinds: options.kinds.clone(), unregistered, instruments: HashSet::new(), by_instrument }
    }

    /// Whether every record passes.
    pub(super) fn is_all(&self) -> bool {
        self.kinds.is_empty() && !self.by_instrument
    }

    /// Whether the catalog must be looked at for names.
    pub(super) fn has_unregistered(&self) -> bool {
        !self.unregistered.is_empty()
    }

    /// Looks up the names that are registered by now.
    pub(super) fn resolve(&mut self, symbols: &mut Symbols) {
        let instruments = &mut self.instruments;
        self.unregistered.retain(|name| match symbols.id(name) {
            Some(id) => {
                instruments.insert(id.0);
                false
            }
            None => true,
        });
    }

    /// Forgets the numbers of the instruments: another copy of the store may number them otherwise.
    pub(super) fn restart(&mut self, options: &Options) {
        *self = Filter::new(options);
    }

    /// Whether a record that begins with the word `head` passes.
    #[inline]
    pub(super) fn passes(&self, head: u64) -> bool {
        let (kind, instrument) = (Kind(head as u16), (head >> 32) as u32);
        (self.kinds.is_empty() || self.kinds.contains(&kind)) && (!self.by_instrument || self.instruments.contains(&instrument))
    }
}
