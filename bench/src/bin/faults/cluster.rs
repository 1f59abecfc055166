//! Owns: the campaigns `failover`, `partition` and `minority-corrupt`: a store on three hosts, of which the leader dies,
//! links break and files of one are damaged, while a publisher goes on.
//!
//! What must hold: what was acknowledged at `quorum` is in the end on every host, once and in order; the hosts are level
//! within ten seconds after everything is well again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench::hosts::{Hosts, Shape, eventually};
use bench::{histogram, show};
use hdrhistogram::Histogram;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::{InstrumentId, Level, Lsn};
use tapestore::publisher::Publisher;
use tapestore::reader::Tally;
use tapestore::record::{RecordRef, Trade};

use crate::report::Report;

/// What the hosts have to be level within, once all is well.
const CONVERGED: Duration = Duration::from_secs(10);

/// A publisher that never stops: what it has sent.
struct Stream<'a> {
    over: &'a AtomicBool,
    sent: &'a AtomicU64,
}

impl Stream<'_> {
    /// Publishes until it is over, and waits until everything is committed.
    fn run(&self, publisher: &mut Publisher) -> Result<Tally, String> {
        let mut tally = Tally::default();
        let mut id = 0;
        while !self.over.load(Ordering::Relaxed) {
            let trade = Trade { trade_id: id, instrument: InstrumentId(1), ..Trade::default() };
            let record = RecordRef::of(&trade);
            if publisher.publish_ref(record).is_ok() {
                id += 1;
                tally.add(Lsn(id), record.words());
                self.sent.store(id, Ordering::Relaxed);
            }
            if id.is_multiple_of(16) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        publisher.flush(Level::Quorum, Duration::from_secs(60)).map_err(|e| e.to_string())?;
        if !publisher.take_lost().is_empty() {
            return Err("the publisher was told of lost records".to_owned());
        }
        Ok(tally)
    }
}

/// Waits until all hosts that run have `records`; how long that took.
fn level(hosts: &Hosts, records: u64) -> Result<Duration, String> {
    let began = Instant::now();
    let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
    eventually("the hosts to be level", || nodes.iter().all(|n| hosts.committed(*n) >= Lsn(records)).then_some(()))?;
    Ok(began.elapsed())
}

/// Runs `rounds` of `round` beside a publisher on host `at`, and compares all hosts in the end.
fn beside(
    hosts: &mut Hosts,
    rounds: u64,
    report: &mut Report,
    again: &str,
    mut round: impl FnMut(&mut Hosts, u64, u64) -> Result<(), String>,
) -> Result<(), String> {
    let leader = hosts.leader()?;
    let at = leader % hosts.hosts.len() as u64 + 1;
    let mut publisher = hosts.publisher(at, 1, Level::Quorum)?;
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let stream = Stream { over: &over, sent: &sent };
    let tally = std::thread::scope(|scope| {
        let sender = scope.spawn(|| stream.run(&mut publisher));
        for n in 0..rounds {
            report.add(round(hosts, n, at), again);
        }
        over.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| "the publisher panicked".to_owned())?
    })?;
    drop(publisher);
    let took = level(hosts, tally.count)?;
    if took > CONVERGED {
        return Err(format!("the hosts are level only after {took:?}"));
    }
    let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
    for node in nodes {
        hosts.stop(node);
        let held = tape_services::demo::stored(&hosts.host(node).store).map_err(|e| e.to_string())?;
        if (held.count, held.checksum) != (tally.count, tally.checksum) {
            return Err(format!(
                "node {node} holds {} records, checksum {:08x}; acknowledged were {}, checksum {:08x}",
                held.count, held.checksum, tally.count, tally.checksum
            ));
        }
    }
    report.fact(format!("{} records, each once and in order on every host", tally.count));
    Ok(())
}

fn print_times(report: &mut Report, what: &str, h: &Histogram<u64>) {
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| show(h.value_at_quantile(q)));
    report.fact(format!("{what}: p50 {p50}, p90 {p90}, p99 {p99}, max {} of {}", show(h.max()), h.len()));
}

/// The processes of the leader's host are killed `n` times.
pub(crate) fn failover(n: u64, seed: u64) -> Report {
    let mut report = Report::new("failover");
    let mut hosts = Hosts::start(Shape::default());
    let mut times = histogram();
    let again = format!("cargo run --release -p bench --bin faults -- failover --n {n} --seed {seed}");
    let outcome = beside(&mut hosts, n, &mut report, &again, |hosts, _, at| {
        let mut leader = hosts.leader()?;
        if leader == at {
            // The publisher's own host stays: another one leads, and dies.
            let next = at % hosts.hosts.len() as u64 + 1;
            eventually("the lead to be handed over", || {
                let asked = tapestore::consensus::message::Command::Transfer(tapestore::lsn::NodeId(next));
                hosts.ask(at, asked).ok();
                (hosts.leader_now(Some(at)) == Some(next)).then_some(())
            })?;
            leader = next;
        }
        let began = Instant::now();
        hosts.kill(leader);
        eventually("another leader", || hosts.leader_now(Some(leader)))?;
        // What was on the way has arrived by now: from here on it is the new leader that commits.
        let before = hosts.committed(at);
        eventually("the new leader's first record", || (hosts.committed(at) > before).then_some(()))?;
        times.record(began.elapsed().as_nanos() as u64).map_err(|e| e.to_string())?;
        hosts.start_host(leader);
        let all = hosts.committed(at).0;
        level(hosts, all).map(drop)
    });
    if let Err(what) = outcome {
        report.fail(what, &again);
    }
    print_times(&mut report, "kill to the new leader's first committed record", &times);
    report
}

