/*
 * Makes calls that fail, and prints the code and the text of each: the test compares them. The rest of the API is called too.
 *
 *   misuse STORE, which is served and has the ten trades of the example publish
 */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <tapestore.h>
#include <unistd.h>

/* Prints a call that should fail. */
static void show(const char *what, tapestore_status status) {
    printf("%s: %s: %s\n", what, tapestore_status_name(status), status > TAPESTORE_END ? tapestore_error_text() : "");
}

/* Ends the program if `is_so` is false. */
static void demand(bool is_so, int line) {
    if (!is_so) {
        printf("line %d is not as it should be: %s\n", line, tapestore_error_text());
        exit(1);
    }
}
#define DEMAND(is_so) demand((is_so), __LINE__)
#define OK(call) demand((call) == TAPESTORE_OK, __LINE__)

/* A call that makes a handle puts NULL where the handle should be if it cannot make it, whatever was there before. */
static int stale;
#define MAKES_NONE(type, call)                                                                                                   \
    do {                                                                                                                         \
        type *made = (type *)&stale;                                                                                             \
        DEMAND((call) == TAPESTORE_INVALID && made == NULL);                                                                     \
    } while (0)

static void handles(void) {
    MAKES_NONE(tapestore_publisher, tapestore_publisher_open(NULL, &made));
    MAKES_NONE(tapestore_subscriber, tapestore_subscriber_open(NULL, &made));
    MAKES_NONE(tapestore_reader, tapestore_reader_open(NULL, &made));
    MAKES_NONE(tapestore_follow, tapestore_follow_open(NULL, 1, TAPESTORE_AT_COMMITTED, &made));
    MAKES_NONE(tapestore_snapshot, tapestore_reader_snapshot(NULL, TAPESTORE_AT_COMMITTED, &made));
    MAKES_NONE(tapestore_rows, tapestore_snapshot_latest(NULL, TAPESTORE_KIND_TRADE, &made));
    MAKES_NONE(tapestore_rows, tapestore_snapshot_find(NULL, 1, TAPESTORE_KIND_TRADE, "trade_id", 4, &made));
    MAKES_NONE(tapestore_rows, tapestore_snapshot_scan(NULL, 1, TAPESTORE_KIND_TRADE, 0, UINT64_MAX, &made));
    MAKES_NONE(tapestore_rows, tapestore_snapshot_replay(NULL, NULL, 0, 0, UINT64_MAX, &made));
    MAKES_NONE(tapestore_columns, tapestore_snapshot_columns(NULL, TAPESTORE_KIND_TRADE, 1, 0, UINT64_MAX, &made));
}

