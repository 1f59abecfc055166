//! The storage process.

use std::process::ExitCode;

use clap::Parser;

/// Keeps a market-data store: logs what publishers send, serves it to readers through shared memory.
#[derive(Parser)]
#[command(name = "tape-storage", version)]
struct Command {
    #[command(flatten)]
    args: tape_services::storage::Args,
}

fn main() -> ExitCode {
    tape_services::limits::raise();
    tape_services::terminal::guard_pages();
    tape_services::exit::code(tape_services::storage::run(&Command::parse().args))
}
