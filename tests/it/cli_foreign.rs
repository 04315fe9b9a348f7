//! Images of other programs: read through `qemu-img`, refused with a sentence where that is not possible.

use crate::cli::{Desk, said};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

/// A raw disk with data at both ends, and its copy in another format. False where nobody can make one.
fn foreign(desk: &Desk, format: &str) -> bool {
    let file = std::fs::File::create(desk.path("disk.raw")).unwrap();
    file.set_len(50 << 20).unwrap();
    file.write_all_at(&[7; 70_000], 4096).unwrap();
    file.write_all_at(&[9; 512], (50 << 20) - 512).unwrap();
    let made = Command::new("qemu-img")
        .current_dir(desk.path(""))
        .args(["convert", "-O", format, "disk.raw", &format!("disk.{format}")])
        .output();
    match made {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            eprintln!("SKIPPED: qemu-img is not installed, so no {format} file was read");
            return false;
        }
    }
    true
}

#[test]
fn files_of_other_programs_are_converted_and_stay_sparse() {
    let desk = Desk::new();
    for format in ["qcow2", "vmdk", "vdi"] {
        if !foreign(&desk, format) {
            return;
        }
        let content = std::fs::read(desk.path("disk.raw")).unwrap();
        let said = desk.goldrush_ok(&format!("image convert disk.{format} {format}.vhd"));
        assert_eq!(said, format!("{format}.vhd: vhd, 50 MiB\n"));
        desk.goldrush_ok(&format!("image convert {format}.vhd back.raw --force"));
        desk.goldrush_ok(&format!("image convert disk.{format} copy.raw --force"));
        for copy in ["back.raw", "copy.raw"] {
            assert!(std::fs::read(desk.path(copy)).unwrap() == content, "{format} to {copy}");
            let used = std::fs::metadata(desk.path(copy)).unwrap().blocks() * 512;
            assert!(used < 1 << 20, "{copy} takes {used} bytes");
        }
        std::fs::rename(desk.path(&format!("disk.{format}")), desk.path("nameless")).unwrap();
        desk.goldrush_ok(&format!(
            "image convert nameless fixed.vhd --source-format {format} --type fixed --force"
        ));
        desk.goldrush_ok("image convert fixed.vhd back.raw --force");
        assert!(std::fs::read(desk.path("back.raw")).unwrap() == content, "{format}, fixed");
    }
    assert!(!desk.names().iter().any(|name| name.ends_with(".part")), "{:?}", desk.names());
}

#[test]
fn a_killed_convert_leaves_no_name_and_the_next_one_cleans_up() {
    let desk = Desk::new();
    desk.write("disk.raw", vec![0xA5; 96 << 20]);
    let mut killed = 0;
    for round in 0..6_u64 {
        let mut child = desk.command(&["image", "convert", "disk.raw", "disk.vhd"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5 + round * 15));
        let early = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        child.wait().unwrap();
        if early {
            killed += 1;
            assert!(!desk.path("disk.vhd").exists(), "round {round}: half a disk under its name");
        } else {
            std::fs::remove_file(desk.path("disk.vhd")).unwrap();
        }
    }
    assert!(killed > 0, "no convert was killed in time");
    // A ring of the killed process may hold its file a little longer.
    for _ in 0..50 {
        desk.goldrush_ok("image convert disk.raw disk.vhd --force");
        if desk.names() == ["disk.raw", "disk.vhd"] {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(desk.names(), ["disk.raw", "disk.vhd"]);
    assert!(desk.goldrush_ok("image check disk.vhd").contains("clean"));
}

#[test]
fn what_qemu_img_cannot_read_leaves_nothing_but_a_sentence() {
    let desk = Desk::new();
    desk.write("disk.qcow2", "this is no QCOW2 file");
    let lines = [
        ("image convert none.qcow2 new.vhd", 1, "none.qcow2: opening failed: No such file"),
        ("image info disk.qcow2", 1, "disk.qcow2 is a qcow2 file by its name, which only convert reads: run"),
        (
            "image convert disk.qcow2 disk.qcow2 --force",
            2,
            "those are not written: end the name in .vhd, .vhdx or .raw",
        ),
    ];
    for (line, code, sentence) in lines {
        let said = desk.goldrush(line);
        assert!(said.code == code && said.err.contains(sentence), "{line}: {said:?}");
    }
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        let said = desk.goldrush("image convert disk.qcow2 new.vhd");
        assert!(said.code == 1 && said.err.contains("disk.qcow2: qemu-img could not read it: "), "{said:?}");
        assert_eq!(said.err.lines().count(), 1, "{said:?}");
    }
    let output =
        desk.command(&["image", "convert", "disk.qcow2", "new.vhd"]).env("PATH", desk.path("")).output();
    let said = said(output.unwrap());
    let sentence = "goldrush: disk.qcow2 is a qcow2 file, which goldrush reads through qemu-img, and that is not installed: \
                    install it (qemu-utils), or convert the file to raw where it is\n";
    assert_eq!((said.code, said.err.as_str()), (1, sentence));
    assert_eq!(desk.names(), ["disk.qcow2"]);
}
