//! `perf sessions`: how fast a server starts, and what idle sessions cost it in memory.
//!
//! Knows how to log in, wait and look. Does not know what the server keeps for a session.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::folder::Folder;
use super::load::seconds;
use super::table::{number, table};
use crate::fail::{Result, failure};
use crate::initiator::{self, Endpoint, Options, Session};
use crate::load;
use crate::proc::{self, Server};
use crate::ring;
use crate::url::Url;

const PATIENCE: Duration = Duration::from_secs(120);
/// What the project wants an idle session to take at most, and 4096 of them with 1024 children altogether.
const SESSION_BAR: f64 = 32.0 * 1024.0;
const TOTAL_BAR: f64 = 512.0 * 1024.0 * 1024.0;
/// So many nodes are to be listened for within so much time.
const START_CHILDREN: u32 = 10_000;
const START_BAR: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// Sessions to log in, dealt out over the targets in turn
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    count: u32,
    /// Children that a goldrush of its own serves
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    children: u32,
    /// Log in at these disks instead; a * in TARGET stands for all that match
    #[arg(long, value_name = "URL", requires = "pid")]
    url: Vec<Url>,
    /// Process of the server behind --url
    #[arg(long, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    /// How long the sessions are idle before the second look
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// The server's program [default: the one beside this program]
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    goldrush: Option<PathBuf>,
    /// Further argument of `goldrush serve`, such as --serve=--cores=0; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true, conflicts_with = "url")]
    serve: Vec<String>,
    /// Work in this new folder and leave it there [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &SessionsArgs) -> Result<()> {
    let idle = seconds("--seconds", args.seconds)?;
    let count = args.count as usize;
    ring::allow_files(u64::from(args.count) + 64);
    let folder = Folder::create(args.dir.as_deref(), "sessions")?;
    let (own, urls, pid) = match args.pid {
        Some(pid) => (None, load::expand(&args.url, &Options::default())?, pid),
        None => {
            let (server, urls) = serve(args, &folder)?;
            let pid = server.id();
            (Some(server), urls, pid)
        }
    };
    let before = proc::resident_bytes(pid)?;
    let style = ProgressStyle::with_template("{spinner} logging in {bar:40} {pos}/{len}  {elapsed}");
    let style = style.map_err(|e| failure!("the progress bar has no such style: {e}; report this"))?;
    let bar = ProgressBar::new(u64::from(args.count)).with_style(style);
    let log_in = |number: usize| {
        bar.inc(1);
        log_in(&urls[number % urls.len()], number)
    };
    let mut sessions = (0..count).map(log_in).collect::<Result<Vec<Session>>>()?;
    bar.finish_and_clear();
    std::thread::sleep(idle);
    let after = proc::resident_bytes(pid)?;
    for session in &mut sessions {
        // One that was lost meanwhile would make the others look cheap.
        session.ready()?;
    }
    print(count, urls.len(), before, after);
    drop(sessions);
    match own.map(|server| server.stop(PATIENCE)).transpose()? {
        Some(status) if !status.success() => {
            Err(failure!("the server ended with {status}: read its messages above"))
        }
        _ => Ok(()),
    }
}

fn serve(args: &SessionsArgs, folder: &Folder) -> Result<(Server, Vec<Url>)> {
    let program = super::demo::server(args.goldrush.as_ref())?;
    let (golden, overlays) = (folder.path.join("golden.vhd"), folder.path.join("overlays"));
    let told = |e| failure!("cannot use {}: {e}; choose another --dir", folder.path.display());
    std::fs::create_dir(&overlays).map_err(told)?;
    let created = Command::new(&program).args(["image", "create", "--size", "64M"]).arg(&golden).output();
    let created = created.map_err(|e| failure!("cannot run {}: {e}; build it", program.display()))?;
    if !created.status.success() {
        let said = String::from_utf8_lossy(&created.stderr).trim().to_string();
        return Err(failure!("{} image create ended with {}: {said}", program.display(), created.status));
    }
    let mut command = Command::new(&program);
    command.args(["serve", "--log-level", "error", "--listen", "127.0.0.1:0"]);
    command.args(["--nodes", &args.children.to_string()]);
    command.arg("--golden").arg(&golden).arg("--overlays").arg(&overlays).args(&args.serve);
    // The first start makes the children, the second one finds them.
    let (server, _) = Server::start(&mut command, PATIENCE)?;
    server.stop(PATIENCE)?;
    let started = Instant::now();
    let (server, address) = Server::start(&mut command, PATIENCE)?;
    let took = started.elapsed();
    let verdict = match (args.children >= START_CHILDREN, took <= START_BAR) {
        (false, _) => String::new(),
        (true, true) => format!("; at most {} s: reached", START_BAR.as_secs()),
        (true, false) => format!("; at most {} s: NOT REACHED", START_BAR.as_secs()),
    };
    println!("- {} children: listening after {} s{verdict}.", args.children, number(took.as_secs_f64()));
    let pattern: Url = format!("iscsi://{address}/*:node-*/0").parse()?;
    Ok((server, load::expand(&[pattern], &Options::default())?))
}

fn log_in(url: &Url, number: usize) -> Result<Session> {
    let endpoint = Endpoint { address: url.address()?, target: url.target.clone(), lun: url.lun };
    let digits = (number as u32).to_be_bytes();
    let options = Options {
        initiator_name: format!("iqn.2026-11.io.goldrush:idle-{number}"),
        isid: [0x80, 0, digits[0], digits[1], digits[2], digits[3]],
        chap: url.chap.clone(),
        timeout: PATIENCE,
        ..Options::default()
    };
    let mut session = initiator::open(&endpoint, &options)?;
    session.ready()?;
    Ok(session)
}

fn print(sessions: usize, targets: usize, before: u64, after: u64) {
    let mib = |bytes: u64| number(bytes as f64 / f64::from(1 << 20));
    let each = per_session(sessions, before, after);
    let columns = ["sessions", "targets", "MiB before", "MiB with them", "KiB a session"];
    let mut table = table(&columns);
    let row = [sessions.to_string(), targets.to_string(), mib(before), mib(after), number(each / 1024.0)];
    table.add_row(row);
    println!("{table}");
    let said = |holds: bool| if holds { "reached" } else { "NOT REACHED" };
    println!(
        "- An idle session takes {} KiB; at most 32: {}.",
        number(each / 1024.0),
        said(each <= SESSION_BAR)
    );
    if sessions >= 4096 && targets >= 1024 {
        let holds = after as f64 <= TOTAL_BAR;
        println!(
            "- The server takes {} MiB altogether (its golden cache is empty); at most 512: {}.",
            mib(after),
            said(holds)
        );
    }
}

fn per_session(sessions: usize, before: u64, after: u64) -> f64 {
    after.saturating_sub(before) as f64 / sessions.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_costs_what_the_server_grew_by() {
        assert_eq!(per_session(4, 1000, 5000), 1000.0);
        // Memory that was given back meanwhile is no session's gain.
        assert_eq!(per_session(4, 5000, 1000), 0.0);
    }
}
