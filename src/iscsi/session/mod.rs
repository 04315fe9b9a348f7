//! A session in full-feature phase (RFC 7143, 4.2 to 4.6): requests in, events out; answers in, PDUs out.
//!
//! Knows the order of commands, tasks, data sequences, connections and every request an initiator may send after
//! login. Does not know bytes on a socket (`framer`), login, SCSI or buffers: data segments stay with the shard,
//! which asks [`Session::sink`] where each belongs.
//!
//! Driving it: `handle_header`, then `poll_event` until `None`, then `sink`, then the data, then `handle_end`,
//! then `poll_event` again; `poll_output` whenever there is room to send. Nothing is allocated for a READ or
//! WRITE that goes well.
//!
//! One window and one task table serve all connections of the session; StatSN, the output queue, the text exchange
//! and the PDU being received are each connection's own (`connection`). A command's data and answer travel on the
//! connection the command came on (4.2.5.1, connection allegiance).

mod connection;
mod control;
mod fence;
pub mod fuzz;
mod management;
mod output;
mod passing;
mod tasks;
#[cfg(test)]
mod tests;
mod text;

use std::collections::VecDeque;

use self::connection::{Connection, Connections, State};
use self::fence::Fence;
use self::management::Asked;
use self::output::{Answer, Queued};
use super::command_window::{CommandWindow, Place};
use super::discovery::SendTargets;
use super::pdu::bhs::Bhs;
use super::pdu::opcode::RequestOpcode;
use super::pdu::reject::RejectReason;
use super::pdu::scsi_command::{Cdb, ScsiCommand, TaskAttribute};
use super::pdu::{InitiatorTaskTag, LunField, TargetTransferTag, WindowSnapshot};
use super::serial::CmdSn;
use super::task::{Phase, TaskTable};
use crate::clock::{Duration, Instant};
use crate::limits;

pub use self::connection::{ConnectionId, ConnectionStart, Dropped};
pub use self::output::{OutData, OutPdu};
pub use self::passing::{Entering, Passing};
pub use self::tasks::Aborted;
pub use super::negotiate::SessionKind;
pub use super::pdu::task_mgmt::ManagementResponse;
pub use super::task::TaskId;

/// How often [`Session::handle_timeout`] looks around.
const TICK: Duration = Duration::from_secs(1);

/// What the login of the leading connection leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStart {
    pub kind: SessionKind,
    /// The CmdSN of the first command: that of the login requests.
    pub exp_cmd_sn: CmdSn,
    /// Commands the initiator may have under way, as its login was told: 1 to `COMMAND_WINDOW_MAX`.
    pub queue_depth: u32,
    pub connection: ConnectionStart,
}

/// When an initiator counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before it is pinged.
    pub idle: Duration,
    /// Silence after the ping before the connection is closed.
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
    /// Commands that other connections bring come first: no more bytes from this connection until
    /// [`SessionEvent::Resumed`] names it.
    Turn,
}

#[derive(Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Execute this. A command with `write_len` answers with `accept_data_out` or `complete`, others with
    /// `complete`.
    Command {
        /// The connection it came on, and where its answer goes.
        connection: ConnectionId,
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
    /// To be answered by `send_targets_reply`.
    SendTargets { connection: ConnectionId, request: SendTargets },
    /// The initiator leaves. The response is queued on `connection`; after it has been sent, close what `ends`
    /// names. Tasks of what ends are never answered: abort them.
    Logout { connection: ConnectionId, ends: LogoutScope },
    /// The answer to a TARGET COLD RESET is queued on `connection`; after it has been sent, close the session.
    Reset { connection: ConnectionId },
    /// The turn of a command has come whose data had to wait ([`PayloadSink::Turn`]): ask `sink` again.
    Resumed { connection: ConnectionId },
    /// The connection is beyond repair: send what is queued, then close it.
    Close { connection: ConnectionId, reason: CloseReason },
}

/// What a logout ends (RFC 7143, 11.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutScope {
    Session,
    /// This one, which may be another than the one that asked.
    Connection(ConnectionId),
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

/// The PDU that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    /// Nothing is wanted of it.
    Ignored,
    /// Handled when it is complete.
    Control { keep: u32 },
    /// Brings data of a task: immediate data, or a Data-Out that fits.
    Data { task: TaskId, offset: u32, len: u32, is_final: bool, is_immediate: bool },
    /// Brings data of a command that is held: begun again when the command's turn comes.
    Deferred { since: Instant },
}

