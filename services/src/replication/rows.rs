//! Owns: committed records that another host fetches because it has lost an SSTable: the form in which they travel, and the
//! side that sends them.
//!
//! What must hold: every record is read as readers read it, with checksums verified. All committed records in the requested
//! range are sent, or the stream ends with a status. What arrives is not trusted: length, CRC and count of a part are checked
//! before a row of it is used. A client that stops reading is left after a while, and with it what its request holds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapestore::error::Error;
use tapestore::lsn::{InstrumentId, Lsn, NodeId};
use tapestore::reader::{Arrival, At, Reader, Row, Series, Snapshot, TimeRange};
use tapestore::record::{Kind, schema};
use tapestore::time::Ts;
use tapestore_engine::repair::rows::{HEAD_WORDS, PeerRow, Wanted};
use tokio::sync::mpsc;
use tonic::Status;

use super::proto::{RowsPart, RowsRequest};
use super::session::StorageInfo;

/// Requests that are served at a time.
pub const READERS: usize = 2;
/// Bytes of rows in a part, about.
const PART: usize = 1 << 20;
/// Most bytes of a part.
pub const PART_MAX: usize = 2 << 20;
/// A part is sent after this long, even an empty one: the client then has a sign of life.
const BEAT: Duration = Duration::from_secs(1);
/// Rows between two looks at the time.
const ROWS: u64 = 4096;
/// How long a client may leave a part unread.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes sent after which the memory of what was read is returned to the system.
const RELEASE: u64 = 64 << 20;

/// The reason why a part is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPart {
    /// Its bytes are no whole rows, or too many.
    #[error("a part of {bytes} bytes; a row has {row}, and a part at most {PART_MAX}")]
    Length {
        /// Its bytes.
        bytes: usize,
        /// Bytes of a row.
        row: usize,
    },
    /// Its CRC does not match.
    #[error("a part whose CRC is {found:#010x} instead of {expected:#010x}")]
    Crc {
        /// The CRC that came with it.
        expected: u32,
        /// The CRC of its bytes.
        found: u32,
    },
    /// Rows are missing between this part and the one before it.
    #[error("a part after {found} rows, where {expected} have arrived")]
    Count {
        /// Rows that have arrived, with those of this part.
        expected: u64,
        /// Rows that were sent, with those of this part.
        found: u64,
    },
    /// A bit of a row that must be zero is not.
    #[error("row {number} is malformed")]
    Row {
        /// Its number, from 0.
        number: u64,
    },
}

fn crc(rows: &[u8], sent: u64, is_last: bool) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(rows), &sent.to_le_bytes());
    crc32c::crc32c_append(crc, &[u8::from(is_last)])
}

/// A part with `rows`, which end with row number `sent`.
pub fn part(rows: Vec<u8>, sent: u64, is_last: bool) -> RowsPart {
    RowsPart { crc: crc(&rows, sent, is_last), rows: Bytes::from(rows), sent, is_last }
}

/// Appends `row` to the bytes of a part.
pub fn encode(row: &PeerRow<'_>, to: &mut Vec<u8>) {
    row.head().iter().chain(row.record).for_each(|word| to.extend(word.to_le_bytes()));
}

