//! Compares SSTables with a plain model: every access path; every flipped byte and every truncation;
//! power loss at every call of the writer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::format::BLOCK_ROWS;
use super::*;
use crate::disk::sim::{Fault, SimDisk, SimRng};
use crate::disk::{Disk, RealDisk};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Definition, Record, TimeRange, Trade, index_time};
use crate::time::Ts;

const HOUR: u64 = Window::LENGTHS[0];
const STORE: u128 = 77;
const FROM: u64 = 500_000 * HOUR;

/// One row of the model.
#[derive(Clone, Debug)]
struct Model {
    ingest: Ts,
    words: Vec<u64>,
}

/// Rows by (instrument, index time, LSN).
type Rows = BTreeMap<(InstrumentId, Ts, Lsn), Model>;

fn origin(lsn: Lsn) -> Origin {
    // Three publishers in blocks of 50 LSNs, with dense numbers.
    let publisher = lsn.0 / 50 % 3;
    (PublisherId(publisher as u16 + 1), Epoch(2), PubSeq(lsn.0 / 150 * 50 + lsn.0 % 50 + 1))
}

/// `rows` rows of `instruments` instruments, with LSNs above `first`, up to `gap` apart.
fn model(seed: u64, instruments: u64, rows: u64, first: u64, gap: u64) -> Rows {
    let mut rng = SimRng::new(seed);
    let (mut all, mut lsn) = (Rows::new(), first);
    for i in 0..rows {
        lsn += 1 + if gap > 0 { rng.below(gap) } else { 0 };
        // Most rows are of the first instrument.
        let instrument = InstrumentId(if rng.below(2) == 0 { 1 } else { 1 + 3 * rng.below(instruments) as u32 });
        let ingest = Ts(FROM + i * 100 + 50);
        let own = match rng.below(100) {
            0 => Ts::NULL,
            1..10 => Ts(FROM + (i * 100).saturating_sub(rng.below(5000))),
            _ => Ts(FROM + i / 3 * 300),
        };
        let id = if rng.below(20) == 0 { u64::MAX } else { rng.below(rows / 2 + 1) };
        let record =
            Trade { instrument, ts_recv: own, ts_event: Ts(own.0 ^ 1), trade_id: id, sequence: i as u32, ..Trade::default() };
        all.insert((instrument, index_time(own, ingest).0, Lsn(lsn)), Model { ingest, words: record.words().to_vec() });
    }
    all
}

fn spec(id: u64, stores_reserved: bool) -> Spec {
    Spec {
        store_id: STORE,
        id,
        schema: &crate::record::SCHEMAS[0],
        window: Window { from: Ts(FROM), len: HOUR },
        stores_reserved,
    }
}

fn write(disk: &dyn Disk, dir: &Path, rows: &Rows, spec: Spec) -> Result<FileMeta> {
    let mut writer = Writer::create(disk, dir, spec)?;
    let mut counts: BTreeMap<InstrumentId, u32> = BTreeMap::new();
    rows.keys().for_each(|(i, ..)| *counts.entry(*i).or_default() += 1);
    let mut current = None;
    for ((instrument, _, lsn), row) in rows {
        if current.replace(*instrument) != Some(*instrument) {
            writer.begin_series(*instrument, counts[instrument])?;
        }
        writer.push(*lsn, row.ingest, &row.words)?;
    }
    writer.finish(origin)
}

