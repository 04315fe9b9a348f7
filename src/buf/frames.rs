//! Frames: memory that all shards share, filled page by page and only read from then on.
//!
//! Knows which pages of a frame are valid, which are being filled, and how many shards hold the frame. Does not know
//! what a frame stands for, who waits for a page, nor which frame should go next.
//!
//! A frame has [`FRAME_BYTES`], a page [`PAGE_BYTES`]. One atomic word a frame tells everything:
//!
//! | bits     | meaning                                                                     |
//! |----------|-----------------------------------------------------------------------------|
//! | 0..16    | valid: the page is filled, and stays as it is while the frame is held        |
//! | 16..32   | filling: exactly one [`Fill`] of the process may write the page              |
//! | 32..48   | holders: shards (each counts once) and fills                                 |
//! | 48..50   | uses lately, at most three                                                  |
//! | 50       | taken: a [`Victim`] exists, and nobody can hold the frame                    |
//!
//! A shard that holds a frame already takes and drops further holds without touching the word.

use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::arena::Mapping;
use super::pool::RawRange;
use crate::limits::CHUNK_BYTES;

pub const FRAME_BYTES: usize = CHUNK_BYTES;
pub const PAGE_BYTES: usize = 4096;
pub const PAGES: u32 = (FRAME_BYTES / PAGE_BYTES) as u32;
const _: () = assert!(PAGES == 16, "the word of a frame has sixteen bits for them");

const FILLING: u32 = 16;
const HOLDER: u64 = 1 << 32;
const HOLDERS: u64 = 0xFFFF << 32;
const USE: u64 = 1 << 48;
const USES: u64 = 3 << 48;
const TAKEN: u64 = 1 << 50;

/// Some pages of a frame, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSet(u16);

impl PageSet {
    pub const NONE: Self = Self(0);

    /// The pages that `len` bytes at `start` of a frame touch. What lies beyond the frame is ignored.
    pub fn touched(start: u32, len: u32) -> Self {
        let first = (start / PAGE_BYTES as u32).min(PAGES);
        let end = start.saturating_add(len).div_ceil(PAGE_BYTES as u32).min(PAGES);
        Self::run(first, end.saturating_sub(first))
    }

    fn run(first: u32, count: u32) -> Self {
        Self((((1_u32 << count) - 1) << first) as u16)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn valid_of(word: u64) -> Self {
        Self(word as u16)
    }

    fn filling_of(word: u64) -> Self {
        Self((word >> FILLING) as u16)
    }

    fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Its lowest unbroken run.
    fn first_run(self) -> (u32, u32) {
        let first = self.0.trailing_zeros();
        (first, (self.0 >> first).trailing_ones())
    }
}

/// The frames of one process.
pub struct Frames {
    arena: Mapping,
    words: Box<[AtomicU64]>,
    /// Where the search for a victim goes on.
    hand: AtomicU32,
}

// SAFETY: the mapping is plain memory without thread affinity; its bytes are reached only through holds and fills,
// which the atomic words keep apart (module docs of `buf`, invariant 5).
unsafe impl Send for Frames {}
// SAFETY: as above; all other fields are atomics.
unsafe impl Sync for Frames {}

/// How many frames one search for a victim looks at: bounds the time of one miss.
const HAND_STEPS_MAX: u32 = 256;

impl Frames {
    /// Maps the memory; pages are touched only when they are filled.
    pub fn new(count: u32, huge_pages: bool) -> io::Result<Self> {
        let bytes = (count as usize)
            .checked_mul(FRAME_BYTES)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let arena = Mapping::new(bytes, huge_pages)?;
        let words = (0..count).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { arena, words, hand: AtomicU32::new(0) })
    }

    pub fn count(&self) -> u32 {
        self.words.len() as u32
    }

    /// A frame nobody holds and that has not been used lately; its pages are lost. Frames of which no page is valid
    /// go first, because nothing counts uses of them. `None`: all that were looked at are in use.
    pub fn take_victim(self: &Arc<Self>) -> Option<Victim> {
        let count = self.count();
        for _ in 0..HAND_STEPS_MAX.min(count.saturating_mul(4)) {
            let frame = self.hand.fetch_add(1, Ordering::Relaxed) % count;
            let word = &self.words[frame as usize];
            let seen = word.load(Ordering::Relaxed);
            if seen & (HOLDERS | TAKEN) != 0 {
                continue;
            }
            let next = if seen & USES != 0 { seen - USE } else { TAKEN };
            // Acquire: whatever former holders read happened before the frame is filled anew.
            let swapped = word.compare_exchange(seen, next, Ordering::Acquire, Ordering::Relaxed);
            if swapped.is_ok() && next == TAKEN {
                return Some(Victim { frames: Arc::clone(self), frame, held: false });
            }
        }
        None
    }

