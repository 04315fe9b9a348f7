//! The file identifier and the two headers.
//!
//! Knows their fields and which header is current. Does not know what the log holds (`log`).

use super::error::{Structure, VhdxError, VhdxErrorKind};
use super::{FileRange, HEADER_BYTES, HEADER_OFFSETS, MIB, checksum};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of every VHDX.
pub const IDENTIFIER: [u8; 8] = *b"vhdxfile";
/// Bytes of the identifier and the creator's name behind it.
pub const IDENTIFIER_BYTES: usize = 8 + 512;
const SIGNATURE: [u8; 4] = *b"head";
const CHECKSUM_AT: usize = 4;
/// The only version there is.
pub const VERSION: u16 = 1;

/// The bytes of a header; all integers little-endian, identifiers in the order of Windows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 4],
    checksum: U32,
    sequence: U64,
    file_write_guid: [u8; 16],
    data_write_guid: [u8; 16],
    log_guid: [u8; 16],
    log_version: U16,
    version: U16,
    log_length: U32,
    log_offset: U64,
    reserved: [u8; 4016],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// A header whose signature and checksum are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The valid header with the higher one is current.
    pub sequence: u64,
    /// New with the first change of the file after each opening.
    pub file_write_guid: Uuid,
    /// New with the first change a guest can see after each opening: what a child knows its parent by.
    pub data_write_guid: Uuid,
    /// Nil: the log is empty. Otherwise its entries carry this.
    pub log_guid: Uuid,
    pub log_version: u16,
    pub version: u16,
    pub log_length: u32,
    pub log_offset: u64,
}

impl Header {
    /// `None` when the signature or the checksum is wrong.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.signature != SIGNATURE || raw.checksum.get() != checksum(bytes, CHECKSUM_AT) {
            return None;
        }
        Some(Self {
            sequence: raw.sequence.get(),
            file_write_guid: Uuid::from_bytes_le(raw.file_write_guid),
            data_write_guid: Uuid::from_bytes_le(raw.data_write_guid),
            log_guid: Uuid::from_bytes_le(raw.log_guid),
            log_version: raw.log_version.get(),
            version: raw.version.get(),
            log_length: raw.log_length.get(),
            log_offset: raw.log_offset.get(),
        })
    }

    /// The 4096 bytes with their checksum. Reserved bytes are zero.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader {
            signature: SIGNATURE,
            checksum: U32::ZERO,
            sequence: U64::new(self.sequence),
            file_write_guid: self.file_write_guid.to_bytes_le(),
            data_write_guid: self.data_write_guid.to_bytes_le(),
            log_guid: self.log_guid.to_bytes_le(),
            log_version: U16::new(self.log_version),
            version: U16::new(self.version),
            log_length: U32::new(self.log_length),
            log_offset: U64::new(self.log_offset),
            reserved: [0; 4016],
        };
        raw.checksum = U32::new(checksum(raw.as_bytes(), CHECKSUM_AT));
        zerocopy::transmute!(raw)
    }

    /// True when the log holds entries that belong to the file.
    pub fn has_log(&self) -> bool {
        !self.log_guid.is_nil()
    }

    /// Where the log lies; checked by [`Current::choose`].
    pub fn log(&self) -> FileRange {
        FileRange { start: self.log_offset, end: self.log_offset.saturating_add(u64::from(self.log_length)) }
    }
}

/// The current header, and which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    pub header: Header,
    /// 0 or 1: the place in [`HEADER_OFFSETS`].
    pub index: usize,
    /// The place of a header that is damaged.
    pub damaged: Option<usize>,
    /// Both have the same number, and the same content.
    pub twins: bool,
}

