//! The short ways of commands: a READ that passes, answered where its header stands without a task, and a WRITE that enters
//! with all its data.
//!
//! Knows when nothing of the session stands between a command and its answer or its work, and how an answer is numbered.
//! Does not know which commands the shard can take so.
//!
//! A READ that passes has as if a turn of its own: it begins, its answer is the next thing that is sent, and nobody finds it
//! in between. What the answer says of the window is what it is after the command has ended. A WRITE that enters is a task
//! like any other, which has heard already what events and questions would have told it one by one.

use super::connection::State;
use super::{ConnectionId, Session, SessionKind, status};
use crate::clock::Instant;
use crate::iscsi::command_window::{Arrival, Place};
use crate::iscsi::data_in_sequence::DataInSequence;
use crate::iscsi::data_out_sequence::DataOutSequence;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::data_in::{DataIn, SequenceEnd};
use crate::iscsi::pdu::opcode::RequestOpcode;
use crate::iscsi::pdu::scsi_command::CDB_BYTES;
use crate::iscsi::pdu::scsi_response::Residual;
use crate::iscsi::pdu::{InitiatorTaskTag, LunField};
use crate::iscsi::serial::{CmdSn, DataSn, StatSn};
use crate::iscsi::task::{Direction, Phase, Reply, Task};

use super::TaskId;

/// F and R, F and W; UNTAGGED or SIMPLE is the lowest bit (RFC 7143, 11.3.1).
const FINAL_READ: u8 = 0xC0;
const FINAL_WRITE: u8 = 0xA0;
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

/// A WRITE whose turn it is, with nothing of its session before it and all its data behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entering {
    task_tag: InitiatorTaskTag,
    cmd_sn: CmdSn,
    exp_stat_sn: StatSn,
    pub lun: LunField,
    pub cdb: [u8; CDB_BYTES],
    /// Bytes the initiator has for the command, which are those of the PDU.
    pub expected: u32,
}

impl Session {
    /// False: every READ of this connection goes the long way now.
    pub fn lets_pass(&self, on: ConnectionId) -> bool {
        self.connections[on].output.is_empty() && self.lets_enter(on)
    }

    /// False: every command of this connection goes the long way now.
    pub fn lets_enter(&self, on: ConnectionId) -> bool {
        self.connections[on].state == State::Open
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
        let expected = bhs.u32_at(20);
        let fits = (1..=params.max_send_segment.min(params.max_burst)).contains(&expected);
        let comes = fits && self.comes_plainly(bhs, FINAL_READ);
        comes.then(|| Passing {
            task_tag: bhs.task_tag(),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
            lun: bhs.lun(),
            cdb: cdb_of(bhs),
            expected,
        })
    }

    /// The command of a PDU that brings all its data, when it could begin before anything else happens. Nothing has changed
    /// yet. Only where [`Self::lets_enter`] says so.
    pub fn entering(&self, on: ConnectionId, bhs: &Bhs) -> Option<Entering> {
        let params = &self.connections[on].params;
        let expected = bhs.u32_at(20);
        let fits = params.immediate_data
            && (1..=params.first_burst).contains(&expected)
            && bhs.data_len() == expected;
        let comes = fits && self.comes_plainly(bhs, FINAL_WRITE);
        comes.then(|| Entering {
            task_tag: bhs.task_tag(),
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
            lun: bhs.lun(),
            cdb: cdb_of(bhs),
            expected,
        })
    }

    /// A command of these flags, without ACA, ORDERED or the like, whose turn it is and whose tag is free.
    fn comes_plainly(&self, bhs: &Bhs, flags: u8) -> bool {
        bhs.0[0] == RequestOpcode::ScsiCommand as u8
            && bhs.0[1] & !SIMPLE == flags
            && bhs.task_tag() != InitiatorTaskTag::RESERVED
            && self.window.arrival(false, CmdSn(bhs.u32_at(24))) == Arrival::Now
            && self.tasks.find(bhs.task_tag()).is_none()
    }

    /// The command has begun and its data is with the shard, which ends it by `complete`. What `entering` said must be true
    /// still. `None`: there is no place for it, and nothing has changed.
    pub fn enter(&mut self, on: ConnectionId, entering: &Entering, now: Instant) -> Option<TaskId> {
        let id = self.tasks.insert(Task {
            task_tag: entering.task_tag,
            connection: on,
            lun: entering.lun,
            cmd_sn: entering.cmd_sn,
            place: Place::Ordered,
            direction: Direction::Write,
            expected: entering.expected,
            wanted: Some(entering.expected),
            phase: Phase::Executing,
            is_known: true,
            is_queued: false,
            data_out: DataOutSequence::whole(entering.expected),
            data_in: DataInSequence::default(),
            reply: Reply::default(),
            touched: now,
        })?;
        self.window.begin(false);
        self.note_exp_stat_sn(on, entering.exp_stat_sn);
        self.connections[on].last_activity = now;
        Some(id)
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

fn cdb_of(bhs: &Bhs) -> [u8; CDB_BYTES] {
    let mut cdb = [0; CDB_BYTES];
    cdb.copy_from_slice(&bhs.0[32..48]);
    cdb
}
