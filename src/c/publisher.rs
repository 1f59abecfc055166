//! Owns: publishing from C.
//!
//! What must hold: a record of C is copied or checked against the layout of its kind before it is accepted; a handle that is
//! closed detaches, whether its records have reached their level or not.

use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::time::Duration;

use tapestore::publisher::Options;
use tapestore::record::{Kind, RecordRef, schema};
use tapestore::{Name, PublisherId};

use crate::options::{self, Durability, Wait};
use crate::pointers::{Array, Count, Out, Text, given, made, milliseconds, words};
use crate::status::{Failure, Status, call};

/// A publisher of records. Opened by `tapestore_publisher_open`, ended by `tapestore_publisher_close`.
pub struct Publisher(tapestore::Publisher);

/// The options of a publisher. Set all of them by `tapestore_publisher_options_init`, then change some.
#[repr(C)]
pub struct PublisherOptions<'a> {
    /// The directory of the store. It must be set.
    pub store: Text<'a>,
    /// The publisher's number. One process at a time publishes under it. It must be set.
    pub publisher: u16,
    /// Whether records go to live subscribers too. Default: true.
    pub live: bool,
    /// Whether a live process that publishes under this number is fenced. Default: false, and then opening fails.
    pub take_over: bool,
    /// A `tapestore_durability`: at which level a record leaves the ring. Default: `TAPESTORE_DURABILITY_FSYNC`.
    pub durability: u32,
    /// A `tapestore_wait`: how calls wait for room in the ring and for acknowledgements. Default: `TAPESTORE_WAIT_ADAPTIVE`.
    pub wait: u32,
    /// The core to which the thread that opens the publisher is pinned. Default: -1, none.
    pub core: i32,
    /// Bytes of the ring, which keeps records until they are acknowledged. Default: 64 MiB.
    pub ring_bytes: u64,
    /// How long a call waits for room in the ring, in microseconds. Default: 5000.
    pub send_timeout_us: u64,
    /// How long opening waits for a storage process, in milliseconds. Default: 10000.
    pub open_timeout_ms: u64,
}

/// How far a publisher's records have come. Numbers are its own, from 1 on; 0 is none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Progress {
    /// The last record in the ring.
    pub published: u64,
    /// The last record in the log file.
    pub accepted: u64,
    /// The last record on the disk.
    pub durable: u64,
    /// The last committed record.
    pub committed: u64,
    /// The number in the store (LSN) of the last record in the log file.
    pub accepted_lsn: u64,
    /// Batches sent.
    pub batches: u64,
    /// How often records were sent again.
    pub rewinds: u64,
    /// How often the publisher has attached again.
    pub reattached: u64,
    /// The epoch of these numbers. A new epoch begins when the publisher is opened again, or has lost records.
    pub epoch: u32,
}

impl From<tapestore::publisher::Progress> for Progress {
    fn from(progress: tapestore::publisher::Progress) -> Progress {
        Progress {
            published: progress.published.0,
            accepted: progress.accepted.0,
            durable: progress.durable.0,
            committed: progress.committed.0,
            accepted_lsn: progress.accepted_lsn.0,
            batches: progress.batches,
            rewinds: progress.rewinds,
            reattached: progress.reattached,
            epoch: progress.epoch.0,
        }
    }
}

/// Sets all `options` to their defaults.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_options_init(options: Out<'_, PublisherOptions<'_>>) -> Status {
    call(|| {
        let defaults = Options::new("", PublisherId(0));
        given(options, "options")?.write(PublisherOptions {
            store: Text::NULL,
            publisher: 0,
            live: defaults.live,
            take_over: defaults.take_over,
            durability: Durability::Fsync as u32,
            wait: Wait::Adaptive as u32,
            core: -1,
            ring_bytes: defaults.ring_bytes as u64,
            send_timeout_us: defaults.send_timeout.as_micros() as u64,
            open_timeout_ms: defaults.open_timeout.as_millis() as u64,
        });
        Ok(Status::Ok)
    })
}

/// Opens a publisher. Returns when a storage process has accepted it.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_open(
    options: Option<&PublisherOptions<'_>>,
    publisher: Out<'_, Option<Box<Publisher>>>,
) -> Status {
    call(|| {
        made(publisher, "publisher", || {
            let options = given(options, "options")?;
            let opened = tapestore::Publisher::open(Options {
                store: PathBuf::from(options.store.get("options.store")?),
                publisher: PublisherId(options.publisher),
                take_over: options.take_over,
                durability: options::durability(options.durability, "options.durability")?,
                ring_bytes: options.ring_bytes as usize,
                send_timeout: Duration::from_micros(options.send_timeout_us).min(milliseconds(u64::MAX)),
                open_timeout: milliseconds(options.open_timeout_ms),
                live: options.live,
                wait: options::wait(options.wait, "options.wait")?,
                core: options::core(options.core),
            });
            Ok(Publisher(opened?))
        })
    })
}

/// The number of the instrument called `name` in this store. A new name is registered for good.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_instrument(
    publisher: Option<&mut Publisher>,
    name: Text<'_>,
    instrument: Out<'_, u32>,
) -> Status {
    call(|| {
        let (publisher, instrument) = (given(publisher, "publisher")?, given(instrument, "instrument")?);
        let name: Name = name.get("name")?.parse()?;
        instrument.write(publisher.0.instrument(&name)?.0);
        Ok(Status::Ok)
    })
}

