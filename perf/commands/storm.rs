//! `perf storm`: who is stormed, in which order, and the verdict.
//!
//! Knows arguments and progress. Does not know how a storm goes on, nor how its report looks.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::folder::Folder;
use super::load::seconds;
use super::storm_report::{self, Report};
use crate::ceiling::SEED;
use crate::fail::{Result, failure};
use crate::histogram::{self, Kept};
use crate::initiator::Options;
use crate::load::{self, Base};
use crate::peers::Peer;
use crate::proc;
use crate::ring;
use crate::scsi::SECTOR;
use crate::storm::golden::Golden;
use crate::storm::rounds::{self, Contestant, Place, Run, Who};
use crate::storm::{Checks, Class, Record, Script, Storm, Watch};
use crate::trace::Trace;
use crate::url::Url;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verify {
    /// Nothing: the kernel discards long payloads
    Off,
    /// All but the sectors that the boot writes: for a disk that many nodes share
    Golden,
    /// Every byte, and everything written is read back after the boot
    All,
}

#[derive(Debug, Args)]
pub(crate) struct StormArgs {
    /// Machines that boot at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    nodes: u32,
    /// The recorded boot that every node replays: bios, uefi, or a CSV file (time_us,op,lba,blocks,session)
    #[arg(long, value_name = "TRACE", default_value = "bios")]
    trace: String,
    /// What part of the recorded pauses to keep: 1 all, 0.1 a tenth, 0 none
    #[arg(long, value_name = "PART", default_value_t = 0.0)]
    think: f64,
    /// Storm these disks instead of a goldrush of its own; a * in TARGET stands for all that match. THE BOOT WRITES
    #[arg(long, value_name = "URL")]
    url: Vec<Url>,
    /// What to compare [default: all; with --url and no --content off]
    #[arg(long, value_enum)]
    verify: Option<Verify>,
    /// What the disks of --url hold before the storm: zero, stamp, stamp:SEED or file:RAW
    #[arg(long, value_name = "PATTERN", requires = "url")]
    content: Option<Base>,
    /// Initiator names; the * stands for the number of the node
    #[arg(long, value_name = "IQN", default_value = "iqn.2026-11.io.goldrush:storm-*")]
    initiator: String,
    /// Storm the ceiling too, with the same bytes
    #[arg(long)]
    ceiling: bool,
    /// Storm another target too, one disk for all nodes (which spares it the copies)
    #[arg(long, value_enum, value_name = "PEER", conflicts_with = "url")]
    against: Vec<Peer>,
    /// Storm each server so many times, in an order that rotates; medians count
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Core for the servers
    #[arg(long, value_name = "CORE")]
    server_core: Option<usize>,
    /// Core for this client
    #[arg(long, value_name = "CORE")]
    pin: Option<usize>,
    /// The server's program [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    goldrush: Option<PathBuf>,
    /// Further argument of `goldrush serve`, such as --serve=--golden-cache=1G; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    serve: Vec<String>,
    /// Process of the server behind --url, for its run time and its reads
    #[arg(long, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    /// Take this file out of the page cache before each storm; may be repeated
    #[arg(long, value_name = "FILE")]
    cold: Vec<PathBuf>,
    /// The network whose floor to compare with, in bits a second (k, M or G)
    #[arg(long, value_name = "RATE", default_value = "10G", value_parser = parse_rate)]
    wire: f64,
    /// Give up after so many seconds for each storm
    #[arg(long, value_name = "S", default_value_t = 900.0)]
    seconds: f64,
    /// Work in this new folder and leave it there [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write a report that needs nothing else to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the pictures to files with this beginning, such as storm-nodes.svg
    #[arg(long, value_name = "PREFIX")]
    svg: Option<String>,
    /// Write the tables to this file as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write all numbers to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write all latencies to this file as an HdrHistogram log (see `perf histogram`)
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,
    /// A sentence for the reports, such as the versions compared
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

/// Bits a second, with an optional k, M or G (powers of 1000).
fn parse_rate(text: &str) -> Result<f64> {
    let bad = || failure!("{text:?} is no rate: write a number of bits a second with k, M or G, such as 10G");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'M' | 'm')) => (&text[..at], 1e6),
        Some((at, 'G' | 'g')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    let number: f64 = digits.parse().map_err(|_| bad())?;
    if number.is_finite() && number > 0.0 { Ok(number * unit) } else { Err(bad()) }
}

