//! Full disks and a failed flush for real: the program, the kernel, file systems that run out of space.
//!
//! Knows how to fill a tmpfs, and that a file system in a file on a full one fails its flushes. Does not know what the
//! simulator can do better: each operation, each error (`faults`).
//!
//! Each test mounts in a mount namespace of its own, in a process of its own. It needs root, and says so where it is not.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, start_config};

const NODE: &str = "iqn.2026-11.io.goldrush:node";
const OTHER: &str = "iqn.2026-11.io.goldrush:other";
const SPACE_ALLOCATION_FAILED: [u8; 3] = [7, 0x27, 7];
const WRITE_PROTECTED: [u8; 3] = [7, 0x27, 0];
const WRITE_ERROR: [u8; 3] = [3, 0x0C, 0];
const RUN: u32 = 64;

/// Runs an ignored test of this file in a namespace of its own. What it does elsewhere is nothing.
fn in_a_namespace(test: &str) {
    let me = std::env::current_exe().unwrap();
    let probe = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: mounting needs root: nothing was tried on a file system that is really full");
        return;
    }
    let status = Command::new("unshare")
        .arg("-m")
        .arg(me)
        .args([&format!("real_faults::{test}"), "--exact", "--ignored", "--nocapture"])
        .env("GOLDRUSH_NAMESPACE", "1")
        .status();
    assert!(status.unwrap().success(), "{test}");
}

fn is_outside() -> bool {
    let outside = std::env::var_os("GOLDRUSH_NAMESPACE").is_none();
    if outside {
        eprintln!("SKIPPED: this is run by another test, in a namespace of its own");
    }
    outside
}

