//! Owns: which rows the conditions of a statement leave, by the indexes of a store: instruments, times, LSNs, ids.
//!
//! What must hold: conditions on `symbol` alone and comparisons of `time` with a constant are applied exactly. Others only
//! skip blocks, and the engine applies them again to each row.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, DictionaryArray, RecordBatch, UInt32Array};
use arrow::datatypes::{Field, Schema as ArrowSchema, UInt32Type};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_expr::create_physical_expr;
use tapestore::record::{Schema, TimeRange};
use tapestore::sstable::format::{Block, Bounds};
use tapestore::time::Ts;

use crate::names::Names;

/// The rows that conditions leave.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The instruments; `None` is all, and records of no instrument.
    pub instruments: Option<BTreeSet<u32>>,
    /// The index times.
    pub time: TimeRange,
    /// The LSNs.
    pub lsn: Bounds,
    /// The event times.
    pub event: Bounds,
    /// Values of lookup columns, each with its number among them.
    pub find: Vec<(usize, u64)>,
}

const ALL: Bounds = Bounds { min: 0, max: u64::MAX };

/// A column, an operator and a constant.
struct Comparison<'e> {
    column: &'e str,
    operator: Operator,
    value: u64,
}

/// The constant of `expr` as an unsigned number: an integer, or a time in ns. `None`: it is neither, or negative.
fn constant(expr: &Expr) -> Option<u64> {
    let Expr::Literal(value, _) = expr else { return None };
    match value {
        ScalarValue::TimestampNanosecond(Some(ns), None) => u64::try_from(*ns).ok(),
        ScalarValue::UInt64(Some(n)) => Some(*n),
        ScalarValue::Int64(Some(n)) => u64::try_from(*n).ok(),
        _ => None,
    }
}

/// `expr` as comparisons that all hold; `None` if it is something else.
fn comparisons(expr: &Expr) -> Option<Vec<Comparison<'_>>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, operator, value) = match (left.as_ref(), right.as_ref()) {
                (Expr::Column(column), value) => (column, *op, value),
                (value, Expr::Column(column)) => (column, op.swap()?, value),
                _ => return None,
            };
            Some(vec![Comparison { column: &column.name, operator, value: constant(value)? }])
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            let Expr::Column(column) = expr.as_ref() else { return None };
            let of = |operator, value| Some(Comparison { column: &column.name, operator, value: constant(value)? });
            Some(vec![of(Operator::GtEq, low)?, of(Operator::LtEq, high)?])
        }
        _ => None,
    }
}

/// Whether `expr` asks of nothing but the symbol.
pub fn is_of_symbol(expr: &Expr) -> bool {
    let columns = expr.column_refs();
    !columns.is_empty() && columns.iter().all(|column| column.name == "symbol") && !expr.is_volatile()
}

fn is_bound(operator: Operator) -> bool {
    matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq)
}

/// How exactly a table applies `expr`.
pub fn support(expr: &Expr) -> TableProviderFilterPushDown {
    if is_of_symbol(expr) {
        return TableProviderFilterPushDown::Exact;
    }
    match comparisons(expr) {
        Some(all) if all.iter().all(|c| c.column == "time" && is_bound(c.operator)) => TableProviderFilterPushDown::Exact,
        _ => TableProviderFilterPushDown::Inexact,
    }
}

/// Narrows `bounds` to the values for which `operator value` holds; `false` if none is left.
fn narrow(bounds: &mut Bounds, operator: Operator, value: u64) -> bool {
    let (min, max) = match operator {
        Operator::Eq => (Some(value), Some(value)),
        Operator::Lt => (Some(0), value.checked_sub(1)),
        Operator::LtEq => (Some(0), Some(value)),
        Operator::Gt => (value.checked_add(1), Some(u64::MAX)),
        Operator::GtEq => (Some(value), Some(u64::MAX)),
        _ => return true,
    };
    let (Some(min), Some(max)) = (min, max) else { return false };
    bounds.min = bounds.min.max(min);
    bounds.max = bounds.max.min(max);
    bounds.min <= bounds.max
}

