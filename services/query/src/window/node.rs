//! Owns: a window join in a logical plan, and its way from SQL.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef, JoinType};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::builder::build_join_schema;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};

use super::{ROW, Window};
use crate::asof::node::needed;

/// A window join.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowJoin {
    /// The sides.
    pub left: LogicalPlan,
    /// See `left`.
    pub right: LogicalPlan,
    /// Pairs of keys that are equal.
    pub on: Vec<(Expr, Expr)>,
    /// The times.
    pub times: (Expr, Expr),
    /// The window.
    pub window: Window,
    schema: DFSchemaRef,
}

impl PartialOrd for WindowJoin {
    fn partial_cmp(&self, other: &WindowJoin) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl WindowJoin {
    /// The join of `left` and `right`.
    ///
    /// # Errors
    /// Both sides have a column of one name and table.
    pub fn new(
        (left, right): (LogicalPlan, LogicalPlan),
        on: Vec<(Expr, Expr)>,
        times: (Expr, Expr),
        window: Window,
    ) -> Result<WindowJoin> {
        let both = build_join_schema(left.schema(), right.schema(), &JoinType::Left)?;
        let mut fields: Vec<_> = both.iter().map(|(table, field)| (table.cloned(), field.clone())).collect();
        fields.push((None, Arc::new(Field::new(ROW, DataType::Int64, false))));
        let schema = Arc::new(DFSchema::new_with_metadata(fields, both.metadata().clone())?);
        Ok(WindowJoin { left, right, on, times, window, schema })
    }

    /// The join with other sides.
    ///
    /// # Errors
    /// As [`WindowJoin::new`].
    pub fn with_sides(&self, left: LogicalPlan, right: LogicalPlan) -> Result<WindowJoin> {
        WindowJoin::new((left, right), self.on.clone(), self.times.clone(), self.window)
    }
}

impl UserDefinedLogicalNodeCore for WindowJoin {
    fn name(&self) -> &'static str {
        "WindowJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let keys = self.on.iter().flat_map(|(left, right)| [left.clone(), right.clone()]);
        keys.chain([self.times.0.clone(), self.times.1.clone()]).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window { start, end, prevailing } = self.window;
        write!(f, "WindowJoin: {} in {} + [{start}, {end}] ns, prevailing={prevailing}", self.times.1, self.times.0)?;
        self.on.iter().try_for_each(|(left, right)| write!(f, ", {left} = {right}"))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<WindowJoin> {
        let wrong = || DataFusionError::Internal("a window join has two sides and its keys".to_owned());
        let [left, right] = <[LogicalPlan; 2]>::try_from(inputs).map_err(|_| wrong())?;
        let (pairs, rest) = exprs.as_chunks::<2>();
        let ([keys @ .., times], []) = (pairs, rest) else { return Err(wrong()) };
        let pair = |[left, right]: &[Expr; 2]| (left.clone(), right.clone());
        WindowJoin::new((left, right), keys.iter().map(pair).collect(), pair(times), self.window)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        needed([&self.left, &self.right], &self.on, &self.times, output_columns)
    }
}

/// The window join of `left` and `right` by the keys `on` and their columns `time`.
///
/// # Errors
/// A side has no column `time`.
pub fn plan(sides: (LogicalPlan, LogicalPlan), on: Vec<(Expr, Expr)>, window: Window) -> Result<LogicalPlan> {
    let times = (time_of(sides.0.schema())?, time_of(sides.1.schema())?);
    let node = WindowJoin::new(sides, on, times, window)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// The first column `time` of a side.
///
/// # Errors
/// There is none.
pub fn time_of(schema: &DFSchema) -> Result<Expr> {
    let found = schema.iter().find(|(_, field)| field.name() == "time");
    let column = found.map(|(table, field)| datafusion::common::Column::new(table.cloned(), field.name()));
    column.map(Expr::Column).ok_or_else(|| DataFusionError::Plan("each side of the join needs a column time".to_owned()))
}
