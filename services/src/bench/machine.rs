//! Owns: what the machine can do, without a store: the limits that `tape bench` compares with.
//!
//! What must hold: each limit does the least that the path which it bounds has to do.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::times;
use crate::exit::{Failure, IO, Outcome};

const HANDOVERS: u64 = 200_000;
const MEMORY: usize = 256 << 20;
const SUMS: u32 = 5;
/// Bytes written to measure the disk, for a second of the whole measurement; and the least and the most.
const DISK: usize = 8 << 20;
const DISK_BOUNDS: (usize, usize) = (16 << 20, 512 << 20);
const CHUNK: usize = 1 << 20;
/// Bytes of a write that is synced, as a small frame is.
pub(super) const PAGE: usize = 4096;
/// Turns that a core spins before it gives the processor away, where two threads share one.
const SPINS: u32 = 2_000;

/// A word on a cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

/// Waits until `line` has `value`.
fn wait(line: &Line, value: u64) {
    let mut spins = 0;
    // With the Release stores in `handover`.
    while line.0.load(Ordering::Acquire) != value {
        spins += 1;
        if spins > SPINS {
            spins = 0;
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// The time of a number from one thread to another: half of the way there and back, ns.
pub(super) fn handover() -> Outcome<Histogram<u64>> {
    let (there, back) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    let mut values = times()?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 1..=HANDOVERS {
                wait(&there, value);
                back.0.store(value, Ordering::Release);
            }
        });
        for value in 1..=HANDOVERS {
            let began = Instant::now();
            there.0.store(value, Ordering::Release);
            wait(&back, value);
            values.saturating_record(began.elapsed().as_nanos() as u64 / 2);
        }
    });
    Ok(values)
}

/// The bytes a second that one thread sums up of an array in memory, as a column is; the best of several sums.
pub(super) fn memory() -> f64 {
    let array = vec![1_i64; MEMORY / 8];
    let mut best = Duration::MAX;
    for _ in 0..SUMS {
        let began = Instant::now();
        std::hint::black_box(std::hint::black_box(&array).iter().fold(0_i64, |sum, value| sum.wrapping_add(*value)));
        best = best.min(began.elapsed());
    }
    MEMORY as f64 / best.as_secs_f64()
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure + use<'_> {
    move |error| Failure::new(IO, format!("{}: {error}", path.display()))
}

/// The bytes a second that are written to a file in `dir` that was written before, as a segment of the log was, and synced.
pub(super) fn disk(dir: &Path, seconds: u64) -> Outcome<f64> {
    let len = (DISK * seconds as usize).clamp(DISK_BOUNDS.0, DISK_BOUNDS.1);
    let path = dir.join("disk");
    let file = written(&path, len)?;
    let chunk = vec![7_u8; CHUNK];
    let began = Instant::now();
    for at in (0..len).step_by(CHUNK) {
        file.write_all_at(&chunk, at as u64).map_err(failed(&path))?;
    }
    file.sync_data().map_err(failed(&path))?;
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_file(&path).map_err(failed(&path))?;
    Ok(len as f64 / took)
}

/// A new file of `len` bytes, written and synced.
pub(super) fn written(path: &Path, len: usize) -> Outcome<File> {
    let mut file = File::options().read(true).write(true).create_new(true).open(path).map_err(failed(path))?;
    let zeros = vec![0_u8; CHUNK];
    for _ in (0..len).step_by(CHUNK) {
        file.write_all(&zeros).map_err(failed(path))?;
    }
    file.sync_all().map_err(failed(path))?;
    Ok(file)
}