impl Selection {
    /// What `filters` leave of the table of `kind`; `None` if nothing.
    ///
    /// # Errors
    /// A condition on the symbol cannot be evaluated.
    pub fn new(kind: &Schema, filters: &[Expr], names: &Names) -> Result<Option<Selection>> {
        let mut selection = Selection { instruments: None, time: TimeRange::ALL, lsn: ALL, event: ALL, find: Vec::new() };
        let mut time = ALL;
        for filter in filters {
            if is_of_symbol(filter) {
                let keys = UInt32Array::from_iter_values(0..=names.len() as u32);
                let symbols = DictionaryArray::<UInt32Type>::try_new(keys, names.values.clone())?;
                let found = matching(filter, Arc::new(symbols))?;
                selection.instruments = Some(match selection.instruments.take() {
                    Some(before) => before.intersection(&found).copied().collect(),
                    None => found,
                });
                continue;
            }
            for comparison in comparisons(filter).unwrap_or_default() {
                let Comparison { column, operator, value } = comparison;
                let is_left = match column {
                    "time" => narrow(&mut time, operator, value),
                    "lsn" => narrow(&mut selection.lsn, operator, value),
                    // A null event time is the greatest, and no comparison is true of it.
                    "ts_event" => narrow(&mut selection.event, operator, value),
                    _ => {
                        let at = kind.find.iter().position(|name| *name == column);
                        if let (Some(at), Operator::Eq) = (at, operator) {
                            selection.find.push((at, value));
                        }
                        true
                    }
                };
                if !is_left {
                    return Ok(None);
                }
            }
        }
        selection.time = TimeRange { from: Ts(time.min), to: Ts(time.max) };
        Ok(Some(selection))
    }

    /// Whether a block may have rows of the selection, by the bounds that the block's entry has.
    pub fn may_have(&self, block: &Block) -> bool {
        let meets = |a: &Bounds, b: &Bounds| a.min <= b.max && b.min <= a.max;
        meets(&block.time, &Bounds { min: self.time.from.0, max: self.time.to.0 })
            && meets(&block.lsn, &self.lsn)
            && (self.event == ALL || meets(&block.event, &self.event))
            && self.find.iter().all(|(at, id)| block.find.get(*at).is_none_or(|bounds| bounds.contains(*id)))
    }

    /// Whether no row is left out.
    pub fn is_all(&self) -> bool {
        self.instruments.is_none() && self.time == TimeRange::ALL && self.is_exact()
    }

    /// Whether the selection is applied exactly: the engine does not look at the rows again.
    pub fn is_exact(&self) -> bool {
        self.lsn == ALL && self.event == ALL && self.find.is_empty()
    }
}

/// The instruments for which `filter` holds; `symbols` has the name of each at its number. 0 stands for records of no instrument.
///
/// # Errors
/// It cannot be evaluated.
pub fn matching(filter: &Expr, symbols: ArrayRef) -> Result<BTreeSet<u32>> {
    let table = Arc::new(ArrowSchema::new(vec![Field::new("symbol", symbols.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(table.clone(), vec![symbols])?;
    let unqualified = datafusion::common::tree_node::TreeNode::transform(filter.clone(), |expr| {
        Ok(match expr {
            Expr::Column(column) => datafusion::common::tree_node::Transformed::yes(Expr::Column(
                datafusion::common::Column::new_unqualified(column.name),
            )),
            other => datafusion::common::tree_node::Transformed::no(other),
        })
    })?;
    let schema = DFSchema::try_from(table)?;
    let expr = create_physical_expr(&unqualified.data, &schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
    let result = expr.evaluate(&batch)?.into_array(batch.num_rows())?;
    let found = result.as_any().downcast_ref::<BooleanArray>();
    let found = found.map(|found| (0..found.len() as u32).filter(|at| found.is_valid(*at as usize) && found.value(*at as usize)));
    Ok(found.map(Iterator::collect).unwrap_or_default())
}
