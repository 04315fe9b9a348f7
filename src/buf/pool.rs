//! The pool: hands out chunks and small buffers, counts their holders, takes them back.
//!
//! Knows which piece of the arena is free or held. Does not know what is in a piece, nor who waits for one.
//!
//! Nothing here allocates after [`Pool::new`].

use core::cell::{Cell, RefCell};
use core::fmt;
use core::ptr::NonNull;
use std::io;
use std::rc::Rc;

use super::arena::Mapping;
use super::frames::{FrameBytes, FrameHold};
use super::page_set::PageSet;
use crate::limits::{CHUNK_BYTES, SMALL_BYTES};

/// How much memory a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Buffers of `CHUNK_BYTES`.
    pub chunks: u32,
    /// Buffers of `SMALL_BYTES`.
    pub smalls: u32,
    /// Ask for transparent huge pages.
    pub huge_pages: bool,
}

/// Names one piece. The order in the arena is: all chunks, the zero chunk, all smalls; so every piece is aligned
/// to its own size, relative to the base.
type PieceIndex = u32;

struct Inner {
    arena: Mapping,
    chunks: u32,
    /// Holders of each piece; 0 is free.
    holders: Box<[Cell<u32>]>,
    /// Last in, first out: the piece freed last is the one still in the CPU's cache.
    free_chunks: RefCell<Vec<PieceIndex>>,
    free_smalls: RefCell<Vec<PieceIndex>>,
}

impl Inner {
    fn zero_piece(&self) -> PieceIndex {
        self.chunks
    }

    fn is_small(&self, piece: PieceIndex) -> bool {
        piece > self.chunks
    }

    fn offset(&self, piece: PieceIndex) -> usize {
        if self.is_small(piece) {
            (self.chunks as usize + 1) * CHUNK_BYTES + (piece - self.chunks - 1) as usize * SMALL_BYTES
        } else {
            piece as usize * CHUNK_BYTES
        }
    }

    fn capacity(&self, piece: PieceIndex) -> usize {
        if self.is_small(piece) { SMALL_BYTES } else { CHUNK_BYTES }
    }

    fn address(&self, piece: PieceIndex) -> NonNull<u8> {
        // SAFETY: handles are made only by this module, for pieces that `Pool::new` sized the arena for.
        unsafe { self.arena.base().add(self.offset(piece)) }
    }

    fn holders(&self, piece: PieceIndex) -> &Cell<u32> {
        &self.holders[piece as usize]
    }
}

/// The memory of one shard. Clones name the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

impl Pool {
    /// Maps the memory; pages are touched only when they are used. The only call that allocates.
    pub fn new(config: PoolConfig) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let pieces = config
            .chunks
            .checked_add(1)
            .and_then(|chunks| chunks.checked_add(config.smalls))
            .ok_or_else(too_large)?;
        let chunk_bytes = (config.chunks as usize + 1).checked_mul(CHUNK_BYTES).ok_or_else(too_large)?;
        let small_bytes = (config.smalls as usize).checked_mul(SMALL_BYTES).ok_or_else(too_large)?;
        let bytes = chunk_bytes.checked_add(small_bytes).ok_or_else(too_large)?;
        let arena = Mapping::new(bytes, config.huge_pages)?;

