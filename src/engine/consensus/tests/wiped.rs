//! Owns: introductions of hosts, and hosts that are initialised again under a used number.

use std::path::Path;

use super::super::meta::{self, Meta};
use super::super::*;
use super::Mutant;
use super::nemesis::Act;
use super::world::{Cluster, DIR, How, STORE, member_entry, start};
use tapestore::disk::sim::SimDisk;
use tapestore::lsn::NodeId;
use tapestore::time::Ts;
use tapestore::wal;
use tapestore::wal::format::SEGMENT_SIZE_MIN;

/// Incarnation `life` of the host `node`.
fn incarnation(node: u64, life: u64) -> u64 {
    node << 32 | life
}

/// The disk of a freshly initialised host, with the members `members`.
pub(super) fn initialised(node: u64, life: u64, members: Vec<MemberEntry>, joins: bool) -> SimDisk {
    let (disk, dir) = (SimDisk::new(), Path::new(DIR));
    wal::create_if_absent(&disk, dir, wal::Create { store_id: STORE, segment_size: SEGMENT_SIZE_MIN, now: Ts(1) }).unwrap();
    let (incarnation, is_fresh) = (incarnation(node, life), !joins);
    let meta = Meta { node: NodeId(node), members, joins, incarnation, is_fresh, remembers: true, ..Meta::alone(STORE, 0) };
    MetaFile::create(&disk, dir, &meta).unwrap();
    disk
}

impl Cluster {
    fn is_there(&self, n: usize) -> bool {
        self.hosts[n].live.is_some() && self.hosts[n].back_at <= self.now
    }

    /// Whether neither host has met another incarnation of the other's number.
    pub(super) fn accept_each_other(&self, one: usize, other: usize) -> bool {
        let of = |n: usize| self.hosts.get(n).and_then(|h| h.live.as_ref()).map(|l| l.node.meta());
        let (Some(a), Some(b)) = (of(one), of(other)) else { return true };
        let accepts = |a: &Meta, b: &Meta| a.met.get(&b.node).is_none_or(|met| *met == b.incarnation);
        accepts(a, b) && accepts(b, a)
    }

    /// Makes host `n` greet the hosts that it has not met since its start.
    pub(super) fn meet(&mut self, n: usize) {
        for other in std::mem::take(&mut self.hosts[n].unmet) {
            let is_met = other < self.hosts.len() && self.is_there(n) && self.is_there(other) && !self.is_cut_off(n, other) && {
                let of = |c: &Cluster, n: usize| c.hosts[n].live.as_ref().unwrap().node.meta().greeting();
                let (mine, theirs) = (of(self, n), of(self, other));
                let accepted = self.hosts[other].live.as_mut().unwrap().node.greet(&mine);
                if let Err(refused) = &accepted {
                    self.tally.up("hosts refused");
                    self.hosts[n].live.as_mut().unwrap().node.refused(theirs.node, refused.to_string());
                }
                accepted.is_ok() && self.hosts[n].live.as_mut().unwrap().node.greet(&theirs).is_ok()
            };
            if is_met {
                self.hosts[n].live.as_mut().unwrap().node.met(NodeId(other as u64 + 1), 0).unwrap();
            } else {
                self.hosts[n].unmet.push(other);
            }
        }
    }

    /// Removes the store of host `n` and initialises it as at first.
    pub(super) fn wipe(&mut self, n: usize) {
        self.tally.up("wipes");
        let (node, voters) = (n as u64 + 1, (1..=3).map(|n| member_entry(n, format::VOTER)).collect());
        self.ends(n, false);
        let is_noticed = self.mutant != Some(Mutant::WipedVotes);
        let host = &mut self.hosts[n];
        host.life += u64::from(is_noticed);
        host.disk = initialised(node, host.life, voters, false);
        if !is_noticed {
            let mut file = MetaFile::open(&host.disk, Path::new(DIR)).unwrap();
            file.update(Meta { is_fresh: false, ..file.meta().clone() }).unwrap();
        }
        host.first_meta = host.disk.contents(&Path::new(DIR).join(meta::NAME)).unwrap();
        host.back_at = self.now + 1;
        host.compares_again();
        // The connections to the old process have ended.
        self.net.retain(|(_, raft)| raft.to.0 != node);
        self.wiped = Some(n);
    }

