//! Owns: what an input is, and the messages that it gives.

use std::collections::BTreeMap;

use tapestore::lsn::InstrumentId;
use tapestore::record::{Name, Record};
use tapestore::time::Ts;

use crate::error::Result;
use crate::progress::Progress;

/// Records that came together.
#[derive(Debug, Default)]
pub struct Message {
    /// When they came; null if they have no time of their own.
    pub at: Ts,
    /// The records, one after the other.
    pub words: Vec<u64>,
    /// How many.
    pub records: u32,
}

impl Message {
    /// Empties it.
    pub fn clear(&mut self) {
        self.words.clear();
        self.records = 0;
    }

    /// Adds a record.
    pub fn push<R: Record>(&mut self, record: &R) {
        self.words.extend_from_slice(record.words());
        self.records += 1;
    }

    /// Makes what it holds one record of the input's instrument `number`, which came at the time in its word `index_word`;
    /// of the venue feed `source`, if that is given.
    pub(super) fn set_row(&mut self, number: u32, source: Option<u16>, index_word: usize) {
        if let Some(head) = self.words.first_mut() {
            let source = source.map_or(*head >> 16 & 0xffff, u64::from);
            *head = *head & 0xffff | source << 16 | u64::from(number) << 32;
        }
        self.records = 1;
        self.at = Ts(self.words.get(index_word).copied().unwrap_or(0));
    }
}

/// Where records come from.
pub trait Input {
    /// The next message, into `message`; `false` at the end.
    ///
    /// # Errors
    /// Where and why the input cannot be read on; what came before has been given.
    fn next(&mut self, message: &mut Message) -> Result<bool>;

    /// The instruments met so far, in the order of their numbers in this input.
    fn names(&self) -> &[Name];

    /// How far it has been read.
    fn progress(&self) -> Progress;

    /// What was met that no record can hold, and how often: it is left in the source.
    fn left(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// The number by which an input calls the instrument of records that have none.
pub const NO_INSTRUMENT: u32 = InstrumentId::NULL.0;
/// How text names it.
pub const NO_NAME: &str = "-";
