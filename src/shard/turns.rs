//! Turns at a unit: a command that reads and then writes runs with no other write of its unit in between.
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
    /// Beside other writes.
    Shared,
    /// Alone.
    Alone,
}

/// One unit's turns. While somebody waits, somebody writes.
#[derive(Debug, Default)]
pub(super) struct Turns {
    writing: u32,
    alone: bool,
    waiting: VecDeque<TaskKey>,
}

impl Turns {
    fn admits(&self, turn: Turn) -> bool {
        match turn {
            Turn::None => true,
            Turn::Shared => !self.alone,
            Turn::Alone => self.writing == 0,
        }
    }

    fn enter(&mut self, turn: Turn) {
        self.writing += u32::from(turn != Turn::None);
        self.alone |= turn == Turn::Alone;
    }

    fn leave(&mut self, turn: Turn) {
        self.writing -= u32::from(turn != Turn::None);
        self.alone &= turn != Turn::Alone;
    }
}

impl Work {
    fn turn(&self) -> Turn {
        match self {
            Self::Write { .. } | Self::WriteSame { .. } | Self::Zero { .. } => Turn::Shared,
            Self::CompareAndWrite { .. } | Self::OrWrite { .. } => Turn::Alone,
            _ => Turn::None,
        }
    }
}

impl Core {
    /// Starts a command that has all its data, now or when its turn comes.
    pub(super) fn execute(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let turn = task.work.turn();
        let turns = &mut self.luns[task.lun as usize].turns;
        if turn != Turn::None {
            if !turns.waiting.is_empty() || !turns.admits(turn) {
                task.stage = Stage::Turn;
                turns.waiting.push_back(key);
                return;
            }
            turns.enter(turn);
            task.turn = turn;
        }
        self.advance(key);
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
        self.luns[lun as usize].turns.waiting.retain(|waiting| *waiting != key);
        self.next_turns(lun);
    }

    fn next_turns(&mut self, lun: u32) {
        let turns = &mut self.luns[lun as usize].turns;
        while let Some(key) = turns.waiting.front().copied() {
            if let Some(task) = self.tasks.get_mut(key) {
                let turn = task.work.turn();
                if !turns.admits(turn) {
                    return;
                }
                turns.enter(turn);
                task.turn = turn;
                task.stage = Stage::Resolve;
                self.ready.push_back(key);
            }
            turns.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
