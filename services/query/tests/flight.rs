//! Clients of Arrow Flight SQL get the answers of the engine, over connections that are bounded and that nobody can use to
//! harm others: arrow-flight's client, ADBC's in Python, and hostile ones.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::{Array, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Int64Type, Schema};
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    Any, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{Action, FlightDescriptor, FlightInfo, IpcMessage, Ticket};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tape_query::access::Access;
use tape_query::engine::{Engine, Options, Settings};
use tape_query::flight;
use tape_query::nesting::STACK;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, PublishError, Publisher};
use tapestore::record::{Name, Price, Quote, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::rustls;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

const START: u64 = 1_723_100_000_000_000_000;
const ROWS: u64 = 60_000;

struct World {
    _store: Embedded,
    path: PathBuf,
    engine: Arc<Engine>,
    runtime: tokio::runtime::Runtime,
}

fn publish(publisher: &mut Publisher, record: RecordRef<'_>) {
    loop {
        match publisher.stage(record) {
            Ok(_) => return,
            Err(PublishError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Publishes a quote and two trades a millisecond, of three symbols in turn.
fn fill(path: &std::path::Path, rows: u64) {
    let mut publisher = Publisher::open(publisher::Options::new(path, PublisherId(7))).unwrap();
    let names: Vec<Name> = ["B:BTC", "B:ETH", "A:MSFT"].iter().map(|name| name.parse().unwrap()).collect();
    let ids = publisher.instruments(&names).unwrap();
    for i in 0..rows {
        let (instrument, ts_recv) = (ids[i as usize / 3 % 3], Ts(START + i / 3 * 1_000_000));
        let price = Price(100_000_000_000 + (i as i64 % 1000) * 10_000_000);
        if i.is_multiple_of(3) {
            let quote = Quote { instrument, bid_px: price, ask_px: price, ts_recv, ..Quote::default() };
            publish(&mut publisher, RecordRef::of(&quote));
        } else {
            let trade = Trade { instrument, price, size: Size(i), ts_recv, ts_event: ts_recv, trade_id: i, ..Trade::default() };
            publish(&mut publisher, RecordRef::of(&trade));
        }
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
}

fn world_of(rows: u64) -> World {
    let path = tempfile::tempdir().unwrap().keep().join("store");
    let defaults = tapestore_engine::Options::default();
    let options = tapestore_engine::Options { store: path.clone(), memtable_size: 16 << 20, segment_size: 8 << 20, ..defaults };
    let store = Embedded::with(options).unwrap();
    fill(&path, rows);
    let engine = Arc::new(Engine::open(&path, Options { threads: 2, ..Options::default() }).unwrap());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_stack_size(STACK).enable_all().build().unwrap();
    World { _store: store, path, engine, runtime }
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| world_of(ROWS))
}

/// A server that a test has started.
struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), tape_query::failure::QueryError>>,
}

async fn serve_with(engine: Arc<Engine>, access: Access, options: flight::Options) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(flight::serve(listener, engine, Arc::new(access), options, stopped));
    Server { address, stop, task }
}

async fn serve() -> Server {
    serve_with(world().engine.clone(), Access::open(), flight::Options::default()).await
}

impl Server {
    async fn channel(&self) -> Channel {
        Endpoint::new(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> FlightSqlServiceClient<Channel> {
        FlightSqlServiceClient::new(self.channel().await)
    }

    /// Asserts that it still answers.
    async fn answers(&self) {
        let mut client = self.client().await;
        assert_eq!(count(&mut client, "select count(*) from trade").await, trades());
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn trades() -> i64 {
    ROWS as i64 / 3 * 2
}

type Client = FlightSqlServiceClient<Channel>;

async fn fetch(client: &mut Client, info: FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let mut all = Vec::new();
    for endpoint in info.endpoint {
        let stream = client.do_get(endpoint.ticket.unwrap()).await?;
        all.extend(stream.try_collect::<Vec<_>>().await?);
    }
    Ok(all)
}

async fn ask(client: &mut Client, sql: &str) -> RecordBatch {
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    let schema = info.clone().try_decode_schema().unwrap();
    let batches = fetch(client, info).await.unwrap();
    concat_batches(&Arc::new(schema), &batches).unwrap()
}

async fn count(client: &mut Client, sql: &str) -> i64 {
    ask(client, sql).await.column(0).as_primitive::<Int64Type>().value(0)
}

/// The code of the status that a call of the raw client ends with.
async fn code(client: &mut Client, sql: &str) -> Code {
    status(client, sql).await.code()
}

/// The status that a statement ends with.
async fn status(client: &mut Client, sql: &str) -> Status {
    let command = arrow_flight::sql::CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(Any::pack(&command).unwrap().encode_to_vec());
    let info = match client.inner_mut().get_flight_info(descriptor).await {
        Ok(info) => info.into_inner(),
        Err(status) => return status,
    };
    let mut stream = match client.inner_mut().do_get(info.endpoint[0].ticket.clone().unwrap()).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

#[test]
fn a_statement_is_answered_as_the_engine_answers_it_and_names_its_moment() {
    let world = world();
    world.runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        for sql in [
            "select symbol, time, price, lsn, side from trade order by lsn",
            "select symbol, count(*), vwap(price, size) from trade group by symbol order by symbol",
            "select t.symbol, t.time, t.price, q.bid_px from trade t asof join quote q match_condition (t.time >= q.time) \
             on t.symbol = q.symbol order by t.lsn",
            "select time, symbol, first(price), last(price) from trade sample by 1s order by time, symbol",
            "select * from trade latest on time partition by symbol order by symbol",
            "select * from quote where symbol = 'A:NONE'",
            "explain select * from trade",
            "show tables",
            "select 1 as a, 'x' as b, null as c, cast('x' as varchar) as d, interval '1 hour' as e, 1.5 as f, [1, 2] as g",
        ] {
            let mut expected = world.engine.query(sql, &Settings::default()).await.unwrap();
            let mut batches = Vec::new();
            while let Some(batch) = expected.rows.next().await {
                batches.push(batch.unwrap());
            }
            let expected = concat_batches(&expected.schema, &batches).unwrap();
            let found = ask(&mut client, sql).await;
            assert_eq!(found.num_rows(), expected.num_rows(), "{sql}");
            assert!(found.columns() == expected.columns() || sql.starts_with("explain"), "{sql}");
        }
        let symbol = ask(&mut client, "select symbol from trade limit 1").await.column(0).data_type().clone();
        assert_eq!(symbol, DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8)));
        let info = client.execute("select lsn from watermarks where name = 'committed'".into(), None).await.unwrap();
        let response = client.inner_mut().do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        let lsn: u64 = response.metadata().get(flight::LSN).unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(lsn, ROWS);
        // A ticket may be fetched again.
        assert!(client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.is_ok());
        let schema = client.inner_mut().get_schema(info.flight_descriptor.unwrap()).await.unwrap().into_inner();
        let schema: Schema = IpcMessage(schema.schema).try_into().unwrap();
        assert_eq!(schema.field(0).name(), "lsn");
        server.end().await;
    });
}

#[test]
fn parameters_are_bound_to_numbers_and_to_question_marks() {
    world().runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        for sql in [
            "select count(*) from trade where symbol = $1 and lsn > $2",
            "select count(*) /* ? */ from trade where symbol = ? and lsn > ? -- ?",
        ] {
            let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
            let names: Vec<&str> = prepared.parameter_schema().unwrap().fields().iter().map(|f| f.name().as_str()).collect();
            assert_eq!(names, ["$1", "$2"]);
            assert!(prepared.execute().await.is_ok_and(|info| !info.endpoint.is_empty()));
            let info = prepared.execute().await.unwrap();
            assert!(fetch(&mut client, info).await.unwrap_err().to_string().contains("2 are not bound"));
            let mut totals = Vec::new();
            for lsn in [0, 30_000] {
                let row: [(&str, Arc<dyn Array>); 2] =
                    [("a", Arc::new(StringArray::from(vec!["B:ETH"]))), ("b", Arc::new(Int64Array::from(vec![lsn])))];
                prepared.set_parameters(RecordBatch::try_from_iter(row).unwrap()).unwrap();
                let info = prepared.execute().await.unwrap();
                totals.push(fetch(&mut client, info).await.unwrap()[0].column(0).as_primitive::<Int64Type>().value(0));
            }
            let expected = "select count(*) from trade where symbol = 'B:ETH' and lsn > 30000";
            assert_eq!(
                totals,
                [
                    count(&mut client, "select count(*) from trade where symbol = 'B:ETH'").await,
                    count(&mut client, expected).await
                ]
            );
            prepared.close().await.unwrap();
        }
        let mut prepared = client.prepare("select count(*) from trade where lsn > $1".into(), None).await.unwrap();
        let row = |values: Vec<f64>| RecordBatch::try_from_iter([("a", Arc::new(Float64Array::from(values)) as _)]).unwrap();
        prepared.set_parameters(row(vec![59_999.5])).unwrap();
        let info = prepared.execute().await.unwrap();
        assert_eq!(
            fetch(&mut client, info).await.unwrap()[0].column(0).as_primitive::<Int64Type>().value(0),
            1,
            "no digit is lost"
        );
        prepared.set_parameters(row(vec![1.0, 2.0])).unwrap();
        assert!(prepared.execute().await.unwrap_err().to_string().contains("one row"));
        let mut any = client.prepare("select $1 as a".into(), None).await.unwrap();
        any.set_parameters(row(vec![2.5])).unwrap();
        let info = any.execute().await.unwrap();
        assert_eq!(fetch(&mut client, info).await.unwrap()[0].column(0).as_ref(), &Float64Array::from(vec![2.5]));
        any.close().await.unwrap();
        assert!(client.prepare("select $1, ?".into(), None).await.is_err());
        assert_eq!(code(&mut client, "select count(*) from trade where lsn > $1").await, Code::InvalidArgument);
        server.end().await;
    });
}

#[test]
fn clients_find_tables_with_their_columns() {
    world().runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        let texts = |batches: &[RecordBatch], column: &str| -> Vec<String> {
            let all = batches.iter().flat_map(|batch| {
                let texts = batch.column_by_name(column).unwrap().as_string::<i32>().clone();
                (0..texts.len()).map(move |at| texts.value(at).to_owned()).collect::<Vec<_>>()
            });
            all.collect()
        };
        let info = client.get_catalogs().await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), "catalog_name"), ["tapestore"]);
        let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), "db_schema_name"), ["public"]);
        let info = client.get_table_types().await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), "table_type"), ["SYSTEM TABLE", "TABLE"]);
        let command = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        let info = client.get_tables(command.clone()).await.unwrap();
        let tables = fetch(&mut client, info).await.unwrap();
        let names = texts(&tables, "table_name");
        assert!(["trade", "quote", "files", "watermarks"].iter().all(|name| names.contains(&(*name).to_owned())), "{names:?}");
        let at = names.iter().position(|name| name == "trade").unwrap();
        let bytes = tables[0].column_by_name("table_schema").unwrap().as_binary::<i32>().value(at).to_vec();
        let schema: Schema = IpcMessage(bytes.into()).try_into().unwrap();
        let expected = ask(&mut client, "select * from trade limit 0").await.schema();
        let fields =
            |schema: &Schema| schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>();
        assert_eq!(fields(&schema), fields(&expected));
        let of = |pattern: &str, types: &[&str]| CommandGetTables {
            table_name_filter_pattern: Some(pattern.to_owned()),
            table_types: types.iter().map(|of| (*of).to_owned()).collect(),
            ..CommandGetTables::default()
        };
        let info = client.get_tables(of("tr%", &[])).await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), "table_name"), ["trade"]);
        let info = client.get_tables(of("tr%", &["SYSTEM TABLE"])).await.unwrap();
        assert!(texts(&fetch(&mut client, info).await.unwrap(), "table_name").is_empty());
        let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerReadOnly]).await.unwrap();
        assert_eq!(fetch(&mut client, info).await.unwrap()[0].num_rows(), 1);
        let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo::default()).await.unwrap();
        assert!(texts(&fetch(&mut client, info).await.unwrap(), "type_name").contains(&"DOUBLE".to_owned()));
        let info = client.get_primary_keys(CommandGetPrimaryKeys::default()).await.unwrap();
        assert_eq!(fetch(&mut client, info).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
        server.end().await;
    });
}

