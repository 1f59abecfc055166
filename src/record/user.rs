//! Owns: user kinds, defined by programs: the encoding of their layouts, and the process's one table of them.
//!
//! ```text
//! 0   kind u16 · words u16 · index word u16 · columns u16
//! 8   name length u8 · 0 u8 · 0 u16 · 0 u32
//! 16  name 32 B
//! 48  a column, 48 B each: offset u16 · size u16 · type u8 · name length u8 · position in find, from 1, u8 · 0 u8 · name 40 B
//! ```
//!
//! What must hold: a kind is one layout for ever: the layout that a store or this process has registered for
//! a number never changes. A layout is checked before it is registered: its columns cover the record without
//! overlap, and begin with those of every kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use super::{ADDED_COLUMNS, Column, ColumnType, FIND_MAX, Kind, SCHEMAS, Schema, WORDS_MAX};
use crate::error::{Error, Result};

/// The first number of a user kind.
#[doc(hidden)]
pub const USER_FIRST: u16 = 0x8000;
/// The count of numbers for user kinds.
#[doc(hidden)]
pub const USER_MAX: usize = 256;
/// Longest name of a kind and of a column, in bytes.
#[doc(hidden)]
pub const KIND_NAME_MAX: usize = 32;
const COLUMN_NAME_MAX: usize = 40;
/// Most columns of a kind.
#[doc(hidden)]
pub const COLUMNS_MAX: usize = 512;

const HEAD_WORDS: usize = 6;
const COLUMN_WORDS: usize = 6;
/// Words of the longest layout.
#[doc(hidden)]
pub const LAYOUT_WORDS_MAX: usize = HEAD_WORDS + COLUMNS_MAX * COLUMN_WORDS;

const _: () = assert!(HEAD_WORDS * 8 == 16 + KIND_NAME_MAX && COLUMN_WORDS * 8 == 8 + COLUMN_NAME_MAX);
// A control entry in the log has a 16-bit length.
const _: () = assert!((LAYOUT_WORDS_MAX + 1) * 8 < u16::MAX as usize);

/// The layouts of this process, by number; each is set once.
static KNOWN: [OnceLock<&'static Schema>; USER_MAX] = [const { OnceLock::new() }; USER_MAX];
/// Numbers whose entry in `KNOWN` is void, a bit each: their layout was in a truncated tail of the log.
static FORGOTTEN: [AtomicU64; USER_MAX / 64] = [const { AtomicU64::new(0) }; USER_MAX / 64];
/// The later layouts of those numbers.
static AGAIN: RwLock<BTreeMap<u16, Option<&'static Schema>>> = RwLock::new(BTreeMap::new());

/// Whether the entry of number `index` in `KNOWN` is void.
fn is_forgotten(index: usize) -> bool {
    // SYNC: pairs with `forget`, which inserts the number into `AGAIN` first.
    FORGOTTEN.get(index / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (index % 64) & 1 == 1)
}

/// Removes the layout of `kind` from this process once no log has it: the number is free for another.
#[doc(hidden)]
pub fn forget(kind: Kind) {
    let Some(index) = kind.0.checked_sub(USER_FIRST) else { return };
    AGAIN.write().unwrap_or_else(PoisonError::into_inner).insert(index, None);
    if let Some(word) = FORGOTTEN.get(usize::from(index) / 64) {
        // SYNC: pairs with `is_forgotten`.
        word.fetch_or(1 << (index % 64), Ordering::Release);
    }
}

impl Kind {
    /// Whether it is a user kind.
    pub const fn is_user(self) -> bool {
        self.0 >= USER_FIRST
    }
}

/// The layout of a user kind, if it is registered in this process.
pub(super) fn known(kind: Kind) -> Option<&'static Schema> {
    let index = kind.0.checked_sub(USER_FIRST)?;
    if is_forgotten(usize::from(index)) {
        return AGAIN.read().unwrap_or_else(PoisonError::into_inner).get(&index).copied().flatten();
    }
    KNOWN.get(usize::from(index))?.get().copied()
}

