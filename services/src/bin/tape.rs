//! Owns: the program `tape`, the command line tool.

use std::process::ExitCode;

use clap::Parser;
use tape_services::{exit, logging};

/// Ends the process if standard output fails. A closed pipe, as in `tape status | head`, is exit code 0; any other failure
/// to print is an error, because the answer did not arrive.
fn end_on_print_failure() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map(String::as_str).unwrap_or_default();
        if !text.starts_with("failed printing to stdout") {
            return before(panic);
        }
        if text.contains("Broken pipe") {
            std::process::exit(0);
        }
        logging::note(format_args!("error: {text}"));
        std::process::exit(i32::from(exit::IO));
    }));
}

fn main() -> ExitCode {
    tape_services::limits::raise();
    tape_services::terminal::guard_pages();
    end_on_print_failure();
    exit::code(tape_services::cli::Tape::parse().run())
}
