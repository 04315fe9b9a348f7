//! A session in full-feature phase (RFC 7143, 4.2 to 4.6): requests in, events out; answers in, PDUs out.
//!
//! Knows the order of commands, tasks, data sequences and every request an initiator may send after login. Does
//! not know bytes on a socket (`framer`), login, SCSI or buffers: data segments stay with the shard, which asks
//! [`Session::sink`] where each belongs.
//!
//! Driving it: `handle_header`, then `poll_event` until `None`, then `sink`, then the data, then `handle_end`,
//! then `poll_event` again; `poll_output` whenever there is room to send. Nothing is allocated for a READ or
//! WRITE that goes well.
//!
//! | state     | SCSI, Data-Out, management | Text, NOP        | Logout               | leaves when            |
//! |-----------|----------------------------|------------------|----------------------|------------------------|
//! | Open      | handled (Normal session)   | handled          | answered -> Leaving  |                        |
//! | Leaving   | ignored                    | ignored          | ignored              | the answer is sent -> Closed |
//! | Closing   | ignored                    | ignored          | ignored              | the queue is sent -> Closed |
//! | Closed    | ignored, no more output    | ignored          | ignored              |                        |
//!
//! One connection a session today. What would be per connection (StatSN, the output queue, the PDU being
//! received) is apart from what would stay per session (the window and the task table).

mod control;
pub mod fuzz;
mod management;
mod output;
mod tasks;
#[cfg(test)]
mod tests;
mod text;

use std::collections::VecDeque;

use self::output::{Answer, Queued};
use self::text::TextExchange;
use super::command_window::{CommandWindow, Place};
use super::params::{Cid, NegotiatedParams};
use super::pdu::bhs::Bhs;
use super::pdu::logout::LogoutReason;
use super::pdu::opcode::RequestOpcode;
use super::pdu::reject::RejectReason;
use super::pdu::scsi_command::{Cdb, ScsiCommand, TaskAttribute};
use super::pdu::{InitiatorTaskTag, LunField, TargetTransferTag};
use super::serial::{CmdSn, StatSn};
use super::task::{Phase, TaskTable};
use crate::clock::{Duration, Instant};
use crate::limits;

pub use self::output::{OutData, OutPdu};
pub use self::tasks::Aborted;
pub use super::negotiate::SessionKind;
pub use super::pdu::task_mgmt::ManagementResponse;
pub use super::task::TaskId;

/// How often [`Session::handle_timeout`] looks around.
const TICK: Duration = Duration::from_secs(1);

/// What login leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStart {
    pub kind: SessionKind,
    pub params: NegotiatedParams,
    pub cid: Cid,
    /// The StatSN after that of the last Login Response.
    pub next_stat_sn: StatSn,
    /// The CmdSN of the first command: that of the login requests.
    pub exp_cmd_sn: CmdSn,
    /// `None`: the initiator is never pinged.
    pub keepalive: Option<Keepalive>,
    pub now: Instant,
}

/// When an initiator counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before it is pinged.
    pub idle: Duration,
    /// Silence after the ping before the session is closed.
    pub answer: Duration,
}

/// Where the data segment of the PDU whose header was just handled goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadSink {
    Discard,
    /// The first `keep` bytes are collected and handed to `handle_end`; the rest is thrown away.
    Control {
        keep: u32,
    },
    /// The first `len` bytes lie `offset` bytes into the task's data-out; the rest is thrown away.
    Task {
        task: TaskId,
        offset: u32,
        len: u32,
    },
    /// The shard has not yet decided about `task`: it takes no more bytes from this connection, and asks again
    /// after `accept_data_out`, `complete` or `abort_task`.
    Wait {
        task: TaskId,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Execute this. A command with `write_len` answers with `accept_data_out` or `complete`, others with
    /// `complete`.
    Command {
        task: TaskId,
        lun: LunField,
        cdb: Cdb,
        /// Bytes the initiator expects to read, and to write. At most one is not zero.
        read_len: u32,
        write_len: u32,
        attribute: TaskAttribute,
        immediate: bool,
    },
    /// All data the command accepted has arrived.
    DataComplete { task: TaskId, received: u32 },
    /// The data went wrong. The session has ended the task and answers it; the shard forgets it.
    DataFailed { task: TaskId },
    /// To be answered by `complete_management` with the same `task_tag`.
    Management {
        function: ManagementFunction,
        task_tag: InitiatorTaskTag,
        lun: LunField,
        /// Abort only tasks with an earlier CmdSN (RFC 7143, 4.2.3.3); resets abort all.
        cmd_sn: CmdSn,
    },
    /// To be answered by `send_targets_reply`. The value of the key: `All`, a name, or nothing (this target).
    SendTargets { value: String },
    /// The initiator leaves. The response is queued; after it has been sent, close. Tasks still in the table
    /// are never answered: abort them.
    Logout { reason: LogoutReason, cid: Cid },
    /// The connection is beyond repair: send what is queued, then close.
    Close(CloseReason),
}

