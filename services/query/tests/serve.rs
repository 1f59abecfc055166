//! The query process: it says what it listens to, answers over its protocols, refuses what is not safe, and ends in order.

#![expect(clippy::unwrap_used, reason = "an unexpected value fails a test by a panic")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Price, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

/// The process, and the addresses that it has logged.
struct Served {
    child: Child,
    postgres: String,
    flight: String,
    console: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _is_killed = self.child.kill().is_ok();
        let _is_reaped = self.child.wait().is_ok();
    }
}

fn command(store: &Embedded) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    command.args(["--store"]).arg(store.path()).args([
        "serve",
        "--postgres",
        "127.0.0.1:0",
        "--flight",
        "127.0.0.1:0",
        "--console",
        "127.0.0.1:0",
    ]);
    command
}

fn serve(store: &Embedded) -> Served {
    let mut child = command(store).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (sender, lines) = sync_channel(1024);
    std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let line = loop {
        let line = lines.recv_timeout(Duration::from_secs(60)).unwrap();
        if line.contains("answering SQL") {
            break line;
        }
    };
    let field = |name: &str| line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    Served { child, postgres: field("postgres="), flight: field("flight="), console: field("console=") }
}

fn store() -> Embedded {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    let instrument = publisher.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
    let trade = Trade { instrument, price: Price(189_980_000_000), size: Size(5), ts_recv: Ts(7), ..Trade::default() };
    publisher.publish(&trade).unwrap();
    publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
    store
}

#[test]
fn a_client_of_postgresql_gets_an_answer_and_sigterm_ends_the_process_in_order() {
    let store = store();
    let mut served = serve(&store);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let port: u16 = served.postgres.rsplit(':').next().unwrap().parse().unwrap();
    let price: f64 = runtime.block_on(async {
        let config = format!("host=127.0.0.1 port={port} user=ann dbname=tapestore");
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.query_one("select price from trade where symbol = $1", &[&"XNAS:AAPL"]).await.unwrap().get(0)
    });
    assert!((price - 189.98).abs() < f64::EPSILON);
    assert!(std::net::TcpStream::connect(&served.flight).is_ok());
    assert!(std::net::TcpStream::connect(&served.console).is_ok());
    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_address_that_others_reach_is_refused_without_users_and_certificates() {
    let store = store();
    let output = command(&store).args(["--postgres", "0.0.0.0:0"]).output();
    // The last of two equal options would count; clap refuses them.
    assert!(!output.unwrap().status.success());
    let mut open = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    let open = open.arg("--store").arg(store.path()).args(["serve", "--postgres", "0.0.0.0:0"]).output().unwrap();
    let message = String::from_utf8(open.stderr).unwrap();
    assert!(open.status.code() == Some(2) && message.contains("--tls-cert"), "{message}");
}