/// Links between the hosts break `n` times.
pub(crate) fn partition(n: u64, seed: u64) -> Report {
    let mut report = Report::new("partition");
    let mut rng = SimRng::new(seed);
    let mut hosts = Hosts::start(Shape::default());
    let mut times = histogram();
    let again = format!("cargo run --release -p bench --bin faults -- partition --n {n} --seed {seed}");
    let mut kinds = [0u64; 4];
    let outcome = beside(&mut hosts, n, &mut report, &again, |hosts, _, at| {
        let leader = hosts.leader()?;
        let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
        let kind = rng.below(4) as usize;
        kinds[kind] += 1;
        // The leader alone, or a follower; both ways, one way or the other.
        let victim = if kind < 3 { leader } else { leader % nodes.len() as u64 + 1 };
        let is_cut = rng.below(2) == 0;
        for other in nodes.iter().filter(|o| **o != victim) {
            let mut links = Vec::new();
            if kind != 2 {
                links.push(hosts.speaks(victim, *other));
            }
            if kind != 1 {
                links.push(hosts.speaks(*other, victim));
            }
            links.iter().for_each(|l| if is_cut { &l.cut } else { &l.frozen }.store(true, Ordering::Relaxed));
        }
        std::thread::sleep(Duration::from_millis(200 + rng.below(1_500)));
        hosts.heal();
        let began = Instant::now();
        // Level means level with what was sent after all was well again.
        let before = hosts.committed(at);
        eventually("records after it is over", || (hosts.committed(at) > before).then_some(()))?;
        let target = hosts.committed(at).0;
        level(hosts, target)?;
        times.record(began.elapsed().as_nanos() as u64).map_err(|e| e.to_string())?;
        if began.elapsed() > CONVERGED { Err(format!("level only {:?} after it was over", began.elapsed())) } else { Ok(()) }
    });
    if let Err(what) = outcome {
        report.fail(what, &again);
    }
    let [both, from, to, follower] = kinds;
    report.fact(format!("leader cut off {both}, not heard {from}, deaf {to}; follower cut off {follower} times"));
    print_times(&mut report, "until all were level again", &times);
    report
}

/// Files of one host are damaged `n` times: it must not take part with them, and is replaced.
pub(crate) fn minority_corrupt(n: u64, seed: u64) -> Report {
    let mut report = Report::new("minority-corrupt");
    let mut rng = SimRng::new(seed);
    let mut hosts = Hosts::start(Shape::default());
    let again = format!("cargo run --release -p bench --bin faults -- minority-corrupt --n {n} --seed {seed}");
    let (mut refused, mut filled, mut replaced) = (0u64, 0u64, 0u64);
    let outcome = beside(&mut hosts, n, &mut report, &again, |hosts, _, at| {
        let leader = hosts.leader()?;
        let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).filter(|n| *n != at).collect();
        let victim = nodes[rng.below(nodes.len() as u64) as usize];
        let enough = hosts.committed(leader).0 + 500;
        eventually("records to damage", || (hosts.committed(victim).0 > enough).then_some(()))?;
        // In order, so that everything in its log is known to be durable.
        hosts.stop(victim);
        let store = hosts.host(victim).store.clone();
        let what = rng.below(3);
        let path = match what {
            0 => store.join("raft.meta"),
            1 => store.join("store.meta"),
            _ => {
                let mut segments: Vec<_> = std::fs::read_dir(store.join("wal")).unwrap().flatten().map(|e| e.path()).collect();
                segments.retain(|p| p.extension().is_some_and(|e| e == "wal"));
                segments.sort();
                segments.swap_remove(rng.below(segments.len() as u64) as usize)
            }
        };
        let mut bytes = std::fs::read(&path).unwrap();
        let range = if what < 2 { bytes.len() } else { bytes.len().min(200 << 10) };
        for _ in 0..1 + rng.below(8) {
            let at = rng.below(range as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        std::fs::write(&path, bytes).unwrap();
        hosts.start_host(victim);
        // It refuses to start, or what was changed does not matter and it takes part as before.
        let target = hosts.committed(at).0;
        let refuses = eventually("the damaged host to refuse or to take part", || {
            if hosts.has_ended(victim) {
                return Some(true);
            }
            (hosts.committed(victim).0 > target).then_some(false)
        })?;
        if refuses {
            refused += 1;
            let from = hosts.leader()?;
            // Who has lost `raft.meta` does not know what it has promised.
            match hosts.fill(victim, from) {
                Ok(()) => filled += 1,
                Err(_) if what == 0 => {
                    hosts.replace(victim, from)?;
                    replaced += 1;
                }
                Err(why) => return Err(why),
            }
        }
        let target = hosts.committed(at).0;
        level(hosts, target).map(drop)
    });
    if let Err(what) = outcome {
        report.fail(what, &again);
    }
    report.fact(format!(
        "{refused} damaged hosts refused to start, {filled} were filled from the leader, {replaced} replaced under another number"
    ));
    report
}
