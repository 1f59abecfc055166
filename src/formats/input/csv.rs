//! Owns: CSV with a header, as `tape scan --csv` and `tape export` write it: `kind` and `instrument` (a name)
//! and the columns of the kind, in any order. Columns that are absent are zero, times null; columns that are added
//! for people (`lsn`, `index_time`) are ignored; others are refused.

use std::cell::Cell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use csv::ByteRecord;
use tapestore::record::{Column, ColumnType, Name, Schema};

use super::message::{Input, Message, NO_INSTRUMENT, NO_NAME};
use super::names::Names;
use super::options::{Options, kind_with};
use super::text::{Text, open_text};
use crate::error::{Error, Fault, Place, Result};
use crate::progress::Progress;
use crate::scatter::{place_of, twice};

/// Longest row in bytes, give or take what is read ahead.
const ROW_MAX: u64 = 16 << 20;
/// Bytes that are read together.
const CHUNK: usize = 1 << 20;

/// A CSV file.
pub struct Csv {
    path: PathBuf,
    reader: csv::Reader<Limited>,
    row: ByteRecord,
    header: Vec<String>,
    kind_at: Option<usize>,
    instrument_at: usize,
    /// The kind of every row, if it was asked for.
    kind: Option<&'static Schema>,
    /// Of the row before: its kind, where its fields go, and a record as rows without a field leave it.
    plan: Option<Plan>,
    source: Option<u16>,
    names: Names,
    read: Rc<Cell<u64>>,
    len: u64,
    /// Bytes read since the last row.
    since: Rc<Cell<u64>>,
}

struct Plan {
    schema: &'static Schema,
    /// For each field of a row, its column; `None` for those that are none.
    columns: Vec<Option<&'static Column>>,
    template: Vec<u64>,
}

/// A reader that fails when a row has no end: it would be kept in memory.
struct Limited {
    inner: Box<dyn Read>,
    since: Rc<Cell<u64>>,
}

impl Read for Limited {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.since.get() > ROW_MAX {
            return Err(std::io::Error::other("the row is longer than 16 MiB"));
        }
        let n = self.inner.read(buf)?;
        self.since.set(self.since.get() + n as u64);
        Ok(n)
    }
}

impl Csv {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read, or its header is not one.
    pub fn open(path: &Path, options: &Options) -> Result<Csv> {
        let Text { reader: inner, read, len } = open_text(path)?;
        let since = Rc::new(Cell::new(0));
        let inner = Limited { inner, since: since.clone() };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).buffer_capacity(CHUNK).from_reader(inner);
        let bad = |why: Fault| why.at(path, Place::Line(1));
        let mut row = ByteRecord::new();
        match reader.read_byte_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Err(bad("the file is empty".into())),
            Err(e) => return Err(bad(e.to_string().into())),
        }
        let header: Vec<String> = row.iter().map(|h| options.renamed(String::from_utf8_lossy(h).trim())).collect();
        let at = |name: &str| header.iter().position(|h| h == name);
        let kind = options.kind.as_deref().map(|name| kind_with(name, &header)).transpose().map_err(bad)?;
        let missing = "the header has no column 'instrument'; is this a CSV file with a header?";
        let instrument_at = at("instrument").ok_or_else(|| bad(missing.into()))?;
        let kind_at = at("kind");
        if kind.is_none() && kind_at.is_none() {
            return Err(bad("the header has no column 'kind'; name the kind with --kind".into()));
        }
        if let Some((_, name)) = header.iter().enumerate().find(|(i, h)| !h.is_empty() && at(h) != Some(*i)) {
            return Err(bad(twice(name)));
        }
        Ok(Csv {
            path: path.to_path_buf(),
            reader,
            row,
            header,
            kind_at,
            instrument_at,
            kind,
            plan: None,
            source: options.source,
            names: Names::default(),
            read,
            len,
            since,
        })
    }

    fn fail(&self, line: u64, fault: Fault) -> Error {
        fault.at(&self.path, Place::Line(line))
    }

    /// Where the fields of rows of `schema` go.
    fn plan(&self, schema: &'static Schema) -> Result<Plan, Fault> {
        let columns = self.header.iter().map(|name| place_of(schema, name)).collect::<Result<_, Fault>>()?;
        let mut template = vec![0u64; schema.words];
        let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut template);
        bytes.iter_mut().zip(schema.kind.0.to_le_bytes()).for_each(|(to, from)| *to = from);
        for column in schema.columns.iter().filter(|c| c.of == ColumnType::Ts) {
            put(column, "null", bytes)?;
        }
        Ok(Plan { schema, columns, template })
    }

    /// Puts the record of the row that was read last into the empty `message`.
    fn convert(&mut self, message: &mut Message) -> Result<(), Fault> {
        if self.row.len() != self.header.len() {
            let (found, expected) = (self.row.len(), self.header.len());
            return Err(Fault::new(format!("{found} fields, the header has {expected}")).values(expected, found));
        }
        let name = self.kind_at.filter(|_| self.kind.is_none()).and_then(|at| self.row.get(at));
        let is_planned = self.plan.as_ref().is_some_and(|p| name.is_none_or(|n| n.trim_ascii() == p.schema.name.as_bytes()));
        if !is_planned {
            let schema = match (self.kind, name) {
                (Some(kind), _) => kind,
                (None, name) => kind_with(text(name.unwrap_or(b""))?.trim(), &self.header)?,
            };
            self.plan = Some(self.plan(schema)?);
        }
        let Some(plan) = &self.plan else { return Err(Fault::new("no kind")) };
        message.words.extend_from_slice(&plan.template);
        let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut message.words);
        for (field, column) in self.row.iter().zip(&plan.columns) {
            if let Some(column) = column {
                put(column, text(field)?, bytes)?;
            }
        }
        let number = match text(self.row.get(self.instrument_at).unwrap_or(b""))?.trim() {
            NO_NAME => NO_INSTRUMENT,
            name => self.names.number(name).map_err(|e| e.column("instrument"))?,
        };
        message.set_row(number, self.source, plan.schema.index_word);
        Ok(())
    }
}

