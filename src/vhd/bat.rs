//! The block allocation table: where each block lies, or that it is not there.
//!
//! Knows entries and whether they make sense together. Does not know bitmaps.

use super::error::{Structure, VhdError, VhdErrorKind};
use super::layout::Layout;
pub use crate::plan::FileRange;
use crate::units::{BlockIndex, SECTOR_BYTES};

/// The entry of a block that is not there.
pub const UNALLOCATED: u32 = u32::MAX;
pub(super) const ENTRY_BYTES: u64 = 4;
/// Entries in one 512-byte sector of the table.
pub const ENTRIES_PER_SECTOR: u32 = (SECTOR_BYTES / ENTRY_BYTES) as u32;

/// The table, one entry per block of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bat {
    entries: Vec<u32>,
}

impl Bat {
    /// From the bytes of a file, four per block.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let entries =
            bytes.chunks_exact(4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
        Self { entries: entries.collect() }
    }

    /// The first file sector of a block's bitmap.
    pub fn get(&self, block: BlockIndex) -> Option<u32> {
        self.entries.get(block.0 as usize).copied().filter(|entry| *entry != UNALLOCATED)
    }

    pub fn set(&mut self, block: BlockIndex, entry: u32) {
        if let Some(slot) = self.entries.get_mut(block.0 as usize) {
            *slot = entry;
        }
    }

    /// Entries as stored; 0xFFFFFFFF beyond the last.
    pub fn raw(&self, index: u32) -> u32 {
        self.entries.get(index as usize).copied().unwrap_or(UNALLOCATED)
    }

    pub fn allocated(&self) -> impl Iterator<Item = (BlockIndex, u32)> {
        let numbered = self.entries.iter().enumerate().filter(|(_, entry)| **entry != UNALLOCATED);
        numbered.map(|(block, entry)| (BlockIndex(block as u32), *entry))
    }

    /// The first file sector behind the highest block; 0 without blocks.
    pub fn end(&self, layout: &Layout) -> u64 {
        let highest = self.allocated().map(|(_, entry)| entry).max();
        highest.map_or(0, |entry| u64::from(entry) + layout.stored_sectors())
    }

    /// The first block that lies outside `area` or over one of `metadata`, or overlaps another block.
    ///
    /// Sorts a copy of the entries: n log n time, four bytes per allocated block.
    pub fn validate(&self, layout: &Layout, area: FileRange, metadata: &[FileRange]) -> Result<(), VhdError> {
        let fail = |kind, block, entry: u32| {
            VhdError::new(kind, Structure::Block(block), u64::from(entry) * SECTOR_BYTES)
        };
        let stored = layout.stored_sectors();
        for (block, entry) in self.allocated() {
            let range = FileRange {
                start: u64::from(entry) * SECTOR_BYTES,
                end: (u64::from(entry) + stored) * SECTOR_BYTES,
            };
            let outside = range.start < area.start || range.end > area.end;
            if outside || metadata.iter().any(|other| range.overlaps(*other)) {
                return Err(fail(VhdErrorKind::BlockRange, block, entry));
            }
        }
        let mut sorted: Vec<(u32, BlockIndex)> =
            self.allocated().map(|(block, entry)| (entry, block)).collect();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            if let [(entry, _), (next, block)] = *pair
                && u64::from(entry) + stored > u64::from(next)
            {
                return Err(fail(VhdErrorKind::BlockOverlap, block, next));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;

    fn bat(entries: &[u32]) -> Bat {
        Bat::from_bytes(&entries.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<_>>())
    }

    fn verdict(entries: &[u32]) -> Result<(), (VhdErrorKind, Structure)> {
        let layout = Layout::new(SectorCount(4 * 1024), 512 << 10, 1536).unwrap();
        let area = FileRange { start: 1536, end: 8 * 1025 * 512 };
        let metadata = [FileRange { start: 1536, end: 2048 }];
        bat(entries).validate(&layout, area, &metadata).map_err(|error| (error.kind, error.structure))
    }

    #[test]
    fn blocks_in_any_order_with_gaps_are_fine() {
        assert_eq!(verdict(&[5000, UNALLOCATED, 4, 1029]), Ok(()));
    }

    #[test]
    fn blocks_over_metadata_or_beyond_the_footer_are_refused() {
        for entry in [0, 3, 7 * 1025 + 1, 0xFFFF_FFFE] {
            let expected = (VhdErrorKind::BlockRange, Structure::Block(BlockIndex(1)));
            assert_eq!(verdict(&[UNALLOCATED, entry]), Err(expected), "{entry}");
        }
    }

    #[test]
    fn overlapping_and_equal_entries_are_refused() {
        for entry in [10, 11, 10 + 1024] {
            let expected = (VhdErrorKind::BlockOverlap, Structure::Block(BlockIndex(1)));
            assert_eq!(verdict(&[10, entry]), Err(expected), "{entry}");
        }
        assert_eq!(verdict(&[10, 10 + 1025]), Ok(()));
    }

    #[test]
    fn the_end_is_behind_the_highest_block() {
        let layout = Layout::new(SectorCount(4 * 1024), 512 << 10, 1536).unwrap();
        assert_eq!(bat(&[UNALLOCATED, 5000, 4]).end(&layout), 5000 + 1025);
        assert_eq!(bat(&[]).end(&layout), 0);
    }
}
