//! Owns: messages of the raft crate as hosts send them to each other, and back. What comes from another host is not
//! trusted: its kind is one that hosts send, and its frames follow each other.

use raft::eraftpb::{Entry, EntryType, Message as RaftMessage, MessageType};

use super::frames::Frames;
use super::message::{FrameHead, Raft};
use crate::error::{Error, Result};
use crate::lsn::NodeId;

/// Message types that hosts send each other.
const KINDS: [MessageType; 11] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// `message` as it is sent; `None` if a frame that it names is gone.
pub(super) fn to_wire(message: &RaftMessage, frames: &Frames) -> Option<Raft> {
    let heads = message.entries.iter().map(|e| frames.head(e.index).filter(|h| h.term == e.term));
    // A frame that is gone meanwhile is asked for again, or is not.
    let heads = heads.collect::<Option<Vec<FrameHead>>>()?;
    Some(Raft {
        kind: message.get_msg_type() as u8,
        to: NodeId(message.to),
        from: NodeId(message.from),
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        request_snapshot: message.request_snapshot,
        priority: message.priority,
        context: message.context.to_vec(),
        heads,
        frames: Vec::new(),
    })
}

/// The message that another host has sent.
///
/// # Errors
/// [`Error::Consensus`]: what makes no sense.
pub(super) fn from_wire(message: &Raft) -> Result<RaftMessage> {
    let bad = |cause: String| Error::Consensus { what: "take in a message", cause };
    let kind = KINDS.into_iter().find(|k| *k as u8 == message.kind);
    let kind = kind.ok_or_else(|| bad(format!("its kind is {}", message.kind)))?;
    let mut out = RaftMessage::default();
    out.set_msg_type(kind);
    (out.to, out.from, out.term, out.log_term) = (message.to.0, message.from.0, message.term, message.log_term);
    (out.index, out.commit, out.commit_term) = (message.index, message.commit, message.commit_term);
    (out.reject, out.reject_hint, out.request_snapshot) = (message.reject, message.reject_hint, message.request_snapshot);
    (out.priority, out.context) = (message.priority, message.context.clone().into());
    let mut entries = Vec::with_capacity(message.heads.len());
    let mut before = (message.index, message.log_term);
    for head in &message.heads {
        if head.index != before.0 + 1 || head.term < before.1 || head.term > message.term {
            return Err(bad(format!("frame {} of term {} follows {} of term {}", head.index, head.term, before.0, before.1)));
        }
        before = (head.index, head.term);
        let mut entry = Entry { index: head.index, term: head.term, ..Entry::default() };
        if head.kind == EntryType::EntryConfChangeV2 as u8 {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        entries.push(entry);
    }
    out.set_entries(entries.into());
    Ok(out)
}
