//! Owns: what a statement is planned with: functions, rules, tables of one moment.
//!
//! What must hold: whatever does not depend on the moment is made once; a statement gets a copy of it.

use std::sync::Arc;

use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, TableFunctionImpl,
};
use datafusion::error::Result;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::AggregateUDF;
use datafusion::optimizer::{Analyzer, Optimizer};
use datafusion::prelude::SessionConfig;

use crate::asof::push::PushBelowAsOf;
use crate::catalog::Tables;
use crate::distribution::Distribution;
use crate::engine::Moment;
use crate::functions::{self, rewrite::Aggregates};
use crate::generated;
use crate::instruments::{self, Instruments, InstrumentsAt};
use crate::moving::Moving;
use crate::postgres::catalog::Catalog;
use crate::relations::{Planner, Relations};
use crate::window::groups::WindowGroups;
use crate::yielding::Yielding;

/// The catalog of all tables.
pub const CATALOG: &str = "tapestore";
/// The schema of all tables.
pub const SCHEMA: &str = "public";
/// The schema in which PostgreSQL's clients look up tables.
const CLIENTS_SCHEMA: &str = "pg_catalog";

/// All aggregate functions.
pub fn aggregates() -> Vec<Arc<AggregateUDF>> {
    let mut all = SessionStateDefaults::default_aggregate_functions();
    all.extend(functions::aggregates::all());
    all.extend(functions::ordered::all());
    all.extend(functions::twap::all());
    all
}

/// What all statements are planned with; they run on `threads` threads each, in `runtime`.
pub fn common(runtime: Arc<RuntimeEnv>, threads: usize) -> SessionState {
    let config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(threads);
    let mut analyzer = Analyzer::new().rules;
    analyzer.insert(0, Arc::new(Aggregates));
    let mut optimizer = Optimizer::new().rules;
    optimizer.insert(0, Arc::new(PushBelowAsOf));
    // A condition above a projection or a union comes to the join only by the rule that pushes filters down.
    if let Some(at) = optimizer.iter().position(|rule| rule.name() == "push_down_filter") {
        optimizer.insert(at + 1, Arc::new(PushBelowAsOf));
    }
    let mut scalars = SessionStateDefaults::default_scalar_functions();
    scalars.extend(functions::scalars::all());
    let mut windows = SessionStateDefaults::default_window_functions();
    windows.extend(functions::running::all());
    SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_analyzer_rules(analyzer)
        .with_optimizer_rules(optimizer)
        .with_scalar_functions(scalars)
        .with_aggregate_functions(aggregates())
        .with_window_functions(windows)
        .with_table_function_list(SessionStateDefaults::default_table_functions())
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_relation_planners(vec![Arc::new(Relations)])
        .with_query_planner(Arc::new(Planner))
        .with_physical_optimizer_rule(Arc::new(Distribution))
        .with_physical_optimizer_rule(Arc::new(WindowGroups))
        .with_physical_optimizer_rule(Arc::new(Moving))
        .with_physical_optimizer_rule(Arc::new(Yielding))
        .build()
}

/// What a statement of `moment` is planned with; `files`: it may read files.
///
/// # Errors
/// None: the catalog takes these schemas.
pub fn at(common: &SessionState, moment: &Moment, files: bool) -> Result<SessionState> {
    let mut state = common.clone();
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, Arc::new(Tables(moment.clone())))?;
    catalog.register_schema(CLIENTS_SCHEMA, Arc::new(Catalog(moment.clone())))?;
    let list = MemoryCatalogProviderList::new();
    list.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
    state.register_catalog_list(Arc::new(list));
    for (name, function) in generated::functions(moment, files) {
        let function: Arc<dyn TableFunctionImpl> = function;
        state.register_udtf(name, function);
    }
    state.register_udtf(instruments::NAME, Arc::new(InstrumentsAt(Instruments::new(moment))));
    state.mark_start_execution();
    Ok(state)
}
