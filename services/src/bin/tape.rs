//! The command line tool.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tape_services::exit::code(tape_services::cli::Tape::parse().run())
}
