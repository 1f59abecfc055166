//! Owns: following a store from C.

use std::path::Path;

use tapestore::{Lsn, Reader};

use crate::options;
use crate::pointers::{Out, Text, given, made, milliseconds};
use crate::rows::{Row, put};
use crate::status::{Status, call};

/// A position in a store that advances. Opened by `tapestore_follow_open`, ended by `tapestore_follow_close`.
pub struct Follow(tapestore::Follow);

/// Follows the store in the directory `store` in LSN order, from the record `lsn` on and up to `at`, a `tapestore_at`, and
/// continues as records arrive.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_follow_open(store: Text<'_>, lsn: u64, at: u32, follow: Out<'_, Option<Box<Follow>>>) -> Status {
    call(|| {
        made(follow, "follow", || {
            let at = options::at(at, "at")?;
            let reader = Reader::open(Path::new(store.get("store")?))?;
            Ok(Follow(reader.follow(Lsn(lsn), at)))
        })
    })
}

/// The next row, or `TAPESTORE_END` if none is visible now: wait, and call again. The row's record is valid until the next
/// call with this follower, or its close.
///
/// After `TAPESTORE_WITHDRAWN` drop what was read from the follower's position on; it continues there. After
/// `TAPESTORE_EXPIRED` it continues after the records that are gone. `TAPESTORE_STORAGE_DOWN`: storage recovers, or everything
/// in the files of a store at rest has been read.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_follow_poll(follow: Option<&mut Follow>, row: Out<'_, Row>) -> Status {
    call(|| {
        let (follow, row) = (given(follow, "follow")?, given(row, "row")?);
        Ok(put(follow.0.poll()?, row))
    })
}

/// Sleeps until there may be a row, at most for `timeout_ms`.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_follow_wait(follow: Option<&Follow>, timeout_ms: u64) -> Status {
    call(|| {
        given(follow, "follow")?.0.wait(milliseconds(timeout_ms));
        Ok(Status::Ok)
    })
}

/// The number (LSN) of the next row.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_follow_position(follow: Option<&Follow>, lsn: Out<'_, u64>) -> Status {
    call(|| {
        given(lsn, "lsn")?.write(given(follow, "follow")?.0.position().0);
        Ok(Status::Ok)
    })
}

/// Ends a follower. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_follow_close(follow: Option<Box<Follow>>) {
    call(|| {
        drop(follow);
        Ok(Status::Ok)
    });
}
