//! Overlays that are until-reset while the server runs: a machine that is started again finds the golden image, one that
//! comes back finds what it wrote, and `goldrush reset` empties when it is told to.
//!
//! Knows how iPXE, firmware and an operating system log in. Does not know how an image is emptied.

use std::time::{Duration, Instant};

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, start, status};

const NODE: &str = "iqn.2026-11.io.goldrush:node-001";
const MACHINE: &str = "iqn.2010-04.org.ipxe:node-001";
const IPXE_SEGMENT: u32 = 8192;
const SYSTEM_SEGMENT: u32 = 262_144;
/// The system's ISID, which it keeps.
const SYSTEM: u32 = 0x0023_D001;

/// A golden image with eight sectors of its own, and one node of `format`.
fn serve(format: &str, more: &str) -> Option<(Desk, Running)> {
    let desk = Desk::new();
    let mut golden = vec![0; 8 << 20];
    golden[..4096].fill(0x60);
    desk.write("golden.raw", golden);
    desk.goldrush_ok(&format!("image convert golden.raw golden.{format}"));
    let line = format!(
        "serve --golden golden.{format} --overlays nodes --nodes 1 --listen 127.0.0.1:0 --golden-cache 1M \
         --register-buffers false --durability until-reset {more}"
    );
    let server = start(&desk, &line)?;
    Some((desk, server))
}

fn log_in(server: &Running, isid: u32, segment: u32) -> RawInitiator {
    log_in_as(server, MACHINE, isid, segment)
}

fn log_in_as(server: &Running, name: &str, isid: u32, segment: u32) -> RawInitiator {
    let mut initiator = RawInitiator::connect(server.port);
    let keys = format!(
        "InitiatorName={name}\0SessionType=Normal\0TargetName={NODE}\0InitialR2T=No\0ImmediateData=Yes\0\
         MaxRecvDataSegmentLength={segment}\0"
    );
    assert_eq!(initiator.login_with(isid, &keys).unwrap(), (0, 0));
    initiator
}

fn write(initiator: &mut RawInitiator, value: u8) {
    initiator.read(0, 8);
    initiator.command(0, 8, &[value; 4096]).unwrap();
    assert_eq!(initiator.answer().unwrap().1, 0);
    initiator.command(9000, 8, &[value; 4096]).unwrap();
    assert_eq!(initiator.answer().unwrap().1, 0);
}

/// What both places that were written hold; `(0x60, 0)` is golden.
fn found(initiator: &mut RawInitiator) -> (u8, u8) {
    let (first, second) = (initiator.read(0, 8), initiator.read(9000, 8));
    assert!(first.iter().all(|byte| *byte == first[0]) && second.iter().all(|byte| *byte == second[0]));
    (first[0], second[0])
}

const GOLDEN: (u8, u8) = (0x60, 0);

fn resets(desk: &Desk) -> u64 {
    status(desk, "--targets")["targets"][0]["resets"].as_u64().unwrap()
}

#[test]
fn a_machine_that_is_started_again_finds_the_golden_image_and_one_that_returns_its_own() {
    for format in ["vhd", "vhdx"] {
        let Some((desk, server)) = serve(format, "") else { return };
        for boot in 0..3 {
            // iPXE draws an ISID for each connection; it tries twice.
            drop(log_in(&server, 100 + boot * 2, IPXE_SEGMENT));
            let mut loader = log_in(&server, 101 + boot * 2, IPXE_SEGMENT);
            assert_eq!(found(&mut loader), GOLDEN, "{format}, boot {boot}");
            drop(loader);
            let mut system = log_in(&server, SYSTEM, SYSTEM_SEGMENT);
            write(&mut system, 7 + boot as u8);
            let mut other_path = log_in(&server, SYSTEM + 1, SYSTEM_SEGMENT);
            drop(system);
            // The network was away; and once it declares as little as a loader.
            for segment in [SYSTEM_SEGMENT, IPXE_SEGMENT, SYSTEM_SEGMENT] {
                let mut back = log_in(&server, SYSTEM, segment);
                assert_eq!(found(&mut back), (7 + boot as u8, 7 + boot as u8), "{format}, boot {boot}");
            }
            assert_eq!(found(&mut other_path), (7 + boot as u8, 7 + boot as u8));
            assert_eq!(resets(&desk), u64::from(boot));
        }
        server.stop();
        let said = desk.goldrush(&format!("image check nodes/node-001.{format}"));
        assert_eq!(said.code, 0, "{said:?}");
        let said = desk.goldrush_ok(&format!("image info nodes/node-001.{format} --json"));
        assert!(said.contains("\"allocated_blocks\": 2"), "{said}");
    }
}

