//! What all shards know together: which frame stands for which chunk of which golden file, and which shards wait.
//!
//! Knows tables of atomics. Does not know tasks, nor who reads a missing page.
//!
//! A chunk's entry in its file's table names a frame; the frame names the chunk it stands for. The frame is held first
//! and asked then, because the entry may be a moment old. An entry is written only by whoever took the frame as its
//! victim, and only for that frame.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::io;
use std::sync::{Arc, OnceLock};

use crate::buf::{FRAME_BYTES, Frames, PAGE_BYTES, PageSet};
use crate::limits::GOLDEN_FILES_MAX;
use crate::units::ByteOffset;

use super::touches::TouchLog;

/// An immutable file of this process, the same for all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoldenFile(u32);

/// One [`FRAME_BYTES`] piece of a golden file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    pub file: GoldenFile,
    pub number: u64,
}

impl GoldenFile {
    pub(super) fn number(self) -> usize {
        self.0 as usize
    }
}

impl Chunk {
    pub fn containing(file: GoldenFile, offset: ByteOffset) -> Self {
        Self { file, number: offset.0 / FRAME_BYTES as u64 }
    }

    pub fn offset(self) -> ByteOffset {
        ByteOffset(self.number * FRAME_BYTES as u64)
    }

    /// As one word; zero is no chunk. File numbers have few bits, chunk numbers those of a 64-bit file offset.
    fn word(self) -> u64 {
        (u64::from(self.file.0) + 1) << 48 | self.number
    }

    fn from_word(word: u64) -> Option<Self> {
        let file = (word >> 48).checked_sub(1)? as u32;
        Some(Self { file: GoldenFile(file), number: word & ((1 << 48) - 1) })
    }
}

const _: () = assert!(GOLDEN_FILES_MAX < 1 << 16);

/// Chunks of one leaf of a table: 64 MiB of a file.
const LEAF_CHUNKS: usize = 1024;

/// What is known of one chunk.
#[derive(Debug, Default)]
struct Entry {
    /// Its frame, plus one; zero is none.
    frame: AtomicU32,
    /// The pages that were ever asked for, as bits.
    asked: AtomicU16,
}

/// The chunks of one file. A leaf comes into being with its first chunk, and stays.
#[derive(Debug)]
struct Table {
    /// Bytes of the file: reads end here.
    len: u64,
    /// Runs of pages that nobody had asked for and that could not be read.
    ahead_failures: AtomicU32,
    leaves: Box<[OnceLock<Box<[Entry]>>]>,
}

impl Table {
    fn new(len: u64) -> Self {
        let leaves = len.div_ceil(FRAME_BYTES as u64).div_ceil(LEAF_CHUNKS as u64);
        Self {
            len,
            ahead_failures: AtomicU32::new(0),
            leaves: (0..leaves).map(|_| OnceLock::new()).collect(),
        }
    }

    /// `None` beyond the end the file had when it was opened.
    fn entry(&self, chunk: u64) -> Option<&Entry> {
        let leaf = self.leaves.get(usize::try_from(chunk).ok()? / LEAF_CHUNKS)?;
        let leaf = leaf.get_or_init(|| (0..LEAF_CHUNKS).map(|_| Entry::default()).collect());
        leaf.get(chunk as usize % LEAF_CHUNKS)
    }
}

/// The golden data of one process.
#[derive(Debug)]
pub struct Golden {
    frames: Arc<Frames>,
    tables: Box<[OnceLock<Table>]>,
    files: AtomicU32,
    /// What each frame stands for, as `Chunk::word`.
    chunks: Box<[AtomicU64]>,
    /// Shards that wait for pages of each frame, as bits of their numbers modulo 64.
    waiting: Box<[AtomicU64]>,
    /// Chunks that lost their frames lately, as hashes at places of their hashes.
    pushed_out: Box<[AtomicU32]>,
    /// Pages that were ever asked for.
    asked_pages: AtomicU64,
    read_bytes: AtomicU64,
    ahead_bytes: AtomicU64,
    /// Bytes of pages being read that nobody had asked for.
    ahead_in_flight: AtomicU64,
    touches: TouchLog,
}

/// Bytes of golden files since the process started, over all cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoldenCounts {
    /// Read from the files into the cache.
    pub read_bytes: u64,
    /// Of these, read before anybody asked for them; and of these, asked for since.
    pub ahead_bytes: u64,
    pub ahead_used_bytes: u64,
    /// Asked for, in whole pages, each counted once: what has to be read at least.
    pub asked_bytes: u64,
}

