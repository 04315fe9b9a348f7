//! A changed configuration and SIGHUP, through the real program: what is not concerned goes on.
//!
//! Knows what initiators see and what the log says. Does not know how shards change.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, start_config};

const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LISTEN: &str = "listen = [\"127.0.0.1:0\"]\n";

struct Server<'a> {
    desk: &'a Desk,
    running: Running,
    told: usize,
}

impl<'a> Server<'a> {
    /// `None`, loudly, where the kernel gives no ring.
    fn start(desk: &'a Desk, config: &str) -> Option<Self> {
        desk.write("c.toml", config);
        Some(Self { desk, running: start_config(desk, "")?, told: 0 })
    }

    /// The configuration becomes `config`; what the server says about it.
    fn reload(&mut self, config: &str) -> String {
        self.desk.write("c.toml", config);
        self.running.signal(Signal::HUP);
        let told = self.told;
        let verdict = |line: &&str| {
            ["configuration read again", "changes nothing", "in force in part"]
                .iter()
                .any(|it| line.contains(it))
        };
        let line = self.wait_for(|log| log.lines().filter(verdict).nth(told).map(str::to_owned));
        self.told += 1;
        line
    }

    /// What `find` finds in the log, sooner or later.
    fn wait_for<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let log = self.running.log();
            if let Some(found) = find(&log) {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "not said: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_line(&self, text: &str) {
        self.wait_for(|log| log.contains(text).then_some(()));
    }

    fn log_in(&self, target: &str) -> Option<RawInitiator> {
        let mut initiator = RawInitiator::connect(self.running.port);
        (initiator.login(&name(target), 1).unwrap() == (0, 0)).then_some(initiator)
    }
}

fn name(target: &str) -> String {
    format!("iqn.2026-11.io.goldrush:{target}")
}

/// A target with raw LUNs; `keys` are its own.
fn target(target: &str, keys: &str, luns: &[(u16, &str)]) -> String {
    let mut text = format!("[[target]]\nname = \"{}\"\n{keys}\n", name(target));
    for (lun, path) in luns {
        text.push_str(&format!("[[target.lun]]\nlun = {lun}\npath = \"{path}\"\n"));
    }
    text
}

/// A command to a LUN: status, additional sense code and data. Asynchronous messages are passed over.
fn command(initiator: &mut RawInitiator, lun: u8, cdb: &[u8], read_len: u32) -> (u8, (u8, u8), Vec<u8>) {
    let mut bhs = [0; 48];
    (bhs[0], bhs[1], bhs[9]) = (1, if read_len == 0 { 0x81 } else { 0xC1 }, lun);
    bhs[16..20].copy_from_slice(&9_u32.to_be_bytes());
    bhs[20..24].copy_from_slice(&read_len.to_be_bytes());
    bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    bhs[32..32 + cdb.len()].copy_from_slice(cdb);
    initiator.cmd_sn += 1;
    initiator.send(bhs, &[]).unwrap();
    let mut data = Vec::new();
    loop {
        let (bhs, piece) = initiator.receive().unwrap();
        match bhs[0] & 0x3F {
            0x21 => return (bhs[3], piece.get(14..16).map_or((0, 0), |codes| (codes[0], codes[1])), data),
            0x25 => data.extend(piece),
            _ => continue,
        }
        if bhs[1] & 1 != 0 {
            return (bhs[3], (0, 0), data);
        }
    }
}

/// The unit attention that is pending; zeros: none.
fn attention(initiator: &mut RawInitiator, lun: u8) -> (u8, u8) {
    command(initiator, lun, &[0; 6], 0).1
}

fn luns(initiator: &mut RawInitiator) -> Vec<u8> {
    let (status, _, list) = command(initiator, 0, &REPORT_LUNS, 256);
    assert_eq!(status, 0);
    list[8..].chunks(8).map(|field| field[1]).collect()
}

/// Logs in and takes the unit attention of a new session.
fn session(server: &Server<'_>, target: &str) -> RawInitiator {
    let mut initiator = server.log_in(target).unwrap();
    assert_eq!(attention(&mut initiator, 0), (0x29, 0));
    initiator
}