/// The layouts of all user kinds registered in this process.
#[doc(hidden)]
pub fn user_kinds() -> impl Iterator<Item = &'static Schema> {
    (USER_FIRST..USER_FIRST + USER_MAX as u16).filter_map(|kind| known(Kind(kind)))
}

/// A checked layout of a user kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Layout {
    kind: Kind,
    words: u16,
    index_word: u16,
    name: String,
    columns: Vec<(String, usize, ColumnType)>,
    find: Vec<String>,
}

const fn is_name(name: &str, max: usize, more: u8) -> bool {
    let bytes = name.as_bytes();
    let mut rest = bytes;
    while let Some((&b, tail)) = rest.split_first() {
        if !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == more) {
            return false;
        }
        rest = tail;
    }
    matches!(bytes.first(), Some(b) if b.is_ascii_lowercase()) && bytes.len() <= max
}

const fn same(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.split_first(), b.split_first()) {
            (None, None) => return true,
            (Some((x, a_tail)), Some((y, b_tail))) if *x == *y => (a, b) = (a_tail, b_tail),
            _ => return false,
        }
    }
}

pub(super) const fn is_one_of(name: &str, names: &[&str]) -> bool {
    let mut rest = names;
    while let Some((one, tail)) = rest.split_first() {
        if same(one, name) {
            return true;
        }
        rest = tail;
    }
    false
}

/// Names of the built-in kinds, as a constant for the compiler; a test compares them with [`SCHEMAS`].
const BUILT_IN: [&str; 16] = [
    "trade",
    "quote",
    "book",
    "definition",
    "gap",
    "depth10",
    "bar-1s",
    "bar-1m",
    "bar-1h",
    "bar-1d",
    "status",
    "imbalance",
    "statistic",
    "bust",
    "correct",
    "mapping",
];

/// The first columns of every kind: name, offset, type code.
const BEGIN: [(&str, usize, u8); 3] =
    [("source", 2, ColumnType::U16.code()), ("instrument", 4, ColumnType::U32.code()), ("ts_event", 8, ColumnType::Ts.code())];

/// Why `schema` is not a valid user kind; `None` if it is one.
pub(super) const fn fault(schema: &Schema) -> Option<&'static str> {
    if schema.kind.0 < USER_FIRST || schema.kind.0 - USER_FIRST >= USER_MAX as u16 {
        return Some("the number of a kind that a program defines is from 0x8000 to 0x80ff");
    }
    if !is_name(schema.name, KIND_NAME_MAX, b'-') || is_one_of(schema.name, &BUILT_IN) {
        return Some("a kind's name is 1 to 32 of a-z 0-9 -, begins with a letter, and is no built-in kind's");
    }
    if schema.columns.len() > COLUMNS_MAX || schema.words > WORDS_MAX {
        return Some("a record has at most 512 columns and 1024 bytes");
    }
    let (mut begin, mut rest, mut end, mut sorts) = (BEGIN.as_slice(), schema.columns, 2, false);
    while let Some((column, tail)) = rest.split_first() {
        if let Some((expected, others)) = begin.split_first() {
            if !same(column.name, expected.0) || column.offset != expected.1 || column.of.code() != expected.2 {
                return Some("a record's columns begin with source, instrument and ts_event");
            }
            begin = others;
        }
        if !is_name(column.name, COLUMN_NAME_MAX, b'_') || is_one_of(column.name, &ADDED_COLUMNS) {
            return Some("a field's name is 1 to 40 of a-z 0-9 _, begins with a letter, and is not lsn, index_time or kind");
        }
        let mut others = tail;
        while let Some((other, more)) = others.split_first() {
            if same(other.name, column.name) {
                return Some("two columns have the same name; the elements of an array a are called a_0, a_1, ...");
            }
            others = more;
        }
        if column.of.size() == 0 || column.offset != end {
            return Some("a record's columns follow each other without a gap, and none is empty");
        }
        end += column.of.size();
        sorts |= column.offset == schema.index_word * 8 && matches!(column.of, ColumnType::Ts);
        rest = tail;
    }
    if !begin.is_empty() || end != schema.words * 8 {
        return Some("a record's columns are all of its bytes");
    }
    if !sorts {
        return Some("the field that sorts a kind's records is a Ts");
    }
    let mut rest = schema.find;
    if rest.len() > FIND_MAX {
        return Some("records are found by at most 4 fields");
    }
    while let Some((name, tail)) = rest.split_first() {
        let (mut columns, mut is_id) = (schema.columns, false);
        while let Some((column, more)) = columns.split_first() {
            is_id |= same(column.name, name) && matches!(column.of, ColumnType::U64) && column.offset % 8 == 0;
            columns = more;
        }
        if !is_id || is_one_of(name, tail) {
            return Some("a field to find records by is a u64, and named once");
        }
        rest = tail;
    }
    None
}

