//! VHDX images through the program, read by other programs: `qemu-img` (512-byte sectors, no parents) and `7zz`.

use crate::blocking::write_new;
use crate::cli::{Desk, Said, said};
use crate::other_programs::{installed, qemu_finds_no_errors, qemu_reads_vhdx, seven_zip_reads};
use crate::running::start_config;
use goldrush::units::SectorCount;
use goldrush::vhd::create::{NewDisk, NewKind, ParentRef, create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

/// Ends inside a block. 7-Zip 26.02 opens no disk that is an odd number of logical sectors.
const BYTES: u64 = (70 << 20) + 8192;

fn run(desk: &Desk, arguments: &[&str]) -> Said {
    said(desk.command(arguments).output().unwrap())
}

fn done(desk: &Desk, arguments: &[&str]) -> String {
    let said = run(desk, arguments);
    assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
    said.out
}

/// A raw disk with data here and there; its bytes.
fn raw(desk: &Desk) -> Vec<u8> {
    let file = File::create(desk.path("disk.raw")).unwrap();
    file.set_len(BYTES).unwrap();
    for (index, at) in [0, 777 << 12, 33 << 20, (64 << 20) - 512, BYTES - 512].into_iter().enumerate() {
        file.write_all_at(&[index as u8 + 1; 512], at).unwrap();
    }
    std::fs::read(desk.path("disk.raw")).unwrap()
}

#[test]
fn qemu_and_7zip_read_what_convert_wrote_and_it_comes_back() {
    let desk = Desk::new();
    let content = raw(&desk);
    let (qemu, seven_zip) = (installed("qemu-img"), installed("7zz"));
    for (name, options) in [
        ("usual", &[][..]),
        ("small", &["--block-size", "1M"]),
        ("large", &["--block-size", "256M"]),
        ("fixed", &["--type", "fixed"]),
        ("four-k", &["--logical-sector-size", "4096"]),
    ] {
        let image = format!("{name}.vhdx");
        done(&desk, &[&["image", "convert", "disk.raw", &image], options].concat());
        let clean = done(&desk, &["image", "check", &image]);
        assert!(clean.contains("clean"), "{clean}");
        let path = desk.path(&image);
        // qemu has no sectors of 4096 bytes.
        if qemu && name != "four-k" {
            qemu_finds_no_errors(&path, &[]);
            assert!(qemu_reads_vhdx(&path) == content, "qemu reads {image} differently");
        }
        if seven_zip {
            assert!(seven_zip_reads(&path, "vhdx") == content, "7-Zip reads {image} differently");
        }
        let back = format!("{name}.raw");
        done(&desk, &["image", "convert", &image, &back]);
        assert!(std::fs::read(desk.path(&back)).unwrap() == content, "{image} comes back differently");
        done(&desk, &["image", "convert", &image, &format!("{name}.vhd")]);
        done(&desk, &["image", "convert", &format!("{name}.vhd"), &format!("{name}-2.raw")]);
        assert!(std::fs::read(desk.path(&format!("{name}-2.raw"))).unwrap() == content, "{image} as VHD");
    }
    let info = done(&desk, &["image", "info", "four-k.vhdx", "--json"]);
    assert!(info.contains("\"logical_sector_size\": 4096"), "{info}");
    // A disk that was made for 4096 bytes stays one.
    done(&desk, &["image", "convert", "four-k.vhdx", "again.vhdx"]);
    assert!(done(&desk, &["image", "info", "again.vhdx"]).contains("4096 bytes, 4096"));
}

#[test]
fn new_images_are_sound_and_children_are_their_parents() {
    let desk = Desk::new();
    let content = raw(&desk);
    done(&desk, &["image", "convert", "disk.raw", "gold.vhdx"]);
    done(&desk, &["image", "create", "empty.vhdx", "--size", "64T"]);
    done(&desk, &["image", "create", "fixed.vhdx", "--size", "1G", "--type", "fixed"]);
    for (child, parent) in [("child.vhdx", "gold.vhdx"), ("grandchild.vhdx", "child.vhdx")] {
        done(&desk, &["image", "create", child, "--parent", parent]);
        assert!(done(&desk, &["image", "check", child]).contains("clean"));
        if installed("7zz") {
            assert!(seven_zip_reads(&desk.path(child), "vhdx") == content, "7-Zip reads {child} differently");
        }
    }
    done(&desk, &["image", "convert", "grandchild.vhdx", "flat.raw"]);
    assert!(std::fs::read(desk.path("flat.raw")).unwrap() == content);
    if installed("qemu-img") {
        for image in ["empty.vhdx", "fixed.vhdx"] {
            qemu_finds_no_errors(&desk.path(image), &[]);
        }
    }
    // The golden image is given new data: it is no longer the one its children know.
    done(&desk, &["image", "convert", "disk.raw", "gold.vhdx", "--force"]);
    let refused = run(&desk, &["image", "convert", "grandchild.vhdx", "no.raw"]);
    assert!(refused.code == 1 && refused.err.contains("should have the id"), "{refused:?}");
}

#[test]
fn what_does_not_go_together_is_said_in_one_sentence() {
    let desk = Desk::new();
    for create in [
        &["gold.vhdx", "--size", "1G"][..],
        &["gold.vhd", "--size", "1G"],
        &["four-k.vhdx", "--size", "1G", "--logical-sector-size", "4096"],
    ] {
        done(&desk, &[&["image", "create"], create].concat());
    }
    for (arguments, word) in [
        (&["create", "a.vhd", "--parent", "gold.vhdx"][..], "must its child be"),
        (&["create", "a.vhdx", "--parent", "gold.vhd"], "must its child be"),
        (&["create", "a.img", "--parent", "gold.vhdx"], "must its child be"),
        (&["create", "a.vhdx", "--parent", "gold.vhdx", "--logical-sector-size", "4096"], "logical sector"),
        (&["create", "a.vhd", "--size", "1G", "--logical-sector-size", "4096"], "512 bytes"),
        (&["create", "a.vhdx", "--size", "65T"], "64 TiB"),
        (&["create", "a.vhdx", "--size", "1G", "--block-size", "512K"], "1 MiB to 256 MiB"),
        (&["create", "a.vhd", "--size", "1G", "--format", "vhdx"], "called otherwise"),
        (&["create", "a.img", "--size", "1G", "--format", "vhdx"], "let it end in .vhdx"),
        (&["create", "a.vhdx", "--size", "1G", "--logical-sector-size", "1024"], "512 or 4096"),
        (&["convert", "gold.vhdx", "a.img", "--format", "vhdx"], "let it end in .vhdx"),
        (&["convert", "gold.vhdx", "a.vhd", "--format", "vhdx"], "another ending"),
        (&["convert", "gold.vhdx", "a.vhd", "--logical-sector-size", "4096"], "--format vhdx"),
    ] {
        let refused = run(&desk, &[&["image"], arguments].concat());
        assert!(refused.code == 2 && refused.err.contains(word), "{arguments:?}: {refused:?}");
    }
}

#[test]
fn a_unit_shows_the_sectors_its_disk_was_made_for() {
    let desk = Desk::new();
    done(&desk, &["image", "create", "four-k.vhdx", "--size", "1G", "--logical-sector-size", "4096"]);
    done(&desk, &["image", "create", "usual.vhdx", "--size", "1G"]);
    for (image, block_size, wanted) in [("four-k", 512, 4096), ("usual", 4096, 512)] {
        let unit = format!("lun = 0\npath = \"{image}.vhdx\"\nreadonly = true\nblock_size = {block_size}\n");
        let config = format!(
            "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"iqn.2026-11.a:b\"\n[[target.lun]]\n{unit}"
        );
        desk.write("c.toml", config);
        let refused = run(&desk, &["serve", "--config", "c.toml"]);
        let sentence = format!("use block_size {wanted}");
        assert!(refused.code == 2 && refused.err.contains(&sentence), "{image}: {refused:?}");
    }
    // What is not said is what the disk says; what is said of the medium must fit it.
    let unit = "lun = 0\npath = \"four-k.vhdx\"\nphysical_block_size = 512\n";
    let config = "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"iqn.2026-11.a:b\"\n[[target.lun]]\n";
    desk.write("c.toml", format!("{config}{unit}"));
    let refused = run(&desk, &["serve", "--config", "c.toml"]);
    let sentence = "physical_block_size 512 is less than block_size 4096";
    assert!(refused.code == 2 && refused.err.contains(sentence), "{refused:?}");
    desk.write("c.toml", format!("{config}lun = 0\npath = \"four-k.vhdx\"\n"));
    drop(start_config(&desk, ""));
}

#[test]
fn a_chain_has_one_format() {
    let desk = Desk::new();
    done(&desk, &["image", "create", "gold.vhdx", "--size", "1G"]);
    let parent = ParentRef {
        unique_id: Uuid::from_u128(1),
        timestamp: 7,
        relative: "gold.vhdx".to_owned(),
        absolute: None,
    };
    let kind = NewKind::Differencing { block_size: 2 << 20, parent };
    let sectors = SectorCount((1 << 30) / 512);
    let child = create(&NewDisk { kind, sectors, unique_id: Uuid::from_u128(2), timestamp: 7 }).unwrap();
    write_new(&mut File::create(desk.path("child.vhd")).unwrap(), &child);
    let refused = run(&desk, &["image", "convert", "child.vhd", "out.raw"]);
    let sentence = "child.vhd is a VHD and its parent";
    assert!(
        refused.code == 1 && refused.err.contains(sentence) && refused.err.contains("a VHDX"),
        "{refused:?}"
    );
}
