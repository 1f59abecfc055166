//! Owns: bars that the query process keeps in the store: the `[[derive]]` entries of its configuration, their checks, and the
//! threads that make the bars.
//!
//! What must hold: an entry is refused when the process starts, or its bars are made until the process ends. Whatever stops a
//! thread for now (no storage, back-pressure, another process that makes the same bars) is waited for.

mod agent;
mod bars;
pub mod mark;

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tape_services::exit::{Failure, INTERNAL, Outcome, USAGE};
use tape_services::query::Pattern;
use tapestore::agent::{Stop, spawn};
use tapestore::lsn::PublisherId;
use tapestore::record::{Bar1d, Bar1h, Bar1m, Bar1s, Kind, Name, Record, SCHEMAS};
use tapestore::time::{NANOS_PER_SECOND, parse_duration};

use crate::catalog::SYSTEM;
use mark::NAME_MAX;

/// Pause before a thread that could not go on tries again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a waiting thread looks whether it must end.
const TICK: Duration = Duration::from_millis(50);

/// The kinds of bars, and their intervals in seconds.
const KINDS: [(&str, Kind, u64); 4] =
    [("bar-1s", Bar1s::KIND, 1), ("bar-1m", Bar1m::KIND, 60), ("bar-1h", Bar1h::KIND, 3600), ("bar-1d", Bar1d::KIND, 86_400)];

/// A `[[derive]]` entry of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Entry {
    /// The kind of the records that bars are made from.
    #[serde(default = "trade")]
    pub from: String,
    /// The kind of the bars.
    pub kind: String,
    /// Names of the instruments, with wildcards.
    #[serde(default = "all")]
    pub symbols: Vec<String>,
    /// The publisher of the bars.
    pub publisher: u16,
    /// How late a trade may be.
    #[serde(default = "late")]
    pub late: String,
    /// The table of the bars in SQL; empty: as the kind, with `bars` for `bar`.
    #[serde(default)]
    pub name: String,
}

fn trade() -> String {
    "trade".to_owned()
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

fn late() -> String {
    "5s".to_owned()
}

/// An entry that has been checked.
#[derive(Clone, Debug)]
pub struct Derive {
    /// The kind of the bars.
    kind: Kind,
    /// Its name.
    kind_name: &'static str,
    /// The length of a bar, ns.
    interval: u64,
    patterns: Vec<Pattern>,
    publisher: PublisherId,
    /// How late a trade may be, ns.
    late: u64,
    /// The table in SQL.
    table: String,
    /// Stands for the kinds and the instruments: of another rule all bars are looked at again.
    rule: u64,
}

impl Derive {
    fn has(&self, name: &Name) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }
}

impl Entry {
    fn check(&self) -> Outcome<Derive> {
        let wrong = |reason: String| Failure::new(USAGE, format!("[[derive]] of {}: {reason}", self.kind));
        if self.from != "trade" {
            return Err(wrong(format!("from = \"{}\" is none of the kinds that bars are made from: trade", self.from)));
        }
        let Some(&(kind_name, kind, seconds)) = KINDS.iter().find(|(name, ..)| *name == self.kind) else {
            let names = KINDS.map(|(name, ..)| name).join(", ");
            return Err(wrong(format!("kind = \"{}\" is none of: {names}", self.kind)));
        };
        if self.symbols.is_empty() {
            return Err(wrong("symbols names no instrument; leave it out for all".to_owned()));
        }
        if self.publisher == 0 {
            return Err(wrong(
                "publisher = 0 is no publisher; use a number from 1 to 65535 that no program publishes as".to_owned(),
            ));
        }
        let patterns = self.symbols.iter().map(|text| Pattern::new(text)).collect::<Outcome<Vec<Pattern>>>();
        let patterns = patterns.map_err(|e| wrong(e.message))?;
        let late = parse_duration(&self.late).map_err(|e| wrong(format!("late = \"{}\": {e}", self.late)))?;
        let table = if self.name.is_empty() { kind_name.replace("bar-", "bars_") } else { self.name.clone() };
        let is_name = table.len() <= NAME_MAX
            && table.starts_with(|c: char| c.is_ascii_lowercase())
            && table.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !is_name {
            let rule = format!("lower-case letters, digits and _, at most {NAME_MAX}");
            return Err(wrong(format!("name = \"{table}\" is no name of a table: {rule}, like bars_1m")));
        }
        if SYSTEM.contains(&table.as_str()) || SCHEMAS.iter().any(|schema| schema.name.replace('-', "_") == table) {
            return Err(wrong(format!("there is a table {table} already; choose another name, like bars_1m")));
        }
        let mut symbols = self.symbols.clone();
        symbols.sort();
        let text = format!("{}\n{}\n{}", self.from, self.kind, symbols.join("\n"));
        let mut first = [0; 8];
        first.iter_mut().zip(digest(&SHA256, text.as_bytes()).as_ref()).for_each(|(to, byte)| *to = *byte);
        let (publisher, rule) = (PublisherId(self.publisher), u64::from_le_bytes(first));
        Ok(Derive { kind, kind_name, interval: seconds * NANOS_PER_SECOND, patterns, publisher, late, table, rule })
    }
}

