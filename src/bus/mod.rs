//! Owns: iceoryx2. No other module names it.
//!
//! What must hold, each against a trap that was measured in 0.10:
//! - every quality-of-service value is given; the defaults lose data in silence;
//! - a store's instance has a root path and a prefix of its own, so nothing outlives it and no
//!   configuration file of the working directory is read;
//! - signal handlers stay the program's own;
//! - a full queue returns at once (`DiscardData`): the wait is the publisher's, with a limit;
//!   `RetryUntilDelivered` hangs for ever when storage dies;
//! - a batch that reached nobody is not sent (`Ok(0)`): it stays in the publisher's ring;
//! - chunks are allocated once (`Static`): a grown segment of a dead publisher can be lost;
//! - all memory of a segment is allocated before the first send ([`memory`]): by itself it is when it is touched, and a full
//!   `/dev/shm` is a signal then;
//! - one service per publisher: a shared subscriber serves the first busy publisher and starves the
//!   rest.

pub mod attach;

mod memory;
mod orphans;

use std::collections::HashSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iceoryx2::node::NodeView;
use iceoryx2::port::DegradationAction;
use iceoryx2::prelude::*;
use iceoryx2::sample::Sample;

use crate::error::{Error, Result};
use crate::lsn::{Epoch, PubSeq, PublisherId};

type Ipc = ipc_threadsafe::Service;

/// Most words of a batch on the ingest bus.
pub const BATCH_WORDS_MAX: usize = 4096;
/// Most words of a batch on the live bus.
pub const LIVE_WORDS_MAX: usize = 512;

/// Batches that wait for storage, and for a live subscriber before the oldest are dropped. The first of a publisher take
/// 17 MB of shared memory when they are all full, the second 4 MB.
const BUFFERS: Buffers = Buffers { ingest: 512, live: 1024 };
/// The same where shared memory is small, at least.
const BUFFERS_MIN: Buffers = Buffers { ingest: 16, live: 32 };
/// A publisher's batches take at most this part of shared memory.
const SHARE: u64 = 32;
/// Batches that a receiver holds at once.
const BORROWED_MAX: usize = 2;
/// Publishers of a store.
const LIVE_PUBLISHERS_MAX: usize = attach::SLOTS_MAX;
/// Live subscribers of a store.
const LIVE_SUBSCRIBERS_MAX: usize = 16;
/// Batches that a sender has memory for beside those that wait and those that receivers look at: the one being sent, and
/// those of a receiver that has just ended.
const SPARE: usize = 32;

/// What stands before a batch of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ZeroCopySend)]
#[type_name("tape.batch.v1")]
#[repr(C)]
pub struct BatchHeader {
    publisher: u16,
    reserved: u16,
    epoch: u32,
    first_pub_seq: u64,
    count: u32,
    reserved2: u32,
}

impl BatchHeader {
    /// A batch of `count` records from `first` on.
    pub fn new(publisher: PublisherId, epoch: Epoch, first: PubSeq, count: u32) -> BatchHeader {
        BatchHeader { publisher: publisher.0, reserved: 0, epoch: epoch.0, first_pub_seq: first.0, count, reserved2: 0 }
    }

    /// Who sent it.
    pub fn publisher(&self) -> PublisherId {
        PublisherId(self.publisher)
    }

    /// In which epoch.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Number of the first record.
    pub fn first_pub_seq(&self) -> PubSeq {
        PubSeq(self.first_pub_seq)
    }

    /// Records.
    pub fn count(&self) -> u32 {
        self.count
    }
}

fn bus_error(op: &'static str, service: &str, cause: impl Debug) -> Error {
    Error::Bus { op, service: service.to_owned(), cause: format!("{cause:?}") }
}

/// How many batches wait at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffers {
    ingest: usize,
    live: usize,
}

impl Buffers {
    /// For a shared memory of `total` bytes: 64 MiB, the usual one of a container, has room for several publishers.
    fn of(total: u64) -> Buffers {
        let within = |words: usize| (total / SHARE / (words as u64 * 8)) as usize;
        Buffers {
            ingest: within(BATCH_WORDS_MAX).clamp(BUFFERS_MIN.ingest, BUFFERS.ingest),
            live: (within(LIVE_WORDS_MAX) / 4).clamp(BUFFERS_MIN.live, BUFFERS.live),
        }
    }
}

/// One process's access to the bus of one instance of a store.
#[derive(Debug)]
pub struct Bus {
    node: Node<Ipc>,
    config: Config,
    root: PathBuf,
    prefix: String,
    buffers: Buffers,
}

