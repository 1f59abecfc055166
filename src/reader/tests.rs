//! Reading without an engine: what a reader says when there is nothing to read. Reading against a model,
//! over files and MemTables, is tested with the engine that makes them.

use super::*;

#[test]
fn a_store_that_was_never_served_is_named_with_the_command_that_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = Reader::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("tape-storage --store"), "{error}");
}

#[test]
fn watermarks_are_known_by_their_names_and_no_others() {
    for at in [At::Appended, At::Durable, At::Committed] {
        assert_eq!(at.to_string().parse::<At>().unwrap(), at);
    }
    assert!("newest".parse::<At>().is_err());
}
