//! Owns: what the planner may know of a scan before it runs: its order, its number of rows, the bounds of its times.
//!
//! What must hold: a number is exact only where the selection is applied exactly.

use std::sync::Arc;

use arrow::compute::SortOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::physical_expr::expressions::Column as ColumnExpr;
use datafusion::physical_expr::{ConstExpr, EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::{Partitioning, PlanProperties};

use super::units::{Order, Request, Unit, width};
use crate::schema::Origin;

/// The order and the partitions of a scan.
pub(super) fn properties(request: &Request, order: Option<Order>, partitions: usize) -> PlanProperties {
    let schema = request.shape.schema.clone();
    let column = |wanted: fn(&Origin) -> bool| {
        let at = request.shape.origins.iter().position(wanted)?;
        let expr: Arc<dyn PhysicalExpr> = Arc::new(ColumnExpr::new(schema.field(at).name(), at));
        Some(expr)
    };
    let symbol = column(|origin| matches!(origin, Origin::Symbol));
    let mut equivalences = EquivalenceProperties::new(schema.clone());
    let is_one = request.selection.instruments.as_ref().is_some_and(|some| some.len() == 1);
    if let (true, Some(symbol)) = (is_one, symbol.clone()) {
        // It cannot fail: nothing else is known of the columns.
        let _is_added = equivalences.add_constants([ConstExpr::from(symbol)]);
    }
    if let Some(order) = order {
        let sort = |expr, descending| PhysicalSortExpr::new(expr, SortOptions { descending, nulls_first: descending });
        let mut sorted = Vec::new();
        let mut is_unbroken = true;
        for (expr, descending) in [
            (symbol.filter(|_| !is_one), order.symbol.filter(|_| !is_one)),
            (column(|origin| matches!(origin, Origin::Time)), Some(order.backwards)),
            (column(|origin| matches!(origin, Origin::Lsn)), Some(order.backwards)),
        ] {
            match (expr, descending) {
                (Some(expr), Some(descending)) if is_unbroken => sorted.push(sort(expr, descending)),
                (None, Some(_)) => is_unbroken = false,
                _ => {}
            }
        }
        equivalences.add_ordering(sorted);
    }
    let partitioning = Partitioning::UnknownPartitioning(partitions);
    PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, Boundedness::Bounded)
        .with_scheduling_type(SchedulingType::NonCooperative)
}

/// Number of rows and bounds of the times: exact, from the indexes.
pub(super) fn statistics(request: &Request, units: &[Unit]) -> Statistics {
    let mut statistics = Statistics::new_unknown(&request.shape.schema);
    let rows = units.iter().map(Unit::rows).sum::<u64>() as usize;
    let bytes = rows * width(&request.shape.origins) as usize;
    if !request.selection.is_exact() {
        statistics.num_rows = Precision::Inexact(rows);
        statistics.total_byte_size = Precision::Inexact(bytes);
        return statistics;
    }
    statistics.num_rows = Precision::Exact(rows);
    statistics.total_byte_size = Precision::Inexact(bytes);
    let mut bounds: Option<(u64, u64)> = None;
    for unit in units {
        let all: Vec<(u64, u64)> = match unit {
            Unit::Merged(pieces) => pieces.iter().map(|piece| (piece.time.0.0, piece.time.1.0)).collect(),
            Unit::Block(rows) => {
                let entry = rows.file.blocks().ok().and_then(|blocks| blocks.get(rows.index as usize));
                match entry {
                    Some(entry) if rows.from == 0 && rows.to == entry.rows as usize => vec![(entry.time.min, entry.time.max)],
                    _ => return statistics,
                }
            }
        };
        for (min, max) in all {
            let (low, high) = bounds.unwrap_or((min, max));
            bounds = Some((low.min(min), high.max(max)));
        }
    }
    let time = |ns: u64| Precision::Exact(ScalarValue::TimestampNanosecond(i64::try_from(ns).ok(), None));
    for (column, origin) in statistics.column_statistics.iter_mut().zip(request.shape.origins.iter()) {
        if let (Origin::Time, Some((min, max))) = (origin, bounds) {
            let unknown = ColumnStatistics::new_unknown();
            *column = ColumnStatistics { null_count: Precision::Exact(0), min_value: time(min), max_value: time(max), ..unknown };
        }
    }
    statistics
}
