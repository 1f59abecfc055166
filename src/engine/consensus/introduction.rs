//! Owns: introductions: a fresh host greets the others before its first vote, and each host records the hosts that it has met;
//! also the check that the old leader of a pair makes before it elects itself.
//!
//! A store that is initialised again under a used number has lost its votes and its frames. Together with another host that
//! misses those frames it would elect a leader without them. So every initialisation draws an incarnation. Every host records
//! in `raft.meta`, before it answers, which incarnation of each member it has met, and rejects any other incarnation of that
//! number until the member is removed. An initialised host is *fresh*: it does not vote, does not campaign and accepts no
//! frame until enough of the others have met it. Then it is durably no longer fresh.
//!
//! What must hold: of two incarnations of a number at most one ever votes. How many hosts must have met it: of n initial
//! members t = n - majority may lose their stores, one of which is the host itself. If both incarnations are met by k of the
//! other n - 1, at least 2k - (n - 1) hosts have met both, and at most t - 1 of these have lost their store. With
//! 2k - (n - 1) >= t one is left that has met the first incarnation and rejects the second. So k is both others of three
//! initial members, and three of the other four of five. Frames need no rule of their own, because the hosts that commit them
//! were met the same way. The exception is a cluster initialised by a version that recorded nobody: there a host that has
//! frames rejects fresh hosts that it has not met.
//!
//! The price: of three initial members all three must be up once before the first vote, in any order.

use std::collections::{BTreeMap, BTreeSet};

use super::format::VOTER;
use super::message::Greeting;
use super::meta::{Meta, MetaFile};
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Bytes of another host's reason that are stored.
const REASON_MAX: usize = 1024;

/// The hosts met since the start.
#[derive(Debug, Default)]
pub(super) struct Meetings {
    /// Hosts that have answered this host's greeting, so they have recorded it.
    greeted: BTreeSet<u64>,
    /// Hosts of this generation or an earlier one: none of them was promoted by force in this host's place.
    not_promoted: BTreeSet<u64>,
    /// Hosts that reject this one, and their reasons.
    refused_by: BTreeMap<u64, String>,
}

/// Number of other initial members that must meet a fresh host.
fn introductions(meta: &Meta) -> usize {
    let initial_members = meta.members.iter().filter(|s| s.roles & VOTER != 0).count();
    let (others, lost) = (initial_members.saturating_sub(1), initial_members.saturating_sub(initial_members / 2 + 1));
    (others + lost.max(1)).div_ceil(2).min(others)
}

fn shown(meta: &Meta) -> String {
    if meta.name.is_empty() { format!("{:032x}", meta.store_id) } else { format!("'{}'", meta.name) }
}

/// Reason to reject the host of `other`, or `None`; `last` is the last frame here.
fn refusal(meta: &Meta, other: &Greeting, last: u64) -> Option<String> {
    let (node, cluster) = (other.node, shown(meta));
    let is_member = meta.members.iter().any(|s| s.node == node);
    let advice = format!(
        "Node {node} does not vote. To make it a new host: `tape cluster remove {node}` on the leader, if it is a member; on \
         the host, in an empty directory, `tape cluster init --join` with a number that was never used; then `tape cluster \
         add` on the leader. If the cluster has never served, initialise all its hosts again"
    );
    if other.initial_members != 0 && meta.initial_members() != 0 && other.initial_members != meta.initial_members() {
        return Some(format!(
            "node {node} was initialised with other members than node {}, so they cannot form a cluster. `tape cluster status` \
             lists the members on both; initialise the wrong one again, with the list of the others",
            meta.node
        ));
    }
    match meta.met.get(&node) {
        Some(incarnation) if *incarnation == other.incarnation => None,
        Some(_) => Some(format!(
            "node {node} of cluster {cluster} has been here before, with another store: the votes and acknowledgements of \
             that store are lost. {advice}"
        )),
        None if !other.is_fresh => None,
        None if !is_member && meta.membership > 0 => {
            Some(format!("node {node} is no member of cluster {cluster}, which was initialised without it. {advice}"))
        }
        None if !meta.remembers && last > 0 => Some(format!(
            "node {node} has an empty store, but cluster {cluster} has records: the number may have been used before. {advice}"
        )),
        None => None,
    }
}

/// Handles the greeting of `other`. Records it durably in `file`, this host's `raft.meta`, before it is answered; `last` is the
/// last frame here.
///
/// # Errors
/// [`Error::Invalid`]: the host is rejected, with the reason; [`Error::Io`].
pub(super) fn greet(file: &mut MetaFile, last: u64, other: &Greeting) -> Result<()> {
    let meta = file.meta();
    if let Some(reason) = refusal(meta, other, last) {
        return Err(Error::invalid("host", reason));
    }
    // Hosts that are no members are not recorded: there may be any number of them, and none counts.
    let is_member = meta.members.iter().any(|s| s.node == other.node);
    if !is_member || meta.met.contains_key(&other.node) {
        return Ok(());
    }
    let mut after = meta.clone();
    after.met.insert(other.node, other.incarnation);
    file.update(after)
}

impl Meetings {
    /// Notes that the host `node` of generation `generation` has answered this one, of `file`; see [`super::Node::met`].
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written.
    pub(super) fn met(&mut self, file: &mut MetaFile, node: NodeId, generation: u64) -> Result<()> {
        let meta = file.meta();
        if generation <= meta.generation {
            self.not_promoted.insert(node.0);
        } else {
            self.not_promoted.remove(&node.0);
        }
        if generation != meta.generation {
            return Ok(());
        }
        self.refused_by.remove(&node.0);
        self.greeted.insert(node.0);
        if meta.is_fresh && self.unmet(meta).is_none() {
            tracing::info!(name: "raft.introduced", "enough other hosts have met this host; it votes from now on");
            file.update(Meta { is_fresh: false, ..meta.clone() })?;
        }
        Ok(())
    }

