//! Owns: as which publisher a command writes: the one that was asked for, or a number that nobody else uses.
//!
//! What must hold: a command that was not told a number fences nobody, on no host of a cluster, and takes none that an
//! owner of publishers may have chosen; a number that was asked for is fenced only if that was asked for too.

use std::path::Path;

use tapestore_engine::consensus::meta;
use tapestore::disk::RealDisk;
use tapestore::error::Error;
use tapestore::lsn::PublisherId;
use tapestore::publisher::{Options, Publisher};
use tapestore::shm::control::{Control, SLOTS_MAX};
use tapestore::shm::run_dir::RunDir;

use crate::exit::{Failure, LATER, Outcome};

/// The first number that commands take by themselves.
const FIRST: u16 = 49152;
/// Numbers that the commands of one host take: as many as can be attached at once.
const BLOCK: u16 = SLOTS_MAX as u16;
/// Blocks of numbers: hosts of a cluster take them from their own.
const BLOCKS: u16 = (u16::MAX - FIRST) / BLOCK + 1;

const _: () = assert!(FIRST as u32 + BLOCKS as u32 * BLOCK as u32 == 1 << 16);

/// As whom to publish.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Who {
    /// Who publishes; at most one process writes as a publisher [default: a number from 49152 on that is free]
    #[arg(long)]
    publisher: Option<u16>,
    /// Write as --publisher even if a live process does: it is fenced
    #[arg(long, requires = "publisher")]
    take_over: bool,
}

impl Who {
    /// Attaches to the store of `options` as that publisher.
    ///
    /// # Errors
    /// As [`Publisher::open`].
    pub fn open(&self, options: Options) -> Outcome<Publisher> {
        if let Some(number) = self.publisher {
            let take_over = self.take_over;
            return Ok(Publisher::open(Options { publisher: PublisherId(number), take_over, ..options })?);
        }
        let first = first_of(&options.store);
        let attached = attached(&options.store);
        for number in (first..=first + (BLOCK - 1)).filter(|n| !attached.contains(n)) {
            match Publisher::open(Options { publisher: PublisherId(number), ..options.clone() }) {
                // Another command has taken it meanwhile.
                Err(Error::Taken { .. }) => {}
                other => return Ok(other?),
            }
        }
        let last = first + (BLOCK - 1);
        Err(Failure::new(LATER, format!("the publishers {first} to {last} are attached; name another one with --publisher")))
    }
}

/// The first number that commands on this host take for `store`.
fn first_of(store: &Path) -> u16 {
    // Who may not read it may not publish either: storage says so.
    let node = meta::read(&RealDisk, store).ok().flatten().map_or(0, |meta| meta.node.0);
    FIRST + (node % u64::from(BLOCKS)) as u16 * BLOCK
}

/// The numbers that are attached on this host; none if that cannot be found out, which storage then does.
fn attached(store: &Path) -> Vec<u16> {
    let control = RunDir::find(store).and_then(|run_dir| Control::open(&run_dir.control()));
    let holders = control.map(|c| (0..SLOTS_MAX).filter_map(|i| c.slot(i).holder()).map(|h| h.1.0).collect());
    holders.unwrap_or_default()
}
