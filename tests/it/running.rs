//! A server that runs as a process, for tests that ask it things.
//!
//! Knows how it is started and found, and that it is killed with the test. Does not know what is asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::cli::{Desk, Said, said};

pub struct Running {
    child: Child,
    pub port: u16,
    /// What it has said up to its first address.
    pub lines: Vec<String>,
}

/// Starts `goldrush` with the words of `line` and waits until it listens. `None`, loudly, where the kernel gives no ring.
pub fn start(desk: &Desk, line: &str) -> Option<Running> {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let mut command = desk.command(&arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines: Vec<String> = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let port = line.strip_prefix("listening on ").and_then(|rest| rest.rsplit(':').next()?.parse().ok());
        lines.push(line);
        if let Some(port) = port {
            // Its log is read to the end, or it would wait for a reader one day.
            let mut log = child.stderr.take().unwrap();
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return Some(Running { child, port, lines });
        }
    }
    let said = said(child.wait_with_output().unwrap());
    assert!(said.err.contains("io_uring"), "{line}: {lines:?} {said:?}");
    eprintln!("SKIPPED: the kernel gives no ring: {}", said.err);
    None
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

    /// As `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ends.
    pub fn stop(mut self) -> Option<i32> {
        let sent = std::process::Command::new("kill").arg(self.pid().to_string()).status();
        assert!(sent.unwrap().success());
        self.child.wait().unwrap().code()
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
