//! The ring itself: setup, what is registered with it, and `io_uring_enter`.
//!
//! Knows the kernel's interface. Does not know operations nor their owners.

use core::ptr::NonNull;
use core::time::Duration;
use std::io;
use std::os::fd::RawFd;

use io_uring::cqueue;
use io_uring::squeue;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter};

use super::config::{Registered, RingReport, UringConfig, UringError};
use super::host;
use super::probe::{self, KernelVersion, Operations};
use crate::buf::{Pool, RawRange};

/// The kernel takes at most this much in one registered buffer. A multiple of every piece, so none lies in two.
const FIXED_BUFFER_BYTES: usize = 1 << 30;
const _: () = assert!(FIXED_BUFFER_BYTES.is_multiple_of(crate::limits::CHUNK_BYTES));
const _: () = assert!(FIXED_BUFFER_BYTES.is_multiple_of(crate::limits::SMALL_BYTES));

pub(super) struct Ring {
    ring: IoUring,
    operations: Operations,
    /// The base of the arena that is registered.
    fixed_arena: Option<NonNull<u8>>,
    fixed_files: bool,
    report: RingReport,
    /// Calls of `enter`.
    entered: u64,
}

/// How a call of `enter` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It returned as asked, timed out, or was interrupted: look at the completions and at the clock.
    Back,
    /// The kernel could not take more now; what was not taken stays queued.
    Busy,
}

