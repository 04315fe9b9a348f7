//! Persistent reservations through the real program: what was asked to outlive it does, however it ends.
//!
//! Knows PERSISTENT RESERVE IN and OUT as bytes. Does not know the rules in full: `scsi` has a model for these.

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{self, Running, config_line};

const TARGET: &str = "iqn.2026-11.io.goldrush:cluster";
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const CONFLICT: u8 = 0x18;

fn start(desk: &Desk, more: &str) -> Option<Running> {
    running::start(desk, &format!("{} {more}", config_line()))
}

fn desk() -> Desk {
    let desk = Desk::new();
    desk.goldrush_ok("image create disk.vhd --size 8M");
    desk.write(
        "c.toml",
        format!(
            "listen = [\"127.0.0.1:0\"]\nstate_dir = \"state\"\n[[target]]\nname = \"{TARGET}\"\n\
             [[target.lun]]\nlun = 0\npath = \"disk.vhd\"\n"
        ),
    );
    desk
}

fn reserve_out(by: &mut RawInitiator, action: u8, kind: u8, keys: (u64, u64), aptpl: bool) -> u8 {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&keys.0.to_be_bytes());
    list[8..16].copy_from_slice(&keys.1.to_be_bytes());
    list[20] = u8::from(aptpl);
    by.scsi(&[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list, 0).0
}

fn keys(by: &mut RawInitiator) -> Vec<u64> {
    let (status, data) = by.scsi(&[0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256);
    assert_eq!(status, GOOD);
    data[8..].chunks_exact(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

const WRITE_10: [u8; 10] = [0x2A, 0, 0, 0, 0, 1, 0, 0, 1, 0];

#[test]
fn a_reservation_with_aptpl_survives_a_killed_server_and_others_do_not() {
    let desk = desk();
    let Some(server) = start(&desk, "") else { return };
    let (mut owner, mut other) = (server.log_in(TARGET, 1), server.log_in(TARGET, 2));
    assert_eq!(reserve_out(&mut owner, 6, 0, (0, 7), true), GOOD);
    assert_eq!(reserve_out(&mut owner, 1, 1, (7, 0), false), GOOD);
    assert_eq!(other.scsi(&WRITE_10, &[1; 512], 0).0, CONFLICT);
    server.kill();

    let server = start(&desk, "").unwrap();
    let (mut owner, mut other) = (server.log_in(TARGET, 1), server.log_in(TARGET, 2));
    assert_eq!(keys(&mut other), [7]);
    assert_eq!(other.scsi(&WRITE_10, &[1; 512], 0).0, CONFLICT);
    assert_eq!(owner.scsi(&WRITE_10, &[1; 512], 0).0, GOOD);
    // The last registration decides: from now on nothing outlives the server.
    assert_eq!(reserve_out(&mut owner, 0, 0, (7, 8), false), GOOD);
    server.kill();

    let server = start(&desk, "").unwrap();
    let mut other = server.log_in(TARGET, 2);
    assert_eq!(keys(&mut other), [0_u64; 0]);
    assert_eq!(other.scsi(&WRITE_10, &[1; 512], 0).0, GOOD);
    server.kill();
}

#[test]
fn a_damaged_state_stops_the_start_and_a_full_folder_fails_the_command() {
    let desk = desk();
    let Some(server) = start(&desk, "") else { return };
    let mut owner = server.log_in(TARGET, 1);
    assert_eq!(reserve_out(&mut owner, 6, 0, (0, 7), true), GOOD);
    // A folder in the way of the file that is to be written.
    let file = desk.path("state").join(format!("{TARGET},0.json"));
    std::fs::create_dir(file.with_extension("json.part")).unwrap();
    assert_eq!(reserve_out(&mut owner, 1, 1, (7, 0), false), CHECK_CONDITION);
    server.kill();

    std::fs::write(&file, "{").unwrap();
    let said = desk.goldrush("serve --config c.toml");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains(",0.json") && said.err.contains("delete it"), "{said:?}");
}

#[test]
fn preempt_and_abort_ends_the_commands_of_its_victim() {
    let desk = desk();
    let Some(server) = start(&desk, "") else { return };
    let (mut owner, mut victim) = (server.log_in(TARGET, 1), server.log_in(TARGET, 2));
    assert_eq!(reserve_out(&mut victim, 6, 0, (0, 9), false), GOOD);
    assert_eq!(reserve_out(&mut victim, 1, 3, (9, 0), false), GOOD);
    assert_eq!(reserve_out(&mut owner, 6, 0, (0, 7), false), GOOD);
    victim.announce_write(64, 8).unwrap();
    let (r2t, _) = victim.receive().unwrap();
    assert_eq!(r2t[0] & 0x3F, 0x31, "the target waits for the data");

    assert_eq!(reserve_out(&mut owner, 5, 3, (7, 9), false), GOOD);
    // No status for what was ended; the session lives, and is told why it has lost its commands.
    victim.ping();
    assert_eq!(victim.scsi(&WRITE_10, &[1; 512], 0).0, CONFLICT);
    assert_eq!(owner.scsi(&WRITE_10, &[1; 512], 0).0, GOOD);
    assert_eq!(owner.read(64, 8), [0; 4096], "nothing of the ended write is there");
    server.kill();
}
