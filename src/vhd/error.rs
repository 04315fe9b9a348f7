//! Why a file is not the VHD it says it is.
//!
//! Knows the structures by name and place. Does not know the file's name: the caller adds it.

use crate::units::BlockIndex;
use core::fmt;

/// A structure of a VHD file, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Structure {
    File,
    TailFooter,
    HeadFooter,
    DynamicHeader,
    ParentLocator(u8),
    Bat,
    BatEntry(BlockIndex),
    Block(BlockIndex),
    BlockBitmap(BlockIndex),
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::TailFooter => f.write_str("the footer at the end of the file"),
            Self::HeadFooter => f.write_str("the footer copy at the start of the file"),
            Self::DynamicHeader => f.write_str("the dynamic disk header"),
            Self::ParentLocator(index) => write!(f, "parent locator {index}"),
            Self::Bat => f.write_str("the block allocation table"),
            Self::BatEntry(block) => write!(f, "the table entry of block {}", block.0),
            Self::Block(block) => write!(f, "block {}", block.0),
            Self::BlockBitmap(block) => write!(f, "the bitmap of block {}", block.0),
        }
    }
}

/// One sentence's worth: which structure, where, what is wrong, what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} (byte {offset}) {kind}")]
pub struct VhdError {
    pub kind: VhdErrorKind,
    pub structure: Structure,
    pub offset: u64,
}

impl VhdError {
    pub(super) fn new(kind: VhdErrorKind, structure: Structure, offset: u64) -> Self {
        Self { kind, structure, offset }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VhdErrorKind {
    #[error("ends too early: the file is cut off; fetch it again or restore it from a copy")]
    Truncated,
    #[error("has no 'conectix' cookie: restore the file from a copy, or use it as the raw image it may be")]
    FooterCookie,
    #[error("has a wrong checksum and there is no other copy to use; restore the file from a copy")]
    FooterChecksum,
    #[error("has version {0:#010x}, not 1.0: convert the image with the tool that made it")]
    Version(u32),
    #[error("has disk type {0}, which is not fixed (2), dynamic (3) or differencing (4): convert the image")]
    DiskType(u32),
    #[error("has unknown feature bits {0:#010x}: convert the image with the tool that made it")]
    Features(u32),
    #[error(
        "says the disk has {0} bytes, which is 0, no multiple of 512 or above 2040 GiB: restore the file from a copy"
    )]
    Size(u64),
    #[error(
        "says the disk has {size} bytes but only {present} lie before the footer: the file is cut off; fetch it again or restore it from a copy"
    )]
    FixedTooShort { size: u64, present: u64 },
    #[error(
        "has no place for the dynamic disk header, or points outside the file: restore the file from a copy"
    )]
    DataOffset,
    #[error("has no 'cxsparse' cookie: repair the image, or restore it from a copy")]
    HeaderCookie,
    #[error("has a wrong checksum: repair the image, or restore it from a copy")]
    HeaderChecksum,
    #[error("has block size {0}, which is not a power of two from 512 bytes to 32 MiB: convert the image")]
    BlockSize(u32),
    #[error(
        "holds {entries} entries where the disk has {blocks} blocks: repair the image, or restore it from a copy"
    )]
    BatTooSmall { entries: u32, blocks: u64 },
    #[error("would hold {0} blocks, more than this server takes: convert the image to larger blocks")]
    TooManyBlocks(u64),
    #[error("does not fit between the header and the footer: repair the image, or restore it from a copy")]
    BatPlace,
    #[error(
        "lies outside the file's data area or over its metadata: repair the image, or restore it from a copy"
    )]
    BlockRange,
    #[error("overlaps another block: repair the image, or restore it from a copy")]
    BlockOverlap,
    #[error("cannot be read (bad length, place or UTF-16) and no other one can: repair the parent's name")]
    Locator,
    #[error("was damaged or missing; repair the image before the first write, or open it read-only")]
    NeedsRepair,
    #[error("differs from the footer at the end in what matters; repair the image before the first write")]
    FootersDiffer,
    #[error(
        "has block size {0}; only 512 KiB to 32 MiB are written: convert the image, or open it read-only"
    )]
    BlockSizeReadOnly(u32),
    #[error("is not that of a differencing disk: only a child can be emptied, its parent then shows through")]
    NotDifferencing,
}
