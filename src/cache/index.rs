//! The index of the golden cache and its eviction.
//!
//! Knows slots, keys and waiters. Does not know what a waiter is: it keeps two numbers for the shard.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::buf::{Buf, BufRef, Pool};
use crate::limits::CHUNK_BYTES;
use crate::plan::FileSlot;
use crate::units::ByteOffset;

/// One [`CHUNK_BYTES`] piece of an immutable file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    pub file: FileSlot,
    pub chunk: u64,
}

impl ChunkKey {
    pub fn containing(file: FileSlot, offset: ByteOffset) -> Self {
        Self { file, chunk: offset.0 / CHUNK_BYTES as u64 }
    }

    pub fn offset(self) -> ByteOffset {
        ByteOffset(self.chunk * CHUNK_BYTES as u64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(pub u32);

/// Whoever waits for a chunk: the shard's own numbers (a task and the segment it lacks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub task: u64,
    pub segment: u32,
}

/// What a lookup found.
#[derive(Debug)]
pub enum Lookup {
    Hit(BufRef),
    /// Somebody reads it already: `waiter` is told when it is there.
    Joined,
    /// Nobody has it. Read it into this buffer, then call `filled` or `fill_failed`; `waiter` is told.
    Miss(SlotId, Buf),
    /// Every slot is being filled or sent: read around the cache.
    NoSlot,
}

/// A chunk that came in.
#[derive(Debug)]
pub struct Filled {
    pub buf: BufRef,
}

#[derive(Debug)]
enum State {
    Empty(Buf),
    Filling,
    Ready(BufRef),
    /// Only while a slot changes hands inside one call.
    Vacant,
}

#[derive(Debug)]
struct Slot {
    key: Option<ChunkKey>,
    state: State,
    /// Second chance: set by every hit, cleared by the passing hand.
    referenced: bool,
    waiters: Vec<Waiter>,
}

/// Multiplicative hashing of two small numbers: the keys are ours, not an attacker's.
#[derive(Default, Debug)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// A fixed number of chunks; takes all its buffers when it is made.
#[derive(Debug)]
pub struct GoldenCache {
    slots: Vec<Slot>,
    by_key: HashMap<ChunkKey, u32, BuildHasherDefault<KeyHasher>>,
    hand: u32,
    pub hits: u64,
    pub misses: u64,
    pub joins: u64,
}

/// How many slots the hand passes before a lookup gives up: bounds the time of one miss.
const HAND_STEPS_MAX: u32 = 256;

impl GoldenCache {
    /// Takes up to `chunks` buffers from the pool, for good.
    pub fn new(pool: &Pool, chunks: u32) -> Self {
        let mut slots = Vec::with_capacity(chunks as usize);
        while slots.len() < chunks as usize
            && let Some(buf) = pool.take_chunk()
        {
            slots.push(Slot { key: None, state: State::Empty(buf), referenced: false, waiters: Vec::new() });
        }
        let by_key = HashMap::with_capacity_and_hasher(slots.len() * 2, BuildHasherDefault::default());
        Self { slots, by_key, hand: 0, hits: 0, misses: 0, joins: 0 }
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn lookup(&mut self, key: ChunkKey, waiter: Waiter) -> Lookup {
        if let Some(index) = self.by_key.get(&key) {
            let slot = &mut self.slots[*index as usize];
            if let State::Ready(buf) = &slot.state {
                slot.referenced = true;
                self.hits += 1;
                return Lookup::Hit(buf.clone());
            }
            slot.waiters.push(waiter);
            self.joins += 1;
            return Lookup::Joined;
        }
        let Some((index, buf)) = self.claim() else { return Lookup::NoSlot };
        self.misses += 1;
        let slot = &mut self.slots[index as usize];
        slot.key = Some(key);
        slot.state = State::Filling;
        slot.referenced = true;
        slot.waiters.push(waiter);
        self.by_key.insert(key, index);
        Lookup::Miss(SlotId(index), buf)
    }

    /// The chunk is complete. The waiters move to `waiters`.
    pub fn filled(&mut self, slot: SlotId, buf: Buf, waiters: &mut Vec<Waiter>) -> Filled {
        let slot = &mut self.slots[slot.0 as usize];
        debug_assert!(matches!(slot.state, State::Filling));
        let shared = buf.share();
        slot.state = State::Ready(shared.clone());
        waiters.append(&mut slot.waiters);
        Filled { buf: shared }
    }

    /// The read failed: nothing is cached, so that the next reader tries again. The waiters move to `waiters`.
    pub fn fill_failed(&mut self, slot: SlotId, buf: Buf, waiters: &mut Vec<Waiter>) {
        let slot = &mut self.slots[slot.0 as usize];
        debug_assert!(matches!(slot.state, State::Filling));
        if let Some(key) = slot.key.take() {
            self.by_key.remove(&key);
        }
        slot.state = State::Empty(buf);
        slot.referenced = false;
        waiters.append(&mut slot.waiters);
    }

    /// What a slot that is being filled will hold.
    pub fn key_of(&self, slot: SlotId) -> Option<ChunkKey> {
        self.slots.get(slot.0 as usize)?.key
    }

    /// Second-chance clock over the slots: an empty one, or a ready one that nobody sends or has used lately.
    fn claim(&mut self) -> Option<(u32, Buf)> {
        let count = self.slots.len() as u32;
        for _ in 0..HAND_STEPS_MAX.min(count.saturating_mul(2)) {
            let index = self.hand;
            self.hand = if self.hand + 1 >= count { 0 } else { self.hand + 1 };
            let slot = &mut self.slots[index as usize];
            match core::mem::replace(&mut slot.state, State::Vacant) {
                State::Empty(buf) => return Some((index, buf)),
                State::Ready(shared) if !slot.referenced => match shared.try_unique() {
                    Ok(buf) => {
                        if let Some(key) = slot.key.take() {
                            self.by_key.remove(&key);
                        }
                        return Some((index, buf));
                    }
                    Err(shared) => slot.state = State::Ready(shared),
                },
                other => {
                    slot.state = other;
                    slot.referenced = false;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PoolConfig;

    fn pool(chunks: u32) -> Pool {
        Pool::new(PoolConfig { chunks, smalls: 1, huge_pages: false }).unwrap()
    }

    fn key(chunk: u64) -> ChunkKey {
        ChunkKey { file: FileSlot(3), chunk }
    }

    const A: Waiter = Waiter { task: 1, segment: 0 };
    const B: Waiter = Waiter { task: 2, segment: 5 };

    fn fill(cache: &mut GoldenCache, chunk: u64, byte: u8) {
        let Lookup::Miss(slot, mut buf) = cache.lookup(key(chunk), A) else { panic!("no miss") };
        buf.as_mut_slice()[0] = byte;
        cache.filled(slot, buf, &mut Vec::new());
    }

    #[test]
    fn two_misses_of_one_chunk_are_one_read() {
        let mut cache = GoldenCache::new(&pool(4), 4);
        let Lookup::Miss(slot, buf) = cache.lookup(key(9), A) else { panic!("no miss") };
        assert!(matches!(cache.lookup(key(9), B), Lookup::Joined));
        let mut waiters = Vec::new();
        cache.filled(slot, buf, &mut waiters);
        assert_eq!(waiters, [A, B]);
        assert!(matches!(cache.lookup(key(9), A), Lookup::Hit(_)));
        assert_eq!((cache.hits, cache.misses, cache.joins), (1, 1, 1));
    }

    #[test]
    fn a_chunk_in_use_is_never_evicted() {
        let mut cache = GoldenCache::new(&pool(2), 2);
        fill(&mut cache, 0, 7);
        fill(&mut cache, 1, 8);
        let Lookup::Hit(held) = cache.lookup(key(0), A) else { panic!("no hit") };
        fill(&mut cache, 2, 9);
        assert!(matches!(cache.lookup(key(0), A), Lookup::Hit(_)));
        assert_eq!(held.as_slice()[0], 7);
        assert!(matches!(cache.lookup(key(1), A), Lookup::Miss(..)));
    }

    #[test]
    fn when_every_chunk_is_in_use_the_cache_steps_aside() {
        let mut cache = GoldenCache::new(&pool(1), 1);
        let Lookup::Miss(slot, buf) = cache.lookup(key(0), A) else { panic!("no miss") };
        assert!(matches!(cache.lookup(key(1), B), Lookup::NoSlot));
        let mut waiters = Vec::new();
        cache.fill_failed(slot, buf, &mut waiters);
        assert_eq!(waiters, [A]);
        assert!(matches!(cache.lookup(key(0), A), Lookup::Miss(..)), "a failed read is tried again");
    }
}
