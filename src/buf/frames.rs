//! Frames: memory that all shards share, filled page by page and only read from then on.
//!
//! Knows which pages of a frame are valid, which are being filled, and how many shards hold the frame. Does not know
//! what a frame stands for, who waits for a page, nor which frame should go next (`eviction`).
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
//! | 51       | fresh: there may be valid pages that nobody has used yet                     |
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
use super::eviction::{Eviction, Need};
use super::fill::Fill;
use super::page_set::PageSet;
use super::pool::RawRange;
use crate::limits::CHUNK_BYTES;

pub const FRAME_BYTES: usize = CHUNK_BYTES;
pub const PAGE_BYTES: usize = 4096;
pub const PAGES: u32 = (FRAME_BYTES / PAGE_BYTES) as u32;
const _: () = assert!(PAGES == 16, "the word of a frame has sixteen bits for them");

pub(super) const FILLING: u32 = 16;
pub(super) const HOLDER: u64 = 1 << 32;
pub(super) const HOLDERS: u64 = 0xFFFF << 32;
pub(super) const USE: u64 = 1 << 48;
pub(super) const USES: u64 = 3 << 48;
pub(super) const TAKEN: u64 = 1 << 50;
pub(super) const FRESH: u64 = 1 << 51;

/// The frames of one process.
pub struct Frames {
    arena: Mapping,
    pub(super) words: Box<[AtomicU64]>,
    /// Pages that were used since the frame was taken (low half), and those read ahead that were not (high half).
    marks: Box<[AtomicU32]>,
    eviction: Eviction,
    /// Pages read ahead that somebody asked for afterwards.
    ahead_used: AtomicU64,
}

// SAFETY: the mapping is plain memory without thread affinity; its bytes are reached only through holds and fills,
// which the atomic words keep apart (module docs of `buf`, invariant 5).
unsafe impl Send for Frames {}
// SAFETY: as above; all other fields are atomics.
unsafe impl Sync for Frames {}

impl Frames {
    /// Maps the memory; pages are touched only when they are filled.
    pub fn new(count: u32, huge_pages: bool) -> io::Result<Self> {
        let bytes = (count as usize)
            .checked_mul(FRAME_BYTES)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let arena = Mapping::new(bytes, huge_pages)?;
        let words = (0..count).map(|_| AtomicU64::new(0)).collect();
        let marks = (0..count).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { arena, words, marks, eviction: Eviction::new(count), ahead_used: AtomicU64::new(0) })
    }

    pub fn count(&self) -> u32 {
        self.words.len() as u32
    }

    /// Frames that never were used.
    pub fn unused(&self) -> u32 {
        self.eviction.unused()
    }

    /// False when the kernel was asked for huge pages and refused.
    pub fn has_huge_pages(&self) -> bool {
        self.arena.has_huge_pages()
    }

    /// Bytes read ahead that somebody asked for afterwards.
    pub fn ahead_used_bytes(&self) -> u64 {
        self.ahead_used.load(Ordering::Relaxed) * PAGE_BYTES as u64
    }

    /// A frame nobody holds; its pages are lost. `None`: all that were looked at are in use.
    pub fn take_victim(self: &Arc<Self>, need: Need) -> Option<Victim> {
        let frame = self.eviction.take(&self.words, need)?;
        Some(Victim { frames: Arc::clone(self), frame, held: false })
    }

    pub(super) fn mark_ahead(&self, frame: u32, pages: PageSet) {
        self.marks[frame as usize].fetch_or(u32::from(pages.0) << 16, Ordering::Relaxed);
    }

    /// A use of a frame that is not known to be hot. Those of the `touched` pages that were not used before.
    #[cold]
    fn mark_used(&self, frame: u32, start: u32, len: u32) -> PageSet {
        let (touched, begun) = (PageSet::touched(start, len), PageSet::begun(start, len));
        let marks = &self.marks[frame as usize];
        let before = marks.load(Ordering::Relaxed);
        let mut first = touched.without(PageSet(before as u16));
        let ahead = touched.without(touched.without(PageSet((before >> 16) as u16)));
        if !(first.is_empty() && ahead.is_empty()) {
            let before = marks.fetch_or(u32::from(touched.0), Ordering::Relaxed);
            first = touched.without(PageSet(before as u16));
            let before = marks.fetch_and(!(u32::from(ahead.0) << 16), Ordering::Relaxed);
            let used = u64::from((before >> 16 & u32::from(ahead.0)).count_ones());
            self.ahead_used.fetch_add(used, Ordering::Relaxed);
        }
        let word = &self.words[frame as usize];
        let mut seen = word.load(Ordering::Relaxed);
        let used = PageSet(marks.load(Ordering::Relaxed) as u16);
        if seen & FRESH != 0 && PageSet::valid_of(seen).within(used) {
            // When something else changes meanwhile, the next use does it.
            let _ = word.compare_exchange(seen, seen & !FRESH, Ordering::Relaxed, Ordering::Relaxed);
            seen = word.load(Ordering::Relaxed);
        }
        // The first pass over a frame is no reason to keep it, in however small steps it is made.
        if !begun.is_empty() && !begun.meets(first) && seen & USES != USES {
            // Lost to somebody else's change: as if the use had come a moment earlier.
            let _ = word.compare_exchange(seen, seen + USE, Ordering::Relaxed, Ordering::Relaxed);
        }
        first
    }

    pub(super) fn address(&self, frame: u32, start: u32) -> NonNull<u8> {
        debug_assert!(frame < self.count() && start as usize <= FRAME_BYTES);
        // SAFETY: frames are named by this module only, below `count`, and `start` lies within one: inside the arena.
        unsafe { self.arena.base().add(frame as usize * FRAME_BYTES + start as usize) }
    }

    pub(super) fn raw(&self, frame: u32, start: u32, len: u32) -> RawRange {
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

    /// Back in use, empty, and held. `known`: what it stands for was pushed out not long ago.
    pub fn hold(mut self, view: &FrameView, known: bool) -> FrameHold {
        debug_assert!(Arc::ptr_eq(&self.frames, view.frames()));
        debug_assert_eq!(view.inner.holds[self.frame as usize].get(), 0, "nobody held it");
        self.frames.marks[self.frame as usize].store(0, Ordering::Relaxed);
        // Release: what it stands for is known before it can be held.
        self.frames.words[self.frame as usize].store(HOLDER, Ordering::Release);
        self.held = true;
        self.frames.eviction.add(self.frame, known);
        view.again(self.frame)
    }
}

