//! A dynamic disk written in one go, as a converter does: blocks are placed when they are first written.
//!
//! Knows where each block of the new file goes and what remains to be written at the end. Does not write, and keeps no
//! order for a crash: the file is given its name only when it is complete.

use super::FOOTER_BYTES;
use super::bat::ENTRY_BYTES;
use super::create::{CreateError, NewDisk, NewKind, create};
use crate::limits::VHD_FILE_BYTES_MAX;
use crate::plan::WriteRefused;
use crate::units::{BlockIndex, ByteOffset, SECTOR_BYTES};

/// The table's value for a block that is not there.
const UNALLOCATED: u32 = u32::MAX;
/// Data begins at multiples of this, so that a page of the disk is a page of the file.
const DATA_ALIGN: u64 = 4096;

/// Bytes and where in the file they belong.
pub type Piece = (u64, Vec<u8>);

/// The file under construction: its table in memory, and its end.
#[derive(Debug)]
pub struct Builder {
    block_bytes: u64,
    bitmap_bytes: u64,
    disk_bytes: u64,
    table_offset: u64,
    table: Vec<u32>,
    /// The footer, for both ends.
    footer: Vec<u8>,
    header: Piece,
    end: u64,
}

/// Where a run of the disk goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    pub offset: ByteOffset,
    /// The block's bitmap, when this is the first run of its block: to be written as well.
    pub bitmap: Option<Piece>,
}

impl Builder {
    /// # Errors
    /// As [`create`]; other kinds than dynamic need no builder and are refused as such.
    pub fn new(disk: &NewDisk) -> Result<Self, CreateError> {
        let NewKind::Dynamic { block_size } = disk.kind else { return Err(CreateError::BlockSize(0)) };
        let mut writes = create(disk)?.writes.into_iter();
        // Of a disk without locators: the copy of the footer, the header, the table, the footer.
        let (Some((_, footer)), Some(header), Some((table_offset, table))) =
            (writes.next(), writes.next(), writes.next())
        else {
            return Err(CreateError::BlockSize(block_size));
        };
        let bitmap_bits = u64::from(block_size) / SECTOR_BYTES;
        Ok(Self {
            block_bytes: u64::from(block_size),
            bitmap_bytes: (bitmap_bits / 8).next_multiple_of(SECTOR_BYTES),
            disk_bytes: disk.sectors.bytes().0,
            table_offset,
            table: vec![UNALLOCATED; table.len() / ENTRY_BYTES as usize],
            footer,
            header,
            end: table_offset + table.len() as u64,
        })
    }

    /// Where the run of the disk that begins at byte `at` goes. A run must not cross the end of a block.
    ///
    /// # Errors
    /// `OutOfRange` beyond the disk, `FormatFull` when a new block would end beyond 2 TiB.
    pub fn place(&mut self, at: u64) -> Result<Placed, WriteRefused> {
        let block = at / self.block_bytes;
        if at >= self.disk_bytes {
            return Err(WriteRefused::OutOfRange);
        }
        let entry = usize::try_from(block).ok().and_then(|block| self.table.get_mut(block));
        let entry = entry.ok_or(WriteRefused::OutOfRange)?;
        let mut bitmap = None;
        if *entry == UNALLOCATED {
            let data = (self.end + self.bitmap_bytes).next_multiple_of(DATA_ALIGN);
            let end = data + self.block_bytes;
            if end + FOOTER_BYTES as u64 > VHD_FILE_BYTES_MAX {
                return Err(WriteRefused::FormatFull);
            }
            let start = data - self.bitmap_bytes;
            // Below 2 TiB, so below 2^32 sectors.
            *entry = (start / SECTOR_BYTES) as u32;
            self.end = end;
            let sectors = (self.disk_bytes - block * self.block_bytes).min(self.block_bytes) / SECTOR_BYTES;
            bitmap = Some((start, ones(sectors, self.bitmap_bytes)));
        }
        let data = u64::from(*entry) * SECTOR_BYTES + self.bitmap_bytes;
        Ok(Placed { offset: ByteOffset(data + at % self.block_bytes), bitmap })
    }

