//! Owns: the status codes of failed calls.
//!
//! What must hold: a message fits the headers that any client accepts.

use tapestore::Error;
use tonic::{Code, Status};

use crate::failure::QueryError;

/// Most bytes of a message: it travels in a header, and clients accept headers of 8 KiB.
const MESSAGE_MAX: usize = 2 << 10;

/// `text`, shortened to what a header may have.
fn clip(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('\u{2026}');
    }
    text
}

/// The status of a statement that failed with `error`.
pub fn status(error: impl Into<QueryError>) -> Status {
    let error = error.into();
    let code = match &error {
        QueryError::Statement { .. } => Code::InvalidArgument,
        QueryError::Memory { .. } => Code::ResourceExhausted,
        QueryError::TooLong { .. } => Code::DeadlineExceeded,
        QueryError::Internal { .. } => Code::Internal,
        QueryError::Store(error) => match error {
            Error::StorageDown { .. }
            | Error::Unanswered { .. }
            | Error::Locked { .. }
            | Error::Halted { .. }
            | Error::SnapshotTooOld { .. }
            | Error::Bus { .. } => Code::Unavailable,
            Error::Exhausted { .. } | Error::NoSharedMemory { .. } | Error::TooManyMaps { .. } | Error::MemTableFull { .. } => {
                Code::ResourceExhausted
            }
            Error::Denied { .. } => Code::PermissionDenied,
            Error::Invalid { .. } => Code::InvalidArgument,
            Error::Missing { .. } => Code::NotFound,
            Error::Corrupt { .. } => Code::DataLoss,
            _ => Code::Internal,
        },
    };
    if code == Code::Internal {
        tracing::error!(name: "flight.statement_failed", %error, "a statement failed");
    }
    Status::new(code, clip(error.to_string()))
}

/// A request that is wrong.
pub fn wrong(reason: impl Into<String>) -> Status {
    Status::invalid_argument(clip(reason.into()))
}

/// What is asked of this server, which only reads, is a change.
pub fn read_only() -> Status {
    Status::permission_denied("this server only reads; records are published through the library")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_shortened_between_characters() {
        let status = status(QueryError::Statement { reason: "\u{fc}".repeat(5_000) });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().len() <= MESSAGE_MAX + 3 && status.message().ends_with("\u{fc}\u{2026}"));
    }
}