/// A request ahead of its turn.
#[derive(Debug)]
struct Held {
    connection: ConnectionId,
    request: HeldRequest,
}

#[derive(Debug)]
enum HeldRequest {
    Command {
        command: ScsiCommand,
        /// Unsolicited Data-Out PDUs are still to come.
        unsolicited: bool,
        /// Some of its data has passed by.
        data_lost: bool,
    },
    Control {
        bhs: Bhs,
        data: Box<[u8]>,
    },
}

impl Held {
    /// Bytes it keeps (`HELD_BYTES_MAX`).
    fn data_len(&self) -> usize {
        match &self.request {
            HeldRequest::Command { .. } => 0,
            HeldRequest::Control { data, .. } => data.len(),
        }
    }
}

/// The full-feature machine of one session.
#[derive(Debug)]
pub struct Session {
    kind: SessionKind,
    window: CommandWindow<Held>,
    held_bytes: usize,
    tasks: TaskTable,
    /// Management requests that are not answered yet.
    management: Vec<Asked>,
    fence: Option<Box<Fence>>,
    connections: Connections,
    events: VecDeque<SessionEvent>,
    next_transfer_tag: u32,
}

impl Session {
    /// The session begins with its leading connection, [`ConnectionId::LEADING`].
    pub fn new(start: SessionStart) -> Self {
        let tasks = match start.kind {
            SessionKind::Normal => limits::session_tasks(start.queue_depth.min(limits::COMMAND_WINDOW_MAX)),
            SessionKind::Discovery => 0,
        };
        Self {
            kind: start.kind,
            window: CommandWindow::new(start.exp_cmd_sn, start.queue_depth),
            held_bytes: 0,
            tasks: TaskTable::new(tasks),
            management: Vec::new(),
            fence: None,
            connections: Connections::new(Connection::new(start.connection, tasks + 8)),
            events: VecDeque::with_capacity(8),
            next_transfer_tag: 0,
        }
    }

    /// The index of every task is below this.
    pub fn tasks_max(&self) -> usize {
        self.tasks.most()
    }

    /// A PDU header is complete. Queues events; after they are drained, ask `sink`.
    pub fn handle_header(&mut self, on: ConnectionId, bhs: &Bhs, ahs: &[u8], now: Instant) {
        let connection = &mut self.connections[on];
        connection.last_activity = now;
        connection.current = Current::Ignored;
        if connection.state != State::Open {
            return;
        }
        connection.current_bhs = *bhs;
        self.begin_due_management(None);
        let connection = &mut self.connections[on];
        let is_normal = self.kind == SessionKind::Normal;
        match RequestOpcode::from_byte(bhs.opcode()) {
            Some(RequestOpcode::ScsiCommand) if is_normal => self.begin_command_pdu(on, bhs, ahs, now),
            Some(RequestOpcode::DataOut) if is_normal => self.begin_data_out(on, bhs, now),
            Some(RequestOpcode::TaskManagement) if is_normal => {
                connection.current = Current::Control { keep: 0 };
            }
            Some(RequestOpcode::Logout) => connection.current = Current::Control { keep: 0 },
            Some(RequestOpcode::NopOut) => {
                let keep = connection.params.max_send_segment.min(limits::PING_BYTES_MAX as u32);
                connection.current = Current::Control { keep: keep.min(bhs.data_len()) };
            }
            Some(RequestOpcode::Text) if bhs.data_len() as usize <= limits::TEXT_BYTES_MAX => {
                connection.current = Current::Control { keep: bhs.data_len() };
            }
            Some(RequestOpcode::Text) => self.reject(on, RejectReason::InvalidPduField),
            // 11.12: login is over.
            Some(RequestOpcode::Login) => self.reject(on, RejectReason::ProtocolError),
            _ => self.reject(on, RejectReason::CommandNotSupported),
        }
    }

    /// Where the data of the PDU being received goes; may change from `Wait` or `Turn` to something else.
    pub fn sink(&self, on: ConnectionId) -> PayloadSink {
        match self.connections[on].current {
            Current::Control { keep } if keep > 0 => PayloadSink::Control { keep },
            Current::Data { task, offset, len, .. } if len > 0 => self.data_sink(task, offset, len),
            Current::Deferred { .. } => PayloadSink::Turn,
            _ => PayloadSink::Discard,
        }
    }

