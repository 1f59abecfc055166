//! Owns: CSV files of the rows of a kind, as `tape scan --csv` prints them and `tape import` reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use tapestore::reader::Row;
use tapestore::record::{Column, ColumnType, Name, Schema, Value};

use super::Sink;
use crate::exit::{Failure, IO, Outcome};
use crate::output::{csv_header, csv_row};
use crate::tally::Tally;

/// A level at which the compression, not the text, sets the pace, and only just.
const GZIP_LEVEL: u32 = 3;

enum Out {
    Plain(File),
    Gz(Box<GzEncoder<File>>),
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Out::Plain(file) => file.write(buf),
            Out::Gz(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Out::Plain(file) => file.flush(),
            Out::Gz(encoder) => encoder.flush(),
        }
    }
}

/// A CSV file.
pub(super) struct Csv {
    out: BufWriter<Out>,
    /// The columns whose text may be odd.
    texts: Vec<&'static Column>,
    /// Rows with text that is not printable ASCII.
    odd: u64,
}

impl Csv {
    pub(super) fn new(file: File, kind: &'static Schema, compressed: bool) -> Outcome<Csv> {
        let out =
            if compressed { Out::Gz(Box::new(GzEncoder::new(file, Compression::new(GZIP_LEVEL)))) } else { Out::Plain(file) };
        let mut out = BufWriter::with_capacity(1 << 20, out);
        csv_header(&mut out, kind)?;
        let is_text = |c: &&Column| matches!(c.of, ColumnType::Char | ColumnType::Text(_));
        Ok(Csv { out, texts: kind.columns.iter().filter(is_text).collect(), odd: 0 })
    }
}

fn is_odd(value: &Value<'_>) -> bool {
    let printable = |b: &u8| (32..127).contains(b);
    match value {
        Value::Char(c) => *c != 0 && !printable(c),
        Value::Text(bytes) => !bytes.iter().all(printable),
        _ => false,
    }
}

impl Sink for Csv {
    fn push(&mut self, row: &Row<'_>, name: &Name) -> Outcome<bool> {
        let bytes = row.record.bytes();
        self.odd += u64::from(self.texts.iter().any(|c| is_odd(&c.value(bytes))));
        csv_row(&mut self.out, row, name.as_str()).map(|()| true)
    }

    fn finish(self: Box<Self>, _: &Tally) -> Outcome<File> {
        let fail = |e: std::io::Error| Failure::new(IO, format!("cannot write CSV: {e}"));
        match self.out.into_inner().map_err(|e| fail(e.into_error()))? {
            Out::Plain(file) => Ok(file),
            Out::Gz(encoder) => encoder.finish().map_err(fail),
        }
    }

    fn left(&self) -> BTreeMap<String, u64> {
        let odd = (self.odd > 0).then(|| ("texts of records that are not printable ASCII".to_owned(), self.odd));
        odd.into_iter().collect()
    }
}
