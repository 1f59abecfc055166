//! Owns: tests of snapshot install: a host that needs frames that the leader's log no longer holds.

use std::collections::BTreeMap;

use super::replicas::{Hosts, eventually, publish};
use super::*;
use crate::consensus::format::VOTER;
use crate::consensus::message::Message;
use crate::consensus::{MemberEntry, MetaFile as RaftFile, meta as raft_meta};
use crate::snapshot::{install, meta_of, state_of, transfer, verify_log};
use tapestore::disk::{Disk, Open, RealDisk, copy};
use tapestore::lsn::NodeId;
use tapestore::reader::{At, Reader};
use tapestore::shm::control::Statistic;
use tapestore::sstable;
use tapestore::time::HostClock;

/// Copies the snapshot `offer` from the directory `from` into the store `to`, as replication does.
fn bring(disk: &dyn Disk, offer: &transfer::HostSnapshot, from: &Path, to: &Path) {
    install::begin(disk, to).unwrap();
    for (name, len) in &offer.files {
        assert!(transfer::is_file_name(name), "{name}");
        let target = to.join(install::INCOMING).join(name);
        if disk.exists(&target).unwrap() {
            disk.remove(&target).unwrap();
        }
        copy(disk, &from.join(name), &target, &mut |_| {}).unwrap();
        assert_eq!(disk.open(&target, Open::Read).unwrap().len().unwrap(), *len);
    }
}

fn digest(store: &Path, last: u64) -> tapestore::reader::Tally {
    let mut follow = Reader::open(store).unwrap().follow(Lsn(1), At::Committed);
    let mut tally = tapestore::reader::Tally::default();
    while tally.count < last {
        let Some(row) = follow.poll().unwrap() else { continue };
        tally.add(row.lsn, row.record.words());
    }
    tally
}

#[test]
fn a_host_behind_the_leaders_log_installs_a_snapshot_and_goes_on_with_the_leaders_log() {
    let mut hosts = Hosts::new(3);
    hosts.retain = 1;
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader(0);
    let behind = leader % 3 + 1;
    let mut publisher = hosts.publisher(leader, 1, Durability::Quorum);
    publish(&mut publisher, 0, 100);
    eventually("the follower to have records", || (hosts.control(behind).committed() >= Lsn(100)).then_some(()));
    let mut follow = Reader::open(&hosts.store(behind)).unwrap().follow(Lsn(1), At::Committed);
    hosts.net.cut_off.lock().unwrap().insert(behind);
    let (mut next, segment) = (100, wal::format::SEGMENT_SIZE_MIN);
    while hosts.control(leader).statistic(Statistic::CheckpointPosition) < 4 * segment {
        publish(&mut publisher, next, next + 2_000);
        next += 2_000;
    }
    hosts.net.cut_off.lock().unwrap().clear();
    eventually("the leader to report it", || hosts.net.behind.lock().unwrap().contains(&behind).then_some(()));
    let (to, made_in) = (hosts.store(behind), hosts.store(leader).join("offers"));
    RealDisk.create_dir(&made_in).unwrap();
    let made_in = made_in.join("1");
    let offer = transfer::create(&RealDisk, &hosts.store(leader), &made_in, HostClock.wall()).unwrap();
    publish(&mut publisher, next, next + 500);
    next += 500;
    bring(&RealDisk, &offer, &made_in, &to);
    install::check(&RealDisk, &to, &mut BTreeMap::new(), &mut |_| {}).unwrap();
    transfer::remove(&RealDisk, &made_in).unwrap();
    hosts.net.hand(NodeId(leader), NodeId(behind), &Message::SnapshotFetched);
    eventually("the end of its storage", || hosts.storages[behind as usize - 1].as_ref().unwrap().has_failed().then_some(()));
    assert_eq!(hosts.stop(behind), Ended::Fill);
    let world = World { disk: Arc::new(RealDisk), clock: Arc::new(HostClock), store_id: 0, boot: 1 };
    let installed = install::install(&hosts.options(behind).store, &world.disk, world.clock.wall(), false).unwrap();
    assert!(installed.files > 0 && installed.last.0 >= next - 500 && installed.kept_in.is_none(), "{installed:?}");
    assert!(!to.join(install::INCOMING).exists());
    hosts.start(behind);
    eventually("all records", || (hosts.control(behind).committed() >= Lsn(next)).then_some(()));
    publish(&mut publisher, next, next + 500);
    next += 500;
    eventually("the next records", || (hosts.control(behind).committed() >= Lsn(next)).then_some(()));
    assert_eq!(digest(&to, next), digest(&hosts.store(leader), next));
    // A reader from before goes on, and reads each record once.
    let mut seen = 0;
    while seen < next {
        if let Some(row) = follow.poll().unwrap() {
            seen += 1;
            assert_eq!(row.lsn, Lsn(seen));
        }
    }
    // It votes and can lead.
    drop(publisher);
    hosts.ask(leader, crate::consensus::message::Command::Transfer(NodeId(behind))).unwrap();
    assert_eq!(hosts.leader(leader), behind);
}

