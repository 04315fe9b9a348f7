//! What a ring is built from, and what became of it.
//!
//! Knows sizes and reasons. Does not know how a ring is set up.

use core::fmt;
use core::time::Duration;

use super::probe::ProbeError;
use super::zero_copy::ZeroCopy;
use crate::limits;

/// How large a ring and its tables are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Submissions one `wait` hands over in one system call (a power of two; more cost one call per so many).
    pub sq_entries: u32,
    /// Completions the kernel can post before it keeps them in a slower list (a power of two).
    pub cq_entries: u32,
    /// Buffers for received bytes: all sockets of the ring share them (at most 32768, rounded up to a power of two).
    pub rx_buffers: u16,
    /// Bytes of one of them.
    pub rx_buffer_bytes: u32,
    /// Sockets the ring can hold. Each may have one receive and one send in flight.
    pub sockets_max: u32,
    /// Files the ring can hold.
    pub files_max: u32,
    /// File operations, cancels, shutdowns and closes in flight; more wait in a queue.
    pub file_ops_max: u32,
    /// Kernel threads that may run operations which cannot complete at once (syncs).
    pub workers_max: u32,
    /// Threads of the ring's own that write to files whose file system takes no write that must not wait. One writes while
    /// it gets on; the others are started when it waits for a disk. 0: the ring writes.
    pub writers_max: u32,
    /// Ask for DEFER_TASKRUN: the kernel then works for this ring only inside `wait`. Where it is refused, or not
    /// asked for, the ring works without.
    pub defer_taskrun: bool,
    /// How long `wait` looks for completions before it sleeps. Only for a core of its own.
    pub spin: Duration,
    /// Register the pool with the kernel: cheaper O_DIRECT from 64 KiB on, but the whole pool takes real memory at
    /// once and counts against RLIMIT_MEMLOCK. So do, on newer kernels, the rings themselves (some 200 KiB each with
    /// these defaults): with a finite limit, leave room for those of the other shards.
    pub register_buffers: bool,
    /// When sends leave without being copied.
    pub zero_copy: ZeroCopy,
}

impl Default for UringConfig {
    fn default() -> Self {
        Self {
            sq_entries: 1024,
            cq_entries: 8192,
            rx_buffers: 1024,
            rx_buffer_bytes: 16 * 1024,
            sockets_max: limits::CONNECTIONS_MAX as u32,
            files_max: limits::SHARD_FILES_MAX as u32,
            file_ops_max: limits::SHARD_FILE_OPS_MAX as u32,
            // Syncs of many children at once share commits of the file system.
            workers_max: 32,
            writers_max: 32,
            defer_taskrun: true,
            spin: Duration::ZERO,
            register_buffers: false,
            zero_copy: ZeroCopy::Off,
        }
    }
}

/// Whether something was registered with the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    Yes,
    /// Not asked for, or refused; everything works without, a little slower.
    No {
        why: String,
    },
}

impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No { why } => write!(f, "no ({why})"),
        }
    }
}

/// What a ring became, for one line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingReport {
    /// The setup flags the kernel took.
    pub flags: &'static str,
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub fixed_buffers: Registered,
    pub fixed_files: Registered,
    /// Operations this kernel lacks and for which something else is done.
    pub missing: Vec<&'static str>,
}

impl fmt::Display for RingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring {}, {} submissions, {} completions, fixed buffers: {}, fixed files: {}",
            self.flags, self.sq_entries, self.cq_entries, self.fixed_buffers, self.fixed_files
        )?;
        if !self.missing.is_empty() {
            write!(f, ", missing: {}", self.missing.join(", "))?;
        }
        Ok(())
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("the ring cannot be configured: {what} is {value}, allowed is {allowed}")]
    Config { what: &'static str, value: u64, allowed: &'static str },
    #[error("the ring holds {max} {what}, but {given} were given: raise the limit of the shard")]
    TooMany { what: &'static str, max: u32, given: usize },
    #[error(
        "the kernel refused the ring's receive buffers ({0}): raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity), or \
         lower their number"
    )]
    ReceiveBuffers(#[source] std::io::Error),
    #[error("the kernel gave no {what} for the ring ({source}): raise RLIMIT_NOFILE or free memory")]
    Resource { what: &'static str, source: std::io::Error },
}

impl UringConfig {
    pub(super) fn check(&self) -> Result<(), UringError> {
        let in_range = |what, value: u64, range: core::ops::RangeInclusive<u64>, allowed| {
            if range.contains(&value) { Ok(()) } else { Err(UringError::Config { what, value, allowed }) }
        };
        in_range("sq_entries", self.sq_entries.into(), 8..=32_768, "8 to 32768")?;
        in_range("cq_entries", self.cq_entries.into(), 16..=65_536, "16 to 65536")?;
        in_range("rx_buffers", self.rx_buffers.into(), 1..=32_768, "1 to 32768")?;
        let bytes = 64..=1024 * 1024;
        in_range("rx_buffer_bytes", self.rx_buffer_bytes.into(), bytes, "64 bytes to 1 MiB")?;
        in_range("sockets_max", self.sockets_max.into(), 1..=1 << 20, "1 to 1048576")?;
        in_range("files_max", self.files_max.into(), 1..=1 << 20, "1 to 1048576")?;
        in_range("file_ops_max", self.file_ops_max.into(), 8..=1 << 20, "8 to 1048576")?;
        in_range("workers_max", self.workers_max.into(), 1..=1024, "1 to 1024")?;
        in_range("writers_max", self.writers_max.into(), 0..=1024, "0 to 1024")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_allowed_and_nonsense_is_named() {
        assert!(UringConfig::default().check().is_ok());
        let error = UringConfig { rx_buffers: 0, ..UringConfig::default() }.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the ring cannot be configured: rx_buffers is 0, allowed is 1 to 32768"
        );
    }

    #[test]
    fn the_report_is_one_line() {
        let report = RingReport {
            flags: "COOP",
            sq_entries: 8,
            cq_entries: 16,
            fixed_buffers: Registered::No { why: "not asked for".into() },
            fixed_files: Registered::Yes,
            missing: vec!["FTRUNCATE"],
        };
        assert_eq!(
            report.to_string(),
            "ring COOP, 8 submissions, 16 completions, fixed buffers: no (not asked for), fixed files: yes, \
             missing: FTRUNCATE"
        );
    }
}
