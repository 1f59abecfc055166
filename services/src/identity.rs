//! Owns: the publisher number under which a command writes: the given one, or a free one.
//!
//! What must hold: a command without a given number fences nobody, on no host of a cluster, and takes no number below
//! 49152, which users choose; a given number is fenced only with --take-over.

use std::path::Path;

use tapestore::disk::RealDisk;
use tapestore::error::Error;
use tapestore::lsn::PublisherId;
use tapestore::publisher::{Options, Publisher};
use tapestore::shm::control::{Control, SLOTS_MAX};
use tapestore::shm::run_dir::RunDir;
use tapestore_engine::consensus::meta;

use crate::exit::{Failure, LATER, Outcome};
use crate::waiting::Waiting;

/// First number that commands take by themselves.
const FIRST: u16 = 49152;
/// Numbers for the commands of one host: as many as can be attached at once.
const BLOCK: u16 = SLOTS_MAX as u16;
/// Blocks of numbers. Each host of a cluster has its own.
const BLOCKS: u16 = (u16::MAX - FIRST) / BLOCK + 1;

const _: () = assert!(FIRST as u32 + BLOCKS as u32 * BLOCK as u32 == 1 << 16);

/// The publisher to write as.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Who {
    /// Publisher number; one process at a time writes as a publisher [default: a free number from 49152 on]
    #[arg(long)]
    publisher: Option<u16>,
    /// Fence a live process that writes as --publisher, and write in its place
    #[arg(long, requires = "publisher")]
    take_over: bool,
}

impl Who {
    /// Attaches to the store of `options` as this publisher.
    ///
    /// # Errors
    /// As [`Publisher::open`].
    pub fn open(&self, options: Options) -> Outcome<Publisher> {
        let _waiting = Waiting::new(format!("a storage process to attach to {}", options.store.display()));
        if let Some(number) = self.publisher {
            let take_over = self.take_over;
            return Ok(Publisher::open(Options { publisher: PublisherId(number), take_over, ..options })?);
        }
        let first = first_of(&options.store);
        let attached = attached(&options.store);
        for number in (first..=first + (BLOCK - 1)).filter(|n| !attached.contains(n)) {
            match Publisher::open(Options { publisher: PublisherId(number), ..options.clone() }) {
                // Another command has taken it in the meantime.
                Err(Error::Taken { .. }) => {}
                other => return Ok(other?),
            }
        }
        let last = first + (BLOCK - 1);
        Err(Failure::new(LATER, format!("publishers {first} to {last} are all attached; choose another number with --publisher")))
    }
}

/// First number that commands on this host take for `store`.
fn first_of(store: &Path) -> u16 {
    // A user who may not read the file may not publish either: storage rejects the attach.
    let node = meta::read(&RealDisk, store).ok().flatten().map_or(0, |meta| meta.node.0);
    FIRST + (node % u64::from(BLOCKS)) as u16 * BLOCK
}

/// The numbers attached on this host; none if the control page cannot be read, because storage then rejects the attach.
fn attached(store: &Path) -> Vec<u16> {
    let control = RunDir::find(store).and_then(|run_dir| Control::open(&run_dir.control()));
    let holders = control.map(|c| (0..SLOTS_MAX).filter_map(|i| c.slot(i).holder()).map(|h| h.1.0).collect());
    holders.unwrap_or_default()
}
