//! Owns: tests of one view over SSTables, sealed MemTables and the active one, against a model: every access path, at every
//! stage of flush and compaction.

use super::{INSTRUMENTS, Run, compact_one, file_one, register};
use crate::state::{BatchOutcome, Readiness};
use crate::{Options, Recovered, World, recover};
use tapestore::bus::BatchHeader;
use tapestore::disk::Disk;
use tapestore::disk::sim::SimRng;
use tapestore::error::Error;
use tapestore::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::reader::{At, Reader, Scan, Series, Snapshot, TimeRange};
use tapestore::record::{BookOrder, Definition, Quote, Record, RecordRef, Trade, index_time};
use tapestore::time::Ts;

const HOUR: u64 = 3_600_000_000_000;
const BASE: u64 = 480_000 * HOUR;

/// A row of the model: its series, index time and words.
type Row = (Series, Ts, Vec<u64>);

/// The appended records, by LSN from 1.
#[derive(Default)]
struct Model(Vec<Row>);

impl Model {
    fn upto(&self, last: Lsn) -> impl Iterator<Item = (Lsn, &Row)> {
        (1..=last.0).map(Lsn).zip(&self.0)
    }

    /// The rows of `wanted` in `range`, sorted.
    fn sorted(&self, wanted: &[Series], range: TimeRange, last: Lsn) -> Vec<(Ts, Lsn, &[u64])> {
        let rows = self.upto(last).filter(|(_, r)| wanted.contains(&r.0) && range.contains(r.1));
        let mut rows: Vec<(Ts, Lsn, &[u64])> = rows.map(|(l, r)| (r.1, l, r.2.as_slice())).collect();
        rows.sort_unstable();
        rows
    }
}

fn record(rng: &mut SimRng, i: u64) -> Vec<u64> {
    let instrument = InstrumentId(1 + (rng.below(40).min(rng.below(40))) as u32);
    // Mostly in time order; some late, some of another window, some without a usable time.
    let ts_recv = match rng.below(200) {
        0 => Ts::NULL,
        1 => Ts(BASE + rng.below(30 * HOUR)),
        2..20 => Ts(BASE + (i * 1000).saturating_sub(rng.below(200_000))),
        _ => Ts(BASE + i / 2 * 2000),
    };
    let id = rng.below(500);
    match rng.below(10) {
        0..4 => Trade { instrument, ts_recv, trade_id: id, sequence: i as u32, ..Trade::default() }.words().to_vec(),
        4..7 => Quote { instrument, ts_recv, sequence: i as u32, ..Quote::default() }.words().to_vec(),
        7..9 => BookOrder { instrument, ts_recv, order_id: id, sequence: i as u32, ..BookOrder::default() }.words().to_vec(),
        _ => Definition { instrument, ts_recv, raw_instrument_id: id, ..Definition::default() }.words().to_vec(),
    }
}

fn same(mut scan: Scan<'_>, expected: &[(Ts, Lsn, &[u64])]) {
    let mut n = 0;
    while let Some(row) = scan.next().unwrap() {
        assert_eq!((row.index_time, row.lsn, row.record.words()), expected[n], "row {n}");
        n += 1;
    }
    assert_eq!(n, expected.len());
}