/// Calls `give` with each row of `part`, with records of `words` words; `before` rows have arrived before it. Returns how many
/// have arrived with it.
///
/// # Errors
/// [`BadPart`], as an error of `give`; no row of a part whose length, CRC or count is wrong is given.
pub fn decode<E: From<BadPart>>(
    part: &RowsPart,
    words: usize,
    before: u64,
    give: &mut dyn FnMut(PeerRow<'_>) -> Result<(), E>,
) -> Result<u64, E> {
    let (bytes, row) = (part.rows.len(), (HEAD_WORDS + words) * 8);
    if bytes > PART_MAX || !bytes.is_multiple_of(row) {
        return Err(BadPart::Length { bytes, row }.into());
    }
    let found = crc(&part.rows, part.sent, part.is_last);
    if found != part.crc {
        return Err(BadPart::Crc { expected: part.crc, found }.into());
    }
    let arrived = before.saturating_add((bytes / row) as u64);
    if arrived != part.sent {
        return Err(BadPart::Count { expected: arrived, found: part.sent }.into());
    }
    let mut one = Vec::with_capacity(row / 8);
    for (number, bytes) in (before..).zip(part.rows.chunks_exact(row)) {
        one.clear();
        one.extend(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        give(PeerRow::of(&one).ok_or(BadPart::Row { number })?)?;
    }
    Ok(arrived)
}

/// A request for records.
pub struct Job {
    store: PathBuf,
    node: NodeId,
    /// What is read.
    pub wanted: Wanted,
    layout: u64,
    bytes_per_second: u64,
}

impl Job {
    /// The job of `request` on the host of `storage`, which sends at most `bytes_per_second`; 0: no limit.
    ///
    /// # Errors
    /// The status with which the request is refused.
    pub fn new(storage: &StorageInfo, request: &RowsRequest, bytes_per_second: u64) -> Result<Job, Status> {
        let RowsRequest { generation, kind, layout, first, last, from, to, .. } = *request;
        let own = &storage.identity;
        if generation != own.generation {
            let why = format!(
                "generation {generation} there and {} on node {}: run tape cluster rejoin on the host with the lower one",
                own.generation, own.node
            );
            return Err(Status::failed_precondition(why));
        }
        let kind = u16::try_from(kind).map(Kind).map_err(|_| Status::invalid_argument(format!("{kind} is no kind")))?;
        if first == 0 || first > last || from > to {
            let why = format!("records {first} to {last} with index times {from} to {to} are no valid range");
            return Err(Status::invalid_argument(why));
        }
        let wanted = Wanted { kind, lsn: (Lsn(first), Lsn(last)), time: (Ts(from), Ts(to)) };
        Ok(Job { store: own.store.clone(), node: own.node, wanted, layout, bytes_per_second })
    }

    /// Reads the records and sends them to `to`, on a thread that may wait; returns how many.
    pub fn run(&self, to: &mpsc::Sender<Result<RowsPart, Status>>) -> u64 {
        let mut parts =
            Parts { to, open: Vec::with_capacity(PART), sent: 0, bytes: 0, began: Instant::now(), last: Instant::now() };
        if let Err(status) = self.send(&mut parts) {
            // The client may be gone.
            deliver(to, Err(status)).ok();
        }
        parts.sent
    }

    fn send(&self, parts: &mut Parts<'_>) -> Result<(), Status> {
        let node = self.node;
        let failed = |e: Error| Status::data_loss(format!("node {node} cannot read its own records: {e}"));
        let mut reader = Reader::open(&self.store).map_err(failed)?;
        reader.kinds().map_err(failed)?;
        let snapshot = reader.snapshot(At::Committed).map_err(failed)?;
        let Wanted { kind, lsn: (first, last), time: (from, to) } = self.wanted;
        if snapshot.last() < last {
            let why = format!("node {node} has the committed records up to {}, and {last} is needed", snapshot.last());
            return Err(Status::out_of_range(why));
        }
        if schema(kind).is_some_and(|known| known.hash != self.layout) {
            return Err(Status::failed_precondition(format!("kind {} has another layout on node {node}", kind.0)));
        }
        let (range, mut looked, mut released) = (TimeRange { from, to }, 0, 0);
        for instrument in instruments(&snapshot, kind, range, (first, last)).map_err(failed)? {
            let mut scan = snapshot.scan(Series { instrument, kind }, range);
            while let Some(row) = scan.next().map_err(failed)? {
                looked += 1;
                if looked % ROWS == 0 {
                    parts.beat()?;
                }
                if row.lsn < first || last < row.lsn {
                    continue;
                }
                let Some(arrival) = arrival(&snapshot, kind, &row).map_err(failed)? else {
                    return Err(Status::data_loss(format!("node {node} does not find who published record {}", row.lsn)));
                };
                let origin = (arrival.publisher, arrival.epoch, arrival.pub_seq);
                parts.push(&PeerRow { lsn: row.lsn, ingest_ts: arrival.ingest_ts, origin, record: row.record.words() });
                if parts.open.len() >= PART {
                    parts.send(false)?;
                    parts.rest(self.bytes_per_second);
                }
            }
            if parts.bytes - released >= RELEASE {
                released = parts.bytes;
                snapshot.release();
            }
        }
        snapshot.release();
        parts.send(true)
    }
}

/// The instruments of which `snapshot` may have records of `kind` in `range` and `lsn`.
fn instruments(snapshot: &Snapshot, kind: Kind, range: TimeRange, lsn: (Lsn, Lsn)) -> Result<Vec<InstrumentId>, Error> {
    let mut all = Vec::new();
    for file in snapshot.history().files_in(kind, range).filter(|f| f.meta().lsn.0 <= lsn.1 && lsn.0 <= f.meta().lsn.1) {
        all.extend(file.series()?.iter().map(|series| series.instrument));
        file.check()?;
    }
    for table in snapshot.tables() {
        all.extend(table.series().into_iter().filter(|series| series.kind == kind).map(|series| series.instrument));
        table.check()?;
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// How `row`, a record of `kind`, arrived. Only SSTables of that kind are read.
fn arrival(snapshot: &Snapshot, kind: Kind, row: &Row<'_>) -> Result<Option<Arrival>, Error> {
    if row.lsn > snapshot.history().covered() {
        return snapshot.arrival(row.lsn);
    }
    for file in snapshot.history().files_in(kind, TimeRange { from: row.index_time, to: row.index_time }) {
        if let Some(arrival) = file.arrival(row.lsn)? {
            return Ok(Some(arrival));
        }
    }
    Ok(None)
}

/// Sends `part`, on a thread that may wait: the queue is full while the client does not read.
fn deliver(to: &mpsc::Sender<Result<RowsPart, Status>>, part: Result<RowsPart, Status>) -> Result<(), Status> {
    match tokio::runtime::Handle::current().block_on(tokio::time::timeout(PATIENCE, to.send(part))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the client is gone")),
        Err(_) => Err(Status::deadline_exceeded("the client does not read")),
    }
}

/// The parts of a stream.
struct Parts<'t> {
    to: &'t mpsc::Sender<Result<RowsPart, Status>>,
    /// Bytes of the rows that are not sent yet.
    open: Vec<u8>,
    /// Rows, with those that are not sent yet.
    sent: u64,
    /// Bytes that are sent.
    bytes: u64,
    began: Instant,
    last: Instant,
}

impl Parts<'_> {
    fn push(&mut self, row: &PeerRow<'_>) {
        encode(row, &mut self.open);
        self.sent += 1;
    }

    /// Sends a part if the last one was a while ago.
    fn beat(&mut self) -> Result<(), Status> {
        if self.last.elapsed() >= BEAT { self.send(false) } else { Ok(()) }
    }

    fn send(&mut self, is_last: bool) -> Result<(), Status> {
        self.bytes += self.open.len() as u64;
        let part = part(std::mem::replace(&mut self.open, Vec::with_capacity(PART)), self.sent, is_last);
        deliver(self.to, Ok(part))?;
        self.last = Instant::now();
        Ok(())
    }

    /// Waits as long as sending so many bytes may take.
    fn rest(&self, bytes_per_second: u64) {
        if bytes_per_second > 0 {
            let least = Duration::from_secs_f64(self.bytes as f64 / bytes_per_second as f64);
            std::thread::sleep(least.saturating_sub(self.began.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use tapestore::lsn::{Epoch, PubSeq, PublisherId};

    use super::*;

    /// Words of a record.
    const WORDS: usize = 3;

    fn rows(count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in 0..count {
            let origin = (PublisherId(n as u16), Epoch(2), PubSeq(n * 3));
            encode(&PeerRow { lsn: Lsn(n + 1), ingest_ts: Ts(7), origin, record: &[n, n + 1, n + 2] }, &mut bytes);
        }
        bytes
    }

    fn decoded(part: &RowsPart, before: u64) -> Result<Vec<u64>, BadPart> {
        let mut lsns = Vec::new();
        let arrived = decode(part, WORDS, before, &mut |row: PeerRow<'_>| {
            assert_eq!(row.record.len(), WORDS);
            lsns.push(row.lsn.0);
            Ok::<_, BadPart>(())
        })?;
        assert_eq!(arrived, before + lsns.len() as u64);
        Ok(lsns)
    }

    #[test]
    fn a_part_arrives_as_it_was_sent_and_a_missing_part_is_noticed() {
        assert_eq!(decoded(&part(rows(3), 3, false), 0), Ok(vec![1, 2, 3]));
        assert_eq!(decoded(&part(rows(3), 8, true), 5), Ok(vec![1, 2, 3]));
        assert_eq!(decoded(&part(Vec::new(), 5, false), 5), Ok(Vec::new()), "a sign of life");
        assert_eq!(decoded(&part(rows(3), 9, true), 5), Err(BadPart::Count { expected: 8, found: 9 }));
        let bytes = rows(3);
        let short = bytes[..bytes.len() - 1].to_vec();
        assert_eq!(decoded(&part(short, 3, true), 0), Err(BadPart::Length { bytes: 167, row: 56 }));
        let vast = vec![0; (PART_MAX / 56 + 1) * 56];
        assert!(matches!(decoded(&part(vast, 3, true), 0), Err(BadPart::Length { .. })));
        let mut odd = rows(3);
        odd[56 + 18] = 1;
        assert_eq!(decoded(&part(odd, 3, true), 0), Err(BadPart::Row { number: 1 }));
    }

    #[test]
    fn every_flipped_bit_of_a_part_is_noticed() {
        let sound = part(rows(3), 3, true);
        for bit in 0..sound.rows.len() * 8 {
            let mut rows = sound.rows.to_vec();
            rows[bit / 8] ^= 1 << (bit % 8);
            let flipped = RowsPart { rows: rows.into(), ..sound.clone() };
            assert!(matches!(decoded(&flipped, 0), Err(BadPart::Crc { .. })), "bit {bit}");
        }
        for bit in 0..64 {
            assert!(decoded(&RowsPart { sent: sound.sent ^ 1 << bit, ..sound.clone() }, 0).is_err(), "bit {bit} of the count");
        }
        assert!(decoded(&RowsPart { is_last: false, ..sound }, 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_rows_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..400), at in any::<prop::sample::Index>(), with in any::<u8>(),
            before in any::<u64>(),
        ) {
            // As a message, as the rows of one, and as a message of which one byte is another.
            let messages = [RowsPart::decode(&bytes[..]).ok(), Some(part(bytes.clone(), before, true))];
            let sound = part(rows(3), 3, true);
            let mut changed = sound.encode_to_vec();
            let place = at.index(changed.len());
            changed[place] = with;
            for message in messages.into_iter().flatten() {
                decoded(&message, before).ok();
            }
            if let Ok(message) = RowsPart::decode(&changed[..]) {
                // Two encodings of one message are possible.
                prop_assert!(message == sound || decoded(&message, 0).is_err());
            }
        }
    }
}
