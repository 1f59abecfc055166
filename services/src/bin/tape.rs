//! The command line tool.

use std::process::ExitCode;

use clap::Parser;

/// A reader that has seen enough closes the pipe, as in `tape status | head`: that ends a command that prints, and is
/// no fault of it.
fn end_quietly_when_nobody_reads() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let what = panic.payload().downcast_ref::<String>();
        if what.is_some_and(|text| text.starts_with("failed printing to stdout")) {
            std::process::exit(0);
        }
        before(panic);
    }));
}

fn main() -> ExitCode {
    tape_services::limits::raise();
    end_quietly_when_nobody_reads();
    tape_services::exit::code(tape_services::cli::Tape::parse().run())
}
