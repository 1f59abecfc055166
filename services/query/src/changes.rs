//! Owns: which part of a statement's answer records that came since can have changed, from its plan.
//!
//! | shape | the answer | what is read again |
//! |---|---|---|
//! | rows | each row is of one record of one table | the records since |
//! | sampled | a row for each bucket of one table's time, and keys | from the bucket of the oldest record since on |
//! | latest | the newest record of each key of one table | the records since |
//! | any | anything else | everything |
//!
//! What must hold: a shape is named only where reading again what it says gives the answer that reading everything gives. A
//! function that differs from one moment to the next, a limit or a subquery makes it any.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::logical_expr::{
    Aggregate, Expr, Extension, LogicalPlan, LogicalPlanBuilder, Projection, Sort, TableScan, Volatility,
};

use crate::asof::node::lsn_of;
use crate::latest::Latest;
use crate::schema::KindTable;

/// What of an answer can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each row is of one record.
    Rows,
    /// A row for each bucket and keys.
    Sampled {
        /// The column of the bucket's start.
        bucket: usize,
    },
    /// The newest record of each key.
    Latest {
        /// How many keys there are.
        keys: usize,
    },
    /// Anything.
    Any,
}

impl Shape {
    /// The shape of the answer of `plan`; `kinds` are the tables of records.
    pub fn of(plan: &LogicalPlan, kinds: &[Arc<KindTable>]) -> Shape {
        let is_kind = |scan: &TableScan| kinds.iter().any(|kind| kind.name(kinds) == scan.table_name.table());
        let (mut tables, mut is_of_kind, mut has_subquery, mut is_fixed) = (0, true, false, true);
        let visited = plan.apply(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                tables += 1;
                is_of_kind &= is_kind(scan);
            }
            for expr in node.expressions() {
                has_subquery |= expr.exists(|expr| Ok(is_subquery(expr)))?;
                is_fixed &= !expr.exists(|expr| Ok(is_of_the_moment(expr)))?;
            }
            Ok(TreeNodeRecursion::Continue)
        });
        if visited.is_err() || tables != 1 || !is_of_kind || has_subquery {
            return Shape::Any;
        }
        if is_by_row(plan) {
            return Shape::Rows;
        }
        match (is_fixed, sampled(plan), latest(plan)) {
            (true, Some((_, _, bucket)), _) => Shape::Sampled { bucket },
            (true, None, Some((_, node))) => Shape::Latest { keys: node.keys.len() },
            _ => Shape::Any,
        }
    }
}

fn is_subquery(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_))
}

/// Whether `expr` calls a function like `now()`.
pub fn is_of_the_moment(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
        Expr::AggregateFunction(call) => call.func.signature().volatility == Volatility::Volatile,
        Expr::ScalarVariable(..) => true,
        _ => false,
    }
}

/// Whether `plan` is columns and conditions of a table.
fn is_by_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.inputs().iter().all(|input| is_by_row(input))
        }
        LogicalPlan::TableScan(_) => true,
        _ => false,
    }
}

/// The columns of an answer, below an order if it has one.
fn columns(plan: &LogicalPlan) -> Option<&Projection> {
    match plan {
        LogicalPlan::Sort(Sort { input, fetch: None, .. }) => columns(input),
        LogicalPlan::Projection(columns) => Some(columns),
        _ => None,
    }
}

/// The groups of a sampled answer, its bucket, and which column that is.
fn sampled(plan: &LogicalPlan) -> Option<(&Aggregate, &Expr, usize)> {
    let columns = columns(plan)?;
    let mut below = columns.input.as_ref();
    // HAVING.
    while let LogicalPlan::Filter(filter) = below {
        below = &filter.input;
    }
    let LogicalPlan::Aggregate(groups) = below else { return None };
    if !is_by_row(&groups.input) {
        return None;
    }
    let bucket = groups.group_expr.iter().find(|expr| is_bucket(expr))?;
    let name = Column::from_name(bucket.schema_name().to_string());
    let is_it = |expr: &Expr| matches!(expr.clone().unalias(), Expr::Column(column) if column == name);
    let at = columns.expr.iter().position(is_it)?;
    Some((groups, bucket, at))
}

/// Whether `expr` is the start of a bucket of the time, which does not fall where the time rises, and not counted from a first row.
fn is_bucket(expr: &Expr) -> bool {
    let Expr::ScalarFunction(call) = expr else { return false };
    let [length, time, zone @ ..] = call.args.as_slice() else { return false };
    let is_time = matches!(time, Expr::Column(column) if column.name == "time");
    let is_constant = |expr: &Expr| matches!(expr, Expr::Literal(..));
    call.name() == "time_bucket" && is_constant(length) && is_time && zone.len() <= 1 && zone.iter().all(is_constant)
}

/// The columns of an answer that has the newest row of each key, and what makes it so.
fn latest(plan: &LogicalPlan) -> Option<(&Projection, &Latest)> {
    let columns = columns(plan)?;
    let mut below = columns.input.as_ref();
    while let LogicalPlan::SubqueryAlias(alias) = below {
        below = &alias.input;
    }
    let LogicalPlan::Extension(Extension { node }) = below else { return None };
    let node = node.as_any().downcast_ref::<Latest>()?;
    (is_by_row(&node.input) && lsn_of(node.input.schema()).is_some()).then_some((columns, node))
}

fn not_of_the_shape() -> DataFusionError {
    DataFusionError::Internal("a followed statement has another plan than before".to_owned())
}

/// The plan that finds the first bucket of the rows that `plan`, a sampled one, reads.
///
/// # Errors
/// It is of another shape.
pub fn first_bucket(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let (groups, bucket, _) = sampled(plan).ok_or_else(not_of_the_shape)?;
    LogicalPlanBuilder::from(groups.input.as_ref().clone())
        .aggregate(Vec::<Expr>::new(), vec![min(bucket.clone()).alias("first")])?
        .build()
}

/// `plan`, an answer of the newest rows, with the time, the LSN and the keys of each row after its columns.
///
/// # Errors
/// It is of another shape.
pub fn with_keys(plan: &LogicalPlan) -> Result<LogicalPlan> {
    if let LogicalPlan::Sort(sort) = plan {
        return Ok(LogicalPlan::Sort(Sort { input: Arc::new(with_keys(&sort.input)?), ..sort.clone() }));
    }
    let (columns, node) = latest(plan).ok_or_else(not_of_the_shape)?;
    // The alias above the rows, if there is one, names their columns.
    let schema: &DFSchema = columns.input.schema();
    let inner = node.input.schema();
    let outer = |expr: &Expr| -> Result<Expr> {
        let Expr::Column(column) = expr else { return Err(not_of_the_shape()) };
        let at = inner.index_of_column(column)?;
        Ok(Expr::Column(Column::from(schema.qualified_field(at))))
    };
    let lsn = lsn_of(inner).ok_or_else(not_of_the_shape)?;
    let lsn = Expr::Column(Column::from(schema.qualified_field(lsn)));
    let keys = node.keys.iter().map(outer).collect::<Result<Vec<Expr>>>()?;
    let extra = [outer(&node.time)?, lsn].into_iter().chain(keys);
    let named = extra.enumerate().map(|(at, expr)| expr.alias(format!("__{at}")));
    let exprs = columns.expr.iter().cloned().chain(named).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, columns.input.clone())?))
}

/// The columns of `schema` without the last `extra` ones.
pub fn without(schema: &Schema, extra: usize) -> Schema {
    let kept = schema.fields().len().saturating_sub(extra);
    Schema::new(schema.fields().iter().take(kept).cloned().collect::<Vec<_>>())
}