/// The functions the shard executes; the others are answered by the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagementFunction {
    AbortTask(TaskId),
    AbortTaskSet,
    ClearTaskSet,
    LunReset,
    TargetWarmReset,
    TargetColdReset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the initiator is silent and did not answer a ping")]
    PeerSilent,
    #[error("the initiator stopped sending the data of a write")]
    DataOutStalled,
    #[error("more than {} answers wait to be sent", limits::SESSION_ANSWERS_MAX)]
    TooManyAnswers,
}

/// How the shard's execution of a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TaskReply<'a> {
    /// SCSI status (SAM-5, 5.3.1).
    pub status: u8,
    /// Sense data, cut to `SENSE_BYTES_MAX`; empty without CHECK CONDITION.
    pub sense: &'a [u8],
    /// Bytes there are to read, before they are cut to what the initiator expects.
    pub data_in: u32,
}

impl TaskReply<'_> {
    /// GOOD with `data_in` bytes to read.
    pub fn good(data_in: u32) -> Self {
        Self { status: status::GOOD, sense: &[], data_in }
    }
}

/// SCSI status codes the session itself uses (SAM-5, 5.3.1).
mod status {
    pub(super) const GOOD: u8 = 0x00;
    pub(super) const CHECK_CONDITION: u8 = 0x02;
    pub(super) const BUSY: u8 = 0x08;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Leaving,
    Closing,
    Closed,
}

/// The PDU that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    /// Nothing is wanted of it.
    Ignored,
    /// Handled when it is complete.
    Control { keep: u32 },
    /// Brings data of a task: immediate data, or a Data-Out that fits.
    Data { task: TaskId, offset: u32, len: u32, is_final: bool, is_immediate: bool },
}

/// A request ahead of its turn.
#[derive(Debug)]
enum Held {
    Command {
        command: ScsiCommand,
        /// Unsolicited Data-Out PDUs are still to come.
        unsolicited: bool,
    },
    Control {
        bhs: Bhs,
        data: Box<[u8]>,
    },
}

impl Held {
    /// Bytes it keeps (`HELD_BYTES_MAX`).
    fn data_len(&self) -> usize {
        match self {
            Self::Command { .. } => 0,
            Self::Control { data, .. } => data.len(),
        }
    }
}

/// The full-feature machine of one session.
#[derive(Debug)]
pub struct Session {
    kind: SessionKind,
    params: NegotiatedParams,
    cid: Cid,
    keepalive: Option<Keepalive>,
    state: State,
    window: CommandWindow<Held>,
    held_bytes: usize,
    tasks: TaskTable,
    /// Management requests the shard has not answered.
    management: Vec<(InitiatorTaskTag, Place)>,
    text: TextExchange,
    current: Current,
    current_bhs: Bhs,
    events: VecDeque<SessionEvent>,
    output: VecDeque<Queued>,
    next_stat_sn: StatSn,
    exp_stat_sn: StatSn,
    next_transfer_tag: u32,
    last_activity: Instant,
    last_tick: Instant,
    ping: Option<(TargetTransferTag, Instant)>,
}

