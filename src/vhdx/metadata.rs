//! The metadata: what the disk is.
//!
//! Knows the table of items and the items every file has. Does not know where the region lies (`region`) nor how a
//! parent is named (`parent_locator`).

use super::METADATA_TABLE_BYTES;
use super::error::{Structure, VhdxError, VhdxErrorKind};
use crate::limits::{VHDX_LOCATOR_BYTES_MAX, VHDX_SECTORS_MAX};
use crate::units::{BlockSize, SECTOR_BYTES, SectorCount};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const SIGNATURE: [u8; 8] = *b"metadata";
const ENTRIES_MAX: u16 = 2047;
/// Bytes of the table's header, and of each entry.
pub const ENTRY_BYTES: usize = 32;
const USER: u32 = 1;
const VIRTUAL_DISK: u32 = 2;
const REQUIRED: u32 = 4;

const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xCAA1_6737_FA36_4D43_B3B6_33F0_AA44_E76B);
const DISK_SIZE: Uuid = Uuid::from_u128(0x2FA5_4224_CD1B_4876_B211_5DBE_D83B_F4B8);
const DISK_ID: Uuid = Uuid::from_u128(0xBECA_12AB_B2E6_4523_93EF_C309_E000_C746);
const LOGICAL_SECTOR: Uuid = Uuid::from_u128(0x8141_BF1D_A96F_4709_BA47_F233_A8FA_AB5F);
const PHYSICAL_SECTOR: Uuid = Uuid::from_u128(0xCDA3_48C7_445D_4471_9CC9_E988_5251_C556);
const PARENT_LOCATOR: Uuid = Uuid::from_u128(0xA8D3_5F2D_B30B_454D_ABF7_D3D8_4834_AB0C);

const LEAVE_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// Block sizes: powers of two between these.
pub const BLOCK_BYTES_MIN: u32 = 1 << 20;
pub const BLOCK_BYTES_MAX: u32 = 256 << 20;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTable {
    signature: [u8; 8],
    reserved: U16,
    entries: U16,
    reserved2: [u8; 20],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    id: [u8; 16],
    offset: U32,
    length: U32,
    flags: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RawTable>() == ENTRY_BYTES && size_of::<RawEntry>() == ENTRY_BYTES);

/// The items there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    FileParameters,
    DiskSize,
    DiskId,
    LogicalSector,
    PhysicalSector,
    ParentLocator,
}

impl Item {
    const ALL: [Self; 6] = [
        Self::FileParameters,
        Self::DiskSize,
        Self::DiskId,
        Self::LogicalSector,
        Self::PhysicalSector,
        Self::ParentLocator,
    ];

    fn id(self) -> Uuid {
        match self {
            Self::FileParameters => FILE_PARAMETERS,
            Self::DiskSize => DISK_SIZE,
            Self::DiskId => DISK_ID,
            Self::LogicalSector => LOGICAL_SECTOR,
            Self::PhysicalSector => PHYSICAL_SECTOR,
            Self::ParentLocator => PARENT_LOCATOR,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::FileParameters => "file parameters",
            Self::DiskSize => "virtual disk size",
            Self::DiskId => "virtual disk id",
            Self::LogicalSector => "logical sector size",
            Self::PhysicalSector => "physical sector size",
            Self::ParentLocator => "parent locator",
        }
    }

    /// Its size in bytes; `None` for the locator, which has any.
    fn len(self) -> Option<u32> {
        match self {
            Self::FileParameters | Self::DiskSize => Some(8),
            Self::DiskId => Some(16),
            Self::LogicalSector | Self::PhysicalSector => Some(4),
            Self::ParentLocator => None,
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::FileParameters | Self::ParentLocator => REQUIRED,
            _ => REQUIRED | VIRTUAL_DISK,
        }
    }

    /// For messages.
    pub fn structure(self) -> Structure {
        Structure::Metadata(self.name())
    }
}

/// Where an item lies, in bytes from the start of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub offset: u32,
    pub len: u32,
}

/// The items of a file that we know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    places: [Option<Place>; 6],
}

