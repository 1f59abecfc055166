//! Owns: Parquet and Arrow IPC files as input, a batch in memory at a time; the columns are those of
//! [`crate::columnar`].

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arrow_array::{Array, RecordBatch, StringArray};
use arrow_ipc::reader::FileReaderBuilder;
use arrow_schema::{ArrowError, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tapestore::record::{ADDED_COLUMNS, Name, Schema};
use tapestore::time::Ts;

use super::{Input, Message, Names, Options, kind_with};
use crate::columnar::{BATCH_ROWS, KIND, Scatter};
use crate::exit::{DATA, Failure, NO_INPUT, Outcome};

const PARQUET: &[u8] = b"PAR1";
const ARROW: &[u8] = b"ARROW1";
/// How a stream, which has no head and no end that tells damage, begins.
const STREAM: &[u8] = &[0xff; 4];
/// Bytes of the length of an Arrow file's footer, and of the magic behind it.
const ARROW_TAIL: u64 = 10;

/// Whether a file that begins with `start` is one for this input.
pub(super) fn is_table(start: &[u8]) -> bool {
    [PARQUET, ARROW, STREAM].iter().any(|magic| start.starts_with(magic))
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// A Parquet or an Arrow file.
pub struct Table {
    path: PathBuf,
    kind: &'static Schema,
    source: Option<u16>,
    scatter: Scatter,
    batches: Batches,
    /// The records of a batch, and which is next.
    words: Vec<u64>,
    instruments: StringArray,
    next: usize,
    names: Names,
    read: u64,
    /// Rows, or bytes if `at` counts them.
    len: u64,
    at: Option<Rc<Cell<u64>>>,
}

/// A file that says how far it has been read.
struct Progress {
    file: BufReader<File>,
    at: Rc<Cell<u64>>,
}

impl Read for Progress {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buf)?;
        self.at.set(self.at.get() + n as u64);
        Ok(n)
    }
}

impl Seek for Progress {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = self.file.seek(to)?;
        self.at.set(at);
        Ok(at)
    }
}

/// Runs `work`, code of a library that may panic at bytes that contradict each other; it is not asked again after
/// it has.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    outcome.map_err(|_| "the file is damaged: its parts contradict each other".to_owned())
}

impl Table {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// That it cannot be read, or its columns are not those of a kind.
    pub fn open(path: &Path, options: &Options) -> Outcome<Table> {
        let fail = |e: String| Failure::new(DATA, format!("cannot read {}: {e}", path.display()));
        guarded(|| Table::open_trusting(path, options)).map_err(fail)?
    }

    fn open_trusting(path: &Path, options: &Options) -> Outcome<Table> {
        let fail = |e: &dyn std::fmt::Display| Failure::new(DATA, format!("cannot read {}: {e}", path.display()));
        let lost = |e: std::io::Error| Failure::new(NO_INPUT, format!("cannot read {}: {e}", path.display()));
        let mut file = File::open(path).map_err(lost)?;
        let bytes = file.metadata().map_err(lost)?.len();
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(8).read_to_end(&mut start).map_err(lost)?;
        file.rewind().map_err(lost)?;
        let at = Rc::new(Cell::new(0));
        let (schema, batches, len, at): (SchemaRef, Batches, u64, _) = if start.starts_with(PARQUET) {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| fail(&e))?;
            let schema = builder.schema().clone();
            let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
            let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| fail(&e))?;
            (schema, Box::new(reader), rows, None)
        } else if start.starts_with(ARROW) {
            check_blocks(&mut file, bytes).map_err(|e| fail(&e))?;
            file.rewind().map_err(lost)?;
            let file = Progress { file: BufReader::new(file), at: at.clone() };
            let reader = FileReaderBuilder::new().build(file).map_err(|e| fail(&e))?;
            (reader.schema(), Box::new(reader), bytes, Some(at))
        } else {
            return Err(fail(&"it is an Arrow stream; only Arrow IPC files are read"));
        };
        let kind = kind_of(&schema, options).map_err(|e| fail(&e))?;
        let names: Vec<String> = schema.fields().iter().map(|f| options.renamed(f.name())).collect();
        let scatter = Scatter::new(kind, &names).map_err(|e| fail(&e))?;
        Ok(Table {
            path: path.to_path_buf(),
            kind,
            source: options.source,
            scatter,
            batches,
            words: Vec::new(),
            instruments: StringArray::new_null(0),
            next: 0,
            names: Names::default(),
            read: 0,
            len,
            at,
        })
    }

    fn fail(&self, reason: &str) -> Failure {
        Failure::new(DATA, format!("{} row {}: {reason}", self.path.display(), self.read + 1))
    }
}

