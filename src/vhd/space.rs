//! Space for new blocks: prepared in groups behind the highest block, ahead of the footer.
//!
//! Knows where the tail footer is, where the next group goes, and which prepared blocks are free. Does not know who
//! needs a block or in which order files change (`commit`).

use super::FOOTER_BYTES;
use super::layout::Layout;
use crate::growth::Growth;
use crate::limits::VHD_FILE_BYTES_MAX;
use crate::units::SECTOR_BYTES;

/// Data of new blocks begins at multiples of this, so that no bitmap shares a page with data.
const DATA_ALIGN: u64 = 4096;

/// A group of blocks to prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extension {
    /// Everything from here to `end` must read as zeros before a block of it is handed out.
    pub(super) start: u64,
    pub(super) end: u64,
    /// What of it may hold bytes of an earlier life, or of a footer, and must be zeroed; the rest is new.
    pub(super) old: u64,
    /// The first block's table entry, and the distance to the next, in sectors.
    pub(super) first_entry: u64,
    stride: u64,
    pub(super) blocks: u32,
    /// Where the tail footer must move first, when the group ends beyond it.
    pub(super) footer: Option<u64>,
}

impl Extension {
    /// Some of it is to be zeroed.
    pub(super) fn has_old(&self) -> bool {
        self.old > self.start
    }

    /// The table entries of the group's blocks.
    pub(super) fn entries(&self) -> impl Iterator<Item = u32> {
        let (first, stride) = (self.first_entry, self.stride);
        // The group ends below 2 TiB, so every entry is below 2^32.
        (0..u64::from(self.blocks)).map(move |index| (first + index * stride) as u32)
    }
}

/// The end of an open file.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Where the tail footer is, in bytes.
    pub(super) footer_at: u64,
    /// Nothing is placed or cut below this byte.
    pub(super) floor: u64,
    /// Where the next group begins: nothing behind it belongs to anyone, and none of it is trusted to be zero.
    frontier: u64,
    /// Behind this nothing was ever written: what the file may have grown to, even by an attempt that failed.
    touched: u64,
    growth: Growth,
    /// The group that blocks are taken from.
    pool_next: u64,
    pool_stride: u64,
    pub(super) pool_left: u32,
    /// The file was made longer since it was opened.
    pub(super) extended: bool,
}

impl Space {
    /// `floor`: the end of everything the file refers to. `len`: that of the file.
    pub(super) fn new(footer_at: u64, floor: u64, len: u64) -> Self {
        Self {
            footer_at,
            floor,
            frontier: floor,
            touched: len,
            growth: Growth::default(),
            pool_next: 0,
            pool_stride: 0,
            pool_left: 0,
            extended: false,
        }
    }

    /// The next group, of at most `wanted` blocks. `None` when not one more fits below 2 TiB.
    pub(super) fn plan(&self, layout: &Layout, wanted: u64) -> Option<Extension> {
        let bitmap = u64::from(layout.bitmap_bytes());
        let stride = (bitmap + layout.block_bytes()).next_multiple_of(DATA_ALIGN);
        let data = (self.frontier + bitmap).next_multiple_of(DATA_ALIGN);
        let room = (VHD_FILE_BYTES_MAX - SECTOR_BYTES).checked_sub(data + layout.block_bytes())?;
        let blocks = self.growth.group(layout.block_bytes()).min(wanted).min(room / stride + 1);
        if blocks == 0 {
            return None;
        }
        let end = data + (blocks - 1) * stride + layout.block_bytes();
        Some(Extension {
            start: self.frontier,
            end,
            old: self.touched.clamp(self.frontier, end),
            first_entry: (data - bitmap) / SECTOR_BYTES,
            stride: stride / SECTOR_BYTES,
            blocks: blocks as u32,
            footer: (end > self.footer_at).then_some(end),
        })
    }

    /// An extension is tried: whatever becomes of it, its bytes and its footer's are no longer known to be new.
    pub(super) fn begun(&mut self, extension: &Extension) {
        self.touched = self.touched.max(extension.end + FOOTER_BYTES as u64);
    }

    /// The footer of the extension is stable; the old one no longer counts.
    pub(super) fn footer_moved(&mut self, to: u64) {
        self.footer_at = to;
        self.extended = true;
    }

