/*
 * Publishes ten trades, and waits until they are on the disk.
 *
 *   cc -std=c11 src/c/examples/publish.c -I src/c -L target/release -ltapestore_c -Wl,-rpath,target/release -o publish
 *   ./publish STORE
 */

#include <stdio.h>
#include <stdlib.h>
#include <tapestore.h>

/* Ends the program if a call has failed. */
static void check(tapestore_status status) {
    if (status != TAPESTORE_OK) {
        fprintf(stderr, "%s: %s\n", tapestore_status_name(status), tapestore_error_text());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: publish STORE\n");
        return 2;
    }
    tapestore_publisher_options options;
    check(tapestore_publisher_options_init(&options));
    options.store = argv[1];
    options.publisher = 7;
    tapestore_publisher *publisher = NULL;
    check(tapestore_publisher_open(&options, &publisher));

    /* Fields that are not set below stay null. */
    tapestore_trade trade;
    check(tapestore_record_init(TAPESTORE_KIND_TRADE, &trade, sizeof trade));
    trade.action = TAPESTORE_ACTION_TRADE;
    trade.side = TAPESTORE_SIDE_BID;
    check(tapestore_publisher_instrument(publisher, "XNAS:AAPL", &trade.instrument));
    for (uint64_t id = 1; id <= 10; id++) {
        trade.ts_event = trade.ts_recv = tapestore_now();
        trade.price = 189980000000 + (int64_t)id * 10000000; /* 189.98 and 0.01 more for each trade */
        trade.size = 100 * (uint64_t)TAPESTORE_ONE;
        trade.trade_id = id;
        tapestore_status status;
        do {
            status = tapestore_publisher_publish(publisher, &trade, sizeof trade, NULL);
        } while (status == TAPESTORE_FULL); /* back-pressure: the record was not accepted */
        check(status);
    }
    tapestore_progress progress;
    check(tapestore_publisher_flush(publisher, TAPESTORE_DURABILITY_FSYNC, 10000, &progress));
    check(tapestore_publisher_close(publisher, 10000));
    printf("published and durable: %llu\n", (unsigned long long)progress.durable);
    return 0;
}
