//! Reads of nodes that boot, on their way from the shards to whoever keeps boot traces.
//!
//! Knows how many boots are recorded at once, and a queue of what they read. Does not know what a boot is, nor when one
//! ends: a shard begins a recording, the other side ends it.
//!
//! A unit that is not recorded costs its reads nothing. One that is puts one entry a read into a bounded queue, without a
//! lock and without memory; what finds no room is lost, and counted.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::shared::GoldenFile;
use crate::units::ByteOffset;

/// Boots recorded at once: more would say the same.
const RECORDED_AT_ONCE: usize = 2;
/// Reads that may wait to be looked at.
const TOUCHES_MAX: usize = 16 * 1024;

/// One recorded boot of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot {
    slot: u32,
    /// From one on.
    number: u32,
}

/// One read of golden data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub boot: Boot,
    pub file: GoldenFile,
    pub offset: ByteOffset,
    pub len: u32,
}

#[derive(Debug)]
pub struct TouchLog {
    /// Recordings are wanted.
    open: AtomicBool,
    queue: ArrayQueue<Touch>,
    /// The boots that are recorded, by number; zero is none.
    slots: [AtomicU32; RECORDED_AT_ONCE],
    numbers: AtomicU32,
    lost: AtomicU64,
}

impl TouchLog {
    /// Closed, and without room: nothing is recorded.
    pub(super) fn closed() -> Self {
        Self::of(false, 1)
    }

    pub(super) fn open() -> Self {
        Self::of(true, TOUCHES_MAX)
    }

    fn of(open: bool, room: usize) -> Self {
        Self {
            open: AtomicBool::new(open),
            queue: ArrayQueue::new(room),
            slots: core::array::from_fn(|_| AtomicU32::new(0)),
            numbers: AtomicU32::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// A unit boots. `None`: enough are recorded, or none are wanted.
    pub(super) fn begin(&self) -> Option<Boot> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        let slot = self.slots.iter().position(|slot| slot.load(Ordering::Relaxed) == 0)?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let taken = self.slots[slot].compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok().then_some(Boot { slot: slot as u32, number })
    }

    /// False: its recording has ended.
    pub(super) fn note(&self, touch: Touch) -> bool {
        let Boot { slot, number } = touch.boot;
        if self.slots[slot as usize].load(Ordering::Relaxed) != number {
            return false;
        }
        if self.queue.push(touch).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// The oldest read not looked at.
    pub fn take(&self) -> Option<Touch> {
        self.queue.pop()
    }

    /// No more of this boot is wanted. A few reads of it may still come.
    pub fn end(&self, boot: Boot) {
        let slot = &self.slots[boot.slot as usize];
        let _ = slot.compare_exchange(boot.number, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// No more boots are wanted.
    pub fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Boots are wanted again. A log that was made without room stays closed.
    pub fn reopen(&self) {
        if self.queue.capacity() == TOUCHES_MAX {
            self.open.store(true, Ordering::Relaxed);
        }
    }

    /// Reads that found no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Golden;

    fn touch(boot: Boot, offset: u64) -> Touch {
        let file = Golden::new(0, false).unwrap().register(1).unwrap();
        Touch { boot, file, offset: ByteOffset(offset), len: 4096 }
    }

    #[test]
    fn few_boots_are_recorded_at_once_and_each_until_it_is_ended() {
        let log = TouchLog::open();
        let boots: Vec<_> = (0..RECORDED_AT_ONCE).map(|_| log.begin().unwrap()).collect();
        assert_eq!(log.begin(), None);
        assert!(log.note(touch(boots[0], 7)) && log.note(touch(boots[1], 8)));
        log.end(boots[0]);
        let next = log.begin().unwrap();
        assert!(!log.note(touch(boots[0], 9)) && log.note(touch(next, 10)));
        log.end(boots[0]);
        assert!(log.note(touch(next, 11)), "who is ended twice ends no other");
        let offsets: Vec<_> = core::iter::from_fn(|| log.take()).map(|touch| touch.offset.0).collect();
        assert_eq!(offsets, [7, 8, 10, 11]);
        log.end(next);
        log.close();
        assert_eq!(log.begin(), None);
        log.reopen();
        assert!(log.begin().is_some());
        let none = TouchLog::closed();
        none.reopen();
        assert_eq!(none.begin(), None);
    }

    #[test]
    fn reads_that_find_no_room_are_lost_and_counted() {
        let log = TouchLog::open();
        let boot = log.begin().unwrap();
        (0..TOUCHES_MAX as u64 + 3).for_each(|offset| assert!(log.note(touch(boot, offset))));
        assert_eq!((log.lost(), log.take().unwrap().offset.0), (3, 0));
    }
}
