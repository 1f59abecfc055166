//! Owns: the records of another host on their way into an SSTable: checked on arrival, kept in a file, read back in order.
//!
//! What must hold: records of another host are not trusted. Only a record of the requested kind, LSNs and times is kept, and
//! only in (instrument, index time, LSN) order, so that the writer of SSTables finds what it demands. Memory is one chunk, and
//! 16 bytes a series.

use std::path::Path;

use tapestore::disk::{Disk, DiskFile, Open};
use tapestore::error::{Error, Result};
use tapestore::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::record::{Kind, RecordRef, Schema, index_time};
use tapestore::sstable::Origin;
use tapestore::time::Ts;

/// What another host is asked for: its committed records of a kind, in a range of LSNs and one of index times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The kind.
    pub kind: Kind,
    /// First and last LSN.
    pub lsn: (Lsn, Lsn),
    /// Least and greatest index time.
    pub time: (Ts, Ts),
}

/// A record of another host, with all that an SSTable holds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRow<'a> {
    /// Its LSN.
    pub lsn: Lsn,
    /// When the leader appended it.
    pub ingest_ts: Ts,
    /// Its publisher, epoch and number.
    pub origin: Origin,
    /// The record.
    pub record: &'a [u64],
}

/// Words of a row before its record: LSN, ingest time, publisher and epoch, number.
pub const HEAD_WORDS: usize = 4;

impl<'a> PeerRow<'a> {
    /// The row as words: the head, which is [`HEAD_WORDS`] long. The record follows it.
    pub fn head(&self) -> [u64; HEAD_WORDS] {
        let (publisher, epoch, pub_seq) = self.origin;
        [self.lsn.0, self.ingest_ts.0, u64::from(publisher.0) | u64::from(epoch.0) << 32, pub_seq.0]
    }

    /// The row in `words`, head and record; `None` if they are too few, or a bit that must be zero is not.
    pub fn of(words: &'a [u64]) -> Option<PeerRow<'a>> {
        let ([lsn, ingest_ts, from, pub_seq], record) = words.split_first_chunk::<HEAD_WORDS>()?;
        let origin = (PublisherId(*from as u16), Epoch((*from >> 32) as u32), PubSeq(*pub_seq));
        let is_clean = *from & 0xffff_0000 == 0 && !record.is_empty();
        is_clean.then_some(PeerRow { lsn: Lsn(*lsn), ingest_ts: Ts(*ingest_ts), origin, record })
    }
}

/// Bytes that are written or read at once, about.
const CHUNK: usize = 1 << 20;

/// The kept records.
pub(super) struct Rows {
    file: Box<dyn DiskFile>,
    pub(super) schema: &'static Schema,
    wanted: Wanted,
    /// Rows that are kept at most.
    most: u64,
    /// Key of the last row that arrived.
    last: Option<(InstrumentId, Ts, Lsn)>,
    /// Rows that are not written yet, as words.
    open: Vec<u64>,
    written: u64,
    /// Instruments, with the number of their rows.
    series: Vec<(InstrumentId, u64)>,
    pub(super) rows: u64,
    /// Whether a kept record has reserved bytes that are not zero.
    pub(super) has_reserved: bool,
}

fn wrong<T>(lsn: Lsn, reason: String) -> Result<T> {
    Err(Error::invalid("record of the other host", format!("record {lsn}: {reason}")))
}

impl Rows {
    /// No rows yet, in the new file `path`; at most `most` of them.
    pub(super) fn create(disk: &dyn Disk, path: &Path, schema: &'static Schema, wanted: Wanted, most: u64) -> Result<Rows> {
        let file = disk.open(path, Open::CreateNew)?;
        let (last, open, series) = (None, Vec::with_capacity(CHUNK / 8), Vec::new());
        Ok(Rows { file, schema, wanted, most, last, open, written: 0, series, rows: 0, has_reserved: false })
    }

    /// Words of a row.
    fn words(&self) -> usize {
        HEAD_WORDS + self.schema.words
    }

