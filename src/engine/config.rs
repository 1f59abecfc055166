//! Owns: configuration files.
//!
//! What must hold: every process runs without one; a file with an unknown key is refused.

use std::path::Path;

use crate::Options;
use crate::compaction::retention::Rules;
use tapestore::error::{Error, Result};

/// Reads the storage process's options from the TOML file `path`; absent keys have their defaults.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Invalid`] with the line and the reason.
pub fn storage(path: &Path) -> Result<Options> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let invalid = |reason: String| Error::invalid("configuration", format!("{}: {reason}", path.display()));
    let options = parse(&text).map_err(invalid)?;
    // Checks the names in it before anything starts with them.
    Rules::new(&options.retention).map_err(|e| invalid(e.to_string()))?;
    Ok(options)
}

fn parse(text: &str) -> std::result::Result<Options, String> {
    toml::from_str(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_file_in_the_repository_is_complete_and_equal_to_the_defaults() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/storage.toml")).unwrap();
        assert_eq!(parse(&text).unwrap(), Options::default());
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
        assert!(parse("memtable-sise = 3").unwrap_err().contains("memtable-sise"));
        assert_eq!(parse("").unwrap(), Options::default());
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in "[a-z\\-]{0,12} ?= ?[0-9a-z\"]{0,9}") {
            drop(parse(&text));
        }
    }
}
