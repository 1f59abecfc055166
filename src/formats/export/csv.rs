//! Owns: rows of a kind as CSV, the one form in which `tape scan --csv` prints them, an export writes them and an import
//! reads them.
//!
//! What must hold: text of printable ASCII and line breaks comes back the same from [`crate::input::Csv`]: a field is
//! quoted if it has a comma, a quotation mark, a line feed or a carriage return, and only then. Other bytes of text are
//! replaced, and an export counts them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};

use csv::ByteRecord;
use flate2::Compression;
use flate2::write::GzEncoder;
use tapestore::reader::Row;
use tapestore::record::{Column, ColumnType, Name, Schema, Value};

use super::file::Sink;
use crate::checksum::Checksum;
use crate::schema::INSTRUMENT;

/// A level at which the compression, not the text, sets the pace, and only just.
const GZIP_LEVEL: u32 = 3;
/// Bytes that are written together.
const CHUNK: usize = 1 << 20;

/// The columns of `kind` that people are shown, after those of every kind.
fn columns(kind: &'static Schema) -> impl Iterator<Item = &'static Column> {
    kind.columns.iter().filter(|c| !c.is_reserved() && c.name != INSTRUMENT)
}

/// The names of the columns of rows of `kind`: `lsn`, `index_time`, `kind` and `instrument` first.
pub fn header(kind: &'static Schema) -> impl Iterator<Item = &'static str> {
    ["lsn", "index_time", "kind", INSTRUMENT].into_iter().chain(columns(kind).map(|c| c.name))
}

/// Writes rows of one kind as CSV, after a header.
pub struct CsvRows<W: Write> {
    kind: &'static Schema,
    writer: csv::Writer<W>,
    row: ByteRecord,
    field: Vec<u8>,
}

/// The writer's own error, so that its kind stays: a pipe that is closed is no failure.
fn failed(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

impl<W: Write> CsvRows<W> {
    /// Writes the header of rows of `kind`; `buffer` bytes are written together.
    ///
    /// # Errors
    /// That it cannot be written.
    pub fn new(out: W, kind: &'static Schema, buffer: usize) -> io::Result<CsvRows<W>> {
        let mut writer = csv::WriterBuilder::new().buffer_capacity(buffer).from_writer(out);
        writer.write_record(header(kind)).map_err(failed)?;
        Ok(CsvRows { kind, writer, row: ByteRecord::new(), field: Vec::new() })
    }

    /// The kind of the rows.
    pub fn kind(&self) -> &'static Schema {
        self.kind
    }

    /// Writes a row, of the instrument called `name`.
    ///
    /// # Errors
    /// That it cannot be written.
    pub fn push(&mut self, row: &Row<'_>, name: &str) -> io::Result<()> {
        self.row.clear();
        self.put(format_args!("{}", row.lsn))?;
        self.put(format_args!("{}", row.index_time))?;
        self.row.push_field(self.kind.name.as_bytes());
        self.row.push_field(name.as_bytes());
        let bytes = row.record.bytes();
        for column in columns(self.kind) {
            match column.value(bytes) {
                Value::Text(text) => self.row.push_field(&clean(text)),
                Value::Char(c) if is_exact(c) => self.row.push_field(&[c]),
                value => self.put(format_args!("{value}"))?,
            }
        }
        self.writer.write_byte_record(&self.row).map_err(failed)
    }

    fn put(&mut self, value: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.field.clear();
        self.field.write_fmt(value)?;
        self.row.push_field(&self.field);
        Ok(())
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// That it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Writes what is buffered, and gives what it was written to.
    ///
    /// # Errors
    /// That it cannot be written.
    pub fn into_inner(self) -> io::Result<W> {
        self.writer.into_inner().map_err(|e| io::Error::new(e.error().kind(), e.error().to_string()))
    }
}

/// Whether a byte of text comes back the same.
fn is_exact(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | 32..127)
}

/// `text`, with a question mark in the place of each byte that would not come back.
fn clean(text: &[u8]) -> Cow<'_, [u8]> {
    if text.iter().all(|b| is_exact(*b)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.iter().map(|b| if is_exact(*b) { *b } else { b'?' }).collect())
}

fn is_odd(value: &Value<'_>) -> bool {
    match value {
        Value::Char(c) => *c != 0 && !is_exact(*c),
        Value::Text(bytes) => !bytes.iter().all(|b| is_exact(*b)),
        _ => false,
    }
}

enum Out {
    Plain(File),
    Gz(Box<GzEncoder<File>>),
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Out::Plain(file) => file.write(buf),
            Out::Gz(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Plain(file) => file.flush(),
            // A flush would end a block of the compression; `finish` writes the rest.
            Out::Gz(_) => Ok(()),
        }
    }
}

