//! Copies between targets of different cores, through the real program.
//!
//! Knows what initiators see of them: data, sense, and that nothing waits for ever, whatever is aborted, removed or broken
//! on the way. What the shards say to each other is tested with them (`shard::errands`).

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cli::Desk;
use crate::offload::{
    CHECK_CONDITION, GOOD, UNREACHABLE, code, designator, disk, log_in, lun, number, outcome, ranges,
    third_party, write_list,
};
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, config_line, start_at, status, sum};

const BLOCKS: usize = 2048;
const THIRD_PARTY: (u8, u8) = (0x0D, 0x01);

fn target(number: u8) -> String {
    format!("[[target]]\nname = \"iqn.2026-11.io.goldrush:node-{number}\"\n{}", lun(0, number, ""))
}

fn config(nodes: std::ops::Range<u8>) -> String {
    let targets: String = nodes.map(target).collect();
    format!("listen = [\"127.0.0.1:0\"]\n{targets}")
}

/// Four nodes on two cores, and their disks. `None`, loudly, without a second core.
fn serve(desk: &Desk) -> Option<(Running, Vec<Vec<u8>>)> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("SKIPPED: there is one core");
        return None;
    }
    let disks = (0..4).map(|number| disk(desk, number)).collect();
    desk.write("c.toml", config(0..4));
    let running = start_at(desk, &format!("{} --cores 0,1", config_line()), 1)?;
    Some((running, disks))
}

fn log_in_all(running: &Running) -> Vec<RawInitiator> {
    (0..4).map(|number| log_in(running.port, &format!("node-{number}"))).collect()
}

/// A list that copies `blocks` from block 0 of one unit to block `to` of another, so many times.
fn copy_list(units: [[u8; 8]; 2], to: u64, blocks: u16, times: u32) -> Vec<u8> {
    let mut list = vec![0; 16];
    (list[1], list[3]) = (0b11 << 3, 64);
    list[8..12].copy_from_slice(&(times * 28).to_be_bytes());
    for unit in units {
        list.extend([0xE4, 0, 0, 0, 1, 3, 0, 8]);
        list.extend(unit);
        list.extend([0; 14]);
        list.extend([2, 0]);
    }
    for _ in 0..times {
        list.extend([2, 0, 0, 24, 0, 0, 0, 1, 0, 0]);
        list.extend(blocks.to_be_bytes());
        list.extend(0_u64.to_be_bytes());
        list.extend(to.to_be_bytes());
    }
    list
}

fn copy(asked: &mut RawInitiator, units: [[u8; 8]; 2], to: u64, blocks: u16) -> u8 {
    third_party(asked, 0, 0, &copy_list(units, to, blocks, 1))
}

fn sectors(disk: &[u8], at: usize, count: usize) -> &[u8] {
    &disk[at * 512..(at + count) * 512]
}

/// What is under way on both cores ends, sooner rather than later.
fn await_quiet(desk: &Desk) {
    let begun = Instant::now();
    while sum(&status(desk, ""), "tasks") > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", status(desk, ""));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_copy_goes_from_any_core_to_any_core_whoever_is_asked() {
    let desk = Desk::new();
    let Some((running, mut disks)) = serve(&desk) else { return };
    let mut nodes = log_in_all(&running);
    let told = status(&desk, "");
    let shards = told["shards"].as_array().unwrap();
    assert!(shards.len() == 2 && shards.iter().all(|shard| shard["sessions"]["open"] != 0), "{told}");
    let units: Vec<_> = nodes.iter_mut().map(designator).collect();
    for (asked, node) in nodes.iter_mut().enumerate() {
        for from in 0..4 {
            let to = (from + asked + 1) % 4;
            let at = 256 * (asked + 1) + 7;
            assert_eq!(copy(node, [units[from], units[to]], at as u64, 200), GOOD);
            let moved = sectors(&disks[from], 0, 200).to_vec();
            disks[to][at * 512..(at + 200) * 512].copy_from_slice(&moved);
        }
    }
    for (node, disk) in nodes.iter_mut().zip(&disks) {
        assert!((0..BLOCKS).step_by(128).all(|at| node.read(at as u32, 128) == sectors(disk, at, 128)));
    }
    // Without a session of its own in it, a target is not reached, wherever it is.
    let mut alone = nodes.swap_remove(0);
    drop(nodes);
    std::thread::sleep(Duration::from_millis(200));
    for unit in &units[1..] {
        assert_eq!(copy(&mut alone, [units[0], *unit], 0, 8), CHECK_CONDITION);
        assert_eq!(code(&alone), UNREACHABLE);
    }
    drop(alone);
    running.stop();
}

