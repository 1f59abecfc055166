//! The manifest on the simulated disk: every flipped byte, every truncation, power loss at every call,
//! followers that read while it is written.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{CURRENT, file_name};
use super::*;
use crate::disk::sim::{Fault, SimDisk};
use crate::disk::{Disk, Open};
use crate::error::{Error, Result};
use crate::lsn::{FrameIndex, Position, Term};
use crate::record::{Record, Trade};
use crate::sstable::Window;
use crate::time::Ts;

const STORE: u128 = 1 << 90 | 5;

fn dir() -> PathBuf {
    PathBuf::from("/s")
}

fn file(id: u64) -> FileMeta {
    FileMeta {
        id,
        kind: Trade::KIND,
        window: Window { from: Ts(0), len: 3_600_000_000_000 },
        rows: 10,
        len: 1000 + id,
        crc: id as u32,
        time: (Ts(id), Ts(id + 9)),
        lsn: (Lsn(id * 10 + 1), Lsn(id * 10 + 10)),
    }
}

fn edit(manifest: &mut Manifest, n: u64) -> Result<()> {
    let id = manifest.take_id();
    let checkpoint = Chain {
        position: Position(4096 + n * 64),
        index: FrameIndex(n),
        lsn: Lsn(n * 10 + 1),
        prev_crc: n as u32,
        term: Term(1),
        ingest_ts: Ts(n),
    };
    let state = PublisherState { epoch: Epoch(1), last: PubSeq(n), lsn: Lsn(n), incarnation: 3 };
    manifest.edit(Edit {
        kinds: if n == 1 { vec![crate::record::example_layout()] } else { Vec::new() },
        added: vec![file(id)],
        removed: if n % 3 == 2 { manifest.state().files.keys().next().copied().into_iter().collect() } else { Vec::new() },
        checkpoint: Some(checkpoint),
        publishers: vec![(PublisherId(n as u16 % 4), state)],
        names: vec![format!("N:{n}").parse().unwrap()],
        expired: n % 5,
    })
}

fn open(disk: &SimDisk) -> Result<Manifest> {
    Manifest::open(Arc::new(disk.clone()), &dir(), STORE)
}

/// A manifest with `edits` edits, and the state after each.
fn manifest(edits: u64) -> (SimDisk, Vec<State>) {
    let disk = SimDisk::new();
    let mut manifest = open(&disk).unwrap();
    let mut states = vec![manifest.state().clone()];
    for n in 1..=edits {
        edit(&mut manifest, n).unwrap();
        states.push(manifest.state().clone());
    }
    (disk, states)
}

/// Whether two states agree in everything that survives a restart: all but unused file numbers.
fn same(a: &State, b: &State) -> bool {
    let all =
        |s: &State| (s.seq, s.files.clone(), s.checkpoint, s.publishers.clone(), s.names.clone(), (s.kinds.clone(), s.expired));
    all(a) == all(b)
}

#[test]
fn a_manifest_is_read_back_and_file_numbers_are_never_reused() {
    let (disk, states) = manifest(12);
    let again = open(&disk).unwrap();
    assert_eq!(again.state(), states.last().unwrap());
    assert_eq!(again.state().names.len(), 12);
    assert!(!again.state().files.contains_key(&1), "a removed file is not live and its number is not reused");
    assert_eq!(again.state().next_id, 13);
}

#[test]
fn every_flipped_byte_of_a_manifest_is_detected_or_ends_in_an_earlier_state() {
    let (disk, states) = manifest(5);
    for name in [file_name(1), CURRENT.to_owned()] {
        let path = dir().join(name);
        let whole = disk.contents(&path).unwrap();
        let mut earlier = 0;
        for at in 0..whole.len() {
            for pattern in [0x01, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= pattern;
                disk.overwrite(&path, bytes);
                match read_all(&disk, &dir(), STORE, &mut |_, _| {}) {
                    Ok((follower, torn)) => {
                        let found = follower.state();
                        assert!(states.iter().any(|s| same(s, found)), "byte {at}: a state that never existed");
                        // A damaged last edit looks torn. Its files are not lost: the log after the edit
                        // before it is either present or reported as missing.
                        assert!(torn.is_some() || same(found, states.last().unwrap()), "byte {at}");
                        earlier += u32::from(torn.is_some());
                    }
                    Err(Error::Corrupt { .. } | Error::Missing { .. } | Error::Io { .. }) => {}
                    Err(e) => panic!("byte {at}: {e}"),
                }
            }
        }
        assert!(earlier > 0 || path.ends_with(CURRENT));
        disk.overwrite(&path, whole);
    }
}

