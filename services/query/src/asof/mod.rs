//! Owns: as-of joins: `a ASOF JOIN b MATCH_CONDITION (a.time >= b.time) ON a.symbol = b.symbol [TOLERANCE 5s]`.
//!
//! Each row of the left side appears once, with the newest row of the right side that is not after it (`>=`; `>`: before it;
//! `<=`, `<`: the first that is not before it, after it), among the rows with equal keys; with nulls if there is none, or if
//! it is further away than the tolerance. Of right rows with equal times the one with the greatest LSN counts, if the right
//! side has the column `lsn`; for `<=` and `<` the one with the least.
//!
//! `node` is the join in a plan, `push` moves conditions below it, `exec` merges two sorted sides in constant memory.

pub mod exec;
pub mod node;
pub mod push;

use datafusion::logical_expr::Operator;

/// Which right row belongs to a left row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Direction {
    /// Whether it is the last one before the left row; otherwise the first one after it.
    pub backwards: bool,
    /// Whether a row of the same time counts.
    pub inclusive: bool,
}

impl Direction {
    /// The direction of `left operator right`.
    pub fn of(operator: Operator) -> Option<Direction> {
        let (backwards, inclusive) = match operator {
            Operator::GtEq => (true, true),
            Operator::Gt => (true, false),
            Operator::LtEq => (false, true),
            Operator::Lt => (false, false),
            _ => return None,
        };
        Some(Direction { backwards, inclusive })
    }

    /// The operator between left and right time.
    pub fn operator(self) -> &'static str {
        match (self.backwards, self.inclusive) {
            (true, true) => ">=",
            (true, false) => ">",
            (false, true) => "<=",
            (false, false) => "<",
        }
    }
}
