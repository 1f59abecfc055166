//! Owns: the faults of a simulated cluster, and its operator's actions.

use super::super::*;
use super::world::{Cluster, Host, member_entry};
use super::{Mutant, world};
use std::path::Path;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::NodeId;

/// What a seed aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// Any fault, in a cluster of three or five.
    Anything,
    /// Any fault, while members come and go.
    Members,
    /// Any fault, with hosts that acknowledge from memory; a minority loses power.
    Memory,
    /// Such a host loses power while the leader counts on frames in its memory, gets a snapshot, and must elect a leader
    /// together with a host that never had those frames.
    Forgotten,
    /// A host is killed before its disk is done, and loses power right after its restart.
    KilledThenPower,
    /// Power is lost during a truncation, and again while other frames are written in that place.
    TornTruncated,
    /// A host is wiped and initialised again under its number, while the other host with its frames is away.
    Wiped,
}

impl Aim {
    /// Whether hosts acknowledge frames that they have in memory only.
    pub(super) fn is_lossy(self) -> bool {
        matches!(self, Aim::Memory | Aim::Forgotten)
    }
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Kill(usize),
    PowerLoss(usize),
    Isolate(usize, u64),
    Wipe(usize),
    Away(usize, u64),
}

impl Cluster {
    /// Ends the process of host `n`, or its power.
    pub(super) fn ends(&mut self, n: usize, power: bool) {
        self.tally.up(if power { "power losses" } else { "kills" });
        let back = self.now + 5 + self.rng.below(60);
        let seed = self.rng.next_u64();
        let is_lossy = self.is_lossy();
        let host = &mut self.hosts[n];
        host.boot += u128::from(power);
        host.is_forgetful |= power && is_lossy;
        host.fetching = None;
        host.live = None;
        host.asked = None;
        host.inbox.clear();
        host.back_at = back;
        host.disk = if power { host.disk.power_loss(seed) } else { host.disk.copy() };
        if self.mutant == Some(Mutant::ForgottenVote) {
            host.disk.overwrite(&Path::new(world::DIR).join(meta::NAME), host.first_meta.clone());
        }
    }

    /// Drops the messages from host `n` until then, and with `both` those to it.
    pub(super) fn isolate(&mut self, n: usize, until: u64, both: bool) {
        self.tally.up("partitions");
        for other in (1..=self.hosts.len() as u64).filter(|o| *o != n as u64 + 1) {
            self.blocked.insert((n as u64 + 1, other), until);
            if both {
                self.blocked.insert((other, n as u64 + 1), until);
            }
        }
    }

    /// Makes the faults of this tick.
    pub(super) fn nemesis(&mut self) {
        while let Some((_, act)) = self.script.pop_front_if(|s| s.0 <= self.now) {
            self.act(act);
        }
        match self.aim {
            Aim::Anything | Aim::Memory => self.anything(),
            Aim::Members => {
                self.anything();
                self.operator();
            }
            Aim::KilledThenPower => self.plan_a_kill(),
            Aim::Forgotten => self.plan_a_loss(),
            Aim::TornTruncated => {
                self.tear_again();
                self.plan_a_trap();
            }
            Aim::Wiped => {
                self.plan_a_wipe();
                self.replace();
            }
        }
    }

    pub(super) fn is_at_peace(&self) -> bool {
        self.script.is_empty() && self.blocked.values().all(|until| *until <= self.now)
    }

    /// Hands the lead over, once all hosts are up; [`Cluster::trap`] waits for the new leader.
    fn plan_a_trap(&mut self) {
        let all = self.hosts.iter().all(|h| h.live.is_some() && h.back_at <= self.now);
        let Some(leader) = self.leader().filter(|_| all && self.is_at_peace() && self.rng.below(20) == 0) else { return };
        let heir = (leader + 1 + self.rng.below(2) as usize) % 3;
        if let Some(live) = self.hosts[leader].live.as_mut()
            && live.node.transfer(NodeId(heir as u64 + 1)).is_ok()
        {
            self.tally.up("transfers");
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Kill(n) | Act::PowerLoss(n) if self.hosts[n].live.is_some() => {
                self.ends(n, matches!(act, Act::PowerLoss(_)));
                self.hosts[n].back_at = self.now + 1 + self.rng.below(3);
            }
            Act::Wipe(n) => self.wipe(n),
            Act::Away(n, ticks) => {
                if self.hosts[n].live.is_some() {
                    self.ends(n, false);
                }
                self.hosts[n].back_at = self.now + ticks;
            }
            Act::Isolate(n, ticks) => self.isolate(n, self.now + ticks, true),
            Act::Kill(_) | Act::PowerLoss(_) => {}
        }
    }

