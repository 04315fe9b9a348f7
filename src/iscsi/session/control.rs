//! Requests that are no commands: their order, NOP, Logout, and what the target says unasked.
//!
//! Knows which request takes its turn and what the answer is. Does not know tasks (`tasks`), functions
//! (`management`) or keys (`text`).
//!
//! Unlike a SCSI Command such a request takes its turn when it is complete, so that one with a damaged data
//! segment counts as not received (RFC 7143, 7.8).

use super::output::Answer;
use super::{Held, Session, SessionEvent, State};
use crate::clock::Instant;
use crate::iscsi::command_window::{Arrival, Place};
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
    pub(super) fn sequence_control(&mut self, bhs: &Bhs, data: &[u8]) {
        if bhs.opcode() == RequestOpcode::NopOut as u8 && bhs.task_tag() == InitiatorTaskTag::RESERVED {
            return self.take_nop_without_tag(bhs);
        }
        if bhs.task_tag() == InitiatorTaskTag::RESERVED {
            return self.reject(RejectReason::InvalidPduField);
        }
        let cmd_sn = CmdSn(bhs.u32_at(24));
        match self.window.arrival(bhs.immediate(), cmd_sn) {
            Arrival::Now if self.is_tag_taken(bhs.task_tag()) => self.reject(RejectReason::TaskInProgress),
            Arrival::Now => self.dispatch_control(bhs, data),
            Arrival::Ahead if self.held_bytes + data.len() <= limits::HELD_BYTES_MAX => {
                self.held_bytes += data.len();
                self.window.hold(cmd_sn, Held::Control { bhs: *bhs, data: Box::from(data) });
            }
            Arrival::Ahead | Arrival::Ignore => {}
            Arrival::TooManyImmediate => self.reject(RejectReason::ImmediateCommandReject),
        }
    }

    /// A task or an unanswered management request has the tag.
    fn is_tag_taken(&self, tag: InitiatorTaskTag) -> bool {
        self.tasks.find(tag).is_some() || self.management.iter().any(|(taken, _)| *taken == tag)
    }

    /// The turn of a control request.
    pub(super) fn dispatch_control(&mut self, bhs: &Bhs, data: &[u8]) {
        self.note_exp_stat_sn(StatSn(bhs.u32_at(28)));
        let place = self.window.begin(bhs.immediate());
        match RequestOpcode::from_byte(bhs.opcode()) {
            Some(RequestOpcode::NopOut) => {
                self.answer(Answer::Pong { task_tag: bhs.task_tag(), data: Box::from(data) }, Some(place));
            }
            Some(RequestOpcode::TaskManagement) => self.take_management(bhs, place),
            Some(RequestOpcode::Text) => self.take_text(bhs, data, place),
            Some(RequestOpcode::Logout) => self.take_logout(bhs, place),
            // `handle_header` lets nothing else come here.
            _ => self.window.finish(place),
        }
    }

    /// Answers to our pings, and NOP-Outs that only confirm StatSNs: no turn, no answer.
    fn take_nop_without_tag(&mut self, bhs: &Bhs) {
        match NopOut::decode(bhs) {
            Ok(nop) => {
                self.note_exp_stat_sn(nop.exp_stat_sn);
                if let (NopOutPurpose::Answer { transfer_tag, .. }, Some((awaited, _))) =
                    (nop.purpose, self.ping)
                    && transfer_tag == awaited
                {
                    self.ping = None;
                }
            }
            Err(_) => self.reject(RejectReason::InvalidPduField),
        }
    }

    /// RFC 7143, 11.14: with one connection, closing it closes the session.
    fn take_logout(&mut self, bhs: &Bhs, place: Place) {
        let request = LogoutRequest::decode(bhs);
        let Some(reason) = request.reason else {
            self.window.revoke(place);
            return self.reject(RejectReason::InvalidPduField);
        };
        let outcome = match reason {
            LogoutReason::RemoveConnectionForRecovery => LogoutOutcome::RecoveryNotSupported,
            LogoutReason::CloseConnection if request.cid != self.cid => LogoutOutcome::CidNotFound,
            LogoutReason::CloseConnection | LogoutReason::CloseSession => LogoutOutcome::Closed,
        };
        self.answer(Answer::Logout { task_tag: request.task_tag, outcome }, Some(place));
        if outcome == LogoutOutcome::Closed && self.state == State::Open {
            self.state = State::Leaving;
            self.events.push_back(SessionEvent::Logout { reason, cid: self.cid });
        }
    }

    /// Asks the initiator for a sign of life (11.19); its answer is taken note of inside.
    pub fn ping(&mut self, now: Instant) {
        if self.state == State::Open && self.ping.is_none() {
            let transfer_tag = self.take_transfer_tag();
            self.ping = Some((transfer_tag, now));
            self.answer(Answer::Ping { transfer_tag }, None);
        }
    }

    /// When the ping that is not yet answered was sent.
    pub fn ping_outstanding_since(&self) -> Option<Instant> {
        self.ping.map(|(_, sent)| sent)
    }

    /// Asks the initiator to log out within `within_s` seconds (11.9.1, event 1).
    pub fn async_logout(&mut self, within_s: u16) {
        if self.state == State::Open {
            self.answer(Answer::Async { event: AsyncEvent::LogoutRequested { within_s } }, None);
        }
    }

    /// Says that the connection, and with it the session, is about to be dropped (11.9.1, event 3). Nothing is
    /// taken after that; close when the queue is sent.
    pub fn async_drop(&mut self, time2wait_s: u16) {
        if self.state == State::Open {
            self.answer(
                Answer::Async { event: AsyncEvent::SessionDrop { time2wait_s, time2retain_s: 0 } },
                None,
            );
            self.state = State::Closing;
        }
    }
}
