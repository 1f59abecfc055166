//! Owns: the limits that a process raises at its start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. The soft limit is 1,024 in most shells, for programs that use
/// `select`; a store with many files and publishers needs more.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::debug!(name: "process.file_limit_not_raised", %error, "cannot raise the limit of open files");
    }
}
