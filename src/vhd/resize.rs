//! Another size for a disk: larger, or smaller where nothing is lost.
//!
//! Knows what each kind of VHD needs, and the order in which a crash leaves the old size or the new one. That what a
//! smaller disk gives up is zero, the caller has seen.
//!
//! ```text
//! fixed, larger:     old footer at the new end -> zeros between -> new footer over it
//! fixed, smaller:    new footer at the old end -> new footer at the new end -> cut
//! dynamic, larger:   blocks where the table will grow, copied to the end, the footer behind them -> their entries
//!                    -> the new part of the table, zeros behind the old end of the disk -> header -> footer -> its copy
//! dynamic, smaller:  entries beyond the new end taken out -> footer -> its copy -> header
//! ```
//!
//! Each arrow is a Sync. Between a footer and its copy the two differ and the one at the end rules: `repair` finishes
//! it. The header never holds fewer entries than the disk needs; more than it needs some readers refuse, so that a
//! smaller disk gets a smaller number.

use super::bat::{ENTRIES_PER_SECTOR, ENTRY_BYTES, FileRange, UNALLOCATED};
use super::edit::{Copy, Stage, Write, table_sectors};
use super::footer::Footer;
use super::footer::checksum;
use super::gaps::ALIGN;
use super::geometry::Geometry;
use super::image::{Body, Sparse, VhdImage};
use super::layout::Layout;
use super::{DiskType, FOOTER_BYTES, HEADER_BYTES};
use crate::limits::{VHD_BLOCKS_MAX, VHD_FILE_BYTES_MAX, VHD_SECTORS_MAX};
use crate::units::{BlockIndex, SECTOR_BYTES, SectorCount};

/// What some writers keep behind the table, and nothing in the format refers to.
pub const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";
const MAX_ENTRIES: core::ops::Range<usize> = 28..32;
const HEADER_CHECKSUM: core::ops::Range<usize> = 36..40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeRefused {
    #[error("is a child, and a child has the size of its parent: flatten it, or resize a copy of the parent")]
    Child,
    #[error("holds a saved state, which forbids it: start and shut down the machine that saved it first")]
    SavedState,
    #[error("would have {0} sectors, and a VHD holds 1 to 4278190080 (2040 GiB): choose another size")]
    Size(u64),
    #[error("would have {0} blocks, more than its table can hold: convert it to larger blocks")]
    Blocks(u64),
    #[error("has other structures where its table would have to grow: convert it to a new image first")]
    NoRoomForTable,
    #[error("would grow beyond 2 TiB: convert it to larger blocks")]
    FileFull,
}

impl VhdImage {
    /// The stages that give the disk `sectors`. `header` are the bytes of the dynamic disk header, `behind_table` the
    /// eight bytes behind the table; both are ignored for a fixed disk.
    ///
    /// # Errors
    /// When the format, or this file, does not allow it.
    pub fn resize(
        &self,
        sectors: SectorCount,
        header: &[u8; HEADER_BYTES],
        behind_table: [u8; 8],
    ) -> Result<Vec<Stage>, ResizeRefused> {
        if self.disk_type() == DiskType::Differencing {
            return Err(ResizeRefused::Child);
        }
        if self.saved_state() {
            return Err(ResizeRefused::SavedState);
        }
        if sectors.0 == 0 || sectors.0 > VHD_SECTORS_MAX {
            return Err(ResizeRefused::Size(sectors.0));
        }
        let footer = Footer { sectors, geometry: Geometry::of(sectors.0), ..self.footer }.encode();
        match &self.body {
            Body::Fixed => Ok(self.resize_fixed(sectors, &footer)),
            Body::Sparse(sparse) if sectors.0 < self.sectors().0 => {
                Ok(sparse.shrink(sectors, &footer, self.footer_offset, header))
            }
            Body::Sparse(sparse) => {
                let old = (&self.footer_bytes, self.footer_offset);
                sparse.grow(sectors, &footer, old, header, behind_table)
            }
        }
    }

