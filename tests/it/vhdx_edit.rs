//! VHDX files changed while nobody uses them, crashed at every stage: compaction, resizing, another parent.

use crate::blocking::{Disk, Store, range, replay_batches, run_meta_op, write_ids};
use crate::vhd_edit::each_crash;
use crate::vhd_repair::Bytes;
use crate::vhdx_files::{New, data_write_guid, write_new_vhdx};
use goldrush::plan::{CompactPlan, OpenMode, Stage};
use goldrush::units::{BlockIndex, BlockSize, SectorCount};
use goldrush::vhdx::create::{NewDisk, NewKind, create};
use goldrush::vhdx::parent_locator::ParentPaths;
use goldrush::vhdx::relink::{Link, relink};
use goldrush::vhdx::resize::ResizeError;
use goldrush::vhdx::{VhdxImage, check, open_with};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Ends inside a block.
const SECTORS: u64 = 8 * 2048 + 800;

fn new(parent: Option<Uuid>, id: u128) -> Bytes {
    let mut file = Bytes(Vec::new());
    let parent = parent.map(|id| (id, "parent.vhdx".to_owned()));
    let new = New { sectors: SECTORS, block_size: MIB as u32, logical_sector: BlockSize::B512, parent, id };
    write_new_vhdx(&mut file, &new);
    file
}

fn open(file: &Bytes) -> VhdxImage {
    open_with(file.len(), OpenMode::ReadOnly, |offset, bytes| file.read_at(offset, bytes)).unwrap()
}

/// What a crash left, with its log written into place, as whoever opens it for writing does; found clean.
fn recovered(what: &str, mut file: Bytes) -> Bytes {
    let batches = replay_batches(&file).unwrap_or_else(|error| panic!("{what}: {error}"));
    for batch in &batches {
        batch.ops.iter().for_each(|op| run_meta_op(&mut file, op, &batch.bytes));
    }
    let report = check::check(file.len(), |offset, bytes| file.read_at(offset, bytes)).unwrap();
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
    file
}

/// The whole disk, also through a log in memory.
fn content(files: &[&Bytes]) -> Vec<u8> {
    let files = files.iter().map(|file| (*file).clone()).collect();
    let mut disk = Disk::open(files, OpenMode::ReadOnly).unwrap();
    let sectors = disk.sectors();
    disk.read(range(0, sectors))
}

/// Writes here and there, into blocks in an order that is not theirs.
fn filled(files: Vec<Bytes>, salt: u8) -> Bytes {
    let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
    for (index, sector) in [5 * 2048, 7 * 2048 + 3, 0, 3 * 2048, SECTORS - 9, 2048].into_iter().enumerate() {
        disk.write(sector, &vec![salt + index as u8; 9 * 512]).unwrap();
    }
    disk.close().swap_remove(0)
}

fn dynamic() -> Bytes {
    filled(vec![new(None, 1)], 1)
}

fn fixed() -> Bytes {
    let disk = NewDisk {
        kind: NewKind::Fixed,
        sectors: SectorCount(SECTORS),
        block_size: MIB as u32,
        logical_sector: BlockSize::B512,
        physical_sector: BlockSize::B4096,
        file_write_guid: Uuid::from_u128(1),
        data_write_guid: Uuid::from_u128(2),
        disk_id: Uuid::from_u128(3),
    };
    let image = create(&disk).unwrap();
    let mut file = Bytes(Vec::new());
    file.set_len(image.len).unwrap();
    image.writes.iter().for_each(|(at, bytes)| file.write_at(*at, bytes).unwrap());
    filled(vec![file], 30)
}

fn resize(file: &Bytes, sectors: u64) -> Result<Vec<Stage>, ResizeError<std::io::Error>> {
    let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
    open(file).resize(SectorCount(sectors), file.len(), write_ids(), read)
}

