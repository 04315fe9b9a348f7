//! `perf load`: one load at one or more disks, one report.
//!
//! Knows arguments and output. Does not know sessions.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;

use super::table::{number, table};
use crate::fail::{Result, failure};
use crate::histogram::{self, Kept};
use crate::initiator::Options;
use crate::load::{self, Base, Locality, Phases, Plan, Stats, Workload, parse_bytes};
use crate::url::Url;

/// What the initiator asks for at login, and how it waits; shared by `load` and `compare`.
#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    /// InitiatorName to log in with
    #[arg(long, value_name = "IQN", default_value = "iqn.2026-11.io.goldrush:perf")]
    pub(crate) initiator: String,
    /// MaxRecvDataSegmentLength to declare
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256k")]
    pub(crate) max_recv_segment: u64,
    /// MaxBurstLength to offer
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1m")]
    pub(crate) max_burst: u64,
    /// FirstBurstLength to offer
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "64k")]
    pub(crate) first_burst: u64,
    /// Offer ImmediateData=No
    #[arg(long)]
    pub(crate) no_immediate_data: bool,
    /// Offer InitialR2T=Yes
    #[arg(long)]
    pub(crate) initial_r2t: bool,
    /// Have all data covered by a CRC32C, in workloads that only read. The client receives digests and does not compute
    /// them; the ceiling has none
    #[arg(long)]
    pub(crate) data_digest: bool,
    /// Use only so many bytes from the start of each disk
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) span: Option<u64>,
    /// Poll for so many microseconds before sleeping
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub(crate) spin_us: u64,
    /// Parse every reply header even where counting bytes would do
    #[arg(long)]
    pub(crate) parse_all: bool,
}

impl SessionArgs {
    pub(crate) fn options(&self) -> Result<Options> {
        let length = |name: &str, value: u64, least: u64| {
            let fits = (least..1 << 24).contains(&value);
            let value = u32::try_from(value).ok().filter(|_| fits);
            value
                .ok_or_else(|| failure!("{name} must lie between {least} and 16777215: choose another value"))
        };
        Ok(Options {
            initiator_name: self.initiator.clone(),
            max_recv_segment: length("--max-recv-segment", self.max_recv_segment, 512)?,
            max_burst: length("--max-burst", self.max_burst, 512)?,
            first_burst: length("--first-burst", self.first_burst, 512)?,
            immediate_data: !self.no_immediate_data,
            initial_r2t: self.initial_r2t,
            data_digest: self.data_digest,
            ..Options::default()
        })
    }

    pub(crate) fn plan(&self, urls: &[Url], workload: Workload, verify: Option<Base>) -> Result<Plan> {
        let options = self.options()?;
        if self.data_digest && !workload.only_reads() {
            return Err(failure!("{workload} writes: --data-digest is for workloads that only read"));
        }
        Ok(Plan {
            urls: load::expand(urls, &options)?,
            workload,
            beside: None,
            rate: None,
            span: self.span,
            verify,
            options,
            spin: Duration::from_micros(self.spin_us),
            may_count: !self.parse_all,
            requests: None,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Disk to load, iscsi://[USER%SECRET@]HOST:PORT/TARGET/LUN; repeat it, or write * in TARGET for all that match
    #[arg(long, alias = "targets", value_name = "URL", required = true)]
    url: Vec<Url>,
    /// Sessions, dealt out over the disks in turn
    #[arg(long, value_name = "N", default_value_t = 1)]
    sessions: usize,
    /// Commands under way in each session
    #[arg(long, value_name = "N", default_value_t = 32)]
    qd: usize,
    /// Bytes of each request
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "4k")]
    size: u64,
    /// Reads among the requests
    #[arg(long, value_name = "P", default_value_t = 100)]
    read_percent: u8,
    /// Places visited: random, sequential, zipf[:EXPONENT], or hot[:REQUESTS:PLACES] in percent (90:10)
    #[arg(long, value_name = "LOCALITY", default_value = "random")]
    locality: Locality,
    /// Open loop: send so many requests a second, whatever comes back; latency counts from when each was due
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, not counted
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    warmup: f64,
    /// Check every byte read: zero, stamp, stamp:SEED or file:PATH is what the disk held before this run
    #[arg(long, value_name = "PATTERN")]
    verify: Option<Base>,
    /// Client threads, each with its own ring and its share of the sessions
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Run the first thread on this core, the next on the next
    #[arg(long, value_name = "CORE")]
    pin: Option<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Write all latencies, of each phase, to this file as an HdrHistogram log (see `perf histogram`)
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,
    #[command(flatten)]
    session: SessionArgs,
}

/// A time in seconds that a load may take.
pub(crate) fn seconds(name: &str, value: f64) -> Result<Duration> {
    if (0.0..=86_400.0).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(failure!("{name} {value} is no time between 0 and 86400 seconds: choose another"))
    }
}

pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    let workload = Workload {
        size: u32::try_from(args.size).unwrap_or(u32::MAX),
        read_percent: args.read_percent,
        locality: args.locality,
        depth: args.qd,
        sessions: args.sessions,
    }
    .checked()?;
    let (warmup, time) = (seconds("--warmup", args.warmup)?, seconds("--seconds", args.seconds)?);
    if args.rate.is_some_and(|rate| !(0.001..=1e9).contains(&rate)) {
        return Err(failure!(
            "--rate must lie between 0.001 and 1000000000 requests a second: choose another"
        ));
    }
    let plan = Plan { rate: args.rate, ..args.session.plan(&args.url, workload, args.verify.clone())? };
    let phases = load::run(&plan, args.threads, args.pin, warmup, time)?;
    if let Some(path) = &args.histogram {
        histogram::write(path, &std::env::args().collect::<Vec<_>>().join(" "), &kept(&phases, warmup))?;
    }
    let stats = phases.measured;
    if args.json {
        let urls: Vec<String> = plan.urls.iter().map(ToString::to_string).collect();
        println!("{}", json!({ "urls": urls, "result": stats.to_json() }));
    } else {
        print(&stats);
    }
    match &stats.first_error {
        None => Ok(()),
        Some(first) => {
            Err(failure!("{} errors and {} mismatches, the first: {first}", stats.errors, stats.mismatches))
        }
    }
}

/// The latencies of both phases, reads and writes apart.
fn kept(phases: &Phases, warmup: Duration) -> Vec<Kept> {
    let one = |name: &str, start, stats: &Stats, latencies: &Histogram<u64>| Kept {
        name: name.to_string(),
        start,
        length: stats.elapsed,
        latencies: latencies.clone(),
    };
    let (warm, measured) = (&phases.warmup, &phases.measured);
    let all = [
        one("warmup-reads", Duration::ZERO, warm, &warm.reads),
        one("warmup-writes", Duration::ZERO, warm, &warm.writes),
        one("reads", warmup, measured, &measured.reads),
        one("writes", warmup, measured, &measured.writes),
    ];
    all.into_iter().filter(|kept| !kept.latencies.is_empty()).collect()
}

fn print(stats: &Stats) {
    let [p50, p90, p99, p999, max] = stats.latencies();
    let mut table = table(&["IOPS", "MB/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us", "requests"]);
    let values =
        [stats.iops(), stats.megabytes_per_second(), p50, p90, p99, p999, max, stats.operations() as f64];
    table.add_row(values.map(number));
    println!("{table}");
    if stats.late > 0 {
        println!(
            "{} requests were due and could not be sent in time; their waiting is in the latencies",
            stats.late
        );
    }
    if stats.retries + stats.fallbacks > 0 {
        println!("{} retries; {} sessions fell back to parsing every header", stats.retries, stats.fallbacks);
    }
}
