//! A server that runs as a process, for every test that needs one.
//!
//! Knows how it is started and found, and that it is killed with the test. Does not know what is asked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{Desk, Said};
use crate::raw_initiator::RawInitiator;

pub struct Running {
    child: Child,
    /// Of the first address, and of all of them.
    pub port: u16,
    pub ports: Vec<u16>,
    /// What it has said up to its last address.
    pub lines: Vec<String>,
    log: File,
}

/// Starts `goldrush` with the words of `line` and waits until it listens. `None`, loudly, where the kernel gives no ring.
pub fn start(desk: &Desk, line: &str) -> Option<Running> {
    start_at(desk, line, 1)
}

/// The same, of a server with so many addresses.
pub fn start_at(desk: &Desk, line: &str, addresses: usize) -> Option<Running> {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let mut command = desk.command(&arguments);
    let log = tempfile::tempfile().unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(log.try_clone().unwrap()).spawn().unwrap();
    let (mut lines, mut ports) = (Vec::new(), Vec::new());
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let port: Option<u16> =
            line.strip_prefix("listening on ").and_then(|rest| rest.rsplit(':').next()?.parse().ok());
        lines.push(line);
        ports.extend(port);
        if let Some(port) = ports.first().copied().filter(|_| ports.len() == addresses) {
            return Some(Running { child, port, ports, lines, log });
        }
    }
    let (status, told) = (child.wait().unwrap(), whole(&log));
    assert!(told.contains("io_uring"), "{line}: it does not start, {status}: {lines:?} {told}");
    eprintln!("SKIPPED: the kernel gives no ring: {told}");
    None
}

/// Serves what `c.toml` says, on one core.
pub fn start_config(desk: &Desk, more: &str) -> Option<Running> {
    start(desk, &format!("{} --cores 0 {more}", config_line()))
}

/// The command line of a small server that does what `c.toml` says.
pub fn config_line() -> &'static str {
    "serve --config c.toml --golden-cache 1M --register-buffers false"
}

fn whole(log: &File) -> String {
    let mut bytes = vec![0; log.metadata().unwrap().len() as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A golden image and so many nodes, served on a port of its own.
pub fn start_nodes(desk: &Desk, nodes: u32, more: &str) -> Option<Running> {
    if !desk.path("golden.vhd").exists() {
        desk.goldrush_ok("image create golden.vhd --size 8M");
    }
    start(desk, &serve_line("nodes", nodes, more))
}

/// The command line of [`start_nodes`], with the children in another folder.
pub fn serve_line(overlays: &str, nodes: u32, more: &str) -> String {
    format!(
        "serve --golden golden.vhd --overlays {overlays} --nodes {nodes} --listen 127.0.0.1:0 --golden-cache 1M \
         --register-buffers false {more}"
    )
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        whole(&self.log)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// A session with one of its targets.
    #[track_caller]
    pub fn log_in(&self, target: &str, isid: u32) -> RawInitiator {
        let mut initiator = RawInitiator::connect(self.port);
        assert_eq!(initiator.login(target, isid).unwrap(), (0, 0));
        initiator
    }

    /// As `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it after `delay`, whatever it does then: nobody waits for it to be ready for that.
    pub fn kill_after(&self, delay: Duration) -> JoinHandle<()> {
        let pid = Pid::from_child(&self.child);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            kill_process(pid, Signal::KILL).unwrap();
        })
    }

    /// Ends it with `signal`: its code, and its log.
    pub fn stop_by(mut self, signal: Signal) -> Said {
        self.signal(signal);
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        Said { code, out: String::new(), err: self.log() }
    }

    /// SIGTERM, which ends it in good order; its log.
    #[track_caller]
    pub fn stop(self) -> Said {
        let said = self.stop_by(Signal::TERM);
        assert_eq!(said.code, 0, "{said:?}");
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says `bytes` to a control socket and returns all it answers.
pub fn say(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // What is refused early is not read to its end.
    let _ = stream.write_all(bytes);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// The usual control socket of a desk's server.
pub fn socket(desk: &Desk) -> PathBuf {
    desk.path("runtime/control.sock")
}

/// The answer of `status --json`.
pub fn status(desk: &Desk, more: &str) -> serde_json::Value {
    let out = desk.goldrush_ok(&format!("status --json {more}"));
    serde_json::from_str(&out).unwrap()
}

/// A figure of all shards together; `path` leads to it in each.
pub fn sum(status: &serde_json::Value, path: &str) -> u64 {
    let shards = status["shards"].as_array().unwrap();
    let pointer = format!("/{path}");
    shards.iter().map(|shard| shard.pointer(&pointer).and_then(serde_json::Value::as_u64).unwrap()).sum()
}

/// What a command said that failed as it should.
pub fn refused(desk: &Desk, line: &str, code: i32, why: &str) -> Said {
    let said = desk.goldrush(line);
    assert!(said.code == code && said.err.contains(why), "{line}: expected {code} and {why:?}: {said:?}");
    said
}
