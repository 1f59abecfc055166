//! Owns: malformed inputs for every parser: generated valid inputs, mutated; half of them get correct checksums.
//!
//! What must hold: for any bytes no panic, no hang, and no more than 64 MiB allocated beyond the input. A failing input is
//! saved to a file, and the command that repeats it is printed.

use std::path::{Path, PathBuf};

use tape_services::{query, terminal};
use tapestore::bus::BatchHeader;
use tapestore::bus::attach::{Message as Said, Mode};
use tapestore::disk::sim::{SimDisk, SimRng};
use tapestore::disk::{Disk, Open};
use tapestore::lsn::{Durability, Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::record::{Depth10, Layout, Name, Price, Quote, Record, Size, Trade, Volume};
use tapestore::sstable::{self, FileMeta};
use tapestore::time::{Ts, parse_duration};
use tapestore::wal::{Chain, ControlEntry, control_entry};
use tapestore::{bars, manifest, reader, record, wal};
use tapestore_engine::{compaction, config};
use tapestore_formats::input::{self, Binance, Csv, Dbn, Message, Table as Rows};

use crate::guard::guarded;
use crate::model::{self, Signal};
use crate::mutate::{fix_manifest, fix_meta, fix_nothing, fix_segment, fix_table, mutated, trailer_crc};
use crate::powerloss::{Store, Trial};
use crate::report::Report;
use crate::scratch::Scratch;
use crate::tally::Counts;

type Parse<'a> = Box<dyn FnMut(&[u8]) + 'a>;

/// A parser with its valid inputs and the function that corrects checksums.
struct Target<'a> {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    fix: fn(&mut [u8]),
    run: Parse<'a>,
}

/// Runs `n` inputs through each target or through `only`, or the one input in the file `input`.
///
/// Inputs of the saved corpus run as they are and mutated, like the generator's. `saves` adds the generator's inputs to
/// the corpus. An input that failed once is added by hand and becomes a regression test.
pub fn run(n: u64, seed: u64, only: Option<&str>, input: Option<&Path>, saves: bool) -> Report {
    let mut report = Report::new("fuzz");
    let (counts, scratch) = (Counts::default(), Scratch::new());
    let mut trial = Trial::new(1, &scratch, &counts, false);
    let mut store = model_store(&mut trial);
    let files = Files::of(&trial, &mut store);
    let offered = Scratch::new();
    let offer_counts = Counts::default();
    let mut targets = of_files(&files);
    targets.extend(of_messages(&offered, &offer_counts));
    targets.extend(of_inputs(&scratch, &files));
    targets.extend(of_text(&scratch));
    for target in targets.iter_mut().filter(|t| only.is_none_or(|o| o == t.name)) {
        if saves {
            save(target);
        }
        target.seeds.extend(saved(target.name));
        match input {
            Some(path) => attempt(&mut report, target, std::fs::read(path).unwrap(), 0),
            None => many(&mut report, target, n, seed),
        }
    }
    report
}

