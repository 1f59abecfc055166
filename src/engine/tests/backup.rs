//! Owns: tests of backup, restore and repair on the simulated disk: power loss and failed calls at every call.

use super::*;
use crate::repair;
use crate::snapshot::backup::{self as make, MARK};
use crate::snapshot::restore::{put_back, restore};
use crate::snapshot::{Summary, meta_of, state_of};
use tapestore::disk::{Disk, Open};
use tapestore::lsn::{Position, Timeline};
use tapestore::manifest::read_all;
use tapestore::wal::format::{MARK_OFFSETS, segment_name};
use tapestore::wal::{Body, scan};

/// Sends, syncs and flushes `batches` of 60 records of publisher 1, each in a MemTable of its own; with `flushed` of 0 one sealed
/// MemTable stays unflushed.
fn feed(run: &mut Run, store: &mut Recovered, batches: u64, flushed: usize) {
    for _ in 0..batches {
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        let client = &mut run.clients[0];
        let header = BatchHeader::new(PublisherId(1), client.epoch, PubSeq(client.sent + 1), 60);
        assert_eq!(store.state.accept(header, &trades(1, client.epoch, client.sent + 1, 60)), BatchOutcome::Accepted);
        client.sent += 60;
        store.state.memtables.seal_soon();
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        run.clock.advance(1000);
        let committed = store.state.append(run.clock.wall()).unwrap().unwrap();
        if let Some(opened) = committed.appended.opened {
            store.syncer.opened(opened);
        }
        store.sealed.extend(committed.sealed);
        store.syncer.sync(committed.appended.end).unwrap();
        client.acked = client.sent;
        if store.sealed.len() > 1 || flushed > 0 && !store.sealed.is_empty() {
            file_one(store).unwrap();
        }
    }
    store.syncer.record().unwrap();
}

fn started(seed: u64) -> (Run, Recovered) {
    let mut run = Run::new(seed);
    let mut store = run.recover().unwrap();
    let (state, appended) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    store.syncer.sync(appended.end).unwrap();
    run.clients[0] = Client { epoch: state.epoch, ..Client::default() };
    feed(&mut run, &mut store, 4, 1);
    (run, store)
}

/// All records of the store in `dir`, by reading its files and its log strictly.
pub(super) fn records(disk: &dyn Disk, dir: &Path) -> Result<Vec<Vec<u64>>> {
    let meta = meta_of(disk, dir)?;
    let (follower, _) = read_all(disk, dir, meta.store_id, &mut |_, _| {})?;
    let mut found: std::collections::BTreeMap<u64, Vec<u64>> = Default::default();
    for file in follower.state().files.values() {
        let table = tapestore::sstable::Table::open(disk, &dir.join(tapestore::sstable::DIR), *file)?;
        table.verify(|_| Ok(()))?;
        for lsn in file.lsn.0.0..=file.lsn.1.0 {
            if let Some(place) = table.place_of(Lsn(lsn))? {
                let mut words = Vec::new();
                table.row(place, &mut words)?;
                assert!(found.insert(lsn, words).is_none());
            }
        }
    }
    scan(disk, &dir.join(wal::DIR), &meta, follower.state().checkpoint, Open::Read, |frame| {
        let Body::Data(data) = &frame.body else { return Ok(()) };
        for (lsn, record) in (frame.header.first_lsn.0..).zip(tapestore::record::split(data.records)) {
            assert!(found.insert(lsn, record?.words().to_vec()).is_none());
        }
        Ok(())
    })?;
    assert!(found.keys().copied().eq(1..=found.len() as u64), "dense");
    Ok(found.into_values().collect())
}

fn expected(epoch: Epoch, count: u64) -> Vec<Vec<u64>> {
    (1..=count).map(|seq| trades(1, epoch, seq, 1)).collect()
}

fn back_up(run: &Run, target: &Path, copies: bool) -> Result<Summary> {
    let store = run.dir.path().join("s");
    let options = make::Options { store: &store, target, copies, trusts_earlier: false, now: run.clock.wall() };
    make::backup(&run.disk, &options, &mut |_| {})
}

