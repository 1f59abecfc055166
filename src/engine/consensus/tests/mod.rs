//! Owns: a simulated cluster in one thread, from one seed. Logs and `raft.meta` are real, on simulated disks; time is virtual;
//! the network delays, drops and partitions; processes are killed, paused and restarted; power is lost, disks stall, members
//! come and go. In the end every acknowledged record must be in every log, in order, and the logs must be equal byte for byte.
//!
//! A failing seed is printed. `TAPE_SIM_SEED=n` with the name of the failed test runs it alone, because each test gives a seed
//! another aim; `TAPE_SIM_SEEDS=n` runs that many.

mod checker;
mod directed;
mod failover;
mod filling;
mod hostile;
mod mutants;
mod nemesis;
mod wiped;
pub(crate) mod world;

use self::mutants::Mutant;
use self::nemesis::Aim;
use self::world::{Cluster, Tally};
use tapestore::sabotage::{self, Sabotage};

/// Ticks of 10 ms with faults.
const TICKS: u64 = 600;

/// Runs one seed; the error is the first broken rule.
fn run(seed: u64, aim: Aim, mutant: Option<Mutant>) -> std::result::Result<Tally, String> {
    sabotage::break_rule((mutant == Some(Mutant::Unchained)).then_some(Sabotage::AcceptUnchained));
    let outcome = std::panic::catch_unwind(|| {
        let mut cluster = Cluster::new(seed, aim, mutant);
        for _ in 0..TICKS {
            cluster.nemesis();
            cluster.tick();
        }
        cluster.check().map(|()| {
            let terms = cluster.hosts.iter().filter_map(|h| h.live.as_ref().map(|l| l.node.state().term)).max();
            cluster.tally.0.insert("terms", terms.unwrap_or(0));
            cluster.tally
        })
    });
    sabotage::break_rule(None);
    match outcome {
        Ok(result) => result.map_err(|why| format!("seed {seed} of {aim:?}: {why}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
            Err(format!("seed {seed} of {aim:?}: {text}"))
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seeds below `count`, each with its aim, in two threads; sums what happened in them.
fn run_all(count: u64, aim: fn(u64) -> Aim) -> Tally {
    if let Some(seed) = number("TAPE_SIM_SEED") {
        return run(seed, aim(seed), None).unwrap();
    }
    let next = std::sync::atomic::AtomicU64::new(0);
    let (mut sum, thread) = (Tally::default(), std::thread::current());
    let test = thread.name().unwrap_or_default();
    std::thread::scope(|scope| {
        let work = || {
            let mut sum = Tally::default();
            loop {
                let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if seed >= count {
                    return sum;
                }
                let tally = run(seed, aim(seed), None);
                sum.add(&tally.unwrap_or_else(|why| {
                    panic!("{why}; again: TAPE_SIM_SEED={seed} cargo test -p tapestore-engine --lib {test}")
                }));
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|t| sum.add(&t.join().unwrap()));
    });
    println!("{count} seeds: {:?}", sum.0);
    sum
}

/// Two of five seeds change the members.
fn aim_of(seed: u64) -> Aim {
    if seed % 5 < 2 { Aim::Members } else { Aim::Anything }
}

#[test]
fn five_hundred_seeds_of_faults_and_changes_of_members_lose_no_acknowledged_record() {
    let count = number("TAPE_SIM_SEEDS").unwrap_or(500);
    let sum = run_all(count, aim_of);
    for what in ["truncations", "power losses", "partitions", "promotions", "removals", "swaps", "snapshots"] {
        assert!(sum.of(what) >= count / 5 || number("TAPE_SIM_SEED").is_some(), "hardly any {what}: {sum:?}");
    }
}

#[test]
fn faults_aimed_at_starts_and_truncations_lose_no_acknowledged_record() {
    let count = number("TAPE_SIM_SEEDS").unwrap_or(500) / 5;
    let sum = run_all(count, |seed| if seed % 2 == 0 { Aim::KilledThenPower } else { Aim::TornTruncated });
    let enough = sum.of("power losses in a truncation") >= count / 5 && sum.of("kills") >= count / 2;
    assert!(enough || number("TAPE_SIM_SEED").is_some(), "hardly anything went wrong: {sum:?}");
}

#[test]
fn hosts_that_acknowledge_from_memory_lose_nothing_while_most_keep_their_power() {
    let count = number("TAPE_SIM_SEEDS").unwrap_or(500) / 2;
    let sum = run_all(count, |seed| if seed % 5 == 4 { Aim::Forgotten } else { Aim::Memory });
    let enough = sum.of("power losses") >= count && sum.of("snapshots") >= count;
    assert!(enough || number("TAPE_SIM_SEED").is_some(), "hardly anything went wrong: {sum:?}");
}

#[test]
fn a_host_that_is_wiped_and_initialised_again_loses_no_acknowledged_record() {
    let count = number("TAPE_SIM_SEEDS").unwrap_or(500) / 5;
    let sum = run_all(count, |_| Aim::Wiped);
    let enough = sum.of("wipes") >= count / 2 && sum.of("hosts refused") >= count / 2;
    assert!(enough || number("TAPE_SIM_SEED").is_some(), "hardly anything went wrong: {sum:?}");
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let of = |seed| format!("{:?}", run(seed, aim_of(seed), None).unwrap());
    for seed in 0..5 {
        assert_eq!(of(seed), of(seed));
    }
}
