//! Owns: the operator that reads a kind's table: which blocks and pieces, in which order, in how many partitions.
//!
//! Without an order the blocks of the SSTables are lent as they are, and rows of MemTables copied. With an order by
//! (`symbol`, `time`) or by `time` the pieces of each instrument, or of all, are merged.
//!
//! What must hold: the rows of a scan are the rows of its snapshot that its selection leaves, each once, in the order that
//! its properties declare. `num_rows` is exact where the selection is.

mod bounds;
mod place;
mod rows;
mod units;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use arrow::compute::{BatchCoalescer, SortOptions};
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column as ColumnExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use tapestore::lsn::InstrumentId;
use tapestore::reader::Snapshot;
use tapestore::record::{Series, TimeRange};
use tapestore::time::Ts;
use tapestore::version::File;

pub use self::place::ScanPlace;
pub use self::units::{FEW_ROWS, Order, Request};

use self::bounds::{properties, statistics};
use self::rows::{Ahead, Rows};
use self::units::{Pruning, Unit, blocks, groups, instruments, merges, partitions, width};
use crate::failure::external;
use crate::filter::Selection;
use crate::pieces::{BATCH_ROWS, Shape};
use crate::schema::{KindTable, Origin};

/// A batch of fewer rows is put together with others.
const SMALL_ROWS: usize = 1024;
/// A scan without an order of so many instruments at most is ordered: the pieces of each are next to each other anyway.
const ORDERED_INSTRUMENTS: usize = 64;

/// The operator.
#[derive(Debug)]
pub struct Scan {
    table: Arc<KindTable>,
    snapshot: Snapshot,
    selection: Selection,
    shape: Shape,
    order: Option<Order>,
    /// The units of each partition.
    partitions: Vec<Vec<Unit>>,
    /// The most rows that the caller takes.
    fetch: Option<usize>,
    /// Whether only the first row of each instrument is read.
    first_only: bool,
    /// The number of partitions that the session wants.
    target: usize,
    /// See [`Request::starts`].
    starts: Option<Arc<BTreeMap<u32, Ts>>>,
    /// Before which the newest row of each instrument is the first one that is read.
    since: Option<Ts>,
    /// See [`Request::is_blind`].
    is_blind: bool,
    pruning: Pruning,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl Scan {
    /// The files that have rows of it; one may come more than once.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.partitions.iter().flatten().flat_map(Unit::files)
    }

