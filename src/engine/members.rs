//! Owns: a leader's duties to the other members: how much log it keeps for them, which of them need a snapshot because the log
//! does not reach back far enough, and operators' commands.
//!
//! What must hold: log that a member may still ask for is kept, up to the configured bound.

use super::log::Log;
use super::recover::KEPT_MAX;
use crate::consensus::format::{LEARNER, VOTER};
use crate::consensus::message::{Command, Message, Report, Role};
use crate::consensus::{Change, MemberEntry, Transition};
use tapestore::error::{Error, Result};
use tapestore::lsn::{NodeId, Position};
use tapestore::shm::control::Statistic;
use tapestore::time::Ts;

/// Interval between notices that a snapshot is needed.
const NOTIFY_NS: u64 = 1_000_000_000;

/// The members that need a snapshot.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Members that need more log than there is, as of the last look.
    behind: Vec<NodeId>,
    /// When the last notice was sent.
    notified: u64,
}

impl Needs {
    /// Notifies the members that the log does not reach back to; or `leader`, if this host needs a snapshot.
    pub(super) fn say(&mut self, log: &mut Log, leader: Option<NodeId>, now: u64) {
        let progress = log.node().progress();
        let behind: Vec<NodeId> = progress.iter().filter(|p| p.is_behind_log).map(|p| p.node).collect();
        for node in behind.iter().filter(|n| !self.behind.contains(n)) {
            tracing::warn!(
                name: "raft.member_needs_snapshot",
                node = node.0,
                "the log does not reach back to the frames that this member needs: it must fetch a snapshot of the store"
            );
        }
        let is_due = now.saturating_sub(self.notified) >= NOTIFY_NS;
        if !behind.is_empty() && is_due {
            self.notified = now;
            let first = log.node().frames().first();
            behind.iter().for_each(|&node| log.notify(Message::SnapshotNeeded { node, first }));
        }
        self.behind = behind;
        // A host that joins, or may have lost frames, asks for a snapshot as soon as there is a leader.
        log.control().set_needs_snapshot(log.node().meta().needs_snapshot(), now);
        let asks = log.node().meta().needs_snapshot() && now.saturating_sub(self.notified) >= NOTIFY_NS;
        if let Some(leader) = leader.filter(|_| asks) {
            self.notified = now;
            log.notify(Message::FetchSnapshot { leader });
        }
    }
}

/// Publishes from where other hosts may still ask for the log, and drops the index of what lies before; keeps at most `most`
/// bytes for them.
pub(super) fn show_needed(log: &mut Log, most: u64) {
    let end = log.end().0;
    let node = log.node();
    let needed = if node.is_alone() {
        end
    } else {
        let frames = node.frames();
        let first = node.needed().max(frames.first());
        let of_others = frames.place(first).map_or(end, |p| p.position.0);
        let leads = node.state().role == Role::Leader;
        of_others.max(end.saturating_sub(if leads { most } else { most.min(KEPT_MAX) }))
    };
    log.covered().set_needed(Position(needed));
    let flushed = log.control().statistic(Statistic::CheckpointPosition);
    log.node_mut().forget(Position(needed.min(flushed)));
}

/// Carries out an operator's command; returns the state of this host afterwards.
///
/// # Errors
/// [`Error::Invalid`] with the reason; nothing has changed then.
pub(super) fn command(log: &mut Log, command: Command, wall: Ts) -> Result<Report> {
    let of = |node, roles, address| Change { transition: Transition::Auto, members: vec![MemberEntry { node, roles, address }] };
    let node = log.node_mut();
    let is_named = |of: NodeId| matches!(&command, Command::Promote { node, .. } | Command::Remove { node, .. } if *node == of);
    let known = node.meta().members.iter().find(|s| is_named(s.node));
    let address = known.map(|s| s.address.clone());
    let missing = |n: NodeId| Error::invalid("node", format!("{n} is no member; `tape cluster status` lists the members"));
    match command {
        Command::Status => {}
        Command::Flush => log.want_flush(),
        Command::Greet(greeting) => node.greet(&greeting)?,
        Command::Add { node: new, address } => {
            if address.is_empty() || address.len() > crate::consensus::format::ADDRESS_MAX || new == NodeId(0) {
                return Err(Error::invalid("member", "its number is above 0, and its address host:port"));
            }
            if node.meta().members.iter().any(|s| s.node == new) {
                return Err(Error::invalid("member", format!("node {new} is a member already")));
            }
            node.change(of(new, LEARNER, address))?;
        }
        Command::Promote { node: n, .. } if node.progress().iter().any(|p| p.node == n && !p.has_caught_up()) => {
            let reason = "it has not caught up, and a majority might have to wait for it: it is not connected, needs a snapshot, or lags \
                          by a second or 256 MiB. Try again when `tape cluster status` shows less";
            return Err(Error::invalid("promotion", format!("node {n}: {reason}")));
        }
        Command::Promote { node: n, force } | Command::Remove { node: n, force } => {
            let roles = if matches!(command, Command::Promote { .. }) { VOTER } else { 0 };
            let change = of(n, roles, address.ok_or_else(|| missing(n))?);
            if let Some(reason) = node.would_stop(&change).filter(|_| !force) {
                return Err(Error::invalid("change of members", reason));
            }
            node.change(change)?;
        }
        Command::Transfer(n) if node.progress().iter().any(|p| p.node == n) && node.is_away(n) => {
            return Err(Error::invalid("transfer", format!("node {n} is out of touch")));
        }
        Command::Transfer(n) if node.progress().iter().any(|p| p.node == n && p.needs_snapshot) => {
            return Err(Error::invalid("transfer", format!("node {n} waits for a snapshot of this store")));
        }
        Command::Transfer(n) => node.transfer(n)?,
    }
    Ok(report(log, wall))
}

/// The state of this host at `wall`.
fn report(log: &Log, wall: Ts) -> Report {
    let (node, control) = (log.node(), log.control());
    let frames = node.frames();
    let idle = frames.place(frames.last()).map_or(0, |newest| wall.0.saturating_sub(newest.ingest_ts.0));
    let mut progress = node.progress();
    // A member that lacks a frame is the further behind the longer it does, although no frame follows.
    for of in progress.iter_mut().filter(|of| of.matched < frames.last()) {
        of.lag_ns = of.lag_ns.saturating_add(idle);
    }
    Report {
        node: node.meta().node,
        generation: node.meta().generation,
        state: node.state(),
        members: node.meta().members.iter().map(MemberEntry::member).collect(),
        records: [control.appended().0, control.durable().0, control.committed().0],
        progress,
        is_lossy: log.is_lossy(),
        needs_snapshot: node.meta().needs_snapshot(),
        is_mute: node.meta().is_mute(),
        waits: node.waits().unwrap_or_default(),
    }
}
