//! Owns: tests of the log on the simulated disk: every truncated length, every flipped byte, power loss at every call, every
//! failed call.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::*;
use crate::disk::sim::{Fault, SimDisk, SimRng};
use crate::lsn::{Epoch, FrameIndex, PubSeq, PublisherId};
use crate::record::{RecordRef, Trade};

const SEGMENT: u64 = format::SEGMENT_SIZE_MIN;

fn store() -> PathBuf {
    PathBuf::from("/stores/s")
}

fn segment_path(n: u64) -> PathBuf {
    store().join(DIR).join(format::segment_name(Position(n * SEGMENT)))
}

const CREATE: Create = Create { store_id: 77, segment_size: SEGMENT, now: Ts(5) };

/// Opens the log at `from`, or creates it.
fn open_from(disk: &SimDisk, create: Create, from: Chain, seen: Lsn, visit: impl FnMut(&Frame<'_>) -> Result<()>) -> Result<Log> {
    create_if_absent(disk, &store(), create)?;
    open(Arc::new(disk.clone()), &store(), from, 0, seen, visit)
}

/// Opens the log and returns the number of its trades; their ids must be dense from 0.
fn open_log(disk: &SimDisk) -> Result<(Log, u64)> {
    let mut count = 0;
    let log = open_from(disk, CREATE, Chain::begin(77), Lsn(0), |frame| {
        if let Body::Data(data) = &frame.body {
            for record in crate::record::split(data.records) {
                let trade: &Trade = record.unwrap().get().unwrap();
                assert_eq!(trade.trade_id, count, "records come back in order, whole and once");
                count += 1;
            }
        }
        Ok(())
    })?;
    assert_eq!(log.syncer.durable().lsn, Lsn(count));
    Ok((log, count))
}

/// Begins a new term, made durable first, with a no-op frame: as a leader does.
fn begin(log: &mut Log) -> Result<()> {
    let term = Term(log.meta.meta().term.0 + 1);
    log.meta.update(Meta { term, ..*log.meta.meta() })?;
    log.writer.set_term(term);
    append(log, FrameType::NoOp, &mut FrameBuilder::new())
}

fn append(log: &mut Log, kind: FrameType, frame: &mut FrameBuilder) -> Result<()> {
    assert!(log.writer.ready()?);
    let appended = log.writer.append(frame, kind, Ts(9))?;
    if let Some(opened) = appended.opened {
        log.syncer.opened(opened);
    }
    Ok(())
}

fn trades(from: u64, count: u64) -> FrameBuilder {
    let mut frame = FrameBuilder::new();
    for id in from..from + count {
        let trade = Trade { trade_id: id, ..Trade::default() };
        frame.push_records(PublisherId(1), Epoch(1), PubSeq(id + 1), 1, RecordRef::of(&trade).words());
    }
    frame
}

/// A script of appends and syncs. `acked` receives the number of records that the syncer reported durable.
fn script(disk: &SimDisk, frames: u64, per_frame: u64, acked: &mut u64) -> Result<u64> {
    let (mut log, mut next) = open_log(disk)?;
    *acked = (*acked).max(next);
    begin(&mut log)?;
    for i in 0..frames {
        append(&mut log, FrameType::Data, &mut trades(next, per_frame))?;
        next += per_frame;
        if i % 3 == 2 {
            log.syncer.sync(log.writer.end())?;
            *acked = log.syncer.durable().lsn.0;
        }
        if i % 7 == 6 {
            log.syncer.record()?;
        }
    }
    log.syncer.sync(log.writer.end())?;
    *acked = log.syncer.durable().lsn.0;
    log.syncer.record()?;
    Ok(next)
}

#[test]
fn a_log_comes_back_whole_over_many_starts_and_segments() {
    let disk = SimDisk::new();
    let mut acked = 0;
    for start in 1..=4u64 {
        assert_eq!(script(&disk, 40, 300, &mut acked).unwrap(), start * 40 * 300);
        let (log, found) = open_log(&disk).unwrap();
        assert_eq!((found, acked), (start * 40 * 300, start * 40 * 300));
        assert_eq!(log.meta.meta().term, Term(start as u32), "each script has a term of its own");
    }
    assert!(disk.exists(&segment_path(3)).unwrap(), "the script fills several segments");
}

#[test]
fn power_loss_at_every_call_of_a_script_loses_nothing_that_was_synced() {
    let mut calls = 0;
    for call in 1.. {
        let mut over = false;
        for seed in 0..6 {
            let disk = SimDisk::new();
            disk.set_fault(call, Fault::PowerLoss);
            let mut acked = 0;
            // Frames of 50 kB, so that the script crosses a segment's end.
            over = script(&disk, 8, 800, &mut acked).is_ok();
            let after = disk.power_loss(seed);
            let (mut log, found) = open_log(&after).unwrap_or_else(|e| panic!("call {call} seed {seed}: {e}"));
            assert!(found >= acked, "call {call} seed {seed}: {acked} acknowledged, {found} found");
            // Recovery is idempotent, and the log continues at its end.
            assert_eq!(open_log(&after).unwrap().1, found);
            drop(log);
            (log, _) = open_log(&after).unwrap();
            begin(&mut log).unwrap();
            append(&mut log, FrameType::Data, &mut trades(found, 5)).unwrap();
            log.syncer.sync(log.writer.end()).unwrap();
            assert_eq!(open_log(&after).unwrap().1, found + 5);
        }
        calls = call;
        if over {
            break;
        }
    }
    assert!(calls > 30, "the script makes {calls} calls");
}

#[test]
fn power_loss_during_recovery_and_again_loses_nothing_that_was_synced() {
    for seed in 0..200u64 {
        let mut rng = SimRng::new(seed);
        let mut disk = SimDisk::new();
        let mut acked = 0;
        for _ in 0..6 {
            disk.set_fault(1 + disk.calls() + rng.below(40), Fault::PowerLoss);
            let outcome = script(&disk, 6, 1 + rng.below(900), &mut acked);
            assert!(matches!(outcome, Ok(_) | Err(Error::Io { .. } | Error::Halted { .. })), "seed {seed}: {outcome:?}");
            disk = disk.power_loss(rng.next_u64());
        }
        let (_, found) = open_log(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(found >= acked, "seed {seed}: {acked} acknowledged, {found} found");
    }
}

#[test]
fn a_failed_call_is_final_and_never_acknowledges() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        for call in 1..80 {
            let disk = SimDisk::new();
            disk.set_fault(call, Fault::Once(kind));
            let mut acked = 0;
            let outcome = script(&disk, 8, 800, &mut acked);
            let after = disk.power_loss(call);
            let found = open_log(&after).unwrap_or_else(|e| panic!("call {call}: {e}")).1;
            assert!(found >= acked, "call {call}: {acked} acknowledged, {found} found, {outcome:?}");
        }
    }
}

