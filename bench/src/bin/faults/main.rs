//! Owns: the fault campaigns: what is tried to make the store lose a record or say a wrong one, and what came of it.
//!
//! What must hold: everything random follows from the seed that is printed; a campaign that tried nothing has failed.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program has no public items; a campaign that cannot be run ends it, and a wrong index is a failed trial"
)]

mod fsyncgate;
mod kill;
mod nospace;
mod powerloss_real;
mod publisher_kill;
mod readers;
mod report;
mod roles;
mod rows;
mod site;
mod soak;
mod volumes;

use std::process::ExitCode;

use clap::Parser;

/// Fault campaigns against the store.
#[derive(Parser, Debug)]
struct Args {
    /// Which
    campaign: Campaign,
    /// Trials [default: as many as a short run has]
    #[arg(long)]
    n: Option<u64>,
    /// Everything random follows from it [default: the time]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Campaign {
    /// Storage is killed at random moments, under publishers and readers
    Kill,
    /// The disk is filled, and has room again
    Nospace,
    /// Publishers are killed, stopped and continued at random moments
    PublisherKill,
    /// A real file system forgets what was not synced
    PowerlossReal,
    /// Written pages cannot be written back: a sync fails
    Fsyncgate,
    /// Readers check every row, through everything; --n is seconds
    Readers,
    /// What is held of the host over minutes; --n is minutes
    Soak,
}

fn main() -> ExitCode {
    if let Some(code) = roles::play() {
        return code;
    }
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64 >> 10));
    println!("seed {seed}");
    let report = match args.campaign {
        Campaign::Nospace => nospace::run(args.n.unwrap_or(8), seed),
        Campaign::PublisherKill => publisher_kill::run(args.n.unwrap_or(40), seed),
        Campaign::PowerlossReal => powerloss_real::run(args.n.unwrap_or(30), seed),
        Campaign::Fsyncgate => fsyncgate::run(args.n.unwrap_or(3), seed),
        Campaign::Readers => readers::run(args.n.unwrap_or(40), seed),
        Campaign::Soak => soak::run(args.n.unwrap_or(1), seed),
        Campaign::Kill => kill::run(args.n.unwrap_or(100), seed),
    };
    if report.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
