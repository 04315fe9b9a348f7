//! A session as its shard keeps it: its machine, its connections, and the executor's task behind each of its tasks.
//!
//! Knows which commands wait for room and how much each connection has on its way. Does not know sockets or PDUs.
//!
//! All connections of a session are on the shard that owns its target, so its commands begin in one order.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::clock::Instant;
use crate::iscsi::session::{ConnectionId, PayloadSink, Session, SessionEvent, TaskId, TaskReply};
use crate::limits;
use crate::scsi::{Nexus, ScsiStatus};
use crate::slab::{Key, Slab};

use super::ConnKey;
use super::boot::Visit;
use super::connection::Want;
use super::executor::{Begun, Core, Request, TaskKey};
use super::metrics::{CommandKind, SessionCounts, Timing};
use super::task::Stage;

pub(super) type SessionKey = Key<Box<ServedSession>>;
pub(super) type Sessions = Slab<Box<ServedSession>>;

/// A connection's place in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) session: SessionKey,
    pub(super) on: ConnectionId,
}

#[derive(Debug)]
pub(super) struct ServedSession {
    pub(super) machine: Session,
    /// `None`: a discovery session.
    pub(super) target: Option<u32>,
    pub(super) nexus: Nexus,
    pub(super) initiator: String,
    /// Of its leading connection, when it began.
    pub(super) peer: SocketAddr,
    pub(super) visit: Visit,
    pub(super) counts: SessionCounts,
    /// Commands in progress.
    running: u32,
    /// When it last had a command that was answered at once (`express`).
    passed_at: Option<Instant>,
    connections: [Option<ConnKey>; limits::SESSION_CONNECTIONS_MAX],
    /// The executor's task of each session task, and the connection whose bytes it counts.
    tasks: Box<[Option<(TaskKey, ConnectionId)>]>,
    /// Commands the executor had no room for, in order. Each is a task of the session, so there are few.
    stalled: VecDeque<Request>,
    /// Bytes of data-in begun and not yet queued for sending, by connection.
    in_bytes: [usize; limits::SESSION_CONNECTIONS_MAX],
    /// No command begins until what was aborted has ended: a late write must not land on top of a newer one.
    pub(super) awaits_drain: bool,
}

impl ServedSession {
    pub(super) fn new(
        machine: Session,
        leading: ConnKey,
        target: Option<u32>,
        nexus: Nexus,
        initiator: String,
        peer: SocketAddr,
        visit: Visit,
    ) -> Self {
        let tasks = machine.tasks_max();
        let mut connections = [None; limits::SESSION_CONNECTIONS_MAX];
        connections[ConnectionId::LEADING.index()] = Some(leading);
        Self {
            machine,
            target,
            nexus,
            initiator,
            peer,
            visit,
            counts: SessionCounts::default(),
            running: 0,
            passed_at: None,
            connections,
            tasks: vec![None; tasks].into_boxed_slice(),
            stalled: VecDeque::new(),
            in_bytes: [0; limits::SESSION_CONNECTIONS_MAX],
            awaits_drain: false,
        }
    }

    pub(super) fn set_connection(&mut self, on: ConnectionId, key: Option<ConnKey>) {
        self.connections[on.index()] = key;
    }

