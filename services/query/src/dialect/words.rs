//! Owns: the names of functions that carry words of time-series SQL through the parser.

use datafusion::error::DataFusionError;

/// The function that carries `SAMPLE BY` through the parser.
pub(super) const SAMPLE_BY: &str = "sample_by";
/// The function that carries `LATEST ON` through the parser, and its match condition.
pub const LATEST_ON: &str = "latest_on";
/// The function that carries `FILL`, as the match condition of a join of the planner of relations.
pub const FILL: &str = "fill_gaps";

/// The function that carries an as-of join by the columns `time` through the parser, as a match condition.
pub const ASOF_JOIN: &str = "asof_join";
/// The function that carries a window join through the parser, as a match condition: start, end, whether the prevailing row counts.
pub const WINDOW_JOIN: &str = "window_join";
/// The function that carries a horizon join through the parser, as a match condition: its name and the offsets.
pub const HORIZON_JOIN: &str = "horizon_join";

/// The error of a statement that is wrong.
pub(super) fn wrong(reason: impl Into<String>) -> DataFusionError {
    DataFusionError::Plan(reason.into())
}
