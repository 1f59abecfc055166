//! Owns: finding a record that the bus dropped in the store, by its publisher's number.

use crate::error::Result;
use crate::lsn::{Epoch, Lsn, PubSeq, PublisherId};
use crate::version::View;

/// Finds records in the store.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// SSTables are searched for records above this.
    after: Lsn,
    /// The record that the SSTables of this manifest edit do not have: they are not searched for it again.
    absent: Option<((u64, u64), PublisherId, Epoch, PubSeq)>,
    /// The last record found.
    pub(super) words: Vec<u64>,
}

impl Stored {
    /// Searches SSTables for records above `after`.
    pub(super) fn above(after: Lsn) -> Stored {
        Stored { after, ..Stored::default() }
    }

    /// Finds the record that `publisher` numbered `pub_seq` in `epoch`, above `after`. Copies it to `words`
    /// and returns its LSN.
    pub(super) fn find(
        &mut self,
        view: Option<&View>,
        publisher: PublisherId,
        epoch: Epoch,
        pub_seq: PubSeq,
        after: Lsn,
    ) -> Result<Option<Lsn>> {
        let Some(view) = view else { return Ok(None) };
        self.words.clear();
        let mut newest_first = view.tables.iter().rev();
        let row = newest_first.find_map(|t| t.find_published(publisher, epoch, pub_seq, after, view.upto));
        let lsn = row.map(|row| {
            self.words.extend_from_slice(row.record.words());
            row.lsn
        });
        view.check_tables()?;
        if lsn.is_some() {
            return Ok(lsn);
        }
        let asked = Some((view.history.edit(), publisher, epoch, pub_seq));
        if self.absent == asked {
            return Ok(None);
        }
        match view.history.find_published(publisher, epoch, pub_seq, after.max(self.after))? {
            Some((file, place)) => file.row(place, &mut self.words).map(|(lsn, _)| Some(lsn)),
            None => {
                self.absent = asked;
                Ok(None)
            }
        }
    }
}
