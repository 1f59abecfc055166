//! Owns: statements that are followed: the answer now, and then what is new in it whenever records have come.
//!
//! `FOLLOW [EVERY 500ms] SELECT ...` is such a statement for clients of Arrow Flight SQL; `tape sql --follow` makes one too. Each row
//! has before its own columns `as_of`, the last LSN of the snapshot that it is of. What is read again, [`Shape`] says.
//!
//! What must hold: every row of the statement's answer at the moments of the updates is given, and none twice in a row unless it
//! was gone in between. A withdrawn row is not taken back. Rows are read as they are taken, so a slow client holds no memory but
//! the keys of the rows before, which are bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampNanosecondType, UInt64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use tapestore::lsn::Lsn;
use tapestore::time::Ts;

use crate::changes::{self, Shape};
use crate::engine::Settings;
use crate::failure::QueryError;
use crate::interval::Interval;
use crate::session::Session;

/// The most rows of an answer that is compared with the one before.
const ROWS_MAX: usize = 1_000_000;
/// How often a statement is looked at that does not say it.
pub const EVERY: Duration = Duration::from_millis(500);
/// The name of the column with the LSN.
pub const AS_OF: &str = "as_of";

/// A length of time like `100ms`, at least 1 ms.
///
/// # Errors
/// `text` is none.
pub fn every(text: &str) -> Result<Duration, String> {
    let fixed = text.parse::<Interval>().ok().and_then(Interval::fixed).and_then(|ns| u64::try_from(ns).ok());
    let fixed = fixed.filter(|ns| *ns >= 1_000_000).map(Duration::from_nanos);
    fixed.ok_or_else(|| format!("'{text}' is not a length of time like 100ms, at least 1ms"))
}

/// The statement that `sql` follows, and how often; `None` if it follows none.
///
/// # Errors
/// `EVERY` has no length of time.
pub fn followed(sql: &str) -> Result<Option<(Duration, &str)>, QueryError> {
    let word = |text: &str, wanted: &str| -> Option<usize> {
        let begin = text.len() - text.trim_start().len();
        let rest = text.get(begin..)?;
        let is_it = rest.get(..wanted.len())?.eq_ignore_ascii_case(wanted);
        let ends = rest.get(wanted.len()..)?.starts_with(|c: char| c.is_whitespace());
        (is_it && ends).then_some(begin + wanted.len())
    };
    let Some(rest) = word(sql, "follow").and_then(|at| sql.get(at..)) else { return Ok(None) };
    let Some(after) = word(rest, "every").and_then(|at| rest.get(at..)) else { return Ok(Some((EVERY, rest.trim_start()))) };
    let after = after.trim_start();
    let (length, statement) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
    let every =
        every(length.trim_matches('\'')).map_err(|why| QueryError::Statement { reason: format!("FOLLOW EVERY: {why}") })?;
    Ok(Some((every, statement.trim_start())))
}

/// The columns of a followed answer whose own columns are `schema`.
pub fn with_as_of(schema: &Schema) -> SchemaRef {
    let as_of = Arc::new(Field::new(AS_OF, DataType::UInt64, false));
    Arc::new(Schema::new(std::iter::once(as_of).chain(schema.fields().iter().cloned()).collect::<Vec<_>>()))
}

/// The columns of the followed answer of `sql`, `as_of` first.
///
/// # Errors
/// The statement is wrong.
pub async fn schema(session: &Session, sql: &str) -> Result<SchemaRef, QueryError> {
    Ok(with_as_of(&session.describe(sql).await?.schema))
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// Rows that are new.
    Rows(RecordBatch),
    /// All rows of this moment were given.
    Current,
    /// No record has come.
    Idle,
}

/// A row in a form that is compared.
type Key = Box<[u8]>;
/// Rows, and how often each occurs.
type Rows = HashMap<Key, usize>;

