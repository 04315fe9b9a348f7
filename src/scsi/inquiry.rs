//! Standard INQUIRY data (SPC-4, 6.6.2).
//!
//! Knows the 96 bytes. Does not know vital product data (`vpd`).

use super::identity::{PRODUCT, VENDOR};

const DATA_BYTES: usize = 96;
/// SPC-4.
const VERSION: u8 = 0x06;
/// Version descriptors (SPC-4, table 142): SAM-5, SPC-4, SBC-3, iSCSI, none with a revision.
const VERSION_DESCRIPTORS: [u16; 4] = [0x00A0, 0x0460, 0x04C0, 0x0960];

/// What the standard data says about a unit, or about the lack of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peripheral {
    /// A direct-access block device.
    Disk { removable: bool },
    /// No unit has this LUN: qualifier 011b, type 1Fh.
    Absent,
}

/// | bytes | field                   | bytes  | field                     |
/// |-------|-------------------------|--------|---------------------------|
/// | 0     | qualifier, device type  | 8..16  | vendor                    |
/// | 1     | RMB                     | 16..32 | product                   |
/// | 2     | version                 | 32..36 | revision                  |
/// | 3     | HISUP, data format 2    | 58..74 | eight version descriptors |
/// | 4     | additional length       |        |                           |
/// | 5     | TPGS, 3PC               |        |                           |
/// | 7     | CMDQUE                  |        |                           |
pub(super) fn standard(peripheral: Peripheral) -> Vec<u8> {
    let mut data = vec![0; DATA_BYTES];
    match peripheral {
        Peripheral::Disk { removable } => {
            data[1] = if removable { 0x80 } else { 0 };
            // Implicit asymmetric access, in one group that is always active: REPORT TARGET PORT GROUPS. 3PC: it copies.
            data[5] = 0x18;
        }
        Peripheral::Absent => data[0] = 0x7F,
    }
    data[2] = VERSION;
    data[3] = 0x12;
    data[4] = (DATA_BYTES - 5) as u8;
    data[7] = 0x02;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(&revision());
    for (slot, descriptor) in data[58..74].chunks_exact_mut(2).zip(VERSION_DESCRIPTORS) {
        slot.copy_from_slice(&descriptor.to_be_bytes());
    }
    data
}

/// The first four characters of the program's version.
fn revision() -> [u8; 4] {
    let mut revision = [b' '; 4];
    for (slot, byte) in revision.iter_mut().zip(env!("CARGO_PKG_VERSION").bytes()) {
        *slot = byte;
    }
    revision
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_data_claims_spc4_sbc3_and_iscsi() {
        let data = standard(Peripheral::Disk { removable: false });
        assert_eq!(data.len(), 96);
        assert_eq!(data[..8], [0, 0, 6, 0x12, 91, 0x18, 0, 2]);
        assert_eq!(data[58..66], [0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0, 0x09, 0x60]);
        assert!(data[8..36].iter().all(|byte| (0x20..0x7F).contains(byte)));
    }

    #[test]
    fn an_absent_unit_has_qualifier_three() {
        assert_eq!(standard(Peripheral::Absent)[0], 0x7F);
        assert_eq!(standard(Peripheral::Disk { removable: true })[..2], [0, 0x80]);
    }
}
