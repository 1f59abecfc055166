//! Owns: cases that seeds have found, each as a test of its own: leaders that lose the lead in the middle of a change, voters
//! that lack frames.

use std::path::Path;

use super::super::*;
use super::nemesis::Aim;
use super::world::{COARSE, Cluster, DIR, How, Live, Pace, member_entry, start};
use crate::consensus::message::{Raft, Role};
use raft::eraftpb::MessageType;
use tapestore::lsn::{Epoch, NodeId, PublisherId};
use tapestore::time::Ts;
use tapestore::wal::{ControlEntry, FrameBuilder, FrameType};

/// Starts a cluster of three without faults, and returns its leader.
fn led_of(aim: Aim) -> (Cluster, usize) {
    let mut cluster = Cluster::new(7, aim, None);
    cluster.pace = Pace { loss: 0, ..COARSE };
    (0..150).for_each(|_| cluster.tick());
    let leader = cluster.leader().unwrap();
    (cluster, leader)
}

fn led() -> (Cluster, usize) {
    led_of(Aim::Members)
}

/// The same with hosts that acknowledge frames that they have in memory only.
fn led_in_memory() -> (Cluster, usize) {
    led_of(Aim::Memory)
}

fn change(node: u64, roles: u32) -> Change {
    Change { transition: Transition::Auto, members: vec![member_entry(node, roles)] }
}

#[test]
fn a_leader_that_loses_the_lead_before_it_wrote_its_own_frame_sends_again_afterwards() {
    let (mut cluster, leader) = led();
    let node = &mut cluster.hosts[leader].live.as_mut().unwrap().node;
    let (own, term) = (node.meta().node, node.state().term);
    let from = NodeId(own.0 % 3 + 1);
    node.change(change(from.0, format::VOTER)).unwrap();
    node.step(&Raft { kind: MessageType::MsgHeartbeat as u8, to: own, from, term: term + 1, ..Raft::default() }).unwrap();
    assert_eq!(node.state().role, Role::Follower);
    // The other two elect nobody without it, because one of them is down.
    let absent = (0..3).find(|n| *n != leader && *n as u64 + 1 != from.0).unwrap();
    cluster.hosts[absent].back_at = u64::MAX;
    let acked = cluster.acked.len();
    (0..300).for_each(|_| cluster.tick());
    assert!(cluster.acked.len() > acked + 100, "the two hosts that are up go on: {} acknowledged", cluster.acked.len() - acked);
    cluster.check().unwrap();
}

#[test]
fn a_host_with_two_membership_frames_in_its_log_applies_the_first() {
    let (mut cluster, leader) = led();
    let other = (leader + 1) % 3;
    for roles in [format::LEARNER, format::VOTER] {
        cluster.hosts[leader].asked = Some(change(other as u64 + 1, roles));
        (0..20).for_each(|_| cluster.step(false));
    }
    let third = &cluster.hosts[3 - leader - other];
    let members = |live: &Live| live.node.meta().members.iter().map(|s| (s.node.0, s.roles)).collect::<Vec<_>>();
    assert!(members(third.live.as_ref().unwrap()).iter().all(|s| s.1 == format::VOTER));
    // It was killed before it had stored that either was applied.
    let disk = third.disk.copy();
    disk.overwrite(&Path::new(DIR).join(meta::NAME), third.first_meta.clone());
    let live = start(&disk, How { mutant: None, is_lossy: false, boot: 1 }).unwrap();
    assert!(members(&live).contains(&(other as u64 + 1, format::LEARNER)), "{:?}", members(&live));
}

#[test]
fn a_leader_whose_own_removal_is_committed_steps_down_and_the_others_go_on_without_it() {
    let (mut cluster, first) = led();
    let next = (first + 1) % 3;
    let node = |n: usize| NodeId(n as u64 + 1);
    let of_first = &mut cluster.hosts[first].live.as_mut().unwrap().node;
    let refused = of_first.change(change(node(first).0, 0)).unwrap_err();
    assert!(refused.to_string().contains("hand the lead over first"), "{refused}");
    // Nothing else is in flight, and the third host is slow: the lead is handed over with that frame.
    (0..20).for_each(|_| cluster.step(false));
    cluster.hosts[3 - first - next].stalls_until = cluster.now + 20;
    cluster.hosts[first].asked = Some(change(node(next).0, 0));
    cluster.hosts[first].hands_to = Some(node(next));
    let (mut led, acked) = (false, cluster.acked.len());
    for n in 0..150 {
        cluster.step(n > 50);
        led |= cluster.hosts[next].leads();
    }
    let state = cluster.hosts[next].live.as_ref().unwrap().node.state();
    assert!(led && state.role == Role::Learner, "it led when it was removed: {led}, {state:?}");
    // Nor do they need it when it is down.
    cluster.hosts[next].live = None;
    cluster.hosts[next].back_at = u64::MAX;
    (0..100).for_each(|_| cluster.tick());
    assert!(cluster.acked.len() > acked + 100);
    cluster.check().unwrap();
}

