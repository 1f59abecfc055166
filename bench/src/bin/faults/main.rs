//! Owns: the fault campaigns, which try to make the store lose a record or return a wrong one, and their results.
//!
//! What must hold: all randomness follows from the printed seed; a campaign without trials has failed.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program has no public items; a campaign that cannot run ends it, and a wrong index is a failed trial"
)]

mod checker;
mod cluster;
mod corrupt;
mod fsyncgate;
mod fuzz;
mod guard;
mod kill;
mod model;
mod mutate;
mod nospace;
mod nth;
mod powerloss;
mod powerloss_real;
mod proof;
mod publisher_kill;
mod readers;
mod report;
mod roles;
mod rows;
mod scratch;
mod site;
mod small_shm;
mod soak;
mod steady;
mod tally;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use report::Report;

#[global_allocator]
static ALLOCATOR: guard::Counting = guard::Counting;

/// Fault campaigns against the store.
#[derive(Parser, Debug)]
struct Args {
    /// The campaign
    campaign: Campaign,
    /// Number of trials [default: depends on the campaign]
    #[arg(long)]
    n: Option<u64>,
    /// Seed of all randomness [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// fuzz: only this target
    #[arg(long)]
    only: Option<String>,
    /// fuzz: the input in this file, once
    #[arg(long)]
    input: Option<PathBuf>,
    /// fuzz: add the generator's inputs to the saved corpus
    #[arg(long)]
    save: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Campaign {
    /// Storage is killed at random moments while publishers and readers run
    Kill,
    /// The disk is filled, then has space again
    Nospace,
    /// Publishers are killed, stopped and continued at random moments
    PublisherKill,
    /// A real file system loses everything that was not synced
    PowerlossReal,
    /// The page cache cannot be written back: a sync fails
    Fsyncgate,
    /// Readers check every row during flushes, compaction, expiry and restarts; --n is seconds
    Readers,
    /// A small shared memory, pinned by readers; --n is minutes
    SmallShm,
    /// Resources of storage over time; --n is minutes
    Soak,
    /// Private memory over the frames of the log, without a restart; --n is thousands of frames
    Steady,
    /// Simulated power loss, kills and failing calls, checked against a model
    Powerloss,
    /// The leader's host of three is killed
    Failover,
    /// Links between three hosts break in one or both directions
    Partition,
    /// Files of one host of three are damaged
    MinorityCorrupt,
    /// Each disk call of a script fails, once and permanently
    NthFault,
    /// Each byte of each kind of file is changed, each length truncated
    Corrupt,
    /// Malformed inputs for every parser
    Fuzz,
    /// Rules are broken on purpose: a campaign must detect each
    Sabotage,
    /// The short form of all campaigns
    Short,
}

/// The campaigns of a short run, with their numbers of trials.
const SHORT: &[(Campaign, u64)] = &[
    (Campaign::Powerloss, 4_000),
    (Campaign::NthFault, 300),
    (Campaign::Corrupt, 3_000),
    (Campaign::Fuzz, 1_000),
    (Campaign::Kill, 30),
    (Campaign::PublisherKill, 15),
    (Campaign::PowerlossReal, 10),
    (Campaign::Fsyncgate, 1),
    (Campaign::Nospace, 1),
    (Campaign::Readers, 15),
    (Campaign::Soak, 1),
    (Campaign::Failover, 5),
    (Campaign::Partition, 5),
    (Campaign::MinorityCorrupt, 3),
    (Campaign::Sabotage, 1),
];

fn campaign(which: Campaign, n: Option<u64>, seed: u64) -> Report {
    match which {
        Campaign::Powerloss => powerloss::run(n.unwrap_or(2_000), seed),
        Campaign::NthFault => nth::run(n.unwrap_or(400), seed),
        Campaign::Corrupt => corrupt::run(n.unwrap_or(12_000), seed),
        Campaign::Fuzz => fuzz::run(n.unwrap_or(2_000), seed, None, None, false),
        Campaign::Sabotage => proof::run(seed),
        Campaign::Kill => kill::run(n.unwrap_or(100), seed),
        Campaign::PublisherKill => publisher_kill::run(n.unwrap_or(40), seed),
        Campaign::PowerlossReal => powerloss_real::run(n.unwrap_or(30), seed),
        Campaign::Fsyncgate => fsyncgate::run(n.unwrap_or(3), seed),
        Campaign::Nospace => nospace::run(n.unwrap_or(8), seed),
        Campaign::Readers => readers::run(n.unwrap_or(40), seed),
        Campaign::Failover => cluster::failover(n.unwrap_or(50), seed),
        Campaign::Partition => cluster::partition(n.unwrap_or(50), seed),
        Campaign::MinorityCorrupt => cluster::minority_corrupt(n.unwrap_or(50), seed),
        Campaign::SmallShm => small_shm::run(n.unwrap_or(10), seed),
        Campaign::Soak => soak::run(n.unwrap_or(1), seed),
        Campaign::Steady => steady::run(n.unwrap_or(1_000), seed),
        Campaign::Short => {
            let mut report = Report::new("short");
            for &(which, n) in SHORT {
                let began = std::time::Instant::now();
                let run = campaign(which, Some(n), seed);
                let (name, trials) = (which.to_possible_value().unwrap().get_name().to_owned(), run.trials());
                let outcome = if run.finish() { Ok(()) } else { Err(format!("{name} failed")) };
                report.note(format!("{name}: {trials} trials in {} s", began.elapsed().as_secs()));
                report.add(outcome, format!("cargo run -p bench --bin faults -- {name} --n {n} --seed {seed}"));
            }
            report
        }
    }
}

fn main() -> ExitCode {
    if let Some(code) = roles::play().or_else(bench::hosts::play) {
        return code;
    }
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64 >> 10));
    println!("seed {seed}");
    let only = (args.campaign, args.only.as_deref(), args.input.as_deref());
    let run = || match only {
        (Campaign::Fuzz, ..) => fuzz::run(args.n.unwrap_or(2_000), seed, only.1, only.2, args.save),
        (which, ..) => campaign(which, args.n, seed),
    };
    let Ok(report) = std::panic::catch_unwind(run) else {
        println!("FAILED: the campaign panicked: {}", scratch::panic_message());
        return ExitCode::FAILURE;
    };
    if report.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
