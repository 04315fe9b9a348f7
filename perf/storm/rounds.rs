//! Storms against several servers in turn: each starts cold, is stormed, and tells what it read.
//!
//! Knows servers, rounds, counters and medians. Does not know how a storm goes on inside, nor how figures are shown.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Checks, Record, Storm, Watch, golden};
use crate::ceiling::TARGET;
use crate::fail::{Result, failure};
use crate::peers::{self, Peer};
use crate::proc::{self, Server};
use crate::url::Url;

const PATIENCE: Duration = Duration::from_secs(120);

/// Who is stormed.
#[derive(Debug, Clone)]
pub(crate) enum Who {
    /// Started anew for each round, with new children.
    Goldrush { program: PathBuf, image: PathBuf, arguments: Vec<String> },
    /// The ceiling, with a disk of so many bytes.
    Ceiling { memory: u64 },
    /// Started anew for each round; all nodes share one disk.
    Peer { peer: Peer, raw: PathBuf },
    /// Somebody else's server, which goes on running.
    Given { urls: Vec<Url>, pid: Option<u32> },
}

#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) who: Who,
    /// Its nodes have a disk each.
    pub(crate) own_disks: bool,
}

/// Where and how servers run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) core: Option<usize>,
    /// Files to take out of the page cache before each storm.
    pub(crate) cold: Vec<PathBuf>,
}

/// One storm against one server.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) record: Record,
    /// What the server says it read of golden files.
    pub(crate) golden_bytes: Option<u64>,
    /// What the kernel says the server's process had read from disks during the storm.
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) server_run: Option<Duration>,
    pub(crate) client_run: Duration,
    pub(crate) elapsed: Duration,
}

impl Run {
    pub(crate) fn seconds(&self) -> Option<f64> {
        self.record.time_to_all().map(|time| time.as_secs_f64())
    }
}

struct Served {
    urls: Vec<Url>,
    pid: Option<u32>,
    server: Option<Server>,
    /// Where a goldrush writes its log, and its children.
    log: Option<PathBuf>,
    overlays: Option<PathBuf>,
}

/// Storms one server once.
pub(crate) fn visit(contestant: &Contestant, storm: &Storm, place: &Place, watch: &dyn Watch) -> Result<Run> {
    for file in &place.cold {
        golden::forget(file)?;
    }
    let served = serve(contestant, storm, place)?;
    let checks = match storm.checks {
        Checks::All if !contestant.own_disks => Checks::Golden,
        checks => checks,
    };
    let storm = Storm { urls: served.urls.clone(), checks, ..storm.clone() };
    let clock = |pid: Option<u32>| pid.map(proc::run_time).transpose();
    let me = std::process::id();
    let (server_before, client_before) = (clock(served.pid)?, proc::run_time(me)?);
    // The kernel tells it of one's own processes only.
    let disk_before = served.pid.and_then(|pid| proc::disk_read_bytes(pid).ok());
    let started = Instant::now();
    let record = super::run(&storm, watch)?;
    let elapsed = started.elapsed();
    let spent = |before: u64, after: u64| Duration::from_nanos(after.saturating_sub(before));
    let server_run = clock(served.pid)?.zip(server_before).map(|(after, before)| spent(before, after));
    let client_run = spent(client_before, proc::run_time(me)?);
    let disk_after = served.pid.and_then(|pid| proc::disk_read_bytes(pid).ok());
    let disk_bytes = disk_after.zip(disk_before).map(|(after, before)| after.saturating_sub(before));
    let golden_bytes = end(served, contestant)?;
    let name = contestant.name.clone();
    Ok(Run { name, record, golden_bytes, disk_bytes, server_run, client_run, elapsed })
}

