//! `goldrush image`: what is created is what other programs read; what is converted has the same content; what is
//! wrong is one sentence.

use crate::cli::{Desk, Said, said};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// Runs another program, or says that nobody can be compared with.
fn other(program: &str, arguments: &[&str], folder: &Path) -> Option<Said> {
    match Command::new(program).current_dir(folder).args(arguments).output() {
        Ok(output) => Some(said(output)),
        Err(error) => {
            eprintln!("SKIPPED: {program} does not run ({error}), so nobody else read the image");
            None
        }
    }
}

fn qemu_raw(desk: &Desk, image: &str) -> Option<Vec<u8>> {
    let source = format!("driver=vpc,force_size_calc=current_size,file.filename={image}");
    let arguments = ["convert", "-O", "raw", "--image-opts", &source, "qemu.raw"];
    let done = other("qemu-img", &arguments, &desk.path(""))?;
    assert_eq!(done.code, 0, "{done:?}");
    let content = std::fs::read(desk.path("qemu.raw")).unwrap();
    std::fs::remove_file(desk.path("qemu.raw")).unwrap();
    Some(content)
}

/// A sparse raw disk with data here and there, its end among it.
fn raw_disk(desk: &Desk, name: &str, len: u64) -> Vec<u8> {
    let file = std::fs::File::create(desk.path(name)).unwrap();
    file.set_len(len).unwrap();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut places: Vec<u64> = (0..40).map(|index| index * 7919 * 512 % (len - 70_000)).collect();
    places.push(len - 512);
    for at in places {
        let size = ((seed >> 40) % 65_536 + 1).min(len - at);
        let bytes: Vec<u8> = (0..size)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        file.write_all_at(&bytes, at).unwrap();
    }
    std::fs::read(desk.path(name)).unwrap()
}

#[test]
fn a_raw_disk_survives_every_kind_of_vhd() {
    let desk = Desk::new();
    let content = raw_disk(&desk, "disk.raw", (70 << 20) + 7 * 512);
    for (name, flags) in [
        ("fixed", "--type fixed"),
        ("dynamic", ""),
        ("small", "--block-size 512K"),
        ("large", "--block-size 32M"),
    ] {
        desk.goldrush_ok(&format!("image convert disk.raw {name}.vhd {flags}"));
        assert!(desk.goldrush_ok(&format!("image check {name}.vhd")).contains("clean"));
        desk.goldrush_ok(&format!("image convert {name}.vhd back.raw --force"));
        assert!(std::fs::read(desk.path("back.raw")).unwrap() == content, "{name}");
        assert!(qemu_raw(&desk, &format!("{name}.vhd")).is_none_or(|read| read == content), "{name} by qemu");
    }
    let names = desk.names();
    assert!(!names.iter().any(|name| name.contains("part")), "{names:?}");
}

#[test]
fn zeros_and_holes_are_not_written() {
    let desk = Desk::new();
    let file = std::fs::File::create(desk.path("disk.raw")).unwrap();
    file.set_len(256 << 20).unwrap();
    file.write_all_at(&vec![0; 16 << 20], 8 << 20).unwrap();
    file.write_all_at(&[1; 4096], 100 << 20).unwrap();
    desk.goldrush_ok("image convert disk.raw disk.vhd");
    desk.goldrush_ok("image convert disk.vhd back.raw");
    let used = |name: &str| std::fs::metadata(desk.path(name)).unwrap().blocks() * 512;
    assert!(used("disk.vhd") < 256 << 10, "{} bytes for one page", used("disk.vhd"));
    assert!(used("back.raw") < 256 << 10, "{} bytes for one page", used("back.raw"));
    assert!(desk.goldrush_ok("image info disk.vhd").contains("1 of 128 allocated"));
}

#[test]
fn a_created_image_is_read_by_qemu_at_its_exact_size() {
    let desk = Desk::new();
    for (name, flags) in [("fixed", "--type fixed"), ("dynamic", ""), ("small", "--block-size 512K")] {
        desk.goldrush_ok(&format!("image create {name}.vhd --size 37M {flags}"));
        assert!(
            qemu_raw(&desk, &format!("{name}.vhd")).is_none_or(|read| read == vec![0; 37 << 20]),
            "{name}"
        );
    }
    let largest = desk.goldrush_ok("image create largest.vhd --size 2040G");
    assert_eq!(largest, "largest.vhd: 1.99 TiB\n");
    assert_eq!(desk.goldrush("image create beyond.vhd --size 2041G").code, 2);
}

