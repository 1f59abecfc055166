//! Owns: the error for a request that storage does not answer: whether no process serves the store, or one does and
//! cannot answer now.

use std::path::Path;

use crate::error::Error;
use crate::shm::control::Control;
use crate::shm::run_dir::RunDir;

/// The error for a request to the store in `store` that timed out.
pub(super) fn unanswered(store: &Path) -> Error {
    let dir = store.to_path_buf();
    let control = RunDir::find(store).and_then(|run_dir| Control::open(&run_dir.control()));
    match control.map(|control| control.trouble()) {
        Ok(Some((trouble, _))) if trouble.is_served() => Error::Unanswered { dir, why: trouble.reason() },
        Ok(None) => Error::Unanswered { dir, why: "it reports no trouble" },
        Ok(Some((trouble, _))) => Error::StorageDown { dir, why: trouble.reason() },
        Err(_) => Error::StorageDown { dir, why: "it does not answer" },
    }
}
