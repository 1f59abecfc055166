//! Owns: [`Value`], a traded value: an integer with 18 decimal places, and its exact text.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::record::{Price, Size};

/// A traded value, price times size: `i128` x 1e-18, so that the product of a [`Price`] and a [`Size`] is exact. The
/// maximum is null: a sum that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub i128);

/// Decimal places of a [`Value`].
const VALUE_PLACES: usize = 18;
/// Units of a [`Value`] of one.
const VALUE_ONE: u128 = 1_000_000_000_000_000_000;

impl Value {
    /// Null: no value.
    pub const NULL: Value = Value(i128::MAX);

    /// Price times size, exact. It always fits.
    pub fn of(price: Price, size: Size) -> Value {
        Value(i128::from(price.0) * i128::from(size.0))
    }

    /// The sum; null if it does not fit or either is null.
    pub(super) fn plus(self, other: Value) -> Value {
        if self == Value::NULL || other == Value::NULL {
            return Value::NULL;
        }
        self.0.checked_add(other.0).map_or(Value::NULL, Value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Value::NULL {
            return f.pad("null");
        }
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, part) = (self.0.unsigned_abs() / VALUE_ONE, self.0.unsigned_abs() % VALUE_ONE);
        if part == 0 {
            return f.pad(&format!("{sign}{whole}"));
        }
        f.pad(format!("{sign}{whole}.{part:0VALUE_PLACES$}").trim_end_matches('0'))
    }
}

impl FromStr for Value {
    type Err = Error;

    /// Parses a decimal of at most 18 places, or `null`; never rounds.
    fn from_str(text: &str) -> Result<Self> {
        if text == "null" {
            return Ok(Value::NULL);
        }
        let bad = || Error::invalid("value", format!("'{text}' is not a decimal of at most 18 places below 1.7e20"));
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || part.len() > VALUE_PLACES || !is_number(whole) || !is_number(part) {
            return Err(bad());
        }
        let whole: u128 = whole.parse().map_err(|_| bad())?;
        let part: u128 = format!("{part:0<VALUE_PLACES$}").parse().map_err(|_| bad())?;
        let units = whole.checked_mul(VALUE_ONE).and_then(|w| w.checked_add(part)).ok_or_else(bad)?;
        let value = if negative { 0i128.checked_sub_unsigned(units) } else { i128::try_from(units).ok() };
        value.map(Value).filter(|v| *v != Value::NULL).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_prints_and_parses_to_itself(units: i128) {
            prop_assert_eq!(Value(units).to_string().parse::<Value>().unwrap(), Value(units));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            drop(text.parse::<Value>());
        }
    }

    #[test]
    fn values_are_exact_and_text_that_would_round_is_refused() {
        assert_eq!("-1.5".parse::<Value>().unwrap(), Value(-1_500_000_000_000_000_000));
        assert_eq!(Value(1).to_string(), "0.000000000000000001");
        for units in [0, 1, -1, i128::MIN, i128::MAX] {
            assert_eq!(Value(units).to_string().parse::<Value>().unwrap(), Value(units));
        }
        for bad in ["", ".", "-", "1e5", "+1", " 1", "0.0000000000000000001", "170141183460469231731.687303715884105727"] {
            assert!(bad.parse::<Value>().is_err(), "{bad:?}");
        }
    }
}
