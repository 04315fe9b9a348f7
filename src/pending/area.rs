//! The journal of a living server: records in, records retired. Plain stores, no system call, no allocation.
//!
//! Knows which places are free. Does not know which records a commit made superfluous: its owner keeps their places.

use super::layout::{
    AreaHeader, HEADER_ALIVE, HEADER_SUM, HEADER_WORDS, LEAF_FAILED, LEAF_SUM, LEAF_WORDS, LeafIdentity,
    LeafIndex, SLOT_SUM, SLOT_WORDS, Words, checksum, leaf_at, record_words, slot_at, words_needed,
};
use crate::plan::PendingRecord;
use core::sync::atomic::Ordering;

/// The place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// A journal that is being written.
#[derive(Debug)]
pub struct Area {
    memory: Box<dyn Words>,
    nonce: u64,
    leaves: u32,
    records: u32,
    free: Vec<u32>,
    free_leaves: Vec<u32>,
}

impl Area {
    /// Lays a journal out over `memory`, which is all zeros. `None` when it does not fit.
    pub fn new(memory: Box<dyn Words>, header: &AreaHeader, leaves: &[LeafIdentity]) -> Option<Self> {
        Self::with_room(memory, header, leaves, 0)
    }

    /// The same, with room for so many leaves more.
    pub fn with_room(
        memory: Box<dyn Words>,
        header: &AreaHeader,
        leaves: &[LeafIdentity],
        room: u32,
    ) -> Option<Self> {
        let taken = u32::try_from(leaves.len()).ok()?;
        let count = taken.checked_add(room)?;
        if memory.words().len() < words_needed(count as usize, header.records) {
            return None;
        }
        let area = Self {
            memory,
            nonce: header.nonce,
            leaves: count,
            records: header.records,
            free: (0..header.records).rev().collect(),
            free_leaves: (taken..count).rev().collect(),
        };
        for (leaf, identity) in (0..taken).zip(leaves) {
            area.name_leaf(leaf, identity);
        }
        let words = header.words(count);
        area.put(0, &words);
        // Last: until now this was no journal.
        area.set(HEADER_SUM, checksum(header.nonce, 0, &words));
        Some(area)
    }

    fn name_leaf(&self, leaf: u32, identity: &LeafIdentity) {
        let (at, words) = (leaf_at(leaf), identity.words());
        self.put(at, &words);
        // Last: until now there was no such leaf.
        self.set(at + LEAF_SUM, checksum(self.nonce, at, &words));
    }

    /// One more leaf. `None` when there is no room.
    pub fn add_leaf(&mut self, identity: &LeafIdentity) -> Option<LeafIndex> {
        let leaf = self.free_leaves.pop()?;
        self.name_leaf(leaf, identity);
        Some(LeafIndex(leaf))
    }

    /// The leaf is closed: nothing is pending of it, and no flush of it has failed.
    pub fn forget_leaf(&mut self, leaf: LeafIndex) {
        if leaf.0 < self.leaves && !self.free_leaves.contains(&leaf.0) {
            self.set(leaf_at(leaf.0) + LEAF_SUM, 0);
            self.free_leaves.push(leaf.0);
        }
    }

    /// Remembers a write of the leaf until the slot is retired. `None` when there is no room.
    pub fn store(&mut self, leaf: LeafIndex, record: PendingRecord) -> Option<Slot> {
        if leaf.0 >= self.leaves {
            return None;
        }
        if self.is_empty() {
            self.stamp();
        }
        let slot = self.free.pop()?;
        let at = slot_at(self.leaves, slot);
        let words = record_words(leaf, record);
        // The checksum there is zero: killed before the last store, nobody sees the others.
        self.put(at, &words);
        self.set(at + SLOT_SUM, checksum(self.nonce, at, &words));
        Some(Slot(slot))
    }

    /// The image says by itself what the record said. Each slot is retired once.
    pub fn retire(&mut self, slot: Slot) {
        self.set(slot_at(self.leaves, slot.0) + SLOT_SUM, 0);
        self.free.push(slot.0);
    }

    /// A flush of the leaf failed: until it is checked nobody writes to it, this process or another.
    pub fn mark_failed(&self, leaf: LeafIndex) {
        if leaf.0 < self.leaves {
            self.set(leaf_at(leaf.0) + LEAF_FAILED, 1);
        }
    }

    /// A sign of life: what changes a leaf much later was not us. Due every few seconds while there are records.
    pub fn stamp(&self) {
        self.set(HEADER_ALIVE, self.memory.wall_seconds());
    }

    /// Records that can be stored before there is no room.
    pub fn room(&self) -> u32 {
        self.free.len() as u32
    }

    /// More than half is taken: time for commits, while the other half takes what comes meanwhile.
    pub fn is_crowded(&self) -> bool {
        self.room() < self.records / 2
    }

    pub fn is_empty(&self) -> bool {
        self.room() == self.records
    }

    fn put(&self, at: usize, words: &[u64]) {
        for (place, word) in (at..).zip(words) {
            self.set(place, *word);
        }
    }

    /// Release: another process that sees this store sees those before it.
    fn set(&self, at: usize, word: u64) {
        if let Some(place) = self.memory.words().get(at) {
            place.store(word, Ordering::Release);
        }
    }
}

const _: () = assert!(LEAF_FAILED < LEAF_WORDS && SLOT_SUM < SLOT_WORDS && HEADER_ALIVE < HEADER_WORDS);
