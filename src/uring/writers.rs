//! The threads that write for a ring, seen from the ring: which one is woken, and when another is needed.
//!
//! Knows jobs, and that a thread which does not get on is waiting for a disk. Does not know operations nor their owners.
//!
//! One thread writes while it gets on: writes share its wakes, and the core it shares with the shard. When writes wait and it
//! has not moved for [`STALL`] (the kernel makes writers wait while too much is dirty; a file system waits for its journal), the
//! next takes over, and what goes to the file that is waited for stays here until that write has ended. So a file that takes
//! no writes costs a thread and keeps no other waiting, as long as there are threads.
//!
//! A write that comes alone, while the threads have nothing, is left to the ring: one worker of the kernel answers sooner than
//! a thread that has to be woken and has to wake the ring.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::waker::UringWaker;
use super::writer::{Back, Desk, Job, Shared};
use crate::clock::Instant;

/// Jobs the threads have; more wait with the ring.
const JOBS_OUT_MAX: usize = 2048;
/// A thread that has not moved for so long waits for something.
pub(super) const STALL: Duration = Duration::from_millis(2);
/// It calls the kernel and waits.
const STACK_BYTES: usize = 64 * 1024;

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// Its steps when they were last looked at, and whether they were the same the time before.
    steps: u64,
    stuck: bool,
}

/// All memory but that of further threads is taken when the first file comes that is written by threads.
#[derive(Debug)]
pub(super) struct Writers {
    shared: Option<Arc<Shared>>,
    waker: UringWaker,
    threads: Vec<Thread>,
    threads_max: u32,
    /// The one that is woken.
    front: usize,
    /// Jobs the threads have, or have ended and we have not taken back.
    out: usize,
    /// Jobs that found no room, or whose file is waited for.
    held: VecDeque<Job>,
    /// Jobs were added since a thread was last woken.
    fresh: bool,
    /// The ring was left a write since then.
    lone: bool,
    looked: Instant,
}

impl Writers {
    pub(super) fn new(threads_max: u32, waker: UringWaker) -> Self {
        Self {
            shared: None,
            waker,
            threads: Vec::new(),
            threads_max,
            front: 0,
            out: 0,
            held: VecDeque::new(),
            fresh: false,
            lone: false,
            looked: Instant(0),
        }
    }

    /// Starts the first thread, unless it runs. False when there can be none.
    pub(super) fn begin(&mut self) -> bool {
        !self.threads.is_empty() || self.hire()
    }

    /// True while a job is not back.
    pub(super) fn is_busy(&self) -> bool {
        self.out > 0 || !self.held.is_empty()
    }

    /// True for the first write after `kick` that finds the threads idle: the ring is to write it.
    pub(super) fn leave_to_ring(&mut self) -> bool {
        !self.is_busy() && !core::mem::replace(&mut self.lone, true)
    }

    /// Takes a job; `kick` tells a thread.
    pub(super) fn push(&mut self, job: Job) {
        if self.held.is_empty() {
            self.hand_out(job);
        } else {
            self.held.push_back(job);
        }
    }

    fn hand_out(&mut self, job: Job) {
        let Some(shared) = &self.shared else { return self.held.push_back(job) };
        if self.out >= JOBS_OUT_MAX {
            return self.held.push_back(job);
        }
        match shared.jobs.push(job) {
            Ok(()) => {
                self.out += 1;
                self.fresh = true;
            }
            Err(job) => self.held.push_back(job),
        }
    }

    /// The next end of a write, where there is one.
    pub(super) fn next_back(&mut self) -> Option<(u64, i32)> {
        loop {
            let back = self.shared.as_ref()?.back.pop()?;
            self.out -= 1;
            match back {
                Back::Ended { user_data, result } => return Some((user_data, result)),
                Back::Unwritten(job) => self.held.push_back(job),
            }
        }
    }