        let holders: Box<[Cell<u32>]> = (0..pieces).map(|_| Cell::new(0)).collect();
        // The pool itself holds the zero chunk, so it never becomes a `Buf`.
        holders[config.chunks as usize].set(1);
        // Reversed: the lowest addresses are handed out first.
        let free_chunks = (0..config.chunks).rev().collect();
        let free_smalls = (config.chunks + 1..pieces).rev().collect();
        let inner = Inner {
            arena,
            chunks: config.chunks,
            holders,
            free_chunks: RefCell::new(free_chunks),
            free_smalls: RefCell::new(free_smalls),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// A buffer of `CHUNK_BYTES` with whatever its last holder left in it; `None` when all are held.
    pub fn take_chunk(&self) -> Option<Buf> {
        self.take(&self.inner.free_chunks)
    }

    /// A buffer of `SMALL_BYTES` with whatever its last holder left in it; `None` when all are held.
    pub fn take_small(&self) -> Option<Buf> {
        self.take(&self.inner.free_smalls)
    }

    fn take(&self, free: &RefCell<Vec<PieceIndex>>) -> Option<Buf> {
        let piece = free.borrow_mut().pop()?;
        let holders = self.inner.holders(piece);
        debug_assert_eq!(holders.get(), 0, "a free piece has no holder");
        holders.set(1);
        Some(Buf { hold: Hold { pool: self.clone(), piece } })
    }

    /// `CHUNK_BYTES` of zeros that nobody can write.
    pub fn zero_chunk(&self) -> BufRef {
        let piece = self.inner.zero_piece();
        BufRef { held: Held::Piece(self.hold_again(piece)) }
    }

    /// Chunks that [`Pool::take_chunk`] can still give.
    pub fn chunks_free(&self) -> u32 {
        self.inner.free_chunks.borrow().len() as u32
    }

    /// Small buffers that [`Pool::take_small`] can still give.
    pub fn smalls_free(&self) -> u32 {
        self.inner.free_smalls.borrow().len() as u32
    }

    fn hold_again(&self, piece: PieceIndex) -> Hold {
        let holders = self.inner.holders(piece);
        // A wrapped count would free memory that is still held. Only forgetting 2^32 handles gets here.
        let Some(more) = holders.get().checked_add(1) else { panic!("a buffer has 2^32 holders") };
        holders.set(more);
        Hold { pool: self.clone(), piece }
    }

    /// Where the arena lies, for registration with the kernel.
    pub(crate) fn arena(&self) -> (NonNull<u8>, usize) {
        (self.inner.arena.base(), self.inner.arena.len())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("chunks_free", &self.chunks_free())
            .field("smalls_free", &self.smalls_free())
            .finish_non_exhaustive()
    }
}

/// One holder of one piece.
struct Hold {
    pool: Pool,
    piece: PieceIndex,
}

impl Hold {
    fn capacity(&self) -> usize {
        self.pool.inner.capacity(self.piece)
    }

    fn address(&self) -> NonNull<u8> {
        self.pool.inner.address(self.piece)
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the piece is inside the mapping, which this hold keeps, and is initialised (anonymous memory).
        // Writers need the only hold on the piece by value or by `&mut` (`Buf`): none exists while `&self` lives.
        unsafe { core::slice::from_raw_parts(self.address().as_ptr(), self.capacity()) }
    }

    fn raw(&self, start: u32, len: u32) -> Option<RawRange> {
        let end = start.checked_add(len)?;
        if end as usize > self.capacity() {
            return None;
        }
        // SAFETY: `start` is at most the capacity, which the check above established.
        let address = unsafe { self.address().add(start as usize) };
        Some(RawRange {
            address,
            len,
            arena: self.pool.inner.arena.base(),
            arena_offset: self.pool.inner.offset(self.piece) + start as usize,
        })
    }

    fn fmt(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name).field("piece", &self.piece).field("capacity", &self.capacity()).finish()
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.pool.hold_again(self.piece)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let inner = &*self.pool.inner;
        let holders = inner.holders(self.piece);
        holders.set(holders.get() - 1);
        if holders.get() == 0 {
            // Never allocates: the list was built with room for every piece.
            let free = if inner.is_small(self.piece) { &inner.free_smalls } else { &inner.free_chunks };
            free.borrow_mut().push(self.piece);
        }
    }
}

/// Part of a piece as the kernel wants it: valid while the handle it came from lives, and no longer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRange {
    pub(crate) address: NonNull<u8>,
    pub(crate) len: u32,
    /// The base of the arena: says which pool this is.
    pub(crate) arena: NonNull<u8>,
    pub(crate) arena_offset: usize,
}

