//! Owns: tests of the plan on random histories, and of merges against a model.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::merge::{Job, Pace, Unpaced, run};
use super::retention::{Cutoff, KEPT, Rule, Rules, matches};
use super::*;
use tapestore::disk::Disk;
use tapestore::disk::sim::{Fault, SimDisk, SimRng};
use tapestore::lsn::{Epoch, InstrumentId, PubSeq, PublisherId};
use tapestore::record::{Record, Trade, index_time, schema};
use tapestore::sstable::{self, Origin, Spec, Table, Writer};

const HOUR: u64 = Window::LENGTHS[0];
const DAY: u64 = Window::LENGTHS[1];
const START: u64 = 20_000 * DAY;
const STORE: u128 = 9;

fn state() -> State {
    let mut state = State::begin(STORE);
    state.checkpoint.ingest_ts = Ts(u64::MAX - 1);
    state
}

fn put(state: &mut State, meta: FileMeta) {
    state.next_id = state.next_id.max(meta.id + 1);
    state.files.insert(meta.id, meta);
}

fn flushed(id: u64, window: Window, rows: u64, lsn: (u64, u64)) -> FileMeta {
    let time = (window.from, Ts(window.from.0 + window.len / 2));
    FileMeta { id, kind: Trade::KIND, window, rows, len: rows * 70 + 4096, crc: 0, time, lsn: (Lsn(lsn.0), Lsn(lsn.1)) }
}

fn hour(n: u64) -> Window {
    Window { from: Ts(START + n * HOUR), len: HOUR }
}

/// Applies the merge to the manifest, without files.
///
/// Its files are disjoint in LSN, as those of one instrument are, or overlap.
fn carry_out(state: &mut State, merge: &Merge, rows_max: u64) -> u64 {
    let is_disjoint = merge.inputs.iter().map(|f| f.rows).sum::<u64>().is_multiple_of(2);
    let (mut left, first) = (merge.rows(), state.next_id);
    let lsn = (merge.inputs.iter().map(|f| f.lsn.0).min().unwrap(), merge.inputs.iter().map(|f| f.lsn.1).max().unwrap());
    let time = (merge.inputs.iter().map(|f| f.time.0).min().unwrap(), merge.inputs.iter().map(|f| f.time.1).max().unwrap());
    for file in &merge.inputs {
        state.files.remove(&file.id);
    }
    let ids = Job::ids(merge, rows_max);
    for id in first..first + ids {
        let rows = left.min(rows_max);
        left -= rows;
        let span = (lsn.1.0 - lsn.0.0) / ids;
        let part = (lsn.0.0 + (id - first) * span, lsn.0.0 + (id - first + 1) * span - 1);
        let lsn = if is_disjoint && ids > 1 { part } else { (lsn.0.0, lsn.1.0) };
        put(state, FileMeta { time, ..flushed(id, merge.window, rows, lsn) });
    }
    merge.bytes()
}

/// Merges until nothing is due; returns the bytes written.
fn settle(state: &mut State, options: &Options) -> u64 {
    let mut written = 0;
    for _ in 0..10_000 {
        let merges = plan(state, options, newest(state), &BTreeSet::new());
        let Some(merge) = merges.first() else { return written };
        assert!(merge.inputs.len() > 1, "a file is not merged with itself: {merge:?}");
        let largest = merge.inputs.iter().map(|f| f.len).max().unwrap();
        if merge.why == Why::Runs {
            assert!((merge.bytes() - largest) * WORTH >= largest, "the merge rewrites too much: {merge:?}");
        }
        let (first, last) = (merge.inputs[0].lsn.0, merge.inputs.iter().map(|f| f.lsn.1).max().unwrap());
        let between = |f: &FileMeta| f.kind == merge.kind && f.window == merge.window && f.lsn.0 > first && f.lsn.1 < last;
        let ids: BTreeSet<u64> = merge.inputs.iter().map(|f| f.id).collect();
        assert!(state.files.values().all(|f| !between(f) || ids.contains(&f.id)), "only neighbours are merged");
        written += carry_out(state, merge, options.rows_max);
    }
    panic!("compaction does not end");
}

