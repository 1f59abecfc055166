//! Owns: the flush agent's schedule of merges and retention.
//!
//! What must hold: rules are valid before the store is served; a rule of an absent kind is logged.

use std::collections::BTreeSet;

use crossbeam_channel::{Receiver, Sender};

use super::compact::Outcome;
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
    /// Whether a merge is running: its files must stay.
    pub(super) is_merging: bool,
    /// Whether the version has changed since the last look.
    pub(super) is_new: bool,
    /// After a failure: no earlier than this moment of the monotonic clock.
    pub(super) after: u64,
    /// Files that could not be merged; they are skipped until `skip_until` of the monotonic clock.
    pub(super) skip: BTreeSet<u64>,
    pub(super) skip_until: u64,
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
        jobs: Sender<Job>,
        done: Receiver<Outcome>,
    ) -> Result<Scheduler> {
        let wall_ahead = clock.wall().0.wrapping_sub(clock.monotonic());
        let (rules, skip) = (Rules::new(rules)?, BTreeSet::new());
        for kind in rules.unmet() {
            tracing::warn!(
                name: "retention.kind_not_defined", kind,
                "a retention rule names a kind that the store does not have yet: it removes nothing until the kind is defined"
            );
        }
        let (is_merging, is_new, has_jumped) = (false, true, false);
        Ok(Scheduler { options, rules, jobs, done, is_merging, is_new, after: 0, skip, skip_until: 0, wall_ahead, has_jumped })
    }
}
