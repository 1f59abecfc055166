//! Owns: messages of the raft crate as hosts send them to each other, and back. What comes from another host is not
//! trusted: its kind is one that hosts send, and [`Raft::check`] finds nothing.

use raft::StateRole;
use raft::eraftpb::{Entry, EntryType, Message as RaftMessage, MessageType};

use super::frames::Frames;
use super::message::{APPEND, FrameHead, Raft, TERM_MAX};
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Message types that hosts send each other. Raft would pass a transfer on to the leader, and panic because it has a term;
/// and it would believe an answer about an index to read at. Nobody sends either.
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

/// Whether `message` is for the node `raft`, and says nothing that the raft crate takes for granted cannot be.
///
/// # Errors
/// [`Error::Consensus`]: what cannot be.
pub(super) fn check(message: &Raft, raft: &raft::Raft<Frames>) -> Result<()> {
    let bad = |cause: String| Err(Error::Consensus { what: "take in a message", cause });
    if message.to.0 != raft.id {
        return bad(format!("it is for node {}", message.to));
    }
    // A leader hears of no frame that it has not sent, and sends none that it does not have.
    let leads = raft.state == StateRole::Leader && message.term == raft.term;
    let accepts = message.kind == MessageType::MsgAppendResponse as u8 && !message.reject;
    let last = raft.raft_log.last_index();
    if leads && accepts && message.index > last {
        return bad(format!("node {} has frame {}, and the leader's log ends with {last}", message.from, message.index));
    }
    // It stands for election at once, in the term behind the message's.
    if message.kind == MessageType::MsgTimeoutNow as u8 && raft.term.max(message.term) >= TERM_MAX {
        return bad(format!("there is no term behind {TERM_MAX}"));
    }
    Ok(())
}

/// The message that another host has sent.
///
/// # Errors
/// [`Error::Consensus`]: what makes no sense.
pub(super) fn from_wire(message: &Raft) -> Result<RaftMessage> {
    let bad = |cause: String| Error::Consensus { what: "take in a message", cause };
    let kind = KINDS.into_iter().find(|k| *k as u8 == message.kind);
    let kind = kind.ok_or_else(|| bad(format!("its kind is {}", message.kind)))?;
    message.check()?;
    if kind != MessageType::MsgAppend && !message.heads.is_empty() {
        return Err(bad(format!("it has {} frames, and is of kind {}", message.heads.len(), message.kind)));
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
