//! REPORT LUNS parameter data (SPC-4, 6.33).
//!
//! Knows the list's shape. Does not know which units there are: the device hands them in.

use super::lun::Lun;

/// SELECT REPORT 01h: well known units only. There are none.
const WELL_KNOWN_ONLY: u8 = 1;

/// The list for one SELECT REPORT value (0 to 2), uncut.
pub(super) fn report(select: u8, luns: impl Iterator<Item = Lun>) -> Vec<u8> {
    let mut data = vec![0; 8];
    if select != WELL_KNOWN_ONLY {
        luns.for_each(|lun| data.extend(lun.to_field()));
    }
    let len = (data.len() - 8) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_counts_bytes_not_units() {
        let luns = [0, 1, 300].map(|number| Lun::new(number).unwrap());
        let data = report(0, luns.into_iter());
        assert_eq!(data[..8], [0, 0, 0, 24, 0, 0, 0, 0]);
        assert_eq!(data[16..18], [0, 1]);
        assert_eq!(data[24..26], [0x41, 0x2C]);
        assert_eq!(report(2, luns.into_iter()), data);
        assert_eq!(report(1, luns.into_iter()), [0; 8]);
    }
}