    /// Lets two of three hosts commit frames that the third misses; then wipes one of the two, and keeps the other away while the
    /// two hosts without the frames are up.
    pub(super) fn plan_a_wipe(&mut self) {
        let all = self.hosts.len() == 3 && self.hosts.iter().all(|h| h.live.is_some() && h.back_at <= self.now);
        let peace = all && self.wiped.is_none() && self.is_at_peace() && self.now > 60;
        let Some(leader) = self.leader().filter(|_| peace && self.rng.below(20) == 0) else { return };
        let stale = (leader + 1 + self.rng.below(2) as usize) % 3;
        let wiped = if self.rng.below(4) == 0 { leader } else { 3 - leader - stale };
        let kept = 3 - stale - wiped;
        let at = self.now + 20 + self.rng.below(20);
        self.isolate(stale, at, true);
        self.script.push_back((at, Act::Wipe(wiped)));
        self.script.push_back((at, Act::Away(kept, 100 + self.rng.below(60))));
    }

    /// Does what the wiped host's message advises: removes it, and adds another host under a new number.
    pub(super) fn replace(&mut self) {
        let Some(wiped) = self.wiped.filter(|_| self.mutant.is_none() && self.rng.below(10) == 0) else { return };
        let Some(leader) = self.leader() else { return };
        let Some(live) = self.hosts[leader].live.as_ref() else { return };
        let (members, progress) = (live.node.meta().members.clone(), live.node.progress());
        let node = wiped as u64 + 1;
        let asked = if members.iter().any(|s| s.node.0 == node) {
            self.gone.insert(node);
            member_entry(node, 0)
        } else if let Some(learner) = members.iter().find(|s| s.roles == format::LEARNER) {
            if !progress.iter().any(|p| p.node == learner.node && p.has_caught_up()) {
                return;
            }
            member_entry(learner.node.0, format::VOTER)
        } else if members.len() < 3 {
            let Some(new) = self.outsider(&members) else { return };
            member_entry(new, format::LEARNER)
        } else {
            return;
        };
        self.hosts[leader].asked = Some(Change { transition: Transition::Auto, members: vec![asked] });
    }
}

/// Three freshly initialised hosts, all down.
fn fresh() -> Cluster {
    let mut cluster = Cluster::new(3, super::Aim::Members, None);
    cluster.pace = super::world::Pace { loss: 0, ..super::world::COARSE };
    cluster.hosts.iter_mut().for_each(|h| h.back_at = u64::MAX);
    cluster
}

#[test]
fn fresh_hosts_form_a_cluster_in_any_start_order_once_all_three_have_been_up() {
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut cluster = fresh();
        for (n, host) in order.into_iter().enumerate() {
            assert!(cluster.leader().is_none(), "{n} of them");
            cluster.hosts[host].back_at = cluster.now;
            (0..150).for_each(|_| cluster.tick());
        }
        assert!(cluster.leader().is_some() && cluster.acked.len() > 10, "{order:?}");
        assert!(cluster.hosts.iter().all(|h| !h.live.as_ref().unwrap().node.meta().is_fresh));
        cluster.check().unwrap();
    }
}

#[test]
fn fresh_hosts_name_the_host_that_they_wait_for_and_need_to_meet_only_once() {
    let mut cluster = fresh();
    cluster.hosts[0].back_at = 0;
    cluster.hosts[1].back_at = 0;
    (0..100).for_each(|_| cluster.tick());
    let waits = |cluster: &Cluster, n: usize| cluster.hosts[n].live.as_ref().unwrap().node.waits();
    let said = waits(&cluster, 0).unwrap();
    assert!(said.contains("this host is new") && said.contains("node 3"), "{said}");
    cluster.hosts[2].back_at = cluster.now;
    (0..100).for_each(|_| cluster.tick());
    assert_eq!((0..3).map(|n| waits(&cluster, n)).collect::<Vec<_>>(), [None, None, None]);
    // One host is down and another restarts: no introduction is needed for that.
    let leader = cluster.leader().unwrap();
    let other = (leader + 1) % 3;
    cluster.ends(3 - leader - other, false);
    cluster.hosts[3 - leader - other].back_at = u64::MAX;
    cluster.ends(other, false);
    cluster.hosts[other].back_at = cluster.now + 1;
    let acked = cluster.acked.len();
    (0..150).for_each(|_| cluster.tick());
    assert!(cluster.acked.len() > acked + 50);
    cluster.check().unwrap();
}

