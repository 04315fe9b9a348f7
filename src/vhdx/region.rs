//! The region table: where the block allocation table and the metadata lie.
//!
//! Knows which regions there are and that they do not overlap. Does not know what is in them.

use super::error::{Structure, VhdxError, VhdxErrorKind};
use super::{FileRange, MIB, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS, checksum};
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const SIGNATURE: [u8; 4] = *b"regi";
const CHECKSUM_AT: usize = 4;
const ENTRIES_MAX: u32 = 2047;
/// The flag of a region that must be understood.
const REQUIRED: u32 = 1;

pub const BAT_REGION: Uuid = Uuid::from_u128(0x2DC2_7766_F623_4200_9D64_115E_9BFD_4A08);
pub const METADATA_REGION: Uuid = Uuid::from_u128(0x8B7C_A206_4790_4B9A_B8FE_575F_050F_886E);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTable {
    signature: [u8; 4],
    checksum: U32,
    entries: U32,
    reserved: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    guid: [u8; 16],
    offset: U64,
    length: U32,
    flags: U32,
}

/// The regions of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    pub bat: FileRange,
    pub metadata: FileRange,
    /// Regions nobody must understand: nothing is placed over them.
    pub others: Vec<FileRange>,
}

/// True when signature and checksum are good.
pub fn is_valid(table: &[u8]) -> bool {
    match RawTable::read_from_prefix(table) {
        Ok((raw, _)) => raw.signature == SIGNATURE && raw.checksum.get() == checksum(table, CHECKSUM_AT),
        Err(_) => false,
    }
}

impl Regions {
    /// Parses a valid table, copy `index` (0 or 1), of a file of `len` bytes whose log is at `log`.
    pub fn parse(table: &[u8], index: usize, len: u64, log: FileRange) -> Result<Self, VhdxError> {
        let place = REGION_TABLE_OFFSETS.get(index).copied().unwrap_or_default();
        let fail = |kind| VhdxError::new(kind, Structure::RegionTable(index as u8 + 1), place);
        let Ok((raw, rest)) = RawTable::read_from_prefix(table) else {
            return Err(fail(VhdxErrorKind::NoRegionTable));
        };
        let count = raw.entries.get();
        if count > ENTRIES_MAX {
            return Err(fail(VhdxErrorKind::TooManyEntries(count)));
        }
        let (mut bat, mut metadata, mut others) = (None, None, Vec::new());
        for bytes in rest.chunks_exact(size_of::<RawEntry>()).take(count as usize) {
            let Ok(entry) = RawEntry::read_from_bytes(bytes) else { continue };
            let guid = Uuid::from_bytes_le(entry.guid);
            let range = range(&entry, len).ok_or(fail(VhdxErrorKind::RegionPlace))?;
            match guid {
                BAT_REGION if bat.is_some() => return Err(fail(VhdxErrorKind::RegionCount("BAT"))),
                BAT_REGION => bat = Some(range),
                METADATA_REGION if metadata.is_some() => {
                    return Err(fail(VhdxErrorKind::RegionCount("metadata")));
                }
                METADATA_REGION => metadata = Some(range),
                other if entry.flags.get() & REQUIRED != 0 => {
                    return Err(fail(VhdxErrorKind::UnknownRegion(other)));
                }
                _ => others.push(range),
            }
        }
        let regions = Self {
            bat: bat.ok_or(fail(VhdxErrorKind::RegionCount("BAT")))?,
            metadata: metadata.ok_or(fail(VhdxErrorKind::RegionCount("metadata")))?,
            others,
        };
        regions.check_overlaps(log).map_err(|()| fail(VhdxErrorKind::RegionPlace))?;
        Ok(regions)
    }

    /// Every region.
    pub fn all(&self) -> impl Iterator<Item = FileRange> {
        [self.bat, self.metadata].into_iter().chain(self.others.iter().copied())
    }

    fn check_overlaps(&self, log: FileRange) -> Result<(), ()> {
        let mut ranges: Vec<FileRange> = self.all().chain([log]).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let overlap = |pair: &[FileRange]| matches!(pair, [a, b] if a.overlaps(*b));
        if ranges.windows(2).any(overlap) { Err(()) } else { Ok(()) }
    }