    /// Where the dynamic disk header lies, and where its table ends; `None` for a fixed disk.
    pub fn header_and_table_end(&self) -> Option<(u64, u64)> {
        match &self.body {
            Body::Fixed => None,
            Body::Sparse(sparse) => Some((self.footer.data_offset, sparse.table().end)),
        }
    }

    fn resize_fixed(&self, sectors: SectorCount, footer: &[u8; FOOTER_BYTES]) -> Vec<Stage> {
        let (old, new) = (self.sectors().bytes().0, sectors.bytes().0);
        let at = self.footer_offset;
        if new < old {
            let cut = Stage::set_len(new + FOOTER_BYTES as u64);
            return vec![Stage::write(at, footer), Stage::write(new, footer), cut];
        }
        // What lay between the data and the footer, the footer included, is the disk's now.
        let zeros = |end| Stage { zeros: core::iter::once(old..end).collect(), ..Stage::default() };
        if new <= at {
            return vec![zeros(new), Stage::write(at, footer)];
        }
        let taken = (at + FOOTER_BYTES as u64).min(new);
        let mut stages = vec![Stage::write(new, &self.footer_bytes), zeros(taken)];
        stages.push(Stage::write(new, footer));
        stages
    }
}

impl Sparse {
    /// The table as the file has it: its third part of metadata.
    fn table(&self) -> FileRange {
        let start = self.layout.table_offset;
        let found = self.metadata.iter().find(|range| range.start == start).copied();
        found.unwrap_or(FileRange { start, end: start })
    }

    fn shrink(
        &self,
        sectors: SectorCount,
        footer: &[u8; FOOTER_BYTES],
        footer_at: u64,
        header: &[u8; HEADER_BYTES],
    ) -> Vec<Stage> {
        let kept = sectors.bytes().0.div_ceil(self.layout.block_bytes());
        let mut bat = self.bat.clone();
        let given_up: Vec<BlockIndex> =
            bat.allocated().map(|(block, _)| block).filter(|block| u64::from(block.0) >= kept).collect();
        for block in &given_up {
            bat.set(*block, UNALLOCATED);
        }
        let mut stages = Vec::new();
        if !given_up.is_empty() {
            let blocks = given_up.iter().map(|block| block.0);
            stages.push(Stage::of(table_sectors(&bat, self.layout.table_offset, blocks)));
        }
        stages.extend([Stage::write(footer_at, footer), Stage::write(0, footer)]);
        stages.extend(header_for(kept, header).map(|first| Stage::write(self.header_at(), &first)));
        stages
    }

    /// The header is the second part of the metadata.
    fn header_at(&self) -> u64 {
        self.metadata.get(1).map_or(FOOTER_BYTES as u64, |range| range.start)
    }

