//! Requests that are no commands: their order, NOP, Logout, and what the target says unasked.
//!
//! Knows which request takes its turn and what the answer is. Does not know tasks (`tasks`), functions
//! (`management`) or keys (`text`).
//!
//! Unlike a SCSI Command such a request takes its turn when it is complete, so that one with a damaged data
//! segment counts as not received (RFC 7143, 7.8).

use super::connection::{Happening, State};
use super::output::Answer;
use super::{ConnectionId, Held, HeldRequest, LogoutScope, Session, SessionEvent};
use crate::clock::Instant;
use crate::iscsi::command_window::{Arrival, Place};
use crate::iscsi::params::Cid;
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::async_msg::AsyncEvent;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::logout::{LogoutOutcome, LogoutReason, LogoutRequest};
use crate::iscsi::pdu::nop::{NopOut, NopOutPurpose};
use crate::iscsi::pdu::opcode::RequestOpcode;
use crate::iscsi::pdu::reject::RejectReason;
use crate::iscsi::serial::{CmdSn, StatSn};
use crate::limits;

impl Session {
    /// A control request is complete: now, later, or never.
    pub(super) fn sequence_control(&mut self, on: ConnectionId, bhs: &Bhs, data: &[u8], now: Instant) {
        if bhs.opcode() == RequestOpcode::NopOut as u8 && bhs.task_tag() == InitiatorTaskTag::RESERVED {
            return self.take_nop_without_tag(on, bhs);
        }
        if bhs.task_tag() == InitiatorTaskTag::RESERVED {
            return self.reject(on, RejectReason::InvalidPduField);
        }
        let cmd_sn = CmdSn(bhs.u32_at(24));
        match self.window.arrival(bhs.immediate(), cmd_sn) {
            Arrival::Now if self.is_tag_taken(bhs.task_tag()) => {
                self.reject(on, RejectReason::TaskInProgress)
            }
            Arrival::Now => self.dispatch_control(on, bhs, data, now),
            Arrival::Ahead if self.held_bytes + data.len() <= limits::HELD_BYTES_MAX => {
                self.held_bytes += data.len();
                let request = HeldRequest::Control { bhs: *bhs, data: Box::from(data) };
                self.window.hold(cmd_sn, Held { connection: on, request });
            }
            Arrival::Ahead | Arrival::Ignore => {}
            Arrival::TooManyImmediate => self.reject(on, RejectReason::ImmediateCommandReject),
        }
    }

    /// A task or an unanswered management request has the tag.
    fn is_tag_taken(&self, tag: InitiatorTaskTag) -> bool {
        self.tasks.find(tag).is_some() || self.management.iter().any(|asked| asked.task_tag == tag)
    }

    /// The turn of a control request.
    pub(super) fn dispatch_control(&mut self, on: ConnectionId, bhs: &Bhs, data: &[u8], now: Instant) {
        self.note_exp_stat_sn(on, StatSn(bhs.u32_at(28)));
        let place = self.window.begin(bhs.immediate());
        match RequestOpcode::from_byte(bhs.opcode()) {
            Some(RequestOpcode::NopOut) => {
                let answer = Answer::Pong { task_tag: bhs.task_tag(), data: Box::from(data) };
                self.answer(on, answer, Some(place));
            }
            Some(RequestOpcode::TaskManagement) => self.take_management(on, bhs, place, now),
            Some(RequestOpcode::Text) => self.take_text(on, bhs, data, place),
            Some(RequestOpcode::Logout) => self.take_logout(on, bhs, place),
            // `handle_header` lets nothing else come here.
            _ => self.window.finish(place),
        }
    }

    /// Answers to our pings, and NOP-Outs that only confirm StatSNs: no turn, no answer.
    fn take_nop_without_tag(&mut self, on: ConnectionId, bhs: &Bhs) {
        match NopOut::decode(bhs) {
            Ok(nop) => {
                let connection = &mut self.connections[on];
                if let (NopOutPurpose::Answer { transfer_tag, .. }, Some((awaited, _))) =
                    (nop.purpose, connection.ping)
                    && transfer_tag == awaited
                {
                    connection.ping = None;
                }
                self.note_exp_stat_sn(on, nop.exp_stat_sn);
            }
            Err(_) => self.reject(on, RejectReason::InvalidPduField),
        }
    }

