//! Owns: the manifest, the one truth about which files of history live, and what else must survive
//! with the log as of a checkpoint: publishers, instrument names, the log's chain.
//!
//! What must hold: an edit is durable before anything it replaces is given up (log segments,
//! MemTables, files); names and numbers of files are never used again; a torn last edit is as if it had
//! not been made, because nothing was given up for it yet.

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

/// What is known of a publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherState {
    /// Its epoch; 0 if it never attached.
    pub epoch: Epoch,
    /// The last number accepted in that epoch.
    pub last: PubSeq,
    /// That record's LSN.
    pub lsn: Lsn,
    /// Which process the epoch was granted to.
    pub incarnation: u32,
}

/// One change of the manifest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Files that live from now on.
    pub added: Vec<FileMeta>,
    /// Numbers of files that live no longer.
    pub removed: Vec<u64>,
    /// Where the log goes on behind what the files hold.
    pub checkpoint: Option<Chain>,
    /// Publishers as of the checkpoint, those that have changed.
    pub publishers: Vec<(PublisherId, PublisherState)>,
    /// Instrument names as of the checkpoint, those that are new, in the order of their ids.
    pub names: Vec<Name>,
    /// Kinds that programs defined as of the checkpoint, those that are new.
    pub kinds: Vec<Layout>,
    /// Records that are held no longer: they were in files that were removed, and are in none that was added.
    pub expired: u64,
}

/// What all edits together say.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Number of the newest edit.
    pub seq: u64,
    /// Numbers from here on have never been a file's.
    pub next_id: u64,
    /// The live files, by number.
    pub files: BTreeMap<u64, FileMeta>,
    /// Where the log goes on behind what the files hold.
    pub checkpoint: Chain,
    /// Publishers as of the checkpoint.
    pub publishers: BTreeMap<PublisherId, PublisherState>,
    /// Instrument names as of the checkpoint, by id from 1.
    pub names: Vec<Name>,
    /// Kinds that programs defined as of the checkpoint.
    pub kinds: Vec<Layout>,
    /// Records up to the checkpoint that are held no longer, because they have lived long enough: the rows of all
    /// files and these are the records up to the checkpoint.
    pub expired: u64,
}

impl State {
    /// Of a store without history.
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

    /// The last record that the files hold.
    pub fn covered(&self) -> Lsn {
        Lsn(self.checkpoint.lsn.0.saturating_sub(1))
    }

    /// Takes in an edit, of number `seq`.
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

    /// The edit that makes all this of a store without history.
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
