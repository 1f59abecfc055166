/*
 * tapestore: publish, subscribe and read from C and C++.
 *
 * Made from the sources of src/c; do not change it by hand:
 *   TAPESTORE_WRITE_HEADER=1 cargo test -p tapestore-c --test header
 *
 * Link with -ltapestore_c. The page src/docs/c.md has whole programs.
 *
 * Codes: a call returns a tapestore_status. It sets its results if the code is TAPESTORE_OK, and only then; a handle that it
 * could not make is NULL. After a failure, that is any code but TAPESTORE_OK and TAPESTORE_END, tapestore_error_text returns
 * what happened. No argument may be NULL unless its call accepts that. Texts are UTF-8 and end with a zero.
 *
 * Threads: a handle is used by one thread at a time, and may move to another one. Different handles are independent.
 *
 * Pointers: what a call is given must be valid during the call, and is not kept. How long a pointer that it returns is valid
 * is said there; it points to memory that must not be changed. A closed handle must not be used.
 *
 * Fork: a child may use its parent's readers, snapshots, rows and columns. With a publisher of its parent, calls that publish
 * or wait return TAPESTORE_FORKED; with a subscriber, tapestore_subscriber_poll does.
 *
 * Numbers: a price is an int64_t in units of 1e-9, a size a uint64_t in units of 1e-9, a time a uint64_t of nanoseconds since
 * 1970-01-01T00:00:00Z. The greatest number of a type is null: the value is absent. tapestore_record_init sets the nulls of a
 * record.
 */
#ifndef TAPESTORE_H
#define TAPESTORE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The version of this header: that of the library with which it is used, see tapestore_version. */
#define TAPESTORE_HEADER_VERSION "0.1.0"

/** Units of a price or a size in one. */
#define TAPESTORE_ONE 1000000000

/** Bytes of the longest name of an instrument, with its zero. */
#define TAPESTORE_NAME_BYTES 72

/** Every instrument, for tapestore_snapshot_columns. */
#define TAPESTORE_ALL_INSTRUMENTS 0

/** The null of a price. */
#define TAPESTORE_NULL_PRICE INT64_MAX

/** The null of a size. */
#define TAPESTORE_NULL_SIZE UINT64_MAX

/** The null of a time. */
#define TAPESTORE_NULL_TS UINT64_MAX

/** The null of an order's or a trade's id. */
#define TAPESTORE_NULL_ID UINT64_MAX

/** The null of a volume: both of its halves are this. */
#define TAPESTORE_NULL_VOLUME UINT64_MAX

/** The instrument of records that concern no single one. */
#define TAPESTORE_NULL_INSTRUMENT UINT32_MAX

/** The null of ts_in_delta. */
#define TAPESTORE_NULL_DELTA INT32_MAX

/* Sides: of an order, and for trades the aggressor's. */
#define TAPESTORE_SIDE_ASK 'A'
#define TAPESTORE_SIDE_BID 'B'
#define TAPESTORE_SIDE_NONE 'N'

/* Actions of a change of an order or a level. */
#define TAPESTORE_ACTION_ADD 'A'
#define TAPESTORE_ACTION_MODIFY 'M'
#define TAPESTORE_ACTION_CANCEL 'C'
#define TAPESTORE_ACTION_CLEAR 'R'
#define TAPESTORE_ACTION_TRADE 'T'
#define TAPESTORE_ACTION_FILL 'F'
#define TAPESTORE_ACTION_NONE 'N'

/* Bits of the field flags, as in DBN. */
#define TAPESTORE_FLAG_LAST 0x80
#define TAPESTORE_FLAG_TOB 0x40
#define TAPESTORE_FLAG_SNAPSHOT 0x20
#define TAPESTORE_FLAG_MBP 0x10
#define TAPESTORE_FLAG_BAD_TS_RECV 0x08
#define TAPESTORE_FLAG_MAYBE_BAD_BOOK 0x04

/* Numbers of the built-in kinds. Programs define kinds from 0x8000 on. */
#define TAPESTORE_KIND_TRADE 1
#define TAPESTORE_KIND_QUOTE 2
#define TAPESTORE_KIND_BOOK 3
#define TAPESTORE_KIND_DEFINITION 4
#define TAPESTORE_KIND_GAP 5
#define TAPESTORE_KIND_DEPTH10 6
#define TAPESTORE_KIND_BAR_1S 7
#define TAPESTORE_KIND_BAR_1M 8
#define TAPESTORE_KIND_BAR_1H 9
#define TAPESTORE_KIND_BAR_1D 10
#define TAPESTORE_KIND_STATUS 11
#define TAPESTORE_KIND_IMBALANCE 12
#define TAPESTORE_KIND_STATISTIC 13
#define TAPESTORE_KIND_BUST 14
#define TAPESTORE_KIND_CORRECT 15
#define TAPESTORE_KIND_MAPPING 16

/** A publisher of records. Opened by `tapestore_publisher_open`, ended by `tapestore_publisher_close`. */
typedef struct tapestore_publisher tapestore_publisher;

/** A live subscription. Opened by `tapestore_subscriber_open`, ended by `tapestore_subscriber_close`. */
typedef struct tapestore_subscriber tapestore_subscriber;

/** Access to a store, served or at rest. Opened by `tapestore_reader_open`, ended by `tapestore_reader_close`. */
typedef struct tapestore_reader tapestore_reader;

/**
 * A store as of one moment. It never changes. Made by `tapestore_reader_snapshot`, ended by `tapestore_snapshot_close`; it
 * outlives its reader.
 */
typedef struct tapestore_snapshot tapestore_snapshot;

/**
 * Rows of a snapshot, one after another, ended by `tapestore_rows_close`. They keep what they read, also after the snapshot is
 * closed.
 */
typedef struct tapestore_rows tapestore_rows;

/**
 * Columns of a snapshot, a batch of rows at a time, ended by `tapestore_columns_close`. They keep what they read, also after
 * the snapshot is closed.
 */
typedef struct tapestore_columns tapestore_columns;

/** A position in a store that advances. Opened by `tapestore_follow_open`, ended by `tapestore_follow_close`. */
typedef struct tapestore_follow tapestore_follow;

/** The result of a call. A code keeps its number and its meaning; later versions may add codes. */
typedef enum tapestore_status {
    /** The call has done what it is for. */
    TAPESTORE_OK = 0,
    /** No failure: there is no such row, no more rows, or no event now. Results are not set. */
    TAPESTORE_END = 1,
    /** An argument is NULL or breaks a rule: a bug of the program. The text names it. */
    TAPESTORE_INVALID = 2,
    /** The store has no instrument of this name or number. */
    TAPESTORE_NO_INSTRUMENT = 3,
    /** The store has no kind of this number or name. */
    TAPESTORE_NO_KIND = 4,
    /** The kind has no column of this name. */
    TAPESTORE_NO_COLUMN = 5,
    /** Back-pressure: the publisher's ring is full, and the record was not accepted. Try again, conflate or drop. */
    TAPESTORE_FULL = 6,
    /** As `TAPESTORE_FULL`, because the disk of the storage process is full. Of a flush or a close, as `TAPESTORE_TIMEOUT`. */
    TAPESTORE_NO_SPACE = 7,
    /**
     * The limit of time has passed. Accepted records stay in the ring and are still sent. But a close ends the ring: after it,
     * records that storage has not received are lost.
     */
    TAPESTORE_TIMEOUT = 8,
    /** No storage process serves the store, or it is recovering. Try again later. */
    TAPESTORE_STORAGE_DOWN = 9,
    /** A live process publishes under this number; `take_over` fences it. */
    TAPESTORE_TAKEN = 10,
    /** A newer process publishes under this number. This publisher cannot continue. */
    TAPESTORE_FENCED = 11,
    /** The storage process refuses the request for good. The text has the reason. */
    TAPESTORE_REFUSED = 12,
    /** This host is not the leader of its cluster and forwards nothing to it. */
    TAPESTORE_NOT_LEADER = 13,
    /** Another user owns the store. */
    TAPESTORE_DENIED = 14,
    /** A file of the store is damaged or missing. The text names it. */
    TAPESTORE_CORRUPT = 15,
    /** The file or the storage process is of another release. */
    TAPESTORE_VERSION = 16,
    /** Records that were read have been withdrawn. `tapestore_follow_position` returns the first. */
    TAPESTORE_WITHDRAWN = 17,
    /** Retention has removed the next records. `tapestore_follow_position` returns the first that is left. */
    TAPESTORE_EXPIRED = 18,
    /** A limit of the store is reached. */
    TAPESTORE_LIMIT = 19,
    /** Memory, shared memory, descriptors or memory maps are exhausted. */
    TAPESTORE_EXHAUSTED = 20,
    /** The operating system refused an operation on a file. */
    TAPESTORE_IO = 21,
    /** The bus in shared memory refused an operation. */
    TAPESTORE_BUS = 22,
    /** The handle belongs to the process from which this one was forked. */
    TAPESTORE_FORKED = 23,
    /** A bug of the library. Close the handle; the text says what happened. */
    TAPESTORE_INTERNAL = 24,
    /** The snapshot keeps SSTables mapped that were removed since, and storage needs their room. Close it and take a new one. */
    TAPESTORE_SNAPSHOT_TOO_OLD = 25,
} tapestore_status;