async fn at(client: &mut Client) -> String {
    ask(client, "show at").await.column(0).as_string::<i32>().value(0).to_owned()
}

#[test]
fn settings_are_of_one_connection_and_nothing_else_is_changed() {
    world().runtime.block_on(async {
        let server = serve().await;
        let (mut client, mut other) = (server.client().await, server.client().await);
        assert_eq!(at(&mut client).await, "committed");
        let info = client.execute("set at = 'lsn 30000'".into(), None).await.unwrap();
        fetch(&mut client, info).await.unwrap();
        assert_eq!((at(&mut client).await, at(&mut other).await), ("lsn 30000".into(), "committed".into()));
        assert_eq!(count(&mut client, "select count(*) from trade").await, 20_000);
        // A call's own header comes first.
        client.set_header(flight::AT, "lsn 300");
        assert_eq!(count(&mut client, "select count(*) from trade").await, 200);
        client.set_header(flight::AS_KNOWN_AT, "lsn 30");
        assert_eq!(count(&mut client, "select count(*) from trade").await, 20, "trades as known at a record, and no later one");
        client.set_header(flight::AS_KNOWN_AT, "off");
        assert_eq!(client.execute_update("set at = 'appended'".into(), None).await.unwrap(), 0);
        assert_eq!(client.execute_update("set as_known_at = 'lsn 60'".into(), None).await.unwrap(), 0);
        client.set_header(flight::AT, "nowhere");
        assert!(client.execute("select 1".into(), None).await.unwrap_err().to_string().contains("nowhere"));
        let action = Action { r#type: "GetSessionOptions".into(), body: bytes::Bytes::new() };
        let answer = client.inner_mut().do_action(action).await.unwrap().into_inner().message().await.unwrap().unwrap();
        assert!(
            answer.body.windows(8).any(|bytes| bytes == b"appended") && answer.body.windows(6).any(|bytes| bytes == b"lsn 60")
        );
        let action = Action { r#type: "CloseSession".into(), body: bytes::Bytes::new() };
        client.inner_mut().do_action(action).await.unwrap();
        let mut client = FlightSqlServiceClient::new_from_inner(client.into_inner());
        assert_eq!(at(&mut client).await, "committed");
        for sql in ["insert into trade select * from trade", "delete from trade", "drop table trade", "", "s\u{e9}t"] {
            let error = client.execute_update(sql.to_owned(), None).await.unwrap_err().to_string();
            assert!(error.contains("only reads"), "{sql}: {error}");
            assert_eq!(code(&mut client, sql).await, Code::InvalidArgument, "{sql}");
        }
        server.end().await;
    });
}

#[test]
fn errors_have_the_codes_of_their_reasons() {
    let world = world();
    world.runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        for sql in ["select", "select * from nothing", "select nothing from trade", "select 1; select 2"] {
            assert_eq!(code(&mut client, sql).await, Code::InvalidArgument, "{sql}");
        }
        assert_eq!(code(&mut client, &format!("select '{}'", "x".repeat(300_000))).await, Code::InvalidArgument);
        assert_eq!(code(&mut client, "select 1 / (price - price) from trade").await, Code::Ok);
        assert_eq!(code(&mut client, "select cast('x' as bigint) from trade where lsn < 3").await, Code::InvalidArgument);
        server.end().await;
        let limited = |options| Arc::new(Engine::open(&world.path, options).unwrap());
        let engine = limited(Options { memory: 1 << 16, spill: 0, threads: 2, ..Options::default() });
        let server = serve_with(engine, Access::open(), flight::Options::default()).await;
        let sql = "select price, size, count(*) from trade group by price, size order by 3";
        let refused = status(&mut server.client().await, sql).await;
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        server.end().await;
        let engine = limited(Options { time: Duration::ZERO, threads: 2, ..Options::default() });
        let server = serve_with(engine, Access::open(), flight::Options::default()).await;
        assert_eq!(code(&mut server.client().await, "select * from trade").await, Code::DeadlineExceeded);
        server.end().await;
    });
}

