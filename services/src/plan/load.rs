//! Owns: the load that a plan is for: how many records of which kinds come, from how many publishers, to how many hosts.

use tapestore::lsn::Durability;
use tapestore::record::{Column, ColumnType, Kind, SCHEMAS, Schema, USER_FIRST, WORDS_MAX, WORDS_MIN};

use crate::exit::{Failure, Outcome, USAGE};

/// The load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Records a second while they come.
    pub rate: f64,
    /// Seconds of a day in which they come.
    pub seconds_a_day: f64,
    /// Instruments, each with records of every kind.
    pub instruments: u64,
    /// Days that are kept.
    pub days: u64,
    /// The kinds, each with its part of all records.
    pub kinds: Vec<(&'static Schema, f64)>,
    /// Publishers, of which each sends the same part.
    pub publishers: u64,
    /// Hosts, the leader among them.
    pub hosts: u64,
    /// The level at which a record counts as stored.
    pub level: Durability,
    /// Records that a publisher sends together.
    pub batch: u64,
}

impl Load {
    /// Records of a day, of all kinds.
    pub fn records_a_day(&self) -> u64 {
        (self.rate * self.seconds_a_day).ceil() as u64
    }

    /// Batches a second.
    pub fn batches(&self) -> f64 {
        self.rate / self.batch as f64
    }

    /// Bytes of a record, on average.
    pub fn record_bytes(&self) -> f64 {
        self.kinds.iter().map(|(schema, part)| (schema.words * 8) as f64 * part).sum()
    }
}

/// The layout of a kind of `bytes` bytes that a program defines: a head, a price, and columns of eight bytes.
///
/// # Errors
/// A record has no such size.
pub fn sized(bytes: usize) -> Outcome<&'static Schema> {
    let (least, most) = (WORDS_MIN * 8, WORDS_MAX * 8);
    if !bytes.is_multiple_of(8) || !(least..=most).contains(&bytes) {
        return Err(Failure::new(USAGE, format!("--record-size {bytes}: a record has {least} to {most} bytes, a multiple of 8")));
    }
    let head = [("kind", 0, ColumnType::U16), ("source", 2, ColumnType::U16), ("instrument", 4, ColumnType::U32)];
    let head = head.into_iter().chain([("ts_event", 8, ColumnType::Ts)]);
    let mut columns: Vec<Column> = head.map(|(name, offset, of)| Column { name, offset, of }).collect();
    for offset in (least..bytes).step_by(8) {
        // A process plans once: the names live as long as it.
        let name: &'static str = format!("column_{offset}").leak();
        columns.push(Column { name, offset, of: ColumnType::U64 });
    }
    let schema = Schema::new(Kind(USER_FIRST), "record", bytes / 8, 1, columns.leak(), &[]);
    Ok(Box::leak(Box::new(schema)))
}

/// The kinds of a list like `trade,quote` or `quote=9,trade=1`, each with its part.
///
/// # Errors
/// A kind is not built in, or a weight is no number.
pub fn kinds(text: &str) -> Outcome<Vec<(&'static Schema, f64)>> {
    let mut found: Vec<(&'static Schema, f64)> = Vec::new();
    for one in text.split(',') {
        let (name, weight) = one.split_once('=').unwrap_or((one, "1"));
        let weight: f64 = weight.trim().parse().unwrap_or(f64::NAN);
        if !(weight > 0.0 && weight.is_finite()) {
            return Err(Failure::new(USAGE, format!("--kind {one}: give a weight above 0, like quote=9,trade=1")));
        }
        let schema = SCHEMAS.iter().find(|schema| schema.name == name.trim()).ok_or_else(|| {
            let names: Vec<&str> = SCHEMAS.iter().map(|schema| schema.name).collect();
            let message =
                format!("--kind {one}: the kinds are {}; for a kind of your own give its --record-size", names.join(", "));
            Failure::new(USAGE, message)
        })?;
        found.push((schema, weight));
    }
    let all: f64 = found.iter().map(|(_, weight)| weight).sum();
    found.iter_mut().for_each(|(_, weight)| *weight /= all);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_parts_and_unknown_ones_are_refused() {
        let of = |text: &str| kinds(text).map(|kinds| kinds.iter().map(|(s, part)| (s.name, *part)).collect::<Vec<_>>());
        assert_eq!(of("trade,quote").unwrap(), [("trade", 0.5), ("quote", 0.5)]);
        assert_eq!(of("quote=9, trade=1").unwrap(), [("quote", 0.9), ("trade", 0.1)]);
        for wrong in ["trades", "", "trade=0", "trade=x", "trade=inf"] {
            assert_eq!(of(wrong).unwrap_err().code, USAGE, "{wrong}");
        }
        assert!(of("trades").unwrap_err().message.contains("--record-size"));
    }

    #[test]
    fn a_record_has_the_size_that_was_given() {
        let schema = sized(128).unwrap();
        assert_eq!(schema.words, 16);
        assert_eq!(schema.columns.iter().map(|column| column.of.size()).sum::<usize>(), 128);
        for wrong in [0, 8, 20, 1032] {
            assert!(sized(wrong).is_err(), "{wrong}");
        }
    }
}
