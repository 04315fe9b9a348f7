//! Table entries and block bitmaps.
//!
//! Knows which entries cannot be right, and what becomes of their blocks. Which of two entries for one place is right
//! it does not know, so both keep what they read.

use super::footers::Ruler;
use super::header::Header;
use super::{Read, RepairPlan, Step, fill, table_writes};
use crate::limits::VHD_FILE_BYTES_MAX;
use crate::units::{BlockIndex, SECTOR_BYTES};
use crate::vhd::bat::{Bat, ENTRY_BYTES, FileRange, UNALLOCATED};
use crate::vhd::block_bitmap::BlockBitmap;
use crate::vhd::check::{BitmapFault, bitmap_fault};
use crate::vhd::edit::{Copy, Write};
use crate::vhd::error::Structure;
use crate::vhd::gaps::{ALIGN, gaps, slots};
use crate::vhd::layout::Layout;
use crate::vhd::{DiskType, FOOTER_BYTES};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks that share a place are copied up to this much, whatever the length of the file.
const COPIES_BYTES_MIN: u64 = 256 << 20;

/// The entries of a table, sorted by what they are worth.
struct Sorted {
    /// In their own place, by place.
    good: Vec<(u32, BlockIndex)>,
    /// In a place that overlaps a good one.
    shared: Vec<(u32, BlockIndex)>,
    /// In no place a block can have.
    lost: Vec<(u32, BlockIndex)>,
}

/// Plans what the blocks need and returns where the data of the file will end. `None`: it would not fit the format.
pub(super) fn mend<E>(
    len: u64,
    ruler: &Ruler,
    header: &Header,
    metadata: &[FileRange],
    read: &mut Read<'_, E>,
    plan: &mut RepairPlan,
) -> Result<Option<u64>, E> {
    let layout = &header.layout;
    let mut entries = vec![0; (u64::from(layout.blocks) * ENTRY_BYTES) as usize];
    fill(read, len, header.table.start, &mut entries)?;
    let bat = Bat::from_bytes(&entries);
    let sorted = sort(&bat, layout, ruler, metadata);
    let mut work =
        Work { layout, ruler, table: header.table, plan, changed: BTreeMap::new(), end: ruler.free_from() };
    for (entry, block) in &sorted.good {
        work.make_room(*entry, *block);
    }
    let adopted = adopt(len, ruler, layout, &sorted, metadata, read)?;
    for (entry, block) in &sorted.lost {
        work.unmap(*entry, *block, adopted);
    }
    // What would double the file is no repair.
    let copied = sorted.shared.len() as u64 * layout.stored_sectors() * SECTOR_BYTES;
    if copied > len.max(COPIES_BYTES_MIN) {
        return Ok(None);
    }
    for (entry, block) in &sorted.shared {
        if !work.copy(*entry, *block) {
            return Ok(None);
        }
    }
    let mut writes = table_writes(len, work.table, &work.changed, read)?;
    let (end, changed) = (work.end, work.changed);
    let lost: BTreeSet<u32> = sorted.lost.iter().map(|(_, block)| block.0).collect();
    for (entry, block) in sorted.good.iter().chain(&sorted.shared).chain(&sorted.lost) {
        // Where the block is now, and where its bitmap will be looked for.
        let to = changed.get(&block.0).copied().unwrap_or(*entry);
        let from = if lost.contains(&block.0) { to } else { *entry };
        if to != UNALLOCATED {
            writes.extend(mend_bitmap(len, ruler, layout, (*block, from, to), read, plan)?);
        }
    }
    if !writes.is_empty() {
        plan.stages.push(writes);
    }
    Ok(Some(end))
}

/// Sorts the entries. Where places overlap and all other blocks lie on one grid, an entry off that grid is lost.
fn sort(bat: &Bat, layout: &Layout, ruler: &Ruler, metadata: &[FileRange]) -> Sorted {
    let mut lost = Vec::new();
    let mut placed = Vec::new();
    for (block, entry) in bat.allocated() {
        let range = range_of(layout, entry);
        let end = if ruler.tail_is_lost() { range.start + 1 } else { range.end };
        let inside = range.start >= FOOTER_BYTES as u64 && end <= ruler.data_end;
        if inside && !metadata.iter().any(|other| range.overlaps(*other)) {
            placed.push((entry, block));
        } else {
            lost.push((entry, block));
        }
    }
    placed.sort_unstable();
    let stored = layout.stored_sectors();
    let meet = |a: u32, b: u32| u64::from(a) + stored > u64::from(b);
    let alone = |at: usize| {
        let before = at.checked_sub(1).is_none_or(|before| !meet(placed[before].0, placed[at].0));
        before && placed.get(at + 1).is_none_or(|next| !meet(placed[at].0, next.0))
    };
    let apart: Vec<bool> = (0..placed.len()).map(alone).collect();
    let grid =
        grid(layout, placed.iter().zip(&apart).filter(|(_, alone)| **alone).map(|(placed, _)| placed.0));
    let (mut good, mut shared): (Vec<(u32, BlockIndex)>, Vec<_>) = (Vec::new(), Vec::new());
    for (item, alone) in placed.iter().zip(&apart) {
        let off = grid.is_some_and(|(stride, rest)| u64::from(item.0) % stride != rest);
        if !alone && off {
            lost.push(*item);
        } else if good.last().is_some_and(|last| meet(last.0, item.0)) {
            shared.push(*item);
        } else {
            good.push(*item);
        }
    }
    Sorted { good, shared, lost }
}