/// Fails the compilation if `schema` is not a valid user kind; for `derive(Record)`.
#[doc(hidden)]
pub const fn assert_layout(schema: &Schema) {
    if let Some(fault) = fault(schema) {
        panic!("{}", fault);
    }
}

impl Layout {
    /// The layout of `schema`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason if it is not a valid user kind.
    #[doc(hidden)]
    pub fn of(schema: &Schema) -> Result<Layout> {
        let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let layout = Layout {
            kind: schema.kind,
            words: narrow(schema.words),
            index_word: narrow(schema.index_word),
            name: schema.name.to_owned(),
            columns: schema.columns.iter().map(|c| (c.name.to_owned(), c.offset, c.of)).collect(),
            find: schema.find.iter().map(|f| (*f).to_owned()).collect(),
        };
        layout.check().map_err(|reason| Error::invalid("kind", format!("'{}': {reason}", schema.name)))?;
        Ok(layout)
    }

    /// Its number.
    #[doc(hidden)]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name.
    #[doc(hidden)]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks the rules of [`fault`] at run time; the error is the reason.
    fn check(&self) -> Result<(), String> {
        let last = USER_FIRST as usize + USER_MAX - 1;
        if !(usize::from(USER_FIRST)..=last).contains(&usize::from(self.kind.0)) {
            return Err(format!("its number {} is not from {USER_FIRST} to {last}", self.kind.0));
        }
        if !is_name(&self.name, KIND_NAME_MAX, b'-') || SCHEMAS.iter().any(|s| s.name == self.name) {
            return Err(format!("a name is 1 to {KIND_NAME_MAX} of a-z 0-9 -, begins with a letter, and is no built-in kind's"));
        }
        if self.columns.len() > COLUMNS_MAX || usize::from(self.words) > WORDS_MAX {
            return Err(format!("it has more than {COLUMNS_MAX} columns or {} bytes", WORDS_MAX * 8));
        }
        let begin = [("source", 2, ColumnType::U16), ("instrument", 4, ColumnType::U32), ("ts_event", 8, ColumnType::Ts)];
        let begins = begin.iter().zip(&self.columns).filter(|(a, b)| (a.0, a.1, a.2) == (b.0.as_str(), b.1, b.2));
        if begins.count() != begin.len() {
            return Err("its columns do not begin with source, instrument and ts_event".to_owned());
        }
        let mut end = 2;
        for (i, (name, offset, of)) in self.columns.iter().enumerate() {
            if !is_name(name, COLUMN_NAME_MAX, b'_') || ADDED_COLUMNS.contains(&name.as_str()) {
                return Err(format!(
                    "'{name}' is no name of a column: 1 to {COLUMN_NAME_MAX} of a-z 0-9 _, not lsn, index_time or kind"
                ));
            }
            if self.columns.iter().take(i).any(|c| c.0 == *name) {
                return Err(format!("two columns are called '{name}'"));
            }
            if *offset != end || of.size() == 0 {
                return Err(format!("column '{name}' is at byte {offset}, the one before it ends at {end}"));
            }
            end += of.size();
        }
        if end != usize::from(self.words) * 8 {
            return Err(format!("its columns end at byte {end} of {}", usize::from(self.words) * 8));
        }
        let index = self.columns.iter().find(|c| c.1 == usize::from(self.index_word) * 8);
        if index.is_none_or(|c| c.2 != ColumnType::Ts) {
            return Err("the time that sorts its records is not a column of times".to_owned());
        }
        let is_id = |f: &String| self.columns.iter().any(|c| c.0 == *f && c.2 == ColumnType::U64 && c.1.is_multiple_of(8));
        let is_once = |(i, f): (usize, &String)| !self.find.iter().take(i).any(|g| g == f);
        if self.find.len() > FIND_MAX || !self.find.iter().all(is_id) || !self.find.iter().enumerate().all(is_once) {
            return Err(format!("the columns to find by are at most {FIND_MAX} of type u64, each once"));
        }
        Ok(())
    }

