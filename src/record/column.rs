//! Owns: columns: printing and parsing of a record's fields without its type.
//!
//! What must hold: a printed value that is not text parses back to the same bits.

use std::fmt;

use super::{Char, Price, Size, Volume};
use crate::error::{Error, Result};
use crate::time::Ts;

/// The type of a column's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Unsigned, 1 byte.
    U8,
    /// Signed, 1 byte.
    I8,
    /// Unsigned, 2 bytes.
    U16,
    /// Signed, 2 bytes.
    I16,
    /// Unsigned, 4 bytes.
    U32,
    /// Signed, 4 bytes.
    I32,
    /// Unsigned, 8 bytes.
    U64,
    /// Signed, 8 bytes.
    I64,
    /// [`Price`].
    Price,
    /// [`Size`].
    Size,
    /// [`Volume`].
    Volume,
    /// [`Ts`].
    Ts,
    /// One ASCII character, 0 for none.
    Char,
    /// ASCII text of this many bytes, ended by a zero if shorter.
    Text(usize),
    /// Bytes without meaning, zero.
    Reserved(usize),
}

impl ColumnType {
    /// Its code in files.
    #[doc(hidden)]
    pub const fn code(self) -> u8 {
        match self {
            ColumnType::U8 => 1,
            ColumnType::I8 => 2,
            ColumnType::U16 => 3,
            ColumnType::I16 => 4,
            ColumnType::U32 => 5,
            ColumnType::I32 => 6,
            ColumnType::U64 => 7,
            ColumnType::I64 => 8,
            ColumnType::Price => 9,
            ColumnType::Size => 10,
            ColumnType::Ts => 11,
            ColumnType::Char => 12,
            ColumnType::Text(_) => 13,
            ColumnType::Reserved(_) => 14,
            ColumnType::Volume => 15,
        }
    }

    /// The type with this `code` and values of `size` bytes; `None` if there is none.
    #[doc(hidden)]
    pub fn from_code(code: u8, size: usize) -> Option<ColumnType> {
        let of = match code {
            1 => ColumnType::U8,
            2 => ColumnType::I8,
            3 => ColumnType::U16,
            4 => ColumnType::I16,
            5 => ColumnType::U32,
            6 => ColumnType::I32,
            7 => ColumnType::U64,
            8 => ColumnType::I64,
            9 => ColumnType::Price,
            10 => ColumnType::Size,
            11 => ColumnType::Ts,
            12 => ColumnType::Char,
            13 => ColumnType::Text(size),
            14 => ColumnType::Reserved(size),
            15 => ColumnType::Volume,
            _ => return None,
        };
        (of.size() == size).then_some(of)
    }

    /// Bytes of a value.
    #[doc(hidden)]
    pub const fn size(self) -> usize {
        match self {
            ColumnType::U8 | ColumnType::I8 | ColumnType::Char => 1,
            ColumnType::U16 | ColumnType::I16 => 2,
            ColumnType::U32 | ColumnType::I32 => 4,
            ColumnType::U64 | ColumnType::I64 | ColumnType::Price | ColumnType::Size | ColumnType::Ts => 8,
            ColumnType::Volume => 16,
            ColumnType::Text(n) | ColumnType::Reserved(n) => n,
        }
    }
}

/// A type that a field of a record may have, or an array of these. `[u8; N]` is text, or, if the field is called
/// `reserved` or `reserved_...`, bytes without meaning.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a record",
    label = "not a column",
    note = "fields are u8 to u64, i8 to i64, Price, Size, Volume, Ts, Char, [u8; N], or arrays of these"
)]
pub trait Field: bytemuck::Pod {
    /// The type of its column.
    const OF: ColumnType;
}

macro_rules! fields {
    ($($type:ty: $of:ident,)*) => { $( impl Field for $type { const OF: ColumnType = ColumnType::$of; } )* };
}
fields! {
    u8: U8, i8: I8, u16: U16, i16: I16, u32: U32, i32: I32, u64: U64, i64: I64,
    Price: Price, Size: Size, Volume: Volume, Ts: Ts, Char: Char,
}

impl<const N: usize> Field for [u8; N] {
    const OF: ColumnType = ColumnType::Text(N);
}

/// One field of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The field's name.
    pub name: &'static str,
    /// Byte offset in the record.
    pub offset: usize,
    /// The type of its values.
    pub of: ColumnType,
}

/// A column's value in one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A price.
    Price(Price),
    /// A size.
    Size(Size),
    /// A volume.
    Volume(Volume),
    /// A time.
    Ts(Ts),
    /// A character.
    Char(u8),
    /// Text without its zeros.
    Text(&'a [u8]),
    /// Empty.
    Reserved,
}