    fn address(&self, frame: u32, start: u32) -> NonNull<u8> {
        debug_assert!(frame < self.count() && start as usize <= FRAME_BYTES);
        // SAFETY: frames are named by this module only, below `count`, and `start` lies within one: inside the arena.
        unsafe { self.arena.base().add(frame as usize * FRAME_BYTES + start as usize) }
    }

    fn raw(&self, frame: u32, start: u32, len: u32) -> RawRange {
        RawRange {
            address: self.address(frame, start),
            len,
            arena: self.arena.base(),
            arena_offset: frame as usize * FRAME_BYTES + start as usize,
        }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("count", &self.count()).finish_non_exhaustive()
    }
}

/// A frame taken out of use: nobody holds it, and nobody can.
#[derive(Debug)]
pub struct Victim {
    frames: Arc<Frames>,
    frame: u32,
    /// In use again already.
    held: bool,
}

impl Victim {
    pub fn frame(&self) -> u32 {
        self.frame
    }

    /// Back in use, empty, and held.
    pub fn hold(mut self, view: &FrameView) -> FrameHold {
        debug_assert!(Arc::ptr_eq(&self.frames, view.frames()));
        debug_assert_eq!(view.inner.holds[self.frame as usize].get(), 0, "nobody held it");
        // Release: what it stands for is known before it can be held.
        self.frames.words[self.frame as usize].store(HOLDER, Ordering::Release);
        self.held = true;
        view.again(self.frame)
    }
}

impl Drop for Victim {
    /// Back in use, empty.
    fn drop(&mut self) {
        if !self.held {
            self.frames.words[self.frame as usize].store(0, Ordering::Release);
        }
    }
}

/// One shard's view of the frames: counts its own holds without atomics.
#[derive(Clone)]
pub struct FrameView {
    inner: Rc<ViewInner>,
}

struct ViewInner {
    frames: Arc<Frames>,
    holds: Box<[Cell<u32>]>,
}

impl FrameView {
    pub fn new(frames: Arc<Frames>) -> Self {
        let holds = (0..frames.count()).map(|_| Cell::new(0)).collect();
        Self { inner: Rc::new(ViewInner { frames, holds }) }
    }

    pub fn frames(&self) -> &Arc<Frames> {
        &self.inner.frames
    }

    /// Keeps a frame from being taken. What it stands for is to be looked at after this: it cannot change then.
    /// `None`: it is taken just now.
    pub fn hold(&self, frame: u32) -> Option<FrameHold> {
        let holds = self.inner.holds.get(frame as usize)?;
        if holds.get() == 0 {
            let word = &self.inner.frames.words[frame as usize];
            // Acquire: with the Release of whoever gave the frame its meaning.
            let counted = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                (word & TAKEN == 0 && word & HOLDERS != HOLDERS).then(|| word + HOLDER)
            });
            counted.ok()?;
        }
        Some(self.again(frame))
    }

    fn again(&self, frame: u32) -> FrameHold {
        let holds = &self.inner.holds[frame as usize];
        let Some(more) = holds.get().checked_add(1) else { panic!("a frame has 2^32 holders") };
        holds.set(more);
        FrameHold { view: self.clone(), frame }
    }
}

impl fmt::Debug for FrameView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameView").finish_non_exhaustive()
    }
}

/// Keeps a frame what it is.
pub struct FrameHold {
    view: FrameView,
    frame: u32,
}

impl FrameHold {
    pub fn frame(&self) -> u32 {
        self.frame
    }

    fn word(&self) -> &AtomicU64 {
        &self.view.inner.frames.words[self.frame as usize]
    }

    /// True when all of them are filled. They stay so while this hold lives.
    pub fn has(&self, pages: PageSet) -> bool {
        // Acquire: with the Release of the fill.
        pages.within(PageSet::valid_of(self.word().load(Ordering::Acquire)))
    }

