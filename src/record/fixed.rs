//! Owns: [`Price`] and [`Size`], decimal numbers with nine places in an integer, and their exact
//! text. Nothing here rounds: text with more places than nine is refused.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Units in one.
const ONE: u64 = 1_000_000_000;

/// A price: `i64` × 1e-9. The maximum is null.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bytemuck::Pod,
    bytemuck::Zeroable,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[repr(transparent)]
pub struct Price(pub i64);

/// A size: `u64` × 1e-9. The maximum is null.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bytemuck::Pod,
    bytemuck::Zeroable,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[repr(transparent)]
pub struct Size(pub u64);

/// A sum of sizes: 128 bits × 1e-9, low half first. The maximum is null.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    bytemuck::Pod,
    bytemuck::Zeroable,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[repr(transparent)]
pub struct Volume(pub [u64; 2]);

impl Volume {
    /// No volume.
    pub const NULL: Volume = Volume([u64::MAX; 2]);

    /// The volume of `units` × 1e-9.
    pub const fn new(units: u128) -> Volume {
        Volume([units as u64, (units >> 64) as u64])
    }

    /// Units of 1e-9.
    pub const fn units(self) -> u128 {
        let Volume([low, high]) = self;
        low as u128 | (high as u128) << 64
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Volume::NULL {
            return f.pad("null");
        }
        let (whole, part) = (self.units() / u128::from(ONE), self.units() % u128::from(ONE));
        if part == 0 {
            return f.pad(&whole.to_string());
        }
        f.pad(format!("{whole}.{part:09}").trim_end_matches('0'))
    }
}

impl FromStr for Volume {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "null" {
            return Ok(Volume::NULL);
        }
        let bad = || Error::invalid("volume", format!("'{text}' is not a decimal of at most nine places"));
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || part.len() > 9 || !digits(whole) || !digits(part) {
            return Err(bad());
        }
        let whole: u128 = whole.parse().map_err(|_| bad())?;
        let part: u128 = format!("{part:0<9}").parse().map_err(|_| bad())?;
        let units = whole.checked_mul(u128::from(ONE)).and_then(|w| w.checked_add(part)).ok_or_else(bad)?;
        if units == u128::MAX { Err(bad()) } else { Ok(Volume::new(units)) }
    }
}

impl Price {
    /// No price.
    pub const NULL: Price = Price(i64::MAX);
}

impl Size {
    /// No size.
    pub const NULL: Size = Size(u64::MAX);
}

fn print(f: &mut fmt::Formatter<'_>, negative: bool, units: u64) -> fmt::Result {
    // Digits from the last to the first: at most a sign, eleven, a point, nine.
    let mut text = [0u8; 24];
    let mut at = text.len();
    let mut put = |c: u8| {
        at -= 1;
        text.iter_mut().skip(at).take(1).for_each(|to| *to = c);
    };
    let (mut whole, mut part) = (units / ONE, units % ONE);
    if part != 0 {
        let mut places = 9;
        while part % 10 == 0 {
            part /= 10;
            places -= 1;
        }
        for _ in 0..places {
            put(b'0' + (part % 10) as u8);
            part /= 10;
        }
        put(b'.');
    }
    loop {
        put(b'0' + (whole % 10) as u8);
        whole /= 10;
        if whole == 0 {
            break;
        }
    }
    if negative {
        put(b'-');
    }
    f.pad(text.get(at..).and_then(|t| std::str::from_utf8(t).ok()).unwrap_or(""))
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Price::NULL { f.pad("null") } else { print(f, self.0 < 0, self.0.unsigned_abs()) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Size::NULL { f.pad("null") } else { print(f, false, self.0) }
    }
}

/// Units of the unsigned decimal `text`, or `None` if it is malformed, too fine or too large.
fn units(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || !digits(whole) || !digits(part) {
        return None;
    }
    let part = part.trim_end_matches('0');
    if part.len() > 9 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut fraction: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    for _ in part.len()..9 {
        fraction *= 10;
    }
    whole.checked_mul(ONE)?.checked_add(fraction)
}

impl FromStr for Price {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "null" {
            return Ok(Price::NULL);
        }
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let parsed = units(digits).and_then(|u| {
            let value = if negative { 0i64.checked_sub_unsigned(u)? } else { i64::try_from(u).ok()? };
            (value != i64::MAX).then_some(Price(value))
        });
        parsed.ok_or_else(|| Error::invalid("price", format!("'{text}' is not a decimal of at most 9 places below 9223372036.8")))
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "null" {
            return Ok(Size::NULL);
        }
        let parsed = units(text).filter(|&u| u != u64::MAX).map(Size);
        parsed.ok_or_else(|| {
            Error::invalid("size", format!("'{text}' is not a decimal without sign, of at most 9 places, below 18446744073.7"))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_price_prints_and_parses_to_itself(raw: i64) {
            prop_assert_eq!(Price(raw).to_string().parse::<Price>().unwrap(), Price(raw));
        }

        #[test]
        fn every_size_prints_and_parses_to_itself(raw: u64) {
            prop_assert_eq!(Size(raw).to_string().parse::<Size>().unwrap(), Size(raw));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            drop(text.parse::<Price>());
            drop(text.parse::<Size>());
        }
    }

    #[test]
    fn decimals_are_exact_and_a_text_that_would_round_is_refused() {
        assert_eq!("61800.20".parse::<Price>().unwrap(), Price(61_800_200_000_000));
        assert_eq!(Price(61_800_200_000_000).to_string(), "61800.2");
        assert_eq!("-0.000000001".parse::<Price>().unwrap(), Price(-1));
        assert_eq!("0.00105000".parse::<Size>().unwrap(), Size(1_050_000));
        assert_eq!(Price(i64::MIN).to_string(), "-9223372036.854775808");
        for bad in ["", ".", "-", "1e5", "+1", " 1", "1.0000000001", "9223372036.854775807", "99999999999", "--1"] {
            assert!(bad.parse::<Price>().is_err(), "{bad:?}");
        }
        assert!("-1".parse::<Size>().is_err());
    }
}
