//! Owns: books, rebuilt from the changes of one instrument: orders, price levels, or ten levels at once.
//!
//! Changes are applied in LSN order, with DBN's meanings: an order is added, modified, cancelled by a
//! size; trades and fills do not change the book; a clear empties it. A change with [`flags::MBP`] is a
//! level and carries the level's new size. A change with [`flags::TOB`] is a side's only level.
//!
//! A snapshot of levels may arrive after changes that are newer than it (Binance's does: it is requested
//! while changes stream in). Both carry the venue's sequence, so the newer change of each level wins in
//! either order of arrival.
//!
//! What must hold: a level's size and count are those of its orders; an impossible state (an unknown
//! order, a crossed book) is counted and never stops the rebuild.

use std::collections::{BTreeMap, HashMap};

use crate::record::{BookOrder, Char, Depth10, Level, Price, Size, action, flags, side};

/// The orders of one price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriceLevel {
    /// Their total size, × 1e-9.
    pub size: u128,
    /// Their number; 0 if only the size is given.
    pub count: u32,
}

#[derive(Clone, Copy, Debug)]
struct Order {
    is_bid: bool,
    price: Price,
    size: Size,
}

/// Counts of events that a sound feed does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Changes of orders that were never added, or were removed.
    pub unknown_orders: u64,
    /// Orders added that were there already: the newer one replaces the older.
    pub repeated_orders: u64,
    /// Changes without a side or a price that their action needs.
    pub malformed: u64,
    /// Ends of events at which the best bid was not below the best offer.
    pub crossed: u64,
}

/// A book of one instrument.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("examples/book.rs"), "\n```")]
#[derive(Clone, Debug, Default)]
pub struct Book {
    bids: BTreeMap<Price, PriceLevel>,
    asks: BTreeMap<Price, PriceLevel>,
    orders: HashMap<u64, Order>,
    /// Levels that changed since the last snapshot: the sequence of the change and the new size.
    changed: HashMap<(bool, Price), (u32, Size)>,
    changes: u64,
    oddities: Oddities,
}

/// Whether `clear`, a clear of both sides, removes the effect of `change`, an earlier change in LSN order. A snapshot
/// keeps levels that are newer than it.
pub fn is_undone(change: &BookOrder, clear: &BookOrder) -> bool {
    let is_level = clear.flags & flags::SNAPSHOT != 0 && change.flags & flags::MBP != 0;
    !(is_level && is_newer(change.sequence, clear.sequence))
}