/// Largest input that is saved, bytes, and the number of saved inputs of a target.
const SAVED_LEN: usize = 16 << 10;
const SAVED_MAX: usize = 6;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The saved inputs of `target`.
fn saved(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(corpus(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

fn save(target: &Target<'_>) {
    let dir = corpus(target.name);
    std::fs::create_dir_all(&dir).unwrap();
    for bytes in target.seeds.iter().filter(|s| s.len() <= SAVED_LEN).take(SAVED_MAX) {
        std::fs::write(dir.join(format!("{:08x}", crc32c::crc32c(bytes))), bytes).unwrap();
    }
}

fn many(report: &mut Report, target: &mut Target<'_>, n: u64, seed: u64) {
    let mut rng = SimRng::new(seed ^ u64::from(crc32c::crc32c(target.name.as_bytes())));
    let (seeds, began) = (target.seeds.clone(), std::time::Instant::now());
    for good in &seeds {
        attempt(report, target, good.clone(), 0);
    }
    for i in 0..n {
        let good = &seeds[rng.below(seeds.len() as u64) as usize];
        let other = &seeds[rng.below(seeds.len() as u64) as usize];
        let mut bytes = mutated(&mut rng, good, other);
        if rng.below(2) == 0 {
            (target.fix)(&mut bytes);
        }
        attempt(report, target, bytes, i);
    }
    report.note(format!("{}: {n} inputs, {:.0}/s", target.name, n as f64 / began.elapsed().as_secs_f64()));
}

fn attempt(report: &mut Report, target: &mut Target<'_>, bytes: Vec<u8>, i: u64) {
    match guarded(|| format!("{} input {i}", target.name), bytes.len(), || (target.run)(&bytes)) {
        Ok(()) => report.pass(),
        Err(why) => {
            let path = std::env::temp_dir().join(format!("fuzz-{}-{:08x}", target.name, crc32c::crc32c(&bytes)));
            std::fs::write(&path, &bytes).unwrap();
            let again = format!("faults -- fuzz --only {} --input {}", target.name, path.display());
            report.fail(format!("{}: {why}", target.name), format!("cargo run -p bench --bin {again}"));
        }
    }
}

/// A store with records, names, a user kind, SSTables of two kinds, and a log.
fn model_store(trial: &mut Trial<'_>) -> Store {
    trial.batch = 12;
    (trial.model.recipe.kinds, trial.model.recipe.late) = (vec![Trade::KIND, Quote::KIND, Signal::KIND], u64::MAX);
    trial.keep_all();
    let mut store = trial.start().unwrap();
    trial.attach(&mut store).unwrap();
    for turn in 0..10 {
        assert!(trial.can_log(&mut store).unwrap());
        if turn == 6 {
            store.at.state.memtables.seal_soon();
        }
        trial.name(&mut store).unwrap();
        store.at.state.is_ready().unwrap();
        trial.send(&mut store, 2).unwrap();
        trial.sync(&mut store).unwrap();
        trial.flush(&mut store);
    }
    store
}

/// The store's files as bytes.
struct Files {
    store_id: u128,
    meta: wal::Meta,
    meta_bytes: Vec<u8>,
    segment: Vec<u8>,
    manifest: Vec<u8>,
    tables: Vec<(FileMeta, Vec<u8>)>,
}

impl Files {
    fn of(trial: &Trial<'_>, store: &mut Store) -> Files {
        let (disk, dir) = (&trial.disk, &trial.store);
        let meta = wal::meta::read(disk, dir).unwrap().unwrap();
        let end = store.at.state.writer.end().position.0 as usize;
        let mut segment =
            disk.contents(&dir.join(wal::DIR).join(wal::format::segment_name(tapestore::lsn::Position(0)))).unwrap();
        segment.truncate(end.next_multiple_of(4096));
        let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("manifest-"));
        let path = disk.files().into_iter().find(named).unwrap();
        let state = store.at.flusher.manifest().state();
        let table = |f: &FileMeta| (*f, disk.contents(&dir.join(sstable::DIR).join(sstable::file_name(f.kind, f.id))).unwrap());
        Files {
            store_id: meta.store_id,
            meta,
            meta_bytes: disk.contents(&dir.join(wal::meta::NAME)).unwrap(),
            segment,
            manifest: disk.contents(&path).unwrap(),
            tables: state.files.values().map(table).collect(),
        }
    }
}

fn put(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, Open::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
}

fn of_files(files: &Files) -> Vec<Target<'_>> {
    let dir = PathBuf::from("/store");
    let (wal_dir, sst_dir) = (dir.join(wal::DIR), dir.join(sstable::DIR));
    let segment = wal_dir.join(wal::format::segment_name(tapestore::lsn::Position(0)));
    let (meta, id) = (wal::Meta { durable: wal::DurableMark::default(), ..files.meta }, files.store_id);
    let log = Box::new(move |bytes: &[u8]| {
        let disk = SimDisk::new();
        put(&disk, &segment, bytes);
        drop(wal::scan(&disk, &wal_dir, &meta, Chain::begin(id), Open::Read, |_| Ok(())));
    });
    let manifest_dir = dir.clone();
    let edits = Box::new(move |bytes: &[u8]| {
        let disk = SimDisk::new();
        put(&disk, &manifest_dir.join(manifest::format::CURRENT), manifest::format::current(1).as_bytes());
        put(&disk, &manifest_dir.join(manifest::format::file_name(1)), bytes);
        drop(manifest::read_all(&disk, &manifest_dir, id, &mut |_, _| {}));
        drop(manifest::Manifest::open(std::sync::Arc::new(disk), &manifest_dir, id));
    });
    let meta_dir = dir.clone();
    let store_meta = Box::new(move |bytes: &[u8]| {
        let disk = SimDisk::new();
        put(&disk, &meta_dir.join(wal::meta::NAME), bytes);
        drop(wal::MetaFile::open(&disk, &meta_dir));
    });
    let current = |bytes: &[u8]| assert!(manifest::format::parse_current(bytes).is_none_or(|n| n < 1 << 48));
    let metas = files.tables.iter().map(|t| t.0).collect::<Vec<_>>();
    let table = Box::new(move |bytes: &[u8]| {
        let disk = SimDisk::new();
        for of in &metas {
            let meta = FileMeta { len: bytes.len() as u64, crc: trailer_crc(bytes), ..*of };
            let path = sst_dir.join(sstable::file_name(meta.kind, meta.id));
            put(&disk, &path, bytes);
            if let Ok(table) = sstable::Table::open(&disk, &sst_dir, meta) {
                read_table(&table, &meta);
            }
        }
    });
    let tables = files.tables.iter().map(|t| t.1.clone()).collect();
    vec![
        Target { name: "log", seeds: vec![files.segment.clone()], fix: fix_segment, run: log },
        Target { name: "manifest", seeds: vec![files.manifest.clone()], fix: fix_manifest, run: edits },
        Target { name: "meta", seeds: vec![files.meta_bytes.clone()], fix: fix_meta, run: store_meta },
        Target {
            name: "current",
            seeds: vec![manifest::format::current(1).into_bytes()],
            fix: fix_nothing,
            run: Box::new(current),
        },
        Target { name: "sstable", seeds: tables, fix: fix_table, run: table },
    ]
}

/// Reads an SSTable by every access path; errors are allowed.
fn read_table(table: &sstable::Table, meta: &FileMeta) {
    let mut words = Vec::new();
    for lsn in (meta.lsn.0.0..=meta.lsn.1.0).take(64).map(Lsn) {
        drop(table.arrival(lsn));
        if let Ok(Some(place)) = table.place_of(lsn) {
            words.clear();
            drop(table.row(place, &mut words));
        }
    }
    drop(table.places(Lsn(0), Lsn(u64::MAX)));
    for i in 0..8 {
        let instrument = InstrumentId(i);
        drop(table.as_of(instrument, Ts(model::BEGIN + 1_000_000_000)));
        let range = reader::TimeRange { from: Ts(model::BEGIN), to: Ts(model::BEGIN + 5_000_000_000) };
        if let Ok(Some(slice)) = table.slice(instrument, range) {
            drop(table.count_until(&slice, Ts(model::BEGIN + 2_000_000_000), Lsn(9)));
        }
        drop(table.find(instrument, 0, 7, &mut Vec::new()));
    }
    drop(table.slices_of_block(0, reader::TimeRange::ALL));
    drop(table.verify(|_| Ok(())));
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)).collect()
}

