//! EXTENDED COPY and WRITE USING TOKEN: segments become portions, each read from one unit and written to another (SPC-4, 5.17).
//!
//! Knows which units an EXTENDED COPY may reach: those of the target that was asked, and of other targets of this shard in
//! which the same initiator has a session. Does not know lists and designators (`scsi`), nor what a token stands for
//! (`rods`), nor how a portion moves.
//!
//! | step    | the task's unit | what it does                                             |
//! |---------|-----------------|----------------------------------------------------------|
//! | read    | the source      | a read pass; the data stays where it was read (zeros are not read) |
//! | write   | the destination | its turn, then a write pass from there; zeros as zeros   |
//! | stable  | each written    | fdatasync where the unit writes through                  |
//!
//! Between two portions other commands run. A copy within one unit that would overwrite its own source runs backwards.

use std::collections::VecDeque;

use crate::limits;
use crate::plan::WriteKind;
use crate::scsi::{Copy, CopyDevice, CopyEnd, CopyLen, CopySegment, Nexus, Sense, UnitIndex};
use crate::units::{BlockCount, BlockRange, Lba, SECTOR_BYTES, Sector, SectorCount, SectorRange};

use super::executor::{Core, TaskKey};
use super::rods::TokenUse;
use super::task::{Pass, Stage, Work};
use super::turns::Turn;

/// One segment, in sectors of the shard's units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CopyMove {
    pub(super) from: u32,
    pub(super) source: Sector,
    pub(super) to: u32,
    pub(super) destination: Sector,
    pub(super) count: SectorCount,
}

/// Whom the end of a copy is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CopyEnding {
    /// EXTENDED COPY, by what RECEIVE COPY RESULTS may ask for it.
    List(Option<u8>),
    Token(TokenUse),
}

/// A copy on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CopyWork {
    unit: UnitIndex,
    ending: CopyEnding,
    moves: VecDeque<CopyMove>,
    /// Sectors of the first move that are copied, and those of the portion that is being copied.
    done: SectorCount,
    portion: SectorCount,
    /// Units to make stable at the end.
    flush: Vec<u32>,
    segments: u16,
    bytes: u64,
}

impl CopyWork {
    pub(super) fn new(unit: UnitIndex, ending: CopyEnding) -> Self {
        Self {
            unit,
            ending,
            moves: VecDeque::new(),
            done: SectorCount(0),
            portion: SectorCount(0),
            flush: Vec::new(),
            segments: 0,
            bytes: 0,
        }
    }

    pub(super) fn unit(&self) -> UnitIndex {
        self.unit
    }

    pub(super) fn add(&mut self, moves: impl IntoIterator<Item = CopyMove>) {
        self.moves.extend(moves);
    }

    pub(super) fn flush_at_the_end(&mut self, lun: u32) {
        if !self.flush.contains(&lun) {
            self.flush.push(lun);
        }
    }

    pub(super) fn token(&self) -> Option<&TokenUse> {
        match &self.ending {
            CopyEnding::Token(token) => Some(token),
            CopyEnding::List(_) => None,
        }
    }

    /// It ends with the portion it is at.
    pub(super) fn terminate(&mut self) {
        if let CopyEnding::Token(token) = &mut self.ending {
            token.terminate();
        }
    }
}

/// A unit a copy may reach.
#[derive(Clone, Copy, Debug)]
struct Reached {
    target: usize,
    unit: UnitIndex,
    nexus: Nexus,
}

