//! Logical unit numbers (SAM-5, 4.7): the eight-byte field and the number in it.
//!
//! Knows single-level addressing: peripheral (00b), flat (01b) and extended flat. Does not know which numbers
//! are in use.

/// A logical unit number, 0 to 16383: what flat space addressing can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lun(u16);

/// The field names no unit this target could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("LUN field {0:02x?} addresses no single-level logical unit of this target")]
pub struct LunError(pub [u8; 8]);

/// The field of the REPORT LUNS well known logical unit (SAM-5, 4.7.7.5.1).
pub const REPORT_LUNS_WELL_KNOWN: [u8; 8] = [0xC1, 0x01, 0, 0, 0, 0, 0, 0];

impl Lun {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(0x3FFF);

    /// `None` above 16383.
    pub const fn new(number: u16) -> Option<Self> {
        if number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    pub const fn number(self) -> u16 {
        self.0
    }

    /// Reads any single-level form; hosts differ in which they use for the same number.
    ///
    /// # Errors
    /// Multi-level addresses, a bus other than 0, well known units, and numbers above [`Lun::MAX`].
    pub fn from_field(field: [u8; 8]) -> Result<Self, LunError> {
        let error = LunError(field);
        let [b0, b1, b2, b3, ..] = field;
        let lower_levels_empty = field[2..].iter().all(|byte| *byte == 0);
        match b0 >> 6 {
            // Peripheral device addressing: bus identifier 0, then an eight-bit number.
            0b00 if b0 == 0 && lower_levels_empty => Ok(Self(u16::from(b1))),
            // Flat space addressing: fourteen bits.
            0b01 if lower_levels_empty => Ok(Self(u16::from_be_bytes([b0 & 0x3F, b1]))),
            // Extended flat space addressing: length 01b, method 2h, twenty-four bits.
            0b11 if b0 == 0xD2 && field[4..].iter().all(|byte| *byte == 0) => {
                let number = u32::from_be_bytes([0, b1, b2, b3]);
                u16::try_from(number).ok().and_then(Self::new).ok_or(error)
            }
            _ => Err(error),
        }
    }

    /// Peripheral addressing up to 255, flat above (what REPORT LUNS returns).
    pub const fn to_field(self) -> [u8; 8] {
        let [high, low] = self.0.to_be_bytes();
        let method = if self.0 > 255 { 0x40 } else { 0 };
        [high | method, low, 0, 0, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_its_field() {
        for number in 0..=Lun::MAX.number() {
            let lun = Lun::new(number).unwrap();
            assert_eq!(Lun::from_field(lun.to_field()), Ok(lun));
        }
        assert_eq!(Lun::new(0x4000), None);
    }

    #[test]
    fn peripheral_flat_and_extended_forms_name_the_same_unit() {
        let one = Lun::new(1).unwrap();
        assert_eq!(Lun::from_field([0, 1, 0, 0, 0, 0, 0, 0]), Ok(one));
        assert_eq!(Lun::from_field([0x40, 1, 0, 0, 0, 0, 0, 0]), Ok(one));
        assert_eq!(Lun::from_field([0xD2, 0, 0, 1, 0, 0, 0, 0]), Ok(one));
    }

    #[test]
    fn other_buses_levels_and_methods_are_refused() {
        for field in [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 1, 0, 0, 0, 0],
            [0x40, 1, 0, 0, 0, 0, 0, 9],
            [0x80, 0, 0, 0, 0, 0, 0, 0],
            [0xD2, 0, 0x40, 0, 0, 0, 0, 0],
            REPORT_LUNS_WELL_KNOWN,
        ] {
            assert_eq!(Lun::from_field(field), Err(LunError(field)));
        }
    }
}
