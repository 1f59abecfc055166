//! What it costs to be watched: a store that is scraped each second and traces one frame in a hundred, in turns with one that does
//! neither. `cargo run --release -p bench --bin observed`, after `cargo build --release -p tape-services --bins`

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench::store::role;
use bench::{at_rate, histogram, show};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tape_services::processes::{Process, Served};
use tapestore::agent::Idle;
use tapestore::agent::Wait::Adaptive;
use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Reader};
use tapestore::record::{RecordRef, Trade};
use tapestore::time::{Clock, HostClock, Ts};
use tonic::{Request, Response, Status};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[arg(long, global = true)]
    store: Option<PathBuf>,
    /// Turns, each with a store that is watched and one that is not
    #[arg(long, default_value_t = 10)]
    turns: u64,
    /// Records of the measurement of ingest
    #[arg(long, default_value_t = 4_000_000)]
    records: u64,
    /// Records a second of the latency measurement
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Its seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Reader { count: u64 },
    #[command(hide = true)]
    Collector,
}

fn main() {
    let arguments = Arguments::parse();
    match (&arguments.role, &arguments.store) {
        (Some(Role::Reader { count }), Some(store)) => reader(store, *count),
        (Some(Role::Collector), _) => collector(),
        _ => turns(&arguments),
    }
}

/// Takes spans and counts them until standard input ends.
fn collector() {
    #[derive(Clone, Default)]
    struct Counting(Arc<AtomicU64>);

    #[tonic::async_trait]
    impl TraceService for Counting {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            let scopes = request.into_inner().resource_spans.into_iter().flat_map(|of| of.scope_spans);
            // A lone counter: relaxed.
            self.0.fetch_add(scopes.map(|of| of.spans.len() as u64).sum(), Ordering::Relaxed);
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    elsewhere();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().on_thread_start(elsewhere).build().unwrap();
    let counting = Counting::default();
    let address = tape_services::addresses::unused(1).unwrap().first().copied().unwrap();
    let service = TraceServiceServer::new(counting.clone());
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
    println!("{address}");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    println!("{}", counting.0.load(Ordering::Relaxed));
}

/// Follows the store and prints how late `count` records were visible.
fn reader(store: &Path, count: u64) {
    let mut reader = Reader::open(store).unwrap();
    let last = reader.snapshot(At::Appended).unwrap().last();
    let mut follow = reader.follow(last.next(), At::Appended);
    println!("ready");
    let (mut h, mut idle) = (histogram(), Idle::new(Adaptive));
    while h.len() < count {
        if let Some(row) = follow.poll().unwrap() {
            h.record(HostClock.monotonic().saturating_sub(row.record.header().ts_event.0).max(1)).unwrap();
            idle.worked();
        } else if idle.should_park() {
            follow.wait(Duration::from_millis(20));
        }
    }
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(&h, &mut bytes).unwrap();
    std::io::stdout().write_all(&bytes).unwrap();
}

/// What one store did.
#[derive(Clone, Copy, Debug)]
struct Did {
    p50: u64,
    p99: u64,
    /// Records a second.
    ingest: f64,
}

/// Who watches is on another host, so here it yields to what is measured.
fn elsewhere() {
    rustix::process::nice(19).unwrap();
}

/// Scrapes the socket at `path` each second until `stop`; returns how often.
fn scrape(path: &Path, stop: &AtomicBool) -> u64 {
    elsewhere();
    let mut scrapes = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut socket = UnixStream::connect(path).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: storage\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("# EOF\n"), "{text}");
        scrapes += 1;
        while began.elapsed() < Duration::from_secs(1) && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    scrapes
}

/// Measures one store, watched or not.
fn measure(arguments: &Arguments, is_watched: bool) -> Did {
    let dir = tempfile::tempdir().unwrap();
    let (store, socket) = (dir.path().join("store"), dir.path().join("metrics"));
    let program = std::env::current_exe().unwrap().with_file_name("tape-storage");
    let mut command = Command::new(program);
    command.arg("--store").arg(&store).args(["--log", "error", "--memtable-size", "512M"]).stdin(Stdio::null());
    let mut spans = is_watched.then(|| {
        let mut collector = role(&["collector"], &store);
        let mut line = String::new();
        BufReader::new(collector.stdout().unwrap()).read_line(&mut line).unwrap();
        command.arg("--metrics").arg(format!("unix:{}", socket.display()));
        command.args(["--traces", &format!("http://{}", line.trim()), "--traces-one-in", "100"]);
        collector
    });
    let mut served = Served::new(store.clone());
    served.start(&mut command).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraping = is_watched.then(|| scope.spawn(|| scrape(&socket, &stop)));
        let did = paths(arguments, &store);
        stop.store(true, Ordering::Relaxed);
        if let (Some(scraping), Some(mut collector)) = (scraping, spans.take()) {
            let scrapes = scraping.join().unwrap();
            // The exporter sends what waits.
            std::thread::sleep(Duration::from_secs(2));
            collector.close_stdin();
            let mut text = String::new();
            collector.stdout().unwrap().read_to_string(&mut text).unwrap();
            collector.finish().unwrap();
            let received = text.trim().parse::<u64>().unwrap();
            assert!(scrapes > 0 && received > 0, "{scrapes} scrapes, {received} spans: nobody was watching");
            print!("  {scrapes} scrapes, {received} spans;");
        }
        did
    })
}

