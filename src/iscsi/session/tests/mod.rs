//! A small scripted initiator against a session, in virtual time.
//!
//! Knows how to make requests and to read answers. Does not know a socket: data segments are lengths.

mod commands;
mod connections;
mod control;
mod order;
mod transfers;

use super::*;
use crate::iscsi::params::{Cid, NegotiatedParams};
use crate::iscsi::pdu::data_in::{DataIn, SequenceEnd};
use crate::iscsi::pdu::data_out::{DataOut, Solicitation};
use crate::iscsi::pdu::opcode::ResponseOpcode;
use crate::iscsi::pdu::r2t::R2t;
use crate::iscsi::pdu::reject::Reject;
use crate::iscsi::pdu::scsi_command::Transfer;
use crate::iscsi::pdu::scsi_response::{Outcome, Residual, ScsiResponse};
use crate::iscsi::pdu::task_mgmt::{Function, TaskManagementRequest};
use crate::iscsi::serial::{DataSn, StatSn};

const LUN: LunField = LunField([0, 1, 0, 0, 0, 0, 0, 0]);
const CHECK_CONDITION: u8 = 0x02;

const ON: ConnectionId = ConnectionId::LEADING;

struct Initiator {
    session: Session,
    /// The connection that requests go to and answers are read from.
    on: ConnectionId,
    cmd_sn: CmdSn,
    now: Instant,
}

fn start(params: NegotiatedParams) -> SessionStart {
    SessionStart {
        kind: SessionKind::Normal,
        exp_cmd_sn: CmdSn(u32::MAX),
        queue_depth: limits::COMMAND_WINDOW_DEFAULT,
        connection: connection(3, params),
    }
}

fn connection(cid: u16, params: NegotiatedParams) -> ConnectionStart {
    ConnectionStart { cid: Cid(cid), params, next_stat_sn: StatSn(100), keepalive: None, now: Instant(0) }
}

impl Initiator {
    fn new() -> Self {
        Self::with(NegotiatedParams { initial_r2t: false, ..NegotiatedParams::default() })
    }

    fn with(params: NegotiatedParams) -> Self {
        Self::started(start(params))
    }

    fn started(start: SessionStart) -> Self {
        Self { cmd_sn: start.exp_cmd_sn, on: ON, now: start.connection.now, session: Session::new(start) }
    }

    /// The next command, numbered; tag and CmdSN are the same number, so tests can name it.
    fn command(&mut self, tag: u32, transfer: Transfer) -> ScsiCommand {
        ScsiCommand {
            immediate: false,
            transfer,
            attribute: TaskAttribute::Simple,
            lun: LUN,
            task_tag: InitiatorTaskTag(tag),
            cmd_sn: self.cmd_sn.take(),
            exp_stat_sn: StatSn(100),
            cdb: Cdb { bytes: [0; 16], len: 16 },
            data_len: 0,
        }
    }

    fn header(&mut self, bhs: &Bhs) {
        self.session.handle_header(self.on, bhs, &[], self.now);
    }

    fn end(&mut self) {
        self.session.handle_end(self.on, &[], self.now);
    }

    /// A whole PDU; its control data where the session keeps any.
    fn send_with(&mut self, bhs: &Bhs, data: &[u8]) {
        let mut bhs = *bhs;
        bhs.set_data_len(data.len() as u32);
        self.header(&bhs);
        let kept = match self.session.sink(self.on) {
            PayloadSink::Control { keep } => &data[..keep as usize],
            _ => &[],
        };
        self.session.handle_end(self.on, kept, self.now);
    }

    fn send(&mut self, bhs: &Bhs) {
        self.header(bhs);
        self.end();
    }

    fn event(&mut self) -> SessionEvent {
        self.session.poll_event().expect("an event")
    }

    /// Sends a command and gives the task the shard is offered.
    fn offer(&mut self, command: &ScsiCommand) -> TaskId {
        self.send(&command.encode());
        self.offered()
    }

    fn offered(&mut self) -> TaskId {
        match self.event() {
            SessionEvent::Command { task, .. } => task,
            other => panic!("{other:?} instead of a command"),
        }
    }

    fn read(&mut self, tag: u32, expected: u32) -> TaskId {
        let command = self.command(tag, Transfer::Read { expected });
        self.offer(&command)
    }

    fn output(&mut self) -> Option<OutPdu> {
        self.session.poll_output(self.on, self.now)
    }

    /// Exactly one PDU is sent, and it is a SCSI Response: its status, residual and sense.
    fn response(&mut self) -> (u8, Residual, Vec<u8>) {
        let pdu = self.output().expect("a response");
        let response = ScsiResponse::decode(&pdu.header).unwrap();
        assert_eq!(pdu.header.opcode(), ResponseOpcode::ScsiResponse as u8);
        assert!(self.output().is_none());
        let sense = match pdu.data {
            OutData::Inline(bytes) => bytes.into_vec(),
            OutData::None => Vec::new(),
            OutData::Task { .. } => panic!("data in a response"),
        };
        match response.outcome {
            Outcome::Completed { status, residual, .. } => (status, residual, sense),
            Outcome::TargetFailure => panic!("a target failure"),
        }
    }

    /// Exactly one PDU is sent, and it is a Reject of `bhs`.
    fn rejected(&mut self, bhs: &Bhs) -> RejectReason {
        let pdu = self.output().expect("a Reject");
        assert_eq!(pdu.data, OutData::Inline(Box::from(bhs.0.as_slice())));
        let reject = Reject::decode(&pdu.header).unwrap();
        assert_eq!(pdu.header.opcode(), ResponseOpcode::Reject as u8);
        assert!(self.output().is_none());
        reject.reason
    }

    fn silent(&mut self) {
        assert!(self.session.poll_event().is_none());
        assert!(self.output().is_none());
    }
}

fn data_out(tag: u32, answers: Solicitation, data_sn: u32, at: u32, len: u32, is_final: bool) -> Bhs {
    DataOut {
        is_final,
        task_tag: InitiatorTaskTag(tag),
        answers,
        exp_stat_sn: StatSn(100),
        data_sn: DataSn(data_sn),
        buffer_offset: at,
        data_len: len,
    }
    .encode()
}

fn answering(r2t: &R2t) -> Solicitation {
    Solicitation::R2t { transfer_tag: r2t.transfer_tag, lun: r2t.lun }
}

/// Key, code and qualifier of fixed-format sense behind its length.
fn sense_codes(segment: &[u8]) -> (u8, u8, u8) {
    assert_eq!(segment[..2], [0, 18]);
    (segment[4] & 0x0F, segment[14], segment[15])
}
