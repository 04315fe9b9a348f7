//! Units: what a number counts is part of its type.
//!
//! Knows sectors, logical blocks, bytes and the checked conversions between them. Does not know images, files
//! or commands.

/// Bytes in a virtual disk sector, the unit of every image format here. Not the logical block of a unit.
pub const SECTOR_BYTES: u64 = 512;

/// A 512-byte sector of a virtual disk, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sector(pub u64);

/// How many 512-byte sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SectorCount(pub u64);

/// A logical block address of a SCSI unit (512 or 4096 bytes each).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

/// How many logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockCount(pub u64);

/// A place in a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteOffset(pub u64);

/// How many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteCount(pub u64);

/// The n-th block of a VHD (2 MiB by default).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockIndex(pub u32);

/// The size of a logical block of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum BlockSize {
    #[default]
    B512,
    B4096,
}

impl BlockSize {
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// 512-byte sectors in one logical block.
    pub const fn sectors(self) -> u64 {
        self.bytes() as u64 / SECTOR_BYTES
    }

    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// A half-open run of sectors whose end never overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorRange {
    start: u64,
    end: u64,
}

impl SectorRange {
    /// `None` when the end would overflow.
    pub fn new(start: Sector, count: SectorCount) -> Option<Self> {
        let end = start.0.checked_add(count.0)?;
        Some(Self { start: start.0, end })
    }

    /// From `start` up to, not including, `end`; empty when `end` is not above `start`.
    pub fn between(start: Sector, end: Sector) -> Self {
        Self { start: start.0, end: end.0.max(start.0) }
    }

    pub fn start(self) -> Sector {
        Sector(self.start)
    }

    pub fn end(self) -> Sector {
        Sector(self.end)
    }

    pub fn count(self) -> SectorCount {
        SectorCount(self.end - self.start)
    }

    pub fn is_empty(self) -> bool {
        self.end == self.start
    }

    pub fn bytes(self) -> ByteCount {
        ByteCount((self.end - self.start).saturating_mul(SECTOR_BYTES))
    }

    /// What is left after the first `count` sectors.
    pub fn skip(self, count: SectorCount) -> Self {
        Self { start: self.start.saturating_add(count.0).min(self.end), end: self.end }
    }

    /// At most the first `count` sectors.
    pub fn take(self, count: SectorCount) -> Self {
        Self { start: self.start, end: self.start.saturating_add(count.0).min(self.end) }
    }

    /// True when both have at least one sector in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A run of logical blocks of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    pub start: Lba,
    pub count: BlockCount,
}

impl BlockRange {
    /// The same run in 512-byte sectors; `None` when it overflows.
    pub fn sectors(self, size: BlockSize) -> Option<SectorRange> {
        let start = self.start.0.checked_mul(size.sectors())?;
        let count = self.count.0.checked_mul(size.sectors())?;
        SectorRange::new(Sector(start), SectorCount(count))
    }
}

impl Sector {
    pub fn bytes(self) -> ByteOffset {
        ByteOffset(self.0.saturating_mul(SECTOR_BYTES))
    }
}

impl SectorCount {
    pub fn bytes(self) -> ByteCount {
        ByteCount(self.0.saturating_mul(SECTOR_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_ends_beyond_u64() {
        assert!(SectorRange::new(Sector(u64::MAX), SectorCount(1)).is_none());
        assert!(
            BlockRange { start: Lba(u64::MAX / 4), count: BlockCount(1) }.sectors(BlockSize::B4096).is_none()
        );
    }

    #[test]
    fn skip_and_take_split_a_range() {
        let range = SectorRange::new(Sector(10), SectorCount(6)).unwrap();
        assert_eq!(range.take(SectorCount(4)).count(), SectorCount(4));
        assert_eq!(range.skip(SectorCount(4)).start(), Sector(14));
        assert!(range.skip(SectorCount(60)).is_empty());
        assert!(!range.take(SectorCount(4)).overlaps(range.skip(SectorCount(4))));
    }
}
