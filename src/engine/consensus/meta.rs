//! Owns: `raft.meta`, the durable state of consensus: this node's identity, its term and vote, the members.
//!
//! What must hold: a term or a vote is durable here before a message that depends on it leaves. The slot with the higher
//! `seq` counts and the other is overwritten next, so a torn write leaves the older one. Between changes both slots hold the
//! same, so damage to one does not bring an older vote back.

use std::collections::BTreeMap;
use std::path::Path;

use super::format::{ADDRESS_MAX, LEARNER, LEARNER_NEXT, MEMBERS_MAX, MemberEntry, NAME_MAX, OUTGOING, VOTER};
use super::message::{GENERATION_MAX, Greeting, TERM_MAX};
use tapestore::disk::Disk;
use tapestore::disk::two_slots::{self, Content, Parsed, TwoSlots};
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;
use tapestore::wal::raft_meta::Slot;

/// Name of the file in the store directory.
pub const NAME: &str = <Slot as Content>::NAME;

/// Contents of `raft.meta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Identity of the store, the same in the whole cluster.
    pub store_id: u128,
    /// This host's number.
    pub node: NodeId,
    /// Incarnation of this node, drawn when it was initialised.
    pub incarnation: u64,
    /// Generation: the number of forced promotions so far.
    pub generation: u64,
    /// The newest term that this node has seen.
    pub term: u64,
    /// The vote in that term; 0: none.
    pub vote: u64,
    /// A committed frame; those before it are committed too, later ones may be.
    pub commit: u64,
    /// The frame of the last change of members; 0: the initial members.
    pub membership: u64,
    /// Whether the leader ends joint consensus by itself.
    pub auto_leave: bool,
    /// Whether it joins and still needs a snapshot of another host's store. Until then it has no members as of a frame to
    /// apply the log's changes to, so it accepts no frames. Nor does it vote: its number may have been used before.
    pub joins: bool,
    /// Whether it rejoins after a forced promotion: it may hold frames that no other host has.
    pub rejoins: bool,
    /// Whether it may have lost frames that others count on. Until it has a snapshot of a leader's store it accepts no frames
    /// and does not vote.
    pub has_forgotten: bool,
    /// The boot of the host since which it may have acknowledged frames that are not on its disk; 0: none.
    pub boot: u128,
    /// Whether too few of the other initial members have met it. Until then it accepts no frames and does not vote.
    pub is_fresh: bool,
    /// Whether it has recorded the hosts it met ever since it is in the cluster.
    pub remembers: bool,
    /// Name of the cluster; empty if it is unknown or too long.
    pub name: String,
    /// The incarnation of each other member that it has met.
    pub met: BTreeMap<NodeId, u64>,
    /// The members.
    pub members: Vec<MemberEntry>,
}

impl Meta {
    /// The state of a cluster of one, whose store's newest term is `term`.
    pub fn alone(store_id: u128, term: u64) -> Meta {
        let node = NodeId(1);
        let members = vec![MemberEntry { node, roles: VOTER, address: String::new() }];
        Meta {
            store_id,
            node,
            incarnation: 1,
            generation: 0,
            term,
            vote: 0,
            commit: 0,
            membership: 0,
            auto_leave: false,
            joins: false,
            rejoins: false,
            has_forgotten: false,
            boot: 0,
            is_fresh: false,
            remembers: false,
            name: String::new(),
            met: BTreeMap::new(),
            members,
        }
    }

    /// Whether this host may have lost frames that it had in memory only. It has if the host has rebooted since, the last
    /// stop was not clean, and others count on those frames. Nobody counts on those of a cluster of one. `boot`: the boot now.
    pub fn may_have_forgotten(&self, boot: u128, was_clean: bool) -> bool {
        self.boot != 0 && self.boot != boot && !was_clean && !self.is_alone()
    }

    /// Whether it needs a snapshot of a leader's store.
    pub fn needs_snapshot(&self) -> bool {
        self.joins || self.has_forgotten
    }

    /// Whether it neither votes nor campaigns: it may have given votes or acknowledgements that it no longer has.
    pub fn is_mute(&self) -> bool {
        self.needs_snapshot() || self.is_fresh
    }

