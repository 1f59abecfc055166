//! Owns: moving conditions below an as-of join, so that the sides read only what is needed.
//!
//! What must hold: a condition on left columns alone holds for a joined row exactly if it holds for the left row, so it moves
//! to the left side. One on left keys alone holds for the right rows that can match, so the right side gets it too. A bound
//! from above of the left time bounds the right time where the match is before it.

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema};
use datafusion::error::Result;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, Extension, Filter, LogicalPlan, Operator};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use std::sync::Arc;

use super::node::AsOf;

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
        let Some(join) = node.as_any().downcast_ref::<AsOf>() else { return Ok(Transformed::no(plan)) };
        let (mut left, mut right, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for part in split_conjunction_owned(filter.predicate.clone()) {
            if part.is_volatile() || !is_of(&part, join.left.schema()) {
                kept.push(part);
                continue;
            }
            right.extend(of_right(&part, join));
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
        let node = join.with_sides(side(left, &join.left)?, side(right, &join.right)?)?;
        let joined = LogicalPlan::Extension(Extension { node: Arc::new(node) });
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

/// What the left condition `part` says of right rows that can match.
fn of_right(part: &Expr, join: &AsOf) -> Option<Expr> {
    let pair = |column: &Column| {
        join.on.iter().find_map(|(left, right)| match (left, right) {
            (Expr::Column(left), Expr::Column(right)) if left == column => Some(right.clone()),
            _ => None,
        })
    };
    let columns = part.column_refs();
    if columns.iter().all(|column| pair(column).is_some()) {
        use datafusion::common::tree_node::TreeNode;
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
    let (Expr::Column(left), Expr::Column(right)) = (&join.times.0, &join.times.1) else { return None };
    let bound = |operator, value: &Expr| {
        Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(Expr::Column(right.clone())), operator, Box::new(value.clone()))))
    };
    match part {
        Expr::BinaryExpr(BinaryExpr { left: a, op, right: value }) if matches!(a.as_ref(), Expr::Column(c) if c == left) => {
            match op {
                Operator::Lt | Operator::LtEq if join.direction.backwards => bound(*op, value),
                Operator::Gt | Operator::GtEq if !join.direction.backwards => bound(*op, value),
                Operator::Eq if join.direction.backwards => bound(Operator::LtEq, value),
                Operator::Eq => bound(Operator::GtEq, value),
                _ => None,
            }
        }
        Expr::Between(between) if !between.negated && matches!(between.expr.as_ref(), Expr::Column(c) if c == left) => {
            if join.direction.backwards { bound(Operator::LtEq, &between.high) } else { bound(Operator::GtEq, &between.low) }
        }
        _ => None,
    }
}
