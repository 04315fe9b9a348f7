//! Ready To Transfer (RFC 7143, 11.8): the target asks for a part of a write.
//!
//! Knows the 48 header bytes. Does not know when to ask (`data_out_sequence`).
//!
//! | bytes | field                         | bytes | field                        |
//! |-------|-------------------------------|-------|------------------------------|
//! | 0     | opcode 0x31                   | 28    | ExpCmdSN                     |
//! | 1     | 1                             | 32    | MaxCmdSN                     |
//! | 8     | LUN                           | 36    | R2TSN                        |
//! | 16    | Initiator Task Tag            | 40    | Buffer Offset                |
//! | 20    | Target Transfer Tag           | 44    | Desired Data Transfer Length |
//! | 24    | StatSN: the next, not taken   |       |                              |

use super::bhs::Bhs;
use super::opcode::ResponseOpcode;
use super::{FieldError, InitiatorTaskTag, LunField, TargetTransferTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, R2tSn, StatSn};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    pub lun: LunField,
    pub task_tag: InitiatorTaskTag,
    pub transfer_tag: TargetTransferTag,
    pub next_stat_sn: StatSn,
    pub window: WindowSnapshot,
    pub r2t_sn: R2tSn,
    pub buffer_offset: u32,
    /// Never zero, never beyond MaxBurstLength (11.8.4).
    pub desired_len: u32,
}

impl R2t {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::R2t as u8;
        bhs.0[1] = 0x80;
        bhs.0[8..16].copy_from_slice(&self.lun.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(20, self.transfer_tag.0);
        bhs.put_u32(24, self.next_stat_sn.0);
        self.window.encode(&mut bhs);
        bhs.put_u32(36, self.r2t_sn.0);
        bhs.put_u32(40, self.buffer_offset);
        bhs.put_u32(44, self.desired_len);
        bhs
    }

    pub fn decode(bhs: &Bhs) -> Result<Self, FieldError> {
        let r2t = Self {
            lun: bhs.lun(),
            task_tag: bhs.task_tag(),
            transfer_tag: TargetTransferTag(bhs.u32_at(20)),
            next_stat_sn: StatSn(bhs.u32_at(24)),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
            r2t_sn: R2tSn(bhs.u32_at(36)),
            buffer_offset: bhs.u32_at(40),
            desired_len: bhs.u32_at(44),
        };
        if r2t.desired_len == 0 { Err(FieldError("Desired Data Transfer Length")) } else { Ok(r2t) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_inverts_encode() {
        let r2t = R2t {
            lun: LunField([0, 2, 0, 0, 0, 0, 0, 0]),
            task_tag: InitiatorTaskTag(3),
            transfer_tag: TargetTransferTag(4),
            next_stat_sn: StatSn(5),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(6), max_cmd_sn: CmdSn(7) },
            r2t_sn: R2tSn(8),
            buffer_offset: 9,
            desired_len: 10,
        };
        assert_eq!(R2t::decode(&r2t.encode()), Ok(r2t));
        assert!(R2t::decode(&R2t { desired_len: 0, ..r2t }.encode()).is_err());
    }
}
