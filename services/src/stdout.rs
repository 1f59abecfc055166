//! Owns: standard output: its lines, its failure, and the exit code of a program, which depends on both.
//!
//! What must hold: output that cannot be written is never a success. A reader that has read enough is no failure.

use std::io::{Error, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit::{Failure, Outcome, output};
use crate::logging;

/// The first failure to write.
static FAILED: Mutex<Option<Error>> = Mutex::new(None);

/// Prints `text` as a line. The work goes on after a failure, which [`code`] reports at the end.
pub fn say(text: impl std::fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Fails if a line of [`say`] could not be written, or if the reader has closed its end, which a command that has nothing to
/// print would not notice. A command that waits calls it: nobody reads what it would wait for.
///
/// # Errors
/// That output cannot be written; of a closed pipe the command ends without a message and with exit code 0.
pub fn check() -> Outcome {
    if let Some(error) = FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(output(error));
    }
    let stdout = std::io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_closed =
        poll(&mut polled, Some(&now)).is_ok() && polled.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP));
    if is_closed { Err(Error::from(ErrorKind::BrokenPipe).into()) } else { Ok(()) }
}

/// Prints why a command failed and returns its exit code.
pub fn code(outcome: Outcome) -> ExitCode {
    logging::flush();
    let failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let outcome = match (outcome, failed) {
        (Ok(()), Some(error)) => Err(output(error)),
        (outcome, _) => outcome,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code: 0, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::failed(&failure);
            ExitCode::from(failure.code)
        }
    }
}