#[test]
fn a_token_is_good_on_every_core() {
    let desk = Desk::new();
    let Some((running, disks)) = serve(&desk) else { return };
    let mut nodes = log_in_all(&running);
    assert_eq!(third_party(&mut nodes[0], 0x10, 1, &ranges(16, &[(100, 64), (1000, 36)])), GOOD);
    let told = outcome(&mut nodes[0], 1);
    let token = told[38 + usize::from(told[13])..][..512].to_vec();
    let expected = [sectors(&disks[0], 100, 64), sectors(&disks[0], 1000, 36)].concat();
    for (node, immediate) in nodes.iter_mut().skip(1).zip([0, 1, 0]) {
        assert_eq!(third_party(node, 0x11, 2, &write_list(&token, immediate, 0, &[(200, 100)])), GOOD);
        let told = outcome(node, 2);
        assert_eq!((told[5], number(&told[16..24])), (0x01, 100));
        assert!(node.read(200, 100) == expected);
    }
    assert_eq!(nodes[0].scsi(&[0x2A, 0, 0, 0, 0, 110, 0, 0, 1, 0], &[9; 512], 0).0, GOOD);
    for node in &mut nodes[1..] {
        assert_eq!(third_party(node, 0x11, 3, &write_list(&token, 0, 0, &[(500, 8)])), CHECK_CONDITION);
        assert_eq!((node.sense[2] & 0x0F, node.sense[12], node.sense[13]), (5, 0x23, 0x06), "revoked");
    }
    await_quiet(&desk);
    running.stop();
}

/// Sends EXTENDED COPY and does not wait for its answer.
fn begin(asked: &mut RawInitiator, list: &[u8]) {
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (1, 0xA1);
    bhs[16..20].copy_from_slice(&0xC0_u32.to_be_bytes());
    bhs[20..24].copy_from_slice(&(list.len() as u32).to_be_bytes());
    bhs[24..28].copy_from_slice(&asked.cmd_sn.to_be_bytes());
    bhs[32] = 0x83;
    bhs[42..46].copy_from_slice(&(list.len() as u32).to_be_bytes());
    asked.cmd_sn += 1;
    asked.send(bhs, list).unwrap();
}

/// A task management function (RFC 7143, 11.5.1), of the task `begin` has begun where it is of one; its response.
fn manage(initiator: &mut RawInitiator, function: u8) -> u8 {
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (0x42, 0x80 | function);
    bhs[16..20].copy_from_slice(&0x77_u32.to_be_bytes());
    let referenced = if function == 1 { 0xC0 } else { u32::MAX };
    bhs[20..24].copy_from_slice(&referenced.to_be_bytes());
    bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    bhs[32..36].copy_from_slice(&(initiator.cmd_sn - 1).to_be_bytes());
    initiator.send(bhs, &[]).unwrap();
    loop {
        let (bhs, _) = initiator.receive().unwrap();
        if bhs[0] & 0x3F == 0x22 {
            return bhs[2];
        }
    }
}