/// A store `s` of node 1 with records, and a store `t` of node 2 with fewer of them; a snapshot of `s` is in `t`.
fn scene(seed: u64) -> (Run, PathBuf, transfer::HostSnapshot) {
    let mut run = Run::new(seed);
    let (from, to) = (run.dir.path().join("s"), run.dir.path().join("t"));
    std::fs::create_dir(&to).unwrap();
    run.live().unwrap();
    let voter = |n| MemberEntry { node: NodeId(n), roles: VOTER, address: format!("127.0.0.1:{n}") };
    for within in ["", sstable::DIR, wal::DIR] {
        run.disk.create_dir(&to.join(within)).unwrap();
        for name in run.disk.list(&from.join(within)).unwrap() {
            if ![sstable::DIR, wal::DIR, "LOCK"].contains(&name.as_str()) {
                copy(&run.disk, &from.join(within).join(&name), &to.join(within).join(&name), &mut |_| {}).unwrap();
            }
        }
        run.disk.sync_dir(&to.join(within)).unwrap();
    }
    run.disk.sync_dir(&to).unwrap();
    run.disk.sync_dir(run.dir.path()).unwrap();
    for (dir, node, vote) in [(&from, 1, 0), (&to, 2, 7)] {
        let mut file = RaftFile::open(&run.disk, dir).unwrap();
        let commit = if node == 1 { 0 } else { file.meta().commit };
        let members = if node == 1 { file.meta().members.clone() } else { vec![voter(1), voter(2)] };
        let meta = raft_meta::Meta { node: NodeId(node), vote, commit, incarnation: 3, members, ..file.meta().clone() };
        file.update(meta).unwrap();
    }
    for _ in 0..2 {
        run.live().unwrap();
    }
    let mut file = RaftFile::open(&run.disk, &from).unwrap();
    file.update(raft_meta::Meta { members: vec![voter(1), voter(2)], ..file.meta().clone() }).unwrap();
    let made_in = from.join("offers");
    let offer = transfer::create(&run.disk, &from, &made_in, Ts(9_000_000_000)).unwrap();
    bring(&run.disk, &offer, &made_in, &to);
    install::check(&run.disk, &to, &mut BTreeMap::new(), &mut |_| {}).unwrap();
    (run, to, offer)
}

fn world(disk: &SimDisk) -> World {
    World { disk: Arc::new(disk.clone()), clock: Arc::new(SimClock::new(Ts(5_000_000_000))), store_id: 5, boot: 1 }
}

fn install_in(store: &Path, disk: &SimDisk, is_damaged: bool) -> Result<install::Installed> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    install::install(store, &disk, Ts(5_000_000_000), is_damaged)
}

/// Number of records, and `raft.meta`, of the store `dir` as it starts.
fn opened(disk: &SimDisk, dir: &Path) -> (u64, raft_meta::Meta) {
    let store = recover(options(dir), &world(disk)).unwrap();
    (store.started.records, store.node.meta().clone())
}

#[test]
fn power_loss_at_any_call_of_a_snapshot_install_leaves_the_old_or_the_new_store_whole() {
    for (seed, is_damaged) in [(1, false), (2, true), (3, false)] {
        let (run, to, offer) = scene(seed);
        let before = opened(&run.disk.copy(), &to);
        let after = {
            let disk = run.disk.copy();
            let installed = install_in(&to, &disk, is_damaged).unwrap();
            assert_eq!(installed.kept_in.is_some(), is_damaged);
            let found = opened(&disk, &to);
            assert_eq!((installed.last.0, found.1.members.len(), found.1.node), (found.0, 2, NodeId(2)));
            assert!(found.0 > before.0 && found.1.term >= u64::from(offer.term.0) && found.1.incarnation == 3);
            found
        };
        let (mut call, mut counts) = (1, [0, 0]);
        loop {
            let disk = run.disk.copy();
            disk.set_fault(disk.calls() + call, Fault::PowerLoss);
            let is_over = install_in(&to, &disk, is_damaged).is_ok();
            disk.clear_faults();
            let disk = disk.power_loss(seed * 1000 + call);
            let found = opened(&disk, &to);
            let context = format!("seed {seed} call {call}");
            counts[usize::from(found.0 == after.0)] += 1;
            if found.0 == after.0 {
                assert_eq!((&found.1.members, found.1.vote), (&after.1.members, after.1.vote), "{context}");
                assert!(!disk.exists(&to.join(install::INCOMING)).unwrap(), "{context}: nothing of it is left");
            } else {
                assert!(!is_over && found.0 == before.0, "{context}: {} records of {} or {}", found.0, before.0, after.0);
                // The fetched snapshot is still there.
                install_in(&to, &disk, is_damaged).unwrap();
                assert_eq!(opened(&disk, &to).0, after.0, "{context}");
            }
            if is_over {
                break;
            }
            call += 1;
        }
        assert!(counts.iter().all(|n| *n > 5), "{counts:?}");
    }
}

