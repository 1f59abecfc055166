//! Owns: whose a process is, and how a user is called.
//!
//! What must hold: who may publish to a store, or change it, is decided by what the kernel says of the other end of a
//! connection, never by what it says itself.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// The user of this process, by number.
pub fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What user `uid` is called: its name, if this host has one for it, and its number.
pub fn name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':'));
    let found = fields.find_map(|mut f| {
        let name = f.next()?;
        (f.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    found.map_or_else(|| format!("user {uid}"), |name| format!("user {name} ({uid})"))
}

/// That a process of user `uid` may not use the store in `dir`, which user `owner` serves.
pub fn denied(dir: &Path, owner: u32, uid: u32) -> Error {
    Error::Denied { dir: dir.to_path_buf(), owner: name(owner), user: name(uid) }
}

/// Checks that the process at the other end of `stream` is of this process's user, which serves the store in `dir`: what
/// another user puts on the bus this one cannot read, and the store's files are not its own.
///
/// # Errors
/// [`Error::Denied`] if it is not; [`Error::Io`] if the kernel does not say.
pub fn check_peer(stream: &UnixStream, dir: &Path) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(|e| Error::io("ask who connects to", dir, e))?;
    let uid = peer.uid.as_raw();
    if uid == own() { Ok(()) } else { Err(denied(dir, own(), uid)) }
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Opens a socket at `path`, at which processes of this user may connect and others not, that never waits.
///
/// # Errors
/// [`Error::Io`].
pub fn listen(path: &Path) -> Result<UnixListener> {
    let failed = |e: Errno| Error::io("listen at", path, e);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    // Before it has a name: who may read in the run directory may not connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    net::bind(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_name_and_its_number_and_one_without_a_name_its_number() {
        assert_eq!(name(0), "user root (0)");
        assert_eq!(name(4_000_000_000), "user 4000000000");
    }

    #[test]
    fn the_other_end_of_a_socket_is_of_this_user() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        check_peer(&ours, Path::new("s")).unwrap();
    }
}
