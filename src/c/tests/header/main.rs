//! Owns: that `tapestore.h` is what the sources make: the calls of this package, the layouts and constants of the library.
//!
//! `cbindgen` could make the calls, but not the structs, which come out of a macro; and its licence, MPL-2.0, is none that
//! `.deny.toml` permits.
//!
//! ```sh
//! TAPESTORE_WRITE_HEADER=1 cargo test -p tapestore-c --test header      # writes it
//! ```

#![expect(clippy::unwrap_used, clippy::panic, reason = "an unexpected source fails a test by a panic")]

mod calls;
mod records;

use std::path::Path;

const PREAMBLE: &str = r#"/*
 * tapestore: publish, subscribe and read from C and C++.
 *
 * Made from the sources of src/c; do not change it by hand:
 *   TAPESTORE_WRITE_HEADER=1 cargo test -p tapestore-c --test header
 *
 * Link with -ltapestore_c. The page src/docs/c.md has whole programs.
 *
 * Codes: a call returns a tapestore_status. It sets its results if the code is TAPESTORE_OK, and only then; a handle that it
 * could not make is NULL. After a failure, that is any code but TAPESTORE_OK and TAPESTORE_END, tapestore_error_text returns
 * what happened. No argument may be NULL unless its call accepts that. Texts are UTF-8 and end with a zero.
 *
 * Threads: a handle is used by one thread at a time, and may move to another one. Different handles are independent.
 *
 * Pointers: what a call is given must be valid during the call, and is not kept. How long a pointer that it returns is valid
 * is said there; it points to memory that must not be changed. A closed handle must not be used.
 *
 * Fork: a child may use its parent's readers, snapshots, rows and columns. With a publisher of its parent, calls that publish
 * or wait return TAPESTORE_FORKED; with a subscriber, tapestore_subscriber_poll does.
 *
 * Numbers: a price is an int64_t in units of 1e-9, a size a uint64_t in units of 1e-9, a time a uint64_t of nanoseconds since
 * 1970-01-01T00:00:00Z. The greatest number of a type is null: the value is absent. tapestore_record_init sets the nulls of a
 * record.
 */
#ifndef TAPESTORE_H
#define TAPESTORE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
"#;

const END: &str = r"
#ifdef __cplusplus
}
#endif

#endif /* TAPESTORE_H */
";

#[test]
fn the_header_is_the_one_that_the_sources_make() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = [PREAMBLE.to_owned(), records::constants(), calls::all(dir), records::structs(), END.to_owned()].concat();
    assert!(header.is_ascii());
    let path = dir.join("tapestore.h");
    if std::env::var_os("TAPESTORE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(header.lines()).position(|(a, b)| a != b);
    let at = differs.map_or(committed.lines().count().min(header.lines().count()), |at| at);
    assert!(
        committed == header,
        "src/c/tapestore.h is not what the sources make, from line {} on; to write it, run: \
         TAPESTORE_WRITE_HEADER=1 cargo test -p tapestore-c --test header",
        at + 1
    );
}
