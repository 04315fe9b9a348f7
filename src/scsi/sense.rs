//! Sense data (SPC-4, 4.5): why a command did not end well, in fixed and in descriptor format.
//!
//! Knows sense keys, additional sense codes and both encodings. Does not know which command failed, nor which
//! format a unit uses: the unit writes that into the value.

use crate::units::Lba;

/// The longest encoding: descriptor header (8), information (12) and sense-key-specific descriptor (8).
pub const SENSE_BYTES_MAX: usize = 28;
/// Fixed-format sense data, always this long.
const FIXED_BYTES: usize = 18;

/// What kind of trouble (SPC-4, table 56).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SenseKey {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    CopyAborted = 0xA,
    AbortedCommand = 0xB,
    Miscompare = 0xE,
}

/// Fixed (70h) or descriptor (72h); D_SENSE in the Control mode page chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SenseFormat {
    #[default]
    Fixed,
    Descriptor,
}

/// Which field of an ILLEGAL REQUEST was wrong (SPC-4, 4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldPointer {
    /// True for the CDB, false for the parameter list.
    pub in_cdb: bool,
    /// Byte offset of the first byte of the field.
    pub byte: u16,
    /// The most significant bit of the field, when the field does not start at bit 7.
    pub bit: Option<u8>,
}

/// One error report; small and copied freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    pub key: SenseKey,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// INFORMATION: the logical block address in error, or the byte offset of a miscompare.
    pub information: Option<u64>,
    pub field: Option<FieldPointer>,
    /// PROGRESS INDICATION of NOT READY, in 65536 parts; there is a field pointer or this.
    pub progress: Option<u16>,
    pub format: SenseFormat,
}

impl Sense {
    pub const NONE: Self = Self::new(SenseKey::NoSense, 0x00, 0x00);

    pub const MEDIUM_NOT_PRESENT: Self = Self::new(SenseKey::NotReady, 0x3A, 0x00);

    pub const BECOMING_READY: Self = Self::new(SenseKey::NotReady, 0x04, 0x01);
    pub const SANITIZE_IN_PROGRESS: Self = Self::new(SenseKey::NotReady, 0x04, 0x1B);

    pub const SANITIZE_FAILED: Self = Self::new(SenseKey::MediumError, 0x31, 0x03);
    pub const WRITE_ERROR: Self = Self::new(SenseKey::MediumError, 0x0C, 0x00);
    pub const UNRECOVERED_READ_ERROR: Self = Self::new(SenseKey::MediumError, 0x11, 0x00);
    pub const INTERNAL_TARGET_FAILURE: Self = Self::new(SenseKey::HardwareError, 0x44, 0x00);

