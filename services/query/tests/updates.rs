//! Followed statements: what is given is what a whole answer has that the one before had not, whatever is read again; and clients
//! of Arrow Flight SQL get it for as long as they read.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

mod feed;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, UInt64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::StreamExt;
use tape_query::access::Access;
use tape_query::changes::Shape;
use tape_query::engine::{Engine, Options, Settings};
use tape_query::flight;
use tape_query::nesting::STACK;
use tape_query::session::Session;
use tape_query::updates::{self, Step, Updates};
use tapestore_engine::Embedded;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use feed::Feed;

const PATIENCE: Duration = Duration::from_secs(60);
/// An hour before clocks change in Berlin.
const START: u64 = 1_729_983_600_000_000_000;

/// Some trades are late by up to an hour, and many have equal times and prices.
fn feed_of(store: &Embedded, symbols: &[&str]) -> Feed {
    let kind = feed::Kind {
        start: START,
        steps: (90, 1_000_000_000),
        late: (8, 4000),
        priceless: 20,
        prices: (98_000_000_000, 5, 1_000_000_000),
        sizes: (4, 1_000_000_000),
    };
    Feed::new(store.path(), symbols, kind)
}

fn texts(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::new().with_null("null");
    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    let line = |row| columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(line).collect()
}

async fn whole(engine: &Engine, sql: &str) -> Vec<String> {
    let mut answer = engine.query(sql, &Settings::default()).await.unwrap();
    let mut rows = Vec::new();
    while let Some(batch) = answer.rows.next().await {
        rows.extend(texts(&batch.unwrap()));
    }
    rows
}

/// The rows that `now` has more often than `before`, sorted.
fn added(before: &[String], now: &[String]) -> Vec<String> {
    let mut counts: HashMap<&String, usize> = HashMap::new();
    before.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    let mut added = Vec::new();
    for row in now {
        match counts.get_mut(row).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => added.push(row.clone()),
        }
    }
    added.sort();
    added
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_stack_size(STACK).enable_all().build().unwrap()
}

/// Statements, and what of their answers can change.
fn statements() -> Vec<(&'static str, Shape)> {
    let (rows, any) = (Shape::Rows, Shape::Any);
    let sampled = |bucket| Shape::Sampled { bucket };
    let latest = |keys| Shape::Latest { keys };
    vec![
        ("select symbol, price, lsn from trade where price > 100", rows.clone()),
        ("select * from trade", rows),
        ("select time, count(*) as n, last(price) as p from trade sample by 1m", sampled(0)),
        ("select symbol, time, sum(size) as v, max(price) as m from trade where price <> 99 sample by 5m", sampled(1)),
        ("select time as t, source, count(*) as n from trade sample by 1h having count(*) > 1 order by source, t", sampled(0)),
        ("select time, first(price) as o from trade sample by 1d align to calendar time zone 'Europe/Berlin'", sampled(0)),
        ("select time, count(*) as n from trade sample by 1h align to calendar time zone 'Europe/Berlin'", sampled(0)),
        ("select time, count(*) as n from trade t where symbol like 'X:%' sample by 1w", sampled(0)),
        ("select symbol, count(*) as n from trade sample by 10m", any.clone()),
        ("select time, count(*) as n from trade sample by 10m align to first observation", any.clone()),
        ("select time, count(*) as n from trade sample by 10m fill (prev)", any.clone()),
        ("select time, count(*) as n from trade where time > now() - interval '9000 days' sample by 10m", any.clone()),
        ("select time, count(*) as n from trade sample by 10m limit 3", any.clone()),
        ("select * from trade latest on time partition by symbol", latest(1)),
        ("select price from trade latest on time partition by symbol", latest(1)),
        ("select price, size from trade where price > 99 latest on time partition by symbol, source", latest(2)),
        ("select t.symbol, t.price + 1 as p from trade t latest on time partition by symbol order by p desc", latest(1)),
        ("select price, count(*) as n from trade group by price", any.clone()),
        ("select distinct price from trade", any.clone()),
        ("select a.price from trade a asof join trade b match_condition (a.time > b.time) on a.symbol = b.symbol", any.clone()),
        ("select price from trade where price = (select max(price) from trade)", any),
    ]
}

#[test]
fn updates_are_what_whole_answers_have_more_than_those_before() {
    let statements = statements();
    let store = Embedded::temporary().unwrap();
    let mut feed = feed_of(&store, &["X:A", "X:B", "X:C", "Y:A"]);
    feed.publish(200);
    let engine = Arc::new(Engine::open(store.path(), Options { threads: 2, ..Options::default() }).unwrap());
    runtime().block_on(async {
        let mut followed = Vec::new();
        for (sql, shape) in &statements {
            let session = Session::new(engine.clone(), Settings::default());
            let schema = updates::schema(&session, sql).await.unwrap();
            let updates = Updates::new(session, sql, Vec::new()).await.unwrap();
            assert_eq!(updates.shape(), shape, "{sql}");
            followed.push((updates, schema, Vec::new()));
        }
        for round in 0..25u64 {
            for ((sql, _), (updates, schema, before)) in statements.iter().zip(&mut followed) {
                let mut given = Vec::new();
                loop {
                    match updates.next().await.unwrap() {
                        Step::Rows(batch) => {
                            assert_eq!(batch.schema().fields().len(), schema.fields().len());
                            let types = |of: &arrow::datatypes::Schema| -> Vec<DataType> {
                                of.fields().iter().map(|field| field.data_type().clone()).collect()
                            };
                            assert_eq!(types(&batch.schema()), types(schema), "{sql}");
                            given.extend(texts(&batch));
                        }
                        Step::Current => {}
                        Step::Idle => break,
                    }
                }
                let last = engine.moment(&Settings::default()).unwrap().snapshot.last();
                let mut rows = Vec::new();
                for row in given {
                    let (as_of, row) = row.split_once('|').unwrap();
                    assert_eq!(as_of, last.0.to_string(), "{sql}");
                    rows.push(row.to_owned());
                }
                rows.sort();
                let now = whole(&engine, sql).await;
                assert_eq!(rows, added(before, &now), "round {round}: {sql}");
                *before = now;
            }
            let count = feed.random(12) + 1;
            feed.publish(count);
        }
    });
}

struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), tape_query::failure::QueryError>>,
}

impl Server {
    async fn start(store: &Embedded, time: Duration) -> Server {
        let engine = Arc::new(Engine::open(store.path(), Options { time, threads: 2, ..Options::default() }).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(flight::serve(listener, engine, Arc::new(Access::open()), flight::Options::default(), stopped));
        Server { address, stop, task }
    }

    async fn client(&self) -> FlightSqlServiceClient<Channel> {
        let channel = Endpoint::new(format!("http://{}", self.address)).unwrap().connect().await.unwrap();
        FlightSqlServiceClient::new(channel)
    }
}

#[test]
fn a_client_of_flight_sql_gets_new_rows_for_longer_than_a_statement_may_take() {
    let store = Embedded::temporary().unwrap();
    let mut feed = feed_of(&store, &["X:A"]);
    feed.publish(1);
    runtime().block_on(async {
        let limit = Duration::from_secs(1);
        let server = Server::start(&store, limit).await;
        let mut client = server.client().await;
        let sql = "FOLLOW EVERY 20ms SELECT time, count(*) AS n FROM trade SAMPLE BY 1y";
        let info = client.execute(sql.to_owned(), None).await.unwrap();
        let names: Vec<String> =
            info.clone().try_decode_schema().unwrap().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["as_of", "time", "n"]);
        let mut rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        let mut as_of = 0;
        for n in 1..=5 {
            let batch = loop {
                let batch = rows.next().await.unwrap().unwrap();
                if batch.num_rows() > 0 {
                    break batch;
                }
            };
            let now = batch.column(0).as_primitive::<UInt64Type>().value(0);
            assert!(as_of < now && batch.column(2).as_primitive::<Int64Type>().value(0) == n, "{batch:?}");
            as_of = now;
            tokio::time::sleep(limit / 2).await;
            feed.publish(1);
        }
        // A statement with parameters, which is prepared.
        let mut prepared = client.prepare("follow select price from trade where lsn < ?".to_owned(), None).await.unwrap();
        assert_eq!(prepared.dataset_schema().unwrap().fields().len(), 2);
        let value =
            RecordBatch::try_from_iter([("x", Arc::new(arrow::array::Int64Array::from(vec![3])) as arrow::array::ArrayRef)]);
        prepared.set_parameters(value.unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let mut some = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        assert_eq!(some.next().await.unwrap().unwrap().num_columns(), 2);
        for wrong in ["follow every soon select 1", "follow every 1s delete from trade", "follow select"] {
            assert!(client.execute(wrong.to_owned(), None).await.is_err(), "{wrong}");
        }
        drop((rows, some));
        server.stop.send(true).unwrap();
        server.task.await.unwrap().unwrap();
    });
}

#[test]
fn a_client_that_follows_and_never_reads_is_closed_and_others_get_their_answers() {
    let store = Embedded::temporary().unwrap();
    let mut feed = feed_of(&store, &["X:A"]);
    feed.publish(1);
    runtime().block_on(async {
        let server = Server::start(&store, Duration::from_secs(1)).await;
        let mut silent = server.client().await;
        let info = silent.execute("follow every 5ms select * from trade".to_owned(), None).await.unwrap();
        let mut rows = silent.inner_mut().do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap().into_inner();
        // Far more than a connection takes unread.
        let mut other = server.client().await;
        for _ in 0..20 {
            feed.publish(20_000);
            let info = other.execute("select count(*) from trade".to_owned(), None).await.unwrap();
            let mut answer = other.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
            answer.next().await.unwrap().unwrap();
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        // What was on its way, and then an error.
        let ended = tokio::time::timeout(PATIENCE, async {
            loop {
                match rows.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            }
        });
        let status = ended.await.unwrap().unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        server.stop.send(true).unwrap();
        server.task.await.unwrap().unwrap();
    });
}

#[test]
fn a_client_that_goes_away_ends_its_followed_statement() {
    let store = Embedded::temporary().unwrap();
    let mut feed = feed_of(&store, &["X:A"]);
    feed.publish(1);
    runtime().block_on(async {
        let server = Server::start(&store, PATIENCE).await;
        let mut other = server.client().await;
        // As many as the server sends at a time, of connections that take 64 calls.
        for _ in 0..3 {
            let mut running = Vec::new();
            for _ in 0..3 {
                let mut client = server.client().await;
                for _ in 0..43 {
                    let info = other.execute("follow select price from trade".to_owned(), None).await.unwrap();
                    let ticket = info.endpoint[0].ticket.clone().unwrap();
                    if let Ok(rows) = client.do_get(ticket).await {
                        running.push(rows);
                    }
                }
            }
            assert!(running.len() > 100);
            drop(running);
            while other.execute("select 1".to_owned(), None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let info = other.execute("select 1".to_owned(), None).await.unwrap();
            while other.do_get(info.endpoint[0].ticket.clone().unwrap()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        server.stop.send(true).unwrap();
        server.task.await.unwrap().unwrap();
    });
}