/** How durable a record must be before storage acknowledges it. */
typedef enum tapestore_durability {
    /** No guarantee; losses are counted. */
    TAPESTORE_DURABILITY_NONE = 0,
    /** In the log file: the record survives the death of any process. It is on the disk within 50 ms or 4 MiB. */
    TAPESTORE_DURABILITY_OS = 1,
    /** On the disk: the record survives the loss of power. */
    TAPESTORE_DURABILITY_FSYNC = 2,
    /**
     * Committed, and on the disk of a learner: for a pair of hosts. Without a learner it is the same as quorum. A cluster with
     * `flush = "interval"` refuses it.
     */
    TAPESTORE_DURABILITY_STANDBY = 3,
    /**
     * On the disks of a majority of the cluster's hosts: the record survives the loss of the others. Without a cluster it is
     * the same as fsync. A cluster with `flush = "interval"` refuses it.
     */
    TAPESTORE_DURABILITY_QUORUM = 4,
    /**
     * In a cluster with `flush = "interval"`: in the memory and the log files of a majority of the hosts. The record survives
     * the death of any process and the loss of a minority of hosts. It is lost if a majority loses power within the interval.
     * In every other store it is the same as quorum.
     */
    TAPESTORE_DURABILITY_QUORUM_OS = 5,
} tapestore_durability;

/** How a call waits. */
typedef enum tapestore_wait {
    /** It sleeps until it is woken. */
    TAPESTORE_WAIT_BLOCKING = 0,
    /** It spins, then yields the core, then sleeps. */
    TAPESTORE_WAIT_ADAPTIVE = 1,
    /** It never gives up its core: the shortest latency. */
    TAPESTORE_WAIT_BUSY = 2,
} tapestore_wait;

/** How far a snapshot or a follower reads. */
typedef enum tapestore_at {
    /** Everything that storage has appended. A loss of power can withdraw the newest records. */
    TAPESTORE_AT_APPENDED = 0,
    /** What is durable on this host. */
    TAPESTORE_AT_DURABLE = 1,
    /**
     * What is never withdrawn. In a cluster with `flush = "interval"` it is in the memory of a majority of hosts, and is
     * withdrawn if those lose power.
     */
    TAPESTORE_AT_COMMITTED = 2,
    /** What is in SSTables, the store's files: a part of the store. */
    TAPESTORE_AT_FLUSHED = 3,
} tapestore_at;

/** The options of a publisher. Set all of them by `tapestore_publisher_options_init`, then change some. */
typedef struct tapestore_publisher_options {
    /** The directory of the store. It must be set. */
    const char *store;
    /** The publisher's number. One process at a time publishes under it. It must be set. */
    uint16_t publisher;
    /** Whether records go to live subscribers too. Default: true. */
    bool live;
    /** Whether a live process that publishes under this number is fenced. Default: false, and then opening fails. */
    bool take_over;
    /** A `tapestore_durability`: at which level a record leaves the ring. Default: `TAPESTORE_DURABILITY_FSYNC`. */
    uint32_t durability;
    /** A `tapestore_wait`: how calls wait for room in the ring and for acknowledgements. Default: `TAPESTORE_WAIT_ADAPTIVE`. */
    uint32_t wait;
    /** The core to which the thread that opens the publisher is pinned. Default: -1, none. */
    int32_t core;
    /** Bytes of the ring, which keeps records until they are acknowledged. Default: 64 MiB. */
    uint64_t ring_bytes;
    /** How long a call waits for room in the ring, in microseconds. Default: 5000. */
    uint64_t send_timeout_us;
    /** How long opening waits for a storage process, in milliseconds. Default: 10000. */
    uint64_t open_timeout_ms;
} tapestore_publisher_options;

/** How far a publisher's records have come. Numbers are its own, from 1 on; 0 is none. */
typedef struct tapestore_progress {
    /** The last record in the ring. */
    uint64_t published;
    /** The last record in the log file. */
    uint64_t accepted;
    /** The last record on the disk. */
    uint64_t durable;
    /** The last committed record. */
    uint64_t committed;
    /** The number in the store (LSN) of the last record in the log file. */
    uint64_t accepted_lsn;
    /** Batches sent. */
    uint64_t batches;
    /** How often records were sent again. */
    uint64_t rewinds;
    /** How often the publisher has attached again. */
    uint64_t reattached;
    /** The epoch of these numbers. A new epoch begins when the publisher is opened again, or has lost records. */
    uint32_t epoch;
} tapestore_progress;

/** The options of a subscriber. Set all of them by `tapestore_subscriber_options_init`, then change some. */
typedef struct tapestore_subscriber_options {
    /** The directory of the store. It must be set. */
    const char *store;
    /** Names of the instruments to receive. A name may be registered later. Default: NULL, all instruments. */
    const char *const *instruments;
    /** The number of names. */
    size_t instrument_count;
    /** Numbers of the kinds to receive. Default: NULL, all kinds. */
    const uint16_t *kinds;
    /** The number of kinds. */
    size_t kind_count;
    /** A `tapestore_wait`: how `tapestore_subscriber_wait` waits. Default: `TAPESTORE_WAIT_BLOCKING`. */
    uint32_t wait;
    /** The core to which the thread that opens the subscriber is pinned. Default: -1, none. */
    int32_t core;
} tapestore_subscriber_options;

/** What an event is. */
typedef enum tapestore_event_type {
    /** A record. */
    TAPESTORE_EVENT_RECORD = 0,
    /** Records that were not found in time, from `pub_seq` to `last`. They may still be stored later. */
    TAPESTORE_EVENT_GAP = 1,
    /** The store is now served from another place: it was moved, or restored from a backup. */
    TAPESTORE_EVENT_REOPENED = 2,
} tapestore_event_type;

/** An event of a subscriber. Fields that its type does not have are zero. */
typedef struct tapestore_event {
    /** What it is. */
    tapestore_event_type type;
    /** Record, gap: the publisher's epoch. */
    uint32_t epoch;
    /** Record: its number in the epoch. Gap: the first number. */
    uint64_t pub_seq;
    /** Gap: the last number; `UINT64_MAX` if the epoch ended and their count is unknown. */
    uint64_t last;
    /** Record: the record, a struct of `kind`, aligned to 8 bytes. It is the library's and must not be changed. */
    const void *record;
    /** Record: its bytes. */
    size_t bytes;
    /** Reopened: the timeline of the store. */
    uint64_t timeline;
    /** Record: its instrument. */
    uint32_t instrument;
    /** Record: its kind. */
    uint16_t kind;
    /** Record, gap: the publisher. */
    uint16_t publisher;
    /** Record: whether it was fetched from the store, because the bus had dropped it. */
    bool healed;
    /**
     * Reopened: whether the log continues. If not, this is another copy of the store, and the next events begin at the
     * publishers' current positions.
     */
    bool continues;
} tapestore_event;

/** One instrument's records of one kind. */
typedef struct tapestore_series {
    /** The instrument. */
    uint32_t instrument;
    /** The kind. */
    uint16_t kind;
} tapestore_series;

/** A stored record. */
typedef struct tapestore_row {
    /** Its number in the store. */
    uint64_t lsn;
    /** The time that sorts it. */
    uint64_t index_time;
    /** The record, a struct of `kind`, aligned to 8 bytes. It is the library's and must not be changed. */
    const void *record;
    /** Bytes of the record. */
    size_t bytes;
    /** Its instrument. */
    uint32_t instrument;
    /** Its kind. */
    uint16_t kind;
} tapestore_row;

/** The name of the code `status`, such as `TAPESTORE_OK`. It is valid for ever. */
const char *tapestore_status_name(int status);

/**
 * The text of the last failure on this thread: what happened, to what, and what to do. Empty if there was none. It is valid
 * until the next failure on this thread.
 */
