//! Owns: statements: the store at one moment as tables, limits, planning, and the rows of the answer.
//!
//! What must hold: all tables of a statement are of one snapshot. A statement only reads. Memory of operators comes from one
//! pool of all statements; what does not fit is spilled to a directory of a bounded size, or refused. A statement ends at its
//! limit of time, and when nobody reads its rows any more.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::SchemaProvider;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SQLOptions;
use datafusion::sql::parser::Statement;
use futures::future::BoxFuture;
use tapestore::lsn::Lsn;
use tapestore::reader::{At, Reader, Snapshot};
use tapestore::record::{SCHEMAS, Schema, user_kinds};
use tapestore::shm::control::Control;
use tapestore::time::Ts;
use tokio::runtime::Handle;

use crate::catalog::Tables;
use crate::failure::QueryError;
use crate::known::AsKnown;
use crate::limited::Limited;
use crate::names::Names;
use crate::opaque::Opaque;
use crate::plans::{Plan, Plans};
use crate::schema::KindTable;
use crate::statistics::Statistics;
use crate::traces::Traces;
use crate::{background, dialect, planner, updates};

/// Consumers of memory that an error names.
const NAMED_CONSUMERS: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(4);

/// What is waited for. The type is named, because a future whose type is not is looked through by every caller: see [`Opaque`].
pub type Awaited<'a, T> = BoxFuture<'a, Result<T, QueryError>>;

/// The parameters of a statement, like `$1`, with their types; `None`: any.
pub type Parameters = Vec<(String, Option<DataType>)>;

/// Limits of an engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory of all statements together, bytes.
    pub memory: usize,
    /// Bytes of spilled data on the disk.
    pub spill: u64,
    /// How long a statement may take.
    pub time: Duration,
    /// Threads of a statement.
    pub threads: usize,
    /// The threads on which statements that read many rows run; `None`: as all others.
    pub background: Option<Handle>,
    /// Whether a statement may read files of the host, with the rights of this process: `read_parquet` and its like.
    pub files: bool,
    /// Where traces of statements go; `None`: nowhere.
    pub traces: Option<Traces>,
}

impl Default for Options {
    fn default() -> Options {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Options {
            memory: 1 << 30,
            spill: 16 << 30,
            time: Duration::from_secs(300),
            threads,
            background: None,
            files: false,
            traces: None,
        }
    }
}

/// A store that answers SQL.
#[derive(Debug)]
pub struct Engine {
    store: PathBuf,
    options: Options,
    /// What all statements are planned with.
    common: Opaque<SessionState>,
    plans: Plans,
    /// The names of aggregate functions.
    aggregates: HashSet<String>,
    opened: Mutex<Opened>,
    statistics: Statistics,
}

/// What statements share of a store.
#[derive(Debug)]
struct Opened {
    reader: Reader,
    names: Arc<Names>,
    /// Of which storage process and timeline the names are, and how many.
    names_of: (u64, u64, usize),
    kinds: Vec<Arc<KindTable>>,
}

/// The settings of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How far statements read.
    pub at: At,
    /// The last record that statements read.
    pub until: Option<Lsn>,
    /// The record after which statements read.
    pub after: Option<Lsn>,
    /// The index time from which statements read.
    pub since: Option<Ts>,
    /// The record at which trades are known, with the busts and corrections up to it.
    pub known: AsKnown,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { at: At::Committed, until: None, after: None, since: None, known: AsKnown::Off }
    }
}

impl Settings {
    /// The last record that statements read of a snapshot whose last one is `last`.
    pub fn last(&self, last: Lsn) -> Lsn {
        let until = self.until.map_or(last, |until| until.min(last));
        if let AsKnown::Lsn(at) = self.known { at.min(until) } else { until }
    }
}

/// A store at one moment.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The records.
    pub snapshot: Snapshot,
    /// The instruments.
    pub names: Arc<Names>,
    /// The tables.
    pub kinds: Vec<Arc<KindTable>>,
    /// The watermarks and the publishers.
    pub control: Control,
    /// The last record that tables have, if it is not the snapshot's.
    pub until: Option<Lsn>,
    /// The record after which tables have records, if not all.
    pub after: Option<Lsn>,
    /// The index time from which tables have records, if not all.
    pub since: Option<Ts>,
    /// The record at which trades are known, and the last one of each table; `None`: trades are as they are stored.
    pub known: Option<Lsn>,
}

/// The rows of an answer, and of which moment they are.
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub rows: SendableRecordBatchStream,
    /// What makes them.
    pub plan: Arc<dyn ExecutionPlan>,
    /// The last record of the snapshot.
    pub last: Lsn,
}

