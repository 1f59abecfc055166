//! Owns: a store that a program serves itself, in its own process: for tests, notebooks and small tools.
//!
//! What must hold: publishers, subscribers and readers of this and of other processes use it as they use a store that
//! `tape-storage` serves. The guard's end stops storage in order.

use std::path::{Path, PathBuf};

use super::consensus::meta;
use super::ended::Ended;
use super::options::{Options, World};
use super::storage::Storage;
use tapestore::disk::{RealDisk, absolute};
use tapestore::error::{Error, Result};

/// Bytes of a MemTable and of a log segment of a store that is made here.
const MEMTABLE_SIZE: u64 = 32 << 20;
const SEGMENT_SIZE: u64 = 8 << 20;

/// A store that this process serves until the value is dropped.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use tapestore::lsn::{Durability, PublisherId};
/// use tapestore::publisher::{self, Publisher};
/// use tapestore::reader::{At, Reader, Series};
/// use tapestore::record::{Record, Trade};
/// use tapestore::time::Ts;
/// use tapestore_engine::Embedded;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Embedded::temporary()?;
/// let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1)))?;
/// let instrument = publisher.instrument(&"XNAS:AAPL".parse()?)?;
/// publisher.publish(&Trade { instrument, price: "189.98".parse()?, size: "100".parse()?, ts_recv: Ts(7), ..Trade::default() })?;
/// publisher.flush(Durability::Fsync, Duration::from_secs(5))?;
///
/// let mut reader = Reader::open(store.path())?;
/// let mut now = reader.snapshot(At::Committed)?;
/// let row = now.as_of(Series { instrument, kind: Trade::KIND }, Ts(u64::MAX))?;
/// assert_eq!(row.and_then(|row| row.record.get::<Trade>().map(|trade| trade.price)), Some("189.98".parse()?));
/// drop(publisher);
/// store.stop()?;
/// # Ok(())
/// # }
/// ```
pub struct Embedded {
    /// `None` once it has been stopped.
    storage: Option<Storage>,
    store: PathBuf,
    /// Removed after storage has stopped.
    temporary: Option<tempfile::TempDir>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Serves the store in the directory `store`, which is created if there is none. Returns when publishers can attach. The
    /// threads of storage run in this process; one that panics ends the process, because nothing may be acknowledged then.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process serves it; [`Error::Corrupt`] and others if it is damaged; [`Error::Invalid`] if it
    /// belongs to a cluster, whose hosts `tape-storage` serves; [`Error::NoSharedMemory`]; [`Error::Io`].
    pub fn open(store: impl AsRef<Path>) -> Result<Embedded> {
        let store = store.as_ref().to_path_buf();
        Embedded::with(Options { store, memtable_size: MEMTABLE_SIZE, segment_size: SEGMENT_SIZE, ..Options::default() })
    }

    /// Serves a new store in a temporary directory. The directory and its shared memory are removed at the end.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn temporary() -> Result<Embedded> {
        let parent = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("tapestore-").tempdir();
        let dir = made.map_err(|e| Error::io("create a directory in", &parent, e))?;
        let mut embedded = Embedded::open(dir.path().join("store"))?;
        embedded.temporary = Some(dir);
        Ok(embedded)
    }

    /// Serves the store with `options`.
    ///
    /// # Errors
    /// As [`Embedded::open`]; [`Error::Invalid`] names an option that is out of bounds.
    pub fn with(options: Options) -> Result<Embedded> {
        let store = absolute(&options.store)?;
        if meta::read(&RealDisk, &store)?.is_some_and(|meta| meta.is_clustered()) {
            return Err(Error::invalid("store", "it belongs to a cluster: serve it with tape-storage and tape-replication"));
        }
        let storage = Storage::start(Options { store: store.clone(), ..options }, World::of_this_host()?)?;
        Ok(Embedded { storage: Some(storage), store, temporary: None })
    }

    /// The directory of the store: give it to [`tapestore::publisher::Options::new`], [`tapestore::reader::Reader::open`] and
    /// [`tapestore::subscriber::Subscriber::open`].
    pub fn path(&self) -> &Path {
        &self.store
    }

    /// Whether storage has ended by itself, because a write or a sync has failed; [`Embedded::stop`] then returns why.
    pub fn has_failed(&self) -> bool {
        self.storage.as_ref().is_some_and(Storage::has_failed)
    }

    /// Accepts what publishers have sent, makes it durable and flushes it, and ends. Dropping the value does the same, and
    /// logs an error instead of returning it.
    ///
    /// # Errors
    /// [`Error::Halted`] if a write or a sync has failed: what was not acknowledged may be lost.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(storage) = self.storage.take() else { return Ok(()) };
        let run_dir = storage.started().run_dir.clone();
        let ended = storage.stop()?;
        assert!(ended == Ended::Stopped, "only a host of a cluster ends in another way");
        if self.temporary.is_some() {
            std::fs::remove_dir_all(&run_dir).map_err(|e| Error::io("remove", &run_dir, e))?;
        }
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(
                name: "storage.embedded_failed", %error, store = %self.store.display(),
                "an embedded store has ended with a failure"
            );
        }
    }
}