impl Golden {
    /// # Errors
    /// The address space has no room.
    pub fn new(frames: u32, huge_pages: bool) -> io::Result<Self> {
        let frames = Arc::new(Frames::new(frames, huge_pages)?);
        let words = || (0..frames.count()).map(|_| AtomicU64::new(0)).collect();
        let (chunks, waiting) = (words(), words());
        let tables = (0..GOLDEN_FILES_MAX).map(|_| OnceLock::new()).collect();
        let pushed_out = (0..frames.count()).map(|_| AtomicU32::new(0)).collect();
        Ok(Self {
            frames,
            tables,
            files: AtomicU32::new(0),
            chunks,
            waiting,
            pushed_out,
            asked_pages: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            ahead_bytes: AtomicU64::new(0),
            ahead_in_flight: AtomicU64::new(0),
            touches: TouchLog::closed(),
        })
    }

    pub fn frames(&self) -> &Arc<Frames> {
        &self.frames
    }

    /// Gives a file of `len` bytes, which nobody writes, a number. `None`: there are too many; it is read around the
    /// cache then.
    pub fn register(&self, len: u64) -> Option<GoldenFile> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let table = self.tables.get(number as usize)?;
        table.set(Table::new(len)).ok()?;
        Some(GoldenFile(number))
    }

    /// Boots are recorded.
    #[must_use]
    pub fn recording(mut self) -> Self {
        self.touches = TouchLog::open();
        self
    }

    /// What recorded boots read.
    pub fn touches(&self) -> &TouchLog {
        &self.touches
    }

    /// True when somebody has asked for some page of the range since the process started.
    pub fn was_asked(&self, file: GoldenFile, offset: ByteOffset, len: u64) -> bool {
        let (mut at, end) = (offset.0, offset.0.saturating_add(len));
        while at < end {
            let start = at % FRAME_BYTES as u64;
            let len = (FRAME_BYTES as u64 - start).min(end - at);
            let entry = self.entry(Chunk::containing(file, ByteOffset(at)));
            let pages = PageSet::touched(start as u32, len as u32);
            if entry.is_some_and(|entry| pages.meets_shared(&entry.asked)) {
                return true;
            }
            at += len;
        }
        false
    }

    pub fn counts(&self) -> GoldenCounts {
        GoldenCounts {
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            ahead_bytes: self.ahead_bytes.load(Ordering::Relaxed),
            ahead_used_bytes: self.frames.ahead_used_bytes(),
            asked_bytes: self.asked_pages.load(Ordering::Relaxed) * PAGE_BYTES as u64,
        }
    }

    pub(super) fn note_read(&self, bytes: u64, ahead: bool) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        if ahead {
            self.ahead_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes being read that nobody had asked for when their read began.
    pub fn ahead_in_flight(&self) -> u64 {
        self.ahead_in_flight.load(Ordering::Relaxed)
    }

    /// How often pages of a file could not be read that nobody had asked for.
    pub fn ahead_failures(&self, file: GoldenFile) -> u32 {
        let table = self.tables.get(file.number()).and_then(OnceLock::get);
        table.map_or(0, |table| table.ahead_failures.load(Ordering::Relaxed))
    }

    pub(super) fn ahead_began(&self, pages: PageSet) {
        self.ahead_in_flight.fetch_add(pages.bytes(), Ordering::Relaxed);
    }

    pub(super) fn ahead_ended(&self, file: GoldenFile, pages: PageSet, read: bool) {
        self.ahead_in_flight.fetch_sub(pages.bytes(), Ordering::Relaxed);
        if let Some(table) = self.tables.get(file.number()).and_then(OnceLock::get).filter(|_| !read) {
            table.ahead_failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Somebody asked for these pages.
    pub(super) fn note_asked(&self, chunk: Chunk, pages: PageSet) {
        if let Some(entry) = self.entry(chunk) {
            let new = pages.newly_in(&entry.asked);
            self.asked_pages.fetch_add(u64::from(new.count()), Ordering::Relaxed);
        }
    }

    fn entry(&self, chunk: Chunk) -> Option<&Entry> {
        self.tables.get(chunk.file.0 as usize)?.get()?.entry(chunk.number)
    }

    /// The bytes the file had when it was registered.
    pub(super) fn len_of(&self, file: GoldenFile) -> u64 {
        self.tables.get(file.number()).and_then(OnceLock::get).map_or(0, |table| table.len)
    }

    /// The frame that stood for the chunk a moment ago.
    pub(super) fn find(&self, chunk: Chunk) -> Option<u32> {
        self.entry(chunk)?.frame.load(Ordering::Acquire).checked_sub(1)
    }

    /// Asked under a hold, the answer stays true while that lives.
    pub(super) fn stands_for(&self, frame: u32) -> Option<Chunk> {
        Chunk::from_word(self.chunks.get(frame as usize)?.load(Ordering::Relaxed))
    }

    /// Only for whoever has taken the frame: it stands for nothing any more.
    pub(super) fn forget(&self, frame: u32) {
        let former = self.chunks[frame as usize].swap(0, Ordering::Relaxed);
        let Some(former) = Chunk::from_word(former) else { return };
        if let Some(entry) = self.entry(former) {
            let _ = entry.frame.compare_exchange(frame + 1, 0, Ordering::Release, Ordering::Relaxed);
        }
        let (place, hash) = self.hash(former);
        self.pushed_out[place].store(hash, Ordering::Relaxed);
    }

    /// True when the chunk lost its frame not long ago: about as many others have since as there are frames. Only for
    /// whoever has taken a frame.
    pub(super) fn was_pushed_out(&self, chunk: Chunk) -> bool {
        let (place, hash) = self.hash(chunk);
        self.pushed_out[place].load(Ordering::Relaxed) == hash
    }

    /// A place in `pushed_out`, and what stands there for the chunk: never zero.
    fn hash(&self, chunk: Chunk) -> (usize, u32) {
        let mixed = chunk.word().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let place = (u128::from(mixed) * self.pushed_out.len() as u128) >> 64;
        (place as usize, mixed as u32 | 1)
    }

    /// Only for whoever has taken the frame, and holds it from now on. False: another frame was faster.
    pub(super) fn assign(&self, frame: u32, chunk: Chunk) -> bool {
        let Some(entry) = self.entry(chunk) else { return false };
        self.chunks[frame as usize].store(chunk.word(), Ordering::Relaxed);
        // Release: whoever finds the frame sees what it stands for.
        let placed = entry.frame.compare_exchange(0, frame + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !placed {
            self.chunks[frame as usize].store(0, Ordering::Relaxed);
        }
        placed
    }

    /// The shard is to be told when fills of the frame end. SeqCst, before it looks at the pages: either it sees them
    /// valid, or whoever fills them sees the mark.
    pub(super) fn wait(&self, frame: u32, mark: u64) {
        self.waiting[frame as usize].fetch_or(mark, Ordering::SeqCst);
    }

    /// Whoever waits is told now.
    pub(super) fn take_waiting(&self, frame: u32) -> u64 {
        self.waiting[frame as usize].swap(0, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_one_word_and_back() {
        for (file, number) in [(0, 0), (7, 9), (GOLDEN_FILES_MAX as u32 - 1, (1 << 48) - 1)] {
            let chunk = Chunk { file: GoldenFile(file), number };
            assert_eq!(Chunk::from_word(chunk.word()), Some(chunk));
        }
        assert_eq!(Chunk::from_word(0), None);
    }

    #[test]
    fn files_beyond_the_limit_and_chunks_beyond_the_end_have_no_place() {
        let golden = Golden::new(2, false).unwrap();
        let file = golden.register(FRAME_BYTES as u64 + 1).unwrap();
        let place = |number| golden.entry(Chunk { file, number }).is_some();
        assert!(place(0) && place(1) && !place(1 << 20));
        (1..GOLDEN_FILES_MAX).for_each(|_| assert!(golden.register(1).is_some()));
        assert_eq!(golden.register(1), None);
    }

    #[test]
    fn a_page_is_asked_for_once_and_a_chunk_pushed_out_is_known_again() {
        let golden = Golden::new(2, false).unwrap();
        let file = golden.register(1 << 20).unwrap();
        let chunk = Chunk { file, number: 3 };
        golden.note_asked(chunk, PageSet::touched(0, 8192));
        golden.note_asked(chunk, PageSet::touched(4096, 8192));
        assert_eq!(golden.counts().asked_bytes, 3 * 4096);
        let asked = |page: u64, pages: u64| {
            golden.was_asked(file, ByteOffset(chunk.offset().0 + page * 4096), pages * 4096)
        };
        assert!(asked(0, 1) && asked(2, 100) && !asked(3, 100));
        assert!(
            golden.was_asked(file, ByteOffset(0), 1 << 20) && !golden.was_asked(file, ByteOffset(0), 4096)
        );
        assert!(!golden.was_pushed_out(chunk));
        assert!(golden.assign(0, chunk));
        golden.forget(0);
        assert!(golden.was_pushed_out(chunk) && !golden.was_pushed_out(Chunk { file, number: 4 }));
    }

    #[test]
    fn of_two_frames_for_one_chunk_the_second_gives_way() {
        let golden = Golden::new(2, false).unwrap();
        let file = golden.register(1).unwrap();
        let chunk = Chunk { file, number: 0 };
        assert!(golden.assign(0, chunk));
        assert!(!golden.assign(1, chunk));
        assert_eq!((golden.find(chunk), golden.stands_for(1)), (Some(0), None));
        golden.forget(0);
        assert_eq!(golden.find(chunk), None);
    }
}
