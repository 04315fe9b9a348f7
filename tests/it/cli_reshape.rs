//! `goldrush image compact` and `resize`: the content stays, and other programs read the result.

use crate::cli::Desk;
use crate::other_programs::{installed, qemu_reads_vhd, seven_zip_reads};
use std::os::unix::fs::{FileExt, MetadataExt};

fn usage(desk: &Desk, name: &str) -> u64 {
    std::fs::metadata(desk.path(name)).unwrap().blocks() * 512
}

/// Every megabyte of it has its number, but for those of `zero`.
fn content(zero: impl Fn(u64) -> bool, megabytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; (megabytes << 20) as usize];
    for number in (0..megabytes).filter(|number| !zero(*number)) {
        let at = (number << 20) as usize;
        bytes[at..at + (1 << 20)].fill(number as u8 + 1);
    }
    bytes
}

#[track_caller]
fn reads_as(desk: &Desk, name: &str, content: &[u8], qemu: bool) {
    assert!(desk.goldrush_ok(&format!("image check {name}")).contains("clean"));
    desk.goldrush_ok(&format!("image convert {name} back.raw --force"));
    assert!(std::fs::read(desk.path("back.raw")).unwrap() == content, "{name}");
    if installed("7zz") {
        assert!(seven_zip_reads(&desk.path(name), "vhd") == content, "{name} by 7-Zip");
    }
    if qemu && installed("qemu-img") {
        assert!(qemu_reads_vhd(&desk.path(name)) == content, "{name} by qemu");
    }
}

/// Writes through a raw copy and back, which leaves zeros stored in the image.
fn store_zeros(desk: &Desk, name: &str, bytes: std::ops::Range<u64>) {
    let image = std::fs::File::options().read(true).write(true).open(desk.path(name)).unwrap();
    image.write_all_at(&vec![0; (bytes.end - bytes.start) as usize], bytes.start).unwrap();
}

#[test]
fn a_dynamic_disk_gives_up_zero_blocks_and_moves_the_others_down() {
    let desk = Desk::new();
    desk.write("disk.raw", content(|_| false, 20));
    desk.goldrush_ok("image convert disk.raw disk.vhd --block-size 2M");
    // The data of the first three blocks, in a file made by convert.
    let first_data = 4096 + 4096 + 4096;
    let file = std::fs::read(desk.path("disk.vhd")).unwrap();
    assert_eq!((file[first_data - 512], file[first_data - 1], file[first_data]), (0xFF, 0xFF, 1));
    store_zeros(&desk, "disk.vhd", first_data as u64..first_data as u64 + (2 << 20));
    let expected = content(|number| number < 2, 20);
    let before = std::fs::metadata(desk.path("disk.vhd")).unwrap().len();

    let said = desk.goldrush_ok("image compact disk.vhd --dry-run");
    assert!(said.contains("1 blocks would be freed, 1 moved"), "{said}");
    assert_eq!(std::fs::metadata(desk.path("disk.vhd")).unwrap().len(), before);
    let report: serde_json::Value =
        serde_json::from_str(&desk.goldrush_ok("image compact disk.vhd --json")).unwrap();
    assert_eq!((&report["freed_blocks"], &report["moved_blocks"]), (&1.into(), &1.into()));
    let after = std::fs::metadata(desk.path("disk.vhd")).unwrap().len();
    assert!(before - after >= 2 << 20 && report["file_size_after"] == after, "{report}");
    reads_as(&desk, "disk.vhd", &expected, true);
    assert!(desk.goldrush_ok("image compact disk.vhd").contains("0 blocks freed, 0 moved"));
}

