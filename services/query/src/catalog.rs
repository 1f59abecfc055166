//! Owns: the tables of a statement: one for each kind, and the system tables, all as of one moment.
//!
//! | system table | a row for each |
//! |---|---|
//! | `instruments` | instrument: its symbol, its number, and its newest definition |
//! | `kinds` | kind: its name, number, bytes of a record, SSTables and rows in them |
//! | `files` | SSTable |
//! | `blocks` | block of an SSTable |
//! | `publishers` | attached publisher |
//! | `watermarks` | watermark, with its LSN |
//!
//! A table of derived bars has the name that its newest [`Mark`] has, and the newest revision of each bar of that publisher.
//!
//! What must hold: a system table is made when a statement names it, and never otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray, UInt16Array, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{LogicalPlanBuilder, col, lit};
use tapestore::lsn::{Lsn, PublisherId};
use tapestore::record::{Kind, Record};
use tapestore::shm::control::{Control, SLOTS_MAX};

use crate::derive::mark::{Mark, Progress, marks};
use crate::engine::Moment;
use crate::failure::external;
use crate::instruments::{self, Instruments};
use crate::newest::Newest;
use crate::relations::extension;
use crate::schema::{KindTable, time};
use crate::table::StoreTable;

/// The system tables.
pub const SYSTEM: [&str; 6] = [instruments::NAME, "kinds", "files", "blocks", "publishers", "watermarks"];

/// The tables of one moment.
#[derive(Debug)]
pub struct Tables(pub Moment);

impl Tables {
    fn kind(&self, name: &str) -> Option<&Arc<KindTable>> {
        self.0.kinds.iter().find(|kind| kind.name(&self.0.kinds) == name)
    }

    /// The table of the kind called `name`; `None` if there is none.
    ///
    /// # Errors
    /// None: the conditions of a session are of columns that every table has.
    pub fn of_kind(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(kind) = self.kind(name) else { return Ok(None) };
        let table = StoreTable::new(kind.clone(), self.0.snapshot.clone(), self.0.names.clone());
        // Trades as known at a record are of those up to it.
        let known = self.0.known.and_then(|at| table.as_known_at(at));
        let last = if known.is_some() { None } else { self.0.known.or(self.0.until) };
        let table: Arc<dyn TableProvider> = Arc::new(known.unwrap_or(table));
        let until = last.map(|last| col("lsn").lt_eq(lit(last.0)));
        let after = self.0.after.map(|after| col("lsn").gt(lit(after.0)));
        let since =
            self.0.since.map(|since| col("time").gt_eq(lit(ScalarValue::TimestampNanosecond(Some(since.0 as i64), None))));
        let Some(condition) = conjunction(until.into_iter().chain(after).chain(since)) else { return Ok(Some(table)) };
        let scan = LogicalPlanBuilder::scan(name, provider_as_source(table), None)?;
        let plan = scan.filter(condition)?.build()?;
        Ok(Some(Arc::new(ViewTable::new(plan, None))))
    }

    /// The tables of derived bars: the names, and the publishers with their newest marks.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn derived(&self) -> Result<BTreeMap<String, (PublisherId, Lsn, Mark)>> {
        let mut all: BTreeMap<String, (PublisherId, Lsn, Mark)> = BTreeMap::new();
        if self.0.kinds.iter().all(|table| table.kind.kind != Progress::KIND) {
            return Ok(all);
        }
        for (publisher, (lsn, mark)) in marks(&self.0.snapshot).map_err(external)? {
            let is_hidden = SYSTEM.contains(&mark.table.as_str()) || self.kind(&mark.table).is_some();
            if !is_hidden && all.get(&mark.table).is_none_or(|(_, newest, _)| *newest < lsn) {
                all.insert(mark.table.clone(), (publisher, lsn, mark));
            }
        }
        Ok(all)
    }

    /// The newest revisions of the bars of `publisher`.
    async fn newest_bars(&self, publisher: PublisherId, mark: &Mark) -> Result<Option<Arc<dyn TableProvider>>> {
        let kind = kind_name(&self.0, mark.bars);
        let Some(bars) = self.table(&kind).await? else { return Ok(None) };
        let scan = LogicalPlanBuilder::scan(kind, provider_as_source(bars), None)?;
        let input = scan.filter(col("publisher").eq(lit(publisher.0)))?.build()?;
        Ok(Some(Arc::new(ViewTable::new(extension(Newest { input }), None))))
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        let kinds = self.0.kinds.iter().map(|kind| kind.name(&self.0.kinds));
        // A store whose marks cannot be read has no such tables to list; a statement that names one says why.
        let derived = self.derived().unwrap_or_default().into_keys();
        kinds.chain(SYSTEM.iter().map(|name| (*name).to_owned())).chain(derived).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        // A user's kind may be called as a system table: the kind is meant.
        if let Some(table) = self.of_kind(name)? {
            return Ok(Some(table));
        }
        let columns = match name {
            instruments::NAME => return Ok(Some(Arc::new(Instruments::new(&self.0)))),
            "kinds" => kinds(&self.0),
            "files" => files(&self.0),
            "blocks" => blocks(&self.0).map_err(external)?,
            "publishers" => publishers(&self.0.control),
            "watermarks" => watermarks(&self.0),
            name => {
                return match self.derived()?.get(name) {
                    Some((publisher, _, mark)) => self.newest_bars(*publisher, mark).await,
                    None => Ok(None),
                };
            }
        };
        columns.table().map(Some)
    }

    fn table_exist(&self, name: &str) -> bool {
        SYSTEM.contains(&name) || self.kind(name).is_some() || self.derived().is_ok_and(|all| all.contains_key(name))
    }
}