/// The checked entries.
///
/// # Errors
/// One of them is wrong, or two have one publisher or one name.
pub fn check(entries: &[Entry]) -> Outcome<Vec<Derive>> {
    let all = entries.iter().map(Entry::check).collect::<Outcome<Vec<Derive>>>()?;
    for (at, one) in all.iter().enumerate() {
        for other in all.iter().take(at) {
            let what = match (one.publisher == other.publisher, one.table == other.table) {
                (true, _) => format!("publisher {}", one.publisher),
                (_, true) => format!("the name {}", one.table),
                _ => continue,
            };
            let text =
                format!("two [[derive]] entries, of {} and {}, have {what}; each needs its own", other.kind_name, one.kind_name);
            return Err(Failure::new(USAGE, text));
        }
    }
    Ok(all)
}

/// The threads that make bars.
#[derive(Debug)]
pub struct Deriving {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Deriving {
    /// Starts a thread for each of `entries` over the store in the directory `store`.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(store: &Path, entries: Vec<Derive>) -> Outcome<Deriving> {
        let mut deriving = Deriving { stop: Stop::default(), threads: Vec::new() };
        for derive in entries {
            let (store, stop) = (store.to_path_buf(), deriving.stop.clone());
            let started = spawn("tape-derive", None, move || run(&store, &derive, &stop));
            let started = started.map_err(|e| Failure::new(INTERNAL, format!("a thread for bars cannot be started: {e}")));
            deriving.threads.push(started?);
        }
        Ok(deriving)
    }
}

impl Drop for Deriving {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(name: "bars.thread_panicked", "a thread that makes bars has panicked");
            }
        }
    }
}

/// Makes the bars of `derive` until it is stopped.
fn run(store: &Path, derive: &Derive, stop: &Stop) {
    let mut noted = String::new();
    while !stop.is_stopped() {
        let Err(failed) = agent::run(store, derive, stop) else { return };
        let why = failed.to_string();
        if why != noted {
            tracing::warn!(name: "bars.retrying", table = derive.table, "cannot make bars now and tries again: {why}");
            noted = why;
        }
        wait(stop, RETRY);
    }
}

/// Sleeps for `time`, or until `stop`.
fn wait(stop: &Stop, time: Duration) {
    let ends = std::time::Instant::now() + time;
    while !stop.is_stopped() && std::time::Instant::now() < ends {
        std::thread::sleep(TICK.min(time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Outcome<Derive> {
        toml::from_str::<Entry>(text).unwrap().check()
    }

    #[test]
    fn an_entry_needs_a_kind_and_a_publisher_and_has_defaults_for_the_rest() {
        let derive = entry("kind = \"bar-1m\"\npublisher = 60001").unwrap();
        assert_eq!((derive.table.as_str(), derive.interval, derive.late), ("bars_1m", 60_000_000_000, 5_000_000_000));
        assert!(derive.has(&"BINANCE:BTCUSDT".parse().unwrap()));
        let some =
            entry("kind = \"bar-1d\"\npublisher = 1\nsymbols = [\"X:*\", \"Y:A\"]\nlate = \"0s\"\nname = \"days\"").unwrap();
        let has = |name: &str| some.has(&name.parse().unwrap());
        assert_eq!((has("X:B"), has("Y:A"), has("Y:B"), some.late, some.table.as_str()), (true, true, false, 0, "days"));
        assert_ne!(derive.rule, some.rule);
        for text in ["kind = \"bar-1m\"", "publisher = 1", "kind = \"bar-1m\"\npublisher = 1\nevery = 5"] {
            assert!(toml::from_str::<Entry>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_entry_is_refused_with_what_is_allowed() {
        for (text, named) in [
            ("kind = \"bar-5m\"\npublisher = 1", "bar-1s, bar-1m, bar-1h, bar-1d"),
            ("kind = \"bar-1m\"\npublisher = 1\nfrom = \"quote\"", "trade"),
            ("kind = \"bar-1m\"\npublisher = 0", "publisher = 0"),
            ("kind = \"bar-1m\"\npublisher = 1\nsymbols = []", "symbols"),
            ("kind = \"bar-1m\"\npublisher = 1\nsymbols = [\"[\"]", "pattern"),
            ("kind = \"bar-1m\"\npublisher = 1\nlate = \"soon\"", "late = \"soon\""),
            ("kind = \"bar-1m\"\npublisher = 1\nname = \"Bars\"", "lower-case"),
            ("kind = \"bar-1m\"\npublisher = 1\nname = \"bar_1m\"", "already"),
            ("kind = \"bar-1m\"\npublisher = 1\nname = \"files\"", "already"),
        ] {
            let refused = entry(text).unwrap_err();
            assert!(refused.code == USAGE && refused.message.contains(named), "{text}: {refused}");
        }
    }

    #[test]
    fn entries_do_not_share_a_publisher_or_a_name() {
        let of = |kind: &str, publisher: u16, name: &str| {
            toml::from_str::<Entry>(&format!("kind = \"{kind}\"\npublisher = {publisher}\nname = \"{name}\"")).unwrap()
        };
        assert!(check(&[of("bar-1s", 1, ""), of("bar-1m", 2, "")]).is_ok());
        assert!(check(&[of("bar-1s", 1, ""), of("bar-1m", 1, "")]).unwrap_err().message.contains("publisher 1"));
        assert!(check(&[of("bar-1m", 1, ""), of("bar-1m", 2, "")]).unwrap_err().message.contains("bars_1m"));
    }
}
