//! SIGKILL of storage and publishers at random moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Durability, InstrumentId, Lsn, PubSeq};
use tapestore::publisher::{PublishError, Publisher};
use tapestore::reader::{At, Reader};
use tapestore::record::{Gap, Trade};
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually, role};

pub(crate) fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// The seed of this run: `TAPE_SEED` or random; printed, so that a failure can be replayed.
pub(crate) fn seed() -> u64 {
    let seed = count(
        "TAPE_SEED",
        u64::from(std::process::id()) << 20 | u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_micros()),
    );
    println!("TAPE_SEED={seed}");
    seed
}

/// A thread that publishes without pause and is never restarted.
struct Feed {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    durable: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<(Publisher, Duration, u64)>,
}

impl Feed {
    fn start(mut publisher: Publisher) -> Feed {
        let (stop, published, durable) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let theirs = (stop.clone(), published.clone(), durable.clone());
        let thread = std::thread::spawn(move || {
            let (stop, published, durable) = theirs;
            let (mut seq, mut longest, mut refused) = (0u64, Duration::ZERO, 0u64);
            while !stop.load(Ordering::Acquire) {
                let trade = Trade { trade_id: seq + 1, instrument: InstrumentId(1), ts_recv: Ts(seq), ..Trade::default() };
                let began = Instant::now();
                match publisher.publish(&trade) {
                    Ok(number) => {
                        seq += 1;
                        assert_eq!(number, PubSeq(seq), "one epoch, one numbering");
                        published.store(seq, Ordering::Release);
                    }
                    Err(PublishError::Full { .. }) => refused += 1,
                    Err(e) => panic!("the publisher cannot continue: {e}"),
                }
                longest = longest.max(began.elapsed());
                if seq.is_multiple_of(16) {
                    durable.store(publisher.progress().durable.0, Ordering::Release);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            (publisher, longest, refused)
        });
        Feed { stop, published, durable, thread }
    }
}

/// Checks that the records from LSN `from` on are the publisher's, dense, stored once and intact; returns the last LSN.
fn verify(reader: &mut Reader, from: u64) -> u64 {
    let mut snapshot = eventually("a snapshot", || reader.snapshot(At::Appended).ok());
    for lsn in from..=snapshot.last().0 {
        let arrival = snapshot.arrival(Lsn(lsn)).unwrap().unwrap();
        assert_eq!((arrival.pub_seq, arrival.epoch.0), (PubSeq(lsn), 1), "record {lsn}");
        let row = snapshot.get(Lsn(lsn)).unwrap().unwrap_or_else(|| panic!("record {lsn} is missing"));
        assert_eq!(row.record.get::<Trade>().unwrap().trade_id, lsn);
    }
    snapshot.last().0
}

#[test]
fn storage_killed_at_random_loses_and_duplicates_nothing_and_the_publisher_continues() {
    let mut rng = SimRng::new(seed());
    let mut store = Store::serve();
    let feed = Feed::start(store.numbered_publisher(1, Durability::Fsync));
    let mut reader = store.reader();
    let (kills, mut checked) = (count("TAPE_KILLS", 200), 0u64);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_micros(rng.below(40_000)));
        let acknowledged = feed.durable.load(Ordering::Acquire);
        store.kill();
        store.start();
        let last = verify(&mut reader, checked + 1);
        assert!(last >= acknowledged, "kill {kill}: {acknowledged} acknowledged, {last} found");
        checked = last;
        let target = feed.published.load(Ordering::Acquire);
        eventually("progress of the publisher", || (feed.durable.load(Ordering::Acquire) >= target).then_some(()));
    }
    feed.stop.store(true, Ordering::Release);
    let (mut publisher, longest, refused) = feed.thread.join().unwrap();
    let progress = publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!(verify(&mut reader, 1), progress.durable.0);
    assert_eq!(progress.durable.0, feed.published.load(Ordering::Acquire));
    assert_eq!(publisher.take_lost(), []);
    // Detects a hang: a call is bounded by 5 ms plus scheduling delay.
    assert!(longest < Duration::from_secs(2), "a call took {longest:?}");
    println!(
        "{kills} kills: {} records, 0 lost, 0 duplicated; {} reattaches; longest call {longest:?}, {refused} refused with a full ring",
        progress.durable, progress.reattached
    );
    store.tape_ok(&["verify"]);
    assert!(store.terminate().success());
}

