//! Owns: which file system holds a path, and how it is mounted.

use std::path::{Path, PathBuf};

use super::host::System;

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub at: PathBuf,
    /// Its type, like ext4.
    pub of: String,
    /// What it is made of, like /dev/sda1.
    pub source: String,
    /// Its options, those of the mount and those of the file system.
    pub options: Vec<String>,
}

impl Mount {
    /// The file system that holds `path`, which exists; `None` if the system does not say.
    pub fn of(system: &System, path: &Path) -> Option<Mount> {
        let path = path.canonicalize().ok()?;
        let text = system.text("/proc/self/mountinfo")?;
        // Of two on one place the later one covers the earlier one.
        text.lines()
            .filter_map(parse)
            .filter(|mount| path.starts_with(&mount.at))
            .max_by_key(|mount| mount.at.components().count())
    }

    /// Whether it has one of `options`.
    pub fn has(&self, options: &[&str]) -> bool {
        self.options.iter().any(|option| options.contains(&option.as_str()))
    }
}

/// `text` without the escapes of /proc: a backslash and three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        match part.split_at_checked(3).and_then(|(code, rest)| Some((u8::from_str_radix(code, 8).ok()?, rest))) {
            Some((byte, rest)) => {
                out.push(char::from(byte));
                out.push_str(rest);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// A line of /proc/self/mountinfo: id, parent, device, root, place, options, more options, -, type, source, options.
fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let (mut before, mut after) = (before.split(' ').skip(4), after.split(' '));
    let (at, own) = (unescaped(before.next()?), before.next()?);
    let (of, source, all) = (after.next()?, after.next()?, after.next().unwrap_or(""));
    let options = own.split(',').chain(all.split(',')).map(str::to_owned).collect();
    Some(Mount { at: at.into(), of: of.to_owned(), source: unescaped(source), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_innermost_and_latest_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(path.join("proc/self")).unwrap();
        std::fs::create_dir_all(path.join("with space/store")).unwrap();
        let text = format!(
            "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
             2 1 8:2 / {0}/with\\040space rw - tmpfs tmpfs rw\n\
             3 1 8:3 / {0}/with\\040space ro,noatime - xfs /dev/b rw,barrier=0\n\
             4 1 8:4 / {0}/with rw - nfs host:/x rw\n",
            path.display()
        );
        std::fs::write(path.join("proc/self/mountinfo"), text).unwrap();
        let mount = Mount::of(&System::new(&path), &path.join("with space/store")).unwrap();
        assert_eq!((mount.of.as_str(), mount.source.as_str()), ("xfs", "/dev/b"));
        assert!(mount.has(&["ro"]) && mount.has(&["nobarrier", "barrier=0"]) && !mount.has(&["relatime"]));
        assert_eq!(unescaped("a\\134b\\x\\04"), "a\\b\\x\\04");
    }
}
