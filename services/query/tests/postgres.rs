//! PostgreSQL's clients get the library's rows: by simple and prepared statements, texts and binary values, portals; and what
//! hostile clients do ends their own connections alone.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tape_query::access::Access;
use tape_query::engine::{Engine, Options as EngineOptions};
use tape_query::nesting::STACK;
use tape_query::postgres::{self, Options};
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Char, Name, Price, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const START: u64 = 1_723_100_000_123_456_789;
const COUNT: u64 = 5000;

struct World {
    _store: Embedded,
    address: SocketAddr,
    stop: tokio::sync::watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
    runtime: tokio::runtime::Runtime,
}

fn price(at: u64) -> Price {
    if at == 3 { Price::NULL } else { Price(1_000_000_000 + at as i64 * 10_000_000) }
}

fn world_with(access: Access, options: Options) -> World {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(7))).unwrap();
    let names: Vec<Name> = ["B:BTC", "B:ETH"].iter().map(|name| name.parse().unwrap()).collect();
    let ids = publisher.instruments(&names).unwrap();
    for at in 0..COUNT {
        let ts_recv = Ts(START + at * 1000);
        let instrument = ids[(at % 2) as usize];
        let side = Char(b'B');
        let trade = Trade {
            instrument,
            price: price(at),
            size: Size(at),
            ts_recv,
            ts_event: ts_recv,
            trade_id: at,
            side,
            ..Trade::default()
        };
        publisher.stage(RecordRef::of(&trade)).unwrap();
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    let engine = Arc::new(Engine::open(store.path(), EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_stack_size(STACK).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let served =
        runtime.spawn(async move { postgres::serve(listener, engine, Arc::new(access), options, stopped).await.unwrap() });
    World { _store: store, address, stop, served, runtime }
}

fn world() -> World {
    world_with(Access::open(), Options::default())
}

impl World {
    async fn connect(&self) -> Client {
        self.connect_as("user=ann").await.unwrap()
    }

    async fn connect_as(&self, who: &str) -> Result<Client, tokio_postgres::Error> {
        let config = format!("host=127.0.0.1 port={} dbname=tapestore {who}", self.address.port());
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The rows of a simple statement.
    async fn texts(&self, client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}\n{error:?}"));
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        rows.collect()
    }

    fn run<T>(&self, test: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.unwrap() })
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, tokio_postgres::Error>) -> String {
    result.unwrap_err().code().unwrap().code().to_owned()
}

#[test]
fn simple_and_prepared_statements_give_the_rows_that_were_published() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        let rows = world.texts(&client, "select symbol, time, cast(time as bigint) as ns, price, price_raw, size_raw, trade_id, source, side, lsn from trade order by trade_id limit 5").await;
        assert_eq!(rows.len(), 5);
        let text = |at: usize, column: usize| rows[at][column].as_deref();
        assert_eq!(text(0, 0), Some("B:BTC"));
        assert_eq!(text(0, 1), Some("2024-08-08 06:53:20.123456"), "microseconds, cut");
        assert_eq!(text(0, 2), Some(&*START.to_string()), "nanoseconds as a number");
        assert_eq!((text(1, 3), text(1, 4), text(1, 5), text(1, 6)), (Some("1.01"), Some("1010000000"), Some("1"), Some("1")));
        assert_eq!((text(3, 3), text(3, 4)), (None, None), "a null price");
        assert_eq!(text(1, 8), Some("B"));

        let sql = "select symbol, price, price_raw, trade_id, time, side, price > $2 as above, source \
                   from trade where trade_id = $1 and symbol = $3";
        let statement = client.prepare(sql).await.unwrap();
        let types: Vec<Type> = statement.columns().iter().map(|column| column.type_().clone()).collect();
        let expected =
            [Type::TEXT, Type::FLOAT8, Type::INT8, Type::NUMERIC, Type::TIMESTAMP, Type::TEXT, Type::BOOL, Type::INT4];
        assert_eq!(types, expected);
        assert_eq!(statement.params(), [Type::NUMERIC, Type::FLOAT8, Type::TEXT]);
        let typed = client
            .prepare_typed(sql, &[Type::INT8, Type::FLOAT8, Type::TEXT])
            .await
            .unwrap();
        for at in [0u64, 7, COUNT - 1] {
            let symbol = ["B:BTC", "B:ETH"][(at % 2) as usize];
            let rows = client.query(&typed, &[&(at as i64), &2.0f64, &symbol]).await.unwrap();
            assert_eq!(rows.len(), 1, "{at}");
            assert_eq!(rows[0].get::<_, String>(0), symbol);
            assert_eq!(rows[0].get::<_, f64>(1), price(at).0 as f64 / 1e9);
            assert_eq!(rows[0].get::<_, i64>(2), price(at).0);
            let time: std::time::SystemTime = rows[0].get(4);
            let micros = time.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
            assert_eq!(micros, u128::from((START + at * 1000) / 1000));
            assert_eq!(rows[0].get::<_, bool>(6), price(at).0 as f64 / 1e9 > 2.0);
        }
    });
}

