//! Commands that pass: answered where their header stands, without a task.
//!
//! Knows when nothing of the session stands between a command and its answer, and how such an answer is numbered. Does
//! not know which commands the shard can answer so.
//!
//! It is as if the command had a turn of its own: it begins, its answer is the next thing that is sent, and nobody finds it
//! in between. What the answer says of the window is what it is after the command has ended.

use super::connection::State;
use super::{ConnectionId, Session, SessionKind, status};
use crate::clock::Instant;
use crate::iscsi::command_window::Arrival;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::data_in::{DataIn, SequenceEnd};
use crate::iscsi::pdu::opcode::RequestOpcode;
use crate::iscsi::pdu::scsi_command::CDB_BYTES;
use crate::iscsi::pdu::scsi_response::Residual;
use crate::iscsi::pdu::{InitiatorTaskTag, LunField};
use crate::iscsi::serial::{CmdSn, DataSn, StatSn};

/// F and R; UNTAGGED or SIMPLE is the lowest bit (RFC 7143, 11.3.1).
const FINAL_READ: u8 = 0xC0;
const SIMPLE: u8 = 0x01;

/// A READ whose turn it is, with nothing of its session before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passing {
    task_tag: InitiatorTaskTag,
    exp_stat_sn: StatSn,
    pub lun: LunField,
    pub cdb: [u8; CDB_BYTES],
    /// Bytes the initiator expects to read: they fit one PDU, and are all the command may have.
    pub expected: u32,
}

impl Session {
    /// False: every command of this connection goes the long way now.
    pub fn lets_pass(&self, on: ConnectionId) -> bool {
        let connection = &self.connections[on];
        connection.state == State::Open
            && connection.output.is_empty()
            && self.kind == SessionKind::Normal
            && self.events.is_empty()
            && self.management.is_empty()
            && self.fence.is_none()
            && self.window.is_in_step()
    }

    /// The command of a PDU that is its header alone, when it could be answered before anything else happens. Nothing has
    /// changed yet. Only where [`Self::lets_pass`] says so.
    pub fn passing(&self, on: ConnectionId, bhs: &Bhs) -> Option<Passing> {
        let params = &self.connections[on].params;
        let (task_tag, expected) = (bhs.task_tag(), bhs.u32_at(20));
        let plain = bhs.0[0] == RequestOpcode::ScsiCommand as u8 && bhs.0[1] & !SIMPLE == FINAL_READ;
        let fits = (1..=params.max_send_segment.min(params.max_burst)).contains(&expected);
        if !plain
            || !fits
            || task_tag == InitiatorTaskTag::RESERVED
            || self.window.arrival(false, CmdSn(bhs.u32_at(24))) != Arrival::Now
            || self.tasks.find(task_tag).is_some()
        {
            return None;
        }
        let mut cdb = [0; CDB_BYTES];
        cdb.copy_from_slice(&bhs.0[32..48]);
        Some(Passing { task_tag, exp_stat_sn: StatSn(bhs.u32_at(28)), lun: bhs.lun(), cdb, expected })
    }

    /// The command has been answered: the header of its only PDU, GOOD with all it expects. What `passing` said must be
    /// true still.
    pub fn pass(&mut self, on: ConnectionId, passing: &Passing, now: Instant) -> Bhs {
        self.note_exp_stat_sn(on, passing.exp_stat_sn);
        let place = self.window.begin(false);
        self.window.finish(place);
        let connection = &mut self.connections[on];
        connection.last_activity = now;
        let stat_sn = connection.next_stat_sn.take();
        let data_in = DataIn {
            task_tag: passing.task_tag,
            window: self.window.snapshot(),
            data_sn: DataSn(0),
            buffer_offset: 0,
            data_len: passing.expected,
            end: SequenceEnd::EndOfTask { stat_sn, status: status::GOOD, residual: Residual::None },
        };
        data_in.encode()
    }
}
