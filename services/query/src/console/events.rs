//! Owns: server-sent events of an instrument: its new quotes and trades.
//!
//! | event | data |
//! |---|---|
//! | `begin` | `{"symbol": "...", "after": "<LSN>"}`: the records after it follow |
//! | `records` | `{"quotes": [...], "trades": [...], "left_out": n, "skipped": n, "last": "<LSN>"}` |
//! | `ended` | `{"reason": "..."}`: the client has to begin again |
//!
//! A quote is `[time, bid, its size, ask, its size]`, a trade `[time, price, size, side]`. Times are milliseconds since the epoch, with a fraction; null is null.
//!
//! What must hold: at most one event in `EVERY`. An event is made when the client has room for it, and never before.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use serde_json::{Value as Json, json};
use tapestore::lsn::InstrumentId;
use tapestore::reader::At;
use tapestore::record::{Price, Size};
use tapestore::time::Ts;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use super::Console;
use super::live::{Batch, Watch};
use super::routes::{Body, parameter, reply, wrong};
use crate::clients::stopped;
use crate::engine::Settings;
use crate::failure::QueryError;
use crate::schema::UNITS;

/// Time between two events.
const EVERY: Duration = Duration::from_millis(100);
/// How often a client without new records gets a comment, so that one that is gone is noticed.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a browser waits before it connects again, ms.
const RETRY: u64 = 2000;

/// The events of one client.
struct Events {
    watch: Watch,
    ticks: Interval,
    stop: watch::Receiver<bool>,
    first: Option<String>,
    sent: Instant,
    is_over: bool,
}

/// Begins the events of the instrument that the parameter `symbol` names.
pub(super) fn live(console: &Console, query: Option<&str>) -> Result<Response<Body>, QueryError> {
    let symbol = parameter(query, "symbol").unwrap_or_default();
    let moment = console.engine.moment(&Settings { at: At::Appended, ..Settings::default() })?;
    let Some(id) = moment.names.id(&symbol) else {
        return Ok(wrong(StatusCode::NOT_FOUND, "there is no such instrument"));
    };
    if moment.control.server().is_none() {
        return Ok(wrong(StatusCode::SERVICE_UNAVAILABLE, "no storage process serves the store: no record arrives"));
    }
    let after = moment.snapshot.last();
    let Some(watch) = console.live.watch(InstrumentId(id), after) else {
        return Ok(wrong(StatusCode::SERVICE_UNAVAILABLE, "too many instruments are watched at once"));
    };
    let begin = json!({ "symbol": symbol, "after": after.0.to_string() });
    let first = Some(format!("retry: {RETRY}\nevent: begin\ndata: {begin}\n\n"));
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = Events { watch, ticks, stop: console.stop.clone(), first, sent: Instant::now(), is_over: false };
    let events = stream::unfold(events, |mut events| async move {
        let text = events.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), events))
    });
    let body = StreamBody::new(events).map_err(|never| match never {}).boxed_unsync();
    Ok(reply(StatusCode::OK, "text/event-stream", body))
}

impl Events {
    /// The next event, when there is one.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while !self.is_over {
            tokio::select! {
                _ = self.ticks.tick() => {}
                () = stopped(&mut self.stop) => return None,
            }
            let batch = self.watch.take();
            if !batch.is_empty() {
                self.sent = Instant::now();
                self.is_over = batch.ended.is_some();
                return Some(text(&batch));
            }
            if self.sent.elapsed() >= ALIVE {
                self.sent = Instant::now();
                return Some(": alive\n\n".to_owned());
            }
        }
        None
    }
}

fn price(price: Price) -> Json {
    if price == Price::NULL { Json::Null } else { Json::from(price.0 as f64 / UNITS) }
}

fn size(size: Size) -> Json {
    if size == Size::NULL { Json::Null } else { Json::from(size.0 as f64 / UNITS) }
}

fn time(time: Ts) -> Json {
    Json::from(time.0 as f64 / 1e6)
}

/// The events of `batch`.
fn text(batch: &Batch) -> String {
    let quotes = batch
        .quotes
        .iter()
        .map(|quote| json!([time(quote.time), price(quote.bid.0), size(quote.bid.1), price(quote.ask.0), size(quote.ask.1)]));
    let trades = batch.trades.iter().map(|trade| {
        let side = (trade.side != 0).then(|| char::from(trade.side).to_string());
        json!([time(trade.time), price(trade.price), size(trade.size), side])
    });
    let records = json!({
        "quotes": quotes.collect::<Json>(), "trades": trades.collect::<Json>(),
        "left_out": batch.left_out, "skipped": batch.skipped, "last": batch.last.0.to_string(),
    });
    let mut text = format!("event: records\ndata: {records}\n\n");
    if let Some(reason) = &batch.ended {
        text.push_str(&format!("event: ended\ndata: {}\n\n", json!({ "reason": reason })));
    }
    text
}
