//! Owns: DBN files (`dbn` crate, versions 1 to 3, plain or zstd, whole or fragments) as input.
//!
//! An instrument is named `DATASET:SYMBOL` by the file's symbol mappings, one without a mapping
//! `DATASET:id/NUMBER`. What a name cannot have is `_` for a space and `/` with two hexadecimal digits for
//! other bytes. The mappings become records too, so that an export can give numbers and symbols back. Sizes become
//! multiples of 1e-9. What no record here can hold is counted by its name and left in the source; a truncated file ends
//! the input with an error.

mod convert;
mod instruments;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dbn::decode::dbn::fsm::{DbnFsm, ProcessResult};
use dbn::{Metadata, Publisher, Record as _, SType, TsSymbolMap};
use tapestore::lsn::InstrumentId;
use tapestore::record::{Mapping, Name};
use tapestore::time::Ts;

use self::convert::{add, is_malformed};
use self::instruments::Instruments;
use super::message::{Input, Message};
use super::options::Options;
use super::text::Counted;
use crate::error::{Error, Fault, Place, Result};
use crate::progress::Progress;

/// How a DBN file or a zstd frame begins; a DBZ file, DBN's predecessor, from its fifth byte on.
const DBN: &[u8] = b"DBN";
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const DBZ: &[u8] = b"DBZ";
const DBZ_AT: usize = 8;
const NO_HEADER: &str = "the file has no DBN header; a fragment without one is read if it is called *.frag or *.frag.zst";
const DAY_NS: u64 = 86_400_000_000_000;
/// No symbology type.
const STYPE_NONE: u8 = 255;
/// Mappings that are given together.
const TOGETHER: usize = 256;

/// A DBN file.
pub struct Dbn {
    path: PathBuf,
    reader: Box<dyn Read>,
    fsm: DbnFsm,
    /// Of the file, or as it was asked for; `None` in a fragment.
    dataset: Option<String>,
    schema: Option<dbn::Schema>,
    /// Symbology types, in and out, as the metadata says them.
    stypes: (u8, u8),
    symbols: TsSymbolMap,
    /// By number: the symbol that a mapping among the records said last.
    streamed: HashMap<u32, String>,
    instruments: Instruments,
    mappings: VecDeque<Mapping>,
    source: Option<u16>,
    records: u64,
    left: BTreeMap<String, u64>,
    read: Rc<Cell<u64>>,
    len: u64,
}

/// A file whose first record or metadata is to be decoded.
struct Start {
    reader: Box<dyn Read>,
    fsm: DbnFsm,
    read: Rc<Cell<u64>>,
    len: u64,
}

impl Start {
    /// Opens the file `path`.
    fn of(path: &Path) -> Result<Start> {
        let fail = Error::read(path);
        let mut file = File::open(path).map_err(&fail)?;
        let len = file.metadata().map_err(&fail)?.len();
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(16).read_to_end(&mut start).map_err(&fail)?;
        if is_dbz(&start) {
            let reason = "it is DBZ, the format before DBN; convert it to DBN with the `dbn` tool";
            return Err(Fault::new(reason).at(path, Place::File));
        }
        let read = Rc::new(Cell::new(start.len() as u64));
        let is_zstd = start.starts_with(ZSTD);
        let whole = std::io::Cursor::new(start).chain(Counted { inner: BufReader::new(file), read: read.clone() });
        let mut reader: Box<dyn Read> =
            if is_zstd { Box::new(zstd::Decoder::new(whole).map_err(&fail)?) } else { Box::new(whole) };
        let mut fsm = DbnFsm::default();
        if is_fragment(path) {
            let mut start = Vec::new();
            Read::by_ref(&mut reader).take(DBN.len() as u64).read_to_end(&mut start).map_err(&fail)?;
            // Some are called fragments and have a header all the same.
            let builder = DbnFsm::builder().skip_metadata(!start.starts_with(DBN));
            fsm = builder.build().map_err(|e| Fault::new(e.to_string()).at(path, Place::File))?;
            reader = Box::new(std::io::Cursor::new(start).chain(reader));
        }
        let mut head = Vec::new();
        Read::by_ref(&mut reader).take(8).read_to_end(&mut head).map_err(&fail)?;
        check_metadata_len(&head, len, is_zstd).map_err(|e| e.at(path, Place::File))?;
        Ok(Start { reader: Box::new(std::io::Cursor::new(head).chain(reader)), fsm, read, len })
    }
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

/// Whether the file `path` is called as fragments are.
pub(super) fn is_fragment(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.trim_end_matches(".zst").ends_with(".frag")
}

fn is_dbz(start: &[u8]) -> bool {
    start.get(DBZ_AT..).is_some_and(|s| s.starts_with(DBZ))
}

impl Dbn {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read, or is not DBN.
    pub fn open(path: &Path, options: &Options) -> Result<Dbn> {
        let Start { reader, fsm, read, len } = Start::of(path)?;
        let mut input = Dbn {
            path: path.to_path_buf(),
            reader,
            fsm,
            dataset: options.dataset.clone(),
            schema: None,
            stypes: (STYPE_NONE, STYPE_NONE),
            symbols: TsSymbolMap::new(),
            streamed: HashMap::new(),
            instruments: Instruments::default(),
            mappings: VecDeque::new(),
            source: options.source,
            records: 0,
            left: BTreeMap::new(),
            read,
            len,
        };
        while !input.fsm.has_decoded_metadata() {
            input.step()?;
        }
        Ok(input)
    }

