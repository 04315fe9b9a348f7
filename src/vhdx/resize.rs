//! Another size for a disk: larger, or smaller where nothing is lost.
//!
//! Knows the order in which a crash leaves the old size or the new one. That what a smaller disk gives up is zero, the
//! caller has seen.
//!
//! ```text
//! larger:   a longer file, for a table that does not fit its region, and for the blocks of a fixed disk -> the table
//!           copied -> entries behind the old end of the disk, and the rest of its last block, as they shall be
//!           -> one step of the log: the size, and where the table lies
//! smaller:  one step of the log: the size -> entries behind the new end zero -> cut
//! ```
//!
//! Each arrow is a Sync. Entries behind the end of a disk mean nothing, so they are written in place. A disk of another
//! size is another disk: its data gets a new identifier.

use super::allocate::WriteIds;
use super::bat::{BlockState, Entry, encode_page};
use super::edit::{ChangedPages, Edit};
use super::error::Structure;
use super::image::VhdxImage;
use super::layout::{ENTRY_BYTES, Layout};
use super::metadata::{self, Item, Metadata, Places};
use super::open::{File, OpenError, read_metadata_table};
use super::{DiskType, FileRange, MIB, PAGE_BYTES, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS, region};
use crate::limits::{VHDX_FILE_BYTES_MAX, VHDX_SECTORS_MAX};
use crate::plan::{FileCopy, Stage};
use crate::units::SectorCount;

/// Why a disk keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError<E> {
    #[error(transparent)]
    Open(#[from] OpenError<E>),
    #[error("is a child, and a child is no smaller than its parent: flatten it first")]
    Child,
    #[error(
        "would have {0} bytes, and a VHDX holds 1 sector to 64 TiB in whole logical sectors: choose another size"
    )]
    Size(u64),
    #[error("would have a table of {0} entries, more than its format can hold: convert it to larger blocks")]
    Blocks(u64),
    #[error("would grow beyond 128 TiB: convert it to larger blocks")]
    FileFull,
}

/// Bytes of the longest table of entries: a region is shorter than 4 GiB.
const TABLE_BYTES_MAX: u64 = 2 << 30;

impl VhdxImage {
    /// The stages that give the disk `sectors`. The image, a file of `len` bytes, has an empty log; `read` reads it.
    ///
    /// # Errors
    /// When the format, or this file, does not allow it.
    pub fn resize<E>(
        &self,
        sectors: SectorCount,
        len: u64,
        ids: WriteIds,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<Stage>, ResizeError<E>> {
        let bytes = sectors.0.saturating_mul(512);
        let whole = bytes.is_multiple_of(u64::from(self.metadata.logical_sector.bytes()));
        if sectors.0 == 0 || sectors.0 > VHDX_SECTORS_MAX || !whole {
            return Err(ResizeError::Size(bytes));
        }
        let shrinks = sectors.0 < self.metadata.sectors.0;
        if shrinks && self.layout.differencing {
            return Err(ResizeError::Child);
        }
        let metadata = Metadata { sectors, ..self.metadata };
        let mut resize = Resize {
            image: self,
            new: Layout::new(&metadata, self.layout.table_offset),
            edit: Edit::new(self, ids),
            changed: ChangedPages::default(),
            len,
        };
        resize.note_size(sectors, &mut read)?;
        if shrinks {
            resize.shrink();
        } else {
            resize.grow(&mut read)?;
        }
        Ok(resize.edit.stages)
    }
}

struct Resize<'a> {
    image: &'a VhdxImage,
    new: Layout,
    edit: Edit,
    changed: ChangedPages,
    /// Of the file, as it is by now.
    len: u64,
}