/// Columns of a system table.
struct Columns(Vec<(&'static str, ArrayRef)>);

impl Columns {
    fn table(self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
        let schema: SchemaRef = Arc::new(ArrowSchema::new(self.0.iter().map(field).collect::<Vec<_>>()));
        let batch = RecordBatch::try_new(schema.clone(), self.0.into_iter().map(|(_, array)| array).collect())?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
    }
}

fn numbers(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

fn times(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    let values = values.into_iter().map(|ns| i64::try_from(ns).ok());
    debug_assert!(time() == DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None));
    Arc::new(values.collect::<TimestampNanosecondArray>())
}

fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn kinds(moment: &Moment) -> Columns {
    let files = moment.snapshot.history().files();
    let of = |kind: Kind| files.iter().filter(move |file| file.meta().kind == kind);
    let kinds = &moment.kinds;
    Columns(vec![
        ("name", texts(kinds.iter().map(|kind| kind.name(kinds)))),
        ("number", Arc::new(UInt16Array::from_iter_values(kinds.iter().map(|kind| kind.kind.kind.0)))),
        ("bytes", numbers(kinds.iter().map(|kind| kind.kind.words as u64 * 8))),
        ("files", numbers(kinds.iter().map(|kind| of(kind.kind.kind).count() as u64))),
        ("rows_in_files", numbers(kinds.iter().map(|kind| of(kind.kind.kind).map(|file| file.meta().rows).sum()))),
    ])
}

fn kind_name(moment: &Moment, kind: Kind) -> String {
    let found = moment.kinds.iter().find(|table| table.kind.kind == kind);
    found.map_or_else(|| kind.0.to_string(), |table| table.name(&moment.kinds))
}

fn files(moment: &Moment) -> Columns {
    let files = moment.snapshot.history().files();
    let metas = || files.iter().map(|file| file.meta());
    Columns(vec![
        ("file", numbers(metas().map(|meta| meta.id))),
        ("kind", texts(metas().map(|meta| kind_name(moment, meta.kind)))),
        ("rows", numbers(metas().map(|meta| meta.rows))),
        ("bytes", numbers(metas().map(|meta| meta.len))),
        ("first_time", times(metas().map(|meta| meta.time.0.0))),
        ("last_time", times(metas().map(|meta| meta.time.1.0))),
        ("first_lsn", numbers(metas().map(|meta| meta.lsn.0.0))),
        ("last_lsn", numbers(metas().map(|meta| meta.lsn.1.0))),
        ("path", texts(files.iter().map(|file| file.path().display().to_string()))),
    ])
}

fn blocks(moment: &Moment) -> tapestore::Result<Columns> {
    let mut all = Vec::new();
    for file in moment.snapshot.history().files() {
        for (index, block) in (0u64..).zip(file.blocks()?) {
            all.push((file.meta(), index, *block));
        }
        file.check()?;
    }
    Ok(Columns(vec![
        ("file", numbers(all.iter().map(|(meta, ..)| meta.id))),
        ("block", numbers(all.iter().map(|(_, index, _)| *index))),
        ("kind", texts(all.iter().map(|(meta, ..)| kind_name(moment, meta.kind)))),
        ("rows", numbers(all.iter().map(|(.., block)| u64::from(block.rows)))),
        ("bytes", numbers(all.iter().map(|(.., block)| block.body_len))),
        ("first_time", times(all.iter().map(|(.., block)| block.time.min))),
        ("last_time", times(all.iter().map(|(.., block)| block.time.max))),
        ("first_lsn", numbers(all.iter().map(|(.., block)| block.lsn.min))),
        ("last_lsn", numbers(all.iter().map(|(.., block)| block.lsn.max))),
    ]))
}

fn publishers(control: &Control) -> Columns {
    let attached = (0..SLOTS_MAX).filter_map(|at| {
        let slot = control.slot(at);
        let (grant, publisher, epoch) = slot.holder()?;
        Some((publisher, epoch, slot.view(grant)?))
    });
    let attached: Vec<_> = attached.collect();
    Columns(vec![
        ("publisher", Arc::new(UInt16Array::from_iter_values(attached.iter().map(|(publisher, ..)| publisher.0)))),
        ("epoch", Arc::new(UInt32Array::from_iter_values(attached.iter().map(|(_, epoch, _)| epoch.0)))),
        ("process", Arc::new(attached.iter().map(|(.., slot)| slot.pid).collect::<UInt32Array>())),
        ("accepted", numbers(attached.iter().map(|(.., slot)| slot.accepted.0))),
        ("durable", numbers(attached.iter().map(|(.., slot)| slot.durable.0))),
        ("committed", numbers(attached.iter().map(|(.., slot)| slot.committed.0))),
        ("accepted_lsn", numbers(attached.iter().map(|(.., slot)| slot.accepted_lsn.0))),
    ])
}

fn watermarks(moment: &Moment) -> Columns {
    let control = &moment.control;
    let all: [(&str, Lsn); 6] = [
        ("appended", control.appended()),
        ("applied", control.applied()),
        ("durable", control.durable()),
        ("committed", control.committed()),
        ("flushed", moment.snapshot.history().covered()),
        ("snapshot", moment.snapshot.last()),
    ];
    Columns(vec![("name", texts(all.iter().map(|(name, _)| *name))), ("lsn", numbers(all.iter().map(|(_, lsn)| lsn.0)))])
}