#[test]
fn a_ticket_or_a_command_that_is_changed_is_refused_and_harms_nobody() {
    world().runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        let handle = |handle: &[u8]| {
            let query = TicketStatementQuery { statement_handle: handle.to_vec().into() };
            Ticket { ticket: Any::pack(&query).unwrap().encode_to_vec().into() }
        };
        for unknown in [&[][..], &[0; 16], &[7; 17], &[9; 100_000]] {
            let status = client.inner_mut().do_get(handle(unknown)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
        let info = client.execute("select 1".into(), None).await.unwrap();
        let (ticket, command) = (info.endpoint[0].ticket.clone().unwrap().ticket, info.flight_descriptor.unwrap().cmd);
        let mut state = 20_260_901u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for at in 0..ticket.len() {
            let mut changed = ticket.to_vec();
            changed[at] ^= 1 << (next() % 8);
            let refused = client.inner_mut().do_get(Ticket { ticket: changed.into() }).await;
            let code = refused.err().map(|status| status.code());
            // A longer name of the type may still be that of the type.
            assert!(code.is_some_and(|code| code != Code::Unknown), "{at}: {code:?}");
        }
        for _ in 0..500 {
            let random: bytes::Bytes = (0..next() % 200).map(|_| next() as u8).collect::<Vec<_>>().into();
            assert!(client.inner_mut().do_get(Ticket { ticket: random.clone() }).await.is_err());
            let mut changed = command.to_vec();
            let at = next() % changed.len();
            changed[at] = next() as u8;
            for cmd in [random.clone(), changed.into()] {
                // Another statement may be one.
                client.inner_mut().get_flight_info(FlightDescriptor::new_cmd(cmd)).await.ok();
            }
            for kind in ["CreatePreparedStatement", "ClosePreparedStatement", "SetSessionOptions", "x"] {
                let action = Action { r#type: kind.into(), body: random.clone() };
                client.inner_mut().do_action(action).await.ok();
            }
        }
        server.answers().await;
        server.end().await;
    });
}

fn passwords() -> BTreeMap<String, String> {
    BTreeMap::from([("ann".to_owned(), "secret".to_owned())])
}

#[test]
fn with_passwords_every_call_needs_a_token() {
    world().runtime.block_on(async {
        let access = Access::with(passwords(), None).unwrap();
        let server = serve_with(world().engine.clone(), access, flight::Options::default()).await;
        let mut client = server.client().await;
        assert_eq!(code(&mut client, "select 1").await, Code::Unauthenticated);
        let action = Action { r#type: "GetSessionOptions".into(), body: bytes::Bytes::new() };
        assert_eq!(client.inner_mut().do_action(action).await.unwrap_err().code(), Code::Unauthenticated);
        let listed = client.inner_mut().list_actions(arrow_flight::Empty {}).await;
        assert_eq!(listed.err().unwrap().code(), Code::Unauthenticated);
        for (user, password) in [("ann", "wrong"), ("ann", ""), ("bob", "secret"), ("", "")] {
            assert!(client.handshake(user, password).await.is_err(), "{user} {password}");
        }
        client.handshake("ann", "secret").await.unwrap();
        assert_eq!(count(&mut client, "select count(*) from trade").await, trades());
        let token = client.token().unwrap().clone();
        client.execute_update("set at = 'lsn 300'".into(), None).await.unwrap();
        // The session is of the token, over any connection.
        let mut second = server.client().await;
        second.set_token(token.clone());
        assert_eq!(at(&mut second).await, "lsn 300");
        second.set_token(format!("{}0", &token[..token.len() - 1]));
        let is_same = token.ends_with('0');
        assert_eq!(second.execute("select 1".into(), None).await.is_ok(), is_same);
        client.clear_token();
        client.handshake("ann", "secret").await.unwrap();
        assert_eq!(at(&mut client).await, "committed");
        server.end().await;
    });
}

#[test]
fn connections_are_encrypted_where_the_server_has_a_certificate() {
    world().runtime.block_on(async {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let access = Access::with(passwords(), Some(Arc::new(config))).unwrap();
        let server = serve_with(world().engine.clone(), access, flight::Options::default()).await;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem())).domain_name("localhost");
        let endpoint = Endpoint::new(format!("https://{}", server.address)).unwrap().tls_config(tls).unwrap();
        let mut client = FlightSqlServiceClient::new(endpoint.connect().await.unwrap());
        client.handshake("ann", "secret").await.unwrap();
        assert_eq!(count(&mut client, "select count(*) from trade").await, trades());
        let plain = Endpoint::new(format!("http://{}", server.address)).unwrap();
        let refused = match plain.connect().await {
            Ok(channel) => FlightSqlServiceClient::new(channel).handshake("ann", "secret").await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a client without TLS gets no answer");
        server.end().await;
    });
}

/// Far more rows than a connection takes unread.
const LARGE: &str = "select * from generate_series(1, 1000000000)";

#[test]
fn answers_are_bounded_and_a_call_that_is_cancelled_ends_its_statement() {
    world().runtime.block_on(async {
        let server = serve().await;
        let mut running = Vec::new();
        let mut refused = 0;
        // 64 calls of a connection, and 128 answers of the server. Unread answers use up what their connection may send.
        let mut asks = server.client().await;
        for _ in 0..3 {
            let mut client = server.client().await;
            for _ in 0..50 {
                let info = asks.execute(LARGE.to_owned(), None).await.unwrap();
                match client.inner_mut().do_get(info.endpoint[0].ticket.clone().unwrap()).await {
                    Ok(stream) => running.push(stream),
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted);
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!((running.len(), refused), (128, 22));
        drop(running);
        let mut client = server.client().await;
        while code(&mut client, "select 1").await != Code::Ok {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.end().await;
    });
}

#[test]
fn a_client_that_never_reads_loses_its_answer_and_delays_nobody() {
    let world = world();
    world.runtime.block_on(async {
        let options = Options { time: Duration::from_secs(1), threads: 2, ..Options::default() };
        let engine = Arc::new(Engine::open(&world.path, options).unwrap());
        let server = serve_with(engine, Access::open(), flight::Options { connections: 2, statements: 8 }).await;
        let mut silent = server.client().await;
        let info = silent.execute(LARGE.to_owned(), None).await.unwrap();
        let mut stream = silent.inner_mut().do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap().into_inner();
        server.answers().await;
        // The server allows two connections, and one is of the silent client until it is closed.
        let mut held = Vec::new();
        while held.len() < 2 {
            let mut client = server.client_if_any().await;
            let is_served = match &mut client {
                Some(client) => client.execute("select 1".into(), None).await.is_ok(),
                None => false,
            };
            if is_served {
                held.extend(client);
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let ended = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        assert!(ended.is_some(), "an answer that ends early ends with an error");
        server.end().await;
    });
}

impl Server {
    async fn client_if_any(&self) -> Option<Client> {
        let channel = Endpoint::new(format!("http://{}", self.address)).unwrap().connect().await.ok()?;
        Some(FlightSqlServiceClient::new(channel))
    }
}

#[test]
fn connections_are_bounded_and_silent_ones_and_garbage_are_closed() {
    world().runtime.block_on(async {
        let server = serve_with(world().engine.clone(), Access::open(), flight::Options { connections: 3, statements: 8 }).await;
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1], &[0; 4096], &[0xff; 70_000]] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            // It may be closed before all is sent.
            stream.write_all(garbage).await.ok();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
        }
        let mut frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame.extend([0xff; 64]);
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&frame).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
        server.answers().await;
        let mut silent = Vec::new();
        while silent.len() < 3 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let refused = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 16])).await;
            // The server's first frame comes unasked.
            if !matches!(refused, Ok(Ok(0) | Err(_))) {
                silent.push(stream);
            }
        }
        let mut one_more = TcpStream::connect(server.address).await.unwrap();
        assert!(matches!(one_more.read(&mut [0; 16]).await, Ok(0) | Err(_)), "a fourth connection is closed");
        for mut stream in silent {
            // They end though they send nothing.
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
        server.answers().await;
        server.end().await;
    });
}