#[test]
fn truncating_a_mapped_file_gives_errors_and_never_a_wrong_value() {
    crate::pages::guard().unwrap();
    let rows = model(3, 12, 9_000, 1, 2);
    let mut rng = SimRng::new(5);
    for trial in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let meta = write(&RealDisk, dir.path(), &rows, spec(1, false)).unwrap();
        let table = Table::open(&RealDisk, dir.path(), meta).unwrap();
        // Every part is read and marked as sound first.
        table.verify(|_| Ok(())).unwrap();
        let file = std::fs::File::options().write(true).open(table.path()).unwrap();
        // Also within the last page, which then still exists and ends in zeros.
        let len = if trial < 4 { meta.len - 1 - rng.below(100) } else { rng.below(meta.len) };
        file.set_len(len).unwrap();
        if trial % 2 == 0 {
            table.release();
        }
        let (instrument, mut words) = (InstrumentId(1), Vec::new());
        let results = [
            compare(&table, &rows, trial),
            table.row(0, &mut words).map(drop),
            table.as_of(instrument, Ts(u64::MAX)).map(drop),
            table.find_series(instrument).map(drop),
            table.slice(instrument, TimeRange::ALL).map(drop),
            table.place_of(meta.lsn.0).map(drop),
            table.arrival(meta.lsn.1).map(drop),
            table.find(instrument, 0, 7, &mut Vec::new()),
            table.verify(|_| Ok(())).map(drop),
        ];
        for (call, result) in results.iter().enumerate() {
            let is_reported = matches!(result, Err(Error::Io { op: "read a page of", .. } | Error::Corrupt { .. }));
            assert!(is_reported, "trial {trial}, truncated to {len} of {}, call {call}: {result:?}", meta.len);
        }
    }
}

fn row_at(table: &Table, place: u32) -> Result<(Lsn, Ts, Vec<u64>)> {
    let mut words = Vec::new();
    let (lsn, time) = table.row(place, &mut words)?;
    Ok((lsn, time, words))
}

/// Compares every access path of `table` with `rows`. Returns the table's errors; panics on a wrong
/// value.
fn compare(table: &Table, rows: &Rows, seed: u64) -> Result<()> {
    let mut rng = SimRng::new(seed);
    let by_lsn: BTreeMap<Lsn, (&(InstrumentId, Ts, Lsn), &Model)> = rows.iter().map(|(k, v)| (k.2, (k, v))).collect();
    let (first, last) = (by_lsn.keys().next().unwrap().0, by_lsn.keys().last().unwrap().0);
    for lsn in (first.saturating_sub(3)..=last + 3).map(Lsn) {
        match (table.place_of(lsn)?, by_lsn.get(&lsn)) {
            (None, None) => assert!(table.arrival(lsn)?.is_none()),
            (Some(place), Some((key, row))) => {
                assert_eq!(row_at(table, place)?, (lsn, key.1, row.words.clone()));
                let arrival = table.arrival(lsn)?.unwrap();
                assert_eq!(((arrival.publisher, arrival.epoch, arrival.pub_seq), arrival.ingest_ts), (origin(lsn), row.ingest));
            }
            other => panic!("LSN {lsn}: {other:?}"),
        }
    }
    let (a, b) = (first + rng.below(last - first + 1), first + rng.below(last - first + 1));
    let (from, to) = (Lsn(a.min(b)), Lsn(a.max(b)));
    let between: Result<Vec<Lsn>> = table.places(from, to)?.iter().map(|&p| Ok(row_at(table, p)?.0)).collect();
    assert_eq!(between?, by_lsn.range(from..=to).map(|(l, _)| *l).collect::<Vec<_>>());
    let instruments: Vec<InstrumentId> =
        rows.keys().map(|k| k.0).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    assert_eq!(table.series()?.iter().map(|s| s.instrument).collect::<Vec<_>>(), instruments);
    assert!(table.find_series(InstrumentId(2))?.is_none() && table.as_of(InstrumentId(2), Ts(u64::MAX))?.is_none());
    for &instrument in &instruments {
        let of: Vec<(Ts, Lsn, &Model)> = rows
            .range((instrument, Ts(0), Lsn(0))..=(instrument, Ts(u64::MAX), Lsn(u64::MAX)))
            .map(|((_, t, l), r)| (*t, *l, r))
            .collect();
        for _ in 0..12 {
            let probe = of[rng.below(of.len() as u64) as usize].0;
            let probe = Ts(probe.0.wrapping_add(rng.below(3)).wrapping_sub(1));
            let expected = of.iter().rev().find(|r| r.0 <= probe).map(|r| (r.0, r.1));
            assert_eq!(table.as_of(instrument, probe)?.map(|(t, l, _)| (t, l)), expected, "{instrument} as of {probe}");
            let range = TimeRange { from: probe, to: Ts(probe.0 + rng.below(2000)) };
            let expected: Vec<Lsn> = of.iter().filter(|r| range.contains(r.0)).map(|r| r.1).collect();
            let slice = table.slice(instrument, range)?;
            let mut found = Vec::new();
            if let Some(slice) = slice {
                let bound = of.iter().position(|r| r.1 == expected[expected.len() / 2]).unwrap();
                let count = table.count_until(&slice, of[bound].0, of[bound].1)?;
                assert_eq!(count as usize, expected.len() / 2 + 1, "rows up to one of them");
                let mut at = slice.from;
                while at < slice.to {
                    let (block, row) = slice.locate(at);
                    let n = slice.run(at);
                    found.extend(table.block(block)?.lsns()[row..row + n].iter().map(|&l| Lsn(l)));
                    at += n as u32;
                }
            }
            assert_eq!(found, expected, "{instrument} in {range:?}");
        }
        let mut by_id: BTreeMap<u64, Vec<Lsn>> = BTreeMap::new();
        of.iter().for_each(|r| by_id.entry(r.2.words[5]).or_default().push(r.1));
        for id in (0..40).map(|_| rng.below(rows.len() as u64)).chain([u64::MAX]) {
            let mut places = Vec::new();
            table.find(instrument, 0, id, &mut places)?;
            let found: Result<Vec<Lsn>> = places.iter().map(|&p| Ok(row_at(table, p)?.0)).collect();
            let expected = if id == u64::MAX { Vec::new() } else { by_id.get(&id).cloned().unwrap_or_default() };
            assert_eq!(found?, expected, "{instrument} id {id}");
        }
    }
    assert_eq!(table.verify(|_| Ok(()))?, rows.len() as u64);
    Ok(())
}

