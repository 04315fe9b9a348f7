//! One shard's way to the golden data: lookups, and the commands that wait for pages.
//!
//! Knows which of its own waiters lacks what. Does not know what a waiter is (it keeps two numbers for the shard), nor
//! how a page is read.

use std::sync::Arc;

use super::shared::{Chunk, Golden, GoldenFile};
use crate::buf::{BufRef, FRAME_BYTES, Fill, FrameHold, FrameView, PageSet};
use crate::plan::FileSlot;
use crate::units::ByteOffset;

/// Whoever waits for pages: the shard's own numbers (a task and the segment it lacks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub task: u64,
    pub segment: u32,
}

/// What a lookup found.
#[derive(Debug)]
pub enum Lookup {
    /// The bytes asked for, no more.
    Hit(BufRef),
    /// `waiter` is told; the shard reads what [`GoldenCache::take_claims`] gives.
    Waits,
    /// The file is not cached, or every frame is in use: read around the cache.
    NoFrame,
}

/// A run of pages this shard is to read.
#[derive(Debug)]
pub struct Claim {
    /// Of the shard: where golden data is read from.
    pub file: FileSlot,
    pub offset: ByteOffset,
    pub fill: Fill,
}

/// A waiter whose bytes are there; `None`: they could not be read.
#[derive(Debug)]
pub struct Told {
    pub waiter: Waiter,
    pub bytes: Option<BufRef>,
}

#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    hold: FrameHold,
    start: u32,
    len: u32,
}

impl Waiting {
    fn pages(&self) -> PageSet {
        PageSet::touched(self.start, self.len)
    }
}

/// Lookups of one shard since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    pub hits: u64,
    /// Lookups that found nothing and began a read.
    pub misses: u64,
    /// Lookups that waited for a read somebody else had begun.
    pub joins: u64,
    /// Lookups that were read around the cache.
    pub around: u64,
    /// Bytes this shard read from golden files into the cache.
    pub filled_bytes: u64,
}

#[derive(Debug)]
pub struct GoldenCache {
    golden: Arc<Golden>,
    view: FrameView,
    shard: u32,
    /// By the shard's file slots.
    numbers: Vec<Option<GoldenFile>>,
    /// Where whole pages are read from, by golden file: opened with O_DIRECT where the file system takes it.
    sources: Vec<Option<FileSlot>>,
    /// By frame.
    waiting: Vec<Vec<Waiting>>,
    claims: Vec<Claim>,
    pub counts: CacheCounts,
}

/// How often a lookup begins again because a frame changed hands meanwhile.
const RETRIES: u32 = 16;

impl GoldenCache {
    pub fn new(golden: Arc<Golden>, shard: u32) -> Self {
        let view = FrameView::new(Arc::clone(golden.frames()));
        let mut waiting = Vec::new();
        waiting.resize_with(golden.frames().count() as usize, Vec::new);
        Self {
            golden,
            view,
            shard,
            numbers: Vec::new(),
            sources: Vec::new(),
            waiting,
            claims: Vec::new(),
            counts: CacheCounts::default(),
        }
    }

    /// `slot` is the file `golden`; whole pages of it are read from `source`.
    pub fn set_file(&mut self, slot: FileSlot, golden: GoldenFile, source: FileSlot) {
        let index = slot.0 as usize;
        if self.numbers.len() <= index {
            self.numbers.resize(index + 1, None);
        }
        self.numbers[index] = Some(golden);
        let number = golden.number();
        if self.sources.len() <= number {
            self.sources.resize(number + 1, None);
        }
        self.sources[number] = Some(source);
    }

    /// `len` bytes of a file from `offset` on, which must lie in one chunk.
    pub fn lookup(&mut self, file: FileSlot, offset: ByteOffset, len: u32, waiter: Waiter) -> Lookup {
        let Some(Some(golden)) = self.numbers.get(file.0 as usize).copied() else { return self.around() };
        let chunk = Chunk::containing(golden, offset);
        let start = (offset.0 % FRAME_BYTES as u64) as u32;
        debug_assert!((start + len) as usize <= FRAME_BYTES);
        for _ in 0..RETRIES {
            let Some(hold) = self.hold(chunk) else { continue };
            return match hold {
                None => self.around(),
                Some(hold) => match BufRef::of_frame(hold, start, len) {
                    Ok(bytes) => {
                        self.counts.hits += 1;
                        Lookup::Hit(bytes)
                    }
                    Err(hold) => self.wait(Waiting { waiter, hold, start, len }),
                },
            };
        }
        self.around()
    }

    fn around(&mut self) -> Lookup {
        self.counts.around += 1;
        Lookup::NoFrame
    }

    /// Begins to read the pages of a chunk that nobody has or reads; nobody waits for them.
    pub fn prefetch(&mut self, file: FileSlot, offset: ByteOffset, len: u32) {
        let Some(Some(golden)) = self.numbers.get(file.0 as usize).copied() else { return };
        let chunk = Chunk::containing(golden, offset);
        let start = (offset.0 % FRAME_BYTES as u64) as u32;
        let pages = PageSet::touched(start, len);
        for _ in 0..RETRIES {
            match self.hold(chunk) {
                Some(Some(hold)) => {
                    self.claim(&hold, chunk, pages);
                    return;
                }
                Some(None) => return,
                None => {}
            }
        }
    }