#[test]
fn a_server_ends_though_a_client_reads_nothing() {
    world().runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        let info = client.execute(LARGE.to_owned(), None).await.unwrap();
        let _unread = client.inner_mut().do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        server.end().await;
    });
}

#[test]
fn a_statement_that_is_nested_deeply_ends_alone() {
    world().runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        for sql in [
            format!("select {}1", "1 + ".repeat(50_000)),
            format!("select {}1{}", "(".repeat(50_000), ")".repeat(50_000)),
            format!("select 1 where {} true", "true and ".repeat(20_000)),
            format!("select {} true", "not ".repeat(50_000)),
            vec!["select 1"; 10_000].join(" union all "),
        ] {
            assert_eq!(code(&mut client, &sql).await, Code::InvalidArgument);
        }
        // The deepest that may be.
        for sql in [
            format!("select {}lsn from trade", "lsn + ".repeat(295)),
            format!("select lsn{} from trade", "::bigint".repeat(295)),
            vec!["select 1"; 295].join(" union all "),
        ] {
            assert_eq!(code(&mut client, &sql).await, Code::Ok, "{}", &sql[..40]);
        }
        server.answers().await;
        server.end().await;
    });
}

/// Statements, parameters and descriptions by ADBC; it prints a line for each.
const ADBC: &str = r#"
import sys
import adbc_driver_flightsql.dbapi as dbapi
from adbc_driver_flightsql import DatabaseOptions
import pyarrow as pa

