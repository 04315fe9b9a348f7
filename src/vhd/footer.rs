//! The 512-byte footer, at the end of every VHD and, as a copy, at the start of dynamic and differencing ones.
//!
//! Knows its fields and its checksum. Does not know which of two footers rules (`open`).

use super::error::{Structure, VhdError, VhdErrorKind};
use super::geometry::Geometry;
use super::{DiskType, FOOTER_BYTES};
use crate::limits::VHD_SECTORS_MAX;
use crate::units::{SECTOR_BYTES, SectorCount};
use uuid::Uuid;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const COOKIE: [u8; 8] = *b"conectix";
/// Version 1.0; another major number is another format.
pub const VERSION: u32 = 0x0001_0000;
/// Bit 0: temporary disk. Bit 1: reserved, set by good writers.
pub const FEATURE_TEMPORARY: u32 = 1;
pub const FEATURE_RESERVED: u32 = 2;
/// "No such structure": the specification prints 32 bits, Windows wants 64.
pub const NO_OFFSET: u64 = u64::MAX;

/// The bytes of a footer; all integers big-endian.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFooter {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    data_offset: U64,
    timestamp: U32,
    creator_app: [u8; 4],
    creator_version: U32,
    creator_host: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors_per_track: u8,
    disk_type: U32,
    checksum: U32,
    unique_id: [u8; 16],
    saved_state: u8,
    reserved: [u8; 427],
}

const _: () = assert!(size_of::<RawFooter>() == FOOTER_BYTES);

/// A footer whose checksum, cookie, version, type and size are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    pub features: u32,
    /// Where the dynamic disk header lies; all ones in a fixed disk.
    pub data_offset: u64,
    /// Seconds since 2000-01-01 00:00:00 UTC.
    pub timestamp: u32,
    pub creator_app: [u8; 4],
    pub creator_version: u32,
    pub creator_host: [u8; 4],
    /// The size at creation, in bytes: history.
    pub original_size: u64,
    /// The size of the disk.
    pub sectors: SectorCount,
    pub geometry: Geometry,
    pub disk_type: DiskType,
    pub unique_id: Uuid,
    /// Forbids growing and compacting, not opening.
    pub saved_state: bool,
}

impl Footer {
    /// Parses 512 bytes found as `structure` at `offset` (for messages).
    pub fn parse(bytes: &[u8; FOOTER_BYTES], structure: Structure, offset: u64) -> Result<Self, VhdError> {
        let fail = |kind| VhdError::new(kind, structure, offset);
        let raw: RawFooter = zerocopy::transmute!(*bytes);
        if raw.cookie != COOKIE {
            return Err(fail(VhdErrorKind::FooterCookie));
        }
        if raw.checksum.get() != checksum(bytes, CHECKSUM_AT) {
            return Err(fail(VhdErrorKind::FooterChecksum));
        }
        if raw.version.get() >> 16 != VERSION >> 16 {
            return Err(fail(VhdErrorKind::Version(raw.version.get())));
        }
        let unknown = raw.features.get() & !(FEATURE_TEMPORARY | FEATURE_RESERVED);
        if unknown != 0 {
            return Err(fail(VhdErrorKind::Features(unknown)));
        }
        let disk_type = match raw.disk_type.get() {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(fail(VhdErrorKind::DiskType(other))),
        };
        let size = raw.current_size.get();
        if size == 0 || !size.is_multiple_of(SECTOR_BYTES) || size / SECTOR_BYTES > VHD_SECTORS_MAX {
            return Err(fail(VhdErrorKind::Size(size)));
        }
        Ok(Self {
            features: raw.features.get(),
            data_offset: raw.data_offset.get(),
            timestamp: raw.timestamp.get(),
            creator_app: raw.creator_app,
            creator_version: raw.creator_version.get(),
            creator_host: raw.creator_host,
            original_size: raw.original_size.get(),
            sectors: SectorCount(size / SECTOR_BYTES),
            geometry: Geometry {
                cylinders: raw.cylinders.get(),
                heads: raw.heads,
                sectors_per_track: raw.sectors_per_track,
            },
            disk_type,
            unique_id: Uuid::from_bytes(raw.unique_id),
            saved_state: raw.saved_state != 0,
        })
    }

