//! Compaction and resizing, crashed at every stage: the disk has its content, at the old size or the new one.

use crate::blocking::{Disk, Store, open, range};
use crate::sim_disk::Rng;
use crate::vhd_repair::{BLOCK, Bytes, SECTORS, apply, content, filled, is_clean, new, plan_of, table_of};
use goldrush::plan::Source;
use goldrush::units::{BlockIndex, SectorCount};
use goldrush::vhd::OpenMode;
use goldrush::vhd::create::{NewKind, ParentRef};
use goldrush::vhd::edit::Stage;
use goldrush::vhd::resize::ResizeRefused;
use uuid::Uuid;

/// One of the parts of a stage, so that a crash can leave some of them out.
fn parts(stage: &Stage) -> Vec<Stage> {
    let none = Stage::default;
    let mut parts = Vec::new();
    parts.extend(stage.copies.iter().map(|copy| Stage { copies: vec![*copy], ..none() }));
    parts.extend(stage.zeros.iter().map(|zeros| Stage { zeros: vec![zeros.clone()], ..none() }));
    for write in &stage.writes {
        // Sectors of one write are as independent as writes are.
        parts.extend(write.bytes.chunks(512).enumerate().map(|(index, bytes)| {
            let offset = write.offset + index as u64 * 512;
            let write = goldrush::vhd::edit::Write { offset, bytes: bytes.to_vec() };
            Stage { writes: vec![write], ..none() }
        }));
    }
    parts.extend(stage.set_len.map(|len| Stage { set_len: Some(len), ..none() }));
    parts
}

fn run(file: &mut Bytes, stage: &Stage) {
    for copy in &stage.copies {
        let from = copy.from as usize;
        let bytes = file.0[from..from + copy.len as usize].to_vec();
        file.write_at(copy.to, &bytes).unwrap();
    }
    for zeros in &stage.zeros {
        file.zero(zeros.start, zeros.end - zeros.start).unwrap();
    }
    for write in &stage.writes {
        file.write_at(write.offset, &write.bytes).unwrap();
    }
    if let Some(len) = stage.set_len {
        file.set_len(len).unwrap();
    }
}

/// Every state that a crash can leave: some parts of one stage, all of those before it.
pub fn each_crash(file: &Bytes, stages: &[Stage], mut look: impl FnMut(&str, Bytes)) -> Bytes {
    let mut rng = Rng(7);
    let mut file = file.clone();
    for (index, stage) in stages.iter().enumerate() {
        let parts = parts(stage);
        for round in 0..4 {
            let mut half = file.clone();
            for part in &parts {
                if rng.chance(50) {
                    run(&mut half, part);
                }
            }
            look(&format!("stage {index} of {}, round {round}", stages.len()), half);
        }
        run(&mut file, stage);
    }
    look("all stages", file.clone());
    file
}

/// The image after a lossless repair, if it needs one.
fn mended(what: &str, file: Bytes) -> Bytes {
    let plan = plan_of(&file);
    assert!(plan.hopeless.is_empty() && !plan.loses_data(), "{what}: {:?} {:?}", plan.steps, plan.hopeless);
    let mended = apply(&file, &plan, usize::MAX);
    assert!(is_clean(&mended), "{what}");
    mended
}

