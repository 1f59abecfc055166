//! Owns: the parameters of a statement: what a client sends for `$1`, `$2` and so on, as values of the engine.
//!
//! What must hold: a parameter is the value that the client has sent, or an error; never one that was rounded to fit.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use pgwire::api::Type;
use pgwire::api::portal::Portal;
use pgwire::error::{PgWireError, PgWireResult};
use postgres_types::FromSql;

use crate::postgres::codes;

/// Microseconds from 1970 to 2000.
const MICROS_TO_2000: i64 = 946_684_800_000_000;

/// The type in SQL of parameters that a client sends as `of`.
pub(super) fn name_of(of: &Type) -> Option<&'static str> {
    Some(match *of {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 | Type::OID => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::NUMERIC => "decimal(38, 9)",
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => "text",
        Type::TIMESTAMP | Type::TIMESTAMPTZ => "timestamp",
        Type::DATE => "date",
        _ => return None,
    })
}

fn unreadable(number: usize, of: &Type, reason: impl std::fmt::Display) -> PgWireError {
    codes::error("22P02", format!("parameter ${number} is no {of}: {reason}"))
}

/// The values of a portal's parameters. `wanted` has the types that the statement needs.
pub(super) fn values<S: Clone>(portal: &Portal<S>, wanted: &[Option<DataType>]) -> PgWireResult<Vec<ScalarValue>> {
    if portal.parameters.len() != wanted.len() {
        let message = format!("the statement has {} parameters, and {} are bound", wanted.len(), portal.parameters.len());
        return Err(codes::error("08P01", message));
    }
    if let pgwire::api::portal::Format::Individual(formats) = &portal.parameter_format
        && formats.len() != portal.parameters.len()
    {
        return Err(codes::error(
            "08P01",
            format!("there are {} formats for {} parameters", formats.len(), portal.parameters.len()),
        ));
    }
    let types = &portal.statement.parameter_types;
    let value = |(at, wanted): (usize, &Option<DataType>)| {
        // Which type the value has: as the client says; else as it was described.
        let described = || wanted.as_ref().map_or(Type::TEXT, crate::postgres::rows::type_of);
        let of = types.get(at).cloned().flatten().filter(|of| *of != Type::UNKNOWN).unwrap_or_else(described);
        let Some(bytes) = portal.parameters.get(at).and_then(Option::as_ref) else {
            let null = wanted.as_ref().map(ScalarValue::try_from).transpose().map_err(codes::of_rows)?;
            return Ok(null.unwrap_or(ScalarValue::Null));
        };
        let value = if portal.parameter_format.is_binary(at) {
            binary(at + 1, &of, bytes)?
        } else {
            let text = std::str::from_utf8(bytes).map_err(|error| unreadable(at + 1, &of, error))?;
            text_value(at + 1, &of, text)?
        };
        fitted(at + 1, value, wanted.as_ref())
    };
    wanted.iter().enumerate().map(value).collect()
}

/// `value` as what the statement needs, if nothing of it is lost.
fn fitted(number: usize, value: ScalarValue, wanted: Option<&DataType>) -> PgWireResult<ScalarValue> {
    let Some(wanted) = wanted else { return Ok(value) };
    let wanted = if let DataType::Dictionary(_, of) = wanted { of.as_ref() } else { wanted };
    if *wanted == DataType::Null || value.data_type() == *wanted {
        return Ok(value);
    }
    let is_text = matches!(value, ScalarValue::Utf8(_));
    let Ok(cast) = value.cast_to(wanted) else {
        if is_text {
            return Err(unreadable(number, &crate::postgres::rows::type_of(wanted), value));
        }
        return Ok(value);
    };
    // A cast may cut: a value that does not come back stays what it was, and the planner compares it as it is.
    let is_same = is_text || cast.cast_to(&value.data_type()).is_ok_and(|back| back == value);
    Ok(if is_same { cast } else { value })
}

