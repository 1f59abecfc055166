//! Owns: trades as of a moment: with the busts and corrections applied that had arrived by then.
//!
//! What must hold: stored records do not change. A statement (a bust or a correction) refers to the trade whose LSN it
//! names, or else to the newest earlier trade with its id and source. Of several statements about a trade the newest
//! counts. A bust that names the LSN of a statement revokes that statement, as if it had not been made. A correction
//! that names the LSN of a correction applies to the same trade. A statement that refers to neither is counted and has
//! no effect.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Scan, Series, Snapshot, TimeRange};
use crate::error::Result;
use crate::lsn::{InstrumentId, Lsn};
use crate::record::{Bust, Correct, Record, Row, Trade};
use crate::time::Ts;

/// Whether a trade was corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No: it is as reported.
    AsReported,
    /// Yes: its price and size come from the record at this LSN.
    Corrected(Lsn),
}

/// A trade that was valid at the moment.
#[derive(Clone, Copy, Debug)]
pub struct KnownTrade {
    /// Its LSN.
    pub lsn: Lsn,
    /// Its index time.
    pub index_time: Ts,
    /// The trade; if corrected, with the newest price and size.
    pub trade: Trade,
    /// Whether it was corrected.
    pub standing: Standing,
}

/// What the statement that counts does to a trade.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// The trade is void.
    Void,
    /// The trade has another price and size.
    Correct(Correct),
}

/// What the statements about an instrument do to its trades.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Effects {
    /// By the trade's LSN: the statement's LSN and what it does.
    of: HashMap<Lsn, (Lsn, Effect)>,
    unmatched: u64,
}

/// A bust or a correction.
struct Statement {
    /// The LSN it refers to, which is before its own; `None` if there is no such record.
    about: Option<Lsn>,
    effect: Effect,
}

/// The store as of the moment when record `at` was its newest.
#[derive(Debug)]
pub struct KnownAt<'s> {
    snapshot: &'s Snapshot,
    at: Lsn,
}

/// The trades of an instrument, in (index time, LSN) order.
pub struct KnownTrades<'s> {
    scan: Scan<'s>,
    at: Lsn,
    effects: Effects,
}

impl<'s> KnownAt<'s> {
    /// `snapshot` as of the moment when record `at` was its newest.
    pub(super) fn new(snapshot: &'s Snapshot, at: Lsn) -> KnownAt<'s> {
        KnownAt { snapshot, at: at.min(snapshot.last()) }
    }

    /// The trades of `instrument` in `range` that were valid at the moment.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file.
    pub fn trades(&self, instrument: InstrumentId, range: TimeRange) -> Result<KnownTrades<'s>> {
        let effects = self.effects(instrument)?;
        let trades = Series { instrument, kind: Trade::KIND };
        Ok(KnownTrades { scan: self.snapshot.scan(trades, range), at: self.at, effects })
    }

    /// What the statements up to the moment do to the trades of `instrument`.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file.
    #[doc(hidden)]
    pub fn effects(&self, instrument: InstrumentId) -> Result<Effects> {
        let statements = self.statements(instrument)?;
        let (mut effects, mut revoked, mut unmatched) = (HashMap::new(), HashSet::new(), 0);
        let mut snapshot = self.snapshot.clone();
        // The newest first: a statement that revokes another may itself be revoked.
        for (&lsn, statement) in statements.iter().rev() {
            if revoked.contains(&lsn) {
                continue;
            }
            let mut about = statement.about;
            if let (Some(target), Effect::Void) = (about, statement.effect)
                && statements.contains_key(&target)
            {
                revoked.insert(target);
                continue;
            }
            while let Some(Statement { about: further, effect: Effect::Correct(_) }) = about.and_then(|a| statements.get(&a)) {
                assert!(*further < about, "a statement refers to an earlier record, so this ends");
                about = *further;
            }
            let trade = match about {
                Some(about) => snapshot.get(about)?.filter(|row| is_trade(row, instrument)).map(|row| row.lsn),
                None => None,
            };
            match trade {
                Some(trade) => drop(effects.entry(trade).or_insert((lsn, statement.effect))),
                None => unmatched += 1,
            }
        }
        Ok(Effects { of: effects, unmatched })
    }

    /// The statements about `instrument` up to the moment, in order of arrival.
    fn statements(&self, instrument: InstrumentId) -> Result<BTreeMap<Lsn, Statement>> {
        let mut statements = BTreeMap::new();
        let mut scan = self.snapshot.replay(&[Bust::KIND, Correct::KIND].map(|kind| Series { instrument, kind }), TimeRange::ALL);
        while let Some(row) = scan.next()? {
            if row.lsn > self.at {
                continue;
            }
            let (named, trade_id, source, effect) = match (row.record.get::<Bust>(), row.record.get::<Correct>()) {
                (Some(bust), _) => (bust.trade_lsn, bust.trade_id, bust.source, Effect::Void),
                (None, Some(correct)) => (correct.trade_lsn, correct.trade_id, correct.source, Effect::Correct(*correct)),
                (None, None) => continue,
            };
            let about = if named > Lsn(0) { Some(named) } else { self.newest(instrument, trade_id, source, row.lsn)? };
            statements.insert(row.lsn, Statement { about: about.filter(|about| *about < row.lsn), effect });
        }
        Ok(statements)
    }

    /// The newest trade before `lsn` with this id and source.
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
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file.
    #[expect(clippy::should_implement_trait, reason = "a call can fail")]
    pub fn next(&mut self) -> Result<Option<KnownTrade>> {
        while let Some(row) = self.scan.next()? {
            if row.lsn > self.at {
                continue;
            }
            let Some(trade) = row.record.get::<Trade>() else { continue };
            let (mut trade, mut standing) = (*trade, Standing::AsReported);
            match self.effects.of.get(&row.lsn) {
                Some((_, Effect::Void)) => continue,
                Some((lsn, Effect::Correct(correct))) => {
                    (trade.price, trade.size) = (correct.price, correct.size);
                    standing = Standing::Corrected(*lsn);
                }
                None => {}
            }
            return Ok(Some(KnownTrade { lsn: row.lsn, index_time: row.index_time, trade, standing }));
        }
        Ok(None)
    }

    /// Number of statements that refer to no earlier trade or statement of this instrument, or to an expired one.
    pub fn unmatched(&self) -> u64 {
        self.effects.unmatched
    }
}

impl Effects {
    /// Each trade with a statement that counts, by its LSN.
    #[doc(hidden)]
    pub fn trades(self) -> impl Iterator<Item = (Lsn, Effect)> {
        self.of.into_iter().map(|(trade, (_, effect))| (trade, effect))
    }
}
