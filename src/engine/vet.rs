//! Owns: the check whether frames that another host has made may be accepted.
//!
//! What must hold: frames are checked before raft receives them, because frames that raft has accepted must be appended.
//! Frames that pass are appended and applied without a failing assertion, from any host.

use crate::consensus::Change;
use crate::consensus::message::FrameHead;
use tapestore::error::{Bad, demand};
use tapestore::wal::{Body, ControlEntry, Frame, Writer};

/// Raft's entry types, as [`FrameHead::kind`] has them.
const ORDINARY: u64 = 0;
const MEMBERSHIP: u64 = 2;

/// Checks that `frames`, one after the other, continue the log of `writer` in a store of `instruments` instruments.
///
/// # Errors
/// The mismatch of the first frame that does not fit.
pub(super) fn vet(writer: &Writer, instruments: u64, frames: &[(FrameHead, &Frame<'_>)]) -> Result<(), Bad> {
    writer.check_all(frames.iter().map(|f| &f.1.header))?;
    let mut instruments = instruments;
    for (head, frame) in frames {
        let kind = if matches!(frame.body, Body::Membership(_)) { MEMBERSHIP } else { ORDINARY };
        demand("the kind of a frame", kind, u64::from(head.kind))?;
        match &frame.body {
            Body::Empty | Body::Data(_) => {}
            Body::Membership(words) => drop(Change::parse(words)?),
            Body::Control(entries) => {
                for entry in entries {
                    if let ControlEntry::Symbol { instrument, .. } = entry {
                        instruments += 1;
                        demand("the number of the next instrument", instruments, u64::from(instrument.0))?;
                    }
                }
            }
        }
    }
    Ok(())
}
