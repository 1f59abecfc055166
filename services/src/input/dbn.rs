//! Owns: DBN files (`dbn` crate, versions 1 to 3, plain or zstd) as input.
//!
//! An instrument is named `DATASET:SYMBOL` by the file's symbol mappings; one without a mapping, or whose
//! symbol is no name, `DATASET:id/NUMBER`. Sizes become multiples of 1e-9. What has no kind here ends the
//! input with its name, and so does a file that is cut.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dbn::decode::dbn::fsm::{DbnFsm, ProcessResult};
use dbn::{Record as _, RecordRef, TsSymbolMap};
use tapestore::lsn::InstrumentId;
use tapestore::record::{
    Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Char, Definition, Depth10, Imbalance, Level, Name, Price, Quote, Size, Statistic,
    Status, Trade, Volume, action,
};
use tapestore::time::Ts;

use super::{Counted, Input, Message};
use crate::exit::{DATA, Failure, NO_INPUT, Outcome};

/// How a DBN file or a zstd frame begins; a DBZ file, DBN's predecessor, from its fifth byte on.
const DBN: &[u8] = b"DBN";
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const DBZ: &[u8] = b"DBZ";
const DBZ_AT: usize = 8;
const NO_HEADER: &str = "the file has no DBN header, and fragments without one are not read";
const NANO: u64 = 1_000_000_000;

/// A DBN file.
pub struct Dbn {
    path: PathBuf,
    reader: Box<dyn Read>,
    fsm: DbnFsm,
    dataset: String,
    schema: u8,
    symbols: TsSymbolMap,
    instruments: Instruments,
    source: Option<u16>,
    records: u64,
    read: Rc<Cell<u64>>,
    len: u64,
}

/// What a step of decoding brought.
enum Step {
    Record,
    More,
    End,
}

/// Whether a file that begins with `start` is one for this input.
pub(super) fn is_dbn(start: &[u8]) -> bool {
    start.starts_with(DBN) || start.starts_with(ZSTD) || is_dbz(start)
}

fn is_dbz(start: &[u8]) -> bool {
    start.get(DBZ_AT..).is_some_and(|s| s.starts_with(DBZ))
}

impl Dbn {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read, or is not DBN.
    pub fn open(path: &Path, source: Option<u16>) -> Outcome<Dbn> {
        let fail = |e: std::io::Error| Failure::new(NO_INPUT, format!("cannot read {}: {e}", path.display()));
        let mut file = File::open(path).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(16).read_to_end(&mut start).map_err(fail)?;
        if is_dbz(&start) {
            let reason = "is DBZ, the format before DBN; convert it to DBN with the `dbn` tool";
            return Err(Failure::new(DATA, format!("{} {reason}", path.display())));
        }
        let read = Rc::new(Cell::new(start.len() as u64));
        let is_zstd = start.starts_with(ZSTD);
        let whole = std::io::Cursor::new(start).chain(Counted { inner: BufReader::new(file), read: read.clone() });
        let reader: Box<dyn Read> = if is_zstd { Box::new(zstd::Decoder::new(whole).map_err(fail)?) } else { Box::new(whole) };
        let mut input = Dbn {
            path: path.to_path_buf(),
            reader,
            fsm: DbnFsm::default(),
            dataset: String::new(),
            schema: 0,
            symbols: TsSymbolMap::new(),
            instruments: Instruments::default(),
            source,
            records: 0,
            read,
            len,
        };
        while !input.fsm.has_decoded_metadata() {
            input.step()?;
        }
        Ok(input)
    }

    fn fail(&self, reason: &str) -> Failure {
        Failure::new(DATA, format!("{} record {}: {reason}", self.path.display(), self.records + 1))
    }

    fn step(&mut self) -> Outcome<Step> {
        match self.fsm.process() {
            ProcessResult::Record(()) => return Ok(Step::Record),
            ProcessResult::Err(e) if self.fsm.has_decoded_metadata() => return Err(self.fail(&e.to_string())),
            ProcessResult::Err(e) => return Err(self.fail(&format!("{NO_HEADER}: {e}"))),
            ProcessResult::Metadata(metadata) => {
                self.dataset = metadata.dataset.clone();
                self.schema = metadata.schema.map_or(0, |s| s as u8);
                // Mappings that are not to ids do not name the records of this file.
                self.symbols = metadata.symbol_map().unwrap_or_default();
                return Ok(Step::More);
            }
            ProcessResult::ReadMore(_) => {}
        }
        let read = self.reader.read(self.fsm.space());
        match read {
            Err(e) => Err(self.fail(&format!("the file is cut or damaged: {e}"))),
            Ok(0) if self.fsm.data().is_empty() && self.fsm.has_decoded_metadata() => Ok(Step::End),
            Ok(0) if self.fsm.has_decoded_metadata() => Err(self.fail("the file is cut inside of it")),
            Ok(0) => Err(self.fail(NO_HEADER)),
            Ok(n) => {
                self.fsm.fill(n);
                Ok(Step::More)
            }
        }
    }
}

