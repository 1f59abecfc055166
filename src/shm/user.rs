//! Owns: users: that of this process, that of a socket's peer, and their names.
//!
//! What must hold: permission to publish to a store or to change it depends on the credentials that the kernel reports of a
//! connection's peer, never on a claim of the peer.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// Effective user id of this process.
pub fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Display name of user `uid`: its number, with its name if this host has one.
pub fn name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':'));
    let found = fields.find_map(|mut f| {
        let name = f.next()?;
        (f.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    found.map_or_else(|| format!("user {uid}"), |name| format!("user {name} ({uid})"))
}

/// Error for a process of user `uid` that may not use the store in `dir`, which user `owner` serves.
pub fn denied(dir: &Path, owner: u32, uid: u32) -> Error {
    Error::Denied { dir: dir.to_path_buf(), owner: name(owner), user: name(uid) }
}

/// Checks that the peer of `stream` runs as this process's user, which serves the store in `dir`: storage cannot read what
/// another user puts on the bus, and the store's files belong to its user.
///
/// Returns the peer's process id; 0 if it is in another container.
///
/// # Errors
/// [`Error::Denied`] if the peer runs as another user; [`Error::Io`] if the kernel does not report the peer's user.
pub fn check_peer(stream: &UnixStream, dir: &Path) -> Result<u32> {
    let (uid, pid) = super::peer_of(stream).map_err(|e| Error::io("read the user of a connection to", dir, e))?;
    if uid == own() && !(pid == 0 && is_overflow(uid)) { Ok(pid) } else { Err(denied(dir, own(), uid)) }
}

/// User of the peer of `stream`, wherever its process runs; `None` if the kernel does not report it.
pub fn of_peer(stream: &UnixStream) -> Option<u32> {
    let (uid, pid) = super::peer_of(stream).ok()?;
    (pid != 0 || !is_overflow(uid)).then_some(uid)
}

/// Whether `uid` is what the kernel reports of every user that this user namespace does not have: it is nobody's then.
fn is_overflow(uid: u32) -> bool {
    let found = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok().and_then(|text| text.trim().parse().ok());
    uid == found.unwrap_or(OVERFLOW)
}

/// What the kernel reports of unmapped users unless it was set otherwise.
const OVERFLOW: u32 = 65_534;

/// Most connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Opens a non-blocking socket at `path`, to which only processes of this user may connect.
///
/// # Errors
/// [`Error::Io`].
pub fn listen(path: &Path) -> Result<UnixListener> {
    let failed = |e: Errno| Error::io("listen at", path, e);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    // Before it has a name: the group, which may read the run directory, must not connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    net::bind(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_shown_by_name_and_number_or_by_number_alone() {
        assert_eq!(name(0), "user root (0)");
        assert_eq!(name(4_000_000_000), "user 4000000000");
    }

    #[test]
    fn a_peer_of_the_same_user_is_accepted() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        check_peer(&ours, Path::new("s")).unwrap();
    }
}