/// The answer before, as far as it is compared.
#[derive(Debug)]
enum Seen {
    /// Nothing is compared.
    Rows,
    /// The rows before, and those of this moment so far.
    Any { before: Rows, now: Rows },
    /// The rows before by their buckets, and those of this moment so far.
    Sampled { bucket: usize, before: BTreeMap<i64, Rows>, now: BTreeMap<i64, Rows>, from: i64 },
    /// The row of each key with its time and LSN, how often each row occurs, and the batches of this moment.
    Latest { keys: usize, newest: HashMap<Key, (i64, u64, Key)>, counts: Rows, batches: Vec<RecordBatch> },
}

/// An answer that is read.
struct Reading {
    rows: SendableRecordBatchStream,
    /// The last LSN of the snapshot.
    last: Lsn,
    /// The last one that the statement reads.
    as_of: Lsn,
    /// Whether all its rows were read.
    is_over: bool,
}

/// A followed statement.
pub struct Updates {
    session: Session,
    sql: String,
    parameters: Vec<ScalarValue>,
    shape: Shape,
    seen: Seen,
    /// How many rows were read of this moment.
    rows: usize,
    /// Rows that are given next, the first one last.
    ready: Vec<RecordBatch>,
    reading: Option<Reading>,
    last: Option<Lsn>,
}

fn too_many() -> QueryError {
    let reason = format!(
        "the answer has more than {ROWS_MAX} rows, too many to find the new ones; narrow it by a time, like WHERE time > now() - interval '5 minutes'"
    );
    QueryError::Statement { reason }
}

fn keys(columns: &[ArrayRef], rows: usize) -> Result<Vec<Key>, QueryError> {
    if columns.is_empty() {
        return Ok(vec![Key::default(); rows]);
    }
    let wrong = |error: arrow::error::ArrowError| QueryError::Statement { reason: format!("rows cannot be compared: {error}") };
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let converted = RowConverter::new(fields).and_then(|converter| converter.convert_columns(columns)).map_err(wrong)?;
    Ok(converted.iter().map(|row| row.as_ref().into()).collect())
}

/// Counts `key` in `now`; whether it occurs more often there than in `before`.
fn is_new(key: Key, before: Option<&Rows>, now: &mut Rows) -> bool {
    let there = before.and_then(|before| before.get(&key)).copied().unwrap_or(0);
    let count = now.entry(key).or_default();
    *count += 1;
    there < *count
}

fn times(column: &ArrayRef) -> Result<ArrayRef, QueryError> {
    let of = DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None);
    cast(column, &of).map_err(|error| QueryError::Internal { reason: error.to_string() })
}

fn kept(batch: &RecordBatch, is_kept: Vec<bool>) -> Result<RecordBatch, QueryError> {
    filter_record_batch(batch, &BooleanArray::from(is_kept)).map_err(|error| QueryError::Internal { reason: error.to_string() })
}

impl Seen {
    fn of(shape: &Shape) -> Seen {
        match shape {
            Shape::Rows => Seen::Rows,
            Shape::Any => Seen::Any { before: Rows::new(), now: Rows::new() },
            Shape::Sampled { bucket } => {
                Seen::Sampled { bucket: *bucket, before: BTreeMap::new(), now: BTreeMap::new(), from: i64::MIN }
            }
            Shape::Latest { keys } => {
                Seen::Latest { keys: *keys, newest: HashMap::new(), counts: Rows::new(), batches: Vec::new() }
            }
        }
    }

