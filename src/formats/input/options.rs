//! Owns: how files are read that do not say everything themselves.

use std::collections::BTreeSet;

use tapestore::record::{ADDED_COLUMNS, SCHEMAS, Schema, schemas_named, user_kinds};

use crate::error::Fault;
use crate::scatter::Units;

/// How files are read that do not say everything themselves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Kind of the rows of a file that does not say it.
    pub kind: Option<String>,
    /// Number of the venue feed, for inputs that do not carry one.
    pub source: Option<u16>,
    /// The file's column of the first name is ours of the second; one with an empty second name is left out.
    pub columns: Vec<(String, String)>,
    /// What integers in columns of prices and sizes are, in a file that does not say it with its fields' metadata.
    pub units: Option<Units>,
    /// First part of the names of instruments of DBN fragments; otherwise it is the data set of the record's publisher.
    pub dataset: Option<String>,
}

impl Options {
    /// Our name of the file's column `theirs`; empty if it is left out.
    pub(super) fn renamed(&self, theirs: &str) -> String {
        self.columns.iter().find(|(from, _)| from == theirs).map_or(theirs, |(_, to)| to).to_owned()
    }
}

/// The kind called `name`, or `name` and its number as in `signal-8001`: of several layouts of one name the one that
/// has exactly the columns `columns`.
pub(super) fn kind_with(name: &str, columns: &[String]) -> Result<&'static Schema, Fault> {
    let mut named = schemas_named(name);
    if named.len() > 1 {
        let is_own = |c: &&String| !c.is_empty() && !ADDED_COLUMNS.contains(&c.as_str());
        let theirs: BTreeSet<&str> = columns.iter().filter(is_own).map(String::as_str).collect();
        named.retain(|s| s.columns.iter().filter(|c| !c.is_reserved()).map(|c| c.name).collect::<BTreeSet<_>>() == theirs);
        if named.len() != 1 {
            let reason =
                format!("kind '{name}' has several layouts (tape kinds): name one with its number, as --kind {name}-8001");
            return Err(Fault::new(reason));
        }
    }
    let kinds = || SCHEMAS.iter().chain(user_kinds()).map(|s| s.name).collect::<Vec<_>>().join(", ");
    named.first().copied().ok_or_else(|| Fault::new(format!("kind '{name}' is none of: {}", kinds())).values(kinds(), name))
}