    /// Encodes it as words.
    #[doc(hidden)]
    pub fn encode(&self) -> Vec<u64> {
        let mut bytes = Vec::with_capacity((HEAD_WORDS + self.columns.len() * COLUMN_WORDS) * 8);
        for n in [self.kind.0, self.words, self.index_word, self.columns.len() as u16] {
            bytes.extend(n.to_le_bytes());
        }
        bytes.push(self.name.len() as u8);
        bytes.resize(16, 0);
        bytes.extend(self.name.as_bytes());
        bytes.resize(HEAD_WORDS * 8, 0);
        for (name, offset, of) in &self.columns {
            let end = bytes.len() + COLUMN_WORDS * 8;
            bytes.extend((*offset as u16).to_le_bytes());
            bytes.extend((of.size() as u16).to_le_bytes());
            let find = self.find.iter().position(|f| f == name).map_or(0, |place| place as u8 + 1);
            bytes.extend([of.code(), name.len() as u8, find, 0]);
            bytes.extend(name.as_bytes());
            bytes.resize(end, 0);
        }
        let word = |b: &[u8; 8]| u64::from_le_bytes(*b);
        bytes.as_chunks::<8>().0.iter().map(word).collect()
    }

    /// Decodes the layout at the beginning of `words`, which are not trusted; `None` if it is not valid.
    #[doc(hidden)]
    pub fn parse(words: &[u64]) -> Option<Layout> {
        let (head, rest) = words.split_first_chunk::<HEAD_WORDS>()?;
        let [first, second, ..] = *head;
        let part = |n: u64, i: u32| (n >> (16 * i)) as u16;
        let text = |words: &[u64], len: u64| {
            let bytes: &[u8] = bytemuck::cast_slice(words);
            std::str::from_utf8(bytes.get(..len as usize)?).ok().map(str::to_owned)
        };
        let name = text(head.get(2..)?, second & 0xff)?;
        let count = usize::from(part(first, 3));
        let mut columns = Vec::new();
        let mut find: Vec<(u8, String)> = Vec::new();
        for column in rest.get(..count.checked_mul(COLUMN_WORDS)?)?.chunks_exact(COLUMN_WORDS) {
            let (&head, name) = column.split_first()?;
            let [of, len, place, _] = ((head >> 32) as u32).to_le_bytes();
            let name = text(name, u64::from(len))?;
            if place > 0 {
                find.push((place, name.clone()));
            }
            columns.push((name, usize::from(part(head, 0)), ColumnType::from_code(of, usize::from(part(head, 1)))?));
        }
        find.sort();
        let find = find.into_iter().map(|(_, name)| name).collect();
        let (words, index_word) = (part(first, 1), part(first, 2));
        let layout = Layout { kind: Kind(part(first, 0)), words, index_word, name, columns, find };
        layout.check().ok().map(|()| layout)
    }

    /// Whether it equals `schema`.
    fn is(&self, schema: &Schema) -> bool {
        let columns = schema.columns.iter().map(|c| (c.name, c.offset, c.of));
        let same = self.columns.iter().map(|c| (c.0.as_str(), c.1, c.2)).eq(columns);
        let find = self.find.iter().map(String::as_str).eq(schema.find.iter().copied());
        same && find
            && (self.kind, self.name.as_str()) == (schema.kind, schema.name)
            && (usize::from(self.words), usize::from(self.index_word)) == (schema.words, schema.index_word)
    }

