//! Reading a chain as a disk, and running metadata batches, with blocking calls: for tools.
//!
//! Knows how to run the plans of `image` over open files. Does not know what the data is for; the server does not
//! use it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};

use super::edit_file::zero;
use super::file::OpenedFile;
use super::open_image::{LayerTable, OpenError, OpenedChain};
use crate::image::Chain;
use crate::limits::BITMAP_BYTES_MAX;
use crate::plan::{BitmapRead, FileSlot, MetaBatch, MetaOp, ReadPlan, ReadStep, Source};
use crate::units::{SECTOR_BYTES, Sector, SectorCount, SectorRange};

/// The longest piece of data: a power of two no larger than the smallest block, so that no piece crosses one.
pub(super) const PIECE_BYTES: u64 = 512 * 1024;
/// Sectors resolved at once.
const WINDOW_SECTORS: u64 = 64 << 10;

/// Data of the disk that may be other than zero, and the place in a file it lies at.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) disk_offset: u64,
    pub(super) len: usize,
    pub(super) file: Arc<OpenedFile>,
    pub(super) file_offset: u64,
}

/// A chain and the plans made of it.
#[derive(Debug)]
pub(super) struct ChainReader {
    table: LayerTable,
    chain: Chain,
    plan: ReadPlan,
    bitmap: Vec<u8>,
}

impl ChainReader {
    pub(super) fn new(chain: OpenedChain) -> Result<Self, OpenError> {
        let mut table = LayerTable::default();
        let chain = table.add(chain)?;
        Ok(Self { table, chain, plan: ReadPlan::default(), bitmap: vec![0; BITMAP_BYTES_MAX] })
    }

    pub(super) fn sectors(&self) -> SectorCount {
        self.chain.sectors()
    }

    /// Fills `self.plan` for the first sectors of `range` and says how many they are.
    fn resolve(&mut self, range: SectorRange) -> Result<SectorCount, OpenError> {
        loop {
            match self.table.images.resolve_read(&self.chain, range, &mut self.plan) {
                ReadStep::Ready { covered } => return Ok(covered),
                ReadStep::NeedBitmap(wanted) => self.table.load_bitmap(wanted, &mut self.bitmap)?,
            }
        }
    }

    /// Fills `bytes`, whole sectors, with the disk's content from `sector` on; zeros beyond its end.
    pub(super) fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), OpenError> {
        bytes.fill(0);
        let mut at = 0;
        while at < bytes.len() {
            let start = sector + at as u64 / SECTOR_BYTES;
            let left = (bytes.len() - at) as u64 / SECTOR_BYTES;
            let inside = self.sectors().0.saturating_sub(start).min(left);
            let range = SectorRange::new(Sector(start), SectorCount(inside));
            let Some(range) = range.filter(|range| !range.is_empty()) else { return Ok(()) };
            self.resolve(range)?;
            for extent in &self.plan.extents {
                let len = extent.len as usize;
                if let Source::File { file, offset, .. } = extent.source {
                    let file = self.file(file);
                    let failed = |source| OpenError::Read {
                        path: file.path().to_owned(),
                        offset: offset.0,
                        len,
                        source,
                    };
                    file.read_at(offset.0, &mut bytes[at..at + len]).map_err(failed)?;
                }
                at += len;
            }
        }
        Ok(())
    }

    fn file(&self, slot: FileSlot) -> &Arc<OpenedFile> {
        &self.table.files[slot.0 as usize]
    }
}

/// All pieces of a disk that may be other than zero, in order: what no file holds and what is a hole in one is left
/// out.
#[derive(Debug)]
pub(super) struct Pieces {
    reader: ChainReader,
    at: u64,
    queue: VecDeque<Piece>,
}

impl Pieces {
    pub(super) fn new(reader: ChainReader) -> Self {
        Self { reader, at: 0, queue: VecDeque::new() }
    }

    /// Bytes of the disk before which every piece has been handed out.
    pub(super) fn position(&self) -> u64 {
        self.queue.front().map_or(self.at * SECTOR_BYTES, |piece| piece.disk_offset)
    }

    /// `None` at the end of the disk.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, OpenError> {
        while self.queue.is_empty() {
            let left = self.reader.sectors().0.saturating_sub(self.at);
            let window = SectorRange::new(Sector(self.at), SectorCount(left.min(WINDOW_SECTORS)));
            let Some(window) = window.filter(|window| !window.is_empty()) else { return Ok(None) };
            let covered = self.reader.resolve(window)?;
            self.queue_plan();
            // A plan covers at least one sector.
            self.at += covered.0.max(1);
        }
        Ok(self.queue.pop_front())
    }

    fn queue_plan(&mut self) {
        let mut disk_offset = self.at * SECTOR_BYTES;
        for extent in &self.reader.plan.extents {
            let len = u64::from(extent.len);
            if let Source::File { file, offset, .. } = extent.source {
                let file = self.reader.file(file);
                for (start, end) in data_runs(file, offset.0, offset.0 + len) {
                    cut(disk_offset + (start - offset.0), file, start, end, &mut self.queue);
                }
            }
            disk_offset += len;
        }
    }
}

