//! Owns: `replay(kind, ...)`: the records of several kinds as one table.
//!
//! What must hold: a column has one type. Conditions on the rows restrict what is read of each kind, as they do in its own table, and
//! `ORDER BY time, lsn` merges the kinds without a sort.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, ident, lit};

use super::Call;
use crate::catalog::Tables;

/// The table.
pub(super) fn table(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    let tables = Tables(call.moment().clone());
    let mut kinds: Vec<(&str, Arc<dyn TableProvider>)> = Vec::new();
    for at in 0..call.arguments.len() {
        let name = call.text(at)?;
        let table =
            tables.of_kind(name)?.ok_or_else(|| call.wrong(&format!("there is no kind '{name}'; the table kinds lists them")))?;
        if kinds.iter().any(|(other, _)| *other == name) {
            return Err(call.wrong(&format!("kind '{name}' is named twice")));
        }
        kinds.push((name, table));
    }
    let mut columns: Vec<(String, DataType)> = Vec::new();
    for (name, table) in &kinds {
        for field in table.schema().fields() {
            let column = column_of(name, field, &columns);
            if !columns.iter().any(|(other, _)| *other == column) {
                columns.push((column, field.data_type().clone()));
            }
        }
    }
    let mut all: Option<LogicalPlanBuilder> = None;
    for (name, table) in kinds {
        let of = of_kind(name, table, &columns)?;
        all = Some(match all {
            None => LogicalPlanBuilder::from(of),
            Some(before) => before.union(of)?,
        });
    }
    let all = all.ok_or_else(|| call.wrong("it names no kind"))?;
    Ok(Arc::new(ViewTable::new(all.build()?, None)))
}

/// The column of the table for `field` of the kind `name`. Where `columns` has one of that name and another type, the kind's name comes
/// first.
fn column_of(name: &str, field: &Field, columns: &[(String, DataType)]) -> String {
    match columns.iter().find(|(other, _)| other == field.name()) {
        Some((_, of)) if of != field.data_type() => format!("{name}_{}", field.name()),
        _ => field.name().clone(),
    }
}

/// The rows of the kind `name`, with null for `columns` that it does not have.
fn of_kind(name: &str, table: Arc<dyn TableProvider>, columns: &[(String, DataType)]) -> Result<LogicalPlan> {
    let schema = table.schema();
    let mut exprs: Vec<Expr> = Vec::with_capacity(columns.len() + 1);
    for (column, of) in columns {
        let field = schema.fields().iter().find(|field| column_of(name, field, columns) == *column && field.data_type() == of);
        exprs.push(match field {
            Some(field) => ident(field.name()).alias(column),
            None => lit(ScalarValue::try_from(of)?).alias(column),
        });
        if column == "time" {
            exprs.push(lit(name).alias("kind"));
        }
    }
    LogicalPlanBuilder::scan(name, provider_as_source(table), None)?.project(exprs)?.build()
}