fn runs_of(state: &State, window: Window) -> u64 {
    Group::new(window, state.files.values().filter(|f| f.window == window).copied().collect(), 100_000).runs()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_window_keeps_at_most_eight_disjoint_runs_and_compaction_ends(seed in any::<u64>(), flushes in 10u64..400) {
        let (mut rng, options) = (SimRng::new(seed), Options { rows_max: 100_000, ..Options::default() });
        let (mut state, mut lsn, mut now, mut flushed_bytes, mut written) = (state(), 1, 0u64, 0, 0);
        for _ in 0..flushes {
            now += rng.below(40);
            let current = now / 60;
            let mut windows = vec![current];
            // Late records, and the previous hour when it has just ended.
            if rng.below(5) == 0 {
                windows.push(rng.below(current + 1));
            }
            if now % 60 < 10 && current > 0 {
                windows.push(current - 1);
            }
            windows.sort_unstable();
            windows.dedup();
            let rows = 1 + rng.below(20_000);
            for window in windows {
                let here = if window == current { rows } else { 1 + rng.below(50) };
                let meta = flushed(state.next_id, hour(window), here, (lsn, lsn + 2 * rows));
                flushed_bytes += meta.len;
                put(&mut state, meta);
            }
            lsn += 2 * rows + 1;
            written += settle(&mut state, &options);
        }
        let rows: u64 = state.files.values().map(|f| f.rows).sum();
        prop_assert!(rows > 0);
        for window in state.files.values().map(|f| f.window).collect::<BTreeSet<_>>() {
            prop_assert!(runs_of(&state, window) <= 8, "{window:?}");
        }
        prop_assert!(written <= 12 * flushed_bytes, "write amplification {}", written as f64 / flushed_bytes as f64);
    }
}

#[test]
fn a_plan_depends_on_the_version_alone() {
    let mut version = state();
    for i in 0..30u64 {
        put(&mut version, flushed(i + 1, hour(i % 3), 100 + i, (i * 1000 + 1, i * 1000 + 900)));
    }
    let options = Options::default();
    let first = plan(&version, &options, newest(&version), &BTreeSet::new());
    assert_eq!(first.len(), 3);
    assert!(first.iter().all(|m| m.why == Why::Runs && m.window.len == HOUR), "{first:?}");
    assert_eq!(plan(&version.clone(), &options, newest(&version), &BTreeSet::new()), first);
    let skip = BTreeSet::from([first[0].inputs[0].id]);
    assert_eq!(plan(&version, &options, newest(&version), &skip).len(), 2);
    // A day later the hours become one run.
    put(&mut version, flushed(99, hour(26), 1, (100_000, 100_000)));
    let later = plan(&version, &options, newest(&version), &BTreeSet::new());
    assert_eq!((later.len(), later[0].window.len, later[0].inputs.len(), later[0].why), (1, DAY, 30, Why::Over));
}

#[test]
fn files_of_one_instrument_that_are_full_are_not_merged_again() {
    let mut version = state();
    for i in 0..40u64 {
        put(&mut version, flushed(i + 1, hour(0), 60_000, (i * 60_000 + 1, (i + 1) * 60_000)));
    }
    let options = Options { rows_max: 100_000, ..Options::default() };
    settle(&mut version, &options);
    for i in 40..80u64 {
        let id = version.next_id;
        put(&mut version, flushed(id, hour(0), 10_000, (i * 60_000 + 1, (i + 1) * 60_000)));
        settle(&mut version, &options);
    }
    assert!(version.files.values().filter(|f| f.rows < 100_000).count() <= 8, "{:?}", version.files);
}

#[test]
fn a_clock_that_is_ahead_drops_nothing_and_one_that_has_jumped_suspends_expiry() {
    let mut version = state();
    for i in 0..4u64 {
        put(&mut version, flushed(i + 1, hour(i), 100, (i * 100 + 1, i * 100 + 100)));
    }
    // A record of a clock that was 40 days ahead, ingested at that time too.
    put(&mut version, flushed(9, hour(40 * 24), 1, (401, 401)));
    version.checkpoint.ingest_ts = Ts(START + 40 * DAY);
    let rules = Rules::new(&[rule("trade", None, Some("30d"), None), rule("trade", Some("*"), Some("30d"), None)]).unwrap();
    assert_eq!(rules.drops(&version).len(), 4, "without the host's clock, the records' times count");
    assert!(rules.at(Ts(START + DAY)).drops(&version).is_empty(), "the host's clock is right again");
    assert!(rules.held().drops(&version).is_empty() && rules.held().cut(Trade::KIND, &version, &[]).before.is_empty());
}

