//! Owns: reading a publisher's numbers from another thread, for the metrics of its program.
//!
//! What must hold: reading takes the publisher's lock for less than a microsecond, and never waits for storage.

use std::sync::{Arc, Mutex};

use super::numbers::Numbers;
use super::state::{State, lock};
use crate::shm::origin::Origin;

/// Reads a publisher's numbers from any thread, also after the publisher was closed.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/monitor.rs"), "\n```")]
#[derive(Clone)]
pub struct Monitor {
    state: Arc<Mutex<State>>,
    origin: Origin,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Monitor")
    }
}

impl Monitor {
    pub(super) fn new(state: Arc<Mutex<State>>, origin: Origin) -> Monitor {
        Monitor { state, origin }
    }

    /// The numbers now, by the acknowledgements up to now. `None` in a forked child.
    pub fn read(&self) -> Option<Numbers> {
        if !self.origin.is_here() {
            return None;
        }
        let mut state = lock(&self.state);
        state.reap();
        Some(state.numbers())
    }
}
