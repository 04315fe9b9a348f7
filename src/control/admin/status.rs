//! What a server says of what it is doing: the answer to [`Request::Status`](super::Request), and sums of it.
//!
//! Knows figures and how two answers become a rate. Does not know shards (`desk`) or words for people (`status`, `top`).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Lists that are long and therefore only told when asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct StatusAsked {
    #[serde(default)]
    pub(in crate::control) targets: TargetList,
    #[serde(default)]
    pub(in crate::control) sessions: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum TargetList {
    #[default]
    None,
    /// Those that had a session since the server began.
    Seen,
    All,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct About {
    /// Name and version.
    pub(in crate::control) program: String,
    pub(in crate::control) pid: u32,
    /// Since it began to serve.
    pub(in crate::control) uptime_ms: u64,
    pub(in crate::control) listening: Vec<SocketAddr>,
    /// The processor core of each shard.
    pub(in crate::control) cores: Vec<usize>,
    pub(in crate::control) targets: usize,
    pub(in crate::control) golden_cache_bytes: u64,
    /// Bytes of golden files that somebody has asked for, each page once.
    #[serde(default)]
    pub(in crate::control) golden_asked_bytes: u64,
    /// Bytes that were read ahead and asked for later.
    #[serde(default)]
    pub(in crate::control) golden_ahead_used_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct Status {
    pub(in crate::control) about: About,
    /// How many targets are in each phase of their machine's boot, by the phase's name.
    pub(in crate::control) phases: BTreeMap<String, u64>,
    /// In the order of `About::cores`.
    pub(in crate::control) shards: Vec<ShardStatus>,
    /// How it stands with each iSNS server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::control) isns: Vec<IsnsStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::control) targets: Vec<TargetStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::control) sessions: Vec<SessionStatus>,
}

/// What is registered with one iSNS server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::control) struct IsnsStatus {
    pub(in crate::control) server: String,
    /// What everything is registered as.
    pub(in crate::control) entity: String,
    /// connecting, unreachable, registering, registered or refused.
    pub(in crate::control) state: String,
    pub(in crate::control) portals: u64,
    pub(in crate::control) targets: u64,
    /// Targets it does not want.
    pub(in crate::control) targets_refused: u64,
    /// Why not all is registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::control) problem: Option<String>,
}

/// What a shard holds at this moment, and what it has done since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct ShardStatus {
    #[serde(flatten)]
    pub(in crate::control) gauges: Gauges,
    pub(in crate::control) counts: Counts,
    pub(in crate::control) read_latency: Latency,
    pub(in crate::control) write_latency: Latency,
}

/// Named numbers that can be added, and told to programs with a sentence each.
macro_rules! figures {
    ($(#[$about:meta])* $name:ident { $($(#[doc = $help:literal])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub(in crate::control) struct $name { $($(#[doc = $help])* pub(in crate::control) $field: u64,)* }

        impl $name {
            fn with(&self, other: &Self, act: fn(u64, u64) -> u64) -> Self {
                Self { $($field: act(self.$field, other.$field),)* }
            }

            pub(in crate::control) fn add(&mut self, other: &Self) {
                *self = self.with(other, u64::saturating_add);
            }

            /// Name, meaning and value of each.
            pub(in crate::control) fn each(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($field), concat!($($help),*).trim_ascii(), self.$field),)*]
            }
        }
    };
}

figures! {
    /// What there is now.
    Gauges {
        /// Connections, those that have not logged in included
        connections,
        /// Sessions with a target
        sessions,
        /// Commands that are being executed, or whose answer is not queued yet
        tasks,
        /// Commands that wait for buffers
        tasks_parked,
        /// Sessions whose next command finds no room
        sessions_stalled,
        /// Operations the kernel has not ended
        operations,
        /// Free buffers of 64 KiB
        chunks_free,
        /// Free buffers of 8 KiB
        smalls_free,
    }
}