#[test]
fn a_late_record_does_not_rewrite_its_day() {
    let mut version = state();
    put(&mut version, flushed(1, Window { from: Ts(START), len: DAY }, 1_000_000, (1, 1_000_000)));
    put(&mut version, flushed(2, hour(40), 10, (1_000_001, 1_000_010)));
    let options = Options::default();
    for i in 0..40u64 {
        let id = version.next_id;
        put(&mut version, flushed(id, hour(3), 5, (2_000_000 + i * 10, 2_000_009 + i * 10)));
        settle(&mut version, &options);
        assert!(version.files.contains_key(&1), "after {i} late files");
    }
    let day = Window { from: Ts(START), len: DAY };
    let group = Group::new(day, version.files.values().filter(|f| f.window.from < Ts(START + DAY)).copied().collect(), 4 << 20);
    assert!(group.runs() <= 8, "{}", group.runs());
}

/// Rows of the model.
type Rows = BTreeMap<(InstrumentId, Ts, Lsn), (Ts, Vec<u64>)>;

fn origin(lsn: Lsn) -> Origin {
    let publisher = lsn.0 / 7 % 3;
    (PublisherId(publisher as u16 + 1), Epoch(2), PubSeq(lsn.0 / 21 * 7 + lsn.0 % 7 + 1))
}

fn rows(seed: u64, count: u64, first: u64) -> Rows {
    let mut rng = SimRng::new(seed);
    let mut all = Rows::new();
    for i in 0..count {
        let instrument = InstrumentId(if rng.below(3) > 0 { 5 } else { 1 + rng.below(40) as u32 });
        let ingest = Ts(START + i * 1000 + 70);
        let own = if rng.below(50) == 0 { Ts::NULL } else { Ts(START + rng.below(count) * 900) };
        let trade = Trade { instrument, ts_recv: own, trade_id: rng.below(count), sequence: i as u32, ..Trade::default() };
        let lsn = Lsn(first + i);
        all.insert((instrument, index_time(own, ingest).0, lsn), (ingest, trade.words().to_vec()));
    }
    all
}

fn spec(id: u64, stores_reserved: bool) -> Spec {
    let schema = schema(Trade::KIND).unwrap();
    Spec { store_id: STORE, id, schema, window: hour(0), stores_reserved }
}

fn write_file(disk: &dyn Disk, dir: &Path, rows: &Rows, id: u64) -> FileMeta {
    let mut writer = Writer::create(disk, dir, spec(id, id.is_multiple_of(3))).unwrap();
    let mut last = None;
    for ((instrument, _, lsn), (ingest, words)) in rows {
        if last.replace(*instrument) != Some(*instrument) {
            writer.begin_series(*instrument, rows.keys().filter(|k| k.0 == *instrument).count() as u32).unwrap();
        }
        writer.push(*lsn, *ingest, words).unwrap();
    }
    writer.finish(origin).unwrap()
}

fn job(seed: u64, files: u64) -> (SimDisk, Rows, Job) {
    let (disk, dir) = (SimDisk::new(), Path::new("/sst"));
    let (mut all, mut inputs) = (Rows::new(), Vec::new());
    let mut rng = SimRng::new(seed);
    let mut first = 1;
    for id in 1..=files {
        let count = 1 + rng.below(3000);
        let mine = rows(rng.next_u64(), count, first);
        first += count + rng.below(100);
        inputs.push(write_file(&disk, dir, &mine, id));
        all.extend(mine);
    }
    disk.sync_dir(dir).unwrap();
    let merge = Merge { kind: Trade::KIND, window: hour(0), inputs, why: Why::Runs };
    (disk, all, Job { store_id: STORE, merge, first_id: 100, rows_max: 2500, cut: Cutoff::default() })
}