    /// Checks that a snapshot of a leader's store holds everything that this host has acknowledged. Its `raft.meta` is `copy`
    /// and its log ends with frame `last` of `term`. `log`: frame and term at the end of this host's log, if that can be read.
    /// A host that may have lost frames had them from a leader, and asked for its snapshot after that.
    ///
    /// # Errors
    /// [`Error::Consensus`]: the acknowledgement that the snapshot does not cover.
    pub fn admit(&self, log: Option<(u64, u64)>, copy: &Meta, (last, term): (u64, u64)) -> Result<()> {
        let refuse = |cause: String| {
            let cause =
                format!("{cause}. Fetch a snapshot of this cluster's leader; tape cluster status on a served host names it");
            Err(Error::Consensus { what: "replace its store with the snapshot", cause })
        };
        if self.store_id != copy.store_id {
            return refuse(format!("the snapshot is of another store, {:032x}", copy.store_id));
        }
        if copy.generation < self.generation {
            return refuse(format!(
                "the snapshot is of generation {}, this host of generation {}",
                copy.generation, self.generation
            ));
        }
        // A forced promotion starts over; earlier acknowledgements do not count.
        if copy.generation == self.generation && (term < self.term || last < self.commit) {
            return refuse(format!(
                "the snapshot ends with frame {last} of term {term}; this host is in term {}, and frames up to {} are committed",
                self.term, self.commit
            ));
        }
        match log {
            Some((_, own_term)) if copy.generation == self.generation && own_term > term => {
                refuse(format!("the snapshot ends in term {term}, the log in term {own_term}"))
            }
            Some((own_last, own_term)) if own_term == term && own_last > last => {
                refuse(format!("the snapshot ends with frame {last} of term {term}, the log with frame {own_last}"))
            }
            _ => Ok(()),
        }
    }

    /// State of this host after it has installed a snapshot of a leader's store. The snapshot's `raft.meta` is `copy` and its
    /// log ends in `term`. The host keeps its number, its vote and its term.
    pub fn filled(self, copy: Meta, term: u64) -> Meta {
        let newest = self.term.max(term);
        let is_other_member = |node: &NodeId| *node != self.node && copy.members.iter().any(|s| s.node == *node);
        // The leader has recorded members that left and came back.
        let known = self.met.iter().chain(&copy.met).map(|(node, incarnation)| (*node, *incarnation));
        let met = known.filter(|(node, _)| is_other_member(node)).collect();
        Meta {
            generation: copy.generation.max(self.generation),
            term: newest,
            vote: if newest == self.term { self.vote } else { 0 },
            commit: if self.generation == copy.generation { self.commit.max(copy.commit) } else { copy.commit },
            membership: copy.membership,
            auto_leave: copy.auto_leave,
            joins: false,
            rejoins: false,
            has_forgotten: false,
            // The snapshot is on the disk.
            boot: 0,
            met,
            members: copy.members,
            ..self
        }
    }

    /// Whether this node is the only voter and no other host holds the log.
    pub fn is_alone(&self) -> bool {
        matches!(&self.members[..], [only] if only.node == self.node && only.roles == VOTER)
    }

    /// Whether it is in a cluster, even of one host; not for a store that was never made a host of a cluster.
    pub fn is_clustered(&self) -> bool {
        !self.is_alone() || self.members.iter().any(|s| !s.address.is_empty())
    }

