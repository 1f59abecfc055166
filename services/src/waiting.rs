//! Owns: waits of commands, and the note of one that waits for more than a second.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tapestore::error::Error;
use tapestore::reader::Follow;

use crate::exit::Outcome;
use crate::logging::note;
use crate::stdout;

/// After this time the note is printed.
const QUIET: Duration = Duration::from_secs(1);

/// Says after a second what is waited for, until the value is dropped.
#[derive(Debug)]
pub struct Waiting {
    _over: Option<SyncSender<()>>,
}

impl Waiting {
    /// Begins to wait for `what`, as in "waiting for ...".
    pub fn new(what: impl Into<String>) -> Waiting {
        let (over, is_over) = sync_channel::<()>(1);
        let what = what.into();
        let said = std::thread::Builder::new().name("tape-waiting".to_owned()).spawn(move || {
            if is_over.recv_timeout(QUIET) == Err(RecvTimeoutError::Timeout) {
                note(format_args!("note: waiting for {what}"));
            }
        });
        // Without the thread there is no note; the wait is the same.
        Waiting { _over: said.is_ok().then_some(over) }
    }
}

/// After this time without a record a command that follows says what it waits for.
const SILENT: Duration = Duration::from_secs(10);

/// A command that follows, while no record comes.
#[derive(Debug)]
pub(crate) struct Silence {
    since: Instant,
    is_noted: bool,
}

impl Silence {
    pub(crate) fn new() -> Silence {
        Silence { since: Instant::now(), is_noted: false }
    }

    /// A record has come.
    pub(crate) fn over(&mut self) {
        *self = Silence::new();
    }

    /// Says after ten seconds, once, that it waits for `what`.
    pub(crate) fn note(&mut self, what: &str) {
        if !self.is_noted && self.since.elapsed() > SILENT {
            self.is_noted = true;
            note(format_args!("note: waiting for {what}; none has come for {} s", SILENT.as_secs()));
        }
    }
}

/// Waits 20 ms for storage to restart; `waiting` says it after a second.
///
/// # Errors
/// `down`, if storage was stopped cleanly; standard output is closed.
pub(crate) fn wait_for_storage(follow: &mut Follow, down: Error, waiting: &mut Option<Waiting>) -> Outcome {
    let control = follow.reader().control();
    if control.server().is_none() && control.instance().is_multiple_of(2) {
        return Err(down.into());
    }
    waiting.get_or_insert_with(|| Waiting::new("a storage process to serve the store again"));
    std::thread::sleep(Duration::from_millis(20));
    stdout::check()
}
