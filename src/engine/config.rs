//! Owns: configuration files.
//!
//! What must hold: every process runs without one; a file with an unknown key is refused.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Options;
use crate::compaction::retention::Rules;
use tapestore::error::{Error, Result};

/// Reads the storage process's options from the TOML file `path`; absent keys have their defaults.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Invalid`] with the line and the reason.
pub fn storage(path: &Path) -> Result<Options> {
    let options: Options = read(path)?;
    // Checks the names in it before anything starts with them.
    Rules::new(&options.retention).map_err(|e| invalid(path, e))?;
    Ok(options)
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::invalid("configuration", format!("{}: {reason}", path.display()))
}

/// Reads options from the TOML file `path`.
///
/// # Errors
/// As [`storage`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    parse(&text).map_err(|reason| invalid(path, reason))
}

/// Parses options. For an unknown key the reason has the most similar one.
fn parse<T: DeserializeOwned>(text: &str) -> std::result::Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let reason = error.to_string();
        match nearest(&reason) {
            Some(key) => format!("{}; did you mean {key}?", reason.trim_end()),
            None => reason,
        }
    })
}

/// How similar a key must be that is proposed: 1 is equal.
const SIMILAR: f64 = 0.6;

/// The key that is most similar to the unknown one in `reason`, which has it and all others in backquotes.
fn nearest(reason: &str) -> Option<&str> {
    let (_, names) = reason.split_once("unknown field `")?;
    let mut names = names.split('`').step_by(2);
    let wrong = names.next()?;
    let similar = |name: &str| strsim::normalized_damerau_levenshtein(wrong, name);
    let best = names.max_by(|one, other| similar(one).total_cmp(&similar(other)))?;
    (similar(best) >= SIMILAR).then_some(best)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_file_in_the_repository_is_complete_and_equal_to_the_defaults() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/storage.toml")).unwrap();
        assert_eq!(parse::<Options>(&text).unwrap(), Options::default());
        let defaults: toml::Table = toml::from_str(&toml::to_string(&Options::default()).unwrap()).unwrap();
        let mut keys = vec!["ingest-core".to_owned(), "sync-core".to_owned()];
        for (key, value) in &defaults {
            match value {
                toml::Value::Table(table) => {
                    assert!(text.contains(&format!("[{key}]")), "[{key}] is not in config/storage.toml");
                    keys.extend(table.keys().cloned());
                }
                _ => keys.push(key.clone()),
            }
        }
        for key in keys {
            assert!(text.contains(&format!("{key} =")), "{key} is not in config/storage.toml");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let refused = |text: &str| parse::<Options>(text).unwrap_err();
        assert!(refused("memtable-sise = 3").contains("memtable-sise"));
        assert_eq!(parse::<Options>("").unwrap(), Options::default());
        for (text, key) in [
            ("memtable-sise = 3", "memtable-size"),
            ("memtable_size = 3", "memtable-size"),
            ("[compaction]\nbytes-per-secnd = 1", "bytes-per-second"),
            ("[cluster]\nretain_bytes = 1", "retain-bytes"),
            ("retension = []", "retention"),
        ] {
            assert!(refused(text).ends_with(&format!("did you mean {key}?")), "{text}: {}", refused(text));
        }
        assert!(!refused("colour = 3").contains("did you mean"), "nothing is similar");
        assert!(!refused("memtable-size = true").contains("did you mean"), "the key is right");
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in "[a-z\\-]{0,12} ?= ?[0-9a-z\"]{0,9}") {
            drop(parse::<Options>(&text));
        }
    }
}