figures! {
    /// What was done since the server began.
    Counts {
        /// Connections accepted
        connections_accepted,
        /// Logins that were accepted, also of connections that joined a session
        logins_accepted,
        /// Logins that were refused
        logins_refused,
        /// READ commands
        reads,
        /// WRITE commands
        writes,
        /// SYNCHRONIZE CACHE commands
        flushes,
        /// UNMAP and WRITE SAME commands
        unmaps,
        /// All other SCSI commands
        others,
        /// SCSI commands that did not end with GOOD
        failed,
        /// Bytes read by READ commands
        read_bytes,
        /// Bytes written by WRITE commands
        written_bytes,
        /// Bytes received from initiators, protocol included
        received_bytes,
        /// Bytes sent to initiators, protocol included
        sent_bytes,
        /// Sends: answers that leave together count once
        sends,
        /// Calls of the kernel that submit and wait
        system_calls,
        /// Reads of image files beside the golden cache
        file_reads,
        /// Writes of image files
        file_writes,
        /// Reads of golden files into the golden cache
        golden_reads,
        /// Reads of golden files that failed and are tried again page by page
        golden_reads_failed,
        /// Lookups that found their pages in the golden cache
        golden_hits,
        /// Lookups that began a read
        golden_misses,
        /// Lookups that waited for a read somebody else had begun
        golden_joins,
        /// Lookups that had to be read around the golden cache
        golden_around,
        /// Bytes read from golden files into the golden cache
        golden_bytes,
        /// Of these, bytes nobody had asked for when their read began
        golden_ahead_bytes,
        /// Chunks of 64 KiB that made room for others in the golden cache
        golden_evictions,
    }
}

impl Counts {
    /// What came since `earlier`.
    pub(in crate::control) fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    pub(in crate::control) fn commands(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.unmaps + self.others
    }

    /// Of the lookups in the golden cache, the share that waited for nothing; `None` where there were none.
    pub(in crate::control) fn hit_share(&self) -> Option<f64> {
        let all = self.golden_hits + self.golden_misses + self.golden_joins + self.golden_around;
        (all > 0).then(|| self.golden_hits as f64 / all as f64)
    }
}

/// The longest latency that is told apart from longer ones: as the shards have it.
const LATENCY_US_MAX: u64 = 60_000_000;

/// How long answers took, from the command's arrival until the kernel had taken the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct Latency {
    pub(in crate::control) sum_us: u64,
    /// Microseconds (right within one percent) and how many took as long, ascending.
    pub(in crate::control) counts: Vec<(u64, u64)>,
}

impl Latency {
    pub(in crate::control) fn of(sum_us: u64, histogram: &Histogram<u64>) -> Self {
        let values = histogram.iter_recorded();
        Self { sum_us, counts: values.map(|at| (at.value_iterated_to(), at.count_at_value())).collect() }
    }

    pub(in crate::control) fn add(&mut self, other: &Self) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        let mut counts: BTreeMap<u64, u64> = self.counts.iter().copied().collect();
        for (us, count) in &other.counts {
            let sum = counts.entry(*us).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.counts = counts.into_iter().collect();
    }

    /// What came since `earlier`.
    pub(in crate::control) fn since(&self, earlier: &Self) -> Self {
        let before: BTreeMap<u64, u64> = earlier.counts.iter().copied().collect();
        let left = |(us, count): &(u64, u64)| {
            let count = count.saturating_sub(before.get(us).copied().unwrap_or_default());
            (count > 0).then_some((*us, count))
        };
        let counts = self.counts.iter().filter_map(left).collect();
        Self { sum_us: self.sum_us.saturating_sub(earlier.sum_us), counts }
    }

    pub(in crate::control) fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// How many took at most `us`.
    pub(in crate::control) fn within(&self, us: u64) -> u64 {
        let within = self.counts.iter().take_while(|(took, _)| *took <= us);
        within.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The time within which the share `quantile` was answered, in microseconds; `None` where nothing was.
    pub(in crate::control) fn quantile(&self, quantile: f64) -> Option<u64> {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_US_MAX, 2).ok()?;
        for (us, count) in &self.counts {
            histogram.saturating_record_n(*us, *count);
        }
        (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile))
    }
}