#[test]
fn a_snapshot_that_is_behind_a_hosts_acknowledgements_is_rejected() {
    let (run, to, offer) = scene(4);
    let refused = |change: &dyn Fn(&mut raft_meta::Meta)| {
        let disk = run.disk.copy();
        let mut file = RaftFile::open(&disk, &to).unwrap();
        let mut meta = file.meta().clone();
        change(&mut meta);
        file.update(meta).unwrap();
        let error = install_in(&to, &disk, true).unwrap_err();
        assert!(matches!(error, Error::Consensus { .. }), "{error}");
        assert!(!disk.exists(&to.join("FILLING")).unwrap());
    };
    let term = u64::from(offer.term.0);
    refused(&|m| m.term = term + 1);
    refused(&|m| m.commit = offer.last.0 + 1);
    refused(&|m| m.generation = 1);
    // A later generation starts over, without regard to earlier acknowledgements; the old store is kept.
    let disk = run.disk.copy();
    for (dir, epoch) in [(to.join(install::INCOMING), 2), (to.clone(), 1)] {
        let mut file = RaftFile::open(&disk, &dir).unwrap();
        let later = if epoch == 1 { term + 5 } else { 0 };
        file.update(raft_meta::Meta { generation: epoch, term: file.meta().term.max(later), ..file.meta().clone() }).unwrap();
    }
    let installed = install_in(&to, &disk, false).unwrap();
    let kept = installed.kept_in.unwrap();
    assert!(disk.exists(&kept.join(wal::meta::NAME)).unwrap());
    assert_eq!(opened(&disk, &to).1.generation, 2);
    let meta = meta_of(&disk, &kept).unwrap();
    let from = state_of(&disk, &kept, 5).unwrap().checkpoint;
    verify_log(&disk, &kept, &meta, from).unwrap();
}

#[test]
fn a_snapshot_of_an_earlier_term_than_the_log_is_rejected_even_with_an_old_raft_meta() {
    let (run, to, offer) = scene(6);
    // The process died between the frames of a new term and the term in `raft.meta`.
    let disk = run.disk.copy();
    let mut file = RaftFile::open(&disk, &to).unwrap();
    let own = file.meta().clone();
    file.update(raft_meta::Meta { term: u64::from(offer.term.0), ..own.clone() }).unwrap();
    let mut log =
        wal::open(Arc::new(disk.clone()), &to, state_of(&disk, &to, 5).unwrap().checkpoint, 0, Lsn(0), |_| Ok(())).unwrap();
    log.writer.set_term(tapestore::lsn::Term(offer.term.0 + 1));
    assert!(log.writer.ready().unwrap());
    let mut builder = wal::FrameBuilder::new();
    let appended = log.writer.append(&mut builder, wal::FrameType::NoOp, Ts(10_000_000_000)).unwrap();
    log.syncer.sync(appended.end).unwrap();
    drop(log);
    let error = install_in(&to, &disk, false).unwrap_err();
    assert!(error.to_string().contains("in term"), "{error}");
    // Such a host sends nothing in that term before it is in `raft.meta`.
    drop(recover(options(&to), &world(&disk)).unwrap());
    assert!(RaftFile::open(&disk, &to).unwrap().meta().term > u64::from(offer.term.0));
}

#[test]
fn the_store_of_a_host_that_rejoins_is_kept_and_its_readers_are_notified() {
    let (run, to, _) = scene(7);
    let timeline = |disk: &SimDisk| wal::meta::read(disk, &to).unwrap().unwrap().timeline;
    for rejoins in [false, true] {
        let disk = run.disk.copy();
        let mut file = RaftFile::open(&disk, &to).unwrap();
        // All its frames are committed: its log is a prefix of the leader's.
        let last = file.meta().commit.max(recover(options(&to), &world(&run.disk.copy())).unwrap().node.frames().last());
        file.update(raft_meta::Meta { rejoins, commit: last, ..file.meta().clone() }).unwrap();
        let before = timeline(&disk);
        let installed = install_in(&to, &disk, false).unwrap();
        assert_eq!(installed.kept_in.is_some(), rejoins);
        assert_eq!(timeline(&disk).0 - before.0, 1 + u64::from(rejoins), "readers go on, or read again");
        assert!(!RaftFile::open(&disk, &to).unwrap().meta().rejoins);
    }
}

