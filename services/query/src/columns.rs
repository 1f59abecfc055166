//! Owns: Arrow arrays over the rows of a store.
//!
//! Rows of an SSTable stay in the mapped file: an array points to them and keeps the file mapped. Decimal columns, text and
//! rows of MemTables are copied.
//!
//! What must hold: an array's length is the number of rows, whatever a file contains; a value that a type of SQL cannot hold
//! (a time after the year 2262) is null, never another value.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, Decimal128Array, DictionaryArray, Float64Array, PrimitiveArray, StringArray, StringBuilder,
    UInt16Array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    Int8Type, Int16Type, Int32Type, Int64Type, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use bytes::Bytes;
use tapestore::error::{Error, Result};
use tapestore::lsn::{Lsn, PublisherId};
use tapestore::memtable;
use tapestore::record::{Column, ColumnType, Row, Schema};
use tapestore::version::File;

use crate::names::Names;
use crate::schema::{Origin, UNITS};

/// The rows `from..to` of block `index` of a file.
#[derive(Clone, Debug)]
pub struct BlockRows {
    /// The file.
    pub file: File,
    /// The block.
    pub index: u32,
    /// The first row.
    pub from: usize,
    /// One past the last row.
    pub to: usize,
}

/// Which bytes of a block a column lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Lsns,
    Ingest,
    /// The field at this offset, of this size.
    Field(usize, usize),
}

/// A column of an [`BlockRows`], for an array that keeps the file mapped.
struct Mapped {
    rows: BlockRows,
    stored: Stored,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        let BlockRows { file, index, from, to } = &self.rows;
        // The caller has looked at the block: it is sound.
        let Ok(block) = file.block(*index) else { return &[] };
        let (bytes, size): (&[u8], usize) = match self.stored {
            Stored::Lsns => (bytemuck::cast_slice(block.lsns()), 8),
            Stored::Ingest => (bytemuck::cast_slice(block.ingest()), 8),
            Stored::Field(offset, size) => (block.column(offset).unwrap_or(&[]), size),
        };
        bytes.get(from * size..to * size).unwrap_or(&[])
    }
}

impl BlockRows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.to - self.from
    }

    fn buffer(&self, stored: Stored, size: usize) -> Result<Buffer> {
        let buffer = Buffer::from(Bytes::from_owner(Mapped { rows: self.clone(), stored }));
        let expected = self.rows() * size;
        if buffer.len() != expected {
            let (path, lsn) = (self.file.path().to_path_buf(), self.file.meta().lsn.0);
            let (expected, found) = (expected as u64, buffer.len() as u64);
            return Err(Error::Corrupt { path, offset: 0, lsn, what: "bytes of a column", expected, found });
        }
        Ok(buffer)
    }

    /// The LSNs.
    pub fn lsns(&self) -> Result<ScalarBuffer<u64>> {
        Ok(self.buffer(Stored::Lsns, 8)?.into())
    }

    /// The index times.
    pub fn times(&self) -> Result<ScalarBuffer<u64>> {
        let block = self.file.block(self.index)?;
        let times = block.times();
        if times.plain().is_some() {
            let schema = self.file.schema()?;
            return Ok(self.buffer(Stored::Field(schema.index_word * 8, 8), 8)?.into());
        }
        Ok((self.from..self.to).map(|row| times.get(row).0).collect::<Vec<u64>>().into())
    }

    fn publishers(&self) -> Result<Vec<u16>> {
        let runs = self.file.runs()?;
        let mut at: Option<&tapestore::sstable::format::RunEntry> = None;
        let mut publishers = Vec::with_capacity(self.rows());
        for &lsn in self.lsns()?.iter() {
            if !at.is_some_and(|run| (run.first.0..=run.last.0).contains(&lsn)) {
                let after = runs.partition_point(|run| run.first.0 <= lsn);
                at = after.checked_sub(1).and_then(|run| runs.get(run));
            }
            publishers.push(at.map_or(0, |run| run.publisher.0));
        }
        Ok(publishers)
    }

    /// The array of a column.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn array(&self, origin: &Origin, names: &Names) -> Result<ArrayRef> {
        // Checks the block before its bytes are lent.
        self.file.block(self.index)?;
        let field = |column: &Column| self.buffer(Stored::Field(column.offset, column.of.size()), column.of.size());
        Ok(match origin {
            Origin::Symbol => symbols(self.buffer(Stored::Field(4, 4), 4)?, names),
            Origin::Time => times(self.times()?, false),
            Origin::Ingested => times(self.buffer(Stored::Ingest, 8)?.into(), false),
            Origin::Lsn => Arc::new(PrimitiveArray::<UInt64Type>::new(self.lsns()?, None)),
            Origin::Publisher => Arc::new(UInt16Array::from(self.publishers()?)),
            Origin::Field { column, is_raw, has_null } => array(column, *is_raw, *has_null, field(column)?, self.rows()),
        })
    }
}

