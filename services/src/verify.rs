//! Owns: `tape verify`: checks every byte of SSTables, manifest and log, and compares shared memory with the log. It changes
//! nothing, and runs with or without storage.

use std::path::Path;

use tapestore::disk::RealDisk;
use tapestore::lsn::Lsn;
use tapestore::manifest::State;
use tapestore::reader::{At, Reader, Snapshot};
use tapestore::record::split;
use tapestore::sstable::{self, Table};
use tapestore::wal::Body;
use tapestore_engine::cluster_admin::is_counted_on;

use crate::exit::{DATA, DIFFERENCE, Failure, Outcome};
use crate::inspect::{Sums, open_history, read_log, read_meta};
use crate::output::Format;
use crate::terminal::{self, thousands};

/// The results.
#[derive(Default)]
struct Checked {
    edit: u64,
    files: u64,
    flushed: u64,
    bytes: u64,
    compared: u64,
    orphans: u64,
    expired: u64,
}

/// LSNs checked for density at a time, one bit each.
const SEEN: u64 = 128 << 20;

/// `tape verify`.
///
/// # Errors
/// Damage (exit code 65); a record in shared memory differs from the log (exit code 1).
pub fn verify(store: &Path, format: Format) -> Outcome {
    let meta = read_meta(store)?;
    // A store at rest has no shared memory to compare.
    let shared = Reader::open(store).ok().filter(|reader| !reader.is_at_rest());
    let mut served = shared.and_then(|mut reader| reader.snapshot(At::Durable).ok());
    let (state, files) = open_history(store, &meta)?;
    if let Some(warning) = crate::held_files::maps_warning(files.len() as u64) {
        crate::logging::note(warning);
    }
    let mut checked = Checked { edit: state.seq, expired: state.expired, ..Checked::default() };
    verify_files(&files, &mut checked)?;
    verify_density(store, &files, state.covered(), state.expired)?;
    checked.orphans = orphans(store, &state)?;
    let mut different: Option<Lsn> = None;
    let (_, sums, end, from) = read_log(store, |frame| {
        let (Some(snapshot), Body::Data(data)) = (&mut served, &frame.body) else { return Ok(()) };
        let mut lsn = frame.header.first_lsn;
        for record in split(data.records) {
            let record = record?;
            if lsn >= snapshot.first() && lsn <= snapshot.last() {
                checked.compared += 1;
                if snapshot.get(lsn)?.is_none_or(|row| row.record != record) {
                    different.get_or_insert(lsn);
                }
            }
            lsn = lsn.next();
        }
        Ok(())
    })?;
    let last = sums.tally.last.max(Lsn(from.lsn.0 - 1));
    let missing = served.as_ref().map(Snapshot::last).filter(|l| *l > last);
    let found = different.map(|lsn| (lsn, "differs from the log")).or(missing.map(|lsn| (lsn, "is not in the log")));
    if let Some((lsn, how)) = found {
        let text = format!(
            "record {lsn} in shared memory {how}. Restart tape-storage, which rebuilds shared memory from the log, then run: \
             tape verify --store {}",
            store.display()
        );
        return Err(Failure::new(DIFFERENCE, text));
    }
    print(&checked, &sums, end.chain.position.0, served.is_some(), format);
    Ok(())
}

/// The next command for a store whose SSTables do not hold each record once.
fn replace(store: &Path) -> String {
    let shown = store.display();
    if is_counted_on(&RealDisk, store).unwrap_or(true) {
        return format!(
            "Nothing was changed. If this host leads, run: tape cluster transfer NODE. Then stop storage and replace the store \
             by the leader's: tape cluster install-snapshot --from HOST:PORT --store {shown}"
        );
    }
    format!("Nothing was changed. Restore a backup: tape restore BACKUP --store {shown}-restored")
}

