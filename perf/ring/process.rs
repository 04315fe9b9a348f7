//! Affinity of this thread, signals to processes that this tool started, and what std does not offer of sockets.
//!
//! Knows a few calls. Does not know whom they are for.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::time::Duration;

use crate::fail::{Result, failure};

/// A socket address in the kernel's form.
#[derive(Debug)]
pub(super) enum Peer {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Peer {
    fn of(address: SocketAddr) -> Peer {
        match address {
            SocketAddr::V4(v4) => Peer::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Peer::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    pub(super) fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Peer::V4(v4) => ((&raw const *v4).cast(), size_of_val(v4) as libc::socklen_t),
            Peer::V6(v6) => ((&raw const *v6).cast(), size_of_val(v6) as libc::socklen_t),
        }
    }
}

/// A TCP socket that is not connected yet, and the address for its connection.
pub(super) fn unconnected(address: SocketAddr) -> Result<(TcpStream, Box<Peer>)> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        let e = std::io::Error::last_os_error();
        return Err(failure!("cannot make a socket: {e}; raise the limit of open files (ulimit -n)"));
    }
    // SAFETY: the kernel just opened this descriptor for us and nobody else knows it.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    stream.set_nodelay(true).map_err(|e| failure!("cannot send at once on a socket: {e}; try again"))?;
    Ok((stream, Box::new(Peer::of(address))))
}

/// Lets the close of this socket send a reset. A refusal leaves an ordinary close.
pub(super) fn reset_at_close(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// Raises the limit of open files to `count`, or as far as this process may.
pub(crate) fn allow_files(count: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        limit.current = Some(limit.maximum.map_or(count, |maximum| maximum.min(count)));
        // Where it fails, opening a file too many will tell.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Binds the calling thread, and those it starts later, to one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let bits = libc::c_ulong::BITS as usize;
    let mut mask = [0 as libc::c_ulong; 16];
    let told = || failure!("cannot run on core {core}: choose one that `nproc --all` counts");
    *mask.get_mut(core / bits).ok_or_else(told)? |= 1 << (core % bits);
    // SAFETY: the mask is a live array of the size given; the call only reads it.
    let rc = unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) };
    if rc == 0 { Ok(()) } else { Err(told()) }
}

/// Asks a child to end itself.
pub(crate) fn terminate(child: &std::process::Child) {
    signal(child, libc::SIGTERM);
}

/// Tells a child what Ctrl-C tells a program.
pub(crate) fn interrupt(child: &std::process::Child) {
    signal(child, libc::SIGINT);
}

/// The caller still holds the child's handle, so that the id cannot be someone else's.
fn signal(child: &std::process::Child, signal: libc::c_int) {
    if let Ok(id) = i32::try_from(child.id()) {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(id, signal) };
    }
}

/// Lets the kernel end this process when the one that started it is gone.
pub(crate) fn die_with_parent() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
}
