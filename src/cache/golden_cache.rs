//! One shard's way to the golden data: lookups, and the commands that wait for pages.
//!
//! Knows which of its own waiters lacks what. Does not know what a waiter is (it keeps two numbers for the shard), nor
//! how a page is read.

use std::sync::Arc;

use super::ahead::{AheadBatch, Place};
use super::shared::{Chunk, Golden, GoldenFile};
use super::touches::{Boot, Touch};
use crate::buf::{BufRef, FRAME_BYTES, Fill, FrameHold, FrameView, Need, PageSet};
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
    /// Bytes this shard read from golden files into the cache, those read ahead included.
    pub filled_bytes: u64,
    /// Of these, bytes nobody had asked for when their read began.
    pub ahead_bytes: u64,
    /// Reads of golden files, and those that failed: each is tried again, page by page.
    pub reads: u64,
    pub failed_reads: u64,
    /// Frames this shard took from another chunk.
    pub evictions: u64,
}

impl CacheCounts {
    /// Lookups that waited for a read.
    pub fn waits(&self) -> u64 {
        self.misses + self.joins
    }
}

#[derive(Debug)]
pub struct GoldenCache {
    golden: Arc<Golden>,
    view: FrameView,
    /// The shard's bit among those that wait for a frame; none of who never waits.
    mark: u64,
    /// By the shard's file slots.
    numbers: Vec<Option<GoldenFile>>,
    /// Where whole pages are read from, by golden file: opened with O_DIRECT where the file system takes it.
    sources: Vec<Option<FileSlot>>,
    /// By frame; without memory where nobody waits.
    waiting: Vec<Vec<Waiting>>,
    /// Their memory, while nobody waits.
    spare: Vec<Vec<Waiting>>,
    claims: Vec<Claim>,
    /// Claims made so far, and their bytes.
    claimed: u64,
    claimed_bytes: u64,
    pub counts: CacheCounts,
}

/// Lists of waiters that are there from the start, and for how many waiters each.
const SPARE_LISTS: usize = 64;
const SPARE_WAITERS: usize = 16;
/// How often a lookup begins again because a frame changed hands meanwhile.
const RETRIES: u32 = 16;
/// Of all frames, the share that boot traces leave to what nodes ask for, as a divisor; and the most frames of one place.
const SPARE_SHARE: u32 = 16;
const PLACE_FRAMES: u32 = 5;

impl GoldenCache {
    pub fn new(golden: Arc<Golden>, shard: u32) -> Self {
        Self::marked(golden, 1 << (shard % 64))
    }

    /// For who only prefetches, beside the shards.
    pub fn outside(golden: Arc<Golden>) -> Self {
        Self::marked(golden, 0)
    }

