//! Owns: what a host that was never here asks the others before its first vote, and what hosts note of each other for it; of a
//! pair, whom the one that elects itself has heard from.
//!
//! A store that is made anew under a number that was used before has forgotten what it voted for and which frames it has: with
//! another host that lacks them it would elect a leader without them. So every initialisation draws an incarnation, every
//! host notes in `raft.meta` which incarnation it has met of each member, before it answers, and hears no other one of the
//! same number until that member was removed. A host that is initialised is *fresh*: it gives no vote, stands for no election
//! and takes no frame before enough of the others have met it. Then it is fresh no longer, durably, and is never asked again.
//!
//! What must hold: of two lives of a host at most one ever votes. How many have to have met it: of n founders t = n - majority
//! may be lost, with their memory, one of which is the host itself. Both lives have to be met by k of the other n - 1, so at
//! least 2k - (n - 1) of them have met both; of these at most t - 1 have lost their memory. With 2k - (n - 1) >= t one is
//! left that has met the first life and refuses the second. That is both others of three founders, three of the other four of
//! five. A frame is committed by hosts that were met alike, so that it needs no rule of its own, but for clusters that were
//! begun by a version that noted nothing: there who has frames refuses whom it has not met.
//!
//! The price: of three founders all three have to be up once before the first vote; in which order is all the same.

use std::collections::{BTreeMap, BTreeSet};

use super::format::VOTER;
use super::message::{Greeting, Role};
use super::meta::Meta;
use super::node::Node;
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Bytes of a reason of another host that are kept.
const REASON_MAX: usize = 1024;

/// Whom a host has met since it was started.
#[derive(Debug, Default)]
pub(super) struct Meetings {
    /// Who has answered its greeting: they have noted it.
    greeted: BTreeSet<u64>,
    /// Who is of this epoch or an earlier one: not promoted by force in its place.
    not_promoted: BTreeSet<u64>,
    /// Who refuses it, and why.
    refused_by: BTreeMap<u64, String>,
}

impl Meta {
    /// Whether it neither votes nor stands for election: it may have promised what it does not know of.
    pub fn is_mute(&self) -> bool {
        self.lacks_copy() || self.is_fresh
    }

    /// How many of the other founders are to have met a fresh host.
    fn introductions(&self) -> usize {
        let founders = self.seats.iter().filter(|s| s.part & VOTER != 0).count();
        let (others, lost) = (founders.saturating_sub(1), founders.saturating_sub(founders / 2 + 1));
        (others + lost.max(1)).div_ceil(2).min(others)
    }

    /// The numbers of the hosts that this one was initialised with, as one number; 0 if its members are as of anything else.
    pub fn founders(&self) -> u64 {
        let is_as_founded = self.membership == 0 && self.epoch == 0 && !self.joins && !self.rejoins;
        if !is_as_founded || !self.is_clustered() {
            return 0;
        }
        let mut numbers: Vec<u64> = self.seats.iter().map(|s| s.node.0).collect();
        numbers.sort_unstable();
        xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&numbers)).max(1)
    }

    /// What it says of itself to a host that it meets.
    pub fn greeting(&self) -> Greeting {
        Greeting { node: self.node, incarnation: self.incarnation, is_fresh: self.is_fresh, founders: self.founders() }
    }

    fn shown(&self) -> String {
        if self.name.is_empty() { format!("{:032x}", self.store_id) } else { format!("'{}'", self.name) }
    }

    /// Why the host of `other` is not heard, if it is not; `last` is the last frame here.
    fn refusal(&self, other: &Greeting, last: u64) -> Option<String> {
        let (node, cluster) = (other.node, self.shown());
        let is_member = self.seats.iter().any(|s| s.node == node);
        let anew = format!(
            "It does not vote. To make it a new host: `tape cluster remove {node}` on the leader, if it is a member; there, in an empty \
             directory, `tape cluster init --join` under a number that was never used; then `tape cluster add` on the leader. If \
             the cluster has never served, initialise all its hosts anew"
        );
        if other.founders != 0 && self.founders() != 0 && other.founders != self.founders() {
            return Some(format!(
                "node {node} was initialised with other members than node {}: they would never agree. `tape cluster status` shows \
                 them on both; initialise the one that is wrong again, with the list of the others",
                self.node
            ));
        }
        match self.met.get(&node) {
            Some(incarnation) if *incarnation == other.incarnation => None,
            Some(_) => Some(format!(
                "node {node} of cluster {cluster} has been here before, with another store: what it voted for and acknowledged \
                 is lost with that one. {anew}"
            )),
            None if !other.is_fresh => None,
            None if !is_member && self.membership > 0 => {
                Some(format!("node {node} is no member of cluster {cluster}, which has begun without it. {anew}"))
            }
            None if !self.remembers && last > 0 => Some(format!(
                "node {node} has an empty store, and cluster {cluster} has records: it may have been here before. {anew}"
            )),
            None => None,
        }
    }
}