    /// Used once more: it stays longer. Hot frames leave the word alone.
    fn used(&self) {
        let word = self.word();
        let seen = word.load(Ordering::Relaxed);
        if seen & USES != USES {
            // Lost to somebody else's change: as if the use had come a moment earlier.
            let _ = word.compare_exchange(seen, seen + USE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The right to fill the lowest run of `pages` that nobody has filled or fills. Call until `None`.
    pub fn claim(&self, pages: PageSet) -> Option<Fill> {
        let word = self.word();
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let missing = pages.without(PageSet::valid_of(seen)).without(PageSet::filling_of(seen));
            if missing.is_empty() {
                return None;
            }
            let (first, count) = missing.first_run();
            let run = PageSet::run(first, count);
            let next = (seen | u64::from(run.0) << FILLING) + HOLDER;
            match word.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    let frames = Arc::clone(&self.view.inner.frames);
                    return Some(Fill { frames, frame: self.frame, first, count, done: 0 });
                }
                Err(other) => seen = other,
            }
        }
    }

    /// The bytes, if all their pages are valid: a use.
    pub(super) fn into_bytes(self, start: u32, len: u32) -> Result<FrameBytes, Self> {
        let inside = start.checked_add(len).is_some_and(|end| end as usize <= FRAME_BYTES);
        if inside && self.has(PageSet::touched(start, len)) {
            self.used();
            Ok(FrameBytes { hold: self, start, len })
        } else {
            Err(self)
        }
    }
}

impl Drop for FrameHold {
    fn drop(&mut self) {
        let holds = &self.view.inner.holds[self.frame as usize];
        holds.set(holds.get() - 1);
        if holds.get() == 0 {
            // Release: what was read happened before a victim is filled.
            self.word().fetch_sub(HOLDER, Ordering::Release);
        }
    }
}

impl fmt::Debug for FrameHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameHold").field("frame", &self.frame).finish()
    }
}

/// Valid bytes of a held frame.
pub(super) struct FrameBytes {
    hold: FrameHold,
    start: u32,
    len: u32,
}

impl FrameBytes {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        let address = self.hold.view.inner.frames.address(self.hold.frame, self.start);
        // SAFETY: `FrameHold::into_bytes` checked that the range lies in the frame and that its pages are valid; the hold
        // keeps them so, and no fill of valid pages can be claimed: nobody writes them while this borrow lives.
        unsafe { core::slice::from_raw_parts(address.as_ptr(), self.len as usize) }
    }

    pub(super) fn raw(&self, start: u32, len: u32) -> Option<RawRange> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| self.hold.view.inner.frames.raw(self.hold.frame, self.start + start, len))
    }
}

impl Clone for FrameBytes {
    fn clone(&self) -> Self {
        let FrameBytes { hold, start, len } = self;
        Self { hold: hold.view.again(hold.frame), start: *start, len: *len }
    }
}

impl fmt::Debug for FrameBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrameBytes { hold, start, len } = self;
        f.debug_struct("FrameBytes")
            .field("frame", &hold.frame)
            .field("start", start)
            .field("len", len)
            .finish()
    }
}

/// The right to fill a run of pages, and no other's. Dropped without [`Fill::publish`], they are as they were: missing.
#[derive(Debug)]
pub struct Fill {
    frames: Arc<Frames>,
    frame: u32,
    first: u32,
    count: u32,
    /// Bytes filled already.
    done: u32,
}

impl Fill {
    pub fn frame(&self) -> u32 {
        self.frame
    }

    /// Where in the frame the next byte goes.
    pub fn start(&self) -> u32 {
        self.first * PAGE_BYTES as u32 + self.done
    }

    /// Bytes still to come.
    pub fn left(&self) -> u32 {
        self.count * PAGE_BYTES as u32 - self.done
    }

    /// Bytes that have come.
    pub fn done(&self) -> u32 {
        self.done
    }

    pub fn pages(&self) -> PageSet {
        PageSet::run(self.first, self.count)
    }

    /// The next `len` bytes are there.
    pub fn advance(&mut self, len: u32) {
        self.done += len.min(self.left());
    }

    /// The bytes still to come, for whoever has them in memory.
    pub fn rest_mut(&mut self) -> &mut [u8] {
        let (address, len) = (self.frames.address(self.frame, self.start()), self.left() as usize);
        // SAFETY: the pages are marked as filling by this claim alone, so no other reference to them exists, and
        // `&mut self` makes this the only borrow; anonymous memory is initialised.
        unsafe { core::slice::from_raw_parts_mut(address.as_ptr(), len) }
    }