/// Numbers of the instruments met.
#[derive(Default)]
struct Instruments {
    /// By DBN's id: the symbol it had last, and its number.
    last: HashMap<u32, (Option<String>, u32)>,
    numbers: HashMap<Name, u32>,
    names: Vec<Name>,
}

impl Instruments {
    /// The number of `id`, whose symbol the mappings say.
    fn number(&mut self, dataset: &str, symbol: Option<&String>, id: u32) -> Result<u32, String> {
        if let Some((known, number)) = self.last.get(&id)
            && known.as_ref() == symbol
        {
            return Ok(*number);
        }
        let name = match symbol.and_then(|s| format!("{dataset}:{s}").parse().ok()) {
            Some(name) => name,
            None => format!("{dataset}:id/{id}").parse().map_err(|e: tapestore::error::Error| e.to_string())?,
        };
        let number = *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() as u32 - 1
        });
        self.last.insert(id, (symbol.cloned(), number));
        Ok(number)
    }
}

fn size(size: u32) -> Size {
    if size == dbn::UNDEF_ORDER_SIZE { Size::NULL } else { Size(u64::from(size) * NANO) }
}

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

/// Adds what `record` says to `message`; its kind's name if there is none for it.
fn add(record: RecordRef<'_>, schema: u8, source: u16, instrument: InstrumentId, message: &mut Message) -> Result<(), String> {
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
            bid_sz: size(l.bid_sz), ask_sz: size(l.ask_sz), bid_ct: l.bid_ct, ask_ct: l.ask_ct, variant: schema,));
    } else if let Some(m) = record.get::<dbn::BboMsg>() {
        let [l] = &m.levels;
        message.push(&convert!(Quote from m, source, instrument; price; size; side; sequence;
            ts_recv: Ts(m.ts_recv), flags: m.flags.raw(), bid_px: Price(l.bid_px), ask_px: Price(l.ask_px),
            bid_sz: size(l.bid_sz), ask_sz: size(l.ask_sz), bid_ct: l.bid_ct, ask_ct: l.ask_ct, variant: schema,
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
            _ => return Err("a bar of another length".to_owned()),
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
        let name = record.rtype().map_or_else(|_| "unknown".to_owned(), |r| format!("{r:?}"));
        return Err(format!("records of type {name} have no kind here"));
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

impl Input for Dbn {
    fn next(&mut self, message: &mut Message) -> Outcome<bool> {
        loop {
            message.clear();
            match self.step()? {
                Step::End => return Ok(false),
                Step::More => continue,
                Step::Record => {}
            }
            let Some(record) = self.fsm.last_record() else { continue };
            let header = record.header();
            if let Some(mapping) = record.get::<dbn::SymbolMappingMsg>() {
                let learnt = self.symbols.on_symbol_mapping(mapping).map_err(|e| e.to_string());
                learnt.map_err(|e| self.fail(&e))?;
                continue;
            }
            message.at = Ts(record.raw_index_ts());
            let (id, source) = (header.instrument_id, self.source.unwrap_or(header.publisher_id));
            let symbol = self.symbols.get_for_ts(message.at.0, id);
            let numbered = self.instruments.number(&self.dataset, symbol, id);
            let added = numbered.and_then(|number| add(record, self.schema, source, InstrumentId(number), message));
            return match added {
                Ok(()) => {
                    self.records += 1;
                    Ok(true)
                }
                Err(reason) => {
                    message.clear();
                    Err(self.fail(&reason))
                }
            };
        }
    }

    fn names(&self) -> &[Name] {
        &self.instruments.names
    }

    fn progress(&self) -> (u64, u64) {
        (self.read.get(), self.len)
    }

    fn is_bytes(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use dbn::decode::{DecodeRecordRef as _, DynDecoder};
    use tapestore::record::{RecordRef, split};

    use super::*;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/dbn_conformance");

    /// What both sides must agree on, for the kinds with a price or a text of their own.
    fn agree(ours: RecordRef<'_>, theirs: dbn::RecordRef<'_>) {
        let header = theirs.header();
        let bytes: &[u8] = bytemuck::cast_slice(ours.words());
        assert_eq!((&bytes[2..4], &bytes[8..16]), (&header.publisher_id.to_le_bytes()[..], &header.ts_event.to_le_bytes()[..]));
        assert_eq!(ours.own_index_time(), Ts(theirs.raw_index_ts()));
        let whole = |s: u32| if s == u32::MAX { Size::NULL } else { Size(u64::from(s) * NANO) };
        if let (Some(o), Some(t)) = (ours.get::<BookOrder>(), theirs.get::<dbn::MboMsg>()) {
            assert_eq!((o.order_id, o.price.0, o.size, o.flags), (t.order_id, t.price, whole(t.size), t.flags.raw()));
            assert_eq!((o.action.0, o.side.0, o.sequence), (t.action as u8, t.side as u8, t.sequence));
            assert_eq!((o.channel_id, o.ts_in_delta), (t.channel_id, t.ts_in_delta));
        } else if let (Some(o), Some(t)) = (ours.get::<Trade>(), theirs.get::<dbn::TradeMsg>()) {
            assert_eq!((o.price.0, o.size, o.flags, o.depth), (t.price, whole(t.size), t.flags.raw(), t.depth));
            assert_eq!((o.action.0, o.side.0, o.sequence), (t.action as u8, t.side as u8, t.sequence));
            assert_eq!(o.ts_in_delta, t.ts_in_delta);
        } else if let (Some(o), Some(t)) = (ours.get::<Quote>(), theirs.get::<dbn::Mbp1Msg>()) {
            let [l] = &t.levels;
            assert_eq!((o.bid_px.0, o.ask_px.0, o.bid_ct, o.ask_ct), (l.bid_px, l.ask_px, l.bid_ct, l.ask_ct));
            assert_eq!((o.bid_sz, o.ask_sz, o.price.0, o.size), (whole(l.bid_sz), whole(l.ask_sz), t.price, whole(t.size)));
            assert_eq!((o.action.0, o.side.0, o.flags, o.depth), (t.action as u8, t.side as u8, t.flags.raw(), t.depth));
            assert_eq!((o.sequence, o.ts_in_delta), (t.sequence, t.ts_in_delta));
        } else if let (Some(o), Some(t)) = (ours.get::<Quote>(), theirs.get::<dbn::BboMsg>()) {
            let [l] = &t.levels;
            assert_eq!((o.bid_px.0, o.ask_px.0, o.bid_ct, o.ask_ct), (l.bid_px, l.ask_px, l.bid_ct, l.ask_ct));
            assert_eq!((o.bid_sz, o.ask_sz, o.price.0, o.size), (whole(l.bid_sz), whole(l.ask_sz), t.price, whole(t.size)));
            assert_eq!((o.side.0, o.flags, o.sequence), (t.side as u8, t.flags.raw(), t.sequence));
        } else if let (Some(o), Some(t)) = (ours.get::<Depth10>(), theirs.get::<dbn::Mbp10Msg>()) {
            for (o, l) in o.levels.iter().zip(&t.levels) {
                assert_eq!((o.bid_px.0, o.ask_px.0, o.bid_ct, o.ask_ct), (l.bid_px, l.ask_px, l.bid_ct, l.ask_ct));
                assert_eq!((o.bid_sz, o.ask_sz), (whole(l.bid_sz), whole(l.ask_sz)));
            }
            assert_eq!((o.price.0, o.size, o.flags, o.depth), (t.price, whole(t.size), t.flags.raw(), t.depth));
            assert_eq!((o.action.0, o.side.0, o.sequence), (t.action as u8, t.side as u8, t.sequence));
        } else if let Some(t) = theirs.get::<dbn::OhlcvMsg>() {
            let theirs: &[u8] = &[t.open, t.high, t.low, t.close].map(i64::to_le_bytes).concat();
            assert_eq!(&bytes[16..48], theirs);
            assert_eq!(bytes[48..64], (u128::from(t.volume) * 1_000_000_000).to_le_bytes());
        } else if let Some(t) = theirs.get::<dbn::StatMsg>() {
            assert_eq!(bytes[16..62], dbn::RecordRef::from(t).as_ref()[16..62]);
        } else if let Some(t) = theirs.get::<dbn::StatusMsg>() {
            assert_eq!(bytes[16..], dbn::RecordRef::from(t).as_ref()[16..]);
        } else if let Some(t) = theirs.get::<dbn::InstrumentDefMsg>() {
            assert_eq!(bytes[16..520], dbn::RecordRef::from(t).as_ref()[16..520]);
        } else if let (Some(o), Some(t)) = (ours.get::<Imbalance>(), theirs.get::<dbn::ImbalanceMsg>()) {
            let prices = [o.ref_price, o.cont_book_clr_price, o.auct_interest_clr_price, o.ssr_filling_price];
            let theirs = [t.ref_price, t.cont_book_clr_price, t.auct_interest_clr_price, t.ssr_filling_price];
            assert_eq!(prices.map(|p| p.0), theirs);
            let prices = [o.ind_match_price, o.upper_collar, o.lower_collar].map(|p| p.0);
            assert_eq!(prices, [t.ind_match_price, t.upper_collar, t.lower_collar]);
            let sizes = [o.paired_qty, o.total_imbalance_qty, o.market_imbalance_qty, o.unpaired_qty];
            assert_eq!(sizes, [t.paired_qty, t.total_imbalance_qty, t.market_imbalance_qty, t.unpaired_qty].map(whole));
            let chars = [o.auction_type, o.side, o.unpaired_side, o.significant_imbalance].map(|c| c.0);
            assert_eq!(chars, [t.auction_type, t.side, t.unpaired_side, t.significant_imbalance].map(|c| c as u8));
            assert_eq!((o.auction_time.0, o.auction_status), (t.auction_time, t.auction_status));
            assert_eq!((o.freeze_status, o.num_extensions), (t.freeze_status, t.num_extensions));
        } else {
            panic!("{ours:?} is not of {theirs:?}");
        }
    }

    fn files() -> Vec<PathBuf> {
        let Ok(files) = std::fs::read_dir(DATA) else {
            println!("skipped: {DATA} is not there");
            return Vec::new();
        };
        files.map(|f| f.unwrap().path()).filter(|f| f.file_name().unwrap() != "LICENSE").collect()
    }

    #[test]
    fn every_file_of_a_kind_that_is_known_reads_as_the_dbn_crate_reads_it_and_others_are_named() {
        let (mut read, mut refused) = (0, 0);
        for path in files() {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let mut input = match Dbn::open(&path, None) {
                Ok(input) => input,
                Err(e) => {
                    let reason = if name.ends_with(".dbz") { "is DBZ" } else { NO_HEADER };
                    assert!(name.ends_with(".dbz") || name.contains(".frag"), "{e}");
                    assert!(e.message.contains(reason), "{e}");
                    refused += 1;
                    continue;
                }
            };
            let mut theirs = DynDecoder::from_file(&path, dbn::VersionUpgradePolicy::UpgradeToV3).unwrap();
            let mut message = Message::default();
            loop {
                match input.next(&mut message) {
                    Ok(false) => {
                        assert!(theirs.decode_record_ref().unwrap().is_none(), "{name}");
                        read += 1;
                        break;
                    }
                    Ok(true) => {
                        let ours = split(&message.words).next().unwrap().unwrap();
                        agree(ours, theirs.decode_record_ref().unwrap().unwrap());
                    }
                    Err(e) => {
                        assert!(name.contains("cmbp") || name.contains("cbbo"), "{e}");
                        assert!(e.message.contains("bbo") || e.message.contains("bp"), "{e}");
                        refused += 1;
                        break;
                    }
                }
            }
        }
        println!("{read} files read, {refused} refused by name");
        assert!(read > 40 || files().is_empty());
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_said_to_be() {
        for name in ["test_data.mbo.dbn", "test_data.trades.v3.dbn.zst"] {
            let Ok(bytes) = std::fs::read(format!("{DATA}/{name}")) else {
                println!("skipped: {name} is not there");
                continue;
            };
            let file = tempfile::NamedTempFile::new().unwrap();
            let records = |len: usize| -> Outcome<u64> {
                std::fs::write(file.path(), &bytes[..len]).unwrap();
                let (mut input, mut message) = (Dbn::open(file.path(), None)?, Message::default());
                while input.next(&mut message)? {}
                Ok(input.records)
            };
            let whole = records(bytes.len()).unwrap();
            for len in 0..bytes.len() {
                // A plain file says nothing of its length: it may end after any record.
                assert!(!records(len).is_ok_and(|n| name.ends_with("zst") || n == whole), "{name} cut at {len}");
            }
        }
    }
}
