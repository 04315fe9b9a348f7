//! May this process use io_uring here, and if not, why not: one sentence each.
//!
//! Knows the kernel's version, its operations and the four ways it refuses a ring. Does not keep a ring.

use core::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::host;

/// The oldest kernel: 6.1 has multishot receive and accept, provided buffer rings and deferred task work.
pub const KERNEL_MIN: KernelVersion = KernelVersion { major: 6, minor: 1 };

/// The first whose zero-copy sends report whether they copied.
const REPORT_USAGE_KERNEL: KernelVersion = KernelVersion { major: 6, minor: 2 };

/// `major.minor` of the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    pub major: u32,
    pub minor: u32,
}

impl KernelVersion {
    /// From a release string such as `6.1.0-18-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }

    /// Of the running kernel.
    pub fn running() -> Option<Self> {
        Self::parse(rustix::system::uname().release().to_str().ok()?)
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What the kernel offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// `None` when the release string is not a version.
    pub kernel: Option<KernelVersion>,
    /// The setup flags the kernel takes.
    pub flags: &'static str,
    /// Operations it lacks and for which something else is done.
    pub missing: Vec<&'static str>,
    /// RLIMIT_MEMLOCK in bytes; `None` is unlimited (or the process may ignore it).
    pub memlock: Option<u64>,
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kernel {
            Some(kernel) => write!(f, "kernel {kernel}")?,
            None => f.write_str("kernel of unknown version")?,
        }
        write!(f, ", io_uring with {}", self.flags)?;
        match self.memlock {
            Some(bytes) => write!(f, ", lockable memory {} KiB", bytes / 1024)?,
            None => f.write_str(", lockable memory unlimited")?,
        }
        if !self.missing.is_empty() {
            write!(f, ", missing: {}", self.missing.join(", "))?;
        }
        Ok(())
    }
}

/// Why io_uring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the kernel is {found}, but goldrush needs {KERNEL_MIN} or newer: boot a newer kernel")]
    TooOld { found: KernelVersion },
    #[error("io_uring is switched off on this machine (kernel.io_uring_disabled = 2): set it to 0")]
    Disabled,
    #[error(
        "io_uring is reserved to privileged processes (kernel.io_uring_disabled = 1): set it to 0, or run in the \
         group named by kernel.io_uring_group"
    )]
    Reserved,
    #[error(
        "this process may not use io_uring (EPERM), most likely a container's seccomp profile: allow \
         io_uring_setup, io_uring_enter and io_uring_register in it"
    )]
    Forbidden,
    #[error(
        "this kernel answers that it has no io_uring (ENOSYS): it was built without it, or a sandbox hides it; \
         use a kernel with CONFIG_IO_URING, or allow io_uring in the sandbox"
    )]
    Absent,
    #[error("the kernel's io_uring lacks {0}: boot kernel {KERNEL_MIN} or newer")]
    MissingOperations(String),
    #[error(
        "the kernel has no memory for a ring ({0}): raise the memory limit of this process (its cgroup, or \
         RLIMIT_MEMLOCK)"
    )]
    Memory(#[source] io::Error),
    #[error("the kernel refused a ring ({0})")]
    Other(#[source] io::Error),
}

/// Operations without which there is no data plane.
const REQUIRED: [(u8, &str); 14] = [
    (opcode::AcceptMulti::CODE, "ACCEPT"),
    (opcode::RecvMulti::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Shutdown::CODE, "SHUTDOWN"),
    (opcode::Close::CODE, "CLOSE"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    // It came with 6.1, as did deferred task work: proof for a kernel with a number of its own.
    (opcode::SendMsgZc::CODE, "SENDMSG_ZC"),
];

/// Asks the kernel. Creates a small ring and drops it.
pub fn probe() -> Result<ProbeReport, ProbeError> {
    let kernel = KernelVersion::running();
    let (ring, flags) = super::ring::set_up(8, 16, true).map_err(|error| explain(error, kernel, sysctl()))?;
    let operations = operations(&ring, kernel)?;
    Ok(ProbeReport { kernel, flags, missing: operations.missing(), memlock: host::memlock_limit() })
}

/// Which optional operations there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operations {
    pub(super) ftruncate: bool,
    /// Zero-copy sends whose notification says whether they were.
    pub(super) zero_copy: bool,
}

impl Operations {
    pub(super) fn missing(self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.ftruncate {
            missing.push("FTRUNCATE (done by a blocking call)");
        }
        if !self.zero_copy {
            missing.push("SEND_ZC_REPORT_USAGE (sends are copied)");
        }
        missing
    }
}

pub(super) fn operations(ring: &IoUring, kernel: Option<KernelVersion>) -> Result<Operations, ProbeError> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(error, kernel, sysctl()))?;
    let missing: Vec<&str> =
        REQUIRED.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(Operations {
            ftruncate: probe.is_supported(opcode::Ftruncate::CODE),
            zero_copy: kernel.is_some_and(|kernel| kernel >= REPORT_USAGE_KERNEL),
        });
    }
    Err(match kernel {
        Some(found) if found < KERNEL_MIN => ProbeError::TooOld { found },
        _ => ProbeError::MissingOperations(missing.join(", ")),
    })
}

