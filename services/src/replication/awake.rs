//! Owns: how the loop of messages waits: once something has come it stays awake for a moment, because what comes next comes
//! within that, and to be woken takes longer than to pass a message on.
//!
//! What must hold: whoever else wants the core gets it meanwhile; without messages the loop sleeps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long it stays awake after a message: somewhat longer than a sync takes. With three hosts on two cores, records that
/// are waited for at 500 a second took 0.56 instead of 0.64 ms at p50; 0.7 ms of it was no better (`bench --bin cluster`).
const AWAKE: Duration = Duration::from_micros(300);
/// Turns of tasks between two looks at the sockets: few, as staying awake is many turns.
pub(super) const TURNS: u32 = 4;

/// Keeps the loop of messages awake.
#[derive(Debug, Default)]
pub(super) struct Awake {
    messages: AtomicU64,
    first: Notify,
}

impl Awake {
    /// A message has come.
    pub(super) fn stir(&self) {
        // A lone number: relaxed.
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.first.notify_one();
    }

    /// Stays awake after each message, for ever.
    pub(super) async fn keep(&self) {
        loop {
            self.first.notified().await;
            let (mut seen, mut since) = (self.messages.load(Ordering::Relaxed), Instant::now());
            while since.elapsed() < AWAKE {
                std::thread::yield_now();
                tokio::task::yield_now().await;
                let messages = self.messages.load(Ordering::Relaxed);
                if messages != seen {
                    (seen, since) = (messages, Instant::now());
                }
            }
        }
    }
}
