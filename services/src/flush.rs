//! Owns: `tape flush`: asks storage to flush its MemTables to SSTables, and waits until they hold every committed record.

use std::path::Path;
use std::time::{Duration, Instant};

use tapestore::error::Error;
use tapestore::reader::Reader;
use tapestore::shm::control::{Control, Statistic};
use tapestore_engine::consensus::message::Command;

use crate::cluster::request;
use crate::exit::{Failure, INTERRUPTED, LATER, Outcome};
use crate::output::Format;
use crate::terminal::{self, thousands};
use crate::waiting::Waiting;

/// Interval of looks at the control page.
const LOOK: Duration = Duration::from_millis(10);
/// The longest time without progress: a flush of the largest MemTable takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The last record in SSTables.
fn covered(control: &Control) -> u64 {
    control.statistic(Statistic::Covered)
}

/// `tape flush`.
///
/// # Errors
/// No storage process serves the store (exit code 69); SSTables do not grow for a minute (exit code 75); it was interrupted
/// (exit code 4).
pub fn run(store: &Path, format: Format) -> Outcome {
    let (flushed, covered) = all(store)?;
    if format.json {
        out!("{}", serde_json::json!({ "flushed": flushed, "covered": covered }));
    } else {
        let (flushed, covered) = (thousands(flushed), thousands(covered));
        out!("{flushed} records flushed; SSTables hold the records up to {covered}");
    }
    Ok(())
}

/// Flushes all MemTables and waits for it; how many records were flushed, and up to which SSTables hold them.
///
/// # Errors
/// As [`run`].
pub(crate) fn all(store: &Path) -> Outcome<(u64, u64)> {
    let reader = Reader::open(store)?;
    let control = reader.control();
    let (before, wanted) = (covered(control), control.committed().0);
    // Sent to a stopped store too: the failure says why there is no answer.
    request::own_host(store, Command::Flush)?;
    let _waiting = Waiting::new("storage to flush the MemTables");
    let stop = terminal::stop_flag()?;
    let bar = terminal::progress(wanted.saturating_sub(before), false, "storage is flushing MemTables");
    let (mut seen, mut since) = (before, Instant::now());
    while covered(control) < wanted {
        if terminal::is_raised(&stop) {
            return Err(Failure::new(INTERRUPTED, "interrupted: storage continues to flush without this command"));
        }
        if !reader.is_storage_alive() {
            return Err(Error::StorageDown { dir: store.to_path_buf(), why: "it ended during a flush" }.into());
        }
        if covered(control) != seen {
            (seen, since) = (covered(control), Instant::now());
            bar.set_position(seen.saturating_sub(before));
        } else if since.elapsed() > PATIENCE {
            let failures = control.statistic(Statistic::FlushFailures);
            let why = format!(
                "{}: SSTables hold records up to {} of {}, and no MemTable was flushed for a minute ({failures} attempts failed); \
                 the log of tape-storage has the cause, and tape status shows it",
                store.display(),
                thousands(seen),
                thousands(wanted)
            );
            return Err(Failure::new(LATER, why));
        }
        std::thread::sleep(LOOK);
    }
    bar.finish_and_clear();
    Ok((covered(control).saturating_sub(before), covered(control)))
}
