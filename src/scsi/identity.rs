//! Who a unit is: serial number and names that stay the same for one target name and LUN.
//!
//! Knows names and how a digest of them becomes identifiers. Does not know images: replacing or resetting the
//! child behind a unit must not make it another disk to the host, so nothing of the image goes in.

use md5::{Digest, Md5};

use super::lun::Lun;

/// T10 VENDOR IDENTIFICATION, eight bytes.
pub(super) const VENDOR: &[u8; 8] = b"GOLDRUSH";
/// PRODUCT IDENTIFICATION, sixteen bytes.
pub(super) const PRODUCT: &[u8; 16] = b"DISKLESS DISK   ";
/// The longest unit serial number; Windows and Linux both show this much.
pub const SERIAL_BYTES_MAX: usize = 36;

/// What is known of a unit's name when it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitIdentity {
    /// The iSCSI name of the target.
    pub target_name: String,
    pub lun: Lun,
    /// A serial number of the administrator's choice, printable ASCII; without it one is derived.
    pub serial: Option<String>,
}

/// The names a unit answers with; made once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnitNames {
    /// Printable ASCII: VPD page 80h, and the T10 designator.
    pub(super) serial: Vec<u8>,
    /// NAA 3h, locally assigned: nobody needs an IEEE company identifier for it (SPC-4, 7.8.6.6.4).
    pub(super) naa: [u8; 8],
    /// EUI-64 with the locally administered bit set and the group bit clear.
    pub(super) eui64: [u8; 8],
    /// SCSI name string of the unit: `target,L,0x` and the LUN field.
    pub(super) name: String,
}

impl UnitNames {
    /// The digest is over a fixed label, the target name, the LUN and an explicit serial: equal inputs give equal
    /// names for ever, so this must never change.
    pub(super) fn new(identity: &UnitIdentity) -> Self {
        let mut digest = Md5::new();
        digest.update(b"goldrush logical unit\0");
        digest.update(identity.target_name.as_bytes());
        digest.update([0]);
        digest.update(identity.lun.number().to_be_bytes());
        digest.update(identity.serial.as_deref().unwrap_or("").as_bytes());
        let digest: [u8; 16] = digest.finalize().into();
        let (mut naa, mut eui64) = ([0; 8], [0; 8]);
        naa.copy_from_slice(&digest[..8]);
        eui64.copy_from_slice(&digest[8..]);
        naa[0] = 0x30 | naa[0] & 0x0F;
        eui64[0] = eui64[0] & 0xFC | 0x02;
        let serial = match &identity.serial {
            Some(serial) => serial.clone().into_bytes(),
            None => naa.iter().flat_map(|byte| hex(*byte)).collect(),
        };
        let field = u64::from_be_bytes(identity.lun.to_field());
        let name = format!("{},L,0x{field:016x}", identity.target_name);
        Self { serial, naa, eui64, name }
    }
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0x0F)]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(target: &str, lun: u16) -> UnitIdentity {
        UnitIdentity { target_name: target.into(), lun: Lun::new(lun).unwrap(), serial: None }
    }

    #[test]
    fn names_differ_by_target_and_by_lun_and_never_change() {
        let one = UnitNames::new(&identity("iqn.2026-11.io.goldrush:node-001", 0));
        assert_eq!(one, UnitNames::new(&identity("iqn.2026-11.io.goldrush:node-001", 0)));
        // Recorded: a change here renames every disk of every user.
        assert_eq!(String::from_utf8_lossy(&one.serial), RECORDED_SERIAL);
        for other in
            [identity("iqn.2026-11.io.goldrush:node-002", 0), identity("iqn.2026-11.io.goldrush:node-001", 1)]
        {
            let other = UnitNames::new(&other);
            assert_ne!(other.serial, one.serial);
            assert_ne!(other.naa, one.naa);
            assert_ne!(other.eui64, one.eui64);
            assert_ne!(other.name, one.name);
        }
        assert_eq!(one.name, "iqn.2026-11.io.goldrush:node-001,L,0x0000000000000000");
        assert_eq!((one.naa[0] >> 4, one.eui64[0] & 3), (3, 2));
    }

    const RECORDED_SERIAL: &str = "313e4b2ce196a082";
}
