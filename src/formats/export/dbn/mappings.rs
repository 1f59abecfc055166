//! Owns: which numbers and symbols the instruments of a store have in DBN files, by the mappings that came with them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dbn::{MappingInterval, Metadata, SType, SymbolMapping};
use tapestore::lsn::InstrumentId;
use tapestore::reader::{Series, TimeRange};
use tapestore::record::{Kind, Mapping, Name, Record};
use tapestore::time::{NANOS_PER_SECOND, Ts};

use crate::error::Result;
use crate::export::run::Run;

/// Data set of instruments whose name says none.
const NO_DATASET: &str = "TAPE";
const STYPE_NONE: u8 = 255;

/// Numbers of one instrument: from when until when which, by when they begin.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(Vec<(Ts, Ts, u32)>);

impl Numbers {
    /// The number at `time`: the last that has begun and has not ended; of one that has had a single number, that.
    pub(super) fn at(&self, time: Ts) -> Option<u32> {
        let holds = |(from, to, _): &&(Ts, Ts, u32)| *from <= time && (time < *to || to.is_null());
        let single = || self.0.first().filter(|(_, _, id)| self.0.iter().all(|s| s.2 == *id));
        self.0.iter().rev().find(holds).or_else(single).map(|(_, _, id)| *id)
    }
}

const DAY_NS: u64 = 86_400 * NANOS_PER_SECOND;

/// Whether a mapping is of whole days, and was made when they begin: as metadata has them.
fn is_dated(m: &Mapping) -> bool {
    let days = [m.start_ts, m.end_ts].iter().all(|t| !t.is_null() && t.0.is_multiple_of(DAY_NS));
    days && m.start_ts < m.end_ts && m.ts_event == m.start_ts
}

/// Whether a mapping came among the records.
pub(super) fn is_message(m: &Mapping) -> bool {
    !is_dated(m) && m.stype_out_symbol != [0; 71]
}

/// What a data set's files say of its instruments.
#[derive(Default)]
pub(super) struct Dataset {
    pub(super) instruments: BTreeSet<InstrumentId>,
    pub(super) mappings: Vec<Mapping>,
    /// Those that have mappings, and those that have none.
    pub(super) numbers: HashMap<InstrumentId, Numbers>,
    unmapped: BTreeMap<InstrumentId, u32>,
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect()
}

/// The data set that the name of an instrument says, and its symbol.
fn split(name: &Name) -> (&str, &str) {
    match name.as_str().split_once(':') {
        Some((dataset, symbol)) if dataset.len() <= 16 && !symbol.is_empty() => (dataset, symbol),
        _ => (NO_DATASET, name.as_str()),
    }
}

