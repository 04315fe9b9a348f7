//! Read-ahead: a unit that is read in order has its next golden pages read before it asks.
//!
//! Knows streams: reads that begin where another ended. Does not know the cache, nor who reads.
//!
//! A boot loader reads a kernel in order, a few KiB at a time, and waits for each. But most of what a boot reads is not
//! in order, and what is read ahead for nothing is read by every cold server of a room. So a stream must have come a
//! long way first, may then be ahead by an eighth of that way, and only while the disk is what it waits for: data that
//! is in memory already is not looked for. Over two recorded boots (62.7 and 63.3 MB in 4 KiB pages) this reads 1.2 %
//! and 0.6 % more than was asked for, in half as many operations; a window as long as the way reads 7 to 17 % more.

use crate::plan::{ReadStep, Source};
use crate::units::{ByteOffset, SECTOR_BYTES, Sector, SectorRange};

use super::executor::Core;

/// Streams of one unit: who reads several files at once reads few.
const STREAMS: usize = 4;
/// How far a stream must have come, in sectors.
const PROVEN_SECTORS: u64 = 512 * 1024 / SECTOR_BYTES;
/// The window is the way come, divided by this.
const SHARE: u64 = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The sector after the last one read.
    next: u64,
    /// Sectors read in order so far.
    run: u64,
    /// Sectors before this one are read or being read.
    ahead: u64,
    /// The disk was waited for, or had to read, since the last look.
    cold: bool,
}

/// The streams of one unit, the one used last first.
#[derive(Debug, Default)]
pub(super) struct Streams([Stream; STREAMS]);

impl Streams {
    /// A read of `range`, which `waited` for a disk or did not. What is to be read ahead, of at most `max` sectors.
    fn note(&mut self, range: SectorRange, waited: bool, max: u64) -> Option<SectorRange> {
        let (start, end) = (range.start().0, range.end().0);
        let known = self.0.iter().position(|stream| stream.run > 0 && stream.next == start);
        let place = known.unwrap_or(STREAMS - 1);
        if known.is_none() {
            self.0[place] = Stream::default();
        }
        self.0[..=place].rotate_right(1);
        let [stream, ..] = &mut self.0;
        stream.next = end;
        stream.run += range.count().0;
        stream.cold |= waited;
        let window = (stream.run / SHARE).min(max);
        if stream.run < PROVEN_SECTORS || !stream.cold || stream.ahead >= end + window / 2 {
            return None;
        }
        let from = stream.ahead.max(end);
        stream.ahead = end + window;
        stream.cold = false;
        Some(SectorRange::between(Sector(from), Sector(stream.ahead)))
    }

    /// What was to be read ahead was not in memory yet: so may be what follows.
    fn was_cold(&mut self) {
        let [stream, ..] = &mut self.0;
        stream.cold = true;
    }
}

impl Core {
    /// A read of a unit has begun; begins what may be wanted next.
    pub(super) fn read_ahead(&mut self, lun: u32, range: SectorRange, waited: bool) {
        let max = self.read_ahead_bytes / SECTOR_BYTES;
        let lun = &mut self.luns[lun as usize];
        if max == 0 || range.is_empty() {
            return;
        }
        let Some(mut left) = lun.streams.note(range, waited, max) else { return };
        left = left.take(crate::units::SectorCount(lun.chain.sectors().0.saturating_sub(left.start().0)));
        let mut plan = core::mem::take(&mut self.read_plan);
        let before = self.cache.claimed();
        while !left.is_empty() {
            // A bitmap that is not in memory is not worth a read for what nobody has asked for.
            let ReadStep::Ready { covered } = self.images.resolve_read(&lun.chain, left, &mut plan) else {
                break;
            };
            left = left.skip(covered);
            for extent in &plan.extents {
                if let Source::File { file, offset, immutable: true } = extent.source {
                    self.cache.prefetch(file, ByteOffset(offset.0), extent.len);
                }
            }
        }
        if self.cache.claimed() > before {
            lun.streams.was_cold();
        }
        self.read_plan = plan;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 1024;

    fn range(start: u64, count: u64) -> SectorRange {
        SectorRange::between(Sector(start), Sector(start + count))
    }

    /// Reads `sectors` in order from `start`, 16 at a time; what was read ahead.
    fn read(streams: &mut Streams, start: u64, sectors: u64, waited: bool) -> Vec<SectorRange> {
        let steps = (start..start + sectors).step_by(16);
        steps.filter_map(|at| streams.note(range(at, 16), waited, MAX)).collect()
    }

    #[test]
    fn a_stream_must_come_a_long_way_and_is_ahead_by_a_share_of_it() {
        let mut streams = Streams::default();
        assert_eq!(read(&mut streams, 1000, PROVEN_SECTORS - 16, true), []);
        let ahead = read(&mut streams, 1000 + PROVEN_SECTORS - 16, 16, true);
        let end = 1000 + PROVEN_SECTORS;
        assert_eq!(ahead, [range(end, PROVEN_SECTORS / SHARE)]);
        let far = read(&mut streams, end, 100 * MAX, true).last().unwrap().end().0;
        let end = end + 100 * MAX;
        assert!((end + MAX / 2..=end + MAX).contains(&far), "it is ahead by half a window at least");
    }

    #[test]
    fn what_is_in_memory_is_not_looked_for() {
        let mut streams = Streams::default();
        assert_eq!(read(&mut streams, 0, 10 * PROVEN_SECTORS, false), []);
        assert_eq!(read(&mut streams, 10 * PROVEN_SECTORS, 16, true).len(), 1);
        assert_eq!(read(&mut streams, 10 * PROVEN_SECTORS + 16, 10 * PROVEN_SECTORS, false), []);
    }

    #[test]
    fn streams_go_on_beside_each_other_and_scattered_reads_are_none() {
        let mut streams = Streams::default();
        for at in (0..2 * PROVEN_SECTORS).step_by(16) {
            streams.note(range(at, 16), true, 0);
            streams.note(range(1 << 30 | at, 16), true, 0);
            assert_eq!(streams.note(range(1 << 40 | (at * 7919), 16), true, MAX), None);
        }
        assert_eq!(read(&mut streams, 2 * PROVEN_SECTORS, 16, true).len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_read_ahead_twice_in_one_stream_and_never_more_than_the_window(
            steps in proptest::collection::vec((1_u64..200, any::<bool>()), 1..400),
        ) {
            let (mut streams, mut at, mut ahead_to) = (Streams::default(), 5, 0);
            for (count, waited) in steps {
                let ahead = streams.note(range(at, count), waited, MAX);
                at += count;
                if let Some(ahead) = ahead {
                    prop_assert!(ahead.start().0 >= at.max(ahead_to) && !ahead.is_empty());
                    prop_assert!(ahead.end().0 - at <= MAX.min((at - 5) / SHARE));
                    ahead_to = ahead.end().0;
                }
            }
        }
    }
}