#[test]
fn parameters_of_every_type_are_what_the_client_has_sent() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        let statement = client
            .prepare_typed(
                "select $1, $2, $3, $4, $5, $6, $7",
                &[Type::INT2, Type::INT4, Type::INT8, Type::FLOAT8, Type::TEXT, Type::BOOL, Type::TIMESTAMP],
            )
            .await
            .unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_micros(1_723_100_000_123_456);
        let row =
            client.query_one(&statement, &[&-2i16, &70_000i32, &(1i64 << 40), &0.1f64, &"it's", &true, &time]).await.unwrap();
        assert_eq!(row.get::<_, i16>(0), -2);
        assert_eq!(row.get::<_, i32>(1), 70_000);
        assert_eq!(row.get::<_, i64>(2), 1 << 40);
        assert_eq!(row.get::<_, f64>(3), 0.1);
        assert_eq!(row.get::<_, String>(4), "it's");
        assert!(row.get::<_, bool>(5));
        assert_eq!(row.get::<_, std::time::SystemTime>(6), time);
        let count = client.query_one("select count(*) from trade where time >= $1", &[&time]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), COUNT as i64);
        let none: Option<f64> = None;
        let count = client.query_one("select count(*) from trade where price > $1", &[&none]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), 0);
    });
}

#[test]
fn several_statements_in_one_text_are_answered_in_their_order_until_one_fails() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        let rows = world.texts(&client, "select 1; ; select 'a;b' -- c;\n; show at").await;
        let rows: Vec<_> = rows.into_iter().map(|row| row[0].clone().unwrap()).collect();
        assert_eq!(rows, ["1", "a;b", "committed"]);
        assert_eq!(code(client.simple_query("select 1; select nothing from trade; select 2").await), "42703");
        assert!(client.simple_query("").await.unwrap().len() <= 1);
    });
}

#[test]
fn settings_are_the_sessions_and_those_that_cannot_be_followed_are_refused() {
    let world = world();
    world.run(async {
        let (one, two) = (world.connect().await, world.connect().await);
        one.batch_execute("set at = 'appended'; set application_name = 'x'; set extra_float_digits to 3; set timezone = 'UTC'")
            .await
            .unwrap();
        assert_eq!(world.texts(&one, "show at").await[0][0].as_deref(), Some("appended"));
        assert_eq!(world.texts(&two, "show at").await[0][0].as_deref(), Some("committed"));
        one.batch_execute("set as_known_at = 'lsn 7'").await.unwrap();
        let shown = [world.texts(&one, "show as_known_at").await, world.texts(&two, "show as_known_at").await];
        assert_eq!(shown.map(|rows| rows[0][0].clone().unwrap()), ["lsn 7", "off"]);
        assert_eq!(world.texts(&one, "select max(lsn) <= 7 from trade").await[0][0].as_deref(), Some("t"));
        one.batch_execute("reset as_known_at").await.unwrap();
        assert_eq!(world.texts(&one, "show as_known_at").await[0][0].as_deref(), Some("off"));
        assert_eq!(world.texts(&one, "show application_name").await[0][0].as_deref(), Some("x"));
        assert_eq!(world.texts(&one, "show timezone").await[0][0].as_deref(), Some("UTC"));
        assert_eq!(world.texts(&one, "show standard_conforming_strings").await[0][0].as_deref(), Some("on"));
        assert_eq!(world.texts(&one, "show transaction isolation level").await[0][0].as_deref(), Some("repeatable read"));
        assert!(world.texts(&one, "show server_version").await[0][0].as_deref().unwrap().starts_with("16"));
        assert_eq!(code(one.batch_execute("set timezone = 'Europe/Paris'").await), "22023");
        assert_eq!(code(one.batch_execute("set client_encoding = 'LATIN1'").await), "22023");
    });
}

