//! New images, as bytes to write.
//!
//! Knows what a good writer puts into a file. Does not know files or random numbers: identifiers are given.

use super::bat::{Bat, BlockState, Entry};
use super::error::Structure;
use super::header::{Header, VERSION, identifier};
use super::layout::{ENTRY_BYTES, Layout};
use super::metadata::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Metadata};
use super::parent_locator::{self, ParentPaths};
use super::region::Regions;
use super::{FileRange, HEADER_OFFSETS, MIB, REGION_TABLE_OFFSETS};
use crate::limits::{VHDX_LOCATOR_BYTES_MAX, VHDX_SECTORS_MAX};
pub use crate::plan::NewImage;
use crate::units::{BlockSize, SECTOR_BYTES, SectorCount};
use std::collections::BTreeMap;
use uuid::Uuid;

const CREATOR: &str = concat!("goldrush ", env!("CARGO_PKG_VERSION"));
/// What Windows chooses: large blocks for disks that start empty, small ones for children.
pub const BLOCK_BYTES_DEFAULT: u32 = 32 << 20;
pub const CHILD_BLOCK_BYTES_DEFAULT: u32 = 2 << 20;
const LOG: FileRange = FileRange { start: MIB, end: 2 * MIB };
const METADATA: FileRange = FileRange { start: 2 * MIB, end: 3 * MIB };
const TABLE_START: u64 = 3 * MIB;
/// Entries of the table written at once.
const PIECE_ENTRIES: u64 = 8192;

const _: () = assert!(VHDX_LOCATOR_BYTES_MAX as u64 + 65 * 1024 < MIB - 64 * 1024);

/// Bytes and where in the file they belong.
pub type Piece = (u64, Vec<u8>);

/// The parent of a new child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// The parent's, as it is now: once a guest writes to the parent, this child is nobody's.
    pub data_write_guid: Uuid,
    /// A child has its parent's.
    pub disk_id: Uuid,
    pub paths: ParentPaths,
}

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    Fixed,
    Dynamic,
    Differencing(ParentRef),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    pub kind: NewKind,
    pub sectors: SectorCount,
    pub block_size: u32,
    /// A child's must be its parent's.
    pub logical_sector: BlockSize,
    pub physical_sector: BlockSize,
    /// Three identifiers nobody else has.
    pub file_write_guid: Uuid,
    pub data_write_guid: Uuid,
    pub disk_id: Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    #[error("a VHDX holds 1 sector to 64 TiB in whole logical sectors, not {0} bytes: choose another size")]
    Size(u64),
    #[error(
        "block size {0} is not a power of two from 1 MiB to 256 MiB: choose 32 MiB, or 2 MiB for a child"
    )]
    BlockSize(u32),
    #[error("the paths of the parent take {0} bytes, more than 64 KiB: move the images closer together")]
    ParentPath(usize),
}

/// Everything of a new file but its block table.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) layout: Layout,
    /// Where blocks begin.
    pub(super) data_start: u64,
    pieces: Vec<Piece>,
}

