//! Owns: a count and a checksum of records that do not depend on their order, on the numbers of their
//! instruments or on the store: what an export says and the import of its file says are equal. (Of DBN the
//! import counts the mappings too, which the export puts into the metadata.)

use tapestore::record::Name;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Records counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub records: u64,
    /// The sum, modulo 2^64, of a hash of each record with its instrument's name.
    pub checksum: u64,
}

/// The hash of a name, which [`Tally::add`] takes.
pub fn name_hash(name: &Name) -> u64 {
    text_hash(name.as_str())
}

/// The hash of the name `text`.
pub fn text_hash(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

impl Tally {
    /// Counts the record `words` of the instrument whose name hashes to `name`.
    pub fn add(&mut self, name: u64, words: &[u64]) {
        let Some((head, rest)) = words.split_first() else { return };
        // The kind and the source; the instrument's number differs from store to store.
        let seed = name ^ (head & 0xffff_ffff).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.records += 1;
        self.checksum = self.checksum.wrapping_add(xxh3_64_with_seed(bytemuck::cast_slice(rest), seed));
    }
}
