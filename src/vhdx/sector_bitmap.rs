//! Pages of sector bitmaps: which logical sectors of a block that is there in part this file holds.
//!
//! Knows bits and runs. Does not know where a page lies (`layout`).
//!
//! The least significant bit of byte 0 is the first sector (the other way round than in a VHD), so a little-endian
//! word has its first sector at the bottom and runs are found with `trailing_zeros`.

use super::PAGE_BYTES;
use super::layout::PAGE_BITS;

const WORDS: usize = PAGE_BYTES / 8;

/// One bit for each of 32768 logical sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapPage {
    words: Box<[u64; WORDS]>,
}

impl Default for BitmapPage {
    fn default() -> Self {
        Self::empty()
    }
}

impl BitmapPage {
    /// All bits clear.
    pub fn empty() -> Self {
        Self { words: Box::new([0; WORDS]) }
    }

    /// From the bytes of a file; missing bytes are clear bits.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut page = Self::empty();
        for (word, chunk) in page.words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(chunk);
            *word = u64::from_le_bytes(eight);
        }
        page
    }

    /// The 4096 bytes of the page, appended to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// The run that starts at bit `at`: whether it is set, and its length, at most `max` (at least 1). Beyond the page
    /// all is clear.
    pub fn run_at(&self, at: u32, max: u32) -> (bool, u32) {
        let word = |index: u32| self.words.get(index as usize).copied().unwrap_or(0);
        let set = word(at / 64) >> (at % 64) & 1 == 1;
        let flip = if set { u64::MAX } else { 0 };
        let mut len = 0;
        while len < max {
            let position = at + len;
            let left_in_word = 64 - position % 64;
            let same = ((word(position / 64) ^ flip) >> (position % 64)).trailing_zeros().min(left_in_word);
            len += same;
            if same < left_in_word {
                break;
            }
        }
        (set, len.min(max))
    }

    /// Sets the bits of `at..at + count`; beyond the page nothing happens.
    pub fn set(&mut self, at: u32, count: u32) {
        let end = at.saturating_add(count).min(PAGE_BITS);
        let mut at = at;
        while at < end {
            let here = (end - at).min(64 - at % 64);
            if let Some(word) = self.words.get_mut((at / 64) as usize) {
                *word |= (u64::MAX >> (64 - here)) << (at % 64);
            }
            at += here;
        }
    }

    /// Clears the bits of `at..at + count`.
    pub fn unset(&mut self, at: u32, count: u32) {
        let end = at.saturating_add(count).min(PAGE_BITS);
        let mut at = at;
        while at < end {
            let here = (end - at).min(64 - at % 64);
            if let Some(word) = self.words.get_mut((at / 64) as usize) {
                *word &= !((u64::MAX >> (64 - here)) << (at % 64));
            }
            at += here;
        }
    }

    /// True when every bit of `at..at + count` is set.
    pub fn all_set(&self, at: u32, count: u32) -> bool {
        count == 0 || self.run_at(at, count) == (true, count)
    }

    /// Sets every bit that `other` has.
    pub fn merge(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(other.words.iter()) {
            *word |= more;
        }
    }

    /// Sets those of `at..at + count` that `other` lacks.
    pub fn set_missing(&mut self, at: u32, count: u32, other: &Self) {
        let end = at.saturating_add(count).min(PAGE_BITS);
        let mut at = at;
        while at < end {
            let here = (end - at).min(64 - at % 64);
            let index = (at / 64) as usize;
            if let (Some(word), Some(known)) = (self.words.get_mut(index), other.words.get(index)) {
                *word |= (u64::MAX >> (64 - here)) << (at % 64) & !known;
            }
            at += here;
        }
    }

    /// Clears every bit that `other` has.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(other.words.iter()) {
            *word &= !less;
        }
    }

    /// Clears every bit.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// True when no bit is set.
    pub fn is_clear(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many bits are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_sector_is_the_bottom_bit_of_byte_0() {
        let mut page = BitmapPage::empty();
        page.set(0, 1);
        page.set(9, 1);
        let mut bytes = Vec::new();
        page.encode(&mut bytes);
        assert_eq!((bytes.len(), &bytes[..3]), (4096, &[1, 2, 0][..]));
        assert_eq!(BitmapPage::from_bytes(&bytes), page);
    }

    proptest! {
        #[test]
        fn runs_and_sets_agree_with_a_slow_bitmap(
            sets in prop::collection::vec((0u32..PAGE_BITS, 1u32..9000, 0u32..3), 0..12),
            probes in prop::collection::vec((0u32..PAGE_BITS, 1u32..PAGE_BITS), 1..40),
        ) {
            let mut page = BitmapPage::empty();
            let mut slow = vec![false; PAGE_BITS as usize];
            for (at, count, kind) in sets {
                if kind == 0 { page.unset(at, count) } else { page.set(at, count) }
                slow[at as usize..(at + count).min(PAGE_BITS) as usize].fill(kind != 0);
            }
            for (at, max) in probes {
                let max = max.min(PAGE_BITS - at);
                let first = slow[at as usize];
                let len = slow[at as usize..(at + max) as usize].iter().take_while(|bit| **bit == first).count();
                prop_assert_eq!(page.run_at(at, max), (first, len as u32));
            }
            prop_assert_eq!(page.count(), slow.iter().filter(|bit| **bit).count() as u64);
        }
    }
}