    /// Checks `row`, the next one; returns its instrument.
    pub(super) fn check(&mut self, row: &PeerRow<'_>) -> Result<InstrumentId> {
        let Wanted { kind, lsn: (first, last), time: (from, to) } = self.wanted;
        if row.lsn < first || last < row.lsn {
            return wrong(row.lsn, format!("records {first} to {last} were asked for"));
        }
        let record = RecordRef::first(row.record)?;
        if record.kind() != kind || record.words().len() != row.record.len() {
            let (bytes, found) = (row.record.len() * 8, record.kind().0);
            return wrong(row.lsn, format!("{bytes} bytes of kind {found} instead of a record of kind {}", kind.0));
        }
        let own = row.record.get(self.schema.index_word).copied().unwrap_or(u64::MAX);
        let (time, _) = index_time(Ts(own), row.ingest_ts);
        if time < from || to < time {
            return wrong(row.lsn, format!("its index time is {time}, outside {from} to {to}"));
        }
        let instrument = record.header().instrument;
        let key = (instrument, time, row.lsn);
        if self.last.is_some_and(|last| key <= last) {
            return wrong(row.lsn, "it is not after the record before it".to_owned());
        }
        self.last = Some(key);
        Ok(instrument)
    }

    /// Keeps `row`, which has been checked and is of `instrument`.
    pub(super) fn keep(&mut self, row: &PeerRow<'_>, instrument: InstrumentId) -> Result<()> {
        if self.rows >= self.most {
            return Err(Error::invalid(
                "records of the other host",
                format!("it sends more than the {} that are lost", self.most),
            ));
        }
        let bytes: &[u8] = bytemuck::cast_slice(row.record);
        let is_set = |at: usize, len: usize| bytes.get(at..at + len).is_some_and(|b| b.iter().any(|b| *b != 0));
        self.has_reserved |= self.schema.reserved().any(|c| is_set(c.offset, c.of.size()));
        match self.series.last_mut() {
            Some((last, rows)) if *last == instrument => *rows += 1,
            _ => self.series.push((instrument, 1)),
        }
        self.open.extend(row.head());
        self.open.extend_from_slice(row.record);
        self.rows += 1;
        if self.open.len() * 8 >= CHUNK { self.write() } else { Ok(()) }
    }