/// Compares every access path of `snapshot` with `model`.
fn compare(snapshot: &mut Snapshot, model: &Model, rng: &mut SimRng) {
    let last = snapshot.last();
    for (lsn, (_, time, words)) in model.upto(last) {
        let row = snapshot.get(lsn).unwrap().unwrap_or_else(|| panic!("record {lsn} is missing"));
        assert_eq!((row.lsn, row.index_time, row.record.words()), (lsn, *time, words.as_slice()));
        let arrival = snapshot.arrival(lsn).unwrap().unwrap();
        assert_eq!((arrival.lsn, arrival.pub_seq, arrival.publisher), (lsn, PubSeq(lsn.0), PublisherId(1)));
    }
    assert!(snapshot.get(last.next()).unwrap().is_none() && snapshot.get(Lsn(0)).unwrap().is_none());
    let all: Vec<Series> = snapshot.series().unwrap();
    let mut expected: Vec<Series> = model.upto(last).map(|(_, r)| r.0).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(all, expected);
    same(snapshot.replay(&all, TimeRange::ALL), &model.sorted(&all, TimeRange::ALL, last));
    for _ in 0..60 {
        let series = all[rng.below(all.len() as u64) as usize];
        let of = model.sorted(&[series], TimeRange::ALL, last);
        let probe = Ts((of[rng.below(of.len() as u64) as usize].0.0 + rng.below(3)).wrapping_sub(1));
        let expected = of.iter().rev().find(|r| r.0 <= probe).map(|r| (r.0, r.1, r.2.to_vec()));
        let found = snapshot.as_of(series, probe).unwrap().map(|r| (r.index_time, r.lsn, r.record.words().to_vec()));
        assert_eq!(found, expected, "{series:?} as of {probe}");
        let range = TimeRange { from: probe, to: Ts(probe.0 + rng.below(3_000_000)) };
        same(snapshot.scan(series, range), &model.sorted(&[series], range, last));
        same(snapshot.get_at(series, probe), &model.sorted(&[series], TimeRange { from: probe, to: probe }, last));
        let some: Vec<Series> = all.iter().copied().filter(|_| rng.below(3) == 0).collect();
        same(snapshot.replay(&some, range), &model.sorted(&some, range, last));
        compare_find(snapshot, series, &of, rng.below(600));
        compare_columns(snapshot, series, range, &model.sorted(&[series], range, last));
    }
}

fn compare_find(snapshot: &Snapshot, series: Series, of: &[(Ts, Lsn, &[u64])], id: u64) {
    let schema = tapestore::record::schema(series.kind).unwrap();
    let Some(column) = schema.find_columns().next() else {
        assert!(matches!(snapshot.find(series, "trade_id", id), Err(Error::Invalid { .. })));
        return;
    };
    let expected: Vec<Lsn> = of.iter().filter(|r| r.2[column.offset / 8] == id).map(|r| r.1).collect();
    let found = snapshot.find(series, column.name, id).unwrap();
    assert_eq!(found.iter().map(|r| r.lsn).collect::<Vec<_>>(), expected, "{series:?} {} {id}", column.name);
    assert!(found.iter().all(|r| r.record.words()[column.offset / 8] == id));
}

fn compare_columns(snapshot: &Snapshot, series: Series, range: TimeRange, expected: &[(Ts, Lsn, &[u64])]) {
    let mut columns = snapshot.columns(series.kind, Some(series.instrument), range).unwrap();
    let mut found = Vec::new();
    while let Some(batch) = columns.next().unwrap() {
        let (lsns, times) = (batch.lsns(), batch.values::<u64>("ts_recv").unwrap());
        assert_eq!((lsns.len(), batch.ingest_ts().len(), times.len()), (batch.rows(), batch.rows(), batch.rows()));
        found.extend(lsns.iter().zip(times).zip(batch.ingest_ts()).map(|((&l, &t), &i)| (index_time(Ts(t), Ts(i)).0, Lsn(l))));
    }
    found.sort_unstable();
    assert_eq!(found, expected.iter().map(|r| (r.0, r.1)).collect::<Vec<_>>());
    // All instruments of the kind: as many rows of this one.
    let mut columns = snapshot.columns(series.kind, None, range).unwrap();
    let (mut rows, mut mine) = (0, 0);
    while let Some(batch) = columns.next().unwrap() {
        rows += batch.rows();
        let instruments = batch.values::<u32>("instrument").unwrap();
        mine += instruments.iter().filter(|i| **i == series.instrument.0).count();
    }
    assert_eq!(mine, expected.len());
    assert!(rows >= mine);
}

