//! Kill -9 under load, again and again: the real program, a verifying initiator, VHD and VHDX; WRITE ATOMIC and SANITIZE.
//!
//! Knows what was acknowledged. Does not know power cuts (`crash`).
//!
//! Run by `scripts/kill-loop`, as many rounds as wanted; two in a normal run.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::cli::Desk;
use crate::cli_durability::{Expected, TARGET, config, load};
use crate::raw_initiator::RawInitiator;
use crate::running::start_config;
use crate::sim_disk::Rng;

/// Blocks of one atomic write, and how many places there are.
const ATOMIC_BLOCKS: u32 = 64;
const PLACES: u64 = 16;

fn rounds() -> u64 {
    std::env::var("GOLDRUSH_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

fn desk(format: &str) -> Desk {
    let desk = Desk::new();
    desk.goldrush_ok(&format!("image create golden.{format} --size 64M"));
    desk.goldrush_ok(&format!("image create node.{format} --parent golden.{format}"));
    let leaf = format!("node.{format}");
    desk.write("c.toml", format!("state_dir = \"state\"\n{}", config(Path::new(&leaf), "")));
    desk
}

/// What is left is whole, and nothing pends in it.
fn assert_whole(desk: &Desk, format: &str) {
    desk.goldrush_ok(&format!("image check node.{format}"));
}

#[test]
fn kill_loop_loses_no_acknowledged_write() {
    for format in ["vhd", "vhdx"] {
        let desk = desk(format);
        let golden = std::fs::read(desk.path(&format!("golden.{format}"))).unwrap();
        let mut expected = Expected::default();
        let (mut rng, mut next) = (Rng(11), 0);
        for _ in 0..rounds() {
            let Some(server) = start_config(&desk, "") else { return };
            let mut initiator = server.log_in(TARGET, 1);
            expected.verify(&mut initiator);
            let killer = server.kill_after(Duration::from_millis(20 + rng.below(400)));
            load(&mut initiator, &mut rng, &mut expected, usize::MAX, &mut next);
            killer.join().unwrap();
            server.kill();
        }
        let Some(server) = start_config(&desk, "") else { return };
        expected.verify(&mut server.log_in(TARGET, 1));
        server.stop();
        assert_whole(&desk, format);
        let after = std::fs::read(desk.path(&format!("golden.{format}"))).unwrap();
        assert!(after == golden, "the parent was written");
        println!("{format}: {} kills, {} acknowledged writes, none lost", rounds(), expected.answers);
        assert!(expected.answers > 20);
    }
}

/// Waits while the unit goes on with what a kill has cut short.
fn wait_until_ready(initiator: &mut RawInitiator) {
    let mut waited = 0;
    while let Some(sense) = initiator.attempt(&[0; 6], &[], 0).2 {
        assert_eq!(sense[0], 2, "NOT READY, not {sense:x?}");
        std::thread::sleep(Duration::from_millis(100));
        waited += 1;
        assert!(waited < 1200, "the unit does not become ready: {sense:x?}");
    }
}

/// A WRITE ATOMIC (16); false: not done.
fn write_atomic(initiator: &mut RawInitiator, place: u64, value: u64) -> io::Result<bool> {
    let bytes = value.to_le_bytes().repeat(ATOMIC_BLOCKS as usize * 64);
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (1, 0xA1);
    bhs[16..20].copy_from_slice(&0xA70_u32.to_be_bytes());
    bhs[20..24].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
    bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    bhs[32] = 0x9C;
    bhs[34..42].copy_from_slice(&(place * 1000).to_be_bytes());
    bhs[44..46].copy_from_slice(&(ATOMIC_BLOCKS as u16).to_be_bytes());
    initiator.cmd_sn += 1;
    initiator.send(bhs, &bytes)?;
    Ok(initiator.answer()?.1 == 0)
}

fn read_atomic(initiator: &mut RawInitiator, place: u64) -> u64 {
    let bytes = initiator.read(place as u32 * 1000, ATOMIC_BLOCKS as u16);
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let torn = bytes.chunks_exact(8).any(|word| word != value.to_le_bytes());
    assert!(!torn, "an atomic write at place {place} was done in part");
    value
}

#[test]
fn kill_loop_tears_no_atomic_write() {
    for format in ["vhd", "vhdx"] {
        let desk = desk(format);
        let (mut rng, mut next, mut answers) = (Rng(13), 0, 0_u64);
        let mut known = [0_u64; PLACES as usize];
        let mut doubt: Option<(u64, u64)> = None;
        for _ in 0..=rounds() {
            let Some(server) = start_config(&desk, "") else { return };
            let mut initiator = server.log_in(TARGET, 1);
            wait_until_ready(&mut initiator);
            for place in 0..PLACES {
                let found = read_atomic(&mut initiator, place);
                let is_new = doubt == Some((place, found));
                assert!(is_new || found == known[place as usize], "place {place} reads {found:#x}");
                known[place as usize] = found;
            }
            next += 1;
            assert!(write_atomic(&mut initiator, 0, next).unwrap(), "refused");
            (known[0], answers) = (next, answers + 1);
            let killer = server.kill_after(Duration::from_millis(rng.below(300)));
            // The last one has no answer: it is there or it is not.
            doubt = loop {
                next += 1;
                let place = rng.below(PLACES);
                match write_atomic(&mut initiator, place, next) {
                    Ok(true) => (known[place as usize], answers) = (next, answers + 1),
                    Ok(false) => panic!("an atomic write is refused"),
                    Err(_) => break Some((place, next)),
                }
            };
            killer.join().unwrap();
            server.kill();
        }
        println!("{format}: {} kills, {answers} atomic writes acknowledged, none lost or torn", rounds() + 1);
        assert!(answers > 0);
    }
}

#[test]
fn kill_loop_resumes_a_sanitize() {
    for format in ["vhd", "vhdx"] {
        let desk = desk(format);
        let Some(server) = start_config(&desk, "") else { return };
        let mut initiator = server.log_in(TARGET, 1);
        let overwrite = [0x48, 0x81, 0, 0, 0, 0, 0, 0, 8, 0];
        let pattern = [1, 0, 0, 4, 0xDE, 0xAD, 0xBE, 0xEF];
        assert_eq!(initiator.attempt(&overwrite, &pattern, 0).2, None);
        std::thread::sleep(Duration::from_millis(50));
        server.kill();
        for _ in 1..rounds().min(5) {
            let Some(server) = start_config(&desk, "") else { return };
            let killer = server.kill_after(Duration::from_millis(60));
            killer.join().unwrap();
            server.kill();
        }
        let Some(server) = start_config(&desk, "") else { return };
        let mut initiator = server.log_in(TARGET, 1);
        wait_until_ready(&mut initiator);
        for at in (0..64 << 11).step_by(4096) {
            let bytes = initiator.read(at, 8);
            assert!(bytes.chunks_exact(4).all(|word| word == [0xDE, 0xAD, 0xBE, 0xEF]), "block {at} is left");
        }
        server.stop();
        assert_whole(&desk, format);
        println!("{format}: a wipe killed {} times went on to its end", rounds().clamp(1, 5));
    }
}
