//! Owns: random bytes that nobody guesses.

use tonic::Status;

/// `N` random bytes.
///
/// # Errors
/// The system has none.
pub fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Status::internal(format!("the system gives no random bytes: {error}")))?;
    Ok(bytes)
}
