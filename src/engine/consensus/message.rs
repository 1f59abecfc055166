//! Owns: the messages between a storage process and its replication process, over a stream socket in the run directory.
//!
//! ```text
//! length u32 (little-endian, of what follows) · a `Message` as postcard encodes it
//! ```
//!
//! The connection is a session: messages not delivered when it ends are lost, and consensus sends them again. A writer calls
//! [`tapestore::shm::bell::Bells::post`] after writing, because storage reads the socket only when it is notified.
//!
//! What must hold: decoding is total on any bytes and allocates no more than arrived. Nothing here is trusted: the appending
//! side checks each frame against the log's chain.

use serde::{Deserialize, Serialize};

use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Version of these messages; both ends belong to one installation.
pub const VERSION: u32 = 5;
/// Version of the bytes of a raft message between hosts ([`Raft::encode`]), their first byte.
pub const RAFT_VERSION: u8 = 1;
/// Most bytes of one message.
pub const MESSAGE_MAX: usize = 16 << 20;
/// Raft's number of the message type that carries frames.
pub(super) const APPEND: u8 = 3;
/// The last term: frames store it in 32 bits.
pub const TERM_MAX: u64 = u32::MAX as u64;
/// The last generation.
pub const GENERATION_MAX: u64 = u32::MAX as u64;
/// The last index of a frame: adding to an index from outside does not overflow.
pub const INDEX_MAX: u64 = 1 << 62;
/// Bytes before a message.
const LENGTH: usize = 4;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Replication process, first: its version of the messages and its process.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Process id.
        pid: u32,
    },
    /// Storage, in answer: its identity.
    Welcome(Identity),
    /// Storage: it rejects the connection, which then ends.
    Refused(String),
    /// Storage, in answer to `Hello` and on every change: all members, with this node if it is one.
    Members(Vec<Member>),
    /// Storage, in answer to `Hello` and on every change of role, term or leader.
    State(State),
    /// Either way: a message of raft, to `message.to` or from `message.from`.
    Raft(Raft),
    /// Replication process: messages to this node may be lost.
    Unreachable(NodeId),
    /// Replication process: it has reached this node, of this generation.
    Reached {
        /// The node.
        node: NodeId,
        /// Its generation.
        generation: u64,
        /// The last frame of its log, as its storage last reported it.
        last: u64,
        /// Whether it needs a snapshot of the leader's store.
        needs_snapshot: bool,
    },
    /// Replication process: this node rejects this host.
    Rejected {
        /// The node.
        node: NodeId,
        /// Its reason.
        reason: String,
    },
    /// Leading storage: its log no longer holds the frames that a node needs, so that node must fetch a snapshot.
    SnapshotNeeded {
        /// The node.
        node: NodeId,
        /// The first frame in the log.
        first: u64,
    },
    /// Joining storage: it needs a snapshot of this leader's store.
    FetchSnapshot {
        /// The leader.
        leader: NodeId,
    },
    /// Replication process: a snapshot of another host's store has been fetched and verified.
    SnapshotFetched,
    /// Either way: bytes from one storage process to another, opaque to replication. They arrive in order while the
    /// connection between the two nodes lasts.
    Relay {
        /// The receiver.
        to: NodeId,
        /// The sender.
        from: NodeId,
        /// The bytes.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Replication process, or an operator's tool: a command.
    Command {
        /// Returned with the answer.
        id: u64,
        /// The command.
        command: Command,
    },
    /// Storage: result of a command.
    Answer {
        /// Id of the command.
        id: u64,
        /// A report, or the reason why it was refused.
        result: std::result::Result<Report, Refusal>,
    },
}

/// The reason why storage refuses a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The host that greets is not of this cluster, or not the one that had its number before: its connection is rejected.
    Host(String),
    /// The command cannot be carried out, or not now.
    Command(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Refusal::Host(reason) | Refusal::Command(reason)) = self;
        f.write_str(reason)
    }
}

impl std::error::Error for Refusal {}

/// Identity of a storage process in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster: its store's identity, the same on every host.
    pub cluster: u128,
    /// This host's number.
    pub node: NodeId,
    /// The greeting for hosts that it meets.
    pub greeting: Greeting,
    /// Generation: rises at every forced promotion.
    pub generation: u64,
    /// Id of this start of storage.
    pub session: u64,
    /// Bytes of a log segment.
    pub segment_size: u64,
    /// Directory of the store; the log is in `wal` in it.
    pub store: std::path::PathBuf,
    /// Time between heartbeats, ms.
    pub heartbeat_ms: u64,
    /// Least time without heartbeats after which a follower campaigns, ms.
    pub election_ms: u64,
    /// Whether it acknowledges a frame before that is on its disk.
    pub is_lossy: bool,
}