/// What closes a session that is asked to go: an asynchronous message, then the end of the stream.
fn is_asked_to_go(initiator: &mut RawInitiator) -> bool {
    let Ok((bhs, _)) = initiator.receive() else { return false };
    (bhs[0] & 0x3F, bhs[36]) == (0x32, 1) && initiator.is_closed_by_target()
}

#[test]
fn targets_come_and_go_and_others_notice_nothing() {
    let desk = Desk::new();
    ["a.raw", "b.raw", "c.raw"].iter().for_each(|file| desk.write(file, vec![0; 1 << 20]));
    let [a, b, c] = ["a", "b", "c"].map(|node| target(node, "", &[(0, &format!("{node}.raw"))]));
    let Some(mut server) = Server::start(&desk, &format!("{LISTEN}{a}{b}")) else { return };
    let mut stays = session(&server, "a");
    let mut goes = session(&server, "b");
    goes.command(8, 1, &[7; 512]).unwrap();
    assert_eq!(goes.answer().unwrap().1, 0);
    // Commands that are on their way when the configuration changes.
    let config = format!("{LISTEN}{c}{a}");
    (0..20).for_each(|lba| stays.command(lba, 1, &[lba as u8 + 1; 512]).unwrap());
    let said = server.reload(&config);
    assert!(said.contains("1 target added, 1 target removed, 1 LUN added, 1 LUN removed"), "{said}");
    (0..20).for_each(|_| assert_eq!(stays.answer().unwrap().1, 0));
    assert_eq!(stays.read(19, 1), [20; 512]);
    assert!(is_asked_to_go(&mut goes));
    server.wait_for_line("the target is gone");
    assert!(server.log_in("b").is_none());
    let mut came = session(&server, "c");
    assert_eq!(came.read(0, 1), [0; 512]);
    // Its image is nobody's, and has what was written.
    File::open(desk.path("b.raw")).unwrap().try_lock().unwrap();
    assert_eq!(std::fs::read(desk.path("b.raw")).unwrap()[8 * 512..9 * 512], [7; 512]);
    assert!(server.reload(&format!("{LISTEN}{c}{a}{b}")).contains("1 target added, 1 LUN added"));
    let mut back = session(&server, "b");
    assert_eq!(back.read(8, 1), [7; 512]);
    assert!(server.reload(&format!("{LISTEN}{c}{a}{b}")).contains("nothing changed"));
    desk.write("c.toml", format!("{LISTEN}{c}{a}"));
    assert_eq!(desk.goldrush_ok("reload"), "1 target removed, 1 LUN removed\n");
    assert_eq!(crate::running::status(&desk, "")["about"]["targets"], 2);
}

#[test]
fn a_bad_configuration_changes_nothing() {
    let desk = Desk::new();
    ["a.raw", "b.raw"].iter().for_each(|file| desk.write(file, vec![0; 1 << 20]));
    desk.write("odd.raw", vec![0; 1000]);
    let good = format!("{LISTEN}{}", target("a", "", &[(0, "a.raw")]));
    let more = target("b", "", &[(0, "b.raw"), (1, "none.raw")]);
    let Some(mut server) = Server::start(&desk, &good) else { return };
    let mut session = session(&server, "a");
    let bad = [
        (format!("{good}{more}"), "c.toml:16: image none.raw cannot be opened"),
        (format!("{good}[[target]]\n"), "c.toml:8:"),
        (good.replace("a.raw", "odd.raw"), "c.toml:7: odd.raw: 1000 bytes are no whole number"),
        (
            format!("{good}{}", target("b", "", &[(0, "b.raw"), (1, "a.raw")])),
            "a.raw is used by c.toml:7 already",
        ),
        (format!("runtime_dir = \"x\"\n{good}"), "c.toml:1: runtime_dir cannot change while the server runs"),
        (format!("state_dir = \"x\"\n{good}"), "c.toml:1: state_dir cannot change while the server runs"),
        (good.replace("127.0.0.1:0", "192.0.2.1:0"), "cannot listen on 192.0.2.1:0"),
    ];
    for (config, why) in bad {
        let said = server.reload(&config);
        assert!(
            said.contains("the new configuration changes nothing") && said.contains(why),
            "{why}: {said}"
        );
        assert_eq!(luns(&mut session), [0]);
        assert_eq!(attention(&mut session, 0), (0, 0));
        assert!(server.log_in("b").is_none());
    }
    // The command says the same as the log.
    desk.write("c.toml", "listen = 7\n");
    let said = desk.goldrush("reload");
    assert!(said.code == 1 && said.err.contains("c.toml:1: invalid type"), "{said:?}");
    server.told += 1;
    // What was opened on the way is nobody's again.
    File::open(desk.path("b.raw")).unwrap().try_lock().unwrap();
    assert!(server.reload(&good).contains("nothing changed"));
}