#[test]
fn a_transaction_that_fails_is_over_when_it_is_rolled_back() {
    let world = world();
    world.run(async {
        let mut client = world.connect().await;
        let transaction = client.transaction().await.unwrap();
        transaction.query_one("select count(*) from trade", &[]).await.unwrap();
        assert_eq!(code(transaction.query("select * from no_such_table", &[]).await), "42P01");
        assert_eq!(code(transaction.query("select 1", &[]).await), "25P02");
        transaction.rollback().await.unwrap();
        client.query_one("select 1", &[]).await.unwrap();
    });
}

#[test]
fn errors_have_the_sqlstates_that_drivers_know() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        for (sql, expected) in [
            ("selec 1", "42601"),
            ("select 'a", "42601"),
            ("select * from nothing", "42P01"),
            ("select nothing from trade", "42703"),
            ("select nothing(1)", "42883"),
            ("insert into trade values (1)", "25006"),
            ("create table t (a int)", "25006"),
            ("drop table trade", "25006"),
            ("select 1/0 from trade", "22012"),
            ("copy trade to stdout", "0A000"),
        ] {
            assert_eq!(code(client.simple_query(sql).await), expected, "{sql}");
            assert_eq!(code(client.query(sql, &[]).await), expected, "{sql}, prepared");
        }
        client.query_one("select 1", &[]).await.unwrap();
    });
}

#[test]
fn a_portal_gives_its_rows_in_parts() {
    let world = world();
    world.run(async {
        let mut client = world.connect().await;
        let transaction = client.transaction().await.unwrap();
        let portal = transaction.bind("select trade_id::bigint as id from trade order by id", &[]).await.unwrap();
        let mut all = Vec::new();
        loop {
            let rows = transaction.query_portal(&portal, 700).await.unwrap();
            assert!(rows.len() <= 700);
            if rows.is_empty() {
                break;
            }
            all.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        }
        assert_eq!(all, (0..COUNT as i64).collect::<Vec<_>>());
        transaction.commit().await.unwrap();
    });
}

#[test]
fn a_statement_that_is_too_deep_is_refused_and_the_deepest_that_is_not_is_answered() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        let many = |part: &str, between: &str, count: usize| vec![part; count].join(between);
        let deep = |count: usize| {
            [
                format!("select {}", many("1", "+", count)),
                format!("select count(*) from trade where {}", many("price > 1", " or ", count / 2)),
                format!("select {}", many("price", "+", count) + " from trade limit 1"),
                format!("select {}1{}", many("(", "", count / 3), many(")", "", count / 3)),
                format!("select {}1{}", many("abs(", "", count / 10), many(")", "", count / 10)),
                format!("select count(*) from trade where {}", many("not", " ", count / 3) + " price > 1"),
                format!("select count(*) from ({})", many("select price from trade", " union all ", count / 2)),
                format!("select 1{}", many("::int", "", count)),
            ]
        };
        for sql in deep(100) {
            // It has an answer, or a limit of the parser: the server goes on.
            drop(client.simple_query(&sql).await);
            drop(client.query(&sql, &[]).await);
            client.query_one("select 1", &[]).await.unwrap();
        }
        for sql in deep(10_000) {
            let refused = code(client.simple_query(&sql).await);
            assert!(["54001", "42601"].contains(&&*refused), "{refused}");
        }
        client.query_one("select 1", &[]).await.unwrap();
    });
}

/// A statement that runs for very long.
const LONG: &str = "select count(*) from trade a, trade b, trade c where a.price + b.price + c.price < 0";
/// One that has very many rows.
const BIG: &str = "select a.trade_id, b.time, a.symbol, b.price from trade a, trade b, trade c";

#[test]
fn a_statement_that_is_cancelled_ends_and_its_connection_goes_on() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        for sql in [LONG, BIG] {
            let token = client.cancel_token();
            let cancel = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                token.cancel_query(NoTls).await.unwrap();
            });
            assert_eq!(code(client.simple_query(sql).await), "57014");
            cancel.await.unwrap();
            let token = client.cancel_token();
            let cancel = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                token.cancel_query(NoTls).await.unwrap();
            });
            assert_eq!(code(client.query(sql, &[]).await), "57014");
            cancel.await.unwrap();
        }
        // Nothing runs: the next statement is not meant.
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        client.query_one("select 1", &[]).await.unwrap();
    });
}