    /// Where the kernel writes. It may do so while this claim lives.
    pub(crate) fn raw_rest(&mut self) -> RawRange {
        self.frames.raw(self.frame, self.start(), self.left())
    }

    /// The pages are valid from now on. Bytes that did not come are zeros.
    pub fn publish(mut self) {
        self.rest_mut().fill(0);
        self.finish(u64::from(self.pages().0));
        // Finished: nothing is left for `drop`.
        self.count = 0;
    }

    /// One step: no one sees the pages neither filling nor valid.
    fn finish(&self, valid: u64) {
        let word = &self.frames.words[self.frame as usize];
        let filling = u64::from(self.pages().0) << FILLING;
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let next = ((seen & !filling) | valid) - HOLDER;
            // SeqCst: in one order with the marks of those who wait (`cache`).
            match word.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if self.count > 0 {
            self.finish(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_views(frames: u32) -> (FrameView, FrameView) {
        let frames = Arc::new(Frames::new(frames, false).unwrap());
        (FrameView::new(Arc::clone(&frames)), FrameView::new(frames))
    }

    fn all() -> PageSet {
        PageSet::touched(0, FRAME_BYTES as u32)
    }

    #[test]
    fn touched_pages_are_those_of_the_first_and_last_byte() {
        assert_eq!(PageSet::touched(0, 1), PageSet(1));
        assert_eq!(PageSet::touched(4095, 2), PageSet(3));
        assert_eq!(PageSet::touched(FRAME_BYTES as u32 - 1, 1), PageSet(1 << 15));
        assert_eq!(all(), PageSet(u16::MAX));
        assert_eq!(PageSet::touched(8192, 0), PageSet::NONE);
    }

    #[test]
    fn a_page_is_claimed_once_and_read_when_it_is_published() {
        let (one, other) = two_views(1);
        let (hold, stranger) = (one.hold(0).unwrap(), other.hold(0).unwrap());
        let mut fill = hold.claim(PageSet::touched(4096, 8192)).unwrap();
        assert!(stranger.claim(PageSet::touched(4096, 4096)).is_none());
        fill.rest_mut().fill(7);
        fill.advance(6000);
        let (start, len) = (4096, 4096);
        let stranger = stranger.into_bytes(start, len).map(|_| ()).unwrap_err();
        fill.publish();
        assert!(!stranger.has(PageSet::touched(0, 8192)));
        let bytes = stranger.into_bytes(4096, 8192).unwrap();
        assert!(bytes.as_slice()[..6000].iter().all(|byte| *byte == 7));
        assert!(bytes.as_slice()[6000..].iter().all(|byte| *byte == 0), "what did not come is zeros");
    }

    #[test]
    fn claims_go_around_what_is_there() {
        let (view, _) = two_views(1);
        let hold = view.hold(0).unwrap();
        hold.claim(PageSet::touched(8192, 4096)).unwrap().publish();
        let first = hold.claim(all()).unwrap();
        let second = hold.claim(all()).unwrap();
        assert_eq!((first.start(), first.left()), (0, 8192));
        assert_eq!((second.start(), second.left()), (12288, FRAME_BYTES as u32 - 12288));
        assert!(hold.claim(all()).is_none());
        drop(first);
        assert_eq!(hold.claim(all()).unwrap().start(), 0, "an abandoned page is missing again");
    }

    #[test]
    fn a_frame_somebody_holds_or_fills_is_never_taken() {
        let (one, other) = two_views(1);
        let hold = one.hold(0).unwrap();
        let again = one.hold(0).unwrap();
        drop(hold);
        assert!(other.frames().take_victim().is_none());
        let fill = again.claim(all()).unwrap();
        drop(again);
        assert!(other.frames().take_victim().is_none(), "the kernel writes it");
        drop(fill);
        let victim = other.frames().take_victim().unwrap();
        assert!(one.hold(0).is_none(), "nobody holds a victim");
        drop(victim);
        assert!(one.hold(0).is_some());
    }

    #[test]
    fn each_use_saves_a_frame_once_up_to_three() {
        let (view, _) = two_views(2);
        for _ in 0..9 {
            view.hold(0).unwrap().used();
        }
        view.hold(1).unwrap().claim(all()).unwrap().publish();
        assert_eq!(view.frames().take_victim().unwrap().frame(), 1);
        let taken = (0..8).filter_map(|_| view.frames().take_victim()).map(|victim| victim.frame());
        assert!(taken.collect::<Vec<_>>().contains(&0), "in the end its turn comes too");
    }
}
