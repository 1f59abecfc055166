//! Owns: the output of records: their columns, names and values in tables, JSON lines and CSV.

use std::io::StdoutLock;

use serde_json::Value as Json;
use tapestore::lsn::InstrumentId;
use tapestore::reader::Row;
use tapestore::record::{Column, ColumnType, Name, Price, RecordRef, Schema, Size, Value, Volume};
use tapestore::shm::symbols::Symbols;
use tapestore::time::Ts;
use tapestore_formats::export::CsvRows;

use crate::exit::{Failure, Outcome, USAGE, output};
use crate::grid::{BUFFER, Cell, Grid, Heading};
pub use crate::grid::{Format, table};

/// Prints records.
pub struct Rows<'s> {
    symbols: &'s mut Symbols,
    grid: Grid,
    /// CSV that `tape import` reads again: all columns of one kind.
    csv: Option<Box<CsvRows<StdoutLock<'static>>>>,
    is_csv: bool,
    has_columns: bool,
    /// The kinds of the last row.
    kinds: (Option<&'static Schema>, Option<&'static Schema>),
    printed: u64,
}

impl<'s> Rows<'s> {
    /// Rows in `format`, with instrument names from `symbols`.
    pub fn new(format: Format, symbols: &'s mut Symbols) -> Rows<'s> {
        let (is_csv, has_columns) = (format.csv, format.columns.is_some());
        Rows { symbols, grid: Grid::new(format), csv: None, is_csv, has_columns, kinds: (None, None), printed: 0 }
    }

    /// Number of rows printed.
    pub fn printed(&self) -> u64 {
        self.printed
    }

    /// The name of `instrument`; `None` if it is not registered.
    pub fn instrument(&mut self, instrument: InstrumentId) -> Option<Name> {
        self.symbols.name(instrument)
    }

    fn name(&mut self, id: InstrumentId) -> String {
        match self.symbols.name(id) {
            Some(name) => name.to_string(),
            None if id == InstrumentId::NULL => "-".to_owned(),
            None => format!("#{id}"),
        }
    }

    /// Prints a row.
    ///
    /// # Errors
    /// The output is closed; CSV with rows of several kinds; a column of `--columns` that the kind does not have.
    pub fn push(&mut self, row: &Row<'_>) -> Outcome {
        self.printed += 1;
        let (name, schema) = (self.name(row.record.instrument()), row.record.schema());
        if self.is_csv && self.kinds.0.is_some_and(|kind| kind.kind != schema.kind) {
            return Err(Failure::new(USAGE, "CSV output holds one kind of records; select it with --kind"));
        }
        if self.is_csv && !self.has_columns {
            self.kinds = (Some(schema), None);
            let rows = match &mut self.csv {
                Some(rows) => rows,
                None => self.csv.insert(Box::new(CsvRows::new(std::io::stdout().lock(), schema, BUFFER)?)),
            };
            return rows.push(row, &name).map_err(output);
        }
        if self.kinds.0.is_none_or(|kind| kind.kind != schema.kind) {
            let first = ["lsn", "index_time", "kind", "instrument"].map(|name| Heading::new(name, true));
            self.grid.head(first.into_iter().chain(columns(schema).map(heading)).collect())?;
            self.kinds = (Some(schema), None);
        }
        let mut cells = vec![Cell::number(row.lsn.0), Cell::text(row.index_time), Cell::text(schema.name), Cell::text(&name)];
        cells.extend(values(&row.record));
        self.grid.push(cells)
    }

    /// Prints a row and the row of `kind` that is joined to it, whose columns begin with the name of their kind.
    ///
    /// # Errors
    /// As [`Rows::push`].
    pub fn push_joined(&mut self, left: &Row<'_>, kind: &'static Schema, right: Option<&Row<'_>>) -> Outcome {
        self.printed += 1;
        let (name, schema) = (self.name(left.record.instrument()), left.record.schema());
        if self.kinds.0.is_none_or(|k| k.kind != schema.kind) || self.kinds.1.is_none_or(|k| k.kind != kind.kind) {
            let first = ["lsn", "index_time", "instrument"].map(|name| Heading::new(name, true));
            let joined = ["lsn", "index_time"].into_iter().chain(columns(kind).map(|c| c.name));
            let joined = joined.map(|name| Heading { name: format!("{}_{name}", kind.name), ..heading_of(name) });
            let own = columns(schema).map(heading);
            self.grid.head(first.into_iter().chain(own).chain(joined).collect())?;
            self.kinds = (Some(schema), Some(kind));
        }
        let mut cells = vec![Cell::number(left.lsn.0), Cell::text(left.index_time), Cell::text(&name)];
        cells.extend(values(&left.record));
        match right {
            Some(row) => {
                cells.extend([Cell::number(row.lsn.0), Cell::text(row.index_time)]);
                cells.extend(values(&row.record));
            }
            None => cells.extend(std::iter::repeat_n(Cell::absent(), 2 + columns(kind).count())),
        }
        self.grid.push(cells)
    }

    /// Writes buffered rows.
    ///
    /// # Errors
    /// The output is closed.
    pub fn flush(&mut self) -> Outcome {
        if let Some(rows) = &mut self.csv {
            rows.flush().map_err(output)?;
        }
        self.grid.flush()
    }
}

/// What few people look for: the index time is one of the times, and the rest is for programs.
const MINOR: [&str; 7] = ["source", "ts_event", "ts_recv", "index_time", "lsn", "sequence", "ts_in_delta"];

fn heading_of(name: &str) -> Heading {
    Heading { is_minor: MINOR.contains(&name), ..Heading::new(name, false) }
}

fn heading(column: &Column) -> Heading {
    heading_of(column.name)
}

/// The columns of `schema` that are printed after those of every record.
fn columns(schema: &'static Schema) -> impl Iterator<Item = &'static Column> {
    schema.columns.iter().filter(|c| !c.is_reserved() && c.name != "instrument")
}

/// The cells of [`columns`]. In JSON integers are numbers, what is absent is null. Prices and sizes are text, because most
/// programs read decimals in JSON as binary fractions; times are text as everywhere.
fn values<'a>(record: &RecordRef<'a>) -> impl Iterator<Item = Cell> + use<'a> {
    let (schema, bytes) = (record.schema(), record.bytes());
    columns(schema).map(move |column| {
        let value = column.value(bytes);
        let text = value.to_string();
        let json = json(schema, column, value, &text);
        Cell::new(text, json)
    })
}

fn json(schema: &Schema, column: &Column, value: Value<'_>, text: &str) -> Json {
    let is_built_in = !schema.kind.is_user();
    match (column.of, value) {
        (_, Value::Price(Price::NULL) | Value::Size(Size::NULL) | Value::Volume(Volume::NULL) | Value::Ts(Ts::NULL)) => {
            Json::Null
        }
        // An absent id, and an absent number of the built-in kinds: their greatest value. A program's own numbers have no null.
        (ColumnType::U64, Value::Unsigned(u64::MAX)) if is_built_in || schema.find.contains(&column.name) => Json::Null,
        (ColumnType::I32, Value::Signed(v)) if is_built_in && v == i64::from(i32::MAX) => Json::Null,
        (_, Value::Unsigned(v)) => v.into(),
        (_, Value::Signed(v)) => v.into(),
        _ => text.into(),
    }
}