const char *tapestore_error_text(void);

/** The version of this library. Use the header and the library of one version: this text is `TAPESTORE_HEADER_VERSION`. */
const char *tapestore_version(void);

/** Nanoseconds since 1970-01-01T00:00:00Z by the host's clock. */
uint64_t tapestore_now(void);

/**
 * Installs a handler of SIGBUS in this process. A page of a mapped file that cannot be read is then an error of a call;
 * without it the process ends with the signal.
 */
tapestore_status tapestore_guard_pages(void);

/**
 * Sets all of a record's bytes: its kind to `kind`, each field that has a null to its null, the others to zero. Then set the
 * fields that the record has. Zero is a value: a price that stays zero is published as a price of zero. `bytes` is the size of
 * the kind's struct; another size is `TAPESTORE_INVALID`. A kind of a program's own is accepted after a publisher or a reader
 * of its store was opened.
 */
tapestore_status tapestore_record_init(uint16_t kind, void *record, size_t bytes);

/** Sets all `options` to their defaults. */
tapestore_status tapestore_publisher_options_init(tapestore_publisher_options *options);

/** Opens a publisher. Returns when a storage process has accepted it. */
tapestore_status tapestore_publisher_open(const tapestore_publisher_options *options, tapestore_publisher **publisher);

/** The number of the instrument called `name` in this store. A new name is registered for good. */
tapestore_status tapestore_publisher_instrument(
    tapestore_publisher *publisher,
    const char *name,
    uint32_t *instrument);

/**
 * Accepts a record and sends it, with all records staged before it. `record` is one of the structs below, or a kind that
 * the store knows; `bytes` is its size. The record is copied. `pub_seq` may be NULL: the record's number at this publisher.
 *
 * `TAPESTORE_OK` means: the record is stored once, in the order of the calls, unless this process dies before it is
 * acknowledged. `tapestore_publisher_flush` waits for that. After `TAPESTORE_FULL` the record was not accepted.
 */
tapestore_status tapestore_publisher_publish(
    tapestore_publisher *publisher,
    const void *record,
    size_t bytes,
    uint64_t *pub_seq);

/**
 * Accepts a record as `tapestore_publisher_publish` does, but sends it with later ones: by the next
 * `tapestore_publisher_send` or `tapestore_publisher_publish`. A batch costs little more than a single record.
 */
tapestore_status tapestore_publisher_stage(
    tapestore_publisher *publisher,
    const void *record,
    size_t bytes,
    uint64_t *pub_seq);

/** Sends all staged records. */
tapestore_status tapestore_publisher_send(tapestore_publisher *publisher);

/**
 * Waits until all records accepted so far have reached the level `durability`, a `tapestore_durability`.
 * `TAPESTORE_TIMEOUT`, `TAPESTORE_NO_SPACE`: they have not within `timeout_ms`, and are still sent. `progress` may be NULL.
 */
tapestore_status tapestore_publisher_flush(
    tapestore_publisher *publisher,
    uint32_t durability,
    uint64_t timeout_ms,
    tapestore_progress *progress);

/** How far the records have come, by the acknowledgements up to now. */
tapestore_status tapestore_publisher_progress(tapestore_publisher *publisher, tapestore_progress *progress);

/**
 * Counts the records lost since the last call: the store had lost the end of its log, and they were no longer in the ring.
 * The store has a record of kind `TAPESTORE_KIND_GAP` for them.
 */
tapestore_status tapestore_publisher_take_lost(tapestore_publisher *publisher, uint64_t *records);

/**
 * Waits until all accepted records have reached the publisher's level, at most for `timeout_ms`, and detaches. The handle is
 * invalid afterwards, whatever the call returns. `TAPESTORE_TIMEOUT`, `TAPESTORE_NO_SPACE`: records that storage has not
 * received are lost. NULL is accepted.
 */
tapestore_status tapestore_publisher_close(tapestore_publisher *publisher, uint64_t timeout_ms);

/** Sets all `options` to their defaults. */
tapestore_status tapestore_subscriber_options_init(tapestore_subscriber_options *options);

/** Subscribes. Events begin with the next record of each publisher. */
tapestore_status tapestore_subscriber_open(
    const tapestore_subscriber_options *options,
    tapestore_subscriber **subscriber);

/**
 * The next event, or `TAPESTORE_END` if there is none now. The event's record is valid until the next call with this
 * subscriber, or its close.
 */
tapestore_status tapestore_subscriber_poll(tapestore_subscriber *subscriber, tapestore_event *event);

/** Waits until there may be an event, at most for `timeout_ms`, and returns after 100 ms at the latest. */
tapestore_status tapestore_subscriber_wait(const tapestore_subscriber *subscriber, uint64_t timeout_ms);

/**
 * A descriptor for `poll` and `epoll`, which is readable when there may be an event. Poll events until `TAPESTORE_END`, wait
 * until the descriptor is readable, and repeat. Never read from it and never close it: it is the subscriber's. It is
 * readable ten times a second without an event too, so that a restart of storage is noticed.
 */
tapestore_status tapestore_subscriber_descriptor(tapestore_subscriber *subscriber, int *descriptor);

/** The number of records that were fetched from the store, because the bus had dropped them. */
tapestore_status tapestore_subscriber_healed(const tapestore_subscriber *subscriber, uint64_t *records);

/** Whether the storage process has been alive within the last second. If not, nothing arrives until one starts again. */
tapestore_status tapestore_subscriber_is_storage_alive(const tapestore_subscriber *subscriber, bool *is_alive);

/** Ends a subscription. NULL is accepted. */
void tapestore_subscriber_close(tapestore_subscriber *subscriber);

/**
 * Opens the store in the directory `store`: by its shared memory while a storage process serves it, else by its files. Both
 * are only read.
 */
tapestore_status tapestore_reader_open(const char *store, tapestore_reader **reader);

/** Whether the store is read from its files, because no storage process serves it. */
tapestore_status tapestore_reader_is_at_rest(const tapestore_reader *reader, bool *is_at_rest);

/** The number of the instrument called `name`, or `TAPESTORE_NO_INSTRUMENT`. */
tapestore_status tapestore_reader_instrument(tapestore_reader *reader, const char *name, uint32_t *instrument);

/** The name of an instrument, ended by a zero, or `TAPESTORE_NO_INSTRUMENT`. `TAPESTORE_NAME_BYTES` are enough for any name. */
tapestore_status tapestore_reader_instrument_name(
    tapestore_reader *reader,
    uint32_t instrument,
    char *name,
    size_t bytes);

/**
 * The number of the kind called `name`, built in or defined by a program, or `TAPESTORE_NO_KIND`. Where several layouts have
 * one name, write the number too: `signal-8001`.
 */
tapestore_status tapestore_reader_kind(tapestore_reader *reader, const char *name, uint16_t *kind);

/** The whole store now, up to `at`, a `tapestore_at`. */
tapestore_status tapestore_reader_snapshot(tapestore_reader *reader, uint32_t at, tapestore_snapshot **snapshot);

/** Ends a reader. Its snapshots stay valid. NULL is accepted. */
void tapestore_reader_close(tapestore_reader *reader);

/** The number (LSN) of the first record; 1 if there is none. */
tapestore_status tapestore_snapshot_first(const tapestore_snapshot *snapshot, uint64_t *lsn);

/** The number (LSN) of the last record; 0 if there is none. */
tapestore_status tapestore_snapshot_last(const tapestore_snapshot *snapshot, uint64_t *lsn);

/**
 * The record with the number `lsn`, or `TAPESTORE_END`. The row's record is valid until the next call with this snapshot, or
 * its close.
 */
tapestore_status tapestore_snapshot_get(tapestore_snapshot *snapshot, uint64_t lsn, tapestore_row *row);

/**
 * The newest record of the series that is not after `time`, or `TAPESTORE_END`: the one with the greatest index time, and of
 * several the one with the greatest LSN. `UINT64_MAX` is the newest of all. The row's record is valid until the next call
 * with this snapshot, or its close.
 */
tapestore_status tapestore_snapshot_as_of(
    tapestore_snapshot *snapshot,
    uint32_t instrument,
    uint16_t kind,
    uint64_t time,
    tapestore_row *row);

/** The newest record of each instrument that has records of `kind`, in the order of instruments. */
tapestore_status tapestore_snapshot_latest(tapestore_snapshot *snapshot, uint16_t kind, tapestore_rows **rows);