#[test]
fn publishers_killed_at_random_moments_leave_whole_records_and_nothing_in_shared_memory() {
    let mut rng = SimRng::new(seed());
    let mut store = Store::serve();
    let baseline = store.run_dir().bus_segments().unwrap().len();
    let kills = count("TAPE_PUBLISHER_KILLS", 40);
    for _ in 0..kills / 2 {
        let mut pair = [1, 2].map(|id: u16| role("publisher", &store.path, &[("TAPE_ROLE_PUBLISHER", id.to_string())]));
        std::thread::sleep(Duration::from_micros(30_000 + rng.below(60_000)));
        pair.iter_mut().for_each(|child| {
            child.kill();
        });
    }
    eventually("the janitor's cleanup", || {
        let segments = store.run_dir().bus_segments().unwrap();
        (segments.len() <= baseline).then_some(())
    });
    let mut snapshot = store.reader().snapshot(At::Appended).unwrap();
    let mut last = std::collections::HashMap::new();
    for lsn in 1..=snapshot.last().0 {
        let arrival = snapshot.arrival(Lsn(lsn)).unwrap().unwrap();
        let before = last.insert((arrival.publisher, arrival.epoch), arrival.pub_seq.0).unwrap_or(0);
        assert_eq!(arrival.pub_seq.0, before + 1);
        assert_eq!(snapshot.get(Lsn(lsn)).unwrap().unwrap().record.get::<Trade>().unwrap().trade_id, arrival.pub_seq.0);
    }
    println!("{kills} kills: {} records of {} epochs, all whole", snapshot.last(), last.len());
    assert!(last.len() as u64 > kills / 4, "too few publishers attached: {}", last.len());
    let instance = store.reader().control().instance();
    store.kill();
    store.start();
    let run_dir = store.run_dir();
    let stale = run_dir.bus_segments().unwrap().into_iter().filter(|s| s.starts_with(&run_dir.bus_prefix(instance))).count();
    assert_eq!(stale, 0, "the start-up sweep must remove the previous instance's segments");
    assert!(!run_dir.bus_root(instance).exists());
}

#[test]
fn a_publisher_killed_while_it_creates_a_bus_file_leaves_nothing() {
    let store = Store::serve();
    let nodes = store.run_dir().bus_root(store.reader().control().instance()).join("nodes");
    let processes = || -> Vec<std::path::PathBuf> {
        std::fs::read_dir(&nodes).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect()
    };
    let before = processes();
    let mut child = role("publisher", &store.path, &[("TAPE_ROLE_PUBLISHER", "1".to_owned())]);
    eventually("records", || (store.reader().control().applied() > Lsn(100)).then_some(()));
    let of_child = processes().into_iter().find(|p| !before.contains(p)).unwrap();
    // iceoryx2 creates a file empty and writable until it is complete.
    let tag = std::fs::read_dir(&of_child).unwrap().map(|e| e.unwrap().path());
    let tag = tag.into_iter().find(|p| p.extension().is_some_and(|e| e == "service_tag")).unwrap();
    let name = tag.file_name().unwrap().to_str().unwrap().replace(['a', 'b', '1', '2'], "3");
    std::fs::write(of_child.join(name), "").unwrap();
    child.kill();
    eventually("the janitor's cleanup", || (processes() == before).then_some(()));
}

