//! Owns: what files an export writes, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Parquet with zstd.
    Parquet,
    /// An Arrow IPC file.
    Arrow,
    /// CSV with a header.
    Csv,
    /// CSV, compressed with gzip.
    CsvGz,
    /// Databento's DBN, version 3.
    Dbn,
    /// DBN, compressed with zstd.
    DbnZst,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 6] = [Format::Parquet, Format::Arrow, Format::Csv, Format::CsvGz, Format::Dbn, Format::DbnZst];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
            Format::Csv => "csv",
            Format::CsvGz => "csv-gz",
            Format::Dbn => "dbn",
            Format::DbnZst => "dbn-zst",
        }
    }

    /// How the names of its files end.
    pub fn extension(self) -> &'static str {
        match self {
            Format::CsvGz => "csv.gz",
            Format::DbnZst => "dbn.zst",
            other => other.name(),
        }
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Format::Parquet => "Parquet with zstd",
            Format::Arrow => "Arrow IPC file",
            Format::Csv => "CSV with a header",
            Format::CsvGz => "CSV, compressed with gzip",
            Format::Dbn => "Databento's DBN, version 3",
            Format::DbnZst => "DBN, compressed with zstd",
        }
    }

    /// The format that the name of the file `path` ends with.
    pub fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?;
        Format::ALL.into_iter().find(|f| name.strip_suffix(f.extension()).is_some_and(|n| n.ends_with('.')))
    }

    /// Whether its files are streams of all instruments.
    pub fn is_dbn(self) -> bool {
        matches!(self, Format::Dbn | Format::DbnZst)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Format> {
        let format = Format::ALL.into_iter().find(|f| f.name() == text);
        let names = || Format::ALL.map(Format::name).join(", ");
        format.ok_or_else(|| Error::Usage(format!("format '{text}' is none of: {}", names())))
    }
}

/// Where files are written, and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A file, or a directory for a file of each kind.
    pub path: PathBuf,
    /// Whether it is a directory; one that is not there yet is made.
    pub is_dir: bool,
    /// What the files are.
    pub format: Format,
}

impl Target {
    /// The file or directory `path`. A path that is a directory, or does not end as a format's files do, is a directory;
    /// its files are Parquet unless `format` is given.
    ///
    /// # Errors
    /// [`Error::Usage`] if the name of a file and `format` disagree, or if the name ends as no format's do.
    pub fn new(path: &Path, format: Option<Format>) -> Result<Target> {
        let is_dir = path.is_dir() || Format::of(path).is_none();
        let has_slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if is_dir && !path.is_dir() && !has_slash && path.extension().is_some() && format.is_none() {
            let ends = Format::ALL.map(Format::extension).join(", *.");
            return Err(Error::Usage(format!("{} is not called *.{ends}; a directory ends in /", path.display())));
        }
        match (Format::of(path).filter(|_| !is_dir), format) {
            (Some(ends), Some(format)) if ends != format => {
                let (path, ending) = (path.display(), ends.extension());
                Err(Error::Usage(format!("{path} ends in .{ending}, but --format is {format}; change one of them")))
            }
            (a, b) => Ok(Target { path: path.to_path_buf(), is_dir, format: a.or(b).unwrap_or(Format::Parquet) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_the_format_and_one_that_disagrees_is_refused() {
        let target = |path: &str, format| Target::new(path.as_ref(), format);
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
            let file = target(&format!("a.{}", format.extension()), None).unwrap();
            assert_eq!((file.is_dir, file.format), (false, format));
            assert_eq!(target("out/", Some(format)).unwrap().format, format);
        }
        assert!("xlsx".parse::<Format>().is_err());
        assert!(target("no-such-directory", None).unwrap().is_dir);
        assert!(matches!(target("a.csv", Some(Format::Dbn)), Err(Error::Usage(_))));
        assert!(matches!(target("a.xlsx", None), Err(Error::Usage(_))));
        assert!(target("a.d", Some(Format::Csv)).unwrap().is_dir);
    }
}