fn check_resize(name: &str, file: &Bytes, sectors: u64) -> Bytes {
    let before = content(&[file]);
    let old_id = data_write_guid(file);
    let stages = resize(file, sectors).unwrap();
    let fits = |what: &str, now: &[u8]| {
        let both = before.len().min(now.len());
        assert!(now[..both] == before[..both], "{what}");
        assert!(now[both..].iter().all(|byte| *byte == 0), "{what}: what is new is not zero");
    };
    let last = each_crash(file, &stages, |what, half| {
        let what = format!("{name} to {sectors}, {what}");
        let seen = content(&[&half]);
        let half = recovered(&what, half);
        let now = content(&[&half]);
        assert!(seen == now, "{what}: the replay changed the disk");
        assert!([before.len(), sectors as usize * 512].contains(&now.len()), "{what}: {} bytes", now.len());
        assert_eq!(now.len() == before.len(), data_write_guid(&half) == old_id, "{what}");
        fits(&what, &now);
    });
    let now = content(&[&last]);
    assert_eq!(now.len() as u64, sectors * 512, "{name}");
    fits(name, &now);
    // It can be written to its very end.
    let mut disk = Disk::open(vec![recovered(name, last.clone())], OpenMode::Writable).unwrap();
    disk.write(sectors - 8, &[9; 8 * 512]).unwrap();
    recovered(name, disk.close().swap_remove(0));
    last
}

#[test]
fn disks_grow_and_shrink_and_a_crash_leaves_one_of_both_sizes() {
    for (name, file) in [("dynamic", dynamic()), ("fixed", fixed())] {
        for sectors in [SECTORS + 1, SECTORS + 5000] {
            let larger = check_resize(name, &file, sectors);
            check_resize(name, &larger, SECTORS);
        }
    }
}

#[test]
fn a_table_that_does_not_fit_its_region_moves_to_the_end() {
    // A region of 1 MiB holds 131072 entries, of which every 4097th is a bitmap's.
    let stages = resize(&dynamic(), 140_000 * 2048).unwrap();
    let file = dynamic();
    let (before, table) = (content(&[&file]), open(&file).regions().bat);
    let last = each_crash(&file, &stages, |what, half| {
        let half = recovered(what, half);
        let image = open(&half);
        let moved = image.regions().bat != table;
        assert_eq!(moved, image.sectors().0 == 140_000 * 2048, "{what}");
        let mut disk = Disk::open(vec![half], OpenMode::ReadOnly).unwrap();
        assert!(disk.read(range(0, SECTORS)) == before, "{what}");
    });
    let mut disk = Disk::open(vec![last], OpenMode::Writable).unwrap();
    disk.write(139_000 * 2048, &[7; 512]).unwrap();
    recovered("moved", disk.close().swap_remove(0));
}

#[test]
fn a_child_grows_and_does_not_shrink() {
    let parent = dynamic();
    let child = filled(vec![new(Some(data_write_guid(&parent)), 2), parent.clone()], 40);
    assert!(matches!(resize(&child, SECTORS - 1), Err(ResizeError::Child)));
    assert!(matches!(resize(&child, 0), Err(ResizeError::Size(0))));
    let before = content(&[&child, &parent]);
    let stages = resize(&child, SECTORS + 3000).unwrap();
    each_crash(&child, &stages, |what, half| {
        let now = content(&[&recovered(what, half), &parent]);
        assert!(now[..before.len()] == before && now[before.len()..].iter().all(|byte| *byte == 0), "{what}");
    });
}

fn compact(file: &Bytes, unneeded: &[u32]) -> CompactPlan {
    let unneeded: Vec<BlockIndex> = unneeded.iter().map(|block| BlockIndex(*block)).collect();
    open(file).compact(file.len(), &unneeded, write_ids())
}