    /// The scan of `request` in `order`.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn new(request: Request, order: Option<Order>) -> Result<Scan> {
        let is_few = request.selection.instruments.as_ref().is_some_and(|some| some.len() <= ORDERED_INSTRUMENTS);
        let order = order.or((is_few || request.starts.is_some()).then_some(Order { symbol: Some(false), backwards: false }));
        let mut pruning = Pruning::default();
        let units = match order {
            None => blocks(&request, &mut pruning)?,
            Some(order) => merges(&request, order, &mut pruning)?,
        };
        let unknown = || Statistics::new_unknown(&request.shape.schema);
        let statistics = Arc::new(if request.is_blind { unknown() } else { statistics(&request, &units) });
        let partitions = partitions(units, request.target, order);
        pruning.bytes_read = partitions.iter().flatten().map(Unit::rows).sum::<u64>() * width(&request.shape.origins);
        let properties = Arc::new(properties(&request, order, partitions.len()));
        let Request { table, snapshot, selection, shape, fetch, target, starts, is_blind } = request;
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Scan {
            table,
            snapshot,
            selection,
            shape,
            order,
            partitions,
            fetch,
            first_only: false,
            target,
            starts,
            since: None,
            is_blind,
            pruning,
            statistics,
            properties,
            metrics,
        })
    }

    /// The newest row of each instrument; `None` if `key` is not the symbol, `time` not the index time, or the rows are not
    /// selected exactly.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn newest(&self, key: &Arc<dyn PhysicalExpr>, time: &Arc<dyn PhysicalExpr>) -> Result<Option<Scan>> {
        let is = |expr: &Arc<dyn PhysicalExpr>, wanted: fn(&Origin) -> bool| {
            let column = expr.downcast_ref::<ColumnExpr>();
            column.and_then(|column| self.shape.origins.get(column.index())).is_some_and(wanted)
        };
        let is_plain = is(key, |origin| matches!(origin, Origin::Symbol)) && is(time, |origin| matches!(origin, Origin::Time));
        if !is_plain || !self.selection.is_exact() || self.fetch.is_some() {
            return Ok(None);
        }
        Ok(Some(Scan::new(self.request(), Some(Order { symbol: Some(false), backwards: true }))?.first_of_each()))
    }

    /// The first row of each instrument alone.
    fn first_of_each(mut self) -> Scan {
        self.first_only = true;
        self.statistics = Arc::new(Statistics::new_unknown(&self.shape.schema));
        self
    }

    /// The rows that it reads, about.
    pub fn rows(&self) -> u64 {
        let units = self.partitions.iter().flatten();
        let rows: u64 = units.clone().map(|unit| if self.first_only { 1 } else { unit.rows() }).sum();
        self.fetch.map_or(rows, |fetch| rows.min(fetch as u64))
    }

    /// Whether `expr` is the symbol.
    pub fn is_symbol(&self, expr: &Arc<dyn PhysicalExpr>) -> bool {
        let origin = expr.downcast_ref::<ColumnExpr>().and_then(|column| self.shape.origins.get(column.index()));
        matches!(origin, Some(Origin::Symbol))
    }

    /// The instruments in the order of names, in as many groups of about as many rows as the session wants partitions; one group
    /// if there are few rows. 0 stands for records of no instrument.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn groups(&self) -> Result<Vec<BTreeSet<u32>>> {
        if self.fetch.is_some() || self.first_only {
            return Ok(Vec::new());
        }
        groups(&self.request(), self.target)
    }

    /// The rows of the instruments `group`, in one partition.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn of_group(&self, group: &BTreeSet<u32>) -> Result<Scan> {
        let mut request = Request { target: 1, ..self.request() };
        let instruments = match &request.selection.instruments {
            Some(some) => some.intersection(group).copied().collect(),
            None => group.clone(),
        };
        request.selection.instruments = Some(instruments);
        let scan = Scan::new(request, self.order)?;
        Ok(if self.first_only { scan.first_of_each() } else { scan })
    }

    /// The same scan. Its units are not looked up again: to look up those of a MemTable sorts rows.
    fn alike(&self) -> Scan {
        Scan {
            table: self.table.clone(),
            snapshot: self.snapshot.clone(),
            selection: self.selection.clone(),
            shape: self.shape.clone(),
            order: self.order,
            partitions: self.partitions.clone(),
            fetch: self.fetch,
            first_only: self.first_only,
            target: self.target,
            starts: self.starts.clone(),
            since: self.since,
            is_blind: self.is_blind,
            pruning: self.pruning,
            statistics: self.statistics.clone(),
            properties: self.properties.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The scan with each instrument's rows in one partition; `None` if they are all in one partition anyway, or it ends early.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn by_symbol(&self) -> Result<Option<Scan>> {
        if self.partitions.len() < 2 || self.fetch.is_some() {
            return Ok(None);
        }
        if self.order.is_some() {
            // Each unit has all pieces of an instrument.
            return Ok(Some(self.alike()));
        }
        let groups = self.groups()?;
        let mut partitions = Vec::with_capacity(groups.len());
        for group in &groups {
            partitions.extend(self.of_group(group)?.partitions);
        }
        let properties = Arc::new(properties(&self.request(), None, partitions.len()));
        Ok(Some(Scan { partitions, properties, ..self.alike() }))
    }

    fn request(&self) -> Request {
        Request {
            table: self.table.clone(),
            snapshot: self.snapshot.clone(),
            selection: self.selection.clone(),
            shape: self.shape.clone(),
            fetch: self.fetch,
            target: self.target,
            starts: self.starts.clone(),
            is_blind: self.is_blind,
        }
    }

    /// Bytes of columns that it has read, and that it has to read at most.
    pub fn progress(&self) -> (u64, u64) {
        let read = self.metrics.clone_inner().sum_by_name("bytes_read").map_or(0, |value| value.as_usize() as u64);
        (read.min(self.pruning.bytes_read), self.pruning.bytes_read)
    }

    /// The first index time that the selection leaves, if `time` is the index time.
    pub fn first_time(&self, time: &Arc<dyn PhysicalExpr>) -> Option<Ts> {
        let column = time.downcast_ref::<ColumnExpr>()?;
        let is_time = matches!(self.shape.origins.get(column.index()), Some(Origin::Time));
        (is_time && self.selection.time.from > TimeRange::ALL.from).then_some(self.selection.time.from)
    }

    /// The rows of each instrument from its newest one before `from` on: no earlier one is the newest at `from` or later.
    /// `None` if `key` is not the symbol, `time` not the index time, or the rows are not selected exactly.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn since_before(&self, key: &Arc<dyn PhysicalExpr>, time: &Arc<dyn PhysicalExpr>, from: Ts) -> Result<Option<Scan>> {
        let origin = |expr: &Arc<dyn PhysicalExpr>| self.shape.origins.get(expr.downcast_ref::<ColumnExpr>()?.index());
        let is_plain = matches!(origin(key), Some(Origin::Symbol)) && matches!(origin(time), Some(Origin::Time));
        let is_all = self.selection.time.from == TimeRange::ALL.from && self.fetch.is_none() && !self.first_only;
        let is_whole = self.selection.is_exact() && is_all;
        if !is_plain || !is_whole || self.starts.is_some() || from == Ts(0) {
            return Ok(None);
        }
        let request = self.request();
        let starts = Some(Arc::new(starts_before(&request, from)?));
        Ok(Some(Scan { since: Some(from), ..Scan::new(Request { starts, ..request }, self.order)? }))
    }

    /// The order that gives `required`; `None` if there is none.
    fn order_for(&self, required: &[PhysicalSortExpr]) -> Option<Order> {
        let mut order = Order { symbol: None, backwards: false };
        let is_one = self.selection.instruments.as_ref().is_some_and(|some| some.len() == 1);
        let (mut has_time, mut has_lsn) = (false, false);
        for expr in required {
            let column = expr.expr.downcast_ref::<ColumnExpr>()?;
            let origin = self.shape.origins.get(column.index())?;
            let SortOptions { descending, nulls_first } = expr.options;
            match origin {
                // The newest of equal rows follows from time and LSN: nothing is left to order.
                _ if has_lsn => return None,
                Origin::Symbol if is_one => {}
                Origin::Symbol if order.symbol.is_none() && !has_time => {
                    // Records of no instrument come last, and first backwards.
                    if nulls_first != descending && self.may_have_no_instrument() {
                        return None;
                    }
                    order.symbol = Some(descending);
                }
                Origin::Time if !has_time => {
                    order.backwards = descending;
                    has_time = true;
                }
                Origin::Lsn if has_time && descending == order.backwards => has_lsn = true,
                _ => return None,
            }
        }
        Some(order)
    }

    fn may_have_no_instrument(&self) -> bool {
        self.selection.instruments.as_ref().is_none_or(|some| some.contains(&0))
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreScan: table={}", self.table.kind.name)?;
        if let Some(some) = &self.selection.instruments {
            write!(f, ", symbols={} of {}", some.len(), self.shape.names.len())?;
        }
        let TimeRange { from, to } = self.selection.time;
        if from != TimeRange::ALL.from {
            write!(f, ", from={from}")?;
        }
        if to != TimeRange::ALL.to {
            write!(f, ", to={to}")?;
        }
        match self.order {
            Some(Order { symbol: Some(back), backwards }) => {
                let word = |back| if back { "descending" } else { "ascending" };
                write!(f, ", order=symbol {}, time {}", word(back), word(backwards))?;
            }
            Some(Order { symbol: None, backwards }) => {
                write!(f, ", order=time {}", if backwards { "descending" } else { "ascending" })?;
            }
            None => {}
        }
        if self.starts.is_some() {
            write!(f, ", from the newest row before the left side")?;
        }
        if self.first_only {
            write!(f, ", the first row of each symbol")?;
        }
        if let Some(fetch) = self.fetch {
            write!(f, ", fetch={fetch}")?;
        }
        let Pruning { files, files_read, blocks, blocks_read, bytes, bytes_read } = self.pruning;
        write!(f, ", files={files_read} of {files}, blocks={blocks_read} of {blocks}, bytes={bytes_read} of {bytes}")
    }
}

