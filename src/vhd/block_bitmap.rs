//! The sector bitmap of a block: which of its sectors this file holds.
//!
//! Knows bits and runs. Does not know where a bitmap lies or whether its bits are stable.
//!
//! The most significant bit of byte 0 is the first sector, so a big-endian word has its first sector on top and runs
//! are found with `leading_zeros`.

use crate::units::SECTOR_BYTES;

/// Words of one 512-byte sector of a bitmap.
pub(super) const WORDS_PER_SECTOR: usize = SECTOR_BYTES as usize / 8;

/// One bit per sector of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockBitmap {
    words: Box<[u64]>,
}

impl BlockBitmap {
    /// All bits clear, for a block of `sectors`.
    pub fn empty(sectors: u32) -> Self {
        Self { words: vec![0; sectors.div_ceil(64) as usize].into_boxed_slice() }
    }

    /// From the bytes of a file; missing bytes are clear bits, bits beyond `sectors` are dropped.
    pub fn from_bytes(sectors: u32, bytes: &[u8]) -> Self {
        let mut bitmap = Self::empty(sectors);
        for (word, chunk) in bitmap.words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(chunk);
            *word = u64::from_be_bytes(eight);
        }
        if !sectors.is_multiple_of(64)
            && let Some(last) = bitmap.words.last_mut()
        {
            *last &= mask(0, sectors % 64);
        }
        bitmap
    }

    /// The run that starts at sector `at`: whether it is present, and its length, at most `max` (at least 1).
    pub fn run_at(&self, at: u32, max: u32) -> (bool, u32) {
        let word = |index: u32| self.words.get(index as usize).copied().unwrap_or(0);
        let present = word(at / 64) << (at % 64) >> 63 == 1;
        let flip = if present { u64::MAX } else { 0 };
        let mut len = 0;
        while len < max {
            let position = at + len;
            let left_in_word = 64 - position % 64;
            let same = ((word(position / 64) ^ flip) << (position % 64)).leading_zeros().min(left_in_word);
            len += same;
            if same < left_in_word {
                break;
            }
        }
        (present, len.min(max))
    }

    /// True when every sector of `at..at + count` is present.
    pub fn all_set(&self, at: u32, count: u32) -> bool {
        count == 0 || self.run_at(at, count) == (true, count)
    }

    /// True when no bit is set.
    pub fn is_clear(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Sets the bits of `at..at + count`; beyond the block nothing happens.
    pub fn set(&mut self, at: u32, count: u32) {
        let mut at = at;
        let mut left = count;
        while left > 0 {
            let here = left.min(64 - at % 64);
            if let Some(word) = self.words.get_mut((at / 64) as usize) {
                *word |= mask(at % 64, here);
            }
            at += here;
            left -= here;
        }
    }

    /// Sets the bits of `at..at + count` that `have` does not have.
    pub fn set_missing(&mut self, at: u32, count: u32, have: &Self) {
        let (mut at, mut left) = (at, count);
        while left > 0 {
            let here = left.min(64 - at % 64);
            let index = (at / 64) as usize;
            if let (Some(word), Some(have)) = (self.words.get_mut(index), have.words.get(index)) {
                *word |= mask(at % 64, here) & !have;
            }
            at += here;
            left -= here;
        }
    }

    /// Sets every bit that `other` has.
    pub fn merge(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Clears every bit.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Appends the 512 bytes of the bitmap's sector `index` to `bytes`: the bits of `self` that `without` does not
    /// have, and those of `more`.
    pub fn encode_sector(&self, without: &Self, more: &Self, index: usize, bytes: &mut Vec<u8>) {
        for at in index * WORDS_PER_SECTOR..(index + 1) * WORDS_PER_SECTOR {
            let word = |bitmap: &Self| bitmap.words.get(at).copied().unwrap_or(0);
            bytes.extend_from_slice(&(word(self) & !word(without) | word(more)).to_be_bytes());
        }
    }

    /// The 512-byte sectors of the bitmap that hold a set bit.
    pub fn sectors_with_bits(&self) -> impl Iterator<Item = usize> {
        self.words
            .chunks(WORDS_PER_SECTOR)
            .enumerate()
            .filter(|(_, words)| words.iter().any(|word| *word != 0))
            .map(|(index, _)| index)
    }

    /// How many bits are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// `count` ones (1 to 64) whose first is `start` places below the top.
fn mask(start: u32, count: u32) -> u64 {
    (u64::MAX << (64 - count)) >> start
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_sector_is_the_top_bit_of_byte_0() {
        let mut bitmap = BlockBitmap::empty(4096);
        bitmap.set(0, 1);
        bitmap.set(9, 1);
        let mut bytes = Vec::new();
        let none = BlockBitmap::empty(4096);
        bitmap.encode_sector(&none, &none, 0, &mut bytes);
        assert_eq!((bytes.len(), &bytes[..3]), (512, &[0x80, 0x40, 0][..]));
        assert_eq!(BlockBitmap::from_bytes(4096, &bytes), bitmap);
    }

    #[test]
    fn bits_beyond_a_tiny_block_are_dropped() {
        assert_eq!(BlockBitmap::from_bytes(1, &[0xFF; 512]).count(), 1);
        assert_eq!(BlockBitmap::from_bytes(8, &[0xFF; 512]).run_at(0, 8), (true, 8));
    }

    proptest! {
        #[test]
        fn runs_and_sets_agree_with_a_slow_bitmap(
            sets in prop::collection::vec((0u32..1024, 1u32..300), 0..12),
            probes in prop::collection::vec((0u32..1024, 1u32..1024), 1..40),
        ) {
            let mut bitmap = BlockBitmap::empty(1024);
            let mut slow = vec![false; 1024];
            for (at, count) in sets {
                let count = count.min(1024 - at);
                bitmap.set(at, count);
                slow[at as usize..(at + count) as usize].fill(true);
            }
            for (at, max) in probes {
                let max = max.min(1024 - at);
                let first = slow[at as usize];
                let len = slow[at as usize..(at + max) as usize].iter().take_while(|bit| **bit == first).count();
                prop_assert_eq!(bitmap.run_at(at, max), (first, len as u32));
                let all = slow[at as usize..(at + max) as usize].iter().all(|bit| *bit);
                prop_assert_eq!(bitmap.all_set(at, max), all);
            }
            prop_assert_eq!(bitmap.count(), slow.iter().filter(|bit| **bit).count() as u64);
        }
    }
}
