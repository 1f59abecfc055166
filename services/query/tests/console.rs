//! The console's server: its addresses, the headers of every answer, what it refuses, statements, events, and clients that
//! read nothing; and its page in a browser.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

#[path = "console/browser.rs"]
mod browser;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tape_query::access::Access;
use tape_query::console::{self, Options};
use tape_query::engine::{self, Engine};
use tape_query::nesting::STACK;
use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Definition, Price, Quote, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

const START: u64 = 1_723_100_000_000_000_000;
/// Text that would run if it became markup.
const MARKUP: &str = "<img src=x onerror=\"document.title='broken'\">";

/// A store, a publisher of it, and a console.
struct World {
    store: Embedded,
    publisher: Mutex<Publisher>,
    instrument: InstrumentId,
    runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _is_received = self.stop.send(true).is_ok();
    }
}

fn world(options: Options, access: Access) -> World {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    let names = ["XNAS:AAPL", "XNAS:MSFT", "BINANCE:BTCUSDT"].map(|name| name.parse().unwrap());
    let ids = publisher.instruments(&names).unwrap();
    let instrument = ids[0];
    for i in 0..600u64 {
        let ts_recv = Ts(START + i * 1_000_000_000);
        let price = Price(190_000_000_000 + (i as i64 * 37 % 200) * 10_000_000);
        let trade = Trade { instrument: ids[(i % 3) as usize], price, size: Size(5_000_000_000), ts_recv, ..Trade::default() };
        publisher.publish(&trade).unwrap();
        let (bid_px, ask_px) = (Price(price.0 - 10_000_000), Price(price.0 + 10_000_000));
        publisher.publish(&Quote { instrument, bid_px, ask_px, ts_recv, ..Quote::default() }).unwrap();
    }
    let mut raw_symbol = [0; 71];
    raw_symbol[..MARKUP.len()].copy_from_slice(MARKUP.as_bytes());
    publisher.publish(&Definition { instrument, raw_symbol, ts_recv: Ts(START), ..Definition::default() }).unwrap();
    publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
    let engine = Arc::new(Engine::open(store.path(), engine::Options { threads: 2, ..engine::Options::default() }).unwrap());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_stack_size(STACK).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    runtime.spawn(console::serve(listener, engine, Arc::new(access), options, stopped));
    World { store, publisher: Mutex::new(publisher), instrument, runtime, address, stop }
}

fn open() -> World {
    world(Options::default(), Access::open())
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn lines(&self) -> Vec<Json> {
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The body whose parts, each after its length, are `bytes`.
fn joined(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        body.extend_from_slice(&bytes[at + 2..at + 2 + len]);
        bytes = &bytes[at + 4 + len..];
        if len == 0 {
            break;
        }
    }
    body
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    format!("{text}\r\n{body}")
}

impl World {
    fn send(&self, request: &str) -> Answer {
        let bytes = self.runtime.block_on(async {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut bytes)).await.unwrap().unwrap();
            bytes
        });
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let body = bytes[end + 4..].to_vec();
        let body = if headers.contains_key("transfer-encoding") { joined(&body) } else { body };
        Answer { status, headers, body: String::from_utf8(body).unwrap() }
    }

    fn get(&self, path: &str) -> Answer {
        self.send(&request("GET", path, &[("host", "localhost")], ""))
    }

    fn ask(&self, question: &Json) -> Answer {
        let headers = [("host", "localhost"), ("content-type", "application/json"), ("x-tape-console", "1")];
        self.send(&request("POST", "/api/query", &headers, &question.to_string()))
    }

    fn publish(&self, price: i64) {
        let (instrument, ts_recv) = (self.instrument, Ts(START + 3_600_000_000_000));
        let mut publisher = self.publisher.lock().unwrap();
        let trade = Trade { instrument, price: Price(price), size: Size(1_000_000_000), ts_recv, ..Trade::default() };
        publisher.publish(&trade).unwrap();
        publisher.send();
    }
}

