//! The few SCSI commands that an initiator of this tool issues (SPC-4, SBC-3): CDB bytes and reply bytes.
//!
//! Knows command and parameter-data layouts. Does not know iSCSI.

use std::fmt;

use crate::fail::{Result, failure};
use crate::wire::u32_at;

pub(crate) const SECTOR: u64 = 512;
pub(crate) const GOOD: u8 = 0x00;
pub(crate) const CHECK_CONDITION: u8 = 0x02;
pub(crate) const BUSY: u8 = 0x08;
pub(crate) const TASK_SET_FULL: u8 = 0x28;

pub(crate) type Cdb = [u8; 16];

pub(crate) mod op {
    pub(crate) const TEST_UNIT_READY: u8 = 0x00;
    pub(crate) const INQUIRY: u8 = 0x12;
    pub(crate) const READ_CAPACITY_10: u8 = 0x25;
    pub(crate) const READ_10: u8 = 0x28;
    pub(crate) const WRITE_10: u8 = 0x2a;
    pub(crate) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub(crate) const READ_16: u8 = 0x88;
    pub(crate) const WRITE_16: u8 = 0x8a;
    pub(crate) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(crate) const REPORT_LUNS: u8 = 0xa0;
}

pub(crate) fn test_unit_ready() -> Cdb {
    [0; 16]
}

/// INQUIRY of the standard data, or of one vital product data page.
pub(crate) fn inquiry(page: Option<u8>, len: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = op::INQUIRY;
    if let Some(page) = page {
        cdb[1] = 1;
        cdb[2] = page;
    }
    cdb[3..5].copy_from_slice(&len.to_be_bytes());
    cdb
}

pub(crate) fn report_luns(len: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = op::REPORT_LUNS;
    cdb[6..10].copy_from_slice(&len.to_be_bytes());
    cdb
}

pub(crate) fn read_capacity_10() -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = op::READ_CAPACITY_10;
    cdb
}

pub(crate) fn read_capacity_16(len: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = op::SERVICE_ACTION_IN_16;
    cdb[1] = 0x10;
    cdb[10..14].copy_from_slice(&len.to_be_bytes());
    cdb
}

pub(crate) fn synchronize_cache() -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = op::SYNCHRONIZE_CACHE_10;
    cdb
}

/// READ or WRITE: the 10-byte form where it fits, the 16-byte form where it does not.
pub(crate) fn transfer(write: bool, lba: u64, sectors: u32) -> Cdb {
    let mut cdb = [0; 16];
    match (u32::try_from(lba), u16::try_from(sectors)) {
        (Ok(lba), Ok(sectors)) => {
            cdb[0] = if write { op::WRITE_10 } else { op::READ_10 };
            cdb[2..6].copy_from_slice(&lba.to_be_bytes());
            cdb[7..9].copy_from_slice(&sectors.to_be_bytes());
        }
        _ => {
            cdb[0] = if write { op::WRITE_16 } else { op::READ_16 };
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&sectors.to_be_bytes());
        }
    }
    cdb
}

/// What a READ or WRITE CDB asks for: first sector and number of sectors.
pub(crate) fn transfer_range(cdb: &Cdb) -> Option<(u64, u32)> {
    match cdb[0] {
        op::READ_10 | op::WRITE_10 => {
            Some((u64::from(u32_at(cdb, 2)), u32::from(u16::from_be_bytes([cdb[7], cdb[8]]))))
        }
        op::READ_16 | op::WRITE_16 => {
            Some((u64::from(u32_at(cdb, 2)) << 32 | u64::from(u32_at(cdb, 6)), u32_at(cdb, 10)))
        }
        _ => None,
    }
}