static void publishers(const char *store) {
    tapestore_publisher_options options;
    tapestore_publisher *publisher = (tapestore_publisher *)&options;
    OK(tapestore_publisher_options_init(&options));
    show("no store", tapestore_publisher_open(&options, &publisher));
    DEMAND(publisher == NULL);
    options.store = "/nonexistent/store";
    options.open_timeout_ms = 10;
    show("down", tapestore_publisher_open(&options, &publisher));
    options.store = store;
    options.publisher = 8;
    options.open_timeout_ms = 10000;
    options.durability = 77;
    show("level", tapestore_publisher_open(&options, &publisher));
    options.durability = TAPESTORE_DURABILITY_OS;
    options.wait = TAPESTORE_WAIT_BLOCKING;
    OK(tapestore_publisher_open(&options, &publisher));
    tapestore_publisher *second = NULL;
    show("taken", tapestore_publisher_open(&options, &second));
    DEMAND(second == NULL);

    uint32_t instrument = 0;
    show("name", tapestore_publisher_instrument(publisher, "not a name", &instrument));
    show("not UTF-8", tapestore_publisher_instrument(publisher, "\xff\xfe", &instrument));
    show("NULL name", tapestore_publisher_instrument(publisher, NULL, &instrument));
    show("NULL result", tapestore_publisher_instrument(publisher, "XNAS:MSFT", NULL));
    OK(tapestore_publisher_instrument(publisher, "XNAS:MSFT", &instrument));
    tapestore_quote quote;
    OK(tapestore_record_init(TAPESTORE_KIND_QUOTE, &quote, sizeof quote));
    DEMAND(quote.bid_px == TAPESTORE_NULL_PRICE && quote.ask_sz == TAPESTORE_NULL_SIZE && quote.ts_event == TAPESTORE_NULL_TS);
    quote.instrument = instrument;
    quote.ts_recv = 5;
    show("NULL publisher", tapestore_publisher_publish(NULL, &quote, sizeof quote, NULL));
    show("NULL record", tapestore_publisher_publish(publisher, NULL, sizeof quote, NULL));
    show("short", tapestore_publisher_publish(publisher, &quote, 64, NULL));
    show("empty", tapestore_publisher_publish(publisher, &quote, 0, NULL));
    show("init kind", tapestore_record_init(0x8001, &quote, sizeof quote));
    show("init size", tapestore_record_init(TAPESTORE_KIND_QUOTE, &quote, sizeof quote - 8));
    show("init NULL", tapestore_record_init(TAPESTORE_KIND_QUOTE, NULL, sizeof quote));
    DEMAND(quote.kind == TAPESTORE_KIND_QUOTE && quote.ts_recv == 5);
    show("odd", tapestore_publisher_publish(publisher, &quote, sizeof quote - 1, NULL));
    quote.kind = 0x8001;
    show("kind", tapestore_publisher_publish(publisher, &quote, sizeof quote, NULL));
    quote.kind = TAPESTORE_KIND_QUOTE;
    quote.instrument = 77;
    show("instrument", tapestore_publisher_publish(publisher, &quote, sizeof quote, NULL));
    quote.instrument = instrument;

    /* A record need not be aligned. */
    unsigned char bytes[sizeof quote + 1];
    memcpy(bytes + 1, &quote, sizeof quote);
    uint64_t number = 0, lost = 1;
    OK(tapestore_publisher_stage(publisher, bytes + 1, sizeof quote, &number));
    DEMAND(number == 1);
    OK(tapestore_publisher_stage(publisher, &quote, sizeof quote, &number));
    DEMAND(number == 2);
    OK(tapestore_publisher_send(publisher));
    tapestore_progress progress;
    OK(tapestore_publisher_flush(publisher, TAPESTORE_DURABILITY_OS, 10000, NULL));
    OK(tapestore_publisher_progress(publisher, &progress));
    DEMAND(progress.published == 2 && progress.accepted == 2 && progress.accepted_lsn == 12);
    OK(tapestore_publisher_take_lost(publisher, &lost));
    DEMAND(lost == 0);

    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        tapestore_status status = tapestore_publisher_publish(publisher, &quote, sizeof quote, NULL);
        _exit(status == TAPESTORE_FORKED && tapestore_publisher_close(publisher, 0) == TAPESTORE_FORKED ? 0 : 1);
    }
    int ended = 1;
    DEMAND(waitpid(child, &ended, 0) == child && ended == 0);
    OK(tapestore_publisher_close(publisher, UINT64_MAX));
    OK(tapestore_publisher_close(NULL, 0));
}

