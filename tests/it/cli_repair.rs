//! `goldrush image check --repair`: says what it will do, keeps a backup, never makes it worse, and other programs
//! read the result.

use crate::cli::Desk;
use crate::other_programs::{installed, qemu_reads_vhd, seven_zip_reads};
use crate::vhd_corpus::{rows, unpack_into};
use sha2::{Digest, Sha256};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

/// A dynamic disk with some blocks, and its content.
fn disk(desk: &Desk) -> Vec<u8> {
    let mut content = vec![0; 20 << 20];
    for (index, byte) in content.iter_mut().enumerate() {
        if index / (1 << 20) % 3 != 1 {
            *byte = (index / 4096 % 251) as u8;
        }
    }
    desk.write("disk.raw", &content);
    desk.goldrush_ok("image convert disk.raw disk.vhd --block-size 512K");
    content
}

fn change(desk: &Desk, name: &str, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(desk.path(name)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn len(desk: &Desk, name: &str) -> u64 {
    std::fs::metadata(desk.path(name)).unwrap().len()
}

#[track_caller]
fn reads_as(desk: &Desk, name: &str, content: &[u8]) {
    desk.goldrush_ok(&format!("image convert {name} back.raw --force"));
    assert!(std::fs::read(desk.path("back.raw")).unwrap() == content, "{name} by goldrush");
    if installed("7zz") {
        assert!(seven_zip_reads(&desk.path(name), "vhd") == content, "{name} by 7-Zip");
    }
    if installed("qemu-img") {
        assert!(qemu_reads_vhd(&desk.path(name)) == content, "{name} by qemu");
    }
}

#[test]
fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let desk = Desk::new();
    let content = disk(&desk);
    let footer = len(&desk, "disk.vhd") - 512;
    change(&desk, "disk.vhd", footer, &[0; 512]);
    let before = std::fs::read(desk.path("disk.vhd")).unwrap();
    let said = desk.goldrush("image check disk.vhd --repair --dry-run");
    let step = format!(
        "disk.vhd: step 1: the footer at the end of the file (byte {footer}) is lost; it is written again from the copy at the start\n\
         disk.vhd: nothing was changed\n"
    );
    assert!(said.code == 1 && said.out.starts_with(&step), "{said:?}");
    assert!(std::fs::read(desk.path("disk.vhd")).unwrap() == before);
    assert_eq!(desk.names(), ["disk.raw", "disk.vhd"]);

    let report = desk.goldrush_ok("image check disk.vhd --repair --json");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["clean"], &report["repair"]["done"]), (&true.into(), &true.into()));
    assert_eq!(report["repair"]["backup"], "disk.vhd.repair-backup-1");
    reads_as(&desk, "disk.vhd", &content);
    assert!(desk.goldrush_ok("image check disk.vhd --repair").contains("nothing to repair"));
}

#[test]
fn a_loss_needs_consent_and_a_backup_undoes_it() {
    let desk = Desk::new();
    let content = disk(&desk);
    // Two entries of the table point into nothing: which block is whose nobody knows.
    change(&desk, "disk.vhd", 4096, &[0, 0, 0, 1]);
    change(&desk, "disk.vhd", 4096 + 16, &[0x7F, 0, 0, 1]);
    let damaged = std::fs::read(desk.path("disk.vhd")).unwrap();
    let said = desk.goldrush("image check disk.vhd");
    assert!(
        said.code == 1 && said.out.starts_with("disk.vhd: error: block 0 (byte 512) lies outside"),
        "{said:?}"
    );
    let said = desk.goldrush("image check disk.vhd --repair");
    assert!(
        said.code == 1 && said.out.contains("loses data: bytes 0 to 524288 of the disk read as zeros"),
        "{said:?}"
    );
    assert!(said.out.contains("say --accept-loss"), "{said:?}");
    assert!(std::fs::read(desk.path("disk.vhd")).unwrap() == damaged);

    let done = desk.goldrush_ok("image check disk.vhd --repair --accept-loss");
    assert!(done.contains("--restore-backup disk.vhd.repair-backup-1 undoes it"), "{done}");
    assert!(done.contains("clean"), "{done}");
    let mut expected = content.clone();
    for block in [0, 4] {
        expected[block << 19..(block + 1) << 19].fill(0);
    }
    reads_as(&desk, "disk.vhd", &expected);

    let restore = "image check disk.vhd --restore-backup disk.vhd.repair-backup-1";
    assert_eq!(desk.goldrush(restore).code, 1);
    assert!(std::fs::read(desk.path("disk.vhd")).unwrap() == damaged);
    // What was used since is not restored over.
    desk.goldrush_ok("image check disk.vhd --repair --accept-loss");
    change(&desk, "disk.vhd", 4096, &[0, 0, 0, 9]);
    let said = desk.goldrush(restore);
    assert!(said.code == 1 && said.err.contains("neither as before nor as after the repair"), "{said:?}");
    desk.write("torn", "{\"format\":");
    let said = desk.goldrush("image check disk.vhd --restore-backup torn");
    assert!(said.code == 1 && said.err.contains("torn is not a whole repair backup"), "{said:?}");
}