    /// Hash of the numbers of the initial members; 0 if the members are of any later origin.
    pub fn initial_members(&self) -> u64 {
        let is_initial = self.membership == 0 && self.generation == 0 && !self.joins && !self.rejoins;
        if !is_initial || !self.is_clustered() {
            return 0;
        }
        let mut numbers: Vec<u64> = self.members.iter().map(|s| s.node.0).collect();
        numbers.sort_unstable();
        xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&numbers)).max(1)
    }

    /// The greeting for a host that it meets.
    pub fn greeting(&self) -> Greeting {
        Greeting {
            node: self.node,
            incarnation: self.incarnation,
            is_fresh: self.is_fresh,
            initial_members: self.initial_members(),
        }
    }

    /// Checks the members that an operator has given.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the member or the limit.
    pub fn check(&self) -> Result<()> {
        let bad = |reason: String| Err(Error::invalid("members of the cluster", reason));
        if self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            return bad(format!("there are {} of them; give 1 to {MEMBERS_MAX}", self.members.len()));
        }
        for (i, member) in self.members.iter().enumerate() {
            if member.node == NodeId(0) || self.members.iter().skip(i + 1).any(|s| s.node == member.node) {
                return bad(format!("node {}: give each number once, and none below 1", member.node));
            }
            if member.address.len() > ADDRESS_MAX {
                return bad(format!("the address of node {} is longer than {ADDRESS_MAX} bytes; shorten it", member.node));
            }
        }
        if !self.members.iter().any(|s| s.roles & VOTER != 0) {
            return bad("none of them is a voter; make one a voter".to_owned());
        }
        if self.term > TERM_MAX || self.generation > GENERATION_MAX {
            let most = format!("the last term is {TERM_MAX}, the last generation {GENERATION_MAX}");
            return bad(format!("they are in term {} of generation {}; {most}", self.term, self.generation));
        }
        Ok(())
    }

    fn slot(&self) -> Slot {
        let mut slot: Slot = bytemuck::Zeroable::zeroed();
        slot.store_id = [self.store_id as u64, (self.store_id >> 64) as u64];
        (slot.node, slot.incarnation, slot.generation) = (self.node.0, self.incarnation, self.generation);
        (slot.term, slot.vote, slot.commit, slot.membership) = (self.term, self.vote, self.commit, self.membership);
        slot.joins = u64::from(self.joins) | u64::from(self.rejoins) << 1 | u64::from(self.has_forgotten) << 2;
        slot.joins |= u64::from(self.is_fresh) << 3 | u64::from(self.remembers) << 4;
        let name = self.name.as_bytes().get(..NAME_MAX.min(self.name.len())).unwrap_or(&[]);
        (slot.met_count, slot.name_len) = (self.met.len().min(MEMBERS_MAX) as u32, name.len() as u32);
        slot.name.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        slot.met.iter_mut().zip(&self.met).for_each(|(to, (node, incarnation))| *to = [node.0, *incarnation]);
        slot.boot = [self.boot as u64, (self.boot >> 64) as u64];
        (slot.auto_leave, slot.count) = (u32::from(self.auto_leave), self.members.len() as u32);
        for (to, from) in slot.members.iter_mut().zip(&self.members) {
            *to = from.raw();
        }
        slot
    }
}

fn parse(bytes: &[u8]) -> Parsed<Meta> {
    let slot = match two_slots::checked::<Slot, Meta>(bytes) {
        Ok(slot) => slot,
        Err(parsed) => return parsed,
    };
    let bad = |what, found| Parsed::Damaged { what, expected: 1, found };
    let Some(raw) = slot.members.get(..slot.count as usize) else {
        return bad("members in raft.meta", u64::from(slot.count));
    };
    let mut members = Vec::with_capacity(raw.len());
    for raw in raw {
        match MemberEntry::parse(raw) {
            Ok(member) if member.roles != 0 && member.roles <= VOTER | LEARNER | OUTGOING | LEARNER_NEXT => members.push(member),
            Ok(member) => return bad("roles of a member in raft.meta", u64::from(member.roles)),
            Err(error) => return bad(error.what, error.found),
        }
    }
    let ([low, high], [boot_low, boot_high]) = (slot.store_id, slot.boot);
    let Some(met) = slot.met.get(..slot.met_count as usize) else {
        return bad("members met in raft.meta", u64::from(slot.met_count));
    };
    let name = slot.name.get(..slot.name_len as usize).and_then(|n| str::from_utf8(n).ok());
    let Some(name) = name else { return bad("name in raft.meta", u64::from(slot.name_len)) };
    let meta = Meta {
        store_id: u128::from(low) | u128::from(high) << 64,
        node: NodeId(slot.node),
        incarnation: slot.incarnation,
        generation: slot.generation,
        term: slot.term,
        vote: slot.vote,
        commit: slot.commit,
        membership: slot.membership,
        auto_leave: slot.auto_leave != 0,
        joins: slot.joins & 1 != 0,
        rejoins: slot.joins & 2 != 0,
        has_forgotten: slot.joins & 4 != 0,
        boot: u128::from(boot_low) | u128::from(boot_high) << 64,
        is_fresh: slot.joins & 8 != 0,
        remembers: slot.joins & 16 != 0,
        name: name.to_owned(),
        met: met.iter().map(|[node, incarnation]| (NodeId(*node), *incarnation)).collect(),
        members,
    };
    Parsed::Valid(slot.seq, Box::new(meta))
}

