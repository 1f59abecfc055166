//! Owns: moving conditions below an as-of join or a window join, so that the sides read only what is needed.
//!
//! What must hold: a condition on left columns alone holds for a joined row exactly if it holds for the left row, so it moves
//! to the left side. One on left keys alone holds for the right rows that can match, so the right side gets it too. A bound
//! from above of the left time bounds the right time where the match is before it, or in a window around it.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::error::Result;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, Extension, Filter, LogicalPlan, Operator, UserDefinedLogicalNode,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use std::sync::Arc;

use super::node::AsOf;
use crate::horizon::interval;
use crate::relations::extension;
use crate::window::node::WindowJoin;

/// The rule.
#[derive(Debug)]
pub struct PushBelowAsOf;

impl OptimizerRule for PushBelowAsOf {
    fn name(&self) -> &'static str {
        "push_below_asof_join"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = &plan else { return Ok(Transformed::no(plan)) };
        let LogicalPlan::Extension(Extension { node }) = filter.input.as_ref() else { return Ok(Transformed::no(plan)) };
        let Some(join) = Join::of(node.as_ref()) else { return Ok(Transformed::no(plan)) };
        let (mut left, mut right, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for part in split_conjunction_owned(filter.predicate.clone()) {
            if part.is_volatile() || !is_of(&part, join.left().schema()) {
                kept.push(part);
                continue;
            }
            right.extend(join.of_right(&part));
            left.push(part);
        }
        if left.is_empty() {
            return Ok(Transformed::no(plan));
        }
        let side = |parts, side: &LogicalPlan| -> Result<LogicalPlan> {
            match conjunction(parts) {
                Some(all) => Ok(LogicalPlan::Filter(Filter::try_new(all, Arc::new(side.clone()))?)),
                None => Ok(side.clone()),
            }
        };
        let joined = join.with_sides(side(left, join.left())?, side(right, join.right())?)?;
        Ok(Transformed::yes(match conjunction(kept) {
            Some(all) => LogicalPlan::Filter(Filter::try_new(all, Arc::new(joined))?),
            None => joined,
        }))
    }
}

fn is_of(expr: &Expr, schema: &DFSchema) -> bool {
    let columns = expr.column_refs();
    !columns.is_empty() && columns.iter().all(|column| schema.maybe_index_of_column(column).is_some())
}

/// Whether `value` is a constant time.
fn is_time(value: &Expr) -> bool {
    let of = value.get_type(&DFSchema::empty());
    value.column_refs().is_empty() && matches!(of, Ok(DataType::Timestamp(TimeUnit::Nanosecond, None)))
}

/// A join whose sides are sorted by time.
enum Join<'p> {
    AsOf(&'p AsOf),
    Window(&'p WindowJoin),
}

impl Join<'_> {
    fn of(node: &dyn UserDefinedLogicalNode) -> Option<Join<'_>> {
        let node = node.as_any();
        node.downcast_ref().map(Join::AsOf).or_else(|| node.downcast_ref().map(Join::Window))
    }

    fn left(&self) -> &LogicalPlan {
        match self {
            Join::AsOf(join) => &join.left,
            Join::Window(join) => &join.left,
        }
    }

    fn right(&self) -> &LogicalPlan {
        match self {
            Join::AsOf(join) => &join.right,
            Join::Window(join) => &join.right,
        }
    }

    fn with_sides(&self, left: LogicalPlan, right: LogicalPlan) -> Result<LogicalPlan> {
        Ok(match self {
            Join::AsOf(join) => extension(join.with_sides(left, right)?),
            Join::Window(join) => extension(join.with_sides(left, right)?),
        })
    }

    /// From a left time to the last right time that belongs to it, ns; `None`: to the first one instead, if there is such.
    fn last(&self) -> Option<i64> {
        match self {
            Join::AsOf(join) => join.direction.backwards.then_some(join.shift),
            Join::Window(join) => Some(join.window.end),
        }
    }

    /// What the left condition `part` says of right rows that can match.
    fn of_right(&self, part: &Expr) -> Option<Expr> {
        let (on, times) = match self {
            Join::AsOf(join) => (&join.on, &join.times),
            Join::Window(join) => (&join.on, &join.times),
        };
        let pair = |column: &Column| {
            on.iter().find_map(|(left, right)| match (left, right) {
                (Expr::Column(left), Expr::Column(right)) if left == column => Some(right.clone()),
                _ => None,
            })
        };
        if part.column_refs().iter().all(|column| pair(column).is_some()) {
            let moved = part.clone().transform(|expr| {
                Ok(match &expr {
                    Expr::Column(column) => match pair(column) {
                        Some(right) => Transformed::yes(Expr::Column(right)),
                        None => Transformed::no(expr),
                    },
                    _ => Transformed::no(expr),
                })
            });
            return moved.ok().map(|moved| moved.data);
        }
        let (Expr::Column(left), Expr::Column(right)) = (&times.0, &times.1) else { return None };
        let last = self.last();
        let bound = |operator, value: &Expr| {
            let value = match last.filter(|ns| *ns != 0) {
                // Beyond the range of times there is nothing to leave out.
                Some(ns) if ns == i64::MAX || !is_time(value) => return None,
                Some(ns) => value.clone() + interval(ns),
                None => value.clone(),
            };
            Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(Expr::Column(right.clone())), operator, Box::new(value))))
        };
        let is_left = |expr: &Expr| matches!(expr, Expr::Column(column) if column == left);
        match part {
            Expr::BinaryExpr(BinaryExpr { left: a, op, right: value }) if is_left(a) => match op {
                Operator::Lt | Operator::LtEq if last.is_some() => bound(*op, value),
                Operator::Gt | Operator::GtEq if last.is_none() => bound(*op, value),
                Operator::Eq if last.is_some() => bound(Operator::LtEq, value),
                Operator::Eq => bound(Operator::GtEq, value),
                _ => None,
            },
            Expr::Between(between) if !between.negated && is_left(&between.expr) => match last {
                Some(_) => bound(Operator::LtEq, &between.high),
                None => bound(Operator::GtEq, &between.low),
            },
            _ => None,
        }
    }
}
