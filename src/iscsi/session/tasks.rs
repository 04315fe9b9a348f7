//! SCSI commands of a session: from the command PDU over its data to the queued reply.
//!
//! Knows the phases of `task` and when each PDU moves a task on. Does not know CDBs beyond their length.

use super::output::Queued;
use super::{
    ConnectionId, Current, Held, HeldRequest, PayloadSink, Session, SessionEvent, TaskId, TaskReply, status,
};
use crate::clock::Instant;
use crate::iscsi::command_window::Arrival;
use crate::iscsi::data_in_sequence::DataInSequence;
use crate::iscsi::data_out_sequence::{DataOutError, DataOutFault, DataOutSequence, Step};
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::data_out::{DataOut, Solicitation};
use crate::iscsi::pdu::opcode::RequestOpcode;
use crate::iscsi::pdu::reject::RejectReason;
use crate::iscsi::pdu::scsi_command::{CDB_BYTES, ScsiCommand, Transfer};
use crate::iscsi::task::{Direction, Happening, Phase, Reply, Task};
use crate::limits;

/// How far a task had come when it was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aborted {
    /// The executor has it, or has accepted its data: it must be stopped, and its buffers dropped.
    Executing,
    /// `complete` had been called; only the buffers of its data-in are left to drop.
    Replied,
    /// There is no such task, or it is not with the shard: never offered, or taken back by `DataFailed`.
    Unknown,
}

/// Why the session ends a task by itself: sense key, additional sense code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    status: u8,
    sense: Option<(u8, u8, u8)>,
}

impl Refusal {
    /// A CDB longer than we take: INVALID COMMAND OPERATION CODE.
    const LONG_CDB: Self = Self::check(0x05, 0x20, 0x00);
    /// Data both ways: INVALID FIELD IN COMMAND INFORMATION UNIT.
    const BIDIRECTIONAL: Self = Self::check(0x05, 0x0E, 0x03);
    /// Its data came ahead of its turn and was not kept; the initiator tries again.
    const BUSY: Self = Self { status: status::BUSY, sense: None };

    const fn check(key: u8, code: u8, qualifier: u8) -> Self {
        Self { status: status::CHECK_CONDITION, sense: Some((key, code, qualifier)) }
    }

    /// ABORTED COMMAND with the codes of RFC 7143, 11.4.7.2.
    const fn of(fault: DataOutFault) -> Self {
        match fault {
            DataOutFault::UnexpectedUnsolicitedData => Self::check(0x0B, 0x0C, 0x0C),
            DataOutFault::IncorrectAmountOfData => Self::check(0x0B, 0x0C, 0x0D),
            DataOutFault::ProtocolServiceCrcError => Self::check(0x0B, 0x47, 0x05),
        }
    }

    /// SenseLength and fixed-format sense (SPC-4, 4.5.3).
    fn data_segment(self) -> Option<Box<[u8]>> {
        let (key, code, qualifier) = self.sense?;
        let mut segment = [0; 20];
        segment[1] = 18;
        segment[2] = 0x70;
        segment[4] = key;
        segment[9] = 10;
        segment[14] = code;
        segment[15] = qualifier;
        Some(Box::new(segment))
    }
}

/// SenseLength and sense as the shard gave it.
fn sense_segment(sense: &[u8]) -> Option<Box<[u8]>> {
    let sense = &sense[..sense.len().min(limits::SENSE_BYTES_MAX)];
    if sense.is_empty() {
        return None;
    }
    let mut segment = Vec::with_capacity(2 + sense.len());
    segment.extend_from_slice(&(sense.len() as u16).to_be_bytes());
    segment.extend_from_slice(sense);
    Some(segment.into_boxed_slice())
}

