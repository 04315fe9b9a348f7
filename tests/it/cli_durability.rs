//! What the real program keeps when it is killed, when the file system is full, and when it is told not to care.
//!
//! Knows a verifying initiator. Does not know power cuts: those are simulated (`crash`, `faults`, `tests/sim`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::start_config;
use crate::sim_disk::Rng;

pub const TARGET: &str = "iqn.2026-11.io.goldrush:node";
const GOOD: u8 = 0;
const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Sectors of one write.
const RUN: u32 = 8;
const RUNS: u64 = 16 << 10;

pub fn config(leaf: &Path, more: &str) -> String {
    format!(
        "listen = [\"127.0.0.1:0\"]\nimage_roots = [\"/\"]\n[[target]]\nname = \"{TARGET}\"\n[[target.lun]]\nlun = 0\n\
         path = \"{}\"\n{more}\n",
        leaf.display()
    )
}

/// A child of an empty golden image.
fn desk(more: &str) -> Desk {
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 256M");
    desk.goldrush_ok("image create node.vhd --parent golden.vhd");
    desk.write("c.toml", config(Path::new("node.vhd"), more));
    desk
}

fn bytes(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(RUN as usize * 512 / 8)
}

fn value(bytes: &[u8]) -> u64 {
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.chunks_exact(8).all(|word| word == value.to_le_bytes()), "a torn run after {value:#x}");
    value
}

/// What each run of sectors may hold: the last acknowledged value, and one that may still be on its way.
#[derive(Default)]
pub struct Expected {
    acknowledged: BTreeMap<u64, u64>,
    unanswered: BTreeMap<u64, u64>,
    /// Writes acknowledged so far.
    pub answers: u64,
}

impl Expected {
    pub fn verify(&mut self, initiator: &mut RawInitiator) {
        let unanswered = std::mem::take(&mut self.unanswered);
        for (run, expected) in &mut self.acknowledged {
            let found = value(&initiator.read(*run as u32 * RUN, RUN as u16));
            if unanswered.get(run) == Some(&found) {
                *expected = found;
            }
            assert_eq!(found, *expected, "run {run} was acknowledged and is lost");
        }
    }
}

/// Writes with many commands in flight until `writes` are answered; `None`: until the connection breaks.
pub fn load(
    initiator: &mut RawInitiator,
    rng: &mut Rng,
    expected: &mut Expected,
    writes: usize,
    next: &mut u64,
) {
    const DEPTH: usize = 16;
    let mut answered = 0;
    let mut begun = 0;
    while answered < writes {
        while begun < writes && expected.unanswered.len() < DEPTH {
            // Sequential, random, and again and again at the same places.
            let run = match rng.below(3) {
                0 => *next % RUNS,
                1 => rng.below(RUNS),
                _ => rng.below(16) * 777,
            };
            if expected.unanswered.contains_key(&run) {
                continue;
            }
            *next += 1;
            expected.unanswered.insert(run, *next);
            begun += 1;
            if initiator.command(run as u32 * RUN, RUN as u16, &bytes(*next)).is_err() {
                return;
            }
        }
        let Ok((tag, status, _)) = initiator.answer() else { return };
        let run = u64::from(tag / RUN);
        if status != GOOD {
            // The unit attention of a new session.
            expected.unanswered.remove(&run);
            answered += 1;
            continue;
        }
        answered += 1;
        if let Some(value) = expected.unanswered.remove(&run) {
            expected.acknowledged.insert(run, value);
            expected.answers += 1;
        }
    }
}

