//! One connection: its stream in, its phase, its queue out.
//!
//! Knows the framer, the login machine and the session, and feeds them. Does not know the ring (operations go
//! through `Core::ops`) nor other connections: what concerns those goes into `Core`'s and its own requests.
//!
//! | phase        | a PDU goes to      | leaves by                                                    |
//! |--------------|--------------------|--------------------------------------------------------------|
//! | `Login`      | the login machine  | established; failed; its target lives on another shard       |
//! | `HandingOff` | nobody (it waits)  | receive has ended: the socket moves                          |
//! | `Full`       | the session        | logout, protocol error, end of stream, reinstatement         |
//! | `Closing`    | nobody             | nothing is pending on the socket any more                    |

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::clock::Instant;
use crate::io::{Op, RxBuf, SocketSlot};
use crate::iscsi::framer::{Framer, Step};
use crate::iscsi::login::LoginMachine;
use crate::iscsi::session::{OutData, PayloadSink, Session, SessionEvent, TaskId, TaskReply};
use crate::limits;
use crate::scsi::{Nexus, ScsiStatus};

use super::executor::{Begun, Core, Request, TaskKey};
use super::mailbox::Named;
use super::task::Stage;
use super::token::{Kind, Token};
use super::tx_queue::TxQueue;
use super::{ConnKey, ShardId};

#[derive(Debug)]
pub(super) struct FullFeature {
    pub(super) session: Box<Session>,
    /// `None`: a discovery session.
    pub(super) target: Option<u32>,
    pub(super) nexus: Nexus,
    pub(super) initiator: String,
    /// The executor's task of each session task.
    tasks: Box<[Option<TaskKey>]>,
    /// Commands the executor had no room for, in order. Each is a task of the session, so there are few.
    stalled: VecDeque<Request>,
    /// Bytes of data-in begun and not yet queued for sending.
    in_bytes: usize,
}

#[derive(Debug)]
pub(super) enum Phase {
    Login(Box<LoginMachine>),
    HandingOff { login: Box<LoginMachine>, to: ShardId, named: Named },
    Full(Box<FullFeature>),
    Closing,
}

/// What a connection wants of its shard after it was fed.
#[derive(Debug)]
pub(super) enum Want {
    /// The login machine has an event.
    LoginEvent,
    /// A task management function (`Management` event), text or logout.
    SessionEvent(SessionEvent),
    Close(&'static str),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: ConnKey,
    pub(super) socket: SocketSlot,
    pub(super) peer: SocketAddr,
    pub(super) phase: Phase,
    pub(super) framer: Framer,
    sink: PayloadSink,
    /// The data segment of a PDU that is no data of a command.
    control: Vec<u8>,
    pub(super) tx: TxQueue,
    /// Received and not yet processed; the number is how much of the first is done.
    pub(super) unread: VecDeque<RxBuf>,
    pub(super) unread_done: u32,
    /// Bytes that came with a hand-off.
    pub(super) carried: Vec<u8>,
    pub(super) recv_armed: bool,
    pub(super) stream_ended: bool,
    /// The shard must act before more can be processed.
    pub(super) waiting: bool,
    /// Close once everything queued is sent.
    pub(super) close_after_send: bool,
    pub(super) since: Instant,
    /// When a PDU or a send last ended, and when a send last began or went on.
    pub(super) last_progress: Instant,
    pub(super) last_sent: Instant,
    pub(super) dirty: bool,
    /// There was no buffer to stage a PDU into.
    pub(super) starved: bool,
    /// Its close is with the ring.
    pub(super) socket_closing: bool,
}

impl Connection {
    pub(super) fn new(
        key: ConnKey,
        socket: SocketSlot,
        peer: SocketAddr,
        login: Box<LoginMachine>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            socket,
            peer,
            phase: Phase::Login(login),
            framer: Framer::new(limits::LOGIN_SEGMENT_BYTES_MAX),
            sink: PayloadSink::Discard,
            control: Vec::new(),
            tx: TxQueue::new(),
            unread: VecDeque::new(),
            unread_done: 0,
            carried: Vec::new(),
            recv_armed: false,
            stream_ended: false,
            waiting: false,
            close_after_send: false,
            since: now,
            last_progress: now,
            last_sent: now,
            dirty: false,
            starved: false,
            socket_closing: false,
        }
    }