/// Greeting of a host to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its number.
    pub node: NodeId,
    /// Incarnation of the node; a node that lost its files gets a new one.
    pub incarnation: u64,
    /// Whether it is fresh: it has never voted.
    pub is_fresh: bool,
    /// Hash of the initial members; 0: its members are of later origin.
    pub initial_members: u64,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// Address of its replication process: `host:port`.
    pub address: String,
    /// Whether it counts towards a majority.
    pub is_voter: bool,
}

/// Role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u64)]
pub enum Role {
    /// Accepts records and numbers them.
    Leader = 1,
    /// Holds the leader's log; campaigns when the leader is gone.
    Follower = 2,
    /// Campaigns.
    Candidate = 3,
    /// Holds the leader's log and does not vote.
    Learner = 4,
}

/// State of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The newest term that it has seen.
    pub term: u64,
    /// Its role in that term.
    pub role: Role,
    /// The leader, if it is known.
    pub leader: Option<NodeId>,
    /// Index of its last frame.
    pub last: u64,
    /// Term of that frame. Of two logs the one with the higher last term is newer; with equal terms, the longer one.
    pub last_term: u64,
    /// Index up to which its frames are committed.
    pub committed: u64,
}

/// A frame that a message of raft names: its bytes are at `position` in the sender's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameHead {
    /// 0 for an ordinary frame, 2 for a change of members: the number of raft's entry type.
    pub kind: u8,
    /// Term of the frame.
    pub term: u64,
    /// Index of the frame.
    pub index: u64,
    /// Position in the log.
    pub position: u64,
    /// Length in bytes, with header and padding.
    pub len: u32,
    /// CRC of its header, which contains the payload's CRC.
    pub header_crc: u32,
}

/// A message of raft: the fields of the raft crate's own message, with the meaning of the raft paper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raft {
    /// The raft crate's number of the message type.
    pub kind: u8,
    /// The receiver.
    pub to: NodeId,
    /// The sender.
    pub from: NodeId,
    /// Term.
    pub term: u64,
    /// Term of the frame at `index`.
    pub log_term: u64,
    /// Index.
    pub index: u64,
    /// Index up to which frames are committed.
    pub commit: u64,
    /// Term of the frame at `commit`.
    pub commit_term: u64,
    /// Whether a request is rejected.
    pub reject: bool,
    /// Index to try next.
    pub reject_hint: u64,
    /// Index from which the follower asks for a snapshot; 0: it does not.
    pub request_snapshot: u64,
    /// Priority of a candidate.
    pub priority: i64,
    /// Context of the raft crate.
    #[serde(with = "serde_bytes")]
    pub context: Vec<u8>,
    /// The frames to append.
    pub heads: Vec<FrameHead>,
    /// Their bytes, one after the other; empty from storage to its replication process, which reads them from the log.
    #[serde(with = "serde_bytes")]
    pub frames: Vec<u8>,
}