impl Current {
    /// The valid header with the higher sequence number, fit to be used in a file of `len` bytes.
    ///
    /// A header that is valid and current is final: when it asks for something we do not have (another version), the
    /// other one is not a way around it.
    pub fn choose(headers: [Option<Header>; 2], len: u64) -> Result<Self, VhdxError> {
        let at = |kind, index: usize| {
            VhdxError::new(kind, Structure::Header(index as u8 + 1), HEADER_OFFSETS[index])
        };
        let found = |header, index| Self { header, index, damaged: None, twins: false };
        let current = match headers {
            [Some(first), Some(second)] if first.sequence > second.sequence => found(first, 0),
            [Some(first), Some(second)] if first.sequence < second.sequence => found(second, 1),
            [Some(first), Some(second)] if first == second => Self { twins: true, ..found(first, 0) },
            [Some(_), Some(_)] => return Err(at(VhdxErrorKind::HeadersEqual, 0)),
            [Some(first), None] => Self { damaged: Some(1), ..found(first, 0) },
            [None, Some(second)] => Self { damaged: Some(0), ..found(second, 1) },
            [None, None] => return Err(at(VhdxErrorKind::NoHeader, 0)),
        };
        let header = &current.header;
        let fail = |kind| Err(at(kind, current.index));
        if header.version != VERSION {
            return fail(VhdxErrorKind::Version(header.version));
        }
        if header.has_log() && header.log_version != 0 {
            return fail(VhdxErrorKind::LogVersion(header.log_version));
        }
        let log = header.log();
        let on_grid = log.start.is_multiple_of(MIB) && log.len().is_multiple_of(MIB);
        if !on_grid || log.start < MIB || log.is_empty() || log.end > len {
            let (offset, len) = (header.log_offset, header.log_length);
            return fail(VhdxErrorKind::LogPlace { offset, len });
        }
        Ok(current)
    }
}

/// The creator's name behind the identifier, as far as it is text.
pub fn creator(bytes: &[u8; IDENTIFIER_BYTES]) -> String {
    let units = bytes[8..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|unit| unit.unwrap_or('?'))
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

/// The identifier with a creator's name.
pub fn identifier(creator: &str) -> [u8; IDENTIFIER_BYTES] {
    let mut bytes = [0; IDENTIFIER_BYTES];
    bytes[..8].copy_from_slice(&IDENTIFIER);
    for (place, unit) in bytes[8..].chunks_exact_mut(2).zip(creator.encode_utf16()) {
        place.copy_from_slice(&unit.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u64) -> Header {
        Header {
            sequence,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            log_guid: Uuid::nil(),
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        }
    }

    const LEN: u64 = 8 << 20;

    #[test]
    fn a_header_is_what_was_encoded_and_any_damage_is_found() {
        let bytes = header(7).encode();
        assert_eq!(Header::parse(&bytes), Some(header(7)));
        for at in [0, 4, 8, 30, 79, 4095] {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(Header::parse(&damaged), None, "{at}");
        }
    }

    #[test]
    fn the_higher_number_is_current_and_the_other_one_stands_in() {
        let choose = |first, second| Current::choose([first, second], LEN).map(|current| current.index);
        assert_eq!(choose(Some(header(3)), Some(header(2))), Ok(0));
        assert_eq!(choose(Some(header(3)), Some(header(4))), Ok(1));
        assert_eq!(choose(None, Some(header(4))), Ok(1));
        let other = Header { data_write_guid: Uuid::from_u128(9), ..header(3) };
        assert_eq!(choose(Some(header(3)), Some(other)).unwrap_err().kind, VhdxErrorKind::HeadersEqual);
        assert_eq!(choose(None, None).unwrap_err().kind, VhdxErrorKind::NoHeader);
    }

    #[test]
    fn what_a_current_header_asks_for_is_final() {
        let current = Header { version: 2, ..header(5) };
        let refused = Current::choose([Some(header(4)), Some(current)], LEN).unwrap_err();
        assert_eq!((refused.kind, refused.structure), (VhdxErrorKind::Version(2), Structure::Header(2)));
        let log = Header { log_version: 1, log_guid: Uuid::from_u128(3), ..header(5) };
        let refused = Current::choose([Some(log), None], LEN).unwrap_err();
        assert_eq!(refused.kind, VhdxErrorKind::LogVersion(1));
        assert!(Current::choose([Some(Header { log_version: 1, ..header(5) }), None], LEN).is_ok());
    }

    #[test]
    fn a_log_outside_the_file_or_off_the_grid_is_refused() {
        for (log_offset, log_length) in
            [(0, 1 << 20), (1 << 20, 0), (4096, 1 << 20), (8 << 20, 1 << 20), (u64::MAX, 1 << 20)]
        {
            let header = Header { log_offset, log_length, ..header(1) };
            let refused = Current::choose([Some(header), None], LEN).unwrap_err();
            assert!(matches!(refused.kind, VhdxErrorKind::LogPlace { .. }), "{log_offset}");
        }
    }

    #[test]
    fn the_creator_reads_back() {
        assert_eq!(creator(&identifier("goldrush 0.1")), "goldrush 0.1");
    }
}
