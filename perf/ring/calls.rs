//! Counting the system calls of another process by a tracepoint of the kernel.
//!
//! Knows perf_event_open. Does not know what the calls are for. Counting stops nothing and samples nothing: a call costs
//! the process some tens of nanoseconds more.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;

use crate::fail::{Result, failure};

const TRACEPOINT: u64 = 2;
/// The first published size of the attributes, enough for what is set here.
const ATTRIBUTES_BYTES: u64 = 64;
/// Threads that are started later count, too.
const INHERIT: u64 = 1 << 1;
const CLOEXEC: libc::c_ulong = 1 << 3;

/// Counts until it is dropped.
#[derive(Debug)]
pub(crate) struct SystemCalls {
    counters: Vec<File>,
}

impl SystemCalls {
    /// Begins to count the calls of all threads of a process.
    pub(crate) fn of(pid: u32) -> Result<SystemCalls> {
        let id = tracepoint()?;
        let folder = format!("/proc/{pid}/task");
        let threads = fs::read_dir(&folder)
            .map_err(|e| failure!("cannot read {folder}: {e}; is the process running?"))?;
        let threads = threads.flatten().filter_map(|thread| thread.file_name().to_str()?.parse().ok());
        let counters = threads.map(|thread| open(id, thread)).collect::<Result<Vec<File>>>()?;
        Ok(SystemCalls { counters })
    }

    /// Calls so far.
    pub(crate) fn count(&mut self) -> Result<u64> {
        let mut sum = 0;
        for counter in &mut self.counters {
            let mut bytes = [0; 8];
            counter
                .read_exact(&mut bytes)
                .map_err(|e| failure!("cannot read a counter of system calls: {e}; try again"))?;
            sum += u64::from_ne_bytes(bytes);
        }
        Ok(sum)
    }
}

/// The kernel's number for the entry of any system call.
fn tracepoint() -> Result<u64> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let read = |place: &&str| fs::read_to_string(format!("{place}/events/raw_syscalls/sys_enter/id")).ok();
    let text = places.iter().find_map(read);
    text.and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
        failure!(
            "there is no tracepoint raw_syscalls:sys_enter to be read: run as root, with tracefs mounted"
        )
    })
}

fn open(id: u64, thread: libc::pid_t) -> Result<File> {
    // type and size, config, period, sample type, read format, flags, and two words that stay zero.
    let attributes: [u64; 8] = [TRACEPOINT | ATTRIBUTES_BYTES << 32, id, 0, 0, 0, INHERIT, 0, 0];
    let (any_cpu, no_group): (libc::c_int, libc::c_int) = (-1, -1);
    // SAFETY: the attributes are live and of the size that they state; the call only reads them.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), thread, any_cpu, no_group, CLOEXEC)
    };
    if fd < 0 {
        let e = std::io::Error::last_os_error();
        return Err(failure!(
            "cannot count the system calls of thread {thread}: {e}; run as root, or set kernel.perf_event_paranoid to -1"
        ));
    }
    // SAFETY: the kernel just opened this descriptor for us and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd as libc::c_int) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_this_process_are_counted() {
        let mut calls = match SystemCalls::of(std::process::id()) {
            Ok(calls) => calls,
            Err(failure) => {
                eprintln!("SKIPPED: {failure}");
                return;
            }
        };
        let before = calls.count().unwrap();
        for _ in 0..100 {
            let _ = fs::metadata("/");
        }
        assert!(calls.count().unwrap() - before >= 100);
    }

    #[test]
    fn a_process_that_is_not_there_has_none() {
        assert!(SystemCalls::of(u32::MAX).is_err());
    }
}