    /// Feeds received bytes; returns how many were used. Less than all: the connection is stalled or waiting.
    pub(super) fn feed(&mut self, core: &mut Core, bytes: &[u8], wants: &mut Vec<Want>) -> usize {
        let mut input = bytes;
        while !self.is_blocked() {
            match self.framer.next(&mut input) {
                Step::NeedMore => break,
                Step::Header => self.header(core, wants),
                Step::Payload { offset, bytes } => self.payload(core, offset, bytes),
                Step::End => self.end(core, wants),
                Step::HeaderDigestError => wants.push(Want::Close("a header digest is wrong")),
                Step::DataDigestError => {
                    self.sink = PayloadSink::Discard;
                    if let Phase::Full(full) = &mut self.phase {
                        full.session.handle_data_digest_error(core.now);
                        self.drain_session(core, wants);
                    }
                }
                Step::TooLong { .. } => wants.push(Want::Close("a data segment is longer than declared")),
            }
            if matches!(wants.last(), Some(Want::Close(_))) {
                self.waiting = true;
            }
        }
        bytes.len() - input.len()
    }

    /// True while nothing more may be processed. A stalled command alone does not block: only its data does.
    pub(super) fn is_blocked(&self) -> bool {
        let moving = matches!(self.phase, Phase::HandingOff { .. } | Phase::Closing);
        moving || self.waiting || self.close_after_send || matches!(self.sink, PayloadSink::Wait { .. })
    }

    pub(super) fn has_stalled(&self) -> bool {
        matches!(&self.phase, Phase::Full(full) if !full.stalled.is_empty())
    }

    fn header(&mut self, core: &mut Core, wants: &mut Vec<Want>) {
        self.control.clear();
        match &mut self.phase {
            Phase::Full(full) => {
                full.session.handle_header(self.framer.bhs(), self.framer.ahs(), core.now);
                self.drain_session(core, wants);
                if let Phase::Full(full) = &mut self.phase {
                    self.sink = full.next_sink(core);
                }
            }
            _ => self.sink = PayloadSink::Control { keep: limits::LOGIN_SEGMENT_BYTES_MAX },
        }
    }