#[test]
fn compaction_keeps_the_content_through_every_crash_and_ends_with_a_short_file() {
    let parent = dynamic();
    let child = filled(vec![new(Some(data_write_guid(&parent)), 2), parent.clone()], 1);
    // The child wrote what its parent has: its blocks say nothing of their own.
    for (name, chain, unneeded) in
        [("dynamic", vec![dynamic()], &[0, 5][..]), ("child", vec![child, parent], &[0, 3, 5, 7])]
    {
        let mut chain = chain;
        if name == "dynamic" {
            let mut disk = Disk::open(chain, OpenMode::Writable).unwrap();
            for block in [0, 5] {
                disk.write(block * 2048, &vec![0; MIB as usize]).unwrap();
            }
            chain = disk.close();
        }
        let (file, parents) = chain.split_first().unwrap();
        let all = |file: &Bytes| {
            let files: Vec<&Bytes> = core::iter::once(file).chain(parents).collect();
            content(&files)
        };
        let (before, id) = (all(file), data_write_guid(file));
        let plan = compact(file, unneeded);
        assert_eq!(plan.freed_blocks, unneeded.len() as u64, "{name}");
        let last = each_crash(file, &plan.stages, |what, half| {
            let what = format!("{name}, {what}");
            assert!(all(&half) == before, "{what}: with its log in memory");
            let half = recovered(&what, half);
            assert!(all(&half) == before, "{what}");
            assert_eq!(data_write_guid(&half), id, "{what}");
        });
        let saved = file.len() - last.len();
        assert!(last.len() == plan.len && saved >= unneeded.len() as u64 * MIB, "{name}: {saved}");
        let again = compact(&last, &[]);
        assert!(again.stages.is_empty(), "{name}: {again:?}");
    }
}

#[test]
fn a_child_names_its_old_parent_or_its_new_one_at_every_moment() {
    let parents = [filled(vec![new(None, 1)], 1), filled(vec![new(None, 2)], 1)];
    let ids = [data_write_guid(&parents[0]), data_write_guid(&parents[1])];
    let child = filled(vec![new(Some(ids[0]), 3), parents[0].clone()], 70);
    let own = data_write_guid(&child);
    for name in ["new.vhdx", &format!("{}/new.vhdx", "long".repeat(900))] {
        let paths = ParentPaths { relative: name.to_owned(), volume: None, absolute: None };
        let mut file = child.clone();
        let links = [
            Link::Both(ids[0], ids[1]),
            Link::Parent(ids[1], &paths),
            Link::Same(ids[0]),
            Link::Same(ids[1]),
        ];
        for link in links {
            let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
            let stages = relink(file.len(), &link, write_ids(), read).unwrap();
            let accepts = |file: &Bytes| ids.map(|id| open(file).parent().unwrap().accepts(id));
            let before = accepts(&file);
            let after = match link {
                Link::Both(..) => [true, true],
                Link::Parent(id, _) | Link::Same(id) => ids.map(|other| other == id),
            };
            let last = each_crash(&file, &stages, |what, half| {
                let seen = accepts(&half);
                let half = recovered(what, half);
                assert!(seen == accepts(&half) && (seen == before || seen == after), "{what}: {seen:?}");
                assert_eq!(data_write_guid(&half), own, "{what}");
            });
            assert_eq!(accepts(&last), after);
            file = last;
        }
        let candidates = open(&file).parent().unwrap().candidates.clone();
        assert!(candidates.iter().any(|candidate| candidate.path.ends_with(name)), "{candidates:?}");
        assert!(content(&[&file, &parents[1]]) == content(&[&child, &parents[0]]));
    }
}

#[test]
fn what_has_no_parent_gets_none_and_a_path_without_end_is_refused() {
    let file = dynamic();
    let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
    let refused = relink(file.len(), &Link::Same(Uuid::from_u128(1)), write_ids(), read).unwrap_err();
    assert!(refused.to_string().contains("no differencing disk"), "{refused}");
    let child = new(Some(Uuid::from_u128(1)), 2);
    let paths = ParentPaths { relative: "x".repeat(40_000), volume: None, absolute: None };
    let read = |offset, bytes: &mut [u8]| child.read_at(offset, bytes);
    let link = Link::Parent(Uuid::from_u128(2), &paths);
    assert!(relink(child.len(), &link, write_ids(), read).unwrap_err().to_string().contains("80"));
}
