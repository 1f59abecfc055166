//! A reader in a process without free memory maps.

use std::path::Path;

use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::reader::{At, Reader};
use tapestore::record::Trade;

use crate::fixture::{PATIENCE, Store, finish, role};

/// Uses up nearly all memory maps: a reader reports `TooManyMaps`, and reads again once maps are free.
pub(crate) fn crowded(store: &Path) {
    // The kernel merges equal neighbours into one map: they alternate.
    let map = |i: usize| {
        let map = memmap2::MmapOptions::new().len(4096).map_anon()?;
        if i.is_multiple_of(2) { map.make_read_only().map(|map| (None, Some(map))) } else { Ok((Some(map), None)) }
    };
    let mut maps = Vec::with_capacity(1 << 20);
    let mut reader = Reader::open(store).unwrap();
    while let Ok(one) = map(maps.len()) {
        maps.push(one);
    }
    let error = reader.snapshot(At::Appended).unwrap_err();
    assert!(matches!(error, Error::TooManyMaps { .. }), "{error}");
    assert!(error.to_string().contains("vm.max_map_count"), "{error}");
    maps.truncate(1000);
    assert_eq!(reader.snapshot(At::Appended).unwrap().last(), Lsn(10));
}

#[test]
fn a_reader_without_memory_maps_reports_too_many_maps_and_not_storage_down() {
    let limit = tapestore::error::maps_max().unwrap();
    if limit > 300_000 {
        return println!("skipped: {limit} memory maps are too many to use up");
    }
    let store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    for trade_id in 1..=10 {
        publisher.publish(&Trade { trade_id, instrument: InstrumentId(1), ..Trade::default() }).unwrap();
    }
    publisher.flush(Durability::Os, PATIENCE).unwrap();
    finish(role("crowded", &store.path, &[]));
}
