//! Owns: the codes of calls, and the text of a thread's last failure.
//!
//! What must hold: every exported function that can fail runs in `call`, so it returns a code, and no panic reaches C.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tapestore::{Error, PublishError};

/// The result of a call. A code keeps its number and its meaning; later versions may add codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// The call has done what it is for.
    Ok = 0,
    /// No failure: there is no such row, no more rows, or no event now. Results are not set.
    End = 1,
    /// An argument is NULL or breaks a rule: a bug of the program. The text names it.
    Invalid = 2,
    /// The store has no instrument of this name or number.
    NoInstrument = 3,
    /// The store has no kind of this number or name.
    NoKind = 4,
    /// The kind has no column of this name.
    NoColumn = 5,
    /// Back-pressure: the publisher's ring is full, and the record was not accepted. Try again, conflate or drop.
    Full = 6,
    /// As `TAPESTORE_FULL`, because the disk of the storage process is full. Of a flush or a close, as `TAPESTORE_TIMEOUT`.
    NoSpace = 7,
    /// The limit of time has passed. Accepted records stay in the ring and are still sent. But a close ends the ring: after it,
    /// records that storage has not received are lost.
    Timeout = 8,
    /// No storage process serves the store, or it is recovering. Try again later.
    StorageDown = 9,
    /// A live process publishes under this number; `take_over` fences it.
    Taken = 10,
    /// A newer process publishes under this number. This publisher cannot continue.
    Fenced = 11,
    /// The storage process refuses the request for good. The text has the reason.
    Refused = 12,
    /// This host is not the leader of its cluster and forwards nothing to it.
    NotLeader = 13,
    /// Another user owns the store.
    Denied = 14,
    /// A file of the store is damaged or missing. The text names it.
    Corrupt = 15,
    /// The file or the storage process is of another release.
    Version = 16,
    /// Records that were read have been withdrawn. `tapestore_follow_position` returns the first.
    Withdrawn = 17,
    /// Retention has removed the next records. `tapestore_follow_position` returns the first that is left.
    Expired = 18,
    /// A limit of the store is reached.
    Limit = 19,
    /// Memory, shared memory, descriptors or memory maps are exhausted.
    Exhausted = 20,
    /// The operating system refused an operation on a file.
    Io = 21,
    /// The bus in shared memory refused an operation.
    Bus = 22,
    /// The handle belongs to the process from which this one was forked.
    Forked = 23,
    /// A bug of the library. Close the handle; the text says what happened.
    Internal = 24,
    /// The snapshot keeps SSTables mapped that were removed since, and storage needs their room. Close it and take a new one.
    SnapshotTooOld = 25,
}

impl Status {
    /// All codes, in the order of their numbers.
    pub const ALL: [Status; 26] = [
        Status::Ok,
        Status::End,
        Status::Invalid,
        Status::NoInstrument,
        Status::NoKind,
        Status::NoColumn,
        Status::Full,
        Status::NoSpace,
        Status::Timeout,
        Status::StorageDown,
        Status::Taken,
        Status::Fenced,
        Status::Refused,
        Status::NotLeader,
        Status::Denied,
        Status::Corrupt,
        Status::Version,
        Status::Withdrawn,
        Status::Expired,
        Status::Limit,
        Status::Exhausted,
        Status::Io,
        Status::Bus,
        Status::Forked,
        Status::Internal,
        Status::SnapshotTooOld,
    ];

    /// Its name in C.
    pub const fn name(self) -> &'static CStr {
        match self {
            Status::Ok => c"TAPESTORE_OK",
            Status::End => c"TAPESTORE_END",
            Status::Invalid => c"TAPESTORE_INVALID",
            Status::NoInstrument => c"TAPESTORE_NO_INSTRUMENT",
            Status::NoKind => c"TAPESTORE_NO_KIND",
            Status::NoColumn => c"TAPESTORE_NO_COLUMN",
            Status::Full => c"TAPESTORE_FULL",
            Status::NoSpace => c"TAPESTORE_NO_SPACE",
            Status::Timeout => c"TAPESTORE_TIMEOUT",
            Status::StorageDown => c"TAPESTORE_STORAGE_DOWN",
            Status::Taken => c"TAPESTORE_TAKEN",
            Status::Fenced => c"TAPESTORE_FENCED",
            Status::Refused => c"TAPESTORE_REFUSED",
            Status::NotLeader => c"TAPESTORE_NOT_LEADER",
            Status::Denied => c"TAPESTORE_DENIED",
            Status::Corrupt => c"TAPESTORE_CORRUPT",
            Status::Version => c"TAPESTORE_VERSION",
            Status::Withdrawn => c"TAPESTORE_WITHDRAWN",
            Status::Expired => c"TAPESTORE_EXPIRED",
            Status::Limit => c"TAPESTORE_LIMIT",
            Status::Exhausted => c"TAPESTORE_EXHAUSTED",
            Status::Io => c"TAPESTORE_IO",
            Status::Bus => c"TAPESTORE_BUS",
            Status::Forked => c"TAPESTORE_FORKED",
            Status::Internal => c"TAPESTORE_INTERNAL",
            Status::SnapshotTooOld => c"TAPESTORE_SNAPSHOT_TOO_OLD",
        }
    }

    /// The code of `error`.
    fn of(error: &Error) -> Status {
        match error {
            Error::Invalid { what: "instrument", .. } => Status::NoInstrument,
            Error::Invalid { what: "kind", .. } => Status::NoKind,
            Error::Invalid { what: "column", .. } => Status::NoColumn,
            Error::Invalid { .. } | Error::Backup { .. } => Status::Invalid,
            Error::StorageDown { .. } | Error::InLogAlone { .. } | Error::Halted { .. } => Status::StorageDown,
            Error::Unanswered { .. } => Status::Timeout,
            Error::Taken { .. } => Status::Taken,
            Error::Fenced { .. } => Status::Fenced,
            Error::Refused { .. } | Error::Locked { .. } | Error::Consensus { .. } => Status::Refused,
            Error::NotLeader { .. } => Status::NotLeader,
            Error::Denied { .. } => Status::Denied,
            Error::Corrupt { .. } | Error::Foreign { .. } | Error::Missing { .. } => Status::Corrupt,
            Error::Version { .. } | Error::MalformedAnswer { .. } => Status::Version,
            Error::Withdrawn { .. } => Status::Withdrawn,
            Error::Expired { .. } => Status::Expired,
            Error::SnapshotTooOld { .. } => Status::SnapshotTooOld,
            Error::Limit { .. } => Status::Limit,
            Error::Exhausted { .. } | Error::NoSharedMemory { .. } | Error::TooManyMaps { .. } | Error::MemTableFull { .. } => {
                Status::Exhausted
            }
            Error::Io { .. } => Status::Io,
            Error::Bus { .. } => Status::Bus,
            Error::Forked { .. } => Status::Forked,
            // The library may add errors; each gets a code with the release that has it.
            _ => Status::Internal,
        }
    }
}

