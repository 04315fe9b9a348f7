//! Golden images and children on simulated disks, and a reader of its own to judge them by.
//!
//! Knows enough of the VHD layout to place blocks and find sectors without the code under test. Does not know shards.

use goldrush::units::SectorCount;
use goldrush::vhd::create::{NewDisk, NewKind, ParentRef, create};
use goldrush::vhd::{OpenMode, VhdImage, open_with};
use uuid::Uuid;

use crate::disk::Pages;
use crate::model::{self, SECTOR, ZERO};
use crate::random::Rng;

const UNALLOCATED: u32 = u32::MAX;

fn u32_at(file: &Pages, at: u64) -> u32 {
    let mut bytes = [0; 4];
    file.read(at, &mut bytes);
    u32::from_be_bytes(bytes)
}

fn u64_at(file: &Pages, at: u64) -> u64 {
    u64::from(u32_at(file, at)) << 32 | u64::from(u32_at(file, at + 4))
}

/// Where a sparse image keeps what; `None` for a fixed one.
struct Map {
    table: u64,
    block_sectors: u64,
    bitmap_bytes: u64,
}

fn map(file: &Pages) -> Option<Map> {
    let footer = file.len() - 512;
    if u32_at(file, footer + 60) == 2 {
        return None;
    }
    let header = u64_at(file, footer + 16);
    let block_sectors = u64::from(u32_at(file, header + 32)) / SECTOR as u64;
    Some(Map {
        table: u64_at(file, header + 16),
        block_sectors,
        bitmap_bytes: block_sectors.div_ceil(8).next_multiple_of(512),
    })
}

/// Where this file has the sector, if it does.
fn find(file: &Pages, sector: u64) -> Option<u64> {
    let Some(map) = map(file) else { return Some(sector * SECTOR as u64) };
    let (block, index) = (sector / map.block_sectors, sector % map.block_sectors);
    let entry = u32_at(file, map.table + block * 4);
    if entry == UNALLOCATED {
        return None;
    }
    let at = u64::from(entry) * SECTOR as u64;
    let mut bits = [0];
    file.read(at + index / 8, &mut bits);
    let present = bits[0] & (0x80 >> (index % 8)) != 0;
    present.then_some(at + map.bitmap_bytes + index * SECTOR as u64)
}

/// The tag of every sector of a chain (leaf first); `None` where the bytes are those of no tag.
pub(crate) fn tags(chain: &[&Pages], sectors: u64) -> Vec<Option<u64>> {
    let mut bytes = [0; SECTOR];
    (0..sectors)
        .map(|sector| match chain.iter().find_map(|file| find(file, sector).map(|at| (file, at))) {
            None => Some(ZERO),
            Some((file, at)) => {
                file.read(at, &mut bytes);
                model::tag_of(&bytes)
            }
        })
        .collect()
}

fn new_file(kind: NewKind, sectors: u64, id: u128) -> Pages {
    let disk = NewDisk { kind, sectors: SectorCount(sectors), unique_id: Uuid::from_u128(id), timestamp: 1 };
    let image = create(&disk).expect("the simulator asks for sizes that exist");
    let mut file = Pages::default();
    for (offset, bytes) in &image.writes {
        file.write(*offset, bytes);
    }
    file.set_len(image.len);
    file
}

/// Appends a block to a sparse image: the sectors that have a tag.
fn put_block(file: &mut Pages, block: u64, tag: impl Fn(u64) -> Option<u64>) {
    let Some(map) = map(file) else { return };
    let end = file.len() - 512;
    let mut footer = [0; 512];
    file.read(end, &mut footer);
    let mut bitmap = vec![0u8; map.bitmap_bytes as usize];
    let mut data = vec![0u8; (map.block_sectors * SECTOR as u64) as usize];
    for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        if let Some(tag) = tag(block * map.block_sectors + index as u64) {
            model::fill(tag, sector);
            bitmap[index / 8] |= 0x80 >> (index % 8);
        }
    }
    file.write(end, &bitmap);
    file.write(end + map.bitmap_bytes, &data);
    file.write(end + map.bitmap_bytes + data.len() as u64, &footer);
    file.write(map.table + block * 4, &((end / SECTOR as u64) as u32).to_be_bytes());
}

/// A golden image, and what a child of it reads as: one or two files, the nearest parent first.
pub(crate) struct Golden {
    pub(crate) files: Vec<Pages>,
    pub(crate) ids: Vec<u128>,
    pub(crate) tags: Vec<u64>,
}

const GOLDEN: u64 = 0x601D_0000_0000;

