//! Owns: inputs, where records to be published come from: DBN files, Parquet, Arrow, captures, CSV, the
//! simulated market.
//!
//! An input gives messages: records that came together, with the time at which they did. Their
//! instruments are numbered by the input from 0, in the order of [`Input::names`]; the publisher puts
//! the store's ids in.
//!
//! What must hold: what cannot be read ends the input with its file and line, and what came before it
//! has been given.

mod binance;
mod csv;
mod dbn;
mod sim;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tapestore::lsn::InstrumentId;
use tapestore::record::{ADDED_COLUMNS, Name, Record, SCHEMAS, Schema, schemas_named, user_kinds};
use tapestore::time::Ts;

use crate::exit::{DATA, Failure, NO_INPUT, Outcome};

pub use self::binance::Binance;
pub use self::csv::Csv;
pub use self::dbn::Dbn;
pub use self::sim::{Market, Sim};
pub use self::tables::Table;

/// Records that came together.
#[derive(Debug, Default)]
pub struct Message {
    /// When they came; null if they have no time of their own.
    pub at: Ts,
    /// The records, one after the other.
    pub words: Vec<u64>,
    /// How many.
    pub records: u32,
}

impl Message {
    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.words.clear();
        self.records = 0;
    }

    /// Adds a record.
    pub fn push<R: Record>(&mut self, record: &R) {
        self.words.extend_from_slice(record.words());
        self.records += 1;
    }
}

/// Where records come from.
pub trait Input {
    /// The next message, into `message`; `false` at the end.
    ///
    /// # Errors
    /// Where and why the input cannot be read on.
    fn next(&mut self, message: &mut Message) -> Outcome<bool>;

    /// The instruments met so far.
    fn names(&self) -> &[Name];

    /// How much has been read, of how much: bytes or records; 0 if unknown.
    fn progress(&self) -> (u64, u64);

    /// Whether progress is in bytes.
    fn is_bytes(&self) -> bool;

    /// What was met that no record here can hold, and how often: it is left in the source.
    fn left(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// How files are read that do not say everything themselves.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Kind of the rows of a file that does not say it
    #[arg(long)]
    pub kind: Option<String>,
    /// Number of the venue feed, for inputs that do not carry one
    #[arg(long)]
    pub source: Option<u16>,
    /// The file's column THEIRS is our column OURS; with no OURS it is left out; may be given again
    #[arg(long = "column", value_name = "THEIRS=OURS", value_parser = rename)]
    pub columns: Vec<(String, String)>,
    /// What integers in columns of prices and sizes are, in a file that does not say it with its fields' metadata
    #[arg(long)]
    pub units: Option<Units>,
    /// First part of the names of instruments of DBN fragments [default: the data set of the record's publisher]
    #[arg(long)]
    pub dataset: Option<String>,
}

/// What integers in columns of prices and sizes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Units {
    /// Whole units
    Whole,
    /// Billionths, as tape export writes them
    Nano,
}

fn rename(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("'{text}' is not THEIRS=OURS"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

impl Options {
    /// Our name of the file's column `theirs`; empty if it is left out.
    fn renamed(&self, theirs: &str) -> String {
        self.columns.iter().find(|(from, _)| from == theirs).map_or(theirs, |(_, to)| to).to_owned()
    }
}

/// The kind called `name`, or `name` and its number as in `signal-8001`: of several layouts of one name the one that
/// has exactly the columns `columns`.
fn kind_with(name: &str, columns: &[String]) -> Result<&'static Schema, String> {
    let mut named = schemas_named(name);
    if named.len() > 1 {
        let is_own = |c: &&String| !c.is_empty() && !ADDED_COLUMNS.contains(&c.as_str());
        let theirs: BTreeSet<&str> = columns.iter().filter(is_own).map(String::as_str).collect();
        named.retain(|s| s.columns.iter().filter(|c| !c.is_reserved()).map(|c| c.name).collect::<BTreeSet<_>>() == theirs);
        if named.len() != 1 {
            return Err(format!(
                "kind '{name}' has several layouts (tape kinds): name one with its number, as --kind {name}-8001"
            ));
        }
    }
    let known = || SCHEMAS.iter().chain(user_kinds()).map(|s| s.name).collect::<Vec<_>>().join(", ");
    named.first().copied().ok_or_else(|| format!("kind '{name}' is none of: {}", known()))
}

/// The number by which an input calls the instrument of records that have none.
pub const NO_INSTRUMENT: u32 = InstrumentId::NULL.0;
/// How text names it.
pub const NO_NAME: &str = "-";

/// The instruments of an input, numbered from 0 in the order in which they are met.
#[derive(Default)]
struct Names {
    names: Vec<Name>,
    numbers: HashMap<Name, u32>,
    /// The text that was asked for last: rows of an instrument come one after the other.
    last: (String, u32),
}

impl Names {
    fn number(&mut self, text: &str) -> Result<u32, String> {
        if !self.names.is_empty() && self.last.0 == text {
            return Ok(self.last.1);
        }
        let name: Name = text.parse().map_err(|e: tapestore::error::Error| e.to_string())?;
        let number = *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() as u32 - 1
        });
        self.last = (text.to_owned(), number);
        Ok(number)
    }

    fn all(&self) -> &[Name] {
        &self.names
    }
}

