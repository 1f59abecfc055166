//! Owns: one merge of a compaction: SSTables in, one run out, as a stream.
//!
//! Series by series, the rows of all files are merged by (index time, LSN): a file yields rows as long as its key is the
//! lowest. The run is split into files of at most [`Job::rows_max`] rows.
//!
//! What must hold: every row of the inputs is in the run, once, or counts as expired. A merge that fails or is stopped leaves
//! no file. Memory is 512 rows of each input, and 60 bytes a row of the file being written.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;

use super::Merge;
use super::retention::Cutoff;
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::lsn::{InstrumentId, Lsn, PubSeq};
use tapestore::record::{Schema, TimeRange, schema};
use tapestore::sabotage::{self, Sabotage};
use tapestore::sstable::format::{RunEntry, STORES_RESERVED};
use tapestore::sstable::{self, FileMeta, Origin, Slice, Spec, Table, Window, Writer};
use tapestore::time::Ts;

/// Rows that are read from a file at a time.
const ROWS: usize = 512;
/// Bytes after which the output is synced, so that the end of a file is not one long sync.
const SETTLE: u64 = 8 << 20;

/// A merge to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Identity of the store.
    pub store_id: u128,
    /// The inputs and the window.
    pub merge: Merge,
    /// The first of the reserved file ids; see [`Job::ids`].
    pub first_id: u64,
    /// Rows of an output file at most.
    pub rows_max: u64,
    /// Expired rows, which are dropped.
    pub cut: Cutoff,
}

impl Job {
    /// Number of file ids that `merge` needs at most.
    pub fn ids(merge: &Merge, rows_max: u64) -> u64 {
        merge.rows().div_ceil(rows_max)
    }
}

/// Result of a merge. It takes effect by an edit of the manifest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// The files of the run.
    pub added: Vec<FileMeta>,
    /// The inputs that they replace.
    pub removed: Vec<FileMeta>,
    /// Rows dropped by retention.
    pub expired: u64,
}

impl Merged {
    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.added.iter().map(|f| f.len).sum()
    }
}

/// Rate limit and stop of a merge.
pub trait Pace {
    /// Called after `bytes` more were written; may wait. Returns `false` to stop the merge.
    fn written(&mut self, bytes: u64) -> bool;
}

/// No rate limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn written(&mut self, _bytes: u64) -> bool {
        true
    }
}

/// Runs `job` on the files in `dir`. `None`: it was stopped.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::Missing`], naming the file; [`Error::Invalid`] if the kind is unknown; [`Error::Io`]. No
/// file of the run is left.
pub fn run(disk: &dyn Disk, dir: &Path, job: &Job, pace: &mut dyn Pace) -> Result<Option<Merged>> {
    let mut made = Vec::new();
    let outcome = write(disk, dir, job, pace, &mut made).and_then(|done| {
        if done && !made.is_empty() && !sabotage::is(Sabotage::SkipDirSync) {
            disk.sync_dir(dir)?;
        }
        Ok(done)
    });
    let (rows, had) = (made.iter().map(|f| f.rows).sum::<u64>(), job.merge.rows());
    let is_within = made.iter().all(|f| f.rows <= job.rows_max) && made.len() as u64 <= Job::ids(&job.merge, job.rows_max);
    assert!(is_within, "a run takes only file numbers that are reserved for it");
    let is_whole = rows == had || (rows < had && !job.cut.before.is_empty()) || sabotage::is(Sabotage::LoseRow);
    match outcome {
        Ok(true) if !is_whole => {
            remove(disk, dir, job);
            let (what, path) = ("rows of merged files", dir.to_path_buf());
            Err(Error::Corrupt { path, offset: 0, lsn: Lsn(0), what, expected: had, found: rows })
        }
        Ok(true) => Ok(Some(Merged { expired: had - rows, added: made, removed: job.merge.inputs.clone() })),
        stopped_or_failed => {
            remove(disk, dir, job);
            stopped_or_failed.map(|_| None)
        }
    }
}

/// Removes the files of the run of `job`.
fn remove(disk: &dyn Disk, dir: &Path, job: &Job) {
    for id in job.first_id..job.first_id + Job::ids(&job.merge, job.rows_max) {
        let path = dir.join(sstable::file_name(job.merge.kind, id));
        for path in [path.with_extension("tmp"), path] {
            if let Err(error) = disk.exists(&path).and_then(|there| if there { disk.remove(&path) } else { Ok(()) }) {
                tracing::warn!(
                    name: "compaction.file_not_removed", %error,
                    "an unused file of a merge cannot be removed; the next start removes it"
                );
            }
        }
    }
}

