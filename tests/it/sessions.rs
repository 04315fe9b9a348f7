//! Sessions of several connections, and the habits of firmware: through the real program.
//!
//! Knows joining, reinstatement and what is refused. What races with what is `tests/sim`'s.

use crate::hostile::{NODE, desk, logged_in, start};
use crate::raw_initiator::RawInitiator;

/// Another connection that asks to join a session.
fn joining(port: u16, isid: u32, tsih: u16, cid: u16) -> (RawInitiator, (u8, u8)) {
    let mut initiator = RawInitiator::connect(port);
    (initiator.tsih, initiator.cid) = (tsih, cid);
    let status = initiator.login(NODE, isid).unwrap();
    (initiator, status)
}

/// The next command of the session goes out on `to`.
fn turn(from: &RawInitiator, to: &mut RawInitiator) {
    to.cmd_sn = from.cmd_sn;
}

#[test]
fn commands_of_one_session_travel_on_two_connections() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let mut first = logged_in(server.port, NODE, 1);
    assert_eq!(first.read(0, 8), [0; 4096]);
    let (mut second, status) = joining(server.port, 1, first.tsih, 1);
    assert_eq!((status, second.tsih), ((0, 0), first.tsih));
    turn(&first, &mut second);
    // Command n + 1 arrives first: it waits, and its data with it.
    let data = [0x5A; 4096];
    second.cmd_sn += 1;
    second.command(0, 8, &data).unwrap();
    first.ping_as_command();
    assert_eq!(second.answer().unwrap().1, 0);
    turn(&second, &mut first);
    assert_eq!(first.read(0, 8), data);
    turn(&first, &mut second);
    drop(first);
    // The other goes on; it may be told that the first was dropped (11.9.1, event 2).
    assert_eq!(second.read(0, 8), data);
}

/// Reads a block; additional sense code and qualifier when it is refused.
fn refusal(initiator: &mut RawInitiator) -> Option<(u8, u8)> {
    initiator.command(0, 1, &[]).unwrap();
    loop {
        let (bhs, data) = initiator.receive().unwrap();
        match bhs[0] & 0x3F {
            // SenseLength comes first.
            0x21 if bhs[3] != 0 => return Some((data[2 + 12], data[2 + 13])),
            0x25 if bhs[1] & 1 != 0 => return None,
            _ => {}
        }
    }
}

#[test]
fn a_connection_that_takes_its_tasks_along_is_reported_once() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let mut first = logged_in(server.port, NODE, 1);
    assert_eq!(first.read(0, 1), [0; 512]);
    let (mut second, status) = joining(server.port, 1, first.tsih, 1);
    assert_eq!(status, (0, 0));
    turn(&first, &mut second);
    second.announce_write(0, 64).unwrap();
    // It is under way: the target asks for its data.
    assert_eq!(second.receive().unwrap().0[0] & 0x3F, 0x31);
    turn(&second, &mut first);
    drop(second);
    // The target finds out when it reads the end of the stream; until then nothing has happened.
    let told = (0..200).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        refusal(&mut first)
    });
    assert_eq!(told, Some((0x47, 0x7F)), "some commands cleared by iSCSI protocol event");
    assert_eq!(refusal(&mut first), None, "once");
    assert_eq!(first.read(0, 64), [0; 64 * 512], "nothing of the write came");
    // A connection that was idle takes nothing along, and nobody is told.
    let (third, status) = joining(server.port, 1, first.tsih, 2);
    assert_eq!(status, (0, 0));
    drop(third);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(refusal(&mut first), None);
}

#[test]
fn who_may_not_join_is_told_why() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let first = logged_in(server.port, NODE, 1);
    assert_eq!(joining(server.port, 1, first.tsih.wrapping_add(7), 1).1, (2, 0x0A), "no such session");
    assert_eq!(joining(server.port, 2, first.tsih, 1).1, (2, 0x0A), "another initiator port");
    let other = logged_in(server.port, NODE, 3);
    assert_eq!(joining(server.port, 1, other.tsih, 1).1, (2, 0x0A), "the session of another port");
    let mut in_it = vec![joining(server.port, 1, first.tsih, 1)];
    for cid in 2..60 {
        in_it.push(joining(server.port, 1, first.tsih, cid));
    }
    let let_in = in_it.iter().filter(|(_, status)| *status == (0, 0)).count();
    assert_eq!(let_in, 1, "MaxConnections is 2");
    assert!(in_it[1..].iter().all(|(_, status)| *status == (2, 6)));
}

#[test]
fn the_same_cid_reinstates_a_connection_and_tsih_zero_the_session() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let mut first = logged_in(server.port, NODE, 1);
    first.read(0, 1);
    let (mut second, _) = joining(server.port, 1, first.tsih, 9);
    let (mut again, status) = joining(server.port, 1, first.tsih, 9);
    assert_eq!(status, (0, 0));
    assert!(second.is_closed_by_target());
    turn(&first, &mut again);
    assert_eq!(again.read(0, 1), [0; 512]);
    // The only connection of a session may be reinstated too.
    turn(&again, &mut first);
    let (mut leading, status) = joining(server.port, 1, first.tsih, 0);
    assert_eq!(status, (0, 0));
    assert!(first.is_closed_by_target());
    turn(&first, &mut leading);
    assert_eq!(leading.read(0, 1), [0; 512]);
    let mut fresh = logged_in(server.port, NODE, 1);
    assert!(leading.is_closed_by_target() && again.is_closed_by_target());
    assert_eq!(fresh.read(0, 1), [0; 512]);
}

#[test]
fn firmware_vanishes_and_the_system_comes_with_another_isid() {
    let desk = desk();
    let Some(server) = start(&desk) else { return };
    let mut firmware = RawInitiator::connect(server.port);
    // Keys in an odd order, the smallest segments, one command at a time.
    let keys = format!(
        "MaxRecvDataSegmentLength=512\0MaxBurstLength=512\0FirstBurstLength=512\0TargetName={NODE}\0\
         DataDigest=None\0HeaderDigest=None\0ErrorRecoveryLevel=0\0SessionType=Normal\0ImmediateData=No\0\
         InitialR2T=Yes\0InitiatorName=iqn.2026-11.io.goldrush:raw\0"
    );
    assert_eq!(firmware.login_with(0x10, &keys).unwrap(), (0, 0));
    for lba in 0..8 {
        assert_eq!(firmware.read(lba * 64, 64), [0; 64 * 512]);
    }
    // No logout: its TCP is simply gone, and the system logs in under the same name.
    let _forgotten = firmware.stream.try_clone();
    let mut system = logged_in(server.port, NODE, 0x20);
    assert_eq!(system.read(0, 128), [0; 128 * 512]);
    system.command(0, 1, &[7; 512]).unwrap();
    assert_eq!(system.answer().unwrap().1, 0);
    assert_eq!(
        firmware.read(0, 1),
        [7; 512],
        "the former session is another nexus, and lives as long as its TCP"
    );
}
