//! Owns: `bars(symbol, rule [, from, to])`: bars of trades, as `tape bars` makes them.
//!
//! What must hold: a condition on `time` never changes a bar: time bars are made of all their trades, and bars of ticks, volume or value
//! are counted from `from`, whatever a statement selects of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, RecordBatch, TimestampNanosecondArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, UInt32Type};
use datafusion::catalog::TableProvider;
use datafusion::error::Result;
use tape_services::query::Pattern;
use tapestore::bars::{Bar, Builder, Options, Rule, Value};
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{KnownTrades, Scan, Series, TimeRange};
use tapestore::record::{Name, Price, Record, Trade, Volume};
use tapestore::time::{Ts, parse_duration};

use super::{Call, Generated, Out, Rows};
use crate::engine::Moment;
use crate::failure::external;
use crate::schema::{UNITS, symbol, time};

/// Bars of a batch.
const BATCH_ROWS: usize = 8192;
/// Trades between two looks at whether somebody still reads.
const LOOK: u64 = 1 << 20;

#[derive(Debug)]
struct Bars {
    moment: Moment,
    instruments: Vec<u32>,
    rule: Rule,
    /// The trades that bars are counted from and to.
    range: TimeRange,
    schema: SchemaRef,
}

/// The rule that `text` says: `1m`, `100 ticks`, `5.5 volume`, `1000000 value`.
fn rule(text: &str) -> tapestore::Result<Rule> {
    let mut words = text.split_whitespace();
    let (amount, unit) = (words.next().unwrap_or(""), words.next());
    let invalid = |reason: String| tapestore::Error::invalid("rule of bars", reason);
    if words.next().is_some() {
        return Err(invalid(format!("'{text}' has more than a number and a unit")));
    }
    match unit {
        None => parse_duration(amount).map(|interval| Rule::Time { interval }),
        Some("ticks") => amount.parse().map(Rule::Ticks).map_err(|_| invalid(format!("'{amount}' is not a number of trades"))),
        Some("volume") => amount.parse::<Volume>().map(Rule::Volume),
        Some("value") => amount.parse::<Value>().map(Rule::Value),
        Some(other) => Err(invalid(format!("'{other}' is none of: ticks, volume, value"))),
    }
}

/// The table.
pub(super) fn table(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    let moment = call.moment().clone();
    let pattern = Pattern::new(call.text(0)?).map_err(|failure| call.wrong(&failure.message))?;
    let instruments = if pattern.is_one() {
        vec![call.instrument(0)?]
    } else {
        let all = moment.names.all().into_iter().filter(|name| name.parse::<Name>().is_ok_and(|name| pattern.matches(&name)));
        all.filter_map(|name| moment.names.id(&name)).collect()
    };
    let rule = rule(call.text(1)?).map_err(|error| call.wrong(&error.to_string()))?;
    // A rule of zero trades is an error of the builder.
    Builder::new(Options::new(rule)).map_err(|error| call.wrong(&error.to_string()))?;
    let range = TimeRange { from: call.time(2)?.unwrap_or(TimeRange::ALL.from), to: call.time(3)?.unwrap_or(TimeRange::ALL.to) };
    let names = moment.names.clone();
    let rows = Bars { moment, instruments, rule, range, schema: schema() };
    Ok(Arc::new(Generated { rows: Arc::new(rows), names: Some(names) }))
}

fn schema() -> SchemaRef {
    let decimals = ["open", "high", "low", "close", "volume", "value", "vwap"];
    let mut fields = vec![Field::new("symbol", symbol(), true), Field::new("time", time(), false)];
    fields.push(Field::new("end_time", time(), false));
    fields.extend(decimals.map(|name| Field::new(name, DataType::Float64, true)));
    fields.extend(["trades", "first_lsn", "last_lsn"].map(|name| Field::new(name, DataType::UInt64, false)));
    Arc::new(ArrowSchema::new(fields))
}

impl Bars {
    /// The trades that decide the bars of which some are wanted.
    fn trades(&self, builder: &mut Builder, wanted: TimeRange) -> TimeRange {
        let range = if matches!(self.rule, Rule::Time { .. }) {
            TimeRange { from: self.range.from.max(wanted.from), to: self.range.to.min(wanted.to) }
        } else {
            return self.range;
        };
        let first = builder.interval(range.from).map_or(range.from, |(start, _)| start);
        let last = builder.interval(range.to).map_or(range.to, |(_, end)| Ts(end.0.saturating_sub(1)).max(range.to));
        TimeRange { from: first, to: last }
    }