    /// True when `block` was placed.
    pub fn is_placed(&self, block: BlockIndex) -> bool {
        self.table.get(block.0 as usize).is_some_and(|entry| *entry != UNALLOCATED)
    }

    /// The length of the file, and what must still be written: header, table and both footers.
    pub fn finish(self) -> (u64, Vec<Piece>) {
        let table = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let pieces =
            vec![(0, self.footer.clone()), self.header, (self.table_offset, table), (self.end, self.footer)];
        (self.end + FOOTER_BYTES as u64, pieces)
    }
}

/// A bitmap whose first `sectors` bits are set, most significant first. The data of a dynamic disk that is never
/// written is zero, so that all sectors of a block may be called present.
fn ones(sectors: u64, bytes: u64) -> Vec<u8> {
    let mut bitmap = vec![0; bytes as usize];
    let whole = (sectors / 8) as usize;
    bitmap[..whole].fill(0xFF);
    if !sectors.is_multiple_of(8) {
        bitmap[whole] = !(0xFF >> (sectors % 8));
    }
    bitmap
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;
    use crate::vhd::{OpenMode, Run, open_with};
    use uuid::Uuid;

    fn builder(sectors: u64, block_size: u32) -> Builder {
        let kind = NewKind::Dynamic { block_size };
        Builder::new(&NewDisk {
            kind,
            sectors: SectorCount(sectors),
            unique_id: Uuid::from_u128(1),
            timestamp: 2,
        })
        .unwrap()
    }

    #[test]
    fn what_is_built_opens_and_is_where_it_was_placed() {
        for block_size in [512 << 10, 2 << 20, 32 << 20] {
            let sectors = u64::from(block_size) / 512 * 3 - 5;
            let mut builder = builder(sectors, block_size);
            let mut pieces = Vec::new();
            let late = u64::from(block_size) * 2 + 4096;
            for at in [late, 512, late + 512] {
                pieces.extend(builder.place(at).unwrap().bitmap);
            }
            let expected = builder.place(late).unwrap();
            assert!(expected.bitmap.is_none() && expected.offset.0.is_multiple_of(4096));
            assert!(builder.is_placed(BlockIndex(0)) && !builder.is_placed(BlockIndex(1)));
            let (len, rest) = builder.finish();
            pieces.extend(rest);
            let mut file = vec![0; len as usize];
            for (at, bytes) in pieces {
                file[at as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            let read = |at: u64, bytes: &mut [u8]| -> Result<(), ()> {
                bytes.copy_from_slice(&file[at as usize..][..bytes.len()]);
                Ok(())
            };
            let mut image = open_with(len, OpenMode::Writable, read).unwrap();
            assert_eq!((image.sectors().0, image.statistics().allocated_blocks), (sectors, 2));
            let run = image.run_at(late / 512, 8);
            assert_eq!(run, Run::Present { offset: expected.offset, sectors: 8 });
            assert!(matches!(image.run_at(u64::from(block_size) / 512, 8), Run::Absent { .. }));
        }
    }

    #[test]
    fn the_end_of_the_disk_and_of_the_format_are_kept() {
        let mut small = builder(100, 512 << 10);
        assert_eq!(small.place(100 * 512), Err(WriteRefused::OutOfRange));
        let mut full = builder(0xFF00_0000, 512 << 10);
        full.end = VHD_FILE_BYTES_MAX - (512 << 10);
        assert_eq!(full.place(0), Err(WriteRefused::FormatFull));
    }

    #[test]
    fn bits_beyond_the_disk_stay_clear() {
        assert_eq!(ones(11, 512)[..3], [0xFF, 0xE0, 0]);
        assert_eq!(ones(16, 512)[..3], [0xFF, 0xFF, 0]);
    }
}
