//! Owns: plans of statements that were asked before: a dashboard asks the same statement every second, and a client of Flight SQL asks
//! first for its columns, then for its rows. Planning takes longer than the rows of one instrument.
//!
//! What must hold: a plan that is kept has no snapshot and no rows, and gets the tables of the moment at which it is used. A statement is kept only if its plan depends on nothing but its text, the session's settings and the kinds: not on the time,
//! chance, a system table or a file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableScan, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::changes::is_of_the_moment;
use crate::engine::{Moment, Settings};
use crate::filter;
use crate::known::AsKnown;
use crate::newest::Newest;
use crate::opaque::Opaque;
use crate::schema::KindTable;
use crate::table::StoreTable;
use crate::template::Template;

/// Most plans that are kept.
const PLANS_MAX: usize = 256;
/// Most bytes of a statement whose plan is kept.
const SQL_MAX: usize = 8 << 10;

/// A plan, optimized, and the columns of its rows.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The plan.
    pub plan: LogicalPlan,
    /// The columns.
    pub schema: SchemaRef,
}

#[derive(Debug)]
struct Kept {
    plan: Plan,
    /// How many kinds there were: another one may change what a name means.
    kinds: usize,
    /// The plan of operators.
    operators: Operators,
    used: u64,
}

/// The operators of a plan that is kept.
#[derive(Clone, Debug)]
enum Operators {
    /// They have not been made yet.
    None,
    Kept(Template),
    /// They may not be kept.
    Refused,
}

/// The plans by their statements.
#[derive(Debug, Default)]
struct All {
    kept: HashMap<(String, Settings), Kept>,
    /// Rises with each use.
    clock: u64,
}

/// The plans.
#[derive(Debug)]
pub struct Plans {
    all: Opaque<Mutex<All>>,
}

impl Default for Plans {
    fn default() -> Plans {
        Plans { all: Opaque::new(Mutex::default()) }
    }
}

/// The place of a kind's table in a plan that is kept.
#[derive(Debug)]
struct Place(Arc<KindTable>);

#[async_trait]
impl TableProvider for Place {
    fn schema(&self) -> SchemaRef {
        self.0.arrow.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|expr| filter::support(expr)).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Err(DataFusionError::Internal(format!("a kept plan was not given its table {}", self.0.kind.name)))
    }
}

/// `plan` with `table` in the place of each table of a kind; `None` if it has another table.
fn with_tables(
    plan: LogicalPlan,
    table: &impl Fn(&dyn TableProvider) -> Option<Arc<dyn TableProvider>>,
) -> Result<Option<LogicalPlan>> {
    let mut is_whole = true;
    let plan = plan.transform_down_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
        let of = source_as_provider(&scan.source)?;
        let Some(table) = table(of.as_ref()) else {
            is_whole = false;
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        };
        Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source: provider_as_source(table), ..scan })))
    });
    plan.data().map(|plan| is_whole.then_some(plan))
}

/// The table of `moment` at `place`.
fn table_of(place: &dyn TableProvider, moment: &Moment) -> Option<StoreTable> {
    let kind = place.downcast_ref::<Place>()?.0.clone();
    Some(StoreTable::new(kind, moment.snapshot.clone(), moment.names.clone()))
}

