//! Owns: what the page lists and completes: tables with their columns, functions, instruments.
//!
//! What must hold: an answer has a bounded number of instruments, and says how many there are.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::catalog::SchemaProvider;
use hyper::{Response, StatusCode};
use serde_json::{Value as Json, json};

use super::Console;
use super::routes::{Body, json, parameter};
use super::values::type_name;
use crate::catalog::Tables;
use crate::engine::Settings;
use crate::failure::QueryError;
use crate::names::Names;
use crate::prompt::KEYWORDS;

/// Instruments of an answer, if the request does not say.
const SYMBOLS: usize = 200;
/// Most instruments of an answer.
const SYMBOLS_MAX: usize = 1000;

/// The names of instruments in their order.
type Sorted = Arc<Vec<String>>;

/// Lists that take time to make.
#[derive(Default)]
pub(super) struct Lists {
    /// The names of the instruments in their order, and of which instruments they are.
    symbols: Mutex<Option<(Arc<Names>, Sorted)>>,
    /// The system tables: their columns never change, and to make one reads all it has.
    system: Mutex<Option<Vec<Json>>>,
}

impl Lists {
    fn symbols(&self, names: &Arc<Names>) -> Sorted {
        // A panic leaves nothing of it half changed: it is replaced as a whole.
        let mut kept = self.symbols.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, symbols)) = kept.as_ref()
            && Arc::ptr_eq(of, names)
        {
            return symbols.clone();
        }
        let symbols = Arc::new(names.all());
        *kept = Some((names.clone(), symbols.clone()));
        symbols
    }
}

/// Keywords and functions.
pub(super) fn words(console: &Console) -> Result<Response<Body>, QueryError> {
    let keywords: Vec<&str> = KEYWORDS.split_whitespace().collect();
    Ok(json(StatusCode::OK, &json!({ "keywords": keywords, "functions": console.engine.functions()? })))
}

fn listed(name: &str, schema: &arrow::datatypes::Schema, is_system: bool) -> Json {
    let columns = schema.fields().iter().map(|field| json!({ "name": field.name(), "type": type_name(field.data_type()) }));
    json!({ "name": name, "system": is_system, "columns": columns.collect::<Json>() })
}

/// The tables, with their columns.
pub(super) async fn tables(console: &Console) -> Result<Response<Body>, QueryError> {
    let moment = console.engine.moment(&Settings::default())?;
    let kinds = moment.kinds.iter().map(|kind| (kind.name(&moment.kinds), kind));
    let mut all: Vec<Json> = kinds.map(|(name, kind)| listed(&name, &kind.arrow, false)).collect();
    let kept = console.lists.system.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let system = match kept {
        Some(system) => system,
        None => {
            let (tables, mut system) = (Tables(moment.clone()), Vec::new());
            for name in tables.table_names().split_off(moment.kinds.len()) {
                if let Some(table) = tables.table(&name).await? {
                    system.push(listed(&name, &table.schema(), true));
                }
            }
            *console.lists.system.lock().unwrap_or_else(PoisonError::into_inner) = Some(system.clone());
            system
        }
    };
    all.extend(system);
    Ok(json(StatusCode::OK, &json!({ "tables": all })))
}

/// Instruments: those that begin with the parameter `prefix`, or contain `contains` in any case.
pub(super) fn symbols(console: &Console, query: Option<&str>) -> Result<Response<Body>, QueryError> {
    let symbols = console.lists.symbols(&console.engine.moment(&Settings::default())?.names);
    let most = parameter(query, "limit").and_then(|text| text.parse().ok()).unwrap_or(SYMBOLS).min(SYMBOLS_MAX);
    let prefix = parameter(query, "prefix").unwrap_or_default();
    let contains = parameter(query, "contains").unwrap_or_default().to_ascii_lowercase();
    let is_meant = |symbol: &&String| symbol.starts_with(&prefix) && symbol.to_ascii_lowercase().contains(&contains);
    let mut found: Vec<&String> = symbols.iter().filter(is_meant).take(most.saturating_add(1)).collect();
    let has_more = found.len() > most;
    found.truncate(most);
    Ok(json(StatusCode::OK, &json!({ "symbols": found, "more": has_more, "count": symbols.len() })))
}
