//! Owns: what a storage process and its replication process say to each other, over a stream socket in the run
//! directory.
//!
//! ```text
//! length u32 (little-endian, of what follows) · a `Message` as postcard encodes it
//! ```
//!
//! The connection is a session: what was not delivered when it ends is lost, and consensus sends it again. Whoever has
//! written calls [`tapestore::shm::bell::Bells::post`], because storage looks at the socket only when it is told to.
//!
//! What must hold: decoding is total on any bytes and allocates no more than came; nothing here is trusted: a frame is
//! checked against the log's chain by whoever appends it.

use serde::{Deserialize, Serialize};

use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Version of these messages; both ends are of one installation.
pub const VERSION: u32 = 4;
/// Most bytes of one message.
pub const MESSAGE_MAX: usize = 16 << 20;
/// Number of raft's message that frames come with.
pub(super) const APPEND: u8 = 3;
/// The last term: frames carry it in 32 bits.
pub const TERM_MAX: u64 = u32::MAX as u64;
/// The last epoch of forced promotions.
pub const EPOCH_MAX: u64 = u32::MAX as u64;
/// The last index of a frame: whoever adds to an index from outside does not overflow.
pub const INDEX_MAX: u64 = 1 << 62;
/// Bytes before a message.
const LENGTH: usize = 4;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The replication process, first: which version it speaks, and its process.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Process id.
        pid: u32,
    },
    /// Storage, in answer: who it is.
    Welcome(Identity),
    /// Storage: it will not talk; the connection ends.
    Refused(String),
    /// Storage, in answer to `Hello` and whenever they change: all members, this node too if it is one.
    Members(Vec<Member>),
    /// Storage, in answer to `Hello` and whenever role, term or leader change.
    State(State),
    /// Either way: a message of consensus. To be sent to `message.to`, or come from `message.from`.
    Raft(Raft),
    /// The replication process: what was sent to this node may not have arrived.
    Unreachable(NodeId),
    /// The replication process: it has spoken to this node, which is of this epoch.
    Reached {
        /// Which.
        node: NodeId,
        /// Forced promotions that it knows of.
        epoch: u64,
        /// The last frame of its log, when its storage last said so.
        last: u64,
        /// Whether it waits for a copy of the leader's store.
        lacks_copy: bool,
    },
    /// The replication process: this node does not hear this host, for this reason.
    Unheard {
        /// Which.
        node: NodeId,
        /// Its words.
        reason: String,
    },
    /// Storage that leads: its log does not reach back to what a node lacks, which is to fetch a copy of the store.
    Stranded {
        /// Which.
        node: NodeId,
        /// The first frame that there is.
        first: u64,
    },
    /// Storage that joins a cluster: it is to get a copy of this leader's store.
    Lacks {
        /// Who leads.
        leader: NodeId,
    },
    /// The replication process: a copy of another host's store has come, and all of it has been read.
    Filled,
    /// Either way: bytes of one storage process for another, which only these two understand; in order for as long as
    /// the connection between two nodes lasts.
    Relay {
        /// To which node.
        to: NodeId,
        /// From which node.
        from: NodeId,
        /// What.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The replication process, or an operator's tool: do this.
    Command {
        /// Comes back with the answer.
        id: u64,
        /// What.
        command: Command,
    },
    /// Storage: what became of a command.
    Answer {
        /// The command's.
        id: u64,
        /// A report, or why it is refused.
        result: std::result::Result<Report, String>,
    },
}

/// Who a storage process is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster: its store's identity, the same on every host.
    pub cluster: u128,
    /// This host's number.
    pub node: NodeId,
    /// What it says of itself to hosts that it meets.
    pub greeting: Greeting,
    /// Rises at every forced promotion.
    pub epoch: u64,
    /// This start of storage.
    pub session: u64,
    /// Bytes of a log segment.
    pub segment_size: u64,
    /// Directory of the store; the log is in `wal` in it.
    pub store: std::path::PathBuf,
    /// Time between heartbeats, ms.
    pub heartbeat_ms: u64,
    /// Least time without heartbeats after which a follower stands for election, ms.
    pub election_ms: u64,
    /// Whether it says that it has a frame before that is on its disk.
    pub is_lossy: bool,
}

