//! Owns: the words of C for a level, a wait and a watermark. C passes them as numbers, and a number that is none is refused.

use crate::status::{Failure, Status};

/// How durable a record must be before storage acknowledges it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum Durability {
    /// No guarantee; losses are counted.
    None = 0,
    /// In the log file: the record survives the death of any process.
    Os = 1,
    /// On the disk: the record survives the loss of power.
    Fsync = 2,
    /// Committed, and on the disk of a learner: for a pair of hosts.
    Standby = 3,
    /// On the disks of a majority of the cluster's hosts.
    Quorum = 4,
    /// In the memory and the log files of a majority of the cluster's hosts.
    QuorumOs = 5,
}

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
    /// What is never withdrawn.
    Committed = 2,
    /// What is in SSTables, the store's files: a part of the store.
    Flushed = 3,
}

fn none(name: &str, number: u32, words: &str) -> Failure {
    Failure::new(Status::Invalid, format!("the argument '{name}' is {number}, which is none of {words}"))
}

/// The level that the argument `name` numbers.
pub(crate) fn durability(number: u32, name: &str) -> Result<tapestore::Durability, Failure> {
    use Durability as D;
    use tapestore::Durability as L;
    let all = [
        (D::None, L::None),
        (D::Os, L::Os),
        (D::Fsync, L::Fsync),
        (D::Standby, L::Standby),
        (D::Quorum, L::Quorum),
        (D::QuorumOs, L::QuorumOs),
    ];
    let found = all.iter().find(|(word, _)| *word as u32 == number).map(|(_, level)| *level);
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
