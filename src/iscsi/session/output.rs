//! What a session sends: one queue, in order, numbered at the moment it leaves.
//!
//! Knows StatSN and how a reply becomes Data-In PDUs and a SCSI Response. Does not know buffers: data-in is named
//! by task, offset and length.

use super::connection::Happening;
use super::{ConnectionId, Session, TaskId, status};
use crate::clock::Instant;
use crate::iscsi::command_window::Place;
use crate::iscsi::pdu::async_msg::{AsyncEvent, AsyncMessage};
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::data_in::{DataIn, SequenceEnd};
use crate::iscsi::pdu::logout::{LogoutOutcome, LogoutResponse};
use crate::iscsi::pdu::nop::{NopIn, NopInPurpose};
use crate::iscsi::pdu::r2t::R2t;
use crate::iscsi::pdu::reject::{Reject, RejectReason};
use crate::iscsi::pdu::scsi_response::{Outcome, ScsiResponse};
use crate::iscsi::pdu::task_mgmt::{ManagementResponse, TaskManagementResponse};
use crate::iscsi::pdu::text::TextResponse;
use crate::iscsi::pdu::{InitiatorTaskTag, LunField, TargetTransferTag};
use crate::iscsi::task::{self, Phase};

/// A PDU to be sent; padding and digests are added by the sender.
#[derive(Debug)]
pub struct OutPdu {
    pub header: Bhs,
    pub data: OutData,
    /// The last PDU of this task: the shard may drop its buffers once this is sent. Comes once for each task
    /// the shard was told of, unless it aborted it or was told that its data failed.
    pub finished: Option<TaskId>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum OutData {
    None,
    /// A slice of the task's data-in.
    Task {
        task: TaskId,
        offset: u32,
        len: u32,
    },
    /// The bytes themselves: sense, text, ping data, a rejected header.
    Inline(Box<[u8]>),
}

/// What waits in the output queue. A task stands in it once: what is to be sent shows when its turn comes.
#[derive(Debug)]
pub(super) enum Queued {
    Task(TaskId),
    Answer(Box<Answer>, Option<Place>),
    /// Nothing to send: all before it is sent (`fence`).
    Mark,
}

/// Answers that are not of a task.
#[derive(Debug)]
pub(super) enum Answer {
    Pong {
        task_tag: InitiatorTaskTag,
        data: Box<[u8]>,
    },
    Ping {
        transfer_tag: TargetTransferTag,
    },
    Text {
        task_tag: InitiatorTaskTag,
        transfer_tag: TargetTransferTag,
        is_final: bool,
        text_continues: bool,
        data: Box<[u8]>,
    },
    Reject {
        reason: RejectReason,
        bhs: Bhs,
    },
    Management {
        task_tag: InitiatorTaskTag,
        response: ManagementResponse,
        /// Nothing follows on this connection.
        closes_this: bool,
    },
    Logout {
        task_tag: InitiatorTaskTag,
        outcome: LogoutOutcome,
        /// Nothing follows on this connection.
        closes_this: bool,
    },
    Async {
        event: AsyncEvent,
    },
}

impl Session {
    /// The next PDU to send, numbered and stamped. Call until `None` or until there is no room.
    pub fn poll_output(&mut self, on: ConnectionId, now: Instant) -> Option<OutPdu> {
        while !self.is_closed(on) {
            let connection = &mut self.connections[on];
            let pdu = match connection.output.front() {
                None => {
                    connection.go(Happening::AllSent);
                    return None;
                }
                Some(Queued::Task(task)) => {
                    let task = *task;
                    self.task_output(on, task, now)
                }
                Some(Queued::Mark) => {
                    connection.output.pop_front();
                    self.mark_reached(on, now);
                    None
                }
                Some(Queued::Answer(..)) => match connection.output.pop_front() {
                    Some(Queued::Answer(answer, place)) => Some(self.answer_output(on, *answer, place)),
                    _ => None,
                },
            };
            if pdu.is_some() {
                return pdu;
            }
        }
        None
    }

    /// Queues a task for its R2T or its reply.
    pub(super) fn enqueue_task(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id)
            && !task.is_queued
        {
            task.is_queued = true;
            let (on, replies) = (task.connection, task.phase == Phase::Replying);
            if !replies || !self.hold_behind_fence(id) {
                self.connections[on].output.push_back(Queued::Task(id));
            }
        }
    }

    /// Takes the task at the front of the queue out of it.
    fn dequeue_task(&mut self, on: ConnectionId, id: TaskId) {
        self.connections[on].output.pop_front();
        if let Some(task) = self.tasks.get_mut(id) {
            task.is_queued = false;
        }
    }

    /// One PDU of the task at the front of the queue; `None` when it has no longer anything to send.
    fn task_output(&mut self, on: ConnectionId, id: TaskId, now: Instant) -> Option<OutPdu> {
        match self.tasks.get(id).map(|task| task.phase) {
            Some(Phase::Replying) => self.reply_output(id),
            Some(Phase::Receiving) => {
                self.dequeue_task(on, id);
                self.r2t_output(id, now)
            }
            _ => {
                self.dequeue_task(on, id);
                None
            }
        }
    }

    fn r2t_output(&mut self, id: TaskId, now: Instant) -> Option<OutPdu> {
        let transfer_tag = self.take_transfer_tag();
        let task = self.tasks.get_mut(id)?;
        let connection = &self.connections[task.connection];
        let request = task.data_out.solicit(transfer_tag, connection.params.max_burst)?;
        task.touched = now;
        let r2t = R2t {
            lun: task.lun,
            task_tag: task.task_tag,
            transfer_tag,
            next_stat_sn: connection.next_stat_sn,
            window: self.window.snapshot(),
            r2t_sn: request.r2t_sn,
            buffer_offset: request.offset,
            desired_len: request.len,
        };
        Some(OutPdu { header: r2t.encode(), data: OutData::None, finished: None })
    }