fn text(field: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(field).map_err(|_| Fault::new("the row is not UTF-8"))
}

fn put(column: &Column, text: &str, bytes: &mut [u8]) -> Result<(), Fault> {
    // Only in text do spaces count.
    let text = if matches!(column.of, ColumnType::Text(_) | ColumnType::Char) { text } else { text.trim() };
    column.parse(text, bytes).map_err(|e| Fault::from(e).column(column.name))
}

impl Input for Csv {
    fn next(&mut self, message: &mut Message) -> Result<bool> {
        message.clear();
        match self.reader.read_byte_record(&mut self.row) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) => {
                let line = self.reader.position().line();
                let reason = match e.into_kind() {
                    csv::ErrorKind::Io(e) => e.to_string(),
                    other => format!("{other:?}"),
                };
                return Err(self.fail(line, reason.into()));
            }
        }
        // What is read ahead counts for the rows to come.
        self.since.set(0);
        let converted = self.convert(message);
        converted.map(|()| true).map_err(|fault| {
            message.clear();
            self.fail(self.row.position().map_or(0, csv::Position::line), fault)
        })
    }

    fn names(&self) -> &[Name] {
        self.names.all()
    }

    fn progress(&self) -> Progress {
        Progress { done: self.read.get(), total: self.len, is_bytes: true }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use tapestore::record::{RecordRef, Trade};
    use tapestore::time::Ts;

    use super::*;

    fn read(text: &str, kind: Option<&str>) -> (Vec<Trade>, Option<String>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut input = match Csv::open(file.path(), &Options { kind: kind.map(str::to_owned), ..Options::default() }) {
            Ok(input) => input,
            Err(e) => return (Vec::new(), Some(e.to_string())),
        };
        let (mut message, mut out) = (Message::default(), Vec::new());
        loop {
            match input.next(&mut message) {
                Ok(true) => out.push(*RecordRef::first(&message.words).unwrap().get().unwrap()),
                Ok(false) => return (out, None),
                Err(e) => return (out, Some(e.to_string())),
            }
        }
    }

    #[test]
    fn rows_become_records_and_what_is_absent_is_zero_or_null() {
        let (trades, error) = read("instrument,price,size,ts_recv\nA,1.5,2,2024-08-08T23:54:15Z\n\nB,0.1,3,7\n", Some("trade"));
        assert_eq!(error, None);
        assert_eq!(
            (trades[0].price.0, trades[0].ts_event, trades[0].ts_recv),
            (1_500_000_000, Ts::NULL, Ts(1_723_161_255_000_000_000))
        );
        assert_eq!(trades[1].instrument.0, 1);
    }

    #[test]
    fn a_bad_row_is_named_by_line_and_reason() {
        for (text, why) in [
            ("a,b\n1,2\n", "instrument"),
            ("instrument,price\nA,1\n", "--kind"),
            ("kind,instrument,price\ntrade,A,x\n", "line 2: column 'price': invalid price"),
            ("kind,instrument,price\nwhale,A,1\n", "line 2: kind 'whale'"),
            ("kind,instrument,colour\ntrade,A,1\n", "'colour'"),
            ("kind,instrument,price\ntrade,A\n", "2 fields, the header has 3"),
            ("kind,instrument\ntrade,../../etc/pass wd\n", "instrument name"),
            ("", "empty"),
        ] {
            let error = read(text, None).1.unwrap();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn reading_is_total(text in "(kind|instrument|price|,|trade|\"|\n|[0-9.]){0,60}") {
            drop(read(&text, None));
            drop(read(&text, Some("trade")));
        }
    }
}
