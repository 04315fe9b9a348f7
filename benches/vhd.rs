//! The sector bitmap of a block: how long it takes to find every run in it.
//!
//! Knows the two ends: one run, and as many runs as sectors. Does not know where bitmaps come from.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use goldrush::vhd::block_bitmap::BlockBitmap;
use std::hint::black_box;

/// Sectors of a 2 MiB block.
const SECTORS: u32 = 4096;

/// How many runs a block has.
fn runs(bitmap: &BlockBitmap) -> u32 {
    let (mut at, mut runs) = (0, 0);
    while at < SECTORS {
        at += bitmap.run_at(at, SECTORS - at).1;
        runs += 1;
    }
    runs
}

fn scan(c: &mut Criterion) {
    let mut group = c.benchmark_group("bitmap_scan_2m");
    group.throughput(Throughput::Elements(u64::from(SECTORS)));
    // A byte of alternating bits has a run for each sector.
    for (name, byte, count) in [("one_run", 0xFF, 1), ("run_per_sector", 0xAA, SECTORS)] {
        let bitmap = BlockBitmap::from_bytes(SECTORS, &[byte; SECTORS as usize / 8]);
        assert_eq!(runs(&bitmap), count, "{name} is not what it says");
        group.bench_function(name, |b| b.iter(|| runs(black_box(&bitmap))));
    }
    group.finish();
}

fn whole(c: &mut Criterion) {
    let bitmap = BlockBitmap::from_bytes(SECTORS, &[0xFF; SECTORS as usize / 8]);
    c.bench_function("bitmap_all_set_2m", |b| b.iter(|| black_box(&bitmap).all_set(0, SECTORS)));
}

criterion_group!(benches, scan, whole);
criterion_main!(benches);
