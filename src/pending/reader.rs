//! A journal that some process left behind, read from its bytes.
//!
//! Knows what is believable. Does not know files: it says which bytes to clear where records are done with.

use super::layout::{
    HEADER_ALIVE, HEADER_FIXED, HEADER_SUM, HEADER_WORDS, LEAF_FAILED, LEAF_FIXED, LEAF_SUM, LeafIdentity,
    LeafIndex, MAGIC, SLOT_SUM, checksum, leaf_at, record_from, slot_at, whole, words_needed,
};
use crate::plan::PendingRecord;

/// Why bytes are no journal that can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    #[error("it is no pending journal, or one that was never completed")]
    NotAJournal,
    #[error("it ends before its records do")]
    Truncated,
    #[error("entry {0} of its table of images is damaged")]
    Leaf(u32),
    #[error("record {0} is damaged")]
    Record(u32),
}

/// The words of a journal.
#[derive(Clone, Debug)]
pub struct Journal {
    words: Vec<u64>,
    nonce: u64,
    leaves: u32,
    records: u32,
}

impl Journal {
    /// # Errors
    /// The header is not one, or promises more than there is.
    pub fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|chunk| u64::from_ne_bytes(chunk.try_into().unwrap_or_default()))
            .collect();
        let fixed = words.get(..HEADER_FIXED).ok_or(JournalError::NotAJournal)?;
        if words.len() < HEADER_WORDS || fixed[0] != MAGIC {
            return Err(JournalError::NotAJournal);
        }
        let nonce = fixed[3];
        if words[HEADER_SUM] != checksum(nonce, 0, fixed) {
            return Err(JournalError::NotAJournal);
        }
        let (leaves, records) = ((fixed[4] >> 32) as u32, fixed[4] as u32);
        if words.len() < words_needed(leaves as usize, records) {
            return Err(JournalError::Truncated);
        }
        Ok(Self { words, nonce, leaves, records })
    }

    pub fn boot_id(&self) -> [u8; 16] {
        whole(self.words[1], self.words[2])
    }

    /// The last sign of life, in seconds since 1970; 0: none.
    pub fn alive(&self) -> u64 {
        self.words[HEADER_ALIVE]
    }

    /// Every leaf. A place without a checksum has none.
    ///
    /// # Errors
    /// An entry of the table is damaged: then no entry is believed.
    pub fn leaves(&self) -> Result<Vec<(LeafIndex, LeafIdentity)>, JournalError> {
        let one = |leaf| {
            let at = leaf_at(leaf);
            let mut fixed = [0; LEAF_FIXED];
            fixed.copy_from_slice(&self.words[at..at + LEAF_FIXED]);
            let sum = self.words[at + LEAF_SUM];
            if sum == 0 {
                return None;
            }
            if sum != checksum(self.nonce, at, &fixed) {
                return Some(Err(JournalError::Leaf(leaf)));
            }
            Some(Ok((LeafIndex(leaf), LeafIdentity::from_words(fixed))))
        };
        (0..self.leaves).filter_map(one).collect()
    }

    /// The leaf with this device and inode.
    ///
    /// # Errors
    /// As [`Self::leaves`].
    pub fn leaf(&self, device: u64, inode: u64) -> Result<Option<(LeafIndex, LeafIdentity)>, JournalError> {
        let mut leaves = self.leaves()?.into_iter();
        Ok(leaves.find(|(_, identity)| (identity.device, identity.inode) == (device, inode)))
    }

    /// All valid records, in no order.
    ///
    /// # Errors
    /// A record is there and wrong: a kill cannot do that, so nothing here is believed.
    pub fn records(
        &self,
    ) -> impl Iterator<Item = Result<(RecordPlace, LeafIndex, PendingRecord), JournalError>> + '_ {
        (0..self.records).filter_map(|slot| {
            let at = slot_at(self.leaves, slot);
            let mut fixed = [0; SLOT_SUM];
            fixed.copy_from_slice(&self.words[at..at + SLOT_SUM]);
            let sum = self.words[at + SLOT_SUM];
            if sum == 0 {
                return None;
            }
            let (leaf, record) = record_from(fixed);
            if sum != checksum(self.nonce, at, &fixed) || leaf.0 >= self.leaves {
                return Some(Err(JournalError::Record(slot)));
            }
            Some(Ok((RecordPlace(8 * (at + SLOT_SUM) as u64), leaf, record)))
        })
    }

    /// A flush of the leaf failed, and nobody has checked it since.
    pub fn is_failed(&self, leaf: LeafIndex) -> bool {
        leaf.0 < self.leaves && self.words[leaf_at(leaf.0) + LEAF_FAILED] != 0
    }

    /// The byte at which eight zeros take the mark of [`Self::is_failed`] away.
    pub fn failed_place(leaf: LeafIndex) -> u64 {
        8 * (leaf_at(leaf.0) + LEAF_FAILED) as u64
    }

    /// Neither a record nor a mark: the journal may be deleted once its process is gone.
    pub fn is_spent(&self) -> bool {
        (0..self.leaves).all(|leaf| !self.is_failed(LeafIndex(leaf))) && self.records().next().is_none()
    }
}

/// The byte at which eight zeros retire a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace(pub u64);

#[cfg(test)]
mod tests {
    use super::super::{Area, AreaHeader, Words};
    use super::*;
    use crate::units::{BlockIndex, ByteOffset};
    use core::sync::atomic::{AtomicU64, Ordering};
    use proptest::prelude::*;
    use std::sync::Arc;

