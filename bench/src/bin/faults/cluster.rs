//! Owns: the campaigns `failover`, `partition` and `minority-corrupt`: on a store of three hosts with running publishers the
//! leader is killed, links break or slow down, or files of one host are damaged.
//!
//! What must hold: the rules of `checker` for records acknowledged at `quorum`; all hosts catch up within ten seconds after
//! the end of a fault.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bench::hosts::{Hosts, Shape, eventually};
use bench::{histogram, show};
use hdrhistogram::Histogram;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Durability, Lsn};

use crate::checker;
use crate::report::Report;

/// Time limit for all hosts to catch up after a fault.
const CONVERGED: Duration = Duration::from_secs(10);
/// Bandwidth of a slow link, bytes a second: about a tenth of the published rate.
const SLOW: u64 = 200 << 10;

/// Waits until all hosts have committed `records`; returns how long that took.
fn catch_up(hosts: &Hosts, records: u64) -> Result<Duration, String> {
    let began = Instant::now();
    let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
    eventually("the catch-up of all hosts", || nodes.iter().all(|n| hosts.committed(*n) >= Lsn(records)).then_some(()))?;
    Ok(began.elapsed())
}

/// Runs `round` `rounds` times while two publishers run on host `at`; then checks the records of all hosts.
fn beside(
    hosts: &mut Hosts,
    rounds: u64,
    report: &mut Report,
    again: &str,
    mut round: impl FnMut(&mut Hosts, u64, u64) -> Result<(), String>,
) -> Result<(), String> {
    let leader = hosts.leader()?;
    let at = leader % hosts.hosts.len() as u64 + 1;
    let mut publishers = [hosts.publisher(at, 1, Durability::Quorum)?, hosts.publisher(at, 2, Durability::Quorum)?];
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
    let took = catch_up(hosts, checker::total(&sources))?;
    if took > CONVERGED {
        return Err(format!("the hosts catch up only after {took:?}"));
    }
    let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).collect();
    nodes.iter().for_each(|node| hosts.stop(*node));
    let stores: Vec<_> = hosts.hosts.iter().map(|h| h.store.clone()).collect();
    report.note(checker::check(&stores, &sources)?);
    Ok(())
}

fn print_times(report: &mut Report, what: &str, h: &Histogram<u64>) {
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| show(h.value_at_quantile(q)));
    report.note(format!("{what}: p50 {p50}, p90 {p90}, p99 {p99}, max {} of {}", show(h.max()), h.len()));
}

/// Kills both processes of the leader's host `n` times.
pub(crate) fn failover(n: u64, seed: u64) -> Report {
    let mut report = Report::new("failover");
    let mut hosts = Hosts::start(Shape::default());
    let mut times = histogram();
    let again = format!("cargo run --release -p bench --bin faults -- failover --n {n} --seed {seed}");
    let outcome = beside(&mut hosts, n, &mut report, &again, |hosts, _, at| {
        let mut leader = hosts.leader()?;
        if leader == at {
            // The publisher's host must not die: another host becomes leader first.
            let next = at % hosts.hosts.len() as u64 + 1;
            eventually("the leadership transfer", || {
                let asked = tapestore_engine::consensus::message::Command::Transfer(tapestore::lsn::NodeId(next));
                hosts.ask(at, asked).ok();
                (hosts.leader_now(Some(at)) == Some(next)).then_some(())
            })?;
            leader = next;
        }
        let began = Instant::now();
        hosts.kill(leader);
        eventually("another leader", || hosts.leader_now(Some(leader)))?;
        // In-flight commits have arrived: from here on the new leader commits.
        let before = hosts.committed(at);
        eventually("the new leader's first record", || (hosts.committed(at) > before).then_some(()))?;
        times.record(began.elapsed().as_nanos() as u64).map_err(|e| e.to_string())?;
        hosts.start_host(leader);
        let all = hosts.committed(at).0;
        catch_up(hosts, all).map(drop)
    });
    if let Err(what) = outcome {
        report.fail(what, &again);
    }
    print_times(&mut report, "kill to the new leader's first committed record", &times);
    report
}

/// Breaks links between the hosts `n` times.
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
        // Kinds: 0 isolates the leader, 1 cuts its outgoing links, 2 its incoming links, 3 isolates a follower, 4 slows the
        // leader's links.
        let victim = if kind != 3 { leader } else { leader % nodes.len() as u64 + 1 };
        let is_cut = rng.below(2) == 0;
        for other in nodes.iter().filter(|o| **o != victim) {
            let mut links = Vec::new();
            if kind != 2 {
                links.push(hosts.link_to(victim, *other));
            }
            if kind != 1 {
                links.push(hosts.link_to(*other, victim));
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
        // All hosts must catch up with records that were committed after the fault.
        let before = hosts.committed(at);
        eventually("records after the fault", || (hosts.committed(at) > before).then_some(()))?;
        let target = hosts.committed(at).0;
        catch_up(hosts, target)?;
        times.record(began.elapsed().as_nanos() as u64).map_err(|e| e.to_string())?;
        if began.elapsed() > CONVERGED {
            Err(format!("the hosts catch up only {:?} after the fault", began.elapsed()))
        } else {
            Ok(())
        }
    });
    if let Err(what) = outcome {
        report.fail(what, &again);
    }
    let [both, from, to, follower, slow] = kinds;
    report.note(format!(
        "leader isolated {both} times, outgoing links cut {from}, incoming links cut {to}, slow links {slow}; follower isolated {follower}"
    ));
    print_times(&mut report, "time until all hosts caught up", &times);
    report
}

/// Damages files of one host `n` times: it must refuse to start, and is repaired or replaced.
pub(crate) fn minority_corrupt(n: u64, seed: u64) -> Report {
    let mut report = Report::new("minority-corrupt");
    let mut rng = SimRng::new(seed);
    let mut hosts = Hosts::start(Shape::default());
    let again = format!("cargo run --release -p bench --bin faults -- minority-corrupt --n {n} --seed {seed}");
    let (mut refused, mut installed, mut replaced) = (0u64, 0u64, 0u64);
    let outcome = beside(&mut hosts, n, &mut report, &again, |hosts, _, at| {
        let leader = hosts.leader()?;
        let nodes: Vec<u64> = hosts.hosts.iter().map(|h| h.node).filter(|n| *n != at).collect();
        let victim = nodes[rng.below(nodes.len() as u64) as usize];
        let enough = hosts.committed(leader).0 + 500;
        eventually("records to damage", || (hosts.committed(victim).0 > enough).then_some(()))?;
        // A clean stop, so that the durable mark covers its whole log.
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
        // It refuses to start, or the change is harmless and it replicates as before.
        let target = hosts.committed(at).0;
        let refuses = eventually("a refusal or a commit of the damaged host", || {
            if hosts.has_ended(victim) {
                return Some(true);
            }
            (hosts.committed(victim).0 > target).then_some(false)
        })?;
        if refuses {
            refused += 1;
            let from = hosts.leader()?;
            // A host without `raft.meta` has lost its term and vote.
            match hosts.install_snapshot(victim, from) {
                Ok(()) => installed += 1,
                Err(_) if what == 0 => {
                    hosts.replace(victim, from)?;
                    replaced += 1;
                }
                Err(why) => return Err(why),
            }
        }
        let target = hosts.committed(at).0;
        catch_up(hosts, target).map(drop)
    });
    if let Err(what) = outcome {
        report.fail(what, &again);
    }
    report.note(format!(
        "{refused} damaged hosts refused to start, {installed} installed a snapshot, {replaced} were replaced under another number"
    ));
    report
}