    /// The rows of `batch` that are new, of those that can be given already.
    fn new_rows(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>, QueryError> {
        match self {
            Seen::Rows => Ok(Some(batch)),
            Seen::Any { before, now } => {
                let keys = keys(batch.columns(), batch.num_rows())?;
                let is_kept = keys.into_iter().map(|key| is_new(key, Some(before), now)).collect();
                kept(&batch, is_kept).map(Some)
            }
            Seen::Sampled { bucket, before, now, .. } => {
                let starts = times(batch.column(*bucket))?;
                let starts = starts.as_primitive::<TimestampNanosecondType>().values();
                let keys = keys(batch.columns(), batch.num_rows())?.into_iter().zip(starts.iter());
                let is_kept = keys.map(|(key, start)| is_new(key, before.get(start), now.entry(*start).or_default())).collect();
                kept(&batch, is_kept).map(Some)
            }
            Seen::Latest { batches, .. } => {
                batches.push(batch);
                Ok(None)
            }
        }
    }

    /// The rows that are given at the end of a moment.
    fn end(&mut self) -> Result<Vec<RecordBatch>, QueryError> {
        match self {
            Seen::Rows => Ok(Vec::new()),
            Seen::Any { before, now } => {
                *before = std::mem::take(now);
                Ok(Vec::new())
            }
            Seen::Sampled { before, now, from, .. } => {
                // What was not read again stays.
                drop(before.split_off(from));
                before.append(now);
                Ok(Vec::new())
            }
            Seen::Latest { keys, newest, counts, batches } => newest_rows(&std::mem::take(batches), *keys, newest, counts),
        }
    }

    /// How many rows are compared with the next ones.
    fn len(&self) -> usize {
        match self {
            Seen::Rows => 0,
            Seen::Any { before, .. } => before.values().sum(),
            Seen::Sampled { before, .. } => before.values().flat_map(HashMap::values).sum(),
            Seen::Latest { newest, .. } => newest.len(),
        }
    }
}

/// Puts the rows of `batches` that are newer than the known ones of their keys in the place of those. Returns the rows that the
/// answer has more often than before.
fn newest_rows(
    batches: &[RecordBatch],
    key_columns: usize,
    newest: &mut HashMap<Key, (i64, u64, Key)>,
    counts: &mut Rows,
) -> Result<Vec<RecordBatch>, QueryError> {
    let mut before = Rows::new();
    let mut changed: Vec<Vec<Option<Key>>> = Vec::new();
    for batch in batches {
        let own = batch.num_columns().saturating_sub(key_columns + 2);
        let (columns, extra) = batch.columns().split_at_checked(own).unwrap_or_default();
        let [time, lsn, key_columns @ ..] = extra else {
            return Err(QueryError::Internal { reason: "the newest rows have no time and LSN".to_owned() });
        };
        let (time, lsn) = (times(time)?, lsn.as_primitive::<UInt64Type>());
        let time = time.as_primitive::<TimestampNanosecondType>();
        let rows = keys(columns, batch.num_rows())?.into_iter().zip(keys(key_columns, batch.num_rows())?);
        let mut of_batch = Vec::with_capacity(batch.num_rows());
        for ((row, key), (time, lsn)) in rows.zip(time.values().iter().zip(lsn.values())) {
            if newest.get(&key).is_some_and(|(t, l, _)| (*t, *l) >= (*time, *lsn)) {
                of_batch.push(None);
                continue;
            }
            if let Some((.., old)) = newest.insert(key, (*time, *lsn, row.clone()))
                && let Some(count) = counts.get_mut(&old)
            {
                before.entry(old).or_insert(*count);
                *count -= 1;
            }
            let count = counts.entry(row.clone()).or_default();
            before.entry(row.clone()).or_insert(*count);
            *count += 1;
            of_batch.push(Some(row));
        }
        changed.push(of_batch);
    }
    let mut left: Rows = HashMap::new();
    for (row, before) in before {
        let now = counts.get(&row).copied().unwrap_or(0);
        if now == 0 {
            counts.remove(&row);
        }
        left.insert(row, now.saturating_sub(before));
    }
    let mut is_new = |row: &Option<Key>| {
        let left = row.as_ref().and_then(|row| left.get_mut(row)).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    };
    let mut found = Vec::new();
    for (batch, rows) in batches.iter().zip(&changed) {
        let rows = kept(batch, rows.iter().map(&mut is_new).collect())?;
        if rows.num_rows() > 0 {
            found.push(rows);
        }
    }
    Ok(found)
}

impl Updates {
    /// The updates of the answer of `sql` with `parameters`, for a client with `session`.
    ///
    /// # Errors
    /// The statement is wrong or has no rows.
    pub async fn new(session: Session, sql: &str, parameters: Vec<ScalarValue>) -> Result<Updates, QueryError> {
        let shape = session.shape(sql).await?;
        Ok(Updates {
            seen: Seen::of(&shape),
            session,
            sql: sql.to_owned(),
            parameters,
            shape,
            rows: 0,
            ready: Vec::new(),
            reading: None,
            last: None,
        })
    }

