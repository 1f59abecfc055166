//! Owns: raft's requests to the log's owner: what to do with received frames, which frame to write next, which messages wait
//! until frames are durable.
//!
//! What must hold: a committed frame is never truncated.

use raft::RawNode;
use raft::eraftpb::{EntryType, Message as RaftMessage, MessageType};

use super::format::{Change, Transition};
use super::frames::Frames;
use super::message::Raft;

/// Decision about a message that may carry frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be written: step the message as it is.
    Pass,
    /// So many of its frames are in the log already; append the rest.
    Append(usize),
    /// The log after this index differs from the leader's, and none of that is committed: truncate it.
    Truncate(u64),
    /// It contradicts this frame, which is committed here: one of the two hosts has lost its log.
    Denies(u64),
}

impl Verdict {
    /// Decides about `message`, received by the host of `raw`.
    pub(super) fn of(raw: &RawNode<Frames>, message: &Raft) -> Verdict {
        let (raft, log) = (&raw.raft, &raw.raft.raft_log);
        let carries = message.kind == MessageType::MsgAppend as u8 && !message.heads.is_empty();
        let is_next = message.index >= log.committed && log.match_term(message.index, message.log_term);
        if !carries || message.term < raft.term || !is_next {
            return Verdict::Pass;
        }
        for (known, head) in message.heads.iter().enumerate() {
            if head.index > log.last_index() {
                return Verdict::Append(known);
            }
            if !log.match_term(head.index, head.term) {
                let is_committed = head.index <= log.committed;
                return if is_committed { Verdict::Denies(head.index) } else { Verdict::Truncate(head.index - 1) };
            }
        }
        Verdict::Pass
    }
}

/// A frame that raft has created and that the log's owner must write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// The no-op frame that opens the term.
    Open {
        /// The term.
        term: u64,
    },
    /// A membership frame.
    Change {
        /// The term.
        term: u64,
        /// The change.
        change: Change,
    },
}

impl Work {
    /// The next frame that the raft of `raw` waits for, if there is one; `proposed` is the unwritten change of members.
    pub(super) fn next(raw: &RawNode<Frames>, proposed: Option<&Change>) -> Option<Work> {
        let (log, last) = (&raw.raft.raft_log, raw.store().last());
        if log.last_index() <= last {
            return None;
        }
        let entry = log.unstable_entries().iter().find(|e| e.index == last + 1)?;
        let term = entry.term;
        if entry.get_entry_type() == EntryType::EntryNormal {
            return Some(Work::Open { term });
        }
        let leave = Change { transition: Transition::Leave, members: Vec::new() };
        Some(Work::Change { term, change: proposed.cloned().unwrap_or(leave) })
    }
}

/// A ready of raft whose frames are not yet durable.
pub(super) struct Unpersisted {
    pub(super) number: u64,
    /// The last frame that must be durable.
    pub(super) index: u64,
    pub(super) messages: Vec<RaftMessage>,
}

/// Whether `message` may leave only after the frames before it are durable.
pub(super) fn is_promise(message: &RaftMessage) -> bool {
    match message.get_msg_type() {
        MessageType::MsgAppendResponse => !message.reject,
        MessageType::MsgRequestVote => true,
        _ => false,
    }
}