uri = sys.argv[1]
conn = dbapi.connect(uri, autocommit=True)
cur = conn.cursor()
def rows(sql, parameters=None):
    cur.execute(sql, parameters)
    return cur.fetch_arrow_table()
def say(name, value):
    print(f"{name}={value}", flush=True)

say("count", rows("select count(*) from trade")[0][0].as_py())
say("all", rows("select * from trade").num_rows)
t = rows("select symbol, price from trade where symbol = 'B:ETH'")
say("dictionary", pa.types.is_dictionary(t.schema.field("symbol").type))
say("eth", t.num_rows)
say("asof", rows("select t.symbol, t.time, t.price, q.bid_px from trade t asof join quote q match_condition (t.time >= q.time) on t.symbol = q.symbol where q.bid_px is not null").num_rows)
say("sample", rows("select time, symbol, first(price) as o, last(price) as c, sum(size_raw) as v from trade sample by 1s").num_rows)
say("latest", rows("select * from trade latest on time partition by symbol").num_rows)
say("empty", rows("select * from trade where symbol = 'A:NONE'").num_rows)
say("types", ",".join(map(str, rows("select 1 as a, 'x' as b, null as c, 1.5 as d, true as e, cast('x' as varchar) as f, interval '1 hour' as g").schema.types)) != "")
say("param", rows("select count(*) from trade where symbol = ? and lsn > ?", ("B:ETH", 30000))[0][0].as_py())
say("param_n", rows("select count(*) from trade where symbol = $1", ("A:MSFT",))[0][0].as_py())
import datetime
when = datetime.datetime(2024, 8, 8, 6, 53, 25, tzinfo=datetime.timezone.utc)
say("param_time", rows("select count(*) from trade where time >= ?", (when,))[0][0].as_py() == rows("select count(*) from trade where time >= '2024-08-08T06:53:25Z'")[0][0].as_py())
say("param_any", rows("select ? as x", (2.5,))[0][0].as_py())
say("show", rows("show at")[0][0].as_py())
cur.execute("set at = 'lsn 30000'")
cur.fetchall()
say("at", rows("select count(*) from trade")[0][0].as_py())
cur.execute("set at = committed")
cur.fetchall()
o = conn.adbc_get_objects(depth="all").read_all().to_pylist()
tables = {t["table_name"]: t for c in o for s in c["catalog_db_schemas"] for t in s["db_schema_tables"]}
say("catalogs", ",".join(c["catalog_name"] for c in o))
say("schemas", ",".join(s["db_schema_name"] for c in o for s in c["catalog_db_schemas"]))
say("columns", ",".join(c["column_name"] for c in tables["trade"]["table_columns"][:3]))
say("schema", ",".join(conn.adbc_get_table_schema("quote").names[:2]))
say("types_of_tables", ",".join(sorted(conn.adbc_get_table_types())))
say("vendor", conn.adbc_get_info()["vendor_name"])
for sql in ("select * from nothing", "delete from trade"):
    try:
        rows(sql)
        say("error", "none")
    except dbapi.Error as e:
        say("error", type(e).__name__)