/// The index time of the newest row of each instrument before `from`; `from` if there is none.
fn starts_before(request: &Request, from: Ts) -> Result<BTreeMap<u32, Ts>> {
    let (mut snapshot, mut starts) = (request.snapshot.clone(), BTreeMap::new());
    for id in instruments(request)? {
        let series = Series { instrument: InstrumentId(id), kind: request.table.kind.kind };
        let before = snapshot.as_of(series, Ts(from.0.saturating_sub(1))).map_err(external)?;
        starts.insert(id, before.map_or(from, |row| row.index_time));
    }
    Ok(starts)
}

impl DisplayAs for Scan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f)
    }
}

impl ExecutionPlan for Scan {
    fn name(&self) -> &'static str {
        "StoreScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let units: VecDeque<Unit> = self.partitions.get(partition).cloned().unwrap_or_default().into();
        let counter = |name: &'static str| MetricBuilder::new(&self.metrics).counter(name, partition);
        let output = MetricBuilder::new(&self.metrics).output_rows(partition);
        let bytes_read = counter("bytes_read");
        if partition == 0 {
            counter("blocks_selected").add(self.pruning.blocks_read);
            counter("blocks_skipped").add(self.pruning.blocks.saturating_sub(self.pruning.blocks_read));
            counter("bytes_stored").add(self.pruning.bytes as usize);
        }
        let backwards = self.order.is_some_and(|order| order.backwards);
        let small = BatchCoalescer::new(self.shape.schema.clone(), BATCH_ROWS).with_biggest_coalesce_batch_size(Some(SMALL_ROWS));
        Ok(Box::pin(Rows {
            ahead: Ahead::default(),
            is_exact: units.len() <= units::FEW_INSTRUMENTS,
            parts: self.shape.parts(self.order.is_some()),
            shape: self.shape.clone(),
            units,
            merge: None,
            small,
            left: self.fetch.unwrap_or(usize::MAX),
            few: self.first_only || self.fetch.is_some_and(|fetch| fetch <= BATCH_ROWS),
            first_only: self.first_only,
            backwards,
            lent: None,
            width: width(&self.shape.origins) as usize,
            output,
            bytes_read,
        }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        if args.partition().is_some() {
            return Ok(Arc::new(Statistics::new_unknown(&self.shape.schema)));
        }
        let mut statistics = Statistics::clone(&self.statistics);
        if let (Some(fetch), Precision::Exact(rows)) = (self.fetch, statistics.num_rows)
            && fetch < rows
        {
            statistics = statistics.to_inexact();
            statistics.num_rows = Precision::Exact(fetch);
        }
        Ok(Arc::new(statistics))
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(Scan { fetch: limit, ..self.alike() }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn try_pushdown_sort(&self, order: &[PhysicalSortExpr]) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        let wanted = self.order_for(order).filter(|_| !self.first_only);
        let Some(wanted) = wanted else { return Ok(SortOrderPushdownResult::Unsupported) };
        let is_one = self.selection.instruments.as_ref().is_some_and(|some| some.len() == 1);
        let scan = if is_one && self.order.is_some() {
            // The pieces of one instrument are the same in any order.
            let properties = Arc::new(properties(&self.request(), Some(wanted), self.partitions.len()));
            Scan { order: Some(wanted), properties, ..self.alike() }
        } else {
            Scan { since: self.since, ..Scan::new(self.request(), Some(wanted))? }
        };
        Ok(SortOrderPushdownResult::Exact { inner: Arc::new(scan) })
    }
}