/// Reads the rows of the files `added`, in order.
fn read(disk: &SimDisk, added: &[FileMeta]) -> Rows {
    let mut found = Rows::new();
    for meta in added {
        let table = Table::open(disk, Path::new("/sst"), *meta).unwrap();
        assert_eq!(table.verify(|_| Ok(())).unwrap(), meta.rows);
        for &place in table.places(Lsn(0), Lsn(u64::MAX)).unwrap() {
            let mut words = Vec::new();
            let (lsn, time) = table.row(place, &mut words).unwrap();
            let arrival = table.arrival(lsn).unwrap().unwrap();
            assert_eq!((arrival.publisher, arrival.epoch, arrival.pub_seq), origin(lsn));
            let trade = tapestore::record::split(&words).next().unwrap().unwrap();
            let instrument = trade.get::<Trade>().unwrap().instrument;
            assert!(found.insert((instrument, time, lsn), (arrival.ingest_ts, words)).is_none(), "a row is stored once");
        }
    }
    found
}

#[test]
fn a_merge_holds_every_row_of_its_inputs_once_with_its_origin() {
    for seed in 0..12 {
        let (disk, all, job) = job(seed, 1 + seed);
        let merged = run(&disk, Path::new("/sst"), &job, &mut Unpaced).unwrap().unwrap();
        assert_eq!((merged.expired, merged.removed.len()), (0, 1 + seed as usize));
        assert!(merged.added.iter().all(|f| f.rows <= 2500) && merged.added.len() as u64 <= Job::ids(&job.merge, 2500));
        assert!(read(&disk, &merged.added) == all, "seed {seed}");
        // The files of the run do not overlap.
        let keys = |f: &FileMeta| read(&disk, &[*f]).keys().map(|k| (k.0, k.1)).collect::<Vec<_>>();
        assert!(merged.added.windows(2).all(|w| keys(&w[0]).last() <= keys(&w[1]).first()));
    }
}

#[test]
fn a_merge_leaves_out_expired_rows() {
    let (disk, mut all, mut job) = job(3, 4);
    let (one, two) = (InstrumentId(5), InstrumentId(8));
    job.cut.before = BTreeMap::from([(one, Ts(START + 900_000)), (two, Ts(u64::MAX))]);
    let merged = run(&disk, Path::new("/sst"), &job, &mut Unpaced).unwrap().unwrap();
    let before = all.len() as u64;
    all.retain(|(i, t, _), _| (*i != one || *t >= Ts(START + 900_000)) && *i != two);
    assert!(merged.expired > 0 && merged.expired == before - all.len() as u64);
    assert!(read(&disk, &merged.added) == all);
}

