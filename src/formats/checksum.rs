//! Owns: a count and a checksum of records. Neither depends on the order of the records, on the numbers of their
//! instruments or on the store, so an export and the import of its file give equal ones. (The import of a DBN file counts
//! its mappings too, which the export puts into the metadata.)

use std::fmt;

use tapestore::record::Name;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Records counted, and their checksum, which `Display` gives as sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    /// How many records.
    pub records: u64,
    /// The sum, modulo 2^64, of a hash of each record with its instrument's name.
    pub sum: u64,
}

/// The hash of a name, which [`Checksum::add`] takes.
pub fn name_hash(name: &Name) -> u64 {
    text_hash(name.as_str())
}

/// The hash of the name `text`.
pub fn text_hash(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

impl Checksum {
    /// Counts the record `words` of the instrument whose name hashes to `name`.
    pub fn add(&mut self, name: u64, words: &[u64]) {
        let Some((head, rest)) = words.split_first() else { return };
        // The kind and the source; the instrument's number differs from store to store.
        let seed = name ^ (head & 0xffff_ffff).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.records += 1;
        self.sum = self.sum.wrapping_add(xxh3_64_with_seed(bytemuck::cast_slice(rest), seed));
    }

    /// Counts all that `other` has counted.
    pub fn add_all(&mut self, other: Checksum) {
        self.records += other.records;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.sum)
    }
}