    /// Hands out what waited here, as far as it can go now, and wakes one thread when there is something new for it.
    pub(super) fn kick(&mut self) {
        self.lone = false;
        for _ in 0..self.held.len() {
            if self.out >= JOBS_OUT_MAX {
                break;
            }
            let Some(job) = self.held.pop_front() else { break };
            if self.is_waited_for(job.slot) {
                self.held.push_back(job);
            } else {
                self.hand_out(job);
            }
        }
        if core::mem::take(&mut self.fresh)
            && let Some(thread) = self.threads.get(self.front)
        {
            thread.handle.thread().unpark();
        }
    }

    /// A thread is stuck in a write of this file.
    fn is_waited_for(&self, slot: u32) -> bool {
        let Some(shared) = &self.shared else { return false };
        let threads = self.threads.iter().zip(shared.desks.iter());
        threads.into_iter().any(|(thread, desk)| thread.stuck && desk.slot() == slot)
    }

    /// When to `look` although nothing happens; `None`: no job waits for a thread.
    pub(super) fn look_due(&self) -> Option<Instant> {
        self.has_waiting().then(|| self.looked.after(STALL))
    }

    fn has_waiting(&self) -> bool {
        !self.held.is_empty() || self.shared.as_ref().is_some_and(|shared| !shared.jobs.is_empty())
    }

    /// Has another thread take over when jobs wait and the one in front has not moved for a while.
    pub(super) fn look(&mut self, now: Instant) {
        if !self.has_waiting() || now.since(self.looked) < STALL {
            return;
        }
        self.looked = now;
        let Some(shared) = &self.shared else { return };
        for (thread, desk) in self.threads.iter_mut().zip(shared.desks.iter()) {
            let steps = desk.steps();
            thread.stuck = Desk::is_writing(steps) && steps == thread.steps;
            thread.steps = steps;
        }
        if self.threads.get(self.front).is_none_or(|thread| thread.stuck) {
            match self.threads.iter().position(|thread| !thread.stuck) {
                Some(other) => self.front = other,
                None if self.hire() => self.front = self.threads.len() - 1,
                // All wait for disks, and so does everybody else.
                None => return,
            }
        }
        self.fresh = true;
        self.kick();
    }

    /// One more thread, with the affinity, the priority and the blocked signals of this one.
    fn hire(&mut self) -> bool {
        let me = self.threads.len();
        if me >= self.threads_max as usize {
            return false;
        }
        let shared = self
            .shared
            .get_or_insert_with(|| Arc::new(Shared::new(JOBS_OUT_MAX, self.threads_max, self.waker.clone())));
        let name = format!("{}-w{me}", std::thread::current().name().unwrap_or("ring"));
        let theirs = Arc::clone(shared);
        let builder = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
        // Before it runs: from then on each looks what the others write.
        shared.threads.store(me as u32 + 1, Ordering::Release);
        match builder.spawn(move || theirs.work(me)) {
            Ok(handle) => {
                self.threads.push(Thread { handle, steps: 0, stuck: false });
                true
            }
            Err(error) => {
                tracing::warn!(%error, "no further thread that writes can be started");
                self.threads_max = me as u32;
                shared.threads.store(me as u32, Ordering::Release);
                false
            }
        }
    }

    /// Jobs that no thread has begun end, as cancelled, and go to `ended`.
    pub(super) fn cancel_waiting(&mut self, ended: &mut dyn FnMut(u64, i32)) {
        let shared = self.shared.as_ref();
        let queued = core::iter::from_fn(|| shared?.jobs.pop()).inspect(|_| self.out -= 1);
        for job in queued.chain(self.held.drain(..)) {
            if let Back::Ended { user_data, result } = job.refuse(libc::ECANCELED) {
                ended(user_data, result);
            }
        }
    }
}

