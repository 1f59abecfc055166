//! Owns: a DBN record as the store's record. Fields that both sides have are the same; sizes become multiples of 1e-9.

use dbn::{Record as _, RecordRef};
use tapestore::lsn::InstrumentId;
use tapestore::record::{
    Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Char, Definition, Depth10, Imbalance, Level, Price, Quote, Size, Statistic, Status,
    Trade, Volume, action,
};
use tapestore::time::Ts;

use crate::input::message::Message;

/// Multiples of 1e-9 that are one.
pub(super) const NANO: u64 = 1_000_000_000;

/// A size of DBN's.
fn size(size: u32) -> Size {
    if size == dbn::UNDEF_ORDER_SIZE { Size::NULL } else { Size(u64::from(size) * NANO) }
}

/// A character of DBN's.
fn char(c: std::ffi::c_char) -> Char {
    Char(c as u8)
}

/// Fills in the shared header and the fields that have the same name and form on both sides.
macro_rules! convert {
    ($to:ident from $m:ident, $source:ident, $instrument:ident; $($price:ident)*; $($size:ident)*; $($char:ident)*; $($same:ident)*; $($more:tt)*) => {
        $to {
            source: $source,
            instrument: $instrument,
            ts_event: Ts($m.hd.ts_event),
            $($price: Price($m.$price),)*
            $($size: size($m.$size),)*
            $($char: char($m.$char),)*
            $($same: $m.$same,)*
            $($more)*
            ..$to::default()
        }
    };
}

/// How a quote came: the schema of its file, or of its record where the file has many.
fn variant(schema: Option<dbn::Schema>, rtype: u8) -> u8 {
    let of_record = match rtype {
        dbn::rtype::BBO_1S => dbn::Schema::Bbo1S,
        dbn::rtype::BBO_1M => dbn::Schema::Bbo1M,
        _ => dbn::Schema::Mbp1,
    };
    schema.unwrap_or(of_record) as u8
}

/// Whether `record` is shorter than its type, or the next one would not be aligned: the decoder panics then.
pub(super) fn is_malformed(record: &RecordRef<'_>) -> bool {
    fn is_short<T: dbn::HasRType<Header = dbn::RecordHeader>>(record: &RecordRef<'_>) -> bool {
        record.has::<T>() && record.try_get::<T>().is_err()
    }
    !record.header().record_size().is_multiple_of(8)
        || is_short::<dbn::MboMsg>(record)
        || is_short::<dbn::TradeMsg>(record)
        || is_short::<dbn::Mbp1Msg>(record)
        || is_short::<dbn::BboMsg>(record)
        || is_short::<dbn::Cmbp1Msg>(record)
        || is_short::<dbn::CbboMsg>(record)
        || is_short::<dbn::ErrorMsg>(record)
        || is_short::<dbn::SystemMsg>(record)
        || is_short::<dbn::Mbp10Msg>(record)
        || is_short::<dbn::OhlcvMsg>(record)
        || is_short::<dbn::StatusMsg>(record)
        || is_short::<dbn::ImbalanceMsg>(record)
        || is_short::<dbn::StatMsg>(record)
        || is_short::<dbn::InstrumentDefMsg>(record)
        || is_short::<dbn::SymbolMappingMsg>(record)
}

