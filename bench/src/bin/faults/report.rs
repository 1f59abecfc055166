//! Owns: what a campaign says: what was tried, what passed, what failed and how to do it again.
//!
//! What must hold: no failure is no proof: it is reported as the rate that 95 % of such runs would exclude.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// The outcome of a campaign.
#[derive(Debug)]
pub struct Report {
    campaign: &'static str,
    passed: u64,
    failed: u64,
    facts: Vec<String>,
    skipped: bool,
}

impl Report {
    /// Of nothing yet.
    pub fn new(campaign: &'static str) -> Report {
        Report { campaign, passed: 0, failed: 0, facts: Vec::new(), skipped: false }
    }

    /// A trial passed.
    pub fn pass(&mut self) {
        self.passed += 1;
        self.show();
    }

    /// A trial failed: `what`, which `again` does once more.
    pub fn fail(&mut self, what: impl Display, again: impl Display) {
        self.failed += 1;
        println!("{}: FAILED: {what}\n    again: {again}", self.campaign);
    }

    /// Shows how many trials there were, on a terminal.
    fn show(&self) {
        let mut terminal = std::io::stderr();
        if terminal.is_terminal() {
            // Whoever watches loses nothing but this if it cannot be shown.
            write!(terminal, "\r{}: {} trials, {} failed ", self.campaign, self.trials(), self.failed).ok();
        }
    }

    /// Notes `outcome` of a trial.
    pub fn add(&mut self, outcome: Result<(), impl Display>, again: impl Display) {
        match outcome {
            Ok(()) => self.pass(),
            Err(what) => self.fail(what, again),
        }
    }

    /// Something that was counted.
    pub fn fact(&mut self, fact: impl Into<String>) {
        self.facts.push(fact.into());
    }

    /// It cannot be tried here, because of `why`: that is no failure, and no proof.
    pub fn skip(&mut self, why: &str) {
        println!("{}: SKIPPED: {why}", self.campaign);
        self.skipped = true;
    }

    /// Trials so far.
    pub fn trials(&self) -> u64 {
        self.passed + self.failed
    }

    /// Prints it; whether everything passed, and something did.
    pub fn finish(self) -> bool {
        for fact in &self.facts {
            println!("{}: {fact}", self.campaign);
        }
        let bound = match (self.passed, self.failed) {
            (0, _) | (_, 1..) => String::new(),
            // The rule of three: with no failure in n trials the rate is below 3 / n at 95 %.
            (n, 0) => format!(" (a failure at most once in {:.0} trials, at 95 %)", (n as f64 / 3.0).max(1.0)),
        };
        println!("{}: {} passed, {} failed{bound}", self.campaign, self.passed, self.failed);
        self.failed == 0 && (self.passed > 0 || self.skipped)
    }
}