/// Publish to visible at a fixed rate, then ingest as fast as it goes.
fn paths(arguments: &Arguments, store: &Path) -> Did {
    let (rate, count) = (arguments.rate, arguments.rate * arguments.seconds);
    let mut publisher = Publisher::open(Options { durability: Durability::Os, ..Options::new(store, PublisherId(1)) }).unwrap();
    let names: Vec<_> = (1..=1000).map(|i| format!("BENCH:{i}").parse().unwrap()).collect();
    publisher.instruments(&names).unwrap();
    let trade = |id: u64| Trade { trade_id: id, instrument: InstrumentId(1 + (id % 1000) as u32), ..Trade::default() };
    let mut child: Process = role(&["reader", &count.to_string()], store);
    child.stdout().unwrap().read_exact(&mut [0u8; 6]).unwrap();
    at_rate(rate, count, |i, due| {
        let ts_event = Ts(HostClock.monotonic() - due.elapsed().as_nanos() as u64);
        let record = Trade { ts_event, ts_recv: HostClock.wall(), ..trade(i) };
        while publisher.publish(&record).is_err() {}
    });
    let mut bytes = Vec::new();
    child.stdout().unwrap().read_to_end(&mut bytes).unwrap();
    child.wait().unwrap();
    let late: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
    let began = Instant::now();
    for i in 0..arguments.records {
        let record = Trade { ts_recv: Ts(1_700_000_000_000_000_000 + i * 1000), ..trade(i) };
        loop {
            match publisher.stage(RecordRef::of(&record)) {
                Ok(_) => break,
                Err(PublishError::Full { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
        if i % 256 == 255 {
            publisher.send();
        }
    }
    publisher.close(Duration::from_secs(60)).unwrap();
    let ingest = arguments.records as f64 / began.elapsed().as_secs_f64();
    Did { p50: late.value_at_quantile(0.5), p99: late.value_at_quantile(0.99), ingest }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_unstable_by(f64::total_cmp);
    let middle = of.len() / 2;
    let at = |at: usize| of.get(at).copied().unwrap();
    if of.len().is_multiple_of(2) { f64::midpoint(at(middle - 1), at(middle)) } else { at(middle) }
}

fn turns(arguments: &Arguments) {
    println!(
        "{} turns; {} records/s by schedule for {} s, then {} records in batches of 256; {} CPUs",
        arguments.turns,
        arguments.rate,
        arguments.seconds,
        arguments.records,
        std::thread::available_parallelism().unwrap()
    );
    let mut all: Vec<[Did; 2]> = Vec::new();
    for turn in 0..arguments.turns {
        // Both orders: the machine's speed changes by the minute.
        let first = turn % 2 == 1;
        let (one, other) = (measure(arguments, first), measure(arguments, !first));
        let pair = if first { [other, one] } else { [one, other] };
        let [alone, watched] = &pair;
        let text = |did: &Did| format!("p50 {}, p99 {}, {:.2} M records/s", show(did.p50), show(did.p99), did.ingest / 1e6);
        println!(" turn {}: alone {}; watched {}", turn + 1, text(alone), text(watched));
        all.push(pair);
    }
    for (what, of) in [
        ("publish -> visible, p50, us", (|did: &Did| did.p50 as f64 / 1e3) as fn(&Did) -> f64),
        ("publish -> visible, p99, us", |did| did.p99 as f64 / 1e3),
        ("ingest, M records/s", |did| did.ingest / 1e6),
    ] {
        let alone = median(all.iter().map(|[alone, _]| of(alone)).collect());
        let watched = median(all.iter().map(|[_, watched]| of(watched)).collect());
        let ratio = median(all.iter().map(|[alone, watched]| of(watched) / of(alone)).collect());
        println!("{what:<30} alone {alone:>8.2}   watched {watched:>8.2}   median of the ratios {ratio:.3}");
    }
}