fn must(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// All the space there is.
fn fill_up(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for piece in [1 << 20, 4096] {
        let bytes = vec![0xF1; piece];
        while file.write_all(&bytes).is_ok() {}
    }
}

/// A node whose image lies in `folder`, and another one beside it.
fn desk_with(desk: &Desk, folder: &str, format: &str) {
    desk.goldrush_ok(&format!("image create golden.{format} --size 256M"));
    desk.goldrush_ok(&format!("image create {folder}/node.{format} --parent golden.{format}"));
    desk.goldrush_ok(&format!("image create other.{format} --parent golden.{format}"));
    let target = |name: &str, path: &str| {
        format!("[[target]]\nname = \"{name}\"\n[[target.lun]]\nlun = 0\npath = \"{path}.{format}\"\n")
    };
    let head = "listen = [\"127.0.0.1:0\"]\nimage_roots = [\"/\"]\n";
    let (node, other) = (target(NODE, &format!("{folder}/node")), target(OTHER, "other"));
    desk.write("c.toml", format!("{head}{node}{other}"));
}

fn bytes(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(RUN as usize * 512 / 8)
}

/// Writes a run; the sense it ended with.
fn write(initiator: &mut RawInitiator, run: u32, value: u64) -> Option<[u8; 3]> {
    let mut cdb = [0x2A, 0, 0, 0, 0, 0, 0, 0, RUN as u8, 0];
    cdb[2..6].copy_from_slice(&(run * RUN).to_be_bytes());
    initiator.attempt(&cdb, &bytes(value), 0).2
}

fn flush(initiator: &mut RawInitiator) -> Option<[u8; 3]> {
    initiator.attempt(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0).2
}

fn assert_reads(initiator: &mut RawInitiator, run: u32, value: u64) {
    assert!(initiator.read(run * RUN, RUN as u16) == bytes(value), "run {run} is not {value:#x}");
}

/// The other node works as if nothing were.
fn assert_other_goes_on(server: &Running, value: u64) {
    let mut other = server.log_in(OTHER, 1);
    assert_eq!((write(&mut other, 7, value), flush(&mut other)), (None, None));
    assert_reads(&mut other, 7, value);
}

#[test]
fn a_full_file_system_stops_only_the_writes_that_need_space() {
    in_a_namespace("full_file_system");
}

#[test]
#[ignore = "run by another test in a namespace of its own"]
fn full_file_system() {
    if is_outside() {
        return;
    }
    for format in ["vhd", "vhdx"] {
        let desk = Desk::new();
        desk.write("disk/.here", "");
        must(&format!("mount -t tmpfs -o size=24M tmpfs {}", desk.path("disk").display()));
        desk_with(&desk, "disk", format);
        desk.write("disk/reserve", vec![1; 8 << 20]);
        let Some(server) = start_config(&desk, "") else { return };
        let mut node = server.log_in(NODE, 1);
        let (mut run, mut told) = (0, None);
        while told.is_none() {
            told = write(&mut node, run, u64::from(run) + 1);
            run += 1;
            assert!(run < 4096, "more was written than fits");
        }
        let written = run - 1;
        assert!(written > 50 && told == Some(SPACE_ALLOCATION_FAILED), "{written} runs, then {told:x?}");
        // Still full: the same answer, and what is there can be read and written again.
        assert_eq!(write(&mut node, 4000, 1), Some(SPACE_ALLOCATION_FAILED));
        assert_eq!((write(&mut node, 3, 0x3333), flush(&mut node)), (None, None));
        assert_other_goes_on(&server, 0x77);
        std::fs::remove_file(desk.path("disk/reserve")).unwrap();
        // Whoever comes first may meet the last of it.
        let again = (0..2).filter_map(|_| write(&mut node, 4000, 0x4444)).count();
        assert!(again < 2, "{format}: space has come back and nobody noticed");
        assert_eq!(flush(&mut node), None);
        for run in (0..written).filter(|run| *run != 3) {
            assert_reads(&mut node, run, u64::from(run) + 1);
        }
        assert_reads(&mut node, 3, 0x3333);
        assert_reads(&mut node, 4000, 0x4444);
        server.stop();
        desk.goldrush_ok(&format!("image check disk/node.{format}"));
        println!("{format}: {written} runs of 32 KiB, then full; freed, went on, clean");
    }
}

#[test]
fn a_flush_that_really_fails_protects_the_image_until_it_is_checked() {
    in_a_namespace("failed_flush");
}

/// A file system in a sparse file: the kernel promises space that the tmpfs below does not have.
#[test]
#[ignore = "run by another test in a namespace of its own"]
fn failed_flush() {
    if is_outside() {
        return;
    }
    for format in ["vhd", "vhdx"] {
        let desk = Desk::new();
        desk.write("below/.here", "");
        let (below, disk) = (desk.path("below"), desk.path("below/disk"));
        must(&format!("mount -t tmpfs -o size=48M tmpfs {}", below.display()));
        std::fs::create_dir(&disk).unwrap();
        let device = desk.path("below/device");
        must(&format!("truncate -s 300M {}", device.display()));
        must(&format!("mkfs.ext4 -q -O ^has_journal {}", device.display()));
        must(&format!("mount -o loop {} {}", device.display(), disk.display()));
        desk_with(&desk, "below/disk", format);
        let Some(server) = start_config(&desk, "") else { return };
        let mut node = server.log_in(NODE, 1);
        for run in 0..8 {
            assert_eq!(write(&mut node, run, 0xA0), None);
        }
        assert_eq!(flush(&mut node), None);
        fill_up(&desk.path("below/filler"));
        let taken = (0..640).take_while(|run| write(&mut node, 100 + run, 0xB0).is_none()).count();
        assert!(taken > 0);
        assert_eq!(flush(&mut node), Some(WRITE_ERROR), "{format}");
        // Protected, whatever the kernel says of the next flush.
        assert_eq!(write(&mut node, 1, 0xC0), Some(WRITE_PROTECTED));
        assert_eq!(write(&mut node, 3000, 0xC0), Some(WRITE_PROTECTED));
        assert_eq!(flush(&mut node), Some(WRITE_ERROR));
        assert_reads(&mut node, 1, 0xA0);
        assert_other_goes_on(&server, 0x78);
        server.kill();
        std::fs::remove_file(desk.path("below/filler")).unwrap();
        let refused = (0..200)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                desk.goldrush("serve --config c.toml")
            })
            .find(|said| !said.err.contains("in use"))
            .unwrap();
        assert!(refused.code == 2 && refused.err.contains("flush of it failed"), "{refused:?}");
        let checked = desk.goldrush(&format!("image check --repair below/disk/node.{format}"));
        assert!(checked.code == 0, "{checked:?}");
        let Some(server) = start_config(&desk, "") else { return };
        let mut node = server.log_in(NODE, 1);
        (0..8).for_each(|run| assert_reads(&mut node, run, 0xA0));
        assert_eq!((write(&mut node, 1, 0xC1), flush(&mut node)), (None, None));
        assert_reads(&mut node, 1, 0xC1);
        server.stop();
        desk.goldrush_ok(&format!("image check below/disk/node.{format}"));
        println!("{format}: {taken} runs of 32 KiB acknowledged, the flush failed, protected until checked");
        must(&format!("umount -l {}", disk.display()));
    }
}
