//! Owns: [`Name`], the name of an instrument.
//!
//! What must hold: a name is `[A-Za-z0-9._:/-]{1,71}` and never used as a path.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Longest name in bytes (DBN's symbol length without its terminator).
pub const NAME_LEN_MAX: usize = 71;

/// A checked instrument name, 72 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    bytes: [u8; NAME_LEN_MAX],
    len: u8,
}

impl Name {
    /// Checks `bytes`: 1 to 71 of letters, digits and `._:/-`.
    pub fn new(bytes: &[u8]) -> Result<Name> {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"._:/-".contains(b);
        if bytes.is_empty() || bytes.len() > NAME_LEN_MAX || !bytes.iter().all(allowed) {
            let shown: String = String::from_utf8_lossy(bytes).chars().take(80).flat_map(char::escape_default).collect();
            return Err(Error::invalid(
                "instrument name",
                format!("'{shown}' is not 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ : / -"),
            ));
        }
        let mut name = Name { bytes: [0; NAME_LEN_MAX], len: bytes.len() as u8 };
        for (to, from) in name.bytes.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(name)
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        // `new` accepts only ASCII, so neither fallback occurs.
        self.bytes.get(..usize::from(self.len)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("")
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Name::new(text.as_bytes())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_1_to_71_of_the_allowed_characters() {
        assert_eq!("BINANCE:BTCUSDT".parse::<Name>().unwrap().as_str(), "BINANCE:BTCUSDT");
        assert!("x".repeat(71).parse::<Name>().is_ok());
        for bad in ["", "a b", "a\0b", "\u{fc}ber", "a\\b", "a\nb", &"x".repeat(72)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
