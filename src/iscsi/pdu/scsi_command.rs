//! SCSI Command (RFC 7143, 11.3): one CDB, its transfer and its place in the command order.
//!
//! Knows the 48 header bytes and the additional header segments. Does not know what a CDB means.
//!
//! | bytes | field                                   | bytes  | field                         |
//! |-------|-----------------------------------------|--------|-------------------------------|
//! | 0     | . I opcode 0x01                         | 20     | Expected Data Transfer Length |
//! | 1     | F R W . . ATTR(3)                       | 24     | CmdSN                         |
//! | 4     | TotalAHSLength; 5..8 DataSegmentLength  | 28     | ExpStatSN                     |
//! | 8     | LUN                                     | 32..48 | CDB, the first 16 bytes       |
//! | 16    | Initiator Task Tag                      | AHS    | rest of the CDB; read length  |
//!
//! An additional header segment is AHSLength (2 bytes, from byte 3 on), AHSType (1), content, padding (11.2.2).

use super::bhs::Bhs;
use super::opcode::RequestOpcode;
use super::{FieldError, InitiatorTaskTag, LunField};
use crate::iscsi::serial::{CmdSn, StatSn};

/// CDB bytes the header has room for.
pub const CDB_BYTES: usize = 16;

const F: u8 = 0x80;
const R: u8 = 0x40;
const W: u8 = 0x20;
const AHS_EXTENDED_CDB: u8 = 1;
const AHS_READ_LENGTH: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    pub immediate: bool,
    pub transfer: Transfer,
    pub attribute: TaskAttribute,
    pub lun: LunField,
    pub task_tag: InitiatorTaskTag,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    pub cdb: Cdb,
    /// Bytes of immediate data.
    pub data_len: u32,
}

/// F, R, W and the expected lengths, as far as they may be combined (11.3.1, 11.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    None,
    Read {
        expected: u32,
    },
    /// `unsolicited`: F is clear, Data-Out PDUs follow without an R2T.
    Write {
        expected: u32,
        unsolicited: bool,
    },
    /// R and W, and a length for at least one of them.
    Bidirectional {
        expected_write: u32,
        expected_read: u32,
        unsolicited: bool,
    },
}

/// The first sixteen CDB bytes and how many the initiator sent in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    pub bytes: [u8; CDB_BYTES],
    /// 16, or more when an additional header segment carries the rest.
    pub len: u16,
}

/// SAM-5, 8.9, coded as in 11.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskAttribute {
    Untagged,
    Simple,
    Ordered,
    HeadOfQueue,
    Aca,
}

impl TaskAttribute {
    fn decode(code: u8) -> Result<Self, FieldError> {
        Ok(match code {
            0 => Self::Untagged,
            1 => Self::Simple,
            2 => Self::Ordered,
            3 => Self::HeadOfQueue,
            4 => Self::Aca,
            _ => return Err(FieldError("task attribute")),
        })
    }
}

/// What the additional header segments say.
#[derive(Default)]
struct Additional {
    cdb_rest: u16,
    read_len: Option<u32>,
}

impl Additional {
    fn decode(mut ahs: &[u8]) -> Result<Self, FieldError> {
        let mut found = Self::default();
        while let Some((head, rest)) = ahs.split_first_chunk::<3>() {
            let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
            let content = rest.get(..len).ok_or(FieldError("AHSLength"))?;
            match head[2] & 0x3F {
                AHS_EXTENDED_CDB if len > 1 && len <= 245 => found.cdb_rest = len as u16 - 1,
                AHS_READ_LENGTH if len == 5 => {
                    found.read_len =
                        Some(u32::from_be_bytes([content[1], content[2], content[3], content[4]]));
                }
                _ => return Err(FieldError("AHSType")),
            }
            let padded = (len + 3).next_multiple_of(4) - 3;
            ahs = rest.get(padded..).unwrap_or_default();
        }
        if ahs.is_empty() { Ok(found) } else { Err(FieldError("TotalAHSLength")) }
    }
}

impl ScsiCommand {
    pub fn decode(bhs: &Bhs, ahs: &[u8]) -> Result<Self, FieldError> {
        let additional = Additional::decode(ahs)?;
        let mut bytes = [0; CDB_BYTES];
        bytes.copy_from_slice(&bhs.0[32..48]);
        Ok(Self {
            immediate: bhs.immediate(),
            transfer: decode_transfer(bhs.0[1], bhs.u32_at(20), additional.read_len.unwrap_or(0))?,
            attribute: TaskAttribute::decode(bhs.0[1] & 7)?,
            lun: bhs.lun(),
            task_tag: bhs.task_tag(),
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
            cdb: Cdb { bytes, len: CDB_BYTES as u16 + additional.cdb_rest },
            data_len: bhs.data_len(),
        })
    }

