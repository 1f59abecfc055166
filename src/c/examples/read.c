/*
 * Reads the trades of an instrument: the newest one, all of them as rows, and all of them as columns.
 *
 *   cc -std=c11 src/c/examples/read.c -I src/c -L target/release -ltapestore_c -Wl,-rpath,target/release -o read
 *   ./read STORE INSTRUMENT
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <tapestore.h>

/* Ends the program if a call has failed. Returns whether there is a result. */
static bool check(tapestore_status status) {
    if (status != TAPESTORE_OK && status != TAPESTORE_END) {
        fprintf(stderr, "%s: %s\n", tapestore_status_name(status), tapestore_error_text());
        exit(1);
    }
    return status == TAPESTORE_OK;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: read STORE INSTRUMENT\n");
        return 2;
    }
    tapestore_reader *reader = NULL;
    check(tapestore_reader_open(argv[1], &reader));
    uint32_t instrument = 0;
    check(tapestore_reader_instrument(reader, argv[2], &instrument));
    tapestore_snapshot *snapshot = NULL;
    check(tapestore_reader_snapshot(reader, TAPESTORE_AT_COMMITTED, &snapshot));

    /* The record is valid until the next call with the snapshot. */
    tapestore_row row;
    if (check(tapestore_snapshot_as_of(snapshot, instrument, TAPESTORE_KIND_TRADE, UINT64_MAX, &row))) {
        const tapestore_trade *trade = row.record;
        printf("newest: lsn %" PRIu64 " price %" PRId64 "\n", row.lsn, trade->price);
    }

    tapestore_rows *rows = NULL;
    check(tapestore_snapshot_scan(snapshot, instrument, TAPESTORE_KIND_TRADE, 0, UINT64_MAX, &rows));
    uint64_t count = 0, size = 0;
    while (check(tapestore_rows_next(rows, &row))) {
        const tapestore_trade *trade = row.record;
        count += 1;
        size += trade->size;
    }
    printf("rows: %" PRIu64 " size %" PRIu64 "\n", count, size);
    tapestore_rows_close(rows);

    tapestore_columns *columns = NULL;
    check(tapestore_snapshot_columns(snapshot, TAPESTORE_KIND_TRADE, instrument, 0, UINT64_MAX, &columns));
    int64_t sum = 0;
    count = 0;
    size_t batch = 0;
    while (check(tapestore_columns_next(columns, &batch))) {
        /* The values lie in the mapped file. They are valid until the next batch. */
        const void *values = NULL;
        check(tapestore_columns_column(columns, "price", &values, NULL));
        const tapestore_price *prices = values;
        for (size_t i = 0; i < batch; i++) {
            if (prices[i] != TAPESTORE_NULL_PRICE) {
                sum += prices[i];
            }
        }
        count += batch;
    }
    printf("columns: %" PRIu64 " sum of prices %" PRId64 "\n", count, sum);
    tapestore_columns_close(columns);
    tapestore_snapshot_close(snapshot);
    tapestore_reader_close(reader);
    return 0;
}
