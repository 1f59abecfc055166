//! Owns: the program `tape-replication`.

use std::process::ExitCode;

use clap::Parser;

/// Replicates the log of a store between its hosts.
#[derive(Parser)]
#[command(name = "tape-replication", version)]
struct Command {
    #[command(flatten)]
    args: tape_services::replication::Args,
}

fn main() -> ExitCode {
    tape_services::limits::raise();
    tape_services::terminal::guard_pages();
    tape_services::stdout::code(tape_services::replication::run(&Command::parse().args))
}
