//! Stages of a change, run on a file; zeros found and turned into holes.
//!
//! Knows files and the order stages ask for. Does not know what the change is for (`plan::Stage`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::block_io::{data_runs, is_all_zero, nonzero_runs};
use super::file::OpenedFile;
use crate::plan::{FileCopy, MetaBatch, MetaOp, Stage};
use crate::units::ByteOffset;

/// Bytes moved, or looked at, at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Holes are made of zeros at least this long, at multiples of it.
const HOLE_BYTES: usize = 64 << 10;

/// Runs the stages, each stable before the next; `progress` hears of the bytes copied so far.
pub(super) fn run_stages(file: &File, stages: &[Stage], progress: &dyn Fn(u64)) -> io::Result<()> {
    let mut copied = 0;
    for stage in stages {
        for copy in &stage.copies {
            copy_part(file, copy)?;
            copied += copy.len;
            progress(copied);
        }
        for zeros in &stage.zeros {
            zero(file, zeros.start, zeros.end)?;
        }
        for write in &stage.writes {
            file.write_all_at(&write.bytes, write.offset)?;
        }
        if let Some(len) = stage.set_len {
            file.set_len(len)?;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// Stages that only write, as batches: each stage is stable before the next.
pub(super) fn batches_of(stages: &[Stage]) -> Vec<MetaBatch> {
    let batch = |stage: &Stage| {
        let mut batch = MetaBatch::default();
        stage.writes.iter().for_each(|write| batch.push_write(ByteOffset(write.offset), &write.bytes));
        [batch, MetaBatch { ops: vec![MetaOp::Sync], bytes: Vec::new() }]
    };
    stages.iter().flat_map(batch).collect()
}

/// Holes of the source are written as zeros: what lies at the destination is of no use.
fn copy_part(file: &File, copy: &FileCopy) -> io::Result<()> {
    let mut bytes = vec![0; PIECE_BYTES.min(copy.len) as usize];
    let mut done = 0;
    while done < copy.len {
        let piece = &mut bytes[..PIECE_BYTES.min(copy.len - done) as usize];
        file.read_exact_at(piece, copy.from + done)?;
        file.write_all_at(piece, copy.to + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

/// Makes a range of the file zero: a hole where the file system makes holes.
pub(super) fn zero(file: &File, start: u64, end: u64) -> io::Result<()> {
    if start >= end {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, start, end - start) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        result => return Ok(result?),
    }
    let zeros = vec![0; PIECE_BYTES.min(end - start) as usize];
    let mut at = start;
    while at < end {
        let piece = PIECE_BYTES.min(end - at);
        file.write_all_at(&zeros[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

/// True when the range holds no byte but zeros.
pub(super) fn is_zero(file: &OpenedFile, start: u64, end: u64) -> io::Result<bool> {
    let mut bytes = vec![0; PIECE_BYTES.min(end.saturating_sub(start)) as usize];
    for (mut at, end) in data_runs(file, start, end) {
        while at < end {
            let piece = &mut bytes[..PIECE_BYTES.min(end - at) as usize];
            file.read_at(at, piece)?;
            if !is_all_zero(piece) {
                return Ok(false);
            }
            at += piece.len() as u64;
        }
    }
    Ok(true)
}

/// Turns long ranges of zeros of the first `len` bytes into holes. Nothing where the file system makes none.
pub(super) fn dig_holes(file: &OpenedFile, len: u64, progress: &dyn Fn(u64)) -> io::Result<()> {
    let mut bytes = vec![0; PIECE_BYTES as usize];
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (start, end) in data_runs(file, 0, len) {
        // Pieces begin on the grid, so that holes do.
        let mut at = start;
        while at < end {
            let stop = ((at / PIECE_BYTES + 1) * PIECE_BYTES).min(end);
            let piece = &mut bytes[..(stop - at) as usize];
            file.read_at(at, piece)?;
            for (from, to) in zero_runs(piece, at) {
                match fallocate(file.file(), flags, from, to - from) {
                    Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return Ok(()),
                    result => result?,
                }
            }
            at = stop;
            progress(at);
        }
    }
    Ok(())
}

/// The ranges of whole `HOLE_BYTES` of the file within `bytes`, which lie at `offset`, that are zero.
fn zero_runs(bytes: &[u8], offset: u64) -> Vec<(u64, u64)> {
    let skip = (offset.next_multiple_of(HOLE_BYTES as u64) - offset) as usize;
    let Some(whole) = bytes.get(skip..) else { return Vec::new() };
    let whole = &whole[..whole.len() / HOLE_BYTES * HOLE_BYTES];
    let mut zeros = Vec::new();
    let mut at = 0;
    let data = nonzero_runs(whole, HOLE_BYTES);
    for (start, end) in data.into_iter().chain([(whole.len(), whole.len())]) {
        if start > at {
            let base = offset + skip as u64;
            zeros.push((base + at as u64, base + start as u64));
        }
        at = end;
    }
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_runs_lie_on_the_grid() {
        let hole = HOLE_BYTES as u64;
        let mut bytes = vec![0; 4 * HOLE_BYTES + 100];
        bytes[2 * HOLE_BYTES] = 1;
        assert_eq!(zero_runs(&bytes, hole), [(hole, 3 * hole), (4 * hole, 5 * hole)]);
        assert_eq!(zero_runs(&bytes, hole - 512), [(hole, 2 * hole), (3 * hole, 4 * hole)]);
        assert!(zero_runs(&bytes[..100], 512).is_empty());
    }
}
