//! Owns: why storage has ended.
//!
//! What must hold: whoever starts it again does first what this says.

/// Why storage has ended, and what is to be done before the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Its log and the leader's differ: the log is to be cut behind this frame, the last that both have ([`super::divergence::cut`]).
    Cut(u64),
    /// The copy of another host's store has come, and is to take the place of this one ([`super::fill::install`]).
    Fill,
}
