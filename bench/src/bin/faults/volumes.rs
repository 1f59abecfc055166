//! Owns: small file systems that can be filled, shut down and made to fail.
//!
//! What must hold: every mount is unmounted however a campaign ends; without root the campaign is skipped with the reason.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The reason why volumes cannot be created here, if any.
pub(crate) fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root".into());
    }
    let loops = Path::new("/dev/loop-control").exists();
    (!loops).then(|| "there are no loop devices".into())
}

fn command(name: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), String> {
    let output = Command::new(name).args(arguments).stdin(Stdio::null()).output().map_err(|e| format!("{name}: {e}"))?;
    let stderr = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{name} {arguments:?}: {}: {}", output.status, stderr())) }
}

/// A mounted file system.
pub(crate) struct Volume {
    /// Mount point.
    pub(crate) path: PathBuf,
    /// Image file of its blocks; `None` for a tmpfs.
    image: Option<PathBuf>,
    is_mounted: bool,
}

impl Volume {
    /// Mounts a tmpfs of `bytes`.
    pub(crate) fn tmpfs(path: &Path, bytes: u64) -> Result<Volume, String> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={bytes}");
        command("mount", &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "tapefaults".as_ref(), path.as_ref()])?;
        Ok(Volume { path: path.to_path_buf(), image: None, is_mounted: true })
    }

    /// Mounts an ext4 of `bytes` on a loop device over the sparse file `image`.
    pub(crate) fn ext4(path: &Path, image: &Path, bytes: u64) -> Result<Volume, String> {
        std::fs::create_dir_all(path).unwrap();
        File::create(image).unwrap().set_len(bytes).unwrap();
        let lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        command("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), "-E".as_ref(), lazy.as_ref(), image.as_ref()])?;
        let mut this = Volume { path: path.to_path_buf(), image: Some(image.to_path_buf()), is_mounted: false };
        this.mount()?;
        Ok(this)
    }

    /// Mounts it again.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        let Some(image) = &self.image else { return Err("a tmpfs cannot be mounted again".into()) };
        command("mount", &["-o".as_ref(), "loop,nodiscard".as_ref(), image.as_ref(), self.path.as_ref()])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it; retries for five seconds while it is in use.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..500 {
            match command("umount", &[self.path.as_ref()]) {
                Ok(()) => {
                    self.is_mounted = false;
                    return Ok(());
                }
                Err(e) => last = e,
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Err(last)
    }

    /// Simulates a power loss: nothing in the page cache, not even the journal, reaches the disk any more.
    pub(crate) fn shutdown(&self) -> Result<(), String> {
        /// `EXT4_IOC_SHUTDOWN`, the same number as on XFS; the flag drops the journal too.
        const OP: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.path).map_err(|e| e.to_string())?;
        // SAFETY: the operation takes a pointer to a u32, which it reads; it is the kernel's documented interface.
        let argument = unsafe { rustix::ioctl::Setter::<OP, u32>::new(NO_LOG_FLUSH) };
        // SAFETY: the argument is of the type that the operation takes, and `root` is open for the call.
        let done = unsafe { rustix::ioctl::ioctl(&root, argument) };
        done.map_err(|e| format!("the file system cannot be shut down: {e}"))
    }

    /// Shrinks the disk to an eighth: every write beyond that fails completely. (A full thin volume would do, but a loop
    /// device reports a short write as a success: Linux 6.18.)
    pub(crate) fn shrink(&self) -> Result<u64, String> {
        let Some(image) = &self.image else { return Err("there is no image".into()) };
        command("sync", &["-f".as_ref(), self.path.as_ref()])?;
        command("cp", &["--sparse=always".as_ref(), image.as_ref(), image.with_extension("aside").as_ref()])?;
        let file = File::options().write(true).open(image).map_err(|e| e.to_string())?;
        let cut = file.metadata().map_err(|e| e.to_string())?.len() / 8;
        file.set_len(cut).map_err(|e| e.to_string())?;
        let output = Command::new("losetup").arg("-j").arg(image).args(["-n", "-O", "NAME"]).output();
        let device = String::from_utf8(output.map_err(|e| e.to_string())?.stdout).map_err(|e| e.to_string())?;
        command("losetup", &["-c".as_ref(), device.trim().as_ref()])?;
        Ok(cut)
    }

    /// Restores the size of the disk; the bytes after `cut` are those from before [`Volume::shrink`].
    pub(crate) fn restore(&self, cut: u64) -> Result<(), String> {
        let Some(image) = &self.image else { return Err("there is no image".into()) };
        let aside = image.with_extension("aside");
        let from = File::open(&aside).map_err(|e| e.to_string())?;
        let to = File::options().write(true).open(image).map_err(|e| e.to_string())?;
        let len = from.metadata().map_err(|e| e.to_string())?.len();
        to.set_len(len).map_err(|e| e.to_string())?;
        let mut bytes = vec![0u8; 1 << 20];
        for at in (cut..len).step_by(bytes.len()) {
            let read = from.read_at(&mut bytes, at).map_err(|e| e.to_string())?;
            if bytes[..read].iter().any(|b| *b != 0) {
                to.write_all_at(&bytes[..read], at).map_err(|e| e.to_string())?;
            }
        }
        std::fs::remove_file(aside).map_err(|e| e.to_string())
    }

    /// Truncates the image to its first eighth: reads after that return zeros.
    pub(crate) fn spoil(&self) -> Result<(), String> {
        let Some(image) = &self.image else { return Err("there is no image".into()) };
        command("sync", &["-f".as_ref(), self.path.as_ref()])?;
        let file = File::options().write(true).open(image).map_err(|e| e.to_string())?;
        let len = file.metadata().map_err(|e| e.to_string())?.len();
        file.set_len(len / 8).map_err(|e| e.to_string())
    }

    /// Free space, bytes.
    pub(crate) fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.path).map_or(0, |s| s.f_bavail * s.f_frsize)
    }

    /// Fills it with the file `name` until `left` bytes are free.
    pub(crate) fn fill(&self, name: &str, left: u64) {
        fill(&self.path.join(name), || self.free() > left);
    }

    /// Removes the file `name` of [`Volume::fill`].
    pub(crate) fn empty(&self, name: &str) {
        std::fs::remove_file(self.path.join(name)).ok();
    }
}

/// Appends to the file `path` while `more` returns true and writes succeed.
fn fill(path: &Path, more: impl Fn() -> bool) {
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    let mut at = file.metadata().unwrap().len();
    let bytes = vec![0x5au8; 256 << 10];
    while more() {
        if file.write_all_at(&bytes, at).is_err() {
            break;
        }
        at += bytes.len() as u64;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            command("umount", &["-l".as_ref(), self.path.as_ref()]).ok();
        }
        if let Some(image) = &self.image {
            std::fs::remove_file(image).ok();
        }
    }
}
