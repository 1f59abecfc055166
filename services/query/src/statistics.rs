//! Owns: what the process counts of its statements and connections.
//!
//! What must hold: a statement is counted once, when its rows end or nobody reads them any more, or when it is refused.

use std::fmt;
use std::time::Instant;

use datafusion::error::DataFusionError;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

use crate::failure::QueryError;
use crate::traces::Traced;

/// The shortest time of a statement that has a bucket of its own, seconds; each next bucket ends at twice the time, up to 17 minutes.
const SHORTEST: f64 = 0.000_25;
const BUCKETS: u16 = 22;

type Labels = [(&'static str, &'static str); 1];

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All its rows were read.
    Answered,
    /// It has no answer: its text is wrong, or it is not allowed.
    Refused,
    /// It failed while it ran.
    Failed,
    /// It needed more memory or disk than statements may use.
    OutOfMemory,
    /// Its limit of time passed.
    TooLong,
    /// Its client has gone, or does not want more rows.
    Cancelled,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 6] =
        [Outcome::Answered, Outcome::Refused, Outcome::Failed, Outcome::OutOfMemory, Outcome::TooLong, Outcome::Cancelled];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::OutOfMemory => "out-of-memory",
            Outcome::TooLong => "too-long",
            Outcome::Cancelled => "cancelled",
        }
    }

    /// How a statement ended whose rows end with `error`.
    pub fn of_rows(error: &DataFusionError) -> Outcome {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Outcome::OutOfMemory,
            _ => Outcome::Failed,
        }
    }
}

/// A protocol that clients connect by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL's.
    Postgres,
    /// Arrow Flight SQL.
    Flight,
    /// The console in the browser.
    Console,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Postgres, Protocol::Flight, Protocol::Console];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Postgres => "postgres",
            Protocol::Flight => "flight",
            Protocol::Console => "console",
        }
    }
}

/// Counters of a process.
#[derive(Clone, Debug)]
pub struct Statistics {
    statements: Family<Labels, Counter>,
    seconds: Histogram,
    rows: Counter,
    running: Gauge,
    connections: Family<Labels, Gauge>,
}

impl Default for Statistics {
    fn default() -> Statistics {
        let seconds = Histogram::new(exponential_buckets(SHORTEST, 2.0, BUCKETS));
        let (statements, connections) = (Family::<Labels, Counter>::default(), Family::<Labels, Gauge>::default());
        // From the start on: a rate begins with a zero.
        Outcome::ALL.iter().for_each(|outcome| drop(statements.get_or_create(&[("outcome", outcome.name())])));
        Protocol::ALL.iter().for_each(|protocol| drop(connections.get_or_create(&[("protocol", protocol.name())])));
        Statistics { statements, seconds, rows: Counter::default(), running: Gauge::default(), connections }
    }
}

impl Statistics {
    /// Counts a statement that has no answer, because of `error`.
    pub fn refuse(&self, error: &QueryError) {
        let outcome = match error {
            QueryError::Statement { .. } => Outcome::Refused,
            QueryError::Memory { .. } => Outcome::OutOfMemory,
            QueryError::TooLong { .. } => Outcome::TooLong,
            QueryError::Store(_) | QueryError::Internal { .. } => Outcome::Failed,
        };
        self.statements.get_or_create(&[("outcome", outcome.name())]).inc();
    }

    /// A statement begins to run; it may be traced.
    pub fn start(&self, traced: Option<Traced>) -> Running {
        self.running.inc();
        Running { of: self.clone(), since: Instant::now(), rows: 0, outcome: Outcome::Cancelled, traced }
    }

    /// A client has connected.
    pub fn connect(&self, protocol: Protocol) -> Client {
        let gauge = self.connections.get_or_create(&[("protocol", protocol.name())]).clone();
        gauge.inc();
        Client(gauge)
    }
}

/// A statement that runs; it ends when it is dropped.
#[derive(Debug)]
pub struct Running {
    of: Statistics,
    since: Instant,
    rows: u64,
    outcome: Outcome,
    traced: Option<Traced>,
}

impl Running {
    /// Counts rows of its answer.
    pub fn count(&mut self, rows: usize) {
        self.rows += rows as u64;
    }

    /// How it ends.
    pub fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.of.running.dec();
        self.of.rows.inc_by(self.rows);
        self.of.seconds.observe(self.since.elapsed().as_secs_f64());
        self.of.statements.get_or_create(&[("outcome", self.outcome.name())]).inc();
        if let Some(traced) = &self.traced {
            traced.end(self.outcome.name(), self.outcome != Outcome::Answered, self.rows);
        }
    }
}

/// A client that is connected; it has gone when this is dropped.
#[derive(Debug)]
pub struct Client(Gauge);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Writes a metric of any type.
pub fn write(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
}

impl Statistics {
    /// Writes its metrics.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        write(to, ("query_statements", "Statements by how they ended."), None, &self.statements)?;
        let help = "From the plan of a statement to the end of its rows.";
        write(to, ("query_statement", help), Some(&Unit::Seconds), &self.seconds)?;
        write(to, ("query_rows", "Rows of answers."), None, &self.rows)?;
        write(to, ("query_running_statements", "Statements that run."), None, &self.running)?;
        write(to, ("query_connections", "Clients that are connected."), None, &self.connections)
    }
}
