//! Owns: `tape symbols`, instruments with their definitions at a time, and `tape kinds`.

use std::path::Path;

use tapestore::lsn::InstrumentId;
use tapestore::reader::{At, Reader, Series, Snapshot};
use tapestore::record::{Column, Definition, Mapping, Name, Record, SCHEMAS, user_kinds};
use tapestore::time::Ts;

use crate::exit::Outcome;
use crate::grid::{Cell, Format, Grid, Heading};
use crate::query::{Pattern, found, time};

/// Longest line of column names.
const LINE: usize = 100;

/// `tape kinds`: the kinds of the store with their columns.
///
/// # Errors
/// The store cannot be read.
pub fn kinds(store: &Path, format: Format) -> Outcome {
    Reader::open(store)?.kinds()?;
    for schema in SCHEMAS.iter().chain(user_kinds()) {
        let columns: Vec<&Column> = schema.columns.iter().filter(|c| !c.is_reserved()).collect();
        let index = schema.columns.iter().find(|c| c.offset == schema.index_word * 8).map_or("", |c| c.name);
        if format.json {
            let columns: Vec<serde_json::Value> = columns
                .iter()
                .map(|c| serde_json::json!({ "name": c.name, "type": format!("{:?}", c.of), "offset": c.offset }))
                .collect();
            let object = serde_json::json!({
                "kind": schema.name, "number": schema.kind.0, "bytes": schema.words * 8, "sorted_by": index,
                "found_by": schema.find, "columns": columns,
            });
            out!("{object}");
            continue;
        }
        let found = if schema.find.is_empty() { String::new() } else { format!(", found by {}", schema.find.join(", ")) };
        out!("{} (number {}): {} bytes, sorted by {index}{found}", schema.name, schema.kind.0, schema.words * 8);
        let mut line = String::new();
        for column in columns {
            if line.len() + column.name.len() > LINE {
                out!("   {line}");
                line.clear();
            }
            line.push(' ');
            line.push_str(column.name);
        }
        out!("   {line}");
    }
    Ok(())
}

/// `tape symbols`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only names that contain this text, whatever its case; or, with the wildcards * ? [abc], names that match it
    pattern: Option<String>,
    /// Add the definition in force at this time, and the number that the source gave the instrument
    #[arg(long, value_parser = time)]
    at: Option<Ts>,
}

/// `tape symbols`.
///
/// # Errors
/// The store cannot be read; no name matches (exit code 3).
pub fn symbols(store: &Path, args: &Args, format: Format) -> Outcome {
    let mut reader = Reader::open(store)?;
    let mut snapshot = args.at.map(|_| reader.snapshot(At::Committed)).transpose()?;
    let symbols = reader.symbols()?;
    symbols.refresh();
    let (text, glob) = (args.pattern.as_deref().unwrap_or_default(), args.pattern.as_deref().map(Pattern::new).transpose()?);
    let glob = glob.filter(|pattern| !pattern.is_one());
    let text = text.to_lowercase();
    let contains = |name: &Name| name.as_str().to_lowercase().contains(text.as_str());
    let matches = |name: &Name| glob.as_ref().map_or_else(|| contains(name), |glob| glob.matches(name));
    let mut out = Grid::new(format);
    let columns = if args.at.is_some() { &DEFINED[..] } else { &LISTED };
    let is_left = |name: &str| !["id", "raw_id", "min_price_increment", "strike_price"].contains(&name);
    out.head(columns.iter().map(|name| Heading::new(*name, is_left(name))).collect())?;
    let mut shown = 0;
    for (id, name) in (1u32..).zip(symbols.names()).filter(|(_, name)| matches(name)) {
        shown += 1;
        let (id, first) = (InstrumentId(id), vec![Cell::number(id.into()), Cell::text(name)]);
        let definition = match (args.at, &mut snapshot) {
            (Some(at), Some(snapshot)) => defined(snapshot, id, at)?,
            _ => Vec::new(),
        };
        out.push(first.into_iter().chain(definition).collect())?;
    }
    out.flush()?;
    found(shown, "such instrument")
}

/// Columns of an instrument.
const LISTED: [&str; 2] = ["id", "instrument"];

/// Columns of a definition.
const DEFINED: [&str; 10] = [
    "id",
    "instrument",
    "raw_id",
    "raw_symbol",
    "class",
    "currency",
    "min_price_increment",
    "expiration",
    "strike_price",
    "since",
];

/// The cells of [`DEFINED`] after those of [`LISTED`] for `instrument` at the time `at`; empty where there is no definition.
fn defined(snapshot: &mut Snapshot, instrument: InstrumentId, at: Ts) -> Outcome<Vec<Cell>> {
    let mapping = snapshot.as_of(Series { instrument, kind: Mapping::KIND }, at)?;
    let raw_id = mapping.and_then(|row| row.record.get::<Mapping>().map(|m| Cell::number(m.raw_id)));
    let row = snapshot.as_of(Series { instrument, kind: Definition::KIND }, at)?;
    let mut cells = vec![raw_id.unwrap_or_else(Cell::absent)];
    let columns = ["raw_symbol", "instrument_class", "currency", "min_price_increment", "expiration", "strike_price"];
    for column in columns {
        let value = row.and_then(|row| row.record.schema().column(column).map(|c| c.value(row.record.bytes()).to_string()));
        cells.push(match value {
            Some(text) if text.is_empty() || text == "null" => Cell::new(text, serde_json::Value::Null),
            Some(text) => Cell::text(text),
            None => Cell::absent(),
        });
    }
    cells.push(row.map_or_else(Cell::absent, |row| Cell::text(row.index_time)));
    Ok(cells)
}
