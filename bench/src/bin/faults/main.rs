//! Owns: the fault campaigns: what is tried to make the store lose a record or say a wrong one, and what came of it.
//!
//! What must hold: everything random follows from the seed that is printed; a campaign that tried nothing has failed.

#![expect(clippy::unwrap_used, reason = "a campaign that cannot be run ends the program")]

mod report;

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
enum Campaign {}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64 >> 10));
    println!("seed {seed}");
    match args.campaign {}
}
