//! The machine around the rings: clock, cores, limits, listeners, signals.
//!
//! Knows system calls. Does not know why they are made.

mod signals;

use core::net::SocketAddr;
use std::io;
use std::net::TcpListener;
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CpuSet};

pub use signals::{Signal, Signals};

use crate::clock::Instant;

/// Connections that may wait to be accepted: a room full of machines that power on at once.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Nanoseconds since the first call in this process; all threads share the start, so times travel between shards.
pub fn now() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    Instant(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// The cores this thread may run on, in order.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// Binds the calling thread to one core.
pub fn pin_thread(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok(())
}

/// Raises the number of open files to the most this process may have, and says what it is now.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit { current: limit.maximum, maximum: limit.maximum },
        )?;
    }
    Ok(rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// RLIMIT_MEMLOCK in bytes, which bounds registered buffers; `None` when it is unlimited or does not apply
/// (CAP_IPC_LOCK).
pub fn memlock_limit() -> Option<u64> {
    let exempt = rustix::thread::capabilities(None)
        .is_ok_and(|capabilities| capabilities.effective.contains(CapabilitySet::IPC_LOCK));
    if exempt {
        return None;
    }
    rustix::process::getrlimit(Resource::Memlock).current
}

/// A listener that survives a restart (SO_REUSEADDR). An IPv6 address means IPv6 only, so `0.0.0.0` and `::` can
/// be bound side by side.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, LISTEN_BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Locks a file against other processes without waiting: `Ok(false)` when another holds it. The lock goes with the
/// file.
pub fn try_lock(file: &std::fs::File, exclusive: bool) -> io::Result<bool> {
    let tried = if exclusive { file.try_lock() } else { file.try_lock_shared() };
    match tried {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_an_allowed_core_only() {
        std::thread::spawn(|| {
            let cores = allowed_cores().unwrap();
            let last = *cores.last().unwrap();
            pin_thread(last).unwrap();
            assert_eq!(allowed_cores().unwrap(), [last]);
            assert!(pin_thread(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn both_families_listen_on_one_port() {
        let v6 = match listen("[::]:0".parse().unwrap()) {
            Ok(listener) => listener,
            Err(error) => return println!("SKIPPED: no IPv6 here: {error}"),
        };
        let port = v6.local_addr().unwrap().port();
        // Another process may hold the port in the other family; only our own IPv6 listener must not.
        if let Err(error) = listen(SocketAddr::from(([127, 0, 0, 1], port))) {
            panic!("port {port} is taken: {error}");
        }
    }

    #[test]
    fn a_lock_keeps_others_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = file.reopen().unwrap();
        let second = file.reopen().unwrap();
        assert!(try_lock(&first, false).unwrap());
        assert!(try_lock(&second, false).unwrap());
        assert!(!try_lock(&second, true).unwrap());
        drop(first);
        assert!(try_lock(&second, true).unwrap());
    }

    #[test]
    fn the_open_file_limit_is_at_its_maximum_after_raising() {
        let now = raise_open_files().unwrap();
        assert!(now >= 64);
        assert_eq!(raise_open_files().unwrap(), now);
    }

    #[test]
    fn time_does_not_go_back() {
        let first = now();
        assert!(now() >= first);
    }
}