fn of_messages<'a>(scratch: &'a Scratch, counts: &'a Counts) -> Vec<Target<'a>> {
    let bytes_of = |words: &[u64]| bytemuck::cast_slice::<u64, u8>(words).to_vec();
    let layout = Layout::of(Signal::SCHEMA_REF).unwrap();
    let entries = [
        ControlEntry::Attach { publisher: PublisherId(1), epoch: Epoch(2), incarnation: 3 },
        ControlEntry::Symbol { instrument: InstrumentId(1), name: model::name(1) },
        ControlEntry::Kind(layout.clone()),
    ];
    let mut entry_words = Vec::new();
    entries.iter().for_each(|entry| entry.encode(&mut entry_words));
    let messages = [
        Said::Attach { publisher: PublisherId(1), mode: Mode::Resume(Epoch(4)), level: Durability::Fsync, incarnation: 9 },
        Said::Symbols(vec![model::name(1), model::name(2)]),
        Said::Ids(vec![InstrumentId(1)]),
        Said::Kind(Box::new(layout.clone())),
        Said::Refused("no".to_owned()),
    ];
    let records = bytes_of(&[Trade::default().words(), Quote::default().words(), Depth10::default().words()].concat());
    let mut batch = vec![1, 0, 1, 0, 1, 0, 3, 0];
    batch.extend(&records);
    let mut offers = Offers { scratch, counts, running: None };
    vec![
        Target {
            name: "control-entries",
            seeds: vec![bytes_of(&entry_words)],
            fix: fix_nothing,
            run: Box::new(|bytes| {
                let words = words_of(bytes);
                let header = wal::Header { count: 3, ..bytemuck::Zeroable::zeroed() };
                drop(ControlEntry::parse_all(&header, &words));
                assert!(control_entry::parse_name(&words).is_none_or(|n| !n.as_str().is_empty()));
                drop(Layout::parse(&words));
            }),
        },
        Target {
            name: "attach",
            seeds: messages.iter().map(Said::encode).collect(),
            fix: fix_nothing,
            run: Box::new(|bytes| drop(Said::decode(bytes))),
        },
        Target {
            name: "records",
            seeds: vec![records],
            fix: fix_nothing,
            run: Box::new(|bytes| {
                for record in record::split(&words_of(bytes)).flatten() {
                    record.values().for_each(|(_, value)| drop(value.to_string()));
                }
            }),
        },
        Target { name: "offer", seeds: vec![batch], fix: fix_nothing, run: Box::new(move |bytes| offers.offer(bytes)) },
    ]
}

