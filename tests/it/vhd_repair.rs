//! Repair against a corpus of mutations: good images, damaged by a seeded hand.
//!
//! For every damage: the check finds it; the repair leaves an image whose check is clean and whose undamaged sectors
//! read as they did; and a repair that is cut off anywhere leaves one that can still be repaired to the same.

use crate::blocking::{Disk, Store, range, write_new};
use crate::sim_disk::Rng;
use goldrush::units::SectorCount;
use goldrush::vhd::OpenMode;
use goldrush::vhd::check::check;
use goldrush::vhd::create::{NewDisk, NewKind, ParentRef, create};
use goldrush::vhd::repair::{RepairPlan, plan};
use std::io;
use uuid::Uuid;

pub const BLOCK: u64 = 512 << 10;
/// Nine blocks and a part of a tenth.
pub const SECTORS: u64 = 9 * (BLOCK / 512) + 100;
/// Blocks with data in every image here.
const WRITTEN: [u64; 6] = [7, 0, 3, 9, 4, 1];

/// A file in memory.
#[derive(Clone)]
pub struct Bytes(pub Vec<u8>);

impl Store for Bytes {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let from = self.0.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset as usize + bytes.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = self.0.len().min((offset + len) as usize);
        self.0[offset as usize..end].fill(0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.resize(len as usize, 0);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

pub fn new(kind: NewKind, id: u128) -> Bytes {
    let mut file = Bytes(Vec::new());
    let disk = NewDisk { kind, sectors: SectorCount(SECTORS), unique_id: Uuid::from_u128(id), timestamp: 7 };
    write_new(&mut file, &create(&disk).unwrap());
    file
}

/// Writes here and there into the blocks of `WRITTEN`.
pub fn filled(files: Vec<Bytes>, salt: u8) -> Bytes {
    let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
    for (index, block) in WRITTEN.into_iter().enumerate() {
        let start = block * (BLOCK / 512) + 5 + index as u64 * 3;
        disk.write(start, &vec![salt + index as u8; 20 * 512]).unwrap();
    }
    disk.close().swap_remove(0)
}

/// A good image, with its parents.
struct Good {
    name: &'static str,
    files: Vec<Bytes>,
    content: Vec<u8>,
    sparse: bool,
}

pub fn content(files: Vec<Bytes>) -> Result<Vec<u8>, String> {
    let mut disk = Disk::open(files, OpenMode::ReadOnly)?;
    let sectors = disk.sectors();
    Ok(disk.read(range(0, sectors)))
}

fn good_images() -> Vec<Good> {
    let dynamic = filled(vec![new(NewKind::Dynamic { block_size: BLOCK as u32 }, 1)], 1);
    let parent = ParentRef {
        unique_id: Uuid::from_u128(1),
        timestamp: 7,
        relative: "parent.vhd".to_owned(),
        absolute: Some("/images/parent.vhd".to_owned()),
    };
    let child = new(NewKind::Differencing { block_size: BLOCK as u32, parent }, 2);
    let child = filled(vec![child, dynamic.clone()], 100);
    let fixed = filled(vec![new(NewKind::Fixed, 3)], 30);
    let good = |name, files: Vec<Bytes>, sparse| Good {
        name,
        content: content(files.clone()).unwrap(),
        files,
        sparse,
    };
    vec![
        good("dynamic", vec![dynamic.clone()], true),
        good("child", vec![child, dynamic], true),
        good("fixed", vec![fixed], false),
    ]
}

/// What was done to a file, and which blocks of the disk may read differently for it.
struct Damage {
    what: String,
    blocks: Vec<u64>,
}

pub fn be32(file: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(file[at..at + 4].try_into().unwrap())
}

pub fn table_of(file: &[u8]) -> usize {
    be32(file, 512 + 20) as usize
}

fn flip(file: &mut [u8], at: usize, rng: &mut Rng) {
    file[at] ^= 1 << rng.below(8);
}

fn damage(file: &mut Vec<u8>, sparse: bool, rng: &mut Rng) -> Damage {
    let len = file.len();
    let none = |what: String| Damage { what, blocks: Vec::new() };
    match rng.below(if sparse { 10 } else { 3 }) {
        0 => {
            let at = len - 512 + rng.below(512) as usize;
            flip(file, at, rng);
            none(format!("tail footer, byte {at}"))
        }
        1 if sparse => {
            file[len - 512..].fill(0);
            none("tail footer zeroed".to_owned())
        }
        1 | 2 if !sparse => {
            file.extend(std::iter::repeat_n(0, 512 * (1 + rng.below(9) as usize)));
            none("zeros behind the footer".to_owned())
        }
        2 => {
            file.truncate(len - 1 - rng.below(512) as usize);
            none("tail footer cut off".to_owned())
        }
        3 => {
            let at = rng.below(512) as usize;
            flip(file, at, rng);
            none(format!("head footer, byte {at}"))
        }
        4 => {
            let at = 512 + rng.below(1024) as usize;
            flip(file, at, rng);
            none(format!("header, byte {at}"))
        }
        5 | 6 => damage_entry(file, rng),
        7 => damage_bitmap(file, rng),
        8 => {
            let cut = 512 + rng.below(2 * BLOCK) as usize;
            file.truncate(len - cut);
            // Blocks are written in this order, so the last ones go.
            Damage { what: format!("cut off by {cut}"), blocks: WRITTEN[3..].to_vec() }
        }
        _ => {
            let (head, tail) = (rng.below(8) as usize, len - 512 + 85 + rng.below(400) as usize);
            flip(file, head, rng);
            flip(file, tail, rng);
            none(format!("both footers, bytes {head} and {tail}"))
        }
    }
}

fn damage_entry(file: &mut [u8], rng: &mut Rng) -> Damage {
    let table = table_of(file);
    let block = WRITTEN[rng.below(6) as usize];
    let other = WRITTEN[rng.below(6) as usize];
    let at = table + block as usize * 4;
    let old = be32(file, at);
    let entry = match rng.below(5) {
        0 => rng.next() as u32,
        1 => old ^ (1 << rng.below(32)),
        2 if other != block => be32(file, table + other as usize * 4),
        3 => rng.below(3) as u32,
        _ => (file.len() / 512) as u32 - rng.below(1025) as u32,
    };
    let entry = if entry == u32::MAX { 0 } else { entry };
    file[at..at + 4].copy_from_slice(&entry.to_be_bytes());
    Damage { what: format!("entry of block {block}: {old} became {entry}"), blocks: vec![block] }
}

fn damage_bitmap(file: &mut [u8], rng: &mut Rng) -> Damage {
    let table = table_of(file);
    let differencing = be32(file, 60) == 4;
    let block = if differencing { 9 } else { WRITTEN[rng.below(6) as usize] };
    let at = be32(file, table + block as usize * 4) as usize * 512;
    if differencing {
        // Only the last block can have bits that mean nothing.
        file[at + 14 + rng.below(100) as usize] = 1 << rng.below(8);
    } else {
        file[at..at + 4].fill(0);
    }
    Damage { what: format!("bitmap of block {block}"), blocks: Vec::new() }
}

pub fn plan_of(file: &Bytes) -> RepairPlan {
    let parent_is = |parent: &goldrush::vhd::ParentInfo| {
        parent.unique_id == Uuid::from_u128(1) && !parent.candidates.is_empty()
    };
    plan(file.len(), |offset, bytes: &mut [u8]| file.read_at(offset, bytes), parent_is).unwrap()
}

pub fn is_clean(file: &Bytes) -> bool {
    check(file.len(), |offset, bytes| file.read_at(offset, bytes)).unwrap().is_clean()
}

/// Applies the first `writes` writes of a plan; the copies come before all of them.
pub fn apply(file: &Bytes, plan: &RepairPlan, writes: usize) -> Bytes {
    let mut file = file.clone();
    for copy in &plan.copies {
        let from = copy.from as usize;
        let bytes = file.0[from..from + copy.len as usize].to_vec();
        file.write_at(copy.to, &bytes).unwrap();
    }
    for write in plan.stages.iter().flatten().take(writes) {
        file.write_at(write.offset, &write.bytes).unwrap();
    }
    file
}

/// The blocks that read differently.
fn changed_blocks(a: &[u8], b: &[u8]) -> Vec<u64> {
    let pairs = a.chunks(BLOCK as usize).zip(b.chunks(BLOCK as usize)).enumerate();
    pairs.filter(|(_, (a, b))| a != b).map(|(block, _)| block as u64).collect()
}

/// True when the repaired image is clean and reads as before, but for blocks that were damaged.
fn is_whole(file: Bytes, good: &Good, damage: &Damage) -> Result<(), String> {
    if !is_clean(&file) {
        return Err("not clean".to_owned());
    }
    let mut files = good.files.clone();
    files[0] = file;
    let changed = changed_blocks(&content(files)?, &good.content);
    match changed.iter().find(|block| !damage.blocks.contains(block)) {
        Some(block) => Err(format!("block {block} was not damaged and reads differently")),
        None => Ok(()),
    }
}

#[derive(Default, Debug)]
struct Counts {
    found: u64,
    repaired: u64,
    without_loss: u64,
    in_full: u64,
    hopeless: u64,
    cut_off: u64,
}

fn one_seed(good: &Good, seed: u64, counts: &mut Counts) -> Result<(), String> {
    let mut rng = Rng(seed);
    let mut damaged = good.files[0].clone();
    let damage = damage(&mut damaged.0, good.sparse, &mut rng);
    let fail = |why: String| Err(format!("{} seed {seed}: {}: {why}", good.name, damage.what));
    if damaged.0 == good.files[0].0 {
        return Ok(());
    }
    if is_clean(&damaged) {
        // Only what no structure contradicts can stay unseen, and then nothing else may read differently.
        return is_whole(damaged, good, &damage).or_else(fail);
    }
    counts.found += 1;
    let plan = plan_of(&damaged);
    if plan.is_empty() {
        counts.hopeless += 1;
        return if plan.hopeless.is_empty() {
            fail("nothing planned, nothing said".to_owned())
        } else {
            Ok(())
        };
    }
    let writes = plan.stages.iter().flatten().count();
    let repaired = apply(&damaged, &plan, writes);
    if repaired.len() < plan.len || !plan_of(&repaired).steps.is_empty() {
        return fail("the plan does not end where it said".to_owned());
    }
    is_whole(repaired.clone(), good, &damage).or_else(fail)?;
    counts.repaired += 1;
    counts.without_loss += u64::from(!plan.loses_data());
    let mut files = good.files.clone();
    files[0] = repaired;
    counts.in_full += u64::from(content(files)? == good.content);
    for cut in 0..writes {
        let half = apply(&damaged, &plan, cut);
        let again = plan_of(&half);
        let again = apply(&half, &again, usize::MAX);
        let verdict = is_whole(again, good, &damage);
        counts.cut_off += 1;
        verdict.or_else(|why| fail(format!("cut off after {cut} of {writes} writes: {why}")))?;
    }
    Ok(())
}

#[test]
fn every_damage_is_found_repaired_or_refused_and_no_undamaged_sector_changes() {
    let goods = good_images();
    let mut counts = Counts::default();
    let seeds: u64 = std::env::var("GOLDRUSH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut wrong = Vec::new();
    for good in &goods {
        for seed in 0..seeds {
            wrong.extend(one_seed(good, seed, &mut counts).err());
        }
    }
    println!("{counts:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(counts.repaired * 10 >= counts.found * 7, "{counts:?}");
    assert!(counts.without_loss * 2 >= counts.repaired && counts.cut_off > counts.repaired, "{counts:?}");
}

#[test]
fn a_clean_image_has_no_plan_and_no_gap_is_padding() {
    for good in good_images() {
        let report =
            check(good.files[0].len(), |offset, bytes| good.files[0].read_at(offset, bytes)).unwrap();
        assert_eq!((report.findings.len(), report.unreferenced_bytes), (0, 0), "{}", good.name);
        assert!(plan_of(&good.files[0]).is_empty());
    }
}

#[test]
fn the_one_lost_block_is_found_again() {
    let goods = good_images();
    let good = &goods[0];
    let mut damaged = good.files[0].clone();
    let table = table_of(&damaged.0);
    damaged.0[table + 12..table + 16].copy_from_slice(&7_u32.to_be_bytes());
    let plan = plan_of(&damaged);
    assert!(!plan.loses_data(), "{:?}", plan.steps);
    let repaired = apply(&damaged, &plan, usize::MAX);
    assert!(content(vec![repaired]).unwrap() == good.content);
}
