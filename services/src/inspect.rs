//! Owns: the commands that look at the files of a store: `inspect wal`, `verify`. They change nothing,
//! and work while storage runs and when it does not.

use std::path::Path;

use tapestore::disk::{Open, RealDisk};
use tapestore::lsn::Lsn;
use tapestore::reader::{At, Reader, Tally};
use tapestore::record::split;
use tapestore::wal::{self, Body, End, Evidence, Frame, FrameType, Meta, meta};

use crate::exit::{DIFFERENCE, Failure, NO_INPUT, Outcome};
use crate::output::{Format, table};
use crate::terminal::{self, thousands};

/// `tape inspect wal`.
#[derive(clap::Args, Debug)]
pub struct Wal {
    /// Show every frame, not only the sums
    #[arg(long)]
    frames: bool,
}

fn read_meta(store: &Path) -> Outcome<Meta> {
    let found = meta::read(&RealDisk, store)?;
    found.ok_or_else(|| Failure::new(NO_INPUT, format!("{} is not a store: it has no store.meta", store.display())))
}

/// What a log holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Frames by type: data, control, no-op, pad.
    pub frames: [u64; 4],
    /// Facts.
    pub facts: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// Records.
    pub tally: Tally,
}

impl Sums {
    fn add(&mut self, frame: &Frame<'_>) -> tapestore::error::Result<()> {
        let header = &frame.header;
        let kind = match header.kind() {
            FrameType::Data => 0,
            FrameType::Control => 1,
            FrameType::NoOp => 2,
            FrameType::Pad => 3,
        };
        if let Some(count) = self.frames.get_mut(kind) {
            *count += 1;
        }
        self.bytes += header.total_len();
        match &frame.body {
            Body::Data(data) => {
                let mut lsn = header.first_lsn;
                for record in split(data.records) {
                    self.tally.add(lsn, record?.words());
                    lsn = lsn.next();
                }
            }
            Body::Control(facts) => self.facts += facts.len() as u64,
            Body::Empty => {}
        }
        Ok(())
    }
}

