//! Owns: a record of the store as a DBN record, and the file that it goes into.
//!
//! What must hold: a record that DBN cannot hold is left in the store, and counted with the reason; so is what DBN has no
//! field for.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_char;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use dbn::encode::dbn::MetadataEncoder;
use dbn::{BidAskPair, FlagSet, Metadata, RecordHeader, RecordRef, rtype};
use tapestore::lsn::InstrumentId;
use tapestore::reader::Row;
use tapestore::record::{
    Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Definition, Depth10, Imbalance, Mapping, Name, Quote, Size, Statistic, Status, Trade,
};

use super::mappings::Numbers;
use crate::checksum::Checksum;
use crate::export::file::Sink;

/// Level of zstd, Databento's own.
const ZSTD_LEVEL: i32 = 0;
const ONE: u64 = 1_000_000_000;

enum Out {
    Plain(BufWriter<File>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Out::Plain(out) => out.write(buf),
            Out::Zstd(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Plain(out) => out.flush(),
            Out::Zstd(out) => out.flush(),
        }
    }
}

/// A DBN file.
pub(super) struct DbnSink {
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

/// Makes a record of the fields that have the same name on both sides; ends with why if a size does not fit.
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

/// The system's own error if a write failed, the library's as text otherwise.
fn failed(error: dbn::Error) -> io::Error {
    match error {
        dbn::Error::Io { source, .. } => source,
        other => io::Error::other(other),
    }
}

impl DbnSink {
    /// Begins `file`, of records of `schema` whose instruments have `numbers`.
    pub(super) fn new(
        file: File,
        metadata: &Metadata,
        numbers: HashMap<InstrumentId, Numbers>,
        schema: dbn::Schema,
        compressed: bool,
    ) -> io::Result<DbnSink> {
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut out = if compressed {
            let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            Out::Zstd(encoder)
        } else {
            Out::Plain(file)
        };
        MetadataEncoder::new(&mut out).encode(metadata).map_err(failed)?;
        Ok(DbnSink { out, numbers, schema, left: BTreeMap::new() })
    }

    fn count(&mut self, what: &'static str) {
        *self.left.entry(what).or_default() += 1;
    }

    fn put<'m>(&mut self, message: impl Into<RecordRef<'m>>) -> io::Result<()> {
        self.out.write_all(message.into().as_ref())
    }

    /// Writes the record of `row`; `Err` with why it cannot be.
    fn write(&mut self, row: &Row<'_>) -> Result<io::Result<()>, &'static str> {
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

    fn write_mapping(&mut self, m: &Mapping) -> io::Result<()> {
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
    fn write_bar(&mut self, row: &Row<'_>, id: u32) -> Option<Result<io::Result<()>, &'static str>> {
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

    fn write_quote(&mut self, m: &Quote, id: u32) -> Result<io::Result<()>, &'static str> {
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
    fn write_definition(&mut self, m: &Definition, id: u32) -> io::Result<()> {
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
        self.out.write_all(&bytes)
    }
}

impl Sink for DbnSink {
    fn push(&mut self, row: &Row<'_>, _: &Name) -> io::Result<bool> {
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

    fn finish(self: Box<Self>, _: &Checksum) -> io::Result<File> {
        let out = match self.out {
            Out::Plain(out) => out,
            Out::Zstd(encoder) => encoder.finish()?,
        };
        out.into_inner().map_err(io::IntoInnerError::into_error)
    }

    fn left(&self) -> BTreeMap<String, u64> {
        self.left.iter().map(|(what, n)| ((*what).to_owned(), *n)).collect()
    }
}
