//! SCSI Data-In (RFC 7143, 11.7): one slice of a read on its way to the initiator.
//!
//! Knows the 48 header bytes. Does not know sequences (`data_in_sequence`) or sockets.
//!
//! | bytes | field                                   | bytes | field          |
//! |-------|-----------------------------------------|-------|----------------|
//! | 0     | opcode 0x25                             | 24    | StatSN, if S   |
//! | 1     | F A . . . O U S                         | 28    | ExpCmdSN       |
//! | 3     | status, if S                            | 32    | MaxCmdSN       |
//! | 4     | TotalAHSLength; 5..8 DataSegmentLength  | 36    | DataSN         |
//! | 8     | LUN, only with A                        | 40    | Buffer Offset  |
//! | 16    | Initiator Task Tag                      | 44    | Residual Count |
//! | 20    | Target Transfer Tag, only with A        |       |                |
//!
//! A asks for an acknowledgement, which exists only from error recovery level 1 on: never set here.

use super::bhs::Bhs;
use super::opcode::ResponseOpcode;
use super::scsi_response::Residual;
use super::{FieldError, InitiatorTaskTag, TargetTransferTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, DataSn, StatSn};

const F: u8 = 0x80;
const A: u8 = 0x40;
const S: u8 = 0x01;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    pub task_tag: InitiatorTaskTag,
    pub window: WindowSnapshot,
    pub data_sn: DataSn,
    pub buffer_offset: u32,
    pub data_len: u32,
    pub end: SequenceEnd,
}

/// F and S are not two flags: status implies the end of the sequence (11.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceEnd {
    More,
    EndOfBurst,
    EndOfTask { stat_sn: StatSn, status: u8, residual: Residual },
}

impl DataIn {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::DataIn as u8;
        match self.end {
            SequenceEnd::More => {}
            SequenceEnd::EndOfBurst => bhs.0[1] = F,
            SequenceEnd::EndOfTask { stat_sn, status, residual } => {
                let (flags, count) = residual.encode();
                bhs.0[1] = F | S | flags;
                bhs.0[3] = status;
                bhs.put_u32(24, stat_sn.0);
                bhs.put_u32(44, count);
            }
        }
        bhs.set_data_len(self.data_len);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(20, TargetTransferTag::RESERVED.0);
        self.window.encode(&mut bhs);
        bhs.put_u32(36, self.data_sn.0);
        bhs.put_u32(40, self.buffer_offset);
        bhs
    }

    pub fn decode(bhs: &Bhs) -> Result<Self, FieldError> {
        let end = match (bhs.is_final(), bhs.0[1] & S != 0) {
            (_, _) if bhs.0[1] & A != 0 => return Err(FieldError("A at level 0")),
            (false, true) => return Err(FieldError("S without F")),
            (false, false) => SequenceEnd::More,
            (true, false) => SequenceEnd::EndOfBurst,
            (true, true) => SequenceEnd::EndOfTask {
                stat_sn: StatSn(bhs.u32_at(24)),
                status: bhs.0[3],
                residual: Residual::decode(bhs.0[1], bhs.u32_at(44))?,
            },
        };
        Ok(Self {
            task_tag: bhs.task_tag(),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
            data_sn: DataSn(bhs.u32_at(36)),
            buffer_offset: bhs.u32_at(40),
            data_len: bhs.data_len(),
            end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(end: SequenceEnd) -> DataIn {
        DataIn {
            task_tag: InitiatorTaskTag(1),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(5), max_cmd_sn: CmdSn(132) },
            data_sn: DataSn(2),
            buffer_offset: 8192,
            data_len: 4096,
            end,
        }
    }

    #[test]
    fn decode_inverts_encode() {
        for end in [
            SequenceEnd::More,
            SequenceEnd::EndOfBurst,
            SequenceEnd::EndOfTask { stat_sn: StatSn(8), status: 0, residual: Residual::Underflow(3) },
        ] {
            assert_eq!(DataIn::decode(&sample(end).encode()), Ok(sample(end)));
        }
    }

    #[test]
    fn status_without_the_end_is_refused() {
        let mut bhs = sample(SequenceEnd::More).encode();
        bhs.0[1] |= S;
        assert_eq!(DataIn::decode(&bhs), Err(FieldError("S without F")));
    }
}
