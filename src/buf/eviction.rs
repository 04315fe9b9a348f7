//! Which frame is given up next: two queues, so that a scan pushes out only what it brought itself.
//!
//! Knows the order of the frames and what their words say of uses. Does not know what a frame stands for.
//!
//! A frame in use is in exactly one of two queues. *New* ones go first as long as they are more than a tenth of all; who
//! was used again meanwhile is *kept*: it moves to the other queue, and leaves that only after as many rounds as it had
//! uses since the last. A scan, however long, is used once and goes through the new ones alone.
//!
//! A frame that somebody holds when its turn comes goes to the end of its queue.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::frames::{HOLDERS, TAKEN, USE, USES};

/// Why a frame or its pages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Somebody has asked for them.
    Demand,
    /// Somebody may: never at the cost of what is kept.
    Ahead,
}

/// New frames may be so many of all, as a divisor, before their number is reduced.
const NEW_SHARE: u32 = 10;
/// How many frames one search looks at: bounds the time of one miss.
const STEPS_MAX: u32 = 256;

#[derive(Debug)]
pub(super) struct Eviction {
    count: u32,
    /// The next frame that never was used.
    unused: AtomicU32,
    new: ArrayQueue<u32>,
    kept: ArrayQueue<u32>,
}

impl Eviction {
    pub(super) fn new(count: u32) -> Self {
        let queue = || ArrayQueue::new(count.max(1) as usize);
        Self { count, unused: AtomicU32::new(0), new: queue(), kept: queue() }
    }

    /// Frames that never were used.
    pub(super) fn unused(&self) -> u32 {
        self.count.saturating_sub(self.unused.load(Ordering::Relaxed))
    }

    /// A taken frame is in use again.
    pub(super) fn add(&self, frame: u32, known: bool) {
        // There is room: a frame is in one queue at most.
        let _ = if known { self.kept.push(frame) } else { self.new.push(frame) };
    }

    /// Marks a frame that nobody holds as taken.
    pub(super) fn take(&self, words: &[AtomicU64], need: Need) -> Option<u32> {
        if let Some(frame) = self.take_unused() {
            if take_now(words, frame, 0) {
                return Some(frame);
            }
            self.add(frame, false);
        }
        for _ in 0..STEPS_MAX.min(self.count.saturating_mul(4)) {
            let from_new = self.new.len() as u32 > self.count / NEW_SHARE || self.kept.is_empty();
            if need == Need::Ahead && !from_new {
                return None;
            }
            let queue = if from_new { &self.new } else { &self.kept };
            let frame = queue.pop()?;
            let word = words.get(frame as usize)?;
            let seen = word.load(Ordering::Relaxed);
            let held = seen & (HOLDERS | TAKEN) != 0;
            if !held && seen & USES == 0 && take_now(words, frame, seen) {
                return Some(frame);
            }
            // A use that comes right now may be lost: as if it had come a moment earlier.
            let less = if from_new { seen & !USES } else { seen.wrapping_sub(USE) };
            let stays = !held
                && seen & USES != 0
                && word.compare_exchange(seen, less, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            self.add(frame, stays || !from_new);
        }
        None
    }

    fn take_unused(&self) -> Option<u32> {
        if self.unused() == 0 {
            return None;
        }
        let frame = self.unused.fetch_add(1, Ordering::Relaxed);
        (frame < self.count).then_some(frame)
    }
}

fn take_now(words: &[AtomicU64], frame: u32, seen: u64) -> bool {
    // Acquire: whatever former holders read happened before the frame is filled anew.
    let taken =
        |word: &AtomicU64| word.compare_exchange(seen, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok();
    words.get(frame as usize).is_some_and(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: u32) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    /// Takes a frame and puts it to use.
    fn turn_over(eviction: &Eviction, words: &[AtomicU64]) -> u32 {
        let frame = eviction.take(words, Need::Demand).unwrap();
        words[frame as usize].store(0, Ordering::Relaxed);
        eviction.add(frame, false);
        frame
    }

    #[test]
    fn unused_frames_come_first_and_in_order() {
        let (eviction, words) = (Eviction::new(3), words(3));
        assert_eq!((0..3).map(|_| turn_over(&eviction, &words)).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((eviction.unused(), turn_over(&eviction, &words)), (0, 0));
    }

    #[test]
    fn what_was_used_again_outlives_any_scan_and_is_given_up_in_the_end() {
        let (eviction, words) = (Eviction::new(20), words(20));
        assert!((0..20).all(|frame| turn_over(&eviction, &words) == frame));
        for word in &words[..10] {
            word.fetch_add(USE, Ordering::Relaxed);
        }
        assert!((0..1000).all(|_| turn_over(&eviction, &words) >= 10), "the scan takes its own");
        // All others are held: now the kept ones must go.
        words[10..].iter().for_each(|word| word.store(super::super::frames::HOLDER, Ordering::Relaxed));
        while eviction.new.len() as u32 > 20 / NEW_SHARE {
            eviction.new.pop();
        }
        assert!(eviction.take(&words, Need::Ahead).is_none(), "not for what nobody has asked for");
        assert!(turn_over(&eviction, &words) < 10);
    }
}