#[test]
fn every_truncation_of_a_manifest_ends_in_an_earlier_state_or_an_error() {
    let (disk, states) = manifest(5);
    let path = dir().join(file_name(1));
    let whole = disk.contents(&path).unwrap();
    for len in 0..whole.len() {
        disk.overwrite(&path, whole[..len].to_vec());
        match read_all(&disk, &dir(), STORE, &mut |_, _| {}) {
            Ok((follower, _)) => assert!(states.iter().any(|s| same(s, follower.state())), "length {len}"),
            Err(Error::Corrupt { .. }) => {}
            Err(e) => panic!("length {len}: {e}"),
        }
    }
    disk.remove(&path).unwrap();
    assert!(matches!(open(&disk), Err(Error::Missing { .. })));
}

#[test]
fn a_manifest_of_another_store_is_refused() {
    let (disk, _) = manifest(2);
    assert!(matches!(Manifest::open(Arc::new(disk), &dir(), 9), Err(Error::Corrupt { what: "store id", .. })));
}

#[test]
fn power_loss_at_any_call_leaves_the_old_or_the_new_state_and_the_next_edit_succeeds() {
    let calls = manifest(4).0.calls();
    for call in 1..=calls {
        for seed in 0..8 {
            let disk = SimDisk::new();
            disk.set_fault(call, Fault::PowerLoss);
            let mut states = vec![State::begin(STORE)];
            let made = open(&disk).and_then(|mut manifest| {
                for n in 1..=4 {
                    edit(&mut manifest, n)?;
                    states.push(manifest.state().clone());
                }
                Ok(())
            });
            assert!(made.is_err());
            let after = disk.power_loss(seed);
            let mut manifest = open(&after).unwrap_or_else(|e| panic!("call {call}, seed {seed}: {e}"));
            let found = manifest.state().clone();
            // The interrupted edit may have become durable.
            assert!(found.seq == states.last().unwrap().seq || found.seq == states.last().unwrap().seq + 1);
            assert!(found.seq as usize >= states.len() || same(&found, states.last().unwrap()));
            let n = found.seq + 1;
            edit(&mut manifest, n).unwrap();
            assert_eq!(open(&after).unwrap().state(), manifest.state());
        }
    }
}

#[test]
fn after_a_failed_edit_the_next_one_rewrites_the_manifest() {
    for call in 1..=2 {
        let (disk, states) = manifest(3);
        let mut manifest = open(&disk).unwrap();
        disk.set_fault(disk.calls() + call, Fault::Once(std::io::ErrorKind::StorageFull));
        assert!(edit(&mut manifest, 4).is_err());
        assert!(same(manifest.state(), &states[3]), "the failed edit has no effect");
        edit(&mut manifest, 5).unwrap();
        let after = open(&disk).unwrap();
        assert!(same(after.state(), manifest.state()));
        assert_eq!(after.state().names.len(), 4);
        assert!(!disk.exists(&dir().join(file_name(1))).unwrap(), "the old file is not written on");
    }
}

#[test]
fn a_follower_applies_each_edit_once_across_rewrites_of_the_manifest() {
    let disk = SimDisk::new();
    let mut writer = open(&disk).unwrap();
    let mut follower = Follower::new(&dir(), STORE);
    let first = follower.number();
    for n in 1..=300 {
        edit(&mut writer, n).unwrap();
        // Names make the edits long enough for a rewrite of the manifest.
        if n % 50 == 0 {
            let names = (0..3000).map(|i| format!("M:{n}:{i}").parse().unwrap()).collect();
            writer.edit(Edit { names, ..Edit::default() }).unwrap();
        }
        if n % 7 == 0 {
            assert!(follower.refresh(&disk, writer.state().seq).unwrap());
            assert_eq!(follower.state(), writer.state());
            assert!(!follower.refresh(&disk, writer.state().seq).unwrap());
        }
    }
    assert!(follower.number() > first + 1, "it was rewritten");
    assert!(matches!(follower.refresh(&disk, writer.state().seq + 1), Err(Error::Corrupt { .. })), "an edit that is not there");
}

#[test]
fn a_torn_last_edit_is_ignored_and_the_next_edit_starts_a_new_file() {
    let (disk, states) = manifest(3);
    let path = dir().join(file_name(1));
    let mut bytes = disk.contents(&path).unwrap();
    bytes.truncate(bytes.len() - 65);
    disk.overwrite(&path, bytes);
    let mut manifest = open(&disk).unwrap();
    assert!(same(manifest.state(), &states[2]));
    assert!(disk.exists(&path).unwrap(), "it stays until the next edit");
    edit(&mut manifest, 9).unwrap();
    assert!(same(open(&disk).unwrap().state(), manifest.state()));
    assert!(disk.open(&path, Open::Read).is_err());
}