/// The distance and the remainder, in sectors, that all `entries` share; at least two must show it.
fn grid(layout: &Layout, entries: impl Iterator<Item = u32>) -> Option<(u64, u64)> {
    let entries: Vec<u64> = entries.map(u64::from).collect();
    let first = *entries.first().filter(|_| entries.len() >= 2)?;
    let aligned = (layout.stored_sectors() * SECTOR_BYTES).next_multiple_of(ALIGN) / SECTOR_BYTES;
    let strides = [aligned, layout.stored_sectors()];
    let shared = |stride: &u64| entries.iter().all(|entry| entry % stride == first % stride);
    strides.into_iter().find(shared).map(|stride| (stride, first % stride))
}

fn range_of(layout: &Layout, entry: u32) -> FileRange {
    let start = u64::from(entry) * SECTOR_BYTES;
    FileRange { start, end: start + layout.stored_sectors() * SECTOR_BYTES }
}

/// The place of the one lost block, when the file has exactly one place nobody refers to, and a block is there.
fn adopt<E>(
    len: u64,
    ruler: &Ruler,
    layout: &Layout,
    sorted: &Sorted,
    metadata: &[FileRange],
    read: &mut Read<'_, E>,
) -> Result<Option<u32>, E> {
    let [(_, block)] = sorted.lost.as_slice() else { return Ok(None) };
    if ruler.tail_is_lost() {
        return Ok(None);
    }
    let mut parts = metadata.to_vec();
    parts.extend(sorted.good.iter().chain(&sorted.shared).map(|(entry, _)| range_of(layout, *entry)));
    let places: Vec<u64> =
        gaps(parts, ruler.data_end).into_iter().flat_map(|gap| slots(gap, layout)).take(2).collect();
    let [place] = places.as_slice() else { return Ok(None) };
    let mut bytes = vec![0; layout.bitmap_bytes() as usize];
    fill(read, len, *place, &mut bytes)?;
    let bitmap = BlockBitmap::from_bytes(layout.block_sectors, &bytes);
    let valid = layout.valid_sectors(*block);
    // A dynamic block's bitmap says "all" in nearly every file; a child's says something, and nothing beyond the disk.
    let plausible = if ruler.footer.disk_type == DiskType::Differencing {
        let beyond = layout.block_sectors - valid;
        !bitmap.is_clear() && (beyond == 0 || bitmap.run_at(valid, beyond) == (false, beyond))
    } else {
        bitmap.all_set(0, valid)
    };
    Ok(u32::try_from(place / SECTOR_BYTES).ok().filter(|_| plausible))
}

/// The plan under construction.
struct Work<'a> {
    layout: &'a Layout,
    ruler: &'a Ruler,
    table: FileRange,
    plan: &'a mut RepairPlan,
    changed: BTreeMap<u32, u32>,
    end: u64,
}