    fn fail(&self, fault: Fault) -> Error {
        fault.at(&self.path, Place::Record(self.records + 1))
    }

    fn leave(&mut self, what: String) {
        *self.left.entry(what).or_default() += 1;
    }

    fn step(&mut self) -> Result<Step> {
        // Of some records that are shorter than their type the decoder makes a panic before they can be looked at.
        let processed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.fsm.process()));
        let Ok(processed) = processed else { return Err(self.fail("its length is not that of its type".into())) };
        match processed {
            ProcessResult::Record(()) => return Ok(Step::Record),
            ProcessResult::Err(e) if self.fsm.has_decoded_metadata() => return Err(self.fail(e.to_string().into())),
            ProcessResult::Err(e) => return Err(self.fail(format!("{NO_HEADER}: {e}").into())),
            ProcessResult::Metadata(metadata) => {
                self.take_metadata(&metadata);
                return Ok(Step::More);
            }
            ProcessResult::ReadMore(_) => {}
        }
        let read = self.reader.read(self.fsm.space());
        match read {
            Err(e) => Err(self.fail(format!("the file is cut or damaged: {e}").into())),
            Ok(0) if self.fsm.data().is_empty() && self.fsm.has_decoded_metadata() => Ok(Step::End),
            Ok(0) if self.fsm.has_decoded_metadata() => Err(self.fail("the file is cut inside of it".into())),
            Ok(0) => Err(self.fail(NO_HEADER.into())),
            Ok(n) => {
                self.fsm.fill(n);
                Ok(Step::More)
            }
        }
    }

    fn take_metadata(&mut self, metadata: &Metadata) {
        self.dataset = Some(metadata.dataset.clone());
        self.schema = metadata.schema;
        self.stypes = (metadata.stype_in.map_or(STYPE_NONE, |s| s as u8), metadata.stype_out as u8);
        // Mappings that are not to numbers do not name the records of this file.
        self.symbols = metadata.symbol_map().unwrap_or_default();
        if self.symbols.is_empty() && !metadata.mappings.is_empty() {
            self.leave("tables of mappings that contradict themselves, so that records are named by number".to_owned());
        }
        for (what, list) in [("symbols that were not found", &metadata.not_found), ("symbols found in part", &metadata.partial)] {
            if !list.is_empty() {
                self.left.insert(format!("{what}, named in the metadata"), list.len() as u64);
            }
        }
        for mapping in &metadata.mappings {
            for interval in &mapping.intervals {
                let (id, symbol) = match (metadata.stype_out, metadata.stype_in) {
                    (SType::InstrumentId, _) => (&interval.symbol, &mapping.raw_symbol),
                    (_, Some(SType::InstrumentId)) => (&mapping.raw_symbol, &interval.symbol),
                    _ => (&interval.symbol, &mapping.raw_symbol),
                };
                let Ok(id) = id.parse::<u32>() else {
                    self.leave("mappings of a symbol to no instrument number".to_owned());
                    continue;
                };
                let Ok(number) = self.instruments.name(&metadata.dataset, Some(symbol), id) else {
                    self.leave("mappings of a data set whose code is no name".to_owned());
                    continue;
                };
                self.instruments.mapped.insert((number, id));
                let at = |ns: i128| Ts(u64::try_from(ns).unwrap_or(0));
                let start_ts = at(interval.start_date.midnight().assume_utc().unix_timestamp_nanos());
                let end_ts = at(interval.end_date.midnight().assume_utc().unix_timestamp_nanos());
                self.mappings.push_back(Mapping {
                    instrument: InstrumentId(number),
                    ts_event: start_ts,
                    start_ts,
                    end_ts,
                    raw_id: u64::from(id),
                    stype_in: self.stypes.0,
                    stype_out: self.stypes.1,
                    dataset: text(metadata.dataset.as_bytes()),
                    stype_in_symbol: text(mapping.raw_symbol.as_bytes()),
                    stype_out_symbol: text(interval.symbol.as_bytes()),
                    ..Mapping::default()
                });
            }
        }
    }

    /// A mapping that came among the records.
    fn take_mapping(&mut self, mapping: &dbn::SymbolMappingMsg, message: &mut Message) -> Result<(), Fault> {
        let symbol = mapping.stype_out_symbol().map_err(|e| Fault::new(e.to_string()))?.to_owned();
        let dataset = dataset_of(self.dataset.as_deref(), mapping.hd.publisher_id);
        let id = mapping.hd.instrument_id;
        let number = self.instruments.name(dataset, Some(&symbol), id)?;
        // In force from here on, whatever the interval says: of a stream the newest word counts.
        self.streamed.insert(id, symbol);
        self.instruments.last.clear();
        self.instruments.mapped.insert((number, id));
        message.at = Ts::NULL;
        message.push(&Mapping {
            source: self.source.unwrap_or(mapping.hd.publisher_id),
            instrument: InstrumentId(number),
            ts_event: Ts(mapping.hd.ts_event),
            start_ts: Ts(mapping.start_ts),
            end_ts: Ts(mapping.end_ts),
            raw_id: u64::from(mapping.hd.instrument_id),
            stype_in: mapping.stype_in,
            stype_out: mapping.stype_out,
            dataset: text(dataset.as_bytes()),
            stype_in_symbol: text(bytemuck::cast_slice(&mapping.stype_in_symbol)),
            stype_out_symbol: text(bytemuck::cast_slice(&mapping.stype_out_symbol)),
            ..Mapping::default()
        });
        Ok(())
    }

    /// Adds what the record decoded last says to `message`; `false` if no record here can hold it.
    fn convert(&mut self, message: &mut Message) -> Result<bool, Fault> {
        let Some(record) = self.fsm.last_record() else { return Ok(false) };
        if is_malformed(&record) {
            return Err(Fault::new("its length is not that of its type"));
        }
        if let Some(mapping) = record.get::<dbn::SymbolMappingMsg>() {
            let mapping = mapping.clone();
            return match self.take_mapping(&mapping, message) {
                Ok(()) => Ok(true),
                Err(_) => {
                    self.leave("mappings among the records that name nothing".to_owned());
                    Ok(false)
                }
            };
        }
        let (id, publisher) = (record.header().instrument_id, record.header().publisher_id);
        let dataset = dataset_of(self.dataset.as_deref(), publisher);
        let source = self.source.unwrap_or(publisher);
        message.at = Ts(record.raw_index_ts());
        // Metadata maps by days, and a mapping among the records clears what was looked up.
        let day = message.at.0 / DAY_NS;
        let number = match self.instruments.last.get(&(publisher, id)) {
            Some((met, number)) if *met == day => *number,
            _ => {
                let symbol = self.streamed.get(&id).or_else(|| self.symbols.get_for_ts(message.at.0, id)).map(String::as_str);
                let number = self.instruments.name(dataset, symbol, id)?;
                if self.instruments.mapped.insert((number, id)) {
                    message.push(&Mapping {
                        source,
                        instrument: InstrumentId(number),
                        ts_event: message.at,
                        end_ts: Ts::NULL,
                        raw_id: u64::from(id),
                        stype_in: self.stypes.0,
                        stype_out: self.stypes.1,
                        dataset: text(dataset.as_bytes()),
                        stype_out_symbol: text(symbol.unwrap_or("").as_bytes()),
                        ..Mapping::default()
                    });
                }
                self.instruments.last.insert((publisher, id), (day, number));
                number
            }
        };
        if let Err(what) = add(record, self.schema, source, InstrumentId(number), message) {
            *self.left.entry(what).or_default() += 1;
            return Ok(!message.words.is_empty());
        }
        if self.fsm.ts_out() {
            *self.left.entry("send times (ts_out) of records".to_owned()).or_default() += 1;
        }
        Ok(true)
    }
}