    /// Registers it in this process, until [`forget`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if the number is not a user kind's, or has another layout in this process.
    #[doc(hidden)]
    pub fn register(&self) -> Result<&'static Schema> {
        let place = KNOWN.get(usize::from(self.kind.0.wrapping_sub(USER_FIRST)));
        let place = place.ok_or_else(|| Error::invalid("kind", format!("there is no number {}", self.kind.0)))?;
        let index = self.kind.0.wrapping_sub(USER_FIRST);
        let schema = if is_forgotten(usize::from(index)) {
            let mut again = AGAIN.write().unwrap_or_else(PoisonError::into_inner);
            *again.entry(index).or_default().get_or_insert_with(|| self.leak())
        } else {
            place.get_or_init(|| self.leak())
        };
        if self.is(schema) {
            return Ok(schema);
        }
        let reason = format!(
            "number {} is '{}' here and '{}' there, with other columns; a changed layout needs a number of its own",
            self.kind.0, schema.name, self.name
        );
        Err(Error::invalid("kind", reason))
    }

    /// The layout as a [`Schema`], leaked: a process has few, and never frees one.
    fn leak(&self) -> &'static Schema {
        let text = |s: &String| -> &'static str { Box::leak(s.clone().into_boxed_str()) };
        let columns: Vec<Column> =
            self.columns.iter().map(|(name, offset, of)| Column { name: text(name), offset: *offset, of: *of }).collect();
        let find: Vec<&'static str> = self.find.iter().map(text).collect();
        let (words, index_word) = (usize::from(self.words), usize::from(self.index_word));
        Box::leak(Box::new(Schema::new(self.kind, text(&self.name), words, index_word, Vec::leak(columns), Vec::leak(find))))
    }
}

#[cfg(test)]
pub(crate) fn example_layout() -> Layout {
    Layout::of(&<tests::Signal as super::Record>::SCHEMA).unwrap()
}

