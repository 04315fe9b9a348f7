//! What a storm measured: each node's sessions in time, latencies by kind of command, throughput over time.
//!
//! Knows how to add up. Does not know how a command is made, nor how any of it is shown.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::histogram;
use crate::trace::{Kind, Op};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Login,
    LoaderRead,
    SystemRead,
    Write,
    Flush,
}

impl Class {
    pub(crate) const ALL: [Class; 5] =
        [Class::Login, Class::LoaderRead, Class::SystemRead, Class::Write, Class::Flush];

    pub(crate) fn of(kind: Kind, op: Op) -> Class {
        match (op, kind) {
            (Op::Read { .. }, Kind::Loader) => Class::LoaderRead,
            (Op::Read { .. }, Kind::System) => Class::SystemRead,
            (Op::Write { .. }, _) => Class::Write,
            (Op::Flush, _) => Class::Flush,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Login => "login",
            Class::LoaderRead => "loader-read",
            Class::SystemRead => "os-read",
            Class::Write => "os-write",
            Class::Flush => "os-flush",
        }
    }
}

/// One session of a node; times since the storm began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) kind: Kind,
    pub(crate) connected: Duration,
    pub(crate) logged_in: Option<Duration>,
    pub(crate) ended: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct NodeRecord {
    pub(crate) spans: Vec<Span>,
    /// When the last command of its boot had ended.
    pub(crate) booted: Option<Duration>,
    /// Bytes that its boot read and wrote.
    pub(crate) bytes: u64,
    pub(crate) failure: Option<String>,
}

/// What happened within one stretch of time.
#[derive(Debug, Clone)]
pub(crate) struct Bin {
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) latencies: Histogram<u32>,
}

/// Stretches of equal width that get wider as time goes on, so that their number stays bounded.
#[derive(Debug, Clone)]
pub(crate) struct Bins {
    pub(crate) width: Duration,
    pub(crate) all: Vec<Bin>,
}

const BINS_MAX: usize = 512;
const BIN_WIDTH: Duration = Duration::from_millis(10);

impl Bins {
    fn new() -> Bins {
        Bins { width: BIN_WIDTH, all: Vec::new() }
    }

    fn at(&mut self, at: Duration) -> &mut Bin {
        let place = |width: Duration| (at.as_nanos() / width.as_nanos()) as usize;
        while place(self.width) >= BINS_MAX {
            self.width *= 2;
            let old = std::mem::take(&mut self.all);
            for pair in old.chunks(2) {
                let mut bin = pair[0].clone();
                if let Some(second) = pair.get(1) {
                    bin.read_bytes += second.read_bytes;
                    bin.write_bytes += second.write_bytes;
                    // Both were made with the same bounds.
                    bin.latencies.add(&second.latencies).expect("equal bounds");
                }
                self.all.push(bin);
            }
        }
        let place = place(self.width);
        while self.all.len() <= place {
            let latencies = histogram::coarse();
            self.all.push(Bin { read_bytes: 0, write_bytes: 0, latencies });
        }
        &mut self.all[place]
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) nodes: Vec<NodeRecord>,
    classes: Vec<Histogram<u64>>,
    pub(crate) bins: Bins,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    /// Bytes received, with headers and padding.
    pub(crate) wire_bytes: u64,
    pub(crate) commands: u64,
    /// Commands that were answered with a unit attention or BUSY, and logins that were put off.
    pub(crate) retries: u64,
    /// Bytes that were compared with what they must be.
    pub(crate) verified_bytes: u64,
    pub(crate) wrong_sectors: u64,
    /// Bytes read back after the boot, not counted above.
    pub(crate) read_back_bytes: u64,
    pub(crate) first_error: Option<String>,
}

impl Record {
    pub(crate) fn new(nodes: usize) -> Record {
        Record {
            nodes: vec![NodeRecord::default(); nodes],
            classes: Class::ALL.iter().map(|_| histogram::fine()).collect(),
            bins: Bins::new(),
            read_bytes: 0,
            write_bytes: 0,
            wire_bytes: 0,
            commands: 0,
            retries: 0,
            verified_bytes: 0,
            wrong_sectors: 0,
            read_back_bytes: 0,
            first_error: None,
        }
    }

    /// A command of `bytes` bytes ended at the time `at` after `latency`.
    pub(crate) fn ended(&mut self, node: usize, class: Class, bytes: u64, at: Duration, latency: Duration) {
        self.latency(class, latency);
        self.commands += 1;
        self.nodes[node].bytes += bytes;
        let bin = self.bins.at(at);
        match class {
            Class::Write => {
                (self.write_bytes, bin.write_bytes) = (self.write_bytes + bytes, bin.write_bytes + bytes)
            }
            _ => (self.read_bytes, bin.read_bytes) = (self.read_bytes + bytes, bin.read_bytes + bytes),
        }
        bin.latencies.saturating_record(histogram::nanos(latency));
    }

    pub(crate) fn latency(&mut self, class: Class, latency: Duration) {
        self.class_mut(class).saturating_record(histogram::nanos(latency));
    }

    fn class_mut(&mut self, class: Class) -> &mut Histogram<u64> {
        &mut self.classes[class as usize]
    }

    pub(crate) fn class(&self, class: Class) -> &Histogram<u64> {
        &self.classes[class as usize]
    }

    pub(crate) fn error(&mut self, text: impl FnOnce() -> String) {
        if self.first_error.is_none() {
            self.first_error = Some(text());
        }
    }

    pub(crate) fn booted(&self) -> usize {
        self.nodes.iter().filter(|node| node.booted.is_some()).count()
    }

    /// From the first connection to the end of the last boot; `None` unless all nodes booted.
    pub(crate) fn time_to_all(&self) -> Option<Duration> {
        let times: Option<Vec<Duration>> = self.nodes.iter().map(|node| node.booted).collect();
        times?.into_iter().max()
    }

    /// Boot times of the nodes that booted.
    pub(crate) fn boot_times(&self) -> Histogram<u64> {
        let mut times = histogram::fine();
        for booted in self.nodes.iter().filter_map(|node| node.booted) {
            times.saturating_record(histogram::nanos(booted));
        }
        times
    }

    pub(crate) fn is_good(&self) -> bool {
        self.booted() == self.nodes.len()
            && self.wrong_sectors == 0
            && self.first_error.is_none()
            && self.nodes.iter().all(|node| node.failure.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_stay_few_and_lose_nothing() {
        let mut record = Record::new(1);
        for second in 0..100 {
            let at = Duration::from_secs(second);
            record.ended(0, Class::SystemRead, 1000, at, Duration::from_micros(second + 1));
        }
        assert!(record.bins.all.len() <= BINS_MAX);
        assert!(record.bins.width > BIN_WIDTH);
        assert_eq!(record.bins.all.iter().map(|bin| bin.read_bytes).sum::<u64>(), 100_000);
        assert_eq!(record.bins.all.iter().map(|bin| bin.latencies.len()).sum::<u64>(), 100);
        assert_eq!(
            (record.read_bytes, record.commands, record.class(Class::SystemRead).len()),
            (100_000, 100, 100)
        );
    }

    #[test]
    fn a_storm_is_over_when_its_last_node_booted() {
        let mut record = Record::new(2);
        record.nodes[0].booted = Some(Duration::from_secs(3));
        assert_eq!((record.time_to_all(), record.is_good()), (None, false));
        record.nodes[1].booted = Some(Duration::from_secs(2));
        assert_eq!((record.time_to_all(), record.is_good()), (Some(Duration::from_secs(3)), true));
        record.wrong_sectors = 1;
        assert!(!record.is_good());
    }
}
