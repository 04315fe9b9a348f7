//! Who may see and use what, through the real program: rules over names and addresses, portals, redirection, discovery.
//!
//! Knows configurations, login statuses and the text of SendTargets. Does not know how rules match (`shard::admission`).

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, config_line, start_at};

const CONFIG: &str = r#"
listen = ["127.0.0.1:0", "127.0.0.1:FIXED"]

[discovery]
addresses = ["127.0.0.0/8"]
chap = { user = "finder", secret_file = "secret" }

[[target]]
name = "iqn.2026-11.io.goldrush:patterns"
initiators = ["iqn.2026-11.io.goldrush:r*"]
addresses = ["127.0.0.0/8"]
  [[target.lun]]
  lun = 0
  path = "disk.vhd"
  readonly = true

[[target]]
name = "iqn.2026-11.io.goldrush:far"
addresses = ["192.0.2.0/24"]
  [[target.lun]]
  lun = 0
  path = "disk.vhd"
  readonly = true

[[target]]
name = "iqn.2026-11.io.goldrush:moved"
redirect = { to = "192.0.2.11:3260" }

[[target]]
name = "iqn.2026-11.io.goldrush:gone"
redirect = { to = "storage-2.example.com:860", permanent = true }

[[target]]
name = "iqn.2026-11.io.goldrush:door"
portals = ["127.0.0.1:FIXED"]
  [[target.lun]]
  lun = 0
  path = "disk.vhd"
  readonly = true
"#;

/// `None`, loudly, where the kernel gives no ring.
fn start(desk: &Desk) -> Option<Running> {
    desk.goldrush_ok("image create disk.vhd --size 8M");
    desk.write("secret", "a secret of the finder");
    // Free a moment ago: below the ephemeral ports nobody else is given it meanwhile.
    let fixed = (20_000..30_000).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())?;
    desk.write("c.toml", CONFIG.replace("FIXED", &fixed.to_string()));
    start_at(desk, config_line(), 2)
}

/// Status class and detail, and the text of the answer.
fn login(port: u16, keys: &str) -> ((u8, u8), String) {
    let mut initiator = RawInitiator::connect(port);
    initiator.login_pdu(0x87, 7, keys.as_bytes()).unwrap();
    let (answer, text) = initiator.receive().unwrap();
    ((answer[36], answer[37]), String::from_utf8(text).unwrap())
}

fn normal(port: u16, initiator: &str, target: &str) -> ((u8, u8), String) {
    let keys = format!(
        "InitiatorName=iqn.2026-11.io.goldrush:{initiator}\0SessionType=Normal\0\
         TargetName=iqn.2026-11.io.goldrush:{target}\0"
    );
    login(port, &keys)
}

#[test]
fn rules_portals_and_redirects_decide_a_login() {
    let desk = Desk::new();
    let Some(server) = start(&desk) else { return };
    let (any, fixed) = (server.ports[0], server.ports[1]);
    assert_eq!(normal(any, "raw", "patterns").0, (0, 0));
    assert_eq!(normal(any, "other", "patterns").0, (2, 2), "not admitted by its name");
    assert_eq!(normal(any, "raw", "far").0, (2, 2), "not admitted by its address");
    assert_eq!(normal(any, "raw", "door").0, (2, 3), "not at this portal");
    assert_eq!(normal(fixed, "raw", "door").0, (0, 0));
    let (status, text) = normal(any, "raw", "moved");
    assert_eq!((status, text.contains("TargetAddress=192.0.2.11:3260")), ((1, 1), true), "{text:?}");
    let (status, text) = normal(any, "raw", "gone");
    assert_eq!(
        (status, text.contains("TargetAddress=storage-2.example.com:860")),
        ((1, 2), true),
        "{text:?}"
    );
}

#[test]
fn discovery_asks_for_its_secret_and_tells_only_what_may_be_used() {
    let desk = Desk::new();
    let Some(server) = start(&desk) else { return };
    let port = server.ports[0];
    let keys = "InitiatorName=iqn.2026-11.io.goldrush:raw\0SessionType=Discovery\0";
    assert_eq!(login(port, keys).0, (2, 1), "without CHAP");
    let list = |user: &str| {
        let url = format!("iscsi://{user}@127.0.0.1:{port}");
        std::process::Command::new("iscsi-ls").arg(url).output()
    };
    let Ok(right) = list("finder%a secret of the finder") else {
        eprintln!("SKIPPED: iscsi-ls of libiscsi is not installed");
        return;
    };
    let told = String::from_utf8_lossy(&right.stdout).into_owned();
    for (target, is_told) in [("door", true), ("moved", true), ("far", false), ("patterns", false)] {
        // iscsi-ls has a name of its own, which the pattern does not admit.
        assert_eq!(told.contains(&format!("goldrush:{target}")), is_told, "{target}: {told}");
    }
    let wrong = list("finder%another secret here").unwrap();
    assert!(!String::from_utf8_lossy(&wrong.stdout).contains("goldrush:"), "{wrong:?}");
}

#[test]
fn rules_that_mean_nothing_are_refused_with_their_line() {
    let desk = Desk::new();
    desk.goldrush_ok("image create disk.vhd --size 8M");
    desk.write("secret", "a secret of the finder");
    for (from, to, why) in [
        ("\"127.0.0.0/8\"]\nchap", "\"127.0.0.1/8\"]\nchap", "is not the first address of its subnet"),
        ("goldrush:r*", "goldrush:r %", "is no initiator name"),
        ("[\"192.0.2.0/24\"]", "[]", "would admit nobody"),
        ("portals = [\"127.0.0.1:FIXED\"]", "portals = [\"192.0.2.1:1\"]", "none of the listen addresses"),
        ("192.0.2.11:3260", "192.0.2.11", "write ADDRESS:PORT or NAME:PORT"),
        ("redirect = { to = \"192.0.2.11:3260\" }", "", "has no [[target.lun]]"),
    ] {
        assert!(CONFIG.contains(from), "{from}");
        desk.write("c.toml", CONFIG.replacen(from, to, 1).replace("FIXED", "3999"));
        let said = desk.goldrush("serve --config c.toml");
        assert!(
            said.code == 2 && said.err.contains(why) && said.err.contains("goldrush: c.toml:"),
            "{why}: {said:?}"
        );
    }
}
