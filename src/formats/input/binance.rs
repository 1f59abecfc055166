//! Owns: captures of Binance's websocket streams, spot and USD-M futures: lines of `local_ns JSON`.
//!
//! `bookTicker` becomes a [`Quote`], `trade` a [`Trade`], each price level of `depthUpdate` a
//! [`BookOrder`] with the MBP flag (size 0: the level is gone), a REST depth snapshot a clear and its
//! levels, flagged as snapshot. The last record of a message has the LAST flag. Sequences are the low
//! 32 bits of Binance's update ids; prices and sizes are exact.

use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use tapestore::lsn::InstrumentId;
use tapestore::record::{BookOrder, Name, Price, Quote, Size, Trade, action, flags, side};
use tapestore::time::Ts;

use super::message::Message;
use super::text::{LineInput, LineParser};
use crate::error::{Fault, Result};

/// Source numbers, if none is given.
const SPOT: u16 = 1;
const USDM: u16 = 2;

/// A capture.
pub struct Binance {
    names: Vec<Name>,
    source: Option<u16>,
    /// Which of Binance's venues it is, as of the first message that differs between them.
    usdm: Option<bool>,
    /// The instrument of the newest message: a snapshot does not say whose it is.
    last: Option<u32>,
}

#[derive(Deserialize)]
struct Stream<'a> {
    #[serde(borrow)]
    stream: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Ticker<'a> {
    e: Option<&'a str>,
    u: u64,
    s: &'a str,
    b: &'a str,
    #[serde(rename = "B")]
    bid_size: &'a str,
    a: &'a str,
    #[serde(rename = "A")]
    ask_size: &'a str,
    #[serde(rename = "T")]
    time: Option<u64>,
    #[serde(rename = "E")]
    sent: Option<u64>,
}

#[derive(Deserialize)]
struct Execution<'a> {
    s: &'a str,
    t: u64,
    p: &'a str,
    q: &'a str,
    #[serde(rename = "T")]
    time: u64,
    #[serde(rename = "E")]
    sent: u64,
    #[serde(rename = "X")]
    order_type: Option<&'a str>,
    m: bool,
}

#[derive(Deserialize)]
struct Depth<'a> {
    s: &'a str,
    u: u64,
    pu: Option<u64>,
    #[serde(rename = "T")]
    time: Option<u64>,
    #[serde(rename = "E")]
    sent: u64,
    #[serde(borrow)]
    b: Vec<(&'a str, &'a str)>,
    #[serde(borrow)]
    a: Vec<(&'a str, &'a str)>,
}

#[derive(Deserialize)]
struct Snapshot<'a> {
    #[serde(rename = "lastUpdateId")]
    last_update_id: u64,
    #[serde(rename = "T")]
    time: Option<u64>,
    #[serde(rename = "E")]
    sent: Option<u64>,
    #[serde(borrow)]
    bids: Vec<(&'a str, &'a str)>,
    #[serde(borrow)]
    asks: Vec<(&'a str, &'a str)>,
}

/// What the records of one message share.
struct Shared {
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    ts_in_delta: i32,
    sequence: u32,
}

fn millis(ms: u64) -> Option<Ts> {
    ms.checked_mul(1_000_000).map(Ts)
}

/// Receive time less send time, if it fits.
fn delta(received: Ts, sent: Option<u64>) -> i32 {
    let sent = sent.and_then(millis);
    sent.and_then(|s| i32::try_from(i128::from(received.0) - i128::from(s.0)).ok()).unwrap_or(i32::MAX)
}

