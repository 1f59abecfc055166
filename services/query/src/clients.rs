//! Owns: the clients of a server, from its listener until it stops.
//!
//! What must hold: there are at most as many as there are places. A client that cannot be accepted, or whose connection ends by a
//! bug, ends nobody else's.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};

/// Pause after a client could not be accepted. No descriptors, for one: connections that end make room.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves each client of `listener` by `serve`, as far as there are `places`, until `stop` is true. Connections then have the time
/// `ending` to end. `server` is the server's name in the log.
pub async fn serve<F>(
    listener: TcpListener,
    server: &'static str,
    places: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
    ending: Duration,
    serve: impl Fn(TcpStream, OwnedSemaphorePermit) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let report = |ended: Result<(), JoinError>| {
        if let Err(error) = ended {
            tracing::error!(name: "query.connection_panicked", %error, "a connection of {server} has ended by a bug");
        }
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        while let Some(ended) = connections.try_join_next() {
            report(ended);
        }
        match accepted {
            Ok((socket, from)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    connections.spawn(serve(socket, place));
                }
                Err(_) => tracing::warn!(
                    name: "query.client_turned_away", %from,
                    "a client of {server} is turned away: there are too many"
                ),
            },
            Err(error) => {
                tracing::warn!(name: "query.client_not_accepted", %error, "a client of {server} cannot be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let ends = tokio::time::timeout(ending, async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    });
    if ends.await.is_err() {
        connections.shutdown().await;
    }
}

/// Returns when the server has to stop.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Nobody can stop it any more.
        std::future::pending::<()>().await;
    }
}
