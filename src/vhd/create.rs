//! New images, as bytes to write.
//!
//! Knows what a good writer puts into a file. Does not know files, clocks or random numbers: ids and time stamps are
//! given.

use super::dynamic_header::{DynamicHeader, LocatorEntry};
use super::footer::{FEATURE_RESERVED, Footer, NO_OFFSET};
use super::geometry::Geometry;
use super::parent_locator::{self, LOCATORS, W2KU, W2RU};
use super::{DiskType, FOOTER_BYTES, HEADER_BYTES};
use crate::limits::{VHD_FILE_BYTES_MAX, VHD_SECTORS_MAX};
pub use crate::plan::NewImage;
use crate::units::{SECTOR_BYTES, SectorCount};
use uuid::Uuid;

/// Our creator code: nobody else's, so that no reader applies another program's habits to our files.
pub const CREATOR: [u8; 4] = *b"grsh";
const CREATOR_VERSION: u32 = 0x0001_0000;
/// The only other host code is the Macintosh's.
const CREATOR_HOST: [u8; 4] = *b"Wi2k";

/// The block size of nearly every VHD.
pub const BLOCK_BYTES_DEFAULT: u32 = 2 << 20;
pub const BLOCK_BYTES_MIN: u32 = 512 << 10;
pub const BLOCK_BYTES_MAX: u32 = 32 << 20;

/// Seconds between 1970-01-01 and 2000-01-01, both 00:00:00 UTC: the epoch of VHD time stamps.
pub const EPOCH_UNIX_SECONDS: u64 = 946_684_800;

/// A VHD time stamp from seconds since 1970, saturating at both ends.
pub fn timestamp_from_unix(seconds: u64) -> u32 {
    u32::try_from(seconds.saturating_sub(EPOCH_UNIX_SECONDS)).unwrap_or(u32::MAX)
}

/// The parent of a new child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    pub unique_id: Uuid,
    /// The parent file's modification time, as a VHD time stamp.
    pub timestamp: u32,
    /// From the child's folder to the parent, `/` or `\` separated, without a leading `./`.
    pub relative: String,
    /// The parent's absolute path, where one is wanted in the file.
    pub absolute: Option<String>,
}

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    Fixed,
    Dynamic { block_size: u32 },
    Differencing { block_size: u32, parent: ParentRef },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    pub kind: NewKind,
    /// A child's must be its parent's.
    pub sectors: SectorCount,
    pub unique_id: Uuid,
    /// Creation time, as a VHD time stamp.
    pub timestamp: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    #[error("a VHD holds 1 sector to 2040 GiB, not {0} sectors: choose another size")]
    Size(u64),
    #[error("block size {0} is not a power of two from 512 KiB to 32 MiB: choose 2 MiB")]
    BlockSize(u32),
    #[error(
        "the path of the parent has {0} bytes as UTF-16, more than 4096: move the images closer together"
    )]
    ParentPath(usize),
}

/// The bytes of a new image. Its first footer copy is complete, so the order of the writes matters only in that a
/// file cut short is not a VHD yet: write to a temporary name, flush, rename.
///
/// # Errors
/// When the size or block size is not one the format can hold.
pub fn create(disk: &NewDisk) -> Result<NewImage, CreateError> {
    if disk.sectors.0 == 0 || disk.sectors.0 > VHD_SECTORS_MAX {
        return Err(CreateError::Size(disk.sectors.0));
    }
    match &disk.kind {
        NewKind::Fixed => Ok(create_fixed(disk)),
        NewKind::Dynamic { block_size } => create_sparse(disk, *block_size, None),
        NewKind::Differencing { block_size, parent } => create_sparse(disk, *block_size, Some(parent)),
    }
}

