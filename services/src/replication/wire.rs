//! Owns: the conversion of raft messages and reports between gRPC and storage.
//!
//! What must hold: messages of other hosts are not trusted: sizes are bounded and consistent before a message is built.

use bytes::Bytes;
use tapestore::lsn::NodeId;
use tapestore_engine::consensus::message::{Command, Raft, Report};

use super::proto;

/// Most bytes of frames in one message.
pub const FRAMES_MAX: usize = 5 << 20;
/// Most bytes of one gRPC message.
pub const MESSAGE_MAX: usize = 8 << 20;
/// Most frames in one message.
const HEADS_MAX: usize = 1024;
/// Most bytes of a raft message without its frames: a head takes at most 37.
const RAFT_MAX: usize = 64 << 10;
/// Most bytes of raft's context field.
const CONTEXT_MAX: usize = 4096;

/// The reason why a message of another host is refused.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// More bytes than a message may have.
    #[error("a raft message of {message} bytes with frames of {frames} bytes; at most {RAFT_MAX} and {FRAMES_MAX} are accepted")]
    Length {
        /// Bytes of the message.
        message: usize,
        /// Bytes of its frames.
        frames: usize,
    },
    /// More frames, or a longer context, than a message may have, or frames inside it.
    #[error(
        "a raft message with {heads} frames and a context of {context} bytes; at most {HEADS_MAX} and {CONTEXT_MAX} are accepted"
    )]
    Fields {
        /// Frames that it names.
        heads: usize,
        /// Bytes of its context.
        context: usize,
    },
    /// The lengths of the frames that it names do not add up to the bytes that came with it.
    #[error("a raft message that names frames of {named} bytes came with {sent} bytes")]
    Frames {
        /// Sum of the lengths that it names.
        named: u64,
        /// Bytes that came.
        sent: usize,
    },
    /// A relayed message that is too long, or came on another stream than that of relayed messages.
    #[error("a relayed message of {bytes} bytes on this stream")]
    Relay {
        /// Its bytes.
        bytes: usize,
    },
    /// A message of no known type.
    #[error("an envelope without a message")]
    Empty,
    /// The bytes are no raft message of a version that this host reads, or its numbers are impossible.
    #[error(transparent)]
    Raft(#[from] tapestore::error::Error),
}

/// `raft` with the bytes of its frames, as a gRPC message.
///
/// # Errors
/// That it cannot be encoded.
pub fn to_proto(raft: &Raft, frames: Vec<u8>) -> tapestore::error::Result<proto::Envelope> {
    let message = proto::Raft { message: Bytes::from(raft.encode()?), frames: Bytes::from(frames) };
    Ok(proto::Envelope { message: Some(proto::envelope::Message::Raft(message)) })
}

/// The message that `from` sent to `to`.
///
/// # Errors
/// What is out of bounds.
pub fn from_proto(message: proto::Raft, from: NodeId, to: NodeId) -> Result<Raft, Malformed> {
    let proto::Raft { message, frames } = message;
    if message.len() > RAFT_MAX || frames.len() > FRAMES_MAX {
        return Err(Malformed::Length { message: message.len(), frames: frames.len() });
    }
    let raft = Raft::decode(&message)?;
    if raft.heads.len() > HEADS_MAX || raft.context.len() > CONTEXT_MAX || !raft.frames.is_empty() {
        return Err(Malformed::Fields { heads: raft.heads.len(), context: raft.context.len() });
    }
    let total: u64 = raft.heads.iter().map(|h| u64::from(h.len)).sum();
    if total != frames.len() as u64 || raft.heads.iter().any(|h| h.len < 64 || !h.len.is_multiple_of(64)) {
        return Err(Malformed::Frames { named: total, sent: frames.len() });
    }
    // The connection proves the sender; the message does not.
    let raft = Raft { from, to, frames: frames.to_vec(), ..raft };
    raft.check()?;
    Ok(raft)
}