/** The records of the series whose lookup column `column` (such as `order_id`) is `id`, in (index time, LSN) order. */
tapestore_status tapestore_snapshot_find(
    const tapestore_snapshot *snapshot,
    uint32_t instrument,
    uint16_t kind,
    const char *column,
    uint64_t id,
    tapestore_rows **rows);

/**
 * The records of the series with an index time from `from` to `to`, both included, in (index time, LSN) order. Use 0 and
 * `UINT64_MAX` for all.
 */
tapestore_status tapestore_snapshot_scan(
    const tapestore_snapshot *snapshot,
    uint32_t instrument,
    uint16_t kind,
    uint64_t from,
    uint64_t to,
    tapestore_rows **rows);

/** The records of several series, merged in (index time, LSN) order. A `count` of 0 is all series of the store. */
tapestore_status tapestore_snapshot_replay(
    const tapestore_snapshot *snapshot,
    const tapestore_series *series,
    size_t count,
    uint64_t from,
    uint64_t to,
    tapestore_rows **rows);

/**
 * The records of `kind` as columns, of `instrument` or of `TAPESTORE_ALL_INSTRUMENTS`, with an index time from `from` to `to`,
 * both included.
 */
tapestore_status tapestore_snapshot_columns(
    const tapestore_snapshot *snapshot,
    uint16_t kind,
    uint32_t instrument,
    uint64_t from,
    uint64_t to,
    tapestore_columns **columns);

/** Ends a snapshot. Its rows and columns stay valid. NULL is accepted. */
void tapestore_snapshot_close(tapestore_snapshot *snapshot);

/**
 * The next row; `TAPESTORE_END` after the last. The row's record is valid until the next call with these rows, or their
 * close. After a failure the rows end, although some are left.
 */
tapestore_status tapestore_rows_next(tapestore_rows *rows, tapestore_row *row);

/** Ends the rows. NULL is accepted. */
void tapestore_rows_close(tapestore_rows *rows);

/**
 * Reads the next batch and returns its number of rows; `TAPESTORE_END` after the last.
 *
 * The values of a batch lie in the mapped file, or for the newest records in a buffer. They are valid until the next call
 * of this function, or the close. A batch of a file is sorted by instrument, index time and LSN; batches are not sorted.
 * In a process with `tapestore_guard_pages` a page of the last batch that went bad is a failure of the next call: use what
 * was computed of a batch when that call has succeeded.
 */
tapestore_status tapestore_columns_next(tapestore_columns *columns, size_t *rows);

/** The numbers in the store (LSN) of the rows of the batch. */
tapestore_status tapestore_columns_lsns(const tapestore_columns *columns, const uint64_t **lsns);

/** The times when storage accepted the rows of the batch. */
tapestore_status tapestore_columns_ingest_times(const tapestore_columns *columns, const uint64_t **times);

/**
 * The values of the column `name`, a field of the kind's struct, for the rows of the batch; a level of `depth10` is named
 * like `bid_px_00`. `element_bytes` may be NULL: the size of a value. `TAPESTORE_NO_COLUMN` also for reserved fields.
 */
tapestore_status tapestore_columns_column(
    const tapestore_columns *columns,
    const char *name,
    const void **values,
    size_t *element_bytes);

/** Ends the columns. NULL is accepted. */
void tapestore_columns_close(tapestore_columns *columns);

/**
 * Follows the store in the directory `store` in LSN order, from the record `lsn` on and up to `at`, a `tapestore_at`, and
 * continues as records arrive.
 */
tapestore_status tapestore_follow_open(const char *store, uint64_t lsn, uint32_t at, tapestore_follow **follow);

/**
 * The next row, or `TAPESTORE_END` if none is visible now: wait, and call again. The row's record is valid until the next
 * call with this follower, or its close.
 *
 * After `TAPESTORE_WITHDRAWN` drop what was read from the follower's position on; it continues there. After
 * `TAPESTORE_EXPIRED` it continues after the records that are gone. `TAPESTORE_STORAGE_DOWN`: storage recovers, or everything
 * in the files of a store at rest has been read.
 */
tapestore_status tapestore_follow_poll(tapestore_follow *follow, tapestore_row *row);

/** Sleeps until there may be a row, at most for `timeout_ms`. */
tapestore_status tapestore_follow_wait(const tapestore_follow *follow, uint64_t timeout_ms);

/** The number (LSN) of the next row. */
tapestore_status tapestore_follow_position(const tapestore_follow *follow, uint64_t *lsn);

/** Ends a follower. NULL is accepted. */
void tapestore_follow_close(tapestore_follow *follow);

/** A price in units of 1e-9: 189.98 is 189980000000. Null is TAPESTORE_NULL_PRICE. */
typedef int64_t tapestore_price;

/** A size in units of 1e-9: 100 is 100000000000. Null is TAPESTORE_NULL_SIZE. */
typedef uint64_t tapestore_size;

/** A time: nanoseconds since 1970-01-01T00:00:00Z. Null is TAPESTORE_NULL_TS. */
typedef uint64_t tapestore_ts;

/** A sum of sizes, 128 bits in units of 1e-9. */
typedef struct tapestore_volume {
    uint64_t low;
    uint64_t high;
} tapestore_volume;

/** The first 16 bytes of every record. */
typedef struct tapestore_head {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
} tapestore_head;

/*
 * The built-in kinds. tapestore_record_init sets a record's kind, its nulls and its reserved bytes, which are zero; then set
 * the fields that it has. memset does not do that: zero is a value, so fields of zero are no nulls. source is the venue feed,
 * ts_event the time by the venue's clock, ts_recv the time of receipt. Records are sorted by ts_recv, or by ts_event where a
 * kind has no ts_recv. Fields have the meanings of DBN; the documentation of the library's record module describes them.
 */

/** Kind 1, trade. */
typedef struct tapestore_trade {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    tapestore_price price;
    tapestore_size size;
    uint64_t trade_id;
    uint32_t sequence;
    int32_t ts_in_delta;
    char action;
    char side;
    uint8_t flags;
    uint8_t depth;
    uint8_t reserved[4];
} tapestore_trade;
static_assert(sizeof(tapestore_trade) == 64, "size of trade");
static_assert(offsetof(tapestore_trade, kind) == 0, "trade.kind");
static_assert(offsetof(tapestore_trade, source) == 2, "trade.source");
static_assert(offsetof(tapestore_trade, instrument) == 4, "trade.instrument");
static_assert(offsetof(tapestore_trade, ts_event) == 8, "trade.ts_event");
static_assert(offsetof(tapestore_trade, ts_recv) == 16, "trade.ts_recv");
static_assert(offsetof(tapestore_trade, price) == 24, "trade.price");
static_assert(offsetof(tapestore_trade, size) == 32, "trade.size");
static_assert(offsetof(tapestore_trade, trade_id) == 40, "trade.trade_id");
static_assert(offsetof(tapestore_trade, sequence) == 48, "trade.sequence");
static_assert(offsetof(tapestore_trade, ts_in_delta) == 52, "trade.ts_in_delta");
static_assert(offsetof(tapestore_trade, action) == 56, "trade.action");
static_assert(offsetof(tapestore_trade, side) == 57, "trade.side");
static_assert(offsetof(tapestore_trade, flags) == 58, "trade.flags");
static_assert(offsetof(tapestore_trade, depth) == 59, "trade.depth");
static_assert(offsetof(tapestore_trade, reserved) == 60, "trade.reserved");

