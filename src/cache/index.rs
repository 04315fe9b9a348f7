//! The index of the golden cache and its eviction.
//!
//! Knows slots, keys and waiters. Does not know what a waiter is: it keeps two numbers for the shard.

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

#[derive(Debug)]
enum State {
    Empty(Buf),
    Filling,
    Ready(BufRef),
    /// Only while a slot changes hands inside one call.
    Vacant,
}

/// What every lookup touches: kept small, so that a hit costs one cache line.
#[derive(Debug)]
struct Slot {
    state: State,
    /// Second chance: set by every hit, cleared by the passing hand.
    referenced: bool,
}

/// What only misses and evictions touch.
#[derive(Debug, Default)]
struct Tenant {
    key: Option<ChunkKey>,
    waiters: Vec<Waiter>,
}

/// Chunks of one leaf of [`Places`]: 64 MiB of a file.
const LEAF_CHUNKS: usize = 1024;
/// No slot.
const NOWHERE: u32 = u32::MAX;

/// Where each chunk of each file lies: two plain tables, because files are few and chunks are dense. A leaf comes into
/// being when its first chunk does, and stays.
#[derive(Debug, Default)]
struct Places {
    files: Vec<Vec<Option<Box<[u32; LEAF_CHUNKS]>>>>,
}

impl Places {
    fn find(&self, key: ChunkKey) -> Option<u32> {
        let chunk = usize::try_from(key.chunk).ok()?;
        let leaf = self.files.get(key.file.0 as usize)?.get(chunk / LEAF_CHUNKS)?.as_ref()?;
        let slot = leaf[chunk % LEAF_CHUNKS];
        (slot != NOWHERE).then_some(slot)
    }

    /// `slot` is [`NOWHERE`] to forget the chunk.
    fn put(&mut self, key: ChunkKey, slot: u32) {
        let (file, chunk) = (key.file.0 as usize, key.chunk as usize);
        if self.files.len() <= file {
            self.files.resize_with(file + 1, Vec::new);
        }
        let leaves = &mut self.files[file];
        if leaves.len() <= chunk / LEAF_CHUNKS {
            leaves.resize_with(chunk / LEAF_CHUNKS + 1, || None);
        }
        let leaf = leaves[chunk / LEAF_CHUNKS].get_or_insert_with(|| Box::new([NOWHERE; LEAF_CHUNKS]));
        leaf[chunk % LEAF_CHUNKS] = slot;
    }
}

/// A fixed number of chunks; takes all its buffers when it is made.
#[derive(Debug)]
pub struct GoldenCache {
    slots: Vec<Slot>,
    tenants: Vec<Tenant>,
    places: Places,
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
            slots.push(Slot { state: State::Empty(buf), referenced: false });
        }
        let mut tenants = Vec::new();
        tenants.resize_with(slots.len(), Tenant::default);
        Self { slots, tenants, places: Places::default(), hand: 0, hits: 0, misses: 0, joins: 0 }
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn lookup(&mut self, key: ChunkKey, waiter: Waiter) -> Lookup {
        if let Some(index) = self.places.find(key) {
            let slot = &mut self.slots[index as usize];
            if let State::Ready(buf) = &slot.state {
                // Written only when it changes: most hits leave the line clean.
                if !slot.referenced {
                    slot.referenced = true;
                }
                self.hits += 1;
                return Lookup::Hit(buf.clone());
            }
            self.tenants[index as usize].waiters.push(waiter);
            self.joins += 1;
            return Lookup::Joined;
        }
        let Some((index, buf)) = self.claim() else { return Lookup::NoSlot };
        self.misses += 1;
        self.slots[index as usize] = Slot { state: State::Filling, referenced: true };
        let tenant = &mut self.tenants[index as usize];
        tenant.key = Some(key);
        tenant.waiters.push(waiter);
        self.places.put(key, index);
        Lookup::Miss(SlotId(index), buf)
    }

    /// The chunk is complete: returns it as it is cached. The waiters move to `waiters`.
    pub fn filled(&mut self, slot: SlotId, buf: Buf, waiters: &mut Vec<Waiter>) -> BufRef {
        let index = slot.0 as usize;
        debug_assert!(matches!(self.slots[index].state, State::Filling));
        let shared = buf.share();
        self.slots[index].state = State::Ready(shared.clone());
        waiters.append(&mut self.tenants[index].waiters);
        shared
    }

    /// The read failed: nothing is cached, so that the next reader tries again. The waiters move to `waiters`.
    pub fn fill_failed(&mut self, slot: SlotId, buf: Buf, waiters: &mut Vec<Waiter>) {
        let index = slot.0 as usize;
        debug_assert!(matches!(self.slots[index].state, State::Filling));
        self.evict(slot.0);
        self.slots[index] = Slot { state: State::Empty(buf), referenced: false };
        waiters.append(&mut self.tenants[index].waiters);
    }

    /// What a slot that is being filled will hold.
    pub fn key_of(&self, slot: SlotId) -> Option<ChunkKey> {
        self.tenants.get(slot.0 as usize)?.key
    }

    fn evict(&mut self, index: u32) {
        if let Some(key) = self.tenants[index as usize].key.take() {
            self.places.put(key, NOWHERE);
        }
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
                        self.evict(index);
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
