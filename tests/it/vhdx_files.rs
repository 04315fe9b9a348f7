//! New VHDX files for tests, and chains of them.

use crate::blocking::{Store, is_vhdx};
use crate::crash_world::fill_parent;
use crate::sim_disk::{Rng, SimFile};
use goldrush::plan::OpenMode;
use goldrush::units::{BlockSize, SectorCount};
use goldrush::vhdx::header::{self, Header};
use goldrush::vhdx::layout::Layout;
use goldrush::vhdx::metadata::Metadata;
use goldrush::vhdx::parent_locator::{self, ParentPaths};
use goldrush::vhdx::region::Regions;
use goldrush::vhdx::{FileRange, HEADER_OFFSETS, REGION_TABLE_OFFSETS, open_with};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// A VHDX that is to be made.
#[derive(Clone, Debug)]
pub struct New {
    pub sectors: u64,
    pub block_size: u32,
    pub logical_sector: BlockSize,
    /// What the parent's data is known by, and its file name.
    pub parent: Option<(Uuid, String)>,
    pub id: u128,
}

/// Makes an empty image: headers, log, metadata, table, in this order.
pub fn write_new_vhdx<S: Store>(file: &mut S, new: &New) {
    let metadata = Metadata {
        block_size: new.block_size,
        leave_allocated: false,
        has_parent: new.parent.is_some(),
        sectors: SectorCount(new.sectors),
        disk_id: Uuid::from_u128(77),
        logical_sector: new.logical_sector,
        physical_sector: BlockSize::B4096,
    };
    let table = (Layout::new(&metadata, 0).entries() * 8).next_multiple_of(MIB);
    let regions =
        [FileRange { start: 3 * MIB, end: 3 * MIB + table }, FileRange { start: 2 * MIB, end: 3 * MIB }];
    let locator = new.parent.as_ref().map(|(linkage, name)| {
        let paths = ParentPaths { relative: name.clone(), volume: None, absolute: None };
        parent_locator::encode(*linkage, &paths).unwrap()
    });
    let mut put = |offset, bytes: &[u8]| {
        // Stores of tests take whole sectors.
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        file.write_at(offset, &bytes).unwrap();
    };
    put(0, &header::identifier("goldrush tests"));
    for (index, place) in HEADER_OFFSETS.into_iter().enumerate() {
        let header = Header {
            sequence: index as u64,
            file_write_guid: Uuid::from_u128(new.id),
            data_write_guid: Uuid::from_u128(new.id),
            log_guid: Uuid::nil(),
            log_version: 0,
            version: 1,
            log_length: MIB as u32,
            log_offset: MIB,
        };
        put(place, &header.encode());
    }
    for place in REGION_TABLE_OFFSETS {
        put(place, &Regions::encode(regions[0], regions[1]));
    }
    put(regions[1].start, &metadata.encode(locator.as_deref()));
    file.set_len(regions[0].end).unwrap();
}

/// What a child of this image must name.
pub fn data_write_guid<S: Store>(file: &S) -> Uuid {
    assert!(is_vhdx(file));
    let image = open_with(file.len(), OpenMode::ReadOnly, |offset, bytes| file.read_at(offset, bytes));
    image.unwrap().data_write_guid()
}

/// Parents (nearest first) with some content, and an empty leaf in front; the sectors of a logical sector.
///
/// Mostly small blocks that share a page of bitmaps; some that have pages of their own, and disks of several chunks.
pub fn new_vhdx_chain(rng: &mut Rng) -> (Vec<SimFile>, u64) {
    let logical_sector = if rng.chance(40) { BlockSize::B4096 } else { BlockSize::B512 };
    let unit = logical_sector.sectors();
    let largest = if rng.chance(8) { 9 } else { 1 + rng.below(6) };
    let sectors = match largest {
        9 => (2 << 23) - 8 + rng.below(3) * 8,
        _ => unit + rng.below(3) * (2048 << rng.below(largest)) + rng.below(3000) / unit * unit,
    };
    let mut files: Vec<SimFile> = Vec::new();
    let depth = rng.below(3);
    for level in 0..=depth {
        let parent = files.first().map(|file| (data_write_guid(file), "parent.vhdx".to_owned()));
        let shift = if largest == 9 { 8 } else { rng.below(largest) };
        let new =
            New { sectors, block_size: 1 << (20 + shift), logical_sector, parent, id: u128::from(level) + 1 };
        let mut file = SimFile::default();
        write_new_vhdx(&mut file, &new);
        files.insert(0, file);
        if level < depth {
            files = fill_parent(files, rng, level, unit);
        }
    }
    (files, unit)
}