impl Core {
    /// Begins a copy, or ends it at once when a segment cannot be done: then nothing is copied.
    pub(super) fn begin_copy(&mut self, key: TaskKey, unit: UnitIndex, copy: &Copy) {
        let Some(task) = self.tasks.get(key) else { return };
        let (target, nexus) = (task.target as usize, task.nexus);
        let mut work = CopyWork::new(unit, CopyEnding::List(copy.list));
        let reached: Vec<_> = copy.devices.iter().map(|device| self.reach(target, nexus, device)).collect();
        let mut refused = None;
        for segment in &copy.segments {
            match self.plan_move(segment, &reached, &mut work) {
                Ok(planned) => work.add([planned]),
                Err(sense) => refused = refused.or(Some(sense)),
            }
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Copy(Box::new(work));
        if let Some(sense) = refused {
            self.fail(key, sense);
        } else {
            self.execute(key);
        }
    }

    /// The unit a designator names, where this initiator may use it.
    fn reach(&self, target: usize, nexus: Nexus, device: &CopyDevice) -> Option<Reached> {
        if let Some(unit) = self.targets[target].device.copy_device(nexus, device) {
            return Some(Reached { target, unit, nexus });
        }
        let name = &self.targets[target].sessions.iter().find(|entry| entry.nexus == nexus)?.initiator;
        // What is being emptied or changed is not there for the moment.
        let mut others = self.targets.iter().enumerate().filter(|(_, other)| !other.is_held());
        others.find_map(|(target, other)| {
            let mut entries = other.sessions.iter().filter(|entry| entry.initiator == *name);
            entries.find_map(|entry| {
                let unit = other.device.copy_device(entry.nexus, device)?;
                Some(Reached { target, unit, nexus: entry.nexus })
            })
        })
    }

    fn plan_move(
        &self,
        segment: &CopySegment,
        reached: &[Option<Reached>],
        work: &mut CopyWork,
    ) -> Result<CopyMove, Sense> {
        let unit = |place: usize| reached.get(place).copied().flatten().ok_or(Sense::COPY_UNREACHABLE);
        let (from, to) = (unit(segment.from)?, unit(segment.to)?);
        let lun = |end: Reached| self.targets[end.target].lun(end.unit);
        let per_block = |end: Reached| self.luns[lun(end) as usize].block_size.sectors();
        let (sectors, may_split) = match segment.len {
            CopyLen::SourceBlocks(blocks) => (blocks.0.saturating_mul(per_block(from)), false),
            CopyLen::DestinationBlocks(blocks) => (blocks.0.saturating_mul(per_block(to)), false),
            CopyLen::Sectors(sectors) => (sectors.0, true),
        };
        // The blocks it touches.
        let range = |end: Reached, lba: Lba, offset: SectorCount| {
            let per_block = per_block(end);
            if !may_split && !sectors.is_multiple_of(per_block) {
                return Err(Sense::COPY_INEXACT);
            }
            let start = Lba(lba.0.saturating_add(offset.0 / per_block));
            let count = if sectors == 0 { 0 } else { (offset.0 % per_block + sectors).div_ceil(per_block) };
            Ok(BlockRange { start, count: BlockCount(count) })
        };
        let source = range(from, segment.source, segment.source_offset)?;
        let destination = range(to, segment.destination, segment.destination_offset)?;
        self.targets[from.target].device.may_copy(from.nexus, from.unit, source, false)?;
        let device = &self.targets[to.target].device;
        device.may_copy(to.nexus, to.unit, destination, true)?;
        if device.writes_through(to.unit) {
            work.flush_at_the_end(lun(to));
        }
        let first = |end: Reached, range: BlockRange, offset: SectorCount| {
            Sector(range.start.0.saturating_mul(per_block(end)).saturating_add(offset.0 % per_block(end)))
        };
        Ok(CopyMove {
            from: lun(from),
            source: first(from, source, segment.source_offset),
            to: lun(to),
            destination: first(to, destination, segment.destination_offset),
            count: SectorCount(sectors),
        })
    }

    /// The next portion, or the end. True when the task can go on at once.
    pub(super) fn copy_next(&mut self, key: TaskKey) -> bool {
        let stopping = self.stopping;
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Copy(copy) = &mut task.work else { return false };
        if stopping && task.background {
            copy.terminate();
        }
        if copy.token().is_some_and(TokenUse::is_terminated) {
            copy.moves.clear();
        }
        while copy.moves.front().is_some_and(|first| copy.done >= first.count) {
            copy.moves.pop_front();
            copy.done = SectorCount(0);
            copy.segments += 1;
        }
        let Some(first) = copy.moves.front() else {
            match copy.flush.pop() {
                Some(lun) => {
                    task.lun = lun;
                    self.sync(key);
                }
                None => self.finish(key),
            }
            return false;
        };
        let left = first.count.0 - copy.done.0;
        let len = left.min(limits::COPY_PORTION_BYTES / SECTOR_BYTES);
        copy.portion = SectorCount(len);
        task.segments.clear();
        if copy.token().is_some_and(TokenUse::writes_zeros) {
            let start = Sector(first.destination.0 + copy.done.0);
            task.lun = first.to;
            task.start_pass(Pass::Write(WriteKind::Zero), SectorRange::between(start, Sector(start.0 + len)));
            return self.take_turn(key, Turn::Shared);
        }
        let start = Sector(first.source.0 + first.offset(copy.done.0, len));
        task.lun = first.from;
        let range = SectorRange::between(start, Sector(start.0 + len));
        task.start_pass(Pass::Read, range);
        true
    }

    /// The portion is read: it takes its turn among the writes of the destination.
    pub(super) fn copy_read(&mut self, key: TaskKey) -> bool {
        let zeros = self.pool.zero_chunk();
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let kind = if task.is_all_zero(&zeros) { WriteKind::Zero } else { WriteKind::Data };
        let Work::Copy(copy) = &task.work else { return false };
        if let Some(token) = copy.token().cloned()
            && let Err(sense) = self.token_still_good(&token)
        {
            self.fail(key, sense);
            return false;
        }
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Copy(copy) = &task.work else { return false };
        let Some(first) = copy.moves.front() else { return false };
        let len = copy.portion.0;
        let start = Sector(first.destination.0 + first.offset(copy.done.0, len));
        task.lun = first.to;
        task.start_pass(Pass::Write(kind), SectorRange::between(start, Sector(start.0 + len)));
        self.take_turn(key, Turn::Shared)
    }

    pub(super) fn copy_written(&mut self, key: TaskKey) -> bool {
        self.leave_turn(key);
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Copy(copy) = &mut task.work else { return false };
        copy.done.0 += copy.portion.0;
        copy.bytes += copy.portion.0 * SECTOR_BYTES;
        self.copy_next(key)
    }

    /// The task ends, one way or the other: whoever asks with RECEIVE COPY RESULTS is to know.
    pub(super) fn copy_left(&mut self, key: TaskKey) {
        self.populate_left(key);
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Copy(copy) = &task.work else { return };
        let done = copy.moves.is_empty() && task.stage != Stage::Collect && task.sense.is_none();
        let sense = if done { None } else { Some(task.sense.unwrap_or(Sense::COPY_ABORTED)) };
        let end = CopyEnd { segments: copy.segments, bytes: copy.bytes, sense };
        let (unit, target, nexus) = (copy.unit, task.target as usize, task.nexus);
        let Work::Copy(copy) = core::mem::replace(&mut task.work, Work::Reply) else { return };
        task.segments.clear();
        match &copy.ending {
            CopyEnding::List(None) => {}
            CopyEnding::List(Some(list)) => self.targets[target].device.copy_ended(nexus, unit, *list, end),
            CopyEnding::Token(token) => self.token_left(target, unit, token, end.bytes, sense),
        }
    }
}

impl CopyWork {
    /// It has still to read, write or flush this unit.
    pub(super) fn touches(&self, lun: u32) -> bool {
        self.moves.iter().any(|it| it.from == lun || it.to == lun) || self.flush.contains(&lun)
    }
}

impl CopyMove {
    /// Where in the segment the portion behind `done` sectors lies.
    fn offset(&self, done: u64, len: u64) -> u64 {
        let ahead = self.from == self.to
            && self.destination > self.source
            && self.destination.0 < self.source.0 + self.count.0;
        if ahead { self.count.0 - done - len } else { done }
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::bench::Bench;
    use proptest::prelude::*;

    /// The designator of the bench's unit, as its page 83h names it.
    fn list(bench: &mut Bench, segments: &[(u64, u64, u16)]) -> Vec<u8> {
        let page = bench.begin(&[0x12, 1, 0x83, 1, 0, 0], &[], 256);
        let page = bench.reply(page).unwrap().data;
        let mut list = vec![0; 16];
        list[0] = 9;
        list[3] = 32;
        list[8..12].copy_from_slice(&(segments.len() as u32 * 28).to_be_bytes());
        list.extend([0xE4, 0, 0, 0, 1, 3, 0, 8]);
        list.extend(&page[8..16]);
        list.extend([0; 14]);
        list.extend([2, 0]);
        for (source, destination, count) in segments {
            list.extend([2, 0, 0, 24, 0, 0, 0, 0, 0, 0]);
            list.extend(count.to_be_bytes());
            list.extend(source.to_be_bytes());
            list.extend(destination.to_be_bytes());
        }
        list
    }

    fn copy(bench: &mut Bench, segments: &[(u64, u64, u16)]) -> (u8, Option<(u8, u8)>) {
        let list = list(bench, segments);
        let mut cdb = [0; 16];
        cdb[0] = 0x83;
        cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
        let task = bench.begin(&cdb, &list, 0);
        bench.settle();
        let ended = bench.reply(task).unwrap();
        (ended.status, ended.sense)
    }

    fn numbered(bench: &mut Bench) -> Vec<u8> {
        for (index, sector) in bench.disk.chunks_exact_mut(512).enumerate() {
            sector.fill(index as u8 | 1);
        }
        bench.disk.clone()
    }

    #[test]
    fn segments_are_copied_in_order_and_the_status_tells_of_them() {
        let mut bench = Bench::new();
        let before = numbered(&mut bench);
        assert_eq!(copy(&mut bench, &[(0, 100, 3), (100, 200, 2)]), (0, None));
        assert_eq!(bench.disk[100 * 512..103 * 512], before[..3 * 512]);
        assert_eq!(bench.disk[200 * 512..202 * 512], before[..2 * 512], "what the first segment wrote");
        let status = bench.begin(&[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64);
        assert_eq!(bench.reply(status).unwrap().data, [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn a_segment_of_bytes_begins_within_its_blocks() {
        let mut bench = Bench::new();
        let before = numbered(&mut bench);
        let mut list = list(&mut bench, &[]);
        list[11] = 32;
        list.extend([0x0A, 0, 0, 28, 0, 0, 0, 0]);
        list.extend(1536u32.to_be_bytes());
        list.extend(4u64.to_be_bytes());
        list.extend(100u64.to_be_bytes());
        list.extend([2, 0, 4, 0]);
        let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0, 0];
        let task = bench.begin(&cdb, &list, 0);
        bench.settle();
        let ended = bench.reply(task).unwrap();
        assert_eq!((ended.status, ended.sense), (0, None));
        assert_eq!(bench.disk[102 * 512..105 * 512], before[5 * 512..8 * 512]);
        assert_eq!(bench.disk[105 * 512..], before[105 * 512..]);
    }

    #[test]
    fn a_copy_onto_itself_does_not_eat_its_source() {
        for (source, destination) in [(0, 7), (7, 0)] {
            let mut bench = Bench::new();
            let before = numbered(&mut bench);
            assert_eq!(copy(&mut bench, &[(source, destination, 1000)]), (0, None));
            let (source, destination) = (source as usize * 512, destination as usize * 512);
            assert_eq!(bench.disk[destination..][..512_000], before[source..][..512_000]);
        }
    }

    #[test]
    fn zeros_are_copied_as_holes() {
        let mut bench = Bench::new();
        numbered(&mut bench);
        bench.disk[..64 * 512].fill(0);
        assert_eq!(copy(&mut bench, &[(0, 500, 64)]), (0, None));
        assert!(bench.disk[500 * 512..564 * 512].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_cannot_be_reached_ends_the_copy_before_it_begins() {
        let mut bench = Bench::new();
        let before = numbered(&mut bench);
        assert_eq!(copy(&mut bench, &[(0, 100, 3), (0, 1023, 2)]), (2, Some((0, 0))), "beyond the end");
        let mut list = list(&mut bench, &[(0, 100, 3)]);
        list[16 + 8] ^= 0xFF;
        let mut cdb = [0; 16];
        cdb[0] = 0x83;
        cdb[13] = list.len() as u8;
        let task = bench.begin(&cdb, &list, 0);
        assert_eq!(bench.reply(task).unwrap().sense, Some((0x0D, 2)), "another unit");
        assert_eq!(bench.disk, before);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Segment after segment, each as if its source were read whole before any of it is written.
        #[test]
        fn a_copy_is_what_its_segments_say_one_by_one(
            segments in prop::collection::vec((0..1024_u64, 0..1024_u64, 0..300_u16), 0..8)
        ) {
            let mut bench = Bench::new();
            let mut expected = numbered(&mut bench);
            bench.disk[..20 * 512].fill(0);
            expected[..20 * 512].fill(0);
            let fits = |start: u64, count: u16| start + u64::from(count) <= 1024;
            let whole = segments.iter().all(|(from, to, count)| fits(*from, *count) && fits(*to, *count));
            for (from, to, count) in segments.iter().filter(|_| whole) {
                let (from, to, len) = (*from as usize * 512, *to as usize * 512, usize::from(*count) * 512);
                expected.copy_within(from..from + len, to);
            }
            let (status, sense) = copy(&mut bench, &segments);
            prop_assert_eq!((status, sense), if whole { (0, None) } else { (2, Some((0, 0))) });
            prop_assert!(bench.disk == expected);
        }
    }
}
