//! Owns: iceoryx2. No other module names it.
//!
//! What must hold, each against a trap that was measured in 0.10:
//! - every quality-of-service value is set; the defaults lose data silently;
//! - a store's instance has its own root path and prefix, so nothing outlives it and no configuration
//!   file of the working directory is read;
//! - the bus installs no signal handler;
//! - a full queue returns at once (`DiscardData`): the publisher waits, with a limit;
//!   `RetryUntilDelivered` hangs for ever when storage dies;
//! - a batch that reached no receiver (`Ok(0)`) counts as not sent: it stays in the publisher's ring;
//! - chunks are allocated once (`Static`): a grown segment of a dead publisher can be lost;
//! - all memory of a segment is allocated before the first send (`memory`): otherwise a page is
//!   allocated at its first touch, and a full `/dev/shm` raises SIGBUS;
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

/// Batches queued for storage, and for a live subscriber before the oldest are dropped. A publisher's full ingest queue
/// takes 17 MB of shared memory, its full live queue 4 MB.
const BUFFERS: Buffers = Buffers { ingest: 512, live: 1024 };
/// The least of both where shared memory is small.
const BUFFERS_MIN: Buffers = Buffers { ingest: 16, live: 32 };
/// A publisher's ingest queue takes at most one part in this many of shared memory, its live queue a quarter of that.
const SHARE: u64 = 32;
/// Most batches that a receiver borrows at once.
const BORROWED_MAX: usize = 2;
/// Most publishers of a store.
const LIVE_PUBLISHERS_MAX: usize = attach::SLOTS_MAX;
/// Most live subscribers of a store.
const LIVE_SUBSCRIBERS_MAX: usize = 16;
/// Batches that a sender has memory for beside the queued and the borrowed ones: the one being sent, and those of a
/// receiver that has just ended.
const SPARE: usize = 32;
/// Bytes before the words of each batch in a sender's segment: the bus's header and ours. A test compares.
const HEADER_BYTES: usize = 76;

/// The header of a batch of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ZeroCopySend)]
#[type_name("tape.batch.v1")]
#[repr(C)]
pub struct BatchHeader {
    publisher: u16,
    reserved: u16,
    epoch: u32,
    first_pub_seq: u64,
    count: u32,
    /// When it was sent, if this batch is measured, as `shm::histogram::stamp` makes it; 0: it is not.
    sent: u32,
}

impl BatchHeader {
    /// A batch of `count` records from `first` on.
    pub fn new(publisher: PublisherId, epoch: Epoch, first: PubSeq, count: u32) -> BatchHeader {
        BatchHeader { publisher: publisher.0, reserved: 0, epoch: epoch.0, first_pub_seq: first.0, count, sent: 0 }
    }

    /// The publisher that sent it.
    pub fn publisher(&self) -> PublisherId {
        PublisherId(self.publisher)
    }

    /// The publisher's epoch.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Number of the first record.
    pub fn first_pub_seq(&self) -> PubSeq {
        PubSeq(self.first_pub_seq)
    }

    /// Number of records.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The batch as one that was sent at `stamp`.
    #[must_use]
    pub fn sent_at(self, stamp: u32) -> BatchHeader {
        BatchHeader { sent: stamp, ..self }
    }

    /// The stamp of when it was sent; 0: it has none.
    pub fn sent(&self) -> u32 {
        self.sent
    }
}

fn bus_error(op: &'static str, service: &str, cause: impl Debug) -> Error {
    Error::Bus { op, service: service.to_owned(), cause: format!("{cause:?}") }
}

/// Most queued batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffers {
    ingest: usize,
    live: usize,
}

impl Buffers {
    /// For a shared memory of `total` bytes: 64 MiB, the default of a container, has room for several publishers.
    fn of(total: u64) -> Buffers {
        let within = |words: usize| (total / SHARE / (words as u64 * 8)) as usize;
        Buffers {
            ingest: within(BATCH_WORDS_MAX).clamp(BUFFERS_MIN.ingest, BUFFERS.ingest),
            live: (within(LIVE_WORDS_MAX) / 4).clamp(BUFFERS_MIN.live, BUFFERS.live),
        }
    }
}