static void readers(const char *store) {
    tapestore_reader *reader = NULL;
    show("no reader", tapestore_reader_open("/nonexistent/store", &reader));
    show("NULL store", tapestore_reader_open(NULL, &reader));
    OK(tapestore_reader_open(store, &reader));
    bool is_at_rest = true;
    OK(tapestore_reader_is_at_rest(reader, &is_at_rest));
    DEMAND(!is_at_rest);
    uint32_t instrument = 0;
    uint16_t kind = 0;
    char name[TAPESTORE_NAME_BYTES];
    show("unknown", tapestore_reader_instrument(reader, "XNAS:NONE", &instrument));
    OK(tapestore_reader_instrument(reader, "XNAS:AAPL", &instrument));
    show("unknown number", tapestore_reader_instrument_name(reader, 99, name, sizeof name));
    show("buffer", tapestore_reader_instrument_name(reader, instrument, name, 9));
    OK(tapestore_reader_instrument_name(reader, instrument, name, 10));
    DEMAND(strcmp(name, "XNAS:AAPL") == 0);
    OK(tapestore_reader_kind(reader, "bar-1m", &kind));
    DEMAND(kind == TAPESTORE_KIND_BAR_1M);
    show("kind name", tapestore_reader_kind(reader, "signal", &kind));

    tapestore_snapshot *snapshot = NULL;
    show("watermark", tapestore_reader_snapshot(reader, 9, &snapshot));
    OK(tapestore_reader_snapshot(reader, TAPESTORE_AT_APPENDED, &snapshot));
    tapestore_reader_close(reader);
    uint64_t first = 0, last = 0;
    OK(tapestore_snapshot_first(snapshot, &first));
    OK(tapestore_snapshot_last(snapshot, &last));
    DEMAND(first == 1 && last == 12);
    tapestore_row row;
    DEMAND(tapestore_snapshot_get(snapshot, 13, &row) == TAPESTORE_END);
    OK(tapestore_snapshot_get(snapshot, 3, &row));
    DEMAND(row.kind == TAPESTORE_KIND_TRADE && row.bytes == sizeof(tapestore_trade) && row.instrument == instrument);
    DEMAND(((const tapestore_trade *)row.record)->trade_id == 3);
    show("kind of as-of", tapestore_snapshot_as_of(snapshot, instrument, 0x80ff, UINT64_MAX, &row));
    show("NULL row", tapestore_snapshot_as_of(snapshot, instrument, TAPESTORE_KIND_TRADE, UINT64_MAX, NULL));
    DEMAND(tapestore_snapshot_as_of(snapshot, instrument, TAPESTORE_KIND_TRADE, 1, &row) == TAPESTORE_END);

    tapestore_rows *rows = NULL;
    OK(tapestore_snapshot_latest(snapshot, TAPESTORE_KIND_QUOTE, &rows));
    OK(tapestore_rows_next(rows, &row));
    DEMAND(((const tapestore_quote *)row.record)->bid_px == TAPESTORE_NULL_PRICE && row.index_time == 5 && row.lsn == 12);
    DEMAND(tapestore_rows_next(rows, &row) == TAPESTORE_END);
    DEMAND(tapestore_rows_next(rows, &row) == TAPESTORE_END);
    tapestore_rows_close(rows);
    OK(tapestore_snapshot_find(snapshot, instrument, TAPESTORE_KIND_TRADE, "trade_id", 4, &rows));
    OK(tapestore_rows_next(rows, &row));
    DEMAND(row.lsn == 4 && tapestore_rows_next(rows, &row) == TAPESTORE_END);
    tapestore_rows_close(rows);
    show("lookup column", tapestore_snapshot_find(snapshot, instrument, TAPESTORE_KIND_TRADE, "price", 4, &rows));
    DEMAND(rows == NULL);
    show("NULL rows", tapestore_rows_next(NULL, &row));

    tapestore_columns *columns = NULL;
    OK(tapestore_snapshot_columns(snapshot, TAPESTORE_KIND_TRADE, TAPESTORE_ALL_INSTRUMENTS, 0, UINT64_MAX, &columns));
    tapestore_series series[] = {{instrument, TAPESTORE_KIND_TRADE}, {instrument + 1, TAPESTORE_KIND_QUOTE}};
    OK(tapestore_snapshot_replay(snapshot, series, 2, 0, UINT64_MAX, &rows));
    OK(tapestore_rows_next(rows, &row));
    DEMAND(row.lsn == 11 && row.index_time == 5);
    tapestore_rows_close(rows);
    tapestore_rows *all = NULL;
    OK(tapestore_snapshot_replay(snapshot, NULL, 0, 0, UINT64_MAX, &all));
    show("NULL series", tapestore_snapshot_replay(snapshot, NULL, 2, 0, UINT64_MAX, &rows));
    DEMAND(rows == NULL);
    tapestore_snapshot_close(snapshot);

    /* They outlive the snapshot. */
    uint64_t sum = 0;
    while (tapestore_rows_next(all, &row) == TAPESTORE_OK) {
        sum += row.lsn;
    }
    DEMAND(sum == 78);
    tapestore_rows_close(all);
    const void *values = NULL;
    const uint64_t *lsns = NULL, *times = NULL;
    size_t count = 0, size = 0;
    show("no batch", tapestore_columns_column(columns, "price", &values, NULL));
    OK(tapestore_columns_next(columns, &count));
    OK(tapestore_columns_column(columns, "price", &values, &size));
    DEMAND(count == 10 && size == 8 && ((const tapestore_price *)values)[0] == 189990000000);
    OK(tapestore_columns_column(columns, "side", &values, &size));
    DEMAND(size == 1 && ((const char *)values)[9] == TAPESTORE_SIDE_BID);
    OK(tapestore_columns_lsns(columns, &lsns));
    OK(tapestore_columns_ingest_times(columns, &times));
    DEMAND(lsns[9] == 10 && times[9] >= times[0] && times[0] > 0);
    show("column", tapestore_columns_column(columns, "bid_px", &values, NULL));
    DEMAND(tapestore_columns_next(columns, &count) == TAPESTORE_END);
    show("after the last batch", tapestore_columns_lsns(columns, &lsns));
    tapestore_columns_close(columns);
    tapestore_rows_close(NULL);
    tapestore_columns_close(NULL);
    tapestore_snapshot_close(NULL);
    tapestore_reader_close(NULL);
}

