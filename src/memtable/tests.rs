//! Compares the MemTable with a plain model: every access path, at every watermark, sorted and
//! unsorted, and while another thread fills it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::LEN_MIN;
use super::*;
use crate::disk::sim::SimRng;
use crate::lsn::{InstrumentId, Lsn};
use crate::record::{BookOrder, Definition, Quote, Record, RecordRef, Series, TimeRange, Trade, plain};
use crate::time::Ts;

const INGEST: Ts = Ts(1_700_000_000_000_000_000);

fn words_of(kind: u64, instrument: u32, time: u64, id: u64) -> Vec<u64> {
    let (instrument, ts) = (InstrumentId(instrument), Ts(time));
    match kind {
        0 => Trade { instrument, ts_recv: ts, trade_id: id, ..Trade::default() }.words().to_vec(),
        1 => Quote { instrument, ts_recv: ts, sequence: id as u32, ..Quote::default() }.words().to_vec(),
        2 => BookOrder { instrument, ts_recv: ts, order_id: id, ..BookOrder::default() }.words().to_vec(),
        _ => Definition { instrument, ts_recv: ts, raw_instrument_id: id, ..Definition::default() }.words().to_vec(),
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    writer: Writer,
    table: Table,
}

fn fixture(base: u64) -> Fixture {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("m");
    let mut writer = Writer::create(&path, 9, 3, LEN_MIN).unwrap();
    writer.begin(Lsn(base));
    let table = Table::open(&path, 9).unwrap();
    Fixture { _dir: dir, writer, table }
}

fn push(writer: &mut Writer, words: &[u64]) {
    let origin = Origin { publisher: PublisherId(1), epoch: Epoch(1), first_pub_seq: PubSeq(writer.next().0) };
    assert!(writer.reserve_run());
    assert!(writer.push(RecordRef::first(words).unwrap(), INGEST));
    writer.push_run(origin, 1, INGEST);
}

type Model = BTreeMap<Series, BTreeMap<(Ts, Lsn), Vec<u64>>>;

/// Compares every access path of `table` with `model`, at the watermark `upto`.
fn compare(table: &Table, model: &Model, upto: Lsn, rng: &mut SimRng) {
    for (&series, rows) in model {
        let visible: Vec<_> = rows.iter().filter(|((_, lsn), _)| *lsn <= upto).collect();
        let all: Vec<_> = table.rows(series, TimeRange::ALL, upto).collect();
        assert_eq!(all.len(), visible.len(), "{series:?} upto {upto}");
        for (row, ((time, lsn), words)) in all.iter().zip(&visible) {
            assert_eq!((row.index_time, row.lsn, row.record.words()), (*time, *lsn, words.as_slice()));
            assert_eq!(table.get(row.lsn).unwrap().words(), words.as_slice());
            assert_eq!(table.row(row.lsn).unwrap(), *row);
        }
        for _ in 0..20 {
            let Some((&(time, _), _)) = rows.iter().nth(rng.below(rows.len() as u64) as usize) else { continue };
            let probe = Ts(time.0.wrapping_add(rng.below(3)).wrapping_sub(1));
            let expected = visible.iter().rev().find(|((t, _), _)| *t <= probe).map(|((_, lsn), _)| *lsn);
            assert_eq!(table.as_of(series, probe, upto).map(|r| r.lsn), expected, "{series:?} as of {probe} upto {upto}");
            let range = TimeRange { from: probe, to: Ts(probe.0.saturating_add(rng.below(50))) };
            let expected: Vec<_> = visible.iter().filter(|((t, _), _)| range.contains(*t)).map(|((_, lsn), _)| *lsn).collect();
            let found: Vec<_> = table.rows(series, range, upto).map(|r| r.lsn).collect();
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn every_access_path_agrees_with_a_model_at_every_watermark() {
    for seed in 0..12u64 {
        let mut rng = SimRng::new(seed);
        let base = 1 + rng.below(1000);
        let mut f = fixture(base);
        let mut model = Model::new();
        let (series_count, disorder) = (1 + rng.below(30) as u32, rng.below(3));
        for i in 0..4000u64 {
            let (kind, instrument) = (rng.below(8).min(3), 1 + rng.below(u64::from(series_count)) as u32);
            let time = match disorder {
                0 => i / 3,
                1 => (i / 3).saturating_sub(if rng.below(10) == 0 { rng.below(40) } else { 0 }),
                _ => rng.below(2000),
            };
            // A few records have no usable time and sort by ingest time.
            let time = if rng.below(200) == 0 { u64::MAX } else { time };
            let words = words_of(kind, instrument, time, i);
            let record = RecordRef::first(&words).unwrap();
            let series = Series { instrument: record.instrument(), kind: record.kind() };
            let (sorts_by, _) = crate::record::index_time(record.own_index_time(), INGEST);
            let lsn = f.writer.next();
            push(&mut f.writer, &words);
            model.entry(series).or_default().insert((sorts_by, lsn), words);
        }
        let last = f.writer.next().0 - 1;
        for upto in [last, base + rng.below(4000), base, base - 1] {
            compare(&f.table, &model, Lsn(upto), &mut rng);
        }
        assert_eq!(f.table.series().len(), model.len());
    }
}

#[test]
fn a_full_table_refuses_records_and_keeps_those_it_has() {
    let mut f = fixture(1);
    let mut pushed = 0u64;
    loop {
        let words = words_of(pushed % 4, 1 + (pushed % 100) as u32, pushed, pushed);
        if !f.writer.reserve_run() || !f.writer.push(RecordRef::first(&words).unwrap(), INGEST) {
            break;
        }
        f.writer.push_run(Origin { publisher: PublisherId(1), epoch: Epoch(1), first_pub_seq: PubSeq(pushed + 1) }, 1, INGEST);
        pushed += 1;
    }
    assert!(!f.writer.has_room(1));
    assert!(pushed * 64 * 2 > LEN_MIN / 4, "most of the memory is used: {pushed} records");
    for lsn in 1..=pushed {
        let i = lsn - 1;
        assert_eq!(f.table.get(Lsn(lsn)).unwrap().words(), words_of(i % 4, 1 + (i % 100) as u32, i, i));
        assert_eq!(f.table.arrival(Lsn(lsn)).unwrap().pub_seq, PubSeq(lsn));
    }
    assert!(f.table.get(Lsn(pushed + 2)).is_none());
}

/// Appends a frame of `records`, in runs of `per_run` records.
fn put_frame(writer: &mut Writer, records: &[Vec<u64>], per_run: usize) {
    for run in records.chunks(per_run) {
        assert!(writer.reserve_run(), "no room for a run at {} of {} bytes", writer.used(), writer.len());
        for record in run {
            let fits = writer.push(RecordRef::first(record).unwrap(), INGEST);
            assert!(fits, "no room for a record at {} of {} bytes", writer.used(), writer.len());
        }
        let origin = Origin { publisher: PublisherId(1), epoch: Epoch(1), first_pub_seq: PubSeq(1) };
        writer.push_run(origin, run.len() as u32, INGEST);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 12, ..Default::default() })]

    /// Any kinds, skew, frame lengths and run lengths, until there is no room.
    #[test]
    fn frames_fit_where_has_room_is_true(
        seed: u64,
        base in 1u64..1000,
        words in proptest::collection::vec(2usize..=128, 1..4),
        series in 1u32..6000,
        skew in 0u64..3,
        longest in 1u64..=format::FRAME_ROWS_MAX,
        per_run in 1usize..5000,
    ) {
        let (mut rng, mut f) = (SimRng::new(seed), fixture(base));
        let mut at = 0u32;
        for _ in 0..100_000 {
            // The longest frame often, shorter ones too: at the end each row begins a chunk.
            let rows = if rng.below(2) == 0 { longest } else { 1 + rng.below(longest) };
            if !f.writer.has_room(rows) {
                break;
            }
            let records: Vec<_> = (0..rows).map(|_| {
                at += 1;
                let most = 1 + rng.below(u64::from(series));
                let instrument = match skew {
                    0 => at % series,
                    1 => rng.below(most) as u32,
                    _ => at,
                };
                plain(words[at as usize % words.len()], 1 + instrument, rng.below(1 << 40))
            }).collect();
            // The room asked for at once also holds the records as two frames.
            let (one, two) = records.split_at(rng.below(rows) as usize);
            for part in [one, two].into_iter().filter(|p| !p.is_empty()) {
                proptest::prop_assert!(f.writer.has_room(part.len() as u64), "a part of a frame for which there was room");
                put_frame(&mut f.writer, part, per_run);
            }
        }
        proptest::prop_assert!(!f.writer.has_room(format::FRAME_ROWS_MAX) || f.writer.used() * 2 < f.writer.len());
    }
}

#[test]
fn records_are_found_by_publisher_epoch_and_number() {
    let mut f = fixture(1);
    for publisher in [1u16, 2, 1, 2, 1] {
        let first = f.writer.next();
        assert!(f.writer.reserve_run());
        for i in 0..10 {
            assert!(f.writer.push(RecordRef::first(&words_of(0, 1, i, first.0 + i)).unwrap(), INGEST));
        }
        f.writer.push_run(
            Origin { publisher: PublisherId(publisher), epoch: Epoch(4), first_pub_seq: PubSeq(first.0) },
            10,
            INGEST,
        );
    }
    let after = |p, s, after| f.table.find_published(PublisherId(p), Epoch(4), PubSeq(s), Lsn(after), Lsn(45)).map(|r| r.lsn);
    let found = |p, s| after(p, s, 0);
    assert_eq!((after(1, 25, 5), after(1, 5, 5), after(1, 5, 30)), (Some(Lsn(25)), Some(Lsn(5)), None));
    assert_eq!((found(1, 5), found(2, 35), found(1, 25)), (Some(Lsn(5)), Some(Lsn(35)), Some(Lsn(25))));
    assert_eq!((found(2, 5), found(1, 46), found(3, 1)), (None, None, None));
}

#[test]
fn concurrent_readers_see_whole_rows_up_to_applied_and_none_above() {
    let Fixture { _dir, mut writer, table } = fixture(1);
    let (applied, table) = (Arc::new(AtomicU64::new(0)), Arc::new(table));
    let readers: Vec<_> = (0..2)
        .map(|seed| {
            let (applied, table) = (applied.clone(), table.clone());
            std::thread::spawn(move || {
                let mut rng = SimRng::new(seed);
                let mut last = 0;
                while last < 40_000 {
                    let upto = applied.load(Ordering::Acquire);
                    assert!(upto >= last);
                    last = upto;
                    if upto == 0 {
                        continue;
                    }
                    let lsn = 1 + rng.below(upto);
                    let i = lsn - 1;
                    let expected = words_of(i % 3, 1 + (i % 7) as u32, i / 2, i);
                    assert_eq!(table.get(Lsn(lsn)).unwrap().words(), expected);
                    let series = Series {
                        instrument: InstrumentId(1 + (i % 7) as u32),
                        kind: RecordRef::first(&expected).unwrap().kind(),
                    };
                    let found = table.as_of(series, Ts(u64::MAX), Lsn(upto)).unwrap();
                    assert!(found.lsn.0 <= upto && found.lsn.0 + 21 > upto, "the newest of 21 series: {} of {upto}", found.lsn);
                    if rng.below(500) == 0 {
                        let count = table.rows(series, TimeRange::ALL, Lsn(upto)).count() as u64;
                        let expected = (1..=upto).filter(|l| (l - 1) % 21 == i % 21).count() as u64;
                        assert_eq!(count, expected);
                    }
                }
            })
        })
        .collect();
    for i in 0..40_000u64 {
        push(&mut writer, &words_of(i % 3, 1 + (i % 7) as u32, i / 2, i));
        applied.store(i + 1, Ordering::Release);
    }
    readers.into_iter().for_each(|r| r.join().unwrap());
}

#[test]
fn a_file_that_is_not_a_table_of_the_store_is_refused() {
    let f = fixture(1);
    let path = f._dir.path().join("m");
    assert!(matches!(Table::open(&path, 10), Err(crate::error::Error::Foreign { .. })));
    let other = f._dir.path().join("other");
    std::fs::write(&other, b"short").unwrap();
    assert!(matches!(Table::open(&other, 9), Err(crate::error::Error::Foreign { .. })));
}

#[test]
fn a_memtable_holds_the_records_that_were_computed_before_it_was_filled() {
    for (series, quotes, run) in [(1u32, false, 1), (100, false, 100), (100, true, 1), (3_000, true, 64)] {
        let mut f = fixture(1);
        let mut rows = 0u64;
        while f.writer.has_room(super::format::FRAME_ROWS_MAX) {
            let origin = Origin { publisher: PublisherId(1), epoch: Epoch(1), first_pub_seq: PubSeq(rows + 1) };
            assert!(f.writer.reserve_run());
            for _ in 0..run {
                let kind = u64::from(quotes && rows % 2 == 1);
                let words = words_of(kind, 1 + (rows / 2) as u32 % series, rows, rows);
                assert!(f.writer.push(RecordRef::first(&words).unwrap(), INGEST));
                rows += 1;
            }
            f.writer.push_run(origin, run, INGEST);
        }
        let share = |words, part| super::size::Share { words, part, series: u64::from(series) };
        let shares = if quotes { vec![share(8, 0.5), share(12, 0.5)] } else { vec![share(8, 1.0)] };
        let computed = super::size::rows_max(LEN_MIN, &shares, u64::from(run));
        assert!(computed.abs_diff(rows) * 10 <= rows, "{series} series: {rows} records, {computed} were computed");
    }
}