/// Answers the target's ping, which must be the next thing it says.
fn answer_ping(initiator: &mut RawInitiator) {
    let (ping, _) = initiator.receive().unwrap();
    assert_eq!(ping[0] & 0x3F, 0x20);
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (0x40, 0x80);
    bhs[16..20].fill(0xFF);
    bhs[20..24].copy_from_slice(&ping[20..24]);
    bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    initiator.send(bhs, &[]).unwrap();
}

#[test]
fn a_system_that_answers_keeps_its_disk_and_a_silent_one_was_switched_off() {
    let Some((desk, server)) = serve("vhd", "") else { return };
    drop(log_in(&server, 1, IPXE_SEGMENT));
    let mut system = log_in(&server, SYSTEM, SYSTEM_SEGMENT);
    write(&mut system, 7);
    // Somebody starts another machine with this one's name.
    let mut wrong = log_in(&server, 2, IPXE_SEGMENT);
    wrong.command(0, 8, &[]).unwrap();
    answer_ping(&mut system);
    assert_ne!(wrong.answer().unwrap().1, 0, "the unit attention of a new session");
    assert_eq!((found(&mut wrong), found(&mut system)), ((7, 7), (7, 7)));
    drop(wrong);
    // The machine is switched off and on: nobody closes the system's connection, and nobody answers on it.
    let began = Instant::now();
    let mut loader = log_in(&server, 3, IPXE_SEGMENT);
    assert_eq!(found(&mut loader), GOLDEN);
    assert!(began.elapsed() >= Duration::from_secs(5), "a system has that long to answer");
    assert_eq!(resets(&desk), 1);
    assert!(system.is_closed_by_target());
    server.stop();
}

#[test]
fn firmware_that_keeps_its_isid_is_known_by_it() {
    let Some((desk, server)) = serve("vhd", "") else { return };
    const FIRMWARE: u32 = 55;
    drop(log_in(&server, FIRMWARE, 65_536));
    let mut system = log_in_as(&server, "iqn.1991-05.com.microsoft:node-001", SYSTEM, SYSTEM_SEGMENT);
    write(&mut system, 7);
    drop(system);
    drop(log_in(&server, 56, 65_536));
    assert_eq!(resets(&desk), 0, "it might be another session of the system");
    assert_eq!(found(&mut log_in(&server, FIRMWARE, 65_536)), GOLDEN);
    assert_eq!(resets(&desk), 1);
    server.stop();
}

#[test]
fn what_is_reset_at_the_start_only_is_emptied_by_command() {
    let Some((desk, server)) = serve("vhd", "--reset start") else { return };
    let reset = |more: &str| desk.goldrush(&format!("reset {NODE} {more}"));
    drop(log_in(&server, 1, IPXE_SEGMENT));
    let mut system = log_in(&server, SYSTEM, SYSTEM_SEGMENT);
    write(&mut system, 7);
    drop(system);
    let mut loader = log_in(&server, 2, IPXE_SEGMENT);
    assert_eq!(found(&mut loader), (7, 7));
    let said = reset("");
    assert!(said.code == 1 && said.err.contains("1 logged in"), "{said:?}");
    assert_eq!(found(&mut loader), (7, 7));
    let said = reset("--force");
    assert!(said.code == 0 && said.out.contains("1 LUN is empty"), "{said:?}");
    assert!(loader.is_closed_by_target());
    let mut system = log_in(&server, SYSTEM, SYSTEM_SEGMENT);
    assert_eq!(found(&mut system), GOLDEN);
    write(&mut system, 9);
    drop(system);
    let until = Instant::now() + Duration::from_secs(10);
    while reset("").code != 0 {
        assert!(Instant::now() < until, "the session has ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(found(&mut log_in(&server, SYSTEM, SYSTEM_SEGMENT)), GOLDEN);
    assert_eq!(resets(&desk), 2);
    let said = desk.goldrush("reset iqn.2026-11.io.goldrush:nobody");
    assert!(said.code == 1 && said.err.contains("no target"), "{said:?}");
    server.stop();
}

#[test]
fn what_is_persistent_is_never_emptied() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    let Some(server) = crate::running::start_nodes(&desk, 1, "") else { return };
    drop(log_in(&server, 1, IPXE_SEGMENT));
    let mut system = log_in(&server, SYSTEM, SYSTEM_SEGMENT);
    write(&mut system, 7);
    drop(system);
    assert_eq!(found(&mut log_in(&server, 2, IPXE_SEGMENT)), (7, 7));
    let said = desk.goldrush(&format!("reset {NODE} --force"));
    assert!(said.code == 1 && said.err.contains("until-reset"), "{said:?}");
    let said = desk
        .goldrush("serve --golden golden.vhd --overlays more --nodes 1 --reset boot --durability persistent");
    assert!(said.code == 2 && said.err.contains("--reset"), "{said:?}");
    server.stop();
}