#[test]
fn a_durable_edit_survives_any_failure_of_the_rewrite_after_it() {
    // The edit that triggers a rewrite, and the number of calls it makes.
    let long = |disk: &SimDisk| {
        let mut manifest = open(disk).unwrap();
        let mut n = 0;
        loop {
            n += 1;
            let (number, calls) = (Follower::new(&dir(), STORE).number(), disk.calls());
            edit(&mut manifest, n).unwrap();
            assert_eq!(number, 0);
            if disk.calls() - calls > 2 {
                return (n, disk.calls() - calls);
            }
        }
    };
    let (rotating, calls) = long(&SimDisk::new());
    assert!(calls > 8, "two calls of the edit, and those of the rewrite: {calls}");
    for fault in [Fault::Once(std::io::ErrorKind::StorageFull), Fault::Forever(std::io::ErrorKind::Other), Fault::PowerLoss] {
        for call in 1..=calls {
            let disk = SimDisk::new();
            let mut manifest = open(&disk).unwrap();
            (1..rotating).for_each(|n| edit(&mut manifest, n).unwrap());
            disk.set_fault(disk.calls() + call, fault);
            let made = edit(&mut manifest, rotating);
            assert_eq!(made.is_ok(), call > 2, "{fault:?} at call {call}");
            let after = manifest.state().clone();
            disk.set_fault(u64::MAX, Fault::PowerLoss);
            if fault != Fault::PowerLoss {
                // Later edits go to the manifest that a restart and the followers read.
                edit(&mut manifest, rotating + 1).unwrap();
                let mut follower = Follower::new(&dir(), STORE);
                follower.refresh(&disk, manifest.state().seq).unwrap();
                assert!(same(follower.state(), manifest.state()), "{fault:?} at call {call}");
            }
            for seed in 0..4 {
                let found = open(&disk.power_loss(seed)).unwrap();
                let expected = if fault == Fault::PowerLoss { &after } else { manifest.state() };
                assert!(same(found.state(), expected) || (call <= 2 && fault == Fault::PowerLoss), "{fault:?} at call {call}");
            }
        }
    }
}

#[test]
fn damage_before_the_last_edit_is_corruption_and_changes_nothing() {
    let (disk, states) = manifest(6);
    let path = dir().join(file_name(1));
    let whole = disk.contents(&path).unwrap();
    let mut ends = Vec::new();
    let mut at = 0;
    while let Ok(header) = format::Header::parse(
        &whole[at..],
        format::Expected { store_id: STORE, previous: ends.last().map(|(_, h): &(usize, format::Header)| (h.seq, h.header_crc)) },
    ) {
        ends.push((at, header));
        at += header.total_len() as usize;
        if at >= whole.len() {
            break;
        }
    }
    assert_eq!(ends.len(), 7);
    for (i, (at, header)) in ends.iter().enumerate() {
        for byte in [0, 9, 64] {
            let mut bytes = whole.clone();
            bytes[at + byte.min(header.total_len() as usize - 1)] ^= 4;
            disk.overwrite(&path, bytes.clone());
            match open(&disk) {
                // The last edit may be torn: it stays until the log after the edit before it is found
                // whole.
                Ok(manifest) => assert!(i == 6 && same(manifest.state(), &states[5])),
                Err(Error::Corrupt { path: named, .. }) => assert!(i < 6 && named == path),
                Err(e) => panic!("{e}"),
            }
            assert_eq!(disk.contents(&path).unwrap(), bytes, "edit {i}");
        }
    }
}

#[test]
fn a_start_syncs_the_names_that_an_earlier_start_failed_to_sync() {
    for call in 1..=8 {
        let disk = SimDisk::new();
        disk.set_fault(call, Fault::Once(std::io::ErrorKind::Other));
        let first = open(&disk);
        disk.clear_faults();
        drop(first);
        // Killed and restarted: the names exist, at least in the page cache.
        let mut manifest = open(&disk).unwrap();
        edit(&mut manifest, 1).unwrap();
        for seed in 0..8 {
            assert!(same(open(&disk.copy().power_loss(seed)).unwrap().state(), manifest.state()), "call {call}, seed {seed}");
        }
    }
}