    /// What part of the answer is read again.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether a storage process serves the store.
    pub fn is_served(&self) -> bool {
        self.session.engine().is_served()
    }

    /// The rows as a stream with the columns `schema` that ends with an error alone; it looks for new records every `every`.
    pub fn rows(self, every: Duration, schema: SchemaRef) -> SendableRecordBatchStream {
        let rows = stream::try_unfold(self, move |mut updates| async move {
            loop {
                match updates.next().await.map_err(|error| DataFusionError::External(Box::new(error)))? {
                    Step::Rows(rows) => return Ok(Some((rows, updates))),
                    Step::Current => {}
                    Step::Idle => tokio::time::sleep(every).await,
                }
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    /// What comes next. After [`Step::Idle`] the caller waits.
    ///
    /// # Errors
    /// The statement is wrong, its answer has too many rows to compare, or the store cannot be read.
    pub async fn next(&mut self) -> Result<Step, QueryError> {
        loop {
            let Some(reading) = &mut self.reading else {
                let newest = self.session.engine().moment(self.session.settings())?.snapshot.last();
                if self.last == Some(newest) {
                    return Ok(Step::Idle);
                }
                self.rows = 0;
                self.reading = self.begin(newest).await?;
                if self.reading.is_none() {
                    self.last = Some(newest);
                }
                continue;
            };
            if let Some(rows) = self.ready.pop() {
                return given(&rows, &self.shape, reading.as_of).map(Step::Rows);
            }
            if reading.is_over {
                (self.last, self.reading) = (Some(reading.last), None);
                return Ok(Step::Current);
            }
            match reading.rows.next().await.transpose()? {
                Some(batch) => {
                    self.rows += batch.num_rows();
                    if self.shape != Shape::Rows && self.rows > ROWS_MAX {
                        return Err(too_many());
                    }
                    self.ready.extend(self.seen.new_rows(batch)?.filter(|rows| rows.num_rows() > 0));
                }
                None => {
                    reading.is_over = true;
                    self.ready = self.seen.end()?;
                    self.ready.reverse();
                    if self.seen.len() > ROWS_MAX {
                        return Err(too_many());
                    }
                }
            }
        }
    }

    /// Begins to read what can have changed; `None` if nothing has.
    async fn begin(&mut self, newest: Lsn) -> Result<Option<Reading>, QueryError> {
        let base = *self.session.settings();
        let mut last = None;
        let settings = match (&self.shape, self.last) {
            (Shape::Rows | Shape::Latest { .. }, after) => Settings { after, ..base },
            (Shape::Sampled { .. }, Some(before)) => {
                // Both statements are of one moment.
                last = Some(newest);
                let until = Some(base.until.map_or(newest, |until| until.min(newest)));
                let new = Settings { after: Some(before), until, ..base };
                let first = first_bucket(&self.session, &self.sql, self.parameters.clone(), &new).await?;
                let Some(first) = first else { return Ok(None) };
                if let Seen::Sampled { from, .. } = &mut self.seen {
                    *from = first;
                }
                Settings { since: Some(Ts(u64::try_from(first).unwrap_or(0))), until, ..base }
            }
            _ => base,
        };
        let change: fn(&LogicalPlan) -> Result<LogicalPlan, DataFusionError> = match self.shape {
            Shape::Latest { .. } => changes::with_keys,
            _ => |plan| Ok(plan.clone()),
        };
        let answer = self.session.answer_as(&self.sql, self.parameters.clone(), &settings, change).await?;
        let last = last.unwrap_or(answer.last);
        let as_of = base.until.map_or(last, |until| until.min(last));
        Ok(Some(Reading { rows: answer.rows, last, as_of, is_over: false }))
    }
}

/// The start of the first bucket of `sql` that has records of `settings`.
async fn first_bucket(
    session: &Session,
    sql: &str,
    parameters: Vec<ScalarValue>,
    settings: &Settings,
) -> Result<Option<i64>, QueryError> {
    let mut answer = session.answer_as(sql, parameters, settings, changes::first_bucket).await?;
    let mut first = None;
    while let Some(batch) = answer.rows.next().await.transpose()? {
        let starts = batch.columns().first().map(times).transpose()?;
        let starts = starts.as_ref().map(|starts| starts.as_primitive::<TimestampNanosecondType>());
        first = first.or(starts.and_then(|starts| starts.iter().flatten().min()));
    }
    Ok(first)
}

/// `rows` as they are given: with `as_of`, and without what was added to them.
fn given(rows: &RecordBatch, shape: &Shape, as_of: Lsn) -> Result<RecordBatch, QueryError> {
    let extra = if let Shape::Latest { keys } = shape { keys + 2 } else { 0 };
    let schema = with_as_of(&changes::without(&rows.schema(), extra));
    let of: ArrayRef = Arc::new(UInt64Array::from_value(as_of.0, rows.num_rows()));
    let columns = std::iter::once(of).chain(rows.columns().iter().cloned()).take(schema.fields().len()).collect();
    RecordBatch::try_new(schema, columns).map_err(|error| QueryError::Internal { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_followed_by_its_first_words() {
        let of = |sql| followed(sql).unwrap();
        assert_eq!(of("FOLLOW select 1"), Some((EVERY, "select 1")));
        assert_eq!(of(" follow\tEvery 20ms\nselect 1"), Some((Duration::from_millis(20), "select 1")));
        assert_eq!(of("follow every '2s' select 1"), Some((Duration::from_secs(2), "select 1")));
        for sql in ["select 1", "followed select 1", "", "follow", "select follow every 1s from t"] {
            assert_eq!(of(sql), None, "{sql}");
        }
        for sql in ["follow every select 1", "follow every 0s select 1", "follow every"] {
            assert!(followed(sql).is_err() || of(sql).is_some_and(|(_, rest)| rest == "every" || rest.is_empty()), "{sql}");
        }
        assert!(followed("follow every soon select 1").unwrap_err().to_string().contains("100ms"));
    }

    #[test]
    fn of_equal_newest_rows_only_those_are_given_that_there_were_not_before() {
        let batch = |rows: &[(&str, i64, i64, u64)]| {
            let text = |at: fn(&(&str, i64, i64, u64)) -> String| -> ArrayRef {
                Arc::new(arrow::array::StringArray::from_iter_values(rows.iter().map(at)))
            };
            let times = arrow::array::TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.2));
            let lsns = UInt64Array::from_iter_values(rows.iter().map(|row| row.3));
            let columns: Vec<(&str, ArrayRef)> = vec![
                ("price", text(|row| row.1.to_string())),
                ("__0", Arc::new(times)),
                ("__1", Arc::new(lsns)),
                ("__2", text(|row| row.0.to_owned())),
            ];
            RecordBatch::try_from_iter(columns).unwrap()
        };
        let mut seen = Seen::of(&Shape::Latest { keys: 1 });
        let mut update = |rows: &[(&str, i64, i64, u64)]| -> Vec<String> {
            assert!(seen.new_rows(batch(rows)).unwrap().is_none());
            let found = seen.end().unwrap();
            let prices = found.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>());
            prices.map(str::to_owned).collect()
        };
        assert_eq!(update(&[("A", 1, 10, 1), ("B", 2, 10, 2)]), ["1", "2"]);
        // Late: not the newest one. The same again: not new.
        assert_eq!(update(&[("A", 5, 9, 3)]), [""; 0]);
        assert_eq!(update(&[("A", 1, 11, 4)]), [""; 0]);
        // A row goes from one key to another.
        assert_eq!(update(&[("A", 2, 12, 5), ("B", 3, 12, 6)]), ["3"]);
        assert_eq!(update(&[("C", 2, 12, 7), ("B", 3, 12, 8)]), ["2"]);
    }
}