/// How many entries a table has, from its first 32 bytes at byte `at` of the file.
pub fn entries(header: &[u8; ENTRY_BYTES], at: u64) -> Result<usize, VhdxError> {
    let fail = |kind| VhdxError::new(kind, Structure::MetadataTable, at);
    let raw: RawTable = zerocopy::transmute!(*header);
    if raw.signature != SIGNATURE {
        return Err(fail(VhdxErrorKind::MetadataSignature));
    }
    match raw.entries.get() {
        count @ 0..=ENTRIES_MAX => Ok(usize::from(count)),
        count => Err(fail(VhdxErrorKind::TooManyEntries(u32::from(count)))),
    }
}

impl Places {
    /// From the entries behind the table's header; the region begins at byte `at` and has `region_len` bytes.
    pub fn parse(entries: &[u8], at: u64, region_len: u64) -> Result<Self, VhdxError> {
        let fail = |kind| VhdxError::new(kind, Structure::MetadataTable, at);
        let mut found = Self::default();
        for bytes in entries.chunks_exact(ENTRY_BYTES) {
            let Ok(entry) = RawEntry::read_from_bytes(bytes) else { continue };
            let place = Place { offset: entry.offset.get(), len: entry.length.get() };
            let (id, flags) = (Uuid::from_bytes_le(entry.id), entry.flags.get());
            let end = u64::from(place.offset) + u64::from(place.len);
            if place.len > 0 && (u64::from(place.offset) < METADATA_TABLE_BYTES || end > region_len) {
                return Err(fail(VhdxErrorKind::ItemPlace));
            }
            let known = Item::ALL.into_iter().position(|item| item.id() == id && flags & USER == 0);
            match known.and_then(|index| found.places.get_mut(index)) {
                Some(Some(_)) => return Err(fail(VhdxErrorKind::ItemPlace)),
                Some(slot) => *slot = Some(place),
                None if flags & REQUIRED != 0 => return Err(fail(VhdxErrorKind::UnknownItem(id))),
                None => {}
            }
        }
        Ok(found)
    }

    /// Where `item` lies; checked to have its size.
    pub fn get(&self, item: Item, at: u64) -> Result<Place, VhdxError> {
        let fail = |kind, offset| VhdxError::new(kind, item.structure(), offset);
        let index = Item::ALL.into_iter().position(|other| other == item);
        let place = index.and_then(|index| self.places.get(index).copied().flatten());
        let place = place.ok_or(fail(VhdxErrorKind::ItemMissing, at))?;
        let most = item.len().unwrap_or(VHDX_LOCATOR_BYTES_MAX as u32);
        if place.len == 0 || place.len > most || item.len().is_some_and(|len| len != place.len) {
            return Err(fail(VhdxErrorKind::ItemLength(place.len), at + u64::from(place.offset)));
        }
        Ok(place)
    }
}

/// Finds a place for `len` bytes of `item`, apart from all other items, and notes it in the table's entries, as
/// [`Places::parse`] takes them. `None` without such an item, or without room in a region of `region_len` bytes.
pub(super) fn replace(entries: &mut [u8], item: Item, len: usize, region_len: u64) -> Option<Place> {
    let len = u32::try_from(len).ok()?;
    let is_item =
        |entry: &RawEntry| Uuid::from_bytes_le(entry.id) == item.id() && entry.flags.get() & USER == 0;
    let all = || entries.chunks_exact(ENTRY_BYTES).filter_map(|bytes| RawEntry::read_from_bytes(bytes).ok());
    let own = all().position(|entry| is_item(&entry))?;
    let others = all().enumerate().filter(|(index, _)| *index != own);
    let mut others: Vec<(u64, u64)> = others
        .map(|(_, entry)| (u64::from(entry.offset.get()), u64::from(entry.length.get())))
        .filter(|(_, len)| *len > 0)
        .collect();
    others.sort_unstable();
    let mut at = METADATA_TABLE_BYTES;
    for (start, other) in others {
        if at + u64::from(len) <= start {
            break;
        }
        at = at.max((start + other).next_multiple_of(8));
    }
    if at + u64::from(len) > region_len {
        return None;
    }
    let bytes = entries.chunks_exact_mut(ENTRY_BYTES).nth(own)?;
    let entry = RawEntry::mut_from_bytes(bytes).ok()?;
    let place = Place { offset: u32::try_from(at).ok()?, len };
    (entry.offset, entry.length) = (U32::new(place.offset), U32::new(place.len));
    Some(place)
}

