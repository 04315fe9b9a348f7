//! The golden cache: looking up pages that are there.
//!
//! Knows a full cache. Does not fill it from a file.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use goldrush::cache::{CHUNK_BYTES, Golden, GoldenCache, Lookup, Waiter};
use goldrush::plan::FileSlot;
use goldrush::units::ByteOffset;

/// 64 MiB of golden image: more frames than the processor's first caches hold.
const CHUNKS: u32 = 1024;
const WAITER: Waiter = Waiter { task: 1, segment: 0 };
const FILE: FileSlot = FileSlot(0);

fn full_cache() -> GoldenCache {
    let golden = Arc::new(Golden::new(CHUNKS, true).expect("64 MiB of memory"));
    let number = golden.register(u64::from(CHUNKS) * CHUNK_BYTES as u64).expect("the first file");
    let mut cache = GoldenCache::new(golden, 0);
    cache.set_file(FILE, number, FILE);
    let mut claims = Vec::new();
    for chunk in 0..u64::from(CHUNKS) {
        cache.prefetch(FILE, place(chunk), CHUNK_BYTES as u32);
        cache.take_claims(&mut claims);
        for claim in claims.drain(..) {
            cache.fill_ended(claim.fill, true, &mut Vec::new());
        }
    }
    cache
}

fn place(chunk: u64) -> ByteOffset {
    ByteOffset(chunk * CHUNK_BYTES as u64)
}

fn lookup(c: &mut Criterion) {
    let mut cache = full_cache();
    c.bench_function("golden_cache_same_hit", |b| {
        b.iter(|| cache.lookup(FILE, black_box(place(7)), 4096, WAITER));
    });
    let mut chunk = 0;
    c.bench_function("golden_cache_scattered_hit", |b| {
        b.iter(|| {
            // Odd, so that every chunk has its turn.
            chunk = (chunk + 389) % u64::from(CHUNKS);
            assert!(matches!(cache.lookup(FILE, black_box(place(chunk)), 4096, WAITER), Lookup::Hit(_)));
        });
    });
}

criterion_group!(benches, lookup);
criterion_main!(benches);