impl Column {
    /// Whether the column has no meaning.
    pub fn is_reserved(&self) -> bool {
        matches!(self.of, ColumnType::Reserved(_))
    }

    /// The value in the record `bytes`. A record too short for the column gives zero.
    pub fn value<'a>(&self, bytes: &'a [u8]) -> Value<'a> {
        let raw = bytes.get(self.offset..self.offset + self.of.size()).unwrap_or(&[]);
        let word = match *raw {
            [a] => u64::from(a),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        };
        match self.of {
            ColumnType::U8 | ColumnType::U16 | ColumnType::U32 | ColumnType::U64 => Value::Unsigned(word),
            ColumnType::I8 => Value::Signed(i64::from(word as u8 as i8)),
            ColumnType::I16 => Value::Signed(i64::from(word as u16 as i16)),
            ColumnType::I32 => Value::Signed(i64::from(word as u32 as i32)),
            ColumnType::I64 => Value::Signed(word as i64),
            ColumnType::Price => Value::Price(Price(word as i64)),
            ColumnType::Size => Value::Size(Size(word)),
            ColumnType::Volume => Value::Volume(Volume::new(raw.first_chunk().map_or(0, |chunk| u128::from_le_bytes(*chunk)))),
            ColumnType::Ts => Value::Ts(Ts(word)),
            ColumnType::Char => Value::Char(word as u8),
            ColumnType::Text(_) => Value::Text(raw.split(|&b| b == 0).next().unwrap_or(&[])),
            ColumnType::Reserved(_) => Value::Reserved,
        }
    }

    /// Parses `text` and writes the value into the record `bytes`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the text is not of the column's type or does not fit.
    pub fn parse(&self, text: &str, bytes: &mut [u8]) -> Result<()> {
        let bad = || Error::invalid(self.name, format!("'{text}' does not fit"));
        let word: u64 = match self.of {
            ColumnType::U8 | ColumnType::U16 | ColumnType::U32 | ColumnType::U64 => {
                let value: u64 = text.parse().map_err(|_| bad())?;
                let bits = self.of.size() * 8;
                if bits < 64 && value >> bits != 0 {
                    return Err(bad());
                }
                value
            }
            ColumnType::I8 => text.parse::<i8>().map_err(|_| bad())? as u8 as u64,
            ColumnType::I16 => text.parse::<i16>().map_err(|_| bad())? as u16 as u64,
            ColumnType::I32 => text.parse::<i32>().map_err(|_| bad())? as u32 as u64,
            ColumnType::I64 => text.parse::<i64>().map_err(|_| bad())? as u64,
            ColumnType::Price => text.parse::<Price>()?.0 as u64,
            ColumnType::Size => text.parse::<Size>()?.0,
            ColumnType::Volume => {
                let units = text.parse::<Volume>()?.units();
                return self.put(&units.to_le_bytes(), 16, bytes).ok_or_else(bad);
            }
            ColumnType::Ts => text.parse::<Ts>()?.0,
            ColumnType::Char => match text.as_bytes() {
                [] => 0,
                [one] => u64::from(*one),
                _ => return Err(bad()),
            },
            ColumnType::Text(n) => return self.put(text.as_bytes(), n, bytes).ok_or_else(bad),
            ColumnType::Reserved(_) => return Ok(()),
        };
        self.put(&word.to_le_bytes(), self.of.size(), bytes).ok_or_else(bad)
    }

    fn put(&self, value: &[u8], size: usize, bytes: &mut [u8]) -> Option<()> {
        let field = bytes.get_mut(self.offset..self.offset + size)?;
        if matches!(self.of, ColumnType::Text(_)) && value.len() > size {
            return None;
        }
        field.fill(0);
        for (to, from) in field.iter_mut().zip(value) {
            *to = *from;
        }
        Some(())
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(v) => v.fmt(f),
            Value::Signed(v) => v.fmt(f),
            Value::Price(v) => v.fmt(f),
            Value::Size(v) => v.fmt(f),
            Value::Volume(v) => v.fmt(f),
            Value::Ts(v) => v.fmt(f),
            Value::Char(0) | Value::Reserved => Ok(()),
            Value::Char(c @ 32..127) => f.pad((*c as char).encode_utf8(&mut [0; 1])),
            Value::Char(c) => f.pad(&(*c as char).escape_default().to_string()),
            Value::Text(bytes) => {
                let text: String = bytes.iter().map(|&b| if (32..127).contains(&b) { b as char } else { '?' }).collect();
                f.pad(&text)
            }
        }
    }
}
