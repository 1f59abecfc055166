//! Owns: errors as PostgreSQL's clients expect them: a severity and an SQLSTATE.
//!
//! | SQLSTATE | when |
//! |---|---|
//! | 42601, 42P01, 42703, 42883 | the text is no SQL; there is no such table, column, function |
//! | 25006, 25P02 | the statement changes something; the transaction has failed |
//! | 53200, 53300 | more memory is needed than there is; too many clients |
//! | 54000, 54001 | the statement is too long, too deep |
//! | 57014 | the statement was cancelled, or has reached its limit of time |
//! | 22023, 22P02, 0A000 | a value that is not allowed, that cannot be read; a feature that is absent |
//! | 58030, XX000 | the store cannot be read; a bug |

use datafusion::error::DataFusionError;
use pgwire::error::{ErrorInfo, PgWireError};

use crate::failure::QueryError;

/// An error with the SQLSTATE `code`, after which the connection goes on.
pub(super) fn error(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message.into())))
}

/// An error with the SQLSTATE `code` that ends the connection.
pub(super) fn fatal(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message.into())))
}

/// A statement's error.
pub(super) fn failure(failure: QueryError) -> PgWireError {
    let message = failure.to_string();
    error(code(&failure), message)
}

/// An error of an answer's rows.
pub(super) fn of_rows(failure: DataFusionError) -> PgWireError {
    self::failure(QueryError::from(failure))
}

fn code(failure: &QueryError) -> &'static str {
    match failure {
        QueryError::Store(tapestore::Error::SnapshotTooOld { .. }) => "72000",
        QueryError::Store(_) => "58030",
        QueryError::Memory { .. } => "53200",
        QueryError::TooLong { .. } => "57014",
        QueryError::Internal { .. } => "XX000",
        QueryError::Statement { reason } => statement(reason),
    }
}

/// The SQLSTATE of a wrong statement, by the words of the planner and the parser.
fn statement(reason: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if has(&["ParserError", "TokenizerError", "there is no statement"]) {
        "42601"
    } else if has(&["DDL not supported", "DML not supported", "Statement not supported"]) {
        "25006"
    } else if reason.contains("table '") && reason.contains("not found") {
        "42P01"
    } else if has(&["No field named"]) {
        "42703"
    } else if has(&["Invalid function"]) {
        "42883"
    } else if has(&["Divide by zero"]) {
        "22012"
    } else if has(&["Overflow", "overflow"]) {
        "22003"
    } else if has(&["Cast error", "Cannot cast", "Error parsing"]) {
        "22P02"
    } else if has(&["NotImplemented", "not implemented", "not supported", "Unsupported"]) {
        "0A000"
    } else {
        "42000"
    }
}
