//! How much space an image prepares at once for the blocks to come: little at first, more the more it is used.
//!
//! Knows bytes. Does not know where they lie (`vhd::space`, `vhdx::space`) nor when the file learns of them (`commit`).
//!
//! Each group costs a flush before its blocks can be handed out. Were all groups as small as the first, an image that grows
//! by one block a write would flush every few writes; with groups as large as all that came before them, it flushes a few
//! times altogether, and at most as much as is used lies unused until the image is closed: holes, but for their bitmaps.

use crate::limits::{EXTEND_BLOCKS_MAX, EXTEND_BYTES, EXTEND_BYTES_MAX};

/// What was prepared since the image was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Growth {
    bytes: u64,
    /// Blocks of the last group.
    last: u64,
}

impl Growth {
    /// Blocks of the next group: at least one.
    pub fn group(&self, block_bytes: u64) -> u64 {
        (self.bytes.clamp(EXTEND_BYTES, EXTEND_BYTES_MAX) / block_bytes).clamp(1, EXTEND_BLOCKS_MAX)
    }

    /// A group was prepared.
    pub fn add(&mut self, blocks: u64, block_bytes: u64) {
        self.bytes += blocks * block_bytes;
        self.last = blocks;
    }

    /// With so many blocks left, now, the next group is begun, so that few writes wait for it. True at two moments of a
    /// group: where the first attempt found no space, the second comes with the last block.
    pub fn is_low(&self, left: u64) -> bool {
        left == 0 || left == self.last / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_double_what_there_is_up_to_a_bound() {
        let mut growth = Growth::default();
        let mut groups = Vec::new();
        for _ in 0..9 {
            let blocks = growth.group(2 << 20);
            growth.add(blocks, 2 << 20);
            groups.push(blocks);
        }
        assert_eq!(groups, [16, 16, 32, 64, 128, 256, 512, 512, 512]);
        assert_eq!(Growth::default().group(512 << 10), 64);
        assert_eq!(Growth::default().group(256 << 20), 1);
    }

    #[test]
    fn the_next_group_is_begun_with_a_quarter_left_and_with_nothing_left() {
        let mut growth = Growth::default();
        growth.add(64, 1 << 20);
        let low: Vec<u64> = (0..64).rev().filter(|left| growth.is_low(*left)).collect();
        assert_eq!(low, [16, 0]);
    }
}
