//! The main job in small: a golden image, children, a room of simulated machines that boot at once, and checks.
//!
//! Knows the order of the steps and runs the server as a person would, by its command line. Does not know how a
//! node boots or how the outcome is shown.

mod boot;
mod content;
mod node;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::fail::{Result, failure};
use crate::initiator::{Options, discover};
use crate::keys::hex;
use crate::proc::Server;
use crate::scsi::SECTOR;
use crate::trace::Trace;

pub(crate) use boot::Stage;
use content::{Disk, Golden};
use node::Node;
pub(crate) use node::Tally;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) goldrush: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) nodes: usize,
    pub(crate) size: u64,
    /// A recorded boot, to be replayed by every node.
    pub(crate) trace: Option<Trace>,
    /// Cores for the server, in the form of its `--cores`.
    pub(crate) cores: Option<String>,
    pub(crate) lun: u16,
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) nodes: Vec<(String, Result<Tally>)>,
    /// What else must hold: the statement, and what speaks against it.
    pub(crate) checks: Vec<(String, Result<()>)>,
}

impl Outcome {
    pub(crate) fn is_good(&self) -> bool {
        let good = |tally: &Result<Tally>| tally.as_ref().is_ok_and(|tally| tally.wrong_sectors == 0);
        self.nodes.iter().all(|(_, tally)| good(tally)) && self.checks.iter().all(|(_, check)| check.is_ok())
    }
}

/// What a run tells while it runs.
pub(crate) trait Watch: Sync {
    fn step(&self, what: &str);
    fn commands(&self, total: u64);
    fn command_done(&self);
}

pub(crate) fn run(setup: &Setup, watch: &dyn Watch) -> Result<Outcome> {
    let boots = boots(setup);
    let needed = boots.iter().map(|stages| boot::sectors_needed(stages)).max().unwrap_or(0);
    let sectors = (setup.size / SECTOR).max(needed).next_multiple_of(4096);
    let filled_percent = if setup.trace.is_some() { 22 } else { 60 };
    let golden = Golden { seed: 0x676f_6c64_656e, sectors, filled_percent };
    watch.step("making the golden image");
    let (raw, image, overlays) =
        (setup.dir.join("golden.raw"), setup.dir.join("golden.vhd"), setup.dir.join("overlays"));
    golden.write_raw(&raw)?;
    fs::create_dir(&overlays)
        .map_err(|e| failure!("cannot create {}: {e}; choose another --dir", overlays.display()))?;
    command(setup, &["image", "convert", &text(&raw)?, &text(&image)?, "--type", "dynamic"])?;
    let before = sha256(&image)?;
    watch.step("starting the server");
    let (server, address) = serve(setup, &image, &overlays)?;
    let mut nodes = nodes(setup, address, golden)?;
    watch.step("booting");
    watch.commands(boots.iter().flatten().map(|stage| stage.ops.len() as u64).sum());
    let mut results =
        each(&mut nodes, |node, index| node.boot(address, &boots[index], || watch.command_done()));
    watch.step("stopping the server");
    let mut checks = vec![("the server ends by itself on SIGTERM".to_string(), stopped(server))];
    watch.step("starting it again");
    let again = serve(setup, &image, &overlays).and_then(|(server, address)| {
        let second = each(&mut nodes, |node, _| node.look_again(address));
        for (result, second) in results.iter_mut().zip(second) {
            if result.is_ok() {
                *result = second;
            }
        }
        stopped(server)
    });
    checks.push(("a second server serves the same children".to_string(), again));
    watch.step("checking the images");
    let same = sha256(&image).and_then(|after| {
        let told = || failure!("{} was {before} and is {after}: something wrote to it", image.display());
        if after == before { Ok(()) } else { Err(told()) }
    });
    checks.push(("the golden image is unchanged (SHA-256)".to_string(), same));
    for number in 1..=setup.nodes {
        let child = overlays.join(format!("node-{number:03}.vhd"));
        let sound = text(&child).and_then(|child| command(setup, &["image", "check", &child]));
        checks.push((format!("image check of node-{number:03}.vhd"), sound));
    }
    let named = nodes.into_iter().zip(results);
    let nodes = named.map(|(node, result)| (format!("node-{:03}", node.number), result.map(|()| node.tally)));
    Ok(Outcome { nodes: nodes.collect(), checks })
}

fn boots(setup: &Setup) -> Vec<Vec<Stage>> {
    match &setup.trace {
        Some(trace) => vec![boot::recorded(trace); setup.nodes],
        None => (0..setup.nodes).map(|node| boot::made_up(node, setup.size / SECTOR)).collect(),
    }
}

/// The nodes, after the portal listed a target for each.
fn nodes(setup: &Setup, address: SocketAddr, golden: Golden) -> Result<Vec<Node>> {
    let listed = discover(address, &Options::default())?;
    let one = |index: usize| {
        let ending = format!(":node-{:03}", index + 1);
        let target = listed.iter().find(|name| name.ends_with(&ending));
        let target = target
            .ok_or_else(|| failure!("{address} lists no target that ends with {ending}: look at its log"))?;
        let (target, lun, disk) = (target.clone(), setup.lun, Disk::new(golden, index));
        Ok(Node { number: index + 1, target, lun, disk, tally: Tally::default() })
    };
    (0..setup.nodes).map(one).collect()
}

/// Runs all nodes at once, each on a thread of its own.
fn each(nodes: &mut [Node], work: impl Fn(&mut Node, usize) -> Result<()> + Sync) -> Vec<Result<()>> {
    let ready = Barrier::new(nodes.len());
    std::thread::scope(|scope| {
        let (ready, work) = (&ready, &work);
        let start = |(index, node)| {
            scope.spawn(move || {
                ready.wait();
                work(node, index)
            })
        };
        let handles: Vec<_> = nodes.iter_mut().enumerate().map(start).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err(failure!("the node's thread panicked"))))
            .collect()
    })
}

fn serve(setup: &Setup, golden: &Path, overlays: &Path) -> Result<(Server, SocketAddr)> {
    let mut command = Command::new(&setup.goldrush);
    command.args(["serve", "--log-level", "warn", "--listen", "127.0.0.1:0"]);
    command.args(["--nodes", &setup.nodes.to_string()]);
    command.arg("--golden").arg(golden).arg("--overlays").arg(overlays);
    if let Some(cores) = &setup.cores {
        command.args(["--cores", cores]);
    }
    Server::start(&mut command, PATIENCE)
}

fn stopped(server: Server) -> Result<()> {
    let status = server.stop(PATIENCE)?;
    if status.success() {
        Ok(())
    } else {
        Err(failure!("the server ended with {status}: read its messages above"))
    }
}

/// Runs the server's own program for an image command; its output is shown only when it fails.
fn command(setup: &Setup, arguments: &[&str]) -> Result<()> {
    let program = setup.goldrush.display();
    let output = Command::new(&setup.goldrush).args(arguments).output();
    let output =
        output.map_err(|e| failure!("cannot run {program}: {e}; build it, or give --goldrush PATH"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(failure!("{program} {} ended with {}: {}", arguments.join(" "), output.status, said.trim()))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(ToString::to_string);
    text.ok_or_else(|| failure!("{} is not UTF-8: choose another --dir", path.display()))
}

fn sha256(path: &Path) -> Result<String> {
    struct Hashing(Sha256);
    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let told = |e| failure!("cannot read {}: {e}; look whether it is still there", path.display());
    let mut hash = Hashing(Sha256::new());
    io::copy(&mut File::open(path).map_err(told)?, &mut hash).map_err(told)?;
    Ok(hex(&hash.0.finalize()))
}
