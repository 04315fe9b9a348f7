//! `perf fair`: what one greedy client does to the modest ones beside it.
//!
//! Knows two kinds of sessions, slices with and without the greedy one, and the ratio. Does not know how a load is made.

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::load::SessionArgs;
use super::table::{number, table};
use crate::fail::{Result, failure};
use crate::load::{Engine, Plan, Stats, Workload};
use crate::proc;
use crate::ring;
use crate::storm::rounds::median;
use crate::url::Url;

/// What the project wants the modest sessions' p99 to grow by at most.
const BAR: f64 = 2.0;

#[derive(Debug, Args)]
pub(crate) struct FairArgs {
    /// Disk to load; repeat it, or write * in TARGET for all that match. Sessions are dealt out in turn
    #[arg(long, value_name = "URL", required = true)]
    url: Vec<Url>,
    /// The modest sessions, SIZE-KIND-DEPTHxSESSIONS
    #[arg(long, value_name = "WORKLOAD", default_value = "4k-randread-1x63")]
    modest: Workload,
    /// The greedy one beside them
    #[arg(long, value_name = "WORKLOAD", default_value = "4k-randread-256x1")]
    greedy: Workload,
    /// Slices with, and slices without the greedy one, in turn
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    slices: u32,
    /// Length of a slice
    #[arg(long, value_name = "MS", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..))]
    slice_ms: u64,
    /// Core for this client: not that of the server
    #[arg(long, value_name = "CORE")]
    pin: Option<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

/// One kind of slice: medians over them.
#[derive(Debug, Default)]
struct Column {
    p50: Vec<f64>,
    p99: Vec<f64>,
    iops: Vec<f64>,
    greedy: Vec<f64>,
}

impl Column {
    fn add(&mut self, modest: &Stats, greedy: &Stats) {
        let [p50, _, p99, _, _] = modest.latencies();
        self.p50.push(p50);
        self.p99.push(p99);
        self.iops.push(modest.iops());
        self.greedy.push(greedy.iops());
    }

    fn middles(&self) -> [f64; 4] {
        [&self.p50, &self.p99, &self.iops, &self.greedy].map(|values| median(values.clone()).unwrap_or(0.0))
    }
}

pub(crate) fn run(args: &FairArgs) -> Result<()> {
    let machine = proc::machine();
    if let Some(core) = args.pin {
        ring::pin(core)?;
    }
    let plan = args.session.plan(&args.url, args.modest, None)?;
    let mut engine = Engine::open(Plan { beside: Some(args.greedy), ..plan }, 0, 1)?;
    let slice = Duration::from_millis(args.slice_ms);
    engine.run_both(slice, true)?;
    let bar = ProgressBar::new(2 * u64::from(args.slices));
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} slices, {eta} left");
    bar.set_style(style.map_err(|e| failure!("the progress bar has no such style: {e}; report this"))?);
    let mut columns = [Column::default(), Column::default()];
    for turn in 0..2 * args.slices {
        // Which one is first changes, so that nothing slow favours one of them.
        let with = (turn % 2 == 1) != (turn % 4 > 1);
        let [modest, greedy] = engine.run_both(slice, with)?;
        if let Some(first) = modest.first_error.as_ref().or(greedy.first_error.as_ref()) {
            return Err(failure!("the load failed: {first}"));
        }
        columns[usize::from(with)].add(&modest, &greedy);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let [without, with] = columns.map(|column| column.middles());
    let ratio = with[1] / without[1];
    if args.json {
        let told = |[p50, p99, iops, greedy]: [f64; 4]| json!({ "p50_us": p50, "p99_us": p99, "iops": iops, "greedy_iops": greedy });
        let (modest, greedy) = (args.modest.to_string(), args.greedy.to_string());
        println!(
            "{}",
            json!({ "machine": machine, "modest": modest, "greedy": greedy, "slices": args.slices, "slice_ms": args.slice_ms,
                    "without": told(without), "with": told(with), "p99_ratio": ratio })
        );
        return Ok(());
    }
    let mut table = table(&["sessions", "p50 us", "p99 us", "IOPS", "IOPS of the greedy one"]);
    let names = [format!("{} alone", args.modest), format!("beside {}", args.greedy)];
    for (name, values) in names.into_iter().zip([without, with]) {
        let mut row = vec![name];
        row.extend(values.map(number));
        table.add_row(row);
    }
    println!("{table}");
    let said = if ratio <= BAR { "reached" } else { "NOT REACHED" };
    println!(
        "- Their p99 grows {ratio:.2}-fold; at most {BAR}: {said}. Medians of {} slices each.",
        args.slices
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_slice_does_not_decide() {
        let mut column = Column::default();
        for micros in [100, 110, 90_000] {
            let mut stats = Stats::new();
            stats.record(false, Duration::from_micros(micros), 4096);
            stats.elapsed = Duration::from_secs(1);
            column.add(&stats, &Stats::new());
        }
        let [_, p99, iops, greedy] = column.middles();
        assert!((109.0..111.0).contains(&p99), "{p99}");
        assert_eq!((iops, greedy), (1.0, 0.0));
    }
}
