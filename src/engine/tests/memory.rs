//! Owns: tests of hosts that acknowledge a frame before it is on their disks (`flush = "interval"`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::replicas::{Hosts, eventually, trade};
use super::stall::ALL;
use super::*;
use crate::cluster_admin::{NewCluster, force_promote, initialise};
use crate::consensus::message::Command;
use crate::consensus::options::Flush;
use crate::snapshot::install;
use tapestore::disk::RealDisk;
use tapestore::lsn::NodeId;
use tapestore::publisher::{self, PublishError, Publisher};
use tapestore::time::HostClock;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_frame_in_most_memories_is_committed_from_memory_and_level_quorum_is_refused() {
    let mut hosts = Hosts::new(3);
    hosts.flush = Flush::Interval;
    hosts.election_ms = 800;
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader(0);
    let elsewhere = leader % 3 + 1;
    let mut at_leader = hosts.publisher(leader, 1, Durability::QuorumOs);
    let mut at_follower = hosts.publisher(elsewhere, 2, Durability::QuorumOs);
    hosts.stalled.store(ALL, Ordering::Relaxed);
    let mut was_ahead = false;
    for seq in 0..2_000 {
        for publisher in [&mut at_leader, &mut at_follower] {
            publisher.publish(&trade(seq)).unwrap();
            if seq % 100 == 0 {
                publisher.flush(Durability::QuorumOs, PATIENCE).unwrap();
                let control = hosts.control(leader);
                was_ahead |= (1..=3).all(|n| control.committed() > hosts.control(n).durable());
            }
        }
    }
    assert!(was_ahead, "it was committed before any disk had it");
    let refused = at_leader.flush(Durability::Quorum, PATIENCE).unwrap_err();
    assert!(matches!(&refused, PublishError::Refused(why) if why.contains("quorum-os")), "{refused}");
    hosts.stalled.store(0, Ordering::Relaxed);
    at_leader.flush(Durability::Fsync, PATIENCE).unwrap();
    for (n, level) in [(leader, Durability::Quorum), (elsewhere, Durability::Quorum), (leader, Durability::Standby)] {
        let mut options = publisher::Options::new(hosts.store(n), PublisherId(9));
        options.durability = level;
        let Err(refused) = Publisher::open(options) else { panic!("{level} is granted") };
        assert!(refused.to_string().contains("quorum-os"), "{refused}");
    }
    let report = hosts.ask(leader, Command::Status).unwrap();
    assert!(report.is_lossy && !report.needs_snapshot);
    for publisher in [at_leader, at_follower] {
        publisher.close(PATIENCE).unwrap();
    }
    for n in 1..=3 {
        eventually("all of it on each disk", || (hosts.control(n).durable() >= Lsn(4_000)).then_some(()));
    }
}

#[test]
fn where_hosts_acknowledge_durable_frames_only_level_quorum_os_means_quorum() {
    let hosts = Hosts::new(3);
    let leader = hosts.leader(0);
    let mut publisher = hosts.publisher(leader, 1, Durability::QuorumOs);
    publisher.publish(&trade(0)).unwrap();
    publisher.flush(Durability::QuorumOs, PATIENCE).unwrap();
    assert!(hosts.control(leader).durable() >= Lsn(1) || (1..=3).filter(|n| hosts.control(*n).durable() >= Lsn(1)).count() > 1);
    assert_eq!(publisher.level(), Durability::Quorum);
}

/// An initialised host of a cluster of two: its options, and its world.
fn one_of_two(dir: &Path, flush: Flush) -> (Options, World) {
    let mut options = options(&dir.join("s"));
    options.cluster.flush = flush;
    options.run_root = dir.to_path_buf();
    options.space_min = 1 << 20;
    let new_cluster = NewCluster {
        cluster: "test".to_owned(),
        node: NodeId(1),
        members: vec![member(1), member(2)],
        segment_size: options.segment_size,
        joins: false,
        generation: 0,
    };
    initialise(&RealDisk, &options.store, &new_cluster, Ts(1)).unwrap();
    let world = World { disk: Arc::new(RealDisk), clock: Arc::new(HostClock), store_id: 5, boot: 1 };
    (options, world)
}

fn member(n: u64) -> crate::consensus::message::Member {
    crate::consensus::message::Member { node: NodeId(n), address: format!("127.0.0.1:{n}"), is_voter: true }
}

