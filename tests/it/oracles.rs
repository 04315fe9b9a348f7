//! Images made here, read by other programs: `qemu-img` and `7zz`, where they are installed.
//!
//! qemu knows no parents, so it judges fixed and dynamic disks only; 7-Zip follows relative locators in one folder.

use crate::blocking::{Disk, range, write_new};
use crate::other_programs::{installed, qemu_reads_vhd, seven_zip_reads};
use goldrush::units::SectorCount;
use goldrush::vhd::OpenMode;
use goldrush::vhd::create::{NewDisk, NewKind, ParentRef, create, timestamp_from_unix};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use uuid::Uuid;

const SECTORS: u64 = 20_011;

fn new_file(path: &Path, kind: NewKind, id: u128) -> File {
    let disk = NewDisk { kind, sectors: SectorCount(SECTORS), unique_id: Uuid::from_u128(id), timestamp: 7 };
    let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    write_new(&mut file, &create(&disk).unwrap());
    file
}

/// Writes here and there, and closes; the disk's content.
fn fill(files: Vec<File>, salt: u8) -> (Vec<File>, Vec<u8>) {
    let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
    for (index, start) in [0, 77, 4090, 9999, SECTORS - 30].into_iter().enumerate() {
        let bytes = vec![salt + index as u8; 25 * 512];
        disk.write(start, &bytes).unwrap();
    }
    disk.write_zeros(80, 9).unwrap();
    let content = disk.read(range(0, SECTORS));
    (disk.close(), content)
}

#[test]
fn qemu_and_7zip_read_what_we_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (qemu, seven_zip) = (installed("qemu-img"), installed("7zz"));
    let kinds = [
        ("fixed.vhd", NewKind::Fixed),
        ("small.vhd", NewKind::Dynamic { block_size: 512 << 10 }),
        ("usual.vhd", NewKind::Dynamic { block_size: 2 << 20 }),
        ("large.vhd", NewKind::Dynamic { block_size: 32 << 20 }),
    ];
    for (index, (name, kind)) in kinds.into_iter().enumerate() {
        let path = folder.path().join(name);
        let (_, content) = fill(vec![new_file(&path, kind, index as u128 + 1)], 1);
        if qemu {
            assert!(qemu_reads_vhd(&path) == content, "qemu reads {name} differently");
        }
        if seven_zip {
            assert!(seven_zip_reads(&path, "vhd") == content, "7-Zip reads {name} differently");
        }
    }
}

#[test]
fn seven_zip_finds_the_parent_of_our_child() {
    let folder = tempfile::tempdir().unwrap();
    if !installed("7zz") {
        return;
    }
    for (gold, child) in [(2 << 20, 512 << 10), (512 << 10, 2 << 20), (2 << 20, 32 << 20)] {
        let name = format!("gold-{gold}-{child}.vhd");
        let gold_path = folder.path().join(&name);
        let (_, _) = fill(vec![new_file(&gold_path, NewKind::Dynamic { block_size: gold }, 1)], 1);
        let parent = ParentRef {
            unique_id: Uuid::from_u128(1),
            timestamp: timestamp_from_unix(gold_path.metadata().unwrap().mtime() as u64),
            relative: name.clone(),
            absolute: Some(gold_path.display().to_string()),
        };
        let path = folder.path().join(format!("child-{gold}-{child}.vhd"));
        let leaf = new_file(&path, NewKind::Differencing { block_size: child, parent }, 2);
        let mut disk = Disk::open(vec![leaf, File::open(&gold_path).unwrap()], OpenMode::Writable).unwrap();
        disk.write(90, &[0xEE; 512 * 7]).unwrap();
        disk.write_zeros(10_000, 3).unwrap();
        let content = disk.read(range(0, SECTORS));
        disk.close();
        assert!(seven_zip_reads(&path, "vhd") == content, "7-Zip reads {} differently", path.display());
    }
}