impl Raft {
    /// The message as hosts send it to each other: [`RAFT_VERSION`], then its fields as postcard encodes them. The bytes of its
    /// frames travel beside it and are not in it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>> {
        debug_assert!(self.frames.is_empty(), "frames travel beside the message");
        postcard::to_extend(self, vec![RAFT_VERSION]).map_err(|e| Error::invalid("raft message", e.to_string()))
    }

    /// Decodes a message that [`Raft::encode`] made. Total on any bytes; allocates no more than they hold. Call
    /// [`Raft::check`] before using it.
    ///
    /// # Errors
    /// [`Error::Invalid`]: another version, or no such message.
    pub fn decode(bytes: &[u8]) -> Result<Raft> {
        match bytes.split_first() {
            Some((&RAFT_VERSION, body)) => postcard::from_bytes(body).map_err(|e| Error::invalid("raft message", e.to_string())),
            Some((version, _)) => {
                Err(Error::invalid("raft message", format!("version {version}; this host reads {RAFT_VERSION}")))
            }
            None => Err(Error::invalid("raft message", "it is empty")),
        }
    }

    /// Checks the numbers of a received message: everything that is stored, narrowed or added to is within bounds, and the
    /// frames are consecutive. Hosts adopt every higher term, so one above [`TERM_MAX`] would end all elections, on every host
    /// and after every start.
    ///
    /// # Errors
    /// [`Error::Consensus`]: the number that is out of bounds.
    pub fn check(&self) -> Result<()> {
        let bad = |cause: String| Err(Error::Consensus { what: "accept a message", cause });
        if self.from == NodeId(0) || self.to == NodeId(0) || self.from == self.to {
            return bad(format!("it is from node {} to node {}", self.from, self.to));
        }
        // The raft crate treats a message without a term as a local one.
        if self.term == 0 || [self.term, self.log_term, self.commit_term].iter().any(|t| *t > TERM_MAX) {
            let terms = format!("{}, {} and {}", self.term, self.log_term, self.commit_term);
            return bad(format!("its terms are {terms}; the bounds are 1 to {TERM_MAX}"));
        }
        if [self.index, self.commit, self.reject_hint].iter().any(|i| *i > INDEX_MAX) {
            return bad(format!(
                "it names frames {}, {} and {}; the last index is {INDEX_MAX}",
                self.index, self.commit, self.reject_hint
            ));
        }
        // To the raft crate a frame after the log's end has term 0, so a message with term 0 would match it.
        if self.kind == APPEND && self.index > 0 && self.log_term == 0 {
            return bad(format!("frame {} has no term", self.index));
        }
        if self.request_snapshot != 0 {
            return bad(
                "it asks for a snapshot of raft; hosts fetch snapshots of a store by their replication processes".to_owned()
            );
        }
        let mut before = (self.index, self.log_term);
        for head in &self.heads {
            if before.0.checked_add(1) != Some(head.index) || head.term < before.1 || head.term > self.term {
                return bad(format!("frame {} of term {} follows {} of term {}", head.index, head.term, before.0, before.1));
            }
            before = (head.index, head.term);
        }
        Ok(())
    }
}

/// A command of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Reports the node's state.
    Status,
    /// Replication process: the greeting of another host, to be recorded or rejected with a reason.
    Greet(Greeting),
    /// Flushes the records in MemTables to SSTables, once they are durable and committed.
    Flush,
    /// Adds this node as a learner.
    Add {
        /// Its number, never used before.
        node: NodeId,
        /// Address of its replication process.
        address: String,
    },
    /// Makes this learner a voter.
    Promote {
        /// The learner.
        node: NodeId,
        /// Even if fewer than a majority of the voters are up then.
        force: bool,
    },
    /// Removes this member.
    Remove {
        /// The member.
        node: NodeId,
        /// As with [`Command::Promote`].
        force: bool,
    },
    /// Hands the lead to this node.
    Transfer(NodeId),
}

/// A member as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The member.
    pub node: NodeId,
    /// Index up to which it has acknowledged the log.
    pub matched: u64,
    /// Whether the leader has received anything from it lately.
    pub is_active: bool,
    /// Whether the leader's log no longer holds the frames that it needs: it fetches a snapshot.
    pub is_behind_log: bool,
    /// Records that it is behind.
    pub lag_records: u64,
    /// Bytes of log that it is behind.
    pub lag_bytes: u64,
    /// Nanoseconds between the first frame that it lacks and the leader's newest one, or, in a report, the present; 0 if it lacks none,
    /// [`u64::MAX`] if that frame is no longer in the log.
    pub lag_ns: u64,
    /// Whether it reports that it needs a snapshot of the leader's store.
    pub needs_snapshot: bool,
}

/// A learner that is further behind is not promoted.
const LAG_MAX_NS: u64 = 1_000_000_000;
const LAG_MAX_BYTES: u64 = 256 << 20;

impl Progress {
    /// Whether it is up and so close to the log's end that a majority need not wait for it; not if it has no frame yet.
    pub fn has_caught_up(&self) -> bool {
        let is_there = self.is_active && !self.is_behind_log && !self.needs_snapshot && self.matched > 0;
        is_there && self.lag_ns < LAG_MAX_NS && self.lag_bytes < LAG_MAX_BYTES
    }
}