/// A ring with the best flags this kernel takes, and their names. Must be used by the calling thread.
pub(super) fn set_up(
    sq_entries: u32,
    cq_entries: u32,
    defer_taskrun: bool,
) -> io::Result<(IoUring, &'static str)> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_cqsize(cq_entries).setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    if defer_taskrun {
        let mut deferred = builder.clone();
        match deferred.setup_single_issuer().setup_defer_taskrun().build(sq_entries) {
            Ok(ring) => {
                return Ok((ring, "SINGLE_ISSUER|DEFER_TASKRUN|COOP_TASKRUN|TASKRUN_FLAG|SUBMIT_ALL"));
            }
            // The answer of a kernel that does not know a flag.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((builder.build(sq_entries)?, "COOP_TASKRUN|TASKRUN_FLAG|SUBMIT_ALL"))
}

impl Ring {
    pub(super) fn new(config: &UringConfig, pool: &Pool) -> Result<Self, UringError> {
        let kernel = KernelVersion::running();
        let (ring, flags) = set_up(config.sq_entries, config.cq_entries, config.defer_taskrun)
            .map_err(|error| probe::explain(error, kernel, probe::sysctl()))?;
        let operations = probe::operations(&ring, kernel)?;
        let submitter = ring.submitter();
        // Refused only where there is no such limit (before 5.15): then the kernel's own bound stands.
        let _ = submitter.register_iowq_max_workers(&mut [config.workers_max, config.workers_max]);
        let fixed_files = match submitter.register_files_sparse(config.files_max) {
            Ok(()) => Registered::Yes,
            Err(error) => Registered::No { why: format!("{error}; RLIMIT_NOFILE may be too low") },
        };
        let fixed_buffers = if config.register_buffers {
            register_arena(&submitter, pool)
        } else {
            Registered::No { why: "not asked for".into() }
        };
        let report = RingReport {
            flags,
            sq_entries: ring.params().sq_entries(),
            cq_entries: ring.params().cq_entries(),
            fixed_buffers,
            fixed_files,
            missing: operations.missing(),
        };
        Ok(Self {
            ring,
            operations,
            fixed_arena: (report.fixed_buffers == Registered::Yes).then(|| pool.arena().0),
            fixed_files: report.fixed_files == Registered::Yes,
            report,
            entered: 0,
        })
    }

    pub(super) fn entered(&self) -> u64 {
        self.entered
    }

    pub(super) fn report(&self) -> &RingReport {
        &self.report
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    pub(super) fn has_ftruncate(&self) -> bool {
        self.operations.ftruncate
    }

    /// True when sends may leave without a copy, and the kernel says whether they did.
    pub(super) fn has_zero_copy(&self) -> bool {
        self.operations.zero_copy
    }

    /// True when files are named by their slot in the ring.
    pub(super) fn has_fixed_files(&self) -> bool {
        self.fixed_files
    }

    /// Registers `fd` as file `slot` (-1: forgets it). Falls back to plain descriptors for good when refused.
    pub(super) fn set_fixed_file(&mut self, slot: u32, fd: RawFd) {
        if !self.fixed_files {
            return;
        }
        if let Err(error) = self.ring.submitter().register_files_update(slot, &[fd]) {
            self.fixed_files = false;
            self.report.fixed_files = Registered::No { why: error.to_string() };
        }
    }

    /// The index of the registered buffer the range lies in.
    pub(super) fn fixed_buffer(&self, range: &RawRange) -> Option<u16> {
        if self.fixed_arena != Some(range.arena) {
            return None;
        }
        u16::try_from(range.arena_offset / FIXED_BUFFER_BYTES).ok()
    }

    pub(super) fn is_submission_full(&mut self) -> bool {
        self.ring.submission().is_full()
    }

    pub(super) fn has_submissions(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// True when a completion is posted, or the kernel has work that will post one in the next `enter`.
    pub(super) fn has_news(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Queues a submission; false when the queue is full.
    ///
    /// # Safety
    /// All memory and the descriptor that `entry` names must live until the terminal completion of its user data:
    /// their owner is in `InFlight` under it already.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what `push` asks for is the contract of this function.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Completions posted so far.
    pub(super) fn completions(&mut self) -> impl Iterator<Item = cqueue::Entry> {
        self.ring.completion()
    }

    /// Submits everything queued and runs the kernel's deferred work. With `want`, waits for one completion, at
    /// most `timeout` (`None`: for ever).
    pub(super) fn enter(&mut self, want: bool, timeout: Option<Duration>) -> io::Result<Entered> {
        self.entered += 1;
        let submitter = self.ring.submitter();
        let result = match (want, timeout) {
            (true, None) => submitter.submit_and_wait(1),
            (true, Some(timeout)) => {
                let timespec = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
            (false, _) => {
                let queued = self.ring.submission().len() as u32;
                let flags = EnterFlags::GETEVENTS.bits();
                // SAFETY: no argument is passed, and `queued` is what the submission queue holds.
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, flags, None) }
            }
        };
        match result {
            Ok(_) => Ok(Entered::Back),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(Entered::Back),
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => Ok(Entered::Busy),
                _ => Err(error),
            },
        }
    }
}

/// Registers the pool's arena in slices the kernel takes.
fn register_arena(submitter: &Submitter<'_>, pool: &Pool) -> Registered {
    let (base, len) = pool.arena();
    // A refusal costs up to 90 ms and touches every page, so do not ask in vain.
    if let Some(limit) = host::memlock_limit()
        && (limit as u128) < len as u128
    {
        let why = format!(
            "RLIMIT_MEMLOCK is {} KiB and the pool has {} KiB: raise it (LimitMEMLOCK=infinity)",
            limit / 1024,
            len / 1024
        );
        return Registered::No { why };
    }
    let slices: Vec<libc::iovec> = (0..len)
        .step_by(FIXED_BUFFER_BYTES)
        .map(|offset| {
            // SAFETY: `offset` is below `len`, the length of the arena.
            let start = unsafe { base.add(offset) };
            libc::iovec { iov_base: start.as_ptr().cast(), iov_len: (len - offset).min(FIXED_BUFFER_BYTES) }
        })
        .collect();
    // SAFETY: the kernel pins the pages itself, so they outlive even an early unmapping; `UringIo` keeps a clone of
    // the pool all the same.
    match unsafe { submitter.register_buffers(&slices) } {
        Ok(()) => Registered::Yes,
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Registered::No {
            why:
                "RLIMIT_MEMLOCK is used up (every ring of the user counts): raise it (LimitMEMLOCK=infinity)"
                    .into(),
        },
        Err(error) => Registered::No { why: error.to_string() },
    }
}