/// Follows from `from` on: every record once, whole, in order.
fn compare_follow(reader: Reader, from: Lsn, model: &Model, last: Lsn) {
    let mut follow = reader.follow(from, At::Appended);
    let mut next = from.0.max(1);
    while let Some(row) = follow.poll().unwrap() {
        let (_, time, words) = &model.0[next as usize - 1];
        assert_eq!((row.lsn, row.index_time, row.record.words()), (Lsn(next), *time, words.as_slice()));
        assert_eq!(follow.arrival().unwrap().unwrap().lsn, Lsn(next));
        next += 1;
    }
    assert_eq!((next, follow.position()), (last.0 + 1, last.next()));
    assert_eq!(follow.tally().count, last.0 + 1 - from.0.max(1));
}

/// Appends `count` records, in frames of up to 60.
fn put(store: &mut Recovered, model: &mut Model, rng: &mut SimRng, epoch: Epoch, count: u64) {
    let end = model.0.len() as u64 + count;
    while (model.0.len() as u64) < end {
        let first = model.0.len() as u64 + 1;
        let n = (1 + rng.below(60)).min(end + 1 - first);
        // Now and then the clock has jumped ahead, and is right again at the next frame.
        let jump = if rng.below(4) == 0 { rng.below(30 * HOUR) } else { 0 };
        let now = Ts(BASE + first * 1000 + jump);
        let words: Vec<Vec<u64>> = (0..n).map(|i| record(rng, first + i)).collect();
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        let header = BatchHeader::new(PublisherId(1), epoch, PubSeq(first), n as u32);
        assert_eq!(store.state.accept(header, &words.concat()), BatchOutcome::Accepted);
        let committed = store.state.append(now).unwrap().unwrap();
        if let Some(opened) = committed.appended.opened {
            store.syncer.opened(opened);
        }
        store.sealed.extend(committed.sealed);
        let ingest = committed.appended.header.ingest_ts;
        for words in words {
            let record = RecordRef::first(&words).unwrap();
            let series = Series { instrument: record.instrument(), kind: record.kind() };
            let time = index_time(record.own_index_time(), ingest).0;
            model.0.push((series, time, words));
        }
    }
    store.syncer.sync(store.state.writer.end()).unwrap();
    let end = store.state.writer.end();
    store.control.set_durable(end.lsn, end.position);
    store.control.set_committed(end.lsn);
}

#[test]
fn every_access_path_agrees_with_a_model_over_sstables_and_memtables() {
    for seed in 0..3 {
        let run = Run::new(seed);
        let mut rng = SimRng::new(seed ^ 0xabcd);
        let store_dir = run.dir.path().join("s");
        let options = Options { memtables_max: 4, ..super::options(&store_dir) };
        let world = World {
            disk: std::sync::Arc::new(run.disk.clone()),
            clock: std::sync::Arc::new(run.clock.clone()),
            store_id: 5,
            boot: 1,
        };
        let mut store = recover(options.clone(), &world).unwrap();
        register(&mut store, INSTRUMENTS, Ts(BASE)).unwrap();
        let (state, _) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(BASE)).unwrap();
        store.announce();
        let mut model = Model::default();
        let open = || Reader::open_on(std::sync::Arc::new(run.disk.clone()), &store_dir).unwrap();
        let mut reader = open();
        let mut held: Vec<(Snapshot, u64)> = Vec::new();
        for round in 0..5 {
            let count = 300 + rng.below(3000);
            put(&mut store, &mut model, &mut rng, state.epoch, count);
            held.push((reader.snapshot(At::Appended).unwrap(), model.0.len() as u64));
            store.state.memtables.seal_soon();
            put(&mut store, &mut model, &mut rng, state.epoch, 1);
            // Flushes nothing, the oldest MemTable, or all sealed ones.
            for _ in 0..rng.below(3) + u64::from(store.sealed.len() > 1) {
                file_one(&mut store).unwrap();
            }
            while rng.below(3) > 0 && compact_one(&mut store).unwrap() {}
            let mut snapshot = reader.snapshot(At::Appended).unwrap();
            assert_eq!(snapshot.last().0, model.0.len() as u64);
            compare(&mut snapshot, &model, &mut rng);
            compare_follow(open(), Lsn(rng.below(model.0.len() as u64)), &model, snapshot.last());
            compare_follow(open(), Lsn(1), &model, snapshot.last());
            if round == 3 {
                drop(store);
                store = recover(options.clone(), &world).unwrap();
                store.announce();
            }
        }
        // Snapshots return the same rows after flushes, compactions, unlinks and restarts.
        for (mut snapshot, last) in held {
            assert_eq!(snapshot.last().0, last);
            compare(&mut snapshot, &model, &mut rng);
        }
        // A follow that has reached the end goes on with new records, across a flush and compactions.
        let mut follow = open().follow(Lsn(1), At::Appended);
        while follow.poll().unwrap().is_some() {}
        put(&mut store, &mut model, &mut rng, state.epoch, 100);
        while file_one(&mut store).unwrap() {}
        while compact_one(&mut store).unwrap() {}
        while follow.poll().unwrap().is_some() {}
        assert_eq!(follow.tally().count, model.0.len() as u64);
        let mut merged = open().snapshot(At::Appended).unwrap();
        compare(&mut merged, &model, &mut rng);
        compare_follow(open(), Lsn(1), &model, merged.last());
    }
}