    /// The group is zero and has its bitmaps. Only called when the pool is empty or ends where the group begins.
    pub(super) fn add(&mut self, extension: &Extension, block_bytes: u64) {
        self.growth.add(u64::from(extension.blocks), block_bytes);
        if self.pool_left == 0 {
            self.pool_next = extension.first_entry;
        }
        self.pool_stride = extension.stride;
        self.pool_left += extension.blocks;
        self.frontier = extension.end;
    }

    /// Takes a prepared block: its table entry.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.pool_left == 0 {
            return None;
        }
        let entry = self.pool_next as u32;
        self.pool_next += self.pool_stride;
        self.pool_left -= 1;
        Some(entry)
    }

    /// A block was taken, and the next group should be begun.
    pub(super) fn is_low(&self) -> bool {
        self.growth.is_low(u64::from(self.pool_left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;
    use proptest::prelude::*;

    fn layout(block_size: u32) -> Layout {
        Layout::new(SectorCount(1 << 31), block_size, 1536).unwrap()
    }

    proptest! {
        #[test]
        fn groups_follow_each_other_aligned_and_disjoint(
            shift in 19u32..=25,
            floor in 4u64..100_000,
            gap in 0u64..200_000,
            wanted in prop::collection::vec(1u64..100, 1..6),
        ) {
            let layout = layout(1 << shift);
            let footer_at = (floor + gap) * 512;
            let mut space = Space::new(footer_at, floor * 512, footer_at + 512);
            let (mut last_end, mut dirty) = (floor * 512, footer_at + 512);
            for wanted in wanted {
                let extension = space.plan(&layout, wanted).unwrap();
                prop_assert!(u64::from(extension.blocks) <= wanted && extension.blocks > 0);
                prop_assert_eq!(extension.start, last_end);
                prop_assert_eq!(extension.old, dirty.clamp(extension.start, extension.end));
                space.begun(&extension);
                dirty = dirty.max(extension.end + 512);
                prop_assert_eq!(extension.footer.unwrap_or(space.footer_at), space.footer_at.max(extension.end));
                if let Some(footer) = extension.footer {
                    space.footer_moved(footer);
                }
                // A part of the pool is used up, the rest continues into the next group.
                space.add(&extension, layout.block_bytes());
                let expected: Vec<_> = extension.entries().collect();
                let taken: Vec<_> = core::iter::from_fn(|| space.take()).collect();
                prop_assert_eq!(&taken, &expected);
                for entry in taken {
                    let start = u64::from(entry) * 512;
                    let data = start + u64::from(layout.bitmap_bytes());
                    prop_assert!(start >= last_end && data.is_multiple_of(4096));
                    last_end = data + layout.block_bytes();
                }
                prop_assert_eq!(last_end, extension.end);
                prop_assert!(space.footer_at >= last_end);
            }
        }
    }

    #[test]
    fn a_pool_continues_into_the_next_group() {
        let layout = layout(2 << 20);
        let mut space = Space::new(8192, 8192, 8704);
        let first = space.plan(&layout, 3).unwrap();
        space.add(&first, layout.block_bytes());
        let taken = space.take();
        let second = space.plan(&layout, 2).unwrap();
        space.add(&second, layout.block_bytes());
        let expected: Vec<_> = first.entries().chain(second.entries()).collect();
        let all: Vec<_> = taken.into_iter().chain(core::iter::from_fn(|| space.take())).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn no_group_ends_beyond_two_tebibytes() {
        let layout = layout(2 << 20);
        let stride = (2 << 20) + 4096;
        let space = Space::new(0, VHD_FILE_BYTES_MAX - 3 * stride, 0);
        let extension = space.plan(&layout, 16).unwrap();
        assert_eq!(extension.blocks, 2);
        assert!(extension.end + 512 <= VHD_FILE_BYTES_MAX);
        assert!(extension.entries().all(|entry| entry != u32::MAX));
        assert!(Space::new(0, VHD_FILE_BYTES_MAX - stride, 0).plan(&layout, 16).is_none());
        assert!(Space::new(0, VHD_FILE_BYTES_MAX - 512, 0).plan(&layout, 16).is_none());
    }
}
