//! Why a file is not the VHDX it says it is.
//!
//! Knows the structures by name and place. Does not know the file's name: the caller adds it.

use core::fmt;
use uuid::Uuid;

/// A structure of a VHDX file, for messages. Copies count from 1, as the specification does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Structure {
    File,
    FileIdentifier,
    Header(u8),
    RegionTable(u8),
    MetadataTable,
    /// An item of the metadata, by its name.
    Metadata(&'static str),
    Bat,
    Block(u32),
    /// The sector bitmap of a chunk of blocks.
    SectorBitmap(u32),
    Log,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::FileIdentifier => f.write_str("the file identifier"),
            Self::Header(copy) => write!(f, "header {copy}"),
            Self::RegionTable(copy) => write!(f, "region table {copy}"),
            Self::MetadataTable => f.write_str("the metadata table"),
            Self::Metadata(name) => write!(f, "the metadata item \"{name}\""),
            Self::Bat => f.write_str("the block allocation table"),
            Self::Block(block) => write!(f, "block {block}"),
            Self::SectorBitmap(chunk) => write!(f, "sector bitmap {chunk}"),
            Self::Log => f.write_str("the log"),
        }
    }
}

/// One sentence's worth: which structure, where, what is wrong, what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} (byte {offset}) {kind}")]
pub struct VhdxError {
    pub kind: VhdxErrorKind,
    pub structure: Structure,
    pub offset: u64,
}

impl VhdxError {
    pub(super) fn new(kind: VhdxErrorKind, structure: Structure, offset: u64) -> Self {
        Self { kind, structure, offset }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VhdxErrorKind {
    #[error("ends too early: the file is cut off; fetch it again or restore it from a copy")]
    Truncated,
    #[error("is larger than 128 TiB, which no VHDX needs: restore the file from a copy")]
    FileTooLarge,
    #[error("does not begin with 'vhdxfile': this is not a VHDX file, rename it if it is another image")]
    Identifier,
    #[error("has a wrong signature or checksum, and so has its copy: restore the file from a copy")]
    NoHeader,
    #[error(
        "has the same sequence number as the other header and differs from it: restore the file from a copy"
    )]
    HeadersEqual,
    #[error("has version {0}, not 1: convert the image with the tool that made it")]
    Version(u16),
    #[error("has log version {0}, not 0, and its log is not empty: open it once with the tool that made it")]
    LogVersion(u16),
    #[error(
        "says the log lies at byte {offset} with {len} bytes, which is no place for it: restore the file from a copy"
    )]
    LogPlace { offset: u64, len: u32 },
    #[error("has a wrong signature or checksum, and so has its copy: restore the file from a copy")]
    NoRegionTable,
    #[error("holds {0} entries, more than 2047: restore the file from a copy")]
    TooManyEntries(u32),
    #[error(
        "needs a region {0} that this program does not know: convert the image with the tool that made it"
    )]
    UnknownRegion(Uuid),
    #[error("names the {0} region twice or not at all: restore the file from a copy")]
    RegionCount(&'static str),
    #[error(
        "puts a region outside the file, off its 1 MiB grid, or over another one: fetch the file again, or restore it from a copy"
    )]
    RegionPlace,
    #[error("has no 'metadata' signature: restore the file from a copy")]
    MetadataSignature,
    #[error(
        "needs an item {0} that this program does not know: convert the image with the tool that made it"
    )]
    UnknownItem(Uuid),
    #[error("has an entry that is there twice or lies outside its region: restore the file from a copy")]
    ItemPlace,
    #[error("is missing: restore the file from a copy")]
    ItemMissing,
    #[error("has {0} bytes, which is not its size: restore the file from a copy")]
    ItemLength(u32),
    #[error("says {0}, which is not a power of two from 1 MiB to 256 MiB: convert the image")]
    BlockSize(u32),
    #[error("has unknown flags {0:#x}: convert the image with the tool that made it")]
    Flags(u32),
    #[error(
        "says {0} bytes, which is 0, no whole number of logical sectors or above 64 TiB: restore the file from a copy"
    )]
    DiskSize(u64),
    #[error("says {0}, and sectors have 512 or 4096 bytes: convert the image with the tool that made it")]
    SectorSize(u32),
    #[error("is of type {0}, not a parent that is a VHDX: convert the image with the tool that made it")]
    LocatorType(Uuid),
    #[error("cannot be read (bad place, length, text or identifier): restore the file from a copy")]
    Locator,
    #[error("names no path that leads to a parent: restore the file from a copy")]
    LocatorPath,
    #[error("has {room} entries where the disk needs {needed}: restore the file from a copy")]
    BatTooSmall { room: u64, needed: u64 },
    #[error("has state {0}, which this kind of disk cannot have: restore the file from a copy")]
    BlockState(u8),
    #[error("has bits set that must be clear: restore the file from a copy")]
    BlockBits,
    #[error(
        "lies at byte {0}, outside the file or before its data: fetch the file again, or restore it from a copy"
    )]
    BlockRange(u64),
    #[error("lies at byte {0}, over another block or a table: restore the file from a copy")]
    BlockOverlap(u64),
    #[error(
        "is present in part, and the sector bitmap that says which is not there: restore the file from a copy"
    )]
    NoSectorBitmap,
    #[error("holds no whole sequence of entries although it is not empty: restore the file from a copy")]
    LogNoSequence,
    #[error(
        "has {0} bytes to be looked at, more than are replayed here: open it once with the tool that made it"
    )]
    LogTooLong(u32),
    #[error(
        "was written when the file had at least {flushed} bytes, now it has {len}: fetch it again, or restore it from a copy"
    )]
    LogFileShort { flushed: u64, len: u64 },
    #[error(
        "holds a change of byte {0}, where the log may not change anything: restore the file from a copy"
    )]
    LogTarget(u64),
    #[error(
        "holds changes of guest data, which only a replay into the file can show: open it for writing once"
    )]
    LogData,
    #[error(
        "holds changes that a crash left behind: they must be written into the file before it is opened for writing"
    )]
    LogPending,
    #[error(
        "is no child of another image, and nothing else can be emptied: serve it with durability persistent"
    )]
    NotDifferencing,
}
