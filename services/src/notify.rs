//! Owns: messages to the service manager that started this process (systemd, `Type=notify`): it serves, it works, it stops, and a
//! line about its state.
//!
//! What must hold: a thread of its own sends them, so a service manager that reads none delays nobody. `READY=1` is sent once, when
//! the process serves. `WATCHDOG=1` is sent only while the process works: without it the service manager starts the process again.
//! Without `NOTIFY_SOCKET` in the environment there is no thread.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::runtime::Handle;

use crate::metrics::{Source, storage};

/// Variable with the socket of the service manager.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Looks at the process in a period of the watchdog: one that is late does not end it.
const LOOKS: u32 = 4;
/// Pause between looks where the service manager has no watchdog: the line about the state is renewed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The shortest pause.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// How long the end of the process waits until the last message is sent.
const GRACE: Duration = Duration::from_secs(1);

/// Whether something is so; otherwise why not.
type Check = Box<dyn Fn() -> Result<(), String> + Send>;

/// What the process has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Serving,
    Stopping,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// What the process serves.
    served: String,
    /// The phase of the last message.
    sent: Phase,
    /// The process is about to end.
    is_over: bool,
    /// The thread has ended.
    has_ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, with: impl FnOnce(&mut State)) {
        with(&mut self.state());
        self.changed.notify_all();
    }
}

/// The way to the service manager. Its end waits, for a bounded time, until everything is sent.
#[derive(Debug)]
pub struct Notifier(Option<Arc<Shared>>);

impl Notifier {
    /// Of the storage process that serves `store`: it works while its loop turns.
    pub fn of_storage(store: &Path) -> Notifier {
        let source = Arc::new(storage::Storage::new(store));
        let working = source.clone();
        Notifier::start(Box::new(move || working.health()), Box::new(move || source.readiness()))
    }

    /// Of a process whose work is done by the threads of `runtime`: it works while they begin new tasks.
    pub fn of_runtime(runtime: &Handle) -> Notifier {
        let (runtime, patience) = (runtime.clone(), pause());
        let working = move || {
            let (begun, is_begun) = mpsc::sync_channel(1);
            runtime.spawn(async move { begun.try_send(()) });
            let late = |_| format!("its threads have begun no task for {patience:?}");
            is_begun.recv_timeout(patience).map_err(late)
        };
        Notifier::start(Box::new(working), Box::new(|| Ok(())))
    }

    /// Starts the thread. `health`: whether the process works. `readiness`: whether it does what it is there for.
    fn start(health: Check, readiness: Check) -> Notifier {
        if std::env::var_os(SOCKET).is_none_or(|socket| socket.is_empty()) {
            return Notifier(None);
        }
        let shared = Arc::new(Shared::default());
        let mut sender =
            Sender { shared: shared.clone(), health, readiness, line: String::new(), is_silent: false, has_failed: false };
        match std::thread::Builder::new().name("tape-notify".to_owned()).spawn(move || sender.run()) {
            Ok(_) => Notifier(Some(shared)),
            Err(error) => {
                tracing::error!(name: "notify.not_started", %error, "cannot start the thread that notifies the service manager: it will take this process for one that does not start");
                Notifier(None)
            }
        }
    }

    /// The process serves; `served` is what, for people.
    pub fn ready(&self, served: impl Into<String>) {
        self.set(|state| {
            state.phase = Phase::Serving;
            state.served = served.into();
        });
    }

    /// The process was asked to stop.
    pub fn stopping(&self) {
        self.set(|state| state.phase = Phase::Stopping);
    }

    fn set(&self, with: impl FnOnce(&mut State)) {
        if let Some(shared) = &self.0 {
            shared.change(with);
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        let Some(shared) = &self.0 else { return };
        shared.change(|state| state.is_over = true);
        // A service manager that reads nothing does not keep this process from its end.
        drop(shared.changed.wait_timeout_while(shared.state(), GRACE, |state| !state.has_ended));
    }
}

/// Pause between two looks.
fn pause() -> Duration {
    sd_notify::watchdog_enabled().map_or(LOOK_AGAIN, |period| (period / LOOKS).max(PAUSE_MIN))
}

/// The thread.
struct Sender {
    shared: Arc<Shared>,
    health: Check,
    readiness: Check,
    /// The last line that was sent.
    line: String,
    /// The last look found that the process does not work.
    is_silent: bool,
    /// The last message could not be sent.
    has_failed: bool,
}

impl Sender {
    fn run(&mut self) {
        let pause = pause();
        let mut is_over = false;
        while !is_over {
            let (phase, sent, served) = {
                let state = self.shared.state();
                (state.phase, state.sent, state.served.clone())
            };
            self.send(phase, phase != sent, &served);
            let mut state = self.shared.state();
            state.sent = phase;
            let same = |state: &mut State| state.phase == phase && !state.is_over;
            let waited = self.shared.changed.wait_timeout_while(state, pause, same);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            is_over = state.is_over && state.phase == phase;
        }
        self.shared.change(|state| state.has_ended = true);
    }

    /// Sends what has changed, and whether the process works.
    fn send(&mut self, phase: Phase, is_new: bool, served: &str) {
        let line = match phase {
            Phase::Starting => "starting".to_owned(),
            Phase::Serving => (self.readiness)().map_or_else(|why| format!("{served}; {why}"), |()| served.to_owned()),
            Phase::Stopping => "stopping".to_owned(),
        };
        let mut states = Vec::new();
        match phase {
            Phase::Serving if is_new => states.push(NotifyState::Ready),
            Phase::Stopping if is_new => states.push(NotifyState::Stopping),
            _ => {}
        }
        if line != self.line {
            states.push(NotifyState::Status(&line));
        }
        // A start and a stop have limits of their own.
        if phase != Phase::Serving || self.works() {
            states.push(NotifyState::Watchdog);
        }
        if states.is_empty() {
            return;
        }
        let sent = sd_notify::notify(&states);
        if let Err(error) = &sent
            && !self.has_failed
        {
            let socket = std::env::var(SOCKET).unwrap_or_default();
            tracing::warn!(name: "notify.not_sent", %error, socket, "cannot notify the service manager; it may take this process for one that hangs");
        }
        self.has_failed = sent.is_err();
        self.line = line;
    }

    /// Whether the process works; logs the change.
    fn works(&mut self) -> bool {
        let health = (self.health)();
        match &health {
            Err(why) if !self.is_silent => {
                tracing::error!(name: "notify.not_working", why, "this process does not work; if that lasts, the service manager starts it again");
            }
            Ok(()) if self.is_silent => tracing::info!(name: "notify.working_again", "this process works again"),
            _ => {}
        }
        self.is_silent = health.is_err();
        health.is_ok()
    }
}