    pub const PARAMETER_LIST_LENGTH: Self = Self::new(SenseKey::IllegalRequest, 0x1A, 0x00);
    pub const INVALID_OPCODE: Self = Self::new(SenseKey::IllegalRequest, 0x20, 0x00);
    pub const LBA_OUT_OF_RANGE: Self = Self::new(SenseKey::IllegalRequest, 0x21, 0x00);
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(SenseKey::IllegalRequest, 0x24, 0x00);
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Self = Self::new(SenseKey::IllegalRequest, 0x25, 0x00);
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x00);
    pub const INVALID_RELEASE: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x04);
    pub const TOO_MANY_CSCD_DESCRIPTORS: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x06);
    pub const UNSUPPORTED_CSCD_DESCRIPTOR: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x07);
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x08);
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x09);
    pub const INLINE_DATA_LENGTH: Self = Self::new(SenseKey::IllegalRequest, 0x26, 0x0B);
    /// The list identifier is in use, or too many copies are.
    pub const TOKEN_TYPE_UNSUPPORTED: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x01);
    /// Never made here, or forgotten.
    pub const TOKEN_UNKNOWN: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x04);
    pub const TOKEN_CORRUPT: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x05);
    /// What it stood for has changed.
    pub const TOKEN_REVOKED: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x06);
    pub const TOKEN_EXPIRED: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x07);
    pub const TOKEN_DELETED: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x09);
    pub const TOKEN_LENGTH: Self = Self::new(SenseKey::IllegalRequest, 0x23, 0x0A);
    pub const TOKENS_EXHAUSTED: Self = Self::new(SenseKey::IllegalRequest, 0x55, 0x0D);
    pub const OPERATION_IN_PROGRESS: Self = Self::new(SenseKey::IllegalRequest, 0x00, 0x16);
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(SenseKey::IllegalRequest, 0x39, 0x00);
    pub const REMOVAL_PREVENTED: Self = Self::new(SenseKey::IllegalRequest, 0x53, 0x02);
    pub const INSUFFICIENT_REGISTRATIONS: Self = Self::new(SenseKey::IllegalRequest, 0x55, 0x04);
    /// A task attribute that means nothing now.
    pub const INVALID_MESSAGE: Self = Self::new(SenseKey::IllegalRequest, 0x49, 0x00);
    /// The data the initiator offers does not have the length the CDB asks for.
    pub const INVALID_DATA_OUT_LENGTH: Self = Self::new(SenseKey::IllegalRequest, 0x0E, 0x03);

    pub const WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x00);
    pub const SOFTWARE_WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x02);
    pub const SPACE_ALLOCATION_FAILED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x07);

    pub const COPY_ABORTED: Self = Self::new(SenseKey::CopyAborted, 0x00, 0x00);
    /// COPY TARGET DEVICE NOT REACHABLE: no such unit, or not for this initiator now.
    pub const COPY_UNREACHABLE: Self = Self::new(SenseKey::CopyAborted, 0x0D, 0x02);
    /// THIRD PARTY DEVICE FAILURE: a unit that is copied from or to has failed.
    pub const COPY_THIRD_PARTY: Self = Self::new(SenseKey::CopyAborted, 0x0D, 0x01);
    /// The bytes are no whole number of blocks on the other side.
    pub const COPY_INEXACT: Self = Self::new(SenseKey::CopyAborted, 0x26, 0x0A);

    pub const MISCOMPARE: Self = Self::new(SenseKey::Miscompare, 0x1D, 0x00);

    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None, progress: None, format: SenseFormat::Fixed }
    }

    /// INVALID FIELD IN CDB, pointing at the field whose most significant bit is `bit` of `byte`.
    pub const fn cdb_field(byte: u16, bit: u8) -> Self {
        Self::INVALID_FIELD_IN_CDB.pointing(true, byte, bit)
    }

    /// INVALID FIELD IN PARAMETER LIST, pointing likewise.
    pub const fn parameter_field(byte: u16, bit: u8) -> Self {
        Self::INVALID_FIELD_IN_PARAMETER_LIST.pointing(false, byte, bit)
    }

    const fn pointing(mut self, in_cdb: bool, byte: u16, bit: u8) -> Self {
        let bit = if bit == 7 { None } else { Some(bit & 7) };
        self.field = Some(FieldPointer { in_cdb, byte, bit });
        self
    }

    /// With the logical block address in error as INFORMATION.
    #[must_use]
    pub const fn at(mut self, lba: Lba) -> Self {
        self.information = Some(lba.0);
        self
    }

    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    #[must_use]
    pub const fn with_progress(mut self, parts: u16) -> Self {
        self.progress = Some(parts);
        self
    }

    /// The sense-key-specific field (SPC-4, 4.5.2.4).
    fn key_specific(&self) -> Option<[u8; 3]> {
        let progress = || self.progress.map(|parts| [0x80, (parts >> 8) as u8, parts as u8]);
        self.field.map(FieldPointer::encode).or_else(progress)
    }

    #[must_use]
    pub const fn in_format(mut self, format: SenseFormat) -> Self {
        self.format = format;
        self
    }

    /// The bytes on the wire, without any allocation.
    pub fn encode(&self) -> SenseBytes {
        match self.format {
            SenseFormat::Fixed => self.encode_fixed(),
            SenseFormat::Descriptor => self.encode_descriptors(),
        }
    }

    /// | bytes | field              | bytes  | field                       |
    /// |-------|--------------------|--------|-----------------------------|
    /// | 0     | VALID, 70h         | 8..12  | command-specific            |
    /// | 2     | sense key          | 12, 13 | ASC, ASCQ                   |
    /// | 3..7  | INFORMATION        | 14     | FRU                         |
    /// | 7     | additional length  | 15..18 | sense-key-specific          |
    fn encode_fixed(&self) -> SenseBytes {
        let mut out = SenseBytes { bytes: [0; SENSE_BYTES_MAX], len: FIXED_BYTES as u8 };
        let bytes = &mut out.bytes;
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        // Four bytes only: an address that does not fit is left out, and VALID says so (SPC-4, 4.5.3).
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[7] = (FIXED_BYTES - 8) as u8;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(specific) = self.key_specific() {
            bytes[15..18].copy_from_slice(&specific);
        }
        out
    }

    /// Header 72h, then an information descriptor (00h) and a sense-key-specific descriptor (02h) as needed.
    fn encode_descriptors(&self) -> SenseBytes {
        let mut bytes = [0; SENSE_BYTES_MAX];
        bytes[0] = 0x72;
        bytes[1] = self.key as u8;
        bytes[2] = self.asc;
        bytes[3] = self.ascq;
        let mut len = 8;
        if let Some(information) = self.information {
            bytes[len] = 0x00;
            bytes[len + 1] = 0x0A;
            bytes[len + 2] = 0x80;
            bytes[len + 4..len + 12].copy_from_slice(&information.to_be_bytes());
            len += 12;
        }
        if let Some(specific) = self.key_specific() {
            bytes[len] = 0x02;
            bytes[len + 1] = 0x06;
            bytes[len + 4..len + 7].copy_from_slice(&specific);
            len += 8;
        }
        bytes[7] = (len - 8) as u8;
        SenseBytes { bytes, len: len as u8 }
    }
}