/// Bytes of shared memory that a publisher's queues take where there are `total` bytes of it: the queue to storage, and the queue
/// to live subscribers, which is allocated once there is one.
pub fn queue_bytes(total: u64) -> [u64; 2] {
    let Buffers { ingest, live } = Buffers::of(total);
    // As `Sender::new` counts them; the bus makes no more than all receivers can have, and the one being sent.
    let bytes = |queued: usize, receivers: usize, words: usize| {
        let batches = (queued + receivers * BORROWED_MAX + SPARE).min(receivers * (queued + BORROWED_MAX) + 1);
        (batches * (words * 8 + HEADER_BYTES)) as u64
    };
    [bytes(ingest, 1, BATCH_WORDS_MAX), bytes(live, LIVE_SUBSCRIBERS_MAX, LIVE_WORDS_MAX)]
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

/// The result of a clean-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Dead processes whose files were removed.
    pub removed: u64,
    /// Dead processes with files that could not be removed; those files are removed with the instance.
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
        // By default every process cleans up after dead ones when it joins, leaves and opens. If it is killed during that,
        // the files left can never be cleaned up. So only storage's janitor does it, by `sweep`.
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

    /// Removes the files of dead processes from the bus.
    pub fn sweep(&self) -> Swept {
        // Unfinished files come first. The bus's own clean-up misses them: it removes the entry that names the process, then
        // fails on the directory with such a file, and can never retry.
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
            Err(error) => tracing::debug!(
                name: "bus.processes_not_listed", ?error,
                "cannot list the processes on the bus; retrying in a second"
            ),
        }
        Swept { removed: state.cleanups, failed: state.failed_cleanups }
    }

    /// Creates the ingest service of `grant` and its receiving end; call it before the grant is sent to the
    /// publisher.
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
        // By default a sender whose segments cannot be mapped (no descriptors, no memory) is skipped silently and for good.
        let is_unmapped = Arc::new(AtomicBool::new(false));
        let raised = is_unmapped.clone();
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
        Ok(Receiver { subscriber, name, is_unmapped })
    }

    /// Opens the sending end of the ingest service of `grant`.
    ///
    /// # Errors
    /// [`Error::Bus`] if it does not exist or its settings differ from storage's; [`Error::NoSharedMemory`].
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
        // Storage chooses the length of the queue.
        let buffers = BUFFERS_MIN.ingest..=BUFFERS.ingest;
        if config.has_safe_overflow() || !buffers.contains(&config.subscriber_max_buffer_size()) || config.max_publishers() != 1 {
            let cause = "another release of tape-storage created it; run this program and tape-storage from one release";
            return Err(Error::Bus { op: "use", service: name, cause: cause.to_owned() });
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
            // Its creator may have found another size of shared memory.
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

    /// A receiving end of the live service: a slow receiver loses the oldest batches.
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
                    name: "bus.publisher_not_received",
                    "cannot receive a publisher's live records: this process is short of descriptors (ulimit -n), memory \
                     maps or memory (ulimit -v), or the publisher has just ended; to get them, open the subscriber again \
                     or follow the store"
                );
                DegradationAction::Ignore
            })
            .create()
            .map_err(|e| bus_error("subscribe to", LIVE_NAME, e))?;
        Ok(Receiver { subscriber, name: LIVE_NAME.to_owned(), is_unmapped: Arc::default() })
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
    /// The segment of its batches, and whether all of it is allocated.
    data: PathBuf,
    is_allocated: AtomicBool,
}