/// Cuts a run at multiples of `PIECE_BYTES` of the disk.
fn cut(mut disk_offset: u64, file: &Arc<OpenedFile>, mut start: u64, end: u64, queue: &mut VecDeque<Piece>) {
    while start < end {
        let len = (PIECE_BYTES - disk_offset % PIECE_BYTES).min(end - start);
        let file = file.clone();
        queue.push_back(Piece { disk_offset, len: len as usize, file, file_offset: start });
        disk_offset += len;
        start += len;
    }
}

/// The parts of a file between `start` and `end` that are not holes; all of it where holes are not told.
pub(super) fn data_runs(file: &OpenedFile, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = start;
    while at < end {
        let data = match seek(file.file(), SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return vec![(start, end)],
        };
        if data >= end {
            break;
        }
        let hole = seek(file.file(), SeekFrom::Hole(data)).unwrap_or(end);
        // A hole that does not lie behind its data would keep us here for ever.
        let hole = if hole > data { hole.min(end) } else { end };
        runs.push((data, hole));
        at = hole;
    }
    runs
}

/// Looked at in stretches without a branch, which the compiler turns into wide instructions.
pub(super) fn is_all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|stretch| stretch.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The runs of whole `grain`s that hold another byte than zero: (start, end) within `bytes`.
pub(super) fn nonzero_runs(bytes: &[u8], grain: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, part) in bytes.chunks(grain).enumerate() {
        if is_all_zero(part) {
            continue;
        }
        let (start, end) = (index * grain, index * grain + part.len());
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

impl LayerTable {
    /// Reads a bitmap that a layer wants, through `buffer`, and gives it to the layer.
    pub(super) fn load_bitmap(&mut self, wanted: BitmapRead, buffer: &mut [u8]) -> Result<(), OpenError> {
        let bytes = &mut buffer[..wanted.len as usize];
        let file = &self.files[wanted.file.0 as usize];
        let (offset, len) = (wanted.offset.0, bytes.len());
        let failed = |source| OpenError::Read { path: file.path().to_owned(), offset, len, source };
        file.read_at(offset, bytes).map_err(failed)?;
        self.images.bitmap_loaded(wanted, Ok(bytes));
        Ok(())
    }
}

/// Runs the operations of a metadata batch one after the other, which is one of the orders it allows.
pub(super) fn run_batch(file: &File, batch: &MetaBatch) -> io::Result<()> {
    batch.ops.iter().try_for_each(|op| run_op(file, op, &batch.bytes))
}

/// Runs one operation of a batch whose byte store is `bytes`.
pub(super) fn run_op(file: &File, op: &MetaOp, bytes: &[u8]) -> io::Result<()> {
    match op {
        MetaOp::Write { offset, bytes: range } => file.write_all_at(&bytes[range.clone()], offset.0),
        MetaOp::Sync => file.sync_data(),
        MetaOp::Zero { offset, len } => zero(file, offset.0, offset.0.saturating_add(*len)),
        MetaOp::SetLen { len } => file.set_len(*len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::file::{Access, Locking};
    use crate::control::open_image::Opener;

    #[test]
    fn zero_grains_split_runs() {
        let mut bytes = [0; 40];
        bytes[9] = 1;
        bytes[17] = 1;
        bytes[39] = 1;
        assert_eq!(nonzero_runs(&bytes, 8), [(8, 24), (32, 40)]);
        assert!(nonzero_runs(&[0; 40], 8).is_empty());
    }

    #[test]
    fn holes_of_a_raw_disk_are_left_out_and_pieces_end_at_their_grid() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        file.as_file().write_all_at(&[7; 8192], (3 << 20) - 4096).unwrap();
        file.as_file().write_all_at(&[9; 512], (64 << 20) - 512).unwrap();
        let chain = Opener::anywhere(Locking::Ignore).open_chain(file.path(), Access::ReadOnly).unwrap();
        let mut pieces = Pieces::new(ChainReader::new(chain).unwrap());
        let mut found = vec![0_u8; 64 << 20];
        let mut bytes = 0;
        while let Some(piece) = pieces.next().unwrap() {
            let end = piece.disk_offset + piece.len as u64;
            assert_eq!(piece.disk_offset / PIECE_BYTES, (end - 1) / PIECE_BYTES);
            piece
                .file
                .read_at(piece.file_offset, &mut found[piece.disk_offset as usize..end as usize])
                .unwrap();
            bytes += piece.len;
        }
        assert!(bytes < 1 << 20, "{bytes} bytes were read of a nearly empty file");
        assert!(found == std::fs::read(file.path()).unwrap());
        assert_eq!(pieces.position(), 64 << 20);
    }
}