#[test]
fn after_a_failed_sync_every_later_call_returns_halted() {
    let disk = SimDisk::new();
    let (mut log, _) = open_log(&disk).unwrap();
    begin(&mut log).unwrap();
    disk.set_fault(disk.calls() + 2, Fault::Once(ErrorKind::Other));
    assert!(matches!(log.syncer.sync(log.writer.end()), Err(Error::Halted { .. })));
    assert!(matches!(log.syncer.sync(log.writer.end()), Err(Error::Halted { .. })), "a retried sync must not succeed");
    assert_eq!(log.syncer.durable().lsn, Lsn(0));
}

/// A small log of one segment: 5 frames of 3 trades, all covered by a durable mark.
fn small() -> (SimDisk, Vec<u8>, u64) {
    let disk = SimDisk::new();
    let mut acked = 0;
    script(&disk, 5, 3, &mut acked).unwrap();
    let bytes = disk.contents(&segment_path(0)).unwrap();
    let (log, _) = open_log(&disk).unwrap();
    (disk, bytes, log.writer.chain().position.0)
}

/// Reads the log as `tape verify` does, without a change.
fn read_only(disk: &SimDisk) -> Result<u64> {
    let meta = meta::read(disk, &store())?.unwrap();
    let mut count = 0;
    scan(disk, &store().join(DIR), &meta, Chain::begin(77), Open::Read, |frame| {
        if let Body::Data(data) = &frame.body {
            for record in crate::record::split(data.records) {
                assert_eq!(record.unwrap().get::<Trade>().unwrap().trade_id, count, "never a wrong value");
                count += 1;
            }
        }
        Ok(())
    })?;
    Ok(count)
}

