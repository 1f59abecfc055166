//! Owns: the program `tape`, the command line tool.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tape_services::limits::raise();
    tape_services::terminal::guard_pages();
    tape_services::stdout::code(tape_services::cli::Tape::parse().run())
}