#[test]
fn every_access_path_agrees_with_a_model() {
    for (seed, instruments, count, first, gap) in [
        (1, 1, 1, 1, 0),
        (2, 40, 300, 1, 0),
        (3, 300, 20_000, 1000, 3),
        (4, 5, 9000, 7, 400),
        (5, 2000, 30_000, 1 << 40, 1),
        (6, 1, 4096, 1, 0),
    ] {
        let rows = model(seed, instruments, count, first, gap);
        let disk = SimDisk::new();
        let dir = Path::new("/s");
        let meta = write(&disk, dir, &rows, spec(seed, seed % 2 == 0)).unwrap();
        assert_eq!((meta.rows, meta.id), (rows.len() as u64, seed));
        let table = Table::open(&disk, dir, meta).unwrap();
        compare(&table, &rows, seed).unwrap();
        let big = rows.keys().filter(|k| k.0 == InstrumentId(1)).count();
        if big >= BLOCK_ROWS {
            assert_eq!(table.find_series(InstrumentId(1)).unwrap().unwrap().row, 0, "a large series begins a block");
        }
    }
}

#[test]
fn reserved_bytes_are_read_back_if_the_file_stores_them() {
    let mut rows = model(1, 3, 100, 1, 0);
    rows.values_mut().for_each(|r| r.words[7] |= 0xabcd << 40);
    let disk = SimDisk::new();
    let meta = write(&disk, Path::new("/s"), &rows, spec(1, true)).unwrap();
    compare(&Table::open(&disk, Path::new("/s"), meta).unwrap(), &rows, 1).unwrap();
}

#[test]
fn every_flipped_byte_of_a_file_is_detected_or_harmless() {
    let rows = model(9, 12, 220, 5, 2);
    let disk = SimDisk::new();
    let dir = Path::new("/s");
    let meta = write(&disk, dir, &rows, spec(3, false)).unwrap();
    let path = dir.join(file_name(meta.kind, meta.id));
    let whole = disk.contents(&path).unwrap();
    let (mut detected, mut harmless) = (0, 0);
    for at in 0..whole.len() {
        for pattern in [0x01, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= pattern;
            disk.overwrite(&path, bytes);
            // A wrong value panics in `compare`.
            match Table::open(&disk, dir, meta).and_then(|t| compare(&t, &rows, 1)) {
                Ok(()) => harmless += 1,
                Err(Error::Corrupt { .. } | Error::Version { .. } | Error::Invalid { .. }) => detected += 1,
                Err(e) => panic!("byte {at}: {e}"),
            }
        }
    }
    println!("{} bytes, two patterns each: {detected} detected, {harmless} harmless (padding)", whole.len());
    assert!(detected > harmless * 20);
}