static void followers(const char *store) {
    tapestore_follow *follow = NULL;
    OK(tapestore_follow_open(store, 11, TAPESTORE_AT_APPENDED, &follow));
    tapestore_row row;
    uint64_t position = 0;
    OK(tapestore_follow_poll(follow, &row));
    DEMAND(row.lsn == 11 && row.kind == TAPESTORE_KIND_QUOTE);
    OK(tapestore_follow_poll(follow, &row));
    DEMAND(tapestore_follow_poll(follow, &row) == TAPESTORE_END);
    OK(tapestore_follow_wait(follow, 1));
    OK(tapestore_follow_position(follow, &position));
    DEMAND(position == 13);
    show("NULL position", tapestore_follow_position(follow, NULL));
    tapestore_follow_close(follow);
    tapestore_follow_close(NULL);
}

static void subscribers(const char *store) {
    tapestore_subscriber_options options;
    OK(tapestore_subscriber_options_init(&options));
    tapestore_subscriber *subscriber = NULL;
    const char *names[] = {"XNAS:AAPL", "not a name"};
    options.store = store;
    options.instruments = names;
    options.instrument_count = 2;
    show("filter", tapestore_subscriber_open(&options, &subscriber));
    options.instruments = NULL;
    show("NULL filter", tapestore_subscriber_open(&options, &subscriber));
    options.instruments = names;
    options.instrument_count = 1;
    OK(tapestore_subscriber_open(&options, &subscriber));
    tapestore_event event;
    uint64_t healed = 1;
    bool is_alive = false;
    DEMAND(tapestore_subscriber_poll(subscriber, &event) == TAPESTORE_END);
    OK(tapestore_subscriber_wait(subscriber, 1));
    OK(tapestore_subscriber_healed(subscriber, &healed));
    OK(tapestore_subscriber_is_storage_alive(subscriber, &is_alive));
    DEMAND(healed == 0 && is_alive);
    show("NULL event", tapestore_subscriber_poll(subscriber, NULL));
    tapestore_subscriber_close(subscriber);
    tapestore_subscriber_close(NULL);
}

/* Opens the publisher `number`, and registers XNAS:TSLA. */
static tapestore_publisher *publisher_of(const char *store, uint16_t number, bool take_over, uint32_t *instrument) {
    tapestore_publisher_options options;
    tapestore_publisher *publisher = NULL;
    OK(tapestore_publisher_options_init(&options));
    options.store = store;
    options.publisher = number;
    options.take_over = take_over;
    options.durability = TAPESTORE_DURABILITY_OS;
    OK(tapestore_publisher_open(&options, &publisher));
    OK(tapestore_publisher_instrument(publisher, "XNAS:TSLA", instrument));
    return publisher;
}

/* Only records of the kinds and instruments of the filter arrive. Quotes with the times 100 to 400 are published. */
static void filters(const char *store) {
    uint32_t tesla = 0, apple = 0;
    tapestore_publisher *publisher = publisher_of(store, 9, false, &tesla);
    OK(tapestore_publisher_instrument(publisher, "XNAS:AAPL", &apple));
    tapestore_subscriber_options options;
    OK(tapestore_subscriber_options_init(&options));
    const char *names[] = {"XNAS:TSLA"};
    const uint16_t kinds[] = {TAPESTORE_KIND_QUOTE, TAPESTORE_KIND_STATUS};
    options.store = store;
    options.instruments = names;
    options.instrument_count = 1;
    options.kinds = kinds;
    options.kind_count = 2;
    options.wait = TAPESTORE_WAIT_BUSY;
    tapestore_subscriber *subscriber = NULL;
    OK(tapestore_subscriber_open(&options, &subscriber));
    tapestore_event event;
    DEMAND(tapestore_subscriber_poll(subscriber, &event) == TAPESTORE_END);
    OK(tapestore_subscriber_wait(subscriber, UINT64_MAX));

    tapestore_quote quote;
    tapestore_trade trade;
    OK(tapestore_record_init(TAPESTORE_KIND_QUOTE, &quote, sizeof quote));
    OK(tapestore_record_init(TAPESTORE_KIND_TRADE, &trade, sizeof trade));
    quote.instrument = apple;
    trade.instrument = tesla;
    OK(tapestore_publisher_publish(publisher, &quote, sizeof quote, NULL));
    OK(tapestore_publisher_publish(publisher, &trade, sizeof trade, NULL));
    quote.instrument = tesla;
    for (quote.ts_recv = 100; quote.ts_recv <= 400; quote.ts_recv += 100) {
        OK(tapestore_publisher_publish(publisher, &quote, sizeof quote, NULL));
    }
    for (uint64_t number = 3; number <= 6; number++) {
        tapestore_status status;
        while ((status = tapestore_subscriber_poll(subscriber, &event)) == TAPESTORE_END) {
            OK(tapestore_subscriber_wait(subscriber, UINT64_MAX));
        }
        DEMAND(status == TAPESTORE_OK && event.type == TAPESTORE_EVENT_RECORD && event.pub_seq == number);
        DEMAND(event.kind == TAPESTORE_KIND_QUOTE && event.instrument == tesla && event.publisher == 9 && event.epoch > 0);
    }
    tapestore_subscriber_close(subscriber);
    OK(tapestore_publisher_close(publisher, 10000));
}