fn binary(number: usize, of: &Type, bytes: &[u8]) -> PgWireResult<ScalarValue> {
    fn read<'a, T: FromSql<'a>>(number: usize, of: &Type, bytes: &'a [u8]) -> PgWireResult<T> {
        T::from_sql(of, bytes).map_err(|error| unreadable(number, of, error))
    }
    Ok(match *of {
        Type::BOOL => ScalarValue::Boolean(Some(read(number, of, bytes)?)),
        Type::INT2 => ScalarValue::Int16(Some(read(number, of, bytes)?)),
        Type::INT4 => ScalarValue::Int32(Some(read(number, of, bytes)?)),
        Type::INT8 => ScalarValue::Int64(Some(read(number, of, bytes)?)),
        Type::OID => ScalarValue::Int64(Some(i64::from(read::<u32>(number, of, bytes)?))),
        Type::FLOAT4 => ScalarValue::Float32(Some(read(number, of, bytes)?)),
        Type::FLOAT8 => ScalarValue::Float64(Some(read(number, of, bytes)?)),
        Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            let micros = read::<i64>(number, &Type::INT8, bytes)?;
            let ns = micros.checked_add(MICROS_TO_2000).and_then(|us| us.checked_mul(1000));
            ScalarValue::TimestampNanosecond(Some(ns.ok_or_else(|| unreadable(number, of, "it is out of range"))?), None)
        }
        Type::DATE => {
            let days = read::<i32>(number, &Type::INT4, bytes)?.checked_add(10_957);
            ScalarValue::Date32(Some(days.ok_or_else(|| unreadable(number, of, "it is out of range"))?))
        }
        Type::NUMERIC => {
            let text = numeric(bytes).ok_or_else(|| unreadable(number, of, "these are no digits"))?;
            decimal(&text).ok_or_else(|| unreadable(number, of, text))?
        }
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON => {
            ScalarValue::Utf8(Some(read(number, of, bytes)?))
        }
        Type::BYTEA => ScalarValue::Binary(Some(bytes.to_vec())),
        _ => return Err(codes::error("0A000", format!("parameter ${number} is a {of}, which is not supported in binary"))),
    })
}

fn text_value(number: usize, of: &Type, text: &str) -> PgWireResult<ScalarValue> {
    fn parsed<T: std::str::FromStr>(number: usize, of: &Type, text: &str) -> PgWireResult<T>
    where
        T::Err: std::fmt::Display,
    {
        text.trim().parse::<T>().map_err(|error| unreadable(number, of, format!("'{text}': {error}")))
    }
    let as_time = |of: DataType| {
        // PostgreSQL's clients write the offset as +00, without minutes.
        let text = text.strip_suffix("+00").unwrap_or(text).to_owned();
        ScalarValue::Utf8(Some(text)).cast_to(&of).map_err(codes::of_rows)
    };
    Ok(match *of {
        Type::BOOL => match text.trim().to_ascii_lowercase().as_str() {
            "t" | "true" | "on" | "yes" | "y" | "1" => ScalarValue::Boolean(Some(true)),
            "f" | "false" | "off" | "no" | "n" | "0" => ScalarValue::Boolean(Some(false)),
            _ => return Err(unreadable(number, of, format!("'{text}'"))),
        },
        Type::INT2 => ScalarValue::Int16(Some(parsed(number, of, text)?)),
        Type::INT4 => ScalarValue::Int32(Some(parsed(number, of, text)?)),
        Type::INT8 | Type::OID => ScalarValue::Int64(Some(parsed(number, of, text)?)),
        Type::FLOAT4 => ScalarValue::Float32(Some(parsed(number, of, text)?)),
        Type::FLOAT8 => ScalarValue::Float64(Some(parsed(number, of, text)?)),
        Type::NUMERIC => decimal(text.trim()).ok_or_else(|| unreadable(number, of, format!("'{text}'")))?,
        Type::TIMESTAMP | Type::TIMESTAMPTZ => as_time(crate::schema::time())?,
        Type::DATE => as_time(DataType::Date32)?,
        _ => ScalarValue::Utf8(Some(text.to_owned())),
    })
}

