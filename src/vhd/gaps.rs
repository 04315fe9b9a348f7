//! What lies between the parts of a file that something refers to.
//!
//! Knows ranges. Does not know what is in a gap: prepared blocks, blocks a crash lost, another writer's secrets.

use super::bat::FileRange;
use super::layout::Layout;

/// Blocks and tables begin at multiples of this in our files: a shorter gap is padding.
pub(super) const ALIGN: u64 = 4096;

/// The gaps of at least `ALIGN` bytes between `parts`, which are sorted here, and before `end`.
pub(super) fn gaps(mut parts: Vec<FileRange>, end: u64) -> Vec<FileRange> {
    parts.sort_unstable_by_key(|part| part.start);
    parts.push(FileRange { start: end, end });
    let mut gaps = Vec::new();
    let mut at = 0;
    for part in parts {
        let start = part.start.min(end);
        if start >= at + ALIGN {
            gaps.push(FileRange { start: at, end: start });
        }
        at = at.max(part.end);
    }
    gaps
}

/// The first places of whole blocks in a gap, data at multiples of `ALIGN` as in our own files, else side by side:
/// whichever finds more.
pub(super) fn slots(gap: FileRange, layout: &Layout) -> Vec<u64> {
    let (bitmap, data) = (u64::from(layout.bitmap_bytes()), layout.block_bytes());
    let place = |align: u64| {
        let mut starts = Vec::new();
        let mut at = gap.start;
        loop {
            let data_at = (at + bitmap).next_multiple_of(align);
            if data_at + data > gap.end {
                return starts;
            }
            starts.push(data_at - bitmap);
            at = data_at + data;
        }
    };
    let (aligned, dense) = (place(ALIGN), place(512));
    if dense.len() > aligned.len() { dense } else { aligned }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;

    fn range(start: u64, end: u64) -> FileRange {
        FileRange { start, end }
    }

    #[test]
    fn padding_is_no_gap() {
        let parts = vec![range(0, 512), range(20_000, 30_000), range(512, 1536), range(5631, 8192)];
        assert_eq!(gaps(parts, 34_095), [range(8192, 20_000)]);
        assert_eq!(gaps(vec![], 4096), [range(0, 4096)]);
        assert_eq!(gaps(vec![range(0, 9000)], 5000), []);
    }

    #[test]
    fn a_gap_holds_as_many_blocks_as_fit() {
        let layout = Layout::new(SectorCount(1 << 20), 512 << 10, 1536).unwrap();
        let stored = 512 + (512 << 10);
        assert_eq!(slots(range(8192, 8192 + 4096 + (512 << 10)), &layout), [8192 + 3584]);
        assert_eq!(slots(range(512, 512 + 2 * stored), &layout), [512, 512 + stored]);
        assert!(slots(range(0, stored - 1), &layout).is_empty());
    }
}
