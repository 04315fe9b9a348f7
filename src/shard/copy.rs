//! EXTENDED COPY and WRITE USING TOKEN: segments become portions, each read from one unit and written to another (SPC-4, 5.17).
//!
//! Knows moves between units, here and on other shards, and how a portion moves. Does not know lists and designators
//! (`copy_plan`), what a token stands for (`rods`), nor how another shard is asked (`errands`).
//!
//! | step    | the task's unit | what it does                                             |
//! |---------|-----------------|----------------------------------------------------------|
//! | read    | the source      | a read pass; the data stays where it was read (zeros are not read) |
//! | write   | the destination | its turn, then a write pass from there; zeros as zeros   |
//! | stable  | each written    | fdatasync where the unit writes through                  |
//!
//! A step at a unit of another shard is an errand: that shard does the same with a task of its own, and the data comes
//! or goes as a parcel. Between two portions other commands run. A copy within one unit that would overwrite its own
//! source runs backwards.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::limits;
use crate::plan::WriteKind;
use crate::scsi::{Copy, CopyEnd, Sense, SenseKey, TokenWrite, UnitFault, UnitIndex};
use crate::units::{SECTOR_BYTES, Sector, SectorCount, SectorRange};

use super::copy_plan::Reached;
use super::errands::{Answer, By, Errand, Place};
use super::executor::{Core, TaskKey};
use super::rods::TokenUse;
use super::task::{Pass, Stage, Task, Work};
use super::turns::Turn;

/// One segment, in sectors of the shard's units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CopyMove {
    pub(super) from: Place,
    pub(super) source: Sector,
    pub(super) to: Place,
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

/// What other shards are asked before a copy can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// Who has the units that are not here?
    Units { copy: Copy, reached: Vec<Option<Reached>> },
    /// What does the token stand for?
    Token(Box<TokenWrite>),
}

/// What a copy was waiting for.
#[derive(Debug)]
pub(super) enum News {
    /// Every shard has said which units it has.
    AllFound,
    /// It is its turn to begin a portion with a unit of another shard.
    MayGo,
    Answer(Answer),
}

/// What is done with a portion on another shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Read,
    Write,
    Flush,
}

/// A copy on its way.
#[derive(Debug)]
pub(super) struct CopyWork {
    unit: UnitIndex,
    ending: CopyEnding,
    /// It has not begun.
    pub(super) asks: Option<Asks>,
    /// Who is asked for by name on other shards.
    pub(super) initiator: Option<Arc<str>>,
    moves: VecDeque<CopyMove>,
    /// Sectors of the first move that are copied, and those of the portion that is being copied.
    done: SectorCount,
    portion: SectorCount,
    /// Its portion is one of those that go abroad.
    pub(super) is_abroad: bool,
    pub(super) news: Option<News>,
    step: Step,
    /// Units to make stable at the end.
    flush: Vec<Place>,
    segments: u16,
    bytes: u64,
}