/// Whether `plan`, before it is optimized, means the same whenever it is used.
fn is_lasting(plan: &LogicalPlan) -> Result<bool> {
    let mut is_lasting = true;
    plan.apply_with_subqueries(|node| {
        is_lasting &= match node {
            LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_) => false,
            // Which publisher makes a table of derived bars may change.
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref::<Newest>().is_none(),
            _ => true,
        };
        node.apply_expressions(|expr| {
            let is_other = |expr: &Expr| is_of_the_moment(expr) || matches!(expr, Expr::Placeholder(_));
            is_lasting &= !expr.exists(|expr| Ok(is_other(expr)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_lasting { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_lasting)
}

impl Plans {
    /// What `part` takes of what is kept of `sql` under `settings`.
    fn use_kept<T>(&self, sql: &str, settings: &Settings, moment: &Moment, part: impl Fn(&mut Kept) -> T) -> Option<T> {
        // Nothing is half changed by a panic: entries are replaced as a whole.
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let All { kept, clock } = &mut *all;
        *clock += 1;
        let found = kept.get_mut(&(sql.to_owned(), *settings)).filter(|kept| kept.kinds == moment.kinds.len())?;
        found.used = *clock;
        Some(part(found))
    }

    /// The operators of `sql` under `settings` over the rows of `moment`, if they are kept.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn operators(&self, sql: &str, settings: &Settings, moment: &Moment) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        match self.use_kept(sql, settings, moment, |kept| kept.operators.clone()) {
            Some(Operators::Kept(template)) => template.at(&moment.snapshot, &moment.names),
            _ => Ok(None),
        }
    }

    /// The plan of which operators are to be made that may be kept: the planner knows nothing of the rows of its tables. `None` if the
    /// statement is not kept, or its operators may not be.
    ///
    /// # Errors
    /// None that a statement can cause.
    pub fn to_make(&self, sql: &str, settings: &Settings, moment: &Moment) -> Result<Option<LogicalPlan>> {
        let plan = self.use_kept(sql, settings, moment, |kept| match &kept.operators {
            Operators::Refused => None,
            _ => Some(kept.plan.plan.clone()),
        });
        plan.flatten().map_or(Ok(None), |plan| with_tables(plan, &|place| Some(Arc::new(table_of(place, moment)?.blind()) as _)))
    }

    /// Keeps `made`, the operators of such a plan for `moment`, if they may be kept; whether they may.
    ///
    /// # Errors
    /// None that a statement can cause.
    pub fn keep_operators(&self, sql: &str, settings: &Settings, moment: &Moment, made: &Arc<dyn ExecutionPlan>) -> Result<bool> {
        let template = Template::of(made, &moment.names)?;
        let is_kept = template.is_some();
        let operators = template.map_or(Operators::Refused, Operators::Kept);
        self.use_kept(sql, settings, moment, |kept| kept.operators = operators.clone());
        // Those of other names are used no more, and would keep these.
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for kept in all.kept.values_mut() {
            if let Operators::Kept(template) = &kept.operators
                && !template.is_of(&moment.names)
            {
                kept.operators = Operators::None;
            }
        }
        Ok(is_kept)
    }

    /// The plan of `sql` under `settings` with the tables of `moment`, if it is kept.
    ///
    /// # Errors
    /// None that a statement can cause.
    pub fn find(&self, sql: &str, settings: &Settings, moment: &Moment) -> Result<Option<Plan>> {
        let Some(found) = self.use_kept(sql, settings, moment, |kept| kept.plan.clone()) else { return Ok(None) };
        let plan = with_tables(found.plan, &|place| Some(Arc::new(table_of(place, moment)?) as _))?;
        Ok(plan.map(|plan| Plan { plan, schema: found.schema }))
    }

    /// Keeps the plan of `sql` under `settings`, which was `before` until it was optimized, if it may be kept; it takes the place of the
    /// one that was not used for the longest time.
    ///
    /// # Errors
    /// None that a statement can cause.
    pub fn keep(&self, sql: &str, settings: &Settings, before: &LogicalPlan, plan: &Plan, moment: &Moment) -> Result<()> {
        // A statement that is followed asks for the records after another LSN each time.
        let is_followed = settings.after.is_some() || settings.since.is_some();
        // Trades as known at a record are another table than that of their kind.
        let is_known = settings.known != AsKnown::Off;
        if sql.len() > SQL_MAX || is_followed || is_known || !is_lasting(before)? {
            return Ok(());
        }
        let places = with_tables(plan.plan.clone(), &|table| {
            Some(Arc::new(Place(table.downcast_ref::<StoreTable>()?.kind().clone())) as Arc<dyn TableProvider>)
        })?;
        let Some(places) = places else { return Ok(()) };
        // As in `find`.
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let All { kept, clock } = &mut *all;
        *clock += 1;
        if kept.len() >= PLANS_MAX {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| kept.remove(&key));
        }
        let entry = Kept {
            plan: Plan { plan: places, schema: plan.schema.clone() },
            kinds: moment.kinds.len(),
            operators: Operators::None,
            used: *clock,
        };
        kept.insert((sql.to_owned(), *settings), entry);
        Ok(())
    }

    /// The columns of the rows of `sql` under `settings`, if its plan is kept.
    pub fn schema(&self, sql: &str, settings: &Settings, moment: &Moment) -> Option<SchemaRef> {
        self.use_kept(sql, settings, moment, |kept| kept.plan.schema.clone())
    }

    /// How many plans are kept.
    pub fn len(&self) -> usize {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).kept.len()
    }

    /// Whether no plan is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