impl Node {
    /// Another host says who it is: it is noted, durably, before it is answered.
    ///
    /// # Errors
    /// [`Error::Invalid`]: why it is not heard; [`Error::Io`].
    pub fn greet(&mut self, other: &Greeting) -> Result<()> {
        let meta = self.meta();
        if let Some(reason) = meta.refusal(other, self.frames().last()) {
            return Err(Error::invalid("host", reason));
        }
        // Of hosts that are no members there may be any number, and none of them counts.
        let is_member = meta.seats.iter().any(|s| s.node == other.node);
        if !is_member || meta.met.contains_key(&other.node) {
            return Ok(());
        }
        let mut after = meta.clone();
        after.met.insert(other.node, other.incarnation);
        self.update_meta(after)
    }

    /// The host `node`, which is of `epoch`, has answered; if it is of this host's epoch, it has noted this host.
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written.
    pub fn met(&mut self, node: NodeId, epoch: u64) -> Result<()> {
        let meta = self.meta();
        let (own, is_fresh) = (meta.epoch, meta.is_fresh);
        if epoch <= own {
            self.meetings.not_promoted.insert(node.0);
        } else {
            self.meetings.not_promoted.remove(&node.0);
        }
        if epoch != own {
            return Ok(());
        }
        self.meetings.refused_by.remove(&node.0);
        self.meetings.greeted.insert(node.0);
        if is_fresh && self.unmet().is_none() {
            tracing::info!("enough of the other hosts have met this one: it votes from now on");
            self.update_meta(Meta { is_fresh: false, ..self.meta().clone() })?;
        }
        Ok(())
    }

    /// The leader counts on this host for frame `index`, and the log ends with `last`: it has been put back to what it was
    /// before, by whoever has. It takes nothing in and does not vote until it has a copy of the leader's store.
    pub(super) fn has_lost(&mut self, index: u64, last: u64) -> Result<()> {
        tracing::error!(
            index,
            last,
            "the leader has frames of this host's acknowledgement that are not in its log: the store has been put back to an earlier \
             state. This host does not vote until it has a copy of the leader's store, which it fetches by itself"
        );
        self.update_meta(Meta { has_forgotten: true, ..self.meta().clone() })
    }

    /// The host `node` does not hear this one, for `reason`.
    pub fn refused(&mut self, node: NodeId, mut reason: String) {
        reason.truncate(reason.floor_char_boundary(REASON_MAX));
        if self.meetings.refused_by.len() < super::format::MEMBERS_MAX && self.meetings.refused_by.get(&node.0) != Some(&reason) {
            tracing::error!(%reason, "node {node} does not hear this host");
            self.meetings.refused_by.insert(node.0, reason);
        }
    }

    /// Which founders have not met this host, and how many of them have to; `None` if enough have.
    fn unmet(&self) -> Option<(usize, Vec<NodeId>)> {
        let meta = self.meta();
        let others = meta.seats.iter().filter(|s| s.part & VOTER != 0 && s.node != meta.node).map(|s| s.node);
        let (met, unmet): (Vec<_>, Vec<_>) = others.partition(|n| self.meetings.greeted.contains(&n.0));
        let more = meta.introductions().saturating_sub(met.len());
        (more > 0).then_some((more, unmet))
    }

    /// Of a host that elects itself and whose log others hold, a pair: those of which it is not known that they were not
    /// promoted in its place.
    fn unasked(&self) -> Vec<NodeId> {
        let meta = self.meta();
        let others = meta.seats.iter().map(|s| s.node).filter(|n| *n != meta.node);
        others.filter(|n| self.is_pair() && !self.meetings.not_promoted.contains(&n.0)).collect()
    }

