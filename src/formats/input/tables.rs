//! Owns: Parquet and Arrow IPC files as input, a batch in memory at a time; the columns are those of
//! [`crate::schema`].

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arrow_array::{Array, RecordBatch, StringArray};
use arrow_ipc::reader::FileReaderBuilder;
use arrow_schema::{ArrowError, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tapestore::record::{Kind, Name, Schema, schema};

use super::message::{Input, Message, NO_INSTRUMENT, NO_NAME};
use super::names::Names;
use super::options::{Options, kind_with};
use crate::checksum::{Checksum, text_hash};
use crate::error::{Error, Fault, Place, Result, Work};
use crate::progress::{OnProgress, Progress};
use crate::scatter::Scatter;
use crate::schema::{BATCH_ROWS, CHECKSUM, INSTRUMENT, KIND, LAYOUT, NUMBER, RECORDS};

const PARQUET: &[u8] = b"PAR1";
const ARROW: &[u8] = b"ARROW1";
/// The beginning of a message, and so of a stream. A stream has no head, and no end that would reveal damage.
const STREAM: &[u8] = &[0xff; 4];
/// Bytes of a buffer of a batch at most, as it says before it is decompressed.
const BUFFER_MAX: i64 = 1 << 30;
/// Bytes of the length of an Arrow file's footer, and of the magic after it.
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
    is_ours: bool,
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

/// A file that counts how far it has been read.
struct Tracked {
    file: BufReader<File>,
    at: Rc<Cell<u64>>,
}

impl Read for Tracked {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buf)?;
        self.at.set(self.at.get() + n as u64);
        Ok(n)
    }
}

impl Seek for Tracked {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = self.file.seek(to)?;
        self.at.set(at);
        Ok(at)
    }
}

/// Runs `work`, code of a library that may panic at bytes that contradict each other; it is not asked again after
/// it has.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Fault> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    outcome.map_err(|_| Fault::new("the file is damaged: its parts contradict each other"))
}

/// A file whose batches are to be read.
struct Opened {
    schema: SchemaRef,
    metadata: HashMap<String, String>,
    batches: Batches,
    /// Rows, or bytes if `at` counts them.
    len: u64,
    at: Option<Rc<Cell<u64>>>,
}

impl Opened {
    /// How far it has been read, `rows` of its rows.
    fn progress(&self, rows: u64) -> Progress {
        progress(self.at.as_ref(), rows, self.len)
    }
}

/// How far a file has been read: bytes if `at` counts them, `rows` otherwise.
fn progress(at: Option<&Rc<Cell<u64>>>, rows: u64, total: u64) -> Progress {
    Progress { done: at.map_or(rows, |at| at.get()), total, is_bytes: at.is_some() }
}

fn open_file(path: &Path) -> Result<Opened> {
    let fail = |e: &dyn std::fmt::Display| Fault::new(e.to_string()).at(path, Place::File);
    let lost = Error::read(path);
    let mut file = File::open(path).map_err(&lost)?;
    let bytes = file.metadata().map_err(&lost)?.len();
    let mut start = Vec::new();
    Read::by_ref(&mut file).take(8).read_to_end(&mut start).map_err(&lost)?;
    file.rewind().map_err(&lost)?;
    if start.starts_with(PARQUET) {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| fail(&e))?;
        let schema = builder.schema().clone();
        let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
        let mut metadata = schema.metadata().clone();
        let pairs = builder.metadata().file_metadata().key_value_metadata().into_iter().flatten();
        metadata.extend(pairs.filter_map(|kv| Some((kv.key.clone(), kv.value.clone()?))));
        let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| fail(&e))?;
        return Ok(Opened { schema, metadata, batches: Box::new(reader), len: rows, at: None });
    }
    if !start.starts_with(ARROW) {
        return Err(fail(&"it is an Arrow stream; only Arrow IPC files are read"));
    }
    check_blocks(&mut file, bytes).map_err(|e| fail(&e))?;
    file.rewind().map_err(&lost)?;
    let at = Rc::new(Cell::new(0));
    let file = Tracked { file: BufReader::new(file), at: at.clone() };
    let reader = FileReaderBuilder::new().build(file).map_err(|e| fail(&e))?;
    let schema = reader.schema();
    let mut metadata = schema.metadata().clone();
    metadata.extend(reader.custom_metadata().iter().map(|(k, v)| (k.clone(), v.clone())));
    Ok(Opened { schema, metadata, batches: Box::new(reader), len: bytes, at: Some(at) })
}