/// What a host says of itself to another one that it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its number.
    pub node: NodeId,
    /// Which life of this node: a node that lost its files begins another.
    pub incarnation: u64,
    /// Whether it has never voted yet.
    pub is_fresh: bool,
    /// The hosts that it was initialised with, as one number; 0: its members are as of something else.
    pub founders: u64,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// Where its replication process listens: `host:port`.
    pub address: String,
    /// Whether it counts towards a majority.
    pub is_voter: bool,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u64)]
pub enum Role {
    /// Takes records in and numbers them.
    Leader = 1,
    /// Holds the leader's log; stands for election when the leader is gone.
    Follower = 2,
    /// Stands for election.
    Candidate = 3,
    /// Holds the leader's log and does not vote.
    Learner = 4,
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The newest term that it knows.
    pub term: u64,
    /// What it does in it.
    pub role: Role,
    /// Who leads, if it knows.
    pub leader: Option<NodeId>,
    /// Index of its last frame.
    pub last: u64,
    /// That frame's term: of two logs the one that ends in the higher term, and of those the longer one, has more.
    pub last_term: u64,
    /// Index up to which its frames are committed.
    pub committed: u64,
}

/// A frame that a message of consensus names: its bytes are at `position` in the log of whoever sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameHead {
    /// 0 for an ordinary frame, 2 for a change of members: the number of raft's entry type.
    pub kind: u8,
    /// Term of the frame.
    pub term: u64,
    /// Index of the frame.
    pub index: u64,
    /// Where it lies in the log.
    pub position: u64,
    /// Bytes of it, with its header and the zeros behind it.
    pub len: u32,
    /// CRC of its header, which has the payload's CRC in it.
    pub header_crc: u32,
}

/// A message of consensus: the fields of the raft library's own message, whose meaning is the raft paper's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raft {
    /// Number of the raft library's message type.
    pub kind: u8,
    /// To which node.
    pub to: NodeId,
    /// From which node.
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
    /// Where to try next.
    pub reject_hint: u64,
    /// Whether the follower asks for a snapshot, and from which index.
    pub request_snapshot: u64,
    /// Priority of a candidate.
    pub priority: i64,
    /// What the raft library put in for itself.
    #[serde(with = "serde_bytes")]
    pub context: Vec<u8>,
    /// The frames that are to be appended.
    pub heads: Vec<FrameHead>,
    /// Their bytes, one behind the other; from storage to its replication process empty: that one reads them in the log.
    #[serde(with = "serde_bytes")]
    pub frames: Vec<u8>,
}

