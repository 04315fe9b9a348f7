//! The golden cache between threads: every byte is right, and a page is read once, whoever asks.
//!
//! Knows lookups, claims and messages as shards use them. The "disk" is a pattern.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use goldrush::buf::PAGE_BYTES;
use goldrush::cache::{
    AheadBatch, CHUNK_BYTES, Claim, Golden, GoldenCache, GoldenFile, Lookup, Place, Told, Waiter,
};
use goldrush::plan::FileSlot;
use goldrush::units::ByteOffset;

const FILE: FileSlot = FileSlot(3);
const CHUNKS: u64 = 40;
const SHARDS: usize = 4;
const LOOKUPS: u64 = 2_000;

/// The byte of the file at `offset`.
fn byte(offset: u64) -> u8 {
    ((offset / 7) ^ (offset >> 13)) as u8
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

struct Shard {
    cache: GoldenCache,
    number: usize,
    news: Receiver<u32>,
    peers: Vec<Sender<u32>>,
    waiting: HashMap<u64, (u64, u32)>,
    /// Claims are filled some lookups later, so that others meet them.
    claims: Vec<Claim>,
    /// All of the file, to be read before anybody asks, or while others do: as along a boot trace.
    batches: Arc<Vec<AheadBatch>>,
    pages_read: Arc<Vec<AtomicU64>>,
    random: u64,
}

impl Shard {
    fn run(mut self) -> u64 {
        for task in 0..LOOKUPS {
            let at = random(&mut self.random) % (CHUNKS * CHUNK_BYTES as u64);
            let room = CHUNK_BYTES as u64 - at % CHUNK_BYTES as u64;
            let len = (1 + random(&mut self.random) % 20_000).min(room) as u32;
            match self.cache.lookup(FILE, ByteOffset(at), len, Waiter { task, segment: 0 }) {
                Lookup::Hit(bytes) => check(at, bytes.as_slice()),
                Lookup::Waits => {
                    self.waiting.insert(task, (at, len));
                }
                Lookup::NoFrame => {}
            }
            let batch = random(&mut self.random) as usize % self.batches.len();
            if task.is_multiple_of(16) {
                self.cache.read_along(&self.batches[batch]);
            }
            self.cache.take_claims(&mut self.claims);
            if random(&mut self.random).is_multiple_of(4) {
                self.fill_some();
            }
            self.read_news();
        }
        let batches = Arc::clone(&self.batches);
        batches.iter().for_each(|batch| self.cache.read_along(batch));
        self.cache.take_claims(&mut self.claims);
        while !self.waiting.is_empty() || !self.claims.is_empty() {
            self.fill_some();
            self.read_news();
            std::thread::yield_now();
        }
        self.cache.counts.filled_bytes
    }

    fn fill_some(&mut self) {
        let mut told = Vec::new();
        while let Some(Claim { offset, mut fill, .. }) = self.claims.pop() {
            let fails = random(&mut self.random).is_multiple_of(50);
            let len = fill.left();
            for (at, target) in (offset.0..).zip(fill.rest_mut()) {
                *target = byte(at);
            }
            if !fails {
                let first = offset.0 / PAGE_BYTES as u64;
                for page in first..first + u64::from(len) / PAGE_BYTES as u64 {
                    self.pages_read[page as usize].fetch_add(1, Ordering::Relaxed);
                }
                fill.advance(len);
            }
            let frame = fill.frame();
            let shards = self.cache.fill_ended(fill, !fails, &mut told);
            assert_eq!(shards & 1 << self.number, 0);
            for (peer, news) in self.peers.iter().enumerate().filter(|(peer, _)| shards & 1 << peer != 0) {
                assert_ne!(peer, self.number);
                let _ = news.send(frame);
            }
            self.hear(&mut told);
            self.cache.take_claims(&mut self.claims);
        }
    }

    fn read_news(&mut self) {
        let mut told = Vec::new();
        while let Ok(frame) = self.news.try_recv() {
            self.cache.look_again(frame, &mut told);
            self.hear(&mut told);
            self.cache.take_claims(&mut self.claims);
        }
    }

    fn hear(&mut self, told: &mut Vec<Told>) {
        for Told { waiter, bytes } in told.drain(..) {
            let (at, len) = self.waiting.remove(&waiter.task).expect("told once");
            if let Some(bytes) = bytes {
                assert_eq!(bytes.capacity(), len as usize);
                check(at, bytes.as_slice());
            }
        }
    }
}

#[track_caller]
fn check(at: u64, bytes: &[u8]) {
    let wrong = (at..).zip(bytes).find(|(at, found)| byte(*at) != **found);
    assert_eq!(wrong, None, "from {at}");
}

/// Runs all shards over a cache of so many frames; how often each page was read.
fn run(frames: u32) -> Vec<u64> {
    let golden = Arc::new(Golden::new(frames, false).unwrap());
    let number: GoldenFile = golden.register(CHUNKS * CHUNK_BYTES as u64).unwrap();
    let pages = CHUNKS * (CHUNK_BYTES / PAGE_BYTES) as u64;
    let pages_read: Arc<Vec<_>> = Arc::new((0..pages).map(|_| AtomicU64::new(0)).collect());
    let (peers, news): (Vec<_>, Vec<_>) = (0..SHARDS).map(|_| channel()).unzip();
    let place = |chunk| Place { offset: ByteOffset(chunk * CHUNK_BYTES as u64), len: CHUNK_BYTES as u32 };
    let batch = |first| AheadBatch::new(number, (first..first + 4).map(place));
    let batches: Arc<Vec<_>> = Arc::new((0..CHUNKS).step_by(4).map(batch).collect());
    std::thread::scope(|scope| {
        for (shard, news) in news.into_iter().enumerate() {
            let (golden, peers, pages_read) = (Arc::clone(&golden), peers.clone(), Arc::clone(&pages_read));
            let batches = Arc::clone(&batches);
            scope.spawn(move || {
                let mut cache = GoldenCache::new(golden, shard as u32);
                cache.set_file(FILE, number, FILE);
                let (waiting, claims, random) = (HashMap::new(), Vec::new(), shard as u64);
                Shard { cache, number: shard, news, peers, waiting, claims, batches, pages_read, random }
                    .run()
            });
        }
    });
    pages_read.iter().map(|count| count.load(Ordering::Relaxed)).collect()
}

#[test]
fn with_room_for_everything_each_page_is_read_once() {
    // Reading ahead leaves some frames unused.
    let reads = run(CHUNKS as u32 + 16);
    assert!(reads.iter().all(|count| *count == 1), "{reads:?}");
}

#[test]
fn with_few_frames_every_byte_is_right_all_the_same() {
    for frames in [1, 3, 12] {
        let reads: u64 = run(frames).iter().sum();
        // A single frame may be held whenever somebody else wants it: then all the rest is read around the cache.
        assert!(frames == 1 || reads > CHUNKS, "pages come and go: {reads}");
    }
}