cur.close()
conn.close()
"#;

const PYTHON: &str = "TAPE_TEST_PYTHON";

/// A Python that has ADBC's driver, or why there is none.
fn python() -> Result<String, String> {
    let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned());
    let found = std::process::Command::new(&python).args(["-c", "import adbc_driver_flightsql.dbapi, pyarrow"]).output();
    match found {
        Ok(output) if output.status.success() => Ok(python),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn run_python(python: String, script: &'static str, address: SocketAddr) -> String {
    let run = move || {
        let uri = format!("grpc://{address}");
        let output = std::process::Command::new(python).args(["-c", script, &uri]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}\n{errors}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[test]
fn adbc_in_python_gets_the_answers_of_the_engine() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return eprintln!("skipped: ADBC's driver for Flight SQL is not there ({why}); see {PYTHON}"),
    };
    let world = world();
    world.runtime.block_on(async {
        let server = serve().await;
        let mut client = server.client().await;
        let eth = count(&mut client, "select count(*) from trade where symbol = 'B:ETH'").await;
        let late = count(&mut client, "select count(*) from trade where symbol = 'B:ETH' and lsn > 30000").await;
        let msft = count(&mut client, "select count(*) from trade where symbol = 'A:MSFT'").await;
        let samples = ask(&mut client, "select time, symbol, last(price) from trade sample by 1s").await.num_rows();
        let expected = format!(
            "count={all}\nall={all}\ndictionary=True\neth={eth}\nasof={all}\nsample={samples}\nlatest=3\nempty=0\ntypes=True\n\
             param={late}\nparam_n={msft}\nparam_time=True\nparam_any=2.5\nshow=committed\nat=20000\ncatalogs=tapestore\n\
             schemas=public\ncolumns=symbol,time,ts_event\nschema=symbol,time\ntypes_of_tables=SYSTEM TABLE,TABLE\n\
             vendor=tapestore\nerror=ProgrammingError\nerror=ProgrammingError\n",
            all = trades()
        );
        assert_eq!(run_python(python, ADBC, server.address).await, expected);
        server.end().await;
    });
}

/// Prints how fast a large select comes.
const SPEED: &str = r#"
import sys, time
import adbc_driver_flightsql.dbapi as dbapi
conn = dbapi.connect(sys.argv[1], autocommit=True)
cur = conn.cursor()
for sql in ("select time, price, size from trade", "select * from trade", "select symbol, time, price from trade order by time, lsn"):
    best = None
    for _ in range(3):
        began = time.perf_counter()
        cur.execute(sql)
        table = cur.fetch_arrow_table()
        took = time.perf_counter() - began
        best = min(best or took, took)
    print(f"{sql}: {table.num_rows} rows, {table.nbytes / 1e6:.0f} MB, {best:.3f} s, {table.nbytes / best / 1e6:.0f} MB/s, {table.num_rows / best / 1e6:.1f} M rows/s")
"#;

#[test]
#[ignore = "a measurement"]
fn how_fast_a_large_select_comes_over_adbc() {
    let python = python().unwrap();
    let world = world_of(6_000_000);
    world.runtime.block_on(async {
        let server = serve_with(world.engine.clone(), Access::open(), flight::Options::default()).await;
        eprintln!("{}", run_python(python, SPEED, server.address).await);
        server.end().await;
    });
}