#[test]
fn a_damaged_block_fails_the_reads_that_need_it_and_no_others() {
    let run = Run::new(1);
    let mut store = run.recover().unwrap();
    let (state, _) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(BASE)).unwrap();
    let (mut model, mut rng) = (Model::default(), SimRng::new(3));
    put(&mut store, &mut model, &mut rng, state.epoch, 2000);
    store.state.memtables.seal_soon();
    put(&mut store, &mut model, &mut rng, state.epoch, 10);
    assert!(file_one(&mut store).unwrap());
    store.announce();
    let dir = run.dir.path().join("s").join(tapestore::sstable::DIR);
    let name = run.disk.list(&dir).unwrap().into_iter().find(|n| n.starts_with("trade")).unwrap();
    let mut bytes = run.disk.contents(&dir.join(&name)).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 0x10;
    run.disk.overwrite(&dir.join(&name), bytes);
    let mut reader = Reader::open_on(std::sync::Arc::new(run.disk.clone()), &run.dir.path().join("s")).unwrap();
    let mut snapshot = reader.snapshot(At::Appended).unwrap();
    let (mut read, mut failed) = (0, 0);
    for (lsn, (series, _, words)) in model.upto(snapshot.last()) {
        match snapshot.get(lsn) {
            Ok(Some(row)) => {
                assert_eq!(row.record.words(), words.as_slice());
                read += 1;
            }
            Err(Error::Corrupt { path, .. }) => {
                assert!(path.ends_with(&name) && series.kind == Trade::KIND);
                failed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(read > 0 && failed > 0, "{read} read, {failed} failed");
    // A scan that reaches the block fails once, and has ended; a follow fails at every poll.
    let all = snapshot.series().unwrap();
    let mut replay = snapshot.replay(&all, TimeRange::ALL);
    let outcome = loop {
        match replay.next() {
            Ok(Some(_)) => {}
            other => break other.map(|r| r.is_some()),
        }
    };
    assert!(matches!(outcome, Err(Error::Corrupt { .. })) && replay.next().unwrap().is_none());
    let mut follow = reader.follow(Lsn(1), At::Appended);
    for _ in 0..3 {
        assert!(matches!(follow.poll(), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn a_replay_of_many_one_row_series_and_of_a_quiet_night_before_a_busy_morning_is_in_order() {
    let run = Run::new(1);
    let mut store = run.recover().unwrap();
    register(&mut store, 3_000, Ts(BASE)).unwrap();
    let (state, _) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(BASE)).unwrap();
    let mut seq = 0;
    let mut put = |store: &mut Recovered, records: &[Trade]| {
        for chunk in records.chunks(50) {
            assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
            let words: Vec<u64> = chunk.iter().flat_map(|t| t.words().to_vec()).collect();
            let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(seq + 1), chunk.len() as u32);
            assert_eq!(store.state.accept(header, &words), BatchOutcome::Accepted);
            seq += chunk.len() as u64;
            let committed = store.state.append(Ts(BASE + 20 * HOUR)).unwrap().unwrap();
            store.sealed.extend(committed.sealed);
        }
    };
    let trade = |i: u64, time: u64| Trade { instrument: InstrumentId(1 + i as u32), ts_recv: Ts(time), ..Trade::default() };
    // One row each of 3,000 instruments, one row an hour in the night, then 5,000 in a second.
    let ones: Vec<Trade> = (0..3000).map(|i| trade(i, BASE + i % 7)).collect();
    let night: Vec<Trade> = (1..10).map(|h| trade(h, BASE + h * HOUR)).collect();
    let morning: Vec<Trade> = (0..5000).map(|i| trade(i % 40, BASE + 10 * HOUR + i * 200_000)).collect();
    for part in [&ones, &night, &morning] {
        put(&mut store, part);
        store.state.memtables.seal_soon();
    }
    put(&mut store, &morning[..1]);
    let end = store.state.writer.end();
    store.syncer.sync(end).unwrap();
    store.control.set_durable(end.lsn, end.position);
    store.control.set_committed(end.lsn);
    for _ in 0..2 {
        store.announce();
        let mut reader = Reader::open_on(std::sync::Arc::new(run.disk.clone()), &run.dir.path().join("s")).unwrap();
        let snapshot = reader.snapshot(At::Appended).unwrap();
        let all = snapshot.series().unwrap();
        let (mut replay, mut before, mut rows) = (snapshot.replay(&all, TimeRange::ALL), (Ts(0), Lsn(0)), 0);
        while let Some(row) = replay.next().unwrap() {
            assert!((row.index_time, row.lsn) > before);
            before = (row.index_time, row.lsn);
            rows += 1;
        }
        assert_eq!(rows, 8010);
        while file_one(&mut store).unwrap() {}
    }
}

#[test]
fn a_replay_over_very_many_small_files_is_in_order() {
    let run = Run::new(1);
    let mut store = run.recover().unwrap();
    let (state, _) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(BASE)).unwrap();
    // The next file ends each stripe after two rows; the target size of a stripe is never reached.
    let files = 80;
    for i in 0..=files {
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        let at = |n: u32| Ts(BASE + i * HOUR + u64::from(n));
        let trade = |n| Trade { instrument: InstrumentId(n), ts_recv: at(n), ..Trade::default() };
        let words = [trade(1).words().to_vec(), trade(2).words().to_vec()].concat();
        let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(i * 2 + 1), 2);
        assert_eq!(store.state.accept(header, &words), BatchOutcome::Accepted);
        let committed = store.state.append(Ts(BASE + 200 * HOUR)).unwrap().unwrap();
        if let Some(opened) = committed.appended.opened {
            store.syncer.opened(opened);
        }
        store.sealed.extend(committed.sealed);
        let end = store.state.writer.end();
        store.syncer.sync(end).unwrap();
        store.control.set_durable(end.lsn, end.position);
        store.control.set_committed(end.lsn);
        store.state.memtables.seal_soon();
        while file_one(&mut store).unwrap() {}
    }
    store.announce();
    let mut reader = Reader::open_on(std::sync::Arc::new(run.disk.clone()), &run.dir.path().join("s")).unwrap();
    let snapshot = reader.snapshot(At::Appended).unwrap();
    assert!(snapshot.history().files().len() as u64 >= files);
    let all = snapshot.series().unwrap();
    let (mut replay, mut rows) = (snapshot.replay(&all, TimeRange::ALL), 0);
    while let Some(row) = replay.next().unwrap() {
        rows += 1;
        assert_eq!(row.lsn, Lsn(rows));
    }
    assert_eq!(rows, (files + 1) * 2);
}
