//! Owns: which instrument a DBN file's number and symbol stand for.
//!
//! What must hold: two symbols of a data set are two instruments, even where they come to one name or one number.

use std::collections::{HashMap, HashSet};

use crate::error::Fault;
use crate::input::names::Names;

/// Numbers of the instruments met.
#[derive(Default)]
pub(super) struct Instruments {
    /// By publisher and DBN's number: the day on which it was met last, and its number here.
    pub(super) last: HashMap<(u16, u32), (u64, u32), foldhash::fast::RandomState>,
    /// Which instrument has a mapping to which number of DBN's.
    pub(super) mapped: HashSet<(u32, u32)>,
    /// The symbol that each name stands for.
    symbols: HashMap<String, String>,
    pub(super) names: Names,
}

/// `symbol` in the characters of a name.
fn as_name(symbol: &str) -> String {
    let mut name = String::with_capacity(symbol.len());
    for byte in symbol.bytes() {
        match byte {
            b' ' => name.push('_'),
            b if b.is_ascii_alphanumeric() || b"._:/-".contains(&b) => name.push(char::from(b)),
            b => name.push_str(&format!("/{b:02x}")),
        }
    }
    name
}

impl Instruments {
    /// The number here of the instrument that `symbol`, or DBN's number `id`, names.
    pub(super) fn name(&mut self, dataset: &str, symbol: Option<&str>, id: u32) -> Result<u32, Fault> {
        if let Some(symbol) = symbol.filter(|s| !s.is_empty()) {
            let name = format!("{dataset}:{}", as_name(symbol));
            // Two symbols that come to one name do not become one instrument.
            let is_its = self.symbols.entry(name.clone()).or_insert_with(|| symbol.to_owned()) == symbol;
            if let (true, Ok(number)) = (is_its, self.names.number(&name)) {
                return Ok(number);
            }
        }
        self.names.number(&format!("{dataset}:id/{id}"))
    }
}