#[test]
fn a_merge_that_fails_or_is_stopped_leaves_no_file() {
    struct Stops(u32);
    impl Pace for Stops {
        fn written(&mut self, _bytes: u64) -> bool {
            self.0 -= 1;
            self.0 > 0
        }
    }
    let (disk, _, mut job) = job(5, 6);
    let there = disk.list(Path::new("/sst")).unwrap();
    assert_eq!(run(&disk, Path::new("/sst"), &job, &mut Stops(4)).unwrap(), None);
    assert_eq!(disk.list(Path::new("/sst")).unwrap(), there);
    let calls = disk.calls();
    run(&disk, Path::new("/sst"), &job, &mut Unpaced).unwrap().unwrap();
    let calls = disk.calls() - calls;
    assert!(calls > 10, "{calls}");
    job.first_id = 200;
    let there = disk.list(Path::new("/sst")).unwrap();
    for call in 1..=calls {
        disk.set_fault(disk.calls() + call, Fault::Once(std::io::ErrorKind::StorageFull));
        assert!(run(&disk, Path::new("/sst"), &job, &mut Unpaced).is_err(), "call {call} of {calls}");
        assert_eq!(disk.list(Path::new("/sst")).unwrap(), there, "call {call}");
    }
    // A damaged input is named, and its rows are not used.
    let damaged = job.merge.inputs[2];
    let path = Path::new("/sst").join(sstable::file_name(damaged.kind, damaged.id));
    let mut bytes = disk.contents(&path).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 1;
    disk.overwrite(&path, bytes);
    disk.set_fault(u64::MAX, Fault::PowerLoss);
    match run(&disk, Path::new("/sst"), &job, &mut Unpaced) {
        Err(Error::Corrupt { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.list(Path::new("/sst")).unwrap(), there);
}

fn rule(kind: &str, instruments: Option<&str>, keep: Option<&str>, bytes: Option<u64>) -> Rule {
    Rule { kind: kind.to_owned(), instruments: instruments.map(str::to_owned), keep: keep.map(str::to_owned), bytes }
}

#[test]
fn expired_files_are_dropped_whole_and_the_oldest_first() {
    let mut version = state();
    for i in 0..48u64 {
        put(&mut version, flushed(i + 1, hour(i), 100, (i * 100 + 1, i * 100 + 100)));
    }
    version.checkpoint.ingest_ts = Ts(u64::MAX - 1);
    let drops =
        |rules: &[Rule], version: &State| Rules::new(rules).unwrap().drops(version).iter().map(|d| d.file.id).collect::<Vec<_>>();
    assert_eq!(drops(&[rule("quote", None, Some("1h"), None)], &version), Vec::<u64>::new());
    // The newest record is in the middle of hour 47, and each file's last row is in the middle of its hour.
    assert_eq!(drops(&[rule("trade", None, Some("40h"), None)], &version), (1..=7).collect::<Vec<_>>());
    let each = version.files[&1].len;
    assert_eq!(drops(&[rule("*", None, None, Some(46 * each))], &version), vec![1, 2]);
    assert_eq!(drops(&[rule("*", None, Some("40h"), Some(46 * each))], &version).len(), 7);
    // A host's clock that was ahead does not age records; one that was behind ages fewer.
    version.checkpoint.ingest_ts = Ts(START + 20 * HOUR);
    assert_eq!(drops(&[rule("trade", None, Some("19h"), None)], &version), vec![1]);
    assert!(Rules::new(&[rule("trade", None, None, None)]).is_err());
    assert!(Rules::new(&[rule("trade", Some("X*"), None, Some(1))]).is_err());
    assert!(Rules::new(&[rule("", None, Some("1d"), None)]).is_err());
    assert!(Rules::new(&[rule("trade", None, Some("1y"), None)]).is_err());
}

#[test]
fn every_text_lists_the_kinds_that_a_rule_for_all_kinds_does_not_cover() {
    let (last, others) = KEPT.split_last().unwrap();
    let list = format!("{} and {last}", others.join(", "));
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    for path in ["config/storage.toml", "services/src/compact.rs", "src/docs/operations.md", "src/engine/compaction/retention.rs"]
    {
        let text = std::fs::read_to_string(root.join(path)).unwrap();
        // Without the marks of comments, and on one line.
        let text = text.split_whitespace().filter(|word| !["#", "///"].contains(word)).collect::<Vec<_>>().join(" ");
        assert!(text.contains(&list), "{path} does not list '{list}'");
    }
}

#[test]
fn instruments_are_chosen_by_patterns_of_their_names() {
    for (pattern, yes, no) in [
        ("XNAS:*", "XNAS:AAPL", "XNYS:AAPL"),
        ("*:ES*", "XCME:ESZ6", "XCME:NQZ6"),
        ("*", "A", ""),
        ("A*B*C", "AxBxC", "AxCxB"),
        ("AB", "AB", "ABC"),
        ("A*A", "AA", "A"),
    ] {
        assert!(matches(pattern, yes), "{pattern} {yes}");
        assert!(!matches(pattern, no) || pattern == "*", "{pattern} {no}");
    }
    let mut version = state();
    put(&mut version, flushed(1, hour(0), 1, (1, 1)));
    version.checkpoint.ingest_ts = Ts(u64::MAX - 1);
    let names: Vec<tapestore::record::Name> = ["X:A", "Y:B", "X:C"].iter().map(|n| n.parse().unwrap()).collect();
    let rules = Rules::new(&[rule("trade", Some("X:*"), Some("0s"), None)]).unwrap();
    let cut = rules.cut(Trade::KIND, &version, &names);
    assert_eq!(cut.before.keys().copied().collect::<Vec<_>>(), vec![InstrumentId(1), InstrumentId(3)]);
    assert!(rules.drops(&version).is_empty(), "a rule for instruments drops no files");
}