    /// Notes that the host `node` rejects this one, for `reason`.
    pub(super) fn refused(&mut self, node: NodeId, mut reason: String) {
        reason.truncate(reason.floor_char_boundary(REASON_MAX));
        if self.refused_by.len() < super::format::MEMBERS_MAX && self.refused_by.get(&node.0) != Some(&reason) {
            tracing::error!(name: "raft.introduction_rejected", %reason, "node {node} rejects this host");
            self.refused_by.insert(node.0, reason);
        }
    }

    /// Number of initial members that must still meet this host, of `meta`, and those that have not; `None` if enough have.
    fn unmet(&self, meta: &Meta) -> Option<(usize, Vec<NodeId>)> {
        let others = meta.members.iter().filter(|s| s.roles & VOTER != 0 && s.node != meta.node).map(|s| s.node);
        let (met, unmet): (Vec<_>, Vec<_>) = others.partition(|n| self.greeted.contains(&n.0));
        let more = introductions(meta).saturating_sub(met.len());
        (more > 0).then_some((more, unmet))
    }

    /// The hosts that a pair's electing host must still ask: each may have been promoted in its place. Empty if this is no pair.
    pub(super) fn unasked(&self, meta: &Meta, is_pair: bool) -> Vec<NodeId> {
        let others = meta.members.iter().map(|s| s.node).filter(|n| *n != meta.node);
        others.filter(|n| is_pair && !self.not_promoted.contains(&n.0)).collect()
    }

    /// Reason why this host, of `meta`, does not vote or lead, for an operator; `leads`: it leads already.
    pub(super) fn waits(&self, meta: &Meta, is_pair: bool, leads: bool) -> Option<String> {
        let list = |nodes: &[NodeId]| nodes.iter().map(|n| n.0.to_string()).collect::<Vec<_>>().join(", ");
        if let Some(reason) = self.refused_by.values().next() {
            return Some(reason.clone());
        }
        if meta.is_fresh
            && let Some((more, unmet)) = self.unmet(meta)
        {
            let of = if more < unmet.len() { format!("{more} of nodes ") } else { "node ".to_owned() };
            return Some(format!(
                "this host is new: it does not vote until it has met {of}{}, which then record its number. Start them with \
                 tape-storage",
                list(&unmet)
            ));
        }
        let unasked = self.unasked(meta, is_pair);
        (!leads && !unasked.is_empty()).then(|| {
            format!(
                "this host elects itself, but only after node {} has answered that it was not promoted in its place. Start that \
                 node, or, if it is gone for good, run `tape cluster force-promote` here",
                list(&unasked)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::MemberEntry;
    use super::*;

    fn entry(node: u64, roles: u32) -> MemberEntry {
        MemberEntry { node: NodeId(node), roles, address: format!("127.0.0.1:{node}") }
    }

    fn initialised(node: u64, initial_members: u64) -> Meta {
        let members = (1..=initial_members).map(|n| entry(n, VOTER)).collect();
        Meta { node: NodeId(node), members, is_fresh: true, remembers: true, incarnation: 1 << 40 | node, ..Meta::alone(7, 0) }
    }

    #[test]
    fn two_incarnations_of_a_host_are_never_both_met_by_enough_hosts_that_remember() {
        for initial_members in 1..=9usize {
            let lost = initial_members - (initial_members / 2 + 1);
            let k = introductions(&initialised(1, initial_members as u64));
            assert!(k < initial_members, "the others suffice");
            let both = (2 * k).saturating_sub(initial_members - 1);
            assert!(initial_members == 1 || both >= lost.max(1), "{initial_members}: {k}");
            // And k is no larger than that needs.
            let fewer = (2 * k.saturating_sub(1)).saturating_sub(initial_members - 1);
            assert!(k <= 1 || fewer < lost.max(1), "{initial_members}: {k}");
        }
    }

    #[test]
    fn a_host_accepts_one_incarnation_of_a_number_and_only_hosts_of_the_same_initial_members() {
        let mut one = initialised(1, 3);
        let mut other = initialised(3, 3).greeting();
        assert_eq!(refusal(&one, &other, 0), None);
        one.met.insert(other.node, other.incarnation);
        assert_eq!(refusal(&one, &other, 9), None);
        other.incarnation += 1;
        let reason = refusal(&one, &other, 0).unwrap();
        assert!(reason.contains("node 3 of cluster") && reason.contains("has been here before"), "{reason}");
        let wrong = initialised(3, 4).greeting();
        assert!(refusal(&one, &wrong, 0).unwrap().contains("other members"));
        // One that the cluster has removed, and one that an older version may have met without recording it.
        let gone = Meta { membership: 5, members: vec![entry(1, VOTER), entry(2, VOTER)], ..initialised(1, 2) };
        assert!(refusal(&gone, &other, 9).unwrap().contains("no member"));
        let old = Meta { remembers: false, ..initialised(1, 3) };
        assert!(refusal(&old, &other, 9).unwrap().contains("may have been used before"));
        assert_eq!(refusal(&old, &other, 0), None);
        assert_eq!(refusal(&old, &Greeting { is_fresh: false, ..other }, 9), None);
    }
}