    fn anything(&mut self) {
        let n = self.rng.below(self.hosts.len() as u64) as usize;
        match self.rng.below(220) {
            0 if self.hosts[n].live.is_some() => self.ends(n, false),
            1 if self.hosts[n].live.is_some() => self.ends(n, self.may_lose_power(n)),
            2 => {
                self.hosts[n].back_at = self.hosts[n].back_at.max(self.now + self.rng.below(80));
                self.tally.up("pauses");
            }
            3 | 4 => {
                let (until, both) = (self.now + 10 + self.rng.below(120), self.rng.below(2) == 1);
                self.isolate(n, until, both);
            }
            5 => {
                self.hosts[n].stalls_until = self.now + 40;
                self.tally.up("stalls");
            }
            6 => {
                let to = NodeId(1 + self.rng.below(self.hosts.len() as u64));
                let live = self.hosts[n].live.as_mut();
                if live.is_some_and(|l| l.node.leads().is_some() && l.node.transfer(to).is_ok()) {
                    self.tally.up("transfers");
                }
            }
            // All hosts at once, now and then.
            7 if self.rng.below(8) == 0 => {
                for n in 0..self.hosts.len() {
                    if self.hosts[n].live.is_some() {
                        self.ends(n, self.may_lose_power(n));
                    }
                }
            }
            // A checkpoint was made, and the log before it is dropped.
            8 | 9 if matches!(self.aim, Aim::Members | Aim::Memory) => self.forget(n),
            _ => {}
        }
    }

    /// A follower acknowledges frames that are only in its page cache, unless a start syncs them. Then it loses them, and elects
    /// a leader together with the host that never had them.
    fn plan_a_kill(&mut self) {
        let Some(leader) = self.leader().filter(|_| self.is_at_peace() && self.rng.below(30) == 0) else { return };
        let first = (leader + 1 + self.rng.below(2) as usize) % 3;
        let last = 3 - leader - first;
        let kill = self.now + 2 + self.rng.below(5);
        let power = kill + 3 + self.rng.below(9);
        self.hosts[first].stalls_until = self.now + 30;
        self.isolate(last, power, true);
        self.script.push_back((kill, Act::Kill(first)));
        self.script.push_back((power, Act::PowerLoss(first)));
        self.script.push_back((power, Act::Isolate(leader, 90)));
        // Until they have elected a leader, and the partition has ended.
        self.script.push_back((power + 180, Act::Isolate(last, 0)));
    }

    fn plan_a_loss(&mut self) {
        let Some(leader) = self.leader().filter(|_| self.is_at_peace() && self.rng.below(30) == 0) else { return };
        let first = (leader + 1 + self.rng.below(2) as usize) % 3;
        let last = 3 - leader - first;
        let power = self.now + 2 + self.rng.below(8);
        // Until the snapshot is installed.
        let installed = power + 45;
        self.hosts[first].stalls_until = self.now + 30;
        self.isolate(last, installed, true);
        self.script.push_back((power, Act::PowerLoss(first)));
        self.script.push_back((installed, Act::Isolate(leader, 90)));
        self.script.push_back((installed + 180, Act::Isolate(last, 0)));
    }

    /// Isolates a new leader before it sends anything, so that another host opens a term at the same index.
    pub(super) fn trap(&mut self, n: usize) {
        if self.aim != Aim::TornTruncated || self.is_well() || !self.hosts[n].leads() {
            return;
        }
        let term = self.hosts[n].live.as_ref().map_or(0, |l| l.node.state().term);
        if term > self.trapped && self.is_at_peace() {
            self.trapped = term;
            if self.rng.below(4) > 0 {
                let until = self.now + 70 + self.rng.below(30);
                self.isolate(n, until, true);
            }
        }
    }

