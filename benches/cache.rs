//! The golden cache: looking up a chunk that is there.
//!
//! Knows a full cache. Does not fill it from a file.

use criterion::{Criterion, criterion_group, criterion_main};
use goldrush::buf::{Pool, PoolConfig};
use goldrush::cache::{ChunkKey, GoldenCache, Lookup, Waiter};
use goldrush::plan::FileSlot;
use std::hint::black_box;

/// 64 MiB of golden image: more slots than the processor's first caches hold.
const CHUNKS: u32 = 1024;
const WAITER: Waiter = Waiter { task: 1, segment: 0 };

fn key(chunk: u64) -> ChunkKey {
    ChunkKey { file: FileSlot(0), chunk }
}

fn full_cache() -> GoldenCache {
    let pool =
        Pool::new(PoolConfig { chunks: CHUNKS, smalls: 1, huge_pages: false }).expect("64 MiB of memory");
    let mut cache = GoldenCache::new(&pool, CHUNKS);
    for chunk in 0..u64::from(CHUNKS) {
        let Lookup::Miss(slot, buf) = cache.lookup(key(chunk), WAITER) else {
            panic!("a slot for each chunk")
        };
        cache.filled(slot, buf, &mut Vec::new());
    }
    cache
}

fn lookup(c: &mut Criterion) {
    let mut cache = full_cache();
    c.bench_function("golden_cache_same_hit", |b| b.iter(|| cache.lookup(black_box(key(7)), WAITER)));
    let mut chunk = 0;
    c.bench_function("golden_cache_scattered_hit", |b| {
        b.iter(|| {
            // Odd, so that every chunk has its turn.
            chunk = (chunk + 389) % u64::from(CHUNKS);
            cache.lookup(black_box(key(chunk)), WAITER)
        });
    });
    assert_eq!(cache.misses, u64::from(CHUNKS), "every lookup was a hit");
}

criterion_group!(benches, lookup);
criterion_main!(benches);
