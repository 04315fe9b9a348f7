//! Turns at a unit: a command that reads and then writes runs with no other write of its unit in between, an atomic
//! write with no other command at all.
//!
//! Knows who writes and who waits, first come first served. Does not know ranges: COMPARE AND WRITE and ORWRITE are
//! rare and short, so they have the whole unit (SBC-4, 4.29 asks only for the blocks they name).
//!
//! A task takes its turn when all its data-out is here, never before: no initiator can make others wait by sending
//! slowly. It leaves when it is finished, or when it is aborted and its last file operation has ended.

use std::collections::VecDeque;

use super::executor::{Core, TaskKey};
use super::task::{Stage, Work};

/// How a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Turn {
    /// Not at all.
    #[default]
    None,
    /// It reads, beside anything but an atomic write.
    Reads,
    /// Beside other writes.
    Shared,
    /// The only one that writes.
    Alone,
    /// The only one that writes or reads.
    Atomic,
}

/// One unit's turns. While somebody waits, somebody writes.
#[derive(Debug, Default)]
pub(super) struct Turns {
    writing: u32,
    alone: bool,
    reading: u32,
    atomic: bool,
    /// Atomic writes among the waiting: reads do not overtake them.
    atomic_waiting: u32,
    waiting: VecDeque<TaskKey>,
}

impl Turns {
    fn admits(&self, turn: Turn) -> bool {
        match turn {
            Turn::None => true,
            Turn::Reads => !self.atomic,
            Turn::Shared => !self.alone,
            Turn::Alone => self.writing == 0,
            Turn::Atomic => self.writing == 0 && self.reading == 0,
        }
    }

    /// A read that comes now waits for nobody.
    pub(super) fn lets_reads_pass(&self) -> bool {
        self.atomic_waiting == 0 && self.admits(Turn::Reads)
    }

    /// A write that comes now waits for nobody.
    pub(super) fn lets_writes_pass(&self) -> bool {
        self.waiting.is_empty() && self.admits(Turn::Shared)
    }

    fn enter(&mut self, turn: Turn) {
        match turn {
            Turn::None => {}
            Turn::Reads => self.reading += 1,
            _ => self.writing += 1,
        }
        self.alone |= matches!(turn, Turn::Alone | Turn::Atomic);
        self.atomic |= turn == Turn::Atomic;
    }

    fn leave(&mut self, turn: Turn) {
        match turn {
            Turn::None => {}
            Turn::Reads => self.reading -= 1,
            _ => {
                self.writing -= 1;
                (self.alone, self.atomic) = (false, false);
            }
        }
    }
}

impl Work {
    fn turn(&self) -> Turn {
        match self {
            Self::Write { .. } | Self::WriteSame { .. } | Self::Zero { .. } | Self::Copy(_) => Turn::Shared,
            Self::CompareAndWrite { .. } | Self::OrWrite { .. } | Self::Sanitize(_) | Self::Populate(_) => {
                Turn::Alone
            }
            Self::WriteAtomic(_) => Turn::Atomic,
            Self::Read | Self::Verify { .. } => Turn::Reads,
            Self::Errand(errand) => errand.turn(),
            _ => Turn::None,
        }
    }
}

impl Core {
    /// Starts a command that has all its data, now or when its turn comes.
    pub(super) fn execute(&mut self, key: TaskKey) {
        if !self.is_in_order(key) {
            return;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        match task.work {
            Work::Flush => {
                self.sync(key);
                return;
            }
            Work::Errand(ref errand) if errand.flushes() => {
                self.sync(key);
                return;
            }
            // Its turns come portion by portion, at the units it writes.
            Work::Copy(_) => {
                task.stage = Stage::Resolve;
                if !self.copy_next(key) {
                    return;
                }
            }
            _ => {
                let turn = task.work.turn();
                if !self.take_turn(key, turn) {
                    return;
                }
            }
        }
        self.advance(key);
    }

    /// False: it waits, and becomes ready when its turn has come.
    pub(super) fn take_turn(&mut self, key: TaskKey, turn: Turn) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let lun = &mut self.luns[task.lun as usize];
        if turn != Turn::None {
            let queued = match turn {
                Turn::Reads => lun.turns.atomic_waiting > 0,
                _ => !lun.turns.waiting.is_empty(),
            };
            if queued || !lun.turns.admits(turn) {
                lun.turns.atomic_waiting += u32::from(turn == Turn::Atomic);
                task.stage = Stage::Turn;
                lun.turns.waiting.push_back(key);
                return false;
            }
            lun.turns.enter(turn);
            task.turn = turn;
            if turn != Turn::Reads {
                lun.writes_begin(&task.work, task.range);
            }
        }
        task.stage = Stage::Resolve;
        true
    }

