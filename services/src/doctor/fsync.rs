//! Owns: what a sync costs in a directory: it is measured as the log does it, on a file that was written before.
//!
//! What must hold: the file has no name, so nothing stays of it, also after a kill; the time is bounded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Syncs that are measured at most, after some that are not.
const SYNCS: usize = 400;
const WARM_UP: usize = 20;
/// The longest time of a measurement.
const TIME_MAX: Duration = Duration::from_secs(4);
/// The file that is written before: as a log segment, in the pieces that a log segment is zeroed in.
const FILE_LEN: u64 = 4 << 20;
const PIECE: usize = 64 << 10;
/// The bytes of each write: a frame of one trade has as many.
const WRITE: usize = 192;
/// No device syncs faster: what does, keeps the bytes in memory alone.
pub const PLAUSIBLE_NS: u64 = 5_000;

/// What `pwrite` and `fdatasync` took, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Syncs measured.
    pub count: usize,
    /// Half of them took at most this long.
    pub p50_ns: u64,
    /// 99 of 100 took at most this long.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Cost {
    /// Measures in the directory `dir`.
    ///
    /// # Errors
    /// The system's: no file can be made, written or synced there.
    pub fn measure(dir: &Path) -> std::io::Result<Cost> {
        let file = tempfile::tempfile_in(dir)?;
        let zeros = vec![0u8; PIECE];
        for at in (0..FILE_LEN).step_by(PIECE) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        let (began, mut took) = (Instant::now(), Vec::with_capacity(SYNCS));
        for turn in 0..SYNCS + WARM_UP {
            let ns = sync_once(&file, turn as u64)?;
            if turn >= WARM_UP {
                took.push(ns);
            }
            if began.elapsed() >= TIME_MAX && !took.is_empty() {
                break;
            }
        }
        Ok(Cost::of(took))
    }

    fn of(mut took: Vec<u64>) -> Cost {
        took.sort_unstable();
        let at = |part: usize| took.get((took.len() * part / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(0);
        Cost { count: took.len(), p50_ns: at(50), p99_ns: at(99), max_ns: at(100) }
    }

    /// Syncs in a second, one after the other.
    pub fn per_second(&self) -> u64 {
        1_000_000_000 / self.p50_ns.max(1)
    }
}

/// Writes and syncs once, ns.
fn sync_once(file: &File, turn: u64) -> std::io::Result<u64> {
    let bytes = [7u8; WRITE];
    let began = Instant::now();
    file.write_all_at(&bytes, 4096 + turn * WRITE as u64)?;
    file.sync_data()?;
    Ok(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times_and_nothing_stays_in_the_directory() {
        let cost = Cost::of((1..=200).rev().collect());
        assert_eq!((cost.count, cost.p50_ns, cost.p99_ns, cost.max_ns), (200, 101, 199, 200));
        assert_eq!(Cost::of(vec![5]), Cost { count: 1, p50_ns: 5, p99_ns: 5, max_ns: 5 });
        let dir = tempfile::tempdir().unwrap();
        assert!(Cost::measure(dir.path()).unwrap().count > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Cost::measure(&dir.path().join("absent")).is_err());
    }
}
