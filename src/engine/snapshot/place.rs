//! Owns: putting a finished copy in its place in one step.
//!
//! What must hold: a crash at any moment leaves the old contents of the place or all of the new copy.

use std::path::{Path, PathBuf};

use super::contents::remove;
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};

/// The directory in which the copy for `target` is built, and the parent of both.
pub(super) fn beside(target: &Path) -> Result<(PathBuf, PathBuf)> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => {
            let mut name = name.to_owned();
            name.push(".unfinished");
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent.join(name), parent.to_path_buf()))
        }
        _ => Err(Error::invalid(
            "directory",
            format!("{} cannot be replaced in one step; name a directory in it", target.display()),
        )),
    }
}

/// Replaces `target` by the finished copy `fresh`, and removes the old contents.
pub(super) fn put_in_place(disk: &dyn Disk, fresh: &Path, target: &Path, parent: &Path) -> Result<()> {
    disk.swap_dirs(fresh, target)?;
    disk.sync_dir(parent)?;
    if disk.exists(fresh)?
        && let Err(error) = remove(disk, fresh)
    {
        let path = fresh.display();
        tracing::warn!(
            name: "backup.old_copy_not_removed", %error, %path,
            "the old copy cannot be removed; the next backup removes it"
        );
    }
    Ok(())
}
