//! Where everything lies in a dynamic or differencing file, as arithmetic.
//!
//! Knows block sizes, bitmaps and offsets. Does not know which blocks exist (`bat`).

use crate::units::{BlockIndex, ByteOffset, SECTOR_BYTES, SectorCount};

/// The shape of a dynamic or differencing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sectors of the disk.
    pub sectors: SectorCount,
    /// Sectors of a block's data; a power of two.
    pub block_sectors: u32,
    /// Sectors of a block's bitmap, before its data.
    pub bitmap_sectors: u32,
    /// Blocks of the disk; the last one may be needed in part only.
    pub blocks: u32,
    /// Where the block allocation table begins, in bytes.
    pub table_offset: u64,
}

impl Layout {
    /// `None` when the disk has more blocks than a table can have.
    pub fn new(sectors: SectorCount, block_size: u32, table_offset: u64) -> Option<Self> {
        let block_sectors = block_size / SECTOR_BYTES as u32;
        let blocks = sectors.0.div_ceil(u64::from(block_sectors.max(1)));
        Some(Self {
            sectors,
            block_sectors,
            bitmap_sectors: block_sectors.div_ceil(8 * SECTOR_BYTES as u32),
            blocks: u32::try_from(blocks).ok()?,
            table_offset,
        })
    }

    /// Bytes of one block's bitmap.
    pub fn bitmap_bytes(&self) -> u32 {
        self.bitmap_sectors * SECTOR_BYTES as u32
    }

    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_sectors) * SECTOR_BYTES
    }

    /// Sectors a block takes in the file.
    pub fn stored_sectors(&self) -> u64 {
        u64::from(self.bitmap_sectors) + u64::from(self.block_sectors)
    }

    /// The block of a disk sector, and the sector's place in it.
    pub fn locate(&self, sector: u64) -> (BlockIndex, u32) {
        let block_sectors = u64::from(self.block_sectors);
        // Sectors of the disk have a block number below `blocks`, which is a u32.
        (BlockIndex((sector / block_sectors) as u32), (sector % block_sectors) as u32)
    }

    /// Sectors of a block that belong to the disk.
    pub fn valid_sectors(&self, block: BlockIndex) -> u32 {
        let start = u64::from(block.0) * u64::from(self.block_sectors);
        self.sectors.0.saturating_sub(start).min(u64::from(self.block_sectors)) as u32
    }

    /// Where sector `at` of the block lies whose table entry is `entry`.
    pub fn data_offset(&self, entry: u32, at: u32) -> ByteOffset {
        ByteOffset((u64::from(entry) + u64::from(self.bitmap_sectors) + u64::from(at)) * SECTOR_BYTES)
    }

    /// Where the bitmap of the block lies whose table entry is `entry`.
    pub fn bitmap_offset(entry: u32) -> ByteOffset {
        ByteOffset(u64::from(entry) * SECTOR_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_rounded_up_to_sectors() {
        for (block_size, sectors) in [(512, 1), (512 << 10, 1), (2 << 20, 1), (4 << 20, 2), (32 << 20, 16)] {
            let layout = Layout::new(SectorCount(1), block_size, 0).unwrap();
            assert_eq!(layout.bitmap_sectors, sectors, "{block_size}");
        }
    }

    #[test]
    fn the_last_block_is_partial() {
        let layout = Layout::new(SectorCount(4096 + 7), 2 << 20, 0).unwrap();
        assert_eq!((layout.blocks, layout.valid_sectors(BlockIndex(1))), (2, 7));
        assert_eq!(layout.valid_sectors(BlockIndex(2)), 0);
        assert_eq!(layout.locate(4097), (BlockIndex(1), 1));
    }

    #[test]
    fn data_lies_behind_the_bitmap() {
        let layout = Layout::new(SectorCount(1 << 20), 4 << 20, 0).unwrap();
        assert_eq!(layout.data_offset(10, 3), ByteOffset(15 * 512));
        assert_eq!(Layout::bitmap_offset(10), ByteOffset(5120));
    }
}