/// A text file, compressed with gzip or not, read line by line.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    line: Vec<u8>,
    number: u64,
    read: std::rc::Rc<std::cell::Cell<u64>>,
    len: u64,
}

struct Counted<R> {
    inner: R,
    read: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

/// A text file, compressed with gzip or not.
struct Text {
    /// Its text.
    reader: Box<dyn Read>,
    /// Bytes of the file read.
    read: std::rc::Rc<std::cell::Cell<u64>>,
    /// Bytes of the file.
    len: u64,
}

fn open_text(path: &Path) -> Outcome<Text> {
    let fail = |e: std::io::Error| Failure::new(NO_INPUT, format!("cannot read {}: {e}", path.display()));
    let mut file = File::open(path).map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(2).read_to_end(&mut magic).map_err(fail)?;
    let read = std::rc::Rc::new(std::cell::Cell::new(magic.len() as u64));
    let rest = Counted { inner: file, read: read.clone() };
    let is_gzip = magic == [0x1f, 0x8b];
    let whole = std::io::Cursor::new(magic).chain(rest);
    let reader: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, whole))) } else { Box::new(whole) };
    Ok(Text { reader, read, len })
}

/// Longest line: a depth snapshot of ten thousand levels is some 300 kB.
const LINE_MAX: u64 = 16 << 20;

impl Lines {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(path: &Path) -> Outcome<Lines> {
        let Text { reader, read, len } = open_text(path)?;
        let reader = BufReader::with_capacity(1 << 20, reader);
        Ok(Lines { path: path.to_path_buf(), reader, line: Vec::new(), number: 0, read, len })
    }

    /// The next line, without its end; `None` at the end of the file.
    ///
    /// # Errors
    /// File, line and reason.
    pub fn read(&mut self) -> Outcome<Option<&[u8]>> {
        self.line.clear();
        self.number += 1;
        let read = Read::by_ref(&mut self.reader).take(LINE_MAX).read_until(b'\n', &mut self.line);
        match read {
            Err(e) => Err(self.fail(&e.to_string())),
            Ok(0) => Ok(None),
            Ok(n) if n as u64 == LINE_MAX => Err(self.fail("the line is longer than 16 MiB")),
            Ok(_) => {
                while matches!(self.line.last(), Some(b'\n' | b'\r')) {
                    self.line.pop();
                }
                Ok(Some(&self.line))
            }
        }
    }

    /// A failure at the line that was read last.
    pub fn fail(&self, reason: &str) -> Failure {
        Failure::new(DATA, format!("{} line {}: {reason}", self.path.display(), self.number))
    }

    /// Bytes of the file read, of how many.
    pub fn progress(&self) -> (u64, u64) {
        (self.read.get(), self.len)
    }
}

/// Makes messages of lines.
pub trait LineParser {
    /// Puts the records of `line` into the empty `message`.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn parse(&mut self, line: &[u8], message: &mut Message) -> Result<(), String>;

    /// The instruments met so far.
    fn names(&self) -> &[Name];
}

/// A text file whose lines are messages.
pub struct LineInput<P> {
    lines: Lines,
    parser: P,
}

impl<P: LineParser> Input for LineInput<P> {
    fn next(&mut self, message: &mut Message) -> Outcome<bool> {
        loop {
            message.clear();
            let parsed = match self.lines.read()? {
                None => return Ok(false),
                Some([]) => continue,
                Some(line) => self.parser.parse(line, message),
            };
            return match parsed {
                Ok(()) => Ok(true),
                Err(reason) => {
                    message.clear();
                    Err(self.lines.fail(&reason))
                }
            };
        }
    }

    fn names(&self) -> &[Name] {
        self.parser.names()
    }

    fn progress(&self) -> (u64, u64) {
        self.lines.progress()
    }

    fn is_bytes(&self) -> bool {
        true
    }
}

/// Opens the file `path`: DBN, Parquet and Arrow by their first bytes, a Binance capture if its lines begin with a
/// time and JSON, CSV otherwise.
///
/// # Errors
/// That it cannot be read, or is none of these.
pub fn open(path: &Path, options: &Options) -> Outcome<Box<dyn Input>> {
    let fail = |e: std::io::Error| Failure::new(NO_INPUT, format!("cannot read {}: {e}", path.display()));
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        // It is looked at more than once, and a wait for more could not be ended.
        return Err(Failure::new(NO_INPUT, format!("{} is no file; write what comes from it into one first", path.display())));
    }
    let mut start = Vec::new();
    File::open(path).map_err(fail)?.take(16).read_to_end(&mut start).map_err(fail)?;
    if dbn::is_dbn(&start) || dbn::is_fragment(path) {
        return Ok(Box::new(Dbn::open(path, options)?));
    }
    if tables::is_table(&start) {
        return Ok(Box::new(Table::open(path, options)?));
    }
    let mut peek = Lines::open(path)?;
    let first = peek.read()?.map(<[u8]>::to_vec).unwrap_or_default();
    if first.first().is_some_and(u8::is_ascii_digit) && first.contains(&b'{') {
        return Ok(Box::new(Binance::open(path, options.source)?));
    }
    Ok(Box::new(Csv::open(path, options)?))
}
