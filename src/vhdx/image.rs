//! An open VHDX: what it says about itself, and where its sectors lie.
//!
//! Knows the table and the bitmaps in memory. Does not know the file it lies in, its parents, or I/O: a bitmap that
//! is not in memory is asked for.

use super::allocate::Writer;
use super::bat::{Bat, BlockState};
use super::header::Header;
use super::layout::{Layout, PAGE_BITS};
use super::log::Replay;
use super::metadata::Metadata;
use super::page_table::PageTable;
use super::region::Regions;
use super::sector_bitmap::BitmapPage;
use super::{DiskType, PAGE_BYTES};
use crate::parent_path::ParentCandidate;
use crate::plan::{BitmapRequest, OpenMode, Run};
use crate::units::{BlockIndex, BlockSize, ByteOffset, SECTOR_BYTES, SectorCount};
use core::fmt;
use uuid::Uuid;

/// What was not as it should be, and did not hinder opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Header 1 or 2 is damaged; the other one is used.
    HeaderDamaged(u8),
    /// Both headers have the same number and the same content.
    HeadersAlike,
    RegionTableDamaged(u8),
    /// So many entries of the log were replayed in memory: a crash left them.
    LogReplayed(u32),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderDamaged(copy) => write!(f, "header {copy} is damaged; the other one is used"),
            Self::HeadersAlike => f.write_str("both headers have the same sequence number and content"),
            Self::RegionTableDamaged(copy) => {
                write!(f, "region table {copy} is damaged; the other one is used")
            }
            Self::LogReplayed(entries) => write!(
                f,
                "a crash left {entries} changes in the log: they are replayed in memory, the file is as it was"
            ),
        }
    }
}

/// Who the parent is, and where it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// Must equal the parent's `data_write_guid`.
    pub linkage: Uuid,
    /// Or this one must.
    pub linkage2: Option<Uuid>,
    /// Best first: relative, absolute, name. Claims of an untrusted file.
    pub candidates: Vec<ParentCandidate>,
}

impl ParentInfo {
    /// True when a parent whose data carries this identifier is the right one.
    pub fn accepts(&self, data_write_guid: Uuid) -> bool {
        self.linkage == data_write_guid || self.linkage2 == Some(data_write_guid)
    }
}

/// How full an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub blocks: u64,
    pub allocated_blocks: u64,
}

/// An open VHDX.
#[derive(Debug)]
pub struct VhdxImage {
    pub(super) creator: String,
    /// The current header, and its place in `HEADER_OFFSETS`.
    pub(super) header: Header,
    pub(super) header_index: usize,
    pub(super) regions: Regions,
    pub(super) metadata: Metadata,
    pub(super) layout: Layout,
    pub(super) bat: Bat,
    pub(super) bitmaps: PageTable,
    pub(super) mode: OpenMode,
    pub(super) parent: Option<ParentInfo>,
    pub(super) warnings: Vec<Warning>,
    /// Bytes of the file when it was opened.
    pub(super) file_len: u64,
    /// What the log adds to a file that is only read.
    pub(super) replay: Option<Box<Replay>>,
    /// Of an image that is written.
    pub(super) writer: Option<Box<Writer>>,
}

impl VhdxImage {
    pub fn disk_type(&self) -> DiskType {
        match (self.metadata.has_parent, self.metadata.leave_allocated) {
            (true, _) => DiskType::Differencing,
            (false, true) => DiskType::Fixed,
            (false, false) => DiskType::Dynamic,
        }
    }

    /// The size of the disk.
    pub fn sectors(&self) -> SectorCount {
        self.metadata.sectors
    }

    /// The current header, and which of both it is: 1 or 2.
    pub fn header(&self) -> (&Header, u8) {
        (&self.header, self.header_index as u8 + 1)
    }

    /// Where the tables lie.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// What a child of this image must name.
    pub fn data_write_guid(&self) -> Uuid {
        self.header.data_write_guid
    }

    /// Shared by parents and children: says which disk it was once, not which image it is.
    pub fn disk_id(&self) -> Uuid {
        self.metadata.disk_id
    }

    pub fn logical_sector(&self) -> BlockSize {
        self.metadata.logical_sector
    }

    pub fn physical_sector(&self) -> BlockSize {
        self.metadata.physical_sector
    }

    pub fn block_size(&self) -> u32 {
        self.metadata.block_size
    }

