//! Owns: tests of full MemTables: of the largest frames, and without memory for the next MemTable.

use super::*;

use tapestore::lsn::InstrumentId;
use tapestore::memtable::format::{CHUNK_MAX, LEN_MIN};
use tapestore::memtable::{Origin, Writer};
use tapestore::record::{Kind, Record, RecordRef};

/// The longest frame of the shortest records.
const LONGEST: u64 = 4093;

/// The shortest record.
#[derive(Clone, Copy, Record)]
#[repr(C)]
#[record(kind = 0x80f2, name = "shortest")]
struct Shortest {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
}

fn put_frame(writer: &mut Writer, records: &[Vec<u64>]) {
    assert!(writer.reserve_run(), "no room for a run at {} of {} bytes", writer.used(), writer.len());
    for record in records {
        let fits = writer.push(RecordRef::first(record).unwrap(), Ts(1));
        assert!(fits, "no room for a record at {} of {} bytes", writer.used(), writer.len());
    }
    let origin = Origin { publisher: PublisherId(1), epoch: Epoch(1), first_pub_seq: PubSeq(1) };
    writer.push_run(origin, records.len() as u32, Ts(1));
}

/// Frames of the shortest records. The last frame takes the most room that a frame can: the tails of a few series are full and
/// of the largest size, each other record begins a series, and the MemTable hardly has room for it.
fn worst_frames() -> Vec<Vec<Vec<u64>>> {
    const HOT: u32 = 6;
    tapestore::record::Layout::of(&Shortest::SCHEMA).unwrap().register().unwrap();
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut writer = Writer::create(&dir.path().join("m"), 9, 3, LEN_MIN).unwrap();
    writer.begin(Lsn(1));
    let (mut frames, mut next) = (Vec::new(), HOT);
    let of = |i| Shortest { instrument: InstrumentId(i), ts_event: Ts(1), ..Shortest::default() }.words().to_vec();
    let put = |writer: &mut Writer, frames: &mut Vec<_>, instruments: Vec<u32>| {
        let frame: Vec<_> = instruments.into_iter().map(of).collect();
        put_frame(writer, &frame);
        frames.push(frame);
    };
    loop {
        let (left, size) = writer.first_tail();
        if left == 0 && size == CHUNK_MAX {
            break;
        }
        put(&mut writer, &mut frames, (0..HOT * left.clamp(1, 500)).map(|i| 1 + i % HOT).collect());
    }
    while writer.has_room(LONGEST + 1) {
        let count = if writer.has_room(2 * LONGEST) { 1000 } else { 1 };
        put(&mut writer, &mut frames, (next + 1..=next + count).collect());
        next += count;
    }
    assert!(writer.has_room(LONGEST));
    put(&mut writer, &mut frames, (1..=HOT).chain(next + 1..=next + LONGEST as u32 - HOT).collect());
    frames
}

#[test]
fn the_frame_that_takes_the_most_room_is_appended_and_a_start_recovers_and_flushes_it() {
    let run = Run::new(1);
    let mut options = options(&run.dir.path().join("s"));
    (options.segment_size, options.instruments_max) = (64 << 20, 1_000_000);
    let world = World { disk: Arc::new(run.disk.clone()), clock: Arc::new(run.clock.clone()), store_id: 5, boot: 1 };
    let mut store = recover(options.clone(), &world).unwrap();
    let (state, _) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    let frames = worst_frames();
    let of = |words: &Vec<u64>| tapestore::record::RecordRef::first(words).unwrap().instrument().0;
    register(&mut store, frames.iter().flatten().map(of).max().unwrap_or(0).into(), Ts(1)).unwrap();
    let mut first = 1;
    for frame in frames.iter().chain(frames.last()) {
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        for batch in frame.chunks(2047) {
            let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(first), batch.len() as u32);
            assert_eq!(store.state.accept(header, &batch.concat()), BatchOutcome::Accepted);
            first += batch.len() as u64;
        }
        let committed = store.state.append(Ts(first)).unwrap().unwrap();
        committed.appended.opened.into_iter().for_each(|segment| store.syncer.opened(segment));
    }
    assert_eq!(store.control.tables().unwrap().count, 2, "it was the last frame of the first MemTable");
    store.syncer.sync(store.state.writer.end()).unwrap();
    drop(store);
    let mut store = recover(options, &world).unwrap();
    assert_eq!(store.started.records, first - 1);
    let sealed = store.sealed.pop_front().unwrap();
    assert_eq!(sealed.last.0, frames.iter().map(|f| f.len() as u64).sum::<u64>());
    let flushed = store.flusher.file(&sealed, &run.clock).unwrap();
    store.state.memtables.flushed(flushed.table, flushed.seq);
    assert!(store.flusher.manifest().state().covered() == sealed.last && frames.last().unwrap().len() as u64 == LONGEST);
}

#[test]
fn a_full_memtable_is_sealed_and_flushed_without_memory_for_a_next_one() {
    let run = Run::new(1);
    let mut options = options(&run.dir.path().join("s"));
    options.segment_size = 64 << 20;
    let world = World { disk: Arc::new(run.disk.clone()), clock: Arc::new(run.clock.clone()), store_id: 5, boot: 1 };
    let mut store = recover(options, &world).unwrap();
    let (request, requests) = bounded(1);
    let (made, ready) = bounded(1);
    store.state.memtables.set_source(Source::Ahead { request, ready, waits: false });
    let (state, _) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    register(&mut store, 1, Ts(1)).unwrap();
    let mut count = 0;
    let mut publish = |store: &mut Recovered| {
        let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(count + 1), 400);
        assert_eq!(store.state.accept(header, &trades(1, state.epoch, count + 1, 400)), BatchOutcome::Accepted);
        count += 400;
        store.state.append(Ts(count)).unwrap().unwrap();
        count
    };
    let short = || Error::NoSharedMemory { path: PathBuf::new(), wanted: 1, free: 0 };
    let mut turns = 0;
    let stuck = loop {
        turns += 1;
        assert!(turns < 1000, "the full MemTable is not sealed");
        while store.state.is_ready().unwrap() == Readiness::Ready {
            publish(&mut store);
        }
        if let Some(stuck) = store.state.take_stuck() {
            break stuck;
        }
        if requests.try_recv().is_ok() {
            made.send(Err(short())).unwrap();
        }
    };
    assert_eq!(store.state.is_ready().unwrap(), Readiness::MemTableFull);
    let flushed = store.flusher.file(&stuck, &run.clock).unwrap();
    store.state.memtables.flushed(flushed.table, flushed.seq);
    store.flusher.unlink(flushed.table);
    drop(stuck);
    let watermarks = store.flusher.manifest().state().covered();
    run.verify_now(&store, watermarks.0);
    // There is memory again for the MemTable that was requested.
    while store.state.is_ready().unwrap() != Readiness::Ready {
        if let Ok(id) = requests.try_recv() {
            made.send(store.maker.make(id, true)).unwrap();
        }
    }
    let count = publish(&mut store);
    assert_eq!(watermarks.0, count - 400, "the MemTable before held all of them");
    run.verify_now(&store, count);
}
