//! Owns: Bloom filters, split into blocks of 256 bits, so that a lookup reads one cache line.
//!
//! After Putze, Sanders and Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007), with the
//! eight salts of the Parquet format. The high half of a hash selects the block, the low half one bit in
//! each of the block's eight words.

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
    // The high half, scaled to the number of lines without a division (Lemire 2019).
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// Lines for `keys` keys at `bits` bits a key; at least one.
pub fn lines_for(keys: u64, bits: u64) -> usize {
    (keys * bits).div_ceil(256).max(1) as usize
}

/// Bits per key at which at most `rate` of the absent keys pass, by the filter's formula: keys per block
/// follow a Poisson distribution, and a block of `i` keys has a false-positive rate of (1 - (1 -
/// 1/32)^i)^8.
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

/// Adds `hash` to the filter `lines`.
#[inline]
pub fn insert(lines: &mut [Line], hash: u64) {
    let at = line_of(hash, lines.len());
    if let Some(line) = lines.get_mut(at) {
        line.iter_mut().zip(mask(hash)).for_each(|(word, bit)| *word |= bit);
    }
}

/// Whether `hash` may be in the filter `lines`. `false` is always right.
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
    fn the_measured_rates_are_those_asked_for() {
        for (keys, rate) in [(1_000, 0.01), (10_000, 0.01), (100_000, 0.001)] {
            let bits = bits_for(rate);
            let found = measured(keys, bits);
            println!(
                "{keys} keys, {bits} bits a key: {:.4} % of absent keys pass (asked for {:.1} %)",
                found * 100.0,
                rate * 100.0
            );
            // With a million probes the measured rate is within a tenth of the expected one.
            assert!(found <= rate * 1.1, "{keys} keys at {bits} bits: {found}");
            assert!(bits_for(rate / 4.0) > bits);
        }
    }

    #[test]
    fn at_12_bits_a_key_less_than_1_percent_of_absent_keys_pass_at_any_size() {
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