#[test]
fn every_truncation_of_a_file_and_its_absence_are_reported() {
    let rows = model(9, 12, 120, 5, 2);
    let disk = SimDisk::new();
    let dir = Path::new("/s");
    let meta = write(&disk, dir, &rows, spec(3, false)).unwrap();
    let path = dir.join(file_name(meta.kind, meta.id));
    let whole = disk.contents(&path).unwrap();
    for len in 0..whole.len() {
        disk.overwrite(&path, whole[..len].to_vec());
        assert!(matches!(Table::open(&disk, dir, meta), Err(Error::Corrupt { .. })), "length {len}");
        // The length check of the manifest is not the only one.
        let lying = FileMeta { len: len as u64, ..meta };
        let opened = Table::open(&disk, dir, lying).and_then(|t| compare(&t, &rows, 1));
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "length {len}: {opened:?}");
    }
    disk.remove(&path).unwrap();
    assert!(matches!(Table::open(&disk, dir, meta), Err(Error::Missing { .. })));
}

#[test]
fn another_file_under_the_name_is_refused() {
    let disk = SimDisk::new();
    let dir = Path::new("/s");
    let rows = model(9, 12, 120, 5, 2);
    let (a, b) = (write(&disk, dir, &rows, spec(1, false)).unwrap(), write(&disk, dir, &rows, spec(2, false)).unwrap());
    assert_eq!(a.len, b.len);
    disk.overwrite(&dir.join(file_name(a.kind, 1)), disk.contents(&dir.join(file_name(a.kind, 2))).unwrap());
    let table = Table::open(&disk, dir, a).unwrap();
    assert!(matches!(table.series(), Err(Error::Corrupt { .. })));
}

#[test]
fn power_loss_at_any_call_of_the_writer_leaves_no_partial_file_under_the_name() {
    let rows = model(4, 6, 5000, 1, 0);
    let calls = {
        let disk = SimDisk::new();
        write(&disk, Path::new("/s"), &rows, spec(1, false)).unwrap();
        disk.calls()
    };
    for call in 1..=calls {
        for seed in 0..4 {
            let disk = SimDisk::new();
            disk.set_fault(call, Fault::PowerLoss);
            assert!(write(&disk, Path::new("/s"), &rows, spec(1, false)).is_err());
            let after = disk.power_loss(seed);
            let path: PathBuf = Path::new("/s").join(file_name(Trade::KIND, 1));
            assert!(!after.exists(&path).unwrap(), "the rename was not reached before call {call}");
        }
    }
}

#[test]
fn file_names_parse_to_their_numbers() {
    assert_eq!(file_id(&file_name(Trade::KIND, 0xab)), Some(0xab));
    assert_eq!(file_id("trade-0000000000ab.tmp"), Some(0xab));
    for bad in ["trade.arrow", "trade-12.arrow", "trade-0000000000ab.arrow.x", "LOCK", "trade-0000000000ag.arrow"] {
        assert_eq!(file_id(bad), None, "{bad}");
    }
}

#[test]
fn windows_cover_time_without_overlap() {
    for len in Window::LENGTHS {
        for time in [0, 1, FROM, FROM + HOUR - 1, FROM + HOUR, u64::MAX] {
            let window = Window::of(Ts(time), len);
            assert!(window.from.0 <= time && time <= window.last().0, "{time} in {window:?}");
        }
    }
}