    /// The PDU is complete and its digest, if any, is good. `control` is its data where the sink was `Control`.
    pub fn handle_end(&mut self, on: ConnectionId, control: &[u8], now: Instant) {
        let connection = &mut self.connections[on];
        connection.last_activity = now;
        match core::mem::replace(&mut connection.current, Current::Ignored) {
            Current::Ignored | Current::Deferred { .. } => {}
            Current::Control { .. } => {
                let bhs = connection.current_bhs;
                self.sequence_control(on, &bhs, control, now);
            }
            Current::Data { task, len, is_final, is_immediate, .. } => {
                self.end_data(task, len, is_final, is_immediate, now);
            }
        }
        self.release_held(now);
    }

    /// Instead of `handle_end`: the data digest does not fit (RFC 7143, 7.8). The PDU is rejected; a task whose
    /// data it brought ends with CHECK CONDITION, because its header has been acted on already.
    pub fn handle_data_digest_error(&mut self, on: ConnectionId, now: Instant) {
        let connection = &mut self.connections[on];
        connection.last_activity = now;
        if connection.state != State::Open {
            return;
        }
        let current = core::mem::replace(&mut connection.current, Current::Ignored);
        self.reject(on, RejectReason::DataDigestError);
        if let Current::Data { task, is_final, is_immediate, .. } = current {
            self.lose_data(task, is_final, is_immediate);
        }
        self.release_held(now);
    }

    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Every task. Also those that are with the session alone, because it refused them or their data failed;
    /// `abort_task` says [`Aborted::Unknown`] of them.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, LunField, InitiatorTaskTag, CmdSn)> {
        let live = self.tasks.iter().filter(|(_, task)| task.phase != Phase::Aborting);
        live.map(|(id, task)| (id, task.lun, task.task_tag, task.cmd_sn))
    }

    /// True for a task that a function with this CmdSN finds in its task set (4.2.3.1): an earlier number, or an immediate
    /// command, which has the number of the next one.
    pub fn precedes(&self, task: TaskId, cmd_sn: CmdSn) -> bool {
        self.tasks.get(task).is_some_and(|task| {
            task.cmd_sn.before(cmd_sn) || task.place == Place::Immediate && task.cmd_sn == cmd_sn
        })
    }

    /// ExpCmdSN and MaxCmdSN as they are now.
    pub fn window(&self) -> WindowSnapshot {
        self.window.snapshot()
    }

    /// Nothing is executed or expected, and nothing queued on any connection.
    pub fn is_idle(&self) -> bool {
        self.window.is_idle() && self.connections.iter().all(|(_, connection)| connection.output.is_empty())
    }

    fn close(&mut self, on: ConnectionId, reason: CloseReason) {
        if self.connections[on].state == State::Open {
            self.connections[on].go(connection::Happening::Fails);
            self.connections[on].current = Current::Ignored;
            self.events.push_back(SessionEvent::Close { connection: on, reason });
        }
    }

    /// Queues an answer; a peer that makes more of them than it reads is let go.
    fn answer(&mut self, on: ConnectionId, answer: Answer, place: Option<Place>) {
        if self.connections[on].output.len() >= limits::SESSION_ANSWERS_MAX {
            if let Some(place) = place {
                self.window.finish(place);
            }
            return self.close(on, CloseReason::TooManyAnswers);
        }
        self.connections[on].output.push_back(Queued::Answer(Box::new(answer), place));
    }

    /// Rejects the PDU being received. Its CmdSN counts as not received (7.3).
    fn reject(&mut self, on: ConnectionId, reason: RejectReason) {
        let bhs = self.connections[on].current_bhs;
        self.answer(on, Answer::Reject { reason, bhs }, None);
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
        loop {
            // A function stands between the commands before it and those behind it.
            self.begin_due_management(None);
            let Some(Held { connection: on, request }) = self.window.release() else { return };
            match request {
                // The connection is being closed: its number counts, the request does not.
                _ if self.connections[on].state != State::Open => self.window.skip(),
                HeldRequest::Command { command, unsolicited, data_lost } => {
                    self.begin_held_command(on, command, unsolicited, data_lost, now);
                }
                HeldRequest::Control { bhs, data } => {
                    self.held_bytes -= data.len();
                    let receiving = core::mem::replace(&mut self.connections[on].current_bhs, bhs);
                    self.dispatch_control(on, &bhs, &data, now);
                    self.connections[on].current_bhs = receiving;
                }
            }
        }
    }
}