    /// The task writes no more.
    pub(super) fn leave_turn(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let turn = core::mem::take(&mut task.turn);
        if turn != Turn::None {
            let lun = task.lun;
            self.luns[lun as usize].turns.leave(turn);
            self.next_turns(lun);
        }
    }

    /// The task waits no more.
    pub(super) fn give_up_turn(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get(key) else { return };
        let lun = task.lun;
        let turns = &mut self.luns[lun as usize].turns;
        turns.atomic_waiting -= u32::from(task.work.turn() == Turn::Atomic);
        turns.waiting.retain(|waiting| *waiting != key);
        self.next_turns(lun);
    }

    fn next_turns(&mut self, lun: u32) {
        let lun = &mut self.luns[lun as usize];
        while let Some(key) = lun.turns.waiting.front().copied() {
            if let Some(task) = self.tasks.get_mut(key) {
                let turn = task.work.turn();
                if !lun.turns.admits(turn) {
                    return;
                }
                lun.turns.enter(turn);
                if turn != Turn::Reads {
                    lun.writes_begin(&task.work, task.range);
                }
                lun.turns.atomic_waiting -= u32::from(turn == Turn::Atomic);
                task.turn = turn;
                task.stage = Stage::Resolve;
                self.ready.push_back(key);
            }
            lun.turns.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Op;
    use crate::shard::bench::{Bench, Ended};

    #[test]
    fn writes_share_and_a_read_then_write_is_alone() {
        let mut turns = Turns::default();
        assert!(turns.admits(Turn::Alone) && turns.admits(Turn::Shared));
        turns.enter(Turn::Shared);
        turns.enter(Turn::Shared);
        assert!(turns.admits(Turn::Shared) && !turns.admits(Turn::Alone));
        turns.leave(Turn::Shared);
        assert!(!turns.admits(Turn::Alone));
        turns.leave(Turn::Shared);
        turns.enter(Turn::Alone);
        assert!(!turns.admits(Turn::Alone) && !turns.admits(Turn::Shared));
        turns.leave(Turn::Alone);
        assert!(turns.admits(Turn::Alone));
    }

    const GOOD: u8 = 0;
    const CHECK_CONDITION: u8 = 2;

    fn compare_and_write(bench: &mut Bench, from: u8, to: u8) -> TaskKey {
        let mut data = vec![from; 512];
        data.resize(1024, to);
        bench.begin(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &data, 0)
    }

    fn write(bench: &mut Bench, byte: u8) -> TaskKey {
        bench.begin(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[byte; 512], 0)
    }

    fn status(bench: &Bench, key: TaskKey) -> Option<u8> {
        bench.reply(key).map(|ended| ended.status)
    }

    #[test]
    fn compare_and_write_waits_for_writes_and_keeps_later_ones_waiting() {
        let mut bench = Bench::new();
        let before = write(&mut bench, 1);
        let swap = compare_and_write(&mut bench, 1, 2);
        let after = write(&mut bench, 3);
        let mut ops = bench.ops();
        assert_eq!(ops.len(), 1, "the write alone: {ops:?}");
        bench.complete(ops.remove(0));
        assert_eq!(status(&bench, before), Some(GOOD));
        let mut ops = bench.ops();
        assert!(matches!(ops[..], [(_, Op::Read { .. })]), "the comparison alone: {ops:?}");
        bench.complete(ops.remove(0));
        assert_eq!(status(&bench, after), None);
        bench.settle();
        assert_eq!((status(&bench, swap), status(&bench, after)), (Some(GOOD), Some(GOOD)));
        assert_eq!(bench.disk[..513], [&[3; 512][..], &[0]].concat());
    }

    #[test]
    fn of_two_swaps_of_the_same_block_one_loses() {
        let mut bench = Bench::new();
        let first = compare_and_write(&mut bench, 0, 1);
        let second = compare_and_write(&mut bench, 0, 2);
        bench.settle();
        assert_eq!(status(&bench, first), Some(GOOD));
        let Ended { status: lost, sense, .. } = bench.reply(second).unwrap();
        assert_eq!((lost, sense), (CHECK_CONDITION, Some((0x1D, 0))));
        assert_eq!(bench.disk[0], 1);
    }

    #[test]
    fn an_aborted_command_gives_its_turn_up() {
        let mut bench = Bench::new();
        write(&mut bench, 1);
        let waiting = compare_and_write(&mut bench, 1, 2);
        let third = write(&mut bench, 3);
        assert!(bench.core.abort(waiting), "nothing of it is under way");
        let ops = bench.ops();
        assert_eq!(ops.len(), 2, "both writes: {ops:?}");
        ops.into_iter().for_each(|op| bench.complete(op));
        assert_eq!(status(&bench, third), Some(GOOD));

        let running = compare_and_write(&mut bench, 3, 4);
        let last = write(&mut bench, 5);
        assert!(!bench.core.abort(running), "its read is with the ring");
        let mut ops = bench.ops();
        assert_eq!(ops.len(), 1, "the read it began: {ops:?}");
        bench.complete(ops.remove(0));
        bench.settle();
        assert_eq!((status(&bench, last), bench.disk[0]), (Some(GOOD), 5));
        assert_eq!(bench.core.targets[0].aborted_in_flight, 0);
    }

    #[test]
    fn or_write_combines_what_is_there_with_the_data() {
        let mut bench = Bench::new();
        bench.disk[..70_000].fill(0x0F);
        let blocks = 200u8;
        let data = vec![0xA0; 512 * usize::from(blocks)];
        let done = bench.begin(&[0x8B, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, blocks], &data, 0);
        bench.settle();
        assert_eq!(status(&bench, done), Some(GOOD));
        assert!(bench.disk[..70_000].iter().all(|byte| *byte == 0xAF));
        assert!(bench.disk[70_000..data.len()].iter().all(|byte| *byte == 0xA0));
        assert_eq!(bench.disk[data.len()], 0);
    }

    #[test]
    fn data_out_of_another_length_ends_what_needs_all_of_it() {
        let swap = |count| [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count];
        let same = [0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        let mut bench = Bench::new();
        for (cdb, len) in
            [(&swap(1)[..], 2048), (&swap(3), 2048), (&swap(0), 512), (&same, 256), (&same, 1024)]
        {
            let refused = bench.begin(cdb, &vec![7; len], 0);
            let Ended { status, sense, .. } = bench.reply(refused).unwrap();
            assert_eq!((status, sense), (CHECK_CONDITION, Some((0x24, 0))), "{cdb:02x?} {len}");
        }
        let empty = bench.begin(&swap(0), &[], 0);
        bench.settle();
        assert_eq!(status(&bench, empty), Some(GOOD), "nothing is compared");
        let short = bench.begin(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 4, 0], &[9; 1024], 0);
        bench.settle();
        assert_eq!((status(&bench, short), bench.disk[1023], bench.disk[1024]), (Some(GOOD), 9, 0));
        let torn = bench.begin(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 4, 0], &[8; 700], 0);
        bench.settle();
        let Ended { status, sense, .. } = bench.reply(torn).unwrap();
        assert_eq!((status, sense), (CHECK_CONDITION, Some((0x0E, 3))), "it ends within a block");
        assert_eq!(bench.disk[0], 9, "nothing of it is written");
    }
}
