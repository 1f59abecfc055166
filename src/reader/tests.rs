//! Reading without an engine: errors when there is nothing to read. The engine's tests compare reads
//! from files and MemTables with a model.

use super::*;

#[test]
fn the_error_for_a_store_never_served_names_the_command_that_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = Reader::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("tape-storage --store"), "{error}");
}

#[test]
fn watermarks_parse_from_their_names_only() {
    for at in [At::Appended, At::Durable, At::Committed] {
        assert_eq!(at.to_string().parse::<At>().unwrap(), at);
    }
    assert!("newest".parse::<At>().is_err());
}