/// Passes batches to a store, which is replaced after 500.
struct Offers<'a> {
    scratch: &'a Scratch,
    counts: &'a Counts,
    running: Option<(Trial<'a>, Store, u32)>,
}

impl Offers<'_> {
    fn offer(&mut self, bytes: &[u8]) {
        if self.running.as_ref().is_none_or(|(.., offers)| *offers > 500) {
            self.running = None;
            self.scratch.clear();
            let mut trial = Trial::new(1, self.scratch, self.counts, false);
            let mut store = trial.start().unwrap();
            trial.attach(&mut store).unwrap();
            self.running = Some((trial, store, 0));
        }
        let Some((trial, store, offers)) = &mut self.running else { return };
        *offers += 1;
        assert!(trial.can_log(store).unwrap() && store.at.state.is_ready().is_ok());
        let field = |i: usize| {
            u64::from(bytes.get(2 * i).copied().unwrap_or(0)) | u64::from(bytes.get(2 * i + 1).copied().unwrap_or(0)) << 8
        };
        let first =
            if field(1) & 0x80 == 0 { store.at.state.publisher(PublisherId(1)).last.0 + field(2) } else { u64::MAX - field(2) };
        let header = BatchHeader::new(PublisherId(field(0) as u16), Epoch(field(1) as u32 | 1), PubSeq(first), field(3) as u32);
        store.at.state.accept(header, &words_of(bytes.get(8..).unwrap_or(&[])));
        drop(store.at.state.append(Ts(model::BEGIN)).unwrap());
    }
}

fn read_input(opened: tapestore_formats::error::Result<Box<dyn input::Input>>) {
    let Ok(mut input) = opened else { return };
    let mut message = Message::default();
    for _ in 0..10_000 {
        message.clear();
        match input.next(&mut message) {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
    }
    drop((input.names().len(), input.left(), input.progress()));
}

fn of_inputs<'a>(scratch: &'a Scratch, files: &Files) -> Vec<Target<'a>> {
    let options = input::Options { source: Some(1), ..input::Options::default() };
    let target = |name: &'static str, file: &str, seeds, open: fn(&Path, &input::Options) -> _| {
        let (path, options) = (scratch.file(file), options.clone());
        let run = Box::new(move |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_input(open(&path, &options));
        });
        Target { name, seeds, fix: fix_nothing, run }
    };
    vec![
        target("dbn", "a.dbn", dbn_seeds(), |p, o| Dbn::open(p, o).map(|i| Box::new(i) as Box<dyn input::Input>)),
        target("csv", "a.csv", csv_seeds(), |p, o| Csv::open(p, o).map(|i| Box::new(i) as Box<dyn input::Input>)),
        target("binance", "a.txt", binance_seeds(), |p, o| {
            Binance::open(p, o.source).map(|i| Box::new(i) as Box<dyn input::Input>)
        }),
        target("arrow", "a.arrow", files.tables.iter().map(|t| t.1.clone()).collect(), |p, o| {
            Rows::open(p, o).map(|i| Box::new(i) as Box<dyn input::Input>)
        }),
        target("parquet", "a.parquet", parquet_seeds(), |p, o| Rows::open(p, o).map(|i| Box::new(i) as Box<dyn input::Input>)),
        target("any-file", "a.any", [dbn_seeds(), csv_seeds(), binance_seeds()].concat(), input::open),
    ]
}

fn dbn_seeds() -> Vec<Vec<u8>> {
    let metadata = dbn::Metadata::builder().dataset("XNAS.ITCH").schema(None).start(1).stype_in(Some(dbn::SType::RawSymbol));
    let metadata = metadata.stype_out(dbn::SType::InstrumentId).mappings(Vec::new()).build();
    let mut bytes = Vec::new();
    dbn::encode::dbn::MetadataEncoder::new(&mut bytes).encode(&metadata).unwrap();
    for i in 1..4u32 {
        let hd = dbn::RecordHeader::new::<dbn::TradeMsg>(dbn::rtype::MBP_0, 2, i, model::BEGIN);
        let trade = dbn::TradeMsg { hd, price: 5, size: 1, ts_recv: model::BEGIN, ..Default::default() };
        bytes.extend_from_slice(dbn::RecordRef::from(&trade).as_ref());
        let hd = dbn::RecordHeader::new::<dbn::MboMsg>(dbn::rtype::MBO, 2, i, model::BEGIN);
        let order = dbn::MboMsg { hd, order_id: 7, price: 5, size: 1, ts_recv: model::BEGIN, ..Default::default() };
        bytes.extend_from_slice(dbn::RecordRef::from(&order).as_ref());
    }
    vec![bytes]
}

