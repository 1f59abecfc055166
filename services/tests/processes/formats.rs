//! Round trips through the export formats: every record comes back equal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dbn::decode::dbn::RecordDecoder;
use dbn::decode::{DbnMetadata as _, DecodeRecordRef as _, DynDecoder};
use dbn::{Metadata, VersionUpgradePolicy};
use serde_json::Value;
use tapestore::lsn::Durability;
use tapestore::reader::{At, Snapshot, TimeRange};
use tapestore::record::{Bust, Gap, Price, Size, Trade, schema};
use tapestore::time::Ts;

use crate::fixture::Store;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Index times and words, by instrument and kind.
type Contents = BTreeMap<(String, &'static str), Vec<(Ts, Vec<u64>)>>;

/// Every record of every series in order: index time and words without the instrument id.
fn contents(store: &Store) -> Contents {
    let mut reader = store.reader();
    let snapshot: Snapshot = reader.snapshot(At::Committed).unwrap();
    let mut all = BTreeMap::new();
    for series in snapshot.series().unwrap() {
        let named = reader.symbols().unwrap().name(series.instrument);
        let name = named.map_or_else(|| format!("no name: {}", series.instrument.0), |n| n.to_string());
        let (mut scan, mut rows) = (snapshot.scan(series, TimeRange::ALL), Vec::new());
        while let Some(row) = scan.next().unwrap() {
            let mut words = row.record.words().to_vec();
            words[0] &= 0xffff_ffff;
            rows.push((row.index_time, words));
        }
        all.insert((name, schema(series.kind).unwrap().name), rows);
    }
    all
}

/// A store with every kind of the inputs here, in SSTables and in memory.
fn whole_market() -> Store {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M"]);
    store.start();
    store.tape_ok(&["publish", "--sim", "--records", "300000", "--instruments", "40"]);
    for name in ["status.v3.dbn.zst", "imbalance.dbn", "statistics.dbn", "definition.dbn", "mbp-10.dbn", "ohlcv-1s.dbn"] {
        let path = format!("{DATA}/dbn_conformance/test_data.{name}");
        if Path::new(&path).exists() {
            store.tape_ok(&["import", &path]);
        } else {
            println!("skipped: {path} is not there");
        }
    }
    // Values that only publishers write: nulls and the widest numbers.
    let mut publisher = store.publisher(9, Durability::Fsync);
    let instrument = publisher.instrument(&"X:odd".parse().unwrap()).unwrap();
    for i in 0..100u64 {
        let (price, size) = if i % 2 == 0 { (Price::NULL, Size::NULL) } else { (Price(i64::MIN), Size(u64::MAX - 1)) };
        let ts_event = if i % 3 == 0 { Ts::NULL } else { Ts(1 << 63 | i) };
        publisher
            .publish(&Trade { instrument, price, size, ts_event, ts_recv: Ts(i), trade_id: u64::MAX - i, ..Trade::default() })
            .unwrap();
        publisher.publish(&Bust { instrument, ts_recv: Ts(i), trade_lsn: tapestore::lsn::Lsn(i), ..Bust::default() }).unwrap();
        // With and without an instrument.
        let instrument = if i % 2 == 0 { instrument } else { tapestore::lsn::InstrumentId::NULL };
        publisher.publish(&Gap { instrument, ts_event: Ts(i), ..Gap::default() }).unwrap();
    }
    publisher.close(crate::fixture::PATIENCE).unwrap();
    store
}

#[test]
fn a_store_survives_a_round_trip_through_parquet_arrow_and_csv() {
    let store = whole_market();
    let (dir, expected) = (tempfile::tempdir().unwrap(), contents(&store));
    let total: usize = expected.values().map(Vec::len).sum();
    assert!(total >= 300_300, "{total}");
    for format in ["parquet", "parquet --decimal", "arrow", "csv", "csv-gz"] {
        let out = dir.path().join(format);
        let mut arguments = vec!["export", arg(&out), "--json", "--format"];
        arguments.extend(format.split(' '));
        let exported = json(&store.tape_ok(&arguments));
        let mut files: Vec<&str> = exported.iter().map(|f| f["file"].as_str().unwrap()).collect();
        files.sort_unstable();
        let other = Store::serve();
        let mut arguments = vec!["import", "--json"];
        arguments.extend(&files);
        let imported = json(&other.tape_ok(&arguments));
        for file in &exported {
            let back = imported.iter().find(|i| i["file"] == file["file"]).unwrap();
            assert_eq!((&file["records"], &file["checksum"]), (&back["records"], &back["checksum"]), "{format}: {file}");
        }
        assert!(contents(&other) == expected, "{format}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), files.len(), "no temporary file is left");
    }
}

#[test]
fn an_export_writes_the_requested_range_and_keeps_an_existing_file() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "20000", "--instruments", "20"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("some.parquet");
    let all = json(&store.tape_ok(&["scan", "SIM:00000", "quote", "--json"]));
    let (from, to) = (all[50]["index_time"].as_str().unwrap(), all[150]["index_time"].as_str().unwrap());
    let range = ["--instrument", "SIM:00000", "--kind", "quote", "--from", from, "--to", to];
    let some = json(&store.tape_ok(&[&["scan", "SIM:00000", "quote", "--json"], &range[4..]].concat()));
    let export = |more: &[&str]| store.tape(&[&["export", arg(&file), "--json"], &range[..], more].concat());
    let exported = &json(std::str::from_utf8(&export(&[]).stdout).unwrap())[0];
    assert!(some.len() >= 101 && exported["records"] == some.len(), "{exported}");
    let again = export(&[]);
    assert!(again.status.code() == Some(2) && String::from_utf8_lossy(&again.stderr).contains("--force"));
    let limited = export(&["--force", "--limit", "7"]);
    assert_eq!(json(std::str::from_utf8(&limited.stdout).unwrap())[0]["records"], 7);
    let code = |arguments: &[&str]| store.tape(arguments).status.code();
    assert_eq!(code(&["export", arg(&dir.path().join("all.parquet"))]), Some(2), "a file holds one kind");
    assert_eq!(code(&["export", arg(&dir.path().join("all.dbn"))]), Some(2), "or one schema");
    assert_eq!(code(&["export", arg(&dir.path().join("x.csv")), "--kind", "status"]), Some(3));
    assert_eq!(code(&["export", arg(&dir.path().join("x.csv")), "--kind", "quote", "--format", "dbn"]), Some(2));
    let left: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, std::slice::from_ref(&file), "a failed export leaves no file");
    // A truncated file is refused.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    let refused = store.tape(&["import", arg(&file)]);
    assert_eq!(refused.status.code(), Some(65), "{}", String::from_utf8_lossy(&refused.stderr));
    // Columns with other names are reported; options rename or drop them.
    let csv = dir.path().join("theirs.csv");
    std::fs::write(&csv, "sym,px,note\nA:B,1.5,x\n").unwrap();
    let refused = store.tape(&["import", arg(&csv), "--kind", "trade", "--column", "sym=instrument"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--column px=OURS"));
    store.tape_ok(&[
        "import",
        arg(&csv),
        "--kind",
        "trade",
        "--column",
        "sym=instrument",
        "--column",
        "px=price",
        "--column",
        "note=",
    ]);
    assert_eq!(json(&store.tape_ok(&["scan", "A:B", "trade", "--json"]))[0]["price"], "1.5");
}

/// Decodes a file with the `dbn` crate: its metadata, if any, and the bytes of its records.
fn decode(path: &Path) -> (Option<Metadata>, Vec<Vec<u8>>) {
    let (name, upgrade) = (arg(path), VersionUpgradePolicy::UpgradeToV3);
    let mut records = Vec::new();
    if name.contains(".frag") {
        let bytes = std::fs::read(path).unwrap();
        let bytes = if name.ends_with(".zst") { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
        let version = [1, 3].into_iter().find(|v| name.contains(&format!(".v{v}."))).unwrap_or(2);
        let mut decoder = RecordDecoder::with_version(&bytes[..], version, upgrade, false).unwrap();
        while let Some(record) = decoder.decode_record_ref().unwrap() {
            records.push(record.as_ref().to_vec());
        }
        return (None, records);
    }
    let mut decoder = DynDecoder::from_file(path, upgrade).unwrap();
    let metadata = decoder.metadata().clone();
    while let Some(record) = decoder.decode_record_ref().unwrap() {
        records.push(record.as_ref().to_vec());
    }
    (Some(metadata), records)
}

#[test]
fn every_dbn_file_round_trips_with_its_fields_ids_and_symbols() {
    let Ok(files) = std::fs::read_dir(format!("{DATA}/dbn_conformance")) else {
        println!("skipped: {DATA}/dbn_conformance is not there");
        return;
    };
    let mut paths: Vec<PathBuf> = files.map(|f| f.unwrap().path()).collect();
    paths.sort();
    let unsupported = ["dbz", "cmbp", "cbbo", "LICENSE"];
    paths.retain(|p| !unsupported.iter().any(|u| arg(p).contains(u)));
    let (mut equal, mut empty) = (0, 0);
    for path in &paths {
        let store = Store::serve();
        store.tape_ok(&["import", arg(path)]);
        let (metadata, records) = decode(path);
        if records.is_empty() {
            empty += 1;
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let format = if equal % 2 == 0 { "dbn" } else { "dbn-zst" };
        let out = json(&store.tape_ok(&["export", arg(dir.path()), "--format", format, "--json"]));
        assert!(out.len() == 1 && out[0]["records"] == records.len(), "{path:?}: {out:?}");
        let (back, mut theirs) = decode(Path::new(out[0]["file"].as_str().unwrap()));
        let mut records = records;
        if metadata.is_none() {
            // Fragments are not in time order; every export is.
            records.sort();
            theirs.sort();
        }
        assert!(theirs == records, "{path:?}");
        let back = back.unwrap();
        if let Some(metadata) = metadata {
            let of = |m: &Metadata| (m.dataset.clone(), m.schema, m.stype_in, m.stype_out);
            assert_eq!(of(&back), of(&metadata), "{path:?}");
            let sorted = |m: &Metadata| {
                let intervals = |m: &dbn::SymbolMapping| m.intervals.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>();
                m.mappings.iter().map(|m| (m.raw_symbol.clone(), intervals(m))).collect::<BTreeMap<_, _>>()
            };
            assert_eq!(sorted(&back), sorted(&metadata), "{path:?}");
        }
        equal += 1;
    }
    println!("{equal} files of records equal, {empty} without records");
    assert_eq!(equal + empty, 65);
}

/// Writes a file of DBN records; without a header if the name ends in `.frag`.
fn write_dbn(path: &Path, dataset: &str, mappings: Vec<dbn::SymbolMapping>, records: &[Vec<u8>]) {
    let metadata = Metadata::builder().dataset(dataset).schema(None).start(1).stype_in(Some(dbn::SType::RawSymbol));
    let metadata = metadata.stype_out(dbn::SType::InstrumentId).mappings(mappings).build();
    let mut bytes = Vec::new();
    if !arg(path).ends_with(".frag") {
        dbn::encode::dbn::MetadataEncoder::new(&mut bytes).encode(&metadata).unwrap();
    }
    records.iter().for_each(|r| bytes.extend(r));
    std::fs::write(path, bytes).unwrap();
}

const DAY: u64 = 86_400_000_000_000;

fn trade(publisher: u16, id: u32, at: u64, price: i64) -> Vec<u8> {
    let hd = dbn::RecordHeader::new::<dbn::TradeMsg>(dbn::rtype::MBP_0, publisher, id, at);
    dbn::RecordRef::from(&dbn::TradeMsg { hd, price, size: 1, ts_recv: at, ..Default::default() }).as_ref().to_vec()
}

fn mapping(publisher: u16, id: u32, at: u64, symbol: &str) -> Vec<u8> {
    let hd = dbn::RecordHeader::new::<dbn::SymbolMappingMsg>(dbn::rtype::SYMBOL_MAPPING, publisher, id, at);
    let mut text = [0; 71];
    text.iter_mut().zip(symbol.bytes()).for_each(|(to, from)| *to = from as std::ffi::c_char);
    let (start_ts, end_ts) = (u64::MAX, u64::MAX);
    let m =
        dbn::SymbolMappingMsg { hd, stype_in: 4, stype_in_symbol: text, stype_out: 1, stype_out_symbol: text, start_ts, end_ts };
    dbn::RecordRef::from(&m).as_ref().to_vec()
}

/// Imports `records` into a store and exports them; returns the exported records and the store's symbols.
fn through(name: &str, dataset: &str, mappings: Vec<dbn::SymbolMapping>, records: &[Vec<u8>]) -> (Vec<Vec<u8>>, String) {
    let (store, dir) = (Store::serve(), tempfile::tempdir().unwrap());
    let file = dir.path().join(name);
    write_dbn(&file, dataset, mappings, records);
    store.tape_ok(&["import", arg(&file)]);
    let out = dir.path().join("out");
    // A mapping without records is reported with exit code 65.
    let exported = store.tape(&["export", arg(&out), "--format", "dbn", "--json"]);
    assert!(matches!(exported.status.code(), Some(0 | 65)), "{}", String::from_utf8_lossy(&exported.stderr));
    let exported = json(std::str::from_utf8(&exported.stdout).unwrap());
    let mut back = Vec::new();
    for file in exported.iter().filter(|e| e["file"].is_string()) {
        let path = Path::new(file["file"].as_str().unwrap());
        assert_eq!(path.parent(), Some(&*out), "nothing is written elsewhere");
        back.extend(decode(path).1);
    }
    (back, store.tape_ok(&["symbols"]))
}

#[test]
fn dbn_ids_reassigned_within_a_stream_round_trip() {
    // A and B swap their ids in the middle of a stream without mapping intervals.
    let t = 19_700 * DAY + 5;
    let records = [
        mapping(1, 1, t, "A"),
        mapping(1, 2, t, "B"),
        trade(1, 1, t + 1, 100),
        trade(1, 2, t + 2, 200),
        mapping(1, 2, t + 3, "A"),
        mapping(1, 1, t + 3, "B"),
        trade(1, 2, t + 4, 101),
        trade(1, 1, t + 5, 201),
    ];
    let (back, names) = through("live.dbn", "GLBX.MDP3", Vec::new(), &records);
    assert!(back == records, "{back:?}");
    assert_eq!(names.lines().count(), 1 + 2, "{names}");
}

#[test]
fn dbn_fragments_keep_one_id_of_two_venues_apart_and_symbols_keep_their_ids() {
    let t = 19_700 * DAY + 5;
    let records = [trade(1, 5, t, 1), trade(2, 5, t + 1, 2), trade(1, 5, t + 2, 3)];
    let (mut back, names) = through("x.frag", "", Vec::new(), &records);
    back.sort();
    let mut expected = records.to_vec();
    expected.sort();
    assert!(back == expected && names.contains("GLBX.MDP3:id/5") && names.contains("XNAS.ITCH:id/5"), "{names}");
    // The mapping in the stream has no venue; the record after it keeps its id.
    let (back, names) = through("y.frag", "", Vec::new(), &[mapping(0, 77, t, "ESH4"), trade(1, 77, t + 1, 1)]);
    assert!(back.contains(&trade(1, 77, t + 1, 1)) && names.contains("GLBX.MDP3:ESH4"), "{names}");
}

#[test]
fn symbols_with_spaces_that_share_an_id_are_separate_instruments() {
    let date = |days: i32| time::Date::from_julian_day(2_440_588 + days).unwrap();
    let of = |raw_symbol: &str, day: i32| dbn::SymbolMapping {
        raw_symbol: raw_symbol.to_owned(),
        intervals: vec![dbn::MappingInterval { start_date: date(day), end_date: date(day + 1), symbol: "9".to_owned() }],
    };
    let mappings = vec![of("AAPL  240119C00100000", 19_700), of("MSFT  240119C00100000", 19_701)];
    let records = [trade(1, 9, 19_700 * DAY + 7, 1), trade(1, 9, 19_701 * DAY + 7, 2)];
    let (back, names) = through("opra.dbn", "../OPRA.PILLAR", mappings, &records);
    assert!(back == records, "{back:?}");
    assert!(names.contains(":AAPL__240119C00100000") && names.contains(":MSFT__240119C00100000"), "{names}");
}
