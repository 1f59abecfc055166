//! Owns: reading a sealed MemTable for a flush: the windows that its rows lie in, the run that each row came from, and one
//! SSTable of a kind and window.
//!
//! What must hold: rows are written in (instrument, index time, LSN) order; memory is four bytes a row of the table and
//! the rows of one series.

use tapestore::disk::Disk;
use tapestore::error::Result;
use tapestore::lsn::{Lsn, PubSeq};
use tapestore::memtable::Table;
use tapestore::record::{Arrival, Row, Schema, Series, TimeRange};
use tapestore::sstable::{self, FileMeta, Spec, Window};

/// Most files of a kind that one table becomes: if its rows lie in more windows, longer ones are used.
const WINDOWS_MAX: usize = 16;

/// The rows of a table, each with its run.
pub(super) struct Rows<'t> {
    table: &'t Table,
    last: Lsn,
    /// The run of each row.
    run_of: Vec<u32>,
    runs: Vec<(Lsn, Arrival)>,
}

impl<'t> Rows<'t> {
    /// The rows of `table` up to `last`.
    pub(super) fn new(table: &'t Table, last: Lsn) -> Rows<'t> {
        let rows = (last.0 + 1 - table.base().0) as usize;
        let (mut run_of, mut runs) = (Vec::with_capacity(rows), Vec::new());
        table.each_run(last, |first, count, arrival| {
            run_of.resize(run_of.len() + count as usize, runs.len() as u32);
            runs.push((first, arrival));
        });
        Rows { table, last, run_of, runs }
    }

    fn arrival(&self, lsn: Lsn) -> Arrival {
        let run = self.run_of.get((lsn.0 - self.table.base().0) as usize);
        let Some((first, arrival)) = run.and_then(|&r| self.runs.get(r as usize)) else {
            panic!("record {lsn} of a sealed MemTable belongs to no run")
        };
        Arrival { lsn, pub_seq: PubSeq(arrival.pub_seq.0 + (lsn.0 - first.0)), ..*arrival }
    }

    /// The windows in which rows of `series` lie: of an hour, or longer if there are too many.
    pub(super) fn windows(&self, series: &[Series]) -> Vec<Window> {
        let [hour, longer @ ..] = Window::LENGTHS;
        let mut windows: Vec<Window> = Vec::new();
        for &series in series {
            let Some((min, max)) = self.table.span(series) else { continue };
            if max <= Window::of(min, hour).last() {
                windows.push(Window::of(min, hour));
            } else {
                let mut window: Option<Window> = None;
                for row in self.table.rows(series, TimeRange::ALL, self.last) {
                    if window.is_none_or(|w| row.index_time > w.last()) {
                        window = Some(Window::of(row.index_time, hour));
                        windows.extend(window);
                    }
                }
            }
            if windows.len() > 4096 {
                windows.sort_unstable();
                windows.dedup();
            }
        }
        let mut longer = longer.into_iter();
        loop {
            windows.sort_unstable();
            windows.dedup();
            match longer.next() {
                Some(len) if windows.len() > WINDOWS_MAX => windows.iter_mut().for_each(|w| *w = Window::of(w.from, len)),
                _ => return windows,
            }
        }
    }

    /// Writes the rows of `series` in the window of `spec`. Returns `None`, and leaves no file, if a row has reserved bytes
    /// that are not zero, which the file would not keep.
    pub(super) fn write(
        &self,
        disk: &dyn Disk,
        dir: &std::path::Path,
        spec: Spec,
        series: &[Series],
    ) -> Result<Option<FileMeta>> {
        let range = TimeRange { from: spec.window.from, to: spec.window.last() };
        let mut writer = sstable::Writer::create(disk, dir, spec)?;
        let mut rows: Vec<Row<'_>> = Vec::new();
        for &one in series {
            rows.clear();
            rows.extend(self.table.rows(one, range, self.last));
            if rows.is_empty() {
                continue;
            }
            writer.begin_series(one.instrument, rows.len() as u32)?;
            for row in &rows {
                if !spec.stores_reserved && has_reserved(spec.schema, row) {
                    return Ok(None);
                }
                writer.push(row.lsn, self.arrival(row.lsn).ingest_ts, row.record.words())?;
            }
        }
        let finished = writer.finish(|lsn| {
            let Arrival { publisher, epoch, pub_seq, .. } = self.arrival(lsn);
            (publisher, epoch, pub_seq)
        });
        // Rows that could not be read must not become a file.
        self.table.check()?;
        finished.map(Some)
    }
}

fn has_reserved(schema: &Schema, row: &Row<'_>) -> bool {
    let bytes = row.record.bytes();
    schema.reserved().any(|c| bytes.get(c.offset..c.offset + c.of.size()).is_some_and(|b| b.iter().any(|&b| b != 0)))
}