/// Why a file is not taken after it has been read to its end.
enum Refused {
    Fault(Fault),
    /// The caller ended it.
    Interrupted,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Refused {
        Refused::Fault(fault)
    }
}

/// Reads the file `opened` to its end and compares its records with the count and the checksum in its metadata, if they
/// are there: nothing of a damaged file is taken.
fn verify(mut opened: Opened, kind: &'static Schema, on_progress: OnProgress<'_>) -> Result<(), Refused> {
    let of = |key: &str| opened.metadata.get(key);
    let (Some(records), Some(sum)) = (of(RECORDS).cloned(), of(CHECKSUM).cloned()) else { return Ok(()) };
    let names: Vec<String> = opened.schema.fields().iter().map(|f| f.name().clone()).collect();
    let scatter = Scatter::new(kind, &names, true, None)?;
    let (mut found, mut words, mut last) = (Checksum::default(), Vec::new(), (String::new(), text_hash("")));
    while let Some(batch) = opened.batches.next() {
        let instruments = scatter.records(&batch.map_err(|e| Fault::new(e.to_string()))?, &mut words)?;
        for (name, record) in instruments.iter().zip(words.chunks_exact(kind.words)) {
            let name = name.unwrap_or(NO_NAME);
            if last.0 != name {
                last = (name.to_owned(), text_hash(name));
            }
            found.add(last.1, record);
        }
        if on_progress(opened.progress(found.records)).is_break() {
            return Err(Refused::Interrupted);
        }
    }
    if (found.records.to_string(), found.to_string()) != (records.clone(), sum.clone()) {
        let reason = format!("the file is damaged: it says that it has {records} other records; nothing of it is taken");
        let values = |records: &str, sum: &str| format!("{records} records, checksum {sum}");
        let fault = Fault::new(reason).values(values(&records, &sum), values(&found.records.to_string(), &found.to_string()));
        return Err(fault.into());
    }
    Ok(())
}