#[test]
fn a_frame_in_most_memories_is_committed_but_a_membership_frame_waits_for_the_disks() {
    let (mut cluster, leader) = led_in_memory();
    let stalled = cluster.now + 100;
    cluster.hosts.iter_mut().for_each(|h| h.stalls_until = stalled);
    (0..5).for_each(|_| cluster.tick());
    let other = (leader + 1) % 3;
    let learners = |cluster: &Cluster| {
        let live = cluster.hosts[leader].live.as_ref().unwrap();
        live.node.meta().members.iter().filter(|s| s.roles == format::LEARNER).count()
    };
    cluster.hosts[leader].asked = Some(change(other as u64 + 1, format::LEARNER));
    let acked = cluster.acked.len();
    (0..3).for_each(|_| cluster.step(false));
    let index = cluster.hosts[leader].live.as_ref().unwrap().node.frames().last();
    (0..40).for_each(|_| cluster.tick());
    assert!(cluster.acked.len() > acked, "the frames before it are committed");
    let node = &cluster.hosts[leader].live.as_ref().unwrap().node;
    assert!(node.committed() < index && learners(&cluster) == 0, "{} of {index}", node.committed());
    (0..150).for_each(|_| cluster.tick());
    assert_eq!(learners(&cluster), 1);
    assert!(cluster.acked.len() > acked + 100);
    cluster.check().unwrap();
}

#[test]
fn a_host_that_lost_frames_that_the_leader_counts_on_does_not_vote_until_it_has_a_snapshot() {
    let (mut cluster, leader) = led_in_memory();
    let other = (leader + 1) % 3;
    cluster.hosts[other].stalls_until = cluster.now + 60;
    (0..40).for_each(|_| cluster.tick());
    let last = |cluster: &Cluster, n: usize| cluster.hosts[n].live.as_ref().map(|l| l.node.frames().last());
    let had = last(&cluster, other);
    cluster.ends(other, true);
    cluster.hosts[other].back_at = cluster.now + 1;
    // The leader still counts on the frames that the host had.
    cluster.step(false);
    assert!(last(&cluster, other) < had, "{:?} of {had:?}", last(&cluster, other));
    let is_mute = |cluster: &Cluster| cluster.hosts[other].live.as_ref().is_some_and(|l| l.node.meta().has_forgotten);
    assert!(is_mute(&cluster));
    let vote = Raft {
        kind: MessageType::MsgRequestVote as u8,
        to: NodeId(other as u64 + 1),
        from: NodeId((3 - leader - other) as u64 + 1),
        term: 90,
        log_term: 89,
        index: 1 << 40,
        ..Raft::default()
    };
    let node = &mut cluster.hosts[other].live.as_mut().unwrap().node;
    node.step(&vote).unwrap();
    assert!(node.take_messages().is_empty() && node.meta().term < 90, "it does not vote");
    (0..100).for_each(|_| cluster.tick());
    assert!(!is_mute(&cluster) && cluster.tally.of("snapshots") == 1, "{:?}", cluster.tally);
    // Without that host there is no majority then.
    let acked = cluster.acked.len();
    cluster.ends(leader, false);
    cluster.hosts[leader].back_at = u64::MAX;
    (0..200).for_each(|_| cluster.tick());
    assert!(cluster.acked.len() > acked + 50, "it votes again");
    cluster.check().unwrap();
}

#[test]
fn a_control_entry_waits_for_the_disks_where_records_do_not() {
    let (mut cluster, leader) = led_in_memory();
    let stalled = cluster.now + 100;
    cluster.hosts.iter_mut().for_each(|h| h.stalls_until = stalled);
    (0..5).for_each(|_| cluster.tick());
    let live = cluster.hosts[leader].live.as_mut().unwrap();
    let mut frame = FrameBuilder::new();
    frame.push_entry(|words| ControlEntry::Attach { publisher: PublisherId(2), epoch: Epoch(1), incarnation: 1 }.encode(words));
    live.writer.ready().unwrap();
    let appended = live.writer.append(&mut frame, FrameType::Control, Ts(1)).unwrap();
    appended.opened.into_iter().for_each(|segment| live.syncer.opened(segment));
    live.node.proposed(&appended.header);
    live.node.pump().unwrap();
    let index = appended.header.index.0;
    let committed = |cluster: &Cluster| cluster.hosts[leader].live.as_ref().unwrap().node.committed();
    (0..40).for_each(|_| cluster.tick());
    assert_eq!(committed(&cluster), index - 1, "the frames before it are committed from memory");
    (0..100).for_each(|_| cluster.tick());
    assert!(committed(&cluster) > index);
    cluster.check().unwrap();
}

#[test]
fn a_change_after_which_too_few_voters_are_up_names_the_host_that_is_away() {
    let (mut cluster, leader) = led();
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let stops = |cluster: &Cluster, n: usize, roles: u32| {
        cluster.hosts[leader].live.as_ref().unwrap().node.would_stop(&change(n as u64 + 1, roles))
    };
    for n in [other, third] {
        assert_eq!(stops(&cluster, n, 0), None, "all are up");
    }
    cluster.ends(other, false);
    cluster.hosts[other].back_at = u64::MAX;
    (0..100).for_each(|_| cluster.tick());
    assert_eq!(cluster.leader(), Some(leader));
    let reason = stops(&cluster, third, 0).unwrap();
    assert!(reason.contains(&format!("node {} is away", other + 1)) && reason.contains("--force"), "{reason}");
    assert!(stops(&cluster, third, format::LEARNER).is_some());
    assert!(stops(&cluster, 3, format::VOTER).is_some(), "the new voter would be away");
    assert_eq!(stops(&cluster, other, 0), None, "a host that is away may be removed");
}
