//! Owns: the program `tape-storage`.

use std::process::ExitCode;

use clap::Parser;

/// Serves a market-data store: logs the records of publishers and makes them readable in shared memory.
#[derive(Parser)]
#[command(name = "tape-storage", version)]
struct Command {
    #[command(flatten)]
    args: tape_services::storage::Args,
}

fn main() -> ExitCode {
    tape_services::limits::raise();
    tape_services::terminal::guard_pages();
    tape_services::stdout::code(tape_services::storage::run(&Command::parse().args))
}
