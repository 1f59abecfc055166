//! The processes of tapestore: `tape-storage`, `tape-replication` and the tool `tape`, and what every process does alike.

pub mod backup;
pub mod bars;
pub mod book;
pub mod cli;
pub mod cluster;
pub mod columnar;
pub mod compact;
pub mod demo;
pub mod exit;
pub mod export;
pub mod import;
pub mod input;
pub mod inspect;
pub mod limits;
pub mod output;
pub mod pins;
pub mod publish;
pub mod query;
pub mod repair;
pub mod replication;
pub mod status;
pub mod storage;
pub mod symbols;
pub mod tally;
pub mod terminal;
pub mod verify;
