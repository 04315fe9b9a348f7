//! Boot traces through the real program: recorded while a node boots, used by the next start, told when they are wrong.
//!
//! Knows a node that reads scattered places of its disk, first of all its first sector.

use std::time::{Duration, Instant};

use crate::cli::{Desk, Said};
use crate::hostile::{NODE, logged_in};
use crate::raw_initiator::RawInitiator;
use crate::running::{self, Running};

const SECTORS: u32 = 16 * 1024;

/// The first sector of every run a boot reads, 32 sectors each, in its order.
const BOOT: [u32; 12] = [0, 2048, 2080, 9000, 8, 15000, 4096, 4128, 4160, 12000, 1000, 16000];

/// A golden image in which every sector tells its number.
pub(crate) fn desk() -> Desk {
    let desk = Desk::new();
    let content: Vec<u8> = (0..SECTORS).flat_map(sector).collect();
    desk.write("disk.raw", content);
    desk.goldrush_ok("image convert disk.raw golden.vhd");
    desk
}

fn sector(number: u32) -> impl Iterator<Item = u8> {
    (0..128).flat_map(move |word: u32| (number ^ word << 16).wrapping_mul(2_654_435_761).to_le_bytes())
}

pub(crate) fn boot(node: &mut RawInitiator) {
    for lba in BOOT {
        let expected: Vec<u8> = (lba..lba + 32).flat_map(sector).collect();
        assert!(node.read(lba, 32) == expected, "sectors from {lba}");
    }
}

/// `None`, loudly, where the kernel gives no ring.
fn start(desk: &Desk, more: &str) -> Option<Running> {
    let line = format!(
        "serve --golden golden.vhd --overlays nodes --nodes 2 --listen 127.0.0.1:0 --register-buffers false \
         --log-format json {more}"
    );
    running::start(desk, &line)
}

/// A field of the last log line that has it.
#[track_caller]
pub(crate) fn field(said: &Said, message: &str, name: &str) -> u64 {
    let line = said.err.lines().rfind(|line| line.contains(message));
    let event: serde_json::Value =
        serde_json::from_str(line.unwrap_or_else(|| panic!("{message}: {}", said.err))).unwrap();
    let found = event.get(name).or_else(|| event.get("fields")?.get(name));
    found.and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{name}: {event}"))
}

pub(crate) const READ: &str = "golden cache: bytes read from disk";

#[test]
fn a_boot_is_recorded_and_the_next_start_reads_along_it() {
    let desk = desk();
    let Some(server) = start(&desk, "--golden-cache 16M") else { return };
    let mut node = logged_in(server.port, NODE, 1);
    boot(&mut node);
    let first = server.stop();
    assert!(first.err.contains("a boot was recorded"), "{}", first.err);
    let shown: serde_json::Value =
        serde_json::from_str(&desk.goldrush_ok("trace show golden.vhd --json")).unwrap();
    let bytes = shown["bytes"].as_u64().unwrap();
    assert_eq!((shown["boots"].as_u64(), shown["fits"].as_bool()), (Some(1), Some(true)));
    assert_eq!((bytes, field(&first, READ, "read_bytes")), (field(&first, READ, "asked_bytes"), bytes));
    let first_range = &shown["ranges"][0];
    assert_eq!(first_range["offset"].as_u64().map(|offset| offset < 65536), Some(true), "{shown}");

    // The first read of a node is enough.
    let server = start(&desk, "--golden-cache 16M").unwrap();
    let mut node = logged_in(server.port, NODE, 1);
    node.read(0, 1);
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(700));
    boot(&mut node);
    let second = server.stop();
    assert_eq!(field(&second, READ, "read_bytes"), bytes, "after {:?}: {}", begun.elapsed(), second.err);
    assert_eq!(field(&second, READ, "asked_bytes"), bytes);
    let (ahead, used) = (field(&second, READ, "ahead_bytes"), field(&second, READ, "ahead_used_bytes"));
    assert!(ahead > bytes / 2 && ahead == used, "{ahead} read ahead, {used} of it used");
    assert_eq!(field(&second, "golden data was read ahead along boot traces", "bytes"), ahead);

    // Warm: nobody waits for the disk.
    let server = start(&desk, "--golden-cache 16M --warm --cores 0").unwrap();
    let mut node = logged_in(server.port, NODE, 1);
    boot(&mut node);
    let warm = server.stop();
    assert_eq!(field(&warm, "the golden cache is warm", "bytes"), bytes);
    assert_eq!(field(&warm, "golden cache: lookups of this core", "misses"), 0);
    assert!(desk.goldrush_ok("trace show golden.vhd --ranges").contains("boots:   3"), "each boot counts");

    let replayed: serde_json::Value =
        serde_json::from_str(&desk.goldrush_ok("trace replay golden.vhd --json")).unwrap();
    assert_eq!(replayed["bytes"].as_u64(), Some(bytes));
    assert!(replayed["reads"].as_u64() < Some(BOOT.len() as u64), "neighbours are one read: {replayed}");
    desk.goldrush_ok("trace forget golden.vhd");
    let said = desk.goldrush("trace show golden.vhd");
    assert!(said.code == 1 && said.err.contains("golden.vhd has no boot trace"), "{said:?}");
}