impl Table {
    /// Opens the file `path`. One that an export wrote is read once for its checksum first.
    ///
    /// # Errors
    /// That it cannot be read, is damaged, or its columns are not those of a kind.
    pub fn open(path: &Path, options: &Options) -> Result<Table> {
        Table::open_watched(path, options, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Table::open`]; `on_progress` is called while the file is read for its checksum.
    ///
    /// # Errors
    /// As [`Table::open`]; [`Error::Interrupted`] if `on_progress` ended it.
    pub fn open_watched(path: &Path, options: &Options, on_progress: OnProgress<'_>) -> Result<Table> {
        let opened = guarded(|| Table::open_trusting(path, options, on_progress));
        opened.map_err(|fault| fault.at(path, Place::File))?
    }

    fn open_trusting(path: &Path, options: &Options, on_progress: OnProgress<'_>) -> Result<Table> {
        let fail = |fault: Fault| fault.at(path, Place::File);
        let opened = open_file(path)?;
        let is_ours = opened.metadata.contains_key(KIND);
        let kind = kind_of(&opened, options).map_err(fail)?;
        let names: Vec<String> = opened.schema.fields().iter().map(|f| options.renamed(f.name())).collect();
        let scatter = Scatter::new(kind, &names, is_ours, options.units).map_err(fail)?;
        verify(opened, kind, on_progress).map_err(|refused| match refused {
            Refused::Fault(fault) => fail(fault),
            Refused::Interrupted => Error::Interrupted { path: path.to_path_buf(), work: Work::Check },
        })?;
        let Opened { batches, len, at, .. } = open_file(path)?;
        Ok(Table {
            path: path.to_path_buf(),
            kind,
            source: options.source,
            is_ours,
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

    /// The error that `fault` is in the next `rows` rows.
    fn fail(&self, fault: Fault, rows: u64) -> Error {
        let first = self.read + 1;
        fault.at(&self.path, if rows > 1 { Place::Rows(first, self.read + rows) } else { Place::Row(first) })
    }

    /// Reads the next batch that has rows; `false` at the end.
    fn next_batch(&mut self) -> Result<bool> {
        while self.next >= self.instruments.len() {
            let next = guarded(|| self.batches.next()).map_err(|e| self.fail(e, 1))?;
            let batch = match next {
                None => return Ok(false),
                Some(batch) => batch.map_err(|e| self.fail(Fault::new(format!("the file is damaged: {e}")), 1))?,
            };
            let records = guarded(|| self.scatter.records(&batch, &mut self.words)).and_then(|r| r);
            self.instruments = records.map_err(|e| self.fail(e, batch.num_rows() as u64))?;
            self.next = 0;
        }
        Ok(true)
    }
}

/// Whether the blocks that the footer of an Arrow file of `len` bytes names lie in it: the reader allocates what they
/// say.
fn check_blocks(file: &mut File, len: u64) -> Result<(), Fault> {
    let damaged = |what: &str| Fault::new(format!("the file is cut or damaged: {what}"));
    let failed = |e: std::io::Error| Fault::new(e.to_string());
    let read = |file: &mut File, from: u64, n: u64| -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        Read::by_ref(file).take(n).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let end = len.checked_sub(ARROW_TAIL).ok_or_else(|| damaged("it has no end"))?;
    let tail = read(file, end, ARROW_TAIL).map_err(failed)?;
    let (footer, magic) = tail.split_first_chunk::<4>().ok_or_else(|| damaged("it has no end"))?;
    let footer_len = u64::from(u32::from_le_bytes(*footer));
    if magic != ARROW || footer_len > end {
        return Err(damaged("it has no footer"));
    }
    let bytes = read(file, end - footer_len, footer_len).map_err(failed)?;
    let footer = arrow_ipc::root_as_footer(&bytes).map_err(|e| damaged(&e.to_string()))?;
    let blocks = footer.recordBatches().into_iter().chain(footer.dictionaries()).flatten();
    let lies_in = |b: &arrow_ipc::Block| {
        let parts = [u64::try_from(b.offset()), u64::try_from(b.metaDataLength()), u64::try_from(b.bodyLength())];
        let sum = parts.into_iter().try_fold(0u64, |sum, part| sum.checked_add(part.ok()?));
        sum.is_some_and(|sum| sum <= len)
    };
    for block in blocks {
        if !lies_in(block) {
            return Err(damaged("a block lies outside of it"));
        }
        let meta = read(file, block.offset() as u64, block.metaDataLength() as u64).map_err(failed)?;
        // A mark and a length come first, in files of before 2019 a length alone.
        let message = if meta.starts_with(STREAM) { meta.get(8..) } else { meta.get(4..) };
        let message = arrow_ipc::root_as_message(message.unwrap_or(&[])).map_err(|e| damaged(&e.to_string()))?;
        let Some(batch) = message.header_as_record_batch().filter(|b| b.compression().is_some()) else { continue };
        let body = block.offset() as u64 + block.metaDataLength() as u64;
        for buffer in batch.buffers().into_iter().flatten().filter(|b| b.length() > 0) {
            let at = body.saturating_add(u64::try_from(buffer.offset()).map_err(|_| damaged("a buffer lies outside of it"))?);
            let head = read(file, at, 8).map_err(failed)?;
            let claimed = head.first_chunk().map_or(i64::MAX, |b| i64::from_le_bytes(*b));
            if claimed > BUFFER_MAX {
                return Err(damaged("a compressed buffer says that it is longer than 1 GiB"));
            }
        }
    }
    Ok(())
}

/// The kind of the rows of a file: the very layout that it says, or the one that was asked for.
fn kind_of(opened: &Opened, options: &Options) -> Result<&'static Schema, Fault> {
    let of = |key: &str| opened.metadata.get(key);
    let columns: Vec<String> = opened.schema.fields().iter().map(|f| options.renamed(f.name())).collect();
    let asked = options.kind.as_deref();
    let Some(name) = of(KIND) else {
        let name = asked.ok_or_else(|| {
            let columns = columns.join(", ");
            Fault::new(format!("the file does not say of which kind its rows are; name it with --kind (columns: {columns})"))
        })?;
        return kind_with(name, &columns);
    };
    if let Some(asked) = asked.filter(|asked| asked != name) {
        return Err(Fault::new(format!("its rows are of kind '{name}', not what --kind says")).values(asked, name));
    }
    if of(NUMBER).is_none() {
        // An SSTable, or a file of a version that wrote no number.
        return kind_with(name, &columns);
    }
    let number = of(NUMBER).and_then(|n| n.parse().ok()).map(Kind);
    let kind = number.and_then(schema).filter(|s| s.name == name && of(LAYOUT).is_some_and(|l| *l == format!("{:016x}", s.hash)));
    kind.ok_or_else(|| {
        let number = of(NUMBER).map_or("", String::as_str);
        Fault::new(format!(
            "its kind '{name}' (number {number}) is not in this store with that layout; the program that defines it makes it one \
             with Publisher::kind"
        ))
    })
}

impl Input for Table {
    fn next(&mut self, message: &mut Message) -> Result<bool> {
        message.clear();
        if !self.next_batch()? {
            return Ok(false);
        }
        let named = if self.instruments.is_null(self.next) && !self.is_ours {
            Err(Fault::new("it has no instrument"))
        } else if self.instruments.is_null(self.next) {
            Ok(NO_INSTRUMENT)
        } else {
            self.names.number(self.instruments.value(self.next))
        };
        let number = named.map_err(|e| self.fail(e.column(INSTRUMENT), 1))?;
        let record = self.words.get(self.next * self.kind.words..(self.next + 1) * self.kind.words).unwrap_or(&[]);
        message.words.extend_from_slice(record);
        message.set_row(number, self.source, self.kind.index_word);
        self.next += 1;
        self.read += 1;
        Ok(true)
    }

    fn names(&self) -> &[Name] {
        self.names.all()
    }

    fn progress(&self) -> Progress {
        progress(self.at.as_ref(), self.read, self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::UInt64Array;
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::{FileWriter, IpcWriteOptions};

    use super::*;

    #[test]
    fn a_compressed_buffer_that_claims_to_be_vast_is_refused_before_it_is_allocated() {
        const ROWS: u64 = 5000;
        let ids = Arc::new(UInt64Array::from_iter_values(0..ROWS));
        let names = Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| "A:B")));
        let batch = RecordBatch::try_from_iter([("trade_id", ids as Arc<dyn Array>), ("instrument", names)]).unwrap();
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
        writer.write(&batch).unwrap();
        let mut bytes = writer.into_inner().unwrap();
        let (file, options) = (tempfile::NamedTempFile::new().unwrap(), Options::default());
        let options = Options { kind: Some("trade".to_owned()), ..options };
        std::fs::write(file.path(), &bytes).unwrap();
        let (mut table, mut message, mut rows) = (Table::open(file.path(), &options).unwrap(), Message::default(), 0);
        while table.next(&mut message).unwrap() {
            rows += 1;
        }
        assert_eq!(rows, ROWS);
        // The length before compression stands in front of the buffer.
        let says = (ROWS * 8).to_le_bytes();
        let at = bytes.windows(8).position(|w| w == says).unwrap();
        bytes[at..at + 8].copy_from_slice(&(1u64 << 46).to_le_bytes());
        std::fs::write(file.path(), &bytes).unwrap();
        let refused = Table::open(file.path(), &options).err().unwrap();
        assert!(refused.to_string().contains("longer than 1 GiB"), "{refused}");
    }
}
