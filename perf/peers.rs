//! Other iSCSI targets, started for a comparison and ended with it.
//!
//! Knows how tgt and istgt are told to serve one raw file. Does not know what is measured.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::fail::{Result, failure};
use crate::proc::Server;
use crate::url::Url;

const PATIENCE: Duration = Duration::from_secs(20);
const TARGET: &str = "iqn.2026-11.io.goldrush:peer";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// The Linux target framework of user space, `tgtd`
    Tgt,
    /// FreeBSD's former target, `istgt`
    Istgt,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Tgt => "tgt",
            Peer::Istgt => "istgt",
        }
    }

    /// Starts the target on one core with one unit over `raw`; its files go into `dir`.
    pub(crate) fn serve(self, raw: &Path, core: Option<usize>, dir: &Path) -> Result<(Server, Url)> {
        match self {
            Peer::Tgt => tgt(raw, core, dir),
            Peer::Istgt => istgt(raw, core, dir),
        }
    }

    /// What the target says it is.
    pub(crate) fn version(self) -> String {
        let program = if self == Peer::Tgt { "tgtd" } else { "istgt" };
        let flag = if self == Peer::Tgt { "--version" } else { "-V" };
        let output = Command::new(program).arg(flag).output();
        let text = output.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned());
        let first = text.ok().and_then(|text| text.lines().next().map(|line| line.trim().to_string()));
        format!(
            "{} {}",
            self.name(),
            first.filter(|line| !line.is_empty()).unwrap_or("(unknown version)".to_string())
        )
    }
}

/// A command on one core.
pub(crate) fn pinned(core: Option<usize>, program: impl AsRef<OsStr>) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
    }
}

/// A port that nobody has now. Another program may take it before the target does: then the target says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|e| failure!("there is no free port: {e}; try again"))
}

fn output(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    File::create(&path).map_err(|e| failure!("cannot write {}: {e}; choose another --dir", path.display()))
}

fn start(mut command: Command, name: &str, address: SocketAddr, dir: &Path) -> Result<Server> {
    let log = output(dir, &format!("{name}.log"))?;
    let errors = log.try_clone().map_err(|e| failure!("cannot write the log of {name}: {e}; try again"))?;
    command.stdout(log).stderr(errors);
    Server::start_silent(&mut command, address, PATIENCE)
        .map_err(|e| failure!("{e} (its messages are in {})", dir.join(format!("{name}.log")).display()))
}

fn tgt(raw: &Path, core: Option<usize>, dir: &Path) -> Result<(Server, Url)> {
    let port = free_port()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // tgtd names its control socket by a number below 32768; this one is as unlikely to be in use as any.
    let control = (port & 0x7fff).to_string();
    let mut command = pinned(core, "tgtd");
    command.args(["-f", "-C", &control, "--iscsi", &format!("portal=127.0.0.1:{port}")]);
    let server = start(command, "tgtd", address, dir)?;
    let admin = |arguments: &[&str]| tgtadm(&control, arguments);
    let until = Instant::now() + PATIENCE;
    while let Err(failure) = admin(&["--mode", "sys", "--op", "show"]) {
        if Instant::now() > until {
            return Err(failure);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let raw = raw.to_str().ok_or_else(|| failure!("{} is not UTF-8: choose another --dir", raw.display()))?;
    admin(&["--mode", "target", "--op", "new", "--tid", "1", "-T", TARGET])?;
    admin(&["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", raw])?;
    admin(&["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"])?;
    Ok((server, format!("iscsi://{address}/{TARGET}/1").parse()?))
}

fn tgtadm(control: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new("tgtadm").args(["-C", control, "--lld", "iscsi"]).args(arguments).output();
    let output = output.map_err(|e| failure!("cannot run tgtadm: {e}; install the package tgt"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(failure!("tgtadm {} ended with {}: {said}", arguments.join(" "), output.status))
}

fn istgt(raw: &Path, core: Option<usize>, dir: &Path) -> Result<(Server, Url)> {
    let port = free_port()?;
    let control = free_port()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let folder = absolute(dir)?;
    let config = folder.join("istgt.conf");
    let text = istgt_config(&folder, &absolute(raw)?, port, control);
    fs::write(&config, text)
        .map_err(|e| failure!("cannot write {}: {e}; choose another --dir", config.display()))?;
    for (name, text) in [("istgt.auth", "[AuthGroup1]\n"), ("istgtcontrol.conf", "")] {
        fs::write(folder.join(name), text)
            .map_err(|e| failure!("cannot write {name}: {e}; choose another --dir"))?;
    }
    let mut command = pinned(core, "istgt");
    command.arg("-D").arg("-c").arg(&config);
    let server = start(command, "istgt", address, dir)?;
    Ok((server, format!("iscsi://{address}/{TARGET}/0").parse()?))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|e| failure!("cannot find {}: {e}; choose another --dir", path.display()))
}

fn istgt_config(folder: &Path, raw: &Path, port: u16, control: u16) -> String {
    let (folder, raw) = (folder.display(), raw.display());
    let (node, name) = TARGET.split_once(':').unwrap_or((TARGET, "peer"));
    format!(
        "[Global]\n  NodeBase \"{node}\"\n  PidFile {folder}/istgt.pid\n  AuthFile {folder}/istgt.auth\n  \
         MediaDirectory {folder}\n  LogFacility \"local7\"\n  Timeout 30\n  NopInInterval 20\n  DiscoveryAuthMethod None\n  \
         MaxSessions 1024\n  MaxConnections 4\n  MaxR2T 32\n  MaxOutstandingR2T 16\n  DefaultTime2Wait 2\n  DefaultTime2Retain 60\n  \
         FirstBurstLength 262144\n  MaxBurstLength 1048576\n  MaxRecvDataSegmentLength 262144\n  InitialR2T Yes\n  \
         ImmediateData Yes\n  DataPDUInOrder Yes\n  DataSequenceInOrder Yes\n  ErrorRecoveryLevel 0\n\
         [UnitControl]\n  AuthMethod None\n  Portal UC1 127.0.0.1:{control}\n  Netmask 127.0.0.1\n\
         [PortalGroup1]\n  Portal DA1 127.0.0.1:{port}\n\
         [InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask ALL\n\
         [LogicalUnit1]\n  TargetName {name}\n  Mapping PortalGroup1 InitiatorGroup1\n  AuthMethod None\n  UnitType Disk\n  \
         QueueDepth 64\n  LUN0 Storage {raw} Auto\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_the_file_and_the_ports() {
        let text = istgt_config(Path::new("/a"), Path::new("/b/disk.raw"), 3260, 3261);
        for line in ["  LUN0 Storage /b/disk.raw Auto", "  Portal DA1 127.0.0.1:3260", "  TargetName peer"] {
            assert!(text.lines().any(|other| other == line), "{line}");
        }
    }

    #[test]
    fn a_command_is_pinned_by_another_program() {
        assert_eq!(pinned(Some(1), "tgtd").get_program(), "taskset");
        assert_eq!(pinned(None, "tgtd").get_program(), "tgtd");
    }
}
