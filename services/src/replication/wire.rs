//! Owns: messages of consensus as they are on the wire between hosts, and as storage knows them.
//!
//! What must hold: what another host says is not trusted: sizes are bounded and agree before anything is made of it.

use bytes::Bytes;
use tapestore::consensus::message::{Command, FrameHead, Raft, Report};
use tapestore::lsn::NodeId;

use super::proto;

/// Bytes of the frames of one message at most.
pub const FRAMES_MAX: usize = 5 << 20;
/// Bytes of one message as gRPC decodes it, at most.
pub const MESSAGE_MAX: usize = 8 << 20;
/// Frames of one message at most.
const HEADS_MAX: usize = 1024;
/// Bytes that consensus may put in for itself.
const CONTEXT_MAX: usize = 4096;

/// `raft` with the bytes of its frames, as it is sent.
pub fn to_proto(raft: Raft, frames: Vec<u8>) -> proto::Envelope {
    let heads = raft.heads.iter().map(|h| proto::FrameHead {
        kind: u32::from(h.kind),
        term: h.term,
        index: h.index,
        position: h.position,
        len: h.len,
        header_crc: h.header_crc,
    });
    let message = proto::Raft {
        kind: u32::from(raft.kind),
        term: raft.term,
        log_term: raft.log_term,
        index: raft.index,
        commit: raft.commit,
        commit_term: raft.commit_term,
        reject: raft.reject,
        reject_hint: raft.reject_hint,
        request_snapshot: raft.request_snapshot,
        priority: raft.priority,
        heads: heads.collect(),
        context: Bytes::from(raft.context),
        frames: Bytes::from(frames),
    };
    proto::Envelope { message: Some(proto::envelope::Message::Raft(message)) }
}

/// The message that `from` has sent to `to`, or why it is none.
///
/// # Errors
/// What is wrong with it.
pub fn from_proto(raft: proto::Raft, from: NodeId, to: NodeId) -> Result<Raft, String> {
    let kind = u8::try_from(raft.kind).map_err(|_| format!("kind {}", raft.kind))?;
    if raft.heads.len() > HEADS_MAX || raft.context.len() > CONTEXT_MAX || raft.frames.len() > FRAMES_MAX {
        return Err(format!("{} frames of {} bytes, context of {}", raft.heads.len(), raft.frames.len(), raft.context.len()));
    }
    let mut heads = Vec::with_capacity(raft.heads.len());
    for h in &raft.heads {
        let kind = u8::try_from(h.kind).map_err(|_| format!("frame kind {}", h.kind))?;
        heads.push(FrameHead { kind, term: h.term, index: h.index, position: h.position, len: h.len, header_crc: h.header_crc });
    }
    let total: u64 = heads.iter().map(|h| u64::from(h.len)).sum();
    if total != raft.frames.len() as u64 || heads.iter().any(|h| h.len < 64 || !h.len.is_multiple_of(64)) {
        return Err(format!("frames of {total} bytes in {}", raft.frames.len()));
    }
    Ok(Raft {
        kind,
        to,
        from,
        term: raft.term,
        log_term: raft.log_term,
        index: raft.index,
        commit: raft.commit,
        commit_term: raft.commit_term,
        reject: raft.reject,
        reject_hint: raft.reject_hint,
        request_snapshot: raft.request_snapshot,
        priority: raft.priority,
        context: raft.context.to_vec(),
        heads,
        frames: raft.frames.to_vec(),
    })
}

/// What an operator asks.
pub fn command(command: proto::Command) -> Option<Command> {
    Some(match command.command? {
        proto::command::Command::Status(_) => Command::Status,
        proto::command::Command::Add(m) => Command::Add { node: NodeId(m.node), address: m.address },
        proto::command::Command::Promote(node) => Command::Promote(NodeId(node)),
        proto::command::Command::Remove(node) => Command::Remove(NodeId(node)),
        proto::command::Command::Transfer(node) => Command::Transfer(NodeId(node)),
    })
}

/// How a host stands, as operators are told.
pub fn report(report: &Report) -> proto::Report {
    let [appended_lsn, durable_lsn, committed_lsn] = report.records;
    let members = report.members.iter();
    let progress = report.progress.iter();
    proto::Report {
        node: report.node.0,
        epoch: report.epoch,
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
                is_stranded: p.is_stranded,
                lacks_copy: p.lacks_copy,
            })
            .collect(),
        is_lossy: report.is_lossy,
        lacks_copy: report.lacks_copy,
        is_mute: report.is_mute,
        last_term: report.state.last_term,
    }
}
