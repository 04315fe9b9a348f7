//! Tasks (RFC 7143, 11.2.1.8): what a session remembers of each command in progress, and the table of them.
//!
//! Knows tags, phases, expected lengths and the reply. Does not know CDBs, PDUs or who executes.

use super::command_window::Place;
use super::data_in_sequence::DataInSequence;
use super::data_out_sequence::DataOutSequence;
use super::pdu::scsi_response::Residual;
use super::pdu::{InitiatorTaskTag, LunField};
use super::serial::CmdSn;
use super::session::ConnectionId;
use crate::clock::Instant;
use crate::limits;

/// One occupant of one slot of a session's task table; `index < SESSION_TASKS_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId {
    pub index: u16,
    pub generation: u16,
}

/// Which way the command PDU said that data flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    None,
    Read,
    Write,
}

/// How far a task has come. What happens moves it on; a cell that is empty changes nothing:
///
/// | phase     | Accepted  | DataHere  | DataWrong | Completed | Quiet    | Aborted  | Sent |
/// |-----------|-----------|-----------|-----------|-----------|----------|----------|------|
/// | Offered   | Receiving |           | Settling  | Settling  |          | Aborting |      |
/// | Receiving |           | Executing | Settling  | Settling  |          | Aborting |      |
/// | Executing |           |           |           | Settling  |          | Aborting |      |
/// | Settling  |           |           |           |           | Replying | Aborting |      |
/// | Replying  |           |           |           |           |          | Aborting | gone |
/// | Aborting  |           |           |           |           | gone     |          |      |
///
/// Offered: the shard has not decided about its data. Receiving: data-out comes. Executing: the shard has it all.
/// Settling: the reply is there, Data-Out is still due. Replying: Data-In and the response are sent. Aborting: no
/// response will be sent, Data-Out is still due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Offered,
    Receiving,
    Executing,
    Settling,
    Replying,
    Aborting,
}

/// What moves a task on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// The shard takes its data.
    Accepted,
    /// All data it takes is here.
    DataHere,
    /// The data went wrong; the reply is the session's.
    DataWrong,
    /// The shard has replied.
    Completed,
    /// No Data-Out is on its way (11.4.2).
    Quiet,
    Aborted,
    /// The last PDU of its answer is on its way.
    Sent,
}

impl Phase {
    /// The table; `None`: the task is gone.
    pub(super) const fn after(self, happening: Happening) -> Option<Self> {
        Some(match (self, happening) {
            (Self::Offered, Happening::Accepted) => Self::Receiving,
            (Self::Receiving, Happening::DataHere) => Self::Executing,
            (Self::Offered | Self::Receiving, Happening::DataWrong) => Self::Settling,
            (Self::Offered | Self::Receiving | Self::Executing, Happening::Completed) => Self::Settling,
            (Self::Settling, Happening::Quiet) => Self::Replying,
            (Self::Replying, Happening::Sent) | (Self::Aborting, Happening::Quiet) => return None,
            (_, Happening::Aborted) => Self::Aborting,
            (same, _) => same,
        })
    }
}

/// The end of a task, kept until it is sent.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u8,
    pub(super) residual: Residual,
    /// SenseLength and sense, as the data segment has them. Only on the slow path is there any.
    pub(super) sense: Option<Box<[u8]>>,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) task_tag: InitiatorTaskTag,
    /// Its connection allegiance (4.2.5.1).
    pub(super) connection: ConnectionId,
    pub(super) lun: LunField,
    pub(super) cmd_sn: CmdSn,
    pub(super) place: Place,
    pub(super) direction: Direction,
    /// Expected Data Transfer Length, whatever the direction.
    pub(super) expected: u32,
    /// What the command takes of data-out, once the shard has said so.
    pub(super) wanted: Option<u32>,
    pub(super) phase: Phase,
    /// The shard has heard of the task and will hear of its end.
    pub(super) is_known: bool,
    /// In the output queue: for an R2T or for the reply.
    pub(super) is_queued: bool,
    pub(super) data_out: DataOutSequence,
    pub(super) data_in: DataInSequence,
    pub(super) reply: Reply,
    /// When data for the task last moved.
    pub(super) touched: Instant,
}

impl Task {
    /// Moves on; false when the task is gone, and its slot is to be given back.
    pub(super) fn go(&mut self, happening: Happening) -> bool {
        match self.phase.after(happening) {
            Some(next) => {
                self.phase = next;
                true
            }
            None => false,
        }
    }

