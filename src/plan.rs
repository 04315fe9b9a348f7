//! Plans: where bytes live, and what must happen to them. The vocabulary between formats, cache and shard.
//!
//! Knows file slots, extents and the steps of a metadata commit. Does not know who computes them or who runs them.
//!
//! A translator (`image`) fills a plan; it never moves a byte. The shard (or a blocking tool) runs it.

use crate::units::{BlockIndex, ByteOffset, SectorCount};

/// A file of the shard's table. The translator never opens anything: slots are given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileSlot(pub u32);

/// A layer of the shard's `image::Images`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub u32);

/// Where one run of a read comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Zero,
    /// `immutable`: nobody writes the file while it is open, so its bytes may be cached by (file, offset).
    File {
        file: FileSlot,
        offset: ByteOffset,
        immutable: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadExtent {
    /// Bytes, a multiple of 512.
    pub len: u32,
    pub source: Source,
}

/// A read resolved to extents, in order, contiguous in the virtual disk. Keeps its memory between uses.
#[derive(Debug, Default)]
pub struct ReadPlan {
    pub extents: Vec<ReadExtent>,
}

impl ReadPlan {
    pub fn with_capacity(extents: usize) -> Self {
        Self { extents: Vec::with_capacity(extents) }
    }

    pub fn clear(&mut self) {
        self.extents.clear();
    }

    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.len)).sum()
    }

    /// Appends, merging with the last extent when the bytes continue it. False when the plan is full
    /// (`PLAN_EXTENTS_MAX`): the caller stops and says how far it came.
    #[must_use]
    pub fn push(&mut self, extent: ReadExtent) -> bool {
        if let Some(last) = self.extents.last_mut() {
            let follows = match (last.source, extent.source) {
                (Source::Zero, Source::Zero) => true,
                (
                    Source::File { file, offset, immutable },
                    Source::File { file: next_file, offset: next_offset, immutable: next_immutable },
                ) => {
                    file == next_file
                        && immutable == next_immutable
                        && offset.0 + u64::from(last.len) == next_offset.0
                }
                _ => false,
            };
            if follows && let Some(len) = last.len.checked_add(extent.len) {
                last.len = len;
                return true;
            }
        }
        if self.extents.len() >= crate::limits::PLAN_EXTENTS_MAX {
            return false;
        }
        self.extents.push(extent);
        true
    }
}

/// Whether an image may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenMode {
    ReadOnly,
    /// Refused where something had to be recovered: such an image is repaired first.
    Writable,
}

/// Where a run of sectors is. A run lies in one block, or is a stretch of blocks that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// In this file.
    Present { offset: ByteOffset, sectors: u64 },
    /// Not in this file: zeros, or the parent's.
    Absent { sectors: u64 },
    /// Zeros, whatever the parent holds (VHDX only).
    Zero { sectors: u64 },
    /// Unknown before this bitmap is read and given to the image's `bitmap_loaded`.
    NeedBitmap(BitmapRequest),
}

/// A bitmap to read: of a block (VHD), or a page of a sector bitmap (VHDX), which `block` then counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapRequest {
    pub block: BlockIndex,
    pub offset: ByteOffset,
    pub len: u32,
    pub ticket: u64,
}

/// Where a run of a write goes. A run lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRun {
    /// To this place. With `commit`, complete only after the commit that the image's `data_written` names.
    InPlace {
        offset: ByteOffset,
        sectors: u64,
        commit: bool,
    },
    /// The block is not there: `reserve` it, or leave the write out when it changes nothing.
    Unallocated {
        sectors: u64,
    },
    NeedBitmap(BitmapRequest),
    /// Metadata must be written before this write: run the image's batches and ask again.
    NeedMetadata,
}

/// What a write puts into its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// The initiator's bytes.
    Data,
    /// Zeros (UNMAP, WRITE SAME of zeros): a hole is punched where the file system takes it.
    Zero,
}

/// One run of a write, in order of the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteExtent {
    File {
        len: u32,
        file: FileSlot,
        offset: ByteOffset,
    },
    /// Nothing to do for these bytes (only for `WriteKind::Zero`: they read as zeros already).
    Skip {
        len: u32,
    },
}

