//! Owns: who owns the files of the store, and who else may read or change them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tapestore::shm::user;

use super::finding::Finding;
use super::host::Host;
use crate::replication::local;

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    let Ok(found) = host.store.metadata() else { return vec![parent(host)] };
    let mut findings = vec![owner(host, &found), mode(host, &found)];
    findings.extend(local_key(host, &found));
    findings
}

/// The permission of `found` as text, like 0750.
fn mode_text(found: &Metadata) -> String {
    format!("{:04o}", found.mode() & 0o7777)
}

/// Whether storage can make the store.
fn parent(host: &Host) -> Finding {
    const NAME: &str = "owner";
    let place = host.place.display();
    let store = host.store_text();
    if rustix::fs::access(&host.place, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok() {
        return Finding::ok(NAME, format!("{store} does not exist yet; it can be made in {place}"));
    }
    let needed = "a directory that this user may write in: storage makes the store there";
    let command = format!("sudo install -d -o $USER -m 0750 {store}");
    Finding::problem(NAME, format!("{store} does not exist, and this user may not write in {place}"), needed, command)
}

/// The first of the store's files that another user than the store's owns.
fn stray(host: &Host, owner: u32) -> Option<(PathBuf, u32)> {
    let dirs = ["", "wal", tapestore::sstable::DIR].map(|name| host.store.join(name));
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).find_map(|path| {
        let uid = path.symlink_metadata().ok()?.uid();
        (uid != owner).then_some((path, uid))
    })
}

fn owner(host: &Host, found: &Metadata) -> Finding {
    const NAME: &str = "owner";
    let store = host.store_text();
    if let Some((path, uid)) = stray(host, found.uid()) {
        let found_text =
            format!("{store} is of {}, and {} in it of {}", user::name(found.uid()), path.display(), user::name(uid));
        let needed = "one user for all files: storage, which runs as the store's user, fails at a file of another one. A command that \
                      root ran there makes such files";
        let command = format!("chown -R {}:{} {store}", found.uid(), found.gid());
        return Finding::problem(NAME, found_text, needed, command);
    }
    let own = user::own();
    let as_other =
        if own == found.uid() || own == 0 { "" } else { "; only that user may publish to it and run commands that change it" };
    Finding::ok(NAME, format!("{store} is of {}{as_other}", user::name(found.uid())))
}

fn mode(host: &Host, found: &Metadata) -> Finding {
    const NAME: &str = "mode";
    let store = host.store_text();
    let text = format!("{store} has mode {}", mode_text(found));
    let command = format!("chmod 0750 {store}");
    if found.mode() & 0o002 != 0 {
        let needed = "0750: every user of this host can replace or remove the store's files";
        return Finding::problem(NAME, text, needed, command);
    }
    if found.mode() & 0o020 != 0 {
        let needed = "0750: every user of its group can replace or remove the store's files";
        return Finding::warning(NAME, text, needed, command);
    }
    if found.mode() & 0o005 != 0 {
        let needed = "0750, unless every user of this host may read the records that the files' own modes let them read";
        return Finding::warning(NAME, text, needed, command);
    }
    Finding::ok(NAME, text)
}

/// What is wrong with the mode of the private key in the file `path`, which the store's owner `owner` or this user uses.
pub(super) fn key(name: &'static str, path: &Path, owner: u32) -> Finding {
    let shown = path.display();
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) => {
            let needed = "the private key: tape-replication does not start without it";
            return Finding::problem(name, format!("{shown}: {error}"), needed, format!("ls -l {shown}"));
        }
    };
    let text = format!("{shown} has mode {} and is of {}", mode_text(&found), user::name(found.uid()));
    let command = format!("chmod 0600 {shown}");
    if found.mode() & 0o077 != 0 && found.mode() & 0o007 == 0 && name != "local-key" {
        let needed = "0600: its group can read the private key, and with it can act as this host";
        return Finding::warning(name, text, needed, command);
    }
    if found.mode() & 0o077 != 0 {
        let needed = "0600: other users can read the private key, and with it can act as this host";
        return Finding::problem(name, text, needed, command);
    }
    if ![owner, user::own(), 0].contains(&found.uid()) {
        let needed = "a file of the store's user: tape-replication refuses or cannot read it otherwise";
        return Finding::problem(name, text, needed, format!("chown {owner} {shown}"));
    }
    Finding::ok(name, text)
}

/// The key by which replication processes of one user authenticate, if there is one.
fn local_key(host: &Host, found: &Metadata) -> Option<Finding> {
    let path = host.store.join(local::NAME);
    path.symlink_metadata().is_ok().then(|| key("local-key", &path, found.uid()))
}
