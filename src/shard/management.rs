//! What concerns more than one connection: task management, closing, text and logout.
//!
//! Knows which tasks a function hits. Does not know how they run (`executor`) nor PDU layouts.

use crate::io::{Io, Op};
use crate::iscsi::discovery::{SendTargets, TargetListing};
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::task_mgmt::ManagementResponse;
use crate::iscsi::serial::CmdSn;
use crate::iscsi::session::{CloseReason, ManagementFunction, SessionEvent, TaskId};
use crate::scsi::{Lun, Nexus};

use super::connection::{Phase, Want};
use super::executor::Preempting;
use super::target::PendingManagement;
use super::token::{Kind, Token};
use super::{ConnKey, PORTAL_GROUP, Shard};

/// Whose tasks a function ends.
#[derive(Clone, Copy, Debug)]
enum Scope {
    Task(TaskId),
    /// The requesting nexus' tasks on this unit.
    NexusUnit([u8; 8]),
    /// Everybody's tasks on this unit.
    Unit([u8; 8]),
    /// Everybody's tasks.
    Target,
}

impl<I: Io> Shard<I> {
    pub(super) fn want(&mut self, key: ConnKey, want: Want) {
        match want {
            Want::LoginEvent => self.login_event(key),
            Want::Close(reason) => {
                if let Some(connection) = self.connections.get_mut(key) {
                    tracing::info!(peer = %connection.peer, reason, "protocol error");
                }
                self.close(key, reason);
            }
            Want::SessionEvent(event) => self.session_event(key, event),
        }
    }

