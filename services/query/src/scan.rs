//! Owns: the operator that reads a kind's table: which blocks and pieces, in which order, in how many partitions.
//!
//! Without an order the blocks of the SSTables are lent as they are, and rows of MemTables copied. With an order by
//! (`symbol`, `time`) or by `time` the pieces of each instrument, or of all, are merged.
//!
//! What must hold: the rows of a scan are the rows of its snapshot that its selection leaves, each once, in the order that
//! its properties declare. `num_rows` is exact where the selection is.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::compute::{BatchCoalescer, SortOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::error::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column as ColumnExpr;
use datafusion::physical_expr::{ConstExpr, EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::Stream;
use tapestore::lsn::InstrumentId;
use tapestore::reader::Snapshot;
use tapestore::record::{Series, TimeRange};
use tapestore::sstable::Slice;
use tapestore::version::File;

use crate::columns::BlockRows;
use crate::failure::external;
use crate::filter::Selection;
use crate::pieces::{BATCH_ROWS, Merge, Piece, Shape};
use crate::schema::{KindTable, Origin};

/// A batch of fewer rows is put together with others.
const SMALL_ROWS: usize = 1024;
/// A scan without an order of so many instruments at most is ordered: the pieces of each are next to each other anyway.
const ORDERED_INSTRUMENTS: usize = 64;

/// An order of the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By symbol first; whether backwards.
    symbol: Option<bool>,
    /// Whether time and LSN run backwards.
    backwards: bool,
}

/// What is read one after the other.
#[derive(Clone, Debug)]
enum Unit {
    /// Rows of a block.
    Block(BlockRows),
    /// Pieces that are merged.
    Merged(Vec<Piece>),
}

impl Unit {
    fn rows(&self) -> u64 {
        match self {
            Unit::Block(rows) => rows.rows() as u64,
            Unit::Merged(pieces) => pieces.iter().map(|piece| piece.rows).sum(),
        }
    }
}

/// How much of the SSTables a scan reads.
#[derive(Clone, Copy, Debug, Default)]
struct Pruning {
    files: usize,
    files_read: usize,
    blocks: usize,
    blocks_read: usize,
    /// Bytes of the blocks, and of the columns that are read in those that are.
    bytes: u64,
    bytes_read: u64,
}

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
    pruning: Pruning,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// What a scan is made from.
#[derive(Clone, Debug)]
pub struct Request {
    /// The table.
    pub table: Arc<KindTable>,
    /// The moment.
    pub snapshot: Snapshot,
    /// The rows.
    pub selection: Selection,
    /// The columns.
    pub shape: Shape,
    /// The most rows that the caller takes.
    pub fetch: Option<usize>,
    /// The number of partitions that the session wants.
    pub target: usize,
}

/// Each instrument of the selection that has rows of the kind, in the order of names.
fn instruments(request: &Request) -> Result<Vec<u32>> {
    let kind = request.table.kind.kind;
    let mut all: Vec<u32> = match &request.selection.instruments {
        // 0 stands for records of no instrument.
        Some(some) => some.iter().map(|id| if *id == 0 { InstrumentId::NULL.0 } else { *id }).collect(),
        None => {
            let mut all = Vec::new();
            for file in request.snapshot.history().files_in(kind, request.selection.time) {
                all.extend(file.series().map_err(external)?.iter().map(|series| series.instrument.0));
                file.check().map_err(external)?;
            }
            let tables = request.snapshot.tables().iter().flat_map(|table| table.series());
            all.extend(tables.filter(|series| series.kind == kind).map(|series| series.instrument.0));
            all.sort_unstable();
            all.dedup();
            all
        }
    };
    all.sort_by_key(|id| (request.shape.names.rank(*id), *id));
    Ok(all)
}