#[test]
fn leftovers_of_a_publisher_killed_while_it_joins_the_bus_are_removed() {
    let store = Store::serve();
    let reader = store.reader();
    let nodes = store.run_dir().bus_root(reader.control().instance()).join("nodes");
    let all = || {
        let mut names: Vec<_> = std::fs::read_dir(&nodes).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = all();
    // The state after a kill between a node's first file and the lock that marks it as alive.
    let of_storage = before.iter().filter_map(|n| n.to_str()).find(|n| n.ends_with(".node_monitor")).unwrap();
    let (prefix, _) = of_storage.rsplit_once('_').and_then(|(head, _)| head.rsplit_once('_')).unwrap();
    let id = "79228574063502928140459582465";
    std::fs::create_dir(nodes.join(id)).unwrap();
    let half_made = nodes.join(format!("{prefix}_{id}.node_monitor_context"));
    std::fs::write(&half_made, "").unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1);
    for path in [&nodes.join(id), &half_made] {
        std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    eventually("the janitor's cleanup", || (all() == before).then_some(()));
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    publisher.publish(&Trade { instrument: InstrumentId(1), ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

#[test]
fn an_unannounced_segment_of_a_killed_publisher_is_removed_and_others_stay() {
    let store = Store::serve();
    let (run_dir, instance) = (store.run_dir(), store.reader().control().instance());
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    publisher.publish(&Trade { instrument: InstrumentId(1), ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1);
    let segments = || run_dir.bus_segments().unwrap().into_iter().filter(|s| s.starts_with(&run_dir.bus_prefix(instance)));
    let path = |name: &str| std::path::Path::new("/dev/shm").join(name);
    let before: Vec<_> = segments().collect();
    // Segments of live processes stay at any age.
    before.iter().for_each(|s| std::fs::File::open(path(s)).unwrap().set_modified(long_ago).unwrap());
    let live = before.iter().find(|s| s.ends_with(".data")).unwrap();
    let (head, _) = live.rsplit_once('_').unwrap();
    let dead = format!("{head}_{}.data", (1u128 << 96) + (u128::from(u32::MAX - 1) << 64) + 5);
    std::fs::write(path(&dead), "").unwrap();
    std::fs::File::open(path(&dead)).unwrap().set_modified(long_ago).unwrap();
    eventually("the janitor's cleanup", || (!path(&dead).exists()).then_some(()));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(segments().collect::<Vec<_>>(), before);
    publisher.publish(&Trade { instrument: InstrumentId(1), ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

#[test]
fn a_reader_follows_across_restarts_of_storage() {
    let mut store = Store::serve();
    let feed = Feed::start(store.numbered_publisher(1, Durability::Os));
    let mut follow = store.reader().follow(Lsn(1), At::Appended);
    let mut held = store.reader().snapshot(At::Appended).unwrap();
    let (mut next, deadline) = (1u64, Instant::now() + PATIENCE);
    for round in 1..=5u64 {
        while next < round * 3000 {
            match follow.poll() {
                Ok(Some(row)) => {
                    assert_eq!(row.lsn, Lsn(next));
                    assert_eq!(row.record.get::<Trade>().unwrap().trade_id, next);
                    next += 1;
                }
                Ok(None) => follow.wait(Duration::from_millis(5)),
                Err(e) => assert!(crate::fixture::is_down(&e), "{e}"),
            }
            assert!(Instant::now() < deadline, "record {next} does not arrive");
        }
        store.kill();
        store.start();
    }
    // The snapshot taken at the beginning is unchanged.
    let last = held.last();
    assert!((1..=last.0).all(|l| held.get(Lsn(l)).unwrap().is_some()) && held.get(last.next()).unwrap().is_none());
    feed.stop.store(true, Ordering::Release);
    feed.thread.join().unwrap();
}

#[test]
fn at_level_none_every_record_is_stored_or_reported_lost_and_a_gap_is_stored() {
    let mut rng = SimRng::new(seed());
    let mut store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::None);
    let stop = Arc::new(AtomicBool::new(false));
    let theirs = stop.clone();
    let thread = std::thread::spawn(move || {
        let (mut published, mut lost, mut epochs) = (0u64, Vec::new(), vec![publisher.progress().epoch.0]);
        while !theirs.load(Ordering::Acquire) {
            let trade =
                Trade { trade_id: published + 1, instrument: InstrumentId(1), ts_recv: Ts(published), ..Trade::default() };
            if publisher.publish(&trade).is_ok() {
                published += 1;
            }
            if published.is_multiple_of(16) {
                lost.extend(publisher.take_lost());
                epochs.push(publisher.progress().epoch.0);
                std::thread::sleep(Duration::from_micros(400));
            }
        }
        publisher.flush(Durability::Fsync, PATIENCE).unwrap();
        lost.extend(publisher.take_lost());
        (published, lost)
    });
    for _ in 0..count("TAPE_NONE_KILLS", 15) {
        std::thread::sleep(Duration::from_micros(10_000 + rng.below(40_000)));
        store.kill();
        store.start();
    }
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Release);
    let (published, lost) = thread.join().unwrap();
    let mut snapshot = store.reader().snapshot(At::Durable).unwrap();
    let (mut ids, mut gaps) = (std::collections::BTreeSet::new(), Vec::new());
    for lsn in 1..=snapshot.last().0 {
        let row = snapshot.get(Lsn(lsn)).unwrap().unwrap();
        match (row.record.get::<Trade>(), row.record.get::<Gap>()) {
            (Some(trade), _) => assert!(ids.insert(trade.trade_id), "record {} is stored twice", trade.trade_id),
            (None, Some(gap)) => gaps.push((gap.epoch, gap.first_pub_seq, gap.last_pub_seq)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gaps, lost.iter().map(|l| (l.epoch, l.first, l.last)).collect::<Vec<_>>(), "a gap is stored for each loss");
    let missing = lost.iter().map(|l| l.last.0 - l.first.0 + 1).sum::<u64>();
    assert_eq!(ids.len() as u64 + missing, published, "each record is either stored or lost");
    println!("{published} published, {} stored, {missing} lost in {} gaps, each reported", ids.len(), lost.len());
}
