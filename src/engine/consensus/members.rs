//! Owns: the conversion between the members in `raft.meta` and the members of the raft crate.
//!
//! What must hold: the conversion loses no member and no role.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use super::format::{Change, LEARNER, LEARNER_NEXT, MemberEntry, OUTGOING, Transition, VOTER};
use super::meta::Meta;
use tapestore::lsn::NodeId;

/// Converts the members of `meta` to the raft crate's form.
pub(super) fn conf_state(meta: &Meta) -> ConfState {
    let of = |roles: u32| meta.members.iter().filter(move |s| s.roles & roles != 0).map(|s| s.node.0).collect::<Vec<_>>();
    let mut state = ConfState::default();
    state.set_voters(of(VOTER));
    state.set_learners(of(LEARNER));
    state.set_voters_outgoing(of(OUTGOING));
    state.set_learners_next(of(LEARNER_NEXT));
    state.auto_leave = meta.auto_leave;
    state
}

/// Converts the members of `state` back; addresses come from `change`, else from `before`.
pub(super) fn members(state: &ConfState, before: &[MemberEntry], change: &Change) -> Vec<MemberEntry> {
    let mut roles_of: BTreeMap<u64, u32> = BTreeMap::new();
    for (ids, roles) in [
        (&state.voters, VOTER),
        (&state.learners, LEARNER),
        (&state.voters_outgoing, OUTGOING),
        (&state.learners_next, LEARNER_NEXT),
    ] {
        ids.iter().for_each(|id| *roles_of.entry(*id).or_default() |= roles);
    }
    let address = |id: u64| {
        let newer = change.members.iter().find(|s| s.node.0 == id && !s.address.is_empty());
        newer.or_else(|| before.iter().find(|s| s.node.0 == id)).map_or_else(String::new, |s| s.address.clone())
    };
    roles_of.into_iter().map(|(id, roles)| MemberEntry { node: NodeId(id), roles, address: address(id) }).collect()
}

/// Converts `change` to the raft crate's form.
pub(super) fn conf_change(change: &Change) -> ConfChangeV2 {
    let mut v2 = ConfChangeV2::default();
    if change.transition == Transition::Leave {
        return v2;
    }
    v2.set_transition(ConfChangeTransition::Auto);
    let single = change.members.iter().map(|member| {
        let mut single = ConfChangeSingle { node_id: member.node.0, ..ConfChangeSingle::default() };
        single.set_change_type(match member.roles {
            0 => ConfChangeType::RemoveNode,
            roles if roles & VOTER != 0 => ConfChangeType::AddNode,
            _ => ConfChangeType::AddLearnerNode,
        });
        single
    });
    v2.set_changes(single.collect::<Vec<_>>().into());
    v2
}