/// A record of `words` words, header and numbers, of a kind that this registers in the process.
#[cfg(test)]
pub(crate) fn plain(words: usize, instrument: u32, time: u64) -> Vec<u64> {
    let kind = Kind(0x8060 + words as u16);
    if super::schema(kind).is_none() {
        let begin = [("source", 2, ColumnType::U16), ("instrument", 4, ColumnType::U32), ("ts_event", 8, ColumnType::Ts)];
        let column = |(name, offset, of): (&str, usize, ColumnType)| (name.to_owned(), offset, of);
        let numbers = (2..words).map(|at| (format!("c_{at}"), at * 8, ColumnType::U64));
        let columns = begin.into_iter().map(column).chain(numbers).collect();
        let name = format!("plain-{words}");
        Layout { kind, words: words as u16, index_word: 1, name, columns, find: Vec::new() }.register().unwrap();
    }
    let mut record = vec![u64::from(kind.0) | u64::from(instrument) << 32, time];
    record.resize(words, 7);
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Price, Record, RecordRef};
    use crate::time::Ts;

    #[derive(Clone, Copy, Debug, PartialEq, Record)]
    #[repr(C)]
    #[record(kind = 0x8042, name = "test-signal", index = ts_recv, find(order_id, parent))]
    pub(super) struct Signal {
        kind: Kind,
        source: u16,
        instrument: crate::lsn::InstrumentId,
        ts_event: Ts,
        ts_recv: Ts,
        order_id: u64,
        parent: u64,
        strength: [Price; 2],
        tag: [u8; 5],
        side: crate::record::Char,
        reserved: [u8; 2],
    }

    #[test]
    fn a_derived_layout_decodes_to_itself_and_is_registered_once() {
        let layout = Layout::of(&Signal::SCHEMA).unwrap();
        assert_eq!(Layout::parse(&layout.encode()), Some(layout.clone()));
        let names: Vec<&str> = Signal::SCHEMA.columns.iter().map(|c| c.name).collect();
        let expected = ["source", "instrument", "ts_event", "ts_recv", "order_id", "parent", "strength_0", "strength_1"];
        assert_eq!(names[..8], expected);
        assert!(Signal::SCHEMA.columns[10].is_reserved() && Signal::SCHEMA.columns[8].of == ColumnType::Text(5));
        let schema = layout.register().unwrap();
        assert!(std::ptr::eq(schema, layout.register().unwrap()));
        assert!(std::ptr::eq(crate::record::schema(Kind(0x8042)).unwrap(), schema));
        let signal = Signal { strength: [Price(1), Price(2)], ..Signal::default() };
        let record = RecordRef::of(&signal);
        assert_eq!(RecordRef::first(record.words()).unwrap().get::<Signal>(), Some(&signal));
        let other = Layout { columns: layout.columns.iter().cloned().rev().collect(), ..layout.clone() };
        assert!(other.check().is_err(), "columns in another order overlap");
        let mut other = layout.clone();
        other.columns[4].0 = "client_id".to_owned();
        other.find[0] = "client_id".to_owned();
        assert!(other.register().unwrap_err().to_string().contains("a number of its own"));
    }

    #[test]
    fn a_number_whose_layout_was_in_a_truncated_tail_is_free_for_another_layout() {
        let mut first = Layout::of(&Signal::SCHEMA).unwrap();
        first.kind = Kind(0x80f7);
        let mut second = first.clone();
        second.name.push('x');
        let schema = first.register().unwrap();
        assert!(second.register().is_err() && known(first.kind).is_some_and(|s| std::ptr::eq(s, schema)));
        forget(first.kind);
        assert!(known(first.kind).is_none());
        let schema = second.register().unwrap();
        assert_eq!(schema.name, second.name);
        assert!(first.register().is_err() && known(first.kind).is_some_and(|s| std::ptr::eq(s, schema)));
        assert!(user_kinds().any(|s| std::ptr::eq(s, schema)));
        forget(first.kind);
        assert_eq!(first.register().unwrap().name, first.name);
    }

    #[test]
    fn an_invalid_layout_is_refused_with_the_reason() {
        let good = Layout::of(&Signal::SCHEMA).unwrap();
        type Case = (&'static str, fn(&mut Layout));
        let cases: [Case; 9] = [
            ("not from", |l| l.kind = Kind(3)),
            ("built-in", |l| l.name = "trade".to_owned()),
            ("no name of a column", |l| l.columns[4].0 = "lsn".to_owned()),
            ("no name of a column", |l| l.columns[4].0 = "Order".to_owned()),
            ("two columns", |l| l.columns[5].0 = "order_id".to_owned()),
            ("the one before it ends", |l| l.columns[6].2 = ColumnType::U32),
            ("sorts", |l| l.index_word = 3),
            ("find by", |l| l.find[0] = "strength_0".to_owned()),
            ("each once", |l| l.find[1] = l.find[0].clone()),
        ];
        assert_eq!((fault(good.leak()), good.check()), (None, Ok(())));
        assert!(BUILT_IN.iter().eq(SCHEMAS.iter().map(|s| &s.name)), "the constant lists the built-in names");
        for (why, spoil) in cases {
            let mut bad = good.clone();
            spoil(&mut bad);
            let reason = bad.check().unwrap_err();
            assert!(reason.contains(why), "{reason}");
            assert!(fault(bad.leak()).is_some(), "`fault` has the same rules: {why}");
            // A name that appears twice has one position in the encoding.
            assert!(Layout::parse(&bad.encode()).is_none() || why == "each once", "{why}");
        }
        let text = Layout::of(&crate::record::Trade::SCHEMA).unwrap_err().to_string();
        assert!(text.contains("'trade'"), "{text}");
    }

    proptest! {
        #[test]
        fn parsing_is_total(mut words in proptest::collection::vec(any::<u64>(), 0..40), at in 0usize..400, flip: u8) {
            drop(Layout::parse(&words));
            words = Layout::of(&Signal::SCHEMA).unwrap().encode();
            if let Some(byte) = bytemuck::cast_slice_mut::<u64, u8>(&mut words).get_mut(at) { *byte ^= flip; }
            if let Some(layout) = Layout::parse(&words) {
                prop_assert!(layout.check().is_ok());
            }
        }
    }
}