/// All that mappings say of the instruments of `kinds`, by data set.
pub(super) fn datasets(run: &mut Run<'_>, kinds: &BTreeMap<Kind, Vec<Series>>) -> Result<BTreeMap<String, Dataset>> {
    let instruments: BTreeSet<InstrumentId> = kinds.values().flatten().map(|s| s.instrument).collect();
    let mut datasets: BTreeMap<String, Dataset> = BTreeMap::new();
    for instrument in instruments {
        let series = Series { instrument, kind: Mapping::KIND };
        let name = run.name(instrument)?;
        let mut mappings: Vec<Mapping> = Vec::new();
        let mut scan = run.snapshot.scan(series, TimeRange::ALL);
        while let Some(row) = scan.next()? {
            let Some(mapping) = row.record.get::<Mapping>() else { continue };
            // The same one of a second file adds nothing.
            let mapping = Mapping { source: 0, ..*mapping };
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        let own = mappings.last().map(|m| text(&m.dataset)).filter(|d| !d.is_empty());
        let dataset = datasets.entry(own.unwrap_or_else(|| split(&name).0.to_owned())).or_default();
        dataset.instruments.insert(instrument);
        let begin = |m: &Mapping| if is_dated(m) { m.start_ts } else { m.ts_event };
        let mut spans: Vec<(Ts, Ts, u32)> = mappings.iter().map(|m| (begin(m), m.end_ts, m.raw_id as u32)).collect();
        spans.sort_by_key(|span| span.0);
        if spans.is_empty() {
            dataset.unmapped.insert(instrument, instrument.0);
        }
        dataset.numbers.insert(instrument, Numbers(spans));
        dataset.mappings.extend(mappings);
    }
    for dataset in datasets.values_mut() {
        let taken: BTreeSet<u32> = dataset.mappings.iter().map(|m| m.raw_id as u32).collect();
        for (instrument, number) in &mut dataset.unmapped {
            if taken.contains(number) {
                *number |= 1 << 31;
            }
            dataset.numbers.insert(*instrument, Numbers(vec![(Ts(0), Ts::NULL, *number)]));
        }
    }
    Ok(datasets)
}

fn date(at: Ts) -> time::Date {
    let seconds = i64::try_from(at.0 / NANOS_PER_SECOND).unwrap_or(0);
    time::OffsetDateTime::from_unix_timestamp(seconds).map_or(time::Date::MIN, time::OffsetDateTime::date)
}

/// Symbols with their intervals, in the order in which they come.
#[derive(Default)]
struct Symbols {
    mappings: Vec<SymbolMapping>,
    at: HashMap<String, usize>,
}

impl Symbols {
    fn add(&mut self, raw_symbol: String, interval: MappingInterval) {
        let next = self.mappings.len();
        let at = *self.at.entry(raw_symbol.clone()).or_insert(next);
        match self.mappings.get_mut(at) {
            Some(mapping) => mapping.intervals.push(interval),
            None => self.mappings.push(SymbolMapping { raw_symbol, intervals: vec![interval] }),
        }
    }
}

/// The metadata of a file of `dataset` whose rows are of `schema` and begin at `start`.
pub(super) fn metadata(
    run: &mut Run<'_>,
    code: &str,
    dataset: &Dataset,
    schema: dbn::Schema,
    start: Ts,
    kind: Kind,
) -> Result<Metadata> {
    // One with a number alone names nothing, and says only what types the source had.
    let typed = dataset.mappings.iter().filter(|m| !is_message(m) && (m.stype_in != STYPE_NONE || m.stype_out != STYPE_NONE));
    let types: BTreeSet<(u8, u8)> = typed.clone().map(|m| (m.stype_in, m.stype_out)).collect();
    let is_number = |t: u8| t == SType::InstrumentId as u8;
    let one = types.first().copied().filter(|t| types.len() == 1 && (is_number(t.0) || is_number(t.1)));
    let mut symbols = Symbols::default();
    for m in typed.filter(|m| m.stype_out_symbol != [0; 71]) {
        let (start_date, end_date) = (date(m.start_ts), date(m.end_ts));
        let (raw_symbol, symbol) = match one {
            Some(_) => (text(&m.stype_in_symbol), text(&m.stype_out_symbol)),
            // Types that differ become the one that all readers have: from the venue's symbol to the number.
            None if is_number(m.stype_out) => (text(&m.stype_in_symbol), m.raw_id.to_string()),
            None => (text(&m.stype_out_symbol), m.raw_id.to_string()),
        };
        symbols.add(raw_symbol, MappingInterval { start_date, end_date, symbol });
    }
    for (&instrument, number) in &dataset.unmapped {
        let series = Series { instrument, kind };
        let mut snapshot = run.snapshot.clone();
        let Some(last) = snapshot.as_of(series, Ts(u64::MAX))?.map(|row| row.index_time) else { continue };
        let first = snapshot.scan(series, TimeRange::ALL).next()?.map_or(last, |row| row.index_time);
        let name = run.name(instrument)?;
        let end_date = date(last).next_day().unwrap_or(time::Date::MAX);
        let interval = MappingInterval { start_date: date(first), end_date, symbol: number.to_string() };
        symbols.add(split(&name).1.to_owned(), interval);
    }
    let stype = |t: Option<u8>, otherwise: SType| t.and_then(|t| SType::try_from(t).ok()).unwrap_or(otherwise);
    let (stype_in, stype_out) = (stype(one.map(|o| o.0), SType::RawSymbol), stype(one.map(|o| o.1), SType::InstrumentId));
    // With mappings among its records a file is of more than one schema.
    let is_mixed = dataset.mappings.iter().any(is_message);
    let builder = Metadata::builder().dataset(code).schema(Some(schema).filter(|_| !is_mixed));
    let TimeRange { from, to } = run.options.range;
    let builder = builder.start(if from == Ts(0) { start.0 } else { from.0 });
    let builder = builder.stype_in(Some(stype_in).filter(|_| !is_mixed)).stype_out(stype_out);
    let builder = builder.symbols(symbols.mappings.iter().map(|m| m.raw_symbol.clone()).collect());
    let builder = builder.mappings(symbols.mappings);
    let end = Some(to.0).filter(|_| !to.is_null()).and_then(std::num::NonZeroU64::new);
    Ok(builder.end(end).build())
}
