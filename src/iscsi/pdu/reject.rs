//! Reject (RFC 7143, 11.17): the target could not make sense of a PDU; its header comes back as data.
//!
//! Knows the layout. Does not know when to reject (`session`).
//!
//! | bytes | field                     | bytes | field                        |
//! |-------|---------------------------|-------|------------------------------|
//! | 0     | opcode 0x3F               | 24    | StatSN                       |
//! | 1     | 0x80                      | 28    | ExpCmdSN                     |
//! | 2     | reason                    | 32    | MaxCmdSN                     |
//! | 4..8  | data length: 48           | 36    | DataSN or R2TSN, else zero   |
//! | 16    | 0xFFFFFFFF                | 48    | the header of the bad PDU    |

use super::bhs::{BHS_BYTES, Bhs};
use super::opcode::ResponseOpcode;
use super::{InitiatorTaskTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, StatSn};

/// Why (11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RejectReason {
    DataDigestError = 0x02,
    SnackReject = 0x03,
    ProtocolError = 0x04,
    CommandNotSupported = 0x05,
    ImmediateCommandReject = 0x06,
    TaskInProgress = 0x07,
    InvalidDataAck = 0x08,
    InvalidPduField = 0x09,
    LongOperationReject = 0x0A,
    WaitingForLogout = 0x0C,
}

impl RejectReason {
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x02 => Self::DataDigestError,
            0x03 => Self::SnackReject,
            0x04 => Self::ProtocolError,
            0x05 => Self::CommandNotSupported,
            0x06 => Self::ImmediateCommandReject,
            0x07 => Self::TaskInProgress,
            0x08 => Self::InvalidDataAck,
            0x09 => Self::InvalidPduField,
            0x0A => Self::LongOperationReject,
            0x0C => Self::WaitingForLogout,
            _ => return None,
        })
    }
}

/// A Reject; the 48 bytes of the rejected header follow as its data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    pub reason: RejectReason,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
}

impl Reject {
    /// The header; its data length counts the rejected header.
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::Reject as u8;
        bhs.0[1] = 0x80;
        bhs.0[2] = self.reason as u8;
        bhs.set_data_len(BHS_BYTES as u32);
        bhs.put_u32(16, InitiatorTaskTag::RESERVED.0);
        bhs.put_u32(24, self.stat_sn.0);
        bhs.put_u32(28, self.window.exp_cmd_sn.0);
        bhs.put_u32(32, self.window.max_cmd_sn.0);
        bhs
    }

    /// What an initiator reads; `None` for a reserved reason.
    pub fn decode(bhs: &Bhs) -> Option<Self> {
        Some(Self {
            reason: RejectReason::from_byte(bhs.0[2])?,
            stat_sn: StatSn(bhs.u32_at(24)),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reject_lies_where_the_rfc_puts_it() {
        let reject = Reject {
            reason: RejectReason::ProtocolError,
            stat_sn: StatSn(0x11),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(0x22), max_cmd_sn: CmdSn(0x33) },
        };
        let bhs = reject.encode();
        assert_eq!(bhs.0[..8], [0x3F, 0x80, 4, 0, 0, 0, 0, 48]);
        assert_eq!(bhs.u32_at(16), 0xFFFF_FFFF);
        assert_eq!((bhs.u32_at(24), bhs.u32_at(28), bhs.u32_at(32)), (0x11, 0x22, 0x33));
        assert_eq!(Reject::decode(&bhs), Some(reject));
    }

    #[test]
    fn every_reason_maps_to_itself() {
        let known = (0..=255).filter_map(RejectReason::from_byte).count();
        assert_eq!(known, 10);
        for byte in 0..=255 {
            assert!(RejectReason::from_byte(byte).is_none_or(|reason| reason as u8 == byte));
        }
    }
}