/* A range of times has both of its ends. */
static void ranges(const char *store) {
    tapestore_reader *reader = NULL;
    tapestore_snapshot *snapshot = NULL;
    tapestore_rows *rows = NULL;
    tapestore_columns *columns = NULL;
    tapestore_row row;
    uint32_t instrument = 0;
    OK(tapestore_reader_open(store, &reader));
    OK(tapestore_reader_instrument(reader, "XNAS:TSLA", &instrument));
    OK(tapestore_reader_snapshot(reader, TAPESTORE_AT_APPENDED, &snapshot));
    OK(tapestore_snapshot_scan(snapshot, instrument, TAPESTORE_KIND_QUOTE, 200, 300, &rows));
    OK(tapestore_rows_next(rows, &row));
    DEMAND(row.index_time == 200);
    OK(tapestore_rows_next(rows, &row));
    DEMAND(row.index_time == 300 && tapestore_rows_next(rows, &row) == TAPESTORE_END);
    tapestore_rows_close(rows);
    OK(tapestore_snapshot_scan(snapshot, instrument, TAPESTORE_KIND_QUOTE, 201, 299, &rows));
    DEMAND(tapestore_rows_next(rows, &row) == TAPESTORE_END);
    tapestore_rows_close(rows);

    const void *values = NULL;
    uint64_t sum = 0;
    size_t count = 0;
    OK(tapestore_snapshot_columns(snapshot, TAPESTORE_KIND_QUOTE, instrument, 200, 300, &columns));
    while (tapestore_columns_next(columns, &count) == TAPESTORE_OK) {
        OK(tapestore_columns_column(columns, "ts_recv", &values, NULL));
        for (size_t i = 0; i < count; i++) {
            sum += ((const tapestore_ts *)values)[i];
        }
    }
    DEMAND(sum == 500);
    tapestore_columns_close(columns);
    tapestore_snapshot_close(snapshot);
    tapestore_reader_close(reader);
}

/* A publisher whose number another one takes over is fenced. */
static void fenced(const char *store) {
    tapestore_quote quote;
    OK(tapestore_record_init(TAPESTORE_KIND_QUOTE, &quote, sizeof quote));
    tapestore_publisher *old = publisher_of(store, 10, false, &quote.instrument);
    OK(tapestore_publisher_publish(old, &quote, sizeof quote, NULL));
    OK(tapestore_publisher_flush(old, TAPESTORE_DURABILITY_OS, 10000, NULL));
    tapestore_publisher *new = publisher_of(store, 10, true, &quote.instrument);
    OK(tapestore_publisher_publish(new, &quote, sizeof quote, NULL));
    OK(tapestore_publisher_close(new, 10000));
    tapestore_status status;
    do {
        status = tapestore_publisher_publish(old, &quote, sizeof quote, NULL);
    } while (status == TAPESTORE_OK);
    show("fenced", status);
    /* Records that it accepted before it noticed are not stored. */
    status = tapestore_publisher_close(old, 10000);
    DEMAND(status == TAPESTORE_OK || status == TAPESTORE_FENCED);
}

/* A thread that has not failed has no text. */
static void *other(void *is_empty) {
    *(bool *)is_empty = strcmp(tapestore_error_text(), "") == 0;
    return NULL;
}

int main(int argc, char **argv) {
    DEMAND(argc == 2 && strcmp(tapestore_error_text(), "") == 0);
    OK(tapestore_guard_pages());
    DEMAND(strcmp(tapestore_version(), TAPESTORE_HEADER_VERSION) == 0 && tapestore_now() > 1600000000000000000);
    handles();
    publishers(argv[1]);
    readers(argv[1]);
    followers(argv[1]);
    subscribers(argv[1]);
    filters(argv[1]);
    ranges(argv[1]);
    fenced(argv[1]);
    bool is_empty = false;
    pthread_t thread;
    DEMAND(pthread_create(&thread, NULL, other, &is_empty) == 0 && pthread_join(thread, NULL) == 0 && is_empty);
    DEMAND(strcmp(tapestore_error_text(), "") != 0);
    printf("done\n");
    return 0;
}
