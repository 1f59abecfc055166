//! Owns: subscription from C.

use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use tapestore::subscriber::Options;
use tapestore::{Kind, Name};

use crate::options::{self, Wait};
use crate::pointers::{Array, Count, Out, Text, given, made, milliseconds};
use crate::status::{Failure, Status, call};

/// A live subscription. Opened by `tapestore_subscriber_open`, ended by `tapestore_subscriber_close`.
pub struct Subscriber(tapestore::Subscriber);

/// The options of a subscriber. Set all of them by `tapestore_subscriber_options_init`, then change some.
#[repr(C)]
pub struct SubscriberOptions<'a> {
    /// The directory of the store. It must be set.
    pub store: Text<'a>,
    /// Names of the instruments to receive. A name may be registered later. Default: NULL, all instruments.
    pub instruments: Array<'a, Text<'a>>,
    /// The number of names.
    pub instrument_count: Count,
    /// Numbers of the kinds to receive. Default: NULL, all kinds.
    pub kinds: Array<'a, u16>,
    /// The number of kinds.
    pub kind_count: Count,
    /// A `tapestore_wait`: how `tapestore_subscriber_wait` waits. Default: `TAPESTORE_WAIT_BLOCKING`.
    pub wait: u32,
    /// The core to which the thread that opens the subscriber is pinned. Default: -1, none.
    pub core: i32,
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum EventType {
    /// A record.
    Record = 0,
    /// Records that were not found in time, from `pub_seq` to `last`. They may still be stored later.
    Gap = 1,
    /// The store is now served from another place: it was moved, or restored from a backup.
    Reopened = 2,
}

/// An event of a subscriber. Fields that its type does not have are zero.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Event {
    /// What it is.
    pub r#type: EventType,
    /// Record, gap: the publisher's epoch.
    pub epoch: u32,
    /// Record: its number in the epoch. Gap: the first number.
    pub pub_seq: u64,
    /// Gap: the last number; `UINT64_MAX` if the epoch ended and their count is unknown.
    pub last: u64,
    /// Record: the record, a struct of `kind`, aligned to 8 bytes. It is the library's and must not be changed.
    pub record: *const c_void,
    /// Record: its bytes.
    pub bytes: usize,
    /// Reopened: the timeline of the store.
    pub timeline: u64,
    /// Record: its instrument.
    pub instrument: u32,
    /// Record: its kind.
    pub kind: u16,
    /// Record, gap: the publisher.
    pub publisher: u16,
    /// Record: whether it was fetched from the store, because the bus had dropped it.
    pub healed: bool,
    /// Reopened: whether the log continues. If not, this is another copy of the store, and the next events begin at the
    /// publishers' current positions.
    pub continues: bool,
}

impl Event {
    fn empty(of: EventType) -> Event {
        Event {
            r#type: of,
            epoch: 0,
            pub_seq: 0,
            last: 0,
            record: std::ptr::null(),
            bytes: 0,
            timeline: 0,
            instrument: 0,
            kind: 0,
            publisher: 0,
            healed: false,
            continues: false,
        }
    }
}

impl From<tapestore::Event<'_>> for Event {
    fn from(event: tapestore::Event<'_>) -> Event {
        match event {
            tapestore::Event::Record { publisher, epoch, pub_seq, record, healed } => Event {
                epoch: epoch.0,
                pub_seq: pub_seq.0,
                record: record.bytes().as_ptr().cast(),
                bytes: record.bytes().len(),
                instrument: record.instrument().0,
                kind: record.kind().0,
                publisher: publisher.0,
                healed,
                ..Event::empty(EventType::Record)
            },
            tapestore::Event::Gap { publisher, epoch, first, last } => {
                Event { epoch: epoch.0, pub_seq: first.0, last: last.0, publisher: publisher.0, ..Event::empty(EventType::Gap) }
            }
            tapestore::Event::Reopened { timeline, continues } => {
                Event { timeline: timeline.0, continues, ..Event::empty(EventType::Reopened) }
            }
        }
    }
}