    /// The header of a command without additional segments: what an initiator sends. `cdb.len` and a
    /// bidirectional read length are not stored.
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::ScsiCommand as u8 | if self.immediate { 0x40 } else { 0 };
        let (flags, expected) = match self.transfer {
            Transfer::None => (F, 0),
            Transfer::Read { expected } => (F | R, expected),
            Transfer::Write { expected, unsolicited } => (W | if unsolicited { 0 } else { F }, expected),
            Transfer::Bidirectional { expected_write, unsolicited, .. } => {
                (R | W | if unsolicited { 0 } else { F }, expected_write)
            }
        };
        bhs.0[1] = flags | self.attribute as u8;
        bhs.set_data_len(self.data_len);
        bhs.0[8..16].copy_from_slice(&self.lun.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(20, expected);
        bhs.put_u32(24, self.cmd_sn.0);
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs.0[32..48].copy_from_slice(&self.cdb.bytes);
        bhs
    }
}

fn decode_transfer(flags: u8, expected: u32, expected_read: u32) -> Result<Transfer, FieldError> {
    let unsolicited = flags & F == 0;
    match (flags & R != 0, flags & W != 0) {
        (_, false) if unsolicited => Err(FieldError("F without W")),
        (false, false) if expected != 0 => Err(FieldError("length without direction")),
        (false, false) => Ok(Transfer::None),
        (true, false) => Ok(Transfer::Read { expected }),
        (false, true) => Ok(Transfer::Write { expected, unsolicited }),
        (true, true) if expected == 0 && expected_read == 0 && !unsolicited => Ok(Transfer::None),
        (true, true) => Ok(Transfer::Bidirectional { expected_write: expected, expected_read, unsolicited }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(transfer: Transfer) -> ScsiCommand {
        ScsiCommand {
            immediate: false,
            transfer,
            attribute: TaskAttribute::Ordered,
            lun: LunField([0, 3, 0, 0, 0, 0, 0, 0]),
            task_tag: InitiatorTaskTag(0x1234_5678),
            cmd_sn: CmdSn(9),
            exp_stat_sn: StatSn(11),
            cdb: Cdb { bytes: *b"0123456789abcdef", len: 16 },
            data_len: 512,
        }
    }

    #[test]
    fn decode_inverts_encode() {
        for transfer in [
            Transfer::None,
            Transfer::Read { expected: 4096 },
            Transfer::Write { expected: 1 << 20, unsolicited: true },
            Transfer::Write { expected: 7, unsolicited: false },
            Transfer::Bidirectional { expected_write: 5, expected_read: 0, unsolicited: false },
        ] {
            let command = sample(transfer);
            assert_eq!(ScsiCommand::decode(&command.encode(), &[]), Ok(command));
        }
    }

    #[test]
    fn impossible_flags_are_refused() {
        let mut bhs = sample(Transfer::Read { expected: 1 }).encode();
        bhs.0[1] &= !F;
        assert_eq!(ScsiCommand::decode(&bhs, &[]), Err(FieldError("F without W")));
        bhs.0[1] = F;
        assert_eq!(ScsiCommand::decode(&bhs, &[]), Err(FieldError("length without direction")));
        bhs.0[1] = F | R | 6;
        assert_eq!(ScsiCommand::decode(&bhs, &[]), Err(FieldError("task attribute")));
    }

    #[test]
    fn additional_segments_extend_cdb_and_read_length() {
        let mut bhs = sample(Transfer::Write { expected: 8, unsolicited: false }).encode();
        bhs.0[1] |= R;
        let ahs =
            [0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 5, 2, 0, 0, 0, 2, 0];
        let command = ScsiCommand::decode(&bhs, &ahs).unwrap();
        assert_eq!(command.cdb.len, 32);
        assert_eq!(
            command.transfer,
            Transfer::Bidirectional { expected_write: 8, expected_read: 512, unsolicited: false }
        );
    }

    #[test]
    fn malformed_additional_segments_are_refused() {
        let bhs = sample(Transfer::None).encode();
        for ahs in [&[0, 200, 1, 0][..], &[0, 1, 9, 0], &[0, 0, 1, 0], &[0, 5], &[0xFF, 0xFF, 2, 0]] {
            assert!(ScsiCommand::decode(&bhs, ahs).is_err(), "{ahs:?}");
        }
    }
}