#[test]
fn a_child_gives_up_only_what_reads_as_its_parent_does() {
    let desk = Desk::new();
    desk.write("disk.raw", content(|number| number >= 8, 12));
    desk.goldrush_ok("image convert disk.raw golden.vhd --block-size 2M");
    desk.goldrush_ok("image create child.vhd --parent golden.vhd --block-size 2M");
    // Three blocks appear in the child: the parent's own content, zeros over data, zeros over zeros.
    let mut child = std::fs::read(desk.path("child.vhd")).unwrap();
    let footer = child.split_off(child.len() - 512);
    let table = u32::from_be_bytes(child[532..536].try_into().unwrap()) as usize;
    for (block, byte) in [(0_usize, Some(1_u8)), (1, None), (4, None)] {
        child.resize((child.len() + 512).next_multiple_of(4096) - 512, 0);
        let entry = (child.len() / 512) as u32;
        child[table + block * 4..table + block * 4 + 4].copy_from_slice(&entry.to_be_bytes());
        child.extend([0xFF; 512]);
        let data =
            byte.map_or(vec![0; 2 << 20], |byte| [vec![byte; 1 << 20], vec![byte + 1; 1 << 20]].concat());
        child.extend(data);
    }
    child.extend(footer);
    desk.write("child.vhd", &child);
    let expected = content(|number| (2..4).contains(&number) || number >= 8, 12);
    reads_as(&desk, "child.vhd", &expected, false);
    let golden = std::fs::read(desk.path("golden.vhd")).unwrap();

    let said = desk.goldrush_ok("image compact child.vhd");
    assert!(said.contains("2 blocks freed, 1 moved"), "{said}");
    reads_as(&desk, "child.vhd", &expected, false);
    assert!(std::fs::read(desk.path("golden.vhd")).unwrap() == golden);
    let said = desk.goldrush("image compact golden.vhd");
    assert!(said.code == 1 && said.err.contains("golden.vhd is the parent of ./child.vhd"), "{said:?}");
}

#[test]
fn raw_and_fixed_images_get_holes() {
    let desk = Desk::new();
    let bytes = content(|number| number % 2 == 1, 8);
    desk.write("disk.raw", &bytes);
    desk.goldrush_ok("image convert disk.raw fixed.vhd --type fixed");
    let file = std::fs::File::options().write(true).open(desk.path("fixed.vhd")).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    drop(file);
    for name in ["disk.raw", "fixed.vhd"] {
        let before = usage(&desk, name);
        desk.goldrush_ok(&format!("image compact {name}"));
        assert!(
            before >= 8 << 20 && usage(&desk, name) <= 5 << 20,
            "{name}: {before} to {}",
            usage(&desk, name)
        );
    }
    assert!(std::fs::read(desk.path("disk.raw")).unwrap() == bytes);
    reads_as(&desk, "fixed.vhd", &bytes, true);
}

#[test]
fn disks_get_other_sizes_and_nothing_else_changes() {
    let desk = Desk::new();
    let bytes = content(|number| number == 3, 6);
    desk.write("disk.raw", &bytes);
    for (name, flags) in
        [("fixed.vhd", "--type fixed"), ("dynamic.vhd", "--block-size 512K"), ("copy.raw", "")]
    {
        desk.goldrush_ok(&format!("image convert disk.raw {name} {flags}"));
        let said = desk.goldrush_ok(&format!("image resize {name} --size 3G"));
        assert_eq!(said, format!("{name}: 3 GiB, was 6 MiB\n"));
        assert!(usage(&desk, name) < 8 << 20, "{name} takes {}", usage(&desk, name));
        let said = desk.goldrush(&format!("image resize {name} --size 7M"));
        assert!(said.code == 2 && said.err.contains("--shrink makes it smaller"), "{said:?}");
        desk.goldrush_ok(&format!("image resize {name} --size 7M --shrink"));
        let larger: Vec<u8> = bytes.iter().copied().chain(vec![0; 1 << 20]).collect();
        if name == "copy.raw" {
            assert!(std::fs::read(desk.path(name)).unwrap() == larger);
        } else {
            reads_as(&desk, name, &larger, true);
        }
        let said = desk.goldrush(&format!("image resize {name} --size 5M --shrink"));
        assert!(said.code == 1 && said.err.contains(&format!("{name} has data between bytes")), "{said:?}");
        assert_eq!(desk.goldrush(&format!("image resize {name} --size 1000 --shrink")).code, 2);
    }
    desk.goldrush_ok("image create child.vhd --parent dynamic.vhd");
    for (name, why) in [("child.vhd", "is a child"), ("dynamic.vhd", "is the parent of ./child.vhd")] {
        let said = desk.goldrush(&format!("image resize {name} --size 9M"));
        assert!(said.code == 1 && said.err.contains(why), "{said:?}");
    }
}