impl Engine {
    /// Opens the store in the directory `store`, served or at rest.
    ///
    /// # Errors
    /// Those of [`Reader::open`].
    pub fn open(store: &Path, options: Options) -> Result<Engine, QueryError> {
        let mut reader = Reader::open(store)?;
        reader.kinds()?;
        let disk =
            DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory).with_max_temp_directory_size(options.spill);
        let pool = TrackConsumersPool::new(FairSpillPool::new(options.memory), NAMED_CONSUMERS);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).with_disk_manager_builder(disk).build_arc()?;
        let opened = Opened { reader, names: Arc::new(Names::new(&[])), names_of: (0, 0, 0), kinds: Vec::new() };
        let common = Opaque::new(planner::common(runtime, options.threads));
        let aggregates = planner::aggregates()
            .iter()
            .flat_map(|f| {
                std::iter::once(f.name()).chain(f.aliases().iter().map(String::as_str)).map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        Ok(Engine {
            store: store.to_path_buf(),
            options,
            common,
            plans: Plans::default(),
            aggregates,
            opened: Mutex::new(opened),
            statistics: Statistics::default(),
        })
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// What is counted of statements and connections.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Memory of the operators of statements, and their data on the disk, bytes.
    pub fn used(&self) -> (u64, u64) {
        let runtime = self.common.runtime_env();
        (runtime.memory_pool.reserved() as u64, runtime.disk_manager.used_disk_space())
    }

    /// Counts a statement that has no answer.
    fn counted<T>(&self, result: Result<T, QueryError>) -> Result<T, QueryError> {
        result.inspect_err(|error| self.statistics.refuse(error))
    }

    /// The limits of statements.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Says on standard error that no storage process serves the store, and that its log ends within a frame, if so.
    ///
    /// # Errors
    /// Those of [`Reader::snapshot`].
    pub fn note_at_rest(&self, settings: &Settings) -> Result<(), QueryError> {
        let last = self.moment(settings)?.snapshot.last();
        // As in `moment`.
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        tape_services::query::note_at_rest(&opened.reader, last);
        Ok(())
    }

    /// The store now.
    ///
    /// # Errors
    /// Those of [`Reader::snapshot`].
    pub fn moment(&self, settings: &Settings) -> Result<Moment, QueryError> {
        // Nothing of it is left half changed by a panic: each field is replaced as a whole.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = opened.reader.snapshot(settings.at)?;
        // After the snapshot: an instrument is named before its first record.
        let symbols = opened.reader.symbols()?;
        symbols.refresh();
        let count = symbols.names().len();
        // A store that was restored, or whose log was truncated, may have other names under the same numbers.
        let control = opened.reader.control();
        let of = (control.instance(), control.timeline().0, count);
        if of != opened.names_of {
            let names = Names::new(opened.reader.symbols()?.names());
            (opened.names, opened.names_of) = (Arc::new(names), of);
        }
        let all: Vec<&'static Schema> = SCHEMAS.iter().chain(user_kinds()).collect();
        if all.len() != opened.kinds.len() {
            opened.kinds = all.into_iter().map(|kind| Arc::new(KindTable::new(kind))).collect();
        }
        let control = opened.reader.control().clone();
        let (names, kinds) = (opened.names.clone(), opened.kinds.clone());
        let known = (settings.known != AsKnown::Off).then(|| settings.last(snapshot.last()));
        let Settings { until, after, since, .. } = *settings;
        Ok(Moment { snapshot, names, kinds, control, until, after, since, known })
    }

    /// Maps what the store has now, if it has changed since the last statement: what is kept mapped for the next one may have been
    /// removed, and keeps its room until then.
    pub fn renew(&self) {
        // As in `moment`.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if !opened.reader.is_current()
            && let Err(error) = opened.reader.snapshot(At::Committed)
        {
            tracing::debug!(name: "query.not_renewed", %error, "cannot map what the store has now; what was mapped is released");
            opened.reader.let_go();
        }
    }

    /// Names of tables, columns and functions.
    ///
    /// # Errors
    /// Those of [`Reader::snapshot`].
    pub fn words(&self) -> Result<Vec<String>, QueryError> {
        let moment = self.moment(&Settings::default())?;
        let state = self.state(&moment)?;
        let mut words = Tables(moment.clone()).table_names();
        words.extend(moment.kinds.iter().flat_map(|kind| kind.arrow.fields().iter().map(|field| field.name().clone())));
        words.extend(state.scalar_functions().keys().chain(state.aggregate_functions().keys()).cloned());
        Ok(words)
    }

    /// Names of functions.
    ///
    /// # Errors
    /// Those of [`Reader::snapshot`].
    pub fn functions(&self) -> Result<Vec<String>, QueryError> {
        let state = self.state(&self.moment(&Settings::default())?)?;
        let all =
            state.scalar_functions().keys().chain(state.aggregate_functions().keys()).chain(state.window_functions().keys());
        let mut all: Vec<String> = all.cloned().collect();
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// Names of instruments.
    ///
    /// # Errors
    /// Those of [`Reader::snapshot`].
    pub fn symbols(&self) -> Result<Vec<String>, QueryError> {
        Ok(self.moment(&Settings::default())?.names.all())
    }

    fn state(&self, moment: &Moment) -> Result<SessionState, QueryError> {
        Ok(planner::at(&self.common, moment, self.options.files)?)
    }

    /// Parses `sql`, one statement.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(&self, sql: &str) -> Result<Statement, QueryError> {
        let parse = || {
            if updates::followed(sql)?.is_some() {
                let reason = "FOLLOW is for clients of Arrow Flight SQL; a terminal has: tape sql --follow -c 'SELECT ...'";
                return Err(QueryError::Statement { reason: reason.to_owned() });
            }
            Ok(dialect::parse(sql, &|name| self.aggregates.contains(name))?)
        };
        self.counted(parse())
    }

    /// Answers the statement `sql`, which has no parameters.
    ///
    /// # Errors
    /// [`QueryError`]: the statement is wrong, changes something, or the store cannot be read. What goes wrong later is an
    /// error of the rows.
    pub async fn query(&self, sql: &str, settings: &Settings) -> Result<Answer, QueryError> {
        if let Some(answer) = self.again(sql, settings).await? {
            return Ok(answer);
        }
        self.answer(sql, self.parse(sql)?, Vec::new(), settings).await
    }

    /// Answers the statement `sql` by the plan that is kept of it; `None` if there is none.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub fn again<'a>(&'a self, sql: &'a str, settings: &'a Settings) -> Awaited<'a, Option<Answer>> {
        Box::pin(async move {
            let began = Instant::now();
            let result: Result<_, QueryError> = async {
                let moment = self.moment(settings)?;
                if let Some(operators) = self.plans.operators(sql, settings, &moment)? {
                    return self.start(operators, self.common.task_ctx(), &moment, (sql, began)).map(Some);
                }
                if let Some(plan) = self.plans.to_make(sql, settings, &moment)? {
                    let state = self.state(&moment)?;
                    let operators = state.query_planner().create_physical_plan(&plan, &state).await?;
                    if self.plans.keep_operators(sql, settings, &moment, &operators)? {
                        return self.start(operators, state.task_ctx(), &moment, (sql, began)).map(Some);
                    }
                }
                let Some(Plan { plan, .. }) = self.plans.find(sql, settings, &moment)? else { return Ok(None) };
                let state = self.state(&moment)?;
                self.run(&state, &plan, &moment, (sql, began)).await.map(Some)
            }
            .await;
            self.counted(result)
        })
    }

    /// Answers `statement`, which is `sql`, with `parameters` for `$1`, `$2` and so on.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub fn answer<'a>(
        &'a self,
        sql: &'a str,
        statement: Statement,
        parameters: Vec<ScalarValue>,
        settings: &'a Settings,
    ) -> Awaited<'a, Answer> {
        Box::pin(async move {
            let began = Instant::now();
            let result: Result<_, QueryError> = async {
                let moment = self.moment(settings)?;
                let state = self.state(&moment)?;
                if !parameters.is_empty() {
                    // The values are in the plan, and not in the text: it is not kept.
                    let plan = plan_of(&state, statement).await?.with_param_values(parameters)?;
                    return self.run(&state, &state.optimize(&plan)?, &moment, (sql, began)).await;
                }
                let plan = plan_of(&state, statement).await?;
                let Plan { plan, .. } = self.optimized(&state, (sql, settings), &plan, &moment)?;
                self.run(&state, &plan, &moment, (sql, began)).await
            }
            .await;
            self.counted(result)
        })
    }

    /// Answers what `change` makes of the plan of `statement`.
    ///
    /// # Errors
    /// As [`Engine::query`], and those of `change`.
    pub fn answer_as<'a>(
        &'a self,
        statement: Statement,
        parameters: Vec<ScalarValue>,
        settings: &'a Settings,
        change: fn(&LogicalPlan) -> Result<LogicalPlan, DataFusionError>,
    ) -> Awaited<'a, Answer> {
        Box::pin(async move {
            let began = Instant::now();
            let result: Result<_, QueryError> = async {
                let moment = self.moment(settings)?;
                let state = self.state(&moment)?;
                let mut plan = plan_of(&state, statement).await?;
                if !parameters.is_empty() {
                    plan = plan.with_param_values(parameters)?;
                }
                self.run(&state, &state.optimize(&change(&plan)?)?, &moment, ("", began)).await
            }
            .await;
            self.counted(result)
        })
    }

    /// Optimizes `plan`, that of the statement `of` under its settings, and keeps it.
    fn optimized(
        &self,
        state: &SessionState,
        of: (&str, &Settings),
        plan: &LogicalPlan,
        moment: &Moment,
    ) -> Result<Plan, QueryError> {
        let optimized = state.optimize(plan)?;
        let kept = Plan { schema: optimized.schema().inner().clone(), plan: optimized };
        self.plans.keep(of.0, of.1, plan, &kept, moment)?;
        Ok(kept)
    }

    /// Runs `plan`, which is optimized.
    fn run<'a>(
        &'a self,
        state: &'a SessionState,
        plan: &'a LogicalPlan,
        moment: &'a Moment,
        of: (&'a str, Instant),
    ) -> Awaited<'a, Answer> {
        Box::pin(async move {
            let operators = state.query_planner().create_physical_plan(plan, state).await?;
            self.start(operators, state.task_ctx(), moment, of)
        })
    }

    /// Starts `operators`, for the statement `text` whose planning began at `began`.
    fn start(
        &self,
        operators: Arc<dyn ExecutionPlan>,
        context: Arc<TaskContext>,
        moment: &Moment,
        (text, began): (&str, Instant),
    ) -> Result<Answer, QueryError> {
        let traced = self.options.traces.as_ref().and_then(|traces| traces.of(text, began, &operators));
        let rows = background::rows(operators.clone(), context, self.options.background.as_ref())?;
        let schema = rows.schema();
        let running = self.statistics.start(traced);
        let rows = Box::pin(Limited::new(rows, &operators, &moment.snapshot, self.options.time, running)?);
        Ok(Answer { schema, rows, plan: operators, last: moment.snapshot.last() })
    }

    /// Plans of statements that are kept.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// The plan of `statement`, and the tables of records that it may name.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub fn plan<'a>(&'a self, statement: Statement, settings: &'a Settings) -> Awaited<'a, (LogicalPlan, Vec<Arc<KindTable>>)> {
        Box::pin(async move {
            let moment = self.moment(settings)?;
            let plan = plan_of(&self.state(&moment)?, statement).await?;
            Ok((plan, moment.kinds))
        })
    }

    /// Whether a storage process serves the store.
    pub fn is_served(&self) -> bool {
        // As in `moment`.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).reader.is_storage_alive()
    }

    /// The columns of the rows of `statement`, which is `sql`, and the types of its parameters by their names. Its plan is kept.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub fn describe<'a>(
        &'a self,
        sql: &'a str,
        statement: Statement,
        settings: &'a Settings,
    ) -> Awaited<'a, (SchemaRef, Parameters)> {
        Box::pin(async move {
            let result: Result<_, QueryError> = async {
                let moment = self.moment(settings)?;
                let state = self.state(&moment)?;
                let plan = plan_of(&state, statement).await?;
                let parameters = parameters_of(&plan)?;
                if parameters.is_empty() && !matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_)) {
                    let kept = self.optimized(&state, (sql, settings), &plan, &moment)?;
                    return Ok((kept.schema, parameters));
                }
                // Types are coerced, and functions get their final types, when the plan is analysed.
                let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
                Ok((plan.schema().inner().clone(), parameters))
            }
            .await;
            self.counted(result)
        })
    }

    /// The columns of the rows of `sql`, if its plan is kept: it has no parameters.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub fn described(&self, sql: &str, settings: &Settings) -> Result<Option<SchemaRef>, QueryError> {
        Ok(self.plans.schema(sql, settings, &self.moment(settings)?))
    }
}

/// The plan of `statement`, which only reads.
fn plan_of(state: &SessionState, statement: Statement) -> Awaited<'_, LogicalPlan> {
    Box::pin(async move {
        let plan = state.statement_to_plan(statement).await?;
        READ_ONLY.verify_plan(&plan)?;
        Ok(plan)
    })
}

/// The parameters of `plan` with their types.
fn parameters_of(plan: &LogicalPlan) -> Result<Parameters, QueryError> {
    let mut parameters = plan.get_parameter_types()?;
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::Limit(limit) = node else { return Ok(TreeNodeRecursion::Continue) };
        // Nothing else says that these are numbers.
        for expr in [&limit.skip, &limit.fetch].into_iter().flatten() {
            if let Expr::Placeholder(parameter) = expr.as_ref() {
                parameters.insert(parameter.id.clone(), Some(DataType::Int64));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(parameters.into_iter().collect())
}

/// What a statement may do.
static READ_ONLY: std::sync::LazyLock<SQLOptions> =
    std::sync::LazyLock::new(|| SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false));
