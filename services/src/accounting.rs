//! Owns: the account of the records that a command read from its input: stored at the publisher's level, below it, or lost;
//! and the exit code that follows from it.
//!
//! What must hold: the numbers add up to the records read; a command whose records are not all stored ends with a failure;
//! after a request to stop it waits 2 s for acknowledgements, not for a disk or for other hosts.

use std::time::{Duration, Instant};

use tapestore::lsn::Durability;
use tapestore::publisher::{Lost, Outstanding, PublishError, Publisher};

use crate::exit::{Failure, INTERRUPTED, LOST, Outcome};
use crate::terminal::thousands;
use crate::waiting::Waiting;

/// How long to wait for the acknowledgements of the last records.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// The same after a request to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of checks for that request.
const SLICE: Duration = Duration::from_millis(50);

/// What became of the records.
#[derive(Clone, Debug)]
pub struct Accounting {
    /// Records read from the input.
    pub taken: u64,
    /// The durability level that counts as stored.
    pub level: Durability,
    /// Records below that level.
    pub outstanding: Outstanding,
    /// Records that left the publisher's ring before storage received them; a gap record marks them.
    pub lost: Vec<Lost>,
}

impl Accounting {
    /// Waits until the `taken` records reach the publisher's level, and counts those that do; also returns why the others
    /// did not.
    pub fn settle(publisher: &mut Publisher, taken: u64, stop: &dyn Fn() -> bool) -> (Accounting, Result<(), PublishError>) {
        let level = publisher.level();
        let settled = flush(publisher, level, FLUSH_TIMEOUT, stop);
        if level == Durability::None {
            // This level has no acknowledgements. The records in the log are counted nevertheless.
            flush(publisher, Durability::Os, STOP_TIMEOUT, stop).ok();
        }
        let (outstanding, lost) = (publisher.outstanding(), publisher.take_lost());
        (Accounting { taken, level, outstanding, lost }, settled)
    }

    /// Lost records.
    fn lost(&self) -> u64 {
        self.lost.iter().map(|l| l.last.0 - l.first.0 + 1).sum()
    }

    /// Records at the level.
    pub fn stored(&self) -> u64 {
        self.taken.saturating_sub(self.outstanding.total() + self.lost())
    }

    /// The numbers, with the names that JSON output uses.
    pub fn numbers(&self) -> [(&'static str, u64); 4] {
        let Outstanding { in_log, unacknowledged } = self.outstanding;
        [("stored", self.stored()), ("in_log", in_log), ("unacknowledged", unacknowledged), ("lost", self.lost())]
    }

    /// The outcome of a command: the failure of its `input`, the request to stop (`interrupted`), or the reason in `settled`
    /// why records are below their level.
    ///
    /// # Errors
    /// [`LOST`] if records are not stored; else the input's failure, or [`INTERRUPTED`].
    pub fn conclude(&self, input: Outcome, settled: Result<(), PublishError>, interrupted: bool) -> Outcome {
        // At the level `none` nothing is acknowledged; a command that ends early counts all the same.
        let counts = self.level > Durability::None || interrupted || input.is_err();
        let missing = counts && self.outstanding.total() > 0 || self.lost() > 0;
        let cause = match (&input, &settled) {
            (Err(failure), _) => failure.to_string(),
            _ if interrupted => "interrupted".to_owned(),
            (_, Err(error)) => error.to_string(),
            _ if missing => "not all records reached their level".to_owned(),
            _ => return Ok(()),
        };
        if missing || settled.is_err() {
            return Err(Failure::new(LOST, format!("{cause}. {}", self.account())));
        }
        let n = thousands(self.stored());
        let before = match self.level {
            Durability::None => format!("{n} of the records before it are in the log"),
            level => format!("The {n} records before it are stored at level {level}"),
        };
        let code = input.err().map_or(INTERRUPTED, |failure| failure.code);
        Err(Failure::new(code, format!("{cause}. {before}, and no later record was published")))
    }

    /// The numbers as one sentence.
    fn account(&self) -> String {
        let Outstanding { in_log, unacknowledged } = self.outstanding;
        let [taken, stored, in_log, unacknowledged, lost] =
            [self.taken, self.stored(), in_log, unacknowledged, self.lost()].map(thousands);
        let mut text = format!("{stored} of {taken} records are stored at level {}", self.level);
        if self.outstanding.in_log > 0 {
            text += &format!("; {in_log} are in the log, below that level");
        }
        if self.outstanding.unacknowledged > 0 {
            text += &format!(
                "; {unacknowledged} are not acknowledged: they were queued in this process and are lost with it, unless storage had received them"
            );
        }
        for l in &self.lost {
            text += &format!(
                "; records {} to {} of epoch {} ({lost} in all) were lost before storage received them; a gap record marks them",
                l.first, l.last, l.epoch
            );
        }
        text
    }
}

fn flush(publisher: &mut Publisher, level: Durability, limit: Duration, stop: &dyn Fn() -> bool) -> Result<(), PublishError> {
    let (began, mut asked) = (Instant::now(), None);
    let _waiting = Waiting::new(format!("storage to acknowledge the last records at durability {level}"));
    loop {
        match publisher.flush(level, SLICE) {
            Ok(_) => return Ok(()),
            Err(PublishError::Full { .. } | PublishError::NoSpace { .. })
                if began.elapsed() < limit && !(stop() && asked.get_or_insert_with(Instant::now).elapsed() >= STOP_TIMEOUT) => {}
            Err(e) => return Err(e),
        }
    }
}
