//! Owns: horizon joins: `a HORIZON JOIN b ON a.symbol = b.symbol RANGE FROM -5s TO 5s STEP 1s AS h`, or `LIST (0s, 1s, 5s) AS h`.
//!
//! Each left row appears once for each offset, with the newest right row at its time plus that offset, as in an as-of join. The
//! columns `h.offset` (ns) and `h.time` say which offset a row is of, and the time at which the right side was looked up. Averages
//! by `h.offset` are the mark-outs of trades.
//!
//! What must hold: an offset that has no right row gives nulls, and never drops a left row.

use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};

use crate::asof::Direction;
use crate::asof::node::AsOf;
use crate::relations::extension;
use crate::window::node::time_of;

/// `ns` as an interval of SQL.
pub fn interval(ns: i64) -> Expr {
    lit(ScalarValue::new_interval_mdn(0, 0, ns))
}

/// The horizon join of `left` and `right` by the keys `on` at `offsets`, called `name`.
///
/// # Errors
/// A side has no column `time`.
pub fn plan((left, right): (LogicalPlan, LogicalPlan), on: &[(Expr, Expr)], name: &str, offsets: &[i64]) -> Result<LogicalPlan> {
    let times = (time_of(left.schema())?, time_of(right.schema())?);
    let direction = Direction { backwards: true, inclusive: true };
    let mut all: Option<LogicalPlanBuilder> = None;
    let mut names = Vec::new();
    for ns in offsets {
        let sides = (left.clone(), right.clone());
        let join = AsOf::new(sides, on.to_vec(), times.clone(), direction, None)?.shifted(*ns);
        names = join.columns();
        names.extend(["offset", "time"].map(|column| Column::new(Some(name), column)));
        let mut columns: Vec<Expr> = join.columns().into_iter().map(Expr::Column).collect();
        columns.push(lit(*ns).alias_qualified(Some(name), "offset"));
        columns.push((times.0.clone() + interval(*ns)).alias_qualified(Some(name), "time"));
        // Each part gets names without tables, because a union has none.
        let columns = columns.into_iter().enumerate().map(|(at, expr)| expr.unalias().alias(format!("horizon_{at}")));
        let part = LogicalPlanBuilder::from(extension(join)).project(columns)?;
        all = Some(match all {
            None => part,
            Some(all) => all.union(part.build()?)?,
        });
    }
    let Some(all) = all else { return Ok(left) };
    let named = names.into_iter().enumerate().map(|(at, column)| {
        Expr::Column(Column::new_unqualified(format!("horizon_{at}"))).alias_qualified(column.relation, column.name)
    });
    all.project(named)?.build()
}