impl Session {
    pub(super) fn begin_command_pdu(&mut self, on: ConnectionId, bhs: &Bhs, ahs: &[u8], now: Instant) {
        let Ok(command) = ScsiCommand::decode(bhs, ahs) else {
            return self.reject(on, RejectReason::InvalidPduField);
        };
        if command.task_tag == InitiatorTaskTag::RESERVED {
            return self.reject(on, RejectReason::InvalidPduField);
        }
        self.note_exp_stat_sn(on, command.exp_stat_sn);
        match self.window.arrival(command.immediate, command.cmd_sn) {
            Arrival::Now if self.tasks.find(command.task_tag).is_some() => {
                self.reject(on, RejectReason::TaskInProgress);
            }
            Arrival::Now => self.begin_command(on, &command, None, now),
            Arrival::Ahead => self.hold_command(on, command, now),
            Arrival::Ignore => {}
            Arrival::TooManyImmediate => self.reject(on, RejectReason::ImmediateCommandReject),
        }
    }

    /// Commands before this one are still to come. If other connections can bring them, its data waits in its
    /// connection; else they come on this one, and nothing may stand in their way.
    fn hold_command(&mut self, on: ConnectionId, command: ScsiCommand, now: Instant) {
        let unsolicited = has_unsolicited(&command);
        let has_data = command.data_len > 0;
        let waits = has_data && self.may_wait_for_others(on);
        if waits {
            self.connections[on].current = Current::Deferred { since: now };
        }
        let request = HeldRequest::Command { command, unsolicited, data_lost: has_data && !waits };
        self.window.hold(command.cmd_sn, Held { connection: on, request });
    }

    /// The turn of a held command has come. Data that could not be kept makes it BUSY.
    pub(super) fn begin_held_command(
        &mut self,
        on: ConnectionId,
        mut command: ScsiCommand,
        unsolicited: bool,
        data_lost: bool,
        now: Instant,
    ) {
        let bhs = self.connections[on].current_bhs;
        let waits = matches!(self.connections[on].current, Current::Deferred { .. })
            && bhs.task_tag() == command.task_tag;
        let brings_itself = waits && bhs.opcode() == RequestOpcode::ScsiCommand as u8;
        if waits {
            self.connections[on].current = Current::Ignored;
            self.events.push_back(SessionEvent::Resumed { connection: on });
        }
        if self.tasks.find(command.task_tag).is_some() {
            // The tag was taken while the command waited; its number counts as received all the same.
            return self.window.skip();
        }
        if !brings_itself {
            command.data_len = 0;
        }
        if let Transfer::Write { unsolicited: still, .. }
        | Transfer::Bidirectional { unsolicited: still, .. } = &mut command.transfer
        {
            *still = unsolicited;
        }
        let receiving = self.connections[on].current;
        self.begin_command(on, &command, data_lost.then_some(Refusal::BUSY), now);
        if brings_itself {
            return;
        }
        self.connections[on].current = receiving;
        if let Some(task) = self.tasks.find(command.task_tag) {
            self.advance(task);
        }
        if waits {
            self.begin_data_out(on, &bhs, now);
        }
    }

    fn begin_command(
        &mut self,
        on: ConnectionId,
        command: &ScsiCommand,
        refusal: Option<Refusal>,
        now: Instant,
    ) {
        let (direction, expected, unsolicited) = match command.transfer {
            Transfer::None => (Direction::None, 0, false),
            Transfer::Read { expected } => (Direction::Read, expected, false),
            Transfer::Write { expected, unsolicited } => (Direction::Write, expected, unsolicited),
            Transfer::Bidirectional { expected_write, unsolicited, .. } => {
                (Direction::Write, expected_write, unsolicited)
            }
        };
        let data_expected = if direction == Direction::Write { expected } else { 0 };
        let (data_out, fault) =
            DataOutSequence::new(data_expected, command.data_len, unsolicited, &self.connections[on].params);
        let refusal = refusal.or(if matches!(command.transfer, Transfer::Bidirectional { .. }) {
            Some(Refusal::BIDIRECTIONAL)
        } else if usize::from(command.cdb.len) > CDB_BYTES {
            Some(Refusal::LONG_CDB)
        } else {
            fault.map(Refusal::of)
        });
        let task = Task {
            task_tag: command.task_tag,
            connection: on,
            lun: command.lun,
            cmd_sn: command.cmd_sn,
            place: self.window.begin(command.immediate),
            direction,
            expected,
            wanted: None,
            phase: Phase::Offered,
            is_known: refusal.is_none(),
            is_queued: false,
            data_out,
            data_in: DataInSequence::default(),
            reply: Reply::default(),
            touched: now,
        };
        let place = task.place;
        let Some(id) = self.tasks.insert(task) else {
            // Cannot be: the table has a slot for each place of the window.
            self.window.finish(place);
            return self.reject(on, RejectReason::LongOperationReject);
        };
        self.connections[on].current = Current::Data {
            task: id,
            offset: 0,
            len: command.data_len,
            is_final: !unsolicited,
            is_immediate: true,
        };
        match refusal {
            Some(refusal) => self.refuse(id, refusal),
            None => self.events.push_back(SessionEvent::Command {
                connection: on,
                task: id,
                lun: command.lun,
                cdb: command.cdb,
                read_len: if direction == Direction::Read { expected } else { 0 },
                write_len: data_expected,
                attribute: command.attribute,
                immediate: command.immediate,
            }),
        }
    }