    pub(super) fn connection(&self, on: ConnectionId) -> Option<ConnKey> {
        self.connections[on.index()]
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = ConnKey> {
        self.connections.iter().flatten().copied()
    }

    /// The same, to keep while the session changes.
    pub(super) fn connections_now(&self) -> impl Iterator<Item = ConnKey> + use<> {
        self.connections.into_iter().flatten()
    }

    pub(super) fn running(&self) -> u32 {
        self.running
    }

    pub(super) fn has_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Executes what the machine has decided; what concerns more than tasks goes into `wants`.
    pub(super) fn drain(&mut self, own: SessionKey, core: &mut Core, wants: &mut Vec<Want>) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                SessionEvent::Command {
                    connection, task, lun, cdb, read_len, write_len, attribute, ..
                } => {
                    // A discovery session has no tasks (`Session::new`), so there is nothing to answer.
                    let (Some(target), Some(conn)) = (self.target, self.connection(connection)) else {
                        continue;
                    };
                    let request = Request {
                        conn,
                        id: task,
                        target,
                        nexus: self.nexus,
                        lun_field: lun.0,
                        cdb: cdb.bytes,
                        attribute,
                        read_len,
                        write_len,
                        since: core.now,
                    };
                    // Behind a command that waits, all wait: they begin in order.
                    if !self.stalled.is_empty() || !self.try_begin(core, &request, connection) {
                        self.stalled.push_back(request);
                    }
                }
                SessionEvent::DataComplete { task, received } => {
                    if let Some(key) = self.task_key(task) {
                        core.data_complete(key, received);
                    }
                }
                SessionEvent::DataFailed { task } => {
                    self.stalled.retain(|request| request.id != task);
                    self.forget(core, task);
                }
                event => wants.push(Want::SessionEvent(own, event)),
            }
        }
    }

    /// Offers stalled commands again, in order. True when some began.
    pub(super) fn retry(&mut self, core: &mut Core) -> bool {
        let before = self.stalled.len();
        while let Some(request) = self.stalled.front().copied() {
            // One that was aborted meanwhile is no task of the session any more.
            let lives = self.machine.tasks().any(|(id, ..)| id == request.id);
            let on = self.machine.allegiance(request.id);
            if let Some(on) = on.filter(|_| lives)
                && !self.try_begin(core, &request, on)
            {
                break;
            }
            self.stalled.pop_front();
        }
        self.stalled.len() < before
    }

    /// False when the executor has no room, or the connection has enough on its way already.
    fn try_begin(&mut self, core: &mut Core, request: &Request, on: ConnectionId) -> bool {
        let in_bytes = self.in_bytes[on.index()];
        if self.awaits_drain
            || core.targets[request.target as usize].is_held()
            || in_bytes > 0 && in_bytes + request.read_len as usize > limits::CONNECTION_READ_BYTES_MAX
        {
            return false;
        }
        if let Err(due) = core.targets[request.target as usize].rate.ready(core.now) {
            core.rate_due = Some(core.rate_due.map_or(due, |earlier| earlier.min(due)));
            return false;
        }
        let key = match core.begin(request) {
            Begun::Busy => return false,
            Begun::Running(key) => key,
            Begun::NeedsData { task, wanted } => {
                self.machine.accept_data_out(request.id, wanted);
                task
            }
        };
        let bytes = u64::from(request.read_len) + u64::from(request.write_len);
        core.targets[request.target as usize].rate.charge(core.now, bytes);
        self.in_bytes[on.index()] += request.read_len as usize;
        self.tasks[request.id.index as usize] = Some((key, on));
        if let Some(task) = core.tasks.get_mut(key) {
            task.read_len = request.read_len;
        }
        self.running += 1;
        self.note_depth(core, request.target);
        true
    }

    /// A command has begun: with two at once the session is a system's.
    fn note_depth(&mut self, core: &mut Core, target: u32) {
        if !self.visit.system && (self.running > 1 || self.passed_at == Some(core.now)) {
            let segment = self.machine.params(ConnectionId::LEADING).max_send_segment;
            let (now, nexus) = (core.now, self.nexus);
            core.targets[target as usize].is_system(now, nexus, segment, &mut self.visit);
        }
    }

    /// The target of a READ of so many bytes that comes now and may be answered before anything else of this connection.
    pub(super) fn lets_pass(&self, core: &Core, on: ConnectionId, bytes: u32) -> bool {
        let in_bytes = self.in_bytes[on.index()];
        self.stalled.is_empty()
            && !self.awaits_drain
            && (in_bytes == 0 || in_bytes + bytes as usize <= limits::CONNECTION_READ_BYTES_MAX)
            && core.has_room()
    }

    /// A READ of so many bytes is answered, and its answer ends with the last of `queued` bytes.
    pub(super) fn passed(
        &mut self,
        core: &mut Core,
        target: u32,
        bytes: u32,
        timing: &mut Timing,
        queued: usize,
    ) {
        let bytes = u64::from(bytes);
        let owner = &mut core.targets[target as usize];
        owner.rate.charge(core.now, bytes);
        owner.boot.read(core.now, bytes);
        core.metrics.answered(CommandKind::Read, bytes, true, &mut self.counts);
        timing.queued(CommandKind::Read, core.now, queued);
        if !self.visit.system {
            self.running += 1;
            self.note_depth(core, target);
            self.running -= 1;
            self.passed_at = Some(core.now);
        }
    }

    /// A WRITE has begun with all its data.
    pub(super) fn entered(
        &mut self,
        core: &mut Core,
        target: u32,
        on: ConnectionId,
        id: TaskId,
        key: TaskKey,
    ) {
        let bytes = core.tasks.get(key).map_or(0, |task| task.out_wanted);
        core.targets[target as usize].rate.charge(core.now, u64::from(bytes));
        self.tasks[usize::from(id.index)] = Some((key, on));
        self.running += 1;
        self.note_depth(core, target);
        core.begin_taken(key, id);
    }

    /// Where the payload of the PDU being received goes. A command that neither waits for room nor takes data has been
    /// decided without any.
    fn sink(&self, on: ConnectionId) -> PayloadSink {
        match self.machine.sink(on) {
            PayloadSink::Wait { task } if !self.stalled.iter().any(|request| request.id == task) => {
                PayloadSink::Discard
            }
            sink => sink,
        }
    }

    /// As `sink`, but never to wait for room while commands that hold buffers wait for what comes behind.
    pub(super) fn next_sink(&mut self, on: ConnectionId, core: &Core) -> PayloadSink {
        if let PayloadSink::Wait { task } = self.sink(on)
            && self.awaits_data(core)
        {
            self.refuse(task);
        }
        self.sink(on)
    }

    /// A command that has begun waits for data of this session.
    fn awaits_data(&self, core: &Core) -> bool {
        self.task_keys().filter_map(|key| core.tasks.get(key)).any(|task| task.stage == Stage::Collect)
    }

    /// TASK SET FULL: the initiator sends the command again (SAM-5, 5.3.1). Its data is on its way and there is no
    /// room for it. To wait would be to wait for ever: the data of commands that hold buffers comes behind it.
    fn refuse(&mut self, task: TaskId) {
        self.stalled.retain(|request| request.id != task);
        let status = ScsiStatus::TaskSetFull.code();
        self.machine.complete(task, TaskReply { status, sense: &[], data_in: 0 });
    }

    /// The answer of this task is queued, and ends with the last of `queued` bytes.
    pub(super) fn count(&mut self, core: &mut Core, id: TaskId, timing: &mut Timing, queued: usize) {
        let Some(task) = self.task_key(id).and_then(|key| core.tasks.get(key)) else { return };
        let kind = CommandKind::of(&task.cdb);
        let bytes = u64::from(match kind {
            CommandKind::Read => task.in_total.min(task.read_len),
            _ => task.out_received,
        });
        core.metrics.answered(kind, bytes, task.status == ScsiStatus::Good, &mut self.counts);
        timing.queued(kind, task.since, queued);
        if let (CommandKind::Read, Some(target)) = (kind, self.target) {
            core.targets[target as usize].boot.read(core.now, bytes);
        }
    }

    /// The session needs this task no more.
    pub(super) fn forget(&mut self, core: &mut Core, id: TaskId) {
        if let Some((key, on)) = self.tasks[id.index as usize].take() {
            self.running -= 1;
            if let Some(task) = core.tasks.get(key) {
                self.in_bytes[on.index()] -= task.read_len as usize;
            }
            core.abort(key);
        }
    }

    /// Commands of this connection that have not begun never will.
    pub(super) fn forget_stalled_of(&mut self, conn: ConnKey) {
        self.stalled.retain(|request| request.conn != conn);
    }

    /// The executor's task behind a session task.
    pub(super) fn task_key(&self, id: TaskId) -> Option<TaskKey> {
        self.tasks[id.index as usize].map(|(key, _)| key)
    }

    /// The executor's tasks of this session.
    pub(super) fn task_keys(&self) -> impl Iterator<Item = TaskKey> {
        self.tasks.iter().flatten().map(|(key, _)| *key)
    }

    /// Every task is forgotten; what the ring still does for them ends by itself.
    pub(super) fn forget_all(&mut self, core: &mut Core) {
        self.stalled.clear();
        for slot in &mut self.tasks {
            if let Some((key, _)) = slot.take() {
                core.abort(key);
            }
        }
        self.in_bytes = [0; limits::SESSION_CONNECTIONS_MAX];
        self.running = 0;
    }
}