/** Kind 2, quote. */
typedef struct tapestore_quote {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    tapestore_price bid_px;
    tapestore_price ask_px;
    tapestore_size bid_sz;
    tapestore_size ask_sz;
    uint32_t bid_ct;
    uint32_t ask_ct;
    tapestore_price price;
    tapestore_size size;
    uint32_t sequence;
    int32_t ts_in_delta;
    char action;
    char side;
    uint8_t flags;
    uint8_t depth;
    uint8_t variant;
    uint8_t reserved[3];
} tapestore_quote;
static_assert(sizeof(tapestore_quote) == 96, "size of quote");
static_assert(offsetof(tapestore_quote, kind) == 0, "quote.kind");
static_assert(offsetof(tapestore_quote, source) == 2, "quote.source");
static_assert(offsetof(tapestore_quote, instrument) == 4, "quote.instrument");
static_assert(offsetof(tapestore_quote, ts_event) == 8, "quote.ts_event");
static_assert(offsetof(tapestore_quote, ts_recv) == 16, "quote.ts_recv");
static_assert(offsetof(tapestore_quote, bid_px) == 24, "quote.bid_px");
static_assert(offsetof(tapestore_quote, ask_px) == 32, "quote.ask_px");
static_assert(offsetof(tapestore_quote, bid_sz) == 40, "quote.bid_sz");
static_assert(offsetof(tapestore_quote, ask_sz) == 48, "quote.ask_sz");
static_assert(offsetof(tapestore_quote, bid_ct) == 56, "quote.bid_ct");
static_assert(offsetof(tapestore_quote, ask_ct) == 60, "quote.ask_ct");
static_assert(offsetof(tapestore_quote, price) == 64, "quote.price");
static_assert(offsetof(tapestore_quote, size) == 72, "quote.size");
static_assert(offsetof(tapestore_quote, sequence) == 80, "quote.sequence");
static_assert(offsetof(tapestore_quote, ts_in_delta) == 84, "quote.ts_in_delta");
static_assert(offsetof(tapestore_quote, action) == 88, "quote.action");
static_assert(offsetof(tapestore_quote, side) == 89, "quote.side");
static_assert(offsetof(tapestore_quote, flags) == 90, "quote.flags");
static_assert(offsetof(tapestore_quote, depth) == 91, "quote.depth");
static_assert(offsetof(tapestore_quote, variant) == 92, "quote.variant");
static_assert(offsetof(tapestore_quote, reserved) == 93, "quote.reserved");

/** Kind 3, book. */
typedef struct tapestore_book_order {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    uint64_t order_id;
    tapestore_price price;
    tapestore_size size;
    uint32_t sequence;
    int32_t ts_in_delta;
    uint8_t flags;
    uint8_t channel_id;
    char action;
    char side;
    uint8_t reserved[4];
} tapestore_book_order;
static_assert(sizeof(tapestore_book_order) == 64, "size of book_order");
static_assert(offsetof(tapestore_book_order, kind) == 0, "book_order.kind");
static_assert(offsetof(tapestore_book_order, source) == 2, "book_order.source");
static_assert(offsetof(tapestore_book_order, instrument) == 4, "book_order.instrument");
static_assert(offsetof(tapestore_book_order, ts_event) == 8, "book_order.ts_event");
static_assert(offsetof(tapestore_book_order, ts_recv) == 16, "book_order.ts_recv");
static_assert(offsetof(tapestore_book_order, order_id) == 24, "book_order.order_id");
static_assert(offsetof(tapestore_book_order, price) == 32, "book_order.price");
static_assert(offsetof(tapestore_book_order, size) == 40, "book_order.size");
static_assert(offsetof(tapestore_book_order, sequence) == 48, "book_order.sequence");
static_assert(offsetof(tapestore_book_order, ts_in_delta) == 52, "book_order.ts_in_delta");
static_assert(offsetof(tapestore_book_order, flags) == 56, "book_order.flags");
static_assert(offsetof(tapestore_book_order, channel_id) == 57, "book_order.channel_id");
static_assert(offsetof(tapestore_book_order, action) == 58, "book_order.action");
static_assert(offsetof(tapestore_book_order, side) == 59, "book_order.side");
static_assert(offsetof(tapestore_book_order, reserved) == 60, "book_order.reserved");

/** Kind 4, definition. */
typedef struct tapestore_definition {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    tapestore_price min_price_increment;
    tapestore_price display_factor;
    tapestore_ts expiration;
    tapestore_ts activation;
    tapestore_price high_limit_price;
    tapestore_price low_limit_price;
    tapestore_price max_price_variation;
    tapestore_price unit_of_measure_qty;
    tapestore_price min_price_increment_amount;
    tapestore_price price_ratio;
    tapestore_price strike_price;
    uint64_t raw_instrument_id;
    tapestore_price leg_price;
    tapestore_price leg_delta;
    int32_t inst_attrib_value;
    uint32_t underlying_id;
    int32_t market_depth_implied;
    int32_t market_depth;
    uint32_t market_segment_id;
    uint32_t max_trade_vol;
    int32_t min_lot_size;
    int32_t min_lot_size_block;
    int32_t min_lot_size_round_lot;
    uint32_t min_trade_vol;
    int32_t contract_multiplier;
    int32_t decay_quantity;
    int32_t original_contract_size;
    uint32_t leg_instrument_id;
    int32_t leg_ratio_price_numerator;
    int32_t leg_ratio_price_denominator;
    int32_t leg_ratio_qty_numerator;
    int32_t leg_ratio_qty_denominator;
    uint32_t leg_underlying_id;
    int16_t appl_id;
    uint16_t maturity_year;
    uint16_t decay_start_date;
    uint16_t channel_id;
    uint16_t leg_count;
    uint16_t leg_index;
    char currency[4];
    char settl_currency[4];
    char secsubtype[6];
    char raw_symbol[71];
    char group[21];
    char exchange[5];
    char asset[11];
    char cfi[7];
    char security_type[7];
    char unit_of_measure[31];
    char underlying[21];
    char strike_price_currency[4];
    char leg_raw_symbol[71];
    char instrument_class;
    char match_algorithm;
    uint8_t main_fraction;
    uint8_t price_display_format;
    uint8_t sub_fraction;
    uint8_t underlying_product;
    char security_update_action;
    uint8_t maturity_month;
    uint8_t maturity_day;
    uint8_t maturity_week;
    char user_defined_instrument;
    int8_t contract_multiplier_unit;
    int8_t flow_schedule_type;
    uint8_t tick_rule;
    char leg_instrument_class;
    char leg_side;
    uint8_t reserved[17];
    tapestore_size min_size_increment;
    tapestore_size min_size;
} tapestore_definition;
static_assert(sizeof(tapestore_definition) == 536, "size of definition");
static_assert(offsetof(tapestore_definition, kind) == 0, "definition.kind");
static_assert(offsetof(tapestore_definition, source) == 2, "definition.source");
static_assert(offsetof(tapestore_definition, instrument) == 4, "definition.instrument");
static_assert(offsetof(tapestore_definition, ts_event) == 8, "definition.ts_event");
static_assert(offsetof(tapestore_definition, ts_recv) == 16, "definition.ts_recv");
static_assert(offsetof(tapestore_definition, min_price_increment) == 24, "definition.min_price_increment");
static_assert(offsetof(tapestore_definition, display_factor) == 32, "definition.display_factor");
static_assert(offsetof(tapestore_definition, expiration) == 40, "definition.expiration");
static_assert(offsetof(tapestore_definition, activation) == 48, "definition.activation");
static_assert(offsetof(tapestore_definition, high_limit_price) == 56, "definition.high_limit_price");
static_assert(offsetof(tapestore_definition, low_limit_price) == 64, "definition.low_limit_price");
static_assert(offsetof(tapestore_definition, max_price_variation) == 72, "definition.max_price_variation");
static_assert(offsetof(tapestore_definition, unit_of_measure_qty) == 80, "definition.unit_of_measure_qty");
static_assert(offsetof(tapestore_definition, min_price_increment_amount) == 88, "definition.min_price_increment_amount");
static_assert(offsetof(tapestore_definition, price_ratio) == 96, "definition.price_ratio");
static_assert(offsetof(tapestore_definition, strike_price) == 104, "definition.strike_price");
static_assert(offsetof(tapestore_definition, raw_instrument_id) == 112, "definition.raw_instrument_id");
static_assert(offsetof(tapestore_definition, leg_price) == 120, "definition.leg_price");
static_assert(offsetof(tapestore_definition, leg_delta) == 128, "definition.leg_delta");
static_assert(offsetof(tapestore_definition, inst_attrib_value) == 136, "definition.inst_attrib_value");
static_assert(offsetof(tapestore_definition, underlying_id) == 140, "definition.underlying_id");
static_assert(offsetof(tapestore_definition, market_depth_implied) == 144, "definition.market_depth_implied");
static_assert(offsetof(tapestore_definition, market_depth) == 148, "definition.market_depth");
static_assert(offsetof(tapestore_definition, market_segment_id) == 152, "definition.market_segment_id");
static_assert(offsetof(tapestore_definition, max_trade_vol) == 156, "definition.max_trade_vol");
static_assert(offsetof(tapestore_definition, min_lot_size) == 160, "definition.min_lot_size");
static_assert(offsetof(tapestore_definition, min_lot_size_block) == 164, "definition.min_lot_size_block");
static_assert(offsetof(tapestore_definition, min_lot_size_round_lot) == 168, "definition.min_lot_size_round_lot");
static_assert(offsetof(tapestore_definition, min_trade_vol) == 172, "definition.min_trade_vol");
static_assert(offsetof(tapestore_definition, contract_multiplier) == 176, "definition.contract_multiplier");
static_assert(offsetof(tapestore_definition, decay_quantity) == 180, "definition.decay_quantity");
static_assert(offsetof(tapestore_definition, original_contract_size) == 184, "definition.original_contract_size");
static_assert(offsetof(tapestore_definition, leg_instrument_id) == 188, "definition.leg_instrument_id");
static_assert(offsetof(tapestore_definition, leg_ratio_price_numerator) == 192, "definition.leg_ratio_price_numerator");
static_assert(offsetof(tapestore_definition, leg_ratio_price_denominator) == 196, "definition.leg_ratio_price_denominator");
static_assert(offsetof(tapestore_definition, leg_ratio_qty_numerator) == 200, "definition.leg_ratio_qty_numerator");
static_assert(offsetof(tapestore_definition, leg_ratio_qty_denominator) == 204, "definition.leg_ratio_qty_denominator");
static_assert(offsetof(tapestore_definition, leg_underlying_id) == 208, "definition.leg_underlying_id");
static_assert(offsetof(tapestore_definition, appl_id) == 212, "definition.appl_id");
static_assert(offsetof(tapestore_definition, maturity_year) == 214, "definition.maturity_year");
static_assert(offsetof(tapestore_definition, decay_start_date) == 216, "definition.decay_start_date");
static_assert(offsetof(tapestore_definition, channel_id) == 218, "definition.channel_id");
static_assert(offsetof(tapestore_definition, leg_count) == 220, "definition.leg_count");
static_assert(offsetof(tapestore_definition, leg_index) == 222, "definition.leg_index");
static_assert(offsetof(tapestore_definition, currency) == 224, "definition.currency");
static_assert(offsetof(tapestore_definition, settl_currency) == 228, "definition.settl_currency");
static_assert(offsetof(tapestore_definition, secsubtype) == 232, "definition.secsubtype");
static_assert(offsetof(tapestore_definition, raw_symbol) == 238, "definition.raw_symbol");
static_assert(offsetof(tapestore_definition, group) == 309, "definition.group");
static_assert(offsetof(tapestore_definition, exchange) == 330, "definition.exchange");
static_assert(offsetof(tapestore_definition, asset) == 335, "definition.asset");
static_assert(offsetof(tapestore_definition, cfi) == 346, "definition.cfi");
static_assert(offsetof(tapestore_definition, security_type) == 353, "definition.security_type");
static_assert(offsetof(tapestore_definition, unit_of_measure) == 360, "definition.unit_of_measure");
static_assert(offsetof(tapestore_definition, underlying) == 391, "definition.underlying");
static_assert(offsetof(tapestore_definition, strike_price_currency) == 412, "definition.strike_price_currency");
static_assert(offsetof(tapestore_definition, leg_raw_symbol) == 416, "definition.leg_raw_symbol");
static_assert(offsetof(tapestore_definition, instrument_class) == 487, "definition.instrument_class");
static_assert(offsetof(tapestore_definition, match_algorithm) == 488, "definition.match_algorithm");
static_assert(offsetof(tapestore_definition, main_fraction) == 489, "definition.main_fraction");
static_assert(offsetof(tapestore_definition, price_display_format) == 490, "definition.price_display_format");
static_assert(offsetof(tapestore_definition, sub_fraction) == 491, "definition.sub_fraction");
static_assert(offsetof(tapestore_definition, underlying_product) == 492, "definition.underlying_product");
static_assert(offsetof(tapestore_definition, security_update_action) == 493, "definition.security_update_action");
static_assert(offsetof(tapestore_definition, maturity_month) == 494, "definition.maturity_month");
static_assert(offsetof(tapestore_definition, maturity_day) == 495, "definition.maturity_day");
static_assert(offsetof(tapestore_definition, maturity_week) == 496, "definition.maturity_week");
static_assert(offsetof(tapestore_definition, user_defined_instrument) == 497, "definition.user_defined_instrument");
static_assert(offsetof(tapestore_definition, contract_multiplier_unit) == 498, "definition.contract_multiplier_unit");
static_assert(offsetof(tapestore_definition, flow_schedule_type) == 499, "definition.flow_schedule_type");
static_assert(offsetof(tapestore_definition, tick_rule) == 500, "definition.tick_rule");
static_assert(offsetof(tapestore_definition, leg_instrument_class) == 501, "definition.leg_instrument_class");
static_assert(offsetof(tapestore_definition, leg_side) == 502, "definition.leg_side");
static_assert(offsetof(tapestore_definition, reserved) == 503, "definition.reserved");
static_assert(offsetof(tapestore_definition, min_size_increment) == 520, "definition.min_size_increment");
static_assert(offsetof(tapestore_definition, min_size) == 528, "definition.min_size");