#[test]
fn every_answer_forbids_the_browser_all_but_this_page() {
    let world = open();
    let refused = world.send(&request("GET", "/", &[("host", "evil.example")], ""));
    let mut answers =
        vec![(421, refused), (404, world.get("/nothing")), (405, world.send(&request("PUT", "/", &[("host", "localhost")], "")))];
    answers.push((400, world.ask(&json!({ "sql": "selec" }))));
    answers.push((405, world.get("/api/query")));
    for path in ["/", "/console.css", "/console.js", "/editor.js", "/grid.js", "/chart.js", "/live.js", "/store.js", "/icon.svg"]
    {
        answers.push((200, world.get(path)));
    }
    for path in ["/api/words", "/api/tables", "/api/symbols?prefix=X", "/api/health"] {
        answers.push((200, world.get(path)));
    }
    for (status, answer) in answers {
        assert_eq!(answer.status, status, "{answer:?}");
        let header = |name: &str| answer.headers.get(name).map(String::as_str).unwrap_or_default();
        assert!(header("content-security-policy").starts_with("default-src 'none'; script-src 'self'; style-src 'self'"));
        assert_eq!((header("x-content-type-options"), header("cache-control")), ("nosniff", "no-store"));
        assert_eq!((header("x-frame-options"), header("cross-origin-resource-policy")), ("DENY", "same-origin"));
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        assert!(!header("content-type").is_empty());
    }
}

#[test]
fn requests_of_other_sites_and_for_other_hosts_are_refused_with_a_reason() {
    let world = open();
    let own = format!("127.0.0.1:{}", world.address.port());
    let origin = format!("http://{own}");
    let post = |headers: &[(&str, &str)]| {
        let all = [&[("content-type", "application/json"), ("x-tape-console", "1")][..], headers].concat();
        world.send(&request("POST", "/api/query", &all, "{\"sql\": \"select 1\"}"))
    };
    assert_eq!(post(&[("host", &own), ("origin", &origin), ("sec-fetch-site", "same-origin")]).status, 200);
    let refused = post(&[("host", "evil.example"), ("origin", "http://evil.example")]);
    assert!(refused.status == 421 && refused.json()["error"].as_str().unwrap().contains("127.0.0.1"), "{refused:?}");
    let refused = post(&[("host", &own), ("origin", "http://evil.example")]);
    assert!(refused.status == 403 && refused.json()["error"].as_str().unwrap().contains("another site"), "{refused:?}");
    let form = [("host", own.as_str()), ("content-type", "text/plain")];
    assert_eq!(world.send(&request("POST", "/api/query", &form, "{\"sql\": \"select 1\"}")).status, 403);
}

#[test]
fn where_there_are_users_only_they_get_an_answer() {
    let users = BTreeMap::from([("ann".to_owned(), "secret".to_owned())]);
    let world = world(Options::default(), Access::with(users, None).unwrap());
    let answer = world.get("/");
    assert!(answer.status == 401 && answer.headers["www-authenticate"].starts_with("Basic realm="), "{answer:?}");
    // ann:secret, ann:wrong
    for (login, status) in [("Basic YW5uOnNlY3JldA==", 200), ("Basic YW5uOndyb25n", 401)] {
        let headers = [("host", "localhost"), ("authorization", login)];
        for path in ["/", "/api/health", "/api/tables"] {
            assert_eq!(world.send(&request("GET", path, &headers, "")).status, status, "{path}");
        }
    }
}