struct Bar {
    bar: ProgressBar,
    nodes: u32,
    name: String,
}

impl Bar {
    fn new(name: &str, nodes: u32, commands: u64) -> Result<Bar> {
        let style =
            ProgressStyle::with_template("{spinner} {msg:34} {bar:30} {pos}/{len} commands  {elapsed}");
        let style = style.map_err(|e| failure!("the progress bar has no such style: {e}; report this"))?;
        let bar = ProgressBar::new(commands).with_style(style);
        bar.set_message(format!("{name}: starting"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Bar { bar, nodes, name: name.to_string() })
    }
}

impl Watch for Bar {
    fn goes_on(&self, commands: u64, booted: usize, record: &Record) {
        self.bar.set_position(commands);
        let failed = record.nodes.iter().filter(|node| node.failure.is_some()).count();
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        self.bar.set_message(format!("{}: {booted}/{} booted{failed}", self.name, self.nodes));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

pub(crate) fn run(args: &StormArgs) -> Result<()> {
    if !(0.0..=1e6).contains(&args.think) {
        return Err(failure!("--think {} is no part of a pause: choose 0 to 1000000", args.think));
    }
    let machine = proc::machine();
    let storm = storm(args)?;
    let folder = Folder::create(args.dir.as_deref(), "storm")?;
    let (contestants, place) = contestants(args, &storm, &folder)?;
    if let Some(core) = args.pin {
        ring::pin(core)?;
    }
    let mut runs: Vec<Run> = Vec::new();
    for round in 0..args.rounds as usize {
        for turn in 0..contestants.len() {
            let contestant = &contestants[(round + turn) % contestants.len()];
            let commands = storm.script.commands() * u64::from(args.nodes);
            let bar = Bar::new(&contestant.name, args.nodes, commands)?;
            runs.push(rounds::visit(contestant, &storm, &place, &bar)?);
        }
    }
    let names = contestants.iter().map(|contestant| contestant.name.clone()).collect();
    let report = Report {
        machine,
        command: command_line(std::env::args()),
        note: note(args),
        trace: args.trace.clone(),
        wire: args.wire,
        names,
        storm: &storm,
        runs: &runs,
    };
    println!("{}", report.text());
    let write = |path: &PathBuf, text: &str| storm_report::write(path, text);
    args.markdown.as_ref().map_or(Ok(()), |path| write(path, &report.markdown()))?;
    args.json.as_ref().map_or(Ok(()), |path| write(path, &format!("{:#}\n", report.json())))?;
    args.html.as_ref().map_or(Ok(()), |path| write(path, &report.html()?))?;
    args.svg.as_ref().map_or(Ok(()), |prefix| report.pictures(prefix))?;
    if let Some(path) = &args.histogram {
        histogram::write(path, &report.command, &kept(&runs))?;
    }
    verdict(&runs)
}

fn storm(args: &StormArgs) -> Result<Storm> {
    let trace = Trace::load(&args.trace)?;
    let verify = args.verify.unwrap_or(if args.url.is_empty() || args.content.is_some() {
        Verify::All
    } else {
        Verify::Off
    });
    if verify != Verify::Off && !args.url.is_empty() && args.content.is_none() {
        return Err(failure!(
            "what the disks of --url must hold is not known: give --content, or --verify off"
        ));
    }
    let checks = match verify {
        Verify::Off => Checks::Off,
        Verify::Golden => Checks::Golden,
        Verify::All => Checks::All,
    };
    Ok(Storm {
        urls: Vec::new(),
        nodes: args.nodes as usize,
        script: Script::of(&trace),
        think: args.think,
        checks,
        content: args.content.clone().unwrap_or(Base::Stamp(SEED)),
        initiator: args.initiator.clone(),
        limit: seconds("--seconds", args.seconds)?,
    })
}

/// The arguments as a shell would take them.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%@+".contains(c);
    let quoted = |word: String| {
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    arguments.map(quoted).collect::<Vec<_>>().join(" ")
}

/// The note given, and which version of each other target was stormed.
fn note(args: &StormArgs) -> String {
    let versions = args.against.iter().map(|peer| peer.version());
    let parts: Vec<String> = std::iter::once(args.note.clone()).chain(versions).collect();
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

fn contestants(args: &StormArgs, storm: &Storm, folder: &Folder) -> Result<(Vec<Contestant>, Place)> {
    let mut contestants = Vec::new();
    let mut cold = args.cold.clone();
    let one = |name: &str, who, own_disks| Contestant { name: name.to_string(), who, own_disks };
    if args.url.is_empty() {
        let program = super::demo::server(args.goldrush.as_ref())?;
        let golden = Golden::make(&storm.script, &folder.path, &program)?;
        cold.extend([golden.image.clone(), golden.raw.clone()]);
        let arguments = args.serve.clone();
        contestants.push(one("goldrush", Who::Goldrush { program, image: golden.image, arguments }, true));
        for peer in &args.against {
            let raw = golden.raw.clone();
            contestants.push(one(peer.name(), Who::Peer { peer: *peer, raw }, false));
        }
    } else {
        let urls = load::expand(&args.url, &Options::default())?;
        let own_disks = urls.len() >= args.nodes as usize;
        if storm.checks == Checks::All && !own_disks {
            eprintln!(
                "perf: {} disks for {} nodes: only what no node writes is verified, and nothing read back",
                urls.len(),
                args.nodes
            );
        }
        contestants.push(one("target", Who::Given { urls, pid: args.pid }, own_disks));
    }
    if args.ceiling {
        // What it serves is what a golden image holds, and room for what the boot writes.
        let memory = (storm.script.sectors * SECTOR).next_multiple_of(1 << 20);
        contestants.push(one("ceiling", Who::Ceiling { memory }, false));
    }
    Ok((contestants, Place { dir: folder.path.clone(), core: args.server_core, cold }))
}

/// The latencies of all runs, by server and kind of command.
fn kept(runs: &[Run]) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut start = Duration::ZERO;
    for run in runs {
        for class in Class::ALL {
            let latencies = run.record.class(class).clone();
            let name = format!("{}-{}", run.name, class.name()).replace([',', ' '], "-");
            kept.push(Kept { name, start, length: run.elapsed, latencies });
        }
        start += run.elapsed;
    }
    kept
}

fn verdict(runs: &[Run]) -> Result<()> {
    let Some(bad) = runs.iter().find(|run| !run.record.is_good()) else { return Ok(()) };
    let record = &bad.record;
    let first = record.first_error.clone().unwrap_or("no reason was told".to_string());
    Err(failure!(
        "{}: {} of {} nodes booted, {} sectors were wrong, the first fault: {first}",
        bad.name,
        record.booted(),
        record.nodes.len(),
        record.wrong_sectors
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_given_to_a_shell_again() {
        let words = ["perf", "storm", "--note", "it's 5", "a*"].map(str::to_string);
        assert_eq!(command_line(words.into_iter()), "perf storm --note 'it'\\''s 5' 'a*'");
    }

    #[test]
    fn rates_are_powers_of_a_thousand() {
        assert_eq!(parse_rate("10G"), Ok(1e10));
        assert_eq!(parse_rate("2.5g"), Ok(2.5e9));
        assert_eq!(parse_rate("100M"), Ok(1e8));
        for bad in ["", "G", "-1G", "0", "nanG", "10T"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