#[test]
fn a_backup_interrupted_at_any_call_leaves_the_earlier_or_the_new_one_whole() {
    for (earlier, links) in [(false, true), (true, true), (true, false)] {
        let (mut run, mut store) = started(1);
        let (source, target) = (store_of(&run), run.dir.path().join("b"));
        if !links {
            run.disk.forbid_links();
        }
        if earlier {
            back_up(&run, &target, false).unwrap();
        }
        feed(&mut run, &mut store, 3, 1);
        drop(store);
        let base = run.disk.fork();
        let before = run.disk.calls();
        let summary = back_up(&run, &target, false).unwrap();
        let calls = run.disk.calls() - before;
        assert_eq!((summary.last, summary.reused > 0, summary.linked > 0), (Lsn(420), earlier, links));
        assert_eq!(records(&run.disk, &target).unwrap(), expected(Epoch(1), 420));
        for (fault, seeds) in [(Fault::PowerLoss, 2), (Fault::Once(ErrorKind::StorageFull), 1)] {
            for (call, seed) in (1..=calls).flat_map(|call| (0..seeds).map(move |s| (call, call * seeds + s))) {
                run.disk = base.fork();
                run.disk.set_fault(run.disk.calls() + call, fault);
                let outcome = back_up(&run, &target, false);
                run.disk.set_fault(u64::MAX, Fault::PowerLoss);
                run.disk = run.disk.power_loss(seed);
                if !links {
                    run.disk.forbid_links();
                }
                let context = format!("{fault:?} at call {call}, seed {seed}, earlier {earlier}: {outcome:?}");
                match records(&run.disk, &target) {
                    Ok(found) if found.len() == 420 => assert!(run.disk.exists(&target.join(MARK)).unwrap(), "{context}"),
                    Ok(found) => assert!(found == expected(Epoch(1), 240) && earlier && outcome.is_err(), "{context}"),
                    Err(e) => {
                        assert!(!earlier && outcome.is_err(), "{context}: {e}");
                        let again = restore(&run.disk, &target, Path::new("/r"), false, Ts(1), &mut |_| {});
                        assert!(matches!(again, Err(Error::Invalid { what: "backup", .. })), "{context}: {again:?}");
                    }
                }
                // The store itself is unchanged, and the next backup is whole.
                assert_eq!(records(&run.disk, &source).unwrap(), expected(Epoch(1), 420), "{context}");
                if call % 8 == 0 {
                    let mut store = run.recover().unwrap_or_else(|e| panic!("{context}: {e}"));
                    run.verify(&mut store);
                }
                let summary = back_up(&run, &target, false).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(summary.last, Lsn(420));
                assert_eq!(records(&run.disk, &target).unwrap(), expected(Epoch(1), 420), "{context}");
            }
        }
    }
}

/// Opens the store that was restored in `dir`.
fn recover_at(run: &Run, dir: &Path) -> Result<Recovered> {
    let world = World { disk: Arc::new(run.disk.clone()), clock: Arc::new(run.clock.clone()), store_id: 5, boot: 1 };
    recover(options(dir), &world)
}

