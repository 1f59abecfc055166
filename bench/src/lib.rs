//! Owns: measurements: histograms and their printing, the host's limits, a storage process to measure.
//!
//! What must hold: latency under load follows a fixed-rate schedule and counts from when a record was due, not from when
//! it was sent (coordinated omission); each figure is printed with its limit from the same run, because the speed of this
//! kind of machine changes by the minute.

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

pub mod hosts;
pub mod limits;
pub mod process;
pub mod store;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// A histogram of nanoseconds, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

/// Formats nanoseconds.
pub fn show(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.2} us", ns as f64 / 1e3),
        _ => format!("{:.2} ms", ns as f64 / 1e6),
    }
}

/// Prints the header of a latency table.
pub fn print_head() {
    println!("{:<44}{:>10}{:>11}{:>11}{:>11}{:>11}{:>11}", "", "samples", "p50", "p90", "p99", "p99.9", "max");
}

/// Prints a histogram as a line.
pub fn print_line(what: &str, h: &Histogram<u64>) {
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|q| show(h.value_at_quantile(q)));
    println!("{what:<44}{:>10}{p50:>11}{p90:>11}{p99:>11}{p999:>11}{:>11}", h.len(), show(h.max()));
}

/// Calls `each` at a fixed rate with its index and the time at which it was due.
pub fn at_rate(per_second: u64, count: u64, mut each: impl FnMut(u64, Instant)) {
    let start = Instant::now();
    for i in 0..count {
        let due = start + Duration::from_nanos(i * 1_000_000_000 / per_second);
        while Instant::now() < due {
            // Yields its core while it has nothing to send, as a feed handler on a shared core does.
            std::thread::yield_now();
        }
        each(i, due);
    }
}