/// The name of the code `status`, such as `TAPESTORE_OK`. It is valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_status_name(status: c_int) -> *const c_char {
    let known = Status::ALL.iter().find(|known| **known as c_int == status);
    known.map_or(c"unknown", |known| known.name()).as_ptr()
}

thread_local! {
    /// The text of this thread's last failure.
    static TEXT: RefCell<CString> = RefCell::default();
}

/// The text of the last failure on this thread: what happened, to what, and what to do. Empty if there was none. It is valid
/// until the next failure on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_error_text() -> *const c_char {
    // A thread that ends has no text any more.
    TEXT.try_with(|text| text.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Why a call has failed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: Status,
    text: String,
}

impl Failure {
    /// A failure with the code `status`.
    pub(crate) fn new(status: Status, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into() }
    }

    /// The failure of a call about a kind that neither the library nor the store has.
    pub(crate) fn no_kind(number: u16) -> Failure {
        Failure::new(Status::NoKind, format!("the store has no kind {number}"))
    }

    /// The failure of a wait for records to reach a level: the records were accepted, and the time is over.
    pub(crate) fn of_wait(error: PublishError) -> Failure {
        match error {
            PublishError::Full { .. } => Failure::new(Status::Timeout, error.to_string()),
            error => error.into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(Status::of(&error), error.to_string())
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Failure {
        let status = match &error {
            PublishError::Full { .. } => Status::Full,
            PublishError::NoSpace { .. } => Status::NoSpace,
            PublishError::Fenced { .. } => Status::Fenced,
            PublishError::Refused(_) => Status::Refused,
            PublishError::Forked { .. } => Status::Forked,
            PublishError::Record(error) => Status::of(error),
            // As in `Status::of`.
            _ => Status::Internal,
        };
        Failure::new(status, error.to_string())
    }
}

/// Runs the `body` of an exported function: returns its code, and keeps the text of a failure for the thread.
pub(crate) fn call(body: impl FnOnce() -> Result<Status, Failure>) -> Status {
    // A value that a panic leaves half changed is a handle's: the caller is asked to close it.
    let result = catch_unwind(AssertUnwindSafe(body));
    let result = result.unwrap_or_else(|panic| Err(Failure::new(Status::Internal, text_of(panic.as_ref()))));
    result.unwrap_or_else(|failure| {
        let text = CString::new(failure.text.replace('\0', " ")).unwrap_or_default();
        // A thread that ends has no text any more.
        TEXT.try_with(|last| last.replace(text)).ok();
        failure.status
    })
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the library panicked: {}", text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use tapestore::Lsn;

    fn text() -> String {
        TEXT.with_borrow(|text| text.to_str().unwrap().to_owned())
    }

    #[test]
    fn codes_are_dense_and_their_names_are_found_by_number() {
        for (number, status) in (0..).zip(Status::ALL) {
            assert_eq!((status as c_int, tapestore_status_name(number)), (number, status.name().as_ptr()));
        }
        assert_eq!(tapestore_status_name(-1), tapestore_status_name(1000), "unknown");
    }

    #[test]
    fn a_panic_is_a_code_and_a_text() {
        assert_eq!(call(|| panic!("no {}", "rows")), Status::Internal);
        assert_eq!(text(), "the library panicked: no rows");
    }

    #[test]
    fn a_failure_keeps_the_text_of_its_error_until_the_next_failure() {
        let fails = |error: Error| call(|| Err(error.into()));
        assert_eq!(fails(Error::Withdrawn { first: Lsn(7) }), Status::Withdrawn);
        assert!(text().starts_with("records from LSN 7 on were withdrawn"), "{}", text());
        assert_eq!(call(|| Ok(Status::End)), Status::End);
        assert!(text().starts_with("records from LSN 7 on were withdrawn"), "{}", text());
        assert_eq!(fails(Error::StorageDown { dir: PathBuf::from("nul\0byte"), why: "it has stopped" }), Status::StorageDown);
        assert!(text().contains("nul byte"), "{}", text());
    }

    #[test]
    fn a_full_ring_is_back_pressure_of_a_publish_and_a_timeout_of_a_wait() {
        let full = || PublishError::Full { unacknowledged: 3, why: "it is slow" };
        assert_eq!(Failure::from(full()).status, Status::Full);
        assert_eq!(Failure::of_wait(full()).status, Status::Timeout);
        assert_eq!(Failure::of_wait(PublishError::NoSpace { unacknowledged: 3 }).status, Status::NoSpace);
    }
}