/// Passes the record of `bytes` to `accept`.
fn accepted(
    record: Array<'_, u8>,
    bytes: Count,
    accept: impl FnOnce(RecordRef<'_>) -> Result<u64, Failure>,
    pub_seq: Option<&mut MaybeUninit<u64>>,
) -> Result<Status, Failure> {
    let bytes = record.get(bytes, "record")?;
    let invalid = |reason: String| Failure::new(Status::Invalid, format!("invalid record: {reason}"));
    let Some((&[low, high], _)) = bytes.split_first_chunk() else {
        return Err(invalid(format!("it has {} bytes", bytes.len())));
    };
    let kind = Kind(u16::from_le_bytes([low, high]));
    let known = schema(kind).ok_or_else(|| Failure::no_kind(kind.0))?;
    let words = words(bytes).filter(|words| words.len() == known.words);
    let words = words
        .ok_or_else(|| invalid(format!("a {} has {} bytes, and this one has {}", known.name, known.words * 8, bytes.len())))?;
    let number = accept(RecordRef::first(&words)?)?;
    if let Some(pub_seq) = pub_seq {
        pub_seq.write(number);
    }
    Ok(Status::Ok)
}

/// Accepts a record and sends it, with all records staged before it. `record` is one of the structs below, or a kind that
/// the store knows; `bytes` is its size. The record is copied. `pub_seq` may be NULL: the record's number at this publisher.
///
/// `TAPESTORE_OK` means: the record is stored once, in the order of the calls, unless this process dies before it is
/// acknowledged. `tapestore_publisher_flush` waits for that. After `TAPESTORE_FULL` the record was not accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_publish(
    publisher: Option<&mut Publisher>,
    record: Array<'_, u8>,
    bytes: Count,
    pub_seq: Out<'_, u64>,
) -> Status {
    call(|| {
        let publisher = given(publisher, "publisher")?;
        accepted(record, bytes, |record| Ok(publisher.0.publish_ref(record)?.0), pub_seq)
    })
}

/// Accepts a record as `tapestore_publisher_publish` does, but sends it with later ones: by the next
/// `tapestore_publisher_send` or `tapestore_publisher_publish`. A batch costs little more than a single record.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_stage(
    publisher: Option<&mut Publisher>,
    record: Array<'_, u8>,
    bytes: Count,
    pub_seq: Out<'_, u64>,
) -> Status {
    call(|| {
        let publisher = given(publisher, "publisher")?;
        accepted(record, bytes, |record| Ok(publisher.0.stage(record)?.0), pub_seq)
    })
}

/// Sends all staged records.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_send(publisher: Option<&mut Publisher>) -> Status {
    call(|| {
        given(publisher, "publisher")?.0.send();
        Ok(Status::Ok)
    })
}

/// Waits until all records accepted so far have reached the level `durability`, a `tapestore_durability`.
/// `TAPESTORE_TIMEOUT`, `TAPESTORE_NO_SPACE`: they have not within `timeout_ms`, and are still sent. `progress` may be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_flush(
    publisher: Option<&mut Publisher>,
    durability: u32,
    timeout_ms: u64,
    progress: Out<'_, Progress>,
) -> Status {
    call(|| {
        let publisher = given(publisher, "publisher")?;
        let level = options::durability(durability, "durability")?;
        let reached = publisher.0.flush(level, milliseconds(timeout_ms)).map_err(Failure::of_wait)?;
        if let Some(progress) = progress {
            progress.write(reached.into());
        }
        Ok(Status::Ok)
    })
}

/// How far the records have come, by the acknowledgements up to now.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_progress(publisher: Option<&mut Publisher>, progress: Out<'_, Progress>) -> Status {
    call(|| {
        let (publisher, progress) = (given(publisher, "publisher")?, given(progress, "progress")?);
        progress.write(publisher.0.progress().into());
        Ok(Status::Ok)
    })
}

/// Counts the records lost since the last call: the store had lost the end of its log, and they were no longer in the ring.
/// The store has a record of kind `TAPESTORE_KIND_GAP` for them.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_take_lost(publisher: Option<&mut Publisher>, records: Out<'_, u64>) -> Status {
    call(|| {
        let (publisher, records) = (given(publisher, "publisher")?, given(records, "records")?);
        let lost = publisher.0.take_lost();
        records.write(lost.iter().map(|lost| lost.last.0.saturating_sub(lost.first.0) + 1).sum());
        Ok(Status::Ok)
    })
}

/// Waits until all accepted records have reached the publisher's level, at most for `timeout_ms`, and detaches. The handle is
/// invalid afterwards, whatever the call returns. `TAPESTORE_TIMEOUT`, `TAPESTORE_NO_SPACE`: records that storage has not
/// received are lost. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_publisher_close(publisher: Option<Box<Publisher>>, timeout_ms: u64) -> Status {
    call(|| {
        if let Some(publisher) = publisher {
            publisher.0.close(milliseconds(timeout_ms)).map_err(Failure::of_wait)?;
        }
        Ok(Status::Ok)
    })
}