impl Resize<'_> {
    fn note_size<E>(
        &mut self,
        sectors: SectorCount,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ResizeError<E>> {
        let region = self.image.regions.metadata;
        let table = read_metadata_table(&mut File::with_empty_log(self.len, &mut *read), region)?;
        let entries = table.get(metadata::ENTRY_BYTES..).unwrap_or_default();
        let places = Places::parse(entries, region.start, region.len()).map_err(OpenError::Vhdx)?;
        let place = places.get(Item::DiskSize, region.start).map_err(OpenError::Vhdx)?;
        let at = region.start + u64::from(place.offset);
        self.changed.put(at, &sectors.bytes().0.to_le_bytes(), read)?;
        Ok(())
    }

    fn shrink(&mut self) {
        let (old, new) = (&self.image.layout, &self.new);
        self.edit.step(&self.changed, self.len);
        let zeros = new.entry_offset(new.entries())..old.entry_offset(old.entries());
        if !zeros.is_empty() {
            self.edit.stages.push(Stage { zeros: vec![zeros], ..Stage::default() });
        }
        let mut bat = self.image.bat.clone();
        (new.blocks..old.blocks).for_each(|block| bat.set(block, Entry::NOT_PRESENT));
        let end = self.image.end_of(&bat);
        if end < self.len {
            self.edit.stages.push(Stage::set_len(end));
        }
    }

    fn grow<E>(
        &mut self,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ResizeError<E>> {
        let table_bytes = self.new.entries() * ENTRY_BYTES;
        if table_bytes > TABLE_BYTES_MAX {
            return Err(ResizeError::Blocks(self.new.entries()));
        }
        let end = self.image.end_of(&self.image.bat).max(self.len).next_multiple_of(MIB);
        let moves = table_bytes > self.image.regions.bat.len();
        let room = if moves { table_bytes.next_multiple_of(MIB) } else { 0 };
        let fixed = self.image.disk_type() == DiskType::Fixed;
        let more = u64::from(self.new.blocks - self.image.layout.blocks);
        let blocks_at = end + room;
        let new_len = if fixed { blocks_at + more * self.new.block_bytes() } else { blocks_at };
        if new_len > VHDX_FILE_BYTES_MAX {
            return Err(ResizeError::FileFull);
        }
        if new_len > self.len && (moves || fixed) {
            self.edit.stages.push(Stage::set_len(new_len));
            self.len = new_len;
        }
        if moves {
            let old = self.image.regions.bat;
            let copy = FileCopy { from: old.start, to: end, len: old.len() };
            self.edit.stages.push(Stage { copies: vec![copy], ..Stage::default() });
            self.new.table_offset = end;
            self.note_region(FileRange { start: end, end: end + room }, read)?;
        }
        let old_entries = self.image.layout.entries();
        let mut ready = Stage::default();
        ready.zeros.push(self.new.entry_offset(old_entries)..self.new.entry_offset(self.new.entries()));
        ready.zeros.extend(self.tail_of_last_block());
        ready.zeros.retain(|range| !range.is_empty());
        if !ready.zeros.is_empty() {
            self.edit.stages.push(ready);
        }
        if fixed {
            self.place_blocks(blocks_at);
        }
        self.edit.step(&self.changed, self.len);
        Ok(())
    }

    /// The entries of a fixed disk's new blocks, behind its end.
    fn place_blocks(&mut self, start: u64) {
        let old = self.image.layout.blocks;
        let new = self.new;
        let mib = |block: u32| ((start + u64::from(block - old) * new.block_bytes()) / MIB) as u32;
        let entry_of = |structure| match structure {
            Structure::Block(block) if (old..new.blocks).contains(&block) => {
                // Files end below 2^27 MiB.
                Entry { state: BlockState::Present, mib: mib(block) }
            }
            structure => self.image.bat.of(structure),
        };
        let structures = (old..new.blocks).map(Structure::Block);
        let mut stage = Stage::default();
        for place in super::edit::table_places(&new, structures) {
            let mut page = Vec::with_capacity(PAGE_BYTES);
            encode_page(&new, place, entry_of, &mut page);
            stage.writes.push(crate::plan::FileWrite { offset: place, bytes: page });
        }
        if !stage.writes.is_empty() {
            self.edit.stages.push(stage);
        }
    }

    /// The bytes of the last block that the disk did not have: they become the disk's, and must be zero.
    fn tail_of_last_block(&self) -> Option<core::ops::Range<u64>> {
        let last = self.image.layout.blocks.checked_sub(1)?;
        let start = self.image.bat.get(last).offset()?;
        let (had, has) = (self.image.layout.valid_sectors(last), self.new.valid_sectors(last));
        Some(start + u64::from(had) * 512..start + u64::from(has) * 512)
    }

    /// Both region tables name another place of the block table.
    fn note_region<E>(
        &mut self,
        place: FileRange,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ResizeError<E>> {
        let mut table = vec![0; REGION_TABLE_BYTES];
        for offset in REGION_TABLE_OFFSETS {
            read(offset, &mut table).map_err(|source| OpenError::Read {
                offset,
                len: REGION_TABLE_BYTES,
                source,
            })?;
            if region::is_valid(&table) {
                break;
            }
        }
        region::move_bat(&mut table, place);
        for offset in REGION_TABLE_OFFSETS {
            // All of it: the copy may be damaged anywhere.
            self.changed.put(offset, &table, read)?;
        }
        Ok(())
    }
}