#[test]
fn an_image_goes_from_one_lun_to_another_in_one_reload() {
    let desk = Desk::new();
    ["a.raw", "b.raw"].iter().for_each(|file| desk.write(file, vec![0; 1 << 20]));
    let Some(mut server) = Server::start(&desk, &format!("{LISTEN}{}", target("a", "", &[(0, "a.raw")])))
    else {
        return;
    };
    let mut before = session(&server, "a");
    before.command(8, 1, &[7; 512]).unwrap();
    assert_eq!(before.answer().unwrap().1, 0);
    // To another target, with another number.
    let said = server.reload(&format!("{LISTEN}{}", target("b", "", &[(0, "b.raw"), (3, "a.raw")])));
    assert!(said.contains("1 target added, 1 target removed, 2 LUNs added, 1 LUN removed"), "{said}");
    assert!(server.log_in("a").is_none() && is_asked_to_go(&mut before));
    let mut after = session(&server, "b");
    assert_eq!(luns(&mut after), [0, 3]);
    after.lun = 3;
    let read_10 = [0x28, 0, 0, 0, 0, 8, 0, 0, 1, 0];
    assert_eq!(after.scsi(&read_10, &[], 512), (0, vec![7; 512]));
    // Two change their numbers; and one is only read from now on.
    let crossed = format!("{LISTEN}{}", target("b", "", &[(0, "a.raw"), (3, "b.raw")]));
    assert!(server.reload(&crossed).contains("2 LUNs added, 2 LUNs removed"));
    after.lun = 0;
    assert_eq!(after.scsi(&read_10, &[], 512), (0, vec![7; 512]));
    let said = server.reload(&crossed.replacen("path", "readonly = true\npath", 1));
    assert!(said.contains("1 LUN added, 1 LUN removed"), "{said}");
    assert_eq!(after.scsi(&read_10, &[], 512), (0, vec![7; 512]));
    assert_eq!(after.attempt(&[0x2A, 0, 0, 0, 0, 8, 0, 0, 1, 0], &[1; 512], 0).2, Some([7, 0x27, 0]));
    // What cannot be told before it is closed is told then, and the rest is in force.
    let said =
        server.reload(&crossed.replacen("path", "block_size = 4096\nphysical_block_size = 4096\npath", 1));
    assert!(said.contains("1 LUN added, 1 LUN removed"), "{said}");
    desk.write("b.raw", vec![0; (1 << 20) + 512]);
    let said = server.reload(&crossed.replace("\"b.raw\"", "\"b.raw\"\nblock_size = 4096"));
    assert!(
        said.contains("in force in part (2 LUNs removed") && said.contains("no whole number of 4096"),
        "{said}"
    );
}

