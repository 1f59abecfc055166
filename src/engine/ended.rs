//! Owns: why storage has ended.
//!
//! What must hold: the caller carries out the reason before the next start.

/// Why storage has ended, and what must be done before the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was stopped.
    Stopped,
    /// Its log diverges from the leader's, as `Verdict` in `consensus::work` has decided: truncate it after this frame, the last
    /// that both have ([`super::divergence::truncate`]).
    Truncate(u64),
    /// A snapshot of another host's store has been fetched: install it in the place of this one
    /// ([`super::snapshot::install::install`]).
    Fill,
}