#[test]
fn a_child_is_flattened_through_parents_in_other_folders() {
    let desk = Desk::new();
    let content = raw_disk(&desk, "disk.raw", 20 << 20);
    for folder in ["gold", "mid", "nodes"] {
        std::fs::create_dir(desk.path(folder)).unwrap();
    }
    desk.goldrush_ok("image convert disk.raw gold/golden.vhd");
    let golden = std::fs::read(desk.path("gold/golden.vhd")).unwrap();
    desk.goldrush_ok("image create mid/mid.vhd --parent gold/golden.vhd");
    desk.goldrush_ok("image create nodes/leaf.vhd --parent mid/mid.vhd --block-size 512K");
    desk.goldrush_ok("image convert nodes/leaf.vhd flat.raw");
    assert!(std::fs::read(desk.path("flat.raw")).unwrap() == content);
    let info = desk.goldrush_ok("image info nodes/leaf.vhd --json");
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let layer = |index: usize, key: &str| info["chain"][index][key].clone();
    assert_eq!(
        (layer(0, "type"), layer(1, "type"), layer(2, "type")),
        ("differencing".into(), "differencing".into(), "dynamic".into())
    );
    assert_eq!((layer(0, "block_size"), layer(0, "virtual_size")), ((512 << 10).into(), (20 << 20).into()));
    assert_eq!(info["chain"][0]["parent"]["candidates"][0], "../mid/mid.vhd");
    assert_eq!(info["chain_error"], serde_json::Value::Null);
    assert_eq!(std::fs::read(desk.path("gold/golden.vhd")).unwrap(), golden);
    // The whole tree may move, for children name their parents by relative paths.
    let moved = Desk::new();
    for folder in ["gold", "mid", "nodes"] {
        std::fs::rename(desk.path(folder), moved.path(folder)).unwrap();
    }
    moved.goldrush_ok("image convert nodes/leaf.vhd flat.raw");
    assert!(std::fs::read(moved.path("flat.raw")).unwrap() == content);
}

#[test]
fn a_raw_disk_is_raw_whatever_its_guest_wrote_to_its_head() {
    let desk = Desk::new();
    desk.goldrush_ok("image create forged.vhd --size 64M");
    let forged = std::fs::read(desk.path("forged.vhd")).unwrap();
    let mut disk = vec![0; 1 << 20];
    disk[..4096].copy_from_slice(&forged[..4096]);
    desk.write("disk.img", &disk);
    let info = desk.goldrush_ok("image info disk.img --json");
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (&info["chain"][0]["format"], &info["chain"][0]["virtual_size"]),
        (&"raw".into(), &(1 << 20).into())
    );
    desk.goldrush_ok("image convert disk.img copy.raw");
    assert!(std::fs::read(desk.path("copy.raw")).unwrap() == disk);
}

#[test]
fn nothing_is_replaced_unasked_and_failures_leave_no_file() {
    let desk = Desk::new();
    desk.write("disk.raw", vec![1; 1 << 20]);
    desk.goldrush_ok("image convert disk.raw disk.vhd");
    let before = desk.names();
    for (line, code, sentence) in [
        (
            "image convert disk.raw disk.vhd",
            1,
            "disk.vhd exists already: choose another name, or remove it first",
        ),
        (
            "image create disk.vhd --size 1M",
            1,
            "disk.vhd exists already: choose another name, or remove it first",
        ),
        (
            "image convert disk.vhd disk.vhd --force",
            1,
            "disk.vhd belongs to the source and cannot be its destination: choose another name",
        ),
        (
            "image convert none.raw new.vhd",
            1,
            "none.raw cannot be opened: No such file or directory (os error 2)",
        ),
        ("image create new.vhd --size 1000", 2, "size 1000 is no multiple of 512 bytes"),
        (
            "image create new.vhd --size 8M --block-size 3M",
            2,
            "block size 3145728 is not a power of two from 512 KiB to 32 MiB: choose 2 MiB",
        ),
        (
            "image create new.vhd --size 8M --type fixed --block-size 2M",
            2,
            "--block-size is for dynamic disks: a fixed one has no blocks",
        ),
        (
            "image create new.vhd --parent disk.raw",
            1,
            "disk.raw is a raw image, and only a VHD or VHDX can be a parent: run goldrush image convert disk.raw golden.vhd",
        ),
        (
            "image convert disk.raw new.img --type fixed",
            2,
            "--type and --block-size are for VHDs: add --format vhd or vhdx",
        ),
        (
            "image convert disk.raw new.vhd --format raw",
            2,
            "new.vhd would be taken for a VHD by its name: give a raw image another ending",
        ),
        (
            "image convert disk.raw no/new.vhd",
            1,
            "no/new.vhd: creating a file beside it failed: No such file or directory (os error 2)",
        ),
    ] {
        let said = desk.goldrush(line);
        assert_eq!(
            (said.code, said.err.as_str()),
            (code, format!("goldrush: {sentence}\n").as_str()),
            "{line}"
        );
    }
    assert_eq!(desk.names(), before);
    desk.goldrush_ok("image convert disk.raw disk.vhd --force --type fixed");
}

