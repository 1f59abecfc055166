//! Owns: text files, compressed with gzip or not, and inputs whose lines are messages.
//!
//! What must hold: a line without an end is refused; it is not kept in memory.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use tapestore::record::Name;

use super::message::{Input, Message};
use crate::error::{Error, Fault, Place, Result};
use crate::progress::Progress;

/// Counts the bytes that are read.
pub(super) struct Counted<R> {
    /// Where they come from.
    pub(super) inner: R,
    /// How many so far.
    pub(super) read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

/// A text file, compressed with gzip or not.
pub(super) struct Text {
    /// Its text.
    pub(super) reader: Box<dyn Read>,
    /// Bytes of the file read.
    pub(super) read: Rc<Cell<u64>>,
    /// Bytes of the file.
    pub(super) len: u64,
}

/// Opens the text file `path`.
pub(super) fn open_text(path: &Path) -> Result<Text> {
    let fail = Error::read(path);
    let mut file = File::open(path).map_err(&fail)?;
    let len = file.metadata().map_err(&fail)?.len();
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(2).read_to_end(&mut magic).map_err(&fail)?;
    let read = Rc::new(Cell::new(magic.len() as u64));
    let rest = Counted { inner: file, read: read.clone() };
    let is_gzip = magic == [0x1f, 0x8b];
    let whole = std::io::Cursor::new(magic).chain(rest);
    let reader: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, whole))) } else { Box::new(whole) };
    Ok(Text { reader, read, len })
}

/// A text file, compressed with gzip or not, read line by line.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    line: Vec<u8>,
    number: u64,
    read: Rc<Cell<u64>>,
    len: u64,
}

/// Longest line: a depth snapshot of ten thousand levels is some 300 kB.
const LINE_MAX: u64 = 16 << 20;

impl Lines {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(path: &Path) -> Result<Lines> {
        let Text { reader, read, len } = open_text(path)?;
        let reader = BufReader::with_capacity(1 << 20, reader);
        Ok(Lines { path: path.to_path_buf(), reader, line: Vec::new(), number: 0, read, len })
    }

    /// The next line, without its end; `None` at the end of the file.
    ///
    /// # Errors
    /// File, line and reason.
    pub fn read(&mut self) -> Result<Option<&[u8]>> {
        self.line.clear();
        self.number += 1;
        let read = Read::by_ref(&mut self.reader).take(LINE_MAX).read_until(b'\n', &mut self.line);
        match read {
            Err(e) => Err(self.fail(Fault::new(e.to_string()))),
            Ok(0) => Ok(None),
            Ok(n) if n as u64 == LINE_MAX => Err(self.fail(Fault::new("the line is longer than 16 MiB"))),
            Ok(_) => {
                while matches!(self.line.last(), Some(b'\n' | b'\r')) {
                    self.line.pop();
                }
                Ok(Some(&self.line))
            }
        }
    }

    /// The error that `fault` is in the line that was read last.
    pub fn fail(&self, fault: Fault) -> Error {
        fault.at(&self.path, Place::Line(self.number))
    }

    /// How much of the file has been read.
    pub fn progress(&self) -> Progress {
        Progress { done: self.read.get(), total: self.len, is_bytes: true }
    }
}

/// Makes messages of lines.
pub trait LineParser {
    /// Puts the records of `line` into the empty `message`.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn parse(&mut self, line: &[u8], message: &mut Message) -> Result<(), Fault>;

    /// The instruments met so far.
    fn names(&self) -> &[Name];
}

/// A text file whose lines are messages.
pub struct LineInput<P> {
    lines: Lines,
    parser: P,
}

impl<P: LineParser> LineInput<P> {
    /// Opens the file `path`, whose lines `parser` reads.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(path: &Path, parser: P) -> Result<LineInput<P>> {
        Ok(LineInput { lines: Lines::open(path)?, parser })
    }
}

impl<P: LineParser> Input for LineInput<P> {
    fn next(&mut self, message: &mut Message) -> Result<bool> {
        loop {
            message.clear();
            let parsed = match self.lines.read()? {
                None => return Ok(false),
                Some([]) => continue,
                Some(line) => self.parser.parse(line, message),
            };
            return match parsed {
                Ok(()) => Ok(true),
                Err(fault) => {
                    message.clear();
                    Err(self.lines.fail(fault))
                }
            };
        }
    }

    fn names(&self) -> &[Name] {
        self.parser.names()
    }

    fn progress(&self) -> Progress {
        self.lines.progress()
    }
}
