//! Books rebuilt from what is stored.

use serde_json::Value;
use tapestore::book::{Book, Oddities};
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{BookOrder, Price, Quote, Record, Size, flags};

use crate::fixture::Store;

type Top = [(Price, Size); 2];

/// Of every message of changes: whether the book after it has the best bid and offer that the venue quoted at
/// that update.
fn agreement(store: &Store, name: &str) -> (usize, usize, Book) {
    let mut reader = Reader::open(&store.path).unwrap();
    let snapshot = reader.snapshot(At::Committed).unwrap();
    let instrument = reader.instrument(&name.parse().unwrap()).unwrap();
    let mut quotes: Vec<(u32, Top)> = Vec::new();
    let mut scan = snapshot.scan(Series { instrument, kind: Quote::KIND }, TimeRange::ALL);
    while let Some(row) = scan.next().unwrap() {
        let q = row.record.get::<Quote>().unwrap();
        quotes.push((q.sequence, [(q.bid_px, q.bid_sz), (q.ask_px, q.ask_sz)]));
    }
    // Update ids keep their low 32 bits: their distance from the first orders them.
    let first = quotes[0].0;
    let since = |sequence: u32| sequence.wrapping_sub(first) as i32;
    quotes.sort_by_key(|(sequence, _)| since(*sequence));
    let mut book = Book::new();
    let (mut equal, mut compared) = (0, 0);
    let mut scan = snapshot.scan(Series { instrument, kind: BookOrder::KIND }, TimeRange::ALL);
    while let Some(row) = scan.next().unwrap() {
        let change = row.record.get::<BookOrder>().unwrap();
        book.apply(change);
        let quoted = quotes.partition_point(|(sequence, _)| since(*sequence) <= since(change.sequence));
        // A snapshot is older than what is known by then.
        let is_end = change.flags & (flags::LAST | flags::SNAPSHOT) == flags::LAST;
        if !is_end || quoted == 0 || quoted == quotes.len() {
            continue;
        }
        let best = [book.bids().next(), book.asks().next()];
        let best = best.map(|b| b.map_or((Price::NULL, Size(0)), |(p, l)| (p, Size(l.size as u64))));
        compared += 1;
        equal += usize::from(best == quotes[quoted - 1].1);
    }
    assert_eq!(book.oddities(), Oddities::default());
    (equal, compared, book)
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
        let (equal, compared, book) = agreement(&store, name);
        println!("{name}: {equal} of {compared} messages agree");
        assert!(compared > 3000 && equal == compared, "{name}: {equal} of {compared}");
        // The tool drops what a clear undoes before it rebuilds: all levels of the book must be the same.
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