/// `GOLDRUSH_KILL_CYCLES=1000 cargo test --test it kill` runs long.
fn cycles(default: u64) -> u64 {
    std::env::var("GOLDRUSH_KILL_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(default)
}

#[test]
fn a_killed_server_loses_no_acknowledged_write() {
    let desk = desk("");
    let golden = std::fs::read(desk.path("golden.vhd")).unwrap();
    let mut expected = Expected::default();
    let (mut rng, mut next) = (Rng(7), 0);
    for cycle in 0..cycles(4) {
        let Some(server) = start_config(&desk, "") else { return };
        let mut initiator = server.log_in(TARGET, 1);
        expected.verify(&mut initiator);
        // The killer does not wait for anybody: some commands are in the middle of something.
        let killer = server.kill_after(Duration::from_millis(20 + rng.below(200)));
        load(&mut initiator, &mut rng, &mut expected, usize::MAX, &mut next);
        killer.join().unwrap();
        server.kill();
        println!("cycle {cycle}: {} runs acknowledged", expected.acknowledged.len());
    }
    let Some(server) = start_config(&desk, "") else { return };
    expected.verify(&mut server.log_in(TARGET, 1));
    assert!(expected.acknowledged.len() > 50);
    server.stop();
    desk.goldrush_ok("image check node.vhd");
    assert!(std::fs::read(desk.path("golden.vhd")).unwrap() == golden, "the parent was written");
    let left = std::fs::read_dir(desk.path("runtime")).unwrap().count();
    assert_eq!(left, 0, "journals are left behind after a stop in good order");
}

/// A ring outlives its process, and with it the listener, the images and their locks: a restart must not fail on them.
#[test]
fn a_killed_server_comes_up_again_at_once_with_its_images_and_its_port() {
    const LEAVES: u32 = 12;
    let desk = Desk::new();
    desk.goldrush_ok("image create golden.vhd --size 64M");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut text = config(Path::new("node.vhd"), "").replace(":0\"", &format!(":{port}\""));
    text.insert_str(0, "state_dir = \"state\"\n");
    desk.goldrush_ok("image create node.vhd --parent golden.vhd");
    for lun in 1..LEAVES {
        desk.goldrush_ok(&format!("image create leaf-{lun}.vhd --parent golden.vhd"));
        text.push_str(&format!("[[target.lun]]\nlun = {lun}\npath = \"leaf-{lun}.vhd\"\n"));
    }
    desk.write("c.toml", text);
    let (mut expected, mut rng, mut next) = (Expected::default(), Rng(5), 0);
    for _ in 0..cycles(4) {
        let Some(server) = start_config(&desk, "") else { return };
        assert_eq!(server.port, port);
        let mut initiator = server.log_in(TARGET, 1);
        load(&mut initiator, &mut rng, &mut expected, 100, &mut next);
        // With commands on their way, and another connection that nobody has said anything on.
        let _idle = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        server.kill();
    }
    let Some(server) = start_config(&desk, "") else { return };
    expected.verify(&mut server.log_in(TARGET, 1));
    server.stop();
}

/// One write, acknowledged, and the end of its server before anything is committed.
fn write_and_kill(desk: &Desk, run: u32, value: u64) -> bool {
    let Some(server) = start_config(desk, "") else { return false };
    let mut initiator = server.log_in(TARGET, 1);
    initiator.read(0, 1);
    initiator.command(run * RUN, RUN as u16, &bytes(value)).unwrap();
    assert_eq!(initiator.answer().unwrap().1, GOOD);
    server.kill();
    true
}

fn journals(desk: &Desk) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(desk.path("runtime")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    // A killed server also leaves its control socket.
    let mut journals: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "pending")).collect();
    // The first core's first: it has the only leaf.
    journals.sort();
    journals
}

#[test]
fn what_a_killed_server_acknowledged_is_brought_back_or_asked_for() {
    let desk = desk("");
    if !write_and_kill(&desk, 9, 0x99) {
        return;
    }
    // A reader would miss it, and says so.
    let said = desk.goldrush("image convert node.vhd copy.raw");
    assert!(
        said.code == 1 && said.err.contains("node.vhd") && said.err.contains("1 acknowledged"),
        "{said:?}"
    );
    let said = desk.goldrush("image check node.vhd");
    assert!(said.code == 2 && said.err.contains("acknowledged writes"), "{said:?}");
    // Whoever writes takes it over first.
    desk.goldrush_ok("image check --repair node.vhd");
    assert_eq!(journals(&desk), Vec::<std::path::PathBuf>::new());
    desk.goldrush_ok("image convert node.vhd copy.raw");
    let copy = std::fs::read(desk.path("copy.raw")).unwrap();
    assert!(copy[9 * 4096..10 * 4096] == bytes(0x99));
    let elsewhere = copy[..9 * 4096].iter().chain(&copy[10 * 4096..]);
    assert!(elsewhere.copied().all(|byte| byte == 0));
}

