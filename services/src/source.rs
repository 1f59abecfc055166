//! Owns: where the records that a command publishes come from, and how fast they go, as the command line has it.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tapestore_formats::input::{self, Input, Market, Options, Sim, Units};

use crate::exit::Outcome;
use crate::terminal::{self, Bar};

/// How fast to publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As fast as the records' own times, times this.
    Times(f64),
    /// As fast as possible.
    Max,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let bad = || format!("'{text}' is none of: realtime, max, x2, x100, ...");
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

/// How files are read that do not say everything themselves: [`Options`] on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Reading {
    /// Kind of the rows of a file that does not say it
    #[arg(long)]
    kind: Option<String>,
    /// Number of the venue feed, for inputs that do not carry one
    #[arg(long)]
    source: Option<u16>,
    /// The file's column THEIRS is our column OURS; with no OURS it is left out; may be given again
    #[arg(long = "column", value_name = "THEIRS=OURS", value_parser = rename)]
    columns: Vec<(String, String)>,
    /// What integers in columns of prices and sizes are, in a file that does not say it with its fields' metadata
    #[arg(long, value_parser = units())]
    units: Option<Units>,
    /// First part of the names of instruments of DBN fragments [default: the data set of the record's publisher]
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

    /// Opens the file `path`; `stop` ends the check of a file that has a checksum.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(&self, path: &Path, stop: &dyn Fn() -> bool) -> Outcome<Box<dyn Input>> {
        let mut bar = Bar::new("checking");
        let opened = input::open_watched(path, &self.options(), &mut |progress| {
            bar.set(progress);
            terminal::go_on(!stop())
        });
        Ok(opened?)
    }

    /// The arguments that say the same to another process.
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

/// Where records come from.
#[derive(clap::Args, Clone, Debug)]
pub struct Source {
    /// A Binance websocket capture (lines of `local_ns JSON`) or CSV with a header, gzip or plain; DBN, zstd or plain;
    /// Parquet; Arrow
    #[arg(long, conflicts_with = "sim")]
    pub from: Option<PathBuf>,
    /// The simulated market
    #[arg(long)]
    pub sim: bool,
    /// Seed of the simulated market: the same seed gives the same records
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Records of the simulated market
    #[arg(long, default_value_t = 500_000)]
    pub records: u64,
    /// Instruments of the simulated market
    #[arg(long, default_value_t = 100)]
    pub instruments: u32,
    /// How a file is read that does not say everything itself.
    #[command(flatten)]
    reading: Reading,
}

impl Source {
    /// Opens the input; `stop` as in [`Reading::open`].
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn open(&self, stop: &dyn Fn() -> bool) -> Outcome<Box<dyn Input>> {
        match &self.from {
            Some(path) => self.reading.open(path, stop),
            None => Ok(Box::new(Sim::new(Market { seed: self.seed, records: self.records, instruments: self.instruments })?)),
        }
    }

    /// The arguments that say the same to another process.
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
    fn arguments_say_the_same_to_another_process() {
        let line = "x --from a.csv --kind trade --source 7 --column a=b --column c= --units nano --dataset D --seed 3 --records 5 --instruments 2";
        let source = Line::parse_from(line.split(' ')).source;
        let arguments: Vec<String> = source.arguments().into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let again = Line::parse_from(std::iter::once("x".to_owned()).chain(arguments)).source;
        assert_eq!(format!("{again:?}"), format!("{source:?}"));
        assert_eq!(source.reading.units, Some(Units::Nano));
        assert!(Line::try_parse_from(["x", "--units", "furlongs"]).is_err());
    }
}
