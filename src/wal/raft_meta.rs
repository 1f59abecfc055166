//! Owns: the bytes of `raft.meta`, by which a host of a cluster remembers its term, its vote and its members, and the one
//! number in it that a reader needs: up to which frame the log is certainly committed.
//!
//! ```text
//! two slots of 4 KiB; the valid one with the higher seq counts
//! 0     magic u64 · version u32 · crc u32 · seq u64 · store id u128
//! 40    node u64 · incarnation u64 · generation u64
//! 64    term u64 · vote u64 · commit u64 (a hint) · membership u64 (index of the frame it came with) · joins u64 (1), rejoins (2), has forgotten (4), fresh (8), remembers (16)
//! 104   auto leave u32 · members u32 · 32 members of 88 B
//! 2928  boot u128: boot of the host since which it may have acknowledged frames that are in memory only; 0: none
//! 2944  met u32 · name u32 (bytes) · name 64 B · 32 of node u64 · incarnation u64: the hosts that it has met
//!
//! member 88 B            node u64 · roles u32 · length u32 · address 72 B
//! ```
//!
//! Version 1 had no `boot`; version 2 had no list of hosts met, and no host was fresh.

use std::path::Path;

use crate::disk::Disk;
use crate::disk::two_slots::{self, Content, Parsed};
use crate::error::Result;

/// Members at most.
pub const MEMBERS_MAX: usize = 32;
/// Bytes of an address at most.
pub const ADDRESS_MAX: usize = 72;
/// Bytes of a cluster's name that are stored, at most.
pub const NAME_MAX: usize = 64;
/// Bytes of a slot.
pub const SLOT_LEN: usize = 4096;
/// Role of a member that counts towards a majority.
pub const VOTER: u32 = 1;

/// A member, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the drawing above names the fields")]
pub struct RawMember {
    pub node: u64,
    pub roles: u32,
    pub len: u32,
    pub address: [u8; ADDRESS_MAX],
}

/// A slot, as it is stored.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the drawing above names the fields")]
pub struct Slot {
    pub magic: u64,
    pub version: u32,
    pub crc: u32,
    pub seq: u64,
    pub store_id: [u64; 2],
    pub node: u64,
    pub incarnation: u64,
    pub generation: u64,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    pub membership: u64,
    pub joins: u64,
    pub auto_leave: u32,
    pub count: u32,
    pub members: [RawMember; MEMBERS_MAX],
    pub boot: [u64; 2],
    pub met_count: u32,
    pub name_len: u32,
    pub name: [u8; NAME_MAX],
    pub met: [[u64; 2]; MEMBERS_MAX],
    pub reserved: [u64; 71],
}

const _: () = {
    assert!(size_of::<Slot>() == SLOT_LEN && size_of::<RawMember>() == 88);
    assert!(std::mem::offset_of!(Slot, term) == 64 && std::mem::offset_of!(Slot, members) == 112);
    assert!(std::mem::offset_of!(Slot, boot) == 2928 && std::mem::offset_of!(Slot, met_count) == 2944);
};

impl Content for Slot {
    const NAME: &'static str = "raft.meta";
    const MAGIC: u64 = u64::from_le_bytes(*b"TAPERAFT");
    const CRC: &'static str = "raft.meta CRC";
    const VERSION: u32 = 3;
    const PURPOSE: &'static str = "it holds the node's term and vote";

    fn encode(&self, seq: u64) -> Vec<u8> {
        let mut slot = Slot { magic: Self::MAGIC, version: Self::VERSION, crc: 0, seq, ..*self };
        slot.crc = crc32c::crc32c(bytemuck::bytes_of(&slot));
        bytemuck::bytes_of(&slot).to_vec()
    }

    fn parse(bytes: &[u8]) -> Parsed<Slot> {
        match two_slots::checked::<Slot, Slot>(bytes) {
            Ok(slot) => Parsed::Valid(slot.seq, Box::new(slot)),
            Err(parsed) => parsed,
        }
    }
}

/// The index of a frame that is committed in the cluster of the store in `dir`: those before it are too, and later ones may
/// be. `None` if the store's host is alone: all of its frames are committed.
///
/// # Errors
/// [`crate::error::Error::Foreign`], [`crate::error::Error::Version`] or [`crate::error::Error::Corrupt`] if no slot is valid;
/// [`crate::error::Error::Io`].
pub fn committed(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>> {
    let Some(slot) = two_slots::read::<Slot>(disk, dir)? else { return Ok(None) };
    let is_alone = slot.count == 1 && slot.members.first().is_some_and(|m| m.node == slot.node && m.roles == VOTER);
    Ok((!is_alone).then_some(slot.commit))
}