#[test]
fn only_a_host_that_may_have_lost_frames_that_others_count_on_needs_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (options, world) = one_of_two(dir.path(), Flush::Interval);
    let start = |flush, boot| {
        let mut options = options.clone();
        options.cluster.flush = flush;
        let recovered = recover(options, &World { boot, ..world.clone() })?;
        let meta = recovered.node.meta().clone();
        Ok::<_, Error>((recovered, meta))
    };
    // Each of these ends as if the process was killed.
    let (recovered, meta) = start(Flush::Interval, 1).unwrap();
    assert_eq!((meta.has_forgotten, meta.boot), (false, 1));
    drop(recovered);
    assert_eq!(start(Flush::Interval, 1).unwrap().1, meta, "the process was killed, and the page cache is intact");
    let mut file = wal::MetaFile::open(&RealDisk, &options.store).unwrap();
    file.update(wal::Meta { clean: true, ..*file.meta() }).unwrap();
    assert_eq!(start(Flush::Interval, 2).unwrap().1, crate::consensus::meta::Meta { boot: 2, ..meta.clone() }, "a clean stop");
    assert!(start(Flush::Interval, 0).is_err(), "a system without a boot id");
    assert_eq!(start(Flush::Always, 2).unwrap().1.boot, 0, "all frames are durable, and no others will be acknowledged");
    assert!(!start(Flush::Always, 3).unwrap().1.has_forgotten);

    let (recovered, meta) = start(Flush::Interval, 3).unwrap();
    assert!(!meta.has_forgotten);
    drop(recovered);
    let incoming = options.store.join(install::INCOMING);
    install::begin(&RealDisk, &options.store).unwrap();
    assert!(start(Flush::Always, 4).unwrap().1.has_forgotten, "power was lost under the old option");
    assert!(!incoming.exists(), "an earlier snapshot is of no use");
    assert!(start(Flush::Interval, 4).unwrap().1.has_forgotten, "until there is a snapshot");
    let meta = force_promote(&RealDisk, &options.store, 0).unwrap();
    assert!(!meta.has_forgotten && meta.boot == 0, "or an operator has decided");
}

#[test]
fn a_host_that_may_have_lost_frames_is_not_made_leader_by_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let (options, world) = one_of_two(dir.path(), Flush::Interval);
    let start =
        |start_as_leader, boot| Storage::start(Options { start_as_leader, ..options.clone() }, World { boot, ..world.clone() });
    assert_eq!(start(true, 1).unwrap().stop().unwrap(), Ended::Stopped, "it has lost nothing");
    // As if the process was killed, and then power was lost.
    drop(recover(options.clone(), &world).unwrap());
    let Err(refused) = start(true, 2) else { panic!("it leads without the frames that it has lost") };
    assert!(refused.to_string().contains("force-promote"), "{refused}");
    assert_eq!(start(false, 2).unwrap().stop().unwrap(), Ended::Stopped, "it waits for a snapshot");
}

#[test]
fn a_publisher_whose_level_is_gone_is_refused_with_the_level_to_use() {
    let mut hosts = Hosts::new(3);
    let leader = hosts.leader(0);
    let mut publisher = hosts.publisher(leader, 1, Durability::Quorum);
    publisher.publish(&trade(0)).unwrap();
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
    hosts.flush = Flush::Interval;
    (1..=3).for_each(|n| hosts.start(n));
    let why = eventually("the refusal", || match publisher.publish(&trade(0)) {
        Err(PublishError::Refused(why)) => Some(why),
        _ => None,
    });
    assert!(why.contains("quorum-os"), "{why}");
}

#[test]
fn a_host_whose_disk_refused_written_frames_needs_a_snapshot_too() {
    for (flush, waits) in [(Flush::Interval, true), (Flush::Always, false)] {
        // The control page shows that there were more frames, or is missing.
        for is_gone in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (options, world) = one_of_two(dir.path(), flush);
            let recovered = recover(options.clone(), &world).unwrap();
            // A frame that the page cache had and the disk refused.
            let end = recovered.state.writer.end();
            recovered.control.set_appended(end.lsn, tapestore::lsn::Position(end.position.0 + 64));
            let run_dir = recovered.started.run_dir.clone();
            drop(recovered);
            if is_gone {
                std::fs::remove_dir_all(run_dir).unwrap();
            }
            assert_eq!(recover(options, &world).unwrap().node.meta().has_forgotten, waits, "{flush:?}");
        }
    }
}

#[test]
fn a_deliberately_truncated_log_does_not_count_as_lost() {
    let mut hosts = Hosts::new(3);
    hosts.flush = Flush::Interval;
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader(0);
    let mut alone = hosts.publisher(leader, 1, Durability::Os);
    hosts.net.cut_off.lock().unwrap().insert(leader);
    for seq in 0..500 {
        alone.publish(&trade(seq)).unwrap();
    }
    alone.flush(Durability::Os, PATIENCE).unwrap();
    let next = hosts.leader(leader);
    let mut publisher = hosts.publisher(next, 2, Durability::QuorumOs);
    publisher.publish(&trade(0)).unwrap();
    publisher.flush(Durability::QuorumOs, PATIENCE).unwrap();
    hosts.net.cut_off.lock().unwrap().clear();
    eventually("the end of the old leader", || hosts.storages[leader as usize - 1].as_ref().unwrap().has_failed().then_some(()));
    let Ended::Truncate(last_kept) = hosts.stop(leader) else { panic!("its log equals the leader's") };
    let options = hosts.options(leader);
    let world = World { disk: Arc::new(RealDisk), clock: Arc::new(HostClock), store_id: 0, boot: 1 };
    let truncated = crate::divergence::truncate(&options, &world, last_kept).unwrap();
    assert!(truncated.records > 0, "{truncated:?}");
    hosts.start(leader);
    let report = hosts.ask(leader, Command::Status).unwrap();
    assert!(!report.needs_snapshot && !report.is_mute, "{report:?}");
    eventually("the old leader to catch up", || {
        (hosts.control(leader).committed() >= hosts.control(next).committed()).then_some(())
    });
}