    /// The 64 KiB of a table with these two regions.
    pub fn encode(bat: FileRange, metadata: FileRange) -> Vec<u8> {
        let mut table = vec![0; REGION_TABLE_BYTES];
        let raw =
            RawTable { signature: SIGNATURE, checksum: U32::ZERO, entries: U32::new(2), reserved: U32::ZERO };
        let entry = |guid: Uuid, range: FileRange| RawEntry {
            guid: guid.to_bytes_le(),
            offset: U64::new(range.start),
            // Regions are below 4 GiB: a table of the largest disk has 512 MiB.
            length: U32::new(range.len() as u32),
            flags: U32::new(REQUIRED),
        };
        let entries = [entry(BAT_REGION, bat), entry(METADATA_REGION, metadata)];
        table[..16].copy_from_slice(raw.as_bytes());
        table[16..16 + 64].copy_from_slice(entries.as_bytes());
        let sum = checksum(&table, CHECKSUM_AT);
        table[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
        table
    }
}

/// Gives the block table another place in a valid table.
pub(super) fn move_bat(table: &mut [u8], place: FileRange) {
    let head = size_of::<RawTable>();
    let entries = table.get_mut(head..).unwrap_or_default().chunks_exact_mut(size_of::<RawEntry>());
    for bytes in entries.take(ENTRIES_MAX as usize) {
        let Ok(entry) = RawEntry::mut_from_bytes(bytes) else { continue };
        if Uuid::from_bytes_le(entry.guid) == BAT_REGION {
            entry.offset = U64::new(place.start);
            // At most 2 GiB: `resize` bounds it.
            entry.length = U32::new(place.len() as u32);
            break;
        }
    }
    let sum = checksum(table, CHECKSUM_AT);
    if let Some(bytes) = table.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4) {
        bytes.copy_from_slice(&sum.to_le_bytes());
    }
}

fn range(entry: &RawEntry, len: u64) -> Option<FileRange> {
    let (start, length) = (entry.offset.get(), u64::from(entry.length.get()));
    let end = start.checked_add(length)?;
    let on_grid = start.is_multiple_of(MIB) && length.is_multiple_of(MIB);
    (on_grid && start >= MIB && length > 0 && end <= len).then_some(FileRange { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: FileRange = FileRange { start: 1 << 20, end: 2 << 20 };
    const BAT: FileRange = FileRange { start: 3 << 20, end: 4 << 20 };
    const METADATA: FileRange = FileRange { start: 2 << 20, end: 3 << 20 };

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Result<Regions, VhdxErrorKind> {
        let mut table = Regions::encode(BAT, METADATA);
        change(&mut table);
        Regions::parse(&table, 0, 4 << 20, LOG).map_err(|error| error.kind)
    }

    #[test]
    fn a_table_is_what_was_encoded() {
        assert!(is_valid(&Regions::encode(BAT, METADATA)));
        let regions = with(|_| {}).unwrap();
        assert_eq!((regions.bat, regions.metadata, regions.others.len()), (BAT, METADATA, 0));
        let mut damaged = Regions::encode(BAT, METADATA);
        damaged[60_000] ^= 1;
        assert!(!is_valid(&damaged));
    }

    #[test]
    fn unknown_regions_are_refused_only_when_required() {
        let add = |flags: u8| {
            move |table: &mut Vec<u8>| {
                table[8] = 3;
                table[80..96].fill(7);
                table[96..104].copy_from_slice(&(4_u64 << 20).to_le_bytes());
                table[104..108].copy_from_slice(&(1_u32 << 20).to_le_bytes());
                table[108] = flags;
            }
        };
        let parse = |flags| {
            let mut table = Regions::encode(BAT, METADATA);
            add(flags)(&mut table);
            Regions::parse(&table, 0, 5 << 20, LOG).map_err(|error| error.kind)
        };
        assert!(matches!(parse(1), Err(VhdxErrorKind::UnknownRegion(_))));
        assert_eq!(parse(0).unwrap().others, [FileRange { start: 4 << 20, end: 5 << 20 }]);
    }

    #[test]
    fn regions_overlap_nothing_and_are_there_once() {
        assert_eq!(with(|table| table[34] = 0x20), Err(VhdxErrorKind::RegionPlace));
        assert_eq!(with(|table| table[34] = 0x10), Err(VhdxErrorKind::RegionPlace));
        assert_eq!(with(|table| table[8] = 1), Err(VhdxErrorKind::RegionCount("metadata")));
        assert_eq!(with(|table| table.copy_within(16..32, 48)), Err(VhdxErrorKind::RegionCount("BAT")));
        assert_eq!(with(|table| table[9] = 8), Err(VhdxErrorKind::TooManyEntries(2050)));
    }
}