    pub(super) fn begin_data_out(&mut self, on: ConnectionId, bhs: &Bhs, now: Instant) {
        let pdu = DataOut::decode(bhs);
        self.note_exp_stat_sn(on, pdu.exp_stat_sn);
        let Some(id) = self.tasks.find(pdu.task_tag) else {
            // Data of a task that was aborted, or whose command was ignored, may still be on its way.
            return self.data_of_held(on, bhs, &pdu, now);
        };
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.connection != on {
            // Data goes where its command went (4.2.5.1).
            return self.reject(on, RejectReason::InvalidPduField);
        }
        task.touched = now;
        let fault = match task.data_out.check(&pdu, task.lun) {
            Ok(()) => None,
            Err(DataOutError::Foreign) => return self.reject(on, RejectReason::InvalidPduField),
            Err(DataOutError::Fault(fault)) => Some(fault),
        };
        self.connections[on].current = Current::Data {
            task: id,
            offset: pdu.buffer_offset,
            len: pdu.data_len,
            is_final: pdu.is_final,
            is_immediate: false,
        };
        if let Some(fault) = fault {
            self.fail_data(id, fault);
        }
    }

    /// Unsolicited data of a command that is held waits with it, or is lost.
    fn data_of_held(&mut self, on: ConnectionId, bhs: &Bhs, pdu: &DataOut, now: Instant) {
        if pdu.answers != Solicitation::Unsolicited {
            return;
        }
        let intact = self.window.held_mut().any(|held| {
            held.connection == on
                && matches!(&held.request, HeldRequest::Command { command, data_lost: false, .. }
                    if command.task_tag == pdu.task_tag)
        });
        if intact && self.may_wait_for_others(on) {
            self.connections[on].current = Current::Deferred { since: now };
        } else {
            self.lose_held_data(on, bhs);
        }
    }

    pub(super) fn data_sink(&self, id: TaskId, offset: u32, len: u32) -> PayloadSink {
        let Some(task) = self.tasks.get(id) else { return PayloadSink::Discard };
        match task.phase {
            Phase::Offered => PayloadSink::Wait { task: id },
            Phase::Receiving => match task.data_out.taken_of(offset, len) {
                0 => PayloadSink::Discard,
                len => PayloadSink::Task { task: id, offset, len },
            },
            Phase::Executing | Phase::Settling | Phase::Replying | Phase::Aborting => PayloadSink::Discard,
        }
    }

