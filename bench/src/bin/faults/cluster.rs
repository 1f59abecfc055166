//! Owns: the campaigns `failover`, `partition` and `minority-corrupt`: a store on three hosts, of which the leader dies,
//! links break or become slow and files of one are damaged, while publishers go on.
//!
//! What must hold: what `checker` says of what was acknowledged at `quorum`; the hosts are level within ten seconds after
//! everything is well again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bench::hosts::{Hosts, Shape, eventually};
use bench::{histogram, show};
use hdrhistogram::Histogram;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Level, Lsn};

use crate::checker;
use crate::report::Report;

/// What the hosts have to be level within, once all is well.
const CONVERGED: Duration = Duration::from_secs(10);
/// Bytes that a slow link carries in a second: some tenth of what is published.
const SLOW: u64 = 200 << 10;

/// Waits until all hosts that run have `records`; how long that took.
fn level(hosts: &Hosts, records: u64) -> Result<Duration, String> {
    let began = Instant::now();
    let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
    eventually("the hosts to be level", || nodes.iter().all(|n| hosts.committed(*n) >= Lsn(records)).then_some(()))?;
    Ok(began.elapsed())
}

/// Runs `rounds` of `round` beside two publishers on host `at`, and checks what all hosts hold in the end.
fn beside(
    hosts: &mut Hosts,
    rounds: u64,
    report: &mut Report,
    again: &str,
    mut round: impl FnMut(&mut Hosts, u64, u64) -> Result<(), String>,
) -> Result<(), String> {
    let leader = hosts.leader()?;
    let at = leader % hosts.hosts.len() as u64 + 1;
    let mut publishers = [hosts.publisher(at, 1, Level::Quorum)?, hosts.publisher(at, 2, Level::Quorum)?];
    let over = AtomicBool::new(false);
    let sources = std::thread::scope(|scope| {
        let over = &over;
        let sources = (0..).zip(&mut publishers);
        let sources: Vec<_> = sources.map(|(n, p)| scope.spawn(move || checker::publish(p, n, over))).collect();
        for n in 0..rounds {
            report.add(round(hosts, n, at), again);
        }
        over.store(true, Ordering::Relaxed);
        let joined = sources.into_iter().map(|s| s.join().map_err(|_| "a publisher panicked".to_owned())?);
        joined.collect::<Result<Vec<_>, String>>()
    })?;
    drop(publishers);
    let took = level(hosts, checker::total(&sources))?;
    if took > CONVERGED {
        return Err(format!("the hosts are level only after {took:?}"));
    }
    let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
    nodes.iter().for_each(|node| hosts.stop(*node));
    let stores: Vec<_> = hosts.hosts.iter().map(|h| h.store.clone()).collect();
    report.fact(checker::check(&stores, &sources)?);
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
                let asked = tapestore_engine::consensus::message::Command::Transfer(tapestore::lsn::NodeId(next));
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
    let mut kinds = [0u64; 5];
    let outcome = beside(&mut hosts, n, &mut report, &again, |hosts, _, at| {
        let leader = hosts.leader()?;
        let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
        let kind = rng.below(5) as usize;
        kinds[kind] += 1;
        // The leader alone, or a follower; both ways, one way or the other; or nothing is lost, and all of the leader's takes
        // long.
        let victim = if kind != 3 { leader } else { leader % nodes.len() as u64 + 1 };
        let is_cut = rng.below(2) == 0;
        for other in nodes.iter().filter(|o| **o != victim) {
            let mut links = Vec::new();
            if kind != 2 {
                links.push(hosts.speaks(victim, *other));
            }
            if kind != 1 {
                links.push(hosts.speaks(*other, victim));
            }
            for link in links {
                match kind {
                    4 => link.bytes_per_second.store(SLOW, Ordering::Relaxed),
                    _ if is_cut => link.cut.store(true, Ordering::Relaxed),
                    _ => link.frozen.store(true, Ordering::Relaxed),
                }
            }
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
    let [both, from, to, follower, slow] = kinds;
    report.fact(format!(
        "leader cut off {both}, not heard {from}, deaf {to}, on slow links {slow}; follower cut off {follower} times"
    ));
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