/// The only handle of a piece: readable and writable. Goes back to the pool on drop.
pub struct Buf {
    hold: Hold,
}

impl Buf {
    /// `CHUNK_BYTES` or `SMALL_BYTES`.
    pub fn capacity(&self) -> usize {
        self.hold.capacity()
    }

    pub fn as_slice(&self) -> &[u8] {
        self.hold.as_slice()
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `Hold::as_slice`; a `Buf` is the only holder, and `&mut self` makes this its only borrow.
        unsafe { core::slice::from_raw_parts_mut(self.hold.address().as_ptr(), self.hold.capacity()) }
    }

    /// Gives up writing for sharing.
    pub fn share(self) -> BufRef {
        BufRef { held: Held::Piece(self.hold) }
    }

    /// `None` when the range is not inside the buffer.
    pub(crate) fn raw_mut(&mut self, start: u32, len: u32) -> Option<RawRange> {
        self.hold.raw(start, len)
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hold.fmt("Buf", f)
    }
}

/// One of any number of read-only handles: of a piece, which the last one to drop gives back to the pool, or of valid
/// bytes of a shared frame.
#[derive(Clone)]
pub struct BufRef {
    held: Held,
}

#[derive(Clone)]
enum Held {
    Piece(Hold),
    Frame(FrameBytes),
}

impl BufRef {
    /// `len` bytes at `start` of a frame, and those of their pages that were not used before.
    ///
    /// # Errors
    /// The hold again: not all their pages are valid.
    pub fn of_frame(hold: FrameHold, start: u32, len: u32) -> Result<(Self, PageSet), FrameHold> {
        hold.into_bytes(start, len).map(|(bytes, first)| (Self { held: Held::Frame(bytes) }, first))
    }

    pub fn capacity(&self) -> usize {
        match &self.held {
            Held::Piece(hold) => hold.capacity(),
            Held::Frame(bytes) => bytes.len(),
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        match &self.held {
            Held::Piece(hold) => hold.as_slice(),
            Held::Frame(bytes) => bytes.as_slice(),
        }
    }

    /// True when this is the only handle of a piece; frames are never given back to be written.
    pub fn is_unique(&self) -> bool {
        match &self.held {
            Held::Piece(hold) => hold.pool.inner.holders(hold.piece).get() == 1,
            Held::Frame(_) => false,
        }
    }

    /// The writable handle, when this is the only one; otherwise itself again.
    pub fn try_unique(self) -> Result<Buf, BufRef> {
        match self.held {
            Held::Piece(hold) if hold.pool.inner.holders(hold.piece).get() == 1 => Ok(Buf { hold }),
            held => Err(Self { held }),
        }
    }

    /// `None` when the range is not inside the buffer. The kernel may only read from it.
    pub(crate) fn raw(&self, start: u32, len: u32) -> Option<RawRange> {
        match &self.held {
            Held::Piece(hold) => hold.raw(start, len),
            Held::Frame(bytes) => bytes.raw(start, len),
        }
    }
}

impl fmt::Debug for BufRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.held {
            Held::Piece(hold) => hold.fmt("BufRef", f),
            Held::Frame(bytes) => bytes.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(chunks: u32, smalls: u32) -> Pool {
        Pool::new(PoolConfig { chunks, smalls, huge_pages: false }).unwrap()
    }

    #[test]
    fn an_exhausted_pool_gives_nothing_until_one_comes_back() {
        let pool = pool(2, 1);
        let first = pool.take_chunk().unwrap();
        let second = pool.take_chunk().unwrap();
        assert!(pool.take_chunk().is_none());
        assert_eq!((pool.chunks_free(), pool.smalls_free()), (0, 1));
        drop(first);
        assert_eq!(pool.chunks_free(), 1);
        assert!(pool.take_chunk().is_some());
        drop(second);
        assert_eq!(pool.chunks_free(), 2);
    }

