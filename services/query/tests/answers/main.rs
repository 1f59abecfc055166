//! Answers of SQL equal what a slow reference makes of the library's rows: over SSTables, MemTables, rows out of order, equal
//! times, nulls, empty sets and series of one row.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

mod functions;
mod fuzz;
mod joins;
mod known;
mod page;
mod plans;
mod rows;
mod tables;
mod truncated;
mod world;
