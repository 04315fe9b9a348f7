//! `goldrush resize`: disks that grow while they are served and written.
//!
//! Knows what an initiator sees of it and what lies in the file afterwards. Does not know how a format grows.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, start};

const NODE: &str = "iqn.2026-11.io.goldrush:node";
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A server with one LUN; `more` are its keys.
fn serve(desk: &Desk, path: &str, more: &str) -> Option<Running> {
    desk.write(
        "c.toml",
        format!(
            "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"{NODE}\"\n[[target.lun]]\nlun = 0\npath = \"{path}\"\n{more}\n"
        ),
    );
    start(desk, "serve --config c.toml --golden-cache 1M --register-buffers false --cores 0")
}

fn log_in(server: &Running, isid: u32) -> RawInitiator {
    let mut initiator = RawInitiator::connect(server.port);
    assert_eq!(initiator.login(NODE, isid).unwrap(), (0, 0));
    initiator
}

fn write(initiator: &mut RawInitiator, lba: u32, value: u8) -> u8 {
    initiator.command(lba, 8, &[value; 4096]).unwrap();
    initiator.answer().unwrap().1
}

/// Sectors, as the unit says; a unit attention is passed over.
fn sectors(initiator: &mut RawInitiator) -> u32 {
    let (status, answer) = initiator.scsi(&READ_CAPACITY, &[], 8);
    assert_eq!(status, 0);
    u32::from_be_bytes(answer[..4].try_into().unwrap()) + 1
}

/// Created by these words of `image create`, served, written, and made larger twice.
fn grows(create: &str, path: &str, sizes: [u32; 3]) {
    let desk = Desk::new();
    for line in create.split(';') {
        desk.goldrush_ok(&format!("image create {line}"));
    }
    let Some(server) = serve(&desk, path, "") else { return };
    let mut initiator = log_in(&server, 1);
    let mut other = log_in(&server, 2);
    let mib = |size: u32| size * 2048;
    assert_eq!((sectors(&mut initiator), sectors(&mut other)), (mib(sizes[0]), mib(sizes[0])));
    let last = mib(sizes[0]) - 8;
    assert_eq!((write(&mut initiator, 0, 1), write(&mut initiator, last, 2)), (0, 0));
    assert_eq!(write(&mut initiator, mib(sizes[0]), 3), 2, "beyond the end");
    for (before, size) in [(sizes[0], sizes[1]), (sizes[1], sizes[2])] {
        let said = desk.goldrush_ok(&format!("resize {NODE}/0 {size}M"));
        assert!(said.contains(&format!(", was {before} MiB")), "{said}");
        // CAPACITY DATA HAS CHANGED, to everybody.
        initiator.command(0, 8, &[]).unwrap();
        assert_eq!(initiator.answer().unwrap().1, 2);
        assert_eq!((sectors(&mut initiator), sectors(&mut other)), (mib(size), mib(size)));
        assert_eq!(initiator.read(mib(size) - 8, 8), [0; 4096]);
        assert_eq!(write(&mut initiator, mib(size) - 8, 9), 0);
        assert_eq!((initiator.read(0, 8), initiator.read(last, 8)), (vec![1; 4096], vec![2; 4096]));
    }
    let said = desk.goldrush(&format!("resize {NODE}/0 {}M", sizes[0]));
    assert!(said.code == 1 && said.err.contains("never made smaller"), "{said:?}");
    assert!(desk.goldrush_ok(&format!("resize {NODE}/0 {}M", sizes[2])).contains("was"));
    server.kill();
    // Killed behind it: what was acknowledged is there.
    let Some(server) = serve(&desk, path, "") else { return };
    let mut initiator = log_in(&server, 1);
    assert_eq!(sectors(&mut initiator), mib(sizes[2]));
    assert_eq!(initiator.read(mib(sizes[2]) - 8, 8), [9; 4096]);
    assert_eq!(initiator.read(last, 8), [2; 4096]);
    server.stop();
    if !path.ends_with("raw") {
        let said = desk.goldrush(&format!("image check {path}"));
        assert_eq!(said.code, 0, "{said:?}");
    }
}

