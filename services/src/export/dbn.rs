//! Owns: DBN files (version 3) of a store's rows: a file a data set and schema, all instruments in the order
//! of (index time, LSN), numbered and named as the mappings say that came with them.
//!
//! Mappings of whole days are in the metadata, others among the records, where they came. An instrument
//! without one has its number in the store and the name behind its data set's. A record whose size is no
//! whole number that DBN can hold is left in the store; so are records at times for which mappings say no
//! number, and kinds that DBN does not have. What DBN has no field for (ids of trades, the store's own
//! sizes of definitions) is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_char;
use std::fs::File;
use std::io::{BufWriter, Write};

use dbn::encode::dbn::MetadataEncoder;
use dbn::{BidAskPair, FlagSet, MappingInterval, Metadata, RecordHeader, RecordRef, SType, SymbolMapping, rtype};
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{Row, Series, TimeRange};
use tapestore::record::{
    Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Definition, Depth10, Imbalance, Kind, Mapping, Name, Quote, Record, Schema, Size,
    Statistic, Status, Trade, schema,
};
use tapestore::time::{NANOS_PER_SECOND, Ts};

use super::{Export, Format, Pending, Sink};
use crate::exit::{Failure, IO, Outcome, USAGE};
use crate::tally::{Tally, name_hash};

/// Level of zstd, Databento's own.
const ZSTD_LEVEL: i32 = 0;
/// Data set of instruments whose name says none.
const NO_DATASET: &str = "TAPE";
const ONE_FILE: &str = "a DBN file holds one schema of one data set; choose with --kind and --instrument, or name a directory";
const STYPE_NONE: u8 = 255;
const ONE: u64 = 1_000_000_000;

/// Numbers of one instrument: from when until when which, by when they begin.
#[derive(Clone, Debug, Default)]
struct Numbers(Vec<(Ts, Ts, u32)>);

impl Numbers {
    /// The number at `time`: the last that has begun and has not ended; of one that has had a single number, that.
    fn at(&self, time: Ts) -> Option<u32> {
        let holds = |(from, to, _): &&(Ts, Ts, u32)| *from <= time && (time < *to || to.is_null());
        let single = || self.0.first().filter(|(_, _, id)| self.0.iter().all(|s| s.2 == *id));
        self.0.iter().rev().find(holds).or_else(single).map(|(_, _, id)| *id)
    }
}

const DAY_NS: u64 = 86_400 * NANOS_PER_SECOND;

/// Whether a mapping is of whole days and known when they begin: as metadata says them.
fn is_dated(m: &Mapping) -> bool {
    let days = [m.start_ts, m.end_ts].iter().all(|t| !t.is_null() && t.0.is_multiple_of(DAY_NS));
    days && m.start_ts < m.end_ts && m.ts_event == m.start_ts
}

/// Whether a mapping came among the records.
fn is_message(m: &Mapping) -> bool {
    !is_dated(m) && m.stype_out_symbol != [0; 71]
}

/// What a data set's files say of its instruments.
#[derive(Default)]
struct Dataset {
    instruments: BTreeSet<InstrumentId>,
    mappings: Vec<Mapping>,
    /// Those that have mappings, and those that have none.
    numbers: HashMap<InstrumentId, Numbers>,
    unmapped: BTreeMap<InstrumentId, u32>,
}

