//! Owns: what raft asks of the log's owner: what to do with a message that carries frames, which frame to write next, and what
//! is to be said once frames are durable.

use raft::RawNode;
use raft::eraftpb::{EntryType, Message as RaftMessage, MessageType};

use super::format::{Change, Transition};
use super::frames::Frames;
use super::message::Raft;

/// What is to be done with a message that carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing of it is for the log: step it as it is.
    Pass,
    /// The first so many of its frames are in the log; the rest continue it.
    Append(usize),
    /// The log behind the frame of this index is not the leader's; nothing of that is committed.
    Cut(u64),
    /// It denies this frame, which is committed here: one of the two hosts has lost its memory.
    Denies(u64),
}

impl Verdict {
    /// What to do with `message`, which came from another host, at the host of `raw`.
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
                return if is_committed { Verdict::Denies(head.index) } else { Verdict::Cut(head.index - 1) };
            }
        }
        Verdict::Pass
    }
}

/// A frame that raft has put in its log, and that the log's owner has to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// The frame without contents that opens the term.
    Open {
        /// The term.
        term: u64,
    },
    /// A change of members.
    Change {
        /// The term.
        term: u64,
        /// The change.
        change: Change,
    },
}

impl Work {
    /// The frame that the raft of `raw` waits for, if there is one; `proposed` is the change of members that is not written yet.
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
        let leave = Change { transition: Transition::Leave, seats: Vec::new() };
        Some(Work::Change { term, change: proposed.cloned().unwrap_or(leave) })
    }
}

/// A ready of raft whose frames are not durable yet.
pub(super) struct Unpersisted {
    pub(super) number: u64,
    /// The last frame that must be durable.
    pub(super) index: u64,
    pub(super) messages: Vec<RaftMessage>,
}

/// Whether `message` says something that holds only once the frames before it are durable.
pub(super) fn is_promise(message: &RaftMessage) -> bool {
    match message.get_msg_type() {
        MessageType::MsgAppendResponse => !message.reject,
        MessageType::MsgRequestVote => true,
        _ => false,
    }
}
