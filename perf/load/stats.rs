//! What a run counted: operations, bytes, latencies, and everything that went wrong.
//!
//! Knows how to add up and summarise. Does not know how a request is made.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::histogram::{self, micros_at};

#[derive(Debug, Clone)]
pub(crate) struct Stats {
    pub(crate) reads: Histogram<u64>,
    pub(crate) writes: Histogram<u64>,
    /// Requests that were answered in time.
    operations: u64,
    /// Requests that were due in an open loop and could not be sent before the time was up. Their latencies are
    /// what they had waited by then.
    pub(crate) late: u64,
    pub(crate) bytes: u64,
    /// Everything that ended, also what was only drained after the time was up.
    pub(crate) ended: u64,
    pub(crate) elapsed: Duration,
    pub(crate) retries: u64,
    /// Sessions that were opened again because a reply did not have the learned shape or order.
    pub(crate) fallbacks: u64,
    pub(crate) errors: u64,
    pub(crate) mismatches: u64,
    pub(crate) first_error: Option<String>,
}

impl Stats {
    pub(crate) fn new() -> Stats {
        Stats {
            reads: histogram::fine(),
            writes: histogram::fine(),
            operations: 0,
            late: 0,
            bytes: 0,
            ended: 0,
            elapsed: Duration::ZERO,
            retries: 0,
            fallbacks: 0,
            errors: 0,
            mismatches: 0,
            first_error: None,
        }
    }

    pub(crate) fn record(&mut self, write: bool, latency: Duration, bytes: u32) {
        let histogram = if write { &mut self.writes } else { &mut self.reads };
        histogram.saturating_record(histogram::nanos(latency));
        self.operations += 1;
        self.bytes += u64::from(bytes);
    }

    /// A request was never sent, `waited` after it was due.
    pub(crate) fn record_late(&mut self, write: bool, waited: Duration) {
        let histogram = if write { &mut self.writes } else { &mut self.reads };
        histogram.saturating_record(histogram::nanos(waited));
        self.late += 1;
    }

    pub(crate) fn error(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(text());
        }
    }

    pub(crate) fn mismatch(&mut self, text: impl FnOnce() -> String) {
        self.mismatches += 1;
        if self.first_error.is_none() {
            self.first_error = Some(text());
        }
    }

    /// Adds what another thread counted in the same time.
    pub(crate) fn merge(&mut self, other: &Stats) {
        // Both histograms were built with the same bounds, so adding cannot fail.
        self.reads.add(&other.reads).expect("equal bounds");
        self.writes.add(&other.writes).expect("equal bounds");
        self.operations += other.operations;
        self.late += other.late;
        self.bytes += other.bytes;
        self.ended += other.ended;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.retries += other.retries;
        self.fallbacks += other.fallbacks;
        self.errors += other.errors;
        self.mismatches += other.mismatches;
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.errors == 0 && self.mismatches == 0
    }

    pub(crate) fn iops(&self) -> f64 {
        self.operations() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Latencies in microseconds: p50, p90, p99, p99.9 and the largest, reads and writes together.
    pub(crate) fn latencies(&self) -> [f64; 5] {
        let mut all = self.reads.clone();
        all.add(&self.writes).expect("equal bounds");
        quantiles(&all)
    }

    pub(crate) fn to_json(&self) -> Value {
        let named = |h: &Histogram<u64>| {
            let [p50, p90, p99, p999, max] = quantiles(h);
            json!({ "operations": h.len(), "p50_us": p50, "p90_us": p90, "p99_us": p99, "p99_9_us": p999, "max_us": max })
        };
        json!({
            "operations": self.operations(),
            "seconds": self.elapsed.as_secs_f64(),
            "iops": self.iops(),
            "megabytes_per_second": self.megabytes_per_second(),
            "reads": named(&self.reads),
            "writes": named(&self.writes),
            "late": self.late,
            "retries": self.retries,
            "fallbacks": self.fallbacks,
            "errors": self.errors,
            "mismatches": self.mismatches,
            "first_error": self.first_error,
        })
    }
}

fn quantiles(histogram: &Histogram<u64>) -> [f64; 5] {
    [0.5, 0.9, 0.99, 0.999, 1.0].map(|quantile| micros_at(histogram, quantile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_counts_and_keeps_the_first_error() {
        let mut a = Stats::new();
        a.record(false, Duration::from_micros(100), 4096);
        let mut b = Stats::new();
        b.record(true, Duration::from_micros(300), 512);
        b.error(|| "broken".to_string());
        b.elapsed = Duration::from_secs(2);
        a.merge(&b);
        assert_eq!((a.operations(), a.bytes, a.errors), (2, 4608, 1));
        assert_eq!(a.first_error.as_deref(), Some("broken"));
        assert!(!a.is_clean());
        assert_eq!(a.iops(), 1.0);
        a.record_late(false, Duration::from_secs(1));
        assert_eq!((a.operations(), a.late), (2, 1));
        assert!(a.latencies()[4] >= 1e6, "what was never sent counts as slow");
    }
}
