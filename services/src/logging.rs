//! Owns: the lines that a process writes to standard error: log lines and notes.
//!
//! What must hold: no failure of standard error (an unread pipe, a full disk, a closed terminal) ends or blocks a process
//! that serves a store; a line that cannot be written is lost and counted, and the next line that can be written follows
//! a line with the count.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::exit::Failure;
use crate::log_format::Form;

/// Most queued lines; more are lost.
const QUEUE: usize = 256;
/// How long a process waits at its end for queued lines.
const FLUSH: Duration = Duration::from_secs(1);

// Counters that order nothing: relaxed.
static LOST: AtomicU64 = AtomicU64::new(0);
static QUEUED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static LINES: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
static FORM: OnceLock<Form> = OnceLock::new();

/// Sets the form of this process's lines, once, and reports panics in it; returns it.
pub(crate) fn set_form(form: Form) -> Form {
    if FORM.set(form).is_ok() && form != Form::Text {
        std::panic::set_hook(Box::new(move |info| {
            write(form.panic(info).as_bytes(), &mut std::io::stderr());
        }));
    }
    self::form()
}

/// The form of this process's lines.
pub(crate) fn form() -> Form {
    FORM.get().copied().unwrap_or_default()
}

/// Lines lost since the start.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes lines directly.
pub struct Direct;

impl Write for Direct {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        write(line, &mut std::io::stderr());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Queues lines for the thread that writes them.
pub struct Queued;

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match LINES.get().map(|lines| lines.try_send(line.to_vec())) {
            Some(Ok(())) => QUEUED.fetch_add(1, Ordering::Relaxed),
            Some(Err(_)) | None => LOST.fetch_add(1, Ordering::Relaxed),
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that writes the lines of [`Queued`].
///
/// # Errors
/// The system's, if the thread cannot be created.
pub fn start() -> std::io::Result<()> {
    let (sender, lines) = sync_channel(QUEUE);
    if LINES.set(sender).is_ok() {
        std::thread::Builder::new().name("tape-log".to_owned()).spawn(move || write_all(&lines))?;
    }
    Ok(())
}

fn write_all(lines: &Receiver<Vec<u8>>) {
    let mut reported = 0;
    for line in lines {
        let gone = lost();
        let mut stderr = std::io::stderr();
        if gone > reported && write(lost_before(form(), gone - reported).as_bytes(), &mut stderr) {
            reported = gone;
        }
        write(&line, &mut stderr);
        WRITTEN.fetch_add(1, Ordering::Relaxed);
    }
}

/// The line with the number of lines that are lost before it.
fn lost_before(form: Form, lines: u64) -> String {
    let message = format!("{lines} log lines before this one were lost");
    form.line(Level::WARN, "log.lines_lost", &message, &[("lines", lines.into())])
}

/// Writes `line`, or counts it as lost.
fn write(line: &[u8], to: &mut impl Write) -> bool {
    let written = to.write_all(line).is_ok();
    LOST.fetch_add(u64::from(!written), Ordering::Relaxed);
    written
}

/// Waits up to 1 s for queued lines. Call it at the end of a process.
pub fn flush() {
    let began = Instant::now();
    while WRITTEN.load(Ordering::Relaxed) < QUEUED.load(Ordering::Relaxed) && began.elapsed() < FLUSH {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Prints `text` on a line of standard error.
pub fn note(text: impl std::fmt::Display) {
    write(form().note(&text.to_string()).as_bytes(), &mut std::io::stderr());
}

/// Prints why this process ends.
pub(crate) fn failed(failure: &Failure) {
    let code = [("exit_code", failure.code.into())];
    let line = match form() {
        Form::Text => format!("error: {failure}\n"),
        form => form.line(Level::ERROR, "process.failed", &failure.message, &code),
    };
    write(line.as_bytes(), &mut std::io::stderr());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_is_no_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let before = lost();
        assert!(!write(b"a line\n", &mut Full));
        assert_eq!(lost(), before + 1);
        assert!(write(b"a line\n", &mut Vec::new()));
        assert_eq!(lost(), before + 1);
    }

    #[test]
    fn the_count_of_lost_lines_is_a_line_of_its_form() {
        let object: serde_json::Value = serde_json::from_str(&lost_before(Form::Json, 3)).unwrap();
        assert_eq!((&object["event"], &object["fields"]["lines"]), (&"log.lines_lost".into(), &3.into()));
        assert_eq!(lost_before(Form::Journal, 3), "<4>WARN log.lines_lost: 3 log lines before this one were lost lines=3\n");
        assert!(lost_before(Form::Text, 3).ends_with("  WARN log.lines_lost: 3 log lines before this one were lost lines=3\n"));
    }
}