impl Drop for Writers {
    /// Threads that have nothing to do end now; one that still waits for a disk ends after that, and nobody waits for it:
    /// the bytes it writes were leaked for it, and what it says goes nowhere.
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.stop.store(true, Ordering::Release);
        for thread in &self.threads {
            thread.handle.thread().unpark();
        }
        if !self.is_busy() {
            for thread in self.threads.drain(..) {
                // A panic of that thread was told of already.
                let _ = thread.handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Barrier;

    use super::*;
    use crate::buf::{BufRef, Pool, PoolConfig};
    use crate::uring::host;
    use crate::uring::waker::WakeReceiver;

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Bench {
        writers: Writers,
        wake: WakeReceiver,
        data: BufRef,
        ended: BTreeMap<u64, i32>,
        next: u64,
    }

    fn bench(threads_max: u32) -> Bench {
        let (wake, waker) = WakeReceiver::new().unwrap();
        let pool = Pool::new(PoolConfig { chunks: 1, smalls: 1, huge_pages: false }).unwrap();
        let mut data = pool.take_chunk().unwrap();
        for (at, byte) in data.as_mut_slice().iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        let mut writers = Writers::new(threads_max, waker);
        assert!(writers.begin());
        Bench { writers, wake, data: data.share(), ended: BTreeMap::new(), next: 0 }
    }

    impl Bench {
        fn job(&mut self, file: &Arc<File>, slot: u32, offset: u64, from: u32, len: u32) -> Job {
            self.next += 1;
            let range = self.data.raw(from, len).unwrap();
            // SAFETY: the bytes belong to `self.data`, and are never written again.
            unsafe { Job::new(self.next, Arc::clone(file), slot, offset, &range) }
        }

        /// `len` bytes from `from` on; the name of the job.
        fn push(&mut self, file: &Arc<File>, slot: u32, offset: u64, from: u32, len: u32) -> u64 {
            let job = self.job(file, slot, offset, from, len);
            self.writers.push(job);
            self.next
        }

        /// Eight bytes to a disk that is waited for.
        fn push_blocked(&mut self, gate: &Arc<Barrier>, slot: u32) -> u64 {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let mut job = self.job(&file, slot, 0, 0, 8);
            job.gate = Some(Arc::clone(gate));
            self.writers.push(job);
            self.next
        }

        /// As the ring does, until `count` jobs in all have ended.
        fn run_until(&mut self, count: usize) {
            let deadline = host::now().after(PATIENCE);
            while self.ended.len() < count {
                assert!(host::now() < deadline, "{} of {count} ended: {:?}", self.ended.len(), self.writers);
                self.writers.kick();
                self.writers.look(host::now());
                self.wake.take_written();
                while let Some((user_data, result)) = self.writers.next_back() {
                    assert!(self.ended.insert(user_data, result).is_none(), "a job ends once");
                }
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn more_jobs_than_the_threads_take_at_once_are_all_written() {
        let mut bench = bench(4);
        let file = Arc::new(tempfile::tempfile().unwrap());
        let count = JOBS_OUT_MAX as u64 * 2 + 100;
        for job in 0..count {
            let name = bench.push(&file, 0, job * 8, (job % 1000) as u32, 8);
            assert_eq!(name, job + 1);
        }
        bench.run_until(count as usize);
        assert!(bench.ended.values().all(|result| *result == 8));
        assert!(!bench.writers.is_busy());
        for job in 0..count {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, job * 8).unwrap();
            assert_eq!(bytes, bench.data.as_slice()[(job % 1000) as usize..][..8], "job {job}");
        }
    }

    #[test]
    fn a_failure_is_the_kernels_number_and_stops_nothing() {
        let mut bench = bench(1);
        let place = tempfile::NamedTempFile::new().unwrap();
        let read_only = Arc::new(File::open(place.path()).unwrap());
        let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let good = Arc::new(place.reopen().unwrap());
        let jobs = [&read_only, &full, &good].map(|file| bench.push(file, 0, 0, 0, 4096));
        bench.run_until(3);
        assert_eq!(jobs.map(|job| bench.ended[&job]), [-libc::EBADF, -libc::ENOSPC, 4096]);
    }

    #[test]
    fn a_blocked_write_keeps_only_those_of_its_file_waiting() {
        let mut bench = bench(4);
        let (gate, file) = (Arc::new(Barrier::new(2)), Arc::new(tempfile::tempfile().unwrap()));
        let mut theirs = vec![bench.push_blocked(&gate, 0)];
        bench.writers.kick();
        for n in 0..20 {
            bench.push(&file, 1, n * 4096, 0, 4096);
            if n % 4 == 0 {
                theirs.push(bench.push_blocked(&gate, 0));
            }
        }
        bench.run_until(20);
        assert!(theirs.iter().all(|job| !bench.ended.contains_key(job)));
        assert!(bench.writers.threads.len() >= 2);
        // One thread waits for that file, however many writes do.
        for n in 0..20 {
            bench.push(&file, 1, n * 4096, 0, 4096);
        }
        bench.run_until(40);
        let desks = &bench.writers.shared.as_ref().unwrap().desks;
        assert_eq!(desks.iter().filter(|desk| desk.slot() == 0).count(), 1);
        let count = theirs.len();
        let disk = std::thread::spawn(move || {
            for _ in 0..count {
                gate.wait();
            }
        });
        bench.run_until(40 + count);
        disk.join().unwrap();
        assert!(theirs.iter().all(|job| bench.ended[job] == 8));
    }

    #[test]
    fn when_all_threads_wait_others_wait_too_and_go_on_afterwards() {
        let mut bench = bench(2);
        let gates = [(); 2].map(|()| Arc::new(Barrier::new(2)));
        let file = Arc::new(tempfile::tempfile().unwrap());
        for (slot, gate) in (0..).zip(&gates) {
            bench.push_blocked(gate, slot);
        }
        bench.push(&file, 2, 0, 0, 4096);
        let deadline = host::now().after(PATIENCE);
        while bench.writers.threads.iter().filter(|thread| thread.stuck).count() < 2 {
            assert!(host::now() < deadline, "{:?}", bench.writers);
            bench.writers.kick();
            bench.writers.look(host::now());
        }
        assert!(bench.writers.look_due().is_some(), "it waits, and is looked after");
        gates[0].wait();
        bench.run_until(2);
        gates[1].wait();
        bench.run_until(3);
        assert_eq!(bench.ended[&3], 4096);
    }

    #[test]
    fn what_no_thread_has_begun_can_be_cancelled() {
        let mut bench = bench(1);
        let gate = Arc::new(Barrier::new(2));
        for _ in 0..10 {
            bench.push_blocked(&gate, 0);
        }
        bench.writers.kick();
        let deadline = host::now().after(PATIENCE);
        while bench.writers.shared.as_ref().unwrap().desks[0].slot() != 0 {
            assert!(host::now() < deadline, "it was not begun");
            std::thread::yield_now();
        }
        let mut cancelled = Vec::new();
        bench.writers.cancel_waiting(&mut |job, result| cancelled.push((job, result)));
        assert_eq!(cancelled, (2..=10).map(|job| (job, -libc::ECANCELED)).collect::<Vec<_>>());
        assert!(bench.writers.is_busy());
        gate.wait();
        bench.run_until(1);
        assert!(!bench.writers.is_busy());
    }

    #[test]
    fn an_end_ends_the_sleep_of_the_ring() {
        use crate::uring::waker::Awaited;
        let mut bench = bench(1);
        let file = Arc::new(tempfile::tempfile().unwrap());
        for _ in 0..100 {
            bench.push(&file, 0, 0, 0, 512);
            let awaited = Awaited { wake: false, written: true };
            assert!(bench.wake.try_sleep(awaited), "nothing has ended");
            bench.writers.kick();
            let deadline = host::now().after(PATIENCE);
            while !bench.wake.is_notified() {
                assert!(host::now() < deadline, "no wake");
            }
            bench.wake.awake();
            assert!(bench.wake.take_written());
            assert!(bench.writers.next_back().is_some(), "told of before it could be seen");
        }
    }
}