/// Reads `raft.meta` of the store `dir`; `None` if there is no such file.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Version`] or [`Error::Corrupt`] if no slot is valid.
pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Meta>> {
    two_slots::read(disk, dir)
}

impl Content for Meta {
    const NAME: &'static str = NAME;
    const MAGIC: u64 = <Slot as Content>::MAGIC;
    const CRC: &'static str = <Slot as Content>::CRC;
    const VERSION: u32 = <Slot as Content>::VERSION;
    const PURPOSE: &'static str = <Slot as Content>::PURPOSE;

    fn encode(&self, seq: u64) -> Vec<u8> {
        self.slot().encode(seq)
    }

    fn parse(bytes: &[u8]) -> Parsed<Meta> {
        parse(bytes)
    }
}

/// The open file.
#[derive(Debug)]
pub struct MetaFile(TwoSlots<Meta>);

impl MetaFile {
    /// Creates `raft.meta` in the store `dir`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Io`].
    pub fn create(disk: &dyn Disk, dir: &Path, meta: &Meta) -> Result<MetaFile> {
        meta.check()?;
        TwoSlots::create(disk, dir, meta).map(MetaFile)
    }

    /// Opens the existing `raft.meta` in `dir`.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<MetaFile> {
        TwoSlots::open(disk, dir).map(MetaFile)
    }

    /// Contents of the file.
    pub fn meta(&self) -> &Meta {
        self.0.content()
    }

    /// Begins a start in the boot `boot` of the host, before any message leaves; `was_clean`: the last stop was clean.
    /// Returns whether this host may have lost frames that it had acknowledged: then it needs a snapshot and does not vote.
    ///
    /// # Errors
    /// As [`MetaFile::update`].
    pub fn begin_life(&mut self, boot: u128, is_lossy: bool, was_clean: bool) -> Result<bool> {
        let forgets = self.meta().may_have_forgotten(boot, was_clean);
        let (has_forgotten, boot) = (self.meta().has_forgotten || forgets, if is_lossy { boot } else { self.meta().boot });
        if (has_forgotten, boot) != (self.meta().has_forgotten, self.meta().boot) {
            self.update(Meta { has_forgotten, boot, ..self.meta().clone() })?;
        }
        Ok(forgets)
    }

    /// Handles a leader that counts on this host for frame `index` although the log ends with `last`: the store was put back to
    /// an earlier state. The host accepts no frames and does not vote until it has a snapshot of the leader's store.
    ///
    /// # Errors
    /// As [`MetaFile::update`].
    pub(super) fn has_lost(&mut self, index: u64, last: u64) -> Result<()> {
        tracing::error!(
            name: "raft.store_put_back",
            index,
            last,
            "the leader counts on frames that this host acknowledged and that are not in its log: the store was put back to an \
             earlier state. This host does not vote until it has installed a snapshot of the leader's store, which it fetches by \
             itself"
        );
        self.update(Meta { has_forgotten: true, ..self.meta().clone() })
    }

    /// Replaces the contents with `meta`, durably.
    ///
    /// # Errors
    /// [`Error::Io`]; the file then holds the old contents or the new.
    pub fn update(&mut self, meta: Meta) -> Result<()> {
        assert!(
            (meta.term, meta.generation) >= (self.meta().term, 0) && meta.generation >= self.meta().generation,
            "terms and generations never fall"
        );
        // Twice: if one slot rots, the older one would let this node vote again in a term in which it has voted.
        self.0.write(meta.clone())?;
        self.0.write(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapestore::disk::sim::{Fault, SimDisk};

    const DIR: &str = "/s";

    #[test]
    fn a_changed_byte_in_one_slot_is_harmless() {
        let disk = SimDisk::new();
        let mut file = MetaFile::create(&disk, Path::new(DIR), &Meta::alone(1 << 99 | 5, 3)).unwrap();
        file.update(Meta { term: 4, vote: 1, ..file.meta().clone() }).unwrap();
        let path = Path::new(DIR).join(NAME);
        let whole = disk.contents(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            disk.overwrite(&path, bytes);
            let found = read(&disk, Path::new(DIR)).unwrap().unwrap();
            assert!(found.term == 4 && found.is_alone(), "byte {at}");
        }
        for len in (0..whole.len()).step_by(97) {
            disk.overwrite(&path, whole[..len].to_vec());
            match read(&disk, Path::new(DIR)) {
                Ok(Some(found)) => assert_eq!(found.store_id, 1 << 99 | 5),
                Err(Error::Foreign { .. } | Error::Corrupt { .. } | Error::Missing { .. }) => {}
                other => panic!("{len}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_earlier_version_is_read_and_the_fields_of_this_version_come_back() {
        let disk = SimDisk::new();
        let path = Path::new(DIR).join(NAME);
        MetaFile::create(&disk, Path::new(DIR), &Meta::alone(6, 1)).unwrap();
        for version in 1..<Meta as Content>::VERSION {
            let mut slot: Slot = bytemuck::pod_read_unaligned(&Meta::alone(5, 1).encode(1));
            (slot.version, slot.crc) = (version, 0);
            slot.crc = crc32c::crc32c(bytemuck::bytes_of(&slot));
            disk.overwrite(&path, bytemuck::bytes_of(&slot).to_vec());
            assert_eq!(read(&disk, Path::new(DIR)).unwrap(), Some(Meta::alone(5, 1)));
        }
        let met = (2..=32).map(|n| (NodeId(n), n << 40)).collect();
        let whole = Meta { is_fresh: true, remembers: true, name: "n".repeat(NAME_MAX), met, ..Meta::alone(5, 1) };
        let mut file = MetaFile::open(&disk, Path::new(DIR)).unwrap();
        file.update(whole.clone()).unwrap();
        assert_eq!(read(&disk, Path::new(DIR)).unwrap(), Some(whole));
    }

    #[test]
    fn power_loss_at_any_call_of_an_update_leaves_the_old_contents_or_the_new() {
        for call in 1..=4 {
            for seed in 0..40 {
                let disk = SimDisk::new();
                let mut file = MetaFile::create(&disk, Path::new(DIR), &Meta::alone(5, 1)).unwrap();
                disk.set_fault(disk.calls() + call, Fault::PowerLoss);
                assert!(file.update(Meta { term: 2, ..Meta::alone(5, 2) }).is_err());
                let after = read(&disk.power_loss(seed), Path::new(DIR)).unwrap().unwrap();
                assert!([1, 2].contains(&after.term));
            }
        }
    }

    #[test]
    fn hosts_that_joined_rejoined_or_changed_members_have_no_hash_of_initial_members() {
        let voter = |n| MemberEntry { node: NodeId(n), roles: VOTER, address: format!("127.0.0.1:{n}") };
        let initialised =
            |node| Meta { node: NodeId(node), members: (1..=3).map(voter).collect(), is_fresh: true, ..Meta::alone(7, 0) };
        assert_ne!(initialised(1).initial_members(), 0);
        assert_eq!(initialised(1).initial_members(), initialised(2).initial_members());
        for meta in [
            Meta { joins: true, ..initialised(1) },
            Meta { rejoins: true, ..initialised(1) },
            Meta { membership: 4, ..initialised(1) },
            Meta { generation: 1, ..initialised(1) },
            Meta::alone(7, 0),
        ] {
            assert_eq!(meta.initial_members(), 0);
        }
    }
}