/// An Arrow reader without knowledge of our sections sees the same columns.
#[test]
fn an_arrow_reader_reads_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let rows = model(3, 300, 20_000, 1000, 3);
    let meta = write(&RealDisk, dir.path(), &rows, spec(1, false)).unwrap();
    let path = dir.path().join(file_name(meta.kind, 1));
    let reader = arrow_ipc::reader::FileReader::try_new(std::fs::File::open(&path).unwrap(), None).unwrap();
    assert_eq!(reader.schema().metadata()["tapestore.kind"], "trade");
    assert_eq!(reader.schema().field_with_name("price").unwrap().metadata()["scale"], "9");
    let mut seen = 0;
    let mut expected = rows.iter();
    for batch in reader {
        let batch = batch.unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap().to_data();
        let (lsn, ids) = (column("lsn"), column("trade_id"));
        for i in 0..batch.num_rows() {
            let (key, row) = expected.next().unwrap();
            assert_eq!(
                (lsn.buffers()[0].typed_data::<u64>()[i], ids.buffers()[0].typed_data::<u64>()[i]),
                (key.2.0, row.words[5])
            );
            seen += 1;
        }
    }
    assert_eq!(seen, rows.len());
}

#[test]
fn long_text_records_are_read_back() {
    let record = Definition { instrument: InstrumentId(5), ts_recv: Ts(FROM), raw_instrument_id: 9, ..Definition::default() };
    let mut words = record.words().to_vec();
    (2..words.len()).for_each(|i| words[i] = if i == 2 { FROM } else { (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) });
    let disk = SimDisk::new();
    let spec = Spec { schema: &crate::record::SCHEMAS[3], ..spec(1, true) };
    let mut writer = Writer::create(&disk, Path::new("/s"), spec).unwrap();
    writer.begin_series(InstrumentId(5), 2).unwrap();
    writer.push(Lsn(4), Ts(FROM), &words).unwrap();
    writer.push(Lsn(9), Ts(FROM), &words).unwrap();
    let meta = writer.finish(origin).unwrap();
    let table = Table::open(&disk, Path::new("/s"), meta).unwrap();
    assert_eq!(row_at(&table, table.place_of(Lsn(9)).unwrap().unwrap()).unwrap(), (Lsn(9), Ts(FROM), words));
}

