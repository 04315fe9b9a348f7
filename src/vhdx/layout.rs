//! Where everything of a disk lies in the table and in its sector bitmaps, as arithmetic.
//!
//! Knows chunks, entries and pages of bitmaps. Does not know which blocks exist (`bat`).
//!
//! A chunk is as many blocks as one sector bitmap of 1 MiB speaks for: 2^23 logical sectors. In the table each chunk's
//! blocks are followed by the entry of its bitmap. Bitmaps are read in pages of 4 KiB, numbered through the whole disk.

use super::metadata::Metadata;
use super::{MIB, PAGE_BYTES};
use crate::units::{SECTOR_BYTES, SectorCount};

/// Bits in one page of a sector bitmap.
pub const PAGE_BITS: u32 = PAGE_BYTES as u32 * 8;
/// Logical sectors one sector bitmap speaks for.
const CHUNK_BITS: u64 = MIB * 8;
/// Bytes of an entry of the table.
pub const ENTRY_BYTES: u64 = 8;

/// The shape of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sectors of 512 bytes: of the disk, of a block, of a bit.
    pub sectors: SectorCount,
    pub block_sectors: u32,
    pub bit_sectors: u32,
    /// Blocks of a chunk.
    pub chunk_blocks: u32,
    /// Blocks of the disk; the last one may be needed in part only.
    pub blocks: u32,
    pub chunks: u32,
    pub differencing: bool,
    /// Where the table begins, in bytes.
    pub table_offset: u64,
}

