//! Header and data digests (RFC 7143, 11.2.3, 13.1): CRC32C over a segment, in the order of the wire.
//!
//! Knows how to sum bytes in pieces. Does not know what a segment is, nor when digests are on (`framer`).
//!
//! `crc-fast` folds with the widest carry-less multiplication that the processor has, and is twice as fast on payload as
//! `crc32c`, which the formats use for their few sectors, and the tests as a second opinion.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes of a digest on the wire.
pub const DIGEST_BYTES: usize = 4;

/// A CRC32C that grows piece by piece; padding bytes are part of the sum.
///
/// Holds the register as it stands between pieces: all ones at first, and complemented at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc32c(u32);

impl Crc32c {
    pub fn new() -> Self {
        Self(!0)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let mut sum = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(self.0));
        sum.update(bytes);
        self.0 = sum.get_state() as u32;
    }

    /// The four bytes that follow the segment: least significant byte first, unlike every other number of
    /// iSCSI (RFC 3720, B.4 has examples).
    pub fn wire(self) -> [u8; DIGEST_BYTES] {
        (!self.0).to_le_bytes()
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

/// The digest of a segment that lies in several pieces.
pub fn digest_of(pieces: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut sum = Crc32c::new();
    for piece in pieces {
        sum.update(piece);
    }
    sum.wire()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The SCSI READ(10) command PDU of RFC 3720, B.4.
    const READ_PDU: [u8; 48] = [
        0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0,
        0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn the_rfc_examples_hold() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(digest_of(&[&[0; 32]]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest_of(&[&[0xff; 32]]), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(digest_of(&[&ascending]), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(digest_of(&[&descending]), [0x5c, 0xdb, 0x3f, 0x11]);
        assert_eq!(digest_of(&[&READ_PDU]), [0x56, 0x3a, 0x96, 0xd9]);
    }

    #[test]
    fn pieces_sum_like_the_whole() {
        for cut in 0..=READ_PDU.len() {
            let (front, back) = READ_PDU.split_at(cut);
            assert_eq!(digest_of(&[front, back]), digest_of(&[&READ_PDU]));
        }
    }

    #[test]
    fn every_length_and_alignment_agrees_with_another_implementation() {
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let lengths = (0..300).chain([511, 512, 513, 4095, 4096, 4097, 8192, 16_384, 19_000]);
        for length in lengths {
            for start in [0, 1, 3, 8, 15, 31, 64] {
                let piece = &bytes[start..start + length];
                assert_eq!(
                    digest_of(&[piece]),
                    crc32c::crc32c(piece).to_le_bytes(),
                    "{length} bytes from {start}"
                );
            }
        }
    }
}