fn csv_seeds() -> Vec<Vec<u8>> {
    let text = "kind,instrument,ts_event,ts_recv,price,size,side\ntrade,X:A,2024-08-08T23:54:15Z,1723161255030314667,189.98,100,A\n\
                trade,X:B,1,2,-0.5,1.5,B\n\"trade\",\"X:A\",3,4,1e3,2,N\n";
    vec![text.into(), "kind,instrument,bid_px,ask_px\nquote,X:A,1,2\n".into()]
}

fn binance_seeds() -> Vec<Vec<u8>> {
    let lines = [
        r#"1723161255088169167 {"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":5123107839020,"s":"BTCUSDT","b":"61800.20","B":"2.507","a":"61800.30","A":"2.510","T":1723161256313,"E":1723161256313}}"#,
        r#"1723161255088176367 {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161256322,"T":1723161256322,"s":"BTCUSDT","t":5266583935,"p":"61800.30","q":"0.006","X":"MARKET","m":false}}"#,
        r#"1723161255030314667 {"stream":"btcusdt@depth@0ms","data":{"e":"depthUpdate","E":1723161256299,"T":1723161256298,"s":"BTCUSDT","U":1,"u":2,"pu":0,"b":[["58710.20","0.014"],["61510.90","0.000"]],"a":[["61800.30","1"]]}}"#,
        r#"1723161255319702566 {"lastUpdateId":5,"E":1723161256501,"T":1723161256493,"bids":[["61800.20","2.909"]],"asks":[["61800.30","1.5"]]}"#,
    ];
    vec![lines.join("\n").into_bytes(), lines[1].as_bytes().to_vec()]
}

fn parquet_seeds() -> Vec<Vec<u8>> {
    let mut batcher = tapestore_formats::schema::Batcher::new(Trade::SCHEMA_REF, false);
    let trade = Trade { ts_recv: Ts(model::BEGIN), price: Price(5), ..Trade::default() };
    for lsn in 1..20 {
        let record = record::RecordRef::of(&trade);
        batcher.push(&record::Row { lsn: Lsn(lsn), index_time: Ts(model::BEGIN), record }, "X:A");
    }
    let batch = batcher.take().unwrap().unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batcher.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    vec![bytes]
}

fn of_text(scratch: &Scratch) -> Vec<Target<'static>> {
    let path = scratch.file("fuzz.toml");
    let configuration = Box::new(move |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        drop(config::storage(&path).and_then(|options| options.check()));
    });
    let seeds = [
        "2024-08-08T23:54:15.030314667Z",
        "1723161255030314667",
        "-0.000000001",
        "189.98",
        "64M",
        "30d",
        "09:30-16:00",
        "X:A*",
        "fsync",
    ];
    vec![
        Target {
            name: "config",
            seeds: vec![
                include_bytes!("../../../../config/storage.toml").to_vec(),
                b"memtable-size = 7\n[compaction]\nruns-max = 3\n".to_vec(),
            ],
            fix: fix_nothing,
            run: configuration,
        },
        Target { name: "texts", seeds: seeds.map(|s| s.as_bytes().to_vec()).into(), fix: fix_nothing, run: Box::new(texts) },
    ]
}

/// Parses `bytes` as every kind of text that users enter.
fn texts(bytes: &[u8]) {
    drop(Name::new(bytes));
    let text = &*String::from_utf8_lossy(bytes);
    drop((text.parse::<Ts>(), text.parse::<Price>(), text.parse::<Size>(), text.parse::<Volume>()));
    drop((text.parse::<Durability>(), text.parse::<reader::At>(), text.parse::<bars::By>(), parse_duration(text)));
    drop((terminal::size(text), query::time(text)));
    drop(bars::Session::parse(text, "America/New_York"));
    drop(bars::Session::parse("09:30-16:00", text));
    compaction::retention::matches(text, "VENUE:NAME");
    for column in Depth10::SCHEMA_REF.columns.iter().chain(Trade::SCHEMA_REF.columns) {
        drop(column.parse(text, &mut vec![0; Depth10::SCHEMA_REF.words * 8]));
    }
}
