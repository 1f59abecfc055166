//! Owns: what a publisher gives as the reason when storage does not answer it: whether none serves the store, or one
//! does and cannot answer now.

use std::path::Path;

use crate::error::Error;
use crate::shm::control::Control;
use crate::shm::run_dir::RunDir;

/// That storage of the store in `store`, which was asked, gave no answer in time.
pub(super) fn unanswered(store: &Path) -> Error {
    let dir = store.to_path_buf();
    let control = RunDir::find(store).and_then(|run_dir| Control::open(&run_dir.control()));
    match control.map(|control| control.trouble()) {
        Ok(Some((trouble, _))) if trouble.is_served() => Error::Unanswered { dir, why: trouble.reason() },
        Ok(None) => Error::Unanswered { dir, why: "it gives no reason" },
        Ok(Some((trouble, _))) => Error::StorageDown { dir, why: trouble.reason() },
        Err(_) => Error::StorageDown { dir, why: "it does not answer" },
    }
}
