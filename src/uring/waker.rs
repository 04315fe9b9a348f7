//! Waking a ring out of its sleep from another thread.
//!
//! Knows one word of flags and one eventfd. Does not know what the ring should look at once it is awake.
//!
//! A wake costs one atomic swap while the ring's thread runs, and one system call only when it sleeps. The word
//! closes the race between "nothing to do, sleep" and "here is work, wake": both are read-modify-writes of it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::io::Waker;

/// Somebody has news for the shard.
const WOKEN: u32 = 1;
/// Writes have ended in other threads of this ring.
const WRITTEN: u32 = 2;
/// The ring's thread is in the kernel, or about to be: it needs the eventfd.
const SLEEPING: u32 = 4;

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
        self.wake_with(WOKEN);
    }
}

impl UringWaker {
    /// Says that writes have ended.
    pub(super) fn wake_written(&self) {
        self.wake_with(WRITTEN);
    }

    fn wake_with(&self, news: u32) {
        // AcqRel: what the caller published before is visible to the ring that takes the word next.
        let before = self.shared.state.fetch_or(news, Ordering::AcqRel);
        if before & SLEEPING != 0 && before & news == 0 {
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

/// What ends a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    /// A wake, for an `AwaitWake`.
    pub(super) wake: bool,
    /// The end of a write in another thread.
    pub(super) written: bool,
}

impl Awaited {
    pub(super) fn is_any(self) -> bool {
        self.wake || self.written
    }

    fn bits(self) -> u32 {
        (if self.wake { WOKEN } else { 0 }) | (if self.written { WRITTEN } else { 0 })
    }
}

impl WakeReceiver {
    pub(super) fn new() -> std::io::Result<(Self, UringWaker)> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: AtomicU32::new(0), event });
        Ok((Self { shared: Arc::clone(&shared) }, UringWaker { shared }))
    }

    /// What the ring polls. Its counter is never read: every write is an edge of its own.
    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    pub(super) fn is_notified(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) & (WOKEN | WRITTEN) != 0
    }

    /// True once per wake.
    pub(super) fn take(&self) -> bool {
        self.clear(WOKEN)
    }

    /// Before looking at what has been written: what ends later says so again.
    pub(super) fn take_written(&self) -> bool {
        self.clear(WRITTEN)
    }

    /// False when something of what is awaited came first: then do not sleep.
    pub(super) fn try_sleep(&self, awaited: Awaited) -> bool {
        let sleep = |state: u32| (state & awaited.bits() == 0).then_some(state | SLEEPING);
        self.shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, sleep).is_ok()
    }

    /// After the sleep; a wake that came meanwhile stays to be taken.
    pub(super) fn awake(&self) {
        self.clear(SLEEPING);
    }

    fn clear(&self, bit: u32) -> bool {
        // A look first: the word is rarely changed, and a load leaves it to whoever changes it.
        self.shared.state.load(Ordering::Acquire) & bit != 0
            && self.shared.state.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Awaited = Awaited { wake: true, written: true };

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
        assert!(!receiver.try_sleep(ALL), "a wake before the sleep must prevent it");
        assert!(receiver.take());
        assert!(!receiver.take());
    }

    #[test]
    fn a_sleeping_ring_is_woken_by_the_eventfd_once() {
        let (receiver, waker) = WakeReceiver::new().unwrap();
        assert!(receiver.try_sleep(ALL));
        waker.wake();
        waker.wake();
        assert!(event_is_written(&receiver));
        assert!(!event_is_written(&receiver));
        receiver.awake();
        assert!(receiver.take());
    }

    #[test]
    fn what_is_not_awaited_keeps_nobody_awake() {
        let (receiver, waker) = WakeReceiver::new().unwrap();
        waker.wake();
        assert!(receiver.try_sleep(Awaited { wake: false, written: true }));
        waker.wake_written();
        assert!(event_is_written(&receiver));
        receiver.awake();
        assert!(!receiver.try_sleep(Awaited { wake: false, written: true }));
        assert!(receiver.take_written());
        assert!(!receiver.take_written());
        assert!(receiver.take(), "the other wake is still there");
    }
}
