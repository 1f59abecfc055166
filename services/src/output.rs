//! Owns: how rows come out: tables for people, JSON lines, CSV.

use std::io::{BufWriter, StdoutLock, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value as Json};
use tapestore::reader::Row;
use tapestore::record::{ColumnType, Kind, Value};
use tapestore::shm::symbols::Symbols;

use crate::exit::{Failure, Outcome, USAGE};

/// The shape of the output.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Format {
    /// One JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// CSV with a header, which `tape publish --from` reads again
    #[arg(long, global = true, conflicts_with = "json")]
    pub csv: bool,
}

/// Rows that a table shows before it is printed, so that its columns fit.
const TABLE_ROWS: usize = 200;

/// Prints rows.
pub struct Rows<'s> {
    format: Format,
    symbols: &'s mut Symbols,
    out: BufWriter<StdoutLock<'static>>,
    table: Vec<Vec<String>>,
    header: Vec<String>,
    kind: Option<Kind>,
    printed: u64,
}

impl<'s> Rows<'s> {
    /// Rows in `format`, with the names of `symbols`.
    pub fn new(format: Format, symbols: &'s mut Symbols) -> Rows<'s> {
        let out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
        Rows { format, symbols, out, table: Vec::new(), header: Vec::new(), kind: None, printed: 0 }
    }

    /// Rows printed.
    pub fn printed(&self) -> u64 {
        self.printed
    }

    fn name(&mut self, row: &Row<'_>) -> String {
        let id = row.record.instrument();
        match self.symbols.name(id) {
            Some(name) => name.to_string(),
            None if id == tapestore::lsn::InstrumentId::NULL => "-".to_owned(),
            None => format!("#{id}"),
        }
    }

    /// Prints a row.
    ///
    /// # Errors
    /// That the output is closed; that CSV was asked of rows of several kinds.
    pub fn push(&mut self, row: &Row<'_>) -> Outcome {
        self.printed += 1;
        let name = self.name(row);
        if self.format.json {
            let object = json(row, &name);
            return Ok(writeln!(self.out, "{object}")?);
        }
        if self.format.csv {
            return self.push_csv(row, &name);
        }
        if self.kind.is_some_and(|k| k != row.record.kind()) || self.table.len() >= TABLE_ROWS {
            self.flush_table()?;
        }
        if self.kind != Some(row.record.kind()) {
            self.kind = Some(row.record.kind());
            self.header = header(row);
        }
        let mut cells = vec![row.lsn.to_string(), row.index_time.to_string(), row.record.schema().name.to_owned(), name];
        cells.extend(shown(row).map(|(_, v)| v.to_string()));
        self.table.push(cells);
        Ok(())
    }

    fn push_csv(&mut self, row: &Row<'_>, name: &str) -> Outcome {
        match self.kind {
            None => {
                self.kind = Some(row.record.kind());
                writeln!(self.out, "{}", header(row).join(","))?;
            }
            Some(kind) if kind != row.record.kind() => {
                return Err(Failure::new(USAGE, "CSV holds rows of one kind; choose it with --kind"));
            }
            Some(_) => {}
        }
        write!(self.out, "{},{},{},{name}", row.lsn, row.index_time, row.record.schema().name)?;
        for (_, value) in shown(row) {
            let text = value.to_string();
            if text.contains([',', '"', '\n']) {
                write!(self.out, ",\"{}\"", text.replace('"', "\"\""))?;
            } else {
                write!(self.out, ",{text}")?;
            }
        }
        Ok(writeln!(self.out)?)
    }

    fn flush_table(&mut self) -> Outcome {
        if self.table.is_empty() {
            return Ok(());
        }
        let mut table = table(&self.header);
        for row in self.table.drain(..) {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Ok(writeln!(self.out, "{table}")?)
    }

    /// Writes out what is held back.
    ///
    /// # Errors
    /// That the output is closed.
    pub fn flush(&mut self) -> Outcome {
        self.flush_table()?;
        Ok(self.out.flush()?)
    }
}

/// An empty table with this header.
pub fn table<S: AsRef<str>>(header: &[S]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    table
}

fn shown<'a>(row: &Row<'a>) -> impl Iterator<Item = (&'static str, Value<'a>)> + use<'a> {
    let values = row.record.values().filter(|(c, _)| !c.is_reserved() && c.name != "instrument");
    values.map(|(c, v)| (c.name, v))
}

fn header(row: &Row<'_>) -> Vec<String> {
    let fixed = ["lsn", "index_time", "kind", "instrument"].into_iter();
    fixed.chain(shown(row).map(|(name, _)| name)).map(str::to_owned).collect()
}

/// A row as a JSON object. Prices, sizes and times are text, because JSON's numbers are not exact.
fn json(row: &Row<'_>, name: &str) -> Json {
    let mut object = Map::new();
    object.insert("lsn".into(), row.lsn.0.into());
    object.insert("index_time".into(), row.index_time.to_string().into());
    object.insert("kind".into(), row.record.schema().name.into());
    object.insert("instrument".into(), name.into());
    for (column, value) in row.record.values().filter(|(c, _)| !c.is_reserved() && c.name != "instrument") {
        let value = match (column.of, value) {
            (ColumnType::U64 | ColumnType::I64, v) => v.to_string().into(),
            (_, Value::Unsigned(v)) => v.into(),
            (_, Value::Signed(v)) => v.into(),
            (_, v) => v.to_string().into(),
        };
        object.insert(column.name.into(), value);
    }
    Json::Object(object)
}
