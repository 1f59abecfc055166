//! Owns: what became of the records that a command took from its input: stored at the publisher's level, on the way, or
//! lost, and how the command ends by that.
//!
//! What must hold: the numbers add up to the records taken; a command whose records are not all stored does not end as if
//! they were; whoever asks it to end waits a moment for acknowledgements, not for a disk or for other hosts.

use std::time::{Duration, Instant};

use tapestore::lsn::Durability;
use tapestore::publisher::{Lost, Outstanding, PublishError, Publisher};

use crate::exit::{Failure, INTERRUPTED, LOST, Outcome};
use crate::terminal::thousands;

/// How long the acknowledgements of the last records are waited for.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// The same once the command has been asked to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two looks whether it has been.
const SLICE: Duration = Duration::from_millis(50);

/// What became of records.
#[derive(Clone, Debug)]
pub struct Balance {
    /// Records taken.
    pub taken: u64,
    /// The level that counts as stored.
    pub level: Durability,
    /// What has not reached it.
    pub outstanding: Outstanding,
    /// What has left the publisher's ring, and storage never had; a gap record says so.
    pub lost: Vec<Lost>,
}

impl Balance {
    /// Waits until the `taken` records have reached the publisher's level, and says how far they came; also why they did
    /// not reach it.
    pub fn settle(publisher: &mut Publisher, taken: u64, stop: &dyn Fn() -> bool) -> (Balance, Result<(), PublishError>) {
        let level = publisher.level();
        let settled = flush(publisher, level, FLUSH_TIMEOUT, stop);
        if level == Durability::None {
            // Nothing is promised; how much came is counted all the same.
            flush(publisher, Durability::Os, STOP_TIMEOUT, stop).ok();
        }
        let (outstanding, lost) = (publisher.outstanding(), publisher.take_lost());
        (Balance { taken, level, outstanding, lost }, settled)
    }

    /// Records that were lost on their way.
    fn lost(&self) -> u64 {
        self.lost.iter().map(|l| l.last.0 - l.first.0 + 1).sum()
    }

    /// Records at their level.
    pub fn stored(&self) -> u64 {
        self.taken.saturating_sub(self.outstanding.total() + self.lost())
    }

    /// The numbers by name, for JSON.
    pub fn numbers(&self) -> [(&'static str, u64); 4] {
        let Outstanding { in_log, unacknowledged } = self.outstanding;
        [("stored", self.stored()), ("in_log", in_log), ("unacknowledged", unacknowledged), ("lost", self.lost())]
    }

    /// How a command ends whose input ended with `input`: with its failure, or because it was `interrupted`, or because
    /// not all came to their level, which is why `settled` failed.
    ///
    /// # Errors
    /// [`LOST`] if records are not stored; the input's own failure, or [`INTERRUPTED`], if all are.
    pub fn conclude(&self, input: Outcome, settled: Result<(), PublishError>, interrupted: bool) -> Outcome {
        // Durability `none` asks for no acknowledgement; who is cut short learns what has none all the same.
        let counts = self.level > Durability::None || interrupted || input.is_err();
        let missing = counts && self.outstanding.total() > 0 || self.lost() > 0;
        let cause = match (&input, &settled) {
            (Err(failure), _) => failure.to_string(),
            _ if interrupted => "interrupted".to_owned(),
            (_, Err(error)) => error.to_string(),
            _ if missing => "not all records came to their level".to_owned(),
            _ => return Ok(()),
        };
        if missing || settled.is_err() {
            return Err(Failure::new(LOST, format!("{cause}. {}", self.account())));
        }
        let n = thousands(self.stored());
        let before = match self.level {
            Durability::None => format!("Of the records before it {n} are in the log"),
            level => format!("The {n} records before it are stored at level {level}"),
        };
        let code = input.err().map_or(INTERRUPTED, |failure| failure.code);
        Err(Failure::new(code, format!("{cause}. {before}, and nothing of what follows is published")))
    }

    /// The numbers as a sentence.
    fn account(&self) -> String {
        let Outstanding { in_log, unacknowledged } = self.outstanding;
        let [taken, stored, in_log, unacknowledged, lost] =
            [self.taken, self.stored(), in_log, unacknowledged, self.lost()].map(thousands);
        let mut text = format!("Of {taken} records taken {stored} are stored at level {}", self.level);
        if self.outstanding.in_log > 0 {
            text += &format!("; {in_log} are in the log, and not at that level yet");
        }
        if self.outstanding.unacknowledged > 0 {
            text += &format!(
                "; {unacknowledged} are not acknowledged: they were in this process and are lost with it, unless storage had received them already"
            );
        }
        for l in &self.lost {
            text += &format!(
                "; records {} to {} of epoch {} ({lost} in all) were lost before storage had them, and a gap record says so",
                l.first, l.last, l.epoch
            );
        }
        text
    }
}

fn flush(publisher: &mut Publisher, level: Durability, limit: Duration, stop: &dyn Fn() -> bool) -> Result<(), PublishError> {
    let (began, mut asked) = (Instant::now(), None);
    loop {
        match publisher.flush(level, SLICE) {
            Ok(_) => return Ok(()),
            Err(PublishError::Full { .. } | PublishError::NoSpace { .. })
                if began.elapsed() < limit && !(stop() && asked.get_or_insert_with(Instant::now).elapsed() >= STOP_TIMEOUT) => {}
            Err(e) => return Err(e),
        }
    }
}
