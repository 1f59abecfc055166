//! Owns: the words of C for a level, a wait and a watermark. C passes them as numbers, and a number that is none is refused.

use crate::status::{Failure, Status};

/// How durable a record must be before storage acknowledges it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum Durability {
    /// No guarantee; losses are counted.
    None = 0,
    /// In the log file: the record survives the death of any process. It is on the disk within 50 ms or 4 MiB.
    Os = 1,
    /// On the disk: the record survives the loss of power.
    Fsync = 2,
    /// Committed, and on the disk of a learner: for a pair of hosts. Without a learner it is the same as quorum. A cluster with
    /// `flush = "interval"` refuses it.
    Standby = 3,
    /// On the disks of a majority of the cluster's hosts: the record survives the loss of the others. Without a cluster it is
    /// the same as fsync. A cluster with `flush = "interval"` refuses it.
    Quorum = 4,
    /// In a cluster with `flush = "interval"`: in the memory and the log files of a majority of the hosts. The record survives
    /// the death of any process and the loss of a minority of hosts. It is lost if a majority loses power within the interval.
    /// In every other store it is the same as quorum.
    QuorumOs = 5,
}

// C and the library number the levels alike.
const _: () = {
    use tapestore::Durability as L;
    assert!(Durability::None as u32 == L::None as u32 && Durability::Os as u32 == L::Os as u32);
    assert!(Durability::Fsync as u32 == L::Fsync as u32 && Durability::Standby as u32 == L::Standby as u32);
    assert!(Durability::Quorum as u32 == L::Quorum as u32 && Durability::QuorumOs as u32 == L::QuorumOs as u32);
};

/// How a call waits.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum Wait {
    /// It sleeps until it is woken.
    Blocking = 0,
    /// It spins, then yields the core, then sleeps.
    Adaptive = 1,
    /// It never gives up its core: the shortest latency.
    Busy = 2,
}

/// How far a snapshot or a follower reads.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum At {
    /// Everything that storage has appended. A loss of power can withdraw the newest records.
    Appended = 0,
    /// What is durable on this host.
    Durable = 1,
    /// What is never withdrawn. In a cluster with `flush = "interval"` it is in the memory of a majority of hosts, and is
    /// withdrawn if those lose power.
    Committed = 2,
    /// What is in SSTables, the store's files: a part of the store.
    Flushed = 3,
}

fn none(name: &str, number: u32, words: &str) -> Failure {
    Failure::new(Status::Invalid, format!("the argument '{name}' is {number}, which is none of {words}"))
}

/// The level that the argument `name` numbers.
pub(crate) fn durability(number: u32, name: &str) -> Result<tapestore::Durability, Failure> {
    let found = u8::try_from(number).ok().and_then(tapestore::Durability::from_raw);
    found.ok_or_else(|| none(name, number, "TAPESTORE_DURABILITY_..."))
}

/// The wait that the argument `name` numbers.
pub(crate) fn wait(number: u32, name: &str) -> Result<tapestore::publisher::Wait, Failure> {
    use tapestore::publisher::Wait as W;
    let all = [(Wait::Blocking, W::Blocking), (Wait::Adaptive, W::Adaptive), (Wait::Busy, W::Busy)];
    let found = all.iter().find(|(word, _)| *word as u32 == number).map(|(_, wait)| *wait);
    found.ok_or_else(|| none(name, number, "TAPESTORE_WAIT_..."))
}

/// The watermark that the argument `name` numbers.
pub(crate) fn at(number: u32, name: &str) -> Result<tapestore::At, Failure> {
    use tapestore::At as W;
    let all = [(At::Appended, W::Appended), (At::Durable, W::Durable), (At::Committed, W::Committed), (At::Flushed, W::Flushed)];
    let found = all.iter().find(|(word, _)| *word as u32 == number).map(|(_, at)| *at);
    found.ok_or_else(|| none(name, number, "TAPESTORE_AT_..."))
}

/// The core that C numbers; a negative number is none.
pub(crate) fn core(number: i32) -> Option<usize> {
    usize::try_from(number).ok()
}
