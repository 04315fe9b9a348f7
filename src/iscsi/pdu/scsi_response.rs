//! SCSI Response (RFC 7143, 11.4): how a task ended.
//!
//! Knows the 48 header bytes; the data segment is SenseLength (2 bytes) and the sense bytes. Does not know
//! sense.
//!
//! | bytes | field                                   | bytes | field          |
//! |-------|-----------------------------------------|-------|----------------|
//! | 0     | opcode 0x21                             | 24    | StatSN         |
//! | 1     | 1 . . o u O U .                         | 28    | ExpCmdSN       |
//! | 2     | response; 3 status                      | 32    | MaxCmdSN       |
//! | 4     | TotalAHSLength; 5..8 DataSegmentLength  | 36    | ExpDataSN      |
//! | 16    | Initiator Task Tag                      | 44    | Residual Count |

use super::bhs::Bhs;
use super::opcode::ResponseOpcode;
use super::{FieldError, InitiatorTaskTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, DataSn, StatSn};

/// Expected length against what there was to move (11.4.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Residual {
    #[default]
    None,
    /// Bytes expected but not moved.
    Underflow(u32),
    /// Bytes not moved because the expected length was too short.
    Overflow(u32),
}

const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;

impl Residual {
    /// `available` is what the command would have moved, had the initiator expected enough.
    pub fn of(expected: u32, available: u32) -> Self {
        match available.checked_sub(expected) {
            Some(0) => Self::None,
            Some(over) => Self::Overflow(over),
            None => Self::Underflow(expected - available),
        }
    }

    /// Byte 1 of SCSI Response and Data-In, and the Residual Count.
    pub(super) fn encode(self) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (UNDERFLOW, count),
            Self::Overflow(count) => (OVERFLOW, count),
        }
    }

    pub(super) fn decode(flags: u8, count: u32) -> Result<Self, FieldError> {
        match flags & (OVERFLOW | UNDERFLOW) {
            0 => Ok(Self::None),
            UNDERFLOW => Ok(Self::Underflow(count)),
            OVERFLOW => Ok(Self::Overflow(count)),
            _ => Err(FieldError("O with U")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    pub task_tag: InitiatorTaskTag,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
    pub outcome: Outcome,
    /// SenseLength and sense bytes; zero without sense.
    pub data_len: u32,
}

/// Status, residual and ExpDataSN mean something only after completion (11.4.2, 11.4.5, 11.4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Completed { status: u8, residual: Residual, exp_data_sn: DataSn },
    TargetFailure,
}

impl ScsiResponse {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::ScsiResponse as u8;
        bhs.0[1] = 0x80;
        match self.outcome {
            Outcome::Completed { status, residual, exp_data_sn } => {
                let (flags, count) = residual.encode();
                bhs.0[1] |= flags;
                bhs.0[3] = status;
                bhs.put_u32(36, exp_data_sn.0);
                bhs.put_u32(44, count);
            }
            Outcome::TargetFailure => bhs.0[2] = 1,
        }
        bhs.set_data_len(self.data_len);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(24, self.stat_sn.0);
        self.window.encode(&mut bhs);
        bhs
    }

    pub fn decode(bhs: &Bhs) -> Result<Self, FieldError> {
        let outcome = match bhs.0[2] {
            0 => Outcome::Completed {
                status: bhs.0[3],
                residual: Residual::decode(bhs.0[1], bhs.u32_at(44))?,
                exp_data_sn: DataSn(bhs.u32_at(36)),
            },
            1 => Outcome::TargetFailure,
            _ => return Err(FieldError("response")),
        };
        Ok(Self {
            task_tag: bhs.task_tag(),
            stat_sn: StatSn(bhs.u32_at(24)),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
            outcome,
            data_len: bhs.data_len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_inverts_encode() {
        let window = WindowSnapshot { exp_cmd_sn: CmdSn(5), max_cmd_sn: CmdSn(132) };
        for residual in [Residual::None, Residual::Underflow(9), Residual::Overflow(7)] {
            let response = ScsiResponse {
                task_tag: InitiatorTaskTag(77),
                stat_sn: StatSn(3),
                window,
                outcome: Outcome::Completed { status: 2, residual, exp_data_sn: DataSn(4) },
                data_len: 20,
            };
            assert_eq!(ScsiResponse::decode(&response.encode()), Ok(response));
        }
    }

    #[test]
    fn residual_is_the_difference() {
        assert_eq!(Residual::of(512, 512), Residual::None);
        assert_eq!(Residual::of(512, 200), Residual::Underflow(312));
        assert_eq!(Residual::of(0, u32::MAX), Residual::Overflow(u32::MAX));
    }
}
