//! `goldrush serve --explain`: every choice with its reason, and nothing done.

use std::net::TcpListener;

use crate::cli::{Desk, Said, names};
use crate::running::start_nodes;

/// `None`, loudly, where the kernel gives no ring.
fn explain(desk: &Desk, line: &str) -> Option<Said> {
    let said = desk.goldrush(line);
    if said.code == 1 && said.err.contains("io_uring") {
        eprintln!("SKIPPED: the kernel gives no ring: {}", said.err);
        return None;
    }
    Some(said)
}

const NODES: &str = "serve --explain --golden golden.vhd --overlays nodes --nodes 3";

#[test]
fn every_flag_is_named_with_what_it_does_to_this_server() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    let Some(said) = explain(&desk, NODES) else { return };
    assert_eq!(said.code, 0, "{said:?}");
    for part in [
        "3 targets, 3 LUNs; 0 images are there, 3 would be created",
        "half of the ",
        "0.0.0.0:3260",
        "runtime/control.sock",
        "one a core",
        "3 LUNs persistent, 0 until reset, 0 read only",
        "in turn",
        "to 3 images on ",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let help = desk.goldrush_ok("serve --help");
    let flags = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let flags: Vec<&str> = flags.filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(flags.len() > 15, "{flags:?}");
    for flag in flags {
        // These say what is wanted of the command, not of the server.
        if !["explain", "config", "log-format", "log-level"].contains(&flag) {
            assert!(said.out.contains(&format!("--{flag}")), "--{flag} is not explained: {}", said.out);
        }
    }
}

#[test]
fn nothing_is_bound_made_locked_or_emptied() {
    let desk = Desk::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    let port = held.local_addr().unwrap().port();
    let Some(said) = explain(&desk, &format!("{NODES} --listen 127.0.0.1:{port} --metrics 127.0.0.1:{port}"))
    else {
        return;
    };
    assert_eq!(said.code, 0, "the port is another's: {said:?}");
    assert_eq!(desk.names(), ["golden.vhd", "runtime"]);
    assert_eq!(names(&desk.path("runtime")), [""; 0]);

    // Also beside a server that runs, and of children that would be emptied.
    let Some(server) = start_nodes(&desk, 2, "") else { return };
    let before = std::fs::read(desk.path("nodes/node-001.vhd")).unwrap();
    let said = explain(
        &desk,
        &format!("{NODES} --durability until-reset --golden-cache 1M --spin 5 --queue-depth 7"),
    )
    .unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    for part in [
        "2 images are there, 1 would be created",
        "3 until reset",
        "as --golden-cache asks",
        "5 us",
        "7 commands at once",
        "control-PID.sock",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    assert!(std::fs::read(desk.path("nodes/node-001.vhd")).unwrap() == before);
    server.stop();
}

#[test]
fn what_would_keep_it_from_starting_is_said_with_its_code() {
    let desk = Desk::new();
    desk.goldrush_ok("image create gone.vhd --size 8M");
    desk.goldrush_ok("image create node.vhd --parent gone.vhd");
    std::fs::remove_file(desk.path("gone.vhd")).unwrap();
    desk.write(
        "c.toml",
        "[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n[[target.lun]]\nlun = 0\npath = \"node.vhd\"\n",
    );
    let Some(said) = explain(&desk, "serve --explain --config c.toml") else { return };
    assert!(
        said.code == 2 && said.err.contains("goldrush: c.toml:") && said.err.contains("gone.vhd"),
        "{said:?}"
    );
    assert!(said.out.contains("from c.toml (--config)"), "{said:?}");
    let said = desk.goldrush("serve --explain --config c.toml --cores 1023");
    assert!(said.code == 2 && said.err.contains("core 1023 is not one"), "{said:?}");
}