/// The schemas of a kind's records.
fn schema_of(row: &Row<'_>) -> Option<dbn::Schema> {
    let kind = row.record.kind();
    let known = [
        (Trade::KIND, dbn::Schema::Trades),
        (BookOrder::KIND, dbn::Schema::Mbo),
        (Depth10::KIND, dbn::Schema::Mbp10),
        (Bar1s::KIND, dbn::Schema::Ohlcv1S),
        (Bar1m::KIND, dbn::Schema::Ohlcv1M),
        (Bar1h::KIND, dbn::Schema::Ohlcv1H),
        (Bar1d::KIND, dbn::Schema::Ohlcv1D),
        (Definition::KIND, dbn::Schema::Definition),
        (Statistic::KIND, dbn::Schema::Statistics),
        (Status::KIND, dbn::Schema::Status),
        (Imbalance::KIND, dbn::Schema::Imbalance),
    ];
    if let Some(quote) = row.record.get::<Quote>() {
        let variants = [dbn::Schema::Tbbo, dbn::Schema::Bbo1S, dbn::Schema::Bbo1M];
        return Some(variants.into_iter().find(|v| *v as u8 == quote.variant).unwrap_or(dbn::Schema::Mbp1));
    }
    known.iter().find(|(k, _)| *k == kind).map(|(_, s)| *s)
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
fn datasets(export: &mut Export<'_>, kinds: &BTreeMap<Kind, Vec<Series>>) -> Outcome<BTreeMap<String, Dataset>> {
    let instruments: BTreeSet<InstrumentId> = kinds.values().flatten().map(|s| s.instrument).collect();
    let mut datasets: BTreeMap<String, Dataset> = BTreeMap::new();
    for instrument in instruments {
        let series = Series { instrument, kind: Mapping::KIND };
        let name = export.name(series)?;
        let mut mappings: Vec<Mapping> = Vec::new();
        let mut scan = export.snapshot.scan(series, TimeRange::ALL);
        while let Some(row) = scan.next()? {
            let Some(mapping) = row.record.get::<Mapping>() else { continue };
            // Said again, by a second file, it says nothing new.
            let mapping = Mapping { source: 0, ..*mapping };
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        let said = mappings.last().map(|m| text(&m.dataset)).filter(|d| !d.is_empty());
        let dataset = datasets.entry(said.unwrap_or_else(|| split(&name).0.to_owned())).or_default();
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
fn metadata(
    export: &mut Export<'_>,
    code: &str,
    dataset: &Dataset,
    schema: dbn::Schema,
    start: Ts,
    kind: Kind,
) -> Outcome<Metadata> {
    // One that says a number alone names nothing, but what types the source had.
    let typed = dataset.mappings.iter().filter(|m| !is_message(m) && (m.stype_in != STYPE_NONE || m.stype_out != STYPE_NONE));
    let types: BTreeSet<(u8, u8)> = typed.clone().map(|m| (m.stype_in, m.stype_out)).collect();
    let is_number = |t: u8| t == SType::InstrumentId as u8;
    let one = types.first().copied().filter(|t| types.len() == 1 && (is_number(t.0) || is_number(t.1)));
    let mut symbols = Symbols::default();
    for m in typed.filter(|m| m.stype_out_symbol != [0; 71]) {
        let (start_date, end_date) = (date(m.start_ts), date(m.end_ts));
        let (raw_symbol, symbol) = match one {
            Some(_) => (text(&m.stype_in_symbol), text(&m.stype_out_symbol)),
            // Types that differ become the one that all readers know: from the venue's symbol to the number.
            None if is_number(m.stype_out) => (text(&m.stype_in_symbol), m.raw_id.to_string()),
            None => (text(&m.stype_out_symbol), m.raw_id.to_string()),
        };
        symbols.add(raw_symbol, MappingInterval { start_date, end_date, symbol });
    }
    for (&instrument, number) in &dataset.unmapped {
        let series = Series { instrument, kind };
        let mut snapshot = export.snapshot.clone();
        let Some(last) = snapshot.as_of(series, Ts(u64::MAX))?.map(|row| row.index_time) else { continue };
        let first = snapshot.scan(series, TimeRange::ALL).next()?.map_or(last, |row| row.index_time);
        let name = export.name(series)?;
        let end_date = date(last).next_day().unwrap_or(time::Date::MAX);
        let interval = MappingInterval { start_date: date(first), end_date, symbol: number.to_string() };
        symbols.add(split(&name).1.to_owned(), interval);
    }
    let stype = |t: Option<u8>, otherwise: SType| t.and_then(|t| SType::try_from(t).ok()).unwrap_or(otherwise);
    let (stype_in, stype_out) = (stype(one.map(|o| o.0), SType::RawSymbol), stype(one.map(|o| o.1), SType::InstrumentId));
    // With mappings among its records a file is of more than one schema.
    let is_mixed = dataset.mappings.iter().any(is_message);
    let builder = Metadata::builder().dataset(code).schema(Some(schema).filter(|_| !is_mixed));
    let builder = builder.start(export.args.span.from.unwrap_or(start).0);
    let builder = builder.stype_in(Some(stype_in).filter(|_| !is_mixed)).stype_out(stype_out);
    let builder = builder.symbols(symbols.mappings.iter().map(|m| m.raw_symbol.clone()).collect());
    let builder = builder.mappings(symbols.mappings);
    Ok(builder.end(export.args.span.to.and_then(|to| std::num::NonZeroU64::new(to.0))).build())
}

/// `code` as part of a file's name.
fn as_file(code: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = code.chars().map(clean).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

/// Writes DBN files of `kinds`.
pub(super) fn export(export: &mut Export<'_>, kinds: &BTreeMap<Kind, Vec<Series>>) -> Outcome {
    let datasets = datasets(export, kinds)?;
    if !export.is_dir && (datasets.len() > 1 || kinds.keys().filter(|k| **k != Mapping::KIND).count() > 1) {
        return Err(Failure::new(USAGE, ONE_FILE));
    }
    for (code, dataset) in &datasets {
        let mut files = 0;
        for (kind, series) in kinds {
            // Mappings go with every file.
            let Some(of) = schema(*kind).filter(|s| s.kind != Mapping::KIND) else { continue };
            let series: Vec<Series> = series.iter().filter(|s| dataset.instruments.contains(&s.instrument)).copied().collect();
            files += self::kind(export, of, code, dataset, &series)?;
        }
        if files == 0 && kinds.contains_key(&Mapping::KIND) && !dataset.mappings.is_empty() {
            let what = format!("mappings of {code}, which go with records, and there are none");
            export.leave(&what, dataset.mappings.len() as u64);
        }
    }
    Ok(())
}

/// Files of one kind of one data set; how many there are.
fn kind(export: &mut Export<'_>, of: &'static Schema, code: &str, dataset: &Dataset, series: &[Series]) -> Outcome<usize> {
    let mut files: BTreeMap<dbn::Schema, Pending> = BTreeMap::new();
    let mut names: HashMap<InstrumentId, (Name, u64)> = HashMap::new();
    let mut all = series.to_vec();
    for &one in series {
        let name = export.name(one)?;
        names.insert(one.instrument, (name, name_hash(&name)));
        if dataset.mappings.iter().any(is_message) {
            all.push(Series { kind: Mapping::KIND, ..one });
        }
    }
    let (mut unknown, force) = (0u64, export.args.force);
    // Mappings among the records, as far as they have come: every file begins with them.
    let mut said: Vec<(Lsn, Ts, Mapping)> = Vec::new();
    let mut rows = export.snapshot.replay(&all, export.args.span.range());
    while !export.is_full()
        && let Some(row) = rows.next()?
    {
        export.tick()?;
        let Some((name, hash)) = names.get(&row.record.instrument()) else { continue };
        if let Some(mapping) = row.record.get::<Mapping>() {
            if is_message(mapping) {
                said.push((row.lsn, row.index_time, *mapping));
                for file in files.values_mut() {
                    export.total.records += u64::from(file.push(&row, name, *hash)?);
                }
            }
            continue;
        }
        let Some(schema) = schema_of(&row) else {
            unknown += 1;
            continue;
        };
        if !files.contains_key(&schema) {
            if !export.is_dir && !files.is_empty() {
                return Err(Failure::new(USAGE, ONE_FILE));
            }
            let metadata = metadata(export, code, dataset, schema, row.index_time, of.kind)?;
            let (numbers, compressed) = (dataset.numbers.clone(), export.format == Format::DbnZst);
            let path = export.path(&format!("{}.{}", as_file(code), schema.as_str()))?;
            let open = |file| Ok(Box::new(Dbn::new(file, &metadata, numbers, schema, compressed)?) as Box<dyn Sink>);
            let mut file = Pending::create(path, of, force, open)?;
            for (lsn, index_time, mapping) in &said {
                let record = tapestore::record::RecordRef::of(mapping);
                let Some((name, hash)) = names.get(&mapping.instrument) else { continue };
                let row = Row { lsn: *lsn, index_time: *index_time, record };
                export.total.records += u64::from(file.push(&row, name, *hash)?);
            }
            files.insert(schema, file);
        }
        let Some(file) = files.get_mut(&schema) else { continue };
        export.total.records += u64::from(file.push(&row, name, *hash)?);
    }
    for file in files.values_mut() {
        export.finish(file)?;
    }
    if unknown > 0 {
        export.leave(&format!("{} records, a kind that DBN does not have", of.name), unknown);
    }
    Ok(files.len())
}

enum Out {
    Plain(BufWriter<File>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Out::Plain(out) => out.write(buf),
            Out::Zstd(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Out::Plain(out) => out.flush(),
            Out::Zstd(out) => out.flush(),
        }
    }
}

/// A DBN file.
struct Dbn {
    out: Out,
    numbers: HashMap<InstrumentId, Numbers>,
    schema: dbn::Schema,
    left: BTreeMap<&'static str, u64>,
}

const NO_NUMBER: &str = "records at times for which mappings say no number";
const NO_SIZE: &str = "records whose size is no whole number below 4294967295";
const NO_VOLUME: &str = "bars whose volume is no whole number below 18446744073709551615";

/// A size as DBN has it; `None` if it cannot.
fn whole(size: Size) -> Option<u32> {
    match size {
        Size::NULL => Some(dbn::UNDEF_ORDER_SIZE),
        Size(units) if units % ONE == 0 => u32::try_from(units / ONE).ok().filter(|s| *s != dbn::UNDEF_ORDER_SIZE),
        Size(_) => None,
    }
}

/// Fills in the fields that have the same name on both sides; ends with why if a size does not fit.
macro_rules! convert {
    ($to:ident from $m:ident, $hd:expr; $($price:ident)*; $($size:ident)*; $($char:ident)*; $($same:ident)*; $($more:tt)*) => {
        dbn::$to {
            hd: $hd,
            $($price: $m.$price.0,)*
            $($size: whole($m.$size).ok_or(NO_SIZE)?,)*
            $($char: $m.$char.0 as c_char,)*
            $($same: $m.$same,)*
            $($more)*
        }
    };
}

fn level(l: &tapestore::record::Level) -> Option<BidAskPair> {
    let (bid_sz, ask_sz) = (whole(l.bid_sz)?, whole(l.ask_sz)?);
    Some(BidAskPair { bid_px: l.bid_px.0, ask_px: l.ask_px.0, bid_sz, ask_sz, bid_ct: l.bid_ct, ask_ct: l.ask_ct })
}

impl Dbn {
    fn new(
        file: File,
        metadata: &Metadata,
        numbers: HashMap<InstrumentId, Numbers>,
        schema: dbn::Schema,
        compressed: bool,
    ) -> Outcome<Dbn> {
        let fail = |e: &dyn std::fmt::Display| Failure::new(IO, format!("cannot write DBN: {e}"));
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut out = if compressed {
            let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL).map_err(|e| fail(&e))?;
            encoder.include_checksum(true).map_err(|e| fail(&e))?;
            Out::Zstd(encoder)
        } else {
            Out::Plain(file)
        };
        MetadataEncoder::new(&mut out).encode(metadata).map_err(|e| fail(&e))?;
        Ok(Dbn { out, numbers, schema, left: BTreeMap::new() })
    }

    fn count(&mut self, what: &'static str) {
        *self.left.entry(what).or_default() += 1;
    }

    fn put<'m>(&mut self, message: impl Into<RecordRef<'m>>) -> Outcome {
        Ok(self.out.write_all(message.into().as_ref())?)
    }

    /// Writes the record of `row`; `Err` with why it cannot be.
    fn write(&mut self, row: &Row<'_>) -> Result<Outcome, &'static str> {
        let record = row.record;
        let head = record.header();
        if let Some(m) = record.get::<Mapping>() {
            return Ok(self.write_mapping(m));
        }
        let id = self.numbers.get(&head.instrument).and_then(|n| n.at(row.index_time)).ok_or(NO_NUMBER)?;
        macro_rules! hd {
            ($to:ident, $rtype:expr) => {
                RecordHeader::new::<dbn::$to>($rtype, head.source, id, head.ts_event.0)
            };
        }
        if let Some(m) = record.get::<Trade>() {
            let hd = hd!(TradeMsg, rtype::MBP_0);
            return Ok(self.put(&convert!(TradeMsg from m, hd; price; size; action side; sequence ts_in_delta depth;
                ts_recv: m.ts_recv.0, flags: FlagSet::new(m.flags),)));
        }
        if let Some(m) = record.get::<BookOrder>() {
            let hd = hd!(MboMsg, rtype::MBO);
            return Ok(self
                .put(&convert!(MboMsg from m, hd; price; size; action side; order_id sequence ts_in_delta channel_id;
                ts_recv: m.ts_recv.0, flags: FlagSet::new(m.flags),)));
        }
        if let Some(m) = record.get::<Quote>() {
            return self.write_quote(m, id);
        }
        if let Some(m) = record.get::<Depth10>() {
            let mut levels: [BidAskPair; 10] = Default::default();
            for (to, from) in levels.iter_mut().zip(&m.levels) {
                *to = level(from).ok_or(NO_SIZE)?;
            }
            let hd = hd!(Mbp10Msg, rtype::MBP_10);
            return Ok(self.put(&convert!(Mbp10Msg from m, hd; price; size; action side; sequence ts_in_delta depth;
                ts_recv: m.ts_recv.0, flags: FlagSet::new(m.flags), levels,)));
        }
        if let Some(written) = self.write_bar(row, id) {
            return written;
        }
        if let Some(m) = record.get::<Status>() {
            let hd = hd!(StatusMsg, rtype::STATUS);
            return Ok(self.put(&convert!(StatusMsg from m, hd;;; is_trading is_quoting is_short_sell_restricted;
                action reason trading_event; ts_recv: m.ts_recv.0, ..Default::default())));
        }
        if let Some(m) = record.get::<Statistic>() {
            let hd = hd!(StatMsg, rtype::STATISTICS);
            return Ok(self.put(&convert!(StatMsg from m, hd; price;;;
                quantity sequence ts_in_delta stat_type channel_id update_action stat_flags;
                ts_recv: m.ts_recv.0, ts_ref: m.ts_ref.0, ..Default::default())));
        }
        if let Some(m) = record.get::<Imbalance>() {
            let hd = hd!(ImbalanceMsg, rtype::IMBALANCE);
            return Ok(self.put(&convert!(ImbalanceMsg from m, hd;
                ref_price cont_book_clr_price auct_interest_clr_price ssr_filling_price ind_match_price upper_collar lower_collar;
                paired_qty total_imbalance_qty market_imbalance_qty unpaired_qty;
                auction_type side unpaired_side significant_imbalance; auction_status freeze_status num_extensions;
                ts_recv: m.ts_recv.0, auction_time: m.auction_time.0, ..Default::default())));
        }
        if let Some(m) = record.get::<Definition>() {
            return Ok(self.write_definition(m, id));
        }
        Err("records of a kind that DBN does not have")
    }

    fn write_mapping(&mut self, m: &Mapping) -> Outcome {
        let char = |b: u8| b as c_char;
        let hd = RecordHeader::new::<dbn::SymbolMappingMsg>(rtype::SYMBOL_MAPPING, m.source, m.raw_id as u32, m.ts_event.0);
        self.put(&dbn::SymbolMappingMsg {
            hd,
            stype_in: m.stype_in,
            stype_in_symbol: m.stype_in_symbol.map(char),
            stype_out: m.stype_out,
            stype_out_symbol: m.stype_out_symbol.map(char),
            start_ts: m.start_ts.0,
            end_ts: m.end_ts.0,
        })
    }

    /// Writes the record of `row` if it is a bar.
    fn write_bar(&mut self, row: &Row<'_>, id: u32) -> Option<Result<Outcome, &'static str>> {
        let record = row.record;
        macro_rules! bar {
            ($kind:ident, $rtype:expr) => {
                record.get::<$kind>().map(|m| ($rtype, [m.open, m.high, m.low, m.close], m.volume))
            };
        }
        let bar = bar!(Bar1s, rtype::OHLCV_1S).or_else(|| bar!(Bar1m, rtype::OHLCV_1M));
        let bar = bar.or_else(|| bar!(Bar1h, rtype::OHLCV_1H)).or_else(|| bar!(Bar1d, rtype::OHLCV_1D));
        let (rtype, [open, high, low, close], volume) = bar?;
        let one = u128::from(ONE);
        let volume = if volume.units() % one == 0 { u64::try_from(volume.units() / one).ok() } else { None };
        let Some(volume) = volume else { return Some(Err(NO_VOLUME)) };
        let head = record.header();
        let hd = RecordHeader::new::<dbn::OhlcvMsg>(rtype, head.source, id, head.ts_event.0);
        let (open, high, low, close) = (open.0, high.0, low.0, close.0);
        Some(Ok(self.put(&dbn::OhlcvMsg { hd, open, high, low, close, volume })))
    }

    fn write_quote(&mut self, m: &Quote, id: u32) -> Result<Outcome, &'static str> {
        let (bid_sz, ask_sz) = (whole(m.bid_sz).ok_or(NO_SIZE)?, whole(m.ask_sz).ok_or(NO_SIZE)?);
        let (bid_ct, ask_ct) = (m.bid_ct, m.ask_ct);
        let levels = [BidAskPair { bid_px: m.bid_px.0, ask_px: m.ask_px.0, bid_sz, ask_sz, bid_ct, ask_ct }];
        let of_interval = match self.schema {
            dbn::Schema::Bbo1S => Some(rtype::BBO_1S),
            dbn::Schema::Bbo1M => Some(rtype::BBO_1M),
            _ => None,
        };
        if let Some(rtype) = of_interval {
            let hd = RecordHeader::new::<dbn::BboMsg>(rtype, m.source, id, m.ts_event.0);
            return Ok(self.put(&dbn::BboMsg {
                hd,
                price: m.price.0,
                size: whole(m.size).ok_or(NO_SIZE)?,
                side: m.side.0 as c_char,
                flags: FlagSet::new(m.flags),
                ts_recv: m.ts_recv.0,
                sequence: m.sequence,
                levels,
                ..dbn::BboMsg::default_for_schema(self.schema)
            }));
        }
        let hd = RecordHeader::new::<dbn::Mbp1Msg>(rtype::MBP_1, m.source, id, m.ts_event.0);
        Ok(self.put(&convert!(Mbp1Msg from m, hd; price; size; action side; sequence ts_in_delta depth;
            ts_recv: m.ts_recv.0, flags: FlagSet::new(m.flags), levels,)))
    }

    /// All bytes after the shared header are the same.
    fn write_definition(&mut self, m: &Definition, id: u32) -> Outcome {
        const LEN: usize = size_of::<dbn::InstrumentDefMsg>();
        const HEADER: usize = size_of::<RecordHeader>();
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend([(LEN / RecordHeader::LENGTH_MULTIPLIER) as u8, rtype::INSTRUMENT_DEF]);
        bytes.extend(m.source.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes.extend(m.ts_event.0.to_le_bytes());
        let record = bytemuck::bytes_of(m);
        // The store's own sizes are where DBN's reserved bytes end.
        let own = std::mem::offset_of!(Definition, min_size_increment).min(LEN);
        bytes.extend(record.get(HEADER..own).unwrap_or(&[]));
        bytes.resize(LEN, 0);
        Ok(self.out.write_all(&bytes)?)
    }
}

impl Sink for Dbn {
    fn push(&mut self, row: &Row<'_>, _: &Name) -> Outcome<bool> {
        match self.write(row) {
            Ok(written) => written?,
            Err(why) => {
                self.count(why);
                return Ok(false);
            }
        }
        if row.record.get::<Trade>().is_some_and(|m| m.trade_id != 0 && m.trade_id != u64::MAX) {
            self.count("ids of trades");
        }
        if row.record.get::<Definition>().is_some_and(|m| m.min_size != Size::NULL || m.min_size_increment != Size::NULL) {
            self.count("sizes of definitions (min_size, min_size_increment)");
        }
        Ok(true)
    }

    fn finish(self: Box<Self>, _: &Tally) -> Outcome<File> {
        let fail = |e: std::io::Error| Failure::new(IO, format!("cannot write DBN: {e}"));
        let out = match self.out {
            Out::Plain(out) => out,
            Out::Zstd(encoder) => encoder.finish().map_err(fail)?,
        };
        out.into_inner().map_err(|e| fail(e.into_error()))
    }

    fn left(&self) -> BTreeMap<String, u64> {
        self.left.iter().map(|(what, n)| ((*what).to_owned(), *n)).collect()
    }
}
