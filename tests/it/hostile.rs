//! Clients that do not play by the rules, and a server that is killed: through the real program.
//!
//! Knows what each gets and that the others notice nothing. Long silences (a login that never ends, a dead peer) are
//! `tests/sim`'s: its clock is virtual.

use std::fs::File;
use std::io::Write;

use goldrush::units::BlockSize;

use crate::cli::{Desk, Said};
use crate::raw_initiator::RawInitiator;
use crate::running::{self, Running};
use crate::vhdx_files::{New, data_write_guid, write_new_vhdx};

pub(crate) const NODE: &str = "iqn.2026-11.io.goldrush:node-001";

pub(crate) fn start(desk: &Desk) -> Option<Running> {
    start_with(desk, "--golden golden.vhd --overlays nodes --nodes 4 --listen 127.0.0.1:0")
}

fn start_with(desk: &Desk, what: &str) -> Option<Running> {
    running::start(desk, &format!("serve {what} --golden-cache 1M --register-buffers false"))
}

pub(crate) fn desk() -> Desk {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 64M");
    desk
}

pub(crate) fn logged_in(port: u16, target: &str, isid: u32) -> RawInitiator {
    let mut initiator = RawInitiator::connect(port);
    assert_eq!(initiator.login(target, isid).unwrap(), (0, 0));
    initiator
}

/// Kibibytes of memory the process has in use.
fn resident(server: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn each_bad_client_gets_its_answer_and_the_others_notice_nothing() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let port = server.port;
    let mut good = logged_in(port, NODE, 1);
    assert_eq!(good.read(0, 8), [0; 4096]);

    // Half a login, then silence: it stays open meanwhile.
    let mut silent = RawInitiator::connect(port);
    silent.stream.write_all(&[0x43, 0x87, 0, 0]).unwrap();

    let mut babbler = RawInitiator::connect(port);
    babbler.stream.write_all(&[0xE7; 4096]).unwrap();
    assert!(babbler.is_closed_by_target());

    // A command before the login: no answer is due (RFC 7143, 6.3), only the end.
    let mut hasty = RawInitiator::connect(port);
    hasty.command(0, 1, &[]).unwrap();
    assert!(hasty.is_closed_by_target());

    let mut huge = RawInitiator::connect(port);
    let mut bhs = [0; 48];
    (bhs[0], bhs[1], bhs[5]) = (0x43, 0x87, 0xFF);
    huge.stream.write_all(&bhs).unwrap();
    assert!(huge.is_closed_by_target());

    // Status 02 03: target not found; and the connection ends.
    let mut lost = RawInitiator::connect(port);
    assert_eq!(lost.login("iqn.2026-11.io.goldrush:nobody", 2).unwrap(), (2, 3));
    assert!(lost.is_closed_by_target());

    assert_eq!(endless_text(port), 3, "a text without end is beyond the target's resources: class 3");
    assert_eq!(good.read(8, 8), [0; 4096]);
    good.ping();
}

/// Login text that always goes on; the status class it ends with.
fn endless_text(port: u16) -> u8 {
    let mut client = RawInitiator::connect(port);
    for number in 0..1000 {
        let text = format!("X-key{number}={}\0", "x".repeat(200)).repeat(30);
        // C, operational negotiation.
        if client.login_pdu(0x44, 3, text.as_bytes()).is_err() {
            break;
        }
        match client.receive() {
            Ok((answer, _)) if answer[36] == 0 => {}
            Ok((answer, _)) => return answer[36],
            Err(_) => break,
        }
    }
    0
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory_and_no_one_else_anything() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let mut good = logged_in(server.port, NODE, 1);
    // All of the same target, so of the same core.
    let mut deaf: Vec<_> = (10..18).map(|isid| logged_in(server.port, NODE, isid)).collect();
    for client in &mut deaf {
        client.read(0, 1);
    }
    assert_eq!(good.read(0, 8), [0; 4096]);
    let before = resident(&server);
    for client in &mut deaf {
        for lba in 0..64 {
            client.command(lba, 2048, &[]).unwrap();
        }
    }
    for lba in 0..200 {
        assert_eq!(good.read(lba * 8, 8), [0; 4096]);
    }
    let grown = resident(&server).saturating_sub(before);
    // 512 MiB were asked for.
    assert!(grown < 160 * 1024, "{grown} KiB more memory than before");
}