/// Adds what `record` says to `message`; what it is called if no record here can hold it.
pub(super) fn add(
    record: RecordRef<'_>,
    schema: Option<dbn::Schema>,
    source: u16,
    instrument: InstrumentId,
    message: &mut Message,
) -> Result<(), String> {
    if let Some(m) = record.get::<dbn::MboMsg>() {
        message.push(
            &convert!(BookOrder from m, source, instrument; price; size; action side; order_id sequence ts_in_delta channel_id;
            ts_recv: Ts(m.ts_recv), flags: m.flags.raw(),),
        );
    } else if let Some(m) = record.get::<dbn::TradeMsg>() {
        message.push(&convert!(Trade from m, source, instrument; price; size; action side; sequence ts_in_delta depth;
            ts_recv: Ts(m.ts_recv), flags: m.flags.raw(),));
    } else if let Some(m) = record.get::<dbn::Mbp1Msg>() {
        let [l] = &m.levels;
        message.push(&convert!(Quote from m, source, instrument; price; size; action side; sequence ts_in_delta depth;
            ts_recv: Ts(m.ts_recv), flags: m.flags.raw(), bid_px: Price(l.bid_px), ask_px: Price(l.ask_px),
            bid_sz: size(l.bid_sz), ask_sz: size(l.ask_sz), bid_ct: l.bid_ct, ask_ct: l.ask_ct, variant: variant(schema, m.hd.rtype),));
    } else if let Some(m) = record.get::<dbn::BboMsg>() {
        let [l] = &m.levels;
        message.push(&convert!(Quote from m, source, instrument; price; size; side; sequence;
            ts_recv: Ts(m.ts_recv), flags: m.flags.raw(), bid_px: Price(l.bid_px), ask_px: Price(l.ask_px),
            bid_sz: size(l.bid_sz), ask_sz: size(l.ask_sz), bid_ct: l.bid_ct, ask_ct: l.ask_ct, variant: variant(schema, m.hd.rtype),
            action: action::NONE, ts_in_delta: i32::MAX,));
    } else if let Some(m) = record.get::<dbn::Mbp10Msg>() {
        let levels = m.levels.each_ref().map(|l| Level {
            bid_px: Price(l.bid_px),
            ask_px: Price(l.ask_px),
            bid_sz: size(l.bid_sz),
            ask_sz: size(l.ask_sz),
            bid_ct: l.bid_ct,
            ask_ct: l.ask_ct,
        });
        message.push(&convert!(Depth10 from m, source, instrument; price; size; action side; sequence ts_in_delta depth;
            ts_recv: Ts(m.ts_recv), flags: m.flags.raw(), levels,));
    } else if let Some(m) = record.get::<dbn::OhlcvMsg>() {
        let volume = Volume::new(u128::from(m.volume) * u128::from(NANO));
        match m.hd.rtype {
            dbn::rtype::OHLCV_1S => message.push(&convert!(Bar1s from m, source, instrument; open high low close;;;; volume,)),
            dbn::rtype::OHLCV_1M => message.push(&convert!(Bar1m from m, source, instrument; open high low close;;;; volume,)),
            dbn::rtype::OHLCV_1H => message.push(&convert!(Bar1h from m, source, instrument; open high low close;;;; volume,)),
            dbn::rtype::OHLCV_1D => message.push(&convert!(Bar1d from m, source, instrument; open high low close;;;; volume,)),
            _ => return Err("bars of another length".to_owned()),
        }
    } else if let Some(m) = record.get::<dbn::StatusMsg>() {
        message.push(&convert!(Status from m, source, instrument;;; is_trading is_quoting is_short_sell_restricted;
            action reason trading_event; ts_recv: Ts(m.ts_recv),));
    } else if let Some(m) = record.get::<dbn::ImbalanceMsg>() {
        message.push(&convert!(Imbalance from m, source, instrument;
            ref_price cont_book_clr_price auct_interest_clr_price ssr_filling_price ind_match_price upper_collar lower_collar;
            paired_qty total_imbalance_qty market_imbalance_qty unpaired_qty;
            auction_type side unpaired_side significant_imbalance; auction_status freeze_status num_extensions;
            ts_recv: Ts(m.ts_recv), auction_time: Ts(m.auction_time),));
    } else if let Some(m) = record.get::<dbn::StatMsg>() {
        message.push(&convert!(Statistic from m, source, instrument; price;;;
            quantity sequence ts_in_delta stat_type channel_id update_action stat_flags;
            ts_recv: Ts(m.ts_recv), ts_ref: Ts(m.ts_ref),));
    } else if let Some(m) = record.get::<dbn::InstrumentDefMsg>() {
        message.push(&definition(m, source, instrument));
    } else {
        let name = record.rtype().map_or_else(|_| format!("{:#04x}", record.header().rtype), |r| format!("{r:?}"));
        return Err(format!("records of type {name}, which have no kind here"));
    }
    Ok(())
}

/// All bytes after the shared header are the same.
fn definition(m: &dbn::InstrumentDefMsg, source: u16, instrument: InstrumentId) -> Definition {
    const HEADER: usize = size_of::<dbn::RecordHeader>();
    let mut definition = Definition::default();
    let from = dbn::RecordRef::from(m);
    let (to, from) = (bytemuck::bytes_of_mut(&mut definition).iter_mut(), from.as_ref().iter());
    to.zip(from).skip(HEADER).for_each(|(to, from)| *to = *from);
    Definition {
        source,
        instrument,
        ts_event: Ts(m.hd.ts_event),
        min_size_increment: Size::NULL,
        min_size: Size::NULL,
        ..definition
    }
}
