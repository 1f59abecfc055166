//! Owns: how a leader sees the other members: how far they are, and what of the log they may still ask for.
//!
//! What must hold: nothing is counted as a member's that it has not said to have, in this term.

use std::collections::{BTreeMap, BTreeSet};

use raft::{RawNode, StateRole};

use super::format::{Change, VOTER};
use super::frames::{Frames, Place};
use super::message::Progress;
use tapestore::lsn::NodeId;

/// What is known of the other members besides what raft keeps.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Those that wait for a copy of the leader's store, by their own word.
    lacking: BTreeSet<u64>,
    /// Ticks of this leader in which each was not heard of: raft itself forgets at every look at its majority.
    quiet: BTreeMap<u64, u64>,
}

/// Who is not heard of for longer is taken to be away: twice the default time until an election.
const QUIET_MAX: u64 = 600 / super::options::TICK_MS;
/// Ticks from which those count of whom this leader has never heard: one that has just begun to lead has heard of nobody yet.
const NEVER: u64 = 1 << 32;

impl Others {
    /// Counts for how long each member has not been heard of; before a tick, which may have raft forget it.
    pub(super) fn listen(&mut self, raw: &RawNode<Frames>) {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return self.quiet.clear();
        }
        for (id, progress) in raft.prs().iter() {
            let quiet = self.quiet.entry(*id).or_insert(NEVER);
            *quiet = if progress.recent_active { 0 } else { *quiet + 1 };
        }
    }

    /// Whether the host `node` has not been heard of for long, or is no member. A leader that has just begun has heard of nobody yet.
    pub(super) fn is_away(&self, raw: &RawNode<Frames>, node: NodeId) -> bool {
        let quiet = &self.quiet;
        let is_unknown = quiet.get(&node.0).is_some_and(|quiet| (NEVER..NEVER + QUIET_MAX).contains(quiet));
        let is_heard = |p: &Progress| p.node == node && (p.is_active || quiet.is_empty());
        node.0 != raw.raft.id && !is_unknown && !self.progress(raw).iter().any(is_heard)
    }

    /// `node` has a log that ends with frame `last`, by its own word. If this leader's log does not reach back to what it
    /// takes that member to have, it goes on from there; whether the two logs are one is found out as ever.
    /// `lacks_copy`: it waits for a copy of the leader's store.
    pub(super) fn reached(&mut self, raw: &mut RawNode<Frames>, node: NodeId, last: u64, lacks_copy: bool) {
        if lacks_copy {
            self.lacking.insert(node.0);
        } else {
            self.lacking.remove(&node.0);
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

    /// How this leader sees the other members; of a node that does not lead, nothing.
    pub(super) fn progress(&self, raw: &RawNode<Frames>) -> Vec<Progress> {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let frames = raw.store();
        let newest = frames.place(frames.last()).copied();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
        let seen = others.map(|(&id, p)| {
            // Of a member whose place is forgotten the first one that is known stands for it.
            let theirs = frames.place(p.matched.max(frames.first()));
            let is_active = p.recent_active || self.quiet.get(&id).is_some_and(|q| *q < QUIET_MAX);
            let lag = |of: fn(&Place) -> u64| match (&newest, theirs) {
                (Some(newest), Some(theirs)) if p.matched < frames.last() => of(newest).saturating_sub(of(theirs)),
                _ => 0,
            };
            Progress {
                node: NodeId(id),
                matched: p.matched,
                is_active,
                is_stranded: is_active && p.next_idx < frames.first(),
                lag_records: frames.lsn(frames.last()).0.saturating_sub(frames.lsn(p.matched).0),
                lag_bytes: lag(|p| p.end().0),
                lag_ns: if p.matched + 1 < frames.first() { u64::MAX } else { lag(|p| p.ingest_ts.0) },
                lacks_copy: self.lacking.contains(&id),
            }
        });
        let mut seen: Vec<_> = seen.collect();
        seen.sort_by_key(|p| p.node);
        seen
    }

    /// Why `change` is not to be made by this leader: of the voters that there would be, fewer than a majority are there. Who
    /// does not lead does not know.
    pub(super) fn would_stop(&self, raw: &RawNode<Frames>, change: &Change) -> Option<String> {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let mut voters: BTreeSet<u64> = raft.prs().conf().voters().ids().iter().collect();
        for seat in &change.seats {
            if seat.part & VOTER != 0 {
                voters.insert(seat.node.0)
            } else {
                voters.remove(&seat.node.0)
            };
        }
        let is_there = |id: &u64| !self.is_away(raw, NodeId(*id));
        let away: Vec<String> = voters.iter().filter(|id| !is_there(id)).map(u64::to_string).collect();
        if voters.len() - away.len() > voters.len() / 2 {
            return None;
        }
        let voters: Vec<String> = voters.iter().map(u64::to_string).collect();
        Some(format!(
            "of the voters that there would be ({}) too few are heard of: node {} is away. Without a majority nothing is acknowledged, \
             and no member can be changed. Start what is away, or remove that first; --force does it all the same",
            voters.join(", "),
            away.join(", node ")
        ))
    }
}

/// Up to which frame the member that does not vote and has most has the log; `None` if there is no such member.
pub(super) fn standby_matched(raw: &RawNode<Frames>) -> Option<u64> {
    let raft = &raw.raft;
    let learners = raft.prs().iter().filter(|(id, _)| raft.prs().conf().learners().contains(id));
    learners.map(|(_, p)| p.matched).max()
}

/// The first frame that a member may still ask for; of a host that does not lead it is not known, and is the first
/// that there is: should it lead, others may be far behind.
pub(super) fn needed(raw: &RawNode<Frames>) -> u64 {
    let raft = &raw.raft;
    if raft.state != StateRole::Leader {
        return raw.store().first();
    }
    let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
    others.map(|(_, p)| p.matched).min().unwrap_or(raft.raft_log.committed) + 1
}