fn write(disk: &dyn Disk, dir: &Path, job: &Job, pace: &mut dyn Pace, made: &mut Vec<FileMeta>) -> Result<bool> {
    let kind = job.merge.kind;
    let Some(schema) = schema(kind) else {
        return Err(Error::invalid(
            "kind",
            format!("{} is unknown, so its files cannot be merged; start tape-storage built with that kind", kind.0),
        ));
    };
    let opened: Result<Vec<Table>> = job.merge.inputs.iter().map(|meta| Table::open(disk, dir, *meta)).collect();
    let tables = opened?;
    let mut stores_reserved = false;
    let mut instruments: Vec<InstrumentId> = Vec::new();
    for table in &tables {
        stores_reserved |= table.trailer()?.flags & STORES_RESERVED != 0;
        table.runs()?;
        instruments.extend(table.series()?.iter().map(|s| s.instrument));
        table.check()?;
    }
    instruments.sort_unstable();
    instruments.dedup();
    let spec = Spec { store_id: job.store_id, id: job.first_id, schema, window: job.merge.window, stores_reserved };
    let mut output = Output {
        disk,
        dir,
        spec,
        rows_max: job.rows_max,
        tables: &tables,
        writer: None,
        room: 0,
        series: None,
        settled: 0,
        finished: 0,
        made,
    };
    let mut streams: Vec<Stream<'_>> = Vec::new();
    let mut sabotaged = false;
    for instrument in instruments {
        let from = job.cut.before.get(&instrument).copied().unwrap_or(Ts(0));
        streams.clear();
        for table in &tables {
            let Some(slice) = table.slice(instrument, TimeRange { from, to: Ts(u64::MAX) })? else { continue };
            let is_all = (slice.from, slice.to) == (0, slice.series.rows);
            assert!(is_all || from > Ts(0), "rows are left out only of an instrument whose rows expire");
            streams.push(Stream::new(table, (schema, job.merge.window), slice)?);
        }
        let mut rows: u64 = streams.iter().map(|s| u64::from(s.slice.to - s.slice.from)).sum();
        if sabotage::is(Sabotage::LoseRow) && rows > 1 && !std::mem::replace(&mut sabotaged, true) {
            rows -= 1;
        }
        if rows > 0 {
            output.series = Some((instrument, rows));
            if !merge_series(&mut streams, rows, &mut output, pace)? {
                return Ok(false);
            }
        }
    }
    output.finish()?;
    Ok(true)
}

/// Writes `rows` rows of `streams` to `output`, in order. `false`: the merge is stopped.
fn merge_series(streams: &mut [Stream<'_>], mut rows: u64, output: &mut Output<'_>, pace: &mut dyn Pace) -> Result<bool> {
    let mut heap: BinaryHeap<Reverse<((u64, u64), usize)>> =
        streams.iter().enumerate().map(|(i, s)| Reverse((s.key(), i))).collect();
    while let Some(Reverse((_, index))) = heap.pop() {
        let next = heap.peek().map_or((u64::MAX, u64::MAX), |Reverse((key, _))| *key);
        let Some(stream) = streams.get_mut(index) else { break };
        loop {
            if rows == 0 {
                return Ok(true);
            }
            rows -= 1;
            let before = output.written();
            stream.give(output)?;
            let written = output.written().saturating_sub(before);
            if written > 0 {
                output.settle()?;
                if !pace.written(written) {
                    return Ok(false);
                }
            }
            if !stream.advance()? {
                break;
            }
            if stream.key() > next {
                heap.push(Reverse((stream.key(), index)));
                break;
            }
        }
    }
    assert!(rows == 0, "{rows} rows of a series are not in the run");
    Ok(true)
}

/// Rows of one series in one file.
struct Stream<'t> {
    table: &'t Table,
    words: usize,
    window: Window,
    slice: Slice,
    /// Decoded rows: (index time, LSN, ingest time) of each, and the records. They are copies, made after the file was
    /// checked.
    heads: Vec<(u64, u64, u64)>,
    records: Vec<u64>,
    /// Index of the next row among them.
    at: usize,
    key: (u64, u64),
}

