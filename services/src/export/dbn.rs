//! Owns: DBN files (version 3) of a store's rows: a file a data set and schema, all instruments in the order
//! of (index time, LSN), numbered and named as the mappings say that came with them.
//!
//! An instrument without a mapping has the first free number and the name behind its data set's. A record
//! whose size is no whole number that DBN can hold is left in the store; so are kinds that DBN does not
//! have. What DBN has no field for (ids of trades, the store's own sizes of definitions) is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_char;
use std::fs::File;
use std::io::{BufWriter, Write};

use dbn::encode::dbn::MetadataEncoder;
use dbn::{BidAskPair, FlagSet, MappingInterval, Metadata, RecordHeader, RecordRef, SType, SymbolMapping, rtype};
use tapestore::lsn::InstrumentId;
use tapestore::reader::{Row, Series, TimeRange};
use tapestore::record::{
    Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Definition, Depth10, Imbalance, Kind, Mapping, Name, Quote, Record, Schema, Size,
    Statistic, Status, Trade, schema,
};
use tapestore::time::{NANOS_PER_SECOND, Ts};

use super::{Export, Format, Pending, Sink};
use crate::exit::{Failure, IO, Outcome, USAGE};
use crate::tally::name_hash;

/// Level of zstd, Databento's own.
const ZSTD_LEVEL: i32 = 0;
/// Data set of instruments whose name says none.
const NO_DATASET: &str = "TAPE";
const ONE_FILE: &str = "a DBN file holds one schema of one data set; choose with --kind and --instrument, or name a directory";
const STYPE_NONE: u8 = 255;
const ONE: u64 = 1_000_000_000;

/// Numbers of one instrument: from when until when which.
#[derive(Clone, Debug, Default)]
struct Numbers {
    spans: Vec<(Ts, Ts, u32)>,
    otherwise: u32,
}

impl Numbers {
    fn at(&self, time: Ts) -> u32 {
        let holds = |(from, to, _): &&(Ts, Ts, u32)| *from <= time && (time < *to || to.is_null());
        self.spans.iter().rev().find(holds).or(self.spans.last()).map_or(self.otherwise, |(_, _, id)| *id)
    }
}