/// Rows of a MemTable, copied column by column.
#[derive(Debug, Default)]
pub struct Copied {
    /// The LSNs.
    pub lsns: Vec<u64>,
    /// The index times.
    pub times: Vec<u64>,
    /// The bytes of each column that is a field; empty for the others.
    fields: Vec<Vec<u8>>,
}

impl Copied {
    /// Copies the columns `origins` of `rows`.
    pub fn new<'t>(rows: impl Iterator<Item = Row<'t>>, origins: &[Origin]) -> Copied {
        let mut copied = Copied { fields: vec![Vec::new(); origins.len()], ..Copied::default() };
        for row in rows {
            copied.lsns.push(row.lsn.0);
            copied.times.push(row.index_time.0);
            let bytes = row.record.bytes();
            for (field, origin) in copied.fields.iter_mut().zip(origins) {
                let (offset, size) = match origin {
                    Origin::Symbol => (4, 4),
                    Origin::Field { column, .. } => (column.offset, column.of.size()),
                    _ => continue,
                };
                field.extend_from_slice(bytes.get(offset..offset + size).unwrap_or(&[]));
            }
        }
        copied
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lsns.len()
    }

    /// The arrays of the columns `origins`, with which it was made; `table` is the MemTable.
    pub fn arrays(self, origins: &[Origin], table: &memtable::Table, names: &Names) -> Vec<ArrayRef> {
        let rows = self.lsns.len();
        let mut arrivals = None;
        let mut arrays = Vec::with_capacity(origins.len());
        for (origin, field) in origins.iter().zip(self.fields) {
            arrays.push(match origin {
                Origin::Symbol => symbols(Buffer::from_vec(field), names),
                Origin::Time => times(self.times.clone().into(), false),
                Origin::Lsn => Arc::new(PrimitiveArray::<UInt64Type>::from(self.lsns.clone())) as ArrayRef,
                Origin::Ingested => {
                    let (ingested, _) = arrivals.get_or_insert_with(|| arrivals_of(&self.lsns, table));
                    times(ingested.clone().into(), false)
                }
                Origin::Publisher => {
                    let (_, publishers) = arrivals.get_or_insert_with(|| arrivals_of(&self.lsns, table));
                    Arc::new(UInt16Array::from(publishers.clone()))
                }
                Origin::Field { column, is_raw, has_null } => array(column, *is_raw, *has_null, Buffer::from_vec(field), rows),
            });
        }
        arrays
    }
}

/// The arrays of the columns `origins` of `rows` records in `words`, which are not of the store: all of the kind `kind`, one after the
/// other. They have no LSN, and their instruments are numbered from 0, in the order of `names`. A time that they do not have is null.
pub fn of_records(kind: &Schema, words: &[u64], origins: &[Origin], names: &Names) -> Vec<ArrayRef> {
    let records = || words.chunks_exact(kind.words.max(1));
    let rows = records().count();
    let word = |record: &[u64], at: usize| record.get(at).copied().unwrap_or(u64::MAX);
    let bytes = |offset: usize, size: usize| -> Vec<u8> {
        let fields = records().map(|record| bytemuck::cast_slice::<u64, u8>(record).get(offset..offset + size).unwrap_or(&[]));
        fields.flatten().copied().collect()
    };
    let array = |origin: &Origin| -> ArrayRef {
        match origin {
            Origin::Symbol => {
                let keys: Vec<u32> = records().map(|record| ((word(record, 0) >> 32) as u32).saturating_add(1)).collect();
                symbols(Buffer::from_vec(keys), names)
            }
            Origin::Time => {
                let of = |record| Some(word(record, kind.index_word)).filter(|ns| *ns != u64::MAX).unwrap_or(word(record, 1));
                times(records().map(of).collect::<Vec<u64>>().into(), true)
            }
            Origin::Field { column, is_raw, has_null } => {
                array(column, *is_raw, *has_null, Buffer::from_vec(bytes(column.offset, column.of.size())), rows)
            }
            Origin::Ingested | Origin::Lsn | Origin::Publisher => panic!("a record outside of a store has no arrival"),
        }
    };
    origins.iter().map(array).collect()
}

