//! Owns: the bars of a range of an instrument as its trades make them, and which of them differ from the stored ones.
//!
//! What must hold: the bars are those of `tape bars` over the same trades. A bar that is stored already, by this publisher, is
//! not given again. A bar is not replaced by one of fewer trades: those of the stored one have expired. Memory does not grow with
//! the range.

use tapestore::bars::{BarRecord, Builder, Options, Rule};
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{Scan, Series, Snapshot, TimeRange};
use tapestore::record::{Bar1d, Bar1h, Bar1m, Bar1s, Record, RecordRef, Trade, Volume};
use tapestore::time::Ts;

use super::Derive;
use super::agent::Failed;

/// What came of the bars of a range.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// Bars that were published.
    pub(super) published: u64,
    /// Bars that were not replaced, because trades of them have expired.
    pub(super) kept: u64,
}

/// The stored bars of one publisher, in the order of time.
struct Stored<'s> {
    snapshot: &'s Snapshot,
    derive: &'s Derive,
    rows: Scan<'s>,
    /// The next one: its time, its LSN, its words.
    ahead: Option<(Ts, Lsn, Vec<u64>)>,
}

impl Stored<'_> {
    /// The words of the newest bar that begins at `start`; each call is for a later one.
    fn newest_at(&mut self, start: Ts) -> Result<Option<Vec<u64>>, Failed> {
        let mut newest = None;
        loop {
            if self.ahead.is_none() {
                let row = self.rows.next()?;
                self.ahead = row.map(|row| (row.index_time, row.lsn, row.record.words().to_vec()));
            }
            match self.ahead.take() {
                Some((time, lsn, words)) if time == start => {
                    let is_own = self.snapshot.arrival(lsn)?.is_some_and(|a| a.publisher == self.derive.publisher);
                    newest = if is_own { Some(words) } else { newest };
                }
                Some((time, ..)) if time < start => {}
                later => {
                    self.ahead = later;
                    return Ok(newest);
                }
            }
        }
    }
}

fn volume(record: RecordRef<'_>) -> Option<u128> {
    let second = record.get::<Bar1s>().map(|bar| bar.volume);
    let minute = || record.get::<Bar1m>().map(|bar| bar.volume);
    let hour = || record.get::<Bar1h>().map(|bar| bar.volume);
    let volume = second.or_else(minute).or_else(hour).or_else(|| record.get::<Bar1d>().map(|bar| bar.volume));
    volume.map(Volume::units)
}

/// Calls `publish` for each bar of `instrument` in `range`, which holds whole intervals, that is not stored as it is.
///
/// # Errors
/// Those of reading a file, and of `publish`.
pub(super) fn differing(
    snapshot: &Snapshot,
    derive: &Derive,
    instrument: InstrumentId,
    range: TimeRange,
    publish: &mut impl FnMut(RecordRef<'_>) -> Result<(), Failed>,
) -> Result<Count, Failed> {
    let mut trades = snapshot.scan(Series { instrument, kind: Trade::KIND }, range);
    let rows = snapshot.scan(Series { instrument, kind: derive.kind }, range);
    let mut stored = Stored { snapshot, derive, rows, ahead: None };
    let mut count = Count::default();
    let mut give = |record: Option<BarRecord>| -> Result<(), Failed> {
        // Whole intervals of the kinds are records.
        let Some(record) = record else { return Ok(()) };
        let record = record.as_ref();
        let before = stored.newest_at(record.own_index_time())?;
        match before {
            Some(words) if words == record.words() => return Ok(()),
            Some(words) if volume(RecordRef::first(&words)?) > volume(record) => {
                count.kept += 1;
                return Ok(());
            }
            _ => {}
        }
        count.published += 1;
        publish(record)
    };
    let mut builder = Builder::new(Options::new(Rule::Time { interval: derive.interval }))?;
    let mut closed = Vec::new();
    while let Some(row) = trades.next()? {
        let Some(trade) = row.record.get::<Trade>() else { continue };
        builder.push(row.lsn, row.index_time, trade, &mut |bar| closed.push(bar));
        closed.drain(..).try_for_each(|bar| give(bar.record()))?;
    }
    builder.finish(&mut |bar| closed.push(bar));
    closed.drain(..).try_for_each(|bar| give(bar.record()))?;
    Ok(count)
}