#[test]
fn luns_come_go_and_grow_and_the_initiator_hears_of_it() {
    let desk = Desk::new();
    ["a.raw", "b.raw", "c.raw"].iter().for_each(|file| desk.write(file, vec![1; 1 << 20]));
    let config = |luns: &[(u16, &str)]| format!("{LISTEN}{}", target("a", "", luns));
    let Some(mut server) = Server::start(&desk, &config(&[(0, "a.raw"), (2, "b.raw")])) else { return };
    let mut initiator = session(&server, "a");
    assert_eq!(attention(&mut initiator, 2), (0x29, 0));
    let said = server.reload(&config(&[(0, "a.raw"), (1, "c.raw"), (2, "b.raw")]));
    assert!(said.contains("read again: 1 LUN added"), "{said}");
    assert_eq!(attention(&mut initiator, 0), (0x3F, 0x0E));
    assert_eq!(luns(&mut initiator), [0, 1, 2]);
    assert_eq!(attention(&mut initiator, 1), (0x29, 0), "it is new");
    assert_eq!(attention(&mut initiator, 2), (0, 0), "REPORT LUNS has answered it");
    let said = server.reload(&config(&[(0, "a.raw"), (1, "c.raw")]));
    assert!(said.contains("read again: 1 LUN removed"), "{said}");
    assert_eq!(attention(&mut initiator, 1), (0x3F, 0x0E));
    assert_eq!(command(&mut initiator, 2, &[0; 6], 0).1, (0x25, 0));
    assert_eq!(luns(&mut initiator), [0, 1]);
    server.wait_for_line("the LUN is closed");
    // Another disk under the same number.
    let said = server.reload(&config(&[(0, "a.raw"), (1, "b.raw")]));
    assert!(said.contains("1 LUN added, 1 LUN removed"), "{said}");
    assert_eq!(attention(&mut initiator, 0), (0x3F, 0x0E));
    assert_eq!(attention(&mut initiator, 1), (0x29, 0));
    File::options().write(true).open(desk.path("a.raw")).unwrap().set_len(3 << 20).unwrap();
    let said = server.reload(&config(&[(0, "a.raw"), (1, "b.raw")]));
    assert!(said.contains("read again: 1 LUN grown"), "{said}");
    assert_eq!(luns(&mut initiator), [0, 1]);
    assert_eq!(attention(&mut initiator, 0), (0x2A, 0x09));
    let (_, _, capacity) = command(&mut initiator, 0, &READ_CAPACITY, 8);
    assert_eq!(capacity[..4], (3 * 2048_u32 - 1).to_be_bytes());
    assert_eq!(initiator.read(6000, 1), [0; 512]);
    // Smaller it may not become.
    File::options().write(true).open(desk.path("a.raw")).unwrap().set_len(2 << 20).unwrap();
    let said = server.reload(&config(&[(0, "a.raw"), (1, "b.raw")]));
    assert!(said.contains("the file has 4096 sectors and is served with 6144"), "{said}");
}

#[test]
fn rules_secrets_and_addresses_are_read_again() {
    let desk = Desk::new();
    ["a.raw", "b.raw", "c.raw"].iter().for_each(|file| desk.write(file, vec![0; 1 << 20]));
    desk.write("secret", "a secret of twelve");
    desk.write("leases", "");
    let [a, b] = ["a", "b"].map(|node| target(node, "", &[(0, &format!("{node}.raw"))]));
    let Some(mut server) = Server::start(&desk, &format!("{LISTEN}{a}{b}")) else { return };
    let (mut narrowed, mut other) = (session(&server, "a"), session(&server, "b"));
    let closed = target("a", "initiators = [\"iqn.2026-11.io.goldrush:boss\"]", &[(0, "a.raw")]);
    assert!(server.reload(&format!("{LISTEN}{closed}{b}")).contains("rules changed"));
    assert!(is_asked_to_go(&mut narrowed));
    assert!(server.log_in("a").is_none());
    // A secret concerns the next login.
    let proved = target("b", "chap = { user = \"b\", secret_file = \"secret\" }", &[(0, "b.raw")]);
    assert!(server.reload(&format!("{LISTEN}{a}{proved}")).contains("rules changed"));
    assert_eq!(other.read(0, 1), [0; 512]);
    assert!(server.log_in("b").is_none() && server.log_in("a").is_some());
    // Leases are read when they change, without a word.
    let carded = target("a", "macs = [\"52:54:00:00:00:01\"]", &[(0, "a.raw")]);
    let config = format!("leases = [\"leases\"]\n{LISTEN}{carded}{b}");
    assert!(server.reload(&config).contains("rules changed"));
    assert!(server.log_in("a").is_none());
    desk.write("leases", "0 52:54:00:00:00:01 127.0.0.1 node *\n");
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.log_in("a").is_some());
    // A masked LUN.
    let masked = target("b", "", &[(0, "b.raw"), (1, "c.raw")]);
    assert!(server.reload(&format!("{LISTEN}{a}{masked}")).contains("1 LUN added"));
    assert_eq!((attention(&mut other, 0), luns(&mut other)), ((0x3F, 0x0E), vec![0, 1]));
    let hidden = format!("{LISTEN}{a}{masked}initiators = [\"iqn.2026-11.io.goldrush:boss\"]\n");
    assert!(server.reload(&hidden).contains("rules changed"));
    assert_eq!((attention(&mut other, 0), luns(&mut other)), ((0x3F, 0x0E), vec![0]));
    // One more address, and one less.
    let fixed =
        (30_000..32_000).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let both = format!("listen = [\"127.0.0.1:0\", \"127.0.0.1:{fixed}\"]\n{a}{masked}");
    let said = server.reload(&both);
    assert!(said.contains("1 address added"), "{said}");
    assert_eq!(RawInitiator::connect(fixed).login(&name("a"), 1).unwrap(), (0, 0));
    let said = server.reload(&format!("{LISTEN}{a}{masked}"));
    assert!(said.contains("1 address removed"), "{said}");
    server.wait_for_line("an address is not listened on any more");
    assert!(std::net::TcpStream::connect(("127.0.0.1", fixed)).is_err());
    assert_eq!(other.read(0, 1), [0; 512]);
}