/// The data set of a record: of its file, or as its publisher says.
fn dataset_of(of_file: Option<&str>, publisher: u16) -> &str {
    match (of_file, Publisher::try_from(publisher)) {
        (Some(dataset), _) => dataset,
        (None, Ok(publisher)) => publisher.dataset().as_str(),
        (None, Err(_)) => "DBN",
    }
}

/// Text in a field of `N` bytes.
fn text<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut to = [0; N];
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to
}

/// The decoder makes room for as much metadata as the first eight bytes, `head`, of a file of `len` bytes say, so they
/// are believed as far as the file can be.
fn check_metadata_len(head: &[u8], len: u64, is_compressed: bool) -> Result<(), Fault> {
    const RATIO: u64 = 64;
    let Some(&[d, b, n, _, size @ ..]) = head.first_chunk::<8>() else { return Ok(()) };
    let (size, most) = (u64::from(u32::from_le_bytes(size)), if is_compressed { len.saturating_mul(RATIO) } else { len });
    if [d, b, n] == *DBN && size > most {
        let reason = format!("it is damaged: its header says that it is {size} bytes long, of a file of {len}");
        return Err(Fault::new(reason).values(format!("at most {most}"), size));
    }
    Ok(())
}

impl Input for Dbn {
    fn next(&mut self, message: &mut Message) -> Result<bool> {
        loop {
            message.clear();
            if !self.mappings.is_empty() {
                let together = self.mappings.len().min(TOGETHER);
                self.mappings.drain(..together).for_each(|m| message.push(&m));
                message.at = Ts::NULL;
                return Ok(true);
            }
            match self.step()? {
                Step::End => return Ok(false),
                Step::More => continue,
                Step::Record => {}
            }
            match self.convert(message) {
                Ok(true) => {
                    self.records += 1;
                    return Ok(true);
                }
                Ok(false) => {}
                Err(fault) => {
                    message.clear();
                    return Err(self.fail(fault));
                }
            }
        }
    }