/// Full report of a node's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The node.
    pub node: NodeId,
    /// Generation: the number of forced promotions.
    pub generation: u64,
    /// Its state.
    pub state: State,
    /// The members.
    pub members: Vec<Member>,
    /// The last record in its log, the last durable one, the last committed one.
    pub records: [u64; 3],
    /// The other members, if it leads.
    pub progress: Vec<Progress>,
    /// Whether hosts acknowledge a frame before it is on their disks.
    pub is_lossy: bool,
    /// Whether it needs a snapshot of the leader's store.
    pub needs_snapshot: bool,
    /// Whether it does not vote: it may have given votes or acknowledged frames that it no longer has.
    pub is_mute: bool,
    /// Reason why it does not vote or lead, if an operator must act; else empty.
    pub waits: String,
}

impl Message {
    /// Encodes the message, with its length before it.
    ///
    /// # Errors
    /// [`Error::Limit`] if it is longer than [`MESSAGE_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let too_long =
            Error::Limit { what: "the length of a message between storage and replication", limit: MESSAGE_MAX as u64 };
        let encoded = postcard::to_extend(self, vec![0; LENGTH]);
        let mut bytes = encoded.map_err(|e| Error::invalid("message", e.to_string()))?;
        let len = bytes.len() - LENGTH;
        if len > MESSAGE_MAX {
            return Err(too_long);
        }
        for (to, from) in bytes.iter_mut().zip((len as u32).to_le_bytes()) {
            *to = from;
        }
        Ok(bytes)
    }

    /// Decodes the first message in `bytes` and returns it with its length in bytes; `None` if it is incomplete.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is longer than [`MESSAGE_MAX`], or if there is no such message.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Message, usize)>> {
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let len = u32::from_le_bytes(*length) as usize;
        if len > MESSAGE_MAX {
            return Err(Error::invalid("message", format!("{len} bytes; {MESSAGE_MAX} at most")));
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let message = postcard::from_bytes(body).map_err(|e| Error::invalid("message", e.to_string()))?;
        Ok(Some((message, LENGTH + len)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((message, len))) = Message::decode(&bytes) {
                prop_assert!(len <= bytes.len());
                let again = message.encode().unwrap();
                prop_assert_eq!(Message::decode(&again).unwrap(), Some((message, again.len())));
            }
        }
    }

    #[test]
    fn each_number_out_of_its_bounds_is_rejected() {
        let head = |index, term| FrameHead { kind: 0, term, index, position: 4096, len: 64, header_crc: 1 };
        let good = Raft { kind: 3, to: NodeId(2), from: NodeId(1), term: 7, log_term: 6, index: 9, ..Raft::default() };
        let good = Raft { heads: vec![head(10, 6), head(11, 7)], ..good };
        good.check().unwrap();
        Raft { term: TERM_MAX, ..good.clone() }.check().unwrap();
        let wrong: [fn(&mut Raft); 17] = [
            |r| r.from = NodeId(0),
            |r| r.to = NodeId(0),
            |r| r.to = r.from,
            |r| r.term = 0,
            |r| r.term = TERM_MAX + 1,
            |r| r.log_term = TERM_MAX + 1,
            |r| r.commit_term = u64::MAX,
            |r| (r.heads, r.index) = (Vec::new(), INDEX_MAX + 1),
            |r| r.index = u64::MAX,
            |r| r.commit = INDEX_MAX + 1,
            |r| r.reject_hint = u64::MAX,
            |r| r.request_snapshot = 1,
            |r| (r.heads, r.log_term) = (Vec::new(), 0),
            |r| r.heads[0].index += 1,
            |r| r.heads[1].index += 1,
            |r| r.heads[1].term = 5,
            |r| r.heads[1].term = 8,
        ];
        for (n, spoil) in wrong.into_iter().enumerate() {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(matches!(bad.check(), Err(Error::Consensus { .. })), "{n}: {bad:?}");
        }
    }

    #[test]
    fn a_message_survives_encoding_and_an_incomplete_one_is_waited_for() {
        let head = FrameHead { kind: 0, term: 3, index: 9, position: 4096, len: 128, header_crc: 77 };
        let raft = Raft { kind: 3, to: NodeId(2), from: NodeId(1), heads: vec![head], frames: vec![7; 128], ..Raft::default() };
        let message = Message::Raft(raft);
        let bytes = message.encode().unwrap();
        for len in 0..bytes.len() {
            assert_eq!(Message::decode(&bytes[..len]).unwrap(), None);
        }
        assert_eq!(Message::decode(&bytes).unwrap(), Some((message, bytes.len())));
        let long = (u32::MAX).to_le_bytes();
        assert!(Message::decode(&long).is_err());
    }
}
