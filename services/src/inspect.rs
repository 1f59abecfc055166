//! Owns: `tape inspect wal|sst|manifest|memtable`: prints the files of a store. The commands change nothing and run with or
//! without storage.

use std::path::Path;

use tapestore::disk::{Open, RealDisk};
use tapestore::error::Error;
use tapestore::manifest::{self, State};
use tapestore::reader::{At, Reader, Tally};
use tapestore::record::split;
use tapestore::sstable::{self, FileMeta, Table};
use tapestore::wal::{self, Body, Chain, DurableMark, End, Frame, FrameType, Meta, meta};

use crate::exit::{Failure, NO_INPUT, Outcome, USAGE};
use crate::output::{Format, table};
use crate::terminal::{self, thousands};

/// `tape inspect wal`.
#[derive(clap::Args, Debug)]
pub struct Wal {
    /// Print every frame, not only the sums
    #[arg(long)]
    frames: bool,
}

/// Reads `store.meta`.
///
/// # Errors
/// The directory is not a store.
pub fn read_meta(store: &Path) -> Outcome<Meta> {
    let found = meta::read(&RealDisk, store)?;
    found.ok_or_else(|| Failure::new(NO_INPUT, format!("{} is not a store: it has no store.meta", store.display())))
}

/// The state of the manifest, and the reason why bytes after its last good edit are no edit. A store without a manifest has
/// no SSTables yet.
///
/// # Errors
/// Damage; an unreadable file.
pub fn read_manifest(store: &Path, meta: &Meta) -> Outcome<(State, Option<&'static str>)> {
    if !store.join(manifest::format::CURRENT).exists() {
        return Ok((State::begin(meta.store_id), None));
    }
    let (follower, torn) = manifest::read_all(&RealDisk, store, meta.store_id, &mut |_, _| {})?;
    Ok((follower.state().clone(), torn.map(|t| t.what)))
}

/// Most attempts to open the SSTables while a compaction replaces some.
const TRIES: u32 = 50;

/// The SSTables of one version, open: they stay readable after a compaction has replaced them.
///
/// # Errors
/// Damage; a missing SSTable.
pub fn open_history(store: &Path, meta: &Meta) -> Outcome<(State, Vec<Table>)> {
    let mut tries = 0;
    loop {
        let (state, _) = read_manifest(store, meta)?;
        let open = |file: &FileMeta| Table::open(&RealDisk, &store.join(sstable::DIR), *file);
        match state.files.values().map(open).collect::<Result<Vec<_>, _>>() {
            Err(Error::Missing { .. }) if tries < TRIES => tries += 1,
            other => return Ok((state, other?)),
        }
    }
}

/// The contents of a log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Frames by type: data, control, no-op, pad.
    pub frames: [u64; 4],
    /// Control entries.
    pub entries: u64,
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
            FrameType::NoOp | FrameType::Membership => 2,
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
            Body::Control(entries) => self.entries += entries.len() as u64,
            Body::Empty | Body::Membership(_) => {}
        }
        Ok(())
    }
}