fn serve(contestant: &Contestant, storm: &Storm, place: &Place) -> Result<Served> {
    let plain = |server: Server, url: Url| Served {
        urls: vec![url],
        pid: Some(server.id()),
        server: Some(server),
        log: None,
        overlays: None,
    };
    match &contestant.who {
        Who::Given { urls, pid } => {
            Ok(Served { urls: urls.clone(), pid: *pid, server: None, log: None, overlays: None })
        }
        Who::Peer { peer, raw } => {
            peer.serve(raw, place.core, &place.dir).map(|(server, url)| plain(server, url))
        }
        Who::Ceiling { memory } => {
            let program = std::env::current_exe()
                .map_err(|e| failure!("cannot find this program: {e}; start the ceiling by hand"))?;
            let mut command = Command::new(program);
            command.args(["ceiling", "--with-parent", "--seconds", "86400", "--memory", &memory.to_string()]);
            if let Some(core) = place.core {
                command.args(["--pin", &core.to_string()]);
            }
            let (server, address) = Server::start(&mut command, PATIENCE)?;
            Ok(plain(server, format!("iscsi://{address}/{TARGET}/0").parse()?))
        }
        Who::Goldrush { program, image, arguments } => {
            let (log, overlays) = (place.dir.join("goldrush.log"), place.dir.join("overlays"));
            let told = |e| failure!("cannot use {}: {e}; choose another --dir", place.dir.display());
            fs::create_dir(&overlays).map_err(told)?;
            let mut command = peers::pinned(place.core, program);
            command.args(["serve", "--log-level", "info", "--log-format", "json", "--listen", "127.0.0.1:0"]);
            command.args(["--nodes", &storm.nodes.to_string()]);
            command.arg("--golden").arg(image).arg("--overlays").arg(&overlays);
            if let Some(core) = place.core {
                command.args(["--cores", &core.to_string()]);
            }
            command.args(arguments).stderr(fs::File::create(&log).map_err(told)?);
            let (server, address) = Server::start(&mut command, PATIENCE)
                .map_err(|e| failure!("{e} (its log is {}; --dir keeps it)", log.display()))?;
            let pattern: Url = format!("iscsi://{address}/*:node-*/0").parse()?;
            let urls = crate::load::expand(&[pattern], &crate::initiator::Options::default())?;
            let (pid, server) = (Some(server.id()), Some(server));
            Ok(Served { urls, pid, server, log: Some(log), overlays: Some(overlays) })
        }
    }
}

/// Ends a server that was started for this storm; what it said it read.
fn end(served: Served, contestant: &Contestant) -> Result<Option<u64>> {
    let Some(server) = served.server else { return Ok(None) };
    if !matches!(contestant.who, Who::Goldrush { .. }) {
        // It keeps nothing, and tgt would wait for sessions to end.
        drop(server);
        return Ok(None);
    }
    let status = server.stop(PATIENCE)?;
    let golden = served.log.as_deref().map(golden_bytes).transpose()?.flatten();
    if !status.success() {
        return Err(failure!("{} ended with {status} after its storm: read its log", contestant.name));
    }
    if let Some(overlays) = served.overlays {
        fs::remove_dir_all(&overlays)
            .map_err(|e| failure!("cannot remove {}: {e}; remove it by hand", overlays.display()))?;
    }
    Ok(golden)
}

/// What a server read into its golden cache, from the log of its end: all of it at once, or core by core.
fn golden_bytes(log: &Path) -> Result<Option<u64>> {
    let text = fs::read_to_string(log).map_err(|e| failure!("cannot read {}: {e}", log.display()))?;
    let found = |name: &'static str| {
        text.lines().filter_map(move |line| {
            let entry: Value = serde_json::from_str(line).ok()?;
            entry[name].as_u64()
        })
    };
    // What was read along a boot trace was read by no core.
    Ok(found("read_bytes").next_back().or_else(|| found("filled_bytes").reduce(|a, b| a + b)))
}

/// The middle of some numbers; of none, none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len.is_multiple_of(2) => Some((values[middle - 1] + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_cores_read_is_added_up() {
        let path = std::env::temp_dir().join(format!("perf-storm-log-{}", std::process::id()));
        let line = |bytes: u64| format!("{{\"message\":\"golden cache\",\"filled_bytes\":{bytes}}}\n");
        fs::write(&path, format!("no json\n{{\"fields\":0}}\n{}{}", line(4096), line(8192))).unwrap();
        assert_eq!(golden_bytes(&path), Ok(Some(12288)));
        let all = "{\"read_bytes\":16384}\n";
        fs::write(&path, format!("{}{all}{}", line(4096), line(8192))).unwrap();
        assert_eq!(golden_bytes(&path), Ok(Some(16384)));
        fs::write(&path, "{}\n").unwrap();
        assert_eq!(golden_bytes(&path), Ok(None));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_median_of_two_lies_between_them() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
