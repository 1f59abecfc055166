//! The guarantees of the processes, tested with real processes, real files and real kills.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

mod at_rest;
mod backup;
mod bars;
mod books;
mod busts;
mod cluster;
mod compaction;
mod contract;
mod copies;
mod dashboard;
mod doctor;
mod earlier;
mod endings;
mod examples;
mod filling;
mod fixture;
mod formats;
mod health;
mod history;
mod instruments;
mod kills;
mod limits;
mod logs;
mod maps;
mod metrics;
mod nospace;
mod notify;
mod packages;
mod pages;
mod pairs;
mod pinned;
mod plan;
mod rebuilt;
mod reload;
mod revocation;
mod roles;
mod small_shm;
mod tool;
mod top;
mod traces;
mod user_kinds;
mod users;

mod wiped;