impl Sender {
    /// A sender of batches of at most `words` words.
    fn new(service: LiveService, prefix: &str, name: String, words: usize) -> Result<Sender> {
        // Each receiver's queue holds some of the last batches sent, because a live queue drops the oldest. So all queues
        // together hold no more batches than one, beside the borrowed ones.
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
    /// [`Error::NoSharedMemory`]: send nothing then.
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

    /// Copies `words` into shared memory and sends them. `false`: the queue is full or has no receiver
    /// yet; nothing was sent.
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
            // All of the sender's batches are queued or borrowed.
            Err(iceoryx2::port::LoanError::OutOfMemory) => return Ok(false),
            other => other.map_err(|e| bus_error("loan from", &self.name, e))?,
        };
        *loan.user_header_mut() = header;
        let sent = loan.write_from_slice(words).send().map_err(|e| bus_error("send to", &self.name, e))?;
        Ok(sent > 0)
    }

    /// Whether there is a receiver.
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
    /// Whether the sender's segments could not be mapped: the bus tries that once.
    is_unmapped: Arc<AtomicBool>,
}

/// A received batch, still in shared memory. Its sender can change it: copy it before checking it.
#[derive(Debug)]
pub struct Batch(Sample<Ipc, [u64], BatchHeader>);

impl Batch {
    /// Its header.
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
            Ok(None) if self.is_unmapped.load(Ordering::Relaxed) => {
                let cause = "no descriptors (ulimit -n), memory maps or memory (ulimit -v) are left, or the sender just ended";
                Err(Error::Bus { op: "receive from", service: self.name.clone(), cause: cause.to_owned() })
            }
            Ok(sample) => Ok(sample.map(Batch)),
            Err(e) => Err(bus_error("receive from", &self.name, e)),
        }
    }

    /// Whether a batch waits, or an error that [`Receiver::receive`] will return.
    pub fn has_batches(&self) -> bool {
        // `receive` touches a missing page again and reports it.
        crate::pages::watch(|| self.subscriber.has_samples().unwrap_or(true)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bus for one test, and a guard that removes the files it leaves behind.
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
    fn a_publishers_queues_take_a_small_part_of_a_small_shared_memory() {
        assert_eq!(Buffers::of(24 << 30), BUFFERS);
        assert_eq!(Buffers::of(1 << 30), BUFFERS);
        for total in [64u64 << 20, 128 << 20, 256 << 20] {
            let Buffers { ingest, live } = Buffers::of(total);
            assert!(((ingest * BATCH_WORDS_MAX + live * LIVE_WORDS_MAX) * 8) as u64 <= total / 25, "{total}");
        }
        assert_eq!(Buffers::of(0), BUFFERS_MIN);
    }

    #[test]
    fn the_bytes_of_a_publisher_s_queues_are_those_of_its_segments() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (bus, _left) = join(dir.path(), 'q');
        let _receiver = bus.receive_ingest(1).unwrap();
        let (ingest, live) = (bus.send_ingest(1).unwrap(), bus.send_live().unwrap());
        let real = [&ingest, &live].map(|sender| sender.data.metadata().unwrap().len());
        for (real, planned) in real.into_iter().zip(queue_bytes(memory::total())) {
            assert!(real.abs_diff(planned) * 200 <= real, "a segment has {real} bytes, {planned} are planned");
        }
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_loses_nothing_it_accepted() {
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

    /// The segments of `prefix` that are not fully allocated.
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
        // Full queues fit in the allocated memory.
        let header = |i| BatchHeader::new(PublisherId(1), Epoch(1), PubSeq(i), 1);
        (0..3 * bus.buffers.live as u64).for_each(|i| assert!(live.send(header(i), &[i; LIVE_WORDS_MAX]).unwrap()));
        while ingest.send(header(1), &[7; BATCH_WORDS_MAX]).unwrap() {}
        assert_eq!(sparse(&left.0), [""; 0]);
    }

    #[test]
    fn a_slow_live_receiver_loses_the_oldest_batches_and_never_stops_the_sender() {
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
