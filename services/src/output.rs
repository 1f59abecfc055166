//! Owns: the output of rows: tables, JSON lines, CSV.

use std::io::{BufWriter, StdoutLock, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value as Json};
use tapestore::lsn::InstrumentId;
use tapestore::reader::Row;
use tapestore::record::{ColumnType, Kind, Name, Price, Size, Value, Volume};
use tapestore::shm::symbols::Symbols;
use tapestore::time::Ts;
use tapestore_formats::export::{CsvRows, header};

use crate::exit::{Failure, Outcome, USAGE, output};

/// Output format.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Format {
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print CSV with a header; `tape import` reads it again
    #[arg(long, global = true, conflicts_with = "json")]
    pub csv: bool,
}

/// Bytes of output written together.
const BUFFER: usize = 1 << 16;
/// Rows collected for a table before it is printed, so that the columns fit.
const TABLE_ROWS: usize = 200;

/// Prints rows.
pub struct Rows<'s> {
    format: Format,
    symbols: &'s mut Symbols,
    out: BufWriter<StdoutLock<'static>>,
    csv: Option<Box<CsvRows<StdoutLock<'static>>>>,
    table: Vec<Vec<String>>,
    header: Vec<String>,
    kind: Option<Kind>,
    printed: u64,
}

impl<'s> Rows<'s> {
    /// Rows in `format`, with instrument names from `symbols`.
    pub fn new(format: Format, symbols: &'s mut Symbols) -> Rows<'s> {
        let out = BufWriter::with_capacity(BUFFER, std::io::stdout().lock());
        Rows { format, symbols, out, csv: None, table: Vec::new(), header: Vec::new(), kind: None, printed: 0 }
    }

    /// Number of rows printed.
    pub fn printed(&self) -> u64 {
        self.printed
    }

    /// The name of `instrument`; `None` if it is not registered.
    pub fn instrument(&mut self, instrument: InstrumentId) -> Option<Name> {
        self.symbols.name(instrument)
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
    /// The output is closed; CSV with rows of several kinds.
    pub fn push(&mut self, row: &Row<'_>) -> Outcome {
        self.printed += 1;
        let name = self.name(row);
        if self.format.json {
            let object = json(row, &name);
            return writeln!(self.out, "{object}").map_err(output);
        }
        if self.format.csv {
            return self.push_csv(row, &name);
        }
        if self.kind.is_some_and(|k| k != row.record.kind()) || self.table.len() >= TABLE_ROWS {
            self.flush_table()?;
        }
        if self.kind != Some(row.record.kind()) {
            self.kind = Some(row.record.kind());
            self.header = header(row.record.schema()).map(str::to_owned).collect();
        }
        let mut cells = vec![row.lsn.to_string(), row.index_time.to_string(), row.record.schema().name.to_owned(), name];
        cells.extend(shown(row).map(|(_, v)| v.to_string()));
        self.table.push(cells);
        Ok(())
    }

    fn push_csv(&mut self, row: &Row<'_>, name: &str) -> Outcome {
        let schema = row.record.schema();
        let rows = match &mut self.csv {
            Some(rows) if rows.kind().kind != schema.kind => {
                return Err(Failure::new(USAGE, "CSV output holds one kind of records; select it with --kind"));
            }
            Some(rows) => rows,
            None => self.csv.insert(Box::new(CsvRows::new(std::io::stdout().lock(), schema, BUFFER)?)),
        };
        rows.push(row, name).map_err(output)
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
        writeln!(self.out, "{table}").map_err(output)
    }

    /// Writes buffered rows.
    ///
    /// # Errors
    /// The output is closed.
    pub fn flush(&mut self) -> Outcome {
        self.flush_table()?;
        if let Some(rows) = &mut self.csv {
            rows.flush().map_err(output)?;
        }
        self.out.flush().map_err(output)
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

/// A row as a JSON object: integers are numbers, what is absent is null. Prices and sizes are text, because most programs read
/// decimals in JSON as binary fractions; times are text as everywhere.
fn json(row: &Row<'_>, name: &str) -> Json {
    let mut object = Map::new();
    object.insert("lsn".into(), row.lsn.0.into());
    object.insert("index_time".into(), row.index_time.to_string().into());
    object.insert("kind".into(), row.record.schema().name.into());
    object.insert("instrument".into(), name.into());
    let is_built_in = !row.record.kind().is_user();
    let is_id = |name: &str| row.record.schema().find.contains(&name);
    for (column, value) in row.record.values().filter(|(c, _)| !c.is_reserved() && c.name != "instrument") {
        let value = match (column.of, value) {
            (_, Value::Price(Price::NULL) | Value::Size(Size::NULL) | Value::Volume(Volume::NULL) | Value::Ts(Ts::NULL)) => {
                Json::Null
            }
            // An absent id, and an absent number of the built-in kinds: their greatest value. A program's own numbers have no null.
            (ColumnType::U64, Value::Unsigned(u64::MAX)) if is_built_in || is_id(column.name) => Json::Null,
            (ColumnType::I32, Value::Signed(v)) if is_built_in && v == i64::from(i32::MAX) => Json::Null,
            (_, Value::Unsigned(v)) => v.into(),
            (_, Value::Signed(v)) => v.into(),
            (_, v) => v.to_string().into(),
        };
        object.insert(column.name.into(), value);
    }
    Json::Object(object)
}
