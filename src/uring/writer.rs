//! A thread that writes for a ring: one write after another, while there are some.
//!
//! Knows a queue of writes and a queue of their ends. Does not know which thread is asked when (`writers`).

use core::ptr::NonNull;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use super::waker::UringWaker;
use crate::buf::RawRange;

/// The ring is told of ended writes after so many bytes, at the latest: answers leave while the rest is written.
const BYTES_PER_WAKE: u32 = 256 * 1024;
/// No file: slots of a ring are far below.
const NO_FILE: u32 = u32::MAX;

/// A write on its way to a thread.
#[derive(Debug)]
pub(super) struct Job {
    user_data: u64,
    pub(super) file: Arc<File>,
    pub(super) slot: u32,
    offset: u64,
    address: NonNull<u8>,
    len: u32,
    /// A disk that is waited for: the write goes on when the test is there too.
    #[cfg(test)]
    pub(super) gate: Option<Arc<std::sync::Barrier>>,
}

// SAFETY: the address is of bytes that nobody writes while the job exists (see `Job::new`), and whose owner stays with the
// ring's thread; the file may be used by any thread.
unsafe impl Send for Job {}

impl Job {
    /// # Safety
    /// The owner of `range` is in `InFlight` under `user_data`: the bytes are there and do not change until this job has come
    /// back, as an end or unwritten, or for ever.
    pub(super) unsafe fn new(
        user_data: u64,
        file: Arc<File>,
        slot: u32,
        offset: u64,
        range: &RawRange,
    ) -> Self {
        Self {
            user_data,
            file,
            slot,
            offset,
            address: range.address,
            len: range.len,
            #[cfg(test)]
            gate: None,
        }
    }

    /// Ends the job without having written.
    pub(super) fn refuse(self, errno: i32) -> Back {
        Back::Ended { user_data: self.user_data, result: -errno }
    }

    /// As the kernel would put it into a completion.
    fn write(&self) -> i32 {
        #[cfg(test)]
        if let Some(gate) = &self.gate {
            gate.wait();
        }
        // An offset beyond what the kernel counts in is one it refuses.
        let offset = libc::off64_t::try_from(self.offset).unwrap_or(-1);
        loop {
            let (fd, address) = (self.file.as_raw_fd(), self.address.as_ptr().cast());
            // SAFETY: `new` was promised that the bytes are there and do not change; the kernel only reads them.
            let written = unsafe { libc::pwrite64(fd, address, self.len as usize, offset) };
            if written >= 0 {
                // At most `len`, and buffers are small.
                return i32::try_from(written).unwrap_or(i32::MAX);
            }
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                error => return -error.unwrap_or(libc::EIO),
            }
        }
    }
}

/// What comes back to the ring.
#[derive(Debug)]
pub(super) enum Back {
    /// Negative: an error number.
    Ended { user_data: u64, result: i32 },
    /// Not begun, because another thread is in a write of the same file and this one would only wait for it as well.
    Unwritten(Job),
}

/// What a thread is doing, for the ring and for its fellows.
#[derive(Debug)]
pub(super) struct Desk {
    /// Odd during a write.
    steps: AtomicU64,
    /// The slot of the file it writes.
    slot: AtomicU32,
}

impl Desk {
    fn new() -> Self {
        Self { steps: AtomicU64::new(0), slot: AtomicU32::new(NO_FILE) }
    }

    /// A number that changes with every write that begins or ends.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Acquire)
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Acquire)
    }

    pub(super) fn is_writing(steps: u64) -> bool {
        steps & 1 == 1
    }

    fn begin(&self, slot: u32) {
        self.slot.store(slot, Ordering::Release);
        self.steps.fetch_add(1, Ordering::AcqRel);
    }

    fn end(&self) {
        self.slot.store(NO_FILE, Ordering::Release);
        self.steps.fetch_add(1, Ordering::AcqRel);
    }
}

/// What a ring and its threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) jobs: ArrayQueue<Job>,
    /// Has room for every job that is out.
    pub(super) back: ArrayQueue<Back>,
    pub(super) desks: Box<[CachePadded<Desk>]>,
    /// Threads there are.
    pub(super) threads: AtomicU32,
    pub(super) stop: AtomicBool,
    waker: UringWaker,
}

impl Shared {
    pub(super) fn new(jobs: usize, threads_max: u32, waker: UringWaker) -> Self {
        Self {
            jobs: ArrayQueue::new(jobs),
            back: ArrayQueue::new(jobs),
            desks: (0..threads_max).map(|_| CachePadded::new(Desk::new())).collect(),
            threads: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            waker,
        }
    }

    /// The life of thread `me`: ends after `stop`, when there is nothing left to write.
    pub(super) fn work(&self, me: usize) {
        loop {
            let mut untold = 0;
            while let Some(job) = self.jobs.pop() {
                untold += job.len.max(1);
                self.serve(me, job);
                if untold >= BYTES_PER_WAKE {
                    self.waker.wake_written();
                    untold = 0;
                }
            }
            if untold > 0 {
                self.waker.wake_written();
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // Whoever adds a job unparks a thread afterwards; a token that came before makes this return at once.
            std::thread::park();
        }
    }

    fn serve(&self, me: usize, job: Job) {
        let back = if self.is_written_elsewhere(me, job.slot) {
            Back::Unwritten(job)
        } else {
            self.desks[me].begin(job.slot);
            let result = job.write();
            self.desks[me].end();
            Back::Ended { user_data: job.user_data, result }
        };
        let told = self.back.push(back);
        debug_assert!(told.is_ok(), "there is room for every job that is out");
    }

    /// Two that find this out of each other at once wait for each other in the kernel; nothing worse.
    fn is_written_elsewhere(&self, me: usize, slot: u32) -> bool {
        let threads = self.threads.load(Ordering::Acquire) as usize;
        threads > 1
            && self.desks[..threads].iter().enumerate().any(|(n, desk)| n != me && desk.slot() == slot)
    }
}