impl Binance {
    /// Opens the capture `path`.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(path: &Path, source: Option<u16>) -> Result<LineInput<Binance>> {
        LineInput::open(path, Binance { names: Vec::new(), source, usdm: None, last: None })
    }

    fn instrument(&mut self, symbol: &str, usdm: bool) -> Result<u32, Fault> {
        let usdm = *self.usdm.get_or_insert(usdm);
        let venue = if usdm { "BINANCE-USDM" } else { "BINANCE" };
        let name: Name = format!("{venue}:{symbol}").parse()?;
        let met = self.names.iter().position(|n| *n == name);
        let index = met.unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        }) as u32;
        self.last = Some(index);
        Ok(index)
    }

    fn shared(&self, instrument: u32, event: Option<u64>, sent: Option<u64>, at: Ts, update: u64) -> Result<Shared, Fault> {
        let default = if self.usdm == Some(true) { USDM } else { SPOT };
        let ts_event = match event {
            Some(ms) => millis(ms).ok_or("its time is out of range")?,
            None => Ts::NULL,
        };
        Ok(Shared {
            source: self.source.unwrap_or(default),
            instrument: InstrumentId(instrument),
            ts_event,
            ts_recv: at,
            ts_in_delta: delta(at, sent),
            sequence: update as u32,
        })
    }

    fn ticker(&mut self, t: &Ticker<'_>, message: &mut Message) -> Result<(), Fault> {
        let instrument = self.instrument(t.s, t.e.is_some())?;
        let s = self.shared(instrument, t.time, t.sent, message.at, t.u)?;
        message.push(&Quote {
            source: s.source,
            instrument: s.instrument,
            ts_event: s.ts_event,
            ts_recv: s.ts_recv,
            bid_px: price(t.b)?,
            ask_px: price(t.a)?,
            bid_sz: size(t.bid_size)?,
            ask_sz: size(t.ask_size)?,
            price: Price::NULL,
            size: Size::NULL,
            sequence: s.sequence,
            ts_in_delta: s.ts_in_delta,
            action: action::NONE,
            side: side::NONE,
            flags: flags::LAST | flags::TOB,
            ..Quote::default()
        });
        Ok(())
    }

    fn trade(&mut self, t: &Execution<'_>, message: &mut Message) -> Result<(), Fault> {
        let instrument = self.instrument(t.s, t.order_type.is_some())?;
        let s = self.shared(instrument, Some(t.time), Some(t.sent), message.at, t.t)?;
        message.push(&Trade {
            source: s.source,
            instrument: s.instrument,
            ts_event: s.ts_event,
            ts_recv: s.ts_recv,
            price: price(t.p)?,
            size: size(t.q)?,
            trade_id: t.t,
            sequence: s.sequence,
            ts_in_delta: s.ts_in_delta,
            action: action::TRADE,
            // `m`: the buyer is the maker, so the seller was the aggressor.
            side: if t.m { side::ASK } else { side::BID },
            flags: flags::LAST,
            ..Trade::default()
        });
        Ok(())
    }

    fn depth(&mut self, d: &Depth<'_>, message: &mut Message) -> Result<(), Fault> {
        let instrument = self.instrument(d.s, d.pu.is_some())?;
        let s = self.shared(instrument, d.time.or(Some(d.sent)), Some(d.sent), message.at, d.u)?;
        levels(&s, &d.b, &d.a, flags::MBP, None, message)
    }

    fn snapshot(&mut self, d: &Snapshot<'_>, message: &mut Message) -> Result<(), Fault> {
        let instrument = self.last.ok_or("a snapshot before any message that says whose it is")?;
        let s = self.shared(instrument, d.time, d.sent, message.at, d.last_update_id)?;
        message.push(&BookOrder {
            action: action::CLEAR,
            side: side::NONE,
            flags: flags::SNAPSHOT,
            price: Price::NULL,
            size: Size::NULL,
            ..level(&s)
        });
        levels(&s, &d.bids, &d.asks, flags::MBP | flags::SNAPSHOT, Some(action::ADD), message)
    }
}

fn price(text: &str) -> Result<Price, Fault> {
    Ok(text.parse()?)
}

fn size(text: &str) -> Result<Size, Fault> {
    Ok(text.parse()?)
}

fn level(s: &Shared) -> BookOrder {
    BookOrder {
        source: s.source,
        instrument: s.instrument,
        ts_event: s.ts_event,
        ts_recv: s.ts_recv,
        order_id: u64::MAX,
        sequence: s.sequence,
        ts_in_delta: s.ts_in_delta,
        ..BookOrder::default()
    }
}

type Level<'a> = (&'a str, &'a str);