#[test]
fn a_vhd_grows_while_it_is_served_also_where_its_table_needs_room() {
    // Within the room of the table's sector, and beyond it: blocks move.
    grows("d.vhd --size 16M", "d.vhd", [16, 32, 2048]);
    grows("f.vhd --size 8M --type fixed", "f.vhd", [8, 9, 20]);
}

#[test]
fn a_vhdx_grows_while_it_is_served_and_so_does_a_child() {
    grows("d.vhdx --size 16M", "d.vhdx", [16, 33, 4096]);
    grows("f.vhdx --size 8M --type fixed", "f.vhdx", [8, 16, 40]);
    grows("g.vhdx --size 16M;c.vhdx --parent g.vhdx", "c.vhdx", [16, 40, 900]);
}

#[test]
fn commands_that_come_meanwhile_wait_and_none_is_lost() {
    let desk = Desk::new();
    desk.goldrush_ok("image create d.vhdx --size 64M");
    let Some(server) = serve(&desk, "d.vhdx", "") else { return };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut initiator = log_in(&server, 1);
            initiator.read(0, 8);
            let (mut round, mut refused) = (0_u32, 0);
            while !done.load(Ordering::Relaxed) || round < 64 {
                let lba = round % 1024 * 8;
                // A unit attention once for each size; the write is sent again.
                while write(&mut initiator, lba, (round % 251) as u8) != 0 {
                    refused += 1;
                    assert!(refused <= 8, "round {round}");
                }
                assert_eq!(initiator.read(lba, 8), [(round % 251) as u8; 4096]);
                round += 1;
            }
            (round, refused)
        });
        for size in [65, 80, 200, 1000, 3000] {
            desk.goldrush_ok(&format!("resize {NODE}/0 {size}M"));
        }
        done.store(true, Ordering::Relaxed);
        let (rounds, refused) = writer.join().unwrap();
        assert!(rounds >= 64 && refused >= 1, "{rounds} rounds, {refused} refused");
    });
    server.stop();
    assert_eq!(desk.goldrush("image check d.vhdx").code, 0);
}

#[test]
fn what_cannot_grow_says_why_and_serves_on() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 16M");
    desk.goldrush_ok("image create node.vhd --parent golden.vhd");
    let Some(server) = serve(&desk, "node.vhd", "") else { return };
    let mut initiator = log_in(&server, 1);
    initiator.read(0, 8);
    for (line, code, why) in [
        (format!("resize {NODE}/0 32M"), 1, "a child has the size of its parent"),
        (format!("resize {NODE}/1 32M"), 1, "has no LUN 1"),
        (format!("resize {NODE}x/0 32M"), 1, "there is no target"),
        (format!("resize {NODE}/0 17000001"), 1, "no whole number"),
        (format!("resize {NODE} 32M"), 2, "TARGET/LUN"),
    ] {
        let said = desk.goldrush(&line);
        assert!(said.code == code && said.err.contains(why), "{line}: {said:?}");
        assert_eq!(write(&mut initiator, 0, 5), 0, "{line}");
    }
    server.stop();
    let Some(server) = serve(&desk, "golden.vhd", "readonly = true") else { return };
    let said = desk.goldrush(&format!("resize {NODE}/0 32M"));
    assert!(said.code == 1 && said.err.contains("only read here"), "{said:?}");
    server.stop();
}

#[test]
fn a_raw_file_grows_by_the_same_command() {
    let desk = Desk::new();
    desk.write("d.raw", vec![0; 8 << 20]);
    let Some(server) = serve(&desk, "d.raw", "") else { return };
    let mut initiator = log_in(&server, 1);
    assert_eq!(sectors(&mut initiator), 16384);
    desk.goldrush_ok(&format!("resize {NODE}/0 12M"));
    assert_eq!(sectors(&mut initiator), 24576);
    assert_eq!(write(&mut initiator, 24568, 4), 0);
    assert_eq!(std::fs::metadata(desk.path("d.raw")).unwrap().len(), 12 << 20);
    server.stop();
}