/// What a clean-up found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Dead processes whose files were removed.
    pub removed: u64,
    /// Dead processes whose files could not all be removed; they go with the instance.
    pub failed: u64,
}

impl Bus {
    /// Joins the bus with files under `root` and segments of `prefix`.
    ///
    /// # Errors
    /// [`Error::Bus`].
    pub fn join(root: &Path, prefix: &str, who: &str) -> Result<Bus> {
        set_log_level_from_env_or(LogLevel::Fatal);
        let bad = |cause: &dyn Debug| bus_error("configure", prefix, cause);
        let mut config = Config::default();
        let path = iceoryx2::prelude::Path::new(root.as_os_str().as_encoded_bytes()).map_err(|e| bad(&e))?;
        config.global.set_root_path(&path);
        config.global.prefix = FileName::new(prefix.as_bytes()).map_err(|e| bad(&e))?;
        // By default every process clears up after dead ones, when it joins, leaves and opens; one that is killed in the
        // middle of that leaves files that nobody can clear up. Storage's janitor alone does it, by `sweep`.
        config.global.node.cleanup_dead_nodes_on_creation = false;
        config.global.node.cleanup_dead_nodes_on_destruction = false;
        config.global.service.cleanup_dead_nodes_on_open = false;
        let name = NodeName::new(who).map_err(|e| bad(&e))?;
        let builder = NodeBuilder::new().name(&name).config(&config).signal_handling_mode(SignalHandlingMode::Disabled);
        let node = memory::make(prefix, || builder.create::<Ipc>().map_err(|e| bus_error("join", prefix, e)))?;
        let buffers = Buffers::of(memory::total());
        Ok(Bus { node, config, root: root.to_path_buf(), prefix: prefix.to_owned(), buffers })
    }

    fn nodes(&self) -> PathBuf {
        self.root.join("nodes")
    }

    /// Removes what dead processes left on the bus.
    pub fn sweep(&self) -> Swept {
        // Files that a process was killed in the making of: the bus's own clean-up does not see them, fails on the
        // directory that they are in after it has removed what names the process, and can never try again.
        let mut living = HashSet::new();
        let listed = Node::<Ipc>::list(&self.config, |state| {
            match state {
                NodeState::Dead(dead) => orphans::remove_half_made(&self.nodes().join(dead.id().value().to_string())),
                NodeState::Alive(node) => drop(living.insert(node.id().value())),
                NodeState::Inaccessible(id) => drop(living.insert(id.value())),
                NodeState::Undefined(_) => {}
            }
            CallbackProgression::Continue
        });
        let state = self.node.try_cleanup_dead_nodes();
        match listed {
            Ok(()) => {
                orphans::remove(&self.nodes(), &living);
                orphans::remove_segments(Path::new(memory::SEGMENTS), &self.prefix, &self.nodes(), &living);
            }
            Err(error) => tracing::debug!(?error, "dead processes are looked for again in a second"),
        }
        Swept { removed: state.cleanups, failed: state.failed_cleanups }
    }

    /// Creates the ingest service of `grant` and its receiving end; to be called before the publisher
    /// is told of the grant.
    ///
    /// # Errors
    /// [`Error::Bus`]; [`Error::NoSharedMemory`].
    pub fn receive_ingest(&self, grant: u64) -> Result<Receiver> {
        memory::make(&self.prefix, || self.make_receive_ingest(grant))
    }

    fn make_receive_ingest(&self, grant: u64) -> Result<Receiver> {
        let name = ingest_name(grant);
        let service = self
            .node
            .service_builder(&name.as_str().try_into().map_err(|e| bus_error("name", &name, e))?)
            .publish_subscribe::<[u64]>()
            .user_header::<BatchHeader>()
            .enable_safe_overflow(false)
            .subscriber_max_buffer_size(self.buffers.ingest)
            .subscriber_max_borrowed_samples(BORROWED_MAX)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(1)
            .max_nodes(4)
            .create()
            .map_err(|e| bus_error("create", &name, e))?;
        // By default a sender whose segments cannot be mapped (no descriptors, no memory) is passed over, in silence and for
        // good.
        let is_deaf = Arc::new(AtomicBool::new(false));
        let raised = is_deaf.clone();
        let subscriber = service
            .subscriber_builder()
            .buffer_size(self.buffers.ingest)
            .set_degradation_handler(move |_, _| {
                // A lone flag: relaxed.
                raised.store(true, Ordering::Relaxed);
                DegradationAction::DegradeAndFail
            })
            .create()
            .map_err(|e| bus_error("subscribe to", &name, e))?;
        Ok(Receiver { subscriber, name, is_deaf })
    }

