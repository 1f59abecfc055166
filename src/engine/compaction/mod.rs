//! Owns: compaction: which SSTables to merge next, a pure function of a version of the manifest. [`merge`] runs one merge,
//! [`retention`] finds what has expired.
//!
//! Files lie in windows of index time. A *run* is the output of one flush or one merge in a window; the runs of a window are
//! disjoint in LSN. A window keeps at most [`Options::runs_max`] runs. If it has more, those neighbours are merged that cost
//! the fewest bytes for each run saved (size-tiered). When a day is over, its hours become one run; when thirty days are over,
//! their days do, if they have few rows.
//!
//! What must hold: only neighbours in LSN order are merged, so that runs stay disjoint. A run is not rewritten for less than a
//! tenth of its bytes, unless its day or its thirty days are over. After a merge fewer merges are due.

pub mod merge;
pub mod retention;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use tapestore::error::{Error, Result};
use tapestore::lsn::Lsn;
use tapestore::manifest::State;
use tapestore::record::Kind;
use tapestore::sstable::{FileMeta, Window};
use tapestore::time::Ts;

/// Options of compaction.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Whether storage compacts by itself.
    pub enabled: bool,
    /// Runs of one kind in a window, at most.
    pub runs_max: usize,
    /// Rows of a file that a merge writes, at most: 60 bytes of memory each while it is written.
    pub rows_max: u64,
    /// Bytes written in a second at most, averaged over some seconds; 0: no limit.
    pub bytes_per_second: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { enabled: true, runs_max: 8, rows_max: 4 << 20, bytes_per_second: 96 << 20 }
    }
}

impl Options {
    /// Checks the values against their bounds.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option and its bounds.
    pub fn check(&self) -> Result<()> {
        if !(2..=64).contains(&self.runs_max) {
            return Err(Error::invalid("compaction.runs-max", format!("{} is out of bounds; give 2 to 64", self.runs_max)));
        }
        if !(4096..=1 << 28).contains(&self.rows_max) {
            return Err(Error::invalid(
                "compaction.rows-max",
                format!("{} is out of bounds; give 4096 to 268435456", self.rows_max),
            ));
        }
        Ok(())
    }
}

/// Inputs of a merge at most, unless one run has more files.
const INPUTS_MAX: usize = 256;
/// A run is rewritten only if the merge adds at least this part of its bytes.
pub const WORTH: u64 = 10;
/// A window is over when there are records this much younger than its end, ns.
const GRACE: u64 = Window::LENGTHS[0];
/// Thirty days become one run if they have at most the rows of so many full files.
const LONG_FILES: u64 = 4;

/// Reason of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The window has too many runs.
    Runs,
    /// The day, or the thirty days, are over.
    Over,
    /// Retention has ended for the rows of some instruments.
    Expired,
}

/// One merge: files that become one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Their kind.
    pub kind: Kind,
    /// The window of the run.
    pub window: Window,
    /// The files, by LSN.
    pub inputs: Vec<FileMeta>,
    /// The reason.
    pub why: Why,
}

impl Merge {
    /// Rows of the files.
    pub fn rows(&self) -> u64 {
        self.inputs.iter().map(|f| f.rows).sum()
    }

    /// Bytes of the files.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|f| f.len).sum()
    }
}

/// The greatest index time of any file, but not later than the last ingest time.
pub fn newest(state: &State) -> Ts {
    state.files.values().map(|f| f.time.1).max().unwrap_or_default().min(state.checkpoint.ingest_ts)
}

/// Plans the merges of `state`, the most urgent first; skips the windows of the files in `skip`.
/// `now` decides which windows are over: [`newest`], or a later time to close all of them.
pub fn plan(state: &State, options: &Options, now: Ts, skip: &BTreeSet<u64>) -> Vec<Merge> {
    let mut long: BTreeMap<(Kind, Ts), u64> = BTreeMap::new();
    for file in state.files.values() {
        *long.entry((file.kind, Window::of(file.window.from, Window::LENGTHS[2]).from)).or_default() += file.rows;
    }
    let mut groups: BTreeMap<(Kind, Window), Vec<FileMeta>> = BTreeMap::new();
    for file in state.files.values() {
        let is_over = |w: Window| now.0 > w.last().0.saturating_add(GRACE);
        let [_, day, month, _] = Window::LENGTHS.map(|len| Window::of(file.window.from, len));
        let mut window = file.window;
        if window.len < day.len && is_over(day) {
            window = day;
        }
        let rows = long.get(&(file.kind, month.from)).copied().unwrap_or(0);
        if window.len < month.len && is_over(month) && rows <= LONG_FILES * options.rows_max {
            window = month;
        }
        groups.entry((file.kind, window)).or_default().push(*file);
    }
    let mut merges: Vec<(u64, Merge)> = Vec::new();
    for ((kind, window), files) in groups {
        if files.iter().any(|f| skip.contains(&f.id)) {
            continue;
        }
        let group = Group::new(window, files, options.rows_max);
        if let Some((inputs, why)) = group.due(options.runs_max) {
            merges.push((group.runs(), Merge { kind, window, inputs, why }));
        }
    }
    merges.sort_by_key(|(runs, merge)| (std::cmp::Reverse(*runs), merge.bytes(), merge.kind, merge.window));
    merges.into_iter().map(|(_, merge)| merge).collect()
}

