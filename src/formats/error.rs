//! Owns: the package's one error type: which file, where in it, which column, why.
//!
//! What must hold: a message alone is enough for a person to act; what it is made of is there for a program too. An error
//! of another library is kept as its text, an error of the system as itself.

use std::fmt;
use std::path::{Path, PathBuf};

use tapestore::lsn::InstrumentId;

/// The result of every fallible call of this package.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Where in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line of text, from 1.
    Line(u64),
    /// A row of a table, from 1.
    Row(u64),
    /// Rows of a table that are read together, the last included.
    Rows(u64, u64),
    /// A record of a DBN file, from 1.
    Record(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File => f.write_str("file"),
            Place::Line(n) => write!(f, "line {n}"),
            Place::Row(n) => write!(f, "row {n}"),
            Place::Rows(first, last) => write!(f, "rows {first} to {last}"),
            Place::Record(n) => write!(f, "record {n}"),
        }
    }
}

/// Why something in a file is not taken. `Display` gives the column and the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The column, if it is one column's.
    pub column: Option<String>,
    /// What is wrong; where `expected` and `found` are there, it names them.
    pub reason: String,
    /// What should be there.
    pub expected: Option<String>,
    /// What is there.
    pub found: Option<String>,
}

impl Fault {
    /// A fault for this reason.
    pub fn new(reason: impl Into<String>) -> Fault {
        Fault { reason: reason.into(), ..Fault::default() }
    }

    /// The same, of the column `name`.
    #[must_use]
    pub fn column(self, name: &str) -> Fault {
        Fault { column: Some(name.to_owned()), ..self }
    }

    /// The same, with what should be there and what is.
    #[must_use]
    pub fn values(self, expected: impl ToString, found: impl ToString) -> Fault {
        Fault { expected: Some(expected.to_string()), found: Some(found.to_string()), ..self }
    }

    /// The error that it is at `place` of the file `path`.
    pub fn at(self, path: &Path, place: Place) -> Error {
        Error::Malformed { path: path.to_path_buf(), place, fault: Box::new(self) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(column) = &self.column {
            write!(f, "column '{column}': ")?;
        }
        f.write_str(&self.reason)
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Fault {
        Fault::new(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Fault {
        Fault::new(reason)
    }
}

impl From<tapestore::error::Error> for Fault {
    fn from(error: tapestore::error::Error) -> Fault {
        Fault::new(error.to_string())
    }
}

/// What was going on when the caller ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A file was read for its checksum, before anything of it is taken.
    Check,
    /// Files were written.
    Export,
}

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened, or its beginning cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file is read more than once, and this is none: a directory, a pipe, a device.
    #[error("{path} is no file; write what comes from it into one first", path = path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// What a file holds is not what its format demands, or no record can hold it.
    #[error("{}", malformed(path, *place, fault))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong there.
        fault: Box<Fault>,
    },
    /// A file or a directory cannot be created.
    #[error("cannot create {path}: {source}", path = path.display())]
    Create {
        /// The file or directory.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file cannot be written to its end; nothing of it is left.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's own words, or the format library's.
        source: std::io::Error,
    },
    /// A file is there already, and an export was not asked to replace it.
    #[error("{path} is there already; --force replaces it", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Something that is no file is where a file was to be written.
    #[error("{path} exists and is not a file; give another path", path = path.display())]
    Occupied {
        /// What is there.
        path: PathBuf,
    },
    /// There is nothing to export.
    #[error("the store has no record of these kinds and instruments; to list both, run: tape kinds, tape symbols")]
    Nothing,
    /// A store has records of an instrument that its table of instruments does not name.
    #[error("the catalog has no instrument {instrument}, but records of it exist; to check the store, run: tape verify")]
    NoName {
        /// Its number.
        instrument: InstrumentId,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Usage(String),
    /// The caller ended the work.
    #[error("{}", interrupted(path, *work))]
    Interrupted {
        /// The file that was read, or where files were written.
        path: PathBuf,
        /// What was going on.
        work: Work,
    },
    /// The store gave an error.
    #[error(transparent)]
    Store(#[from] tapestore::error::Error),
}

fn malformed(path: &Path, place: Place, fault: &Fault) -> String {
    match place {
        Place::File => format!("cannot read {}: {fault}", path.display()),
        place => format!("{} {place}: {fault}", path.display()),
    }
}

fn interrupted(path: &Path, work: Work) -> String {
    let path = path.display();
    match work {
        Work::Check => format!("interrupted while {path} was checked: nothing of it is taken"),
        Work::Export => format!(
            "interrupted while {path} was written: nothing is left of the file that was being written; files named above are whole"
        ),
    }
}

impl Error {
    /// That the file `path` cannot be read.
    pub(crate) fn read(path: &Path) -> impl Fn(std::io::Error) -> Error {
        move |source| Error::Read { path: path.to_path_buf(), source }
    }

    /// That the file `path` cannot be written.
    pub(crate) fn write(path: &Path) -> impl Fn(std::io::Error) -> Error {
        move |source| Error::Write { path: path.to_path_buf(), source }
    }
}
