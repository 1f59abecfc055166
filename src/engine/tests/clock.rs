//! Owns: tests of a host's clock that jumps or is wrong at a start: records ingested then, and later ones.

use super::{Run, file_one};
use crate::Recovered;
use crate::state::{BatchOutcome, Readiness};
use tapestore::bus::BatchHeader;
use tapestore::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::reader::{At, Reader, Series};
use tapestore::record::{Kind, Record, Trade};
use tapestore::shm::control::Statistic;
use tapestore::time::{Clock, Ts};

const DAY: u64 = 86_400_000_000_000;
const NOW: u64 = 20_000 * DAY;
const TEN_YEARS: i64 = 3_650 * DAY.cast_signed();

/// Appends the record number `seq`, received at `ts_recv`.
fn put(run: &Run, store: &mut Recovered, seq: u64, ts_recv: Ts) {
    assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
    let trade = Trade { instrument: InstrumentId(1), trade_id: seq, ts_recv, ..Trade::default() };
    let header = BatchHeader::new(PublisherId(1), Epoch(1), PubSeq(seq), 1);
    assert_eq!(store.state.accept(header, trade.words()), BatchOutcome::Accepted);
    let committed = store.state.append(run.clock.wall()).unwrap().unwrap();
    store.sealed.extend(committed.sealed);
    let end = store.state.writer.end();
    store.syncer.sync(end).unwrap();
    store.control.set_durable(end.lsn, end.position);
    store.control.set_committed(end.lsn);
    run.clock.advance(1_000_000_000);
}

fn begun(run: &Run) -> Recovered {
    run.clock.advance(NOW);
    let mut store = run.recover().unwrap();
    store.state.begin_epoch(PublisherId(1), 7, Epoch(0), run.clock.wall()).unwrap();
    store
}

/// The newest record as of the clock's time, and its index time.
fn newest(run: &Run, store: &Recovered) -> (Lsn, Ts) {
    store.announce();
    let mut reader = Reader::open_on(std::sync::Arc::new(run.disk.clone()), &run.dir.path().join("s")).unwrap();
    let series = Series { instrument: InstrumentId(1), kind: Kind(Trade::KIND.0) };
    let mut snapshot = reader.snapshot(At::Committed).unwrap();
    let row = snapshot.as_of(series, run.clock.wall()).unwrap().unwrap();
    (row.lsn, row.index_time)
}

#[test]
fn a_jump_of_ten_years_dates_only_records_ingested_during_it_and_no_start_repeats_it() {
    for (files, is_last) in [(false, false), (true, false), (false, true), (true, true)] {
        let run = Run::new(1);
        let mut store = begun(&run);
        put(&run, &mut store, 1, Ts::NULL);
        run.clock.jump(TEN_YEARS);
        put(&run, &mut store, 2, Ts::NULL);
        run.clock.jump(-TEN_YEARS);
        let mut seq = 2;
        if !is_last {
            seq += 1;
            let now = run.clock.wall();
            put(&run, &mut store, seq, Ts::NULL);
            assert_eq!(newest(&run, &store), (Lsn(3), now), "the time is right at once");
        }
        if files {
            store.state.memtables.seal_soon();
            seq += 1;
            put(&run, &mut store, seq, Ts::NULL);
            assert!(file_one(&mut store).unwrap());
        }
        drop(store);
        for start in 0..2 {
            let mut store = run.recover().unwrap();
            let is_behind = u64::from(is_last && !files && start == 0);
            assert_eq!(store.control.statistic(Statistic::ClockSteps), is_behind, "{files} {is_last} {start}");
            seq += 1;
            let now = run.clock.wall();
            put(&run, &mut store, seq, Ts::NULL);
            assert_eq!(newest(&run, &store), (Lsn(seq), now), "start {start}");
        }
    }
}

#[test]
fn a_clock_ten_days_behind_at_a_start_is_counted_and_records_keep_their_own_times() {
    let run = Run::new(1);
    let mut store = begun(&run);
    put(&run, &mut store, 1, Ts::NULL);
    let last = store.state.writer.chain().ingest_ts;
    drop(store);
    run.clock.jump(-10 * DAY.cast_signed());
    let mut store = run.recover().unwrap();
    assert_eq!(store.control.statistic(Statistic::ClockSteps), 1);
    assert!(store.control.statistic(Statistic::ClockStep).cast_signed() < -9 * DAY.cast_signed());
    for seq in 2..20 {
        let (clock, own) = (run.clock.wall(), Ts(last.0 + seq));
        put(&run, &mut store, seq, if seq % 2 == 0 { own } else { Ts::NULL });
        let view = run.view(&store);
        let row = view.table_of(Lsn(seq)).unwrap().row(Lsn(seq)).unwrap();
        assert_eq!(row.index_time, if seq % 2 == 0 { own } else { clock }, "record {seq}");
    }
    run.clock.jump(10 * DAY.cast_signed());
    let now = run.clock.wall();
    put(&run, &mut store, 20, Ts::NULL);
    assert_eq!(newest(&run, &store), (Lsn(20), now), "the next record has the clock's time");
}
