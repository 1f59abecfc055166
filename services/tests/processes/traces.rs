//! Traces: a collector gets the spans of a frame, in order and joined, from one host and from three; without a collector nothing waits.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tape_services::addresses;
use tonic::{Request, Response, Status};

use crate::cluster::Hosts;
use crate::fixture::{Store, eventually};

/// A span as a collector gets it.
#[derive(Clone, Debug)]
struct Span {
    process: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    began: u64,
    ended: u64,
    numbers: BTreeMap<String, i64>,
}

/// A collector.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().unwrap();
        for of in request.into_inner().resource_spans {
            let attributes = of.resource.unwrap().attributes;
            let text = |key: &str| {
                let value = attributes.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone()?.value);
                let Some(Value::StringValue(text)) = value else { panic!("{key} in {attributes:?}") };
                text
            };
            let process = format!("{} {}", text("service.name"), text("service.instance.id"));
            for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let numbers = span.attributes.iter().filter_map(|pair| match pair.value.clone()?.value {
                    Some(Value::IntValue(number)) => Some((pair.key.clone(), number)),
                    _ => None,
                });
                all.push(Span {
                    process: process.clone(),
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    name: span.name,
                    began: span.start_time_unix_nano,
                    ended: span.end_time_unix_nano,
                    numbers: numbers.collect(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// A collector that listens; it ends with the test.
    fn start() -> (Collector, SocketAddr, tokio::runtime::Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let collector = Collector::default();
        let address = addresses::unused(1).unwrap()[0];
        let service = TraceServiceServer::new(collector.clone());
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
        (collector, address, runtime)
    }

    /// The spans of the first trace that has one of each name.
    fn whole(&self, names: &[&str]) -> Vec<Span> {
        eventually("a whole trace", || {
            let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
            for span in self.0.lock().unwrap().iter() {
                traces.entry(span.trace.clone()).or_default().push(span.clone());
            }
            traces.into_values().find(|spans| names.iter().all(|name| spans.iter().any(|span| span.name == *name)))
        })
    }
}

fn of<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    spans.iter().find(|span| span.name == name).unwrap()
}

#[test]
fn a_collector_gets_the_way_of_a_frame_from_its_publisher_to_the_disk() {
    let (collector, address, _runtime) = Collector::start();
    let at = format!("http://{address}");
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M", "--traces", &at, "--traces-one-in", "1"]);
    store.start();
    store.tape_ok(&["publish", "--sim", "--records", "20000"]);
    let spans = collector.whole(&["batch", "publish", "append", "apply", "sync"]);
    let whole = of(&spans, "batch");
    assert!(whole.parent.iter().all(|byte| *byte == 0) && whole.process.starts_with("tape-storage "), "{whole:?}");
    for span in spans.iter().filter(|span| span.name != "batch") {
        assert_eq!(span.parent, whole.id, "{span:?}");
        assert!(span.began <= span.ended && whole.began <= span.began && span.ended <= whole.ended, "{span:?} of {whole:?}");
    }
    let (publish, append, apply, sync) = (of(&spans, "publish"), of(&spans, "append"), of(&spans, "apply"), of(&spans, "sync"));
    assert!(publish.ended <= append.began && append.ended <= apply.began && append.began <= sync.ended, "{spans:?}");
    assert!(whole.ended - whole.began < 60_000_000_000, "{whole:?}");
    // The trace's id ends with the frame's index.
    let index = whole.trace[8..].iter().fold(0_u64, |index, byte| index << 8 | u64::from(*byte));
    assert_eq!(whole.numbers["tapestore.frame"].cast_unsigned(), index);
    assert!(whole.numbers["tapestore.last_lsn"] >= whole.numbers["tapestore.first_lsn"]);
    assert!(store.terminate().success());
}

#[test]
fn a_frame_has_one_trace_on_all_hosts_with_the_time_of_its_commit() {
    let (collector, address, _runtime) = Collector::start();
    let mut hosts = Hosts::initialised(false);
    hosts.configure(&format!("traces = \"http://{address}\"\ntraces-one-in = 1\n"));
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let published = || hosts.tape(leader, &["publish", "--sim", "--records", "2000", "--durability", "quorum"]);
    eventually("an acknowledged batch", || published().status.success().then_some(()));
    let spans = collector.whole(&["batch", "replicate", "follow"]);
    let (whole, follow) = (of(&spans, "batch"), of(&spans, "follow"));
    assert_eq!(follow.parent, whole.id);
    assert_ne!(follow.process, whole.process, "of another host");
    assert!(of(&spans, "replicate").ended >= whole.began);
    assert!(spans.iter().any(|span| span.name == "append" && span.parent == follow.id), "{spans:?}");
}

#[test]
fn a_collector_that_is_away_costs_dropped_spans_and_nothing_else() {
    let [away, metrics] = [0, 1].map(|at| addresses::unused(2).unwrap()[at]);
    let (at, metrics) = (format!("http://{away}"), metrics.to_string());
    let arguments =
        ["--memtable-size", "16M", "--segment-size", "4M", "--traces", &at, "--traces-one-in", "1", "--metrics", &metrics];
    let mut store = Store::new(&arguments);
    store.start();
    store.tape_ok(&["publish", "--sim", "--records", "300000", "--batch", "1"]);
    let dropped = || crate::metrics::scrape(&metrics)["tapestore_traces_dropped_total"];
    eventually("dropped spans", || (dropped() > 0.0).then_some(()));
    store.tape_ok(&["status", "--check"]);
    assert!(store.terminate().success());
    // Anything but an address is refused before the store is served.
    for wrong in ["127.0.0.1:4317", "https://127.0.0.1:4317", "x"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tape-storage"))
            .arg("--store")
            .arg(&store.path)
            .args(["--traces", wrong])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains("http://host:port"), "{wrong}: {error}");
    }
}
