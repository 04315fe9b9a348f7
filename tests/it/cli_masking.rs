//! MACs, masked LUNs, discovery's secrets and an initiator that follows a redirection: through the real program.
//!
//! Knows these as an initiator meets them. Rules over names, addresses and portals are `cli_admission`'s.

use std::process::Command;

use md5::{Digest, Md5};

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, config_line, start_at};

const RAW: &str = "iqn.2026-11.io.goldrush:raw";
const SECRET: &str = "correct horse battery";

/// Serves `c.toml` and logs everything. `None`, loudly, where the kernel gives no ring.
pub fn serve(desk: &Desk, config: &str, addresses: usize) -> Option<Running> {
    desk.write("c.toml", config);
    start_at(desk, &format!("{} --log-level trace", config_line()), addresses)
}

/// A target with one LUN of its own.
fn target(desk: &Desk, name: &str, keys: &str) -> String {
    desk.write(&format!("{name}.raw"), vec![0; 1 << 20]);
    format!(
        "[[target]]\nname = \"iqn.2026-11.io.goldrush:{name}\"\n{keys}\n[[target.lun]]\nlun = 0\npath = \"{name}.raw\"\n"
    )
}

fn log_in(address: (&str, u16), target: &str) -> (u8, u8) {
    RawInitiator::connect_to(address).login(&format!("iqn.2026-11.io.goldrush:{target}"), 1).unwrap()
}

/// What SendTargets=All answers in a session that is logged in.
fn send_targets(initiator: &mut RawInitiator) -> Vec<String> {
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (0x44, 0x80);
    bhs[16..20].copy_from_slice(&5_u32.to_be_bytes());
    bhs[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
    bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    initiator.send(bhs, b"SendTargets=All\0").unwrap();
    let (_, text) = initiator.receive().unwrap();
    let text = String::from_utf8(text).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn discovered(address: (&str, u16)) -> Vec<String> {
    let mut initiator = RawInitiator::connect_to(address);
    let keys = format!("InitiatorName={RAW}\0SessionType=Discovery\0");
    assert_eq!(initiator.login_with(1, &keys).unwrap(), (0, 0));
    send_targets(&mut initiator)
}

#[test]
fn a_card_is_known_by_leases_and_hosts() {
    let desk = Desk::new();
    let mut config = "listen = [\"127.0.0.1:0\"]\nleases = [\"leases\"]\n".to_owned();
    desk.write("leases", "0 52:54:00:00:00:01 127.0.0.1 node *\n");
    let targets: String = ["1", "2"]
        .iter()
        .map(|card| target(&desk, &format!("card-{card}"), &format!("macs = [\"52:54:00:00:00:0{card}\"]")))
        .collect();
    let statuses = |config: &str| {
        let server = serve(&desk, config, 1)?;
        let address = ("127.0.0.1", server.ports[0]);
        let told =
            discovered(address).into_iter().filter(|line| line.starts_with("TargetName")).collect::<Vec<_>>();
        Some((log_in(address, "card-1"), log_in(address, "card-2"), told))
    };
    let named = |card: u8| vec![format!("TargetName=iqn.2026-11.io.goldrush:card-{card}")];
    let Some(by_leases) = statuses(&format!("{config}{targets}")) else { return };
    assert_eq!(by_leases, ((0, 0), (2, 2), named(1)));
    config.push_str("[[host]]\nmac = \"52:54:00:00:00:02\"\naddress = \"127.0.0.1\"\n");
    assert_eq!(statuses(&format!("{config}{targets}")), Some(((2, 2), (0, 0), named(2))));
    for (from, to, why) in [
        ("00:02\"\naddress", "0\"\naddress", "c.toml:4: \"52:54:00:00:0\" is no MAC: write six pairs"),
        ("[\"leases\"]", "[\"none\"]", "c.toml:2: leases none: the file cannot be read"),
        ("\"127.0.0.1\"\n", "\"here\"\n", "c.toml:5: \"here\" is no address"),
        ("macs = [\"52:54:00:00:00:01\"]", "macs = []", "macs is empty and would admit nobody"),
    ] {
        let bad = format!("{config}{targets}");
        assert!(bad.contains(from), "{from}");
        desk.write("c.toml", bad.replacen(from, to, 1));
        let said = desk.goldrush("serve --config c.toml");
        assert!(said.code == 2 && said.err.contains(why), "{why}: {said:?}");
    }
}

#[test]
fn a_masked_lun_is_not_there() {
    let desk = Desk::new();
    desk.write("hidden.raw", vec![0; 1 << 20]);
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\n{}[[target.lun]]\nlun = 3\npath = \"hidden.raw\"\ninitiators = [\"iqn.2026-11.io.goldrush:boss\"]\n",
        target(&desk, "disks", "")
    );
    let Some(server) = serve(&desk, &config, 1) else { return };
    const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    for (name, luns) in [(RAW, &[0_u8][..]), ("iqn.2026-11.io.goldrush:boss", &[0, 3])] {
        let mut initiator = RawInitiator::connect(server.ports[0]);
        let keys =
            format!("InitiatorName={name}\0SessionType=Normal\0TargetName=iqn.2026-11.io.goldrush:disks\0");
        assert_eq!(initiator.login_with(1, &keys).unwrap(), (0, 0));
        let (status, list) = initiator.scsi(&REPORT_LUNS, &[], 256);
        assert_eq!(status, 0);
        let listed: Vec<u8> = list[8..].chunks(8).map(|field| field[1]).collect();
        assert_eq!(listed, luns, "{name}");
    }
}

/// The value of a key in a text.
fn value<'a>(text: &'a [u8], key: &str) -> &'a str {
    let text = std::str::from_utf8(text).unwrap();
    text.split('\0').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.strip_prefix("0x").unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// Discovery with CHAP (MD5) as `user`; `reflect` sends the target's own challenge back.
