//! Tables that are full: of the frames that take the most room, and where there is no memory for the next.

use super::*;

use crate::memtable::tests::{LONGEST, worst_frames};

#[test]
fn the_frame_that_takes_the_most_room_is_taken_in_and_a_start_that_meets_it_comes_up_and_flushes_it() {
    let run = Run::new(1);
    let mut options = options(&run.dir.path().join("s"));
    (options.segment_size, options.instruments_max) = (64 << 20, 1_000_000);
    let world = World { disk: Arc::new(run.disk.clone()), clock: Arc::new(run.clock.clone()), store_id: 5, boot: 1 };
    let mut store = recover(options.clone(), &world).unwrap();
    let (state, _) = store.core.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    let frames = worst_frames();
    let of = |words: &Vec<u64>| crate::record::RecordRef::first(words).unwrap().instrument().0;
    register(&mut store, frames.iter().flatten().map(of).max().unwrap_or(0).into(), Ts(1)).unwrap();
    let mut first = 1;
    for frame in frames.iter().chain(frames.last()) {
        assert_eq!(store.core.is_ready().unwrap(), Readiness::Ready);
        for batch in frame.chunks(2047) {
            let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(first), batch.len() as u32);
            assert_eq!(store.core.offer(header, &batch.concat()), Offer::Accepted);
            first += batch.len() as u64;
        }
        let committed = store.core.commit(Ts(first)).unwrap().unwrap();
        committed.appended.opened.into_iter().for_each(|segment| store.syncer.opened(segment));
    }
    assert_eq!(store.control.tables().unwrap().count, 2, "it was the last one of the first table");
    store.syncer.sync(store.core.writer.end()).unwrap();
    drop(store);
    let mut store = recover(options, &world).unwrap();
    assert_eq!(store.started.records, first - 1);
    let sealed = store.sealed.pop_front().unwrap();
    assert_eq!(sealed.last.0, frames.iter().map(|f| f.len() as u64).sum::<u64>());
    let filed = store.filer.file(&sealed, &run.clock).unwrap();
    store.core.memtables.filed(filed.table, filed.seq);
    assert!(store.filer.manifest().state().covered() == sealed.last && frames.last().unwrap().len() as u64 == LONGEST);
}

#[test]
fn a_full_table_is_sealed_and_flushed_though_there_is_no_memory_for_a_next_one() {
    let run = Run::new(1);
    let mut options = options(&run.dir.path().join("s"));
    options.segment_size = 64 << 20;
    let world = World { disk: Arc::new(run.disk.clone()), clock: Arc::new(run.clock.clone()), store_id: 5, boot: 1 };
    let mut store = recover(options, &world).unwrap();
    let (request, requests) = bounded(1);
    let (made, ready) = bounded(1);
    store.core.memtables.set_source(Source::Ahead { request, ready, waits: false });
    let (state, _) = store.core.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    register(&mut store, 1, Ts(1)).unwrap();
    let mut count = 0;
    let mut publish = |store: &mut Recovered| {
        let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(count + 1), 400);
        assert_eq!(store.core.offer(header, &trades(1, state.epoch, count + 1, 400)), Offer::Accepted);
        count += 400;
        store.core.commit(Ts(count)).unwrap().unwrap();
        count
    };
    let short = || Error::NoSharedMemory { path: PathBuf::new(), wanted: 1, free: 0 };
    let mut turns = 0;
    let stuck = loop {
        turns += 1;
        assert!(turns < 1000, "the full table is not sealed");
        while store.core.is_ready().unwrap() == Readiness::Ready {
            publish(&mut store);
        }
        if let Some(stuck) = store.core.take_stuck() {
            break stuck;
        }
        if requests.try_recv().is_ok() {
            made.send(Err(short())).unwrap();
        }
    };
    assert_eq!(store.core.is_ready().unwrap(), Readiness::MemTableFull);
    let filed = store.filer.file(&stuck, &run.clock).unwrap();
    store.core.memtables.filed(filed.table, filed.seq);
    store.filer.unlink(filed.table);
    drop(stuck);
    let covered = store.filer.manifest().state().covered();
    run.verify_now(&store, covered.0);
    // There is memory again: what it was asked for once more.
    while store.core.is_ready().unwrap() != Readiness::Ready {
        if let Ok(id) = requests.try_recv() {
            made.send(store.maker.make(id, true)).unwrap();
        }
    }
    let count = publish(&mut store);
    assert_eq!(covered.0, count - 400, "the one before held all of them");
    run.verify_now(&store, count);
}