    /// RFC 7143, 11.14: a logout ends the session, this connection, or another one of the session. At error recovery
    /// level 0 no connection is kept for recovery.
    fn take_logout(&mut self, on: ConnectionId, bhs: &Bhs, place: Place) {
        let request = LogoutRequest::decode(bhs);
        let Some(reason) = request.reason else {
            self.window.revoke(place);
            return self.reject(on, RejectReason::InvalidPduField);
        };
        let (outcome, ends) = match reason {
            LogoutReason::RemoveConnectionForRecovery => (LogoutOutcome::RecoveryNotSupported, None),
            LogoutReason::CloseSession => (LogoutOutcome::Closed, Some(LogoutScope::Session)),
            LogoutReason::CloseConnection => match self.connection_of(request.cid) {
                Some(ended) => (LogoutOutcome::Closed, Some(LogoutScope::Connection(ended))),
                None => (LogoutOutcome::CidNotFound, None),
            },
        };
        let closes_this = match ends {
            Some(LogoutScope::Session) => true,
            Some(LogoutScope::Connection(ended)) => ended == on,
            None => false,
        };
        let answer = Answer::Logout { task_tag: request.task_tag, outcome, closes_this };
        self.answer(on, answer, Some(place));
        if self.connections[on].state != State::Open {
            return;
        }
        if let Some(ends) = ends {
            if closes_this {
                self.connections[on].go(Happening::Ends);
            }
            self.events.push_back(SessionEvent::Logout { connection: on, ends });
        }
    }

    /// Asks the initiator for a sign of life (11.19); its answer is taken note of inside.
    pub fn ping(&mut self, on: ConnectionId, now: Instant) {
        if self.connections[on].state == State::Open && self.connections[on].ping.is_none() {
            let transfer_tag = self.take_transfer_tag();
            self.connections[on].ping = Some((transfer_tag, now));
            self.answer(on, Answer::Ping { transfer_tag }, None);
        }
    }

    /// When the ping that is not yet answered was sent.
    pub fn ping_outstanding_since(&self, on: ConnectionId) -> Option<Instant> {
        self.connections[on].ping.map(|(_, sent)| sent)
    }

    /// Asks the initiator to log this connection out within `within_s` seconds (11.9.1, event 1).
    pub fn async_logout(&mut self, on: ConnectionId, within_s: u16) {
        if self.connections[on].state == State::Open {
            self.answer(on, Answer::Async { event: AsyncEvent::LogoutRequested { within_s } }, None);
        }
    }

    /// Asks the initiator to negotiate within `within_s` seconds (11.9.1, event 4): there is something it was not told.
    pub fn async_negotiate(&mut self, on: ConnectionId, within_s: u16) {
        if self.connections[on].state == State::Open {
            self.answer(on, Answer::Async { event: AsyncEvent::NegotiationRequested { within_s } }, None);
        }
    }

    /// Says on one connection that another, which had this CID, was dropped (11.9.1, event 2). Nothing of it is kept.
    pub fn async_connection_dropped(&mut self, cid: Cid) {
        let event = AsyncEvent::ConnectionDrop { cid, time2wait_s: 0, time2retain_s: 0 };
        let other = self.connections.open().next();
        if let Some(on) = other {
            self.answer(on, Answer::Async { event }, None);
        }
    }

    /// Says that the session is about to be dropped (11.9.1, event 3). Nothing is taken on this connection after
    /// that; close when the queue is sent.
    pub fn async_drop(&mut self, on: ConnectionId) {
        if self.connections[on].state == State::Open {
            let event = AsyncEvent::SessionDrop { time2wait_s: 0, time2retain_s: 0 };
            self.answer(on, Answer::Async { event }, None);
            self.connections[on].go(Happening::Fails);
        }
    }
}