fn discovery_with_chap(port: u16, secret: &str, reflect: bool) -> ((u8, u8), RawInitiator) {
    let mut initiator = RawInitiator::connect(port);
    let first = format!("InitiatorName={RAW}\0SessionType=Discovery\0AuthMethod=CHAP\0");
    initiator.login_pdu(0, 1, first.as_bytes()).unwrap();
    initiator.receive().unwrap();
    initiator.login_pdu(0, 1, b"CHAP_A=5\0").unwrap();
    let (_, challenge) = initiator.receive().unwrap();
    let (id, theirs) = (value(&challenge, "CHAP_I"), value(&challenge, "CHAP_C"));
    let mut hash = Md5::new();
    hash.update([id.parse::<u8>().unwrap()]);
    hash.update(secret);
    hash.update(bytes(theirs));
    let response: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let back = if reflect { format!("CHAP_I={id}\0CHAP_C={theirs}\0") } else { String::new() };
    let text = format!("CHAP_N=desk\0CHAP_R=0x{response}\0{back}");
    initiator.login_pdu(0x83, 1, text.as_bytes()).unwrap();
    let (answer, _) = initiator.receive().unwrap();
    ((answer[36], answer[37]), initiator)
}

#[test]
fn discovery_asks_for_its_own_secret_and_no_log_line_holds_it() {
    let desk = Desk::new();
    desk.write("secret", SECRET);
    desk.write("ours", "an other secret of the room");
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\n[discovery]\nchap = {{ user = \"desk\", secret_file = \"secret\", mutual = {{ user = \"room\", secret_file = \"ours\" }} }}\n{}",
        target(&desk, "open", "")
    );
    let Some(server) = serve(&desk, &config, 1) else { return };
    let port = server.ports[0];
    let mut plain = RawInitiator::connect(port);
    let keys = format!("InitiatorName={RAW}\0SessionType=Discovery\0");
    assert_eq!(plain.login_with(1, &keys).unwrap(), (2, 1));
    assert_eq!(discovery_with_chap(port, "another battery", false).0, (2, 1));
    assert_eq!(discovery_with_chap(port, SECRET, true).0.0, 2, "a reflected challenge");
    let (status, mut initiator) = discovery_with_chap(port, SECRET, false);
    assert_eq!(status, (0, 0));
    let told = send_targets(&mut initiator);
    assert!(told.iter().any(|line| line == "TargetName=iqn.2026-11.io.goldrush:open"), "{told:?}");
    // The target itself asks for nothing.
    assert_eq!(log_in(("127.0.0.1", port), "open"), (0, 0));
    let log = server.stop().err;
    assert!(log.contains("logged in"), "{log}");
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let listed = format!("{:?}", SECRET.as_bytes());
    for secret in [SECRET, hex.as_str(), listed.as_str(), "an other secret"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn a_login_is_sent_to_where_the_target_is_served_now() {
    let (old, new) = (Desk::new(), Desk::new());
    let listen = "listen = [\"127.0.0.1:0\"]\n";
    let Some(there) = serve(&new, &format!("{listen}{}", target(&new, "moved", "")), 1) else { return };
    let place = format!("127.0.0.1:{}", there.ports[0]);
    let config: String = [("moved", false), ("gone", true)]
        .iter()
        .map(|(name, kind)| {
            format!(
                "[[target]]\nname = \"iqn.2026-11.io.goldrush:{name}\"\nredirect = {{ to = \"{place}\", permanent = {kind} }}\n"
            )
        })
        .collect();
    let Some(here) = serve(&old, &format!("{listen}{config}"), 1) else { return };
    for (name, status) in [("moved", (1, 1)), ("gone", (1, 2))] {
        let mut initiator = RawInitiator::connect(here.ports[0]);
        let keys =
            format!("InitiatorName={RAW}\0SessionType=Normal\0TargetName=iqn.2026-11.io.goldrush:{name}\0");
        initiator.login_pdu(0x87, 1, keys.as_bytes()).unwrap();
        let (answer, text) = initiator.receive().unwrap();
        assert_eq!((answer[36], answer[37]), status);
        assert_eq!(value(&text, "TargetAddress"), place);
        assert!(initiator.is_closed_by_target());
    }
    // An initiator that follows.
    let url = format!("iscsi://127.0.0.1:{}/iqn.2026-11.io.goldrush:moved/0", here.ports[0]);
    match Command::new("iscsi-inq").arg(&url).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("SKIPPED: iscsi-inq (libiscsi-bin) does not run here: {error}"),
    }
}
