//! Owns: the note of a command that waits for something for more than a second.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::logging::note;

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
