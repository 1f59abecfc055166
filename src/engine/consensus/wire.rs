//! Owns: the conversion of raft's messages to and from the form in which hosts send them.
//!
//! What must hold: a received message is not trusted. It is of a type that hosts send, and [`Raft::check`] accepts it.

use raft::StateRole;
use raft::eraftpb::{Entry, EntryType, Message as RaftMessage, MessageType};

use super::frames::Frames;
use super::message::{APPEND, FrameHead, Raft, TERM_MAX};
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Message types that hosts send. Two others are dangerous: raft would pass a transfer on to the leader and panic because it
/// has a term, and it would trust a response to a read index.
const KINDS: [MessageType; 9] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

const _: () = assert!(MessageType::MsgAppend as u8 == APPEND);

/// Converts `message` for sending; `None` if a frame that it names has been dropped.
pub(super) fn to_wire(message: &RaftMessage, frames: &Frames) -> Option<Raft> {
    let heads = message.entries.iter().map(|e| frames.head(e.index).filter(|h| h.term == e.term));
    // A dropped frame is requested again if it is still needed.
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

/// Checks that `message` is for the node `raft` and keeps the invariants that the raft crate relies on.
///
/// # Errors
/// [`Error::Consensus`]: the violation.
pub(super) fn check(message: &Raft, raft: &raft::Raft<Frames>) -> Result<()> {
    let bad = |cause: String| Err(Error::Consensus { what: "accept a message", cause });
    if message.to.0 != raft.id {
        return bad(format!("it is for node {}", message.to));
    }
    // A follower cannot acknowledge a frame that this leader has not sent.
    let leads = raft.state == StateRole::Leader && message.term == raft.term;
    let accepts = message.kind == MessageType::MsgAppendResponse as u8 && !message.reject;
    let last = raft.raft_log.last_index();
    if leads && accepts && message.index > last {
        return bad(format!("node {} acknowledges frame {}, but the leader's log ends with {last}", message.from, message.index));
    }
    // It campaigns at once, in the term after the message's.
    if message.kind == MessageType::MsgTimeoutNow as u8 && raft.term.max(message.term) >= TERM_MAX {
        return bad(format!("there is no term after {TERM_MAX}"));
    }
    Ok(())
}

/// Converts a received message.
///
/// # Errors
/// [`Error::Consensus`]: its type is unknown, a number is out of bounds, or a type without frames has some.
pub(super) fn from_wire(message: &Raft) -> Result<RaftMessage> {
    let bad = |cause: String| Error::Consensus { what: "accept a message", cause };
    let kind = KINDS.into_iter().find(|k| *k as u8 == message.kind);
    let kind = kind.ok_or_else(|| bad(format!("its type {} is unknown", message.kind)))?;
    message.check()?;
    if kind != MessageType::MsgAppend && !message.heads.is_empty() {
        return Err(bad(format!("it carries {} frames, but is of type {}", message.heads.len(), message.kind)));
    }
    let mut out = RaftMessage::default();
    out.set_msg_type(kind);
    (out.to, out.from, out.term, out.log_term) = (message.to.0, message.from.0, message.term, message.log_term);
    (out.index, out.commit, out.commit_term) = (message.index, message.commit, message.commit_term);
    (out.reject, out.reject_hint, out.request_snapshot) = (message.reject, message.reject_hint, message.request_snapshot);
    (out.priority, out.context) = (message.priority, message.context.clone().into());
    let mut entries = Vec::with_capacity(message.heads.len());
    for head in &message.heads {
        let mut entry = Entry { index: head.index, term: head.term, ..Entry::default() };
        if head.kind == EntryType::EntryConfChangeV2 as u8 {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        entries.push(entry);
    }
    out.set_entries(entries.into());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The raft crate parses the bytes of entries that are proposed, with a parser that recurses without a bound.
    #[test]
    fn what_other_hosts_send_has_no_bytes_for_a_parser_and_is_no_proposal() {
        let head = FrameHead { kind: 2, term: 1, index: 5, position: 4096, len: 64, header_crc: 1 };
        let to = Raft { to: NodeId(2), from: NodeId(1), term: 1, log_term: 1, index: 4, ..Raft::default() };
        let append = Raft { kind: MessageType::MsgAppend as u8, heads: vec![head], frames: vec![0xff; 64], ..to.clone() };
        let append = Raft { context: vec![0xff; 4096], ..append };
        let made = from_wire(&append).unwrap();
        assert!(made.entries.iter().all(|e| e.data.is_empty() && e.context.is_empty()) && made.entries.len() == 1);
        assert!(made.snapshot.is_none() && made.get_snapshot().data.is_empty());
        for kind in 0..=u8::MAX {
            let is_sent = KINDS.iter().any(|k| *k as u8 == kind);
            assert_eq!(from_wire(&Raft { kind, ..to.clone() }).is_ok(), is_sent, "{kind}");
        }
        assert!(!KINDS.contains(&MessageType::MsgPropose) && !KINDS.contains(&MessageType::MsgSnapshot));
    }
}