    /// Opens the sending end of the ingest service of `grant`.
    ///
    /// # Errors
    /// [`Error::Bus`] if it is not there or not as storage makes it; [`Error::NoSharedMemory`].
    pub fn send_ingest(&self, grant: u64) -> Result<Sender> {
        let sender = memory::make(&self.prefix, || self.make_send_ingest(grant))?;
        sender.allocate()?;
        Ok(sender)
    }

    fn make_send_ingest(&self, grant: u64) -> Result<Sender> {
        let name = ingest_name(grant);
        let service = self
            .node
            .service_builder(&name.as_str().try_into().map_err(|e| bus_error("name", &name, e))?)
            .publish_subscribe::<[u64]>()
            .user_header::<BatchHeader>()
            .enable_safe_overflow(false)
            .open()
            .map_err(|e| bus_error("open", &name, e))?;
        let config = service.static_config();
        // How many batches wait is storage's to say.
        let buffers = BUFFERS_MIN.ingest..=BUFFERS.ingest;
        if config.has_safe_overflow() || !buffers.contains(&config.subscriber_max_buffer_size()) || config.max_publishers() != 1 {
            return Err(bus_error("use", &name, "its settings are another version's"));
        }
        Sender::new(service, &self.prefix, name, BATCH_WORDS_MAX)
    }

    fn live(&self) -> Result<LiveService> {
        let name = || LIVE_NAME.try_into().map_err(|e| bus_error("name", LIVE_NAME, e));
        let service = self.node.service_builder(&name()?).publish_subscribe::<[u64]>().user_header::<BatchHeader>();
        let service = service.enable_safe_overflow(true);
        let made = service
            .subscriber_max_buffer_size(self.buffers.live)
            .subscriber_max_borrowed_samples(BORROWED_MAX)
            .history_size(0)
            .max_publishers(LIVE_PUBLISHERS_MAX)
            .max_subscribers(LIVE_SUBSCRIBERS_MAX)
            .max_nodes(LIVE_PUBLISHERS_MAX + LIVE_SUBSCRIBERS_MAX + 4)
            .open_or_create();
        match made {
            Ok(service) => Ok(service),
            // Whoever made it may have found another size of shared memory.
            Err(error) => {
                let service = self.node.service_builder(&name()?).publish_subscribe::<[u64]>().user_header::<BatchHeader>();
                service.enable_safe_overflow(true).open().map_err(|_| bus_error("open", LIVE_NAME, error))
            }
        }
    }

    /// The sending end of the live service. Its memory is allocated by [`Sender::allocate`], before the first send: most
    /// publishers have no live subscriber.
    ///
    /// # Errors
    /// [`Error::Bus`]; [`Error::NoSharedMemory`].
    pub fn send_live(&self) -> Result<Sender> {
        memory::make(&self.prefix, || Sender::new(self.live()?, &self.prefix, LIVE_NAME.to_owned(), LIVE_WORDS_MAX))
    }

    /// A receiving end of the live service: what comes too fast for it is dropped, oldest first.
    ///
    /// # Errors
    /// [`Error::Bus`]; [`Error::NoSharedMemory`].
    pub fn receive_live(&self) -> Result<Receiver> {
        memory::make(&self.prefix, || self.make_receive_live())
    }

    fn make_receive_live(&self) -> Result<Receiver> {
        let service = self.live()?;
        let subscriber = service
            .subscriber_builder()
            .buffer_size(service.static_config().subscriber_max_buffer_size())
            .set_degradation_handler(|_, _| {
                tracing::error!(
                    "a publisher's live records cannot be received: this process is short of descriptors (ulimit -n), memory \
                     maps or memory (ulimit -v), or the publisher has just ended; a subscriber that is opened again, or a \
                     follower of the store, has them"
                );
                DegradationAction::Ignore
            })
            .create()
            .map_err(|e| bus_error("subscribe to", LIVE_NAME, e))?;
        Ok(Receiver { subscriber, name: LIVE_NAME.to_owned(), is_deaf: Arc::default() })
    }
}

const LIVE_NAME: &str = "live";

fn ingest_name(grant: u64) -> String {
    format!("ingest/{grant}")
}

type LiveService = iceoryx2::service::port_factory::publish_subscribe::PortFactory<Ipc, [u64], BatchHeader>;

