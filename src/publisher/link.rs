//! Owns: a publisher's connection to one instance of storage: bus ports, slot and socket. A link is never repaired; it
//! is replaced.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::ring::Chunk;
use super::unanswered::unanswered;
use crate::bus::attach::{Grant, Message, ask};
use crate::bus::{BatchHeader, Bus, LIVE_WORDS_MAX, Sender};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, PubSeq, PublisherId};
use crate::record::{self, Layout};
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::{Control, Slot};
use crate::shm::histogram::stamp;
use crate::shm::run_dir::RunDir;
use crate::time::{Clock, HostClock};

/// The connection.
pub(super) struct Link {
    pub(super) grant: u64,
    pub(super) slot: Slot,
    pub(super) control: Control,
    pub(super) bells: Bells,
    pub(super) gap_count: u64,
    ingest: Sender,
    live: Option<Sender>,
    /// Time of the last failed allocation of the live port's memory: not retried with each batch.
    no_live_memory: Option<Instant>,
    /// The last record sent to live subscribers. Records that are sent again are not sent live again.
    live_sent: PubSeq,
    /// Batches that were sent.
    sent: u32,
    _bus: Bus,
}

/// One batch in so many is measured: `shm::histogram`.
const MEASURED: u32 = 16;

impl Link {
    /// Opens the ports and the slot named in `grant`.
    ///
    /// # Errors
    /// [`Error::Bus`] if storage has stopped meanwhile; [`Error::Io`].
    pub(super) fn open(run_dir: &RunDir, control: Control, grant: &Grant, live: bool) -> Result<Link> {
        let instance = grant.instance;
        let bells = Bells::open(&run_dir.bells())?;
        let bus = Bus::join(&run_dir.bus_root(instance), &run_dir.bus_prefix(instance), "publisher")?;
        let ingest = bus.send_ingest(grant.grant)?;
        // Without a live port, subscribers detect the gap and read it from the store.
        let live = live.then(|| bus.send_live()).transpose().unwrap_or_else(|error| {
            tracing::warn!(
                name: "publisher.not_live", %error,
                "this publisher cannot send live: subscribers read its records from the store"
            );
            None
        });
        let slot = control.slot(grant.slot);
        let live_sent = PubSeq(0);
        let grant = grant.grant;
        Ok(Link { grant, slot, control, bells, gap_count: 0, ingest, live, no_live_memory: None, live_sent, sent: 0, _bus: bus })
    }

    /// Sends `chunk` to storage and, the first time, to live subscribers. `false`: storage's queue is full.
    ///
    /// # Errors
    /// [`Error::Bus`].
    pub(super) fn send(&mut self, publisher: PublisherId, epoch: Epoch, chunk: &Chunk<'_>) -> Result<bool> {
        let header = BatchHeader::new(publisher, epoch, chunk.first, chunk.count);
        // A look at the clock costs a hundredth of a send.
        let is_measured = self.sent.is_multiple_of(MEASURED);
        let header = if is_measured { header.sent_at(stamp(HostClock.monotonic())) } else { header };
        if !self.ingest.send(header, chunk.words)? {
            return Ok(false);
        }
        self.sent = self.sent.wrapping_add(1);
        if let Some(live) = &self.live
            && live.has_receivers()
            && chunk.first > self.live_sent
            && has_memory(live, &mut self.no_live_memory)
        {
            send_live(live, publisher, epoch, chunk);
            self.bells.ring(Bell::Live);
        }
        self.live_sent = self.live_sent.max(PubSeq(chunk.first.0 + u64::from(chunk.count) - 1));
        Ok(true)
    }
}

/// Pause of live sends after a failed allocation.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(200);

/// Allocates the memory of `live`; returns whether it has it. Without it, subscribers read missed records from the
/// store.
#[inline]
fn has_memory(live: &Sender, since: &mut Option<Instant>) -> bool {
    if since.is_some_and(|s| s.elapsed() < NO_MEMORY_PAUSE) {
        return false;
    }
    match live.allocate() {
        Ok(()) => {
            *since = None;
            true
        }
        Err(error) => {
            if since.is_none() {
                tracing::warn!(
                    name: "publisher.no_live_memory", %error,
                    "no memory for live batches: subscribers read from the store until there is"
                );
            }
            *since = Some(Instant::now());
            false
        }
    }
}

/// Sends `chunk` in pieces that fit the live bus. If a piece is lost, the subscriber detects the gap and reads it from
/// the store.
fn send_live(live: &Sender, publisher: PublisherId, epoch: Epoch, chunk: &Chunk<'_>) {
    let piece = |first: u64, count: u32, words: &[u64]| {
        if let Err(error) = live.send(BatchHeader::new(publisher, epoch, PubSeq(first), count), words) {
            tracing::debug!(
                name: "publisher.live_not_sent", %error,
                "cannot send a live batch; subscribers read it from the store"
            );
        }
    };
    if chunk.words.len() <= LIVE_WORDS_MAX {
        return piece(chunk.first.0, chunk.count, chunk.words);
    }
    let (mut first, mut count, mut from, mut to) = (chunk.first.0, 0u32, 0usize, 0usize);
    for record in record::split(chunk.words).map_while(Result::ok) {
        let len = record.words().len();
        if to + len - from > LIVE_WORDS_MAX {
            piece(first, count, chunk.words.get(from..to).unwrap_or(&[]));
            (first, count, from) = (first + u64::from(count), 0, to);
        }
        to += len;
        count += 1;
    }
    piece(first, count, chunk.words.get(from..to).unwrap_or(&[]));
}

/// Connects to storage's attach socket.
///
/// # Errors
/// [`Error::StorageDown`] if no process accepts connections; [`Error::Denied`] if another user serves the store;
/// [`Error::Exhausted`] if this process has no free descriptor.
pub(super) fn connect(run_dir: &RunDir, store: &Path, limit: Duration) -> Result<UnixStream> {
    let socket = run_dir.attach_socket();
    let down = |source: std::io::Error| match Error::io("connect to", &socket, source) {
        error @ Error::Exhausted { .. } => error,
        _ => Error::StorageDown { dir: store.to_path_buf(), why: "no process accepts connections on its socket" },
    };
    run_dir.check_user(store)?;
    let stream = UnixStream::connect(&socket).map_err(down)?;
    stream.set_read_timeout(Some(limit)).map_err(down)?;
    stream.set_write_timeout(Some(limit)).map_err(down)?;
    Ok(stream)
}

/// Asks storage, over `stream`, to register `layout` as a kind of the store.
pub(super) fn register(stream: &mut UnixStream, store: &Path, layout: &Layout) -> Result<()> {
    const REQUEST: &str = "to register a kind";
    let down = |_| unanswered(store);
    match ask(stream, &Message::Kind(Box::new(layout.clone()))).map_err(down)? {
        Message::Registered => Ok(()),
        Message::Refused(reason) => Err(Error::Refused { request: REQUEST, reason }),
        _ => Err(Error::MalformedAnswer { dir: store.to_path_buf(), request: REQUEST }),
    }
}

/// Whether the other end of `stream` is still open.
pub(super) fn is_open(stream: &UnixStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    let mut byte = [0u8; 1];
    match (&*stream).read(&mut byte) {
        Ok(0) => false,
        Ok(_) => true,
        Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