impl Session {
    pub fn new(start: SessionStart) -> Self {
        let tasks = match start.kind {
            SessionKind::Normal => limits::SESSION_TASKS_MAX,
            SessionKind::Discovery => 0,
        };
        Self {
            kind: start.kind,
            params: start.params,
            cid: start.cid,
            keepalive: start.keepalive,
            state: State::Open,
            window: CommandWindow::new(start.exp_cmd_sn),
            held_bytes: 0,
            tasks: TaskTable::new(tasks),
            management: Vec::new(),
            text: TextExchange::default(),
            current: Current::Ignored,
            current_bhs: Bhs::default(),
            events: VecDeque::with_capacity(8),
            output: VecDeque::with_capacity(tasks + 8),
            next_stat_sn: start.next_stat_sn,
            exp_stat_sn: start.next_stat_sn,
            next_transfer_tag: 0,
            last_activity: start.now,
            last_tick: start.now,
            ping: None,
        }
    }

    /// A PDU header is complete. Queues events; after they are drained, ask `sink`.
    pub fn handle_header(&mut self, bhs: &Bhs, ahs: &[u8], now: Instant) {
        self.last_activity = now;
        self.current = Current::Ignored;
        if self.state != State::Open {
            return;
        }
        self.current_bhs = *bhs;
        let is_normal = self.kind == SessionKind::Normal;
        match RequestOpcode::from_byte(bhs.opcode()) {
            Some(RequestOpcode::ScsiCommand) if is_normal => self.begin_command_pdu(bhs, ahs, now),
            Some(RequestOpcode::DataOut) if is_normal => self.begin_data_out(bhs, now),
            Some(RequestOpcode::TaskManagement) if is_normal => self.current = Current::Control { keep: 0 },
            Some(RequestOpcode::Logout) => self.current = Current::Control { keep: 0 },
            Some(RequestOpcode::NopOut) => {
                let keep = self.params.max_send_segment.min(limits::PING_BYTES_MAX as u32);
                self.current = Current::Control { keep: keep.min(bhs.data_len()) };
            }
            Some(RequestOpcode::Text) if bhs.data_len() as usize <= limits::TEXT_BYTES_MAX => {
                self.current = Current::Control { keep: bhs.data_len() };
            }
            Some(RequestOpcode::Text) => self.reject(RejectReason::InvalidPduField),
            // 11.12: login is over.
            Some(RequestOpcode::Login) => self.reject(RejectReason::ProtocolError),
            _ => self.reject(RejectReason::CommandNotSupported),
        }
    }

    /// Where the data of the PDU being received goes; may change from `Wait` to something else.
    pub fn sink(&self) -> PayloadSink {
        match self.current {
            Current::Control { keep } if keep > 0 => PayloadSink::Control { keep },
            Current::Data { task, offset, len, .. } if len > 0 => self.data_sink(task, offset, len),
            _ => PayloadSink::Discard,
        }
    }

    /// The PDU is complete and its digest, if any, is good. `control` is its data where the sink was `Control`.
    pub fn handle_end(&mut self, control: &[u8], now: Instant) {
        self.last_activity = now;
        match core::mem::replace(&mut self.current, Current::Ignored) {
            Current::Ignored => {}
            Current::Control { .. } => {
                let bhs = self.current_bhs;
                self.sequence_control(&bhs, control);
            }
            Current::Data { task, len, is_final, is_immediate, .. } => {
                self.end_data(task, len, is_final, is_immediate, now);
            }
        }
        self.release_held(now);
    }

