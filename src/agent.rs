//! Owns: agents. An agent is one thread with one owner and one loop; [`Idle`] decides how it waits after
//! a turn that found no work.
//!
//! What must hold: an agent that panics aborts its process. A storage process with a dead thread would
//! accept records that it can no longer log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a loop waits for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Never yields the core: lowest latency, one whole core.
    Busy,
    /// Spins, then yields, then sleeps until woken. Right for shared machines.
    #[default]
    Adaptive,
    /// Sleeps until woken at once.
    Blocking,
}

impl std::str::FromStr for Wait {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "busy" => Ok(Wait::Busy),
            "adaptive" => Ok(Wait::Adaptive),
            "blocking" => Ok(Wait::Blocking),
            _ => Err(crate::error::Error::invalid("wait", format!("'{text}' is none of: busy, adaptive, blocking"))),
        }
    }
}

/// Turns of an adaptive wait that spin (some 50 to 300 ns each) before it yields. Few: on a host with fewer
/// cores than loops, the thread with the work may be waiting for this core.
const SPINS: u32 = 1;
/// Turns of an adaptive wait that yield the core (some 0.5 us each) before it parks. Longer than the
/// pause between records of an active feed, because waking a parked thread takes 30 to 60 us on a
/// virtual machine.
const YIELDS: u32 = 500;
/// Yields of [`Idle::yielding`] before it parks.
const FEW_YIELDS: u32 = 20;

/// Counts the idle turns of one loop.
#[derive(Debug)]
pub struct Idle {
    wait: Wait,
    turns: u32,
}

impl Idle {
    /// The counter of a loop that has just found work.
    pub fn new(wait: Wait) -> Self {
        Idle { wait, turns: 0 }
    }

    /// As [`Idle::new`], for turns that take what another thread needs to make progress: [`Wait::Adaptive`] does not spin, yields a
    /// few times and then parks.
    pub fn yielding(wait: Wait) -> Self {
        Idle { wait, turns: SPINS + YIELDS - FEW_YIELDS }
    }

    /// Call after a turn that found work.
    pub fn worked(&mut self) {
        self.turns = 0;
    }

    /// Call after a turn that found none. `true`: park until woken.
    #[must_use]
    pub fn should_park(&mut self) -> bool {
        match self.wait {
            Wait::Blocking => true,
            Wait::Busy => {
                std::hint::spin_loop();
                false
            }
            Wait::Adaptive if self.turns < SPINS => {
                self.turns += 1;
                std::hint::spin_loop();
                false
            }
            Wait::Adaptive if self.turns < SPINS + YIELDS => {
                self.turns += 1;
                std::thread::yield_now();
                false
            }
            Wait::Adaptive => true,
        }
    }
}

/// How soon a sleeping agent ends.
const STOP_LOOK: Duration = Duration::from_millis(20);

/// Signals agents to end. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Signals every holder to end.
    pub fn stop(&self) {
        // SYNC: pairs with `is_stopped`.
        self.0.store(true, Ordering::Release);
    }

    /// Whether the agents must end.
    pub fn is_stopped(&self) -> bool {
        // SYNC: pairs with `stop`.
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps for `time`, or until the agents must end, which it returns.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.is_stopped() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(left.min(STOP_LOOK));
        }
        true
    }
}

struct EndProcessOnPanic(&'static str);

impl Drop for EndProcessOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(name: "agent.panicked", agent = self.0, "an agent panicked; the process aborts");
            std::process::abort();
        }
    }
}

/// Pins the calling thread to `core`; `what` names it in the log. A core that the process may not use leaves it unpinned.
pub fn pin(what: &'static str, core: usize) {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        tracing::info!(name: "agent.pinned", agent = what, core, "pinned");
    } else {
        tracing::warn!(name: "agent.not_pinned", agent = what, core, "cannot pin to this core; running unpinned");
    }
}

/// Runs `body` on a thread called `name`, pinned to `core` if one is given.
///
/// # Errors
/// The system's error if the thread cannot be created.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    core: Option<usize>,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = EndProcessOnPanic(name);
        if let Some(core) = core {
            pin(name, core);
        }
        body()
    })
}
