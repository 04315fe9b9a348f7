//! `perf demo`: arguments, progress and verdict of the demonstration.
//!
//! Knows what a person sees. Does not know what is done.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::folder::Folder;
use super::table::{number, table};
use crate::demo::{self, Outcome, Setup, Watch};
use crate::fail::{Result, failure};
use crate::load::parse_bytes;
use crate::trace::Trace;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Machines that boot at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=999))]
    nodes: u16,
    /// Size of the golden disk
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "64m")]
    size: u64,
    /// The server's program [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    goldrush: Option<PathBuf>,
    /// Cores for the server, such as 0 or 0-3 [default: its own]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// LUN of the disk in each target
    #[arg(long, value_name = "LUN", default_value_t = 0)]
    lun: u16,
    /// Replay a recorded boot instead of a made-up one: bios, uefi, or a CSV file (time_us,op,lba,blocks,session)
    #[arg(long, value_name = "TRACE")]
    trace: Option<String>,
    /// Work in this new folder and leave it there [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

struct Bar(ProgressBar);

impl Watch for Bar {
    fn step(&self, what: &str) {
        self.0.set_message(what.to_string());
    }

    fn commands(&self, total: u64) {
        self.0.set_length(total);
    }

    fn command_done(&self) {
        self.0.inc(1);
    }
}

/// The server's program: the one asked for, or the one beside this program.
pub(super) fn server(asked: Option<&PathBuf>) -> Result<PathBuf> {
    let goldrush = match asked {
        Some(path) => path.clone(),
        None => {
            let me = std::env::current_exe()
                .map_err(|e| failure!("cannot find this program: {e}; give --goldrush PATH"))?;
            me.with_file_name("goldrush")
        }
    };
    if goldrush.is_file() {
        return Ok(goldrush);
    }
    Err(failure!("there is no server at {}: build it, or give --goldrush PATH", goldrush.display()))
}

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let goldrush = server(args.goldrush.as_ref())?;
    if args.size < 16 << 20 {
        return Err(failure!(
            "a golden disk of {} bytes has no room for a boot: give --size 16m or more",
            args.size
        ));
    }
    let trace = args.trace.as_deref().map(Trace::load).transpose()?;
    let folder = Folder::create(args.dir.as_deref(), "demo")?;
    let setup = Setup {
        goldrush,
        dir: folder.path.clone(),
        nodes: usize::from(args.nodes),
        size: args.size,
        trace,
        cores: args.cores.clone(),
        lun: args.lun,
    };
    let style = ProgressStyle::with_template("{spinner} {msg:24} {bar:40} {pos}/{len} commands  {elapsed}");
    let bar = ProgressBar::new(1)
        .with_style(style.map_err(|e| failure!("the progress bar has no such style: {e}; report this"))?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let bar = Bar(bar);
    let outcome = demo::run(&setup, &bar);
    bar.0.finish_and_clear();
    let outcome = outcome?;
    print(&outcome);
    if outcome.is_good() {
        println!(
            "{} simulated machines booted from one golden image, and every byte was right.",
            outcome.nodes.len()
        );
        return Ok(());
    }
    Err(failure!("the demonstration failed: see the node or check above that is not ok"))
}

fn print(outcome: &Outcome) {
    let columns = [
        "node",
        "loader s",
        "OS s",
        "reads",
        "read MiB",
        "writes",
        "write MiB",
        "flushes",
        "kept MiB",
        "verify",
    ];
    let mut table = table(&columns);
    let mib = |bytes: u64| number(bytes as f64 / f64::from(1 << 20));
    let mut told = Vec::new();
    for (name, tally) in &outcome.nodes {
        match tally {
            Ok(t) => {
                let verify = if t.wrong_sectors == 0 {
                    "ok".to_string()
                } else {
                    format!("{} sectors wrong", t.wrong_sectors)
                };
                table.add_row([
                    name.clone(),
                    number(t.loader.as_secs_f64()),
                    number(t.system.as_secs_f64()),
                    t.reads.to_string(),
                    mib(t.read_bytes),
                    t.writes.to_string(),
                    mib(t.write_bytes),
                    t.flushes.to_string(),
                    mib(t.kept_bytes),
                    verify,
                ]);
            }
            Err(failure) => {
                table.add_row([name.as_str(), "-", "-", "-", "-", "-", "-", "-", "-", "failed"]);
                told.push(format!("{name}: {failure}"));
            }
        }
    }
    println!("{table}");
    told.iter().for_each(|line| println!("{line}"));
    for (what, check) in &outcome.checks {
        match check {
            Ok(()) => println!("ok      {what}"),
            Err(failure) => println!("not ok  {what}: {failure}"),
        }
    }
}