    /// Instead of `handle_end`: the data digest does not fit (RFC 7143, 7.8). The PDU is rejected; a task whose
    /// data it brought ends with CHECK CONDITION, because its header has been acted on already.
    pub fn handle_data_digest_error(&mut self, now: Instant) {
        self.last_activity = now;
        if self.state != State::Open {
            return;
        }
        let current = core::mem::replace(&mut self.current, Current::Ignored);
        self.reject(RejectReason::DataDigestError);
        if let Current::Data { task, is_final, is_immediate, .. } = current {
            self.lose_data(task, is_final, is_immediate);
        }
        self.release_held(now);
    }

    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Every task: id, LUN, tag and CmdSN. Also those that are with the session alone, because it refused them or
    /// their data failed; `abort_task` says [`Aborted::Unknown`] of them.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, LunField, InitiatorTaskTag, CmdSn)> {
        self.tasks.iter().map(|(id, task)| (id, task.lun, task.task_tag, task.cmd_sn))
    }

    /// The operational parameters; MaxRecvDataSegmentLength may change in full-feature phase.
    pub fn params(&self) -> &NegotiatedParams {
        &self.params
    }

    /// When the initiator last sent something.
    pub fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// The first StatSN the initiator has not confirmed.
    pub fn exp_stat_sn(&self) -> StatSn {
        self.exp_stat_sn
    }

    /// True once nothing more will be sent: after Logout or Close, when the queue is empty.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Nothing is executed, expected or queued.
    pub fn is_idle(&self) -> bool {
        self.window.is_idle() && self.output.is_empty()
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.state == State::Open).then(|| self.last_tick.after(TICK))
    }

    /// Pings a silent initiator, closes on a dead one and on a write that gets no more data.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state != State::Open || now.since(self.last_tick) < TICK {
            return;
        }
        self.last_tick = now;
        if let Some(keepalive) = self.keepalive {
            match self.ping {
                Some((_, sent)) if self.last_activity >= sent => self.ping = None,
                Some((_, sent)) if now.since(sent) >= keepalive.answer => {
                    self.close(CloseReason::PeerSilent);
                    return;
                }
                Some(_) => {}
                None if now.since(self.last_activity) >= keepalive.idle => self.ping(now),
                None => {}
            }
        }
        if self.is_stalled(now) {
            self.close(CloseReason::DataOutStalled);
        }
    }

    /// In place of [`Self::handle_timeout`] while our side does not read: the initiator's silence says nothing then.
    pub fn postpone_timeouts(&mut self, now: Instant) {
        self.last_tick = now;
        self.last_activity = now;
        self.tasks.touch_all(now);
    }

    /// A burst is open and does not go on, though we take what comes.
    fn is_stalled(&self, now: Instant) -> bool {
        let late = |since: Instant| now.since(since).as_secs() >= limits::DATA_OUT_STALL_S;
        !matches!(self.sink(), PayloadSink::Wait { .. })
            && self.tasks.iter().any(|(_, task)| {
                task.phase != Phase::Offered && !task.data_out.is_quiet() && late(task.touched)
            })
    }

    fn close(&mut self, reason: CloseReason) {
        if self.state == State::Open {
            self.state = State::Closing;
            self.current = Current::Ignored;
            self.events.push_back(SessionEvent::Close(reason));
        }
    }

    /// Queues an answer; a peer that makes more of them than it reads is let go.
    fn answer(&mut self, answer: Answer, place: Option<Place>) {
        if self.output.len() >= limits::SESSION_ANSWERS_MAX {
            self.close(CloseReason::TooManyAnswers);
            return;
        }
        self.output.push_back(Queued::Answer(Box::new(answer), place));
    }

    /// Rejects the PDU being received. Its CmdSN counts as not received (11.17.1).
    fn reject(&mut self, reason: RejectReason) {
        let bhs = self.current_bhs;
        self.answer(Answer::Reject { reason, bhs }, None);
    }

    fn note_exp_stat_sn(&mut self, exp_stat_sn: StatSn) {
        // A number beyond what was sent is nonsense and changes nothing.
        let is_sent = !self.next_stat_sn.before(exp_stat_sn);
        if is_sent && self.exp_stat_sn.before(exp_stat_sn) {
            self.exp_stat_sn = exp_stat_sn;
        }
    }

    fn take_transfer_tag(&mut self) -> TargetTransferTag {
        let tag = self.next_transfer_tag;
        self.next_transfer_tag = match tag.wrapping_add(1) {
            // The reserved value never names a transfer.
            next if next == TargetTransferTag::RESERVED.0 => 0,
            next => next,
        };
        TargetTransferTag(tag)
    }

    /// Begins what waited for the gap that has just closed.
    fn release_held(&mut self, now: Instant) {
        while self.state == State::Open
            && let Some(held) = self.window.release()
        {
            self.held_bytes -= held.data_len();
            match held {
                Held::Command { command, unsolicited } => self.begin_held_command(command, unsolicited, now),
                Held::Control { bhs, data } => {
                    self.current_bhs = bhs;
                    self.dispatch_control(&bhs, &data);
                }
            }
        }
    }
}
