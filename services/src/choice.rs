//! Owns: the arguments that take one of a few named values, as `--help` lists them.
//!
//! What must hold: each list has every name that the type parses, and no other.

use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tapestore::agent::Wait;
use tapestore::bars::By;
use tapestore::lsn::Durability;
use tapestore::reader::At;

/// A value's name and what it means.
type Named = (&'static str, &'static str);

const DURABILITIES: [Named; 6] = [
    ("none", "in shared memory: lost if storage dies"),
    ("os", "in the log file: lost with the power of the host"),
    ("fsync", "on the disk of this host"),
    ("standby", "on the disks of a standby too: a pair"),
    ("quorum", "on the disks of a majority of the hosts"),
    ("quorum-os", "in the log files of a majority of the hosts"),
];
const WATERMARKS: [Named; 4] = [
    ("committed", "what no failure takes back, except with flush = \"interval\""),
    ("durable", "what is on this host's disk"),
    ("appended", "the newest; a loss of power may withdraw it"),
    ("flushed", "what is in SSTables"),
];
const WAITS: [Named; 3] = [
    ("busy", "never yields its core: lowest latency"),
    ("adaptive", "spins, then yields, then sleeps"),
    ("blocking", "sleeps at once"),
];
const TIMES: [Named; 2] =
    [("recv", "the time of reception, the order of the store"), ("event", "the venue's time; reads all trades")];

fn of<T>(values: &[Named]) -> impl TypedValueParser<Value = T> + use<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    let values: Vec<_> = values.iter().map(|(name, about)| PossibleValue::new(name).help(*about)).collect();
    PossibleValuesParser::new(values).try_map(|text| text.parse::<T>())
}

/// A level of durability.
pub fn durability() -> impl TypedValueParser<Value = Durability> {
    of(&DURABILITIES)
}

/// A watermark up to which to read.
pub fn watermark() -> impl TypedValueParser<Value = At> {
    of(&WATERMARKS)
}

/// How a thread waits.
pub fn wait() -> impl TypedValueParser<Value = Wait> {
    of(&WAITS)
}

/// The time of a trade that decides its bar.
pub fn by() -> impl TypedValueParser<Value = By> {
    of(&TIMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_a_value_and_every_value_is_listed() {
        for (name, _) in DURABILITIES {
            assert_eq!(name.parse::<Durability>().unwrap().to_string(), name);
        }
        for (name, _) in WATERMARKS {
            assert_eq!(name.parse::<At>().unwrap().to_string(), name);
        }
        assert!(WAITS.iter().all(|(name, _)| name.parse::<Wait>().is_ok()));
        assert!(TIMES.iter().all(|(name, _)| name.parse::<By>().is_ok()));
        // An error of each type names all values.
        let listed = |text: String, values: &[Named]| {
            let names = text.rsplit(": ").next().map_or(0, |list| list.split(", ").count());
            assert!(values.iter().all(|(name, _)| text.contains(name)) && names == values.len(), "{text}");
        };
        listed("x".parse::<Durability>().unwrap_err().to_string(), &DURABILITIES);
        listed("x".parse::<At>().unwrap_err().to_string(), &WATERMARKS);
        listed("x".parse::<Wait>().unwrap_err().to_string(), &WAITS);
        listed("x".parse::<By>().unwrap_err().to_string(), &TIMES);
    }
}
