//! Owns: traces for a collector of OpenTelemetry: spans that wait, and the thread that sends them by OTLP over gRPC.
//!
//! | file | owns |
//! |---|---|
//! | `frames` | the spans of a frame of the log, from the moments that storage sends |
//!
//! What must hold: off unless an address is given. Nothing waits for the collector: at most 4,096 spans wait, further ones are
//! dropped and counted, and a collector that is away is tried again with each batch.

pub mod frames;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use crate::exit::{Failure, Outcome, UNAVAILABLE, USAGE};
use crate::terminal::yield_to_work;

/// Spans that wait.
pub const WAITING: usize = 4096;
/// Spans of one message.
const BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take to accept a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where traces go, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Options<'o> {
    /// The address of the collector, like `http://127.0.0.1:4317`.
    pub endpoint: &'o str,
    /// The name of this process in the traces, like `tape-storage`.
    pub service: &'static str,
    /// Which of the processes of one name it is: its store.
    pub instance: &'o str,
}

/// A span.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its trace.
    pub trace: u128,
    /// Its number in the trace; never 0.
    pub id: u64,
    /// The span that it is a part of; 0: none.
    pub parent: u64,
    /// Whether another process has that span.
    pub is_parent_remote: bool,
    /// Its name.
    pub name: String,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// Whether what it stands for failed.
    pub is_error: bool,
    /// What else is to be known.
    pub attributes: Vec<KeyValue>,
}

/// Takes spans for the collector.
#[derive(Clone, Debug)]
pub struct Sender {
    to: SyncSender<Span>,
    dropped: Arc<AtomicU64>,
}

impl Sender {
    /// Queues `span`, or drops it if too many wait.
    pub fn send(&self, span: Span) {
        if self.to.try_send(span).is_err() {
            self.drop(1);
        }
    }

    /// Counts `spans` that were dropped.
    fn drop(&self, spans: u64) {
        // Orders nothing: a number for people.
        self.dropped.fetch_add(spans, Ordering::Relaxed);
    }

    /// Spans that were dropped: the queue was full, or the collector did not accept them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Starts the thread that sends spans. It ends with the process, or when the last sender is gone and what waits has been sent.
///
/// # Errors
/// The address is wrong, or the thread cannot be started.
pub fn start(options: &Options<'_>) -> Outcome<Sender> {
    let Options { endpoint, service, instance } = *options;
    if !endpoint.starts_with("http://") {
        let why = format!("traces: {endpoint} is no address of a collector: write http://host:port, like http://127.0.0.1:4317");
        return Err(Failure::new(USAGE, why));
    }
    let cannot = |error: &dyn std::fmt::Display| Failure::new(UNAVAILABLE, format!("cannot send traces to {endpoint}: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_start(yield_to_work)
        .build()
        .map_err(|error| cannot(&error))?;
    let entered = runtime.enter();
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE).build();
    let mut exporter = exporter.map_err(|error| cannot(&error))?;
    drop(entered);
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_service_name(service).with_attribute(version);
    exporter.set_resource(&resource.with_attribute(KeyValue::new("service.instance.id", instance.to_owned())).build());
    let (to, spans) = sync_channel(WAITING);
    let sender = Sender { to, dropped: Arc::default() };
    let (dropped, at) = (sender.dropped.clone(), endpoint.to_owned());
    let run = move || {
        yield_to_work();
        runtime.block_on(export(&exporter, &spans, &dropped, &at));
    };
    std::thread::Builder::new().name("tape-traces".to_owned()).spawn(run).map_err(|error| cannot(&error))?;
    tracing::info!(name: "traces.sending", at = endpoint, "sending traces to a collector");
    Ok(sender)
}

async fn export(exporter: &SpanExporter, spans: &Receiver<Span>, dropped: &AtomicU64, at: &str) {
    let scope = InstrumentationScope::builder("tapestore").with_version(env!("CARGO_PKG_VERSION")).build();
    let mut is_away = false;
    while let Some(batch) = batch(spans, &scope) {
        let count = batch.len() as u64;
        let sent = tokio::time::timeout(PATIENCE, exporter.export(batch)).await;
        let why = match sent {
            Ok(Ok(())) if is_away => {
                tracing::info!(name: "traces.accepted_again", at, "the collector of traces accepts spans again");
                is_away = false;
                continue;
            }
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        dropped.fetch_add(count, Ordering::Relaxed);
        if !is_away {
            tracing::warn!(name: "traces.not_accepted", at, %why, "the collector of traces does not accept spans; they are dropped until it does");
            is_away = true;
        }
    }
}

/// The next spans; `None` once there are no senders and no spans.
fn batch(spans: &Receiver<Span>, scope: &InstrumentationScope) -> Option<Vec<SpanData>> {
    let first = spans.recv().ok()?;
    let (mut batch, ends) = (vec![data(first, scope)], Instant::now() + LINGER);
    while batch.len() < BATCH {
        match spans.recv_timeout(ends.saturating_duration_since(Instant::now())) {
            Ok(span) => batch.push(data(span, scope)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let context =
        SpanContext::new(TraceId::from(span.trace), SpanId::from(span.id), TraceFlags::SAMPLED, false, TraceState::default());
    SpanData {
        span_context: context,
        parent_span_id: SpanId::from(span.parent),
        parent_span_is_remote: span.is_parent_remote,
        span_kind: SpanKind::Internal,
        name: span.name.into(),
        start_time: span.began,
        end_time: span.ended.max(span.began),
        attributes: span.attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if span.is_error { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope.clone(),
    }
}