    #[test]
    fn chunks_and_smalls_have_their_sizes() {
        let pool = pool(1, 1);
        assert_eq!(pool.take_chunk().unwrap().as_slice().len(), CHUNK_BYTES);
        assert_eq!(pool.take_small().unwrap().as_mut_slice().len(), SMALL_BYTES);
    }

    #[test]
    fn a_shared_buffer_becomes_writable_only_for_its_last_holder() {
        let pool = pool(1, 0);
        let mut buf = pool.take_chunk().unwrap();
        buf.as_mut_slice()[7] = 42;
        let shared = buf.share();
        let other = shared.clone();
        let shared = shared.try_unique().unwrap_err();
        assert!(!shared.is_unique());
        drop(other);
        assert_eq!(shared.try_unique().unwrap().as_slice()[7], 42);
        assert_eq!(pool.chunks_free(), 1);
    }

    #[test]
    fn the_zero_chunk_is_zero_and_never_unique() {
        let pool = pool(1, 1);
        pool.take_chunk().unwrap().as_mut_slice().fill(1);
        pool.take_small().unwrap().as_mut_slice().fill(2);
        let zero = pool.zero_chunk();
        assert!(zero.as_slice().iter().all(|byte| *byte == 0));
        assert_eq!(zero.as_slice().len(), CHUNK_BYTES);
        let zero = zero.try_unique().unwrap_err();
        drop(zero);
        assert_eq!((pool.chunks_free(), pool.smalls_free()), (1, 1));
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = pool(1, 0);
        let mut buf = pool.take_chunk().unwrap();
        drop(pool);
        buf.as_mut_slice().fill(9);
        assert_eq!(buf.as_slice()[CHUNK_BYTES - 1], 9);
    }

    #[test]
    fn raw_ranges_never_leave_the_buffer() {
        let pool = pool(1, 1);
        let mut buf = pool.take_small().unwrap();
        assert!(buf.raw_mut(0, SMALL_BYTES as u32).is_some());
        assert!(buf.raw_mut(SMALL_BYTES as u32, 0).is_some());
        assert!(buf.raw_mut(1, SMALL_BYTES as u32).is_none());
        assert!(buf.raw_mut(u32::MAX, 2).is_none());
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Pool::new(PoolConfig { chunks: u32::MAX, smalls: u32::MAX, huge_pages: false }).is_err());
    }

    /// The ends and the middle: pieces overlap in none of them or in one.
    fn marks(buf: &[u8]) -> [u8; 3] {
        [buf[0], buf[buf.len() / 2], buf[buf.len() - 1]]
    }

    proptest! {
        /// Against a model: every held piece keeps its own mark, whatever is taken, cloned and dropped meanwhile.
        #[test]
        fn held_pieces_never_overlap(steps in proptest::collection::vec((0u8..5, any::<u8>()), 1..200)) {
            let pool = pool(4, 5);
            let mut held: Vec<(BufRef, u8)> = Vec::new();
            for (step, mark) in steps {
                match step {
                    0 | 1 => {
                        let taken = if step == 0 { pool.take_chunk() } else { pool.take_small() };
                        if let Some(mut buf) = taken {
                            let bytes = buf.as_mut_slice();
                            let end = bytes.len() - 1;
                            (bytes[0], bytes[end / 2 + 1], bytes[end]) = (mark, mark, mark);
                            held.push((buf.share(), mark));
                        }
                    }
                    2 if !held.is_empty() => {
                        let (buf, mark) = &held[mark as usize % held.len()];
                        let again = (buf.clone(), *mark);
                        held.push(again);
                    }
                    3 | 4 if !held.is_empty() => {
                        drop(held.swap_remove(mark as usize % held.len()));
                    }
                    _ => {}
                }
                for (buf, mark) in &held {
                    prop_assert_eq!(marks(buf.as_slice()), [*mark; 3]);
                }
            }
            held.clear();
            prop_assert_eq!((pool.chunks_free(), pool.smalls_free()), (4, 5));
        }
    }
}
