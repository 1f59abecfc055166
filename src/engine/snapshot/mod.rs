//! Owns: whole copies of a store. A snapshot is made beside a served store ([`backup`], [`transfer`]), sent to another host
//! and installed there in place of what the host has ([`install`]), or made a store again ([`restore`]).
//!
//! What must hold: a copy is whole, read back and durable before anything says that it is done; nothing else is replaced by it.

pub mod backup;
mod contents;
mod create;
pub mod install;
mod log_tail;
mod place;
pub mod restore;
pub mod transfer;

pub use self::contents::Progress;
pub(crate) use self::contents::{meta_of, state_of, verify_log};
pub use self::create::Summary;
pub(crate) use self::restore::verify_file;