impl Work<'_> {
    fn disk_range(&self, block: BlockIndex) -> (u64, u64) {
        let start = u64::from(block.0) * self.layout.block_bytes();
        (start, start + u64::from(self.layout.valid_sectors(block)) * SECTOR_BYTES)
    }

    fn below(&self) -> &'static str {
        if self.ruler.footer.disk_type == DiskType::Differencing { "as the parent does" } else { "as zeros" }
    }

    fn entry_place(&self, block: BlockIndex) -> u64 {
        self.table.start + u64::from(block.0) * ENTRY_BYTES
    }

    /// A block that the end of the file cuts off gets its length back, without the data that was there.
    fn make_room(&mut self, entry: u32, block: BlockIndex) {
        let range = range_of(self.layout, entry);
        if range.end <= self.ruler.data_end {
            return;
        }
        self.end = self.end.max(range.end);
        let lost = range.end - self.ruler.data_end.max(range.start + u64::from(self.layout.bitmap_bytes()));
        let (start, end) = self.disk_range(block);
        self.plan.step(Step {
            structure: Structure::Block(block),
            offset: range.start,
            found: format!("is cut off by the end of the file at byte {}", self.ruler.data_end),
            action: "the file is made as long as the block again".to_owned(),
            loss: Some(format!(
                "what was in the last {lost} bytes of bytes {start} to {end} of the disk reads as zeros"
            )),
        });
    }

    /// The entry leads nowhere: its block is the place that nobody else claims, or it is not there.
    fn unmap(&mut self, entry: u32, block: BlockIndex, adopted: Option<u32>) {
        let place = u64::from(entry) * SECTOR_BYTES;
        let (start, end) = self.disk_range(block);
        let found = format!("points to byte {place}, where no block can be");
        let (structure, offset) = (Structure::BatEntry(block), self.entry_place(block));
        if let Some(adopted) = adopted {
            self.changed.insert(block.0, adopted);
            let to = u64::from(adopted) * SECTOR_BYTES;
            let action = format!("it gets the only block of the file that nothing refers to, at byte {to}");
            self.plan.step(Step { structure, offset, found, action, loss: None });
            return;
        }
        self.changed.insert(block.0, UNALLOCATED);
        self.plan.step(Step {
            structure,
            offset,
            found,
            action: "the block is taken out of the table; no other byte of the file is touched".to_owned(),
            loss: Some(format!("bytes {start} to {end} of the disk read {}", self.below())),
        });
    }

    /// Two entries, one place: the second gets a copy of what it reads. False when the format has no room.
    fn copy(&mut self, entry: u32, block: BlockIndex) -> bool {
        let bitmap = u64::from(self.layout.bitmap_bytes());
        let data = (self.end + bitmap).next_multiple_of(ALIGN);
        let from = range_of(self.layout, entry);
        let to = data - bitmap;
        self.end = data + self.layout.block_bytes();
        if self.end + FOOTER_BYTES as u64 > VHD_FILE_BYTES_MAX {
            return false;
        }
        // Below 2 TiB, so below 2^32 sectors.
        self.changed.insert(block.0, (to / SECTOR_BYTES) as u32);
        self.plan.copies.push(Copy { from: from.start, to, len: from.end - from.start });
        let (start, end) = self.disk_range(block);
        self.plan.step(Step {
            structure: Structure::BatEntry(block),
            offset: self.entry_place(block),
            found: format!("points to byte {}, into another block", from.start),
            action: format!(
                "it gets a copy of what it points to; one of the two is wrong: examine bytes {start} to {end} of the disk"
            ),
            loss: None,
        });
        true
    }
}

/// A bitmap that contradicts the data or the size of the disk.
fn mend_bitmap<E>(
    len: u64,
    ruler: &Ruler,
    layout: &Layout,
    (block, from, to): (BlockIndex, u32, u32),
    read: &mut Read<'_, E>,
    plan: &mut RepairPlan,
) -> Result<Option<Write>, E> {
    let differencing = ruler.footer.disk_type == DiskType::Differencing;
    let fault = bitmap_fault(layout, differencing, block, from, &mut |offset, bytes: &mut [u8]| {
        fill(read, len, offset, bytes)
    })?;
    let Some(fault) = fault else { return Ok(None) };
    let offset = Layout::bitmap_offset(to).0;
    let mut bytes = vec![0; layout.bitmap_bytes() as usize];
    fill(read, len, Layout::bitmap_offset(from).0, &mut bytes)?;
    let valid = layout.valid_sectors(block);
    let action = match fault {
        BitmapFault::BeyondTheDisk => {
            clear_from(&mut bytes, valid);
            "the bits beyond the end of the disk are cleared"
        }
        BitmapFault::DataUnderClearBits { .. } => {
            bytes.fill(0xFF);
            clear_from(&mut bytes, valid);
            "all sectors of the block are marked as written: they read as they are stored"
        }
    };
    plan.step(Step {
        structure: Structure::BlockBitmap(block),
        offset,
        found: fault.sentence(),
        action: action.to_owned(),
        loss: None,
    });
    Ok(Some(Write { offset, bytes }))
}

/// Clears all bits from number `from` on; the most significant one comes first.
fn clear_from(bytes: &mut [u8], from: u32) {
    let at = (from / 8) as usize;
    if let Some(byte) = bytes.get_mut(at) {
        *byte &= !(0xFF >> (from % 8)) as u8;
    }
    if let Some(rest) = bytes.get_mut(at + 1..) {
        rest.fill(0);
    }
}
