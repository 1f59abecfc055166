//! Measurements: histograms and their printing, the host's limits, a storage process to measure.
//!
//! What must hold: latency under load is taken from a fixed-rate schedule, from when a record was due
//! and not from when its turn came (coordinated omission); each figure stands beside its limit from
//! the same run, because this kind of machine changes its speed by the minute.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be taken ends the program")]

pub mod hosts;
pub mod limits;
pub mod store;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// A histogram of nanoseconds, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

/// Nanoseconds for people.
pub fn show(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.2} us", ns as f64 / 1e3),
        _ => format!("{:.2} ms", ns as f64 / 1e6),
    }
}

/// Prints the head of a table of latencies.
pub fn print_head() {
    println!("{:<44}{:>10}{:>11}{:>11}{:>11}{:>11}{:>11}", "", "samples", "p50", "p90", "p99", "p99.9", "max");
}

/// Prints a histogram as a line.
pub fn print_line(what: &str, h: &Histogram<u64>) {
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|q| show(h.value_at_quantile(q)));
    println!("{what:<44}{:>10}{p50:>11}{p90:>11}{p99:>11}{p999:>11}{:>11}", h.len(), show(h.max()));
}

/// Calls `each` at a fixed rate, with the moment at which the call was due.
pub fn at_rate(per_second: u64, count: u64, mut each: impl FnMut(u64, Instant)) {
    let start = Instant::now();
    for i in 0..count {
        let due = start + Duration::from_nanos(i * 1_000_000_000 / per_second);
        while Instant::now() < due {
            // A feed handler that shares its core: it gives it away while it has nothing to send.
            std::thread::yield_now();
        }
        each(i, due);
    }
}
