/*
 * Reads the records of the kind "signal", which a program in Rust has defined in the store; with "publish" it publishes one
 * before.
 *
 *   own_kind STORE read|publish
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tapestore.h>

/* The struct of the kind, as the program in Rust has it. */
typedef struct signal_record {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
    tapestore_price fair;
    uint64_t order_id;
    int32_t score;
    uint32_t rank;
} signal_record;

/* Ends the program if a call has failed. Returns whether there is a result. */
static bool check(tapestore_status status) {
    if (status != TAPESTORE_OK && status != TAPESTORE_END) {
        fprintf(stderr, "%s: %s\n", tapestore_status_name(status), tapestore_error_text());
        exit(1);
    }
    return status == TAPESTORE_OK;
}

static void publish(const char *store, uint16_t kind) {
    tapestore_publisher_options options;
    check(tapestore_publisher_options_init(&options));
    options.store = store;
    options.publisher = 2;
    tapestore_publisher *publisher = NULL;
    check(tapestore_publisher_open(&options, &publisher));
    signal_record record;
    check(tapestore_record_init(kind, &record, sizeof record));
    check(tapestore_publisher_instrument(publisher, "XNAS:AAPL", &record.instrument));
    record.ts_event = 6;
    record.order_id = 10;
    check(tapestore_publisher_publish(publisher, &record, sizeof record, NULL));
    check(tapestore_publisher_close(publisher, 10000));
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    tapestore_reader *reader = NULL;
    tapestore_snapshot *snapshot = NULL;
    tapestore_rows *rows = NULL;
    uint32_t instrument = 0;
    uint16_t kind = 0;
    bool is_at_rest = false;
    check(tapestore_reader_open(argv[1], &reader));
    check(tapestore_reader_is_at_rest(reader, &is_at_rest));
    check(tapestore_reader_kind(reader, "signal", &kind));
    printf("kind %#x at rest %d\n", (unsigned)kind, is_at_rest);
    if (strcmp(argv[2], "publish") == 0) {
        publish(argv[1], kind);
    }
    check(tapestore_reader_instrument(reader, "XNAS:AAPL", &instrument));
    check(tapestore_reader_snapshot(reader, TAPESTORE_AT_COMMITTED, &snapshot));
    check(tapestore_snapshot_scan(snapshot, instrument, kind, 0, UINT64_MAX, &rows));
    tapestore_row row;
    while (check(tapestore_rows_next(rows, &row))) {
        const signal_record *record = row.record;
        printf("lsn %" PRIu64 " order %" PRIu64 " score %" PRId32 " fair ", row.lsn, record->order_id, record->score);
        if (record->fair == TAPESTORE_NULL_PRICE) {
            printf("null\n");
        } else {
            printf("%" PRId64 "\n", record->fair);
        }
    }
    tapestore_rows_close(rows);
    tapestore_snapshot_close(snapshot);
    tapestore_reader_close(reader);
    return 0;
}