    /// The program that made the file, as it calls itself.
    pub fn creator(&self) -> &str {
        &self.creator
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

    /// The file holds changes in its log that must be written into place before it can be opened for writing.
    pub fn needs_replay(&self) -> bool {
        self.replay.is_some()
    }

    pub fn statistics(&self) -> Statistics {
        Statistics { blocks: u64::from(self.layout.blocks), allocated_blocks: self.bat.allocated() }
    }

    /// Keeps at most `pages` pages of sector bitmaps in memory, instead of `LAYER_BITMAP_PAGES_MAX`.
    pub fn limit_bitmaps(&mut self, pages: usize) {
        self.bitmaps.set_capacity(pages);
    }

    /// The run that begins at `sector` (of the disk), at most `max` sectors of it. Beyond the disk all is absent.
    pub fn run_at(&mut self, sector: u64, max: u64) -> Run {
        let inside = self.metadata.sectors.0.saturating_sub(sector).min(max);
        if inside == 0 {
            return Run::Absent { sectors: max };
        }
        let (block, at) = self.layout.locate(sector);
        let in_block = inside.min(u64::from(self.layout.block_sectors - at));
        let entry = self.bat.get(block);
        match (entry.state, entry.offset()) {
            (BlockState::Present, Some(offset)) => {
                self.present(offset + u64::from(at) * SECTOR_BYTES, in_block)
            }
            (BlockState::Partial, Some(offset)) => self.partial_run(sector, in_block, offset, at),
            (state, _) => {
                let sectors = self.placeless_run(block, in_block, inside);
                // Without a parent there is nobody to ask. In a child the other states are not the parent's.
                if state == BlockState::NotPresent || !self.layout.differencing {
                    Run::Absent { sectors }
                } else {
                    Run::Zero { sectors }
                }
            }
        }
    }

    /// Extends a run over the following blocks that are in the same state.
    fn placeless_run(&self, block: u32, in_block: u64, max: u64) -> u64 {
        let block_sectors = u64::from(self.layout.block_sectors);
        let more = max.saturating_sub(in_block).div_ceil(block_sectors);
        let blocks = self.bat.placeless_run(block, more as u32 + 1);
        (in_block + u64::from(blocks - 1) * block_sectors).min(max)
    }

    /// Sectors at a place of the file; those the log zeroed, or the file will have only once it is replayed, are zeros.
    fn present(&self, offset: u64, sectors: u64) -> Run {
        let run = |sectors| Run::Present { offset: ByteOffset(offset), sectors };
        let Some(replay) = &self.replay else { return run(sectors) };
        let stored = self.file_len.saturating_sub(offset) / SECTOR_BYTES;
        if stored == 0 {
            return Run::Zero { sectors };
        }
        match replay.overlay.zeros_at(offset, stored.min(sectors) * SECTOR_BYTES) {
            (true, bytes) => Run::Zero { sectors: bytes / SECTOR_BYTES },
            (false, bytes) => run(bytes / SECTOR_BYTES),
        }
    }

    fn partial_run(&mut self, sector: u64, in_block: u64, block_offset: u64, at: u32) -> Run {
        let (page, bit) = self.layout.bit_of(sector);
        let bit_sectors = u64::from(self.layout.bit_sectors);
        let within = sector % bit_sectors;
        let bits = (within + in_block).div_ceil(bit_sectors).min(u64::from(PAGE_BITS - bit)) as u32;
        let Some(bitmap) = self.bitmaps.get(page) else { return self.need_page(page, sector, in_block) };
        let (set, count) = bitmap.set.run_at(bit, bits);
        let sectors = (u64::from(count) * bit_sectors - within).min(in_block);
        if set {
            self.present(block_offset + u64::from(at) * SECTOR_BYTES, sectors)
        } else {
            Run::Absent { sectors }
        }
    }

    fn need_page(&mut self, page: u32, sector: u64, max: u64) -> Run {
        let Some(offset) = self.page_offset(page) else {
            // Opening made sure that a block which is there in part has its bitmap.
            return Run::Zero { sectors: max };
        };
        if self.replay.is_some() && offset + PAGE_BYTES as u64 > self.file_len {
            // The file has it only once the log is replayed: all that is known of it is in the log.
            let ticket = self.bitmaps.next_ticket();
            self.insert_page(page, ticket, offset, &[0; PAGE_BYTES]);
            return self.run_at(sector, max);
        }
        Run::NeedBitmap(BitmapRequest {
            block: BlockIndex(page),
            offset: ByteOffset(offset),
            len: PAGE_BYTES as u32,
            ticket: self.bitmaps.next_ticket(),
        })
    }

    /// Where a page of the sector bitmaps lies in the file.
    pub(super) fn page_offset(&self, page: u32) -> Option<u64> {
        let (chunk, within) = self.layout.page_place(page);
        self.bat.bitmap(chunk).offset().map(|start| start + within)
    }

    fn insert_page(&mut self, page: u32, ticket: u64, offset: u64, bytes: &[u8; PAGE_BYTES]) {
        let mut bytes = *bytes;
        if let Some(replay) = &self.replay {
            replay.overlay.patch(offset, &mut bytes);
        }
        self.bitmaps.load(page, ticket, BitmapPage::from_bytes(&bytes));
    }

    /// The bytes of a bitmap page that was asked for, all of them: a short read is a failed read, and is not taken.
    pub fn bitmap_loaded(&mut self, page: BlockIndex, ticket: u64, bytes: &[u8]) {
        if let (Some(offset), Some(bytes)) = (self.page_offset(page.0), bytes.first_chunk::<PAGE_BYTES>()) {
            self.insert_page(page.0, ticket, offset, bytes);
        }
    }
}
