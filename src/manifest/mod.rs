//! Owns: the manifest, the only record of which SSTables are live. It also holds the state as of the checkpoint
//! that must survive with the log: publishers, instrument names, the log's chain.
//!
//! What must hold: an edit is durable before anything it replaces is removed (log segments, MemTables, SSTables).
//! Names and numbers of files are never reused. A torn last edit is ignored: nothing has been removed because of
//! it yet.

pub mod format;

mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::lsn::{Epoch, Lsn, PubSeq, PublisherId};
use crate::record::{Layout, Name};
use crate::sstable::FileMeta;
use crate::wal::Chain;

pub use reader::{Follower, read_all};
pub use writer::{Manifest, create};

/// A publisher's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherState {
    /// Its epoch; 0 if it never attached.
    pub epoch: Epoch,
    /// The last number accepted in that epoch.
    pub last: PubSeq,
    /// LSN of that record.
    pub lsn: Lsn,
    /// The process that was granted the epoch.
    pub incarnation: u32,
}

/// One edit of the manifest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Files that become live.
    pub added: Vec<FileMeta>,
    /// Numbers of files that are no longer live.
    pub removed: Vec<u64>,
    /// Where the log continues after the records in SSTables.
    pub checkpoint: Option<Chain>,
    /// Publishers as of the checkpoint: only those that changed.
    pub publishers: Vec<(PublisherId, PublisherState)>,
    /// Instrument names as of the checkpoint: only new ones, in the order of their ids.
    pub names: Vec<Name>,
    /// Kinds defined by programs, as of the checkpoint: only new ones.
    pub kinds: Vec<Layout>,
    /// Number of records that expired: they were in removed files and are in no added file.
    pub expired: u64,
}

/// The state after all edits.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Sequence number of the newest edit.
    pub seq: u64,
    /// The first unused file number: no file has ever had it or a higher one.
    pub next_id: u64,
    /// The live files, by number.
    pub files: BTreeMap<u64, FileMeta>,
    /// Where the log continues after the records in SSTables.
    pub checkpoint: Chain,
    /// Publishers as of the checkpoint.
    pub publishers: BTreeMap<PublisherId, PublisherState>,
    /// Instrument names as of the checkpoint, by id, starting at 1.
    pub names: Vec<Name>,
    /// Kinds defined by programs, as of the checkpoint.
    pub kinds: Vec<Layout>,
    /// Number of records up to the checkpoint that have expired by retention. Together with the rows of all files
    /// they are the records up to the checkpoint.
    pub expired: u64,
}

impl State {
    /// The state of a store without history.
    pub fn begin(store_id: u128) -> State {
        State {
            seq: 0,
            next_id: 1,
            files: BTreeMap::new(),
            checkpoint: Chain::begin(store_id),
            publishers: BTreeMap::new(),
            names: Vec::new(),
            kinds: Vec::new(),
            expired: 0,
        }
    }

    /// The last record in SSTables.
    pub fn covered(&self) -> Lsn {
        Lsn(self.checkpoint.lsn.0.saturating_sub(1))
    }

    /// Applies edit number `seq`.
    pub fn apply(&mut self, seq: u64, edit: Edit) {
        self.seq = seq;
        for id in edit.removed {
            self.files.remove(&id);
        }
        for file in edit.added {
            self.next_id = self.next_id.max(file.id + 1);
            self.files.insert(file.id, file);
        }
        if let Some(chain) = edit.checkpoint {
            self.checkpoint = chain;
        }
        self.publishers.extend(edit.publishers);
        self.names.extend(edit.names);
        self.kinds.extend(edit.kinds);
        self.expired += edit.expired;
    }

    /// The edit that turns a store without history into this state.
    fn to_edit(&self) -> Edit {
        Edit {
            added: self.files.values().copied().collect(),
            removed: Vec::new(),
            checkpoint: Some(self.checkpoint),
            publishers: self.publishers.iter().map(|(p, s)| (*p, *s)).collect(),
            names: self.names.clone(),
            kinds: self.kinds.clone(),
            expired: self.expired,
        }
    }
}