/// The array of a column that is a field of records, of the `bytes` of its values in `rows` rows; `None` if it is none.
pub fn of_field(origin: &Origin, bytes: Vec<u8>, rows: usize) -> Option<ArrayRef> {
    let Origin::Field { column, is_raw, has_null } = origin else { return None };
    Some(array(column, *is_raw, *has_null, Buffer::from_vec(bytes), rows))
}

/// Ingest time and publisher of each of `lsns`.
fn arrivals_of(lsns: &[u64], table: &memtable::Table) -> (Vec<u64>, Vec<u16>) {
    let (mut ingested, mut publishers) = (Vec::with_capacity(lsns.len()), Vec::with_capacity(lsns.len()));
    let mut run = (Lsn(0), 0, 0, PublisherId(0));
    for &lsn in lsns {
        // Rows of a series come in runs with one arrival.
        if !(run.0.0..run.0.0 + run.1).contains(&lsn) {
            run = table.run_of(Lsn(lsn)).map_or(run, |(first, count, of)| (first, count, of.ingest_ts.0, of.publisher));
        }
        ingested.push(run.2);
        publishers.push(run.3.0);
    }
    (ingested, publishers)
}

/// The instruments `keys` as symbols.
fn symbols(keys: Buffer, names: &Names) -> ArrayRef {
    let keys = values::<UInt32Type>(keys);
    let count = names.len() as u32;
    let keys = if keys.iter().copied().max().is_some_and(|id| id > count) {
        // Records of no instrument, and of instruments that came after the names were read: there are none of these.
        keys.iter().map(|id| if *id > count { 0 } else { *id }).collect::<Vec<u32>>().into()
    } else {
        keys
    };
    let keys = PrimitiveArray::<UInt32Type>::new(keys, None);
    dictionary(keys, names.values.clone())
}

/// A dictionary array whose keys all have a value.
fn dictionary<K: arrow::datatypes::ArrowDictionaryKeyType>(keys: PrimitiveArray<K>, values: ArrayRef) -> ArrayRef {
    match DictionaryArray::try_new(keys, values) {
        Ok(array) => Arc::new(array),
        Err(error) => panic!("keys were checked against the values: {error}"),
    }
}

/// `buffer` as values; one that is not aligned is copied.
fn values<T: ArrowPrimitiveType>(buffer: Buffer) -> ScalarBuffer<T::Native> {
    if buffer.as_ptr().align_offset(align_of::<T::Native>()) == 0 {
        return buffer.into();
    }
    ScalarBuffer::from(Buffer::from(buffer.as_slice()))
}

fn nulls_where<T: Copy>(values: &[T], is_null: impl Fn(T) -> bool) -> Option<NullBuffer> {
    // Most columns have no null, and looking for one is quick.
    if !values.iter().any(|v| is_null(*v)) {
        return None;
    }
    Some(NullBuffer::new(BooleanBuffer::collect_bool(values.len(), |at| values.get(at).is_some_and(|v| !is_null(*v)))))
}

/// The times `ns`. Those that a signed number cannot hold are null, if there may be nulls.
fn times(ns: ScalarBuffer<u64>, has_null: bool) -> ArrayRef {
    let nulls = if has_null { nulls_where(&ns, |time| time > i64::MAX as u64) } else { None };
    Arc::new(PrimitiveArray::<TimestampNanosecondType>::new(ScalarBuffer::from(ns.into_inner()), nulls))
}

fn plain<T: ArrowPrimitiveType>(buffer: Buffer, null: Option<T::Native>) -> ArrayRef
where
    T::Native: PartialEq,
{
    let values = values::<T>(buffer);
    let nulls = null.and_then(|null| nulls_where(&values, |v| v == null));
    Arc::new(PrimitiveArray::<T>::new(values, nulls))
}

