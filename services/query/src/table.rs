//! Owns: the table of a kind at one moment.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use tapestore::lsn::Lsn;
use tapestore::reader::Snapshot;
use tapestore::record::{Record, Trade};

use crate::filter::{self, Selection};
use crate::known::{Known, KnownExec};
use crate::names::Names;
use crate::pieces::Shape;
use crate::scan::{Request, Scan};
use crate::schema::{KindTable, Origin};

/// The table of a kind in a snapshot.
#[derive(Debug)]
pub struct StoreTable {
    kind: Arc<KindTable>,
    snapshot: Snapshot,
    names: Arc<Names>,
    /// The record at which trades are known; `None`: they are as they are stored.
    known: Option<Lsn>,
    /// Whether the planner is to know nothing of the rows.
    is_blind: bool,
}

impl StoreTable {
    /// The table of `kind` in `snapshot`; `names` are the store's instruments, at least those of the snapshot.
    pub fn new(kind: Arc<KindTable>, snapshot: Snapshot, names: Arc<Names>) -> StoreTable {
        StoreTable { kind, snapshot, names, known: None, is_blind: false }
    }

    /// The table, of whose rows the planner is to know nothing: it makes a plan that is kept.
    pub fn blind(self) -> StoreTable {
        StoreTable { is_blind: true, ..self }
    }

    /// The table with the busts and corrections up to record `at` applied, if they apply to its kind; else `None`.
    pub fn as_known_at(&self, at: Lsn) -> Option<StoreTable> {
        let StoreTable { kind, snapshot, names, .. } = self;
        let is_trade = kind.kind.kind == Trade::KIND;
        let of = || StoreTable { known: Some(at), ..StoreTable::new(kind.clone(), snapshot.clone(), names.clone()) };
        is_trade.then(of)
    }

    fn request(&self, columns: &[usize], selection: Selection, target: usize) -> Result<Request> {
        let schema = Arc::new(self.kind.arrow.project(columns)?);
        let origins = columns.iter().filter_map(|at| self.kind.origins.get(*at).copied()).collect();
        let shape = Shape { schema, origins, names: self.names.clone() };
        let (table, snapshot) = (self.kind.clone(), self.snapshot.clone());
        Ok(Request { table, snapshot, fetch: None, selection, shape, target, starts: None, is_blind: self.is_blind })
    }

    /// The rows of `columns` that `selection` leaves, as known at record `at`.
    fn scan_known(&self, mut columns: Vec<usize>, mut selection: Selection, target: usize, at: Lsn) -> Result<KnownExec> {
        let own = columns.len();
        let is_lsn = |column: usize| matches!(self.kind.origins.get(column), Some(Origin::Lsn));
        let lsn = columns.iter().position(|column| is_lsn(*column)).unwrap_or_else(|| {
            columns.extend((0..self.kind.origins.len()).find(|column| is_lsn(*column)));
            own
        });
        if at < self.snapshot.last() {
            // Later blocks are skipped. The operator looks at each row.
            selection.lsn.max = selection.lsn.max.min(at.0);
        }
        let known = Known::new(self.snapshot.clone(), at, selection.instruments.clone());
        let request = self.request(&columns, selection, target)?;
        let origins = request.shape.origins.iter().take(own).copied().collect();
        KnownExec::new(Arc::new(Scan::new(request, None)?), Arc::new(known), origins, lsn)
    }

    /// The kind.
    pub fn kind(&self) -> &Arc<KindTable> {
        &self.kind
    }
}

#[async_trait]
impl TableProvider for StoreTable {
    fn schema(&self) -> SchemaRef {
        self.kind.arrow.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|expr| filter::support(expr)).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.kind.origins.len()).collect());
        let target = state.config().target_partitions();
        let Some(selection) = Selection::new(self.kind.kind, filters, &self.names)? else {
            return Ok(Arc::new(EmptyExec::new(Arc::new(self.kind.arrow.project(&columns)?))));
        };
        if let Some(at) = self.known {
            return Ok(Arc::new(self.scan_known(columns, selection, target, at)?));
        }
        let fetch = limit.filter(|_| selection.is_exact());
        let request = Request { fetch, ..self.request(&columns, selection, target)? };
        Ok(Arc::new(Scan::new(request, None)?))
    }
}