fn footer(disk: &NewDisk, disk_type: DiskType, data_offset: u64) -> Footer {
    Footer {
        features: FEATURE_RESERVED,
        data_offset,
        timestamp: disk.timestamp,
        creator_app: CREATOR,
        creator_version: CREATOR_VERSION,
        creator_host: CREATOR_HOST,
        original_size: disk.sectors.bytes().0,
        sectors: disk.sectors,
        geometry: Geometry::of(disk.sectors.0),
        disk_type,
        unique_id: disk.unique_id,
        saved_state: false,
    }
}

fn create_fixed(disk: &NewDisk) -> NewImage {
    let at = disk.sectors.bytes().0;
    let bytes = footer(disk, DiskType::Fixed, NO_OFFSET).encode().to_vec();
    NewImage { len: at + FOOTER_BYTES as u64, writes: vec![(at, bytes)] }
}

/// Footer copy, header, locators, then the table in 4 KiB pages of its own, then the footer.
fn create_sparse(
    disk: &NewDisk,
    block_size: u32,
    parent: Option<&ParentRef>,
) -> Result<NewImage, CreateError> {
    if !block_size.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_size) {
        return Err(CreateError::BlockSize(block_size));
    }
    let mut writes = Vec::new();
    let header_at = FOOTER_BYTES as u64;
    let mut end = header_at + HEADER_BYTES as u64;
    let mut locators = [LocatorEntry::default(); LOCATORS];
    for ((code, path), slot) in parent.into_iter().flat_map(locator_paths).zip(&mut locators) {
        let mut bytes = parent_locator::encode(&path);
        if bytes.len() > parent_locator::LOCATOR_BYTES_MAX {
            return Err(CreateError::ParentPath(bytes.len()));
        }
        let space = bytes.len().next_multiple_of(SECTOR_BYTES as usize);
        *slot =
            LocatorEntry { code, data_space: space as u32, data_len: bytes.len() as u32, data_offset: end };
        bytes.resize(space, 0);
        writes.push((end, bytes));
        end += space as u64;
    }
    let blocks = disk.sectors.bytes().0.div_ceil(u64::from(block_size));
    let table_offset = end.next_multiple_of(4096);
    let table_bytes = (blocks * 4).next_multiple_of(4096);
    let header = DynamicHeader {
        table_offset,
        // At most 2040 GiB / 512 KiB, far below 2^32.
        max_table_entries: blocks as u32,
        block_size,
        parent_unique_id: parent.map_or(Uuid::nil(), |parent| parent.unique_id),
        parent_timestamp: parent.map_or(0, |parent| parent.timestamp),
        parent_name: parent.map(|parent| base_name(&parent.relative).to_owned()),
        locators,
    };
    let disk_type = if parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
    let footer = footer(disk, disk_type, header_at).encode().to_vec();
    let footer_at = table_offset + table_bytes;
    writes.insert(0, (0, footer.clone()));
    writes.insert(1, (header_at, header.encode().to_vec()));
    writes.push((table_offset, vec![0xFF; table_bytes as usize]));
    writes.push((footer_at, footer));
    Ok(NewImage { len: footer_at + FOOTER_BYTES as u64, writes })
}

/// Relative with the customary `.\`, then absolute.
fn locator_paths(parent: &ParentRef) -> impl Iterator<Item = ([u8; 4], String)> {
    let relative = relative_locator(&parent.relative);
    let absolute = parent.absolute.clone().map(|path| (W2KU, path));
    core::iter::once((W2RU, relative)).chain(absolute)
}

/// As a `W2ru` locator says it: with the customary `.\`.
pub(super) fn relative_locator(relative: &str) -> String {
    if relative.starts_with("..") { relative.to_owned() } else { format!(".\\{relative}") }
}

pub(super) fn base_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