/// The eight LUN bytes of a command: peripheral addressing below 256, flat addressing above.
pub(crate) fn lun_field(lun: u16) -> u64 {
    if lun < 256 { u64::from(lun) << 48 } else { u64::from(lun | 0x4000) << 48 }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inquiry {
    pub(crate) device_type: u8,
    pub(crate) vendor: String,
    pub(crate) product: String,
    pub(crate) revision: String,
}

pub(crate) fn parse_inquiry(data: &[u8]) -> Result<Inquiry> {
    if data.len() < 36 {
        return Err(failure!(
            "standard INQUIRY data has {} bytes, the least is 36: look at the target",
            data.len()
        ));
    }
    let text = |at: std::ops::Range<usize>| String::from_utf8_lossy(&data[at]).trim().to_string();
    Ok(Inquiry {
        device_type: data[0] & 0x1f,
        vendor: text(8..16),
        product: text(16..32),
        revision: text(32..36),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) sectors: u64,
    pub(crate) sector_len: u32,
}

pub(crate) fn parse_capacity_10(data: &[u8]) -> Result<Capacity> {
    if data.len() < 8 {
        return Err(failure!(
            "READ CAPACITY(10) returned {} bytes instead of 8: look at the target",
            data.len()
        ));
    }
    Ok(Capacity { sectors: u64::from(u32_at(data, 0)) + 1, sector_len: u32_at(data, 4) })
}

pub(crate) fn parse_capacity_16(data: &[u8]) -> Result<Capacity> {
    if data.len() < 12 {
        return Err(failure!(
            "READ CAPACITY(16) returned {} bytes, at least 12 are needed: look at the target",
            data.len()
        ));
    }
    let last = u64::from(u32_at(data, 0)) << 32 | u64::from(u32_at(data, 4));
    Ok(Capacity { sectors: last.wrapping_add(1), sector_len: u32_at(data, 8) })
}

/// The LUNs of a REPORT LUNS list, in peripheral or flat addressing.
pub(crate) fn parse_luns(data: &[u8]) -> Result<Vec<u16>> {
    if data.len() < 8 {
        return Err(failure!(
            "REPORT LUNS returned {} bytes, the least is 8: look at the target",
            data.len()
        ));
    }
    let listed = (u32_at(data, 0) as usize).min(data.len() - 8);
    let field = |entry: &[u8]| u16::from_be_bytes([entry[0], entry[1]]) & 0x3fff;
    Ok(data[8..8 + listed].chunks_exact(8).map(field).collect())
}

/// Sense key, additional sense code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sense {
    pub(crate) key: u8,
    pub(crate) code: u8,
    pub(crate) qualifier: u8,
}

impl Sense {
    /// From the data segment of a SCSI Response: a two-byte length, then fixed or descriptor sense data.
    pub(crate) fn parse(segment: &[u8]) -> Sense {
        let sense = segment.get(2..).unwrap_or_default();
        let at = |i: usize| sense.get(i).copied().unwrap_or(0);
        if at(0) & 0x7e == 0x72 {
            Sense { key: at(1) & 0xf, code: at(2), qualifier: at(3) }
        } else {
            Sense { key: at(2) & 0xf, code: at(12), qualifier: at(13) }
        }
    }

    pub(crate) fn is_unit_attention(self) -> bool {
        self.key == 6
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sense {:x}/{:02x}/{:02x}", self.key, self.code, self.qualifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_use_the_short_form_while_it_fits() {
        let cdb = transfer(false, 0x01020304, 8);
        assert_eq!(&cdb[..10], &[0x28, 0, 1, 2, 3, 4, 0, 0, 8, 0]);
        assert_eq!(transfer_range(&cdb), Some((0x01020304, 8)));
        let cdb = transfer(true, 1 << 33, 8);
        assert_eq!(cdb[0], 0x8a);
        assert_eq!(transfer_range(&cdb), Some((1 << 33, 8)));
        assert_eq!(transfer(false, 0, 0x1_0000)[0], 0x88);
        assert_eq!(transfer_range(&test_unit_ready()), None);
    }

    #[test]
    fn sense_is_read_from_both_formats() {
        let mut fixed = vec![0, 18, 0x70, 0, 6];
        fixed.resize(2 + 12, 0);
        fixed.extend([0x29, 0]);
        assert_eq!(Sense::parse(&fixed), Sense { key: 6, code: 0x29, qualifier: 0 });
        assert_eq!(Sense::parse(&[0, 8, 0x72, 5, 0x24, 0]), Sense { key: 5, code: 0x24, qualifier: 0 });
        assert_eq!(Sense::parse(&[]), Sense::default());
    }

    #[test]
    fn lun_lists_stop_at_their_length() {
        let mut data = vec![0, 0, 0, 16, 0, 0, 0, 0];
        data.extend([0, 0, 0, 0, 0, 0, 0, 0]);
        data.extend([0, 7, 0, 0, 0, 0, 0, 0]);
        data.extend([0xff; 8]);
        assert_eq!(parse_luns(&data), Ok(vec![0, 7]));
        assert_eq!(lun_field(7), 7 << 48);
    }
}