fn levels(
    s: &Shared,
    bids: &[Level<'_>],
    asks: &[Level<'_>],
    with: u8,
    always: Option<tapestore::record::Char>,
    message: &mut Message,
) -> Result<(), Fault> {
    let count = bids.len() + asks.len();
    let sided = bids.iter().map(|l| (side::BID, l)).chain(asks.iter().map(|l| (side::ASK, l)));
    for (i, (side, (p, q))) in sided.enumerate() {
        let size = size(q)?;
        let changed = if size == Size(0) { action::CANCEL } else { action::MODIFY };
        let last = if i + 1 == count { flags::LAST } else { 0 };
        message.push(&BookOrder {
            price: price(p)?,
            size,
            action: always.unwrap_or(changed),
            side,
            flags: with | last,
            ..level(s)
        });
    }
    Ok(())
}

impl LineParser for Binance {
    fn parse(&mut self, line: &[u8], message: &mut Message) -> Result<(), Fault> {
        let space = line.iter().position(|&b| b == b' ').ok_or("there is no 'local_ns JSON'")?;
        let (time, json) = line.split_at(space);
        let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|e| Fault::new(e.to_string()));
        let (time, json) = (utf8(time)?, utf8(json)?);
        message.at = Ts(time.parse().map_err(|_| Fault::new(format!("'{time}' is no time in nanoseconds")))?);
        let bad = |e: serde_json::Error| Fault::new(e.to_string());
        let Ok(stream) = serde_json::from_str::<Stream<'_>>(json) else {
            return self.snapshot(&serde_json::from_str(json).map_err(bad)?, message);
        };
        let data = stream.data.get();
        match stream.stream.split('@').nth(1) {
            Some("bookTicker") => self.ticker(&serde_json::from_str(data).map_err(bad)?, message),
            Some("trade") => self.trade(&serde_json::from_str(data).map_err(bad)?, message),
            Some("depth") => self.depth(&serde_json::from_str(data).map_err(bad)?, message),
            _ => {
                let fault = Fault::new(format!("stream '{}' is none of bookTicker, trade, depth", stream.stream));
                Err(fault.values("bookTicker, trade, depth", stream.stream))
            }
        }
    }

    fn names(&self) -> &[Name] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tapestore::record::split;

    use super::super::message::Input;
    use super::*;

    fn read(lines: &[&str]) -> (Vec<Vec<u64>>, Option<String>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        lines.iter().for_each(|l| writeln!(file, "{l}").unwrap());
        let mut input = Binance::open(file.path(), None).unwrap();
        let (mut message, mut out) = (Message::default(), Vec::new());
        loop {
            match input.next(&mut message) {
                Ok(true) => out.push(message.words.clone()),
                Ok(false) => return (out, None),
                Err(e) => return (out, Some(e.to_string())),
            }
        }
    }

    #[test]
    fn each_stream_becomes_its_kind_with_exact_numbers() {
        let (messages, error) = read(&[
            r#"1723161255088169167 {"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":5123107839020,"s":"BTCUSDT","b":"61800.20","B":"2.507","a":"61800.30","A":"2.510","T":1723161256313,"E":1723161256313}}"#,
            r#"1723161255088176367 {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161256322,"T":1723161256322,"s":"BTCUSDT","t":5266583935,"p":"61800.30","q":"0.006","X":"MARKET","m":false}}"#,
            r#"1723161255030314667 {"stream":"btcusdt@depth@0ms","data":{"e":"depthUpdate","E":1723161256299,"T":1723161256298,"s":"BTCUSDT","U":1,"u":2,"pu":0,"b":[["58710.20","0.014"],["61510.90","0.000"]],"a":[["61800.30","1"]]}}"#,
            r#"1723161255319702566 {"lastUpdateId":5,"E":1723161256501,"T":1723161256493,"bids":[["61800.20","2.909"]],"asks":[["61800.30","1.5"]]}"#,
        ]);
        assert_eq!(error, None);
        let quote: Vec<_> = split(&messages[0]).flatten().collect();
        let quote = quote[0].get::<Quote>().unwrap();
        assert_eq!((quote.bid_px.to_string(), quote.ask_sz.to_string()), ("61800.2".into(), "2.51".into()));
        assert_eq!((quote.ts_event, quote.ts_in_delta), (Ts(1_723_161_256_313_000_000), -1_224_830_833));
        let trade = split(&messages[1]).flatten().next().unwrap();
        assert_eq!((trade.get::<Trade>().unwrap().side, trade.get::<Trade>().unwrap().trade_id), (side::BID, 5_266_583_935));
        let levels: Vec<BookOrder> = split(&messages[2]).flatten().map(|r| *r.get::<BookOrder>().unwrap()).collect();
        assert_eq!(levels.iter().map(|l| l.action).collect::<Vec<_>>(), [action::MODIFY, action::CANCEL, action::MODIFY]);
        assert_eq!(levels.iter().map(|l| l.flags & flags::LAST).collect::<Vec<_>>(), [0, 0, flags::LAST]);
        let snapshot: Vec<BookOrder> = split(&messages[3]).flatten().map(|r| *r.get::<BookOrder>().unwrap()).collect();
        assert_eq!(snapshot.iter().map(|l| l.action).collect::<Vec<_>>(), [action::CLEAR, action::ADD, action::ADD]);
    }

    #[test]
    fn a_bad_line_is_named_and_what_came_before_it_is_kept() {
        let good = r#"1 {"stream":"x@trade","data":{"e":"trade","E":1,"T":1,"s":"X","t":1,"p":"1","q":"1","m":true}}"#;
        for (bad, why) in [
            ("nonsense", "local_ns"),
            ("1 {", "EOF"),
            (r#"1 {"stream":"x@kline","data":{}}"#, "kline"),
            (
                r#"1 {"stream":"x@trade","data":{"e":"trade","E":1,"T":1,"s":"X","t":1,"p":"1.0000000001","q":"1","m":true}}"#,
                "price",
            ),
            (r#"1 {"stream":"x@trade","data":{"e":"trade","E":1,"T":1,"s":"../x y","t":1,"p":"1","q":"1","m":true}}"#, "name"),
            (r#"1 {"lastUpdateId":5,"bids":[["1","-1"]],"asks":[]}"#, "size"),
        ] {
            let (messages, error) = read(&[good, bad, good]);
            assert_eq!(messages.len(), 1);
            let error = error.unwrap();
            assert!(error.contains("line 2") && error.contains(why), "{error}");
        }
    }
}
