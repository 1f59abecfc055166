//! Owns: exit codes. They follow sysexits.h where it has one.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use tapestore::error::Error;
use tapestore::publisher::PublishError;
use tapestore::reader::Follow;

use crate::logging;

/// What a command was asked to compare or verify is not so.
pub const DIFFERENCE: u8 = 1;
/// The command line, the configuration or a name is wrong.
pub const USAGE: u8 = 2;
/// There is no such record.
pub const NOT_FOUND: u8 = 3;
/// Interrupted by SIGTERM or SIGINT: what was done until then is said and holds, the rest was not begun.
pub const INTERRUPTED: u8 = 4;
/// Records that this process had taken are not stored at their level, and end with it; it says how many.
pub const LOST: u8 = 5;
/// A store is served, and something keeps it from taking records in or from showing what is new (`tape status --check`).
pub const UNHEALTHY: u8 = 6;
/// Input, or a file of the store, is malformed or damaged.
pub const DATA: u8 = 65;
/// A file is absent.
pub const NO_INPUT: u8 = 66;
/// No storage process serves the store.
pub const UNAVAILABLE: u8 = 69;
/// A part of this program ended that never should.
pub const INTERNAL: u8 = 70;
/// The disk or shared memory failed.
pub const IO: u8 = 74;
/// It is another user's.
pub const NO_PERMISSION: u8 = 77;
/// It may work later: a lock is held, a ring is full.
pub const LATER: u8 = 75;

/// Why a command ended without success.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What happened, to what, and what to do.
    pub message: String,
}

/// The result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with `code`.
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => NO_INPUT,
            Error::Corrupt { .. } | Error::Foreign { .. } | Error::Version { .. } | Error::Missing { .. } => DATA,
            Error::Invalid { .. } | Error::Limit { .. } | Error::Backup { .. } => USAGE,
            Error::Denied { .. } => NO_PERMISSION,
            Error::StorageDown { .. } | Error::InLogAlone { .. } => UNAVAILABLE,
            Error::Unanswered { .. }
            | Error::Taken { .. }
            | Error::Locked { .. }
            | Error::NotLeader { .. }
            | Error::Refused { .. }
            | Error::Fenced { .. } => LATER,
            Error::Expired { .. } | Error::Withdrawn { .. } => NOT_FOUND,
            _ => IO,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<tapestore_formats::Error> for Failure {
    fn from(error: tapestore_formats::Error) -> Failure {
        use tapestore_formats::Error;
        let code = match &error {
            Error::Read { .. } | Error::NotAFile { .. } => NO_INPUT,
            Error::Create { source, .. } if source.kind() == std::io::ErrorKind::NotFound => NO_INPUT,
            Error::Malformed { .. } | Error::NoName { .. } => DATA,
            Error::Exists { .. } | Error::Occupied { .. } | Error::Usage(_) => USAGE,
            Error::Nothing => NOT_FOUND,
            Error::Interrupted { .. } => INTERRUPTED,
            _ => IO,
        };
        match error {
            Error::Store(error) => error.into(),
            error => Failure::new(code, error.to_string()),
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Failure {
        match error {
            PublishError::Record(e) => e.into(),
            other => Failure::new(LATER, other.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        // A reader that has seen enough closes the pipe: `tape scan ... | head`.
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { 0 } else { IO };
        Failure::new(code, error.to_string())
    }
}

/// That a command was ended before it had given what it was asked for.
pub(crate) fn interrupted() -> Failure {
    Failure::new(INTERRUPTED, "interrupted: the records above are not all that were asked for")
}

/// Waits a moment for storage to come back.
///
/// # Errors
/// `down`, if it has stopped in order.
pub(crate) fn wait_for_storage(follow: &mut Follow, down: Error) -> Outcome {
    let control = follow.reader().control();
    if control.server().is_none() && control.instance().is_multiple_of(2) {
        return Err(down.into());
    }
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// Says why a command failed, and gives its exit code.
pub fn code(outcome: Outcome) -> ExitCode {
    logging::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code: 0, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::note(format_args!("error: {failure}"));
            ExitCode::from(failure.code)
        }
    }
}