/// Sets all `options` to their defaults.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_options_init(options: Out<'_, SubscriberOptions<'_>>) -> Status {
    call(|| {
        given(options, "options")?.write(SubscriberOptions {
            store: Text::NULL,
            instruments: Array::NULL,
            instrument_count: Count::NONE,
            kinds: Array::NULL,
            kind_count: Count::NONE,
            wait: Wait::Blocking as u32,
            core: -1,
        });
        Ok(Status::Ok)
    })
}

/// Subscribes. Events begin with the next record of each publisher.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_open(
    options: Option<&SubscriberOptions<'_>>,
    subscriber: Out<'_, Option<Box<Subscriber>>>,
) -> Status {
    call(|| {
        made(subscriber, "subscriber", || {
            let options = given(options, "options")?;
            let names = options.instruments.get(options.instrument_count, "options.instruments")?;
            let name = |name: &Text<'_>| -> Result<Name, Failure> { Ok(name.get("options.instruments")?.parse()?) };
            let kinds = options.kinds.get(options.kind_count, "options.kinds")?;
            let opened = tapestore::Subscriber::open_with(Options {
                store: PathBuf::from(options.store.get("options.store")?),
                instruments: names.iter().map(name).collect::<Result<_, _>>()?,
                kinds: kinds.iter().copied().map(Kind).collect(),
                wait: options::wait(options.wait, "options.wait")?,
                core: options::core(options.core),
            });
            Ok(Subscriber(opened?))
        })
    })
}

/// The next event, or `TAPESTORE_END` if there is none now. The event's record is valid until the next call with this
/// subscriber, or its close.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_poll(subscriber: Option<&mut Subscriber>, event: Out<'_, Event>) -> Status {
    call(|| {
        let (subscriber, event) = (given(subscriber, "subscriber")?, given(event, "event")?);
        let Some(next) = subscriber.0.poll()? else { return Ok(Status::End) };
        event.write(next.into());
        Ok(Status::Ok)
    })
}

/// Waits until there may be an event, at most for `timeout_ms`, and returns after 100 ms at the latest.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_wait(subscriber: Option<&Subscriber>, timeout_ms: u64) -> Status {
    call(|| {
        given(subscriber, "subscriber")?.0.wait(milliseconds(timeout_ms));
        Ok(Status::Ok)
    })
}

/// A descriptor for `poll` and `epoll`, which is readable when there may be an event. Poll events until `TAPESTORE_END`, wait
/// until the descriptor is readable, and repeat. Never read from it and never close it: it is the subscriber's. It is
/// readable ten times a second without an event too, so that a restart of storage is noticed.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_descriptor(subscriber: Option<&mut Subscriber>, descriptor: Out<'_, c_int>) -> Status {
    call(|| {
        let (subscriber, descriptor) = (given(subscriber, "subscriber")?, given(descriptor, "descriptor")?);
        descriptor.write(subscriber.0.descriptor()?.as_raw_fd());
        Ok(Status::Ok)
    })
}

/// The number of records that were fetched from the store, because the bus had dropped them.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_healed(subscriber: Option<&Subscriber>, records: Out<'_, u64>) -> Status {
    call(|| {
        given(records, "records")?.write(given(subscriber, "subscriber")?.0.healed());
        Ok(Status::Ok)
    })
}

/// Whether the storage process has been alive within the last second. If not, nothing arrives until one starts again.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_is_storage_alive(subscriber: Option<&Subscriber>, is_alive: Out<'_, bool>) -> Status {
    call(|| {
        given(is_alive, "is_alive")?.write(given(subscriber, "subscriber")?.0.is_storage_alive());
        Ok(Status::Ok)
    })
}

/// Ends a subscription. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_subscriber_close(subscriber: Option<Box<Subscriber>>) {
    call(|| {
        drop(subscriber);
        Ok(Status::Ok)
    });
}