impl WriteExtent {
    pub fn len(self) -> u32 {
        match self {
            Self::File { len, .. } | Self::Skip { len } => len,
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Default)]
pub struct WritePlan {
    pub extents: Vec<WriteExtent>,
}

impl WritePlan {
    pub fn with_capacity(extents: usize) -> Self {
        Self { extents: Vec::with_capacity(extents) }
    }

    pub fn clear(&mut self) {
        self.extents.clear();
    }

    /// As [`ReadPlan::push`].
    #[must_use]
    pub fn push(&mut self, extent: WriteExtent) -> bool {
        if let Some(last) = self.extents.last_mut() {
            match (last, extent) {
                (WriteExtent::Skip { len }, WriteExtent::Skip { len: more }) => {
                    if let Some(sum) = len.checked_add(more) {
                        *len = sum;
                        return true;
                    }
                }
                (
                    WriteExtent::File { len, file, offset },
                    WriteExtent::File { len: more, file: next_file, offset: next_offset },
                ) if *file == next_file && offset.0 + u64::from(*len) == next_offset.0 => {
                    if let Some(sum) = len.checked_add(more) {
                        *len = sum;
                        return true;
                    }
                }
                _ => {}
            }
        }
        if self.extents.len() >= crate::limits::PLAN_EXTENTS_MAX {
            return false;
        }
        self.extents.push(extent);
        true
    }
}

/// A block bitmap that must be read before a range can be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapRead {
    pub layer: LayerId,
    pub block: BlockIndex,
    pub file: FileSlot,
    pub offset: ByteOffset,
    /// At most `limits::BITMAP_BYTES_MAX` (8 KiB for 32 MiB blocks).
    pub len: u32,
    /// When it was asked for: bytes read before the layer forgot a newer bitmap are not taken.
    pub ticket: u64,
}

/// The answer of `resolve_read`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// The plan covers the first `covered` sectors: at least one, and all of them unless the plan is full or a
    /// bitmap is needed further on.
    Ready { covered: SectorCount },
    /// Read this, hand it to `bitmap_loaded`, and ask again. The plan is empty.
    NeedBitmap(BitmapRead),
}

/// The answer of `resolve_write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteStep {
    /// The plan covers the first `covered` sectors (as for reads; also cut where space is needed). With `commit`, the write is complete only when a metadata
    /// commit that began after `data_written` has finished.
    Ready {
        covered: SectorCount,
        commit: bool,
    },
    NeedBitmap(BitmapRead),
    /// No block is prepared: run the layer's metadata work, then ask again. The plan is empty.
    NeedSpace(LayerId),
}

/// Why an image takes no more writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefused {
    #[error("the image is read-only")]
    ReadOnly,
    #[error("the range lies beyond the end of the disk")]
    OutOfRange,
    #[error("the image has sectors of 4096 bytes, and the range is no whole number of them")]
    Misaligned,
    #[error("the image cannot grow any further (its format allows no longer file)")]
    FormatFull,
    #[error("the file system has no space left")]
    NoSpace,
    #[error("an earlier metadata write or flush failed; the image is read-only until it is checked")]
    Failed,
}

/// One file operation of a metadata commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaOp {
    /// Write these bytes, from the batch's byte store, at `offset`.
    Write { offset: ByteOffset, bytes: core::ops::Range<usize> },
    /// fdatasync: everything completed before is stable after.
    Sync,
    /// Make this range read as zeros (punch a hole, or write zeros where that is refused). Never grows the file.
    Zero { offset: ByteOffset, len: u64 },
    /// Cut or grow the file to this length.
    SetLen { len: u64 },
}

/// Operations that may run in any order and side by side; the next batch starts when all of them are done.
#[derive(Debug, Default)]
pub struct MetaBatch {
    pub ops: Vec<MetaOp>,
    pub bytes: Vec<u8>,
}

impl MetaBatch {
    pub fn clear(&mut self) {
        self.ops.clear();
        self.bytes.clear();
    }

