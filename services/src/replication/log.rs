//! Owns: reading frames of this host's log for sending.
//!
//! What must hold: the bytes sent are the frames that storage named. A segment may be reused or its tail truncated while it
//! is read, so every frame is checked after the copy. Files are read, not mapped: no file is ever shortened, but a page that
//! the disk cannot read would raise a signal here.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tapestore::lsn::Position;
use tapestore::wal::format::segment_name;
use tapestore::wal::{self};
use tapestore_engine::consensus::message::FrameHead;

/// Most open segments.
const OPEN_MAX: usize = 8;

/// Reads frames of the log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    segment_size: u64,
    open: VecDeque<(u64, File)>,
}

impl LogReader {
    /// A reader of the log in `dir`, with segments of `segment_size` bytes.
    pub fn new(dir: PathBuf, segment_size: u64) -> LogReader {
        LogReader { dir, segment_size, open: VecDeque::new() }
    }

    /// The bytes of the frames `heads`, concatenated; `None` if the log no longer holds one of them. May wait for the disk.
    pub fn read(&mut self, heads: &[FrameHead]) -> Option<Vec<u8>> {
        self.read_how(heads, false)
    }

    /// As [`LogReader::read`], but `None` instead of a wait for the disk.
    pub fn read_cached(&mut self, heads: &[FrameHead]) -> Option<Vec<u8>> {
        self.read_how(heads, true)
    }

    fn read_how(&mut self, heads: &[FrameHead], only_cached: bool) -> Option<Vec<u8>> {
        let total: usize = heads.iter().map(|h| h.len as usize).sum();
        if total > super::wire::FRAMES_MAX {
            return None;
        }
        let mut bytes = vec![0; total];
        let mut at = 0;
        for head in heads {
            let frame = bytes.get_mut(at..at + head.len as usize)?;
            // An open segment may have been reused for other positions.
            if !self.read_one(head, frame, only_cached) {
                if only_cached {
                    return None;
                }
                self.open.clear();
                if !self.read_one(head, frame, false) {
                    return None;
                }
            }
            at += head.len as usize;
        }
        Some(bytes)
    }

    fn read_one(&mut self, head: &FrameHead, to: &mut [u8], only_cached: bool) -> bool {
        let first = head.position / self.segment_size * self.segment_size;
        let Some(file) = self.segment(first) else { return false };
        let offset = head.position - first;
        let is_read = if only_cached {
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            let read = rustix::io::preadv2(file, &mut [std::io::IoSliceMut::new(to)], offset, flags);
            read.is_ok_and(|n| n == head.len as usize)
        } else {
            file.read_exact_at(to, offset).is_ok()
        };
        if !is_read {
            return false;
        }
        let Ok(header) = wal::Header::parse(to) else { return false };
        let payload = to.get(wal::format::HEADER_LEN as usize..).and_then(|p| p.get(..header.len as usize));
        header.header_crc == head.header_crc
            && header.total_len() == u64::from(head.len)
            && payload.is_some_and(|p| crc32c::crc32c(p) == header.payload_crc)
    }

    fn segment(&mut self, first: u64) -> Option<&File> {
        if let Some(at) = self.open.iter().position(|s| s.0 == first) {
            return self.open.get(at).map(|s| &s.1);
        }
        let file = File::open(self.dir.join(segment_name(Position(first)))).ok()?;
        if self.open.len() == OPEN_MAX {
            self.open.pop_front();
        }
        self.open.push_back((first, file));
        self.open.back().map(|s| &s.1)
    }
}
