//! Owns: how much a statement has read of what it has to read, and the bar of one that takes longer than a second.
//!
//! What must hold: the bar is on standard error, and only on a terminal. It is gone before rows come to the same terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use tape_services::terminal::Bar;
use tape_services::waiting::Waiting;
use tapestore_formats::progress::Progress;

use crate::engine::Answer;
use crate::failure::QueryError;
use crate::scan::Scan;

/// After this time the bar appears.
const QUIET: Duration = Duration::from_secs(1);
/// How often it changes.
const EVERY: Duration = Duration::from_millis(100);

/// Bytes of columns that the scans of `plan` have read, and that they have to read at most.
pub fn bytes(plan: &Arc<dyn ExecutionPlan>) -> (u64, u64) {
    let own = plan.downcast_ref::<Scan>().map_or((0, 0), Scan::progress);
    let children = plan.children().into_iter().map(bytes);
    children.fold(own, |(read, all), (more_read, more)| (read + more_read, all + more))
}

/// Watches a statement.
pub struct Watch {
    began: Instant,
    /// When the bar was looked at last.
    looked: Instant,
    /// `None`: standard error is no terminal, or rows come to it.
    bar: Option<Bar>,
    /// What says, where there is no bar, that the statement takes long.
    _waiting: Option<Waiting>,
}

impl Watch {
    /// Begins to watch.
    pub fn begin() -> Watch {
        let is_terminal = std::io::stderr().is_terminal();
        let now = Instant::now();
        let waiting = (!is_terminal).then(|| Waiting::new("the answer"));
        Watch { began: now, looked: now, bar: is_terminal.then(|| Bar::new("reading")), _waiting: waiting }
    }

    /// The next rows of `answer`; `None` at the end.
    ///
    /// # Errors
    /// Those of the rows.
    pub async fn next(&mut self, answer: &mut Answer) -> Result<Option<RecordBatch>, QueryError> {
        loop {
            if self.looked.elapsed() >= EVERY {
                self.look(answer);
            }
            tokio::select! {
                biased;
                batch = answer.rows.next() => return Ok(batch.transpose()?),
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    fn look(&mut self, answer: &Answer) {
        self.looked = Instant::now();
        let Some(bar) = self.bar.as_mut().filter(|_| self.began.elapsed() >= QUIET) else { return };
        let (done, total) = bytes(&answer.plan);
        if total > 0 {
            bar.set(Progress { done, total, is_bytes: true });
        }
    }

    /// Rows come to standard output: where that is the terminal, the bar ends.
    pub fn rows_come(&mut self) {
        self.bar.take_if(|_| std::io::stdout().is_terminal());
    }
}
