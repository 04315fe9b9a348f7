//! PDUs (RFC 7143, 11): 48 header bytes to types and back, one file a PDU.
//!
//! Knows layouts. Does not know order, sessions or sockets.

pub mod async_msg;
pub mod bhs;
pub mod data_in;
pub mod data_out;
pub mod login;
pub mod logout;
pub mod nop;
pub mod opcode;
pub mod r2t;
pub mod reject;
pub mod scsi_command;
pub mod scsi_response;
pub mod task_mgmt;
pub mod text;

/// Names a task; chosen by the initiator (RFC 7143, 11.2.1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InitiatorTaskTag(pub u32);

impl InitiatorTaskTag {
    /// "No task": NOP-Out without an answer, NOP-In that is a ping.
    pub const RESERVED: Self = Self(0xFFFF_FFFF);
}

/// Names a transfer; chosen by the target (11.7.4, 11.8.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetTransferTag(pub u32);

impl TargetTransferTag {
    pub const RESERVED: Self = Self(0xFFFF_FFFF);
}

/// The eight LUN bytes as they stand in the header (SAM-5, 4.7); `scsi` gives them their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct LunField(pub [u8; 8]);

/// What every response carries of the command window (11.4.10, 11.4.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSnapshot {
    pub exp_cmd_sn: super::serial::CmdSn,
    pub max_cmd_sn: super::serial::CmdSn,
}

impl WindowSnapshot {
    /// Bytes 28 and 32 of every response.
    fn encode(self, bhs: &mut bhs::Bhs) {
        bhs.put_u32(28, self.exp_cmd_sn.0);
        bhs.put_u32(32, self.max_cmd_sn.0);
    }
}

/// A header field that no such PDU may have; names it. Answered by Reject "invalid PDU field" (11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header has an invalid {0}")]
pub struct FieldError(pub &'static str);

/// The initiator's half of a session identifier (11.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Isid(pub [u8; 6]);

/// The target's half (11.12.6); zero asks for a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tsih(pub u16);

/// A connection within a session (11.12.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cid(pub u16);
