//! Owns: the messages of a publisher's attach handshake, over a Unix socket in the run directory.
//!
//! A socket, because the kernel notifies each end at once of the other's death, by any cause, and reports
//! the peer's identity (a shared-memory request can do neither).
//!
//! ```text
//! message   magic u32 · version u16 · type u16 · payload bytes u32 · 0 u32 · payload
//! 1 attach    publisher u16 · mode u8 (0 new, 1 resume, 2 new if none is live) · level u8 · epoch u32 (resume) · incarnation u32
//! 2 attached  grant u64 · slot u32 · epoch u32 · pub_seq u64 · lsn u64 · instance u64 · level u64
//! 3 symbols   names of 72 bytes: length u8, 71 bytes
//! 4 ids       u32 a name
//! 5 refused   text: the reason
//! 6 fenced    epoch u32: the one in force
//! 7 kind      the layout of a kind that the program defined (`record::Layout`)
//! 8 known     nothing: the kind is in the catalog
//! 9 not leader  node u64
//! 10 taken    nothing: a live process is attached as this publisher
//! ```
//!
//! What must hold: parsing is total, and lengths are checked before anything is allocated.

use std::io::{Read, Write};

use crate::error::{Error, Result};
use crate::lsn::{Durability, Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Layout, Name};

const MAGIC: u32 = u32::from_le_bytes(*b"tatt");
const VERSION: u16 = 1;
const HEAD_LEN: usize = 16;
const PAYLOAD_MAX: usize = 1 << 20;
/// Most bytes of a message.
pub const MESSAGE_MAX: usize = HEAD_LEN + PAYLOAD_MAX;
const NAME_LEN: usize = 72;

/// Most names in one message.
pub const NAMES_MAX: usize = 8192;

/// How a publisher attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As new: the epoch rises, and the process attached before as this publisher is fenced.
    New,
    /// As new, but only if no live process of this host is attached as this publisher.
    Free,
    /// Continues this epoch: the publisher has kept its unacknowledged records.
    Resume(Epoch),
}

/// A message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Request to attach.
    Attach {
        /// The publisher.
        publisher: PublisherId,
        /// How it attaches.
        mode: Mode,
        /// The requested level.
        level: Durability,
        /// Identifies the process: a random number.
        incarnation: u32,
    },
    /// The publisher is attached. Its records up to `pub_seq` are durable.
    Attached(Grant),
    /// Request for the ids of these names.
    Symbols(Vec<Name>),
    /// The ids, in the order of the names.
    Ids(Vec<InstrumentId>),
    /// The request was refused for this reason.
    Refused(String),
    /// Refused: a newer process is attached as this publisher, in this epoch.
    Fenced(Epoch),
    /// Request to add this kind to the catalog.
    Kind(Box<Layout>),
    /// The kind is in the catalog.
    Registered,
    /// Refused: this node is the leader, and this host does not forward; 0: the leader is unknown.
    NotLeader(u64),
    /// Refused: a live process is attached as this publisher and would be fenced.
    Taken,
}

/// The grant that storage gives to a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Number of the grant, never reused; names the ingest service.
    pub grant: u64,
    /// The slot that carries its acknowledgements.
    pub slot: usize,
    /// The epoch it writes in.
    pub epoch: Epoch,
    /// The last of its records that storage has.
    pub pub_seq: PubSeq,
    /// That record's LSN; 0 if unknown.
    pub lsn: Lsn,
    /// The instance that granted it.
    pub instance: u64,
    /// The level in force: the requested one or a higher one.
    pub level: Durability,
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
}

impl Message {
    fn payload(&self) -> (u16, Vec<u8>) {
        let mut out = Vec::new();
        let kind = match self {
            Message::Attach { publisher, mode, level, incarnation } => {
                let (mode, epoch) = match mode {
                    Mode::New => (0u8, 0),
                    Mode::Free => (2, 0),
                    Mode::Resume(epoch) => (1, epoch.0),
                };
                out.extend(publisher.0.to_le_bytes());
                out.extend([mode, *level as u8]);
                out.extend(epoch.to_le_bytes());
                out.extend(incarnation.to_le_bytes());
                1
            }
            Message::Attached(g) => {
                out.extend(g.grant.to_le_bytes());
                out.extend((g.slot as u32).to_le_bytes());
                out.extend(g.epoch.0.to_le_bytes());
                for word in [g.pub_seq.0, g.lsn.0, g.instance, g.level as u64] {
                    out.extend(word.to_le_bytes());
                }
                2
            }
            Message::Symbols(names) => {
                for name in names {
                    let text = name.as_str().as_bytes();
                    out.push(text.len() as u8);
                    out.extend(text);
                    out.extend(std::iter::repeat_n(0, NAME_LEN - 1 - text.len()));
                }
                3
            }
            Message::Ids(ids) => {
                ids.iter().for_each(|id| out.extend(id.0.to_le_bytes()));
                4
            }
            Message::Refused(text) => {
                out.extend(text.bytes().take(1000));
                5
            }
            Message::Fenced(epoch) => {
                out.extend(epoch.0.to_le_bytes());
                6
            }
            Message::Kind(layout) => {
                layout.encode().iter().for_each(|word| out.extend(word.to_le_bytes()));
                7
            }
            Message::Registered => 8,
            Message::NotLeader(node) => {
                out.extend(node.to_le_bytes());
                9
            }
            Message::Taken => 10,
        };
        (kind, out)
    }

    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = self.payload();
        assert!(payload.len() <= PAYLOAD_MAX, "a message of {} bytes", payload.len());
        let mut out = Vec::with_capacity(HEAD_LEN + payload.len());
        out.extend(MAGIC.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((payload.len() as u32).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(payload);
        out
    }

    /// The first message in `bytes` and its length; `None` if it is incomplete.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no further bytes can make it a message.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Message, usize)>> {
        let bad = |reason: &str| Error::invalid("attach message", reason);
        let mut head = Fields(bytes);
        let (Some(magic), Some(version), Some(kind)) =
            (head.u32(), head.take().map(u16::from_le_bytes), head.take().map(u16::from_le_bytes))
        else {
            return Ok(None);
        };
        if magic != MAGIC || version != VERSION {
            return Err(bad("its magic or version is not this program's"));
        }
        let (Some(len), Some(_)) = (head.u32(), head.u32()) else { return Ok(None) };
        let len = len as usize;
        if len > PAYLOAD_MAX {
            return Err(bad("it is too long"));
        }
        let Some(payload) = head.0.get(..len) else { return Ok(None) };
        let message = Message::parse(kind, payload).ok_or_else(|| bad("its contents are malformed"))?;
        Ok(Some((message, HEAD_LEN + len)))
    }

