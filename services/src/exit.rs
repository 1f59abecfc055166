//! Owns: exit codes, after sysexits.h where it has one.

use std::fmt;

use tapestore::error::Error;
use tapestore::publisher::PublishError;

use crate::processes::ProcessError;

/// A comparison or verification found a difference.
pub const DIFFERENCE: u8 = 1;
/// The command line, the configuration or a name is wrong.
pub const USAGE: u8 = 2;
/// No such record.
pub const NOT_FOUND: u8 = 3;
/// Interrupted by SIGTERM or SIGINT: completed steps stay and are printed; the other steps were not begun.
pub const INTERRUPTED: u8 = 4;
/// Records that this process read are not stored at their durability level and end with it; the message counts them.
pub const LOST: u8 = 5;
/// Storage serves the store, but cannot accept records or publish new ones to readers (`tape status --check`); this
/// host has a problem (`tape doctor`).
pub const UNHEALTHY: u8 = 6;
/// Input, or a file of the store, is malformed or damaged.
pub const DATA: u8 = 65;
/// A file is absent.
pub const NO_INPUT: u8 = 66;
/// No storage process serves the store.
pub const UNAVAILABLE: u8 = 69;
/// A part of this program ended that must never end.
pub const INTERNAL: u8 = 70;
/// Standard output cannot be written: what was to be printed is incomplete.
pub const OUTPUT: u8 = 73;
/// The disk or shared memory failed.
pub const IO: u8 = 74;
/// The store belongs to another user.
pub const NO_PERMISSION: u8 = 77;
/// A later try may succeed: a lock is held, a ring is full.
pub const LATER: u8 = 75;

/// The reason why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What happened, to what, and the next step.
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
            Error::Invalid { what: "instrument", .. } => NOT_FOUND,
            Error::Invalid { .. } | Error::Limit { .. } | Error::Backup { .. } => USAGE,
            Error::Denied { .. } => NO_PERMISSION,
            Error::StorageDown { .. } | Error::InLogAlone { .. } => UNAVAILABLE,
            Error::Unanswered { .. }
            | Error::Taken { .. }
            | Error::Locked { .. }
            | Error::NotLeader { .. }
            | Error::Refused { .. }
            | Error::MalformedAnswer { .. }
            | Error::SnapshotTooOld { .. }
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

impl From<ProcessError> for Failure {
    fn from(error: ProcessError) -> Failure {
        let code = match &error {
            ProcessError::System { .. } => IO,
            ProcessError::Ended { .. } => DIFFERENCE,
            ProcessError::Late { .. } => LATER,
        };
        Failure::new(code, error.to_string())
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
        // `tape scan ... | head`: the reader has closed the pipe. That is no failure.
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { 0 } else { IO };
        Failure::new(code, error.to_string())
    }
}

/// `error` without its advice.
pub fn reason(error: &Error) -> String {
    error.to_string().split("; nothing was changed").next().unwrap_or_default().to_owned()
}

/// The failure to write to standard output: of a closed one the command ends without a message.
pub fn output(error: std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::BrokenPipe { 0 } else { OUTPUT };
    Failure::new(code, format!("cannot write to standard output: {error}"))
}

/// The failure of a command that was interrupted before it had printed all records.
pub(crate) fn interrupted() -> Failure {
    Failure::new(INTERRUPTED, "interrupted: the records above are not complete")
}

#[cfg(test)]
mod tests {
    use std::io;

    use tapestore_formats::error::{Error as Formats, Fault, Place, Work};

    use super::*;

    #[test]
    fn errors_of_files_have_the_exit_codes_that_commands_promise() {
        let path = || "a.csv".into();
        let error = |kind: io::ErrorKind| io::Error::from(kind);
        for (error, code) in [
            (Formats::Read { path: path(), source: error(io::ErrorKind::PermissionDenied) }, NO_INPUT),
            (Formats::NotAFile { path: path() }, NO_INPUT),
            (Fault::new("x").at("a.csv".as_ref(), Place::Line(7)), DATA),
            (Formats::Create { path: path(), source: error(io::ErrorKind::NotFound) }, NO_INPUT),
            (Formats::Create { path: path(), source: error(io::ErrorKind::PermissionDenied) }, IO),
            (Formats::Write { path: path(), source: error(io::ErrorKind::StorageFull) }, IO),
            (Formats::Exists { path: path() }, USAGE),
            (Formats::Occupied { path: path() }, USAGE),
            (Formats::Usage("x".to_owned()), USAGE),
            (Formats::Nothing, NOT_FOUND),
            (Formats::NoName { instrument: tapestore::lsn::InstrumentId(7) }, DATA),
            (Formats::Interrupted { path: path(), work: Work::Export }, INTERRUPTED),
            (Error::invalid("kind", "x".to_owned()).into(), USAGE),
        ] {
            let text = error.to_string();
            let failure = Failure::from(error);
            assert_eq!((failure.code, failure.message.as_str()), (code, text.as_str()));
        }
    }
}
