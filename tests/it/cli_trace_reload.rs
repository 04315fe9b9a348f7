//! Boot traces of golden images that a reload adds: recorded, and read along, as those that were there at the start.
//!
//! Knows configurations of two goldens. Does not know how a boot is told (`cli_trace`).

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cli::Desk;
use crate::cli_trace::{READ, boot, desk, field};
use crate::hostile::logged_in;
use crate::raw_initiator::RawInitiator;
use crate::running::{self, Running};

const OTHER: &str = "iqn.2026-11.io.goldrush:other";
const LATER: &str = "iqn.2026-11.io.goldrush:later";

fn target(name: &str, child: &str) -> String {
    format!("[[target]]\nname = \"{name}\"\n[[target.lun]]\nlun = 0\npath = \"{child}\"\n")
}

fn write_config(desk: &Desk, later: bool) {
    let later = if later { target(LATER, "later.vhd") } else { String::new() };
    let text = format!("listen = [\"127.0.0.1:0\"]\n{}{later}", target(OTHER, "other.vhd"));
    desk.write("c.toml", text);
}

/// Started without the golden image of `later`, which comes by a reload.
fn serve_and_reload(desk: &Desk, more: &str) -> Option<(Running, RawInitiator)> {
    write_config(desk, false);
    let line =
        format!("serve --config c.toml --register-buffers false --golden-cache 16M --log-format json {more}");
    let server = running::start(desk, &line)?;
    write_config(desk, true);
    server.signal(Signal::HUP);
    // Until then there is no such target.
    let begun = Instant::now();
    loop {
        let mut node = RawInitiator::connect(server.port);
        if node.login(LATER, 1).unwrap() == (0, 0) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "the reload brought no target");
        std::thread::sleep(Duration::from_millis(50));
    }
    let node = logged_in(server.port, LATER, 1);
    Some((server, node))
}

#[test]
fn a_golden_image_that_a_reload_adds_is_recorded_and_read_along() {
    let desk = desk();
    std::fs::copy(desk.path("golden.vhd"), desk.path("first.vhd")).unwrap();
    desk.goldrush_ok("image create --parent first.vhd other.vhd");
    desk.goldrush_ok("image create --parent golden.vhd later.vhd");
    let Some((server, mut node)) = serve_and_reload(&desk, "") else { return };
    boot(&mut node);
    let first = server.stop();
    assert!(first.err.contains("a boot was recorded"), "{}", first.err);
    assert!(desk.path("golden.vhd.boot-trace").exists() && !desk.path("first.vhd.boot-trace").exists());
    let bytes = field(&first, READ, "asked_bytes");

    // The trace is there now: the first read of a node is enough.
    let (server, mut node) = serve_and_reload(&desk, "").unwrap();
    node.read(0, 1);
    std::thread::sleep(Duration::from_millis(700));
    boot(&mut node);
    let second = server.stop();
    assert!(second.err.contains("boot trace found"), "{}", second.err);
    assert_eq!(field(&second, READ, "read_bytes"), bytes);
    assert!(field(&second, READ, "ahead_used_bytes") > bytes / 2, "{}", second.err);

    // Who warms the cache has it warm after a reload as well, without any node.
    let (server, node) = serve_and_reload(&desk, "--warm").unwrap();
    std::thread::sleep(Duration::from_millis(700));
    drop(node);
    let warm = server.stop();
    assert_eq!(field(&warm, READ, "ahead_bytes"), bytes);
}