    fn grow(
        &self,
        sectors: SectorCount,
        footer: &[u8; FOOTER_BYTES],
        (old_footer, footer_at): (&[u8; FOOTER_BYTES], u64),
        header: &[u8; HEADER_BYTES],
        behind_table: [u8; 8],
    ) -> Result<Vec<Stage>, ResizeRefused> {
        let table = self.table();
        let blocks = sectors.bytes().0.div_ceil(self.layout.block_bytes());
        if blocks > VHD_BLOCKS_MAX {
            return Err(ResizeRefused::Blocks(blocks));
        }
        let needed = table.start + (blocks * ENTRY_BYTES).next_multiple_of(SECTOR_BYTES);
        let more = FileRange { start: table.end, end: needed.max(table.end) };
        let others = self.metadata.iter().filter(|range| range.start != table.start);
        let batmap = more.start < more.end && behind_table == BATMAP_COOKIE;
        if batmap || others.clone().any(|range| range.overlaps(more)) {
            return Err(ResizeRefused::NoRoomForTable);
        }
        let mut stages = Vec::new();
        let mut bat = self.bat.clone();
        let mut footer_at = footer_at;
        let stored = self.layout.stored_sectors() * SECTOR_BYTES;
        let mut moved = Vec::new();
        let mut copies = Vec::new();
        let mut end = (footer_at + FOOTER_BYTES as u64).max(needed);
        for (block, entry) in self.bat.allocated() {
            let start = Layout::bitmap_offset(entry).0;
            if !more.overlaps(FileRange { start, end: start + stored }) {
                continue;
            }
            let bitmap = u64::from(self.layout.bitmap_bytes());
            let data = (end + bitmap).next_multiple_of(ALIGN);
            end = data + self.layout.block_bytes();
            if end + FOOTER_BYTES as u64 > VHD_FILE_BYTES_MAX {
                return Err(ResizeRefused::FileFull);
            }
            copies.push(Copy { from: start, to: data - bitmap, len: stored });
            // Below 2 TiB, so below 2^32 sectors.
            bat.set(block, ((data - bitmap) / SECTOR_BYTES) as u32);
            moved.push(block.0);
        }
        if !copies.is_empty() || needed > footer_at {
            footer_at = end;
            let writes = vec![Write { offset: end, bytes: old_footer.to_vec() }];
            stages.push(Stage { copies, writes, ..Stage::default() });
        }
        if !moved.is_empty() {
            stages.push(Stage::of(table_sectors(&bat, table.start, moved.into_iter())));
        }
        let first_new = self.layout.blocks / ENTRIES_PER_SECTOR * ENTRIES_PER_SECTOR;
        // At most 2040 GiB / 512 bytes, and checked above: far below 2^32.
        let new_entries = first_new..(blocks as u32).max(self.layout.blocks);
        let mut growth = Stage::of(table_sectors(&bat, table.start, new_entries));
        growth.zeros.extend(self.tail_of_last_block(sectors, &bat).map(|tail| tail.start..tail.end));
        stages.push(growth);
        let [a, b, c, d] = [28, 29, 30, 31].map(|at: usize| header[at]);
        if u64::from(u32::from_be_bytes([a, b, c, d])) < blocks {
            stages.extend(header_for(blocks, header).map(|first| Stage::write(self.header_at(), &first)));
        }
        stages.extend([Stage::write(footer_at, footer), Stage::write(0, footer)]);
        Ok(stages)
    }

    /// The sectors of the last block that the disk did not have: they become the disk's, and must be zero.
    fn tail_of_last_block(&self, sectors: SectorCount, bat: &super::bat::Bat) -> Option<FileRange> {
        let last = BlockIndex(self.layout.blocks.checked_sub(1)?);
        let entry = bat.get(last)?;
        let had = self.layout.valid_sectors(last);
        let start = u64::from(last.0) * u64::from(self.layout.block_sectors);
        let has = sectors.0.saturating_sub(start).min(u64::from(self.layout.block_sectors)) as u32;
        (has > had).then(|| FileRange {
            start: self.layout.data_offset(entry, had).0,
            end: self.layout.data_offset(entry, 0).0 + u64::from(has) * SECTOR_BYTES,
        })
    }
}

/// The first sector of the header, with a table of `blocks` entries; all that changes lies in it. `None` when it is so.
fn header_for(blocks: u64, header: &[u8; HEADER_BYTES]) -> Option<Vec<u8>> {
    let mut header = *header;
    let blocks = u32::try_from(blocks).ok()?.to_be_bytes();
    if header[MAX_ENTRIES] == blocks {
        return None;
    }
    header[MAX_ENTRIES].copy_from_slice(&blocks);
    let sum = checksum(&header, HEADER_CHECKSUM.start);
    header[HEADER_CHECKSUM].copy_from_slice(&sum.to_be_bytes());
    Some(header[..SECTOR_BYTES as usize].to_vec())
}
