//! `goldrush serve` as a process: what it prints, whom it keeps away from its images, how it ends.

use crate::cli::{Desk, Said, names, said};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

/// A server that listens.
struct Server {
    child: Child,
    lines: Vec<String>,
}

/// Starts it and reads its output up to the last address. `None`, loudly, where the kernel gives no ring.
fn start(desk: &Desk, line: &str, addresses: usize) -> Option<Server> {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let mut command = desk.command(&arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines: Vec<String> = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.iter().filter(|line| line.starts_with("listening on ")).count() == addresses {
            return Some(Server { child, lines });
        }
    }
    let said = said(child.wait_with_output().unwrap());
    assert!(said.err.contains("io_uring"), "{line}: {lines:?} {said:?}");
    eprintln!("SKIPPED: the kernel gives no ring: {}", said.err);
    None
}

impl Server {
    fn stop(self, signal: &str) -> Said {
        let pid = self.child.id().to_string();
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
        assert!(sent.unwrap().success());
        said(self.child.wait_with_output().unwrap())
    }
}

const FLAGS: &str = "--golden-cache 1M --register-buffers false";

#[test]
fn a_golden_image_is_served_to_nodes_that_are_made_for_it() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    let line = format!("serve --golden golden.vhd --overlays nodes --nodes 3 --listen 127.0.0.1:0 {FLAGS}");
    let Some(server) = start(&desk, &line, 1) else { return };
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

    let said = server.stop("TERM");
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(desk.goldrush("image check nodes/node-001.vhd").code, 0);
    let again = start(&desk, &line, 1).unwrap().stop("INT");
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
    let Some(server) = start(&desk, &line, 1) else { return };
    let said = server.stop("TERM");
    assert!(said.err.lines().count() > 1);
    for line in said.err.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
}