/// Reads the log of `store` from the checkpoint on and passes each frame to `visit`; also returns the checkpoint.
///
/// # Errors
/// Damage at or below the durable mark; an unreadable file.
pub fn read_log(
    store: &Path,
    mut visit: impl FnMut(&Frame<'_>) -> tapestore::error::Result<()>,
) -> Outcome<(Meta, Sums, End, Chain)> {
    let meta = read_meta(store)?;
    let dir = store.join(wal::DIR);
    loop {
        let from = read_manifest(store, &meta)?.0.checkpoint;
        let total: u64 = std::fs::read_dir(&dir)?.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum();
        let bar = terminal::progress(total, true, "reading the log");
        let mut sums = Sums::default();
        let end = wal::scan(&RealDisk, &dir, &meta, from, Open::Read, |frame| {
            bar.set_position(frame.header.position.0 - from.position.0.min(frame.header.position.0));
            sums.add(frame)?;
            visit(frame)
        });
        bar.finish_and_clear();
        match end {
            Ok(end) => return Ok((meta, sums, end, from)),
            // Storage has flushed the records meanwhile and reuses the segments.
            Err(Error::Corrupt { .. } | Error::Missing { .. } | Error::Io { .. } | Error::Foreign { .. })
                if read_manifest(store, &meta)?.0.checkpoint != from => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// `tape inspect wal`.
///
/// # Errors
/// As [`read_log`].
pub fn inspect_wal(store: &Path, args: &Wal, format: Format) -> Outcome {
    let mut t = table(&["index", "type", "position", "bytes", "term", "count", "first LSN", "ingest time"]);
    let (meta, sums, end, from) = read_log(store, |frame| {
        let h = &frame.header;
        if args.frames && format.json {
            out!(
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
        out!("{t}");
    }
    print_sums(store, &meta, &sums, &end, from, format);
    Ok(())
}

fn print_sums(store: &Path, meta: &Meta, sums: &Sums, end: &End, from: Chain, format: Format) {
    let [data, control, noop, pad] = sums.frames;
    let DurableMark { position, lsn, .. } = end.durable_mark;
    let tail = end.tail.as_ref().filter(|t| t.is_frame);
    if format.json {
        let object = serde_json::json!({
            "store_id": format!("{:032x}", meta.store_id), "segment_size": meta.segment_size, "term": meta.term.0,
            "timeline": meta.timeline.0, "clean": meta.clean, "frames": { "data": data, "control": control, "noop": noop, "pad": pad },
            "records": sums.tally.count, "first_lsn": sums.tally.first.0, "last_lsn": sums.tally.last.0,
            "checksum": format!("{:08x}", sums.tally.checksum), "entries": sums.entries, "bytes": sums.bytes,
            "checkpoint": from.position.0, "checkpoint_lsn": from.lsn.0 - 1,
            "end": end.chain.position.0, "known_durable": position.0, "known_durable_lsn": lsn.0,
            "torn_tail": tail.map(|t| t.bad.what),
        });
        out!("{object}");
        return;
    }
    out!("log of {} (store {:032x}, created {})", store.display(), meta.store_id, meta.created);
    out!(
        "  segments of {} bytes, term {}, timeline {}, last stop {}",
        thousands(meta.segment_size),
        meta.term,
        meta.timeline,
        if meta.clean { "clean" } else { "not clean, or running" }
    );
    out!(
        "  {} data frames, {} control, {} no-op, {} pads; {} bytes",
        thousands(data),
        thousands(control),
        thousands(noop),
        pad,
        thousands(sums.bytes)
    );
    out!(
        "  {} records, LSN {} to {}, checksum {:08x}; {} control entries",
        thousands(sums.tally.count),
        sums.tally.first,
        sums.tally.last,
        sums.tally.checksum,
        thousands(sums.entries)
    );
    if from.lsn.0 > 1 {
        out!("  begins at the checkpoint, position {}: records up to {} are flushed", from.position, from.lsn.0 - 1);
    }
    out!("  ends at position {}; durable mark at position {} (LSN {})", end.chain.position, position, lsn);
    if let Some(tail) = tail {
        out!(
            "  after it: bytes of an unfinished or torn frame ({} at offset {} of {})",
            tail.bad.what,
            tail.offset,
            tail.path.display()
        );
    }
}

/// `tape inspect manifest`.
#[derive(clap::Args, Debug)]
pub struct ManifestArgs {
    /// Print every edit, not only the resulting state
    #[arg(long)]
    edits: bool,
}

/// The JSON of a file.
fn file_json(file: &FileMeta) -> serde_json::Value {
    serde_json::json!({
        "file": sstable::file_name(file.kind, file.id), "id": file.id, "kind": kind_name(file),
        "window": file.window.from.to_string(), "window_seconds": file.window.len / 1_000_000_000,
        "rows": file.rows, "bytes": file.len, "first_time": file.time.0.to_string(), "last_time": file.time.1.to_string(),
        "first_lsn": file.lsn.0.0, "last_lsn": file.lsn.1.0, "crc": format!("{:08x}", file.crc),
    })
}

fn kind_name(file: &FileMeta) -> String {
    tapestore::record::schema(file.kind).map_or_else(|| file.kind.0.to_string(), |s| s.name.to_owned())
}

/// The length of a window, in a unit.
fn window_name(len: u64) -> String {
    match len / 3_600_000_000_000 {
        1 => "1 h".to_owned(),
        24 => "1 d".to_owned(),
        720 => "30 d".to_owned(),
        _ => "all".to_owned(),
    }
}

/// A table of SSTables.
fn file_table<'f>(files: impl Iterator<Item = &'f FileMeta>) -> comfy_table::Table {
    let mut t = table(&["file", "window", "", "rows", "bytes", "first time", "last time", "first LSN", "last LSN"]);
    for f in files {
        t.add_row([
            sstable::file_name(f.kind, f.id),
            f.window.from.to_string().get(..16).unwrap_or("").to_owned(),
            window_name(f.window.len),
            thousands(f.rows),
            thousands(f.len),
            f.time.0.to_string(),
            f.time.1.to_string(),
            f.lsn.0.to_string(),
            f.lsn.1.to_string(),
        ]);
    }
    t
}

/// `tape inspect manifest`.
///
/// # Errors
/// Damage; an unreadable file.
pub fn inspect_manifest(store: &Path, args: &ManifestArgs, format: Format) -> Outcome {
    let meta = read_meta(store)?;
    if args.edits {
        manifest::read_all(&RealDisk, store, meta.store_id, &mut |header, edit| {
            let (added, removed) = (edit.added.len(), edit.removed.len());
            let checkpoint = edit.checkpoint.map(|c| c.lsn.0 - 1);
            if format.json {
                let object = serde_json::json!({ "edit": header.seq, "bytes": header.total_len(), "added": added, "removed": removed,
                    "checkpoint_lsn": checkpoint, "publishers": edit.publishers.len(), "names": edit.names.len() });
                out!("{object}");
            } else {
                let upto = checkpoint.map_or_else(String::new, |c| format!(", checkpoint at LSN {c}"));
                out!(
                    "edit {:>6}: {added} files added, {removed} removed{upto}, {} publishers, {} names",
                    header.seq,
                    edit.publishers.len(),
                    edit.names.len()
                );
            }
        })?;
    }
    let (state, torn) = read_manifest(store, &meta)?;
    let (rows, bytes) = (state.files.values().map(|f| f.rows).sum::<u64>(), state.files.values().map(|f| f.len).sum::<u64>());
    if format.json {
        let object = serde_json::json!({
            "edit": state.seq, "files": state.files.values().map(file_json).collect::<Vec<_>>(), "records": rows, "bytes": bytes,
            "covered": state.covered().0, "checkpoint": state.checkpoint.position.0, "next_file": state.next_id,
            "publishers": state.publishers.len(), "names": state.names.len(), "torn": torn, "expired": state.expired,
        });
        out!("{object}");
        return Ok(());
    }
    out!(
        "manifest of {}: edit {}, {} SSTables, {} records, {} bytes",
        store.display(),
        state.seq,
        thousands(state.files.len() as u64),
        thousands(rows),
        thousands(bytes)
    );
    out!(
        "  checkpoint: records up to {}, {} of them expired; the log continues at position {}; {} publishers, {} instrument names",
        state.covered(),
        thousands(state.expired),
        state.checkpoint.position,
        state.publishers.len(),
        thousands(state.names.len() as u64)
    );
    if let Some(torn) = torn {
        out!("  after it: an unfinished or torn edit ({torn})");
    }
    out!("{}", file_table(state.files.values()));
    Ok(())
}

/// `tape inspect sst`.
#[derive(clap::Args, Debug)]
pub struct Sst {
    /// Name or number of an SSTable [default: a list of all]
    file: Option<String>,
    /// Print its blocks
    #[arg(long)]
    blocks: bool,
    /// Print its series
    #[arg(long)]
    series: bool,
}

/// `tape inspect sst`.
///
/// # Errors
/// Damage; no such SSTable.
pub fn inspect_sst(store: &Path, args: &Sst, format: Format) -> Outcome {
    let (state, opened) = open_history(store, &read_meta(store)?)?;
    let Some(wanted) = &args.file else {
        if format.json {
            state.files.values().for_each(|f| out!("{}", file_json(f)));
        } else {
            out!("{}", file_table(state.files.values()));
        }
        return Ok(());
    };
    let is_wanted = |f: &&FileMeta| wanted.parse() == Ok(f.id) || sstable::file_name(f.kind, f.id) == *wanted;
    let opened = opened.iter().find(|t| is_wanted(&t.meta()));
    let Some((file, opened)) = opened.map(|t| (t.meta(), t)) else {
        return Err(Failure::new(USAGE, format!("'{wanted}' is not an SSTable of this store; list them with: tape inspect sst")));
    };
    let (blocks, series) = (opened.blocks()?, opened.series()?);
    if format.json {
        let mut object = file_json(file);
        if let Some(object) = object.as_object_mut() {
            object.insert("blocks".into(), blocks.len().into());
            object.insert("series".into(), series.len().into());
            object.insert("runs".into(), opened.runs()?.len().into());
            let sections: Vec<u64> = opened.trailer()?.sections.iter().map(|s| s.len).collect();
            object.insert("section_bytes".into(), sections.into());
        }
        out!("{object}");
        return Ok(());
    }
    out!("{}", file_table(std::iter::once(file)));
    let trailer = opened.trailer()?;
    let columns: u64 = blocks.iter().map(|b| b.body_len).sum();
    out!(
        "  {} blocks, {} series, {} runs; {:.1} bytes a row, {:.1} of them columns",
        blocks.len(),
        thousands(series.len() as u64),
        thousands(opened.runs()?.len() as u64),
        file.len as f64 / file.rows as f64,
        columns as f64 / file.rows as f64
    );
    let names = ["schema", "blocks", "series", "runs", "LSNs", "places", "filter", "block filters"];
    let sections: Vec<String> = names.iter().zip(&trailer.sections).map(|(n, s)| format!("{n} {}", thousands(s.len))).collect();
    out!("  sections, in bytes: {}", sections.join(", "));
    if args.blocks {
        let mut t = table(&["block", "offset", "bytes", "rows", "first time", "last time", "first LSN", "last LSN"]);
        for (i, b) in blocks.iter().enumerate() {
            let times = [b.time.min, b.time.max].map(|t| tapestore::time::Ts(t).to_string());
            let [first, last] = times;
            let [i, offset, bytes, rows] = [i as u64, b.offset, b.body_len, u64::from(b.rows)].map(|n| n.to_string());
            t.add_row([i, offset, bytes, rows, first, last, b.lsn.min.to_string(), b.lsn.max.to_string()]);
        }
        out!("{t}");
    }
    if args.series {
        let mut t = table(&["instrument", "rows", "block", "row", "first time", "last time"]);
        for s in series {
            let [first, last] = [s.time.min, s.time.max].map(|t| tapestore::time::Ts(t).to_string());
            let [instrument, rows, block, row] = [s.instrument.0, s.rows, s.block, s.row].map(|n| n.to_string());
            t.add_row([instrument, rows, block, row, first, last]);
        }
        out!("{t}");
    }
    opened.check()?;
    Ok(())
}

/// `tape inspect memtable`: the MemTables in shared memory.
///
/// # Errors
/// No storage process serves the store.
pub fn inspect_memtable(store: &Path, format: Format) -> Outcome {
    let mut reader = Reader::open(store)?;
    let snapshot = reader.snapshot(At::Appended)?;
    let len = reader.control().statistic(tapestore::shm::control::Statistic::MemTableLen);
    let mut t = table(&["table", "first LSN", "series", "bytes used", "of"]);
    for (id, base, used, series) in snapshot.memtables() {
        if format.json {
            out!("{}", serde_json::json!({ "table": id, "first_lsn": base.0, "series": series, "used": used, "bytes": len }));
        } else {
            t.add_row([id.to_string(), base.to_string(), thousands(series as u64), thousands(used), thousands(len)]);
        }
    }
    if !format.json {
        out!("{t}");
        out!("  records up to {} are in SSTables, up to {} in these", snapshot.history().covered(), snapshot.last());
    }
    Ok(())
}
