//! Comparing servers on a noisy machine: all are up, the client visits them in turn, medians decide.
//!
//! Knows slices, rotation and medians, and that writes are to meet blocks which are there. Does not know how a load is made or
//! shown.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fail::{Result, failure};
use crate::initiator::{self, Endpoint, Options};
use crate::load::{Engine, Locality, Plan, Stats, Workload};
use crate::proc;
use crate::ring;
use crate::scsi::SECTOR;

/// A disk that takes longer to be filled once is too slow to be compared.
const FILL_PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) plan: Plan,
    /// Whose run time to count.
    pub(crate) pid: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) slices: usize,
    pub(crate) slice: Duration,
}

/// One visit.
#[derive(Debug, Clone, Copy)]
struct Slice {
    iops: f64,
    megabytes: f64,
    p50: f64,
    p99: f64,
    /// Server run time for each request, in microseconds.
    cost: Option<f64>,
    /// Part of the time that the server, and the client, ran.
    server_busy: Option<f64>,
    client_busy: f64,
}

/// The medians of one contestant in one workload.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) iops: f64,
    /// Lower and upper quartile.
    pub(crate) quartiles: [f64; 2],
    pub(crate) megabytes: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) cost: Option<f64>,
    pub(crate) server_busy: Option<f64>,
    pub(crate) client_busy: f64,
    /// System calls of the server for each request, in a visit of its own, and how they were counted.
    pub(crate) calls: Option<(f64, &'static str)>,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Row {
    pub(crate) fn to_json(&self, ceiling: Option<f64>) -> Value {
        json!({
            "name": self.name,
            "iops": self.iops,
            "iops_quartiles": self.quartiles,
            "of_ceiling": ceiling.map(|ceiling| self.iops / ceiling),
            "megabytes_per_second": self.megabytes,
            "p50_us": self.p50,
            "p99_us": self.p99,
            "server_cpu_us_per_request": self.cost,
            "server_busy": self.server_busy,
            "client_busy": self.client_busy,
            "server_system_calls_per_request": self.calls.map(|(calls, _)| calls),
            "system_calls_counted_by": self.calls.map(|(_, how)| how),
            "errors": self.errors,
            "first_error": self.first_error,
        })
    }
}

/// Visits every contestant `slices` times with one workload. `visited` is told after each slice.
pub(crate) fn run(
    contestants: &[Contestant],
    workload: Workload,
    schedule: Schedule,
    mut visited: impl FnMut(),
) -> Result<Vec<Row>> {
    let mut engines = Vec::new();
    for contestant in contestants {
        let plan = shared_out(Plan { workload, ..contestant.plan.clone() });
        if !workload.only_reads() {
            fill(&plan)?;
        }
        let mut engine = Engine::open(plan, 0, 1)?;
        engine.run(schedule.slice)?;
        engines.push(engine);
    }
    let mut slices: Vec<Vec<Slice>> = vec![Vec::new(); contestants.len()];
    let mut total: Vec<Stats> = vec![Stats::new(); contestants.len()];
    for round in 0..schedule.slices {
        for turn in 0..contestants.len() {
            let index = (round + turn) % contestants.len();
            let (slice, stats) = visit(&mut engines[index], contestants[index].pid, schedule.slice)?;
            slices[index].push(slice);
            total[index].merge(&stats);
            visited();
        }
    }
    let mut rows = Vec::new();
    for (((contestant, slices), total), engine) in contestants.iter().zip(slices).zip(total).zip(&mut engines)
    {
        let calls = contestant.pid.and_then(|pid| system_calls(engine, pid, schedule.slice));
        rows.push(Row { calls, ..row(&contestant.name, &slices, &total) });
    }
    Ok(rows)
}

/// The disks that a workload visits: its sessions are dealt out over the first ones.
fn disks_of(plan: &Plan) -> usize {
    plan.urls.len().min(plan.workload.sessions).max(1)
}

/// What all disks of a server are written to comes from one span: as many bytes for a server of many disks as for one of one.
fn shared_out(plan: Plan) -> Plan {
    if plan.workload.only_reads() {
        return plan;
    }
    let size = u64::from(plan.workload.size);
    let share = |span: u64| (span / disks_of(&plan) as u64 / size * size).max(size);
    Plan { span: plan.span.map(share), ..plan }
}

/// Writes each place once, in order, and has the disks take it: what is measured then meets allocated blocks.
fn fill(plan: &Plan) -> Result<()> {
    let workload = Workload { read_percent: 0, locality: Locality::Sequential, sessions: 1, ..plan.workload };
    for url in &plan.urls[..disks_of(plan)] {
        let options = Options { chap: url.chap.clone(), ..plan.options.clone() };
        let endpoint = Endpoint { address: url.address()?, target: url.target.clone(), lun: url.lun };
        let mut session = initiator::open(&endpoint, &options)?;
        session.ready()?;
        let disk = session.capacity()?.sectors * SECTOR;
        let requests = plan.span.unwrap_or(disk).min(disk) / u64::from(workload.size);
        let once = Plan { workload, urls: vec![url.clone()], requests: Some(requests), ..plan.clone() };
        let stats = Engine::open(once, 0, 1)?.run(FILL_PATIENCE)?;
        if let Some(error) = &stats.first_error {
            return Err(failure!("{url} cannot be filled before it is written to: {error}"));
        }
        if stats.ended < requests {
            return Err(failure!(
                "{url} took {} of {requests} writes in {} s: give a smaller --span",
                stats.ended,
                FILL_PATIENCE.as_secs()
            ));
        }
        session.flush()?;
        session.logout()?;
    }
    Ok(())
}