/** Kind 5, gap. */
typedef struct tapestore_gap {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    uint16_t publisher;
    uint16_t reason;
    uint32_t epoch;
    uint64_t first_pub_seq;
    uint64_t last_pub_seq;
} tapestore_gap;
static_assert(sizeof(tapestore_gap) == 40, "size of gap");
static_assert(offsetof(tapestore_gap, kind) == 0, "gap.kind");
static_assert(offsetof(tapestore_gap, source) == 2, "gap.source");
static_assert(offsetof(tapestore_gap, instrument) == 4, "gap.instrument");
static_assert(offsetof(tapestore_gap, ts_event) == 8, "gap.ts_event");
static_assert(offsetof(tapestore_gap, publisher) == 16, "gap.publisher");
static_assert(offsetof(tapestore_gap, reason) == 18, "gap.reason");
static_assert(offsetof(tapestore_gap, epoch) == 20, "gap.epoch");
static_assert(offsetof(tapestore_gap, first_pub_seq) == 24, "gap.first_pub_seq");
static_assert(offsetof(tapestore_gap, last_pub_seq) == 32, "gap.last_pub_seq");

/** One level of both sides; the best one is the first. */
typedef struct tapestore_depth10_level {
    tapestore_price bid_px;
    tapestore_price ask_px;
    tapestore_size bid_sz;
    tapestore_size ask_sz;
    uint32_t bid_ct;
    uint32_t ask_ct;
} tapestore_depth10_level;
static_assert(offsetof(tapestore_depth10_level, bid_px) == 0, "depth10_level.bid_px");
static_assert(offsetof(tapestore_depth10_level, ask_px) == 8, "depth10_level.ask_px");
static_assert(offsetof(tapestore_depth10_level, bid_sz) == 16, "depth10_level.bid_sz");
static_assert(offsetof(tapestore_depth10_level, ask_sz) == 24, "depth10_level.ask_sz");
static_assert(offsetof(tapestore_depth10_level, bid_ct) == 32, "depth10_level.bid_ct");
static_assert(offsetof(tapestore_depth10_level, ask_ct) == 36, "depth10_level.ask_ct");

/** Kind 6, depth10. */
typedef struct tapestore_depth10 {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    tapestore_price price;
    tapestore_size size;
    tapestore_depth10_level levels[10];
    uint32_t sequence;
    int32_t ts_in_delta;
    char action;
    char side;
    uint8_t flags;
    uint8_t depth;
    uint8_t reserved[4];
} tapestore_depth10;
static_assert(sizeof(tapestore_depth10) == 456, "size of depth10");
static_assert(offsetof(tapestore_depth10, kind) == 0, "depth10.kind");
static_assert(offsetof(tapestore_depth10, source) == 2, "depth10.source");
static_assert(offsetof(tapestore_depth10, instrument) == 4, "depth10.instrument");
static_assert(offsetof(tapestore_depth10, ts_event) == 8, "depth10.ts_event");
static_assert(offsetof(tapestore_depth10, ts_recv) == 16, "depth10.ts_recv");
static_assert(offsetof(tapestore_depth10, price) == 24, "depth10.price");
static_assert(offsetof(tapestore_depth10, size) == 32, "depth10.size");
static_assert(offsetof(tapestore_depth10, levels[0]) == 40, "depth10.levels[0]");
static_assert(offsetof(tapestore_depth10, levels[1]) == 80, "depth10.levels[1]");
static_assert(offsetof(tapestore_depth10, levels[2]) == 120, "depth10.levels[2]");
static_assert(offsetof(tapestore_depth10, levels[3]) == 160, "depth10.levels[3]");
static_assert(offsetof(tapestore_depth10, levels[4]) == 200, "depth10.levels[4]");
static_assert(offsetof(tapestore_depth10, levels[5]) == 240, "depth10.levels[5]");
static_assert(offsetof(tapestore_depth10, levels[6]) == 280, "depth10.levels[6]");
static_assert(offsetof(tapestore_depth10, levels[7]) == 320, "depth10.levels[7]");
static_assert(offsetof(tapestore_depth10, levels[8]) == 360, "depth10.levels[8]");
static_assert(offsetof(tapestore_depth10, levels[9]) == 400, "depth10.levels[9]");
static_assert(offsetof(tapestore_depth10, sequence) == 440, "depth10.sequence");
static_assert(offsetof(tapestore_depth10, ts_in_delta) == 444, "depth10.ts_in_delta");
static_assert(offsetof(tapestore_depth10, action) == 448, "depth10.action");
static_assert(offsetof(tapestore_depth10, side) == 449, "depth10.side");
static_assert(offsetof(tapestore_depth10, flags) == 450, "depth10.flags");
static_assert(offsetof(tapestore_depth10, depth) == 451, "depth10.depth");
static_assert(offsetof(tapestore_depth10, reserved) == 452, "depth10.reserved");

