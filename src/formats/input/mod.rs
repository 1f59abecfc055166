//! Owns: inputs, where records to be published come from: DBN files, Parquet, Arrow, captures, CSV, the
//! simulated market.
//!
//! An input gives messages: records that came together, with the time at which they did. The input numbers its
//! instruments from 0, in the order of [`Input::names`]; the publisher puts the store's ids in their place.
//!
//! What must hold: what cannot be read ends the input with its file, place and reason, and what came before it has been
//! given; what no record can hold is counted by name ([`Input::left`]), never dropped in silence.

mod binance;
mod csv;
mod dbn;
mod message;
mod names;
mod options;
mod sim;
mod tables;
mod text;

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use crate::error::{Error, Result};
use crate::progress::OnProgress;

pub use self::binance::Binance;
pub use self::csv::Csv;
pub use self::dbn::Dbn;
pub use self::message::{Input, Message, NO_INSTRUMENT, NO_NAME};
pub use self::options::Options;
pub use self::sim::{Market, Sim};
pub use self::tables::Table;
pub use self::text::{LineInput, LineParser, Lines};
pub use crate::scatter::Units;

/// Opens the file `path`: DBN, Parquet and Arrow by their first bytes, a Binance capture if its lines begin with a
/// time and JSON, CSV otherwise.
///
/// # Errors
/// That it cannot be read, or is none of these.
pub fn open(path: &Path, options: &Options) -> Result<Box<dyn Input>> {
    open_watched(path, options, &mut |_| ControlFlow::Continue(()))
}

/// As [`open`]; a file with a checksum is read to its end first, and `on_progress` is called meanwhile.
///
/// # Errors
/// As [`open`]; [`Error::Interrupted`] if `on_progress` ended it.
pub fn open_watched(path: &Path, options: &Options, on_progress: OnProgress<'_>) -> Result<Box<dyn Input>> {
    let fail = Error::read(path);
    if !std::fs::metadata(path).map_err(&fail)?.is_file() {
        // It is looked at more than once, and a wait for more could not be ended.
        return Err(Error::NotAFile { path: path.to_path_buf() });
    }
    let mut start = Vec::new();
    File::open(path).map_err(&fail)?.take(16).read_to_end(&mut start).map_err(&fail)?;
    if dbn::is_dbn(&start) || dbn::is_fragment(path) {
        return Ok(Box::new(Dbn::open(path, options)?));
    }
    if tables::is_table(&start) {
        return Ok(Box::new(Table::open_watched(path, options, on_progress)?));
    }
    let mut peek = Lines::open(path)?;
    let first = peek.read()?.map(<[u8]>::to_vec).unwrap_or_default();
    if first.first().is_some_and(u8::is_ascii_digit) && first.contains(&b'{') {
        return Ok(Box::new(Binance::open(path, options.source)?));
    }
    Ok(Box::new(Csv::open(path, options)?))
}