    fn payload(&mut self, core: &mut Core, offset: u32, bytes: &[u8]) {
        match self.sink {
            PayloadSink::Discard | PayloadSink::Wait { .. } => {}
            PayloadSink::Control { keep } => {
                let room = (keep as usize).saturating_sub(offset as usize);
                self.control.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            PayloadSink::Task { task, offset: base, len } => {
                let room = len.saturating_sub(offset) as usize;
                let bytes = &bytes[..bytes.len().min(room)];
                if let Phase::Full(full) = &self.phase
                    && let Some(key) = full.tasks[task.index as usize]
                    && let Some(task) = core.tasks.get_mut(key)
                {
                    task.fill_out(base.saturating_add(offset), bytes);
                }
            }
        }
    }

    fn end(&mut self, core: &mut Core, wants: &mut Vec<Want>) {
        self.last_progress = core.now;
        self.sink = PayloadSink::Discard;
        match &mut self.phase {
            Phase::Login(login) => {
                login.handle_pdu(self.framer.bhs(), &self.control);
                self.waiting = true;
                wants.push(Want::LoginEvent);
            }
            Phase::Full(full) => {
                full.session.handle_end(&self.control, core.now);
                self.drain_session(core, wants);
            }
            Phase::HandingOff { .. } | Phase::Closing => {}
        }
    }

    /// Executes what the session has decided.
    pub(super) fn drain_session(&mut self, core: &mut Core, wants: &mut Vec<Want>) {
        let Phase::Full(full) = &mut self.phase else { return };
        while let Some(event) = full.session.poll_event() {
            match event {
                SessionEvent::Command { task, lun, cdb, read_len, write_len, attribute, .. } => {
                    // A discovery session has no tasks (`Session::new`), so there is nothing to answer.
                    let Some(target) = full.target else { continue };
                    let request = Request {
                        conn: self.key,
                        id: task,
                        target,
                        nexus: full.nexus,
                        lun_field: lun.0,
                        cdb: cdb.bytes,
                        attribute,
                        read_len,
                        write_len,
                    };
                    // Behind a command that waits, all wait: they begin in order.
                    if !full.stalled.is_empty() || !full.try_begin(core, &request) {
                        full.stalled.push_back(request);
                    }
                }
                SessionEvent::DataComplete { task, received } => {
                    if let Some(key) = full.tasks[task.index as usize] {
                        core.data_complete(key, received);
                    }
                }
                SessionEvent::DataFailed { task } => {
                    full.stalled.retain(|request| request.id != task);
                    full.forget(core, task);
                }
                event => {
                    self.waiting = true;
                    wants.push(Want::SessionEvent(event));
                }
            }
        }
    }

    /// Offers stalled commands again, in order. True when something came of it.
    pub(super) fn retry(&mut self, core: &mut Core, wants: &mut Vec<Want>) -> bool {
        let Phase::Full(full) = &mut self.phase else { return false };
        let (stalled, blocked) = (full.stalled.len(), matches!(self.sink, PayloadSink::Wait { .. }));
        while let Some(request) = full.stalled.front().copied() {
            // One that was aborted meanwhile is no task of the session any more.
            let lives = full.session.tasks().any(|(id, ..)| id == request.id);
            if lives && !full.try_begin(core, &request) {
                break;
            }
            full.stalled.pop_front();
        }
        let begun = full.stalled.len() < stalled;
        // What began may have had all its data already.
        self.drain_session(core, wants);
        if let Phase::Full(full) = &mut self.phase {
            self.sink = full.next_sink(core);
        }
        begun || blocked && !matches!(self.sink, PayloadSink::Wait { .. })
    }

    /// Moves every PDU the session has ready into the send queue.
    pub(super) fn pump(&mut self, core: &mut Core) {
        self.dirty = false;
        self.starved = false;
        let Phase::Full(full) = &mut self.phase else { return };
        while self.tx.queued_bytes() < limits::CONNECTION_SEND_BYTES_MAX {
            if !self.tx.can_stage(&core.pool) {
                self.starved = !full.session.is_idle();
                break;
            }
            let Some(out) = full.session.poll_output(core.now) else { break };
            match out.data {
                OutData::None => self.tx.stage_inline(&core.pool, &out.header, &[]),
                OutData::Inline(bytes) => self.tx.stage_inline(&core.pool, &out.header, &bytes),
                OutData::Task { task, offset, len } => {
                    let key = full.tasks[task.index as usize];
                    if let Some(task) = key.and_then(|key| core.tasks.get(key)) {
                        self.tx.stage_parts(&out.header, task.in_parts(offset, len), len);
                    }
                }
            }
            if let Some(task) = out.finished {
                full.forget(core, task);
            }
        }
    }

    /// Starts receiving unless that is under way or not wanted: never on a socket that is closing or moving.
    pub(super) fn arm_recv(&mut self, core: &mut Core) {
        let open = matches!(self.phase, Phase::Login(_) | Phase::Full(_));
        if open
            && !self.recv_armed
            && !self.stream_ended
            && self.unread.len() < limits::CONNECTION_UNREAD_BUFFERS_MAX
            && self.carried.len() < limits::CONNECTION_CARRIED_BYTES_MAX
        {
            self.recv_armed = true;
            core.submit(Token::of(Kind::Recv, self.key, 0), Op::Recv { socket: self.socket });
        }
    }

    pub(super) fn full(&mut self) -> Option<&mut FullFeature> {
        match &mut self.phase {
            Phase::Full(full) => Some(full),
            _ => None,
        }
    }
}

impl FullFeature {
    pub(super) fn new(session: Box<Session>, target: Option<u32>, nexus: Nexus, initiator: String) -> Self {
        let tasks = vec![None; limits::SESSION_TASKS_MAX].into_boxed_slice();
        Self { session, target, nexus, initiator, tasks, stalled: VecDeque::new(), in_bytes: 0 }
    }

