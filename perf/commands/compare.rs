//! `perf compare`: several servers, several workloads, one table each, with ratios to the ceiling.
//!
//! Knows arguments and the report. Does not know how slices are made.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::folder::Folder;
use super::load::SessionArgs;
use super::named::Named;
use super::table::{number, table};
use crate::ceiling::TARGET;
use crate::compare::{self, Contestant, Row, Schedule};
use crate::fail::{Result, failure};
use crate::load::Workload;
use crate::peers::Peer;
use crate::proc::{self, Server};
use crate::ring;
use crate::url::Url;

const CEILING: &str = "ceiling";
const DEFAULT_WORKLOADS: [&str; 5] =
    ["4k-randread-32x16", "4k-randread-32x1", "4k-randread-1x1", "64k-randread-32x16", "4k-randwrite-32x1"];

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Server to compare, NAME=iscsi://...; repeat it, with the same NAME for more disks of one server
    #[arg(long, value_name = "NAME=URL")]
    url: Vec<Named<Url>>,
    /// Process of a server, to count its run time
    #[arg(long, value_name = "NAME=PID")]
    pid: Vec<Named<u32>>,
    /// Start the ceiling and compare with it
    #[arg(long)]
    ceiling: bool,
    /// Start another target over the file of --disk and compare with it
    #[arg(long, value_enum, value_name = "PEER", requires = "disk")]
    against: Vec<Peer>,
    /// Raw image for the targets of --against: one for all, or one for each in turn. WORKLOADS THAT WRITE DESTROY IT
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Let the ceiling poll for so many microseconds before it sleeps
    #[arg(long, value_name = "US", default_value_t = 0, requires = "ceiling")]
    ceiling_spin_us: u64,
    /// Core for the servers that are started: that of the others
    #[arg(long, value_name = "CORE", alias = "ceiling-pin")]
    server_core: Option<usize>,
    /// Core for the client: not that of the servers
    #[arg(long, value_name = "CORE")]
    pin: Option<usize>,
    /// SIZE-KIND-DEPTHxSESSIONS, KIND being randread, randwrite, seqread, seqwrite, randNN or seqNN [default: five of them].
    /// One that writes writes each place once before, in order; the span is shared out over the disks it visits
    #[arg(long, value_name = "WORKLOAD")]
    workload: Vec<Workload>,
    /// Visits to each server for each workload
    #[arg(long, value_name = "N", default_value_t = 15)]
    slices: usize,
    /// Length of a visit
    #[arg(long, value_name = "MS", default_value_t = 400)]
    slice_ms: u64,
    /// Write all numbers to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to this file as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// A sentence for both files, such as the versions compared
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    #[command(flatten)]
    session: SessionArgs,
}

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    if args.slices == 0 || args.slice_ms == 0 {
        return Err(failure!("no slices, or slices of no time, measure nothing: give both at least 1"));
    }
    let machine = proc::machine();
    if let Some(core) = args.pin {
        ring::pin(core)?;
    }
    let mut urls = args.url.clone();
    let mut pids = args.pid.clone();
    let _ceiling = if args.ceiling {
        let (server, url) = start_ceiling(args.server_core, args.ceiling_spin_us)?;
        urls.push(Named { name: CEILING.to_string(), value: url });
        pids.push(Named { name: CEILING.to_string(), value: server.id() });
        Some(server)
    } else {
        None
    };
    let folder = Folder::create(None, "compare")?;
    let (_peers, versions) = start_peers(args, &folder, &mut urls, &mut pids)?;
    let note = [args.note.clone(), versions]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let workloads = if args.workload.is_empty() {
        DEFAULT_WORKLOADS.iter().map(|text| text.parse()).collect::<Result<Vec<Workload>>>()?
    } else {
        args.workload.clone()
    };
    if let Some(writes) = workloads.iter().find(|w| args.session.data_digest && !w.only_reads()) {
        return Err(failure!("{writes} writes: --data-digest is for workloads that only read"));
    }
    let contestants = contestants(args, &urls, &pids, workloads[0])?;
    let schedule = Schedule { slices: args.slices, slice: Duration::from_millis(args.slice_ms) };
    let bar = ProgressBar::new((workloads.len() * contestants.len() * args.slices) as u64);
    let style = ProgressStyle::with_template("{msg:24} {bar:40} {pos}/{len} slices, {eta} left");
    bar.set_style(style.map_err(|e| failure!("the progress bar has no such style: {e}; report this"))?);
    let mut results = Vec::new();
    for workload in &workloads {
        bar.set_message(workload.to_string());
        results.push((*workload, compare::run(&contestants, *workload, schedule, || bar.inc(1))?));
    }
    bar.finish_and_clear();
    let text = tables(&results);
    println!("{text}");
    if let Some(path) = &args.json {
        let document = json!({
            "machine": machine,
            "note": note,
            "slices": args.slices,
            "slice_ms": args.slice_ms,
            "client_core": args.pin,
            "workloads": results.iter().map(|(w, rows)| workload_json(w, rows)).collect::<Vec<_>>(),
        });
        write(path, &format!("{document:#}\n"))?;
    }
    if let Some(path) = &args.markdown {
        write(path, &markdown(&machine, args, &note, &text))?;
    }
    let broken =
        results.iter().flat_map(|(_, rows)| rows).find_map(|row| Some((row, row.first_error.as_ref()?)));
    match broken {
        None => Ok(()),
        Some((row, first)) => Err(failure!("{} made {} errors, the first: {first}", row.name, row.errors)),
    }
}

