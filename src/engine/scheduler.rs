//! Owns: the flush agent's schedule of merges and retention.
//!
//! What must hold: rules are valid before the store is served; a rule of an absent kind is logged.

use std::collections::BTreeSet;

use crossbeam_channel::{Receiver, Sender};

use super::compact::Outcome;
use super::reload::Change;
use crate::compaction::Options;
use crate::compaction::merge::Job;
use crate::compaction::retention::{Rule, Rules};
use tapestore::error::Result;
use tapestore::time::Clock;

/// The flush agent's schedule of merges and retention.
pub(super) struct Scheduler {
    pub(super) options: Options,
    pub(super) rules: Rules,
    pub(super) jobs: Sender<Job>,
    pub(super) done: Receiver<Outcome>,
    /// Options and rules that take the place of these.
    pub(super) changes: Receiver<Change>,
    /// Whether a merge is running: its files must stay.
    pub(super) is_merging: bool,
    /// Whether the version has changed since the last look.
    pub(super) is_new: bool,
    /// After a failure: no earlier than this moment of the monotonic clock.
    pub(super) after: u64,
    /// Files that could not be merged; they are skipped until `skip_until` of the monotonic clock.
    pub(super) skip: BTreeSet<u64>,
    pub(super) skip_until: u64,
    /// No earlier than this moment of the monotonic clock files are looked at for rows that have expired.
    pub(super) look_after: u64,
    /// How far the wall clock was ahead of the monotonic one when storage began, and whether it has jumped since.
    pub(super) wall_ahead: u64,
    pub(super) has_jumped: bool,
}

impl Scheduler {
    /// Nothing has been looked at yet.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Invalid`] if a rule is not valid.
    pub(super) fn new(
        options: Options,
        rules: &[Rule],
        clock: &dyn Clock,
        (jobs, done): (Sender<Job>, Receiver<Outcome>),
        changes: Receiver<Change>,
    ) -> Result<Scheduler> {
        let wall_ahead = clock.wall().0.wrapping_sub(clock.monotonic());
        let (rules, skip) = (Rules::new(rules)?, BTreeSet::new());
        note_unmet(&rules);
        let (is_merging, is_new, has_jumped) = (false, true, false);
        let (after, skip_until, look_after) = (0, 0, 0);
        Ok(Scheduler {
            options,
            rules,
            jobs,
            done,
            changes,
            is_merging,
            is_new,
            after,
            skip,
            skip_until,
            look_after,
            wall_ahead,
            has_jumped,
        })
    }

    /// Uses the newest options and rules, if others were given; whether they were.
    pub(super) fn change(&mut self) -> bool {
        let Ok((options, rules)) = self.changes.try_recv() else { return false };
        note_unmet(&rules);
        (self.options, self.rules, self.is_new, self.look_after) = (options, rules, true, 0);
        true
    }
}

/// Logs which rules remove nothing yet.
fn note_unmet(rules: &Rules) {
    for kind in rules.unmet() {
        tracing::warn!(
            name: "retention.kind_not_defined", kind,
            "a retention rule names a kind that the store does not have yet: it removes nothing until the kind is defined"
        );
    }
}
