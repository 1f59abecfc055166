// Receives trades as publishers send them, before they are stored.
//
//   c++ -std=c++17 src/c/examples/subscribe.cpp -I src/c -L target/release -ltapestore_c -Wl,-rpath,target/release -o subscribe
//   ./subscribe STORE RECORDS

#include <cstdint>
#include <iostream>
#include <memory>
#include <poll.h>
#include <stdexcept>
#include <string>
#include <tapestore.h>

// Throws if a call has failed. Returns whether there is a result.
static bool check(tapestore_status status) {
    if (status != TAPESTORE_OK && status != TAPESTORE_END) {
        throw std::runtime_error(std::string(tapestore_status_name(status)) + ": " + tapestore_error_text());
    }
    return status == TAPESTORE_OK;
}

struct Close {
    void operator()(tapestore_subscriber *subscriber) const { tapestore_subscriber_close(subscriber); }
};
using Subscriber = std::unique_ptr<tapestore_subscriber, Close>;

static Subscriber subscribe(const char *store) {
    const std::uint16_t kinds[] = {TAPESTORE_KIND_TRADE};
    tapestore_subscriber_options options;
    check(tapestore_subscriber_options_init(&options));
    options.store = store;
    options.kinds = kinds;
    options.kind_count = 1;
    tapestore_subscriber *subscriber = nullptr;
    check(tapestore_subscriber_open(&options, &subscriber));
    return Subscriber(subscriber);
}

static void run(const char *store, std::uint64_t records) {
    const Subscriber subscriber = subscribe(store);
    pollfd waiting{-1, POLLIN, 0};
    check(tapestore_subscriber_descriptor(subscriber.get(), &waiting.fd));
    std::cout << "subscribed" << std::endl;
    for (std::uint64_t seen = 0; seen < records;) {
        tapestore_event event;
        if (!check(tapestore_subscriber_poll(subscriber.get(), &event))) {
            // Nothing now: sleeps until there may be more. The same descriptor works with epoll and with asio.
            poll(&waiting, 1, 1000);
        } else if (event.type == TAPESTORE_EVENT_RECORD) {
            // The record is valid until the next call with the subscriber.
            const auto *trade = static_cast<const tapestore_trade *>(event.record);
            std::cout << "publisher " << event.publisher << " record " << event.pub_seq << " price " << trade->price << std::endl;
            seen += 1;
        } else if (event.type == TAPESTORE_EVENT_GAP) {
            std::cout << "missing: " << event.pub_seq << " to " << event.last << std::endl;
            seen += event.last == UINT64_MAX ? 1 : event.last - event.pub_seq + 1;
        }
    }
}

int main(int argc, char **argv) try {
    if (argc != 3) {
        std::cerr << "usage: subscribe STORE RECORDS\n";
        return 2;
    }
    run(argv[1], std::stoull(argv[2]));
    return 0;
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}