/// Reads the whole log of `store`, showing each frame to `visit`.
///
/// # Errors
/// Damage at or below what is known durable; an unreadable file.
pub fn read_log(store: &Path, mut visit: impl FnMut(&Frame<'_>) -> tapestore::error::Result<()>) -> Outcome<(Meta, Sums, End)> {
    let meta = read_meta(store)?;
    let dir = store.join(wal::DIR);
    let total = std::fs::read_dir(&dir)?.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum();
    let bar = terminal::progress(total, true, "reading the log");
    let mut sums = Sums::default();
    let end = wal::scan(&RealDisk, &dir, &meta, Open::Read, |frame| {
        bar.set_position(frame.header.position.0);
        sums.add(frame)?;
        visit(frame)
    });
    bar.finish_and_clear();
    Ok((meta, sums, end?))
}

/// `tape inspect wal`.
///
/// # Errors
/// As [`read_log`].
pub fn inspect_wal(store: &Path, args: &Wal, format: Format) -> Outcome {
    let mut t = table(&["index", "type", "position", "bytes", "term", "count", "first LSN", "ingest time"]);
    let (meta, sums, end) = read_log(store, |frame| {
        let h = &frame.header;
        if args.frames && format.json {
            println!(
                "{}",
                serde_json::json!({
                    "index": h.index.0, "type": format!("{:?}", h.kind()), "position": h.position.0, "bytes": h.total_len(),
                    "term": h.term.0, "count": h.count, "first_lsn": h.first_lsn.0, "ingest_ts": h.ingest_ts.to_string(),
                })
            );
        } else if args.frames {
            let kind = format!("{:?}", h.kind());
            let cells = [h.index.0, h.position.0, h.total_len(), u64::from(h.term.0), u64::from(h.count), h.first_lsn.0]
                .map(|n| n.to_string());
            let [index, position, bytes, term, count, lsn] = cells;
            t.add_row([index, kind, position, bytes, term, count, lsn, h.ingest_ts.to_string()]);
        }
        Ok(())
    })?;
    if args.frames && !format.json {
        println!("{t}");
    }
    print_sums(store, &meta, &sums, &end, format);
    Ok(())
}

fn print_sums(store: &Path, meta: &Meta, sums: &Sums, end: &End, format: Format) {
    let [data, control, noop, pad] = sums.frames;
    let Evidence { position, lsn, .. } = end.evidence;
    let tail = end.tail.as_ref().filter(|t| t.is_frame);
    if format.json {
        let object = serde_json::json!({
            "store_id": format!("{:032x}", meta.store_id), "segment_size": meta.segment_size, "term": meta.term.0,
            "timeline": meta.timeline.0, "clean": meta.clean, "frames": { "data": data, "control": control, "noop": noop, "pad": pad },
            "records": sums.tally.count, "first_lsn": sums.tally.first.0, "last_lsn": sums.tally.last.0,
            "checksum": format!("{:08x}", sums.tally.checksum), "facts": sums.facts, "bytes": sums.bytes,
            "end": end.chain.position.0, "known_durable": position.0, "known_durable_lsn": lsn.0,
            "torn_tail": tail.map(|t| t.bad.what),
        });
        println!("{object}");
        return;
    }
    println!("log of {} (store {:032x}, created {})", store.display(), meta.store_id, meta.created);
    println!(
        "  segments of {} bytes, term {}, timeline {}, last stop {}",
        thousands(meta.segment_size),
        meta.term,
        meta.timeline,
        if meta.clean { "clean" } else { "not clean, or running" }
    );
    println!(
        "  {} data frames, {} control, {} no-op, {} pads; {} bytes",
        thousands(data),
        thousands(control),
        thousands(noop),
        pad,
        thousands(sums.bytes)
    );
    println!(
        "  {} records, LSN {} to {}, checksum {:08x}; {} facts",
        thousands(sums.tally.count),
        sums.tally.first,
        sums.tally.last,
        sums.tally.checksum,
        thousands(sums.facts)
    );
    println!("  ends at position {}; known durable up to {} (LSN {})", end.chain.position, position, lsn);
    if let Some(tail) = tail {
        println!(
            "  after it: bytes of an unfinished or torn frame ({} at offset {} of {})",
            tail.bad.what,
            tail.offset,
            tail.path.display()
        );
    }
}

/// `tape verify`: every frame of the log, and every record that storage serves against it.
///
/// # Errors
/// Damage (exit code 65); a record in shared memory that is not the one in the log (exit code 1).
pub fn verify(store: &Path, format: Format) -> Outcome {
    let served = Reader::open(store).and_then(|mut r| r.snapshot(At::Durable)).ok();
    let mut compared = 0u64;
    let mut different: Option<Lsn> = None;
    let (_, sums, end) = read_log(store, |frame| {
        let (Some(snapshot), Body::Data(data)) = (&served, &frame.body) else { return Ok(()) };
        let mut lsn = frame.header.first_lsn;
        for record in split(data.records) {
            let record = record?;
            if lsn >= snapshot.first() && lsn <= snapshot.last() {
                compared += 1;
                if snapshot.get(lsn).is_none_or(|row| row.record != record) {
                    different.get_or_insert(lsn);
                }
            }
            lsn = lsn.next();
        }
        Ok(())
    })?;
    let missing = served.as_ref().filter(|s| s.last() > sums.tally.last).map(|s| s.last());
    if let Some(lsn) = different.or(missing) {
        return Err(Failure::new(DIFFERENCE, format!("record {lsn} in shared memory is not the one in the log")));
    }
    if format.json {
        let object = serde_json::json!({
            "frames": sums.frames.iter().sum::<u64>(), "records": sums.tally.count, "bytes": sums.bytes,
            "checksum": format!("{:08x}", sums.tally.checksum), "compared_with_memory": compared, "end": end.chain.position.0,
        });
        println!("{object}");
        return Ok(());
    }
    let frames: u64 = sums.frames.iter().sum();
    println!(
        "{} frames, {} records, {} bytes: all sound (checksum {:08x})",
        thousands(frames),
        thousands(sums.tally.count),
        thousands(sums.bytes),
        sums.tally.checksum
    );
    match served {
        Some(_) => println!("{} records in shared memory are the same as in the log", thousands(compared)),
        None => println!("no storage process serves the store: shared memory was not compared"),
    }
    Ok(())
}