/// One more visit, in which the server's system calls are counted: by a tracepoint, which hardly disturbs it, or
/// else by strace, which makes it slow. `None` where neither is allowed.
fn system_calls(engine: &mut Engine, pid: u32, time: Duration) -> Option<(f64, &'static str)> {
    let each = |calls: u64, stats: &Stats| (stats.ended > 0).then(|| calls as f64 / stats.ended as f64);
    if let Ok(mut counter) = ring::SystemCalls::of(pid) {
        let before = counter.count().ok()?;
        let stats = engine.run(time).ok()?;
        let calls = counter.count().ok()?.saturating_sub(before);
        return Some((each(calls, &stats)?, "tracepoint"));
    }
    let counted = proc::under_strace(pid, || engine.run(time)).ok()?;
    let (stats, calls) = counted?;
    Some((each(calls, &stats.ok()?)?, "strace"))
}

fn visit(engine: &mut Engine, pid: Option<u32>, time: Duration) -> Result<(Slice, Stats)> {
    let clock = |pid: Option<u32>| pid.map(proc::run_time).transpose();
    let me = Some(std::process::id());
    let (server, client) = (clock(pid)?, clock(me)?);
    let started = std::time::Instant::now();
    let stats = engine.run(time)?;
    let elapsed = started.elapsed().as_nanos() as f64;
    let spent = |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?) as f64);
    let server = spent(server, clock(pid)?);
    let client = spent(client, clock(me)?);
    let [p50, _, p99, _, _] = stats.latencies();
    let slice = Slice {
        iops: stats.iops(),
        megabytes: stats.megabytes_per_second(),
        p50,
        p99,
        cost: server.filter(|_| stats.ended > 0).map(|nanos| nanos / 1e3 / stats.ended as f64),
        server_busy: server.map(|nanos| nanos / elapsed),
        client_busy: client.unwrap_or(0.0) / elapsed,
    };
    Ok((slice, stats))
}

fn row(name: &str, slices: &[Slice], total: &Stats) -> Row {
    let middle = |of: fn(&Slice) -> f64| quantile(slices.iter().map(of).collect(), 0.5);
    let known = |of: fn(&Slice) -> Option<f64>| {
        let values: Vec<f64> = slices.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| quantile(values, 0.5))
    };
    let iops = || slices.iter().map(|s| s.iops).collect();
    Row {
        name: name.to_string(),
        iops: middle(|s| s.iops),
        quartiles: [quantile(iops(), 0.25), quantile(iops(), 0.75)],
        megabytes: middle(|s| s.megabytes),
        p50: middle(|s| s.p50),
        p99: middle(|s| s.p99),
        cost: known(|s| s.cost),
        server_busy: known(|s| s.server_busy),
        client_busy: middle(|s| s.client_busy),
        calls: None,
        errors: total.errors + total.mismatches,
        first_error: total.first_error.clone(),
    }
}

fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let position = at * values.len().saturating_sub(1) as f64;
    values.get(position.round() as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Url;

    fn plan(workload: &str, disks: usize, span: Option<u64>) -> Plan {
        let url: Url = "iscsi://127.0.0.1:1/iqn.2026-11.example:disk/0".parse().unwrap();
        Plan {
            urls: vec![url; disks],
            workload: workload.parse().unwrap(),
            beside: None,
            rate: None,
            span,
            verify: None,
            options: Options::default(),
            spin: Duration::ZERO,
            may_count: true,
            requests: None,
        }
    }

    #[test]
    fn all_disks_of_a_server_together_are_written_to_as_many_bytes_as_one_of_another() {
        let span = |workload, disks| shared_out(plan(workload, disks, Some(64 << 20))).span.unwrap();
        assert_eq!(span("4k-randwrite-32x16", 1), 64 << 20);
        assert_eq!(span("4k-randwrite-32x16", 256), 4 << 20);
        assert_eq!(span("4k-randwrite-32x3", 256), (64 << 20) / 3 / 4096 * 4096);
        assert_eq!(span("4k-rand50-32x4", 4), 16 << 20);
        assert_eq!(span("4k-randread-32x16", 256), 64 << 20);
        assert_eq!(shared_out(plan("4k-randwrite-32x16", 16, None)).span, None);
    }

    #[test]
    fn one_wild_slice_does_not_move_the_median() {
        assert_eq!(quantile(vec![10.0, 11.0, 900.0, 9.0, 10.5], 0.5), 10.5);
        assert_eq!(quantile(vec![1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert_eq!(quantile(vec![], 0.5), 0.0);
    }
}
