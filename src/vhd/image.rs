//! An open VHD: what it says about itself, and where its sectors lie.
//!
//! Knows the table and the bitmaps in memory. Does not know the file it lies in, its parents, or I/O: a bitmap that
//! is not in memory is asked for.

use super::DiskType;
use super::allocate::Writer;
use super::bat::{Bat, FileRange};
use super::bitmap_table::{BitmapTable, BlockSet};
use super::block_bitmap::BlockBitmap;
use super::footer::Footer;
use super::layout::Layout;
use super::parent_locator::ParentCandidate;
use super::{FOOTER_BYTES, geometry::Geometry};
pub use crate::plan::{BitmapRequest, OpenMode, Run};
use crate::units::{BlockIndex, ByteOffset, SectorCount};
use core::fmt;
use uuid::Uuid;

/// What was not as it should be, and did not hinder opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The footer at this byte was damaged or missing: the copy at the start is used.
    TailFooterLost(u64),
    HeadFooterDamaged,
    /// Both are valid and describe different disks: the one at the end is used.
    FootersDiffer,
    LocatorDamaged(u8),
    /// Bytes of a fixed disk's file between its data and its footer.
    UnreferencedBytes(u64),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TailFooterLost(offset) => {
                write!(f, "the footer at byte {offset} is lost; its copy at the start of the file is used")
            }
            Self::HeadFooterDamaged => f.write_str("the footer copy at the start of the file is damaged"),
            Self::FootersDiffer => f.write_str("the two footers differ; the one at the end is used"),
            Self::LocatorDamaged(index) => write!(f, "parent locator {index} cannot be read and is skipped"),
            Self::UnreferencedBytes(bytes) => write!(f, "{bytes} bytes before the footer belong to nothing"),
        }
    }
}

/// Who the parent is, and where it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// Must equal the unique id in the parent's footer.
    pub unique_id: Uuid,
    /// The parent's modification time, in seconds since 2000-01-01 00:00:00 UTC, as its writer saw it.
    pub timestamp: u32,
    /// Best first: relative, absolute, URL, name. Claims of an untrusted file.
    pub candidates: Vec<ParentCandidate>,
}

/// How full an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub blocks: u64,
    pub allocated_blocks: u64,
}

/// An open VHD.
#[derive(Debug)]
pub struct VhdImage {
    pub(super) footer: Footer,
    pub(super) footer_bytes: [u8; FOOTER_BYTES],
    /// Where the tail footer is, or should be.
    pub(super) footer_offset: u64,
    pub(super) mode: OpenMode,
    pub(super) parent: Option<ParentInfo>,
    pub(super) warnings: Vec<Warning>,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Fixed,
    Sparse(Box<Sparse>),
}

/// What dynamic and differencing disks have in memory.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) layout: Layout,
    pub(super) bat: Bat,
    /// Blocks in the table.
    pub(super) allocated: u64,
    pub(super) bitmaps: BitmapTable,
    /// Blocks whose every sector is present: bits are never cleared, so their bitmaps need not be kept.
    pub(super) full: BlockSet,
    pub(super) differencing: bool,
    /// Footer copy, header, table and the locators we understand.
    pub(super) metadata: Vec<FileRange>,
    /// The end of all that, and of the locators we do not understand.
    pub(super) metadata_end: u64,
    /// Of a writable image.
    pub(super) writer: Option<Writer>,
}

impl VhdImage {
    pub fn disk_type(&self) -> DiskType {
        self.footer.disk_type
    }

    /// The size of the disk: `current size`, never the geometry.
    pub fn sectors(&self) -> SectorCount {
        self.footer.sectors
    }

    pub fn unique_id(&self) -> Uuid {
        self.footer.unique_id
    }

    pub fn geometry(&self) -> Geometry {
        self.footer.geometry
    }

    /// Application, version and host codes of the creator, as in the footer.
    pub fn creator(&self) -> ([u8; 4], u32, [u8; 4]) {
        (self.footer.creator_app, self.footer.creator_version, self.footer.creator_host)
    }

    /// Seconds since 2000-01-01 00:00:00 UTC.
    pub fn timestamp(&self) -> u32 {
        self.footer.timestamp
    }

    pub fn saved_state(&self) -> bool {
        self.footer.saved_state
    }

    /// Bytes of a block; `None` for a fixed disk.
    pub fn block_size(&self) -> Option<u32> {
        match &self.body {
            Body::Fixed => None,
            // At most 32 MiB, as the header was checked.
            Body::Sparse(sparse) => Some(sparse.layout.block_bytes() as u32),
        }
    }