/// Whether the blocks that the footer of an Arrow file of `len` bytes names lie in it: the reader allocates what they
/// say.
fn check_blocks(file: &mut File, len: u64) -> Result<(), String> {
    let damaged = |what: &str| format!("the file is cut or damaged: {what}");
    let read = |file: &mut File, from: u64, n: u64| -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(from)).map_err(|e| e.to_string())?;
        Read::by_ref(file).take(n).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    let end = len.checked_sub(ARROW_TAIL).ok_or_else(|| damaged("it has no end"))?;
    let tail = read(file, end, ARROW_TAIL)?;
    let (footer, magic) = tail.split_first_chunk::<4>().ok_or_else(|| damaged("it has no end"))?;
    let footer_len = u64::from(u32::from_le_bytes(*footer));
    if magic != ARROW || footer_len > end {
        return Err(damaged("it has no footer"));
    }
    let bytes = read(file, end - footer_len, footer_len)?;
    let footer = arrow_ipc::root_as_footer(&bytes).map_err(|e| damaged(&e.to_string()))?;
    let blocks = footer.recordBatches().into_iter().chain(footer.dictionaries()).flatten();
    let lies_in = |b: &arrow_ipc::Block| {
        let parts = [u64::try_from(b.offset()), u64::try_from(b.metaDataLength()), u64::try_from(b.bodyLength())];
        let sum = parts.into_iter().try_fold(0u64, |sum, part| sum.checked_add(part.ok()?));
        sum.is_some_and(|sum| sum <= len)
    };
    let mut blocks = blocks.copied();
    if blocks.all(|b| lies_in(&b)) { Ok(()) } else { Err(damaged("a block lies outside of it")) }
}

fn kind_of(schema: &SchemaRef, options: &Options) -> Result<&'static Schema, String> {
    let metadata: &HashMap<String, String> = schema.metadata();
    let known = options.kind.as_ref().or_else(|| metadata.get(KIND));
    let columns = schema.fields().iter().filter(|f| !ADDED_COLUMNS.contains(&f.name().as_str())).map(|f| f.name().as_str());
    let name = known.ok_or_else(|| {
        format!(
            "the file does not say of which kind its rows are; name it with --kind (columns: {})",
            columns.collect::<Vec<_>>().join(", ")
        )
    })?;
    let columns: Vec<String> = schema.fields().iter().map(|f| options.renamed(f.name())).collect();
    kind_with(name, &columns)
}

impl Input for Table {
    fn next(&mut self, message: &mut Message) -> Outcome<bool> {
        message.clear();
        while self.next >= self.instruments.len() {
            let next = guarded(|| self.batches.next()).map_err(|e| self.fail(&e))?;
            let batch = match next {
                None => return Ok(false),
                Some(batch) => batch.map_err(|e| self.fail(&format!("the file is damaged: {e}")))?,
            };
            let records = guarded(|| self.scatter.records(&batch, &mut self.words)).and_then(|r| r);
            self.instruments = records.map_err(|e| self.fail(&format!("of {} rows: {e}", batch.num_rows())))?;
            self.next = 0;
        }
        let name = if self.instruments.is_null(self.next) { "" } else { self.instruments.value(self.next) };
        let number = match self.names.number(name) {
            Ok(number) => number,
            Err(e) => return Err(self.fail(&e)),
        };
        let record = self.words.get(self.next * self.kind.words..(self.next + 1) * self.kind.words).unwrap_or(&[]);
        message.words.extend_from_slice(record);
        if let Some(head) = message.words.first_mut() {
            let source = self.source.map_or(*head >> 16 & 0xffff, u64::from);
            *head = *head & 0xffff | source << 16 | u64::from(number) << 32;
        }
        message.records = 1;
        message.at = Ts(message.words.get(self.kind.index_word).copied().unwrap_or(0));
        self.next += 1;
        self.read += 1;
        Ok(true)
    }

    fn names(&self) -> &[Name] {
        self.names.all()
    }

    fn progress(&self) -> (u64, u64) {
        (self.at.as_ref().map_or(self.read, |at| at.get()), self.len)
    }

    fn is_bytes(&self) -> bool {
        self.at.is_some()
    }
}