#[test]
fn every_flipped_byte_of_a_durable_log_is_corruption_or_harmless() {
    let (disk, bytes, end) = small();
    let mut detected = 0;
    for at in 0..end as usize + 64 {
        for pattern in [0x01, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= pattern;
            disk.overwrite(&segment_path(0), flipped);
            match read_only(&disk) {
                Ok(count) => assert_eq!(count, 15, "byte {at}: harmless means that everything is there"),
                Err(Error::Corrupt { .. } | Error::Foreign { .. } | Error::Version { .. }) => detected += 1,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
    }
    let frames = end - format::SEGMENT_HEAD_LEN;
    assert!(detected >= frames * 2, "each of the {frames} bytes of the frames is covered: {detected} detected");
}

#[test]
fn every_truncated_length_of_a_durable_log_is_refused() {
    let (disk, bytes, end) = small();
    for len in (0..end as usize).step_by(8).chain([1, 63, 4097]) {
        disk.overwrite(&segment_path(0), bytes[..len].to_vec());
        match read_only(&disk) {
            Err(Error::Corrupt { .. } | Error::Foreign { .. }) => {}
            // Only the zeros that align the next frame are missing.
            Ok(15) if len as u64 + 64 > end => {}
            other => panic!("length {len}: {other:?}"),
        }
    }
    disk.remove(&segment_path(0)).unwrap();
    assert!(matches!(read_only(&disk), Err(Error::Missing { .. })), "a missing segment is reported");
}

#[test]
fn a_torn_last_frame_is_truncated_and_an_earlier_one_is_corruption() {
    let disk = SimDisk::new();
    let (mut log, _) = open_log(&disk).unwrap();
    begin(&mut log).unwrap();
    append(&mut log, FrameType::Data, &mut trades(0, 10)).unwrap();
    log.syncer.sync(log.writer.end()).unwrap();
    log.syncer.record().unwrap();
    let durable = log.writer.chain().position.0 as usize;
    append(&mut log, FrameType::Data, &mut trades(10, 10)).unwrap();
    append(&mut log, FrameType::Data, &mut trades(20, 10)).unwrap();
    drop(log);
    let mut bytes = disk.contents(&segment_path(0)).unwrap();
    // The frame after the durable mark is torn: it is truncated, with the valid frame that follows it.
    bytes[durable + 100] ^= 1;
    disk.overwrite(&segment_path(0), bytes.clone());
    let (log, found) = open_log(&disk).unwrap();
    assert_eq!(found, 10);
    assert!(log.truncated.is_some_and(|c| c.bad.what == "payload CRC" && c.offset == durable as u64));
    // A bad frame before the durable mark is corruption.
    bytes[durable - 100] ^= 1;
    disk.overwrite(&segment_path(0), bytes);
    match open_log(&disk).map(|_| ()) {
        Err(Error::Corrupt { path, lsn, .. }) => assert_eq!((path, lsn), (segment_path(0), Lsn(1))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_frame_of_an_earlier_term_behind_the_end_is_never_accepted() {
    let disk = SimDisk::new();
    let mut acked = 0;
    script(&disk, 3, 4, &mut acked).unwrap();
    // Frames that were appended, then truncated: the next start overwrites only the first of them.
    let (mut log, found) = open_log(&disk).unwrap();
    let cut_at = log.writer.chain().position.0 as usize;
    begin(&mut log).unwrap();
    for i in 0..4 {
        append(&mut log, FrameType::Data, &mut trades(found + i, 1)).unwrap();
    }
    drop(log);
    let mut bytes = disk.contents(&segment_path(0)).unwrap();
    bytes[cut_at] ^= 1;
    disk.overwrite(&segment_path(0), bytes);
    let (mut log, again) = open_log(&disk).unwrap();
    assert_eq!(again, found);
    begin(&mut log).unwrap();
    drop(log);
    assert_eq!(open_log(&disk).unwrap().1, found, "old frames behind the new one are not accepted");
}

#[test]
fn a_segment_of_another_store_or_another_kind_of_file_is_refused() {
    let (disk, bytes, _) = small();
    disk.overwrite(&segment_path(0), vec![b'x'; bytes.len()]);
    assert!(matches!(open_log(&disk).map(|_| ()), Err(Error::Foreign { what: "log segment", .. })));
    let other = SimDisk::new();
    let create = Create { store_id: 78, segment_size: SEGMENT, now: Ts(5) };
    let mut log = open_from(&other, create, Chain::begin(78), Lsn(0), |_| Ok(())).unwrap();
    begin(&mut log).unwrap();
    disk.overwrite(&segment_path(0), other.contents(&segment_path(0)).unwrap());
    assert!(matches!(open_log(&disk).map(|_| ()), Err(Error::Corrupt { what: "store id", .. })));
}

#[test]
fn a_log_without_its_meta_is_refused_and_unchanged() {
    let (disk, bytes, _) = small();
    disk.remove(&store().join(meta::NAME)).unwrap();
    assert!(matches!(open_log(&disk).map(|_| ()), Err(Error::Missing { .. })));
    assert_eq!(disk.contents(&segment_path(0)).unwrap(), bytes);
}

#[test]
fn the_timeline_rises_when_records_that_readers_may_have_seen_are_gone() {
    let (disk, _, _) = small();
    let reopen = |seen| open_from(&disk, CREATE, Chain::begin(77), seen, |_| Ok(())).unwrap().meta.meta().timeline;
    assert_eq!(reopen(Lsn(15)), Timeline(1));
    assert_eq!(reopen(Lsn(16)), Timeline(2));
}

#[test]
fn a_durable_mark_never_claims_more_than_a_sync_has_made_durable() {
    let disk = SimDisk::new();
    let (mut log, _) = open_log(&disk).unwrap();
    begin(&mut log).unwrap();
    for i in 0..20 {
        append(&mut log, FrameType::Data, &mut trades(i * 10, 10)).unwrap();
        let before = log.syncer.durable();
        log.syncer.sync(log.writer.end()).unwrap();
        let head = disk.contents(&segment_path(0)).unwrap();
        for at in format::MARK_OFFSETS {
            if let Some(e) = DurableMark::parse(&head[at as usize..]) {
                assert!(e.position <= before.position && e.index <= FrameIndex(before.index.0));
            }
        }
    }
    assert!(log.syncer.is_unrecorded());
    log.syncer.record().unwrap();
    assert!(!log.syncer.is_unrecorded());
}

/// Id of the first record from `from` on, and the number of records.
fn found_from(disk: &SimDisk, from: Chain) -> Result<(Option<u64>, u64)> {
    let (mut first, mut count) = (None, 0);
    open_from(disk, CREATE, from, Lsn(0), |frame| {
        if let Body::Data(data) = &frame.body {
            for record in crate::record::split(data.records) {
                first.get_or_insert(record?.get::<Trade>().unwrap().trade_id);
                count += 1;
            }
        }
        Ok(())
    })?;
    Ok((first, count))
}

/// A log of several segments; the chain and the first id of each frame; the number of records.
fn long() -> (SimDisk, Vec<(Chain, u64)>, u64) {
    let disk = SimDisk::new();
    let (mut log, _) = open_log(&disk).unwrap();
    begin(&mut log).unwrap();
    let (mut places, mut next) = (Vec::new(), 0);
    while log.writer.chain().position.0 < 4 * SEGMENT {
        places.push((*log.writer.chain(), next));
        append(&mut log, FrameType::Data, &mut trades(next, 700)).unwrap();
        next += 700;
    }
    log.syncer.sync(log.writer.end()).unwrap();
    log.syncer.record().unwrap();
    (disk, places, next)
}

#[test]
fn a_log_is_read_from_any_checkpoint_without_the_segments_before_it() {
    let (_, places, total) = long();
    for (from, next) in places {
        let (disk, ..) = long();
        let dir = store().join(DIR);
        for first in (0..from.position.0 / SEGMENT).map(|n| Position(n * SEGMENT)) {
            let spare = recycle(&disk, &dir, first).unwrap();
            assert!(spare.path().starts_with(&dir));
        }
        assert_eq!(found_from(&disk, from).unwrap(), (Some(next), total - next), "checkpoint at {from:?}");
        if from.position.0 > SEGMENT {
            assert!(
                matches!(found_from(&disk, Chain::begin(77)), Err(Error::Missing { .. })),
                "without the checkpoint the log is refused"
            );
        }
        // The segment of the checkpoint is needed, even if it is the last.
        disk.remove(&segment_path(from.position.0 / SEGMENT)).unwrap();
        assert!(matches!(found_from(&disk, from), Err(Error::Missing { .. })));
    }
}

#[test]
fn the_old_frames_of_a_reused_segment_are_not_read() {
    let (disk, places, total) = long();
    let (from, next) = *places.last().unwrap();
    let mut log = open_from(&disk, CREATE, from, Lsn(0), |_| Ok(())).unwrap();
    let (send, spares) = crossbeam_channel::bounded(8);
    for n in 0..3 {
        // Opening the log removed these segments: make files with their old bytes again.
        let path = store().join(DIR).join(format!("old-{n}.new"));
        let file: Arc<dyn crate::disk::DiskFile> = Arc::from(disk.open(&path, Open::CreateNew).unwrap());
        file.write_at(&old_segment(n), 0).unwrap();
        file.sync().unwrap();
        send.send(Spare { file, path }).unwrap();
    }
    log.writer.set_spares(Spares::Ahead(spares));
    begin(&mut log).unwrap();
    let mut added = 0;
    while log.writer.chain().position.0 < 6 * SEGMENT + SEGMENT / 2 {
        append(&mut log, FrameType::Data, &mut trades(total + added, 100)).unwrap();
        added += 100;
    }
    log.syncer.sync(log.writer.end()).unwrap();
    log.syncer.record().unwrap();
    drop(log);
    let reopened = open_from(&disk, CREATE, from, Lsn(0), |_| Ok(())).unwrap();
    assert_eq!(reopened.truncated, None, "old frames are no torn tail");
    assert_eq!(found_from(&disk, from).unwrap(), (Some(next), total - next + added));
}

/// The bytes of segment `n` of [`long`].
fn old_segment(n: u64) -> Vec<u8> {
    long().0.contents(&segment_path(n)).unwrap()
}

#[test]
fn a_segments_head_that_is_only_in_the_page_cache_is_not_trusted() {
    for seed in 0..40 {
        let disk = SimDisk::new();
        (0..seed).for_each(|_| disk.create_dir(std::path::Path::new("/x")).unwrap());
        let (mut log, _) = open_log(&disk).unwrap();
        begin(&mut log).unwrap();
        disk.set_fault(disk.calls() + 1, Fault::Forget(ErrorKind::Other));
        assert!(log.syncer.sync(log.writer.end()).is_err());
        drop(log);
        // Killed and restarted; the cache still has the pages that the failed sync dropped.
        let (mut log, _) = open_log(&disk).unwrap();
        begin(&mut log).unwrap();
        append(&mut log, FrameType::Data, &mut trades(0, 3)).unwrap();
        log.syncer.sync(log.writer.end()).unwrap();
        let found = open_log(&disk.power_loss(seed)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(found.1, 3, "seed {seed}");
    }
}

#[test]
fn of_the_cache_only_frames_above_the_durable_mark_are_dropped() {
    let mut forgotten = 0;
    for seed in 0..40 {
        let disk = SimDisk::new();
        (0..seed).for_each(|_| disk.create_dir(std::path::Path::new("/x")).unwrap());
        let (mut log, _) = open_log(&disk).unwrap();
        begin(&mut log).unwrap();
        log.syncer.sync(log.writer.end()).unwrap();
        log.syncer.record().unwrap();
        let mark = log.writer.end().position.0 as usize;
        append(&mut log, FrameType::Data, &mut trades(0, 3)).unwrap();
        let end = log.writer.end().position.0 as usize;
        disk.open(&segment_path(0), Open::Write).unwrap().write_at(&[7; 4096], SEGMENT - 4096).unwrap();
        disk.set_fault(disk.calls() + 1, Fault::Forget(ErrorKind::Other));
        assert!(log.syncer.sync(log.writer.end()).is_err());
        let meta = *log.meta.meta();
        drop(log);
        let cached = disk.contents(&segment_path(0)).unwrap();
        forget_unsynced(&disk, &store().join(DIR), &meta, Chain::begin(77)).unwrap();
        let now = disk.contents(&segment_path(0)).unwrap();
        assert!(now[..mark] == cached[..mark] && now[end..] == cached[end..], "seed {seed}");
        forgotten += usize::from(now[mark..end] != cached[mark..end]);
    }
    assert!(forgotten > 10, "{forgotten}");
}

#[test]
fn ingest_time_falls_only_in_flagged_frames_and_a_follower_has_the_same_bytes() {
    let (leader, follower) = (SimDisk::new(), SimDisk::new());
    let (mut log, _) = open_log(&leader).unwrap();
    let (mut copy, _) = open_log(&follower).unwrap();
    begin(&mut log).unwrap();
    copy.meta.update(Meta { term: Term(1), ..*copy.meta.meta() }).unwrap();
    let (mut sent, mut fell) = (1, 0);
    let mut rng = SimRng::new(1);
    // Past the ends of two segments, so that pads come before frames with and without the flag.
    while log.writer.chain().position.0 < 2 * SEGMENT + SEGMENT / 2 {
        assert!(log.writer.ready().unwrap());
        let (before, now) = (log.writer.chain().ingest_ts, Ts(1_000 + rng.below(500)));
        let appended = log.writer.append(&mut trades(sent - 1, 200), FrameType::Data, now).unwrap();
        if let Some(opened) = appended.opened {
            log.syncer.opened(opened);
        }
        sent += 200;
        let is_flagged = appended.header.flags == format::CLOCK_SET_BACK;
        assert_eq!((appended.header.ingest_ts, is_flagged), (now, now < before));
        let unflagged = format::Header { flags: 0, ..appended.header };
        assert_eq!(Chain { ingest_ts: before, ..appended.header.place() }.check(&unflagged).is_err(), now < before);
        fell += u64::from(is_flagged);
    }
    log.syncer.sync(log.writer.end()).unwrap();
    log.syncer.record().unwrap();
    let mut headers = Vec::new();
    open_from(&leader, CREATE, Chain::begin(77), Lsn(0), |frame| {
        headers.push(frame.header);
        Ok(())
    })
    .unwrap();
    for header in headers.iter().filter(|h| h.kind() != FrameType::Pad) {
        let segment = header.position.0 / SEGMENT;
        let bytes = leader.contents(&segment_path(segment)).unwrap();
        let at = (header.position.0 - segment * SEGMENT) as usize;
        let frame = &bytes[at..at + header.total_len() as usize];
        let words: Vec<u64> = frame.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        assert!(copy.writer.ready().unwrap());
        if let Some(opened) = copy.writer.append_as_is(header, &words).unwrap().opened {
            copy.syncer.opened(opened);
        }
    }
    copy.syncer.sync(copy.writer.end()).unwrap();
    let mut theirs = Vec::new();
    open_from(&follower, CREATE, Chain::begin(77), Lsn(0), |frame| {
        theirs.push(frame.header);
        Ok(())
    })
    .unwrap();
    assert_eq!((theirs.len(), fell > 20), (headers.len(), true), "{fell} frames fell");
    assert!(theirs == headers, "pads too");
}