/// Nothing of the file `path` in memory, as far as the file system does what it is asked.
fn evict(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[test]
fn a_block_that_is_not_in_memory_is_read_without_its_neighbours_and_a_run_of_blocks_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let rows = model(8, 3, 60 * BLOCK_ROWS as u64, 0, 0);
    let meta = write(&RealDisk, dir.path(), &rows, spec(1, false)).unwrap();
    let table = Table::open(&RealDisk, dir.path(), meta).unwrap();
    let extents: Vec<(u64, u64)> =
        table.blocks().unwrap().iter().map(|b| (b.offset, u64::from(b.meta_len) + b.body_len)).collect();
    let is_here = |offset: u64, len: u64| table.read_ahead(|ahead| ahead.map.is_in_memory(offset, len)).unwrap();
    let is_in_memory = |block: usize| is_here(extents[block].0, extents[block].1);
    let forget = || {
        table.release();
        evict(table.path());
    };
    forget();
    if is_in_memory(40) {
        println!("skipped: the file system of {} keeps files in memory", dir.path().display());
        return;
    }
    let within_a_minute = |what: &str, holds: &dyn Fn() -> bool| {
        let began = std::time::Instant::now();
        while !holds() {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{what}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    table.block(40).unwrap();
    assert!(is_in_memory(40));
    assert!(!is_in_memory(37) && !is_in_memory(43), "the pages around a block are not read");
    // Blocks one after the other: those that follow are read before they are asked for.
    for block in 10..13 {
        table.block(block).unwrap();
    }
    within_a_minute("blocks that follow are read", &|| (13..20).all(is_in_memory));
    assert!(!is_in_memory(25));
    // Of a block whose CRC was compared only the columns that are asked for are read.
    table.verify(|_| Ok(())).unwrap();
    forget();
    let column = |block: usize, part: Part| {
        let entry = table.blocks().unwrap()[block];
        let (offset, size) = table.read_ahead(|ahead| ahead.part(&entry, part)).unwrap().unwrap();
        is_here(offset, size * u64::from(entry.rows))
    };
    assert!(!column(30, Part::Times));
    table.read_ahead(|ahead| ahead.read(30..32, &[Part::Times, Part::Lsns])).unwrap();
    within_a_minute("columns are read", &|| (30..32).all(|block| column(block, Part::Times) && column(block, Part::Lsns)));
    let size = Trade::SCHEMA.columns.iter().find(|column| column.name == "size").unwrap().offset;
    assert!(!column(30, Part::Field(size)) && !column(31, Part::Field(size)) && !column(34, Part::Times));
    // Of a series the pages of its rows.
    let whole = table.slice(InstrumentId(1), TimeRange::ALL).unwrap().unwrap();
    let slice = Slice { from: 3 * BLOCK_ROWS as u32, to: 3 * BLOCK_ROWS as u32 + 200, ..whole };
    let (block, row) = slice.locate(slice.from);
    forget();
    table.read_ahead(|ahead| ahead.read_slice(&slice, block..block + 1, &[Part::Times])).unwrap();
    let entry = table.blocks().unwrap()[block as usize];
    let times = |row: usize| {
        let (offset, size) = table.read_ahead(|ahead| ahead.part(&entry, Part::Times)).unwrap().unwrap();
        is_here(offset + size * row as u64, size)
    };
    within_a_minute("rows of a series are read", &|| times(row) && times((row + 199).min(entry.rows as usize - 1)));
    let far = if row < BLOCK_ROWS / 2 { entry.rows as usize - 1 } else { 0 };
    assert!(!times(far), "and no others of the block");
    // The ends of a range, and not what lies between them.
    forget();
    let times: Vec<Ts> =
        rows.keys().filter(|(instrument, ..)| *instrument == InstrumentId(1)).map(|(_, time, _)| *time).collect();
    let range = TimeRange { from: times[6 * BLOCK_ROWS], to: times[20 * BLOCK_ROWS] };
    let series = table.find_series(InstrumentId(1)).unwrap().unwrap();
    table.read_ahead(|ahead| ahead.bounds(&series, range)).unwrap();
    let slice_of = |block: usize| column(block, Part::Times);
    within_a_minute("the ends of a range are read", &|| (5..8).any(slice_of) && (19..22).any(slice_of));
    assert!(!(9..18).any(slice_of));
    table.slice(InstrumentId(1), range).unwrap().unwrap();
    assert!(!(9..18).any(slice_of), "a slice touches no more than its ends");
}

/// Bytes of a written SSTable of trades: `series` series of `each` rows, whose LSNs are `gap` apart, in runs of `run` LSNs.
fn written(series: u64, each: u64, gap: u64, run: u64) -> (u64, Content) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&RealDisk, dir.path(), spec(1, false)).unwrap();
    for s in 0..series {
        let instrument = InstrumentId(s as u32 + 1);
        writer.begin_series(instrument, each as u32).unwrap();
        for row in 0..each {
            // Rows of all series lie between each other in LSN order.
            let (lsn, ts) = (Lsn(1 + (row * series + s) * gap), Ts(FROM + row));
            let record = Trade { instrument, ts_recv: ts, trade_id: lsn.0, ..Trade::default() };
            writer.push(lsn, ts, record.words()).unwrap();
        }
    }
    let mut turns = std::collections::BTreeSet::new();
    let meta = writer.finish(|lsn| {
        let turn = lsn.0 / run;
        turns.insert(turn);
        (PublisherId(1 + (turn % 2) as u16), Epoch(1), PubSeq(lsn.0))
    });
    let rows = series * each;
    (meta.unwrap().len, Content { rows, series, lsns: (rows - 1) * gap + 1, runs: turns.len() as u64 })
}

#[test]
fn the_size_of_an_sstable_is_what_was_computed_before_it_was_written() {
    let every = 1 << 40;
    for (series, each, gap, run) in [
        (1, 1, 1, every),
        (1, 10_000, 1, every),
        (50, 100, 1, every),
        (7, 5_000, 3, every),
        (40, 500, 100, every),
        (20, 1_000, 1, 64),
    ] {
        let (len, content) = written(series, each, gap, run);
        let computed = content.file_len(&Trade::SCHEMA).unwrap();
        assert!(len.abs_diff(computed) <= 512 + len / 1000, "{content:?}: {len} bytes, {computed} were computed");
    }
}