/// What the items say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub block_size: u32,
    /// Blocks are never given back: what makes a disk "fixed".
    pub leave_allocated: bool,
    pub has_parent: bool,
    /// The size of the disk, in sectors of 512 bytes.
    pub sectors: SectorCount,
    /// Shared by a parent and all its children.
    pub disk_id: Uuid,
    pub logical_sector: BlockSize,
    pub physical_sector: BlockSize,
}

impl Metadata {
    /// Reads every item through `read`, which is given an item's place and fills its bytes. The region is at byte `at`.
    pub fn parse<E: From<VhdxError>>(
        places: &Places,
        at: u64,
        mut read: impl FnMut(Place, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut item = |item: Item| -> Result<([u8; 16], u64), E> {
            let place = places.get(item, at)?;
            let mut bytes = [0; 16];
            if let Some(wanted) = bytes.get_mut(..place.len as usize) {
                read(place, wanted)?;
            }
            Ok((bytes, at + u64::from(place.offset)))
        };
        let word = |bytes: &[u8; 16], index: usize| {
            let start = index * 4;
            u32::from_le_bytes([bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]])
        };
        let (parameters, place) = item(Item::FileParameters)?;
        let fail = |kind, item: Item, place| E::from(VhdxError::new(kind, item.structure(), place));
        let (block_size, flags) = (word(&parameters, 0), word(&parameters, 1));
        if !block_size.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_size) {
            return Err(fail(VhdxErrorKind::BlockSize(block_size), Item::FileParameters, place));
        }
        if flags & !(LEAVE_ALLOCATED | HAS_PARENT) != 0 {
            return Err(fail(VhdxErrorKind::Flags(flags), Item::FileParameters, place));
        }
        let mut sector = |which| {
            let (bytes, place) = item(which)?;
            let size = word(&bytes, 0);
            BlockSize::from_bytes(size).ok_or(fail(VhdxErrorKind::SectorSize(size), which, place))
        };
        let logical_sector = sector(Item::LogicalSector)?;
        let physical_sector = sector(Item::PhysicalSector)?;
        let (bytes, place) = item(Item::DiskSize)?;
        let size = u64::from(word(&bytes, 0)) | u64::from(word(&bytes, 1)) << 32;
        let whole = size.is_multiple_of(u64::from(logical_sector.bytes()));
        if size == 0 || !whole || size / SECTOR_BYTES > VHDX_SECTORS_MAX {
            return Err(fail(VhdxErrorKind::DiskSize(size), Item::DiskSize, place));
        }
        let (bytes, _) = item(Item::DiskId)?;
        Ok(Self {
            block_size,
            leave_allocated: flags & LEAVE_ALLOCATED != 0,
            has_parent: flags & HAS_PARENT != 0,
            sectors: SectorCount(size / SECTOR_BYTES),
            disk_id: Uuid::from_bytes_le(bytes),
            logical_sector,
            physical_sector,
        })
    }

    /// The first bytes of a metadata region: the table and, from 64 KiB on, the items.
    pub fn encode(&self, locator: Option<&[u8]>) -> Vec<u8> {
        let flags = if self.leave_allocated { LEAVE_ALLOCATED } else { 0 }
            | if self.has_parent { HAS_PARENT } else { 0 };
        let parameters = u64::from(self.block_size) | u64::from(flags) << 32;
        let mut items = vec![
            (Item::FileParameters, parameters.to_le_bytes().to_vec()),
            (Item::DiskSize, self.sectors.bytes().0.to_le_bytes().to_vec()),
            (Item::LogicalSector, self.logical_sector.bytes().to_le_bytes().to_vec()),
            (Item::PhysicalSector, self.physical_sector.bytes().to_le_bytes().to_vec()),
            (Item::DiskId, self.disk_id.to_bytes_le().to_vec()),
        ];
        items.extend(locator.map(|bytes| (Item::ParentLocator, bytes.to_vec())));
        let table = RawTable {
            signature: SIGNATURE,
            reserved: U16::ZERO,
            entries: U16::new(items.len() as u16),
            reserved2: [0; 20],
        };
        let mut region = vec![0; METADATA_TABLE_BYTES as usize];
        region[..ENTRY_BYTES].copy_from_slice(table.as_bytes());
        for (index, (item, bytes)) in items.iter().enumerate() {
            let entry = RawEntry {
                id: item.id().to_bytes_le(),
                offset: U32::new(region.len() as u32),
                length: U32::new(bytes.len() as u32),
                flags: U32::new(item.flags()),
                reserved: U32::ZERO,
            };
            region[(index + 1) * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(entry.as_bytes());
            region.extend_from_slice(bytes);
            region.resize(region.len().next_multiple_of(8), 0);
        }
        region
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 2 << 20;

    fn metadata() -> Metadata {
        Metadata {
            block_size: 32 << 20,
            leave_allocated: false,
            has_parent: true,
            sectors: SectorCount(1 << 20),
            disk_id: Uuid::from_u128(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10),
            logical_sector: BlockSize::B4096,
            physical_sector: BlockSize::B4096,
        }
    }

    fn parse(region: &[u8]) -> Result<(Places, Metadata), VhdxErrorKind> {
        let mut header = [0; ENTRY_BYTES];
        header.copy_from_slice(&region[..ENTRY_BYTES]);
        let count = entries(&header, AT).map_err(|error| error.kind)?;
        let table = &region[ENTRY_BYTES..(count + 1) * ENTRY_BYTES];
        let places = Places::parse(table, AT, 1 << 20).map_err(|error| error.kind)?;
        let read = |place: Place, bytes: &mut [u8]| -> Result<(), VhdxError> {
            bytes.copy_from_slice(&region[place.offset as usize..][..bytes.len()]);
            Ok(())
        };
        Metadata::parse(&places, AT, read).map(|parsed| (places, parsed)).map_err(|error| error.kind)
    }

    #[test]
    fn the_items_are_what_was_encoded() {
        let region = metadata().encode(Some(b"locator!"));
        let (places, parsed) = parse(&region).unwrap();
        assert_eq!(parsed, metadata());
        let place = places.get(Item::ParentLocator, AT).unwrap();
        assert_eq!(&region[place.offset as usize..][..place.len as usize], b"locator!");
        let region = metadata().encode(None);
        let missing = parse(&region).unwrap().0.get(Item::ParentLocator, AT).unwrap_err();
        assert_eq!(missing.kind, VhdxErrorKind::ItemMissing);
    }

    #[test]
    fn sizes_no_disk_has_are_refused() {
        let kind = |change: fn(&mut Metadata)| {
            let mut metadata = metadata();
            change(&mut metadata);
            parse(&metadata.encode(None)).unwrap_err()
        };
        assert_eq!(kind(|m| m.block_size = 3 << 20), VhdxErrorKind::BlockSize(3 << 20));
        assert_eq!(kind(|m| m.block_size = 512 << 10), VhdxErrorKind::BlockSize(512 << 10));
        assert_eq!(kind(|m| m.sectors = SectorCount(0)), VhdxErrorKind::DiskSize(0));
        assert_eq!(kind(|m| m.sectors = SectorCount(9)), VhdxErrorKind::DiskSize(9 * 512));
        let above = (VHDX_SECTORS_MAX + 8) * 512;
        assert_eq!(kind(|m| m.sectors = SectorCount(VHDX_SECTORS_MAX + 8)), VhdxErrorKind::DiskSize(above));
    }

    #[test]
    fn entries_that_are_unknown_double_or_outside_are_told_apart() {
        let with = |change: fn(&mut Vec<u8>)| {
            let mut region = metadata().encode(None);
            change(&mut region);
            parse(&region).map(drop)
        };
        assert!(matches!(with(|region| region[32] ^= 1), Err(VhdxErrorKind::UnknownItem(_))));
        assert_eq!(with(|region| region.copy_within(32..48, 64)), Err(VhdxErrorKind::ItemPlace));
        assert_eq!(with(|region| region[32 + 18] = 0x80), Err(VhdxErrorKind::ItemPlace));
        assert_eq!(with(|region| region[32 + 18] = 0), Err(VhdxErrorKind::ItemPlace));
        assert_eq!(with(|region| region[0] = 0), Err(VhdxErrorKind::MetadataSignature));
        assert_eq!(with(|region| region[11] = 8), Err(VhdxErrorKind::TooManyEntries(0x805)));
        assert_eq!(with(|region| region[32 + 20] = 4), Err(VhdxErrorKind::ItemLength(4)));
    }
}