    /// A PDU with data of `id` is complete.
    pub(super) fn end_data(
        &mut self,
        id: TaskId,
        len: u32,
        is_final: bool,
        is_immediate: bool,
        now: Instant,
    ) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.touched = now;
        if is_immediate {
            task.data_out.commit_immediate(len);
        } else if let Err(fault) = task.data_out.commit(len, is_final) {
            self.fail_data(id, fault);
        }
        self.advance(id);
    }

    /// A PDU with data of `id` is damaged.
    pub(super) fn lose_data(&mut self, id: TaskId, is_final: bool, is_immediate: bool) {
        self.fail_data(id, DataOutFault::ProtocolServiceCrcError);
        if !is_immediate && let Some(task) = self.tasks.get_mut(id) {
            // Draining, so this only notes the F bit and cannot fail.
            let _ = task.data_out.commit(0, is_final);
        }
        self.advance(id);
    }

    /// The command takes `wanted` bytes of data (by its CDB) and has buffers for what the initiator will send:
    /// data may flow in, and R2Ts go out for what does not come by itself.
    pub fn accept_data_out(&mut self, id: TaskId, wanted: u32) {
        if let Some(task) = self.tasks.get_mut(id)
            && task.phase == Phase::Offered
        {
            task.wanted = Some(wanted);
            task.data_out.accept(wanted);
            task.go(Happening::Accepted);
            self.advance(id);
        }
    }

    /// The task has ended. `poll_output` yields its Data-In PDUs and its status as soon as no more data-out is
    /// on its way (11.4.2).
    pub fn complete(&mut self, id: TaskId, reply: TaskReply<'_>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        if matches!(task.phase, Phase::Settling | Phase::Replying | Phase::Aborting) {
            return;
        }
        task.reply = Reply {
            status: reply.status,
            residual: task.residual(reply.data_in),
            sense: sense_segment(reply.sense),
        };
        if task.direction == Direction::Read {
            task.data_in = DataInSequence::new(reply.data_in.min(task.expected));
        }
        task.go(Happening::Completed);
        task.data_out.drain();
        self.advance(id);
    }

    /// Ends a task without a response. While data it was asked for is on its way, its tag stays taken.
    pub fn abort_task(&mut self, id: TaskId) -> Aborted {
        let Some(task) = self.tasks.get_mut(id) else { return Aborted::Unknown };
        let aborted = match (task.is_known, task.phase) {
            (false, _) | (_, Phase::Aborting) => Aborted::Unknown,
            (true, Phase::Settling | Phase::Replying) => Aborted::Replied,
            (true, Phase::Offered | Phase::Receiving | Phase::Executing) => Aborted::Executing,
        };
        if task.is_queued {
            task.is_queued = false;
            let output = &mut self.connections[task.connection].output;
            output.retain(|queued| !matches!(queued, Queued::Task(other) if *other == id));
        }
        task.is_known = false;
        task.go(Happening::Aborted);
        task.data_out.drain();
        self.forget_behind_fence(id);
        self.advance(id);
        aborted
    }

    /// Ends a task because of its data; a task that has ended already only drains.
    fn fail_data(&mut self, id: TaskId, fault: DataOutFault) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        if !matches!(task.phase, Phase::Offered | Phase::Receiving) {
            return;
        }
        if task.is_known {
            task.is_known = false;
            self.events.push_back(SessionEvent::DataFailed { task: id });
        }
        self.refuse(id, Refusal::of(fault));
    }

    fn refuse(&mut self, id: TaskId, refusal: Refusal) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.reply =
            Reply { status: refusal.status, residual: task.residual(0), sense: refusal.data_segment() };
        task.go(Happening::DataWrong);
        task.data_out.drain();
    }

    /// Moves a task on after something changed. While a PDU is being received for it, everything waits.
    fn advance(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let current = self.connections[task.connection].current;
        if matches!(current, Current::Data { task, .. } if task == id) {
            return;
        }
        match task.phase {
            Phase::Receiving => match task.data_out.step() {
                Step::Wait => {}
                Step::Solicit => self.enqueue_task(id),
                Step::Complete => {
                    task.go(Happening::DataHere);
                    let received = task.data_out.received();
                    self.events.push_back(SessionEvent::DataComplete { task: id, received });
                }
            },
            Phase::Settling | Phase::Aborting if task.data_out.is_quiet() => {
                if task.go(Happening::Quiet) {
                    self.enqueue_task(id);
                } else {
                    self.remove_aborted(id);
                }
            }
            Phase::Offered | Phase::Executing | Phase::Settling | Phase::Replying | Phase::Aborting => {}
        }
    }
}

fn has_unsolicited(command: &ScsiCommand) -> bool {
    matches!(
        command.transfer,
        Transfer::Write { unsolicited: true, .. } | Transfer::Bidirectional { unsolicited: true, .. }
    )
}