    fn session_event(&mut self, key: ConnKey, event: SessionEvent) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.waiting = false;
        match event {
            SessionEvent::Management { function, task_tag, lun, cmd_sn } => {
                self.manage(key, function, task_tag, lun.0, cmd_sn);
            }
            SessionEvent::SendTargets { value } => self.send_targets(key, &value),
            SessionEvent::Logout { .. } => connection.close_after_send = true,
            SessionEvent::Close(CloseReason::PeerSilent) => self.close(key, "the initiator is silent"),
            SessionEvent::Close(reason) => {
                tracing::info!(peer = %connection.peer, %reason, "session given up");
                connection.close_after_send = true;
            }
            SessionEvent::Command { .. }
            | SessionEvent::DataComplete { .. }
            | SessionEvent::DataFailed { .. } => {}
        }
        self.mark_dirty(key);
    }

    /// A session's own timer ran out: its events are executed outside of any PDU.
    pub(super) fn session_timed_out(&mut self, key: ConnKey) {
        let mut wants = core::mem::take(&mut self.wants);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.drain_session(&mut self.core, &mut wants);
        }
        for want in wants.drain(..) {
            self.want(key, want);
        }
        self.wants = wants;
        self.mark_dirty(key);
    }

    /// PREEMPT AND ABORT (SPC-4, 5.12.11.2.6): ends the commands of the preempted nexuses, and answers once what the
    /// ring does for them has ended too.
    pub(super) fn end_preempted(&mut self) {
        for mut preempting in core::mem::take(&mut self.core.preempting) {
            let index = preempting.target as usize;
            for victim in core::mem::take(&mut preempting.victims) {
                if self.end_tasks_of(&preempting, victim) {
                    self.core.targets[index].device.aborted_by_other(victim, preempting.unit);
                }
            }
            if self.core.targets[index].aborted_in_flight == 0 {
                if self.core.tasks.get(preempting.task).is_some() {
                    self.core.finish(preempting.task);
                }
            } else {
                self.core.preempting.push(preempting);
            }
        }
    }

    /// Ends what `victim` has on the unit, but for the preempting command itself. True when that was something.
    fn end_tasks_of(&mut self, preempting: &Preempting, victim: Nexus) -> bool {
        let target = &self.core.targets[preempting.target as usize];
        let Some(lun) = target.device.lun(preempting.unit) else { return false };
        let conn = target.sessions.iter().find(|session| session.nexus == victim).map(|session| session.conn);
        let Some(full) = conn.and_then(|conn| self.connections.get_mut(conn)).and_then(|c| c.full()) else {
            return false;
        };
        let ended: Vec<_> = full
            .session
            .tasks()
            .filter(|(_, field, ..)| Lun::from_field(field.0) == Ok(lun))
            .map(|(task, ..)| task)
            .filter(|task| full.task_key(*task) != Some(preempting.task))
            .collect();
        for task in &ended {
            full.session.abort_task(*task);
            full.forget(&mut self.core, *task);
        }
        !ended.is_empty()
    }

    /// RFC 7143, 11.5: what the function ends is forgotten; the response waits until it has really ended.
    fn manage(
        &mut self,
        key: ConnKey,
        function: ManagementFunction,
        task_tag: InitiatorTaskTag,
        lun: [u8; 8],
        cmd_sn: CmdSn,
    ) {
        let Some(full) = self.connections.get_mut(key).and_then(|connection| connection.full()) else {
            return;
        };
        let (Some(index), nexus) = (full.target, full.nexus) else { return };
        tracing::info!(initiator = %full.initiator, ?function, "task management");
        let mut response = ManagementResponse::FunctionComplete;
        let scope = match function {
            ManagementFunction::AbortTask(task) => Scope::Task(task),
            ManagementFunction::AbortTaskSet => Scope::NexusUnit(lun),
            ManagementFunction::ClearTaskSet | ManagementFunction::LunReset => Scope::Unit(lun),
            ManagementFunction::TargetWarmReset | ManagementFunction::TargetColdReset => Scope::Target,
        };
        let device = &mut self.core.targets[index as usize].device;
        let unit = device.unit(lun);
        if matches!(scope, Scope::NexusUnit(_) | Scope::Unit(_)) && unit.is_none() {
            response = ManagementResponse::LunDoesNotExist;
        } else {
            match function {
                ManagementFunction::LunReset => {
                    if let Some(unit) = unit {
                        device.reset_unit(unit);
                    }
                }
                ManagementFunction::TargetWarmReset | ManagementFunction::TargetColdReset => {
                    device.reset();
                }
                _ => {}
            }
            self.end_tasks(key, index, nexus, scope, function, cmd_sn);
        }
        let pending = PendingManagement { conn: key, task_tag, response };
        self.core.targets[index as usize].management.push(pending);
        self.awaiting_drain.push((index, key));
        if function == ManagementFunction::TargetColdReset {
            self.cold_reset(key, index);
        }
    }

    fn end_tasks(
        &mut self,
        key: ConnKey,
        index: u32,
        nexus: Nexus,
        scope: Scope,
        function: ManagementFunction,
        cmd_sn: CmdSn,
    ) {
        let victims: Vec<_> = self.core.targets[index as usize]
            .sessions
            .iter()
            .filter(|session| matches!(scope, Scope::Unit(_) | Scope::Target) || session.nexus == nexus)
            .map(|session| (session.conn, session.nexus))
            .collect();
        // A LUN has more than one form (SAM-5, 4.7): tasks may have been sent to another than the function's.
        let same = |field: [u8; 8], unit: [u8; 8]| Lun::from_field(field) == Lun::from_field(unit);
        for (conn, victim) in victims {
            let Some(full) = self.connections.get_mut(conn).and_then(|connection| connection.full()) else {
                continue;
            };
            let ended: Vec<_> = full
                .session
                .tasks()
                .filter(|(task, lun, _, sn)| match scope {
                    Scope::Task(only) => conn == key && *task == only,
                    Scope::NexusUnit(unit) => same(lun.0, unit) && sn.before(cmd_sn),
                    Scope::Unit(unit) => same(lun.0, unit),
                    Scope::Target => true,
                })
                .map(|(task, ..)| task)
                .collect();
            for task in &ended {
                full.session.abort_task(*task);
                full.forget(&mut self.core, *task);
            }
            if function == ManagementFunction::ClearTaskSet
                && victim != nexus
                && !ended.is_empty()
                && let Scope::Unit(unit) = scope
            {
                let device = &mut self.core.targets[index as usize].device;
                if let Some(unit) = device.unit(unit) {
                    device.aborted_by_other(victim, unit);
                }
            }
            self.stalled.push(conn);
            self.core.freed = true;
            self.mark_dirty(conn);
        }
    }

    /// TARGET COLD RESET also ends every session of the target (11.5.1); the asker's once it has its answer.
    fn cold_reset(&mut self, key: ConnKey, index: u32) {
        let others: Vec<_> = self.core.targets[index as usize]
            .sessions
            .iter()
            .map(|session| session.conn)
            .filter(|conn| *conn != key)
            .collect();
        for conn in others {
            self.close(conn, "the target was reset");
        }
    }

    /// Answers management functions and lets new sessions go on, once the tasks before them have ended.
    pub(super) fn resume_drained(&mut self) -> bool {
        if self.awaiting_drain.is_empty() {
            return false;
        }
        let mut progressed = false;
        for (index, key) in core::mem::take(&mut self.awaiting_drain) {
            let target = &mut self.core.targets[index as usize];
            if target.aborted_in_flight > 0 {
                self.awaiting_drain.push((index, key));
                continue;
            }
            progressed = true;
            for pending in core::mem::take(&mut target.management) {
                let connection = self.connections.get_mut(pending.conn);
                if let Some(full) = connection.and_then(|connection| connection.full()) {
                    full.session.complete_management(pending.task_tag, pending.response);
                    self.mark_dirty(pending.conn);
                }
            }
            if let Some(connection) = self.connections.get_mut(key)
                && connection.waiting
                && connection.full().is_some()
            {
                connection.waiting = false;
                self.process(key);
            }
        }
        progressed
    }

    /// SendTargets (RFC 7143, Appendix C): only what this initiator may log in to.
    fn send_targets(&mut self, key: ConnKey, value: &str) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let local = self.io.local_address(connection.socket);
        let portals: Vec<_> =
            self.directory.portals_at(local).map(|portal| (portal.to_string(), PORTAL_GROUP)).collect();
        let Some(full) = connection.full() else { return };
        let own = full.target.map(|index| self.core.targets[index as usize].name.as_str());
        let listings = self
            .directory
            .targets
            .iter()
            .filter(|(_, entry)| entry.admits(&full.initiator))
            .map(|(name, _)| TargetListing { name: name.clone(), portals: portals.clone() });
        let mut text = Vec::new();
        crate::iscsi::discovery::send_targets(&SendTargets::parse(value), listings, own, &mut text);
        full.session.send_targets_reply(&text);
    }

    /// Ends a connection: its session is gone at once, its slot when nothing is pending on its socket.
    pub(super) fn close(&mut self, key: ConnKey, reason: &'static str) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let former = core::mem::replace(&mut connection.phase, Phase::Closing);
        match former {
            Phase::Closing => return,
            Phase::Full(mut full) => {
                full.forget_all(&mut self.core);
                if let Some(index) = full.target {
                    let target = &mut self.core.targets[index as usize];
                    target.detach(full.nexus);
                    target.management.retain(|pending| pending.conn != key);
                    let (initiator, peer) = (&full.initiator, connection.peer);
                    tracing::info!(%initiator, target = %target.name, %peer, reason, "session ended");
                }
            }
            Phase::Login(_) | Phase::HandingOff { .. } => {
                tracing::debug!(peer = %connection.peer, reason, "connection closed");
            }
        }
        let connection = &mut *connection;
        connection.tx.clear();
        connection.carried = Vec::new();
        while let Some(buf) = connection.unread.pop_front() {
            self.io.rx_release(buf);
        }
        if connection.recv_armed || connection.tx.in_flight() {
            let socket = connection.socket;
            self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Shutdown { socket });
        }
        self.core.freed = true;
        self.finish_close(key);
    }

    /// Closes the socket once nothing is pending on it.
    pub(super) fn finish_close(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.recv_armed || connection.tx.in_flight() || connection.socket_closing {
            return;
        }
        connection.socket_closing = true;
        let socket = connection.socket;
        self.core.submit(Token::of(Kind::Socket, key, 0), Op::Close { socket });
    }

    pub(super) fn socket_closed(&mut self, token: Token) {
        if let Some(key) = token.key(&self.connections) {
            self.connections.remove(key);
        }
    }
}
