//! Order books rebuilt from stored records.

use serde_json::Value;
use tapestore::book::{Book, Oddities};
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{BookOrder, Price, Quote, Record, Size, flags};
use tapestore::time::Ts;

use crate::fixture::Store;

type Top = [(Price, Size); 2];

/// Sampled moments: the newest quote against the book after the newest message of changes.
#[derive(Debug, Default)]
struct Sampled {
    equal: usize,
    /// One of the two was newer (the venue sends changes every 100 ms, quotes at once); the book equals the quote at the
    /// book's own update.
    of_its_own_update: usize,
    unexplained: usize,
}

/// A state of the market: time, the venue's sequence, best bid and offer.
type TopAt = (Ts, u32, Top);

/// Compares `quotes`, sorted by sequence, with `books`, sorted by time, at 10,000 moments.
fn sample(quotes: &[TopAt], books: &[TopAt], since: impl Fn(u32) -> i32) -> Sampled {
    let mut by_time = quotes.to_vec();
    by_time.sort_by_key(|q| q.0);
    let (first, last) = (books[0].0.0, books[books.len() - 1].0.0);
    let mut sampled = Sampled::default();
    for i in 0..10_000 {
        let moment = Ts(first + (last - first) / 10_000 * i);
        let newest = |of: &[TopAt]| of[..of.partition_point(|k| k.0 <= moment)].last().copied();
        let (Some(quote), Some(book)) = (newest(&by_time), newest(books)) else { continue };
        // No quote to compare with before the first and after the last.
        let then = quotes.partition_point(|q| since(q.1) <= since(book.1));
        if then == 0 || then == quotes.len() {
            continue;
        }
        if quote.2 == book.2 {
            sampled.equal += 1;
        } else if quotes[then - 1].2 == book.2 {
            sampled.of_its_own_update += 1;
        } else {
            sampled.unexplained += 1;
        }
    }
    sampled
}

/// Checks after every message of changes whether the book's best bid and offer equal the venue's quote at that update.
/// Returns equal and compared messages, the last book and the samples.
fn agreement(store: &Store, name: &str) -> (usize, usize, Book, Sampled) {
    let mut reader = Reader::open(&store.path).unwrap();
    let snapshot = reader.snapshot(At::Committed).unwrap();
    let instrument = reader.instrument(&name.parse().unwrap()).unwrap();
    let mut quotes: Vec<TopAt> = Vec::new();
    let mut scan = snapshot.scan(Series { instrument, kind: Quote::KIND }, TimeRange::ALL);
    while let Some(row) = scan.next().unwrap() {
        let q = row.record.get::<Quote>().unwrap();
        quotes.push((row.index_time, q.sequence, [(q.bid_px, q.bid_sz), (q.ask_px, q.ask_sz)]));
    }
    // Sequences are the low 32 bits of update ids: the distance from the first orders them.
    let first = quotes[0].1;
    let since = |sequence: u32| sequence.wrapping_sub(first) as i32;
    quotes.sort_by_key(|(_, sequence, _)| since(*sequence));
    let mut book = Book::new();
    let (mut equal, mut compared, mut ends) = (0, 0, Vec::new());
    let mut scan = snapshot.scan(Series { instrument, kind: BookOrder::KIND }, TimeRange::ALL);
    while let Some(row) = scan.next().unwrap() {
        let change = row.record.get::<BookOrder>().unwrap();
        book.apply(change);
        let quoted = quotes.partition_point(|(_, sequence, _)| since(*sequence) <= since(change.sequence));
        // A snapshot is older than the changes before it.
        let is_end = change.flags & (flags::LAST | flags::SNAPSHOT) == flags::LAST;
        if !is_end {
            continue;
        }
        let best = [book.bids().next(), book.asks().next()];
        let best = best.map(|b| b.map_or((Price::NULL, Size(0)), |(p, l)| (p, Size(l.size as u64))));
        ends.push((row.index_time, change.sequence, best));
        if quoted == 0 || quoted == quotes.len() {
            continue;
        }
        compared += 1;
        equal += usize::from(best == quotes[quoted - 1].2);
    }
    assert_eq!(book.oddities(), Oddities::default());
    let sampled = sample(&quotes, &ends, since);
    (equal, compared, book, sampled)
}

#[test]
fn a_book_rebuilt_from_a_capture_has_the_best_bid_and_offer_that_the_venue_quoted() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    for (venue, name) in [("binance_usdm", "BINANCE-USDM:BTCUSDT"), ("binance_spot", "BINANCE:BTCUSDT")] {
        let file = format!("{data}/{venue}/btcusdt_20240808.gz");
        if !std::path::Path::new(&file).exists() {
            println!("skipped: {file} is not there");
            continue;
        }
        let store = Store::serve();
        store.tape_ok(&["publish", "--from", &file]);
        let (equal, compared, book, sampled) = agreement(&store, name);
        println!("{name}: at 10,000 moments: {sampled:?}");
        assert!(sampled.equal > 1000 && sampled.unexplained == 0, "{sampled:?}");
        println!("{name}: {equal} of {compared} messages agree");
        assert!(compared > 3000 && equal == compared, "{name}: {equal} of {compared}");
        // The tool skips changes before the last clear: all levels must still be equal.
        let shown: Value = serde_json::from_str(&store.tape_ok(&["book", name, "--levels", "100000", "--json"])).unwrap();
        let sides: [(_, Vec<_>); 2] = [("bids", book.bids().collect()), ("asks", book.asks().collect())];
        for (side, levels) in sides {
            let levels = levels.iter().map(|(p, l)| [p.to_string(), Size(l.size as u64).to_string()]);
            let text = |level: &Value, key: &str| level[key].as_str().unwrap().to_owned();
            let shown = shown[side].as_array().unwrap().iter().map(|l| [text(l, "price"), text(l, "size")]);
            assert!(shown.len() > 500 && shown.eq(levels), "{name} {side}");
        }
    }
}