/// A target and how far its machine has booted (`--targets` in the manual tells what the phases are).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct TargetStatus {
    pub(in crate::control) name: String,
    pub(in crate::control) sessions: usize,
    /// offline, loader, gap, system or settled.
    pub(in crate::control) phase: String,
    /// How long it has been in it; null: there never was a session.
    pub(in crate::control) phase_ms: Option<u64>,
    /// How long each part of the boot took, as far as it is over; null where it is not, or never was.
    pub(in crate::control) loader_ms: Option<u64>,
    pub(in crate::control) gap_ms: Option<u64>,
    pub(in crate::control) system_ms: Option<u64>,
    /// From the first login until the system was settled.
    pub(in crate::control) boot_ms: Option<u64>,
    /// Since the first login of this boot.
    pub(in crate::control) first_login_ms: Option<u64>,
    /// How often its overlays were emptied since the server began, and how long ago last.
    #[serde(default)]
    pub(in crate::control) resets: u64,
    #[serde(default)]
    pub(in crate::control) reset_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct SessionStatus {
    /// null: discovery.
    pub(in crate::control) target: Option<String>,
    pub(in crate::control) initiator: String,
    pub(in crate::control) peer: SocketAddr,
    pub(in crate::control) connections: usize,
    pub(in crate::control) age_ms: u64,
    /// Commands in progress.
    pub(in crate::control) tasks: u32,
    pub(in crate::control) commands: u64,
    pub(in crate::control) read_bytes: u64,
    pub(in crate::control) written_bytes: u64,
}

impl Status {
    /// All shards together.
    pub(in crate::control) fn total(&self) -> ShardStatus {
        let mut total = ShardStatus::default();
        for shard in &self.shards {
            total.gauges.add(&shard.gauges);
            total.counts.add(&shard.counts);
            total.read_latency.add(&shard.read_latency);
            total.write_latency.add(&shard.write_latency);
        }
        total
    }
}

impl ShardStatus {
    /// What it has now, and what it did since `earlier`.
    pub(in crate::control) fn since(&self, earlier: &Self) -> Self {
        Self {
            gauges: self.gauges,
            counts: self.counts.since(&earlier.counts),
            read_latency: self.read_latency.since(&earlier.read_latency),
            write_latency: self.write_latency.since(&earlier.write_latency),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_survives_its_way_and_a_difference_is_what_came_between() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_US_MAX, 2).unwrap();
        histogram.record_n(100, 98).unwrap();
        let before = Latency::of(9_800, &histogram);
        histogram.record_n(5_000, 2).unwrap();
        let after = Latency::of(19_800, &histogram);
        assert_eq!((after.count(), after.quantile(0.5)), (100, Some(100)));
        assert_eq!((after.within(100), after.within(1_000_000)), (98, 100));
        let between = after.since(&before);
        assert_eq!((between.count(), between.sum_us), (2, 10_000));
        assert!(between.quantile(0.5).is_some_and(|us| (4_950..=5_050).contains(&us)));
        assert_eq!(Latency::default().quantile(0.99), None);
        let mut sum = before.clone();
        sum.add(&between);
        assert_eq!(sum, after);
    }

    #[test]
    fn figures_are_named_explained_and_subtracted() {
        let earlier = Counts { reads: 5, ..Counts::default() };
        let later = Counts { reads: 12, golden_hits: 3, golden_misses: 1, ..Counts::default() };
        let since = later.since(&earlier);
        assert_eq!((since.reads, since.commands(), since.hit_share()), (7, 7, Some(0.75)));
        assert!(since.each().contains(&("reads", "READ commands", 7)));
        assert!(since.each().iter().all(|(_, help, _)| !help.is_empty() && !help.ends_with('.')));
        assert_eq!(Counts::default().hit_share(), None);
    }

    #[test]
    fn a_status_is_read_back_also_from_a_version_with_more_or_fewer_figures() {
        let shard =
            ShardStatus { gauges: Gauges { tasks: 3, ..Gauges::default() }, ..ShardStatus::default() };
        let mut value = serde_json::to_value(&shard).unwrap();
        assert_eq!(value["tasks"], 3);
        assert_eq!(serde_json::from_value::<ShardStatus>(value.clone()).unwrap(), shard);
        value["counts"] = serde_json::json!({"reads": 1, "news": 2});
        assert_eq!(serde_json::from_value::<ShardStatus>(value).unwrap().counts.reads, 1);
    }
}