#[test]
fn a_statement_has_rows_with_types_and_a_wrong_one_has_a_reason() {
    let world = open();
    let answer = world.ask(&json!({ "sql": "select symbol, time, price, size_raw, lsn, bust from (select *, null as bust from trade) order by lsn limit 2;" }));
    let lines = answer.lines();
    assert_eq!(answer.status, 200);
    let columns: Vec<_> = lines[0]["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| (column["name"].as_str().unwrap(), column["class"].as_str().unwrap()))
        .collect();
    assert_eq!(
        columns,
        [("symbol", "text"), ("time", "time"), ("price", "number"), ("size_raw", "number"), ("lsn", "number"), ("bust", "text")]
    );
    assert_eq!(lines[1]["rows"][0], json!(["XNAS:AAPL", "2024-08-08T06:53:20.000000000Z", 190.0, 5_000_000_000_u64, 1, null]));
    assert_eq!(lines.last().unwrap()["end"]["rows"], 2);
    assert_eq!(lines.last().unwrap()["end"]["truncated"], Json::Null);
    for (sql, part) in [
        ("selec 1", "selec"),
        ("select nothing from trade", "nothing"),
        ("select 1; select 2", "one by one"),
        ("", "no statement"),
        ("insert into trade select * from trade", ""),
        ("create table x as select 1", ""),
        ("set at = 'appended'", "above the editor"),
    ] {
        let answer = world.ask(&json!({ "sql": sql }));
        assert_eq!(answer.status, 400, "{sql}: {answer:?}");
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{sql}: {answer:?}");
    }
    assert_eq!(world.ask(&json!({ "sql": "select 1", "at": "tomorrow" })).status, 400);
    assert_eq!(world.ask(&json!({ "sql": "select 1", "as_known_at": "tomorrow" })).status, 400);
    let known = world.ask(&json!({ "sql": "select max(lsn) as last from trade", "as_known_at": "lsn 1" })).lines();
    assert_eq!(known[1]["rows"], json!([[1]]));
    assert_eq!(world.ask(&json!({ "sql": "select 1", "other": 1 })).status, 400);
    assert_eq!(world.ask(&json!({ "sql": " ".repeat(2 << 20) })).status, 413);
    // An error after the first rows is the last line.
    let lines = world.ask(&json!({ "sql": "select 1 / (600 - value) from generate_series(1, 1000)" })).lines();
    assert!(lines.last().unwrap()["error"].as_str().unwrap().to_lowercase().contains("zero"), "{lines:?}");
}

#[test]
fn an_answer_that_is_truncated_says_so() {
    let world = open();
    for (limit, sql, rows, truncated) in [
        (5, "select * from trade", 5, json!("rows")),
        (600, "select * from trade", 600, Json::Null),
        (599, "select * from trade", 599, json!("rows")),
        (1_000_000, "select value from generate_series(1, 20000)", 10_000, json!("rows")),
        (0, "select * from trade", 0, json!("rows")),
    ] {
        let lines = world.ask(&json!({ "sql": sql, "rows": limit })).lines();
        let sent: usize = lines.iter().filter_map(|line| line["rows"].as_array()).map(Vec::len).sum();
        let end = &lines.last().unwrap()["end"];
        assert_eq!((sent, &end["rows"], &end["truncated"]), (rows, &json!(rows), &truncated), "{limit} {sql}");
    }
    let lines = world.ask(&json!({ "sql": "select repeat('x', 10000) from generate_series(1, 10000)" })).lines();
    assert_eq!(lines.last().unwrap()["end"]["truncated"], "bytes");
    let lines = world.ask(&json!({ "sql": "select repeat('x', 100000)" })).lines();
    assert_eq!(lines.last().unwrap()["end"]["shortened"], 1);
}

#[test]
fn markup_in_texts_and_names_is_data() {
    let world = open();
    let sql = format!("select raw_symbol, 1 as \"<b>x</b>\", '{}' as text from definition", MARKUP.replace('\'', "''"));
    let answer = world.ask(&json!({ "sql": sql }));
    let lines = answer.lines();
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    assert_eq!(lines[0]["columns"][1]["name"], "<b>x</b>");
    assert_eq!(lines[1]["rows"][0], json!([MARKUP, 1, MARKUP]));
    let answer = world.get("/api/symbols?prefix=%3Cimg%3E");
    assert!(answer.headers["content-type"] == "application/json" && answer.json()["symbols"] == json!([]));
    let answer = world.get("/api/live?symbol=%3Cimg%20onerror%3D1%3E");
    assert!(answer.status == 404 && !answer.body.contains("img"), "{answer:?}");
}

#[test]
fn tables_functions_instruments_and_the_state_are_listed() {
    let world = open();
    let tables = world.get("/api/tables").json();
    let table = |name: &str| tables["tables"].as_array().unwrap().iter().find(|table| table["name"] == name).cloned().unwrap();
    assert_eq!(table("trade")["columns"][0], json!({ "name": "symbol", "type": "text" }));
    assert_eq!((&table("blocks")["system"], &table("quote")["system"]), (&json!(true), &json!(false)));
    let words = world.get("/api/words").json();
    let has = |list: &str, word: &str| words[list].as_array().unwrap().contains(&json!(word));
    assert!(has("functions", "vwap") && has("functions", "row_number") && has("keywords", "ASOF"));
    let symbols = |query: &str| world.get(&format!("/api/symbols?{query}")).json();
    assert_eq!(symbols("prefix=XNAS"), json!({ "symbols": ["XNAS:AAPL", "XNAS:MSFT"], "more": false, "count": 3 }));
    assert_eq!(symbols("contains=btc")["symbols"], json!(["BINANCE:BTCUSDT"]));
    assert_eq!(symbols("limit=1"), json!({ "symbols": ["BINANCE:BTCUSDT"], "more": true, "count": 3 }));
    let health = world.get("/api/health").json();
    assert_eq!((&health["watermarks"]["appended"], &health["watermarks"]["committed"]), (&json!(1201), &json!(1201)));
    assert_eq!(
        (&health["trouble"], &health["served"], &health["publishers"][0]["publisher"]),
        (&Json::Null, &json!(true), &json!(1))
    );
    assert!(health["newest_age"].as_f64().unwrap() < 600.0, "{health}");
}

/// Reads the events of `socket` until `is_enough` of what has come.
async fn events(socket: &mut TcpStream, is_enough: impl Fn(&str) -> bool) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !is_enough(&String::from_utf8_lossy(&bytes)) {
            assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0, "{}", String::from_utf8_lossy(&bytes));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn events_bring_the_records_that_are_published_afterwards_and_no_others() {
    let world = open();
    let runtime = &world.runtime;
    let mut socket = runtime.block_on(TcpStream::connect(world.address)).unwrap();
    let path = "/api/live?symbol=XNAS%3AAAPL";
    runtime.block_on(socket.write_all(request("GET", path, &[("host", "localhost")], "").as_bytes())).unwrap();
    let begun = runtime.block_on(events(&mut socket, |text| text.contains("event: begin")));
    assert!(begun.contains("text/event-stream") && begun.contains(r#""after":"1201""#), "{begun}");
    assert_eq!(world.get("/api/health").json()["live"], 1);
    world.publish(777_250_000_000);
    world.publish(778_000_000_000);
    let text = runtime.block_on(events(&mut socket, |text| text.contains("778.0")));
    assert!(text.contains("event: records") && text.contains("777.25") && !text.contains("190."), "{text}");
    drop(socket);
    // The place is free again.
    let began = Instant::now();
    while world.get("/api/health").json()["live"] != 0 {
        assert!(began.elapsed() < Duration::from_secs(20));
        world.publish(1_000_000_000);
    }
}

#[test]
fn clients_of_events_are_bounded() {
    let world = world(Options { live: 1, ..Options::default() }, Access::open());
    let request = request("GET", "/api/live?symbol=XNAS%3AAAPL", &[("host", "localhost")], "");
    let mut socket = world.runtime.block_on(TcpStream::connect(world.address)).unwrap();
    world.runtime.block_on(socket.write_all(request.as_bytes())).unwrap();
    world.runtime.block_on(events(&mut socket, |text| text.contains("event: begin")));
    assert_eq!(world.send(&request).status, 503);
}

#[test]
fn a_client_that_reads_nothing_loses_its_connection_and_holds_no_memory() {
    let world = world(Options { unread: Duration::from_secs(1), ..Options::default() }, Access::open());
    let headers = [("host", "localhost"), ("content-type", "application/json"), ("x-tape-console", "1")];
    let sql = json!({ "sql": "select repeat('x', 2000) from generate_series(1, 10000)" }).to_string();
    let watches = request("GET", "/api/live?symbol=XNAS%3AAAPL", &[("host", "localhost")], "");
    let sockets: Vec<TcpStream> = [watches, request("POST", "/api/query", &headers, &sql)]
        .iter()
        .map(|request| {
            world.runtime.block_on(async {
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(4096).unwrap();
                let mut socket = socket.connect(world.address).await.unwrap();
                socket.write_all(request.as_bytes()).await.unwrap();
                socket
            })
        })
        .collect();
    let began = Instant::now();
    while world.get("/api/health").json()["live"] != 1 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let live = || world.get("/api/health").json()["live"] == 1;
    let mut peak = 0;
    while live() {
        assert!(began.elapsed() < Duration::from_secs(120), "it still has its place");
        let mut publisher = world.publisher.lock().unwrap();
        for i in 0..2000 {
            let (instrument, price) = (world.instrument, Price(190_000_000_000 + i));
            let trade = Trade { instrument, price, size: Size(1), ts_recv: Ts(START), ..Trade::default() };
            // A full ring is no error here: there are enough records.
            let _is_staged = publisher.publish(&trade).is_ok();
        }
        publisher.send();
        drop(publisher);
        peak = peak.max(resident());
    }
    // The statement may have begun late.
    std::thread::sleep(Duration::from_secs(8).saturating_sub(began.elapsed()));
    // Both connections have been closed by the server: what the kernel has of them ends.
    for mut socket in sockets {
        let mut bytes = Vec::new();
        let read = async { tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut bytes)).await };
        let ended = world.runtime.block_on(read);
        assert!(ended.is_ok(), "the connection is still open");
        let text = String::from_utf8_lossy(&bytes);
        assert!(bytes.len() < 2 << 20, "{} bytes were sent: {}", bytes.len(), text.get(..300).unwrap_or_default());
        assert!(!text.contains("event: ended") && !text.contains("{\"end\""), "it was not the server's limit of time");
    }
    assert!(peak < 2 << 30, "{peak} bytes are resident");
    assert!(world.store.path().exists());
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
