//! Owns: the leader's view of the other members: how far they are, and which part of the log they may still need.
//!
//! What must hold: a frame counts as a member's only after the member has acknowledged it, in this term.

use std::collections::{BTreeMap, BTreeSet};

use raft::{RawNode, StateRole};

use super::format::{Change, VOTER};
use super::frames::{Frames, Place};
use super::message::Progress;
use tapestore::lsn::NodeId;

/// State of the other members besides raft's own.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Those that report that they need a snapshot of the leader's store.
    needing_snapshot: BTreeSet<u64>,
    /// Ticks of this leader for which each member has been silent; raft clears its own flags at every quorum check.
    quiet: BTreeMap<u64, u64>,
}

/// A member that is silent for longer counts as away: twice the default election timeout.
const QUIET_MAX: u64 = 600 / super::options::TICK_MS;
/// Start value for members that this leader has never received from: a new leader has not received from anybody.
const NEVER: u64 = 1 << 32;

impl Others {
    /// Counts how long each member has been silent; call it before a tick, in which raft may clear its flags.
    pub(super) fn count_silence(&mut self, raw: &RawNode<Frames>) {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return self.quiet.clear();
        }
        for (id, progress) in raft.prs().iter() {
            let quiet = self.quiet.entry(*id).or_insert(NEVER);
            *quiet = if progress.recent_active { 0 } else { *quiet + 1 };
        }
    }

    /// Whether the host `node` has long been silent, or is no member. A leader of a new term counts nobody as away yet.
    pub(super) fn is_away(&self, raw: &RawNode<Frames>, node: NodeId) -> bool {
        let quiet = &self.quiet;
        let is_unknown = quiet.get(&node.0).is_some_and(|quiet| (NEVER..NEVER + QUIET_MAX).contains(quiet));
        let is_up = |p: &Progress| p.node == node && (p.is_active || quiet.is_empty());
        node.0 != raw.raft.id && !is_unknown && !self.progress(raw).iter().any(is_up)
    }

    /// Handles a report that the log of `node` ends with frame `last`. If this leader's log no longer holds the frames that it
    /// would send next, it probes that member from `last` on; raft checks as usual that the logs match.
    /// `needs_snapshot`: the member needs a snapshot of the leader's store.
    pub(super) fn reached(&mut self, raw: &mut RawNode<Frames>, node: NodeId, last: u64, needs_snapshot: bool) {
        if needs_snapshot {
            self.needing_snapshot.insert(node.0);
        } else {
            self.needing_snapshot.remove(&node.0);
        }
        let (first, own) = (raw.store().first(), raw.store().last());
        if raw.raft.state != StateRole::Leader || last.saturating_add(1) < first || last > own {
            return;
        }
        let progress = raw.raft.mut_prs().get_mut(node.0);
        if let Some(progress) = progress.filter(|p| p.next_idx < first) {
            progress.become_probe();
            progress.next_idx = last + 1;
        }
    }

    /// The other members as this leader sees them; empty if it does not lead.
    pub(super) fn progress(&self, raw: &RawNode<Frames>) -> Vec<Progress> {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let frames = raw.store();
        let newest = frames.place(frames.last()).copied();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
        let seen = others.map(|(&id, p)| {
            // The first known frame stands for a member whose frame has been dropped.
            let theirs = frames.place(p.matched.max(frames.first()));
            let is_active = p.recent_active || self.quiet.get(&id).is_some_and(|q| *q < QUIET_MAX);
            let lag = |of: fn(&Place) -> u64| match (&newest, theirs) {
                (Some(newest), Some(theirs)) if p.matched < frames.last() => of(newest).saturating_sub(of(theirs)),
                _ => 0,
            };
            // Since when it lacks a frame: that of the frame that it has may be of before an idle time.
            let age = |matched: u64| match (&newest, frames.place(matched + 1)) {
                // A new leader does not know yet how far a member is.
                _ if matched == 0 || matched + 1 < frames.first() => u64::MAX,
                (Some(newest), Some(lacking)) => newest.ingest_ts.0.saturating_sub(lacking.ingest_ts.0),
                _ => 0,
            };
            Progress {
                node: NodeId(id),
                matched: p.matched,
                is_active,
                is_behind_log: is_active && p.next_idx < frames.first(),
                lag_records: frames.lsn(frames.last()).0.saturating_sub(frames.lsn(p.matched).0),
                lag_bytes: lag(|p| p.end().0),
                lag_ns: age(p.matched),
                needs_snapshot: self.needing_snapshot.contains(&id),
            }
        });
        let mut seen: Vec<_> = seen.collect();
        seen.sort_by_key(|p| p.node);
        seen
    }

    /// Reason why `change` would stop the cluster: fewer than a majority of the voters after it are up. `None` on a host that
    /// does not lead.
    pub(super) fn would_stop(&self, raw: &RawNode<Frames>, change: &Change) -> Option<String> {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let mut voters: BTreeSet<u64> = raft.prs().conf().voters().ids().iter().collect();
        for member in &change.members {
            if member.roles & VOTER != 0 {
                voters.insert(member.node.0)
            } else {
                voters.remove(&member.node.0)
            };
        }
        let is_there = |id: &u64| !self.is_away(raw, NodeId(*id));
        let away: Vec<String> = voters.iter().filter(|id| !is_there(id)).map(u64::to_string).collect();
        if voters.len() - away.len() > voters.len() / 2 {
            return None;
        }
        let voters: Vec<String> = voters.iter().map(u64::to_string).collect();
        Some(format!(
            "too few of the voters after this change ({}) are up: node {} is away. Without a majority nothing is committed and \
             no member can be changed. Start the hosts that are away, or remove them first; --force changes the members anyway",
            voters.join(", "),
            away.join(", node ")
        ))
    }
}

/// Index up to which the most advanced learner has the log; `None` if there is no learner.
pub(super) fn standby_matched(raw: &RawNode<Frames>) -> Option<u64> {
    let raft = &raw.raft;
    let learners = raft.prs().iter().filter(|(id, _)| raft.prs().conf().learners().contains(id));
    learners.map(|(_, p)| p.matched).max()
}

/// The first frame that a member may still need. Only a leader has the members' progress. Another host returns its first
/// frame: if it is elected, others may be far behind.
pub(super) fn needed(raw: &RawNode<Frames>) -> u64 {
    let raft = &raw.raft;
    if raft.state != StateRole::Leader {
        return raw.store().first();
    }
    let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
    others.map(|(_, p)| p.matched).min().unwrap_or(raft.raft_log.committed) + 1
}