    fn parse(kind: u16, payload: &[u8]) -> Option<Message> {
        let mut fields = Fields(payload);
        let message = match kind {
            1 => {
                let publisher = PublisherId(fields.take().map(u16::from_le_bytes)?);
                let [mode, level] = fields.take()?;
                let epoch = Epoch(fields.u32()?);
                let mode = match mode {
                    0 => Mode::New,
                    1 => Mode::Resume(epoch),
                    2 => Mode::Free,
                    _ => return None,
                };
                Message::Attach { publisher, mode, level: Durability::from_raw(level)?, incarnation: fields.u32()? }
            }
            2 => {
                let (grant, slot, epoch) = (fields.u64()?, fields.u32()? as usize, Epoch(fields.u32()?));
                let (pub_seq, lsn, instance) = (PubSeq(fields.u64()?), Lsn(fields.u64()?), fields.u64()?);
                let level = Durability::from_raw(u8::try_from(fields.u64()?).ok()?)?;
                if slot >= SLOTS_MAX {
                    return None;
                }
                Message::Attached(Grant { grant, slot, epoch, pub_seq, lsn, instance, level })
            }
            3 => {
                let mut names = Vec::new();
                while !fields.0.is_empty() {
                    let name: [u8; NAME_LEN] = fields.take()?;
                    let (&len, text) = name.split_first()?;
                    names.push(Name::new(text.get(..usize::from(len))?).ok()?);
                }
                if names.len() > NAMES_MAX {
                    return None;
                }
                Message::Symbols(names)
            }
            4 => {
                let mut ids = Vec::new();
                while !fields.0.is_empty() {
                    ids.push(InstrumentId(fields.u32()?));
                }
                Message::Ids(ids)
            }
            5 => Message::Refused(String::from_utf8_lossy(std::mem::take(&mut fields.0)).into_owned()),
            6 => Message::Fenced(Epoch(fields.u32()?)),
            7 => {
                let mut words = Vec::with_capacity(fields.0.len() / 8);
                while !fields.0.is_empty() {
                    words.push(fields.u64()?);
                }
                let layout = Layout::parse(&words)?;
                if layout.encode().len() != words.len() {
                    return None;
                }
                Message::Kind(Box::new(layout))
            }
            8 => Message::Registered,
            9 => Message::NotLeader(fields.u64()?),
            10 => Message::Taken,
            _ => return None,
        };
        fields.0.is_empty().then_some(message)
    }
}

/// Slots of the control page, one of which a grant names.
pub const SLOTS_MAX: usize = 256;

/// Sends `request` and waits for the answer, for as long as the stream's own limits allow.
///
/// # Errors
/// The stream's error; `InvalidData` if the answer cannot be decoded.
pub fn ask(stream: &mut (impl Read + Write), request: &Message) -> std::io::Result<Message> {
    stream.write_all(&request.encode())?;
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        match Message::decode(&bytes) {
            Ok(Some((message, _))) => return Ok(message),
            Ok(None) => {}
            Err(e) => return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, e.to_string())),
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend(chunk.get(..read).unwrap_or(&[]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_decodes_to_itself_and_its_prefixes_are_incomplete() {
        let grant =
            Grant { grant: 5, slot: 255, epoch: Epoch(2), pub_seq: PubSeq(3), lsn: Lsn(4), instance: 6, level: Durability::Os };
        let messages = [
            Message::Attach {
                publisher: PublisherId(7),
                mode: Mode::Resume(Epoch(9)),
                level: Durability::Fsync,
                incarnation: 1 << 31,
            },
            Message::Attach { publisher: PublisherId(7), mode: Mode::New, level: Durability::None, incarnation: 4 },
            Message::Attached(grant),
            Message::Symbols(vec!["A".parse().unwrap(), "B:C".parse().unwrap()]),
            Message::Ids(vec![InstrumentId(1), InstrumentId(2)]),
            Message::Refused("because".into()),
            Message::NotLeader(3),
            Message::Taken,
            Message::Attach { publisher: PublisherId(7), mode: Mode::Free, level: Durability::Os, incarnation: 4 },
            Message::Fenced(Epoch(3)),
            Message::Kind(Box::new(crate::record::example_layout())),
            Message::Registered,
        ];
        for message in messages {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), Some((message, bytes.len())));
            for len in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..len]).unwrap(), None);
            }
        }
    }

    proptest! {
        #[test]
        fn decoding_is_total(mut bytes in proptest::collection::vec(any::<u8>(), 16..200), kind in 0u16..11, len in 0u32..190) {
            let mut head = MAGIC.to_le_bytes().to_vec();
            head.extend(VERSION.to_le_bytes());
            head.extend(kind.to_le_bytes());
            head.extend(len.to_le_bytes());
            bytes[..12].copy_from_slice(&head);
            drop(Message::decode(&bytes));
        }
    }
}