    fn batch(&self, bars: &[(u32, Bar)]) -> Result<RecordBatch> {
        let price = |of: fn(&Bar) -> Price| -> ArrayRef {
            let all = bars.iter().map(|(_, bar)| Some(of(bar)).filter(|p| *p != Price::NULL).map(|p| p.0 as f64 / UNITS));
            Arc::new(all.collect::<Float64Array>())
        };
        let times = |of: fn(&Bar) -> Ts| -> ArrayRef {
            let all = bars.iter().map(|(_, bar)| i64::try_from(of(bar).0).unwrap_or(i64::MAX));
            Arc::new(TimestampNanosecondArray::from_iter_values(all))
        };
        let numbers =
            |of: fn(&Bar) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(bars.iter().map(|(_, bar)| of(bar)))) };
        let volumes = bars.iter().map(|(_, bar)| Some(bar.volume.units()).filter(|_| bar.volume != Volume::NULL));
        let volumes = volumes.map(|units| units.map(|units| units as f64 / UNITS));
        let values = bars.iter().map(|(_, bar)| Some(bar.value.0 as f64 / UNITS / UNITS).filter(|_| bar.value != Value::NULL));
        let keys = UInt32Array::from_iter_values(bars.iter().map(|(id, _)| *id));
        let symbols = DictionaryArray::<UInt32Type>::try_new(keys, self.moment.names.values.clone())?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(symbols),
            times(|bar| bar.start),
            times(|bar| bar.end),
            price(|bar| bar.open),
            price(|bar| bar.high),
            price(|bar| bar.low),
            price(|bar| bar.close),
            Arc::new(volumes.collect::<Float64Array>()),
            Arc::new(values.collect::<Float64Array>()),
            price(Bar::vwap),
            numbers(|bar| bar.trades),
            numbers(|bar| bar.first_lsn.0),
            numbers(|bar| bar.last_lsn.0),
        ];
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// The trades that bars are made of: as they are stored, or as known at a record.
enum Trades<'s> {
    Stored(Box<Scan<'s>>, Lsn),
    Known(Box<KnownTrades<'s>>),
}

impl<'s> Trades<'s> {
    fn new(moment: &'s Moment, instrument: InstrumentId, range: TimeRange) -> tapestore::Result<Trades<'s>> {
        if let Some(known) = moment.known {
            return Ok(Trades::Known(Box::new(moment.snapshot.as_known_at(known).trades(instrument, range)?)));
        }
        let scan = moment.snapshot.scan(Series { instrument, kind: Trade::KIND }, range);
        Ok(Trades::Stored(Box::new(scan), moment.until.unwrap_or(Lsn(u64::MAX))))
    }

    /// The next trade with its LSN and its index time.
    fn next(&mut self) -> tapestore::Result<Option<(Lsn, Ts, Trade)>> {
        match self {
            Trades::Known(trades) => Ok(trades.next()?.map(|known| (known.lsn, known.index_time, known.trade))),
            Trades::Stored(scan, until) => loop {
                let Some(row) = scan.next()? else { return Ok(None) };
                if let Some(trade) = row.record.get::<Trade>().filter(|_| row.lsn <= *until) {
                    return Ok(Some((row.lsn, row.index_time, *trade)));
                }
            },
        }
    }
}

impl Rows for Bars {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn write(&self, out: &Out<'_>) -> Result<()> {
        let mut closed: Vec<(u32, Bar)> = Vec::new();
        let is_wanted = |id: &u32| out.wanted.instruments.as_ref().is_none_or(|some| some.contains(id));
        for &id in self.instruments.iter().filter(|id| is_wanted(id)) {
            let mut builder = Builder::new(Options::new(self.rule)).map_err(external)?;
            let range = self.trades(&mut builder, out.wanted.time);
            if range.from > range.to {
                continue;
            }
            let mut trades = Trades::new(&self.moment, InstrumentId(id), range).map_err(external)?;
            let mut read = 0u64;
            while let Some((lsn, time, trade)) = trades.next().map_err(external)? {
                builder.push(lsn, time, &trade, &mut |bar| closed.push((id, bar)));
                read += 1;
                if read.is_multiple_of(LOOK) && !out.is_wanted() {
                    return Ok(());
                }
                if closed.len() >= BATCH_ROWS {
                    let batch = self.batch(&closed)?;
                    closed.clear();
                    if let ControlFlow::Break(()) = out.send_all(&batch)? {
                        return Ok(());
                    }
                }
            }
            builder.finish(&mut |bar| closed.push((id, bar)));
        }
        let batch = self.batch(&closed)?;
        out.send_all(&batch).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_length_or_a_number_with_its_unit() {
        assert_eq!(rule("5m").unwrap(), Rule::Time { interval: 300_000_000_000 });
        assert_eq!(rule("100 ticks").unwrap(), Rule::Ticks(100));
        assert_eq!(rule("5.5 volume").unwrap(), Rule::Volume(Volume::new(5_500_000_000)));
        assert_eq!(rule(" 1000  value ").unwrap(), Rule::Value("1000".parse().unwrap()));
        for wrong in ["", "5", "ticks", "5 lots", "x ticks", "5 ticks more", "1M"] {
            assert!(rule(wrong).is_err(), "{wrong}");
        }
    }
}
