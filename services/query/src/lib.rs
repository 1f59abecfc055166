//! SQL over a store: its MemTables, microseconds old, and its SSTables, years old, in one statement. The program `tape-query`
//! is made of this; so is `tape sql`.

pub mod access;
pub mod asof;
pub mod catalog;
pub mod columns;
pub mod console;
pub mod dialect;
pub mod engine;
pub mod failure;
pub mod fill;
pub mod filter;
pub mod flight;
pub mod follow;
pub mod functions;
pub mod horizon;
pub mod interval;
pub mod latest;
pub mod names;
pub mod nesting;
pub mod pieces;
pub mod postgres;
pub mod print;
pub mod prompt;
pub mod relations;
pub mod runs;
pub mod scan;
pub mod schema;
pub mod serve;
pub mod session;
pub mod side;
pub mod sorted_join;
pub mod sql;
pub mod table;
pub mod window;
pub mod yielding;
