//! Owns: one statement of the page: its rows as lines of JSON.
//!
//! | line | |
//! |---|---|
//! | the first | `{"columns": [...], "last": "<the last LSN of the snapshot>"}` |
//! | each after it | `{"rows": [[...], ...]}` |
//! | the last | `{"end": {"rows": n, "truncated": null, "shortened": n, "seconds": x}}`, or `{"error": "..."}` |
//!
//! `truncated` is `"rows"` or `"bytes"`, the limit that was reached, if the answer has more rows.
//!
//! What must hold: rows that wait are bounded. A statement ends when its client goes away. An answer without its last line is
//! not whole.

use std::convert::Infallible;
use std::time::Instant;

use arrow::util::display::FormatOptions;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Console;
use super::routes::{Body, reply, wrong};
use super::values::{Cells, columns};
use crate::engine::{Answer, Settings};
use crate::failure::QueryError;
use crate::session::{Reply, Session};

/// Bytes of a line of rows.
const LINE: usize = 32 << 10;
/// Lines that wait for the client.
const WAITING: usize = 4;

/// What the page sends.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    sql: String,
    /// How far the statement reads; absent: as far as it is committed.
    at: Option<String>,
    /// At which record trades are known; absent: they are as they are stored.
    as_known_at: Option<String>,
    /// Most rows.
    rows: Option<usize>,
}

/// Answers the statement of a request.
pub(super) async fn answer(console: &Console, body: &[u8]) -> Result<Response<Body>, QueryError> {
    let question: Question = match serde_json::from_slice(body) {
        Ok(question) => question,
        Err(error) => return Ok(wrong(StatusCode::BAD_REQUEST, &format!("this is no statement: {error}"))),
    };
    let began = Instant::now();
    let mut session = Session::new(console.engine.clone(), Settings::default());
    for (name, value) in [("at", &question.at), ("as_known_at", &question.as_known_at)] {
        if let Some(value) = value {
            session.set(name, value)?;
        }
    }
    let Reply::Rows(answer) = session.run(&question.sql, Vec::new()).await? else {
        let reason = "a setting holds for one statement here: choose above the editor how far statements read";
        return Ok(wrong(StatusCode::BAD_REQUEST, reason));
    };
    let limits = Limits { rows: question.rows.unwrap_or(usize::MAX).min(console.options.rows), bytes: console.options.bytes };
    let (lines, waiting) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let failed = std::panic::AssertUnwindSafe(send(answer, &limits, began, &lines));
        let last = match futures::FutureExt::catch_unwind(failed).await {
            Ok(Ok(last)) => last,
            Ok(Err(error)) => json!({ "error": error.to_string() }),
            Err(_) => json!({ "error": "a bug of this program has ended the statement" }),
        };
        // The client may be gone.
        let _is_sent = lines.send(line(&last)).await.is_ok();
    });
    let lines = ReceiverStream::new(waiting).map(|line| Ok::<_, Infallible>(Frame::data(line)));
    let body = StreamBody::new(lines).map_err(|never| match never {}).boxed_unsync();
    Ok(reply(StatusCode::OK, "application/x-ndjson", body))
}

struct Limits {
    rows: usize,
    bytes: usize,
}

fn line(value: &serde_json::Value) -> Bytes {
    format!("{value}\n").into()
}

/// Sends the rows of `answer` to `lines` until the client goes away; returns the last line.
async fn send(
    mut answer: Answer,
    limits: &Limits,
    began: Instant,
    lines: &mpsc::Sender<Bytes>,
) -> Result<serde_json::Value, QueryError> {
    let gone = || json!({ "error": "the client has gone away" });
    let head = json!({ "columns": columns(&answer.schema), "last": answer.last.0.to_string() });
    if lines.send(line(&head)).await.is_err() {
        return Ok(gone());
    }
    let options = FormatOptions::new();
    let (mut rows, mut bytes, mut shortened, mut truncated) = (0, 0, 0, None);
    'batches: loop {
        let batch = tokio::select! {
            batch = answer.rows.next() => batch,
            () = lines.closed() => return Ok(gone()),
        };
        let Some(batch) = batch else { break };
        let batch = batch?;
        let mut row = 0;
        while row < batch.num_rows() {
            // Formatters are not kept while a line waits: they may not change threads.
            let text = {
                let cells = Cells::new(&batch, &options);
                let mut text = b"{\"rows\":[".to_vec();
                let from = row;
                while row < batch.num_rows() && text.len() < LINE && rows < limits.rows && bytes + text.len() < limits.bytes {
                    if row > from {
                        text.push(b',');
                    }
                    shortened += cells.write(row, &mut text);
                    (row, rows) = (row + 1, rows + 1);
                }
                text.extend_from_slice(b"]}\n");
                text
            };
            bytes += text.len();
            if lines.send(text.into()).await.is_err() {
                return Ok(gone());
            }
            if row < batch.num_rows() && (rows >= limits.rows || bytes >= limits.bytes) {
                truncated = Some(if rows >= limits.rows { "rows" } else { "bytes" });
                break 'batches;
            }
        }
    }
    Ok(json!({ "end": {
        "rows": rows, "truncated": truncated, "shortened": shortened, "seconds": began.elapsed().as_secs_f64(),
    } }))
}
