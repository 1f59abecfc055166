//! Owns: `tape symbols`, instruments with their definitions at a time, and `tape kinds`.

use std::io::Write;
use std::path::Path;

use tapestore::lsn::InstrumentId;
use tapestore::reader::{At, Reader, Series, Snapshot};
use tapestore::record::{Column, Definition, Mapping, Name, Record, SCHEMAS, user_kinds};
use tapestore::time::Ts;

use crate::exit::{Outcome, output};
use crate::output::{Format, table};
use crate::query::{found, time};

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
    /// Only names that contain this text; case is ignored
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
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let pattern = args.pattern.as_ref().map(|p| p.to_lowercase());
    let matches = |name: &Name| pattern.as_ref().is_none_or(|p| name.as_str().to_lowercase().contains(p.as_str()));
    let mut shown = 0;
    let mut shown_table = table(&DEFINED);
    if format.csv {
        writeln!(out, "{}", if args.at.is_some() { DEFINED.join(",") } else { "id,instrument".to_owned() }).map_err(output)?;
    }
    for (id, name) in (1u32..).zip(symbols.names()).filter(|(_, name)| matches(name)) {
        shown += 1;
        if let (Some(at), Some(snapshot)) = (args.at, &mut snapshot) {
            let cells = defined(snapshot, InstrumentId(id), name, at)?;
            match (format.json, format.csv) {
                (true, _) => {
                    let object: serde_json::Map<_, _> =
                        DEFINED.iter().zip(cells).map(|(k, v)| ((*k).to_owned(), json(k, v))).collect();
                    writeln!(out, "{}", serde_json::Value::Object(object)).map_err(output)?;
                }
                (_, true) => writeln!(out, "{}", cells.join(",")).map_err(output)?,
                _ => drop(shown_table.add_row(cells)),
            }
            continue;
        }
        match (format.json, format.csv) {
            (true, _) => writeln!(out, "{}", serde_json::json!({ "id": id, "instrument": name.as_str() })).map_err(output)?,
            (_, true) => writeln!(out, "{id},{name}").map_err(output)?,
            _ => writeln!(out, "{id:>8}  {name}").map_err(output)?,
        }
    }
    if shown > 0 && args.at.is_some() && !format.json && !format.csv {
        writeln!(out, "{shown_table}").map_err(output)?;
    }
    out.flush().map_err(output)?;
    found(shown, "such instrument")
}

/// The JSON value of the cell `text` of a column of [`DEFINED`].
fn json(column: &str, text: String) -> serde_json::Value {
    match (column, text.parse::<u64>()) {
        _ if text.is_empty() || text == "null" => serde_json::Value::Null,
        ("id" | "raw_id", Ok(number)) => number.into(),
        _ => text.into(),
    }
}

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

/// The cells of [`DEFINED`] for `instrument` at the time `at`; empty where there is no definition.
fn defined(snapshot: &mut Snapshot, instrument: InstrumentId, name: &Name, at: Ts) -> Outcome<Vec<String>> {
    let mapping = snapshot.as_of(Series { instrument, kind: Mapping::KIND }, at)?;
    let raw_id = mapping.and_then(|row| row.record.get::<Mapping>().map(|m| m.raw_id.to_string())).unwrap_or_default();
    let row = snapshot.as_of(Series { instrument, kind: Definition::KIND }, at)?;
    let mut cells = vec![instrument.to_string(), name.to_string(), raw_id];
    let columns = ["raw_symbol", "instrument_class", "currency", "min_price_increment", "expiration", "strike_price"];
    for column in columns {
        let value = row.and_then(|row| row.record.schema().column(column).map(|c| c.value(row.record.bytes()).to_string()));
        cells.push(value.unwrap_or_default());
    }
    cells.push(row.map_or_else(String::new, |row| row.index_time.to_string()));
    Ok(cells)
}