#[test]
fn users_need_their_passwords() {
    let passwords = BTreeMap::from([("ann".to_owned(), "secret".to_owned())]);
    let world = world_with(Access::with(passwords, None).unwrap(), Options::default());
    world.run(async {
        let client = world.connect_as("user=ann password=secret").await.unwrap();
        client.query_one("select 1", &[]).await.unwrap();
        for who in ["user=ann password=wrong", "user=bob password=secret", "user=bob password=''"] {
            let error = world.connect_as(who).await.unwrap_err();
            if !who.contains("''") {
                assert_eq!(error.code().unwrap().code(), "28P01", "{who}");
            }
        }
        assert!(world.connect_as("user=ann").await.is_err());
    });
}

#[test]
fn one_client_more_than_there_may_be_is_refused_with_the_reason() {
    let world = world_with(Access::open(), Options { connections: 3, ..Options::default() });
    world.run(async {
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(world.connect().await);
        }
        assert_eq!(code(world.connect_as("user=ann").await.map(drop)), "53300");
        // Those that have no place can still cancel.
        clients[0].cancel_token().cancel_query(NoTls).await.unwrap();
        drop(clients);
        loop {
            if world.connect_as("user=ann").await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn half_open_connections_and_garbage_are_dropped_and_others_are_served() {
    let world = world();
    let mut half: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(world.address).unwrap()).collect();
    // A startup message of which the last byte does not come.
    half[0].write_all(&[0, 0, 0, 9, 0, 3, 0, 0]).unwrap();
    half[1].write_all(&[0, 0, 0, 8, 4, 210, 22]).unwrap();
    let mut seed = 1u64;
    for len in [1usize, 4, 8, 64, 1000, 100_000] {
        let mut socket = TcpStream::connect(world.address).unwrap();
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        // It may be closed before all is written.
        drop(socket.write_all(&bytes));
    }
    world.run(async {
        let client = world.connect().await;
        assert_eq!(client.query_one("select count(*) from trade", &[]).await.unwrap().get::<_, i64>(0), COUNT as i64);
    });
    // Garbage after a good begin.
    let mut socket = TcpStream::connect(world.address).unwrap();
    let mut startup = vec![0, 0, 0, 18, 0, 3, 0, 0];
    startup.extend(b"user\0ann\0\0");
    socket.write_all(&startup).unwrap();
    let mut first = [0];
    socket.read_exact(&mut first).unwrap();
    assert_eq!(first, *b"R");
    socket.write_all(&[b'Q', 0x7f, 0xff, 0xff, 0xff]).unwrap();
    let mut rest = Vec::new();
    drop(socket.read_to_end(&mut rest));
    assert!(String::from_utf8_lossy(&rest).contains("08P01"));
    for mut socket in half {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut end = Vec::new();
        assert!(!matches!(socket.read_to_end(&mut end), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock));
    }
}

#[test]
fn a_client_that_reads_nothing_makes_the_server_encode_a_bounded_number_of_rows() {
    let world = world_with(Access::open(), Options { rows_in_flight: 100, ..Options::default() });
    let mut socket = TcpStream::connect(world.address).unwrap();
    let mut startup = vec![0, 0, 0, 18, 0, 3, 0, 0];
    startup.extend(b"user\0ann\0\0");
    socket.write_all(&startup).unwrap();
    let mut query = vec![b'Q'];
    query.extend((BIG.len() as u32 + 5).to_le_bytes().into_iter().rev());
    query.extend(BIG.as_bytes());
    query.push(0);
    socket.write_all(&query).unwrap();
    // Until the socket's buffers are full, and nothing is encoded any more.
    let mut last = (0, 0);
    while last.1 < 10 {
        std::thread::sleep(Duration::from_millis(100));
        let now = postgres::rows_encoded();
        last = if now == last.0 && now > 0 { (now, last.1 + 1) } else { (now, 0) };
    }
    // The answer has 125,000,000,000 rows.
    assert!(last.0 < 10_000_000, "{} rows were encoded", last.0);
    drop(socket);
}

#[test]
fn a_server_that_stops_notifies_its_clients() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        client.query_one("select 1", &[]).await.unwrap();
        world.stop.send(true).unwrap();
        let error = client.simple_query(LONG).await.unwrap_err();
        assert!(error.is_closed() || error.code().is_some_and(|code| code.code() == "57P01"), "{error:?}");
    });
    let World { served, runtime, .. } = world;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), served).await.unwrap().unwrap() });
}