/// Reads every byte of every SSTable.
fn verify_files(files: &[Table], checked: &mut Checked) -> Outcome {
    let bar = terminal::progress(files.iter().map(|f| f.meta().len).sum(), true, "reading SSTables");
    for table in files {
        checked.flushed += table.verify(|block| {
            bar.inc(block.entry.body_len);
            Ok(())
        })?;
        table.release();
        checked.files += 1;
        checked.bytes += table.meta().len;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Checks that every record up to `covered` is in exactly one SSTable, except `expired` ones that are in none.
fn verify_density(store: &Path, files: &[Table], covered: Lsn, expired: u64) -> Outcome {
    let (mut first, mut absent, mut example) = (1, 0, None);
    while first <= covered.0 {
        let last = covered.0.min(first + SEEN - 1);
        let mut seen = vec![0u64; ((last - first) / 64 + 1) as usize];
        for file in files.iter().filter(|f| f.meta().lsn.0.0 <= last && f.meta().lsn.1.0 >= first) {
            for index in 0..file.blocks()?.len() as u32 {
                for lsn in file.block(index)?.lsns().iter().filter(|l| (first..=last).contains(*l)) {
                    let (word, bit) = ((lsn - first) as usize / 64, 1u64 << ((lsn - first) % 64));
                    let Some(word) = seen.get_mut(word) else { continue };
                    if *word & bit != 0 {
                        return Err(Failure::new(
                            DATA,
                            format!("record {lsn} is in two SSTables; one is {}. {}", file.path().display(), replace(store)),
                        ));
                    }
                    *word |= bit;
                }
            }
            file.check()?;
        }
        let is_seen = |l: u64| seen.get((l - first) as usize / 64).is_some_and(|w| w >> ((l - first) % 64) & 1 == 1);
        let here = (last + 1 - first) - seen.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        if here > 0 {
            absent += here;
            example = example.or_else(|| (first..=last).find(|l| !is_seen(*l)));
        }
        first = last + 1;
    }
    if absent != expired {
        let example = example.map_or_else(String::new, |l| format!("; record {l} is in none"));
        return Err(Failure::new(
            DATA,
            format!(
                "{absent} of the records up to {covered} are in no SSTable, but the manifest counts {expired} expired{example}. \
                 {}",
                replace(store)
            ),
        ));
    }
    Ok(())
}

/// SSTables that no edit names: of a flush or merge in progress, or of an interrupted one, which the next start removes.
fn orphans(store: &Path, state: &State) -> Outcome<u64> {
    let dir = store.join(sstable::DIR);
    if !dir.exists() {
        return Ok(0);
    }
    let names = std::fs::read_dir(dir)?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let named = |name: &String| sstable::file_id(name).is_some_and(|id| state.files.contains_key(&id) && !name.ends_with(".tmp"));
    Ok(names.filter(|n| !named(n)).count() as u64)
}

fn print(checked: &Checked, sums: &Sums, end: u64, is_served: bool, format: Format) {
    let frames: u64 = sums.frames.iter().sum();
    if format.json {
        let object = serde_json::json!({
            "files": checked.files, "flushed_records": checked.flushed, "file_bytes": checked.bytes, "manifest_edit": checked.edit,
            "orphans": checked.orphans, "expired": checked.expired, "frames": frames, "records": sums.tally.count, "bytes": sums.bytes,
            "checksum": format!("{:08x}", sums.tally.checksum), "compared_with_memory": checked.compared, "end": end,
        });
        out!("{object}");
        return;
    }
    out!(
        "SSTables: {} files, {} records, {} bytes: all sound, each record once (manifest edit {})",
        thousands(checked.files),
        thousands(checked.flushed),
        thousands(checked.bytes),
        checked.edit
    );
    if checked.expired > 0 {
        out!("          {} records have expired and are in no SSTable", thousands(checked.expired));
    }
    if checked.orphans > 0 {
        out!("          {} other files: being written, or left by a kill and removed at the next start", checked.orphans);
    }
    out!(
        "log:      {} frames, {} records, {} bytes: all sound (checksum {:08x})",
        thousands(frames),
        thousands(sums.tally.count),
        thousands(sums.bytes),
        sums.tally.checksum
    );
    if is_served {
        out!("memory:   {} records in shared memory are the same as in the log", thousands(checked.compared));
    } else {
        out!("memory:   not compared: no storage process serves the store");
    }
}