    /// The 512 bytes with their checksum. Reserved bytes are zero.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let raw = RawFooter {
            cookie: COOKIE,
            features: U32::new(self.features),
            version: U32::new(VERSION),
            data_offset: U64::new(self.data_offset),
            timestamp: U32::new(self.timestamp),
            creator_app: self.creator_app,
            creator_version: U32::new(self.creator_version),
            creator_host: self.creator_host,
            original_size: U64::new(self.original_size),
            current_size: U64::new(self.sectors.bytes().0),
            cylinders: U16::new(self.geometry.cylinders),
            heads: self.geometry.heads,
            sectors_per_track: self.geometry.sectors_per_track,
            disk_type: U32::new(match self.disk_type {
                DiskType::Fixed => 2,
                DiskType::Dynamic => 3,
                DiskType::Differencing => 4,
            }),
            checksum: U32::new(0),
            unique_id: self.unique_id.into_bytes(),
            saved_state: u8::from(self.saved_state),
            reserved: [0; 427],
        };
        let mut bytes: [u8; FOOTER_BYTES] = zerocopy::transmute!(raw);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// True when both describe the same disk in the same file; time stamps and saved state may differ.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.disk_type == other.disk_type
            && self.sectors == other.sectors
            && self.unique_id == other.unique_id
            && self.data_offset == other.data_offset
    }
}

pub(super) const CHECKSUM_AT: usize = 64;
pub(super) const DATA_OFFSET_AT: usize = 16;

/// The ones' complement of the byte sum, the four bytes of the checksum itself (at `hole`) taken as zero.
pub(super) fn checksum(bytes: &[u8], hole: usize) -> u32 {
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = bytes.iter().skip(hole).take(4).map(|byte| u32::from(*byte)).sum();
    !(sum - own)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn sample() -> Footer {
        Footer {
            features: FEATURE_RESERVED,
            data_offset: 512,
            timestamp: 77,
            creator_app: *b"test",
            creator_version: 0x0001_0002,
            creator_host: *b"Wi2k",
            original_size: 1 << 20,
            sectors: SectorCount(4096),
            geometry: Geometry::of(4096),
            disk_type: DiskType::Differencing,
            unique_id: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            saved_state: false,
        }
    }

    fn parse(bytes: &[u8; 512]) -> Result<Footer, VhdErrorKind> {
        Footer::parse(bytes, Structure::TailFooter, 0).map_err(|error| error.kind)
    }

    #[test]
    fn a_footer_survives_its_bytes() {
        let footer = sample();
        assert_eq!(parse(&footer.encode()), Ok(footer));
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let good = sample().encode();
        for at in 0..512 * 8 {
            let mut bytes = good;
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(parse(&bytes).is_err(), "bit {at}");
        }
    }

    #[test]
    fn sizes_the_format_cannot_hold_are_refused() {
        let mut footer = sample();
        for sectors in [0, VHD_SECTORS_MAX + 1] {
            footer.sectors = SectorCount(sectors);
            assert_eq!(parse(&footer.encode()), Err(VhdErrorKind::Size(sectors * 512)));
        }
        footer.sectors = SectorCount(VHD_SECTORS_MAX);
        assert_eq!(parse(&footer.encode()), Ok(footer));
    }

    #[test]
    fn features_zero_of_old_creators_is_accepted() {
        let footer = Footer { features: 0, ..sample() };
        assert!(parse(&footer.encode()).is_ok());
    }

    #[test]
    fn errors_are_one_sentence_with_structure_and_place() {
        let error = Footer::parse(&[0; 512], Structure::TailFooter, 1024).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("the footer at the end of the file (byte 1024) has no 'conectix'"),
            "{text}"
        );
    }
}