pub(crate) fn golden(rng: &mut Rng, sectors: u64) -> Golden {
    let mut tags = vec![ZERO; sectors as usize];
    // Runs of data and of zeros, as a file system leaves them.
    let mut at = 0;
    while at < sectors {
        let len = rng.between(1, 1500).min(sectors - at);
        if rng.chance(600) {
            for sector in at..at + len {
                tags[sector as usize] = GOLDEN + sector;
            }
        }
        at += len;
    }
    let mut base = if rng.chance(500) {
        let mut file = new_file(NewKind::Fixed, sectors, 1);
        let mut bytes = [0; SECTOR];
        for (sector, tag) in tags.iter().enumerate() {
            model::fill(*tag, &mut bytes);
            file.write((sector * SECTOR) as u64, &bytes);
        }
        file
    } else {
        new_file(NewKind::Dynamic { block_size: 512 << 10 }, sectors, 1)
    };
    if let Some(map) = map(&base) {
        for block in 0..sectors.div_ceil(map.block_sectors) {
            let range = block * map.block_sectors..((block + 1) * map.block_sectors).min(sectors);
            if tags[range.start as usize..range.end as usize].iter().any(|tag| *tag != ZERO) {
                // A dynamic disk: a sector that is not there is zero as well.
                put_block(&mut base, block, |sector| {
                    let tag = tags.get(sector as usize).copied();
                    tag.filter(|tag| *tag != ZERO)
                });
            }
        }
    }
    let mut golden = Golden { files: vec![base], ids: vec![1], tags };
    if rng.chance(300) {
        add_middle(&mut golden, rng, sectors);
    }
    golden
}

/// A second read-only layer between the golden image and the children.
fn add_middle(golden: &mut Golden, rng: &mut Rng, sectors: u64) {
    let mut middle = child(golden, 2, sectors, 1 << 20);
    let Some(map) = map(&middle) else { return };
    for block in 0..sectors.div_ceil(map.block_sectors) {
        if rng.chance(500) {
            let end = ((block + 1) * map.block_sectors).min(sectors);
            let chosen: Vec<bool> = (0..map.block_sectors).map(|n| n / 16 % 3 == block % 3).collect();
            for sector in block * map.block_sectors..end {
                if chosen[(sector % map.block_sectors) as usize] {
                    golden.tags[sector as usize] = GOLDEN * 2 + sector;
                }
            }
            let tags = &golden.tags;
            put_block(&mut middle, block, |sector| {
                let chosen = chosen[(sector % map.block_sectors) as usize] && sector < sectors;
                chosen.then(|| tags[sector as usize])
            });
        }
    }
    golden.files.insert(0, middle);
    golden.ids.insert(0, 2);
}

/// An empty child of the nearest golden file.
pub(crate) fn child(golden: &Golden, id: u128, sectors: u64, block_size: u32) -> Pages {
    let parent = ParentRef {
        unique_id: Uuid::from_u128(golden.ids[0]),
        timestamp: 1,
        relative: "golden.vhd".to_owned(),
        absolute: None,
    };
    new_file(NewKind::Differencing { block_size, parent }, sectors, id)
}

pub(crate) fn open(file: &Pages, mode: OpenMode) -> Result<VhdImage, String> {
    let read = |offset: u64, bytes: &mut [u8]| {
        file.read(offset, bytes);
        Ok::<(), std::convert::Infallible>(())
    };
    open_with(file.len(), mode, read).map_err(|error| error.to_string())
}

/// What `vhd::check` objects to.
pub(crate) fn findings(file: &Pages) -> Vec<String> {
    let read = |offset: u64, bytes: &mut [u8]| {
        file.read(offset, bytes);
        Ok::<(), std::convert::Infallible>(())
    };
    let report = match goldrush::vhd::check::check(file.len(), read) {
        Ok(report) => report,
        Err(never) => match never {},
    };
    if report.is_clean() {
        return Vec::new();
    }
    report.findings.iter().map(|finding| format!("{finding:?}")).collect()
}

#[test]
fn a_chain_reads_as_it_was_built() {
    for seed in 0..20 {
        let golden = golden(&mut Rng::new(seed), 5000);
        let child = child(&golden, 9, 5000, 512 << 10);
        let chain: Vec<&Pages> = std::iter::once(&child).chain(&golden.files).collect();
        let expected: Vec<_> = golden.tags.iter().copied().map(Some).collect();
        assert!(tags(&chain, 5000) == expected, "seed {seed}");
        for file in chain {
            assert_eq!(findings(file), Vec::<String>::new(), "seed {seed}");
        }
    }
}