impl CopyWork {
    pub(super) fn new(unit: UnitIndex, ending: CopyEnding) -> Self {
        Self {
            unit,
            ending,
            asks: None,
            initiator: None,
            moves: VecDeque::new(),
            done: SectorCount(0),
            portion: SectorCount(0),
            is_abroad: false,
            news: None,
            step: Step::Read,
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

    pub(super) fn flush_at_the_end(&mut self, place: Place) {
        if !self.flush.contains(&place) {
            self.flush.push(place);
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

    /// It waits to hear where its units are.
    pub(super) fn seeks(&self) -> bool {
        matches!(self.asks, Some(Asks::Units { .. }))
    }

    /// What another shard has of its units.
    pub(super) fn found(&mut self, units: Vec<Option<Reached>>) {
        let Some(Asks::Units { reached, .. }) = &mut self.asks else { return };
        for (place, found) in reached.iter_mut().zip(units) {
            *place = place.or(found);
        }
    }

    /// By what right units of other shards are used: the source's, and the destination's.
    fn right(&self, of_source: bool) -> By {
        match self.token().and_then(TokenUse::serial) {
            Some(serial) if of_source => By::Token(serial),
            _ => By::Initiator(self.initiator.clone().unwrap_or_else(|| "".into())),
        }
    }
}

impl CopyMove {
    fn goes_abroad(&self) -> bool {
        matches!(self.from, Place::Abroad(_)) || matches!(self.to, Place::Abroad(_))
    }
}

impl Core {
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
            self.copy_flush(key);
            return false;
        };
        if first.goes_abroad() && !self.may_go_abroad(key) {
            return false;
        }
        self.copy_portion(key)
    }

    /// All is copied: what writes through is made stable, unit by unit.
    fn copy_flush(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Copy(copy) = &mut task.work else { return };
        match copy.flush.pop() {
            Some(Place::Here(lun)) => {
                task.lun = lun;
                self.sync(key);
            }
            Some(Place::Abroad(unit)) => {
                copy.step = Step::Flush;
                self.ask(key, unit.shard, Errand::Flush { unit }, false);
            }
            None => self.finish(key),
        }
    }

    fn copy_portion(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        task.segments.clear();
        let Work::Copy(copy) = &mut task.work else { return false };
        let Some(first) = copy.moves.front() else { return false };
        let left = first.count.0 - copy.done.0;
        let len = left.min(limits::COPY_PORTION_BYTES / SECTOR_BYTES);
        copy.portion = SectorCount(len);
        if copy.token().is_some_and(TokenUse::writes_zeros) {
            return self.copy_write(key, WriteKind::Zero);
        }
        let start = Sector(first.source.0 + first.offset(copy.done.0, len));
        let range = SectorRange::between(start, Sector(start.0 + len));
        match first.from {
            Place::Here(lun) => {
                task.lun = lun;
                task.start_pass(Pass::Read, range);
                true
            }
            Place::Abroad(unit) => {
                copy.step = Step::Read;
                let by = copy.right(true);
                task.lun = task.home;
                let parcel = core::mem::take(&mut task.parcel);
                self.ask(key, unit.shard, Errand::Read { unit, by, range, parcel }, false);
                false
            }
        }
    }

    /// The portion is read here: it is written where it belongs.
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
        let Some(Task { work: Work::Copy(copy), .. }) = self.tasks.get(key).map(|task| &**task) else {
            return false;
        };
        if kind == WriteKind::Data && copy.moves.front().is_some_and(|it| matches!(it.to, Place::Abroad(_))) {
            // Whoever waits for another shard holds no buffers.
            self.pack(key);
        }
        self.copy_write(key, kind)
    }

    /// The portion takes its turn among the writes of its destination: from its segments, or from its parcel.
    fn copy_write(&mut self, key: TaskKey, kind: WriteKind) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Copy(copy) = &mut task.work else { return false };
        let Some(first) = copy.moves.front() else { return false };
        let len = copy.portion.0;
        let start = Sector(first.destination.0 + first.offset(copy.done.0, len));
        let range = SectorRange::between(start, Sector(start.0 + len));
        match first.to {
            Place::Here(lun) => {
                task.lun = lun;
                task.start_pass(Pass::Write(kind), range);
                self.take_turn(key, Turn::Shared)
            }
            Place::Abroad(unit) => {
                copy.step = Step::Write;
                let (by, zeros) = (copy.right(false), kind == WriteKind::Zero);
                task.lun = task.home;
                task.segments.clear();
                let parcel = core::mem::take(&mut task.parcel);
                self.ask(key, unit.shard, Errand::Write { unit, by, range, zeros, parcel }, true);
                false
            }
        }
    }

    /// Woken from `Stage::Errand`. True when the task can go on at once.
    pub(super) fn copy_heard(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Copy(copy) = &mut task.work else { return false };
        match copy.news.take() {
            None => false,
            Some(News::MayGo) => self.copy_next(key),
            Some(News::AllFound) => {
                self.units_found(key);
                false
            }
            Some(News::Answer(Answer::Opened { unit, serial, ranges })) => {
                self.token_opened(key, unit, serial, &ranges);
                false
            }
            Some(News::Answer(Answer::Done { zeros, parcel })) => {
                task.parcel = parcel;
                match copy.step {
                    Step::Read => self.copy_brought(key, zeros),
                    Step::Write => self.copy_written(key),
                    Step::Flush => self.copy_next(key),
                }
            }
            Some(News::Answer(Answer::Failed(sense))) => {
                let sense = copy.sense_of_unit(sense, true);
                self.fail(key, sense);
                false
            }
            Some(News::Answer(Answer::Found(_))) => false,
        }
    }

    /// Another shard has read the portion.
    fn copy_brought(&mut self, key: TaskKey, zeros: bool) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Copy(copy) = &task.work else { return false };
        if !zeros && task.parcel.len() as u64 != copy.portion.0 * SECTOR_BYTES {
            self.fail_io(key, UnitFault::Internal);
            return false;
        }
        if zeros {
            return self.copy_write(key, WriteKind::Zero);
        }
        task.parcel_waits = copy.moves.front().is_some_and(|first| matches!(first.to, Place::Here(_)));
        self.copy_write(key, WriteKind::Data)
    }

    pub(super) fn copy_written(&mut self, key: TaskKey) -> bool {
        self.leave_turn(key);
        self.back_from_abroad(key);
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
        if !matches!(task.work, Work::Copy(_)) {
            return;
        }
        self.recall(key);
        self.back_from_abroad(key);
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Copy(copy) = &task.work else { return };
        let begun = copy.asks.is_none() && task.stage != Stage::Collect;
        let done = begun && copy.moves.is_empty() && task.sense.is_none();
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
        let here = Place::Here(lun);
        self.moves.iter().any(|it| it.from == here || it.to == here) || self.flush.contains(&here)
    }

    /// What the copy ends with when a unit has failed so: the one that was asked need not be the one that failed. What
    /// a token's copy writes is always the unit that was asked.
    pub(super) fn sense_of_unit(&self, sense: Sense, reads: bool) -> Sense {
        let failed = matches!(sense.key, SenseKey::MediumError | SenseKey::HardwareError);
        let is_list = matches!(self.ending, CopyEnding::List(_));
        if failed && (is_list || reads) {
            return Sense { format: sense.format, ..Sense::COPY_THIRD_PARTY };
        }
        sense
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