/// Whether sequence `a` is after `b`. They are the low 32 bits of a counter, so the shorter distance decides.
fn is_newer(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

impl Book {
    /// An empty book.
    pub fn new() -> Book {
        Book::default()
    }

    /// Changes applied.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The oddities of the changes applied.
    pub fn oddities(&self) -> Oddities {
        self.oddities
    }

    /// Bid levels, the best first.
    pub fn bids(&self) -> impl Iterator<Item = (Price, PriceLevel)> + '_ {
        self.bids.iter().rev().map(|(p, l)| (*p, *l))
    }

    /// Offer levels, the best first.
    pub fn asks(&self) -> impl Iterator<Item = (Price, PriceLevel)> + '_ {
        self.asks.iter().map(|(p, l)| (*p, *l))
    }

    /// Whether the best bid is not below the best offer.
    pub fn is_crossed(&self) -> bool {
        match (self.bids().next(), self.asks().next()) {
            (Some((bid, _)), Some((ask, _))) => bid >= ask,
            _ => false,
        }
    }

    /// Empties the book; the counts stay.
    pub fn clear(&mut self) {
        self.bids.clear();
        self.asks.clear();
        self.orders.clear();
        self.changed.clear();
    }

    /// Empties the book before a snapshot as of `sequence`; newer levels stay.
    fn clear_before_snapshot(&mut self, sequence: u32) {
        let mut changed = std::mem::take(&mut self.changed);
        changed.retain(|_, (newer, _)| is_newer(*newer, sequence));
        self.clear();
        for ((is_bid, price), (_, size)) in &changed {
            self.set_level(*is_bid, *price, *size);
        }
        self.changed = changed;
    }

    /// Applies the next change in LSN order.
    pub fn apply(&mut self, change: &BookOrder) {
        self.changes += 1;
        let is_bid = change.side == side::BID;
        match change.action {
            action::CLEAR if change.side == side::NONE && change.flags & flags::SNAPSHOT != 0 => {
                self.clear_before_snapshot(change.sequence);
            }
            action::CLEAR if change.side == side::NONE => self.clear(),
            action::CLEAR => self.clear_side(is_bid),
            action::TRADE | action::FILL | action::NONE => {}
            _ if change.flags & flags::TOB != 0 && change.side != side::NONE => self.top(is_bid, change),
            _ if change.side == side::NONE || (change.price == Price::NULL && change.action != action::CANCEL) => {
                self.oddities.malformed += 1;
            }
            _ if change.flags & flags::MBP != 0 => self.level(is_bid, change),
            action::ADD => self.add(change.order_id, Order { is_bid, price: change.price, size: change.size }),
            action::MODIFY => self.modify(change.order_id, Order { is_bid, price: change.price, size: change.size }),
            action::CANCEL => self.cancel(change.order_id, change.size),
            Char(_) => self.oddities.malformed += 1,
        }
        if change.flags & flags::LAST != 0 && self.is_crossed() {
            self.oddities.crossed += 1;
        }
    }

    /// Replaces the book by the levels of `depth`.
    pub fn apply_depth(&mut self, depth: &Depth10) {
        self.changes += 1;
        self.clear();
        for Level { bid_px, ask_px, bid_sz, ask_sz, bid_ct, ask_ct } in depth.levels {
            let pairs = [(&mut self.bids, bid_px, bid_sz, bid_ct), (&mut self.asks, ask_px, ask_sz, ask_ct)];
            for (levels, price, size, count) in pairs {
                if price != Price::NULL {
                    levels.insert(price, PriceLevel { size: u128::from(size.0), count });
                }
            }
        }
        if depth.flags & flags::LAST != 0 && self.is_crossed() {
            self.oddities.crossed += 1;
        }
    }

    fn levels(&mut self, is_bid: bool) -> &mut BTreeMap<Price, PriceLevel> {
        if is_bid { &mut self.bids } else { &mut self.asks }
    }

    fn clear_side(&mut self, is_bid: bool) {
        self.levels(is_bid).clear();
        self.orders.retain(|_, o| o.is_bid != is_bid);
        self.changed.retain(|(of_bid, _), _| *of_bid != is_bid);
    }

    /// Makes this level the side's only one.
    fn top(&mut self, is_bid: bool, change: &BookOrder) {
        self.clear_side(is_bid);
        if change.price != Price::NULL {
            self.levels(is_bid).insert(change.price, PriceLevel { size: u128::from(change.size.0), count: 0 });
        }
    }

    /// Sets the level's size, unless the change is older than the last one.
    fn level(&mut self, is_bid: bool, change: &BookOrder) {
        let key = (is_bid, change.price);
        let size = if change.action == action::CANCEL { Size(0) } else { change.size };
        if change.flags & flags::SNAPSHOT == 0 {
            self.changed.insert(key, (change.sequence, size));
        } else if self.changed.get(&key).is_some_and(|(newer, _)| is_newer(*newer, change.sequence)) {
            return;
        }
        self.set_level(is_bid, change.price, size);
    }

    fn set_level(&mut self, is_bid: bool, price: Price, size: Size) {
        if size == Size(0) {
            self.levels(is_bid).remove(&price);
        } else {
            self.levels(is_bid).insert(price, PriceLevel { size: u128::from(size.0), count: 0 });
        }
    }

    fn add(&mut self, id: u64, order: Order) {
        if self.take(id).is_some() {
            self.oddities.repeated_orders += 1;
        }
        self.put(id, order);
    }

    fn modify(&mut self, id: u64, order: Order) {
        // An unknown order is added, as in DBN.
        if self.take(id).is_none() {
            self.oddities.unknown_orders += 1;
        }
        self.put(id, order);
    }

    fn cancel(&mut self, id: u64, size: Size) {
        let Some(order) = self.take(id) else {
            self.oddities.unknown_orders += 1;
            return;
        };
        if size < order.size {
            self.put(id, Order { size: Size(order.size.0 - size.0), ..order });
        }
    }

    /// Adds an order to the book and to its level.
    fn put(&mut self, id: u64, order: Order) {
        let level = self.levels(order.is_bid).entry(order.price).or_default();
        level.size += u128::from(order.size.0);
        level.count += 1;
        self.orders.insert(id, order);
    }

    /// Removes an order from the book and from its level.
    fn take(&mut self, id: u64) -> Option<Order> {
        let order = self.orders.remove(&id)?;
        let levels = self.levels(order.is_bid);
        if let Some(level) = levels.get_mut(&order.price) {
            level.size = level.size.saturating_sub(u128::from(order.size.0));
            level.count = level.count.saturating_sub(1);
            if level.count == 0 {
                levels.remove(&order.price);
            }
        }
        Some(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimRng;

    fn order(action: Char, side: Char, id: u64, price: i64, size: u64) -> BookOrder {
        BookOrder {
            action,
            side,
            order_id: id,
            price: Price(price),
            size: Size(size),
            flags: flags::LAST,
            ..BookOrder::default()
        }
    }

    fn all(levels: impl Iterator<Item = (Price, PriceLevel)>) -> Vec<(i64, u128, u32)> {
        levels.map(|(p, l)| (p.0, l.size, l.count)).collect()
    }

    #[test]
    fn orders_are_added_modified_and_cancelled_and_trades_change_nothing() {
        let mut book = Book::new();
        for change in [
            order(action::ADD, side::BID, 1, 100, 10),
            order(action::ADD, side::BID, 2, 100, 5),
            order(action::ADD, side::BID, 3, 99, 7),
            order(action::ADD, side::ASK, 4, 101, 8),
            order(action::TRADE, side::BID, 0, 101, 3),
            order(action::FILL, side::ASK, 4, 101, 3),
            order(action::CANCEL, side::ASK, 4, 101, 3),
            order(action::MODIFY, side::BID, 2, 98, 6),
            order(action::CANCEL, side::BID, 3, 99, 7),
        ] {
            book.apply(&change);
        }
        assert_eq!(all(book.bids()), [(100, 10, 1), (98, 6, 1)]);
        assert_eq!(all(book.asks()), [(101, 5, 1)]);
        assert_eq!((book.oddities(), book.changes()), (Oddities::default(), 9));
        book.apply(&order(action::CLEAR, side::NONE, 0, i64::MAX, 0));
        assert!(book.bids().next().is_none() && book.asks().next().is_none());
    }

    #[test]
    fn an_impossible_change_is_counted_and_does_not_stop_the_book() {
        let mut book = Book::new();
        book.apply(&order(action::CANCEL, side::BID, 9, 100, 1));
        book.apply(&order(action::MODIFY, side::BID, 8, 100, 1));
        book.apply(&order(action::ADD, side::BID, 8, 101, 2));
        book.apply(&order(action::ADD, side::NONE, 7, 101, 2));
        book.apply(&order(action::ADD, side::ASK, 6, 100, 2));
        book.apply(&order(Char(b'?'), side::ASK, 6, 100, 2));
        let expected = Oddities { unknown_orders: 2, repeated_orders: 1, malformed: 2, crossed: 2 };
        assert_eq!(book.oddities(), expected);
        assert_eq!(all(book.bids()), [(101, 2, 1)]);
    }

    #[test]
    fn a_level_carries_its_size_and_a_top_of_book_is_a_sides_only_level() {
        let mut book = Book::new();
        let level = |action, side, price, size| BookOrder { flags: flags::MBP, ..order(action, side, u64::MAX, price, size) };
        book.apply(&level(action::ADD, side::BID, 100, 5));
        book.apply(&level(action::MODIFY, side::BID, 100, 9));
        book.apply(&level(action::MODIFY, side::BID, 99, 1));
        book.apply(&level(action::CANCEL, side::BID, 99, 0));
        assert_eq!(all(book.bids()), [(100, 9, 0)]);
        book.apply(&BookOrder { flags: flags::TOB, ..order(action::ADD, side::BID, 0, 97, 3) });
        assert_eq!(all(book.bids()), [(97, 3, 0)]);
        book.apply(&BookOrder { flags: flags::TOB, ..order(action::ADD, side::BID, 0, i64::MAX, 0) });
        assert!(book.bids().next().is_none());
    }

    #[test]
    fn ten_levels_are_the_book() {
        let mut depth = Depth10::default();
        depth.levels.iter_mut().for_each(|l| (l.bid_px, l.ask_px) = (Price::NULL, Price::NULL));
        depth.levels[0] = Level { bid_px: Price(9), ask_px: Price(11), bid_sz: Size(1), ask_sz: Size(2), bid_ct: 3, ask_ct: 4 };
        let mut book = Book::new();
        book.apply(&order(action::ADD, side::BID, 1, 100, 10));
        book.apply_depth(&depth);
        assert_eq!((all(book.bids()), all(book.asks())), (vec![(9, 1, 3)], vec![(11, 2, 4)]));
    }

    #[test]
    fn a_level_is_always_the_sum_of_its_orders() {
        for seed in 0..20 {
            let (mut rng, mut book) = (SimRng::new(seed), Book::new());
            let mut model: HashMap<u64, (bool, i64, u64)> = HashMap::new();
            for _ in 0..2000 {
                let (id, is_bid, price, size) = (rng.below(40), rng.below(2) == 0, rng.below(9) as i64, 1 + rng.below(50));
                let side = if is_bid { side::BID } else { side::ASK };
                match rng.below(4) {
                    0 | 1 => {
                        let action = if rng.below(2) == 0 { action::ADD } else { action::MODIFY };
                        book.apply(&order(action, side, id, price, size));
                        model.insert(id, (is_bid, price, size));
                    }
                    _ => {
                        book.apply(&order(action::CANCEL, side, id, price, size));
                        if let Some(left) = model.get_mut(&id) {
                            left.2 = left.2.saturating_sub(size);
                        }
                        model.retain(|_, o| o.2 > 0);
                    }
                }
                let mut expected: BTreeMap<(bool, i64), (u128, u32)> = BTreeMap::new();
                for (is_bid, price, size) in model.values() {
                    let level = expected.entry((*is_bid, *price)).or_default();
                    *level = (level.0 + u128::from(*size), level.1 + 1);
                }
                let mut found: Vec<_> = all(book.bids()).into_iter().map(|l| ((true, l.0), (l.1, l.2))).collect();
                found.extend(all(book.asks()).into_iter().map(|l| ((false, l.0), (l.1, l.2))));
                found.sort_unstable();
                assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_newer_of_a_snapshot_and_a_change_wins_in_either_order_of_arrival() {
        let change =
            |action, side, price, size, sequence, flags| BookOrder { sequence, flags, ..order(action, side, 0, price, size) };
        let (live, snapshot) = (flags::MBP | flags::LAST, flags::MBP | flags::SNAPSHOT);
        // The sequence wraps: 2^32 - 1 is the snapshot's, 0 and 1 come after it.
        let changes = [
            change(action::MODIFY, side::BID, 97, 9, u32::MAX - 1, live),
            change(action::MODIFY, side::BID, 99, 5, 0, live),
            change(action::CANCEL, side::ASK, 101, 0, 1, live),
        ];
        let snapshot = [
            change(action::CLEAR, side::NONE, 0, 0, u32::MAX, flags::SNAPSHOT),
            change(action::ADD, side::BID, 99, 7, u32::MAX, snapshot),
            change(action::ADD, side::BID, 98, 1, u32::MAX, snapshot),
            change(action::ADD, side::ASK, 101, 3, u32::MAX, snapshot),
            change(action::ADD, side::ASK, 102, 4, u32::MAX, snapshot),
        ];
        let (mut late, mut early) = (Book::new(), Book::new());
        changes.iter().chain(&snapshot).for_each(|c| late.apply(c));
        snapshot.iter().chain(&changes[1..]).for_each(|c| early.apply(c));
        for book in [late, early] {
            assert_eq!(all(book.bids()), [(99, 5, 0), (98, 1, 0)]);
            assert_eq!(all(book.asks()), [(102, 4, 0)]);
        }
    }
}