#[test]
fn a_forced_promotion_first_finishes_an_install_and_only_one_process_changes_a_snapshot() {
    let (run, to, offer) = scene(8);
    let mut is_over = false;
    for call in (1..).step_by(3) {
        let disk = run.disk.copy();
        disk.set_fault(disk.calls() + call, Fault::PowerLoss);
        is_over |= install_in(&to, &disk, false).is_ok();
        disk.clear_faults();
        let disk = disk.power_loss(call);
        let promoted = super::super::cluster_admin::force_promote(&disk, &to, 0).unwrap();
        assert_eq!((promoted.generation, promoted.members.len()), (1, 1), "call {call}");
        let (_, meta) = opened(&disk, &to);
        assert_eq!((meta.generation, meta.members), (1, promoted.members), "call {call}: nothing undoes it");
        if is_over {
            break;
        }
    }
    let held = install::hold(&run.disk, &to).unwrap();
    assert!(matches!(install::hold(&run.disk, &to), Err(Error::Locked { .. })));
    assert!(matches!(install_in(&to, &run.disk, false), Err(Error::Locked { .. })));
    drop(held);
    // A snapshot without one of its files is not whole, even if it is marked as whole.
    let table = offer.files.iter().find(|f| f.0.starts_with(sstable::DIR)).unwrap();
    run.disk.remove(&to.join(install::INCOMING).join(&table.0)).unwrap();
    assert!(install_in(&to, &run.disk, false).is_err());
    assert!(!run.disk.exists(&to.join("FILLING")).unwrap());
}

#[test]
fn a_damaged_snapshot_is_rejected_and_its_damaged_file_is_fetched_again() {
    let (run, to, offer) = scene(5);
    let incoming = to.join(install::INCOMING);
    for (name, len) in offer.files.iter().filter(|f| f.1 > 0) {
        let disk = run.disk.copy();
        install::begin(&disk, &to).unwrap();
        // `raft.meta` and `store.meta` hold everything twice; a manifest and a log end where they are torn.
        if !name.starts_with(sstable::DIR) {
            continue;
        }
        disk.patch(&incoming.join(name), (len / 2) as usize, 0x55).unwrap();
        let error = install::check(&disk, &to, &mut BTreeMap::new(), &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{name}: {error}");
        assert!(!disk.exists(&incoming.join(name)).unwrap());
        let missing = install_in(&to, &disk, false).unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    }
}

#[test]
fn files_that_a_store_already_has_are_not_fetched_and_different_files_are_not_used() {
    let (run, to, _) = scene(9);
    let (own, history) = (to.join(sstable::DIR), to.join(install::INCOMING).join(sstable::DIR));
    let name = run.disk.list(&own).unwrap().into_iter().find(|n| run.disk.exists(&history.join(n)).unwrap()).unwrap();
    run.disk.remove(&history.join(&name)).unwrap();
    let has = |disk: &SimDisk| disk.exists(&history.join(&name)).unwrap();
    let disk = run.disk.copy();
    assert!(install::reuse(&disk, &to).unwrap() > 0 && has(&disk));
    install::check(&disk, &to, &mut BTreeMap::new(), &mut |_| {}).unwrap();
    let disk = run.disk.copy();
    let middle = disk.contents(&own.join(&name)).unwrap().len() / 2;
    disk.patch(&own.join(&name), middle, 0x55).unwrap();
    assert!(install::reuse(&disk, &to).unwrap() == 0 && !has(&disk), "a damaged file is not used");
    // Another file with the name of one of the snapshot's.
    let disk = run.disk.copy();
    disk.open(&history.join(&name), Open::CreateNew).unwrap().write_at(&[7; 4096], 0).unwrap();
    assert!(install::reuse(&disk, &to).unwrap() == 0 && !has(&disk), "it is fetched again");
}

#[test]
fn names_that_no_file_of_a_store_has_are_rejected() {
    for name in ["store.meta", "raft.meta", "CURRENT", "MANIFEST-0000000000000001", "sst/a-1.sst", "wal/0000.wal"] {
        assert!(transfer::is_file_name(name) || name.starts_with("MANIFEST"), "{name}");
    }
    for name in
        ["", "/etc/passwd", "../x", "sst/../x", "sst/", "sst/a/b", "wal/.hidden", "LOCK", "BACKUP", "run", "other/x", "sst/a\0"]
    {
        assert!(!transfer::is_file_name(name), "{name}");
    }
}