const _: () = assert!(VHD_SECTORS_MAX * SECTOR_BYTES < VHD_FILE_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhd::parent_locator::ParentOrigin;
    use crate::vhd::{OpenMode, VhdImage, open_with};

    fn disk(kind: NewKind, sectors: u64) -> NewDisk {
        NewDisk { kind, sectors: SectorCount(sectors), unique_id: Uuid::from_u128(42), timestamp: 7 }
    }

    fn open(image: &NewImage) -> VhdImage {
        open_with(image.len, OpenMode::Writable, |offset, bytes| -> Result<(), ()> {
            bytes.fill(0);
            for (at, data) in &image.writes {
                for (index, byte) in bytes.iter_mut().enumerate() {
                    let place = offset + index as u64;
                    if place >= *at && place < at + data.len() as u64 {
                        *byte = data[(place - at) as usize];
                    }
                }
            }
            Ok(())
        })
        .unwrap()
    }

    fn child(relative: &str) -> NewKind {
        NewKind::Differencing {
            block_size: BLOCK_BYTES_DEFAULT,
            parent: ParentRef {
                unique_id: Uuid::from_u128(41),
                timestamp: 6,
                relative: relative.to_owned(),
                absolute: Some("/images/gold.vhd".to_owned()),
            },
        }
    }

    #[test]
    fn what_we_create_we_open_for_writing() {
        for kind in [
            NewKind::Fixed,
            NewKind::Dynamic { block_size: 512 << 10 },
            NewKind::Dynamic { block_size: 32 << 20 },
            child("gold.vhd"),
        ] {
            let image = open(&create(&disk(kind, 100_001)).unwrap());
            assert_eq!((image.sectors(), image.unique_id()), (SectorCount(100_001), Uuid::from_u128(42)));
            assert!(image.warnings().is_empty() && image.geometry().sectors() <= 100_001);
        }
    }

    #[test]
    fn a_child_names_its_parent_three_ways() {
        let image = open(&create(&disk(child("gold.vhd"), 100_000)).unwrap());
        let parent = image.parent().unwrap();
        assert_eq!((parent.unique_id, parent.timestamp), (Uuid::from_u128(41), 6));
        let found: Vec<_> =
            parent.candidates.iter().map(|candidate| (candidate.origin, candidate.path.as_str())).collect();
        assert_eq!(
            found,
            [
                (ParentOrigin::Relative, "./gold.vhd"),
                (ParentOrigin::Absolute, "/images/gold.vhd"),
                (ParentOrigin::Name, "gold.vhd"),
            ]
        );
    }

    #[test]
    fn a_parent_in_another_folder_keeps_its_dots() {
        let image = open(&create(&disk(child("../parents/gold.vhd"), 100_000)).unwrap());
        assert_eq!(image.parent().unwrap().candidates[0].path, "../parents/gold.vhd");
    }

    #[test]
    fn sizes_and_blocks_out_of_bounds_are_refused() {
        assert_eq!(create(&disk(NewKind::Fixed, 0)), Err(CreateError::Size(0)));
        let kind = NewKind::Dynamic { block_size: BLOCK_BYTES_DEFAULT };
        assert!(create(&disk(kind.clone(), VHD_SECTORS_MAX)).is_ok());
        assert!(create(&disk(kind, VHD_SECTORS_MAX + 1)).is_err());
        for block_size in [0, 512, 3 << 20, 64 << 20] {
            let refused = create(&disk(NewKind::Dynamic { block_size }, 8));
            assert_eq!(refused, Err(CreateError::BlockSize(block_size)));
        }
    }

    #[test]
    fn the_table_lies_in_pages_of_its_own() {
        let image = create(&disk(child("gold.vhd"), 3 << 30)).unwrap();
        let table = image.writes.iter().find(|(_, bytes)| bytes.iter().all(|byte| *byte == 0xFF)).unwrap();
        assert!(table.0.is_multiple_of(4096) && table.1.len().is_multiple_of(4096));
    }

    #[test]
    fn time_stamps_saturate() {
        assert_eq!(timestamp_from_unix(0), 0);
        assert_eq!(timestamp_from_unix(EPOCH_UNIX_SECONDS + 5), 5);
        assert_eq!(timestamp_from_unix(u64::MAX), u32::MAX);
    }
}
