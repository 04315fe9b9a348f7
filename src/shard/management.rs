//! What concerns more than one connection: task management, closing, text and logout.
//!
//! Knows which tasks a function hits. Does not know how they run (`executor`) nor PDU layouts.

use crate::io::{Io, Op};
use crate::iscsi::discovery::{SendTargets, TargetListing};
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::task_mgmt::ManagementResponse;
use crate::iscsi::serial::CmdSn;
use crate::iscsi::session::{
    CloseReason, ConnectionId, LogoutScope, ManagementFunction, SessionEvent, TaskId,
};
use crate::scsi::{Lun, Nexus};

use super::connection::{Connection, Phase, Want};
use super::executor::Preempting;
use super::session::{Member, SessionKey};
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
            Want::SessionEvent(session, event) => self.session_event(session, event),
        }
    }

    fn session_event(&mut self, key: SessionKey, event: SessionEvent) {
        let Some(session) = self.sessions.get(key) else { return };
        match event {
            SessionEvent::Management { function, task_tag, lun, cmd_sn } => {
                self.manage(key, function, task_tag, lun.0, cmd_sn);
            }
            SessionEvent::SendTargets { connection, request } => self.send_targets(key, connection, &request),
            SessionEvent::Logout { connection, ends } => self.logged_out(key, connection, ends),
            SessionEvent::Reset { connection } => self.logged_out(key, connection, LogoutScope::Session),
            SessionEvent::Resumed { connection } => self.resumed.extend(session.connection(connection)),
            SessionEvent::Close { connection, reason } => {
                let Some(conn) = session.connection(connection) else { return };
                if reason == CloseReason::PeerSilent {
                    self.close(conn, "the initiator is silent");
                } else {
                    tracing::info!(initiator = %session.initiator, %reason, "connection given up");
                    self.drain_connection(conn);
                }
            }
            SessionEvent::Command { .. }
            | SessionEvent::DataComplete { .. }
            | SessionEvent::DataFailed { .. } => {}
        }
        self.mark_session_dirty(key);
    }

    /// The response is queued on the connection that asked; what else the logout ends goes at once.
    fn logged_out(&mut self, key: SessionKey, asker: ConnectionId, ends: LogoutScope) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(asker) = session.connection(asker) else { return };
        let ended: Vec<_> = match ends {
            LogoutScope::Session => session.connections().collect(),
            LogoutScope::Connection(on) => session.connection(on).into_iter().collect(),
        };
        for conn in ended {
            self.drain_connection(conn);
            if conn != asker {
                self.close(conn, "logged out");
            }
        }
    }

    /// What is queued is still sent, then the connection closes.
    fn drain_connection(&mut self, key: ConnKey) {
        if let Some(connection) = self.connections.get_mut(key)
            && let Phase::Full(member) = connection.phase
        {
            connection.enter(Phase::Draining(Some(member)));
            self.mark_dirty(key);
        }
    }

    /// Connections whose payload waited for the turn of its command go on.
    pub(super) fn resume_turns(&mut self) -> bool {
        let progressed = !self.resumed.is_empty();
        for key in core::mem::take(&mut self.resumed) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.renew_sink(&self.core, &mut self.sessions);
                self.process(key);
            }
        }
        progressed
    }

    /// Executes what a session has decided outside of any PDU.
    pub(super) fn after_session(&mut self, key: SessionKey) {
        let mut wants = core::mem::take(&mut self.wants);
        if let Some(session) = self.sessions.get_mut(key) {
            session.drain(key, &mut self.core, &mut wants);
            if session.has_stalled() && !self.stalled.contains(&key) {
                self.stalled.push(key);
            }
        }
        for want in wants.drain(..) {
            if let Want::SessionEvent(session, event) = want {
                self.session_event(session, event);
            }
        }
        self.wants = wants;
        self.mark_session_dirty(key);
    }

    pub(super) fn mark_session_dirty(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        for conn in session.connections() {
            if let Some(connection) = self.connections.get_mut(conn)
                && !connection.dirty
            {
                connection.dirty = true;
                self.dirty.push(conn);
            }
        }
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
        let entry = target.sessions.iter().find(|entry| entry.nexus == victim);
        let Some(session) = entry.and_then(|entry| self.sessions.get_mut(entry.session)) else {
            return false;
        };
        let ended: Vec<_> = session
            .machine
            .tasks()
            .filter(|(_, field, ..)| Lun::from_field(field.0) == Ok(lun))
            .map(|(task, ..)| task)
            .filter(|task| session.task_key(*task) != Some(preempting.task))
            .collect();
        for task in &ended {
            session.machine.abort_task(*task);
            session.forget(&mut self.core, *task);
        }
        !ended.is_empty()
    }

    /// RFC 7143, 11.5: what the function ends is forgotten; the response waits until it has really ended.
    fn manage(
        &mut self,
        key: SessionKey,
        function: ManagementFunction,
        task_tag: InitiatorTaskTag,
        lun: [u8; 8],
        cmd_sn: CmdSn,
    ) {
        let Some(session) = self.sessions.get(key) else { return };
        let (Some(index), nexus) = (session.target, session.nexus) else { return };
        tracing::info!(initiator = %session.initiator, ?function, "task management");
        let mut response = ManagementResponse::FunctionComplete;
        let scope = match function {
            ManagementFunction::AbortTask(task) => Scope::Task(task),
            ManagementFunction::AbortTaskSet => Scope::NexusUnit(lun),
            ManagementFunction::ClearTaskSet | ManagementFunction::LunReset => Scope::Unit(lun),
            ManagementFunction::TargetWarmReset | ManagementFunction::TargetColdReset => Scope::Target,
        };
        let device = &mut self.core.targets[index as usize].device;
        let unit = device.unit_for(nexus, lun);
        if matches!(scope, Scope::NexusUnit(_) | Scope::Unit(_)) && unit.is_none() {
            response = ManagementResponse::LunDoesNotExist;
        } else {
            match function {
                ManagementFunction::LunReset => {
                    if let Some(unit) = unit {
                        device.reset_unit(unit);
                        self.core.end_background_copies(index, Some(unit));
                    }
                }
                ManagementFunction::TargetWarmReset | ManagementFunction::TargetColdReset => {
                    device.reset();
                    self.core.end_background_copies(index, None);
                }
                _ => {}
            }
            self.end_tasks(key, index, nexus, scope, function, cmd_sn);
        }
        let pending = PendingManagement { session: key, task_tag, response };
        self.core.targets[index as usize].management.push(pending);
        self.awaiting_drain.push((index, key));
        if function == ManagementFunction::TargetColdReset {
            self.cold_reset(key, index);
        }
    }

    fn end_tasks(
        &mut self,
        key: SessionKey,
        index: u32,
        nexus: Nexus,
        scope: Scope,
        function: ManagementFunction,
        cmd_sn: CmdSn,
    ) {
        let victims: Vec<_> = self.core.targets[index as usize]
            .sessions
            .iter()
            .filter(|entry| matches!(scope, Scope::Unit(_) | Scope::Target) || entry.nexus == nexus)
            .map(|entry| (entry.session, entry.nexus))
            .collect();
        // A LUN has more than one form (SAM-5, 4.7): tasks may have been sent to another than the function's.
        let same = |field: [u8; 8], unit: [u8; 8]| Lun::from_field(field) == Lun::from_field(unit);
        for (of, victim) in victims {
            let Some(session) = self.sessions.get_mut(of) else { continue };
            let ended: Vec<_> = session
                .machine
                .tasks()
                .filter(|(task, lun, ..)| match scope {
                    Scope::Task(only) => of == key && *task == only,
                    Scope::NexusUnit(unit) => same(lun.0, unit) && session.machine.precedes(*task, cmd_sn),
                    // Commands behind the function are not in the set it clears.
                    Scope::Unit(unit) if function == ManagementFunction::ClearTaskSet && of == key => {
                        same(lun.0, unit) && session.machine.precedes(*task, cmd_sn)
                    }
                    Scope::Unit(unit) => same(lun.0, unit),
                    Scope::Target => true,
                })
                .map(|(task, ..)| task)
                .collect();
            for task in &ended {
                session.machine.abort_task(*task);
                session.forget(&mut self.core, *task);
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
            self.stalled.push(of);
            self.core.freed = true;
            self.mark_session_dirty(of);
        }
    }

    /// TARGET COLD RESET also ends every session of the target (11.5.1); the asker's once it has its answer.
    fn cold_reset(&mut self, key: SessionKey, index: u32) {
        let entries = &self.core.targets[index as usize].sessions;
        let others: Vec<_> =
            entries.iter().map(|entry| entry.session).filter(|other| *other != key).collect();
        for other in others {
            self.drop_session(other);
        }
    }

    /// Says on every connection that the session is dropped (11.9.1, event 3), and closes them when that is sent.
    pub(super) fn drop_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        for conn in session.connections_now() {
            let member = self.connections.get(conn).and_then(Connection::member);
            if let Some(member) = member
                && let Some(session) = self.sessions.get_mut(key)
            {
                session.machine.async_drop(member.on);
            }
            self.drain_connection(conn);
        }
    }

    /// While aborted tasks of its target can still reach the disk, the session begins no command.
    pub(super) fn await_drain(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(key)
            && let Some(index) = session.target
            && self.core.targets[index as usize].aborted_in_flight > 0
        {
            session.awaits_drain = true;
            self.awaiting_drain.push((index, key));
        }
    }

    /// Answers management functions and lets sessions go on, once the tasks before them have ended.
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
                if let Some(session) = self.sessions.get_mut(pending.session) {
                    session.machine.complete_management(pending.task_tag, pending.response);
                    self.mark_session_dirty(pending.session);
                }
            }
            if let Some(session) = self.sessions.get_mut(key)
                && core::mem::take(&mut session.awaits_drain)
            {
                self.stalled.push(key);
                self.core.freed = true;
            }
        }
        progressed
    }

    /// SendTargets (RFC 7143, Appendix C): only what this initiator may log in to.
    fn send_targets(&mut self, key: SessionKey, on: ConnectionId, request: &SendTargets) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(connection) = session.connection(on).and_then(|conn| self.connections.get(conn)) else {
            return;
        };
        let (local, peer) = (self.io.local_address(connection.socket), connection.peer.ip());
        let (directory, macs) = (&self.directory, &self.macs);
        let portals = |entry| directory.portals_at(entry, local).map(|at| (at.to_string(), PORTAL_GROUP));
        let own = session.target.map(|index| self.core.targets[index as usize].name.as_str());
        let listings = directory
            .targets
            .iter()
            .filter(|(_, entry)| entry.access.admits(&session.initiator, peer, macs))
            .map(|(name, entry)| TargetListing { name: name.clone(), portals: portals(entry).collect() });
        let mut text = Vec::new();
        crate::iscsi::discovery::send_targets(request, listings, own, &mut text);
        session.machine.send_targets_reply(on, &text);
    }

    /// Ends every connection of a session, and so the session.
    pub(super) fn close_session(&mut self, key: SessionKey, reason: &'static str) {
        let Some(session) = self.sessions.get(key) else { return };
        for conn in session.connections().collect::<Vec<_>>() {
            self.close(conn, reason);
        }
    }

    /// Ends a connection: its place in its session is free at once, its slot when nothing is pending on its socket. A
    /// session ends with its last connection: nothing of it is kept (DefaultTime2Retain is 0).
    pub(super) fn close(&mut self, key: ConnKey, reason: &'static str) {
        let Some(connection) = self.connections.get(key) else { return };
        if matches!(connection.phase, Phase::Closing | Phase::Closed) {
            return;
        }
        let peer = connection.peer;
        let member = connection.member();
        let expected = matches!(connection.phase, Phase::Draining(_));
        let cid = member.and_then(|member| {
            self.sessions.get(member.session).map(|session| session.machine.cid(member.on))
        });
        self.leave_session(key);
        if let (Some(member), Some(cid)) = (member, cid)
            && !expected
            && let Some(session) = self.sessions.get_mut(member.session)
        {
            session.machine.async_connection_dropped(cid);
        }
        if let Some(member) = member {
            self.connection_lost(member.session, peer, reason);
        } else {
            tracing::debug!(%peer, reason, "connection closed");
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.enter(Phase::Closing);
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

    /// Takes a connection out of its session. Its tasks end without an answer, and the initiator hears of that with its
    /// next command (RFC 7143, 11.14.5); what they had begun may still run, so no command begins until it has ended.
    pub(super) fn leave_session(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(Member { session: session_key, on }) = connection.member() else { return };
        connection.enter(Phase::Draining(None));
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        session.set_connection(on, None);
        session.forget_stalled_of(key);
        for dropped in session.machine.drop_connection(on, self.core.now) {
            session.forget(&mut self.core, dropped.task);
            if let Some(index) = session.target {
                let device = &mut self.core.targets[index as usize].device;
                if let Some(unit) = device.unit(dropped.lun.0) {
                    device.cleared_by_transport(session.nexus, unit);
                }
            }
        }
        self.await_drain(session_key);
    }

    /// A connection has left its session: the others go on, or the session ends.
    fn connection_lost(&mut self, key: SessionKey, peer: std::net::SocketAddr, reason: &'static str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let initiator = session.initiator.clone();
        if session.connections().next().is_some() {
            tracing::info!(%initiator, %peer, reason, "connection left its session");
            self.after_session(key);
            return;
        }
        session.forget_all(&mut self.core);
        if let Some(index) = session.target {
            let target = &mut self.core.targets[index as usize];
            target.boot.ended(self.core.now, session.visit);
            target.detach(session.nexus);
            target.management.retain(|pending| pending.session != key);
            tracing::info!(%initiator, target = %target.name, %peer, reason, "session ended");
        }
        self.sessions.remove(key);
    }

    /// Closes the socket once nothing is pending on it.
    pub(super) fn finish_close(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let pending = connection.recv_armed || connection.tx.in_flight();
        if pending || matches!(connection.phase, Phase::Closed) {
            return;
        }
        connection.enter(Phase::Closed);
        let socket = connection.socket;
        self.core.submit(Token::of(Kind::Socket, key, 0), Op::Close { socket });
    }

    pub(super) fn socket_closed(&mut self, token: Token) {
        if let Some(key) = token.key(&self.connections) {
            self.connections.remove(key);
        }
    }
}
