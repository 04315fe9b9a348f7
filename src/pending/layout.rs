//! Where a journal keeps what, and the checksums that make it believable.
//!
//! Knows words. Does not know who writes or reads them.

use crate::plan::PendingRecord;
use crate::units::{BlockIndex, ByteOffset};
use core::sync::atomic::AtomicU64;

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"gr-pend\x01");
pub(super) const HEADER_WORDS: usize = 64;
pub(super) const LEAF_WORDS: usize = 8;
pub(super) const SLOT_WORDS: usize = 4;
/// Words of the header that never change and stand under its checksum.
pub(super) const HEADER_FIXED: usize = 6;
pub(super) const HEADER_SUM: usize = 6;
pub(super) const HEADER_ALIVE: usize = 7;
pub(super) const LEAF_FIXED: usize = 4;
pub(super) const LEAF_SUM: usize = 4;
pub(super) const LEAF_FAILED: usize = 5;
pub(super) const SLOT_SUM: usize = 3;

/// Memory that is shared with whoever comes after this process.
pub trait Words: core::fmt::Debug + Send {
    fn words(&self) -> &[AtomicU64];

    /// The time, in seconds since 1970, by the clock that stamps files. 0 where there is no clock.
    fn wall_seconds(&self) -> u64 {
        0
    }
}

impl Words for Box<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

impl Words for std::sync::Arc<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// What the whole journal is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaHeader {
    /// After another boot the page cache is another one, and nothing here is true.
    pub boot_id: [u8; 16],
    /// Of this server's life: records of another one never pass for its own.
    pub nonce: u64,
    pub records: u32,
}

/// Which file a leaf is. A copy is another one, and so is a file that was put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeafIdentity {
    pub device: u64,
    pub inode: u64,
    /// As its format tells; zeros where it has none.
    pub unique_id: [u8; 16],
}

/// A leaf's place in the journal's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafIndex(pub u32);

/// The words a journal takes.
pub fn words_needed(leaves: usize, records: u32) -> usize {
    HEADER_WORDS + leaves * LEAF_WORDS + records as usize * SLOT_WORDS
}

pub(super) fn leaf_at(leaf: u32) -> usize {
    HEADER_WORDS + leaf as usize * LEAF_WORDS
}

pub(super) fn slot_at(leaves: u32, slot: u32) -> usize {
    leaf_at(leaves) + slot as usize * SLOT_WORDS
}

impl AreaHeader {
    pub(super) fn words(&self, leaves: u32) -> [u64; HEADER_FIXED] {
        let [high, low] = halves(self.boot_id);
        let counts = u64::from(leaves) << 32 | u64::from(self.records);
        [MAGIC, high, low, self.nonce, counts, 0]
    }
}

impl LeafIdentity {
    pub(super) fn words(&self) -> [u64; LEAF_FIXED] {
        let [high, low] = halves(self.unique_id);
        [self.device, self.inode, high, low]
    }

    pub(super) fn from_words(words: [u64; LEAF_FIXED]) -> Self {
        let [device, inode, high, low] = words;
        Self { device, inode, unique_id: whole(high, low) }
    }
}

pub(super) fn record_words(leaf: LeafIndex, record: PendingRecord) -> [u64; SLOT_SUM] {
    let PendingRecord { block, first, sectors, place } = record;
    [u64::from(leaf.0) << 32 | u64::from(block.0), place.0, u64::from(first) << 32 | u64::from(sectors)]
}

pub(super) fn record_from(words: [u64; SLOT_SUM]) -> (LeafIndex, PendingRecord) {
    let [who, place, range] = words;
    let record = PendingRecord {
        block: BlockIndex(who as u32),
        first: (range >> 32) as u32,
        sectors: range as u32,
        place: ByteOffset(place),
    };
    (LeafIndex((who >> 32) as u32), record)
}

/// Never zero, so that zero is "nothing here". Bound to the life of the server and to the place.
pub(super) fn checksum(nonce: u64, place: usize, words: &[u64]) -> u64 {
    let mut sum = mix(nonce ^ (place as u64).rotate_left(32));
    for word in words {
        sum = mix(sum ^ word);
    }
    sum | 1
}

/// One round of a 64-bit finalizer (a bijection with full avalanche).
fn mix(mut word: u64) -> u64 {
    word ^= word >> 32;
    word = word.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    word ^= word >> 32;
    word = word.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    word ^ word >> 32
}

pub(super) fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let whole = u128::from_be_bytes(bytes);
    [(whole >> 64) as u64, whole as u64]
}

pub(super) fn whole(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}
