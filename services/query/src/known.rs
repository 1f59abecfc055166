//! Owns: trades as known at an LSN: the operator above a scan of trades that leaves out busted ones and applies corrections.
//!
//! Which busts and corrections count is the library's to say: [`tapestore::reader::KnownAt`]. They change no time, LSN or
//! instrument, so the rows stay in the order of the scan, and its conditions on symbol and time stay exact.
//!
//! What must hold: the rows are those of `Snapshot::as_known_at`. Nothing is declared of their number. What is held is a
//! batch, and an entry for each trade with a bust or a correction, within the memory of statements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::{SchemaRef, UInt64Type};
use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::projection::ProjectionMapping;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::{StreamExt, TryStreamExt, stream};
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{Effect, Snapshot};
use tapestore::record::{Bust, Correct, Record};
use tokio::sync::OnceCell;

use crate::columns;
use crate::failure::external;
use crate::schema::Origin;

/// About the bytes of a trade with a bust or a correction.
const ENTRY: usize = size_of::<(u64, Effect)>() * 2;
/// So many are reserved at once.
const RESERVED: usize = 1024;

/// At which record a session knows the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AsKnown {
    /// Rows are as they are stored; busts and corrections are rows of their own tables.
    #[default]
    Off,
    /// At the last record of the snapshot.
    Now,
    /// At this record.
    Lsn(Lsn),
}

impl fmt::Display for AsKnown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AsKnown::Off => f.write_str("off"),
            AsKnown::Now => f.write_str("now"),
            AsKnown::Lsn(lsn) => write!(f, "lsn {lsn}"),
        }
    }
}

impl FromStr for AsKnown {
    type Err = String;

    fn from_str(text: &str) -> Result<AsKnown, String> {
        let lower = text.trim().to_ascii_lowercase();
        let lsn = lower.strip_prefix("lsn ").unwrap_or(&lower).trim().parse();
        match (lower.as_str(), lsn) {
            ("off", _) => Ok(AsKnown::Off),
            ("now", _) => Ok(AsKnown::Now),
            (_, Ok(lsn)) => Ok(AsKnown::Lsn(Lsn(lsn))),
            _ => Err(format!("'{text}' is none of: off, now, lsn and a number, like 'lsn 42'")),
        }
    }
}

/// What busts and corrections do to trades, by the trades' LSNs.
#[derive(Debug)]
struct Effects {
    of: BTreeMap<u64, Effect>,
    /// What counts the memory of it.
    _memory: MemoryReservation,
}

/// The busts and corrections of a statement, which all partitions of a scan share.
#[derive(Debug)]
pub struct Known {
    snapshot: Snapshot,
    at: Lsn,
    /// The instruments of the scan; `None` is all. 0 stands for records of no instrument.
    instruments: Option<BTreeSet<u32>>,
    effects: OnceCell<Arc<Effects>>,
}

impl Known {
    /// Those in `snapshot` up to record `at`.
    pub fn new(snapshot: Snapshot, at: Lsn, instruments: Option<BTreeSet<u32>>) -> Known {
        Known { snapshot, at, instruments, effects: OnceCell::new() }
    }

    /// The instruments with busts or corrections.
    fn concerned(&self) -> Result<BTreeSet<InstrumentId>> {
        let is_meant = |id: InstrumentId| {
            let number = if id == InstrumentId::NULL { 0 } else { id.0 };
            self.instruments.as_ref().is_none_or(|some| some.contains(&number))
        };
        let all = self.snapshot.series().map_err(external)?.into_iter();
        let all = all.filter(|series| [Bust::KIND, Correct::KIND].contains(&series.kind)).map(|series| series.instrument);
        Ok(all.filter(|id| is_meant(*id)).collect())
    }

    /// Reads them, an instrument at a time.
    async fn read(&self, pool: &Arc<dyn MemoryPool>) -> Result<Arc<Effects>> {
        let memory = MemoryConsumer::new("busts and corrections").register(pool);
        let mut of = BTreeMap::new();
        for instrument in self.concerned()? {
            for (trade, effect) in self.snapshot.as_known_at(self.at).effects(instrument).map_err(external)?.trades() {
                if of.len().is_multiple_of(RESERVED) {
                    memory.try_grow(RESERVED * ENTRY)?;
                }
                of.insert(trade.0, effect);
            }
            // The statement may end at its limit of time meanwhile.
            tokio::task::yield_now().await;
        }
        Ok(Arc::new(Effects { of, _memory: memory }))
    }
}

/// The columns of the rows, and how they come from those of the scan.
#[derive(Debug)]
struct Shape {
    schema: SchemaRef,
    /// What each column is made of.
    origins: Vec<Origin>,
    /// The place of the LSN in the scan's rows.
    lsn: usize,
}

