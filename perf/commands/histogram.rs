//! `perf histogram`: prints what a histogram log holds.
//!
//! Knows its arguments. Does not know how a log is packed.

use std::path::PathBuf;

use clap::Args;

use super::table::{number, table};
use crate::fail::{Result, failure};
use crate::histogram::{self, micros_at};

#[derive(Debug, Args)]
pub(crate) struct HistogramArgs {
    /// Log that --histogram of another command wrote
    file: PathBuf,
    /// Further percentile to print, such as 99.99; may be repeated
    #[arg(long, value_name = "P")]
    percentile: Vec<f64>,
}

pub(crate) fn run(args: &HistogramArgs) -> Result<()> {
    if let Some(bad) = args.percentile.iter().find(|p| !(0.0..=100.0).contains(*p)) {
        return Err(failure!("there is no percentile {bad}: choose one between 0 and 100"));
    }
    let percentiles: Vec<f64> =
        [50.0, 90.0, 99.0, 99.9].into_iter().chain(args.percentile.iter().copied()).collect();
    let heads: Vec<String> = percentiles.iter().map(|p| format!("p{p} us")).collect();
    let columns: Vec<&str> = ["phase", "count", "mean us"]
        .into_iter()
        .chain(heads.iter().map(String::as_str))
        .chain(["max us"])
        .collect();
    let mut table = table(&columns);
    for (name, latencies) in histogram::read(&args.file)? {
        let mut row = vec![name, latencies.len().to_string(), number(latencies.mean() / 1e3)];
        row.extend(percentiles.iter().map(|p| number(micros_at(&latencies, p / 100.0))));
        row.push(number(micros_at(&latencies, 1.0)));
        table.add_row(row);
    }
    println!("{table}");
    Ok(())
}
