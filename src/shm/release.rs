//! Owns: the mark of the release that is in every program which uses a store, and finding it in a program's file.
//!
//! What must hold: a program that has found a store has the mark, whoever linked it and whatever its file is called now; reading
//! it runs nothing and needs no more than the bytes of the file.

/// What stands before the version.
const BEGIN: &str = "tapestore release <";
/// What stands after it.
const END: u8 = b'>';
/// Most bytes of a version.
const VERSION_MAX: usize = 40;

/// The mark of this program.
static MARK: &str = concat!("tapestore release <", env!("CARGO_PKG_VERSION"), ">");

/// The release of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Most bytes of a mark: a piece of a file that is searched begins this much before the end of the piece before it.
pub const MARK_MAX: usize = BEGIN.len() + VERSION_MAX + 1;

/// Keeps the mark in this program. Every program that opens a store calls it.
#[inline(never)]
pub fn leave_mark() {
    std::hint::black_box(MARK);
}

/// The version in a mark at the start of `bytes`, if there is one.
pub fn version_at(bytes: &[u8]) -> Option<&str> {
    let rest = bytes.strip_prefix(BEGIN.as_bytes())?;
    let len = rest.iter().take(VERSION_MAX + 1).position(|b| *b == END)?;
    let version = rest.get(..len)?;
    let is_version = |b: &u8| b.is_ascii_alphanumeric() || b".-+".contains(b);
    // What a program looks for stands in it too, without a version.
    (version.first()?.is_ascii_digit() && version.iter().all(is_version)).then(|| std::str::from_utf8(version).ok()).flatten()
}

/// The bytes that every mark begins with.
pub fn begins_with() -> &'static [u8] {
    BEGIN.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_has_a_version_and_what_is_searched_for_has_none() {
        assert_eq!(version_at(MARK.as_bytes()), Some(VERSION));
        assert_eq!(version_at(b"tapestore release <1.20.3-rc.1> and more"), Some("1.20.3-rc.1"));
        for other in ["tapestore release <", "tapestore release <>", "tapestore release <x>", "tapestore release <1 2>", "1.0>"] {
            assert_eq!(version_at(other.as_bytes()), None, "{other}");
        }
        let long = format!("tapestore release <1{}>", "0".repeat(VERSION_MAX));
        assert_eq!(version_at(long.as_bytes()), None);
        assert!(MARK.len() <= MARK_MAX && MARK.as_bytes().starts_with(begins_with()));
    }
}
