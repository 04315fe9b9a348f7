//! A shorter file for the same disk: blocks that nobody needs leave the table, those at the end move into the room.
//!
//! Knows places and the order of the steps. Which blocks are not needed it is told: zeros in a dynamic disk, what the
//! parent reads as well in a child.
//!
//! ```text
//! table without the blocks, and without bitmaps that no block needs -> copies of the last blocks and bitmaps
//! -> their entries -> ... -> cut
//! ```
//!
//! Each arrow is a Sync, and each change of the table a step of the log (`edit`). What is overwritten is in no table that
//! may be stable by then. The disk reads the same the whole time, so its children know it still.

use super::allocate::WriteIds;
use super::bat::{Bat, BlockState, Entry};
use super::edit::{Edit, table_places};
use super::error::Structure;
use super::image::VhdxImage;
use super::{DiskType, MIB};
use crate::limits::VHDX_ENTRY_PAGES_MAX;
use crate::plan::{CompactPlan, FileCopy, Stage};
use crate::units::{BlockIndex, ByteOffset};

/// Bytes moved before their table entries are written.
const GROUP_BYTES: u64 = 64 << 20;

/// What has a place in the file.
#[derive(Clone, Copy, Debug)]
struct Placed {
    structure: Structure,
    mib: u64,
    /// MiB it takes.
    len: u64,
}

impl VhdxImage {
    /// Every block that has a place, with where it lies.
    pub fn allocated_blocks(&self) -> Vec<(BlockIndex, ByteOffset)> {
        let placed = self.bat.placed().filter_map(|(structure, entry)| match structure {
            Structure::Block(block) => Some((BlockIndex(block), ByteOffset(entry.offset()?))),
            _ => None,
        });
        placed.collect()
    }

    /// Plans the compaction of a file of `len` bytes whose log is empty; `unneeded` are the blocks that may become absent.
    /// A fixed disk has none, and stays as it is.
    pub fn compact(&self, len: u64, unneeded: &[BlockIndex], ids: WriteIds) -> CompactPlan {
        let mut plan = CompactPlan { len, ..CompactPlan::default() };
        if self.disk_type() == DiskType::Fixed || self.needs_replay() {
            return plan;
        }
        let mut edit = Edit::new(self, WriteIds { data_write: self.header.data_write_guid, ..ids });
        let mut bat = self.bat.clone();
        let mut freed = Vec::new();
        for block in unneeded.iter().map(|block| block.0) {
            if bat.get(block).offset().is_some() {
                bat.set(block, Entry::NOT_PRESENT);
                freed.push(Structure::Block(block));
            }
        }
        plan.freed_blocks = freed.len() as u64;
        freed.extend(self.free_bitmaps(&mut bat));
        edit.table(&self.layout, &bat, freed.into_iter(), len);
        plan.moved_blocks = self.close_up(&mut bat, &mut edit, len);
        let end = self.end_of(&bat);
        if end < len {
            edit.stages.push(Stage::set_len(end));
            plan.len = end;
        }
        plan.stages = edit.stages;
        plan
    }

    /// Takes out the sector bitmaps of chunks that have no block in part.
    fn free_bitmaps(&self, bat: &mut Bat) -> Vec<Structure> {
        let layout = &self.layout;
        if !layout.differencing {
            return Vec::new();
        }
        let mut needed = vec![false; layout.chunks as usize];
        for (structure, entry) in bat.placed() {
            if let (Structure::Block(block), BlockState::Partial) = (structure, entry.state)
                && let Some(needed) = needed.get_mut(layout.chunk_of(block) as usize)
            {
                *needed = true;
            }
        }
        let unneeded = (0..layout.chunks).filter(|chunk| !needed[*chunk as usize]);
        let unneeded: Vec<u32> = unneeded.filter(|chunk| bat.bitmap(*chunk).offset().is_some()).collect();
        unneeded.iter().for_each(|chunk| bat.set_bitmap(*chunk, Entry::NOT_PRESENT));
        unneeded.into_iter().map(Structure::SectorBitmap).collect()
    }

    /// Moves what lies last into the first room that holds it, as long as that is nearer to the start. How many blocks.
    fn close_up(&self, bat: &mut Bat, edit: &mut Edit, len: u64) -> u64 {
        let mut placed: Vec<Placed> =
            bat.placed().map(|(structure, entry)| self.placed(structure, entry)).collect();
        placed.sort_unstable_by_key(|part| part.mib);
        let mut room = self.room(&placed);
        let (mut moved, mut bytes) = (0, 0);
        let (mut copies, mut structures) = (Vec::new(), Vec::new());
        while let Some(last) = placed.pop() {
            // Where this one finds no room, a shorter one before it may.
            let Some(to) = room.take(last.len, last.mib) else { continue };
            copies.push(FileCopy { from: last.mib * MIB, to: to * MIB, len: last.len * MIB });
            bat.put(last.structure, to as u32);
            structures.push(last.structure);
            moved += u64::from(matches!(last.structure, Structure::Block(_)));
            bytes += last.len * MIB;
            let pages = table_places(&self.layout, structures.iter().copied()).len();
            if bytes >= GROUP_BYTES || pages >= VHDX_ENTRY_PAGES_MAX {
                edit.stages.push(Stage { copies: core::mem::take(&mut copies), ..Stage::default() });
                edit.table(&self.layout, bat, structures.drain(..), len);
                bytes = 0;
            }
        }
        if !copies.is_empty() {
            edit.stages.push(Stage { copies, ..Stage::default() });
            edit.table(&self.layout, bat, structures.drain(..), len);
        }
        moved
    }

    fn placed(&self, structure: Structure, entry: Entry) -> Placed {
        let block = matches!(structure, Structure::Block(_));
        let len = if block { self.layout.block_bytes() / MIB } else { 1 };
        Placed { structure, mib: u64::from(entry.mib), len }
    }

    /// The room between what has a place.
    fn room(&self, placed: &[Placed]) -> Room {
        let fixed = self.regions.all().chain([self.header.log()]);
        let mut taken: Vec<(u64, u64)> = fixed.map(|range| (range.start / MIB, range.end / MIB)).collect();
        taken.push((0, 1));
        taken.extend(placed.iter().map(|part| (part.mib, part.mib + part.len)));
        taken.sort_unstable();
        let (mut gaps, mut at) = (Vec::new(), 0);
        for (start, end) in taken {
            if start > at {
                gaps.push((at, start));
            }
            at = at.max(end);
        }
        Room { gaps }
    }

    /// The end of all that the file refers to.
    pub(super) fn end_of(&self, bat: &Bat) -> u64 {
        let placed = bat.placed().map(|(structure, entry)| self.placed(structure, entry));
        let ends = placed.map(|part| (part.mib + part.len) * MIB);
        let fixed = self.regions.all().chain([self.header.log()]).map(|range| range.end);
        ends.chain(fixed).max().unwrap_or(MIB)
    }
}

/// Ranges of MiB that nothing lies in, in order.
#[derive(Debug)]
struct Room {
    gaps: Vec<(u64, u64)>,
}

impl Room {
    /// The first place for `len` MiB that ends at `before` at the latest.
    fn take(&mut self, len: u64, before: u64) -> Option<u64> {
        let fits = |(start, end): &&mut (u64, u64)| end.saturating_sub(*start) >= len;
        let gap = self.gaps.iter_mut().take_while(|gap| gap.0 + len <= before).find(fits)?;
        let place = gap.0;
        gap.0 += len;
        Some(place)
    }
}