#[test]
fn a_wiped_host_gives_no_vote_to_a_host_that_lacks_frames() {
    let mut cluster = fresh();
    cluster.hosts.iter_mut().for_each(|h| h.back_at = 0);
    (0..150).for_each(|_| cluster.tick());
    let leader = cluster.leader().unwrap();
    let (stale, wiped) = ((leader + 1) % 3, (leader + 2) % 3);
    let now = cluster.now;
    cluster.isolate(stale, now + 60, true);
    (0..60).for_each(|_| cluster.tick());
    cluster.ends(leader, false);
    cluster.hosts[leader].back_at = u64::MAX;
    cluster.wipe(wiped);
    (0..300).for_each(|_| cluster.tick());
    assert!(cluster.leader().is_none(), "the two hosts that are up lack acknowledged frames");
    let said = cluster.hosts[wiped].live.as_ref().unwrap().node.waits().unwrap();
    assert!(said.contains("has been here before") && said.contains("tape cluster remove"), "{said}");
    cluster.hosts[leader].back_at = cluster.now;
    let acked = cluster.acked.len();
    (0..300).for_each(|_| {
        cluster.replace();
        cluster.tick();
    });
    assert!(cluster.acked.len() > acked + 100, "two of three hosts that kept their stores are up");
    cluster.check().unwrap();
}

#[test]
fn a_host_whose_log_is_put_back_to_an_earlier_state_waits_for_a_snapshot() {
    let mut cluster = fresh();
    cluster.hosts.iter_mut().for_each(|h| h.back_at = 0);
    (0..150).for_each(|_| cluster.tick());
    let leader = cluster.leader().unwrap();
    let other = (leader + 1) % 3;
    let before = cluster.hosts[other].disk.copy();
    (0..100).for_each(|_| cluster.tick());
    cluster.ends(other, false);
    cluster.hosts[other].disk = before;
    cluster.hosts[other].back_at = cluster.now + 1;
    let snapshots = cluster.tally.of("snapshots");
    (0..150).for_each(|_| cluster.tick());
    assert_eq!(cluster.tally.of("snapshots"), snapshots + 1);
    assert!(!cluster.hosts[other].live.as_ref().unwrap().node.meta().is_mute());
    cluster.check().unwrap();
}

#[test]
fn the_old_leader_of_a_pair_elects_itself_only_after_the_other_member_has_answered() {
    let members = vec![member_entry(1, format::VOTER), member_entry(2, format::LEARNER)];
    let disk = initialised(1, 0, members, false);
    let mut file = MetaFile::open(&disk, Path::new(DIR)).unwrap();
    file.update(Meta { is_fresh: false, generation: 1, ..file.meta().clone() }).unwrap();
    let mut node = start(&disk, How { mutant: None, is_lossy: false, boot: 1 }).unwrap().node;
    assert!(node.is_pair() && !node.may_elect_itself());
    for (other, generation) in [(3, 0), (3, 1), (2, 2)] {
        node.met(NodeId(other), generation).unwrap();
        assert!(!node.may_elect_itself(), "node {other} of generation {generation} does not answer for node 2");
        assert!(node.waits().unwrap().contains("only after node 2"));
    }
    for generation in [1, 0] {
        node.met(NodeId(2), generation).unwrap();
        assert!(node.may_elect_itself() && node.waits().is_none());
        node.met(NodeId(2), 2).unwrap();
        assert!(!node.may_elect_itself(), "node 2 was promoted meanwhile");
    }
}