/// What a data set's files say of its instruments.
#[derive(Default)]
struct Dataset {
    instruments: BTreeSet<InstrumentId>,
    mappings: Vec<Mapping>,
    numbers: HashMap<InstrumentId, Numbers>,
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

/// All that mappings say of the instruments of `series`, by data set.
fn datasets(export: &mut Export<'_>, kinds: &BTreeMap<Kind, Vec<Series>>) -> Outcome<BTreeMap<String, Dataset>> {
    let instruments: BTreeSet<InstrumentId> = kinds.values().flatten().map(|s| s.instrument).collect();
    let mut datasets: BTreeMap<String, Dataset> = BTreeMap::new();
    for instrument in instruments {
        let name = export.name(Series { instrument, kind: Mapping::KIND })?;
        let mut mappings: Vec<Mapping> = Vec::new();
        let mut scan = export.snapshot.scan(Series { instrument, kind: Mapping::KIND }, TimeRange::ALL);
        while let Some(row) = scan.next()? {
            let Some(mapping) = row.record.get::<Mapping>() else { continue };
            // Said again, by a second file, it says nothing new.
            let mapping = Mapping { source: 0, ts_event: Ts(0), ..*mapping };
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        let said = mappings.last().map(|m| text(&m.dataset)).filter(|d| !d.is_empty());
        let dataset = datasets.entry(said.unwrap_or_else(|| split(&name).0.to_owned())).or_default();
        dataset.instruments.insert(instrument);
        dataset.mappings.extend(mappings);
    }
    for dataset in datasets.values_mut() {
        let taken: BTreeSet<u32> = dataset.mappings.iter().map(|m| m.raw_id as u32).collect();
        let mut free = (1..u32::MAX).filter(|id| !taken.contains(id));
        for &instrument in &dataset.instruments {
            let of = dataset.mappings.iter().filter(|m| m.instrument == instrument);
            let spans: Vec<(Ts, Ts, u32)> = of.map(|m| (m.start_ts, m.end_ts, m.raw_id as u32)).collect();
            let otherwise = if spans.is_empty() { free.next().unwrap_or(0) } else { 0 };
            dataset.numbers.insert(instrument, Numbers { spans, otherwise });
        }
    }
    Ok(datasets)
}

fn date(at: Ts) -> time::Date {
    let seconds = i64::try_from(at.0 / NANOS_PER_SECOND).unwrap_or(0);
    time::OffsetDateTime::from_unix_timestamp(seconds).map_or(time::Date::MIN, time::OffsetDateTime::date)
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
    let typed = dataset.mappings.iter().filter(|m| m.stype_in != STYPE_NONE || m.stype_out != STYPE_NONE);
    let types: BTreeSet<(u8, u8)> = typed.clone().map(|m| (m.stype_in, m.stype_out)).collect();
    let is_number = |t: u8| t == SType::InstrumentId as u8;
    let one = types.first().copied().filter(|t| types.len() == 1 && (is_number(t.0) || is_number(t.1)));
    let mut mappings: Vec<SymbolMapping> = Vec::new();
    let mut add = |raw_symbol: String, interval: MappingInterval| match mappings.iter_mut().find(|m| m.raw_symbol == raw_symbol) {
        Some(mapping) => mapping.intervals.push(interval),
        None => mappings.push(SymbolMapping { raw_symbol, intervals: vec![interval] }),
    };
    // One that says a number alone names nothing.
    for m in typed.filter(|m| m.stype_out_symbol != [0; 71]) {
        let (start_date, end_date) = (date(m.start_ts), date(m.end_ts));
        let (raw_symbol, symbol) = match one {
            Some(_) => (text(&m.stype_in_symbol), text(&m.stype_out_symbol)),
            // Types that differ become the one that all readers know: from the venue's symbol to the number.
            None if is_number(m.stype_out) => (text(&m.stype_in_symbol), m.raw_id.to_string()),
            None => (text(&m.stype_out_symbol), m.raw_id.to_string()),
        };
        add(raw_symbol, MappingInterval { start_date, end_date, symbol });
    }
    let unnamed = dataset.numbers.iter().filter(|(_, n)| n.spans.is_empty());
    let unnamed: BTreeMap<InstrumentId, u32> = unnamed.map(|(i, n)| (*i, n.otherwise)).collect();
    for (instrument, number) in unnamed {
        let series = Series { instrument, kind };
        let mut snapshot = export.snapshot.clone();
        let Some(last) = snapshot.as_of(series, Ts(u64::MAX))?.map(|row| row.index_time) else { continue };
        let first = snapshot.scan(series, TimeRange::ALL).next()?.map_or(last, |row| row.index_time);
        let name = export.name(series)?;
        let day_after = date(last).next_day().unwrap_or(time::Date::MAX);
        let symbol = number.to_string();
        add(split(&name).1.to_owned(), MappingInterval { start_date: date(first), end_date: day_after, symbol });
    }
    let symbols: Vec<String> = mappings.iter().map(|m| m.raw_symbol.clone()).collect();
    let stype = |t: Option<u8>, otherwise: SType| t.and_then(|t| SType::try_from(t).ok()).unwrap_or(otherwise);
    let (stype_in, stype_out) = (stype(one.map(|o| o.0), SType::RawSymbol), stype(one.map(|o| o.1), SType::InstrumentId));
    let builder = Metadata::builder().dataset(code).schema(Some(schema)).start(export.args.span.from.unwrap_or(start).0);
    let builder = builder.stype_in(Some(stype_in)).stype_out(stype_out).symbols(symbols).mappings(mappings);
    Ok(builder.end(export.args.span.to.and_then(|to| std::num::NonZeroU64::new(to.0))).build())
}

/// Writes DBN files of `kinds`.
pub(super) fn export(export: &mut Export<'_>, kinds: &BTreeMap<Kind, Vec<Series>>) -> Outcome {
    let datasets = datasets(export, kinds)?;
    if !export.is_dir && (datasets.len() > 1 || kinds.keys().filter(|k| **k != Mapping::KIND).count() > 1) {
        return Err(Failure::new(USAGE, ONE_FILE));
    }
    for (kind, series) in kinds {
        // Mappings are in the metadata of every file.
        let Some(of) = schema(*kind).filter(|s| s.kind != Mapping::KIND) else { continue };
        for (code, dataset) in &datasets {
            let series: Vec<Series> = series.iter().filter(|s| dataset.instruments.contains(&s.instrument)).copied().collect();
            self::kind(export, of, code, dataset, &series)?;
        }
    }
    Ok(())
}

fn kind(export: &mut Export<'_>, of: &'static Schema, code: &str, dataset: &Dataset, series: &[Series]) -> Outcome {
    let mut files: BTreeMap<dbn::Schema, Pending> = BTreeMap::new();
    let mut names: HashMap<InstrumentId, (Name, u64)> = HashMap::new();
    for &one in series {
        let name = export.name(one)?;
        names.insert(one.instrument, (name, name_hash(&name)));
    }
    let (mut unknown, force) = (0u64, export.args.force);
    let mut rows = export.snapshot.replay(series, export.args.span.range());
    while !export.is_full()
        && let Some(row) = rows.next()?
    {
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
            let path = export.path(&format!("{code}.{}", schema.as_str()));
            let open = |file| Ok(Box::new(Dbn::new(file, &metadata, numbers, schema, compressed)?) as Box<dyn Sink>);
            files.insert(schema, Pending::create(path, of, force, open)?);
        }
        let (Some(file), Some((name, hash))) = (files.get_mut(&schema), names.get(&row.record.instrument())) else { continue };
        export.total.records += u64::from(file.push(&row, name, *hash)?);
        export.tick()?;
    }
    for file in files.values_mut() {
        export.finish(file)?;
    }
    if unknown > 0 {
        export.leave(&format!("{} records, a kind that DBN does not have", of.name), unknown);
    }
    Ok(())
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
        let id = self.numbers.get(&head.instrument).map_or(0, |n| n.at(row.index_time));
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

    fn finish(self: Box<Self>) -> Outcome<File> {
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
