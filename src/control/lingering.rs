//! What a process that has ended still holds: how long it is waited for.
//!
//! Knows how to tell a listening socket of a dead process from a living one's, and how long that is waited
//! for. Does not open images (`file`).
//!
//! A ring outlives its process: the kernel takes it apart by itself, later, and only then gives up the files that were
//! registered with it, their locks, and the listener that an accept was pending on. Mostly that is milliseconds; on a
//! busy machine, or behind the deletion of a large file, it has been seen to take minutes. What only the process's own
//! table of descriptors held (journals, the state folder's lock, the control socket's) is free before its parent
//! hears of its end.

use std::fmt::Display;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::file::FileIdentity;
use super::lock_holder::{LockHolder, holder_of};
use crate::uring::host;

/// Who holds what we want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A process that lives, and is not about to end.
    Living,
    /// One that has ended, or is being killed.
    Ended,
    /// The kernel does not say: a process of another namespace, or a file system whose numbers it hides.
    Unknown,
}

impl Holder {
    /// Of a file's lock, as the kernel tells.
    pub(super) fn of(holder: Option<&LockHolder>) -> Self {
        match holder {
            Some(holder) if holder.has_ended() => Self::Ended,
            Some(_) => Self::Living,
            None => Self::Unknown,
        }
    }

    fn in_words(self) -> Option<&'static str> {
        match self {
            Self::Living => None,
            Self::Ended => Some("a process that has ended"),
            Self::Unknown => Some("a process that the kernel does not name"),
        }
    }

    /// How long all things together are waited for. A living process may be at the end of something short.
    fn patience(self) -> Duration {
        match self {
            Self::Living => Duration::from_millis(500),
            Self::Unknown => Duration::from_secs(10),
            Self::Ended => Duration::from_secs(120),
        }
    }
}

/// How often it is looked.
const RETRY: Duration = Duration::from_millis(20);
/// Nobody is told of a wait that is shorter.
const SILENT: Duration = Duration::from_millis(500);

/// Waits for as long as `take` finds something held by a process that is about to end, as after `kill -9`.
pub(super) fn outlast<T>(
    file: &fs::File,
    what: &dyn Display,
    mut take: impl FnMut() -> Option<T>,
) -> Option<T> {
    loop {
        if let Some(taken) = take() {
            return Some(taken);
        }
        let holder = identity(file).and_then(holder_of);
        if Holder::of(holder.as_ref()) != Holder::Ended || !wait_for(Holder::Ended, what) {
            // It may have become free meanwhile.
            return take();
        }
    }
}

fn identity(file: &fs::File) -> Option<FileIdentity> {
    let metadata = file.metadata().ok()?;
    Some(FileIdentity { device: metadata.dev(), inode: metadata.ino() })
}

/// Waits a moment, from the first thing that was found held, so that many cost no more than one. False: it has been
/// waited for long enough.
pub(super) fn wait_for(holder: Holder, what: &dyn Display) -> bool {
    static SINCE: OnceLock<Instant> = OnceLock::new();
    static TOLD: AtomicBool = AtomicBool::new(false);
    let waited = SINCE.get_or_init(Instant::now).elapsed();
    if waited >= holder.patience() {
        return false;
    }
    if let Some(who) = holder.in_words()
        && waited >= SILENT
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        tracing::info!(
            "waiting for {what}, which {who} still holds, for {} s at most",
            holder.patience().as_secs()
        );
    }
    std::thread::sleep(RETRY);
    true
}

/// Listens at `address`, as soon as a killed process lets go of it.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    loop {
        let error = match host::listen(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
            result => return result,
        };
        let holder = holder_of_port(address.port());
        if !wait_for(holder, &format_args!("port {}", address.port())) {
            return Err(error);
        }
    }
}

/// Who listens at a TCP port of this machine.
fn holder_of_port(port: u16) -> Holder {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let sockets: Vec<u64> = tables
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    // Nobody: it was given up between the two looks, or a socket is bound that does not listen.
    if sockets.is_empty() { Holder::Living } else { holder_of_sockets(&sockets) }
}

/// The inodes of the sockets that listen at a port. A line is
/// `0: 0100007F:8707 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 ...`: place, peer, state, queues,
/// timer, retransmissions, user, timeout, inode.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, at) = words.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(at, 16).ok()? == port;
        (here && words.get(3) == Some(&"0A")).then(|| words.get(9)?.parse().ok())?
    };
    table.lines().filter_map(inode).collect()
}

/// A socket without a descriptor anywhere is one that the kernel has not given up yet.
fn holder_of_sockets(sockets: &[u64]) -> Holder {
    let names: Vec<String> = sockets.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let is_process =
        |entry: &fs::DirEntry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
    let mut seen_all = true;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().filter(is_process) {
        let descriptors = match fs::read_dir(process.path().join("fd")) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                // One that has gone meanwhile holds nothing.
                seen_all &= error.kind() != io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        if links.into_iter().any(|link| names.iter().any(|name| link.as_os_str() == name.as_str())) {
            return Holder::Living;
        }
    }
    if seen_all { Holder::Ended } else { Holder::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_at_the_port_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:8707 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n\
             1: 0100007F:8707 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n\
             2: 0100007F:8708 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0\n\
             3: 00000000000000000000000000000000:8707 0:0 0A 0:0 0:0 0 0 0 4714 1 0\n";
        assert_eq!(listeners(table, 0x8707), [4711, 4714]);
        assert_eq!(listeners(table, 1), [0_u64; 0]);
    }

    #[test]
    fn a_listener_of_a_living_process_is_not_waited_for() {
        let taken = host::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(holder_of_port(address.port()), Holder::Living);
        assert_eq!(listen(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        listen(address).unwrap();
    }

    /// A socket on its way through another one is in no table of descriptors, as one that only a ring holds.
    #[test]
    fn a_listener_that_no_process_has_is_waited_for() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::os::fd::AsFd;
        let taken = host::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let descriptors = [taken.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&here, &[io::IoSlice::new(b"x")], &mut message, SendFlags::empty()).unwrap();
        drop(taken);
        assert_eq!(holder_of_port(address.port()), Holder::Ended);
        let until = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            drop((here, there));
        });
        listen(address).unwrap();
        until.join().unwrap();
    }
}