/// A sending end. A send never waits.
#[derive(Debug)]
pub struct Sender {
    service: LiveService,
    publisher: iceoryx2::port::publisher::Publisher<Ipc, [u64], BatchHeader>,
    name: String,
    /// What batches lie in, and whether all of it is allocated.
    data: PathBuf,
    is_allocated: AtomicBool,
}

impl Sender {
    /// Of batches of at most `words` words.
    fn new(service: LiveService, prefix: &str, name: String, words: usize) -> Result<Sender> {
        // Every receiver's queue holds some of the last batches that were sent: a live one drops the oldest. So all together
        // hold no more than one queue does, beside what they look at.
        let config = service.static_config();
        let batches = config.subscriber_max_buffer_size() + config.max_subscribers() * BORROWED_MAX + SPARE;
        let publisher = service
            .publisher_builder()
            .initial_max_slice_len(words)
            .max_loaned_samples(1)
            .allocation_strategy(AllocationStrategy::Static)
            .backpressure_strategy(BackpressureStrategy::DiscardData)
            .override_sample_preallocation(move |worst| batches.min(worst))
            .create()
            .map_err(|e| bus_error("publish on", &name, e))?;
        let data = memory::data_segment(prefix, publisher.id().value())?;
        Ok(Sender { service, publisher, name, data, is_allocated: AtomicBool::new(false) })
    }

    /// Allocates the memory of its batches, once.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`]: nothing is to be sent then.
    #[inline]
    pub fn allocate(&self) -> Result<()> {
        // A lone bit: relaxed.
        if self.is_allocated.load(Ordering::Relaxed) {
            return Ok(());
        }
        memory::allocate_data(&self.data)?;
        self.is_allocated.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Copies `words` into shared memory and hands them over. `false`: the queue is full, or nobody
    /// has connected to it yet; nothing was sent.
    ///
    /// # Errors
    /// [`Error::Bus`]; [`Error::NoSharedMemory`].
    #[inline]
    pub fn send(&self, header: BatchHeader, words: &[u64]) -> Result<bool> {
        self.allocate()?;
        memory::watched(&self.name, || self.hand_over(header, words))?
    }

    #[inline]
    fn hand_over(&self, header: BatchHeader, words: &[u64]) -> Result<bool> {
        let mut loan = match self.publisher.loan_slice_uninit(words.len()) {
            // All batches that there is memory for are on their way.
            Err(iceoryx2::port::LoanError::OutOfMemory) => return Ok(false),
            other => other.map_err(|e| bus_error("loan from", &self.name, e))?,
        };
        *loan.user_header_mut() = header;
        let sent = loan.write_from_slice(words).send().map_err(|e| bus_error("send to", &self.name, e))?;
        Ok(sent > 0)
    }

    /// Whether anybody receives.
    #[inline]
    pub fn has_receivers(&self) -> bool {
        self.service.dynamic_config().number_of_subscribers() > 0
    }
}

/// A receiving end.
#[derive(Debug)]
pub struct Receiver {
    subscriber: iceoryx2::port::subscriber::Subscriber<Ipc, [u64], BatchHeader>,
    name: String,
    /// Whether what its sender sends cannot be mapped: the bus tries that once.
    is_deaf: Arc<AtomicBool>,
}

/// A received batch, still in shared memory. Its sender can change it: copy before checking.
#[derive(Debug)]
pub struct Batch(Sample<Ipc, [u64], BatchHeader>);

impl Batch {
    /// What stands before it.
    #[inline]
    pub fn header(&self) -> BatchHeader {
        *self.0.user_header()
    }

    /// The records, unchecked.
    #[inline]
    pub fn words(&self) -> &[u64] {
        self.0.payload()
    }
}

impl Receiver {
    /// The next batch, if there is one.
    ///
    /// # Errors
    /// [`Error::Bus`]; [`Error::NoSharedMemory`].
    #[inline]
    pub fn receive(&self) -> Result<Option<Batch>> {
        match memory::watched(&self.name, || self.subscriber.receive())? {
            Ok(None) if self.is_deaf.load(Ordering::Relaxed) => {
                let cause = "no descriptors (ulimit -n), memory maps or memory (ulimit -v) are left for it, or it has just ended";
                Err(Error::Bus { op: "receive from", service: self.name.clone(), cause: cause.to_owned() })
            }
            Ok(sample) => Ok(sample.map(Batch)),
            Err(e) => Err(bus_error("receive from", &self.name, e)),
        }
    }