    /// Writes what is not written yet.
    pub(super) fn write(&mut self) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.open);
        self.file.write_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        self.open.clear();
        Ok(())
    }

    /// The instruments of the rows `from..to`, each with the number of its rows.
    pub(super) fn series(&self, from: u64, to: u64) -> Vec<(InstrumentId, u64)> {
        let mut at = 0;
        let within = self.series.iter().map(|(instrument, rows)| {
            let (first, after) = (at, at + rows);
            at = after;
            (*instrument, after.min(to).saturating_sub(first.max(from)))
        });
        within.filter(|(_, rows)| *rows > 0).collect()
    }

    /// Calls `visit` with each of the rows `from..to`, in order. All have been written.
    ///
    /// # Errors
    /// [`Error::Io`]; the errors of `visit`.
    pub(super) fn read(&self, from: u64, to: u64, visit: &mut dyn FnMut(PeerRow<'_>) -> Result<()>) -> Result<()> {
        let size = self.words() as u64 * 8;
        let at_once = (CHUNK as u64 / size).max(1);
        let mut chunk: Vec<u64> = Vec::new();
        let mut at = from;
        while at < to {
            let rows = at_once.min(to - at);
            chunk.resize(rows as usize * self.words(), 0);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut chunk);
            let (wanted, read) = (bytes.len(), self.file.read_at(bytes, at * size)?);
            if read < wanted {
                return Err(Error::invalid("records of the other host", format!("{read} of {wanted} kept bytes can be read")));
            }
            for row in chunk.chunks_exact(self.words()) {
                let row = PeerRow::of(row);
                visit(row.ok_or_else(|| Error::invalid("records of the other host", "a kept row has changed".to_owned()))?)?;
            }
            at += rows;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tapestore::disk::sim::SimDisk;
    use tapestore::record::{Record, Trade};

    use super::*;

    const WANTED: Wanted = Wanted { kind: Trade::KIND, lsn: (Lsn(5), Lsn(9)), time: (Ts(100), Ts(200)) };

    fn rows(disk: &SimDisk) -> Rows {
        disk.create_dir(Path::new("/r")).unwrap();
        Rows::create(disk, Path::new("/r/rows"), &tapestore::record::SCHEMAS[0], WANTED, 3).unwrap()
    }

    fn trade(instrument: u32, at: u64) -> Trade {
        Trade { instrument: InstrumentId(instrument), ts_event: Ts(at), ts_recv: Ts(at), ..Trade::default() }
    }

    fn row(lsn: u64, trade: &Trade) -> PeerRow<'_> {
        PeerRow { lsn: Lsn(lsn), ingest_ts: Ts(150), origin: (PublisherId(7), Epoch(3), PubSeq(lsn + 1)), record: trade.words() }
    }

    #[test]
    fn a_row_is_the_same_after_it_was_words_and_has_no_bit_that_means_nothing() {
        let trade = trade(1, 150);
        let row = row(6, &trade);
        let words = [&row.head()[..], row.record].concat();
        assert_eq!(PeerRow::of(&words), Some(row));
        for bit in 16..32 {
            let mut words = words.clone();
            words[2] |= 1 << bit;
            assert_eq!(PeerRow::of(&words), None, "bit {bit}");
        }
        assert!((0..=HEAD_WORDS).all(|len| PeerRow::of(&words[..len]).is_none()));
    }

    #[test]
    fn a_record_that_was_not_asked_for_or_is_out_of_order_is_refused() {
        let disk = SimDisk::new();
        let mut kept = rows(&disk);
        let mut refused = |lsn, instrument, at, why: &str| {
            let error = kept.check(&row(lsn, &trade(instrument, at))).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(4, 1, 150, "records 5 to 9 were asked for");
        refused(10, 1, 150, "records 5 to 9 were asked for");
        refused(6, 1, 99, "outside");
        refused(6, 1, 201, "outside");
        let mut other = trade(1, 150);
        other.kind = tapestore::record::Quote::KIND;
        assert!(kept.check(&row(6, &other)).is_err(), "a quote is longer than a trade");
        other.kind = Kind(999);
        assert!(kept.check(&row(6, &other)).is_err(), "an unknown kind");
        let (first, mut long) = (trade(2, 150), trade(2, 160).words().to_vec());
        long.push(0);
        assert!(kept.check(&PeerRow { record: &long, ..row(7, &first) }).is_err(), "too long");
        let first = row(6, &first);
        assert_eq!(kept.check(&first).unwrap(), InstrumentId(2));
        for (lsn, instrument, at) in [(6, 2, 150), (5, 2, 150), (7, 2, 149), (7, 1, 150)] {
            let error = kept.check(&row(lsn, &trade(instrument, at))).unwrap_err().to_string();
            assert!(error.contains("not after the record before it"), "{error}");
        }
    }

    #[test]
    fn kept_rows_are_read_back_in_order_and_no_more_are_kept_than_are_lost() {
        let disk = SimDisk::new();
        let mut kept = rows(&disk);
        let trades = [trade(1, 150), trade(1, 160), trade(2, 140)];
        for (lsn, trade) in (5..).zip(&trades) {
            let instrument = kept.check(&row(lsn, trade)).unwrap();
            kept.keep(&row(lsn, trade), instrument).unwrap();
        }
        let more = trade(3, 150);
        let instrument = kept.check(&row(9, &more)).unwrap();
        assert!(kept.keep(&row(9, &more), instrument).unwrap_err().to_string().contains("more than the 3"));
        kept.write().unwrap();
        assert_eq!(kept.series(0, 3), [(InstrumentId(1), 2), (InstrumentId(2), 1)]);
        assert_eq!(kept.series(1, 2), [(InstrumentId(1), 1)]);
        assert_eq!(kept.series(2, 3), [(InstrumentId(2), 1)]);
        let mut found = Vec::new();
        let mut visit = |row: PeerRow<'_>| {
            found.push((row.lsn, row.origin, row.record.to_vec()));
            Ok(())
        };
        kept.read(1, 3, &mut visit).unwrap();
        let expected =
            [6, 7].map(|lsn| (Lsn(lsn), (PublisherId(7), Epoch(3), PubSeq(lsn + 1)), trades[lsn as usize - 5].words().to_vec()));
        assert_eq!(found, expected);
    }
}