impl FieldPointer {
    /// SKSV, C/D, BPV and the bit; then the byte.
    fn encode(self) -> [u8; 3] {
        let mut flags = 0x80;
        if self.in_cdb {
            flags |= 0x40;
        }
        if let Some(bit) = self.bit {
            flags |= 0x08 | (bit & 7);
        }
        let [high, low] = self.byte.to_be_bytes();
        [flags, high, low]
    }
}

/// Encoded sense data, inline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SenseBytes {
    bytes: [u8; SENSE_BYTES_MAX],
    len: u8,
}

impl SenseBytes {
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl core::fmt::Debug for SenseBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x?}", self.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_sense_carries_information_and_field_pointer() {
        let sense = Sense::cdb_field(2, 4).with_information(0x0102_0304);
        let bytes = sense.encode();
        assert_eq!(bytes.as_slice(), [0xF0, 0, 5, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCC, 0, 2]);
    }

    #[test]
    fn fixed_sense_leaves_out_an_address_beyond_32_bits() {
        let bytes = Sense::LBA_OUT_OF_RANGE.at(Lba(1 << 32)).encode();
        assert_eq!(bytes.as_slice()[0], 0x70);
        assert_eq!(bytes.as_slice()[3..7], [0; 4]);
    }

    #[test]
    fn descriptor_sense_carries_both_descriptors() {
        let sense = Sense::parameter_field(0x1234, 7).at(Lba(u64::MAX)).in_format(SenseFormat::Descriptor);
        let bytes = sense.encode();
        assert_eq!(bytes.as_slice()[..8], [0x72, 5, 0x26, 0, 0, 0, 0, 20]);
        assert_eq!(bytes.as_slice()[8..20], [0, 10, 0x80, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(bytes.as_slice()[20..], [2, 6, 0, 0, 0x80, 0x12, 0x34, 0]);
    }

    #[test]
    fn bare_descriptor_sense_is_eight_bytes() {
        let bytes = Sense::NONE.in_format(SenseFormat::Descriptor).encode();
        assert_eq!(bytes.as_slice(), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    }
}
