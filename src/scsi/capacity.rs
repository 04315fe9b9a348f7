//! READ CAPACITY parameter data (SBC-3, 5.15 and 5.16), and the geometry behind it.
//!
//! Knows block counts, sizes and provisioning bits. Does not know images.

use crate::units::{BlockRange, BlockSize, Lba};

/// How large a unit is and in what pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Logical blocks, at least one.
    pub(super) blocks: u64,
    pub(super) block_size: BlockSize,
    /// Logical blocks in a physical block, as an exponent of two (3 for 512e).
    pub(super) physical_exponent: u8,
    pub(super) thin: bool,
}

impl Geometry {
    pub(super) const fn last_lba(self) -> Lba {
        Lba(self.blocks.saturating_sub(1))
    }

    /// True when all of the range exists; an empty range may start right behind the last block (SBC-3, 4.5).
    pub(super) const fn contains(self, range: BlockRange) -> bool {
        match range.start.0.checked_add(range.count.0) {
            Some(end) => end <= self.blocks,
            None => false,
        }
    }

    pub(super) const fn physical_blocks(self) -> u32 {
        1 << self.physical_exponent
    }

    /// Logical blocks in so many bytes, at least one.
    pub(super) const fn blocks_in(self, bytes: usize) -> u32 {
        let blocks = bytes as u64 / self.block_size.bytes() as u64;
        if blocks == 0 {
            1
        } else if blocks > u32::MAX as u64 {
            u32::MAX
        } else {
            blocks as u32
        }
    }

    /// READ CAPACITY(10): a unit whose last block needs more than 32 bits answers FFFFFFFFh.
    pub(super) fn capacity10(self) -> Vec<u8> {
        let last = u32::try_from(self.last_lba().0).unwrap_or(u32::MAX);
        let mut data = Vec::with_capacity(8);
        data.extend(last.to_be_bytes());
        data.extend(self.block_size.bytes().to_be_bytes());
        data
    }

    /// READ CAPACITY(16): LBPME and LBPRZ for thin units, LBPPBE always.
    pub(super) fn capacity16(self) -> Vec<u8> {
        let mut data = vec![0; 32];
        data[..8].copy_from_slice(&self.last_lba().0.to_be_bytes());
        data[8..12].copy_from_slice(&self.block_size.bytes().to_be_bytes());
        data[13] = self.physical_exponent & 0x0F;
        if self.thin {
            data[14] = 0xC0;
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockCount;

    const SMALL: Geometry =
        Geometry { blocks: 1000, block_size: BlockSize::B512, physical_exponent: 3, thin: true };

    #[test]
    fn capacity10_of_a_large_unit_is_all_ones() {
        assert_eq!(SMALL.capacity10(), [0, 0, 3, 0xE7, 0, 0, 2, 0]);
        let large = Geometry { blocks: 1 << 32, ..SMALL };
        assert_eq!(large.capacity10()[..4], [0xFF; 4]);
        let larger = Geometry { blocks: (1 << 32) + 1, ..SMALL };
        assert_eq!(larger.capacity10()[..4], [0xFF; 4]);
    }

    #[test]
    fn capacity16_tells_provisioning_and_physical_blocks() {
        let data = SMALL.capacity16();
        assert_eq!(data[..16], [0, 0, 0, 0, 0, 0, 3, 0xE7, 0, 0, 2, 0, 0, 3, 0xC0, 0]);
        assert_eq!(data.len(), 32);
        assert_eq!(Geometry { thin: false, ..SMALL }.capacity16()[14], 0);
    }

    #[test]
    fn ranges_end_at_the_capacity() {
        let range = |start, count| BlockRange { start: Lba(start), count: BlockCount(count) };
        assert!(SMALL.contains(range(0, 1000)));
        assert!(SMALL.contains(range(1000, 0)));
        assert!(!SMALL.contains(range(1001, 0)));
        assert!(!SMALL.contains(range(999, 2)));
        assert!(!SMALL.contains(range(u64::MAX, 2)));
    }
}
