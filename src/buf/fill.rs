//! Filling pages of a frame: the right to it, and its end.
//!
//! Knows one run of pages. Does not know where their bytes come from.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use super::frames::{FILLING, FRESH, Frames, HOLDER, PAGE_BYTES};
use super::page_set::PageSet;
use super::pool::RawRange;

/// The right to fill a run of pages, and no other's. Dropped without [`Fill::publish`], they are as they were: missing.
#[derive(Debug)]
pub struct Fill {
    frames: Arc<Frames>,
    frame: u32,
    first: u32,
    count: u32,
    /// Bytes filled already.
    done: u32,
    /// Nobody has asked for the pages yet.
    ahead: bool,
}

impl Fill {
    /// What [`FrameHold::claim`] gives: the pages are marked and the frame is held for this.
    pub(super) fn claimed(frames: Arc<Frames>, frame: u32, run: (u32, u32), ahead: bool) -> Self {
        Self { frames, frame, first: run.0, count: run.1, done: 0, ahead }
    }

    pub fn frame(&self) -> u32 {
        self.frame
    }

    /// True while nobody has asked for the pages.
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// Splits off the first page when there are more: each is then read, published or given up by itself.
    pub fn take_page(&mut self) -> Option<Self> {
        if self.count < 2 {
            return None;
        }
        // Relaxed: this fill holds the frame already.
        self.frames.words[self.frame as usize].fetch_add(HOLDER, Ordering::Relaxed);
        let done = self.done.min(PAGE_BYTES as u32);
        let page = Self { frames: Arc::clone(&self.frames), count: 1, done, ..*self };
        (self.first, self.count, self.done) = (self.first + 1, self.count - 1, self.done - done);
        Some(page)
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

    /// Forgets the bytes of a page that has not come whole; how many these are.
    pub fn step_back(&mut self) -> u32 {
        let part = self.done % PAGE_BYTES as u32;
        self.done -= part;
        part
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
        let pages = self.pages();
        if self.ahead {
            self.frames.mark_ahead(self.frame, pages);
        }
        self.finish(u64::from(pages.0) | FRESH);
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
    use crate::buf::{FrameView, Need};

    #[test]
    fn a_fill_falls_into_pages_that_end_one_by_one() {
        let view = FrameView::new(Arc::new(Frames::new(1, false).unwrap()));
        let hold = view.hold(0).unwrap();
        let mut fill = hold.claim(PageSet::touched(4096, 3 * 4096), Need::Demand).unwrap();
        fill.advance(5000);
        let first = fill.take_page().unwrap();
        assert_eq!((first.start(), first.left()), (8192, 0), "what came is kept");
        first.publish();
        let second = fill.take_page().unwrap();
        assert_eq!((second.start(), second.done()), (8192 + 904, 904));
        assert!(fill.take_page().is_none(), "the last page is the fill itself");
        drop(second);
        fill.publish();
        assert!(hold.has(PageSet::touched(4096, 1)) && hold.has(PageSet::touched(12288, 1)));
        assert_eq!(hold.claim(PageSet::touched(0, 65536), Need::Demand).unwrap().start(), 0);
        assert_eq!(hold.claim(PageSet::touched(4096, 65536 - 4096), Need::Demand).unwrap().start(), 8192);
        drop(hold);
        assert!(view.frames().take_victim(Need::Demand).is_some(), "all holds have ended");
    }
}