impl Layout {
    pub fn new(metadata: &Metadata, table_offset: u64) -> Self {
        let block_bytes = u64::from(metadata.block_size);
        // At most 2^26 blocks and 2^15 blocks in a chunk: sizes were checked (`Metadata::parse`).
        let blocks = metadata.sectors.bytes().0.div_ceil(block_bytes) as u32;
        let chunk_blocks = (CHUNK_BITS * u64::from(metadata.logical_sector.bytes()) / block_bytes) as u32;
        Self {
            sectors: metadata.sectors,
            block_sectors: metadata.block_size / SECTOR_BYTES as u32,
            bit_sectors: metadata.logical_sector.sectors() as u32,
            chunk_blocks,
            blocks,
            chunks: blocks.div_ceil(chunk_blocks),
            differencing: metadata.has_parent,
            table_offset,
        }
    }

    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_sectors) * SECTOR_BYTES
    }

    /// Entries a table must have: to the last bitmap with a parent, to the last block without.
    pub fn entries(&self) -> u64 {
        let (blocks, ratio) = (u64::from(self.blocks), u64::from(self.chunk_blocks));
        if self.differencing {
            u64::from(self.chunks) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        }
    }

    /// The number of a block's entry.
    pub fn block_entry(&self, block: u32) -> u64 {
        u64::from(block) + u64::from(block / self.chunk_blocks)
    }

    /// The number of the entry of a chunk's sector bitmap.
    pub fn bitmap_entry(&self, chunk: u32) -> u64 {
        u64::from(chunk) * (u64::from(self.chunk_blocks) + 1) + u64::from(self.chunk_blocks)
    }

    /// Where an entry lies in the file.
    pub fn entry_offset(&self, entry: u64) -> u64 {
        self.table_offset + entry * ENTRY_BYTES
    }

    /// The block of a disk sector, and the sector's place in it.
    pub fn locate(&self, sector: u64) -> (u32, u32) {
        let block_sectors = u64::from(self.block_sectors);
        ((sector / block_sectors) as u32, (sector % block_sectors) as u32)
    }

    pub fn chunk_of(&self, block: u32) -> u32 {
        block / self.chunk_blocks
    }

    /// The page of sector bitmaps that holds the bit of a disk sector, and the bit's place in it.
    pub fn bit_of(&self, sector: u64) -> (u32, u32) {
        let bit = sector / u64::from(self.bit_sectors);
        ((bit / u64::from(PAGE_BITS)) as u32, (bit % u64::from(PAGE_BITS)) as u32)
    }

    /// The chunk of a page, and the page's place in that chunk's sector bitmap, in bytes.
    pub fn page_place(&self, page: u32) -> (u32, u64) {
        let pages = (MIB / PAGE_BYTES as u64) as u32;
        (page / pages, u64::from(page % pages) * PAGE_BYTES as u64)
    }

    /// Bits that speak for a block.
    pub fn bits_of_block(&self) -> u32 {
        self.block_sectors / self.bit_sectors
    }

    /// The pages of sector bitmaps that speak for a block: one it shares with its neighbours, or some of its own.
    pub fn pages_of(&self, block: u32) -> core::ops::Range<u32> {
        let (first, _) = self.bit_of(u64::from(block) * u64::from(self.block_sectors));
        first..first + (self.bits_of_block() / PAGE_BITS).max(1)
    }

    /// The bits of a block in each of its pages: the first, and how many.
    pub fn bits_in_page(&self, block: u32) -> (u32, u32) {
        let (_, first) = self.bit_of(u64::from(block) * u64::from(self.block_sectors));
        (first, self.bits_of_block().min(PAGE_BITS))
    }

    /// The number of the entry at a place of the table.
    pub fn entry_at(&self, offset: u64) -> u64 {
        offset.saturating_sub(self.table_offset) / ENTRY_BYTES
    }

    /// Sectors of a block that belong to the disk.
    pub fn valid_sectors(&self, block: u32) -> u32 {
        let start = u64::from(block) * u64::from(self.block_sectors);
        self.sectors.0.saturating_sub(start).min(u64::from(self.block_sectors)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;
    use uuid::Uuid;

    fn layout(block_size: u32, bytes: u64, logical_sector: BlockSize, has_parent: bool) -> Layout {
        let metadata = Metadata {
            block_size,
            leave_allocated: false,
            has_parent,
            sectors: SectorCount(bytes / 512),
            disk_id: Uuid::nil(),
            logical_sector,
            physical_sector: BlockSize::B4096,
        };
        Layout::new(&metadata, 3 << 20)
    }

    #[test]
    fn the_largest_disks_fit_their_numbers() {
        for block_size in [1 << 20, 256 << 20] {
            for sector in [BlockSize::B512, BlockSize::B4096] {
                let layout = layout(block_size, 64 << 40, sector, true);
                assert_eq!(u64::from(layout.blocks) * u64::from(block_size), 64 << 40);
                assert_eq!(layout.entries(), layout.bitmap_entry(layout.chunks - 1) + 1);
                let (page, bit) = layout.bit_of(layout.sectors.0 - 1);
                assert_eq!(bit, PAGE_BITS - 1);
                assert_eq!(layout.page_place(page), (layout.chunks - 1, MIB - 4096));
            }
        }
    }

    #[test]
    fn the_entry_of_a_bitmap_follows_its_chunk() {
        let layout = layout(32 << 20, 9 << 30, BlockSize::B512, true);
        assert_eq!((layout.chunk_blocks, layout.blocks, layout.chunks), (128, 288, 3));
        assert_eq!(
            (layout.block_entry(127), layout.bitmap_entry(0), layout.block_entry(128)),
            (127, 128, 129)
        );
        assert_eq!(layout.entries(), 3 * 129);
        assert_eq!(layout.entry_offset(129), (3 << 20) + 129 * 8);
    }

    #[test]
    fn a_table_without_a_parent_ends_with_the_last_block() {
        assert_eq!(layout(32 << 20, 4 << 30, BlockSize::B512, false).entries(), 128);
        assert_eq!(layout(32 << 20, (4 << 30) + 512, BlockSize::B512, false).entries(), 130);
    }

    #[test]
    fn a_bit_speaks_for_a_logical_sector() {
        let layout = layout(2 << 20, 1 << 30, BlockSize::B4096, true);
        assert_eq!(layout.bit_of(8 * 32768 + 17), (1, 2));
        assert_eq!((layout.locate(4097), layout.chunk_of(5)), ((1, 1), 0));
        assert_eq!(layout.valid_sectors(512), 0);
    }
}