    fn reply_output(&mut self, id: TaskId) -> Option<OutPdu> {
        let task = self.tasks.get_mut(id)?;
        let (on, params) = (task.connection, &self.connections[task.connection].params);
        let slice = task.data_in.next_slice(params.max_send_segment, params.max_burst);
        let Some(slice) = slice else {
            return self.response_output(id);
        };
        // Status rides on the last Data-In when there is nothing to say but GOOD (11.7.3).
        let carries_status = slice.is_last && task.reply.status == status::GOOD && task.reply.sense.is_none();
        let (task_tag, reply_status, residual) = (task.task_tag, task.reply.status, task.reply.residual);
        let finished = if carries_status { self.retire_task(id) } else { None };
        let end = if carries_status {
            let stat_sn = self.connections[on].next_stat_sn.take();
            SequenceEnd::EndOfTask { stat_sn, status: reply_status, residual }
        } else if slice.end_of_burst {
            SequenceEnd::EndOfBurst
        } else {
            SequenceEnd::More
        };
        let data_in = DataIn {
            task_tag,
            window: self.window.snapshot(),
            data_sn: slice.data_sn,
            buffer_offset: slice.offset,
            data_len: slice.len,
            end,
        };
        let data = OutData::Task { task: id, offset: slice.offset, len: slice.len };
        Some(OutPdu { header: data_in.encode(), data, finished })
    }

    fn response_output(&mut self, id: TaskId) -> Option<OutPdu> {
        let task = self.tasks.get_mut(id)?;
        let on = task.connection;
        let sense = task.reply.sense.take();
        let (task_tag, exp_data_sn) = (task.task_tag, task.data_in.exp_data_sn());
        let (reply_status, residual) = (task.reply.status, task.reply.residual);
        let finished = self.retire_task(id);
        let response = ScsiResponse {
            task_tag,
            stat_sn: self.connections[on].next_stat_sn.take(),
            window: self.window.snapshot(),
            outcome: Outcome::Completed { status: reply_status, residual, exp_data_sn },
            data_len: sense.as_ref().map_or(0, |sense| sense.len() as u32),
        };
        let data = sense.map_or(OutData::None, OutData::Inline);
        Some(OutPdu { header: response.encode(), data, finished })
    }

    /// The last PDU of the task at the front of the queue is on its way: its slot and its place in the window
    /// are free, which that very PDU tells. Gives the id back when the shard knows the task.
    fn retire_task(&mut self, id: TaskId) -> Option<TaskId> {
        let mut task = self.tasks.remove(id)?;
        let stays = task.go(task::Happening::Sent);
        debug_assert!(!stays, "a task in phase {:?} was answered", task.phase);
        self.connections[task.connection].output.pop_front();
        self.window.finish(task.place);
        task.is_known.then_some(id)
    }

    fn answer_output(&mut self, on: ConnectionId, answer: Answer, place: Option<Place>) -> OutPdu {
        if let Some(place) = place {
            self.window.finish(place);
        }
        let window = self.window.snapshot();
        let connection = &mut self.connections[on];
        let (header, data) = match answer {
            Answer::Pong { task_tag, data } => {
                let purpose = NopInPurpose::Answer { task_tag, stat_sn: connection.next_stat_sn.take() };
                (NopIn { purpose, window, data_len: data.len() as u32 }.encode(), inline(data))
            }
            Answer::Ping { transfer_tag } => {
                let purpose = NopInPurpose::Ping { transfer_tag, next_stat_sn: connection.next_stat_sn };
                (NopIn { purpose, window, data_len: 0 }.encode(), OutData::None)
            }
            Answer::Text { task_tag, transfer_tag, is_final, text_continues, data } => {
                let response = TextResponse {
                    is_final,
                    text_continues,
                    lun: LunField::default(),
                    task_tag,
                    transfer_tag,
                    stat_sn: connection.next_stat_sn.take(),
                    window,
                };
                (response.encode(data.len() as u32), inline(data))
            }
            Answer::Reject { reason, bhs } => {
                let reject = Reject { reason, stat_sn: connection.next_stat_sn.take(), window };
                (reject.encode(), inline(Box::from(bhs.0.as_slice())))
            }
            Answer::Management { task_tag, response, closes_this } => {
                let stat_sn = connection.next_stat_sn.take();
                if closes_this {
                    connection.go(Happening::LastSent);
                }
                (TaskManagementResponse { response, task_tag, stat_sn, window }.encode(), OutData::None)
            }
            Answer::Logout { task_tag, outcome, closes_this } => {
                let stat_sn = connection.next_stat_sn.take();
                if closes_this {
                    connection.go(Happening::LastSent);
                }
                // Nothing survives a logout here, so there is nothing to wait for (11.15.3).
                let response =
                    LogoutResponse { outcome, task_tag, stat_sn, window, time2wait_s: 0, time2retain_s: 0 };
                (response.encode(), OutData::None)
            }
            Answer::Async { event } => {
                let stat_sn = connection.next_stat_sn.take();
                (AsyncMessage { event, stat_sn, window }.encode(), OutData::None)
            }
        };
        OutPdu { header, data, finished: None }
    }
}

fn inline(data: Box<[u8]>) -> OutData {
    if data.is_empty() { OutData::None } else { OutData::Inline(data) }
}
