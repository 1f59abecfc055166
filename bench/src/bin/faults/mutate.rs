//! Owns: mutation of valid inputs, and correction of checksums so that the code after their check is reached.

use tapestore::disk::sim::SimRng;
use tapestore::sstable::format::{Block, Section, TAIL_LEN, TRAILER_LEN, Trailer};

/// Numbers at the limits of types and fields.
const NUMBERS: [u64; 12] =
    [0, 1, 7, 63, 64, 255, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];
/// Text fragments at the limits of parsers.
const PIECES: [&str; 16] = [
    "-",
    ",",
    "\"",
    "\n",
    "\0",
    "e309",
    "NaN",
    "1e-400",
    "99999999999999999999",
    "..",
    "[[",
    "}",
    "=",
    "\u{e9}",
    "null",
    "-0.0000000001",
];

/// Returns `good` with one to four mutations; `other` is the source of spliced bytes.
pub fn mutated(rng: &mut SimRng, good: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let end = (at + 1 + rng.below(64) as usize).min(bytes.len());
        match rng.below(12) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            3..6 => {
                let width = 1usize << rng.below(4);
                let at = if rng.below(3) > 0 { at / width * width } else { at };
                let number = NUMBERS[rng.below(NUMBERS.len() as u64) as usize];
                let number = if rng.below(4) == 0 { number.wrapping_add(rng.below(9)).wrapping_sub(4) } else { number };
                let value = number.to_le_bytes();
                if at + width <= bytes.len() {
                    bytes[at..at + width].copy_from_slice(&value[..width]);
                }
            }
            6 => drop(bytes.drain(at..end)),
            7 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            8 => {
                let from = rng.below(other.len() as u64 + 1) as usize;
                let piece = other[from..(from + 64).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            9 => bytes.truncate(at),
            10 => bytes[at..end].fill(0),
            _ => {
                let piece = PIECES[rng.below(PIECES.len() as u64) as usize];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
    bytes
}

fn get32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(to) = bytes.get_mut(at..at + 4) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}

/// The CRC of `from..to` with the four bytes at offset `field` as zeros.
fn crc_without(bytes: &[u8], field: usize, from: usize, to: usize) -> u32 {
    let mut copy = bytes.get(from..to).unwrap_or(&[]).to_vec();
    put32(&mut copy, field, 0);
    crc32c::crc32c(&copy)
}

/// Corrects checksums and links of frames with 64-byte headers from `at` on; the other arguments are field offsets.
fn fix_frames(bytes: &mut [u8], mut at: usize, payload: usize, len: usize, prev: usize) {
    let mut before = None;
    while at + 64 <= bytes.len() {
        let Some(size) = get32(bytes, at + len) else { return };
        let end = at + 64 + size as usize;
        if let Some(of) = bytes.get(at + 64..end) {
            let crc = crc32c::crc32c(of);
            put32(bytes, at + payload, crc);
        }
        if let Some(crc) = before {
            put32(bytes, at + prev, crc);
        }
        let crc = crc_without(bytes, 8, at, at + 64);
        put32(bytes, at + 8, crc);
        before = Some(crc);
        at = end.next_multiple_of(64);
        if size as usize > bytes.len() {
            return;
        }
    }
}

/// Corrects the checksums of a log segment.
pub fn fix_segment(bytes: &mut [u8]) {
    let crc = crc_without(bytes, 12, 0, 64);
    put32(bytes, 12, crc);
    fix_frames(bytes, 4096, 16, 20, 12);
}

/// Corrects the checksums of a manifest.
pub fn fix_manifest(bytes: &mut [u8]) {
    fix_frames(bytes, 0, 12, 16, 20);
}

/// Corrects the checksums of `store.meta`.
pub fn fix_meta(bytes: &mut [u8]) {
    for slot in [0, 4096] {
        let crc = crc_without(bytes, 12, slot, slot + 512);
        put32(bytes, slot + 12, crc);
    }
}

/// Corrects the checksums of an SSTable; see [`trailer_crc`].
pub fn fix_table(bytes: &mut [u8]) {
    let Some(at) = trailer_at(bytes) else { return };
    let mut trailer: Trailer = bytemuck::pod_read_unaligned(&bytes[at..at + TRAILER_LEN]);
    let range = |offset: u64, len: u64| Some(offset as usize..usize::try_from(offset.checked_add(len)?).ok()?);
    let blocks = trailer.section(Section::Blocks);
    for place in range(blocks.offset, blocks.len).unwrap_or(0..0).step_by(size_of::<Block>()).take(64) {
        let Some(raw) = bytes.get(place..place + size_of::<Block>()) else { break };
        let mut block: Block = bytemuck::pod_read_unaligned(raw);
        let of = range(block.offset, u64::from(block.meta_len).saturating_add(block.body_len)).and_then(|r| bytes.get(r));
        block.crc = crc32c::crc32c(of.unwrap_or(&[]));
        bytes[place..place + size_of::<Block>()].copy_from_slice(bytemuck::bytes_of(&block));
    }
    for extent in &mut trailer.sections {
        let of = range(extent.offset, extent.len).and_then(|r| bytes.get(r));
        extent.crc = crc32c::crc32c(of.unwrap_or(&[]));
    }
    let of = range(trailer.head.offset, trailer.head.len).and_then(|r| bytes.get(r));
    trailer.head.crc = crc32c::crc32c(of.unwrap_or(&[]));
    let rest = bytes[at + TRAILER_LEN..].to_vec();
    trailer.seal(&rest);
    bytes[at..at + TRAILER_LEN].copy_from_slice(bytemuck::bytes_of(&trailer));
}

fn trailer_at(bytes: &[u8]) -> Option<usize> {
    let footer = get32(bytes, bytes.len().checked_sub(TAIL_LEN as usize)?)? as usize;
    bytes.len().checked_sub(TAIL_LEN as usize + TRAILER_LEN + footer)
}

/// The CRC of an SSTable's trailer, as the manifest stores it.
pub fn trailer_crc(bytes: &[u8]) -> u32 {
    trailer_at(bytes).map_or(0, |at| get32(bytes, at + 12).unwrap_or(0))
}

/// For inputs without checksums.
pub fn fix_nothing(_bytes: &mut [u8]) {}