#[test]
fn records_of_a_changed_image_or_in_a_damaged_journal_are_not_replayed() {
    use std::os::unix::fs::FileExt;
    let desk = desk("");
    if !write_and_kill(&desk, 9, 0x99) {
        return;
    }
    let journal = journals(&desk).remove(0);
    let bytes_before = std::fs::read(&journal).unwrap();
    // A copy is another file.
    let image = std::fs::read(desk.path("node.vhd")).unwrap();
    desk.write("other.vhd", &image);
    desk.goldrush_ok("image check other.vhd");
    // Somebody else changes the image: it no longer is what the server left.
    let file = std::fs::File::options().write(true).open(desk.path("node.vhd")).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(100);
    file.set_modified(later).unwrap();
    let said = desk.goldrush("serve --config c.toml");
    assert!(
        said.code != 0
            && said.err.contains("changed after the server")
            && said.err.contains("--forget-pending")
    );
    // Damage of a record, as no kill makes it.
    let file = std::fs::File::options().write(true).open(&journal).unwrap();
    let record =
        bytes_before.chunks_exact(32).rposition(|chunk| chunk.iter().any(|byte| *byte != 0)).unwrap();
    file.write_all_at(&[0xEE], record as u64 * 32 + 1).unwrap();
    let said = desk.goldrush("image convert node.vhd copy.raw");
    assert!(said.err.contains("not believed") && said.err.contains("record"), "{said:?}");
    file.write_all_at(&bytes_before, 0).unwrap();
    let said = desk.goldrush("image check --forget-pending node.vhd");
    assert!(said.code == 0 && journals(&desk).is_empty(), "{said:?}");
}

#[test]
fn after_a_failed_flush_an_image_is_read_only_until_it_is_checked() {
    use std::os::unix::fs::FileExt;
    let desk = desk("");
    if !write_and_kill(&desk, 9, 0x99) {
        return;
    }
    // As the server does it: the sixth word of the first leaf.
    let file = std::fs::File::options().write(true).open(journals(&desk).remove(0)).unwrap();
    file.write_all_at(&1_u64.to_ne_bytes(), 8 * (64 + 5)).unwrap();
    let said = desk.goldrush("serve --config c.toml");
    assert!(
        said.code == 2 && said.err.contains("flush of it failed") && said.err.contains("image check"),
        "{said:?}"
    );
    desk.goldrush_ok("image convert node.vhd copy.raw");
    let said = desk.goldrush("image check node.vhd");
    assert!(said.code == 0 && said.err.contains("may be written again"), "{said:?}");
    assert!(journals(&desk).is_empty());
    let server = start_config(&desk, "").unwrap();
    assert_eq!(server.log_in(TARGET, 1).read(9 * RUN, RUN as u16), [0; 4096], "old, never something else");
    server.stop();
}

#[test]
fn until_reset_is_empty_at_every_start_and_never_waits_for_the_disk() {
    let desk = desk("durability = \"until-reset\"");
    for round in 1..4 {
        let Some(server) = start_config(&desk, "") else { return };
        let mut initiator = server.log_in(TARGET, 1);
        assert_eq!(initiator.read(9 * RUN, RUN as u16), [0; 4096], "round {round}");
        initiator.command(9 * RUN, RUN as u16, &bytes(round)).unwrap();
        assert_eq!(initiator.answer().unwrap().1, GOOD);
        assert_eq!(initiator.scsi(&SYNCHRONIZE_CACHE, &[], 0).0, GOOD);
        assert_eq!(value(&initiator.read(9 * RUN, RUN as u16)), round);
        if round == 2 {
            server.stop();
        } else {
            server.kill();
        }
        if round == 1 {
            // Whatever became of the file: the table, the end.
            let file = std::fs::File::options().write(true).open(desk.path("node.vhd")).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1000).unwrap();
        }
    }
    desk.write("c.toml", config(Path::new("golden.vhd"), "durability = \"until-reset\""));
    let said = desk.goldrush("serve --config c.toml");
    assert!(said.code == 2 && said.err.contains("differencing"), "{said:?}");
}
