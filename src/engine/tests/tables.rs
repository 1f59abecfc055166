//! Tables that are full: of the frames that take the most room, and where there is no memory for the next.

use super::*;

use crate::memtable::tests::{LONGEST, worst_frames};

#[test]
fn the_frame_that_takes_the_most_room_is_taken_in_and_a_start_that_meets_it_comes_up_and_flushes_it() {
    let run = Run::new(1);
    let mut options = options(&run.dir.path().join("s"));
    options.segment_size = 64 << 20;
    let world = World { disk: Arc::new(run.disk.clone()), clock: Arc::new(run.clock.clone()), store_id: 5, boot: 1 };
    let mut store = recover(options.clone(), &world).unwrap();
    let (state, _) = store.core.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    let frames = worst_frames();
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
