//! Owns: the processes `tape-storage` and `tape-replication`, the tool `tape`, and the code they share.

/// Prints a line on standard output; [`stdout::code`] reports a failure to write it.
macro_rules! out {
    ($($text:tt)*) => { $crate::stdout::say(format_args!($($text)*)) };
}

pub mod accounting;
pub mod addresses;
pub mod backup;
pub mod bars;
pub mod bench;
pub mod book;
pub mod choice;
pub mod cli;
pub mod cluster;
pub mod compact;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod export;
pub mod flush;
pub mod follow;
pub mod grid;
pub mod held_files;
pub mod identity;
pub mod import;
pub mod inspect;
pub mod last_backup;
pub mod limits;
pub mod load;
pub mod log_format;
pub mod logging;
pub mod manual;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod plan;
pub mod processes;
pub mod publish;
pub mod query;
pub mod reload;
pub mod repair;
pub mod replication;
pub mod source;
pub mod sql;
pub mod status;
pub mod stdout;
pub mod storage;
pub mod symbols;
pub mod terminal;
pub mod top;
pub mod traces;
pub mod verify;
pub mod waiting;
