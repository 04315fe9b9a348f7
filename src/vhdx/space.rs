//! Space for new blocks: prepared in groups behind everything the file holds.
//!
//! Knows where the next group goes and how much of it is free. Does not know who needs space or in which order files
//! change (`commit`).

use super::MIB;
use crate::growth::Growth;
use crate::limits::VHDX_FILE_BYTES_MAX;

/// A group of space to prepare: whole MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extension {
    pub(super) start: u64,
    pub(super) end: u64,
    /// What of it may hold bytes of an earlier life and must be zeroed; the rest is new.
    pub(super) old: u64,
    /// The file must become longer.
    pub(super) longer: bool,
}

/// The end of an open file.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Bytes the file is known to have.
    pub(super) file_len: u64,
    /// Behind this nothing was ever written: what the file may have grown to, even by an attempt that failed.
    touched: u64,
    growth: Growth,
    /// Prepared space: zeros that nobody refers to.
    next: u64,
    end: u64,
    /// The file was made longer since it was opened.
    pub(super) extended: bool,
}

impl Space {
    /// `floor`: the end of everything the file refers to, in whole MiB.
    pub(super) fn new(file_len: u64, floor: u64) -> Self {
        Self {
            file_len,
            touched: file_len,
            growth: Growth::default(),
            next: floor,
            end: floor,
            extended: false,
        }
    }

    /// The next group: `blocks` of `block_bytes`, as far as they are wanted, and `more` bytes. `None` when the file would
    /// become too long.
    pub(super) fn plan(&self, block_bytes: u64, wanted: u64, more: u64) -> Option<Extension> {
        let group = self.growth.group(block_bytes).min(wanted.max(1));
        let end = self.end + group * block_bytes + more;
        (end <= VHDX_FILE_BYTES_MAX).then_some(Extension {
            start: self.end,
            end,
            old: self.touched.clamp(self.end, end),
            longer: end > self.file_len,
        })
    }

    /// An extension is tried: whatever becomes of it, its bytes are no longer known to be new.
    pub(super) fn begun(&mut self, extension: &Extension) {
        self.touched = self.touched.max(extension.end);
    }

    /// The group is zero and the file reaches to its end.
    pub(super) fn add(&mut self, extension: &Extension, block_bytes: u64) {
        self.growth.add((extension.end - extension.start) / block_bytes, block_bytes);
        self.end = extension.end;
        if extension.longer {
            self.file_len = extension.end;
            self.extended = true;
        }
    }

    /// Bytes that can be taken.
    pub(super) fn left(&self) -> u64 {
        self.end - self.next
    }

    /// A block was taken, and the next group should be begun.
    pub(super) fn is_low(&self, block_bytes: u64) -> bool {
        self.growth.is_low(self.left() / block_bytes)
    }

    /// Takes so many bytes, whole MiB: where they begin, in MiB.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u32> {
        if self.left() < bytes {
            return None;
        }
        // Files end below 2^27 MiB.
        let mib = (self.next / MIB) as u32;
        self.next += bytes;
        Some(mib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn groups_follow_each_other_and_old_bytes_are_zeroed(
            shift in 0u32..=8,
            floor in 4u64..1000,
            tail in 0u64..300 << 20,
            steps in prop::collection::vec((1u64..100, any::<bool>()), 1..12),
        ) {
            let block = MIB << shift;
            let mut space = Space::new(floor * MIB + tail, floor * MIB);
            let (mut end, mut dirty) = (floor * MIB, floor * MIB + tail);
            for (wanted, works) in steps {
                let extension = space.plan(block, wanted, MIB).unwrap();
                prop_assert_eq!(extension.start, end);
                prop_assert!(extension.end - extension.start <= wanted * block + MIB);
                prop_assert!(extension.old >= dirty.min(extension.end) && extension.old <= extension.end);
                space.begun(&extension);
                dirty = dirty.max(extension.end);
                if works {
                    space.add(&extension, block);
                    end = extension.end;
                    prop_assert!(space.file_len >= end);
                }
            }
            while let Some(mib) = space.take(block) {
                prop_assert!(u64::from(mib) * MIB >= floor * MIB && u64::from(mib) * MIB + block <= end);
            }
            prop_assert!(space.left() < block);
        }
    }

    #[test]
    fn no_group_ends_beyond_the_longest_file() {
        assert!(Space::new(0, VHDX_FILE_BYTES_MAX - MIB).plan(MIB, 1, 0).is_some());
        assert!(Space::new(0, VHDX_FILE_BYTES_MAX - MIB).plan(MIB, 1, MIB).is_none());
    }
}
