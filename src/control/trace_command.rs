//! `goldrush trace`: what a boot trace says, how long reading along it takes, and its end.
//!
//! Knows what to say. Does not know the format (`boot_trace`), names of files (`trace_store`), nor how a trace is
//! followed (`follow`, `warm`).

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::boot_traces::{GoldenImage, traced};
use super::cli_trace::{ForgetArgs, ReplayArgs, ShowArgs, TraceCommand, TraceFolderArgs};
use super::error::{Error, print};
use super::file::{Access, Locking};
use super::golden::{self, GoldenFiles};
use super::open_image::{LayerTable, OpenedLayer, Opener};
use super::size::Size;
use super::trace_store::{self, ENDING, TracePlace, TraceStore};
use super::warm::{self, Warmed};
use crate::boot_trace::BootTrace;
use crate::buf::FRAME_BYTES;

#[derive(Debug, Serialize)]
struct ShowReport {
    trace: PathBuf,
    golden_bytes: u64,
    boots: u32,
    settled: bool,
    bytes: u64,
    /// What at least half of the boots read, and a server reads ahead.
    usual_bytes: u64,
    /// `None` when only the trace was named.
    fits: Option<bool>,
    ranges: Vec<RangeReport>,
}

#[derive(Debug, Serialize)]
struct RangeReport {
    offset: u64,
    bytes: u64,
    boots: u32,
}

#[derive(Debug, Serialize)]
struct ReplayReport {
    trace: PathBuf,
    bytes: u64,
    reads: u64,
    seconds: f64,
}

/// Runs `trace`.
pub(super) fn run(command: &TraceCommand) -> Result<(), Error> {
    match command {
        TraceCommand::Show(args) => show(args),
        TraceCommand::Replay(args) => replay(args),
        TraceCommand::Forget(args) => forget(args),
    }
}

/// Traces beside the image, or else in the folder of a server: both as its own (`--boot-trace`) and as its state.
fn stores(args: &TraceFolderArgs) -> TraceStore {
    TraceStore::new(TracePlace::Beside, args.folder.clone())
}

fn open(golden: &Path) -> Result<OpenedLayer, Error> {
    Ok(Opener::anywhere(Locking::Ignore).open_leaf(golden, Access::ReadOnly)?)
}

fn no_trace(golden: &Path) -> Error {
    Error::Failed(format!(
        "{} has no boot trace: serve it and boot a node, or name the server's folder (--folder)",
        golden.display()
    ))
}

/// The trace of an open golden image.
fn trace_of(layer: &OpenedLayer, args: &TraceFolderArgs) -> Result<(PathBuf, BootTrace), Error> {
    let path = layer.file().path();
    let version = trace_store::version_of(layer).map_err(Error::io(path, "looking at the image"))?;
    let found = stores(args).load(path, &version).map_err(|fault| {
        Error::Failed(format!("{fault}: remove it with goldrush trace forget, and it is recorded anew"))
    })?;
    found.ok_or_else(|| no_trace(path))
}

fn show(args: &ShowArgs) -> Result<(), Error> {
    let is_trace = args.path.as_os_str().as_encoded_bytes().ends_with(ENDING.as_bytes());
    let (path, trace, fits) = if is_trace {
        let trace = trace_store::read(&args.path).map_err(|fault| Error::Failed(fault.to_string()))?;
        let missing = || {
            Error::Failed(format!("{} does not exist: name a golden image or its trace", args.path.display()))
        };
        (args.path.clone(), trace.ok_or_else(missing)?, None)
    } else {
        let (path, trace) = trace_of(&open(&args.path)?, &args.folder)?;
        (path, trace, Some(true))
    };
    let range = |range: &crate::boot_trace::TraceRange| RangeReport {
        offset: range.offset(),
        bytes: range.bytes(),
        boots: range.boots,
    };
    let report = ShowReport {
        trace: path,
        golden_bytes: trace.golden.len,
        boots: trace.boots,
        settled: trace.is_settled(),
        bytes: trace.bytes(),
        usual_bytes: trace.usual().map(|range| range.bytes()).sum(),
        fits,
        ranges: trace.ranges.iter().map(range).collect(),
    };
    if args.json { print_json(&report) } else { print(|out| describe(out, &report, args.ranges)) }
}

fn describe(out: &mut dyn std::io::Write, report: &ShowReport, ranges: bool) -> std::io::Result<()> {
    let ShowReport { trace, golden_bytes, boots, settled, bytes, usual_bytes, .. } = report;
    writeln!(out, "trace:   {}", trace.display())?;
    writeln!(out, "golden:  {} long", Size(*golden_bytes))?;
    let more = if *settled { ", no more are recorded" } else { "" };
    writeln!(out, "boots:   {boots}{more}")?;
    writeln!(out, "read:    {bytes} bytes in {} ranges", report.ranges.len())?;
    writeln!(out, "ahead:   {usual_bytes} bytes, which half of the boots or more have read")?;
    if ranges {
        writeln!(out, "{:>16} {:>10} {:>5}", "offset", "bytes", "boots")?;
        for RangeReport { offset, bytes, boots } in &report.ranges {
            writeln!(out, "{offset:>16} {bytes:>10} {boots:>5}")?;
        }
    }
    Ok(())
}

fn replay(args: &ReplayArgs) -> Result<(), Error> {
    let layer = open(&args.golden)?;
    let (path, trace) = trace_of(&layer, &args.folder)?;
    // A frame holds 64 KiB, of which a trace may touch as little as a page; and some are always left.
    let frames = trace.ranges.iter().map(|range| range.bytes() / FRAME_BYTES as u64 + 2).sum::<u64>();
    let cache = golden::cache((frames + frames / 8 + 16) * FRAME_BYTES as u64, false);
    let image =
        GoldenImage::of(&layer, Some(trace)).map_err(Error::io(&args.golden, "looking at the image"))?;
    let mut table = LayerTable::default();
    table.add_alone(layer)?;
    let mut files = GoldenFiles::new(cache, true);
    files.of_shard(&table);
    let golden = files.golden();
    let begun = Instant::now();
    let warmed = warm::warm(golden, &traced(vec![image], &files)).ok_or_else(|| no_trace(&args.golden))?;
    let Warmed { bytes, reads, full } = warmed;
    let seconds = begun.elapsed().as_secs_f64();
    if full {
        return Err(Error::Failed(format!("there is no memory to read along {}", path.display())));
    }
    if args.json {
        return print_json(&ReplayReport { trace: path, bytes, reads, seconds });
    }
    let rate = bytes as f64 / 1e6 / seconds.max(1e-9);
    print(|out| writeln!(out, "{bytes} bytes in {reads} reads, {seconds:.3} s, {rate:.0} MB/s"))
}

fn forget(args: &ForgetArgs) -> Result<(), Error> {
    let removed = stores(&args.folder).forget(&args.golden)?;
    if removed.is_empty() {
        return Err(no_trace(&args.golden));
    }
    if args.json {
        #[derive(Serialize)]
        struct Removed {
            removed: Vec<PathBuf>,
        }
        return print_json(&Removed { removed });
    }
    print(|out| removed.iter().try_for_each(|path| writeln!(out, "removed {}", path.display())))
}

fn print_json(report: &impl Serialize) -> Result<(), Error> {
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, report)?;
        writeln!(out)
    })
}
