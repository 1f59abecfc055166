//! Owns: the state of the store as the page shows it: watermarks, the records between them, publishers, what is wrong.
//!
//! The page asks every second. Rates are differences of two answers: `records` and `bytes` count since storage was started, and
//! `seconds` is the host's monotonic clock.
//!
//! What must hold: an answer is of one moment but for the watermarks, which rise while they are read; no difference is negative.

use hyper::{Response, StatusCode};
use serde_json::json;
use tapestore::reader::At;
use tapestore::shm::status::{Status, Watermarks};
use tapestore::time::{Clock, HostClock};

use super::Console;
use super::routes::{Body, json};
use crate::engine::Settings;
use crate::failure::QueryError;

/// The answer to one question of the page.
pub(super) fn health(console: &Console) -> Result<Response<Body>, QueryError> {
    let moment = console.engine.moment(&Settings { at: At::Appended, ..Settings::default() })?;
    let status = Status::read(&moment.control);
    let flushed = moment.snapshot.history().covered().0;
    let Watermarks { appended, applied, durable, committed, .. } = status.watermarks;
    let trouble = status.trouble.map(|now| {
        let advice = now.advice.replace("STORE", &console.engine.store().display().to_string());
        json!({ "name": now.trouble.name(), "reason": now.reason, "advice": advice, "since": now.since.map(|since| since.to_string()) })
    });
    let newest = moment.snapshot.arrival(moment.snapshot.last())?.map(|arrival| arrival.ingest_ts);
    let age = newest.map(|newest| HostClock.wall().0.saturating_sub(newest.0) as f64 / 1e9);
    Ok(json(
        StatusCode::OK,
        &json!({
            "store": console.engine.store().display().to_string(),
            "seconds": HostClock.monotonic() as f64 / 1e9,
            "served": status.process.is_some(),
            "trouble": trouble,
            "watermarks": {
                "appended": appended, "applied": applied, "durable": durable, "committed": committed, "flushed": flushed,
            },
            "lag": {
                "applied": appended.saturating_sub(applied), "durable": appended.saturating_sub(durable),
                "committed": appended.saturating_sub(committed), "flushed": committed.saturating_sub(flushed),
            },
            "newest": newest.map(|newest| newest.to_string()),
            "newest_age": age,
            "records": status.ingest.records,
            "bytes": status.log.bytes,
            "instruments": moment.names.len(),
            "kinds": moment.kinds.len(),
            "files": moment.snapshot.history().files().len(),
            "free_bytes": status.space.free_bytes,
            "publishers": status.publishers,
            "live": console.live.clients(),
        }),
    ))
}