    pub fn push_write(&mut self, offset: ByteOffset, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.ops.push(MetaOp::Write { offset, bytes: start..self.bytes.len() });
    }
}

/// A half-open range of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileRange {
    pub start: u64,
    pub end: u64,
}

impl FileRange {
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A new image file: everything not named is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    pub len: u64,
    /// (byte offset, bytes), in ascending order.
    pub writes: Vec<(u64, Vec<u8>)>,
}

/// Bytes for a place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileWrite {
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// A part of a file that is wanted in a second place. The places never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCopy {
    pub from: u64,
    pub to: u64,
    pub len: u64,
}

/// Changes of a file that nobody uses. They may reach the disk in any order; all of them are stable before the next stage
/// begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    pub copies: Vec<FileCopy>,
    /// To be zero afterwards; within the file.
    pub zeros: Vec<core::ops::Range<u64>>,
    pub writes: Vec<FileWrite>,
    /// The length of the file, when the stage is the one that cuts or lengthens it; nothing else is in that stage.
    pub set_len: Option<u64>,
}

impl Stage {
    pub fn of(writes: Vec<FileWrite>) -> Self {
        Self { writes, ..Self::default() }
    }

    pub fn write(offset: u64, bytes: &[u8]) -> Self {
        Self::of(vec![FileWrite { offset, bytes: bytes.to_vec() }])
    }

    pub fn set_len(len: u64) -> Self {
        Self { set_len: Some(len), ..Self::default() }
    }
}

/// How a file becomes smaller, and what that gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactPlan {
    pub stages: Vec<Stage>,
    pub freed_blocks: u64,
    pub moved_blocks: u64,
    /// The length of the file afterwards.
    pub len: u64,
}

/// How a file operation failed, as far as an image cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFault {
    NoSpace,
    Failed,
}

/// What becomes of a batch that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// It counts as ended, well or not.
    Done,
    /// It found no space, and nothing is lost when all of it is run once more, later: until then nothing else of the
    /// image's metadata is.
    Again,
}

/// A write whose data is in its place and whose metadata is not in the file yet: what a pending journal remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingRecord {
    pub block: BlockIndex,
    /// The first sector of the write within its block, and how many they are.
    pub first: u32,
    pub sectors: u32,
    /// Where the block lies in the file: its format's idea of where a block begins.
    pub place: ByteOffset,
}

impl PendingRecord {
    /// Both as one, where `next` continues this one in the same block.
    #[must_use]
    pub fn followed_by(self, next: Self) -> Option<Self> {
        let same = self.block == next.block && self.place == next.place;
        let adjoins = self.first.checked_add(self.sectors) == Some(next.first);
        let sectors = self.sectors.checked_add(next.sectors)?;
        (same && adjoins).then_some(Self { sectors, ..self })
    }
}

/// Why records were not replayed. The file is as it was. `F` is the format's own error, `E` that of reading.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<F, E> {
    #[error("the image is not open for writing, or has no blocks: nothing can be pending in it")]
    NotWritable,
    #[error("the record of block {} says what this image cannot hold", .0.block.0)]
    Impossible(PendingRecord),
    #[error("block {} lies elsewhere than its record says: the image was changed since", .0.block.0)]
    Moved(PendingRecord),
    #[error("the records do not fit the image: {0}")]
    Table(F),
    #[error("reading {len} bytes of bitmaps at byte {offset} failed")]
    Read { offset: u64, len: usize, source: E },
}

/// Takes records of pending writes to where a killed process does not lose them.
pub trait RecordSink {
    /// False: there is no room. The write then waits for a commit.
    fn record(&mut self, record: PendingRecord) -> bool;
}

/// Remembers nothing: every write waits for its commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRecords;

impl RecordSink for NoRecords {
    fn record(&mut self, _: PendingRecord) -> bool {
        false
    }
}

/// Agrees to everything and remembers nothing: for images that nobody reads again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgetful;

impl RecordSink for Forgetful {
    fn record(&mut self, _: PendingRecord) -> bool {
        true
    }
}

/// A point in a layer's sequence of commits: a write is complete when `committed() >= its CommitSeq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitSeq(pub u64);