/// The size of a disk and its first sectors; what comes behind them must read as zeros.
fn beginning(what: &str, file: Bytes) -> (u64, Vec<u8>) {
    let mut disk = Disk::open(vec![file], OpenMode::ReadOnly).unwrap();
    let sectors = disk.sectors();
    let shown = sectors.min(SECTORS);
    let mut at = shown * 512;
    disk.each_extent(range(shown, sectors - shown), |disk, len, source| {
        if let Source::File { file, offset, .. } = source {
            let mut bytes = vec![0; len as usize];
            disk.files[file.0 as usize].read_at(offset.0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{what}: byte {at} of the disk is not zero");
        }
        at += u64::from(len);
    });
    (sectors, disk.read(range(0, shown)))
}

fn resize(file: &Bytes, sectors: u64) -> Result<Vec<Stage>, ResizeRefused> {
    let image = open(file, OpenMode::ReadOnly).unwrap();
    let (mut header, mut behind) = ([0; 1024], [0; 8]);
    if let Some((at, end)) = image.header_and_table_end() {
        file.read_at(at, &mut header).unwrap();
        file.read_at(end, &mut behind).unwrap();
    }
    image.resize(SectorCount(sectors), &header, behind)
}

fn check_resize(name: &str, file: &Bytes, sectors: u64) -> Bytes {
    let (old, mut expected) = beginning(name, file.clone());
    expected.truncate(sectors.min(old) as usize * 512);
    let stages = resize(file, sectors).unwrap();
    let alike = |content: &[u8]| content.iter().zip(&expected).all(|(a, b)| a == b);
    let last = each_crash(file, &stages, |what, half| {
        let what = format!("{name} to {sectors}, {what}");
        let (now, content) = beginning(&what, mended(&what, half));
        assert!(now == old || now == sectors, "{what}: {now} sectors");
        assert!(alike(&content), "{what}");
    });
    let (now, content) = beginning(name, last.clone());
    assert!(is_clean(&last) && now == sectors && alike(&content), "{name} to {sectors}");
    assert!(open(&last, OpenMode::Writable).is_ok());
    last
}

fn dynamic() -> Bytes {
    filled(vec![new(NewKind::Dynamic { block_size: BLOCK as u32 }, 1)], 1)
}

/// As other writers lay it out: the first block lies where the table would grow.
fn packed() -> Bytes {
    let ours = dynamic();
    let table = table_of(&ours.0);
    let mut header = ours.0[512..1536].to_vec();
    header[20..24].copy_from_slice(&1536_u32.to_be_bytes());
    header[36..40].fill(0);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[36..40].copy_from_slice(&(!sum).to_be_bytes());
    let mut footer = ours.0[..512].to_vec();
    footer[28..32].copy_from_slice(b"xyz ");
    footer[64..68].fill(0);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    let mut file = [footer.clone(), header, vec![0xFF; 512]].concat();
    for block in 0..10_usize {
        let at = table + block * 4;
        let entry = crate::vhd_repair::be32(&ours.0, at) as usize;
        if entry != u32::MAX as usize {
            let place = (file.len() / 512) as u32;
            file[1536 + block * 4..1540 + block * 4].copy_from_slice(&place.to_be_bytes());
            file.extend_from_slice(&ours.0[entry * 512..entry * 512 + 512 + BLOCK as usize]);
        }
    }
    file.extend(footer);
    Bytes(file)
}

#[test]
fn disks_grow_and_shrink_and_a_crash_leaves_one_of_both_sizes() {
    let fixed = filled(vec![new(NewKind::Fixed, 3)], 30);
    for sectors in [SECTORS + 1, SECTORS + 2000] {
        let larger = check_resize("fixed", &fixed, sectors);
        check_resize("fixed back", &larger, SECTORS);
    }
    // A dynamic disk grows inside its table's padding; behind it, in files of others, a block must make room.
    for sectors in [SECTORS + 1, SECTORS + 200_000] {
        let larger = check_resize("dynamic", &dynamic(), sectors);
        check_resize("dynamic back", &larger, SECTORS);
    }
    let packed = packed();
    assert!(is_clean(&packed));
    for blocks in [128, 3000] {
        check_resize("packed", &packed, blocks * (BLOCK / 512));
    }
    let empty = new(NewKind::Dynamic { block_size: BLOCK as u32 }, 1);
    check_resize("empty", &empty, 5000 * (BLOCK / 512));
}

#[test]
fn what_cannot_be_resized_says_why() {
    let parent = ParentRef {
        unique_id: Uuid::from_u128(1),
        timestamp: 7,
        relative: "parent.vhd".to_owned(),
        absolute: None,
    };
    let child = new(NewKind::Differencing { block_size: BLOCK as u32, parent }, 2);
    assert_eq!(resize(&child, SECTORS + 1), Err(ResizeRefused::Child));
    let fixed = new(NewKind::Fixed, 3);
    assert_eq!(resize(&fixed, 0xFF00_0001), Err(ResizeRefused::Size(0xFF00_0001)));
    let mut mapped = packed();
    mapped.0.splice(2048..2048, [b"tdbatmap".to_vec(), vec![0; 504]].concat());
    for block in 0..10_usize {
        let at = 1536 + block * 4;
        let entry = crate::vhd_repair::be32(&mapped.0, at);
        if entry != u32::MAX {
            mapped.0[at..at + 4].copy_from_slice(&(entry + 1).to_be_bytes());
        }
    }
    assert_eq!(resize(&mapped, 5000 * (BLOCK / 512)), Err(ResizeRefused::NoRoomForTable));
}

#[test]
fn compaction_keeps_the_content_through_every_crash_and_ends_with_a_short_file() {
    for (name, file) in [("ours", dynamic()), ("packed", packed())] {
        // Blocks become zero, as a guest's discards make them.
        let mut disk = Disk::open(vec![file], OpenMode::Writable).unwrap();
        for block in [0, 3, 7] {
            disk.write(block * (BLOCK / 512), &vec![0; BLOCK as usize]).unwrap();
        }
        let file = disk.close().swap_remove(0);
        let before = content(vec![file.clone()]).unwrap();
        let image = open(&file, OpenMode::ReadOnly).unwrap();
        let plan = image.compact(file.len(), &[BlockIndex(0), BlockIndex(3), BlockIndex(7), BlockIndex(5)]);
        assert_eq!(plan.freed_blocks, 3, "{name}");
        let last = each_crash(&file, &plan.stages, |what, half| {
            let what = format!("{name}, {what}");
            assert!(is_clean(&half), "{what}");
            assert!(content(vec![half]).unwrap() == before, "{what}");
        });
        let saved = file.len() - last.len();
        assert!(last.len() == plan.len && saved >= 3 * BLOCK && plan.moved_blocks > 0, "{name}: {saved}");
        let again = open(&last, OpenMode::Writable).unwrap().compact(last.len(), &[]);
        assert!(again.stages.is_empty(), "{name}: {again:?}");
    }
}
