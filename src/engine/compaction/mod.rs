//! Owns: which files of history are to be merged: a pure function of a version of the manifest. [`merge`]
//! carries a merge out, [`retention`] says what has lived long enough.
//!
//! Files lie in windows of index time. A *run* is what one filing or one merge has written into a window: its
//! LSNs lie beside those of the other runs. A window keeps at most [`Options::runs_max`] runs; when it has
//! more, those neighbours are merged for which the fewest bytes are written for each run that goes
//! (size-tiered). When a day is over its hours become one run, and when thirty days are over their days do, if
//! they are few rows.
//!
//! What must hold: neighbours in LSN order are merged, so that runs stay disjoint; a run is not written anew
//! for less than a tenth of its bytes, unless the day or the thirty days ask for it; a merge that was carried
//! out leaves a version for which fewer merges are due.

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

/// When and how files are merged.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Whether storage merges files by itself.
    pub enabled: bool,
    /// Runs of a window and kind at most.
    pub runs_max: usize,
    /// Rows of a file that a merge writes at most: 60 bytes of memory each while it is written.
    pub rows_max: u64,
    /// Bytes written in a second at most, over some seconds; 0: as fast as it goes.
    pub bytes_per_second: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { enabled: true, runs_max: 8, rows_max: 4 << 20, bytes_per_second: 96 << 20 }
    }
}

impl Options {
    /// Checks the options against each other.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option and its bounds.
    pub fn check(&self) -> Result<()> {
        if !(2..=64).contains(&self.runs_max) {
            return Err(Error::invalid("compaction.runs-max", format!("{} is not from 2 to 64", self.runs_max)));
        }
        if !(4096..=1 << 28).contains(&self.rows_max) {
            return Err(Error::invalid("compaction.rows-max", format!("{} is not from 4096 to 268435456", self.rows_max)));
        }
        Ok(())
    }
}

/// Files of a merge at most, unless one run has more.
const INPUTS_MAX: usize = 256;
/// A run is written anew for at least this part of its bytes.
const WORTH: u64 = 10;
/// A window is over when something is this much younger than its end, ns.
const GRACE: u64 = Window::LENGTHS[0];
/// Thirty days become one run if they have at most so many files' rows.
const LONG_FILES: u64 = 4;

/// Why files are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Their window has more runs than it may have.
    Runs,
    /// Their day, or their thirty days, are over.
    Over,
}

/// Files that are to become one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Their kind.
    pub kind: Kind,
    /// The window of the run.
    pub window: Window,
    /// The files, by LSN.
    pub inputs: Vec<FileMeta>,
    /// Why.
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

/// The moment of the newest record: the greatest index time of any file, but not ahead of when records came.
pub fn newest(state: &State) -> Ts {
    state.files.values().map(|f| f.time.1).max().unwrap_or_default().min(state.checkpoint.ingest_ts)
}

/// What is to be merged in `state`, the most urgent first; files in `skip` and their windows are left alone.
/// `now` decides which windows are over: [`newest`], or later to have all of them be.
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

/// Files of a window whose LSNs overlap: a run, or files that have to become one.
struct Cluster {
    files: Vec<FileMeta>,
    bytes: u64,
    /// How many runs it counts for: none if it is one full file, which no merge makes fewer of.
    runs: u64,
    /// Whether files of shorter windows are in it.
    is_unsettled: bool,
}

/// The files that belong in a window.
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
            // A run's own files overlap; those of shorter windows are runs each.
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
        // A run is cut into full files, which may lie beside each other in LSN too: a kind of one instrument.
        for cluster in clusters.iter_mut().filter(|c| !c.is_unsettled && c.files.len() == 1) {
            cluster.runs = u64::from(cluster.files.iter().all(|f| f.rows < rows_max));
        }
        Group { clusters, is_over }
    }

    fn runs(&self) -> u64 {
        self.clusters.iter().map(|c| c.runs).sum()
    }

    /// What is to be merged now.
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

    /// The neighbours for which the fewest bytes are written for each run that goes.
    fn cheapest(&self) -> Option<(usize, usize)> {
        let mut best: Option<(u128, u128, (usize, usize))> = None;
        for from in 0..self.clusters.len() {
            let (mut bytes, mut largest, mut runs, mut files) = (0u64, 0u64, 0u64, 0usize);
            for (i, cluster) in self.clusters.iter().enumerate().skip(from) {
                bytes += cluster.bytes;
                runs += cluster.runs;
                files += cluster.files.len();
                // A cluster that is no run yet pays for itself.
                largest = largest.max(if cluster.runs > 1 { 0 } else { cluster.bytes });
                if files > INPUTS_MAX && i > from {
                    break;
                }
                if runs < 2 || (bytes - largest) * WORTH < largest {
                    continue;
                }
                // bytes / (runs - 1), compared without dividing.
                let (cost, gone) = (u128::from(bytes), u128::from(runs - 1));
                if best.is_none_or(|(c, g, _)| cost * g < c * gone) {
                    best = Some((cost, gone, (from, i + 1)));
                }
            }
        }
        best.map(|(_, _, range)| range)
    }
}