    /// Whether it may elect itself: nothing in raft keeps the old leader of a pair from leading while another has been
    /// promoted by force, so it has to hear first from each that can have been.
    pub fn may_elect_itself(&self) -> bool {
        self.state().role == Role::Leader || self.unasked().is_empty()
    }

    /// What keeps this host from voting or leading, and is for an operator to know.
    pub fn waits(&self) -> Option<String> {
        let list = |nodes: &[NodeId]| nodes.iter().map(|n| n.0.to_string()).collect::<Vec<_>>().join(", ");
        if let Some(reason) = self.meetings.refused_by.values().next() {
            return Some(reason.clone());
        }
        if self.meta().is_fresh
            && let Some((more, unmet)) = self.unmet()
        {
            let of = if more < unmet.len() { format!("{more} of nodes ") } else { "node ".to_owned() };
            return Some(format!(
                "this host was never here: it does not vote before it has met {of}{}, which then know its number to be taken. \
                 Start them",
                list(&unmet)
            ));
        }
        let unasked = self.unasked();
        let leads = self.state().role == Role::Leader;
        (!leads && !unasked.is_empty()).then(|| {
            format!(
                "it elects itself, and does not before it has heard from node {} that it was not promoted in its place. Start it, or, \
                 if it is gone for good, `tape cluster force-promote` here",
                list(&unasked)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Seat;
    use super::*;

    fn seat(node: u64, part: u32) -> Seat {
        Seat { node: NodeId(node), part, address: format!("127.0.0.1:{node}") }
    }

    fn founded(node: u64, founders: u64) -> Meta {
        let seats = (1..=founders).map(|n| seat(n, VOTER)).collect();
        Meta { node: NodeId(node), seats, is_fresh: true, remembers: true, incarnation: 1 << 40 | node, ..Meta::alone(7, 0) }
    }

    #[test]
    fn two_lives_of_a_host_are_never_both_met_by_enough_that_remember() {
        for founders in 1..=9usize {
            let lost = founders - (founders / 2 + 1);
            let k = founded(1, founders as u64).introductions();
            assert!(k < founders, "the others suffice");
            let both = (2 * k).saturating_sub(founders - 1);
            assert!(founders == 1 || both >= lost.max(1), "{founders}: {k}");
            // And no more hosts than are needed for that have to be up.
            let fewer = (2 * k.saturating_sub(1)).saturating_sub(founders - 1);
            assert!(k <= 1 || fewer < lost.max(1), "{founders}: {k}");
        }
    }

    #[test]
    fn a_host_hears_one_incarnation_of_a_number_and_founders_of_the_same_list() {
        let mut one = founded(1, 3);
        let mut other = founded(3, 3).greeting();
        assert_eq!(one.refusal(&other, 0), None);
        one.met.insert(other.node, other.incarnation);
        assert_eq!(one.refusal(&other, 9), None);
        other.incarnation += 1;
        let reason = one.refusal(&other, 0).unwrap();
        assert!(reason.contains("node 3 of cluster") && reason.contains("has been here before"), "{reason}");
        let wrong = founded(3, 4).greeting();
        assert!(one.refusal(&wrong, 0).unwrap().contains("other members"));
        // One that the cluster has removed, and one that a version before this one may have met.
        let gone = Meta { membership: 5, seats: vec![seat(1, VOTER), seat(2, VOTER)], ..founded(1, 2) };
        assert!(gone.refusal(&other, 9).unwrap().contains("no member"));
        let old = Meta { remembers: false, ..founded(1, 3) };
        assert!(old.refusal(&other, 9).unwrap().contains("may have been here before"));
        assert_eq!(old.refusal(&other, 0), None);
        assert_eq!(old.refusal(&Greeting { is_fresh: false, ..other }, 9), None);
    }

    #[test]
    fn hosts_that_joined_rejoined_or_have_changed_members_have_no_list_of_founders() {
        assert_ne!(founded(1, 3).founders(), 0);
        assert_eq!(founded(1, 3).founders(), founded(2, 3).founders());
        for meta in [
            Meta { joins: true, ..founded(1, 3) },
            Meta { rejoins: true, ..founded(1, 3) },
            Meta { membership: 4, ..founded(1, 3) },
            Meta { epoch: 1, ..founded(1, 3) },
            Meta::alone(7, 0),
        ] {
            assert_eq!(meta.founders(), 0);
        }
    }
}