/// Files of a window whose LSNs overlap: one run, or files that must become one.
struct Cluster {
    files: Vec<FileMeta>,
    bytes: u64,
    /// Number of runs it counts for; 0 for a single full file, which no merge can shrink further.
    runs: u64,
    /// Whether it holds files of shorter windows.
    is_unsettled: bool,
}

/// The files of a window.
struct Group {
    clusters: Vec<Cluster>,
    /// Whether files of shorter windows are among them.
    is_over: bool,
}

impl Group {
    fn new(window: Window, mut files: Vec<FileMeta>, rows_max: u64) -> Group {
        files.sort_unstable_by_key(|f| (f.lsn, f.id));
        let is_over = files.iter().any(|f| f.window != window);
        let mut clusters: Vec<Cluster> = Vec::new();
        let mut last = Lsn(0);
        for file in files {
            // Files of one run overlap in LSN; files of shorter windows are one run each.
            let is_unsettled = file.window != window;
            match clusters.last_mut() {
                Some(cluster) if file.lsn.0 <= last => {
                    cluster.files.push(file);
                    cluster.bytes += file.len;
                    cluster.runs += u64::from(is_unsettled);
                    cluster.is_unsettled |= is_unsettled;
                }
                _ => clusters.push(Cluster { files: vec![file], bytes: file.len, runs: 1, is_unsettled }),
            }
            last = last.max(file.lsn.1);
        }
        // A run of several full files may be disjoint in LSN too, for a kind of one instrument.
        for cluster in clusters.iter_mut().filter(|c| !c.is_unsettled && c.files.len() == 1) {
            cluster.runs = u64::from(cluster.files.iter().all(|f| f.rows < rows_max));
        }
        Group { clusters, is_over }
    }

    fn runs(&self) -> u64 {
        self.clusters.iter().map(|c| c.runs).sum()
    }

    /// The merge that is due, if any.
    fn due(&self, runs_max: usize) -> Option<(Vec<FileMeta>, Why)> {
        let files = |clusters: &[Cluster]| clusters.iter().flat_map(|c| c.files.iter().copied()).collect();
        let count: usize = self.clusters.iter().map(|c| c.files.len()).sum();
        let settled: u64 = self.clusters.iter().filter(|c| !c.is_unsettled).map(|c| c.bytes).sum();
        let added: u64 = self.clusters.iter().filter(|c| c.is_unsettled).map(|c| c.bytes).sum();
        if self.is_over && count > 1 && self.runs() > 1 && added * WORTH >= settled && count <= INPUTS_MAX {
            return Some((files(&self.clusters), Why::Over));
        }
        if self.runs() <= runs_max as u64 {
            return None;
        }
        let (from, to) = self.cheapest()?;
        Some((files(self.clusters.get(from..to)?), if self.is_over { Why::Over } else { Why::Runs }))
    }

    /// The neighbours that cost the fewest bytes for each run saved.
    fn cheapest(&self) -> Option<(usize, usize)> {
        let mut best: Option<(u128, u128, (usize, usize))> = None;
        for from in 0..self.clusters.len() {
            let (mut bytes, mut largest, mut runs, mut files) = (0u64, 0u64, 0u64, 0usize);
            for (i, cluster) in self.clusters.iter().enumerate().skip(from) {
                bytes += cluster.bytes;
                runs += cluster.runs;
                files += cluster.files.len();
                // A cluster that is not yet one run must be rewritten anyway.
                largest = largest.max(if cluster.runs > 1 { 0 } else { cluster.bytes });
                if files > INPUTS_MAX && i > from {
                    break;
                }
                if runs < 2 || (bytes - largest) * WORTH < largest {
                    continue;
                }
                // Compares bytes / (runs - 1) without division.
                let (cost, gone) = (u128::from(bytes), u128::from(runs - 1));
                if best.is_none_or(|(c, g, _)| cost * g < c * gone) {
                    best = Some((cost, gone, (from, i + 1)));
                }
            }
        }
        best.map(|(_, _, range)| range)
    }
}