/// Starts the targets of `--against`; they end with the values returned. What they say they are comes along.
fn start_peers(
    args: &CompareArgs,
    folder: &Folder,
    urls: &mut Vec<Named<Url>>,
    pids: &mut Vec<Named<u32>>,
) -> Result<(Vec<Server>, String)> {
    let mut servers = Vec::new();
    let mut versions = Vec::new();
    for (peer, disk) in args.against.iter().zip(args.disk.iter().cycle()) {
        let (server, url) = peer.serve(disk, args.server_core, &folder.path)?;
        urls.push(Named { name: peer.name().to_string(), value: url });
        pids.push(Named { name: peer.name().to_string(), value: server.id() });
        versions.push(peer.version());
        servers.push(server);
    }
    Ok((servers, versions.join("; ")))
}

fn start_ceiling(pin: Option<usize>, spin_us: u64) -> Result<(Server, Url)> {
    let program = std::env::current_exe()
        .map_err(|e| failure!("cannot find this program: {e}; start the ceiling by hand"))?;
    let mut command = Command::new(program);
    command.args(["ceiling", "--listen", "127.0.0.1:0", "--with-parent", "--seconds", "3600"]);
    command.args(["--spin-us", &spin_us.to_string()]);
    if let Some(core) = pin {
        command.args(["--pin", &core.to_string()]);
    }
    let (server, address) = Server::start(&mut command, Duration::from_secs(20))?;
    Ok((server, format!("iscsi://{address}/{TARGET}/0").parse()?))
}

/// Servers in the order in which their names first came.
fn contestants(
    args: &CompareArgs,
    urls: &[Named<Url>],
    pids: &[Named<u32>],
    first: Workload,
) -> Result<Vec<Contestant>> {
    let mut names: Vec<&str> = Vec::new();
    for named in urls {
        if !names.contains(&named.name.as_str()) {
            names.push(&named.name);
        }
    }
    if names.is_empty() {
        return Err(failure!("nothing to compare: give --url NAME=URL, or --ceiling"));
    }
    if let Some(stray) = pids.iter().find(|pid| !names.contains(&pid.name.as_str())) {
        return Err(failure!("--pid names {}, which no --url does: use the same name", stray.name));
    }
    let one = |name: &str| {
        let own: Vec<Url> = urls.iter().filter(|u| u.name == name).map(|u| u.value.clone()).collect();
        let pid = pids.iter().find(|pid| pid.name == name).map(|pid| pid.value);
        Ok(Contestant { name: name.to_string(), plan: args.session.plan(&own, first, None)?, pid })
    };
    names.into_iter().map(one).collect()
}

fn ceiling_of(rows: &[Row]) -> Option<f64> {
    rows.iter().find(|row| row.name == CEILING).map(|row| row.iops)
}

fn workload_json(workload: &Workload, rows: &[Row]) -> Value {
    let ceiling = ceiling_of(rows);
    json!({ "workload": workload.to_string(), "servers": rows.iter().map(|r| r.to_json(ceiling)).collect::<Vec<_>>() })
}

fn tables(results: &[(Workload, Vec<Row>)]) -> String {
    let columns = [
        "server",
        "IOPS",
        "quartiles",
        "of ceiling",
        "MB/s",
        "p50 us",
        "p99 us",
        "CPU us/req",
        "calls/req",
        "server busy",
        "client busy",
    ];
    let mut text = String::new();
    for (workload, rows) in results {
        let ceiling = ceiling_of(rows);
        let mut table = table(&columns);
        let percent = |part: f64| format!("{:.0} %", 100.0 * part);
        for row in rows {
            table.add_row([
                row.name.clone(),
                number(row.iops),
                format!("{} - {}", number(row.quartiles[0]), number(row.quartiles[1])),
                ceiling.map_or("-".to_string(), |ceiling| percent(row.iops / ceiling)),
                number(row.megabytes),
                number(row.p50),
                number(row.p99),
                row.cost.map_or("-".to_string(), number),
                row.calls.map_or("-".to_string(), |(calls, how)| {
                    if how == "strace" { format!("{calls:.3} (strace)") } else { format!("{calls:.3}") }
                }),
                row.server_busy.map_or("-".to_string(), percent),
                percent(row.client_busy),
            ]);
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "**{workload}**\n\n{table}\n\n");
    }
    text
}

fn markdown(machine: &Value, args: &CompareArgs, note: &str, tables: &str) -> String {
    let fact = |key: &str| machine[key].as_str().unwrap_or("?").to_string();
    format!(
        "# perf compare\n\nMachine: {}{}, {} cores, {} memory, Linux {}, loopback, load average {} at the start.\n\
         Medians of {} slices of {} ms, servers visited in rotation; a workload is SIZE-KIND-DEPTHxSESSIONS.\n{}\n\n{tables}",
        fact("processor"),
        if machine["virtual"] == true { " (virtual machine)" } else { "" },
        machine["cores"],
        fact("memory"),
        fact("kernel"),
        fact("load_average_at_start"),
        args.slices,
        args.slice_ms,
        note,
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .map_err(|e| failure!("cannot write {}: {e}; give a path that can be written", path.display()))
}