    /// The frame of a chunk, held; a new one when it had none. `Some(None)`: all are in use. `None`: ask again.
    fn hold(&self, chunk: Chunk) -> Option<Option<FrameHold>> {
        if let Some(frame) = self.golden.find(chunk) {
            let hold = self.view.hold(frame)?;
            return (self.golden.stands_for(frame) == Some(chunk)).then_some(Some(hold));
        }
        let Some(victim) = self.golden.frames().take_victim() else { return Some(None) };
        let frame = victim.frame();
        self.golden.forget(frame);
        let hold = victim.hold(&self.view);
        // The hold of a frame that lost the race ends here: it stands for nothing and is found by the next search.
        self.golden.assign(frame, chunk).then_some(Some(hold))
    }

    fn claim(&mut self, hold: &FrameHold, chunk: Chunk, pages: PageSet) -> bool {
        let Some(Some(file)) = self.sources.get(chunk.file.number()).copied() else { return false };
        let before = self.claims.len();
        while let Some(fill) = hold.claim(pages) {
            let offset = ByteOffset(chunk.offset().0 + u64::from(fill.start()));
            self.claims.push(Claim { file, offset, fill });
        }
        self.claims.len() > before
    }

    fn wait(&mut self, waiting: Waiting) -> Lookup {
        let frame = waiting.hold.frame();
        let pages = waiting.pages();
        self.golden.wait(frame, self.shard);
        let Some(chunk) = self.golden.stands_for(frame) else { return self.around() };
        if self.claim(&waiting.hold, chunk, pages) {
            self.counts.misses += 1;
        } else if waiting.hold.has(pages) {
            // They came in between.
            self.counts.hits += 1;
            let Waiting { hold, start, len, waiter } = waiting;
            return match BufRef::of_frame(hold, start, len) {
                Ok(bytes) => Lookup::Hit(bytes),
                Err(hold) => {
                    self.waiting[frame as usize].push(Waiting { waiter, hold, start, len });
                    Lookup::Waits
                }
            };
        } else {
            self.counts.joins += 1;
        }
        self.waiting[frame as usize].push(waiting);
        Lookup::Waits
    }

    /// What this shard has to read: each is given back by [`Self::fill_ended`].
    pub fn take_claims(&mut self, claims: &mut Vec<Claim>) {
        claims.append(&mut self.claims);
    }

    /// What is left of a claim after a short read; `Err` when it is complete, the end of the file included.
    pub fn go_on(&self, fill: Fill) -> Result<Claim, Fill> {
        let place = self.golden.stands_for(fill.frame()).and_then(|chunk| {
            let file = (*self.sources.get(chunk.file.number())?)?;
            let offset = ByteOffset(chunk.offset().0 + u64::from(fill.start()));
            (fill.left() > 0 && offset.0 < self.golden.len_of(chunk.file)).then_some((file, offset))
        });
        match place {
            Some((file, offset)) => Ok(Claim { file, offset, fill }),
            None => Err(fill),
        }
    }

    /// A claimed run was read, or could not be. Own waiters go to `told`; returned are the other shards that wait for
    /// this frame, as bits: each is to call [`Self::look_again`]. New claims may have come.
    pub fn fill_ended(&mut self, fill: Fill, read: bool, told: &mut Vec<Told>) -> u64 {
        let (frame, pages) = (fill.frame(), fill.pages());
        self.counts.filled_bytes += u64::from(fill.done());
        let failed = if read { PageSet::NONE } else { pages };
        if read {
            fill.publish();
        } else {
            drop(fill);
        }
        let shards = self.golden.take_waiting(frame);
        self.settle(frame, failed, told);
        shards & !(1 << (self.shard % 64))
    }

    /// Another shard's fill of a frame has ended.
    pub fn look_again(&mut self, frame: u32, told: &mut Vec<Told>) {
        if (frame as usize) < self.waiting.len() {
            self.settle(frame, PageSet::NONE, told);
        }
    }

    /// Tells the waiters whose pages are there, or have `failed` in this shard's own hands. Of the others each page is
    /// being filled after this, and the frame has this shard's mark.
    fn settle(&mut self, frame: u32, failed: PageSet, told: &mut Vec<Told>) {
        let mut waiting = core::mem::take(&mut self.waiting[frame as usize]);
        if !waiting.is_empty() {
            self.golden.wait(frame, self.shard);
        }
        let mut index = 0;
        while let Some(entry) = waiting.get(index) {
            let pages = entry.pages();
            if entry.hold.has(pages) || pages.meets(failed) {
                let Waiting { waiter, hold, start, len } = waiting.swap_remove(index);
                told.push(Told { waiter, bytes: BufRef::of_frame(hold, start, len).ok() });
                continue;
            }
            if let Some(chunk) = self.golden.stands_for(frame) {
                self.claim(&entry.hold, chunk, pages);
            }
            if !(entry.hold.has(pages)) {
                index += 1;
            }
        }
        self.waiting[frame as usize] = waiting;
    }
}
