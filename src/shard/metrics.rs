//! What a shard counts while it serves, and how long its answers took.
//!
//! Knows kinds of commands, sums and histograms; all of it belongs to one thread and costs no memory once it is there. Does
//! not know who asks (`report`), nor any clock: times come from the turn.
//!
//! A latency begins with the turn in which the command's PDU was read and ends with the turn in which the kernel has
//! taken the last byte of its answer. Data-out the initiator takes its time to send counts; what the network does after
//! does not.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::clock::{Duration, Instant};
use crate::io::Outcome;

/// The longest latency that is told apart from longer ones, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Two digits: 20 KiB a histogram, and every figure right within one percent.
const LATENCY_DIGITS: u8 = 2;

/// Commands by what they do to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    Read,
    Write,
    Flush,
    /// UNMAP and WRITE SAME.
    Unmap,
    Other,
}

impl CommandKind {
    /// By the operation code (SBC-4, table 33).
    pub(super) fn of(cdb: &[u8; 16]) -> Self {
        match cdb[0] {
            0x08 | 0x28 | 0xA8 | 0x88 => Self::Read,
            0x0A | 0x2A | 0xAA | 0x8A | 0x2E | 0xAE | 0x8E | 0x9C | 0x89 | 0x8B => Self::Write,
            0x35 | 0x91 => Self::Flush,
            0x41 | 0x42 | 0x93 => Self::Unmap,
            _ => Self::Other,
        }
    }
}

/// Sums since the shard began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections_accepted: u64,
    /// Sessions begun and connections that joined one.
    pub logins_accepted: u64,
    pub logins_refused: u64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub unmaps: u64,
    pub others: u64,
    /// Of all these, those that did not end with GOOD.
    pub failed: u64,
    /// Data of READ and WRITE commands.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// All bytes of all connections.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub sends: u64,
    /// Operations on leaves and parents beside the golden cache's.
    pub file_reads: u64,
    pub file_writes: u64,
}

/// Latencies of one kind of command.
#[derive(Clone, Debug)]
pub struct Latencies {
    pub sum_us: u64,
    pub histogram: Histogram<u64>,
}

impl Latencies {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS);
        Self { sum_us: 0, histogram: histogram.expect("the bounds are constants that fit") }
    }

    fn record(&mut self, latency: Duration, answers: u64) {
        let us = latency.as_micros() as u64;
        self.sum_us += us * answers;
        self.histogram.saturating_record_n(us, answers);
    }
}

/// What a session has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    pub commands: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// What one shard counts. A server's shards own theirs; `benches/metrics.rs` measures what a request pays for it.
#[derive(Debug)]
pub struct Metrics {
    pub counts: Counts,
    pub reads: Latencies,
    pub writes: Latencies,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        Self { counts: Counts::default(), reads: Latencies::new(), writes: Latencies::new() }
    }

    /// An operation has ended.
    pub fn completed(&mut self, outcome: &Outcome) {
        let counts = &mut self.counts;
        match outcome {
            Outcome::Sent { .. } => counts.sends += 1,
            Outcome::Read { .. } => counts.file_reads += 1,
            Outcome::Wrote { .. } => counts.file_writes += 1,
            _ => {}
        }
    }

    /// A command's answer is on its way.
    pub fn answered(&mut self, kind: CommandKind, bytes: u64, good: bool, session: &mut SessionCounts) {
        let counts = &mut self.counts;
        session.commands += 1;
        counts.failed += u64::from(!good);
        match kind {
            CommandKind::Read => {
                counts.reads += 1;
                counts.read_bytes += bytes;
                session.read_bytes += bytes;
            }
            CommandKind::Write => {
                counts.writes += 1;
                counts.written_bytes += bytes;
                session.written_bytes += bytes;
            }
            CommandKind::Flush => counts.flushes += 1,
            CommandKind::Unmap => counts.unmaps += 1,
            CommandKind::Other => counts.others += 1,
        }
    }

    /// The answers of so many commands that came together are sent.
    fn took(&mut self, kind: CommandKind, latency: Duration, answers: u64) {
        match kind {
            CommandKind::Read => self.reads.record(latency, answers),
            CommandKind::Write => self.writes.record(latency, answers),
            CommandKind::Flush | CommandKind::Unmap | CommandKind::Other => {}
        }
    }
}

