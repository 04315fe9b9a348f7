//! What a log adds to a file that may not be changed: bytes that are read instead of the file's.
//!
//! Knows ranges and their newest content. Does not know where they come from (`log`).

use super::PAGE_BYTES;
use std::collections::BTreeMap;

/// What a range holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Zero,
    Page(Box<[u8; PAGE_BYTES]>),
}

/// Ranges that do not overlap, all at multiples of 4 KiB.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    /// By start: the end, and what is there.
    parts: BTreeMap<u64, (u64, Content)>,
}

impl Overlay {
    /// Every range, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64, &Content)> {
        self.parts.iter().map(|(start, (end, content))| (*start, *end, content))
    }

    pub(super) fn put_page(&mut self, start: u64, page: Box<[u8; PAGE_BYTES]>) {
        let end = start.saturating_add(PAGE_BYTES as u64);
        self.cut(start, end);
        self.parts.insert(start, (end, Content::Page(page)));
    }

    pub(super) fn put_zeros(&mut self, start: u64, end: u64) {
        if start < end {
            self.cut(start, end);
            self.parts.insert(start, (end, Content::Zero));
        }
    }

    /// Forgets what lies in `start..end`. Only zeros are ever cut in two: pages lie on the grid.
    fn cut(&mut self, start: u64, end: u64) {
        if let Some((_, (before_end, content))) = self.parts.range_mut(..start).next_back()
            && *before_end > start
        {
            let (tail_end, tail) = (*before_end, content.clone());
            *before_end = start;
            if tail_end > end {
                self.parts.insert(end, (tail_end, tail));
            }
        }
        while let Some((at, (part_end, _))) = self.parts.range(start..end).next() {
            let (at, part_end) = (*at, *part_end);
            if let Some((_, content)) = self.parts.remove(&at)
                && part_end > end
            {
                self.parts.insert(end, (part_end, content));
            }
        }
    }

    /// Puts what the log says over `bytes`, which were read from `offset` of the file.
    pub(super) fn patch(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        for (start, (part_end, content)) in self.touching(offset, end) {
            let (from, to) = ((*start).max(offset), (*part_end).min(end));
            let Some(place) = bytes.get_mut((from - offset) as usize..(to - offset) as usize) else {
                continue;
            };
            match content {
                Content::Zero => place.fill(0),
                Content::Page(page) => {
                    if let Some(new) = page.get((from - start) as usize..(to - start) as usize) {
                        place.copy_from_slice(new);
                    }
                }
            }
        }
    }

    fn touching(&self, offset: u64, end: u64) -> impl Iterator<Item = (&u64, &(u64, Content))> {
        let before =
            self.parts.range(..offset).next_back().filter(move |(_, (part_end, _))| *part_end > offset);
        before.into_iter().chain(self.parts.range(offset..end.max(offset)))
    }

    /// True when a page of the log lies in the range.
    pub(super) fn has_page_in(&self, offset: u64, end: u64) -> bool {
        self.touching(offset, end).any(|(_, (_, content))| matches!(content, Content::Page(_)))
    }

    /// Whether the bytes at `offset` are zeros of the log, and how many of `len` are alike.
    pub(super) fn zeros_at(&self, offset: u64, len: u64) -> (bool, u64) {
        let end = offset.saturating_add(len);
        match self.touching(offset, end).find(|(_, (_, content))| *content == Content::Zero) {
            None => (false, len),
            Some((start, (part_end, _))) if *start <= offset => (true, (*part_end).min(end) - offset),
            Some((start, _)) => (false, start - offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_agree_with_a_file_that_was_changed(
            changes in prop::collection::vec((0u64..32, 1u64..12, any::<bool>(), any::<u8>()), 0..24),
            reads in prop::collection::vec((0u64..32 * 4096, 1usize..9000), 1..20),
        ) {
            let original: Vec<u8> = (0..64 * 4096).map(|at| (at / 512) as u8 | 1).collect();
            let mut changed = original.clone();
            let mut zeroed = vec![false; original.len()];
            let mut overlay = Overlay::default();
            for (page, count, zero, byte) in changes {
                let start = page * 4096;
                if zero {
                    overlay.put_zeros(start, start + count * 4096);
                    changed[start as usize..(start + count * 4096) as usize].fill(0);
                    zeroed[start as usize..(start + count * 4096) as usize].fill(true);
                } else {
                    overlay.put_page(start, Box::new([byte; 4096]));
                    changed[start as usize..start as usize + 4096].fill(byte);
                    zeroed[start as usize..start as usize + 4096].fill(false);
                }
            }
            for (at, len) in reads {
                let mut bytes = original[at as usize..at as usize + len].to_vec();
                overlay.patch(at, &mut bytes);
                prop_assert!(bytes == changed[at as usize..at as usize + len]);
                let (zero, run) = overlay.zeros_at(at, len as u64);
                let alike = zeroed[at as usize..at as usize + len].iter().take_while(|z| **z == zero).count();
                prop_assert!(zeroed[at as usize] == zero && run > 0 && run <= alike as u64);
            }
        }
    }
}