    fn marked(golden: Arc<Golden>, mark: u64) -> Self {
        let view = FrameView::new(Arc::clone(golden.frames()));
        let mut waiting = Vec::new();
        waiting.resize_with(golden.frames().count() as usize, Vec::new);
        Self {
            golden,
            view,
            mark,
            numbers: Vec::new(),
            sources: Vec::new(),
            waiting,
            spare: (0..SPARE_LISTS).map(|_| Vec::with_capacity(SPARE_WAITERS)).collect(),
            claims: Vec::new(),
            claimed: 0,
            claimed_bytes: 0,
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

    /// Where whole pages of a file are read from.
    pub fn source(&self, slot: FileSlot) -> Option<FileSlot> {
        let golden = (*self.numbers.get(slot.0 as usize)?)?;
        *self.sources.get(golden.number())?
    }

    /// Somebody waits for pages that only this file can give: it must not be forgotten yet.
    pub fn is_awaited(&self, slot: FileSlot) -> bool {
        let Some(Some(golden)) = self.numbers.get(slot.0 as usize).copied() else { return false };
        if self.numbers.iter().filter(|number| **number == Some(golden)).count() > 1 {
            return false;
        }
        let waiting = self.waiting.iter().enumerate().filter(|(_, waiting)| !waiting.is_empty());
        let mut chunks = waiting.filter_map(|(frame, _)| self.golden.stands_for(frame as u32));
        chunks.any(|chunk| chunk.file == golden)
    }

    /// The slot is no golden file any more: nobody looks it up, and nothing reads from it or its source.
    pub fn forget_file(&mut self, slot: FileSlot) {
        let Some(number) = self.numbers.get_mut(slot.0 as usize) else { return };
        let Some(golden) = number.take() else { return };
        // The same file under another slot goes on with what it is itself.
        let other = self.numbers.iter().position(|number| *number == Some(golden));
        if let Some(source) = self.sources.get_mut(golden.number()) {
            *source = other.map(|slot| FileSlot(slot as u32));
        }
    }

    /// `len` bytes of a file from `offset` on, which must lie in one chunk.
    pub fn lookup(&mut self, file: FileSlot, offset: ByteOffset, len: u32, waiter: Waiter) -> Lookup {
        let Some(Some(golden)) = self.numbers.get(file.0 as usize).copied() else { return self.around() };
        let chunk = Chunk::containing(golden, offset);
        let start = (offset.0 % FRAME_BYTES as u64) as u32;
        debug_assert!((start + len) as usize <= FRAME_BYTES);
        for _ in 0..RETRIES {
            let Some(hold) = self.hold(chunk, Need::Demand) else { continue };
            return match hold {
                None => self.around(),
                Some(hold) => match self.bytes(chunk, hold, start, len) {
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

    /// As [`Self::lookup`] of bytes that lie in two chunks at most, when all of them are there; else nothing has happened.
    pub fn hit(&mut self, file: FileSlot, offset: ByteOffset, len: u32) -> Option<(BufRef, Option<BufRef>)> {
        let golden = (*self.numbers.get(file.0 as usize)?)?;
        let chunk = Chunk::containing(golden, offset);
        let start = (offset.0 % FRAME_BYTES as u64) as u32;
        let first = len.min(FRAME_BYTES as u32 - start);
        let hold = self.found(chunk)?;
        if first == len {
            let bytes = self.bytes(chunk, hold, start, len).ok()?;
            self.counts.hits += 1;
            return Some((bytes, None));
        }
        let (next, rest) = (Chunk { number: chunk.number + 1, ..chunk }, len - first);
        let next_hold = self.found(next)?;
        // Both or none of them are used.
        if !hold.has(PageSet::touched(start, first)) {
            return None;
        }
        let more = self.bytes(next, next_hold, 0, rest).ok()?;
        let bytes = self.bytes(chunk, hold, start, first).ok()?;
        self.counts.hits += 2;
        Some((bytes, Some(more)))
    }

    /// The frame of a chunk, held, where it has one.
    fn found(&self, chunk: Chunk) -> Option<FrameHold> {
        let hold = self.view.hold(self.golden.find(chunk)?)?;
        (self.golden.stands_for(hold.frame()) == Some(chunk)).then_some(hold)
    }

    /// The bytes of a held frame, if they are there.
    fn bytes(&self, chunk: Chunk, hold: FrameHold, start: u32, len: u32) -> Result<BufRef, FrameHold> {
        let (bytes, first) = BufRef::of_frame(hold, start, len)?;
        if !first.is_empty() {
            self.golden.note_asked(chunk, first);
        }
        Ok(bytes)
    }

    /// A unit begins to boot, with this read. `None`: it is not recorded.
    pub fn begin_boot(&self, file: FileSlot, offset: ByteOffset, len: u32) -> Option<Boot> {
        let boot = self.golden.touches().begin()?;
        self.note_boot(boot, file, offset, len).then_some(boot)
    }

    /// A read of a recorded boot. False: its recording has ended.
    pub fn note_boot(&self, boot: Boot, file: FileSlot, offset: ByteOffset, len: u32) -> bool {
        let Some(Some(file)) = self.numbers.get(file.0 as usize).copied() else {
            self.golden.touches().end(boot);
            return false;
        };
        self.golden.touches().note(Touch { boot, file, offset, len })
    }

    fn around(&mut self) -> Lookup {
        self.counts.around += 1;
        Lookup::NoFrame
    }

    /// Claims made so far: unchanged, nothing was missing in between.
    pub fn claimed(&self) -> u64 {
        self.claimed
    }

    /// Begins to read those pages of a range that nobody has or reads; nobody waits for them. False: there is no frame
    /// for some of them, or none that could be had without giving up what is kept.
    pub fn prefetch(&mut self, file: FileSlot, offset: ByteOffset, len: u32) -> bool {
        let Some(Some(golden)) = self.numbers.get(file.0 as usize).copied() else { return false };
        self.prefetch_in(golden, offset, len)
    }

    /// As [`Self::prefetch`], but of frames that never were used, and as long as there are more than a few.
    pub fn prefetch_unused(&mut self, file: GoldenFile, Place { offset, len }: Place) -> bool {
        let frames = self.golden.frames();
        frames.unused() >= frames.count() / SPARE_SHARE + PLACE_FRAMES && self.prefetch_in(file, offset, len)
    }

    /// Begins to read a batch, unless another shard has taken it, or this one does not have the file.
    pub fn read_along(&mut self, batch: &AheadBatch) {
        let known = self.sources.get(batch.file.number()).is_some_and(Option::is_some);
        if !known || !batch.take() {
            return;
        }
        let before = self.claimed_bytes;
        let all = batch.places.iter().all(|place| self.prefetch_unused(batch.file, *place));
        batch.begun(self.claimed_bytes - before, all);
    }

    fn prefetch_in(&mut self, golden: GoldenFile, offset: ByteOffset, len: u32) -> bool {
        let (mut at, end) = (offset.0, offset.0 + u64::from(len));
        while at < end {
            let start = at % FRAME_BYTES as u64;
            let len = (FRAME_BYTES as u64 - start).min(end - at);
            let pages = PageSet::touched(start as u32, len as u32);
            if !self.prefetch_pages(Chunk::containing(golden, ByteOffset(at)), pages) {
                return false;
            }
            at += len;
        }
        true
    }

    fn prefetch_pages(&mut self, chunk: Chunk, pages: PageSet) -> bool {
        for _ in 0..RETRIES {
            match self.hold(chunk, Need::Ahead) {
                Some(Some(hold)) => {
                    self.claim(&hold, chunk, pages, Need::Ahead);
                    return true;
                }
                Some(None) => return false,
                None => {}
            }
        }
        false
    }

    /// The frame of a chunk, held; a new one when it had none. `Some(None)`: all are in use. `None`: ask again.
    fn hold(&mut self, chunk: Chunk, need: Need) -> Option<Option<FrameHold>> {
        if let Some(frame) = self.golden.find(chunk) {
            let hold = self.view.hold(frame)?;
            return (self.golden.stands_for(frame) == Some(chunk)).then_some(Some(hold));
        }
        let Some(victim) = self.golden.frames().take_victim(need) else { return Some(None) };
        let frame = victim.frame();
        self.counts.evictions += u64::from(self.golden.stands_for(frame).is_some());
        self.golden.forget(frame);
        let hold = victim.hold(&self.view, self.golden.was_pushed_out(chunk));
        // The hold of a frame that lost the race ends here: it stands for nothing and is found by the next search.
        self.golden.assign(frame, chunk).then_some(Some(hold))
    }

    fn claim(&mut self, hold: &FrameHold, chunk: Chunk, pages: PageSet, need: Need) -> bool {
        let Some(Some(file)) = self.sources.get(chunk.file.number()).copied() else { return false };
        let before = self.claimed;
        while let Some(fill) = hold.claim(pages, need) {
            let offset = ByteOffset(chunk.offset().0 + u64::from(fill.start()));
            self.claimed += 1;
            self.claimed_bytes += u64::from(fill.left());
            if fill.is_ahead() {
                self.golden.ahead_began(fill.pages());
            }
            self.claims.push(Claim { file, offset, fill });
        }
        self.claimed > before
    }

    fn wait(&mut self, waiting: Waiting) -> Lookup {
        let frame = waiting.hold.frame();
        let pages = waiting.pages();
        self.golden.wait(frame, self.mark);
        let Some(chunk) = self.golden.stands_for(frame) else { return self.around() };
        if self.claim(&waiting.hold, chunk, pages, Need::Demand) {
            self.counts.misses += 1;
        } else if waiting.hold.has(pages) {
            // They came in between.
            self.counts.hits += 1;
            let Waiting { hold, start, len, waiter } = waiting;
            return match self.bytes(chunk, hold, start, len) {
                Ok(bytes) => Lookup::Hit(bytes),
                Err(hold) => {
                    self.list(Waiting { waiter, hold, start, len });
                    Lookup::Waits
                }
            };
        } else {
            self.counts.joins += 1;
        }
        self.list(waiting);
        Lookup::Waits
    }

    fn list(&mut self, waiting: Waiting) {
        let list = &mut self.waiting[waiting.hold.frame() as usize];
        if list.capacity() == 0
            && let Some(spare) = self.spare.pop()
        {
            *list = spare;
        }
        list.push(waiting);
    }

    /// What this shard has to read: each is given back by [`Self::fill_ended`]. What somebody waits for comes first;
    /// claims that follow each other in their file stand one behind the other.
    pub fn take_claims(&mut self, claims: &mut Vec<Claim>) {
        self.claims.sort_unstable_by_key(|claim| (claim.fill.is_ahead(), claim.file, claim.offset));
        claims.append(&mut self.claims);
    }

    /// What is left of a claim after a short read; `Err` when it is whole, the end of the file included, or when the file is
    /// gone from this shard.
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

    /// Nothing is left to read: all pages have come, or all that the file has.
    pub fn is_whole(&self, fill: &Fill) -> bool {
        let chunk = self.golden.stands_for(fill.frame());
        let at_end =
            |chunk: Chunk| chunk.offset().0 + u64::from(fill.start()) >= self.golden.len_of(chunk.file);
        fill.left() == 0 || chunk.is_some_and(at_end)
    }

    /// A claimed run was read, or could not be. Own waiters go to `told`; returned are the other shards that wait for
    /// this frame, as bits: each is to call [`Self::look_again`]. New claims may have come.
    pub fn fill_ended(&mut self, fill: Fill, read: bool, told: &mut Vec<Told>) -> u64 {
        let (frame, pages) = (fill.frame(), fill.pages());
        let done = u64::from(fill.done());
        self.counts.filled_bytes += done;
        if fill.is_ahead() {
            self.counts.ahead_bytes += done;
            if let Some(chunk) = self.golden.stands_for(frame) {
                self.golden.ahead_ended(chunk.file, pages, read);
            }
        }
        self.golden.note_read(done, fill.is_ahead());
        let failed = if read { PageSet::NONE } else { pages };
        if read {
            fill.publish();
        } else {
            drop(fill);
        }
        let shards = self.golden.take_waiting(frame);
        self.settle(frame, failed, told);
        shards & !self.mark
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
            self.golden.wait(frame, self.mark);
        }
        let mut index = 0;
        while let Some(entry) = waiting.get(index) {
            let pages = entry.pages();
            if entry.hold.has(pages) || pages.meets(failed) {
                let Waiting { waiter, hold, start, len } = waiting.swap_remove(index);
                let chunk = self.golden.stands_for(frame);
                let bytes = chunk.and_then(|chunk| self.bytes(chunk, hold, start, len).ok());
                told.push(Told { waiter, bytes });
                continue;
            }
            if let Some(chunk) = self.golden.stands_for(frame) {
                self.claim(&entry.hold, chunk, pages, Need::Demand);
            }
            if !(entry.hold.has(pages)) {
                index += 1;
            }
        }
        if waiting.is_empty() && waiting.capacity() > 0 {
            self.spare.push(waiting);
        } else {
            self.waiting[frame as usize] = waiting;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileSlot = FileSlot(0);
    const ANYBODY: Waiter = Waiter { task: 0, segment: 0 };

    /// A cache of one file; the "disk" is always ready.
    struct Desk {
        cache: GoldenCache,
        golden: Arc<Golden>,
    }

    impl Desk {
        fn new(frames: u32) -> Self {
            let golden = Arc::new(Golden::new(frames, false).unwrap());
            let number = golden.register(1 << 40).unwrap();
            let mut cache = GoldenCache::new(Arc::clone(&golden), 0);
            cache.set_file(FILE, number, FILE);
            Self { cache, golden }
        }

        /// Reads `len` bytes at `start` of a chunk; true for a hit.
        fn read_at(&mut self, chunk: u64, start: u64, len: u32) -> bool {
            let offset = ByteOffset(chunk * FRAME_BYTES as u64 + start);
            let hit = matches!(self.cache.lookup(FILE, offset, len, ANYBODY), Lookup::Hit(_));
            self.fill(true);
            hit
        }

        fn read(&mut self, chunk: u64) -> bool {
            self.read_at(chunk, 0, FRAME_BYTES as u32)
        }

        fn fill(&mut self, read: bool) -> Vec<Told> {
            let (mut claims, mut told) = (Vec::new(), Vec::new());
            self.cache.take_claims(&mut claims);
            for Claim { mut fill, .. } in claims {
                fill.advance(fill.left());
                self.cache.fill_ended(fill, read, &mut told);
            }
            told
        }
    }

    #[test]
    fn a_scan_of_a_whole_disk_leaves_what_was_used_twice() {
        for (step, frames) in [(512, 64), (4096, 64), (65536, 200)] {
            let mut desk = Desk::new(frames);
            let hot = u64::from(frames) * 3 / 4;
            assert!((0..hot).all(|chunk| !desk.read(chunk)));
            assert!((0..hot).all(|chunk| desk.read(chunk)), "a second machine boots");
            for chunk in 1000..1000 + 20 * u64::from(frames) {
                for at in (0..FRAME_BYTES as u64).step_by(step as usize) {
                    desk.read_at(chunk, at, step);
                }
            }
            let left = (0..hot).filter(|chunk| desk.read(*chunk)).count();
            assert_eq!(left as u64, hot, "after a scan in steps of {step}");
        }
    }

    /// Exact least-recently-used, as an oracle of what is to be had without thinking.
    fn lru_hits(frames: usize, reads: &[u64]) -> usize {
        let mut recent: Vec<u64> = Vec::new();
        let mut hits = 0;
        for chunk in reads {
            if let Some(at) = recent.iter().position(|known| known == chunk) {
                recent.remove(at);
                hits += 1;
            } else if recent.len() == frames {
                recent.remove(0);
            }
            recent.push(*chunk);
        }
        hits
    }

    #[test]
    fn boots_between_scans_hit_more_often_than_with_least_recently_used() {
        let (frames, mut reads, mut state) = (50, Vec::new(), 1_u64);
        for round in 0..40 {
            reads.extend((0..30).chain(0..30));
            reads.extend((0..200).map(|chunk| 1_000 * (round + 1) + chunk));
            for _ in 0..100 {
                // A little of this and that, small numbers more often.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                reads.push(500 + (state >> 33) % (1 + (state >> 50) % 12));
            }
        }
        let mut desk = Desk::new(frames);
        let hits = reads.iter().filter(|chunk| desk.read(**chunk)).count();
        let lru = lru_hits(frames as usize, &reads);
        assert!(hits > lru + lru / 10, "{hits} of {} hit; least recently used: {lru}", reads.len());
    }

    #[test]
    fn a_new_hot_set_takes_the_place_of_an_old_one() {
        let mut desk = Desk::new(64);
        for golden in [0, 10_000] {
            for _ in 0..6 {
                for chunk in golden..golden + 50 {
                    desk.read(chunk);
                }
            }
            let hits = (golden..golden + 50).filter(|chunk| desk.read(*chunk)).count();
            assert_eq!(hits, 50, "the set at {golden}");
        }
    }

    #[test]
    fn what_nobody_asked_for_never_takes_the_frame_of_something_kept() {
        let mut desk = Desk::new(10);
        let used_twice = (0..10).chain(0..10).filter(|chunk| desk.read(*chunk)).count();
        assert_eq!(used_twice, 10);
        // One new chunk, at the cost of one: all others move to those that are kept.
        desk.read(50);
        for chunk in 100..200 {
            desk.cache.prefetch(FILE, ByteOffset(chunk * FRAME_BYTES as u64), 4096);
            desk.fill(true);
        }
        assert!((1..10).all(|number| desk.golden.find(Chunk { file: file(), number }).is_some()));
    }

    fn file() -> GoldenFile {
        Golden::new(0, false).unwrap().register(1).unwrap()
    }

    #[test]
    fn bytes_read_and_bytes_asked_for_are_counted_apart() {
        let mut desk = Desk::new(4);
        assert!(desk.cache.prefetch(FILE, ByteOffset(0), FRAME_BYTES as u32));
        desk.fill(true);
        assert!(desk.read_at(0, 0, 4096) && desk.read_at(0, 100, 100));
        assert!(!desk.read_at(1, 8192, 512));
        desk.read_at(1, 8192, 512);
        let CacheCounts { filled_bytes, ahead_bytes, .. } = desk.cache.counts;
        assert_eq!((filled_bytes, ahead_bytes), (FRAME_BYTES as u64 + 4096, FRAME_BYTES as u64));
        let counts = desk.golden.counts();
        assert_eq!((counts.read_bytes, counts.ahead_bytes), (filled_bytes, ahead_bytes));
        assert_eq!((counts.asked_bytes, counts.ahead_used_bytes), (8192, 4096));
    }

    #[test]
    fn a_failed_read_reaches_its_waiters_and_is_not_kept() {
        let mut desk = Desk::new(2);
        assert!(matches!(desk.cache.lookup(FILE, ByteOffset(0), 4096, ANYBODY), Lookup::Waits));
        let told = desk.fill(false);
        assert!(matches!(told[..], [Told { bytes: None, .. }]));
        assert!(!desk.read_at(0, 0, 4096), "it is read again");
        assert!(desk.read_at(0, 0, 4096));
    }

    #[test]
    fn claims_come_in_the_order_of_the_file_with_those_somebody_waits_for_first() {
        let mut desk = Desk::new(8);
        let place = |chunk: u64| ByteOffset(chunk * FRAME_BYTES as u64);
        desk.cache.prefetch(FILE, place(0), 4096);
        for chunk in [3, 1, 2] {
            assert!(matches!(desk.cache.lookup(FILE, place(chunk), 4096, ANYBODY), Lookup::Waits));
        }
        let mut claims = Vec::new();
        desk.cache.take_claims(&mut claims);
        let places: Vec<_> = claims.iter().map(|claim| claim.offset.0 / FRAME_BYTES as u64).collect();
        assert_eq!(places, [1, 2, 3, 0]);
    }

    #[test]
    fn a_hit_is_all_of_it_or_nothing_and_counts_as_lookups_do() {
        let mut desk = Desk::new(4);
        let end = ByteOffset(FRAME_BYTES as u64 - 4096);
        assert!(!desk.read_at(0, end.0, 4096));
        assert!(desk.cache.hit(FILE, end, 8192).is_none(), "the second half is not there");
        assert_eq!(desk.cache.counts.hits, 0);
        assert!(!desk.read_at(1, 0, 4096));
        let (first, more) = desk.cache.hit(FILE, end, 8192).unwrap();
        assert_eq!((first.capacity(), more.map(|more| more.capacity())), (4096, Some(4096)));
        assert!(desk.cache.hit(FILE, end, 4096).unwrap().1.is_none());
        assert_eq!(desk.cache.counts.hits, 3);
        assert!(desk.cache.hit(FileSlot(7), end, 4096).is_none() && desk.cache.claims.is_empty());
    }
}
