//! What `goldrush status` and `goldrush top` say of one boot and of a load whose figures are known beforehand.
//!
//! Knows a machine that boots as machines do: loader, gap, system, quiet. Does not know how phases are told (`shard::boot`).

use std::time::{Duration, Instant};

use crate::cli::Desk;
use crate::cli_trace::{boot, desk};
use crate::hostile::NODE;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, start, status, sum};

fn start_server(desk: &Desk) -> Option<Running> {
    let line = "serve --golden golden.vhd --overlays nodes --nodes 2 --listen 127.0.0.1:0 --golden-cache 16M \
                --register-buffers false --cores 0 --boot-trace off";
    start(desk, line)
}

fn log_in(server: &Running, target: &str, isid: u32, segment: u32) -> RawInitiator {
    let mut initiator = RawInitiator::connect(server.port);
    let keys = format!(
        "InitiatorName=iqn.2026-11.io.goldrush:raw\0SessionType=Normal\0TargetName={target}\0\
         MaxRecvDataSegmentLength={segment}\0"
    );
    assert_eq!(initiator.login_with(isid, &keys).unwrap(), (0, 0));
    initiator
}

/// What is told of the first node, with its phase.
fn node(desk: &Desk) -> (String, serde_json::Value) {
    let status = status(desk, "--targets");
    let targets = status["targets"].as_array().unwrap();
    let node = targets.iter().find(|target| target["name"] == NODE).unwrap().clone();
    (node["phase"].as_str().unwrap().to_owned(), node)
}

/// Waits until the node is in a phase; it goes there from `from` and nowhere else.
#[track_caller]
fn becomes(desk: &Desk, from: &str, to: &str) -> serde_json::Value {
    let begun = Instant::now();
    loop {
        let (phase, node) = node(desk);
        if phase == to {
            return node;
        }
        assert!(phase == from && begun.elapsed() < Duration::from_secs(40), "from {from} to {to}: {node}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const PART: Duration = Duration::from_millis(300);

#[test]
fn each_phase_of_a_boot_is_told_in_order_with_how_long_it_took() {
    let desk = desk();
    let Some(server) = start_server(&desk) else { return };
    assert_eq!(node(&desk).0, "offline");
    let mut loader = log_in(&server, NODE, 1, 8192);
    loader.read(0, 8);
    becomes(&desk, "offline", "loader");
    std::thread::sleep(PART);
    drop(loader);
    becomes(&desk, "loader", "gap");
    std::thread::sleep(PART);
    let mut system = log_in(&server, NODE, 2, 262_144);
    becomes(&desk, "gap", "system");
    // Busy for a while, then quiet: a little now and then is not a boot any more.
    let busy = Instant::now();
    while busy.elapsed() < 8 * PART {
        (0..4).for_each(|_| drop(system.read(0, 2048)));
        assert_eq!(node(&desk).0, "system");
    }
    let node = becomes(&desk, "system", "settled");
    let ms = |name: &str| node[name].as_u64().unwrap_or_else(|| panic!("{name}: {node}"));
    let part = PART.as_millis() as u64;
    assert!(ms("loader_ms") >= part && ms("gap_ms") >= part && ms("system_ms") >= 8 * part - 1000, "{node}");
    // The parts end where the next begins; each is cut to whole milliseconds.
    let parts = ms("loader_ms") + ms("gap_ms") + ms("system_ms");
    assert!((parts..=parts + 3).contains(&ms("boot_ms")), "{node}");
    assert!(ms("phase_ms") >= 9_000 && ms("first_login_ms") >= ms("boot_ms") + ms("phase_ms"), "{node}");
    system.read(0, 8);
    let page = desk.goldrush_ok("top --once --interval 0.2");
    assert!(page.contains("0 starting a system, 1 settled") && page.contains("node-001"), "{page}");
    assert!(desk.goldrush_ok("status --interval 0 --targets").contains("settled"));
    drop(system);
    becomes(&desk, "settled", "offline");
}

#[test]
fn hits_misses_bytes_and_latencies_are_those_of_a_known_load() {
    let desk = desk();
    let Some(server) = start_server(&desk) else { return };
    let mut first = log_in(&server, NODE, 1, 262_144);
    let mut took = Vec::new();
    let mut timed_boot = |node: &mut RawInitiator| {
        let begun = Instant::now();
        boot(node);
        took.push(begun.elapsed());
    };
    timed_boot(&mut first);
    let cold = status(&desk, "");
    let lookups = sum(&cold, "counts/golden_misses");
    assert!(lookups >= 12, "each read of the boot waits for the disk: {cold}");
    assert_eq!((sum(&cold, "counts/golden_joins"), sum(&cold, "counts/golden_around")), (0, 0));
    let cold_hits = sum(&cold, "counts/golden_hits");
    let golden_bytes = sum(&cold, "counts/golden_bytes");

    // The same again, by the other machine and by the first: every lookup is a hit, and nothing is read.
    let mut second = log_in(&server, "iqn.2026-11.io.goldrush:node-002", 2, 262_144);
    timed_boot(&mut second);
    timed_boot(&mut first);
    let warm = status(&desk, "--sessions");
    assert_eq!(sum(&warm, "counts/golden_misses"), lookups);
    assert_eq!(sum(&warm, "counts/golden_hits"), cold_hits + 2 * (lookups + cold_hits));
    assert_eq!(sum(&warm, "counts/golden_bytes"), golden_bytes);
    let (reads, bytes) = (sum(&warm, "counts/reads"), sum(&warm, "counts/read_bytes"));
    assert_eq!(bytes, 3 * 12 * 32 * 512);
    let latencies = warm["shards"][0]["read_latency"]["counts"].as_array().unwrap();
    let counted: u64 = latencies.iter().map(|pair| pair[1].as_u64().unwrap()).sum();
    assert_eq!(counted, reads, "one latency a read");
    // What the server measures lies within what its initiator does.
    let sum_us = warm["shards"][0]["read_latency"]["sum_us"].as_u64().unwrap();
    let whole: Duration = took.iter().sum();
    assert!(sum_us > 0 && u128::from(sum_us) <= whole.as_micros(), "{sum_us} us of {whole:?}");
    let sessions = warm["sessions"].as_array().unwrap();
    assert!(sessions.len() == 2 && sessions.iter().all(|session| session["tasks"] == 0), "{warm}");
    // A command under way is one: a write whose data does not come.
    second.announce_write(100, 8).unwrap();
    let begun = Instant::now();
    while sum(&status(&desk, ""), "tasks") != 1 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the write is not told");
        std::thread::sleep(Duration::from_millis(20));
    }
    let share = 100.0 * (cold_hits + 2 * (lookups + cold_hits)) as f64 / (3 * (lookups + cold_hits)) as f64;
    let page = desk.goldrush_ok("status --interval 0");
    assert!(page.contains(&format!("{share:.2} % hits")), "{share:.2} %: {page}");
}
