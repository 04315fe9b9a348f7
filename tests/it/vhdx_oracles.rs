//! VHDX files written here, judged by other programs where they are installed: `qemu-img` and `7zz`.
//!
//! qemu knows no parents and no 4096-byte sectors; it checks structure and replays a log. 7-Zip follows parents.

use crate::blocking::{Disk, range, replay_batches, run_meta_op};
use crate::other_programs::{installed, qemu_finds_no_errors, qemu_reads_vhdx, seven_zip_reads};
use crate::sim_disk::Rng;
use crate::vhdx_files::{New, data_write_guid, write_new_vhdx};
use goldrush::plan::{MetaBatch, MetaOp, OpenMode, WriteExtent, WriteKind, WritePlan, WriteStep};
use goldrush::units::BlockSize;
use std::fs::File;
use std::path::Path;

const SECTORS: u64 = 40_000;

fn new_file(path: &Path, new: &New) -> File {
    let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    write_new_vhdx(&mut file, new);
    file
}

fn new(block_size: u32, logical_sector: BlockSize, id: u128) -> New {
    New { sectors: SECTORS, block_size, logical_sector, parent: None, id }
}

/// Random writes of data and zeros against a model.
fn fill(disk: &mut Disk<File>, model: &mut [u8], rng: &mut Rng, writes: u64) {
    let unit = 8;
    for _ in 0..writes {
        let start = rng.below(SECTORS / unit) * unit;
        let most = if rng.chance(10) { 4000 } else { 64 };
        let count = (1 + rng.below(((SECTORS - start) / unit).min(most / unit))) * unit;
        let bytes = vec![1 + rng.below(255) as u8; count as usize * 512];
        let place = start as usize * 512..(start + count) as usize * 512;
        if rng.chance(25) {
            disk.write_zeros(start, count).unwrap();
            model[place].fill(0);
        } else {
            disk.write(start, &bytes).unwrap();
            model[place].copy_from_slice(&bytes);
        }
        if rng.chance(20) {
            let start = rng.below(SECTORS - 100);
            let count = 1 + rng.below(100);
            let found = disk.read(range(start, count));
            assert!(found == model[start as usize * 512..(start + count) as usize * 512]);
        }
    }
    assert!(disk.read(range(0, SECTORS)) == model);
}

#[test]
fn others_read_and_check_what_we_wrote_into_a_dynamic_vhdx() {
    let folder = tempfile::tempdir().unwrap();
    let (qemu, seven_zip) = (installed("qemu-img"), installed("7zz"));
    let shapes = [(1, BlockSize::B512), (2, BlockSize::B512), (32, BlockSize::B512), (2, BlockSize::B4096)];
    for (index, (mib, sector)) in shapes.into_iter().enumerate() {
        let path = folder.path().join(format!("{index}.vhdx"));
        let mut files = vec![new_file(&path, &new(mib << 20, sector, 1))];
        let mut model = vec![0; SECTORS as usize * 512];
        let mut rng = Rng(index as u64);
        // Two lives: the second one finds what the first one left.
        for _ in 0..2 {
            let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
            fill(&mut disk, &mut model, &mut rng, 40);
            files = disk.close();
        }
        if qemu && sector == BlockSize::B512 {
            qemu_finds_no_errors(&path, &[]);
            assert!(qemu_reads_vhdx(&path) == model, "qemu reads {mib} MiB differently");
        }
        if seven_zip {
            assert!(seven_zip_reads(&path, "vhdx") == model, "7-Zip reads {mib} MiB differently");
        }
    }
}

#[test]
fn seven_zip_reads_our_children_through_their_parents() {
    let folder = tempfile::tempdir().unwrap();
    let seven_zip = installed("7zz");
    let shapes = [(1, 2, BlockSize::B512), (32, 1, BlockSize::B4096), (2, 32, BlockSize::B512)];
    for (index, (gold, child, sector)) in shapes.into_iter().enumerate() {
        let mut rng = Rng(100 + index as u64);
        let mut model = vec![0; SECTORS as usize * 512];
        let mut paths = Vec::new();
        for (level, mib) in [gold, child, gold].into_iter().enumerate() {
            let name = format!("{index}-{level}.vhdx");
            let path = folder.path().join(&name);
            let parent = paths.last().map(|parent: &std::path::PathBuf| {
                let name = parent.file_name().unwrap().to_str().unwrap().to_owned();
                (data_write_guid(&File::open(parent).unwrap()), name)
            });
            let new = New { parent, ..new(mib << 20, sector, level as u128 + 1) };
            let mut files = vec![new_file(&path, &new)];
            files.extend(paths.iter().rev().map(|path| File::open(path).unwrap()));
            paths.push(path.clone());
            let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
            fill(&mut disk, &mut model, &mut rng, 40);
            disk.close();
            if seven_zip {
                assert!(
                    seven_zip_reads(&path, "vhdx") == model,
                    "7-Zip reads {} differently",
                    path.display()
                );
            }
        }
    }
}

