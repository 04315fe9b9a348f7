//! Storms against the ceiling inside this process: the whole path of the client, a small recorded boot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Checks, Class, Record, Script, Storm, Watch, run};
use crate::ceiling::{Ceiling, SEED, Setup, TARGET};
use crate::load::Base;
use crate::trace::{Kind, Trace};
use crate::url::Url;

struct Nobody;

impl Watch for Nobody {
    fn goes_on(&self, _: u64, _: usize, _: &Record) {}
}

/// A boot with all that a recorded one has: small and large reads, overlapping writes, a read of what was written.
const BOOT: &str = "# outstanding: os1=4\ntime_us,op,lba,blocks,session\n\
    0,R,0,1,loader1\n10,R,1,63,loader2\n20,R,64,127,loader2\n\
    30,R,0,1,os1\n40,R,256,2032,os1\n50,W,100,8,os1\n60,W,104,1128,os1\n70,R,96,24,os1\n80,F,0,0,os1\n\
    90,R,4000,8,os2\n100,W,4000,8,os2\n110,R,3996,16,os2\n";

fn storm(url: Url, nodes: usize, checks: Checks) -> Storm {
    Storm {
        urls: vec![url],
        nodes,
        script: Script::of(&Trace::parse(BOOT).unwrap()),
        think: 0.0,
        checks,
        content: Base::Stamp(SEED),
        initiator: "iqn.2026-11.io.goldrush:storm-*".to_string(),
        limit: Duration::from_secs(40),
    }
}

fn with_ceiling<T>(test: impl FnOnce(Url) -> T) -> T {
    let listen = "127.0.0.1:0".parse().unwrap();
    let setup = Setup { listen, memory: 4 << 20, send_bytes: 64 << 10, spin: Duration::ZERO };
    let ceiling = Ceiling::bind(setup).unwrap();
    let portal = ceiling.address().unwrap().to_string();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || ceiling.run(Instant::now() + Duration::from_secs(60), &stop)
    });
    let result = test(Url { chap: None, portal, target: TARGET.to_string(), lun: 0 });
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap().unwrap();
    result
}

#[test]
fn all_nodes_boot_and_every_golden_byte_is_looked_at() {
    let record = with_ceiling(|url| run(&storm(url, 20, Checks::Golden), &Nobody)).unwrap();
    assert!(record.is_good(), "{:?}", record.first_error);
    let script = Script::of(&Trace::parse(BOOT).unwrap());
    assert_eq!(record.commands, 20 * script.commands());
    assert_eq!((record.read_bytes, record.write_bytes), (20 * script.read_bytes, 20 * script.write_bytes));
    assert_eq!((record.class(Class::Write).len(), record.class(Class::Flush).len()), (60, 20));
    assert_eq!(record.class(Class::Login).len(), 80);
    let kinds: Vec<Kind> = record.nodes[7].spans.iter().map(|span| span.kind).collect();
    assert_eq!(kinds, [Kind::Loader, Kind::Loader, Kind::System, Kind::System]);
    // The reads at 64, 96, 256, 3996 and 4000 meet sectors that the boot writes, before or after them.
    let written = 91 + 20 + 976 + 8 + 8;
    assert_eq!(record.verified_bytes, 20 * (script.read_bytes - written * 512));
    assert!(record.wire_bytes > record.read_bytes);
}

#[test]
fn a_disk_that_forgets_writes_is_found_out() {
    // The ceiling drops what is written.
    let record = with_ceiling(|url| run(&storm(url, 2, Checks::All), &Nobody)).unwrap();
    assert!(record.wrong_sectors > 0 && !record.is_good());
    assert_eq!(record.booted(), 2);
    assert!(record.read_back_bytes > 0);
}

#[test]
fn wrong_golden_data_is_found_out_and_payloads_can_be_left_in_the_kernel() {
    let (wrong, unseen) = with_ceiling(|url| {
        let other = Storm { content: Base::Stamp(SEED + 1), ..storm(url, 2, Checks::Golden) };
        let unseen = Storm { checks: Checks::Off, ..other.clone() };
        (run(&other, &Nobody).unwrap(), run(&unseen, &Nobody).unwrap())
    });
    assert!(wrong.wrong_sectors > 0);
    assert!(unseen.is_good(), "{:?}", unseen.first_error);
    assert_eq!((unseen.verified_bytes, unseen.read_bytes), (0, wrong.read_bytes));
}

#[test]
fn pauses_are_kept_in_proportion() {
    let slow =
        with_ceiling(|url| run(&Storm { think: 2000.0, ..storm(url, 3, Checks::Off) }, &Nobody)).unwrap();
    assert!(slow.is_good(), "{:?}", slow.first_error);
    // 110 recorded microseconds, two thousandfold.
    assert!(slow.time_to_all().unwrap() >= Duration::from_millis(220));
}

#[test]
fn a_storm_ends_when_its_time_is_up() {
    let storm = |url| Storm { think: 1e9, limit: Duration::from_millis(300), ..storm(url, 2, Checks::Off) };
    let record = with_ceiling(|url| run(&storm(url), &Nobody)).unwrap();
    assert_eq!(record.booted(), 0);
    assert!(record.nodes[1].failure.as_deref().unwrap().contains("after 0 s"));
}

#[test]
fn a_node_without_a_server_fails_with_a_sentence() {
    let url = with_ceiling(|url| url);
    let record = run(&storm(url, 2, Checks::Off), &Nobody).unwrap();
    assert!(record.first_error.unwrap().contains("refused"));
    assert!(record.nodes.iter().all(|node| node.failure.is_some()));
}
