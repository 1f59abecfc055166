//! Owns: the operators of time-series SQL, from the tree of a statement to a plan that runs.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, JoinOperator, TableFactor};

use crate::asof::node::AsOf;
use crate::asof::{self, Direction};
use crate::dialect::{ASOF_JOIN, FILL, HORIZON_JOIN, LATEST_ON, WINDOW_JOIN, arguments, name_of, texts};
use crate::fill::{self, Fill};
use crate::horizon;
use crate::latest::{self, Latest};
use crate::newest::{self, Newest};
use crate::sorted_join;
use crate::window::{self, Window};

/// Plans the relations that [`crate::dialect`] makes.
#[derive(Debug)]
pub struct Relations;

impl RelationPlanner for Relations {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let original = |relation| Ok(RelationPlanning::Original(Box::new(relation)));
        let TableFactor::NestedJoin { table_with_joins, alias } = &relation else { return original(relation) };
        let [join] = table_with_joins.joins.as_slice() else { return original(relation) };
        let JoinOperator::AsOf { match_condition, constraint } = &join.join_operator else { return original(relation) };
        let left = context.plan(table_with_joins.relation.clone())?;
        let function = match match_condition {
            SqlExpr::Function(function) => Some((name_of(function), function)),
            _ => None,
        };
        let plan = match function {
            Some((name, function)) if name == FILL => extension(Fill::new(left, &texts(function))?),
            Some((name, function)) if name == LATEST_ON => {
                let column = |expr: SqlExpr| context.sql_to_expr(expr, left.schema());
                let mut columns = arguments(function).into_iter().map(column).collect::<Result<Vec<Expr>>>()?.into_iter();
                let time = columns.next().ok_or_else(|| DataFusionError::Plan("LATEST ON needs a time".to_owned()))?;
                let keys = columns.collect();
                extension(Latest { input: left, time, keys })
            }
            Some((name, function)) if [ASOF_JOIN, WINDOW_JOIN, HORIZON_JOIN].contains(&name.as_str()) => {
                let right = context.plan(join.relation.clone())?;
                let on = asof::node::keys((&left, &right), constraint, context)?;
                by_time((left, right), &on, &name, &texts(function))?
            }
            _ => {
                let right = context.plan(join.relation.clone())?;
                asof::node::plan((left, right), match_condition, constraint, context)?
            }
        };
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}

/// The as-of join, the window join or the horizon join of `sides`, as `texts` say.
fn by_time(sides: (LogicalPlan, LogicalPlan), on: &[(Expr, Expr)], name: &str, texts: &[String]) -> Result<LogicalPlan> {
    let wrong = || DataFusionError::Plan(format!("{name} is no function"));
    let number = |text: &String| text.parse::<i64>().map_err(|_| wrong());
    match texts {
        [start, end, prevailing] if name == WINDOW_JOIN => {
            let prevailing = prevailing.parse().map_err(|_| wrong())?;
            window::node::plan(sides, on.to_vec(), Window { start: number(start)?, end: number(end)?, prevailing })
        }
        [] | [_] if name == ASOF_JOIN => {
            let tolerance = texts.first().map(|ns| number(ns).map(i64::unsigned_abs)).transpose()?;
            let times = (window::node::time_of(sides.0.schema())?, window::node::time_of(sides.1.schema())?);
            let direction = Direction { backwards: true, inclusive: true };
            Ok(extension(AsOf::new(sides, on.to_vec(), times, direction, tolerance)?))
        }
        [alias, offsets @ ..] if name == HORIZON_JOIN => {
            horizon::plan(sides, on, alias, &offsets.iter().map(number).collect::<Result<Vec<_>>>()?)
        }
        _ => Err(wrong()),
    }
}

/// `node` in a plan.
pub fn extension(node: impl UserDefinedLogicalNode + 'static) -> LogicalPlan {
    LogicalPlan::Extension(Extension { node: Arc::new(node) })
}

/// Plans the operators.
#[derive(Debug)]
struct Operators;

#[async_trait]
impl ExtensionPlanner for Operators {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        planning: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let physical = |expr: &Expr, side: &LogicalPlan| planner.create_physical_expr(expr, side.schema(), session, planning);
        match (logical, inputs) {
            ([left_plan, right_plan], [left, right]) => {
                sorted_join::plan(node, [left_plan, right_plan], [left, right], &physical)
            }
            (_, [input]) => {
                let node = node.as_any();
                if let Some(node) = node.downcast_ref::<Latest>() {
                    return latest::plan(node, input, &physical).map(Some);
                }
                if node.downcast_ref::<Newest>().is_some() {
                    return newest::plan(input).map(Some);
                }
                node.downcast_ref::<Fill>().map(|node| fill::plan(node, input)).transpose()
            }
            _ => Ok(None),
        }
    }
}

/// Plans statements with the operators.
#[derive(Debug)]
pub struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Operators)]).create_physical_plan(plan, session).await
    }
}