/// The number that is written as `text`, exact; `None` if it is none, or has too many digits.
fn decimal(text: &str) -> Option<ScalarValue> {
    if let Ok(value) = text.parse() {
        return Some(ScalarValue::Int64(Some(value)));
    }
    if let Ok(value) = text.parse() {
        return Some(ScalarValue::UInt64(Some(value)));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!("{whole}{fraction}"))?;
    let value: i128 = digits.parse().ok()?;
    let is_short = value.unsigned_abs() < 10u128.pow(38);
    is_short.then_some(ScalarValue::Decimal128(Some(value), 38, i8::try_from(fraction.len()).ok().filter(|scale| *scale <= 38)?))
}

/// PostgreSQL's binary `numeric` as text.
#[expect(clippy::big_endian_bytes, reason = "PostgreSQL's protocol is big-endian")]
fn numeric(bytes: &[u8]) -> Option<String> {
    let word = |at: usize| Some(i16::from_be_bytes(bytes.get(at * 2..at * 2 + 2)?.try_into().ok()?));
    let (count, weight, sign, scale) =
        (usize::try_from(word(0)?).ok()?, i32::from(word(1)?), word(2)?, usize::try_from(word(3)?).ok()?);
    if bytes.len() != 8 + count * 2 || !(sign == 0 || sign == 0x4000) || scale > 76 || !(-20..=20).contains(&weight) {
        return None;
    }
    let group = |place: i32| -> Option<i16> {
        match usize::try_from(weight - place) {
            Ok(at) if at < count => word(at + 4).filter(|group| (0..10_000).contains(group)),
            _ => Some(0),
        }
    };
    let mut text = String::from(if sign == 0 { "" } else { "-" });
    let mut whole = String::new();
    for place in (0..=weight.max(0)).rev() {
        whole.push_str(&format!("{:04}", group(place)?));
    }
    let whole = whole.trim_start_matches('0');
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        let mut fraction = String::new();
        let mut place = -1;
        while fraction.len() < scale {
            fraction.push_str(&format!("{:04}", group(place)?));
            place -= 1;
        }
        text.push('.');
        text.push_str(fraction.get(..scale)?);
    }
    Some(text)
}

/// The types of parameters for a client, where the statement needs `wanted`.
pub(super) fn described(wanted: &[Option<DataType>]) -> Vec<Type> {
    let of = |wanted: &Option<DataType>| match wanted {
        Some(DataType::Null) | None => Type::TEXT,
        Some(of) => crate::postgres::rows::type_of(of),
    };
    wanted.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_number_is_the_text_of_its_digits() {
        let of = |words: &[i16]| numeric(&words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>());
        assert_eq!(of(&[0, 0, 0, 0]).unwrap(), "0");
        assert_eq!(of(&[2, 1, 0, 0, 1, 2345]).unwrap(), "12345");
        assert_eq!(of(&[2, -1, 0x4000, 5, 1, 2000]).unwrap(), "-0.00012");
        assert_eq!(of(&[1, 1, 0, 2, 1]).unwrap(), "10000.00");
        assert_eq!(of(&[1, 1, 0, 2]), None);
        assert_eq!(of(&[1, 0, 0, 0, -5]), None);
        assert_eq!(of(&[0, 0, -16384, 0]), None, "not a number");
    }

    #[test]
    fn a_number_is_exact_or_an_error() {
        assert_eq!(decimal("42"), Some(ScalarValue::Int64(Some(42))));
        assert_eq!(decimal("18446744073709551615"), Some(ScalarValue::UInt64(Some(u64::MAX))));
        assert_eq!(decimal("-1.50"), Some(ScalarValue::Decimal128(Some(-150), 38, 2)));
        assert_eq!(decimal("1e5"), None);
        assert_eq!(decimal(&"9".repeat(60)), None);
        let cut = fitted(1, ScalarValue::Decimal128(Some(15), 38, 1), Some(&DataType::UInt64)).unwrap();
        assert_eq!(cut, ScalarValue::Decimal128(Some(15), 38, 1), "1.5 is not cut to 1");
        let same = fitted(1, ScalarValue::Int64(Some(7)), Some(&DataType::UInt64)).unwrap();
        assert_eq!(same, ScalarValue::UInt64(Some(7)));
    }
}
