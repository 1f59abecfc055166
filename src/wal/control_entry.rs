//! Owns: control entries, the payload of control frames: a publisher's attach, an instrument's name, the layout of a
//! user-defined kind.
//!
//! ```text
//! attach  16 B   type u16 = 1 · bytes u16 · publisher u16 · 0 u16 · epoch u32 · incarnation u32
//! symbol  80 B   type u16 = 2 · bytes u16 · instrument u32 · length u8 · name 71 B
//! kind    any    type u16 = 3 · bytes u16 · 0 u32 · the layout (`record::Layout`)
//! ```
//!
//! What must hold: parsing is total: malformed or unknown bytes are an error.

use super::format::{Bad, Header};
use crate::lsn::{Epoch, InstrumentId, PublisherId};
use crate::record::{LAYOUT_WORDS_MAX, Layout, Name};

const ATTACH: u16 = 1;
const ATTACH_LEN: usize = 16;
const SYMBOL: u16 = 2;
/// Bytes of a symbol entry.
pub const SYMBOL_LEN: usize = 80;
const KIND: u16 = 3;

// The longest layout fits in a frame of its own.
const _: () = assert!((LAYOUT_WORDS_MAX + 1) * 8 < super::format::FRAME_PAYLOAD_MAX);

/// A control entry; it takes effect at its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEntry {
    /// Opens an epoch of the publisher and fences the lower ones.
    Attach {
        /// The publisher.
        publisher: PublisherId,
        /// The new epoch.
        epoch: Epoch,
        /// Number of the publisher's process. By it the process finds an epoch that was granted to it but whose answer it
        /// did not receive.
        incarnation: u32,
    },
    /// Names an instrument.
    Symbol {
        /// The instrument.
        instrument: InstrumentId,
        /// Its name.
        name: Name,
    },
    /// Defines the layout of a kind.
    Kind(Layout),
}

impl ControlEntry {
    /// Appends the encoded entry to `words`.
    pub fn encode(&self, words: &mut Vec<u64>) {
        match self {
            ControlEntry::Attach { publisher, epoch, incarnation } => {
                words.push(u64::from(ATTACH) | (ATTACH_LEN as u64) << 16 | u64::from(publisher.0) << 32);
                words.push(u64::from(epoch.0) | u64::from(*incarnation) << 32);
            }
            ControlEntry::Symbol { instrument, name } => {
                words.push(u64::from(SYMBOL) | (SYMBOL_LEN as u64) << 16 | u64::from(instrument.0) << 32);
                words.extend(name_words(name));
            }
            ControlEntry::Kind(layout) => {
                let layout = layout.encode();
                words.push(u64::from(KIND) | ((layout.len() as u64 + 1) * 8) << 16);
                words.extend(layout);
            }
        }
    }

    /// Parses the entries of the control frame `header` with the payload `words`.
    ///
    /// # Errors
    /// The first malformed or unknown entry, or a wrong count.
    pub fn parse_all(header: &Header, words: &[u64]) -> Result<Vec<ControlEntry>, Bad> {
        let mut entries = Vec::with_capacity((header.count as usize).min(words.len()));
        let mut rest = words;
        while let Some(&head) = rest.first() {
            let bytes = (head >> 16) as u16 as usize;
            let bad = Bad { what: "control entry", expected: head & 0xffff, found: bytes as u64 };
            let (mine, after) = rest.split_at_checked(bytes / 8).filter(|(m, _)| !m.is_empty()).ok_or(bad)?;
            entries.push(ControlEntry::parse(head, mine).ok_or(bad)?);
            rest = after;
        }
        if entries.len() == header.count as usize {
            Ok(entries)
        } else {
            Err(Bad { what: "control entries of a frame", expected: u64::from(header.count), found: entries.len() as u64 })
        }
    }

    fn parse(head: u64, words: &[u64]) -> Option<ControlEntry> {
        let (kind, bytes) = (head as u16, (head >> 16) as u16 as usize);
        match (kind, bytes) {
            (ATTACH, ATTACH_LEN) => {
                let (publisher, word) = (PublisherId((head >> 32) as u16), *words.get(1)?);
                Some(ControlEntry::Attach { publisher, epoch: Epoch(word as u32), incarnation: (word >> 32) as u32 })
            }
            (SYMBOL, SYMBOL_LEN) => {
                Some(ControlEntry::Symbol { instrument: InstrumentId((head >> 32) as u32), name: parse_name(words.get(1..)?)? })
            }
            (KIND, _) => Layout::parse(words.get(1..)?).filter(|l| l.encode().len() + 1 == words.len()).map(ControlEntry::Kind),
            _ => None,
        }
    }
}

/// Words of an encoded name: its length, then its bytes.
pub const NAME_WORDS: usize = 9;

/// Encodes `name`.
pub fn name_words(name: &Name) -> [u64; NAME_WORDS] {
    let mut bytes = [0u8; NAME_WORDS * 8];
    let text = name.as_str().as_bytes();
    for (to, from) in bytes.iter_mut().zip(std::iter::once(&(text.len() as u8)).chain(text)) {
        *to = *from;
    }
    bytemuck::cast(bytes)
}

/// Parses the name in the untrusted `words`; `None` if it is malformed.
pub fn parse_name(words: &[u64]) -> Option<Name> {
    let bytes: &[u8] = bytemuck::cast_slice(words.get(..NAME_WORDS)?);
    let (&len, text) = bytes.split_first()?;
    Name::new(text.get(..usize::from(len))?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(count: u32) -> Header {
        Header { count, ..bytemuck::Zeroable::zeroed() }
    }

    #[test]
    fn control_entries_round_trip() {
        let entries = [
            ControlEntry::Attach { publisher: PublisherId(7), epoch: Epoch(3), incarnation: 0xdead_beef },
            ControlEntry::Symbol { instrument: InstrumentId(9), name: "BINANCE:BTCUSDT".parse().unwrap() },
            ControlEntry::Kind(crate::record::example_layout()),
        ];
        let mut words = Vec::new();
        entries.iter().for_each(|e| e.encode(&mut words));
        assert_eq!(ControlEntry::parse_all(&header(3), &words).unwrap(), entries);
        assert!(ControlEntry::parse_all(&header(4), &words).is_err());
        assert!(ControlEntry::parse_all(&header(3), &words[..words.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn parsing_is_total(words in proptest::collection::vec(any::<u64>(), 0..30), kind in 0u64..4, len in 0u64..100) {
            let mut words = words;
            if let Some(w) = words.first_mut() { *w = kind | len << 16; }
            drop(ControlEntry::parse_all(&header(1), &words));
        }
    }
}
