//! Some pages of one frame, as bits.
//!
//! Knows sixteen pages. Does not know what is in them.

use core::sync::atomic::{AtomicU16, Ordering};

use super::frames::{FILLING, PAGE_BYTES, PAGES};

/// Some pages of a frame, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSet(pub(super) u16);

impl PageSet {
    pub const NONE: Self = Self(0);

    /// The pages that `len` bytes at `start` of a frame touch. What lies beyond the frame is ignored.
    pub fn touched(start: u32, len: u32) -> Self {
        let first = (start / PAGE_BYTES as u32).min(PAGES);
        let end = start.saturating_add(len).div_ceil(PAGE_BYTES as u32).min(PAGES);
        Self::run(first, end.saturating_sub(first))
    }

    /// The pages whose first byte is among the `len` bytes at `start`. However small its steps, a pass over a frame
    /// begins each page once.
    pub fn begun(start: u32, len: u32) -> Self {
        let first = start.div_ceil(PAGE_BYTES as u32).min(PAGES);
        let end = start.saturating_add(len).div_ceil(PAGE_BYTES as u32).min(PAGES);
        Self::run(first, end.saturating_sub(first))
    }

    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Bytes of all of them.
    pub fn bytes(self) -> u64 {
        u64::from(self.count()) * PAGE_BYTES as u64
    }

    pub(super) fn run(first: u32, count: u32) -> Self {
        Self((((1_u32 << count) - 1) << first) as u16)
    }

    /// Adds these pages to a shared set: those that were not in it.
    pub fn newly_in(self, set: &AtomicU16) -> Self {
        self.without(Self(set.fetch_or(self.0, Ordering::Relaxed)))
    }

    /// True when some of them are in a shared set.
    pub fn meets_shared(self, set: &AtomicU16) -> bool {
        self.meets(Self(set.load(Ordering::Relaxed)))
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn valid_of(word: u64) -> Self {
        Self(word as u16)
    }

    pub(super) fn filling_of(word: u64) -> Self {
        Self((word >> FILLING) as u16)
    }

    pub(super) fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Its lowest unbroken run.
    pub(super) fn first_run(self) -> (u32, u32) {
        let first = self.0.trailing_zeros();
        (first, (self.0 >> first).trailing_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::FRAME_BYTES;

    #[test]
    fn touched_pages_are_those_of_the_first_and_last_byte() {
        assert_eq!(PageSet::touched(0, 1), PageSet(1));
        assert_eq!(PageSet::touched(4095, 2), PageSet(3));
        assert_eq!(PageSet::touched(FRAME_BYTES as u32 - 1, 1), PageSet(1 << 15));
        assert_eq!(PageSet::touched(0, FRAME_BYTES as u32), PageSet(u16::MAX));
        assert_eq!(PageSet::touched(8192, 0), PageSet::NONE);
    }

    #[test]
    fn a_pass_in_any_steps_begins_each_page_once() {
        for step in [512, 4096, 6144, 65536] {
            let begun = (0..FRAME_BYTES as u32).step_by(step as usize).map(|at| PageSet::begun(at, step));
            let (mut all, mut times) = (0, 0);
            for pages in begun {
                assert_eq!(all & pages.0, 0, "in steps of {step}");
                all |= pages.0;
                times += pages.count();
            }
            assert_eq!((all, times), (u16::MAX, 16));
        }
    }
}