impl Frame {
    pub(super) fn new(disk: &NewDisk) -> Result<Self, CreateError> {
        let bytes = disk.sectors.bytes().0;
        let whole = bytes.is_multiple_of(u64::from(disk.logical_sector.bytes()));
        if disk.sectors.0 == 0 || disk.sectors.0 > VHDX_SECTORS_MAX || !whole {
            return Err(CreateError::Size(bytes));
        }
        let block_size = disk.block_size;
        if !block_size.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_size) {
            return Err(CreateError::BlockSize(block_size));
        }
        let parent = match &disk.kind {
            NewKind::Differencing(parent) => Some(parent),
            NewKind::Fixed | NewKind::Dynamic => None,
        };
        let locator = parent.map(|parent| parent_locator::encode(parent.data_write_guid, &parent.paths));
        let locator = locator.transpose().map_err(CreateError::ParentPath)?;
        let metadata = Metadata {
            block_size,
            leave_allocated: disk.kind == NewKind::Fixed,
            has_parent: parent.is_some(),
            sectors: disk.sectors,
            disk_id: parent.map_or(disk.disk_id, |parent| parent.disk_id),
            logical_sector: disk.logical_sector,
            physical_sector: disk.physical_sector,
        };
        let layout = Layout::new(&metadata, TABLE_START);
        let data_start = TABLE_START + (layout.entries() * ENTRY_BYTES).next_multiple_of(MIB);
        let table = FileRange { start: TABLE_START, end: data_start };
        let regions = Regions::encode(table, METADATA);
        let mut pieces = vec![(0, identifier(CREATOR).to_vec())];
        for (offset, sequence) in HEADER_OFFSETS.into_iter().zip(1..) {
            pieces.push((offset, header(disk, sequence).encode().to_vec()));
        }
        pieces.extend(REGION_TABLE_OFFSETS.map(|offset| (offset, regions.clone())));
        pieces.push((METADATA.start, metadata.encode(locator.as_deref())));
        Ok(Self { layout, data_start, pieces })
    }

    /// All that is to be written for a file with this table.
    pub(super) fn finish(self, bat: &Bat) -> Vec<Piece> {
        let mut pieces = self.pieces;
        pieces.extend(table_pieces(&self.layout, bat));
        pieces
    }
}

fn header(disk: &NewDisk, sequence: u64) -> Header {
    Header {
        sequence,
        file_write_guid: disk.file_write_guid,
        data_write_guid: disk.data_write_guid,
        log_guid: Uuid::nil(),
        log_version: 0,
        version: VERSION,
        log_length: LOG.len() as u32,
        log_offset: LOG.start,
    }
}

/// The table as it is stored: the pieces in which a block has its place. The rest is zero, "not present".
fn table_pieces(layout: &Layout, bat: &Bat) -> impl Iterator<Item = Piece> {
    let mut pieces: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (structure, entry) in bat.placed() {
        let index = match structure {
            Structure::SectorBitmap(chunk) => layout.bitmap_entry(chunk),
            Structure::Block(block) => layout.block_entry(block),
            _ => continue,
        };
        let first = index / PIECE_ENTRIES * PIECE_ENTRIES;
        let entries = PIECE_ENTRIES.min(layout.entries() - first);
        let piece = pieces.entry(first).or_insert_with(|| vec![0; (entries * ENTRY_BYTES) as usize]);
        let at = ((index - first) * ENTRY_BYTES) as usize;
        piece[at..at + ENTRY_BYTES as usize].copy_from_slice(&entry.encode().to_le_bytes());
    }
    let layout = *layout;
    pieces.into_iter().map(move |(first, bytes)| (layout.entry_offset(first), bytes))
}

/// Places every block of a fixed disk, one behind the other. The end of the last.
pub(super) fn place_all(layout: &Layout, bat: &mut Bat, start: u64) -> u64 {
    for block in 0..layout.blocks {
        let offset = start + u64::from(block) * layout.block_bytes();
        // Below 64 TiB and its tables.
        bat.set(block, Entry { state: BlockState::Present, mib: (offset / MIB) as u32 });
    }
    start + u64::from(layout.blocks) * layout.block_bytes()
}

/// The bytes of a new image. Write to a temporary name, flush, rename.
///
/// # Errors
/// When the size, the block size or the paths are not what the format can hold.
pub fn create(disk: &NewDisk) -> Result<NewImage, CreateError> {
    let frame = Frame::new(disk)?;
    let mut bat = Bat::empty(&frame.layout);
    let mut len = frame.data_start;
    if disk.kind == NewKind::Fixed {
        len = place_all(&frame.layout, &mut bat, len);
    }
    Ok(NewImage { len, writes: frame.finish(&bat) })
}

