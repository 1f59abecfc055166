//! Owns: whether frames that another host has made may be accepted.
//!
//! What must hold: it is asked before raft hears of the frames, because what raft has accepted must be written; frames that
//! pass here are appended and applied without any assertion failing, whatever host they come from.

use crate::consensus::Change;
use crate::consensus::message::FrameHead;
use tapestore::error::{Bad, demand};
use tapestore::wal::{Body, Fact, Frame, Writer};

/// Numbers of raft's entry types, as [`FrameHead::kind`] has them.
const ORDINARY: u64 = 0;
const MEMBERSHIP: u64 = 2;

/// Whether `frames`, one behind the other, continue the log of `writer`, in a store of `instruments` instruments.
///
/// # Errors
/// What does not fit, of the first frame that does not.
pub(super) fn vet(writer: &Writer, instruments: u64, frames: &[(FrameHead, &Frame<'_>)]) -> Result<(), Bad> {
    writer.check_all(frames.iter().map(|f| &f.1.header))?;
    let mut instruments = instruments;
    for (head, frame) in frames {
        let kind = if matches!(frame.body, Body::Membership(_)) { MEMBERSHIP } else { ORDINARY };
        demand("the kind of a frame", kind, u64::from(head.kind))?;
        match &frame.body {
            Body::Empty | Body::Data(_) => {}
            Body::Membership(words) => drop(Change::parse(words)?),
            Body::Control(facts) => {
                for fact in facts {
                    if let Fact::Symbol { instrument, .. } = fact {
                        instruments += 1;
                        demand("the number of the next instrument", instruments, u64::from(instrument.0))?;
                    }
                }
            }
        }
    }
    Ok(())
}
