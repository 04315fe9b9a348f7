//! The basic header segment (RFC 7143, 11.2): 48 bytes and the fields all PDUs share.
//!
//! Knows opcode, flags, lengths and tags at their offsets. Does not know what an opcode means.
//!
//! | bytes | field                           | bytes | field                    |
//! |-------|---------------------------------|-------|--------------------------|
//! | 0     | . I opcode(6)                   | 8..16 | LUN or opcode-specific   |
//! | 1     | F and opcode-specific flags     | 16    | Initiator Task Tag       |
//! | 4     | TotalAHSLength (4-byte words)   | 20..  | opcode-specific          |
//! | 5..8  | DataSegmentLength               |       |                          |

use super::{InitiatorTaskTag, LunField};

pub const BHS_BYTES: usize = 48;

/// Forty-eight header bytes, as received or to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_BYTES]);

impl Default for Bhs {
    fn default() -> Self {
        Self([0; BHS_BYTES])
    }
}

impl Bhs {
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3F
    }

    /// The I bit of a request (11.2.1.1).
    pub fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// The F bit (11.2.1.3).
    pub fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    /// Bytes of additional header segments.
    pub fn ahs_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of the data segment, without padding.
    pub fn data_len(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    /// The lower 24 bits of `len` are stored; a segment is never longer (`limits`).
    pub fn set_data_len(&mut self, len: u32) {
        debug_assert!(len < 1 << 24);
        self.0[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
    }

    pub fn lun(&self) -> LunField {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[8..16]);
        LunField(lun)
    }

    pub fn task_tag(&self) -> InitiatorTaskTag {
        InitiatorTaskTag(self.u32_at(16))
    }

    pub fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub fn put_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    pub fn put_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
}

/// Bytes that pad a segment of `len` to a multiple of four (11.2.4).
pub const fn pad_len(len: u32) -> u32 {
    len.wrapping_neg() & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_completes_a_word() {
        for len in 0..9 {
            assert_eq!((len + pad_len(len)) % 4, 0);
            assert!(pad_len(len) < 4);
        }
    }

    #[test]
    fn data_length_is_24_bits() {
        let mut bhs = Bhs::default();
        bhs.0[4] = 2;
        bhs.set_data_len(0x12_3456);
        assert_eq!((bhs.ahs_len(), bhs.data_len()), (8, 0x12_3456));
    }
}