const _: () = assert!(SECTOR_BYTES == 512 && TABLE_START == METADATA.end && METADATA.start == LOG.end);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_file::MemoryFile;
    use crate::plan::{OpenMode, Run};
    use crate::vhdx::{DiskType, VhdxImage, check, open_with};

    pub(super) fn disk(kind: NewKind, bytes: u64, block_size: u32, logical_sector: BlockSize) -> NewDisk {
        NewDisk {
            kind,
            sectors: SectorCount(bytes / 512),
            block_size,
            logical_sector,
            physical_sector: BlockSize::B4096,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            disk_id: Uuid::from_u128(3),
        }
    }

    fn child() -> NewKind {
        NewKind::Differencing(ParentRef {
            data_write_guid: Uuid::from_u128(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10),
            disk_id: Uuid::from_u128(4),
            paths: ParentPaths { relative: "gold.vhdx".to_owned(), ..ParentPaths::default() },
        })
    }

    fn open(image: &NewImage) -> VhdxImage {
        let file = MemoryFile::created(image);
        let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
        assert!(check::check(file.len(), read).unwrap().is_clean());
        open_with(file.len(), OpenMode::Writable, read).unwrap()
    }

    #[test]
    fn what_we_create_we_open_for_writing() {
        for sector in [BlockSize::B512, BlockSize::B4096] {
            for block_size in [1 << 20, 2 << 20, 32 << 20, 256 << 20] {
                for (kind, disk_type) in [
                    (NewKind::Fixed, DiskType::Fixed),
                    (NewKind::Dynamic, DiskType::Dynamic),
                    (child(), DiskType::Differencing),
                ] {
                    let bytes = (5 << 30) + 4096;
                    let mut image = open(&create(&disk(kind, bytes, block_size, sector)).unwrap());
                    assert_eq!((image.disk_type(), image.sectors().0), (disk_type, bytes / 512));
                    assert_eq!((image.block_size(), image.logical_sector()), (block_size, sector));
                    assert_eq!((image.creator(), image.header().0.sequence), (CREATOR, 2));
                    let last = image.run_at(bytes / 512 - 8, 100);
                    match disk_type {
                        DiskType::Fixed => assert!(matches!(last, Run::Present { sectors: 8, .. })),
                        _ => assert_eq!(last, Run::Absent { sectors: 8 }),
                    }
                }
            }
        }
    }

    #[test]
    fn a_child_names_its_parent() {
        let image = open(&create(&disk(child(), 1 << 30, 2 << 20, BlockSize::B512)).unwrap());
        let parent = image.parent().unwrap();
        assert!(parent.accepts(Uuid::from_u128(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10)));
        assert!(!parent.accepts(Uuid::from_u128(2)));
        assert_eq!(
            (parent.candidates[0].path.as_str(), image.disk_id()),
            ("./gold.vhdx", Uuid::from_u128(4))
        );
    }

    #[test]
    fn the_largest_disk_costs_what_is_in_it() {
        for sector in [BlockSize::B512, BlockSize::B4096] {
            let image = create(&disk(child(), 64 << 40, 1 << 20, sector)).unwrap();
            assert!(
                image.len > 512 << 20
                    && image.writes.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 1 << 20
            );
        }
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let refused = |bytes, block_size, sector| {
            create(&disk(NewKind::Dynamic, bytes, block_size, sector)).unwrap_err()
        };
        assert_eq!(refused(0, 1 << 20, BlockSize::B512), CreateError::Size(0));
        assert_eq!(refused(512, 1 << 20, BlockSize::B4096), CreateError::Size(512));
        assert_eq!(refused((64 << 40) + 512, 1 << 20, BlockSize::B512), CreateError::Size((64 << 40) + 512));
        for block_size in [0, 512 << 10, 3 << 20, 512 << 20] {
            assert_eq!(refused(1 << 30, block_size, BlockSize::B512), CreateError::BlockSize(block_size));
        }
        let mut long = disk(child(), 1 << 30, 2 << 20, BlockSize::B512);
        let NewKind::Differencing(parent) = &mut long.kind else { unreachable!() };
        parent.paths.relative = "x".repeat(40_000);
        assert!(matches!(create(&long), Err(CreateError::ParentPath(_))));
    }
}
