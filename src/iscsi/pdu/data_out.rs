//! SCSI Data-Out (RFC 7143, 11.7): one slice of a write on its way to the target.
//!
//! Knows the 48 header bytes. Does not know sequences (`data_out_sequence`).
//!
//! | bytes | field                                   | bytes | field                       |
//! |-------|-----------------------------------------|-------|-----------------------------|
//! | 0     | opcode 0x05                             | 20    | Target Transfer Tag or ffff |
//! | 1     | F                                       | 28    | ExpStatSN                   |
//! | 4     | TotalAHSLength; 5..8 DataSegmentLength  | 36    | DataSN                      |
//! | 8     | LUN, only with a Target Transfer Tag    | 40    | Buffer Offset               |
//! | 16    | Initiator Task Tag                      |       |                             |

use super::bhs::Bhs;
use super::opcode::RequestOpcode;
use super::{InitiatorTaskTag, LunField, TargetTransferTag};
use crate::iscsi::serial::{DataSn, StatSn};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: the last of its burst (11.7.1).
    pub is_final: bool,
    pub task_tag: InitiatorTaskTag,
    pub answers: Solicitation,
    pub exp_stat_sn: StatSn,
    pub data_sn: DataSn,
    pub buffer_offset: u32,
    pub data_len: u32,
}

/// What called for the data (11.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solicitation {
    Unsolicited,
    /// The R2T's tag, and the LUN that qualifies it.
    R2t {
        transfer_tag: TargetTransferTag,
        lun: LunField,
    },
}

impl DataOut {
    /// Any 48 bytes with the opcode are a Data-Out; whether it fits is a matter of the sequence.
    pub fn decode(bhs: &Bhs) -> Self {
        let transfer_tag = TargetTransferTag(bhs.u32_at(20));
        let answers = if transfer_tag == TargetTransferTag::RESERVED {
            Solicitation::Unsolicited
        } else {
            Solicitation::R2t { transfer_tag, lun: bhs.lun() }
        };
        Self {
            is_final: bhs.is_final(),
            task_tag: bhs.task_tag(),
            answers,
            exp_stat_sn: StatSn(bhs.u32_at(28)),
            data_sn: DataSn(bhs.u32_at(36)),
            buffer_offset: bhs.u32_at(40),
            data_len: bhs.data_len(),
        }
    }

    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::DataOut as u8;
        bhs.0[1] = if self.is_final { 0x80 } else { 0 };
        bhs.set_data_len(self.data_len);
        bhs.put_u32(16, self.task_tag.0);
        match self.answers {
            Solicitation::Unsolicited => bhs.put_u32(20, TargetTransferTag::RESERVED.0),
            Solicitation::R2t { transfer_tag, lun } => {
                bhs.0[8..16].copy_from_slice(&lun.0);
                bhs.put_u32(20, transfer_tag.0);
            }
        }
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs.put_u32(36, self.data_sn.0);
        bhs.put_u32(40, self.buffer_offset);
        bhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_inverts_encode() {
        let lun = LunField([0, 1, 0, 0, 0, 0, 0, 0]);
        for answers in
            [Solicitation::Unsolicited, Solicitation::R2t { transfer_tag: TargetTransferTag(6), lun }]
        {
            let data_out = DataOut {
                is_final: true,
                task_tag: InitiatorTaskTag(4),
                answers,
                exp_stat_sn: StatSn(1),
                data_sn: DataSn(2),
                buffer_offset: 512,
                data_len: 1024,
            };
            assert_eq!(DataOut::decode(&data_out.encode()), data_out);
        }
    }
}