impl Shape {
    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }

    /// The rows of `batch` that were valid at record `at`, as corrected by then.
    fn apply(&self, batch: &RecordBatch, at: Lsn, effects: &Effects) -> Result<RecordBatch> {
        let own = batch.columns().get(..self.origins.len()).unwrap_or(&[]);
        let lsns = batch.column(self.lsn).as_primitive::<UInt64Type>().values();
        let (first, last) = lsns.iter().fold((u64::MAX, 0), |(first, last), lsn| (first.min(*lsn), last.max(*lsn)));
        if last <= at.0 && (first > last || effects.of.range(first..=last).next().is_none()) {
            return self.batch(own.to_vec(), batch.num_rows());
        }
        let (mut kept, mut places, mut corrected): (Vec<u32>, Vec<(usize, usize)>, Vec<Correct>) = Default::default();
        for (row, lsn) in lsns.iter().enumerate().filter(|(_, lsn)| **lsn <= at.0) {
            match effects.of.get(lsn) {
                Some(Effect::Void) => continue,
                Some(Effect::Correct(correct)) => {
                    places.push((1, corrected.len()));
                    corrected.push(*correct);
                }
                None => places.push((0, row)),
            }
            kept.push(row as u32);
        }
        let rows = kept.len();
        let kept = UInt32Array::from(kept);
        let column = |(array, origin): (&ArrayRef, &Origin)| -> Result<ArrayRef> {
            match newer(origin, &corrected).filter(|_| !corrected.is_empty()) {
                Some(newer) => Ok(interleave(&[array.as_ref(), newer.as_ref()], &places)?),
                None => Ok(take(array, &kept, None)?),
            }
        };
        self.batch(own.iter().zip(&self.origins).map(column).collect::<Result<_>>()?, rows)
    }
}

/// The column `origin` of corrections; `None` if corrections leave it as it is.
fn newer(origin: &Origin, corrected: &[Correct]) -> Option<ArrayRef> {
    let Origin::Field { column, .. } = origin else { return None };
    let bytes: Vec<u8> = match column.name {
        "price" => corrected.iter().flat_map(|correct| correct.price.0.to_le_bytes()).collect(),
        "size" => corrected.iter().flat_map(|correct| correct.size.0.to_le_bytes()).collect(),
        _ => return None,
    };
    columns::of_field(origin, bytes, corrected.len())
}

/// The operator.
#[derive(Debug)]
pub struct KnownExec {
    input: Arc<dyn ExecutionPlan>,
    known: Arc<Known>,
    shape: Arc<Shape>,
    properties: Arc<PlanProperties>,
}

impl KnownExec {
    /// The trades of `input` that `known` leaves: its first columns, which are made of `origins`. Its column `lsn` is the LSN.
    ///
    /// # Errors
    /// It has fewer columns.
    pub fn new(input: Arc<dyn ExecutionPlan>, known: Arc<Known>, origins: Vec<Origin>, lsn: usize) -> Result<KnownExec> {
        let schema: SchemaRef = Arc::new(input.schema().project(&(0..origins.len()).collect::<Vec<_>>())?);
        KnownExec::with(input, known, Arc::new(Shape { schema, origins, lsn }))
    }

    fn with(input: Arc<dyn ExecutionPlan>, known: Arc<Known>, shape: Arc<Shape>) -> Result<KnownExec> {
        let columns: Vec<usize> = (0..shape.origins.len()).collect();
        let mapping = ProjectionMapping::from_indices(&columns, &input.schema())?;
        let equivalences = input.equivalence_properties().project(&mapping, shape.schema.clone());
        let of = input.properties();
        let properties = PlanProperties::new(equivalences, of.partitioning.clone(), of.emission_type, of.boundedness);
        Ok(KnownExec { input, known, shape, properties: Arc::new(properties) })
    }
}

impl DisplayAs for KnownExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KnownExec: busts and corrections up to LSN {}", self.known.at)
    }
}

impl ExecutionPlan for KnownExec {
    fn name(&self) -> &'static str {
        "KnownExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[Arc<dyn ExecutionPlan>; 1]>::try_from(children)
            .map_err(|_| DataFusionError::Internal("trades as known have one input".to_owned()))?;
        Ok(Arc::new(KnownExec::with(input, self.known.clone(), self.shape.clone())?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context.clone())?;
        let (known, shape) = (self.known.clone(), self.shape.clone());
        let all = async move {
            let effects = known.effects.get_or_try_init(|| known.read(context.memory_pool())).await?.clone();
            let at = known.at;
            Ok::<_, DataFusionError>(rows.map(move |batch| shape.apply(&batch?, at, &effects)))
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.shape.schema.clone(), stream::once(all).try_flatten())))
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(Arc::new(Statistics::new_unknown(&self.shape.schema)))
    }

    fn try_pushdown_sort(&self, order: &[PhysicalSortExpr]) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        self.input.try_pushdown_sort(order)?.try_map(|input| {
            let sorted = KnownExec::with(input, self.known.clone(), self.shape.clone())?;
            Ok(Arc::new(sorted) as Arc<dyn ExecutionPlan>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_off_now_or_an_lsn_and_nothing_else() {
        let of = |text: &str| text.parse::<AsKnown>();
        assert_eq!((of("off"), of("NOW"), of("lsn 42")), (Ok(AsKnown::Off), Ok(AsKnown::Now), Ok(AsKnown::Lsn(Lsn(42)))));
        assert_eq!(of("42"), Ok(AsKnown::Lsn(Lsn(42))));
        for known in [AsKnown::Off, AsKnown::Now, AsKnown::Lsn(Lsn(7))] {
            assert_eq!(of(&known.to_string()), Ok(known));
        }
        for bad in ["", "lsn", "lsn -1", "yesterday", "lsn 1.5"] {
            assert!(of(bad).unwrap_err().contains("lsn 42"), "{bad}");
        }
    }
}
