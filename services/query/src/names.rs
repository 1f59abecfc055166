//! Owns: instrument names as the values of a dictionary array.
//!
//! What must hold: the value at index `id` is the name of instrument `id`, so a column of instruments in a file is the key
//! array of the column `symbol` as it is. Index 0 is null: no instrument has that number.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, StringBuilder};
use tapestore::record::Name;

/// The names of a store's instruments.
#[derive(Debug)]
pub struct Names {
    /// The name of each instrument, by its number.
    pub values: ArrayRef,
    ids: HashMap<String, u32>,
    /// The rank of each instrument in the order of names, by its number.
    ranks: Vec<u32>,
}

impl Names {
    /// The instruments `names`, numbered from 1.
    pub fn new(names: &[Name]) -> Names {
        let mut values = StringBuilder::with_capacity(names.len() + 1, names.len() * 16);
        values.append_null();
        let mut ids = HashMap::with_capacity(names.len());
        for (id, name) in (1..).zip(names) {
            values.append_value(name.as_str());
            ids.insert(name.as_str().to_owned(), id);
        }
        let mut order: Vec<(&str, u32)> = names.iter().map(Name::as_str).zip(1..).collect();
        order.sort_unstable();
        let mut ranks = vec![u32::MAX; names.len() + 1];
        for (rank, (_, id)) in (0..).zip(order) {
            if let Some(of) = ranks.get_mut(id as usize) {
                *of = rank;
            }
        }
        let values: StringArray = values.finish();
        Names { values: Arc::new(values), ids, ranks }
    }

    /// The names, in their order.
    pub fn all(&self) -> Vec<String> {
        let mut all: Vec<String> = self.ids.keys().cloned().collect();
        all.sort_unstable();
        all
    }

    /// Number of instruments.
    pub fn len(&self) -> usize {
        self.ranks.len() - 1
    }

    /// Whether there is no instrument.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the instrument called `name`.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// The place of instrument `id` in the order of names; records of no instrument come last.
    pub fn rank(&self, id: u32) -> u32 {
        self.ranks.get(id as usize).copied().unwrap_or(u32::MAX)
    }
}