/// Writes, and stops with a commit in the log that is not in its place: what a killed server leaves. False when the
/// block is there already, so that nothing was to be committed.
fn write_and_die(disk: &mut Disk<File>, start: u64, bytes: &[u8], model: &mut [u8]) -> bool {
    let leaf = disk.chain.leaf();
    let mut plan = WritePlan::default();
    let whole = range(start, bytes.len() as u64 / 512);
    let covered = loop {
        match disk.images.resolve_write(&disk.chain, whole, WriteKind::Data, &mut plan).unwrap() {
            WriteStep::NeedBitmap(read) => disk.load_bitmap(read),
            WriteStep::NeedSpace(layer) => disk.run_batches(layer),
            WriteStep::Ready { commit: false, .. } => return false,
            WriteStep::Ready { covered, .. } => break covered,
        }
    };
    let mut done = 0;
    for extent in &plan.extents {
        let WriteExtent::File { len, offset, .. } = *extent else { panic!("{extent:?}") };
        let piece = &bytes[done..done + len as usize];
        crate::blocking::Store::write_at(&mut disk.files[0], offset.0, piece).unwrap();
        done += len as usize;
    }
    let seq = disk.images.data_written(&disk.chain, whole.take(covered), &mut goldrush::plan::NoRecords);
    model[start as usize * 512..start as usize * 512 + done].copy_from_slice(&bytes[..done]);
    let mut batch = MetaBatch::default();
    while disk.images.committed(leaf) < seq {
        assert!(disk.images.next_meta_batch(leaf, &mut batch));
        for op in &batch.ops {
            // The table begins at 3 MiB: what the last entry changed does not reach its place.
            let lost = matches!(op, MetaOp::Write { offset, .. } if offset.0 >= 3 << 20);
            if !lost {
                run_meta_op(&mut disk.files[0], op, &batch.bytes);
            }
        }
        disk.images.meta_batch_done(leaf, Ok(()));
    }
    true
}

#[test]
fn qemu_replays_the_log_we_leave() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = installed("qemu-img");
    for seed in 0..6 {
        let path = folder.path().join(format!("{seed}.vhdx"));
        let mut model = vec![0; SECTORS as usize * 512];
        let mut rng = Rng(1000 + seed);
        let file = new_file(&path, &new(1 << 20, BlockSize::B512, 1));
        let mut disk = Disk::open(vec![file], OpenMode::Writable).unwrap();
        // With none, the log holds the empty entry it begins with and one commit.
        fill(&mut disk, &mut model, &mut rng, seed * 2);
        let died = (0..SECTORS / 2048)
            .any(|block| write_and_die(&mut disk, block * 2048 + 8, &[0xD1; 16 * 512], &mut model));
        assert!(died, "seed {seed}: every block is there");
        drop(disk);
        let copy = folder.path().join(format!("{seed}-copy.vhdx"));
        std::fs::copy(&path, &copy).unwrap();
        // As it is, replayed in memory; then by another program, in the file; then by us.
        let batches = replay_batches(&File::open(&path).unwrap()).unwrap();
        assert_eq!(batches[0].ops, [MetaOp::Sync], "entries that are replayed must be stable themselves");
        let as_it_is = Disk::open(vec![File::open(&path).unwrap()], OpenMode::ReadOnly);
        assert!(as_it_is.unwrap().read(range(0, SECTORS)) == model, "seed {seed}");
        if qemu {
            qemu_finds_no_errors(&copy, &["-r", "all"]);
            assert!(qemu_reads_vhdx(&copy) == model, "seed {seed}: qemu replays differently");
        }
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut disk = Disk::open(vec![file], OpenMode::Writable).unwrap();
        fill(&mut disk, &mut model, &mut rng, 5);
        disk.close();
        if qemu {
            qemu_finds_no_errors(&path, &[]);
        }
    }
}