/// The command of an operator.
pub fn command(command: proto::Command) -> Option<Command> {
    let force = command.force;
    Some(match command.command? {
        proto::command::Command::Status(_) => Command::Status,
        proto::command::Command::Add(m) => Command::Add { node: NodeId(m.node), address: m.address },
        proto::command::Command::Promote(node) => Command::Promote { node: NodeId(node), force },
        proto::command::Command::Remove(node) => Command::Remove { node: NodeId(node), force },
        proto::command::Command::Transfer(node) => Command::Transfer(NodeId(node)),
    })
}

/// A report for operators.
pub fn report(report: &Report) -> proto::Report {
    let [appended_lsn, durable_lsn, committed_lsn] = report.records;
    let members = report.members.iter();
    let progress = report.progress.iter();
    proto::Report {
        node: report.node.0,
        generation: report.generation,
        term: report.state.term,
        role: report.state.role as u32,
        leader: report.state.leader.map_or(0, |l| l.0),
        last: report.state.last,
        committed: report.state.committed,
        appended_lsn,
        durable_lsn,
        committed_lsn,
        members: members.map(|m| proto::Member { node: m.node.0, address: m.address.clone(), is_voter: m.is_voter }).collect(),
        progress: progress
            .map(|p| proto::Progress {
                node: p.node.0,
                matched: p.matched,
                is_active: p.is_active,
                lag_records: p.lag_records,
                lag_bytes: p.lag_bytes,
                lag_ns: p.lag_ns,
                is_behind_log: p.is_behind_log,
                needs_snapshot: p.needs_snapshot,
            })
            .collect(),
        is_lossy: report.is_lossy,
        needs_snapshot: report.needs_snapshot,
        is_mute: report.is_mute,
        last_term: report.state.last_term,
        waits: report.waits.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use tapestore_engine::consensus::message::{FrameHead, RAFT_VERSION};

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Once as an envelope, once as the message in it, with the right version.
            let mut versioned = vec![RAFT_VERSION];
            versioned.extend(&bytes);
            let inner = proto::Raft { message: versioned.into(), frames: Bytes::new() };
            let envelope = proto::Envelope::decode(&bytes[..]).ok().and_then(|e| e.message);
            for message in [envelope, Some(proto::envelope::Message::Raft(inner))] {
                if let Some(proto::envelope::Message::Raft(raft)) = message
                    && let Ok(raft) = from_proto(raft, NodeId(1), NodeId(2))
                {
                    prop_assert!(raft.check().is_ok());
                }
            }
        }

        #[test]
        fn any_numbers_in_a_message_are_within_bounds_or_refused(
            numbers in proptest::collection::vec(prop_oneof![0..9u64, any::<u64>(), (1 << 32) - 2..(1u64 << 32) + 2], 12),
            kind in any::<u8>(), frames in 0..4usize, len in prop_oneof![Just(64u32), any::<u32>()],
        ) {
            let number = |n: usize| numbers.get(n).copied().unwrap_or(0);
            let heads = (0..frames as u64).map(|n| FrameHead {
                kind,
                term: number(7),
                index: number(8).wrapping_add(n),
                position: number(9),
                len,
                header_crc: 1,
            });
            let raft = Raft {
                kind: kind % 40,
                term: number(0),
                log_term: number(1),
                index: number(2),
                commit: number(3),
                commit_term: number(4),
                reject_hint: number(5),
                request_snapshot: number(6),
                heads: heads.collect(),
                ..Raft::default()
            };
            let message = proto::Raft { message: raft.encode().unwrap().into(), frames: vec![0; frames * 64].into() };
            if let Ok(raft) = from_proto(message, NodeId(1), NodeId(2)) {
                prop_assert!((1..1 << 32).contains(&raft.term) && raft.index <= tapestore_engine::consensus::message::INDEX_MAX);
            }
        }
    }
}
