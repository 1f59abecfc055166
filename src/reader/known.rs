//! Owns: trades as they were known at a moment: with the busts and corrections applied that had come by then.
//!
//! What must hold: what is stored stays as it is. A statement is about the trade whose LSN it names, or else about the
//! newest trade before it that has its id and source; of several about one trade the newest counts. A bust that names the
//! LSN of a bust or a correction takes that statement back, as if it had not been made; a correction that names the LSN of
//! a correction is one of the same trade. A statement that is about nothing of this is counted, and changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Scan, Series, Snapshot, TimeRange};
use crate::error::Result;
use crate::lsn::{InstrumentId, Lsn};
use crate::record::{Bust, Correct, Record, Row, Trade};
use crate::time::Ts;

/// What is said of a trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it is as it was.
    AsReported,
    /// Its price and size were another; the record of that number says so.
    Corrected(Lsn),
}

/// A trade that was known to have taken place.
#[derive(Clone, Copy, Debug)]
pub struct KnownTrade {
    /// Its LSN.
    pub lsn: Lsn,
    /// Its index time.
    pub index_time: Ts,
    /// The trade; where it was corrected, with the newest price and size.
    pub trade: Trade,
    /// Whether that is what was reported first.
    pub standing: Standing,
}

#[derive(Clone, Copy)]
enum Said {
    Void,
    Correct(Correct),
}

/// A bust or a correction.
struct Statement {
    /// The LSN of what it is about, which is before it; `None` if there is no such record.
    about: Option<Lsn>,
    said: Said,
}

/// The store as it was known when record `at` was its newest.
#[derive(Debug)]
pub struct KnownAt<'s> {
    snapshot: &'s Snapshot,
    at: Lsn,
}

/// The trades of an instrument, in (index time, LSN) order.
pub struct KnownTrades<'s> {
    scan: Scan<'s>,
    at: Lsn,
    said: HashMap<Lsn, (Lsn, Said)>,
    unmatched: u64,
}

impl<'s> KnownAt<'s> {
    /// The store that `snapshot` shows as it was known when record `at` was its newest.
    pub(super) fn new(snapshot: &'s Snapshot, at: Lsn) -> KnownAt<'s> {
        KnownAt { snapshot, at: at.min(snapshot.last()) }
    }

    /// The trades of `instrument` in `range` that were known to have taken place.
    ///
    /// # Errors
    /// Of a file.
    pub fn trades(&self, instrument: InstrumentId, range: TimeRange) -> Result<KnownTrades<'s>> {
        let statements = self.statements(instrument)?;
        let (mut said, mut taken_back, mut unmatched) = (HashMap::new(), HashSet::new(), 0);
        let mut snapshot = self.snapshot.clone();
        // The newest first: what takes a statement back may have been taken back itself.
        for (&lsn, statement) in statements.iter().rev() {
            if taken_back.contains(&lsn) {
                continue;
            }
            let mut about = statement.about;
            if let (Some(target), Said::Void) = (about, statement.said)
                && statements.contains_key(&target)
            {
                taken_back.insert(target);
                continue;
            }
            while let Some(Statement { about: further, said: Said::Correct(_) }) = about.and_then(|a| statements.get(&a)) {
                about = *further;
            }
            let trade = match about {
                Some(about) => snapshot.get(about)?.filter(|row| is_trade(row, instrument)).map(|row| row.lsn),
                None => None,
            };
            match trade {
                Some(trade) => drop(said.entry(trade).or_insert((lsn, statement.said))),
                None => unmatched += 1,
            }
        }
        let trades = Series { instrument, kind: Trade::KIND };
        Ok(KnownTrades { scan: self.snapshot.scan(trades, range), at: self.at, said, unmatched })
    }

    /// The statements about `instrument` that had been made, in the order in which they came.
    fn statements(&self, instrument: InstrumentId) -> Result<BTreeMap<Lsn, Statement>> {
        let mut statements = BTreeMap::new();
        let mut scan = self.snapshot.replay(&[Bust::KIND, Correct::KIND].map(|kind| Series { instrument, kind }), TimeRange::ALL);
        while let Some(row) = scan.next()? {
            if row.lsn > self.at {
                continue;
            }
            let (named, trade_id, source, said) = match (row.record.get::<Bust>(), row.record.get::<Correct>()) {
                (Some(bust), _) => (bust.trade_lsn, bust.trade_id, bust.source, Said::Void),
                (None, Some(correct)) => (correct.trade_lsn, correct.trade_id, correct.source, Said::Correct(*correct)),
                (None, None) => continue,
            };
            let about = if named > Lsn(0) { Some(named) } else { self.newest(instrument, trade_id, source, row.lsn)? };
            statements.insert(row.lsn, Statement { about: about.filter(|about| *about < row.lsn), said });
        }
        Ok(statements)
    }

    /// The newest trade before `lsn` with this id from this source.
    fn newest(&self, instrument: InstrumentId, trade_id: u64, source: u16, lsn: Lsn) -> Result<Option<Lsn>> {
        let found = self.snapshot.find(Series { instrument, kind: Trade::KIND }, "trade_id", trade_id)?;
        let same = |row: &Row<'_>| row.lsn < lsn && row.record.get::<Trade>().is_some_and(|t| t.source == source);
        Ok((0..found.len()).filter_map(|i| found.get(i)).filter(same).map(|row| row.lsn).max())
    }
}

fn is_trade(row: &Row<'_>, instrument: InstrumentId) -> bool {
    row.record.kind() == Trade::KIND && row.record.instrument() == instrument
}

impl KnownTrades<'_> {
    /// The next trade.
    ///
    /// # Errors
    /// Of a file.
    #[expect(clippy::should_implement_trait, reason = "a call can fail")]
    pub fn next(&mut self) -> Result<Option<KnownTrade>> {
        while let Some(row) = self.scan.next()? {
            if row.lsn > self.at {
                continue;
            }
            let Some(trade) = row.record.get::<Trade>() else { continue };
            let (mut trade, mut standing) = (*trade, Standing::AsReported);
            match self.said.get(&row.lsn) {
                Some((_, Said::Void)) => continue,
                Some((lsn, Said::Correct(correct))) => {
                    (trade.price, trade.size) = (correct.price, correct.size);
                    standing = Standing::Corrected(*lsn);
                }
                None => {}
            }
            return Ok(Some(KnownTrade { lsn: row.lsn, index_time: row.index_time, trade, standing }));
        }
        Ok(None)
    }

    /// Statements that are about no trade and no statement of this instrument that came before them, or about one that is
    /// held no longer.
    pub fn unmatched(&self) -> u64 {
        self.unmatched
    }
}
