//! Waking a ring out of its sleep from another thread.
//!
//! Knows one flag word and one eventfd. Does not know what the ring should look at once it is awake.
//!
//! A wake costs one atomic swap while the ring's thread runs, and one system call only when it sleeps. The word
//! closes the race between "nothing to do, sleep" and "here is work, wake": both are read-modify-writes of it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::io::Waker;

/// The ring's thread runs and was not woken.
const RUNNING: u32 = 0;
/// Woken; the ring has not taken notice yet.
const NOTIFIED: u32 = 1;
/// The ring's thread is in the kernel, or about to be: it needs the eventfd.
const SLEEPING: u32 = 2;

#[derive(Debug)]
struct Shared {
    state: AtomicU32,
    event: OwnedFd,
}

/// Wakes one [`UringIo`](super::UringIo); clones wake the same.
#[derive(Clone, Debug)]
pub struct UringWaker {
    shared: Arc<Shared>,
}

impl Waker for UringWaker {
    fn wake(&self) {
        // AcqRel: what the caller published before is visible to the ring that swaps the word next.
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            // Fails only when the counter is full (EAGAIN), and then the eventfd is readable as it should be.
            let _ = rustix::io::write(self.shared.event.as_fd(), &1u64.to_ne_bytes());
        }
    }
}

/// The ring's end.
#[derive(Debug)]
pub(super) struct WakeReceiver {
    shared: Arc<Shared>,
}

impl WakeReceiver {
    pub(super) fn new() -> std::io::Result<(Self, UringWaker)> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: AtomicU32::new(RUNNING), event });
        Ok((Self { shared: Arc::clone(&shared) }, UringWaker { shared }))
    }

    /// What the ring polls. Its counter is never read: every write is an edge of its own.
    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    pub(super) fn is_notified(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == NOTIFIED
    }

    /// True once per wake.
    pub(super) fn take(&self) -> bool {
        self.swap_from(NOTIFIED, RUNNING)
    }

    /// False when a wake came first: then do not sleep.
    pub(super) fn try_sleep(&self) -> bool {
        self.swap_from(RUNNING, SLEEPING)
    }

    /// After the sleep; a wake that came meanwhile stays to be taken.
    pub(super) fn awake(&self) {
        self.swap_from(SLEEPING, RUNNING);
    }

    fn swap_from(&self, from: u32, to: u32) -> bool {
        self.shared.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event_is_written(receiver: &WakeReceiver) -> bool {
        let mut counter = [0; 8];
        rustix::io::read(receiver.shared.event.as_fd(), &mut counter).is_ok()
    }

    #[test]
    fn a_running_ring_is_woken_without_a_system_call() {
        let (receiver, waker) = WakeReceiver::new().unwrap();
        waker.wake();
        waker.wake();
        assert!(!event_is_written(&receiver));
        assert!(!receiver.try_sleep(), "a wake before the sleep must prevent it");
        assert!(receiver.take());
        assert!(!receiver.take());
    }

    #[test]
    fn a_sleeping_ring_is_woken_by_the_eventfd_once() {
        let (receiver, waker) = WakeReceiver::new().unwrap();
        assert!(receiver.try_sleep());
        waker.wake();
        waker.wake();
        assert!(event_is_written(&receiver));
        assert!(!event_is_written(&receiver));
        receiver.awake();
        assert!(receiver.take());
    }
}