    /// Whether a batch waits, or the error that [`Receiver::receive`] will give.
    pub fn has_batches(&self) -> bool {
        // A page that is not there is found again by who receives.
        crate::pages::watch(|| self.subscriber.has_samples().unwrap_or(true)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bus of its own, and what removes the file that it leaves behind.
    fn join(dir: &Path, letter: char) -> (Bus, Left) {
        let prefix = format!("tapetest{}{letter}_", std::process::id());
        (Bus::join(dir, &prefix, "test").unwrap(), Left(prefix))
    }

    struct Left(String);

    impl Drop for Left {
        fn drop(&mut self) {
            for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&self.0) {
                    std::fs::remove_file(entry.path()).ok();
                }
            }
        }
    }

    #[test]
    fn a_publishers_batches_take_a_small_part_of_a_small_shared_memory() {
        assert_eq!(Buffers::of(24 << 30), BUFFERS);
        assert_eq!(Buffers::of(1 << 30), BUFFERS);
        for total in [64u64 << 20, 128 << 20, 256 << 20] {
            let Buffers { ingest, live } = Buffers::of(total);
            assert!(((ingest * BATCH_WORDS_MAX + live * LIVE_WORDS_MAX) * 8) as u64 <= total / 25, "{total}");
        }
        assert_eq!(Buffers::of(0), BUFFERS_MIN);
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_loses_nothing_it_took() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (bus, _left) = join(dir.path(), 'a');
        let receiver = bus.receive_ingest(1).unwrap();
        let sender = bus.send_ingest(1).unwrap();
        let header = |i| BatchHeader::new(PublisherId(1), Epoch(1), PubSeq(i), 1);
        let mut sent = 0;
        while sender.send(header(sent), &[sent, 7]).unwrap() {
            sent += 1;
        }
        assert!(sent >= bus.buffers.ingest as u64, "{sent}");
        for i in 0..sent {
            let batch = receiver.receive().unwrap().unwrap();
            assert_eq!((batch.header(), batch.words()), (header(i), &[i, 7][..]));
        }
        assert!(receiver.receive().unwrap().is_none());
        assert!(sender.send(header(sent), &[0; BATCH_WORDS_MAX]).unwrap());
        assert!(sender.send(header(sent), &[0; BATCH_WORDS_MAX + 1]).is_err());
    }

    /// The segments of `prefix` of which not all memory is allocated.
    fn sparse(prefix: &str) -> Vec<String> {
        use std::os::unix::fs::MetadataExt;
        let names = std::fs::read_dir(memory::SEGMENTS).unwrap().flatten();
        let mine = names.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
        let is_sparse = |e: &std::fs::DirEntry| e.metadata().is_ok_and(|m| m.blocks() * 512 < m.len());
        mine.filter(is_sparse).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn all_memory_that_a_send_touches_is_allocated_before_it() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (bus, left) = join(dir.path(), 'c');
        let _receiver = bus.receive_ingest(1).unwrap();
        let ingest = bus.send_ingest(1).unwrap();
        let _subscriber = bus.receive_live().unwrap();
        let live = bus.send_live().unwrap();
        live.allocate().unwrap();
        assert_eq!(sparse(&left.0), [""; 0]);
        // It is as much as is promised, and no queue outgrows it.
        let header = |i| BatchHeader::new(PublisherId(1), Epoch(1), PubSeq(i), 1);
        (0..3 * bus.buffers.live as u64).for_each(|i| assert!(live.send(header(i), &[i; LIVE_WORDS_MAX]).unwrap()));
        while ingest.send(header(1), &[7; BATCH_WORDS_MAX]).unwrap() {}
        assert_eq!(sparse(&left.0), [""; 0]);
    }

    #[test]
    fn a_live_receiver_that_is_slow_loses_the_oldest_and_never_stops_the_sender() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (bus, _left) = join(dir.path(), 'b');
        let sender = bus.send_live().unwrap();
        assert!(!sender.has_receivers());
        let receiver = bus.receive_live().unwrap();
        assert!(sender.has_receivers());
        let count = bus.buffers.live as u64 * 2;
        for i in 0..count {
            sender.send(BatchHeader::new(PublisherId(1), Epoch(1), PubSeq(i), 1), &[i]).unwrap();
        }
        let first = receiver.receive().unwrap().unwrap().header().first_pub_seq();
        assert_eq!(first, PubSeq(count - bus.buffers.live as u64));
    }
}