    /// Residual of a task that ends with `data_in` bytes to read (11.4.5.2): by the direction the command
    /// really took, against what the PDU had promised for that direction.
    pub(super) fn residual(&self, data_in: u32) -> Residual {
        match (self.direction, self.wanted) {
            (Direction::Read, None | Some(0)) => Residual::of(self.expected, data_in),
            (Direction::Read, Some(wanted)) => Residual::of(0, wanted),
            (Direction::Write, None) if data_in > 0 => Residual::of(0, data_in),
            (Direction::Write, wanted) => Residual::of(self.expected, wanted.unwrap_or(0)),
            (Direction::None, wanted) => Residual::of(0, wanted.unwrap_or(data_in)),
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u16,
    task: Option<Task>,
}

/// At most `SESSION_TASKS_MAX` tasks, found by id or by tag.
#[derive(Debug)]
pub(super) struct TaskTable {
    slots: Vec<Slot>,
    /// The tag in each slot; RESERVED where it is free. Apart from the tasks, so that a search reads few lines.
    tags: Vec<InitiatorTaskTag>,
    free: Vec<u16>,
    most: usize,
}

impl TaskTable {
    /// Takes all its memory now; none for a session that never has a task.
    pub(super) fn new(capacity: usize) -> Self {
        debug_assert!(capacity <= limits::SESSION_TASKS_MAX);
        Self {
            slots: Vec::with_capacity(capacity),
            tags: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            most: capacity,
        }
    }

    /// Every index is below this.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// `None` when the table is full.
    pub(super) fn insert(&mut self, task: Task) -> Option<TaskId> {
        let tag = task.task_tag;
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.most => {
                self.slots.push(Slot::default());
                self.tags.push(InitiatorTaskTag::RESERVED);
                (self.slots.len() - 1) as u16
            }
            None => return None,
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.task = Some(task);
        self.tags[usize::from(index)] = tag;
        Some(TaskId { index, generation: slot.generation })
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Task> {
        let slot = self.slots.get(usize::from(id.index))?;
        if slot.generation == id.generation { slot.task.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        let slot = self.slots.get_mut(usize::from(id.index))?;
        if slot.generation == id.generation { slot.task.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Task> {
        let slot = self.slots.get_mut(usize::from(id.index))?;
        if slot.generation != id.generation {
            return None;
        }
        let task = slot.task.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.tags[usize::from(id.index)] = InitiatorTaskTag::RESERVED;
        self.free.push(id.index);
        Some(task)
    }

    pub(super) fn find(&self, tag: InitiatorTaskTag) -> Option<TaskId> {
        if tag == InitiatorTaskTag::RESERVED || self.free.len() == self.slots.len() {
            return None;
        }
        let index = self.tags.iter().position(|held| *held == tag)?;
        Some(TaskId { index: index as u16, generation: self.slots[index].generation })
    }

    /// No data of tasks of this connection is late yet.
    pub(super) fn touch_of(&mut self, on: ConnectionId, now: Instant) {
        let tasks = self.slots.iter_mut().filter_map(|slot| slot.task.as_mut());
        for task in tasks.filter(|task| task.connection == on && task.phase != Phase::Aborting) {
            task.touched = now;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = TaskId { index: index as u16, generation: slot.generation };
            slot.task.as_ref().map(|task| (id, task))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::doc_table::{assert_doc_table, table};

    fn task(tag: u32) -> Task {
        Task {
            task_tag: InitiatorTaskTag(tag),
            connection: ConnectionId::LEADING,
            lun: LunField::default(),
            cmd_sn: CmdSn(tag),
            place: Place::Ordered,
            direction: Direction::None,
            expected: 0,
            wanted: None,
            phase: Phase::Offered,
            is_known: true,
            is_queued: false,
            data_out: DataOutSequence::none(),
            data_in: DataInSequence::default(),
            reply: Reply::default(),
            touched: Instant(0),
        }
    }

    #[test]
    fn phases_move_as_the_table_in_the_docs_says() {
        use Happening::*;
        let phases = [
            Phase::Offered,
            Phase::Receiving,
            Phase::Executing,
            Phase::Settling,
            Phase::Replying,
            Phase::Aborting,
        ];
        let happenings = [Accepted, DataHere, DataWrong, Completed, Quiet, Aborted, Sent];
        let made = table(
            "phase",
            (&phases, |phase| format!("{phase:?}")),
            (&happenings, |happening| format!("{happening:?}")),
            |phase, happening| match phase.after(happening) {
                Some(next) if next == phase => String::new(),
                Some(next) => format!("{next:?}"),
                None => "gone".into(),
            },
        );
        assert_doc_table(include_str!("task.rs"), "phase", &made);
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut table = TaskTable::new(2);
        let first = table.insert(task(1)).unwrap();
        let second = table.insert(task(2)).unwrap();
        assert_eq!(table.insert(task(3)), None);
        assert_eq!(table.find(InitiatorTaskTag(2)), Some(second));
        assert!(table.remove(first).is_some());
        assert_eq!(table.find(InitiatorTaskTag(1)), None);
        let third = table.insert(task(3)).unwrap();
        assert_eq!(third.index, first.index);
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.get(third).unwrap().task_tag, InitiatorTaskTag(3));
        assert_eq!(table.find(InitiatorTaskTag::RESERVED), None);
    }

    #[test]
    fn residual_follows_the_direction_the_command_took() {
        let of = |direction, expected, wanted, data_in| {
            Task { direction, expected, wanted, ..task(1) }.residual(data_in)
        };
        assert_eq!(of(Direction::Read, 10_000, None, 512), Residual::Underflow(9488));
        assert_eq!(of(Direction::Read, 200, None, 512), Residual::Overflow(312));
        assert_eq!(of(Direction::Read, 0, None, 512), Residual::Overflow(512));
        assert_eq!(of(Direction::Read, 512, Some(512), 0), Residual::Overflow(512));
        assert_eq!(of(Direction::Write, 200, Some(512), 0), Residual::Overflow(312));
        assert_eq!(of(Direction::Write, 10_000, Some(512), 0), Residual::Underflow(9488));
        assert_eq!(of(Direction::Write, 512, None, 0), Residual::Underflow(512));
        assert_eq!(of(Direction::Write, 512, None, 512), Residual::Overflow(512));
        assert_eq!(of(Direction::None, 0, None, 36), Residual::Overflow(36));
        assert_eq!(of(Direction::None, 0, None, 0), Residual::None);
    }
}