/// An answer that the kernel has not taken whole.
#[derive(Clone, Copy, Debug)]
struct Unsent {
    /// The place in the connection's stream after its last byte.
    end: u64,
    kind: CommandKind,
    since: Instant,
}

/// The answers a connection is sending: they are taken in the order in which they were queued.
#[derive(Debug, Default)]
pub struct Timing {
    sent: u64,
    unsent: VecDeque<Unsent>,
}

impl Timing {
    /// An answer ends with the last of the `queued` bytes that are not sent.
    pub fn queued(&mut self, kind: CommandKind, since: Instant, queued: usize) {
        if matches!(kind, CommandKind::Read | CommandKind::Write) {
            self.unsent.push_back(Unsent { end: self.sent + queued as u64, kind, since });
        }
    }

    /// The kernel has taken `bytes` more.
    pub fn sent(&mut self, now: Instant, bytes: u32, metrics: &mut Metrics) {
        self.sent += u64::from(bytes);
        metrics.counts.sent_bytes += u64::from(bytes);
        while let Some(first) = self.unsent.front().copied() {
            // Most of what is sent together came together.
            let mut answers = 0;
            while let Some(answer) = self.unsent.front()
                && answer.end <= self.sent
                && (answer.kind, answer.since) == (first.kind, first.since)
            {
                answers += 1;
                self.unsent.pop_front();
            }
            if answers == 0 {
                return;
            }
            metrics.took(first.kind, now.since(first.since), answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_small_and_keeps_two_digits_however_long_it_took() {
        let mut latencies = Latencies::new();
        assert!(
            latencies.histogram.distinct_values() * 8 <= 24 << 10,
            "{}",
            latencies.histogram.distinct_values()
        );
        for us in [0, 1, 99, 12_345, 3_600_000_000] {
            latencies.record(Duration::from_micros(us), 1);
        }
        assert_eq!(latencies.histogram.len(), 5);
        assert!((12_222..=12_468).contains(&latencies.histogram.value_at_quantile(0.8)));
        assert!(latencies.histogram.max() >= LATENCY_US_MAX);
        assert_eq!(latencies.sum_us, 3_600_012_445);
    }

    #[test]
    fn a_latency_ends_when_the_last_byte_of_the_answer_is_taken() {
        let mut metrics = Metrics::new();
        let mut timing = Timing::default();
        let ms = |ms: u64| Instant(ms * 1_000_000);
        timing.queued(CommandKind::Read, ms(1), 100);
        timing.queued(CommandKind::Other, ms(1), 150);
        timing.queued(CommandKind::Write, ms(2), 200);
        timing.sent(ms(5), 99, &mut metrics);
        assert_eq!(metrics.reads.histogram.len(), 0);
        timing.sent(ms(6), 51, &mut metrics);
        assert_eq!((metrics.reads.sum_us, metrics.writes.histogram.len()), (5_000, 0));
        timing.queued(CommandKind::Read, ms(7), 80);
        timing.sent(ms(8), 50, &mut metrics);
        assert_eq!((metrics.reads.sum_us, metrics.writes.sum_us), (5_000, 6_000));
        timing.sent(ms(9), 30, &mut metrics);
        assert_eq!((metrics.reads.sum_us, metrics.counts.sent_bytes), (7_000, 230));
    }

    #[test]
    fn commands_are_counted_by_what_they_do() {
        let mut metrics = Metrics::new();
        let mut session = SessionCounts::default();
        let mut answer = |code, bytes, good| {
            let mut cdb = [0; 16];
            cdb[0] = code;
            metrics.answered(CommandKind::of(&cdb), bytes, good, &mut session);
        };
        answer(0x28, 4096, true);
        answer(0x8A, 512, true);
        answer(0x35, 0, false);
        answer(0x42, 0, true);
        answer(0x12, 96, true);
        let counts = metrics.counts;
        assert_eq!(
            (counts.reads, counts.writes, counts.flushes, counts.unmaps, counts.others),
            (1, 1, 1, 1, 1)
        );
        assert_eq!((counts.read_bytes, counts.written_bytes, counts.failed), (4096, 512, 1));
        assert_eq!(session, SessionCounts { commands: 5, read_bytes: 4096, written_bytes: 512 });
    }
}
