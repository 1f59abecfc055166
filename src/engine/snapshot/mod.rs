//! Owns: whole copies of a store. A copy of a served store is made as a backup ([`backup`]) or as a snapshot for another host
//! ([`transfer`]), which installs it in place of its own store ([`install`]); a backup becomes a store again by [`restore`].
//!
//! What must hold: a copy is whole, read back and durable before it is reported done, and it replaces nothing else.

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
pub(crate) use self::restore::{aside, verify_file};
