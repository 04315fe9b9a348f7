//! Processes: run time of others, a description of this machine, and children that end with us.
//!
//! Knows /proc and child processes. Does not know what they serve.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fail::{Result, failure};
use crate::ring;

/// Nanoseconds that all threads of a process that still live have run.
pub(crate) fn run_time(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let threads =
        fs::read_dir(&folder).map_err(|e| failure!("cannot read {folder}: {e}; is the process running?"))?;
    let mut total = 0;
    for thread in threads.flatten() {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) {
            total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(total)
}

/// Bytes that a process has had read from disks: what the page cache held does not count.
pub(crate) fn disk_read_bytes(pid: u32) -> Result<u64> {
    counted(pid, "io", "read_bytes:")
}

/// Bytes of real memory that a process occupies.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    counted(pid, "status", "VmRSS:").map(|kib| kib << 10)
}

/// The first number behind `key` in a file of /proc/PID.
fn counted(pid: u32, file: &str, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path)
        .map_err(|e| failure!("cannot read {path}: {e}; is the process running, and yours?"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse().ok());
    number.ok_or_else(|| failure!("{path} does not tell {key} a newer kernel is needed"))
}

/// What a reader must know of the machine to judge numbers made on it. No name of it.
pub(crate) fn machine() -> Value {
    let first = |path: &str, key: &str| -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Not `available_parallelism`, which counts the cores that this process is bound to.
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "processor": first("/proc/cpuinfo", "model name"),
        "virtual": first("/proc/cpuinfo", "flags").is_some_and(|flags| flags.contains("hypervisor")),
        "cores": cores,
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": kernel.trim(),
        "load_average_at_start": load.split(' ').next(),
        "network": "loopback",
    })
}

/// Does `work` while strace counts the system calls of a process; `None` where strace cannot.
pub(crate) fn under_strace<T>(pid: u32, work: impl FnOnce() -> T) -> Result<Option<(T, u64)>> {
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-p", &pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let Ok(mut child) = command.stderr(Stdio::piped()).spawn() else { return Ok(None) };
    // It says nothing until the end: a moment to attach, which it either can or not.
    std::thread::sleep(Duration::from_millis(500));
    if !matches!(child.try_wait(), Ok(None)) {
        return Ok(None);
    }
    let result = work();
    // It detaches from the process and prints its table.
    ring::interrupt(&child);
    let output = child.wait_with_output();
    let output = output.map_err(|e| failure!("cannot wait for strace: {e}; try again"))?;
    Ok(strace_total(&String::from_utf8_lossy(&output.stderr)).map(|calls| (result, calls)))
}

/// The number of calls in the last line of strace's table: `% time, seconds, usecs/call, calls, errors, total`.
fn strace_total(table: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.trim_end().ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// A server that this process started; it is ended when this value is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    name: String,
}

impl Server {
    /// Starts a command and waits for its line `listening on ADDR`.
    pub(crate) fn start(command: &mut Command, patience: Duration) -> Result<(Server, SocketAddr)> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.map_err(|e| failure!("cannot start {name}: {e}; give its path"))?;
        let mut server = Server { child, name };
        let output = server.child.stdout.take();
        let output =
            output.ok_or_else(|| failure!("{} has no standard output: start it again", server.name))?;
        let (tell, told) = mpsc::channel();
        // Reads on to the end, so that the server never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                if let Some(address) = line.split("listening on ").nth(1).and_then(address) {
                    // The receiver stops listening after the first address.
                    let _ = tell.send(address);
                }
            }
        });
        match told.recv_timeout(patience) {
            Ok(address) => Ok((server, address)),
            // A closed output means that it ended or is about to: its status may take a moment.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = server.wait_until(Instant::now() + patience)?;
                let status = status.map_or("its output closed".to_string(), |status| status.to_string());
                Err(failure!(
                    "{} ended with {status} before it listened: read its messages above",
                    server.name
                ))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Err(failure!(
                "{} did not say \"listening on ADDR\" within {} s: look at its output",
                server.name,
                patience.as_secs()
            )),
        }
    }

    /// Starts a command that says nothing, and waits until somebody listens at `address`.
    pub(crate) fn start_silent(
        command: &mut Command,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Server> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.map_err(|e| failure!("cannot start {name}: {e}; install it"))?;
        let mut server = Server { child, name };
        let until = Instant::now() + patience;
        while TcpStream::connect_timeout(&address, patience).is_err() {
            if let Some(status) = server.wait_until(Instant::now())? {
                return Err(failure!("{} ended with {status} before it listened", server.name));
            }
            if Instant::now() > until {
                return Err(failure!("{} does not listen at {address}: look at its output", server.name));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks the server to end, and waits for it.
    pub(crate) fn stop(mut self, patience: Duration) -> Result<ExitStatus> {
        ring::terminate(&self.child);
        let status = self.wait_until(Instant::now() + patience)?;
        status.ok_or_else(|| {
            failure!("{} did not end within {} s of SIGTERM: look at its log", self.name, patience.as_secs())
        })
    }

    /// The status of the server once it ended; `None` when it has not by then.
    fn wait_until(&mut self, until: Instant) -> Result<Option<ExitStatus>> {
        loop {
            let status = self.child.try_wait();
            match status.map_err(|e| failure!("cannot wait for {}: {e}; try again", self.name))? {
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                status => return Ok(status),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Both fail only if it just ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The address at the start of a text that may go on.
fn address(text: &str) -> Option<SocketAddr> {
    text.split_whitespace().next()?.trim_end_matches([',', ';', '.']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_table_is_found() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
             99.00    0.000010           1         7           read\n\
            100.00    0.000010           1       123         2 total\n";
        assert_eq!(strace_total(table), Some(123));
        assert_eq!(strace_total("strace: attach: Operation not permitted"), None);
    }

    #[test]
    fn an_address_may_be_followed_by_more() {
        assert_eq!(address("127.0.0.1:3260, 8 targets"), "127.0.0.1:3260".parse().ok());
        assert_eq!(address("[::1]:1\n"), "[::1]:1".parse().ok());
        assert_eq!(address("somewhere"), None);
    }

    #[test]
    fn this_process_has_memory_and_has_read() {
        let me = std::process::id();
        assert!(resident_bytes(me).unwrap() > 1 << 20);
        assert!(disk_read_bytes(me).is_ok());
        assert!(disk_read_bytes(u32::MAX).is_err());
        assert!(counted(me, "status", "NoSuchKey:").is_err());
    }

    #[test]
    fn this_process_has_run_for_a_while() {
        assert!(run_time(std::process::id()).unwrap() > 0);
        assert!(run_time(u32::MAX).is_err());
    }

    #[test]
    fn a_command_that_never_listens_is_told_apart() {
        let outcome = Server::start(&mut Command::new("true"), Duration::from_secs(5));
        assert!(outcome.unwrap_err().to_string().contains("before it listened"));
    }
}
