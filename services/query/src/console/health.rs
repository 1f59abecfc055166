//! Owns: the state of the store as the page shows it: watermarks, the records between them, publishers, what is wrong.
//!
//! The page asks every second. Rates are differences of two answers: `records` and `bytes` count since storage was started, and
//! `seconds` is the host's monotonic clock.
//!
//! What must hold: an answer is of one moment but for the watermarks, which rise while they are read; no difference is negative.

use hyper::{Response, StatusCode};
use serde_json::{Value as Json, json};
use tapestore::reader::At;
use tapestore::shm::control::{Control, SLOTS_MAX, Statistic};
use tapestore::time::{Clock, HostClock};

use super::Console;
use super::routes::{Body, json};
use crate::engine::Settings;
use crate::failure::QueryError;

fn publishers(control: &Control) -> Vec<Json> {
    let attached = (0..SLOTS_MAX).filter_map(|at| {
        let slot = control.slot(at);
        let (grant, publisher, epoch) = slot.holder()?;
        let view = slot.view(grant)?;
        Some(json!({
            "publisher": publisher.0, "epoch": epoch.0, "process": view.pid,
            "accepted": view.accepted.0, "durable": view.durable.0, "committed": view.committed.0,
        }))
    });
    attached.collect()
}

/// The answer to one question of the page.
pub(super) fn health(console: &Console) -> Result<Response<Body>, QueryError> {
    let moment = console.engine.moment(&Settings { at: At::Appended, ..Settings::default() })?;
    let control = &moment.control;
    let flushed = moment.snapshot.history().covered().0;
    // From the lowest up: each is at least what was read before it.
    let committed = control.committed().0;
    let durable = control.durable().0;
    let applied = control.applied().0;
    let appended = control.appended().0;
    let trouble = control.trouble().map(|(trouble, since)| {
        let advice = trouble.advice().replace("STORE", &console.engine.store().display().to_string());
        let since = since.map(|since| since.to_string());
        json!({ "name": trouble.name(), "reason": trouble.reason(), "advice": advice, "since": since })
    });
    let newest = moment.snapshot.arrival(moment.snapshot.last())?.map(|arrival| arrival.ingest_ts);
    let age = newest.map(|newest| HostClock.wall().0.saturating_sub(newest.0) as f64 / 1e9);
    let served = control.server().is_some();
    let count = |which| control.statistic(which);
    Ok(json(
        StatusCode::OK,
        &json!({
            "store": console.engine.store().display().to_string(),
            "seconds": HostClock.monotonic() as f64 / 1e9,
            "served": served,
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
            "records": count(Statistic::Records),
            "bytes": count(Statistic::Bytes),
            "instruments": moment.names.len(),
            "kinds": moment.kinds.len(),
            "files": moment.snapshot.history().files().len(),
            "free_bytes": count(Statistic::FreeBytes),
            "publishers": publishers(control),
            "live": console.live.clients(),
        }),
    ))
}
