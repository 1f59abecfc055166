//! Owns: why a statement failed.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// Why a statement has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] tapestore::Error),
    /// The statement is wrong.
    #[error("{reason}")]
    Statement {
        /// Why.
        reason: String,
    },
    /// More memory or disk is needed than statements may use.
    #[error("the statement needs more memory than it may use: {reason}; to allow more, set --memory")]
    Memory {
        /// Who needs how much.
        reason: String,
    },
    /// The limit of time has passed.
    #[error("the statement was ended after {} s, its limit; to allow more, set --time", .limit.as_secs())]
    TooLong {
        /// The limit.
        limit: Duration,
    },
    /// A bug of this program.
    #[error("a bug of this program: {reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
}

/// An error of the store, for an engine of SQL.
pub fn external(error: tapestore::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Whether the limit of spilled bytes is reached: it comes as an error of the file that they are written to.
fn is_spill(error: &ArrowError) -> bool {
    error.to_string().contains("max_temp_directory_size")
}

/// An error that several parts of a plan still have.
fn shared(error: &DataFusionError) -> QueryError {
    let reason = error.strip_backtrace();
    match error.find_root() {
        DataFusionError::ResourcesExhausted(reason) => QueryError::Memory { reason: reason.clone() },
        DataFusionError::ArrowError(error, _) if is_spill(error) => QueryError::Memory { reason },
        DataFusionError::Internal(reason) => QueryError::Internal { reason: reason.clone() },
        _ => QueryError::Statement { reason },
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> QueryError {
        match error {
            DataFusionError::External(error) => match error.downcast::<tapestore::Error>() {
                Ok(error) => QueryError::Store(*error),
                Err(error) => match error.downcast::<QueryError>() {
                    Ok(error) => *error,
                    Err(error) => QueryError::Statement { reason: error.to_string() },
                },
            },
            DataFusionError::Context(_, error) | DataFusionError::Diagnostic(_, error) => (*error).into(),
            DataFusionError::Shared(error) => match std::sync::Arc::try_unwrap(error) {
                Ok(error) => error.into(),
                Err(error) => shared(&error),
            },
            DataFusionError::ArrowError(error, _) if is_spill(&error) => QueryError::Memory { reason: error.to_string() },
            DataFusionError::ResourcesExhausted(reason) => QueryError::Memory { reason },
            DataFusionError::Internal(reason) => QueryError::Internal { reason },
            error => QueryError::Statement { reason: error.strip_backtrace() },
        }
    }
}