impl Drop for Victim {
    /// Back in use, empty.
    fn drop(&mut self) {
        if !self.held {
            self.frames.words[self.frame as usize].store(0, Ordering::Release);
            self.frames.eviction.add(self.frame, false);
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

    /// Used once more: it stays longer. Hot frames leave the word alone. The pages that were not used before.
    fn used(&self, start: u32, len: u32) -> PageSet {
        if self.word().load(Ordering::Relaxed) & (USES | FRESH) == USES {
            return PageSet::NONE;
        }
        self.view.inner.frames.mark_used(self.frame, start, len)
    }

    /// The right to fill the lowest run of `pages` that nobody has filled or fills. Call until `None`.
    pub fn claim(&self, pages: PageSet, need: Need) -> Option<Fill> {
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
                    return Some(Fill::claimed(frames, self.frame, (first, count), need == Need::Ahead));
                }
                Err(other) => seen = other,
            }
        }
    }

    /// The bytes, if all their pages are valid: a use. And those of the pages that were not used before.
    pub(super) fn into_bytes(self, start: u32, len: u32) -> Result<(FrameBytes, PageSet), Self> {
        let inside = start.checked_add(len).is_some_and(|end| end as usize <= FRAME_BYTES);
        if inside && self.has(PageSet::touched(start, len)) {
            let first = self.used(start, len);
            Ok((FrameBytes { hold: self, start, len }, first))
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
    fn a_page_is_claimed_once_and_read_when_it_is_published() {
        let (one, other) = two_views(1);
        let (hold, stranger) = (one.hold(0).unwrap(), other.hold(0).unwrap());
        let mut fill = hold.claim(PageSet::touched(4096, 8192), Need::Demand).unwrap();
        assert!(stranger.claim(PageSet::touched(4096, 4096), Need::Demand).is_none());
        fill.rest_mut().fill(7);
        fill.advance(6000);
        let (start, len) = (4096, 4096);
        let stranger = stranger.into_bytes(start, len).map(|_| ()).unwrap_err();
        fill.publish();
        assert!(!stranger.has(PageSet::touched(0, 8192)));
        let (bytes, first) = stranger.into_bytes(4096, 8192).unwrap();
        assert_eq!(first, PageSet::touched(4096, 8192), "nobody used them before");
        assert!(bytes.as_slice()[..6000].iter().all(|byte| *byte == 7));
        assert!(bytes.as_slice()[6000..].iter().all(|byte| *byte == 0), "what did not come is zeros");
    }

    #[test]
    fn claims_go_around_what_is_there() {
        let (view, _) = two_views(1);
        let hold = view.hold(0).unwrap();
        hold.claim(PageSet::touched(8192, 4096), Need::Demand).unwrap().publish();
        let first = hold.claim(all(), Need::Demand).unwrap();
        let second = hold.claim(all(), Need::Demand).unwrap();
        assert_eq!((first.start(), first.left()), (0, 8192));
        assert_eq!((second.start(), second.left()), (12288, FRAME_BYTES as u32 - 12288));
        assert!(hold.claim(all(), Need::Demand).is_none());
        drop(first);
        assert_eq!(hold.claim(all(), Need::Demand).unwrap().start(), 0, "an abandoned page is missing again");
    }

    #[test]
    fn a_frame_somebody_holds_or_fills_is_never_taken() {
        let (one, other) = two_views(1);
        let hold = one.hold(0).unwrap();
        let again = one.hold(0).unwrap();
        drop(hold);
        assert!(other.frames().take_victim(Need::Demand).is_none());
        let fill = again.claim(all(), Need::Demand).unwrap();
        drop(again);
        assert!(other.frames().take_victim(Need::Demand).is_none(), "the kernel writes it");
        drop(fill);
        let victim = other.frames().take_victim(Need::Demand).unwrap();
        assert!(one.hold(0).is_none(), "nobody holds a victim");
        drop(victim);
        assert!(one.hold(0).is_some());
    }

    #[test]
    fn pages_read_ahead_are_counted_when_they_are_used() {
        let (view, _) = two_views(1);
        let hold = view.hold(0).unwrap();
        hold.claim(PageSet::touched(0, 8192), Need::Ahead).unwrap().publish();
        hold.claim(PageSet::touched(8192, 4096), Need::Demand).unwrap().publish();
        assert_eq!(view.frames().ahead_used_bytes(), 0);
        for (start, len, used) in [(8192, 4096, 0), (0, 512, 4096), (0, 8192, 8192), (0, 8192, 8192)] {
            assert!(view.hold(0).unwrap().into_bytes(start, len).is_ok());
            assert_eq!(view.frames().ahead_used_bytes(), used);
        }
    }

    #[test]
    fn the_first_use_of_a_page_is_noticed_however_hot_its_frame_is() {
        let (view, _) = two_views(1);
        let hold = view.hold(0).unwrap();
        let page = |number: u32| PageSet::touched(number * 4096, 4096);
        let first_use = |number: u32| view.hold(0).unwrap().into_bytes(number * 4096, 4096).unwrap().1;
        hold.claim(page(0), Need::Demand).unwrap().publish();
        assert_eq!(first_use(0), page(0));
        assert!((0..9).all(|_| first_use(0).is_empty()));
        for number in 1..4 {
            hold.claim(page(number), Need::Demand).unwrap().publish();
            assert_eq!((first_use(0), first_use(number)), (PageSet::NONE, page(number)));
        }
        assert_eq!(
            hold.word().load(Ordering::Relaxed) & (USES | FRESH),
            USES,
            "hot, and nothing is left to notice"
        );
    }

    #[test]
    fn a_first_pass_is_no_use_and_a_second_one_is() {
        let (view, _) = two_views(1);
        let hold = view.hold(0).unwrap();
        hold.claim(all(), Need::Demand).unwrap().publish();
        let uses = || hold.word().load(Ordering::Relaxed) & USES;
        let pass = |step: u32| {
            for at in (0..FRAME_BYTES as u32).step_by(step as usize) {
                assert!(view.hold(0).unwrap().into_bytes(at, step).is_ok());
            }
        };
        pass(512);
        assert_eq!(uses(), 0);
        pass(FRAME_BYTES as u32);
        assert_eq!(uses(), USE);
        pass(4096);
        assert_eq!(uses(), USES, "no more than three");
    }
}