/** Kind 7, bar-1s. */
typedef struct tapestore_bar_1s {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_price open;
    tapestore_price high;
    tapestore_price low;
    tapestore_price close;
    tapestore_volume volume;
} tapestore_bar_1s;
static_assert(sizeof(tapestore_bar_1s) == 64, "size of bar_1s");
static_assert(offsetof(tapestore_bar_1s, kind) == 0, "bar_1s.kind");
static_assert(offsetof(tapestore_bar_1s, source) == 2, "bar_1s.source");
static_assert(offsetof(tapestore_bar_1s, instrument) == 4, "bar_1s.instrument");
static_assert(offsetof(tapestore_bar_1s, ts_event) == 8, "bar_1s.ts_event");
static_assert(offsetof(tapestore_bar_1s, open) == 16, "bar_1s.open");
static_assert(offsetof(tapestore_bar_1s, high) == 24, "bar_1s.high");
static_assert(offsetof(tapestore_bar_1s, low) == 32, "bar_1s.low");
static_assert(offsetof(tapestore_bar_1s, close) == 40, "bar_1s.close");
static_assert(offsetof(tapestore_bar_1s, volume) == 48, "bar_1s.volume");

/** Kind 8, bar-1m. */
typedef struct tapestore_bar_1m {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_price open;
    tapestore_price high;
    tapestore_price low;
    tapestore_price close;
    tapestore_volume volume;
} tapestore_bar_1m;
static_assert(sizeof(tapestore_bar_1m) == 64, "size of bar_1m");
static_assert(offsetof(tapestore_bar_1m, kind) == 0, "bar_1m.kind");
static_assert(offsetof(tapestore_bar_1m, source) == 2, "bar_1m.source");
static_assert(offsetof(tapestore_bar_1m, instrument) == 4, "bar_1m.instrument");
static_assert(offsetof(tapestore_bar_1m, ts_event) == 8, "bar_1m.ts_event");
static_assert(offsetof(tapestore_bar_1m, open) == 16, "bar_1m.open");
static_assert(offsetof(tapestore_bar_1m, high) == 24, "bar_1m.high");
static_assert(offsetof(tapestore_bar_1m, low) == 32, "bar_1m.low");
static_assert(offsetof(tapestore_bar_1m, close) == 40, "bar_1m.close");
static_assert(offsetof(tapestore_bar_1m, volume) == 48, "bar_1m.volume");

/** Kind 9, bar-1h. */
typedef struct tapestore_bar_1h {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_price open;
    tapestore_price high;
    tapestore_price low;
    tapestore_price close;
    tapestore_volume volume;
} tapestore_bar_1h;
static_assert(sizeof(tapestore_bar_1h) == 64, "size of bar_1h");
static_assert(offsetof(tapestore_bar_1h, kind) == 0, "bar_1h.kind");
static_assert(offsetof(tapestore_bar_1h, source) == 2, "bar_1h.source");
static_assert(offsetof(tapestore_bar_1h, instrument) == 4, "bar_1h.instrument");
static_assert(offsetof(tapestore_bar_1h, ts_event) == 8, "bar_1h.ts_event");
static_assert(offsetof(tapestore_bar_1h, open) == 16, "bar_1h.open");
static_assert(offsetof(tapestore_bar_1h, high) == 24, "bar_1h.high");
static_assert(offsetof(tapestore_bar_1h, low) == 32, "bar_1h.low");
static_assert(offsetof(tapestore_bar_1h, close) == 40, "bar_1h.close");
static_assert(offsetof(tapestore_bar_1h, volume) == 48, "bar_1h.volume");

/** Kind 10, bar-1d. */
typedef struct tapestore_bar_1d {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_price open;
    tapestore_price high;
    tapestore_price low;
    tapestore_price close;
    tapestore_volume volume;
} tapestore_bar_1d;
static_assert(sizeof(tapestore_bar_1d) == 64, "size of bar_1d");
static_assert(offsetof(tapestore_bar_1d, kind) == 0, "bar_1d.kind");
static_assert(offsetof(tapestore_bar_1d, source) == 2, "bar_1d.source");
static_assert(offsetof(tapestore_bar_1d, instrument) == 4, "bar_1d.instrument");
static_assert(offsetof(tapestore_bar_1d, ts_event) == 8, "bar_1d.ts_event");
static_assert(offsetof(tapestore_bar_1d, open) == 16, "bar_1d.open");
static_assert(offsetof(tapestore_bar_1d, high) == 24, "bar_1d.high");
static_assert(offsetof(tapestore_bar_1d, low) == 32, "bar_1d.low");
static_assert(offsetof(tapestore_bar_1d, close) == 40, "bar_1d.close");
static_assert(offsetof(tapestore_bar_1d, volume) == 48, "bar_1d.volume");

/** Kind 11, status. */
typedef struct tapestore_trading_status {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    uint16_t action;
    uint16_t reason;
    uint16_t trading_event;
    char is_trading;
    char is_quoting;
    char is_short_sell_restricted;
    uint8_t reserved[7];
} tapestore_trading_status;
static_assert(sizeof(tapestore_trading_status) == 40, "size of trading_status");
static_assert(offsetof(tapestore_trading_status, kind) == 0, "trading_status.kind");
static_assert(offsetof(tapestore_trading_status, source) == 2, "trading_status.source");
static_assert(offsetof(tapestore_trading_status, instrument) == 4, "trading_status.instrument");
static_assert(offsetof(tapestore_trading_status, ts_event) == 8, "trading_status.ts_event");
static_assert(offsetof(tapestore_trading_status, ts_recv) == 16, "trading_status.ts_recv");
static_assert(offsetof(tapestore_trading_status, action) == 24, "trading_status.action");
static_assert(offsetof(tapestore_trading_status, reason) == 26, "trading_status.reason");
static_assert(offsetof(tapestore_trading_status, trading_event) == 28, "trading_status.trading_event");
static_assert(offsetof(tapestore_trading_status, is_trading) == 30, "trading_status.is_trading");
static_assert(offsetof(tapestore_trading_status, is_quoting) == 31, "trading_status.is_quoting");
static_assert(offsetof(tapestore_trading_status, is_short_sell_restricted) == 32, "trading_status.is_short_sell_restricted");
static_assert(offsetof(tapestore_trading_status, reserved) == 33, "trading_status.reserved");