#[test]
fn check_tells_clean_from_damaged_from_unknown_and_repairs_footers() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    desk.goldrush_ok("image create child.vhd --parent golden.vhd");
    desk.write("disk.raw", vec![0; 512]);
    assert_eq!(desk.goldrush("image check child.vhd").code, 0);
    assert_eq!(desk.goldrush("image check disk.raw").out, "disk.raw: raw, nothing to check\n");
    assert_eq!(desk.goldrush("image check none.vhd").code, 2);

    let child = std::fs::File::options().write(true).open(desk.path("child.vhd")).unwrap();
    child.write_all_at(&[0; 512], child.metadata().unwrap().len() - 512).unwrap();
    let said = desk.goldrush("image check child.vhd");
    assert!(said.code == 1 && said.out.contains("child.vhd: warning: "), "{said:?}");
    let report: serde_json::Value =
        serde_json::from_str(&desk.goldrush("image check child.vhd --json").out).unwrap();
    assert_eq!(
        (&report["clean"], &report["chain"][0]["findings"][0]["severity"]),
        (&false.into(), &"warning".into())
    );
    assert_eq!(desk.goldrush("image check child.vhd --repair").code, 0);
    assert_eq!(desk.goldrush("image check child.vhd").code, 0);

    std::fs::remove_file(desk.path("golden.vhd")).unwrap();
    let said = desk.goldrush("image check child.vhd");
    assert!(said.code == 1 && said.out.contains("its parent was not found at"), "{said:?}");
    assert_eq!(desk.goldrush("image info child.vhd").code, 1);
}

#[test]
fn results_are_one_json_object_when_asked() {
    let desk = Desk::new();
    let json = |line: &str| -> serde_json::Value { serde_json::from_str(&desk.goldrush_ok(line)).unwrap() };
    let made = json("image create golden.vhd --size 8M --json");
    assert_eq!(
        (&made["path"], &made["format"], &made["parent"]),
        (&"golden.vhd".into(), &"vhd".into(), &().into())
    );
    let made = json("image create child.vhd --parent golden.vhd --json");
    assert_eq!((&made["parent"], &made["virtual_size"]), (&"golden.vhd".into(), &(8 << 20).into()));
    let copied = json("image convert child.vhd flat.raw --json");
    assert_eq!((&copied["format"], &copied["file_size"]), (&"raw".into(), &(8 << 20).into()));
    let resized = json("image resize flat.raw --size 9M --json");
    assert_eq!(resized["virtual_size"], 9 << 20);
}

#[test]
fn completions_name_every_subcommand() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = desk.goldrush_ok(&format!("completions {shell}"));
        for word in ["serve", "convert", "check", "golden-cache"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
}

#[test]
fn manual_pages_are_written_for_every_subcommand() {
    let desk = Desk::new();
    desk.goldrush_ok("man pages");
    let pages = crate::cli::names(&desk.path("pages"));
    for name in ["goldrush.1", "goldrush-serve.1", "goldrush-image.1", "goldrush-image-check.1"] {
        assert!(pages.contains(&name.to_owned()), "{name} of {pages:?}");
    }
    let page = std::fs::read_to_string(desk.path("pages/goldrush-image-convert.1")).unwrap();
    assert!(page.contains(".SH EXAMPLES") && page.contains("goldrush image convert debian.raw"), "{page}");
}

#[test]
fn what_another_process_holds_is_left_alone_with_a_code_of_its_own() {
    let desk = Desk::new();
    desk.goldrush_ok("image create disk.vhd --size 8M");
    let before = std::fs::read(desk.path("disk.vhd")).unwrap();
    let held = std::fs::File::options().write(true).open(desk.path("disk.vhd")).unwrap();
    held.lock().unwrap();
    for line in ["image check disk.vhd", "image check disk.vhd --repair", "image convert disk.vhd disk.raw"] {
        let said = desk.goldrush(line);
        assert!(said.code == 3 && said.err.contains("disk.vhd is in use by another process"), "{said:?}");
        // Where the kernel names the holder it is this test.
        let named = said.err.contains("pid ");
        assert!(!named || said.err.contains(&format!("pid {}", std::process::id())), "{said:?}");
    }
    let info: serde_json::Value =
        serde_json::from_str(&desk.goldrush_ok("image info disk.vhd --json")).unwrap();
    assert_eq!(info["chain"][0]["in_use"], true);
    assert_eq!(std::fs::read(desk.path("disk.vhd")).unwrap(), before);
    assert_eq!(desk.names(), ["disk.vhd"]);
}

#[test]
fn what_a_killed_convert_left_is_removed_by_the_next_one() {
    let desk = Desk::new();
    desk.write("disk.raw", vec![1; 1 << 20]);
    let left = ".disk.vhd.0123456789abcdef0123456789abcdef.part";
    let written = ".disk.vhd.00000000000000000000000000000000.part";
    desk.write(left, "half a disk");
    desk.write(written, "somebody writes");
    let held = std::fs::File::options().write(true).open(desk.path(written)).unwrap();
    held.lock().unwrap();
    desk.goldrush_ok("image convert disk.raw disk.vhd");
    assert_eq!(desk.names(), [written, "disk.raw", "disk.vhd"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let desk = Desk::new();
    desk.goldrush_ok("image create disk.vhd --size 8M");
    for line in ["completions bash", "image info disk.vhd", "image check disk.vhd"] {
        let program = env!("CARGO_BIN_EXE_goldrush");
        // The reader closes the pipe before the program has started to write.
        let script = format!("{{ sleep 0.2; {program} {line}; echo $? >&2; }} | exec true");
        let done = other("sh", &["-c", &script], &desk.path("")).unwrap();
        assert_eq!(done.err, "0\n", "{line}");
    }
}
