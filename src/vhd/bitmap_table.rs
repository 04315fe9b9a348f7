//! The block bitmaps an open image keeps in memory: bounded, loaded on demand, clean ones forgotten.
//!
//! Knows which bits are in the file, which wait for a commit, and which bitmaps may be forgotten. Does not know
//! offsets or the order of file operations (`commit`).

use super::block_bitmap::BlockBitmap;
use crate::units::BlockIndex;
use std::collections::BTreeMap;

/// A set of blocks, one bit each.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockSet {
    words: Vec<u64>,
}

impl BlockSet {
    pub(super) fn new(blocks: u32) -> Self {
        Self { words: vec![0; blocks.div_ceil(64) as usize] }
    }

    pub(super) fn contains(&self, block: BlockIndex) -> bool {
        self.words.get((block.0 / 64) as usize).is_some_and(|word| word >> (block.0 % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, block: BlockIndex) {
        if let Some(word) = self.words.get_mut((block.0 / 64) as usize) {
            *word |= 1 << (block.0 % 64);
        }
    }
}

/// Bits of a block on their way into the file.
#[derive(Clone, Debug)]
pub(super) struct PendingBits {
    /// The data is in the file; the bits go with the next commit. Those of recorded writes are in `set` already.
    pub(super) pending: BlockBitmap,
    /// The bits go with the commit that runs.
    pub(super) committing: BlockBitmap,
    /// Sectors of resolved writes that have neither been written nor abandoned.
    pub(super) in_flight: u64,
}

impl PendingBits {
    pub(super) fn none(sectors: u32) -> Box<Self> {
        let empty = BlockBitmap::empty(sectors);
        Box::new(Self { pending: empty.clone(), committing: empty, in_flight: 0 })
    }
}

#[derive(Clone, Debug)]
pub(super) struct BitmapEntry {
    /// What reads see: what the file holds, and the bits of recorded writes that it does not hold yet.
    pub(super) set: BlockBitmap,
    pub(super) writes: Option<Box<PendingBits>>,
    /// The block has no table entry yet: no file could give this bitmap back.
    pub(super) reserved: bool,
    /// The file's bitmap was changed since it was loaded: older bytes of it must not come back.
    modified: bool,
    /// Second chance of the clock hand.
    used: bool,
}

impl BitmapEntry {
    pub(super) fn writes(&mut self, sectors: u32) -> &mut PendingBits {
        self.writes.get_or_insert_with(|| PendingBits::none(sectors))
    }

    /// Takes the bits of the commit that has ended.
    pub(super) fn committed(&mut self) {
        if let Some(writes) = &mut self.writes {
            self.set.merge(&writes.committing);
            writes.committing.clear();
            self.modified = true;
        }
        self.reserved = false;
    }

    /// Nothing of it would be lost by forgetting it.
    pub(super) fn is_idle(&self) -> bool {
        let idle = |writes: &PendingBits| {
            writes.in_flight == 0 && writes.pending.is_clear() && writes.committing.is_clear()
        };
        !self.reserved && self.writes.as_deref().is_none_or(idle)
    }
}

/// At most `capacity` idle bitmaps, and those with writes on their way.
#[derive(Clone, Debug)]
pub(super) struct BitmapTable {
    entries: BTreeMap<u32, BitmapEntry>,
    capacity: usize,
    hand: u32,
    /// Handed out with every request to read a bitmap.
    ticket: u64,
    /// Reads with a ticket up to this one may have seen a bitmap older than one we forgot.
    fence: u64,
}

impl BitmapTable {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), capacity, hand: 0, ticket: 0, fence: 0 }
    }

    pub(super) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        while self.entries.len() > self.capacity && self.forget_one() {}
    }

    pub(super) fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    pub(super) fn get(&mut self, block: BlockIndex) -> Option<&mut BitmapEntry> {
        let entry = self.entries.get_mut(&block.0)?;
        entry.used = true;
        Some(entry)
    }

    /// A bitmap read under `ticket`. A known bitmap is never replaced: the one in memory is newer.
    pub(super) fn load(&mut self, block: BlockIndex, ticket: u64, bitmap: BlockBitmap) {
        if ticket > self.fence && !self.entries.contains_key(&block.0) {
            self.insert(block, bitmap);
        }
    }

    /// The bitmap of a new block, clear in the file.
    pub(super) fn insert(&mut self, block: BlockIndex, set: BlockBitmap) -> &mut BitmapEntry {
        while self.entries.len() >= self.capacity && self.forget_one() {}
        self.entries.entry(block.0).or_insert(BitmapEntry {
            set,
            writes: None,
            reserved: false,
            modified: false,
            used: true,
        })
    }

    /// Drops the bitmap of a full block: it is not asked for again.
    pub(super) fn remove_full(&mut self, block: BlockIndex) {
        self.entries.remove(&block.0);
    }

    fn remove(&mut self, block: BlockIndex) {
        if self.entries.remove(&block.0).is_some_and(|entry| entry.modified) {
            self.fence = self.ticket;
        }
    }

    /// Clock: the hand passes used bitmaps once. Without an idle one (false) the table grows: writes in flight are
    /// bounded.
    fn forget_one(&mut self) -> bool {
        for _ in 0..2 * self.entries.len() {
            let next = self.entries.range(self.hand..).next().or_else(|| self.entries.iter().next());
            let Some(block) = next.map(|(block, _)| *block) else { return false };
            self.hand = block.wrapping_add(1);
            let Some(entry) = self.entries.get_mut(&block) else { return false };
            if entry.is_idle() && !core::mem::take(&mut entry.used) {
                self.remove(BlockIndex(block));
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(bits: u32) -> BlockBitmap {
        let mut bitmap = BlockBitmap::empty(64);
        bitmap.set(0, bits);
        bitmap
    }

    #[test]
    fn idle_bitmaps_are_forgotten_and_busy_ones_kept() {
        let mut table = BitmapTable::new(4);
        for block in 0..4 {
            table.insert(BlockIndex(block), bitmap(1)).writes(64).in_flight = u64::from(block % 2);
        }
        for block in 4..6 {
            table.insert(BlockIndex(block), bitmap(1));
        }
        assert_eq!(table.entries.len(), 4);
        assert!(table.get(BlockIndex(1)).is_some() && table.get(BlockIndex(3)).is_some());
    }

    #[test]
    fn a_table_of_busy_bitmaps_grows() {
        let mut table = BitmapTable::new(2);
        for block in 0..5 {
            table.insert(BlockIndex(block), bitmap(1)).writes(64).in_flight = 1;
        }
        assert_eq!(table.entries.len(), 5);
    }

    #[test]
    fn a_bitmap_read_before_a_newer_one_was_forgotten_is_not_taken() {
        let mut table = BitmapTable::new(1);
        let early = table.next_ticket();
        let entry = table.insert(BlockIndex(7), bitmap(0));
        entry.writes(64).committing.set(3, 1);
        entry.committed();
        table.remove(BlockIndex(7));
        table.load(BlockIndex(7), early, bitmap(0));
        assert!(table.get(BlockIndex(7)).is_none());
        let late = table.next_ticket();
        table.load(BlockIndex(7), late, bitmap(4));
        assert!(table.get(BlockIndex(7)).is_some());
    }

    #[test]
    fn a_loaded_bitmap_never_replaces_one_in_memory() {
        let mut table = BitmapTable::new(1);
        let ticket = table.next_ticket();
        table.insert(BlockIndex(7), bitmap(9));
        table.load(BlockIndex(7), ticket, bitmap(0));
        assert_eq!(table.get(BlockIndex(7)).map(|entry| entry.set.count()), Some(9));
    }
}
