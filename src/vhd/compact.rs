//! A shorter file for the same disk: blocks that nobody needs leave the table, those at the end move into the room.
//!
//! Knows places and the order of the steps. Which blocks are not needed it is told: zeros in a dynamic disk, what the
//! parent reads as well in a child.
//!
//! ```text
//! table without the blocks -> copies of the last blocks -> their entries -> ... -> footer behind the last -> cut
//! ```
//!
//! Each arrow is a Sync. What is overwritten is in no table that may be stable by then, so a crash anywhere leaves the
//! same disk, at worst with blocks that nothing refers to.

use super::FOOTER_BYTES;
use super::bat::{FileRange, UNALLOCATED};
use super::create::CREATOR;
use super::edit::{Copy, Stage, table_sectors};
use super::gaps::{ALIGN, gaps};
use super::image::{Body, Sparse, VhdImage};
use super::layout::Layout;
use crate::plan::CompactPlan;
use crate::units::{BlockIndex, SECTOR_BYTES};
use std::collections::BTreeSet;

/// Bytes moved before their table entries are written.
const GROUP_BYTES: u64 = 64 << 20;

impl VhdImage {
    /// Plans the compaction of a file of `len` bytes; `unneeded` are the blocks that may become absent. A fixed disk
    /// has none.
    pub fn compact(&self, len: u64, unneeded: &[BlockIndex]) -> CompactPlan {
        match &self.body {
            Body::Fixed => CompactPlan { len, ..CompactPlan::default() },
            Body::Sparse(sparse) => {
                let ours = self.footer.creator_app == CREATOR;
                sparse.compact(ours, &self.footer_bytes, self.footer_offset, len, unneeded)
            }
        }
    }
}

impl Sparse {
    fn compact(
        &self,
        ours: bool,
        footer: &[u8; FOOTER_BYTES],
        footer_at: u64,
        len: u64,
        unneeded: &[BlockIndex],
    ) -> CompactPlan {
        let mut bat = self.bat.clone();
        let mut plan = CompactPlan { len, ..CompactPlan::default() };
        let freed: Vec<(BlockIndex, u32)> =
            unneeded.iter().filter_map(|block| Some((*block, bat.get(*block)?))).collect();
        for (block, _) in &freed {
            bat.set(*block, UNALLOCATED);
        }
        plan.freed_blocks = freed.len() as u64;
        let table = self.layout.table_offset;
        if !freed.is_empty() {
            plan.stages.push(Stage::of(table_sectors(&bat, table, freed.iter().map(|(block, _)| block.0))));
        }
        let mut by_place: Vec<(u32, BlockIndex)> =
            bat.allocated().map(|(block, entry)| (entry, block)).collect();
        by_place.sort_unstable();
        let lowest = self.bat.allocated().map(|(_, entry)| Layout::bitmap_offset(entry).0).min();
        let mut room = self.room(ours, &by_place, &freed, footer_at).into_iter();
        let stored = self.layout.stored_sectors() * SECTOR_BYTES;
        let mut group = (Vec::new(), Vec::new());
        while let Some((entry, block)) = by_place.pop() {
            let Some(to) = room.next().filter(|to| to + stored <= Layout::bitmap_offset(entry).0) else {
                break;
            };
            group.0.push(Copy { from: Layout::bitmap_offset(entry).0, to, len: stored });
            group.1.push(block.0);
            // Lower than where it was, so it is an entry.
            bat.set(block, (to / SECTOR_BYTES) as u32);
            plan.moved_blocks += 1;
            if group.0.len() as u64 * stored >= GROUP_BYTES {
                end_group(&mut plan, &mut group, &bat, table);
            }
        }
        end_group(&mut plan, &mut group, &bat, table);
        // What others keep before their first block is not ours to cut.
        let kept = if ours { 0 } else { lowest.unwrap_or(footer_at) };
        let end = (bat.end(&self.layout) * SECTOR_BYTES).max(self.metadata_end).max(kept);
        if end < footer_at {
            plan.stages.push(Stage::write(end, footer));
            plan.len = end + FOOTER_BYTES as u64;
            plan.stages.push(Stage::set_len(plan.len));
        }
        plan
    }

    /// Places for whole blocks, lowest first: wherever they fit in our own files; in others only where a block was.
    fn room(
        &self,
        ours: bool,
        by_place: &[(u32, BlockIndex)],
        freed: &[(BlockIndex, u32)],
        footer_at: u64,
    ) -> Vec<u64> {
        let mut places: BTreeSet<u64> = BTreeSet::new();
        let stored = self.layout.stored_sectors() * SECTOR_BYTES;
        if ours {
            let mut parts = self.metadata.clone();
            parts.extend(by_place.iter().map(|(entry, _)| {
                let start = Layout::bitmap_offset(*entry).0;
                FileRange { start, end: start + stored }
            }));
            for gap in gaps(parts, footer_at) {
                let bitmap = u64::from(self.layout.bitmap_bytes());
                let mut data = (gap.start + bitmap).next_multiple_of(ALIGN);
                while data + self.layout.block_bytes() <= gap.end {
                    places.insert(data - bitmap);
                    data = (data + self.layout.block_bytes() + bitmap).next_multiple_of(ALIGN);
                }
            }
        } else {
            places.extend(freed.iter().map(|(_, entry)| Layout::bitmap_offset(*entry).0));
        }
        places.into_iter().collect()
    }
}

/// The copies of a group, then their entries.
fn end_group(plan: &mut CompactPlan, group: &mut (Vec<Copy>, Vec<u32>), bat: &super::bat::Bat, table: u64) {
    let (copies, blocks) = core::mem::take(group);
    if !copies.is_empty() {
        plan.stages.push(Stage { copies, ..Stage::default() });
        plan.stages.push(Stage::of(table_sectors(bat, table, blocks.into_iter())));
    }
}