/// The output of a program; `None` if it is not there.
fn program(name: &str, args: &[&str], world: &World) -> Option<String> {
    let port = world.address.port().to_string();
    let mut command = Command::new(name);
    command.args(args).env("PGHOST", "127.0.0.1").env("PGPORT", port).env("PGUSER", "ann").env("PGDATABASE", "tapestore");
    command.env("PGCONNECT_TIMEOUT", "20").env_remove("PGPASSWORD");
    let Ok(output) = command.output() else {
        println!("skipped: {name} is not there");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !errors.contains("ERROR"), "{name} {args:?}\n{text}\n{errors}");
    Some(text)
}

#[test]
fn psql_lists_and_describes_and_asks() {
    let world = world();
    let psql = |sql: &str| program("psql", &["-X", "-A", "-t", "-c", sql], &world);
    let Some(count) = psql("select count(*), min(price_raw) from trade") else { return };
    assert_eq!(count.trim(), format!("{COUNT}|1000000000"));
    assert!(psql("\\l").unwrap().contains("tapestore|tapestore|UTF8"));
    let tables = psql("\\dt").unwrap();
    assert!(tables.lines().any(|line| line == "public|trade|table|tapestore"), "{tables}");
    assert!(psql("\\d").unwrap().contains("public|quote|table"));
    let trade = psql("\\d trade").unwrap();
    for column in
        ["symbol|text||", "time|timestamp without time zone||not null", "lsn|numeric||not null", "price|double precision||"]
    {
        assert!(trade.lines().any(|line| line.starts_with(column)), "{column}\n{trade}");
    }
    for sql in ["\\dn", "\\du", "\\dv", "\\di", "\\df", "\\dT", "\\dt+", "\\d+ trade", "\\l+", "\\conninfo", "\\dx", "\\sv"] {
        if sql != "\\sv" {
            psql(sql);
        }
    }
    assert_eq!(psql("select 1; select 2").unwrap(), "1\n2\n");
}

#[test]
fn psycopg_asks_with_parameters() {
    let world = world();
    if !Command::new("python3").args(["-c", "import psycopg"]).output().is_ok_and(|output| output.status.success()) {
        println!("skipped: psycopg is not there");
        return;
    }
    let script = r#"
import datetime, decimal, psycopg
with psycopg.connect("") as db:
    row = db.execute("select symbol, price, trade_id, time from trade where trade_id = %s and symbol = %s", (7, "B:ETH")).fetchone()
    assert row == ("B:ETH", 1.07, decimal.Decimal(7), datetime.datetime(2024, 8, 8, 6, 53, 20, 123463)), row
    with db.cursor(binary=True) as cursor:
        assert cursor.execute("select symbol, price, trade_id, time from trade where trade_id = %b", (7,)).fetchone() == row
        values = (1, 2.5, "x", True, decimal.Decimal("1.25"), datetime.datetime(2024, 8, 8, 1, 2, 3, 4))
        assert cursor.execute("select %b, %b, %b, %b, %b, %b", values).fetchone() == values
    when = datetime.datetime(2024, 8, 8, 6, 53, 20, 123456)
    assert db.execute("select count(*) from trade where time >= %s and price > %s", (when, 2.0)).fetchone()[0] == 4899
    assert db.execute("select struct(1, 'a') as s").fetchone()[0] == {"c0": 1, "c1": "a"}
    try:
        db.execute("select nothing from trade")
        assert False
    except psycopg.errors.UndefinedColumn:
        db.rollback()
    print(db.execute("select count(*) from trade").fetchone()[0])
"#;
    assert_eq!(program("python3", &["-c", script], &world).unwrap().trim(), COUNT.to_string());
}

#[test]
fn what_grafana_and_dbeaver_ask_when_they_connect_is_answered() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        let statements = include_str!("postgres_clients.sql");
        for sql in statements.split("\n\n").map(str::trim).filter(|sql| !sql.is_empty()) {
            let rows = world.texts(&client, sql).await;
            if let Some(expected) = sql.lines().next().and_then(|line| line.strip_prefix("-- has: ")) {
                let is_there = rows.iter().flatten().flatten().any(|value| value == expected);
                assert!(is_there, "{sql}\n{rows:?}");
            }
        }
    });
}

#[test]
fn columns_of_system_tables_in_the_catalog_are_those_that_they_have() {
    let world = world();
    world.run(async {
        let client = world.connect().await;
        for (name, columns) in postgres::catalog::system() {
            let has = client.prepare(&format!("select * from {name}")).await.unwrap();
            let has: Vec<&str> = has.columns().iter().map(tokio_postgres::Column::name).collect();
            assert_eq!(has, columns.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{name}");
        }
    });
}
