//! The command line tool.

use std::process::ExitCode;

use clap::Parser;
use tape_services::{exit, logging};

/// A reader that has seen enough closes the pipe, as in `tape status | head`: that ends a command that prints, and is
/// no fault of it. Any other failure to print is one: what was asked for did not arrive.
fn end_when_nothing_can_be_printed() {
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
    end_when_nothing_can_be_printed();
    exit::code(tape_services::cli::Tape::parse().run())
}
