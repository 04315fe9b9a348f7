//! `goldrush serve` as a process: what it prints, whom it keeps away from its images, how it ends.

use rustix::process::Signal;

use crate::cli::{Desk, names};
use crate::running::{Running, start};

const FLAGS: &str = "--golden-cache 1M --register-buffers false";

#[test]
fn a_golden_image_is_served_to_nodes_that_are_made_for_it() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    let line = format!("serve --golden golden.vhd --overlays nodes --nodes 3 --listen 127.0.0.1:0 {FLAGS}");
    let Some(server) = start(&desk, &line) else { return };
    let targets: Vec<&String> = server.lines.iter().filter(|line| line.starts_with("target ")).collect();
    assert_eq!(
        targets,
        [
            "target iqn.2026-11.io.goldrush:node-001",
            "target iqn.2026-11.io.goldrush:node-002",
            "target iqn.2026-11.io.goldrush:node-003"
        ]
    );
    assert!(!server.lines.iter().any(|line| line.ends_with(":0")), "{:?}", server.lines);
    assert_eq!(names(&desk.path("nodes")), ["node-001.vhd", "node-002.vhd", "node-003.vhd"]);

    for line in [
        &line,
        "image convert nodes/node-001.vhd x.raw",
        "image create nodes/node-001.vhd --parent nodes/node-002.vhd",
        "image map nodes/node-001.vhd",
        "image merge nodes/node-001.vhd",
        "image flatten nodes/node-001.vhd",
        "image rebase nodes/node-001.vhd --parent golden.vhd",
        "image snapshot nodes/node-001.vhd --name nodes/frozen.vhd",
        "image seal nodes/node-001.vhd",
    ] {
        let said = desk.goldrush(line);
        assert!(said.code != 0 && said.err.contains("is in use by another process"), "{line}: {said:?}");
    }
    assert_eq!(desk.goldrush("image check nodes/node-001.vhd").code, 3);
    // The golden image is read by all: it may be looked at, and sealed.
    desk.goldrush_ok("image map golden.vhd");
    desk.goldrush_ok("image seal golden.vhd");
    assert!(desk.goldrush_ok("image info nodes/node-001.vhd").contains("in use        by another process"));

    server.stop();
    assert_eq!(desk.goldrush("image check nodes/node-001.vhd").code, 0);
    let again = start(&desk, &line).unwrap().stop_by(Signal::INT);
    assert_eq!(again.code, 0, "{again:?}");
}

#[test]
fn a_stranger_among_the_overlays_is_refused() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    desk.goldrush_ok("image create other.vhd --size 8M");
    std::fs::create_dir(desk.path("nodes")).unwrap();
    desk.goldrush_ok("image create nodes/node-001.vhd --parent other.vhd");
    let said = desk.goldrush("serve --golden golden.vhd --overlays nodes --nodes 1 --listen 127.0.0.1:0");
    let expected = "goldrush: nodes/node-001.vhd is not a child of the golden image: remove it, or name the golden image it was made from\n";
    assert_eq!((said.code, said.err.as_str()), (2, expected));
}

#[test]
fn logs_are_json_lines_when_asked() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    let line = format!(
        "serve --golden golden.vhd --overlays nodes --nodes 1 --listen 127.0.0.1:0 --log-format json {FLAGS}"
    );
    let Some(server) = start(&desk, &line) else { return };
    let log = server.stop().err;
    assert!(log.lines().count() > 1);
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
}

/// Bytes a process has read by calls so far.
fn read_by(server: &Running) -> u64 {
    let told = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).unwrap();
    told.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// What makes a start with ten thousand children quick: what a child holds is not looked at.
#[test]
fn a_restarted_server_reads_of_its_children_no_more_than_their_heads() {
    const NODES: u64 = 200;
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 256M");
    let line = format!(
        "serve --golden golden.vhd --overlays nodes --nodes {NODES} --listen 127.0.0.1:0 {FLAGS} --cores 0"
    );
    let Some(server) = start(&desk, &line) else { return };
    let empty = read_by(&server);
    // Each block of some of them, in part: bitmaps to be looked at, were it needed.
    for node in 1..=8 {
        let mut initiator = server.log_in(&format!("iqn.2026-11.io.goldrush:node-{node:03}"), node);
        for block in 0..128 {
            initiator.read(0, 1);
            initiator.command(block * 4096 + 8, 8, &[7; 4096]).unwrap();
            while initiator.answer().unwrap().1 != 0 {
                initiator.command(block * 4096 + 8, 8, &[7; 4096]).unwrap();
            }
        }
    }
    server.stop();
    let len = |node| std::fs::metadata(desk.path(&format!("nodes/node-00{node}.vhd"))).unwrap().len();
    assert!((1..=8).all(|node| len(node) > 200 << 20), "the children hold nothing");
    let server = start(&desk, &line).unwrap();
    let full = read_by(&server);
    // The program itself and its configuration are in both.
    let heads = NODES * 4096;
    assert!(full < empty + heads && full < heads + (2 << 20), "{full} bytes, {empty} while they were new");
    server.stop();
}
