//! Owns: `tape sql --follow`: the updates of a statement, printed as they come.
//!
//! What must hold: what is printed are the rows of [`Updates`], each once.

use std::time::Duration;

use datafusion::common::ScalarValue;
use tape_services::exit::Outcome;
use tape_services::grid::{Format, Grid};
use tape_services::logging::note;
use tape_services::{stdout, terminal};

use crate::print;
use crate::session::Session;
use crate::updates::{self, Step, Updates};

/// Prints the answer of a statement with the values of its parameters now, and what is new in it every `every`, until it is interrupted.
///
/// # Errors
/// The statement is wrong, its answer has too many rows to compare, or the output cannot be written.
pub async fn follow(session: Session, (statement, values): (&str, &[ScalarValue]), every: Duration, format: Format) -> Outcome {
    let stop = terminal::stop_flag()?;
    let schema = updates::schema(&session, statement).await?;
    let mut updates = Updates::new(session, statement, values.to_vec()).await?;
    let mut grid = Grid::new(format);
    grid.head(print::headings(&schema))?;
    let mut is_down = false;
    while !terminal::is_raised(&stop) {
        match updates.next().await? {
            Step::Rows(rows) => print::print(&mut grid, &rows)?,
            Step::Current => grid.flush()?,
            Step::Idle => {
                grid.flush()?;
                stdout::check()?;
                if updates.is_served() == is_down {
                    is_down = !is_down;
                    let state = if is_down { "storage does not run; waiting for it" } else { "storage runs again" };
                    note(format_args!("note: {state}"));
                }
                tokio::time::sleep(every).await;
            }
        }
    }
    grid.flush()
}