/// A CSV file.
pub(super) struct CsvSink {
    rows: CsvRows<Out>,
    /// The columns whose text may be odd.
    texts: Vec<&'static Column>,
    /// Rows with text that does not come back.
    odd: u64,
}

impl CsvSink {
    pub(super) fn new(file: File, kind: &'static Schema, compressed: bool) -> io::Result<CsvSink> {
        let out =
            if compressed { Out::Gz(Box::new(GzEncoder::new(file, Compression::new(GZIP_LEVEL)))) } else { Out::Plain(file) };
        let is_text = |c: &&Column| matches!(c.of, ColumnType::Char | ColumnType::Text(_));
        Ok(CsvSink { rows: CsvRows::new(out, kind, CHUNK)?, texts: kind.columns.iter().filter(is_text).collect(), odd: 0 })
    }
}

impl Sink for CsvSink {
    fn push(&mut self, row: &Row<'_>, name: &Name) -> io::Result<bool> {
        let bytes = row.record.bytes();
        self.odd += u64::from(self.texts.iter().any(|c| is_odd(&c.value(bytes))));
        self.rows.push(row, name.as_str()).map(|()| true)
    }

    fn finish(self: Box<Self>, _: &Checksum) -> io::Result<File> {
        match self.rows.into_inner()? {
            Out::Plain(file) => Ok(file),
            Out::Gz(encoder) => encoder.finish(),
        }
    }

    fn left(&self) -> BTreeMap<String, u64> {
        let odd = (self.odd > 0).then(|| ("texts of records that are not printable ASCII".to_owned(), self.odd));
        odd.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use tapestore::lsn::Lsn;
    use tapestore::record::{Char, Definition, Record as _, RecordRef};
    use tapestore::time::Ts;

    use super::*;
    use crate::input::{Csv, Input, Message, Options};

    fn text<const N: usize>(text: &str) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        bytes
    }

    /// What is written of `records`, and the records that the input reads of it.
    fn there_and_back(records: &[Definition]) -> (String, Vec<Definition>) {
        let mut rows = CsvRows::new(Vec::new(), Definition::SCHEMA_REF, CHUNK).unwrap();
        for record in records {
            rows.push(&Row { lsn: Lsn(7), index_time: Ts(5), record: RecordRef::of(record) }, "A:B").unwrap();
        }
        let bytes = rows.into_inner().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let (mut input, mut message) = (Csv::open(file.path(), &Options::default()).unwrap(), Message::default());
        let mut back = Vec::new();
        while input.next(&mut message).unwrap() {
            back.push(*RecordRef::first(&message.words).unwrap().get::<Definition>().unwrap());
        }
        (String::from_utf8(bytes).unwrap(), back)
    }

    #[test]
    fn text_with_what_csv_means_something_by_comes_back_equal() {
        let plain = Definition { ts_recv: Ts(5), raw_symbol: text("ES H4 x'y"), ..Definition::default() };
        let texts = ["a\rb", "a\nb", "a\r\nb", "\r", "\n", "a,b", ",", "say \"x\"", "\"", "\"\"", " a ", "\r\n,\"", "a\r"];
        let mut records = vec![plain];
        records.extend(texts.iter().map(|t| Definition { raw_symbol: text(t), group: text(t), ..plain }));
        for char in b"\r\n,\" x" {
            records.push(Definition { instrument_class: Char(*char), ..plain });
        }
        let (written, back) = there_and_back(&records);
        assert!(back == records, "{written}");
        // What has to be is quoted, and nothing else.
        let line = |n: usize| written.split('\n').nth(n).unwrap();
        assert!(line(0).starts_with("lsn,index_time,kind,instrument,") && !line(0).contains('"'), "{written}");
        assert!(line(1).starts_with("7,") && line(1).contains(",ES H4 x'y,") && !line(1).contains('"'), "{written}");
        assert!(line(2).contains(",\"a\rb\","), "{written}");
        assert!(
            written.contains(",\"a,b\",") && written.contains(",\"say \"\"x\"\"\",") && written.contains(", a ,"),
            "{written}"
        );
    }

    #[test]
    fn text_that_csv_cannot_hold_is_replaced_and_counted() {
        let odd = Definition { ts_recv: Ts(5), raw_symbol: text("a\u{1b}b"), ..Definition::default() };
        let (_, back) = there_and_back(&[odd]);
        assert_eq!(back[0].raw_symbol, text("a?b"));
        let is_counted = |d: &Definition| {
            let column = Definition::SCHEMA_REF.column("raw_symbol").unwrap();
            is_odd(&column.value(RecordRef::of(d).bytes()))
        };
        assert!(is_counted(&odd) && !is_counted(&Definition { raw_symbol: text("a\r\nb"), ..odd }));
    }
}