/// Serves, boots, stops.
fn serve_a_boot(desk: &Desk, more: &str) -> Option<Said> {
    let server = start(desk, more)?;
    boot(&mut logged_in(server.port, NODE, 1));
    Some(server.stop())
}

#[test]
fn damaged_and_foreign_traces_are_told_once_and_recorded_anew() {
    let desk = desk();
    let Some(said) = serve_a_boot(&desk, "--golden-cache 16M") else { return };
    let trace = desk.path("golden.vhd.boot-trace");
    assert!(trace.exists(), "{}", said.err);
    let good = std::fs::read(&trace).unwrap();
    let warnings = |said: &Said, words: &str| said.err.lines().filter(|line| line.contains(words)).count();

    let mut bad = good.clone();
    bad[30] ^= 0x40;
    std::fs::write(&trace, &bad).unwrap();
    let said = desk.goldrush("trace show golden.vhd");
    assert!(said.code == 1 && said.err.contains("is damaged (its checksum is wrong)"), "{said:?}");
    let said = serve_a_boot(&desk, "--golden-cache 16M").unwrap();
    assert_eq!(warnings(&said, "golden.vhd.boot-trace is damaged"), 1, "{}", said.err);
    assert_eq!(std::fs::read(&trace).unwrap(), good, "recorded anew");

    let golden = std::fs::File::options().write(true).open(desk.path("golden.vhd")).unwrap();
    golden.set_modified(std::time::SystemTime::now() - Duration::from_secs(86_400)).unwrap();
    let said = serve_a_boot(&desk, "--golden-cache 16M --warm").unwrap();
    assert_eq!(warnings(&said, "golden.vhd.boot-trace belongs to another version of"), 1, "{}", said.err);
    assert_eq!(warnings(&said, "--warm: there is no boot trace yet"), 1, "{}", said.err);
    let said = serve_a_boot(&desk, "--golden-cache 16M").unwrap();
    assert_eq!(warnings(&said, "belongs to another version"), 0, "{}", said.err);
}

#[test]
fn traces_can_be_kept_elsewhere_or_not_at_all() {
    let desk = desk();
    let Some(said) = serve_a_boot(&desk, "--golden-cache 16M --boot-trace off") else { return };
    assert!(!said.err.contains("recorded") && !desk.path("golden.vhd.boot-trace").exists(), "{}", said.err);
    serve_a_boot(&desk, "--golden-cache 16M --boot-trace traces").unwrap();
    assert!(!desk.path("golden.vhd.boot-trace").exists());
    assert_eq!(crate::cli::names(&desk.path("traces")).len(), 1);
    assert!(desk.goldrush_ok("trace show golden.vhd --folder traces").contains("boots:   1"));
    let trace = crate::cli::names(&desk.path("traces")).remove(0);
    assert!(desk.goldrush_ok(&format!("trace show traces/{trace}")).contains("boots:   1"));
    desk.goldrush_ok("trace forget golden.vhd --folder traces");
    assert_eq!(crate::cli::names(&desk.path("traces")).len(), 0);
}

#[test]
fn a_cache_too_large_for_memory_is_told_once_and_a_small_one_is_never_filled_ahead() {
    let desk = desk();
    let Some(said) = serve_a_boot(&desk, "--golden-cache 4000000G") else { return };
    let told =
        said.err.lines().filter(|line| line.contains("--golden-cache is more than the available memory"));
    assert_eq!(told.count(), 1, "{}", said.err);
    // Four frames: less than the trace.
    let said = serve_a_boot(&desk, "--golden-cache 256K --warm").unwrap();
    assert!(said.err.contains("the golden cache is too small for the boot trace"), "{}", said.err);
}