    fn names(&self) -> &[Name] {
        self.instruments.names.all()
    }

    fn progress(&self) -> Progress {
        Progress { done: self.read.get(), total: self.len, is_bytes: true }
    }

    fn left(&self) -> BTreeMap<String, u64> {
        self.left.clone()
    }
}

#[cfg(test)]
mod tests {
    use dbn::decode::dbn::RecordDecoder;
    use dbn::decode::{DecodeRecordRef as _, DynDecoder};
    use tapestore::record::{BookOrder, Depth10, Imbalance, Quote, Record as _, RecordRef, Size, Trade, split};

    use super::convert::NANO;
    use super::*;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/dbn_conformance");

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

    /// The version that the name of a fragment says.
    fn version(name: &str) -> u8 {
        [1, 3].into_iter().find(|v| name.contains(&format!(".v{v}."))).unwrap_or(2)
    }

    /// The records of a file as the `dbn` crate reads them, one after the other.
    fn each(path: &Path, mut with: impl FnMut(dbn::RecordRef<'_>)) {
        let (name, upgrade) = (path.to_str().unwrap(), dbn::VersionUpgradePolicy::UpgradeToV3);
        if is_fragment(path) {
            let bytes = std::fs::read(path).unwrap();
            let bytes = if name.ends_with(".zst") { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
            let mut decoder = RecordDecoder::with_version(&bytes[..], version(name), upgrade, false).unwrap();
            while let Some(record) = decoder.decode_record_ref().unwrap() {
                with(record);
            }
            return;
        }
        let mut decoder = DynDecoder::from_file(path, upgrade).unwrap();
        while let Some(record) = decoder.decode_record_ref().unwrap() {
            with(record);
        }
    }

    #[test]
    fn every_file_reads_as_the_dbn_crate_reads_it_and_what_has_no_kind_is_counted_by_name() {
        let (mut read, mut left) = (0, 0);
        for path in files() {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let mut input = match Dbn::open(&path, &Options::default()) {
                Ok(input) => input,
                Err(e) => {
                    assert!(name.ends_with(".dbz") && e.to_string().contains("is DBZ"), "{e}");
                    continue;
                }
            };
            let (mut message, mut ours) = (Message::default(), Vec::new());
            while input.next(&mut message).unwrap() {
                let records = split(&message.words).map(Result::unwrap);
                ours.extend(records.filter(|r| r.kind() != Mapping::KIND).map(|r| r.words().to_vec()));
            }
            let mut theirs = 0;
            each(&path, |record| {
                if let Some(words) = ours.get(theirs) {
                    agree(RecordRef::first(words).unwrap(), record);
                }
                theirs += 1;
            });
            if name.contains("cmbp") || name.contains("cbbo") {
                assert!(ours.is_empty() && input.left().values().sum::<u64>() == theirs as u64, "{:?}", input.left());
                assert!(input.left().keys().all(|k| k.contains("Cmbp1") || k.contains("Cbbo1")), "{:?}", input.left());
                left += 1;
            } else {
                assert!(theirs == ours.len() && input.left().is_empty(), "{name}: {:?}", input.left());
                read += 1;
            }
        }
        println!("{read} files read, {left} left by name");
        assert!(read == 65 || files().is_empty());
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_said_to_be() {
        for name in ["test_data.mbo.dbn", "test_data.trades.v3.dbn.zst"] {
            let Ok(bytes) = std::fs::read(format!("{DATA}/{name}")) else {
                println!("skipped: {name} is not there");
                continue;
            };
            let file = tempfile::NamedTempFile::new().unwrap();
            let records = |len: usize| -> Result<u64> {
                std::fs::write(file.path(), &bytes[..len]).unwrap();
                let (mut input, mut message) = (Dbn::open(file.path(), &Options::default())?, Message::default());
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
