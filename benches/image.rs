//! Ranges of a chain to extents of files: reads over one to four layers, writes to sectors that are there.
//!
//! Knows the shapes that matter (all in the child, all in the golden image, sector by sector). Does not read files.

mod fixture;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fixture::{Held, World, sectors};
use goldrush::limits::PLAN_EXTENTS_MAX;
use goldrush::plan::{ReadPlan, WriteKind, WritePlan, WriteStep};
use std::hint::black_box;

/// What lies between the leaf and the golden image holds nothing.
fn chain(leaf: Held, depth: usize) -> Vec<Held> {
    let mut held = vec![Held::Nothing; depth];
    held[depth - 1] = Held::Everything;
    held[0] = if depth == 1 { Held::Everything } else { leaf };
    held
}

fn resolve_read(c: &mut Criterion) {
    let mut group = c.benchmark_group("resolve_read_64k");
    // Away from the start of a bitmap's word.
    let range = sectors(40, 128);
    let shapes = [
        ("all_in_child", Held::Everything),
        ("all_in_golden", Held::Nothing),
        ("alternating", Held::Alternating),
    ];
    for (shape, leaf) in shapes {
        for depth in 1..=4 {
            if depth == 1 && leaf != Held::Nothing {
                continue;
            }
            let World { mut images, chain, .. } = World::new(&chain(leaf, depth));
            let mut plan = ReadPlan::with_capacity(PLAN_EXTENTS_MAX);
            images.resolve_read(&chain, range, &mut plan);
            let extents = if leaf == Held::Alternating { 128 } else { 1 };
            assert_eq!(plan.extents.len(), extents, "{shape} at depth {depth} is not what it says");
            group.bench_function(BenchmarkId::new(shape, depth), |b| {
                b.iter(|| images.resolve_read(black_box(&chain), black_box(range), &mut plan));
            });
        }
    }
    group.finish();
}

fn resolve_write(c: &mut Criterion) {
    let World { mut images, chain, .. } = World::new(&chain(Held::Everything, 2));
    let mut plan = WritePlan::with_capacity(PLAN_EXTENTS_MAX);
    let mut group = c.benchmark_group("resolve_write_present");
    for (name, count) in [("4k", 8), ("64k", 128)] {
        let range = sectors(40, count);
        let step = images.resolve_write(&chain, range, WriteKind::Data, &mut plan);
        assert_eq!(
            step,
            Ok(WriteStep::Ready { covered: range.count(), commit: false }),
            "not all is present"
        );
        group.bench_function(name, |b| {
            b.iter(|| images.resolve_write(black_box(&chain), black_box(range), WriteKind::Data, &mut plan));
        });
    }
    group.finish();
}

criterion_group!(benches, resolve_read, resolve_write);
criterion_main!(benches);