impl Scan {
    /// The scan of `request` in `order`.
    ///
    /// # Errors
    /// Those of reading the indexes of a file.
    pub fn new(request: Request, order: Option<Order>) -> Result<Scan> {
        let is_few = request.selection.instruments.as_ref().is_some_and(|some| some.len() <= ORDERED_INSTRUMENTS);
        let order = order.or(is_few.then_some(Order { symbol: Some(false), backwards: false }));
        let mut pruning = Pruning::default();
        let units = match order {
            None => blocks(&request, &mut pruning)?,
            Some(order) => merges(&request, order, &mut pruning)?,
        };
        let statistics = Arc::new(statistics(&request, &units));
        let partitions = partitions(units, request.target, order);
        pruning.bytes_read = partitions.iter().flatten().map(Unit::rows).sum::<u64>() * width(&request.shape.origins);
        let properties = Arc::new(properties(&request, order, partitions.len()));
        let Request { table, snapshot, selection, shape, fetch, target } = request;
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
        let mut scan = Scan::new(self.request(), Some(Order { symbol: Some(false), backwards: true }))?;
        scan.first_only = true;
        scan.statistics = Arc::new(Statistics::new_unknown(&self.shape.schema));
        Ok(Some(scan))
    }

    fn request(&self) -> Request {
        Request {
            table: self.table.clone(),
            snapshot: self.snapshot.clone(),
            selection: self.selection.clone(),
            shape: self.shape.clone(),
            fetch: self.fetch,
            target: self.target,
        }
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

/// Bytes of a row in the columns that are read.
fn width(origins: &[Origin]) -> u64 {
    let width = |origin: &Origin| match origin {
        Origin::Symbol => 4,
        Origin::Publisher => 2,
        Origin::Time | Origin::Ingested | Origin::Lsn => 8,
        Origin::Field { column, .. } => column_size(column),
    };
    origins.iter().map(width).sum()
}

fn column_size(column: &tapestore::record::Column) -> u64 {
    use tapestore::record::ColumnType as C;
    match column.of {
        C::U8 | C::I8 | C::Char => 1,
        C::U16 | C::I16 => 2,
        C::U32 | C::I32 => 4,
        C::U64 | C::I64 | C::Price | C::Size | C::Ts => 8,
        C::Volume => 16,
        C::Text(size) | C::Reserved(size) => size as u64,
    }
}

/// The blocks of the selection, and its rows of MemTables.
fn blocks(request: &Request, pruning: &mut Pruning) -> Result<Vec<Unit>> {
    let (kind, selection) = (request.table.kind.kind, &request.selection);
    let mut units = Vec::new();
    let read: Vec<&File> = request.snapshot.history().files_in(kind, selection.time).collect();
    for file in request.snapshot.history().files().iter().filter(|file| file.meta().kind == kind) {
        let entries = file.blocks().map_err(external)?;
        pruning.files += 1;
        pruning.blocks += entries.len();
        pruning.bytes += entries.iter().map(|block| block.body_len).sum::<u64>();
    }
    for file in read {
        let before = units.len();
        for (index, block) in (0u32..).zip(file.blocks().map_err(external)?) {
            if !selection.may_have(block) {
                continue;
            }
            pruning.blocks_read += 1;
            let (from, to) = (selection.time.from.0, selection.time.to.0);
            if selection.instruments.is_none() && from <= block.time.min && block.time.max <= to {
                units.push(Unit::Block(BlockRows { file: file.clone(), index, from: 0, to: block.rows as usize }));
                continue;
            }
            let mut slices = file.slices_of_block(index, selection.time).map_err(external)?;
            slices.reverse();
            for slice in slices.iter().filter(|slice| has(selection, slice.series.instrument)) {
                let (index, from) = slice.locate(slice.from);
                let rows = (slice.to - slice.from) as usize;
                units.push(Unit::Block(BlockRows { file: file.clone(), index, from, to: from + rows }));
            }
        }
        file.check().map_err(external)?;
        pruning.files_read += usize::from(units.len() > before);
    }
    for table in request.snapshot.tables() {
        let all = table.series().into_iter().filter(|series| series.kind == kind);
        for series in all.filter(|series| has(selection, series.instrument)) {
            if let Some(piece) = Piece::of_table(table, series, selection.time, request.snapshot.last()) {
                units.push(Unit::Merged(vec![piece]));
            }
        }
        table.check().map_err(external)?;
    }
    Ok(units)
}

fn has(selection: &Selection, instrument: InstrumentId) -> bool {
    let id = if instrument == InstrumentId::NULL { 0 } else { instrument.0 };
    selection.instruments.as_ref().is_none_or(|some| some.contains(&id))
}

/// The pieces of each instrument, or of all instruments, in `order`.
fn merges(request: &Request, order: Order, pruning: &mut Pruning) -> Result<Vec<Unit>> {
    let (kind, selection) = (request.table.kind.kind, &request.selection);
    for file in request.snapshot.history().files().iter().filter(|file| file.meta().kind == kind) {
        let entries = file.blocks().map_err(external)?;
        pruning.files += 1;
        pruning.blocks += entries.len();
        pruning.bytes += entries.iter().map(|block| block.body_len).sum::<u64>();
    }
    let mut units: Vec<Unit> = Vec::new();
    let files: Vec<&File> = request.snapshot.history().files_in(kind, selection.time).collect();
    let mut is_read = vec![false; files.len()];
    for id in instruments(request)? {
        let mut pieces = Vec::new();
        for (file, is_read) in files.iter().zip(&mut is_read) {
            let Some(slice) = file.slice(InstrumentId(id), selection.time).map_err(external)? else { continue };
            for slice in blocks_of(file, slice, selection).map_err(external)? {
                pruning.blocks_read += blocks_in(&slice);
                *is_read = true;
                pieces.push(Piece::of_file(file, slice).map_err(external)?);
            }
            file.check().map_err(external)?;
        }
        let series = Series { instrument: InstrumentId(id), kind };
        for table in request.snapshot.tables() {
            pieces.extend(Piece::of_table(table, series, selection.time, request.snapshot.last()));
            table.check().map_err(external)?;
        }
        match units.last_mut() {
            _ if pieces.is_empty() => {}
            Some(Unit::Merged(all)) if order.symbol.is_none() => all.extend(pieces),
            _ => units.push(Unit::Merged(pieces)),
        }
    }
    pruning.files_read = is_read.iter().filter(|is_read| **is_read).count();
    if order.symbol == Some(true) {
        units.reverse();
    }
    Ok(units)
}

/// The parts of `slice` in blocks that may have rows of the selection.
fn blocks_of(file: &File, slice: Slice, selection: &Selection) -> tapestore::Result<Vec<Slice>> {
    if selection.is_exact() {
        return Ok(vec![slice]);
    }
    let entries = file.blocks()?;
    let (mut parts, mut at): (Vec<Slice>, u32) = (Vec::new(), slice.from);
    while at < slice.to {
        let (index, _) = slice.locate(at);
        let end = at + slice.run(at) as u32;
        if entries.get(index as usize).is_some_and(|block| selection.may_have(block)) {
            match parts.last_mut() {
                Some(last) if last.to == at => last.to = end,
                _ => parts.push(Slice { from: at, to: end, ..slice }),
            }
        }
        at = end;
    }
    Ok(parts)
}

fn blocks_in(slice: &Slice) -> usize {
    let (first, last) = (slice.locate(slice.from).0, slice.locate(slice.to.saturating_sub(1)).0);
    (last - first) as usize + 1
}

/// Distributes `units` over at most `target` partitions, each of which keeps their order.
fn partitions(units: Vec<Unit>, target: usize, order: Option<Order>) -> Vec<Vec<Unit>> {
    let total: u64 = units.iter().map(Unit::rows).sum();
    // A partition costs more than it brings on few rows.
    let target = if total < 100_000 { 1 } else { target.max(1) };
    if target == 1 || matches!(order, Some(Order { symbol: None, .. })) {
        return vec![units];
    }
    let (mut all, mut rows): (Vec<Vec<Unit>>, u64) = (vec![Vec::new()], 0);
    for unit in units {
        let until = total * all.len() as u64 / target as u64;
        if rows >= until && all.len() < target {
            all.push(Vec::new());
        }
        rows += unit.rows();
        if let Some(last) = all.last_mut() {
            last.push(unit);
        }
    }
    all
}

fn properties(request: &Request, order: Option<Order>, partitions: usize) -> PlanProperties {
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
fn statistics(request: &Request, units: &[Unit]) -> Statistics {
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
        let (blocks_read, bytes_read) = (counter("blocks_read"), counter("bytes_read"));
        if partition == 0 {
            counter("blocks_skipped").add(self.pruning.blocks.saturating_sub(self.pruning.blocks_read));
            counter("bytes_stored").add(self.pruning.bytes as usize);
        }
        let backwards = self.order.is_some_and(|order| order.backwards);
        let small = BatchCoalescer::new(self.shape.schema.clone(), BATCH_ROWS).with_biggest_coalesce_batch_size(Some(SMALL_ROWS));
        Ok(Box::pin(Rows {
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
            blocks_read,
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

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        let request = Request { fetch: limit, ..self.request() };
        let scan = Scan::new(request, self.order).ok()?;
        let statistics = if self.first_only { self.statistics.clone() } else { scan.statistics.clone() };
        Some(Arc::new(Scan { first_only: self.first_only, statistics, ..scan }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn try_pushdown_sort(&self, order: &[PhysicalSortExpr]) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        let wanted = self.order_for(order).filter(|_| !self.first_only);
        let Some(wanted) = wanted else { return Ok(SortOrderPushdownResult::Unsupported) };
        let scan = Scan::new(self.request(), Some(wanted))?;
        Ok(SortOrderPushdownResult::Exact { inner: Arc::new(scan) })
    }
}

/// The rows of one partition.
struct Rows {
    shape: Shape,
    units: VecDeque<Unit>,
    merge: Option<Merge>,
    small: BatchCoalescer,
    /// Rows that the caller still takes.
    left: usize,
    few: bool,
    first_only: bool,
    backwards: bool,
    /// The file of the batch that was returned last.
    lent: Option<File>,
    width: usize,
    output: Count,
    blocks_read: Count,
    bytes_read: Count,
}

impl Rows {
    /// The next batch of the units, as it is.
    fn read(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(merge) = &mut self.merge {
                if let Some(batch) = merge.next(&self.shape)? {
                    if self.first_only {
                        self.merge = None;
                        return Ok(Some(batch.slice(0, 1)));
                    }
                    return Ok(Some(batch));
                }
                self.merge = None;
            }
            match self.units.pop_front() {
                None => return Ok(None),
                Some(Unit::Block(rows)) => {
                    let batch = self.shape.in_file(&rows)?;
                    self.lent = Some(rows.file);
                    self.blocks_read.add(1);
                    return Ok(Some(batch));
                }
                Some(Unit::Merged(pieces)) => self.merge = Some(Merge::new(pieces, self.backwards, self.few)),
            }
        }
    }

    fn next(&mut self) -> Result<Option<RecordBatch>> {
        // A page of the file that was lent may have gone bad meanwhile.
        if let Some(file) = self.lent.take() {
            file.check().map_err(external)?;
        }
        loop {
            if let Some(batch) = self.small.next_completed_batch() {
                return Ok(Some(batch));
            }
            if self.left == 0 {
                return Ok(None);
            }
            match self.read()? {
                Some(batch) => {
                    let batch = if batch.num_rows() > self.left { batch.slice(0, self.left) } else { batch };
                    self.left -= batch.num_rows();
                    self.bytes_read.add(batch.num_rows() * self.width);
                    if self.shape.schema.fields().is_empty() {
                        return Ok(Some(batch));
                    }
                    self.small.push_batch(batch)?;
                    if self.left == 0 {
                        self.small.finish_buffered_batch()?;
                    }
                }
                None => {
                    self.left = 0;
                    self.small.finish_buffered_batch()?;
                }
            }
        }
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        let next = self.next().transpose();
        if let Some(Ok(batch)) = &next {
            self.output.add(batch.num_rows());
        }
        Poll::Ready(next)
    }
}

impl RecordBatchStream for Rows {
    fn schema(&self) -> SchemaRef {
        self.shape.schema.clone()
    }
}