#[test]
fn two_hundred_and_fifty_six_sessions_idle_at_once() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let target = |number: u32| format!("iqn.2026-11.io.goldrush:node-00{}", number % 4 + 1);
    let mut sessions: Vec<_> =
        (0..256).map(|number| logged_in(server.port, &target(number), number)).collect();
    for session in &mut sessions {
        session.ping();
    }
    assert_eq!(sessions[255].read(0, 8), [0; 4096]);
}

/// The content of eight sectors from `lba` on, written in `round`.
fn content(lba: u32, round: u32) -> Vec<u8> {
    let word = (u64::from(round) << 32 | u64::from(lba)).to_be_bytes();
    word.iter().copied().cycle().take(4096).collect()
}

#[test]
fn a_killed_server_has_lost_no_acknowledged_write() {
    let desk = desk();
    kill_again_and_again(&desk, start, "nodes/node-001.vhd", |said| said.code == 0);
}

#[test]
fn a_killed_server_has_lost_no_acknowledged_write_to_a_vhdx() {
    for block_size in [1 << 20, 32 << 20] {
        let desk = Desk::new();
        let new = New { sectors: 1 << 17, block_size, logical_sector: BlockSize::B512, parent: None, id: 1 };
        let file = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(desk.path(name)).unwrap()
        };
        let mut golden = file("golden.vhdx");
        write_new_vhdx(&mut golden, &new);
        let parent = Some((data_write_guid(&golden), "golden.vhdx".to_owned()));
        write_new_vhdx(&mut file("node.vhdx"), &New { parent, id: 2, ..new });
        let config = format!(
            "listen = [\"127.0.0.1:0\"]\nimage_roots = [\".\"]\n[[target]]\nname = \"{NODE}\"\n[[target.lun]]\nlun = 0\n\
             path = \"node.vhdx\"\n"
        );
        desk.write("c.toml", config);
        let start = |desk: &Desk| start_with(desk, "--config c.toml");
        // The log is replayed first, then the records.
        kill_again_and_again(&desk, start, "node.vhdx", |said| said.code == 0);
        let Some(server) = start(&desk) else { return };
        server.stop();
        let said = desk.goldrush("image check node.vhdx");
        assert!(said.code == 0, "{said:?}");
    }
}

/// Kills a server under load, four times, and looks at what is there each time.
fn kill_again_and_again(
    desk: &Desk,
    start: impl Fn(&Desk) -> Option<Running>,
    image: &str,
    as_expected: impl Fn(&Said) -> bool,
) {
    let mut newest = vec![0_u32; 1024];
    let mut in_doubt = vec![0_u32; 1024];
    for round in 1..=4_u32 {
        let Some(server) = start(desk) else { return };
        let mut client = logged_in(server.port, NODE, round);
        for (place, (known, doubt)) in newest.iter_mut().zip(&in_doubt).enumerate() {
            let lba = place as u32 * 64;
            let found = client.read(lba, 8);
            let old = if *known == 0 { vec![0; 4096] } else { content(lba, *known) };
            let is_new = *doubt != 0 && found == content(lba, *doubt);
            assert!(found == old || is_new, "round {round}: sector {lba} lost its write of round {known}");
            if is_new {
                *known = *doubt;
            }
        }
        in_doubt.fill(0);
        // Blocks are allocated, bits are set, sectors are written again: other places each round.
        let places: Vec<u32> = (0..1024).map(|n| n * (2 * round + 1) % 1024).collect();
        let enough = 150 * round;
        let (mut sent, mut answered) = (0, 0);
        while answered < enough {
            while sent < answered + 16 {
                let place = places[sent as usize];
                client.command(place * 64, 8, &content(place * 64, round)).unwrap();
                in_doubt[place as usize] = round;
                sent += 1;
            }
            let (lba, status, _) = client.answer().unwrap();
            assert_eq!(status, 0);
            newest[lba as usize / 64] = round;
            answered += 1;
        }
        server.kill();
        // The kernel takes the ring of a dead process apart in its own time; until then the image is in use.
        let check = || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            desk.goldrush(&format!("image check {image} --repair"))
        };
        let said = (0..500).map(|_| check()).find(|said| said.code != 3).unwrap();
        assert!(as_expected(&said), "round {round}: {said:?}");
    }
}