    /// The parent of a differencing disk.
    pub fn parent(&self) -> Option<&ParentInfo> {
        self.parent.as_ref()
    }

    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// A footer must be written again before the image can be opened for writing.
    pub fn needs_repair(&self) -> bool {
        self.warnings
            .iter()
            .any(|warning| !matches!(warning, Warning::LocatorDamaged(_) | Warning::UnreferencedBytes(_)))
    }

    pub fn statistics(&self) -> Statistics {
        match &self.body {
            Body::Fixed => Statistics { blocks: 0, allocated_blocks: 0 },
            Body::Sparse(sparse) => {
                Statistics { blocks: u64::from(sparse.layout.blocks), allocated_blocks: sparse.allocated }
            }
        }
    }

    /// The blocks in the table, and where the data of each lies.
    pub fn allocated_blocks(&self) -> Vec<(BlockIndex, ByteOffset)> {
        match &self.body {
            Body::Fixed => Vec::new(),
            Body::Sparse(sparse) => {
                let place = |(block, entry)| (block, sparse.layout.data_offset(entry, 0));
                sparse.bat.allocated().map(place).collect()
            }
        }
    }

    /// Keeps at most `bitmaps` idle block bitmaps in memory, instead of `LAYER_BITMAPS_MAX`.
    pub fn limit_bitmaps(&mut self, bitmaps: usize) {
        if let Body::Sparse(sparse) = &mut self.body {
            sparse.bitmaps.set_capacity(bitmaps);
        }
    }

    /// The run that begins at `sector` (of the disk), at most `max` sectors of it. Beyond the disk all is absent.
    pub fn run_at(&mut self, sector: u64, max: u64) -> Run {
        let inside = self.footer.sectors.0.saturating_sub(sector).min(max);
        if inside == 0 {
            return Run::Absent { sectors: max };
        }
        match &mut self.body {
            Body::Fixed => {
                Run::Present { offset: ByteOffset(sector * crate::units::SECTOR_BYTES), sectors: inside }
            }
            Body::Sparse(sparse) => sparse.run_at(sector, inside),
        }
    }

    /// The bytes of a bitmap that was asked for, all of them: a short read is a failed read, and is not taken.
    pub fn bitmap_loaded(&mut self, block: BlockIndex, ticket: u64, bytes: &[u8]) {
        if let Body::Sparse(sparse) = &mut self.body {
            sparse.bitmap_loaded(block, ticket, bytes);
        }
    }
}

impl Sparse {
    fn run_at(&mut self, sector: u64, max: u64) -> Run {
        let (block, at) = self.layout.locate(sector);
        let in_block = max.min(u64::from(self.layout.block_sectors - at));
        let Some(entry) = self.bat.get(block) else {
            return Run::Absent { sectors: self.absent_blocks(block, in_block, max) };
        };
        let present = |sectors| Run::Present { offset: self.layout.data_offset(entry, at), sectors };
        // A dynamic disk has no parent to ask: what was never written reads as stored, and is stored as zeros.
        if !self.differencing || self.full.contains(block) {
            return present(in_block);
        }
        match self.bitmaps.get(block) {
            Some(bitmap) => match bitmap.set.run_at(at, in_block as u32) {
                (true, sectors) => present(u64::from(sectors)),
                (false, sectors) => Run::Absent { sectors: u64::from(sectors) },
            },
            None => Run::NeedBitmap(self.request_bitmap(block, entry)),
        }
    }

    /// Extends an absent run over the following blocks that are not there either.
    fn absent_blocks(&self, block: BlockIndex, in_block: u64, max: u64) -> u64 {
        let mut sectors = in_block;
        let mut next = block.0 + 1;
        while sectors < max && self.bat.get(BlockIndex(next)).is_none() {
            sectors += u64::from(self.layout.block_sectors).min(max - sectors);
            next += 1;
        }
        sectors
    }

    pub(super) fn request_bitmap(&mut self, block: BlockIndex, entry: u32) -> BitmapRequest {
        BitmapRequest {
            block,
            offset: Layout::bitmap_offset(entry),
            len: self.layout.bitmap_bytes(),
            ticket: self.bitmaps.next_ticket(),
        }
    }

    fn bitmap_loaded(&mut self, block: BlockIndex, ticket: u64, bytes: &[u8]) {
        let short = bytes.len() < self.layout.bitmap_bytes() as usize;
        if short || self.full.contains(block) || self.bat.get(block).is_none() {
            return;
        }
        let bitmap = BlockBitmap::from_bytes(self.layout.block_sectors, bytes);
        if bitmap.all_set(0, self.layout.valid_sectors(block)) {
            self.full.insert(block);
        } else {
            self.bitmaps.load(block, ticket, bitmap);
        }
    }
}