#[test]
fn a_restore_interrupted_at_any_call_leaves_nothing_or_a_whole_store_on_a_new_timeline() {
    let (mut run, store) = started(1);
    let (backup, target) = (run.dir.path().join("b"), run.dir.path().join("r"));
    back_up(&run, &backup, false).unwrap();
    let timeline = store.meta.meta().timeline;
    let base = run.disk.fork();
    std::fs::create_dir(&target).unwrap();
    let before = run.disk.calls();
    restore(&run.disk, &backup, &target, false, Ts(1), &mut |_| {}).unwrap();
    let calls = run.disk.calls() - before;
    for fault in [Fault::PowerLoss, Fault::Once(ErrorKind::StorageFull)] {
        // Most calls fill the last segment with zeros: the first few of these represent all.
        for (call, seed) in (1..=calls).filter(|c| *c < 30 || calls - c < 16).map(|c| (c, c)) {
            run.disk = base.fork();
            run.disk.set_fault(run.disk.calls() + call, fault);
            let outcome = restore(&run.disk, &backup, &target, false, Ts(1), &mut |_| {});
            run.disk.set_fault(u64::MAX, Fault::PowerLoss);
            run.disk = run.disk.power_loss(seed);
            let context = format!("{fault:?} at call {call}, seed {seed}: {outcome:?}");
            if !run.disk.exists(&target.join(wal::meta::NAME)).unwrap() {
                assert!(outcome.is_err(), "{context}");
                restore(&run.disk, &backup, &target, false, Ts(1), &mut |_| {}).unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            let again = restore(&run.disk, &backup, &target, false, Ts(1), &mut |_| {});
            assert!(matches!(again, Err(Error::Invalid { what: "store", .. })), "a store is not overwritten: {context}");
            assert_eq!(records(&run.disk, &target).unwrap(), expected(Epoch(1), 240), "{context}");
            if call % 4 > 0 {
                continue;
            }
            let store = recover_at(&run, &target).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(store.started.records, 240);
            assert!(store.control.timeline() > timeline, "{context}");
            assert_ne!(store.run_dir.path(), run.run_dir(), "two stores of one id have separate run directories");
            let known = store.state.publisher(PublisherId(1));
            assert_eq!((known.last, known.lsn), (PubSeq(240), Lsn(240)));
            std::fs::remove_dir_all(store.run_dir.path()).unwrap();
        }
    }
}

#[test]
fn a_copy_is_never_built_in_the_directory_that_it_is_made_from() {
    let (run, _store) = started(41);
    let whole = std::path::Path::new("/backup.unfinished");
    back_up(&run, whole, false).unwrap();
    // A restore of /backup would be built in /backup.unfinished, which is emptied first.
    let restored = restore(&run.disk, whole, std::path::Path::new("/backup"), false, run.clock.wall(), &mut |_| ());
    assert!(matches!(&restored, Err(Error::Invalid { .. })), "{restored:?}");
    let read = |dir: &Path| records(&run.disk, dir).unwrap().len();
    assert!(read(whole) > 0, "the backup is whole");
}

#[test]
fn two_restores_of_one_backup_are_on_different_timelines() {
    let (run, _store) = started(1);
    let backup = run.dir.path().join("b");
    back_up(&run, &backup, false).unwrap();
    let restored = |name: &str, now| {
        let target = run.dir.path().join(name);
        let summary = restore(&run.disk, &backup, &target, false, Ts(now), &mut |_| {}).unwrap();
        let mut follower = tapestore::manifest::Follower::new(&target, 5);
        follower.refresh(&run.disk, 0).unwrap();
        (summary.timeline, follower.number())
    };
    let (a, b) = (restored("r1", 1_800_000_000_000_000_000), restored("r2", 1_800_000_001_000_000_000));
    assert!(Timeline(1) < a.0 && a.0 < b.0 && a.1 < b.1, "{a:?} {b:?}");
}

#[test]
fn only_an_earlier_backup_of_the_store_is_replaced() {
    let (run, store) = started(1);
    let (other, _other_store) = started(2);
    let target = run.dir.path().join("b");
    let refused = |what: &str| match back_up(&run, &target, false) {
        Err(Error::Invalid { reason, .. }) => assert!(reason.contains(what), "{reason}"),
        other => panic!("{what}: {other:?}"),
    };
    let put = |name: &str, bytes: &[u8]| {
        run.disk.open(&target.join(name), Open::CreateNew).unwrap().write_at(bytes, 0).unwrap();
    };
    run.disk.create_dir(&target).unwrap();
    put("letters.txt", b"mine");
    refused("holds no backup");
    assert_eq!(run.disk.contents(&target.join("letters.txt")).unwrap(), b"mine");
    run.disk.remove(&target.join("letters.txt")).unwrap();
    run.disk.sync_dir(&target).unwrap();
    back_up(&run, &target, false).unwrap();
    put("letters.txt", b"mine");
    refused("letters.txt");
    run.disk.remove(&target.join("letters.txt")).unwrap();
    run.disk.sync_dir(&target).unwrap();
    // A backup is never served as a store.
    std::fs::create_dir(&target).unwrap();
    assert!(matches!(recover_at(&run, &target), Err(Error::Backup { .. })));
    back_up(&run, &target, false).unwrap();
    drop((store, other));
}

/// The segment file with the frame that begins with record `lsn`, and the frame's offset in it.
fn place_of(run: &Run, lsn: u64) -> (std::path::PathBuf, u64) {
    let store = run.dir.path().join("s");
    let meta = meta_of(&run.disk, &store).unwrap();
    let state = state_of(&run.disk, &store, meta.store_id).unwrap();
    let mut found = None;
    scan(&run.disk, &store.join(wal::DIR), &meta, state.checkpoint, Open::Read, |frame| {
        if frame.header.records() > 0 && frame.header.first_lsn.0 == lsn {
            found = Some(frame.header.position);
        }
        Ok(())
    })
    .unwrap();
    let Position(at) = found.unwrap_or_else(|| panic!("no frame begins with {lsn}"));
    let first = at / meta.segment_size * meta.segment_size;
    (store.join(wal::DIR).join(segment_name(Position(first))), at - first)
}

/// A store whose log, of several segments, is damaged in the frame of `lsn`.
fn damaged(seed: u64, lsn: u64) -> Run {
    let (mut run, mut store) = started(seed);
    // Records that are not flushed, into further segments.
    while store.state.writer.chain().position.0 < 3 * wal::format::SEGMENT_SIZE_MIN + 20_000 {
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        let client = &mut run.clients[0];
        let header = BatchHeader::new(PublisherId(1), client.epoch, PubSeq(client.sent + 1), 400);
        assert_eq!(store.state.accept(header, &trades(1, client.epoch, client.sent + 1, 400)), BatchOutcome::Accepted);
        client.sent += 400;
        let committed = store.state.append(run.clock.wall()).unwrap().unwrap();
        if let Some(opened) = committed.appended.opened {
            store.syncer.opened(opened);
        }
        store.syncer.sync(committed.appended.end).unwrap();
    }
    store.syncer.record().unwrap();
    // A clean stop, so that the durable mark is exact.
    let meta = wal::Meta { clean: true, durable: store.syncer.durable(), ..*store.meta.meta() };
    store.meta.update(meta).unwrap();
    drop(store);
    let (path, at) = place_of(&run, lsn);
    let mut bytes = run.disk.contents(&path).unwrap();
    bytes[at as usize + 100] ^= 1;
    run.disk.overwrite(&path, bytes);
    run
}

#[test]
fn damage_below_the_durable_mark_is_refused_and_a_repair_loses_exactly_what_it_names() {
    let run = damaged(1, 4241);
    let store = run.dir.path().join("s");
    let refusal = run.recover().map(|_| ()).unwrap_err();
    assert!(refusal.to_string().ends_with(&format!("tape repair --store {}", store.display())), "{refusal}");
    let found = repair::examine(&run.disk, &store, &mut |_| {}).unwrap();
    let (error, loss) = found.log.unwrap();
    assert!(matches!(error, Error::Corrupt { lsn: Lsn(4241), .. }) && found.damaged.is_empty());
    let sent = run.clients[0].sent;
    assert_eq!((loss.first, loss.last, loss.count()), (Lsn(4241), Lsn(sent), sent - 4240));
    assert_eq!(loss.readable, sent - 4640, "all but the damaged frame");
    let gone = loss.publishers[&(PublisherId(1), Epoch(1))];
    assert_eq!((gone.first, gone.last, gone.count), (PubSeq(4641), PubSeq(sent), sent - 4640));
    for (at, word) in [(100, "restore"), (4242, "highest that can be given"), (4000, "give 3841 or 4241"), (sent + 2, "4241")] {
        match repair::truncate(&run.disk, &store, Lsn(at), Ts(5)) {
            Err(Error::Invalid { reason, .. }) => assert!(reason.contains(word), "{reason}"),
            other => panic!("{at}: {other:?}"),
        }
    }
    let (done, kept_in) = repair::truncate(&run.disk, &store, Lsn(4241), Ts(5)).unwrap();
    assert_eq!(done, loss);
    let mut store = run.recover().unwrap();
    assert_eq!((store.started.records, store.started.truncated.clone()), (4240, None));
    assert_eq!((store.control.timeline(), store.control.first_withdrawn()), (Timeline(2), Lsn(4241)));
    run.verify_now(&store, 4240);
    let kept = run.disk.list(&kept_in.unwrap()).unwrap();
    assert!(kept.len() >= 3 && kept.contains(&"what.txt".to_owned()), "{kept:?}");
    // The store goes on, and the publisher is notified that it was ahead.
    assert_eq!(store.state.publisher(PublisherId(1)).last, PubSeq(4240));
    let header = BatchHeader::new(PublisherId(1), Epoch(1), PubSeq(sent + 1), 1);
    assert_eq!(store.state.accept(header, &trades(1, Epoch(1), sent + 1, 1)), BatchOutcome::Gap(PubSeq(4241)));
}

#[test]
fn a_repair_interrupted_at_any_call_is_undone_or_complete_and_keeps_the_segments() {
    // In the middle of a segment, and in the first frame of one.
    let first_of_a_segment = {
        let (run, mut lsn) = (damaged(1, 4241), 241);
        loop {
            if run.clients[0].sent < lsn {
                panic!("no frame begins a segment");
            }
            let (path, at) = place_of(&damaged_nowhere(), lsn);
            if at < 8192 && !path.ends_with(segment_name(Position(0))) {
                break lsn;
            }
            lsn += 400;
        }
    };
    for at in [4241, first_of_a_segment] {
        let mut run = damaged(1, at);
        let base = run.disk.fork();
        let (store, before) = (run.dir.path().join("s"), run.disk.calls());
        repair::truncate(&run.disk, &store, Lsn(at), Ts(5)).unwrap();
        let calls = run.disk.calls() - before;
        for (call, seed) in (1..=calls).flat_map(|call| (0..2).map(move |s| (call, call * 2 + s))) {
            run.disk = base.fork();
            // As on a host that has been rebooted since.
            std::fs::remove_dir_all(run.run_dir()).ok();
            let fault = if call % 5 == 0 && seed % 2 == 0 { Fault::Once(ErrorKind::StorageFull) } else { Fault::PowerLoss };
            run.disk.set_fault(run.disk.calls() + call, fault);
            let outcome = repair::truncate(&run.disk, &store, Lsn(at), Ts(5)).map(|_| ());
            run.disk.set_fault(u64::MAX, Fault::PowerLoss);
            run.disk = run.disk.power_loss(seed);
            let context = format!("{fault:?} at call {call}, seed {seed}, truncated before {at}: {outcome:?}");
            match run.recover().map(|s| (s.started.records, s.control.timeline())) {
                Ok((records, timeline)) => {
                    assert!(records == at - 1 && timeline >= Timeline(2), "{context}: {records} {timeline}")
                }
                Err(Error::Corrupt { .. } | Error::Missing { .. }) => {
                    assert!(outcome.is_err(), "{context}");
                    repair::truncate(&run.disk, &store, Lsn(at), Ts(6)).unwrap_or_else(|e| panic!("{context}: {e}"));
                    let found = run.recover().unwrap_or_else(|e| panic!("{context}: {e}"));
                    assert_eq!(found.started.records, at - 1, "{context}");
                    assert!(found.control.timeline() >= Timeline(2), "{context}");
                }
                Err(e) => panic!("{context}: {e}"),
            }
            // Every segment from the truncation on is in one of the kept directories.
            let kept: u64 = [5, 6]
                .iter()
                .map(|now| store.join(crate::snapshot::restore::LOST).join(format!("log-from-{at}-{now}")))
                .map(|dir| run.disk.list(&dir).unwrap_or_default().iter().filter(|n| n.ends_with(".wal")).count() as u64)
                .max()
                .unwrap();
            assert!(kept >= 1, "{context}");
        }
    }
}

/// The log of [`damaged`], undamaged.
fn damaged_nowhere() -> Run {
    let run = damaged(1, 4241);
    let path = run.dir.path().join("s").join(wal::DIR);
    for name in run.disk.list(&path).unwrap() {
        let mut bytes = run.disk.contents(&path.join(&name)).unwrap();
        // Flips the one flipped bit back: it is in the only frame whose CRC fails.
        for at in (4096..bytes.len().saturating_sub(64)).step_by(64) {
            let Ok(header) = wal::Header::parse(&bytes[at..]) else { continue };
            let payload = at + 64..at + 64 + header.len as usize;
            if header.records() > 0 && crc32c::crc32c(&bytes[payload]) != header.payload_crc {
                bytes[at + 100] ^= 1;
                break;
            }
        }
        run.disk.overwrite(&path.join(name), bytes);
    }
    run
}

#[test]
fn a_damaged_or_missing_file_is_replaced_from_a_backup_that_has_the_same_file() {
    let prepared = |seed| {
        let (run, store) = started(seed);
        drop(store);
        back_up(&run, &run.dir.path().join("b"), true).unwrap();
        let files = run.dir.path().join("s").join(tapestore::sstable::DIR);
        let names = run.disk.list(&files).unwrap();
        let mut bytes = run.disk.contents(&files.join(&names[0])).unwrap();
        bytes[300] ^= 1;
        run.disk.overwrite(&files.join(&names[0]), bytes);
        // A byte that is found only by reading all bytes.
        let elsewhere = run.dir.path().join("b1");
        let refusal = back_up(&run, &elsewhere, false).unwrap_err();
        assert!(matches!(&refusal, Error::Corrupt { path, .. } if *path == files.join(&names[0])), "{refusal}");
        assert!(!run.disk.exists(&elsewhere).unwrap());
        run.disk.remove(&files.join(&names[1])).unwrap();
        run.disk.sync_dir(&files).unwrap();
        (run, names)
    };
    let (mut run, names) = prepared(1);
    let base = run.disk.fork();
    let (store, backup) = (run.dir.path().join("s"), run.dir.path().join("b"));
    let elsewhere = run.dir.path().join("b2");
    let refusal = back_up(&run, &elsewhere, false).unwrap_err();
    assert!(
        matches!(refusal, Error::Corrupt { .. } | Error::Missing { .. }) && !run.disk.exists(&elsewhere).unwrap(),
        "{refusal}"
    );
    // Files that an earlier backup has are not read from the store again.
    back_up(&run, &backup, true).unwrap();
    assert_eq!(records(&run.disk, &backup).unwrap(), expected(Epoch(1), 240));
    assert_eq!(repair::examine(&run.disk, &store, &mut |_| {}).unwrap().damaged.len(), 2);
    let before = run.disk.calls();
    let done = put_back(&run.disk, &store, &backup, Ts(9), &mut |_| {}).unwrap();
    assert_eq!((done.healed.len(), done.left.len()), (2, 0));
    let calls = run.disk.calls() - before;
    for call in 1..=calls {
        run.disk = base.fork();
        run.disk.set_fault(run.disk.calls() + call, Fault::PowerLoss);
        assert!(put_back(&run.disk, &store, &backup, Ts(9), &mut |_| {}).is_err());
        run.disk = run.disk.power_loss(call);
        put_back(&run.disk, &store, &backup, Ts(10), &mut |_| {}).unwrap();
        assert_eq!(records(&run.disk, &store).unwrap(), expected(Epoch(1), 240), "call {call}");
        let lost = run.disk.list(&store.join(crate::snapshot::restore::LOST)).unwrap();
        assert!(lost.iter().any(|n| n.starts_with(&names[0])), "the damaged file is kept: {lost:?}");
        let mut opened = run.recover().unwrap();
        run.verify(&mut opened);
    }
    // A file that is damaged in the backup too is left, and reported.
    run.disk = base.fork();
    let theirs = run.dir.path().join("b").join(tapestore::sstable::DIR).join(&names[0]);
    let mut bytes = run.disk.contents(&theirs).unwrap();
    bytes[300] ^= 1;
    run.disk.overwrite(&theirs, bytes);
    let done = put_back(&run.disk, &store_of(&run), &run.dir.path().join("b"), Ts(9), &mut |_| {}).unwrap();
    assert_eq!((done.healed.len(), done.left.len()), (1, 1));
}

pub(super) fn store_of(run: &Run) -> std::path::PathBuf {
    run.dir.path().join("s")
}

#[test]
fn a_backup_has_the_durable_end_as_its_mark_and_holds_nothing_after_it() {
    let (mut run, mut store) = started(1);
    // Appended, but not durable.
    let header = BatchHeader::new(PublisherId(1), run.clients[0].epoch, PubSeq(241), 60);
    assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
    assert_eq!(store.state.accept(header, &trades(1, run.clients[0].epoch, 241, 60)), BatchOutcome::Accepted);
    store.state.append(Ts(9)).unwrap().unwrap();
    store.control.set_durable(Lsn(240), store.syncer.durable().position);
    store.control.set_committed(Lsn(240));
    let target = run.dir.path().join("b");
    assert_eq!(back_up(&run, &target, false).unwrap().last, Lsn(240));
    assert_eq!(records(&run.disk, &target).unwrap().len(), 240);
    store.syncer.sync(store.state.writer.end()).unwrap();
    store.control.set_durable(Lsn(300), store.syncer.durable().position);
    store.control.set_committed(Lsn(300));
    assert_eq!(back_up(&run, &target, false).unwrap().last, Lsn(300));
    // A flipped byte of the copied log is damage, not a torn tail.
    let segment = target.join(wal::DIR).join(run.disk.list(&target.join(wal::DIR)).unwrap().last().unwrap());
    let mut bytes = run.disk.contents(&segment).unwrap();
    let mark = wal::DurableMark::parse(&bytes[MARK_OFFSETS[0] as usize..]).unwrap();
    assert_eq!(mark.lsn, Lsn(300));
    bytes[(mark.position.0 % wal::format::SEGMENT_SIZE_MIN) as usize - 200] ^= 1;
    run.disk.overwrite(&segment, bytes);
    assert!(matches!(records(&run.disk, &target), Err(Error::Corrupt { .. })));
    run.clients[0].sent = 300;
}

#[test]
fn the_next_start_removes_what_a_crash_left_unfinished_and_nothing_else() {
    let (run, store) = started(1);
    drop(store);
    let dir = store_of(&run);
    let put = |path: &Path| {
        run.disk.open(path, Open::CreateNew).unwrap().write_at(b"unfinished", 0).unwrap();
    };
    let left = ["CURRENT.tmp", "manifest-0000000000aa", "manifest-0000000000ab.tmp", "store.tmp"].map(|n| dir.join(n));
    let left = left.into_iter().chain(["spare-7.new", "spare-repair.new"].map(|n| dir.join(wal::DIR).join(n)));
    let sst = dir.join(tapestore::sstable::DIR);
    let left: Vec<_> = left.chain(["trade-0000000000ff.tmp", "trade-0000000000fe.arrow"].map(|n| sst.join(n))).collect();
    left.iter().for_each(|path| put(path));
    let mine = dir.join("notes.txt");
    put(&mine);
    let mut store = run.recover().unwrap();
    for path in &left {
        assert!(!run.disk.exists(path).unwrap(), "{} is left", path.display());
    }
    assert!(run.disk.exists(&mine).unwrap());
    run.verify(&mut store);
}

#[test]
fn a_wall_clock_that_jumps_an_hour_back_or_forward_changes_no_order_and_loses_nothing() {
    for seed in 0..12 {
        let mut run = Run::new(seed);
        run.clock.advance(1_700_000_000_000_000_000);
        for _ in 0..4 {
            let jump = |run: &mut Run| {
                let nanos = run.rng.below(7_200_000_000_000).cast_signed() - 3_600_000_000_000;
                run.clock.jump(nanos);
            };
            jump(&mut run);
            run.disk.set_fault(run.disk.calls() + 60 + run.rng.below(200), Fault::PowerLoss);
            run.jumps = true;
            let outcome = run.live();
            assert!(matches!(outcome, Ok(()) | Err(Error::Io { .. } | Error::Halted { .. })), "seed {seed}: {outcome:?}");
            run.disk = run.disk.power_loss(run.rng.next_u64());
            jump(&mut run);
            let mut store = run.recover().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            run.verify(&mut store);
            // The frame that opened the term has the clock's time at this start, or up to a second more.
            let (opened, clock) = (store.state.writer.chain().ingest_ts, run.clock.wall());
            assert!((clock..=Ts(clock.0 + 1_000_000_000)).contains(&opened), "seed {seed}: {opened} at {clock}");
        }
    }
}

#[test]
fn a_first_start_after_a_reboot_that_is_interrupted_still_counts_the_unclean_stop() {
    let mut reached = 0;
    for call in 1..=12 {
        let (mut run, store) = started(1);
        let (timeline, run_dir) = (store.control.timeline(), store.run_dir.clone());
        drop(store);
        std::fs::remove_dir_all(run_dir.path()).unwrap();
        // The start creates the control page, and then power is lost.
        run.disk = run.disk.power_loss(1);
        run.disk.set_fault(call, Fault::PowerLoss);
        let was_interrupted = run.recover().is_err();
        run.disk = run.disk.power_loss(2);
        reached += u32::from(was_interrupted && run_dir.path().join("control").exists());
        assert!(run.recover().unwrap().control.timeline() > timeline, "call {call}");
    }
    assert!(reached > 0);
}

#[test]
fn an_invalid_control_page_is_created_again() {
    for bytes in [vec![], vec![7u8; 100], vec![7u8; 1 << 20]] {
        let (run, store) = started(1);
        let timeline = store.control.timeline();
        let page = store.run_dir.control();
        drop(store);
        std::fs::write(&page, bytes).unwrap();
        let mut store = run.recover().unwrap();
        run.verify(&mut store);
        assert!(store.control.timeline() > timeline, "it is unknown up to where readers have read");
    }
}