#[test]
fn two_entries_for_one_place_both_keep_what_they_read() {
    let desk = Desk::new();
    let content = disk(&desk);
    let file = std::fs::read(desk.path("disk.vhd")).unwrap();
    change(&desk, "disk.vhd", 4096 + 4, &file[4096..4100]);
    desk.goldrush_ok("image check disk.vhd --repair");
    let mut expected = content;
    expected.copy_within(..1 << 19, 1 << 19);
    reads_as(&desk, "disk.vhd", &expected);
}

#[test]
fn what_cannot_be_repaired_is_said_and_left_alone() {
    let desk = Desk::new();
    desk.goldrush_ok("image create disk.vhd --size 8M --type fixed");
    change(&desk, "disk.vhd", 8 << 20, &[0; 512]);
    let before = std::fs::read(desk.path("disk.vhd")).unwrap();
    let said = desk.goldrush("image check disk.vhd --repair");
    assert!(
        said.code == 1 && said.out.contains("disk.vhd: no repair: the footer at the end of the file"),
        "{said:?}"
    );
    assert!(std::fs::read(desk.path("disk.vhd")).unwrap() == before);
    assert_eq!(desk.names(), ["disk.vhd"]);
}

#[test]
fn vhdx_files_of_the_corpus_are_repaired_from_their_copies_and_their_logs() {
    let desk = Desk::new();
    unpack_into(&desk.path("corpus"));
    let mut repaired = 0;
    for row in rows("vhdx").iter().filter(|row| !row.sha.is_empty() && row.verdict != "reject") {
        let file = format!("corpus/{}", row.file);
        if row.size.is_none_or(|size| size > 1 << 30)
            || desk.goldrush(&format!("image check {file}")).code != 1
        {
            continue;
        }
        let said = desk.goldrush(&format!("image check {file} --repair"));
        let still = desk.goldrush(&format!("image check {file} --json"));
        let report: serde_json::Value = serde_json::from_str(&still.out).unwrap();
        if !report["chain_error"].is_null() || said.out.contains(": no repair: ") {
            continue;
        }
        assert!(said.code == 0 && said.out.contains("repaired; "), "{file}: {said:?}");
        desk.goldrush_ok(&format!("image convert {file} back.raw --force"));
        let bytes = Sha256::digest(std::fs::read(desk.path("back.raw")).unwrap());
        let sha: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(sha == row.sha || sha == row.alt_sha, "{file} reads differently");
        repaired += 1;
    }
    println!("{repaired} VHDX files repaired");
    assert!(repaired >= 4, "{repaired}");
}

#[test]
fn a_killed_repair_never_makes_it_worse() {
    let desk = Desk::new();
    let content = disk(&desk);
    let good = std::fs::read(desk.path("disk.vhd")).unwrap();
    let mut killed = 0;
    for round in 0..24_u64 {
        let mut damaged = good.clone();
        let end = damaged.len() - 512;
        damaged[end..].fill(0);
        damaged[600] ^= 4;
        // Two entries for one place: the second block gets a copy.
        damaged.copy_within(4096..4100, 4100);
        desk.write("disk.vhd", &damaged);
        let mut child = desk
            .command(&["image", "check", "disk.vhd", "--repair"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round * 2));
        killed += u32::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        child.wait().unwrap();
        let done = desk.goldrush("image check disk.vhd --repair");
        assert!(done.code == 0, "round {round}: {done:?}");
        desk.goldrush_ok("image convert disk.vhd back.raw --force");
        let back = std::fs::read(desk.path("back.raw")).unwrap();
        let undamaged =
            |block: usize| content[block << 19..(block + 1) << 19] == back[block << 19..(block + 1) << 19];
        assert!((0..40).filter(|block| *block != 1).all(undamaged), "round {round}");
    }
    assert!(killed > 0, "no repair was killed in time");
}