/** Kind 12, imbalance. */
typedef struct tapestore_imbalance {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    tapestore_price ref_price;
    tapestore_ts auction_time;
    tapestore_price cont_book_clr_price;
    tapestore_price auct_interest_clr_price;
    tapestore_price ssr_filling_price;
    tapestore_price ind_match_price;
    tapestore_price upper_collar;
    tapestore_price lower_collar;
    tapestore_size paired_qty;
    tapestore_size total_imbalance_qty;
    tapestore_size market_imbalance_qty;
    tapestore_size unpaired_qty;
    char auction_type;
    char side;
    uint8_t auction_status;
    uint8_t freeze_status;
    uint8_t num_extensions;
    char unpaired_side;
    char significant_imbalance;
    uint8_t reserved[1];
} tapestore_imbalance;
static_assert(sizeof(tapestore_imbalance) == 128, "size of imbalance");
static_assert(offsetof(tapestore_imbalance, kind) == 0, "imbalance.kind");
static_assert(offsetof(tapestore_imbalance, source) == 2, "imbalance.source");
static_assert(offsetof(tapestore_imbalance, instrument) == 4, "imbalance.instrument");
static_assert(offsetof(tapestore_imbalance, ts_event) == 8, "imbalance.ts_event");
static_assert(offsetof(tapestore_imbalance, ts_recv) == 16, "imbalance.ts_recv");
static_assert(offsetof(tapestore_imbalance, ref_price) == 24, "imbalance.ref_price");
static_assert(offsetof(tapestore_imbalance, auction_time) == 32, "imbalance.auction_time");
static_assert(offsetof(tapestore_imbalance, cont_book_clr_price) == 40, "imbalance.cont_book_clr_price");
static_assert(offsetof(tapestore_imbalance, auct_interest_clr_price) == 48, "imbalance.auct_interest_clr_price");
static_assert(offsetof(tapestore_imbalance, ssr_filling_price) == 56, "imbalance.ssr_filling_price");
static_assert(offsetof(tapestore_imbalance, ind_match_price) == 64, "imbalance.ind_match_price");
static_assert(offsetof(tapestore_imbalance, upper_collar) == 72, "imbalance.upper_collar");
static_assert(offsetof(tapestore_imbalance, lower_collar) == 80, "imbalance.lower_collar");
static_assert(offsetof(tapestore_imbalance, paired_qty) == 88, "imbalance.paired_qty");
static_assert(offsetof(tapestore_imbalance, total_imbalance_qty) == 96, "imbalance.total_imbalance_qty");
static_assert(offsetof(tapestore_imbalance, market_imbalance_qty) == 104, "imbalance.market_imbalance_qty");
static_assert(offsetof(tapestore_imbalance, unpaired_qty) == 112, "imbalance.unpaired_qty");
static_assert(offsetof(tapestore_imbalance, auction_type) == 120, "imbalance.auction_type");
static_assert(offsetof(tapestore_imbalance, side) == 121, "imbalance.side");
static_assert(offsetof(tapestore_imbalance, auction_status) == 122, "imbalance.auction_status");
static_assert(offsetof(tapestore_imbalance, freeze_status) == 123, "imbalance.freeze_status");
static_assert(offsetof(tapestore_imbalance, num_extensions) == 124, "imbalance.num_extensions");
static_assert(offsetof(tapestore_imbalance, unpaired_side) == 125, "imbalance.unpaired_side");
static_assert(offsetof(tapestore_imbalance, significant_imbalance) == 126, "imbalance.significant_imbalance");
static_assert(offsetof(tapestore_imbalance, reserved) == 127, "imbalance.reserved");

/** Kind 13, statistic. */
typedef struct tapestore_statistic {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    tapestore_ts ts_ref;
    tapestore_price price;
    int64_t quantity;
    uint32_t sequence;
    int32_t ts_in_delta;
    uint16_t stat_type;
    uint16_t channel_id;
    uint8_t update_action;
    uint8_t stat_flags;
    uint8_t reserved[2];
} tapestore_statistic;
static_assert(sizeof(tapestore_statistic) == 64, "size of statistic");
static_assert(offsetof(tapestore_statistic, kind) == 0, "statistic.kind");
static_assert(offsetof(tapestore_statistic, source) == 2, "statistic.source");
static_assert(offsetof(tapestore_statistic, instrument) == 4, "statistic.instrument");
static_assert(offsetof(tapestore_statistic, ts_event) == 8, "statistic.ts_event");
static_assert(offsetof(tapestore_statistic, ts_recv) == 16, "statistic.ts_recv");
static_assert(offsetof(tapestore_statistic, ts_ref) == 24, "statistic.ts_ref");
static_assert(offsetof(tapestore_statistic, price) == 32, "statistic.price");
static_assert(offsetof(tapestore_statistic, quantity) == 40, "statistic.quantity");
static_assert(offsetof(tapestore_statistic, sequence) == 48, "statistic.sequence");
static_assert(offsetof(tapestore_statistic, ts_in_delta) == 52, "statistic.ts_in_delta");
static_assert(offsetof(tapestore_statistic, stat_type) == 56, "statistic.stat_type");
static_assert(offsetof(tapestore_statistic, channel_id) == 58, "statistic.channel_id");
static_assert(offsetof(tapestore_statistic, update_action) == 60, "statistic.update_action");
static_assert(offsetof(tapestore_statistic, stat_flags) == 61, "statistic.stat_flags");
static_assert(offsetof(tapestore_statistic, reserved) == 62, "statistic.reserved");

/** Kind 14, bust. */
typedef struct tapestore_bust {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    uint64_t trade_id;
    uint64_t trade_lsn;
    uint32_t sequence;
    uint16_t reason;
    uint8_t reserved[2];
} tapestore_bust;
static_assert(sizeof(tapestore_bust) == 48, "size of bust");
static_assert(offsetof(tapestore_bust, kind) == 0, "bust.kind");
static_assert(offsetof(tapestore_bust, source) == 2, "bust.source");
static_assert(offsetof(tapestore_bust, instrument) == 4, "bust.instrument");
static_assert(offsetof(tapestore_bust, ts_event) == 8, "bust.ts_event");
static_assert(offsetof(tapestore_bust, ts_recv) == 16, "bust.ts_recv");
static_assert(offsetof(tapestore_bust, trade_id) == 24, "bust.trade_id");
static_assert(offsetof(tapestore_bust, trade_lsn) == 32, "bust.trade_lsn");
static_assert(offsetof(tapestore_bust, sequence) == 40, "bust.sequence");
static_assert(offsetof(tapestore_bust, reason) == 44, "bust.reason");
static_assert(offsetof(tapestore_bust, reserved) == 46, "bust.reserved");

/** Kind 15, correct. */
typedef struct tapestore_correct {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts ts_recv;
    uint64_t trade_id;
    uint64_t trade_lsn;
    tapestore_price price;
    tapestore_size size;
    uint32_t sequence;
    uint16_t reason;
    uint8_t reserved[2];
} tapestore_correct;
static_assert(sizeof(tapestore_correct) == 64, "size of correct");
static_assert(offsetof(tapestore_correct, kind) == 0, "correct.kind");
static_assert(offsetof(tapestore_correct, source) == 2, "correct.source");
static_assert(offsetof(tapestore_correct, instrument) == 4, "correct.instrument");
static_assert(offsetof(tapestore_correct, ts_event) == 8, "correct.ts_event");
static_assert(offsetof(tapestore_correct, ts_recv) == 16, "correct.ts_recv");
static_assert(offsetof(tapestore_correct, trade_id) == 24, "correct.trade_id");
static_assert(offsetof(tapestore_correct, trade_lsn) == 32, "correct.trade_lsn");
static_assert(offsetof(tapestore_correct, price) == 40, "correct.price");
static_assert(offsetof(tapestore_correct, size) == 48, "correct.size");
static_assert(offsetof(tapestore_correct, sequence) == 56, "correct.sequence");
static_assert(offsetof(tapestore_correct, reason) == 60, "correct.reason");
static_assert(offsetof(tapestore_correct, reserved) == 62, "correct.reserved");

/** Kind 16, mapping. */
typedef struct tapestore_mapping {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_ts start_ts;
    tapestore_ts end_ts;
    uint64_t raw_id;
    uint8_t stype_in;
    uint8_t stype_out;
    char dataset[16];
    char stype_in_symbol[71];
    char stype_out_symbol[71];
} tapestore_mapping;
static_assert(sizeof(tapestore_mapping) == 200, "size of mapping");
static_assert(offsetof(tapestore_mapping, kind) == 0, "mapping.kind");
static_assert(offsetof(tapestore_mapping, source) == 2, "mapping.source");
static_assert(offsetof(tapestore_mapping, instrument) == 4, "mapping.instrument");
static_assert(offsetof(tapestore_mapping, ts_event) == 8, "mapping.ts_event");
static_assert(offsetof(tapestore_mapping, start_ts) == 16, "mapping.start_ts");
static_assert(offsetof(tapestore_mapping, end_ts) == 24, "mapping.end_ts");
static_assert(offsetof(tapestore_mapping, raw_id) == 32, "mapping.raw_id");
static_assert(offsetof(tapestore_mapping, stype_in) == 40, "mapping.stype_in");
static_assert(offsetof(tapestore_mapping, stype_out) == 41, "mapping.stype_out");
static_assert(offsetof(tapestore_mapping, dataset) == 42, "mapping.dataset");
static_assert(offsetof(tapestore_mapping, stype_in_symbol) == 58, "mapping.stype_in_symbol");
static_assert(offsetof(tapestore_mapping, stype_out_symbol) == 129, "mapping.stype_out_symbol");

#ifdef __cplusplus
}
#endif

#endif /* TAPESTORE_H */
