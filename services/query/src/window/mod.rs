//! Owns: window joins: `a WINDOW JOIN b ON a.symbol = b.symbol RANGE BETWEEN 1s PRECEDING AND 1s FOLLOWING [EXCLUDE PREVAILING]`.
//!
//! A statement with a window join has one row for each row of the left side. Its aggregates are of the rows of the right side
//! with equal keys whose times lie in the window around the left row's time, both ends included. Before them comes the
//! prevailing row, the newest one before the window, unless a row lies exactly at the window's start, or `EXCLUDE PREVAILING`
//! is said. Without any such row the aggregates are those of no rows.
//!
//! kdb+ calls the two forms `wj` and `wj1`. The join makes a row for each pair, with the number of the left row; the dialect
//! groups by that number.
//!
//! `node` is the join in a plan, `exec` merges two sorted sides to pairs, and `rights` holds the rows of one window. `groups` makes the
//! aggregates without pairs, by `folds`.

pub mod exec;
mod folds;
pub mod groups;
pub mod node;
mod rights;

/// The window around a left row's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// From the left row's time to the window's start, ns; negative: before it.
    pub start: i64,
    /// From the left row's time to the window's end, ns.
    pub end: i64,
    /// Whether the newest row before the window counts.
    pub prevailing: bool,
}

/// The column that numbers the left rows.
pub const ROW: &str = "window_row";
