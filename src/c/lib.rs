//! Owns: the C library. A program in C or C++ publishes, subscribes and reads with the calls of `tapestore.h`.
//!
//! What must hold: no panic reaches C; a failed call has a code, and a text for its thread; an argument that must not be
//! NULL is refused by name. `tapestore.h` is made from these sources and from the library's layouts: a test makes it
//! again and compares.
//!
//! A handle is a `Box` that C holds. Its calls borrow it, and its close drops it. So a caller in C promises of a handle
//! what the compiler checks in Rust: one call at a time, and none after the close.

mod borrowing;

pub mod columns;
pub mod follow;
pub mod options;
pub mod pointers;
pub mod publisher;
pub mod reader;
pub mod record;
pub mod rows;
pub mod snapshot;
pub mod status;
pub mod subscriber;

use std::ffi::{CStr, c_char};

use crate::status::{Status, call};
use tapestore::time::{Clock, HostClock};

/// A handle may move to another thread, as `tapestore.h` promises.
const fn may_move<T: Send>() {}
const _: () = {
    may_move::<publisher::Publisher>();
    may_move::<subscriber::Subscriber>();
    may_move::<reader::Reader>();
    may_move::<snapshot::Snapshot>();
    may_move::<rows::Rows>();
    may_move::<columns::Columns>();
    may_move::<follow::Follow>();
};

/// The version, as C has it.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version has no zero byte"),
};

/// The version of this library. Use the header and the library of one version: this text is `TAPESTORE_HEADER_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Nanoseconds since 1970-01-01T00:00:00Z by the host's clock.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_now() -> u64 {
    HostClock.wall().0
}

/// Installs a handler of SIGBUS in this process. A page of a mapped file that cannot be read is then an error of a call;
/// without it the process ends with the signal.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_guard_pages() -> Status {
    call(|| {
        tapestore::guard_pages()?;
        Ok(Status::Ok)
    })
}
