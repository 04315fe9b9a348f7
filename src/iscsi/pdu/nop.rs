//! NOP-Out and NOP-In (RFC 7143, 11.18 and 11.19): pings in both directions and their answers.
//!
//! Knows the 48 header bytes of both; the data segment is ping data. Does not know who is alive.
//!
//! | bytes | NOP-Out 0x00                 | NOP-In 0x20                                 |
//! |-------|------------------------------|---------------------------------------------|
//! | 0     | . I opcode                   | opcode                                      |
//! | 1     | 1                            | 1                                           |
//! | 5..8  | DataSegmentLength            | DataSegmentLength                           |
//! | 8     | LUN, with a TTT              | LUN, with a TTT                             |
//! | 16    | Initiator Task Tag or ffff   | Initiator Task Tag or ffff                  |
//! | 20    | Target Transfer Tag or ffff  | Target Transfer Tag or ffff                 |
//! | 24    | CmdSN                        | StatSN: taken with an ITT, else only shown  |
//! | 28    | ExpStatSN                    | ExpCmdSN                                    |
//! | 32    |                              | MaxCmdSN                                    |

use super::bhs::Bhs;
use super::opcode::{RequestOpcode, ResponseOpcode};
use super::{FieldError, InitiatorTaskTag, LunField, TargetTransferTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, StatSn};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    pub immediate: bool,
    pub purpose: NopOutPurpose,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    pub data_len: u32,
}

/// The two tags are not free: each pair is another message (11.18.1, 11.18.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NopOutPurpose {
    /// Wants a NOP-In with the same tag and data.
    Ping { task_tag: InitiatorTaskTag },
    /// Answers our NOP-In.
    Answer { transfer_tag: TargetTransferTag, lun: LunField },
    /// Only confirms ExpStatSN.
    Confirm,
}

impl NopOut {
    pub fn decode(bhs: &Bhs) -> Result<Self, FieldError> {
        let task_tag = bhs.task_tag();
        let transfer_tag = TargetTransferTag(bhs.u32_at(20));
        let purpose =
            match (task_tag == InitiatorTaskTag::RESERVED, transfer_tag == TargetTransferTag::RESERVED) {
                (true, _) if !bhs.immediate() => return Err(FieldError("I clear without a task tag")),
                (true, true) => NopOutPurpose::Confirm,
                (true, false) => NopOutPurpose::Answer { transfer_tag, lun: bhs.lun() },
                // Some initiators leave the transfer tag zero in a ping; the task tag alone decides.
                (false, _) => NopOutPurpose::Ping { task_tag },
            };
        Ok(Self {
            immediate: bhs.immediate(),
            purpose,
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
            data_len: bhs.data_len(),
        })
    }

    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::NopOut as u8 | if self.immediate { 0x40 } else { 0 };
        bhs.0[1] = 0x80;
        bhs.set_data_len(self.data_len);
        bhs.put_u32(16, InitiatorTaskTag::RESERVED.0);
        bhs.put_u32(20, TargetTransferTag::RESERVED.0);
        match self.purpose {
            NopOutPurpose::Ping { task_tag } => bhs.put_u32(16, task_tag.0),
            NopOutPurpose::Answer { transfer_tag, lun } => {
                bhs.put_u32(20, transfer_tag.0);
                bhs.0[8..16].copy_from_slice(&lun.0);
            }
            NopOutPurpose::Confirm => {}
        }
        bhs.put_u32(24, self.cmd_sn.0);
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    pub purpose: NopInPurpose,
    pub window: WindowSnapshot,
    pub data_len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NopInPurpose {
    /// Answers a NOP-Out and takes a StatSN.
    Answer { task_tag: InitiatorTaskTag, stat_sn: StatSn },
    /// Wants a NOP-Out with the same transfer tag; shows the next StatSN without taking it.
    Ping { transfer_tag: TargetTransferTag, next_stat_sn: StatSn },
}

impl NopIn {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::NopIn as u8;
        bhs.0[1] = 0x80;
        bhs.set_data_len(self.data_len);
        bhs.put_u32(16, InitiatorTaskTag::RESERVED.0);
        bhs.put_u32(20, TargetTransferTag::RESERVED.0);
        match self.purpose {
            NopInPurpose::Answer { task_tag, stat_sn } => {
                bhs.put_u32(16, task_tag.0);
                bhs.put_u32(24, stat_sn.0);
            }
            NopInPurpose::Ping { transfer_tag, next_stat_sn } => {
                bhs.put_u32(20, transfer_tag.0);
                bhs.put_u32(24, next_stat_sn.0);
            }
        }
        self.window.encode(&mut bhs);
        bhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_inverts_encode_for_every_purpose() {
        for purpose in [
            NopOutPurpose::Ping { task_tag: InitiatorTaskTag(3) },
            NopOutPurpose::Answer { transfer_tag: TargetTransferTag(4), lun: LunField([1; 8]) },
            NopOutPurpose::Confirm,
        ] {
            let nop =
                NopOut { immediate: true, purpose, cmd_sn: CmdSn(1), exp_stat_sn: StatSn(2), data_len: 9 };
            assert_eq!(NopOut::decode(&nop.encode()), Ok(nop));
        }
    }

    #[test]
    fn a_nop_without_task_tag_must_be_immediate() {
        let nop = NopOut {
            immediate: false,
            purpose: NopOutPurpose::Confirm,
            cmd_sn: CmdSn(1),
            exp_stat_sn: StatSn(2),
            data_len: 0,
        };
        assert!(NopOut::decode(&nop.encode()).is_err());
    }
}
