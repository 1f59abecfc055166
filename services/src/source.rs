//! Owns: the input of a command that publishes, and its rate, as command line arguments.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tapestore_formats::input::{self, Input, Market, Options, Sim, Units};

use crate::exit::Outcome;
use crate::terminal::{self, Bar};

/// How fast to publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// At this multiple of the records' own pace.
    Times(f64),
    /// As fast as possible.
    Max,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let bad = || format!("'{text}' is not realtime, max, or a multiple like x2 or x100");
        match text {
            "realtime" => Ok(Rate::Times(1.0)),
            "max" => Ok(Rate::Max),
            _ => {
                let times: f64 = text.strip_prefix('x').and_then(|t| t.parse().ok()).ok_or_else(bad)?;
                if times > 0.0 && times.is_finite() { Ok(Rate::Times(times)) } else { Err(bad()) }
            }
        }
    }
}

/// Properties that a file does not state itself: [`Options`] as arguments.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Reading {
    /// Kind of the rows, for files that do not state it
    #[arg(long)]
    kind: Option<String>,
    /// Source (number of the venue feed), for inputs without one
    #[arg(long)]
    source: Option<u16>,
    /// Read the file's column THEIRS as the column OURS; without OURS, skip it; repeatable
    #[arg(long = "column", value_name = "THEIRS=OURS", value_parser = rename)]
    columns: Vec<(String, String)>,
    /// Unit of integers in price and size columns, for files whose metadata does not state it
    #[arg(long, value_parser = units())]
    units: Option<Units>,
    /// Prefix of instrument names from DBN fragments [default: the dataset of the record's publisher]
    #[arg(long)]
    dataset: Option<String>,
}

fn rename(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("'{text}' is not THEIRS=OURS"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn units() -> impl TypedValueParser<Value = Units> {
    let values = Units::ALL.map(|units| PossibleValue::new(units.name()).help(units.about()));
    PossibleValuesParser::new(values).try_map(|text| text.parse::<Units>())
}

impl Reading {
    fn options(&self) -> Options {
        let Reading { kind, source, columns, units, dataset } = self.clone();
        Options { kind, source, columns, units, dataset }
    }

    /// Opens the file `path`. `stop` ends the verification of a file with a checksum.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(&self, path: &Path, stop: &dyn Fn() -> bool) -> Outcome<Box<dyn Input>> {
        let mut bar = Bar::new("checking");
        let opened = input::open_watched(path, &self.options(), &mut |progress| {
            bar.set(progress);
            terminal::go_on(!stop())
        });
        Ok(opened?)
    }

    /// The same options as arguments for another process.
    fn arguments(&self) -> Vec<(&'static str, String)> {
        let Reading { kind, source, columns, units, dataset } = self.clone();
        let mut arguments: Vec<(&'static str, String)> = Vec::new();
        arguments.extend(kind.map(|kind| ("--kind", kind)));
        arguments.extend(source.map(|source| ("--source", source.to_string())));
        arguments.extend(columns.iter().map(|(theirs, ours)| ("--column", format!("{theirs}={ours}"))));
        arguments.extend(units.map(|units| ("--units", units.name().to_owned())));
        arguments.extend(dataset.map(|dataset| ("--dataset", dataset)));
        arguments
    }
}

/// The input.
#[derive(clap::Args, Clone, Debug)]
pub struct Source {
    /// File to read: a Binance websocket capture (lines of `local_ns JSON`) or CSV with a header, gzip or plain; DBN, zstd or
    /// plain; Parquet; Arrow
    #[arg(long, conflicts_with = "sim")]
    pub from: Option<PathBuf>,
    /// Use the simulated market
    #[arg(long)]
    pub sim: bool,
    /// Seed of the simulated market; the same seed gives the same records
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of records of the simulated market
    #[arg(long, default_value_t = 500_000)]
    pub records: u64,
    /// Number of instruments of the simulated market
    #[arg(long, default_value_t = 100)]
    pub instruments: u32,
    /// Properties that a file does not state itself.
    #[command(flatten)]
    reading: Reading,
}

impl Source {
    /// Opens the input; `stop` as in [`Reading::open`].
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn open(&self, stop: &dyn Fn() -> bool) -> Outcome<Box<dyn Input>> {
        match &self.from {
            Some(path) => self.reading.open(path, stop),
            None => Ok(Box::new(Sim::new(Market { seed: self.seed, records: self.records, instruments: self.instruments })?)),
        }
    }

    /// The same input as arguments for another process.
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        let mut arguments: Vec<(&'static str, String)> = Vec::new();
        arguments.extend(self.from.iter().map(|path| ("--from", path.to_string_lossy().into_owned())));
        arguments.extend(self.reading.arguments());
        arguments.push(("--seed", self.seed.to_string()));
        arguments.push(("--records", self.records.to_string()));
        arguments.push(("--instruments", self.instruments.to_string()));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        source: Source,
    }

    #[test]
    fn arguments_reproduce_the_input_in_another_process() {
        let line = "x --from a.csv --kind trade --source 7 --column a=b --column c= --units nano --dataset D --seed 3 --records 5 --instruments 2";
        let source = Line::parse_from(line.split(' ')).source;
        let arguments: Vec<String> = source.arguments().into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let again = Line::parse_from(std::iter::once("x".to_owned()).chain(arguments)).source;
        assert_eq!(format!("{again:?}"), format!("{source:?}"));
        assert_eq!(source.reading.units, Some(Units::Nano));
        assert!(Line::try_parse_from(["x", "--units", "furlongs"]).is_err());
    }
}
