//! Text Request and Text Response (RFC 7143, 11.10, 11.11).
//!
//! Knows both layouts in both directions. Does not know keys (`text_keys`) nor who may send which.
//!
//! | bytes | Text Request           | Text Response          |
//! |-------|------------------------|------------------------|
//! | 0     | . I opcode 0x04        | opcode 0x24            |
//! | 1     | F C                    | F C                    |
//! | 4..8  | AHS length, data length| the same               |
//! | 8     | LUN, only with a TTT   | the same               |
//! | 16    | Initiator Task Tag     | the same               |
//! | 20    | Target Transfer Tag    | the same               |
//! | 24    | CmdSN                  | StatSN                 |
//! | 28    | ExpStatSN              | ExpCmdSN               |
//! | 32    | reserved               | MaxCmdSN               |

use super::bhs::Bhs;
use super::opcode::{RequestOpcode, ResponseOpcode};
use super::{InitiatorTaskTag, LunField, TargetTransferTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, StatSn};

const FINAL: u8 = 0x80;
const CONTINUE: u8 = 0x40;

fn flags(is_final: bool, text_continues: bool) -> u8 {
    (if is_final { FINAL } else { 0 }) | if text_continues { CONTINUE } else { 0 }
}

/// A Text Request. `is_final` and `text_continues` together are illegal (11.10.2); the session says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    pub immediate: bool,
    pub is_final: bool,
    /// C: the text goes on in the next request.
    pub text_continues: bool,
    pub lun: LunField,
    pub task_tag: InitiatorTaskTag,
    /// Reserved in the first request; else the tag of the response that this one answers.
    pub transfer_tag: TargetTransferTag,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
}

impl TextRequest {
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            immediate: bhs.immediate(),
            is_final: bhs.0[1] & FINAL != 0,
            text_continues: bhs.0[1] & CONTINUE != 0,
            lun: bhs.lun(),
            task_tag: bhs.task_tag(),
            transfer_tag: TargetTransferTag(bhs.u32_at(20)),
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
        }
    }

    pub fn encode(&self, data_len: u32) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::Text as u8 | if self.immediate { 0x40 } else { 0 };
        bhs.0[1] = flags(self.is_final, self.text_continues);
        bhs.set_data_len(data_len);
        bhs.0[8..16].copy_from_slice(&self.lun.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(20, self.transfer_tag.0);
        bhs.put_u32(24, self.cmd_sn.0);
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs
    }
}

/// A Text Response. A response that is not final carries a transfer tag that is not reserved (11.11.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    pub is_final: bool,
    pub text_continues: bool,
    pub lun: LunField,
    pub task_tag: InitiatorTaskTag,
    pub transfer_tag: TargetTransferTag,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
}

impl TextResponse {
    pub fn encode(&self, data_len: u32) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::Text as u8;
        bhs.0[1] = flags(self.is_final, self.text_continues);
        bhs.set_data_len(data_len);
        bhs.0[8..16].copy_from_slice(&self.lun.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(20, self.transfer_tag.0);
        bhs.put_u32(24, self.stat_sn.0);
        bhs.put_u32(28, self.window.exp_cmd_sn.0);
        bhs.put_u32(32, self.window.max_cmd_sn.0);
        bhs
    }

    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            is_final: bhs.0[1] & FINAL != 0,
            text_continues: bhs.0[1] & CONTINUE != 0,
            lun: bhs.lun(),
            task_tag: bhs.task_tag(),
            transfer_tag: TargetTransferTag(bhs.u32_at(20)),
            stat_sn: StatSn(bhs.u32_at(24)),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lies_where_the_rfc_puts_it() {
        let request = TextRequest {
            immediate: true,
            is_final: true,
            text_continues: false,
            lun: LunField([1, 2, 3, 4, 5, 6, 7, 8]),
            task_tag: InitiatorTaskTag(0x11),
            transfer_tag: TargetTransferTag::RESERVED,
            cmd_sn: CmdSn(0x22),
            exp_stat_sn: StatSn(0x33),
        };
        let bhs = request.encode(16);
        assert_eq!(bhs.0[..8], [0x44, 0x80, 0, 0, 0, 0, 0, 16]);
        assert_eq!(bhs.0[8..24], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0x11, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!((bhs.u32_at(24), bhs.u32_at(28)), (0x22, 0x33));
        assert_eq!(TextRequest::decode(&bhs), request);
    }

    #[test]
    fn a_response_lies_where_the_rfc_puts_it() {
        let response = TextResponse {
            is_final: false,
            text_continues: true,
            lun: LunField::default(),
            task_tag: InitiatorTaskTag(0x11),
            transfer_tag: TargetTransferTag(0x55),
            stat_sn: StatSn(0x66),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(0x77), max_cmd_sn: CmdSn(0x88) },
        };
        let bhs = response.encode(3);
        assert_eq!(bhs.0[..2], [0x24, 0x40]);
        assert_eq!(
            (bhs.u32_at(20), bhs.u32_at(24), bhs.u32_at(28), bhs.u32_at(32)),
            (0x55, 0x66, 0x77, 0x88)
        );
        assert_eq!(TextResponse::decode(&bhs), response);
    }
}
