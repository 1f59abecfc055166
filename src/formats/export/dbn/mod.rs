//! Owns: DBN files (version 3) of a store's rows: a file a data set and schema, all instruments in the order
//! of (index time, LSN), numbered and named by the mappings that came with them.
//!
//! Mappings of whole days are in the metadata, others among the records, where they came. An instrument
//! without one has its number in the store and the name after its data set's. A record whose size is no
//! whole number that DBN can hold is left in the store; so are records at times for which mappings have no
//! number, and kinds that DBN does not have. What DBN has no field for (ids of trades, the store's own
//! sizes of definitions) is counted.

mod mappings;
mod record;

use std::collections::{BTreeMap, HashMap};

use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::{Row, Series};
use tapestore::record::{
    Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Definition, Depth10, Imbalance, Kind, Mapping, Name, Quote, Record, RecordRef, Schema,
    Statistic, Status, Trade, schema,
};
use tapestore::time::Ts;

use self::mappings::{Dataset, datasets, is_message, metadata};
use self::record::DbnSink;
use super::file::Pending;
use super::run::Run;
use super::target::Format;
use crate::checksum::name_hash;
use crate::error::{Error, Result};

const ONE_FILE: &str = "a DBN file holds one schema of one data set; choose with --kind and --instrument, or name a directory";

/// The DBN schema of a record.
fn schema_of(row: &Row<'_>) -> Option<dbn::Schema> {
    let kind = row.record.kind();
    let schemas = [
        (Trade::KIND, dbn::Schema::Trades),
        (BookOrder::KIND, dbn::Schema::Mbo),
        (Depth10::KIND, dbn::Schema::Mbp10),
        (Bar1s::KIND, dbn::Schema::Ohlcv1S),
        (Bar1m::KIND, dbn::Schema::Ohlcv1M),
        (Bar1h::KIND, dbn::Schema::Ohlcv1H),
        (Bar1d::KIND, dbn::Schema::Ohlcv1D),
        (Definition::KIND, dbn::Schema::Definition),
        (Statistic::KIND, dbn::Schema::Statistics),
        (Status::KIND, dbn::Schema::Status),
        (Imbalance::KIND, dbn::Schema::Imbalance),
    ];
    if let Some(quote) = row.record.get::<Quote>() {
        let variants = [dbn::Schema::Tbbo, dbn::Schema::Bbo1S, dbn::Schema::Bbo1M];
        return Some(variants.into_iter().find(|v| *v as u8 == quote.variant).unwrap_or(dbn::Schema::Mbp1));
    }
    schemas.iter().find(|(k, _)| *k == kind).map(|(_, s)| *s)
}

/// `code` as part of a file's name.
fn as_file(code: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = code.chars().map(clean).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

/// Writes DBN files of `kinds`.
pub(super) fn export(run: &mut Run<'_>, kinds: &BTreeMap<Kind, Vec<Series>>) -> Result {
    let datasets = datasets(run, kinds)?;
    if !run.target.is_dir && (datasets.len() > 1 || kinds.keys().filter(|k| **k != Mapping::KIND).count() > 1) {
        return Err(Error::Usage(ONE_FILE.to_owned()));
    }
    for (code, dataset) in &datasets {
        let mut files = 0;
        for (kind, series) in kinds {
            // Mappings go with every file.
            let Some(of) = schema(*kind).filter(|s| s.kind != Mapping::KIND) else { continue };
            let series: Vec<Series> = series.iter().filter(|s| dataset.instruments.contains(&s.instrument)).copied().collect();
            files += write_kind(run, of, code, dataset, &series)?;
        }
        if files == 0 && kinds.contains_key(&Mapping::KIND) && !dataset.mappings.is_empty() {
            let what = format!("mappings of {code}, which go with records, and there are none");
            run.leave(&what, dataset.mappings.len() as u64)?;
        }
    }
    Ok(())
}

/// The names of the instruments of `series`, and their hashes.
fn names(run: &mut Run<'_>, series: &[Series]) -> Result<HashMap<InstrumentId, (Name, u64)>> {
    let named = series.iter().map(|one| {
        let name = run.name(one.instrument)?;
        Ok((one.instrument, (name, name_hash(&name))))
    });
    named.collect()
}

/// Writes files of one kind of one data set; how many.
fn write_kind(run: &mut Run<'_>, of: &'static Schema, code: &str, dataset: &Dataset, series: &[Series]) -> Result<usize> {
    let mut files: BTreeMap<dbn::Schema, Pending> = BTreeMap::new();
    let names = names(run, series)?;
    let mut all = series.to_vec();
    if dataset.mappings.iter().any(is_message) {
        all.extend(series.iter().map(|one| Series { kind: Mapping::KIND, ..*one }));
    }
    let mut unknown = 0u64;
    // Mappings among the records, as far as they have come: every file begins with them.
    let mut met: Vec<(Lsn, Ts, Mapping)> = Vec::new();
    let mut rows = run.snapshot.replay(&all, run.options.range);
    while !run.is_full()
        && let Some(row) = rows.next()?
    {
        run.tick()?;
        let Some((name, hash)) = names.get(&row.record.instrument()) else { continue };
        if let Some(mapping) = row.record.get::<Mapping>() {
            if is_message(mapping) {
                met.push((row.lsn, row.index_time, *mapping));
                for file in files.values_mut() {
                    run.count(file.push(&row, name, *hash)?);
                }
            }
            continue;
        }
        let Some(schema) = schema_of(&row) else {
            unknown += 1;
            continue;
        };
        if !files.contains_key(&schema) {
            if !run.target.is_dir && !files.is_empty() {
                return Err(Error::Usage(ONE_FILE.to_owned()));
            }
            let mut file = begin(run, of, code, dataset, (schema, row.index_time))?;
            for (lsn, index_time, mapping) in &met {
                let Some((name, hash)) = names.get(&mapping.instrument) else { continue };
                let row = Row { lsn: *lsn, index_time: *index_time, record: RecordRef::of(mapping) };
                run.count(file.push(&row, name, *hash)?);
            }
            files.insert(schema, file);
        }
        let Some(file) = files.get_mut(&schema) else { continue };
        run.count(file.push(&row, name, *hash)?);
    }
    let written = files.len();
    for file in files.into_values() {
        run.finish(file)?;
    }
    if unknown > 0 {
        run.leave(&format!("{} records, a kind that DBN does not have", of.name), unknown)?;
    }
    Ok(written)
}

/// Begins the file of a data set's records of a schema, which begin at a time.
fn begin(
    run: &mut Run<'_>,
    of: &'static Schema,
    code: &str,
    dataset: &Dataset,
    (schema, start): (dbn::Schema, Ts),
) -> Result<Pending> {
    let metadata = metadata(run, code, dataset, schema, start, of.kind)?;
    let (numbers, compressed) = (dataset.numbers.clone(), run.target.format == Format::DbnZst);
    let path = run.take_path(&format!("{}.{}", as_file(code), schema.as_str()))?;
    Pending::create(path, of, run.options.replace, |file| {
        Ok(Box::new(DbnSink::new(file, &metadata, numbers, schema, compressed)?))
    })
}