    const LEAF: LeafIdentity = LeafIdentity { device: 7, inode: 8, unique_id: [9; 16] };

    fn memory(leaves: usize, records: u32) -> Arc<[AtomicU64]> {
        (0..words_needed(leaves, records)).map(|_| AtomicU64::new(0)).collect()
    }

    fn header(nonce: u64, records: u32) -> AreaHeader {
        AreaHeader { boot_id: [3; 16], nonce, records }
    }

    fn bytes(memory: &Arc<[AtomicU64]>) -> Vec<u8> {
        memory.words().iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect()
    }

    fn record(block: u32) -> PendingRecord {
        PendingRecord {
            block: BlockIndex(block),
            first: 3,
            sectors: 8,
            place: ByteOffset(u64::from(block) << 21),
        }
    }

    fn left(memory: &Arc<[AtomicU64]>) -> Vec<(u32, u32)> {
        let journal = Journal::parse(&bytes(memory)).unwrap();
        let mut left: Vec<_> = journal
            .records()
            .map(|found| found.map(|(_, leaf, record)| (leaf.0, record.block.0)).unwrap())
            .collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn what_was_stored_and_not_retired_is_found() {
        let memory = memory(2, 3);
        let other = LeafIdentity { inode: 99, ..LEAF };
        let mut area = Area::new(Box::new(memory.clone()), &header(1, 3), &[LEAF, other]).unwrap();
        let first = area.store(LeafIndex(0), record(10)).unwrap();
        area.store(LeafIndex(1), record(11)).unwrap();
        area.store(LeafIndex(0), record(12)).unwrap();
        assert_eq!(area.store(LeafIndex(0), record(13)), None, "full");
        assert_eq!(area.store(LeafIndex(2), record(13)), None, "nobody's");
        assert!(area.is_crowded());
        area.retire(first);
        assert_eq!(left(&memory), [(0, 12), (1, 11)]);
        assert!(area.store(LeafIndex(1), record(14)).is_some());
        assert_eq!(left(&memory), [(0, 12), (1, 11), (1, 14)]);
        let journal = Journal::parse(&bytes(&memory)).unwrap();
        assert_eq!(journal.leaf(7, 99), Ok(Some((LeafIndex(1), other))));
        assert_eq!((journal.leaf(7, 9), journal.boot_id()), (Ok(None), [3; 16]));
    }

    #[test]
    fn a_failed_leaf_stays_marked_until_its_mark_is_cleared() {
        let memory = memory(2, 1);
        let area = Area::new(Box::new(memory.clone()), &header(1, 1), &[LEAF, LEAF]).unwrap();
        assert!(Journal::parse(&bytes(&memory)).unwrap().is_spent());
        area.mark_failed(LeafIndex(1));
        let journal = Journal::parse(&bytes(&memory)).unwrap();
        assert!(journal.is_failed(LeafIndex(1)) && !journal.is_failed(LeafIndex(0)) && !journal.is_spent());
        let mut cleared = bytes(&memory);
        let at = Journal::failed_place(LeafIndex(1)) as usize;
        cleared[at..at + 8].fill(0);
        assert!(Journal::parse(&cleared).unwrap().is_spent());
    }

    /// Every store of a record but the last leaves nothing: the words are stored in order.
    #[test]
    fn a_kill_half_way_leaves_no_record() {
        let memory = memory(1, 1);
        let mut area = Area::new(Box::new(memory.clone()), &header(5, 1), &[LEAF]).unwrap();
        let before = bytes(&memory);
        area.store(LeafIndex(0), record(77)).unwrap();
        let after = bytes(&memory);
        let at = before.len() - 32;
        for stored in 0..4 {
            let mut torn = before.clone();
            torn[at..at + 8 * stored].copy_from_slice(&after[at..at + 8 * stored]);
            assert_eq!(Journal::parse(&torn).unwrap().records().count(), 0, "{stored} words");
        }
        assert_eq!(Journal::parse(&after).unwrap().records().count(), 1);
    }

    #[test]
    fn records_of_an_earlier_life_are_not_taken() {
        let memory = memory(1, 4);
        let mut area = Area::new(Box::new(memory.clone()), &header(1, 4), &[LEAF]).unwrap();
        area.store(LeafIndex(0), record(1)).unwrap();
        Area::new(Box::new(memory.clone()), &header(2, 4), &[LEAF]).unwrap();
        let journal = Journal::parse(&bytes(&memory)).unwrap();
        assert!(matches!(journal.records().next(), Some(Err(JournalError::Record(_)))));
    }

    proptest! {
        #[test]
        fn no_changed_word_goes_unnoticed(word in 0..words_needed(2, 4), change in 1u64..) {
            let memory = memory(2, 4);
            let other = LeafIdentity { inode: 99, ..LEAF };
            let mut area = Area::new(Box::new(memory.clone()), &header(1, 4), &[LEAF, other]).unwrap();
            for block in 0..4 {
                area.store(LeafIndex(block % 2), record(block)).unwrap();
            }
            let good: Vec<_> = Journal::parse(&bytes(&memory)).unwrap().records().collect();
            memory[word].fetch_xor(change, Ordering::AcqRel);
            let Ok(journal) = Journal::parse(&bytes(&memory)) else { return Ok(()) };
            for (found, good) in journal.records().zip(&good) {
                prop_assert!(found.is_err() || found == *good);
            }
            if let Ok(Some((_, identity))) = journal.leaf(7, 8) {
                prop_assert_eq!(identity, LEAF);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            if let Ok(journal) = Journal::parse(&bytes) {
                journal.records().for_each(drop);
            }
        }
    }
}
