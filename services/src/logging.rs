//! Owns: the lines that a process writes to standard error: its log, and notes to whoever runs a command.
//!
//! What must hold: nothing that happens to standard error (a pipe that nobody reads, a full disk, a closed terminal) ends
//! a process or keeps one waiting that serves a store; a line that cannot be written is lost and counted, and the next
//! one that can be written comes after a line with their number.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait to be written, at most; what comes on top is lost.
const QUEUE: usize = 256;
/// How long the end of a process waits for the lines that are queued.
const FLUSH: Duration = Duration::from_secs(1);

// Lone counters, which order nothing: relaxed.
static LOST: AtomicU64 = AtomicU64::new(0);
static QUEUED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static LINES: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();

/// Lines that could not be written since the start.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes lines itself.
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

/// Gives lines to the thread that writes them.
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

/// Starts the thread that writes what [`Queued`] is given.
///
/// # Errors
/// The system's, if no thread can be made.
pub fn start() -> std::io::Result<()> {
    let (sender, lines) = sync_channel(QUEUE);
    if LINES.set(sender).is_ok() {
        std::thread::Builder::new().name("tape-log".to_owned()).spawn(move || write_all(&lines))?;
    }
    Ok(())
}

fn write_all(lines: &Receiver<Vec<u8>>) {
    let mut told = 0;
    for line in lines {
        let gone = lost();
        let mut stderr = std::io::stderr();
        if gone > told && write(format!("{} log lines before this one were lost\n", gone - told).as_bytes(), &mut stderr) {
            told = gone;
        }
        write(&line, &mut stderr);
        WRITTEN.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes `line`, or counts it as lost.
fn write(line: &[u8], to: &mut impl Write) -> bool {
    let written = to.write_all(line).is_ok();
    LOST.fetch_add(u64::from(!written), Ordering::Relaxed);
    written
}

/// Waits a moment for the lines that are queued: to be called at the end of a process.
pub fn flush() {
    let began = Instant::now();
    while WRITTEN.load(Ordering::Relaxed) < QUEUED.load(Ordering::Relaxed) && began.elapsed() < FLUSH {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Says `text` to whoever runs a command, on a line of its own.
pub fn note(text: impl std::fmt::Display) {
    write(format!("{text}\n").as_bytes(), &mut std::io::stderr());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_no_error() {
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
}