impl<'t> Stream<'t> {
    fn new(table: &'t Table, (schema, window): (&Schema, Window), slice: Slice) -> Result<Stream<'t>> {
        let (heads, records) = (Vec::new(), Vec::new());
        let mut stream = Stream { table, words: schema.words, window, slice, heads, records, at: 0, key: (0, 0) };
        stream.fill()?;
        Ok(stream)
    }

    /// Decodes the next rows.
    fn fill(&mut self) -> Result<()> {
        let (index, row) = self.slice.locate(self.slice.from);
        let block = self.table.block(index)?;
        let rows = self.slice.run(self.slice.from).min(ROWS);
        self.records.clear();
        block.rows(row, row + rows, &mut self.records);
        let (times, lsns, ingest) = (block.times(), block.lsns(), block.ingest());
        let of = |column: &[u64], i: usize| column.get(i).copied().unwrap_or(0);
        self.heads.clear();
        self.heads.extend((row..row + rows).map(|i| (times.get(i).0, of(lsns, i), of(ingest, i))));
        self.table.check()?;
        // The checksums of a file say that it was written so, not that its rows are sorted.
        if let Some(Misplaced { what, expected, found, lsn }) = misplaced(self.key, &self.heads, self.window) {
            let path = self.table.path().to_path_buf();
            return Err(Error::Corrupt { path, offset: 0, lsn: Lsn(lsn), what, expected, found });
        }
        self.at = 0;
        self.set_key();
        Ok(())
    }

    fn set_key(&mut self) {
        self.key = self.heads.get(self.at).map_or((0, 0), |&(time, lsn, _)| (time, lsn));
    }

    fn key(&self) -> (u64, u64) {
        self.key
    }

    /// Writes the next row to `output`.
    fn give(&self, output: &mut Output<'_>) -> Result<()> {
        let record = self.records.get(self.at * self.words..(self.at + 1) * self.words).unwrap_or(&[]);
        let ingest = self.heads.get(self.at).map_or(0, |head| head.2);
        output.push(Lsn(self.key.1), Ts(ingest), record)
    }

    /// Advances to the next row; `false` if there is none.
    fn advance(&mut self) -> Result<bool> {
        self.slice.from += 1;
        self.at += 1;
        if self.slice.from >= self.slice.to {
            return Ok(false);
        }
        if self.at * self.words >= self.records.len() {
            self.fill()?;
        } else {
            self.set_key();
        }
        Ok(true)
    }
}

/// A row that is not where its file says.
#[derive(Debug, PartialEq, Eq)]
struct Misplaced {
    what: &'static str,
    expected: u64,
    found: u64,
    lsn: u64,
}

/// The first of the rows `heads` (time, LSN, ingest time) that does not ascend, after `before`, or is not in `window`.
fn misplaced(before: (u64, u64), heads: &[(u64, u64, u64)], window: Window) -> Option<Misplaced> {
    let mut last = before;
    for &(time, lsn, _) in heads {
        if Ts(time) < window.from || window.last() < Ts(time) {
            return Some(Misplaced {
                what: "index time within the window of the file",
                expected: window.from.0,
                found: time,
                lsn,
            });
        }
        if time < last.0 {
            return Some(Misplaced { what: "index time that is not below the one before", expected: last.0, found: time, lsn });
        }
        if (time, lsn) < last {
            return Some(Misplaced { what: "LSN above the one before", expected: last.1 + 1, found: lsn, lsn });
        }
        last = (time, lsn);
    }
    None
}

/// The files of the run.
struct Output<'d> {
    disk: &'d dyn Disk,
    dir: &'d Path,
    spec: Spec,
    rows_max: u64,
    /// The inputs, which hold the origin of each row.
    tables: &'d [Table],
    writer: Option<Writer<'d>>,
    /// Rows that still fit in the file.
    room: u64,
    /// The current series, and its rows that are not yet announced to a writer.
    series: Option<(InstrumentId, u64)>,
    /// Synced bytes of the file.
    settled: u64,
    /// Bytes of the finished files.
    finished: u64,
    made: &'d mut Vec<FileMeta>,
}

