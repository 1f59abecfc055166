//! Owns: an as-of join in a logical plan, and its way from SQL.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{Column, DFSchema, DFSchemaRef, JoinType};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::builder::build_join_schema;
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{BinaryExpr, Expr, Extension, LogicalPlan, Operator, UserDefinedLogicalNodeCore};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Ident, JoinConstraint, JoinOperator, TableFactor, TableWithJoins, VisitMut, VisitorMut,
};

use super::Direction;

/// The function that carries a tolerance through the parser: `TOLERANCE 5s` is written into the match condition.
pub const TOLERANCE: &str = "within_tolerance";

/// An as-of join.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AsOf {
    /// The sides.
    pub left: LogicalPlan,
    /// See `left`.
    pub right: LogicalPlan,
    /// Pairs of keys that are equal.
    pub on: Vec<(Expr, Expr)>,
    /// The times.
    pub times: (Expr, Expr),
    /// Which right row counts.
    pub direction: Direction,
    /// The greatest distance in time, ns.
    pub tolerance: Option<u64>,
    /// Added to left times before they are compared, ns.
    pub shift: i64,
    schema: DFSchemaRef,
}

impl PartialOrd for AsOf {
    fn partial_cmp(&self, other: &AsOf) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl AsOf {
    /// The join of `left` and `right`.
    ///
    /// # Errors
    /// Both sides have a column of one name and table.
    pub fn new(
        (left, right): (LogicalPlan, LogicalPlan),
        on: Vec<(Expr, Expr)>,
        times: (Expr, Expr),
        direction: Direction,
        tolerance: Option<u64>,
    ) -> Result<AsOf> {
        let schema = Arc::new(build_join_schema(left.schema(), right.schema(), &JoinType::Left)?);
        Ok(AsOf { left, right, on, times, direction, tolerance, shift: 0, schema })
    }

    /// The join with other sides.
    ///
    /// # Errors
    /// As [`AsOf::new`].
    pub fn with_sides(&self, left: LogicalPlan, right: LogicalPlan) -> Result<AsOf> {
        let join = AsOf::new((left, right), self.on.clone(), self.times.clone(), self.direction, self.tolerance)?;
        Ok(join.shifted(self.shift))
    }

    /// The join at `ns` after the left times.
    #[must_use]
    pub fn shifted(self, ns: i64) -> AsOf {
        AsOf { shift: ns, ..self }
    }

    /// Its columns.
    pub fn columns(&self) -> Vec<Column> {
        self.schema.columns()
    }
}

impl UserDefinedLogicalNodeCore for AsOf {
    fn name(&self) -> &'static str {
        "AsOfJoin"
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
        write!(f, "AsOfJoin: {} {} {}", self.times.0, self.direction.operator(), self.times.1)?;
        if self.shift != 0 {
            write!(f, ", shift={} ns", self.shift)?;
        }
        for (left, right) in &self.on {
            write!(f, ", {left} = {right}")?;
        }
        self.tolerance.map_or(Ok(()), |ns| write!(f, ", tolerance={ns} ns"))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<AsOf> {
        let wrong = || DataFusionError::Internal("an as-of join has two sides and its keys".to_owned());
        let [left, right] = <[LogicalPlan; 2]>::try_from(inputs).map_err(|_| wrong())?;
        let (pairs, rest) = exprs.as_chunks::<2>();
        let ([keys @ .., times], []) = (pairs, rest) else { return Err(wrong()) };
        let pair = |[left, right]: &[Expr; 2]| (left.clone(), right.clone());
        let join = AsOf::new((left, right), keys.iter().map(pair).collect(), pair(times), self.direction, self.tolerance)?;
        Ok(join.shifted(self.shift))
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        needed([&self.left, &self.right], &self.on, &self.times, output_columns)
    }
}

/// The columns of `sides` that a join by `on` and `times` needs for the columns `output` of itself: those of the sides one after
/// the other, and perhaps more.
pub fn needed(sides: [&LogicalPlan; 2], on: &[(Expr, Expr)], times: &(Expr, Expr), output: &[usize]) -> Option<Vec<Vec<usize>>> {
    let [left_schema, right_schema] = sides.map(|side| side.schema());
    let (count, more) = (left_schema.fields().len(), right_schema.fields().len());
    let used = |schema: &DFSchema, exprs: &mut dyn Iterator<Item = &Expr>| -> Option<Vec<usize>> {
        let mut used = Vec::new();
        for expr in exprs {
            for column in expr.column_refs() {
                used.push(schema.maybe_index_of_column(column)?);
            }
        }
        Some(used)
    };
    let mut left = used(left_schema, &mut on.iter().map(|(left, _)| left).chain([&times.0]))?;
    let mut right = used(right_schema, &mut on.iter().map(|(_, right)| right).chain([&times.1]))?;
    // Of equal times the greatest LSN counts.
    right.extend(lsn_of(right_schema));
    left.extend(output.iter().filter(|at| **at < count));
    right.extend(output.iter().filter_map(|at| at.checked_sub(count)).filter(|at| *at < more));
    for side in [&mut left, &mut right] {
        side.sort_unstable();
        side.dedup();
    }
    Some(vec![left, right])
}

/// The column `lsn` of a side, if there is exactly one.
pub fn lsn_of(schema: &DFSchema) -> Option<usize> {
    let mut all = schema.fields().iter().enumerate().filter(|(_, field)| field.name() == "lsn").map(|(at, _)| at);
    all.next().filter(|_| all.next().is_none())
}

/// Wraps each as-of join of a statement so that the planner of relations gets it.
pub fn wrap<V: VisitMut>(statement: &mut V) {
    struct Wrap;
    impl VisitorMut for Wrap {
        type Break = ();

        fn post_visit_query(&mut self, query: &mut datafusion::sql::sqlparser::ast::Query) -> std::ops::ControlFlow<()> {
            wrap_body(&mut query.body);
            std::ops::ControlFlow::Continue(())
        }
    }
    // It never breaks.
    let _continued = statement.visit(&mut Wrap);
}

fn wrap_body(body: &mut datafusion::sql::sqlparser::ast::SetExpr) {
    use datafusion::sql::sqlparser::ast::SetExpr;
    match body {
        SetExpr::Select(select) => select.from.iter_mut().for_each(wrap_joins),
        SetExpr::SetOperation { left, right, .. } => {
            wrap_body(left);
            wrap_body(right);
        }
        _ => {}
    }
}

/// `a JOIN b ASOF JOIN c JOIN d` becomes `((a JOIN b) ASOF JOIN c) JOIN d`.
fn wrap_joins(table: &mut TableWithJoins) {
    let is_asof = |operator: &JoinOperator| matches!(operator, JoinOperator::AsOf { .. });
    while let Some(at) = table.joins.iter().position(|join| is_asof(&join.join_operator)) {
        let after = table.joins.split_off(at + 1);
        let join = table.joins.pop();
        let before = std::mem::take(&mut table.joins);
        let left = if before.is_empty() {
            table.relation.clone()
        } else {
            let left = TableWithJoins { relation: table.relation.clone(), joins: before };
            TableFactor::NestedJoin { table_with_joins: Box::new(left), alias: None }
        };
        let nested = TableWithJoins { relation: left, joins: join.into_iter().collect() };
        table.relation = TableFactor::NestedJoin { table_with_joins: Box::new(nested), alias: None };
        table.joins = after;
    }
}

/// The as-of join of `left` and `right`.
///
/// # Errors
/// The conditions are none of an as-of join.
pub fn plan(
    (left, right): (LogicalPlan, LogicalPlan),
    match_condition: &SqlExpr,
    constraint: &JoinConstraint,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let both = left.schema().join(right.schema())?;
    let condition = context.sql_to_expr(match_condition.clone(), &both)?;
    let (times, direction, tolerance) = condition_of(condition, left.schema(), right.schema())?;
    let on = keys((&left, &right), constraint, context)?;
    let node = AsOf::new((left, right), on, times, direction, tolerance)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// The pairs of keys that `constraint` says are equal.
///
/// # Errors
/// It says something else.
pub fn keys(
    (left, right): (&LogicalPlan, &LogicalPlan),
    constraint: &JoinConstraint,
    context: &mut dyn RelationPlannerContext,
) -> Result<Vec<(Expr, Expr)>> {
    let both = left.schema().join(right.schema())?;
    let mut on = Vec::new();
    match constraint {
        JoinConstraint::On(expr) => {
            for pair in split_conjunction_owned(context.sql_to_expr(expr.clone(), &both)?) {
                on.push(key(pair, left.schema(), right.schema())?);
            }
        }
        JoinConstraint::Using(names) => {
            for name in names {
                let parts: Vec<Ident> = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
                let [name] = <[Ident; 1]>::try_from(parts).map_err(|_| wrong("USING names columns"))?;
                let expr = SqlExpr::Identifier(name);
                on.push((context.sql_to_expr(expr.clone(), left.schema())?, context.sql_to_expr(expr, right.schema())?));
            }
        }
        JoinConstraint::None => {}
        JoinConstraint::Natural => return Err(wrong("an ASOF JOIN names its keys")),
    }
    Ok(on)
}

fn wrong(reason: &str) -> DataFusionError {
    DataFusionError::Plan(format!("{reason}; write a ASOF JOIN b MATCH_CONDITION (a.time >= b.time) ON a.symbol = b.symbol"))
}

fn is_of(expr: &Expr, schema: &DFSchema) -> bool {
    let columns = expr.column_refs();
    !columns.is_empty() && columns.iter().all(|column| schema.maybe_index_of_column(column).is_some())
}

/// The times, the direction and the tolerance of a match condition.
fn condition_of(expr: Expr, left: &DFSchema, right: &DFSchema) -> Result<((Expr, Expr), Direction, Option<u64>)> {
    let (mut found, mut tolerance) = (None, None);
    for part in split_conjunction_owned(expr) {
        match part {
            Expr::BinaryExpr(BinaryExpr { left: a, op, right: b }) if Direction::of(op).is_some() && found.is_none() => {
                let (a, op, b) = if is_of(&a, left) && is_of(&b, right) {
                    (*a, op, *b)
                } else if is_of(&a, right) && is_of(&b, left) {
                    (*b, op.swap().unwrap_or(op), *a)
                } else {
                    return Err(wrong("the MATCH_CONDITION of an ASOF JOIN compares a time of each side"));
                };
                found = Direction::of(op).map(|direction| ((a, b), direction));
            }
            Expr::ScalarFunction(function) if function.name() == TOLERANCE => {
                tolerance = function.args.first().and_then(|ns| match ns {
                    Expr::Literal(datafusion::common::ScalarValue::Int64(Some(ns)), _) => u64::try_from(*ns).ok(),
                    _ => None,
                });
            }
            _ => return Err(wrong("the MATCH_CONDITION of an ASOF JOIN is one comparison with >=, >, <= or <")),
        }
    }
    let (times, direction) = found.ok_or_else(|| wrong("the MATCH_CONDITION of an ASOF JOIN has no comparison of times"))?;
    Ok((times, direction, tolerance))
}

fn key(expr: Expr, left: &DFSchema, right: &DFSchema) -> Result<(Expr, Expr)> {
    if let Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Eq, right: b }) = expr {
        if is_of(&a, left) && is_of(&b, right) {
            return Ok((*a, *b));
        }
        if is_of(&a, right) && is_of(&b, left) {
            return Ok((*b, *a));
        }
    }
    Err(wrong("the ON of an ASOF JOIN has equalities of a column of each side"))
}
