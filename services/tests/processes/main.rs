//! The promises of the processes, shown with real processes, real files and real kills.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that meets what it does not expect fails by panicking")]

mod backup;
mod bars;
mod books;
mod busts;
mod cluster;
mod compaction;
mod copies;
mod endings;
mod filling;
mod fixture;
mod formats;
mod health;
mod history;
mod instruments;
mod kills;
mod limits;
mod maps;
mod nospace;
mod pages;
mod pairs;
mod roles;
mod small_shm;
mod tool;
mod user_kinds;
mod users;
mod whole;
mod wiped;
