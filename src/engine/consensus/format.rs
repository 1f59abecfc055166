//! Owns: the payload of a membership frame, and the members in it and in `raft.meta`, whose slots are drawn in
//! [`tapestore::wal::raft_meta`].
//!
//! What must hold: parsing is total on any words.
//!
//! ```text
//! membership frame       transition u32 · changes u32 · changes: members with their new roles, 0: removed
//! ```

use super::message::Member;
use tapestore::error::{Bad, demand};
use tapestore::lsn::NodeId;
use tapestore::wal::raft_meta::RawMember;
pub use tapestore::wal::raft_meta::{ADDRESS_MAX, MEMBERS_MAX, NAME_MAX, SLOT_LEN, VOTER};

/// Holds the log.
pub const LEARNER: u32 = 2;
/// Counts towards the old majority while members change.
pub const OUTGOING: u32 = 4;
/// Becomes a learner when the change is over.
pub const LEARNER_NEXT: u32 = 8;

/// A member and its roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    /// Its number.
    pub node: NodeId,
    /// Sum of [`VOTER`], [`LEARNER`], [`OUTGOING`], [`LEARNER_NEXT`].
    pub roles: u32,
    /// Address of its replication process: `host:port`; empty in a cluster of one.
    pub address: String,
}

impl MemberEntry {
    /// The member as it is published to other processes.
    pub fn member(&self) -> Member {
        Member { node: self.node, address: self.address.clone(), is_voter: self.roles & VOTER != 0 }
    }

    /// The member as it is stored.
    pub(super) fn raw(&self) -> RawMember {
        assert!(self.address.len() <= ADDRESS_MAX, "addresses are checked beforehand");
        let mut address = [0; ADDRESS_MAX];
        address.iter_mut().zip(self.address.bytes()).for_each(|(to, from)| *to = from);
        RawMember { node: self.node.0, roles: self.roles, len: self.address.len() as u32, address }
    }

    pub(super) fn parse(raw: &RawMember) -> Result<MemberEntry, Bad> {
        let bad = Bad { what: "address of a member", expected: ADDRESS_MAX as u64, found: u64::from(raw.len) };
        let bytes = raw.address.get(..raw.len as usize).ok_or(bad)?;
        let address = str::from_utf8(bytes).map_err(|_| bad)?.to_owned();
        if raw.node == 0 {
            return Err(Bad { what: "number of a member", expected: 1, found: 0 });
        }
        Ok(MemberEntry { node: NodeId(raw.node), roles: raw.roles, address })
    }
}

/// How a change of members is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Transition {
    /// At once if one member changes; else by joint consensus, which the leader ends by itself.
    Auto = 0,
    /// Ends joint consensus.
    Leave = 1,
}

/// Payload of a membership frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How it is carried out.
    pub transition: Transition,
    /// The members that change, with their new roles; 0: removed.
    pub members: Vec<MemberEntry>,
}

const RAW_WORDS: usize = size_of::<RawMember>() / 8;

impl Change {
    /// Appends the change to `words`.
    pub fn encode(&self, words: &mut Vec<u64>) {
        words.push(self.transition as u64 | (self.members.len() as u64) << 32);
        for member in &self.members {
            words.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(&member.raw())));
        }
    }

    /// Parses the untrusted payload `words` of a membership frame.
    ///
    /// # Errors
    /// [`Bad`]: the field that is malformed.
    pub fn parse(words: &[u64]) -> Result<Change, Bad> {
        let (head, rest) = words.split_first().ok_or(Bad { what: "membership frame bytes", expected: 8, found: 0 })?;
        let transition = match *head as u32 {
            0 => Transition::Auto,
            1 => Transition::Leave,
            other => return Err(Bad { what: "transition of members", expected: 1, found: u64::from(other) }),
        };
        let count = head >> 32;
        if count > MEMBERS_MAX as u64 {
            return Err(Bad { what: "members in a membership frame", expected: MEMBERS_MAX as u64, found: count });
        }
        demand("members in a membership frame", count.saturating_mul(RAW_WORDS as u64), rest.len() as u64)?;
        let members =
            rest.chunks_exact(RAW_WORDS).map(|raw| MemberEntry::parse(&bytemuck::pod_read_unaligned(bytemuck::cast_slice(raw))));
        Ok(Change { transition, members: members.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_words_are_a_change_or_are_refused(words in proptest::collection::vec(any::<u64>(), 0..40)) {
            if let Ok(change) = Change::parse(&words) {
                let mut again = Vec::new();
                change.encode(&mut again);
                prop_assert_eq!(Change::parse(&again), Ok(change));
            }
        }
    }

    #[test]
    fn a_change_comes_back_as_it_was() {
        let member = |node, roles, address: &str| MemberEntry { node: NodeId(node), roles, address: address.to_owned() };
        let members = vec![member(1, VOTER, "127.0.0.1:7401"), member(2, LEARNER, "host.example:7401"), member(3, 0, "")];
        let change = Change { transition: Transition::Auto, members };
        let mut words = Vec::new();
        change.encode(&mut words);
        assert_eq!(Change::parse(&words), Ok(change));
        words.pop();
        assert!(Change::parse(&words).is_err());
    }
}