    /// Plans another power loss of host `n`, whose power went while it truncated its log after frame `last_kept`, or right after.
    pub(super) fn after_cut(&mut self, n: usize, last_kept: u64) {
        if self.aim == Aim::TornTruncated {
            let host = &mut self.hosts[n];
            host.back_at = self.now + 1;
            host.stalls_until = self.now + 60;
            host.torn_behind = Some(last_kept);
        }
    }

    /// Makes the power go again as soon as other frames are written where the log was truncated.
    fn tear_again(&mut self) {
        for n in 0..self.hosts.len() {
            let host = &mut self.hosts[n];
            let end = host.live.as_ref().map_or(0, |l| l.writer.end().index.0);
            if host.torn_behind.take_if(|kept| end > *kept).is_some() {
                self.script.push_back((self.now + self.rng.below(3), Act::PowerLoss(n)));
            }
        }
    }

    /// Changes the members by way of the leader, as an operator.
    fn operator(&mut self) {
        if self.rng.below(25) > 0 {
            return;
        }
        let Some(leader) = self.leader() else { return };
        let Some(live) = self.hosts[leader].live.as_ref() else { return };
        let members = live.node.meta().members.clone();
        let Some((what, change)) = self.choose(&members) else { return };
        self.gone.extend(change.iter().filter(|s| s.roles == 0).map(|s| s.node.0));
        self.tally.up(what);
        // Now and then the removed or demoted voter leads at that moment; the current leader is never asked to remove itself.
        let loser = change
            .iter()
            .find(|s| s.roles != format::VOTER && members.iter().any(|b| b.node == s.node && b.roles == format::VOTER));
        self.hosts[leader].hands_to = loser.map(|s| s.node).filter(|_| self.rng.below(3) == 0);
        self.hosts[leader].asked = Some(Change { transition: Transition::Auto, members: change });
    }

    /// Chooses a change for a cluster of these members; at least two keep their votes.
    fn choose(&mut self, members: &[MemberEntry]) -> Option<(&'static str, Vec<MemberEntry>)> {
        let of = |roles: u32| members.iter().filter(move |s| s.roles & roles != 0).map(|s| s.node.0).collect::<Vec<_>>();
        // A learner that needs a snapshot gives no vote, so it is not promoted.
        let may_vote = |n: &u64| self.hosts[*n as usize - 1].live.as_ref().is_some_and(|l| !l.node.meta().is_mute());
        let (voters, mut learners) = (of(format::VOTER), of(format::LEARNER));
        learners.retain(may_vote);
        let pick = |rng: &mut SimRng, of: &[u64]| (!of.is_empty()).then(|| of[rng.below(of.len() as u64) as usize]);
        let (voter, learner) = (pick(&mut self.rng, &voters), pick(&mut self.rng, &learners));
        let removable = if voters.len() > 2 { voter } else { None };
        match self.rng.below(8) {
            0 | 1 => Some(("additions", vec![member_entry(self.outsider(members)?, format::LEARNER)])),
            2 | 3 => Some(("promotions", vec![member_entry(learner?, format::VOTER)])),
            4 => Some(("removals", vec![member_entry(removable.or(learner)?, 0)])),
            5 => Some(("swaps", vec![member_entry(learner?, format::VOTER), member_entry(voter?, 0)])),
            6 => Some(("swaps", vec![member_entry(learner?, format::VOTER), member_entry(voter?, format::LEARNER)])),
            _ => {
                let (new, old) = (self.outsider(members)?, removable?);
                Some(("swaps", vec![member_entry(new, format::LEARNER), member_entry(old, 0)]))
            }
        }
    }

    /// A host that is no member and never was; it is initialised to join the members `members`.
    pub(super) fn outsider(&mut self, members: &[MemberEntry]) -> Option<u64> {
        let is_free = |n: &u64| !self.gone.contains(n) && members.iter().all(|s| s.node.0 != *n);
        if let Some(free) = (1..=self.hosts.len() as u64).find(is_free) {
            return Some(free);
        }
        let new = self.hosts.len() as u64 + 1;
        if self.hosts.len() == self.hosts_max {
            return None;
        }
        let others = members.iter().map(|s| member_entry(s.node.0, format::VOTER));
        let host = Host::new(new, others.chain([member_entry(new, format::LEARNER)]).collect(), self.is_lossy(), true);
        self.hosts.push(host);
        Some(new)
    }
}