impl Output<'_> {
    /// Bytes written.
    fn written(&self) -> u64 {
        self.finished + self.writer.as_ref().map_or(0, Writer::len)
    }

    fn settle(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.as_ref().filter(|w| w.len() - self.settled >= SETTLE) {
            writer.settle()?;
            self.settled = writer.len();
        }
        Ok(())
    }

    fn push(&mut self, lsn: Lsn, ingest_ts: Ts, record: &[u64]) -> Result<()> {
        if self.writer.as_ref().is_some_and(|w| w.owed() == 0) && self.room == 0 {
            self.finish()?;
        }
        if self.writer.is_none() {
            self.writer = Some(Writer::create(self.disk, self.dir, self.spec)?);
            (self.room, self.settled) = (self.rows_max, 0);
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if writer.owed() == 0
            && let Some((instrument, left)) = &mut self.series
        {
            let rows = (*left).min(self.room).min(u64::from(u32::MAX));
            writer.begin_series(*instrument, rows as u32)?;
            (*left, self.room) = (*left - rows, self.room - rows);
        }
        writer.push(lsn, ingest_ts, record)
    }

    /// Finishes the current file, if there is one.
    fn finish(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let (mut origins, mut orphan) = (Origins::new(self.tables)?, None);
        let meta = writer.finish(|lsn| {
            origins.of(lsn).unwrap_or_else(|| {
                orphan = Some(lsn);
                Origin::default()
            })
        })?;
        // The runs were read in place.
        self.tables.iter().try_for_each(Table::check)?;
        if let Some(lsn) = orphan {
            let path = self.dir.join(sstable::file_name(meta.kind, meta.id));
            return Err(Error::Corrupt { path, offset: 0, lsn, what: "run of a record", expected: lsn.0, found: 0 });
        }
        self.finished += meta.len;
        self.made.push(meta);
        self.spec.id += 1;
        Ok(())
    }
}

/// Looks up the origin of rows, in LSN order. The runs stay in the mapped files. Runs that hold the same LSN agree about it: a
/// publisher's numbers are dense, so all LSNs between two rows of a run belong to that run.
struct Origins<'t> {
    /// The remaining runs of each file.
    runs: Vec<&'t [RunEntry]>,
    /// The file that held the last row.
    last: usize,
}

impl<'t> Origins<'t> {
    fn new(tables: &'t [Table]) -> Result<Origins<'t>> {
        Ok(Origins { runs: tables.iter().map(Table::runs).collect::<Result<_>>()?, last: 0 })
    }

    fn of(&mut self, lsn: Lsn) -> Option<Origin> {
        let count = self.runs.len();
        // The file that held the last row most often holds this one.
        for file in (0..count).map(|i| (self.last + i) % count) {
            if let Some(run) = self.runs.get_mut(file).and_then(|runs| run_of(runs, lsn)) {
                self.last = file;
                let pub_seq = PubSeq(run.first_pub_seq.0.wrapping_add(lsn.0 - run.first.0));
                return Some((run.publisher, run.epoch, pub_seq));
            }
        }
        None
    }
}

/// The run among `runs` that holds `lsn`; drops those before it.
fn run_of(runs: &mut &[RunEntry], lsn: Lsn) -> Option<RunEntry> {
    while runs.first()?.last < lsn {
        // Binary search if far behind: a file is asked only when the others do not hold the LSN.
        let far = runs.get(8).is_some_and(|r| r.last < lsn);
        let passed = if far { runs.partition_point(|r| r.last < lsn) } else { 1 };
        *runs = runs.get(passed..).unwrap_or(&[]);
    }
    runs.first().filter(|r| r.first <= lsn).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_does_not_ascend_or_lies_outside_the_window_is_named() {
        let window = Window { from: Ts(100), len: 50 };
        let first = |before, rows: &[(u64, u64)]| {
            let heads: Vec<_> = rows.iter().map(|&(time, lsn)| (time, lsn, 0)).collect();
            misplaced(before, &heads, window).map(|m| (m.lsn, m.found))
        };
        assert_eq!(first((0, 0), &[(100, 7), (100, 8), (149, 2)]), None);
        assert_eq!(first((0, 0), &[(100, 7), (99, 8)]), Some((8, 99)), "before the window");
        assert_eq!(first((0, 0), &[(150, 7)]), Some((7, 150)), "after the window");
        assert_eq!(first((0, 0), &[(120, 7), (119, 8)]), Some((8, 119)), "time falls");
        assert_eq!(first((0, 0), &[(120, 7), (120, 6)]), Some((6, 6)), "LSN falls");
        assert_eq!(first((130, 1), &[(129, 9)]), Some((9, 129)), "below the last row of the block before");
    }
}