    /// False when the executor has no room, or this connection has enough on its way already.
    fn try_begin(&mut self, core: &mut Core, request: &Request) -> bool {
        if self.in_bytes > 0 && self.in_bytes + request.read_len as usize > limits::CONNECTION_READ_BYTES_MAX
        {
            return false;
        }
        let key = match core.begin(request) {
            Begun::Busy => return false,
            Begun::Running(key) => key,
            Begun::NeedsData { task, wanted } => {
                self.session.accept_data_out(request.id, wanted);
                task
            }
        };
        self.in_bytes += request.read_len as usize;
        self.tasks[request.id.index as usize] = Some(key);
        if let Some(task) = core.tasks.get_mut(key) {
            task.read_len = request.read_len;
        }
        true
    }

    /// Where the payload of the PDU being received goes. A command that neither waits for room nor takes data has been
    /// decided without any.
    fn sink(&self) -> PayloadSink {
        match self.session.sink() {
            PayloadSink::Wait { task } if !self.stalled.iter().any(|request| request.id == task) => {
                PayloadSink::Discard
            }
            sink => sink,
        }
    }

    /// As `sink`, but never to wait for room while commands that hold buffers wait for what comes behind.
    fn next_sink(&mut self, core: &Core) -> PayloadSink {
        if let PayloadSink::Wait { task } = self.sink()
            && self.awaits_data(core)
        {
            self.refuse(task);
        }
        self.sink()
    }

    /// A command that has begun waits for data of this connection.
    fn awaits_data(&self, core: &Core) -> bool {
        self.task_keys().filter_map(|key| core.tasks.get(key)).any(|task| task.stage == Stage::Collect)
    }

    /// TASK SET FULL: the initiator sends the command again (SAM-5, 5.3.1). Its data is on its way and there is no
    /// room for it. To wait would be to wait for ever: the data of commands that hold buffers comes behind it.
    fn refuse(&mut self, task: TaskId) {
        self.stalled.retain(|request| request.id != task);
        let status = ScsiStatus::TaskSetFull.code();
        self.session.complete(task, TaskReply { status, sense: &[], data_in: 0 });
    }

    /// The session needs this task no more.
    pub(super) fn forget(&mut self, core: &mut Core, id: TaskId) {
        if let Some(key) = self.tasks[id.index as usize].take() {
            if let Some(task) = core.tasks.get(key) {
                self.in_bytes -= task.read_len as usize;
            }
            core.abort(key);
        }
    }

    /// The executor's task behind a session task.
    pub(super) fn task_key(&self, id: TaskId) -> Option<TaskKey> {
        self.tasks[id.index as usize]
    }

    /// The executor's tasks of this session.
    pub(super) fn task_keys(&self) -> impl Iterator<Item = TaskKey> {
        self.tasks.iter().flatten().copied()
    }

    /// Every task is forgotten; what the ring still does for them ends by itself.
    pub(super) fn forget_all(&mut self, core: &mut Core) {
        self.stalled.clear();
        for slot in &mut self.tasks {
            if let Some(key) = slot.take() {
                core.abort(key);
            }
        }
        self.in_bytes = 0;
    }
}
