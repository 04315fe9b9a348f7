//! What a run counted: operations, bytes, latencies, and everything that went wrong.
//!
//! Knows how to add up and summarise. Does not know how a request is made.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub(crate) struct Stats {
    reads: Histogram<u64>,
    writes: Histogram<u64>,
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

fn histogram() -> Histogram<u64> {
    // Nanoseconds from 1 us to 100 s with three digits: the bounds are constants that the crate accepts.
    Histogram::new_with_bounds(1_000, 100_000_000_000, 3).expect("valid bounds")
}

impl Stats {
    pub(crate) fn new() -> Stats {
        Stats {
            reads: histogram(),
            writes: histogram(),
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
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let histogram = if write { &mut self.writes } else { &mut self.reads };
        histogram.saturating_record(nanos);
        self.bytes += u64::from(bytes);
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
        self.reads.len() + self.writes.len()
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
            "retries": self.retries,
            "fallbacks": self.fallbacks,
            "errors": self.errors,
            "mismatches": self.mismatches,
            "first_error": self.first_error,
        })
    }
}

fn quantiles(histogram: &Histogram<u64>) -> [f64; 5] {
    if histogram.is_empty() {
        return [0.0; 5];
    }
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let at = |quantile| micros(histogram.value_at_quantile(quantile));
    [at(0.5), at(0.9), at(0.99), at(0.999), micros(histogram.max())]
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
    }
}
