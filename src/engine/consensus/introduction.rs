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
use super::message::Greeting;
use super::meta::{Meta, MetaFile};
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

/// How many of the other founders are to have met a fresh host.
fn introductions(meta: &Meta) -> usize {
    let founders = meta.seats.iter().filter(|s| s.part & VOTER != 0).count();
    let (others, lost) = (founders.saturating_sub(1), founders.saturating_sub(founders / 2 + 1));
    (others + lost.max(1)).div_ceil(2).min(others)
}

fn shown(meta: &Meta) -> String {
    if meta.name.is_empty() { format!("{:032x}", meta.store_id) } else { format!("'{}'", meta.name) }
}

/// Why the host of `other` is not heard, if it is not; `last` is the last frame here.
fn refusal(meta: &Meta, other: &Greeting, last: u64) -> Option<String> {
    let (node, cluster) = (other.node, shown(meta));
    let is_member = meta.seats.iter().any(|s| s.node == node);
    let anew = format!(
        "It does not vote. To make it a new host: `tape cluster remove {node}` on the leader, if it is a member; there, in an empty \
         directory, `tape cluster init --join` under a number that was never used; then `tape cluster add` on the leader. If \
         the cluster has never served, initialise all its hosts anew"
    );
    if other.founders != 0 && meta.founders() != 0 && other.founders != meta.founders() {
        return Some(format!(
            "node {node} was initialised with other members than node {}: they would never agree. `tape cluster status` shows \
             them on both; initialise the one that is wrong again, with the list of the others",
            meta.node
        ));
    }
    match meta.met.get(&node) {
        Some(incarnation) if *incarnation == other.incarnation => None,
        Some(_) => Some(format!(
            "node {node} of cluster {cluster} has been here before, with another store: what it voted for and acknowledged \
             is lost with that one. {anew}"
        )),
        None if !other.is_fresh => None,
        None if !is_member && meta.membership > 0 => {
            Some(format!("node {node} is no member of cluster {cluster}, which has begun without it. {anew}"))
        }
        None if !meta.remembers && last > 0 => Some(format!(
            "node {node} has an empty store, and cluster {cluster} has records: it may have been here before. {anew}"
        )),
        None => None,
    }
}

/// The host of `other` says who it is to this one, whose `raft.meta` is `file` and whose log ends with frame `last`: it is noted,
/// durably, before it is answered.
///
/// # Errors
/// [`Error::Invalid`]: why it is not heard; [`Error::Io`].
pub(super) fn greet(file: &mut MetaFile, last: u64, other: &Greeting) -> Result<()> {
    let meta = file.meta();
    if let Some(reason) = refusal(meta, other, last) {
        return Err(Error::invalid("host", reason));
    }
    // Of hosts that are no members there may be any number, and none of them counts.
    let is_member = meta.seats.iter().any(|s| s.node == other.node);
    if !is_member || meta.met.contains_key(&other.node) {
        return Ok(());
    }
    let mut after = meta.clone();
    after.met.insert(other.node, other.incarnation);
    file.update(after)
}

impl Meetings {
    /// The host `node`, which is of `epoch`, has answered this one, of `file`; see [`super::Node::met`].
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written.
    pub(super) fn met(&mut self, file: &mut MetaFile, node: NodeId, epoch: u64) -> Result<()> {
        let meta = file.meta();
        if epoch <= meta.epoch {
            self.not_promoted.insert(node.0);
        } else {
            self.not_promoted.remove(&node.0);
        }
        if epoch != meta.epoch {
            return Ok(());
        }
        self.refused_by.remove(&node.0);
        self.greeted.insert(node.0);
        if meta.is_fresh && self.unmet(meta).is_none() {
            tracing::info!("enough of the other hosts have met this one: it votes from now on");
            file.update(Meta { is_fresh: false, ..meta.clone() })?;
        }
        Ok(())
    }

    /// The host `node` does not hear this one, for `reason`.
    pub(super) fn refused(&mut self, node: NodeId, mut reason: String) {
        reason.truncate(reason.floor_char_boundary(REASON_MAX));
        if self.refused_by.len() < super::format::MEMBERS_MAX && self.refused_by.get(&node.0) != Some(&reason) {
            tracing::error!(%reason, "node {node} does not hear this host");
            self.refused_by.insert(node.0, reason);
        }
    }

    /// Which founders have not met this host, of `meta`, and how many of them have to; `None` if enough have.
    fn unmet(&self, meta: &Meta) -> Option<(usize, Vec<NodeId>)> {
        let others = meta.seats.iter().filter(|s| s.part & VOTER != 0 && s.node != meta.node).map(|s| s.node);
        let (met, unmet): (Vec<_>, Vec<_>) = others.partition(|n| self.greeted.contains(&n.0));
        let more = introductions(meta).saturating_sub(met.len());
        (more > 0).then_some((more, unmet))
    }

    /// Of a host that elects itself and whose log others hold, a pair: those of which it is not known that they were not
    /// promoted in its place.
    pub(super) fn unasked(&self, meta: &Meta, is_pair: bool) -> Vec<NodeId> {
        let others = meta.seats.iter().map(|s| s.node).filter(|n| *n != meta.node);
        others.filter(|n| is_pair && !self.not_promoted.contains(&n.0)).collect()
    }

    /// What keeps this host, of `meta`, from voting or leading, and is for an operator to know; `leads`: it leads already.
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
                "this host was never here: it does not vote before it has met {of}{}, which then know its number to be taken. \
                 Start them",
                list(&unmet)
            ));
        }
        let unasked = self.unasked(meta, is_pair);
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
            let k = introductions(&founded(1, founders as u64));
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
        assert_eq!(refusal(&one, &other, 0), None);
        one.met.insert(other.node, other.incarnation);
        assert_eq!(refusal(&one, &other, 9), None);
        other.incarnation += 1;
        let reason = refusal(&one, &other, 0).unwrap();
        assert!(reason.contains("node 3 of cluster") && reason.contains("has been here before"), "{reason}");
        let wrong = founded(3, 4).greeting();
        assert!(refusal(&one, &wrong, 0).unwrap().contains("other members"));
        // One that the cluster has removed, and one that a version before this one may have met.
        let gone = Meta { membership: 5, seats: vec![seat(1, VOTER), seat(2, VOTER)], ..founded(1, 2) };
        assert!(refusal(&gone, &other, 9).unwrap().contains("no member"));
        let old = Meta { remembers: false, ..founded(1, 3) };
        assert!(refusal(&old, &other, 9).unwrap().contains("may have been here before"));
        assert_eq!(refusal(&old, &other, 0), None);
        assert_eq!(refusal(&old, &Greeting { is_fresh: false, ..other }, 9), None);
    }
}