impl Raft {
    /// Whether the numbers in it are some that hosts send each other: whatever is stored, narrowed or added to is in its
    /// bounds, and the frames follow each other. Terms are rising numbers that every host takes over, so one above
    /// [`TERM_MAX`] would end all elections to come, on every host and after every start.
    ///
    /// # Errors
    /// [`Error::Consensus`]: what is out of bounds.
    pub fn check(&self) -> Result<()> {
        let bad = |cause: String| Err(Error::Consensus { what: "take in a message", cause });
        if self.from == NodeId(0) || self.to == NodeId(0) || self.from == self.to {
            return bad(format!("it is from node {} to node {}", self.from, self.to));
        }
        // The raft crate takes a message without a term for one of its own.
        if self.term == 0 || [self.term, self.log_term, self.commit_term].iter().any(|t| *t > TERM_MAX) {
            let terms = format!("{}, {} and {}", self.term, self.log_term, self.commit_term);
            return bad(format!("its terms are {terms}: they are from 1 to {TERM_MAX}"));
        }
        if [self.index, self.commit, self.reject_hint].iter().any(|i| *i > INDEX_MAX) {
            return bad(format!("it names frames {}, {} and {}", self.index, self.commit, self.reject_hint));
        }
        // The raft crate takes a frame behind the log's end to be of term 0, and finds that it has it.
        if self.kind == APPEND && self.index > 0 && self.log_term == 0 {
            return bad(format!("frame {} is of no term", self.index));
        }
        if self.request_snapshot != 0 {
            return bad("it asks for a snapshot of raft's, and hosts fetch copies of a store otherwise".to_owned());
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

/// What an operator asks of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// How does it stand?
    Status,
    /// The replication process: another host has said who it is. Note it, or say why it is not heard.
    Greet(Greeting),
    /// Make this node, which is to hold the log and not to vote, a member.
    Add {
        /// Its number: never one that was used.
        node: NodeId,
        /// Where its replication process listens.
        address: String,
    },
    /// Let this learner vote.
    Promote {
        /// Which.
        node: NodeId,
        /// Even if fewer voters than a majority are there then.
        force: bool,
    },
    /// Make this node a member no longer.
    Remove {
        /// Which.
        node: NodeId,
        /// As with [`Command::Promote`].
        force: bool,
    },
    /// Let this node lead.
    Transfer(NodeId),
}

/// How a leader sees a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Who.
    pub node: NodeId,
    /// Index up to which it has said to have the log.
    pub matched: u64,
    /// Whether it has been heard of lately.
    pub is_active: bool,
    /// Whether the leader's log does not reach back to what it lacks: it fetches a copy of the store.
    pub is_stranded: bool,
    /// Records that it lacks.
    pub lag_records: u64,
    /// Bytes of log that it lacks.
    pub lag_bytes: u64,
    /// Nanoseconds between the leader's newest frame and the member's; [`u64::MAX`] if the leader does not know the member's.
    pub lag_ns: u64,
    /// Whether it waits for a copy of the leader's store, by its own word.
    pub lacks_copy: bool,
}

/// A member that lacks more of the log does not get a vote.
const LAG_MAX_NS: u64 = 1_000_000_000;
const LAG_MAX_BYTES: u64 = 256 << 20;

impl Progress {
    /// Whether it is there and has so much of the log that a majority need not wait for it; one that has nothing yet has not.
    pub fn has_caught_up(&self) -> bool {
        let is_there = self.is_active && !self.is_stranded && !self.lacks_copy && self.matched > 0;
        is_there && self.lag_ns < LAG_MAX_NS && self.lag_bytes < LAG_MAX_BYTES
    }
}

/// How a node stands, in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who it is.
    pub node: NodeId,
    /// How many forced promotions there have been.
    pub epoch: u64,
    /// How it stands.
    pub state: State,
    /// The members.
    pub members: Vec<Member>,
    /// The last record in its log, durable, committed.
    pub records: [u64; 3],
    /// How it sees the others, if it leads.
    pub progress: Vec<Progress>,
    /// Whether hosts say that they have a frame before it is on their disks.
    pub is_lossy: bool,
    /// Whether it waits for a copy of the leader's store.
    pub lacks_copy: bool,
    /// Whether it does not vote: it may have voted before, or have had frames, and not know it.
    pub is_mute: bool,
    /// What keeps it from voting or leading, if an operator has to know; else empty.
    pub waits: String,
}

impl Message {
    /// The message as it is written, with its length.
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

    /// The first message in `bytes`, and how many bytes it takes up; `None` if it has not come whole.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no such message exists.
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
        fn any_bytes_are_a_message_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((message, len))) = Message::decode(&bytes) {
                prop_assert!(len <= bytes.len());
                let again = message.encode().unwrap();
                prop_assert_eq!(Message::decode(&again).unwrap(), Some((message, again.len())));
            }
        }
    }

    #[test]
    fn numbers_out_of_their_bounds_are_refused_one_by_one() {
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
    fn a_message_comes_back_as_it_was_and_a_part_of_it_is_waited_for() {
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
