//! Owns: checksums of this host's records, for comparison with other hosts.
//!
//! What must hold: every record is read as readers read it, from SSTables or memory, with checksums verified; an unreadable
//! page ends the read with the error that readers get.

use std::path::Path;

use tapestore::lsn::Lsn;
use tapestore::reader::{At, Reader, Tally};
use tokio::sync::mpsc;
use tonic::Status;

use super::proto::Digest;

/// LSNs of one stripe.
const STRIPE: u64 = 1 << 20;

/// Reads the committed records `first` to `last` of `store` and sends a digest per stripe to `to`.
pub fn read(store: &Path, first: u64, last: u64, to: &mpsc::Sender<Result<Digest, Status>>) {
    if let Err(status) = stripes(store, first, last, to) {
        // The client may be gone.
        to.blocking_send(Err(status)).ok();
    }
}

fn stripes(store: &Path, first: u64, last: u64, to: &mpsc::Sender<Result<Digest, Status>>) -> Result<(), Status> {
    let failed = |e: tapestore::error::Error| Status::data_loss(e.to_string());
    let mut follow = Reader::open(store).map_err(failed)?.follow(Lsn(first), At::Committed);
    let mut stripe = Digest { first, ..Digest::default() };
    let mut tally = Tally::default();
    loop {
        let Some(row) = follow.poll().map_err(failed)? else {
            return Err(Status::out_of_range(format!("records end before {last}")));
        };
        let lsn = row.lsn.0;
        tally.add(row.lsn, row.record.words());
        if lsn == last || lsn.is_multiple_of(STRIPE) {
            (stripe.last, stripe.count, stripe.checksum) = (lsn, tally.count, tally.checksum);
            if to.blocking_send(Ok(stripe)).is_err() || lsn >= last {
                return Ok(());
            }
            stripe = Digest { first: lsn + 1, ..Digest::default() };
            tally = Tally::default();
        }
    }
}
