//! Owns: copying the log's tail.
//!
//! What must hold: the caller reads the copy back through the chain of frames, so a segment that was recycled meanwhile is
//! noticed. The copy's durable mark is its end, and it holds no frame after that.

use std::path::Path;

use tapestore::disk::{Disk, Open, copy_range};
use tapestore::error::Result;
use tapestore::lsn::Position;
use tapestore::shm::control::Control;
use tapestore::shm::run_dir::RunDir;
use tapestore::wal::format::{MARK_OFFSETS, SEGMENT_HEAD_LEN, SegmentHeader, segment_name};
use tapestore::wal::{self, Chain, DurableMark, Meta};

/// The durable position that the storage process of the store in `dir` publishes in shared memory.
fn published_durable(dir: &Path, store_id: u128) -> Option<Position> {
    let control = Control::open(&RunDir::find(dir).ok()?.control()).ok()?;
    (control.store_id() == store_id).then(|| control.durable_position())
}

/// The durable end of the log of the store in `dir`, from `from` on.
///
/// # Errors
/// As [`wal::scan`].
pub(super) fn durable_end(disk: &dyn Disk, dir: &Path, meta: &Meta, from: Chain) -> Result<Chain> {
    let wal_dir = dir.join(wal::DIR);
    let mark = wal::durable_mark(disk, &wal_dir, meta, from)?.position;
    let limit = published_durable(dir, meta.store_id).map_or(mark, |published| published.max(mark));
    let mut durable = from;
    wal::scan(disk, &wal_dir, meta, from, Open::Read, |frame| {
        let mut next = durable;
        next.advance(&frame.header, meta.segment_size);
        if next.position <= limit {
            durable = next;
        }
        Ok(())
    })?;
    Ok(durable)
}

/// Copies the log in `from_dir` from `from` to `end` into the empty `to_dir`, durably. With `fills` the rest of the last
/// segment is written with zeros, as the log's writer needs it; else it is a hole.
///
/// # Errors
/// [`tapestore::error::Error::Io`].
pub(crate) fn copy_log(
    disk: &dyn Disk,
    (from_dir, to_dir): (&Path, &Path),
    meta: &Meta,
    (from, end): (Chain, Chain),
    fills: bool,
    visit: &mut dyn FnMut(u64),
) -> Result<()> {
    let size = meta.segment_size;
    let mut first = from.position.0 / size * size;
    while first + SEGMENT_HEAD_LEN < end.position.0 {
        let name = segment_name(Position(first));
        let file = disk.open(&to_dir.join(&name), Open::CreateNew)?;
        file.write_at(bytemuck::bytes_of(&SegmentHeader::new(meta.store_id, Position(first), size)), 0)?;
        let begin = from.position.0.saturating_sub(first).max(SEGMENT_HEAD_LEN);
        let after = (end.position.0 - first).min(size);
        if begin < after {
            let source = disk.open(&from_dir.join(&name), Open::Read)?;
            copy_range(source.as_ref(), file.as_ref(), begin, after, visit)?;
        }
        if first + size + SEGMENT_HEAD_LEN >= end.position.0 {
            let mark = DurableMark { seq: 2, ..DurableMark::of(&end) };
            file.write_at(&mark.to_bytes(), MARK_OFFSETS[0])?;
        }
        match after {
            _ if after >= size => {}
            _ if fills => {
                let zeros = vec![0u8; 64 << 10];
                let mut at = after;
                while at < size {
                    let chunk = zeros.get(..(size - at).min(zeros.len() as u64) as usize).unwrap_or(&zeros);
                    file.write_at(chunk, at)?;
                    at += chunk.len() as u64;
                }
            }
            _ => file.write_at(&[0], size - 1)?,
        }
        file.sync()?;
        first += size;
    }
    disk.sync_dir(to_dir)
}
