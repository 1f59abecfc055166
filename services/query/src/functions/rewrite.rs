//! Owns: what aggregates need that a statement does not say: the order of `first` and `last`, the stored integers of prices
//! and sizes, and sums of 64-bit integers that do not wrap.
//!
//! What must hold: names of columns stay as they were.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::first_last::{first_value_udaf, last_value_udaf};
use datafusion::logical_expr::expr::{AggregateFunction, Sort};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, lit};
use datafusion::optimizer::AnalyzerRule;

use super::ordered::{self, Which};
use super::{aggregates, twap};

/// The rule.
#[derive(Debug)]
pub struct Aggregates;

impl AnalyzerRule for Aggregates {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let LogicalPlan::Aggregate(aggregate) = &plan else { return Ok(Transformed::no(plan)) };
            let schema = aggregate.input.schema().clone();
            let names = NamePreserver::new(&plan);
            let rewritten = plan.map_expressions(|expr| {
                let saved = names.save(&expr);
                let changed = expr.transform_up(|expr| of(expr, &schema))?;
                Ok(if changed.transformed { changed.update_data(|expr| saved.restore(expr)) } else { changed })
            })?;
            if rewritten.transformed { rewritten.map_data(LogicalPlan::recompute_schema) } else { Ok(rewritten) }
        })
        .map(|plan| plan.data)
    }

    fn name(&self) -> &'static str {
        "time_series_aggregates"
    }
}

/// The column `name` of the table that `of` is of.
fn beside(of: &Column, name: &str, schema: &DFSchema) -> Option<Column> {
    let column = Column::new(of.relation.clone(), name);
    schema.maybe_index_of_column(&column).map(|_| column)
}

fn of(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::AggregateFunction(function) = &expr else { return Ok(Transformed::no(expr)) };
    match function.func.name() {
        "first" => Ok(ordered(function, Which::First, schema)?.map_or_else(|| Transformed::no(expr), Transformed::yes)),
        "last" => Ok(ordered(function, Which::Last, schema)?.map_or_else(|| Transformed::no(expr), Transformed::yes)),
        twap::NAME if function.params.args.len() == 1 => weighted(function, schema).map(Transformed::yes),
        "exact_sum" | "notional" | "vwap" => raw(function, schema).map(Transformed::yes),
        "sum" => Ok(exact(function, schema)?.map_or_else(|| Transformed::no(expr), Transformed::yes)),
        "avg" => Ok(of_units(function, aggregates::MEAN, schema).map_or_else(|| Transformed::no(expr), Transformed::yes)),
        _ => Ok(Transformed::no(expr)),
    }
}

/// `function` as the value of the row `which` by time and LSN; `None` if there is no time.
fn ordered(function: &AggregateFunction, which: Which, schema: &DFSchema) -> Result<Option<Expr>> {
    let library = match which {
        Which::First => first_value_udaf(),
        Which::Last => last_value_udaf(),
    };
    let mut params = function.params.clone();
    if !params.order_by.is_empty() {
        return Ok(Some(Expr::AggregateFunction(AggregateFunction { func: library, params })));
    }
    let Some(arg) = params.args.first() else { return Ok(None) };
    let of = arg.get_type(schema)?;
    let Some((time, lsn)) = time_and_lsn(arg, schema) else { return Ok(None) };
    let own = ordered::of_time(which, &of).filter(|_| params.null_treatment.is_none() && !params.distinct);
    let Some(func) = own else {
        let ascending = |column| Sort::new(Expr::Column(column), true, false);
        params.order_by = std::iter::once(time).chain(lsn).map(ascending).collect();
        return Ok(Some(Expr::AggregateFunction(AggregateFunction { func: library, params })));
    };
    params.args.extend([Expr::Column(time), lsn.map_or_else(|| lit(0u64), Expr::Column)]);
    Ok(Some(Expr::AggregateFunction(AggregateFunction { func, params })))
}

/// The columns of time and LSN of the table that `arg` is of.
fn time_and_lsn(arg: &Expr, schema: &DFSchema) -> Option<(Column, Option<Column>)> {
    let columns = arg.column_refs();
    let like = columns.iter().next().map_or_else(|| Column::new_unqualified("time"), |column| (*column).clone());
    Some((beside(&like, "time", schema)?, beside(&like, "lsn", schema)))
}

/// `function`, twap, with the time and the LSN of each row.
fn weighted(function: &AggregateFunction, schema: &DFSchema) -> Result<Expr> {
    let mut params = function.params.clone();
    let of = params.args.first().and_then(|arg| time_and_lsn(arg, schema));
    let Some((time, lsn)) = of else {
        return Err(DataFusionError::Plan("twap(x) needs the column time beside x".to_owned()));
    };
    let lsn = lsn.map_or_else(|| lit(0u64), Expr::Column);
    params.args.extend([Expr::Column(time), lsn]);
    Ok(Expr::AggregateFunction(AggregateFunction { func: function.func.clone(), params }))
}

/// `function` of the stored integers.
fn raw(function: &AggregateFunction, schema: &DFSchema) -> Result<Expr> {
    let mut params = function.params.clone();
    for arg in &mut params.args {
        if let Expr::Column(column) = arg
            && let Some(raw) = beside(column, &format!("{}_raw", column.name), schema)
        {
            *arg = Expr::Column(raw);
            continue;
        }
        let is_raw = matches!(arg, Expr::Column(column) if column.name.ends_with("_raw"));
        match arg.get_type(schema)? {
            DataType::Float64 | DataType::Float32 => {}
            DataType::Int64 | DataType::UInt64 if is_raw => {}
            of if of.is_integer() => {
                let name = function.func.name();
                return Err(DataFusionError::Plan(format!("{name} is for prices and sizes; {arg} is neither: use sum")));
            }
            _ => *arg = Expr::Cast(Cast::new(Box::new(arg.clone()), DataType::Float64)),
        }
    }
    Ok(Expr::AggregateFunction(AggregateFunction { func: function.func.clone(), params }))
}

/// `function` as the aggregate `name` of the stored integers; `None` if its argument is no price or size.
fn of_units(function: &AggregateFunction, name: &str, schema: &DFSchema) -> Option<Expr> {
    let [Expr::Column(column)] = function.params.args.as_slice() else { return None };
    let raw = beside(column, &format!("{}_raw", column.name), schema)?;
    let func = aggregates::all().into_iter().find(|f| f.name() == name)?;
    let mut params = function.params.clone();
    params.args = vec![Expr::Column(raw)];
    (!params.distinct).then(|| Expr::AggregateFunction(AggregateFunction { func, params }))
}

/// A sum of 64-bit integers as a sum of decimals: it is exact, and does not wrap.
fn exact(function: &AggregateFunction, schema: &DFSchema) -> Result<Option<Expr>> {
    if let Some(sum) = of_units(function, aggregates::SUM, schema) {
        return Ok(Some(sum));
    }
    let [arg] = function.params.args.as_slice() else { return Ok(None) };
    if !matches!(arg.get_type(schema)?, DataType::Int64 | DataType::UInt64) {
        return Ok(None);
    }
    let mut params = function.params.clone();
    params.args = vec![Expr::Cast(Cast::new(Box::new(arg.clone()), DataType::Decimal128(20, 0)))];
    Ok(Some(Expr::AggregateFunction(AggregateFunction { func: function.func.clone(), params })))
}
