//! Owns: the spans of sampled statements: the plan, the run, and each operator.
//!
//! ```text
//! statement     from the begin of its plan to the end of its rows
//!   plan        parsing, optimizing, the choice of operators
//!   run         from the first operator's start to the end of its rows
//!     OPERATOR  one for each operator of the plan, under the one that reads it; with its rows and its time on processors
//! ```
//!
//! What must hold: an operator's times are those that it has measured itself: one that does not measure has no span.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{MetricValue, MetricsSet};
use opentelemetry::KeyValue;
use tape_services::traces::{Sender, Span};
use tapestore::time::{Clock, HostClock};

/// The most bytes of a statement's text in its span.
const TEXT_MAX: usize = 2048;
/// The most operators of a statement that have spans.
const OPERATORS_MAX: usize = 200;

/// Traces statements.
#[derive(Clone, Debug)]
pub struct Traces {
    /// Where the spans go.
    pub to: Sender,
    /// One statement in so many is traced.
    pub one_in: u64,
}

/// A statement that is traced.
#[derive(Debug)]
pub struct Traced {
    to: Sender,
    text: String,
    began: Instant,
    planned: Instant,
    plan: Arc<dyn ExecutionPlan>,
}

impl Traces {
    /// Traces the statement `text`, which `plan` answers and whose planning began at `began`, if it is sampled.
    pub fn of(&self, text: &str, began: Instant, plan: &Arc<dyn ExecutionPlan>) -> Option<Traced> {
        if !fastrand::u64(..).is_multiple_of(self.one_in.max(1)) {
            return None;
        }
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = text.get(..end).unwrap_or_default().to_owned();
        Some(Traced { to: self.to.clone(), text, began, planned: Instant::now(), plan: plan.clone() })
    }
}

impl Traced {
    /// Sends the spans: the statement is over.
    pub fn end(&self, outcome: &'static str, is_error: bool, rows: u64) {
        let (now, wall) = (Instant::now(), UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0));
        let time = |at: Instant| wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall);
        let trace = (u128::from(fastrand::u64(1..)) << 64) | u128::from(fastrand::u64(..));
        let span = |name: &str, parent: u64, began: SystemTime, ended: SystemTime| Span {
            trace,
            id: fastrand::u64(1..),
            parent,
            is_parent_remote: false,
            name: name.to_owned(),
            began,
            ended,
            is_error: false,
            attributes: Vec::new(),
        };
        let mut whole = span("statement", 0, time(self.began), wall);
        whole.is_error = is_error;
        whole.attributes = vec![
            KeyValue::new("db.query.text", self.text.clone()),
            KeyValue::new("tapestore.outcome", outcome),
            KeyValue::new("tapestore.rows", i64::try_from(rows).unwrap_or(i64::MAX)),
        ];
        let plan = span("plan", whole.id, time(self.began), time(self.planned));
        let run = span("run", whole.id, time(self.planned), wall);
        let mut left = OPERATORS_MAX;
        operators(&self.plan, run.id, &span, &mut left, &self.to);
        [run, plan, whole].into_iter().for_each(|span| self.to.send(span));
    }
}

/// Sends a span for `plan` and for each operator that it reads, as parts of `parent`.
fn operators(
    plan: &Arc<dyn ExecutionPlan>,
    parent: u64,
    span: &impl Fn(&str, u64, SystemTime, SystemTime) -> Span,
    left: &mut usize,
    to: &Sender,
) {
    let mut parent = parent;
    if let Some(metrics) = plan.metrics().filter(|_| *left > 0)
        && let Some((began, ended)) = times(&metrics)
    {
        *left -= 1;
        let mut own = span(plan.name(), parent, began, ended);
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        own.attributes.extend(metrics.output_rows().map(|rows| KeyValue::new("tapestore.rows", number(rows))));
        let busy = metrics.elapsed_compute().map(|ns| KeyValue::new("tapestore.busy_ns", number(ns)));
        own.attributes.extend(busy);
        parent = own.id;
        to.send(own);
    }
    plan.children().into_iter().for_each(|child| operators(child, parent, span, left, to));
}

/// When the first of an operator's partitions started, and the last ended.
fn times(metrics: &MetricsSet) -> Option<(SystemTime, SystemTime)> {
    let (mut began, mut ended) = (None::<SystemTime>, None::<SystemTime>);
    for metric in metrics.iter() {
        match metric.value() {
            MetricValue::StartTimestamp(at) => {
                let at = at.value().map(SystemTime::from);
                began = [began, at].into_iter().flatten().min();
            }
            MetricValue::EndTimestamp(at) => {
                let at = at.value().map(SystemTime::from);
                ended = [ended, at].into_iter().flatten().max();
            }
            _ => {}
        }
    }
    began.zip(ended)
}
