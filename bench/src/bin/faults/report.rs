//! Owns: the report of a campaign: trials, passes, failures and the commands that repeat them.
//!
//! What must hold: a run without failures is reported as the failure rate that it excludes at 95 % confidence.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// The outcome of a campaign.
#[derive(Debug)]
pub struct Report {
    campaign: &'static str,
    passed: u64,
    failed: u64,
    notes: Vec<String>,
    skipped: bool,
}

impl Report {
    /// An empty report.
    pub fn new(campaign: &'static str) -> Report {
        Report { campaign, passed: 0, failed: 0, notes: Vec::new(), skipped: false }
    }

    /// Counts a passed trial.
    pub fn pass(&mut self) {
        self.passed += 1;
        self.show();
    }

    /// Counts a failed trial and prints the failure `what` and the command `again`, which repeats it.
    pub fn fail(&mut self, what: impl Display, again: impl Display) {
        self.failed += 1;
        println!("{}: FAILED: {what}\n    again: {again}", self.campaign);
    }

    /// Prints the number of trials, on a terminal.
    fn show(&self) {
        let mut terminal = std::io::stderr();
        if terminal.is_terminal() {
            // A failed write loses only this progress line.
            write!(terminal, "\r{}: {} trials, {} failed ", self.campaign, self.trials(), self.failed).ok();
        }
    }

    /// Counts the `outcome` of a trial.
    pub fn add(&mut self, outcome: Result<(), impl Display>, again: impl Display) {
        match outcome {
            Ok(()) => self.pass(),
            Err(what) => self.fail(what, again),
        }
    }

    /// Adds a line to the summary.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Marks the campaign as skipped because of `why`; neither passed nor failed.
    pub fn skip(&mut self, why: &str) {
        println!("{}: SKIPPED: {why}", self.campaign);
        self.skipped = true;
    }

    /// Trials so far.
    pub fn trials(&self) -> u64 {
        self.passed + self.failed
    }

    /// Prints the report. Returns whether at least one trial passed, or the campaign was skipped, and none failed.
    pub fn finish(self) -> bool {
        for note in &self.notes {
            println!("{}: {note}", self.campaign);
        }
        let bound = match (self.passed, self.failed) {
            (0, _) | (_, 1..) => String::new(),
            // The rule of three: with no failure in n trials the rate is below 3 / n at 95 %.
            (n, 0) => format!(" (at most one failure in {:.0} trials, at 95 % confidence)", (n as f64 / 3.0).max(1.0)),
        };
        println!("{}: {} passed, {} failed{bound}", self.campaign, self.passed, self.failed);
        self.failed == 0 && (self.passed > 0 || self.skipped)
    }
}