#[test]
fn a_golden_image_is_let_go_with_its_last_child() {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    ["a", "b", "c"]
        .iter()
        .for_each(|node| drop(desk.goldrush_ok(&format!("image create {node}.vhd --parent golden.vhd"))));
    let [a, b, c] = ["a", "b", "c"].map(|node| target(node, "", &[(0, &format!("{node}.vhd"))]));
    let Some(mut server) = Server::start(&desk, &format!("{LISTEN}{a}")) else { return };
    let mut first = session(&server, "a");
    assert_eq!(first.read(100, 8), [0; 4096]);
    assert!(server.reload(&format!("{LISTEN}{b}")).contains("1 target added, 1 target removed"));
    let mut second = session(&server, "b");
    second.command(100, 1, &[9; 512]).unwrap();
    assert_eq!(second.answer().unwrap().1, 0);
    assert!(is_asked_to_go(&mut first));
    server.wait_for_line("the target is gone");
    let golden = || File::open(desk.path("golden.vhd")).unwrap().try_lock().is_ok();
    assert!(!golden(), "b needs it");
    let raw = target("r", "", &[(0, "r.raw")]);
    desk.write("r.raw", vec![0; 1 << 20]);
    assert!(server.reload(&format!("{LISTEN}{raw}")).contains("1 target removed"));
    assert!(is_asked_to_go(&mut second));
    let begun = Instant::now();
    while !golden() {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody needs it");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Closed as whole images, and served again.
    assert!(desk.goldrush_ok("image check b.vhd").contains("clean"));
    assert!(server.reload(&format!("{LISTEN}{b}{c}")).contains("2 targets added"));
    assert_eq!(session(&server, "b").read(100, 1), [9; 512]);
    assert_eq!(session(&server, "c").read(100, 1), [0; 512]);
}

#[test]
fn a_target_is_granted_so_much_a_second_until_a_reload_says_otherwise() {
    let desk = Desk::new();
    desk.write("a.raw", "\0".repeat(64 * 1024));
    let slow = format!("{LISTEN}{}", target("a", "max_iops = 20", &[(0, "a.raw")]));
    let Some(mut server) = Server::start(&desk, &slow) else { return };
    let mut initiator = session(&server, "a");
    let begun = Instant::now();
    (0..13).for_each(|_| assert_eq!(attention(&mut initiator, 0), (0, 0)));
    // Three at once at most, 50 ms for each of the others.
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
    let fast = format!("{LISTEN}{}", target("a", "max_iops = 1000000000", &[(0, "a.raw")]));
    let verdict = server.reload(&fast);
    assert!(verdict.contains("configuration read again"), "{verdict}");
    (0..13).for_each(|_| assert_eq!(attention(&mut initiator, 0), (0, 0)));
    let wrong = format!("{LISTEN}{}", target("a", "max_rate = \"fast\"", &[(0, "a.raw")]));
    let verdict = server.reload(&wrong);
    assert!(verdict.contains("changes nothing"), "{verdict}");
    assert_eq!(attention(&mut initiator, 0), (0, 0));
}
