//! Owns: Bloom filters, split into blocks of 256 bits, so that a question is one cache line.
//!
//! After Putze, Sanders and Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007), with the
//! eight salts of the Parquet format. The high half of a hash chooses the block, the low half one bit in
//! each of its eight words.

/// One block: eight words.
pub type Line = [u32; 8];

const SALTS: Line = [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

#[inline]
fn mask(hash: u64) -> Line {
    let low = hash as u32;
    SALTS.map(|salt| 1 << (low.wrapping_mul(salt) >> 27))
}

#[inline]
fn line_of(hash: u64, lines: usize) -> usize {
    // The high half scaled to the number of lines (Lemire 2019), without a division.
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// Lines for `keys` keys at `bits` bits a key; at least one.
pub fn lines_for(keys: u64, bits: u64) -> usize {
    (keys * bits).div_ceil(256).max(1) as usize
}

/// Bits a key at which at most `rate` of the absent keys are taken for present, by the filter's own
/// formula: keys fall into blocks as Poisson's law says, and a block of `i` keys errs at
/// (1 - (1 - 1/32)^i)^8.
pub fn bits_for(rate: f64) -> u64 {
    (6..64).find(|&bits| expected_rate(bits as f64) <= rate).unwrap_or(64)
}

fn expected_rate(bits: f64) -> f64 {
    let load = 256.0 / bits;
    let mut probability = (-load).exp();
    let mut sum = 0.0;
    for i in 0..1000 {
        sum += probability * (1.0 - (31.0f64 / 32.0).powi(i)).powi(8);
        probability *= load / f64::from(i + 1);
    }
    sum
}

/// Puts `hash` into the filter `lines`.
#[inline]
pub fn insert(lines: &mut [Line], hash: u64) {
    let at = line_of(hash, lines.len());
    if let Some(line) = lines.get_mut(at) {
        line.iter_mut().zip(mask(hash)).for_each(|(word, bit)| *word |= bit);
    }
}

/// Whether `hash` may be in the filter `lines`; never wrong when the answer is no.
#[inline]
pub fn may_contain(lines: &[Line], hash: u64) -> bool {
    let Some(line) = lines.get(line_of(hash, lines.len())) else { return false };
    let missing = line.iter().zip(mask(hash)).fold(0, |missing, (word, bit)| missing | (!word & bit));
    missing == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::InstrumentId;
    use crate::sstable::format::{BLOOM_BITS, find_hash};

    fn measured(keys: u64, bits: u64) -> f64 {
        let mut lines = vec![Line::default(); lines_for(keys, bits)];
        (0..keys).for_each(|id| insert(&mut lines, find_hash(InstrumentId(1), 0, id)));
        assert!((0..keys).all(|id| may_contain(&lines, find_hash(InstrumentId(1), 0, id))), "no false negative");
        let probes = 1_000_000u64;
        let wrong = (0..probes).filter(|id| may_contain(&lines, find_hash(InstrumentId(1), 0, keys + id))).count();
        wrong as f64 / probes as f64
    }

    #[test]
    fn the_seeds_parameters_hold_when_measured() {
        for (keys, rate) in [(1_000, 0.01), (10_000, 0.01), (100_000, 0.001)] {
            let bits = bits_for(rate);
            let found = measured(keys, bits);
            println!(
                "{keys} keys, {bits} bits a key: {:.4} % of absent keys pass (asked for {:.1} %)",
                found * 100.0,
                rate * 100.0
            );
            // A million probes: the measured rate is within a tenth of its expectation.
            assert!(found <= rate * 1.1, "{keys} keys at {bits} bits: {found}");
            assert!(bits_for(rate / 4.0) > bits);
        }
    }

    #[test]
    fn at_twelve_bits_less_than_one_in_a_hundred_absent_keys_passes_whatever_the_size() {
        for keys in [1, 100, 4096, 1_000_000] {
            assert!(measured(keys, BLOOM_BITS) < 0.01, "{keys} keys");
        }
    }

    #[test]
    fn an_empty_filter_contains_nothing() {
        assert!(!may_contain(&[], 5));
        assert!(!may_contain(&[Line::default()], 5));
    }
}
