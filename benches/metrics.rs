//! What the server's own counting costs each request.
//!
//! Knows the counters and histograms of a shard. Does not ask for them.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use goldrush::clock::Instant;
use goldrush::io::Outcome;
use goldrush::shard::{CommandKind, Metrics, SessionCounts, Timing};

const READ_BYTES: u32 = 4096;
/// A reply: the header and the data.
const REPLY_BYTES: u32 = 48 + READ_BYTES;
/// Answers that leave with one send.
const BATCH: u32 = 32;
/// What a turn adds to the clock, and from when on.
const TURN_NS: u64 = 40_000;

/// All that a shard counts for one READ whose answer leaves alone: its latency, too.
fn request(c: &mut Criterion) {
    let (mut metrics, mut timing, mut session) =
        (Metrics::new(), Timing::default(), SessionCounts::default());
    let mut now = 0;
    c.bench_function("metrics_read_alone", |b| {
        b.iter(|| {
            let since = Instant(now);
            now += TURN_NS;
            answer(&mut metrics, &mut timing, &mut session, since, REPLY_BYTES);
            timing.sent(black_box(Instant(now)), REPLY_BYTES, &mut metrics);
        });
    });
    assert_eq!(metrics.counts.reads, session.commands);
    assert_eq!(metrics.reads.histogram.len(), session.commands);
}

/// The same for 32 that leave together: one iteration is 32 requests.
fn batch(c: &mut Criterion) {
    let (mut metrics, mut timing, mut session) =
        (Metrics::new(), Timing::default(), SessionCounts::default());
    let mut now = 0;
    c.bench_function("metrics_read_32_in_a_send", |b| {
        b.iter(|| {
            let since = Instant(now);
            now += TURN_NS;
            for place in 1..=BATCH {
                answer(&mut metrics, &mut timing, &mut session, since, place * REPLY_BYTES);
            }
            metrics.completed(&Outcome::Sent { result: Ok(BATCH * REPLY_BYTES), parts: Vec::new() });
            timing.sent(black_box(Instant(now)), BATCH * REPLY_BYTES, &mut metrics);
        });
    });
    assert_eq!(metrics.reads.histogram.len(), session.commands);
}

/// A command is answered: `queued` bytes of its connection are not sent yet, those of the answer included.
fn answer(
    metrics: &mut Metrics,
    timing: &mut Timing,
    session: &mut SessionCounts,
    since: Instant,
    queued: u32,
) {
    metrics.answered(black_box(CommandKind::Read), READ_BYTES.into(), black_box(true), session);
    timing.queued(CommandKind::Read, black_box(since), queued as usize);
}

criterion_group!(benches, request, batch);
criterion_main!(benches);
