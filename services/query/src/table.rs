//! Owns: the table of a kind at one moment.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use tapestore::reader::Snapshot;

use crate::filter::{self, Selection};
use crate::names::Names;
use crate::pieces::Shape;
use crate::scan::{Request, Scan};
use crate::schema::KindTable;

/// The table of a kind in a snapshot.
#[derive(Debug)]
pub struct StoreTable {
    kind: Arc<KindTable>,
    snapshot: Snapshot,
    names: Arc<Names>,
}

impl StoreTable {
    /// The table of `kind` in `snapshot`; `names` are the store's instruments, at least those of the snapshot.
    pub fn new(kind: Arc<KindTable>, snapshot: Snapshot, names: Arc<Names>) -> StoreTable {
        StoreTable { kind, snapshot, names }
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
        let schema = Arc::new(self.kind.arrow.project(&columns)?);
        let origins = columns.iter().filter_map(|at| self.kind.origins.get(*at).copied()).collect();
        let Some(selection) = Selection::new(self.kind.kind, filters, &self.names)? else {
            return Ok(Arc::new(EmptyExec::new(schema)));
        };
        let request = Request {
            table: self.kind.clone(),
            snapshot: self.snapshot.clone(),
            fetch: limit.filter(|_| selection.is_exact()),
            selection,
            shape: Shape { schema, origins, names: self.names.clone() },
            target: state.config().target_partitions(),
            starts: None,
        };
        Ok(Arc::new(Scan::new(request, None)?))
    }
}