/// The sentence for a failed setup. `sysctl` is kernel.io_uring_disabled, where there is one (6.6).
pub(super) fn explain(error: io::Error, kernel: Option<KernelVersion>, sysctl: Option<u8>) -> ProbeError {
    match (error.raw_os_error(), sysctl) {
        (Some(libc::EPERM), Some(2)) => ProbeError::Disabled,
        (Some(libc::EPERM), Some(1)) => ProbeError::Reserved,
        (Some(libc::EPERM | libc::EACCES), _) => ProbeError::Forbidden,
        (Some(libc::ENOMEM), _) => ProbeError::Memory(error),
        (errno, _) => match kernel {
            Some(found) if found < KERNEL_MIN => ProbeError::TooOld { found },
            _ if errno == Some(libc::ENOSYS) => ProbeError::Absent,
            _ => ProbeError::Other(error),
        },
    }
}

/// kernel.io_uring_disabled.
pub(super) fn sysctl() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errno: i32, kernel: &str, sysctl: Option<u8>) -> String {
        explain(io::Error::from_raw_os_error(errno), KernelVersion::parse(kernel), sysctl).to_string()
    }

    #[test]
    fn kernel_releases_are_read() {
        let version = |release| KernelVersion::parse(release).map(|v| (v.major, v.minor));
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("6.12-rc3"), Some((6, 12)));
        assert_eq!(version("six.one"), None);
        assert_eq!(version("6"), None);
        assert!(KernelVersion::parse("5.19").unwrap() < KERNEL_MIN);
        assert!(KernelVersion::parse("6.1").unwrap() >= KERNEL_MIN);
    }

    #[test]
    fn each_refusal_names_its_remedy() {
        assert!(said(libc::EPERM, "6.8", Some(2)).contains("set it to 0"));
        assert!(said(libc::EPERM, "6.8", Some(1)).contains("io_uring_group"));
        assert!(said(libc::EPERM, "6.8", Some(0)).contains("seccomp"));
        assert!(said(libc::EPERM, "6.1", None).contains("seccomp"));
        assert!(said(libc::ENOSYS, "6.8", None).contains("CONFIG_IO_URING"));
        assert!(said(libc::ENOSYS, "5.0", None).contains("needs 6.1 or newer"));
        assert!(said(libc::EINVAL, "5.15", None).contains("the kernel is 5.15"));
        assert!(said(libc::ENOMEM, "6.8", None).contains("RLIMIT_MEMLOCK"));
        assert!(!said(libc::EMFILE, "6.8", None).contains('\n'));
    }

    #[test]
    fn this_kernel_answers() {
        match probe() {
            Ok(report) => println!("{report}"),
            Err(error) => println!("SKIPPED: no ring here: {error}"),
        }
    }
}