/// The values of `column` in `buffer`, one for each of `rows` rows.
fn array(column: &Column, is_raw: bool, has_null: bool, buffer: Buffer, rows: usize) -> ArrayRef {
    match column.of {
        ColumnType::U8 => plain::<UInt8Type>(buffer, None),
        ColumnType::I8 => plain::<Int8Type>(buffer, None),
        ColumnType::U16 => plain::<UInt16Type>(buffer, None),
        ColumnType::I16 => plain::<Int16Type>(buffer, None),
        ColumnType::U32 => plain::<UInt32Type>(buffer, None),
        ColumnType::I32 => plain::<Int32Type>(buffer, has_null.then_some(i32::MAX)),
        ColumnType::U64 => plain::<UInt64Type>(buffer, has_null.then_some(u64::MAX)),
        ColumnType::I64 => plain::<Int64Type>(buffer, None),
        ColumnType::Price if is_raw => plain::<Int64Type>(buffer, Some(i64::MAX)),
        ColumnType::Size if is_raw => plain::<UInt64Type>(buffer, Some(u64::MAX)),
        ColumnType::Price => {
            let raw = values::<Int64Type>(buffer);
            let decimals: Vec<f64> = raw.iter().map(|v| *v as f64 / UNITS).collect();
            Arc::new(Float64Array::new(decimals.into(), nulls_where(&raw, |v| v == i64::MAX)))
        }
        ColumnType::Size => {
            let raw = values::<UInt64Type>(buffer);
            let decimals: Vec<f64> = raw.iter().map(|v| *v as f64 / UNITS).collect();
            Arc::new(Float64Array::new(decimals.into(), nulls_where(&raw, |v| v == u64::MAX)))
        }
        ColumnType::Volume => volumes(&buffer, is_raw),
        ColumnType::Ts => times(values::<UInt64Type>(buffer), true),
        ColumnType::Char => {
            let keys = PrimitiveArray::<UInt8Type>::new(values::<UInt8Type>(buffer), None);
            dictionary(keys, characters())
        }
        ColumnType::Text(size) => texts(&buffer, size, rows),
        ColumnType::Reserved(_) => panic!("a table has no reserved columns"),
    }
}

fn volumes(buffer: &Buffer, is_raw: bool) -> ArrayRef {
    let (chunks, _) = buffer.as_slice().as_chunks::<16>();
    let raw: Vec<u128> = chunks.iter().map(|chunk| u128::from_le_bytes(*chunk)).collect();
    // A decimal has 38 digits. A greater volume than that is no volume.
    let limit = 10u128.pow(38);
    if is_raw {
        let nulls = nulls_where(&raw, |v| v >= limit);
        let values: Vec<i128> = raw.iter().map(|v| if *v < limit { *v as i128 } else { 0 }).collect();
        let array = Decimal128Array::new(values.into(), nulls).with_precision_and_scale(38, 0);
        return match array {
            Ok(array) => Arc::new(array),
            Err(error) => panic!("38 digits fit a Decimal128: {error}"),
        };
    }
    let decimals: Vec<f64> = raw.iter().map(|v| *v as f64 / UNITS).collect();
    Arc::new(Float64Array::new(decimals.into(), nulls_where(&raw, |v| v >= limit)))
}

/// A value for each character: its number is its place. 0 is null.
fn characters() -> ArrayRef {
    static ALL: std::sync::LazyLock<ArrayRef> = std::sync::LazyLock::new(|| {
        let all = (0..=u8::MAX).map(|c| (c != 0).then(|| char::from(c).to_string()));
        Arc::new(all.collect::<StringArray>())
    });
    ALL.clone()
}

fn texts(buffer: &Buffer, size: usize, rows: usize) -> ArrayRef {
    let mut texts = StringBuilder::with_capacity(rows, buffer.len());
    for text in buffer.as_slice().chunks_exact(size.max(1)) {
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        let text = text.get(..end).unwrap_or(text);
        match std::str::from_utf8(text) {
            Ok(text) if text.is_ascii() => texts.append_value(text),
            // As in exported files: a byte is the code point of the same number.
            _ => texts.append_value(text.iter().map(|b| char::from(*b)).collect::<String>()),
        }
    }
    Arc::new(texts.finish())
}
