//! The dynamic disk header: block size, block allocation table, and the parent of a differencing disk.
//!
//! Knows its 1024 bytes. Does not know the file's length: `open` bounds what it says.

use super::HEADER_BYTES;
use super::error::{Structure, VhdError, VhdErrorKind};
use super::footer::{NO_OFFSET, VERSION, checksum};
use super::parent_locator::LOCATORS;
use uuid::Uuid;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const COOKIE: [u8; 8] = *b"cxsparse";
/// Bytes of the parent's name in UTF-16, big-endian.
pub const PARENT_NAME_BYTES: usize = 512;
/// The block sizes read; bitmaps of the largest have 8 KiB.
pub const BLOCK_BYTES_MIN: u32 = 512;
pub const BLOCK_BYTES_MAX: u32 = 32 << 20;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    version: U32,
    max_table_entries: U32,
    block_size: U32,
    checksum: U32,
    parent_unique_id: [u8; 16],
    parent_timestamp: U32,
    reserved: U32,
    parent_name: [u8; PARENT_NAME_BYTES],
    locators: [RawLocator; LOCATORS],
    reserved_end: [u8; 256],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLocator {
    code: [u8; 4],
    data_space: U32,
    data_len: U32,
    reserved: U32,
    data_offset: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// One of the eight parent locator entries. A code of zeros means "unused".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LocatorEntry {
    pub code: [u8; 4],
    /// Bytes, or sectors, depending on the writer: never used for reading.
    pub data_space: u32,
    /// Bytes.
    pub data_len: u32,
    pub data_offset: u64,
}

/// A header whose cookie, checksum, version and block size are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    pub table_offset: u64,
    pub max_table_entries: u32,
    /// A power of two from 512 bytes to 32 MiB.
    pub block_size: u32,
    pub parent_unique_id: Uuid,
    /// Seconds since 2000-01-01 00:00:00 UTC.
    pub parent_timestamp: u32,
    /// The parent's name up to the first NUL; `None` when empty or not UTF-16.
    pub parent_name: Option<String>,
    pub locators: [LocatorEntry; LOCATORS],
}

const CHECKSUM_AT: usize = 36;
const PARENT_TIMESTAMP_AT: usize = core::mem::offset_of!(RawHeader, parent_timestamp);
const _: () = assert!(PARENT_TIMESTAMP_AT + 4 <= 512);

impl DynamicHeader {
    /// Parses 1024 bytes found at `offset` (for messages).
    pub fn parse(bytes: &[u8; HEADER_BYTES], offset: u64) -> Result<Self, VhdError> {
        let fail = |kind| VhdError::new(kind, Structure::DynamicHeader, offset);
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.cookie != COOKIE {
            return Err(fail(VhdErrorKind::HeaderCookie));
        }
        if raw.checksum.get() != checksum(bytes, CHECKSUM_AT) {
            return Err(fail(VhdErrorKind::HeaderChecksum));
        }
        if raw.version.get() >> 16 != VERSION >> 16 {
            return Err(fail(VhdErrorKind::Version(raw.version.get())));
        }
        let block_size = raw.block_size.get();
        if !block_size.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_size) {
            return Err(fail(VhdErrorKind::BlockSize(block_size)));
        }
        Ok(Self {
            table_offset: raw.table_offset.get(),
            max_table_entries: raw.max_table_entries.get(),
            block_size,
            parent_unique_id: Uuid::from_bytes(raw.parent_unique_id),
            parent_timestamp: raw.parent_timestamp.get(),
            parent_name: decode_name(&raw.parent_name),
            locators: raw.locators.map(|locator| LocatorEntry {
                code: locator.code,
                data_space: locator.data_space.get(),
                data_len: locator.data_len.get(),
                data_offset: locator.data_offset.get(),
            }),
        })
    }

    /// The 1024 bytes with their checksum. A name of more than 256 UTF-16 units is cut.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let raw = RawHeader {
            cookie: COOKIE,
            data_offset: U64::new(NO_OFFSET),
            table_offset: U64::new(self.table_offset),
            version: U32::new(VERSION),
            max_table_entries: U32::new(self.max_table_entries),
            block_size: U32::new(self.block_size),
            checksum: U32::new(0),
            parent_unique_id: self.parent_unique_id.into_bytes(),
            parent_timestamp: U32::new(self.parent_timestamp),
            reserved: U32::new(0),
            parent_name: encode_name(self.parent_name.as_deref().unwrap_or_default()),
            locators: self.locators.map(|locator| RawLocator {
                code: locator.code,
                data_space: U32::new(locator.data_space),
                data_len: U32::new(locator.data_len),
                reserved: U32::new(0),
                data_offset: U64::new(locator.data_offset),
            }),
            reserved_end: [0; 256],
        };
        let mut bytes: [u8; HEADER_BYTES] = zerocopy::transmute!(raw);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// Writes the parent's time stamp into the bytes of a header; only its first sector changes.
pub(super) fn set_parent_timestamp(bytes: &mut [u8; HEADER_BYTES], timestamp: u32) {
    bytes[PARENT_TIMESTAMP_AT..PARENT_TIMESTAMP_AT + 4].copy_from_slice(&timestamp.to_be_bytes());
    let sum = checksum(bytes, CHECKSUM_AT);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
}

fn decode_name(bytes: &[u8; PARENT_NAME_BYTES]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let name: String =
        char::decode_utf16(units.take_while(|unit| *unit != 0)).collect::<Result<_, _>>().ok()?;
    (!name.is_empty()).then_some(name)
}

fn encode_name(name: &str) -> [u8; PARENT_NAME_BYTES] {
    let mut bytes = [0; PARENT_NAME_BYTES];
    let mut at = 0;
    for character in name.chars() {
        let mut units = [0; 2];
        let units = character.encode_utf16(&mut units);
        if at + units.len() * 2 > PARENT_NAME_BYTES {
            break;
        }
        for unit in units {
            bytes[at..at + 2].copy_from_slice(&unit.to_be_bytes());
            at += 2;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> DynamicHeader {
        let mut locators = [LocatorEntry::default(); LOCATORS];
        locators[0] = LocatorEntry { code: *b"W2ru", data_space: 512, data_len: 24, data_offset: 2048 };
        DynamicHeader {
            table_offset: 4096,
            max_table_entries: 20,
            block_size: 2 << 20,
            parent_unique_id: Uuid::from_u128(5),
            parent_timestamp: 9,
            parent_name: Some("Gold Büro 标准.vhd".to_owned()),
            locators,
        }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let header = sample();
        assert_eq!(DynamicHeader::parse(&header.encode(), 512), Ok(header));
    }

    #[test]
    fn block_sizes_that_are_no_power_of_two_are_refused() {
        for block_size in [0, 256, 3 << 20, (2 << 20) + 512, 64 << 20, 1 << 31] {
            let header = DynamicHeader { block_size, ..sample() };
            let error = DynamicHeader::parse(&header.encode(), 512).unwrap_err();
            assert_eq!(error.kind, VhdErrorKind::BlockSize(block_size));
        }
    }

    #[test]
    fn a_name_too_long_is_cut_between_characters() {
        let header = DynamicHeader { parent_name: Some(format!("x{}", "𝄞".repeat(200))), ..sample() };
        let parsed = DynamicHeader::parse(&header.encode(), 512).unwrap();
        assert_eq!(parsed.parent_name, Some(format!("x{}", "𝄞".repeat(127))));
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let good = sample().encode();
        for at in 0..1024 * 8 {
            let mut bytes = good;
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(DynamicHeader::parse(&bytes, 512).is_err(), "bit {at}");
        }
    }
}
