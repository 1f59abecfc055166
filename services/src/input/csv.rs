//! Owns: CSV with a header, as `tape scan --csv` writes it: `kind` and `instrument` (a name) and the
//! columns of the kind, in any order. Columns that are absent are zero, times null; columns that the
//! tool adds for people (`lsn`, `index_time`) are passed over; others are refused.

use std::path::Path;

use tapestore::record::{ADDED_COLUMNS, Column, ColumnType, Name, Schema};
use tapestore::time::Ts;

use super::{LineInput, LineParser, Lines, Message, Names, Options, kind_with};
use crate::columnar::unknown_column;
use crate::exit::{DATA, Failure, Outcome};

/// A CSV file.
pub struct Csv {
    header: Vec<String>,
    kind: Option<&'static Schema>,
    /// The kind of the row before.
    known: Option<&'static Schema>,
    source: Option<u16>,
    names: Names,
}

/// The fields of one CSV line.
fn fields(line: &[u8]) -> Result<Vec<String>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(line);
    let mut record = csv::StringRecord::new();
    match reader.read_record(&mut record) {
        Ok(_) => Ok(record.iter().map(str::to_owned).collect()),
        Err(e) => Err(e.to_string()),
    }
}

impl Csv {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read, or its header is not one.
    pub fn open(path: &Path, options: &Options) -> Outcome<LineInput<Csv>> {
        let mut lines = Lines::open(path)?;
        let header = match lines.read()? {
            Some(line) => fields(line),
            None => Err("the file is empty".to_owned()),
        };
        let header: Vec<String> = header.map_err(|e| lines.fail(&e))?.iter().map(|h| options.renamed(h.trim())).collect();
        let kind = options.kind.as_deref().map(|name| kind_with(name, &header)).transpose().map_err(|e| Failure::new(DATA, e))?;
        if !header.iter().any(|h| h == "instrument") {
            return Err(lines.fail("the header has no column 'instrument'; is this a CSV file with a header?"));
        }
        if kind.is_none() && !header.iter().any(|h| h == "kind") {
            return Err(lines.fail("the header has no column 'kind'; name the kind with --kind"));
        }
        let parser = Csv { header, kind, known: None, source: options.source, names: Names::default() };
        Ok(LineInput { lines, parser })
    }
}

fn put(column: &Column, text: &str, bytes: &mut [u8]) -> Result<(), String> {
    // Only in text do spaces count.
    let text = if matches!(column.of, ColumnType::Text(_) | ColumnType::Char) { text } else { text.trim() };
    column.parse(text, bytes).map_err(|e| e.to_string())
}

impl LineParser for Csv {
    fn parse(&mut self, line: &[u8], message: &mut Message) -> Result<(), String> {
        let values = fields(line)?;
        if values.len() != self.header.len() {
            return Err(format!("{} fields, the header has {}", values.len(), self.header.len()));
        }
        let of = |name: &str| self.header.iter().position(|h| h == name).and_then(|i| values.get(i));
        let schema = match (self.kind, of("kind")) {
            (Some(schema), _) => schema,
            (None, Some(name)) => match self.known {
                Some(known) if known.name == name.trim() => known,
                _ => kind_with(name.trim(), &self.header)?,
            },
            (None, None) => return Err("no kind".to_owned()),
        };
        self.known = Some(schema);
        let mut bytes = vec![0u8; schema.words * 8];
        bytes.iter_mut().zip(schema.kind.0.to_le_bytes()).for_each(|(to, from)| *to = from);
        for column in schema.columns.iter().filter(|c| c.of == ColumnType::Ts) {
            put(column, "null", &mut bytes)?;
        }
        if let (Some(source), Some(column)) = (self.source, schema.column("source")) {
            put(column, &source.to_string(), &mut bytes)?;
        }
        for (name, value) in self.header.iter().zip(&values) {
            match name.as_str() {
                "" | "instrument" => {}
                name if ADDED_COLUMNS.contains(&name) => {}
                name => {
                    let column = schema.column(name).ok_or_else(|| unknown_column(schema, name))?;
                    put(column, value, &mut bytes)?;
                }
            }
        }
        let index = self.names.number(of("instrument").map_or("", |n| n.trim()))?;
        if let Some(column) = schema.column("instrument") {
            put(column, &index.to_string(), &mut bytes)?;
        }
        message.words.extend(bytes.chunks_exact(8).map(|c| c.iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b))));
        message.records = 1;
        message.at = Ts(message.words.get(schema.index_word).copied().unwrap_or(0));
        Ok(())
    }

    fn names(&self) -> &[Name] {
        self.names.all()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use tapestore::record::{RecordRef, Trade};

    use super::super::Input;
    use super::*;

    fn read(text: &str, kind: Option<&str>) -> (Vec<Trade>, Option<String>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut input = match Csv::open(file.path(), &Options { kind: kind.map(str::to_owned), ..Options::default() }) {
            Ok(input) => input,
            Err(e) => return (Vec::new(), Some(e.message)),
        };
        let (mut message, mut out) = (Message::default(), Vec::new());
        loop {
            match input.next(&mut message) {
                Ok(true) => out.push(*RecordRef::first(&message.words).unwrap().get().unwrap()),
                Ok(false) => return (out, None),
                Err(e) => return (out, Some(e.message)),
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
            ("kind,instrument,price\ntrade,A,x\n", "line 2: invalid price"),
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
