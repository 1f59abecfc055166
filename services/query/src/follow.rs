//! Owns: `tape sql --follow`: the answer of a statement, kept current while records come.
//!
//! A statement of single rows (conditions and columns of one kind's table) reads only the records that came since its last answer.
//! Any other one, with `SAMPLE BY`, `LATEST ON`, a join, is answered again, and rows that it did not have before are printed. The
//! first column of each row, `as_of`, is the last LSN of the snapshot that it is of.
//!
//! What must hold: every row of the statement's answer at the moments of the updates is printed, and none twice in a row unless it
//! was gone in between. A withdrawn row is not unprinted.

use std::collections::HashMap;
use std::time::Duration;

use datafusion::common::ScalarValue;
use futures::StreamExt;
use tape_services::exit::{Failure, LATER, Outcome};
use tape_services::grid::{Cell, Format, Grid, Heading};
use tape_services::logging::note;
use tape_services::{stdout, terminal};
use tapestore::lsn::Lsn;

use crate::engine::Engine;
use crate::failure::QueryError;
use crate::print;
use crate::session::{Reply, Session};

/// The most rows of an answer that is compared with the one before.
const ROWS_MAX: usize = 1_000_000;

/// Prints the answer of a statement with the values of its parameters now, and what is new in it every `every`, until it is interrupted.
///
/// # Errors
/// The statement is wrong, its answer has too many rows to compare, or the output cannot be written.
pub async fn follow(
    session: &mut Session,
    (statement, values): (&str, &[ScalarValue]),
    every: Duration,
    format: Format,
) -> Outcome {
    let stop = terminal::stop_flag()?;
    let is_by_row = session.is_by_row(statement).await?;
    let mut grid = Grid::new(format);
    let mut before: HashMap<String, usize> = HashMap::new();
    let mut last: Option<Lsn> = None;
    let mut is_down = false;
    while !terminal::is_raised(&stop) {
        let newest = last_of(session.engine(), session)?;
        if last == Some(newest) {
            grid.flush()?;
            stdout::check()?;
            if session.engine().is_served() == is_down {
                is_down = !is_down;
                let state = if is_down { "storage does not run; waiting for it" } else { "storage runs again" };
                note(format_args!("note: {state}"));
            }
            tokio::time::sleep(every).await;
            continue;
        }
        let after = last.filter(|_| is_by_row);
        let mut answer = match session.run_after(statement, values.to_vec(), after).await? {
            Reply::Rows(answer) => answer,
            Reply::Done(_) => return Ok(()),
        };
        if last.is_none() {
            let as_of = Heading::new("as_of", false);
            grid.head(std::iter::once(as_of).chain(print::headings(&answer.schema)).collect())?;
        }
        let mut now: HashMap<String, usize> = HashMap::new();
        let mut rows = 0usize;
        while let Some(batch) = answer.rows.next().await {
            let batch = batch.map_err(QueryError::from)?;
            rows += batch.num_rows();
            if !is_by_row && rows > ROWS_MAX {
                let why = format!(
                    "the answer has more than {ROWS_MAX} rows, too many to find the new ones; narrow it by a time, like WHERE time > now() - interval '5 minutes'"
                );
                return Err(Failure::new(LATER, why));
            }
            for cells in print::rows(&batch) {
                if !is_by_row {
                    let text = cells.iter().map(Cell::key).collect::<Vec<_>>().join("\u{1f}");
                    let count = now.entry(text.clone()).or_default();
                    *count += 1;
                    if before.get(&text).is_some_and(|there| there >= count) {
                        continue;
                    }
                }
                grid.push(std::iter::once(Cell::number(answer.last.0)).chain(cells).collect())?;
            }
        }
        grid.flush()?;
        (before, last) = (now, Some(answer.last));
    }
    grid.flush()
}

fn last_of(engine: &Engine, session: &Session) -> Outcome<Lsn> {
    Ok(engine.moment(session.settings())?.snapshot.last())
}