#[test]
fn copies_between_cores_end_when_they_are_aborted_and_nothing_is_left_of_them() {
    const ABORT_TASK: u8 = 1;
    const LUN_RESET: u8 = 5;
    let desk = Desk::new();
    let Some((running, disks)) = serve(&desk) else { return };
    let mut nodes = log_in_all(&running);
    let units: Vec<_> = nodes.iter_mut().map(designator).collect();
    for round in 0..24_u64 {
        let (from, to) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let other = 2 + (round % 2) as usize;
        begin(&mut nodes[other], &copy_list([units[from], units[to]], 1024, 1024, 48));
        std::thread::sleep(Duration::from_millis(round / 4));
        match round % 3 {
            // It may have ended before: then it does not exist (1).
            0 => assert!(manage(&mut nodes[other], ABORT_TASK) <= 1),
            1 => {
                // The unit that is written or read is reset by a session of its own.
                assert_eq!(manage(&mut nodes[to], LUN_RESET), 0);
                assert_eq!(manage(&mut nodes[other], LUN_RESET), 0);
            }
            _ => nodes[other] = log_in(running.port, &format!("node-{other}")),
        }
    }
    await_quiet(&desk);
    for (node, disk) in nodes.iter_mut().zip(&disks) {
        assert!(node.read(0, 1024) == sectors(disk, 0, 1024));
    }
    assert_eq!(copy(&mut nodes[2], [units[0], units[1]], 1024, 8), GOOD);
    // One is under way when the server stops.
    begin(&mut nodes[2], &copy_list([units[1], units[0]], 1024, 1024, 64));
    running.stop();
}

/// Waits for the end of this many reloads: until then a target that comes back may lack its LUN, whose image is being closed.
fn await_reloads(running: &Running, count: usize) {
    let begun = Instant::now();
    while running.log().matches("configuration read again").count() < count {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", running.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_copy_ends_when_the_target_it_reads_from_is_removed() {
    let desk = Desk::new();
    let Some((running, _)) = serve(&desk) else { return };
    for (round, removes_source) in [true, false].into_iter().enumerate() {
        desk.write("c.toml", config(0..4));
        running.signal(Signal::HUP);
        await_reloads(&running, 2 * round + 1);
        let mut nodes = log_in_all(&running);
        let units: Vec<_> = nodes.iter_mut().map(designator).collect();
        let pair = if removes_source { [units[3], units[0]] } else { [units[0], units[3]] };
        // Copies one after the other, until there is no such unit any more: each ends well or says so.
        desk.write("c.toml", config(0..3));
        running.signal(Signal::HUP);
        let begun = Instant::now();
        loop {
            let list = copy_list(pair, 1024, 1024, 32);
            if third_party(&mut nodes[0], 0, 0, &list) == CHECK_CONDITION {
                let told = code(&nodes[0]);
                assert!(told == UNREACHABLE || told == (0, 0), "{told:?}");
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        await_reloads(&running, 2 * round + 2);
        assert_eq!(nodes[0].scsi(&[0; 6], &[], 0).0, GOOD);
    }
    await_quiet(&desk);
    running.stop();
}

#[test]
fn a_source_that_cannot_be_read_is_the_third_party_that_failed() {
    let desk = Desk::new();
    let Some((running, disks)) = serve(&desk) else { return };
    let mut nodes = log_in_all(&running);
    let units: Vec<_> = nodes.iter_mut().map(designator).collect();
    // A raw file that somebody has cut off ends where the unit does not.
    let file = File::options().write(true).open(desk.path("disk-1.raw")).unwrap();
    file.set_len(100 * 512).unwrap();
    for from in [1, 3] {
        for asked in [0, 2] {
            let status = copy(&mut nodes[asked], [units[1], units[if from == 1 { 0 } else { 2 }]], 512, 200);
            assert_eq!(status, CHECK_CONDITION);
            assert_eq!(code(&nodes[asked]), THIRD_PARTY);
        }
    }
    assert!(nodes[0].read(0, 200) == sectors(&disks[0], 0, 200));
    await_quiet(&desk);
    running.stop();
}
